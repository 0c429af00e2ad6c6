//! The single writer of a store: turns between schools and group commit, the same for every database.
//!
//! It takes the waiting commands, school by school as `turns` determines, and decides them one after another. The backend
//! writes the results of the whole group in one transaction. The writer then sends the events to the dispatcher, and only
//! then answers the requests that are completely carried out. Decisions precede the transaction, so that a rejected
//! command writes nothing, and so that the backend knows whether the group contains a milestone, which must reach the
//! disk before it is acknowledged.
//!
//! ```text
//! Handle ─queue─▶ Turns ─▶ Rules::decide ─▶ Backend::commit ─▶ Committed ─▶ answers
//! ```
//!
//! Upholds invariants 1 and 2. Nothing else is allowed to write to the tables while it runs.

mod pace;
mod turns;

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio::time;

pub use self::pace::Pace;
use self::turns::{Due, Queue, Round, Turns};
use super::decide::{Decisions, Rules};
use super::facts::{Facts, Moment};
use super::{Allowance, CommandError, CommitMetrics, Committed, Envelope, Receipt, StoreError};
use crate::config::WRITER_QUEUE;
use crate::event::is_dense;
use crate::failures::Failures;
use crate::id::{Kind, SchoolId};
use crate::kind::State;

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

    /// Returns how many bytes the write of a state adds to its group, in addition to those of its events.
    fn weight(&self, _: Kind, _: &State) -> usize {
        0
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

    /// Takes the schools that the last commit left out. Empty for a store with one writer.
    fn missed(&mut self) -> Vec<SchoolId> {
        Vec::new()
    }

    /// Does the work of a commit that can wait until its requests are answered.
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
}

/// Wakes a waiting thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<B: Backend> Handle<B> {
    /// Carries out commands in order and answers each after the commit. Fails only if none had an effect.
    pub async fn append(
        &self,
        school: SchoolId,
        commands: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Result<Receipts, StoreError> {
        self.ask(|answer| {
            Work::Append(Submission {
                school,
                commands,
                allowance,
                answer,
            })
        })
        .await
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
        self.work
            .send(work(answer))
            .await
            .map_err(|_| StoreError::Stopped)?;
        answered.await.map_err(|_| StoreError::Stopped)?
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
        let writer = Writer {
            backend,
            rules,
            committed,
            metrics,
            turns: Turns::new(pace),
            failures: Failures::default(),
            queue,
        };
        (writer, Handle { work })
    }

    /// Runs the writer on the current thread until it is closed or every handle is dropped. Completes the work submitted
    /// before that. Returns the channel on which to answer once the backend is dropped, if a caller is waiting.
    pub fn run(mut self) -> Option<Answer<()>> {
        let mut closed = None;
        loop {
            let is_closing = closed.is_some();
            let next = match self.turns.due(time::Instant::now()) {
                Due::Never if is_closing => break,
                _ if is_closing => None,
                Due::Now => self.queue.try_recv().ok(),
                Due::At(at) => self.receive_until(at),
                Due::Never => match self.queue.blocking_recv() {
                    Some(work) => Some(work),
                    None => return None,
                },
            };
            closed = closed.or(self.work_on(next, is_closing));
        }
        self.backend.close();
        closed
    }

    /// Does the pending work without waiting for more, for callers without a dedicated thread, such as a simulation.
    /// Returns false if there is no pending work.
    pub fn step(&mut self) -> bool {
        let next = self.queue.try_recv().ok();
        let is_due = self.turns.due(time::Instant::now()) == Due::Now;
        let waits = next.is_some() || is_due;
        self.work_on(next, false);
        waits
    }

    /// Waits for work on this thread until `deadline` at most. Returns at once if there will be no more work.
    fn receive_until(&mut self, deadline: time::Instant) -> Option<Work<B>> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(work) = self.queue.poll_recv(&mut context) {
                return work;
            }
            let left = deadline.saturating_duration_since(time::Instant::now());
            if left.is_zero() {
                return None;
            }
            thread::park_timeout(left);
        }
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
            self.commit(now, hurries);
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

    /// Carries out a group with a slice of each school, and answers the requests that are completely carried out.
    fn commit(&mut self, at: time::Instant, hurries: bool) {
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
        let written = decided.and_then(|()| self.backend.commit(&mut decisions, now));
        if let Ok(Some(at)) = written {
            self.turns.worked(&round, at - began);
        }
        let written = self.note(written.map(|at| at.is_some()));
        if written.is_ok() && !decisions.events.is_empty() {
            self.metrics
                .committed(decisions.events.len(), began.elapsed());
            debug_assert!(is_dense(&decisions.events), "a commit has no hole");
            // Fails only if the dispatcher has stopped, and then nothing receives events.
            let _ = self.committed.blocking_send(decisions.events);
        }
        let missed = self.backend.missed();
        self.turns.settle(round, &written, &missed);
        self.backend.answered();
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
            let decision =
                self.rules
                    .decide(&mut self.backend, decisions, school, envelope, room, now)?;
            allowance.take(&decision);
            round.taken.commands += 1;
            // The answer to a repeated command counts as well, because it is read and sent.
            round.taken.bytes += decision.charged;
            if decision.written > 0 {
                let kind = envelope.command.kind();
                let address = (school, kind, envelope.subject.clone());
                let changed = decisions.states.get(&address);
                let weight = changed.map(|stored| self.backend.weight(kind, &stored.state));
                round.taken.bytes += weight.unwrap_or(0);
            }
            queue.decided(decision.receipt, decision.charged as u64);
        }
        Ok(())
    }
}
