//! Reads the log and the current states, one page at a time. Every query here is served by an index that returns the rows
//! in the required order; `EXPLAIN QUERY PLAN` must show neither a sort nor a scan.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::connection::DefaultLoadingMode;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel::sqlite::SqliteConnection;

use super::TABLES;
use super::events::EventRow;
use super::schema::{counts, events, schools};
use super::table::{
    HOUR_MILLIS, Selection, cut, from_millis, into_subject, place, table, unreadable,
};
use crate::config::{READ_PAGE, READ_PAGE_BYTES, READ_WINDOW_ROWS, SUBJECT_EVENTS_SEARCHED};
use crate::event::Event;
use crate::id::{Cursor, Epoch, Kind, Place, SchoolId, SubjectId, Tag};
use crate::kind::known_status;
use crate::log::{Bounds, Ending, Page, StoredSubject, Stretch, Which};
use crate::scope::{Scope, without_superseded};
use crate::store::numbers::{signed, unsigned};
use crate::store::sources::{Source, sources};

/// Returns the bounds of a school's log; both are 0 before its first event.
pub(super) fn bounds(conn: &mut SqliteConnection, school: SchoolId) -> QueryResult<Bounds> {
    type Row = (i64, Option<i64>, i64, Option<i64>);
    let row: Option<Row> = schools::table
        .find(school.get())
        .select((
            schools::head,
            schools::head_tag,
            schools::floor,
            schools::floor_tag,
        ))
        .first(conn)
        .optional()?;
    let (head, head_tag, floor, floor_tag) = row.unwrap_or_default();
    let mut bounds = Bounds {
        head: place(head, head_tag),
        floor: place(floor, floor_tag),
    };
    if bounds.head.tag.is_none() && head > floor {
        // The row was written before tags were stored.
        bounds.head.tag = tag_at(conn, school, head)?;
    }
    Ok(bounds)
}

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

/// Returns the tag of an event that is in the log.
pub(super) fn tag_at(
    conn: &mut SqliteConnection,
    school: SchoolId,
    seq: i64,
) -> QueryResult<Option<Tag>> {
    let row = events::table
        .find((school.get(), seq))
        .select(EventRow::as_select())
        .first::<EventRow<'_>>(conn)
        .optional()?;
    // The tag does not depend on the epoch.
    let event = row
        .map(|row| row.into_event(Cursor::FOREIGN.epoch))
        .transpose()?;
    Ok(event.and_then(|event| event.tag))
}

/// Returns every event after `after` up to `upto`, or as many as one read returns.
pub(super) fn stretch(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    school: SchoolId,
    after: u64,
    upto: u64,
) -> QueryResult<Stretch> {
    let Bounds { head, floor } = bounds(conn, school)?;
    let (head, floor) = (head.seq, floor.seq);
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
            for (name, own) in table.last_events(conn, school, &names)? {
                if let Some(subject) = subjects.get(name.as_str()) {
                    last.insert((*kind, SubjectId::clone(subject)), own);
                }
            }
        }
    }
    Ok(Stretch {
        events: part.events,
        through,
        head,
        floor,
        last,
    })
}

/// Returns the events in scope after `after`. With `fold`, leaves out ticks that a later event in scope supersedes.
pub(super) fn replay(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    scope: &Scope,
    after: u64,
    fold: bool,
) -> QueryResult<Page> {
    let Bounds { head, floor } = bounds(conn, scope.school)?;
    let mut through = head;
    let mut told = Vec::new();
    for source in sources(scope) {
        let part = part(conn, epoch, scope.school, &source, (after, through.seq))?;
        if let Some(last) = part.last().filter(|_| !part.is_whole) {
            // This source may have more: the page ends where the first such source ends.
            through = through.min(last.place());
        }
        told.extend(part.events.into_iter().filter(|event| scope.matches(event)));
        // Done here, because otherwise memory would hold one page per source.
        through = cut(&mut told, through);
        // A wide event of a subject in scope comes from two sources.
        told.dedup_by_key(|event| event.seq);
    }
    if fold {
        told = without_superseded(told);
        if through.seq < head.seq {
            leave_out_superseded_later(conn, scope, &mut told)?;
        }
    }
    Ok(Page {
        events: told,
        through,
        head,
        newest: head,
        floor: floor.seq,
    })
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
    let mut query = events::table
        .filter(events::school_id.eq(school.get()))
        .filter(events::seq.gt(signed(after)))
        .filter(events::seq.le(signed(through)))
        .order(events::seq)
        .limit(signed(READ_PAGE))
        .select(EventRow::as_select())
        .into_boxed();
    match source {
        Source::Everything => {}
        Source::Subject(kind, subject) => {
            query = query
                .filter(events::kind.eq(kind.collection()))
                .filter(events::subject_id.eq(*subject));
        }
        Source::Wide(kind) => {
            query = query
                .filter(events::kind.eq(kind.collection()))
                .filter(events::wide);
        }
    }
    let mut part = Part {
        events: Vec::new(),
        is_whole: true,
    };
    let mut bytes = 0;
    for row in query.load_iter::<EventRow<'_>, DefaultLoadingMode>(conn)? {
        let event = row?.into_event(epoch)?;
        bytes += event.draft.fields.len();
        part.events.push(Arc::new(event));
        if part.events.len() == READ_PAGE || bytes > READ_PAGE_BYTES {
            part.is_whole = false;
            break;
        }
    }
    Ok(part)
}

/// Leaves out ticks whose subject has a later event in scope after this page.
fn leave_out_superseded_later(
    conn: &mut SqliteConnection,
    scope: &Scope,
    told: &mut Vec<Arc<Event>>,
) -> QueryResult<()> {
    for (kind, table) in TABLES {
        let ticks = told
            .iter()
            .filter(|event| event.is_tick() && event.kind == *kind);
        let subjects: Vec<&str> = ticks.map(|event| event.subject.as_str()).collect();
        if subjects.is_empty() {
            continue;
        }
        let last = table.last_events(conn, scope.school, &subjects)?;
        told.retain(|event| {
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
    let mut told = Vec::new();
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
        told.extend(part.events);
    }
    let through = match through == upto.seq {
        true => upto,
        false => Place::untagged(through),
    };
    let through = cut(&mut told, through);
    for event in &mut told {
        if event.tag.is_none() && event.seq > floor.seq {
            event.tag = tag_at(conn, scope.school, signed(event.seq))?;
        }
    }
    Ok(Page {
        events: told.into_iter().map(Arc::new).collect(),
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
    let query = events::table
        .filter(events::school_id.eq(school.get()))
        .filter(events::kind.eq(kind.collection()))
        .filter(events::subject_id.eq(subject.as_str()))
        .order(events::seq.desc())
        .limit(signed(limit))
        .select(EventRow::as_select())
        .into_boxed();
    let query = match which {
        Which::Type(event_type) => {
            let first = events::table
                .filter(events::school_id.eq(school.get()))
                .filter(events::kind.eq(kind.collection()))
                .filter(events::subject_id.eq(subject.as_str()))
                .order(events::seq.desc())
                .limit(1)
                .offset(signed(SUBJECT_EVENTS_SEARCHED) - 1)
                .select(events::seq)
                .first::<i64>(conn)
                .optional()?;
            query
                .filter(events::name.eq(event_type.name))
                .filter(events::seq.ge(first.unwrap_or_default()))
        }
        Which::Milestones => query.filter(events::milestone),
    };
    let rows = query.load::<EventRow<'_>>(conn)?;
    let newest_last = rows.into_iter().rev();
    newest_last
        .map(|row| Ok(Arc::new(row.into_event(epoch)?)))
        .collect()
}

/// Returns how many subjects of a kind there are, by status, without statuses that no subject has. Triggers maintain the
/// counts.
pub(super) fn counts(
    conn: &mut SqliteConnection,
    school: SchoolId,
    kind: Kind,
) -> QueryResult<Vec<(&'static str, u64)>> {
    let counts: Vec<(String, i64)> = counts::table
        .filter(counts::school_id.eq(school.get()))
        .filter(counts::what.eq(kind.collection()))
        .filter(counts::count.gt(0))
        .select((counts::status, counts::count))
        .load(conn)?;
    let known = |(status, count): (String, i64)| {
        let status = known_status(&status).ok_or_else(|| unreadable("a status"))?;
        Ok((status, unsigned(count)))
    };
    counts.into_iter().map(known).collect()
}

/// Returns how many subjects of a kind have stalled.
pub(super) fn stalled(
    conn: &mut SqliteConnection,
    school: SchoolId,
    kind: Kind,
) -> QueryResult<u64> {
    count_of(conn, school, &format!("stalled {}", kind.collection()))
}

/// Returns a count that is not kept by status.
pub(super) fn count_of(
    conn: &mut SqliteConnection,
    school: SchoolId,
    what: &str,
) -> QueryResult<u64> {
    let count: Option<i64> = counts::table
        .find((school.get(), what, ""))
        .select(counts::count)
        .first(conn)
        .optional()?;
    Ok(unsigned(count.unwrap_or_default()))
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
        .limit(signed(limit))
        .select(schools::school_id)
        .load(conn)?;
    let school = |id: i64| id.try_into().map_err(|_| unreadable("a school id"));
    ids.into_iter().map(school).collect()
}

/// Returns the size of the database in bytes, without the data that is still in its journal.
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use diesel::connection::InstrumentationEvent;
    use diesel::sql_types::Text;
    use diesel_migrations::MigrationHarness;

    use super::super::job_texts;
    use super::super::lists::Window;
    use super::*;
    use crate::kind;
    use crate::log::{ListQuery, Order, PartQuery, Stalled};
    use crate::scope::Filter;

    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        detail: String,
    }

    /// Returns SQLite's plans for every query that `read` makes.
    fn plans(read: impl FnOnce(&mut SqliteConnection)) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plans.db");
        let open = || SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        let mut conn = open();
        super::super::search::register(&mut conn).unwrap();
        conn.run_pending_migrations(super::super::opening::MIGRATIONS)
            .unwrap();
        let mut conn = open();
        super::super::search::register(&mut conn).unwrap();
        let made: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&made);
        conn.set_instrumentation(move |event: InstrumentationEvent<'_>| {
            if let InstrumentationEvent::StartQuery { query, .. } = event {
                heard.lock().unwrap().push(query.to_string());
            }
        });
        read(&mut conn);
        let made = std::mem::take(&mut *made.lock().unwrap());
        let reads = ["SELECT", "WITH"];
        let queries = made
            .iter()
            .filter(|query| reads.iter().any(|word| query.starts_with(word)));
        queries
            .map(|query| {
                let sql = query.split(" -- binds").next().unwrap();
                let steps: Vec<Step> = diesel::sql_query(format!("EXPLAIN QUERY PLAN {sql}"))
                    .load(&mut conn)
                    .unwrap();
                let steps: Vec<String> = steps.into_iter().map(|step| step.detail).collect();
                steps.join("; ")
            })
            .collect()
    }

    fn scope(channels: &[&str]) -> Scope {
        let channels = channels.iter().map(|text| kind::channel(text).unwrap());
        Scope::new(1.try_into().unwrap(), channels)
    }

    /// Runs every query that a list can make: by an index, and by a search.
    fn listed(conn: &mut SqliteConnection, school: SchoolId, kind: Kind, query: &ListQuery) {
        let table = table(kind);
        let mut beyond = query.clone();
        for place in [None, Some(7)] {
            beyond.beyond = place;
            table.list(conn, school, &beyond).unwrap();
            let sources = table.sources(&beyond);
            let mut window = table.window(conn, school, &beyond, sources, 100).unwrap();
            for (_, seqs) in &mut window.parts {
                *seqs = vec![6, 5];
            }
            let wanted = query.text.as_deref();
            table
                .search(conn, school, &beyond, &window, wanted)
                .unwrap();
        }
    }

    #[test]
    fn a_window_is_a_range_of_one_index_and_a_search_reads_nothing_else() {
        let school = 1.try_into().unwrap();
        let one = |query: ListQuery, index: &str| {
            let jobs = table(kind::job::KIND);
            let sources = jobs.sources(&query);
            let windows = plans(|conn| {
                let window = jobs.window(conn, school, &query, sources.clone(), 100);
                drop(window.unwrap());
            });
            assert!(!windows.is_empty());
            for plan in windows {
                assert!(plan.contains(index), "{index}: {plan}");
            }
            let window = Window {
                end: None,
                parts: vec![(sources[0].clone(), vec![6, 5])],
            };
            let searches = plans(|conn| {
                let found = jobs.search(conn, school, &query, &window, Some("x"));
                found.unwrap();
            });
            assert_eq!(searches.len(), 1);
            assert!(searches[0].contains("created_seq=?"), "{searches:?}");
        };
        let query = ListQuery {
            limit: 10,
            beyond: Some(7),
            ..ListQuery::default()
        };
        one(
            query.clone(),
            "jobs_by_creation (school_id=? AND created_seq",
        );
        let failed = ListQuery {
            statuses: vec!["failed"],
            ..query.clone()
        };
        let by_status = "jobs_by_status (school_id=? AND status=? AND created_seq";
        one(failed.clone(), by_status);
        let typed = ListQuery {
            categories: vec!["a".into()],
            ..failed
        };
        let by_type = "jobs_by_type (school_id=? AND job_type=? AND created_seq";
        one(typed.clone(), by_type);
        let stalled = ListQuery {
            stalled: Stalled::Only,
            ..typed
        };
        one(stalled, "jobs_stalled (school_id=? AND created_seq");
    }

    #[test]
    fn a_window_of_the_index_of_texts_is_a_range_of_its_rows_and_of_each_status_that_goes_on() {
        let school = 1.try_into().unwrap();
        for order in [Order::Newest, Order::Oldest] {
            let query = ListQuery {
                limit: 10,
                beyond: Some(7),
                order,
                ..ListQuery::default()
            };
            let terms = job_texts::terms(&query, "report").unwrap();
            let made = plans(|conn| {
                diesel::sql_query(
                    "INSERT INTO jobs (school_id, job_id, job_type, status, message, metadata, attempt, stalled, cancel_requested,
                         created_at, heard_at, finished_at, stall_after_secs, timeout_secs, created_seq, last_seq, last_at)
                     SELECT 1, value, 't', 'failed', 'Report', '{}', 1, FALSE, FALSE, 1, 1, 1, 1, 1, value, value, 1 FROM json_each('[5,6,7,8]')",
                )
                .execute(conn)
                .unwrap();
                let window = job_texts::window(conn, school, &query, &terms, 10).unwrap();
                let found: Vec<i64> = window
                    .parts
                    .iter()
                    .flat_map(|(_, seqs)| seqs.clone())
                    .collect();
                match order {
                    Order::Newest => assert_eq!(found, [6, 5]),
                    Order::Oldest => assert_eq!(found, [8]),
                }
            });
            let of = |what: &str| made.iter().filter(|plan| plan.contains(what)).count();
            let of_index: Vec<&String> = made
                .iter()
                .filter(|plan| plan.contains("job_texts"))
                .collect();
            // Both bounds of the range.
            let has_both = of_index
                .iter()
                .all(|plan| plan.contains('<') && plan.contains('>'));
            assert!(of_index.len() == 1 && has_both, "{of_index:#?}");
            assert_eq!(
                of("jobs_by_status (school_id=? AND status=? AND created_seq"),
                6,
                "{made:#?}"
            );
            assert_eq!(of("TEMP B-TREE"), 0, "{made:#?}");
        }
    }

    #[test]
    fn every_read_goes_by_an_index_in_the_order_that_it_is_told_in() {
        let epoch = Epoch::generate();
        let school = 1.try_into().unwrap();
        let all = plans(|conn| {
            let filter = Filter {
                statuses: ["failed".to_owned(), "online".to_owned()].into(),
                ..Filter::default()
            };
            for scope in [
                scope(&["schools/1"]),
                scope(&["jobs"]).with_active_only(),
                scope(&["schools/1"]).filtered(filter),
                scope(&["jobs"]).filtered(Filter {
                    categories: ["a".to_owned()].into(),
                    ..Filter::default()
                }),
                scope(&["jobs/a", "enrollments/a", "devices/a", "characteristics/a"]),
            ] {
                replay(conn, epoch, &scope, 0, true).unwrap();
                snapshot(conn, epoch, &scope, 0, None).unwrap();
            }
            let query = ListQuery {
                limit: 10,
                ..ListQuery::default()
            };
            for kind in kind::KINDS {
                listed(conn, school, *kind, &query);
                for other in [
                    ListQuery {
                        text: Some("x".into()),
                        ..query.clone()
                    },
                    ListQuery {
                        statuses: vec!["in_progress", "failed"],
                        categories: vec!["a".into(), "b".into()],
                        stalled: Stalled::Apart { wanted: true },
                        ..query.clone()
                    },
                    ListQuery {
                        order: Order::Oldest,
                        ..query.clone()
                    },
                    ListQuery {
                        stalled: Stalled::Only,
                        ..query.clone()
                    },
                    ListQuery {
                        statuses: vec!["in_progress", "failed"],
                        stalled: Stalled::Apart { wanted: true },
                        ..query.clone()
                    },
                ] {
                    listed(conn, school, *kind, &other);
                }
                ended(conn, epoch, school, *kind, "failed", 10).unwrap();
                ended_since(conn, school, *kind, "failed", chrono::Utc::now()).unwrap();
                stalled(conn, school, *kind).unwrap();
                table(*kind).overdue(conn, Default::default(), 10).unwrap();
                table(*kind).sweep(conn, chrono::Utc::now(), 10).unwrap();
                table(*kind).holder(conn, school, "door").unwrap();
                counts(conn, school, *kind).unwrap();
                endings(conn, school, *kind, chrono::Utc::now()).unwrap();
                for which in [
                    Which::Milestones,
                    Which::Type(kind::description(*kind).event_types[0]),
                ] {
                    let subject = "a".parse().unwrap();
                    last_events(conn, epoch, school, *kind, &subject, which, 10).unwrap();
                }
            }
            let violations = table(kind::characteristic::KIND).parts().unwrap();
            for open in [None, Some(true), Some(false)] {
                let query = PartQuery {
                    open,
                    limit: 10,
                    ..PartQuery::default()
                };
                violations.list(conn, school, &query).unwrap();
            }
            violations.open(conn, school).unwrap();
            super::super::devices::not_offline(conn, None, 10).unwrap();
            violations.sweep(conn, chrono::Utc::now(), 10).unwrap();
        });
        assert!(all.len() > 30, "{all:#?}");
        for plan in &all {
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
            // All devices are checked once, at the start.
            let at_start = plan.contains("devices USING INDEX sqlite_autoindex_devices_1");
            // The hours and terminal statuses are constant rows, a few of each.
            let made_up = plan
                .replace("SCAN CONSTANT ROW", "")
                .replace("SCAN stretches", "")
                .replace("SCAN ends VIRTUAL TABLE", "");
            assert!(!made_up.contains("SCAN") || at_start, "{plan}");
        }
    }

    #[test]
    fn a_replay_of_one_subject_reads_nothing_else_of_the_log() {
        let epoch = Epoch::generate();
        for (channel, indexes) in [
            ("jobs/a", vec!["events_by_subject"]),
            ("devices/a", vec!["events_by_subject"]),
            (
                "characteristics/a",
                vec!["events_by_subject", "events_wide"],
            ),
        ] {
            let plans = plans(|conn| {
                replay(conn, epoch, &scope(&[channel]), 0, false).unwrap();
            });
            let of_log: Vec<&String> = plans
                .iter()
                .filter(|plan| plan.contains("events"))
                .collect();
            assert_eq!(of_log.len(), indexes.len(), "{plans:#?}");
            for (plan, index) in of_log.iter().zip(indexes) {
                assert!(
                    plan.contains(&format!("USING INDEX {index} ")),
                    "{channel}: {plan}"
                );
            }
        }
        let plans = plans(|conn| {
            snapshot(conn, epoch, &scope(&["characteristics/a"]), 0, None).unwrap();
        });
        let open = plans.iter().find(|plan| plan.contains("violations"));
        assert!(
            open.unwrap().contains("violations_open_of_characteristic"),
            "{open:?}"
        );
    }
}
