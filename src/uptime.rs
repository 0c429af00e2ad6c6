//! The clock that silence is measured with: time during which the server listened, over all its starts together.
//!
//! A worker or a device cannot be blamed for what it said while nobody was there to hear it, and a restart must not
//! renew anything. So silence is the uptime that has passed since a subject was last heard of: downtime does not count, and all
//! other time does. The wall clock, which may be set back or forth, has no part in it.
//!
//! A process that is stopped, starved of the processor, or on a machine that is suspended does not listen either, whatever the
//! monotonic clock says. So a task looks at this clock every [`UPTIME_TICK`](crate::config::UPTIME_TICK), and time
//! counts only from one look to the next. Where they are further apart than [`UPTIME_GAP`](crate::config::UPTIME_GAP), nobody ran: it is
//! downtime. What was said meanwhile waits in the sockets, so the clock stands still for a while longer and nobody is judged
//! ([`UptimeClock::is_catching_up`]) until it has been heard.
//!
//! The store saves the uptime with every commit and every [`UPTIME_PERIOD`](crate::config::UPTIME_PERIOD) without one:
//! a server that is killed loses no more of it.

use std::ops::Add;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A moment in a database's uptime: milliseconds since its first start, without those in which nobody listened.
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

/// What tells a process that ran from one that did not.
#[derive(Debug, Clone, Copy)]
pub struct Gaps {
    /// The longest time between two looks at the clock during which the process ran.
    pub longest_tick: Duration,
    /// How long at most the clock stands still after a longer one.
    pub catch_up: Duration,
}

/// Tells the uptime: what was saved, and what has passed since this start. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct UptimeClock {
    ticks: Arc<Mutex<Ticks>>,
    was_cut_off: bool,
}

impl UptimeClock {
    /// Goes on from what was saved. `was_cut_off` says that the server did not end in good order before.
    pub fn resume(saved: Uptime, was_cut_off: bool, gaps: Gaps) -> UptimeClock {
        let ticks = Ticks::begin(saved, gaps, Instant::now());
        UptimeClock {
            ticks: Arc::new(Mutex::new(ticks)),
            was_cut_off,
        }
    }

    /// The present moment. To ask is to look at the clock.
    pub fn now(&self) -> Uptime {
        self.look().now()
    }

    /// Whether the process has not run, and what was said meanwhile may not have been heard yet: nobody is to be judged.
    pub fn is_catching_up(&self) -> bool {
        self.look().is_catching_up()
    }

    /// Whether the server did not end in good order before: what it had heard and not written down yet is lost.
    pub fn was_cut_off(&self) -> bool {
        self.was_cut_off
    }

    fn look(&self) -> MutexGuard<'_, Ticks> {
        let mut ticks = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        ticks.look(Instant::now());
        ticks
    }
}

/// The arithmetic of the clock.
#[derive(Debug)]
struct Ticks {
    saved: Uptime,
    gaps: Gaps,
    /// Time since the start in which the process listened.
    listened: Duration,
    looked_at: Instant,
    /// The clock stands still until then.
    hears_from: Instant,
}

impl Ticks {
    fn begin(saved: Uptime, gaps: Gaps, now: Instant) -> Ticks {
        Ticks {
            saved,
            gaps,
            listened: Duration::ZERO,
            looked_at: now,
            hears_from: now,
        }
    }

    fn look(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.looked_at);
        if passed > self.gaps.longest_tick {
            let caught_up = now + passed.min(self.gaps.catch_up);
            self.hears_from = self.hears_from.max(caught_up);
        } else {
            let from = self.looked_at.max(self.hears_from);
            self.listened += now.saturating_duration_since(from);
        }
        self.looked_at = self.looked_at.max(now);
    }

    fn now(&self) -> Uptime {
        self.saved + self.listened
    }

    fn is_catching_up(&self) -> bool {
        self.looked_at < self.hears_from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAPS: Gaps = Gaps {
        longest_tick: Duration::from_millis(500),
        catch_up: Duration::from_millis(2_000),
    };

    /// What is told, in milliseconds, at looks so many milliseconds after the start.
    fn told(looks: impl IntoIterator<Item = u64>) -> Vec<(u64, bool)> {
        let start = Instant::now();
        let mut ticks = Ticks::begin(Uptime::from_millis(1_000), GAPS, start);
        let mut tell = |millis| {
            ticks.look(start + Duration::from_millis(millis));
            (ticks.now().millis(), ticks.is_catching_up())
        };
        looks.into_iter().map(&mut tell).collect()
    }

    #[test]
    fn a_process_that_did_not_run_did_not_listen() {
        let waking = [100, 6_100, 6_500, 7_000, 7_500, 8_000, 8_200];
        assert_eq!(
            told(waking),
            [
                (1_100, false),
                (1_100, true),
                (1_100, true),
                (1_100, true),
                (1_100, true),
                (1_100, true),
                (1_200, false),
            ]
        );
        // A short gap is caught up with in as short a time.
        assert_eq!(
            told([100, 800, 1_200, 1_600]),
            [(1_100, false), (1_100, true), (1_100, true), (1_200, false)]
        );
    }

    #[test]
    fn time_counts_in_full_however_often_and_unevenly_the_clock_is_looked_at() {
        let often = Instant::now();
        let mut ticks = Ticks::begin(Uptime::default(), GAPS, often);
        for look in 1..=100_000 {
            ticks.look(often + Duration::from_micros(look * 30));
        }
        assert_eq!(ticks.now(), Uptime::from_millis(3_000));
        assert_eq!(told([400, 900, 1_000]).last(), Some(&(2_000, false)));
    }

    #[test]
    fn uptime_goes_on_from_what_was_saved_and_never_backwards() {
        let clock = UptimeClock::resume(Uptime::from_millis(5_000), true, GAPS);
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
