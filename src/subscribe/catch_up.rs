//! Catching up: the steps between connecting (or lagging, or adding channels) and being live.
//!
//! While there are steps, new events stay in the mailbox. They are delivered after the events of the steps. A step reads
//! one page at a time, as fast as the client accepts it. After a page without events for the client, the stream sends a
//! heartbeat early: if the client has disconnected, writing it fails, and the reading ends.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use serde_json::{Map, Value};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Delivery, Reading, Subscription};
use crate::config::CATCH_UP_HEARTBEAT;
use crate::event::Event;
use crate::feed::Feed;
use crate::id::{Channel, Cursor, Kind, Place};
use crate::log::{Page, StoreError};
use crate::scope::{Scope, without_superseded};
use crate::wire::{Close, Control, ResetReason};

/// A step of catching up. The mailbox is not read while there are steps.
pub(super) enum Step {
    /// Deliver the events in scope after the position, and move the position to the head.
    ///
    /// When a client has received the answer to a command, it expects the event in any stream that it opens afterwards. So
    /// unless it is `settled`, a catch-up first waits until the hub has been offered everything that was committed in this
    /// school when the catch-up began.
    ///
    /// With `from`, the position is first set to it.
    CatchUp { from: Option<Place>, settled: bool },
    /// Deliver the current states of `scope`. For `added` channels, the snapshot ends at the position. Otherwise the
    /// snapshot sets the position.
    Snapshot {
        scope: Arc<Scope>,
        added: Option<Added>,
        after: u64,
        upto: Option<Place>,
        /// The newest event when the previous page was read.
        newest: Option<Place>,
    },
    /// After a snapshot and the catch-up that follows it, which reaches at least this event: the newest one while the snapshot was
    /// read. A reader of the store can see it before the hub is offered it. The snapshot omits subjects that changed after its end,
    /// because the catch-up delivers their later events.
    ///
    /// The log is read again: if it has lost these events, the client misses the subjects.
    Confirm(Place),
    /// Deliver the events of added channels after `after`, up to the position.
    Replay {
        scope: Arc<Scope>,
        added: Added,
        after: Place,
    },
    /// Listen to more channels.
    Add(Box<Addition>),
    /// Everything in scope has been sent up to the position, on added channels as well. From now on, nothing before the position is
    /// sent again.
    ///
    /// A reader that resumes from the position may still miss states that a snapshot has omitted, so `backfill` stays until `ready`.
    Added,
    /// Send `ready`: everything before it has been delivered.
    Ready,
}

/// Channels to be added, and the request that asked for them.
pub(super) struct Addition {
    pub(super) channels: Vec<Channel>,
    pub(super) cursor: Option<Cursor>,
    pub(super) asked: Map<String, Value>,
    pub(super) wide: Option<Kind>,
}

/// What the other channels deliver, so that the steps of added channels do not send it again.
#[derive(Clone)]
pub(super) struct Added {
    pub(super) others: Arc<Scope>,
    /// After this `seq`, the stream also delivers the *wide* events of the kind [`Scope::wide`], even if they are on none of
    /// the other channels. A wide event is for every subscriber to any subject of its kind, not only to its own subject; see
    /// [`EventType`](crate::event::EventType).
    pub(super) wide_from: u64,
}

impl Added {
    /// Whether the other channels deliver the event.
    fn covers(&self, event: &Event) -> bool {
        self.others.matches_a_channel(event)
            || (event.seq > self.wide_from && self.others.matches(event))
    }
}

impl Step {
    /// Delivers what the hub has been offered since the position. First waits for commits that are on their way to the
    /// hub.
    pub(super) fn catch_up() -> Step {
        Step::CatchUp {
            from: None,
            settled: false,
        }
    }

    /// Catches up with added channels, from a known place to the position.
    pub(super) fn replay(scope: Arc<Scope>, added: Added, after: Place) -> Step {
        Step::Replay {
            scope,
            added,
            after,
        }
    }

    /// Catches up with added channels by a snapshot of their current states.
    pub(super) fn snapshot_of_added(scope: Arc<Scope>, added: Added) -> Step {
        Step::Snapshot {
            scope,
            added: Some(added),
            after: 0,
            upto: None,
            newest: None,
        }
    }
}

impl Subscription {
    /// Catches up with everything in scope, from a cursor or from a snapshot.
    pub(super) fn start(&mut self, from: Option<Cursor>) -> Step {
        if let Some(after) = self.known(from) {
            return Step::CatchUp {
                from: Some(after),
                settled: false,
            };
        }
        if from.is_some() {
            // The cursor belongs to another database. Or it has no tag, and the log has assigned numbers more than
            // once.
            let reset = Control::Reset(ResetReason::UnknownEpoch);
            self.push(Delivery::Control(reset), Some(Place::default()));
        }
        self.snapshot()
    }

    /// Delivers the current states of everything in scope, and sets the position.
    fn snapshot(&self) -> Step {
        Step::Snapshot {
            scope: Arc::clone(&self.scope),
            added: None,
            after: 0,
            upto: None,
            newest: None,
        }
    }

    /// Removes channels from the planned steps. Steps that set the position are kept, even with an empty scope.
    pub(super) fn narrow_plan(&mut self, channels: &[Channel]) {
        if self.scope.channels().is_empty() {
            self.backfill = None;
            self.awaits = None;
            // Without channels, `ready` means nothing.
            self.plan.retain(|step| !matches!(step, Step::Ready));
        }
        if self.scope.is_empty() {
            // There is nothing to catch up with, and no position.
            self.reading = None;
            self.settling = None;
            self.plan.retain(|step| matches!(step, Step::Add(_)));
            self.outbox
                .iter_mut()
                .for_each(|entry| entry.moves_to = None);
            return;
        }
        self.narrow_steps(|scope| {
            channels.iter().for_each(|channel| scope.remove(channel));
        });
    }

    /// Narrows the scopes of the planned steps. Steps that set the position are kept, even with an empty scope.
    pub(super) fn narrow_steps(&mut self, narrow: impl Fn(&mut Scope)) {
        // The read in progress was started with the old scope.
        self.reading = None;
        self.settling = None;
        self.plan.retain(|step| {
            let (scope, sets_position) = match step {
                Step::Snapshot { scope, added, .. } => (scope, added.is_none()),
                Step::Replay { scope, .. } => (scope, false),
                Step::CatchUp { .. }
                | Step::Confirm(_)
                | Step::Add(_)
                | Step::Added
                | Step::Ready => {
                    return true;
                }
            };
            let narrowed = Arc::make_mut(scope);
            narrow(narrowed);
            sets_position || !narrowed.is_empty()
        });
    }

    /// Executes the next step of the plan. Ready when something has changed.
    pub(super) fn poll_plan(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(close) = self.attachment.mailbox().closing() {
            self.close(close);
            return Poll::Ready(());
        }
        let Some(step) = self.plan.pop_front() else {
            return Poll::Ready(());
        };
        match step {
            Step::Ready => {
                // What was awaited is confirmed, or it was the end of a snapshot, and is the position.
                self.awaits = None;
                let position = self.position;
                self.push(
                    Delivery::Control(Control::Ready(self.cursor(position))),
                    Some(position),
                );
                Poll::Ready(())
            }
            Step::Add(addition) => {
                self.add(*addition);
                Poll::Ready(())
            }
            Step::Added => {
                // Steps run only when everything before them has been sent.
                self.safe = self.position;
                Poll::Ready(())
            }
            // There is nothing to catch up with.
            Step::CatchUp { .. } if self.scope.is_empty() => Poll::Ready(()),
            Step::CatchUp {
                from: Some(from),
                settled,
            } => {
                self.position = from;
                self.is_claimed = true;
                if let Some(awaits) = self.awaited_after(from) {
                    self.plan.push_front(Step::Confirm(awaits));
                }
                self.plan.push_front(Step::CatchUp {
                    from: None,
                    settled,
                });
                Poll::Ready(())
            }
            Step::CatchUp { settled: true, .. } => self.poll_catch_up(cx),
            Step::CatchUp { settled: false, .. } => {
                let settled = self.poll_settled(cx);
                self.plan.push_front(Step::CatchUp {
                    from: None,
                    settled: settled.is_ready(),
                });
                settled
            }
            Step::Replay {
                scope,
                added,
                after,
            } => self.poll_replay(cx, scope, added, after),
            Step::Snapshot {
                scope,
                added,
                after,
                upto,
                newest,
            } => self.poll_snapshot(cx, (scope, added), after, upto, newest),
            Step::Confirm(_) if self.scope.is_empty() => Poll::Ready(()),
            Step::Confirm(newest) => self.poll_confirm(cx, newest),
        }
    }

    /// Ready when the hub has been offered everything that was committed when this was first polled.
    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let settling = self.settling.get_or_insert_with(|| {
            let school = self.scope.school;
            Box::pin(self.shared.feed.settled(school))
        });
        ready!(settling.as_mut().poll(cx));
        self.settling = None;
        Poll::Ready(())
    }

    fn poll_catch_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let scope = Arc::clone(&self.scope);
        // A shared log may have lost events that were read a moment ago.
        let after = match self.is_claimed || self.shared.feed.is_shared() {
            true => self.position,
            false => Place::untagged(self.position.seq),
        };
        let required_seq = match self.plan.front() {
            Some(Step::Confirm(newest)) => newest.seq,
            // On another node, the client may have received events that this node has not been told of yet. Added channels must not
            // deliver them again.
            Some(Step::Add(addition)) => self.known(addition.cursor).map_or(0, |known| known.seq),
            _ => 0,
        };
        if self.reading.is_none()
            && let Some((events, head)) = self.attachment.window(after)
            && head.seq >= required_seq
        {
            let in_scope = events
                .into_iter()
                .filter(|event| scope.matches(event))
                .collect();
            let wanted = if self.conflator.conflates() {
                without_superseded(in_scope)
            } else {
                in_scope
            };
            self.has_verified_position();
            wanted.into_iter().for_each(|event| self.deliver(event));
            self.position = head;
            self.is_claimed = false;
            return Poll::Ready(());
        }
        let Poll::Ready(page) = self.poll_replay_page(cx, &scope, after) else {
            self.plan.push_front(Step::CatchUp {
                from: None,
                settled: true,
            });
            return Poll::Pending;
        };
        self.is_claimed = false;
        let page = match page {
            Some(Ok(page)) => {
                self.has_verified_position();
                page
            }
            Some(Err(ResetReason::HistoryChanged)) if self.position != self.safe => {
                // The log may still have the events that were sent to the client.
                self.position = self.safe;
                self.is_claimed = true;
                self.plan.push_front(Step::CatchUp {
                    from: None,
                    settled: true,
                });
                return Poll::Ready(());
            }
            Some(Err(reason)) => {
                self.reset(reason);
                return Poll::Ready(());
            }
            None => return Poll::Ready(()),
        };
        page.events
            .into_iter()
            .for_each(|event| self.deliver(event));
        self.position = page.through;
        if page.through.seq < page.head.seq || !self.attachment.try_go_live(self.position) {
            self.plan.push_front(Step::CatchUp {
                from: None,
                settled: true,
            });
            // Until then, the reader receives copies of the events, which have cursors of its own.
            let awaited = self.awaits.filter(|awaits| awaits.seq <= self.position.seq);
            if let Some(awaited) = awaited {
                self.plan.retain(|step| !matches!(step, Step::Confirm(_)));
                self.plan.push_front(Step::Confirm(awaited));
            }
        }
        Poll::Ready(())
    }

    /// The log has the event at the position. If the reader awaited that one, it awaits nothing more.
    fn has_verified_position(&mut self) {
        self.awaits.take_if(|awaits| *awaits == self.position);
    }

    /// Starts over with a snapshot of everything in scope. On a `reset`, clients discard the states that they have.
    fn reset(&mut self, reason: ResetReason) {
        self.send_reset(reason);
        if !matches!(self.plan.front(), Some(Step::Ready)) {
            self.plan.push_front(Step::Ready);
        }
        let snapshot = self.snapshot();
        self.plan.push_front(snapshot);
    }

    /// Sends `reset`, and cancels checks of an earlier snapshot, which a new one will replace.
    fn send_reset(&mut self, reason: ResetReason) {
        let reset = Delivery::Control(Control::Reset(reason));
        self.push(reset, Some(Place::default()));
        self.plan.retain(|step| !matches!(step, Step::Confirm(_)));
        self.awaits = None;
    }

    fn poll_replay(
        &mut self,
        cx: &mut Context<'_>,
        scope: Arc<Scope>,
        added: Added,
        after: Place,
    ) -> Poll<()> {
        let Poll::Ready(page) = self.poll_replay_page(cx, &scope, after) else {
            self.plan.push_front(Step::Replay {
                scope,
                added,
                after,
            });
            return Poll::Pending;
        };
        let page = match page {
            Some(Ok(page)) => page,
            Some(Err(reason)) => {
                self.send_reset(reason);
                let snapshot = self.snapshot();
                self.plan.push_front(snapshot);
                return Poll::Ready(());
            }
            None => return Poll::Ready(()),
        };
        // Events of the added channels after the position are in the mailbox, which has received them since the addition.
        let upto = self.position.seq;
        let wanted = page
            .events
            .into_iter()
            .filter(|event| event.seq <= upto && !added.covers(event));
        for event in wanted {
            let event = self.for_reader(event);
            self.push(Delivery::Event(event), None);
        }
        if page.through.seq < upto {
            self.plan.push_front(Step::Replay {
                scope,
                added,
                after: match self.shared.feed.is_shared() {
                    true => page.through,
                    false => Place::untagged(page.through.seq),
                },
            });
        } else {
            self.plan.push_front(Step::Added);
        }
        Poll::Ready(())
    }

    fn poll_snapshot(
        &mut self,
        cx: &mut Context<'_>,
        (scope, added): (Arc<Scope>, Option<Added>),
        after: u64,
        upto: Option<Place>,
        newest: Option<Place>,
    ) -> Poll<()> {
        let upto = upto.or_else(|| added.as_ref().map(|_| self.position));
        let Poll::Ready(page) = self.poll_page(cx, |feed| {
            let scope = Arc::clone(&scope);
            Box::pin(async move { feed.snapshot(scope, after, upto, newest).await })
        }) else {
            self.plan.push_front(Step::Snapshot {
                scope,
                added,
                after,
                upto,
                newest,
            });
            return Poll::Pending;
        };
        let page = match page {
            Some(Some(page)) => page,
            Some(None) => {
                self.reset(ResetReason::HistoryChanged);
                return Poll::Ready(());
            }
            None => return Poll::Ready(()),
        };
        let is_last = page.through.seq >= page.head.seq;
        let has_changed = page.newest.seq > page.head.seq;
        // On a single node, only a power loss in the middle of the last page could lose an event that is in it.
        if has_changed || !is_last || self.shared.feed.is_shared() {
            self.awaits = Some(page.newest);
        }
        if is_last && has_changed {
            // The pages may omit subjects that changed while they were read. Their later events precede `ready`, which says
            // that the state is complete.
            self.plan.push_front(Step::Confirm(page.newest));
            self.plan.push_front(Step::CatchUp {
                from: None,
                settled: true,
            });
        }
        match &added {
            Some(added) => {
                let wanted = page.events.into_iter().filter(|event| !added.covers(event));
                for event in wanted {
                    let event = self.for_reader(event);
                    self.push(Delivery::Event(event), None);
                }
                if is_last {
                    self.plan.push_front(Step::Added);
                }
            }
            None => {
                self.position = page.head;
                self.wide_from = page.head.seq;
                if is_last && !self.attachment.try_go_live(page.head) {
                    self.plan.push_front(Step::CatchUp {
                        from: None,
                        settled: true,
                    });
                }
                page.events
                    .into_iter()
                    .for_each(|event| self.deliver(event));
            }
        }
        if !is_last {
            self.plan.push_front(Step::Snapshot {
                scope,
                added,
                after: page.through.seq,
                upto: Some(page.head),
                newest: Some(page.newest),
            });
        }
        Poll::Ready(())
    }

    /// Starts over if the log no longer has the event, or if the catch-up before this step did not reach it. An event that
    /// retention has deleted meanwhile does not count as lost.
    fn poll_confirm(&mut self, cx: &mut Context<'_>, newest: Place) -> Poll<()> {
        let scope = Arc::clone(&self.scope);
        let Poll::Ready(page) = self.poll_replay_page(cx, &scope, newest) else {
            self.plan.push_front(Step::Confirm(newest));
            return Poll::Pending;
        };
        // Without an answer, the stream ends, and its last cursor still says what the client awaits.
        let Some(page) = page else {
            return Poll::Ready(());
        };
        let is_lost = matches!(
            page,
            Err(ResetReason::HistoryChanged | ResetReason::UnknownEpoch)
        );
        if is_lost || self.position.seq < newest.seq {
            self.reset(ResetReason::HistoryChanged);
        } else {
            self.awaits = None;
        }
        Poll::Ready(())
    }

    fn cannot_honour(&self, after: Place, page: &Page) -> Option<ResetReason> {
        if after.seq > page.head.seq {
            // The log has not assigned this number yet. Only a cursor without a tag, from an older version, gets here.
            Some(ResetReason::UnknownEpoch)
        } else if after.seq < page.floor {
            Some(ResetReason::Expired)
        } else if page.head.seq - after.seq > self.shared.replay_max_events {
            Some(ResetReason::TooFarBehind)
        } else {
            None
        }
    }

    /// Reads a page of the log, or returns why the client has to start over.
    fn poll_replay_page(
        &mut self,
        cx: &mut Context<'_>,
        scope: &Arc<Scope>,
        after: Place,
    ) -> Poll<Option<Result<Page, ResetReason>>> {
        let (scope, conflate) = (Arc::clone(scope), self.conflator.conflates());
        let page = ready!(self.poll_page(cx, |feed| {
            Box::pin(async move { feed.replay(scope, after, conflate).await })
        }));
        Poll::Ready(page.map(|page| {
            let page = page.ok_or(ResetReason::HistoryChanged)?;
            match self.cannot_honour(after, &page) {
                Some(reason) => Err(reason),
                None => Ok(page),
            }
        }))
    }

    /// Reads a page. `read` is called once for each page. The outer `None` means that the store failed and the stream
    /// ends. The inner `None` means that the log does not have the event that the client has received.
    fn poll_page(
        &mut self,
        cx: &mut Context<'_>,
        read: impl FnOnce(Arc<Feed>) -> Reading,
    ) -> Poll<Option<Option<Page>>> {
        let feed = &self.shared.feed;
        // In a separate task: a subscription is polled only while its socket has room. Without the task, a read would
        // keep the feed's locks and its turn to read the database until the client reads. Dropping the handle ends the task.
        let reading = self.reading.get_or_insert_with(|| {
            let task = AbortOnDropHandle::new(tokio::spawn(read(Arc::clone(feed))));
            Box::pin(async move { task.await.unwrap_or(Err(StoreError::Stopped)) })
        });
        let page = ready!(reading.as_mut().poll(cx));
        self.reading = None;
        // A disconnected client is detected only when something is written.
        let heartbeat = Instant::now() + CATCH_UP_HEARTBEAT;
        let has_no_events =
            |page: &Option<Page>| page.as_ref().is_some_and(|page| page.events.is_empty());
        if page.as_ref().is_ok_and(has_no_events) && heartbeat < self.next_heartbeat {
            self.next_heartbeat = heartbeat;
            self.set_timer();
        }
        Poll::Ready(match page {
            Ok(page) => Some(page),
            Err(error) => {
                tracing::error!(%error, school.id = %self.scope.school, "a stream could not read the store");
                self.close(Close::InternalError);
                None
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::mailbox::tests::event;
    use crate::kind::characteristic::ACK_UPDATE;
    use crate::kind::job::{self, JOB_PROGRESS};

    #[test]
    fn events_that_other_channels_deliver_are_not_sent_again() {
        let school = 1.try_into().unwrap();
        let added = |others| Added {
            others: Arc::new(others),
            wide_from: 5,
        };
        let subject = Channel::Subject(job::KIND, "a".parse().unwrap());
        let of_subject = added(Scope::new(school, [subject]));
        assert!(of_subject.covers(&event(4, "a", true)));
        assert!(of_subject.covers(&event(6, "a", true)));
        assert!(!of_subject.covers(&event(6, "b", true)));
        let of_wide = added(Scope::new(school, []).with_wide(job::KIND));
        let covers = |seq, event_type| {
            let mut event = Arc::into_inner(event(seq, "a", true)).unwrap();
            event.draft.event_type = event_type;
            of_wide.covers(&event)
        };
        assert!(!covers(5, &ACK_UPDATE), "it was not delivered at that time");
        assert!(covers(6, &ACK_UPDATE));
        assert!(!covers(6, &JOB_PROGRESS));
    }
}
