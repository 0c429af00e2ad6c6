//! The examples of answers.
//!
//! No answer is written by hand: the rules of the kinds carry out the examples of the bodies, one after another, and the
//! encoders that serve encode the results. So the example of an answer is the answer to the example of the body.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::Settings;
use crate::event::{Draft, Event};
use crate::http::commands;
use crate::http::problem::{Kind as ProblemKind, Problem};
use crate::id::{Kind, SubjectId};
use crate::kind::{self, Body, Command, Context, Part, State, description};
use crate::log::{Envelope, Receipt, StoredSubject};
use crate::uptime::Uptime;
use crate::wire;
use crate::wire::example::{self, AT_MILLIS, SEQ};

/// The time between two events of the examples, in milliseconds.
const STEP_MILLIS: i64 = 60_000;
/// Who sends the commands of the examples.
const SUB: &str = "maria";

/// A body that is the example of what is read.
pub(in crate::http) struct Example;

impl Body for Example {
    type Error = Problem;

    fn read<T: DeserializeOwned + JsonSchema>(self) -> Result<T, Problem> {
        let none = || Problem::new(ProblemKind::InvalidBody, "the body has no example");
        example::read().ok_or_else(none)
    }
}

/// A subject to which commands were sent.
#[derive(Clone)]
pub(in crate::http) struct ExampleSubject {
    state: State,
    /// The event that answers the last command.
    answer: Arc<Event>,
    /// Its parts.
    pub(in crate::http) parts: Vec<Part>,
    /// The `seq` of its last event.
    last: u64,
}

impl ExampleSubject {
    /// Creates a subject. Returns `None` if the rules reject the command.
    pub(in crate::http) fn made(made: &Envelope) -> Option<ExampleSubject> {
        carried_out(None, &made.subject, &made.command)
    }

    /// Returns the subject after another command. Returns `None` if the rules reject it.
    pub(in crate::http) fn then(&self, command: &Command) -> Option<ExampleSubject> {
        carried_out(Some(self), &self.answer.subject, command)
    }

    /// Returns the subject after the example of a verb.
    fn then_example(&self, verb: &str) -> Option<ExampleSubject> {
        let command = Command::read(self.answer.kind, verb, Example)?;
        self.then(&command.ok()?)
    }

    /// Returns the event that answers the last command, as an answer contains it.
    pub(in crate::http) fn event(&self) -> Value {
        json(&wire::event_json(&self.answer, false))
    }

    /// Returns what the store would answer to the last command.
    pub(in crate::http) fn receipt(&self) -> Receipt {
        Receipt::Committed(Arc::clone(&self.answer))
    }

    /// Returns the subject as it is stored.
    pub(in crate::http) fn stored(self) -> StoredSubject {
        let Event {
            kind,
            ref subject,
            at,
            ..
        } = *self.answer;
        let place = (example::epoch(), self.answer.place());
        let draft = self.state.describe(subject, at);
        let subject = subject.clone();
        StoredSubject {
            state: self.state,
            created_seq: SEQ,
            event: Arc::new(Event::snapshot(
                place,
                example::school(),
                kind,
                subject,
                at,
                draft,
            )),
        }
    }
}

/// Returns when an event of the examples happened.
fn time_of(seq: u64) -> DateTime<Utc> {
    let steps = i64::try_from(seq - SEQ).unwrap_or_default();
    example::time(AT_MILLIS + steps * STEP_MILLIS)
}

fn carried_out(
    before: Option<&ExampleSubject>,
    id: &SubjectId,
    command: &Command,
) -> Option<ExampleSubject> {
    let next_seq = before.map_or(SEQ, |before| before.last + 1);
    let now = time_of(next_seq);
    let parts = before.map_or(&[][..], |before| &before.parts);
    let wanted = command.wants_part();
    let context = Context {
        now,
        limits: &Settings::default().limits(),
        history: None,
        uptime: Uptime::from_millis(now.timestamp_millis().try_into().ok()?),
        sub: Some(SUB),
        next_seq,
        holder: None,
        part: parts.iter().find(|part| wanted == Some(part.number())),
        taken_part: None,
    };
    let state = before.map(|before| &before.state);
    let outcome = kind::apply(id, state, command, &context).ok()?;
    let event = |(seq, draft): (u64, &Draft)| {
        let place = (example::epoch(), seq);
        let draft = draft.clone();
        Event::new(
            place,
            example::school(),
            command.kind(),
            id.clone(),
            now,
            draft,
        )
    };
    let numbered = || (next_seq..).zip(&outcome.drafts);
    let changed = |part: &&Part| {
        !outcome
            .parts
            .iter()
            .any(|new| new.number() == part.number())
    };
    let kept: Vec<Part> = parts.iter().filter(changed).cloned().collect();
    Some(ExampleSubject {
        answer: Arc::new(event(numbered().nth(outcome.answer)?)),
        last: numbered().last()?.0,
        parts: kept.into_iter().chain(outcome.parts).collect(),
        state: outcome.state,
    })
}

/// Creates a subject of a kind by the example of the verb that creates one.
fn made(kind: Kind) -> Option<ExampleSubject> {
    let created = commands::create(kind, Example).and_then(Result::ok);
    let made = match created {
        Some(created) => created,
        None => {
            let described = description(kind);
            let command = Command::read(kind, described.made_by, Example)?.ok()?;
            Envelope::new(example::subject(described)?, command)
        }
    };
    ExampleSubject::made(&made)
}

/// Returns a subject after the verbs before this one in the kind's description, up to the first that would end it.
fn before(kind: Kind, verb: Option<&str>) -> Option<ExampleSubject> {
    let verbs = description(kind).verbs.iter();
    let mut subject = made(kind)?;
    for earlier in verbs.take_while(|earlier| Some(**earlier) != verb) {
        match subject.then_example(earlier) {
            Some(next) if next.state.subject().finished_at().is_some() => break,
            Some(next) => subject = next,
            // The rules reject it, or another service carries it out.
            None => {}
        }
    }
    Some(subject)
}

/// Returns a subject of a kind after the example of a verb, for which another example may have had to end it.
pub(in crate::http) fn after(kind: Kind, verb: &str) -> Option<ExampleSubject> {
    let described = description(kind);
    if verb == described.made_by {
        return made(kind);
    }
    let before = before(kind, Some(verb))?;
    let at_once = before.then_example(verb);
    at_once.or_else(|| {
        let mut others = described.verbs.iter();
        others.find_map(|other| before.then_example(other)?.then_example(verb))
    })
}

/// Returns a subject of a kind that has not ended, with what the examples of its verbs do.
pub(in crate::http) fn living(kind: Kind) -> Option<ExampleSubject> {
    before(kind, None)
}

/// Returns an answer that was encoded.
pub(in crate::http) fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("an answer is JSON")
}

/// Returns an answer that is serialized.
pub(in crate::http) fn value(answer: &impl Serialize) -> Value {
    serde_json::to_value(answer).expect("an answer is JSON")
}
