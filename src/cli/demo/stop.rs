//! The end of the demo: a flag that threads can wait for.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Requests may fail for this long before the demo knows that the server has ended.
const NEWS_DELAY: Duration = Duration::from_millis(500);

/// Shared by the worker and the parts of the school. Once set, it stays set.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<Shared>);

#[derive(Default)]
struct Shared {
    is_set: Mutex<bool>,
    change: Condvar,
}

impl Stop {
    /// Ends the demo, and wakes all waiting threads.
    pub(super) fn set(&self) {
        *self.lock() = true;
        self.0.change.notify_all();
    }

    /// Waits for this duration or until the demo ends. Returns whether to continue.
    pub(super) fn rest(&self, duration: Duration) -> bool {
        let going_on = |is_set: &mut bool| !*is_set;
        let waited = self
            .0
            .change
            .wait_timeout_while(self.lock(), duration, going_on);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether an error is worth reporting: it is not if the server has ended.
    pub(super) fn is_unexpected(&self) -> bool {
        self.rest(NEWS_DELAY)
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.0.is_set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_rests_is_woken_by_the_end_and_rests_no_more() {
        let stop = Stop::default();
        assert!(stop.rest(Duration::ZERO));
        let resting = std::thread::spawn({
            let stop = stop.clone();
            move || stop.rest(Duration::MAX)
        });
        stop.set();
        assert!(!resting.join().unwrap());
        assert!(!stop.rest(Duration::MAX));
    }
}
