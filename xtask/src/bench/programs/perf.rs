//! Which stacks of `perf script` are complete.
//!
//! perf does not say whether it came to the end of a stack. So one counts as complete when its outermost frame is
//! a function in which stacks of processes and threads begin ([`is_beginning`]), or when the frame below is the C
//! library's caller of `main`: the start code of a stripped program has no name.

use std::io::BufRead;

use anyhow::{Context as _, Result};

use super::measure::Complete;

/// Functions in which stacks begin: of programs, of threads, in the kernel and in the loader.
const BEGINNINGS: [&str; 7] = ["_start", "_dl_start_user", "start_thread", "clone", "clone3", "__clone", "__clone3"];
/// The same, with any ending: versions, parts of functions, Go's kinds of calls.
const BEGINNINGS_OF_NAMES: [&str; 5] =
    ["__libc_start", "__GI___clone", "ret_from_fork", "runtime.goexit", "runtime.mstart"];
/// It calls `main`, and is called by the start code.
const CALLER_OF_MAIN: &str = "__libc_start";

fn is_beginning(function: &str) -> bool {
    BEGINNINGS.contains(&function) || BEGINNINGS_OF_NAMES.iter().any(|name| function.starts_with(name))
}

/// The frames of a sample, as far as they matter.
#[derive(Default)]
struct Sample {
    outermost: String,
    below: String,
}

impl Sample {
    fn is_complete(&self) -> bool {
        is_beginning(&self.outermost) || self.below.starts_with(CALLER_OF_MAIN)
    }
}

/// Counts the samples of `perf script -F comm,ip,sym,dso`: a line with the command, one for each frame from the
/// leaf on, an empty one.
pub(super) fn count(mut text: impl BufRead) -> Result<Complete> {
    let mut found = Complete::default();
    let mut sample: Option<Sample> = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        let end = text.read_until(b'\n', &mut line).context("reading what perf says")? == 0;
        let line = String::from_utf8_lossy(&line);
        if line.trim().is_empty() {
            if let Some(sample) = sample.take() {
                found.all += 1;
                found.complete += u64::from(sample.is_complete());
            }
            if end {
                return Ok(found);
            }
        } else if line.starts_with([' ', '\t']) {
            if let (Some(sample), Some(function)) = (&mut sample, line.split_whitespace().nth(1)) {
                let function = function.split("+0x").next().unwrap_or(function).to_owned();
                sample.below = std::mem::replace(&mut sample.outermost, function);
            }
        } else {
            sample = Some(Sample::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: &str = "\t    7f12 write+0x10 (/usr/lib/libc.so.6)\n";

    #[test]
    fn stacks_are_complete_where_they_begin() {
        let complete = |frames: &str| {
            let text = format!("cc1 \n{LEAF}{frames}\n");
            let found = count(text.as_bytes()).unwrap();
            assert_eq!(found.all, 1);
            found.complete == 1
        };
        assert!(complete("\t 1 main (/bin/x)\n\t 2 __libc_start_call_main+0x7a (libc)\n\t 3 _start (/bin/x)\n"));
        assert!(complete("\t 2 __libc_start_main@@GLIBC_2.34 (libc)\n\t 3 [unknown] (/bin/x)\n"));
        assert!(complete("\t 2 start_thread (libc)\n\t 3 __clone3 (inlined)\n"));
        assert!(complete("\t 2 main.main (x)\n\t 3 runtime.goexit.abi0 (x)\n"));
        assert!(!complete("\t 1 main (/bin/x)\n"));
        assert!(!complete("\t 1 f (/bin/x)\n\t 3 [unknown] (/bin/x)\n"));
        assert!(!complete(""));
    }

    #[test]
    fn every_sample_counts() {
        let text = format!("a b \n{LEAF}\t 1 _start (x)\n\nb\n\nc \n{LEAF}");
        assert_eq!(count(text.as_bytes()).unwrap(), Complete { complete: 1, all: 3 });
        assert_eq!(count(&b""[..]).unwrap(), Complete::default());
    }
}
