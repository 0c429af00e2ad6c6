//! Reading bodies and writing JSON answers.

use std::io::Cursor;

use rocket::data::{ByteUnit, Data};
use rocket::http::{ContentType, Status};
use rocket::request::{FromRequest, Outcome, Request};
use rocket::response::{self, Responder, Response};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::problem::{Kind, Problem};
use crate::config::IDEMPOTENCY_KEY_MAX_BYTES;
use crate::store::Idempotency;

/// Reads a body of at most `limit` bytes.
pub(super) async fn read(data: Data<'_>, limit: u64) -> Result<Vec<u8>, Problem> {
    // One byte more than allowed tells a body at the limit from one above it.
    let bytes = data
        .open(ByteUnit::from(limit.saturating_add(1)))
        .into_bytes()
        .await;
    let bytes = bytes
        .map_err(|error| Problem::new(Kind::BadRequest, error.to_string()))?
        .into_inner();
    if bytes.len() as u64 > limit {
        return Err(Problem::new(
            Kind::BodyTooLarge,
            format!("a body has at most {limit} bytes here"),
        ));
    }
    Ok(bytes)
}

/// Reads JSON; an empty body stands for `{}`.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let bytes = if bytes.trim_ascii().is_empty() {
        b"{}"
    } else {
        bytes
    };
    serde_json::from_slice(bytes).map_err(|error| {
        let kind = if error.is_data() {
            Kind::InvalidBody
        } else {
            Kind::MalformedJson
        };
        Problem::new(kind, error.to_string())
    })
}

/// An `Idempotency-Key` header, and the request's address as part of what it was used for.
pub(super) struct IdempotencyKey {
    key: Option<String>,
    address: String,
}

impl IdempotencyKey {
    /// The key together with a digest of the request.
    pub(super) fn with(self, body: &[u8]) -> Option<Idempotency> {
        let key = self.key?;
        Some(Idempotency {
            key,
            fingerprint: fingerprint(&self.address, body),
        })
    }

    /// A key for each command of a batch.
    pub(super) fn of_command(&self, number: usize, body: &[u8]) -> Option<Idempotency> {
        let key = self.key.as_ref()?;
        Some(Idempotency {
            key: format!("{key}#{number}"),
            fingerprint: fingerprint(&self.address, body),
        })
    }
}

/// What an idempotency key was used for.
pub(super) fn fingerprint(address: &str, body: &[u8]) -> String {
    let digest = Sha256::new()
        .chain_update(address)
        .chain_update(b"\n")
        .chain_update(body)
        .finalize();
    digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for IdempotencyKey {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<IdempotencyKey, Problem> {
        let key = request.headers().get_one("Idempotency-Key");
        let sound = |key: &str| key.bytes().all(|byte| byte.is_ascii_graphic());
        match key {
            Some(key) if key.is_empty() || key.len() > IDEMPOTENCY_KEY_MAX_BYTES || !sound(key) => {
                let detail = format!(
                    "Idempotency-Key has 1 to {IDEMPOTENCY_KEY_MAX_BYTES} visible ASCII characters"
                );
                Outcome::Error((
                    Status::BadRequest,
                    Problem::new(Kind::InvalidHeader, detail),
                ))
            }
            key => Outcome::Success(IdempotencyKey {
                key: key.map(str::to_owned),
                address: format!("{} {}", request.method(), request.uri().path()),
            }),
        }
    }
}

/// JSON that is ready to be sent.
pub(super) struct Json {
    pub(super) status: Status,
    pub(super) bytes: Vec<u8>,
    /// The address of what was made.
    pub(super) location: Option<String>,
}

impl Json {
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
