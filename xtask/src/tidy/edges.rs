//! Which of our crates may depend on which, and where `aya` may be a dependency.

use serde_json::Value;

use super::{array, word};

/// Every crate of ours and those of ours that it may name, for any purpose (build and tests too).
/// Data moves one way; this table is the way.
const EDGES: &[(&str, &[&str])] = &[
    ("profiler-common", &[]),
    ("profiler-ebpf", &["profiler-common"]),
    ("profiler-unwind", &["profiler-common"]),
    ("profiler-context", &["profiler-common"]),
    ("profiler-model", &["profiler-common"]),
    ("profiler-export", &["profiler-model"]),
    (
        "profiler-agent",
        &["profiler-common", "profiler-unwind", "profiler-context", "profiler-model", "profiler-export"],
    ),
    ("thread-context", &[]),
    ("xtask", &[]),
    (
        "spanflame-tests",
        &[
            "profiler-common",
            "profiler-unwind",
            "profiler-context",
            "profiler-model",
            "profiler-export",
            "profiler-agent",
            "thread-context",
        ],
    ),
];

/// The crates that may depend on `aya`, `aya-ebpf` and their kin.
const AYA_USERS: [&str; 2] = ["profiler-agent", "profiler-ebpf"];

/// Checks the dependencies of our crates as `cargo metadata` lists them.
pub(super) fn check(metadata: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    // Packages without a source are local: ours.
    for package in array(metadata, "packages").filter(|package| package["source"].is_null()) {
        let name = word(package, "name");
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else {
            findings.push(format!("crate `{name}` is in no row of the table of edges (xtask/src/tidy/edges.rs)"));
            continue;
        };
        for dependency in array(package, "dependencies").map(|dependency| word(dependency, "name")) {
            if EDGES.iter().any(|(ours, _)| *ours == dependency) && !allowed.contains(&dependency) {
                findings.push(format!("crate `{name}` may not depend on `{dependency}`"));
            }
            if (dependency == "aya" || dependency.starts_with("aya-")) && !AYA_USERS.contains(&name) {
                findings.push(format!("crate `{name}` may not depend on `{dependency}`: only {AYA_USERS:?} may"));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: &[&str]) -> Value {
        let dependencies: Vec<Value> = dependencies.iter().map(|name| json!({ "name": name })).collect();
        json!({ "name": name, "source": null, "dependencies": dependencies })
    }

    #[test]
    fn edges_outside_the_table_are_found() {
        let metadata = json!({ "packages": [
            package("profiler-export", &["profiler-model", "profiler-unwind", "anyhow"]),
            package("profiler-model", &["aya"]),
            package("profiler-agent", &["aya", "profiler-export"]),
            package("new-crate", &[]),
            { "name": "inferno", "source": "registry", "dependencies": [{ "name": "xtask" }] },
        ]});
        let findings = check(&metadata);
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(findings[0].contains("`profiler-export` may not depend on `profiler-unwind`"));
        assert!(findings[1].contains("`profiler-model` may not depend on `aya`"));
        assert!(findings[2].contains("`new-crate`"));
    }
}
