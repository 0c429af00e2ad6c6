//! A client, with its connections and cursors.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use fastrand::Rng;
use tidings::event::Event;
use tidings::hub::Reader as Who;
use tidings::id::{Channel, Cursor, SchoolId, SubjectId};
use tidings::scope::{Filter, Scope};
use tidings::subscribe::{Delivery, Request, Subscriber, Subscription};
use tidings::wire::{Close, Control};
use tokio::time::Instant;

use super::Fault;
use super::cursors::{Knowledge, Place};
use super::ledger::Ledger;
use super::line::{Line, Sessions};
use super::shadow::Shadow;

/// With the fault `LostWakeUp`, one wake-up out of this many gets lost. A short session is woken only a few times.
const LOST_WAKE_UP: u64 = 2;
/// Number of cursors that a reader remembers.
const PLACES: usize = 64;

/// Records whether a reader was woken since it last had nothing to do. Like a runtime, the simulation polls only
/// readers that were woken.
#[derive(Default)]
struct Alarm {
    rings: AtomicBool,
    wakes: AtomicU64,
    is_faulty: bool,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let wakes = self.wakes.fetch_add(1, Ordering::Relaxed);
        if !(self.is_faulty && wakes % LOST_WAKE_UP == LOST_WAKE_UP - 1) {
            self.rings.store(true, Ordering::Relaxed);
        }
    }
}

/// A client, with all of its sessions.
pub(super) struct Reader {
    scope: Scope,
    tick: Duration,
    session: Option<Session>,
    /// The cursor that it resumes from.
    cursor: Option<Cursor>,
    shadow: Shadow,
    knowledge: Knowledge,
    /// Cursors that it was sent.
    places: Vec<Place>,
    /// What it would listen to. A multiplexed client begins without channels, as if its `subscribe` had been rejected.
    wanted: Scope,
    /// The channel of its pending `subscribe`, and the place to resume the channel from.
    asked: Option<(Channel, Option<Place>)>,
    /// Its scope and knowledge before its `unsubscribe`, until that is acknowledged.
    left: Option<(Scope, Knowledge)>,
    /// Whether it currently reads nothing.
    pub(super) is_stalled: bool,
    fault: Option<Fault>,
    /// Total number of its deliveries.
    pub(super) deliveries: usize,
    /// Subjects that lost ticks in a power loss, with the head of the log after it. A tick up to that head may be
    /// missing, because the lost tick superseded it.
    excused: HashMap<SubjectId, u64>,
}

struct Session {
    line: Line,
    alarm: Arc<Alarm>,
    /// When its token expires.
    ends: Option<Instant>,
    /// Whether it has received the close message of an expired token.
    is_over: bool,
}

impl Reader {
    pub(super) fn new(
        school: SchoolId,
        channels: Vec<Channel>,
        filter: Filter,
        tick: Duration,
        is_multiplexed: bool,
        fault: Option<Fault>,
    ) -> Reader {
        let wanted = Scope::new(school, channels).filtered(filter);
        let scope = match is_multiplexed {
            true => Scope::new(school, []).filtered(wanted.filter.clone()),
            false => wanted.clone(),
        };
        Reader {
            scope,
            wanted,
            knowledge: Knowledge::default(),
            places: Vec::new(),
            asked: None,
            left: None,
            tick,
            session: None,
            cursor: None,
            shadow: Shadow {
                tells_all: tick.is_zero(),
                is_multiplexed,
                is_adding: false,
                last: 0,
                delivered: HashMap::new(),
                since: None,
                complete: 0,
                is_ready: false,
                must_reset: false,
                may_reset: false,
                lacks_states: false,
            },
            is_stalled: false,
            fault,
            deliveries: 0,
            excused: HashMap::new(),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    pub(super) fn is_multiplexed(&self) -> bool {
        self.shadow.is_multiplexed
    }

    pub(super) fn school(&self) -> SchoolId {
        self.scope.school
    }

    /// Records the events that a power loss removed.
    pub(super) fn note_loss(&mut self, lost: &[Arc<Event>], ledger: &Ledger) {
        let school = self.school();
        let head = ledger.head(school);
        for event in lost.iter().filter(|event| event.school == school) {
            self.excused.insert(event.subject.clone(), head);
        }
    }

    /// Records that a failover has removed events while it may be connected.
    pub(super) fn note_failover(&mut self, lost: &[Arc<Event>], ledger: &Ledger) {
        self.note_loss(lost, ledger);
        let head = ledger.head(self.school());
        if self
            .cursor
            .is_some_and(|cursor| self.is_of_lost_history(cursor, ledger))
        {
            self.shadow.must_reset = true;
        } else {
            self.shadow.complete = self.shadow.complete.min(head);
            self.shadow.delivered.retain(|_, seq| *seq <= head);
        }
        self.knowledge.cut(head);
        for place in &mut self.places {
            place.knowledge.cut(head);
            place.delivered.retain(|_, seq| *seq <= head);
        }
        // Current states leave out a subject whose newest event is younger, because that event follows. If it is lost, the
        // subject is missing. The session notices that something was lost, and starts over.
        let is_hit = lost.iter().any(|event| event.school == self.school());
        if self.session.is_some() {
            // If something waits for it, that may be a `reset`, and what follows has been read.
            self.shadow.may_reset |= is_hit && (!self.shadow.is_ready || self.rings());
            let lacks_states = |cursor| self.lacks_states(cursor, ledger);
            self.shadow.lacks_states |=
                !self.shadow.is_ready && self.cursor.is_some_and(lacks_states);
        }
    }

    /// Whether a client with this cursor lacks states, because the log has lost the event that it awaits.
    fn lacks_states(&self, cursor: Cursor, ledger: &Ledger) -> bool {
        cursor
            .awaits
            .is_some_and(|awaits| ledger.has_lost(self.school(), awaits))
    }

    fn is_of_lost_history(&self, cursor: Cursor, ledger: &Ledger) -> bool {
        ledger.has_lost(self.school(), cursor.place)
    }

    /// Records a cursor of a history that was lost, of which its node has not learned yet.
    fn is_astray(&mut self, cursor: Cursor) {
        self.shadow.must_reset = true;
        self.shadow.last = self.shadow.last.max(cursor.place.seq);
        if self.places.len() == PLACES {
            self.places.remove(PLACES / 2);
        }
        self.places.push(Place {
            cursor,
            scope: self.scope.clone(),
            knowledge: Knowledge::default(),
            delivered: HashMap::new(),
        });
    }

    /// Whether it was woken.
    pub(super) fn rings(&self) -> bool {
        let rings = |session: &Session| session.alarm.rings.load(Ordering::Relaxed);
        self.session.as_ref().is_some_and(rings)
    }

    /// Connects with its last cursor if it has one, or with any cursor that it was sent. A multiplexed client begins a
    /// session, if there are any.
    pub(super) fn connect(
        &mut self,
        subscriber: &Subscriber,
        sessions: Option<&Sessions>,
        ledger: &Ledger,
        rng: &mut Rng,
    ) {
        if self.is_multiplexed() {
            // As on the endpoint: what is delivered without a subscription begins at the current end of the log.
            self.scope = Scope::new(self.school(), []).filtered(self.scope.filter.clone());
            self.cursor = Some(ledger.end(self.school()));
            self.knowledge.forget();
            (self.asked, self.left) = (None, None);
        } else if let Some(place) = rng.choice(&self.places).filter(|_| rng.bool()) {
            self.cursor = Some(place.cursor);
            self.knowledge = place.knowledge.clone();
            self.shadow.delivered = place.delivered.clone();
        }
        if let Some(cursor) = self.cursor.filter(|_| !self.is_multiplexed()) {
            self.knowledge.is_complete(cursor.place.seq);
            self.shadow.last = cursor.place.seq;
        }
        let ttl = (rng.u8(0..4) == 0).then(|| Duration::from_millis(rng.u64(1..2_000)));
        let mut subscription = subscriber
            .open(Request {
                scope: self.scope.clone(),
                reader: Who {
                    transport: "simulation",
                    user: "reader".into(),
                    address: None,
                    peer: None,
                },
                from: self.cursor.map(|cursor| match self.fault {
                    Some(Fault::NumbersAlone) => Cursor::untagged(cursor.epoch, cursor.place.seq),
                    Some(Fault::NothingAwaited) => Cursor::new(cursor.epoch, cursor.place),
                    _ => cursor,
                }),
                tick: self.tick,
                expires_at: None,
                reconnects_until: None,
                welcome: None,
            })
            .unwrap();
        if let Some(ttl) = ttl.filter(|_| self.fault != Some(Fault::EndlessToken)) {
            expires_in(&mut subscription, ttl);
        }
        let lacks_states = self
            .cursor
            .is_some_and(|cursor| self.lacks_states(cursor, ledger));
        let shadow = &mut self.shadow;
        shadow.is_ready = false;
        shadow.is_adding = false;
        shadow.may_reset = false;
        match self.cursor {
            None => {
                self.knowledge.forget();
                shadow.begin_anew();
            }
            _ if self.scope.channels().is_empty() => shadow.begin_anew(),
            Some(cursor) if !ledger.knows(self.scope.school, cursor) => shadow.must_reset = true,
            Some(cursor) => {
                // An earlier session may have ended before it received its `reset`.
                shadow.must_reset = false;
                shadow.lacks_states = lacks_states;
                shadow.since = Some(cursor.place.seq);
                shadow.complete = cursor.place.seq;
            }
        }
        ledger.trace.note(format_args!(
            "{:?} connects from {:?}",
            self.scope.channels(),
            self.cursor
        ));
        let alarm = Arc::new(Alarm {
            rings: true.into(),
            is_faulty: self.fault == Some(Fault::LostWakeUp),
            ..Alarm::default()
        });
        let line = match sessions.filter(|_| self.is_multiplexed()) {
            Some(sessions) => sessions.begin(self.school(), subscription),
            None => Line::Subscription(Box::new(subscription)),
        };
        self.session = Some(Session {
            line,
            alarm,
            ends: ttl.map(|ttl| Instant::now() + ttl),
            is_over: false,
        });
    }

    /// Disconnects without a message.
    pub(super) fn leave(&mut self) {
        self.session = None;
        self.is_stalled = false;
    }

    /// Takes up to `limit` deliveries, while there are any. Returns whether there were any.
    pub(super) fn take(&mut self, limit: usize, ledger: &Ledger) -> Result<bool, String> {
        let mut took = false;
        for _ in 0..limit {
            let Some(session) = &mut self.session else {
                break;
            };
            session.alarm.rings.store(false, Ordering::Relaxed);
            let waker = Waker::from(Arc::clone(&session.alarm));
            let delivery = match session.line.poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => break,
                Poll::Ready(None) if session.is_over => {
                    self.leave();
                    return Ok(true);
                }
                Poll::Ready(None) => return Err("the stream ended".into()),
                Poll::Ready(Some(delivery)) => delivery,
            };
            // There may be more.
            session.alarm.rings.store(true, Ordering::Relaxed);
            took = true;
            self.deliveries += 1;
            let before = self.cursor;
            self.cursor = session.line.resume_cursor();
            ledger
                .trace
                .delivered(format_args!("{:?}", self.scope.channels()), &delivery);
            let has_ended = session.ends.is_some_and(|ends| ends <= Instant::now());
            match delivery {
                Delivery::Control(Control::Closing {
                    close: Close::TokenExpired,
                    ..
                }) if session.ends.is_some() => session.is_over = true,
                _ if has_ended || session.is_over => {
                    return Err("something was delivered after the token had ended".into());
                }
                Delivery::Event(event) if self.is_of_lost_history(event.cursor(), ledger) => {
                    if event.seq <= self.shadow.last {
                        return Err(format!(
                            "{} was delivered after {}",
                            event.seq, self.shadow.last
                        ));
                    }
                    self.is_astray(event.cursor());
                }
                Delivery::Event(event) => {
                    self.shadow.hear(&event, &self.scope, ledger)?;
                    let all = self.shadow.tells_all;
                    self.knowledge.hear(&event, all, &self.scope, ledger)?;
                    self.is_sent(event.cursor(), ledger)?;
                }
                Delivery::Control(control) => self.note(&control, before, ledger)?,
            }
        }
        Ok(took)
    }

    fn note(
        &mut self,
        control: &Control,
        before: Option<Cursor>,
        ledger: &Ledger,
    ) -> Result<(), String> {
        if let Control::Subscribed { .. } = control {
            self.now_hears(ledger);
        }
        // `subscribed` repeats the cursor that was asked for before the log is read.
        if let Control::Ready(cursor)
        | Control::Subscribed {
            cursor: Some(cursor),
            ..
        }
        | Control::Heartbeat {
            cursor: Some(cursor),
            ..
        } = control
            && self.is_of_lost_history(*cursor, ledger)
        {
            self.is_astray(*cursor);
            return Ok(());
        }
        let from = self.asked.as_ref().and_then(|(_, from)| from.as_ref());
        let school = self.scope.school;
        let is_foreign = from.is_some_and(|from| !ledger.knows(school, from.cursor));
        let places = [before, from.map(|from| from.cursor)];
        let at = places
            .into_iter()
            .flatten()
            .map(|cursor| cursor.place.seq)
            .min();
        let at = at.unwrap_or(0);
        self.shadow.must_reset |= is_foreign && matches!(control, Control::Reset(_));
        self.shadow.note(control, at, &self.scope, ledger)?;
        let cursor = match control {
            Control::Reset(_) => {
                self.knowledge.forget();
                if let Some((channel, from)) = &mut self.asked
                    && self.scope.channels().contains(channel)
                {
                    *from = None;
                }
                return Ok(());
            }
            Control::Unsubscribed { cursor, .. } => {
                let (Some((scope, knowledge)), Some(cursor)) = (self.left.take(), cursor) else {
                    return Ok(());
                };
                return knowledge.allows(*cursor, self.shadow.tells_all, &scope, ledger);
            }
            Control::Ready(cursor) => {
                // After a `reset`, `ready` may come before the requested channel is acknowledged.
                let channels = self.scope.channels();
                self.asked
                    .take_if(|(channel, _)| channels.contains(channel));
                Some(*cursor)
            }
            Control::Heartbeat { cursor, .. } => match self.fault {
                Some(Fault::CursorOfNothing) => cursor.or(Some(ledger.end(school))),
                _ => *cursor,
            },
            Control::Subscribed { cursor, .. } => *cursor,
            _ => None,
        };
        if let Some(cursor) = cursor {
            self.is_sent(cursor, ledger)?;
        }
        if let Control::Ready(cursor) = control {
            self.knowledge.is_complete(cursor.place.seq);
        }
        Ok(())
    }

    /// Checks that a cursor is safe for all subscribed channels or, if there are none, for those that the client wants.
    fn is_sent(&mut self, cursor: Cursor, ledger: &Ledger) -> Result<(), String> {
        if self.shadow.is_partial() && self.lacks_states(cursor, ledger) {
            return Ok(());
        }
        let scope = match self.scope.channels().is_empty() {
            true => &self.wanted,
            false => &self.scope,
        };
        self.knowledge
            .allows(cursor, self.shadow.tells_all, scope, ledger)?;
        if self.places.len() == PLACES {
            // Keep some old ones.
            self.places.remove(PLACES / 2);
        }
        self.places.push(Place {
            cursor,
            scope: scope.clone(),
            knowledge: self.knowledge.clone(),
            delivered: self.shadow.delivered.clone(),
        });
        Ok(())
    }

    /// Records that the requested channel is acknowledged.
    fn now_hears(&mut self, ledger: &Ledger) {
        if let Some((channel, from)) = self.asked.clone() {
            let known = from.filter(|from| ledger.knows(self.scope.school, from.cursor));
            let lacks_states = |from: &Place| self.lacks_states(from.cursor, ledger);
            self.shadow.lacks_states |= known.as_ref().is_some_and(lacks_states);
            self.begins_to_hear(&channel, known.as_ref());
            self.scope.add(channel);
        }
    }

    /// Sets what is known of a channel's subject to what was known at the cursor that the channel resumes from. What was delivered up
    /// to there is not delivered again.
    fn begins_to_hear(&mut self, channel: &Channel, from: Option<&Place>) {
        let Channel::Subject(_, subject) = channel else {
            return;
        };
        if let Some(from) = from
            && let Some(seq) = from.delivered.get(subject)
            && *seq <= from.cursor.place.seq
        {
            let delivered = self.shadow.delivered.entry(subject.clone()).or_default();
            *delivered = *seq.max(delivered);
        }
        let from = from.map(|from| (&from.knowledge, from.cursor.place.seq));
        self.knowledge.take_over(subject, from);
    }

    /// Subscribes to a channel, sometimes from a cursor that was sent for it, or unsubscribes from it.
    pub(super) fn change(&mut self, channel: Channel, rng: &mut Rng) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.line.is_busy() || self.asked.is_some() {
            // An endpoint reads no further messages meanwhile.
            return;
        }
        if self.scope.channels().contains(&channel) {
            self.left = Some((self.scope.clone(), self.knowledge.clone()));
            self.scope.remove(&channel);
            session.line.unsubscribe(channel);
            let scope = &self.scope;
            let hears = |subject: &SubjectId| {
                let subject_channel = Channel::Subject(tidings::kind::job::KIND, subject.clone());
                scope
                    .channels()
                    .iter()
                    .any(|channel| channel.covers(&subject_channel))
            };
            self.shadow.delivered.retain(|subject, _| hears(subject));
            self.knowledge.retain(hears);
        } else {
            let heard = |place: &&Place| place.scope.channels().contains(&channel);
            let places: Vec<&Place> = self.places.iter().filter(heard).collect();
            let from = rng.choice(places).filter(|_| rng.bool()).cloned();
            let cursor = from.as_ref().map(|from| from.cursor);
            self.asked = Some((channel.clone(), from));
            let cursor = match (self.fault, cursor) {
                (Some(Fault::LateAddition), Some(Cursor { epoch, place, .. })) => {
                    Some(Cursor::untagged(epoch, place.seq + 1))
                }
                _ => cursor,
            };
            session.line.subscribe(channel, cursor);
            self.shadow.is_ready = false;
        }
        session.alarm.rings.store(true, Ordering::Relaxed);
    }

    /// Renews its credential, if it can and is in time.
    pub(super) fn renew(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        let is_in_time = session.ends.is_none_or(|ends| ends > Instant::now());
        if is_in_time && !session.is_over && session.line.renew() {
            session.ends = None;
            session.alarm.rings.store(true, Ordering::Relaxed);
        }
    }

    /// Checks that it has received the last event of every subject. Nothing may be pending.
    pub(super) fn must_be_up_to_date(&self, ledger: &Ledger) -> Result<(), String> {
        if self.scope.channels().is_empty() {
            return Ok(());
        }
        if self.shadow.must_reset {
            return Err("it received no reset although its history was lost".into());
        }
        if !self.shadow.is_ready {
            let scope = self.scope.channels();
            return Err(format!("{scope:?} never received `ready`"));
        }
        let mut last: HashMap<SubjectId, u64> = HashMap::new();
        for seq in 1..=ledger.head(self.school()) {
            let event = ledger.event(self.school(), seq).expect("committed");
            if self.scope.matches(&event) {
                last.insert(event.subject.clone(), seq);
            }
        }
        for (subject, seq) in &last {
            let delivered = self.shadow.delivered.get(subject);
            let is_excused = || {
                let cut = self.excused.get(subject);
                let event = ledger.event(self.school(), *seq);
                let is_tick = event.is_some_and(|event| event.is_tick());
                !self.shadow.tells_all && is_tick && cut.is_some_and(|cut| seq <= cut)
            };
            if delivered != Some(seq) && !is_excused() {
                return Err(format!("of {subject} it knows {delivered:?}, not {seq}"));
            }
        }
        Ok(())
    }
}

/// Sets when the credential expires. The time is given by the wall clock, which goes on meanwhile, so it is set again
/// unless that took less than the margin. So it is the same in each run: tests let whole milliseconds pass.
fn expires_in(subscription: &mut Subscription, ttl: Duration) {
    const MARGIN: TimeDelta = TimeDelta::microseconds(500);
    loop {
        let asked = Utc::now();
        subscription.renew(Some(asked + ttl - MARGIN));
        if Utc::now() - asked < MARGIN {
            break;
        }
    }
}
