//! Delivers to ntfy (<https://ntfy.sh>): one notification for each subject, which is updated in place.
//!
//! All notifications of a subject have the same sequence id (see `subject_tag` in `summary`), so that ntfy 2.16 and newer
//! replaces the last one.

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use ureq::http::{HeaderValue, Uri};

use super::notification::{DeliveryError, Medium, Notification};
use super::post::{Poster, bearer, json_request};
use super::summary::{Mark, Summary, Urgency, subject_tag, title};
use super::webhook::parse_url;
use crate::config::notifiers::NtfySettings;

/// The longest message, in bytes. ntfy turns longer ones into attachments.
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
        let timeout = Duration::from_secs(settings.timeout_secs.get());
        let of_topic = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let topic = settings.topic.reveal();
        if !(1..=64).contains(&topic.len()) || !topic.bytes().all(of_topic) {
            return Err("setting `topic` must have 1 to 64 characters from A-Z a-z 0-9 - _".into());
        }
        let authorization = settings.token.as_ref().map(|token| {
            bearer(token).ok_or("setting `token` must be an access token: `tk_…`".to_owned())
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
        json_request(&self.url, self.authorization.as_ref(), &message)
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

impl Message<'_> {
    fn of<'a>(
        topic: &'a str,
        notification: &'a Notification,
    ) -> Result<Message<'a>, DeliveryError> {
        let summary = Summary::of(notification, MESSAGE_MAX_BYTES);
        Ok(Message {
            topic,
            sequence_id: subject_tag(notification),
            title: title(notification),
            message: summary.text,
            priority: match summary.urgency {
                // At this priority, a phone shows the new text without a sound.
                Urgency::Quiet => 2,
                Urgency::Normal => 3,
                Urgency::Urgent => 4,
            },
            tags: [match summary.mark {
                Mark::Bad => "x",
                Mark::Warning => "warning",
                Mark::Running => "hourglass_flowing_sand",
                Mark::Good => "white_check_mark",
                Mark::News => "information_source",
            }],
        })
    }
}
