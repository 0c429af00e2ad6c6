//! Turns: whose commands the next commit carries out.
//!
//! What is submitted waits by school. A commit takes a bounded slice from one school after the other, so a large batch
//! is carried out over several commits, and another school's report waits for the commit under way and its own.
//!
//! 1. A *fresh* school, which has nothing left from an earlier turn, comes first. A commit with fresh schools serves one of
//!    the *backlogged* in addition, so that none of them waits for ever; one without serves as many as it has room for.
//! 2. What a commit carries out takes about [`COMMIT_WORK`], and never more than [`GROUP_MAX_BYTES`] and
//!    [`GROUP_MAX_COMMANDS`]: the room halves after a commit that took longer, and doubles after a full one that was quick.
//! 3. While several schools wait, each has one of [`TURNS_PER_GROUP`] equal shares of that room.
//! 4. Within a school the order is that of submission.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use super::{Answer, Receipts, Submission};
use crate::config::{
    COMMIT_WORK, GROUP_HALVINGS_MAX, GROUP_MAX_BYTES, GROUP_MAX_COMMANDS, TURNS_PER_GROUP,
};
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
    /// How often the room of a commit is halved.
    halvings: u32,
}

/// The turns of one commit.
pub(super) struct Round {
    /// What it holds so far.
    pub(super) taken: Size,
    /// Most that the commit carries out. The last command may go beyond it.
    room: Size,
    /// Most of it that is of one school.
    slice: Size,
    served: Vec<(SchoolId, Queue)>,
    serves_fresh: bool,
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

/// Most that any commit carries out.
const GROUP: Size = Size {
    commands: GROUP_MAX_COMMANDS,
    bytes: GROUP_MAX_BYTES,
};

impl Size {
    fn reaches(self, most: Size) -> bool {
        self.commands >= most.commands || self.bytes >= most.bytes
    }

    /// One of so many equal parts.
    fn part(self, of: usize) -> Size {
        Size {
            commands: self.commands / of,
            bytes: self.bytes / of,
        }
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
        let room = GROUP.part(1 << self.halvings);
        Round {
            taken: Size::default(),
            slice: match self.schools.len() {
                0 | 1 => room,
                _ => room.part(TURNS_PER_GROUP),
            },
            room,
            served: Vec::new(),
            serves_fresh: false,
            serves_backlogged: false,
        }
    }

    /// The next school of a commit. Each has one turn in a commit.
    pub(super) fn next(&mut self, round: &mut Round) -> Option<(SchoolId, Queue)> {
        let has_room = !round.taken.reaches(round.room);
        let fresh = has_room.then(|| self.fresh.pop_front()).flatten();
        let school = match fresh {
            Some(school) => {
                round.serves_fresh = true;
                school
            }
            // At least one, or those that always come anew would keep it waiting; and with those no more than one, or they
            // would wait for all.
            None if !round.serves_backlogged || (has_room && !round.serves_fresh) => {
                let school = self.backlogged.pop_front()?;
                round.serves_backlogged = true;
                school
            }
            None => return None,
        };
        let queue = self.schools.remove(&school);
        Some((school, queue.expect("a school that has a turn waits")))
    }

    /// Takes note of how long a commit worked that carried out so much, without what it waited for the disk: a slow disk is
    /// no reason for smaller commits.
    pub(super) fn worked(&mut self, round: &Round, work: Duration) {
        if work > COMMIT_WORK {
            self.halvings = (self.halvings + 1).min(GROUP_HALVINGS_MAX);
        } else if work < COMMIT_WORK / 2 && round.taken.reaches(round.room) {
            self.halvings = self.halvings.saturating_sub(1);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EVENT_BASE_BYTES;
    use crate::kind::Command;
    use crate::kind::job;

    /// Turns in which commits carry out commands of one size each, and tell of which schools.
    #[derive(Default)]
    struct Bench {
        turns: Turns,
        event_bytes: usize,
    }

    impl Bench {
        fn of(event_bytes: usize) -> Bench {
            Bench {
                event_bytes,
                ..Bench::default()
            }
        }

        fn add(&mut self, school: i64, commands: usize) {
            let report = || {
                let body = serde_json::from_str("{}").unwrap();
                let command = Command::Job(job::Command::Progress(body));
                Envelope::new("j".parse().unwrap(), command)
            };
            let (answer, _) = tokio::sync::oneshot::channel();
            self.turns.add(Submission {
                school: school.try_into().unwrap(),
                commands: (0..commands).map(|_| report()).collect(),
                allowance: Arc::default(),
                answer,
            });
        }

        /// One commit that works for so long: how many commands of each school it carries out, in order.
        fn commit(&mut self, work: Duration) -> Vec<(i64, usize)> {
            let mut round = self.turns.begin();
            let mut carried_out = Vec::new();
            while let Some((school, mut queue)) = self.turns.next(&mut round) {
                let before = round.taken;
                while !round.is_over(before) && queue.next().is_some() {
                    round.taken.commands += 1;
                    round.taken.bytes += self.event_bytes;
                    queue.decided(Err(CommandError::KeyReused));
                }
                carried_out.push((school.get(), round.taken.since(before).commands));
                round.served(school, queue);
            }
            self.turns.worked(&round, work);
            self.turns.settle(round, &Ok(()));
            carried_out
        }

        /// How much a commit has room for.
        fn room(&self) -> usize {
            self.turns.begin().room.commands
        }
    }

    const QUICK: Duration = Duration::ZERO;

    #[test]
    fn a_school_alone_has_a_whole_commit_and_one_of_several_a_share() {
        let mut bench = Bench::of(EVENT_BASE_BYTES);
        bench.add(1, 3 * GROUP_MAX_COMMANDS);
        assert_eq!(bench.commit(QUICK), [(1, GROUP_MAX_COMMANDS)]);
        for school in 2..8 {
            bench.add(school, GROUP_MAX_COMMANDS);
        }
        let share = GROUP_MAX_COMMANDS / TURNS_PER_GROUP;
        let commit = bench.commit(QUICK);
        let fresh = [2, 3, 4, 5].map(|school| (school, share));
        assert_eq!(commit[..4], fresh, "until it is full");
        assert_eq!(commit[4..], [(1, share)], "and one that has waited");
    }

    #[test]
    fn a_report_waits_for_its_own_commit_and_one_share_of_the_backlogged() {
        let mut bench = Bench::of(16_000);
        for school in 1..=8 {
            bench.add(school, 1_000);
        }
        // Until none of them is fresh.
        while !bench.turns.fresh.is_empty() {
            bench.commit(QUICK);
        }
        let share = (GROUP_MAX_BYTES / TURNS_PER_GROUP).div_ceil(16_000);
        let mut served = Vec::new();
        for _ in 0..8 {
            bench.add(99, 1);
            let commit = bench.commit(QUICK);
            assert_eq!(commit.len(), 2, "{commit:?}");
            assert_eq!(commit[0], (99, 1));
            assert_eq!(commit[1].1, share);
            served.push(commit[1].0);
        }
        served.sort_unstable();
        assert_eq!(served, (1..=8).collect::<Vec<_>>(), "none is left out");
        assert!(bench.commit(QUICK).len() >= TURNS_PER_GROUP, "without one");
    }

    #[test]
    fn a_commit_that_worked_for_long_is_followed_by_smaller_ones_down_to_a_bound() {
        let mut bench = Bench::of(EVENT_BASE_BYTES);
        bench.add(1, 100 * GROUP_MAX_COMMANDS);
        let long = COMMIT_WORK * 2;
        let sizes = (0..=GROUP_HALVINGS_MAX + 2).map(|_| bench.commit(long)[0].1);
        let sizes: Vec<_> = sizes.collect();
        let least = GROUP_HALVINGS_MAX as usize + 1;
        let expected = (0..=GROUP_HALVINGS_MAX).map(|halvings| GROUP_MAX_COMMANDS >> halvings);
        assert!(sizes.iter().copied().take(least).eq(expected), "{sizes:?}");
        assert_eq!(sizes[least..], [sizes[least - 1]; 2]);
        // What takes about as long as it should changes nothing.
        let room = bench.room();
        bench.commit(COMMIT_WORK * 3 / 4);
        assert_eq!(bench.room(), room);
        for _ in 0..=GROUP_HALVINGS_MAX {
            bench.commit(QUICK);
        }
        assert_eq!(bench.room(), GROUP_MAX_COMMANDS);
    }

    #[test]
    fn a_small_commit_that_is_quick_says_nothing_of_large_ones() {
        let mut bench = Bench::of(EVENT_BASE_BYTES);
        bench.add(1, GROUP_MAX_COMMANDS);
        bench.commit(COMMIT_WORK * 2);
        let room = bench.room();
        assert_eq!(room, GROUP_MAX_COMMANDS / 2);
        for _ in 0..10 {
            bench.add(1, 1);
            bench.commit(QUICK);
        }
        assert_eq!(bench.room(), room);
    }
}
