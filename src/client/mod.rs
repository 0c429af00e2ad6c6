//! An asynchronous client: reports on jobs, and watches scopes.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tidings::client::{Client, Credential, Reporter};
//!
//! let client = Client::new("https://tidings.example", Credential::token("eyJ…"))?;
//!
//! // A worker. Reports do not block, and do not fail if the server is unreachable.
//! let reporter = Reporter::start(client.clone());
//! let job = reporter.job("import").title("Students").start();
//! for row in 1..=200 {
//!     job.progress(f64::from(row) / 2.0, format!("{row}/200"));
//! }
//! job.complete(serde_json::json!({"rows": 200}));
//! reporter.flush(std::time::Duration::from_secs(5)).await;
//!
//! // A reader. It stays connected, and misses nothing.
//! let mut messages = client.watch("jobs").start();
//! while let Some(message) = messages.next().await {
//!     let message = message?;
//!     println!("{} {}", message.message_type(), message.get("job_id"));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The client follows the same rules as those for JavaScript and Python, and passes the same test vectors
//! (`clients/vectors`). It reads over SSE, or over long poll if the network blocks SSE. It does not support WebSocket.

mod backoff;
mod driver;
mod http;
mod item;
mod message;
mod outbox;
mod proxy;
mod reporter;
mod sse;
mod state;
mod story;
#[cfg(test)]
mod vectors;
mod watch;
pub(crate) mod worker;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use hyper::header::{CONTENT_TYPE, DATE, HeaderName, LOCATION, RETRY_AFTER};
use hyper::{Method, Uri};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::time::timeout;

use self::http::{Answer, Http, Request, Trust};
pub use self::item::Event;
use self::message::MESSAGE_MAX_BYTES;
pub use self::message::Message;
pub use self::reporter::{Job, JobBuilder, Reporter};
pub use self::state::State;
use self::story::Rejection;
pub use self::watch::{Watch, WatchBuilder};

/// How long an answer may take by default. Does not apply to streams.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum number of bytes of a problem that are read.
const PROBLEM_MAX_BYTES: usize = 64 * 1024;
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The maximum time for which a `Retry-After` is respected.
const RETRY_AFTER_MAX_SECS: u64 = 3_600;

/// How messages arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Server-Sent Events.
    EventStream,
    /// Long poll, for networks that buffer or cut streams.
    LongPoll,
}

/// Why a request or a stream failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL cannot be that of a server.
    #[error(
        "`{0}` is not the URL of a server; it must begin with http:// or https:// and have no query"
    )]
    Url(String),
    /// No answer arrived.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// The server rejected the request.
    #[error("{detail} (HTTP {status})")]
    Rejected {
        /// The HTTP status.
        status: u16,
        /// The problem's `code`, such as `not-found`, if the answer is a problem.
        code: Option<String>,
        /// The problem's `detail`.
        detail: String,
        /// How long the server asks to wait (`Retry-After`), or zero.
        retry_after: Duration,
    },
    /// The server ended the stream, and does not want the client to reconnect.
    #[error("the server closed the stream with code {code}: {reason}")]
    Closed {
        /// The close code.
        code: u64,
        /// The reason that the server gave.
        reason: String,
    },
    /// The answer is not from Tidings.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    /// The application's own function returned no token.
    #[error("there is no token: {0}")]
    NoToken(String),
}

type TokenFuture = Pin<Box<dyn Future<Output = Result<SecretString, ClientError>> + Send>>;

/// How a client identifies itself.
#[derive(Clone)]
pub struct Credential(Kind);

#[derive(Clone)]
enum Kind {
    None,
    Token(SecretString),
    Renewed(Arc<dyn Fn() -> TokenFuture + Send + Sync>),
}

impl Credential {
    /// No token. Only requests that need none succeed, such as those for the health of the server.
    pub fn none() -> Credential {
        Credential(Kind::None)
    }

    /// This token.
    pub fn token(token: impl Into<String>) -> Credential {
        Credential(Kind::Token(token.into().into()))
    }

    /// A token from this function, which is called for each connection and each request. So a stream can last longer than
    /// its first token.
    pub fn renewed<F, T, S, E>(renew: F) -> Credential
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<S, E>> + Send + 'static,
        S: Into<SecretString>,
        E: fmt::Display,
    {
        Credential(Kind::Renewed(Arc::new(move || {
            let token = renew();
            Box::pin(async move {
                token
                    .await
                    .map(S::into)
                    .map_err(|error| ClientError::NoToken(error.to_string()))
            })
        })))
    }

    fn renews(&self) -> bool {
        matches!(self.0, Kind::Renewed(_))
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

/// A server, and a credential for it. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: Http,
    base: String,
    credential: Credential,
    answer_timeout: Duration,
}

impl Client {
    /// Creates a client for a server, such as `https://tidings.example`. It trusts the certificate authorities of the operating
    /// system, or those in `SSL_CERT_FILE`, and uses the proxy in `HTTP_PROXY` or `HTTPS_PROXY`, except for the hosts in `NO_PROXY`.
    pub fn new(url: &str, credential: Credential) -> Result<Client, ClientError> {
        Client::trusting(&Trust::Authorities, url, credential)
    }

    /// Creates a client for the server in this process. The server's certificate is not verified.
    #[cfg(feature = "cli")]
    pub(crate) fn of_this_process(
        url: &str,
        credential: Credential,
    ) -> Result<Client, ClientError> {
        Client::trusting(&Trust::Anyone, url, credential)
    }

    fn trusting(trust: &Trust, url: &str, credential: Credential) -> Result<Client, ClientError> {
        let invalid = || ClientError::Url(url.to_owned());
        let parsed: Uri = url.parse().map_err(|_| invalid())?;
        let is_server = matches!(parsed.scheme_str(), Some("http" | "https"))
            && parsed.host().is_some_and(|host| !host.is_empty())
            && parsed.query().is_none()
            && !url.contains(['#', '@']);
        if !is_server {
            return Err(invalid());
        }
        let http = Http::new(parsed.scheme_str() == Some("https"), trust)?;
        Ok(Client {
            http,
            base: url.trim_end_matches('/').to_owned(),
            credential,
            answer_timeout: ANSWER_TIMEOUT,
        })
    }

    /// Waits at most this long for an answer to a request, instead of 30 seconds. Does not apply to streams.
    #[must_use]
    pub fn answer_timeout(self, answer_timeout: Duration) -> Client {
        Client {
            answer_timeout,
            ..self
        }
    }

    /// Returns a builder for a watch of this scope: `jobs`, `jobs/42`, `devices`, `schools/1`, `jobs?status=failed`, or
    /// several channels as `?channel=jobs/42&channel=devices`.
    pub fn watch(&self, scope: &str) -> WatchBuilder {
        WatchBuilder::new(self.clone(), scope)
    }

    /// Gets JSON from a path such as `/api/jobs/42`.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.answer(self.request(Method::GET, path)).await
    }

    /// Posts JSON, and returns the answer, which comes after the commit.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.answer(self.json(Method::POST, path, body)).await
    }

    /// Posts JSON with an idempotency key (1 to 128 visible ASCII characters). However often it is sent with this key, it takes
    /// effect once, and has the same answer.
    pub async fn post_once(
        &self,
        path: &str,
        body: &Value,
        key: &str,
    ) -> Result<Value, ClientError> {
        let request = self.json(Method::POST, path, body);
        self.answer(request.header(IDEMPOTENCY_KEY, key)).await
    }

    /// Puts JSON.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.answer(self.json(Method::PUT, path, body)).await
    }

    /// Deletes the resource at a path, and returns the answer.
    pub async fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.answer(self.request(Method::DELETE, path)).await
    }

    /// Posts commands as a batch, and returns a result for each, in the same order.
    pub async fn batch(&self, commands: &[Value]) -> Result<Vec<Value>, ClientError> {
        let lines = commands.iter().map(|command| format!("{command}\n"));
        self.batch_of(lines.collect()).await
    }

    async fn batch_of(&self, lines: String) -> Result<Vec<Value>, ClientError> {
        let request = self
            .request(Method::POST, "/api/batch")
            .header(CONTENT_TYPE, "application/x-ndjson")
            .body(lines);
        let body = self.body(request).await?;
        let unreadable = |problem: String| ClientError::Unreadable(problem);
        let results = body.split(|byte| *byte == b'\n');
        let parsed: Result<Vec<Value>, _> = results
            .filter(|line| !line.is_empty())
            .map(serde_json::from_slice)
            .collect();
        let results = parsed.map_err(|error| unreadable(error.to_string()))?;
        match results.iter().all(|result| result["line"].is_u64()) {
            true => Ok(results),
            false => Err(unreadable("it is not the result of a batch".into())),
        }
    }

    /// The URL of the server.
    fn base(&self) -> &str {
        &self.base
    }

    fn request(&self, method: Method, path_and_query: &str) -> Request {
        Request::new(method, format!("{}{path_and_query}", self.base))
    }

    fn json(&self, method: Method, path: &str, body: &Value) -> Request {
        self.request(method, path)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string())
    }

    async fn send(&self, request: Request) -> Result<Answer, ClientError> {
        let request = match &self.credential.0 {
            Kind::None => request,
            Kind::Token(token) => request.bearer(token.expose_secret()),
            Kind::Renewed(renew) => request.bearer(renew().await?.expose_secret()),
        };
        self.http.send(request).await
    }

    /// Gets JSON, and the time on the server's clock in whole seconds, if the answer has it.
    #[cfg(all(feature = "cli", unix))]
    pub(crate) async fn get_with_date(
        &self,
        path: &str,
    ) -> Result<(Value, Option<DateTime<Utc>>), ClientError> {
        let (body, date) = self.dated(self.request(Method::GET, path)).await?;
        Ok((parsed(&body)?, date))
    }

    async fn answer(&self, request: Request) -> Result<Value, ClientError> {
        parsed(&self.body(request).await?)
    }

    async fn body(&self, request: Request) -> Result<Vec<u8>, ClientError> {
        self.dated(request).await.map(|(body, _)| body)
    }

    /// Returns the body of the answer, and its date.
    async fn dated(
        &self,
        request: Request,
    ) -> Result<(Vec<u8>, Option<DateTime<Utc>>), ClientError> {
        let answered = async {
            let answer = self.send(request).await?;
            if answer.status >= 300 {
                let rejection = rejection(answer, self.answer_timeout, self.base());
                return Err(rejection.await.into_error());
            }
            let date = answer.header(DATE);
            let date = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok());
            let date = date.map(|date| date.with_timezone(&Utc));
            let body = answer.bytes(MESSAGE_MAX_BYTES).await?;
            Ok((body, date))
        };
        let answered = timeout(self.answer_timeout, answered).await;
        answered.unwrap_or_else(|_| {
            let problem = format!("no answer arrived within {:?}", self.answer_timeout);
            Err(ClientError::Unreachable(problem))
        })
    }
}

fn parsed(body: &[u8]) -> Result<Value, ClientError> {
    match body.is_empty() {
        true => Ok(Value::Null),
        false => {
            serde_json::from_slice(body).map_err(|error| ClientError::Unreadable(error.to_string()))
        }
    }
}

/// Returns an error text for a redirected request. It names the server's URL to use instead, if that can be derived.
fn redirection(base: &str, uri: &str, to: &str) -> String {
    let path = uri.strip_prefix(base).unwrap_or(uri);
    let bare = path.split_once('?').map_or(path, |(path, _)| path);
    let moved = to.strip_suffix(path).or_else(|| to.strip_suffix(bare));
    let is_url = |to: &&str| {
        (to.starts_with("http://") || to.starts_with("https://")) && !to.contains(['?', '#'])
    };
    match moved.filter(is_url).filter(|moved| *moved != base) {
        Some(moved) => format!(
            "the server redirects to {to}, but the client does not send its token to another URL: use {moved} as the URL"
        ),
        None => format!(
            "the server redirects to {to}, but the client does not send its token to another URL: use the URL of Tidings itself"
        ),
    }
}

/// Reads why a request to the server at `base` was rejected. Stops after `longest`.
async fn rejection(mut answer: Answer, longest: Duration, base: &str) -> Rejection {
    // A date is ignored: Tidings sends only seconds.
    let retry_after: u64 = answer
        .header(RETRY_AFTER)
        .and_then(|secs| secs.parse().ok())
        .unwrap_or_default();
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = answer.chunk().await
            && body.len() < PROBLEM_MAX_BYTES
        {
            body.extend_from_slice(&chunk);
        }
    };
    // A body that is cut off is not valid JSON, and counts as a rejection without a problem.
    let _ = timeout(longest, read).await;
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |field: &str| problem[field].as_str().map(str::to_owned);
    let detail = match answer.header(LOCATION) {
        Some(to) if answer.status < 400 => redirection(base, &answer.uri, to),
        _ => text("detail").unwrap_or_else(|| "the request was rejected".into()),
    };
    Rejection {
        status: answer.status,
        code: text("code"),
        detail,
        retry_after: Duration::from_secs(retry_after.min(RETRY_AFTER_MAX_SECS)),
    }
}

#[cfg(test)]
mod tests {
    use super::redirection;

    #[test]
    fn a_redirect_names_the_url_to_use_if_it_is_known() {
        let base = "http://tidings.example/base";
        let uri = "http://tidings.example/base/events/jobs?status=failed";
        for (to, advice) in [
            (
                "https://tidings.example/base/events/jobs?status=failed",
                "use https://tidings.example/base as the URL",
            ),
            (
                "https://new.example/events/jobs",
                "use https://new.example as the URL",
            ),
            ("/login", "use the URL of Tidings itself"),
            ("https://sso.example/login", "use the URL of Tidings itself"),
            (
                "https://sso.example/?rd=http://tidings.example/base/events/jobs",
                "use the URL of Tidings itself",
            ),
            (uri, "use the URL of Tidings itself"),
        ] {
            let text = redirection(base, uri, to);
            assert!(text.contains(&format!("redirects to {to}, ")), "{text}");
            assert!(text.ends_with(advice), "{text}");
        }
    }
}
