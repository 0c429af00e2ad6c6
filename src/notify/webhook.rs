//! Delivers a notification as an HTTP POST, signed as <https://www.standardwebhooks.com> specifies.
//!
//! The status alone decides: 2xx is delivered, what is gone (410), too large (413) or not understood (422) will
//! not be repeated, anything else will. The answer's body is not read. Redirects are not followed: whom the server
//! talks to is the operator's decision and not a receiver's (SSRF). `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`
//! are heeded, so that an egress proxy can stand between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::{DateTime, SecondsFormat, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::Sha256;
use tokio::sync::Semaphore;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::notification::{
    DeliveryError, Medium, Notification, attempt_timeout, not_json, one_line,
};
use crate::config::notifiers::{Secret, WebhookSettings};

/// Lengths, in bytes, that Standard Webhooks allows a key.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Longest `timeout_secs`.
const TIMEOUT_MAX_SECS: u64 = 60;

/// Largest head of an answer that is read, in bytes.
const ANSWER_HEAD_MAX_BYTES: usize = 16 * 1024;

/// What the client and the signature set themselves.
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
    key: Vec<u8>,
    timeout: Duration,
    agent: ureq::Agent,
    /// One request at a time, and so one blocking thread.
    turn: Arc<Semaphore>,
}

impl Webhook {
    /// Checks the settings; connects to nothing. The error names the setting and shows no secret.
    pub fn new(settings: WebhookSettings) -> Result<Webhook, String> {
        let timeout = attempt_timeout(settings.timeout_secs, TIMEOUT_MAX_SECS)?;
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .max_redirects(0)
            .http_status_as_error(false)
            .max_response_header_size(ANSWER_HEAD_MAX_BYTES)
            // A connection that the receiver closed meanwhile would fail the next attempt.
            .max_idle_connections(0)
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Webhook {
            url: parse_url(settings.url.reveal())?,
            headers: parse_headers(&settings.headers)?,
            key: parse_secret(settings.secret.reveal())?,
            timeout,
            agent,
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// The request of one attempt, made at `now`.
    fn request(
        &self,
        notification: &Notification,
        now: DateTime<Utc>,
    ) -> Result<ureq::http::Request<Vec<u8>>, DeliveryError> {
        let body = body(notification)?;
        let timestamp = now.timestamp();
        let signature = sign(&self.key, &notification.id, timestamp, &body);
        let mut request = ureq::http::Request::post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &notification.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(body)
            .map_err(|_| DeliveryError::Permanent("the id does not fit into a header".into()))?;
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }

    fn temporary(&self, error: &ureq::Error) -> DeliveryError {
        let cause = match error {
            ureq::Error::Timeout(_) => format!("no answer within {} s", self.timeout.as_secs()),
            ureq::Error::HostNotFound => "the host was not found".into(),
            ureq::Error::ConnectionFailed => "the connection failed".into(),
            ureq::Error::Io(error) => format!("the connection failed: {error}"),
            ureq::Error::Rustls(error) => format!("TLS failed: {error}"),
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
                "the answer is not HTTP".into()
            }
            // Not its text: it may hold the URL, and that a token.
            _ => "the request failed".into(),
        };
        DeliveryError::Temporary(one_line(&cause))
    }
}

#[async_trait]
impl Medium for Webhook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        let turn = Arc::clone(&self.turn)
            .acquire_owned()
            .await
            .expect("nobody closes the semaphore");
        let request = self.request(notification, Utc::now())?;
        let agent = self.agent.clone();
        let sent = tokio::task::spawn_blocking(move || {
            // In here, so that a caller who gives up does not let a second request begin.
            let _turn = turn;
            agent.run(request).map(|answer| answer.status().as_u16())
        });
        match sent.await {
            Ok(Ok(status)) => judge(status),
            Ok(Err(error)) => Err(self.temporary(&error)),
            Err(_) => Err(DeliveryError::Temporary(
                "the request was not finished".into(),
            )),
        }
    }
}

/// A receiver that is being repaired or redeployed answers all sorts of things; few of them are about this message.
fn judge(status: u16) -> Result<(), DeliveryError> {
    match status {
        200..=299 => Ok(()),
        300..=399 => Err(DeliveryError::Temporary(format!(
            "answered {status}; redirects are not followed"
        ))),
        410 | 413 | 422 => Err(DeliveryError::Permanent(format!("answered {status}"))),
        _ => Err(DeliveryError::Temporary(format!("answered {status}"))),
    }
}

/// The envelope that Standard Webhooks recommends.
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

fn parse_secret(secret: &str) -> Result<Vec<u8>, String> {
    secret
        .strip_prefix("whsec_")
        .and_then(|encoded| BASE64_STANDARD.decode(encoded).ok())
        .filter(|key| KEY_BYTES.contains(&key.len()))
        .ok_or_else(|| "setting `secret` is not `whsec_` and 24 to 64 bytes in base64".into())
}

fn parse_url(url: &str) -> Result<Uri, String> {
    url.parse::<Uri>()
        .ok()
        .filter(|url| matches!(url.scheme_str(), Some("http" | "https")))
        .filter(|url| url.host().is_some_and(|host| !host.is_empty()))
        .ok_or_else(|| "setting `url` is not of the form `https://<host>/…`".into())
}

fn parse_headers(headers: &BTreeMap<String, Secret>) -> Result<HeaderMap, String> {
    let mut parsed = HeaderMap::new();
    for (name, value) in headers {
        let name: HeaderName = name
            .parse()
            .map_err(|_| format!("setting `headers` has {name:?}, which is no header's name"))?;
        if OWN_HEADERS.contains(&name.as_str()) {
            return Err(format!(
                "setting `headers` has `{name}`, which is not to be set"
            ));
        }
        let mut value = HeaderValue::from_str(value.reveal())
            .map_err(|_| format!("setting `headers` has an unusable value for `{name}`"))?;
        value.set_sensitive(true);
        if parsed.insert(&name, value).is_some() {
            return Err(format!("setting `headers` has `{name}` twice"));
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(secret: &str) -> WebhookSettings {
        WebhookSettings {
            url: "https://hooks.example/tidings?token=hush".into(),
            secret: secret.into(),
            timeout_secs: 10,
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
                &key,
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
                "setting `secret` is not `whsec_` and 24 to 64 bytes in base64"
            );
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
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
        for timeout_secs in [0, 61] {
            let bad = WebhookSettings {
                timeout_secs,
                ..good()
            };
            assert!(error(bad).contains("`timeout_secs`"));
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
    fn unknown_setting_is_refused() {
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
            json: b"{}".to_vec(),
        };
        let request = webhook.unwrap().request(&notification, Utc::now());
        assert!(matches!(request, Err(DeliveryError::Permanent(_))));
    }

    #[test]
    fn refusals_are_permanent_and_troubles_temporary() {
        assert_eq!(judge(204), Ok(()));
        for status in [410, 413, 422] {
            assert!(matches!(judge(status), Err(DeliveryError::Permanent(_))));
        }
        for status in [301, 307, 400, 401, 404, 408, 425, 429, 500, 502, 503, 599] {
            assert!(matches!(judge(status), Err(DeliveryError::Temporary(_))));
        }
    }
}
