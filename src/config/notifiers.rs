//! Who is told of what happens: the settings of notifiers.
//!
//! A notifier has a name, one medium and rules. It hears an event if one of its rules does; a rule, if all of
//! its conditions hold; a condition that is not given holds. Without rules it hears every milestone.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Secret};
use crate::event::Event;
use crate::id::SchoolId;
use crate::kind::{self, characteristic};

/// The most notifiers.
pub const NOTIFIERS_MAX: usize = 32;
/// The longest `name`, in bytes.
const NAME_MAX_BYTES: usize = 32;
/// The most attempts that a delivery may be given.
const ATTEMPTS_MAX: u32 = 100;

/// One of `[[default.tidings.notifiers]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifierSettings {
    /// What its place in the log is remembered by: 1 to 32 characters out of a-z 0-9 -.
    pub name: String,
    /// What it hears.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Attempts before an event becomes a dead letter.
    #[serde(default = "attempts")]
    pub attempts: u32,
    /// Seconds before the second attempt; each later pause is twice as long, up to five minutes.
    #[serde(default = "backoff_secs")]
    pub backoff_secs: u64,
    /// It delivers to a receiver of webhooks, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookSettings>,
    /// … or by e-mail, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<EmailSettings>,
    /// … or to an MQTT broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<MqttSettings>,
}

fn attempts() -> u32 {
    30
}

fn backoff_secs() -> u64 {
    1
}

/// When to try again, and when to give up.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Attempts in all.
    pub attempts: u32,
    /// Before the second one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            attempts: attempts(),
            pause: Duration::from_secs(backoff_secs()),
        }
    }
}

/// What a notifier hears. A list that is absent or empty lets everything through.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Only these kinds, by their collections: `jobs`, `devices`, ….
    pub kinds: Vec<String>,
    /// Only these types of message: `violation`, `device_status_update`, ….
    pub events: Vec<String>,
    /// Only these statuses of the subject: `failed`, `offline`, ….
    pub statuses: Vec<String>,
    /// Only violations of these severities.
    pub severities: Vec<characteristic::Severity>,
    /// Only these schools.
    pub schools: Vec<SchoolId>,
    /// Ticks, too.
    pub ticks: bool,
}

impl Rule {
    /// Whether it hears the event.
    pub fn hears(&self, event: &Event) -> bool {
        let named =
            |list: &[String], name: &str| list.is_empty() || list.iter().any(|own| own == name);
        (self.ticks || !event.is_tick())
            && (self.schools.is_empty() || self.schools.contains(&event.school))
            && named(&self.kinds, event.kind.collection())
            && named(&self.events, event.draft.event_type.name)
            && named(&self.statuses, event.draft.status)
            && (self.severities.is_empty()
                || characteristic::severity(&event.draft)
                    .is_some_and(|severity| self.severities.contains(&severity)))
    }

    fn check(&self) -> Result<(), String> {
        let unknown = |what: &str, name: &String| {
            Err(format!(
                "has a rule for {what} `{name}`, which there is not"
            ))
        };
        for name in &self.kinds {
            if kind::known_kind(name).is_none() {
                return unknown("the kind", name);
            }
        }
        for name in &self.events {
            if kind::known_type(name).is_none() {
                return unknown("the event", name);
            }
        }
        for name in &self.statuses {
            if kind::known_status(name).is_none() {
                return unknown("the status", name);
            }
        }
        Ok(())
    }
}

impl NotifierSettings {
    /// When to try again, and when to give up.
    pub fn patience(&self) -> Patience {
        Patience {
            attempts: self.attempts,
            pause: Duration::from_secs(self.backoff_secs),
        }
    }
}

/// Whether a text can be a notifier's name.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_MAX_BYTES).contains(&name.len()) && name.bytes().all(plain)
}

/// Checks what the settings of one notifier cannot see of the others, and what its medium does not check.
pub(super) fn check(notifiers: &[NotifierSettings]) -> Result<(), ConfigError> {
    let invalid = |problem: String| {
        let key = "notifiers";
        Err(ConfigError::Invalid { key, problem })
    };
    if notifiers.len() > NOTIFIERS_MAX {
        return invalid(format!("has more than {NOTIFIERS_MAX} entries"));
    }
    for (index, own) in notifiers.iter().enumerate() {
        let name = &own.name;
        if !is_name(name) {
            return invalid(format!(
                "has the name {name:?}, which is not 1 to {NAME_MAX_BYTES} characters out of a-z 0-9 -"
            ));
        }
        if notifiers[..index].iter().any(|other| other.name == *name) {
            return invalid(format!("has `{name}` twice"));
        }
        let media = [
            own.webhook.is_some(),
            own.email.is_some(),
            own.mqtt.is_some(),
        ];
        if media.into_iter().filter(|given| *given).count() != 1 {
            return invalid(format!("`{name}` needs one of webhook, email and mqtt"));
        }
        if !(1..=ATTEMPTS_MAX).contains(&own.attempts) {
            return invalid(format!(
                "`{name}`: `attempts` is not from 1 to {ATTEMPTS_MAX}"
            ));
        }
        for rule in &own.rules {
            if let Err(problem) = rule.check() {
                return invalid(format!("`{name}` {problem}"));
            }
        }
    }
    Ok(())
}

/// A receiver of webhooks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// `https://…` or, inside a trusted network, `http://…`.
    pub url: Secret,
    /// What the receiver verifies with: `whsec_` and 24 to 64 bytes in base64.
    pub secret: Secret,
    /// Most seconds that an attempt takes, from the name's lookup to the answer.
    #[serde(default = "webhook_timeout_secs")]
    pub timeout_secs: u64,
    /// Sent along, e.g. an `Authorization`.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
}

fn webhook_timeout_secs() -> u64 {
    10
}

/// How the connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Security {
    /// Not at all: for a relay on this machine or in a trusted network. Usually port 25.
    None,
    /// Plain at first, and given up if the server has no TLS. Usually port 587.
    Starttls,
    /// From the first byte. Usually port 465.
    Tls,
}

/// Mailboxes behind an SMTP server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailSettings {
    /// The SMTP server, by the name in its certificate.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is secured.
    pub security: Security,
    /// To log in with; needs a `password`.
    #[serde(default)]
    pub username: Option<String>,
    /// To log in with; needs a `username`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The sender's mailbox: `Tidings <tidings@school.example>`.
    pub from: String,
    /// The recipients' mailboxes, 1 to 20. A message reaches all of them or counts as undelivered.
    pub to: Vec<String>,
    /// Most seconds that an attempt takes.
    #[serde(default = "email_timeout_secs")]
    pub timeout_secs: u64,
}

fn email_timeout_secs() -> u64 {
    20
}

/// An MQTT broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MqttSettings {
    /// The broker, with TLS by the name in its certificate.
    pub host: String,
    /// Its port; 1883 if absent, and 8883 with `tls`.
    #[serde(default)]
    pub port: Option<u16>,
    /// Whether the connection is encrypted.
    #[serde(default)]
    pub tls: bool,
    /// To log in with.
    #[serde(default)]
    pub username: Option<String>,
    /// To log in with; needs a `username`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// `tidings-<name>` if absent. Two clients of the same name throw each other out.
    #[serde(default)]
    pub client_id: Option<String>,
    /// What to publish to, with the placeholders `{school_id}`, `{kind}`, `{subject}` and `{type}`.
    #[serde(default = "mqtt_topic")]
    pub topic: String,
    /// Where `online` and `offline` are told, retained: `<prefix>/<name>/status` if absent, the prefix being the levels of
    /// `topic` before its first placeholder. Empty: nowhere.
    #[serde(default)]
    pub status_topic: Option<String>,
    /// 0: at most once; 1: at least once; 2: exactly once as far as the broker, per attempt.
    #[serde(default = "mqtt_qos")]
    pub qos: u8,
    /// Whether the broker keeps the last message of a topic for later subscribers.
    #[serde(default)]
    pub retain: bool,
    /// Most seconds that an attempt takes, from connecting to the acknowledgement.
    #[serde(default = "mqtt_timeout_secs")]
    pub timeout_secs: u64,
}

fn mqtt_topic() -> String {
    "tidings/{school_id}/{kind}/{subject}".into()
}

fn mqtt_qos() -> u8 {
    1
}

fn mqtt_timeout_secs() -> u64 {
    10
}
