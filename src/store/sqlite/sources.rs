//! The sources of a list: ranges of indexes in the list's order, and windows of their rows.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use crate::log::{ListQuery, Stalled};

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
