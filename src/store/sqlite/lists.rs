//! Lists of subjects: what each is read from, and how it is searched where no index has just what fits.
//!
//! A list is the union of its [`Source`]s, each a range of an index in the list's order. Without anything else to look for it is read at once.
//! Otherwise it is a walk ([`ListWalk`]): a window of so many rows of all sources together, in it those that fit, and on behind it.
//! A search for a text in jobs has the index of texts ([`job_texts`]) for those that have ended.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::job_texts;
use super::read::bounds;
use super::readers::{Looked, Walk};
use super::search;
use super::table::{into_subject, table};
use crate::id::{Epoch, Kind, Place, SchoolId, SubjectId};
use crate::kind::job;
use crate::log::facts::Stored;
use crate::log::{ListPage, ListQuery, Searched, Stalled};
use crate::store::columns::page_of;

/// A list as it is read: at once by an index, or window by window.
pub(super) struct ListWalk {
    school: SchoolId,
    kind: Kind,
    /// What is left to be read of it.
    query: ListQuery,
    /// The text that is looked for, as it is compared.
    wanted: Option<String>,
    /// What to ask the index of texts for, if it serves this.
    terms: Option<String>,
    limit: usize,
    found: Vec<(SubjectId, Stored)>,
    /// Where the log ended when the walk began: a stream from there delivers what has changed meanwhile.
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

    /// Whether nothing need be scanned for what fits.
    pub(super) fn is_by_index(&self) -> bool {
        let can_be_found = self.query.text.is_some() == self.wanted.is_some();
        let sources = table(self.kind).sources(&self.query);
        !can_be_found || sources.is_empty() || is_by_index(&self.query, &sources)
    }

    /// Reads it by an index.
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

    /// When the last that was looked at was created.
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

/// A part of a list that an index has in the list's order, and what of it fits. Two of them have no subject in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Source<'a> {
    /// By the index: what has stalled, one category, one status, or everything.
    pub(super) stalled: bool,
    pub(super) category: Option<&'a str>,
    pub(super) status: Option<&'static str>,
    /// Looked for among them: these categories, these statuses (any if empty), and what has not stalled.
    pub(super) categories: &'a [String],
    pub(super) statuses: &'a [&'static str],
    pub(super) not_stalled: bool,
}

impl Source<'_> {
    /// Whether everything in it fits.
    fn is_by_index(&self) -> bool {
        self.categories.is_empty() && self.statuses.is_empty() && !self.not_stalled
    }
}

/// What a list is read from, of a kind that has categories or not and stalls or not. Nothing if nothing can fit.
pub(super) fn sources(query: &ListQuery, has_categories: bool, stalls: bool) -> Vec<Source<'_>> {
    let mut sources = Vec::new();
    if !has_categories && !query.categories.is_empty() {
        return sources;
    }
    let (is_only, is_apart) = match query.stalled {
        Stalled::Ignored => (false, false),
        Stalled::Only => (true, false),
        Stalled::Apart { .. } => (false, true),
    };
    let wants_stalled = is_only || query.stalled == Stalled::Apart { wanted: true };
    if stalls && wants_stalled {
        sources.push(Source {
            stalled: true,
            categories: &query.categories,
            statuses: match is_only {
                true => &query.statuses,
                false => &[],
            },
            ..Source::default()
        });
    }
    if is_only || (wants_stalled && query.statuses.is_empty()) {
        return sources;
    }
    let plain = Source {
        not_stalled: is_apart && stalls,
        ..Source::default()
    };
    if !query.categories.is_empty() {
        let categories: BTreeSet<&str> = query.categories.iter().map(String::as_str).collect();
        sources.extend(categories.into_iter().map(|category| Source {
            category: Some(category),
            statuses: &query.statuses,
            ..plain.clone()
        }));
    } else if !query.statuses.is_empty() {
        let statuses: BTreeSet<&'static str> = query.statuses.iter().copied().collect();
        sources.extend(statuses.into_iter().map(|status| Source {
            status: Some(status),
            ..plain.clone()
        }));
    } else {
        sources.push(plain);
    }
    sources
}

/// Whether a list needs nothing but the indexes of its sources.
pub(super) fn is_by_index(query: &ListQuery, sources: &[Source<'_>]) -> bool {
    query.text.is_none() && sources.iter().all(Source::is_by_index)
}

/// Rows of a list that are scanned at a time.
#[derive(Default)]
pub(super) struct Window<'a> {
    /// The last of them, and when it was created; none if nothing is left beyond.
    pub(super) end: Option<(u64, DateTime<Utc>)>,
    /// The sources and their rows, by the events that created their subjects, in the list's order.
    pub(super) parts: Vec<(Source<'a>, Vec<i64>)>,
}
