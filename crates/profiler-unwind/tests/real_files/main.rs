//! The table of real files against gimli's own evaluation of their CFI: at sampled addresses both
//! unwind the same made-up frame and must find the same caller.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails where one of its steps does")]

mod aarch64;
mod beginnings;

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, EvaluationResult, LittleEndian, Location, Register,
    RegisterRule, UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow, Value,
};
use object::{Object, ObjectSection};
use profiler_common::address::{FileOffset, Svma, VirtualAddress};
use profiler_common::row::{END, OTHER_REGISTERS, RBX, Rule, SLOT_UNKNOWN, UNSUPPORTED};
use profiler_unwind::{
    Arch, Machine, Problems, Registers, UnwindTable, bias_of_mapping, build, lookup, step_aarch64, step_x86_64,
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

    fn thread_pointer(&self) -> u64 {
        0
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
        // The endbr64 of a program's beginning is not said to have none, either.
        let landing = row.end_address() - row.start_address() == 4;
        assert!(undefined || start_context || landing, "{path} at {pc:#x}: {row:?}");
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
        // Which for the same reason is without rows then.
        assert!(with.problems.bare_bytes <= without.problems.bare_bytes, "{path}");
        let bare_bytes = with.problems.bare_bytes;
        assert_eq!(with.problems, Problems { bare_bytes, ..without.problems }, "{path}");
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
