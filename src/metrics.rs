//! The server's own metrics, second by second for the last minutes, for operators.
//!
//! Once a second, one task samples counters that exist anyway, so no event waits for it. Figures of one school (its
//! rate, its connections) come from the hub, and figures of the log from the store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{METRICS_MEAN_SECS, METRICS_SECS};
use crate::hub::Hub;
use crate::log::{CommitCounts, Committed, Store};

/// Metrics of one second.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Second {
    /// Number of events that were committed.
    pub events: u64,
    /// Number of commits. Each has at least one event.
    pub commits: u64,
    /// Mean duration of a commit, in microseconds.
    pub commit_micros: u64,
    /// Duration of the slowest commit, in microseconds.
    pub slowest_micros: u64,
    /// Number of streams at the end of the second.
    pub streams: usize,
    /// Committed batches that the dispatcher had not passed to the streams at the end of the second.
    pub waiting: u64,
}

/// Number of rejected requests, by error code and by the setting whose limit was reached, if any. Both have few values,
/// all of which are known.
pub type Rejections = BTreeMap<(&'static str, Option<&'static str>), u64>;

/// The server's own metrics. See the module documentation.
pub struct Metrics {
    since: DateTime<Utc>,
    seconds: Mutex<VecDeque<Second>>,
    rejections: Mutex<Rejections>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            since: Utc::now(),
            seconds: Mutex::new(VecDeque::with_capacity(METRICS_SECS)),
            rejections: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Returns when the server was started.
    pub fn since(&self) -> DateTime<Utc> {
        self.since
    }

    /// Returns the metrics of the last seconds, oldest first; at most [`METRICS_SECS`].
    pub fn seconds(&self) -> Vec<Second> {
        self.kept().iter().copied().collect()
    }

    /// Returns how many events were committed per second, on average over the last [`METRICS_MEAN_SECS`].
    pub fn events_per_sec(&self) -> f64 {
        let seconds = self.kept();
        let lately = seconds.iter().rev().take(METRICS_MEAN_SECS);
        let (count, events) = lately.fold((0_usize, 0), |(count, events), second| {
            (count + 1, events + second.events)
        });
        events as f64 / count.max(1) as f64
    }

    /// Counts a rejected request, with the setting whose limit was reached.
    pub fn rejected(&self, code: &'static str, limit: Option<&'static str>) {
        let mut rejections = self
            .rejections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *rejections.entry((code, limit)).or_default() += 1;
    }

    /// Returns the numbers of rejected requests since the start.
    pub fn rejections(&self) -> Rejections {
        self.rejections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Second>> {
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Samples the metrics once a second until it is dropped.
    pub async fn watch(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        hub: Arc<Hub>,
        committed: Committed,
    ) {
        let mut rounds = interval(Duration::from_secs(1));
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        rounds.tick().await;
        let mut before = store.commit_metrics().read();
        loop {
            rounds.tick().await;
            let now = store.commit_metrics().read();
            let mut second = between(before, now);
            second.streams = hub.attached();
            second.waiting = committed.waiting();
            before = now;
            let mut seconds = self.kept();
            if seconds.len() == METRICS_SECS {
                seconds.pop_front();
            }
            seconds.push_back(second);
        }
    }
}

fn between(before: CommitCounts, now: CommitCounts) -> Second {
    let commits = now.commits.saturating_sub(before.commits);
    let micros = now.commit_micros.saturating_sub(before.commit_micros);
    Second {
        events: now.events.saturating_sub(before.events),
        commits,
        commit_micros: micros.checked_div(commits).unwrap_or(0),
        slowest_micros: now.slowest_micros,
        ..Second::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_the_difference_of_two_counts() {
        let counts = |events, commits, commit_micros| CommitCounts {
            events,
            commits,
            commit_micros,
            slowest_micros: 900,
        };
        let second = between(counts(10, 2, 400), counts(40, 5, 1_900));
        assert_eq!((second.events, second.commits), (30, 3));
        assert_eq!((second.commit_micros, second.slowest_micros), (500, 900));
        let quiet = between(counts(1, 1, 1), counts(1, 1, 1));
        assert_eq!(quiet.commit_micros, 0, "nothing is divided by nothing");
    }
}
