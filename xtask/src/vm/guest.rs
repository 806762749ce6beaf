//! What runs inside a VM: the cases as data, and the script that is the guest's `init`.

use std::fmt::Write as _;

use anyhow::{Result, bail};

use super::console::{CONTENT, CaseRun, MARK, Transcript};
use super::{go, kinds};
use crate::folded;
use crate::report::Outcome;

/// Seconds after which the guest ends a command.
const LIMIT_S: u32 = 90;
/// Bytes of a command's output that the guest passes on.
const OUTPUT_BYTES: u32 = 16_384;

/// One command in the guest and what is expected of it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Does it run `spanflame`?
    pub(super) agent: bool,
    /// Shell lines before the command.
    pub(super) before: &'static str,
    pub(super) command: &'static str,
    /// Shell lines that undo `before`.
    pub(super) after: &'static str,
    pub(super) exit: i32,
    /// A text that stdout and stderr together must hold.
    pub(super) says: &'static str,
    /// A file that the host looks at.
    pub(super) file: Option<&'static str>,
    /// Judges the file; returns what was measured.
    pub(super) judge: fn(&str) -> Result<String>,
}

/// Share of samples that must hold the exact chain of `tests/workloads/chain12.c`.
const CHAIN_SHARE: f64 = 0.995;
const CHAIN: [&str; 14] =
    ["main", "f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09", "f10", "f11", "f12", "leaf"];
/// At 99 Hz and 4 s, nearly 400; fewer mean that sampling itself is broken.
const CHAIN_SAMPLES: u64 = 300;

/// At 99 Hz and 4 s of one program.
const MODULE_SAMPLES: u64 = 300;

/// Emulated, start-up takes a sample or two.
const START_UP_SAMPLES: u64 = 8;
/// Wrong stacks that are shown.
const SHOWN_STACKS: usize = 5;

/// Modules that stay loaded, `archive::MODULES` in their order. Since 7.3 user space may ask for a few
/// well-known hashes only, unless root allows more.
const LOAD_MODULES: &str = "for name in af_alg algif_hash wp512; do insmod /modules/$name.ko; done
restrict=/proc/sys/crypto/af_alg_restrict; if [ -e $restrict ]; then echo 0 > $restrict; fi";
/// Records a program whose time goes to a module, and prints the texts of the pprof with a bracket:
/// its mappings are among them.
const RECORD_MODULE: &str = "rm -f /out/module.*; \
    /bin/spanflame record -d 4s -o /out/module.folded -o /out/module.pb.gz -- /bin/digest 6000 wp512 && \
    zcat /out/module.pb.gz | tr -c \" -~\" \"\\n\" | grep -F \"[\"";

/// Frames of the deep thread.
const DEEP: usize = 400;
/// Starts the program whose threads wait, and waits until all but one do.
const WAITS: &str = "/bin/waits 400 &
until [ $(cat /proc/$!/task/*/stat | grep -c \") S \") = 7 ]; do sleep 0.1; done";

/// Starts a program in the control group of a unit, as systemd does on a host without version 1, and one beside it.
const UNIT: &str = "mkdir -p /sys/fs/cgroup/system.slice/chain.service
sh -c \"echo \\$\\$ > /sys/fs/cgroup/system.slice/chain.service/cgroup.procs; exec /bin/chain12 60\" &
until pidof chain12 > /dev/null; do sleep 0.1; done
dd if=/dev/zero of=/dev/null bs=1M &";

/// The cases of `cargo xtask vm`, in order.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "hello",
        agent: false,
        before: "",
        command: "/bin/chain12 0",
        after: "",
        exit: 0,
        says: "chain12: 1 rounds",
        file: None,
        judge: nothing,
    },
    Case {
        name: "chain",
        agent: true,
        before: "",
        command: "/bin/spanflame record -d 4s -o /out/chain.folded -- /bin/chain12 6",
        after: "",
        exit: 0,
        says: "",
        file: Some("/out/chain.folded"),
        judge: judge_chain,
    },
    Case {
        name: "kinds",
        agent: true,
        before: kinds::LINK,
        command: kinds::RECORD,
        after: "",
        exit: 0,
        says: "",
        file: Some("/out/kinds.folded"),
        judge: kinds::judge,
    },
    Case {
        name: "go",
        agent: true,
        before: "",
        command: go::RECORD,
        after: "",
        exit: 0,
        says: "",
        file: Some("/out/go.folded"),
        judge: go::judge,
    },
    Case {
        name: "unit",
        agent: true,
        before: UNIT,
        command: "/bin/spanflame record --unit chain -d 4s -o /out/unit.folded",
        after: "killall chain12 dd",
        exit: 0,
        says: "filtered_process",
        file: Some("/out/unit.folded"),
        judge: judge_unit,
    },
    Case {
        name: "kptr_restrict",
        agent: true,
        before: "echo 1 > /proc/sys/kernel/kptr_restrict",
        command: "/bin/spanflame record -d 2s -o /out/kernel.folded -- dd if=/dev/zero of=/dev/null bs=1M count=100000",
        after: "echo 0 > /proc/sys/kernel/kptr_restrict",
        exit: 0,
        says: "",
        file: Some("/out/kernel.folded"),
        judge: judge_kernel,
    },
    Case {
        name: "module",
        agent: true,
        before: LOAD_MODULES,
        command: RECORD_MODULE,
        after: "",
        exit: 0,
        says: "[wp512]",
        file: Some("/out/module.folded"),
        judge: judge_module,
    },
    Case {
        name: "module_kptr_restrict",
        agent: true,
        before: "echo 1 > /proc/sys/kernel/kptr_restrict",
        command: RECORD_MODULE,
        after: "echo 0 > /proc/sys/kernel/kptr_restrict",
        exit: 0,
        says: "[wp512]",
        file: Some("/out/module.folded"),
        judge: judge_module,
    },
    Case {
        name: "dump",
        agent: true,
        before: WAITS,
        command: "/bin/spanflame dump -p $(pidof waits) > /out/dump.txt 2>&1",
        after: "killall waits",
        exit: 0,
        says: "",
        file: Some("/out/dump.txt"),
        judge: judge_dump,
    },
    Case {
        name: "dump_ptrace",
        agent: true,
        before: WAITS,
        command: "/bin/spanflame dump --ptrace -p $(pidof waits) > /out/ptrace.txt 2>&1",
        after: "killall waits",
        exit: 0,
        says: "",
        file: Some("/out/ptrace.txt"),
        judge: judge_dump,
    },
    Case {
        name: "jit_off",
        agent: true,
        before: "echo 0 > /proc/sys/net/core/bpf_jit_enable",
        command: "/bin/spanflame record -d 1s -o /out/jit.folded -- /bin/chain12 1",
        after: "echo 1 > /proc/sys/net/core/bpf_jit_enable",
        exit: 3,
        says: "bpf_jit_enable",
        file: None,
        judge: nothing,
    },
];

/// The case of `cargo xtask verifier --vm`; its file is the report.
pub(crate) const VERIFIER: Case = Case {
    name: "verifier",
    agent: true,
    before: "",
    command: "/bin/spanflame verifier-report > /out/verifier.json",
    after: "",
    exit: 0,
    says: "",
    file: Some("/out/verifier.json"),
    judge: nothing,
};

fn nothing(_: &str) -> Result<String> {
    Ok(String::new())
}

fn judge_chain(text: &str) -> Result<String> {
    let folded::ChainShare { exact, all, start_up, others } =
        folded::chain_share(&folded::parse(text), "chain12", &CHAIN);
    let others: String = others.iter().take(SHOWN_STACKS).map(|stack| format!("\n    not: {stack}")).collect();
    let measured = format!("{exact} of {all} samples hold the exact chain, {start_up} outside main");
    if all < CHAIN_SAMPLES || start_up > START_UP_SAMPLES {
        bail!("{measured}; at least {CHAIN_SAMPLES} and at most {START_UP_SAMPLES} were expected");
    }
    if (exact as f64) < CHAIN_SHARE * all as f64 {
        bail!("{measured}; {:.1}% is the least{others}", CHAIN_SHARE * 100.0);
    }
    Ok(measured + &others)
}

/// The chain, and nothing of what runs beside the unit.
fn judge_unit(text: &str) -> Result<String> {
    if let Some(other) = text.lines().find(|line| !line.starts_with("chain12;")) {
        bail!("a stack of another process: {other}");
    }
    judge_chain(text)
}

/// `dd` from /dev/zero lives below `vfs_read` in every kernel; the function that clears memory has
/// many names.
fn judge_kernel(text: &str) -> Result<String> {
    let stacks = folded::parse(text);
    let all: u64 = stacks.iter().map(|stack| stack.samples).sum();
    let reads = |frames: &[&str]| frames.iter().any(|frame| frame.starts_with("vfs_read"));
    let named: u64 = stacks.iter().filter(|stack| reads(&stack.frames)).map(|stack| stack.samples).sum();
    let measured = format!("{named} of {all} samples name `vfs_read`");
    if all == 0 || named * 2 < all {
        bail!("{measured}; at least half was expected");
    }
    Ok(measured)
}

/// A hash function in a module of its own: nearly all samples are in the function that does the work,
/// called by the module's own functions, by the kernel and by the program.
fn judge_module(text: &str) -> Result<String> {
    let stacks = folded::parse(text);
    let all: u64 = stacks.iter().map(|stack| stack.samples).sum();
    let hashes = |frames: &[&str]| {
        let user = frames.iter().skip_while(|frame| **frame != "main").nth(1) == Some(&"feed");
        let kernel = ["hash_sendmsg", "wp512_process_buffer"];
        user && kernel.iter().all(|name| frames.iter().any(|frame| frame.starts_with(name)))
    };
    let named: u64 = stacks.iter().filter(|stack| hashes(&stack.frames)).map(|stack| stack.samples).sum();
    let measured = format!("{named} of {all} samples name `wp512_process_buffer` below `feed`");
    if all < MODULE_SAMPLES || named * 4 < all * 3 {
        bail!("{measured}; at least three quarters of {MODULE_SAMPLES} were expected{}", most(&stacks));
    }
    Ok(measured)
}

/// The threads of `tests/workloads/waits.c`: what follows the name of each, and the functions below it.
fn judge_dump(text: &str) -> Result<String> {
    let how = if text.contains("may have returned EINTR") { "each stopped" } else { "in place" };
    for (name, state) in [("reader", "S [read]"), ("sleeper", "S ["), ("locker", "S [futex]"), ("poller", "S [epoll_")]
    {
        let chain = [name.to_owned() + "_inner ", name.to_owned() + "_outer ", name.to_owned() + "_thread "];
        check_thread(text, &format!("{name} {state}"), &chain)?;
    }
    check_thread(text, "runner R", &["runner_inner", "runner_outer", "runner_thread"].map(str::to_owned))?;
    let deeper = text.lines().filter(|line| line.trim_start().starts_with("deeper ")).count();
    if deeper != DEEP || text.contains("[incomplete") || text.contains("[not seen") {
        bail!("{deeper} frames of the deep thread; {DEEP} and whole stacks were expected:\n{}", indent(text));
    }
    Ok(format!("8 threads are whole, {how}"))
}

/// Below the line of a thread there are these functions, one behind the other.
fn check_thread(text: &str, thread: &str, chain: &[String]) -> Result<()> {
    let lines: Vec<&str> = text.lines().skip_while(|line| !line.contains(thread)).collect();
    let stack: Vec<&str> = lines.iter().take_while(|line| !line.is_empty()).map(|line| line.trim_start()).collect();
    let is_chain = |lines: &[&str]| lines.iter().zip(chain).all(|(line, name)| line.starts_with(name.as_str()));
    if !stack.windows(chain.len()).any(is_chain) {
        bail!("`{thread}` is not in {}:\n{}", chain.join("< "), indent(text));
    }
    Ok(())
}

/// The most frequent stacks, as lines.
fn most(stacks: &[folded::Stack<'_>]) -> String {
    let mut stacks: Vec<_> = stacks.iter().collect();
    stacks.sort_by_key(|stack| std::cmp::Reverse(stack.samples));
    let line = |stack: &&folded::Stack<'_>| format!("\n    {} {}", stack.samples, stack.frames.join(";"));
    stacks.iter().take(SHOWN_STACKS).map(line).collect()
}

/// The guest's `init`: mounts, the cases one after the other, power off.
pub(super) fn init(cases: &[&Case]) -> String {
    let mut script = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin HOME=/ RUST_BACKTRACE=1\n\
         mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n\
         mount -t tmpfs tmp /tmp\nmount -t tmpfs out /out\n\
         mkdir -p /sys/fs/cgroup && mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         ip link set lo up 2>/dev/null\n\
         dmesg -n 1\n\
         uptime_s() {{ cut -d ' ' -f 1 /proc/uptime; }}\n\
         echo\n\
         echo \"{MARK}boot $(uname -r) $(uptime_s)\"\n"
    );
    for case in cases {
        let Case { name, before, command, after, .. } = case;
        // `write!` to a String cannot fail.
        let _ = write!(
            script,
            "echo '{MARK}case {name}'\n{before}\nbegin=$(uptime_s)\n\
             timeout {LIMIT_S} sh -c '{command}' > /tmp/output 2>&1\n\
             code=$?\necho \"{MARK}exit $code $begin $(uptime_s)\"\n{after}\n\
             echo '{MARK}output'\ntail -c {OUTPUT_BYTES} /tmp/output | sed 's/^/{CONTENT}/'\n"
        );
        if let Some(file) = case.file {
            let _ = writeln!(script, "if [ -e {file} ]; then echo; echo '{MARK}file'; sed 's/^/{CONTENT}/' {file}; fi");
        }
        let _ = writeln!(script, "echo; echo '{MARK}end'");
    }
    script + &format!("echo '{MARK}done'\npoweroff -f\n")
}

/// What became of one case.
pub(super) fn judge(case: &Case, transcript: &Transcript) -> (f64, Outcome) {
    let Some(run) = transcript.cases.iter().find(|run| run.name == case.name) else {
        return (0.0, Outcome::Failed("it was not reached".to_owned()));
    };
    let outcome = match judge_run(case, run, transcript.panic.as_deref()) {
        Ok(measured) => Outcome::Passed(measured),
        Err(error) => Outcome::Failed(format!("{error:#}\n{}", indent(&run.output))),
    };
    (run.seconds, outcome)
}

fn judge_run(case: &Case, run: &CaseRun, panic: Option<&str>) -> Result<String> {
    let Some(exit) = run.exit else {
        bail!("it did not end; {}", panic.unwrap_or("the kernel said nothing"));
    };
    if exit != case.exit {
        bail!("`{}` exits with {exit}, not {}", case.command, case.exit);
    }
    if !run.output.contains(case.says) {
        bail!("`{}` does not say `{}`", case.command, case.says);
    }
    let Some(file) = case.file else { return Ok(String::new()) };
    match &run.file {
        Some(text) => (case.judge)(text),
        None => bail!("{file} was not written"),
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    | {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(exit: i32, output: &str, file: Option<&str>) -> Transcript {
        let case = CaseRun {
            name: "chain".to_owned(),
            exit: Some(exit),
            output: output.to_owned(),
            file: file.map(str::to_owned),
            ..CaseRun::default()
        };
        Transcript { cases: vec![case], ..Transcript::default() }
    }

    fn outcome(transcript: &Transcript) -> Outcome {
        let chain = CASES.iter().find(|case| case.name == "chain").unwrap();
        judge(chain, transcript).1
    }

    #[test]
    fn a_case_passes_only_as_expected() {
        let good = format!("chain12;_start;{} 398\nchain12;_start;f02 1\n", CHAIN.join(";"));
        assert!(matches!(outcome(&run(0, "", Some(&good))), Outcome::Passed(_)));
        let cut = format!("chain12;_start;{} 390\nchain12;[unknown];f02 9\n", CHAIN.join(";"));
        assert!(matches!(outcome(&run(0, "", Some(&cut))), Outcome::Failed(_)));
        assert!(matches!(outcome(&run(1, "", Some(&good))), Outcome::Failed(_)));
        assert!(matches!(outcome(&run(0, "", Some(""))), Outcome::Failed(_)));
        assert!(matches!(outcome(&run(0, "", None)), Outcome::Failed(_)));
        assert!(matches!(outcome(&Transcript::default()), Outcome::Failed(_)));
    }

    #[test]
    fn no_command_breaks_the_quotes_of_the_script() {
        for case in CASES.iter().chain([&VERIFIER]) {
            assert!(!case.command.contains('\''), "{}", case.name);
            assert!(!case.name.contains(char::is_whitespace), "{}", case.name);
        }
    }
}
