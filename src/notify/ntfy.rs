//! Delivers to ntfy (<https://ntfy.sh>): one notification for each subject, which updates itself.
//!
//! All notifications of a subject have the same sequence id, by which ntfy 2.16 and newer replaces the one that is shown. It
//! is a digest, because ntfy accepts fewer characters than ids have, and the topic may be read by people who must not see
//! them.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ureq::http::{HeaderValue, Uri};

use super::notification::{DeliveryError, Medium, Notification, attempt_timeout, not_json};
use super::post::{Poster, TIMEOUT_MAX_SECS};
use super::webhook::parse_url;
use crate::config::notifiers::NtfySettings;

/// The longest message that ntfy shows as such, in bytes. It makes an attachment of a longer one.
const MESSAGE_MAX_BYTES: usize = 4_000;

/// A topic of an ntfy server.
pub struct Ntfy {
    url: Uri,
    topic: String,
    authorization: Option<HeaderValue>,
    poster: Poster,
}

impl Ntfy {
    /// Checks the settings without connecting. The error names the setting and contains no secret.
    pub fn new(settings: NtfySettings) -> Result<Ntfy, String> {
        let timeout = attempt_timeout(settings.timeout_secs, TIMEOUT_MAX_SECS)?;
        let of_topic = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let topic = settings.topic.reveal();
        if !(1..=64).contains(&topic.len()) || !topic.bytes().all(of_topic) {
            return Err("setting `topic` must have 1 to 64 characters from A-Z a-z 0-9 - _".into());
        }
        let token = settings.token.as_ref();
        let authorization = token.map(|token| {
            let value = HeaderValue::from_str(&format!("Bearer {}", token.reveal()));
            let mut value =
                value.map_err(|_| "setting `token` must be an access token: `tk_…`".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        });
        Ok(Ntfy {
            url: parse_url(settings.url.reveal())?,
            topic: topic.to_owned(),
            authorization: authorization.transpose()?,
            poster: Poster::new(timeout),
        })
    }

    fn request(
        &self,
        notification: &Notification,
    ) -> Result<ureq::http::Request<Vec<u8>>, DeliveryError> {
        let message = Message::of(&self.topic, notification)?;
        let body = serde_json::to_vec(&message).map_err(|_| not_json())?;
        let mut request = ureq::http::Request::post(self.url.clone())
            .header("content-type", "application/json")
            .body(body)
            .map_err(|_| DeliveryError::Permanent("the request cannot be written".into()))?;
        if let Some(value) = &self.authorization {
            request.headers_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

#[async_trait]
impl Medium for Ntfy {
    fn name(&self) -> &'static str {
        "ntfy"
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        self.poster.send(self.request(notification)?).await
    }
}

/// What ntfy publishes: <https://docs.ntfy.sh/publish/#publish-as-json>.
#[derive(Serialize)]
struct Message<'a> {
    topic: &'a str,
    sequence_id: String,
    title: &'a str,
    message: String,
    priority: u8,
    tags: [&'static str; 1],
}

/// What a message says of an event, of whichever kind it is.
#[derive(Deserialize)]
struct Said {
    progress: Option<f64>,
    message: Option<String>,
    error: Option<Failure>,
    #[serde(default)]
    stalled: bool,
}

/// An error of a job has a code; that of an enrollment session is a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Failure {
    Text(String),
    Coded { message: String },
}

impl Message<'_> {
    fn of<'a>(topic: &'a str, own: &'a Notification) -> Result<Message<'a>, DeliveryError> {
        let said: Said = serde_json::from_slice(&own.json).map_err(|_| not_json())?;
        let is_bad = matches!(
            own.status,
            "failed" | "error" | "offline" | "missed" | "out_of_control"
        ) || own.severity.as_deref() == Some("critical");
        let goes_on = matches!(
            own.status,
            "in_progress" | "ready" | "placing" | "capturing" | "processing"
        );
        let (priority, tag) = match own.status {
            _ if is_bad => (4, "x"),
            _ if said.stalled || own.status == "late" => (4, "warning"),
            // Quietly: a phone shows the new text without a sound.
            _ if goes_on => (2, "hourglass_flowing_sand"),
            "completed" | "complete" | "online" | "on_time" | "in_control" => {
                (3, "white_check_mark")
            }
            _ => (3, "information_source"),
        };
        let mut text = match said.stalled {
            true => "stalled".to_owned(),
            false => own.status.replace('_', " "),
        };
        if let Some(progress) = said.progress.filter(|_| goes_on) {
            text.push_str(&format!(", {} %", progress.floor()));
        }
        let failure = said.error.map(|error| match error {
            Failure::Text(message) | Failure::Coded { message } => message,
        });
        if let Some(more) = failure.or(said.message).filter(|more| !more.is_empty()) {
            text.push_str(": ");
            text.push_str(&more);
        }
        let mut end = text.len().min(MESSAGE_MAX_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        Ok(Message {
            topic,
            sequence_id: sequence_id(own),
            title: own.title.as_deref().unwrap_or(&own.subject),
            message: text,
            priority,
            tags: [tag],
        })
    }
}

/// Returns the id that all notifications of a subject have.
fn sequence_id(own: &Notification) -> String {
    let subject = format!("{}\0{}\0{}", own.school_id, own.kind, own.subject);
    let digest = Sha256::digest(subject.as_bytes());
    digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
