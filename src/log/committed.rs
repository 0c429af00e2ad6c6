//! What is committed, on its way to those who follow the log, and how long commits take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::StoreError;
use crate::event::Event;

/// Where committed events go, in commit order, and how many batches have gone there.
#[derive(Clone)]
pub struct Committed {
    batches: mpsc::Sender<Vec<Arc<Event>>>,
    count: Arc<AtomicU64>,
}

impl Committed {
    /// A way for at most `capacity` batches at a time, and its end.
    pub fn channel(capacity: usize) -> (Committed, mpsc::Receiver<Vec<Arc<Event>>>) {
        let (batches, receiver) = mpsc::channel(capacity);
        (
            Committed {
                batches,
                count: Arc::default(),
            },
            receiver,
        )
    }

    /// Hands a batch over. To be called after its commit and before anyone is answered, so that a client that
    /// was answered finds it counted. Fails when nobody listens any more.
    pub async fn send(&self, events: Vec<Arc<Event>>) -> Result<(), StoreError> {
        // Counted only when it is sure to go: a caller may give up while it waits for a place.
        let place = self
            .batches
            .reserve()
            .await
            .map_err(|_| StoreError::Stopped)?;
        self.count.fetch_add(1, Ordering::SeqCst);
        place.send(events);
        Ok(())
    }

    /// The same from a thread of its own.
    pub fn blocking_send(&self, events: Vec<Arc<Event>>) -> Result<(), StoreError> {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.batches
            .blocking_send(events)
            .map_err(|_| StoreError::Stopped)
    }

    /// How many batches were handed over.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

/// What a store has written since it was opened: counted by its writer, read for the server's figures.
#[derive(Debug, Default)]
pub struct Meter {
    events: AtomicU64,
    commits: AtomicU64,
    commit_micros: AtomicU64,
    slowest_micros: AtomicU64,
}

/// What a [`Meter`] said.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Events committed.
    pub events: u64,
    /// Commits of at least one event.
    pub commits: u64,
    /// Microseconds from taking a group up to its commit, of all commits together.
    pub commit_micros: u64,
    /// The longest of them since the last reading.
    pub slowest_micros: u64,
}

impl Meter {
    /// Notes a commit.
    pub fn committed(&self, events: usize, took: Duration) {
        let micros = took.as_micros() as u64;
        self.events.fetch_add(events as u64, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.commit_micros.fetch_add(micros, Ordering::Relaxed);
        self.slowest_micros.fetch_max(micros, Ordering::Relaxed);
    }

    /// What it says now. The slowest commit is told once.
    pub fn read(&self) -> Reading {
        Reading {
            slowest_micros: self.slowest_micros.swap(0, Ordering::Relaxed),
            ..self.peek()
        }
    }

    /// What it says now, for as many as ask.
    pub fn peek(&self) -> Reading {
        Reading {
            events: self.events.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            commit_micros: self.commit_micros.load(Ordering::Relaxed),
            slowest_micros: self.slowest_micros.load(Ordering::Relaxed),
        }
    }
}
