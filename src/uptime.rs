//! The clock that measures silence: the time during which the server listened, over all of its starts.
//!
//! A worker or device is not responsible for messages that it sent while the server was not listening, and a restart
//! must not renew leases or timeouts. So the silence of a subject is the uptime since its last message: downtime does
//! not count, and all other time does. The wall clock, which may be set forward or back, has no influence.
//!
//! A process that is stopped, starved of CPU time, or on a suspended machine does not listen either, whatever the
//! monotonic clock says. So a task reads this clock every [`UPTIME_TICK`](crate::config::UPTIME_TICK), and only time
//! between two readings counts. If two readings are further apart than [`UPTIME_GAP`](crate::config::UPTIME_GAP), the
//! process was not running, and the time counts as downtime. Messages from this time wait in the sockets. So the clock
//! stands still for a while longer, and no timeout is applied ([`UptimeClock::is_catching_up`]) until they have been
//! processed.
//!
//! Several nodes over one store count one uptime: each moves its clock ahead to the highest ([`UptimeClock::advance_to`]),
//! so that the time during which any of them listened counts. The clock of a node that has just started, or was suspended,
//! is behind until the node has heard from the others ([`UptimeClock::is_behind`]).
//!
//! The store saves the uptime with every commit, and every [`UPTIME_PERIOD`](crate::config::UPTIME_PERIOD) without one.
//! A server that is killed loses at most this much uptime.

use std::ops::Add;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A moment in a database's uptime: the milliseconds since its first start, without downtime.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Uptime(u64);

impl Uptime {
    /// Returns the moment this many milliseconds after the first start.
    pub const fn from_millis(millis: u64) -> Uptime {
        Uptime(millis)
    }

    /// Returns the milliseconds since the first start.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// Returns the uptime since `earlier`. Returns 0 if `earlier` is in the future: a server that was killed may have
    /// lost its last moments.
    pub fn since(self, earlier: Uptime) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns the moment this long before, but not before the first start.
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

/// Parameters that distinguish a process that ran from one that did not.
#[derive(Debug, Clone, Copy)]
pub struct Gaps {
    /// The maximum time between two readings of a process that runs.
    pub longest_tick: Duration,
    /// How long the clock stands still, at most, after a longer time.
    pub catch_up: Duration,
}

/// Measures the uptime: the saved uptime, and the time since this start. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct UptimeClock {
    ticks: Arc<Mutex<Ticks>>,
    was_cut_off: bool,
}

impl UptimeClock {
    /// Continues from the saved uptime. `was_cut_off` means that the server was not shut down in order before.
    pub fn resume(saved: Uptime, was_cut_off: bool, gaps: Gaps) -> UptimeClock {
        let ticks = Ticks::begin(saved, gaps, Instant::now());
        UptimeClock {
            ticks: Arc::new(Mutex::new(ticks)),
            was_cut_off,
        }
    }

    /// Returns the current moment. Each call is a reading of the clock.
    pub fn now(&self) -> Uptime {
        self.read().now()
    }

    /// Moves the clock ahead to what another node counted, while this one did not run or did not exist. It never moves back.
    /// No messages waited here meanwhile, so there is nothing to catch up with, and whether the clock is catching up does not
    /// change.
    pub fn advance_to(&self, uptime: Uptime) {
        self.read().advance_to(uptime);
    }

    /// Whether the process was not running, and messages from that time may not have been processed. No timeout is
    /// applied meanwhile.
    pub fn is_catching_up(&self) -> bool {
        self.read().is_catching_up()
    }

    /// Returns how often the process was not running so far, including before its start.
    pub fn pauses(&self) -> u64 {
        self.read().pauses
    }

    /// Whether other nodes may have counted time meanwhile that this clock does not include: since the last pause, it has not been
    /// compared with theirs.
    pub fn is_behind(&self) -> bool {
        let ticks = self.read();
        ticks.compared_after < ticks.pauses
    }

    /// Records that the clock was compared with those of all other nodes after this many pauses.
    pub fn compared_after(&self, pauses: u64) {
        let mut ticks = self.read();
        ticks.compared_after = ticks.compared_after.max(pauses);
    }

    /// Whether the server was not shut down in order before. What it had received and not saved is lost.
    pub fn was_cut_off(&self) -> bool {
        self.was_cut_off
    }

    fn read(&self) -> MutexGuard<'_, Ticks> {
        let mut ticks = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        ticks.read(Instant::now());
        ticks
    }
}

/// The arithmetic of the clock.
#[derive(Debug)]
struct Ticks {
    saved: Uptime,
    gaps: Gaps,
    /// Time since the start during which the process listened.
    listened: Duration,
    read_at: Instant,
    /// The clock stands still until then.
    counts_from: Instant,
    /// How often the process was not running, including before its start.
    pauses: u64,
    /// After how many of these pauses the clock was compared with those of other nodes.
    compared_after: u64,
}

impl Ticks {
    fn begin(saved: Uptime, gaps: Gaps, now: Instant) -> Ticks {
        Ticks {
            saved,
            gaps,
            listened: Duration::ZERO,
            read_at: now,
            counts_from: now,
            pauses: 1,
            compared_after: 0,
        }
    }

    fn read(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.read_at);
        if passed > self.gaps.longest_tick {
            let caught_up = now + passed.min(self.gaps.catch_up);
            self.counts_from = self.counts_from.max(caught_up);
            self.pauses += 1;
        } else {
            let from = self.read_at.max(self.counts_from);
            self.listened += now.saturating_duration_since(from);
        }
        self.read_at = self.read_at.max(now);
    }

    fn now(&self) -> Uptime {
        self.saved + self.listened
    }

    fn advance_to(&mut self, uptime: Uptime) {
        self.saved = self.saved + uptime.since(self.now());
    }

    fn is_catching_up(&self) -> bool {
        self.read_at < self.counts_from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAPS: Gaps = Gaps {
        longest_tick: Duration::from_millis(500),
        catch_up: Duration::from_millis(2_000),
    };

    /// Returns the uptime in milliseconds at readings that are this many milliseconds after the start.
    fn uptimes_at(readings: impl IntoIterator<Item = u64>) -> Vec<(u64, bool)> {
        let start = Instant::now();
        let mut ticks = Ticks::begin(Uptime::from_millis(1_000), GAPS, start);
        let mut read = |millis| {
            ticks.read(start + Duration::from_millis(millis));
            (ticks.now().millis(), ticks.is_catching_up())
        };
        readings.into_iter().map(&mut read).collect()
    }

    #[test]
    fn a_process_that_did_not_run_did_not_listen() {
        let waking = [100, 6_100, 6_500, 7_000, 7_500, 8_000, 8_200];
        assert_eq!(
            uptimes_at(waking),
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
        // After a short gap, catching up takes an equally short time.
        assert_eq!(
            uptimes_at([100, 800, 1_200, 1_600]),
            [(1_100, false), (1_100, true), (1_100, true), (1_200, false)]
        );
    }

    #[test]
    fn time_counts_in_full_however_often_and_unevenly_the_clock_is_looked_at() {
        let often = Instant::now();
        let mut ticks = Ticks::begin(Uptime::default(), GAPS, often);
        for reading in 1..=100_000 {
            ticks.read(often + Duration::from_micros(reading * 30));
        }
        assert_eq!(ticks.now(), Uptime::from_millis(3_000));
        assert_eq!(uptimes_at([400, 900, 1_000]).last(), Some(&(2_000, false)));
    }

    #[test]
    fn uptime_goes_on_from_what_was_saved_and_never_backwards() {
        let clock = UptimeClock::resume(Uptime::from_millis(5_000), true, GAPS);
        let first = clock.now();
        assert!(first >= Uptime::from_millis(5_000) && clock.now() >= first);
        assert!(clock.was_cut_off());
    }

    #[test]
    fn the_clock_is_moved_ahead_and_never_back_and_goes_on_from_there() {
        let start = Instant::now();
        let mut ticks = Ticks::begin(Uptime::from_millis(1_000), GAPS, start);
        let mut at = |millis, to| {
            ticks.read(start + Duration::from_millis(millis));
            ticks.advance_to(Uptime::from_millis(to));
            (ticks.now().millis(), ticks.is_catching_up())
        };
        assert_eq!(at(100, 500), (1_100, false), "not back");
        assert_eq!(at(100, 60_000), (60_000, false), "and nothing waits here");
        assert_eq!(at(300, 60_100), (60_200, false));
        // After a gap the clock stands still, wherever it is moved.
        assert_eq!(at(6_300, 70_000), (70_000, true));
        assert_eq!(at(6_700, 60_000), (70_000, true));
        assert_eq!(at(7_100, 0), (70_000, true));
        assert_eq!(at(7_500, 0), (70_000, true));
        assert_eq!(at(7_900, 0), (70_000, true));
        assert_eq!(at(8_300, 0), (70_000, false));
        assert_eq!(at(8_400, 0), (70_100, false));
    }

    #[test]
    fn the_clock_is_behind_after_its_start_and_after_each_pause_until_it_is_compared() {
        let start = Instant::now();
        let ticks = Ticks::begin(Uptime::default(), GAPS, start);
        let clock = UptimeClock {
            ticks: Arc::new(Mutex::new(ticks)),
            was_cut_off: false,
        };
        let read = |millis| {
            let mut ticks = clock.ticks.lock().unwrap();
            ticks.read(start + Duration::from_millis(millis));
            (ticks.pauses, ticks.compared_after < ticks.pauses)
        };
        assert_eq!(read(100), (1, true), "it has just started");
        clock.compared_after(1);
        assert_eq!(read(200), (1, false));
        assert_eq!(read(5_000), (2, true), "it was suspended");
        clock.compared_after(1);
        assert_eq!(read(5_100), (2, true), "a comparison from before that");
        clock.compared_after(2);
        assert_eq!(read(5_200), (2, false));
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
