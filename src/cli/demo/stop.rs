//! When it is time to end: a flag that threads can rest on.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a server's end may be felt (a request fails) before it is known here.
const NEWS_DELAY: Duration = Duration::from_millis(500);

/// Shared by everything that the demo does in addition to serving. Once set it stays so.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<Shared>);

#[derive(Default)]
struct Shared {
    is_set: Mutex<bool>,
    change: Condvar,
}

impl Stop {
    /// It is time to end: wakes all who rest.
    pub(super) fn set(&self) {
        *self.lock() = true;
        self.0.change.notify_all();
    }

    /// Rests so long, but not beyond the end. Whether to go on.
    pub(super) fn rest(&self, duration: Duration) -> bool {
        let going_on = |is_set: &mut bool| !*is_set;
        let waited = self
            .0
            .change
            .wait_timeout_while(self.lock(), duration, going_on);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether an error that was just met needs telling: not if it is only the server's end.
    pub(super) fn is_a_surprise(&self) -> bool {
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
