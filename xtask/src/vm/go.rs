//! The Go program of every guest: two goroutines at work, each with a known chain.

use anyhow::{Result, bail};

use crate::folded;

/// Its source, in `tests/workloads`, and its name.
pub(super) const PROGRAM: &str = "goroutines";
pub(super) const RECORD: &str = "/bin/spanflame record -F 199 -o /out/go.folded -- /bin/goroutines 6000";

/// Stacks of each goroutine down to the leaf, at least: both work for 6 s, on two CPUs.
const FEWEST: u64 = 100;
/// The least share of the stacks that must be complete: there is no table in the first moments.
const LEAST_COMPLETE: f64 = 0.995;
const SHOWN: usize = 5;

const CALLS: [&str; 6] =
    ["main.rounds", "main.wide", "main.bound.func1", "main.(*mill).grind", "main.half_[i]", "main.leaf"];
const ROOTS: [&[&str]; 2] = [&["runtime.goexit", "runtime.main", "main.main"], &["runtime.goexit", "main.worker"]];

/// Stacks that have to be cut: the reason, and the functions from the cut on.
const CUTS: [(&str, &[&str]); 5] = [
    // aarch64: no rule crosses stacks, and these go over to the thread's.
    ("[incomplete: unsupported_cfi]", &["runtime.systemstack"]),
    ("[incomplete: unsupported_cfi]", &["runtime.morestack"]),
    ("[incomplete: unsupported_cfi]", &["runtime.walltime"]),
    ("[incomplete: unsupported_cfi]", &["runtime.nanotime1"]),
    // aarch64: the call that a signal puts into a function without a frame takes its x30.
    ("[incomplete: return_address_lost]", &["main.leaf", "runtime.asyncPreempt"]),
];

/// Judges the samples of the program. `leaf` may be interrupted by Go's own signals.
pub(super) fn judge(text: &str) -> Result<String> {
    let (mut whole, mut complete, mut cut_as_due, mut cut, mut wrong) = ([0; 2], 0, 0, 0, 0);
    let mut shown = Vec::new();
    for stack in folded::parse(text).iter().filter(|stack| stack.frames.first() == Some(&PROGRAM)) {
        let user: Vec<&str> = stack.frames.iter().skip(1).copied().filter(|frame| !frame.ends_with("_[k]")).collect();
        let chains = ROOTS.map(|root| [root, &CALLS].concat());
        let is_whole = chains.each_ref().map(|chain| user.starts_with(chain));
        // Down to the last of the program's own calls it has to be a chain; the runtime's are behind.
        let own = user.iter().rposition(|frame| CALLS.contains(frame)).map_or(0, |at| at + 1);
        let is_right = own == 0 || chains.iter().any(|chain| chain.starts_with(&user[..own]));
        for (whole, is_whole) in whole.iter_mut().zip(is_whole) {
            *whole += if is_whole { stack.samples } else { 0 };
        }
        let is_due = |(reason, from): &(&str, &[&str])| {
            user.split_first().is_some_and(|(first, rest)| first == reason && rest.starts_with(from))
        };
        let good = if CUTS.iter().any(is_due) {
            cut_as_due += stack.samples;
            true
        } else if user.first().is_some_and(|frame| frame.starts_with("[incomplete")) {
            cut += stack.samples;
            false
        } else if !is_right {
            wrong += stack.samples;
            false
        } else {
            complete += stack.samples;
            true
        };
        if !good && shown.len() < SHOWN {
            shown.push(format!("\n    not: {} {}", stack.samples, stack.frames.join(";")));
        }
    }
    let measured = format!(
        "{complete} complete, {} whole in main and {} in worker, {cut_as_due} cut as due, {cut} cut, {wrong} wrong{}",
        whole[0],
        whole[1],
        shown.concat()
    );
    let share = complete as f64 / (complete + cut).max(1) as f64;
    if wrong > 0 || whole.into_iter().any(|whole| whole < FEWEST) || share < LEAST_COMPLETE {
        let least = LEAST_COMPLETE * 100.0;
        bail!("{measured}; at least {FEWEST} whole ones of each, {least}% complete and none wrong were expected");
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_goroutines_are_there_and_no_caller_is_wrong() {
        let chain = |root: &[&str]| format!("goroutines;{};{}", root.join(";"), CALLS.join(";"));
        let [main, worker] = ROOTS.map(chain);
        let good =
            format!("{main} 200\n{worker};runtime.asyncPreempt 200\ngoroutines;runtime.mstart;runtime.sysmon 1\n");
        assert!(judge(&good).is_ok());
        assert!(judge(&format!("{main} 200\n")).is_err(), "one goroutine only");
        assert!(judge(&(good.clone() + "goroutines;[incomplete: x];runtime.systemstack 3\n")).is_err());
        let due = "goroutines;[incomplete: unsupported_cfi];runtime.walltime;x 99\n";
        assert!(judge(&(good.clone() + due)).is_ok());
        for wrong in ["runtime.goexit;main.rounds", "runtime.goexit;main.worker;main.rounds;main.leaf"] {
            assert!(judge(&format!("{good}goroutines;{wrong} 1\n")).is_err(), "{wrong}");
        }
    }
}
