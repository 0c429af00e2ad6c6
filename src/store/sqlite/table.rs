//! What the store requires of a kind's table. A new kind implements [`Table`] in its own module and adds a line to
//! [`TABLES`](super::tables). The macros `any_table` and `table_of_what_ends` generate what tables have in common from
//! the names of the table and its columns.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::parts::Parts;
use super::sources::{Source, Window};
use crate::event::Event;
use crate::id::{Epoch, Place, SchoolId, SubjectId};
use crate::kind::job::Past;
use crate::log::facts::{Address, Stored};
use crate::log::{LastEvent, ListQuery, Overdue};
use crate::scope::Filter;
use crate::uptime::Uptime;

pub(super) use crate::store::columns::{
    HOUR_MILLIS, cut, from_millis, into_subject, millis, place, raw, tag_bits, unreadable, uptime,
    uptime_millis,
};

/// Which current states a snapshot contains.
pub(super) struct Selection<'a> {
    pub(super) school: SchoolId,
    /// Only these subjects, or all of the kind.
    pub(super) subjects: Option<Vec<&'a SubjectId>>,
    pub(super) filter: &'a Filter,
    /// Leaves out subjects that have ended.
    pub(super) active_only: bool,
    pub(super) after: u64,
    pub(super) upto: u64,
    pub(super) limit: usize,
    /// The maximum number of rows of an index to scan.
    pub(super) rows: usize,
}

impl Selection<'_> {
    /// Returns the first selected ones of these events, in the order of the log. `events` must be complete up to
    /// `through`.
    pub(super) fn first_of(&self, mut events: Vec<Event>, through: u64) -> Selected {
        events.retain(|event| {
            event.seq > self.after
                && event.seq <= through
                && self
                    .filter
                    .passes(event.draft.status, event.draft.category.as_deref())
        });
        let is_full = events.len() >= self.limit;
        let through = cut(&mut events, Place::untagged(through)).seq;
        let through = match events.last() {
            // There may be more.
            Some(last) if is_full => last.seq,
            _ => through,
        };
        Selected { events, through }
    }
}

/// The table of a kind.
pub(super) trait Table: Sync {
    fn load(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subject: &SubjectId,
    ) -> QueryResult<Option<Stored>>;

    /// Returns the number of a subject's newest event.
    fn last_seq(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subject: &str,
    ) -> QueryResult<Option<i64>>;

    /// Writes a state, whether or not the subject already has a row. `before` is the state in its row, if that is known.
    fn write(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subject: &SubjectId,
        stored: &Stored,
        before: Option<&Stored>,
    ) -> QueryResult<()>;

    /// Returns the first `limit` events that represent the current states, in the order of the log. Each has the place of
    /// the event that it repeats.
    fn snapshot(
        &self,
        conn: &mut SqliteConnection,
        epoch: Epoch,
        selection: &Selection<'_>,
    ) -> QueryResult<Selected>;

    /// Returns the sources from which a list is read.
    fn sources<'a>(&self, query: &'a ListQuery) -> Vec<Source<'a>>;

    /// Returns the next `rows` rows from the sources of a list, or slightly more.
    fn window<'a>(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        query: &ListQuery,
        sources: Vec<Source<'a>>,
        rows: usize,
    ) -> QueryResult<Window<'a>>;

    /// Returns the subjects of a list that indexes serve completely, in the query's order: one more than its limit, or as
    /// many as exceed the byte limit of a page, if there are that many.
    fn list(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        query: &ListQuery,
    ) -> QueryResult<Vec<(SubjectId, Stored)>>;

    /// Returns the subjects of any list among the rows of a window whose texts contain `wanted`, in the query's order, with
    /// the same limits as [`Table::list`].
    fn search(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        query: &ListQuery,
        window: &Window<'_>,
        wanted: Option<&str>,
    ) -> QueryResult<Vec<(SubjectId, Stored)>>;

    /// Returns the table of its subjects' parts, if they have any.
    fn parts(&self) -> Option<&'static dyn Parts> {
        None
    }

    /// Returns how many subjects have ended with one status since a given time.
    fn ended_since(
        &self,
        _: &mut SqliteConnection,
        _: SchoolId,
        _status: &str,
        _since: DateTime<Utc>,
    ) -> QueryResult<i64> {
        Ok(0)
    }

    /// Returns the last events of subjects, for a kind that has ticks.
    fn last_events(
        &self,
        _: &mut SqliteConnection,
        _: SchoolId,
        _: &[&str],
    ) -> QueryResult<HashMap<String, LastEvent>> {
        Ok(HashMap::new())
    }

    /// Returns the history of the newest successfully completed subjects of a category, newest first.
    fn past(
        &self,
        _: &mut SqliteConnection,
        _: SchoolId,
        _category: &str,
        _limit: usize,
    ) -> QueryResult<Vec<Past>> {
        Ok(Vec::new())
    }

    /// Returns the subjects that ended with one status, most recently ended first.
    fn ended(
        &self,
        _: &mut SqliteConnection,
        _: SchoolId,
        _status: &str,
        _limit: usize,
    ) -> QueryResult<Vec<(SubjectId, Stored)>> {
        Ok(Vec::new())
    }

    /// Counts how subjects have ended since a given time, by hour: the hour's number since 1970, the status, the count.
    fn endings(
        &self,
        _: &mut SqliteConnection,
        _: SchoolId,
        _since: DateTime<Utc>,
    ) -> QueryResult<Vec<(i64, String, i64)>> {
        Ok(Vec::new())
    }

    /// Returns the holder of an exclusive resource.
    fn holder(
        &self,
        _: &mut SqliteConnection,
        _: SchoolId,
        _what: &str,
    ) -> QueryResult<Option<SubjectId>> {
        Ok(None)
    }

    /// Returns the subjects that are due for a check, longest overdue first.
    fn overdue(
        &self,
        _: &mut SqliteConnection,
        _now: Uptime,
        _limit: usize,
    ) -> QueryResult<Vec<Overdue>> {
        Ok(Vec::new())
    }

    /// Deletes at most `limit` subjects that ended before `before` and whose events are gone.
    fn sweep(
        &self,
        _: &mut SqliteConnection,
        _before: DateTime<Utc>,
        _limit: usize,
    ) -> QueryResult<Vec<Address>> {
        Ok(Vec::new())
    }
}

/// The current states that a table contributes to a snapshot.
pub(super) struct Selected {
    /// In the order of the log.
    pub(super) events: Vec<Event>,
    /// Every selected state up to this `seq` is included.
    pub(super) through: u64,
}

/// Generates the methods of [`Table`] that every table has: `load`, `last_seq`, `write`, `sources`, `window`, `list` and `search`.
macro_rules! any_table {
    (
        $table:ident by $id:ident as $row:ident, written by $upsert:ident from $of_state:ident,
        $(ticks written by $tick:ident if $is_tick:path,)?
        searched in [$($text:ident),+] and values of [$($json:ident),*], category [$($category:ident)?], stalls [$($stalled:ident)?]
    ) => {
        fn write(
            &self,
            conn: &mut SqliteConnection,
            school: SchoolId,
            subject: &SubjectId,
            stored: &Stored,
            _before: Option<&Stored>,
        ) -> QueryResult<()> {
            let state = stored.state.$of_state();
            let state = state.ok_or_else(|| unreadable("a subject of another kind"))?;
            let row = $row::new(school, subject, state, stored);
            $(
                let before = _before.and_then(|before| before.state.$of_state());
                if before.is_some_and(|before| $is_tick(before, state)) && $tick(&row).execute(conn)? == 1 {
                    return Ok(());
                }
            )?
            $upsert(&row).execute(conn).map(|_| ())
        }

        fn load(
            &self,
            conn: &mut SqliteConnection,
            school: SchoolId,
            subject: &SubjectId,
        ) -> QueryResult<Option<Stored>> {
            let row: Option<$row<'_>> = $table::table
                .find((school.get(), subject.as_str()))
                .select($row::as_select())
                .get_result(conn)
                .optional()?;
            row.map(|row| Ok(row.into_stored()?.1)).transpose()
        }

        fn last_seq(
            &self,
            conn: &mut SqliteConnection,
            school: SchoolId,
            subject: &str,
        ) -> QueryResult<Option<i64>> {
            let row = $table::table.find((school.get(), subject));
            row.select($table::last_seq).get_result(conn).optional()
        }

        fn sources<'a>(
            &self,
            query: &'a crate::log::ListQuery,
        ) -> Vec<$crate::store::sqlite::sources::Source<'a>> {
            let categories: &[&str] = &[$(stringify!($category))?];
            let stalls: &[&str] = &[$(stringify!($stalled))?];
            let (has_categories, stalls) = (!categories.is_empty(), !stalls.is_empty());
            $crate::store::sqlite::sources::sources(query, has_categories, stalls)
        }

        fn window<'a>(
            &self,
            conn: &mut SqliteConnection,
            school: SchoolId,
            query: &crate::log::ListQuery,
            sources: Vec<$crate::store::sqlite::sources::Source<'a>>,
            rows: usize,
        ) -> QueryResult<$crate::store::sqlite::sources::Window<'a>> {
            use $crate::store::sqlite::limit::Limit as _;
            let newest_first = query.order == crate::log::Order::Newest;
            let last_of_each = signed((rows / sources.len().max(1)).max(1)) - 1;
            // The first of the places at which the sources' rows end.
            let mut end: Option<(i64, i64)> = None;
            for source in &sources {
                let select = $crate::store::sqlite::table::rows_of!(
                    $table, school, query, source, category [$($category)?], stalls [$($stalled)?]
                );
                let place = select
                    .select(($table::created_seq, $table::created_at))
                    .row_after(last_of_each)
                    .get_result::<(i64, i64)>(conn)
                    .optional()?;
                end = match newest_first {
                    true => end.max(place),
                    false => end.into_iter().chain(place).min(),
                };
            }
            let mut parts = Vec::new();
            for source in sources {
                let mut select = $crate::store::sqlite::table::rows_of!(
                    $table, school, query, source, category [$($category)?], stalls [$($stalled)?]
                );
                if let Some((end, _)) = end {
                    select = match newest_first {
                        true => select.filter($table::created_seq.ge(end)),
                        false => select.filter($table::created_seq.le(end)),
                    };
                }
                let seqs = select.select($table::created_seq).load::<i64>(conn)?;
                parts.push((source, seqs));
            }
            let end = match end {
                Some((seq, at)) => Some((unsigned(seq), from_millis(at)?)),
                None => None,
            };
            Ok($crate::store::sqlite::sources::Window { end, parts })
        }

        fn list(
            &self,
            conn: &mut SqliteConnection,
            school: SchoolId,
            query: &crate::log::ListQuery,
        ) -> QueryResult<Vec<(SubjectId, Stored)>> {
            use $crate::store::sqlite::limit::Limit as _;
            let mut found = Vec::new();
            for source in self.sources(query) {
                let select = $crate::store::sqlite::table::rows_of!(
                    $table, school, query, source, category [$($category)?], stalls [$($stalled)?]
                );
                let select = select.select($row::as_select()).at_most(signed(query.limit) + 1);
                let mut bytes = 0;
                for row in select.load_iter::<$row<'_>, diesel::connection::DefaultLoadingMode>(conn)? {
                    let (id, stored) = row?.into_stored()?;
                    bytes += stored.state.text_bytes();
                    found.push((id, stored));
                    if bytes > $crate::config::LIST_PAGE_BYTES {
                        break;
                    }
                }
            }
            $crate::store::sqlite::table::in_order!(found, query);
            Ok(found)
        }

        fn search(
            &self,
            conn: &mut SqliteConnection,
            school: SchoolId,
            query: &crate::log::ListQuery,
            window: &$crate::store::sqlite::sources::Window<'_>,
            wanted: Option<&str>,
        ) -> QueryResult<Vec<(SubjectId, Stored)>> {
            let mut found = Vec::new();
            for (source, seqs) in &window.parts {
                let before = found.len();
                let mut bytes = 0;
                // Each row individually: whichever index SQLite chooses, it reads no row outside the window.
                for part in seqs.chunks($crate::config::SEARCH_PART_ROWS) {
                    let mut select = $table::table
                        .filter($table::school_id.eq(school.get()))
                        .filter($table::created_seq.eq_any(part))
                        .select($row::as_select())
                        .into_boxed::<diesel::sqlite::Sqlite>();
                    $(if source.not_stalled {
                        select = select.filter(diesel::dsl::not($table::$stalled));
                    })?
                    if !source.statuses.is_empty() {
                        select = select.filter($table::status.eq_any(source.statuses));
                    }
                    $(if !source.categories.is_empty() {
                        select = select.filter($table::$category.eq_any(source.categories));
                    })?
                    if let Some(wanted) = wanted {
                        use $crate::store::sqlite::search;
                        select = select.filter($crate::store::sqlite::table::either!(
                            $(search::mentions($table::$text.nullable(), wanted)),+
                            $(, search::mentions_value($table::$json, wanted))*
                        ));
                    }
                    for row in select.load::<$row<'_>>(conn)? {
                        let (id, stored) = row.into_stored()?;
                        bytes += stored.state.text_bytes();
                        found.push((id, stored));
                    }
                    if found.len() - before > query.limit || bytes > $crate::config::LIST_PAGE_BYTES {
                        break;
                    }
                }
            }
            $crate::store::sqlite::table::in_order!(found, query);
            Ok(found)
        }
    };
}

/// Sorts subjects in the order of a list, and keeps one more than its limit.
macro_rules! in_order {
    ($found:ident, $query:ident) => {
        $found.sort_unstable_by_key(|(_, stored)| match $query.order {
            crate::log::Order::Newest => -signed(stored.created_seq),
            crate::log::Order::Oldest => signed(stored.created_seq),
        });
        $found.truncate($query.limit + 1);
    };
}

/// Returns a query for the rows of a source, in the order of a list.
macro_rules! rows_of {
    (
        $table:ident, $school:ident, $query:ident, $source:ident,
        category [$($category:ident)?], stalls [$($stalled:ident)?]
    ) => {{
        let mut select = $table::table
            .filter($table::school_id.eq($school.get()))
            .into_boxed::<diesel::sqlite::Sqlite>();
        $(if $source.stalled {
            select = select.filter($table::$stalled);
        })?
        $(if let Some(category) = $source.category {
            select = select.filter($table::$category.eq(category));
        })?
        if let Some(status) = $source.status {
            select = select.filter($table::status.eq(status));
        }
        let beyond = $query.beyond.map(|seq| signed(seq));
        match $query.order {
            crate::log::Order::Newest => {
                if let Some(beyond) = beyond {
                    select = select.filter($table::created_seq.lt(beyond));
                }
                select.order($table::created_seq.desc())
            }
            crate::log::Order::Oldest => {
                if let Some(beyond) = beyond {
                    select = select.filter($table::created_seq.gt(beyond));
                }
                select.order($table::created_seq.asc())
            }
        }
    }};
}

/// Generates the methods of [`Table`] for subjects that end and are represented by one event: `snapshot`, `last_events`,
/// `ended` and `sweep`, and `overdue` for those that a command checks.
macro_rules! table_of_what_ends {
    (
        $table:ident by $id:ident as $row:ident, kind $kind:expr, category [$($category:ident)?],
        ends with $ends:expr $(, checked by $check:expr)?
    ) => {
        fn snapshot(
            &self,
            conn: &mut SqliteConnection,
            epoch: Epoch,
            selection: &Selection<'_>,
        ) -> QueryResult<$crate::store::sqlite::table::Selected> {
            use $crate::store::sqlite::limit::Limit as _;
            let mut events = Vec::new();
            let mut add = |id: SubjectId, stored: Stored| {
                events.push(stored.snapshot(epoch, (selection.school, $kind, id), Utc::now()));
            };
            if let Some(subjects) = &selection.subjects {
                // The places first: if many subjects are large, only those of this page are read.
                let mut places: Vec<(i64, &SubjectId)> = Vec::new();
                for subject in subjects {
                    let row = $table::table.find((selection.school.get(), subject.as_str()));
                    let place = row.select($table::last_seq).get_result(conn).optional()?;
                    places.extend(place.map(|place| (place, *subject)));
                }
                places.retain(|(place, _)| *place > signed(selection.after));
                places.sort_unstable();
                let (mut bytes, mut through) = (0, selection.upto);
                for (place, subject) in places {
                    let stored = self.load(conn, selection.school, subject)?;
                    let left_out = |stored: &Stored| selection.active_only && stored.state.is_over();
                    if let Some(stored) = stored.filter(|stored| !left_out(stored)) {
                        bytes += stored.state.text_bytes();
                        add(subject.clone(), stored);
                    }
                    if bytes > $crate::config::READ_PAGE_BYTES {
                        through = through.min(unsigned(place));
                        break;
                    }
                }
                return Ok(selection.first_of(events, through));
            }
            // Active subjects and each terminal status are read separately, each by an index in the order of the log.
            let wanted = |status: &&str| {
                let statuses = &selection.filter.statuses;
                statuses.is_empty() || statuses.contains(*status)
            };
            let (ended, active): (Vec<&str>, Vec<&str>) = $crate::kind::description($kind)
                .statuses
                .iter()
                .copied()
                .filter(wanted)
                .partition(|status| $ends.contains(status));
            let unfinished = (!active.is_empty()).then_some(None);
            let ended = ended.into_iter().filter(|_| !selection.active_only).map(Some);
            let mut through = selection.upto;
            for ending in unfinished.into_iter().chain(ended) {
                let by_index = || {
                    let query = $table::table
                        .filter($table::school_id.eq(selection.school.get()))
                        .filter($table::last_seq.gt(signed(selection.after)))
                        .filter($table::last_seq.le(signed(through)))
                        .order($table::last_seq)
                        .into_boxed::<diesel::sqlite::Sqlite>();
                    match ending {
                        Some(status) => query
                            .filter($table::finished_at.is_not_null())
                            .filter($table::status.eq(status)),
                        None => query.filter($table::finished_at.is_null()),
                    }
                };
                let mut query = by_index();
                if !selection.filter.is_empty() {
                    let end = by_index().select($table::last_seq);
                    let end = end.row_after(signed(selection.rows) - 1).get_result::<i64>(conn);
                    if let Some(end) = end.optional()? {
                        through = through.min(unsigned(end));
                        query = query.filter($table::last_seq.le(end));
                    }
                    if ending.is_none() {
                        query = query.filter($table::status.eq_any(active.clone()));
                    }
                }
                $(if !selection.filter.categories.is_empty() {
                    query = query.filter($table::$category.eq_any(&selection.filter.categories));
                })?
                let query = query.select($row::as_select()).at_most(signed(selection.limit));
                let mut bytes = 0;
                for row in query.load_iter::<$row<'_>, diesel::connection::DefaultLoadingMode>(conn)? {
                    let (id, stored) = row?.into_stored()?;
                    bytes += stored.state.text_bytes();
                    let place = stored.last.seq;
                    add(id, stored);
                    if bytes > $crate::config::READ_PAGE_BYTES {
                        // This source may have more: the page ends here at the latest.
                        through = through.min(place);
                        break;
                    }
                }
            }
            Ok(selection.first_of(events, through))
        }

        fn last_events(
            &self,
            conn: &mut SqliteConnection,
            school: SchoolId,
            subjects: &[&str],
        ) -> QueryResult<HashMap<String, LastEvent>> {
            let rows: Vec<$row<'_>> = $table::table
                .filter($table::school_id.eq(school.get()))
                .filter($table::$id.eq_any(subjects))
                .select($row::as_select())
                .load(conn)?;
            let entry = |row: $row<'_>| {
                let category: &[Option<String>] = &[$(Some(row.$category.clone().into_owned()))?];
                let last = LastEvent {
                    seq: unsigned(row.last_seq),
                    status: row.status.into_owned(),
                    category: category.first().cloned().flatten(),
                };
                (row.$id.into_owned(), last)
            };
            Ok(rows.into_iter().map(entry).collect())
        }

        fn ended(
            &self,
            conn: &mut SqliteConnection,
            school: SchoolId,
            status: &str,
            limit: usize,
        ) -> QueryResult<Vec<(SubjectId, Stored)>> {
            use $crate::store::sqlite::limit::Limit as _;
            let rows: Vec<$row<'_>> = $table::table
                .filter($table::school_id.eq(school.get()))
                .filter($table::finished_at.is_not_null())
                .filter($table::status.eq(status))
                .order($table::last_seq.desc())
                .select($row::as_select())
                .at_most(signed(limit))
                .load(conn)?;
            rows.into_iter().map($row::into_stored).collect()
        }

        $(fn overdue(
            &self,
            conn: &mut SqliteConnection,
            now: Uptime,
            limit: usize,
        ) -> QueryResult<Vec<Overdue>> {
            $crate::store::sqlite::table::overdue_rows!(conn, $table by $id, now, limit, $check)
        })?

        fn sweep(
            &self,
            conn: &mut SqliteConnection,
            before: DateTime<Utc>,
            limit: usize,
        ) -> QueryResult<Vec<Address>> {
            use $crate::store::sqlite::limit::Limit as _;
            let gone: Vec<(i64, String)> = $table::table
                .inner_join(schools::table.on(schools::school_id.eq($table::school_id)))
                .filter($table::finished_at.lt(millis(before)))
                .filter($table::last_seq.le(schools::floor))
                .select(($table::school_id, $table::$id))
                .at_most(signed(limit))
                .load(conn)?;
            let mut addresses = Vec::with_capacity(gone.len());
            for (school, id) in gone {
                diesel::delete($table::table.find((school, &id))).execute(conn)?;
                let school = school.try_into().map_err(|_| unreadable("a school id"))?;
                addresses.push((
                    school,
                    $kind,
                    id.parse().map_err(|_| unreadable("a subject id"))?,
                ));
            }
            Ok(addresses)
        }
    };
}

/// Returns the subjects whose `check_uptime` has been reached.
macro_rules! overdue_rows {
    ($conn:ident, $table:ident by $id:ident, $now:ident, $limit:ident, $check:expr) => {{
        let rows: Vec<(i64, String)> = $table::table
            .filter($table::check_uptime.le(uptime_millis($now)))
            .order($table::check_uptime)
            .select(($table::school_id, $table::$id))
            .at_most(signed($limit))
            .load($conn)?;
        let overdue = |(school, id): (i64, String)| {
            Ok(Overdue {
                school: school.try_into().map_err(|_| unreadable("a school id"))?,
                subject: id.parse().map_err(|_| unreadable("a subject id"))?,
                command: $check,
            })
        };
        rows.into_iter().map(overdue).collect()
    }};
}

/// Combines conditions with OR.
macro_rules! either {
    ($only:expr) => { $only };
    ($first:expr, $($rest:expr),+) => { $first$(.or($rest))+ };
}

pub(super) use {any_table, either, in_order, overdue_rows, rows_of, table_of_what_ends};
