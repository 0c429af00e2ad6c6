//! How fast an attempt progresses, and how reliable that figure is.
//!
//! Three predictors each have an *opinion* on the pace: the average of the attempt, the average of its last steps, and
//! the latter extrapolated by the current trend. The trend covers only the second half of the attempt, so that one that
//! has reversed does not count. The first is right if the pace is constant with uneven steps, the second if the pace has
//! changed for good, and the third if it keeps changing. Which case applies cannot be known in advance, so opinions are
//! recorded from time to time, compared with what happened later, and weighted by their accuracy. The past errors of the
//! best opinion determine how wide the range must be.

use serde::{Deserialize, Serialize};

/// The average, the last steps, the trend.
const OPINIONS: usize = 3;
/// The maximum number of earlier opinions kept for comparison. The older they are, the wider they are spaced.
const CHECKPOINTS_MAX: usize = 10;

/// The weight of a step among the last steps, relative to the step after it.
const KEEP_PER_STEP: f64 = 0.57;
/// The equivalent number of equally weighted steps.
const RECENT_STEPS: f64 = 1.0 / (1.0 - KEEP_PER_STEP);
/// The weight of each opinion as long as none was more accurate than the others.
const PRIOR: [f64; OPINIONS] = [1.0, 1.5, 0.01];
/// How much less the opinions other than the average weigh if steps are uneven, for a scatter of 1: an exponent.
const UNEVEN: f64 = 4.0;
/// How strongly a worse record lowers the weight.
const SHARPNESS: f64 = 0.85;
/// How much less a past interval counts if it is longer or shorter than the remaining one: an exponent.
const LIKENESS: f64 = 0.42;
/// The factor by which the trend is extrapolated.
const TREND: f64 = 5.0;
/// The limits of the trend's effect on the pace, as the logarithm of a factor. An acceleration is trusted less than a
/// slowdown, because postponed work comes at the end.
const TREND_MAX: (f64, f64) = (-0.09, 0.18);
/// The variance of the logarithm that every comparison tolerates.
const TOLERANCE: f64 = 0.01;
/// How much an error shared by all opinions excuses each of them.
const EXCUSE: f64 = 0.018;
/// The weight of records whose checkpoints are no longer kept.
const CARRIED: f64 = 0.042;
/// How much the variance grows with the disagreement between opinions.
const DISAGREEMENT: f64 = 80.0;
/// How much of the disagreement is attributed to the unevenness of so few steps.
const CHANCE: f64 = 0.34;
/// How much the variance grows with past errors.
const PAST_ERRORS: f64 = 0.7;
/// The past error that is assumed until there are records.
const UNKNOWN_ERRORS: f64 = 0.1;
/// The variance for a single step; it falls with the square of the number of steps.
const FIRST_STEP: f64 = 0.25;
/// The number of steps from which a step can be compared with earlier ones.
const SCATTER_FROM: u32 = 3;
/// The number of steps over which the scatter is averaged.
const SCATTER_STEPS: f64 = 30.0;

/// A sum of seconds and a sum of percent.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Memory(f64, f64);

impl Memory {
    fn add(&mut self, keep: f64, secs: f64, percent: f64) {
        self.0 = self.0 * keep + secs;
        self.1 = self.1 * keep + percent;
    }

    /// Returns the logarithm of the seconds per percent.
    fn pace(self) -> f64 {
        (self.0 / self.1).ln()
    }
}

/// Recorded opinions. The serialized names are short, because each job stores several.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Checkpoint {
    /// Seconds of work.
    #[serde(rename = "w")]
    worked: f64,
    /// Percent.
    #[serde(rename = "p")]
    progress: f64,
    /// The logarithm of the seconds per percent, on average and for the last steps.
    #[serde(rename = "a")]
    average: f64,
    #[serde(rename = "r")]
    recent: f64,
    /// By how much that logarithm grows per percent.
    #[serde(rename = "t")]
    trend: f64,
}

impl Checkpoint {
    /// Returns each opinion on the next `percent`.
    fn opinions(&self, percent: f64) -> [f64; OPINIONS] {
        let drift = (self.trend * percent / 2.0).clamp(TREND_MAX.0, TREND_MAX.1);
        [self.average, self.recent, self.recent + drift]
    }
}

/// The accuracy of a checkpoint's opinions.
struct Record {
    /// The weight of the record.
    weight: f64,
    /// How much worse than the best opinion each one was, relative to the usual error.
    regrets: [f64; OPINIONS],
    /// The squared error of the best opinion.
    least: f64,
}

/// The duration of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// In seconds.
    pub(super) secs: f64,
    /// How much of it was a recurring pause.
    pub(super) pause: f64,
}

impl Step {
    pub(super) fn plain(secs: f64) -> Step {
        Step { secs, pause: 0.0 }
    }
}

/// The prediction for the rest of the attempt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outlook {
    /// Seconds per percent.
    pub(super) pace: f64,
    /// The variance of the logarithm of the pace.
    pub(super) variance: f64,
}

/// The pace of an attempt.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct RateLimit {
    /// Steps so far.
    pub(super) steps: u32,
    /// Seconds of work so far, without the pauses that do not count.
    pub(super) worked: f64,
    /// Percent reached.
    progress: f64,
    all: Memory,
    /// The last steps, without their pauses.
    recent: Memory,
    /// Seconds of recurring pauses, which count as work.
    paused: f64,
    checkpoints: Vec<Checkpoint>,
    /// The sum of the records whose checkpoints are no longer kept.
    carried: [f64; OPINIONS],
    /// The mean square of the logarithm of the ratio between a step's actual and expected duration.
    pub(super) scatter: f64,
    /// The prediction after the last step. Not stored.
    #[serde(skip)]
    outlook: Option<Outlook>,
}

impl RateLimit {
    /// Records a step that led up to `progress`.
    pub(super) fn learn(&mut self, step: Step, percent: f64, progress: f64) {
        let Step { secs, pause } = step;
        if let Some(outlook) = self.outlook().filter(|_| self.steps >= SCATTER_FROM) {
            let error = (secs / (outlook.pace * percent)).ln();
            let seen = f64::from(self.steps - SCATTER_FROM).min(SCATTER_STEPS);
            self.scatter = (self.scatter * seen + error * error) / (seen + 1.0);
        }
        self.steps = self.steps.saturating_add(1);
        self.worked += secs;
        self.progress = progress;
        self.all.add(1.0, secs, percent);
        self.recent.add(KEEP_PER_STEP, secs - pause, percent);
        self.paused += pause;
        self.write_down();
        self.outlook = self.weigh();
    }

    /// Counts a former pause as work after all, and records whether such pauses recur.
    pub(super) fn count_in(&mut self, secs: f64, recurs: bool) {
        self.worked += secs;
        self.all.0 += secs;
        if recurs {
            self.paused += secs;
        }
        self.outlook = None;
    }

    /// Treats earlier pauses as part of the pace.
    pub(super) fn forget_pauses(&mut self) {
        self.paused = 0.0;
    }

    /// Returns how many seconds `percent` take without a pause.
    pub(super) fn without_pauses(&self, percent: f64) -> f64 {
        self.recent.0 / self.recent.1 * percent
    }

    /// Returns the usual size of a step, in percent.
    pub(super) fn step(&self) -> f64 {
        let weights = (1.0 - KEEP_PER_STEP.powf(self.steps.into())) * RECENT_STEPS;
        self.recent.1 / weights
    }

    fn write_down(&mut self) {
        let average = self.all.pace();
        // The last steps may contain fewer or more pauses than usual, so use the average over all steps.
        let recent = (self.without_pauses(1.0) + self.paused / self.all.1).ln();
        self.checkpoints.push(Checkpoint {
            worked: self.worked,
            progress: self.progress,
            average,
            recent,
            trend: TREND * self.trend(recent),
        });
        if self.checkpoints.len() <= CHECKPOINTS_MAX {
            return;
        }
        // Remove the checkpoint whose neighbours are closest together, relative to their distance from the current
        // progress.
        let past = |index: usize| self.progress - self.checkpoints[index].progress;
        let closeness = |index: &usize| past(index - 1) / past(index + 1).max(f64::MIN_POSITIVE);
        let candidates = 1..self.checkpoints.len() - 2;
        let closest = candidates.min_by(|a, b| closeness(a).total_cmp(&closeness(b)));
        let old = self.checkpoints.remove(closest.expect("there are several"));
        if let Some(record) = self.record(&old) {
            for (carried, regret) in self.carried.iter_mut().zip(record.regrets) {
                *carried += record.weight * regret;
            }
        }
    }

    /// Returns the difference between the pace of the last steps and that of the attempt's second half, per percent
    /// between them.
    fn trend(&self, recent: f64) -> f64 {
        let half_way = self.progress - self.all.1 / 2.0;
        let distance = |checkpoint: &&Checkpoint| (checkpoint.progress - half_way).abs();
        let middle = self
            .checkpoints
            .iter()
            .min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let Some(middle) = middle else { return 0.0 };
        let secs = self.worked - middle.worked;
        let percent = self.progress - middle.progress;
        if secs <= 0.0 || percent <= 0.0 {
            return 0.0;
        }
        // Divide by the distance from the last steps to the middle of that half.
        (recent - (secs / percent).ln()) / (percent / 2.0).max(1.0)
    }

    /// Returns the accuracy of a checkpoint's opinions since then.
    fn record(&self, checkpoint: &Checkpoint) -> Option<Record> {
        let secs = self.worked - checkpoint.worked;
        let percent = self.progress - checkpoint.progress;
        if secs <= 0.0 || percent <= 0.0 {
            return None;
        }
        let real = (secs / percent).ln();
        let errors = checkpoint
            .opinions(percent)
            .map(|opinion| (opinion - real).powi(2));
        let least = errors.into_iter().fold(f64::INFINITY, f64::min);
        let usual = TOLERANCE + self.scatter * (self.step() / percent).min(1.0) + EXCUSE * least;
        let ahead = self.rest();
        Some(Record {
            weight: (percent.min(ahead) / percent.max(ahead)).powf(LIKENESS),
            regrets: errors.map(|error| (error - least) / usual),
            least,
        })
    }

    /// Returns the remaining percent.
    fn rest(&self) -> f64 {
        (100.0 - self.progress).max(0.0)
    }

    /// Returns the prediction for the rest; `None` before the first step.
    pub(super) fn outlook(&self) -> Option<Outlook> {
        self.outlook.or_else(|| self.weigh())
    }

    /// Weights the opinions.
    fn weigh(&self) -> Option<Outlook> {
        let now = self.checkpoints.last()?;
        let (mut regrets, mut weight, mut errors) = ([0.0; OPINIONS], 0.0, 0.0);
        for record in self.checkpoints.iter().filter_map(|old| self.record(old)) {
            for (sum, regret) in regrets.iter_mut().zip(record.regrets) {
                *sum += record.weight * regret;
            }
            errors += record.weight * record.least;
            weight += record.weight;
        }
        // Records overlap, so four times as many carry only twice the evidence.
        let scale = if weight > 0.0 { weight.sqrt() } else { 1.0 };
        let regrets: [f64; OPINIONS] =
            std::array::from_fn(|index| regrets[index] / scale + CARRIED * self.carried[index]);
        let least = regrets.into_iter().fold(f64::INFINITY, f64::min);
        let uneven = UNEVEN * self.scatter;
        let penalties = [0.0, uneven, uneven];
        let weights: [f64; OPINIONS] = std::array::from_fn(|index| {
            PRIOR[index] * (-SHARPNESS * (regrets[index] - least) - penalties[index]).exp()
        });
        let all: f64 = weights.iter().sum();
        let opinions = now.opinions(self.rest());
        let weighted = || opinions.iter().zip(weights.map(|weight| weight / all));
        let pace: f64 = weighted()
            .map(|(opinion, weight)| weight * opinion.exp())
            .sum();
        let steps = f64::from(self.steps);
        let few = [steps, steps.min(RECENT_STEPS), steps.min(RECENT_STEPS)];
        let disagreement: f64 = weighted()
            .zip(few)
            .map(|((opinion, weight), steps)| {
                let apart = (opinion - pace.ln()).powi(2) - CHANCE * self.scatter / steps;
                weight * apart.max(0.0)
            })
            .sum();
        let past = if weight > 0.0 {
            errors / weight
        } else {
            UNKNOWN_ERRORS
        };
        Some(Outlook {
            pace,
            variance: DISAGREEMENT * disagreement
                + PAST_ERRORS * past
                + FIRST_STEP / (steps * steps),
        })
    }
}
