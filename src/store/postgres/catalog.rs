//! The port [`Catalog`].

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::rows::{self, SubjectRow};
use super::schema::{counts, endings, parts, schools, subjects};
use super::{PostgresStore, read};
use crate::event::Event;
use crate::id::{Kind, SchoolId, SubjectId};
use crate::kind::device::{self, Device};
use crate::kind::{Command, Part, State, known_status};
use crate::log::facts::Stored;
use crate::log::{
    Catalog, Ending, ListPage, ListQuery, Overdue, PartPage, PartQuery, StoreError, StoredSubject,
    Which,
};
use crate::store::columns::{
    HOUR_MILLIS, first_whole_hour, from_millis, into_subject, millis, unreadable, uptime_millis,
};
use crate::store::numbers::{signed, unsigned};
use crate::store::turns::{Length, Requester};
use crate::uptime::Uptime;

/// Loads a subject.
async fn load(
    conn: &mut AsyncPgConnection,
    school: SchoolId,
    kind: Kind,
    id: &SubjectId,
) -> QueryResult<Option<Stored>> {
    let row: Option<SubjectRow> = subjects::table
        .find((school.get(), kind.collection(), id.as_str()))
        .select(SubjectRow::as_select())
        .first(conn)
        .await
        .optional()?;
    Ok(row
        .map(SubjectRow::into_stored)
        .transpose()?
        .map(|(_, stored)| stored))
}

/// Returns a count that is not kept by status.
async fn count_of(conn: &mut AsyncPgConnection, school: SchoolId, what: &str) -> QueryResult<u64> {
    let count: Option<i64> = counts::table
        .find((school.get(), what, ""))
        .select(counts::count)
        .first(conn)
        .await
        .optional()?;
    Ok(unsigned(count.unwrap_or_default()))
}

/// Counts the subjects of a kind that ended from `since` until the start of `hour`, by status.
async fn ended_before_hour(
    conn: &mut AsyncPgConnection,
    (school, kind): (SchoolId, Kind),
    since: DateTime<Utc>,
    hour: i64,
) -> QueryResult<Vec<(String, i64)>> {
    subjects::table
        .filter(subjects::school_id.eq(school.get()))
        .filter(subjects::kind.eq(kind.collection()))
        .filter(subjects::finished_at.ge(millis(since)))
        .filter(subjects::finished_at.lt(hour * HOUR_MILLIS))
        .group_by(subjects::status)
        .select((subjects::status, diesel::dsl::count_star()))
        .load(conn)
        .await
}

async fn list_parts(
    conn: &mut AsyncPgConnection,
    school: SchoolId,
    kind: Kind,
    query: &PartQuery,
) -> QueryResult<PartPage> {
    let head = read::bounds(conn, school).await?.head;
    let mut select = parts::table
        .filter(parts::school_id.eq(school.get()))
        .filter(parts::kind.eq(kind.collection()))
        .order(parts::seq.desc())
        .limit(signed(query.limit) + 1)
        .select(parts::part)
        .into_boxed();
    if let Some(subject) = &query.subject {
        select = select.filter(parts::subject_id.eq(subject.as_str()));
    }
    if let Some(own_id) = &query.own_id {
        select = select.filter(parts::own_id.eq(own_id));
    }
    match query.open {
        Some(false) => select = select.filter(parts::closed_at.is_not_null()),
        Some(true) => select = select.filter(parts::closed_at.is_null()),
        None => {}
    }
    if let Some(before) = query.before {
        select = select.filter(parts::seq.lt(signed(before)));
    }
    let found: Vec<String> = select.load(conn).await?;
    let part = |json: String| Part::from_json(kind, &json).map_err(|_| unreadable("a part"));
    let mut listed = found
        .into_iter()
        .map(part)
        .collect::<QueryResult<Vec<_>>>()?;
    let has_more = listed.len() > query.limit;
    listed.truncate(query.limit);
    let next = listed.last().map(Part::seq).filter(|_| has_more);
    Ok(PartPage {
        parts: listed,
        next,
        head,
    })
}

#[async_trait]
impl Catalog for PostgresStore {
    async fn subject(
        &self,
        school: SchoolId,
        kind: Kind,
        id: SubjectId,
    ) -> Result<Option<StoredSubject>, StoreError> {
        let mut read = self.request(school).await?;
        let stored = load(&mut read, school, kind, &id).await;
        let stored = read.end(stored).await?;
        Ok(stored.map(|stored| into_subject(self.epoch, (school, kind, id), stored)))
    }

    async fn exists(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
    ) -> Result<bool, StoreError> {
        let mut read = self.request(school).await?;
        let found = subjects::table
            .find((school.get(), kind.collection(), subject.as_str()))
            .select(subjects::created_seq)
            .first::<i64>(&mut *read)
            .await
            .optional();
        Ok(read.end(found).await?.is_some())
    }

    async fn subjects(
        &self,
        school: SchoolId,
        kind: Kind,
        query: ListQuery,
    ) -> Result<ListPage, StoreError> {
        self.list(school, kind, query).await
    }

    async fn last_events(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
        which: Which,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let mut read = self.request(school).await?;
        let address = (school, kind, &subject);
        let events = read::last_events(&mut read, self.epoch, address, which, limit).await;
        read.end(events).await
    }

    async fn counts(
        &self,
        school: SchoolId,
        kind: Kind,
    ) -> Result<Vec<(&'static str, u64)>, StoreError> {
        let mut read = self.request(school).await?;
        let found = counts::table
            .filter(counts::school_id.eq(school.get()))
            .filter(counts::what.eq(kind.collection()))
            .filter(counts::count.gt(0))
            .select((counts::status, counts::count))
            .load::<(String, i64)>(&mut *read)
            .await;
        let known = |(status, count): (String, i64)| {
            let status = known_status(&status).ok_or_else(|| unreadable("a status"))?;
            Ok((status, unsigned(count)))
        };
        let counts = found.and_then(|rows| rows.into_iter().map(known).collect());
        read.end(counts).await
    }

    async fn stalled(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        let mut read = self.request(school).await?;
        let what = format!("stalled {}", kind.collection());
        let count = count_of(&mut read, school, &what).await;
        read.end(count).await
    }

    async fn ended_since(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        since: DateTime<Utc>,
    ) -> Result<u64, StoreError> {
        let hour = first_whole_hour(since);
        let mut read = self.request(school).await?;
        let count = async {
            let whole: Vec<i64> = endings::table
                .filter(endings::school_id.eq(school.get()))
                .filter(endings::kind.eq(kind.collection()))
                .filter(endings::hour.ge(hour))
                .filter(endings::status.eq(status))
                .select(endings::count)
                .load(&mut *read)
                .await?;
            let before = ended_before_hour(&mut read, (school, kind), since, hour).await?;
            let before = before
                .into_iter()
                .filter(|(ended_as, _)| ended_as == status);
            let before = before.map(|(_, count)| count);
            QueryResult::Ok(whole.into_iter().chain(before).map(unsigned).sum())
        };
        let count = count.await;
        read.end(count).await
    }

    async fn ended(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        limit: usize,
    ) -> Result<Vec<StoredSubject>, StoreError> {
        let mut read = self.request(school).await?;
        let found = subjects::table
            .filter(subjects::school_id.eq(school.get()))
            .filter(subjects::kind.eq(kind.collection()))
            .filter(subjects::finished_at.is_not_null())
            .filter(subjects::status.eq(status))
            .order(subjects::last_seq.desc())
            .limit(signed(limit))
            .select(SubjectRow::as_select())
            .load::<SubjectRow>(&mut *read)
            .await;
        let subject = |row: SubjectRow| {
            let (id, stored) = row.into_stored()?;
            Ok(into_subject(self.epoch, (school, kind, id), stored))
        };
        let ended = found.and_then(|rows| rows.into_iter().map(subject).collect());
        read.end(ended).await
    }

    async fn endings(
        &self,
        school: SchoolId,
        kind: Kind,
        since: DateTime<Utc>,
    ) -> Result<Vec<Ending>, StoreError> {
        let hour = first_whole_hour(since);
        let mut read = self.request(school).await?;
        let found = async {
            let before = ended_before_hour(&mut read, (school, kind), since, hour).await?;
            let before = before
                .into_iter()
                .map(|(status, count)| (hour - 1, status, count));
            let whole: Vec<(i64, String, i64)> = endings::table
                .filter(endings::school_id.eq(school.get()))
                .filter(endings::kind.eq(kind.collection()))
                .filter(endings::hour.ge(hour))
                .filter(endings::count.gt(0))
                .select((endings::hour, endings::status, endings::count))
                .load(&mut *read)
                .await?;
            let ending = |(hour, status, count): (i64, String, i64)| {
                Ok(Ending {
                    from: from_millis(hour * HOUR_MILLIS)?,
                    status: known_status(&status).ok_or_else(|| unreadable("a status"))?,
                    count: unsigned(count),
                })
            };
            before
                .chain(whole)
                .map(ending)
                .collect::<QueryResult<Vec<_>>>()
        };
        let endings = found.await;
        read.end(endings).await
    }

    async fn schools(
        &self,
        after: Option<SchoolId>,
        limit: usize,
    ) -> Result<Vec<SchoolId>, StoreError> {
        let mut read = self.read_for_server().await?;
        let ids = schools::table
            .filter(schools::school_id.gt(after.map_or(0, SchoolId::get)))
            .order(schools::school_id)
            .limit(signed(limit))
            .select(schools::school_id)
            .load::<i64>(&mut *read)
            .await;
        let ids = ids.and_then(|ids| ids.into_iter().map(rows::school).collect());
        read.end(ids).await
    }

    async fn parts(
        &self,
        school: SchoolId,
        kind: Kind,
        query: PartQuery,
    ) -> Result<PartPage, StoreError> {
        let mut read = self.request(school).await?;
        let page = list_parts(&mut read, school, kind, &query).await;
        read.end(page).await
    }

    async fn open_parts(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        let mut read = self.request(school).await?;
        let what = format!("open {}", kind.collection());
        let count = count_of(&mut read, school, &what).await;
        read.end(count).await
    }

    async fn overdue(&self, now: Uptime, limit: usize) -> Result<Vec<Overdue>, StoreError> {
        let mut read = self.read_for_server().await?;
        let found = subjects::table
            .filter(subjects::check_uptime.le(uptime_millis(now)))
            .order(subjects::check_uptime)
            .limit(signed(limit))
            .select((subjects::school_id, subjects::kind, subjects::subject_id))
            .load::<(i64, String, String)>(&mut *read)
            .await;
        let overdue = |(school, kind, id): (i64, String, String)| {
            let command = Command::check(rows::kind(&kind)?);
            Ok(Overdue {
                school: rows::school(school)?,
                subject: rows::subject(&id)?,
                command: command.ok_or_else(|| unreadable("a check of a kind without checks"))?,
            })
        };
        let overdue = found.and_then(|rows| rows.into_iter().map(overdue).collect());
        read.end(overdue).await
    }

    async fn devices_not_offline(
        &self,
        after: Option<(SchoolId, SubjectId)>,
        limit: usize,
    ) -> Result<Vec<(SchoolId, SubjectId, Device)>, StoreError> {
        let (school, id) = match &after {
            Some((school, id)) => (school.get(), id.as_str()),
            None => (0, ""),
        };
        let mut read = self.read_for_server().await?;
        let beyond = subjects::school_id.gt(school).or(subjects::school_id
            .eq(school)
            .and(subjects::subject_id.gt(id)));
        let found = subjects::table
            .filter(subjects::school_id.ge(school))
            .filter(subjects::kind.eq(device::KIND.collection()))
            .filter(subjects::status.ne(device::Status::Offline.as_str()))
            .filter(beyond)
            .order((subjects::school_id, subjects::subject_id))
            .limit(signed(limit))
            .select(SubjectRow::as_select())
            .load::<SubjectRow>(&mut *read)
            .await;
        let device = |row: SubjectRow| {
            let school = rows::school(row.school_id)?;
            let (id, stored) = row.into_stored()?;
            match stored.state {
                State::Device(device) => Ok((school, id, *device)),
                _ => Err(unreadable("a device")),
            }
        };
        let devices = found.and_then(|rows| rows.into_iter().map(device).collect());
        read.end(devices).await
    }

    fn windows(&self) -> u64 {
        self.readers.turns().windows()
    }

    fn waiting_reads(&self) -> usize {
        self.readers.turns().waiting()
    }
}

impl PostgresStore {
    /// Begins a short read for a request about a school.
    pub(super) async fn request(
        &self,
        school: SchoolId,
    ) -> Result<super::readers::Read, StoreError> {
        self.readers
            .begin(Requester::Requests(school), Length::Short)
            .await
    }

    /// Begins a short read for the server itself.
    pub(super) async fn read_for_server(&self) -> Result<super::readers::Read, StoreError> {
        self.readers.begin(Requester::Server, Length::Short).await
    }
}
