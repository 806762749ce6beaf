//! The table of real files against gimli's own evaluation of their CFI: at sampled addresses both
//! unwind the same made-up frame and must find the same caller.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails where one of its steps does")]

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, EvaluationResult, LittleEndian, Location, Register,
    RegisterRule, UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow, Value,
};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Endianness, Object, ObjectSection, ObjectSegment, ObjectSymbol};
use profiler_common::address::{FileOffset, Svma, VirtualAddress};
use profiler_common::row::{END, OTHER_REGISTERS, RBX, Rule, SLOT_UNKNOWN, UNSUPPORTED};
use profiler_unwind::{
    Arch, Machine, Registers, UnwindTable, bias_of_mapping, build, lookup, step_aarch64, step_x86_64,
};

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Row = UnwindTableRow<usize>;

/// Where the made-up frame has its stack pointer and frame pointer, far apart and aligned.
const SP: u64 = 0x7f00_0000_0000;
const FP: u64 = SP + 0x10_0000;
/// The first of the other registers; the next ones are 64 above each other.
const OTHER: u64 = SP + 0x20_0000;
const LR: u64 = 0x1234_5678;

/// A share of rows that can't be expressed above which something must be wrong.
const MOST_UNSUPPORTED: f64 = 0.02;

/// Every word of memory holds an address above the stack that depends on where it is.
fn memory(address: u64) -> u64 {
    SP + 0x1000_0000 + (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) * 8
}

#[derive(Default)]
struct MadeUp {
    read: Vec<u64>,
}

impl Machine for MadeUp {
    type Barrier = profiler_common::step::NoBarrier;

    fn read(&mut self, address: u64, words: u64) -> u64 {
        self.read = (0..words).map(|word| memory(address.wrapping_add(word * 8))).collect();
        0
    }

    fn other_register(&self, index: u64) -> u64 {
        OTHER + index * 64
    }

    fn word(&self, index: u64) -> u64 {
        self.read.get(usize::try_from(index).unwrap()).copied().unwrap_or(0)
    }
}

/// The caller as our rule finds it: pc, sp, fp, and on x86_64 rbx.
fn by_rule(arch: Arch, rule: Rule, pc: u64) -> Result<[u64; 4], u64> {
    let mut regs = Registers { pc, sp: SP, fp: FP, lr: LR, interrupted: 0, exact: 1 };
    let stop = match arch {
        Arch::X86_64 => step_x86_64(rule.0, &mut regs, &mut MadeUp::default()),
        Arch::Aarch64 => step_aarch64(rule.0, &mut regs, &mut MadeUp::default(), 0),
    };
    if stop == 0 { Ok([regs.pc, regs.sp, regs.fp, regs.lr]) } else { Err(stop) }
}

/// gimli's view of one frame.
struct Reference<'a> {
    section: &'a EhFrame<Slice<'a>>,
    encoding: gimli::Encoding,
    arch: Arch,
    pc: u64,
}

impl Reference<'_> {
    fn register(&self, register: Register) -> u64 {
        match (self.arch, register.0) {
            (Arch::X86_64, 7) | (Arch::Aarch64, 31) => SP,
            (Arch::X86_64, 6) | (Arch::Aarch64, 29) => FP,
            (Arch::X86_64, 16) => self.pc,
            (Arch::X86_64, RBX) | (Arch::Aarch64, 30) => LR,
            (Arch::X86_64, other) if OTHER_REGISTERS.contains(&other) => {
                OTHER + OTHER_REGISTERS.iter().position(|known| *known == other).unwrap() as u64 * 64
            }
            // Not what any rule uses: a comparison must fail.
            _ => 0xdead_0000 + u64::from(register.0),
        }
    }

    fn evaluate(&self, expression: UnwindExpression<usize>) -> u64 {
        let mut evaluation = expression.get(self.section).unwrap().evaluation(self.encoding);
        let mut state = evaluation.evaluate().unwrap();
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(self.register(register))).unwrap()
                }
                EvaluationResult::RequiresMemory { address, .. } => {
                    evaluation.resume_with_memory(Value::Generic(memory(address))).unwrap()
                }
                other => panic!("{other:?}"),
            }
        }
        match evaluation.as_result().first().map(|piece| piece.location) {
            Some(Location::Address { address }) => address,
            other => panic!("{other:?}"),
        }
    }

    /// The caller's value of a register; `None` when the CFI says that it can't be known.
    fn caller(&self, row: &Row, cfa: u64, register: Register) -> Option<u64> {
        match row.register(register) {
            RegisterRule::Undefined | RegisterRule::SameValue => Some(self.register(register)),
            RegisterRule::Offset(offset) => Some(memory(cfa.wrapping_add_signed(offset))),
            RegisterRule::Expression(expression) => Some(memory(self.evaluate(expression))),
            RegisterRule::Register(other) => Some(self.register(other)),
            _ => None,
        }
    }

    /// The caller as the CFI finds it: pc, sp, fp, and on x86_64 rbx.
    fn unwind(&self, row: &Row) -> [Option<u64>; 4] {
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => self.register(*register).wrapping_add_signed(*offset),
            CfaRule::Expression(expression) => self.evaluate(*expression),
        };
        let (fp, ra, sp) = match self.arch {
            Arch::X86_64 => (6, 16, 7),
            Arch::Aarch64 => (29, 30, 31),
        };
        let sp = match row.register(Register(sp)) {
            RegisterRule::Undefined => Some(cfa),
            _ => self.caller(row, cfa, Register(sp)),
        };
        let rbx = self.caller(row, cfa, Register(RBX));
        [self.caller(row, cfa, Register(ra)), sp, self.caller(row, cfa, Register(fp)), rbx]
    }
}

#[derive(Default, Debug)]
struct Tally {
    compared: u64,
    unsupported: u64,
    ends: u64,
    overlapping: u64,
    /// The CFI forgets what is pushed.
    not_believed: u64,
}

/// Whether the CFI says that there is no frame, and the rule that there is one between the first and the last
/// instruction.
fn is_not_believed(table: &UnwindTable, row: &Row, rule: Rule) -> bool {
    let no_frame = Rule::x86_64(0, 0, 1);
    let says_no_frame = matches!(row.cfa(), CfaRule::RegisterAndOffset { register: Register(7), offset: 8 });
    let at_ends = [row.start_address(), row.end_address() - 1].map(|at| lookup(table, Svma(at)));
    let plain = table.arch == Arch::X86_64 && rule.flags() == 0 && rule.x86_64_cfa_offset_by_8() > 1;
    plain && says_no_frame && at_ends == [Some(no_frame); 2]
}

/// Compares the rule at the reference's pc with the row.
fn compare(table: &UnwindTable, reference: &Reference<'_>, row: &Row, tally: &mut Tally, path: &str) {
    let pc = reference.pc;
    let rule = lookup(table, Svma(pc)).unwrap_or_else(|| panic!("{path}: no rule at {pc:#x}"));
    let return_address = if table.arch == Arch::X86_64 { 16 } else { 30 };
    assert!(!rule.by_frame_pointer(), "{path} at {pc:#x}: a guess where there is CFI");
    if rule.flags() & UNSUPPORTED != 0 {
        tally.unsupported += 1;
        return;
    }
    if rule.flags() & END != 0 {
        // glibc's `__start_context` is not said to have no caller.
        let start_context = row.end_address() - row.start_address() == 26;
        let undefined = row.register(Register(return_address)) == RegisterRule::Undefined;
        assert!(undefined || start_context, "{path} at {pc:#x}: {row:?}");
        tally.ends += 1;
        return;
    }
    if is_not_believed(table, row, rule) {
        tally.not_believed += 1;
        return;
    }
    let [expected_pc, expected_sp, expected_fp, expected_rbx] = reference.unwind(row);
    let found = by_rule(table.arch, rule, pc);
    if expected_sp.is_some_and(|sp| sp <= SP) && found.is_err() {
        return; // The step refuses a CFA that does not lie above sp, and rightly so.
    }
    let [found_pc, found_sp, found_fp, found_rbx] =
        found.unwrap_or_else(|stop| panic!("{path} at {pc:#x}: stop {stop:#x}"));
    assert_eq!(Some(found_pc), expected_pc, "{path}: return address at {pc:#x}, {row:?}");
    assert_eq!(Some(found_sp), expected_sp, "{path}: sp at {pc:#x}, {row:?}");
    let unknown = table.arch == Arch::X86_64 && rule.x86_64_slot() == SLOT_UNKNOWN;
    if unknown {
        assert_eq!(found_fp, 0);
        assert_ne!(row.register(Register(6)), RegisterRule::SameValue, "{path} at {pc:#x}");
    } else {
        assert_eq!(Some(found_fp), expected_fp, "{path}: frame pointer at {pc:#x}, {row:?}");
    }
    if table.arch == Arch::X86_64 && rule.x86_64_rbx_slot() != SLOT_UNKNOWN {
        assert_eq!(Some(found_rbx), expected_rbx, "{path}: rbx at {pc:#x}, {row:?}");
    }
    tally.compared += 1;
}

/// `.eh_frame` of a file as gimli reads it.
fn section_of<'a>(elf: &object::File<'a>, table: &UnwindTable) -> (EhFrame<Slice<'a>>, BaseAddresses) {
    let address = |name| elf.section_by_name(name).map_or(0, |section| section.address());
    let bytes = elf.section_by_name(".eh_frame").unwrap().data().unwrap();
    let mut section = EhFrame::new(bytes, LittleEndian);
    if table.arch == Arch::Aarch64 {
        section.set_vendor(gimli::Vendor::AArch64);
    }
    (section, BaseAddresses::default().set_eh_frame(address(".eh_frame")).set_text(address(".text")))
}

fn compare_file(path: &str, bytes: &[u8], table: &UnwindTable) -> Tally {
    let elf = object::File::parse(bytes).unwrap();
    let (section, bases) = section_of(&elf, table);
    let mut fdes = Vec::new();
    let mut entries = section.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        if let CieOrFde::Fde(partial) = entry {
            fdes.push(partial.parse(EhFrame::cie_from_offset).unwrap());
        }
    }
    fdes.sort_by_key(|fde| (fde.initial_address(), fde.end_address()));
    let mut tally = Tally::default();
    let mut context = UnwindContext::new();
    let mut covered_to = 0;
    for (index, fde) in fdes.iter().enumerate() {
        let next = fdes.get(index + 1).map_or(u64::MAX, |next| next.initial_address());
        let overlaps = fde.initial_address() < covered_to || fde.end_address() > next;
        covered_to = covered_to.max(fde.end_address());
        if overlaps || lookup(table, Svma(fde.initial_address())).is_none() {
            tally.overlapping += 1;
            continue;
        }
        let mut rows = fde.rows(&section, &bases, &mut context).unwrap();
        while let Some(row) = rows.next_row().unwrap() {
            let (start, end) = (row.start_address(), row.end_address().min(fde.end_address()));
            let step = ((end.saturating_sub(start)) / 7).max(1);
            let samples = (start..end).step_by(usize::try_from(step).unwrap()).chain((start < end).then(|| end - 1));
            for pc in samples {
                let reference = Reference { section: &section, encoding: fde.cie().encoding(), arch: table.arch, pc };
                compare(table, &reference, row, &mut tally, path);
            }
        }
    }
    tally
}

/// Compares those of `paths` that exist, and returns how many; a name that ends with `*` stands for any
/// ending.
fn check(paths: &[&str]) -> usize {
    let mut checked = 0;
    for path in paths {
        let Some((path, bytes)) = find(path) else {
            println!("skipped {path}: not on this machine");
            continue;
        };
        let table = build(&bytes).unwrap_or_else(|error| panic!("{path}: {error:?}"));
        let tally = compare_file(&path, &bytes, &table);
        let share = table.problems.unsupported_rows() as f64 / table.problems.cfi_rows as f64;
        println!("{path}: {:.3}% of rows not expressed; {tally:?}", share * 100.0);
        assert!(tally.compared > 0 && share < MOST_UNSUPPORTED, "{path}: {:?}", table.problems);
        assert!(tally.not_believed * 100 < tally.compared, "{path}: is so much of its CFI wrong?");
        checked += 1;
    }
    checked
}

fn find(path: &str) -> Option<(String, Vec<u8>)> {
    let Some(start) = path.strip_suffix('*') else { return Some((path.to_owned(), std::fs::read(path).ok()?)) };
    let (folder, name) = start.rsplit_once('/')?;
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut matching = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(name));
    let path = matching.next()?.path();
    Some((path.display().to_string(), std::fs::read(path).ok()?))
}

#[test]
fn c_libraries() {
    check(&[
        "/usr/lib/x86_64-linux-gnu/libm.so.6",
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
        "/usr/lib/x86_64-linux-gnu/libpython3*",
    ]);
}

/// What every program has, wherever the distribution puts it: this program's C library and loader.
#[test]
fn our_own_libraries() {
    let mappings = own_mappings();
    let code = mappings.iter().filter(|(_, permissions, _, path)| permissions.contains('x') && path.contains(".so"));
    let paths: Vec<&str> = code.map(|(_, _, _, path)| path.as_str()).collect();
    if paths.is_empty() {
        println!("skipped: a static program");
        return;
    }
    assert_eq!(check(&paths), paths.len());
}

#[test]
fn programs() {
    let checked = check(&[
        "/proc/self/exe",
        "/usr/bin/git",
        "/usr/bin/perl",
        "/usr/bin/openssl",
        "/usr/sbin/nginx",
        "/usr/bin/node",
        "/usr/lib/gcc/x86_64-linux-gnu/12/cc1",
        "/usr/lib/x86_64-linux-gnu/libLLVM*",
    ]);
    assert!(checked > 0, "this program at least");
}

#[test]
fn aarch64_libraries() {
    check(&[
        "/usr/aarch64-linux-gnu/lib/libc.so.6",
        "/usr/aarch64-linux-gnu/lib/libstdc++.so.6",
        "/usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1",
        "/usr/aarch64-linux-gnu/lib/libasan.so.8.0.0",
        "/usr/aarch64-linux-gnu/lib/libgcc_s.so.1",
    ]);
}

/// The instructions of aarch64 in a file's functions, by their symbols.
struct Instructions {
    bytes: Vec<u8>,
    functions: Vec<(String, u64, u64)>,
}

impl Instructions {
    fn read(path: &str) -> Option<Self> {
        let Ok(bytes) = std::fs::read(path) else {
            println!("skipped {path}: not on this machine");
            return None;
        };
        let symbols = object::File::parse(&*bytes).unwrap();
        let symbols = symbols
            .dynamic_symbols()
            .map(|symbol| (symbol.name().unwrap().to_owned(), symbol.address(), symbol.address() + symbol.size()));
        Some(Self { functions: symbols.collect(), bytes })
    }

    fn function(&self, name: &str) -> (u64, u64) {
        let (_name, start, end) = self.functions.iter().find(|(other, ..)| other == name).unwrap();
        (*start, *end)
    }

    /// Code has the same place in these files as in memory.
    fn at(&self, svma: u64) -> u32 {
        let at = usize::try_from(svma).unwrap();
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// Where `bl` or `b` goes.
    fn target(&self, svma: u64) -> u64 {
        svma.wrapping_add_signed(i64::from(self.at(svma).cast_signed() << 6 >> 4))
    }
}

/// Behind `uw_install_context_1` comes `_Unwind_DebugHook`, which does nothing but return.
#[test]
fn aarch64_stacks_are_cut_from_where_the_context_is_installed() {
    let Some(code) = Instructions::read("/usr/aarch64-linux-gnu/lib/libgcc_s.so.1") else { return };
    let table = build(&code.bytes).unwrap();
    let is_cut = |svma: u64| lookup(&table, Svma(svma)) == Some(Rule::UNSUPPORTED);
    for name in ["RaiseException", "ForcedUnwind", "Resume", "Resume_or_Rethrow"] {
        let (start, end) = code.function(&format!("_Unwind_{name}"));
        let words = || (start..end).step_by(4);
        let calls: Vec<u64> = words().filter(|svma| code.at(*svma) >> 26 == 0x25).collect();
        let returns = |svma: u64| code.at(svma) == 0xd65f_03c0;
        let does_nothing = |svma: u64| returns(svma) || code.at(svma) == 0xd503_245f && returns(svma + 4);
        let hook = calls.iter().position(|call| does_nothing(code.target(*call))).unwrap();
        assert!(!is_cut(calls[hook - 2]) && is_cut(calls[hook - 1]) && is_cut(calls[hook]), "{name}");
        // add sp, sp, xN.
        let leaves = words().find(|svma| code.at(*svma) & 0xffe0_ffff == 0x8b20_63ff).unwrap();
        assert!(is_cut(leaves - 4) && is_cut(leaves) && is_cut(leaves + 4), "{name}");
        let cut = words().filter(|svma| is_cut(*svma)).count();
        assert!(cut * 3 < words().count() * 2, "{name}: {cut} instructions");
    }
    let (start, end) = code.function("_Unwind_Backtrace");
    assert!(!(start..end).any(is_cut));
}

/// `__startcontext` has no symbol, but goes to `setcontext`: mov x0, x19; cbnz x0, `setcontext`.
#[test]
fn aarch64_contexts_end_stacks() {
    let Some(code) = Instructions::read("/usr/aarch64-linux-gnu/lib/libc.so.6") else { return };
    let table = build(&code.bytes).unwrap();
    let (start, end) = code.function("setcontext");
    let goes_to_it = |svma: &u64| {
        let distance = (code.at(svma + 4) & 0xff_ffff).cast_signed() << 8 >> 13 << 2;
        code.at(*svma) == 0xaa13_03e0
            && code.at(svma + 4) >> 24 == 0xb5
            && u64::from(distance.unsigned_abs()) == svma + 4 - start
    };
    let next = (end..end + 256).step_by(4).find(goes_to_it).unwrap();
    let rules = [next - 1, next, next + 8].map(|svma| lookup(&table, Svma(svma)).unwrap());
    assert_eq!(rules, [Rule::END; 3]);
    let (start, end) = code.function("swapcontext");
    let find = |mask: u32, word: u32| (start..end).step_by(4).find(|svma| code.at(*svma) & mask == word);
    // adr x30: not in glibc 2.31.
    let (adr, call) = (find(0x9f00_001f, 0x1000_001e), find(!0, 0xd400_0001).unwrap());
    let is_cut = lookup(&table, Svma(call)) == Some(Rule::UNSUPPORTED);
    assert_eq!(is_cut, adr.is_some(), "x30 holds where it goes on later");
}

#[test]
fn without_section_headers_the_same_rows_come_out() {
    for path in ["/proc/self/exe", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/aarch64-linux-gnu/lib/libm.so.6"] {
        let Ok(mut bytes) = std::fs::read(path) else {
            println!("skipped {path}: not on this machine");
            continue;
        };
        let with = build(&bytes).unwrap();
        let plts: Vec<_> = object::File::parse(bytes.as_slice())
            .unwrap()
            .sections()
            .filter(|section| section.name().is_ok_and(|name| name.starts_with(".plt")))
            .map(|section| section.address()..section.address() + section.size())
            .collect();
        // e_shoff, e_shnum and e_shstrndx: 0, as strip and sstrip leave them.
        bytes[40..48].fill(0);
        bytes[60..64].fill(0);
        let without = build(&bytes).unwrap();
        // A .plt without CFI is known only by its section header; so are symbols, by which more code is.
        let in_plt = |svma: u64| plts.iter().any(|plt| plt.contains(&svma));
        for part in &with.parts {
            for svma in part.rows.iter().map(|row| part.start.0 + u64::from(row.pc_offset())) {
                let found = lookup(&without, Svma(svma));
                let same = lookup(&with, Svma(svma)) == found || found.is_some_and(Rule::by_frame_pointer);
                assert!(same || in_plt(svma), "{path} at {svma:#x}");
            }
        }
        assert_eq!(with.problems, without.problems, "{path}");
    }
}

/// The lines of /proc/self/maps: start, permissions, offset, path.
fn own_mappings() -> Vec<(u64, String, u64, String)> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let parse = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let start = u64::from_str_radix(fields.first()?.split('-').next()?, 16).ok()?;
        let offset = u64::from_str_radix(fields.get(2)?, 16).ok()?;
        Some((start, (*fields.get(1)?).to_owned(), offset, (*fields.get(5)?).to_owned()))
    };
    maps.lines().filter_map(parse).filter(|(_, _, _, path)| path.starts_with('/')).collect()
}

#[test]
fn the_bias_of_code_is_the_address_that_the_first_mapping_was_given() {
    let mappings = own_mappings();
    let mut checked = 0;
    for (start, permissions, offset, path) in &mappings {
        if !permissions.contains('x') {
            continue;
        }
        let table = build(&std::fs::read(path).unwrap()).unwrap();
        let (first, ..) = mappings.iter().find(|(_, _, offset, other)| *offset == 0 && other == path).unwrap();
        let first_svma = table.segments.first().unwrap().svma.0;
        let bias = bias_of_mapping(&table.segments, VirtualAddress(*start), FileOffset(*offset), 4096).unwrap();
        assert_eq!(bias.0, first - first_svma, "{path}");
        checked += 1;
    }
    assert!(checked >= 2, "the program and its C library at least: {mappings:?}");
}

#[test]
fn functions_start_where_their_fdes_do() {
    let bytes = std::fs::read("/proc/self/exe").unwrap();
    let table = build(&bytes).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let (section, bases) = section_of(&elf, &table);
    let mut entries = section.entries(&bases);
    let (mut addresses, mut starts) = (Vec::new(), Vec::new());
    while let Some(entry) = entries.next().unwrap() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
        for address in [fde.initial_address(), fde.initial_address() + fde.len() / 2, fde.end_address() - 1] {
            addresses.push(Svma(address));
            starts.push(Some(Svma(fde.initial_address())));
        }
    }
    assert!(starts.len() > 1000);
    assert_eq!(profiler_unwind::function_starts(&bytes, &addresses).unwrap(), starts);
    assert_eq!(profiler_unwind::function_starts(&bytes, &[Svma(0), Svma(u64::MAX)]).unwrap(), [None, None]);
}

/// How many bytes from the entry point on end stacks, and the code there.
fn beginning(bytes: &Vec<u8>) -> (usize, Vec<u8>) {
    const MOST: u64 = 128;
    let elf = object::File::parse(bytes.as_slice()).unwrap();
    let (table, entry) = (build(bytes).unwrap(), elf.entry());
    let ended = (0..MOST).take_while(|at| lookup(&table, Svma(entry + at)) == Some(Rule::END)).count();
    let segment =
        elf.segments().find(|segment| (segment.address()..segment.address() + segment.size()).contains(&entry));
    let code =
        segment.map(|segment| segment.data().unwrap()[usize::try_from(entry - segment.address()).unwrap()..].to_vec());
    (ended, code.unwrap_or_default())
}

/// The path of the loader that a program asks for.
fn interpreter(path: &str) -> Option<String> {
    let bytes = std::fs::read(path).unwrap();
    let elf = ElfFile64::<Endianness>::parse(bytes.as_slice()).unwrap();
    let endian = elf.endian();
    let path = elf.elf_program_headers().iter().find_map(|header| header.interpreter(endian, elf.data()).ok()?)?;
    Some(String::from_utf8(path.to_vec()).unwrap())
}

/// glibc's loader leaves its beginning by `jmp *%r12`, musl's by its first call; aarch64's by a branch.
#[test]
fn loaders_begin_at_their_entry_points() {
    let own = interpreter("/proc/self/exe");
    let Some(own) = own else {
        println!("skipped: a static program has no loader");
        return;
    };
    for path in [own.as_str(), "/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"] {
        let Ok(bytes) = std::fs::read(path) else {
            println!("skipped {path}: not on this machine");
            continue;
        };
        let (ended, code) = beginning(&bytes);
        println!("{path}: {ended} bytes");
        assert!((1..=code.len()).contains(&ended), "{path}: {ended}");
        match (object::File::parse(&*bytes).unwrap().architecture(), path.contains("musl")) {
            (object::Architecture::X86_64, false) => {
                let jump = code.windows(3).position(|bytes| bytes == [0x41, 0xff, 0xe4]).unwrap();
                assert_eq!(ended, jump + 3, "{path}");
            }
            (object::Architecture::X86_64, true) => assert_eq!(code[ended - 5], 0xe8, "{path}"),
            (_, _) => assert_eq!(ended % 4, 0, "{path}"),
        }
    }
}

/// Older linkers stated the start of `.text` as the entry point of libraries, where a function is that
/// has callers.
#[test]
fn libraries_begin_nowhere() {
    let mut checked = 0;
    for folder in ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter(|entry| entry.file_name().to_string_lossy().contains(".so"));
        for path in names.map(|entry| entry.path()).filter(|path| path.is_file() && !path.is_symlink()) {
            let path = path.display().to_string();
            if checked < 10 && states_start_of_text(&path) {
                assert_eq!(beginning(&std::fs::read(&path).unwrap()).0, 0, "{path}");
                checked += 1;
            }
        }
    }
    if checked == 0 {
        println!("skipped: no library of a linker that stated the start of its code");
    }
}

/// Whether a file is a library that can't be run and has an entry point all the same.
fn states_start_of_text(path: &str) -> bool {
    let file = std::fs::File::open(path).unwrap();
    let cache = object::ReadCache::new(file);
    let Ok(elf) = ElfFile64::<Endianness, _>::parse(&cache) else { return false };
    let text = elf.section_by_name(".text").map(|section| section.address());
    text == Some(elf.entry()) && interpreter(path).is_none()
}

/// `_init` and `_fini` as objdump shows them: what the return address is above rsp, in words.
#[test]
fn start_files_are_unwound_at_every_instruction() {
    let mut checked = 0;
    let libraries = ["/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0", "/usr/lib/x86_64-linux-gnu/libselinux.so.1"];
    for path in ["/proc/self/exe"].into_iter().chain(libraries) {
        let Ok(bytes) = std::fs::read(path) else {
            println!("skipped {path}: not on this machine");
            continue;
        };
        let table = build(&bytes).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        for name in [".init", ".fini"] {
            let Some(section) = elf.section_by_name(name) else {
                println!("skipped {path}: no {name}");
                continue;
            };
            let code = section.data().unwrap();
            let find = |what: [u8; 4]| code.windows(4).position(|bytes| bytes == what);
            let (Some(sub_at), Some(add_at)) = (find([0x48, 0x83, 0xec, 0x08]), find([0x48, 0x83, 0xc4, 0x08])) else {
                println!("skipped {path}: its {name} is not that of glibc for x86_64");
                continue;
            };
            for at in 0..code.len() {
                let words = if (sub_at + 4..add_at + 4).contains(&at) { 2 } else { 1 };
                let found = lookup(&table, Svma(section.address() + at as u64));
                assert_eq!(found, Some(Rule::x86_64(0, 0, words)), "{path} {name} at {at}");
                checked += 1;
            }
        }
    }
    println!("{checked} addresses");
    // crti.o is linked into this program, too.
    assert!(checked > 0 || !cfg!(all(target_arch = "x86_64", target_env = "gnu")));
}

#[test]
fn no_code_of_the_start_files_is_cut() {
    const FUNCTIONS: [&str; 6] =
        ["_init", "_fini", "deregister_tm_clones", "register_tm_clones", "__do_global_dtors_aux", "frame_dummy"];
    let path = "/proc/self/exe";
    let bytes = std::fs::read(path).unwrap();
    let table = build(&bytes).unwrap();
    if table.arch != Arch::X86_64 {
        return;
    }
    let elf = object::File::parse(&*bytes).unwrap();
    let mut checked = 0;
    for symbol in elf.symbols().filter(|symbol| symbol.name().is_ok_and(|name| FUNCTIONS.contains(&name))) {
        let rule = lookup(&table, Svma(symbol.address()));
        assert_eq!(rule, Some(Rule::x86_64(0, 0, 1)), "{path}: {}", symbol.name().unwrap());
        checked += 1;
    }
    assert!(checked == 0 || checked == FUNCTIONS.len(), "{checked} of them: is the program linked by gcc?");
}
