//! The history of a job type: how long earlier jobs took, how similar they were, and after which share of their time they
//! reached each tenth of their progress.

use serde::{Deserialize, Serialize};

/// Tenths of progress strictly between 0 and 100 %.
const TENTHS: usize = 9;

/// The shares of a job's duration, 0 to 1, after which it reached 10 %, 20 %, … 90 %.
pub type Course = [f64; TENTHS];

/// The duration and course of an earlier job.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// Its duration in seconds.
    pub secs: f64,
    /// Its course; `None` if it reported no progress.
    pub course: Option<Course>,
}

/// A summary of the earlier jobs of a type.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The median duration, in seconds.
    pub(super) secs: f64,
    /// The standard deviation of the logarithm of the next job's duration, as far as the earlier ones show it.
    pub(super) spread: f64,
    /// The median course, from 0 at 0 % to 1 at 100 %, strictly increasing.
    course: [f64; TENTHS + 2],
}

impl History {
    /// Returns `None` if there are no earlier jobs.
    pub fn of(past: &[Past]) -> Option<History> {
        let logs: Vec<f64> = past
            .iter()
            .filter(|job| job.secs > 0.0)
            .map(|job| job.secs.ln())
            .collect();
        let middle = median(logs.clone())?;
        Some(History {
            secs: middle.exp(),
            spread: spread(&logs, middle),
            course: course(past),
        })
    }

    /// Returns the percentage of its duration that a job like the earlier ones has used when it reports `progress`.
    pub(super) fn share_of_time(&self, progress: f64) -> f64 {
        let tenths = progress / 10.0;
        let below = (0..TENTHS)
            .take_while(|tenth| tenths >= (tenth + 1) as f64)
            .count();
        let (low, high) = (self.course[below], self.course[below + 1]);
        100.0 * (low + (high - low) * (tenths - below as f64))
    }
}

/// Returns the spread of the durations. A single job is hardly evidence for the next one; several jobs of equal duration
/// are.
fn spread(logs: &[f64], middle: f64) -> f64 {
    /// The spread that is assumed when only one job is known: a factor of 1.65.
    const UNKNOWN: f64 = 0.5;
    /// The number of jobs from which an outlier is ignored.
    const ROBUST_FROM: usize = 5;
    let count = logs.len() as f64;
    let squares: f64 = logs.iter().map(|log| (log - middle).powi(2)).sum();
    let mut variance = squares / (count - 1.0).max(1.0);
    if logs.len() >= ROBUST_FROM {
        let deviation = median(logs.iter().map(|log| (log - middle).abs()).collect());
        // 1.48 times the median absolute deviation is the standard deviation of a normal distribution; the factor 1.5 is
        // a safety margin.
        variance = variance.min((1.5 * 1.48 * deviation.unwrap_or(0.0)).powi(2));
    }
    (variance * (1.0 + 1.0 / count) + UNKNOWN.powi(2) / count.powi(3)).sqrt()
}

/// Returns the median course, pulled towards a uniform one if few jobs have a course.
fn course(past: &[Past]) -> [f64; TENTHS + 2] {
    /// The minimum weight of the uniform course, so that no tenth takes zero time.
    const EVEN: f64 = 0.05;
    let courses: Vec<Course> = past.iter().filter_map(|job| job.course).collect();
    let trust = (1.0 - EVEN) * courses.len() as f64 / (courses.len() as f64 + 1.0);
    std::array::from_fn(|tenth| {
        let even = tenth as f64 / (TENTHS + 1) as f64;
        let between = (1..=TENTHS).contains(&tenth);
        let usual = between.then(|| courses.iter().map(|course| course[tenth - 1]).collect());
        match usual.and_then(median) {
            Some(usual) => trust * usual + (1.0 - trust) * even,
            None => even,
        }
    })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values[low] + values[high]) / 2.0)
}

/// Records when each tenth is reached.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Tenths(Vec<f64>);

impl Tenths {
    /// Records the tenths that are reached between two points, if progress rises linearly between them. A point is the
    /// seconds since the start, and the percentage.
    pub(super) fn authorize(&mut self, from: (f64, f64), to: (f64, f64)) {
        while self.0.len() < TENTHS {
            let goal = (self.0.len() + 1) as f64 * 10.0;
            if to.1 < goal {
                return;
            }
            let share = ((goal - from.1) / (to.1 - from.1)).clamp(0.0, 1.0);
            self.0.push(from.0 + (to.0 - from.0) * share);
        }
    }

    /// Returns the tenths as shares of the total time; from the last point, progress rises linearly to 100 % at the end.
    pub(super) fn course(&self, last: (f64, f64), secs: f64) -> Course {
        let mut all = self.clone();
        all.authorize(last, (secs, 100.0));
        std::array::from_fn(|tenth| all.0[tenth] / secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(durations: &[f64]) -> History {
        let past: Vec<Past> = durations
            .iter()
            .map(|secs| Past {
                secs: *secs,
                course: None,
            })
            .collect();
        History::of(&past).unwrap()
    }

    #[test]
    fn jobs_that_are_alike_are_trusted_and_a_single_one_is_not() {
        assert_eq!(of(&[100.0]).secs.round(), 100.0);
        assert!(of(&[100.0]).spread >= 0.5);
        assert!(of(&[100.0, 101.0, 99.0, 100.0, 100.5]).spread < 0.1);
        assert!(of(&[20.0, 100.0, 500.0]).spread > 1.0);
        // One job in seven that was stopped early changes nothing.
        let odd = of(&[100.0, 101.0, 99.0, 100.0, 100.5, 99.5, 3.0]);
        assert!(odd.spread < 0.1, "{odd:?}");
        assert_eq!(History::of(&[]), None);
    }

    #[test]
    fn a_course_that_is_slow_at_the_end_is_learnt() {
        let mut tenths = Tenths::default();
        tenths.authorize((0.0, 0.0), (10.0, 50.0));
        tenths.authorize((10.0, 50.0), (100.0, 95.0));
        let course = tenths.course((100.0, 95.0), 110.0);
        assert!((course[4] - 10.0 / 110.0).abs() < 1e-9, "{course:?}");
        let past = [Past {
            secs: 110.0,
            course: Some(course),
        }; 9];
        let history = History::of(&past).unwrap();
        let half = history.share_of_time(50.0);
        assert!((9.0..17.0).contains(&half), "{half}");
        assert_eq!(history.share_of_time(0.0), 0.0);
        assert_eq!(history.share_of_time(100.0), 100.0);
        let shares: Vec<f64> = (0..=100).map(|p| history.share_of_time(p.into())).collect();
        assert!(shares.is_sorted_by(|a, b| a < b), "{shares:?}");
    }
}
