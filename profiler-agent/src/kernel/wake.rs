//! Waiting for the kernel's rings.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use super::records::Records;
use super::sideband::Sideband;

/// How long records gather before the first one is read: those of an exec come within that.
const GATHER: Duration = Duration::from_millis(2);

/// How long sideband records may gather from then on, as long as there is hurry: a process that lives for 15 ms has to
/// be looked at, or one that has a table maps other code.
const REST: Duration = Duration::from_millis(10);

/// How long where there was none in the last [`HURRY`] rounds.
const LONG_REST: Duration = Duration::from_millis(25);

/// Rounds in which there is more of it, after one with hurry.
const HURRY: u32 = 100;

/// Tells when the kernel's rings are to be read: soon after the first record, and then at intervals as long as
/// more come. Meanwhile no record wakes us, and the timer of a runtime would cost more than this one.
pub struct Wake {
    rings: OwnedFd,
    /// Readable when `rings` is, while we wait for that.
    gate: AsyncFd<OwnedFd>,
    is_open: Cell<bool>,
    timer: AsyncFd<OwnedFd>,
    is_ticking: Cell<bool>,
    /// Rounds that are to be short from now on.
    hurry: Cell<u32>,
}

impl Wake {
    /// Waits on the samples' ring and on the sideband rings of all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses an epoll descriptor or a timer.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn on(records: &Records, sideband: &Sideband) -> io::Result<Self> {
        let rings = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in sideband.fds().chain([records.fd()]) {
            epoll::add(&rings, fd, NO_DATA, NEWS)?;
        }
        let gate = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&gate, &rings, NO_DATA, epoll::EventFlags::empty())?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // SAFETY: `AsyncFd` owns the descriptor, so it stays open as long as it is registered.
        let gate = unsafe { AsyncFd::register(gate) }?;
        // SAFETY: as above.
        let timer = unsafe { AsyncFd::register(timer) }?;
        Ok(Self {
            rings,
            gate,
            is_open: Cell::new(false),
            timer,
            is_ticking: Cell::new(false),
            hurry: Cell::new(HURRY),
        })
    }

    /// Waits until the rings are to be read. Cancel-safe.
    pub async fn due(&self, sideband: &Sideband) {
        if !self.is_ticking.get() {
            self.woken(sideband).await;
            self.tick(GATHER, self.rest());
        }
        if let Ok(mut ready) = self.timer.readable().await {
            ready.clear_ready();
        }
        // Without that it does not go on (`timerfd_read_iter` in linux/fs/timerfd.c).
        let _times = rustix::io::read(self.timer.get_ref(), &mut [0; 8]);
    }

    /// The rings were read, and there is hurry with what was in them, or not.
    pub fn pace(&self, hurry: bool) {
        let before = self.rest();
        self.hurry.set(if hurry { HURRY } else { self.hurry.get().saturating_sub(1) });
        if self.is_ticking.get() && self.rest() != before {
            self.tick(self.rest(), self.rest());
        }
    }

    fn rest(&self) -> Duration {
        if self.hurry.get() > 0 { REST } else { LONG_REST }
    }

    /// Nothing was in the rings: from now on the next record tells when they are to be read.
    pub fn calm(&self) {
        self.tick(Duration::ZERO, Duration::ZERO);
    }

    /// Waits until one of the rings wants to be read, or returns at once when records of the sideband wait.
    async fn woken(&self, sideband: &Sideband) {
        self.open(true);
        // To open the gate takes what a ring had to tell (`perf_poll` in linux/kernel/events/core.c).
        if !sideband.has_records()
            && let Ok(mut ready) = self.gate.readable().await
        {
            ready.clear_ready();
        }
        self.open(false);
        // Takes the events off the list of the ready, so that the next one wakes us again. What
        // stays on it is found at the next tick.
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: NO_DATA }; 64];
        let _ready = epoll::wait(&self.rings, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    }

    fn open(&self, open: bool) {
        let flags = if open { NEWS } else { epoll::EventFlags::empty() };
        if self.is_open.replace(open) != open {
            // No valid call of this kind fails.
            let _refused = epoll::modify(self.gate.get_ref(), &self.rings, NO_DATA, flags);
        }
    }

    /// Starts the timer, or stops it where the times are zero.
    fn tick(&self, first: Duration, then: Duration) {
        let spec = |time: Duration| Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
        let times = Itimerspec { it_value: spec(first), it_interval: spec(then) };
        // No valid call of this kind fails.
        let _refused = timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &times);
        self.is_ticking.set(!first.is_zero());
    }
}

const NO_DATA: epoll::EventData = epoll::EventData::new_u64(0);
const NEWS: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ET);
