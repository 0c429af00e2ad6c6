//! Notifiers: readers of the log that tell somebody outside.
//!
//! A notifier is a cursor in each school's log, as a connection is, only that its cursor is kept in the
//! database: what happened while the receiver, or this server, was down is delivered afterwards. Whoever
//! publishes knows nothing of notifiers and never waits for one. Each has a task of its own, so a slow or dead
//! receiver delays nobody but itself, and what waits for it waits in the log, not in memory.
//!
//! ```text
//! committed events ─▶ Notifiers::observe ─▶ inbox ─▶ its task: is it wanted? then the school has a turn:
//!                                                    read the log from the cursor ─▶ deliver ─▶ move the cursor
//! ```
//!
//! Delivery is at least once, in the order of each school's log, with an id to recognise a repetition by. A
//! failed attempt is repeated after a pause that doubles; meanwhile other schools have their turn. After the
//! last attempt, or a refusal, the event becomes a dead letter and the cursor moves on.

pub mod email;
pub mod mqtt;
pub mod notification;
pub mod webhook;

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{SubsecRound, Utc};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};

use self::notification::{DeliveryError, Medium, Notification, bounded_title, one_line};
use crate::config::notifiers::{NotifierSettings, Patience, Rule, is_name};
use crate::config::{
    DELIVERY_MAX, NOTIFY_INBOX, NOTIFY_INBOX_BYTES, NOTIFY_PAUSE_MAX, NOTIFY_ROUND,
    NOTIFY_TURN_EVENTS,
};
use crate::event::Event;
use crate::id::{Channel, SchoolId};
use crate::kind::characteristic;
use crate::scope::Scope;
use crate::store::notifiers::{DeadLetter, Place, Progress, Tried};
use crate::store::{Store, StoreError};
use crate::wire;

/// Somebody who is told of what happens. An application may add its own: see [`crate::Tidings::start_with`].
#[async_trait]
pub trait Notifier: Send + Sync + 'static {
    /// What its places in the logs are remembered by: 1 to 32 characters out of a-z 0-9 -.
    fn name(&self) -> &str;

    /// By what it delivers.
    fn medium(&self) -> &'static str;

    /// Whether it wants to hear of the event. Asked for every event, by its own task.
    fn wants(&self, event: &Event) -> bool;

    /// Whether it may ever want to hear of a school. The API shows it to that school's administrators then.
    fn concerns(&self, _: SchoolId) -> bool {
        true
    }

    /// Makes one attempt, which must end by itself.
    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError>;

    /// When to try again, and when to give up.
    fn patience(&self) -> Patience {
        Patience::default()
    }
}

/// A notifier that settings describe.
struct Configured {
    name: String,
    rules: Vec<Rule>,
    patience: Patience,
    medium: Box<dyn Medium>,
}

/// A notifier's settings that cannot be used. No secret is in the text.
#[derive(Debug, thiserror::Error)]
#[error("notifier `{name}`: {problem}")]
pub struct NotifierError {
    /// Whose.
    pub name: String,
    /// What is wrong.
    pub problem: String,
}

/// The notifiers that settings describe.
pub fn configured(settings: &[NotifierSettings]) -> Result<Vec<Arc<dyn Notifier>>, NotifierError> {
    let one = |own: &NotifierSettings| -> Result<Arc<dyn Notifier>, NotifierError> {
        let medium = medium(own).map_err(|problem| NotifierError {
            name: own.name.clone(),
            problem,
        })?;
        Ok(Arc::new(Configured {
            name: own.name.clone(),
            rules: own.rules.clone(),
            patience: own.patience(),
            medium,
        }))
    };
    settings.iter().map(one).collect()
}

/// Checks that each has a name, and one of its own.
pub fn check_names(notifiers: &[Arc<dyn Notifier>]) -> Result<(), NotifierError> {
    for (index, notifier) in notifiers.iter().enumerate() {
        let name = notifier.name();
        let is_taken = notifiers[..index].iter().any(|other| other.name() == name);
        let problem = match () {
            () if !is_name(name) => "its name is not 1 to 32 characters out of a-z 0-9 -",
            () if is_taken => "its name is taken",
            () => continue,
        };
        return Err(NotifierError {
            name: name.to_owned(),
            problem: problem.into(),
        });
    }
    Ok(())
}

fn medium(settings: &NotifierSettings) -> Result<Box<dyn Medium>, String> {
    let name = &settings.name;
    if let Some(webhook) = &settings.webhook {
        Ok(Box::new(webhook::Webhook::new(webhook.clone())?))
    } else if let Some(email) = &settings.email {
        Ok(Box::new(email::Email::new(name, email.clone())?))
    } else if let Some(mqtt) = &settings.mqtt {
        Ok(Box::new(mqtt::Mqtt::new(name, mqtt.clone())?))
    } else {
        Err("needs one of webhook, email and mqtt".into())
    }
}

#[async_trait]
impl Notifier for Configured {
    fn name(&self) -> &str {
        &self.name
    }

    fn medium(&self) -> &'static str {
        self.medium.name()
    }

    fn wants(&self, event: &Event) -> bool {
        if self.rules.is_empty() {
            return !event.is_tick();
        }
        self.rules.iter().any(|rule| rule.hears(event))
    }

    fn concerns(&self, school: SchoolId) -> bool {
        let of_school = |rule: &Rule| rule.schools.is_empty() || rule.schools.contains(&school);
        self.rules.is_empty() || self.rules.iter().any(of_school)
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        self.medium.deliver(notification).await
    }

    fn patience(&self) -> Patience {
        self.patience
    }
}

/// All notifiers of a server.
pub struct Notifiers {
    desks: Vec<Arc<Desk>>,
}

/// A notifier and what waits for it.
struct Desk {
    notifier: Arc<dyn Notifier>,
    store: Arc<dyn Store>,
    agenda: Mutex<Agenda>,
    /// Committed events that the notifier is still to be asked about. It is never asked by the dispatcher: it may be
    /// an application's own, and slow, or panic.
    inbox: mpsc::Sender<Vec<Arc<Event>>>,
    /// Of the fields of what is in it.
    inbox_bytes: AtomicUsize,
    mail: Mutex<Option<mpsc::Receiver<Vec<Arc<Event>>>>>,
}

/// Which schools have something to look at. Names of schools only: the events wait in the log.
#[derive(Default)]
struct Agenda {
    /// In turn, each once.
    queue: VecDeque<SchoolId>,
    queued: HashSet<SchoolId>,
    /// Something happened that is not wanted; to be looked at some time.
    moved: HashSet<SchoolId>,
    /// A delivery failed, and is tried again then.
    failed: HashMap<SchoolId, Retry>,
}

/// A delivery that is to be tried again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Of which event.
    pub seq: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried again.
    pub due: Instant,
}

/// A notifier, as the API shows it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// By what it delivers.
    pub medium: &'static str,
    /// What is being tried again.
    pub retry: Option<Retry>,
}

impl Notifiers {
    /// These notifiers, reading this store.
    pub fn new(store: &Arc<dyn Store>, notifiers: Vec<Arc<dyn Notifier>>) -> Notifiers {
        let desk = |notifier| {
            let (inbox, mail) = mpsc::channel(NOTIFY_INBOX);
            Arc::new(Desk {
                notifier,
                store: Arc::clone(store),
                agenda: Mutex::default(),
                inbox,
                inbox_bytes: AtomicUsize::new(0),
                mail: Mutex::new(Some(mail)),
            })
        };
        Notifiers {
            desks: notifiers.into_iter().map(desk).collect(),
        }
    }

    /// The tasks of the notifiers, to be spawned and aborted by the caller, once.
    pub fn tasks(&self) -> Vec<impl Future<Output = ()> + Send + use<>> {
        let task = |desk: &Arc<Desk>| {
            let mail = desk
                .mail
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()?;
            Some(Arc::clone(desk).run(mail))
        };
        self.desks.iter().filter_map(task).collect()
    }

    /// Takes note of committed events. Never waits, and runs no code of a notifier's.
    pub fn observe(&self, events: &[Arc<Event>]) {
        let bytes = bytes(events);
        for desk in &self.desks {
            let waiting = desk.inbox_bytes.fetch_add(bytes, Ordering::Relaxed);
            let fits = waiting + bytes <= NOTIFY_INBOX_BYTES;
            if !fits || desk.inbox.try_send(events.to_vec()).is_err() {
                desk.inbox_bytes.fetch_sub(bytes, Ordering::Relaxed);
                // It is busy: it will look at these schools' logs without being asked what it wants of them.
                let mut agenda = desk.agenda();
                events.iter().for_each(|event| agenda.push(event.school));
            }
        }
    }

    /// The notifiers that may concern a school, with what they are trying again there.
    pub fn shown(&self, school: SchoolId) -> Vec<Shown> {
        let shown = |desk: &Arc<Desk>| Shown {
            name: desk.notifier.name().to_owned(),
            medium: desk.notifier.medium(),
            retry: desk.agenda().failed.get(&school).copied(),
        };
        let of_school = |desk: &&Arc<Desk>| desk.notifier.concerns(school);
        self.desks.iter().filter(of_school).map(shown).collect()
    }
}

/// What a turn came to.
enum Turn {
    /// All that was there is done.
    Done,
    /// There is more.
    More,
    /// An attempt failed.
    Failed,
}

impl Agenda {
    /// Lets a school have a turn after those that wait.
    fn push(&mut self, school: SchoolId) {
        if self.queued.insert(school) {
            self.queue.push_back(school);
        }
    }

    /// The school whose turn it is.
    fn pop(&mut self, now: Instant) -> Option<SchoolId> {
        let is_due = |retry: &Retry| retry.due <= now;
        let due = self.failed.iter().filter(|(_, retry)| is_due(retry));
        let due: Vec<SchoolId> = due.map(|(school, _)| *school).collect();
        due.into_iter().for_each(|school| self.push(school));
        while let Some(school) = self.queue.pop_front() {
            self.queued.remove(&school);
            match self.failed.get(&school) {
                None => return Some(school),
                Some(retry) if is_due(retry) => {
                    self.failed.remove(&school);
                    return Some(school);
                }
                // Its turn comes when the failed delivery is due.
                Some(_) => {}
            }
        }
        None
    }
}

impl Desk {
    fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.agenda.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the notifier wants to hear of the event. One that panics hears of it.
    fn wants(&self, event: &Event) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.notifier.wants(event))).unwrap_or(true)
    }

    fn sort(&self, events: &[Arc<Event>]) {
        self.inbox_bytes.fetch_sub(bytes(events), Ordering::Relaxed);
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            let school = of_school[0].school;
            let wanted = of_school.iter().any(|event| self.wants(event));
            let mut agenda = self.agenda();
            if wanted {
                agenda.push(school);
            } else {
                agenda.moved.insert(school);
            }
        }
    }

    /// Delivers until it is aborted.
    async fn run(self: Arc<Self>, mut mail: mpsc::Receiver<Vec<Arc<Event>>>) {
        loop {
            match self.store.notifier_begins(self.notifier.name()).await {
                Ok(behind) => {
                    let mut agenda = self.agenda();
                    break behind.into_iter().for_each(|school| agenda.push(school));
                }
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    tracing::error!(%error, notifier.name = self.notifier.name(), "a notifier cannot begin");
                    sleep(NOTIFY_ROUND).await;
                }
            }
        }
        let mut round = Instant::now() + NOTIFY_ROUND;
        loop {
            while let Ok(events) = mail.try_recv() {
                self.sort(&events);
            }
            if round <= Instant::now() {
                let mut agenda = self.agenda();
                let moved = std::mem::take(&mut agenda.moved);
                moved.into_iter().for_each(|school| agenda.push(school));
                round = Instant::now() + NOTIFY_ROUND;
            }
            let next = self.agenda().pop(Instant::now());
            let Some(school) = next else {
                let due = self.agenda().failed.values().map(|retry| retry.due).min();
                tokio::select! {
                    events = mail.recv() => match events {
                        Some(events) => self.sort(&events),
                        None => return,
                    },
                    () = sleep_until(due.unwrap_or(round).min(round)) => {}
                }
                continue;
            };
            match self.turn(school).await {
                Ok(Turn::Done | Turn::Failed) => {}
                Ok(Turn::More) => self.agenda().push(school),
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    tracing::error!(%error, notifier.name = self.notifier.name(), "a notifier cannot read the log");
                    self.agenda().push(school);
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Reads a page of a school's log and delivers of what is wanted as much as a turn allows.
    async fn turn(&self, school: SchoolId) -> Result<Turn, StoreError> {
        let name = self.notifier.name();
        let Place { seq: after, tried } = self.store.notifier_place(name, school).await?;
        let scope = Arc::new(Scope::new(school, [Channel::School(school)]));
        let page = self.store.replay(scope, after, false).await?;
        if after < page.floor {
            self.skip(school, after, page.floor).await?;
            return Ok(Turn::More);
        }
        let wanted = page.events.iter().filter(|event| self.wants(event));
        for (count, event) in wanted.enumerate() {
            if count == NOTIFY_TURN_EVENTS {
                return Ok(Turn::More);
            }
            if !self.attempt(event, tried).await? {
                return Ok(Turn::Failed);
            }
        }
        if page.through > after {
            let progress = Progress::default();
            self.store
                .notifier_moves(name, school, page.through, progress)
                .await?;
        }
        Ok(if page.through < page.head {
            Turn::More
        } else {
            Turn::Done
        })
    }

    /// Makes one attempt, which ends in time and cannot take this task with it.
    async fn deliver(&self, notification: Notification) -> Result<(), DeliveryError> {
        let notifier = Arc::clone(&self.notifier);
        // Ends with this future, whatever comes of it.
        let mut attempt = JoinSet::new();
        attempt.spawn(async move { notifier.deliver(&notification).await });
        match timeout(DELIVERY_MAX, attempt.join_next()).await {
            Ok(Some(Ok(outcome))) => outcome,
            Ok(_) => Err(DeliveryError::Temporary("the notifier panicked".into())),
            Err(_) => {
                let secs = DELIVERY_MAX.as_secs();
                Err(DeliveryError::Temporary(format!(
                    "the attempt did not end within {secs} s"
                )))
            }
        }
    }

    /// Makes one attempt to deliver an event. True if the cursor has moved past it.
    async fn attempt(&self, event: &Arc<Event>, tried: Option<Tried>) -> Result<bool, StoreError> {
        let (name, school) = (self.notifier.name(), event.school);
        let outcome = self.deliver(self.notification(event).await?).await;
        let attempts = tried
            .filter(|tried| tried.seq == event.seq)
            .map_or(1, |tried| tried.attempts.saturating_add(1));
        let now = Utc::now().trunc_subsecs(3);
        let Err(error) = outcome else {
            let progress = Progress {
                delivered: Some(now),
                ..Progress::default()
            };
            self.store
                .notifier_moves(name, school, event.seq, progress)
                .await?;
            return Ok(true);
        };
        let cause = one_line(&error.to_string());
        let patience = self.notifier.patience();
        let is_last = matches!(error, DeliveryError::Permanent(_)) || attempts >= patience.attempts;
        tracing::warn!(
            notifier.name = name, school.id = %school, event.seq = event.seq, attempts, cause, is_last,
            "a notification was not delivered"
        );
        let progress = Progress {
            failed: Some((now, cause.clone())),
            tried: (!is_last).then_some(Tried {
                seq: event.seq,
                attempts,
            }),
            dead: is_last.then(|| DeadLetter {
                seq: event.seq,
                event_type: event.draft.event_type.name.to_owned(),
                kind: event.kind.collection().to_owned(),
                subject: event.subject.to_string(),
                attempts,
                cause,
                at: now,
            }),
            ..Progress::default()
        };
        // A failed attempt that is not the last one leaves the cursor where it is.
        let moves_to = if is_last { event.seq } else { event.seq - 1 };
        self.store
            .notifier_moves(name, school, moves_to, progress)
            .await?;
        if !is_last {
            let retry = Retry {
                seq: event.seq,
                attempts,
                due: Instant::now() + pause(patience.pause, attempts),
            };
            self.agenda().failed.insert(school, retry);
        }
        Ok(is_last)
    }

    /// What was not delivered before the log forgot it is a dead letter, too.
    async fn skip(&self, school: SchoolId, after: u64, floor: u64) -> Result<(), StoreError> {
        let now = Utc::now().trunc_subsecs(3);
        let cause = format!(
            "events {} to {floor} are past retention; whether one of them was wanted is not known",
            after + 1
        );
        tracing::warn!(notifier.name = self.notifier.name(), school.id = %school, cause, "a notifier comes too late");
        let progress = Progress {
            dead: Some(DeadLetter {
                seq: floor,
                event_type: String::new(),
                kind: String::new(),
                subject: String::new(),
                attempts: 0,
                cause,
                at: now,
            }),
            ..Progress::default()
        };
        self.store
            .notifier_moves(self.notifier.name(), school, floor, progress)
            .await
    }

    async fn notification(&self, event: &Event) -> Result<Notification, StoreError> {
        let name = self.notifier.name();
        let severity = characteristic::severity(&event.draft);
        let (school, kind, subject) = (event.school, event.kind, event.subject.clone());
        // Not every event tells it. A subject that is past retention has none.
        let stored = self.store.subject(school, kind, subject).await?;
        let title = stored.and_then(|stored| stored.state.title());
        Ok(Notification {
            id: format!("{}-{}-{}-{name}", event.epoch, event.school, event.seq),
            school_id: event.school.get(),
            kind: event.kind.collection(),
            subject: event.subject.to_string(),
            title: title.as_deref().map(bounded_title),
            event_type: event.draft.event_type.name,
            status: event.draft.status,
            severity: severity.map(|severity| severity.as_str().to_owned()),
            at: event.at,
            json: wire::event_json(event, false),
        })
    }
}

fn bytes(events: &[Arc<Event>]) -> usize {
    events.iter().map(|event| event.draft.fields.len()).sum()
}

/// How long to wait after so many attempts: doubled each time, within bounds.
fn pause(first: Duration, attempts: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
    first.saturating_mul(doubled).min(NOTIFY_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound() {
        let first = Duration::from_secs(1);
        let secs: Vec<u64> = [1, 2, 3, 9, 10, 99]
            .map(|attempts| pause(first, attempts).as_secs())
            .into();
        assert_eq!(secs, [1, 2, 4, 256, 300, 300]);
    }
}
