//! What the tests of this module read from.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::config::StreamLimits;
use crate::event::Event;
use crate::hub::mailbox::tests::event;
use crate::hub::{Attachment, Hub, Reader};
use crate::id::Channel;
use crate::id::{Epoch, Place, SchoolId};
use crate::kind::job;
use crate::log::{Bounds, Log, Page, StoreError, Stretch};
use crate::scope::Scope;

/// The shared log of one school, in memory.
#[derive(Default)]
pub(super) struct Kept {
    events: Mutex<Vec<Arc<Event>>>,
    /// How often its bounds were read.
    pub(super) looks: AtomicUsize,
    /// Retention has removed the events up to here.
    floor: AtomicU64,
    /// Whether the next read of events fails.
    pub(super) fails: AtomicBool,
    /// What the next read of its bounds waits for before it returns.
    pub(super) gate: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Kept {
    /// Has the log end with these events.
    pub(super) fn ends_with(&self, events: &[Arc<Event>]) {
        let mut own = self.events.lock().unwrap();
        own.retain(|known| known.seq < events[0].seq);
        own.extend(events.iter().map(Arc::clone));
    }

    /// Removes the events up to `floor`.
    pub(super) fn remove(&self, floor: u64) {
        self.floor.store(floor, Ordering::SeqCst);
        let mut own = self.events.lock().unwrap();
        own.retain(|event| event.seq > floor);
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
        true
    }

    async fn bounds(&self, _: SchoolId) -> Result<Bounds, StoreError> {
        self.looks.fetch_add(1, Ordering::SeqCst);
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

    async fn read_stretch(
        &self,
        _: SchoolId,
        after: u64,
        upto: u64,
    ) -> Result<Stretch, StoreError> {
        if self.fails.swap(false, Ordering::SeqCst) {
            return Err(StoreError::Database("the disk is full".into()));
        }
        let events = self.events.lock().unwrap();
        let floor = self.floor();
        let head = events.last().map_or(floor.seq, |last| last.seq);
        let is_wanted = |event: &&Arc<Event>| event.seq > after && event.seq <= upto;
        Ok(Stretch {
            events: events.iter().filter(is_wanted).map(Arc::clone).collect(),
            through: upto.min(head),
            head,
            floor,
            last: std::collections::HashMap::new(),
        })
    }

    async fn replay(&self, _: Arc<Scope>, _: u64, _: bool) -> Result<Page, StoreError> {
        unreachable!("nothing is replayed")
    }

    async fn snapshot(&self, _: Arc<Scope>, _: u64, _: Option<Place>) -> Result<Page, StoreError> {
        unreachable!("no state is read")
    }
}

/// The school of the events.
pub(super) fn school() -> SchoolId {
    1.try_into().unwrap()
}

/// Returns the events of a job in this range.
pub(super) fn events(seqs: std::ops::RangeInclusive<u64>) -> Vec<Arc<Event>> {
    seqs.map(|seq| event(seq, "a", true)).collect()
}

/// Returns the hub of a shared log.
pub(super) fn hub() -> Arc<Hub> {
    Arc::new(Hub::new(8, 8).of_shared_logs())
}

/// Listens to all jobs of the school.
pub(super) fn listen(hub: &Arc<Hub>) -> Attachment {
    let reader = Reader {
        transport: "SSE",
        user: "u".into(),
        address: None,
        peer: None,
    };
    let limits = StreamLimits {
        server: 10,
        school: 10,
        user: 10,
        address: 10,
    };
    let scope = Scope::new(school(), [Channel::Collection(job::KIND)]);
    hub.attach(&scope, reader, false, &limits).unwrap()
}
