//! What a store remembers of notifiers: a cursor in each school's log, subjects set aside, counts, and dead letters.

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::StoreError;
use crate::event::Event;
use crate::id::{Kind, SchoolId, SubjectId};

/// Where a notifier begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Begun {
    /// The schools in which it has something to do: it is behind, or subjects are set aside.
    pub behind: Vec<SchoolId>,
    /// When its receiver asked to be tried again.
    pub not_before: Option<DateTime<Utc>>,
}

/// What came of a turn, in addition to the cursor.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// An event was delivered, and when.
    pub delivered: Option<DateTime<Utc>>,
    /// An attempt failed: when, and why.
    pub failed: Option<(DateTime<Utc>, String)>,
    /// The event at the cursor that will be tried again.
    pub tried: Option<Tried>,
    /// An event is given up.
    pub dead: Option<DeadLetter>,
    /// What became of a subject that is set aside.
    pub set_aside: Option<Change>,
    /// The receiver asked to be tried again at this time.
    pub not_before: Option<DateTime<Utc>>,
}

/// What became of a subject that is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is set aside, or still is.
    Put(SetAside),
    /// It is no longer: what is said of it after the cursor is delivered in its turn.
    Lift(Kind, SubjectId),
}

/// A subject whose events wait because the receiver refuses the first of them. Those up to the cursor are delivered from
/// here, in order; the cursor goes on without them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The subject's kind.
    pub kind: Kind,
    /// Its id within the kind.
    pub subject: SubjectId,
    /// Everything of the subject before this place is delivered, given up, or not wanted.
    pub seq: u64,
    /// The type of the event at this place; empty if it was not tried yet.
    pub event_type: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub cause: String,
    /// When it is tried again.
    pub due: DateTime<Utc>,
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Everything up to here is delivered, given up, not wanted, or of a subject that is set aside.
    pub seq: u64,
    /// The event that is being tried again.
    pub tried: Option<Tried>,
    /// Subjects that are set aside, by kind and id.
    pub set_aside: Vec<SetAside>,
}

impl Place {
    /// Whether the event waits behind another one of its subject.
    pub fn is_set_aside(&self, event: &Event) -> bool {
        self.set_aside.iter().any(|own| own.is_of(event))
    }
}

impl SetAside {
    /// Whether the event is of this subject.
    pub fn is_of(&self, event: &Event) -> bool {
        self.kind == event.kind && self.subject == event.subject
    }
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
    /// Everything up to here is delivered, given up, not wanted, or of a subject that is set aside.
    pub seq: u64,
    /// Subjects that are set aside.
    pub set_aside: u64,
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
    /// Subjects that are set aside.
    pub set_aside: u64,
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

/// Named readers of the logs, each with a place in every school's.
#[async_trait]
pub trait Consumers: Send + Sync + 'static {
    /// Makes a notifier known: a new one begins where the logs end now.
    async fn notifier_begins(&self, name: &str) -> Result<Begun, StoreError>;

    /// Where a notifier stands in a school's log.
    async fn notifier_place(&self, name: &str, school: SchoolId) -> Result<Place, StoreError>;

    /// Moves a notifier's cursor, which never goes back, counts what came of it, and sets a subject aside or lifts it,
    /// in one commit.
    async fn notifier_moves(
        &self,
        name: &str,
        school: SchoolId,
        seq: u64,
        progress: Progress,
    ) -> Result<(), StoreError>;

    /// How notifiers stand in a school, and where its log ends.
    async fn notifiers(&self, school: SchoolId) -> Result<(Vec<Standing>, u64), StoreError>;

    /// How every notifier that ever began stands with all schools together, by name.
    async fn notifier_totals(&self) -> Result<Vec<Total>, StoreError>;

    /// Dead letters of a notifier in a school, newest first, before this place.
    async fn dead_letters(
        &self,
        name: &str,
        school: SchoolId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError>;
}
