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
        gathered.is_some_and(|gathered| !gathered.0.is_empty())
    }

    /// Whether nothing is held back any more.
    pub(super) fn is_over(&self) -> bool {
        self.gathered.is_none() && self.announced.is_empty()
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
        let Some((events, _)) = self.gathered.take().map(|boxed| *boxed) else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::mailbox::tests::event;

    /// The numbers of the events that were sent.
    #[derive(Default)]
    struct Sent(Vec<u64>);

    impl Outbox for Sent {
        fn has_room(&self) -> bool {
            true
        }

        fn send(&mut self, outgoing: Outgoing<'_>) {
            if let Outgoing::Event(event) = outgoing {
                self.0.push(event.seq);
            }
        }
    }

    fn state(seq: u64, bytes: usize) -> Arc<Event> {
        let mut event = Arc::into_inner(event(seq, "a", true)).unwrap();
        event.snapshot = true;
        event.draft.fields = "x".repeat(bytes).as_str().into();
        Arc::new(event)
    }

    fn announced(gathering: &mut Gathering) -> Vec<u64> {
        std::iter::from_fn(|| gathering.next_announced())
            .map(|event| event.seq)
            .collect()
    }

    #[test]
    fn a_snapshot_is_held_back_until_an_event_follows_it() {
        let (mut gathering, mut sent) = (Gathering::new(true), Sent::default());
        assert!(!gathering.holds_any());
        gathering.take(state(1, 10), &mut sent);
        gathering.take(state(2, 10), &mut sent);
        assert!(gathering.holds_any() && announced(&mut gathering).is_empty());
        gathering.take(event(3, "a", true), &mut sent);
        assert!(!gathering.holds_any());
        assert!(sent.0.is_empty(), "it must not overtake them");
        assert_eq!(announced(&mut gathering), [1, 2, 3]);
        // Only the first snapshot is announced.
        gathering.take(event(4, "a", true), &mut sent);
        gathering.take(state(5, 10), &mut sent);
        assert_eq!(sent.0, [4, 5]);
    }

    #[test]
    fn all_that_is_held_back_is_sent_before_an_acknowledgement() {
        let (mut gathering, mut sent) = (Gathering::new(true), Sent::default());
        gathering.take(state(1, 10), &mut sent);
        gathering.take(state(2, 10), &mut sent);
        gathering.flush(&mut sent);
        assert_eq!(sent.0, [1, 2]);
    }

    #[test]
    fn no_more_events_or_bytes_are_held_back_than_the_bounds() {
        let (mut gathering, mut sent) = (Gathering::new(true), Sent::default());
        for seq in 1..INITIAL_STATE_MAX as u64 {
            gathering.take(state(seq, 1), &mut sent);
        }
        assert!(gathering.holds_any());
        gathering.take(state(INITIAL_STATE_MAX as u64, 1), &mut sent);
        assert!(!gathering.holds_any());
        assert_eq!(announced(&mut gathering).len(), INITIAL_STATE_MAX);

        let mut gathering = Gathering::new(true);
        gathering.take(state(1, INITIAL_STATE_MAX_BYTES - 1), &mut sent);
        gathering.take(state(2, 1), &mut sent);
        assert!(gathering.holds_any(), "they may be as large as this");
        gathering.take(state(3, 1), &mut sent);
        assert_eq!(announced(&mut gathering), [1, 2, 3]);
    }
}
