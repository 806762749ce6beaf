//! Every count of the profiler, by name: the one list behind the kernel's counters, the quality
//! section of a profile and the documentation.

/// What a count says about a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// A sample that was taken: one run of the kernel program.
    Taken,
    /// A sample that was taken and left out because nobody asked for it.
    Filtered,
    /// A sample that was taken and lost.
    Lost,
    /// Something worth knowing; the sample, if there is one, is also counted elsewhere.
    Event,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident $kind:ident $text:literal;)+) => {
        /// A count that the kernel programs keep, per CPU.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Counter {
            /// Every counter, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What it says about a sample.
            #[must_use]
            pub const fn kind(self) -> CounterKind {
                match self { $(Self::$name => CounterKind::$kind,)+ }
            }

            /// What it counts, in a sentence.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

counters! {
    /// Runs of the sampling program.
    SamplesTaken Taken "samples_taken";
    /// Samples of the idle task.
    FilteredIdle Filtered "filtered_idle";
    /// Samples of processes that were not asked for.
    FilteredProcess Filtered "filtered_process";
    /// Samples of processes of which is not known whether they were asked for: they were gone before their control
    /// group, or what they are, could be looked at.
    FilteredUnknown Filtered "filtered_unknown";
    /// Samples that found the ring buffer full.
    LostRingFull Lost "lost_ring_full";
    /// Samples that found no scratch memory: a map look-up that cannot fail has failed.
    LostNoScratch Lost "lost_no_scratch";
    /// Samples whose unwinder could not be called: a tail call failed.
    LostTailCall Lost "lost_tail_call";
    /// Records written to the ring buffer.
    SamplesDelivered Event "samples_delivered";
    /// Processes that are not followed because the table of followed ones is full.
    FollowTableFull Event "follow_table_full";
    /// Range tables whose header named another process or state.
    StaleRangeTable Event "stale_range_table";
    /// Records that the ring buffer delivered and user space could not decode.
    LostUndecodable Lost "lost_undecodable";
    /// Samples that waited for an unwind table when too many were waiting: written with the frames they had.
    WaitingOverflow Event "waiting_overflow";
    /// Sideband records (mmap, exec, fork, exit) that the kernel said it dropped: /proc was read again. It says
    /// so with the next record of the same CPU that fits.
    SidebandLost Event "sideband_lost";
    /// How often a ring of sideband records was found full or damaged: /proc was read again.
    SidebandFull Event "sideband_full";
    /// Sideband records that came when later ones were applied: samples in between may miss a mapping.
    SidebandLate Event "sideband_late";
    /// Samples taken that nothing else tells of: a mistake of the profiler.
    LostUnaccounted Lost "lost_unaccounted";
    /// Samples written, filtered or lost that were not taken: counted twice, a mistake of the profiler.
    SurplusSamples Event "surplus_samples";
    /// Executables that could not be opened or read.
    ExecutableUnreadable Event "executable_unreadable";
    /// Executables whose ELF or CFI is corrupt; what can be read of it is used.
    ExecutableCorrupt Event "executable_corrupt";
    /// Executables of a kind that is not unwound: 32-bit ones, those of another architecture.
    ExecutableUnsupported Event "executable_unsupported";
    /// Executables without a table because the tables' memory is used up by those in use.
    TablesFull Event "tables_full";
    /// Tables of executables that made room for others; they are built again when a sample needs them.
    TablesEvicted Event "tables_evicted";
    /// Damaged tables in the cache on disk; they were built anew.
    TableCacheDamaged Event "table_cache_damaged";
    /// Processes with more mappings of code than are noted, or than fit into a range table.
    RangesTruncated Event "ranges_truncated";
    /// Processes whose new range table found no room: the old one is used on.
    RangesFull Event "ranges_full";
    /// Restarts of a worker process that crashed, hung or used too much memory.
    WorkerRestarts Event "worker_restarts";
    /// Locations whose symbols could not be looked up.
    SymbolizeFailed Event "symbolize_failed";
    /// Debug files that no debuginfod server sent whole and in time, and that not all of them lack.
    DebuginfodFailed Event "debuginfod_failed";
}

/// The number of counters.
pub const COUNT: usize = Counter::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_numbers_are_indexes() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            assert!(Counter::ALL[..index].iter().all(|other| other.name() != counter.name()));
            assert!(counter.help().trim().ends_with('.'), "{}", counter.name());
        }
    }
}
