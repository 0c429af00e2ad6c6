//! The use case *subscribe*: a connection is a cursor plus a mailbox.
//!
//! ```text
//! attach ─▶ connected ─▶ [reset] ─▶ snapshot or replay ─▶ ready ─▶ live ─┬─▶ closing
//!                          ▲                                 ▲            │ lagging: replay from the own cursor
//!                          └── the cursor is not honoured    └────────────┘
//! ```
//!
//! A [`Subscription`] is a stream of [`Delivery`]s; the transports differ only in how they write them down.
//! It attaches to the hub before it reads the store (invariant 5), tells every `seq` at most once and in
//! order or says `reset` (invariant 3), and ends with its credential (invariant 7). What it holds is
//! bounded: a page of the store, a mailbox, held ticks (invariant 6). Timers and waits are polled, not
//! spawned: an idle subscription is one small struct and no task of its own.

mod catch_up;
mod folder;
mod life;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_core::Stream;
use futures_core::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::time::{Instant, Sleep, sleep_until};

use self::catch_up::{Added, Addition, Step};
use self::folder::Folder;
use self::life::Life;
use crate::config::{Ceilings, Settings};
use crate::event::Event;
use crate::feed::Feed;
use crate::hub::mailbox::Mail;
use crate::hub::{Attachment, Hub, HubFull, Reader};
use crate::id::{Channel, Cursor, Kind, Place};
use crate::log::{Page, StoreError};
use crate::scope::Scope;
use crate::wire::{Close, Control};

/// What somebody wants to hear.
#[derive(Debug, Clone)]
pub struct Request {
    /// What.
    pub scope: Scope,
    /// Who asks, and by which way it is told.
    pub reader: Reader,
    /// From where; from a snapshot if absent.
    pub from: Option<Cursor>,
    /// Least time between two ticks of a subject. Zero: every retained event, live and in replay.
    pub tick: Duration,
    /// When the credential ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// Until when a client can come back with it, if that is not as long as it lasts.
    pub returns_until: Option<DateTime<Utc>>,
    /// Whether to begin with `connected`, and what the endpoint says in it beside.
    pub greet: Option<Map<String, Value>>,
}

/// One thing to be written down for the client.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// An event or a snapshot.
    Event(Arc<Event>),
    /// Anything else. [`Control::Closing`] is the last.
    Control(Control),
}

/// Opens subscriptions.
#[derive(Clone)]
pub struct Subscriber {
    feed: Arc<Feed>,
    hub: Arc<Hub>,
    heartbeat: Duration,
    replay_max_events: u64,
    ceilings: Ceilings,
}

/// A delivery that waits its turn.
struct Entry {
    delivery: Delivery,
    /// Where a reader stands who has had it. Nothing for what tells of added channels only, and for most
    /// control messages.
    moves_to: Option<Place>,
}

type Reading = BoxFuture<'static, Result<Option<Page>, StoreError>>;

/// A stream of deliveries; see the module's page.
pub struct Subscription {
    subscriber: Subscriber,
    attachment: Attachment,
    scope: Arc<Scope>,
    folder: Folder,
    /// To be delivered next, in order.
    outbox: VecDeque<Entry>,
    plan: VecDeque<Step>,
    reading: Option<Reading>,
    settling: Option<BoxFuture<'static, ()>>,
    /// Everything in scope up to here was told, is superseded, or is held by the folder.
    position: Place,
    /// The position is what the client says: the log may have another event there.
    is_claimed: bool,
    /// Where a reader stands who has had everything that left the outbox.
    safe: Place,
    /// Until added channels are brought up to date: where a reader of all must come back to.
    backfill: Option<Place>,
    /// Of the wide events that are on no channel, those after this `seq` are told, each in its turn.
    wide_from: u64,
    /// Channels were left: what is under way must be looked at again.
    narrowed: bool,
    next_heartbeat: Instant,
    expires: Option<Instant>,
    returns_until: Option<DateTime<Utc>>,
    timer: Pin<Box<Sleep>>,
    /// Nothing follows what is in the outbox: what is planned is not looked at any more.
    ended: bool,
    life: Life,
}

impl Subscriber {
    /// Subscribes to what this feed reads and this hub offers.
    pub fn new(feed: Arc<Feed>, hub: Arc<Hub>, settings: &Settings) -> Subscriber {
        Subscriber {
            feed,
            hub,
            heartbeat: settings.heartbeat(),
            replay_max_events: settings.replay_max_events,
            ceilings: settings.ceilings(),
        }
    }

    /// What it reads.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Opens a subscription.
    pub fn open(&self, request: Request) -> Result<Subscription, HubFull> {
        let Request {
            scope,
            reader,
            from,
            tick,
            expires_at,
            returns_until,
            greet,
        } = request;
        let folder = Folder::new(tick);
        // Attach before reading the store: an event committed in between would be in neither.
        let attachment = self
            .hub
            .attach(&scope, reader.clone(), folder.folds(), &self.ceilings)?;
        let life = Life::begin(&scope, &reader);
        let scope = Arc::new(scope);
        let now = Instant::now();
        let mut subscription = Subscription {
            attachment,
            folder,
            outbox: VecDeque::new(),
            plan: VecDeque::new(),
            reading: None,
            settling: None,
            position: Place::default(),
            is_claimed: false,
            safe: Place::default(),
            backfill: None,
            wide_from: 0,
            narrowed: false,
            next_heartbeat: now + self.heartbeat,
            expires: None,
            returns_until,
            timer: Box::pin(sleep_until(now + self.heartbeat)),
            ended: false,
            life,
            subscriber: self.clone(),
            scope,
        };
        subscription.renew(expires_at);
        subscription.safe = subscription.known(from).unwrap_or_default();
        if let Some(also) = greet {
            subscription.say(Control::Connected {
                school: subscription.scope.school,
                channels: subscription
                    .scope
                    .channels()
                    .iter()
                    .map(Channel::to_string)
                    .collect(),
                cursor: subscription.cursor(subscription.safe),
                heartbeat_secs: self.heartbeat.as_secs(),
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
        }
        if !subscription.scope.channels().is_empty() {
            subscription.plan.push_back(Step::Ready);
        }
        Ok(subscription)
    }
}

impl Subscription {
    /// What is listened to.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The cursor to come back with if the stream breaks now. Without a channel there is none: whatever is subscribed to
    /// later has not been told up to any place.
    pub fn resume_cursor(&self) -> Option<Cursor> {
        if self.scope.channels().is_empty() {
            return None;
        }
        let safe = self
            .backfill
            .map_or(self.safe, |backfill| backfill.min(self.safe));
        Some(self.cursor(safe))
    }

    /// Sets the end of the credential.
    pub fn renew(&mut self, expires_at: Option<DateTime<Utc>>) {
        self.expires =
            expires_at.map(|end| Instant::now() + (end - Utc::now()).to_std().unwrap_or_default());
        self.set_timer();
    }

    /// Says something between two events.
    pub fn say(&mut self, control: Control) {
        self.push(Delivery::Control(control), None);
    }

    /// Ends the stream here if its credential has ended; what was not delivered yet never is.
    pub fn end_if_expired(&mut self) {
        if !self.ended
            && self
                .expires
                .is_some_and(|expires| expires <= Instant::now())
        {
            self.outbox.clear();
            self.close(Close::TokenExpired);
        }
    }

    /// The farewell: it promises a reconnection only if the client can come back with what it came with.
    pub fn closing(&self, close: Close) -> Control {
        let pause = Duration::from_millis(close.retry_ms().unwrap_or(0));
        let is_valid = self
            .returns_until
            .is_none_or(|until| Utc::now() + pause <= until);
        // The code itself says that the credential has ended: a client that comes back brings another.
        let outlasts = |end| close == Close::TokenExpired || Instant::now() + pause < end;
        Control::Closing {
            close,
            can_return: is_valid && self.expires.is_none_or(outlasts),
        }
    }

    /// Ends the stream after what has been said.
    pub fn close(&mut self, close: Close) {
        let closing = self.closing(close);
        self.say(closing);
        self.ended = true;
        self.life.ends(close.reason());
    }

    /// Notes, for the log, why the transport lets go of it.
    pub fn ends(&mut self, reason: &'static str) {
        self.life.ends(reason);
    }

    /// Listens to more: from `cursor`, or from a snapshot; and to the `wide` events of a kind. What is under way is told
    /// first. Then `asked` is acknowledged, and `ready` follows.
    pub fn subscribe(
        &mut self,
        channels: Vec<Channel>,
        cursor: Option<Cursor>,
        asked: Map<String, Value>,
        wide: Option<Kind>,
    ) {
        // The state that is told of the new channels is the present one.
        self.plan.push_back(Step::catch_up());
        self.plan.push_back(Step::Add(Box::new(Addition {
            channels,
            cursor,
            asked,
            wide,
        })));
    }

    /// Listens to more. What was listened to before is told up to the position, and waits there until the new channels are
    /// told up to it, too: so every event that is told has a cursor that is safe for all of them.
    fn add(&mut self, addition: Addition) {
        let Addition {
            channels,
            cursor,
            asked,
            wide,
        } = addition;
        // Held ticks come before whatever is told from now on.
        self.release_held(true);
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
            // A snapshot says itself where it ends.
            self.wide_from = match first {
                true => from.seq,
                false => self.position.seq,
            };
        }
        let beside = Added {
            beside: Arc::clone(&self.scope),
            wide_from: self.wide_from,
        };
        // Attach before reading the store, here too.
        self.attachment.listen(added.iter().cloned());
        let all = Arc::make_mut(&mut self.scope);
        added.iter().for_each(|channel| all.add(channel.clone()));
        // It is stamped when it is told.
        self.say(Control::Subscribed {
            asked,
            cursor: None,
        });
        let mut steps = Vec::new();
        if added.is_empty() {
            // Nothing changes.
        } else if first {
            self.safe = from;
            steps.push(self.start(cursor));
        } else {
            self.backfill = Some(self.backfill.map_or(from, |backfill| backfill.min(from)));
            if let Some(after) = known {
                // What is replayed now has the wide events after its cursor, too.
                self.wide_from = self.wide_from.min(after.seq);
            }
            let new = Arc::new(self.scope.with_channels(added));
            steps.push(match (known, cursor) {
                (Some(after), _) => Step::replay(new, beside, after),
                (None, None) => Step::snapshot_beside(new, beside),
                // A `reset` is about all that is listened to.
                (None, Some(_)) => self.start(cursor),
            });
            // What has happened meanwhile, of all. A state that was newer than the position when it was read is among it.
            steps.push(Step::catch_up());
        }
        if !self.scope.channels().is_empty() {
            steps.push(Step::Ready);
        }
        steps
            .into_iter()
            .rev()
            .for_each(|step| self.plan.push_front(step));
    }

    /// Hears the wide events of a kind from now on.
    pub fn hear_wide(&mut self, kind: Kind) {
        // What is under way would move the position past them.
        if self.scope.wide().is_none() && self.plan.is_empty() {
            self.attachment.listen_to_wide(kind);
            self.scope = Arc::new(Scope::clone(&self.scope).with_wide(kind));
            self.wide_from = self.position.seq;
        }
    }

    /// Hears no wide events any more but those on its channels.
    pub fn leave_wide(&mut self) {
        if self.scope.wide().is_some() {
            self.attachment.unlisten_wide();
            self.scope = Arc::new(Scope::clone(&self.scope).without_wide());
            self.forget_unheard();
            self.narrow_steps(|scope| *scope = scope.clone().without_wide());
        }
    }

    /// Takes back what waits to be told and is not listened to any more.
    fn forget_unheard(&mut self) {
        self.narrowed = true;
        let scope = Arc::clone(&self.scope);
        self.folder.retain(|event| scope.hears(event));
        self.outbox.retain(
            |entry| !matches!(&entry.delivery, Delivery::Event(event) if !scope.hears(event)),
        );
    }

    /// Tells the present state of channels that are listened to already once more.
    pub fn tell_again(&mut self, channels: Vec<Channel>) {
        self.release_held(true);
        let again = Arc::new(self.scope.with_channels(channels));
        let nothing = Added {
            beside: Arc::new(Scope::new(self.scope.school, [])),
            wide_from: self.wide_from,
        };
        self.plan.push_back(Step::catch_up());
        self.plan.push_back(Step::snapshot_beside(again, nothing));
    }

    /// Whether it has enough to do: an acknowledgement has not been told yet. Nothing more is asked for meanwhile, or a
    /// client that asks faster than it can be told could have any amount kept, and answers would not come in turn.
    pub fn is_busy(&self) -> bool {
        let owes = |entry: &Entry| {
            matches!(
                entry.delivery,
                Delivery::Control(Control::Subscribed { .. } | Control::Unsubscribed { .. })
            )
        };
        let waits = |step: &Step| matches!(step, Step::Add(_));
        self.plan.iter().any(waits) || self.outbox.iter().any(owes)
    }

    /// Listens to less.
    pub fn unsubscribe(&mut self, channels: &[Channel], asked: Map<String, Value>) {
        // Of what waits to be told, the part that is left now never is: so it is not the place where the rest will stand.
        let cursor = self.resume_cursor();
        for channel in channels {
            self.attachment.unlisten(channel);
            Arc::make_mut(&mut self.scope).remove(channel);
        }
        self.forget_unheard();
        // What was held behind what is forgotten may be due.
        self.release_held(false);
        self.set_timer();
        self.narrow_plan(channels);
        self.say(Control::Unsubscribed { asked, cursor });
    }

    fn push(&mut self, delivery: Delivery, moves_to: Option<Place>) {
        self.outbox.push_back(Entry { delivery, moves_to });
    }

    /// The place that a cursor names, if it is of this database.
    fn known(&self, cursor: Option<Cursor>) -> Option<Place> {
        cursor.and_then(|cursor| self.subscriber.feed.place(cursor))
    }

    fn cursor(&self, place: Place) -> Cursor {
        Cursor {
            epoch: self.subscriber.feed.epoch(),
            place,
        }
    }

    fn deliver(&mut self, event: Arc<Event>) {
        let moves_to = Some(event.place());
        self.push(Delivery::Event(event), moves_to);
    }

    /// What has come in without a word since ticks are held takes their place before they are let go.
    fn take_quiet_mail(&mut self, cx: &mut Context<'_>) {
        let due = self.folder.next_due();
        if let Some(due) = due.filter(|_| self.plan.is_empty())
            && let Poll::Ready(mail) = self.attachment.mailbox().poll(cx, true)
        {
            let before = due - Duration::from_nanos(1);
            self.receive(mail, before);
        }
    }

    /// Takes live mail in, which came by `then` if not now.
    fn receive(&mut self, mail: Mail, then: Instant) {
        match mail {
            Mail::Events(events) => {
                let now = Instant::now();
                let arrived = then.min(now);
                for event in events {
                    if event.seq <= self.position.seq {
                        continue;
                    }
                    self.position = event.place();
                    if self.narrowed && !self.scope.hears(&event) {
                        continue;
                    }
                    let Subscription { folder, outbox, .. } = self;
                    folder.push(event, arrived, now, &mut |event| {
                        outbox.push_back(Entry::live(event))
                    });
                }
                self.set_timer();
            }
            Mail::Lagging => {
                // Held ticks come before what is replayed now.
                self.release_held(true);
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
        let Subscription { folder, outbox, .. } = self;
        let mut out = |event| outbox.push_back(Entry::live(event));
        if all {
            folder.flush(now, &mut out);
        } else {
            folder.release(now, now, &mut out);
        }
    }

    fn set_timer(&mut self) {
        let due = [
            Some(self.next_heartbeat),
            self.expires,
            self.folder.next_due(),
        ]
        .into_iter()
        .flatten()
        .min();
        if let Some(due) = due.filter(|due| *due != self.timer.deadline()) {
            self.timer.as_mut().reset(due);
        }
    }

    fn on_timer(&mut self) {
        self.end_if_expired();
        if self.ended {
            // Nothing follows the farewell.
            return;
        }
        let now = Instant::now();
        self.release_held(false);
        if self.next_heartbeat <= now {
            self.folder.tidy(now);
            self.move_past_what_is_out_of_scope();
            let cursor = self.resume_cursor();
            self.say(Control::Heartbeat {
                cursor,
                at: Utc::now(),
            });
            self.next_heartbeat = now + self.subscriber.heartbeat;
        }
        self.set_timer();
    }

    /// A quiet channel's cursor goes with the school's log, or it would run out of retention.
    fn move_past_what_is_out_of_scope(&mut self) {
        // The head first: what was offered up to it is either in the mailbox or not for us.
        let head = self.attachment.head();
        let told = self.plan.is_empty() && self.folder.is_empty() && self.outbox.is_empty();
        if let Some(head) = head.filter(|_| told && self.attachment.mailbox().is_drained()) {
            self.position = self.position.max(head);
            self.safe = self.position;
        }
    }

    /// Takes note of what leaves the outbox.
    fn delivered(&mut self, entry: Entry) -> Delivery {
        let Entry {
            mut delivery,
            moves_to,
        } = entry;
        self.safe = moves_to.unwrap_or(self.safe);
        if let Delivery::Event(_) = &delivery {
            self.life.count_event();
        }
        if let Delivery::Control(control) = &mut delivery {
            if let Control::Ready(_) = control {
                // Additions come one after the other: none that was acknowledged is incomplete.
                self.backfill = None;
            }
            // Where the reader stands is known only now.
            control.stamp(self.resume_cursor());
        }
        if self.outbox.is_empty() {
            // An idle connection keeps no buffer.
            self.outbox = VecDeque::new();
        }
        delivery
    }
}

impl Entry {
    fn live(event: Arc<Event>) -> Entry {
        Entry {
            moves_to: Some(event.place()),
            delivery: Delivery::Event(event),
        }
    }
}

impl Stream for Subscription {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let this = &mut *self;
        loop {
            if let Some(entry) = this.outbox.pop_front() {
                return Poll::Ready(Some(this.delivered(entry)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            if this.timer.as_mut().poll(cx).is_ready() {
                this.take_quiet_mail(cx);
                this.on_timer();
            } else if !this.plan.is_empty() {
                ready!(this.poll_plan(cx));
            } else {
                // A tick is told after those that are held, so that none needs attention before they are due.
                let patient = !this.folder.is_empty();
                let mail = ready!(this.attachment.mailbox().poll(cx, patient));
                this.receive(mail, Instant::now());
            }
        }
    }
}
