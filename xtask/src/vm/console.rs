//! What the guest says on its serial console: a protocol of marked lines among kernel messages.
//! The guest's `init` writes it, see `guest.rs`.

/// Begins every marked line.
pub(super) const MARK: &str = "@@spanflame ";
/// Begins every line of a file.
pub(super) const CONTENT: &str = "@@|";

/// Everything a guest said.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Transcript {
    /// `uname -r`; nothing when `init` never ran.
    pub(crate) release: Option<String>,
    /// Seconds from the kernel's start to `init`.
    pub(crate) boot_s: f64,
    /// The cases that were begun, in order.
    pub(crate) cases: Vec<CaseRun>,
    /// Did the guest come to its end?
    pub(crate) complete: bool,
    /// The kernel's last words.
    pub(crate) panic: Option<String>,
}

/// One command in the guest.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct CaseRun {
    pub(crate) name: String,
    /// Nothing when it did not end.
    pub(crate) exit: Option<i32>,
    pub(crate) seconds: f64,
    /// stdout and stderr.
    pub(crate) output: String,
    /// The file of the case; nothing when it asked for none or it was not written.
    pub(crate) file: Option<String>,
}

/// Which text the lines of content belong to.
enum Target {
    Nothing,
    Output,
    File,
}

/// Reads a console. Anything that is no marked line is noise, but for a panic.
pub(super) fn parse(console: &str) -> Transcript {
    let mut transcript = Transcript::default();
    let mut target = Target::Nothing;
    for line in console.lines() {
        let line = line.trim_end_matches('\r');
        if let Some(content) = line.strip_prefix(CONTENT) {
            if let Some(case) = transcript.cases.last_mut() {
                append(case, &target, content);
            }
        } else if let Some(words) = line.strip_prefix(MARK) {
            target = apply(&mut transcript, words);
        } else if transcript.panic.is_none() && line.contains("Kernel panic") {
            transcript.panic = Some(line.trim().to_owned());
        }
    }
    transcript
}

fn append(case: &mut CaseRun, target: &Target, line: &str) {
    let text = match target {
        Target::Nothing => return,
        Target::Output => &mut case.output,
        Target::File => case.file.get_or_insert_default(),
    };
    text.push_str(line);
    text.push('\n');
}

fn apply(transcript: &mut Transcript, words: &str) -> Target {
    let words: Vec<&str> = words.split_whitespace().collect();
    match (words.as_slice(), transcript.cases.last_mut()) {
        (["boot", release, uptime], _) => {
            transcript.release = Some((*release).to_owned());
            transcript.boot_s = uptime.parse().unwrap_or_default();
        }
        (["case", name], _) => {
            transcript.cases.push(CaseRun { name: (*name).to_owned(), ..CaseRun::default() });
        }
        (["exit", code, begin, end], Some(case)) => {
            case.exit = code.parse().ok();
            let seconds = |word: &str| word.parse::<f64>().unwrap_or_default();
            case.seconds = seconds(end) - seconds(begin);
        }
        (["output"], Some(_)) => return Target::Output,
        (["file"], Some(case)) => {
            case.file = Some(String::new());
            return Target::File;
        }
        (["done"], _) => transcript.complete = true,
        _ => {}
    }
    Target::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_run() {
        let console = "SeaBIOS\u{1b}[2J\r\n@@spanflame boot 5.10.0-46-cloud-amd64 2.50\r\n@@spanflame case hello\r\n\
            @@|before\r\n@@spanflame exit 3 2.60 4.10\r\n@@spanflame output\r\n@@|one\r\n[  3.1] noise\r\n@@|two\r\n\
            @@spanflame file\r\n@@|main;a 1\r\n@@spanflame end\r\n@@|after\r\n@@spanflame done\r\n";
        let transcript = parse(console);
        assert_eq!(transcript.release.as_deref(), Some("5.10.0-46-cloud-amd64"));
        assert_eq!(transcript.boot_s, 2.5);
        assert!(transcript.complete && transcript.panic.is_none());
        let [case] = transcript.cases.as_slice() else { panic!("one case") };
        assert_eq!((case.name.as_str(), case.exit), ("hello", Some(3)));
        assert!((case.seconds - 1.5).abs() < 1e-9);
        assert_eq!(case.output, "one\ntwo\n");
        assert_eq!(case.file.as_deref(), Some("main;a 1\n"));
    }

    #[test]
    fn a_panic_is_kept_and_the_run_incomplete() {
        let transcript = parse(
            "@@spanflame boot 6.12 1\n@@spanflame case x\n[ 2.0] Kernel panic - not syncing: A\n[ 2.1] ---[ end Kernel panic\n",
        );
        assert_eq!(transcript.panic.as_deref(), Some("[ 2.0] Kernel panic - not syncing: A"));
        assert_eq!(transcript.cases[0].exit, None);
        assert!(!transcript.complete);
    }

    #[test]
    fn no_init_no_release() {
        assert_eq!(parse("@@spanflame output\n@@|x\n@@spanflame exit 1 2 3\n"), Transcript::default());
    }
}
