//! How accurate each rule is in each workload.

use super::rules::{Average, Indicatif, Median, Ours, Rule, Tqdm};
use super::workloads::{Run, Workload};

/// The rules. Tidings' own rule is the first.
pub(crate) const RULES: [&str; 5] = ["tidings", "tqdm", "indicatif", "average", "history"];
/// Number of evenly spaced times at which the estimates of a run are checked.
const LOOKS: usize = 200;
/// An estimate is far off if it is too long or too short by more than this factor.
const FAR_OFF: f64 = 3.0;

/// The result of one rule in one workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Score {
    /// The median factor between the estimate and the true value.
    pub(crate) factor: f64,
    /// The mean share of a run during which the estimate was far off, or missing although another rule had one.
    pub(crate) off: f64,
}

/// The result of one workload.
pub(crate) struct Row {
    /// The workload.
    pub(crate) name: &'static str,
    /// By rule. `None` for a rule without any estimate.
    pub(crate) scores: [Option<Score>; RULES.len()],
    /// How often the true value was within the estimated range.
    pub(crate) coverage: f64,
    /// How often there was a range.
    pub(crate) ranges: usize,
}

impl Row {
    /// The score of Tidings' own rule.
    pub(crate) fn our_score(&self) -> Score {
        self.scores[0].expect("our rule has estimates")
    }

    fn others(&self) -> impl Iterator<Item = Score> {
        self.scores[1..].iter().flatten().copied()
    }

    /// The best factor of the other rules.
    pub(crate) fn best_factor(&self) -> f64 {
        self.others()
            .map(|score| score.factor)
            .fold(f64::INFINITY, f64::min)
    }

    /// The smallest share of the other rules.
    pub(crate) fn least_off(&self) -> f64 {
        self.others()
            .map(|score| score.off)
            .fold(f64::INFINITY, f64::min)
    }

    /// Whether our rule is the best, or within 5 % of the best, and not far off for more than a tenth of a run where
    /// another rule achieves that.
    pub(crate) fn reaches_the_goal(&self) -> bool {
        let ours = self.our_score();
        ours.factor <= self.best_factor() * 1.05 && (ours.off <= 0.10 || self.least_off() > 0.10)
    }
}

/// All rules, applied to one run.
struct Field {
    ours: Ours,
    tqdm: Tqdm,
    indicatif: Indicatif,
    average: Average,
    median: Median,
}

impl Field {
    fn new(run: &Run) -> Field {
        Field {
            ours: Ours::new(run),
            tqdm: Tqdm::default(),
            indicatif: Indicatif::default(),
            average: Average::default(),
            median: Median::of(&run.earlier),
        }
    }

    /// In the order of [`RULES`].
    fn rules(&mut self) -> [&mut dyn Rule; RULES.len()] {
        [
            &mut self.ours,
            &mut self.tqdm,
            &mut self.indicatif,
            &mut self.average,
            &mut self.median,
        ]
    }
}

/// Checks one run. Adds the factors, and returns the shares that were far off and how many ranges contained the true
/// value.
fn follow(
    run: &Run,
    factors: &mut [Vec<f64>; RULES.len()],
) -> ([f64; RULES.len()], (usize, usize)) {
    let mut field = Field::new(run);
    let mut reports = run.reports.iter().peekable();
    let mut off = [0.0; RULES.len()];
    let (mut checks, mut within, mut ranges) = (0.0, 0, 0);
    for check in 0..LOOKS {
        let at = run.end * (check as f64 + 0.5) / LOOKS as f64;
        while let Some((time, progress)) = reports.next_if(|(time, _)| *time <= at) {
            for rule in field.rules() {
                rule.report(*time, *progress);
            }
        }
        let left = field.rules().map(|rule| rule.left(at));
        // A stalled job has no estimate, and without evidence no rule can make one.
        if at < run.from || field.ours.is_stalled(at) || left.iter().all(Option::is_none) {
            continue;
        }
        checks += 1.0;
        let truth = run.end - at;
        for (rule, left) in left.iter().enumerate() {
            let factor = left.map(|left| {
                let left = left.max(0.001);
                (left / truth).max(truth / left)
            });
            factors[rule].extend(factor);
            if factor.is_none_or(|factor| factor > FAR_OFF) {
                off[rule] += 1.0;
            }
        }
        if let Some((low, high)) = field.ours.range(at) {
            ranges += 1;
            within += usize::from((low..=high).contains(&truth));
        }
    }
    (off.map(|off| off / f64::max(checks, 1.0)), (within, ranges))
}

/// Measures a workload.
pub(crate) fn compare(workload: &Workload) -> Row {
    let mut factors: [Vec<f64>; RULES.len()] = Default::default();
    let mut off = [0.0; RULES.len()];
    let (mut within, mut ranges) = (0, 0);
    for run in &workload.runs {
        let (run_off, held) = follow(run, &mut factors);
        off.iter_mut()
            .zip(run_off)
            .for_each(|(sum, share)| *sum += share);
        within += held.0;
        ranges += held.1;
    }
    let mut off = off.map(|off| off / workload.runs.len() as f64).into_iter();
    let scores = factors.map(|mut factors| {
        factors.sort_by(f64::total_cmp);
        let off = off.next().expect("one for each rule");
        let factor = *factors.get(factors.len() / 2)?;
        Some(Score { factor, off })
    });
    Row {
        name: workload.name,
        scores,
        coverage: within as f64 / f64::max(ranges as f64, 1.0),
        ranges,
    }
}
