//! The registration of a connection, by which it chooses its channels and reads the window.

use std::sync::Arc;
use std::time::Instant;

use super::due::Reminder;
use super::mailbox::{Mailbox, Sink};
use super::topics::remove_and_shrink;
use super::{Hub, School, decrement, lock};
use crate::event::Event;
use crate::id::{Channel, Kind, Place, SchoolId};
use crate::throttle::network;

/// A connection's registration with the hub. Dropping it unregisters the connection.
pub struct Attachment {
    pub(super) hub: Arc<Hub>,
    pub(super) school: Arc<School>,
    pub(super) id_of_school: SchoolId,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) id: u64,
}

impl Attachment {
    /// Returns the mailbox in which the events arrive.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Lends the sink of the reader, which waits and has received everything up to `after`. The sink is written to when something
    /// arrives, and at `due`. Returns false if there is mail.
    pub fn lend(
        &self,
        sink: &Arc<impl Sink + 'static>,
        after: u64,
        due: Option<tokio::time::Instant>,
    ) -> bool {
        let reminder = || Reminder::new(&self.hub.due_writes, self.id);
        self.mailbox.lend(sink, after, due, reminder)
    }

    /// Listens to more channels.
    pub fn listen(&self, channels: impl IntoIterator<Item = Channel>) {
        let mut state = lock(&self.school);
        for channel in channels {
            state.topics.listen(&channel, self.id, &self.mailbox);
            if let Some(attached) = state.attached.get_mut(&self.id) {
                attached.listen(channel);
            }
        }
    }

    /// Listens to the wide events of a kind, too.
    pub fn listen_to_wide(&self, kind: Kind) {
        let mut state = lock(&self.school);
        state.topics.listen_to_wide(kind, self.id, &self.mailbox);
        if let Some(attached) = state.attached.get_mut(&self.id) {
            attached.wide = Some(kind);
        }
    }

    /// Stops listening to wide events, except for those on its channels.
    pub fn unlisten_wide(&self) {
        let mut state = lock(&self.school);
        let wide = state.attached.get_mut(&self.id);
        if let Some(kind) = wide.and_then(|attached| attached.wide.take()) {
            state.topics.unlisten_wide(kind, self.id);
        }
    }

    /// Stops listening to a channel.
    pub fn unlisten(&self, channel: &Channel) {
        let mut state = lock(&self.school);
        state.topics.unlisten(channel, self.id);
        if let Some(attached) = state.attached.get_mut(&self.id) {
            attached.unlisten(channel);
        }
    }

    /// Switches from reading the log to offered events, after everything up to `place` has been read. Returns false if
    /// more must be read first, because the mailbox may lack a later event: it was offered before this connection was
    /// attached, or was never offered.
    ///
    /// If a shared log has lost events that were read or offered, all listeners check their places against the log.
    pub fn try_go_live(&self, place: Place) -> bool {
        if self.hub.is_shared {
            return self.goes_live_shared(place);
        }
        let mut state = lock(&self.school);
        match state.head {
            None => {
                // From now on, the hub notices missing events.
                state.head = Some(place);
                state.begin_at(place.seq + 1);
                true
            }
            Some(head) => place.seq >= head.seq || state.dense_from <= place.seq + 1,
        }
    }

    /// Returns the place of the school's newest offered event. The mailbox has received every event in scope up to it.
    pub fn head(&self) -> Option<Place> {
        lock(&self.school).head
    }

    /// Returns the events after `after`, and the place of the last one. Returns `None` if the window does not reach back
    /// that far, or if it is not certain that it follows the event at `after` (the tag differs or is not known).
    pub fn window(&self, after: Place) -> Option<(Vec<Arc<Event>>, Place)> {
        let state = lock(&self.school);
        let head = state.head?;
        let first = state
            .window
            .front()
            .map_or(head.seq + 1, |oldest| oldest.seq);
        if after.seq > head.seq || after.seq + 1 < first {
            return None;
        }
        let skipped = usize::try_from(after.seq + 1 - first).unwrap_or(usize::MAX);
        if after.tag.is_some() {
            let before = skipped
                .checked_sub(1)
                .and_then(|last| state.window.get(last));
            let known = before.map(|event| event.place());
            let known = known.or_else(|| Some(head).filter(|head| head.seq == after.seq));
            let known = known.or_else(|| state.place_before_window());
            if known.is_none_or(|known| known != after) {
                return None;
            }
        }
        let events = state.window.iter().skip(skipped).map(Arc::clone);
        Some((events.collect(), head))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut state = lock(&self.school);
        let Some(attached) = remove_and_shrink(&mut state.attached, self.id) else {
            // It was never admitted.
            return;
        };
        for channel in &attached.channels {
            state.topics.unlisten(channel, self.id);
        }
        if let Some(kind) = attached.wide {
            state.topics.unlisten_wide(kind, self.id);
        }
        decrement(&mut state.users, &attached.reader.user);
        state.record_streams(self.hub.second());
        if self.hub.is_shared {
            state.last_use = Instant::now();
        }
        drop(state);
        self.hub
            .release_limits(attached.reader.address.map(network));
    }
}
