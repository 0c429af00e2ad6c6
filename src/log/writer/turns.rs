//! Turns: whose commands the next commit carries out.
//!
//! What is submitted waits by school. A commit takes a bounded slice from one school after the other, so a large batch
//! is carried out over several commits, and another school's report waits for the commit under way and its own.
//! Schools that have nothing left from an earlier turn come first; each commit serves at least one of the others. Within
//! a school the order is that of submission.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::vec;

use super::{Answer, Receipts, Submission};
use crate::config::{GROUP_MAX_BYTES, GROUP_MAX_COMMANDS, TURN_MAX_BYTES, TURN_MAX_COMMANDS};
use crate::id::SchoolId;
use crate::log::{Allowance, CommandError, Envelope, Receipt, StoreError};

/// Those who wait, in the order of their turns.
#[derive(Default)]
pub(super) struct Turns {
    schools: HashMap<SchoolId, Queue>,
    /// Schools that had nothing left.
    fresh: VecDeque<SchoolId>,
    /// Schools for which a turn was not enough.
    backlogged: VecDeque<SchoolId>,
}

/// The turns of one commit.
pub(super) struct Round {
    /// What it holds so far.
    pub(super) taken: Size,
    slice: Size,
    served: Vec<(SchoolId, Queue)>,
    serves_backlogged: bool,
}

/// What waits in one school.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Pending>,
    /// Decided to the last command in the commit under way.
    decided: Vec<Pending>,
}

/// A submission, as far as it is carried out.
pub(super) struct Pending {
    commands: vec::IntoIter<Envelope>,
    total: usize,
    allowance: Arc<Allowance>,
    /// Of the commands that are decided.
    receipts: Receipts,
    /// How many of them are committed.
    committed: usize,
    answer: Answer<Receipts>,
}

/// So many commands, and bytes of the events that they lead to.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Size {
    pub(super) commands: usize,
    pub(super) bytes: usize,
}

/// Most that a commit carries out. The last command may go beyond it.
const GROUP: Size = Size {
    commands: GROUP_MAX_COMMANDS,
    bytes: GROUP_MAX_BYTES,
};

/// Most of it that is of one school, if others wait as well.
const TURN: Size = Size {
    commands: TURN_MAX_COMMANDS,
    bytes: TURN_MAX_BYTES,
};

impl Size {
    fn reaches(self, most: Size) -> bool {
        self.commands >= most.commands || self.bytes >= most.bytes
    }

    /// What came since it was `before`.
    fn since(self, before: Size) -> Size {
        Size {
            commands: self.commands - before.commands,
            bytes: self.bytes - before.bytes,
        }
    }
}

impl Turns {
    pub(super) fn is_empty(&self) -> bool {
        self.schools.is_empty()
    }

    pub(super) fn add(&mut self, submission: Submission) {
        let school = submission.school;
        let queue = self.schools.entry(school).or_insert_with(|| {
            self.fresh.push_back(school);
            Queue::default()
        });
        queue.waiting.push_back(Pending {
            total: submission.commands.len(),
            receipts: Vec::new(),
            commands: submission.commands.into_iter(),
            allowance: submission.allowance,
            committed: 0,
            answer: submission.answer,
        });
    }

    /// Begins the turns of one commit.
    pub(super) fn begin(&self) -> Round {
        Round {
            taken: Size::default(),
            slice: match self.schools.len() {
                0 | 1 => GROUP,
                _ => TURN,
            },
            served: Vec::new(),
            serves_backlogged: false,
        }
    }

    /// The next school of a commit. Each has one turn in a commit.
    pub(super) fn next(&mut self, round: &mut Round) -> Option<(SchoolId, Queue)> {
        let has_room = !round.taken.reaches(GROUP);
        let fresh = has_room.then(|| self.fresh.pop_front()).flatten();
        let school = match fresh {
            Some(school) => school,
            // At least one, or those that always come anew would keep it waiting.
            None if has_room || !round.serves_backlogged => {
                let school = self.backlogged.pop_front()?;
                round.serves_backlogged = true;
                school
            }
            None => return None,
        };
        let queue = self.schools.remove(&school);
        Some((school, queue.expect("a school that has a turn waits")))
    }

    /// Answers those of whom all is committed, or nothing more will be; the others wait for their next turns.
    pub(super) fn settle(&mut self, round: Round, written: &Result<(), StoreError>) {
        for (school, mut queue) in round.served {
            queue.settle(written);
            if !queue.waiting.is_empty() {
                self.backlogged.push_back(school);
                self.schools.insert(school, queue);
            }
        }
    }
}

impl Round {
    /// Notes that a school has had its turn.
    pub(super) fn served(&mut self, school: SchoolId, queue: Queue) {
        self.served.push((school, queue));
    }

    /// Whether a turn that began at `before` is over.
    pub(super) fn is_over(&self, before: Size) -> bool {
        self.taken.since(before).reaches(self.slice)
    }
}

impl Queue {
    /// The next command, and how much it may still come to.
    pub(super) fn next(&mut self) -> Option<(Envelope, Arc<Allowance>)> {
        loop {
            let pending = self.waiting.front_mut()?;
            if let Some(envelope) = pending.commands.next() {
                return Some((envelope, Arc::clone(&pending.allowance)));
            }
            self.decided.extend(self.waiting.pop_front());
        }
    }

    /// Notes what became of the command that was taken last.
    pub(super) fn decided(&mut self, receipt: Result<Receipt, CommandError>) {
        let pending = self.waiting.front_mut();
        let pending = pending.expect("the submission of a command stays until the next is taken");
        pending.receipts.push(receipt);
        if pending.commands.len() == 0 {
            self.decided.extend(self.waiting.pop_front());
        }
    }

    fn settle(&mut self, written: &Result<(), StoreError>) {
        for pending in self.decided.drain(..) {
            pending.settle(written);
        }
        let Some(pending) = self.waiting.front_mut() else {
            return;
        };
        match written {
            Ok(()) => pending.committed = pending.receipts.len(),
            Err(_) if pending.is_under_way() => {
                let pending = self.waiting.pop_front().expect("it is there");
                pending.settle(written);
            }
            Err(_) => {}
        }
    }
}

impl Pending {
    /// Whether the commit under way holds commands of it.
    fn is_under_way(&self) -> bool {
        self.taken() > self.committed
    }

    fn taken(&self) -> usize {
        self.total - self.commands.len()
    }

    /// Answers. What was committed before a commit failed has happened; the rest has not.
    fn settle(mut self, written: &Result<(), StoreError>) {
        let answer = match written {
            Err(error) if self.committed == 0 => Err(error.clone()),
            Err(error) => {
                self.receipts.truncate(self.committed);
                let failed = || Err(CommandError::Store(error.clone()));
                self.receipts.resize_with(self.total, failed);
                Ok(self.receipts)
            }
            Ok(()) => Ok(self.receipts),
        };
        // A publisher that has gone does not need to know.
        let _ = self.answer.send(answer);
    }
}
