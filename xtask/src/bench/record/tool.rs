//! The profilers, and how each comes to a flame graph of the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::bench::inputs::Inputs;

const RATE_HZ: &str = "99";
/// Where standard error of a recording goes.
const SAID: &str = "said.txt";

/// A profiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Spanflame,
    /// perf by frame pointers.
    PerfFp,
    /// perf by copies of stacks.
    PerfDwarf,
}

/// In the order of a round.
pub(super) const TOOLS: [Tool; 3] = [Tool::Spanflame, Tool::PerfFp, Tool::PerfDwarf];

impl Tool {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Spanflame => "spanflame",
            Self::PerfFp => "perf -g",
            Self::PerfDwarf => "perf dwarf",
        }
    }

    /// The command that records the node until SIGINT.
    pub(super) fn record(self, spanflame: &Path) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Spanflame => &["record", "-a", "-F", RATE_HZ, "-o", "graph.svg"],
            Self::PerfFp => &["record", "-a", "-F", RATE_HZ, "-e", "cpu-clock", "-g", "-o", "perf.data"],
            Self::PerfDwarf => {
                &["record", "-a", "-F", RATE_HZ, "-e", "cpu-clock", "--call-graph", "dwarf", "-o", "perf.data"]
            }
        };
        let program = if self == Self::Spanflame { spanflame.display().to_string() } else { "perf".to_owned() };
        [program].into_iter().chain(words.iter().map(|&word| word.to_owned())).collect()
    }

    /// What makes the graph of the recording, where the recording is not the graph.
    pub(super) fn graph(self) -> Option<&'static str> {
        match self {
            Self::Spanflame => None,
            Self::PerfFp | Self::PerfDwarf => Some(concat!(
                "perf script -i perf.data | \"$TOOLS\"/inferno-collapse-perf |",
                " \"$TOOLS\"/inferno-flamegraph > graph.svg"
            )),
        }
    }

    /// The file for what it says while it records.
    pub(super) fn said(inputs: &Inputs) -> PathBuf {
        inputs.folder.join(SAID)
    }

    /// The samples of the recording, as it says.
    pub(super) fn samples(self, inputs: &Inputs) -> Result<u64> {
        let path = Self::said(inputs);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        self.samples_said(&text)
            .with_context(|| format!("{} does not say how many samples it has: {text}", self.name()))
    }

    fn samples_said(self, text: &str) -> Option<u64> {
        match self {
            Self::Spanflame => text.lines().find_map(|line| {
                let (number, rest) = line.strip_prefix("spanflame: ")?.split_once(' ')?;
                if rest.starts_with("samples in ") { number.parse().ok() } else { None }
            }),
            Self::PerfFp | Self::PerfDwarf => {
                text.lines().rev().find_map(|line| line.rsplit_once('(')?.1.split_once(" samples)")?.0.parse().ok())
            }
        }
    }
}

/// A command in a control group of its own.
pub(super) fn in_group(inputs: &Inputs, group: &Path, words: &[String]) -> Command {
    let mut command = inputs.command("sh");
    command.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(group).args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_what_the_tools_say() {
        let text = "spanflame: recording\nspanflame: 1790 samples in 10.0 s, 96.3% of the stacks complete\n";
        assert_eq!(Tool::Spanflame.samples_said(text), Some(1790));
        let text = "[ perf record: Woken up 8 times to write data ]\n\
                    [ perf record: Captured and wrote 2.031 MB perf.data (253 samples) ]\n";
        assert_eq!(Tool::PerfDwarf.samples_said(text), Some(253));
        assert_eq!(Tool::PerfFp.samples_said("nothing"), None);
    }
}
