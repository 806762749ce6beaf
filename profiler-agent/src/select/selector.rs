//! One selector, as it is written on the command line.

use std::fmt;
use std::str::FromStr;

use profiler_common::address::Pid;
use regex_lite::{Regex, RegexBuilder};

use crate::cgroup::{Cgroup, CgroupPath, SLICE_SUFFIX, UNIT_SUFFIXES};

/// Memory that a pattern may take once it is compiled. What is typed by hand takes some KiB.
const MOST_PATTERN_BYTES: usize = 256 << 10;

/// The ends of names of other units than those that have processes (systemd.unit(5)).
const OTHER_UNIT_SUFFIXES: [&str; 6] = [".device", ".automount", ".target", ".path", ".timer", SLICE_SUFFIX];

/// What a process is asked for by.
#[derive(Clone, Debug)]
pub enum Selector {
    /// Its name, or that of its program.
    Name(Pattern),
    /// Its systemd unit.
    Unit(Pattern),
    /// The first digits of its container's id, or the name of that.
    Container(String),
    /// Its control group, as it was written.
    Cgroup(String, GroupPath),
}

/// A pattern, as it was written.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    compiled: Regex,
}

/// A control group, and all below it.
#[derive(Clone, Debug)]
pub struct GroupPath(CgroupPath);

/// What a process is left out by.
#[derive(Clone, Debug)]
pub enum Exclusion {
    /// What it is.
    Like(Selector),
    /// Its number, or that of one that it descends from.
    Process(Pid),
}

impl Selector {
    /// A regular expression.
    ///
    /// # Errors
    /// When it is none, in a sentence.
    pub fn name(text: &str) -> Result<Self, String> {
        compiled(text, text).map(Self::Name)
    }

    /// The name of a unit, with `*` and `?` as in a shell. A service may be named without `.service`.
    ///
    /// # Errors
    /// When it is no name of a unit, in a sentence.
    pub fn unit(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('/') {
            return Err("not the name of a unit; examples: nginx.service, 'worker@*.service'".to_owned());
        }
        let has_suffix = UNIT_SUFFIXES.iter().chain(&OTHER_UNIT_SUFFIXES).any(|suffix| text.ends_with(suffix));
        let name = if has_suffix { text.to_owned() } else { format!("{text}.service") };
        let expression = regex_lite::escape(&name).replace("\\*", ".*").replace("\\?", ".");
        compiled(&name, &format!("^{expression}$")).map(Self::Unit)
    }

    /// The first digits of a container's id, also as Kubernetes has it (`containerd://ID`).
    ///
    /// # Errors
    /// When it can be none, in a sentence.
    pub fn container(text: &str) -> Result<Self, String> {
        let id = text.split_once("://").map_or(text, |(_runtime, id)| id);
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
        if id.is_empty() || !id.chars().all(is_plain) {
            return Err("not the id of a container: docker ps, podman ps and crictl ps have it".to_owned());
        }
        Ok(Self::Container(id.to_owned()))
    }

    /// The path of a control group.
    ///
    /// # Errors
    /// When it is empty, in a sentence.
    pub fn cgroup(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("not a path of a control group; example: /system.slice/nginx.service".to_owned());
        }
        Ok(Self::Cgroup(text.to_owned(), GroupPath(CgroupPath::new(text))))
    }

    /// Whether it goes by names.
    pub(super) fn is_name(&self) -> bool {
        matches!(self, Self::Name(_))
    }

    /// Whether a process of this name is meant.
    pub(super) fn holds_name(&self, name: &str) -> bool {
        match self {
            Self::Name(pattern) => pattern.compiled.is_match(name),
            Self::Unit(_) | Self::Container(_) | Self::Cgroup(..) => false,
        }
    }

    /// Whether a process in this control group is meant.
    pub(super) fn holds_cgroup(&self, cgroup: &Cgroup) -> bool {
        match self {
            Self::Name(_) => false,
            Self::Unit(pattern) => cgroup.has_unit(|unit| pattern.compiled.is_match(unit)),
            Self::Container(prefix) => cgroup.has_container(|id| id.starts_with(prefix.as_str())),
            Self::Cgroup(_text, group) => cgroup.is_in(&group.0),
        }
    }

    /// What is to be like what it names.
    pub(super) fn literal(&self) -> &str {
        match self {
            Self::Name(pattern) | Self::Unit(pattern) => &pattern.text,
            Self::Container(prefix) => prefix,
            Self::Cgroup(_text, group) => group.0.path(),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(pattern) => write!(formatter, "name {}", pattern.text),
            Self::Unit(pattern) => write!(formatter, "unit {}", pattern.text),
            Self::Container(prefix) => write!(formatter, "container {prefix}"),
            Self::Cgroup(text, _group) => write!(formatter, "cgroup {text}"),
        }
    }
}

impl FromStr for Exclusion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, value) = text.split_once('=').unwrap_or((text, ""));
        match kind {
            "name" => Selector::name(value).map(Self::Like),
            "unit" => Selector::unit(value).map(Self::Like),
            "container" => Selector::container(value).map(Self::Like),
            "cgroup" => Selector::cgroup(value).map(Self::Like),
            "pid" => {
                value.parse().map(|pid| Self::Process(Pid(pid))).map_err(|_no_number| "not a process id".to_owned())
            }
            _ => Err("not one of name=REGEX, unit=UNIT, container=ID, cgroup=PATH, pid=PID".to_owned()),
        }
    }
}

fn compiled(text: &str, expression: &str) -> Result<Pattern, String> {
    if text.is_empty() {
        return Err("it is empty, and would match everything".to_owned());
    }
    let compiled = RegexBuilder::new(expression).size_limit(MOST_PATTERN_BYTES).build();
    let compiled = compiled.map_err(|error| format!("no regular expression: {error}"))?;
    Ok(Pattern { text: text.to_owned(), compiled })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_unit(selector: &str, unit: &str) -> bool {
        Selector::unit(selector).unwrap().holds_cgroup(&Cgroup::parse(format!("0::/a.slice/{unit}/sub\n").as_bytes()))
    }

    #[test]
    fn units_are_named_as_for_systemctl() {
        for (selector, unit, holds) in [
            ("nginx", "nginx.service", true),
            ("nginx.service", "nginx.service", true),
            ("nginx", "nginx.socket", false),
            ("nginx", "nginx2.service", false),
            ("nginx.service", "nginxxservice", false),
            ("foo@*", "foo@1.service", true),
            ("foo@?.service", "foo@12.service", false),
            ("foo@", "foo@1.service", false),
            ("foo@1.5", "foo@1.5.service", true),
            ("a.slice", "x.service", true),
            ("session-3.scope", "session-3.scope", true),
            (r"dev\x2dsda.swap", r"dev\x2dsda.swap", true),
        ] {
            assert_eq!(has_unit(selector, unit), holds, "{selector} {unit}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in ["", "(", "a{1000}{1000}{1000}", "\\"] {
            assert!(Selector::name(bad).is_err(), "{bad}");
        }
        assert!(Selector::unit("/system.slice/a").is_err() && Selector::unit("").is_err());
        assert!(Selector::container("").is_err() && Selector::container("a/b").is_err());
        assert!(Selector::cgroup("").is_err());
        for bad in ["", "name", "name=", "pid=x", "pid=", "comm=x", "=x", "unit="] {
            assert!(bad.parse::<Exclusion>().is_err(), "{bad}");
        }
        for good in ["name=a=b", "unit=a", "container=0a", "cgroup=/", "pid=7"] {
            assert!(good.parse::<Exclusion>().is_ok(), "{good}");
        }
    }

    #[test]
    fn containers_are_named_by_the_start_of_the_id() {
        let id = "0123456789abcdef".repeat(4);
        let cgroup = Cgroup::parse(format!("0::/system.slice/docker-{id}.scope\n").as_bytes());
        for (text, holds) in [
            ("01", true),
            ("012345678", true),
            (id.as_str(), true),
            ("12", false),
            (&format!("containerd://{id}"), true),
        ] {
            assert_eq!(Selector::container(text).unwrap().holds_cgroup(&cgroup), holds, "{text}");
        }
    }
}
