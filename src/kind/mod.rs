//! The kinds of subject, as pure rules: (state, command, now) → (state, events). No I/O, no clock.
//!
//! A kind is its own module here with a line in the list of `kinds!`, and a table in the store with a line in its list;
//! everything else (log, hub, transports, API, the monitor's tables) handles [`Command`]s, [`State`]s, [`Part`]s and events
//! of any kind alike, by the kind's [`Description`]. `tests/it/toy_kind.rs` adds a kind and counts. Keeps invariant 10: a
//! terminal state is final, progress never falls within an attempt.

pub mod characteristic;
pub mod device;
pub mod enrollment;
pub mod job;
mod values;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::job::{History, Past};
use self::values::{
    as_optional_timestamp, as_timestamp, bounded, code, from_optional_object, is_plain_name,
    merged, optional_id_or_number, optional_time, percent, text_or_number,
};
use crate::event::{Draft, EventType};
use crate::id::{Channel, Kind, NameError, SubjectId};
use crate::uptime::Uptime;

/// The longest `code` of an error, in bytes.
pub const CODE_MAX_BYTES: usize = 64;

/// The `code` of an error that came without one.
pub const PLAIN_ERROR_CODE: &str = "error";

/// What is fixed of a kind.
#[derive(Debug)]
pub struct Description {
    /// Its name in URLs and channels.
    pub kind: Kind,
    /// One of them, capitalised, for people.
    pub noun: &'static str,
    /// All of them, as the title of their page.
    pub title: &'static str,
    /// The field of its messages that names the subject.
    pub id_field: &'static str,
    /// Other fields of its messages that hold ids.
    pub other_ids: &'static [&'static str],
    /// Every type that its events can have.
    pub event_types: &'static [&'static EventType],
    /// Every status that its events can carry.
    pub statuses: &'static [&'static str],
    /// The verb that makes one known: `create` (by `POST`) or `put`.
    pub made_by: &'static str,
    /// What can be done to one that exists: `POST /api/<collection>/<id>/<verb>`.
    pub verbs: &'static [&'static str],
    /// The columns of the monitor's table of them, which [`Subject::cells`] fills. None if the monitor has a page made for
    /// the kind.
    pub columns: &'static [&'static str],
}

/// What a kind's state says of itself.
pub trait Subject {
    /// The state as an event, as it may be told at `now`: of several that tell it, the one that tells what it is.
    fn describe(&self, id: &SubjectId, now: DateTime<Utc>) -> Draft;

    /// What belongs to the subject in addition to the fields of that event: a JSON object.
    fn details(&self, id: &SubjectId) -> Value;

    /// What people call the subject, as its publisher wrote it. Nothing if it has only its id.
    fn title(&self) -> Option<String> {
        None
    }

    /// What the monitor's table has in each of [`Description::columns`]: the first value is the one that counts, the others
    /// are remarks.
    fn cells(&self) -> Vec<Vec<Cell>> {
        Vec::new()
    }

    /// Category, and what a subject that ended well teaches of it.
    fn past(&self) -> Option<(Arc<str>, Past)> {
        None
    }

    /// What the subject holds alone of all of its kind in the school.
    fn holds(&self) -> Option<&str> {
        None
    }

    /// How many bytes its texts have: those that its publisher chooses the length of.
    fn text_bytes(&self) -> usize;

    /// Whether it has ended, and is hardly asked anything any more.
    fn is_over(&self) -> bool {
        false
    }
}

/// What a kind's commands say of themselves, `S` being its state.
pub trait CommandOf<S>: Sized {
    /// Reads the command of a verb: `create` and `put` make a subject known, the others are the rest of its
    /// [`Description::verbs`]. Nothing if the kind has no such verb.
    fn read<B: Body>(verb: &str, body: B) -> Option<Result<Self, B::Error>>;

    /// The id that the command itself gives to the subject which it creates.
    fn names(&self) -> Option<&SubjectId> {
        None
    }

    /// The category whose history the rules want to know, if any.
    fn wants_history(&self, _: Option<&S>) -> Option<Arc<str>> {
        None
    }

    /// What the subject would hold alone, so that the rules want to know who holds it now.
    fn wants_holder(&self) -> Option<&str> {
        None
    }

    /// The number of the subject's part that the rules want to know.
    fn wants_part(&self) -> Option<u64> {
        None
    }

    /// The publisher's own ids of the parts that it would make: the rules want to know whether one is taken.
    fn names_parts(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// A value in a table of subjects.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// A name or another short text, as somebody has written it.
    Name(String),
    /// A longer text, as somebody has written it.
    Text(String),
    /// A few words of the kind's own, on one line.
    Words(String),
    /// One of [`Description::statuses`].
    Status(&'static str),
    /// Percent done.
    Percent(u8),
    /// A measurement, and of what.
    Measure(&'static str, f64),
    /// When something happened, if it has.
    Time(Option<DateTime<Utc>>),
}

/// What belongs to a subject and has a row of its own, as a violation belongs to a characteristic. A subject's parts are
/// numbered 1, 2, 3, …, and are written in the same transaction as their subject.
pub trait PartOf {
    /// Its number within the subject.
    fn number(&self) -> u64;

    /// The publisher's own id of it, unique in the school among the parts of the kind.
    fn own_id(&self) -> Option<&Arc<str>>;
}

/// The parts of a kind whose subjects have none.
#[derive(Debug, Clone)]
pub enum NoPart {}

impl PartOf for NoPart {
    fn number(&self) -> u64 {
        match *self {}
    }

    fn own_id(&self) -> Option<&Arc<str>> {
        match *self {}
    }
}

/// Something that a command's fields can be read from.
pub trait Body {
    /// Why they cannot.
    type Error;

    /// Reads them.
    fn read<T: DeserializeOwned>(self) -> Result<T, Self::Error>;
}

/// Makes what handles any kind alike, out of one line for each.
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident($module:ident::$state:ident) as $name:ident;)*) => {
        /// Every kind there is.
        pub const KINDS: &[Kind] = &[$($module::KIND),*];

        /// What is fixed of each kind.
        pub static DESCRIPTIONS: &[&Description] = &[$(&$module::DESCRIPTION),*];

        /// What a producer asks of a subject.
        #[derive(Debug, Clone)]
        pub enum Command { $($(#[$doc])* $variant($module::Command)),* }

        /// What a subject is.
        #[derive(Debug, Clone)]
        pub enum State { $($(#[$doc])* $variant(Box<$module::$state>)),* }

        /// What belongs to a subject and has a row of its own; see [`PartOf`].
        #[derive(Debug, Clone)]
        pub enum Part { $($(#[$doc])* $variant($module::Part)),* }

        /// The rules of the kind that the command is for.
        pub fn apply(
            id: &SubjectId,
            state: Option<&State>,
            command: &Command,
            context: &Context<'_>,
        ) -> Result<Outcome<State>, RuleError> {
            match command {
                $(Command::$variant(command) => {
                    let own = state.and_then(State::$name);
                    let outcome = $module::apply(id, own, command, context)?;
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

            /// The kind of subject that it is for.
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
                /// The part, if it is of a subject of this kind.
                pub fn $name(&self) -> Option<&$module::Part> {
                    match self {
                        Part::$variant(own) => Some(own),
                        _ => None,
                    }
                }
            )*

            /// The part as its kind has it.
            fn own(&self) -> &dyn PartOf {
                match self { $(Part::$variant(own) => own),* }
            }
        }

        impl State {
            $(
                /// The state, if it is of this kind.
                pub fn $name(&self) -> Option<&$module::$state> {
                    match self {
                        State::$variant(own) => Some(own),
                        _ => None,
                    }
                }
            )*

            /// The state as its kind has it.
            fn subject(&self) -> &dyn Subject {
                match self { $(State::$variant(own) => &**own),* }
            }
        }

        $(
            impl From<$module::$state> for State {
                fn from(own: $module::$state) -> State {
                    State::$variant(Box::new(own))
                }
            }
        )*
    };
}

kinds! {
    /// Of a job.
    Job(job::Job) as job;
    /// Of an enrollment session.
    Enrollment(enrollment::Session) as enrollment;
    /// Of a device.
    Device(device::Device) as device;
    /// Of a characteristic.
    Characteristic(characteristic::Characteristic) as characteristic;
}

impl Part {
    /// See [`PartOf::number`].
    pub fn number(&self) -> u64 {
        self.own().number()
    }

    /// See [`PartOf::own_id`].
    pub fn own_id(&self) -> Option<&Arc<str>> {
        self.own().own_id()
    }
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

/// The one copy of an event's type that was read from the store.
pub fn known_type(name: &str) -> Option<&'static EventType> {
    let mut types = DESCRIPTIONS.iter().flat_map(|own| own.event_types);
    types.find(|own| own.name == name).copied()
}

/// The one copy of a status that was read from the store or from a request.
pub fn known_status(text: &str) -> Option<&'static str> {
    let mut statuses = DESCRIPTIONS.iter().flat_map(|own| own.statuses);
    statuses.find(|own| **own == text).copied()
}

/// Whether a field of this name holds an id, in the messages of any kind.
pub fn is_id_field(name: &str) -> bool {
    DESCRIPTIONS
        .iter()
        .any(|own| own.id_field == name || own.other_ids.contains(&name))
}

/// The kind of this collection.
pub fn known_kind(collection: &str) -> Option<Kind> {
    KINDS
        .iter()
        .copied()
        .find(|kind| kind.collection() == collection)
}

/// What is fixed of this kind.
pub fn description(kind: Kind) -> &'static Description {
    let found = DESCRIPTIONS.iter().find(|own| own.kind == kind);
    found.expect("every kind is described")
}

/// Reads a channel's text.
pub fn channel(text: &str) -> Result<Channel, NameError> {
    Channel::parse(text, KINDS)
}

/// That there is no such subject.
pub fn not_found(kind: Kind, id: impl Into<String>) -> RuleError {
    RuleError::NotFound {
        noun: description(kind).noun,
        id: id.into(),
    }
}

/// What the rules may know besides state and command.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The present, to the millisecond.
    pub now: DateTime<Utc>,
    /// Bounds on what producers may send.
    pub limits: &'a Limits,
    /// What recent subjects of the same category teach, if any finished.
    pub history: Option<History>,
    /// The present, as silence is measured.
    pub uptime: Uptime,
    /// The `sub` of the token that the command came with, if it came with one.
    pub sub: Option<&'a str>,
    /// The number that the first event of the outcome will have.
    pub next_seq: u64,
    /// Who holds what the command wants to hold.
    pub holder: Option<&'a SubjectId>,
    /// The part of the subject that the command is about.
    pub part: Option<&'a Part>,
    /// An id that the command would give to a part, and that another part has.
    pub taken_part: Option<&'a str>,
}

/// Bounds that the rules enforce. Bytes are UTF-8 bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest `message`, in bytes.
    pub message_bytes: usize,
    /// The largest `metadata` after merging, as compact JSON, in bytes.
    pub metadata_bytes: usize,
    /// After how many silent seconds a running job is flagged `stalled`, unless it says otherwise; 0 is never.
    pub stall_after_secs: u32,
    /// After how many silent seconds a running job is failed, unless it says otherwise; 0 is never.
    pub timeout_secs: u32,
    /// After how many silent seconds an enrollment session ends, unless it says otherwise.
    pub enrollment_lease_secs: u32,
    /// After how many silent seconds a device is offline, unless it says otherwise.
    pub device_lease_secs: u32,
}

/// How large a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// In UTF-8 bytes.
    pub bytes: usize,
    /// The setting that says so, if there is one.
    pub setting: Option<&'static str>,
}

impl Bound {
    const fn constant(bytes: usize) -> Bound {
        Bound {
            bytes,
            setting: None,
        }
    }
}

impl Limits {
    fn message(&self) -> Bound {
        Bound {
            bytes: self.message_bytes,
            setting: Some("message_limit_bytes"),
        }
    }

    fn metadata(&self) -> Bound {
        Bound {
            bytes: self.metadata_bytes,
            setting: Some("metadata_limit_bytes"),
        }
    }
}

/// What a command leads to. No drafts: nothing happened that anybody needs to hear.
#[derive(Debug)]
pub struct Outcome<S> {
    /// The state afterwards.
    pub state: S,
    /// What happened, in order.
    pub drafts: Vec<Draft>,
    /// Which of them answers the command, by its index.
    pub answer: usize,
    /// Parts that were made or changed, as they are now.
    pub parts: Vec<Part>,
}

impl<S> Outcome<S> {
    fn new(state: S, drafts: Vec<Draft>) -> Outcome<S> {
        Outcome {
            state,
            drafts,
            answer: 0,
            parts: Vec::new(),
        }
    }

    fn map<T>(self, convert: impl FnOnce(S) -> T) -> Outcome<T> {
        Outcome {
            state: convert(self.state),
            drafts: self.drafts,
            answer: self.answer,
            parts: self.parts,
        }
    }
}

/// A command that the rules refuse. It has no effect. The texts are safe to show to a client.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RuleError {
    /// There is no such subject in this school.
    #[error("{noun} {id} not found")]
    NotFound {
        /// The kind's noun, capitalised.
        noun: &'static str,
        /// What was asked for.
        id: String,
    },
    /// The id is taken.
    #[error("{noun} {id} already exists")]
    AlreadyExists {
        /// The kind's noun, capitalised.
        noun: &'static str,
        /// What was asked for.
        id: String,
    },
    /// The subject is finished: nothing changes it any more.
    #[error("it is already {status}, and that is final")]
    Finished {
        /// The terminal status.
        status: &'static str,
    },
    /// The state machine has no such step.
    #[error("cannot {action} while it is {status}")]
    IllegalTransition {
        /// What was asked.
        action: &'static str,
        /// The present status.
        status: &'static str,
    },
    /// What it would hold alone is held by another.
    #[error("{what} is held by {holder}")]
    Held {
        /// What, for example `device door-3`.
        what: String,
        /// By what.
        holder: &'static str,
    },
    /// It is about an attempt that is not the present one.
    #[error("`attempt` is {told}, and the present attempt is {current}")]
    StaleAttempt {
        /// The present attempt.
        current: u32,
        /// The attempt that the report is about.
        told: u32,
    },
    /// It does not say which attempt it is about, and comes from a worker of an earlier one.
    #[error(
        "`attempt` is missing: this worker has reported on an earlier attempt only, and the present one is {current}; \
         one that works on the present attempt calls `start` or sends `attempt`: {current}"
    )]
    StaleWorker {
        /// The present attempt.
        current: u32,
    },
    /// The school has as many of them as it may.
    #[error("the school has {most} {collection}, and may have no more")]
    TooMany {
        /// Of which kind.
        collection: &'static str,
        /// How many it may have.
        most: u64,
        /// The setting that says so, if there is one.
        setting: Option<&'static str>,
    },
    /// A field's value is too large.
    #[error("`{field}` has at most {} bytes", .most.bytes)]
    TooLarge {
        /// The field.
        field: &'static str,
        /// How large it may be.
        most: Bound,
    },
    /// A field's value is out of its range.
    #[error("`{field}` {expected}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What it should be.
        expected: String,
    },
}
