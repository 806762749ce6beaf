//! `--source-map FROM=TO`: where the sources are that debug information knows by the paths of the machine
//! that compiled them.

use std::borrow::Cow;
use std::str::FromStr;

/// One rule: paths at or below a folder are as far below another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    from: String,
    to: String,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "not FROM=TO; example: --source-map /build/nginx-1.22=/home/me/nginx";
        let (from, to) = text.split_once('=').filter(|(from, _to)| !from.is_empty()).ok_or(usage)?;
        // Without the slash at its end the root folder is empty, and what stands before all paths.
        let folder = |path: &str| path.trim_end_matches('/').to_owned();
        Ok(Self { from: folder(from), to: folder(to) })
    }
}

/// All rules of a recording.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceMap {
    /// The longest `from` first.
    rules: Vec<Rule>,
}

impl SourceMap {
    pub(crate) fn new(rules: &[Rule]) -> Self {
        let mut rules = rules.to_vec();
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.from.len()));
        Self { rules }
    }

    /// The name of a source file by the first rule whose folder it is in; as it was if there is none.
    pub(crate) fn apply<'a>(&self, file: &'a str) -> Cow<'a, str> {
        let rest = |rule: &Rule| file.strip_prefix(&rule.from).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let found = self.rules.iter().find_map(|rule| Some((rule, rest(rule)?)));
        match found {
            // An empty TO makes paths relative.
            Some((rule, rest)) if rule.to.is_empty() => Cow::Borrowed(rest.trim_start_matches('/')),
            Some((rule, rest)) => Cow::Owned(format!("{}{rest}", rule.to)),
            None => Cow::Borrowed(file),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(rules: &[&str]) -> SourceMap {
        SourceMap::new(&rules.iter().map(|rule| rule.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn the_longest_folder_counts_and_only_whole_folders_do() {
        let map = map(&["/build=/src", "/build/nginx/=/home/me/nginx/", "./lib=/lib-src", "/rustc/abc="]);
        for (file, expected) in [
            ("/build/a.c", "/src/a.c"),
            ("/build/nginx/core/a.c", "/home/me/nginx/core/a.c"),
            ("/build/nginx", "/home/me/nginx"),
            ("/build/nginx-old/a.c", "/src/nginx-old/a.c"),
            ("/builder/a.c", "/builder/a.c"),
            ("./lib/a.c", "/lib-src/a.c"),
            ("lib/a.c", "lib/a.c"),
            ("/rustc/abc/library/core/src/lib.rs", "library/core/src/lib.rs"),
            ("/x/build/a.c", "/x/build/a.c"),
            ("", ""),
        ] {
            assert_eq!(map.apply(file), expected, "{file}");
        }
    }

    #[test]
    fn the_root_folder_is_a_folder_too() {
        assert_eq!(map(&["/=/sysroot"]).apply("/usr/a.c"), "/sysroot/usr/a.c");
        assert_eq!(map(&["/=/sysroot"]).apply("a.c"), "a.c");
        assert_eq!(map(&["/a=/", "/b=/c"]).apply("/a/x.c"), "x.c");
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in ["", "/build", "=/src"] {
            assert!(text.parse::<Rule>().is_err_and(|error| error.contains("FROM=TO")), "{text}");
        }
    }

    proptest! {
        #[test]
        fn files_outside_stay_what_they_are(file in "[a-c/]{0,12}", from in "[a-c/]{1,6}") {
            let rule = format!("{from}=to");
            let map = map(&[&rule]);
            let folder = from.trim_end_matches('/');
            let inside = file == folder || file.starts_with(&format!("{folder}/"));
            prop_assert_eq!(map.apply(&file) != file, inside);
        }
    }
}
