//! Delivers to the companion app of Home Assistant: one live notification for each subject, which is updated in place.
//!
//! Calls the action `notify.<service>` through the REST API. All notifications of a subject have the same `tag` until it
//! ends, so that each one replaces the last. Those of a job or session in progress also have `live_update`, which makes them
//! a live update on Android 16 and a live activity on iOS 17.2. The fields are those of the app's documentation:
//! <https://companion.home-assistant.io/docs/notifications/live-activities> and
//! <https://companion.home-assistant.io/docs/notifications/notifications-basic>.
//!
//! iOS updates a live activity silently and keeps it for hours. So when a job or session ends, its live notification is
//! cleared, and its result is a separate notification with a sound. The result needs another tag: iOS may show it before it
//! runs the command to clear the old one, and would then clear the result.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde_json::{Value, json};
use ureq::http::{HeaderValue, Uri};

use super::notification::{DeliveryError, Medium, Notification};
use super::post::{Poster, bearer, json_request};
use super::summary::{Mark, Summary, Urgency, subject_tag, title};
use super::webhook::parse_url;
use crate::config::notifiers::HomeAssistantSettings;

/// The longest text, in bytes. Push services accept 4 KiB in total, including the other fields and the encoding.
const MESSAGE_MAX_BYTES: usize = 1_000;

/// The longest name of a service.
const SERVICE_MAX_BYTES: usize = 128;

/// The message that removes the notification of a tag.
const CLEAR: &str = "clear_notification";

/// A notify service of Home Assistant.
pub struct HomeAssistant {
    url: Uri,
    authorization: HeaderValue,
    /// The address of the monitor, without a trailing slash.
    monitor_url: Option<String>,
    poster: Poster,
}

impl HomeAssistant {
    /// Checks the settings without connecting. The error names the setting and contains no secret.
    pub fn new(settings: HomeAssistantSettings) -> Result<HomeAssistant, String> {
        let timeout = Duration::from_secs(settings.timeout_secs.get());
        let of_service = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        let service = &settings.service;
        if !(1..=SERVICE_MAX_BYTES).contains(&service.len()) || !service.bytes().all(of_service) {
            return Err(format!(
                "setting `service` must be the name after `notify.`, such as `mobile_app_phone`: \
                 1 to {SERVICE_MAX_BYTES} characters from a-z 0-9 _"
            ));
        }
        let url = settings.url.reveal();
        if url.contains(['?', '#']) {
            return Err(
                "setting `url` must be the address of Home Assistant, without a query".into(),
            );
        }
        let url = format!(
            "{}/api/services/notify/{service}",
            url.trim_end_matches('/')
        );
        let monitor_url = settings.monitor_url.map(|monitor_url| {
            let is_page = parse_url(&monitor_url).is_ok() && !monitor_url.contains(['?', '#']);
            is_page
                .then(|| monitor_url.trim_end_matches('/').to_owned())
                .ok_or("setting `monitor_url` must have the form `https://<host>/monitor`")
        });
        Ok(HomeAssistant {
            url: parse_url(&url)?,
            authorization: bearer(&settings.token)
                .ok_or("setting `token` must be a long-lived access token")?,
            monitor_url: monitor_url.transpose()?,
            poster: Poster::new(timeout),
        })
    }

    async fn call(&self, action: &Action<'_>) -> Result<(), DeliveryError> {
        let request = json_request(&self.url, Some(&self.authorization), action)?;
        self.poster
            .send(request)
            .await
            .map_err(|error| match error {
                // Home Assistant also answers 400 if the service is unknown, for example while the phone's integration is not
                // loaded. So it takes other events to tell whether this event is the cause.
                DeliveryError::Rejected {
                    cause,
                    retry_after: None,
                } => DeliveryError::Failed(cause),
                error => error,
            })
    }

    /// Returns the page of the monitor that shows the subject, or else its school.
    fn page(&self, notification: &Notification) -> Option<String> {
        let school = format!(
            "{}/schools/{}",
            self.monitor_url.as_ref()?,
            notification.school_id
        );
        Some(match notification.kind {
            "jobs" | "devices" | "characteristics" => {
                let subject = utf8_percent_encode(&notification.subject, NON_ALPHANUMERIC);
                format!("{school}/{}/{subject}", notification.kind)
            }
            _ => school,
        })
    }
}

#[async_trait]
impl Medium for HomeAssistant {
    fn name(&self) -> &'static str {
        "home_assistant"
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        let summary = Summary::of(notification, MESSAGE_MAX_BYTES);
        let tag = subject_tag(notification);
        let ends = matches!(notification.kind, "jobs" | "enrollments") && !summary.is_live;
        if ends {
            let data = json!({ "tag": tag });
            self.call(&Action {
                title: None,
                message: CLEAR,
                data,
            })
            .await?;
        }
        let tag = if ends { tag + "-end" } else { tag };
        let page = self.page(notification);
        self.call(&Action {
            title: Some(&literal(title(notification))),
            message: &literal(&summary.text),
            data: data(&summary, &tag, page.as_deref(), Utc::now()),
        })
        .await
    }
}

/// Escapes a text, so that Home Assistant shows it literally. Home Assistant renders titles and messages as templates, and a
/// publisher must not be able to run an expression. An invisible character (U+2060) breaks up each `{{`, `{%` and `{#`.
fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    let mut previous = None;
    for character in text.chars() {
        if previous == Some('{') && matches!(character, '{' | '%' | '#') {
            literal.push('\u{2060}');
        }
        literal.push(character);
        previous = Some(character);
    }
    literal
}

/// The parameters of the action.
#[derive(Serialize)]
struct Action<'a> {
    /// Without a title, the app does not show a live update as such.
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    message: &'a str,
    data: Value,
}

/// Returns what the app shows in addition to title and message.
fn data(summary: &Summary, tag: &str, page: Option<&str>, now: DateTime<Utc>) -> Value {
    let (icon, color) = match summary.mark {
        Mark::Bad => ("mdi:alert-circle", "#C62828"),
        Mark::Warning => ("mdi:alert", "#EF6C00"),
        Mark::Running => ("mdi:progress-clock", "#1565C0"),
        Mark::Good => ("mdi:check-circle", "#2E7D32"),
        Mark::News => ("mdi:information", "#1565C0"),
    };
    let mut data = json!({
        "tag": tag,
        "notification_icon": icon,
        "notification_icon_color": color,
        "color": color,
    });
    let mut set = |name: &str, value: Value| data[name] = value;
    if let Some(page) = page {
        // `url` is for iOS, and `clickAction` for Android.
        set("url", page.into());
        set("clickAction", page.into());
    }
    if summary.is_live {
        set("live_update", true.into());
        if let Some(progress) = summary.progress {
            let percent = progress.floor().to_string();
            // iOS accepts whole numbers only.
            set("progress", percent.parse().unwrap_or(0_u8).into());
            set("progress_max", 100.into());
            set("critical_text", format!("{percent} %").into());
        } else if summary.mark == Mark::Running {
            set("progress", 0.into());
            set("progress_indeterminate", true.into());
        }
        // A countdown to a time in the past would show negative values.
        if let Some(eta_at) = summary.eta_at.filter(|eta_at| *eta_at > now) {
            set("chronometer", true.into());
            set("when", eta_at.timestamp().into());
        }
    }
    match summary.urgency {
        Urgency::Quiet => {
            set("alert_once", true.into());
            set("channel", "Tidings progress".into());
            set("importance", "low".into());
            set(
                "push",
                json!({"interruption-level": "passive", "sound": "none"}),
            );
        }
        Urgency::Normal => {}
        Urgency::Urgent => {
            set("channel", "Tidings alerts".into());
            set("importance", "high".into());
            // Makes Android deliver at once, even to a sleeping phone.
            set("ttl", 0.into());
            set("priority", "high".into());
            set("push", json!({"interruption-level": "time-sensitive"}));
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publishers_text_is_no_template() {
        for text in [
            "{{ 1 + 1 }}",
            "{% for x in y %}",
            "{# note #}",
            "{{{%",
            "100 {% done",
        ] {
            let shown = literal(text);
            for begin in ["{{", "{%", "{#"] {
                assert!(!shown.contains(begin), "{shown}");
            }
            assert_eq!(shown.replace('\u{2060}', ""), text);
        }
        assert_eq!(literal("{\"a\": {}} 50 %"), "{\"a\": {}} 50 %");
    }
}
