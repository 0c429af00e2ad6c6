//! Notifiers: readers of the log that deliver events to other systems.
//!
//! Like a connection, a notifier has a cursor in each school's log. Its cursor is kept in the database, so events from
//! a downtime of the receiver, or of this server, are delivered afterwards. Publishers do not know notifiers and never
//! wait for them. Each notifier has its own task, so a slow or dead receiver delays only its own
//! notifier. Events wait in the log, not in memory.
//!
//! ```text
//! committed events ─▶ Notifiers::observe ─▶ inbox ─▶ its task: does an event match? then the school gets a turn:
//!                                                    read the log from the cursor ─▶ deliver ─▶ move the cursor
//! ```
//!
//! Delivery is at least once, with an id to detect duplicates. The events of each subject arrive in order. What a failed
//! attempt delays depends on its cause ([`DeliveryError`]): an event that the receiver rejects is set aside, and only its
//! subject waits (see `set_aside.rs`). A receiver that is down is retried after a pause that doubles, and the school waits.
//! After the last attempt, or a permanent rejection, the event becomes a dead letter.
//!
//! Of several nodes, one delivers for each notifier: see `runner.rs`.

#[cfg(feature = "email")]
pub mod email;
#[cfg(feature = "webhook")]
pub mod home_assistant;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg_attr(
    not(all(feature = "webhook", feature = "email", feature = "mqtt")),
    allow(dead_code, reason = "some of it only certain media use")
)]
pub mod notification;
#[cfg(feature = "webhook")]
pub mod ntfy;
mod pace;
#[cfg(feature = "webhook")]
mod post;
mod runner;
mod schedule;
mod set_aside;
#[cfg(feature = "webhook")]
mod summary;
#[cfg(feature = "webhook")]
pub mod webhook;

use std::sync::Arc;

use async_trait::async_trait;

use self::notification::{DeliveryError, Medium, Notification};
use self::pace::Pace;
use self::runner::Runner;
pub use self::schedule::Retry;
use crate::config::notifiers::{NotifierSettings, RetryPolicy, Rule, is_name};
use crate::event::Event;
use crate::feed::Feed;
use crate::id::SchoolId;
use crate::lease;
use crate::log::Store;
use crate::tasks::{Task, Tasks};

/// Delivers events to another system. Applications can add their own notifiers: see [`crate::Tidings::start_with`].
#[async_trait]
pub trait Notifier: Send + Sync + 'static {
    /// Returns the name under which its cursors are stored: 1 to 32 characters from `a-z`, `0-9` and `-`.
    fn name(&self) -> &str;

    /// Returns the name of the medium that it delivers through.
    fn medium(&self) -> &'static str;

    /// Whether it delivers the event. Its own task calls this for every event.
    fn wants(&self, event: &Event) -> bool;

    /// Whether it may ever deliver events of a school. The API then shows it to that school's administrators.
    fn concerns(&self, _: SchoolId) -> bool {
        true
    }

    /// Whether to deliver an event that it wants, given what was delivered before. Called when it is the event's turn. An
    /// event that is not due is never delivered.
    fn is_due(&self, _: &Event) -> bool {
        true
    }

    /// Called after an event was delivered.
    fn delivered(&self, _: &Event) {}

    /// Makes one attempt to deliver. The attempt must end by itself.
    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError>;

    /// Called inside Tokio when this node begins to deliver, before the first attempt. It must not block.
    fn start(&self) {}

    /// Called after the last attempt, when the server shuts down or another node takes over. In the latter case,
    /// [`start`](Notifier::start) may be called again later. It must end within
    /// [`NOTIFIER_STOP_MAX`](crate::config::NOTIFIER_STOP_MAX).
    async fn stop(&self) {}

    /// Returns how often and when a failed delivery is retried.
    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy::default()
    }
}

/// A notifier that the settings define.
struct Configured {
    name: String,
    rules: Vec<Rule>,
    retry_policy: RetryPolicy,
    medium: Box<dyn Medium>,
    pace: Pace,
}

/// Settings of a notifier that cannot be used. The text contains no secret.
#[derive(Debug, thiserror::Error)]
#[error("notifier `{name}`: {problem}")]
pub struct NotifierError {
    /// The notifier's name.
    pub name: String,
    /// What is wrong.
    pub problem: String,
}

/// Creates the notifiers that the settings define.
pub fn configured(settings: &[NotifierSettings]) -> Result<Vec<Arc<dyn Notifier>>, NotifierError> {
    let one = |notifier: &NotifierSettings| -> Result<Arc<dyn Notifier>, NotifierError> {
        let medium = medium(notifier).map_err(|problem| NotifierError {
            name: notifier.name.clone(),
            problem,
        })?;
        Ok(Arc::new(Configured {
            name: notifier.name.clone(),
            rules: notifier.rules.clone(),
            retry_policy: notifier.retry_policy(),
            medium,
            pace: Pace::default(),
        }))
    };
    settings.iter().map(one).collect()
}

/// Checks that each notifier has a valid and unique name.
pub fn check_names(notifiers: &[Arc<dyn Notifier>]) -> Result<(), NotifierError> {
    for (index, notifier) in notifiers.iter().enumerate() {
        let name = notifier.name();
        let is_taken = notifiers[..index]
            .iter()
            .any(|earlier| earlier.name() == name);
        let problem = match () {
            () if !is_name(name) => "its name must have 1 to 32 characters from a-z, 0-9 and `-`",
            () if is_taken => "its name is used by another notifier",
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
    let NotifierSettings {
        webhook,
        email,
        mqtt,
        ntfy,
        home_assistant,
        ..
    } = settings;
    match (webhook, email, mqtt, ntfy, home_assistant) {
        #[cfg(feature = "webhook")]
        (Some(webhook), ..) => Ok(Box::new(webhook::Webhook::new(webhook.clone())?)),
        #[cfg(feature = "email")]
        (None, Some(email), ..) => Ok(Box::new(email::Email::new(&settings.name, email.clone())?)),
        #[cfg(feature = "mqtt")]
        (None, None, Some(mqtt), ..) => {
            Ok(Box::new(mqtt::Mqtt::new(&settings.name, mqtt.clone())?))
        }
        #[cfg(feature = "webhook")]
        (None, None, None, Some(ntfy), _) => Ok(Box::new(ntfy::Ntfy::new(ntfy.clone())?)),
        #[cfg(feature = "webhook")]
        (None, None, None, None, Some(home_assistant)) => Ok(Box::new(
            home_assistant::HomeAssistant::new(home_assistant.clone())?,
        )),
        (None, None, None, None, None) => Err(
            "must have exactly one of `webhook`, `email`, `mqtt`, `ntfy` and `home_assistant`"
                .into(),
        ),
        #[cfg(not(all(feature = "webhook", feature = "email", feature = "mqtt")))]
        (webhook, email, mqtt, ntfy, _) => {
            let (medium, feature) = match (webhook, email, mqtt, ntfy) {
                (Some(_), ..) => ("webhook", "webhook"),
                (None, Some(_), ..) => ("email", "email"),
                (None, None, Some(_), _) => ("mqtt", "mqtt"),
                (None, None, None, Some(_)) => ("ntfy", "webhook"),
                (None, None, None, None) => ("home_assistant", "webhook"),
            };
            Err(format!(
                "`{medium}` is not built in: it needs Tidings' Cargo feature `{feature}`"
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
        self.rules.iter().any(|rule| rule.matches(event))
    }

    fn concerns(&self, school: SchoolId) -> bool {
        let of_school = |rule: &Rule| rule.schools.is_empty() || rule.schools.contains(&school);
        self.rules.is_empty() || self.rules.iter().any(of_school)
    }

    fn is_due(&self, event: &Event) -> bool {
        self.pace.lets(&self.rules, event)
    }

    fn delivered(&self, event: &Event) {
        self.pace.delivered(&self.rules, event);
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

    fn retry_policy(&self) -> RetryPolicy {
        self.retry_policy
    }
}

/// All notifiers of a server.
pub struct Notifiers {
    runners: Vec<Arc<Runner>>,
}

/// The status of a notifier, as the API shows it.
#[derive(Debug, Clone)]
pub struct NotifierStatus {
    /// The notifier's name.
    pub name: String,
    /// The medium that it delivers through.
    pub medium: &'static str,
    /// The delivery that is being retried.
    pub retry: Option<Retry>,
}

impl Notifiers {
    /// Creates the runners of these notifiers. They read the logs through the feed, and keep their cursors in the store.
    pub fn new(
        store: &Arc<dyn Store>,
        feed: &Arc<Feed>,
        notifiers: Vec<Arc<dyn Notifier>>,
    ) -> Notifiers {
        Notifiers::with_terms(store, feed, notifiers, lease::Terms::default())
    }

    /// Like [`Notifiers::new`], with other terms for the notifiers' leases.
    pub fn with_terms(
        store: &Arc<dyn Store>,
        feed: &Arc<Feed>,
        notifiers: Vec<Arc<dyn Notifier>>,
        terms: lease::Terms,
    ) -> Notifiers {
        let runner = |notifier| {
            let (store, feed) = (Arc::clone(store), Arc::clone(feed));
            Arc::new(Runner::new(store, feed, notifier, terms))
        };
        Notifiers {
            runners: notifiers.into_iter().map(runner).collect(),
        }
    }

    /// Starts to deliver. Delivery ends with `tasks`. Unfinished deliveries are retried after the next start. A notifier that
    /// panics repeatedly does not make the server unready, because everything else still works.
    pub fn start(&self, tasks: &Tasks) {
        for runner in &self.runners {
            let name = format!("notifier {}", runner.notifier().name());
            let (runner, token) = (Arc::clone(runner), tasks.token().clone());
            tasks.supervise(Task::new(name).optional().ends_itself(), move || {
                let (runner, token) = (Arc::clone(&runner), token.clone());
                async move {
                    if token.run_until_cancelled(runner.run()).await.is_none() {
                        runner.stop().await;
                    }
                }
            });
        }
    }

    /// Receives committed events. Never waits, and runs no code of a notifier.
    pub fn observe(&self, events: &[Arc<Event>]) {
        self.runners
            .iter()
            .for_each(|runner| runner.observe(events));
    }

    /// Returns the status of each notifier that may deliver events of a school, with what it retries there. Only the node
    /// that delivers knows the retries.
    pub fn statuses(&self, school: SchoolId) -> Vec<NotifierStatus> {
        let shown = |runner: &Arc<Runner>| NotifierStatus {
            name: runner.notifier().name().to_owned(),
            medium: runner.notifier().medium(),
            retry: runner.retry(school),
        };
        let of_school = |runner: &&Arc<Runner>| runner.notifier().concerns(school);
        self.runners.iter().filter(of_school).map(shown).collect()
    }
}
