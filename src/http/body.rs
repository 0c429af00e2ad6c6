//! Reads bodies and writes JSON answers.

use std::io::{self, Cursor, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rocket::data::{self, ByteUnit, Data, DataStream, FromData};
use rocket::http::{ContentType, Status};
use rocket::request::{FromRequest, Outcome, Request};
use rocket::response::{self, Responder, Response};
use rocket::tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Number, Value};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::base_path;
use super::credential::{query, tidings};
use super::problem::{Kind, Problem};
use crate::config::{IDEMPOTENCY_KEY_MAX_BYTES, StatusCase};
use crate::log::{Allowance, Idempotency};
use crate::number::{whole, whole_unsigned};
use crate::wire::json::{self, JsonError};

/// A body that has not been read yet.
pub(super) struct Unread<'r> {
    data: Data<'r>,
    /// The length that the request states.
    length: Option<u64>,
    /// How long the body may take to arrive.
    timeout_after: Duration,
}

impl<'r> Unread<'r> {
    /// Returns the body as a stream, without a limit on its length.
    pub(super) fn stream(self) -> DataStream<'r> {
        self.data.open(ByteUnit::max_value())
    }

    /// Returns the maximum number of bytes to be read.
    pub(super) fn expected(&self, limit: u64) -> u64 {
        self.length.map_or(limit, |length| length.min(limit))
    }

    /// Reads at most `limit` bytes, which is the value of `setting`.
    pub(super) async fn read(
        self,
        (limit, setting): (u64, &'static str),
    ) -> Result<Vec<u8>, Problem> {
        // Read one byte more than allowed, to distinguish a body at the limit from one above it.
        let bytes = self.read_beginning(limit.saturating_add(1)).await?;
        if bytes.len() as u64 > limit {
            return Err(Problem::new(
                Kind::BodyTooLarge,
                format!("the body has more than {limit} bytes; at most {limit} are accepted"),
            )
            .of_limit(setting));
        }
        Ok(bytes)
    }

    /// Reads at most `limit` bytes, and ignores the rest.
    pub(super) async fn read_beginning(self, limit: u64) -> Result<Vec<u8>, Problem> {
        let read = self.data.open(ByteUnit::from(limit));
        let arrived = timeout(self.timeout_after, read.into_bytes()).await;
        let bytes = arrived.map_err(|_| {
            let secs = self.timeout_after.as_secs();
            let detail = format!("the body did not arrive within {secs} s");
            Problem::new(Kind::BadRequest, detail).of_limit("body_timeout_secs")
        })?;
        let bytes = bytes.map_err(|error| Problem::new(Kind::BadRequest, error.to_string()))?;
        Ok(bytes.into_inner())
    }
}

#[rocket::async_trait]
impl<'r> FromData<'r> for Unread<'r> {
    type Error = Problem;

    async fn from_data(request: &'r Request<'_>, data: Data<'r>) -> data::Outcome<'r, Unread<'r>> {
        let mut codings = request
            .headers()
            .get("Content-Encoding")
            .flat_map(|line| line.split(','))
            .map(str::trim);
        let foreign =
            codings.find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"));
        match foreign {
            None => {
                let length = request.headers().get_one("Content-Length");
                let length = length.and_then(|length| length.trim().parse().ok());
                let secs = tidings(request).settings().body_timeout_secs.get();
                data::Outcome::Success(Unread {
                    data,
                    length,
                    timeout_after: Duration::from_secs(secs),
                })
            }
            Some(_) => {
                let detail = "Content-Encoding must be identity or absent: compressed bodies are not supported";
                let problem = Problem::new(Kind::UnsupportedEncoding, detail);
                data::Outcome::Error((Status::UnsupportedMediaType, problem))
            }
        }
    }
}

/// Parses JSON after an optional byte order mark. An empty body stands for `{}`.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let detail = format!("the body must be UTF-8; the byte at offset {at} is not");
        Problem::new(Kind::MalformedJson, detail)
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // serde would accept a list of values in place of an object.
    if text.trim_ascii().starts_with('[') {
        let detail = "it must be an object, not a list";
        return Err(Problem::new(Kind::InvalidBody, detail));
    }
    let is_empty = text.trim_ascii().is_empty();
    json::read(if is_empty { "{}" } else { text }).map_err(|error| {
        let kind = match error {
            JsonError::Malformed(_) => Kind::MalformedJson,
            JsonError::Unexpected(_) | JsonError::Inexact(_) => Kind::InvalidBody,
        };
        Problem::new(kind, error.to_string())
    })
}

/// An `Idempotency-Key` header, and the method and URL of the request, which are part of its fingerprint.
pub(super) struct IdempotencyKey {
    key: Option<String>,
    address: String,
}

impl IdempotencyKey {
    /// Returns the key with a digest of the request.
    pub(super) fn with(self, body: &[u8]) -> Option<Idempotency> {
        let key = self.key?;
        Some(Idempotency {
            key,
            fingerprint: fingerprint(&self.address, body),
        })
    }

    /// Returns a key for each command of a batch.
    pub(super) fn of_command(&self, number: usize, body: &[u8]) -> Option<Idempotency> {
        let key = self.key.as_ref()?;
        Some(Idempotency {
            // A valid key contains no space, so no client can send this one.
            key: format!("{key} {number}"),
            fingerprint: fingerprint(&self.address, body),
        })
    }
}

/// Whether a text is a valid idempotency key.
pub(super) fn is_sound_key(key: &str) -> bool {
    let fits = (1..=IDEMPOTENCY_KEY_MAX_BYTES).contains(&key.len());
    fits && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Returns a digest of the request for which an idempotency key was used. Bodies that differ only in the form of their JSON
/// have the same digest.
pub(super) fn fingerprint(address: &str, body: &[u8]) -> String {
    let meaning = parse::<Value>(body).map(|value| canonical(value).to_string());
    let digest = Sha256::new()
        .chain_update(address)
        .chain_update(b"\n")
        .chain_update(meaning.as_ref().map_or(body, |meaning| meaning.as_bytes()))
        .finalize();
    digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Returns the JSON in canonical form (as in RFC 8785): members sorted by name, and doubles that are integers as integers.
fn canonical(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut members: Vec<_> = object.into_iter().collect();
            members.sort_unstable_by(|(one, _), (next, _)| one.cmp(next));
            let members = members.into_iter();
            members
                .map(|(name, value)| (name, canonical(value)))
                .collect()
        }
        Value::Array(items) => items.into_iter().map(canonical).collect(),
        Value::Number(number) => Value::Number(without_fraction(&number).unwrap_or(number)),
        other => other,
    }
}

/// Returns a whole double as the integer that it equals exactly, if that fits in 64 bits.
fn without_fraction(number: &Number) -> Option<Number> {
    let double = number.as_f64().filter(|_| number.is_f64())?;
    let bounds = i64::MIN as f64..u64::MAX as f64;
    let is_whole = double.fract() == 0.0 && bounds.contains(&double);
    is_whole.then(|| match double < 0.0 {
        true => whole(double).into(),
        false => whole_unsigned(double).into(),
    })
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for IdempotencyKey {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<IdempotencyKey, Problem> {
        Problem::outcome(idempotency_key(request))
    }
}

fn idempotency_key(request: &Request<'_>) -> Result<IdempotencyKey, Problem> {
    let key = request.headers().get_one("Idempotency-Key");
    if key.is_some_and(|key| !is_sound_key(key)) {
        let detail = format!(
            "Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_MAX_BYTES} visible ASCII characters"
        );
        return Err(Problem::new(Kind::InvalidHeader, detail));
    }
    Ok(IdempotencyKey {
        key: key.map(str::to_owned),
        address: address(request),
    })
}

/// Returns the method and the canonical path of a request: percent-decoded, without a slash at the end.
fn address(request: &Request<'_>) -> String {
    let mut address = request.method().to_string();
    address.push(' ');
    let segments = request.uri().path().raw_segments();
    for segment in segments.filter(|segment| !segment.is_empty()) {
        address.push('/');
        address.push_str(&segment.percent_decode_lossy());
    }
    address
}

/// Whether to write `status` in upper case: `?status_case=`, or else the setting.
pub(super) struct UpperStatus(pub(super) bool);

pub(super) fn upper_status(request: &Request<'_>) -> Result<UpperStatus, Problem> {
    match query(request, "status_case") {
        None => Ok(UpperStatus(
            tidings(request).settings().status_case == StatusCase::Upper,
        )),
        Some("upper") => Ok(UpperStatus(true)),
        Some("lower") => Ok(UpperStatus(false)),
        Some(_) => Err(Problem::new(
            Kind::InvalidQuery,
            "`status_case` must be upper or lower",
        )),
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for UpperStatus {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<UpperStatus, Problem> {
        Problem::outcome(upper_status(request))
    }
}

/// The prefix of the routes as the browser sees it, without a trailing slash, for URLs in answers. It consists of the path
/// below which a proxy serves Tidings and the base at which the routes are mounted.
pub(super) struct Base(pub(super) String);

impl Base {
    pub(super) fn of(request: &Request<'_>) -> Base {
        let mounted = request.route().map_or("", |route| route.uri.base());
        let prefix = base_path::prefix(request);
        Base(format!(
            "{}{}",
            prefix.as_str(),
            mounted.trim_end_matches('/')
        ))
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Base {
    type Error = std::convert::Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Base, Self::Error> {
        Outcome::Success(Base::of(request))
    }
}

/// An encoded JSON answer.
pub(super) struct Json {
    pub(super) status: Status,
    pub(super) bytes: Vec<u8>,
    /// The URL of the created subject.
    pub(super) location: Option<String>,
}

impl Json {
    /// Encodes a value.
    pub(super) fn of(value: &impl Serialize) -> Json {
        Json::ok(serde_json::to_vec(value).expect("an answer is JSON"))
    }

    pub(super) fn ok(bytes: Vec<u8>) -> Json {
        Json {
            status: Status::Ok,
            bytes,
            location: None,
        }
    }
}

impl<'r> Responder<'r, 'static> for Json {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        let mut response = Response::build();
        response
            .status(self.status)
            .header(ContentType::JSON)
            .raw_header("Cache-Control", "no-store")
            .sized_body(self.bytes.len(), Cursor::new(self.bytes));
        if let Some(location) = self.location {
            response.raw_header("Location", location);
        }
        response.ok()
    }
}

/// An encoded NDJSON answer. Its memory stays reserved until it is sent or the client disconnects, so a client that reads
/// slowly delays only its own school.
pub(super) struct Lines {
    pub(super) bytes: Vec<u8>,
    pub(super) allowance: Arc<Allowance>,
}

impl<'r> Responder<'r, 'static> for Lines {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        self.allowance.keep(self.bytes.capacity() as u64);
        let body = Held {
            bytes: Cursor::new(self.bytes),
            _allowance: self.allowance,
        };
        Response::build()
            .header(ContentType::new("application", "x-ndjson"))
            .sized_body(body.bytes.get_ref().len(), body)
            .ok()
    }
}

/// Bytes, and the reservation of their memory.
struct Held {
    bytes: Cursor<Vec<u8>>,
    _allowance: Arc<Allowance>,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_read(context, buffer)
    }
}

impl AsyncSeek for Held {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        Pin::new(&mut self.bytes).start_seek(position)
    }

    fn poll_complete(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Pin::new(&mut self.bytes).poll_complete(context)
    }
}
