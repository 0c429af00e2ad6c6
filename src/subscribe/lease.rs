//! A subscription that only waits for live events lends its sink to its mailbox.

use std::cell::Cell;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::Subscription;
use super::conflator::Conflator;
use crate::config::LENT_TICKS_MAX;
use crate::event::Event;
use crate::hub::mailbox::{Sink, Wait, Written};
use crate::hub::queue::Queue;

/// The right to send live events on behalf of a subscription that waits for them.
pub(crate) struct Lease {
    conflator: Conflator,
    expires: Option<Instant>,
}

impl Subscription {
    /// Lends the mailbox the sink of the client, if nothing but live events can follow. These must be passed to the lease. Before
    /// anything else is done, [`Subscription::take_back`] must be called.
    pub(crate) fn lend(
        &mut self,
        cx: &mut Context<'_>,
        sink: &Arc<impl Sink + 'static>,
    ) -> Option<Lease> {
        let only_events_follow = self.outbox.is_empty()
            && self.plan.is_empty()
            && !self.ended
            && !self.narrowed
            && self.awaits.is_none()
            && self.backfill.is_none()
            && self.conflator.held() <= LENT_TICKS_MAX;
        let due = self.conflator.next_due();
        if !only_events_follow || !self.attachment.lend(sink, self.position.seq, due) {
            return None;
        }
        let conflator = self.conflator.take();
        if conflator.conflates() {
            // The mailbox sees to the ticks.
            self.set_timer();
            if self.timer.poll(cx, Instant::now()) {
                cx.waker().wake_by_ref();
            }
        }
        Some(Lease {
            conflator,
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

    /// Takes events at the time `now`, until `send` returns false because there is no room for more, or more ticks are held back
    /// than the mailbox may see to. Sends the events that are not held back, and the held ticks that are due.
    pub(crate) fn send(
        &mut self,
        events: &mut Queue<Arc<Event>>,
        now: Instant,
        mut send: impl FnMut(Arc<Event>) -> bool,
    ) -> Written {
        let (mut written, mut taken, has_room) = (Written::default(), None, Cell::new(true));
        let mut out = |event: Arc<Event>| {
            written.events += 1;
            written.last = Some(event.place());
            has_room.set(send(event));
        };
        // If a tick has been due for a moment, the events have waited for that: they arrived before.
        let due = self.conflator.next_due();
        let arrived = due.map_or(now, |due| now.min(due - Duration::from_nanos(1)));
        while has_room.get()
            && self.conflator.held() <= LENT_TICKS_MAX
            && let Some(event) = events.pop_front()
        {
            taken = Some(event.place());
            self.conflator.push(event, arrived, now, &mut out);
        }
        self.conflator.release(now, now, &mut out);
        Written { taken, ..written }
    }

    /// Returns what is waited for now. `None` if more ticks are held back than the mailbox may see to.
    pub(crate) fn wait(&self) -> Option<Wait> {
        (self.conflator.held() <= LENT_TICKS_MAX).then(|| Wait {
            patience: self.conflator.patience(),
            due: self.conflator.next_due(),
        })
    }
}

#[cfg(test)]
mod tests;
