//! Turns: which commands the next commit carries out.
//!
//! Submissions wait per school. A commit takes a bounded slice from one school after another. So a large batch is spread
//! over several commits, and a report of another school waits only for the commit in progress and its own.
//!
//! 1. A *fresh* school, which has no commands left from an earlier turn, comes first. Then come those that are
//!    *backlogged*, and then those with a *batch*: a submission for which one turn was not enough. A school that takes
//!    more than its share ([`Pace::is_heavy`]) counts as one with a batch. A commit with fresh schools also serves one
//!    backlogged school and one with a batch, so that none of them waits forever; a commit without fresh schools serves
//!    as many as it has room for.
//! 2. A commit's work should take about [`COMMIT_WORK`], and its room is normally at most [`GROUP_MAX_BYTES`] and
//!    [`GROUP_MAX_COMMANDS`]: the room is halved after a commit that took longer, and doubled after a full commit that
//!    was fast. While nothing but large batches was submitted for [`BULK_AFTER`] or since the start, a commit has room for
//!    [`BULK_MAX_COMMANDS`] and should take about [`BULK_WORK`]. It costs less for each command, because it writes the row of
//!    a subject once, however many of the commands are about it. Keys and parts are still written for each command.
//! 3. While several schools wait, each gets one of [`TURNS_PER_GROUP`] equal shares of the room.
//! 4. While several schools publish, those with a batch share a limited rate, the [`Pace`]. A commit then serves at
//!    most one of them, and none before its turn is due.
//! 5. Between the submissions of a school, its [`Queue`] decides.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::queue::Queue;
use super::{Pace, Submission};
use crate::config::{
    BULK_ABOVE, BULK_AFTER, BULK_MAX_COMMANDS, BULK_WORK, COMMIT_WORK, GROUP_HALVINGS_MAX,
    GROUP_MAX_BYTES, GROUP_MAX_COMMANDS, TURNS_PER_GROUP,
};
use crate::id::SchoolId;
use crate::log::{Envelope, StoreError};

/// The waiting schools, in the order of their turns.
pub(super) struct Turns {
    schools: HashMap<SchoolId, Queue>,
    /// Schools without commands left from an earlier turn.
    fresh: VecDeque<SchoolId>,
    /// Schools for which one turn was not enough, although none of their submissions is large.
    backlogged: VecDeque<SchoolId>,
    /// Schools with a batch, or that take more than their share.
    batching: VecDeque<SchoolId>,
    /// Whether commits may be large while nothing but large batches is submitted.
    may_be_large: bool,
    /// How many times the room of a commit of each scale is currently halved.
    halvings: [u32; 2],
    /// When a submission that is not a large batch was last added.
    last_small: Option<Instant>,
    pace: Arc<Pace>,
}

/// When the next commands can be carried out.
#[derive(Debug, PartialEq)]
pub(super) enum Due {
    /// Nothing waits.
    Never,
    Now,
    At(Instant),
}

/// The turns of one commit.
pub(super) struct Round {
    /// What it contains so far.
    pub(super) taken: Size,
    /// The limit for the whole commit. Its last command can exceed it.
    room: Size,
    scale: Scale,
    /// The limit for one school.
    slice: Size,
    /// Schools that have had their turn, and the bytes that it took.
    served: Vec<(SchoolId, Queue, usize)>,
    /// Schools whose commands could not be decided.
    undecided: Vec<SchoolId>,
    serves_fresh: bool,
    serves_backlogged: bool,
    /// The size of the commit before its first turn of a school with a batch. These turns come last.
    before_batches: Option<Size>,
    /// How many schools with a batch it can still serve.
    batches_left: usize,
    /// Whether the rate of batches is limited.
    is_paced: bool,
}

/// A number of commands, the size of their events in bytes, and the number of subjects that they change.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Size {
    pub(super) commands: usize,
    pub(super) bytes: usize,
    pub(super) subjects: usize,
}

/// How large commits may be.
#[derive(Debug, Clone, Copy)]
enum Scale {
    Normal,
    /// Nothing but large batches is submitted.
    Bulk,
}

impl Scale {
    /// Returns the limit for a commit.
    fn room(self) -> Size {
        Size {
            commands: match self {
                Scale::Normal => GROUP_MAX_COMMANDS,
                Scale::Bulk => BULK_MAX_COMMANDS,
            },
            bytes: GROUP_MAX_BYTES,
            subjects: GROUP_MAX_COMMANDS,
        }
    }

    /// Returns how long the work of a commit should take.
    fn work(self) -> Duration {
        match self {
            Scale::Normal => COMMIT_WORK,
            Scale::Bulk => BULK_WORK,
        }
    }
}

impl Size {
    fn reaches(self, limit: Size) -> bool {
        self.commands >= limit.commands
            || self.bytes >= limit.bytes
            || self.subjects >= limit.subjects
    }

    /// Returns one of `of` equal parts.
    fn part(self, of: usize) -> Size {
        Size {
            commands: self.commands / of,
            bytes: self.bytes / of,
            subjects: self.subjects / of,
        }
    }

    /// Returns the increase since `before`.
    fn since(self, before: Size) -> Size {
        Size {
            commands: self.commands - before.commands,
            bytes: self.bytes - before.bytes,
            subjects: self.subjects - before.subjects,
        }
    }
}

impl Turns {
    pub(super) fn new(pace: Arc<Pace>, may_be_large: bool) -> Turns {
        Turns {
            may_be_large,
            schools: HashMap::new(),
            fresh: VecDeque::new(),
            backlogged: VecDeque::new(),
            batching: VecDeque::new(),
            halvings: [0; 2],
            last_small: None,
            pace,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.schools.is_empty()
    }

    /// Returns when the next commands can be carried out.
    pub(super) fn due(&self, now: Instant) -> Due {
        if self.schools.is_empty() {
            return Due::Never;
        }
        match self.pace.due(now, self.several_wait()) {
            Some(at) if self.fresh.is_empty() && self.backlogged.is_empty() => Due::At(at),
            _ => Due::Now,
        }
    }

    fn several_wait(&self) -> bool {
        self.schools.len() > 1
    }

    pub(super) fn add(&mut self, submission: Submission) {
        let (school, now) = (submission.school, Instant::now());
        if submission.commands.len() <= BULK_ABOVE {
            self.last_small = Some(now);
        }
        let queue = self.schools.entry(school).or_insert_with(|| {
            match self.pace.is_heavy(school, now) {
                true => self.batching.push_back(school),
                false => self.fresh.push_back(school),
            }
            Queue::default()
        });
        queue.add(submission);
    }

    /// Returns the commands that a round is likely to carry out.
    pub(super) fn upcoming<'a>(
        &'a self,
        round: &Round,
    ) -> impl Iterator<Item = (SchoolId, &'a Envelope)> {
        let (room, slice) = (round.room.commands, round.slice.commands);
        let batching = self.batching.iter().take(round.batches_left);
        let schools = self.fresh.iter().chain(&self.backlogged).chain(batching);
        let commands = schools.flat_map(move |school| {
            let waiting = self.schools.get(school).into_iter();
            let commands = waiting.flat_map(move |queue| queue.upcoming(slice));
            commands.map(|envelope| (*school, envelope))
        });
        commands.take(room)
    }

    /// Starts the round of one commit. If it `hurries`, the rate of batches is not limited.
    pub(super) fn begin(&self, now: Instant, hurries: bool) -> Round {
        let has_small = !self.backlogged.is_empty()
            || self.last_small.is_some_and(|last| now < last + BULK_AFTER);
        let scale = match self.may_be_large && !has_small {
            true => Scale::Bulk,
            false => Scale::Normal,
        };
        let most = scale.room();
        let room = Size {
            // A normal commit can write as many rows.
            subjects: most.subjects >> self.halvings[Scale::Normal as usize],
            ..most.part(1 << self.halvings[scale as usize])
        };
        let is_paced = !hurries && self.pace.applies(now, self.several_wait());
        let batches_left = match self.pace.due(now, self.several_wait()) {
            _ if !is_paced => usize::MAX,
            None => 1,
            Some(_) => 0,
        };
        Round {
            taken: Size::default(),
            slice: match self.schools.len() {
                0 | 1 => room,
                _ => room.part(TURNS_PER_GROUP),
            },
            room,
            scale,
            served: Vec::new(),
            undecided: Vec::new(),
            serves_fresh: false,
            serves_backlogged: false,
            before_batches: None,
            batches_left,
            is_paced,
        }
    }

    /// Returns the next school of a commit. Each school has one turn per commit.
    pub(super) fn next(&mut self, round: &mut Round) -> Option<(SchoolId, Queue)> {
        let has_room = !round.taken.reaches(round.room);
        // Each commit serves at least one backlogged school and, if the rate permits, one with a batch: otherwise,
        // fresh schools could keep them waiting forever. A commit with fresh schools serves at most one of each, so
        // that the fresh ones do not wait for all of them.
        let has_room_for_all = has_room && !round.serves_fresh;
        let may_serve_backlogged = !round.serves_backlogged || has_room_for_all;
        let may_serve_batch =
            round.batches_left > 0 && (round.before_batches.is_none() || has_room_for_all);
        let school = if let Some(school) = has_room.then(|| self.fresh.pop_front()).flatten() {
            round.serves_fresh = true;
            school
        } else if may_serve_backlogged && let Some(school) = self.backlogged.pop_front() {
            round.serves_backlogged = true;
            school
        } else if may_serve_batch && let Some(school) = self.batching.pop_front() {
            round.before_batches.get_or_insert(round.taken);
            round.batches_left -= 1;
            school
        } else {
            return None;
        };
        let queue = self.schools.remove(&school);
        Some((
            school,
            queue.expect("each school in the order of turns has a queue"),
        ))
    }

    /// Adjusts the room to how long a commit took, excluding its wait for the disk: smaller commits do not help on a
    /// slow disk.
    pub(super) fn worked(&mut self, round: &Round, work: Duration) {
        let (target, halvings) = (round.scale.work(), &mut self.halvings[round.scale as usize]);
        if work > target {
            *halvings = (*halvings + 1).min(GROUP_HALVINGS_MAX);
        } else if work < target / 2 && round.taken.reaches(round.room) {
            *halvings = halvings.saturating_sub(1);
        }
    }

    /// Answers the submissions that are completely committed or have failed. The others wait for their next turns, and
    /// the schools that the commit `missed` come first.
    pub(super) fn settle(
        &mut self,
        round: Round,
        written: &Result<(), StoreError>,
        missed: &[SchoolId],
    ) {
        let now = Instant::now();
        // Bytes that were written while the rate was not limited do not delay later turns.
        if round.is_paced
            && let Some(before) = round.before_batches
        {
            self.pace.charge(round.taken.since(before).bytes, now);
        }
        for (school, mut queue, bytes) in round.served {
            self.pace.served(school, bytes, now);
            if written.is_ok() && missed.contains(&school) {
                queue.rewind();
                self.fresh.push_front(school);
                self.schools.insert(school, queue);
                continue;
            }
            queue.settle(school, written);
            if round.undecided.contains(&school) {
                queue.fail(written);
            }
            if !queue.is_empty() {
                // Small reports that have accumulated are not a batch.
                match queue.has_begun() || self.pace.is_heavy(school, now) {
                    true => self.batching.push_back(school),
                    false => self.backlogged.push_back(school),
                }
                self.schools.insert(school, queue);
            }
        }
    }
}

impl Round {
    /// Records that a school has had its turn, and that its commands could not be decided.
    pub(super) fn undecided(&mut self, school: SchoolId, queue: Queue) {
        self.undecided.push(school);
        self.served.push((school, queue, 0));
    }

    /// Records that a school has had its turn, which started at `before`.
    pub(super) fn served(&mut self, school: SchoolId, queue: Queue, before: Size) {
        let bytes = self.taken.since(before).bytes;
        self.served.push((school, queue, bytes));
    }

    /// Lifts the rate limit of batches for this round.
    pub(super) fn hurry(&mut self) {
        self.batches_left = usize::MAX;
    }

    /// Returns whether a turn that started at `before` is over.
    pub(super) fn is_over(&self, before: Size) -> bool {
        self.taken.since(before).reaches(self.slice)
    }

    /// Returns whether half of such a turn is over.
    pub(super) fn is_half_over(&self, before: Size) -> bool {
        self.taken.since(before).reaches(self.slice.part(2))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::Receiver;

    use super::*;
    use crate::config::HEAVY_BYTES;
    use crate::event::EVENT_BASE_BYTES;
    use crate::kind::Command;
    use crate::kind::job;
    use crate::log::CommandError;
    use crate::log::writer::Receipts;

    /// A test bench whose commits carry out commands of equal size, and which reports their schools.
    struct Bench {
        turns: Turns,
        event_bytes: usize,
        /// How many subjects each command adds to those that are changed.
        subjects: usize,
    }

    impl Bench {
        fn of(event_bytes: usize) -> Bench {
            Bench::paced(event_bytes, 0)
        }

        fn paced(event_bytes: usize, bytes_per_sec: u32) -> Bench {
            Bench {
                turns: Turns::new(Arc::new(Pace::new(bytes_per_sec)), false),
                event_bytes,
                subjects: 0,
            }
        }

        fn begin(&self) -> Round {
            self.turns.begin(Instant::now(), false)
        }

        fn add(&mut self, school: i64, commands: usize) -> Receiver<Result<Receipts, StoreError>> {
            let report = || {
                let body = serde_json::from_str("{}").unwrap();
                let command = Command::Job(job::Command::Progress(body));
                Envelope::new("j".parse().unwrap(), command)
            };
            let (answer, answered) = tokio::sync::oneshot::channel();
            self.turns.add(Submission {
                school: school.try_into().unwrap(),
                commands: (0..commands).map(|_| report()).collect(),
                allowance: Arc::default(),
                answer,
            });
            answered
        }

        /// Runs one commit that takes `work`. Returns how many commands of each school it carries out, in order.
        fn commit(&mut self, work: Duration) -> Vec<(i64, usize)> {
            let mut round = self.begin();
            let mut carried_out = Vec::new();
            while let Some((school, mut queue)) = self.turns.next(&mut round) {
                let before = round.taken;
                while !round.is_over(before) && queue.next(round.is_half_over(before)).is_some() {
                    round.taken.commands += 1;
                    round.taken.bytes += self.event_bytes;
                    round.taken.subjects += self.subjects;
                    queue.decided(Err(CommandError::KeyReused), 0);
                }
                carried_out.push((school.get(), round.taken.since(before).commands));
                round.served(school, queue, before);
            }
            self.turns.worked(&round, work);
            self.turns.settle(round, &Ok(()), &[]);
            carried_out
        }

        /// Returns the room of a commit, in commands.
        fn room(&self) -> usize {
            self.begin().room.commands
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
        assert_eq!(commit[..4], fresh, "as many as it has room for");
        assert_eq!(commit[4..], [(1, share)], "and one with a batch");
    }

    #[test]
    fn a_report_waits_for_its_own_commit_and_one_share_of_the_backlogged() {
        let mut bench = Bench::of(16_000);
        for school in 1..=8 {
            bench.add(school, 1_000);
        }
        // Until no school is fresh.
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
    fn a_report_does_not_wait_for_large_batches_of_its_own_school() {
        let mut bench = Bench::of(EVENT_BASE_BYTES);
        let mut batches: Vec<_> = (0..8).map(|_| bench.add(1, 8_000)).collect();
        let mut commits = 0;
        while let Some(batch) = batches.first_mut() {
            let mut report = bench.add(1, 1);
            bench.commit(QUICK);
            commits += 1;
            // At first, it is behind batches that are fresh, too.
            let is_answered = report.try_recv().is_ok();
            assert!(is_answered || commits <= 8, "commit {commits}");
            if batch.try_recv().is_ok() {
                batches.remove(0);
            }
        }
        let least = 8 * 8_000 / GROUP_MAX_COMMANDS;
        assert!(commits <= least + least / 10, "{commits} commits");
    }

    #[test]
    fn a_batch_goes_on_while_reports_of_its_own_school_keep_coming() {
        let mut bench = Bench::of(EVENT_BASE_BYTES);
        let mut batch = bench.add(1, 8_000);
        bench.commit(QUICK);
        let mut commits = 1;
        while batch.try_recv().is_err() {
            for _ in 0..GROUP_MAX_COMMANDS {
                bench.add(1, 1);
            }
            assert_eq!(bench.commit(QUICK), [(1, GROUP_MAX_COMMANDS)]);
            commits += 1;
        }
        assert!(commits <= 2 * 8_000 / GROUP_MAX_COMMANDS + 1, "{commits}");
    }

    #[test]
    fn backlogs_wait_for_their_pace_while_several_schools_publish_and_reports_do_not() {
        let mut bench = Bench::paced(16_000, 1);
        bench.add(1, 1_000);
        bench.add(2, 1_000);
        assert_eq!(bench.commit(QUICK).len(), 2, "both are fresh");
        assert_eq!(bench.commit(QUICK).len(), 1, "one backlog is due");
        let Due::At(_) = bench.turns.due(Instant::now()) else {
            panic!("the other one has to wait");
        };
        for school in 10..20 {
            bench.add(school, 1);
            assert_eq!(bench.turns.due(Instant::now()), Due::Now);
            assert_eq!(bench.commit(QUICK), [(school, 1)]);
        }
        // A school that has used much of the rate does not become fresh again by waiting for its answers.
        let turn = (GROUP_MAX_BYTES / TURNS_PER_GROUP).div_ceil(16_000);
        for _ in 0..HEAVY_BYTES.div_ceil(16_000 * turn) {
            bench.add(3, turn);
            assert_eq!(bench.commit(QUICK), [(3, turn)]);
        }
        bench.add(3, 1);
        assert_eq!(bench.commit(QUICK), []);
        // Small reports that have accumulated are not a batch.
        for _ in 0..2 * turn {
            bench.add(4, 1);
        }
        assert_eq!(bench.commit(QUICK), [(4, turn)]);
        assert_eq!(bench.turns.due(Instant::now()), Due::Now);
        assert_eq!(bench.commit(QUICK), [(4, turn)]);
        let mut hurried = bench.turns.begin(Instant::now(), true);
        assert!(bench.turns.next(&mut hurried).is_some(), "at the end");
    }

    #[test]
    fn what_a_school_took_alone_delays_nobody_later() {
        let mut bench = Bench::paced(16_000, 1);
        bench.add(1, 1_000);
        for _ in 0..10 {
            assert_eq!(bench.commit(QUICK).len(), 1);
        }
        bench.add(2, 1_000);
        assert_eq!(bench.commit(QUICK).len(), 2, "a fresh one and a batch");
        let mut served = 0;
        while bench.turns.due(Instant::now()) == Due::Now {
            served += bench.commit(QUICK).len();
        }
        assert_eq!(
            served, 0,
            "the batch waits until its part of the shared commit is paid for"
        );
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
        // A commit that takes about as long as intended changes nothing.
        let room = bench.room();
        bench.commit(COMMIT_WORK * 3 / 4);
        assert_eq!(bench.room(), room);
        for _ in 0..=GROUP_HALVINGS_MAX {
            bench.commit(QUICK);
        }
        assert_eq!(bench.room(), GROUP_MAX_COMMANDS);
    }

    #[tokio::test(start_paused = true)]
    async fn commits_are_larger_while_nothing_but_large_batches_is_submitted() {
        const MILLI: Duration = Duration::from_millis(1);
        let mut bench = Bench::of(EVENT_BASE_BYTES);
        bench.turns.may_be_large = true;
        bench.add(1, 10 * BULK_MAX_COMMANDS);
        assert_eq!(bench.commit(QUICK), [(1, BULK_MAX_COMMANDS)]);
        bench.commit(BULK_WORK + MILLI);
        assert_eq!(bench.room(), BULK_MAX_COMMANDS / 2);
        bench.commit(BULK_WORK / 2);
        assert_eq!(bench.room(), BULK_MAX_COMMANDS / 2, "as long as intended");
        bench.add(1, 1);
        let with_report = bench.commit(COMMIT_WORK + MILLI);
        assert_eq!(with_report, [(1, GROUP_MAX_COMMANDS)]);
        assert_eq!(bench.room(), GROUP_MAX_COMMANDS / 2);
        tokio::time::advance(BULK_AFTER - MILLI).await;
        bench.add(1, BULK_ABOVE + 1);
        assert_eq!(bench.room(), GROUP_MAX_COMMANDS / 2);
        tokio::time::advance(MILLI).await;
        assert_eq!(bench.room(), BULK_MAX_COMMANDS / 2, "as before the report");
        bench.add(1, BULK_ABOVE);
        assert_eq!(bench.room(), GROUP_MAX_COMMANDS / 2);
    }

    /// Reports that have accumulated wait, however long ago they were submitted.
    #[tokio::test(start_paused = true)]
    async fn commits_are_not_larger_while_reports_wait() {
        let mut bench = Bench::of(EVENT_BASE_BYTES);
        bench.turns.may_be_large = true;
        for _ in 0..2 * GROUP_MAX_COMMANDS {
            bench.add(1, 1);
        }
        bench.add(2, BULK_MAX_COMMANDS);
        bench.commit(QUICK);
        tokio::time::advance(BULK_AFTER).await;
        assert_eq!(bench.room(), GROUP_MAX_COMMANDS);
        while bench.room() == GROUP_MAX_COMMANDS {
            assert!(!bench.turns.backlogged.is_empty());
            bench.commit(QUICK);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_commits_have_no_more_bytes_or_subjects_and_schools_still_share_them() {
        let mut bench = Bench::of(16_000);
        bench.turns.may_be_large = true;
        bench.add(1, 1_000);
        let most = GROUP_MAX_BYTES.div_ceil(16_000);
        assert_eq!(bench.commit(QUICK), [(1, most)]);
        let mut bench = Bench::of(1);
        bench.turns.may_be_large = true;
        let share = BULK_MAX_COMMANDS / TURNS_PER_GROUP;
        for school in 1..=TURNS_PER_GROUP as i64 {
            bench.add(school, BULK_MAX_COMMANDS);
        }
        let expected: Vec<_> = (1..=TURNS_PER_GROUP as i64)
            .map(|school| (school, share))
            .collect();
        assert_eq!(bench.commit(QUICK), expected);
        let mut bench = Bench::of(1);
        (bench.turns.may_be_large, bench.subjects) = (true, 1);
        bench.add(1, BULK_MAX_COMMANDS);
        assert_eq!(
            bench.commit(QUICK),
            [(1, GROUP_MAX_COMMANDS)],
            "each about another subject"
        );
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
