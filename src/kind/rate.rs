//! How fast progress is made: an exponentially weighted rate with a 15-second memory.
//!
//! The model is indicatif's estimator: an observation's weight falls to a tenth after 15 seconds,
//! silence counts as no progress, and the young estimate is divided by the weight seen so far, so
//! that it is not pulled towards zero. Only the present attempt is looked at.

use chrono::{DateTime, Utc};

/// After this many seconds an observation weighs a tenth.
const MEMORY_SECS: f64 = 15.0;

/// The estimate's state, as it is stored with its subject.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Weighted percent per second, before division by the weight seen.
    pub smoothed: f64,
    /// The attempt's start.
    pub since: DateTime<Utc>,
    /// The last observation's progress in percent.
    pub progress: f64,
    /// The last observation's time.
    pub at: DateTime<Utc>,
}

impl Rate {
    pub(super) fn starting(progress: f64, now: DateTime<Utc>) -> Rate {
        Rate {
            smoothed: 0.0,
            since: now,
            progress,
            at: now,
        }
    }

    /// Takes in that `progress` percent are reached. Several reports within a millisecond count as one.
    pub(super) fn observe(&mut self, progress: f64, now: DateTime<Utc>) {
        let elapsed = seconds(self.at, now);
        if elapsed <= 0.0 || progress <= self.progress {
            return;
        }
        let keep = weight(elapsed);
        self.smoothed = self.smoothed * keep + (progress - self.progress) / elapsed * (1.0 - keep);
        self.progress = progress;
        self.at = now;
    }

    /// When 100 % will be reached at this rate, or nothing if there is no rate yet.
    pub(super) fn finish(&self, progress: f64, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let seen = 1.0 - weight(seconds(self.since, now));
        let silence = weight(seconds(self.at, now));
        let per_sec = self.smoothed * silence / seen;
        if !per_sec.is_finite() || per_sec <= 0.0 {
            return None;
        }
        after(now, (100.0 - progress).max(0.0) / per_sec)
    }
}

/// `secs` after `start`, to the millisecond; nothing beyond ten years, which is no estimate any more.
pub(super) fn after(start: DateTime<Utc>, secs: f64) -> Option<DateTime<Utc>> {
    const HORIZON_SECS: f64 = 10.0 * 365.0 * 86_400.0;
    if !(0.0..HORIZON_SECS).contains(&secs) {
        return None;
    }
    start.checked_add_signed(chrono::TimeDelta::milliseconds((secs * 1000.0) as i64))
}

fn weight(age_secs: f64) -> f64 {
    0.1_f64.powf(age_secs / MEMORY_SECS)
}

fn seconds(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    (to - from).num_milliseconds() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + secs, 0).unwrap()
    }

    #[test]
    fn steady_progress_is_foretold_exactly() {
        let mut rate = Rate::starting(0.0, at(0));
        for secs in 1..=50 {
            rate.observe(secs as f64, at(secs));
        }
        let finish = rate.finish(50.0, at(50)).unwrap();
        assert!((finish - at(100)).num_milliseconds().abs() <= 2, "{finish}");
    }

    #[test]
    fn silence_pushes_the_end_away() {
        let mut rate = Rate::starting(0.0, at(0));
        rate.observe(50.0, at(50));
        let fresh = rate.finish(50.0, at(50)).unwrap();
        let silent = rate.finish(50.0, at(65)).unwrap();
        assert!(
            silent - fresh > chrono::TimeDelta::seconds(100),
            "{fresh} {silent}"
        );
    }

    #[test]
    fn without_progress_there_is_no_rate() {
        assert_eq!(Rate::starting(0.0, at(0)).finish(0.0, at(9)), None);
    }
}
