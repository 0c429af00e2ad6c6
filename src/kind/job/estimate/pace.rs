//! How fast progress is made, and how far that can be relied on.
//!
//! There are three opinions: the average of the attempt, the average of its last steps, and the latter with the trend of the attempt's
//! latter half going on, so that a trend that has turned is none. Where
//! the pace is steady but uneven, the first is right; where it changes for good, the second; where it changes steadily, the
//! third. Which is the case cannot be known beforehand, so opinions are written down now and then, compared with
//! what came, and weighted by how well they did. How far even the best was off says how wide the range must be.

use serde::{Deserialize, Serialize};

/// The average, the last steps, the trend.
const OPINIONS: usize = 3;
/// How many earlier opinions are kept to be compared, spaced ever more widely into the past.
const CHECKPOINTS_MAX: usize = 10;

/// What one step weighs less than the next among the last steps.
const KEEP_PER_STEP: f64 = 0.57;
/// How many steps that is like.
const RECENT_STEPS: f64 = 1.0 / (1.0 - KEEP_PER_STEP);
/// What each opinion weighs as long as none has done better.
const PRIOR: [f64; OPINIONS] = [1.0, 1.5, 0.01];
/// How much less the other opinions than the average weigh where steps are uneven, for a scatter of one: an exponent.
const UNEVEN: f64 = 4.0;
/// How sharply a worse record lowers the weight.
const SHARPNESS: f64 = 0.85;
/// How much less a stretch of the past counts that is longer or shorter than what lies ahead: an exponent.
const LIKENESS: f64 = 0.42;
/// How much of the trend is expected to go on.
const TREND: f64 = 5.0;
/// The most that the trend changes the pace by: the logarithm of a factor. That the rest takes ever less time is believed less
/// readily than that it takes more: what is put off is at the end.
const TREND_MAX: (f64, f64) = (-0.09, 0.18);
/// Variance of a logarithm that is let pass in any comparison.
const TOLERANCE: f64 = 0.01;
/// How much an error that all opinions share excuses each.
const EXCUSE: f64 = 0.018;
/// How much records count whose checkpoints are not kept any more.
const CARRIED: f64 = 0.042;
/// How much the variance grows with the disagreement of opinions.
const DISAGREEMENT: f64 = 80.0;
/// How much of the disagreement is put down to the unevenness of so few steps.
const CHANCE: f64 = 0.34;
/// How much the variance grows with past errors.
const PAST_ERRORS: f64 = 0.7;
/// Past errors of an attempt that has none yet.
const UNKNOWN_ERRORS: f64 = 0.1;
/// How much the variance is for a single step; it falls with the square of their number.
const FIRST_STEP: f64 = 0.25;
/// From so many steps on there is something that a step can be compared with.
const SCATTER_FROM: u32 = 3;
/// The steps over which the scatter of steps is averaged.
const SCATTER_STEPS: f64 = 30.0;

/// A sum of seconds and one of percent.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Memory(f64, f64);

impl Memory {
    fn add(&mut self, keep: f64, secs: f64, percent: f64) {
        self.0 = self.0 * keep + secs;
        self.1 = self.1 * keep + percent;
    }

    /// Logarithm of seconds for a percent.
    fn pace(self) -> f64 {
        (self.0 / self.1).ln()
    }
}

/// Opinions as they were. Short names, for there are several with each job.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Checkpoint {
    /// Seconds of work.
    #[serde(rename = "w")]
    worked: f64,
    /// Percent.
    #[serde(rename = "p")]
    progress: f64,
    /// Logarithm of seconds for a percent, on average and of the last steps.
    #[serde(rename = "a")]
    average: f64,
    #[serde(rename = "r")]
    recent: f64,
    /// By how much that logarithm grows with each percent.
    #[serde(rename = "t")]
    trend: f64,
}

impl Checkpoint {
    /// Each opinion on the next so many percent.
    fn opinions(&self, percent: f64) -> [f64; OPINIONS] {
        let drift = (self.trend * percent / 2.0).clamp(TREND_MAX.0, TREND_MAX.1);
        [self.average, self.recent, self.recent + drift]
    }
}

/// How the opinions of a checkpoint did.
struct Record {
    /// How much it counts.
    weight: f64,
    /// How much worse than the best each was, in usual errors.
    regrets: [f64; OPINIONS],
    /// The best one's squared error.
    least: f64,
}

/// How long a step took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// In seconds.
    pub(super) secs: f64,
    /// How much of it was a pause, of those that recur.
    pub(super) pause: f64,
}

impl Step {
    pub(super) fn plain(secs: f64) -> Step {
        Step { secs, pause: 0.0 }
    }
}

/// What is expected of the rest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outlook {
    /// Seconds for a percent.
    pub(super) pace: f64,
    /// Of its logarithm.
    pub(super) variance: f64,
}

/// The pace of an attempt.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Pace {
    /// Steps so far.
    pub(super) steps: u32,
    /// Seconds of work so far, without pauses that do not count.
    pub(super) worked: f64,
    /// Percent reached.
    progress: f64,
    all: Memory,
    /// The last steps, without their pauses.
    recent: Memory,
    /// Seconds of pauses that recur, which are a part of the work.
    paused: f64,
    checkpoints: Vec<Checkpoint>,
    /// Sum of the records whose checkpoints are not kept any more.
    carried: [f64; OPINIONS],
    /// Mean square of the logarithm of a step's duration against what was expected.
    pub(super) scatter: f64,
    /// What is expected of the rest, as the last step left it. Not stored.
    #[serde(skip)]
    outlook: Option<Outlook>,
}

impl Pace {
    /// Takes in a step that led up to `progress`.
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

    /// Takes in that time counts as work which was held to be a pause; and whether such pauses recur.
    pub(super) fn count_in(&mut self, secs: f64, recurs: bool) {
        self.worked += secs;
        self.all.0 += secs;
        if recurs {
            self.paused += secs;
        }
        self.outlook = None;
    }

    /// Takes in that what were held to be pauses is the pace.
    pub(super) fn forget_pauses(&mut self) {
        self.paused = 0.0;
    }

    /// What so many percent take without a pause, in seconds.
    pub(super) fn without_pauses(&self, percent: f64) -> f64 {
        self.recent.0 / self.recent.1 * percent
    }

    /// A usual step, in percent.
    pub(super) fn step(&self) -> f64 {
        let weights = (1.0 - KEEP_PER_STEP.powf(self.steps.into())) * RECENT_STEPS;
        self.recent.1 / weights
    }

    fn write_down(&mut self) {
        let average = self.all.pace();
        // There were few pauses among the last steps, or many: on average there are as many as in all.
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
        // The one goes whose neighbours are closest, seen from here.
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

    /// How the pace of the last steps differs from that of the attempt's latter half, for each percent in between.
    fn trend(&self, recent: f64) -> f64 {
        let half_way = self.progress - self.all.1 / 2.0;
        let distance = |own: &&Checkpoint| (own.progress - half_way).abs();
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
        // The middle of that half lies half of the way back.
        (recent - (secs / percent).ln()) / (percent / 2.0).max(1.0)
    }

    /// How the opinions of a checkpoint did since.
    fn record(&self, checkpoint: &Checkpoint) -> Option<Record> {
        let secs = self.worked - checkpoint.worked;
        let percent = self.progress - checkpoint.progress;
        if secs <= 0.0 || percent <= 0.0 {
            return None;
        }
        let real = (secs / percent).ln();
        let errors = checkpoint.opinions(percent).map(|own| (own - real).powi(2));
        let least = errors.into_iter().fold(f64::INFINITY, f64::min);
        let usual = TOLERANCE + self.scatter * (self.step() / percent).min(1.0) + EXCUSE * least;
        let ahead = self.rest();
        Some(Record {
            weight: (percent.min(ahead) / percent.max(ahead)).powf(LIKENESS),
            regrets: errors.map(|error| (error - least) / usual),
            least,
        })
    }

    /// Percent that are left.
    fn rest(&self) -> f64 {
        (100.0 - self.progress).max(0.0)
    }

    /// What is expected of the rest; nothing before the first step.
    pub(super) fn outlook(&self) -> Option<Outlook> {
        self.outlook.or_else(|| self.weigh())
    }

    /// Weighs the opinions.
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
        // Records overlap, so that four times as many say twice as much.
        let scale = if weight > 0.0 { weight.sqrt() } else { 1.0 };
        let regrets: [f64; OPINIONS] =
            std::array::from_fn(|own| regrets[own] / scale + CARRIED * self.carried[own]);
        let least = regrets.into_iter().fold(f64::INFINITY, f64::min);
        let uneven = UNEVEN * self.scatter;
        let doubts = [0.0, uneven, uneven];
        let weights: [f64; OPINIONS] = std::array::from_fn(|own| {
            PRIOR[own] * (-SHARPNESS * (regrets[own] - least) - doubts[own]).exp()
        });
        let all: f64 = weights.iter().sum();
        let opinions = now.opinions(self.rest());
        let weighted = || opinions.iter().zip(weights.map(|own| own / all));
        let pace: f64 = weighted().map(|(own, weight)| weight * own.exp()).sum();
        let steps = f64::from(self.steps);
        let few = [steps, steps.min(RECENT_STEPS), steps.min(RECENT_STEPS)];
        let disagreement: f64 = weighted()
            .zip(few)
            .map(|((own, weight), steps)| {
                let apart = (own - pace.ln()).powi(2) - CHANCE * self.scatter / steps;
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
