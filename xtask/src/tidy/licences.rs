//! The licences of all dependencies, ours and theirs.

use serde_json::Value;

use super::{array, word};

/// Licences that any dependency may have.
const ALLOWED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "bzip2-1.0.6",
];

/// Licences that one crate may have beside these, and why.
const EXCEPTIONS: [(&str, &str); 2] = [
    // File-level copyleft; we do not change its files.
    ("inferno", "CDDL-1.0"),
    // Our kernel programs: the kernel lets only GPL-compatible ones call its tracing helpers; the
    // other branch of the OR is allowed above.
    ("profiler-ebpf", "GPL-2.0"),
];

/// Checks every package that `cargo metadata` lists.
pub(super) fn check(metadata: &Value) -> Vec<String> {
    let finding = |package: &Value| {
        let (name, licence) = (word(package, "name"), word(package, "license"));
        let allowed = |id: &str| ALLOWED.contains(&id) || EXCEPTIONS.contains(&(name, id));
        (!permits(licence, &allowed)).then(|| format!("crate `{name}`: licence `{licence}` is not allowed"))
    };
    array(metadata, "packages").filter_map(finding).collect()
}

/// Does a licence expression (SPDX 2.3, annex D; `/` is the old OR) hold when these licences are
/// allowed? Not one that cannot be read.
fn permits(expression: &str, allowed: &impl Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) == Some(true) && rest.is_empty()
}

fn any_of(words: &mut &[&str], allowed: &impl Fn(&str) -> bool) -> Option<bool> {
    let mut holds = all_of(words, allowed)?;
    while let Some(("OR", rest)) = words.split_first().map(|(first, rest)| (*first, rest)) {
        *words = rest;
        holds |= all_of(words, allowed)?;
    }
    Some(holds)
}

fn all_of(words: &mut &[&str], allowed: &impl Fn(&str) -> bool) -> Option<bool> {
    let mut holds = one(words, allowed)?;
    while let Some(("AND", rest)) = words.split_first().map(|(first, rest)| (*first, rest)) {
        *words = rest;
        holds &= one(words, allowed)?;
    }
    Some(holds)
}

fn one(words: &mut &[&str], allowed: &impl Fn(&str) -> bool) -> Option<bool> {
    match **words {
        ["(", ref rest @ ..] => {
            *words = rest;
            let holds = any_of(words, allowed)?;
            let (close, rest) = words.split_first()?;
            *words = rest;
            (*close == ")").then_some(holds)
        }
        [id, "WITH", exception, ref rest @ ..] => {
            *words = rest;
            Some(allowed(&format!("{id} WITH {exception}")))
        }
        [id, ref rest @ ..] => {
            *words = rest;
            Some(allowed(id))
        }
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expressions() {
        let permits = |expression| permits(expression, &|id| ALLOWED.contains(&id));
        for good in [
            "MIT",
            "MIT/GPL-3.0",
            "GPL-2.0 OR MIT",
            "(MIT OR X) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR X",
        ] {
            assert!(permits(good), "{good}");
        }
        for bad in
            ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT", "MIT)", "MIT MIT", "MIT OR", "MIT WITH x", "MIT AND (X OR Y)"]
        {
            assert!(!permits(bad), "{bad}");
        }
    }

    #[test]
    fn exceptions_are_for_one_crate() {
        let package = |name| json!({ "packages": [{ "name": name, "license": "CDDL-1.0" }] });
        assert_eq!(check(&package("inferno")), Vec::<String>::new());
        assert_eq!(check(&package("other")).len(), 1);
    }
}
