//! The single writer of a store: turns between schools and group commit, the same for every database.
//!
//! It takes the waiting commands, school by school as `turns` determines, and decides them one after another. The backend
//! writes the results of the whole group in one transaction. The writer then sends the events to the dispatcher, and only
//! then answers the requests that are completely carried out. Decisions precede the transaction, so that a rejected
//! command writes nothing, and so that the backend knows whether the group contains a milestone, which must reach the
//! disk before it is acknowledged.
//!
//! A request that comes alone carries this out on its own thread, and dispatches its events if they have few readers; see `desk`
//! and [`crate::dispatch`].
//!
//! ```text
//! Handle ─queue─▶ Turns ─▶ Rules::decide ─▶ Backend::commit ─▶ Committed ─▶ answers
//! ```
//!
//! Upholds invariants 1 and 2. Nothing else is allowed to write to the tables while it runs.

mod desk;
mod pace;
mod queue;
mod turns;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio::time;

use self::desk::{Desk, Notes};
pub use self::pace::Pace;
use self::queue::Queue;
use self::turns::{Due, Round, Turns};
use super::decide::{Decisions, Rules};
use super::facts::{Facts, Moment};
use super::{Allowance, CommandError, CommitMetrics, Committed, Envelope, Receipt, StoreError};
use crate::config::WRITER_QUEUE;
use crate::event::{Event, is_dense};
use crate::failures::Failures;
use crate::id::SchoolId;

/// A database behind a writer.
pub trait Backend: Facts<Error = StoreError> + Send + 'static {
    /// Returns the current time, which becomes the time of the decisions.
    fn now(&self) -> Moment;

    /// Loads what the decisions on these commands are likely to query, so that they do not wait for one query after
    /// another. This is only an optimisation: anything else is still loaded by the queries themselves.
    fn prepare(
        &mut self,
        _: &mut dyn Iterator<Item = (SchoolId, &Envelope)>,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    /// Writes the results of a group in one transaction and updates the facts. On failure, nothing is written and no fact
    /// changes. It can move anything out of the decisions except the events. Returns the time at which everything was
    /// written and only the commit remained, which can wait for the disk; `None` if there was nothing to write.
    ///
    /// A school into whose log another node has written since the facts were loaded is left out: its events are removed
    /// from the decisions, it is returned by the next call of [`Backend::missed`], and its commands are decided again.
    fn commit(
        &mut self,
        decisions: &mut Decisions,
        now: Moment,
    ) -> Result<Option<Instant>, StoreError>;

    /// Whether the facts are on this machine, so that a thread that must not be blocked can decide.
    fn is_embedded(&self) -> bool {
        false
    }

    /// Commits as [`commit`](Backend::commit) does if that takes only a moment: if it waits neither for the disk nor for a lock. Returns
    /// `None` if nothing was done, and a thread that can be blocked must commit.
    fn try_commit(
        &mut self,
        _: &mut Decisions,
        _: Moment,
    ) -> Option<Result<Option<Instant>, StoreError>> {
        None
    }

    /// Takes the schools that the last commit left out. Empty for a store with one writer.
    fn missed(&mut self) -> Vec<SchoolId> {
        Vec::new()
    }

    /// Does the work of the last commits that can wait until their requests are answered.
    fn answered(&mut self) {}

    /// Closes the database cleanly.
    fn close(&mut self);
}

/// The channel for the result of a piece of work.
pub type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// The outcomes of a request's commands, in order.
pub type Receipts = Vec<Result<Receipt, CommandError>>;

/// Work for the writer.
enum Work<B> {
    Append(Submission),
    /// Any other work, done between two groups.
    Call(Box<dyn FnOnce(&mut B) + Send>),
    Close(Answer<()>),
}

/// The commands of one request.
pub(super) struct Submission {
    school: SchoolId,
    commands: Vec<Envelope>,
    allowance: Arc<Allowance>,
    answer: Answer<Receipts>,
}

/// Submits work to a writer. The writer stops when all of its handles are dropped.
pub struct Handle<B> {
    work: mpsc::Sender<Work<B>>,
    desk: Arc<Desk<B>>,
}

/// See the [module-level documentation](self).
pub struct Writer<B> {
    backend: B,
    rules: Rules,
    committed: Committed,
    metrics: Arc<CommitMetrics>,
    /// Determines whose commands come next.
    turns: Turns,
    /// Consecutive commits that failed.
    failures: Failures,
    queue: mpsc::Receiver<Work<B>>,
    notes: Notes,
    desk: Arc<Desk<B>>,
}

/// See [`Writer::attend`].
pub struct Attended<B: Backend>(Arc<Desk<B>>);

/// A group of commands that has been decided.
struct Group {
    began: Instant,
    now: Moment,
    round: Round,
    decisions: Decisions,
    /// Whether the decisions are complete.
    decided: Result<(), StoreError>,
}

impl<B: Backend> Handle<B> {
    /// Carries out commands in order and answers each after the commit. Fails only if none had an effect.
    pub async fn append(
        &self,
        school: SchoolId,
        commands: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Result<Receipts, StoreError> {
        let (answer, answered) = oneshot::channel();
        let submission = Submission {
            school,
            commands,
            allowance,
            answer,
        };
        if let Some(submission) = self.desk.commit(submission) {
            self.submit(Work::Append(submission)).await?;
        }
        answered.await.map_err(|_| StoreError::Stopped)?
    }

    /// Runs a function on the writer's backend.
    pub async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut B) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(|answer| {
            Work::Call(Box::new(move |backend| {
                // The caller may be gone.
                let _ = answer.send(call(backend));
            }))
        })
        .await
    }

    /// Completes all pending work and stops the writer.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.ask(Work::Close).await
    }

    async fn ask<T>(&self, work: impl FnOnce(Answer<T>) -> Work<B>) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.submit(work(answer)).await?;
        answered.await.map_err(|_| StoreError::Stopped)?
    }

    async fn submit(&self, work: Work<B>) -> Result<(), StoreError> {
        let submitted = self.work.send(work).await;
        submitted.map_err(|_| StoreError::Stopped)
    }
}

impl<B: Backend> Attended<B> {
    /// Does what [`Writer::step`] does.
    pub fn step(&self) -> bool {
        self.0.step()
    }
}

impl<B: Backend> Drop for Attended<B> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl<B: Backend> Writer<B> {
    /// Creates a writer, which the caller must [run](Writer::run), and its handle. The writer sends what it commits to
    /// `committed` and counts it in `metrics`. `pace` limits the rate of its batches.
    pub fn new(
        backend: B,
        rules: Rules,
        committed: Committed,
        metrics: Arc<CommitMetrics>,
        pace: Arc<Pace>,
    ) -> (Writer<B>, Handle<B>) {
        let (work, queue) = mpsc::channel(WRITER_QUEUE);
        // Publishers on other nodes would wait for large commits as well, and this node does not know of them.
        let may_be_large = backend.is_embedded();
        let writer = Writer {
            backend,
            rules,
            committed,
            metrics,
            turns: Turns::new(pace, may_be_large),
            failures: Failures::default(),
            queue,
            notes: Notes::default(),
            desk: Arc::default(),
        };
        let desk = Arc::clone(&writer.desk);
        (writer, Handle { work, desk })
    }

    /// Runs the writer on the current thread until it is closed or every handle is dropped. Completes the work submitted
    /// before that. Returns the channel on which to answer once the backend is dropped, if a caller is waiting.
    pub fn run(self) -> Option<Answer<()>> {
        let desk = Arc::clone(&self.desk);
        desk.run(self)
    }

    /// Returns a writer that works only during [`Attended::step`], but whose requests commit by themselves if they come alone.
    pub fn attend(self) -> Attended<B> {
        let desk = Arc::clone(&self.desk);
        desk.attend(self);
        Attended(desk)
    }

    /// Does the pending work without waiting for more, for callers without a dedicated thread, such as a simulation.
    /// Returns false if there is no pending work.
    pub fn step(&mut self) -> bool {
        if self.take_over() {
            return true;
        }
        let next = self.queue.try_recv().ok();
        let is_due = self.turns.due(time::Instant::now()) == Due::Now;
        let waits = next.is_some() || is_due;
        self.work_on(next, false);
        self.settle_up();
        waits
    }

    /// Accepts `next` and all work queued behind it, so that all schools take part in the turns, and commits a group.
    /// Returns the channel to answer if the writer must close.
    fn work_on(&mut self, mut next: Option<Work<B>>, is_closing: bool) -> Option<Answer<()>> {
        let mut closed = None;
        // Bounded, because new work can arrive without end.
        for _ in 0..WRITER_QUEUE {
            let Some(work) = next else {
                break;
            };
            closed = self.take_up(work);
            next = match closed {
                Some(_) => None,
                None => self.queue.try_recv().ok(),
            };
        }
        let hurries = is_closing || closed.is_some() || self.queue.is_closed();
        let now = time::Instant::now();
        if self.turns.due(now) == Due::Now || (hurries && !self.turns.is_empty()) {
            let group = self.decide(now, hurries);
            self.commit(group);
        }
        closed
    }

    /// Queues commands for their turn and does any other work immediately: the order between these does not matter.
    /// Returns the channel to answer if the writer must close.
    fn take_up(&mut self, work: Work<B>) -> Option<Answer<()>> {
        match work {
            Work::Append(submission) => self.turns.add(submission),
            Work::Call(call) => call(&mut self.backend),
            Work::Close(answer) => return Some(answer),
        }
        None
    }

    /// Decides a group with a slice of each school.
    fn decide(&mut self, at: time::Instant, hurries: bool) -> Group {
        let began = Instant::now();
        let mut decisions = Decisions::default();
        let mut round = self.turns.begin(at, hurries);
        let prepared = self.backend.prepare(&mut self.turns.upcoming(&round));
        // Not before: what was read may have moved the uptime ahead.
        let now = self.backend.now();
        let decided = match prepared {
            Ok(()) => self.decide_round(&mut round, &mut decisions, now),
            Err(error) => {
                round.hurry();
                while let Some((school, queue)) = self.turns.next(&mut round) {
                    round.undecided(school, queue);
                }
                Err(error)
            }
        };
        Group {
            began,
            now,
            round,
            decisions,
            decided,
        }
    }

    /// Commits a group, and answers the requests that are completely carried out.
    fn commit(&mut self, mut group: Group) {
        let written = match std::mem::replace(&mut group.decided, Ok(())) {
            Ok(()) => self.backend.commit(&mut group.decisions, group.now),
            Err(error) => Err(error),
        };
        self.finish(group, written, |committed, events| {
            committed.blocking_send(events)
        });
    }

    /// Sends the events of a group, and answers its requests.
    fn finish(
        &mut self,
        group: Group,
        written: Result<Option<Instant>, StoreError>,
        send: impl FnOnce(&Committed, Vec<Arc<Event>>) -> Result<(), StoreError>,
    ) {
        let Group {
            began,
            round,
            decisions,
            ..
        } = group;
        if let Ok(at) = written {
            // Rejected commands take time as well, although they write nothing.
            let work = at.map_or_else(|| began.elapsed(), |at| at - began);
            self.turns.worked(&round, work);
        }
        let written = self.note(written.map(|at| at.is_some()));
        if written.is_ok() && !decisions.events.is_empty() {
            self.metrics
                .committed(decisions.events.len(), began.elapsed());
            debug_assert!(is_dense(&decisions.events), "a commit has no hole");
            // Fails only if the dispatcher has stopped, and then nothing receives events.
            let _ = send(&self.committed, decisions.events);
        }
        let missed = self.backend.missed();
        self.note_group(round.taken.commands);
        self.turns.settle(round, &written, &missed);
    }

    /// Logs when commits begin to fail, and when they succeed again. Returns the error for the waiting requests. It
    /// does not repeat the cause, which is in the server's log.
    fn note(&mut self, written: Result<bool, StoreError>) -> Result<(), StoreError> {
        match written {
            // A group that writes nothing succeeds even on a full disk, so it proves nothing.
            Ok(false) => Ok(()),
            Ok(true) => {
                if let Some(failed) = self.failures.worked() {
                    tracing::info!(failed, "commits work again");
                }
                Ok(())
            }
            // Already logged when it was detected.
            Err(error @ (StoreError::Displaced | StoreError::Unknown)) => Err(error),
            Err(error) => {
                if let Some(failed) = self.failures.failed(Instant::now()) {
                    tracing::error!(%error, failed, "a commit failed and had no effect");
                }
                Err(StoreError::NotCommitted)
            }
        }
    }

    fn decide_round(
        &mut self,
        round: &mut Round,
        decisions: &mut Decisions,
        now: Moment,
    ) -> Result<(), StoreError> {
        while let Some((school, mut queue)) = self.turns.next(round) {
            let before = round.taken;
            if let Err(error) = self.decide_turn(round, decisions, school, &mut queue, now) {
                round.undecided(school, queue);
                return Err(error);
            }
            round.served(school, queue, before);
        }
        Ok(())
    }

    fn decide_turn(
        &mut self,
        round: &mut Round,
        decisions: &mut Decisions,
        school: SchoolId,
        queue: &mut Queue,
        now: Moment,
    ) -> Result<(), StoreError> {
        let before = round.taken;
        while !round.is_over(before)
            && let Some(next) = queue.next(round.is_half_over(before))
        {
            let (envelope, allowance) = (next.envelope(), &next.allowance);
            let room = allowance.room();
            let subjects = decisions.states.len();
            let decision =
                self.rules
                    .decide(&mut self.backend, decisions, school, envelope, room, now)?;
            allowance.take(&decision);
            round.taken.commands += 1;
            round.taken.subjects += decisions.states.len() - subjects;
            // The answer to a repeated command counts as well, because it is read and sent.
            round.taken.bytes += decision.charged + decision.weight;
            queue.decided(decision.receipt, decision.charged as u64);
        }
        Ok(())
    }
}
