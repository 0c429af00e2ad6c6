//! Relays what is committed between the nodes that share a database.
//!
//! ```text
//! Committed ─announce─▶ outbox ─▶ "bus sender" ─▶ Bus ─▶ inbox ─▶ "bus receiver" ─▶ Hints ─▶ feed
//!                                Hub ─moved─▶ "bus subscriptions" ─▶ Bus             ▲
//!                                Log ─▶ "heads" ─────────────────────────────────────┘
//! ```
//!
//! 1. A node subscribes only to the schools in its hub's memory, which somebody here listens to or has listened to a
//!    moment ago. Once a subscription is confirmed, the school's head is compared: what was committed before arrives, too.
//! 2. The bus delays no commit, and the server is ready without it. Only the comparison of heads must work.

mod choice;

use std::collections::{BTreeSet, HashSet};
use std::future::poll_fn;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

pub use self::choice::{Choice, check};
use crate::bus::Party;
use crate::bus::{Arrivals, Bus, BusCounts, BusError, BusMetrics, Inbox, Message, NodeId, Outbox};
use crate::config::{BUS_PAUSE_MIN, BUS_TIMEOUT, BUS_UNREADABLE_PER_LINE};
use crate::feed;
use crate::hub::Hub;
use crate::id::SchoolId;
use crate::log::{Committed, HintCounts, Hints, Log};
use crate::tasks::{Task, Tasks};

/// Connects a node with the others. See the module documentation.
pub struct Relay {
    bus: Arc<dyn Bus>,
    party: Party,
    log: Arc<dyn Log>,
    hub: Arc<Hub>,
    hints: Hints,
    outbox: Outbox,
    inbox: Inbox,
    /// Locked by the receiver while it runs, so that it can run again after a panic.
    arrivals: Mutex<Arrivals>,
    /// Schools that are subscribed to.
    subscribed: Mutex<HashSet<SchoolId>>,
    metrics: Arc<BusMetrics>,
}

impl Relay {
    /// Creates the relay of a node, which announces every commit from now on.
    pub fn new(
        bus: Arc<dyn Bus>,
        node: NodeId,
        log: Arc<dyn Log>,
        hub: Arc<Hub>,
        committed: &Committed,
    ) -> Arc<Relay> {
        let metrics = Arc::<BusMetrics>::default();
        let hints = committed.hints().clone();
        let (inbox, arrivals) = Inbox::new(hints.clone(), Arc::clone(&metrics));
        let relay = Arc::new(Relay {
            bus,
            party: Party {
                node,
                epoch: log.epoch(),
            },
            log,
            hub,
            hints,
            outbox: Outbox::default(),
            inbox,
            arrivals: Mutex::new(arrivals),
            subscribed: Mutex::default(),
            metrics,
        });
        let outbox = Arc::downgrade(&relay);
        committed.announce_to(Box::new(move |events| {
            if let Some(relay) = outbox.upgrade()
                && !events.is_empty()
            {
                relay.outbox.take(events);
            }
        }));
        relay
    }

    /// Starts the relay's tasks.
    pub fn start(self: &Arc<Self>, tasks: &Tasks) {
        let relay = Arc::clone(self);
        tasks.supervise(Task::new("heads"), move || {
            let (log, hub) = (Arc::clone(&relay.log), Arc::clone(&relay.hub));
            feed::watch_heads(log, hub, relay.hints.clone())
        });
        let relay = Arc::clone(self);
        tasks.supervise(Task::new("bus connection").optional(), move || {
            let relay = Arc::clone(&relay);
            async move { relay.bus.run(relay.inbox.clone()).await }
        });
        let relay = Arc::clone(self);
        tasks.supervise(Task::new("bus sender").optional(), move || {
            Arc::clone(&relay).send()
        });
        let relay = Arc::clone(self);
        tasks.supervise(Task::new("bus receiver").optional(), move || {
            Arc::clone(&relay).receive()
        });
        let relay = Arc::clone(self);
        tasks.supervise(Task::new("bus subscriptions").optional(), move || {
            Arc::clone(&relay).subscribe()
        });
    }

    /// Returns the name of the bus.
    pub fn bus(&self) -> &'static str {
        self.bus.name()
    }

    /// Returns the name of the bus, and whether it works.
    pub fn status(&self) -> String {
        let state = match self.metrics.read().connected {
            true => "connected",
            false => "not connected",
        };
        format!("{}, {state}", self.bus.name())
    }

    /// Returns this node's id.
    pub fn node(&self) -> NodeId {
        self.party.node
    }

    /// Returns what identifies the bus's server; see [`Bus::fingerprint`].
    pub fn fingerprint(&self) -> Option<String> {
        self.bus.fingerprint()
    }

    /// Returns what has passed over the bus, and what became of the hints.
    pub fn read(&self) -> (BusCounts, HintCounts) {
        let mut counts = self.metrics.read();
        counts.unsent += self.outbox.dropped();
        (counts, self.hints.counts())
    }

    /// Publishes what is committed here.
    async fn send(self: Arc<Self>) {
        let mut is_failing = false;
        loop {
            let messages = self
                .outbox
                .next(self.party, self.bus.message_max_bytes())
                .await;
            let published = timeout(BUS_TIMEOUT, self.bus.publish(&messages)).await;
            let published = published.unwrap_or(Err(BusError::Late));
            self.metrics.published(messages.len(), published.is_ok());
            let Err(error) = published else {
                is_failing = false;
                continue;
            };
            if !std::mem::replace(&mut is_failing, true) {
                let bus = self.bus.name();
                tracing::warn!(%error, bus, "commits cannot be announced to the other nodes; they look at the log");
            }
            // Meanwhile, commits merge.
            sleep(BUS_PAUSE_MIN).await;
        }
    }

    /// Turns what arrives into hints.
    async fn receive(self: Arc<Self>) {
        let mut arrivals = self.arrivals.lock().await;
        while let Some(payload) = arrivals.recv().await {
            let message = Message::decode(&payload);
            match message.and_then(|message| message.hint(self.party)) {
                Ok(Some(hint)) => self.hints.give(hint),
                Ok(None) => {}
                Err(problem) => {
                    let count = self.metrics.could_not_read();
                    if count % BUS_UNREADABLE_PER_LINE == 1 {
                        let bus = self.bus.name();
                        tracing::warn!(%problem, bus, count, "a message on the bus was ignored");
                    }
                }
            }
        }
    }

    /// Subscribes to the schools that enter the hub's memory, and unsubscribes from those that leave it.
    async fn subscribe(self: Arc<Self>) {
        // A predecessor that panicked may have missed some.
        let subscribed = self.subscribed.lock().await;
        let mut moved: BTreeSet<SchoolId> = subscribed.iter().copied().collect();
        drop(subscribed);
        let positions = self.hub.positions().into_iter();
        moved.extend(positions.map(|(school, _)| school));
        loop {
            let mut subscribed = self.subscribed.lock().await;
            let is_here = |school: &SchoolId| self.hub.position(*school).is_some();
            let (here, gone): (Vec<_>, Vec<_>) = moved.into_iter().partition(is_here);
            let new: Vec<SchoolId> = here
                .iter()
                .filter(|school| subscribed.insert(**school))
                .copied()
                .collect();
            let gone: Vec<SchoolId> = gone
                .into_iter()
                .filter(|school| subscribed.remove(school))
                .collect();
            // If this fails, the bus subscribes once it is connected, and then everything is compared.
            if !new.is_empty()
                && let Err(error) = self.bus.subscribe(&new).await
            {
                tracing::debug!(%error, bus = self.bus.name(), "a subscription has to wait for the bus");
            }
            if !gone.is_empty()
                && let Err(error) = self.bus.unsubscribe(&gone).await
            {
                tracing::debug!(%error, bus = self.bus.name(), "a subscription could not be ended");
            }
            // What was committed before the subscription, and what was not offered while nobody listened.
            here.into_iter()
                .for_each(|school| self.hints.request_check(school));
            drop(subscribed);
            moved = poll_fn(|cx| self.hub.poll_moved(cx)).await;
        }
    }
}
