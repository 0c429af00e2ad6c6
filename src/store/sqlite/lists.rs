//! Lists of subjects: how they are read by an index, and how they are searched if no index has exactly what matches.
//!
//! A list is the union of its [sources](super::sources), each a range of an index in the list's order. If all rows of the
//! sources match, the list is read at once. Otherwise it is read by a walk ([`ListWalk`]), which finds the matching rows in
//! one window of the sources' rows after another. A search for a text in jobs uses the text index ([`job_texts`]) for those
//! that have ended.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::bounds::bounds;
use super::job_texts;
use super::readers::{Looked, Walk};
use super::search;
use super::sources::is_by_index;
use super::table::into_subject;
use super::tables::table;
use crate::id::{Epoch, Kind, Place, SchoolId, SubjectId};
use crate::kind::job;
use crate::log::facts::Stored;
use crate::log::{ListPage, ListQuery, Searched};
use crate::store::columns::page_of;

/// A list as it is read: at once by an index, or window by window.
pub(super) struct ListWalk {
    school: SchoolId,
    kind: Kind,
    /// The query for the rest of the list.
    query: ListQuery,
    /// The text that is searched for, as it is compared.
    wanted: Option<String>,
    /// The query of the text index, if that serves the list.
    terms: Option<String>,
    limit: usize,
    found: Vec<(SubjectId, Stored)>,
    /// The end of the log when the walk began: a stream from there delivers what has changed since.
    head: Option<Place>,
    /// Where the last window ended.
    end: Option<(u64, DateTime<Utc>)>,
}

impl ListWalk {
    pub(super) fn new(school: SchoolId, kind: Kind, query: ListQuery) -> ListWalk {
        let wanted = query.text.as_deref().and_then(search::wanted);
        let of_jobs = wanted.as_deref().filter(|_| kind == job::KIND);
        ListWalk {
            school,
            kind,
            terms: of_jobs.and_then(|wanted| job_texts::terms(&query, wanted)),
            wanted,
            limit: query.limit,
            query,
            found: Vec::new(),
            head: None,
            end: None,
        }
    }

    /// Returns whether the list is read without a search: by indexes alone, or because nothing can match.
    pub(super) fn is_by_index(&self) -> bool {
        let can_be_found = self.query.text.is_some() == self.wanted.is_some();
        let sources = table(self.kind).sources(&self.query);
        !can_be_found || sources.is_empty() || is_by_index(&self.query, &sources)
    }

    /// Reads the list by indexes alone.
    pub(super) fn list(&mut self, conn: &mut SqliteConnection) -> QueryResult<()> {
        self.head = Some(bounds(conn, self.school)?.head);
        if self.query.text.is_none() {
            self.found = table(self.kind).list(conn, self.school, &self.query)?;
        }
        Ok(())
    }

    /// See [`page_of`].
    fn page(&self) -> (usize, bool) {
        page_of(&self.found, self.limit)
    }

    /// Returns when the last checked subject was created.
    pub(super) fn until(&self) -> Option<DateTime<Utc>> {
        self.end.map(|(_, at)| at)
    }

    pub(super) fn into_page(mut self, epoch: Epoch, searched: Option<Searched>) -> ListPage {
        let (of_page, is_full) = self.page();
        self.found.truncate(of_page);
        let (school, kind) = (self.school, self.kind);
        let next = match is_full {
            true => self.found.last().map(|(_, stored)| stored.created_seq),
            false => self.end.map(|(seq, _)| seq),
        };
        let subjects = self.found.into_iter();
        ListPage {
            subjects: subjects
                .map(|(id, stored)| into_subject(epoch, (school, kind, id), stored))
                .collect(),
            next,
            searched,
            head: self.head.unwrap_or_default(),
        }
    }
}

impl Walk for ListWalk {
    fn look(&mut self, conn: &mut SqliteConnection, rows: usize) -> QueryResult<Looked> {
        let table = table(self.kind);
        if self.head.is_none() {
            self.head = Some(bounds(conn, self.school)?.head);
        }
        self.query.limit = self.limit - self.found.len();
        let (school, query) = (self.school, &self.query);
        let window = match &self.terms {
            Some(terms) => job_texts::window(conn, school, query, terms, rows)?,
            None => table.window(conn, school, query, table.sources(query), rows)?,
        };
        self.end = window.end;
        let end = window.end.map(|(seq, _)| seq);
        let rows = window.parts.iter().map(|(_, seqs)| seqs.len() as u64).sum();
        let wanted = self.wanted.as_deref();
        let found = table.search(conn, school, query, &window, wanted)?;
        self.found.extend(found);
        self.query.beyond = end;
        Ok(Looked {
            rows,
            is_done: end.is_none() || self.page().1,
        })
    }
}
