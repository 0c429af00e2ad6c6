//! What a store remembers of notifiers: a cursor in each school's log, counts, and dead letters.

use chrono::{DateTime, Utc};

/// What came of a turn, in addition to the cursor.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// An event was delivered, and when.
    pub delivered: Option<DateTime<Utc>>,
    /// An attempt failed: when, and why.
    pub failed: Option<(DateTime<Utc>, String)>,
    /// The event that will be tried again.
    pub tried: Option<Tried>,
    /// An event is given up.
    pub dead: Option<DeadLetter>,
}

/// An event whose delivery has failed, but not for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// Its place in the log.
    pub seq: u64,
    /// How often it was tried.
    pub attempts: u32,
}

/// Where a notifier stands in a school's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Everything up to here is delivered, given up, or not wanted.
    pub seq: u64,
    /// The event that is being tried again.
    pub tried: Option<Tried>,
}

/// An event that was not delivered and will not be.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Its place in the log.
    pub seq: u64,
    /// The message's `type`.
    pub event_type: String,
    /// The kind of its subject.
    pub kind: String,
    /// Its subject.
    pub subject: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub cause: String,
    /// When it was given up.
    pub at: DateTime<Utc>,
}

/// How a notifier stands in a school.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The notifier's name.
    pub name: String,
    /// Everything up to here is delivered, given up, or not wanted.
    pub seq: u64,
    /// Events delivered.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Events given up.
    pub dead: u64,
    /// When the last event was delivered.
    pub delivered_at: Option<DateTime<Utc>>,
    /// When and why the last attempt failed.
    pub last_failure: Option<(DateTime<Utc>, String)>,
}

/// How a notifier stands with all schools together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Total {
    /// The notifier's name.
    pub name: String,
    /// Events that lie beyond its cursors.
    pub lag: u64,
    /// Events delivered.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Events given up.
    pub dead: u64,
}

/// A page of dead letters, newest first.
#[derive(Debug)]
pub struct DeadLetterPage {
    /// Newest first.
    pub letters: Vec<DeadLetter>,
    /// The key of the next page, if there is one.
    pub next: Option<u64>,
}
