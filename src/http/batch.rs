//! `POST /api/batch`: NDJSON with one command per line. The answer has one result per line, in the same order. This is the
//! high-rate way to publish: one request, few transactions. Commands are independent: a rejected one does not stop the
//! others. A line without a school belongs to the school of the request. With `?stream=1`, each line is answered while the
//! request is still being sent.
//!
//! Memory is reserved before the body is read, according to its length, and is released after the answer has been sent. It
//! covers the body, the commands, their events, and the answer.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use rocket::response::{self, Responder};
use rocket::{Request, Route, State, post, routes};
use serde_json::{Value, json};

use super::body::{self, IdempotencyKey, Lines, Unread};
use super::contract::Document;
use super::contract::examples::ExampleSubject;
use super::credential::{AnySchool, NamedSchool};
use super::lines::{Line, LineReader, item, write_answer, write_result};
use super::problem::{Kind, Problem};
use super::stream::{BatchStream, ResultsForm};
use crate::app::{Answer, BatchItem, Caller};
use crate::auth::Role;
use crate::config::{BATCH_SLICE_BYTES, COMMAND_BASE_BYTES, Settings};
use crate::id::SchoolId;
use crate::rejections::RequestSource;
use crate::service::Tidings;

pub(super) fn routes() -> Vec<Route> {
    routes![batch]
}

pub(super) fn describe(document: &mut Document) {
    const TAG: &str = "Batches";
    /// The media type of lines of JSON.
    const NDJSON: &str = "application/x-ndjson";
    document.tag(TAG, "Many commands in one request.");
    document.route(routes![batch], &batch, |operation| {
        operation
            .named("batch", TAG, "Carry out the commands of a batch")
            .about("The body has one command per line, and the answer one result per line, in the same order. With `?stream=1`, each line is answered while the request is still being sent. Requires the role `worker`.")
            .body(NDJSON, json!({ "type": "string", "examples": [EXAMPLE] }))
            .answers(200, "One result per line: an event, the answer to a heartbeat, or a problem.", NDJSON, json!({ "type": "string" }))
            .with_example(200, NDJSON, example_results().map(Value::from))
            .fails(&[Kind::TooFast, Kind::Unavailable, Kind::SchoolRequired, Kind::NotFound, Kind::TooManyStreams]);
    });
}

/// An example of a batch.
const EXAMPLE: &str = "{\"op\": \"jobs.create\", \"job_id\": \"42\", \"job_type\": \"document\"}\n{\"op\": \"jobs.progress\", \"job_id\": \"42\", \"progress\": 40}\n";

#[post("/api/batch", data = "<body>")]
async fn batch<'r>(
    caller: Result<AnySchool, Problem>,
    school: Result<NamedSchool, Problem>,
    source: RequestSource,
    key: Result<IdempotencyKey, Problem>,
    form: Result<ResultsForm, Problem>,
    body: Result<Unread<'r>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Results<'r>, Problem> {
    let (AnySchool(access), NamedSchool(named)) = (caller?, school?);
    let (key, ResultsForm { upper, streaming }, body) = (key?, form?, body?);
    access.require(Role::Worker)?;
    if let Some(client) = streaming {
        let caller = Caller::new(access, named)?;
        let how = (source, upper);
        let stream = BatchStream::open(tidings, caller, client, how, key, body)?;
        return Ok(Results::Streamed(stream));
    }
    if named.is_some() {
        access.school(named)?;
    }
    let (settings, service) = (tidings.settings(), tidings.publications());
    let limit = settings.batch_limit_bytes.get();
    let school = access.school(named).ok();
    let reserved = service.admit_batch(&access, school, body.expected(limit));
    let reserved = reserved.await?;
    let bytes = body.read((limit, "batch_limit_bytes")).await?;
    let reader = LineReader {
        access: &access,
        named,
    };
    let lines = read_all(&reader, &bytes, &key, settings).await?;
    let size = (bytes.len() as u64, lines.len() as u64);
    drop(bytes);
    let (mut batch, late) = service.begin_batch(&access, &counts(&lines), size, reserved)?;
    let mut problems = BTreeMap::new();
    let count = lines.len();
    for (number, line) in lines.into_iter().enumerate() {
        match (line.school.and_then(|school| late.get(&school)), line.asked) {
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
    let bytes = encode_answer(outcomes, allowance.used(), upper, tidings, &source).await;
    Ok(Results::Together(Lines { bytes, allowance }))
}

/// The results of the lines.
enum Results<'r> {
    Together(Lines),
    Streamed(Box<BatchStream<'r>>),
}

impl<'r> Responder<'r, 'r> for Results<'r> {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'r> {
        match self {
            Results::Together(lines) => lines.respond_to(request),
            Results::Streamed(stream) => stream.respond_to(request),
        }
    }
}

/// Counts the lines of each school. A line that cannot be read counts if its school is known.
fn counts(lines: &[Line]) -> BTreeMap<SchoolId, u32> {
    let mut counts = BTreeMap::new();
    for school in lines.iter().filter_map(|line| line.school) {
        *counts.entry(school).or_default() += 1;
    }
    counts
}

/// Encodes the answer. Each event is released once its result is encoded, so that memory never holds all events and the
/// complete answer at once.
async fn encode_answer(
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
        write_line(&mut answer, number, |answer| {
            write_result(answer, outcome, upper, tidings, source);
        });
        slice.done(answer.len() - before).await;
    }
    answer
}

/// Writes the result of a line, whose members `write` appends.
fn write_line(answer: &mut Vec<u8>, number: usize, write: impl FnOnce(&mut Vec<u8>)) {
    write!(answer, r#"{{"line":{number},"#).expect("writing to memory succeeds");
    write(answer);
    answer.extend_from_slice(b"}\n");
}

/// Returns the answer to [`EXAMPLE`]. All of its commands are for the job that the first one creates.
fn example_results() -> Option<String> {
    let mut subject: Option<ExampleSubject> = None;
    let mut answer = Vec::new();
    for (index, line) in EXAMPLE.lines().enumerate() {
        let item = item(body::parse(line.as_bytes()).ok()?, line.as_bytes(), None);
        let BatchItem::Command(envelope) = item.ok()? else {
            return None;
        };
        let next = match subject {
            None => ExampleSubject::made(&envelope)?,
            Some(subject) => subject.then(&envelope.command)?,
        };
        let event = Answer::Event(next.receipt());
        write_line(&mut answer, index + 1, |answer| {
            write_answer(answer, event, false)
        });
        subject = Some(next);
    }
    String::from_utf8(answer).ok()
}

/// Yields to other tasks from time to time, because a batch can take long.
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

/// Reads the lines of a body, up to the limit on their number.
async fn read_all(
    reader: &LineReader<'_>,
    bytes: &[u8],
    key: &IdempotencyKey,
    settings: &Settings,
) -> Result<Vec<Line>, Problem> {
    let max_lines = settings.batch_limit_commands.get();
    let lines = || {
        bytes
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
    };
    if lines().nth(max_lines).is_some() {
        let detail =
            format!("the batch has more than {max_lines} lines; at most {max_lines} are accepted");
        return Err(Problem::new(Kind::BodyTooLarge, detail).of_limit("batch_limit_commands"));
    }
    let (mut asked, mut slice) = (Vec::new(), Slice::default());
    for (index, line) in lines().enumerate() {
        let key = key.of_command(index + 1, line);
        asked.push(reader.read(line, settings.body_limit(), key));
        slice.done(line.len()).await;
    }
    Ok(asked)
}
