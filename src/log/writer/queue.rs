//! The waiting commands of one school.
//!
//! A *fresh* submission, of which no command is committed, comes before those that have *begun*, up to half of the school's
//! turn, so a report does not wait for a large batch of its own school. Those that have begun get the other half. Both keep
//! the order of submission, as do the commands of a submission.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Answer, Receipts, Submission};
use crate::id::SchoolId;
use crate::log::{Allowance, CommandError, Envelope, Receipt, StoreError};

/// The waiting commands of one school.
#[derive(Default)]
pub(super) struct Queue {
    /// Submissions that have had no turn.
    fresh: VecDeque<Pending>,
    /// Submissions for which one turn was not enough.
    begun: VecDeque<Pending>,
    /// Whether the current command is of a submission that has begun.
    serves_begun: bool,
    /// Submissions whose last command is decided in the commit in progress.
    decided: Vec<Pending>,
}

/// A submission and its progress.
struct Pending {
    commands: Arc<[Envelope]>,
    allowance: Arc<Allowance>,
    /// The outcomes of the decided commands.
    receipts: Receipts,
    /// How many of them are committed.
    committed: usize,
    /// The bytes charged for the decisions that are not committed yet.
    charged: u64,
    answer: Answer<Receipts>,
}

/// A command that is to be decided.
pub(super) struct Next {
    commands: Arc<[Envelope]>,
    index: usize,
    pub(super) allowance: Arc<Allowance>,
}

impl Next {
    pub(super) fn envelope(&self) -> &Envelope {
        &self.commands[self.index]
    }
}

impl Queue {
    /// Adds a submission.
    pub(super) fn add(&mut self, submission: Submission) {
        self.fresh.push_back(Pending {
            commands: submission.commands.into(),
            allowance: submission.allowance,
            receipts: Vec::new(),
            committed: 0,
            charged: 0,
            answer: submission.answer,
        });
    }

    /// Returns whether one turn was not enough for one of the submissions.
    pub(super) fn has_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.begun.is_empty()
    }

    /// Returns the commands that a turn of `slice` commands is likely to carry out.
    pub(super) fn upcoming(&self, slice: usize) -> impl Iterator<Item = &Envelope> {
        let of_fresh = match self.begun.is_empty() {
            true => slice,
            false => slice / 2,
        };
        let fresh = self.fresh.iter().flat_map(Pending::undecided);
        let begun = self.begun.iter().flat_map(Pending::undecided);
        fresh.take(of_fresh).chain(begun).take(slice)
    }

    /// Returns the submissions whose turn it is.
    fn served(&mut self) -> &mut VecDeque<Pending> {
        match self.serves_begun {
            true => &mut self.begun,
            false => &mut self.fresh,
        }
    }

    /// Returns the next command of a turn. `is_half_over` tells whether half of the turn is over.
    pub(super) fn next(&mut self, is_half_over: bool) -> Option<Next> {
        loop {
            let begun_is_due = is_half_over || self.fresh.is_empty();
            self.serves_begun = begun_is_due && !self.begun.is_empty();
            let pending = self.served().front_mut()?;
            if !pending.is_decided() {
                return Some(Next {
                    commands: Arc::clone(&pending.commands),
                    index: pending.receipts.len(),
                    allowance: Arc::clone(&pending.allowance),
                });
            }
            let decided = self.served().pop_front();
            self.decided.extend(decided);
        }
    }

    /// Records the outcome of the next command, and how many bytes it is charged for.
    pub(super) fn decided(&mut self, receipt: Result<Receipt, CommandError>, charged: u64) {
        let pending = self.served().front_mut();
        let pending = pending.expect("the submission of a command stays until it is decided");
        pending.receipts.push(receipt);
        pending.charged += charged;
        if pending.is_decided() {
            let decided = self.served().pop_front();
            self.decided.extend(decided);
        }
    }

    /// Forgets the decisions of the commit in progress: their commands are decided again.
    pub(super) fn rewind(&mut self) {
        for pending in self.decided.drain(..).rev() {
            match pending.committed {
                0 => self.fresh.push_front(pending),
                _ => self.begun.push_front(pending),
            }
        }
        for pending in self.fresh.iter_mut().chain(&mut self.begun) {
            let undone = pending.receipts.split_off(pending.committed);
            let is_too_much = |receipt: &_| matches!(receipt, Err(CommandError::TooMuch { .. }));
            let was_used_up = undone.iter().any(is_too_much);
            let charged = std::mem::take(&mut pending.charged);
            pending.allowance.give_back(charged, was_used_up);
        }
    }

    /// Answers all waiting submissions with the failure: without the database, they cannot be decided, and publishers
    /// must not wait forever.
    pub(super) fn fail(&mut self, written: &Result<(), StoreError>) {
        for pending in self.fresh.drain(..).chain(self.begun.drain(..)) {
            pending.settle(written);
        }
    }

    /// Answers the submissions that are completely committed or have failed.
    pub(super) fn settle(&mut self, school: SchoolId, written: &Result<(), StoreError>) {
        for mut pending in self.decided.drain(..) {
            pending.commit(school);
            pending.settle(written);
        }
        // In each queue, only the first submission can be in progress.
        let mut begun = None;
        if self.begun.front().is_some_and(Pending::is_under_way) {
            begun = self.begun.pop_front();
        }
        let mut fresh = None;
        if self.fresh.front().is_some_and(Pending::is_under_way) {
            fresh = self.fresh.pop_front();
        }
        if let Some(pending) = begun.and_then(|pending| pending.go_on(school, written)) {
            self.begun.push_front(pending);
        }
        if let Some(pending) = fresh.and_then(|pending| pending.go_on(school, written)) {
            self.begun.push_back(pending);
        }
    }
}

impl Pending {
    /// Returns whether the commit in progress contains commands of this submission.
    fn is_under_way(&self) -> bool {
        self.receipts.len() > self.committed
    }

    fn is_decided(&self) -> bool {
        self.receipts.len() == self.commands.len()
    }

    fn undecided(&self) -> &[Envelope] {
        &self.commands[self.receipts.len()..]
    }

    /// Records that the commands decided so far are committed, or answers with the failure.
    fn go_on(mut self, school: SchoolId, written: &Result<(), StoreError>) -> Option<Pending> {
        self.commit(school);
        if written.is_err() {
            self.settle(written);
            return None;
        }
        self.committed = self.receipts.len();
        Some(self)
    }

    /// Charges for the decisions since the last commit.
    fn commit(&mut self, school: SchoolId) {
        self.allowance
            .charge(school, std::mem::take(&mut self.charged));
    }

    /// Sends the answer. Commands committed before a commit failed have taken effect; the rest have not.
    fn settle(mut self, written: &Result<(), StoreError>) {
        let total = self.commands.len();
        let answer = match written {
            Err(error) if self.committed == 0 => Err(error.clone()),
            Err(error) => {
                self.receipts.truncate(self.committed);
                let failed = || Err(CommandError::Store(error.clone()));
                self.receipts.resize_with(total, failed);
                Ok(self.receipts)
            }
            Ok(()) => Ok(self.receipts),
        };
        // The publisher may be gone.
        let _ = self.answer.send(answer);
    }
}
