//! The bus: how nodes that share a database notify one another of what they have committed.
//!
//! ```text
//! commit ─▶ Outbox ─▶ Bus::publish ─▶ … ─▶ Inbox ─▶ decode ─▶ Hints       (every arrow is bounded; none waits)
//!                     Bus::subscribe: only schools with listeners on this node
//! ```
//!
//! A message is a hint: "school s has events up to seq k, and here they may be". The log is authoritative. A bus may
//! lose, delay, duplicate or reorder messages, and may be down. The nodes also compare the heads of the logs, so a node
//! without a working bus receives events a little later, but misses none.
//!
//! What a bus guarantees, tested by the suite in `tests/it/bus_contract.rs`:
//!
//! 1. While the bus works, what a node publishes about a school reaches the inboxes of all nodes that have subscribed
//!    to the school. It may reach the sender, too: messages name their sender, and a node ignores its own.
//! 2. After [`Bus::subscribe`] has succeeded, later messages arrive. If it fails, the bus subscribes as soon as it can.
//! 3. If messages may have been missed, [`Inbox::may_have_missed`] is called after the subscriptions work again.
//! 4. A receiver that reads nothing costs a bounded amount of memory and slows down no other.
//! 5. Two installations that use one server do not receive each other's messages.
//!
//! Deliberately absent: which schools to subscribe to, and what becomes of a hint.

pub mod local;
mod message;
mod outbox;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use self::message::{Message, Unreadable};
pub use self::outbox::Outbox;
use crate::config::{BUS_INBOX, BUS_INBOX_BYTES};
use crate::id::{Epoch, SchoolId};
use crate::log::Hints;

/// Carries messages between nodes. See the module documentation.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Returns the name of the medium, for logs and metrics.
    fn name(&self) -> &'static str;

    /// Returns the maximum size of a message, in bytes. It has room for a message without events.
    fn message_max_bytes(&self) -> usize;

    /// Sends messages in this order. Fails if some of them may not have been sent; they are not sent again.
    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BusError>;

    /// Subscribes to what is published about these schools, from now on and whenever the bus works again. Fails if the
    /// bus does not work yet.
    async fn subscribe(&self, schools: &[SchoolId]) -> Result<(), BusError>;

    /// Ends subscriptions. They end even if this returns an error.
    async fn unsubscribe(&self, schools: &[SchoolId]) -> Result<(), BusError>;

    /// Connects, maintains the connection, and puts what arrives in the inbox, until the future is dropped. It can be
    /// called again afterwards.
    async fn run(&self, inbox: Inbox);

    /// Returns a value that is the same for all nodes that receive each other's messages, and differs if they use
    /// different servers. It contains no secret. Returns `None` while it is unknown.
    fn fingerprint(&self) -> Option<String>;
}

/// A message to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The school that it is about.
    pub school: SchoolId,
    /// The encoded [`Message`].
    pub payload: Vec<u8>,
}

/// Why the bus could not carry out a request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BusError {
    /// There is no connection. It is being established.
    #[error("there is no connection")]
    Disconnected,
    /// The server did not answer in time.
    #[error("there was no answer in time")]
    Late,
    /// The server refused, or the connection failed. The text contains no secret.
    #[error("{0}")]
    Failed(String),
}

/// Identifies a running server among those that share a database. Each start gets a new id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u64);

impl NodeId {
    /// Returns a new random id.
    pub fn generate() -> NodeId {
        NodeId(getrandom::u64().expect("the operating system provides random numbers"))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<NodeId, Self::Err> {
        u64::from_str_radix(text, 16).map(NodeId)
    }
}

/// Who sends and receives messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// This node.
    pub node: NodeId,
    /// The epoch of its database. Messages about other databases are ignored.
    pub epoch: Epoch,
}

/// Receives what arrives on the bus. No method waits. Clones are the same inbox.
#[derive(Clone)]
pub struct Inbox {
    queue: mpsc::Sender<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
    hints: Hints,
    metrics: Arc<BusMetrics>,
}

/// The receiving end of an [`Inbox`].
pub struct Arrivals {
    queue: mpsc::Receiver<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
}

impl Inbox {
    /// Creates an inbox. If it is full, messages are dropped, and `hints` is asked to check the logs.
    pub fn new(hints: Hints, metrics: Arc<BusMetrics>) -> (Inbox, Arrivals) {
        let (sender, receiver) = mpsc::channel(BUS_INBOX);
        let bytes = Arc::<AtomicUsize>::default();
        let inbox = Inbox {
            queue: sender,
            bytes: Arc::clone(&bytes),
            hints,
            metrics,
        };
        let arrivals = Arrivals {
            queue: receiver,
            bytes,
        };
        (inbox, arrivals)
    }

    /// Takes a message that has arrived.
    pub fn received(&self, payload: Vec<u8>) {
        let size = payload.len();
        let waiting = self.bytes.fetch_add(size, Ordering::Relaxed);
        if waiting + size <= BUS_INBOX_BYTES
            && let Ok(place) = self.queue.try_reserve()
        {
            self.metrics.received.fetch_add(1, Ordering::Relaxed);
            place.send(payload);
            return;
        }
        self.bytes.fetch_sub(size, Ordering::Relaxed);
        self.metrics.dropped.fetch_add(1, Ordering::Relaxed);
        self.hints.request_check_of_all();
    }

    /// Records that messages may have been missed until now.
    pub fn may_have_missed(&self) {
        self.hints.request_check_of_all();
    }

    /// Records whether the bus works.
    pub fn is_connected(&self, now: bool) {
        let before = self.metrics.connected.swap(now, Ordering::Relaxed);
        if before && !now {
            self.metrics.disconnections.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Arrivals {
    /// Waits for the next message. Returns `None` when every inbox is gone.
    pub async fn recv(&mut self) -> Option<Vec<u8>> {
        let payload = self.queue.recv().await?;
        self.bytes.fetch_sub(payload.len(), Ordering::Relaxed);
        Some(payload)
    }
}

/// Counts what passes over the bus.
#[derive(Debug, Default)]
pub struct BusMetrics {
    connected: AtomicBool,
    disconnections: AtomicU64,
    sent: AtomicU64,
    unsent: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
    unreadable: AtomicU64,
}

/// The values of a [`BusMetrics`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BusCounts {
    /// Whether the bus works.
    pub connected: bool,
    /// How often the connection was lost.
    pub disconnections: u64,
    /// Messages sent.
    pub sent: u64,
    /// Messages that could not be sent.
    pub unsent: u64,
    /// Messages received, including this node's own.
    pub received: u64,
    /// Messages dropped because they arrived faster than they could be processed.
    pub dropped: u64,
    /// Messages that no node of this database can have sent.
    pub unreadable: u64,
}

impl BusMetrics {
    /// Records the outcome of sending this many messages.
    pub fn published(&self, messages: usize, is_sent: bool) {
        let count = match is_sent {
            true => &self.sent,
            false => &self.unsent,
        };
        count.fetch_add(messages as u64, Ordering::Relaxed);
    }

    /// Records a message that no node of this database can have sent. Returns how many there have been.
    pub fn could_not_read(&self) -> u64 {
        self.unreadable.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns the current values.
    pub fn read(&self) -> BusCounts {
        let value = |count: &AtomicU64| count.load(Ordering::Relaxed);
        BusCounts {
            connected: self.connected.load(Ordering::Relaxed),
            disconnections: value(&self.disconnections),
            sent: value(&self.sent),
            unsent: value(&self.unsent),
            received: value(&self.received),
            dropped: value(&self.dropped),
            unreadable: value(&self.unreadable),
        }
    }
}
