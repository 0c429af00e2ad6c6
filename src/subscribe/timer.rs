//! Who sees to it that a subscription is polled in time. A transport with a timer of its own needs no second one.

use std::task::Context;

use tokio::time::Instant;

use crate::alarm::Alarm;

/// When a subscription must be polled again, even if nothing has arrived.
pub(super) enum Timer {
    /// It wakes its task then.
    Own(Alarm),
    /// Its caller polls it then.
    Callers(Instant),
}

impl Timer {
    pub(super) fn set(&mut self, due: Instant) {
        match self {
            Timer::Own(alarm) => alarm.set(due),
            Timer::Callers(own) => *own = due,
        }
    }

    /// Whether it is due at `now`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        match self {
            Timer::Own(alarm) => alarm.poll(cx, now),
            Timer::Callers(due) => *due <= now,
        }
    }

    /// When the caller must poll. `None` if the subscription wakes its task.
    pub(super) fn callers(&self) -> Option<Instant> {
        match self {
            Timer::Own(_) => None,
            Timer::Callers(due) => Some(*due),
        }
    }
}
