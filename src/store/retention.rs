//! How long data is kept.

use chrono::TimeDelta;

use super::numbers::signed;
use crate::config::Settings;

/// Bytes that a stored answer counts for in addition to its fields and its key. SQLite's triggers count the same.
pub(in crate::store) const ANSWER_BASE_BYTES: i64 = 128;

/// The retention limits.
#[derive(Debug, Clone)]
pub(in crate::store) struct Retention {
    pub(in crate::store) age: TimeDelta,
    pub(in crate::store) events: u64,
    pub(in crate::store) bytes: u64,
    pub(in crate::store) finished: TimeDelta,
    pub(in crate::store) keys: TimeDelta,
    /// The maximum size in bytes of a school's stored answers to requests with idempotency keys.
    pub(in crate::store) answer_bytes: u64,
}

impl Retention {
    /// Returns the limits of the settings.
    pub(in crate::store) fn of(settings: &Settings) -> Retention {
        // The settings are limited to less than a century, so these do not overflow.
        let seconds = |secs: u64| TimeDelta::seconds(signed(secs));
        Retention {
            age: seconds(settings.retention_secs.get()),
            events: settings.retention_events.get(),
            bytes: settings.retention_bytes.get(),
            finished: seconds(settings.job_retention_secs.get()),
            keys: seconds(settings.idempotency_ttl_secs.get()),
            answer_bytes: settings.idempotency_answer_bytes.get(),
        }
    }
}
