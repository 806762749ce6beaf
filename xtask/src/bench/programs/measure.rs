//! One program, recorded by spanflame and by perf: how many stacks of each are complete.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::load::{Load, Work};
use super::perf;
use crate::bench::inputs::Inputs;
use crate::bench::service::Service;
use crate::folded;
use crate::shell;

/// Samples a second on each busy CPU.
const RATE_HZ: &str = "199";
/// A client is at work after that time.
const WARM_UP: Duration = Duration::from_secs(1);

/// Stacks to their outermost frame, of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Complete {
    pub(super) complete: u64,
    pub(super) all: u64,
}

/// Stacks that were cut for one reason at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) reason: String,
    /// The function above which it is.
    pub(super) place: String,
    pub(super) samples: u64,
}

/// What came out for a program.
pub(super) struct Measured {
    pub(super) spanflame: Complete,
    /// The most frequent first.
    pub(super) cuts: Vec<Cut>,
    pub(super) perf: Complete,
}

/// How to measure.
pub(super) struct Bench {
    pub(super) inputs: Inputs,
    pub(super) spanflame: PathBuf,
    pub(super) seconds: u64,
}

impl Bench {
    /// Records a program by both, one after the other, in runs of the same length.
    pub(super) fn measure(&self, load: &Load) -> Result<Measured> {
        shell::run_silently(&mut self.inputs.script(load.prepare))?;
        match load.work {
            Work::Again(script) => {
                let script = format!("while {script}; do :; done >/dev/null 2>&1; exit 1");
                let command = ["sh", "-c", &script];
                // Tables of large files are on disk from then on, as in any recording but the first.
                self.by_spanflame(&["--"], &command)?;
                let (spanflame, cuts) = self.by_spanflame(&["--"], &command)?;
                let mut timed = self.inputs.command("timeout");
                timed.args(["--signal", "INT", "--kill-after", "60", &self.seconds.to_string(), "perf"]);
                let perf = self.by_perf(timed, &["--"], &command)?;
                Ok(Measured { spanflame, cuts, perf })
            }
            Work::Service { server, ready, client } => {
                let mut server = Service::start(&self.inputs, server)?;
                server.wait_until(&self.inputs, ready)?;
                // Ended before the server is.
                let _client = if client.is_empty() { None } else { Some(Service::start(&self.inputs, client)?) };
                sleep(WARM_UP);
                let (spanflame, cuts) = self.by_spanflame(&["-p", &server.pid().to_string()], &[])?;
                let family: Vec<_> = server.family().iter().map(ToString::to_string).collect();
                let target = ["-p", &family.join(","), "--", "sleep", &self.seconds.to_string()];
                let perf = self.by_perf(self.inputs.command("perf"), &target, &[])?;
                Ok(Measured { spanflame, cuts, perf })
            }
        }
    }

    fn by_spanflame(&self, target: &[&str], command: &[&str]) -> Result<(Complete, Vec<Cut>)> {
        let output = self.inputs.folder.join("profile.folded");
        let mut record = self.inputs.command(&self.spanflame.to_string_lossy());
        record.args(["record", "-F", RATE_HZ, "-d", &format!("{}s", self.seconds)]);
        record.arg("-o").arg(&output).args(target).args(command);
        shell::run_silently(&mut record)?;
        let text = fs::read_to_string(&output).with_context(|| format!("reading {}", output.display()))?;
        Ok(count(&text))
    }

    /// By perf's copies of stacks; the program to start is `perf`, perhaps by way of another one.
    fn by_perf(&self, mut record: Command, target: &[&str], command: &[&str]) -> Result<Complete> {
        let data = self.inputs.folder.join("perf.data");
        let _none = fs::remove_file(&data);
        record.args(["record", "-q", "-e", "cpu-clock", "-F", RATE_HZ, "--call-graph", "dwarf"]);
        record.arg("-o").arg(&data).args(target).args(command);
        // Ended by a signal, it says so by its own.
        let ended = record.status().with_context(|| format!("starting `{}`", shell::display(&record)))?;
        self.complete_of_perf(&data).with_context(|| format!("`{}` ended: {ended}", shell::display(&record)))
    }

    fn complete_of_perf(&self, data: &Path) -> Result<Complete> {
        let mut script = self.inputs.command("perf");
        script.args(["script", "--no-inline", "-F", "comm,ip,sym,dso", "-i"]).arg(data).stdout(Stdio::piped());
        let mut child = script.spawn().with_context(|| format!("starting `{}`", shell::display(&script)))?;
        let counted = perf::count(BufReader::new(child.stdout.take().context("the output of perf")?));
        let ended = child.wait().context("waiting for perf")?;
        if !ended.success() {
            bail!("`{}` failed: {ended}", shell::display(&script));
        }
        counted
    }
}

/// The complete stacks of folded ones, and where the others are cut.
fn count(text: &str) -> (Complete, Vec<Cut>) {
    let mut found = Complete::default();
    let mut cuts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for stack in folded::parse(text) {
        found.all += stack.samples;
        let mut frames = stack.frames.iter();
        let reason = frames.find_map(|frame| frame.strip_prefix("[incomplete: ")?.strip_suffix(']'));
        match reason {
            None => found.complete += stack.samples,
            Some(reason) => *cuts.entry((reason, frames.next().unwrap_or(&"?"))).or_default() += stack.samples,
        }
    }
    let cut = |((reason, place), samples): ((&str, &str), u64)| Cut {
        reason: reason.to_owned(),
        place: place.to_owned(),
        samples,
    };
    let mut cuts: Vec<_> = cuts.into_iter().map(cut).collect();
    cuts.sort_by_key(|cut| std::cmp::Reverse(cut.samples));
    (found, cuts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_have_their_places() {
        let text = "p;_start;main 5\np;[incomplete: no_frame_pointer];a;b 1\np;[incomplete: no_frame_pointer];a;c 2\n\
                    p;[incomplete: unsupported_cfi];a 4\np;[incomplete: no_table] 1\n";
        let (found, cuts) = count(text);
        assert_eq!(found, Complete { complete: 5, all: 13 });
        let cuts: Vec<_> = cuts.iter().map(|cut| (cut.reason.as_str(), cut.place.as_str(), cut.samples)).collect();
        assert_eq!(cuts, [("unsupported_cfi", "a", 4), ("no_frame_pointer", "a", 3), ("no_table", "?", 1)]);
    }
}
