//! Notifiers: readers of the log that tell somebody outside.
//!
//! A notifier is a cursor in each school's log, as a connection is, only that its cursor is kept in the
//! database: what happened while the receiver, or this server, was down is delivered afterwards.
//! A publisher knows nothing of notifiers and never waits for one. Each has a task of its own, so a slow or dead
//! receiver delays nobody but itself, and what waits for it waits in the log, not in memory.
//!
//! ```text
//! committed events ─▶ Notifiers::observe ─▶ inbox ─▶ its task: is it wanted? then the school has a turn:
//!                                                    read the log from the cursor ─▶ deliver ─▶ move the cursor
//! ```
//!
//! Delivery is at least once, in the order of each subject, with an id to recognise a repetition by. What a failed attempt
//! delays depends on whose fault it is ([`DeliveryError`]): an event that the receiver refuses is set aside, and only its
//! subject waits (see `set_aside.rs`); a receiver that is down is tried again after a pause that doubles, and the school waits.
//! After the last attempt, or a refusal for good, the event becomes a dead letter.

#[cfg(feature = "email")]
pub mod email;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg_attr(
    not(all(feature = "webhook", feature = "email", feature = "mqtt")),
    allow(dead_code, reason = "some of it only certain media use")
)]
pub mod notification;
mod runner;
mod schedule;
mod set_aside;
#[cfg(feature = "webhook")]
pub mod webhook;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::timeout;

use self::notification::{DeliveryError, Medium, Notification};
use self::runner::Runner;
pub use self::schedule::Retry;
use crate::config::NOTIFIER_STOP_MAX;
use crate::config::notifiers::{NotifierSettings, Patience, Rule, is_name};
use crate::event::Event;
use crate::feed::Feed;
use crate::id::SchoolId;
use crate::log::Store;
use crate::tasks::{Task, Tasks};

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

    /// Called once, inside Tokio, before the first attempt. It must not wait.
    fn start(&self) {}

    /// Called once when the server stops in order, after the last attempt, and given [`NOTIFIER_STOP_MAX`].
    async fn stop(&self) {}

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
    match (&settings.webhook, &settings.email, &settings.mqtt) {
        #[cfg(feature = "webhook")]
        (Some(own), _, _) => Ok(Box::new(webhook::Webhook::new(own.clone())?)),
        #[cfg(feature = "email")]
        (None, Some(own), _) => Ok(Box::new(email::Email::new(&settings.name, own.clone())?)),
        #[cfg(feature = "mqtt")]
        (None, None, Some(own)) => Ok(Box::new(mqtt::Mqtt::new(&settings.name, own.clone())?)),
        (None, None, None) => Err("needs one of webhook, email and mqtt".into()),
        #[cfg(not(all(feature = "webhook", feature = "email", feature = "mqtt")))]
        (webhook, email, _) => {
            let medium = match (webhook, email) {
                (Some(_), _) => "webhook",
                (None, Some(_)) => "email",
                (None, None) => "mqtt",
            };
            Err(format!(
                "`{medium}` is not built in: it needs Tidings' Cargo feature `{medium}`"
            ))
        }
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

    fn start(&self) {
        self.medium.start();
    }

    async fn stop(&self) {
        self.medium.stop().await;
    }

    fn patience(&self) -> Patience {
        self.patience
    }
}

/// All notifiers of a server.
pub struct Notifiers {
    runners: Vec<Arc<Runner>>,
}

async fn stop(notifier: &dyn Notifier) {
    if timeout(NOTIFIER_STOP_MAX, notifier.stop()).await.is_err() {
        let name = notifier.name();
        tracing::warn!(notifier.name = name, "a notifier did not stop in time");
    }
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
    /// Returns these notifiers. They read the logs through the feed, and keep their places in the store.
    pub fn new(
        store: &Arc<dyn Store>,
        feed: &Arc<Feed>,
        notifiers: Vec<Arc<dyn Notifier>>,
    ) -> Notifiers {
        let runner =
            |notifier| Arc::new(Runner::new(Arc::clone(store), Arc::clone(feed), notifier));
        Notifiers {
            runners: notifiers.into_iter().map(runner).collect(),
        }
    }

    /// Begins to deliver, until `tasks` end. What is under way then is tried again after the next start. A notifier that
    /// panics over and over does not make the server unready: the server serves everybody else.
    pub fn start(&self, tasks: &Tasks) {
        for runner in &self.runners {
            let name = format!("notifier {}", runner.notifier().name());
            let (runner, token) = (Arc::clone(runner), tasks.token().clone());
            tasks.supervise(Task::new(name).optional().ends_itself(), move || {
                let (runner, token) = (Arc::clone(&runner), token.clone());
                async move {
                    if token.run_until_cancelled(runner.run()).await.is_none() {
                        stop(runner.notifier()).await;
                    }
                }
            });
        }
    }

    /// Takes note of committed events. Never waits, and runs no code of a notifier's.
    pub fn observe(&self, events: &[Arc<Event>]) {
        self.runners
            .iter()
            .for_each(|runner| runner.observe(events));
    }

    /// The notifiers that may concern a school, with what they are trying again there.
    pub fn shown(&self, school: SchoolId) -> Vec<Shown> {
        let shown = |runner: &Arc<Runner>| Shown {
            name: runner.notifier().name().to_owned(),
            medium: runner.notifier().medium(),
            retry: runner.retry(school),
        };
        let of_school = |runner: &&Arc<Runner>| runner.notifier().concerns(school);
        self.runners.iter().filter(of_school).map(shown).collect()
    }
}
