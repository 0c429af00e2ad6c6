//! What the tests of this module and of subscriptions read from.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::Feed;
use crate::config::StreamLimits;
use crate::event::Event;
use crate::hub::mailbox::tests::event;
use crate::hub::{Attachment, Hub, Reader};
use crate::id::{Channel, Cursor, Epoch, Place, SchoolId};
use crate::kind::job;
use crate::log::{Bounds, Committed, Log, LogRange, Page, StoreError};
use crate::scope::Scope;

/// The shared log of one school, in memory.
#[derive(Default)]
pub(crate) struct Kept {
    events: Mutex<Vec<Arc<Event>>>,
    /// How often its bounds were read.
    pub(crate) bounds_reads: AtomicUsize,
    /// Whether a number may have been assigned twice.
    numbers_repeat: AtomicBool,
    /// Retention has removed the events up to here.
    floor: AtomicU64,
    /// Whether the next read of its bounds fails.
    pub(crate) fails_bounds: AtomicBool,
    /// Whether the next read of events fails.
    pub(crate) fails: AtomicBool,
    /// Whether no other node writes to it.
    pub(crate) is_alone: AtomicBool,
    /// How many states a page of a snapshot has at most; 0: all.
    pub(crate) page_states: AtomicUsize,
    /// What the next read of its bounds waits for before it returns.
    pub(crate) gate: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Kept {
    /// Has the log end with these events.
    pub(crate) fn ends_with(&self, events: &[Arc<Event>]) {
        let mut stored = self.events.lock().unwrap();
        stored.retain(|known| known.seq < events[0].seq);
        stored.extend(events.iter().map(Arc::clone));
    }

    /// Removes the events up to `floor`.
    pub(crate) fn remove(&self, floor: u64) {
        self.floor.store(floor, Ordering::SeqCst);
        let mut stored = self.events.lock().unwrap();
        stored.retain(|event| event.seq > floor);
    }

    fn floor(&self) -> Place {
        Place::untagged(self.floor.load(Ordering::SeqCst))
    }
}

#[async_trait]
impl Log for Kept {
    fn epoch(&self) -> Epoch {
        "00000001".parse().unwrap()
    }

    fn is_shared(&self) -> bool {
        !self.is_alone.load(Ordering::SeqCst)
    }

    fn numbers_are_unique(&self) -> bool {
        !self.numbers_repeat.load(Ordering::SeqCst)
    }

    async fn bounds(&self, _: SchoolId) -> Result<Bounds, StoreError> {
        self.bounds_reads.fetch_add(1, Ordering::SeqCst);
        if self.fails_bounds.swap(false, Ordering::SeqCst) {
            return Err(StoreError::Database("the database is away".into()));
        }
        let head = self.events.lock().unwrap().last().map(|last| last.place());
        let gate = self.gate.lock().unwrap().take();
        if let Some(gate) = gate {
            gate.await.unwrap();
        }
        Ok(Bounds {
            head: head.unwrap_or_default(),
            floor: self.floor(),
        })
    }

    async fn read_range(&self, _: SchoolId, after: u64, upto: u64) -> Result<LogRange, StoreError> {
        if self.fails.swap(false, Ordering::SeqCst) {
            return Err(StoreError::Database("the disk is full".into()));
        }
        let events = self.events.lock().unwrap();
        let floor = self.floor();
        let head = events.last().map_or(floor.seq, |last| last.seq);
        let is_wanted = |event: &&Arc<Event>| event.seq > after && event.seq <= upto;
        Ok(LogRange {
            events: events.iter().filter(is_wanted).map(Arc::clone).collect(),
            through: upto.min(head),
            head,
            floor,
            last: std::collections::HashMap::new(),
        })
    }

    async fn replay(&self, scope: Arc<Scope>, after: u64, _: bool) -> Result<Page, StoreError> {
        let events = self.events.lock().unwrap();
        let is_wanted = |event: &&Arc<Event>| event.seq > after && scope.matches(event);
        let head = events.last().map(|last| last.place()).unwrap_or_default();
        Ok(Page {
            events: events.iter().filter(is_wanted).map(Arc::clone).collect(),
            through: head,
            head,
            newest: head,
            floor: self.floor().seq,
        })
    }

    /// The state of a subject is its last event.
    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<Place>,
    ) -> Result<Page, StoreError> {
        let events = self.events.lock().unwrap();
        let newest = events.last().map(|last| last.place()).unwrap_or_default();
        let head = upto.unwrap_or(newest);
        let states = events.iter().filter(|event| {
            let is_later =
                |later: &Arc<Event>| later.seq > event.seq && later.subject == event.subject;
            let is_last = !events.iter().any(is_later);
            is_last && event.seq > after && event.seq <= head.seq && scope.matches(event)
        });
        let mut states: Vec<_> = states.map(Arc::clone).collect();
        let most = self.page_states.load(Ordering::SeqCst);
        let is_cut = most > 0 && states.len() > most;
        if is_cut {
            states.truncate(most);
        }
        Ok(Page {
            through: match states.last() {
                Some(last) if is_cut => last.place(),
                _ => head,
            },
            events: states,
            head,
            newest,
            floor: self.floor().seq,
        })
    }
}

/// The school of the events.
pub(crate) fn school() -> SchoolId {
    1.try_into().unwrap()
}

/// Returns the events of a job in this range.
pub(crate) fn events(seqs: std::ops::RangeInclusive<u64>) -> Vec<Arc<Event>> {
    seqs.map(|seq| event(seq, "a", true)).collect()
}

/// Returns the hub of a shared log.
pub(crate) fn hub() -> Arc<Hub> {
    Arc::new(Hub::new(8, 8).of_shared_logs())
}

/// Listens to all jobs of the school.
pub(crate) fn listen(hub: &Arc<Hub>) -> Attachment {
    let reader = Reader {
        transport: "SSE",
        user: "u".into(),
        address: None,
        peer: None,
    };
    let limits = StreamLimits {
        server: 1_000,
        school: 1_000,
        user: 1_000,
        address: 1_000,
    };
    let scope = Scope::new(school(), [Channel::Collection(job::KIND)]);
    hub.attach(&scope, reader, false, &limits).unwrap()
}

#[tokio::test]
async fn an_event_is_known_as_long_as_the_log_has_it() {
    let log = Arc::new(Kept::default());
    let (committed, _batches) = Committed::channel(8);
    let feed = Feed::new(Arc::clone(&log) as Arc<dyn Log>, committed);
    log.ends_with(&events(1..=3));
    let places = |subject| [1, 2, 3].map(|seq| event(seq, subject, true).place());
    for (ours, lost) in places("a").into_iter().zip(places("b")) {
        assert!(feed.has(school(), ours).await.unwrap(), "{ours:?}");
        assert!(!feed.has(school(), lost).await.unwrap(), "{lost:?}");
    }
    let beyond = event(4, "a", true).place();
    assert!(!feed.has(school(), beyond).await.unwrap());
    assert!(feed.has(school(), Place::untagged(4)).await.unwrap());
}

#[test]
fn a_cursor_names_a_place_of_its_own_database_only() {
    let log = Arc::new(Kept::default());
    let (committed, _batches) = Committed::channel(8);
    let feed = Feed::new(Arc::clone(&log) as Arc<dyn Log>, committed);
    let (epoch, other) = (feed.epoch(), "00000002".parse().unwrap());
    let tagged = event(3, "a", true).place();
    let named = |epoch, place| feed.place(Cursor::new(epoch, place));
    for place in [tagged, Place::untagged(3), Place::default()] {
        assert_eq!(named(epoch, place), Some(place));
        assert_eq!(named(other, place), None);
    }
    log.numbers_repeat.store(true, Ordering::SeqCst);
    assert_eq!(named(epoch, tagged), Some(tagged));
    assert_eq!(named(epoch, Place::untagged(3)), None, "which of them?");
    assert_eq!(named(epoch, Place::default()), Some(Place::default()));
}
