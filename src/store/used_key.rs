//! A use of an idempotency key, as it is copied from one store to another.

use chrono::{DateTime, Utc};

use crate::event::Event;
use crate::id::{Kind, SubjectId};

/// A use of an idempotency key in the store that is copied.
#[derive(Debug)]
pub struct UsedKey {
    /// The key.
    pub key: String,
    /// A digest of the request that used it.
    pub fingerprint: String,
    /// The kind of the subject that the request addressed.
    pub kind: Kind,
    /// The subject.
    pub subject: SubjectId,
    /// The `seq` of the event with which the request was answered; 0 if nothing changed.
    pub seq: u64,
    /// When it was used.
    pub used_at: DateTime<Utc>,
    /// The answer, if it is no longer, or never was, in the log.
    pub answer: Option<Event>,
}
