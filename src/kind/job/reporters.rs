//! Who reports on a job, attempt by attempt: so that a worker of an earlier attempt, which does not know that it was given
//! up, cannot change a later one.
//!
//! A report that names its `attempt` needs none of this. Of one that does not, the server can tell at times that it comes
//! from an earlier attempt: its reporter was heard of then, and has not joined the present attempt since. A reporter
//! joins by `start`, which a worker that takes the job again calls and one that was given up does not, or by a report
//! that names the present attempt. One that was never heard of is taken for a worker of the present attempt.
//!
//! A worker that says which it is, is known by its token, too: it may say so in one report and not in the next.
//! Workers that share a token and do not say which `worker` they are cannot be told apart.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::kind::{Bound, RuleError, bounded};

/// The longest `worker`, in bytes.
pub const WORKER_MAX_BYTES: usize = 128;

/// The longest `sub` by which a reporter is known, in bytes: what OpenID Connect allows. A longer one is nobody's.
pub const SUB_MAX_BYTES: usize = 255;

/// Names of reporters of the present attempt that are remembered, and of all earlier ones together: those that joined last.
pub const REPORTERS_MAX: usize = 16;

/// A name of the one who reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reporter {
    /// What the report itself says.
    Worker(Arc<str>),
    /// The `sub` of the token that it came with.
    Sub(Arc<str>),
}

impl Reporter {
    /// Who reports, as far as that can be told: all names, the most precise one at the end.
    pub(super) fn of(worker: Option<&str>, sub: Option<&str>) -> Result<Vec<Reporter>, RuleError> {
        let known = sub.filter(|sub| (1..=SUB_MAX_BYTES).contains(&sub.len()));
        let mut names: Vec<_> = known
            .map(|sub| Reporter::Sub(sub.into()))
            .into_iter()
            .collect();
        if let Some(worker) = worker {
            let worker = bounded("worker", worker, Bound::constant(WORKER_MAX_BYTES))?;
            if worker.is_empty() {
                return Err(RuleError::Invalid {
                    field: "worker",
                    expected: format!("is a text of 1 to {WORKER_MAX_BYTES} bytes, or absent"),
                });
            }
            names.push(Reporter::Worker(worker));
        }
        Ok(names)
    }
}

/// Who has reported on a job. Nobody is both of the present attempt and of an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporters {
    /// In the present attempt, the last to report at the end.
    present: Vec<Reporter>,
    /// In earlier attempts only, the last to join at the end.
    earlier: Vec<Reporter>,
}

impl Reporters {
    /// Whether nobody has.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty() && self.earlier.is_empty()
    }

    /// The `worker` that reported last in the present attempt, of those that say which they are.
    pub fn worker(&self) -> Option<&str> {
        let mut newest_first = self.present.iter().rev();
        newest_first.find_map(|reporter| match reporter {
            Reporter::Worker(name) => Some(&**name),
            Reporter::Sub(_) => None,
        })
    }

    /// Whether it is known of an earlier attempt, and has not joined the present one.
    pub(super) fn is_stale(&self, reporter: &Reporter) -> bool {
        self.earlier.contains(reporter)
    }

    /// The bearer of these names reports on the present attempt.
    pub(super) fn join(&mut self, names: &[Reporter]) {
        self.earlier.retain(|own| !names.contains(own));
        self.present.retain(|own| !names.contains(own));
        self.present.extend_from_slice(names);
        keep_last(&mut self.present);
    }

    /// A new attempt begins, of which nobody has reported yet.
    pub(super) fn begin_attempt(&mut self) {
        self.earlier.append(&mut self.present);
        keep_last(&mut self.earlier);
    }

    /// Whether a report under these names would change nothing here.
    pub(super) fn are_last(&self, names: &[Reporter]) -> bool {
        self.present.ends_with(names)
    }
}

fn keep_last(reporters: &mut Vec<Reporter>) {
    let too_many = reporters.len().saturating_sub(REPORTERS_MAX);
    reporters.drain(..too_many);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str) -> Reporter {
        Reporter::of(Some(name), None).unwrap().remove(0)
    }

    #[test]
    fn as_many_reporters_are_remembered_as_there_is_room_for_the_newest_first() {
        let mut reporters = Reporters::default();
        for number in 0..40 {
            reporters.join(&[worker(&format!("w{number}"))]);
        }
        assert_eq!(reporters.worker(), Some("w39"));
        reporters.begin_attempt();
        assert_eq!(reporters.worker(), None);
        let stale = |number: usize| reporters.is_stale(&worker(&format!("w{number}")));
        assert!(!stale(23) && (24..40).all(stale));
    }

    #[test]
    fn a_worker_is_not_taken_for_a_token_of_the_same_name() {
        let mut reporters = Reporters::default();
        reporters.join(&[worker("a")]);
        reporters.begin_attempt();
        let by_token = Reporter::of(None, Some("a")).unwrap().remove(0);
        assert!(reporters.is_stale(&worker("a")) && !reporters.is_stale(&by_token));
    }

    #[test]
    fn nobody_is_known_by_a_token_without_a_sub_or_with_an_endless_one() {
        for sub in [
            None,
            Some(String::new()),
            Some("x".repeat(SUB_MAX_BYTES + 1)),
        ] {
            assert_eq!(Reporter::of(None, sub.as_deref()), Ok(vec![]));
        }
        for name in [String::new(), "x".repeat(WORKER_MAX_BYTES + 1)] {
            assert!(Reporter::of(Some(&name), None).is_err());
        }
    }
}
