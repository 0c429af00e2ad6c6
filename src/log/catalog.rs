//! The port *catalog*: the present states of subjects, read, listed and counted.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::StoreError;
use crate::event::{Event, EventType};
use crate::id::{Kind, Place, SchoolId, SubjectId};
use crate::kind::device::Device;
use crate::kind::{Command, Part, State};
use crate::uptime::Uptime;

/// A subject with its place in the log.
#[derive(Debug, Clone)]
pub struct StoredSubject {
    /// Its state.
    pub state: State,
    /// The event that created it; lists are sorted by it.
    pub created_seq: u64,
    /// Its state as an event.
    pub event: Arc<Event>,
}

/// Which subjects of a kind to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only these statuses; all if empty.
    pub statuses: Vec<&'static str>,
    /// Only these categories (a job's type); all if empty. A kind without categories has no such subject.
    pub categories: Vec<String>,
    /// Only those with this text in their id, message, error or the values of their metadata; case does not count, and
    /// nothing has a text with U+0000.
    pub text: Option<String>,
    /// Whether it counts that a job has stalled.
    pub stalled: Stalled,
    /// Which come first.
    pub order: Order,
    /// Only subjects created beyond this `seq` in that order: the key of the next page.
    pub beyond: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

/// Whether it counts for a list that a job has stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stalled {
    /// No.
    #[default]
    Ignored,
    /// Of the statuses asked for, only what has stalled.
    Only,
    /// `stalled` is a status of its own: what has stalled is listed under that alone.
    Apart {
        /// Whether it is one of the statuses asked for.
        wanted: bool,
    },
}

/// Which events of a subject.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    /// Those of one type.
    Type(&'static EventType),
    /// Those that are never left out.
    Milestones,
}

/// By when subjects were created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The newest first.
    #[default]
    Newest,
    /// The oldest first.
    Oldest,
}

/// How many subjects ended in one way within an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// When the hour began.
    pub from: DateTime<Utc>,
    /// How they ended.
    pub status: &'static str,
    /// How many did.
    pub count: u64,
}

/// A page of a list.
#[derive(Debug)]
pub struct ListPage {
    /// In the order that was asked for.
    pub subjects: Vec<StoredSubject>,
    /// The key of the next page, if there is one: also where to go on with a search that has not come to its end.
    pub next: Option<u64>,
    /// How far was looked for those that fit. None if an index has them, so that nothing else was looked at.
    pub searched: Option<Searched>,
    /// Where the school's log ended when the page was read: a stream from here goes on where the list ends.
    pub head: Place,
}

/// How far a list was searched for what fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Searched {
    /// How many subjects were looked at.
    pub rows: u64,
    /// When the last of them was created, if those beyond it were not looked at.
    pub until: Option<DateTime<Utc>>,
    /// Whether it went on until the page was full or nothing was left: no bound on reads was reached.
    pub is_complete: bool,
}

/// Which parts of the subjects of a kind to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct PartQuery {
    /// Only those of this subject.
    pub subject: Option<SubjectId>,
    /// Only the one that its publisher calls so.
    pub own_id: Option<String>,
    /// Only those that are, or are not, open: a violation is open until somebody acknowledges it.
    pub open: Option<bool>,
    /// Only parts made before this `seq`: the key of the next page.
    pub before: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

/// A page of parts.
#[derive(Debug)]
pub struct PartPage {
    /// Newest first.
    pub parts: Vec<Part>,
    /// The key of the next page, if there is one.
    pub next: Option<u64>,
    /// Where the school's log ended when the page was read.
    pub head: Place,
}

/// A subject whose silence is worth a look.
#[derive(Debug, Clone)]
pub struct Overdue {
    /// Whose.
    pub school: SchoolId,
    /// Which.
    pub subject: SubjectId,
    /// What to ask of it.
    pub command: Command,
}

/// The present states of subjects.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// One subject.
    async fn subject(
        &self,
        school: SchoolId,
        kind: Kind,
        id: SubjectId,
    ) -> Result<Option<StoredSubject>, StoreError>;

    /// Whether the school has this subject.
    async fn exists(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
    ) -> Result<bool, StoreError>;

    /// A page of subjects. A list that no index serves is searched a window of rows at a time, up to the bounds on reads; it
    /// ends when its caller drops it.
    async fn subjects(
        &self,
        school: SchoolId,
        kind: Kind,
        query: ListQuery,
    ) -> Result<ListPage, StoreError>;

    /// The last events of a subject, oldest first, at most `limit`.
    async fn last_events(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
        which: Which,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError>;

    /// How many subjects of a kind a school has, by status.
    async fn counts(
        &self,
        school: SchoolId,
        kind: Kind,
    ) -> Result<Vec<(&'static str, u64)>, StoreError>;

    /// How many subjects of a kind have stalled. A kind whose subjects do not stall has none.
    async fn stalled(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError>;

    /// How many subjects of a kind ended in this way since `since`. A kind whose subjects do not end has none.
    async fn ended_since(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        since: DateTime<Utc>,
    ) -> Result<u64, StoreError>;

    /// The subjects of a kind that ended in this way, the last first; at most `limit`.
    async fn ended(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        limit: usize,
    ) -> Result<Vec<StoredSubject>, StoreError>;

    /// How the subjects of a kind ended since `since`, counted by the hour. A kind whose subjects do not end has none.
    async fn endings(
        &self,
        school: SchoolId,
        kind: Kind,
        since: DateTime<Utc>,
    ) -> Result<Vec<Ending>, StoreError>;

    /// Schools that have a log, by number, after this one; at most `limit`.
    async fn schools(
        &self,
        after: Option<SchoolId>,
        limit: usize,
    ) -> Result<Vec<SchoolId>, StoreError>;

    /// A page of the parts of the subjects of a kind. A kind whose subjects have no parts has an empty one.
    async fn parts(
        &self,
        school: SchoolId,
        kind: Kind,
        query: PartQuery,
    ) -> Result<PartPage, StoreError>;

    /// How many parts of the subjects of a kind are open.
    async fn open_parts(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError>;

    /// Subjects to look at, the longest overdue first, at most `limit`.
    async fn overdue(&self, now: Uptime, limit: usize) -> Result<Vec<Overdue>, StoreError>;

    /// Devices that are not known to be gone, by school and id, after this one; at most `limit`.
    async fn devices_not_offline(
        &self,
        after: Option<(SchoolId, SubjectId)>,
        limit: usize,
    ) -> Result<Vec<(SchoolId, SubjectId, Device)>, StoreError>;

    /// How many windows of rows were read since it was opened, by reads that look through them for those that fit.
    fn windows(&self) -> u64;

    /// How many reads of requests wait for their turn.
    fn waiting_reads(&self) -> usize;
}
