//! Errors over HTTP: RFC 9457 `application/problem+json`.
//!
//! One table says which error becomes which status and `type`. The detail that a client reads and the cause
//! that is logged are different strings; the cause is logged once, here.

use std::borrow::Cow;
use std::io::Cursor;
use std::sync::Arc;

use rocket::http::{ContentType, Header, Status};
use rocket::request::{Outcome, Request};
use rocket::response::{self, Responder, Response};
use serde::Serialize;

use super::credential::source;
use super::methods;
use crate::app::{Refused, TooFast};
use crate::auth::{AuthError, KeyError};
use crate::hub::HubFull;
use crate::id::NameError;
use crate::kind::RuleError;
use crate::log::{CommandError, StoreError, Waiting};
use crate::refusals::RequestSource;
use crate::reserve::ReserveFull;
use crate::service::{NotReady, Tidings};

/// An error as a client sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// `urn:tidings:problem:<name>`; the names are in `docs/http-api.md`.
    #[serde(rename = "type")]
    uri: &'static str,
    title: &'static str,
    status: u16,
    detail: Cow<'static, str>,
    /// The same as the last part of `type`.
    code: &'static str,
    /// The setting that has been reached, if one has.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'static str>,
    /// What a client may wait, in seconds, before it tries again; a header.
    #[serde(skip)]
    retry_after_secs: Option<u32>,
    /// Whether it is only that no credential was given.
    #[serde(skip)]
    lacks_credential: bool,
    /// How long ago the credential expired, in seconds, if that is what is wrong.
    #[serde(skip)]
    expired_secs: Option<u32>,
    /// What the log is told of an error of ours, and the client is not.
    #[serde(skip)]
    cause: Option<Arc<String>>,
}

/// What every problem's `type` begins with.
const URI_PREFIX: &str = "urn:tidings:problem:";

macro_rules! problems {
    ($($name:ident = $status:literal, $uri:literal, $title:literal;)*) => {
        /// Every kind of problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Kind { $(#[doc = $title] $name),* }

        impl Kind {
            fn parts(self) -> (u16, &'static str, &'static str) {
                match self { $(Kind::$name => ($status, concat!("urn:tidings:problem:", $uri), $title)),* }
            }
        }

        /// Status, `type` and title of every problem there is.
        pub const PROBLEMS: &[(u16, &str, &str)] = &[$(($status, concat!("urn:tidings:problem:", $uri), $title)),*];
    };
}

problems! {
    MalformedJson = 400, "malformed-json", "The body is not JSON";
    InvalidQuery = 400, "invalid-query", "A query parameter is not valid";
    InvalidCursor = 400, "invalid-cursor", "The cursor is not valid";
    HeadersTooLarge = 431, "headers-too-large", "The headers are too large";
    InvalidHeader = 400, "invalid-header", "A header is not valid";
    SchoolRequired = 400, "school-required", "The request names no school";
    BadHandshake = 400, "bad-handshake", "The WebSocket handshake is not valid";
    BadRequest = 400, "bad-request", "The request could not be read";
    Unauthorized = 401, "unauthorized", "A valid token is required";
    Forbidden = 403, "forbidden", "The token does not allow this";
    CrossOrigin = 403, "cross-origin", "This page may not use the cookie";
    NotFound = 404, "not-found", "Not found";
    MethodNotAllowed = 405, "method-not-allowed", "The address does not take this method";
    NotAcceptable = 406, "not-acceptable", "No transport fits the Accept header";
    AlreadyExists = 409, "already-exists", "The id is taken";
    Finished = 409, "finished", "It is finished";
    Held = 409, "held", "Another has it";
    StaleAttempt = 409, "stale-attempt", "The report is about another attempt";
    IllegalTransition = 409, "illegal-transition", "Its status does not allow this";
    AnswerGone = 410, "answer-gone", "It was done before, and its answer is not kept any more";
    BodyTooLarge = 413, "body-too-large", "The body is too large";
    BatchTooLarge = 413, "batch-too-large", "The batch leads to too much";
    UnsupportedEncoding = 415, "unsupported-encoding", "The body's encoding is not read here";
    InvalidBody = 422, "invalid-body", "The body is JSON, but not what is expected";
    UnsupportedVersion = 426, "unsupported-version", "This WebSocket version is not spoken here";
    KeyReused = 422, "idempotency-key-reused", "The key was used for another request";
    TooManyStreams = 429, "too-many-streams", "There are as many streams as there may be";
    TooManyReads = 429, "too-many-reads", "As many reads of the school wait as may";
    TooFast = 429, "too-fast", "Too much in too short a time";
    TooManySubjects = 409, "too-many-subjects", "The school has as many as it may";
    Internal = 500, "internal", "The server failed";
    Unavailable = 503, "unavailable", "The server cannot do this now";
}

/// What a client is told of an error of ours.
const NOT_DONE: &str = "the server could not do this, and nothing has changed";

/// What a client may wait, in seconds, before it tries again.
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

    /// The same, because of a setting.
    pub(crate) fn of_limit(self, setting: &'static str) -> Problem {
        Problem {
            limit: Some(setting),
            ..self
        }
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

    /// The last part of its `type`, for the `code` of a message on a stream.
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.uri == kind.parts().1
    }

    /// Counts it, and tells the log. Done once, where it is told to whom it concerns.
    pub(crate) fn note(&self, tidings: &Tidings, source: &RequestSource) {
        tidings.vitals().refused(self.code, self.limit);
        if let Some(cause) = &self.cause {
            tidings.refusals().failure(source, cause);
        }
        match self.status {
            401 | 403 => tidings
                .refusals()
                .credential(source, self.code, &self.detail),
            _ => tidings.refusals().request(source, self.code),
        }
    }

    /// What a guard comes to that reads something of a request.
    pub(super) fn outcome<T>(read: Result<T, Problem>) -> Outcome<T, Problem> {
        match read {
            Ok(value) => Outcome::Success(value),
            Err(problem) => Outcome::Error((Status::new(problem.status), problem)),
        }
    }

    /// An error of ours: the cause is logged, the client is not told.
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
            AuthError::Role { .. } | AuthError::Channel(_) | AuthError::NotForAll => {
                Kind::Forbidden
            }
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
            // The store has logged it, once for all commands.
            CommandError::Store(_) => Problem::new(Kind::Unavailable, NOT_DONE),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match error {
            StoreError::Busy(why) => why.into(),
            StoreError::Displaced => Problem::new(Kind::Unavailable, error.to_string()),
            // Logged, once for all requests.
            StoreError::NotCommitted => Problem::new(Kind::Unavailable, NOT_DONE),
            StoreError::Database(_) | StoreError::Stopped => {
                Problem::internal(Kind::Unavailable, &error)
            }
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

impl From<Refused> for Problem {
    fn from(error: Refused) -> Problem {
        match error {
            Refused::Auth(error) => error.into(),
            Refused::TooFast(error) => error.into(),
            Refused::Memory(error) => error.into(),
            Refused::Streams(error) => error.into(),
            Refused::Command(error) => error.into(),
            Refused::Store(error) => error.into(),
        }
    }
}

impl From<TooFast> for Problem {
    fn from(error: TooFast) -> Problem {
        let (setting, wait) = match error {
            TooFast::Commands { wait, .. } => ("publishes_per_sec", wait),
            TooFast::Bytes { wait, .. } => ("event_bytes_per_sec", wait),
        };
        Problem {
            // A second is the least that the header can say.
            retry_after_secs: Some(u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX)),
            ..Problem::new(Kind::TooFast, error.to_string()).of_limit(setting)
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
            NotReady::Late | NotReady::Stopping | NotReady::Failing(_) => {
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

/// Names in a query or a path; a body's are checked while it is read.
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
        match self.status {
            401 => response.raw_header("WWW-Authenticate", "Bearer"),
            // RFC 9110, 12.5.3: what would have been read.
            415 => response.raw_header("Accept-Encoding", "identity"),
            // RFC 9110, 15.5.22 and 7.8: what to upgrade to, which concerns this connection only.
            426 => response
                .raw_header("Sec-WebSocket-Version", "13")
                .raw_header("Upgrade", "websocket")
                .raw_header("Connection", "Upgrade"),
            _ => &mut response,
        };
        if let Some(secs) = self.retry_after_secs {
            response.raw_header("Retry-After", secs.to_string());
        }
        response.ok()
    }
}

/// The answer to what Rocket itself refuses.
pub(super) struct Caught {
    problem: Problem,
    /// The methods that the address takes, when it is the method that does not fit.
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

/// What Rocket itself refuses.
#[rocket::catch(default)]
pub(super) fn catch(status: Status, request: &Request<'_>) -> Caught {
    if status == Status::NotFound {
        return match methods::instead(request) {
            Some(names) => Caught {
                problem: Problem::new(
                    Kind::MethodNotAllowed,
                    format!("this address takes {names}"),
                ),
                allow: Some(names),
            },
            None => Caught {
                problem: methods::nothing_here(request),
                allow: None,
            },
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
