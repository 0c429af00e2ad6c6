//! What is committed, on its way to those who follow the log, and how long commits take.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};

use super::StoreError;
use crate::config::DURATION_BUCKETS_SECS;
use crate::event::Event;
use crate::id::SchoolId;

/// Where committed events go, in commit order.
#[derive(Clone)]
pub struct Committed {
    batches: mpsc::Sender<Vec<Arc<Event>>>,
    way: Arc<Way>,
}

/// The other end of [`Committed`].
pub struct Batches {
    batches: mpsc::Receiver<Vec<Arc<Event>>>,
    way: Arc<Way>,
    /// Whether a batch was taken and is not done.
    has_taken: bool,
}

/// What is on its way.
struct Way {
    /// Schools of which something is.
    schools: Mutex<HashMap<SchoolId, UnderWay>>,
    sent: AtomicU64,
    done: watch::Sender<u64>,
}

struct UnderWay {
    /// The newest `seq` that was committed.
    committed: u64,
    /// The newest that was told.
    told: u64,
    changed: Arc<Notify>,
}

impl Committed {
    /// A way for at most `capacity` batches at a time, and its end.
    pub fn channel(capacity: usize) -> (Committed, Batches) {
        let (sender, receiver) = mpsc::channel(capacity);
        let way = Arc::new(Way {
            schools: Mutex::default(),
            sent: AtomicU64::new(0),
            done: watch::channel(0).0,
        });
        let committed = Committed {
            batches: sender,
            way: Arc::clone(&way),
        };
        let batches = Batches {
            batches: receiver,
            way,
            has_taken: false,
        };
        (committed, batches)
    }

    /// Hands a batch over. To be called after its commit and before anyone is answered, so that a client that
    /// was answered finds it under way. Fails when nobody listens any more.
    pub async fn send(&self, events: Vec<Arc<Event>>) -> Result<(), StoreError> {
        // Noted only when it is sure to go: a caller may give up while it waits for a place.
        let place = self
            .batches
            .reserve()
            .await
            .map_err(|_| StoreError::Stopped)?;
        self.way.note(&events);
        place.send(events);
        Ok(())
    }

    /// The same without an await; only where there is no room, the thread waits, which must not be one of Tokio's.
    pub fn blocking_send(&self, events: Vec<Arc<Event>>) -> Result<(), StoreError> {
        self.way.note(&events);
        match self.batches.try_send(events) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(events)) => self
                .batches
                .blocking_send(events)
                .map_err(|_| StoreError::Stopped),
            Err(TrySendError::Closed(_)) => Err(StoreError::Stopped),
        }
    }

    /// How many batches are under way.
    pub fn waiting(&self) -> u64 {
        // The other end first: what is done meanwhile must not look like less than nothing.
        let done = *self.way.done.borrow();
        self.way.sent.load(Ordering::SeqCst).saturating_sub(done)
    }

    /// Sends nothing to the other end, and waits until it has passed there.
    pub async fn round_trip(&self) -> Result<(), StoreError> {
        let mut done = self.way.done.subscribe();
        self.send(Vec::new()).await?;
        let own = self.way.sent.load(Ordering::SeqCst);
        done.wait_for(|done| *done >= own)
            .await
            .map_err(|_| StoreError::Stopped)?;
        Ok(())
    }

    /// Ready when everything was told that was committed in this school until now.
    pub fn settled(&self, school: SchoolId) -> impl Future<Output = ()> + Send + 'static {
        let way = Arc::clone(&self.way);
        let target = way.schools().get(&school).map_or(0, |own| own.committed);
        async move {
            loop {
                let changed = match way.schools().get(&school) {
                    Some(own) if own.told < target => Arc::clone(&own.changed).notified_owned(),
                    _ => return,
                };
                changed.await;
            }
        }
    }
}

impl Batches {
    /// The next batch, once there is one. None when nobody can send any more. The one before is done then, whatever became
    /// of it: those who wait for it must not wait for good.
    pub async fn recv(&mut self) -> Option<Vec<Arc<Event>>> {
        self.done();
        let batch = self.batches.recv().await;
        self.has_taken = batch.is_some();
        batch
    }

    /// The next batch, if there is one.
    pub fn try_recv(&mut self) -> Option<Vec<Arc<Event>>> {
        self.done();
        let batch = self.batches.try_recv().ok();
        self.has_taken = batch.is_some();
        batch
    }

    /// Takes no more than what was sent before.
    pub fn close(&mut self) {
        self.batches.close();
    }

    /// Notes that these events were told.
    pub fn told(&mut self, events: &[Arc<Event>]) {
        let mut schools = self.way.schools();
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            let newest = of_school[of_school.len() - 1].seq;
            let school = of_school[0].school;
            if let Some(own) = schools.get_mut(&school) {
                own.told = own.told.max(newest);
                own.changed.notify_waiters();
                if own.told >= own.committed {
                    schools.remove(&school);
                }
            }
        }
    }

    /// Notes that the batch that was taken last has been taken care of.
    pub fn done(&mut self) {
        if std::mem::take(&mut self.has_taken) {
            self.way.done.send_modify(|done| *done += 1);
        }
    }
}

impl Drop for Batches {
    /// Nobody waits for what will never be told.
    fn drop(&mut self) {
        for (_, own) in self.way.schools().drain() {
            own.changed.notify_waiters();
        }
    }
}

impl Way {
    fn schools(&self) -> MutexGuard<'_, HashMap<SchoolId, UnderWay>> {
        self.schools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, events: &[Arc<Event>]) {
        self.sent.fetch_add(1, Ordering::SeqCst);
        let mut schools = self.schools();
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            let newest = of_school[of_school.len() - 1].seq;
            let own = schools
                .entry(of_school[0].school)
                .or_insert_with(|| UnderWay {
                    committed: 0,
                    told: 0,
                    changed: Arc::default(),
                });
            own.committed = own.committed.max(newest);
        }
    }
}

/// What a store has written since it was opened: counted by its writer, read for the server's figures.
#[derive(Debug)]
pub struct Meter {
    events: AtomicU64,
    commits: AtomicU64,
    commit_micros: AtomicU64,
    slowest_micros: AtomicU64,
    commit_duration: Histogram,
}

impl Default for Meter {
    fn default() -> Meter {
        Meter {
            events: AtomicU64::default(),
            commits: AtomicU64::default(),
            commit_micros: AtomicU64::default(),
            slowest_micros: AtomicU64::default(),
            commit_duration: Histogram::new(DURATION_BUCKETS_SECS),
        }
    }
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
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.events.fetch_add(events as u64, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.commit_micros.fetch_add(micros, Ordering::Relaxed);
        self.slowest_micros.fetch_max(micros, Ordering::Relaxed);
        self.commit_duration.observe(took.as_secs_f64());
    }

    /// From taking a group up to its commit, in seconds.
    pub fn commit_duration(&self) -> &Histogram {
        &self.commit_duration
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
