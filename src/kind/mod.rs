//! The kinds of subject, as pure rules: (state, command, now) → (state, events). No I/O, no clock.
//!
//! A kind is a module here with a line in the list of `kinds!`, and a table in the store with a line in its list.
//! Everything else (log, hub, transports, API, the monitor's tables) handles the [`Command`]s, [`State`]s, [`Part`]s and
//! events of all kinds uniformly, by the kind's [`Description`]. `tests/it/added_kind.rs` adds a kind, and shows which
//! files and lines this requires. The rules uphold invariant 10: a terminal state is final, and progress never
//! decreases within an attempt.

pub mod characteristic;
mod details;
pub mod device;
pub mod enrollment;
pub mod job;
mod rules;
pub mod schedule;
mod values;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

pub use self::details::EventDetails;
use self::job::{History, Past};
pub use self::rules::{Bound, Context, Limits, Outcome, RuleError};
use self::values::{
    IdOrNumber, Time, as_optional_timestamp, as_timestamp, bounded, code, compact,
    from_optional_object, merged, one_of, optional_id_or_number, optional_time, text_or_number,
    unnamed_schema,
};
pub(crate) use self::values::{TextOrNumber, is_plain_name, percent};
use crate::event::{Draft, EventType};
use crate::id::{Channel, Kind, NameError, SubjectId};
use crate::uptime::Uptime;

/// The longest `code` of an error, in bytes.
pub const CODE_MAX_BYTES: usize = 64;

/// The default `code` of an error.
pub const PLAIN_ERROR_CODE: &str = "error";

/// The fixed properties of a kind.
#[derive(Debug)]
pub struct Description {
    /// Its name in URLs and channels.
    pub kind: Kind,
    /// The singular noun, capitalised, for display.
    pub noun: &'static str,
    /// The plural noun, capitalised: the title of the page that lists the subjects.
    pub title: &'static str,
    /// The field of its messages that contains the subject's id.
    pub id_field: &'static str,
    /// Other fields of its messages that contain ids.
    pub other_ids: &'static [&'static str],
    /// Every type that its events can have.
    pub event_types: &'static [&'static EventType],
    /// Every status that its events can have.
    pub statuses: &'static [&'static str],
    /// The verb that creates a subject: `create` (by `POST`) or `put`.
    pub made_by: &'static str,
    /// The verbs for an existing subject: `POST /api/<collection>/<id>/<verb>`.
    pub verbs: &'static [&'static str],
    /// Returns the schema of [`Subject::details`], which is that of the type that they are serialized from.
    pub details: fn(&mut SchemaGenerator) -> Schema,
    /// The columns of the monitor's table of these subjects, which [`Subject::cells`] fills. Empty if the monitor has a
    /// dedicated page for the kind.
    pub columns: &'static [&'static str],
}

/// The `seq` and the time of an event.
pub type At = (u64, DateTime<Utc>);

/// The searchable texts of a subject.
#[derive(Debug, Default)]
pub struct Texts<'a> {
    /// Texts that are searched as they are.
    pub own: Vec<&'a str>,
    /// JSON whose texts and numbers are searched.
    pub values: Option<&'a RawValue>,
}

/// The state of a subject of any kind.
pub trait Subject {
    /// Returns the state as an event, as it can be published at `now`. If the kind has several types of event, this is
    /// the one that describes the subject.
    fn describe(&self, id: &SubjectId, now: DateTime<Utc>) -> Draft;

    /// Returns the subject's data that is not in the event of [`Subject::describe`]: a JSON object.
    fn details(&self, id: &SubjectId) -> Value;

    /// Returns the subject's title, as its publisher wrote it; `None` if it has only its id.
    fn title(&self) -> Option<String> {
        None
    }

    /// Returns the values of each of [`Description::columns`]. The first value of a cell is the main one; the others are
    /// shown less prominently.
    fn cells(&self) -> Vec<Vec<Cell>> {
        Vec::new()
    }

    /// Returns the category and what the subject adds to the category's [`History`], if it completed successfully.
    fn past(&self) -> Option<(Arc<str>, Past)> {
        None
    }

    /// Returns the resource that the subject holds exclusively among all subjects of its kind in the school.
    fn holds(&self) -> Option<&str> {
        None
    }

    /// Returns its status, one of [`Description::statuses`].
    fn status(&self) -> &'static str;

    /// Returns its category (a job's type), if the kind has categories.
    fn category(&self) -> Option<&str> {
        None
    }

    /// Returns whether it has stalled; false for kinds whose subjects do not stall.
    fn is_stalled(&self) -> bool {
        false
    }

    /// Returns when it was created.
    fn created_at(&self) -> DateTime<Utc>;

    /// Returns when it ended, if it has.
    fn finished_at(&self) -> Option<DateTime<Utc>> {
        None
    }

    /// Returns when the command [`CommandOf::check`] is due for it.
    fn check_uptime(&self) -> Option<Uptime> {
        None
    }

    /// Returns the `seq`s of the events that [`Subject::current`] repeats. A store indexes them. `last` is the `seq` of
    /// the subject's last event.
    fn places(&self, last: u64) -> [Option<u64>; 2] {
        [Some(last), None]
    }

    /// Returns the events that represent the state, each with the `seq` and the time of the event that it repeats. There
    /// is one for each `seq` of [`Subject::places`].
    fn current(&self, id: &SubjectId, last: At, now: DateTime<Utc>) -> Vec<(At, Draft)> {
        vec![(last, self.describe(id, now))]
    }

    /// Returns the `seq` of the newest event that supersedes the subject's ticks, and the status that it carries; `None`
    /// if the subject has no ticks.
    fn superseding(&self, last: u64) -> Option<(u64, &'static str)> {
        Some((last, self.status()))
    }

    /// Returns the texts that are searchable in addition to the id.
    fn texts(&self) -> Texts<'_>;

    /// Returns the size in bytes of its texts whose length the publisher chooses.
    fn text_bytes(&self) -> usize;

    /// Returns whether it has ended, and is rarely accessed from now on.
    fn is_over(&self) -> bool {
        false
    }
}

/// A command of any kind; `S` is the kind's state.
pub trait CommandOf<S>: Sized {
    /// Reads the command of a verb: `create` and `put` create a subject, the others are the rest of its
    /// [`Description::verbs`]. Returns `None` if the kind has no such verb.
    fn read<B: Body>(verb: &str, body: B) -> Option<Result<Self, B::Error>>;

    /// Returns the id of the subject that the command creates, if the command contains one.
    fn names(&self) -> Option<&SubjectId> {
        None
    }

    /// Returns the category whose history the rules need, if any.
    fn wants_history(&self, _: Option<&S>) -> Option<Arc<str>> {
        None
    }

    /// Returns the resource that the subject would hold exclusively; the rules need its current holder.
    fn wants_holder(&self) -> Option<&str> {
        None
    }

    /// Returns the number of the subject's part that the rules need.
    fn wants_part(&self) -> Option<u64> {
        None
    }

    /// Returns the publisher-assigned ids of the parts that the command would create. The rules need to know whether one
    /// is in use.
    fn names_parts(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Returns the command that checks a subject when it is due, if the kind has one.
    fn check() -> Option<Self> {
        None
    }
}

/// A value in a table of subjects.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// A name or another short text, as a client wrote it.
    Name(String),
    /// A longer text, as a client wrote it.
    Text(String),
    /// A short text of the kind itself, on one line.
    Words(String),
    /// One of [`Description::statuses`].
    Status(&'static str),
    /// Percent complete.
    Percent(u8),
    /// A measurement, with a label.
    Measure(&'static str, f64),
    /// The time of something, if it has happened.
    Time(Option<DateTime<Utc>>),
}

/// An entity that belongs to a subject and has its own row, as a violation belongs to a characteristic. A subject's parts
/// are numbered 1, 2, 3, …, and are written in the same transaction as the subject.
pub trait PartOf {
    /// Returns its subject.
    fn subject(&self) -> &SubjectId;

    /// Returns its number within the subject.
    fn number(&self) -> u64;

    /// Returns the publisher-assigned id, unique in the school among the parts of the kind.
    fn own_id(&self) -> Option<&Arc<str>>;

    /// Returns the `seq` of the event that opened it.
    fn seq(&self) -> u64;

    /// Returns when it was closed; `None` while it is open.
    fn closed_at(&self) -> Option<DateTime<Utc>>;

    /// Returns the event that represents it in a snapshot while it is open.
    fn current(&self) -> (At, Draft);
}

/// The parts of a kind whose subjects have none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum NoPart {}

impl PartOf for NoPart {
    fn subject(&self) -> &SubjectId {
        match *self {}
    }

    fn number(&self) -> u64 {
        match *self {}
    }

    fn own_id(&self) -> Option<&Arc<str>> {
        match *self {}
    }

    fn seq(&self) -> u64 {
        match *self {}
    }

    fn closed_at(&self) -> Option<DateTime<Utc>> {
        match *self {}
    }

    fn current(&self) -> (At, Draft) {
        match *self {}
    }
}

/// A source from which a command's fields can be read.
///
/// The implementation that describes the HTTP API reads nothing. It always returns an "error", which is the schema of the
/// fields.
pub trait Body {
    /// The error if the fields cannot be read.
    type Error;

    /// Reads the fields. Their schema is in the description of the HTTP API.
    fn read<T: DeserializeOwned + JsonSchema>(self) -> Result<T, Self::Error>;
}

/// Generates the code that handles all kinds uniformly, from one line for each kind.
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident($module:ident::$state:ident) as $name:ident;)*) => {
        /// All kinds.
        pub const KINDS: &[Kind] = &[$($module::KIND),*];

        /// The description of each kind.
        pub static DESCRIPTIONS: &[&Description] = &[$(&$module::DESCRIPTION),*];

        /// A producer's command to a subject.
        #[derive(Debug, Clone)]
        pub enum Command { $($(#[$doc])* $variant($module::Command)),* }

        /// A subject's state.
        #[derive(Debug, Clone)]
        pub enum State { $($(#[$doc])* $variant(Box<$module::$state>)),* }

        /// An entity that belongs to a subject and has its own row; see [`PartOf`].
        #[derive(Debug, Clone)]
        pub enum Part { $($(#[$doc])* $variant($module::Part)),* }

        /// Applies the rules of the kind that the command is for.
        pub fn apply(
            id: &SubjectId,
            state: Option<&State>,
            command: &Command,
            context: &Context<'_>,
        ) -> Result<Outcome<State>, RuleError> {
            match command {
                $(Command::$variant(command) => {
                    let state = state.and_then(State::$name);
                    let outcome = $module::apply(id, state, command, context)?;
                    Ok(outcome.map(State::from))
                })*
            }
        }

        impl Command {
            /// Reads the command of a kind's verb; see [`CommandOf::read`].
            pub fn read<B: Body>(kind: Kind, verb: &str, body: B) -> Option<Result<Command, B::Error>> {
                $(if kind == $module::KIND {
                    let read = $module::Command::read(verb, body)?;
                    return Some(read.map(Command::$variant));
                })*
                None
            }

            /// Returns the command that checks a subject of this kind when it is due; see [`CommandOf::check`].
            pub fn check(kind: Kind) -> Option<Command> {
                $(if kind == $module::KIND {
                    return $module::Command::check().map(Command::$variant);
                })*
                None
            }

            /// Returns the kind of subject that the command is for.
            pub fn kind(&self) -> Kind {
                match self { $(Command::$variant(_) => $module::KIND),* }
            }

            /// See [`CommandOf::names`].
            pub fn names(&self) -> Option<&SubjectId> {
                match self { $(Command::$variant(command) => command.names()),* }
            }

            /// See [`CommandOf::wants_history`].
            pub fn wants_history(&self, state: Option<&State>) -> Option<Arc<str>> {
                match self {
                    $(Command::$variant(command) => command.wants_history(state.and_then(State::$name))),*
                }
            }

            /// See [`CommandOf::wants_holder`].
            pub fn wants_holder(&self) -> Option<&str> {
                match self { $(Command::$variant(command) => command.wants_holder()),* }
            }

            /// See [`CommandOf::names_parts`].
            pub fn names_parts(&self) -> Vec<&str> {
                match self { $(Command::$variant(command) => command.names_parts()),* }
            }

            /// See [`CommandOf::wants_part`].
            pub fn wants_part(&self) -> Option<u64> {
                match self { $(Command::$variant(command) => command.wants_part()),* }
            }
        }

        impl Part {
            $(
                /// Returns the part, if it belongs to a subject of this kind.
                pub fn $name(&self) -> Option<&$module::Part> {
                    match self {
                        Part::$variant(part) => Some(part),
                        _ => None,
                    }
                }
            )*

            /// Returns the inner value, as a [`PartOf`].
            fn inner(&self) -> &dyn PartOf {
                match self { $(Part::$variant(part) => part),* }
            }

            /// Returns the part as JSON, from which [`Part::from_json`] reads it.
            pub fn to_json(&self) -> String {
                match self { $(Part::$variant(part) => to_json(part)),* }
            }

            /// Reads a part of a subject of this kind.
            pub fn from_json(kind: Kind, json: &str) -> Result<Part, serde_json::Error> {
                $(if kind == $module::KIND {
                    return serde_json::from_str(json).map(Part::$variant);
                })*
                unreachable!("`kinds!` lists every kind")
            }
        }

        impl State {
            $(
                /// Returns the state, if it is of this kind.
                pub fn $name(&self) -> Option<&$module::$state> {
                    match self {
                        State::$variant(state) => Some(state),
                        _ => None,
                    }
                }
            )*

            /// Returns the inner value, as a [`Subject`].
            pub fn subject(&self) -> &dyn Subject {
                match self { $(State::$variant(state) => &**state),* }
            }

            /// Returns the state as JSON, from which [`State::from_json`] reads it.
            pub fn to_json(&self) -> String {
                match self { $(State::$variant(state) => to_json(state)),* }
            }

            /// Reads the state of a subject of this kind.
            pub fn from_json(kind: Kind, json: &str) -> Result<State, serde_json::Error> {
                $(if kind == $module::KIND {
                    return serde_json::from_str(json).map(State::$variant);
                })*
                unreachable!("`kinds!` lists every kind")
            }
        }

        $(
            impl From<$module::$state> for State {
                fn from(state: $module::$state) -> State {
                    State::$variant(Box::new(state))
                }
            }
        )*
    };
}

kinds! {
    /// For jobs.
    Job(job::Job) as job;
    /// For enrollment sessions.
    Enrollment(enrollment::Session) as enrollment;
    /// For devices.
    Device(device::Device) as device;
    /// For characteristics.
    Characteristic(characteristic::Characteristic) as characteristic;
    /// For schedules.
    Schedule(schedule::Schedule) as schedule;
}

impl Part {
    /// See [`PartOf::subject`].
    pub fn subject(&self) -> &SubjectId {
        self.inner().subject()
    }

    /// See [`PartOf::number`].
    pub fn number(&self) -> u64 {
        self.inner().number()
    }

    /// See [`PartOf::own_id`].
    pub fn own_id(&self) -> Option<&Arc<str>> {
        self.inner().own_id()
    }
}

impl Part {
    /// See [`PartOf::seq`].
    pub fn seq(&self) -> u64 {
        self.inner().seq()
    }

    /// See [`PartOf::closed_at`].
    pub fn closed_at(&self) -> Option<DateTime<Utc>> {
        self.inner().closed_at()
    }

    /// See [`PartOf::current`].
    pub fn current(&self) -> (At, Draft) {
        self.inner().current()
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a state is JSON")
}

/// One of [`Description::statuses`]. A derived `Deserialize` would borrow a field of type `&'static str` from its
/// input. It does not recognise this alias, and so does not borrow.
pub type StatusText = &'static str;

/// Reads a status of any kind as the static text.
fn status_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    known_status(&text).ok_or_else(|| serde::de::Error::custom("no subject has this status"))
}

impl State {
    /// See [`Subject::describe`].
    pub fn describe(&self, id: &SubjectId, now: DateTime<Utc>) -> Draft {
        self.subject().describe(id, now)
    }

    /// See [`Subject::details`].
    pub fn details(&self, id: &SubjectId) -> Value {
        self.subject().details(id)
    }

    /// See [`Subject::title`].
    pub fn title(&self) -> Option<String> {
        self.subject().title()
    }

    /// See [`Subject::cells`].
    pub fn cells(&self) -> Vec<Vec<Cell>> {
        self.subject().cells()
    }

    /// See [`Subject::past`].
    pub fn past(&self) -> Option<(Arc<str>, Past)> {
        self.subject().past()
    }

    /// See [`Subject::text_bytes`].
    pub fn text_bytes(&self) -> usize {
        self.subject().text_bytes()
    }

    /// See [`Subject::is_over`].
    pub fn is_over(&self) -> bool {
        self.subject().is_over()
    }

    /// See [`Subject::holds`].
    pub fn holds(&self) -> Option<&str> {
        self.subject().holds()
    }
}

/// Returns the static event type with this name, which was read from the store.
pub fn known_type(name: &str) -> Option<&'static EventType> {
    let mut types = DESCRIPTIONS
        .iter()
        .flat_map(|description| description.event_types);
    types.find(|event_type| event_type.name == name).copied()
}

/// Returns the static text of a status that was read from the store or from a request.
pub fn known_status(text: &str) -> Option<&'static str> {
    statuses().find(|status| *status == text)
}

/// Returns the statuses of all kinds. Kinds can share a status.
pub fn statuses() -> impl Iterator<Item = &'static str> {
    DESCRIPTIONS
        .iter()
        .flat_map(|description| description.statuses)
        .copied()
}

/// Returns whether a field of this name contains an id in the messages of any kind.
pub fn is_id_field(name: &str) -> bool {
    DESCRIPTIONS
        .iter()
        .any(|description| description.id_field == name || description.other_ids.contains(&name))
}

/// Returns the kind with this collection name.
pub fn known_kind(collection: &str) -> Option<Kind> {
    KINDS
        .iter()
        .copied()
        .find(|kind| kind.collection() == collection)
}

/// Returns the description of this kind.
pub fn description(kind: Kind) -> &'static Description {
    let found = DESCRIPTIONS
        .iter()
        .find(|description| description.kind == kind);
    found.expect("every kind is described")
}

/// Parses a channel's text.
pub fn channel(text: &str) -> Result<Channel, NameError> {
    Channel::parse(text, KINDS)
}

/// The schema of a channel's text.
pub(crate) struct ChannelText;

unnamed_schema!(ChannelText, {
    let collections: Vec<_> = KINDS.iter().map(|kind| kind.collection()).collect();
    let subjects = collections.join("|");
    // The other characters of an id are percent-encoded.
    let id = "(?:[A-Za-z0-9_~:-]|%[0-9A-F]{2})(?:[A-Za-z0-9._~:-]|%[0-9A-F]{2}){0,127}";
    schemars::json_schema!({
        "type": "string",
        "pattern": format!("^(?:(?:{subjects})(?:/{id})?|schools/[1-9][0-9]{{0,17}})$"),
        "examples": ["jobs/42"],
    })
});

/// Returns the error for a subject that does not exist.
pub fn not_found(kind: Kind, id: impl Into<String>) -> RuleError {
    RuleError::NotFound {
        noun: description(kind).noun,
        id: id.into(),
    }
}
