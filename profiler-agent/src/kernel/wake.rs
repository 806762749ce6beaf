//! Waiting for the kernel's rings.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::epoll;
use rustix::time::Timespec;
use tokio::io::unix::AsyncFd;

use super::records::Records;
use super::sideband::Sideband;

/// One descriptor that becomes readable when any of the kernel's rings does.
pub struct Wake {
    all: AsyncFd<OwnedFd>,
}

impl Wake {
    /// Waits on the samples' ring and on the sideband rings of all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses an epoll descriptor.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn on(records: &Records, sideband: &Sideband) -> io::Result<Self> {
        let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        for fd in sideband.fds().chain([records.fd()]) {
            epoll::add(&all, fd, epoll::EventData::new_u64(0), flags)?;
        }
        // SAFETY: `AsyncFd` owns the descriptor, so it stays open as long as it is registered.
        let all = unsafe { AsyncFd::register(all) }?;
        Ok(Self { all })
    }

    /// Waits until one of the rings wants to be read. Cancel-safe.
    pub async fn woken(&self) {
        if let Ok(mut ready) = self.all.readable().await {
            ready.clear_ready();
        }
        // Takes the events off the list of the ready, so that the next one wakes us again. What
        // stays on it is found at the next tick.
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
        let _ready = epoll::wait(&self.all, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    }
}
