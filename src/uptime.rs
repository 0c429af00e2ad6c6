//! The clock that silence is measured with: time during which the server was up, over all its starts together.
//!
//! A worker or a device cannot be blamed for what it said while nobody was there to hear it, and a restart must not
//! renew anything. So silence is the uptime that has passed since a subject was last heard of: downtime does not count, and all
//! other time does. The wall clock, which may be set back or forth, has no part in it, and neither has the time during
//! which the machine was suspended.
//!
//! The store saves the uptime with every commit and every [`UPTIME_PERIOD`](crate::config::UPTIME_PERIOD) without one:
//! a server that is killed loses no more of it.

use std::ops::Add;
use std::time::{Duration, Instant};

/// A moment in a database's uptime: milliseconds since its first start, without the time between an end and a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uptime(u64);

impl Uptime {
    /// The moment after so many milliseconds.
    pub const fn from_millis(millis: u64) -> Uptime {
        Uptime(millis)
    }

    /// Milliseconds since the first start.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// How much of it has passed since `earlier`. Nothing if that lies ahead: a server that was killed may have lost
    /// the last moments before.
    pub fn since(self, earlier: Uptime) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The moment that lies so far back, or the first start.
    pub fn before(self, by: Duration) -> Uptime {
        Uptime(self.0.saturating_sub(millis(by)))
    }
}

impl Add<Duration> for Uptime {
    type Output = Uptime;

    fn add(self, more: Duration) -> Uptime {
        Uptime(self.0.saturating_add(millis(more)))
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Tells the uptime: what was saved, and the monotonic time since this start.
#[derive(Debug, Clone, Copy)]
pub struct UptimeClock {
    saved: Uptime,
    started: Instant,
    was_cut_off: bool,
}

impl UptimeClock {
    /// Goes on from what was saved. `was_cut_off` says that the server did not end in good order before.
    pub fn resume(saved: Uptime, was_cut_off: bool) -> UptimeClock {
        UptimeClock {
            saved,
            started: Instant::now(),
            was_cut_off,
        }
    }

    /// The present moment.
    pub fn now(&self) -> Uptime {
        self.saved + self.started.elapsed()
    }

    /// Whether the server did not end in good order before: what it had heard and not written down yet is lost.
    pub fn was_cut_off(&self) -> bool {
        self.was_cut_off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_goes_on_from_what_was_saved_and_never_backwards() {
        let clock = UptimeClock::resume(Uptime::from_millis(5_000), true);
        let first = clock.now();
        assert!(first >= Uptime::from_millis(5_000) && clock.now() >= first);
        assert!(clock.was_cut_off());
    }

    #[test]
    fn what_lies_ahead_is_no_silence() {
        let heard = Uptime::from_millis(1_500);
        assert_eq!(Uptime::from_millis(1_000).since(heard), Duration::ZERO);
        assert_eq!(
            (heard + Duration::from_secs(2)).since(heard),
            Duration::from_secs(2)
        );
        assert_eq!(heard.before(Duration::from_secs(2)), Uptime::default());
        assert_eq!(
            heard + Duration::MAX,
            Uptime::from_millis(u64::MAX),
            "it does not wrap"
        );
    }
}
