//! When a running job will be done: an estimate, and a range that holds the end in four of five cases.
//!
//! Two sources are weighed against each other. The attempt's own pace ([`pace`]) is worth more the longer and the more evenly it
//! runs. Earlier jobs of the same type ([`history`]) are worth more the more alike they were, and nothing once this job is clearly not like them.
//! Their course, too, counts: if such jobs spend most of their time on the last tenth, so will this one.
//!
//! - Seconds and percent are counted from the attempt's *first* value: an attempt that goes on from 60 % has not done 60 % in no time.
//! - Reports that bring no progress, such as messages and repeated values, change nothing but the clock.
//! - Until the next step is due, the end stays where it is. From then on it moves away, by as much as such a silence usually takes.
//! - A single long pause is not work. A second one of its kind is: then pauses belong to the job.
//!
//! The weights are measured, not derived: `cargo bench --bench eta` tells how this does against other rules.

mod history;
mod pace;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use self::history::Tenths;
pub use self::history::{Course, History, Past};
use self::pace::{Pace, Step};
use crate::number::whole;

/// A step that takes so many times the longest so far, and the expected, is a pause.
const PAUSE_FACTOR: f64 = 5.4;
/// The least progress, in percent, that is a step: less is added to what follows. What is stored has seven digits.
const STEP_MIN: f64 = 1e-4;
/// From so many steps on, pauses can be told from work.
const PAUSE_STEPS: u32 = 3;
/// So many steps with a pause in a row are no pauses: the pace has changed.
const PAUSES_IN_A_ROW: u32 = 3;
/// A pause of at least this share of the one before is of its kind.
const PAUSE_LIKENESS: f64 = 0.25;
/// The odds that a pause recurs, at the time when both are as likely from where it is.
const RECURRENCE_ODDS: f64 = 0.5;
/// How often a pause that recurs may do so in a job, at the most.
const RECURRENCES_MAX: f64 = 50.0;
/// A step that is overdue takes so many times as long again as it is overdue by now, at least: of even steps, and what very
/// uneven ones add.
const OVERDUE_MIN: (f64, f64) = (0.53, 0.02);
/// And at the most.
const OVERDUE_MAX: f64 = 20.0;
/// The most that an overdue step takes: so many times the work that is left.
const OVERDUE_WORK: f64 = 0.68;
/// The least that is left of a step, in its usual duration, for a standard deviation of one.
const UNEVEN_STEP: f64 = 1.0;
/// How far an overdue step counts for the pace: of very uneven steps, and the scatter at which it is half of that.
const OVERDUE_PACE: (f64, f64) = (0.35, 0.2);
/// How much further it counts after the first step, when a silence says as much as what came before.
const OVERDUE_FRESH: f64 = 0.55;
/// Steps are held to be as uneven as that (a scatter of 1) until so many are known.
const UNEVEN_FOR_STEPS: f64 = 13.0;
/// The largest variance of the logarithm of what is left.
const VARIANCE_MAX: f64 = 0.96;
/// How likely a job is to be like its predecessors, before anything is known of it.
const LIKE_OTHERS: f64 = 0.8;
/// The density of jobs that are not, by the logarithm of their duration.
const UNLIKE_DENSITY: f64 = 0.25;
/// Standard deviations on either side that hold 80 % of a normal distribution.
const RANGE: f64 = 1.2816;
/// The least standard deviation of the logarithm of what is left.
const DEVIATION_MIN: f64 = 0.01;
/// The largest.
const DEVIATION_MAX: f64 = 1.5;
/// An end that is told lies ahead, also of a job that has reported 100 % and is not completed yet.
const LEFT_MIN_SECS: f64 = 0.001;
/// Nothing beyond that is an estimate.
const HORIZON_SECS: f64 = 10.0 * 365.0 * 86_400.0;
/// A weight below which a source is not named.
const NAMED_FROM: f64 = 0.05;
/// Nobody needs to look again sooner than that: of very uneven steps, and what even ones add, so that a busy job is left alone.
const LOOK_MIN_SECS: (f64, f64) = (1.0, 5.0);
/// An overdue step is looked at when it takes so many times as long as it should: of very uneven steps, and what even ones add.
const LOOK_STEPS: (f64, f64) = (1.0, 1.0);
/// From then on, at each time when the silence has grown by this share.
const LOOK_GROWTH: f64 = 0.3;
/// The least change, as a factor, that is worth telling when nothing has been heard.
const WORTH_TELLING: f64 = 1.1;

/// Where an estimate of the end comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

    /// As it stands in messages and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            EtaSource::Rate => "rate",
            EtaSource::History => "history",
            EtaSource::Both => "both",
        }
    }
}

/// The estimated end. All three lie in the future when they are told, the range around the estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eta {
    /// When the job will be done.
    pub at: DateTime<Utc>,
    /// With this and [`Eta::high_at`]: the range that holds the end in four of five cases.
    pub low_at: DateTime<Utc>,
    /// See [`Eta::low_at`].
    pub high_at: DateTime<Utc>,
    /// What the estimate rests on.
    pub source: EtaSource,
}

impl Eta {
    /// As it may still be told at `now`. Nothing once it has passed: a later one is told before long.
    pub fn as_of(self, now: DateTime<Utc>) -> Option<Eta> {
        (self.at > now).then(|| Eta {
            low_at: self.low_at.max(now),
            ..self
        })
    }

    /// Whether `later`, made at `now` without anything new from the worker, is worth telling.
    pub fn is_outdated_by(&self, later: &Eta, now: DateTime<Utc>) -> bool {
        let left = |eta: &Eta| seconds(eta.at - now);
        left(self) <= 0.0
            || !(1.0 / WORTH_TELLING..WORTH_TELLING).contains(&(left(later) / left(self)))
    }
}

/// Seconds that are left, and what is known of that figure.
#[derive(Debug, Clone, Copy)]
struct Left {
    secs: f64,
    /// Its standard deviation, in seconds.
    error: f64,
    source: EtaSource,
}

/// What is known of an attempt's way to its end. It is stored with the job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Estimator {
    /// When the attempt started.
    #[serde(with = "chrono::serde::ts_milliseconds")]
    since: DateTime<Utc>,
    history: Option<History>,
    /// The first value: when, in seconds since the start, and percent.
    first: Option<(f64, f64)>,
    /// When the newest value was reached that was higher than those before, in seconds since the start.
    at: f64,
    /// That value, in percent.
    progress: f64,
    /// The longest step without a pause, in seconds.
    longest: f64,
    /// The shortest and the longest of the pauses that recur, in seconds.
    recurring: Option<(f64, f64)>,
    /// Steps with a pause since the last without.
    pauses_in_a_row: u32,
    /// A pause that does not count as work, in seconds.
    pause: f64,
    /// How many seconds since the newest value nobody was there to hear anything.
    #[serde(default)]
    away: f64,
    tenths: Tenths,
    pace: Pace,
}

impl Estimator {
    /// For an attempt that starts now.
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
            pace: Pace::default(),
        }
    }

    /// Whether any value has been observed.
    pub fn has_observed(&self) -> bool {
        self.first.is_some()
    }

    /// Takes in that something was heard again, after nobody had been there to hear anything for so long.
    pub fn hear(&mut self, away: Duration) {
        self.away += away.as_secs_f64();
    }

    /// Takes in that `progress` percent are reached. Several reports within a millisecond count as one.
    pub fn observe(&mut self, progress: f64, now: DateTime<Utc>) {
        let at = self.elapsed(now);
        let Some(first) = self.first else {
            self.tenths.reach((0.0, 0.0), (at, progress));
            self.first = Some((at, progress));
            (self.at, self.progress, self.away) = (at, progress, 0.0);
            return;
        };
        let secs = at - self.at;
        if secs < 0.0 {
            // The clock was set back: what the step took is not known.
            self.at = at;
            self.first = Some((first.0.min(at), first.1));
        }
        let percent = self.share_of_time(progress) - self.share_of_time(self.progress);
        if secs <= 0.0 || percent < STEP_MIN {
            return;
        }
        self.tenths.reach((self.at, self.progress), (at, progress));
        let step = self.without_pause(secs, percent);
        self.pace.learn(step, percent, self.share_of_time(progress));
        (self.at, self.progress, self.away) = (at, progress, 0.0);
    }

    /// What of a step counts as work.
    fn without_pause(&mut self, secs: f64, percent: f64) -> Step {
        let expected = self
            .pace
            .outlook()
            .map_or(secs, |outlook| outlook.pace * percent);
        // While nobody was there to hear it, the worker may have gone on or stood still: whichever fits better.
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
            // Two in a row are no pauses: the pace has changed.
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

    /// The same once pauses are known to recur: they are work, and told from the steps between them.
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

    /// A step in which there was a pause.
    fn pause_in(&self, secs: f64, percent: f64) -> Step {
        let pause = secs - self.pace.without_pauses(percent).min(secs);
        Step { secs, pause }
    }

    fn is_pause(&self, secs: f64, expected: f64) -> bool {
        self.pace.steps >= PAUSE_STEPS && secs > PAUSE_FACTOR * self.longest.max(expected)
    }

    /// The end, as far as it can be told. `away` is how much of the silence nobody was there to hear anything.
    pub fn estimate(&self, now: DateTime<Utc>, away: Duration) -> Option<Eta> {
        let elapsed = self.elapsed(now);
        let left = match (self.by_pace(elapsed, away), self.by_history(elapsed)) {
            (Some(own), Some(usual)) => Self::weighed(own, usual),
            (own, usual) => own.or(usual)?,
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

    /// After how long to look at the estimate again if nothing is heard: when a step is clearly overdue, and then ever
    /// more rarely.
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

    /// How the attempt went that is done now, for the jobs of its type that follow. Nothing if it went on from where
    /// another left off.
    pub fn past(&self, now: DateTime<Utc>) -> Option<Past> {
        let secs = self.elapsed(now);
        // One that was told to be done without ever having been told to run took nobody knows how long.
        let known = secs > 0.0 && !self.is_resumed(secs);
        known.then(|| Past {
            secs,
            course: self
                .first
                .is_some()
                .then(|| self.tenths.course((self.at, self.progress), secs)),
        })
    }

    /// Whether the first value was reached far sooner than the rest allows, the whole taking so many seconds.
    fn is_resumed(&self, secs: f64) -> bool {
        /// How many times faster than the rest.
        const FASTER: f64 = 3.0;
        self.first
            .is_some_and(|(at, progress)| at * FASTER * (100.0 - progress) < (secs - at) * progress)
    }

    /// By the attempt's own pace, once there is one.
    fn by_pace(&self, elapsed: f64, away: Duration) -> Option<Left> {
        let outlook = self.pace.outlook()?;
        let rest = 100.0 - self.share_of_time(self.progress);
        let step = self.pace.step().min(rest);
        let due = outlook.pace * step;
        let silence = self.silence(elapsed, away);
        let plain = (rest - step) * outlook.pace;
        let lull = self.lull(silence, due, plain);
        // Silence beyond what is usual tells of the steps to come, too: if it is a pause, as far as such pauses recur.
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

    /// How much an overdue step says of those to come, from 0 for even steps.
    fn unevenness(&self) -> f64 {
        let scatter = self.scatter();
        let most = OVERDUE_PACE.0 + OVERDUE_FRESH * self.freshness();
        most * scatter / (scatter + OVERDUE_PACE.1)
    }

    /// How uneven steps are, as far as so few tell.
    fn scatter(&self) -> f64 {
        let steps = f64::from(self.pace.steps);
        (self.pace.scatter * steps + UNEVEN_FOR_STEPS) / (steps + UNEVEN_FOR_STEPS)
    }

    /// From 1 after the first step to 0 after several.
    fn freshness(&self) -> f64 {
        (1.0 - f64::from(self.pace.steps)).exp()
    }

    /// What is left of the step under way, after so many seconds of silence.
    fn lull(&self, silence: f64, due: f64, work: f64) -> f64 {
        let deviation = self.pace.scatter.sqrt().min(1.0);
        let uneven = UNEVEN_STEP * deviation * due;
        let overdue = silence - due;
        if overdue <= 0.0 {
            return (-overdue).max(uneven);
        }
        let least = uneven + (OVERDUE_MIN.0 + OVERDUE_MIN.1 * deviation) * overdue;
        // There were longer ones, so that this one may be like them.
        let longest = self.recurring.map_or(self.longest, |(_, longest)| longest);
        let most = if silence < longest {
            uneven
        } else {
            OVERDUE_WORK * work
        };
        least.max(most.min(OVERDUE_MAX * overdue))
    }

    /// How likely it is that pauses of so many seconds come again. The earlier in a job the first one came, and the less has been done
    /// since, the likelier: pauses that recur up to [`RECURRENCES_MAX`] times, every number as likely by its
    /// logarithm, against a single one anywhere. And the likelier, the more they outweigh the work.
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

    /// By the jobs before, until it has taken longer than they did.
    fn by_history(&self, elapsed: f64) -> Option<Left> {
        let history = self.history?;
        let mut whole = history.secs;
        let mut since = 0.0;
        if let Some((at, progress)) = self.first {
            let share = self.share_of_time(progress) / 100.0;
            if at * 3.0 < share * whole {
                // It went on from there.
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

    /// Both, each by how far it can be relied on, and history only as far as this job may be like those.
    fn weighed(own: Left, usual: Left) -> Left {
        let both = own.error.hypot(usual.error);
        let apart = (own.secs - usual.secs) / both;
        let alike = LIKE_OTHERS * (-0.5 * apart * apart).exp() / both;
        let unlike = (1.0 - LIKE_OTHERS) * UNLIKE_DENSITY / own.secs.max(usual.secs);
        let usual_weight = alike / (alike + unlike) / usual.error.powi(2);
        let own_weight = own.error.powi(-2);
        let all = own_weight + usual_weight;
        let secs = (own.secs * own_weight + usual.secs * usual_weight) / all;
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

    /// Progress on the scale of time, if jobs like this are known to progress unevenly.
    fn share_of_time(&self, progress: f64) -> f64 {
        self.history
            .map_or(progress, |history| history.share_of_time(progress))
    }

    /// Seconds since the last step.
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
