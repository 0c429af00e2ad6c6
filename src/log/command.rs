//! What is asked of a log, and what becomes of it.

use std::sync::Arc;

use super::StoreError;
use crate::event::Event;
use crate::id::SubjectId;
use crate::kind::{Command, RuleError, job};

/// A command with its address.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// Whom it is for.
    pub subject: SubjectId,
    /// What is asked.
    pub command: Command,
    /// The `sub` of the token that it came with, if it came with one.
    pub sub: Option<Arc<str>>,
    /// Makes a retry safe.
    pub idempotency: Option<Idempotency>,
}

impl Envelope {
    /// A command of nobody's, without a key.
    pub fn new(subject: SubjectId, command: Command) -> Envelope {
        Envelope {
            subject,
            command,
            sub: None,
            idempotency: None,
        }
    }
}

impl From<job::Create> for Envelope {
    /// The job gets an id if it brings none.
    fn from(create: job::Create) -> Envelope {
        let subject = create.job_id.clone().unwrap_or_else(SubjectId::generate);
        Envelope::new(subject, Command::Job(job::Command::Create(create)))
    }
}

/// An `Idempotency-Key` and what it was used for.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The key, unique within a school.
    pub key: String,
    /// A digest of the request: the same key with another request is a mistake.
    pub fingerprint: String,
}

/// What became of a command.
#[derive(Debug, Clone)]
pub enum Receipt {
    /// It was committed as this event.
    Committed(Arc<Event>),
    /// It changed nothing; this is the present state.
    Unchanged(Arc<Event>),
    /// It had been carried out before, under the same key, as this event.
    Repeated(Arc<Event>),
}

impl Receipt {
    /// The event to answer with.
    pub fn event(&self) -> &Arc<Event> {
        match self {
            Receipt::Committed(event) | Receipt::Unchanged(event) | Receipt::Repeated(event) => {
                event
            }
        }
    }
}

/// A command that had no effect, by its own fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// The kind's rules refuse it.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The key was used for another request.
    #[error("this Idempotency-Key was used for another request")]
    KeyReused,
    /// The request was carried out before, and neither its answer nor its subject is kept any more.
    #[error(
        "the request with this Idempotency-Key was carried out before, and is not carried out again; its answer and its subject are not kept any more"
    )]
    AnswerGone,
    /// The request has come to as much as it may.
    #[error(
        "the lines before this one have led to as many bytes of events as a batch may, {most}; nothing of this line was carried out: send it again in another batch"
    )]
    TooMuch {
        /// How many bytes a request may come to.
        most: u64,
    },
    /// The store failed after commands before it were committed.
    #[error(transparent)]
    Store(StoreError),
}
