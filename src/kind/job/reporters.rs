//! Tracks which workers report on each attempt of a job. So a worker that was replaced without noticing cannot change a
//! later attempt.
//!
//! This is not needed for reports that name their `attempt`. For the others, the server can sometimes infer that a report
//! comes from an earlier attempt: its reporter took part in that one and has not joined the current attempt since. A
//! reporter joins the current attempt with a report that names the attempt, or with `start`. A worker calls `start` when
//! it takes the job again; a replaced worker does not. An unknown reporter counts as a worker of the current attempt.
//!
//! A worker that names itself is also tracked by its token, because it may name itself in one report and not in the next.
//! Workers that share a token and do not send `worker` cannot be distinguished.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::kind::{Bound, RuleError, bounded};

/// The longest `worker`, in bytes.
pub const WORKER_MAX_BYTES: usize = 128;

/// The longest `sub` that identifies a reporter, in bytes: the limit of OpenID Connect. A longer one identifies no
/// reporter.
pub const SUB_MAX_BYTES: usize = 255;

/// The number of names that are kept for the current attempt, and for all earlier ones together: the most recent ones.
pub const REPORTERS_MAX: usize = 16;

/// A name of a reporter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reporter {
    /// The `worker` that the report names.
    Worker(Arc<str>),
    /// The `sub` of the token with which the report came.
    Sub(Arc<str>),
}

impl Reporter {
    /// Returns the names of the reporter, as far as they are known, the most precise one last.
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
                    expected: format!("must have 1 to {WORKER_MAX_BYTES} bytes, or be absent"),
                });
            }
            names.push(Reporter::Worker(worker));
        }
        Ok(names)
    }
}

/// The workers that have reported on a job. No worker is in both lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporters {
    /// Reporters of the current attempt, the latest one last.
    present: Vec<Reporter>,
    /// Reporters of earlier attempts only, the last to join at the end.
    earlier: Vec<Reporter>,
}

impl Reporters {
    /// Returns whether there are no reporters.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty() && self.earlier.is_empty()
    }

    /// Returns the named `worker` that reported last in the current attempt.
    pub fn worker(&self) -> Option<&str> {
        let mut newest_first = self.present.iter().rev();
        newest_first.find_map(|reporter| match reporter {
            Reporter::Worker(name) => Some(&**name),
            Reporter::Sub(_) => None,
        })
    }

    /// Returns whether the reporter is known from an earlier attempt and has not joined the current one.
    pub(super) fn is_stale(&self, reporter: &Reporter) -> bool {
        self.earlier.contains(reporter)
    }

    /// Adds a reporter with these names to the current attempt.
    pub(super) fn join(&mut self, names: &[Reporter]) {
        self.earlier.retain(|reporter| !names.contains(reporter));
        self.present.retain(|reporter| !names.contains(reporter));
        self.present.extend_from_slice(names);
        keep_last(&mut self.present);
    }

    /// Starts a new attempt, which has no reporters yet.
    pub(super) fn begin_attempt(&mut self) {
        self.earlier.append(&mut self.present);
        keep_last(&mut self.earlier);
    }

    /// Returns whether these names are already the latest, so that a report under them changes nothing.
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
