//! `POST /api/batch`: NDJSON with one command per line. The answer has one result per line, in the same order. This is the
//! high-rate way to publish: one request, few transactions. Commands are independent: a rejected one does not stop the
//! others. A line without a school belongs to the school of the request.
//!
//! Memory is reserved before the body is read, according to its length, and is released after the answer has been sent. It
//! covers the body, the commands, their events, and the answer.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use rocket::{Route, State, post, routes};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::body::{self, IdempotencyKey, Lines, Unread, UpperStatus};
use super::commands;
use super::credential::{AnySchool, NamedSchool};
use super::devices;
use super::problem::{Kind, Problem};
use super::violations;
use crate::app::{Answer, BatchItem, ViolationAction};
use crate::auth::{Access, Role};
use crate::config::{BATCH_SLICE_BYTES, COMMAND_BASE_BYTES};
use crate::id::SchoolId;
use crate::kind::{self, Body, Command, device};
use crate::log::{Envelope, Idempotency};
use crate::refusals::RequestSource;
use crate::service::Tidings;
use crate::wire;

pub(super) fn routes() -> Vec<Route> {
    routes![batch]
}

#[post("/api/batch", data = "<body>")]
async fn batch(
    caller: Result<AnySchool, Problem>,
    school: Result<NamedSchool, Problem>,
    source: RequestSource,
    key: Result<IdempotencyKey, Problem>,
    upper: Result<UpperStatus, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Lines, Problem> {
    let (AnySchool(access), NamedSchool(named)) = (caller?, school?);
    let (key, UpperStatus(upper), body) = (key?, upper?, body?);
    access.require(Role::Worker)?;
    if named.is_some() {
        access.school(named)?;
    }
    let (settings, service) = (tidings.settings(), tidings.publications());
    let limit = settings.batch_limit_bytes;
    let own = access.school(named).ok();
    let reserved = service.admit_batch(&access, own, body.expected(limit));
    let reserved = reserved.await?;
    let bytes = body.read((limit, "batch_limit_bytes")).await?;
    let reader = LineReader {
        access: &access,
        named,
        limit: settings.body_limit_bytes,
    };
    let lines = reader
        .read_all(&bytes, &key, settings.batch_limit_commands)
        .await?;
    let size = (bytes.len() as u64, lines.len() as u64);
    drop(bytes);
    let (mut batch, late) = service.begin_batch(&access, &counts(&lines), size, reserved)?;
    let mut problems = BTreeMap::new();
    let count = lines.len();
    for (number, line) in lines.into_iter().enumerate() {
        match (line.school.and_then(|own| late.get(&own)), line.asked) {
            (Some(error), _) => {
                problems.insert(number, Problem::from(*error));
            }
            (None, Ok((school, item))) => batch.take(number, school, item).await?,
            (None, Err(problem)) => {
                problems.insert(number, problem);
            }
        }
    }
    let (mut answers, allowance) = batch.finish().await?;
    let outcome = |number| match answers.remove(&number) {
        Some(answer) => Ok(answer?),
        None => Err(problems.remove(&number).expect("every line is answered")),
    };
    let outcomes = (0..count).map(outcome).collect();
    let bytes = written(outcomes, allowance.used(), upper, tidings, &source).await;
    Ok(Lines { bytes, allowance })
}

/// Counts the lines of each school. A line that cannot be read counts if its school is known.
fn counts(lines: &[Line]) -> BTreeMap<SchoolId, u32> {
    let mut counts = BTreeMap::new();
    for school in lines.iter().filter_map(|line| line.school) {
        *counts.entry(school).or_default() += 1;
    }
    counts
}

/// Encodes the answer. Each result releases its event once it is written, so that memory does not hold both in full.
async fn written(
    outcomes: Vec<Result<Answer, Problem>>,
    event_bytes: u64,
    upper: bool,
    tidings: &Tidings,
    source: &RequestSource,
) -> Vec<u8> {
    /// The bytes of a line in addition to those of its event.
    const LINE_BYTES: usize = 256;
    let mut answer = Vec::with_capacity(
        outcomes.len() * LINE_BYTES + usize::try_from(event_bytes).unwrap_or_default(),
    );
    let mut slice = Slice::default();
    for (index, outcome) in outcomes.into_iter().enumerate() {
        let (number, before) = (index + 1, answer.len());
        match outcome {
            Ok(own) => {
                let (name, json) = match own {
                    Answer::Event(receipt) => ("event", wire::event_json(receipt.event(), upper)),
                    Answer::Device(device, beat) => {
                        let json = devices::answer(&device, &beat).to_string();
                        ("device", json.into_bytes())
                    }
                };
                write!(answer, r#"{{"line":{number},"status":200,"{name}":"#)
                    .expect("writing to memory succeeds");
                answer.extend(json);
            }
            Err(problem) => {
                problem.note(tidings, source);
                let status = problem.status();
                write!(answer, r#"{{"line":{number},"status":{status},"problem":"#)
                    .expect("writing to memory succeeds");
                serde_json::to_writer(&mut answer, &problem).expect("a problem is JSON");
            }
        }
        answer.extend_from_slice(b"}\n");
        slice.done(answer.len() - before).await;
    }
    answer
}

/// Yields to other tasks from time to time: a batch is much work.
#[derive(Default)]
struct Slice(u64);

impl Slice {
    /// Records that a line of `bytes` is done.
    async fn done(&mut self, bytes: usize) {
        self.0 += bytes as u64 + COMMAND_BASE_BYTES;
        if self.0 >= BATCH_SLICE_BYTES as u64 {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// The rest of a line, without `op`, the subject's id and `idempotency_key`.
struct Rest(Map<String, Value>);

impl Body for Rest {
    type Error = Problem;

    fn read<T: DeserializeOwned>(self) -> Result<T, Problem> {
        T::deserialize(Value::Object(self.0))
            .map_err(|error| Problem::new(Kind::InvalidBody, error.to_string()))
    }
}

/// A line, or the problem with it.
struct Line {
    /// The school that the line counts for, if it is known.
    school: Option<SchoolId>,
    asked: Result<(SchoolId, BatchItem), Problem>,
}

/// Reads lines.
struct LineReader<'a> {
    access: &'a Access,
    /// The school of the lines that name none.
    named: Option<SchoolId>,
    /// The maximum length of a line in bytes.
    limit: u64,
}

impl LineReader<'_> {
    /// Reads the lines of a body, up to the limit on their number.
    async fn read_all(
        &self,
        bytes: &[u8],
        key: &IdempotencyKey,
        most: usize,
    ) -> Result<Vec<Line>, Problem> {
        let lines = || {
            bytes
                .split(|byte| *byte == b'\n')
                .map(<[u8]>::trim_ascii)
                .filter(|line| !line.is_empty())
        };
        if lines().nth(most).is_some() {
            let detail =
                format!("the batch has more than {most} lines; at most {most} are accepted");
            return Err(Problem::new(Kind::BodyTooLarge, detail).of_limit("batch_limit_commands"));
        }
        let (mut asked, mut slice) = (Vec::new(), Slice::default());
        for (index, line) in lines().enumerate() {
            asked.push(self.read(line, key.of_command(index + 1, line)));
            slice.done(line.len()).await;
        }
        Ok(asked)
    }

    fn read(&self, line: &[u8], key: Option<Idempotency>) -> Line {
        let mut school = self.access.school(self.named).ok();
        let asked = self.asked(line, key, &mut school);
        Line { school, asked }
    }

    /// Reads `{"op": "<collection>.<verb>", "<id field>": …, "school_id": …, "idempotency_key": …}` with the verb's own
    /// fields.
    fn asked(
        &self,
        line: &[u8],
        key: Option<Idempotency>,
        school: &mut Option<SchoolId>,
    ) -> Result<(SchoolId, BatchItem), Problem> {
        let limit = self.limit;
        if line.len() as u64 > limit {
            let detail =
                format!("the line has more than {limit} bytes; at most {limit} are accepted");
            return Err(Problem::new(Kind::BodyTooLarge, detail).of_limit("body_limit_bytes"));
        }
        let mut object: Map<String, Value> = body::parse(line)?;
        let own = match object.remove("school_id") {
            None | Some(Value::Null) => None,
            Some(Value::Number(number)) => {
                Some(number.as_i64().and_then(|own| own.try_into().ok()))
            }
            Some(Value::String(digits)) => Some(digits.parse().ok()),
            Some(_) => Some(None),
        };
        let named = match own {
            None => self.named,
            Some(Some(own)) => Some(own),
            Some(None) => {
                let detail =
                    "`school_id` must be a whole number of 1 or more, or a string of its digits";
                return Err(Problem::new(Kind::InvalidBody, detail));
            }
        };
        *school = None;
        let reached = self.access.school(named)?;
        *school = Some(reached);
        Ok((reached, asked(object, line, key)?))
    }
}

/// Reads the item in a line.
fn asked(
    mut object: Map<String, Value>,
    line: &[u8],
    key: Option<Idempotency>,
) -> Result<BatchItem, Problem> {
    let invalid = |detail: &str| Problem::new(Kind::InvalidBody, detail.to_owned());
    let Some(Value::String(op)) = object.remove("op") else {
        return Err(invalid(
            "`op` is missing; it must be a string such as \"jobs.progress\"",
        ));
    };
    let own_key = match object.remove("idempotency_key") {
        None => key,
        Some(Value::String(own)) if body::is_sound_key(&own) => Some(Idempotency {
            key: own,
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
        return Ok(BatchItem::Violation(command, own_key));
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
        let own = kind::description(kind);
        let (made_by, verbs) = (own.made_by, own.verbs.join(", "));
        invalid(&format!(
            "`op` of {collection} must be {made_by} or one of {verbs}"
        ))
    };
    if verb == "create" {
        let created = commands::create(kind, Rest(object)).ok_or_else(no_such_op)??;
        return Ok(BatchItem::Command(Envelope {
            idempotency: own_key,
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
        idempotency: own_key,
        ..Envelope::new(subject, command.ok_or_else(no_such_op)??)
    }))
}

/// Takes an id out of a line. Some clients send it as a number.
fn id_of(object: &mut Map<String, Value>, field: &str) -> Result<String, Problem> {
    match object.remove(field) {
        Some(Value::String(id)) => Ok(id),
        Some(Value::Number(id)) => Ok(id.to_string()),
        _ => Err(Problem::new(
            Kind::InvalidBody,
            format!("`{field}` is missing"),
        )),
    }
}
