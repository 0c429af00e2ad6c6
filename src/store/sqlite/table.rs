//! What the store needs of a kind's table. A new kind implements [`Table`] and adds a line to [`TABLES`].

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::jobs::JobsTable;
use crate::event::Event;
use crate::id::{Cursor, Epoch, Kind, SchoolId, SubjectId};
use crate::kind::{State, job};
use crate::scope::Filter;
use crate::store::Overdue;

/// The table of each kind.
pub(super) const TABLES: &[(Kind, &dyn Table)] = &[(job::KIND, &JobsTable)];

/// The table of this kind.
pub(super) fn table(kind: Kind) -> &'static dyn Table {
    let found = TABLES.iter().find(|(own, _)| *own == kind);
    found.expect("every kind has a table").1
}

/// A subject's address.
pub(super) type Address = (SchoolId, Kind, SubjectId);

/// A state with its place in the log.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) state: State,
    pub(super) created_seq: u64,
    pub(super) last_seq: u64,
    pub(super) last_at: DateTime<Utc>,
}

impl Stored {
    /// The state as an event: its last one, told whole.
    pub(super) fn snapshot(
        &self,
        epoch: Epoch,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
    ) -> Event {
        let draft = self.state.describe(&subject);
        let cursor = Cursor {
            epoch,
            seq: self.last_seq,
        };
        Event::new(cursor, school, kind, subject, self.last_at, draft).into_snapshot()
    }
}

/// Where a subject stands, as far as folding a replay needs to know.
pub(super) struct LastEvent {
    pub(super) seq: u64,
    pub(super) status: String,
    pub(super) category: Option<String>,
}

/// Which subjects a snapshot tells.
pub(super) struct Selection<'a> {
    pub(super) school: SchoolId,
    /// Only these, or all of the kind.
    pub(super) subjects: Option<Vec<&'a SubjectId>>,
    pub(super) filter: &'a Filter,
    pub(super) after: u64,
    pub(super) upto: u64,
    pub(super) limit: usize,
}

/// A kind's table.
pub(super) trait Table: Sync {
    fn load(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subject: &SubjectId,
    ) -> QueryResult<Option<Stored>>;

    /// Writes a state, whether the subject has a row already or not.
    fn write(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subject: &SubjectId,
        stored: &Stored,
    ) -> QueryResult<()>;

    /// Selected states by the order of their last events.
    fn snapshot(
        &self,
        conn: &mut SqliteConnection,
        selection: &Selection<'_>,
    ) -> QueryResult<Vec<(SubjectId, Stored)>>;

    fn last_events(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subjects: &[&str],
    ) -> QueryResult<HashMap<String, LastEvent>>;

    /// Durations in seconds of the newest subjects of a category that ended well, newest first.
    fn durations(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        category: &str,
        limit: usize,
    ) -> QueryResult<Vec<f64>>;

    fn overdue(
        &self,
        conn: &mut SqliteConnection,
        now: DateTime<Utc>,
        limit: usize,
    ) -> QueryResult<Vec<Overdue>>;

    /// Deletes at most `limit` subjects that ended before `before` and whose events are gone.
    fn sweep(
        &self,
        conn: &mut SqliteConnection,
        before: DateTime<Utc>,
        limit: usize,
    ) -> QueryResult<Vec<Address>>;
}

/// A time as it is stored.
pub(super) fn millis(at: DateTime<Utc>) -> i64 {
    at.timestamp_millis()
}

/// A stored time.
pub(super) fn from_millis(millis: i64) -> QueryResult<DateTime<Utc>> {
    DateTime::from_timestamp_millis(millis).ok_or_else(|| unreadable("a time"))
}

/// A stored value that this program did not write.
pub(super) fn unreadable(what: &str) -> diesel::result::Error {
    diesel::result::Error::DeserializationError(
        format!("the database holds {what} that cannot be read").into(),
    )
}

/// A row of `events`.
#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = super::schema::events, treat_none_as_default_value = false)]
#[diesel(check_for_backend(diesel::sqlite::Sqlite))]
pub(super) struct EventRow<'a> {
    school_id: i64,
    seq: i64,
    kind: std::borrow::Cow<'a, str>,
    subject_id: std::borrow::Cow<'a, str>,
    name: std::borrow::Cow<'a, str>,
    milestone: bool,
    status: std::borrow::Cow<'a, str>,
    category: Option<std::borrow::Cow<'a, str>>,
    at: i64,
    fields: std::borrow::Cow<'a, str>,
}

impl<'a> From<&'a Event> for EventRow<'a> {
    fn from(event: &'a Event) -> EventRow<'a> {
        EventRow {
            school_id: event.school.get(),
            seq: event.seq as i64,
            kind: event.kind.collection().into(),
            subject_id: event.subject.as_str().into(),
            name: event.draft.name.into(),
            milestone: !event.is_tick(),
            status: event.draft.status.into(),
            category: event.draft.category.as_deref().map(Into::into),
            at: millis(event.at),
            fields: event.draft.fields.as_str().into(),
        }
    }
}

impl EventRow<'_> {
    pub(super) fn into_event(self, epoch: Epoch) -> QueryResult<Event> {
        use crate::event::{Class, Draft};
        use crate::kind::{known_kind, known_name};
        let draft = Draft {
            name: known_name(&self.name).ok_or_else(|| unreadable("an event name"))?,
            class: if self.milestone {
                Class::Milestone
            } else {
                Class::Tick
            },
            status: known_name(&self.status).ok_or_else(|| unreadable("a status"))?,
            category: self.category.map(|category| Arc::from(&*category)),
            fields: self.fields.into_owned(),
        };
        let cursor = Cursor {
            epoch,
            seq: self.seq as u64,
        };
        let school = self
            .school_id
            .try_into()
            .map_err(|_| unreadable("a school id"))?;
        let kind = known_kind(&self.kind).ok_or_else(|| unreadable("a kind"))?;
        let subject = self
            .subject_id
            .parse()
            .map_err(|_| unreadable("a subject id"))?;
        Ok(Event::new(
            cursor,
            school,
            kind,
            subject,
            from_millis(self.at)?,
            draft,
        ))
    }
}
