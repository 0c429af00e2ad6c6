//! The client that all commands use to talk to a server: a blocking wrapper around [`crate::client`].
//!
//! A separate thread drives the connections. So any number of threads can wait for answers, and an idle connection that the server
//! closes is not reused.

use std::borrow::Cow;
use std::future::{Future, ready};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(unix)]
use chrono::{TimeDelta, Utc};
use hyper::Uri;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout_at;

use super::{Exit, Failure};
use crate::client::{self, ClientError, Credential};
use crate::config::Secret;
use crate::config::origin::parse_port;
use crate::id::SchoolId;

/// The default server.
pub(super) const DEFAULT_URL: &str = "http://127.0.0.1:8000";

/// Smaller differences between the two clocks are ignored: `Date` has whole seconds, and an answer takes time.
#[cfg(unix)]
const CLOCKS_DIFFER_MIN: TimeDelta = TimeDelta::seconds(3);

/// The problem code of a request that does not name a school, and the text that the command line shows for it.
const SCHOOL_REQUIRED: &str = "school-required";
const SCHOOL_IS_REQUIRED: &str =
    "the token covers several schools: name one with --school or TIDINGS_SCHOOL_ID (HTTP 400)";

/// A server, and a credential for it. Clones share their connections.
#[derive(Clone)]
pub(super) struct Client {
    client: client::Client,
    base: String,
    /// The school that each request names.
    school: Option<SchoolId>,
    /// The deadline of every request.
    deadline: Option<Instant>,
    driver: Arc<Driver>,
}

/// The runtime that drives the connections.
struct Driver(Option<Runtime>);

impl Driver {
    fn start() -> std::io::Result<Driver> {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("tidings-client");
        runtime
            .enable_io()
            .enable_time()
            .build()
            .map(Some)
            .map(Driver)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Otherwise the end of the command would wait for names that are being resolved.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Client {
    /// Creates a client for any server.
    pub(super) fn new(base: &str, token: Option<Secret>) -> Result<Client, Failure> {
        Client::of(base, connect(base, token)?)
    }

    /// Creates a client for the server in this process. Each request gets a new token, so that none expires.
    pub(super) fn of_own_server<E: std::fmt::Display + Send + 'static>(
        base: &str,
        token: impl Fn() -> Result<Secret, E> + Send + Sync + 'static,
    ) -> Result<Client, Failure> {
        let credential = Credential::renewed(move || ready(token()));
        let client = client::Client::of_this_process(base, credential);
        Client::of(base, client.map_err(|error| failure(base, error))?)
    }

    fn of(base: &str, client: client::Client) -> Result<Client, Failure> {
        Ok(Client {
            client,
            base: base.trim_end_matches('/').to_owned(),
            school: None,
            deadline: None,
            driver: Arc::new(Driver::start()?),
        })
    }

    /// Sets the deadline of every request.
    pub(super) fn until(self, deadline: Instant) -> Client {
        Client {
            deadline: Some(deadline),
            ..self
        }
    }

    /// Names this school in each request, for a token that covers several.
    pub(super) fn of_school(self, school: Option<SchoolId>) -> Client {
        Client { school, ..self }
    }

    /// Posts JSON and returns the answer. A problem becomes a [`Failure`] with its detail.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.wait(self.client.post(&self.path(path), body))
    }

    /// Posts JSON that the server carries out only once, however often it is sent with this key.
    pub(super) fn post_once(&self, path: &str, body: &Value, key: &str) -> Result<Value, Failure> {
        self.wait(self.client.post_once(&self.path(path), body, key))
    }

    /// Posts a batch of commands. Ignores their individual results.
    pub(super) fn batch(&self, commands: &[Value]) -> Result<(), Failure> {
        self.wait(self.client.batch(commands)).map(drop)
    }

    /// Posts a batch of commands. Only the result of the last one counts: its rejection becomes a [`Failure`].
    pub(super) fn batch_for_last(&self, mut commands: Vec<Value>) -> Result<(), Failure> {
        if let Some(school) = self.school {
            for command in &mut commands {
                command["school_id"] = i64::from(school).into();
            }
        }
        let results = self.wait(self.client.batch(&commands))?;
        // If its result is missing, the batch was cut off. 503 is transient, so the caller repeats the batch.
        let last = results.get(commands.len() - 1).unwrap_or(&Value::Null);
        let status = last["status"].as_u64().unwrap_or(503);
        if (200..300).contains(&status) {
            return Ok(());
        }
        let problem = &last["problem"];
        let rejected = ClientError::Rejected {
            status: u16::try_from(status).unwrap_or(500),
            code: problem["code"].as_str().map(str::to_owned),
            detail: problem["detail"].as_str().unwrap_or_default().to_owned(),
            // The result of a line has no `Retry-After`.
            retry_after: Duration::ZERO,
        };
        Err(failure(&self.base, rejected))
    }

    /// Puts JSON.
    pub(super) fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.wait(self.client.put(&self.path(path), body))
    }

    /// Deletes a resource, and returns the answer.
    pub(super) fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.wait(self.client.delete(&self.path(path)))
    }

    /// Gets JSON.
    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        self.wait(self.client.get(&self.path(path)))
    }

    /// Gets JSON, and by how much the server's clock is ahead of the local one: zero if that is unknown or negligible.
    #[cfg(unix)]
    pub(super) fn get_with_clock(&self, path: &str) -> Result<(Value, TimeDelta), Failure> {
        let (answer, date) = self.wait(self.client.get_with_date(&self.path(path)))?;
        let ahead = date.map_or(TimeDelta::zero(), |date| date - Utc::now());
        let is_known = ahead.abs() >= CLOCKS_DIFFER_MIN;
        Ok((answer, ahead * i32::from(is_known)))
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, Failure> {
        let runtime = self.driver.0.as_ref();
        let runtime = runtime.expect("it is taken only when the last client is dropped");
        let answer = runtime.block_on(async {
            match self.deadline {
                None => Ok(answer.await),
                Some(deadline) => timeout_at(deadline.into(), answer).await,
            }
        });
        let Ok(answer) = answer else {
            let problem = format!("cannot reach {}: it does not answer in time", self.base);
            return Err(Failure::new(Exit::Unreachable, problem));
        };
        answer.map_err(|error| failure(&self.base, error))
    }

    fn path<'a>(&self, path: &'a str) -> Cow<'a, str> {
        let Some(school) = self.school else {
            return path.into();
        };
        let separator = if path.contains('?') { '&' } else { '?' };
        format!("{path}{separator}school_id={school}").into()
    }
}

/// Creates an asynchronous client for any server.
pub(super) fn connect(base: &str, token: Option<Secret>) -> Result<client::Client, Failure> {
    let credential = match token {
        Some(token) => Credential::token(token.reveal()),
        None => Credential::none(),
    };
    client::Client::new(base, credential).map_err(|error| failure(base, error))
}

/// Converts a client error. `base` is the URL of the server.
pub(super) fn failure(base: &str, error: ClientError) -> Failure {
    let unreachable = |why: &dyn std::fmt::Display| format!("cannot reach {base}: {why}");
    let (status, code, detail, retry_after) = match error {
        ClientError::Rejected {
            code: Some(code), ..
        } if code == SCHOOL_REQUIRED => {
            return Failure {
                http_status: Some(400),
                code: Some(code),
                ..Failure::new(Exit::Usage, SCHOOL_IS_REQUIRED)
            };
        }
        ClientError::Rejected {
            status,
            code,
            detail,
            retry_after,
        } => (status, code, detail, retry_after),
        ClientError::Unreachable(cause) => {
            return Failure::new(Exit::Unreachable, unreachable(&cause));
        }
        error @ ClientError::Unreadable(_) => {
            return Failure::new(Exit::Unreachable, unreachable(&error));
        }
        error @ ClientError::Url(_) => return Failure::new(Exit::Usage, error),
        error => return Failure::new(Exit::Failed, error),
    };
    let exit = match status {
        400 => Exit::Usage,
        401 | 403 => Exit::Denied,
        404 => Exit::NotFound,
        502..=504 => Exit::Unreachable,
        _ => Exit::Failed,
    };
    let detail = format!("{detail} (HTTP {status})");
    let message = match exit {
        Exit::Unreachable => unreachable(&detail),
        _ => detail,
    };
    Failure {
        http_status: Some(status),
        code,
        retry_after,
        ..Failure::new(exit, message)
    }
}

/// Parses the URL of a server, to which paths are appended. An empty variable counts as unset.
pub(super) fn url(text: &str) -> Result<String, String> {
    let text = if text.is_empty() { DEFAULT_URL } else { text };
    let parsed = text.parse::<Uri>().ok();
    let is_server = parsed.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri
                .authority()
                .is_some_and(|authority| is_address(authority.as_str(), authority.host()))
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

/// Whether the authority has a host, and a valid port if it has one.
fn is_address(authority: &str, host: &str) -> bool {
    let port = authority.strip_prefix(host);
    let is_port =
        |port: &str| port.is_empty() || port.strip_prefix(':').and_then(parse_port).is_some();
    !host.is_empty() && port.is_some_and(is_port)
}
