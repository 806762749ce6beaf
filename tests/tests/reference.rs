//! What the kernel program makes of real programs' stacks, beside another library's reading of the same
//! registers and the same stack.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]
#![cfg(target_arch = "x86_64")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use profiler_common::record::{Sample, StopReason};
use spanflame_tests::reference::{End, Modules, frames, unwind};
use spanflame_tests::system::Program;
use spanflame_tests::{Lab, lab};

/// Programs of every kind, for as long as they are looked at. Those that are not installed are left out.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("/usr/bin/python3", &["-c", "import json\nwhile 1: json.loads(json.dumps([{'a': [1.5, 'x']}] * 100))"]),
    ("/usr/bin/perl", &["-e", "while (1) { my %h = map { $_ => 1 } 1..1000; join ',', sort keys %h }"]),
    ("/usr/bin/openssl", &["speed", "-seconds", "60", "sha256", "rsa2048", "ecdsap256"]),
    ("/bin/sh", &["-c", "while :; do x=$(echo $((x + 1))); done"]),
    ("/usr/bin/gzip", &["-c", "/dev/zero"]),
    ("/usr/bin/xz", &["-c", "/dev/zero"]),
    ("/usr/bin/git", &["hash-object", "/dev/zero"]),
];

/// Samples of all programs together.
const SAMPLES: u64 = 1000;
/// How often the programs are looked at, at most: once is enough on CPUs that nothing else keeps busy.
const MOST_ROUNDS: usize = 4;

/// How samples compare.
#[derive(Debug, Default)]
struct Tally {
    /// To the outermost frame, both alike.
    equal: u64,
    /// Alike as far as the reference can see, by its reason.
    reference_ended: BTreeMap<&'static str, u64>,
    /// Alike as far as the kernel program went, by its reason.
    cut: BTreeMap<&'static str, u64>,
    different: Vec<String>,
}

impl Tally {
    fn compare(&mut self, sample: &Sample<'_>, modules: &Modules) {
        let found = frames(sample);
        let (expected, end) = unwind(sample, modules);
        let shown = |frames: &[(u64, bool)]| {
            let names: Vec<_> = frames.iter().map(|(address, _exact)| modules.name(*address)).collect();
            names.join(" < ")
        };
        let common = found.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
        let complete = sample.header.stop == StopReason::Complete;
        match end {
            _ if common < found.len() && common < expected.len() => {}
            End::Outermost if complete && found.len() == expected.len() => return self.equal += 1,
            End::Unknown(why) if common == expected.len() => {
                return *self.reference_ended.entry(why).or_default() += 1;
            }
            _ if !complete && common == found.len() => {
                return *self.cut.entry(sample.header.stop.name()).or_default() += 1;
            }
            _ => {}
        }
        self.different.push(format!(
            "{:?}\n  found    {}\n  expected {} ({end:?})",
            sample.header.stop,
            shown(&found),
            shown(&expected)
        ));
    }
}

fn check(lab: &Lab, program: &Path, arguments: &[&str]) -> Tally {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    let running = Program::start(program, arguments);
    let options = ["-F", "199", "-d", "2s", "--no-children", "--raw", raw.to_str().unwrap()];
    let _profile = lab.record(&options).pid(running.pid()).start().profile();
    let modules = Modules::of(running.pid());
    let words: Vec<u64> = fs::read(raw).unwrap().as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    let mut tally = Tally::default();
    let mut rest = words.as_slice();
    while let Some((length, after)) = rest.split_first() {
        let (record, next) = after.split_at(usize::try_from(*length).unwrap());
        let sample = Sample::decode(record).unwrap();
        if !sample.stack.is_empty() && sample.header.pid.0 == running.pid() {
            tally.compare(&sample, &modules);
        }
        rest = next;
    }
    tally
}

#[test]
fn stacks_of_real_programs_are_those_of_another_library() {
    let Some(lab) = lab() else { return };
    let (mut all, mut equal) = (0, 0);
    let mut different = Vec::new();
    let (installed, missing): (Vec<_>, Vec<_>) =
        PROGRAMS.iter().partition(|(program, _arguments)| Path::new(program).exists());
    missing.iter().for_each(|(program, _arguments)| println!("{program}: not installed here"));
    let rounds = (0..MOST_ROUNDS).flat_map(|round| installed.iter().map(move |program| (round, program)));
    for (round, (program, arguments)) in rounds {
        if round > 0 && all >= SAMPLES {
            break;
        }
        let tally = check(&lab, Path::new(program), arguments);
        println!(
            "{program}: {} equal, the reference ended: {:?}, cut: {:?}, different: {}",
            tally.equal,
            tally.reference_ended,
            tally.cut,
            tally.different.len()
        );
        all += tally.equal + tally.different.len() as u64;
        all += tally.cut.values().chain(tally.reference_ended.values()).sum::<u64>();
        equal += tally.equal;
        different.extend(tally.different);
    }
    for difference in different.iter().take(5) {
        println!("{difference}");
    }
    assert!(all >= SAMPLES && equal * 10 >= all * 9, "{equal} of {all} samples are equal to the outermost frame");
    assert!(different.is_empty(), "{} of {all} samples differ", different.len());
}
