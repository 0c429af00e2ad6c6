//! The port [`Catalog`].

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::bounds::bounds;
use super::counts::{counts, stalled};
use super::lists::ListWalk;
use super::table::into_subject;
use super::tables::{TABLES, table};
use super::{SqliteStore, devices, read};
use crate::event::Event;
use crate::id::{Kind, SchoolId, SubjectId};
use crate::kind::device::Device;
use crate::log::{
    Catalog, Ending, ListPage, ListQuery, Overdue, PartPage, PartQuery, Searched, StoreError,
    StoredSubject, Tally, TallyQuery, Which,
};
use crate::uptime::Uptime;

#[async_trait]
impl Catalog for SqliteStore {
    async fn subject(
        &self,
        school: SchoolId,
        kind: Kind,
        id: SubjectId,
    ) -> Result<Option<StoredSubject>, StoreError> {
        let epoch = self.epoch;
        self.read(school, move |conn| {
            let stored = table(kind).load(conn, school, &id)?;
            Ok(stored.map(|stored| into_subject(epoch, (school, kind, id), stored)))
        })
        .await
    }

    async fn exists(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
    ) -> Result<bool, StoreError> {
        self.read(school, move |conn| {
            Ok(table(kind).load(conn, school, &subject)?.is_some())
        })
        .await
    }

    async fn subjects(
        &self,
        school: SchoolId,
        kind: Kind,
        query: ListQuery,
    ) -> Result<ListPage, StoreError> {
        let mut walk = ListWalk::new(school, kind, query);
        if walk.is_by_index() {
            let listed = self.read(school, move |conn| {
                walk.list(conn)?;
                Ok(walk)
            });
            return Ok(listed.await?.into_page(self.epoch, None));
        }
        let walked = self.readers.walk(school, walk).await?;
        let searched = Searched {
            rows: walked.rows,
            until: walked.walk.until().filter(|_| !walked.is_complete),
            is_complete: walked.is_complete,
        };
        Ok(walked.walk.into_page(self.epoch, Some(searched)))
    }

    async fn last_events(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
        which: Which,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let epoch = self.epoch;
        self.read(school, move |conn| {
            read::last_events(conn, epoch, school, kind, &subject, which, limit)
        })
        .await
    }

    async fn counts(
        &self,
        school: SchoolId,
        kind: Kind,
    ) -> Result<Vec<(&'static str, u64)>, StoreError> {
        self.read(school, move |conn| counts(conn, school, kind))
            .await
    }

    async fn stalled(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        self.read(school, move |conn| stalled(conn, school, kind))
            .await
    }

    async fn ended_since(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        since: DateTime<Utc>,
    ) -> Result<u64, StoreError> {
        self.read(school, move |conn| {
            read::ended_since(conn, school, kind, status, since)
        })
        .await
    }

    async fn tallies(
        &self,
        schools: Vec<SchoolId>,
        queries: Vec<TallyQuery>,
    ) -> Result<Vec<Vec<Tally>>, StoreError> {
        let Some(first) = schools.first() else {
            return Ok(Vec::new());
        };
        self.read(*first, move |conn| {
            let of_school = |school: &SchoolId| {
                let wanted = queries.iter();
                wanted
                    .map(|query| read::tally(conn, *school, query))
                    .collect()
            };
            schools.iter().map(of_school).collect()
        })
        .await
    }

    async fn ended(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        limit: usize,
    ) -> Result<Vec<StoredSubject>, StoreError> {
        let epoch = self.epoch;
        self.read(school, move |conn| {
            read::ended(conn, epoch, school, kind, status, limit)
        })
        .await
    }

    async fn endings(
        &self,
        school: SchoolId,
        kind: Kind,
        since: DateTime<Utc>,
    ) -> Result<Vec<Ending>, StoreError> {
        self.read(school, move |conn| read::endings(conn, school, kind, since))
            .await
    }

    async fn schools(
        &self,
        after: Option<SchoolId>,
        limit: usize,
    ) -> Result<Vec<SchoolId>, StoreError> {
        self.read_for_server(move |conn| read::schools(conn, after, limit))
            .await
    }

    async fn parts(
        &self,
        school: SchoolId,
        kind: Kind,
        query: PartQuery,
    ) -> Result<PartPage, StoreError> {
        self.read(school, move |conn| match table(kind).parts() {
            Some(parts) => parts.list(conn, school, &query),
            None => Ok(PartPage {
                parts: Vec::new(),
                next: None,
                head: bounds(conn, school)?.head,
            }),
        })
        .await
    }

    async fn open_parts(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        self.read(school, move |conn| {
            table(kind)
                .parts()
                .map_or(Ok(0), |parts| parts.open(conn, school))
        })
        .await
    }

    async fn overdue(&self, now: Uptime, limit: usize) -> Result<Vec<Overdue>, StoreError> {
        self.read_for_server(move |conn| {
            let mut overdue = Vec::new();
            for (_, table) in TABLES {
                overdue.extend(table.overdue(conn, now, limit)?);
            }
            Ok(overdue)
        })
        .await
    }

    async fn devices_not_offline(
        &self,
        after: Option<(SchoolId, SubjectId)>,
        limit: usize,
    ) -> Result<Vec<(SchoolId, SubjectId, Device)>, StoreError> {
        self.read_for_server(move |conn| devices::not_offline(conn, after.as_ref(), limit))
            .await
    }

    fn windows(&self) -> u64 {
        self.readers.turns().windows()
    }

    fn waiting_reads(&self) -> usize {
        self.readers.turns().waiting()
    }
}
