//! The port *catalog*: reads, lists and counts the current states of subjects.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::StoreError;
use crate::event::{Event, EventType};
use crate::id::{Kind, Place, SchoolId, SubjectId};
use crate::kind::device::Device;
use crate::kind::{Command, Part, State};
use crate::uptime::Uptime;

/// A subject with its position in the log.
#[derive(Debug, Clone)]
pub struct StoredSubject {
    /// Its state.
    pub state: State,
    /// The `seq` of the event that created it; lists are sorted by it.
    pub created_seq: u64,
    /// Its state as an event.
    pub event: Arc<Event>,
}

/// Which subjects of a kind to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only these statuses; all if empty.
    pub statuses: Vec<&'static str>,
    /// Only these categories (a job's type); all if empty. In a kind without categories, no subject matches.
    pub categories: Vec<String>,
    /// Only subjects that contain this text in their id, message, error or metadata values, ignoring case. A text that
    /// contains U+0000 matches nothing.
    pub text: Option<String>,
    /// How to treat jobs that have stalled.
    pub stalled: Stalled,
    /// The sort order.
    pub order: Order,
    /// Only subjects after this `created_seq` in the sort order: the key of the next page.
    pub beyond: Option<u64>,
    /// The maximum number of subjects.
    pub limit: usize,
}

/// How a list treats jobs that have stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stalled {
    /// Ignores whether a job has stalled.
    #[default]
    Ignored,
    /// Lists only stalled subjects among the requested statuses.
    Only,
    /// Treats `stalled` as a separate status: stalled subjects are listed only under it.
    Apart {
        /// Whether `stalled` is among the requested statuses.
        wanted: bool,
    },
}

/// Which events of a subject to return.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    /// The events of one type.
    Type(&'static EventType),
    /// The events that are never dropped.
    Milestones,
}

/// The sort order of subjects, by creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The newest first.
    #[default]
    Newest,
    /// The oldest first.
    Oldest,
}

/// How many subjects ended with one status within one hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// The start of the hour.
    pub from: DateTime<Utc>,
    /// The status with which they ended.
    pub status: &'static str,
    /// The number of subjects.
    pub count: u64,
}

/// A page of a list.
#[derive(Debug)]
pub struct ListPage {
    /// The subjects, in the requested order.
    pub subjects: Vec<StoredSubject>,
    /// The key of the next page, if there is one. An incomplete search continues from it as well.
    pub next: Option<u64>,
    /// How far the search for matching subjects went. `None` if an index served the list without a search.
    pub searched: Option<Searched>,
    /// The end of the school's log when the page was read: a stream from here continues where the list ends.
    pub head: Place,
}

/// How far a list was searched for matching subjects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Searched {
    /// How many subjects were checked.
    pub rows: u64,
    /// When the last checked subject was created, if the search stopped before the end.
    pub until: Option<DateTime<Utc>>,
    /// Whether the search continued until the page was full or nothing was left, without reaching a read limit.
    pub is_complete: bool,
}

/// Which parts of the subjects of a kind to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct PartQuery {
    /// Only parts of this subject.
    pub subject: Option<SubjectId>,
    /// Only the part with this publisher-assigned id.
    pub own_id: Option<String>,
    /// Only open parts, or only parts that are not open: a violation is open until it is acknowledged.
    pub open: Option<bool>,
    /// Only parts created before this `seq`: the key of the next page.
    pub before: Option<u64>,
    /// The maximum number of parts.
    pub limit: usize,
}

/// A page of parts.
#[derive(Debug)]
pub struct PartPage {
    /// Newest first.
    pub parts: Vec<Part>,
    /// The key of the next page, if there is one.
    pub next: Option<u64>,
    /// The end of the school's log when the page was read.
    pub head: Place,
}

/// A subject that is due for a check, for example because it has been silent.
#[derive(Debug, Clone)]
pub struct Overdue {
    /// Its school.
    pub school: SchoolId,
    /// Its id.
    pub subject: SubjectId,
    /// The command that checks it.
    pub command: Command,
}

/// What to count of a kind.
#[derive(Debug, Clone, Copy)]
pub struct TallyQuery {
    /// The kind.
    pub kind: Kind,
    /// Whether to count what has stalled.
    pub stalled: bool,
    /// Whether to count what has ended with this status since this time.
    pub ended: Option<(&'static str, DateTime<Utc>)>,
    /// Whether to count open parts.
    pub open_parts: bool,
}

impl TallyQuery {
    /// Returns a query for the counts by status only.
    pub fn of(kind: Kind) -> TallyQuery {
        TallyQuery {
            kind,
            stalled: false,
            ended: None,
            open_parts: false,
        }
    }
}

/// Counts of a school's subjects of a kind. A count that was not requested is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many subjects there are, by status.
    pub by_status: Vec<(&'static str, u64)>,
    /// How many have stalled.
    pub stalled: u64,
    /// How many have ended.
    pub ended: u64,
    /// How many parts are open.
    pub open_parts: u64,
}

/// Reads the current states of subjects.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// Returns a subject, if it exists.
    async fn subject(
        &self,
        school: SchoolId,
        kind: Kind,
        id: SubjectId,
    ) -> Result<Option<StoredSubject>, StoreError>;

    /// Returns whether the school has this subject.
    async fn exists(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
    ) -> Result<bool, StoreError>;

    /// Returns a page of subjects. A list that no index serves is searched one window of rows at a time, up to the read
    /// limits. The search stops when the caller drops the future.
    async fn subjects(
        &self,
        school: SchoolId,
        kind: Kind,
        query: ListQuery,
    ) -> Result<ListPage, StoreError>;

    /// Returns the last events of a subject, oldest first, at most `limit`.
    async fn last_events(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
        which: Which,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError>;

    /// Returns how many subjects of a kind a school has, by status.
    async fn counts(
        &self,
        school: SchoolId,
        kind: Kind,
    ) -> Result<Vec<(&'static str, u64)>, StoreError>;

    /// Returns how many subjects of a kind have stalled; 0 for kinds whose subjects do not stall.
    async fn stalled(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError>;

    /// Returns how many subjects of a kind have ended with this status since `since`; 0 for kinds whose subjects do not
    /// end.
    async fn ended_since(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        since: DateTime<Utc>,
    ) -> Result<u64, StoreError>;

    /// Returns the counts of each of these schools, one [`Tally`] per query. A store may override this to read them all at
    /// once.
    async fn tallies(
        &self,
        schools: Vec<SchoolId>,
        queries: Vec<TallyQuery>,
    ) -> Result<Vec<Vec<Tally>>, StoreError> {
        let mut all = Vec::with_capacity(schools.len());
        for school in schools {
            let mut tallies = Vec::with_capacity(queries.len());
            for query in &queries {
                let kind = query.kind;
                let mut tally = Tally {
                    by_status: self.counts(school, kind).await?,
                    ..Tally::default()
                };
                if query.stalled {
                    tally.stalled = self.stalled(school, kind).await?;
                }
                if let Some((status, since)) = query.ended {
                    tally.ended = self.ended_since(school, kind, status, since).await?;
                }
                if query.open_parts {
                    tally.open_parts = self.open_parts(school, kind).await?;
                }
                tallies.push(tally);
            }
            all.push(tallies);
        }
        Ok(all)
    }

    /// Returns the subjects of a kind that ended with this status, most recently ended first, at most `limit`.
    async fn ended(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        limit: usize,
    ) -> Result<Vec<StoredSubject>, StoreError>;

    /// Counts how the subjects of a kind have ended since `since`, by hour; empty for kinds whose subjects do not end.
    async fn endings(
        &self,
        school: SchoolId,
        kind: Kind,
        since: DateTime<Utc>,
    ) -> Result<Vec<Ending>, StoreError>;

    /// Returns the schools that have a log, in ascending order after `after`, at most `limit`.
    async fn schools(
        &self,
        after: Option<SchoolId>,
        limit: usize,
    ) -> Result<Vec<SchoolId>, StoreError>;

    /// Returns a page of the parts of a kind's subjects; empty for kinds whose subjects have no parts.
    async fn parts(
        &self,
        school: SchoolId,
        kind: Kind,
        query: PartQuery,
    ) -> Result<PartPage, StoreError>;

    /// Returns how many parts of a kind's subjects are open.
    async fn open_parts(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError>;

    /// Returns subjects that are due for a check, longest overdue first, at most `limit`. A store may apply the order and
    /// the limit to each kind separately.
    async fn overdue(&self, now: Uptime, limit: usize) -> Result<Vec<Overdue>, StoreError>;

    /// Returns the devices that are not known to be offline, ordered by school and id, starting after `after`, at most
    /// `limit`.
    async fn devices_not_offline(
        &self,
        after: Option<(SchoolId, SubjectId)>,
        limit: usize,
    ) -> Result<Vec<(SchoolId, SubjectId, Device)>, StoreError>;

    /// Returns how many windows of rows searches have read since the store was opened.
    fn windows(&self) -> u64;

    /// Returns how many reads of requests are waiting for their turn.
    fn waiting_reads(&self) -> usize;
}
