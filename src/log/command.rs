//! Commands to a log, and their outcomes.

use std::sync::Arc;

use super::StoreError;
use crate::event::Event;
use crate::id::SubjectId;
use crate::kind::{Command, RuleError, job};

/// A command with its address.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// The subject that the command addresses.
    pub subject: SubjectId,
    /// The command.
    pub command: Command,
    /// The `sub` of the token that the command came with, if any.
    pub sub: Option<Arc<str>>,
    /// Makes a retry safe.
    pub idempotency: Option<Idempotency>,
}

impl Envelope {
    /// Creates an envelope without a token's `sub` and without an idempotency key.
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
    /// Generates an id for the job if the command has none.
    fn from(create: job::Create) -> Envelope {
        let subject = create.job_id.clone().unwrap_or_else(SubjectId::generate);
        Envelope::new(subject, Command::Job(job::Command::Create(create)))
    }
}

/// An `Idempotency-Key` and a digest of the request that used it.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The key, unique within a school.
    pub key: String,
    /// A digest of the request: reusing the key for a different request is an error.
    pub fingerprint: String,
}

/// The outcome of a command that succeeded.
#[derive(Debug, Clone)]
pub enum Receipt {
    /// It was committed as this event.
    Committed(Arc<Event>),
    /// It changed nothing; this is the current state.
    Unchanged(Arc<Event>),
    /// It was carried out earlier under the same key, as this event.
    Repeated(Arc<Event>),
}

impl Receipt {
    /// Returns the event to answer with.
    pub fn event(&self) -> &Arc<Event> {
        match self {
            Receipt::Committed(event) | Receipt::Unchanged(event) | Receipt::Repeated(event) => {
                event
            }
        }
    }
}

/// Why a command failed. It had no effect.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// The kind's rules reject it.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The key was used for a different request.
    #[error("this Idempotency-Key was used for a different request")]
    KeyReused,
    /// The request was carried out before, but neither its answer nor its subject is still stored.
    #[error(
        "the request with this Idempotency-Key was carried out before and is not repeated; its answer and its subject are no longer stored"
    )]
    AnswerGone,
    /// The request has used up its byte limit.
    #[error(
        "the lines before this one have produced {most} bytes of events, the maximum for a batch; this line had no effect: send it again in another batch"
    )]
    TooMuch {
        /// The limit in bytes.
        most: u64,
    },
    /// The store failed after it had committed earlier commands of the request.
    #[error(transparent)]
    Store(StoreError),
}
