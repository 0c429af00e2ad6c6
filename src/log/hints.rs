//! Hints about events that another node, or another handle to the same database, has committed.
//!
//! A hint is never authoritative: it says where to look in the log, and may contain the events so that no read is needed.
//! It may be lost, late, duplicated or out of order. Therefore the queue can be bounded, and sending a hint never waits:
//! if the queue is full, the hint is dropped, and a [`LogCheck`] replaces it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use crate::config::{HINT_CHECKS_MAX, HINT_QUEUE, HINT_QUEUE_BYTES};
use crate::event::{Event, is_dense};
use crate::id::SchoolId;

/// What may have happened in a school's log.
#[derive(Debug, Clone)]
pub enum Hint {
    /// These events were committed. They belong to one school and have no gap.
    Events(Vec<Arc<Event>>),
    /// Events up to this `seq` were committed.
    UpTo(SchoolId, u64),
    /// The log may have lost its newest events, and may have assigned their numbers again.
    HistoryChanged(SchoolId),
}

impl Hint {
    /// Returns how many bytes the hint counts for in the queue.
    fn bytes(&self) -> usize {
        match self {
            Hint::Events(events) => events.iter().map(|event| event.bytes()).sum(),
            Hint::UpTo(..) | Hint::HistoryChanged(_) => 0,
        }
    }

    /// Returns the school, or `None` if `Events` is empty.
    fn school(&self) -> Option<SchoolId> {
        match self {
            Hint::Events(events) => events.first().map(|first| first.school),
            Hint::UpTo(school, _) | Hint::HistoryChanged(school) => Some(*school),
        }
    }
}

/// Which logs to compare with the events that the hub has received.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LogCheck {
    /// Every log. `schools` is empty then.
    pub all: bool,
    /// The logs of these schools.
    pub schools: HashSet<SchoolId>,
}

impl LogCheck {
    fn is_empty(&self) -> bool {
        !self.all && self.schools.is_empty()
    }
}

/// The sender of hints. Clones share the queue.
#[derive(Clone)]
pub struct Hints {
    queue: mpsc::Sender<Hint>,
    state: Arc<State>,
}

/// The receiver of [`Hints`].
pub(super) struct Hinted {
    queue: mpsc::Receiver<Hint>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Bytes of the events in the queue.
    bytes: AtomicUsize,
    check: Mutex<LogCheck>,
    /// Wakes the task that waits until a check is requested.
    asked: Notify,
    counts: Counts,
}

/// Counts what became of hints.
#[derive(Debug, Default)]
pub struct Counts {
    /// Hints that were taken.
    taken: AtomicU64,
    /// Hints that were dropped because the queue was full.
    dropped: AtomicU64,
    /// Hints that contained nothing new for the hub.
    late: AtomicU64,
    /// Reads of missing events from the log.
    reads: AtomicU64,
    /// How far the hub was behind the logs when they were last compared, in events.
    behind: AtomicU64,
}

/// The values of [`Counts`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct HintCounts {
    /// Hints that were taken.
    pub taken: u64,
    /// Hints that were dropped because the queue was full. The log was compared instead.
    pub dropped: u64,
    /// Hints that contained nothing new for the hub.
    pub late: u64,
    /// Reads of missing events from the log.
    pub reads: u64,
    /// How far the hub was behind the logs when they were last compared, in events.
    pub behind: u64,
}

impl Hints {
    /// Creates a bounded queue.
    pub(super) fn channel() -> (Hints, Hinted) {
        let (sender, receiver) = mpsc::channel(HINT_QUEUE);
        let state = Arc::<State>::default();
        let hints = Hints {
            queue: sender,
            state: Arc::clone(&state),
        };
        let hinted = Hinted {
            queue: receiver,
            state,
        };
        (hints, hinted)
    }

    /// Queues a hint. Never waits: if there is no room, requests a check of the school's log instead.
    pub fn give(&self, hint: Hint) {
        let Some(school) = hint.school() else {
            return;
        };
        debug_assert!(
            !matches!(&hint, Hint::Events(events) if !is_dense(events)),
            "a hint has no gap"
        );
        let bytes = hint.bytes();
        let waiting = self.state.bytes.fetch_add(bytes, Ordering::Relaxed);
        // An event may be larger than the bound; it is taken if nothing else waits.
        let fits = waiting == 0 || waiting + bytes <= HINT_QUEUE_BYTES;
        if fits && self.queue.try_send(hint).is_ok() {
            self.state.counts.taken.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.state.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.state.counts.dropped.fetch_add(1, Ordering::Relaxed);
        self.request_check(school);
    }

    /// Requests a check of a school's log, because hints about it may have been missed.
    pub fn request_check(&self, school: SchoolId) {
        let mut check = self.state.check();
        if !check.all {
            check.schools.insert(school);
        }
        if check.schools.len() > HINT_CHECKS_MAX {
            check.all = true;
            check.schools = HashSet::new();
        }
        drop(check);
        self.state.asked.notify_one();
    }

    /// Requests a check of every log that the hub follows.
    pub fn request_check_of_all(&self) {
        *self.state.check() = LogCheck {
            all: true,
            schools: HashSet::new(),
        };
        self.state.asked.notify_one();
    }

    /// Waits until a check is requested, and returns which logs to check.
    pub async fn requested_check(&self) -> LogCheck {
        loop {
            let check = std::mem::take(&mut *self.state.check());
            if !check.is_empty() {
                return check;
            }
            self.state.asked.notified().await;
        }
    }

    /// Records how far the hub is behind the logs, in events.
    pub fn is_behind(&self, events: u64) {
        let counts = &self.state.counts;
        counts.behind.store(events, Ordering::Relaxed);
    }

    /// Returns what became of hints since the start.
    pub fn counts(&self) -> HintCounts {
        let counts = &self.state.counts;
        let value = |count: &AtomicU64| count.load(Ordering::Relaxed);
        HintCounts {
            taken: value(&counts.taken),
            dropped: value(&counts.dropped),
            late: value(&counts.late),
            reads: value(&counts.reads),
            behind: value(&counts.behind),
        }
    }
}

impl Hinted {
    /// Waits for the next hint. Returns `None` when all senders are gone.
    pub(super) async fn recv(&mut self) -> Option<Hint> {
        let hint = self.queue.recv().await?;
        self.state.bytes.fetch_sub(hint.bytes(), Ordering::Relaxed);
        Some(hint)
    }

    /// Counts a hint that contained nothing new for the hub.
    pub(super) fn was_late(&self) {
        self.state.counts.late.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a read of missing events.
    pub(super) fn has_read(&self) {
        self.state.counts.reads.fetch_add(1, Ordering::Relaxed);
    }
}

impl State {
    fn check(&self) -> MutexGuard<'_, LogCheck> {
        self.check.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn school(number: usize) -> SchoolId {
        i64::try_from(number).unwrap().try_into().unwrap()
    }

    #[tokio::test]
    async fn a_full_queue_takes_no_hint_and_asks_for_a_look_at_the_log_instead() {
        let (hints, mut hinted) = Hints::channel();
        for number in 1..=HINT_QUEUE + 2 {
            hints.give(Hint::UpTo(school(number), 1));
        }
        let check = hints.requested_check().await;
        let expected = HashSet::from([school(HINT_QUEUE + 1), school(HINT_QUEUE + 2)]);
        assert_eq!((check.all, check.schools), (false, expected));
        let counts = hints.counts();
        assert_eq!((counts.taken, counts.dropped), (HINT_QUEUE as u64, 2));
        for number in 1..=HINT_QUEUE {
            let hint = hinted.recv().await;
            assert!(matches!(hint, Some(Hint::UpTo(id, 1)) if id == school(number)));
        }
    }

    #[tokio::test]
    async fn where_to_look_is_bounded_whatever_is_missed() {
        let (hints, _hinted) = Hints::channel();
        for number in 1..=2 * HINT_CHECKS_MAX {
            hints.request_check(school(number));
        }
        let check = hints.requested_check().await;
        assert!(check.all && check.schools.is_empty());
    }
}
