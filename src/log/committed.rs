//! Carries committed events to the consumers of the log, and measures how long commits take.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};

use super::StoreError;
use super::hints::{Hint, Hinted, Hints};
use crate::config::DURATION_BUCKETS_SECS;
use crate::event::Event;
use crate::id::SchoolId;

/// The sender of committed events, in commit order.
#[derive(Clone)]
pub struct Committed {
    batches: mpsc::Sender<Vec<Arc<Event>>>,
    hints: Hints,
    in_flight: Arc<InFlight>,
}

/// Room for one batch.
pub(crate) struct Reserved(mpsc::OwnedPermit<Vec<Arc<Event>>>);

/// Receives each batch right after its commit, on the thread that committed it. It must not block.
pub type Announcer = Box<dyn Fn(&[Arc<Event>]) + Send + Sync>;

/// Dispatches a batch on the thread that committed it, if that takes only a moment. Returns false if it has not. It must neither
/// panic nor wait for the writer, whose lock is held.
pub type Express = Box<dyn Fn(&[Arc<Event>]) -> bool + Send + Sync>;

/// The receiver of [`Committed`].
pub struct Batches {
    batches: mpsc::Receiver<Vec<Arc<Event>>>,
    hints: Hinted,
    /// Whether a hint has priority over a batch next time. This alternates, so that neither starves.
    hint_is_next: bool,
    in_flight: Arc<InFlight>,
    /// Whether the last batch that was received is still being processed.
    has_taken: bool,
}

/// What [`Batches`] receives.
#[derive(Debug)]
pub enum Incoming {
    /// Events that this node has committed.
    Committed(Vec<Arc<Event>>),
    /// Something that another node may have committed.
    Hint(Hint),
}

/// What has been sent and is still being processed.
struct InFlight {
    /// Schools with events in flight.
    schools: Mutex<HashMap<SchoolId, Undispatched>>,
    /// Whether the receiver is gone, so that nothing more is dispatched. Changes only while `schools` is locked.
    is_over: AtomicBool,
    sent: AtomicU64,
    done: watch::Sender<u64>,
    announcer: OnceLock<Announcer>,
    express: OnceLock<Express>,
    /// Whether the receiver has events that wait for missing ones.
    has_hole: AtomicBool,
}

struct Undispatched {
    /// The newest `seq` that was committed.
    committed: u64,
    /// The newest `seq` that was dispatched. Initially the one before the oldest event in flight.
    dispatched: u64,
    changed: Arc<Notify>,
}

impl Committed {
    /// Creates a channel for at most `capacity` batches.
    pub fn channel(capacity: usize) -> (Committed, Batches) {
        let (sender, receiver) = mpsc::channel(capacity);
        let (hints, hinted) = Hints::channel();
        let in_flight = Arc::new(InFlight {
            schools: Mutex::default(),
            is_over: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            done: watch::channel(0).0,
            announcer: OnceLock::new(),
            express: OnceLock::new(),
            has_hole: AtomicBool::new(false),
        });
        let committed = Committed {
            batches: sender,
            hints,
            in_flight: Arc::clone(&in_flight),
        };
        let batches = Batches {
            batches: receiver,
            hints: hinted,
            hint_is_next: false,
            in_flight,
            has_taken: false,
        };
        (committed, batches)
    }

    /// Returns the queue for hints about the commits of other nodes.
    pub fn hints(&self) -> &Hints {
        &self.hints
    }

    /// Sets the announcer, which gets every later batch. Only the first call has an effect.
    pub fn announce_to(&self, announcer: Announcer) {
        let _ = self.in_flight.announcer.set(announcer);
    }

    /// Sends a batch. Must be called after its commit and before its commands are answered: [`settled`](Self::settled) must
    /// include the batch once a client has its answer. Fails if the receiver is gone.
    pub async fn send(&self, events: Vec<Arc<Event>>) -> Result<(), StoreError> {
        // Recorded only once there is room: a caller can be cancelled while it waits for room.
        let place = self
            .batches
            .reserve()
            .await
            .map_err(|_| StoreError::Stopped)?;
        self.in_flight.note(&events);
        self.in_flight.announce(&events);
        place.send(events);
        Ok(())
    }

    /// Reserves room for a batch. Returns `None` if there is no room now, or if the receiver is gone.
    pub(crate) fn try_reserve(&self) -> Option<Reserved> {
        let sender = self.batches.clone();
        Some(Reserved(sender.try_reserve_owned().ok()?))
    }

    /// Sends a batch for which there is room, or dispatches it at once. The caller has the writer, so no other events can be
    /// sent meanwhile.
    pub(crate) fn send_reserved(&self, place: Reserved, events: Vec<Arc<Event>>) {
        self.in_flight.record(&events);
        self.in_flight.announce(&events);
        // If a batch is in flight, or events wait for missing ones, this batch must follow them. In this order: only a batch
        // can open a hole, and it is recorded before the batch is done.
        let is_next = self.waiting() == 0 && !self.in_flight.has_hole.load(Ordering::SeqCst);
        if is_next && self.in_flight.express(&events) {
            self.in_flight.dispatched(&events);
        } else {
            self.in_flight.sent.fetch_add(1, Ordering::SeqCst);
            place.0.send(events);
        }
    }

    /// Sends a batch without `await`. If the channel is full, it blocks the thread, which must not be a Tokio worker thread.
    pub fn blocking_send(&self, events: Vec<Arc<Event>>) -> Result<(), StoreError> {
        self.in_flight.note(&events);
        self.in_flight.announce(&events);
        match self.batches.try_send(events) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(events)) => self
                .batches
                .blocking_send(events)
                .map_err(|_| StoreError::Stopped),
            Err(TrySendError::Closed(_)) => Err(StoreError::Stopped),
        }
    }

    /// Returns how many batches are in flight.
    pub fn waiting(&self) -> u64 {
        // Read `done` first: if a batch completes in between, `done` must not exceed `sent`.
        let done = *self.in_flight.done.borrow();
        self.in_flight
            .sent
            .load(Ordering::SeqCst)
            .saturating_sub(done)
    }

    /// Returns how many of the events that were sent have not been dispatched.
    pub fn behind(&self) -> u64 {
        let schools = self.in_flight.schools();
        let behind = |undispatched: &Undispatched| {
            undispatched
                .committed
                .saturating_sub(undispatched.dispatched)
        };
        schools.values().map(behind).sum()
    }

    /// Sends an empty batch, and waits until the receiver has processed it.
    pub async fn round_trip(&self) -> Result<(), StoreError> {
        let mut done = self.in_flight.done.subscribe();
        self.send(Vec::new()).await?;
        let sent = self.in_flight.sent.load(Ordering::SeqCst);
        done.wait_for(|done| *done >= sent)
            .await
            .map_err(|_| StoreError::Stopped)?;
        Ok(())
    }

    /// Returns a future that resolves when everything committed in this school before the call has been dispatched.
    pub fn settled(&self, school: SchoolId) -> impl Future<Output = ()> + Send + 'static {
        let in_flight = Arc::clone(&self.in_flight);
        let target = in_flight
            .schools()
            .get(&school)
            .map_or(0, |undispatched| undispatched.committed);
        async move {
            loop {
                let changed = match in_flight.schools().get(&school) {
                    Some(undispatched) if undispatched.dispatched < target => {
                        Arc::clone(&undispatched.changed).notified_owned()
                    }
                    _ => return,
                };
                changed.await;
            }
        }
    }
}

impl Batches {
    /// Waits for the next batch. Returns `None` when all senders are gone. Marks the previous batch as done, even if
    /// processing it failed, so that nothing waits for it forever.
    pub async fn recv(&mut self) -> Option<Vec<Arc<Event>>> {
        self.done();
        let batch = self.batches.recv().await;
        self.has_taken = batch.is_some();
        batch
    }

    /// Waits for the next batch or hint. Returns `None` when no batch can follow. Marks the previous batch as done.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.done();
        self.hint_is_next = !self.hint_is_next;
        let Batches { batches, hints, .. } = self;
        // Biased, so that simulations are deterministic.
        let next = match self.hint_is_next {
            true => tokio::select! {
                biased;
                Some(hint) = hints.recv() => Some(Incoming::Hint(hint)),
                batch = batches.recv() => batch.map(Incoming::Committed),
            },
            false => tokio::select! {
                biased;
                batch = batches.recv() => batch.map(Incoming::Committed),
                Some(hint) = hints.recv() => Some(Incoming::Hint(hint)),
            },
        };
        self.has_taken = matches!(next, Some(Incoming::Committed(_)));
        next
    }

    /// Counts a hint that contained nothing new.
    pub fn was_late(&self) {
        self.hints.was_late();
    }

    /// Counts a read of missing events.
    pub fn has_read(&self) {
        self.hints.has_read();
    }

    /// Records that a school's events will never be dispatched, because the log has lost them.
    pub fn forget(&mut self, school: SchoolId) {
        if let Some(undispatched) = self.in_flight.schools().remove(&school) {
            undispatched.changed.notify_waiters();
        }
    }

    /// Returns the next batch, if one is ready.
    pub fn try_recv(&mut self) -> Option<Vec<Arc<Event>>> {
        self.done();
        let batch = self.batches.try_recv().ok();
        self.has_taken = batch.is_some();
        batch
    }

    /// Rejects further batches; those already sent can still be received.
    pub fn close(&mut self) {
        self.batches.close();
    }

    /// Records that these events were dispatched.
    pub fn dispatched(&mut self, events: &[Arc<Event>]) {
        self.in_flight.dispatched(events);
    }

    /// Sets what dispatches a batch on the thread that committed it, when no other batch is in flight and no event waits for a
    /// missing one. Only the first call has an effect.
    pub fn express_to(&self, express: Express) {
        let _ = self.in_flight.express.set(express);
    }

    /// Sets whether events wait for missing ones. Meanwhile, every batch is sent. Must be called before such a batch is
    /// [done](Self::done), and after everything that waited has been dispatched. Hints need not be in time: they concern logs
    /// that several nodes write to, whose batches are always sent.
    pub fn set_hole(&self, has_hole: bool) {
        self.in_flight.has_hole.store(has_hole, Ordering::SeqCst);
    }

    /// Records that the last batch that was received has been processed.
    pub fn done(&mut self) {
        if std::mem::take(&mut self.has_taken) {
            self.in_flight.done.send_modify(|done| *done += 1);
        }
    }
}

impl Drop for Batches {
    /// Wakes all waiters: the remaining events will never be dispatched.
    fn drop(&mut self) {
        let mut schools = self.in_flight.schools();
        self.in_flight.is_over.store(true, Ordering::SeqCst);
        for (_, undispatched) in schools.drain() {
            undispatched.changed.notify_waiters();
        }
    }
}

impl InFlight {
    fn schools(&self) -> MutexGuard<'_, HashMap<SchoolId, Undispatched>> {
        self.schools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a commit to the announcer, if there is one.
    fn announce(&self, events: &[Arc<Event>]) {
        if let Some(announce) = self.announcer.get() {
            announce(events);
        }
    }

    /// Dispatches a batch at once. Returns false if that is not possible.
    fn express(&self, events: &[Arc<Event>]) -> bool {
        self.express.get().is_some_and(|express| express(events))
    }

    fn dispatched(&self, events: &[Arc<Event>]) {
        let mut schools = self.schools();
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            let newest = of_school[of_school.len() - 1].seq;
            let school = of_school[0].school;
            if let Some(undispatched) = schools.get_mut(&school) {
                undispatched.dispatched = undispatched.dispatched.max(newest);
                undispatched.changed.notify_waiters();
                if undispatched.dispatched >= undispatched.committed {
                    schools.remove(&school);
                }
            }
        }
    }

    /// Records that a batch is sent.
    fn note(&self, events: &[Arc<Event>]) {
        self.sent.fetch_add(1, Ordering::SeqCst);
        self.record(events);
    }

    /// Records that these events are committed.
    fn record(&self, events: &[Arc<Event>]) {
        let mut schools = self.schools();
        if self.is_over.load(Ordering::SeqCst) {
            // Nobody would ever wake those who wait for it.
            return;
        }
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            let newest = of_school[of_school.len() - 1].seq;
            let undispatched = schools
                .entry(of_school[0].school)
                .or_insert_with(|| Undispatched {
                    committed: 0,
                    dispatched: of_school[0].seq - 1,
                    changed: Arc::default(),
                });
            undispatched.committed = undispatched.committed.max(newest);
        }
    }
}

/// Counts what a store has written since it was opened. The writer updates it; the server's metrics read it.
#[derive(Debug)]
pub struct CommitMetrics {
    events: AtomicU64,
    commits: AtomicU64,
    commit_micros: AtomicU64,
    slowest_micros: AtomicU64,
    commit_duration: Histogram,
    /// The panics of the store's threads, by the name of the thread.
    panics: Mutex<BTreeMap<Arc<str>, u64>>,
    /// The first writer thread that ended with a panic. Without it, commits fail.
    dead: OnceLock<Arc<str>>,
}

impl Default for CommitMetrics {
    fn default() -> CommitMetrics {
        CommitMetrics {
            events: AtomicU64::default(),
            commits: AtomicU64::default(),
            commit_micros: AtomicU64::default(),
            slowest_micros: AtomicU64::default(),
            commit_duration: Histogram::new(DURATION_BUCKETS_SECS),
            panics: Mutex::default(),
            dead: OnceLock::new(),
        }
    }
}

/// The values of [`CommitMetrics`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CommitCounts {
    /// Events committed.
    pub events: u64,
    /// Commits of at least one event.
    pub commits: u64,
    /// The total time from taking a group up to its commit, over all commits, in microseconds.
    pub commit_micros: u64,
    /// The longest of these times since the last call of [`CommitMetrics::read`].
    pub slowest_micros: u64,
}

impl CommitMetrics {
    /// Records a commit.
    pub fn committed(&self, events: usize, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.events.fetch_add(events as u64, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.commit_micros.fetch_add(micros, Ordering::Relaxed);
        self.slowest_micros.fetch_max(micros, Ordering::Relaxed);
        self.commit_duration.observe(took.as_secs_f64());
    }

    /// Runs a writer's thread. A panic ends the thread for good: it is logged and counted, and the server reports that it
    /// is not ready.
    pub fn run_writer(&self, name: &str, thread: impl FnOnce()) {
        if self.guard(name, thread).is_none() {
            self.dead.get_or_init(|| name.into());
        }
    }

    /// Runs part of a thread's work. A panic is logged and counted, and the thread can continue.
    pub fn guard<T>(&self, name: &str, part: impl FnOnce() -> T) -> Option<T> {
        let done = catch_unwind(AssertUnwindSafe(part)).ok();
        if done.is_none() {
            let mut panics = self.panics.lock().unwrap_or_else(PoisonError::into_inner);
            *panics.entry(name.into()).or_default() += 1;
            tracing::error!(thread = name, "a thread of the store panicked");
        }
        done
    }

    /// Returns the number of panics of each thread of the store that has panicked, by name.
    pub fn panics(&self) -> Vec<(Arc<str>, u64)> {
        let panics = self.panics.lock().unwrap_or_else(PoisonError::into_inner);
        let all = panics.iter();
        all.map(|(name, count)| (Arc::clone(name), *count))
            .collect()
    }

    /// Returns the name of the first writer thread that ended with a panic, if any did.
    pub fn dead(&self) -> Option<Arc<str>> {
        self.dead.get().map(Arc::clone)
    }

    /// Returns the time from taking a group up to its commit, in seconds.
    pub fn commit_duration(&self) -> &Histogram {
        &self.commit_duration
    }

    /// Returns the current values, and resets the slowest commit.
    pub fn read(&self) -> CommitCounts {
        CommitCounts {
            slowest_micros: self.slowest_micros.swap(0, Ordering::Relaxed),
            ..self.peek()
        }
    }

    /// Returns the current values without resetting anything.
    pub fn peek(&self) -> CommitCounts {
        CommitCounts {
            events: self.events.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            commit_micros: self.commit_micros.load(Ordering::Relaxed),
            slowest_micros: self.slowest_micros.load(Ordering::Relaxed),
        }
    }
}
