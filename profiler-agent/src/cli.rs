//! The command line: what can be asked, and how answers are printed.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};
use profiler_model::clean;

use crate::select::{HEADING, SELECTORS, SelectOptions};
use crate::source_map::Rule;

/// A profiler for Linux: samples every thread from the kernel, unwinds without frame pointers, and
/// answers with a flame graph.
#[derive(Debug, Parser)]
#[command(name = "spanflame", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Record a profile of processes, a command or the whole node
    #[command(after_help = EXAMPLES)]
    Record(Record),
    /// Say how well a process can be profiled, and what makes it better
    #[command(after_help = DOCTOR)]
    Doctor(Doctor),
    /// Print the stack of every thread of a process now, whether it runs or waits
    ///
    /// The process is not stopped, where the kernel can do without. Its children are processes of their own: name them, too.
    #[command(after_help = DUMP_EXAMPLES)]
    Dump(DumpOptions),
    /// Become a command when continued (used by `record -- COMMAND`)
    #[command(hide = true)]
    Launch {
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Parse files of other programs (started by spanflame itself)
    #[command(hide = true)]
    Worker {
        /// `tables`, `symbols`, `generated` or `describe`.
        role: String,
    },
    /// Load the kernel programs and print what the verifier made of them, as JSON
    #[command(hide = true)]
    VerifierReport,
}

const EXAMPLES: &str = "Examples:
  spanflame record -p 1234 -d 10s -o flame.svg          a flame graph of one process and its children
  spanflame record -a -d 30s -o node.svg -o node.pb.gz  the whole node, also as pprof
  spanflame record -o build.svg -- make -j2             a command, from its first instruction
  spanflame record -p 1234 -d 5s                        the hottest functions, in the terminal
  spanflame record --unit nginx -d 10s -o nginx.svg     a systemd service, also when it is restarted meanwhile
  spanflame record --container 4f0a --exclude name=^sh$ one container, without its shells

-p, a COMMAND and selectors narrow each other down: --name cc1 -- make records only the compilers. A selected process
is recorded for as long as it matches, and so is one that is started, renamed or moved meanwhile (a move is noticed
some seconds later, of 3000 processes half a minute: 100 are looked at each second). Its children are
selected only if they match themselves.

Output files (-o) by the end of their names:
  .svg     flame graph        .folded  folded stacks        .pb.gz  pprof (go tool pprof)

Ctrl-C, Ctrl-\\, SIGTERM and SIGHUP end a recording and write everything; Ctrl-C again, a second later or more, gives up.

Exit code: 0 done (or that of COMMAND, unless -d ended it), 1 failed, 2 bad usage, 3 not permitted or not supported here.";

const DOCTOR: &str = "Examples:
  spanflame doctor -p 1234          what is missing in one process and its children, and how to get it
  spanflame doctor -p 1234 -d 10s   the same from a longer sample
  spanflame doctor --unit nginx     of a service

Exit code: 0 done, whatever was found; 1 failed, 2 bad usage, 3 not permitted or not supported here.";

/// `spanflame doctor`.
#[derive(Debug, Args)]
#[command(mut_group(SELECTORS, one_or_pid))]
pub struct Doctor {
    /// Look at this process, and at its children
    #[arg(short, long = "pid", value_name = "PID", value_parser = parse_pid, allow_hyphen_values = true)]
    pub pid: Option<u32>,
    /// Leave out its children
    #[arg(long)]
    pub no_children: bool,
    /// Which process, by what it is: those that match must be one and its descendants.
    #[command(flatten)]
    pub select: SelectOptions,
    /// Sample it for this time: 10s, 500ms, 2m
    #[arg(short, long, value_name = "TIME", default_value = "2s", value_parser = parse_duration,
          allow_hyphen_values = true)]
    pub duration: Duration,
    /// Samples a second on each busy CPU, 1 to 10000
    #[arg(short = 'F', long, value_name = "HZ", default_value = "499", value_parser = parse_frequency,
          allow_hyphen_values = true)]
    pub frequency: NonZeroU32,
    /// What unwind tables may take.
    #[command(flatten)]
    pub tables: TableOptions,
    /// Ask the servers in DEBUGINFOD_URLS for debug information that is not here, as `record` does
    #[arg(long)]
    pub debuginfod: bool,
    /// Print all that was found as JSON
    #[arg(long)]
    pub json: bool,
}

const DUMP_EXAMPLES: &str = "Examples:
  spanflame dump -p 1234                                what every thread of a process does
  spanflame dump -p 1234 -p 1240 --json                 of two processes, for a script
  spanflame dump --unit nginx                           of all processes of a service

A block for each stack: a line TID NAME STATE [SYSTEM CALL] for each thread that has it, then its functions, the
innermost first. Threads that run come first (R), then those that can't be interrupted (D), then the rest.

Exit code: 0 done, 1 failed, 2 bad usage, 3 not permitted or not supported here.";

/// `spanflame dump`.
#[derive(Debug, Args)]
#[command(mut_group(SELECTORS, one_or_pid))]
pub struct DumpOptions {
    /// Show the threads of this process. Repeatable
    #[arg(short, long = "pid", value_name = "PID", value_parser = parse_pid, allow_hyphen_values = true)]
    pub pid: Vec<u32>,
    /// Which processes, by what they are.
    #[command(flatten)]
    pub select: SelectOptions,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// What unwind tables may take.
    #[command(flatten)]
    pub tables: TableOptions,
    /// Ask the servers in DEBUGINFOD_URLS for debug information that is not here, as `record` does
    #[arg(long)]
    pub debuginfod: bool,
    /// Show source files below FROM as below TO; of several the longest FROM counts. Repeatable
    #[arg(long, value_name = "FROM=TO")]
    pub source_map: Vec<Rule>,
    /// Stop each thread for a moment, as on kernels that can't read it in place
    #[arg(long, hide = true)]
    pub ptrace: bool,
    /// Look at the threads so many times, and show what the last look saw
    #[arg(long, hide = true, default_value = "1")]
    pub times: NonZeroU32,
}

/// Of the selectors and --pid one is required.
fn one_or_pid(selectors: ArgGroup) -> ArgGroup {
    selectors.arg("pid").required(true)
}

/// What unwind tables may take.
#[derive(Clone, Debug, Args)]
pub struct TableOptions {
    /// Memory to make do with, 16M to 64G: a quarter of it is for unwind tables, and at that bound those
    /// not in use make room
    #[arg(long, value_name = "BYTES", default_value = "128M", value_parser = parse_memory)]
    pub memory: u64,
    /// Folder in which to keep unwind tables that take long to build, or `none`. It must be safe: ours, and
    /// no other user may write there or above (default: /var/cache/spanflame for root, otherwise none)
    #[arg(long, value_name = "DIR|none")]
    pub table_cache: Option<PathBuf>,
}

/// `spanflame record`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("parents").args(["pid", "exec"]).multiple(true)))]
pub struct Record {
    /// Profile this process: all its threads, and its children. Repeatable
    #[arg(short, long = "pid", value_name = "PID", value_parser = parse_pid, allow_hyphen_values = true,
          conflicts_with_all = ["all", "exec"])]
    pub pid: Vec<u32>,
    /// Profile the whole node; idle CPUs are left out
    #[arg(short, long, conflicts_with = "exec")]
    pub all: bool,
    /// Leave out children of the processes of -p, or of COMMAND
    #[arg(long, conflicts_with = "all", requires = "parents")]
    pub no_children: bool,
    /// Which processes, by what they are.
    #[command(flatten)]
    pub select: SelectOptions,
    /// Begin although no process matches the selectors yet, and record those that are to come
    #[arg(long, help_heading = HEADING, requires = SELECTORS, conflicts_with = "exec")]
    pub wait: bool,
    /// Stop after this time: 10s, 500ms, 2m, 1h; a COMMAND is ended then (default: at Ctrl-C, or when
    /// the processes have ended)
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    pub duration: Option<Duration>,
    /// Samples a second on each busy CPU, 1 to 10000
    #[arg(short = 'F', long, value_name = "HZ", default_value = "99", value_parser = parse_frequency,
          allow_hyphen_values = true)]
    pub frequency: NonZeroU32,
    /// What unwind tables may take.
    #[command(flatten)]
    pub tables: TableOptions,
    /// Ask the servers in DEBUGINFOD_URLS for debug information that is not here, when sampling is over: they are
    /// told the build ids of programs and libraries in the profile. What they send is kept in
    /// DEBUGINFOD_CACHE_PATH (default: /var/cache/spanflame/debuginfod for root, otherwise in ~/.cache)
    #[arg(long)]
    pub debuginfod: bool,
    /// Write the profile to this file: .svg, .folded or .pb.gz. Repeatable
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<PathBuf>,
    /// Show source files below FROM as below TO; of several the longest FROM counts. Repeatable
    #[arg(long, value_name = "FROM=TO")]
    pub source_map: Vec<Rule>,
    /// Print the hottest functions and the profile's quality as JSON
    #[arg(long)]
    pub json: bool,
    /// Write the kernel programs' records to this file, each with what it takes to check its unwinding:
    /// the number of words, then the words
    #[arg(long, hide = true, value_name = "FILE")]
    pub raw: Option<PathBuf>,
    /// Do all but unwind user stacks: the floor that unwinding is measured against
    #[arg(long, hide = true)]
    pub no_unwind: bool,
    /// Profile this command, from its first instruction to its end
    #[arg(last = true, value_name = "COMMAND")]
    pub exec: Vec<OsString>,
}

/// One line about a command line that makes no sense, whose first word is `command`; `None` for an error that is an
/// answer, as that to `--help`. What clap says beside it (tips, the usage) is often beside the point.
#[must_use]
pub fn usage_error(error: &clap::Error, command: &OsStr) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return None;
    }
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
    let line = lines.collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    let stray = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) => error.kind() == ErrorKind::UnknownArgument && !word.starts_with('-'),
        _ => false,
    };
    let hint = if stray { ". A process is named by -p PID, a command comes behind --" } else { "" };
    // Errors about values come without a usage.
    let command = ["record", "doctor", "dump"].into_iter().find(|known| *known == command);
    let command = command.map_or_else(String::new, |command| format!("{command} "));
    Some(format!("{line}{hint}. See: spanflame {command}--help"))
}

fn parse_pid(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_no_number| "-p takes one process id; for more than one, repeat it: -p 12 -p 34".to_owned())
}

fn parse_frequency(text: &str) -> Result<NonZeroU32, String> {
    const MOST_HZ: u32 = 10_000;
    text.parse()
        .ok()
        .filter(|frequency: &NonZeroU32| frequency.get() <= MOST_HZ)
        .ok_or_else(|| format!("not a number from 1 to {MOST_HZ}"))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    /// Who asks for more has mistyped; and sums with the clock must not overflow.
    const LONGEST: Duration = Duration::from_secs(87_600 * 3600);
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("not a time; examples: 10s, 500ms, 2m, 1h".to_owned()),
    };
    number
        .parse::<f64>()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number * factor).ok())
        .filter(|duration| !duration.is_zero() && *duration <= LONGEST)
        .ok_or_else(|| "not a time above 0 and up to 87600h (10 years); examples: 10s, 500ms, 2m, 1h".to_owned())
}

fn parse_memory(text: &str) -> Result<u64, String> {
    /// A quarter of it is one chunk of rows, about what a program with its C library needs.
    const LEAST: u64 = 16 << 20;
    const MOST: u64 = 64 << 30;
    let text = text.to_ascii_uppercase();
    let digits = text.trim_end_matches("IB").trim_end_matches(['K', 'M', 'G']);
    let shift = match text.strip_prefix(digits) {
        Some("") => 0,
        Some("K" | "KIB") => 10,
        Some("M" | "MIB") => 20,
        Some("G" | "GIB") => 30,
        _ => 64,
    };
    let bytes = digits.parse().ok().and_then(|number: u64| number.checked_mul(1_u64.checked_shl(shift)?));
    let bytes = bytes.filter(|bytes| (LEAST..=MOST).contains(bytes));
    bytes.ok_or_else(|| "not an amount of memory from 16M to 64G; examples: 64M, 1G".to_owned())
}

/// Prints a line to stderr, for people. Names in it may be whatever a process chose; what a terminal
/// would obey is replaced.
pub fn complain(message: &str) {
    // Nobody is left to tell that stderr is gone.
    let _closed = writeln!(io::stderr(), "spanflame: {}", clean(message));
}

/// An error and all that caused it, in one line. Causes that its text has already are not repeated.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |error| error.source()).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Prints a result to stdout.
///
/// # Errors
/// When stdout can't be written.
pub fn answer(text: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_duration("87600h"), Ok(Duration::from_secs(87_600 * 3600)));
        for bad in ["", "0s", "s", "10 s", "-1s", "1e9s", "10x", "87601h", "99999999999999h", "99999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_of_memory() {
        let same = [("64M", 64), ("64m", 64), ("64MiB", 64), ("64mib", 64), ("16777216", 16), ("16384k", 16)];
        for (text, mebibytes) in same.into_iter().chain([("16384K", 16), ("1G", 1024), ("1g", 1024)]) {
            assert_eq!(parse_memory(text), Ok(mebibytes << 20), "{text}");
        }
        for bad in
            ["", "M", "15M", "65G", "-1M", "1.5G", "64 M", "64MM", "64MB", "99999999999999999999", "99999999999G"]
        {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    /// What is said of such words behind the program's name.
    fn refused(words: &[&str]) -> Option<String> {
        let error = Cli::try_parse_from([&["spanflame"], words].concat()).unwrap_err();
        usage_error(&error, OsStr::new(words.first().unwrap_or(&"")))
    }

    #[test]
    fn usage_errors_are_one_line() {
        let lines = [
            (["-p", "abc"].as_slice(), ["'abc'", "one process id"]),
            (&["-p", "1,2"], ["'1,2'", "repeat"]),
            (&["-p", "-5"], ["'-5'", "one process id"]),
            (&["-a", "-F", "-1"], ["'-1'", "1 to 10000"]),
            (&["-a", "-d", "-1s"], ["'-1s'", "not a time"]),
            (&["-a", "-p", "1"], ["--all", "cannot be used with"]),
            (&["--foo"], ["'--foo'", "unexpected"]),
            (&["1234"], ["'1234'", "-p PID"]),
            (&["-a", "-o"], ["--output", "required"]),
            (&["--name", "x", "--no-children"], ["required", "--pid <PID>"]),
            (&["-a", "--no-children"], ["--all", "cannot be used with"]),
            (&["-p", "1", "--wait"], ["required", "--name <REGEX>"]),
            (&["-a", "--exclude", "name=x", "--wait"], ["required", "--unit <UNIT>"]),
            (&["--name", "x", "--wait", "--", "make"], ["--wait", "cannot be used with"]),
        ];
        for (arguments, words) in lines {
            let line = refused(&[&["record"], arguments].concat()).unwrap();
            assert_eq!(line.lines().count(), 1, "{line:?}");
            for word in words.iter().chain(&["See: spanflame record --help"]) {
                assert!(line.contains(word), "{arguments:?}: {word:?} in {line:?}");
            }
            assert!(!line.contains("tip:") && !line.contains("error:"), "{line}");
        }
        for (arguments, words) in [
            (["dump"].as_slice(), ["--pid <PID>", "See: spanflame dump --help"]),
            (&["dump", "--exclude", "name=x"], ["--unit <UNIT>", "--pid <PID>"]),
            (&["doctor"], ["--name <REGEX>", "--cgroup <PATH>"]),
            (&["dump", "-p", "x"], ["one process id", "See: spanflame dump --help"]),
            (&["dump", "-p", "1", "--memory", "1"], ["16M to 64G", "See: spanflame dump --help"]),
            (&["doctor", "-p", "1", "-F", "0"], ["1 to 10000", "See: spanflame doctor --help"]),
            (&["doctor", "--foo"], ["--foo", "See: spanflame doctor --help"]),
            (&["trace"], ["'trace'", "See: spanflame --help"]),
        ] {
            let line = refused(arguments).unwrap();
            assert!(words.iter().all(|word| line.contains(word)), "{line}");
        }
        for valid in [
            ["-p", "1", "--no-children", "--name", "x"].as_slice(),
            &["--no-children", "--", "make"],
            &["--wait", "--unit", "x", "-p", "1"],
        ] {
            assert!(Cli::try_parse_from([&["spanflame", "record"], valid].concat()).is_ok(), "{valid:?}");
        }
        for command in ["dump", "doctor"] {
            for valid in [["-p", "1"].as_slice(), &["--unit", "x"], &["--name", "x", "--cgroup", "/y", "-p", "1"]] {
                assert!(Cli::try_parse_from([&["spanflame", command], valid].concat()).is_ok(), "{command} {valid:?}");
            }
        }
        for answer in [&["--help"][..], &["--version"], &["dump", "--help"], &[]] {
            assert_eq!(refused(answer), None, "{answer:?}");
        }
    }

    #[test]
    fn causes_are_told_once() {
        let refused = || io::Error::from_raw_os_error(libc::EAGAIN);
        let start = crate::worker::WorkerError::Start { program: "/proc/self/exe".into(), source: refused() };
        let text = with_causes(&crate::record::RecordError::from(crate::session::SessionError::from(start)));
        assert!(text.contains("/proc/self/exe") && text.ends_with(&refused().to_string()), "{text}");
        let told = with_causes(&crate::record::RecordError::Raw(refused()));
        assert_eq!(told.matches("os error 11").count(), 1, "{told}");
    }

    #[test]
    fn frequencies() {
        assert_eq!(parse_frequency("99"), Ok(NonZeroU32::new(99).unwrap()));
        for bad in ["0", "10001", "-1", "x", ""] {
            assert!(parse_frequency(bad).is_err(), "{bad}");
        }
    }
}
