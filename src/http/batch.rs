//! `POST /api/batch`: NDJSON, one command a line in, one result a line out, in the same order. The high-rate
//! way in: one request, one transaction. Each command stands for itself; a refused one hinders no other.

use std::io::Write;
use std::sync::Arc;

use rocket::data::Data;
use rocket::http::ContentType;
use rocket::{Route, State, post, routes};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::body::{self, IdempotencyKey, UpperStatus};
use super::commands::{self, Parse};
use super::credential::Caller;
use super::problem::{Kind, Problem};
use crate::auth::Role;
use crate::id::Channel;
use crate::kind;
use crate::service::Tidings;
use crate::store::{Envelope, Idempotency};
use crate::wire;

pub(super) fn routes() -> Vec<Route> {
    routes![batch]
}

#[post("/api/batch", data = "<data>")]
async fn batch(
    caller: Result<Caller, Problem>,
    key: Result<IdempotencyKey, Problem>,
    upper: Result<UpperStatus, Problem>,
    data: Data<'_>,
    tidings: &State<Arc<Tidings>>,
) -> Result<(ContentType, Vec<u8>), Problem> {
    let (caller, key, UpperStatus(upper)) = (caller?, key?, upper?);
    caller.require(Role::Worker)?;
    let settings = tidings.settings();
    let bytes = body::read(data, settings.batch_limit_bytes).await?;
    let lines = || {
        bytes
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
    };
    if lines().nth(settings.batch_limit_commands).is_some() {
        let detail = format!(
            "a batch has at most {} commands",
            settings.batch_limit_commands
        );
        return Err(Problem::new(Kind::BodyTooLarge, detail));
    }
    let mut envelopes = Vec::new();
    let mut refusals = Vec::new();
    for (index, line) in lines().enumerate() {
        match envelope(
            line,
            &caller,
            key.of_command(index + 1, line),
            settings.body_limit_bytes,
        ) {
            Ok(envelope) => {
                envelopes.push(envelope);
                refusals.push(None);
            }
            Err(problem) => refusals.push(Some(problem)),
        }
    }
    let mut receipts = tidings
        .publisher()
        .batch(caller.school, envelopes)
        .await?
        .into_iter();
    let mut answer = Vec::with_capacity(refusals.len() * 512);
    for (index, refusal) in refusals.into_iter().enumerate() {
        let result = match refusal {
            Some(problem) => Err(problem),
            None => receipts
                .next()
                .expect("a store answers every command")
                .map_err(Problem::from),
        };
        let number = index + 1;
        match result {
            Ok(receipt) => {
                write!(answer, r#"{{"line":{number},"status":200,"event":"#)
                    .expect("writing to memory succeeds");
                answer.extend(wire::event_json(receipt.event(), upper));
            }
            Err(problem) => {
                let status = problem.status();
                write!(answer, r#"{{"line":{number},"status":{status},"problem":"#)
                    .expect("writing to memory succeeds");
                serde_json::to_writer(&mut answer, &problem).expect("a problem is JSON");
            }
        }
        answer.extend_from_slice(b"}\n");
    }
    Ok((ContentType::new("application", "x-ndjson"), answer))
}

/// The rest of a line, once `op`, the subject's id and `idempotency_key` are taken out.
struct Rest(Map<String, Value>);

impl Parse for Rest {
    fn body<T: DeserializeOwned>(self) -> Result<T, Problem> {
        T::deserialize(Value::Object(self.0))
            .map_err(|error| Problem::new(Kind::InvalidBody, error.to_string()))
    }
}

/// Reads `{"op": "<collection>.<verb>", "<id field>": …, "idempotency_key": …, and the verb's own fields}`.
fn envelope(
    line: &[u8],
    caller: &Caller,
    key: Option<Idempotency>,
    limit: u64,
) -> Result<Envelope, Problem> {
    if line.len() as u64 > limit {
        return Err(Problem::new(
            Kind::BodyTooLarge,
            format!("a command has at most {limit} bytes"),
        ));
    }
    let invalid = |detail: &str| Problem::new(Kind::InvalidBody, detail.to_owned());
    let mut object: Map<String, Value> = body::parse(line)?;
    let Some(Value::String(op)) = object.remove("op") else {
        return Err(invalid("`op` is missing, for example \"jobs.progress\""));
    };
    let own_key = match object.remove("idempotency_key") {
        None => key,
        Some(Value::String(own)) if body::is_sound_key(&own) => Some(Idempotency {
            key: own,
            fingerprint: body::fingerprint("batch", line),
        }),
        Some(_) => {
            return Err(invalid(
                "`idempotency_key` is a string of 1 to 128 visible ASCII characters",
            ));
        }
    };
    let (collection, verb) = op.split_once('.').unwrap_or((&op, ""));
    let Some(kind) = kind::known_kind(collection) else {
        let collections: Vec<_> = kind::KINDS.iter().map(|kind| kind.collection()).collect();
        return Err(invalid(&format!(
            "`op` is <collection>.<verb>, of these collections: {}",
            collections.join(", ")
        )));
    };
    let id_field = kind::description(kind).id_field;
    let no_such_op = || {
        let verbs = commands::verbs(kind).join(", ");
        invalid(&format!("`op` of {collection} is create or one of {verbs}"))
    };
    let mut envelope = if verb == "create" {
        commands::create(kind, Rest(object)).ok_or_else(no_such_op)??
    } else {
        let id = match object.remove(id_field) {
            Some(Value::String(id)) => id,
            Some(Value::Number(id)) => id.to_string(),
            _ => return Err(invalid(&format!("`{id_field}` is missing"))),
        };
        Envelope {
            subject: commands::subject(kind, &id)?,
            command: commands::command(kind, verb, Rest(object)).ok_or_else(no_such_op)??,
            idempotency: None,
        }
    };
    caller.access.reach(
        caller.school,
        &Channel::Subject(kind, envelope.subject.clone()),
    )?;
    envelope.idempotency = own_key;
    Ok(envelope)
}
