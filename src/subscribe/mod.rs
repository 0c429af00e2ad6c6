//! The use case *subscribe*: a connection is a cursor plus a mailbox.
//!
//! ```text
//! attach ─▶ connected ─▶ [reset] ─▶ snapshot or replay ─▶ ready ─▶ live ─┬─▶ closing
//!                          ▲                                 ▲            │ lagging: replay from its own cursor
//!                          └── the cursor is not honoured    └────────────┘
//! ```
//!
//! A [`Subscription`] is a stream of [`Delivery`]s. The transports differ only in how they write deliveries. A
//! subscription attaches to the hub before it reads the store (invariant 5), delivers every `seq` at most once and in
//! order or sends `reset` (invariant 3), and ends with its credential (invariant 7). Its memory is bounded: a page of
//! the store, a mailbox, and held ticks (invariant 6). Timers and waits are polled, not spawned: an idle subscription
//! is one small struct without a task.

mod catch_up;
mod conflator;
mod lease;
mod life;
mod plan;
mod timer;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_core::Stream;
use futures_core::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::time::Instant;

use self::catch_up::{Added, Addition, Step};
use self::conflator::Conflator;
pub(crate) use self::lease::Lease;
use self::life::StreamLog;
use self::plan::Plan;
use self::timer::Timer;
use crate::alarm::Alarm;
use crate::config::{Settings, StreamLimits};
use crate::event::Event;
use crate::feed::Feed;
use crate::hub::mailbox::{Mail, Patience};
use crate::hub::queue::Queue;
use crate::hub::{Attachment, Hub, HubFull, Reader};
use crate::id::{Channel, Cursor, Kind, Place};
use crate::log::{Page, StoreError};
use crate::scope::Scope;
use crate::wire::{Close, Control};

/// A request to subscribe.
#[derive(Debug, Clone)]
pub struct Request {
    /// What to listen to.
    pub scope: Scope,
    /// The client.
    pub reader: Reader,
    /// The cursor to start from. Without it, the subscription starts with a snapshot.
    pub from: Option<Cursor>,
    /// Minimum time between two ticks of a subject. With zero, every retained event is delivered, live and in replays.
    pub tick: Duration,
    /// When the credential expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// The time until which a client can reconnect with the credential, if it differs from `expires_at`.
    pub reconnects_until: Option<DateTime<Utc>>,
    /// Whether to begin with `connected`, and the fields that the endpoint adds to it.
    pub welcome: Option<Map<String, Value>>,
}

/// One item to be written to the client.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// An event or a snapshot.
    Event(Arc<Event>),
    /// A control message. [`Control::Closing`] is the last one.
    Control(Control),
}

/// Opens subscriptions.
#[derive(Clone)]
pub struct Subscriber(Arc<Parts>);

/// What all subscriptions share.
struct Parts {
    feed: Arc<Feed>,
    hub: Arc<Hub>,
    heartbeat: Duration,
    replay_max_events: u64,
    limits: StreamLimits,
}

/// A delivery in the outbox.
struct Entry {
    item: Item,
    /// The reader's place after this delivery. `None` for events of added channels, and for most control messages.
    moves_to: Option<Place>,
}

/// A [`Delivery`] whose control message is boxed, so that an idle connection is small, and an event is cheap to pass on.
pub(crate) enum Item {
    Event(Arc<Event>),
    Control(Box<Control>),
}

type Reading = BoxFuture<'static, Result<Option<Page>, StoreError>>;

/// A stream of deliveries. See the module documentation.
pub struct Subscription {
    shared: Arc<Parts>,
    attachment: Attachment,
    scope: Arc<Scope>,
    conflator: Conflator,
    /// The next deliveries, in order.
    outbox: Queue<Entry>,
    plan: Plan,
    reading: Option<Reading>,
    settling: Option<BoxFuture<'static, ()>>,
    /// Everything in scope up to here was delivered, was superseded, or is held by the conflator.
    position: Place,
    /// Whether the position comes from the client's cursor and is not verified: the log may have a different event there.
    is_claimed: bool,
    /// The place up to which the reader has received everything: it can resume from here.
    safe: Place,
    /// While added channels catch up: the place from which a reader of all channels must resume.
    backfill: Option<Place>,
    /// Until it is confirmed that the log has it, or else until `ready`: the newest event when a snapshot was read; see [`Cursor::awaits`].
    awaits: Option<Place>,
    /// Wide events that are on none of the channels are delivered, in order, if their `seq` is greater than this.
    wide_from: u64,
    /// Whether the mailbox may contain events that are no longer in scope, because channels were removed since it was empty.
    narrowed: bool,
    next_heartbeat: Instant,
    expires: Option<Instant>,
    reconnects_until: Option<DateTime<Utc>>,
    timer: Timer,
    /// Whether the stream ends after the contents of the outbox. The remaining steps are ignored.
    ended: bool,
    log: StreamLog,
}

impl Subscriber {
    /// Creates a subscriber that reads from this feed and listens to this hub.
    pub fn new(feed: Arc<Feed>, hub: Arc<Hub>, settings: &Settings) -> Subscriber {
        Subscriber(Arc::new(Parts {
            feed,
            hub,
            heartbeat: settings.heartbeat(),
            replay_max_events: settings.replay_max_events.get(),
            limits: settings.stream_limits(),
        }))
    }

    /// Returns the feed that the subscriptions read from.
    pub fn feed(&self) -> &Feed {
        &self.0.feed
    }

    /// Opens a subscription.
    pub fn open(&self, request: Request) -> Result<Subscription, HubFull> {
        let Request {
            scope,
            reader,
            from,
            tick,
            expires_at,
            reconnects_until,
            welcome,
        } = request;
        let (shared, conflator) = (&self.0, Conflator::new(tick));
        // Attach before reading the store: an event committed in between would be missed.
        let attachment = shared.hub.attach(
            &scope,
            reader.clone(),
            conflator.conflates(),
            &shared.limits,
        )?;
        let log = StreamLog::open(&scope, &reader);
        let scope = Arc::new(scope);
        let now = Instant::now();
        let mut subscription = Subscription {
            attachment,
            conflator,
            outbox: Queue::default(),
            plan: Plan::default(),
            reading: None,
            settling: None,
            position: Place::default(),
            is_claimed: false,
            safe: Place::default(),
            backfill: None,
            awaits: None,
            wide_from: 0,
            narrowed: false,
            next_heartbeat: now + shared.heartbeat,
            expires: None,
            reconnects_until,
            timer: Timer::Own(Alarm::at(now + shared.heartbeat)),
            ended: false,
            log,
            shared: Arc::clone(shared),
            scope,
        };
        subscription.renew(expires_at);
        subscription.safe = subscription.known(from).unwrap_or_default();
        subscription.await_as(from);
        if let Some(also) = welcome {
            subscription.push_control(Control::Connected {
                school: subscription.scope.school,
                channels: subscription
                    .scope
                    .channels()
                    .iter()
                    .map(Channel::to_string)
                    .collect(),
                cursor: subscription.cursor(subscription.safe),
                heartbeat_secs: shared.heartbeat.as_secs(),
                expires_at,
                also,
            });
        }
        subscription.wide_from = subscription.safe.seq;
        if subscription.scope.is_empty() {
            subscription.position = subscription.safe;
        } else {
            let start = subscription.start(from);
            subscription.plan.push_back(start);
            subscription
                .plan
                .push_back(match subscription.scope.channels().is_empty() {
                    true => Step::Added,
                    false => Step::Ready,
                });
        }
        Ok(subscription)
    }
}

impl Subscription {
    /// Returns what the subscription listens to.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Returns the cursor to resume from if the stream breaks now. Returns `None` without channels, because no cursor
    /// would be correct for the channels that are added later.
    pub fn resume_cursor(&self) -> Option<Cursor> {
        if self.scope.channels().is_empty() {
            return None;
        }
        let safe = self
            .backfill
            .map_or(self.safe, |backfill| backfill.min(self.safe));
        Some(self.cursor(safe))
    }

    /// Leaves it to the caller to poll the subscription at [`due`](Subscription::due), so that both need only one timer.
    pub(crate) fn leave_timing_to_caller(&mut self) {
        self.timer = Timer::Callers(Instant::now());
        self.set_timer();
    }

    /// When the subscription must be polled even if nothing wakes its task. `None` if it sees to that itself.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.timer.callers()
    }

    /// Sets when the credential expires.
    pub fn renew(&mut self, expires_at: Option<DateTime<Utc>>) {
        self.expires =
            expires_at.map(|end| Instant::now() + (end - Utc::now()).to_std().unwrap_or_default());
        self.set_timer();
    }

    /// Sends a control message between two events.
    pub fn push_control(&mut self, control: Control) {
        self.push(Delivery::Control(control), None);
    }

    /// Ends the stream if its credential has expired. Pending deliveries are dropped.
    pub fn end_if_expired(&mut self) {
        self.end_if_expired_by(Instant::now());
    }

    /// Ends the stream if its credential has expired by `now`.
    pub(crate) fn end_if_expired_by(&mut self, now: Instant) {
        if !self.ended && self.expires.is_some_and(|expires| expires <= now) {
            self.outbox.clear();
            self.close(Close::TokenExpired);
        }
    }

    /// Returns the close message. It asks the client to reconnect only if the client's credential will still be valid
    /// then.
    pub fn closing(&self, close: Close) -> Control {
        let pause = Duration::from_millis(close.retry_ms().unwrap_or(0));
        let is_valid = self
            .reconnects_until
            .is_none_or(|until| Utc::now() + pause <= until);
        // This close code means that the credential has expired, so clients reconnect with a new one.
        let outlasts = |end| close == Close::TokenExpired || Instant::now() + pause < end;
        Control::Closing {
            close,
            can_return: is_valid && self.expires.is_none_or(outlasts),
        }
    }

    /// Ends the stream after the pending deliveries.
    pub fn close(&mut self, close: Close) {
        let closing = self.closing(close);
        self.push_control(closing);
        self.ended = true;
        // Cancel the read in progress, so that its locks and its turn to read the database are free for others now.
        (self.reading, self.settling) = (None, None);
        self.log.set_reason(close.reason());
    }

    /// Records why the transport ends the stream, for the log. Does not end the stream.
    pub fn set_end_reason(&mut self, reason: &'static str) {
        self.log.set_reason(reason);
    }

    /// Listens to more channels, from `cursor` or from a snapshot, and to the `wide` events of a kind. Pending steps
    /// are completed first. Then the subscription sends `subscribed` with the fields in `asked`, the snapshot or
    /// replay, and `ready`.
    pub fn subscribe(
        &mut self,
        channels: Vec<Channel>,
        cursor: Option<Cursor>,
        asked: Map<String, Value>,
        wide: Option<Kind>,
    ) {
        // Their numbers are lower than those of all events that follow.
        self.release_held(true);
        // Bring the position up to date first: the snapshot of the new channels ends at it.
        self.plan.push_back(Step::catch_up());
        self.plan.push_back(Step::Add(Box::new(Addition {
            channels,
            cursor,
            asked,
            wide,
        })));
    }

    /// Listens to more channels. The existing channels have been delivered up to the position. They pause there until the
    /// new channels have been delivered up to it, too. So the cursor of every delivered event is safe for all channels.
    fn add(&mut self, addition: Addition) {
        let Addition {
            channels,
            cursor,
            asked,
            wide,
        } = addition;
        let added: Vec<Channel> = channels
            .into_iter()
            .filter(|channel| !self.scope.channels().contains(channel))
            .collect();
        let known = self.known(cursor);
        let from = known.unwrap_or_default();
        let first = self.scope.is_empty();
        if let Some(kind) = wide.filter(|_| self.scope.wide().is_none() && !added.is_empty()) {
            self.attachment.listen_to_wide(kind);
            self.scope = Arc::new(Scope::clone(&self.scope).with_wide(kind));
            // A snapshot sets `wide_from` to its end.
            self.wide_from = match first {
                true => from.seq,
                false => self.position.seq,
            };
        }
        let context = Added {
            others: Arc::clone(&self.scope),
            wide_from: self.wide_from,
        };
        // Attach before reading the store, here too.
        self.attachment.listen(added.iter().cloned());
        let all = Arc::make_mut(&mut self.scope);
        added.iter().for_each(|channel| all.add(channel.clone()));
        // The cursor is filled in on delivery.
        self.push_control(Control::Subscribed {
            asked,
            cursor: None,
        });
        let mut steps = Vec::new();
        if added.is_empty() {
            // Nothing changes.
        } else if first {
            self.safe = from;
            self.await_as(cursor);
            steps.push(self.start(cursor));
        } else {
            self.backfill = Some(self.backfill.map_or(from, |backfill| backfill.min(from)));
            if let Some(after) = known {
                // The replay includes the wide events after its cursor.
                self.wide_from = self.wide_from.min(after.seq);
            }
            let new = Arc::new(self.scope.with_channels(added));
            steps.push(match (known, cursor) {
                (Some(after), _) => Step::replay(new, context, after),
                (None, None) => Step::snapshot_of_added(new, context),
                // A `reset` applies to everything in scope.
                (None, Some(_)) => self.start(cursor),
            });
            // Deliver the events since then on all channels. The snapshot omitted states that were newer than the position;
            // their events are among them.
            steps.push(Step::catch_up());
            if known.is_some() {
                self.await_as(cursor);
                steps.extend(self.awaits.map(Step::Confirm));
            }
        }
        if !self.scope.channels().is_empty() {
            steps.push(Step::Ready);
        }
        steps
            .into_iter()
            .rev()
            .for_each(|step| self.plan.push_front(step));
    }

    /// Delivers the wide events of a kind from now on.
    pub fn subscribe_wide(&mut self, kind: Kind) {
        // Not while there are steps: their reads may use the old scope, and so would move the position past such
        // events.
        if self.scope.wide().is_none() && self.plan.is_empty() {
            self.attachment.listen_to_wide(kind);
            self.scope = Arc::new(Scope::clone(&self.scope).with_wide(kind));
            self.wide_from = self.position.seq;
        }
    }

    /// Stops delivering wide events, except for those on its channels.
    pub fn unsubscribe_wide(&mut self) {
        if self.scope.wide().is_some() {
            self.attachment.unlisten_wide();
            self.scope = Arc::new(Scope::clone(&self.scope).without_wide());
            self.drop_out_of_scope();
            self.set_timer();
            self.narrow_steps(|scope| *scope = scope.clone().without_wide());
        }
    }

    /// Drops pending events that are no longer in scope.
    fn drop_out_of_scope(&mut self) {
        self.narrowed = true;
        let scope = Arc::clone(&self.scope);
        self.conflator.retain(|event| scope.matches(event));
        self.outbox
            .retain(|entry| !matches!(&entry.item, Item::Event(event) if !scope.matches(event)));
    }

    /// Delivers the current states of channels once more, although the channels are already in scope.
    pub fn resend_state(&mut self, channels: Vec<Channel>) {
        self.release_held(true);
        let again = Arc::new(self.scope.with_channels(channels));
        let nothing = Added {
            others: Arc::new(Scope::new(self.scope.school, [])),
            wide_from: self.wide_from,
        };
        self.plan.push_back(Step::catch_up());
        self.plan.push_back(Step::snapshot_of_added(again, nothing));
    }

    /// Whether an acknowledgement is still to be delivered. Until then, callers must not pass further requests. Otherwise a
    /// client that sends requests faster than it reads answers could make the server keep any number of them, and
    /// answers could arrive out of order.
    pub fn is_busy(&self) -> bool {
        let is_acknowledgement = |entry: &Entry| match &entry.item {
            Item::Control(control) => matches!(
                **control,
                Control::Subscribed { .. } | Control::Unsubscribed { .. }
            ),
            Item::Event(_) => false,
        };
        let waits = |step: &Step| matches!(step, Step::Add(_));
        self.plan.iter().any(waits) || self.outbox.iter().any(is_acknowledgement)
    }

    /// Stops listening to channels.
    pub fn unsubscribe(&mut self, channels: &[Channel], asked: Map<String, Value>) {
        // Pending events of these channels are not sent any more, so the cursor is the place before all pending events.
        let cursor = self.resume_cursor();
        for channel in channels {
            self.attachment.unlisten(channel);
            Arc::make_mut(&mut self.scope).remove(channel);
        }
        self.drop_out_of_scope();
        // Ticks that were held behind the dropped ones may be due.
        self.release_held(false);
        self.set_timer();
        self.narrow_plan(channels);
        self.push_control(Control::Unsubscribed { asked, cursor });
    }

    fn push(&mut self, delivery: Delivery, moves_to: Option<Place>) {
        let item = match delivery {
            Delivery::Event(event) => Item::Event(event),
            Delivery::Control(control) => Item::Control(Box::new(control)),
        };
        self.outbox.push_back(Entry { item, moves_to });
    }

    /// Returns the place that a cursor names, if it belongs to this database.
    fn known(&self, cursor: Option<Cursor>) -> Option<Place> {
        cursor.and_then(|cursor| self.shared.feed.place(cursor))
    }

    fn cursor(&self, place: Place) -> Cursor {
        Cursor {
            awaits: self.awaited_after(place),
            ..Cursor::new(self.shared.feed.epoch(), place)
        }
    }

    /// Awaits what a client with this cursor awaits.
    fn await_as(&mut self, cursor: Option<Cursor>) {
        if self.known(cursor).is_some() {
            self.awaits = cursor.and_then(|cursor| cursor.awaits);
        }
    }

    /// Returns what a reader that has received everything up to this place awaits. If the log has lost the awaited event, it may
    /// have later ones.
    fn awaited_after(&self, place: Place) -> Option<Place> {
        self.awaits.filter(|awaits| *awaits != place)
    }

    /// Returns the event with the cursor of this reader.
    fn for_reader(&self, event: Arc<Event>) -> Arc<Event> {
        match self.awaited_after(event.place()) {
            Some(awaits) => Arc::new(event.awaiting(awaits)),
            None => event,
        }
    }

    fn deliver(&mut self, event: Arc<Event>) {
        let moves_to = Some(event.place());
        let event = self.for_reader(event);
        self.push(Delivery::Event(event), moves_to);
    }

    /// Processes events that did not wake the reader because ticks were held. Called before the held ticks are released.
    fn take_quiet_mail(&mut self, cx: &mut Context<'_>) {
        let due = self.conflator.next_due();
        if let Some(due) = due.filter(|_| self.plan.is_empty())
            && let Poll::Ready(mail) = self.attachment.mailbox().poll(cx, Patience::AnyTick)
        {
            let before = due - Duration::from_nanos(1);
            self.receive(mail, before, Instant::now());
        }
    }

    /// Processes live mail at the time `now`. For conflation, the mail counts as having arrived at `then`, if that is
    /// earlier.
    fn receive(&mut self, mail: Mail, then: Instant, now: Instant) {
        match mail {
            Mail::Events(events) => {
                let arrived = then.min(now);
                for event in events {
                    if event.seq <= self.position.seq {
                        continue;
                    }
                    self.position = event.place();
                    if self.narrowed && !self.scope.matches(&event) {
                        continue;
                    }
                    let Subscription {
                        conflator, outbox, ..
                    } = self;
                    conflator.push(event, arrived, now, &mut |event| {
                        outbox.push_back(Entry::live(event))
                    });
                }
                if self.conflator.conflates() {
                    self.set_timer();
                }
            }
            Mail::Lagging => {
                // Send the held ticks before the replay, because their `seq`s are lower.
                self.release_held(true);
                self.plan.push_back(Step::CatchUp {
                    from: None,
                    settled: true,
                });
            }
            Mail::HistoryChanged => {
                // Unsent events may be lost. Whether the log still has the events that were sent must be verified.
                self.conflator.retain(|_| false);
                self.set_timer();
                self.position = self.safe;
                self.is_claimed = true;
                self.plan.push_back(Step::CatchUp {
                    from: None,
                    settled: true,
                });
            }
            Mail::Close(close) => {
                self.release_held(true);
                self.close(close);
            }
        }
    }

    fn release_held(&mut self, all: bool) {
        let now = Instant::now();
        let Subscription {
            conflator, outbox, ..
        } = self;
        let mut out = |event| outbox.push_back(Entry::live(event));
        if all {
            conflator.flush(now, &mut out);
            // The timer was set for the held ticks. The next tick that does not wake the reader may be due sooner.
            self.set_timer();
        } else {
            conflator.release(now, now, &mut out);
        }
    }

    fn set_timer(&mut self) {
        let due = [
            Some(self.next_heartbeat),
            self.expires,
            self.conflator.next_due(),
        ]
        .into_iter()
        .flatten()
        .min();
        if let Some(due) = due {
            self.timer.set(due);
        }
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        self.end_if_expired_by(now);
        if self.ended {
            // Nothing follows the close message.
            return;
        }
        self.release_held(false);
        if self.next_heartbeat <= now {
            self.conflator.tidy(now);
            self.move_past_what_is_out_of_scope();
            let cursor = self.resume_cursor();
            self.push_control(Control::Heartbeat {
                cursor,
                at: Utc::now(),
            });
            self.next_heartbeat = now + self.shared.heartbeat;
        }
        self.set_timer();
    }

    /// Advances the cursor of a quiet channel with the school's log. Otherwise it would expire with the retention period.
    fn move_past_what_is_out_of_scope(&mut self) {
        // Read the head first: every event up to it is either in the mailbox or out of scope.
        let head = self.attachment.head();
        let wanted = self.plan.is_empty() && self.conflator.is_empty() && self.outbox.is_empty();
        if let Some(head) = head.filter(|_| wanted && self.attachment.mailbox().is_drained()) {
            self.position = self.position.max(head);
            self.safe = self.position;
        }
    }

    /// Updates the state for a delivery that leaves the outbox.
    fn delivered(&mut self, entry: Entry) -> Item {
        let Entry { mut item, moves_to } = entry;
        self.safe = moves_to.unwrap_or(self.safe);
        match &mut item {
            Item::Event(_) => self.log.count_events(1),
            Item::Control(control) => {
                if let Control::Ready(_) = **control {
                    // Additions are processed one at a time, so every acknowledged addition is complete.
                    self.backfill = None;
                }
                // The reader's place is known only now.
                control.stamp(self.resume_cursor());
            }
        }
        item
    }

    /// Returns the next delivery, or none at the end. `now` is the current time.
    pub fn poll_delivery(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Delivery>> {
        let item = self.poll_item(cx, now);
        item.map(|item| item.map(Delivery::from))
    }

    /// Whether another delivery may be ready although nothing has arrived in the mailbox since the last one.
    pub(crate) fn may_have_more(&self) -> bool {
        !self.outbox.is_empty() || !self.plan.is_empty() || self.ended
    }

    /// Like [`poll_delivery`](Subscription::poll_delivery).
    pub(crate) fn poll_item(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Item>> {
        loop {
            if let Some(entry) = self.outbox.pop_front() {
                return Poll::Ready(Some(self.delivered(entry)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if self.timer.poll(cx, now) {
                self.take_quiet_mail(cx);
                self.on_timer();
            } else if !self.plan.is_empty() {
                let step = self.poll_plan(cx);
                self.plan.free_if_empty();
                ready!(step);
            } else {
                // A snapshot that was sent again, or whose channels were removed, does not end with `ready`.
                self.awaits = None;
                let patience = self.conflator.patience();
                let Poll::Ready(mail) = self.attachment.mailbox().poll(cx, patience) else {
                    self.narrowed = false;
                    return Poll::Pending;
                };
                self.receive(mail, now, now);
            }
        }
    }
}

impl From<Item> for Delivery {
    fn from(item: Item) -> Delivery {
        match item {
            Item::Event(event) => Delivery::Event(event),
            Item::Control(control) => Delivery::Control(*control),
        }
    }
}

impl Entry {
    fn live(event: Arc<Event>) -> Entry {
        Entry {
            moves_to: Some(event.place()),
            item: Item::Event(event),
        }
    }
}

impl Stream for Subscription {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.poll_delivery(cx, Instant::now())
    }
}

#[cfg(test)]
mod tests;
