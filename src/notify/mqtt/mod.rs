//! Delivers notifications to an MQTT 3.1.1 broker, and publishes there whether this server is online.
//!
//! A message counts as delivered when the broker has acknowledged this very publish (QoS 1 and 2). With QoS 0, there is
//! no acknowledgement: the message counts as delivered when it is handed to the network. A separate task owns the
//! connection and keeps it open between deliveries. At the first failure, it drops the connection with all of its
//! state. So the MQTT client never resends anything by itself, and only the runner repeats failed deliveries.
//! Certificates are checked against the system's certificate authorities (`SSL_CERT_FILE` overrides them).
//!
//! The status topic has a retained `online` while the connection is open: it is the first message on each connection.
//! If the connection ends unexpectedly, the broker publishes `offline` (the last will). If the task is stopped, it
//! publishes `offline` itself before it disconnects, because `DISCONNECT` discards the will.
//!
//! Deliberately absent: detection of messages that the broker discards. Brokers of this version also acknowledge
//! messages that their access rules discard.

mod courier;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rumqttc::tokio_rustls::rustls::{ClientConfig, RootCertStore};
use rumqttc::{LastWill, MqttOptions, QoS, TlsConfiguration, Transport};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use self::courier::{ConnectionTask, Delivery, OFFLINE};
use super::notification::{DeliveryError, Medium, Notification, not_json};
use crate::config::Secret;
use crate::config::notifiers::MqttSettings;
use crate::id::SubjectId;

/// Time without traffic after which the client pings the broker.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Maximum size of a message, in bytes.
const MESSAGE_MAX_BYTES: usize = 1024 * 1024;

/// Additional size of a packet for the topic and the header, in bytes.
const PACKET_OVERHEAD_BYTES: usize = 70_000;

/// Maximum size of a packet from the broker, in bytes. The broker only sends acknowledgements.
const INCOMING_MAX_BYTES: usize = 4 * 1024;

/// Maximum length of `topic`, `client_id` and `username`, in bytes.
const TEXT_MAX_BYTES: usize = 1_024;

/// Publishes to an MQTT broker.
pub struct Mqtt {
    topic: Vec<TopicPart>,
    route: Route,
    /// Started inside Tokio, by [`Medium::start`] or by the first delivery.
    connection_task: Mutex<Option<Arc<ConnectionTask>>>,
}

impl Mqtt {
    /// Checks the settings without connecting. The error names the setting and contains no secret.
    pub fn new(name: &str, settings: MqttSettings) -> Result<Mqtt, String> {
        let topic = parse_topic(&settings.topic)?;
        let status = match &settings.status_topic {
            None => Some(default_status_topic(&topic, name)),
            Some(off) if off.is_empty() => None,
            Some(status_topic) => Some(parse_status_topic(status_topic)?),
        };
        let route = Route::new(name, settings, status)?;
        Ok(Mqtt {
            topic,
            route,
            connection_task: Mutex::default(),
        })
    }

    fn connection_task(&self) -> Arc<ConnectionTask> {
        let mut running = self.running();
        if running.take_if(|task| task.has_panicked()).is_some() {
            tracing::error!("the task of an MQTT connection panicked; starting another");
        }
        let start = || Arc::new(ConnectionTask::start(self.route.clone()));
        Arc::clone(running.get_or_insert_with(start))
    }

    fn running(&self) -> MutexGuard<'_, Option<Arc<ConnectionTask>>> {
        let locked = self.connection_task.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Medium for Mqtt {
    fn name(&self) -> &'static str {
        "mqtt"
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        let stopped = || DeliveryError::unavailable("the MQTT connection task has stopped");
        let (done, outcome) = oneshot::channel();
        let delivery = Delivery {
            topic: topic(&self.topic, notification)?,
            message: message(notification)?,
            done,
        };
        let connection_task = self.connection_task();
        let deliveries = &connection_task.deliveries;
        deliveries.send(delivery).await.map_err(|_| stopped())?;
        outcome.await.map_err(|_| stopped())?
    }

    fn start(&self) {
        // Replace a task that was stopped: it accepts no more deliveries.
        let is_over = |task: &mut Arc<ConnectionTask>| task.deliveries.is_closed();
        self.running().take_if(is_over);
        self.connection_task();
    }

    async fn stop(&self) {
        let connection_task = self.running().clone();
        if let Some(connection_task) = connection_task {
            connection_task.stop().await;
        }
    }
}

/// The settings in the form that the client needs.
#[derive(Clone)]
struct Route {
    options: MqttOptions,
    qos: QoS,
    retain: bool,
    timeout: Duration,
    /// The topic of the status messages.
    status: Option<String>,
}

impl Route {
    fn too_late(&self) -> String {
        let secs = self.timeout.as_secs();
        format!("no acknowledgement within {secs} s")
    }

    fn new(name: &str, settings: MqttSettings, status: Option<String>) -> Result<Route, String> {
        let timeout = Duration::from_secs(settings.timeout_secs.get());
        let qos = match settings.qos.get() {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        };
        let client_id = settings
            .client_id
            .clone()
            .unwrap_or_else(|| format!("tidings-{name}"));
        for (setting, text) in [
            ("host", Some(&settings.host)),
            ("client_id", Some(&client_id)),
            ("username", settings.username.as_ref()),
        ] {
            if text.is_some_and(|text| !is_text(text)) {
                return Err(format!(
                    "setting `{setting}` must have 1 to {TEXT_MAX_BYTES} bytes and no control characters"
                ));
            }
        }
        let port = match settings.port {
            Some(port) => port.get(),
            None if settings.tls => 8883,
            None => 1883,
        };

        let mut options = MqttOptions::new(client_id, settings.host.as_str(), port);
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_session(true)
            .set_max_packet_size(
                INCOMING_MAX_BYTES,
                MESSAGE_MAX_BYTES + PACKET_OVERHEAD_BYTES,
            );
        if let Some(topic) = &status {
            let will = LastWill::new(topic, OFFLINE, QoS::AtLeastOnce, true);
            options.set_last_will(will);
        }
        if settings.tls {
            options.set_transport(Transport::tls_with_config(trusting_the_system()?));
        }
        if let Some((username, password)) = credentials(name, &settings)? {
            let password = password.as_ref().map_or("", Secret::reveal);
            options.set_credentials(username, password);
        }
        Ok(Route {
            options,
            qos,
            retain: settings.retain,
            timeout,
            status,
        })
    }
}

/// Returns the user name and the password to log in with.
fn credentials(
    name: &str,
    settings: &MqttSettings,
) -> Result<Option<(String, Option<Secret>)>, String> {
    match (settings.username.clone(), settings.password.clone()) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err("setting `password` requires a `username`".into()),
        (Some(username), password) => {
            if password.is_some() && !settings.tls {
                tracing::warn!(
                    notifier.name = name,
                    "the password for the broker is sent unencrypted"
                );
            }
            Ok(Some((username, password)))
        }
    }
}

fn trusting_the_system() -> Result<TlsConfiguration, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut authorities = RootCertStore::empty();
    let (usable, _) = authorities.add_parsable_certificates(found.certs);
    if usable == 0 {
        return Err("setting `tls` cannot be used: the system has no trusted certificates".into());
    }
    let config = ClientConfig::builder()
        .with_root_certificates(authorities)
        .with_no_client_auth();
    Ok(TlsConfiguration::Rustls(Arc::new(config)))
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_MAX_BYTES && !text.contains(char::is_control)
}

#[derive(Debug, PartialEq, Eq)]
enum TopicPart {
    Text(String),
    SchoolId,
    Kind,
    Subject,
    Type,
}

fn parse_topic(template: &str) -> Result<Vec<TopicPart>, String> {
    let unusable = || {
        "setting `topic` is empty, too long, begins with `$`, or has a wildcard, a control character, or a placeholder \
         other than {school_id}, {kind}, {subject} and {type}"
            .to_owned()
    };
    if !is_text(template) || template.starts_with('$') {
        return Err(unusable());
    }
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once('{') {
        let (placeholder, after) = after.split_once('}').ok_or_else(unusable)?;
        parts.push(TopicPart::Text(text.into()));
        parts.push(match placeholder {
            "school_id" => TopicPart::SchoolId,
            "kind" => TopicPart::Kind,
            "subject" => TopicPart::Subject,
            "type" => TopicPart::Type,
            _ => return Err(unusable()),
        });
        rest = after;
    }
    parts.push(TopicPart::Text(rest.into()));
    let wild =
        |part: &TopicPart| matches!(part, TopicPart::Text(text) if text.contains(['+', '#', '}']));
    if parts.iter().any(wild) {
        return Err(unusable());
    }
    Ok(parts)
}

/// Returns `<prefix>/<name>/status`, where the prefix is the levels before the first placeholder. A client that can
/// publish events below the prefix can probably publish this topic, too.
fn default_status_topic(parts: &[TopicPart], name: &str) -> String {
    let prefix = match parts.first() {
        Some(TopicPart::Text(text)) => text.rsplit_once('/').map(|(prefix, _)| prefix),
        _ => None,
    };
    let prefix = prefix
        .filter(|prefix| !prefix.is_empty())
        .unwrap_or("tidings");
    format!("{prefix}/{name}/status")
}

fn parse_status_topic(topic: &str) -> Result<String, String> {
    let is_usable =
        is_text(topic) && !topic.starts_with('$') && !topic.contains(['+', '#', '{', '}']);
    match is_usable {
        true => Ok(topic.to_owned()),
        false => Err(
            "setting `status_topic` is too long, begins with `$`, or has a wildcard, a placeholder or a control character; \
             write a plain topic, or \"\" for none"
                .into(),
        ),
    }
}

fn topic(parts: &[TopicPart], notification: &Notification) -> Result<String, DeliveryError> {
    let mut topic = String::new();
    for part in parts {
        match part {
            TopicPart::Text(text) => topic.push_str(text),
            TopicPart::SchoolId => topic.push_str(&notification.school_id.to_string()),
            TopicPart::Kind => topic.push_str(notification.kind),
            TopicPart::Subject => topic.push_str(&level(&notification.subject)?),
            TopicPart::Type => topic.push_str(notification.event_type),
        }
    }
    Ok(topic)
}

/// Returns a subject's id as one level of a topic. An unencoded `/`, `+`, `#` or `$` would publish to other topics.
fn level(subject: &str) -> Result<String, DeliveryError> {
    let id = subject.parse::<SubjectId>();
    id.map(|id| id.encoded().to_string()).map_err(|_| {
        DeliveryError::Permanent("the subject's id cannot be a level of a topic".into())
    })
}

/// Returns the event in an envelope, because MQTT 3.1.1 has no headers for the id.
fn message(notification: &Notification) -> Result<Vec<u8>, DeliveryError> {
    #[derive(Serialize)]
    struct Message<'a> {
        id: &'a str,
        r#type: String,
        data: &'a RawValue,
    }
    let message = Message {
        id: &notification.id,
        r#type: notification.full_type(),
        data: notification.event()?,
    };
    let message = serde_json::to_vec(&message).map_err(|_| not_json())?;
    if message.len() > MESSAGE_MAX_BYTES {
        return Err(DeliveryError::Permanent(format!(
            "the message is larger than {MESSAGE_MAX_BYTES} bytes"
        )));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::EventDetails;

    fn settings() -> MqttSettings {
        serde_json::from_str(r#"{"host": "broker.example"}"#).unwrap()
    }

    fn notification() -> Notification {
        Notification {
            id: "00c0ffee-7-ops-broker".into(),
            school_id: 7,
            kind: "jobs",
            subject: "report-7".into(),
            title: None,
            event_type: "job_progress",
            status: "failed",
            severity: None,
            at: "2026-03-01T08:00:00Z".parse().unwrap(),
            details: EventDetails::default(),
            json: br#"{"type":"job_progress"}"#.to_vec(),
        }
    }

    fn error(change: impl FnOnce(&mut MqttSettings)) -> String {
        let mut settings = settings();
        change(&mut settings);
        Mqtt::new("ops", settings).err().unwrap()
    }

    #[test]
    fn topics_are_made_of_the_placeholders() {
        let parts = parse_topic("s/{school_id}/{kind}/{subject}/{type}").unwrap();
        assert_eq!(
            topic(&parts, &notification()).unwrap(),
            "s/7/jobs/report-7/job_progress"
        );
        let parts = parse_topic("all").unwrap();
        assert_eq!(topic(&parts, &notification()).unwrap(), "all");
    }

    #[test]
    fn the_status_is_published_in_addition_to_the_events() {
        for (topic, status) in [
            ("tidings/{school_id}/{kind}/{subject}", "tidings/ops/status"),
            ("a/b/school-{school_id}/{kind}", "a/b/ops/status"),
            ("{kind}/{subject}", "tidings/ops/status"),
            ("/{kind}", "tidings/ops/status"),
            ("building/alerts", "building/ops/status"),
            ("all", "tidings/ops/status"),
        ] {
            let parts = parse_topic(topic).unwrap();
            assert_eq!(default_status_topic(&parts, "ops"), status, "{topic}");
        }
    }

    #[test]
    fn subject_never_leaves_its_level() {
        let parts = parse_topic("tidings/{school_id}/{kind}/{subject}").unwrap();
        let of = |subject: &str| {
            let stray = Notification {
                subject: subject.into(),
                ..notification()
            };
            topic(&parts, &stray)
        };
        for (subject, level) in [
            ("a/b", "a%2Fb"),
            ("+", "%2B"),
            ("a#", "a%23"),
            ("$SYS", "%24SYS"),
            ("a b", "a%20b"),
            ("{kind}", "%7Bkind%7D"),
        ] {
            assert_eq!(of(subject).unwrap(), format!("tidings/7/jobs/{level}"));
        }
        for subject in ["", "a\0", ".."] {
            assert!(matches!(of(subject), Err(DeliveryError::Permanent(_))));
        }
    }

    #[test]
    fn settings_that_cannot_work_are_rejected() {
        for topic in [
            "",
            "a/+/b",
            "a/#",
            "$SYS/{kind}",
            "a/{student}",
            "a/{kind",
            "a/kind}",
            "a\0",
        ] {
            assert!(
                error(|settings| settings.topic = topic.into()).contains("`topic`"),
                "{topic}"
            );
        }
        for topic in ["a/+", "#", "$SYS/x", "a/{kind}", "a\0"] {
            let text = error(|settings| settings.status_topic = Some(topic.into()));
            assert!(text.contains("`status_topic`"), "{text}");
        }
        assert!(error(|settings| settings.host.clear()).contains("`host`"));
        assert!(error(|settings| settings.client_id = Some("a\0".into())).contains("`client_id`"));
        let text = error(|settings| settings.password = Some("hush".into()));
        assert!(text.contains("`username`") && !text.contains("hush"));
    }

    #[test]
    fn what_is_too_large_will_never_do() {
        let large = Notification {
            json: format!("{{\"message\":\"{}\"}}", "x".repeat(MESSAGE_MAX_BYTES)).into_bytes(),
            ..notification()
        };
        assert!(matches!(message(&large), Err(DeliveryError::Permanent(_))));
    }

    #[tokio::test]
    async fn a_connection_task_that_panicked_is_replaced_and_one_that_was_stopped_is_not() {
        let mqtt = Mqtt::new("ops", settings()).unwrap();
        let first = mqtt.connection_task();
        assert!(Arc::ptr_eq(&first, &mqtt.connection_task()));
        // A panic ends a task as an abort does: it drops what the task owns.
        first.abort();
        first.deliveries.closed().await;
        while !first.has_panicked() {
            tokio::task::yield_now().await;
        }
        let second = mqtt.connection_task();
        assert!(!Arc::ptr_eq(&first, &second));
        mqtt.stop().await;
        assert!(second.deliveries.is_closed());
        assert!(Arc::ptr_eq(&second, &mqtt.connection_task()));
    }
}
