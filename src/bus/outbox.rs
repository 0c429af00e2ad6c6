//! The committed events of this node that wait to be published.
//!
//! Waiting commits of a school merge into one message. Beyond a bound, events are replaced with their number. If too
//! many schools wait, even numbers are dropped: other nodes then find the events in the log.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Message, Outgoing, Party};
use crate::config::{BUS_OUTBOX_BYTES, BUS_OUTBOX_SCHOOLS, BUS_PUBLISH_BYTES};
use crate::event::Event;
use crate::id::SchoolId;

/// Collects what is to be published. See the module documentation.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Schools with something to publish, in the order in which they began to wait.
    order: VecDeque<SchoolId>,
    waiting: HashMap<SchoolId, Waiting>,
    /// Bytes of the events that wait.
    bytes: usize,
    /// How often something about a school was dropped, even its number.
    dropped: u64,
}

/// What waits to be published about a school.
#[derive(Default)]
struct Waiting {
    /// The newest `seq`.
    seq: u64,
    /// The newest events, without a gap up to `seq`. Empty if only the number is published.
    events: Vec<Arc<Event>>,
    bytes: usize,
    is_number_only: bool,
}

impl Outbox {
    /// Takes committed events. Never waits.
    pub fn take(&self, events: &[Arc<Event>]) {
        let mut state = self.state();
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            state.take(of_school);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Waits until there is something to publish, and returns it, in messages of at most `max_bytes`. Commits that
    /// follow merge until the next call.
    pub async fn next(&self, sender: Party, max_bytes: usize) -> Vec<Outgoing> {
        loop {
            let waiting = self.state().next();
            if !waiting.is_empty() {
                let encode = |(school, entry): (SchoolId, Waiting)| {
                    Message::encode(sender, school, entry.seq, &entry.events, max_bytes)
                };
                return waiting.into_iter().flat_map(encode).collect();
            }
            self.changed.notified().await;
        }
    }

    /// Returns how often something about a school was dropped, even its number.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, events: &[Arc<Event>]) {
        let (first, last) = (&events[0], &events[events.len() - 1]);
        if !self.waiting.contains_key(&first.school) {
            if self.waiting.len() == BUS_OUTBOX_SCHOOLS {
                self.dropped += 1;
                return;
            }
            self.order.push_back(first.school);
        }
        let waiting = self.waiting.entry(first.school).or_default();
        let follows = waiting.events.is_empty() || waiting.seq + 1 == first.seq;
        waiting.seq = waiting.seq.max(last.seq);
        let more: usize = events.iter().map(|event| event.bytes()).sum();
        if waiting.is_number_only || !follows || self.bytes + more > BUS_OUTBOX_BYTES {
            self.bytes -= waiting.bytes;
            (waiting.events, waiting.bytes) = (Vec::new(), 0);
            waiting.is_number_only = true;
            return;
        }
        waiting.events.extend(events.iter().map(Arc::clone));
        waiting.bytes += more;
        self.bytes += more;
    }

    /// Takes out what waits for the first schools, up to a bound.
    fn next(&mut self) -> Vec<(SchoolId, Waiting)> {
        let (mut next, mut bytes) = (Vec::new(), 0);
        while bytes < BUS_PUBLISH_BYTES
            && let Some(school) = self.order.pop_front()
        {
            let Some(waiting) = self.waiting.remove(&school) else {
                continue;
            };
            self.bytes -= waiting.bytes;
            // A number has a size, too.
            bytes += waiting.bytes.max(crate::event::EVENT_BASE_BYTES);
            next.push((school, waiting));
        }
        next
    }
}
