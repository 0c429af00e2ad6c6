//! When runs are expected: by a cron expression in a time zone, or at a fixed period.
//!
//! Cron expressions follow Vixie cron, even at changes of daylight saving time. If a fixed time of day does not exist, the job
//! is due right after the gap; if it occurs twice, at the first occurrence. A job with an interval of minutes or hours is due
//! at every time that exists, and therefore also in both occurrences of an hour.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use crate::kind::RuleError;

/// The longest cron expression, in bytes.
pub const CRON_MAX_BYTES: usize = 128;
/// The shortest and the longest period, in seconds.
pub const PERIOD_SECS: (u32, u32) = (60, 366 * 86_400);
/// A run that starts up to this many seconds early counts as the expected one, because the clocks of machines differ.
pub const EARLY_SECS: i64 = 60;

/// When runs are expected.
#[derive(Debug, Clone)]
pub(super) enum Timing {
    /// At the times of a cron expression in a time zone.
    Cron(Box<Cron>, Tz),
    /// This long after the start of the last one.
    Period(TimeDelta),
}

impl Timing {
    pub(super) fn cron(expression: &str, time_zone: &str) -> Result<Timing, RuleError> {
        let invalid = |field, expected: String| RuleError::Invalid { field, expected };
        let zone: Tz = time_zone.parse().map_err(|_| {
            let expected =
                "must be a name in the IANA time zone database, such as Europe/Berlin or UTC";
            invalid("time_zone", expected.into())
        })?;
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser.parse(expression).map_err(|error| {
            let expected = format!(
                "must have five fields: minute, hour, day of the month, month, day of the week ({error})"
            );
            invalid("cron", expected)
        })?;
        Ok(Timing::Cron(Box::new(cron), zone))
    }

    pub(super) fn period(secs: u32) -> Result<Timing, RuleError> {
        let (min, max) = PERIOD_SECS;
        match (min..=max).contains(&secs) {
            true => Ok(Timing::Period(TimeDelta::seconds(secs.into()))),
            false => Err(RuleError::Invalid {
                field: "period_secs",
                expected: format!("must be from {min} to {max}"),
            }),
        }
    }

    /// Returns the first time after `at` at which a run is expected if none has started since. `None` if there is none.
    pub(super) fn after(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Timing::Cron(cron, zone) => {
                let next = cron.find_next_occurrence(&at.with_timezone(zone), false);
                next.ok().map(|next| next.to_utc())
            }
            Timing::Period(period) => Some(at + *period),
        }
    }

    /// Returns when the run after one that started at `started` is expected.
    pub(super) fn after_run(&self, started: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let due = self.after(started)?;
        match self.counts_for(started, due) && matches!(self, Timing::Cron(..)) {
            true => self.after(due),
            false => Some(due),
        }
    }

    /// Whether a run that started at `started` is the one that was expected at `due`, or a later one.
    pub(super) fn counts_for(&self, started: DateTime<Utc>, due: DateTime<Utc>) -> bool {
        let early = match self {
            Timing::Period(_) => return true,
            // At most half of the time to the next run.
            Timing::Cron(..) => self.after(due).map_or(TimeDelta::zero(), |next| {
                TimeDelta::seconds(EARLY_SECS).min((next - due) / 2)
            }),
        };
        started >= due - early
    }

    /// Returns the last time at which a run was expected, from `due` to `until`.
    pub(super) fn last_until(&self, due: DateTime<Utc>, until: DateTime<Utc>) -> DateTime<Utc> {
        let last = match self {
            Timing::Cron(cron, zone) => {
                let last = cron.find_previous_occurrence(&until.with_timezone(zone), true);
                last.map_or(due, |last| last.to_utc())
            }
            Timing::Period(period) => {
                let millis = period.num_milliseconds().max(1);
                let passed = (until - due).num_milliseconds().max(0) / millis;
                due + TimeDelta::milliseconds(passed.saturating_mul(millis))
            }
        };
        last.max(due)
    }
}

/// Returns a cron expression with single blanks.
pub(super) fn tidy(expression: &str) -> Result<Arc<str>, RuleError> {
    if expression.len() > CRON_MAX_BYTES {
        return Err(RuleError::TooLarge {
            field: "cron",
            most: crate::kind::Bound::constant(CRON_MAX_BYTES),
        });
    }
    let fields: Vec<&str> = expression.split_whitespace().collect();
    Ok(fields.join(" ").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    /// The first times after `from`, as the zone writes them.
    fn times(expression: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let timing = Timing::cron(expression, zone).unwrap();
        let zone: Tz = zone.parse().unwrap();
        let mut last = at(from);
        let mut found = Vec::new();
        for _ in 0..count {
            last = timing.after(last).unwrap();
            found.push(last.with_timezone(&zone).to_rfc3339());
        }
        found
    }

    #[test]
    fn a_fixed_time_in_the_gap_of_spring_is_due_when_the_gap_ends_and_once() {
        // 02:00 to 03:00 does not exist on March 29.
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 4),
            [
                "2026-03-28T02:30:00+01:00",
                "2026-03-29T03:00:00+02:00",
                "2026-03-30T02:30:00+02:00",
                "2026-03-31T02:30:00+02:00",
            ]
        );
        // 02:00 to 03:00 on March 8.
        assert_eq!(
            times("0 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 2),
            ["2026-03-08T03:00:00-04:00", "2026-03-09T02:00:00-04:00"]
        );
        // Half an hour: 02:00 to 02:30 on October 4.
        assert_eq!(
            times(
                "15 2 * * *",
                "Australia/Lord_Howe",
                "2026-10-02T20:00:00Z",
                2
            ),
            ["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"]
        );
    }

    #[test]
    fn a_fixed_time_that_autumn_repeats_is_due_once() {
        // 02:00 to 03:00 occurs twice on October 25.
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
        );
        // 01:00 to 02:00 on November 1.
        assert_eq!(
            times("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", 2),
            ["2026-11-01T01:30:00-04:00", "2026-11-02T01:30:00-05:00"]
        );
        // 01:30 to 02:00 on April 5.
        assert_eq!(
            times(
                "45 1 * * *",
                "Australia/Lord_Howe",
                "2026-04-04T00:00:00Z",
                2
            ),
            ["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"]
        );
    }

    #[test]
    fn what_is_due_every_so_many_minutes_is_due_at_each_time_that_exists() {
        assert_eq!(
            times("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:29:59Z", 3),
            [
                "2026-03-29T01:30:00+01:00",
                "2026-03-29T03:00:00+02:00",
                "2026-03-29T03:30:00+02:00",
            ]
        );
        assert_eq!(
            times("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:59:59Z", 5),
            [
                "2026-10-25T02:00:00+02:00",
                "2026-10-25T02:30:00+02:00",
                "2026-10-25T02:00:00+01:00",
                "2026-10-25T02:30:00+01:00",
                "2026-10-25T03:00:00+01:00",
            ]
        );
        assert_eq!(
            times(
                "*/15 * * * *",
                "Australia/Lord_Howe",
                "2026-04-04T14:29:59Z",
                5
            ),
            [
                "2026-04-05T01:30:00+11:00",
                "2026-04-05T01:45:00+11:00",
                "2026-04-05T01:30:00+10:30",
                "2026-04-05T01:45:00+10:30",
                "2026-04-05T02:00:00+10:30",
            ]
        );
    }

    /// Each expected time is after the last one, and searching back from it finds the last one again.
    #[test]
    fn in_each_zone_and_at_each_change_the_last_time_is_the_one_before_the_next() {
        for zone in [
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
            "UTC",
        ] {
            for expression in ["30 2 * * *", "30 1 * * *", "*/20 * * * *", "0 */2 * * *"] {
                let timing = Timing::cron(expression, zone).unwrap();
                for from in [
                    "2026-03-06",
                    "2026-03-27",
                    "2026-04-03",
                    "2026-10-02",
                    "2026-10-23",
                    "2026-10-30",
                ] {
                    let begin = at(&format!("{from}T00:00:00Z"));
                    let mut last = timing.after(begin).unwrap();
                    let first = last;
                    while last < begin + TimeDelta::days(4) {
                        let next = timing.after(last).unwrap();
                        assert!(next > last, "{zone} {expression} {last}");
                        let before = timing.last_until(first, next - TimeDelta::seconds(1));
                        assert_eq!(before, last, "{zone} {expression} {next}");
                        assert_eq!(timing.last_until(first, next), next);
                        last = next;
                    }
                }
            }
        }
    }

    #[test]
    fn a_run_counts_for_a_time_from_shortly_before_it() {
        let nightly = Timing::cron("0 3 * * *", "UTC").unwrap();
        let due = at("2026-06-02T03:00:00Z");
        for (started, counts) in [
            ("2026-06-02T02:58:59Z", false),
            ("2026-06-02T02:59:00Z", true),
            ("2026-06-02T03:00:00Z", true),
            ("2026-06-02T09:00:00Z", true),
        ] {
            assert_eq!(nightly.counts_for(at(started), due), counts, "{started}");
        }
        let next = |started: &str| nightly.after_run(at(started)).unwrap();
        assert_eq!(next("2026-06-02T02:58:59Z"), due);
        assert_eq!(next("2026-06-02T02:59:30Z"), due + TimeDelta::days(1));
        assert_eq!(next("2026-06-02T03:00:00Z"), due + TimeDelta::days(1));
        // With a run every minute, a run may be at most half a minute early.
        let each_minute = Timing::cron("* * * * *", "UTC").unwrap();
        let due = at("2026-06-02T03:01:00Z");
        assert!(!each_minute.counts_for(at("2026-06-02T03:00:29Z"), due));
        assert!(each_minute.counts_for(at("2026-06-02T03:00:30Z"), due));
        let every = Timing::period(600).unwrap();
        assert_eq!(every.after_run(due), Some(due + TimeDelta::seconds(600)));
        let until = due + TimeDelta::seconds(1_799);
        assert_eq!(
            every.last_until(due, until),
            due + TimeDelta::seconds(1_200)
        );
    }

    #[test]
    fn what_is_no_expression_is_rejected_at_once() {
        let began = std::time::Instant::now();
        for expression in [
            "",
            "* * * *",
            "0 0 3 * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "x * * * *",
            "@never",
            "* * * * * * *",
            "*/0 * * * *",
            "5-1 * * * *",
        ] {
            assert!(Timing::cron(expression, "UTC").is_err(), "{expression}");
        }
        for zone in ["", "Europe/Nowhere", "CEST", "+02:00"] {
            assert!(Timing::cron("0 3 * * *", zone).is_err(), "{zone}");
        }
        for expression in [
            "@daily",
            "0 3 * * MON-FRI",
            "0 0 L * *",
            "0 3 * * 7",
            "0 3 29 2 *",
        ] {
            let timing = Timing::cron(expression, "UTC").unwrap();
            assert!(
                timing.after(at("2026-06-02T03:00:00Z")).is_some(),
                "{expression}"
            );
        }
        let never = Timing::cron("0 0 30 2 *", "UTC").unwrap();
        assert_eq!(never.after(at("2026-06-02T03:00:00Z")), None);
        assert!(Timing::period(59).is_err() && Timing::period(u32::MAX).is_err());
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
    }
}
