//! Every kind of stack: how programs are built, and how their frames are. Each sample is judged: no
//! caller is wrong, and nearly all chains are complete.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::collections::BTreeMap;
use std::fs;

use object::{Object as _, ObjectSymbol as _};
use spanflame_tests::kind::{Kind, check_all};
use spanflame_tests::{ANY, CLOCK, LIBC, Lab, NAMELESS, ONE, Profile, START, Stack, lab};

/// CPU time of each program. Many run side by side.
const CPU_MS: u32 = 800;
const OPTIONS: [&str; 2] = ["-F", "999"];

const BRIEF: &[&[&str]] = &[&["outer", "inner", "leaf"]];

/// A stripped program: its functions go by their addresses, which those of its twin tell.
fn stripped(lab: &Lab, kind: Kind, twin: &str) -> Kind {
    let workload = kind.workload;
    let bytes = fs::read(lab.workload(twin)).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let functions = file.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.size() > 0);
    let functions = functions.map(|symbol| (symbol.address(), (symbol.name().unwrap().to_owned(), symbol.size())));
    let functions: BTreeMap<_, _> = functions.collect();
    let rename = move |frame: &str| {
        let address = u64::from_str_radix(frame.strip_prefix(workload)?.strip_prefix("+0x")?, 16).ok()?;
        let (start, (name, size)) = functions.range(..=address).next_back()?;
        (address - start < *size).then(|| name.clone())
    };
    kind.renamed(rename)
}

/// With musl, which has no unwind tables: its caller of `main` is known by its bytes.
fn musl(workload: &'static str, start: &str) -> Kind {
    Kind::new(workload, CPU_MS, &[]).chain(&[start, ONE, "main", "outer", "inner", "leaf"])
}

/// Threads of musl, of which nothing tells where the function begins that calls theirs.
fn musl_threads(workload: &'static str) -> Kind {
    let bodies = ["computing", "locking", "printing", "sleeping"];
    let chains = bodies.map(|body| [ONE, ONE, body, ANY]);
    let whole = Kind::new(workload, CPU_MS / 4, &[]).chain(&[ONE, ONE, "computing", "crush", "grind"]);
    chains.iter().fold(whole, |kind, chain| kind.chain(chain))
}

#[test]
fn builds() {
    let Some(lab) = lab() else { return };
    let kinds = [
        Kind::new("brief-static", CPU_MS, BRIEF),
        Kind::new("brief-st-pie", CPU_MS, BRIEF),
        stripped(&lab, Kind::new("stripped", CPU_MS, BRIEF), "brief"),
        stripped(&lab, Kind::new("static-stripped", CPU_MS, BRIEF), "brief-static"),
        stripped(&lab, Kind::new("st-pie-stripped", CPU_MS, BRIEF), "brief-st-pie"),
        Kind::new("debug-frame", CPU_MS, BRIEF),
        Kind::new("cet", CPU_MS, BRIEF),
        Kind::new(
            "cold",
            CPU_MS,
            &[
                &["caller", "in_two_parts"],
                &["caller", "in_two_parts.cold", "leaf"],
                &["caller", "in_two_parts.cold", "rarely_called"],
            ],
        ),
        Kind::new("far", CPU_MS, &[&["caller", "far_outer", "far_inner", "leaf"]]),
        musl("musl", "_start"),
        musl("musl-static", "_start"),
        stripped(&lab, musl("musl-stripped", NAMELESS), "musl-static"),
        musl_threads("musl-threads"),
        musl_threads("musl-threads-st"),
        stripped(&lab, musl_threads("musl-threads-s"), "musl-threads-st"),
    ];
    let profile = check_all(&lab, &OPTIONS, &kinds);
    let cold =
        profile.of("cold").iter().filter(|stack| stack.user.last().is_some_and(|name| name.ends_with(".cold"))).count();
    assert!(cold > 0, "no sample hit the cold part itself");
}

const HANDLER: [&str; 4] = [LIBC, "on_signal", "handler_outer", "handler_leaf"];

/// A signal came at any instruction of these functions.
fn alarms(workload: &'static str, cpu_ms: u32) -> Kind {
    let work = ["caller", "aligned", "variable", "saving", "leaf"];
    let handling = (0..=work.len()).map(|depth| [&work[..depth], &HANDLER].concat());
    let asking = [[CLOCK].as_slice(), &[CLOCK, CLOCK]].map(|asking| [asking, &HANDLER].concat());
    let chains: Vec<_> = handling.chain(asking).chain([work.to_vec()]).collect();
    Kind::new(workload, cpu_ms, &chains.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Many calls go through the table: samples hit it, too.
fn stubs(workload: &'static str) -> Kind {
    Kind::new(workload, CPU_MS, &[&["caller", NAMELESS], &["caller", "stub_target"]])
}

#[test]
fn frames() {
    let Some(lab) = lab() else { return };
    let shapes = [
        "with_array",
        "with_alloca",
        "aligned_and_variable",
        "realigned",
        "aligned_frame",
        "big_frame",
        "long_code",
        "leaf",
    ];
    let registers = ["rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"];
    let registers = registers.map(|name| [format!("with_{name}"), format!("in_{name}")]);
    let mut in_registers: Vec<Vec<&str>> =
        registers.iter().map(|chain| chain.iter().map(String::as_str).collect()).collect();
    in_registers.extend([
        vec!["with_known", "known", "leaf"],
        vec!["with_strange", "strange"],
        vec!["with_pushed", "pushed", "leaf"],
        vec!["with_indexed", "indexed"],
        vec!["with_indexed_far", "indexed_far"],
        vec!["with_indexed_calls", "indexed_calls"],
    ]);
    let in_registers: Vec<_> = in_registers.iter().map(Vec::as_slice).collect();
    let kinds = [
        Kind::new("frames-realign", 2 * CPU_MS, &[&["leaf"], &shapes]),
        Kind::new("registers", 2 * CPU_MS, &in_registers)
            .cut("unsupported_cfi", &["strange", "leaf"])
            .cut("return_address_lost", &["indexed_calls", "leaf"]),
        stubs("stubs"),
        stubs("stubs-now"),
        stubs("stubs-cet"),
        Kind::new("clock", CPU_MS, &[&["caller", "ask", CLOCK, ANY], &["caller", "ask", NAMELESS]]),
        Kind::new(
            "strings",
            CPU_MS,
            &["copy", "measure", "find", "compare", "fill"]
                .map(|name| [name, ONE])
                .each_ref()
                .map(|chain| chain.as_slice()),
        ),
        alarms("alarms", CPU_MS),
        // Before there are tables, the other stack is all that comes with a sample.
        alarms("alarms-other", 3 * CPU_MS).argument("altstack"),
        Kind::new("contexts", CPU_MS, &[&["in_first", "leaf"], &["swapcontext"]])
            .chain(&[LIBC, "ping_body", "in_ping", "leaf"])
            .chain(&[LIBC, "ping_body", "swapcontext"])
            .chain(&[LIBC, "pong_body", "in_pong", "leaf"])
            .chain(&[LIBC, "pong_body", "swapcontext"]),
        Kind::new("linked", CPU_MS, &[&["in_first", "leaf"], &["swapcontext"]])
            .chain(&[LIBC, "one_body", "in_one", "leaf"])
            .chain(&[LIBC, "two_body", "in_two", "leaf"])
            .chain(&[LIBC, "setcontext"]),
        Kind::new("switches", CPU_MS, &[&["in_first", "leaf"], &["go_inside", "switch_stacks"]])
            .cut("no_frame_pointer", &["switch_stacks"])
            .cut("no_frame_pointer", &["coroutine_entry", "body", "in_coroutine", "leaf"])
            .cut("no_frame_pointer", &["coroutine_entry", "body", "go_outside", "switch_stacks"]),
        Kind::new("frameless", CPU_MS, &[&["outer", "own_leaf"]]).cut("no_frame_pointer", &["[jit]", "leaf"]),
    ];
    let profile = check_all(&lab, &OPTIONS, &kinds);
    for stubs in ["stubs", "stubs-now", "stubs-cet"] {
        let in_stub = |name: &String| name.starts_with(&format!("{stubs}+0x"));
        let hits: u64 = profile
            .of(stubs)
            .iter()
            .filter(|stack| stack.user.last().is_some_and(in_stub))
            .map(|stack| stack.samples)
            .sum();
        assert!(hits > 0, "{stubs}: no sample hit a stub itself");
    }
}

/// Exceptions in flight: what the C++ runtime calls, destructors on the way, and the handler.
fn thrower(workload: &'static str) -> Kind {
    const LIBRARY: [&str; 4] =
        ["_Unwind_Resume", "__cxa_throw", "__cxa_allocate_exception", "std::runtime_error::runtime_error(char const*)"];
    const COLD: [&str; 3] = [
        "catcher(unsigned long) [clone .cold]",
        "through(unsigned long, unsigned long) [clone .cold]",
        "thrower(unsigned long) [clone .cold]",
    ];
    let warm = COLD.map(|name| name.trim_end_matches(" [clone .cold]"));
    let [catcher, through, thrower] = warm;
    let mut kind = Kind::new(workload, CPU_MS, &[&[COLD[0], "in_handler()"], &[COLD[0], "__cxa_begin_catch", ANY]])
        .chain(&[START.as_slice(), &["main", COLD[0], NAMELESS]].concat())
        .chain(&[START.as_slice(), &["main", COLD[0], "std::runtime_error::what() const"]].concat())
        .chain(&[START.as_slice(), &["main", COLD[0], "std::logic_error::what() const"]].concat());
    let whole = [catcher, through, through, through, through, thrower];
    for depth in 1..whole.len() {
        for holder in [whole[depth], if depth == 5 { COLD[2] } else { COLD[1] }] {
            let holder = [START.as_slice(), &["main"], &whole[..depth], &[holder]].concat();
            kind = kind.chain(&[holder.as_slice(), &["Guard::~Guard()", "in_destructor()"]].concat());
            kind = kind.chain(&[holder.as_slice(), &[NAMELESS]].concat());
            for library in LIBRARY {
                kind = kind.chain(&[holder.as_slice(), &[library, ANY]].concat());
            }
        }
    }
    // The registers of the frame to go to are written over those of the caller.
    kind.cut("unsupported_cfi", &["_Unwind_Resume", ANY]).cut("unsupported_cfi", &["_Unwind_RaiseException", ANY])
}

const CART: [&str; 4] = ["cart::main", "cart::serve", "cart::shop::checkout", "cart::shop::Cart<u64>::total"];
/// It goes by the clock on the wall.
const CART_MS: u32 = 8 * CPU_MS;

/// A Rust program: the standard library is before its `main`, and asks for the time below it.
fn cart(workload: &'static str, start: &[&str]) -> Kind {
    let before = [start, &["main", ANY]].concat();
    let kind = Kind::new(workload, CART_MS, &[]).chain(&[before.as_slice(), &CART].concat());
    kind.chain(&[before.as_slice(), &[CART[0], ANY]].concat()).renamed(|frame| Some(unmarked(frame).to_owned()))
}

fn unmarked(frame: &str) -> &str {
    frame.strip_suffix("_[f]").or(frame.strip_suffix("_[?]")).unwrap_or(frame)
}

/// No function of the program is left out between others, whatever the standard library does; returns how
/// many samples hold all of them.
fn whole_carts(profile: &Profile, workload: &str) -> u64 {
    let mut whole = 0;
    for stack in profile.of(workload).iter().filter(|stack| stack.incomplete.is_none()) {
        let own: Vec<_> = stack.user.iter().map(|frame| unmarked(frame)).filter(|name| CART.contains(name)).collect();
        assert!(CART.starts_with(&own), "{stack:?}");
        whole += if own == CART { stack.samples } else { 0 };
    }
    whole
}

#[test]
fn languages_and_libraries() {
    let Some(lab) = lab() else { return };
    let crypto = ["with_sha1", "with_sha256", "with_sha512", "with_gcm", "with_chacha"].map(|name| [name, ANY]);
    let kinds = [
        thrower("thrower"),
        thrower("thrower-static"),
        Kind::new("crypto", 2 * CPU_MS, &crypto.each_ref().map(|chain| chain.as_slice()))
            .chain(&[START.as_slice(), &["main", "leaf"]].concat()),
        cart("cart-fp", &START),
        cart("cart-musl", &["_start", ONE]),
    ];
    let profile = check_all(&lab, &OPTIONS, &kinds);
    for workload in ["cart-fp", "cart-musl"] {
        let whole = whole_carts(&profile, workload);
        assert!(whole >= u64::from(CPU_MS / 2), "{workload}: {whole} samples with all functions");
    }
    // Without tables, what its code does to the stack pointer says where the callers are.
    let whole = |stack: &&Stack| stack.incomplete.is_none() && stack.user.ends_with(&CART.map(str::to_owned));
    assert!(profile.of("cart-fp").into_iter().any(|stack| whole(&stack)), "{:?}", profile.of("cart-fp"));
}
