//! Which processes match now, and what is alike when none does.

use std::collections::BTreeMap;

use profiler_common::address::Pid;

use super::{Selection, Selector, Verdict};
use crate::cgroup::{Cgroup, ID_DIGITS};
use crate::proc_fs;

/// Names that are shown, at most.
const MOST_NEAR: usize = 5;

/// How alike names are at least (`strsim::jaro_winkler`, 0 to 1): `ngnix` and `nginx` have 0.95.
const ALIKE: f64 = 0.8;

/// How alike names are of which one is a part of the other, at least.
const PART: f64 = 0.9;

/// The processes that match.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Those that are wanted, by their numbers.
    pub(crate) pids: Vec<Pid>,
}

/// No process is meant, or not one, and why that may be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoMatch(String);

impl Survey {
    /// Those of these processes, perhaps all of the node, that are wanted now.
    ///
    /// # Errors
    /// When there are none.
    pub(crate) fn of(selection: &Selection, pids: &[Pid], whole_node: bool) -> Result<Self, NoMatch> {
        let barred = selection.barred(whole_node);
        let open: Vec<Pid> = pids.iter().copied().filter(|pid| !barred.contains(pid)).collect();
        let is_wanted =
            |pid: &Pid| selection.facts(*pid).is_some_and(|facts| selection.judge(&facts) == Verdict::Wanted);
        let mut pids: Vec<Pid> = open.iter().copied().filter(is_wanted).collect();
        pids.sort_unstable();
        if pids.is_empty() {
            let runs: Vec<Running> = open.into_iter().filter_map(Running::of).collect();
            return Err(no_match(selection, &runs));
        }
        Ok(Self { pids })
    }
}

impl Survey {
    /// The one that all others descend from.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn root(&self) -> Result<Pid, NoMatch> {
        // If there is one, it is that one of them of which any of them descends, and which descends from none.
        let top = |first: &Pid| proc_fs::ancestors(*first).filter(|pid| self.pids.contains(pid)).last();
        let root = self.pids.first().map(|first| top(first).unwrap_or(*first));
        let family = proc_fs::with_descendants(root.as_slice()).unwrap_or_default();
        if let Some(root) = root.filter(|_| self.pids.iter().all(|pid| family.contains(pid))) {
            return Ok(root);
        }
        let named = self.pids.iter().take(MOST_NEAR).map(|pid| {
            let name = proc_fs::name(*pid).unwrap_or_default();
            format!("{name} (pid {pid})")
        });
        let named = named.collect::<Vec<_>>().join(", ");
        let more = self.pids.len().saturating_sub(MOST_NEAR);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(NoMatch(format!("more than one process matches: {named}{more}. Choose one with -p")))
    }
}

/// A process that could have been meant.
struct Running {
    comm: String,
    program: Option<String>,
    cgroup: Cgroup,
}

impl Running {
    fn of(pid: Pid) -> Option<Self> {
        proc_fs::living_thread(pid)?;
        let comm = proc_fs::name(pid)?;
        Some(Self { comm, program: proc_fs::program_name(pid), cgroup: Cgroup::of(pid).unwrap_or_default() })
    }

    fn is_meant_by(&self, selector: &Selector) -> bool {
        let mut names = std::iter::once(&self.comm).chain(&self.program);
        names.any(|name| selector.holds_name(name)) || selector.holds_cgroup(&self.cgroup)
    }

    /// What a selector of this kind could have said.
    fn known_as(&self, selector: &Selector) -> Vec<String> {
        match selector {
            Selector::Name(_) => std::iter::once(&self.comm).chain(&self.program).cloned().collect(),
            Selector::Unit(_) => self.cgroup.unit().map(str::to_owned).into_iter().collect(),
            Selector::Container(_) => self.cgroup.container_id().map(|id| shortened(&id)).into_iter().collect(),
            Selector::Cgroup(..) => self.cgroup.path().map(str::to_owned).into_iter().collect(),
        }
    }
}

/// As runtimes show ids.
fn shortened(id: &str) -> String {
    const SHOWN_DIGITS: usize = 12;
    id.get(..SHOWN_DIGITS).filter(|_short| id.len() == ID_DIGITS).unwrap_or(id).to_owned()
}

fn no_match(selection: &Selection, runs: &[Running]) -> NoMatch {
    let meant = |kind: &[Selector]| {
        runs.iter().filter(|process| kind.iter().any(|selector| process.is_meant_by(selector))).count()
    };
    let kinds: Vec<(&[Selector], usize)> = selection.kinds().map(|kind| (kind, meant(kind))).collect();
    let told = |kind: &[Selector]| kind.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    if let Some((kind, _none)) = kinds.iter().find(|(_kind, count)| *count == 0) {
        return NoMatch(format!("no process matches {}{}. {}", told(kind), near(kind, runs), hint(kind)));
    }
    let each: Vec<String> = kinds.iter().map(|(kind, count)| format!("{} ({count})", told(kind))).collect();
    NoMatch(match each.as_slice() {
        [] => "no process is left: all of them are excluded. Leave an --exclude out".to_owned(),
        [one] => format!("no process is left: those that match {one} are excluded, or ours. Leave an --exclude out"),
        _ => format!(
            "no process is left: there are some that match each of {}, but none that matches all and is not excluded. \
             Leave one out",
            each.join(", ")
        ),
    })
}

/// Where to look, in a sentence.
fn hint(kind: &[Selector]) -> &'static str {
    match kind.first() {
        Some(Selector::Unit(_)) => "Look: systemctl status",
        Some(Selector::Container(_)) => "Look for the id, not the name: docker ps, podman ps or crictl ps",
        Some(Selector::Cgroup(..)) => "Look: systemd-cgls, or /proc/PID/cgroup",
        Some(Selector::Name(_)) | None => "Look: ps -eo comm,exe",
    }
}

/// What processes are called that is like what was asked for, the most alike first.
fn near(kind: &[Selector], runs: &[Running]) -> String {
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let Some(first) = kind.first() else { return String::new() };
    for process in runs {
        let mut names = process.known_as(first);
        names.dedup();
        for name in names {
            *known.entry(name).or_default() += 1;
        }
    }
    // Ids are like nothing: there are few of them.
    let least = if matches!(first, Selector::Container(_)) { 0.0 } else { ALIKE };
    let likeness = |name: &str| kind.iter().map(|wanted| likeness(wanted.literal(), name)).fold(0.0, f64::max);
    let mut near: Vec<(f64, &String, &usize)> =
        known.iter().map(|(name, count)| (likeness(name), name, count)).filter(|near| near.0 >= least).collect();
    near.sort_by(|left, right| right.0.total_cmp(&left.0).then(right.2.cmp(left.2)));
    let told: Vec<String> = near
        .iter()
        .take(MOST_NEAR)
        .map(|(_likeness, name, count)| if **count == 1 { (*name).clone() } else { format!("{name} ({count})") })
        .collect();
    if told.is_empty() { String::new() } else { format!("; there are: {}", told.join(", ")) }
}

/// From 0 to 1; what has the other in it is rather alike.
fn likeness(wanted: &str, name: &str) -> f64 {
    let letters = |text: &str| text.to_lowercase().replace(['^', '$', '*', '\\'], "").replace('_', "-");
    let (wanted, name) = (letters(wanted), letters(name));
    if wanted.is_empty() || name.is_empty() {
        return 0.0;
    }
    let parts = [(&wanted, &name), (&name, &wanted)];
    let is_part = parts.into_iter().any(|(part, whole)| part.chars().count() > 1 && whole.contains(part.as_str()));
    strsim::jaro_winkler(&wanted, &name).max(if is_part { PART } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::super::SelectOptions;
    use super::*;

    fn running(comm: &str, program: &str, path: &str) -> Running {
        let cgroup = Cgroup::parse(format!("0::{path}\n").as_bytes());
        Running { comm: comm.to_owned(), program: Some(program.to_owned()), cgroup }
    }

    fn said(options: SelectOptions) -> String {
        let id = "0123456789abcdef".repeat(4);
        let runs = [
            running("nginx", "nginx", "/system.slice/nginx.service"),
            running("nginx", "nginx", "/system.slice/nginx.service"),
            running("python3", "python3.11", &format!("/docker/{id}")),
            running("prometheus-node", "prometheus-node-exporter", "/system.slice/node.service"),
        ];
        no_match(&options.selection().unwrap(), &runs).to_string()
    }

    /// Numbers are used again: a parent may have a higher one than its children.
    #[test]
    fn the_root_is_who_all_others_descend_from() {
        let us = Pid(std::process::id());
        let mut children: Vec<_> =
            (0..20).map(|_child| std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap()).collect();
        let pids: Vec<Pid> = children.iter().map(|child| Pid(child.id())).collect();
        let root = |pids: &[Pid]| Survey { pids: pids.to_vec() }.root();
        let found = [root(&[&pids[..], &[us]].concat()), root(&[&[us], &pids[..]].concat()), root(&pids[..1])];
        let none = root(&pids).unwrap_err();
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found, [Ok(us), Ok(us), Ok(pids[0])]);
        assert!(none.to_string().contains("and 15 more. Choose one with -p"), "{none}");
    }

    fn name(text: &str) -> SelectOptions {
        SelectOptions { name: vec![Selector::name(text).unwrap()], ..SelectOptions::default() }
    }

    #[test]
    fn what_is_near_is_listed() {
        for (text, near) in [
            ("ngnix", "; there are: nginx (2). Look"),
            ("^Nginx$", "; there are: nginx (2). Look"),
            ("node_exporter$", "; there are: prometheus-node-exporter. Look"),
            ("gunicorn", ". Look"),
            ("prometheus-node-exporte$", "; there are: prometheus-node-exporter, prometheus-node. Look"),
        ] {
            assert!(said(name(text)).contains(&format!("matches name {text}{near}")), "{}", said(name(text)));
        }
        let unit = SelectOptions { unit: vec![Selector::unit("ngin").unwrap()], ..SelectOptions::default() };
        assert!(said(unit).contains("unit ngin.service; there are: nginx.service (2). Look"), "");
        let container = SelectOptions { container: vec![Selector::container("web").unwrap()], ..name("python") };
        assert!(said(container).contains("container web; there are: 0123456789ab. Look for the id"));
        let cgroup = SelectOptions { cgroup: vec![Selector::cgroup("nginx.service").unwrap()], ..name("python") };
        assert!(said(cgroup).contains("; there are: /system.slice/nginx.service (2)"));
    }

    #[test]
    fn kinds_that_have_nothing_in_common_are_told() {
        let both = SelectOptions { unit: vec![Selector::unit("node").unwrap()], ..name("nginx") };
        assert!(said(both).contains("match each of name nginx (2), unit node.service (1), but none"), "");
        let excluded = SelectOptions { exclude: vec!["name=nginx".parse().unwrap()], ..name("nginx") };
        assert!(said(excluded).contains("those that match name nginx (2) are excluded"));
        let all = SelectOptions { exclude: vec!["name=.".parse().unwrap()], ..SelectOptions::default() };
        assert!(said(all).contains("all of them are excluded"));
    }
}
