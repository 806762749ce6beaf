//! The binary `spanflame`.

use std::process::ExitCode;

use clap::Parser as _;
use profiler_agent::cli::{Cli, Command, answer, complain, usage_error, with_causes};
use profiler_agent::worker::{self, Role};
use profiler_agent::{doctor, dump, kernel, launch, record};

fn main() -> ExitCode {
    let Cli { command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let command = std::env::args_os().nth(1).unwrap_or_default();
            let Some(line) = usage_error(&error, &command) else { error.exit() };
            complain(&line);
            return ExitCode::from(2);
        }
    };
    match command {
        Command::Record(options) => ended(record::run(&options)),
        Command::Doctor(options) => ended(doctor::run(&options)),
        Command::Dump(options) => ended(dump::run(&options)),
        Command::Launch { command } => launch::run(&command),
        Command::Worker { role } => match Role::from_word(&role) {
            Some(role) => worker::run(role),
            None => ExitCode::from(2),
        },
        Command::VerifierReport => verifier_report(),
    }
}

fn ended(result: Result<ExitCode, record::RecordError>) -> ExitCode {
    result.unwrap_or_else(|error| {
        complain(&with_causes(&error));
        error.exit_code()
    })
}

fn verifier_report() -> ExitCode {
    let report = kernel::check_support().and_then(|()| kernel::verifier_report());
    let text = report
        .map_err(|error| error.to_string())
        .and_then(|figures| serde_json::to_vec(&figures).map_err(|error| error.to_string()));
    match text.and_then(|text| answer(&text).map_err(|error| error.to_string())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}
