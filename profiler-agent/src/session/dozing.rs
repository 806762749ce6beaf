//! A future beside others in one task: it is polled only when it is what woke the task.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Knows whether the future has to be polled.
pub(super) struct Dozing {
    state: Arc<State>,
    waker: Waker,
}

struct State {
    is_woken: AtomicBool,
    /// Whom to wake.
    task: Mutex<Waker>,
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.task.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
    }
}

impl Dozing {
    /// For a future that was not polled yet.
    pub(super) fn new() -> Self {
        let task = Mutex::new(Waker::noop().clone());
        let state = Arc::new(State { is_woken: AtomicBool::new(true), task });
        Self { waker: Waker::from(Arc::clone(&state)), state }
    }

    /// Polls the future if it was woken since the last time. Always the same one.
    pub(super) fn poll<F: Future>(&self, future: Pin<&mut F>, context: &Context<'_>) -> Poll<F::Output> {
        // Before the flag is read: a waker that came before goes to this task then, or is found here.
        self.state.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(context.waker());
        if !self.state.is_woken.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        future.poll(&mut Context::from_waker(&self.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn it_is_polled_at_first_and_when_it_was_woken() {
        let (notify, polls, dozing) = (Notify::new(), Cell::new(0), Dozing::new());
        let mut notified = pin!(notify.notified());
        let mut future = pin!(poll_fn(|context| {
            polls.set(polls.get() + 1);
            notified.as_mut().poll(context)
        }));
        let woken = Arc::new(State { is_woken: AtomicBool::new(false), task: Mutex::new(Waker::noop().clone()) });
        let task = Waker::from(Arc::clone(&woken));
        let mut poll = || dozing.poll(future.as_mut(), &Context::from_waker(&task));
        assert!(poll().is_pending());
        assert!(poll().is_pending());
        assert_eq!(polls.get(), 1, "nobody woke it");
        notify.notify_one();
        assert!(woken.is_woken.load(Ordering::Acquire), "its task is woken with it");
        assert!(poll().is_ready());
        assert_eq!(polls.get(), 2);
    }
}
