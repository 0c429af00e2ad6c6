//! Tests of how SQLite executes this module's statements: which indexes it uses, and how often it compiles them.

use std::sync::{Arc, Mutex};

use diesel::connection::InstrumentationEvent;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel::sqlite::SqliteConnection;
use diesel_migrations::MigrationHarness;

use super::counts::{counts, stalled};
use super::read::{ended, ended_since, endings, last_events, replay, schools, snapshot};
use super::sources::Window;
use super::sweep::{self, Retention, Round};
use super::tables::table;
use super::{SqliteStore, job_texts};
use crate::config::Settings;
use crate::id::{Epoch, Kind, SchoolId};
use crate::kind::{self, Command, characteristic, job};
use crate::log::{
    Committed, Envelope, Idempotency, Journal, ListQuery, Order, PartQuery, Stalled, Which,
};
use crate::scope::{Filter, Scope};

#[derive(QueryableByName)]
struct Step {
    #[diesel(sql_type = Text)]
    detail: String,
}

/// Opens a new database as the store does.
pub(super) fn opened(folder: &std::path::Path) -> SqliteConnection {
    let path = folder.join("plans.db");
    let open = || {
        let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        super::functions::register(&mut conn).unwrap();
        conn
    };
    open()
        .run_pending_migrations(super::migrations::MIGRATIONS)
        .unwrap();
    open()
}

/// Returns SQLite's plans for every query that `read` makes.
fn plans(read: impl FnOnce(&mut SqliteConnection)) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut conn = opened(folder.path());
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

/// Makes every read that the store makes.
fn every_read(conn: &mut SqliteConnection) {
    let epoch = Epoch::generate();
    let school = 1.try_into().unwrap();
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
        for filtered in [
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
            listed(conn, school, *kind, &filtered);
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
    super::devices::not_offline(conn, None, 10).unwrap();
    violations.sweep(conn, chrono::Utc::now(), 10).unwrap();
    // A log that may have something to remove.
    diesel::sql_query(
        "INSERT OR IGNORE INTO schools (school_id, head, floor, bytes, answer_bytes) VALUES (9, 1, 0, 1, 1)",
    )
    .execute(conn)
    .unwrap();
    let retention = Retention::of(&Settings::default());
    let (mut round, now) = (Round::default(), chrono::Utc::now());
    sweep::find(conn, &mut round, &retention, now).unwrap();
    super::answers::drop_oldest(conn, 9, 0).unwrap();
    schools(conn, None, 10).unwrap();
}

#[test]
fn every_read_uses_an_index_in_the_order_of_its_result() {
    let all = plans(every_read);
    assert!(all.len() > 30, "{all:#?}");
    for plan in &all {
        // A run of a subject's events collects their numbers.
        let plan = match plan.contains("RECURSIVE STEP; SCAN run") {
            true => plan
                .replace("UNION USING TEMP B-TREE", "")
                .replace("SCAN run", ""),
            false => plan.clone(),
        };
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

/// Writes ticks of so many jobs in turn into the log of a school.
fn fill(conn: &mut SqliteConnection, events: u64, jobs: u64) {
    let insert = format!(
        "INSERT INTO events (school_id, seq, kind, subject_id, name, milestone, wide, status, at, fields)
         WITH RECURSIVE numbers (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM numbers WHERE seq < {events})
         SELECT 1, seq, 'jobs', seq % {jobs}, 'job_progress', FALSE, FALSE, 'in_progress', 1, '{{}}' FROM numbers"
    );
    diesel::sql_query(insert).execute(conn).unwrap();
    let head = format!(
        "INSERT INTO schools (school_id, head, head_tag, floor) VALUES (1, {events}, 1, 0)"
    );
    diesel::sql_query(head).execute(conn).unwrap();
}

#[test]
fn channels_that_make_up_much_of_a_log_are_read_together() {
    let channels: Vec<String> = (0..50).map(|number| format!("jobs/{number}")).collect();
    let channels: Vec<&str> = channels.iter().map(String::as_str).collect();
    for (all, most) in [(100, 3), (1_000, 200)] {
        let plans = plans(|conn| {
            fill(conn, 3_000, all);
            let (mut after, mut found) = (0, Vec::new());
            while after < 3_000 {
                let page =
                    replay(conn, Epoch::generate(), &scope(&channels), after, false).unwrap();
                found.extend(page.events.iter().map(|event| event.seq));
                after = page.through.seq;
            }
            let expected: Vec<u64> = (1..=3_000).filter(|seq| seq % all < 50).collect();
            assert_eq!(found, expected, "{all}");
        });
        let pages = plans.iter().filter(|plan| plan.contains("schools")).count();
        assert!(
            plans.len() <= most * pages,
            "{} queries for {pages} pages",
            plans.len()
        );
    }
}

#[test]
fn the_milestones_of_a_subject_are_read_without_its_ticks() {
    let plans = plans(|conn| {
        let (school, subject) = (1.try_into().unwrap(), "a".parse().unwrap());
        let which = Which::Milestones;
        last_events(
            conn,
            Epoch::generate(),
            school,
            job::KIND,
            &subject,
            which,
            10,
        )
        .unwrap();
    });
    assert!(
        plans[0].contains("INDEX events_milestones (school_id=? AND kind=? AND subject_id=?)"),
        "{plans:#?}"
    );
}

#[test]
fn a_replay_of_one_subject_reads_nothing_else_of_the_log() {
    let epoch = Epoch::generate();
    let by_subject = "(school_id=? AND kind=? AND subject_id=? AND seq>?";
    for (channel, wide) in [("jobs/a", 0), ("devices/a", 0), ("characteristics/a", 1)] {
        let plans = plans(|conn| {
            fill(conn, 1_000, 10);
            replay(conn, epoch, &scope(&[channel]), 0, false).unwrap();
        });
        let of_log = plans.iter().flat_map(|plan| plan.split("; "));
        let of_log: Vec<&str> = of_log.filter(|step| step.contains(" events ")).collect();
        let with = |text: &str| of_log.iter().filter(|step| step.contains(text)).count();
        // Where a run ends and where it begins, without reading rows.
        let covering = "USING COVERING INDEX events_by_subject";
        assert_eq!(
            with(covering),
            with("events_by_subject"),
            "{channel}: {of_log:#?}"
        );
        assert_eq!(with(by_subject), 2, "{channel}: {of_log:#?}");
        // Its other events, and what it found.
        let one = "SEARCH events USING PRIMARY KEY (school_id=? AND seq=?)";
        assert_eq!(with(one), 2, "{channel}: {of_log:#?}");
        assert_eq!(with("events_wide"), wide, "{channel}: {of_log:#?}");
        // With several sources, it looks first how much of the log they are.
        assert_eq!(of_log.len(), 4 + 2 * wide, "{channel}: {of_log:#?}");
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

/// A statement that a connection keeps.
#[derive(QueryableByName, Debug)]
struct Kept {
    #[diesel(sql_type = Text)]
    sql: String,
    /// How often it was compiled again because a value was bound to it.
    #[diesel(sql_type = BigInt)]
    reprep: i64,
    #[diesel(sql_type = BigInt)]
    run: i64,
}

/// Returns the statements that were carried out more than once.
fn repeated(conn: &mut SqliteConnection) -> QueryResult<Vec<Kept>> {
    // Needs a flag of SQLite: see `LIBSQLITE3_FLAGS` in `.cargo/config.toml`.
    diesel::sql_query(
        "SELECT sql, reprep, run FROM sqlite_stmt
         WHERE run > 1 AND sql NOT LIKE '%__diesel_schema_migrations%'",
    )
    .load(conn)
}

fn assert_compiled_once(kept: &[Kept], least: usize) {
    assert!(kept.len() >= least, "{kept:#?}");
    let again: Vec<_> = kept
        .iter()
        .filter(|statement| statement.reprep > 0)
        .collect();
    assert!(again.is_empty(), "{again:#?}");
}

#[test]
fn a_read_that_is_repeated_is_not_compiled_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut conn = opened(folder.path());
    for _ in 0..3 {
        every_read(&mut conn);
    }
    assert_compiled_once(&repeated(&mut conn).unwrap(), 40);
}

#[tokio::test]
async fn what_the_writer_repeats_is_not_compiled_again() {
    let folder = tempfile::tempdir().unwrap();
    let (committed, _batches) = Committed::channel(100);
    let path = folder.path().join("test.db");
    let store = SqliteStore::open(&Settings::default(), &path, committed, &[]).unwrap();
    let school = 1.try_into().unwrap();
    for number in 0..4 {
        let job = |command| (format!("job-{number}"), Command::Job(command));
        let chart = |command| (format!("c-{number}"), Command::Characteristic(command));
        for (id, command) in [
            job(job::Command::Create(
                serde_json::from_str(r#"{"job_type": "t"}"#).unwrap(),
            )),
            job(job::Command::Start(serde_json::from_str("{}").unwrap())),
            job(job::Command::Progress(
                serde_json::from_str(r#"{"progress": 1}"#).unwrap(),
            )),
            job(job::Command::Progress(
                serde_json::from_str(r#"{"progress": 2}"#).unwrap(),
            )),
            job(job::Command::Complete(serde_json::from_str("{}").unwrap())),
            chart(characteristic::Command::Register(
                serde_json::from_str("{}").unwrap(),
            )),
            chart(characteristic::Command::Sample(
                serde_json::from_str(r#"{"value": 1}"#).unwrap(),
            )),
        ] {
            let key = Idempotency {
                key: format!("{id} {command:?}"),
                fingerprint: "f".into(),
            };
            let envelope = Envelope {
                idempotency: Some(key),
                ..Envelope::new(id.parse().unwrap(), command)
            };
            let receipts = store.append(school, vec![envelope]).await.unwrap();
            assert!(receipts[0].is_ok(), "{receipts:?}");
        }
    }
    let kept = store.aside(repeated).await.unwrap();
    assert_compiled_once(&kept, 10);
    store.close().await.unwrap();
}

#[test]
fn no_query_of_the_store_binds_a_limit_as_it_is() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/sqlite");
    let mut files = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        files += 1;
        for word in [".limit(", ".first(conn", ".first::<", "LIMIT ?"] {
            let is_absent = path.ends_with("plans.rs") || !text.contains(word);
            assert!(is_absent, "{word} in {}", path.display());
        }
    }
    assert!(files > 20, "{files}");
}

#[tokio::test]
async fn a_tick_writes_no_index_but_those_of_its_places_in_the_log_and_fires_no_trigger() {
    let folder = tempfile::tempdir().unwrap();
    let (committed, _batches) = Committed::channel(100);
    let path = folder.path().join("test.db");
    let store = SqliteStore::open(&Settings::default(), &path, committed, &[]).unwrap();
    let school = 1.try_into().unwrap();
    let send = async |command| {
        let envelope = Envelope::new("j".parse().unwrap(), Command::Job(command));
        let receipts = store.append(school, vec![envelope]).await.unwrap();
        assert!(receipts[0].is_ok(), "{receipts:?}");
    };
    send(job::Command::Create(
        serde_json::from_str(r#"{"job_type": "t"}"#).unwrap(),
    ))
    .await;
    const TICKS: i64 = 10;
    // The first of them starts the job.
    for progress in 0..=TICKS {
        let body = serde_json::json!({ "progress": progress, "message": "m" });
        send(job::Command::Progress(
            serde_json::from_value(body).unwrap(),
        ))
        .await;
    }
    let kept = store.aside(repeated).await.unwrap();
    let ticks = kept
        .iter()
        .find(|statement| statement.sql.starts_with("UPDATE jobs SET progress"));
    // Some ticks also move the time of the next check, which has an index.
    let ticks = ticks.filter(|statement| statement.run > TICKS / 2);
    let ticks = ticks.unwrap_or_else(|| panic!("{kept:#?}"));
    let plan = format!("EXPLAIN {}", ticks.sql);
    let read = store.read(school, move |conn| {
        diesel::sql_query(&plan).load::<Opened>(conn)
    });
    let steps = read.await.unwrap();
    let count = |opcode| steps.iter().filter(|step| step.opcode == opcode).count();
    // `jobs_active` and `jobs_ended`. A row is in only one of them, but the plan contains both.
    assert_eq!(
        (count("IdxInsert"), count("Program")),
        (2, 0),
        "{}",
        ticks.sql
    );
    store.close().await.unwrap();
}

/// A step of a compiled statement.
#[derive(QueryableByName)]
struct Opened {
    #[diesel(sql_type = Text)]
    opcode: String,
}
