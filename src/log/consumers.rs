//! What a store keeps for notifiers: a cursor in each school's log, subjects set aside, counters, and dead letters.

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::StoreError;
use super::leases::Fence;
use crate::event::Event;
use crate::id::{self, Kind, SchoolId, SubjectId, Tag};

/// Where a notifier has work, and when it may start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Begun {
    /// The schools in which it has work: it is behind, or subjects are set aside.
    pub behind: Vec<SchoolId>,
    /// The time before which its receiver asked not to be retried.
    pub not_before: Option<DateTime<Utc>>,
}

/// The result of one delivery step, in addition to the cursor.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Where the cursor must be for the step to take effect; `None` if it may be anywhere. A failover may have moved the
    /// cursor back and lost which subjects were set aside, so a step that began before it must change nothing.
    pub from: Option<u64>,
    /// The event that the step has handled; `None` if it handled none. The log must still have this event, unless retention
    /// has removed it: if a failover has replaced the event, the replacement still has to be delivered. An event without a
    /// tag is one that retention has removed.
    pub of: Option<id::Place>,
    /// When an event was delivered, if one was.
    pub delivered: Option<DateTime<Utc>>,
    /// When and why an attempt failed, if one did.
    pub failed: Option<(DateTime<Utc>, String)>,
    /// The event at the cursor that will be retried.
    pub tried: Option<Tried>,
    /// The event that was given up, if any.
    pub dead: Option<DeadLetter>,
    /// A change to a subject that is set aside.
    pub set_aside: Option<Change>,
    /// The time before which the receiver asked not to be retried.
    pub not_before: Option<DateTime<Utc>>,
}

/// A change to a subject that is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The subject is set aside, or remains so.
    Put(SetAside),
    /// The subject is no longer set aside: its events after the cursor are delivered in the usual order.
    Lift(Kind, SubjectId),
}

/// A subject whose events wait because the receiver rejects the first of them. The cursor advances past them. Those up to
/// the cursor are delivered separately and in order, starting at `seq`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The subject's kind.
    pub kind: Kind,
    /// Its id within the kind.
    pub subject: SubjectId,
    /// Every event of the subject before this `seq` is delivered, given up, or not wanted.
    pub seq: u64,
    /// The type of the event at this `seq`; empty if delivery has not been attempted yet.
    pub event_type: String,
    /// The number of attempts.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub cause: String,
    /// When it is retried.
    pub due: DateTime<Utc>,
}

/// An event whose delivery has failed and will be retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// Its `seq`.
    pub seq: u64,
    /// The number of attempts.
    pub attempts: u32,
}

/// A notifier's position in a school's log.
///
/// It is stored in the same database as the log, and later than the events that it has passed. So a database that has lost
/// an event, such as a promoted standby, has no position past that event either. But a delivery step can begin before a
/// failover and end after it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offset {
    /// Every event up to this `seq` is delivered, given up, not wanted, or of a subject that is set aside.
    pub seq: u64,
    /// The tag of the event at this `seq`, if the log still has that event. It shows whether a failover has replaced the
    /// event.
    pub tag: Option<Tag>,
    /// The event that is being retried.
    pub tried: Option<Tried>,
    /// Subjects that are set aside, by kind and id.
    pub set_aside: Vec<SetAside>,
}

impl Offset {
    /// Returns the position as a place in the log.
    pub fn in_log(&self) -> id::Place {
        id::Place {
            seq: self.seq,
            tag: self.tag,
        }
    }

    /// Returns whether the event must wait for an earlier event of its subject.
    pub fn is_set_aside(&self, event: &Event) -> bool {
        self.set_aside.iter().any(|entry| entry.is_of(event))
    }
}

impl SetAside {
    /// Returns whether the event belongs to this subject.
    pub fn is_of(&self, event: &Event) -> bool {
        self.kind == event.kind && self.subject == event.subject
    }
}

/// An event that was given up: it was not delivered and will not be.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Its `seq`.
    pub seq: u64,
    /// The message's `type`.
    pub event_type: String,
    /// The kind of its subject.
    pub kind: String,
    /// Its subject.
    pub subject: String,
    /// The number of attempts.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub cause: String,
    /// When it was given up.
    pub at: DateTime<Utc>,
}

/// The status of a notifier in a school.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The notifier's name.
    pub name: String,
    /// Every event up to this `seq` is delivered, given up, not wanted, or of a subject that is set aside.
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

/// The status of a notifier over all schools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Total {
    /// The notifier's name.
    pub name: String,
    /// The number of events after its cursors.
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

/// Returns the name of the lease under which a notifier delivers.
pub fn lease_of(notifier: &str) -> String {
    format!("notifier/{notifier}")
}

/// Named readers of the logs, each with a position in every school's log.
#[async_trait]
pub trait Consumers: Send + Sync + 'static {
    /// Registers a notifier. A new one starts at the current end of the logs. For a known one this is a read.
    async fn notifier_begins(&self, name: &str) -> Result<Begun, StoreError>;

    /// Returns where a registered notifier has work. The node that holds the notifier's lease calls this every
    /// [`NOTIFY_LOOK`](crate::config::NOTIFY_LOOK) to find what other nodes have committed, so it must not write.
    async fn notifier_looks(&self, name: &str) -> Result<Begun, StoreError>;

    /// Returns a notifier's position in a school's log.
    async fn notifier_offset(&self, name: &str, school: SchoolId) -> Result<Offset, StoreError>;

    /// Advances a notifier's cursor, which never moves back, records the progress, and sets a subject aside or lifts it,
    /// in one commit. Fails with [`StoreError::Fenced`] and writes nothing if the fence is not the last one that was
    /// returned for the notifier's lease ([`lease_of`]), if the cursor is not at [`Progress::from`], or if the log has lost
    /// the event [`Progress::of`].
    async fn notifier_moves(
        &self,
        name: &str,
        fence: Fence,
        school: SchoolId,
        seq: u64,
        progress: Progress,
    ) -> Result<(), StoreError>;

    /// Returns the status of the notifiers in a school, and the end of its log.
    async fn notifiers(&self, school: SchoolId) -> Result<(Vec<Standing>, u64), StoreError>;

    /// Returns the status over all schools of every notifier that was ever registered, by name.
    async fn notifier_totals(&self) -> Result<Vec<Total>, StoreError>;

    /// Returns the dead letters of a notifier in a school before this `seq`, newest first.
    async fn dead_letters(
        &self,
        name: &str,
        school: SchoolId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError>;
}
