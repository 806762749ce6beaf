//! From a thread's own stack back to the goroutine's, where the code that went over keeps no frame: on x86_64
//! `morestack`, and up to Go 1.20 `systemstack` and `asmcgocall` (go/src/runtime/asm_amd64.s).
//!
//! Where the goroutine is, the end of `systemstack` says: it goes back by the thread's `g`, the `m` of that, its
//! `curg`, and the stack pointer saved there. What is not exactly as in those programs is not known.

use super::rows::{Until, sets_rsp};
use profiler_common::row::{GOROUTINE, KEPT_ON_STACK, MAX_CURG_BY_8, Rule, SLOT_UNKNOWN, THREAD_OFFSET_BITS};
use profiler_common::step::g;

/// The function that says where the goroutine is.
pub(super) const SYSTEMSTACK: &[u8] = b"runtime.systemstack";
const MORESTACK: &[u8] = b"runtime.morestack";
const ASMCGOCALL: &[u8] = b"runtime.asmcgocall";

/// Code at whose call the stack is as it was when the function was called.
const FRAMELESS: Rule = Rule::x86_64(0, 0, 1).with_rbx(SLOT_UNKNOWN);
/// `asmcgocall` has the depth at 40(%rsp), the goroutine at 48(%rsp).
const KEPT: Rule = Rule::x86_64(GOROUTINE | KEPT_ON_STACK, SLOT_UNKNOWN, 5).with_rbx(SLOT_UNKNOWN);
/// On a thread's stack it has its caller's rsp at 40(%rsp).
const SAME_STACK: Rule = Rule::x86_64_stored(0, 0, 5, 1).with_rbx(SLOT_UNKNOWN);

/// What leads from a thread to the goroutine that it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// From the thread pointer to the thread's `g`, in units of 8 bytes.
    thread_offset_by_8: i32,
    /// Where `m` has `curg`, in units of 8 bytes.
    curg_by_8: u32,
}

impl Path {
    /// What the code of `systemstack` says; `None` where the offset in the thread's memory is known at run time only
    /// (shared libraries), or it is other code.
    pub(super) fn of_systemstack(code: &[u8]) -> Option<Self> {
        (0..code.len()).find_map(|at| Self::at(code.get(at..)?))
    }

    /// What code says that begins with the way back.
    fn at(code: &[u8]) -> Option<Self> {
        const M: u8 = (g::M * 8) as u8;
        const SCHED_SP: u8 = (g::SCHED_SP * 8) as u8;
        let (thread_offset, rest) = match code {
            // mov %fs:n, %rax
            [0x64, 0x48, 0x8b, 0x04, 0x25, a, b, c, d, rest @ ..] => (i32::from_le_bytes([*a, *b, *c, *d]), rest),
            // mov $n, %rcx; mov %fs:(%rcx), %rax
            [0x48, 0xc7, 0xc1, a, b, c, d, 0x64, 0x48, 0x8b, 0x01, rest @ ..] => {
                (i32::from_le_bytes([*a, *b, *c, *d]), rest)
            }
            _ => return None,
        };
        // mov m(%rax), %rbx; mov curg(%rbx), %rax
        let [0x48, 0x8b, 0x58, M, 0x48, 0x8b, 0x83, a, b, c, d, rest @ ..] = rest else { return None };
        let curg = u32::from_le_bytes([*a, *b, *c, *d]);
        // mov %rax, %fs:n or %fs:(%rcx); mov sched.sp(%rax), %rsp
        let back = match rest {
            [0x64, 0x48, 0x89, 0x04, 0x25, _, _, _, _, back @ ..] | [0x64, 0x48, 0x89, 0x01, back @ ..] => back,
            _ => return None,
        };
        let _follows = back.strip_prefix(&[0x48, 0x8b, 0x60, SCHED_SP])?;
        let range = 1 << (THREAD_OFFSET_BITS - 1);
        let (thread_offset_by_8, curg_by_8) = (thread_offset / 8, curg / 8);
        let fits = thread_offset % 8 == 0 && curg.is_multiple_of(8) && curg_by_8 <= MAX_CURG_BY_8;
        (fits && (-range..range).contains(&thread_offset_by_8)).then_some(Self { thread_offset_by_8, curg_by_8 })
    }

    fn rule(self, flags: u8) -> Rule {
        Rule::x86_64_goroutine(flags, self.thread_offset_by_8, self.curg_by_8)
    }
}

/// The rules of a function with this name and code, `length` bytes long, that leaves the goroutine's stack without a
/// frame; `None` for others.
pub(super) fn rules(name: &[u8], code: &[u8], path: Option<Path>) -> Option<Vec<Until>> {
    let rule = |flags| path.map_or(Rule::UNSUPPORTED, |path| path.rule(flags));
    let left = u32::try_from(sets_rsp(code)?).ok()?;
    let length = u32::try_from(code.len()).ok()?;
    match name {
        // Before it goes over, all is saved; it goes on where it left when the saved sp is rsp again.
        SYSTEMSTACK => {
            let back = behind(code, left, &[0x48, 0x8b, 0x60, (g::SCHED_SP * 8) as u8])?;
            Some(vec![(left, FRAMELESS), (back, rule(0)), (length, FRAMELESS)])
        }
        MORESTACK => Some(vec![(left, FRAMELESS), (length, rule(profiler_common::row::AT_SAVED_PC))]),
        ASMCGOCALL => asmcgocall(code, left, rule(0)),
        _ => None,
    }
}

/// C may call Go, which saves other things in the goroutine: `asmcgocall` keeps on the stack where it came from. On a
/// thread's stack already, its code is another one, behind the first return.
fn asmcgocall(code: &[u8], left: u32, saved: Rule) -> Option<Vec<Until>> {
    // mov %rdi, 48(%rsp); mov stack.hi(%rdi), %rdi; sub %rdx, %rdi; mov %rdi, 40(%rsp)
    const KEEP: [u8; 17] =
        [0x48, 0x89, 0x7c, 0x24, 0x30, 0x48, 0x8b, 0x7f, 0x08, 0x48, 0x29, 0xd7, 0x48, 0x89, 0x7c, 0x24, 0x28];
    // mov %rsi, %rsp
    const BACK: [u8; 3] = [0x48, 0x89, 0xf4];
    // ret; sub $64, %rsp
    const STAY: [u8; 5] = [0xc3, 0x48, 0x83, 0xec, 0x40];
    // mov %rdx, 40(%rsp)
    const KEEP_RSP: [u8; 5] = [0x48, 0x89, 0x54, 0x24, 0x28];
    let kept = behind(code, left, &KEEP)?;
    let back = behind(code, kept, &BACK)?;
    let stays = behind(code, back, &STAY)?;
    let rsp_kept = behind(code, stays, &KEEP_RSP)?;
    let rsp_back = behind(code, rsp_kept, &BACK)?;
    let length = u32::try_from(code.len()).ok()?;
    Some(vec![
        (left, FRAMELESS),
        (kept, saved),
        (back, KEPT),
        (stays, FRAMELESS),
        (rsp_kept, Rule::UNSUPPORTED),
        (rsp_back, SAME_STACK),
        (length, FRAMELESS),
    ])
}

/// Where `bytes` end that are in the code at `from` or behind.
fn behind(code: &[u8], from: u32, bytes: &[u8]) -> Option<u32> {
    let at = code.get(from as usize..)?.windows(bytes.len()).position(|window| window == bytes)?;
    u32::try_from(at + bytes.len()).ok()?.checked_add(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of `systemstack`, with what loads and stores the thread's `g`.
    fn way_back(load: &[u8], store: &[u8], curg: u32) -> Vec<u8> {
        let m = [0x48, 0x8b, 0x58, 0x30, 0x48, 0x8b, 0x83].as_slice();
        [&[0xff, 0xd7], load, m, &curg.to_le_bytes(), store, &[0x48, 0x8b, 0x60, 0x38, 0xc3]].concat()
    }

    fn direct(thread_offset: i32) -> [Vec<u8>; 2] {
        [0x8b, 0x89].map(|code| [&[0x64, 0x48, code, 0x04, 0x25], thread_offset.to_le_bytes().as_slice()].concat())
    }

    fn at(rules: &[Until], pc: usize) -> Rule {
        rules.iter().find(|(until, _)| pc < *until as usize).unwrap().1
    }

    #[test]
    fn the_way_to_the_goroutine_is_read_from_systemstack() {
        let [load, store] = direct(-8);
        let found = Some(Path { thread_offset_by_8: -1, curg_by_8: 24 });
        assert_eq!(Path::of_systemstack(&way_back(&load, &store, 0xc0)), found);
        let position_independent = [0x48, 0xc7, 0xc1, 0xf8, 0xff, 0xff, 0xff, 0x64, 0x48, 0x8b, 0x01];
        assert_eq!(Path::of_systemstack(&way_back(&position_independent, &[0x64, 0x48, 0x89, 0x01], 0xc0)), found);
        // mov n(%rip), %rcx: where the variable is only the loader knows.
        let shared = [0x48, 0x8b, 0x0d, 1, 2, 3, 4, 0x64, 0x48, 0x8b, 0x01];
        assert_eq!(Path::of_systemstack(&way_back(&shared, &[0x64, 0x48, 0x89, 0x01], 0xc0)), None);
        for (thread_offset, curg) in [(-4, 0xc0), (-8, 0xc4), (-8200, 0xc0), (8192, 0xc0), (-8, 1024)] {
            let [load, store] = direct(thread_offset);
            assert_eq!(Path::of_systemstack(&way_back(&load, &store, curg)), None, "{thread_offset} {curg}");
        }
        let whole = way_back(&load, &store, 0xc0);
        for cut in 0..whole.len() - 1 {
            assert_eq!(Path::of_systemstack(&whole[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn systemstack_is_on_the_other_stack_between_its_two_changes() {
        let [load, store] = direct(-8);
        let end = way_back(&load, &store, 0xc0);
        // mov %rbx, %rsp; call *%rdi comes first.
        let code = [&[0x90, 0x90, 0x48, 0x89, 0xdc], end.as_slice(), &[0xcc; 8]].concat();
        let path = Path::of_systemstack(&code);
        let rules = rules(SYSTEMSTACK, &code, path).unwrap();
        let away = Rule::x86_64_goroutine(0, -1, 24);
        let back = 5 + end.len() - 1;
        assert_eq!(
            [0, 1, 2, 5, back - 1, back].map(|pc| at(&rules, pc)),
            [FRAMELESS, FRAMELESS, away, away, away, FRAMELESS]
        );
        let unknown = super::rules(SYSTEMSTACK, &code, None).unwrap();
        assert_eq!(at(&unknown, 5), Rule::UNSUPPORTED);
        assert_eq!(super::rules(b"runtime.other", &code, path), None);
    }

    #[test]
    fn asmcgocall_keeps_where_it_came_from() {
        let away = [0x48, 0x8b, 0x66, 0x38, 0x48, 0x83, 0xec, 0x40].as_slice();
        let keep: &[u8] =
            &[0x48, 0x89, 0x7c, 0x24, 0x30, 0x48, 0x8b, 0x7f, 0x08, 0x48, 0x29, 0xd7, 0x48, 0x89, 0x7c, 0x24, 0x28];
        let back: &[u8] = &[0xff, 0xd0, 0x48, 0x89, 0xf4, 0xc3];
        let stay: &[u8] = &[0x48, 0x83, 0xec, 0x40, 0x48, 0x89, 0x54, 0x24, 0x28];
        let code = [away, keep, back, stay, back].concat();
        let rules = rules(ASMCGOCALL, &code, None).unwrap();
        let (kept, returned) = (8 + 17, 8 + 17 + 5);
        assert_eq!(
            [0, kept - 1, kept, returned - 1, returned, returned + 4].map(|pc| at(&rules, pc)),
            [Rule::UNSUPPORTED, Rule::UNSUPPORTED, KEPT, KEPT, FRAMELESS, FRAMELESS]
        );
        let stays = returned + 5;
        assert_eq!(
            [stays, stays + 5, stays + 9, stays + 10].map(|pc| at(&rules, pc)),
            [Rule::UNSUPPORTED, SAME_STACK, SAME_STACK, FRAMELESS]
        );
        for cut in 0..code.len() {
            let _no_panic = super::rules(ASMCGOCALL, &code[..cut], None);
        }
    }
}
