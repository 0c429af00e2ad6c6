//! Errors over HTTP: RFC 9457 `application/problem+json`.
//!
//! One table maps each error to a status and a `type`. The detail that the client reads and the cause that is logged are
//! different strings. The cause is logged once, here.

use std::borrow::Cow;
use std::io::Cursor;
use std::sync::Arc;

use rocket::http::{ContentType, Header, Status};
use rocket::request::{Outcome, Request};
use rocket::response::{self, Responder, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::credential::source;
use super::methods;
use crate::app::{GrantRejected, PingRejected, Rejected, TooFast};
use crate::auth::{AuthError, KeyError};
use crate::hub::HubFull;
use crate::id::NameError;
use crate::kind::RuleError;
use crate::log::{CommandError, StoreError, Waiting};
use crate::rejections::RequestSource;
use crate::reserve::ReserveFull;
use crate::service::{NotReady, Tidings};

/// An error as the client sees it.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Problem {
    /// `urn:tidings:problem:<name>`. The reference of the HTTP API lists the names.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = PROBLEMS.iter().map(|(_, uri, ..)| *uri).collect::<Vec<_>>()))]
    uri: &'static str,
    /// What is wrong, in general.
    title: &'static str,
    /// The HTTP status.
    #[schemars(range(min = 400, max = 599))]
    status: u16,
    /// What is wrong with this request, and what would be accepted.
    detail: Cow<'static, str>,
    /// The last part of `type`.
    code: &'static str,
    /// The setting whose limit was reached, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'static str>,
    /// How many seconds to wait before trying again. Sent as a header.
    #[serde(skip)]
    retry_after_secs: Option<u32>,
    /// Whether the only error is that no credential was sent.
    #[serde(skip)]
    lacks_credential: bool,
    /// How many seconds ago the credential expired, if that is the error.
    #[serde(skip)]
    expired_secs: Option<u32>,
    /// The cause of a failure inside the server. It is logged, and hidden from the client.
    #[serde(skip)]
    cause: Option<Arc<String>>,
}

/// The prefix of every `type`.
const URI_PREFIX: &str = "urn:tidings:problem:";

macro_rules! problems {
    ($($name:ident = $status:literal, $uri:literal, $title:literal, $when:literal;)*) => {
        /// Every kind of problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Kind { $(#[doc = $title] $name),* }

        impl Kind {
            /// Every kind, in the order of the table.
            pub(crate) const ALL: &[Kind] = &[$(Kind::$name),*];

            fn parts(self) -> (u16, &'static str, &'static str) {
                match self { $(Kind::$name => ($status, concat!("urn:tidings:problem:", $uri), $title)),* }
            }

            /// Returns when it is the answer.
            pub(super) fn when(self) -> &'static str {
                match self { $(Kind::$name => $when),* }
            }
        }

        /// Status, `type` and title of every kind of problem, and when it is the answer.
        pub const PROBLEMS: &[(u16, &str, &str, &str)] = &[$(($status, concat!("urn:tidings:problem:", $uri), $title, $when)),*];
    };
}

problems! {
    MalformedJson = 400, "malformed-json", "The body is not JSON",
        "the body is not JSON (`NaN` is not), or not UTF-8";
    InvalidQuery = 400, "invalid-query", "A query parameter is not valid",
        "a query parameter is out of range";
    InvalidCursor = 400, "invalid-cursor", "The cursor is not valid",
        "not a cursor from this server";
    HeadersTooLarge = 431, "headers-too-large", "The headers are too large",
        "the headers have more than 65,536 bytes";
    InvalidHeader = 400, "invalid-header", "A header is not valid",
        "the `Idempotency-Key` is not valid, or the `Accept` header has more than 1,024 bytes";
    SchoolRequired = 400, "school-required", "The request names no school",
        "the token is for several schools, and there is no `school_id`";
    BadHandshake = 400, "bad-handshake", "The WebSocket handshake is not valid",
        "a request to a WebSocket endpoint without a valid handshake, or a handshake that a proxy has changed; `detail` says which";
    BadRequest = 400, "bad-request", "The request is not valid",
        "the request is not valid in another way";
    Unauthorized = 401, "unauthorized", "A valid token is required",
        "no valid token; `detail` says which check failed";
    Forbidden = 403, "forbidden", "The token does not allow this",
        "the token's role or channels do not allow the request";
    CrossOrigin = 403, "cross-origin", "This origin is not allowed to use the cookie",
        "a page of another origin used a cookie";
    NotFound = 404, "not-found", "Not found",
        "no such URL, verb, channel or subject, or it belongs to another school";
    MethodNotAllowed = 405, "method-not-allowed", "The URL does not support this method",
        "the URL does not support this method; jobs, for example, do not support `PUT`. `Allow` lists exactly those that it supports";
    NotAcceptable = 406, "not-acceptable", "No transport matches the Accept header",
        "no transport fits the `Accept` header";
    AlreadyExists = 409, "already-exists", "The id is already in use",
        "the id is already in use";
    Finished = 409, "finished", "The subject is in a terminal state",
        "the job or session is finished, or the violation is acknowledged";
    Held = 409, "held", "Another subject holds the required resource",
        "the device has another active session";
    StaleAttempt = 409, "stale-attempt", "The report is about another attempt",
        "the report belongs to an attempt other than the current one: it names that attempt, or names none and comes from a worker of an earlier attempt";
    IllegalTransition = 409, "illegal-transition", "The current status does not allow this",
        "the subject's status does not allow this";
    AnswerGone = 410, "answer-gone", "The request was carried out before, and its answer is no longer kept",
        "the request with this `Idempotency-Key` was carried out before, but its answer and its subject have been removed";
    BodyTooLarge = 413, "body-too-large", "The body is too large",
        "more bytes or commands than allowed";
    BatchTooLarge = 413, "batch-too-large", "The batch produces too many bytes of events",
        "the earlier lines have produced as many bytes of events as a batch is allowed to (`batch_event_bytes`); only in a line of a batch";
    UnsupportedEncoding = 415, "unsupported-encoding", "The body's encoding is not supported",
        "the body is compressed (`Content-Encoding`); send it uncompressed";
    InvalidBody = 422, "invalid-body", "The body is JSON, but not valid for this request",
        "valid JSON, but with a wrong type, an unknown field, a value out of range or a number that would be rounded; or the id in a `PUT` is not valid";
    UnsupportedVersion = 426, "unsupported-version", "The WebSocket version is not supported",
        "a WebSocket version other than 13; the response has `Upgrade` and `Sec-WebSocket-Version`";
    KeyReused = 422, "idempotency-key-reused", "The idempotency key was used for a different request",
        "the key was used for a different request";
    TooManyStreams = 429, "too-many-streams", "The limit on open streams is reached",
        "the limit of open streams for this school, user (`sub`) or address is reached; `Retry-After`";
    TooManyReads = 429, "too-many-reads", "Too many reads of the school are waiting",
        "the limit of requests of this school that wait for their turn to read is reached (`max_waiting_reads_per_school`); `Retry-After`";
    TooFast = 429, "too-fast", "The rate limit is exceeded",
        "too many commands (`publishes_per_sec`), pings (`pings_per_sec`) or bytes of events (`event_bytes_per_sec`), or the school's writes in progress use its whole share of `write_memory_bytes`. The request, or line, had no effect; `Retry-After`";
    TooManySubjects = 409, "too-many-subjects", "The school's limit on subjects is reached",
        "the school has reached its limit of jobs, sessions, devices, characteristics, schedules or ping keys";
    Internal = 500, "internal", "The server failed",
        "the server failed; the cause is in its log";
    Unavailable = 503, "unavailable", "The server cannot do this now",
        "the database does not answer or is busy with other reads, the total limit of streams is reached, there is no memory for writes (`write_memory_bytes`), or, at `/readyz`, the server is shutting down; `Retry-After`";
}

/// What a client is told about a failure inside the server.
const NOT_DONE: &str = "the server could not do this, and nothing has changed";
const OUTCOME_UNKNOWN: &str = "the connection to the database broke, so it is not known whether this took effect; send it again with the same Idempotency-Key: it is then carried out at most once";

/// How many seconds a client should wait before it tries again.
const RETRY_AFTER_SECS: u32 = 2;

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Problem {
        let (status, uri, title) = kind.parts();
        let code = uri.strip_prefix(URI_PREFIX).unwrap_or(uri);
        Problem {
            uri,
            title,
            status,
            detail: detail.into(),
            code,
            limit: None,
            retry_after_secs: match status {
                429 | 503 => Some(RETRY_AFTER_SECS),
                _ => None,
            },
            lacks_credential: false,
            expired_secs: None,
            cause: None,
        }
    }

    /// Returns an example of this kind.
    pub(super) fn example(kind: Kind) -> Problem {
        Problem::new(kind, "what exactly is wrong, and what would be accepted")
    }

    pub(super) fn title(&self) -> &'static str {
        self.title
    }

    /// Adds the setting whose limit was reached.
    pub(crate) fn of_limit(self, setting: &'static str) -> Problem {
        Problem {
            limit: Some(setting),
            ..self
        }
    }

    /// Returns the headers that belong to the status, such as `Retry-After`.
    pub(super) fn headers(&self) -> Vec<(&'static str, Cow<'static, str>)> {
        let mut headers: Vec<(&'static str, Cow<'static, str>)> = match self.status {
            401 => vec![("WWW-Authenticate", "Bearer".into())],
            // RFC 9110, 12.5.3: the encodings that would be accepted.
            415 => vec![("Accept-Encoding", "identity".into())],
            // RFC 9110, 15.5.22 and 7.8: the protocol to upgrade to. `Upgrade` applies to this connection only.
            426 => vec![
                ("Sec-WebSocket-Version", "13".into()),
                ("Upgrade", "websocket".into()),
                ("Connection", "Upgrade".into()),
            ],
            _ => Vec::new(),
        };
        if let Some(secs) = self.retry_after_secs {
            headers.push(("Retry-After", secs.to_string().into()));
        }
        headers
    }

    pub(crate) fn retry_after_secs(&self) -> Option<u32> {
        self.retry_after_secs
    }

    pub(crate) fn lacks_credential(&self) -> bool {
        self.lacks_credential
    }

    pub(crate) fn expired_secs(&self) -> Option<u32> {
        self.expired_secs
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Returns the last part of `type`, which is the `code` of an `error` message on a stream.
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.uri == kind.parts().1
    }

    /// Counts and logs the problem. Called once for each problem, where it is sent to the client.
    pub(crate) fn note(&self, tidings: &Tidings, source: &RequestSource) {
        tidings.metrics().rejected(self.code, self.limit);
        if let Some(cause) = &self.cause {
            tidings.rejections().failure(source, cause);
        }
        match self.status {
            401 | 403 => tidings
                .rejections()
                .credential(source, self.code, &self.detail),
            _ => tidings.rejections().request(source, self.code),
        }
    }

    /// Converts what a guard read from a request to the guard's outcome.
    pub(super) fn outcome<T>(read: Result<T, Problem>) -> Outcome<T, Problem> {
        match read {
            Ok(value) => Outcome::Success(value),
            Err(problem) => Outcome::Error((Status::new(problem.status), problem)),
        }
    }

    /// A failure inside the server.
    fn internal(kind: Kind, cause: &dyn std::error::Error) -> Problem {
        Problem {
            cause: Some(Arc::new(cause.to_string())),
            ..Problem::new(kind, NOT_DONE)
        }
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Problem {
        let kind = match error {
            AuthError::Missing
            | AuthError::Invalid(_)
            | AuthError::Expired { .. }
            | AuthError::InvalidTicket(_)
            | AuthError::ExpiredTicket => Kind::Unauthorized,
            // Not 401: another token would not help.
            AuthError::InvalidLink
            | AuthError::ExpiredLink
            | AuthError::Role { .. }
            | AuthError::Channel(_)
            | AuthError::NotUnrestricted => Kind::Forbidden,
            AuthError::SchoolRequired => Kind::SchoolRequired,
            AuthError::NotFound => Kind::NotFound,
        };
        Problem {
            lacks_credential: error == AuthError::Missing,
            expired_secs: match error {
                AuthError::Expired { ago_secs } => Some(ago_secs.try_into().unwrap_or(u32::MAX)),
                _ => None,
            },
            ..Problem::new(kind, error.to_string())
        }
    }
}

impl From<RuleError> for Problem {
    fn from(error: RuleError) -> Problem {
        let kind = match error {
            RuleError::NotFound { .. } => Kind::NotFound,
            RuleError::AlreadyExists { .. } => Kind::AlreadyExists,
            RuleError::Finished { .. } => Kind::Finished,
            RuleError::Held { .. } => Kind::Held,
            RuleError::IllegalTransition { .. } => Kind::IllegalTransition,
            RuleError::StaleAttempt { .. } | RuleError::StaleWorker { .. } => Kind::StaleAttempt,
            RuleError::TooLarge { .. } | RuleError::Invalid { .. } => Kind::InvalidBody,
            RuleError::TooMany { .. } => Kind::TooManySubjects,
        };
        Problem {
            limit: match error {
                RuleError::TooLarge { most, .. } => most.setting,
                RuleError::TooMany { setting, .. } => setting,
                _ => None,
            },
            ..Problem::new(kind, error.to_string())
        }
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Problem {
        match error {
            CommandError::Rule(error) => error.into(),
            CommandError::KeyReused => Problem::new(Kind::KeyReused, error.to_string()),
            CommandError::AnswerGone => Problem::new(Kind::AnswerGone, error.to_string()),
            CommandError::TooMuch { .. } => {
                Problem::new(Kind::BatchTooLarge, error.to_string()).of_limit("batch_event_bytes")
            }
            // The store has already logged the failure, once for all commands of the commit.
            CommandError::Store(StoreError::Unknown) => {
                Problem::new(Kind::Unavailable, OUTCOME_UNKNOWN)
            }
            CommandError::Store(_) => Problem::new(Kind::Unavailable, NOT_DONE),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match error {
            StoreError::Busy(why) => why.into(),
            StoreError::Displaced | StoreError::NotWritable(_) => {
                Problem::new(Kind::Unavailable, error.to_string())
            }
            // Already logged, once for all requests of the commit.
            StoreError::NotCommitted => Problem::new(Kind::Unavailable, NOT_DONE),
            StoreError::Unknown => Problem::new(Kind::Unavailable, OUTCOME_UNKNOWN),
            StoreError::Database(_)
            | StoreError::Unavailable(_)
            | StoreError::Stopped
            | StoreError::Fenced => Problem::internal(Kind::Unavailable, &error),
        }
    }
}

impl From<Waiting> for Problem {
    fn from(why: Waiting) -> Problem {
        let (kind, setting) = match why {
            Waiting::OfSchool => (Kind::TooManyReads, "max_waiting_reads_per_school"),
            Waiting::InAll => (Kind::Unavailable, "max_waiting_reads"),
            Waiting::TooLong => (Kind::Unavailable, "read_timeout_ms"),
        };
        Problem::new(kind, why.to_string()).of_limit(setting)
    }
}

impl From<Rejected> for Problem {
    fn from(error: Rejected) -> Problem {
        match error {
            Rejected::Auth(error) => error.into(),
            Rejected::TooFast(error) => error.into(),
            Rejected::Memory(error) => error.into(),
            Rejected::Streams(error) => error.into(),
            Rejected::Command(error) => error.into(),
            Rejected::Missing(_) => Problem::new(Kind::NotFound, error.to_string()),
            Rejected::Store(error) => error.into(),
        }
    }
}

impl From<GrantRejected> for Problem {
    fn from(error: GrantRejected) -> Problem {
        match error {
            GrantRejected::Auth(error) => error.into(),
            GrantRejected::Key(error) => error.into(),
        }
    }
}

impl From<PingRejected> for Problem {
    fn from(error: PingRejected) -> Problem {
        match error {
            PingRejected::Rejected(error) => error.into(),
            PingRejected::UnknownKey | PingRejected::NoReport(_) => {
                Problem::new(Kind::NotFound, error.to_string())
            }
            PingRejected::Rid => Problem::new(Kind::InvalidQuery, error.to_string()),
        }
    }
}

impl From<TooFast> for Problem {
    fn from(error: TooFast) -> Problem {
        let (setting, wait) = match error {
            TooFast::Commands { wait, .. } => (Some("publishes_per_sec"), wait),
            TooFast::Pings { wait, setting, .. } => (setting, wait),
            TooFast::Bytes { wait, .. } => (Some("event_bytes_per_sec"), wait),
        };
        Problem {
            limit: setting,
            // `Retry-After` has no fractions of a second: round up.
            retry_after_secs: Some(u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX)),
            ..Problem::new(Kind::TooFast, error.to_string())
        }
    }
}

impl From<HubFull> for Problem {
    fn from(error: HubFull) -> Problem {
        let (kind, setting) = match error {
            HubFull::Server => (Kind::Unavailable, "max_streams"),
            HubFull::School => (Kind::TooManyStreams, "max_streams_per_school"),
            HubFull::User => (Kind::TooManyStreams, "max_streams_per_user"),
            HubFull::Address => (Kind::TooManyStreams, "max_streams_per_address"),
        };
        Problem::new(kind, error.to_string()).of_limit(setting)
    }
}

impl From<ReserveFull> for Problem {
    fn from(error: ReserveFull) -> Problem {
        let kind = match error {
            ReserveFull::Holder => Kind::TooFast,
            ReserveFull::Server => Kind::Unavailable,
        };
        Problem::new(kind, error.to_string()).of_limit("write_memory_bytes")
    }
}

impl From<NotReady> for Problem {
    fn from(error: NotReady) -> Problem {
        match error {
            NotReady::Store(error) => error.into(),
            NotReady::Late | NotReady::Stopping | NotReady::Failing(_) | NotReady::Dead(_) => {
                Problem::new(Kind::Unavailable, error.to_string())
            }
        }
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Problem {
        Problem::internal(Kind::Internal, &error)
    }
}

/// Converts errors of names in a query or a path. Names in a body are checked while the body is read.
impl From<NameError> for Problem {
    fn from(error: NameError) -> Problem {
        let kind = match error {
            NameError::Cursor => Kind::InvalidCursor,
            NameError::School
            | NameError::Subject
            | NameError::Channel(_)
            | NameError::Encoding => Kind::InvalidQuery,
        };
        Problem::new(kind, error.to_string())
    }
}

impl<'r> Responder<'r, 'static> for Problem {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        if let Some(tidings) = request.rocket().state::<Arc<Tidings>>() {
            self.note(tidings, &source(request));
        }
        let body = serde_json::to_vec(&self).expect("a problem is JSON");
        let mut response = Response::build();
        response
            .status(Status::new(self.status))
            .header(ContentType::new("application", "problem+json"))
            .header(Header::new("Cache-Control", "no-store"))
            .sized_body(body.len(), Cursor::new(body));
        for (name, value) in self.headers() {
            response.raw_header(name, value);
        }
        response.ok()
    }
}

/// The answer to a request that Rocket itself rejects.
pub(super) struct Caught {
    problem: Problem,
    /// The methods that the URL supports, if it does not support the requested one.
    allow: Option<String>,
}

impl<'r> Responder<'r, 'static> for Caught {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let mut response = self.problem.respond_to(request)?;
        if let Some(methods) = self.allow {
            response.set_raw_header("Allow", methods);
        }
        Ok(response)
    }
}

/// Answers requests that Rocket itself rejects.
#[rocket::catch(default)]
pub(super) fn catch(status: Status, request: &Request<'_>) -> Caught {
    if let Some(names) = methods::instead(request, status) {
        return Caught {
            problem: Problem::new(Kind::MethodNotAllowed, format!("this URL supports {names}")),
            allow: Some(names),
        };
    }
    if status == Status::NotFound || methods::is_unknown_method(request, status) {
        return Caught {
            problem: methods::nothing_here(request),
            allow: None,
        };
    }
    let kind = match status.code {
        401 => Kind::Unauthorized,
        403 => Kind::Forbidden,
        413 => Kind::BodyTooLarge,
        422 => Kind::InvalidBody,
        503 => Kind::Unavailable,
        400..500 => Kind::BadRequest,
        _ => Kind::Internal,
    };
    let mut problem = Problem::new(kind, status.reason_lossy());
    problem.status = status.code;
    Caught {
        problem,
        allow: None,
    }
}
