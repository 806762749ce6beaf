//! The settings of the kernel programs: constants that user space writes into the object before it
//! is loaded, so the verifier and the JIT see them as constants.
//!
//! Every setting is a `u64`. Offsets are in bytes and come from `/sys/kernel/btf/vmlinux`.

macro_rules! settings {
    ($($(#[$doc:meta])+ $name:ident;)+) => {
        /// The settings' symbols in the object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(non_camel_case_types, reason = "they are the symbols in the object")]
        pub enum Setting {
            $($(#[$doc])+ $name,)+
        }

        impl Setting {
            /// Every setting.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The symbol.
            #[must_use]
            pub const fn symbol(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }
        }
    };
}

settings! {
    /// 1: every process is sampled. 0: only those in the map of followed processes.
    SAMPLE_ALL;
    /// 1: children of followed processes are followed.
    FOLLOW_CHILDREN;
    /// 1: the kernel has `bpf_task_pt_regs` and `bpf_get_current_task_btf` (5.15).
    HAS_TASK_PT_REGS;
    /// `task_struct.stack`.
    TASK_STACK;
    /// `task_struct.mm`.
    TASK_MM;
    /// `mm_struct.end_code`: 0 from the moment in which an exec makes a thread use this memory until the new
    /// program is mapped, just before its registers are set (`begin_new_exec` and `load_elf_binary`,
    /// linux/fs/exec.c and linux/fs/binfmt_elf.c).
    MM_END_CODE;
    /// `task_struct.tgid`.
    TASK_TGID;
    /// `task_struct.pid`.
    TASK_PID;
    /// `task_struct.comm`.
    TASK_COMM;
    /// `task_struct.nvcsw`: how often it went off the CPU by itself.
    TASK_NVCSW;
    /// `task_struct.nivcsw`: how often it was made to.
    TASK_NIVCSW;
    /// `task_struct.on_cpu`: 1 while a CPU runs it. 0 when there is no such member, on kernels for one CPU.
    TASK_ON_CPU;
    /// x86_64: `task_struct.thread.fsbase`. Of a thread that runs it is what `arch_prctl` or `clone` set
    /// (`do_arch_prctl_64`, linux/arch/x86/kernel/process_64.c), not what the instruction `wrfsbase` did since it last
    /// began to run.
    TASK_FSBASE;
    /// `task_struct.signal`.
    TASK_SIGNAL;
    /// `signal_struct.live`: threads that have not begun to exit.
    SIGNAL_LIVE;
    /// Bytes from `task_struct.stack` to the user registers, where `bpf_task_pt_regs` is missing:
    /// `THREAD_SIZE - sizeof(struct pt_regs)`.
    STACK_TO_PT_REGS;
    /// Bits that are no address in a return address (aarch64 pointer authentication), else 0.
    POINTER_AUTH_MASK;
    /// Unread bytes in the ring buffer from which on user space is woken.
    WAKE_UP_BYTES;
    /// 0: the sample program does everything but unwind (a floor to measure against).
    UNWIND;
    /// 1: every record has the registers and the stack that the sample began with, so that its
    /// unwinding can be checked.
    WHOLE_STACK;
}
