//! `POST /api/batch`: NDJSON, one command a line in, one result a line out, in the same order. The high-rate
//! way in: one request, few transactions. Each command stands for itself; a refused one hinders no
//! other. A line may name its school; without, it is that of the request.
//!
//! Memory is reserved before the body is read, by its length, and kept until the answer has left: the body, the commands,
//! the events that they lead to, and the answer that is made of these.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::sync::Arc;

use rocket::{Route, State, post, routes};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use super::body::{self, IdempotencyKey, Lines, Unread, UpperStatus};
use super::budget::{may_produce, reserve};
use super::commands;
use super::credential::{Anybody, NamedSchool, may_publish_in};
use super::devices;
use super::problem::{Kind, Problem};
use super::violations::{self, Act};
use crate::auth::{Access, Role};
use crate::config::{BATCH_SCHOOLS_AT_ONCE, BATCH_SLICE_BYTES, COMMAND_BASE_BYTES};
use crate::id::{Channel, SchoolId, SubjectId};
use crate::kind::characteristic::{self, ViolationId};
use crate::kind::{self, Body, Command, device};
use crate::log::{Allowance, CommandError, Envelope, Idempotency, Receipt};
use crate::presence::Beat;
use crate::refusals::RequestSource;
use crate::service::Tidings;
use crate::wire;

pub(super) fn routes() -> Vec<Route> {
    routes![batch]
}

#[post("/api/batch", data = "<body>")]
async fn batch(
    caller: Result<Anybody, Problem>,
    school: Result<NamedSchool, Problem>,
    source: RequestSource,
    key: Result<IdempotencyKey, Problem>,
    upper: Result<UpperStatus, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Lines, Problem> {
    let (Anybody(access), NamedSchool(named)) = (caller?, school?);
    let (key, UpperStatus(upper), body) = (key?, upper?, body?);
    access.require(Role::Worker)?;
    if named.is_some() {
        access.school(named)?;
    }
    let own = access.school(named).ok();
    if let Some(own) = own {
        may_produce(tidings, own)?;
    }
    let settings = tidings.settings();
    let limit = settings.batch_limit_bytes;
    let memory = settings.unread_batch_memory(body.expected(limit));
    let reserved = reserve(tidings, own, memory).await?;
    let bytes = body.read((limit, "batch_limit_bytes")).await?;
    let reader = LineReader {
        access: &access,
        named,
        limit: settings.body_limit_bytes,
    };
    let mut asked = reader
        .read_all(&bytes, &key, settings.batch_limit_commands)
        .await?;
    let (length, lines) = (bytes.len() as u64, asked.len() as u64);
    drop(bytes);
    reserved.keep(settings.batch_memory(length, lines));
    may_all_publish(tidings, &access, &mut asked)?;
    let allowance = settings.batch_events(length, lines);
    let mut run = Run {
        tidings,
        access: &access,
        sub: access.subject.as_str().into(),
        allowance: tidings.publisher().allowance(allowance, reserved),
        outcomes: Vec::new(),
        waiting: BTreeMap::new(),
    };
    for line in asked {
        run.take(line).await?;
    }
    run.carry_out().await?;
    let Run {
        outcomes,
        allowance,
        ..
    } = run;
    let bytes = written(outcomes, allowance.used(), upper, tidings, &source).await;
    Ok(Lines { bytes, allowance })
}

/// Checks that as many commands may be published now. The lines of a school that has produced too much are refused one
/// by one if there are others.
fn may_all_publish(tidings: &Tidings, access: &Access, asked: &mut [Line]) -> Result<(), Problem> {
    // A line that cannot be read counts, too, where it is known for which school it would be.
    let mut counts: BTreeMap<SchoolId, u32> = BTreeMap::new();
    for school in asked.iter().filter_map(|line| line.school) {
        *counts.entry(school).or_default() += 1;
    }
    let counts: Vec<(SchoolId, u32)> = counts.into_iter().collect();
    may_publish_in(tidings, access, &counts)?;
    let refusal = |(school, _): &(SchoolId, u32)| {
        let refused = may_produce(tidings, *school).err();
        refused.map(|problem| (*school, problem))
    };
    let mut refused: BTreeMap<SchoolId, Problem> = counts.iter().filter_map(refusal).collect();
    if counts.len() == 1
        && let Some((_, problem)) = refused.pop_first()
    {
        return Err(problem);
    }
    for line in asked {
        if let Some(problem) = line.school.and_then(|school| refused.get(&school)) {
            line.asked = Err(problem.clone());
        }
    }
    Ok(())
}

/// The answer. Each result lets go of its event as it is written, so that the answer grows while these shrink.
async fn written(
    outcomes: Vec<Option<Outcome>>,
    event_bytes: u64,
    upper: bool,
    tidings: &Tidings,
    source: &RequestSource,
) -> Vec<u8> {
    /// What a line has in addition to its event's bytes.
    const LINE_BYTES: usize = 256;
    let mut answer = Vec::with_capacity(outcomes.len() * LINE_BYTES + event_bytes as usize);
    let mut slice = Slice::default();
    for (index, outcome) in outcomes.into_iter().enumerate() {
        let (number, before) = (index + 1, answer.len());
        match outcome.expect("every line is carried out") {
            Ok(answered) => {
                let (name, json) = match answered {
                    Answered::Event(receipt) => ("event", wire::event_json(receipt.event(), upper)),
                    Answered::Device(json) => ("device", json),
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

/// Lets other tasks have a turn now and then: a batch is much work.
#[derive(Default)]
struct Slice(usize);

impl Slice {
    /// Notes that a line of so many bytes is done.
    async fn done(&mut self, bytes: usize) {
        self.0 += bytes + COMMAND_BASE_BYTES as usize;
        if self.0 >= BATCH_SLICE_BYTES {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// What came of a line.
type Outcome = Result<Answered, Problem>;

/// What a line is answered with.
enum Answered {
    Event(Receipt),
    /// What a device learns from its beat.
    Device(Vec<u8>),
}

/// The lines of a batch, being carried out: of each school all commands together and then all beats, but where a
/// device beats *before* a command of its own. What concerns one device happens in the order of the lines.
struct Run<'a> {
    tidings: &'a Arc<Tidings>,
    access: &'a Access,
    /// Who asks.
    sub: Arc<str>,
    /// What all lines together may come to.
    allowance: Arc<Allowance>,
    /// Of each line; nothing as long as it waits.
    outcomes: Vec<Option<Outcome>>,
    waiting: BTreeMap<SchoolId, Waiting>,
}

/// What waits in one school.
#[derive(Default)]
struct Waiting {
    /// Commands, and beats that wait behind them, each with its line.
    commands: Vec<(usize, Envelope)>,
    beats: Vec<(usize, SubjectId)>,
    beating: HashSet<SubjectId>,
}

/// What came of the lines of one school: of all commands together, and of all beats.
type Done = [(Vec<usize>, Result<Vec<Outcome>, Problem>); 2];

impl Waiting {
    async fn carry_out(
        self,
        school: SchoolId,
        tidings: &Tidings,
        allowance: Arc<Allowance>,
    ) -> Done {
        let (lines, envelopes): (Vec<_>, Vec<_>) = self.commands.into_iter().unzip();
        let publisher = tidings.publisher();
        let receipts = publisher.batch_within(school, envelopes, allowance).await;
        let event = |receipt: Result<Receipt, CommandError>| -> Outcome {
            let receipt = receipt?;
            let event = receipt.event();
            tidings.presence().observe(std::slice::from_ref(event));
            Ok(Answered::Event(receipt))
        };
        let events = receipts.map(|receipts| receipts.into_iter().map(event).collect());
        let commands = (lines, events.map_err(Problem::from));

        let (lines, devices): (Vec<_>, Vec<_>) = self.beats.into_iter().unzip();
        let beats = tidings.presence().beats(school, &devices).await;
        let device = |(device, beat): (&SubjectId, Result<Beat, CommandError>)| -> Outcome {
            let json = devices::answer(device, &beat?).to_string();
            Ok(Answered::Device(json.into_bytes()))
        };
        let beats = beats.map(|beats| devices.iter().zip(beats).map(device).collect());
        [commands, (lines, beats.map_err(Problem::from))]
    }
}

impl Run<'_> {
    async fn take(&mut self, line: Line) -> Result<(), Problem> {
        let number = self.outcomes.len();
        let (school, asked) = match line.asked {
            Ok(sound) => sound,
            Err(problem) => {
                self.outcomes.push(Some(Err(problem)));
                return Ok(());
            }
        };
        self.outcomes.push(None);
        let waiting = self.waiting.entry(school).or_default();
        match asked {
            Asked::Beat(device) => {
                waiting.beating.insert(device.clone());
                waiting.beats.push((number, device));
            }
            Asked::Violation(own) => {
                // The violation may be opened by a line before.
                if ViolationId::parse(&own.id).is_none() && !waiting.commands.is_empty() {
                    self.carry_out_in(school).await?;
                }
                match own.command(self.tidings, self.access, school).await {
                    Ok(command) => {
                        let waiting = self.waiting.entry(school).or_default();
                        waiting.commands.push((number, command));
                    }
                    Err(problem) => self.outcomes[number] = Some(Err(problem)),
                }
            }
            Asked::Command(mut command) => {
                let is_device = command.command.kind() == device::KIND;
                if is_device && waiting.beating.contains(&command.subject) {
                    self.carry_out_in(school).await?;
                }
                command.sub = Some(Arc::clone(&self.sub));
                self.tidings.presence().complete(school, &mut command);
                let waiting = self.waiting.entry(school).or_default();
                waiting.commands.push((number, command));
            }
        }
        Ok(())
    }

    /// Carries out what waits in one school, so that what comes after it there finds it done.
    async fn carry_out_in(&mut self, school: SchoolId) -> Result<(), Problem> {
        let Some(waiting) = self.waiting.remove(&school) else {
            return Ok(());
        };
        let allowance = Arc::clone(&self.allowance);
        let done = waiting.carry_out(school, self.tidings, allowance).await;
        self.note([done])
    }

    /// Carries out what waits. Fails only if the batch had no effect.
    async fn carry_out(&mut self) -> Result<(), Problem> {
        let mut schools = std::mem::take(&mut self.waiting).into_iter();
        if schools.len() < 2 {
            for (school, waiting) in schools {
                let allowance = Arc::clone(&self.allowance);
                let done = waiting.carry_out(school, self.tidings, allowance).await;
                self.note([done])?;
            }
            return Ok(());
        }
        // Several at a time share a commit of the writer. They end with the request.
        let mut tasks = JoinSet::new();
        let mut all = Vec::with_capacity(schools.len());
        loop {
            while tasks.len() < BATCH_SCHOOLS_AT_ONCE
                && let Some((school, waiting)) = schools.next()
            {
                let (tidings, allowance) = (Arc::clone(self.tidings), Arc::clone(&self.allowance));
                tasks.spawn(async move { waiting.carry_out(school, &tidings, allowance).await });
            }
            match tasks.join_next().await {
                Some(done) => all.push(done.expect("what carries out lines does not panic")),
                None => break,
            }
        }
        self.note(all)
    }

    /// Records the outcome of lines. If the store failed and no line has been written yet, the whole batch fails.
    fn note(&mut self, done: impl IntoIterator<Item = Done>) -> Result<(), Problem> {
        let mut failed = Vec::new();
        for (lines, result) in done.into_iter().flatten() {
            match result {
                Ok(outcomes) => {
                    for (line, outcome) in lines.into_iter().zip(outcomes) {
                        self.outcomes[line] = Some(outcome);
                    }
                }
                Err(problem) => failed.push((lines, problem)),
            }
        }
        let happened = |outcome: &Option<Outcome>| matches!(outcome, Some(Ok(_)));
        let has_happened = self.outcomes.iter().any(happened);
        for (lines, problem) in failed {
            if !has_happened {
                return Err(problem);
            }
            for line in lines {
                self.outcomes[line] = Some(Err(problem.clone()));
            }
        }
        Ok(())
    }
}

/// The rest of a line, once `op`, the subject's id and `idempotency_key` are taken out.
struct Rest(Map<String, Value>);

impl Body for Rest {
    type Error = Problem;

    fn read<T: DeserializeOwned>(self) -> Result<T, Problem> {
        T::deserialize(Value::Object(self.0))
            .map_err(|error| Problem::new(Kind::InvalidBody, error.to_string()))
    }
}

/// A line, as far as it could be read.
struct Line {
    /// Whom it counts for; nothing where that cannot be told.
    school: Option<SchoolId>,
    asked: Result<(SchoolId, Asked), Problem>,
}

/// What a line asks.
enum Asked {
    /// Something of the store.
    Command(Envelope),
    /// Something to be done to a violation.
    Violation(OfViolation),
    /// To renew a device's lease.
    Beat(SubjectId),
}

/// What a line asks of a violation.
struct OfViolation {
    id: String,
    act: Act,
    rest: Rest,
    idempotency: Option<Idempotency>,
}

impl OfViolation {
    async fn command(
        self,
        tidings: &Tidings,
        access: &Access,
        school: SchoolId,
    ) -> Result<Envelope, Problem> {
        let address = violations::address(tidings, school, &self.id).await?;
        let channel = Channel::Subject(characteristic::KIND, address.characteristic_id.clone());
        access.reach(school, &channel)?;
        Ok(Envelope {
            idempotency: self.idempotency,
            ..violations::command(address, self.act, access, self.rest)?
        })
    }
}

/// Reads lines.
struct LineReader<'a> {
    access: &'a Access,
    /// The school of the lines that name none.
    named: Option<SchoolId>,
    /// The longest line, in bytes.
    limit: u64,
}

impl LineReader<'_> {
    /// Reads the lines of a body, which has at most so many.
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
            let detail = format!("a batch has at most {most} commands");
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

    /// Reads `{"op": "<collection>.<verb>", "<id field>": …, "school_id": …, "idempotency_key": …, and the verb's own
    /// fields}`.
    fn asked(
        &self,
        line: &[u8],
        key: Option<Idempotency>,
        school: &mut Option<SchoolId>,
    ) -> Result<(SchoolId, Asked), Problem> {
        let limit = self.limit;
        if line.len() as u64 > limit {
            let detail = format!("a command has at most {limit} bytes");
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
                let detail = "`school_id` is a whole number of 1 or more, as a number or in digits";
                return Err(Problem::new(Kind::InvalidBody, detail));
            }
        };
        *school = None;
        let reached = self.access.school(named)?;
        *school = Some(reached);
        Ok((reached, asked(object, line, self.access, reached, key)?))
    }
}

/// Reads what a line asks of a school that is within reach.
fn asked(
    mut object: Map<String, Value>,
    line: &[u8],
    access: &Access,
    school: SchoolId,
    key: Option<Idempotency>,
) -> Result<Asked, Problem> {
    let invalid = |detail: &str| Problem::new(Kind::InvalidBody, detail.to_owned());
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
    if let Some(act) = op.strip_prefix("violations.").and_then(Act::read) {
        return Ok(Asked::Violation(OfViolation {
            id: id_of(&mut object, "violation_id")?,
            act,
            rest: Rest(object),
            idempotency: own_key,
        }));
    }
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
        let own = kind::description(kind);
        let (made_by, verbs) = (own.made_by, own.verbs.join(", "));
        invalid(&format!(
            "`op` of {collection} is {made_by} or one of {verbs}"
        ))
    };
    let reach = |subject: &SubjectId| {
        let channel = Channel::Subject(kind, subject.clone());
        access.reach(school, &channel)
    };
    if verb == "create" {
        let created = commands::create(kind, Rest(object)).ok_or_else(no_such_op)??;
        reach(&created.subject)?;
        return Ok(Asked::Command(Envelope {
            idempotency: own_key,
            ..created
        }));
    }
    let id = id_of(&mut object, id_field)?;
    let subject = commands::subject(kind, &id)?;
    reach(&subject)?;
    if (kind, verb) == (device::KIND, "heartbeat") {
        return Ok(Asked::Beat(subject));
    }
    let command = Command::read(kind, verb, Rest(object));
    Ok(Asked::Command(Envelope {
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
