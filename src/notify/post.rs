//! Sends HTTP requests to receivers, and judges their answers.
//!
//! The status decides: 2xx means delivered, and other statuses are classified by their cause (see [`DeliveryError`] and
//! [`judge`]). `Retry-After` is honoured. The answer's body is not read. Redirects are not followed, because
//! the operator and not a receiver decides which hosts the server connects to (SSRF). `HTTP_PROXY`, `HTTPS_PROXY` and
//! `NO_PROXY` are honoured, so that an egress proxy can be used.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::zeroize::Zeroizing;
use serde::Serialize;
use tokio::sync::Semaphore;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderValue, Request, Uri};

use super::notification::{DeliveryError, not_json, one_line};
use crate::config::Secret;

/// Maximum size of an answer's head, in bytes.
const ANSWER_HEAD_MAX_BYTES: usize = 16 * 1024;

/// Sends the requests of one notifier, one at a time.
pub(super) struct Poster {
    timeout: Duration,
    agent: ureq::Agent,
    /// Allows one request at a time, and therefore one blocking thread.
    turn: Arc<Semaphore>,
}

impl Poster {
    /// Creates a poster whose attempts take at most this long.
    pub(super) fn new(timeout: Duration) -> Poster {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .max_redirects(0)
            .http_status_as_error(false)
            .max_response_header_size(ANSWER_HEAD_MAX_BYTES)
            // Do not reuse connections: if the receiver has closed an idle one, the next attempt would fail.
            .max_idle_connections(0)
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Poster {
            timeout,
            agent,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Makes one attempt.
    pub(super) async fn send(
        &self,
        request: ureq::http::Request<Vec<u8>>,
    ) -> Result<(), DeliveryError> {
        let turn = Arc::clone(&self.turn)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let agent = self.agent.clone();
        let sent = tokio::task::spawn_blocking(move || {
            // Held by the blocking thread, so that no second request starts after the caller has given up.
            let _turn = turn;
            let answer = agent.run(request)?;
            let asked = retry_after(answer.headers(), Utc::now());
            Ok((answer.status().as_u16(), asked))
        });
        match sent.await {
            Ok(Ok((status, asked))) => judge(status, asked),
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Err(_) => Err(DeliveryError::unavailable("the request was not finished")),
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> DeliveryError {
        let cause = match error {
            ureq::Error::Timeout(_) => format!("no answer within {} s", self.timeout.as_secs()),
            ureq::Error::HostNotFound => "the host was not found".into(),
            ureq::Error::ConnectionFailed => "the connection failed".into(),
            ureq::Error::Io(error) => format!("the connection failed: {error}"),
            ureq::Error::Rustls(error) => format!("TLS failed: {error}"),
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
                "the answer is not HTTP".into()
            }
            // The error's own text may contain the URL, which may contain a token.
            _ => "the request failed".into(),
        };
        DeliveryError::unavailable(one_line(&cause))
    }
}

/// Returns the `Authorization` header for a token, or `None` if the token has characters that no header can have.
pub(super) fn bearer(token: &Secret) -> Option<HeaderValue> {
    let mut value =
        HeaderValue::from_str(&Zeroizing::new(format!("Bearer {}", token.reveal()))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns a `POST` of a JSON body.
pub(super) fn json_request(
    url: &Uri,
    authorization: Option<&HeaderValue>,
    body: &impl Serialize,
) -> Result<Request<Vec<u8>>, DeliveryError> {
    let body = serde_json::to_vec(body).map_err(|_| not_json())?;
    let mut request = Request::post(url.clone())
        .header(CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|_| DeliveryError::Permanent("the request cannot be written".into()))?;
    if let Some(value) = authorization {
        request.headers_mut().insert(AUTHORIZATION, value.clone());
    }
    Ok(request)
}

/// Distinguishes a receiver that rejects the event from one that accepts nothing. Some statuses are used for both: 401,
/// 403 and 404 can mean a wrong path, an expired password or an unknown subject, and 500 can mean that the receiver
/// fails on one event or on all. For these, the answers to other events decide.
pub(super) fn judge(status: u16, retry_after: Option<Duration>) -> Result<(), DeliveryError> {
    let mut cause = format!("answered {status}");
    if let Some(asked) = retry_after {
        cause += &format!(", Retry-After: {} s", asked.as_secs());
    }
    Err(match status {
        200..=299 => return Ok(()),
        300..=399 => {
            let cause = cause + "; redirects are not followed";
            DeliveryError::Unavailable { cause, retry_after }
        }
        410 | 422 => DeliveryError::Permanent(cause),
        // RFC 9110, 15.5.14: with `Retry-After`, the content is too large only temporarily.
        413 if retry_after.is_none() => DeliveryError::Permanent(cause),
        408 | 425 | 429 | 502..=504 => DeliveryError::Unavailable { cause, retry_after },
        // A receiver that names a time to retry refers to more than one event.
        401 | 403..=405 | 407 | 500..=599 if retry_after.is_some() => {
            DeliveryError::Unavailable { cause, retry_after }
        }
        401 | 403..=405 | 407 | 500..=599 => DeliveryError::Failed(cause),
        400..=499 => DeliveryError::Rejected { cause, retry_after },
        _ => DeliveryError::Unavailable { cause, retry_after },
    })
}

/// Parses `Retry-After` (RFC 9110, 10.2.3): seconds, or a date. Invalid and past values are ignored.
pub(super) fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let wait = if is_number {
        // A number that does not fit into 64 bits counts as the maximum.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        date.duration_since(now.into()).ok()?
    };
    (!wait.is_zero()).then_some(wait)
}
