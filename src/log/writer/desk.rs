//! The desk of a writer: a request that comes alone commits by itself, without waking the writer's thread.
//!
//! Two hand-offs between threads cost more than a small commit. So a request that finds the writer idle, and nothing waiting
//! before it, commits on its own thread, which may be one of an asynchronous runtime. The writer's thread commits
//! everything else:
//!
//! 1. Requests that come together, because a group of them costs less than their single commits. The thread goes on until
//!    [`CALM_GROUPS`] groups in a row consisted of one command.
//! 2. What may take longer than a moment: a request of several commands, and a group that the backend does not
//!    [commit at once](Backend::try_commit), such as one that waits for the disk, or for whose event the dispatcher has no
//!    room. The thread commits a group that a request has decided before anything else.
//! 3. Work that follows commits, such as copying the journal, after every [`OWED_MAX`] of them.
//!
//! The thread takes work from the queue only at the desk, so no request overtakes one that is in the queue.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use tokio::time::Instant;

use super::turns::Due;
use super::{Answer, Backend, Group, Submission, Writer};
use crate::config::{CALM_GROUPS, OWED_MAX};

/// See the [module-level documentation](self).
pub(super) struct Desk<B> {
    /// Absent before the thread runs, and after it has ended.
    writer: Mutex<Option<Writer<B>>>,
    thread: OnceLock<Thread>,
}

/// What a writer at its desk remembers between two groups.
#[derive(Default)]
pub(super) struct Notes {
    /// A group that is decided, and that the thread must commit.
    decided: Option<Group>,
    /// How many groups of one command must follow before a request commits by itself again.
    groups_to_calm: u32,
    /// The number of commits whose following work is not done.
    owed: u32,
    /// With what a commit on another thread has ended. The writer's thread must end with it as well.
    panic: Option<Box<dyn Any + Send>>,
}

/// What the thread does next.
enum Next {
    Work,
    Wait,
    WaitUntil(Instant),
    End,
}

/// Wakes a waiting thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<B> Default for Desk<B> {
    fn default() -> Self {
        Desk {
            writer: Mutex::default(),
            thread: OnceLock::default(),
        }
    }
}

impl<B: Backend> Desk<B> {
    /// Commits a request that comes alone, or returns it: then it must be queued.
    pub(super) fn commit(&self, submission: Submission) -> Option<Submission> {
        if submission.commands.len() > 1 {
            return Some(submission);
        }
        let Ok(mut writer) = self.writer.try_lock() else {
            return Some(submission);
        };
        let Some(writer) = writer.as_mut().filter(|writer| writer.is_idle()) else {
            return Some(submission);
        };
        let committed = catch_unwind(AssertUnwindSafe(|| writer.commit_alone(submission)));
        writer.notes.panic = committed.err();
        if writer.needs_thread()
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        None
    }

    /// Runs a writer on the current thread; see [`Writer::run`].
    pub(super) fn run(&self, writer: Writer<B>) -> Option<Answer<()>> {
        let _ = self.thread.set(thread::current());
        self.attend(writer);
        let mut closed = None;
        let ran = catch_unwind(AssertUnwindSafe(|| self.run_until_closed(&mut closed)));
        let writer = self.writer().take();
        if let Err(panic) = ran {
            // Ends the wait of every caller with an error.
            drop(writer);
            resume_unwind(panic);
        }
        if let Some(mut writer) = writer
            && closed.is_some()
        {
            writer.backend.close();
        }
        closed
    }

    pub(super) fn attend(&self, writer: Writer<B>) {
        *self.writer() = Some(writer);
    }

    /// Drops the writer, which refers to its desk.
    pub(super) fn leave(&self) {
        let writer = self.writer().take();
        drop(writer);
    }

    /// Does the pending work; see [`Attended::step`](super::Attended::step).
    pub(super) fn step(&self) -> bool {
        self.writer().as_mut().is_some_and(Writer::step)
    }

    fn run_until_closed(&self, closed: &mut Option<Answer<()>>) {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            let next = match self.writer().as_mut() {
                Some(writer) => writer.work(&mut context, closed),
                None => Next::End,
            };
            match next {
                Next::Work => {}
                Next::Wait => thread::park(),
                Next::WaitUntil(at) => {
                    thread::park_timeout(at.saturating_duration_since(Instant::now()));
                }
                Next::End => return,
            }
        }
    }

    /// Poisoned only by a panic of the thread, which ends it.
    fn writer(&self) -> MutexGuard<'_, Option<Writer<B>>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> Writer<B> {
    /// Whether the next request can commit by itself.
    fn is_idle(&self) -> bool {
        !self.needs_thread()
            && self.notes.groups_to_calm == 0
            && self.queue.is_empty()
            && self.backend.is_embedded()
    }

    /// Whether there is work that only the thread does.
    fn needs_thread(&self) -> bool {
        let Notes {
            decided,
            owed,
            panic,
            ..
        } = &self.notes;
        decided.is_some() || panic.is_some() || *owed >= OWED_MAX || !self.turns.is_empty()
    }

    fn commit_alone(&mut self, submission: Submission) {
        self.turns.add(submission);
        let at = Instant::now();
        // A school with more than its share may have to wait.
        if self.turns.due(at) != Due::Now {
            return;
        }
        let mut group = self.decide(at, false);
        let place = self.committed.try_reserve();
        let written = match (&group.decided, &place) {
            (Ok(()), Some(_)) => self.backend.try_commit(&mut group.decisions, group.now),
            _ => None,
        };
        match (written, place) {
            (Some(written), Some(place)) => self.finish(group, written, |committed, events| {
                committed.send_reserved(place, events);
                Ok(())
            }),
            _ => self.notes.decided = Some(group),
        }
    }

    /// Commits what a request has decided, or ends with the panic of its commit. Returns false if there is nothing of this.
    pub(super) fn take_over(&mut self) -> bool {
        if let Some(panic) = self.notes.panic.take() {
            resume_unwind(panic);
        }
        let Some(mut group) = self.notes.decided.take() else {
            return false;
        };
        // How long the thread took to wake up says nothing about the commit.
        group.began = std::time::Instant::now();
        self.commit(group);
        true
    }

    /// Does the next piece of work on the writer's thread. `closed` is the channel to answer when the writer has closed.
    fn work(&mut self, context: &mut Context<'_>, closed: &mut Option<Answer<()>>) -> Next {
        if self.take_over() {
            return Next::Work;
        }
        let is_closing = closed.is_some();
        let due = self.turns.due(Instant::now());
        let next = match due {
            Due::Never if is_closing => return Next::End,
            _ if is_closing => None,
            Due::Now => self.queue.try_recv().ok(),
            Due::At(_) | Due::Never => match self.queue.poll_recv(context) {
                Poll::Ready(None) if due == Due::Never => return Next::End,
                Poll::Ready(next) => next,
                Poll::Pending if self.settle_up() => return Next::Work,
                Poll::Pending => {
                    return match due {
                        Due::At(at) => Next::WaitUntil(at),
                        _ => Next::Wait,
                    };
                }
            },
        };
        let closing = self.work_on(next, is_closing);
        self.settle_up();
        *closed = closed.take().or(closing);
        Next::Work
    }

    /// Notes that a group is committed.
    pub(super) fn note_group(&mut self, commands: usize) {
        self.notes.groups_to_calm = match commands {
            0 | 1 => self.notes.groups_to_calm.saturating_sub(1),
            _ => CALM_GROUPS,
        };
        self.notes.owed += 1;
    }

    /// Does the work that follows commits. Returns false if there was none.
    pub(super) fn settle_up(&mut self) -> bool {
        let owed = std::mem::take(&mut self.notes.owed);
        if owed > 0 {
            self.backend.answered();
        }
        owed > 0
    }
}
