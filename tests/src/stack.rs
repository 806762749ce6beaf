//! Folded stacks, and whether one is the expected chain.

/// In a chain: a frame of the C library that calls code of the program (at the start of the process
/// of a thread or of a context, and around a signal handler). Its name depends on the library's version and on
/// whether its debug file is installed.
pub const LIBC: &str = "<libc>";

/// In a chain: any number of frames.
pub const ANY: &str = "<any frames>";

/// In a chain: one frame of any name.
pub const ONE: &str = "<any frame>";

/// In a chain: a frame that goes by its address, such as a stub of a linkage table.
pub const NAMELESS: &str = "<frame without a name>";

/// In a chain: the C library's `clock_gettime`; the vDSO's may follow.
pub const CLOCK: &str = "<libc clock_gettime>";

/// In a chain: the C library's `read`.
pub const READ: &str = "<libc read>";

/// A line of a folded file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The process's name.
    pub process: String,
    /// Why callers are missing, if they are.
    pub incomplete: Option<String>,
    /// The user frames, the outermost first; inlined ones end in `_[i]`, those found by the frame
    /// pointer in `_[f]`, leaves whose caller may be missing in `_[?]`.
    pub user: Vec<String>,
    /// The kernel frames below them; they end in `_[k]`.
    pub kernel: Vec<String>,
    /// How many samples.
    pub samples: u64,
}

impl Stack {
    /// Whether a user frame has this name.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        self.user.iter().any(|frame| frame == name)
    }

    /// Whether nothing is missing and the user frames are exactly this chain, from the root on.
    #[must_use]
    pub fn is(&self, chain: &[&str]) -> bool {
        self.incomplete.is_none() && matches(&self.user, chain)
    }
}

/// The stacks of a folded file.
///
/// # Panics
/// When a line is not a stack and a number, or a user frame is below a kernel frame.
#[must_use]
pub fn parse(text: &str) -> Vec<Stack> {
    text.lines().map(|line| stack(line).unwrap_or_else(|| panic!("not a folded stack: {line:?}"))).collect()
}

fn stack(line: &str) -> Option<Stack> {
    let (frames, samples) = line.rsplit_once(' ')?;
    let mut frames = frames.split(';').map(str::to_owned).peekable();
    let process = frames.next()?;
    let reason = |frame: &String| Some(frame.strip_prefix("[incomplete: ")?.strip_suffix(']')?.to_owned());
    let incomplete = frames.peek().and_then(reason);
    if incomplete.is_some() {
        frames.next();
    }
    let (kernel, user): (Vec<_>, Vec<_>) = frames.clone().partition(|frame| frame.ends_with("_[k]"));
    let in_order = user.iter().chain(&kernel).eq(frames.collect::<Vec<_>>().iter());
    in_order.then_some(Stack { process, incomplete, user, kernel, samples: samples.parse().ok()? })
}

/// Whether frames are a chain, both from the root on. [`LIBC`] and [`READ`] stand for one frame,
/// [`ANY`] for any number.
#[must_use]
pub fn matches(frames: &[String], chain: &[&str]) -> bool {
    let Some((wanted, chain)) = chain.split_first() else { return frames.is_empty() };
    if *wanted == ANY {
        return (0..=frames.len()).any(|skipped| matches(&frames[skipped..], chain));
    }
    frames.split_first().is_some_and(|(frame, frames)| stands_for(wanted, frame) && matches(frames, chain))
}

/// Whether frames are a chain from its root on, or its beginning. Behind [`ANY`] at least one frame
/// of the chain has to be there: all frames would do otherwise.
#[must_use]
pub fn begins(frames: &[String], chain: &[impl AsRef<str>]) -> bool {
    let Some((wanted, chain)) = chain.split_first() else { return frames.is_empty() };
    let Some((frame, below)) = frames.split_first() else { return true };
    if wanted.as_ref() == ANY {
        return chain.is_empty() || (0..frames.len()).any(|skipped| begins(&frames[skipped..], chain));
    }
    stands_for(wanted.as_ref(), frame) && begins(below, chain)
}

fn stands_for(wanted: &str, frame: &str) -> bool {
    match wanted {
        ONE => true,
        NAMELESS => frame.contains("+0x"),
        CLOCK => ["clock_gettime", "__clock_gettime", "__GI___clock_gettime", "__vdso_clock_gettime"].contains(&frame),
        LIBC => ["__libc_start", "libc.so.6+0x", "__clone", "clone", "start_thread", "__restore_rt", "__start_context"]
            .iter()
            .any(|name| frame.starts_with(name)),
        READ => ["read", "__read", "__libc_read", "__GI___libc_read", "__GI___read"].contains(&frame),
        name => frame == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text = "a b;[incomplete: no_table];f(int, char);g_[i];k_[k] 12\nx 1\n";
        let stacks = parse(text);
        assert_eq!((stacks[0].process.as_str(), stacks[0].samples), ("a b", 12));
        assert_eq!(stacks[0].incomplete.as_deref(), Some("no_table"));
        assert_eq!(
            (stacks[0].user.join(";"), stacks[0].kernel.join(";")),
            ("f(int, char);g_[i]".into(), "k_[k]".into())
        );
        assert!(stacks[1].user.is_empty() && stacks[1].incomplete.is_none());
        for bad in ["no number", "p;k_[k];user 3", "p;f x1"] {
            assert!(stack(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_beginning_is_no_other_chain() {
        let begins = |frames: &str, chain: &[&str]| {
            begins(&frames.split_terminator(';').map(str::to_owned).collect::<Vec<_>>(), chain)
        };
        let chain = ["main", "a", ONE, "b"];
        for right in ["", "main", "main;a", "main;a;x", "main;a;x;b"] {
            assert!(begins(right, &chain), "{right}");
        }
        for wrong in ["a", "main;b", "main;a;x;c", "main;a;x;b;b"] {
            assert!(!begins(wrong, &chain), "{wrong}");
        }
        assert!(begins("main;x;y;b", &["main", ANY, "b"]) && !begins("a;b", &["main", ANY]));
        for right in ["main", "main;b", "main;x;b", "main;x;y;b;c"] {
            assert!(begins(right, &["main", ANY, "b", "c"]), "{right}");
        }
        for wrong in ["x", "main;x", "main;x;y", "main;x;c", "main;x;b;c;d", "main;b_[f];c_[f]"] {
            assert!(!begins(wrong, &["main", ANY, "b", "c"]), "{wrong}");
        }
        assert!(begins("main;x;y", &["main", ANY]) && !begins("x;y", &[ANY, "a", "b"]));
    }

    #[test]
    fn chains_are_exact() {
        let is = |line: &str, chain: &[&str]| parse(line)[0].is(chain);
        let chain = ["_start", LIBC, "main", "a"];
        assert!(is("p;_start;__libc_start_main_impl;main;a 1", &chain));
        assert!(is("p;_start;libc.so.6+0x27249;main;a;read_[k] 1", &chain));
        assert!(!is("p;[incomplete: no_table];_start;__libc_start_main_impl;main;a 1", &chain));
        for wrong in ["_start;main;a", "_start;__libc_start_main;main", "_start;__libc_start_main;main;a;a"] {
            assert!(!is(&format!("p;{wrong} 1"), &chain), "{wrong}");
        }
        assert!(is("p;_start;x;y;main 1", &["_start", ANY, "main"]));
        assert!(is("p;_start;main 1", &["_start", ANY, "main"]));
        assert!(!is("p;_start;x;y 1", &["_start", ANY, "main"]));
    }
}
