//! Processes named by what they are, not by their number: `--name`, `--unit`, `--container`, `--cgroup`, `--exclude`.
//!
//! | file | what |
//! |---|---|
//! | `selector` | one selector, as it is written |
//! | `survey` | which processes match now, and what is alike when none does |

mod selector;
mod survey;

use std::collections::HashSet;

use clap::{ArgGroup, Args};
use profiler_common::address::Pid;

pub use self::selector::{Exclusion, GroupPath, Pattern, Selector};
pub use self::survey::NoMatch;
pub(crate) use self::survey::Survey;
use crate::cgroup::Cgroup;
use crate::proc_fs;

/// Above the selectors in `--help`.
pub const HEADING: &str = "Selectors (of one kind: any of them; of several kinds: one of each)";

/// The options that processes are asked for by: their group, of which a command may require one.
pub const SELECTORS: &str = "selectors";

/// The selectors of a command line.
#[derive(Clone, Debug, Default, Args)]
#[command(group(ArgGroup::new(SELECTORS).args(["name", "unit", "container", "cgroup"]).multiple(true)))]
pub struct SelectOptions {
    /// Processes whose name, or the file name of whose program, matches anywhere: '^nginx$' is all of it. As `ps -o
    /// comm`, names have 15 bytes at most, program files' names are whole. Repeatable
    #[arg(long, value_name = "REGEX", value_parser = Selector::name, help_heading = HEADING)]
    pub name: Vec<Selector>,
    /// Processes of a systemd unit: nginx (stands for nginx.service), 'foo@*.service', app.slice. Repeatable
    #[arg(long, value_name = "UNIT", value_parser = Selector::unit, help_heading = HEADING)]
    pub unit: Vec<Selector>,
    /// Processes of the container whose id (docker, podman, containerd, CRI-O) or name (systemd-nspawn, LXC) begins
    /// so. Repeatable
    #[arg(long, value_name = "ID", value_parser = Selector::container, help_heading = HEADING)]
    pub container: Vec<Selector>,
    /// Processes in this control group or below: /system.slice/nginx.service, or its folder. Repeatable
    #[arg(long, value_name = "PATH", value_parser = Selector::cgroup, help_heading = HEADING)]
    pub cgroup: Vec<Selector>,
    /// Leave these processes out: name=REGEX, unit=UNIT, container=ID, cgroup=PATH, or pid=PID with its children.
    /// Repeatable
    #[arg(long, value_name = "KIND=VALUE", help_heading = HEADING)]
    pub exclude: Vec<Exclusion>,
}

impl SelectOptions {
    /// Those that processes are asked for by, by kind.
    const fn kinds(&self) -> [&Vec<Selector>; 4] {
        [&self.name, &self.unit, &self.container, &self.cgroup]
    }

    /// Whether processes are asked for by them.
    pub(crate) fn names_processes(&self) -> bool {
        !self.kinds().into_iter().all(Vec::is_empty)
    }

    /// The numbers of processes that are left out.
    pub(crate) fn excluded_pids(&self) -> Vec<u32> {
        let pid = |exclusion: &Exclusion| match exclusion {
            Exclusion::Like(_) => None,
            Exclusion::Process(pid) => Some(pid.0),
        };
        self.exclude.iter().filter_map(pid).collect()
    }

    /// What they say; `None` when all processes are as good.
    pub(crate) fn selection(&self) -> Option<Selection> {
        if !self.names_processes() && self.exclude.is_empty() {
            return None;
        }
        let [names, units, containers, cgroups] = self.kinds().map(|kind| kind.clone().into_boxed_slice());
        let mut selection =
            Selection { names, places: [units, containers, cgroups], excluded: Vec::new(), barred: Vec::new() };
        for exclusion in &self.exclude {
            match exclusion {
                Exclusion::Like(selector) => selection.excluded.push(selector.clone()),
                Exclusion::Process(pid) => selection.barred.push(*pid),
            }
        }
        Some(selection)
    }
}

/// Which processes are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    names: Box<[Selector]>,
    /// By unit, container and control group.
    places: [Box<[Selector]>; 3],
    excluded: Vec<Selector>,
    /// Processes that are left out, with their children.
    barred: Vec<Pid>,
}

/// What a name, or the control group, of a process says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Says {
    /// It is one that was asked for.
    wanted: bool,
    /// It is to be left out.
    excluded: bool,
}

/// What is known of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Of its name.
    pub(crate) comm: Says,
    /// Of the file name of its program; nothing while that is not known.
    pub(crate) program: Says,
    /// Of its control group; `None` while that is not known, and not needed.
    pub(crate) cgroup: Option<Says>,
    /// It is left out whatever it is called.
    pub(crate) barred: bool,
}

/// Whether a process is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is.
    Wanted,
    /// It is not.
    Unwanted,
    /// Its control group decides, and is not known.
    Unknown,
}

impl Selection {
    /// What a name of a process says. One that was written to `/proc/self/comm` by `echo` ends in a newline.
    pub(crate) fn of_name(&self, name: &str) -> Says {
        let name = name.trim_end();
        let any = |selectors: &[Selector]| selectors.iter().any(|selector| selector.holds_name(name));
        Says { wanted: self.names.is_empty() || any(&self.names), excluded: any(&self.excluded) }
    }

    /// What its control group says.
    pub(crate) fn of_cgroup(&self, cgroup: &Cgroup) -> Says {
        let any = |selectors: &[Selector]| selectors.iter().any(|selector| selector.holds_cgroup(cgroup));
        let wanted = self.places.iter().all(|kind| kind.is_empty() || any(kind));
        Says { wanted, excluded: any(&self.excluded) }
    }

    /// Whether the file names of programs are looked at.
    pub(crate) fn uses_names(&self) -> bool {
        !self.names.is_empty() || self.excluded.iter().any(Selector::is_name)
    }

    fn uses_cgroups(&self) -> bool {
        self.places.iter().any(|kind| !kind.is_empty()) || !self.excluded.iter().all(Selector::is_name)
    }

    /// Whether the control group of such a process is of interest.
    pub(crate) fn needs_cgroup(&self, facts: &Facts) -> bool {
        self.uses_cgroups() && self.may_be_wanted(facts)
    }

    /// Whether nothing but its control group may speak against it.
    fn may_be_wanted(&self, facts: &Facts) -> bool {
        let Facts { comm, program, .. } = facts;
        !facts.barred && !comm.excluded && !program.excluded && (comm.wanted || program.wanted)
    }

    /// Whether such a process is wanted.
    pub(crate) fn judge(&self, facts: &Facts) -> Verdict {
        match facts.cgroup {
            _ if !self.may_be_wanted(facts) => Verdict::Unwanted,
            _ if !self.uses_cgroups() => Verdict::Wanted,
            None => Verdict::Unknown,
            Some(says) if says.wanted && !says.excluded => Verdict::Wanted,
            Some(_) => Verdict::Unwanted,
        }
    }

    /// What is known of a process; `None` when it has ended. Its control group is only looked at when that is of
    /// interest.
    pub(crate) fn facts(&self, pid: Pid) -> Option<Facts> {
        let program = self.uses_names().then(|| proc_fs::program_name(pid)).flatten();
        let comm = proc_fs::name(pid)?;
        let mut facts = Facts {
            comm: self.of_name(&comm),
            program: program.map(|name| self.of_name(&name)).unwrap_or_default(),
            cgroup: None,
            barred: false,
        };
        if self.needs_cgroup(&facts) {
            facts.cgroup = Cgroup::of(pid).map(|cgroup| self.of_cgroup(&cgroup));
        }
        // One that has just ended has a name, but no program any more.
        proc_fs::living_thread(pid).map(|_thread| facts)
    }

    /// Whether processes are left out with all that descends from them.
    pub(crate) fn excludes_families(&self) -> bool {
        !self.barred.is_empty()
    }

    /// The processes that are left out whatever they are called: those that were named, with their descendants; and,
    /// where processes of the whole node are asked for by what they are, we and our workers.
    pub(crate) fn barred(&self, whole_node: bool) -> HashSet<Pid> {
        let family = proc_fs::with_descendants(&self.barred);
        let mut barred: HashSet<Pid> = family.unwrap_or_else(|_unlisted| self.barred.clone()).into_iter().collect();
        if whole_node && self.names_processes() {
            barred.insert(Pid(std::process::id()));
            barred.extend(proc_fs::children());
        }
        barred
    }

    /// Whether processes are asked for; else it is all but some.
    pub(crate) fn names_processes(&self) -> bool {
        self.wanted().next().is_some()
    }

    /// What was asked for, for people.
    pub(crate) fn title(&self) -> String {
        self.wanted().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The selectors of processes that are asked for.
    fn wanted(&self) -> impl Iterator<Item = &Selector> {
        self.names.iter().chain(self.places.iter().flatten())
    }

    /// The same by kind, without kinds that are not used.
    fn kinds(&self) -> impl Iterator<Item = &[Selector]> {
        std::iter::once(&self.names)
            .chain(&self.places)
            .map(AsRef::as_ref)
            .filter(|kind: &&[Selector]| !kind.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(wanted: &[Selector], excluded: &[&str]) -> Selection {
        let of = |kind: fn(&Selector) -> bool| wanted.iter().filter(|one| kind(one)).cloned().collect();
        let options = SelectOptions {
            name: of(Selector::is_name),
            unit: of(|one| matches!(one, Selector::Unit(_))),
            container: of(|one| matches!(one, Selector::Container(_))),
            cgroup: of(|one| matches!(one, Selector::Cgroup(..))),
            exclude: excluded.iter().map(|text| text.parse().unwrap()).collect(),
        };
        options.selection().unwrap()
    }

    fn judged(selection: &Selection, comm: &str, program: &str, path: Option<&str>) -> Verdict {
        let cgroup = path.map(|path| selection.of_cgroup(&Cgroup::parse(format!("0::{path}\n").as_bytes())));
        let facts = Facts { comm: selection.of_name(comm), program: selection.of_name(program), cgroup, barred: false };
        assert_eq!(selection.judge(&Facts { barred: true, ..facts }), Verdict::Unwanted);
        selection.judge(&facts)
    }

    #[test]
    fn one_kind_is_any_of_them_and_kinds_narrow_down() {
        let nginx = Selector::name("^nginx").unwrap();
        let java = Selector::name("java").unwrap();
        let web = Selector::unit("web").unwrap();
        let at_1 = Selector::unit("web@1").unwrap();
        let below = Selector::cgroup("/system.slice").unwrap();
        let names = selection(&[nginx.clone(), java.clone()], &[]);
        assert_eq!(judged(&names, "nginx", "", None), Verdict::Wanted);
        assert_eq!(judged(&names, "main", "java", None), Verdict::Wanted);
        assert_eq!(judged(&selection(&[Selector::name("^a$").unwrap()], &[]), "a\n", "", None), Verdict::Wanted);
        assert_eq!(judged(&names, "main", "postgres", None), Verdict::Unwanted);
        let all = selection(&[nginx, java, web, at_1, below], &[]);
        for (name, path, verdict) in [
            ("java", Some("/system.slice/web.service"), Verdict::Wanted),
            ("nginx", Some("/system.slice/web@1.service/sub"), Verdict::Wanted),
            ("nginx", Some("/user.slice/web.service"), Verdict::Unwanted),
            ("nginx", Some("/system.slice/web@2.service"), Verdict::Unwanted),
            ("sh", Some("/system.slice/web.service"), Verdict::Unwanted),
            ("nginx", None, Verdict::Unknown),
            ("sh", None, Verdict::Unwanted),
        ] {
            assert_eq!(judged(&all, name, "", path), verdict, "{name} {path:?}");
        }
    }

    #[test]
    fn what_is_excluded_is_not_wanted() {
        let web = Selector::unit("web").unwrap();
        let some = selection(&[web], &["name=^sh$", "cgroup=/system.slice/web.service/jobs"]);
        for (name, program, path, verdict) in [
            ("a", "a", Some("/system.slice/web.service"), Verdict::Wanted),
            ("sh", "dash", Some("/system.slice/web.service"), Verdict::Unwanted),
            ("x", "sh", Some("/system.slice/web.service"), Verdict::Unwanted),
            ("a", "a", Some("/system.slice/web.service/jobs/1"), Verdict::Unwanted),
            ("a", "a", None, Verdict::Unknown),
        ] {
            assert_eq!(judged(&some, name, program, path), verdict, "{name} {program} {path:?}");
        }
        let rest = selection(&[], &["name=stress"]);
        assert_eq!(judged(&rest, "a", "", None), Verdict::Wanted, "control groups do not matter");
        let us = Pid(std::process::id());
        assert!(some.barred(true).contains(&us), "nobody wants to see the profiler");
        assert!(!some.barred(false).contains(&us) && !rest.barred(true).contains(&us));
        let exclusion = format!("pid={us}");
        assert!(selection(&[], &[&exclusion]).barred(false).contains(&us));
    }
}
