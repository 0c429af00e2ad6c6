//! A bus in memory that loses, delays, doubles and reorders messages, and is down now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use fastrand::Rng;
use tidings::bus::{Bus, BusError, Inbox, Message, NodeId, Outgoing, Party};
use tidings::event::Event;
use tidings::id::{Epoch, SchoolId};

use super::super::Fault;

/// Small, so that some events are announced by their numbers only.
const MESSAGE_MAX_BYTES: usize = 1_200;

/// What connects the nodes.
pub(super) struct Exchange(Mutex<State>);

struct State {
    rng: Rng,
    fault: Option<Fault>,
    nodes: BTreeMap<usize, Member>,
    /// Messages on their way, each with its receiver.
    on_the_way: Vec<(usize, Vec<u8>)>,
    is_down: bool,
    is_reliable: bool,
}

#[derive(Default)]
struct Member {
    schools: BTreeSet<SchoolId>,
    inbox: Option<Inbox>,
}

impl Exchange {
    pub(super) fn new(seed: u64, fault: Option<Fault>) -> Arc<Exchange> {
        Arc::new(Exchange(Mutex::new(State {
            rng: Rng::with_seed(seed),
            fault,
            nodes: BTreeMap::new(),
            on_the_way: Vec::new(),
            is_down: false,
            is_reliable: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Returns a node's end.
    pub(super) fn join(self: &Arc<Self>, number: usize) -> Arc<dyn Bus> {
        self.state().nodes.insert(number, Member::default());
        Arc::new(End {
            exchange: Arc::clone(self),
            number,
        })
    }

    fn connect(&self, number: usize, inbox: Inbox) {
        let mut state = self.state();
        inbox.is_connected(!state.is_down);
        inbox.may_have_missed();
        if let Some(node) = state.nodes.get_mut(&number) {
            node.inbox = Some(inbox);
        }
    }

    pub(super) fn leave(&self, number: usize) {
        self.state().nodes.remove(&number);
    }

    /// Begins or ends a failure of the bus. At its end, the nodes learn that they may have missed messages.
    pub(super) fn is_down(&self, now: bool) {
        let mut state = self.state();
        state.is_down = now;
        state.on_the_way.clear();
        let inboxes = state.nodes.values().filter_map(|node| node.inbox.clone());
        let inboxes: Vec<Inbox> = inboxes.collect();
        drop(state);
        for inbox in inboxes {
            inbox.is_connected(!now);
            if !now {
                inbox.may_have_missed();
            }
        }
    }

    /// Loses the messages that are on their way.
    pub(super) fn loses_all(&self) {
        self.state().on_the_way.clear();
    }

    pub(super) fn works(&self) -> bool {
        !self.state().is_down
    }

    /// Loses no message from now on.
    pub(super) fn becomes_reliable(&self) {
        self.state().is_reliable = true;
    }

    /// Has a message arrive, in any order. Returns whether there was one.
    pub(super) fn deliver(&self) -> bool {
        let mut state = self.state();
        if state.on_the_way.is_empty() {
            return false;
        }
        let count = state.on_the_way.len();
        let index = state.rng.usize(0..count);
        let (to, payload) = state.on_the_way.swap_remove(index);
        let inbox = state.nodes.get(&to).and_then(|node| node.inbox.clone());
        drop(state);
        if let Some(inbox) = inbox {
            inbox.received(payload);
        }
        true
    }

    /// Announces events that were not committed, as a node with a fault might.
    pub(super) fn announce_early(&self, epoch: Epoch, events: &[Arc<Event>]) {
        let stranger: NodeId = "ff".parse().unwrap();
        let sender = Party {
            node: stranger,
            epoch,
        };
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            let last = &of_school[of_school.len() - 1];
            let encoded =
                Message::encode(sender, last.school, last.seq, of_school, MESSAGE_MAX_BYTES);
            self.state().send(&encoded);
        }
    }
}

impl State {
    fn send(&mut self, messages: &[Outgoing]) {
        let nodes: Vec<usize> = self.nodes.keys().copied().collect();
        for message in messages {
            for node in &nodes {
                if !self.nodes[node].schools.contains(&message.school) {
                    continue;
                }
                let copies = match self.rng.u8(0..10) {
                    _ if self.is_reliable => 1,
                    0..=1 => 0,
                    2 => 2,
                    _ => 1,
                };
                for _ in 0..copies {
                    self.on_the_way
                        .push((*node, self.as_sent(&message.payload)));
                }
            }
        }
    }

    /// Returns the message as it arrives. With the fault `OwnHints`, no receiver recognises its own.
    fn as_sent(&self, payload: &[u8]) -> Vec<u8> {
        if self.fault != Some(Fault::OwnHints) {
            return payload.to_vec();
        }
        let mut message: serde_json::Value = serde_json::from_slice(payload).unwrap();
        message["node"] = "ff".into();
        serde_json::to_vec(&message).unwrap()
    }
}

/// A node's end.
struct End {
    exchange: Arc<Exchange>,
    number: usize,
}

#[async_trait]
impl Bus for End {
    fn name(&self) -> &'static str {
        "simulation"
    }

    fn message_max_bytes(&self) -> usize {
        MESSAGE_MAX_BYTES
    }

    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BusError> {
        let mut state = self.exchange.state();
        if state.is_down {
            return Err(BusError::Disconnected);
        }
        state.send(messages);
        Ok(())
    }

    async fn subscribe(&self, schools: &[SchoolId]) -> Result<(), BusError> {
        let mut state = self.exchange.state();
        if let Some(node) = state.nodes.get_mut(&self.number) {
            node.schools.extend(schools);
        }
        match state.is_down {
            true => Err(BusError::Disconnected),
            false => Ok(()),
        }
    }

    async fn unsubscribe(&self, schools: &[SchoolId]) -> Result<(), BusError> {
        let mut state = self.exchange.state();
        if let Some(node) = state.nodes.get_mut(&self.number) {
            node.schools.retain(|school| !schools.contains(school));
        }
        Ok(())
    }

    async fn run(&self, inbox: Inbox) {
        self.exchange.connect(self.number, inbox);
        pending().await
    }

    fn fingerprint(&self) -> Option<String> {
        None
    }
}
