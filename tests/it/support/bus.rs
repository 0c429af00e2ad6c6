//! A bus in memory that can lose, double, delay and reorder messages, and be down. Connections of a bus to Postgres.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tidings::bus::postgres::{Connect, Messages, messages};
use tidings::bus::{Bus, BusError, Inbox, Outgoing};
use tidings::config::BUS_MESSAGE_MAX_BYTES;
use tidings::id::{Epoch, SchoolId};

/// What connects the buses of several nodes.
#[derive(Default)]
pub(crate) struct Exchange {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<usize, Node>,
    is_down: bool,
    /// Messages are dropped.
    loses: bool,
    /// Every message arrives twice.
    doubles: bool,
    /// Messages are kept back, and arrive in the opposite order once this ends.
    keeps: bool,
    kept: Vec<(usize, Vec<u8>)>,
}

#[derive(Default)]
struct Node {
    epoch: Option<Epoch>,
    schools: HashSet<SchoolId>,
    inbox: Option<Inbox>,
}

/// A node's end of an [`Exchange`].
pub(crate) struct MemoryBus {
    exchange: Arc<Exchange>,
    number: usize,
}

impl Exchange {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Returns the end of another node.
    pub(crate) fn join(self: &Arc<Self>, epoch: Epoch) -> MemoryBus {
        let mut state = self.state();
        let number = state.nodes.len();
        let node = Node {
            epoch: Some(epoch),
            ..Node::default()
        };
        state.nodes.insert(number, node);
        MemoryBus {
            exchange: Arc::clone(self),
            number,
        }
    }

    /// Returns the schools to which the node that was the `number`th to join has subscribed.
    pub(crate) fn subscriptions(&self, number: usize) -> HashSet<SchoolId> {
        self.state().nodes[&number].schools.clone()
    }

    pub(crate) fn loses(&self, now: bool) {
        self.state().loses = now;
    }

    pub(crate) fn doubles(&self, now: bool) {
        self.state().doubles = now;
    }

    /// Keeps messages back, or has those that were kept back arrive, the last one first.
    pub(crate) fn keeps(&self, now: bool) {
        let mut state = self.state();
        state.keeps = now;
        if !now {
            let mut kept = std::mem::take(&mut state.kept);
            kept.reverse();
            kept.into_iter()
                .for_each(|(to, payload)| state.put(to, payload));
        }
    }

    /// Cuts every connection, or restores it.
    pub(crate) fn is_down(&self, now: bool) {
        let mut state = self.state();
        state.is_down = now;
        for node in state.nodes.values() {
            if let Some(inbox) = &node.inbox {
                inbox.is_connected(!now);
                if !now {
                    inbox.may_have_missed();
                }
            }
        }
    }

    /// Puts a payload before every node that has subscribed to a school.
    pub(crate) fn inject(&self, epoch: Epoch, school: SchoolId, payload: &[u8]) {
        let mut state = self.state();
        let listens = |node: &Node| node.epoch == Some(epoch) && node.schools.contains(&school);
        let nodes = state.nodes.iter().filter(|(_, node)| listens(node));
        let mut to: Vec<usize> = nodes.map(|(number, _)| *number).collect();
        to.sort_unstable();
        to.into_iter()
            .for_each(|to| state.put(to, payload.to_vec()));
    }
}

impl State {
    fn put(&mut self, to: usize, payload: Vec<u8>) {
        if self.loses {
            return;
        }
        if self.keeps {
            self.kept.push((to, payload));
            return;
        }
        if let Some(inbox) = &self.nodes[&to].inbox {
            if self.doubles {
                inbox.received(payload.clone());
            }
            inbox.received(payload);
        }
    }
}

#[async_trait]
impl Bus for MemoryBus {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn message_max_bytes(&self) -> usize {
        BUS_MESSAGE_MAX_BYTES
    }

    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BusError> {
        let epoch = {
            let state = self.exchange.state();
            if state.is_down {
                return Err(BusError::Disconnected);
            }
            state.nodes[&self.number].epoch.expect("it has joined")
        };
        for message in messages {
            self.exchange
                .inject(epoch, message.school, &message.payload);
        }
        Ok(())
    }

    async fn subscribe(&self, schools: &[SchoolId]) -> Result<(), BusError> {
        let mut state = self.exchange.state();
        let is_down = state.is_down;
        let node = state.nodes.get_mut(&self.number).expect("it has joined");
        node.schools.extend(schools);
        match is_down {
            true => Err(BusError::Disconnected),
            false => Ok(()),
        }
    }

    async fn unsubscribe(&self, schools: &[SchoolId]) -> Result<(), BusError> {
        let mut state = self.exchange.state();
        let node = state.nodes.get_mut(&self.number).expect("it has joined");
        node.schools.retain(|school| !schools.contains(school));
        Ok(())
    }

    async fn run(&self, inbox: Inbox) {
        let is_down = {
            let mut state = self.exchange.state();
            let is_down = state.is_down;
            let node = state.nodes.get_mut(&self.number).expect("it has joined");
            node.inbox = Some(inbox.clone());
            is_down
        };
        inbox.is_connected(!is_down);
        inbox.may_have_missed();
        pending().await
    }

    fn fingerprint(&self) -> Option<String> {
        Some(format!("{:p}", Arc::as_ptr(&self.exchange)))
    }
}

/// Connects to the tests' Postgres, without TLS.
pub(crate) struct OverPostgres(pub(crate) String);

#[async_trait]
impl Connect for OverPostgres {
    async fn connect(&self) -> Result<(tokio_postgres::Client, Messages), tokio_postgres::Error> {
        let connecting = tokio_postgres::connect(&self.0, tokio_postgres::NoTls);
        let (client, connection) = connecting.await?;
        Ok((client, messages(connection)))
    }
}
