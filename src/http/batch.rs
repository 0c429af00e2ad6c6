//! `POST /api/batch`: NDJSON, one command a line in, one result a line out, in the same order. The high-rate
//! way in: one request, one transaction. Each command stands for itself; a refused one hinders no other.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;

use rocket::data::Data;
use rocket::http::ContentType;
use rocket::{Route, State, post, routes};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::body::{self, IdempotencyKey, UpperStatus};
use super::commands;
use super::credential::Caller;
use super::devices;
use super::problem::{Kind, Problem};
use super::violations::{self, Act};
use crate::auth::Role;
use crate::id::{Channel, SchoolId, SubjectId};
use crate::kind::characteristic::{self, ViolationId};
use crate::kind::{self, Body, Command, device};
use crate::refusals::Origin;
use crate::service::Tidings;
use crate::store::{Envelope, Idempotency};
use crate::wire;

pub(super) fn routes() -> Vec<Route> {
    routes![batch]
}

#[post("/api/batch", data = "<data>")]
async fn batch(
    caller: Result<Caller, Problem>,
    origin: Origin,
    key: Result<IdempotencyKey, Problem>,
    upper: Result<UpperStatus, Problem>,
    data: Data<'_>,
    tidings: &State<Arc<Tidings>>,
) -> Result<(ContentType, Vec<u8>), Problem> {
    let (caller, key, UpperStatus(upper)) = (caller?, key?, upper?);
    caller.require(Role::Worker)?;
    let settings = tidings.settings();
    let bytes = body::read(data, (settings.batch_limit_bytes, "batch_limit_bytes")).await?;
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
        return Err(Problem::new(Kind::BodyTooLarge, detail).of_limit("batch_limit_commands"));
    }
    caller.may_publish(tidings, lines().count())?;
    let mut run = Run {
        tidings,
        caller: &caller,
        school: caller.school,
        upper,
        outcomes: Vec::new(),
        commands: Vec::new(),
        beats: Vec::new(),
        beating: HashSet::new(),
    };
    for (index, line) in lines().enumerate() {
        let key = key.of_command(index + 1, line);
        run.take(asked(line, &caller, key, settings.body_limit_bytes))
            .await?;
    }
    run.carry_out().await?;
    let mut answer = Vec::with_capacity(run.outcomes.len() * 512);
    for (index, outcome) in run.outcomes.into_iter().enumerate() {
        let number = index + 1;
        match outcome.expect("every line is carried out") {
            Ok((name, json)) => {
                write!(answer, r#"{{"line":{number},"status":200,"{name}":"#)
                    .expect("writing to memory succeeds");
                answer.extend(json);
            }
            Err(problem) => {
                problem.note(tidings, &origin);
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

/// What came of a line: an answer under its name, or a problem.
type Outcome = Result<(&'static str, Vec<u8>), Problem>;

/// The lines of a batch, being carried out: all commands in one commit and then all beats, but where a device beats
/// *before* a command of its own. What concerns one device happens in the order of the lines.
struct Run<'a> {
    tidings: &'a Tidings,
    caller: &'a Caller,
    school: SchoolId,
    upper: bool,
    /// Of each line; nothing as long as it waits.
    outcomes: Vec<Option<Outcome>>,
    /// Commands that wait, and beats that wait behind them, each with its line.
    commands: Vec<(usize, Envelope)>,
    beats: Vec<(usize, SubjectId)>,
    beating: HashSet<SubjectId>,
}

impl Run<'_> {
    async fn take(&mut self, asked: Result<Asked, Problem>) -> Result<(), Problem> {
        let line = self.outcomes.len();
        match asked {
            Err(problem) => {
                self.outcomes.push(Some(Err(problem)));
                return Ok(());
            }
            Ok(Asked::Beat(device)) => {
                self.beating.insert(device.clone());
                self.beats.push((line, device));
            }
            Ok(Asked::Violation(own)) => {
                // The violation may be opened by a line before.
                if ViolationId::parse(&own.id).is_none() && !self.commands.is_empty() {
                    self.carry_out().await?;
                }
                match own.command(self.tidings, self.caller).await {
                    Ok(command) => self.commands.push((line, command)),
                    Err(problem) => {
                        self.outcomes.push(Some(Err(problem)));
                        return Ok(());
                    }
                }
            }
            Ok(Asked::Command(mut command)) => {
                self.tidings.presence().complete(self.school, &mut command);
                let is_device = command.command.kind() == device::KIND;
                if is_device && self.beating.contains(&command.subject) {
                    self.carry_out().await?;
                }
                self.commands.push((line, command));
            }
        }
        self.outcomes.push(None);
        Ok(())
    }

    /// Carries out what waits. Fails only if nothing of the batch has happened.
    async fn carry_out(&mut self) -> Result<(), Problem> {
        let (lines, envelopes): (Vec<_>, Vec<_>) = self.commands.drain(..).unzip();
        let publisher = self.tidings.publisher();
        match publisher.batch(self.school, envelopes).await {
            Ok(receipts) => {
                for (line, receipt) in lines.into_iter().zip(receipts) {
                    let event =
                        receipt.map(|receipt| wire::event_json(receipt.event(), self.upper));
                    let outcome = event.map(|json| ("event", json)).map_err(Problem::from);
                    self.outcomes[line] = Some(outcome);
                }
            }
            Err(error) => self.give_up(&lines, error.into())?,
        }
        let (lines, devices): (Vec<_>, Vec<_>) = self.beats.drain(..).unzip();
        self.beating.clear();
        match self.tidings.presence().beats(self.school, &devices).await {
            Ok(beats) => {
                for ((line, device), beat) in lines.into_iter().zip(devices).zip(beats) {
                    let json = beat.map(|beat| devices::answer(&device, &beat).to_string());
                    let outcome = json.map(|json| ("device", json.into_bytes()));
                    self.outcomes[line] = Some(outcome.map_err(Problem::from));
                }
            }
            Err(error) => self.give_up(&lines, error.into())?,
        }
        Ok(())
    }

    /// Lines that the store could not take: the whole batch's failure as long as nothing of it has happened.
    fn give_up(&mut self, lines: &[usize], problem: Problem) -> Result<(), Problem> {
        let happened = |outcome: &Option<Outcome>| matches!(outcome, Some(Ok(_)));
        if !self.outcomes.iter().any(happened) {
            return Err(problem);
        }
        for line in lines {
            self.outcomes[*line] = Some(Err(problem.clone()));
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
    async fn command(self, tidings: &Tidings, caller: &Caller) -> Result<Envelope, Problem> {
        let address = violations::address(tidings, caller.school, &self.id).await?;
        let channel = Channel::Subject(characteristic::KIND, address.characteristic_id.clone());
        caller.access.reach(caller.school, &channel)?;
        Ok(Envelope {
            idempotency: self.idempotency,
            ..violations::command(address, self.act, &caller.access, self.rest)?
        })
    }
}

/// Reads `{"op": "<collection>.<verb>", "<id field>": …, "idempotency_key": …, and the verb's own fields}`.
fn asked(
    line: &[u8],
    caller: &Caller,
    key: Option<Idempotency>,
    limit: u64,
) -> Result<Asked, Problem> {
    if line.len() as u64 > limit {
        return Err(Problem::new(
            Kind::BodyTooLarge,
            format!("a command has at most {limit} bytes"),
        )
        .of_limit("body_limit_bytes"));
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
        caller.access.reach(caller.school, &channel)
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
        subject,
        command: command.ok_or_else(no_such_op)??,
        idempotency: own_key,
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
