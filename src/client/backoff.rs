//! Pauses before requests are repeated.

use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Pauses of 1, 2, 4, … 30 seconds with jitter, so that clients do not all return at the same moment.
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next: PAUSE_MIN }
    }
}

impl Backoff {
    /// Starts over at the shortest pause.
    pub(super) fn reset(&mut self) {
        self.next = PAUSE_MIN;
    }

    /// Returns the next pause, which is not shorter than `at_least`.
    pub(super) fn pause(&mut self, at_least: Duration) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        jittered(pause.max(at_least), 1.5)
    }
}

/// Returns a random duration between this one and `max_factor` times as much.
pub(super) fn jittered(pause: Duration, max_factor: f64) -> Duration {
    pause.mul_f64(1.0 + (max_factor - 1.0) * fastrand::f64())
}
