//! The settings of notifiers, which deliver events to other systems.
//!
//! A notifier has a name, one medium, and rules. A rule matches an event if all of its conditions match; an absent
//! condition matches every event. A notifier delivers the events that at least one of its rules matches. Without rules,
//! it delivers every milestone.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Bounded, ConfigError, Secret};
use crate::event::Event;
use crate::id::SchoolId;
use crate::kind::{self, characteristic};

/// Maximum number of notifiers.
pub const NOTIFIERS_MAX: usize = 32;
/// Maximum length of `name`, in bytes.
const NAME_MAX_BYTES: usize = 32;
/// Maximum of `attempts`.
const ATTEMPTS_MAX: u64 = 100;
/// Maximum of `timeout_secs`, except for e-mail.
const TIMEOUT_MAX_SECS: u64 = 60;
/// Maximum of `timeout_secs` for e-mail.
const EMAIL_TIMEOUT_MAX_SECS: u64 = 120;

/// One of `[[default.tidings.notifiers]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifierSettings {
    /// The name under which the notifier's offset is stored: 1 to 32 characters from `a-z`, `0-9` and `-`.
    pub name: String,
    /// The rules that select events.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Attempts before an event becomes a dead letter.
    #[serde(default = "attempts")]
    pub attempts: Bounded<u32, 1, ATTEMPTS_MAX>,
    /// Seconds before the second attempt. Each later pause is twice as long, up to five minutes.
    #[serde(default = "backoff_secs")]
    pub backoff_secs: u64,
    /// Delivers by webhook. Exactly one of `webhook`, `email`, `mqtt`, `ntfy` and `home_assistant` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookSettings>,
    /// Delivers by e-mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<EmailSettings>,
    /// Delivers to an MQTT broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<MqttSettings>,
    /// Delivers to a topic of ntfy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ntfy: Option<NtfySettings>,
    /// Delivers to the companion app of Home Assistant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_assistant: Option<HomeAssistantSettings>,
}

fn attempts() -> Bounded<u32, 1, ATTEMPTS_MAX> {
    Bounded::of::<30>()
}

fn backoff_secs() -> u64 {
    1
}

/// How often and when a failed delivery is retried.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Maximum number of attempts, including the first.
    pub attempts: u32,
    /// Pause before the second attempt.
    pub pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts: attempts().get(),
            pause: Duration::from_secs(backoff_secs()),
        }
    }
}

/// Conditions on an event. An absent or empty list matches every event.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Only these kinds, named by their collections: `jobs`, `devices`, ….
    pub kinds: Vec<String>,
    /// Only these message types: `violation`, `device_status_update`, ….
    pub events: Vec<String>,
    /// Only these statuses of the subject: `failed`, `offline`, ….
    pub statuses: Vec<String>,
    /// Only violations of these severities.
    pub severities: Vec<characteristic::Severity>,
    /// Only these schools.
    pub schools: Vec<SchoolId>,
    /// Whether ticks match, too.
    pub ticks: bool,
    /// How often a subject's ticks are delivered, in addition to its milestones.
    pub every: Every,
}

/// How often a subject's ticks are delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Every {
    /// Never, or all of them if the rule has `ticks`.
    #[default]
    Milestone,
    /// Whenever the progress passes a multiple of this many percent.
    Percent(u8),
    /// Whenever the last notification about the subject is at least this many seconds old.
    Seconds(u32),
}

impl TryFrom<String> for Every {
    type Error = String;

    fn try_from(text: String) -> Result<Every, String> {
        let wrong = || {
            format!(
                "`every` is {text:?}; it must be `milestone`, a percentage such as `25 %`, or a time such as `30 s`, `10 min` or `1 h`"
            )
        };
        let text = text.trim();
        if text == "milestone" {
            return Ok(Every::Milestone);
        }
        let unit = text.trim_start_matches(|character: char| character.is_ascii_digit());
        let number = &text[..text.len() - unit.len()];
        let number: u32 = number.parse().map_err(|_| wrong())?;
        let every = match unit.trim() {
            "%" => u8::try_from(number)
                .ok()
                .filter(|percent| *percent <= 100)
                .map(Every::Percent),
            "s" => Some(Every::Seconds(number)),
            "min" => number.checked_mul(60).map(Every::Seconds),
            "h" => number.checked_mul(3_600).map(Every::Seconds),
            _ => None,
        };
        every.filter(|_| number > 0).ok_or_else(wrong)
    }
}

impl From<Every> for String {
    fn from(every: Every) -> String {
        match every {
            Every::Milestone => "milestone".to_owned(),
            Every::Percent(step) => format!("{step} %"),
            Every::Seconds(secs) => format!("{secs} s"),
        }
    }
}

impl Rule {
    /// Whether the rule matches the event.
    pub fn matches(&self, event: &Event) -> bool {
        let named = |list: &[String], name: &str| {
            list.is_empty() || list.iter().any(|listed| listed == name)
        };
        (self.ticks || self.every != Every::Milestone || !event.is_tick())
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
                "has a rule with the unknown {what} `{name}`; docs/notifiers.md lists what a rule accepts"
            ))
        };
        for name in &self.kinds {
            if kind::known_kind(name).is_none() {
                return unknown("kind", name);
            }
        }
        for name in &self.events {
            if kind::known_type(name).is_none() {
                return unknown("event", name);
            }
        }
        for name in &self.statuses {
            if kind::known_status(name).is_none() {
                return unknown("status", name);
            }
        }
        Ok(())
    }
}

impl NotifierSettings {
    /// Returns how often and when a failed delivery is retried.
    pub fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            attempts: self.attempts.get(),
            pause: Duration::from_secs(self.backoff_secs),
        }
    }
}

/// Whether a text is a valid name of a notifier.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_MAX_BYTES).contains(&name.len()) && name.bytes().all(plain)
}

/// Checks what concerns several notifiers, and what the media do not check themselves.
pub(super) fn check(notifiers: &[NotifierSettings]) -> Result<(), ConfigError> {
    let invalid = |problem: String| {
        let key = "notifiers";
        Err(ConfigError::Invalid { key, problem })
    };
    if notifiers.len() > NOTIFIERS_MAX {
        return invalid(format!("must have at most {NOTIFIERS_MAX} entries"));
    }
    for (index, notifier) in notifiers.iter().enumerate() {
        let name = &notifier.name;
        if !is_name(name) {
            return invalid(format!(
                "has an entry named {name:?}; a name must have 1 to {NAME_MAX_BYTES} characters from a-z, 0-9 and `-`"
            ));
        }
        if notifiers[..index]
            .iter()
            .any(|earlier| earlier.name == *name)
        {
            return invalid(format!(
                "has two entries named `{name}`; names must be unique"
            ));
        }
        let media = [
            notifier.webhook.is_some(),
            notifier.email.is_some(),
            notifier.mqtt.is_some(),
            notifier.ntfy.is_some(),
            notifier.home_assistant.is_some(),
        ];
        if media.into_iter().filter(|given| *given).count() != 1 {
            return invalid(format!(
                "`{name}` must have exactly one of `webhook`, `email`, `mqtt`, `ntfy` and `home_assistant`"
            ));
        }
        for rule in &notifier.rules {
            if let Err(problem) = rule.check() {
                return invalid(format!("`{name}` {problem}"));
            }
        }
    }
    Ok(())
}

/// Settings of a webhook receiver.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// `https://…` or, inside a trusted network, `http://…`.
    pub url: Secret,
    /// The secret that the receiver verifies signatures with: `whsec_` and 24 to 64 bytes in base64.
    pub secret: Secret,
    /// Maximum time of an attempt, from the DNS lookup to the answer, in seconds.
    #[serde(default = "webhook_timeout_secs")]
    pub timeout_secs: Bounded<u64, 1, TIMEOUT_MAX_SECS>,
    /// Additional headers, e.g. `Authorization`.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
}

/// Settings of a topic of ntfy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NtfySettings {
    /// The server: `https://ntfy.sh`, or your own.
    #[serde(default = "ntfy_url")]
    pub url: Secret,
    /// The topic. Anyone who knows the name of an unprotected topic can read it.
    pub topic: Secret,
    /// An access token: `tk_…`.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Maximum time of an attempt, in seconds.
    #[serde(default = "webhook_timeout_secs")]
    pub timeout_secs: Bounded<u64, 1, TIMEOUT_MAX_SECS>,
}

/// Settings of a notify service of Home Assistant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HomeAssistantSettings {
    /// The address of Home Assistant: `https://home.example:8123`.
    pub url: Secret,
    /// The name of the service after `notify.`: `mobile_app_<device>`, or a group of them.
    pub service: String,
    /// A long-lived access token.
    pub token: Secret,
    /// The address of the monitor, which a tap on a notification opens: `https://tidings.example/monitor`.
    #[serde(default)]
    pub monitor_url: Option<String>,
    /// Maximum time of a request, in seconds. The end of a job or session takes two.
    #[serde(default = "webhook_timeout_secs")]
    pub timeout_secs: Bounded<u64, 1, TIMEOUT_MAX_SECS>,
}

fn ntfy_url() -> Secret {
    "https://ntfy.sh".into()
}

fn webhook_timeout_secs() -> Bounded<u64, 1, TIMEOUT_MAX_SECS> {
    Bounded::of::<10>()
}

/// How the connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Security {
    /// No encryption: for a relay on this machine or in a trusted network. Usually port 25.
    None,
    /// Begins in plain text and switches to TLS. Fails if the server does not support TLS. Usually port 587.
    Starttls,
    /// TLS from the first byte. Usually port 465.
    Tls,
}

/// Settings of e-mail delivery.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailSettings {
    /// The SMTP server, by the name in its certificate.
    pub host: String,
    /// Its port.
    pub port: Bounded<u16, 1>,
    /// How the connection is secured.
    pub security: Security,
    /// The user name to log in with. Requires a `password`.
    #[serde(default)]
    pub username: Option<String>,
    /// The password to log in with. Requires a `username`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The sender's mailbox: `Tidings <tidings@school.example>`.
    pub from: String,
    /// The recipients' mailboxes, 1 to 20. A message that does not reach all of them counts as undelivered.
    pub to: Vec<String>,
    /// Maximum time of an attempt, in seconds.
    #[serde(default = "email_timeout_secs")]
    pub timeout_secs: Bounded<u64, 1, EMAIL_TIMEOUT_MAX_SECS>,
}

fn email_timeout_secs() -> Bounded<u64, 1, EMAIL_TIMEOUT_MAX_SECS> {
    Bounded::of::<20>()
}

/// Settings of an MQTT broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MqttSettings {
    /// The broker's host. With TLS, the name in its certificate.
    pub host: String,
    /// Its port. Defaults to 1883, or to 8883 with `tls`.
    #[serde(default)]
    pub port: Option<Bounded<u16, 1>>,
    /// Whether the connection is encrypted.
    #[serde(default)]
    pub tls: bool,
    /// The user name to log in with.
    #[serde(default)]
    pub username: Option<String>,
    /// The password to log in with. Requires a `username`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Defaults to `tidings-<name>`. Two clients with the same id disconnect each other.
    #[serde(default)]
    pub client_id: Option<String>,
    /// The topic to publish to, with the placeholders `{school_id}`, `{kind}`, `{subject}` and `{type}`.
    #[serde(default = "mqtt_topic")]
    pub topic: String,
    /// The topic of the retained messages `online` and `offline`. Defaults to `<prefix>/<name>/status`, where the
    /// prefix is the levels of `topic` before its first placeholder. An empty topic disables these messages.
    #[serde(default)]
    pub status_topic: Option<String>,
    /// 0: at most once; 1: at least once; 2: exactly once as far as the broker, per attempt.
    #[serde(default = "mqtt_qos")]
    pub qos: Bounded<u8, 0, 2>,
    /// Whether the broker keeps the last message of a topic for later subscribers.
    #[serde(default)]
    pub retain: bool,
    /// Maximum time of an attempt, from connecting to the acknowledgement, in seconds.
    #[serde(default = "mqtt_timeout_secs")]
    pub timeout_secs: Bounded<u64, 1, TIMEOUT_MAX_SECS>,
}

fn mqtt_topic() -> String {
    "tidings/{school_id}/{kind}/{subject}".into()
}

fn mqtt_qos() -> Bounded<u8, 0, 2> {
    Bounded::of::<1>()
}

fn mqtt_timeout_secs() -> Bounded<u64, 1, TIMEOUT_MAX_SECS> {
    Bounded::of::<10>()
}
