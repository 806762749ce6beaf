//! The settings that user space writes into the object before it is loaded; see
//! `profiler_common::settings::Setting` for what each means.

macro_rules! settings {
    ($($name:ident $function:ident),+ $(,)?) => {$(
        #[unsafe(no_mangle)]
        static $name: u64 = 0;

        /// The setting of this name.
        #[allow(dead_code, reason = "each architecture reads its own settings")]
        #[inline(always)]
        pub(crate) fn $function() -> u64 {
            // SAFETY: a live static of this object. Volatile, because user space replaces the
            // value in the object after compilation.
            unsafe { core::ptr::read_volatile(&raw const $name) }
        }
    )+};
}

settings! {
    SAMPLE_ALL sample_all,
    FOLLOW_CHILDREN follow_children,
    HAS_TASK_PT_REGS has_task_pt_regs,
    TASK_STACK task_stack,
    TASK_MM task_mm,
    MM_END_CODE mm_end_code,
    TASK_TGID task_tgid,
    TASK_PID task_pid,
    TASK_COMM task_comm,
    TASK_NVCSW task_nvcsw,
    TASK_NIVCSW task_nivcsw,
    TASK_ON_CPU task_on_cpu,
    TASK_FSBASE task_fsbase,
    TASK_SIGNAL task_signal,
    SIGNAL_LIVE signal_live,
    STACK_TO_PT_REGS stack_to_pt_regs,
    POINTER_AUTH_MASK pointer_auth_mask,
    WAKE_UP_BYTES wake_up_bytes,
    UNWIND unwind,
    WHOLE_STACK whole_stack,
}
