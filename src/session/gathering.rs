//! A snapshot that `initial_state` announces before it is sent.

use std::sync::Arc;

use super::{Outbox, Outgoing};
use crate::config::{INITIAL_STATE_MAX, INITIAL_STATE_MAX_BYTES};
use crate::event::Event;
use crate::hub::queue::Queue;
use crate::wire::form::initial_uploads;

/// Events that are held back until `initial_state` has announced them. Bounded by [`INITIAL_STATE_MAX`] and
/// [`INITIAL_STATE_MAX_BYTES`].
#[derive(Default)]
pub(super) struct Gathering {
    /// The part of a snapshot that has been gathered, and the bytes of its fields. In a box, because most sessions
    /// gather nothing.
    gathered: Option<Box<(Vec<Arc<Event>>, usize)>>,
    /// Events that were announced and are still to be sent.
    announced: Queue<Arc<Event>>,
}

impl Gathering {
    /// Gathers the next snapshot if the endpoint announces snapshots.
    pub(super) fn new(announces: bool) -> Gathering {
        Gathering {
            gathered: announces.then(Default::default),
            announced: Queue::default(),
        }
    }

    /// Whether any event is held back that has not been announced.
    pub(super) fn holds_any(&self) -> bool {
        let gathered = self.gathered.as_ref();
        gathered.is_some_and(|own| !own.0.is_empty())
    }

    /// Returns the next event that was announced.
    pub(super) fn next_announced(&mut self) -> Option<Arc<Event>> {
        self.announced.pop_front()
    }

    /// Takes an event, and either holds it back or sends it.
    pub(super) fn take(&mut self, event: Arc<Event>, out: &mut impl Outbox) {
        if event.snapshot
            && let Some((events, bytes)) = self.gathered.as_deref_mut()
        {
            *bytes += event.draft.fields.len();
            events.push(event);
            if events.len() == INITIAL_STATE_MAX || *bytes > INITIAL_STATE_MAX_BYTES {
                self.announce(out);
            }
            return;
        }
        self.announce(out);
        if self.announced.is_empty() {
            out.send(Outgoing::Event(&event));
        } else {
            self.announced.push_back(event);
        }
    }

    /// Announces the snapshot that has been gathered. Its events are sent next.
    pub(super) fn announce(&mut self, out: &mut impl Outbox) {
        let Some((events, _)) = self.gathered.take().map(|own| *own) else {
            return;
        };
        if let Some(json) = initial_uploads(events.iter().map(|event| &**event)) {
            out.send(Outgoing::Json(&json));
        }
        events
            .into_iter()
            .for_each(|event| self.announced.push_back(event));
    }

    /// Sends all gathered events before anything else. Happens once, at the beginning of a session.
    pub(super) fn flush(&mut self, out: &mut impl Outbox) {
        self.announce(out);
        while let Some(event) = self.announced.pop_front() {
            out.send(Outgoing::Event(&event));
        }
    }
}
