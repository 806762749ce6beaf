//! Executables whose unwind tables do not fit into the memory that there is for them.

#![forbid(unsafe_code)]

use std::path::Path;

use spanflame_tests::system::Program;
use spanflame_tests::{Profile, from_main, lab};

/// A quarter of it are 524,288 rows: two tables of 200,000 and what else runs.
const LITTLE: [&str; 2] = ["--memory", "16M"];

const CHAIN: [&str; 3] = ["outer", "inner", "leaf"];

/// Programs one after the other, the first once more at the end: tables that are no longer used make room.
#[test]
fn one_after_the_other() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..4).map(|number| format!("bulky{number}")).collect();
    let programs: Vec<_> = names.iter().map(|name| lab.copy("bulky", folder.path(), name)).collect();
    let again = programs.iter().chain(&programs[..1]);
    let script: Vec<_> = again.map(|program| format!("{} 2500", program.display())).collect();
    let running = lab.record(&["-F", "499"]).args(LITTLE).of(Path::new("/bin/sh"), &["-c", &script.join("; ")]);
    let profile = running.profile();
    for name in &names {
        profile.check_chain(name, &from_main(&CHAIN), 0.98);
    }
    // Two for the third and fourth program, one for the first when it comes again.
    assert!(profile.figure("tables_evicted") >= 3, "{:?}", profile.quality);
    assert_eq!(profile.figure("tables_full"), 0, "{:?}", profile.quality);
}

/// Three at the same time: two have their tables and keep them, the third is cut where it needs one, and no
/// caller is wrong.
#[test]
fn more_in_use_than_fits() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let names = ["bulky0", "bulky1", "bulky2"];
    let programs = names.map(|name| Program::start(&lab.copy("bulky", folder.path(), name), &["100000"]));
    let profile = programs
        .iter()
        .fold(lab.record(&["-F", "499", "-d", "8s"]).args(LITTLE), |recording, program| recording.pid(program.pid()));
    let profile = profile.start().profile();
    assert_eq!(profile.figure("tables_full"), 1, "{:?}", profile.quality);
    let whole = |name: &&str| profile.share(name, &[&from_main(&CHAIN)]).part() > 0.98;
    assert_eq!(names.iter().filter(|name| whole(name)).count(), 2, "{:?}", profile.quality);
    for name in names {
        check_no_wrong_caller(&profile, name);
    }
}

/// Each stack is the whole chain, or has a reason why it is not.
fn check_no_wrong_caller(profile: &Profile, name: &str) {
    let all = profile.of(name);
    let samples = |whole: bool| -> u64 {
        let told = all.iter().filter(|stack| whole == stack.is(&from_main(&CHAIN)));
        told.filter(|stack| whole || stack.incomplete.as_deref() == Some("no_unwind_table")).map(|s| s.samples).sum()
    };
    let (right, cut) = (samples(true), samples(false));
    let sum: u64 = all.iter().map(|stack| stack.samples).sum();
    println!("{name}: {right} whole, {cut} without a table, of {sum}");
    assert!(sum >= 200 && right + cut >= sum - sum / 50, "{name}: {right} whole and {cut} cut, of {sum}: {all:?}");
}
