//! Commands in lines of JSON: `{"op": "<collection>.<verb>", …}`, as in a batch, and their results.

use std::io::Write;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::body;
use super::commands;
use super::devices;
use super::problem::{Kind, Problem};
use super::violations;
use crate::app::{Answer, BatchItem, ViolationAction};
use crate::auth::Access;
use crate::id::SchoolId;
use crate::kind::{self, Body, Command, device};
use crate::log::{Envelope, Idempotency};
use crate::mismatch;
use crate::rejections::RequestSource;
use crate::service::Tidings;
use crate::wire;

/// The field of a line's own idempotency key.
const KEY_FIELD: &str = "idempotency_key";

/// A line, or the problem with it.
pub(super) struct Line {
    /// The school whose limits the line counts towards, if it is known.
    pub(super) school: Option<SchoolId>,
    pub(super) asked: Result<(SchoolId, BatchItem), Problem>,
}

/// Reads lines.
pub(super) struct LineReader<'a> {
    pub(super) access: &'a Access,
    /// The school of the lines that name none.
    pub(super) named: Option<SchoolId>,
}

impl LineReader<'_> {
    /// Reads a line of at most `limit` bytes, which is the value of `setting`. `key` is its idempotency key unless it has its
    /// own.
    pub(super) fn read(
        &self,
        line: &[u8],
        (limit, setting): (u64, &'static str),
        key: Option<Idempotency>,
    ) -> Line {
        let object = match line.len() as u64 > limit {
            true => Err(too_long((limit, setting))),
            false => body::parse(line),
        };
        match object {
            Ok(object) => self.read_object(object, line, key),
            Err(problem) => Line {
                school: self.access.school(self.named).ok(),
                asked: Err(problem),
            },
        }
    }

    /// Reads the fields of a line that is part of a message.
    pub(super) fn read_message(&self, object: Map<String, Value>) -> Line {
        let line = match object.contains_key(KEY_FIELD) {
            true => serde_json::to_vec(&object).expect("fields are JSON"),
            // Only the digest of a request with a key is needed.
            false => Vec::new(),
        };
        self.read_object(object, &line, None)
    }

    /// Reads `{"op": "<collection>.<verb>", "<id field>": …, "school_id": …, "idempotency_key": …}` with the verb's own
    /// fields.
    fn read_object(
        &self,
        mut object: Map<String, Value>,
        line: &[u8],
        key: Option<Idempotency>,
    ) -> Line {
        let given = match object.remove("school_id") {
            None | Some(Value::Null) => None,
            Some(Value::Number(number)) => {
                Some(number.as_i64().and_then(|value| value.try_into().ok()))
            }
            Some(Value::String(digits)) => Some(digits.parse().ok()),
            Some(_) => Some(None),
        };
        let named = match given {
            None => self.named,
            Some(Some(school)) => Some(school),
            Some(None) => {
                let detail = "`school_id` must be a positive integer, or a string of its digits";
                return Line {
                    school: self.access.school(self.named).ok(),
                    asked: Err(Problem::new(Kind::InvalidBody, detail)),
                };
            }
        };
        match self.access.school(named) {
            Ok(school) => Line {
                school: Some(school),
                asked: item(object, line, key).map(|item| (school, item)),
            },
            Err(error) => Line {
                school: None,
                asked: Err(error.into()),
            },
        }
    }
}

/// Returns the problem with a line that has more than `limit` bytes, which is the value of `setting`.
pub(super) fn too_long((limit, setting): (u64, &'static str)) -> Problem {
    let detail = format!("the line has more than {limit} bytes; at most {limit} are accepted");
    Problem::new(Kind::BodyTooLarge, detail).of_limit(setting)
}

/// The rest of a line, without `op`, the subject's id and `idempotency_key`.
struct Rest(Map<String, Value>);

impl Body for Rest {
    type Error = Problem;

    fn read<T: DeserializeOwned + JsonSchema>(self) -> Result<T, Problem> {
        mismatch::read_object(&self.0).map_err(|error| Problem::new(Kind::InvalidBody, error))
    }
}

/// Reads the item in a line.
pub(super) fn item(
    mut object: Map<String, Value>,
    line: &[u8],
    key: Option<Idempotency>,
) -> Result<BatchItem, Problem> {
    let invalid = |detail: &str| Problem::new(Kind::InvalidBody, detail.to_owned());
    let Some(Value::String(op)) = object.remove("op") else {
        return Err(invalid("`op` must be a string such as \"jobs.progress\""));
    };
    let line_key = match object.remove(KEY_FIELD) {
        None => key,
        Some(Value::String(text)) if body::is_sound_key(&text) => Some(Idempotency {
            key: text,
            fingerprint: body::fingerprint("batch", line),
        }),
        Some(_) => {
            return Err(invalid(
                "`idempotency_key` must be a string of 1 to 128 visible ASCII characters",
            ));
        }
    };
    let action = op.strip_prefix("violations.");
    if let Some(action) = action.and_then(ViolationAction::from_verb) {
        let id = id_of(&mut object, "violation_id")?;
        let command = violations::command(&id, action, Rest(object))?;
        return Ok(BatchItem::Violation(command, line_key));
    }
    let (collection, verb) = op.split_once('.').unwrap_or((&op, ""));
    let Some(kind) = kind::known_kind(collection) else {
        let collections: Vec<_> = kind::KINDS.iter().map(|kind| kind.collection()).collect();
        return Err(invalid(&format!(
            "`op` must be <collection>.<verb>, with one of these collections: {}",
            collections.join(", ")
        )));
    };
    let id_field = kind::description(kind).id_field;
    let no_such_op = || {
        let description = kind::description(kind);
        let (made_by, verbs) = (description.made_by, description.verbs.join(", "));
        invalid(&format!(
            "`op` of {collection} must be {made_by} or one of {verbs}"
        ))
    };
    if verb == "create" {
        let created = commands::create(kind, Rest(object)).ok_or_else(no_such_op)??;
        return Ok(BatchItem::Command(Envelope {
            idempotency: line_key,
            ..created
        }));
    }
    let id = id_of(&mut object, id_field)?;
    let subject = commands::subject(kind, &id)?;
    if (kind, verb) == (device::KIND, "heartbeat") {
        return Ok(BatchItem::Heartbeat(subject));
    }
    let command = Command::read(kind, verb, Rest(object));
    Ok(BatchItem::Command(Envelope {
        idempotency: line_key,
        ..Envelope::new(subject, command.ok_or_else(no_such_op)??)
    }))
}

/// Takes an id out of a line. Some clients send it as a number.
fn id_of(object: &mut Map<String, Value>, field: &str) -> Result<String, Problem> {
    match object.remove(field) {
        Some(Value::String(id)) => Ok(id),
        Some(Value::Number(id)) if !id.is_f64() => Ok(id.to_string()),
        given => {
            let detail = match given {
                None | Some(Value::Null) => format!("`{field}` is missing"),
                Some(_) => format!("`{field}` must be a string or an integer"),
            };
            Err(Problem::new(Kind::InvalidBody, detail))
        }
    }
}

/// Appends the members of a line's result: `"status"`, and `"event"`, `"device"` or `"problem"`. Counts and logs a problem.
pub(super) fn write_result(
    result: &mut Vec<u8>,
    outcome: Result<Answer, Problem>,
    upper: bool,
    tidings: &Tidings,
    source: &RequestSource,
) {
    match outcome {
        Ok(answer) => write_answer(result, answer, upper),
        Err(problem) => {
            problem.note(tidings, source);
            let status = problem.status();
            write!(result, r#""status":{status},"problem":"#).expect("writing to memory succeeds");
            serde_json::to_writer(result, &problem).expect("a problem is JSON");
        }
    }
}

/// Appends the members of the result of a line that was carried out.
pub(super) fn write_answer(result: &mut Vec<u8>, answer: Answer, upper: bool) {
    let (name, json) = match answer {
        Answer::Event(receipt) => ("event", wire::event_json(receipt.event(), upper)),
        Answer::Device(device, heartbeat) => {
            let result = devices::HeartbeatResult::new(&device, &heartbeat);
            let json = serde_json::to_vec(&result).expect("a result is JSON");
            ("device", json)
        }
    };
    write!(result, r#""status":200,"{name}":"#).expect("writing to memory succeeds");
    result.extend(json);
}
