//! The rules that are compared: Tidings' own, and published ones.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tidings::kind::job::{Estimator, Eta, History, Past};

use super::workloads::Run;

/// A rule that estimates the time left. All times are in seconds since the start.
pub(crate) trait Rule {
    /// Processes a report: the progress in percent, or `None` for a message only.
    fn report(&mut self, at: f64, progress: Option<f64>);

    /// Returns the displayed estimate of the seconds left.
    fn left(&mut self, at: f64) -> Option<f64>;
}

/// tqdm 4: averages of time and progress over updates, in which the newest has weight 0.3. The displayed value stays
/// until the next update.
#[derive(Default)]
pub(crate) struct Tqdm {
    last: Option<(f64, f64)>,
    secs: Ema,
    percent: Ema,
}

#[derive(Default)]
struct Ema {
    last: f64,
    calls: i32,
}

impl Ema {
    const SMOOTHING: f64 = 0.3;

    fn add(&mut self, value: f64) {
        self.last = Ema::SMOOTHING * value + (1.0 - Ema::SMOOTHING) * self.last;
        self.calls += 1;
    }

    fn value(&self) -> f64 {
        self.last / (1.0 - (1.0 - Ema::SMOOTHING).powi(self.calls))
    }
}

impl Rule for Tqdm {
    fn report(&mut self, at: f64, progress: Option<f64>) {
        let Some(progress) = progress else { return };
        if let Some((last_at, last)) = self.last {
            if progress <= last || at <= last_at {
                return;
            }
            self.secs.add(at - last_at);
            self.percent.add(progress - last);
        }
        self.last = Some((at, progress));
    }

    fn left(&mut self, _: f64) -> Option<f64> {
        let (_, progress) = self.last?;
        (self.secs.calls > 0).then(|| (100.0 - progress) * self.secs.value() / self.percent.value())
    }
}

/// indicatif 0.18: a rate that is smoothed twice over 15 seconds, and decays while nothing arrives.
#[derive(Default)]
pub(crate) struct Indicatif {
    since: Option<f64>,
    last: (f64, f64),
    once: f64,
    twice: f64,
}

fn indicatif_weight(age: f64) -> f64 {
    0.1_f64.powf(age / 15.0)
}

impl Rule for Indicatif {
    fn report(&mut self, at: f64, progress: Option<f64>) {
        let Some(progress) = progress else { return };
        let Some(since) = self.since else {
            self.since = Some(at);
            self.last = (at, progress);
            return;
        };
        let (secs, percent) = (at - self.last.0, progress - self.last.1);
        if secs <= 0.0 || percent <= 0.0 {
            return;
        }
        let weight = indicatif_weight(secs);
        self.once = self.once * weight + percent / secs * (1.0 - weight);
        let seen = 1.0 - indicatif_weight(at - since);
        self.twice = self.twice * weight + self.once / seen * (1.0 - weight);
        self.last = (at, progress);
    }

    fn left(&mut self, at: f64) -> Option<f64> {
        let seen = 1.0 - indicatif_weight(at - self.since?);
        let rate = self.twice * indicatif_weight(at - self.last.0) / seen;
        (rate > 0.0).then(|| (100.0 - self.last.1) / rate)
    }
}

/// The progress divided by the time since the first value.
#[derive(Default)]
pub(crate) struct Average {
    first: Option<(f64, f64)>,
    progress: f64,
}

impl Rule for Average {
    fn report(&mut self, at: f64, progress: Option<f64>) {
        let Some(progress) = progress else { return };
        self.first.get_or_insert((at, progress));
        self.progress = progress;
    }

    fn left(&mut self, at: f64) -> Option<f64> {
        let (since, first) = self.first?;
        let done = self.progress - first;
        (done > 0.0 && at > since).then(|| (100.0 - self.progress) * (at - since) / done)
    }
}

/// The median duration of earlier jobs.
pub(crate) struct Median(Option<f64>);

impl Median {
    pub(crate) fn of(earlier: &[Run]) -> Median {
        let mut ends: Vec<f64> = earlier.iter().map(|run| run.end).collect();
        ends.sort_by(f64::total_cmp);
        Median(ends.get(ends.len() / 2).copied())
    }
}

impl Rule for Median {
    fn report(&mut self, _: f64, _: Option<f64>) {}

    fn left(&mut self, at: f64) -> Option<f64> {
        self.0.map(|end| end - at).filter(|left| *left > 0.0)
    }
}

/// Tidings' own rule, called as the server calls it: at each report, and when the estimate is due for an update.
pub(crate) struct Ours {
    estimator: Estimator,
    eta: Option<Eta>,
    check_at: Option<f64>,
    heard: f64,
    stall_after: Option<f64>,
}

fn time(secs: f64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::milliseconds((secs * 1000.0).round() as i64)
}

fn secs(at: DateTime<Utc>) -> f64 {
    (at - DateTime::UNIX_EPOCH).num_milliseconds() as f64 / 1000.0
}

impl Ours {
    pub(crate) fn new(run: &Run) -> Ours {
        let past: Vec<Past> = run.earlier.iter().filter_map(Ours::past).collect();
        Ours {
            estimator: Estimator::starting(time(0.0), History::of(&past)),
            eta: None,
            check_at: None,
            heard: 0.0,
            stall_after: run.stall_after,
        }
    }

    /// What a finished job contributes to the history.
    fn past(run: &Run) -> Option<Past> {
        let mut estimator = Estimator::starting(time(0.0), None);
        for (at, progress) in &run.reports {
            if let Some(progress) = progress {
                estimator.observe(*progress, time(*at));
            }
        }
        estimator.past(time(run.end))
    }

    fn update(&mut self, at: f64) {
        self.eta = self.estimator.estimate(time(at), Duration::ZERO);
        let wait = self.estimator.look_in(time(at), Duration::ZERO);
        self.check_at = wait.map(|wait| at + wait.as_secs_f64());
    }

    /// Whether the job has been silent for so long that there is no estimate.
    pub(crate) fn is_stalled(&self, at: f64) -> bool {
        self.stall_after
            .is_some_and(|after| at - self.heard >= after)
    }

    /// Returns the range of the time left.
    pub(crate) fn range(&self, at: f64) -> Option<(f64, f64)> {
        self.eta
            .map(|eta| (secs(eta.low_at) - at, secs(eta.high_at) - at))
    }
}

impl Rule for Ours {
    fn report(&mut self, at: f64, progress: Option<f64>) {
        if let Some(progress) = progress {
            self.estimator.observe(progress, time(at));
        }
        self.heard = at;
        self.update(at);
    }

    fn left(&mut self, at: f64) -> Option<f64> {
        // As the watchdog does.
        while let Some(eta) = self.eta {
            let lapses = secs(eta.at).max(self.heard + 1.0);
            let due = self
                .check_at
                .map_or(lapses, |check_at| check_at.min(lapses));
            if due > at || self.is_stalled(due) {
                break;
            }
            self.update(due);
            if self.eta.is_some_and(|later| secs(later.at) <= due + 1.0) {
                break;
            }
        }
        self.eta.map(|eta| secs(eta.at) - at)
    }
}
