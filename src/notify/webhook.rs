//! Delivers notifications as HTTP POST requests, signed as <https://www.standardwebhooks.com> specifies.
//!
//! `post.rs` sends them and judges the answers.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::{DateTime, SecondsFormat, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret, SecretSlice};
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::Sha256;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::notification::{DeliveryError, Medium, Notification, not_json};
use super::post::Poster;
use crate::config::Secret;
use crate::config::notifiers::WebhookSettings;

/// Key lengths that Standard Webhooks allows, in bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Headers that Tidings sets itself, for the request and its signature.
const OWN_HEADERS: &[&str] = &[
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// A receiver of webhooks.
pub struct Webhook {
    url: Uri,
    headers: HeaderMap,
    key: SecretSlice<u8>,
    poster: Poster,
}

impl Webhook {
    /// Checks the settings without connecting. The error names the setting and contains no secret.
    pub fn new(settings: WebhookSettings) -> Result<Webhook, String> {
        let timeout = Duration::from_secs(settings.timeout_secs.get());
        Ok(Webhook {
            url: parse_url(settings.url.reveal())?,
            headers: parse_headers(&settings.headers)?,
            key: parse_secret(settings.secret.reveal())?,
            poster: Poster::new(timeout),
        })
    }

    /// Builds the request of one attempt, made at `now`.
    fn request(
        &self,
        notification: &Notification,
        now: DateTime<Utc>,
    ) -> Result<ureq::http::Request<Vec<u8>>, DeliveryError> {
        let body = body(notification)?;
        let timestamp = now.timestamp();
        let signature = sign(self.key.expose_secret(), &notification.id, timestamp, &body);
        let mut request = ureq::http::Request::post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &notification.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(body)
            .map_err(|_| {
                DeliveryError::Permanent("the id cannot be written into a header".into())
            })?;
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }
}

#[async_trait]
impl Medium for Webhook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        let request = self.request(notification, Utc::now())?;
        self.poster.send(request).await
    }
}

/// Returns the envelope that Standard Webhooks recommends.
fn body(notification: &Notification) -> Result<Vec<u8>, DeliveryError> {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: String,
        timestamp: String,
        data: &'a RawValue,
    }
    let body = Body {
        r#type: notification.full_type(),
        timestamp: notification.at.to_rfc3339_opts(SecondsFormat::Millis, true),
        data: notification.event()?,
    };
    serde_json::to_vec(&body).map_err(|_| not_json())
}

fn sign(key: &[u8], id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

fn parse_secret(secret: &str) -> Result<SecretSlice<u8>, String> {
    secret
        .strip_prefix("whsec_")
        .and_then(|encoded| BASE64_STANDARD.decode(encoded).ok())
        .filter(|key| KEY_BYTES.contains(&key.len()))
        .map(SecretSlice::from)
        .ok_or_else(|| "setting `secret` must be `whsec_` and 24 to 64 bytes in base64".into())
}

pub(super) fn parse_url(url: &str) -> Result<Uri, String> {
    url.parse::<Uri>()
        .ok()
        .filter(|url| matches!(url.scheme_str(), Some("http" | "https")))
        .filter(|url| url.host().is_some_and(|host| !host.is_empty()))
        .ok_or_else(|| "setting `url` must have the form `https://<host>/…`".into())
}

fn parse_headers(headers: &BTreeMap<String, Secret>) -> Result<HeaderMap, String> {
    let mut parsed = HeaderMap::new();
    for (name, value) in headers {
        let name: HeaderName = name.parse().map_err(|_| {
            format!("setting `headers` has {name:?}, which is not a valid header name")
        })?;
        if OWN_HEADERS.contains(&name.as_str()) {
            return Err(format!(
                "setting `headers` has `{name}`, which Tidings sets itself"
            ));
        }
        let mut value = HeaderValue::from_str(value.reveal())
            .map_err(|_| format!("setting `headers` has an invalid value for `{name}`"))?;
        value.set_sensitive(true);
        if parsed.insert(&name, value).is_some() {
            return Err(format!("setting `headers` has `{name}` twice"));
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ureq::http::header::RETRY_AFTER;

    use super::super::post::{judge, retry_after};
    use super::*;
    use crate::config::{Bounded, RETRY_AFTER_MAX};
    use crate::kind::EventDetails;

    fn settings(secret: &str) -> WebhookSettings {
        WebhookSettings {
            url: "https://hooks.example/tidings?token=hush".into(),
            secret: secret.into(),
            timeout_secs: Bounded::of::<10>(),
            headers: BTreeMap::new(),
        }
    }

    fn error(settings: WebhookSettings) -> String {
        Webhook::new(settings).err().unwrap()
    }

    #[test]
    fn signature_is_that_of_the_specifications_example() {
        let key = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(
            sign(
                key.expose_secret(),
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                br#"{"test": 2432232314}"#
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn bad_secret_is_named_and_not_shown() {
        for secret in [
            "",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_c2hvcnQ=",
            "whsec_not base64 at all, but long enough",
            &format!("whsec_{}", BASE64_STANDARD.encode([7; 65])),
        ] {
            assert_eq!(
                error(settings(secret)),
                "setting `secret` must be `whsec_` and 24 to 64 bytes in base64"
            );
        }
    }

    #[test]
    fn settings_that_cannot_work_are_rejected() {
        let good = || settings("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        assert!(Webhook::new(good()).is_ok());
        for url in [
            "",
            "/hook",
            "hooks.example",
            "ftp://hooks.example/",
            "http:///x",
        ] {
            let url = url.into();
            assert!(error(WebhookSettings { url, ..good() }).contains("`url`"));
        }
        for (name, value) in [
            ("Webhook-Signature", "v1,forged"),
            ("host", "elsewhere"),
            ("two words", "x"),
            ("x-key", "hush\r\nx-injected: yes"),
        ] {
            let headers = BTreeMap::from([(name.into(), value.into())]);
            let text = error(WebhookSettings { headers, ..good() });
            assert!(
                text.contains("`headers`") && !text.contains("hush"),
                "{text}"
            );
        }
    }

    #[test]
    fn settings_do_not_show_their_secrets() {
        let mut settings = settings("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        settings
            .headers
            .insert("authorization".into(), "Bearer hush".into());
        let shown = format!("{settings:?}");
        assert!(
            !shown.contains("hush") && !shown.contains("MfKQ"),
            "{shown}"
        );
    }

    #[test]
    fn unknown_setting_is_rejected() {
        let text = r#"{"url": "https://a.example", "secret": "x", "retries": 3}"#;
        let error = serde_json::from_str::<WebhookSettings>(text).unwrap_err();
        assert!(error.to_string().contains("`retries`"));
    }

    #[test]
    fn line_breaks_in_an_id_make_no_headers() {
        let webhook = Webhook::new(settings("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
        let notification = Notification {
            id: "00c0ffee\r\nx-injected: yes".into(),
            school_id: 7,
            kind: "jobs",
            subject: "report-7".into(),
            title: None,
            event_type: "job_progress",
            status: "failed",
            severity: None,
            at: Utc::now(),
            details: EventDetails::default(),
            json: b"{}".to_vec(),
        };
        let request = webhook.unwrap().request(&notification, Utc::now());
        assert!(matches!(request, Err(DeliveryError::Permanent(_))));
    }

    #[test]
    fn an_answer_says_whose_fault_it_is() {
        let judge = |status| judge(status, None);
        for status in [200, 204, 299] {
            assert_eq!(judge(status), Ok(()));
        }
        for status in [410, 413, 422] {
            assert!(matches!(judge(status), Err(DeliveryError::Permanent(_))));
        }
        for status in [400, 402, 406, 409, 411, 415, 418, 421, 423, 424, 451, 499] {
            assert!(matches!(judge(status), Err(DeliveryError::Rejected { .. })));
        }
        for status in [401, 403, 404, 405, 407, 500, 501, 505, 507, 599] {
            assert!(matches!(judge(status), Err(DeliveryError::Failed(_))));
        }
        for status in [301, 307, 408, 425, 429, 502, 503, 504, 600, 999] {
            let error = judge(status).unwrap_err();
            assert!(
                matches!(error, DeliveryError::Unavailable { .. }),
                "{status}"
            );
        }
    }

    #[test]
    fn a_time_that_the_receiver_names_is_heeded_within_bounds() {
        let asked = Some(Duration::from_secs(7));
        let of = |status| judge(status, asked).unwrap_err();
        for status in [400, 409, 413] {
            assert!(matches!(of(status), DeliveryError::Rejected { .. }));
            assert_eq!(of(status).retry_after(), asked);
        }
        for status in [301, 403, 404, 408, 429, 500, 503] {
            assert!(matches!(of(status), DeliveryError::Unavailable { .. }));
            assert_eq!(of(status).retry_after(), asked);
        }
        assert_eq!(of(503).to_string(), "answered 503, Retry-After: 7 s");
        let error = judge(429, Some(Duration::MAX)).unwrap_err();
        assert_eq!(error.retry_after(), Some(RETRY_AFTER_MAX));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_anything_else_is_ignored() {
        let now = "1994-11-06T08:49:30Z".parse().unwrap();
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(read("120"), Some(120));
        assert_eq!(read(" 7 "), Some(7));
        assert_eq!(read("99999999999999999999999"), Some(u64::MAX));
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(read(date), Some(7), "{date}");
        }
        for text in [
            "",
            "0",
            "-1",
            "+5",
            "1.5",
            "5 s",
            "soon",
            "Sun, 06 Nov 1994 08:49:30 GMT",
            "Sat, 05 Nov 1994 08:49:37 GMT",
            "Sun, 99 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
