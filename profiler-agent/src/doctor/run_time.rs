//! Which run time makes the code of a process.

/// A program that makes code, or that runs other people's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunTime {
    /// Node.js.
    Node,
    /// A Java virtual machine (HotSpot).
    Jvm,
    /// CPython 3.
    CPython {
        /// `3.minor`.
        minor: u32,
    },
    /// .NET.
    DotNet,
    /// Erlang and Elixir.
    Beam,
    /// Ruby.
    Ruby,
    /// PostgreSQL with its just-in-time compiler loaded.
    PostgresJit,
}

impl RunTime {
    /// The run time of a process, by the files that it has mapped and by its command line.
    pub(super) fn of<'a>(paths: impl Iterator<Item = &'a str>, command: &[String]) -> Option<Self> {
        let mut names: Vec<&str> = paths.filter_map(|path| path.rsplit('/').next()).collect();
        // Links and wrappers have other names than what they run.
        names.extend(command.first().and_then(|word| word.rsplit('/').next()));
        names.iter().find_map(|name| Self::by_file(name))
    }

    /// What a file of that name belongs to.
    fn by_file(name: &str) -> Option<Self> {
        let is_library = |start: &str| name.strip_prefix(start).is_some_and(|rest| rest.starts_with(".so"));
        Some(match name {
            "node" | "nodejs" => Self::Node,
            _ if is_library("libnode") => Self::Node,
            "libjvm.so" => Self::Jvm,
            "libcoreclr.so" => Self::DotNet,
            "beam.smp" => Self::Beam,
            "llvmjit.so" => Self::PostgresJit,
            "ruby" => Self::Ruby,
            _ if name.starts_with("libruby") && name.contains(".so") => Self::Ruby,
            _ => Self::CPython { minor: cpython_minor(name)? },
        })
    }
}

/// 11 of `python3.11`, `libpython3.11.so.1.0`, `python3.11d`.
fn cpython_minor(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("lib").unwrap_or(name).strip_prefix("python3.")?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = rest.split_at(digits);
    let is_program = ["", "d", "t", "-dbg"].contains(&rest) || rest.trim_start_matches(['d', 't']).starts_with(".so");
    number.parse().ok().filter(|_| is_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_times_are_known_by_their_files() {
        let of = |path: &str| RunTime::of([path].into_iter(), &[]);
        for (path, expected) in [
            ("/usr/bin/node", Some(RunTime::Node)),
            ("/usr/lib/x86_64-linux-gnu/libnode.so.108", Some(RunTime::Node)),
            ("/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so", Some(RunTime::Jvm)),
            ("/usr/bin/python3.11", Some(RunTime::CPython { minor: 11 })),
            ("/usr/lib/x86_64-linux-gnu/libpython3.12.so.1.0", Some(RunTime::CPython { minor: 12 })),
            ("/opt/libpython3.13t.so.1.0", Some(RunTime::CPython { minor: 13 })),
            ("/usr/lib/libruby-3.1.so.3.1", Some(RunTime::Ruby)),
            ("/usr/lib/erlang/erts-13.1.5/bin/beam.smp", Some(RunTime::Beam)),
            ("/usr/lib/postgresql/15/lib/llvmjit.so", Some(RunTime::PostgresJit)),
            ("/usr/lib/python3.11/lib-dynload/_json.so", None),
            ("/usr/bin/python3.11-config", None),
            ("/usr/sbin/nginx", None),
            ("", None),
        ] {
            assert_eq!(of(path), expected, "{path}");
        }
        let command = ["/usr/local/bin/python3.12".to_owned()];
        assert_eq!(RunTime::of(std::iter::empty(), &command), Some(RunTime::CPython { minor: 12 }));
    }
}
