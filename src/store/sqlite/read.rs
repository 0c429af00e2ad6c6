//! Reads the log and the current states, one page at a time. Every query here is served by an index that returns the rows
//! in the required order; `EXPLAIN QUERY PLAN` must show neither a sort nor a scan. `subject_log` reads the events of one subject.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::connection::DefaultLoadingMode;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel::sqlite::SqliteConnection;

use super::bounds::{bounds, tag_at};
use super::counts::{counts, stalled};
use super::events::EventRow;
use super::limit::Limit;
use super::schema::{events, schools};
use super::subject_log::Subject;
use super::table::{HOUR_MILLIS, Selection, cut, from_millis, into_subject, place, unreadable};
use super::tables::{TABLES, table};
use crate::config::{READ_PAGE, READ_PAGE_BYTES, READ_WINDOW_ROWS, SUBJECT_EVENTS_SEARCHED};
use crate::event::Event;
use crate::id::{Epoch, Kind, Place, SchoolId, SubjectId};
use crate::kind::known_status;
use crate::log::{Bounds, Ending, LogRange, Page, StoredSubject, Tally, TallyQuery, Which};
use crate::scope::{Scope, without_superseded};
use crate::store::numbers::{signed, unsigned};
use crate::store::sources::{Source, sources};

/// Returns the places of the newest events of these schools.
pub(super) fn heads(
    conn: &mut SqliteConnection,
    schools: &[SchoolId],
) -> QueryResult<Vec<(SchoolId, Place)>> {
    let ids = schools.iter().map(|school| school.get());
    let rows: Vec<(i64, i64, Option<i64>)> = schools::table
        .filter(schools::school_id.eq_any(ids))
        .select((schools::school_id, schools::head, schools::head_tag))
        .load(conn)?;
    let head = |(school, head, tag): (i64, i64, Option<i64>)| {
        let school = school.try_into().map_err(|_| unreadable("a school id"))?;
        Ok((school, place(head, tag)))
    };
    rows.into_iter().map(head).collect()
}

/// The log is read instead of its sources if at least one in this many events is in scope.
const SCOPE_SHARE_MIN: usize = 8;

/// Returns every event after `after` up to `upto`, or as many as one read returns.
pub(super) fn range(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    school: SchoolId,
    after: u64,
    upto: u64,
) -> QueryResult<LogRange> {
    let Bounds { head, floor } = bounds(conn, school)?;
    let head = head.seq;
    let upto = upto.min(head);
    let part = part(conn, epoch, school, &Source::Everything, (after, upto))?;
    let through = match part.last() {
        Some(last) if !part.is_whole => last.seq,
        _ => upto,
    };
    let mut last = HashMap::new();
    if through < head {
        for (kind, table) in TABLES {
            let ticks = part.events.iter().filter(|event| event.is_tick());
            let of_kind = ticks.filter(|event| event.kind == *kind);
            let subjects: HashMap<&str, &SubjectId> = of_kind
                .map(|event| (event.subject.as_str(), &event.subject))
                .collect();
            if subjects.is_empty() {
                continue;
            }
            let names: Vec<&str> = subjects.keys().copied().collect();
            for (name, last_event) in table.last_events(conn, school, &names)? {
                if let Some(subject) = subjects.get(name.as_str()) {
                    last.insert((*kind, SubjectId::clone(subject)), last_event);
                }
            }
        }
    }
    Ok(LogRange {
        events: part.events,
        through,
        head,
        floor,
        last,
    })
}

/// Returns the events in scope after `after`. With `conflate`, leaves out ticks that a later event in scope supersedes.
pub(super) fn replay(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    scope: &Scope,
    after: u64,
    conflate: bool,
) -> QueryResult<Page> {
    let Bounds { head, floor } = bounds(conn, scope.school)?;
    let mut sources = sources(scope);
    let mut through = head;
    let mut events = Vec::new();
    if sources.len() > 1
        && let Some((found, upto)) = frequent(conn, epoch, scope, after, head)?
    {
        (events, through) = (found, upto);
        sources.clear();
    }
    for source in sources {
        let part = part(conn, epoch, scope.school, &source, (after, through.seq))?;
        if let Some(last) = part.last().filter(|_| !part.is_whole) {
            // This source may have more: the page ends where the first such source ends.
            through = through.min(last.place());
        }
        events.extend(part.events.into_iter().filter(|event| scope.matches(event)));
        // Done here, because otherwise memory would hold one page per source.
        through = cut(&mut events, through);
        // A wide event of a subject in scope comes from two sources.
        events.dedup_by_key(|event| event.seq);
    }
    if conflate {
        events = without_superseded(events);
        if through.seq < head.seq {
            leave_out_superseded_later(conn, scope, &mut events)?;
        }
    }
    Ok(Page {
        events,
        through,
        head,
        newest: head,
        floor: floor.seq,
    })
}

/// Returns the events in scope among the next ones of the log, and how far these go, if they are a considerable part of them
/// or all that follow. Then this costs less than reading each source.
fn frequent(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    scope: &Scope,
    after: u64,
    head: Place,
) -> QueryResult<Option<(Vec<Arc<Event>>, Place)>> {
    let part = part(
        conn,
        epoch,
        scope.school,
        &Source::Everything,
        (after, head.seq),
    )?;
    let read = part.events.len();
    let through = match part.last() {
        Some(last) if !part.is_whole => last.place(),
        _ => head,
    };
    let mut events = part.events;
    events.retain(|event| scope.matches(event));
    let is_enough = part.is_whole || events.len() * SCOPE_SHARE_MIN >= read;
    Ok(is_enough.then_some((events, through)))
}

/// The first events of a source.
struct Part {
    events: Vec<Arc<Event>>,
    /// Whether these are all events of the source.
    is_whole: bool,
}

impl Part {
    fn last(&self) -> Option<&Arc<Event>> {
        self.events.last()
    }
}

fn part(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    school: SchoolId,
    source: &Source<'_>,
    (after, through): (u64, u64),
) -> QueryResult<Part> {
    let mut part = Part {
        events: Vec::new(),
        is_whole: true,
    };
    let mut bytes = 0;
    let mut add = |row: EventRow<'_>| {
        let event = row.into_event(epoch)?;
        bytes += event.draft.fields.len();
        part.events.push(Arc::new(event));
        part.is_whole = part.events.len() < READ_PAGE && bytes <= READ_PAGE_BYTES;
        Ok(part.is_whole)
    };
    let mut query = events::table
        .filter(events::school_id.eq(school.get()))
        .filter(events::seq.gt(signed(after)))
        .filter(events::seq.le(signed(through)))
        .order(events::seq)
        .select(EventRow::as_select())
        .into_boxed();
    match *source {
        Source::Everything => {}
        Source::Subject(kind, id) => {
            let subject = Subject { school, kind, id };
            subject.read(conn, (after, through), READ_PAGE, add)?;
            return Ok(part);
        }
        Source::Wide(kind) => {
            query = query
                .filter(events::kind.eq(kind.collection()))
                .filter(events::wide);
        }
    }
    let query = query.at_most(signed(READ_PAGE));
    for row in query.load_iter::<EventRow<'_>, DefaultLoadingMode>(conn)? {
        if !add(row?)? {
            break;
        }
    }
    Ok(part)
}

/// Leaves out ticks whose subject has a later event in scope after this page.
fn leave_out_superseded_later(
    conn: &mut SqliteConnection,
    scope: &Scope,
    events: &mut Vec<Arc<Event>>,
) -> QueryResult<()> {
    for (kind, table) in TABLES {
        let ticks = events
            .iter()
            .filter(|event| event.is_tick() && event.kind == *kind);
        let subjects: Vec<&str> = ticks.map(|event| event.subject.as_str()).collect();
        if subjects.is_empty() {
            continue;
        }
        let last = table.last_events(conn, scope.school, &subjects)?;
        events.retain(|event| {
            let later = last
                .get(event.subject.as_str())
                .filter(|later| later.seq > event.seq);
            let superseded = later.is_some_and(|later| {
                scope
                    .filter
                    .passes(&later.status, later.category.as_deref())
            });
            !(event.is_tick() && event.kind == *kind && superseded)
        });
    }
    Ok(())
}

/// Returns the current states in scope, in the order of their last events.
pub(super) fn snapshot(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    scope: &Scope,
    after: u64,
    upto: Option<Place>,
) -> QueryResult<Page> {
    let Bounds { head, floor } = bounds(conn, scope.school)?;
    let upto = upto.unwrap_or(head);
    let mut events = Vec::new();
    let mut through = upto.seq;
    for (kind, table) in TABLES {
        let all = scope.listens_to_all(*kind);
        let subjects = scope.subjects(*kind);
        if !all && subjects.is_empty() {
            continue;
        }
        let selection = Selection {
            school: scope.school,
            subjects: (!all).then_some(subjects),
            filter: &scope.filter,
            active_only: scope.active_only,
            after,
            upto: upto.seq,
            limit: READ_PAGE,
            rows: READ_WINDOW_ROWS,
        };
        let part = table.snapshot(conn, epoch, &selection)?;
        // This kind may have more: the page ends where the first such kind ends.
        through = through.min(part.through);
        events.extend(part.events);
    }
    let through = match through == upto.seq {
        true => upto,
        false => Place::untagged(through),
    };
    let through = cut(&mut events, through);
    for event in &mut events {
        if event.tag.is_none() && event.seq > floor.seq {
            event.tag = tag_at(conn, scope.school, signed(event.seq))?;
        }
    }
    Ok(Page {
        events: events.into_iter().map(Arc::new).collect(),
        through,
        head: upto,
        newest: head,
        floor: floor.seq,
    })
}

/// Returns the last events of a subject, oldest first. Those of a given type are searched only among its newest events.
pub(super) fn last_events(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    school: SchoolId,
    kind: Kind,
    subject: &SubjectId,
    which: Which,
    limit: usize,
) -> QueryResult<Vec<Arc<Event>>> {
    let rows = match which {
        Which::Type(event_type) => {
            let id = subject.as_str();
            let subject = Subject { school, kind, id };
            subject.newest_of_type(conn, event_type.name, limit, SUBJECT_EVENTS_SEARCHED)?
        }
        Which::Milestones => events::table
            .filter(events::school_id.eq(school.get()))
            .filter(events::kind.eq(kind.collection()))
            .filter(events::subject_id.eq(subject.as_str()))
            .filter(events::milestone)
            .order(events::seq.desc())
            .select(EventRow::as_select())
            .at_most(signed(limit))
            .load::<EventRow<'_>>(conn)?,
    };
    let newest_last = rows.into_iter().rev();
    newest_last
        .map(|row| Ok(Arc::new(row.into_event(epoch)?)))
        .collect()
}

/// Returns how many subjects have ended with one status since a given time.
pub(super) fn ended_since(
    conn: &mut SqliteConnection,
    school: SchoolId,
    kind: Kind,
    status: &str,
    since: DateTime<Utc>,
) -> QueryResult<u64> {
    Ok(unsigned(
        table(kind).ended_since(conn, school, status, since)?,
    ))
}

/// Returns counts of a school's subjects of a kind.
pub(super) fn tally(
    conn: &mut SqliteConnection,
    school: SchoolId,
    query: &TallyQuery,
) -> QueryResult<Tally> {
    let kind = query.kind;
    let mut tally = Tally {
        by_status: counts(conn, school, kind)?,
        ..Tally::default()
    };
    if query.stalled {
        tally.stalled = stalled(conn, school, kind)?;
    }
    if let Some((status, since)) = query.ended {
        tally.ended = ended_since(conn, school, kind, status, since)?;
    }
    if let Some(parts) = table(kind).parts().filter(|_| query.open_parts) {
        tally.open_parts = parts.open(conn, school)?;
    }
    Ok(tally)
}

/// Returns the subjects that ended with one status, most recently ended first.
pub(super) fn ended(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    school: SchoolId,
    kind: Kind,
    status: &str,
    limit: usize,
) -> QueryResult<Vec<StoredSubject>> {
    let found = table(kind).ended(conn, school, status, limit)?;
    let subjects = found
        .into_iter()
        .map(|(id, stored)| into_subject(epoch, (school, kind, id), stored));
    Ok(subjects.collect())
}

/// Counts how the subjects of a kind have ended, by hour.
pub(super) fn endings(
    conn: &mut SqliteConnection,
    school: SchoolId,
    kind: Kind,
    since: DateTime<Utc>,
) -> QueryResult<Vec<Ending>> {
    let endings = table(kind).endings(conn, school, since)?;
    let ending = |(hour, status, count): (i64, String, i64)| {
        Ok(Ending {
            from: from_millis(hour * HOUR_MILLIS)?,
            status: known_status(&status).ok_or_else(|| unreadable("a status"))?,
            count: unsigned(count),
        })
    };
    endings.into_iter().map(ending).collect()
}

/// Returns the schools that have a log, in ascending order.
pub(super) fn schools(
    conn: &mut SqliteConnection,
    after: Option<SchoolId>,
    limit: usize,
) -> QueryResult<Vec<SchoolId>> {
    let ids: Vec<i64> = schools::table
        .filter(schools::school_id.gt(after.map_or(0, SchoolId::get)))
        .order(schools::school_id)
        .select(schools::school_id)
        .at_most(signed(limit))
        .load(conn)?;
    let school = |id: i64| id.try_into().map_err(|_| unreadable("a school id"));
    ids.into_iter().map(school).collect()
}

/// Returns the size of the database in bytes, without its journal file.
pub(super) fn size(conn: &mut SqliteConnection) -> QueryResult<u64> {
    #[derive(QueryableByName)]
    struct Size {
        #[diesel(sql_type = BigInt)]
        bytes: i64,
    }
    let pages =
        "SELECT page_count * page_size AS bytes FROM pragma_page_count(), pragma_page_size()";
    let size: Size = diesel::sql_query(pages).get_result(conn)?;
    Ok(unsigned(size.bytes))
}
