//! Whether the wall clock is reliable enough to judge ages.
//!
//! Retention deletes old data permanently, so a clock that was wrong for a moment must not delete a log. The wall clock
//! is compared with the time since the machine's boot, which cannot be set and which advances while the machine is
//! suspended. If they diverge by [`CLOCK_STEP_MIN`] or more, the wall clock was set, forward or back. Nothing is then
//! judged by age until the clock has been stable for the setting `clock_settle_secs` of [uptime](crate::uptime), or has
//! been set back to where it was.
//!
//! This state is saved with the database, so that a step between two starts is noticed, too. After a reboot, there is
//! nothing to compare with: a downtime of up to `clock_settle_secs` is believed, and a longer one is treated like a
//! step. The clock must then be stable for as long. On a machine that was off for days, the clock is right, and it
//! settles.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::config::CLOCK_STEP_MIN;
use crate::uptime::Uptime;

/// Returns the id of the machine's current boot. Empty if there is none.
pub fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Returns the time since the machine's boot. On systems other than Linux, it is the time since the first call: each
/// start then looks like a reboot.
fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(time).unwrap_or_default()
    }
    #[cfg(not(target_os = "linux"))]
    {
        static BEGAN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        BEGAN.get_or_init(std::time::Instant::now).elapsed()
    }
}

fn millis(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}

/// The readings of all clocks at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The wall clock.
    pub wall: DateTime<Utc>,
    /// Time since the machine's boot.
    pub since_boot: Duration,
    /// The uptime, by which silence is measured.
    pub uptime: Uptime,
}

impl Moment {
    /// Returns the current moment.
    pub fn now(uptime: Uptime) -> Moment {
        /// If more time passes between two readings, the process was not running meanwhile.
        const AT_ONCE: Duration = Duration::from_secs(1);
        loop {
            let since_boot = since_boot();
            let wall = Utc::now();
            if self::since_boot().saturating_sub(since_boot) < AT_ONCE {
                return Moment {
                    wall,
                    since_boot,
                    uptime,
                };
            }
        }
    }

    /// Returns when the machine was booted, by the wall clock, in milliseconds. It is constant as long as the clock is
    /// not set.
    fn booted_at(&self) -> i64 {
        self.wall
            .timestamp_millis()
            .saturating_sub(millis(self.since_boot))
    }
}

/// The state of the wall clock, which is saved with the database. Times are in milliseconds of the wall clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    boot: String,
    /// The time of the last check.
    looked_at: i64,
    /// When the machine was booted, by the clock of the last check.
    booted_at: i64,
    /// When the machine was booted, by the clock when it was last reliable.
    relied_on: i64,
    /// The uptime, in milliseconds, when the clock was set, if it was set since then.
    set_at: Option<u64>,
}

/// A change of the wall clock that a check has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The clock was set, forward or back, by this much.
    Set(TimeDelta),
    /// The clock was set by this much, and is back at its earlier setting.
    Back(TimeDelta),
    /// The clock has been stable for long enough.
    Settled,
}

/// Compares the wall clock with the time that passes.
#[derive(Debug)]
pub struct WallClock {
    record: Record,
    settle: Duration,
}

impl WallClock {
    /// Continues from the saved record, if there is one. After it is set, the clock must be stable for `settle`.
    pub fn resume(saved: Option<Record>, boot: String, now: Moment, settle: Duration) -> WallClock {
        let record = match saved {
            Some(saved) if saved.boot == boot && !boot.is_empty() => saved,
            Some(saved) => saved.carried_over(boot, now, settle),
            None => Record {
                boot,
                looked_at: now.wall.timestamp_millis(),
                booted_at: now.booted_at(),
                relied_on: now.booted_at(),
                set_at: None,
            },
        };
        WallClock { record, settle }
    }

    /// Checks the clock, and returns what has changed.
    pub fn look(&mut self, now: Moment) -> Option<Change> {
        let record = &mut self.record;
        let moved = now.booted_at().saturating_sub(record.booted_at);
        let is_step = |by: i64| by.unsigned_abs() >= millis(CLOCK_STEP_MIN).unsigned_abs();
        // Smaller differences than a step are followed, because clocks drift.
        record.booted_at = now.booted_at();
        record.looked_at = now.wall.timestamp_millis();
        let mut change = None;
        if is_step(moved) {
            let moved = TimeDelta::milliseconds(moved);
            if is_step(record.booted_at.saturating_sub(record.relied_on)) {
                record.set_at = Some(now.uptime.millis());
                change = Some(Change::Set(moved));
            } else {
                record.set_at = None;
                change = Some(Change::Back(moved));
            }
        }
        if let Some(set_at) = record.set_at
            && now.uptime.since(Uptime::from_millis(set_at)) >= self.settle
        {
            record.set_at = None;
            change = change.or(Some(Change::Settled));
        }
        if record.set_at.is_none() {
            record.relied_on = record.booted_at;
        }
        change
    }

    /// Whether ages can be judged by the clock.
    pub fn is_relied_on(&self) -> bool {
        self.record.set_at.is_none()
    }

    /// Returns the record to save.
    pub fn record(&self) -> &Record {
        &self.record
    }
}

impl Record {
    /// Returns the record after a reboot. It assumes that no time has passed, or as much as the clock says if that is
    /// plausible.
    fn carried_over(self, boot: String, now: Moment, settle: Duration) -> Record {
        let passed = now.wall.timestamp_millis().saturating_sub(self.looked_at);
        let longest = match self.set_at {
            // The clock must be stable in any case, and should not have to start over after each night that the machine
            // is off.
            Some(_) => i64::MAX,
            None => millis(settle.max(CLOCK_STEP_MIN)),
        };
        let is_plausible = (-millis(CLOCK_STEP_MIN)..longest).contains(&passed);
        let passed = if is_plausible { passed } else { 0 };
        let booted_at = self
            .looked_at
            .saturating_add(passed)
            .saturating_sub(millis(now.since_boot));
        Record {
            boot,
            booted_at,
            relied_on: booted_at.saturating_sub(self.booted_at.saturating_sub(self.relied_on)),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600;
    const DAY: i64 = 24 * HOUR;

    /// A machine with a clock, and a server on it.
    struct Machine {
        boot: &'static str,
        clock: WallClock,
        /// In seconds.
        wall: i64,
        since_boot: i64,
        uptime: i64,
    }

    fn moment(wall: i64, since_boot: i64, uptime: i64) -> Moment {
        let secs = |secs: i64| Duration::from_secs(secs.unsigned_abs());
        Moment {
            wall: DateTime::from_timestamp(1_700_000_000 + wall, 0).unwrap(),
            since_boot: secs(since_boot),
            uptime: Uptime::default() + secs(uptime),
        }
    }

    fn settle() -> Duration {
        Duration::from_secs(HOUR.unsigned_abs())
    }

    impl Machine {
        fn new() -> Machine {
            let clock = WallClock::resume(None, "first".into(), moment(0, 500, 0), settle());
            Machine {
                boot: "first",
                clock,
                wall: 0,
                since_boot: 500,
                uptime: 0,
            }
        }

        fn check(&mut self) -> Option<Change> {
            self.clock
                .look(moment(self.wall, self.since_boot, self.uptime))
        }

        /// Some seconds of operation.
        fn work(&mut self, secs: i64) -> Option<Change> {
            (self.wall, self.since_boot) = (self.wall + secs, self.since_boot + secs);
            self.uptime += secs;
            self.check()
        }

        /// The clock is set by some seconds.
        fn set(&mut self, secs: i64) -> Option<Change> {
            self.wall += secs;
            self.check()
        }

        /// The server is down for some seconds.
        fn restart(&mut self, secs: i64) -> Option<Change> {
            (self.wall, self.since_boot) = (self.wall + secs, self.since_boot + secs);
            self.resume()
        }

        /// The machine is off for some seconds.
        fn reboot(&mut self, boot: &'static str, secs: i64) -> Option<Change> {
            (self.boot, self.wall, self.since_boot) = (boot, self.wall + secs, 10);
            self.resume()
        }

        fn resume(&mut self) -> Option<Change> {
            let text = serde_json::to_string(self.clock.record()).unwrap();
            let now = moment(self.wall, self.since_boot, self.uptime);
            let saved = serde_json::from_str(&text).unwrap();
            self.clock = WallClock::resume(saved, self.boot.into(), now, settle());
            self.check()
        }
    }

    fn set_by(secs: i64) -> Option<Change> {
        Some(Change::Set(TimeDelta::seconds(secs)))
    }

    #[test]
    fn a_clock_that_is_set_is_reported_once_and_trusted_after_it_has_been_stable() {
        for step in [2 * DAY, 9 * DAY, -2 * DAY, 61, -61] {
            let mut machine = Machine::new();
            assert_eq!(machine.work(5 * HOUR), None);
            assert_eq!(machine.set(step), set_by(step));
            assert!(!machine.clock.is_relied_on());
            assert_eq!(machine.work(HOUR - 1), None, "reported once");
            assert!(!machine.clock.is_relied_on());
            assert_eq!(machine.work(1), Some(Change::Settled));
            assert!(machine.clock.is_relied_on());
            assert_eq!(machine.work(10), None);
        }
    }

    #[test]
    fn a_clock_that_is_put_right_is_relied_on_at_once_and_a_further_step_begins_anew() {
        let mut machine = Machine::new();
        machine.set(9 * DAY);
        machine.work(HOUR / 2);
        let back = Some(Change::Back(TimeDelta::seconds(-9 * DAY)));
        assert_eq!(machine.set(-9 * DAY), back);
        assert!(machine.clock.is_relied_on());
        machine.set(9 * DAY);
        machine.work(HOUR / 2);
        assert_eq!(machine.set(DAY), set_by(DAY));
        machine.work(HOUR - 1);
        assert!(!machine.clock.is_relied_on());
        assert_eq!(machine.work(1), Some(Change::Settled));
    }

    #[test]
    fn a_clock_that_drifts_is_followed_and_downtime_and_suspension_are_no_steps() {
        let mut machine = Machine::new();
        for _ in 0..100 {
            machine.work(3_600);
            assert_eq!(machine.set(2), None);
        }
        // Suspended: the time since the boot advances, and the uptime does not.
        machine.since_boot += 9 * DAY;
        assert_eq!(machine.set(9 * DAY), None);
        assert_eq!(machine.restart(30 * DAY), None);
        assert!(machine.clock.is_relied_on());
    }

    #[test]
    fn a_step_between_two_starts_is_noticed_and_goes_on_counting_over_further_starts() {
        for step in [9 * DAY, -2 * DAY] {
            let mut machine = Machine::new();
            machine.work(HOUR);
            machine.wall += step;
            assert_eq!(machine.restart(20), set_by(step));
            for _ in 0..6 {
                assert!(!machine.clock.is_relied_on());
                machine.work(HOUR / 6 - 1);
                assert_eq!(machine.restart(7 * HOUR), None);
            }
            assert_eq!(machine.work(6), Some(Change::Settled));
        }
    }

    #[test]
    fn after_another_boot_a_long_downtime_has_to_stand_and_a_short_one_does_not() {
        let mut machine = Machine::new();
        assert_eq!(machine.reboot("second", 600), None);
        assert!(machine.clock.is_relied_on());
        assert_eq!(machine.reboot("third", 30 * DAY), set_by(30 * DAY));
        // A machine that is on for half an hour a day settles nevertheless.
        machine.work(HOUR / 2);
        assert_eq!(machine.reboot("fourth", DAY), None);
        assert!(!machine.clock.is_relied_on());
        assert_eq!(machine.work(HOUR / 2), Some(Change::Settled));
        // A machine whose clock went back is not believed.
        assert_eq!(machine.reboot("fifth", -DAY), set_by(-DAY));
        let right = Some(Change::Back(TimeDelta::seconds(DAY)));
        assert_eq!(machine.set(DAY), right);
    }

    #[test]
    fn the_machine_has_a_clock_that_nobody_sets() {
        let first = Moment::now(Uptime::default());
        let second = Moment::now(Uptime::default());
        assert!(second.since_boot >= first.since_boot);
        assert!((second.booted_at() - first.booted_at()).abs() < 60_000);
    }
}
