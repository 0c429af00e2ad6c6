//! Tells a task why it was woken.
//!
//! A connection's task is woken by its mailbox far more often than by its socket, and polling the socket takes locks
//! that all connections share. So the socket and other rare sources share a separate waker, which records that it was
//! woken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

/// The waker for rare sources. See the module documentation.
pub(super) struct Attention {
    state: Arc<State>,
    /// The waker in `state`, so that its lock is taken only when the task changes.
    task: Waker,
}

struct State {
    is_woken: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Set the flag before the task is woken. Otherwise the task could check it too early, and miss the wake-up.
        self.is_woken.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        task.wake_by_ref();
    }
}

impl Attention {
    /// Creates a waker that counts as woken.
    pub(super) fn new() -> Attention {
        let state = Arc::new(State {
            is_woken: AtomicBool::new(true),
            task: Mutex::new(Waker::noop().clone()),
        });
        Attention {
            task: Waker::noop().clone(),
            state,
        }
    }

    /// Returns the waker. It wakes the task that last called [`Attention::take`].
    pub(super) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.state))
    }

    /// Whether it was woken since the last call.
    pub(super) fn take(&mut self, cx: &Context<'_>) -> bool {
        // Store the waker before the flag is read: a wake-up in between then wakes this task again.
        if !self.task.will_wake(cx.waker()) {
            self.task.clone_from(cx.waker());
            let task = self.state.task.lock();
            task.unwrap_or_else(PoisonError::into_inner)
                .clone_from(cx.waker());
        }
        // Most polls find no wake-up, and reading is cheaper than replacing.
        self.state.is_woken.load(Ordering::Relaxed)
            && self.state.is_woken.swap(false, Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_up_is_taken_once_by_the_task_that_called_take_last() {
        let mut attention = Attention::new();
        let tasks = [Arc::new(Count::default()), Arc::new(Count::default())];
        let [first, second] = tasks.clone().map(Waker::from);
        assert!(
            attention.take(&Context::from_waker(&first)),
            "at the beginning"
        );
        assert!(!attention.take(&Context::from_waker(&second)));
        attention.waker().wake();
        assert_eq!(tasks.map(|task| task.0.load(Ordering::SeqCst)), [0, 1]);
        assert!(attention.take(&Context::from_waker(&second)));
        assert!(!attention.take(&Context::from_waker(&second)));
    }
}
