//! A subscription that only waits for live events lends its sink to its mailbox.

use std::sync::Arc;

use tokio::time::Instant;

use super::Subscription;
use super::conflator::Conflator;
use crate::event::Event;
use crate::hub::mailbox::{Sink, Written};
use crate::hub::queue::Queue;

/// The right to send live events on behalf of a subscription that waits for them.
pub(crate) struct Lease {
    conflator: Conflator,
    expires: Option<Instant>,
}

impl Subscription {
    /// Lends the mailbox the sink of the client, if nothing but live events can follow. These must be passed to the lease. Before
    /// anything else is done, [`Subscription::take_back`] must be called.
    pub(crate) fn lend(&mut self, sink: &Arc<impl Sink + 'static>) -> Option<Lease> {
        let only_events_follow = self.outbox.is_empty()
            && self.plan.is_empty()
            && !self.ended
            && !self.narrowed
            && self.awaits.is_none()
            && self.backfill.is_none()
            && self.conflator.is_empty();
        let is_lent = only_events_follow && self.attachment.mailbox().lend(sink, self.position.seq);
        is_lent.then(|| Lease {
            conflator: self.conflator.take(),
            expires: self.expires,
        })
    }

    /// Takes the sink back, and continues after the events that were written to it.
    pub(crate) fn take_back(&mut self, lease: Lease) {
        self.conflator = lease.conflator;
        let written = self.attachment.mailbox().take_back();
        self.position = written.taken.unwrap_or(self.position);
        self.safe = written.last.unwrap_or(self.safe);
        self.log.count_events(written.events);
        if self.conflator.conflates() {
            self.set_timer();
        }
    }
}

impl Lease {
    /// Whether the client's credential has expired: nothing is sent after that.
    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// Takes events that arrive at the time `now`, until a tick is held back, or `send` returns false because there is no
    /// room for more.
    pub(crate) fn send(
        &mut self,
        events: &mut Queue<Arc<Event>>,
        now: Instant,
        mut send: impl FnMut(Arc<Event>) -> bool,
    ) -> Written {
        let (mut written, mut has_room) = (Written::default(), true);
        while has_room
            && !self.holds_any()
            && let Some(event) = events.pop_front()
        {
            written.taken = Some(event.place());
            self.conflator.push(event, now, now, &mut |event| {
                written.events += 1;
                written.last = Some(event.place());
                has_room = send(event);
            });
        }
        written
    }

    /// Whether a tick is held back. Only the subscription can send it when it is due.
    pub(crate) fn holds_any(&self) -> bool {
        !self.conflator.is_empty()
    }
}
