//! The sources of a list: ranges of indexes in the list's order, and windows of their rows.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use crate::log::{ListQuery, Stalled};

/// A range of an index in the order of a list, and which of its subjects match. The sources of a list have no subject in
/// common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Source<'a> {
    /// The range of the index: what has stalled, one category, one status, or everything.
    pub(super) stalled: bool,
    pub(super) category: Option<&'a str>,
    pub(super) status: Option<&'static str>,
    /// The conditions within the range: these categories, these statuses (any if empty), and not stalled.
    pub(super) categories: &'a [String],
    pub(super) statuses: &'a [&'static str],
    pub(super) not_stalled: bool,
}

impl Source<'_> {
    /// Returns whether everything in the range matches.
    fn is_by_index(&self) -> bool {
        self.categories.is_empty() && self.statuses.is_empty() && !self.not_stalled
    }
}

/// Returns the sources of a list. `has_categories` and `stalls` describe the kind. Returns none if nothing can match.
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

/// Returns whether everything in a list's sources matches, so that no rows need be searched.
pub(super) fn is_by_index(query: &ListQuery, sources: &[Source<'_>]) -> bool {
    query.text.is_none() && sources.iter().all(Source::is_by_index)
}

/// The rows of a list that are searched at a time.
#[derive(Default)]
pub(super) struct Window<'a> {
    /// The last of them, and when it was created; `None` if nothing is left beyond.
    pub(super) end: Option<(u64, DateTime<Utc>)>,
    /// The sources, each with the `created_seq` of its rows, in the list's order.
    pub(super) parts: Vec<(Source<'a>, Vec<i64>)>,
}
