//! The one writer of a store: turns between schools and group commit, the same for every database.
//!
//! It takes what waits, school by school in `turns`, decides the commands one after the other, has the backend write
//! what the whole group leads to in one transaction, hands the events to the dispatcher and only then answers those of
//! whom all is carried out. Deciding comes before the transaction, so that a refused command has written nothing and the
//! backend knows whether the group holds a milestone, which must reach the disk before it is acknowledged.
//!
//! ```text
//! Handle ─queue─▶ Turns ─▶ Rules::decide ─▶ Backend::commit ─▶ Committed ─▶ answers
//! ```
//!
//! Upholds invariants 1 and 2. Nobody else may write to the tables while it runs.

mod turns;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use self::turns::{Queue, Round, Turns};
use super::decide::{Decisions, Rules};
use super::facts::{Facts, Moment};
use super::{Allowance, CommandError, Committed, Envelope, Meter, Receipt, StoreError};
use crate::config::WRITER_QUEUE;
use crate::event::is_dense;
use crate::failures::Failures;
use crate::id::{Kind, SchoolId};
use crate::kind::State;

/// A database behind a writer.
pub trait Backend: Facts<Error = StoreError> + Send + 'static {
    /// The present: the time of what is decided now.
    fn now(&self) -> Moment;

    /// Returns how many bytes the write of a state counts for in a group, in addition to those of its events.
    fn weight(&self, _: Kind, _: &State) -> usize {
        0
    }

    /// Writes what a group leads to in one transaction, and has the facts follow. If it fails, nothing is written and no
    /// fact has changed. It may take anything out of the decisions but the events. Returns when all was written and only the
    /// commit was left, which may wait for the disk; nothing if there was nothing to write.
    fn commit(
        &mut self,
        decisions: &mut Decisions,
        now: Moment,
    ) -> Result<Option<Instant>, StoreError>;

    /// Lets go of the database in good order.
    fn close(&mut self);
}

/// Whom to tell when something is done.
pub type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What became of the commands of a request, in their order.
pub type Receipts = Vec<Result<Receipt, CommandError>>;

/// What can be asked of the writer.
enum Work<B> {
    Append(Submission),
    /// Anything else that is done between two groups.
    Call(Box<dyn FnOnce(&mut B) + Send>),
    Close(Answer<()>),
}

/// Commands of one request.
pub(super) struct Submission {
    school: SchoolId,
    commands: Vec<Envelope>,
    allowance: Arc<Allowance>,
    answer: Answer<Receipts>,
}

/// Where work for a writer is handed in. The writer ends when all of its handles are gone.
pub struct Handle<B> {
    work: mpsc::Sender<Work<B>>,
}

/// See the module's page.
pub struct Writer<B> {
    backend: B,
    rules: Rules,
    committed: Committed,
    meter: Arc<Meter>,
    /// Whose commands come next.
    turns: Turns,
    /// Commits that failed in a row.
    failures: Failures,
    queue: mpsc::Receiver<Work<B>>,
}

impl<B: Backend> Handle<B> {
    /// Carries out commands in order and answers each, after the commit. Fails only if none has had an effect.
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

    /// Has the writer do something else with its backend.
    pub async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut B) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(|answer| {
            Work::Call(Box::new(move |backend| {
                // The caller may have gone.
                let _ = answer.send(call(backend));
            }))
        })
        .await
    }

    /// Has the writer finish what it was asked, and end.
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
    /// A writer, which is to be [run](Writer::run), and its handle. What it commits goes to `committed` and is counted in
    /// `meter`.
    pub fn new(
        backend: B,
        rules: Rules,
        committed: Committed,
        meter: Arc<Meter>,
    ) -> (Writer<B>, Handle<B>) {
        let (work, queue) = mpsc::channel(WRITER_QUEUE);
        let writer = Writer {
            backend,
            rules,
            committed,
            meter,
            turns: Turns::default(),
            failures: Failures::default(),
            queue,
        };
        (writer, Handle { work })
    }

    /// Works on a thread of its own until it is told to close, or until every handle is gone. What was asked before is
    /// done. Returns whom to answer once the backend is dropped, if somebody waits.
    pub fn run(mut self) -> Option<Answer<()>> {
        let mut closed = None;
        loop {
            let next = match (&closed, self.turns.is_empty()) {
                (Some(_), true) => break,
                (Some(_), false) => None,
                (None, false) => self.queue.try_recv().ok(),
                (None, true) => match self.queue.blocking_recv() {
                    Some(work) => Some(work),
                    None => return None,
                },
            };
            closed = closed.or(self.work_on(next));
        }
        self.backend.close();
        closed
    }

    /// Does what waits now, and waits for nothing: for those who have no thread for it, such as a simulation. False if nothing
    /// waits.
    pub fn step(&mut self) -> bool {
        let next = self.queue.try_recv().ok();
        let waits = next.is_some() || !self.turns.is_empty();
        self.work_on(next);
        waits
    }

    /// Takes up this and all that waits behind it, so that the turns are between all schools, and commits a group. Returns
    /// whom to answer when it is to close.
    fn work_on(&mut self, mut next: Option<Work<B>>) -> Option<Answer<()>> {
        let mut closed = None;
        // But not what comes meanwhile without end.
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
        if !self.turns.is_empty() {
            self.commit();
        }
        closed
    }

    /// Lets commands wait for their turn and does anything else at once: order matters to nobody between these.
    /// Returns whom to answer when it is to close.
    fn take_up(&mut self, work: Work<B>) -> Option<Answer<()>> {
        match work {
            Work::Append(submission) => self.turns.add(submission),
            Work::Call(call) => call(&mut self.backend),
            Work::Close(answer) => return Some(answer),
        }
        None
    }

    /// Carries out a group, of each school a slice, and answers those of whom all is done.
    fn commit(&mut self) {
        let began = Instant::now();
        let now = self.backend.now();
        let mut decisions = Decisions::default();
        let mut round = self.turns.begin();
        let decided = self.decide_round(&mut round, &mut decisions, now);
        let written = decided.and_then(|()| self.backend.commit(&mut decisions, now));
        if let Ok(Some(at)) = written {
            self.turns.worked(&round, at - began);
        }
        let written = self.note(written.map(|at| at.is_some()));
        if written.is_ok() && !decisions.events.is_empty() {
            self.meter
                .committed(decisions.events.len(), began.elapsed());
            debug_assert!(is_dense(&decisions.events), "a commit has no hole");
            // Fails only when the dispatcher has ended, and then nobody listens.
            let _ = self.committed.blocking_send(decisions.events);
        }
        self.turns.settle(round, &written);
    }

    /// Tells the log whether commits fail. Returns to those who wait the error that says that it was told.
    fn note(&mut self, written: Result<bool, StoreError>) -> Result<(), StoreError> {
        match written {
            // What writes nothing works on a full disk, too.
            Ok(false) => Ok(()),
            Ok(true) => {
                if let Some(failed) = self.failures.worked() {
                    tracing::info!(failed, "commits work again");
                }
                Ok(())
            }
            // Told when it was noticed.
            Err(StoreError::Displaced) => Err(StoreError::Displaced),
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
            let decided = self.decide_turn(round, decisions, school, &mut queue, now);
            round.served(school, queue);
            decided?;
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
            && let Some((envelope, allowance)) = queue.next()
        {
            let room = allowance.room();
            let decision =
                self.rules
                    .decide(&mut self.backend, decisions, school, &envelope, room, now)?;
            allowance.take(school, &decision);
            round.taken.commands += 1;
            round.taken.bytes += decision.written;
            if decision.written > 0 {
                let kind = envelope.command.kind();
                let changed = decisions.states.get(&(school, kind, envelope.subject));
                let weight = changed.map(|stored| self.backend.weight(kind, &stored.state));
                round.taken.bytes += weight.unwrap_or(0);
            }
            queue.decided(decision.receipt);
        }
        Ok(())
    }
}
