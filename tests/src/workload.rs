//! The programs with known call chains, and how they are built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{as_user, root};

/// What makes a program of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// gcc.
    C,
    /// g++.
    Cxx,
    /// gcc with musl.
    Musl,
    /// rustc with its default linker.
    Rust,
    /// Go's, with cgo.
    Go,
}

/// A program or a library.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// The name of the file that is built.
    pub name: &'static str,
    /// The source, in `tests/workloads`.
    pub source: &'static str,
    /// What compiles it.
    pub compiler: Compiler,
    /// Its options, after those of [`Compiler`].
    pub flags: &'static [&'static str],
    /// Libraries of this list that it is linked with.
    pub libraries: &'static [&'static str],
}

const fn c(name: &'static str, source: &'static str, flags: &'static [&'static str]) -> Workload {
    Workload { name, source, compiler: Compiler::C, flags, libraries: &[] }
}

const fn cxx(name: &'static str, source: &'static str, flags: &'static [&'static str]) -> Workload {
    Workload { name, source, compiler: Compiler::Cxx, flags, libraries: &[] }
}

const fn musl(name: &'static str, source: &'static str, flags: &'static [&'static str]) -> Workload {
    Workload { name, source, compiler: Compiler::Musl, flags, libraries: &[] }
}

const fn stubs(name: &'static str, flags: &'static [&'static str]) -> Workload {
    Workload { name, source: "stubs.c", compiler: Compiler::C, flags, libraries: &["libtarget.so"] }
}

const fn through(name: &'static str, flags: &'static [&'static str], libraries: &'static [&'static str]) -> Workload {
    Workload { name, source: "through_bare.c", compiler: Compiler::C, flags, libraries }
}

const fn rust(name: &'static str, source: &'static str, flags: &'static [&'static str]) -> Workload {
    Workload { name, source, compiler: Compiler::Rust, flags, libraries: &[] }
}

const fn go(name: &'static str, source: &'static str, flags: &'static [&'static str]) -> Workload {
    Workload { name, source, compiler: Compiler::Go, flags, libraries: &[] }
}

const NO_TABLES: &str = "-fno-asynchronous-unwind-tables";
const FRAME_POINTERS: &str = "-fno-omit-frame-pointer";
/// 12 GiB from the rest.
const FAR: &str = "-Wl,--section-start=.far=0x300000000";
/// What other libraries have is looked up by the loader before the program begins.
const NOW: &str = "-Wl,-z,now";
/// All workloads. A name is a command's name too: 15 characters at most.
pub const WORKLOADS: &[Workload] = &[
    c("chain12", "chain12.c", &[]),
    c("chain12-no-pie", "chain12.c", &["-no-pie", "-fno-pie"]),
    c("chain12-static", "chain12.c", &["-static"]),
    c("chain12-code", "chain12.c", &["-Wl,-z,noseparate-code"]),
    c("chain12-st-pie", "chain12.c", &["-static-pie", "-fpie"]),
    c("read", "read.c", &[]),
    cxx("shop", "shop.cpp", &[]),
    rust("cart", "cart.rs", &[]),
    rust("cart-abort", "cart.rs", &["-Cpanic=abort"]),
    rust("cart-musl", "cart.rs", &["--target=x86_64-unknown-linux-musl"]),
    rust("cart-fp", "cart.rs", &["-Cpanic=abort", "-Cforce-unwind-tables=no", "-Cforce-frame-pointers=yes"]),
    c("threads", "threads.c", &["-pthread"]),
    c("libplugin.so", "plugin.c", &["-shared", "-fpic"]),
    // Other code at the same addresses.
    c(
        "libtwin.so",
        "plugin.c",
        &[
            "-shared",
            "-fpic",
            FRAME_POINTERS,
            "-Dplugin_entry=twin_entry",
            "-Dplugin_middle=twin_middle",
            "-Dplugin_leaf=twin_leaf",
        ],
    ),
    c("swap", "swap.c", &[]),
    c("host", "host.c", &[]),
    c("become", "become.c", &[]),
    c("vforks", "vforks.c", &[]),
    c("family", "family.c", &[]),
    c("inlined", "inlined.c", &["-g"]),
    c("frames", "frames.c", &[]),
    c("frames-realign", "frames.c", &["-mstackrealign", "-mavx"]),
    c("deep", "deep.c", &[]),
    c("handler", "handler.c", &[]),
    c("handler-static", "handler.c", &["-static"]),
    c("noreturn", "noreturn.c", &[]),
    c(
        "libwithfp.so",
        "bare.c",
        &["-shared", "-fpic", NO_TABLES, FRAME_POINTERS, "-DUNCLEAR", "-DFRAMES", "-DLEAF_WITH_FRAME"],
    ),
    through("bare-fp", &[], &["libwithfp.so"]),
    c("libbareleaf.so", "bare.c", &["-shared", "-fpic", NO_TABLES, FRAME_POINTERS, "-DUNCLEAR", "-DFRAMES"]),
    through("bare-leaf", &[], &["libbareleaf.so"]),
    c("libwithoutfp.so", "bare.c", &["-shared", "-fpic", NO_TABLES, "-DUNCLEAR"]),
    c("libclear.so", "bare.c", &["-shared", "-fpic", NO_TABLES]),
    through("bare-clear", &[], &["libclear.so"]),
    through("bare-clear-live", &["-DFRAME_POINTER_IN_USE"], &["libclear.so"]),
    c("libclearfp.so", "bare.c", &["-shared", "-fpic", NO_TABLES, FRAME_POINTERS]),
    through("bare-clear-fp", &[], &["libclearfp.so"]),
    c("every-bare", "every.c", &[NO_TABLES, NOW]),
    c("every-bare-fp", "every.c", &[NO_TABLES, FRAME_POINTERS, NOW]),
    c("every-bare-al", "every.c", &["-O1", NO_TABLES, FRAME_POINTERS, "-mstackrealign", "-mavx", NOW]),
    musl("every-musl", "every.c", &["-static"]),
    through("bare-no-fp", &[], &["libwithoutfp.so"]),
    through("bare-live-fp", &["-DFRAME_POINTER_IN_USE"], &["libwithoutfp.so"]),
    musl("musl", "brief.c", &[]),
    musl("musl-static", "brief.c", &["-static"]),
    musl("musl-stripped", "brief.c", &["-static", "-s"]),
    musl("musl-threads", "locks.c", &[]),
    musl("musl-threads-st", "locks.c", &["-static"]),
    musl("musl-threads-s", "locks.c", &["-static", "-s"]),
    c("stripped", "brief.c", &["-s"]),
    c("brief-static", "brief.c", &["-static"]),
    c("static-stripped", "brief.c", &["-static", "-s"]),
    c("brief-st-pie", "brief.c", &["-static-pie", "-fpie"]),
    c("st-pie-stripped", "brief.c", &["-static-pie", "-fpie", "-s"]),
    c("debug-frame", "brief.c", &["-g", NO_TABLES]),
    c("cet", "brief.c", &["-fcf-protection=full"]),
    c("cold", "cold.c", &[]),
    c("far", "far.c", &["-g", NO_TABLES, "-no-pie", "-fno-pie", "-mcmodel=large", FAR]),
    c("alarms", "alarms.c", &[]),
    c("alarms-other", "alarms.c", &[]),
    c("contexts", "contexts.c", &[]),
    c("linked", "linked.c", &[]),
    c("contexts-static", "contexts.c", &["-static"]),
    c("switches", "switches.c", &[]),
    c("registers", "registers.c", &[]),
    c("clock", "clock.c", &[]),
    c("strings", "strings.c", &[]),
    c("crypto", "crypto.c", &[]),
    c("libtarget.so", "target.c", &["-shared", "-fpic"]),
    stubs("stubs", &["-Wl,-z,lazy"]),
    stubs("stubs-now", &["-Wl,-z,now"]),
    stubs("stubs-cet", &["-fcf-protection=full", "-Wl,-z,lazy", "-Wl,-z,ibtplt"]),
    cxx("thrower", "thrower.cpp", &[]),
    cxx("thrower-static", "thrower.cpp", &["-static"]),
    c("frameless", "frameless.c", &[]),
    c("generated", "generated.c", &[]),
    c("jit", "jit.c", &[]),
    c("jit-signal", "jit_signal.c", &[]),
    c("leaderless", "leaderless.c", &["-pthread"]),
    c("storm", "storm.c", &[]),
    c("churn", "churn.c", &[]),
    c("split", "split.c", &[]),
    c("brief", "brief.c", &[]),
    // The same code at the same addresses by other names.
    c("brief-twin", "brief.c", &["-Douter=twin_outer", "-Dinner=twin_inner", "-Dleaf=twin_leaf"]),
    c("bulky", "bulky.c", &[]),
    c("roomy", "roomy.c", &[]),
    c("zero", "zero.c", &[]),
    c("answer", "answer.c", &[]),
    c("bpf", "bpf.c", &[]),
    c("take_event", "take_event.c", &[]),
    c("bystander", "bystander.c", &[]),
    c("every", "every.c", &[]),
    c("every-o0", "every.c", &["-O0", NOW]),
    c("every-os", "every.c", &["-Os", NOW]),
    c("every-cet", "every.c", &["-fcf-protection", NOW]),
    c("every-fp", "every.c", &[FRAME_POINTERS, NOW]),
    c("every-static", "every.c", &["-static"]),
    c("every-st-pie", "every.c", &["-static-pie", "-fpie"]),
    cxx("throws", "throws.cpp", &[NOW]),
    cxx("throws-o0", "throws.cpp", &["-O0", NOW]),
    cxx("throws-static", "throws.cpp", &["-static"]),
    c("waits", "waits.c", &["-pthread"]),
    c("epoll", "epoll.c", &[]),
    c("short-threads", "short_threads.c", &["-pthread"]),
    c("pause32", "pause32.S", &["-m32", "-nostdlib", "-static"]),
    go("go", "goroutines.go", &[]),
    go("go-stripped", "goroutines.go", &["-ldflags=-s -w"]),
    go("go-pie", "goroutines.go", &["-ldflags=-s -w", "-buildmode=pie"]),
    go("go-garbage", "garbage.go", &["-ldflags=-s -w"]),
    go("go-garbage-pie", "garbage.go", &["-buildmode=pie"]),
    go("go-grows", "grows.go", &["-ldflags=-s -w"]),
    go("go-grows-pie", "grows.go", &["-ldflags=-s -w", "-buildmode=pie"]),
    go("cgo", "cgo.go", &[]),
    go("cgo-pie", "cgo.go", &["-buildmode=pie"]),
];

/// The file of a workload, built when its sources or its command line have changed.
pub(crate) fn built(name: &str, folder: &Path) -> PathBuf {
    let workload = WORKLOADS.iter().find(|workload| workload.name == name).expect("a name in WORKLOADS");
    let libraries: Vec<_> = workload.libraries.iter().map(|library| built(library, folder)).collect();
    let sources = root().join("tests/workloads");
    let file = folder.join(name);
    let mut command = compile(workload, &sources.join(workload.source), &file);
    command.args(libraries);

    let contents = |source: &str| fs::read_to_string(sources.join(source)).expect("reading a workload's source");
    let texts = [workload.source, "work.h", "bridge.h", "context.h"].map(contents);
    let stamp = format!("{command:?}\n{}", texts.join("\n"));
    let stamp_file = folder.join(format!("{name}.stamp"));
    if file.exists() && fs::read_to_string(&stamp_file).is_ok_and(|last| last == stamp) {
        return file;
    }
    let done = as_user(&mut command).status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.success(), "{command:?} failed");
    fs::write(stamp_file, stamp).expect("writing a workload's stamp");
    file
}

fn compile(workload: &Workload, source: &Path, file: &Path) -> Command {
    let (program, flags): (_, &[&str]) = match workload.compiler {
        // Functions that do the same stay two.
        Compiler::C => ("gcc", &["-O2", "-fomit-frame-pointer", "-fno-ipa-icf"]),
        Compiler::Cxx => ("g++", &["-O2", "-fomit-frame-pointer", "-fno-ipa-icf", "-std=c++17"]),
        Compiler::Musl => ("musl-gcc", &["-O2", "-fomit-frame-pointer", "-fno-ipa-icf"]),
        Compiler::Rust => ("rustc", &["--edition=2024", "-Copt-level=3", "-Cforce-frame-pointers=no", "-Cdebuginfo=0"]),
        Compiler::Go => ("go", &["build"]),
    };
    let mut command = Command::new(program);
    if workload.compiler == Compiler::Go {
        // The file alone, whatever the user's settings; its cache is where what is built goes.
        let cache = file.with_file_name("go-cache");
        command.env("GOCACHE", cache).envs([("GO111MODULE", "off"), ("GOTOOLCHAIN", "local"), ("CGO_ENABLED", "1")]);
    }
    command.args(flags).args(workload.flags).arg("-o").arg(file).arg(source);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_as_command_names() {
        const TASK_COMM_LEN: usize = 16;
        for (index, workload) in WORKLOADS.iter().enumerate() {
            assert!(workload.name.len() < TASK_COMM_LEN, "{}", workload.name);
            assert!(WORKLOADS[..index].iter().all(|other| other.name != workload.name), "{}", workload.name);
        }
    }
}
