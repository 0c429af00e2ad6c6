//! What the rules of every kind take and return.

use chrono::{DateTime, Utc};

use super::{History, Part};
use crate::event::Draft;
use crate::id::SubjectId;
use crate::uptime::Uptime;

/// What the rules can use in addition to state and command.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The current time, to the millisecond.
    pub now: DateTime<Utc>,
    /// Limits on what producers can send.
    pub limits: &'a Limits,
    /// The history of recent subjects of the same category, if any completed.
    pub history: Option<History>,
    /// The current uptime. The silence of workers and devices is measured in uptime.
    pub uptime: Uptime,
    /// The `sub` of the token that the command came with, if any.
    pub sub: Option<&'a str>,
    /// The `seq` that the first event of the outcome will have.
    pub next_seq: u64,
    /// The current holder of the resource that the command wants to hold.
    pub holder: Option<&'a SubjectId>,
    /// The part of the subject that the command is about.
    pub part: Option<&'a Part>,
    /// An id that the command would assign to a part and that another part already has.
    pub taken_part: Option<&'a str>,
}

/// Limits that the rules enforce. Bytes are UTF-8 bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest `message`, in bytes.
    pub message_bytes: usize,
    /// The largest `metadata` after merging, as compact JSON, in bytes.
    pub metadata_bytes: usize,
    /// The default number of seconds of silence after which a running job is `stalled`; 0 means never.
    pub stall_after_secs: u32,
    /// The default number of seconds of silence after which a running job fails; 0 means never.
    pub timeout_secs: u32,
    /// The default number of seconds of silence after which an enrollment session ends.
    pub enrollment_lease_secs: u32,
    /// The default number of seconds of silence after which a device is offline.
    pub device_lease_secs: u32,
}

/// The maximum size of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// In UTF-8 bytes.
    pub bytes: usize,
    /// The setting that determines it, if there is one.
    pub setting: Option<&'static str>,
}

impl Bound {
    pub(super) const fn constant(bytes: usize) -> Bound {
        Bound {
            bytes,
            setting: None,
        }
    }
}

impl Limits {
    pub(super) fn message(&self) -> Bound {
        Bound {
            bytes: self.message_bytes,
            setting: Some("message_limit_bytes"),
        }
    }

    pub(super) fn metadata(&self) -> Bound {
        Bound {
            bytes: self.metadata_bytes,
            setting: Some("metadata_limit_bytes"),
        }
    }
}

/// The result of a command. If there are no drafts, nothing is published.
#[derive(Debug)]
pub struct Outcome<S> {
    /// The new state.
    pub state: S,
    /// The events, in order.
    pub drafts: Vec<Draft>,
    /// The index of the draft that answers the command.
    pub answer: usize,
    /// Parts that were created or changed, in their new state.
    pub parts: Vec<Part>,
}

impl<S> Outcome<S> {
    pub(super) fn new(state: S, drafts: Vec<Draft>) -> Outcome<S> {
        Outcome {
            state,
            drafts,
            answer: 0,
            parts: Vec::new(),
        }
    }

    pub(super) fn map<T>(self, convert: impl FnOnce(S) -> T) -> Outcome<T> {
        Outcome {
            state: convert(self.state),
            drafts: self.drafts,
            answer: self.answer,
            parts: self.parts,
        }
    }
}

/// A command that the rules reject. It has no effect. The texts are safe to show to a client.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RuleError {
    /// There is no such subject in this school.
    #[error("{noun} {id} not found")]
    NotFound {
        /// The kind's noun, capitalised.
        noun: &'static str,
        /// The id in the request.
        id: String,
    },
    /// The id is already in use.
    #[error("{noun} {id} already exists")]
    AlreadyExists {
        /// The kind's noun, capitalised.
        noun: &'static str,
        /// The id in the request.
        id: String,
    },
    /// The subject has ended and can no longer change.
    #[error("it is already {status}, which is final")]
    Finished {
        /// The terminal status.
        status: &'static str,
    },
    /// The state machine has no such transition.
    #[error("cannot {action} while it is {status}")]
    IllegalTransition {
        /// The requested action.
        action: &'static str,
        /// The current status.
        status: &'static str,
    },
    /// Another subject holds the resource that it needs exclusively.
    #[error("{what} is held by {holder}")]
    Held {
        /// The resource, for example `device door-3`.
        what: String,
        /// The holder.
        holder: &'static str,
    },
    /// The report names an attempt other than the current one.
    #[error("`attempt` is {given}, but the current attempt is {current}")]
    StaleAttempt {
        /// The current attempt.
        current: u32,
        /// The attempt that the report names.
        given: u32,
    },
    /// The report does not name its attempt, and comes from a worker of an earlier attempt.
    #[error(
        "`attempt` is missing: this worker has reported only on an earlier attempt, and the current one is {current}; \
         a worker of the current attempt must call `start` or send `attempt`: {current}"
    )]
    StaleWorker {
        /// The current attempt.
        current: u32,
    },
    /// The school has reached its limit of subjects of this kind.
    #[error("the school has reached its maximum of {most} {collection}")]
    TooMany {
        /// The kind's collection.
        collection: &'static str,
        /// The limit.
        most: u64,
        /// The setting that determines it, if there is one.
        setting: Option<&'static str>,
    },
    /// A field's value is too large.
    #[error("`{field}` must have at most {} bytes", .most.bytes)]
    TooLarge {
        /// The field.
        field: &'static str,
        /// The maximum size.
        most: Bound,
    },
    /// A field's value is invalid.
    #[error("`{field}` {expected}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The requirement, such as `must not be empty`.
        expected: String,
    },
}
