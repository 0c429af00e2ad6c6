//! Notifiers: readers of the log that tell somebody outside.
//!
//! A notifier is a cursor in each school's log, as a connection is, only that its cursor is kept in the
//! database: what happened while the receiver, or this server, was down is delivered afterwards. Whoever
//! publishes knows nothing of notifiers and never waits for one. Each has a task of its own, so a slow or dead
//! receiver delays nobody but itself, and what waits for it waits in the log, not in memory.
//!
//! ```text
//! committed events ─▶ Notifiers::observe ─▶ a school's name, if a notifier wants to hear
//!                                           └─▶ its task: read the log from its cursor ─▶ deliver ─▶ move the cursor
//! ```
//!
//! Delivery is at least once, in the order of each school's log, with an id to recognise a repetition by. A
//! failed attempt is repeated after a pause that doubles; meanwhile other schools have their turn. After the
//! last attempt, or a refusal, the event becomes a dead letter and the cursor moves on.

pub mod email;
pub mod mqtt;
pub mod notification;
pub mod webhook;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{SubsecRound, Utc};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep_until};

use self::notification::{DeliveryError, Medium, Notification, one_line};
use crate::config::notifiers::{NotifierSettings, Patience, Rule, is_name};
use crate::config::{NOTIFY_PAUSE_MAX, NOTIFY_ROUND};
use crate::event::Event;
use crate::id::{Channel, SchoolId};
use crate::kind::characteristic;
use crate::scope::Scope;
use crate::store::notifiers::{DeadLetter, Progress};
use crate::store::{Store, StoreError};
use crate::wire;

/// Somebody who is told of what happens. An application may add its own: see [`crate::Tidings::start_with`].
#[async_trait]
pub trait Notifier: Send + Sync + 'static {
    /// What its places in the logs are remembered by: 1 to 32 characters out of a-z 0-9 -.
    fn name(&self) -> &str;

    /// By what it delivers.
    fn medium(&self) -> &'static str;

    /// Whether it wants to hear of the event. Asked for every event: it should be quick.
    fn wants(&self, event: &Event) -> bool;

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
    wake: Notify,
}

/// Which schools have something to look at. Names of schools only: the events wait in the log.
#[derive(Default)]
struct Agenda {
    /// Something wanted happened.
    waiting: HashSet<SchoolId>,
    /// Something happened; to be looked at some time.
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
            Arc::new(Desk {
                notifier,
                store: Arc::clone(store),
                agenda: Mutex::default(),
                wake: Notify::new(),
            })
        };
        Notifiers {
            desks: notifiers.into_iter().map(desk).collect(),
        }
    }

    /// The tasks of the notifiers, to be spawned and aborted by the caller.
    pub fn tasks(&self) -> Vec<impl Future<Output = ()> + Send + use<>> {
        self.desks
            .iter()
            .map(|desk| Arc::clone(desk).run())
            .collect()
    }

    /// Takes note of committed events. Never waits.
    pub fn observe(&self, events: &[Arc<Event>]) {
        for desk in &self.desks {
            desk.observe(events);
        }
    }

    /// The notifiers, with what they are trying again in this school.
    pub fn shown(&self, school: SchoolId) -> Vec<Shown> {
        let shown = |desk: &Arc<Desk>| Shown {
            name: desk.notifier.name().to_owned(),
            medium: desk.notifier.medium(),
            retry: desk.agenda().failed.get(&school).copied(),
        };
        self.desks.iter().map(shown).collect()
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

impl Desk {
    fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.agenda.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, events: &[Arc<Event>]) {
        let mut wakes = false;
        let mut agenda = self.agenda();
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            let school = of_school[0].school;
            if of_school.iter().any(|event| self.notifier.wants(event)) {
                wakes |= agenda.waiting.insert(school);
            } else {
                agenda.moved.insert(school);
            }
        }
        drop(agenda);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Delivers until it is aborted.
    async fn run(self: Arc<Self>) {
        loop {
            match self.store.notifier_begins(self.notifier.name()).await {
                Ok(behind) => break self.agenda().waiting.extend(behind),
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    tracing::error!(%error, notifier.name = self.notifier.name(), "a notifier cannot begin");
                    tokio::time::sleep(NOTIFY_ROUND).await;
                }
            }
        }
        let mut round = Instant::now() + NOTIFY_ROUND;
        loop {
            if round <= Instant::now() {
                let mut agenda = self.agenda();
                let moved = std::mem::take(&mut agenda.moved);
                agenda.waiting.extend(moved);
                round = Instant::now() + NOTIFY_ROUND;
            }
            let Some((school, retry)) = self.next_school() else {
                let due = self.agenda().failed.values().map(|retry| retry.due).min();
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep_until(due.unwrap_or(round).min(round)) => {}
                }
                continue;
            };
            match self.turn(school, retry).await {
                Ok(Turn::Done | Turn::Failed) => {}
                Ok(Turn::More) => {
                    self.agenda().waiting.insert(school);
                }
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    tracing::error!(%error, notifier.name = self.notifier.name(), "a notifier cannot read the log");
                    self.agenda().waiting.insert(school);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// A school that has something to look at now, and what is to be tried again there.
    fn next_school(&self) -> Option<(SchoolId, Option<Retry>)> {
        let mut agenda = self.agenda();
        let now = Instant::now();
        let due = agenda.failed.iter().find(|(_, retry)| retry.due <= now);
        if let Some(school) = due.map(|(school, _)| *school) {
            return Some((school, agenda.failed.remove(&school)));
        }
        // A school whose delivery is to be tried again later waits for that.
        let ready = agenda
            .waiting
            .iter()
            .find(|school| !agenda.failed.contains_key(school));
        let school = ready.copied()?;
        agenda.waiting.remove(&school);
        Some((school, None))
    }

    /// Reads a page of a school's log and delivers what of it is wanted.
    async fn turn(&self, school: SchoolId, retry: Option<Retry>) -> Result<Turn, StoreError> {
        let name = self.notifier.name();
        let after = self.store.notifier_cursor(name, school).await?;
        let scope = Arc::new(Scope::new(school, [Channel::School(school)]));
        let page = self.store.replay(scope, after, false).await?;
        if after < page.floor {
            self.skip(school, after, page.floor).await?;
            return Ok(Turn::More);
        }
        for event in page
            .events
            .iter()
            .filter(|event| self.notifier.wants(event))
        {
            if !self.attempt(event, retry).await? {
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

    /// Makes one attempt to deliver an event. True if the cursor has moved past it.
    async fn attempt(&self, event: &Arc<Event>, retry: Option<Retry>) -> Result<bool, StoreError> {
        let (name, school) = (self.notifier.name(), event.school);
        let outcome = self.notifier.deliver(&self.notification(event)).await;
        let attempts = retry
            .filter(|retry| retry.seq == event.seq)
            .map_or(1, |retry| retry.attempts.saturating_add(1));
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
        let cause = format!("events {} to {floor} are past retention", after + 1);
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

    fn notification(&self, event: &Event) -> Notification {
        let name = self.notifier.name();
        let severity = characteristic::severity(&event.draft);
        Notification {
            id: format!("{}-{}-{}-{name}", event.epoch, event.school, event.seq),
            school_id: event.school.get(),
            kind: event.kind.collection(),
            subject: event.subject.to_string(),
            event_type: event.draft.event_type.name,
            status: event.draft.status,
            severity: severity.map(|severity| severity.as_str().to_owned()),
            at: event.at,
            json: wire::event_json(event, false),
        }
    }
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
