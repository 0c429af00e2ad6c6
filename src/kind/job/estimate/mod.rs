//! Estimates when a running job will be done, with a range that contains the end in four of five cases.
//!
//! Two sources are weighted against each other. The attempt's own pace ([`pace`]) has more weight the longer and the more
//! evenly the attempt has been running. Earlier jobs of the same type ([`history`]) have more weight the more similar
//! they were, and none once this job clearly differs from them. Their course is used as well: if they spent most of their
//! time on the last tenth, the same is expected of this job.
//!
//! - Seconds and percent are counted from the attempt's *first* value: an attempt that continues from 60 % did not do
//!   those 60 % instantly.
//! - Reports without progress, such as messages and repeated values, change nothing; only time passes.
//! - Until the next step is due, the estimated end does not change. Once the step is overdue, the end moves later, by the
//!   time that such a silence usually lasts.
//! - A single long pause does not count as work. From the second similar pause on, pauses count as part of the job.
//!
//! The weights are measured, not derived: `cargo bench --bench eta` compares this estimator with other methods.

mod history;
mod pace;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::history::Tenths;
pub use self::history::{Course, History, Past};
use self::pace::{RateLimit, Step};
use crate::number::whole;

/// A step is a pause if it takes more than this many times as long as the longest step so far and as the expected
/// duration.
const PAUSE_FACTOR: f64 = 5.4;
/// The smallest progress, in percent, that counts as a step; smaller ones are added to the next step. Stored values have
/// seven digits.
const STEP_MIN: f64 = 1e-4;
/// The number of steps from which pauses can be distinguished from work.
const PAUSE_STEPS: u32 = 3;
/// Once pauses recur, this many consecutive steps with a pause mean that the pace has changed.
const PAUSES_IN_A_ROW: u32 = 3;
/// Two pauses are of the same kind if the second is at least this fraction of the first.
const PAUSE_LIKENESS: f64 = 0.25;
/// The odds that a pause recurs, if its position in the job favours neither case.
const RECURRENCE_ODDS: f64 = 0.5;
/// The maximum number of times that a recurring pause is assumed to occur in a job.
const RECURRENCES_MAX: f64 = 50.0;
/// The minimum remaining time of an overdue step, as a multiple of the time by which it is overdue: the multiple for even
/// steps, and how much is added to it for very uneven steps.
const OVERDUE_MIN: (f64, f64) = (0.53, 0.02);
/// The maximum of that multiple.
const OVERDUE_MAX: f64 = 20.0;
/// The maximum remaining time of an overdue step, as a multiple of the remaining work.
const OVERDUE_WORK: f64 = 0.68;
/// The minimum remaining time of a step, as a multiple of its usual duration, for a standard deviation of 1.
const UNEVEN_STEP: f64 = 1.0;
/// How strongly an overdue step affects the pace: the factor for very uneven steps, and the scatter at which half of that
/// factor applies.
const OVERDUE_PACE: (f64, f64) = (0.35, 0.2);
/// What is added to that factor after the first step, when only one step is known.
const OVERDUE_FRESH: f64 = 0.55;
/// The weight, in steps, of the initial assumption that steps are very uneven (a scatter of 1).
const UNEVEN_FOR_STEPS: f64 = 13.0;
/// The maximum variance of the logarithm of the remaining time.
const VARIANCE_MAX: f64 = 0.96;
/// The prior probability that a job is like the earlier ones.
const LIKE_OTHERS: f64 = 0.8;
/// The probability density of the logarithm of a job's duration, if the job is unlike the earlier ones.
const UNLIKE_DENSITY: f64 = 0.25;
/// 80 % of a normal distribution is within this many standard deviations of the mean.
const RANGE: f64 = 1.2816;
/// The minimum standard deviation of the logarithm of the remaining time.
const DEVIATION_MIN: f64 = 0.01;
/// The maximum of that deviation.
const DEVIATION_MAX: f64 = 1.5;
/// The minimum remaining time: a published end is in the future, even if the job has reported 100 % but is not completed
/// yet.
const LEFT_MIN_SECS: f64 = 0.001;
/// The maximum remaining time: beyond it, there is no estimate.
const HORIZON_SECS: f64 = 10.0 * 365.0 * 86_400.0;
/// The weight below which [`EtaSource`] does not mention a source.
const NAMED_FROM: f64 = 0.05;
/// The minimum time until the next check: for very uneven steps, and how much is added for even steps, so that busy jobs
/// are not checked.
const LOOK_MIN_SECS: (f64, f64) = (1.0, 5.0);
/// The multiple of its expected duration at which a step is checked: for very uneven steps, and how much is added for
/// even steps.
const LOOK_STEPS: (f64, f64) = (1.0, 1.0);
/// After that first check, another one is due each time the silence has grown by this fraction.
const LOOK_GROWTH: f64 = 0.3;
/// The minimum change, as a factor, for which a new estimate is published without a report from the worker.
const WORTH_TELLING: f64 = 1.1;

/// The basis of an estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum EtaSource {
    /// This attempt's own progress.
    Rate,
    /// Earlier jobs of the same type.
    History,
    /// Both.
    Both,
}

impl EtaSource {
    /// Every source.
    pub const ALL: [EtaSource; 3] = [EtaSource::Rate, EtaSource::History, EtaSource::Both];

    /// Returns the name in messages and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            EtaSource::Rate => "rate",
            EtaSource::History => "history",
            EtaSource::Both => "both",
        }
    }
}

/// The estimated end and a range around it. All three times are in the future when they are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eta {
    /// When the job is expected to be done.
    pub at: DateTime<Utc>,
    /// The start of the range that contains the end in four of five cases.
    pub low_at: DateTime<Utc>,
    /// The end of that range.
    pub high_at: DateTime<Utc>,
    /// The basis of the estimate.
    pub source: EtaSource,
}

impl Eta {
    /// Returns the estimate as it can be published at `now`, or `None` if the end has passed. In that case a later end is
    /// published soon.
    pub fn as_of(self, now: DateTime<Utc>) -> Option<Eta> {
        (self.at > now).then(|| Eta {
            low_at: self.low_at.max(now),
            ..self
        })
    }

    /// Returns whether to publish `later`, an estimate made at `now` without a new report from the worker.
    pub fn is_outdated_by(&self, later: &Eta, now: DateTime<Utc>) -> bool {
        let left = |eta: &Eta| seconds(eta.at - now);
        left(self) <= 0.0
            || !(1.0 / WORTH_TELLING..WORTH_TELLING).contains(&(left(later) / left(self)))
    }
}

/// The remaining seconds, with their precision and basis.
#[derive(Debug, Clone, Copy)]
struct Left {
    secs: f64,
    /// Their standard deviation, in seconds.
    error: f64,
    source: EtaSource,
}

/// Everything from which the end of an attempt is estimated. It is stored with the job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Estimator {
    /// When the attempt started.
    #[serde(with = "chrono::serde::ts_milliseconds")]
    since: DateTime<Utc>,
    history: Option<History>,
    /// The first value: its time in seconds since the start, and its percentage.
    first: Option<(f64, f64)>,
    /// When the highest value so far was reached, in seconds since the start.
    at: f64,
    /// That value, in percent.
    progress: f64,
    /// The duration of the longest step without a pause, in seconds.
    longest: f64,
    /// The shortest and the longest of the recurring pauses, in seconds.
    recurring: Option<(f64, f64)>,
    /// The number of steps with a pause since the last one without.
    pauses_in_a_row: u32,
    /// A pause that does not count as work, in seconds.
    pause: f64,
    /// How many of the seconds since the highest value are downtime of the server.
    #[serde(default)]
    away: f64,
    tenths: Tenths,
    pace: RateLimit,
}

impl Estimator {
    /// Creates an estimator for an attempt that starts now.
    pub fn starting(now: DateTime<Utc>, history: Option<History>) -> Estimator {
        Estimator {
            since: now,
            history,
            first: None,
            at: 0.0,
            progress: 0.0,
            longest: 0.0,
            recurring: None,
            pauses_in_a_row: 0,
            pause: 0.0,
            away: 0.0,
            tenths: Tenths::default(),
            pace: RateLimit::default(),
        }
    }

    /// Returns whether any value has been observed.
    pub fn has_observed(&self) -> bool {
        self.first.is_some()
    }

    /// Records that the worker was heard from, after the server was down for `away`.
    pub fn hear(&mut self, away: Duration) {
        self.away += away.as_secs_f64();
    }

    /// Records that `progress` percent are reached. Several reports within a millisecond count as one.
    pub fn observe(&mut self, progress: f64, now: DateTime<Utc>) {
        let at = self.elapsed(now);
        let Some(first) = self.first else {
            self.tenths.authorize((0.0, 0.0), (at, progress));
            self.first = Some((at, progress));
            (self.at, self.progress, self.away) = (at, progress, 0.0);
            return;
        };
        let secs = at - self.at;
        if secs < 0.0 {
            // The clock was set back: the duration of the step is unknown.
            self.at = at;
            self.first = Some((first.0.min(at), first.1));
        }
        let percent = self.share_of_time(progress) - self.share_of_time(self.progress);
        if secs <= 0.0 || percent < STEP_MIN {
            return;
        }
        self.tenths
            .authorize((self.at, self.progress), (at, progress));
        let step = self.without_pause(secs, percent);
        self.pace.learn(step, percent, self.share_of_time(progress));
        (self.at, self.progress, self.away) = (at, progress, 0.0);
    }

    /// Returns the part of a step that counts as work.
    fn without_pause(&mut self, secs: f64, percent: f64) -> Step {
        let expected = self
            .pace
            .outlook()
            .map_or(secs, |outlook| outlook.pace * percent);
        // While the server was down, the worker may have continued or stopped: use the assumption that fits better.
        let heard = (secs - self.away).max(0.0);
        let misfit = |secs: f64| (secs / expected).ln().abs();
        let secs = if misfit(heard) < misfit(secs) {
            heard
        } else {
            secs
        };
        if self.recurring.is_some() {
            return self.with_recurring_pauses(secs, percent);
        }
        if !self.is_pause(secs, expected) {
            self.pauses_in_a_row = 0;
            self.longest = self.longest.max(secs);
            return Step::plain(secs);
        }
        if self.pause > 0.0 && secs > PAUSE_LIKENESS * self.pause {
            let pause = std::mem::take(&mut self.pause);
            // Two consecutive steps of this length are not pauses: the pace has changed.
            let recurs = self.pauses_in_a_row == 0;
            self.pace.count_in(pause, recurs);
            self.pauses_in_a_row = 1;
            if recurs {
                self.recurring = Some((pause.min(secs), pause.max(secs)));
                return self.pause_in(secs, percent);
            }
            self.longest = secs;
            return Step::plain(secs);
        }
        self.pauses_in_a_row = 1;
        self.pause += secs - expected;
        Step::plain(expected)
    }

    /// Like [`Self::without_pause`], once pauses are known to recur. They count as work, but are distinguished from the
    /// steps between them.
    fn with_recurring_pauses(&mut self, secs: f64, percent: f64) -> Step {
        let (shortest, longest) = self.recurring.unwrap_or_default();
        if secs <= (PAUSE_LIKENESS * shortest).max(PAUSE_FACTOR * self.longest) {
            self.pauses_in_a_row = 0;
            self.longest = self.longest.max(secs);
            return Step::plain(secs);
        }
        self.pauses_in_a_row += 1;
        if self.pauses_in_a_row >= PAUSES_IN_A_ROW {
            self.recurring = None;
            self.longest = secs;
            self.pace.forget_pauses();
            return Step::plain(secs);
        }
        self.recurring = Some((shortest.min(secs), longest.max(secs)));
        self.pause_in(secs, percent)
    }

    /// Returns a step that contains a pause.
    fn pause_in(&self, secs: f64, percent: f64) -> Step {
        let pause = secs - self.pace.without_pauses(percent).min(secs);
        Step { secs, pause }
    }

    fn is_pause(&self, secs: f64, expected: f64) -> bool {
        self.pace.steps >= PAUSE_STEPS && secs > PAUSE_FACTOR * self.longest.max(expected)
    }

    /// Returns the estimated end, if there is one. `away` is the part of the silence in which the server was down.
    pub fn estimate(&self, now: DateTime<Utc>, away: Duration) -> Option<Eta> {
        let elapsed = self.elapsed(now);
        let left = match (self.by_pace(elapsed, away), self.by_history(elapsed)) {
            (Some(by_pace), Some(usual)) => Self::weighed(by_pace, usual),
            (by_pace, usual) => by_pace.or(usual)?,
        };
        let deviation = (left.error / left.secs).clamp(DEVIATION_MIN, DEVIATION_MAX);
        let factor = (RANGE * deviation).exp();
        if left.secs > HORIZON_SECS {
            return None;
        }
        let after = |secs: f64| {
            let millis = whole((secs.clamp(LEFT_MIN_SECS, HORIZON_SECS) * 1000.0).round());
            now.checked_add_signed(TimeDelta::milliseconds(millis))
        };
        Some(Eta {
            at: after(left.secs)?,
            low_at: after(left.secs / factor)?,
            high_at: after(left.secs * factor)?,
            source: left.source,
        })
    }

    /// Returns after how long to check the estimate again if no report arrives: when a step is clearly overdue, and then
    /// at growing intervals.
    pub fn look_in(&self, now: DateTime<Utc>, away: Duration) -> Option<Duration> {
        let step = self.pace.outlook()?.pace * self.pace.step();
        let silence = self.silence(self.elapsed(now), away);
        let even = 1.0 - self.scatter().min(1.0);
        let overdue = LOOK_STEPS.0 + LOOK_STEPS.1 * even;
        let secs = (overdue * step - silence)
            .max(LOOK_GROWTH * silence)
            .max(LOOK_MIN_SECS.0 + LOOK_MIN_SECS.1 * even);
        Some(Duration::from_secs_f64(secs.min(HORIZON_SECS)))
    }

    /// Returns the duration and course of an attempt that completes at `now`, for later jobs of its type. Returns `None`
    /// if the attempt continued from where another one stopped, or if its duration is unknown.
    pub fn past(&self, now: DateTime<Utc>) -> Option<Past> {
        let secs = self.elapsed(now);
        // If a job completes without having been reported as running, its duration is unknown.
        let known = secs > 0.0 && !self.is_resumed(secs);
        known.then(|| Past {
            secs,
            course: self
                .first
                .is_some()
                .then(|| self.tenths.course((self.at, self.progress), secs)),
        })
    }

    /// Returns whether the first value was reached far sooner than the pace of the rest allows, if the whole attempt took
    /// `secs`.
    fn is_resumed(&self, secs: f64) -> bool {
        /// How many times faster than the rest.
        const FASTER: f64 = 3.0;
        self.first
            .is_some_and(|(at, progress)| at * FASTER * (100.0 - progress) < (secs - at) * progress)
    }

    /// Estimates the remaining time from the attempt's own pace, once there is one.
    fn by_pace(&self, elapsed: f64, away: Duration) -> Option<Left> {
        let outlook = self.pace.outlook()?;
        let rest = 100.0 - self.share_of_time(self.progress);
        let step = self.pace.step().min(rest);
        let due = outlook.pace * step;
        let silence = self.silence(elapsed, away);
        let plain = (rest - step) * outlook.pace;
        let lull = self.lull(silence, due, plain);
        // An unusually long silence also affects the remaining steps; if it is a pause, by the likelihood that such
        // pauses recur.
        let usual = self.recurring.map_or(0.0, |(_, longest)| longest);
        let overdue = (silence - due.max(usual) * (1.0 - self.freshness())).max(0.0);
        let longer = |secs: f64| ((self.pace.worked + secs) / self.pace.worked).ln();
        let (slower, pauses) = match self.recurring.is_none() && self.is_pause(silence, due) {
            true => (0.0, self.pause + overdue),
            false => (self.unevenness() * longer(overdue), self.pause),
        };
        let more = match pauses > 0.0 {
            true => self.recurrence(pauses) * longer(pauses),
            false => 0.0,
        };
        let secs = (plain * (slower + more).exp() + lull).max(LEFT_MIN_SECS);
        let lull_share = lull * self.pace.scatter.sqrt().max(0.1) / secs;
        let variance =
            (outlook.variance + more * more).min(VARIANCE_MAX) + 0.5 * lull_share * lull_share;
        Some(Left {
            secs,
            error: secs * variance.sqrt().max(DEVIATION_MIN),
            source: EtaSource::Rate,
        })
    }

    /// Returns how strongly an overdue step affects the remaining ones, from 0 for even steps.
    fn unevenness(&self) -> f64 {
        let scatter = self.scatter();
        let limit = OVERDUE_PACE.0 + OVERDUE_FRESH * self.freshness();
        limit * scatter / (scatter + OVERDUE_PACE.1)
    }

    /// Returns how uneven the steps are. With few steps, the result is close to the initial assumption.
    fn scatter(&self) -> f64 {
        let steps = f64::from(self.pace.steps);
        (self.pace.scatter * steps + UNEVEN_FOR_STEPS) / (steps + UNEVEN_FOR_STEPS)
    }

    /// Returns a weight that is 1 after the first step, and approaches 0 with further steps.
    fn freshness(&self) -> f64 {
        (1.0 - f64::from(self.pace.steps)).exp()
    }

    /// Returns the remaining time of the current step after `silence` seconds.
    fn lull(&self, silence: f64, due: f64, work: f64) -> f64 {
        let deviation = self.pace.scatter.sqrt().min(1.0);
        let uneven = UNEVEN_STEP * deviation * due;
        let overdue = silence - due;
        if overdue <= 0.0 {
            return (-overdue).max(uneven);
        }
        let least = uneven + (OVERDUE_MIN.0 + OVERDUE_MIN.1 * deviation) * overdue;
        // There were longer steps, so this one may be like them.
        let longest = self.recurring.map_or(self.longest, |(_, longest)| longest);
        let upper = if silence < longest {
            uneven
        } else {
            OVERDUE_WORK * work
        };
        least.max(upper.min(OVERDUE_MAX * overdue))
    }

    /// Returns the probability that pauses of `secs` recur.
    ///
    /// There are two hypotheses: the pause recurs up to [`RECURRENCES_MAX`] times in a job (the logarithm of the number
    /// is uniformly distributed), or it is a single pause at any place. The less progress the attempt has made so far, the
    /// more likely is the first. It is also more likely if the pauses take longer than the work.
    fn recurrence(&self, secs: f64) -> f64 {
        let base = self
            .first
            .map_or(0.0, |(_, progress)| self.share_of_time(progress));
        let done = (self.share_of_time(self.progress) - base) / 100.0;
        let spread = (-done).exp() - (-RECURRENCES_MAX * done).exp();
        let outweigh = (secs / self.pace.worked).max(1.0);
        let odds = RECURRENCE_ODDS * outweigh * spread / (RECURRENCES_MAX.ln() * done);
        odds / (1.0 + odds)
    }

    /// Estimates the remaining time from earlier jobs. Returns `None` once this one has taken longer than they did.
    fn by_history(&self, elapsed: f64) -> Option<Left> {
        let history = self.history?;
        let mut whole = history.secs;
        let mut since = 0.0;
        if let Some((at, progress)) = self.first {
            let share = self.share_of_time(progress) / 100.0;
            if at * 3.0 < share * whole {
                // The attempt continued from there.
                whole *= 1.0 - share;
                since = at;
            }
        }
        let secs = whole - (elapsed - since);
        (secs > 0.0).then_some(Left {
            secs,
            error: history.spread * whole,
            source: EtaSource::History,
        })
    }

    /// Combines both estimates, each weighted by its precision, and history also by how similar this job is to the
    /// earlier ones.
    fn weighed(by_pace: Left, usual: Left) -> Left {
        let both = by_pace.error.hypot(usual.error);
        let apart = (by_pace.secs - usual.secs) / both;
        let alike = LIKE_OTHERS * (-0.5 * apart * apart).exp() / both;
        let unlike = (1.0 - LIKE_OTHERS) * UNLIKE_DENSITY / by_pace.secs.max(usual.secs);
        let usual_weight = alike / (alike + unlike) / usual.error.powi(2);
        let pace_weight = by_pace.error.powi(-2);
        let all = pace_weight + usual_weight;
        let secs = (by_pace.secs * pace_weight + usual.secs * usual_weight) / all;
        let share = usual_weight / all;
        Left {
            secs,
            error: 1.0 / all.sqrt(),
            source: match share {
                _ if share < NAMED_FROM => EtaSource::Rate,
                _ if share > 1.0 - NAMED_FROM => EtaSource::History,
                _ => EtaSource::Both,
            },
        }
    }

    /// Converts progress to a share of time, if the history of the job type is known.
    fn share_of_time(&self, progress: f64) -> f64 {
        self.history
            .map_or(progress, |history| history.share_of_time(progress))
    }

    /// Returns the seconds since the last step, without downtime.
    fn silence(&self, elapsed: f64, away: Duration) -> f64 {
        (elapsed - self.at - self.away - away.as_secs_f64()).max(0.0)
    }

    fn elapsed(&self, now: DateTime<Utc>) -> f64 {
        seconds(now - self.since)
    }
}

fn seconds(delta: TimeDelta) -> f64 {
    delta.num_milliseconds() as f64 / 1000.0
}
