//! The HTTP and SSE client of all commands that talk to a server. It is blocking and uses only the public API.

use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use ureq::http::uri::Authority;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::WithBody;
use ureq::{Body, RequestBuilder};

use super::{Exit, Failure};
use crate::config::Secret;
use crate::config::origin::parse_port;

/// The default server.
pub(super) const DEFAULT_URL: &str = "http://127.0.0.1:8000";
/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for an answer. Does not apply to streams.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A server, and a credential for it.
#[derive(Clone)]
pub(super) struct Client {
    agent: ureq::Agent,
    base: String,
    /// Returns the token of a request.
    token: Arc<dyn Fn() -> Option<Secret> + Send + Sync>,
    answer_timeout: Duration,
}

impl Client {
    /// Creates a client for any server. It trusts the system's certificate authorities, or those in `SSL_CERT_FILE`.
    pub(super) fn new(base: &str, token: Option<Secret>) -> Client {
        let mut tls = TlsConfig::builder();
        if base.starts_with("https:") {
            let trusted = rustls_native_certs::load_native_certs().certs;
            let trusted = trusted
                .iter()
                .map(|own| Certificate::from_der(own).to_owned());
            tls = tls.root_certs(RootCerts::from(trusted));
        }
        Client::with(base, Arc::new(move || token.clone()), tls.build())
    }

    /// Creates a client for the server in this process. Does not verify its certificate, which is for the public names of the
    /// server. Each request has a token of its own, so that none of them expires.
    pub(super) fn of_own_server(
        base: &str,
        token: impl Fn() -> Option<Secret> + Send + Sync + 'static,
    ) -> Client {
        let tls = TlsConfig::builder().disable_verification(true).build();
        Client::with(base, Arc::new(token), tls)
    }

    fn with(
        base: &str,
        token: Arc<dyn Fn() -> Option<Secret> + Send + Sync>,
        tls: TlsConfig,
    ) -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .tls_config(tls)
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")))
            .build();
        Client {
            agent: config.into(),
            base: base.trim_end_matches('/').to_owned(),
            token,
            answer_timeout: ANSWER_TIMEOUT,
        }
    }

    /// Waits for an answer at most this long.
    pub(super) fn within(self, answer_timeout: Duration) -> Client {
        Client {
            answer_timeout,
            ..self
        }
    }

    /// Posts JSON and returns the answer. A problem becomes a [`Failure`] with its detail.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.answer(self.to_post(path).send_json(body))
    }

    /// Posts JSON that the server carries out only once, however often it is sent with this key.
    pub(super) fn post_once(&self, path: &str, body: &Value, key: &str) -> Result<Value, Failure> {
        let request = self.to_post(path).header("Idempotency-Key", key);
        self.answer(request.send_json(body))
    }

    /// Posts a batch of commands. Ignores their individual results.
    pub(super) fn batch(&self, commands: &[Value]) -> Result<(), Failure> {
        let lines: String = commands
            .iter()
            .map(|command| format!("{command}\n"))
            .collect();
        let sent = self.to_post("/api/batch").send(lines);
        self.check(sent).map(drop)
    }

    fn to_post(&self, path: &str) -> RequestBuilder<WithBody> {
        self.in_time(self.with_token(self.agent.post(format!("{}{path}", self.base))))
    }

    /// Puts JSON.
    pub(super) fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.agent.put(format!("{}{path}", self.base));
        self.answer(self.in_time(self.with_token(request)).send_json(body))
    }

    /// Deletes, and returns the answer.
    pub(super) fn delete(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.delete(format!("{}{path}", self.base));
        self.answer(self.in_time(self.with_token(request)).call())
    }

    /// Gets JSON.
    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        let request = self.agent.get(format!("{}{path}", self.base));
        self.answer(self.in_time(self.with_token(request)).call())
    }

    /// Opens an event stream.
    pub(super) fn events(
        &self,
        path_and_query: &str,
        cursor: Option<&str>,
    ) -> Result<Events, Failure> {
        let request = self
            .agent
            .get(format!("{}/events{path_and_query}", self.base))
            .header("Accept", "text/event-stream");
        let mut request = self.with_token(request);
        if let Some(cursor) = cursor {
            request = request.header("Last-Event-ID", cursor);
        }
        let response = self.check(request.call())?;
        Ok(Events {
            lines: BufReader::new(response.into_body().into_reader()),
            id: None,
        })
    }

    fn in_time<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        request
            .config()
            .timeout_global(Some(self.answer_timeout))
            .build()
    }

    fn with_token<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match (self.token)() {
            Some(token) => request.header("Authorization", format!("Bearer {}", token.reveal())),
            None => request,
        }
    }

    fn answer(&self, sent: Result<Response<Body>, ureq::Error>) -> Result<Value, Failure> {
        let mut response = self.check(sent)?;
        let answer = response.body_mut().read_json();
        answer.map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, error: ureq::Error) -> Failure {
        let cause = match error {
            ureq::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        };
        Failure::new(
            Exit::Unreachable,
            format!("cannot reach {}: {cause}", self.base),
        )
    }

    /// Converts a problem to a [`Failure`] with its detail.
    fn check(&self, sent: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
        let mut response = sent.map_err(|error| self.unreachable(error))?;
        let status = response.status().as_u16();
        if status < 400 {
            return Ok(response);
        }
        let problem: Value = response.body_mut().read_json().unwrap_or(Value::Null);
        let detail = problem["detail"].as_str().unwrap_or("no detail");
        let exit = match status {
            400 => Exit::Usage,
            401 | 403 => Exit::Denied,
            404 => Exit::NotFound,
            502..=504 => Exit::Unreachable,
            _ => Exit::Failed,
        };
        let message = match exit {
            Exit::Unreachable => format!("cannot reach {}: {detail} (HTTP {status})", self.base),
            _ => format!("{detail} (HTTP {status})"),
        };
        Err(Failure {
            http_status: Some(status),
            ..Failure::new(exit, message)
        })
    }
}

/// A stream of messages and heartbeats.
pub(super) struct Events {
    lines: BufReader<ureq::BodyReader<'static>>,
    id: Option<String>,
}

/// What the stream delivered.
#[derive(Debug)]
pub(super) struct Received {
    /// A message. None for a heartbeat.
    pub(super) message: Option<Value>,
    /// The cursor to resume from.
    pub(super) cursor: Option<String>,
}

impl Iterator for Events {
    type Item = Received;

    /// Returns the next message or heartbeat, or none when the connection has ended.
    fn next(&mut self) -> Option<Received> {
        let mut data = String::new();
        let mut any = false;
        let mut is_heartbeat = false;
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap_or(0) == 0 {
                return None;
            }
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if !any {
                    continue;
                }
                let message = serde_json::from_str(&data).ok().filter(|_| !is_heartbeat);
                return Some(Received {
                    message,
                    cursor: self.id.clone(),
                });
            }
            any = true;
            if let Some(id) = line.strip_prefix("id:") {
                self.id = Some(id.trim_start().to_owned());
            } else if line == "event: heartbeat" {
                is_heartbeat = true;
            } else if let Some(text) = line.strip_prefix("data:") {
                data.push_str(text.strip_prefix(' ').unwrap_or(text));
            }
        }
    }
}

/// Parses the URL of a server, to which paths are appended. An empty variable counts as unset.
pub(super) fn url(text: &str) -> Result<String, String> {
    let text = if text.is_empty() { DEFAULT_URL } else { text };
    let parsed = text.parse::<Uri>().ok();
    let is_server = parsed.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(is_address)
            && uri.query().is_none()
            && !text.contains('#')
            && !text.contains('@')
    });
    match is_server {
        true => Ok(text.to_owned()),
        false => Err(
            "must be the URL of a server, such as https://tidings.example or http://127.0.0.1:8000, with a port from 1 to 65535".into(),
        ),
    }
}

/// Whether there is a host, and a valid port if there is one.
fn is_address(authority: &Authority) -> bool {
    let port = authority.as_str().strip_prefix(authority.host());
    let is_port =
        |port: &str| port.is_empty() || port.strip_prefix(':').and_then(parse_port).is_some();
    !authority.host().is_empty() && port.is_some_and(is_port)
}
