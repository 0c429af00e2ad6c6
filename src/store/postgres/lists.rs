//! Lists of subjects. A list is a range of an index in the list's order. If no index serves it, or a text is searched for,
//! it is read one window of rows at a time, up to the read limits.
//!
//! For subjects that have ended, the texts that a search compares are stored in addition to the state, unless they are very
//! long. The state of such a subject is read only if its texts match. The states of all other subjects are read.

use std::time::Instant;

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::PostgresStore;
use super::commit::mentions;
use super::read::bounds;
use super::rows::SubjectRow;
use super::schema::subjects;
use crate::id::{Kind, Place, SchoolId, SubjectId};
use crate::kind::job;
use crate::log::facts::Stored;
use crate::log::{ListPage, ListQuery, Order, Searched, Stalled, StoreError};
use crate::store::columns::{from_millis, into_subject, page_of};
use crate::store::numbers::{signed, unsigned};
use crate::store::texts::wanted;
use crate::store::turns::{Length, Requester};

type Boxed<'a> = subjects::BoxedQuery<'a, Pg>;

/// A list as it is read.
struct Listing {
    school: SchoolId,
    kind: Kind,
    query: ListQuery,
    /// The text that is searched for, as it is compared.
    wanted: Option<String>,
    found: Vec<(SubjectId, Stored)>,
    /// The end of the log when the list began: a stream from there continues where the list ends.
    head: Option<Place>,
    /// The last row that was read, and when its subject was created; `None` if nothing is left beyond.
    end: Option<(u64, DateTime<Utc>)>,
}

/// The rows of a window.
struct Window {
    rows: usize,
    end: Option<(u64, DateTime<Utc>)>,
    found: Vec<(SubjectId, Stored)>,
}

impl Listing {
    /// Returns whether nothing can match.
    fn is_empty(&self) -> bool {
        let has_categories = self.kind == job::KIND;
        let stalls = self.kind == job::KIND;
        let cannot_be_found = self.query.text.is_some() && self.wanted.is_none();
        cannot_be_found
            || (!has_categories && !self.query.categories.is_empty())
            || (!stalls && self.query.stalled == Stalled::Only)
    }

    /// Returns whether one index has exactly the rows of the list.
    fn is_by_index(&self) -> bool {
        let query = &self.query;
        let conditions = [query.statuses.len(), query.categories.len()];
        let stalled = match query.stalled {
            Stalled::Ignored => 0,
            Stalled::Only => 1,
            Stalled::Apart { .. } => 2,
        };
        query.text.is_none() && conditions.iter().sum::<usize>() + stalled <= 1
    }

    /// Returns a query for the rows beyond `beyond` that match all conditions except the text, in the order of the list.
    fn select(&self, beyond: Option<u64>) -> Boxed<'static> {
        let query = &self.query;
        let mut select = subjects::table
            .filter(subjects::school_id.eq(self.school.get()))
            .filter(subjects::kind.eq(self.kind.collection()))
            .into_boxed();
        if !query.categories.is_empty() {
            select = select.filter(subjects::category.eq_any(query.categories.clone()));
        }
        let has_status = || subjects::status.eq_any(query.statuses.clone());
        let is_any = query.statuses.is_empty();
        select = match query.stalled {
            Stalled::Ignored if is_any => select,
            Stalled::Ignored => select.filter(has_status()),
            Stalled::Only if is_any => select.filter(subjects::stalled),
            Stalled::Only => select.filter(subjects::stalled).filter(has_status()),
            Stalled::Apart { wanted: true } if is_any => select.filter(subjects::stalled),
            Stalled::Apart { wanted: true } => select.filter(subjects::stalled.or(has_status())),
            Stalled::Apart { wanted: false } if is_any => {
                select.filter(diesel::dsl::not(subjects::stalled))
            }
            Stalled::Apart { wanted: false } => select
                .filter(diesel::dsl::not(subjects::stalled))
                .filter(has_status()),
        };
        self.in_order(select, beyond)
    }

    fn in_order(&self, select: Boxed<'static>, beyond: Option<u64>) -> Boxed<'static> {
        match (self.query.order, beyond.map(signed)) {
            (Order::Newest, None) => select.order(subjects::created_seq.desc()),
            (Order::Newest, Some(beyond)) => select
                .filter(subjects::created_seq.lt(beyond))
                .order(subjects::created_seq.desc()),
            (Order::Oldest, None) => select.order(subjects::created_seq.asc()),
            (Order::Oldest, Some(beyond)) => select
                .filter(subjects::created_seq.gt(beyond))
                .order(subjects::created_seq.asc()),
        }
    }

    /// Reads the whole page by an index.
    async fn list(&mut self, conn: &mut AsyncPgConnection) -> QueryResult<()> {
        self.head = Some(bounds(conn, self.school).await?.head);
        // Subjects can be large: a page is read in several parts.
        let mut beyond = self.query.beyond;
        let part = (self.query.limit + 1).clamp(1, 100);
        while !self.page().1 {
            let rows: Vec<SubjectRow> = self
                .select(beyond)
                .limit(signed(part))
                .select(SubjectRow::as_select())
                .load(conn)
                .await?;
            let count = rows.len();
            for row in rows {
                let (id, stored) = row.into_stored()?;
                beyond = Some(stored.created_seq);
                self.found.push((id, stored));
            }
            if count < part {
                break;
            }
        }
        Ok(())
    }

    /// Reads the next window of at most `rows` rows.
    async fn window(&self, conn: &mut AsyncPgConnection, rows: usize) -> QueryResult<Window> {
        // Determines the range from all rows of the school and the kind, so that a window is bounded even if none of its
        // rows match.
        let all = subjects::table
            .filter(subjects::school_id.eq(self.school.get()))
            .filter(subjects::kind.eq(self.kind.collection()))
            .into_boxed();
        let all = self.in_order(all, self.query.beyond).limit(signed(rows));
        let places: Vec<(i64, i64)> = all
            .select((subjects::created_seq, subjects::created_at))
            .load(conn)
            .await?;
        let Some((last, created_at)) = places.last().copied() else {
            return Ok(Window {
                rows: 0,
                end: None,
                found: Vec::new(),
            });
        };
        let mut select = self.select(self.query.beyond);
        select = match self.query.order {
            Order::Newest => select.filter(subjects::created_seq.ge(last)),
            Order::Oldest => select.filter(subjects::created_seq.le(last)),
        };
        if let Some(wanted) = &self.wanted {
            let may_match = diesel::dsl::sql::<Bool>("(texts IS NULL OR strpos(texts, ")
                .bind::<Text, _>(wanted.clone())
                .sql(") > 0)");
            select = select.filter(may_match);
        }
        let left = self.query.limit - self.found.len();
        let found: Vec<SubjectRow> = select
            .limit(signed(rows))
            .select(SubjectRow::as_select())
            .load(conn)
            .await?;
        let mut matching = Vec::new();
        for row in found {
            let (id, stored) = row.into_stored()?;
            let wanted = self.wanted.as_deref();
            if wanted.is_none_or(|wanted| mentions(id.as_str(), &stored.state, wanted)) {
                matching.push((id, stored));
            }
            if matching.len() > left {
                break;
            }
        }
        let is_last = places.len() < rows;
        Ok(Window {
            rows: places.len(),
            end: match is_last {
                true => None,
                false => Some((unsigned(last), from_millis(created_at)?)),
            },
            found: matching,
        })
    }

    /// See [`page_of`].
    fn page(&self) -> (usize, bool) {
        page_of(&self.found, self.query.limit)
    }

    fn into_page(mut self, store: &PostgresStore, searched: Option<Searched>) -> ListPage {
        let (of_page, is_full) = self.page();
        self.found.truncate(of_page);
        let next = match is_full {
            true => self.found.last().map(|(_, stored)| stored.created_seq),
            false => self.end.map(|(seq, _)| seq),
        };
        let (school, kind) = (self.school, self.kind);
        let subjects = self.found.into_iter();
        ListPage {
            subjects: subjects
                .map(|(id, stored)| into_subject(store.epoch, (school, kind, id), stored))
                .collect(),
            next,
            searched,
            head: self.head.unwrap_or_default(),
        }
    }
}

impl PostgresStore {
    pub(super) async fn list(
        &self,
        school: SchoolId,
        kind: Kind,
        query: ListQuery,
    ) -> Result<ListPage, StoreError> {
        let mut listing = Listing {
            school,
            kind,
            wanted: query.text.as_deref().and_then(wanted),
            query,
            found: Vec::new(),
            head: None,
            end: None,
        };
        if listing.is_empty() {
            let mut read = self
                .readers
                .begin(Requester::Requests(school), Length::Short)
                .await?;
            let head = bounds(&mut read, school).await.map(|bounds| bounds.head);
            listing.head = Some(read.end(head).await?);
            return Ok(listing.into_page(self, None));
        }
        if listing.is_by_index() {
            let mut read = self
                .readers
                .begin(Requester::Requests(school), Length::Short)
                .await?;
            let listed = listing.list(&mut read).await;
            read.end(listed).await?;
            return Ok(listing.into_page(self, None));
        }
        let mut search = self.readers.search();
        let is_complete = loop {
            let Some(mut read) = self.readers.next(school, &search).await? else {
                break false;
            };
            let began = Instant::now();
            let window = async {
                if listing.head.is_none() {
                    listing.head = Some(bounds(&mut read, school).await?.head);
                }
                listing.window(&mut read, search.window()).await
            };
            let window = window.await;
            let window = read.end(window).await?;
            listing.found.extend(window.found);
            listing.end = window.end;
            listing.query.beyond = window.end.map(|(seq, _)| seq);
            let is_over = search.has_read(window.rows, began.elapsed());
            if window.end.is_none() || listing.page().1 {
                break true;
            }
            if is_over {
                break false;
            }
        };
        let searched = Searched {
            rows: search.rows,
            until: listing.end.map(|(_, at)| at).filter(|_| !is_complete),
            is_complete,
        };
        Ok(listing.into_page(self, Some(searched)))
    }
}
