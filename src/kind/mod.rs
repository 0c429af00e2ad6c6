//! The kinds of subject, as pure rules: (state, command, now) → (state, events). No I/O, no clock.
//!
//! A kind is one file here, one table in the store, and one line in each of the two lists below;
//! everything else (log, hub, transports) handles [`Command`]s, [`State`]s and events of any kind
//! alike. Keeps invariant 10: a terminal state is final, progress never falls within an attempt.

pub mod job;
mod rate;

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::event::{Class, Draft};
use crate::id::{Channel, Kind, NameError, SubjectId};

/// Every kind there is.
pub const KINDS: &[Kind] = &[job::KIND];

/// Every status that an event can carry and every event's name, to read stored ones back.
const NAMES: &[&[&str]] = &[job::NAMES];

/// What a producer asks of a subject.
#[derive(Debug, Clone)]
pub enum Command {
    /// Of a job.
    Job(job::Command),
}

/// What a subject is.
#[derive(Debug, Clone)]
pub enum State {
    /// A job.
    Job(Box<job::Job>),
}

/// The rules of whichever kind the command is for.
pub fn apply(
    id: &SubjectId,
    state: Option<&State>,
    command: &Command,
    context: &Context<'_>,
) -> Result<Outcome<State>, RuleError> {
    match command {
        Command::Job(command) => {
            let job = state.map(|State::Job(job)| &**job);
            let Outcome { state, drafts } = job::apply(id, job, command, context)?;
            Ok(Outcome {
                state: State::Job(Box::new(state)),
                drafts,
            })
        }
    }
}

impl Command {
    /// The kind of subject that it is for.
    pub fn kind(&self) -> Kind {
        match self {
            Command::Job(_) => job::KIND,
        }
    }

    /// The category whose median duration the rules want to know, if any.
    pub fn wants_history(&self, state: Option<&State>) -> Option<Arc<str>> {
        match self {
            Command::Job(command) => command.wants_history(state.map(|State::Job(job)| &**job)),
        }
    }
}

impl State {
    /// The state as an event that tells it whole.
    pub fn describe(&self, id: &SubjectId) -> Draft {
        match self {
            State::Job(job) => job::draft(id, job, Class::Milestone),
        }
    }

    /// Category and duration in seconds of a subject that ended well.
    pub fn duration(&self) -> Option<(Arc<str>, f64)> {
        match self {
            State::Job(job) => job.duration(),
        }
    }
}

/// The one copy of a status or an event's name that was read from the store.
pub fn known_name(text: &str) -> Option<&'static str> {
    NAMES
        .iter()
        .flat_map(|names| names.iter())
        .copied()
        .find(|name| *name == text)
}

/// The kind of this collection.
pub fn known_kind(collection: &str) -> Option<Kind> {
    KINDS
        .iter()
        .copied()
        .find(|kind| kind.collection() == collection)
}

/// Reads a channel's text.
pub fn channel(text: &str) -> Result<Channel, NameError> {
    Channel::parse(text, KINDS)
}

/// What the rules may know besides state and command.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The present, to the millisecond.
    pub now: DateTime<Utc>,
    /// Bounds on what producers may send.
    pub limits: &'a Limits,
    /// The median duration in seconds of recent subjects of the same category, if any finished.
    pub typical_secs: Option<f64>,
    /// Since when this server has been there to hear anybody: silence before does not count.
    pub since: DateTime<Utc>,
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
}

/// What a command leads to. No drafts: nothing happened that anybody needs to hear.
#[derive(Debug)]
pub struct Outcome<S> {
    /// The state afterwards.
    pub state: S,
    /// What happened, in order.
    pub drafts: Vec<Draft>,
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
    /// Progress would fall within an attempt.
    #[error("progress is at {current} and cannot fall to {asked} within an attempt")]
    ProgressFell {
        /// The present progress in percent.
        current: f64,
        /// What was asked, in percent or `null`.
        asked: String,
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

/// Text that fits its bound.
fn bounded(field: &'static str, text: &str, max_bytes: usize) -> Result<Arc<str>, RuleError> {
    if text.len() <= max_bytes {
        Ok(text.into())
    } else {
        Err(RuleError::Invalid {
            field,
            expected: format!("has at most {max_bytes} bytes"),
        })
    }
}
