//! Which schools have something to look at, and when.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::time::Instant;

use crate::id::SchoolId;

/// Which schools have something to look at. Names of schools only: the events wait in the log.
#[derive(Default)]
pub(super) struct Schedule {
    /// In turn, each once.
    pub(super) queue: VecDeque<SchoolId>,
    pub(super) queued: HashSet<SchoolId>,
    /// Something happened that is not wanted; to be looked at some time.
    pub(super) moved: HashSet<SchoolId>,
    /// A delivery failed, and is tried again then.
    pub(super) failed: HashMap<SchoolId, Retry>,
}

/// A delivery that is to be tried again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Of which event.
    pub seq: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried again.
    pub due: Instant,
}

impl Schedule {
    /// Lets a school have a turn after those that wait.
    pub(super) fn push(&mut self, school: SchoolId) {
        if self.queued.insert(school) {
            self.queue.push_back(school);
        }
    }

    /// The school whose turn it is.
    pub(super) fn pop(&mut self, now: Instant) -> Option<SchoolId> {
        let is_due = |retry: &Retry| retry.due <= now;
        let due = self.failed.iter().filter(|(_, retry)| is_due(retry));
        let due: Vec<SchoolId> = due.map(|(school, _)| *school).collect();
        due.into_iter().for_each(|school| self.push(school));
        while let Some(school) = self.queue.pop_front() {
            self.queued.remove(&school);
            match self.failed.get(&school) {
                None => return Some(school),
                Some(retry) if is_due(retry) => {
                    self.failed.remove(&school);
                    return Some(school);
                }
                // Its turn comes when the failed delivery is due.
                Some(_) => {}
            }
        }
        None
    }
}
