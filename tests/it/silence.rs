//! Silence is measured in uptime: a restart does not count as a sign of life, nor downtime as silence. Real restarts of the real binary, and
//! clocks that jump while the server is down.

use std::path::Path;
use std::sync::Arc;

use diesel::connection::{Connection, SimpleConnection};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use serde_json::{Value, json};
use tidings::config::PRESENCE_FLUSH_PERIOD;
use tidings::kind::{device, enrollment, job};

use crate::support::*;

/// By how much, in milliseconds of uptime, an end may come late: the watchdog's period, and a busy machine.
const LATE_MS: u64 = 4_000;
/// How long, in milliseconds of uptime, each server lives that is restarted over and over.
const LIFE_MS: u64 = 1_000;
/// So many lives are enough for anything here to end.
const LIVES: usize = 40;

pub(crate) fn connect(database: &Path) -> SqliteConnection {
    let mut conn = SqliteConnection::establish(database.to_str().unwrap()).unwrap();
    conn.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    conn
}

/// The uptime in milliseconds that is saved in a database; 0 if none is yet.
fn saved_uptime(conn: &mut SqliteConnection) -> u64 {
    #[derive(QueryableByName)]
    struct Saved {
        #[diesel(sql_type = diesel::sql_types::Text)]
        value: String,
    }
    let saved: Vec<Saved> = diesel::sql_query("SELECT value FROM meta WHERE key = 'uptime'")
        .load(conn)
        .unwrap();
    saved
        .first()
        .map_or(0, |saved| saved.value.parse().unwrap())
}

/// Waits until so much more uptime is saved.
pub(crate) async fn live_on(database: &Path, millis: u64) {
    let mut conn = connect(database);
    let begin = saved_uptime(&mut conn);
    until("uptime is saved", async || {
        saved_uptime(&mut conn) >= begin + millis
    })
    .await;
}

/// A server process and a client of it.
struct Life {
    process: process::Process,
    http: reqwest::Client,
}

impl Life {
    fn begin(folder: &Path) -> Life {
        Life {
            process: process::Process::start(process::command(folder).arg("serve")),
            http: reqwest::Client::new(),
        }
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.process.url);
        let request = self.http.request(method.parse().unwrap(), url);
        let (status, answer) = answer(request.bearer_auth(worker(1)).json(body)).await;
        assert!(status < 300, "{method} {path}: {answer}");
        answer
    }

    async fn get(&self, path: &str) -> Value {
        let url = format!("{}{path}", self.process.url);
        answer(self.http.get(url).bearer_auth(viewer(1))).await.1
    }

    async fn heartbeat(&self, device: &str) {
        let path = format!("/api/devices/{device}/heartbeat");
        self.send("POST", &path, &json!({})).await;
    }

    async fn online(&self, device: &str, lease_secs: u32) {
        let path = format!("/api/devices/{device}");
        self.send("PUT", &path, &json!({"lease_secs": lease_secs}))
            .await;
        self.heartbeat(device).await;
        self.heartbeat(device).await;
    }

    fn end(&mut self, signal: &str) {
        match signal {
            "KILL" => self.process.kill(),
            _ => assert_eq!(self.process.terminate(), Some(0)),
        }
    }
}

/// A server that never lives longer than a second or so: what is silent ends all the same, by the uptime of all its
/// lives together.
async fn what_is_silent_ends(signal: &str) {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("data/tidings.db");
    let mut life = Life::begin(folder.path());
    let job = json!({"job_id": "j", "job_type": "t", "status": "in_progress", "stall_after_secs": 3, "timeout_secs": 6});
    let created = life.send("POST", "/api/jobs", &job).await;
    let epoch = created["cursor"]
        .as_str()
        .unwrap()
        .split('-')
        .next()
        .unwrap();
    let session = json!({"session_id": "s", "lease_secs": 4});
    life.send("POST", "/api/enrollments", &session).await;
    life.online("door", 3).await;
    let begin = saved_uptime(&mut connect(&database));
    // What is to be seen, and after how many seconds of silence. Of a device, a kill may have taken the last heartbeats.
    let mut expected: Vec<(&str, &str, Value, u64)> = vec![
        ("/api/devices/door", "status", json!("offline"), 3),
        ("/api/enrollments/s", "code", json!("timeout"), 4),
        ("/api/jobs/j", "status", json!("failed"), 6),
    ];
    for lives in 1.. {
        assert!(lives < LIVES, "{expected:?} never came true");
        live_on(&database, LIFE_MS).await;
        let mut left = Vec::new();
        for (path, field, value, secs) in expected {
            let subject = life.get(path).await;
            let uptime = saved_uptime(&mut connect(&database)) - begin;
            let is_gone = subject[field] == value;
            // What is saved may be behind what is by as much as the period between.
            assert!(
                !is_gone || uptime + 2_000 >= secs * 1_000,
                "too early: {path} at {uptime} ms"
            );
            let made_up = match (path, signal) {
                ("/api/devices/door", "KILL") => PRESENCE_FLUSH_PERIOD.as_millis() as u64,
                _ => 0,
            };
            assert!(
                is_gone || uptime <= secs * 1_000 + made_up + LATE_MS,
                "too late: {path} at {uptime} ms: {subject}"
            );
            if !is_gone {
                left.push((path, field, value, secs));
            }
        }
        expected = left;
        if expected.is_empty() {
            break;
        }
        life.end(signal);
        life = Life::begin(folder.path());
    }
    let from = format!("{epoch}-0");
    let query = "/jobs/j?tick_ms=0";
    let mut log = Listener::open(
        Transport::EventSource,
        &life.process.url,
        query,
        &viewer(1),
        Some(&from),
    )
    .await;
    let heard = log.until_ready().await;
    let reports = heard
        .iter()
        .filter(|message| message["type"] == "job_progress");
    let story: Vec<_> = reports
        .map(|message| (&message["stalled"], &message["error"]["code"]))
        .collect();
    let (no, yes, timeout) = (json!(false), json!(true), json!("timeout"));
    assert_eq!(
        story,
        [(&no, &Value::Null), (&yes, &Value::Null), (&no, &timeout)]
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_server_that_is_restarted_every_second_ends_what_is_silent() {
    what_is_silent_ends("TERM").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_server_that_is_killed_every_second_still_ends_silent_jobs_and_devices() {
    what_is_silent_ends("KILL").await;
}

/// A device sends heartbeats, and the server never runs long enough to save them in the regular interval.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_device_that_sends_heartbeats_is_never_offline_however_often_the_server_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("data/tidings.db");
    let mut life = Life::begin(folder.path());
    life.online("online", 5).await;
    life.send("PUT", "/api/devices/rare", &json!({"lease_secs": 5}))
        .await;
    let mut cursor = life.get("/api/devices").await["cursor"].clone();
    for _ in 0..10 {
        // One heartbeat per run: it is unknown all the time, and stays it.
        life.heartbeat("rare").await;
        let sending = async {
            loop {
                life.heartbeat("online").await;
            }
        };
        tokio::select! {
            () = live_on(&database, LIFE_MS) => {}
            () = sending => unreachable!("it sends on"),
        }
        life.end("KILL");
        life = Life::begin(folder.path());
        let query = "/devices?tick_ms=0";
        let from = cursor.as_str().unwrap();
        let mut listener = Listener::open(
            Transport::Poll,
            &life.process.url,
            query,
            &viewer(1),
            Some(from),
        )
        .await;
        for message in listener.until_ready().await {
            assert_ne!(message["status"], "offline", "{message}");
        }
        cursor = listener.cursor.clone().into();
    }
}

/// Moves every time that is stored, as if the wall clock had gone on, or had been set back, while the server was down.
fn move_wall_clock(database: &Path, hours: i64) {
    let by = hours * 3_600_000;
    let times = [
        (
            "jobs",
            "created_at heard_at started_at last_at eta_at eta_low_at eta_high_at",
        ),
        ("enrollment_sessions", "created_at heard_at last_at"),
        ("devices", "last_seen status_at created_at last_at"),
        ("events", "at"),
    ];
    let mut conn = connect(database);
    for (table, columns) in times {
        let moved = columns
            .split(' ')
            .map(|column| format!("{column} = {column} - ({by})"));
        let moved = moved.collect::<Vec<_>>().join(", ");
        conn.batch_execute(&format!("UPDATE {table} SET {moved}"))
            .unwrap();
    }
    conn.batch_execute(&format!(
        "UPDATE jobs SET estimator = json_set(estimator, '$.since', json_extract(estimator, '$.since') - ({by})) \
         WHERE estimator IS NOT NULL"
    ))
    .unwrap();
}

async fn begun(server: &Server, secs: u32) {
    let job = json!({"job_id": "j", "job_type": "t", "status": "in_progress", "stall_after_secs": secs, "timeout_secs": secs * 2});
    server.report("/api/jobs", job).await;
    let session = json!({"session_id": "s", "lease_secs": secs});
    server.report("/api/enrollments", session).await;
    server
        .put("/api/devices/door", json!({"lease_secs": secs}))
        .await;
    for _ in 0..2 {
        server
            .report("/api/devices/door/heartbeat", json!({}))
            .await;
    }
}

async fn published_states(server: &Server) -> [Value; 4] {
    let get = async |path: &str| server.get(path, &viewer(1)).await.1;
    let job = get("/api/jobs/j").await;
    let session = get("/api/enrollments/s").await;
    let device = get("/api/devices/door").await;
    [
        &job["status"],
        &job["stalled"],
        &session["status"],
        &device["status"],
    ]
    .map(Value::clone)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn hours_of_downtime_do_not_count_as_silence() {
    let first = server().await;
    begun(&first, 600).await;
    let folder = first.stop().await;
    let database = folder.path().join("tidings.db");
    move_wall_clock(&database, 12);
    let server = server_in(folder, json!({})).await;
    // The watchdog and the leases are looked at several times in this time.
    live_on(&database, 2_500).await;
    let expected = [
        json!("in_progress"),
        json!(false),
        json!("ready"),
        json!("unknown"),
    ];
    assert_eq!(published_states(&server).await, expected);
    // The device takes up where it was.
    for status in ["unknown", "online"] {
        let answer = server
            .report("/api/devices/door/heartbeat", json!({}))
            .await;
        assert_eq!(answer["status"], status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimated_end_that_passed_while_the_server_was_down_is_published_again_at_its_start() {
    let first = server().await;
    first.running_job("j").await;
    let mut first_eta = json!(null);
    let mut progress = 0;
    while first_eta["eta_at"].is_null() {
        progress += 1;
        first_eta = first
            .report("/api/jobs/j/progress", json!({"progress": progress}))
            .await;
    }
    let folder = first.stop().await;
    let database = folder.path().join("tidings.db");
    move_wall_clock(&database, 12);
    // It was not to be looked at for hours of uptime.
    connect(&database)
        .batch_execute("UPDATE jobs SET check_uptime = check_uptime + 36000000")
        .unwrap();
    let server = server_in(folder, json!({})).await;
    let end_of = |job: &Value| {
        let end = job["eta_at"].as_str()?;
        let end = chrono::DateTime::parse_from_rfc3339(end).unwrap();
        Some(end.to_utc())
    };
    until("a later end is published", async || {
        let asked = chrono::Utc::now();
        let (_, job) = server.get("/api/jobs/j", &viewer(1)).await;
        let (_, list) = server.get("/api/jobs", &viewer(1)).await;
        for job in [&job, &list["jobs"][0]] {
            assert!(end_of(job).is_none_or(|end| end > asked), "{job}");
        }
        job["seq"].as_u64() > first_eta["seq"].as_u64()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_wall_clock_that_was_set_back_does_not_keep_the_silent_alive() {
    let first = server().await;
    begun(&first, 2).await;
    let folder = first.stop().await;
    move_wall_clock(&folder.path().join("tidings.db"), -12);
    let server = server_in(folder, json!({})).await;
    let expected = [
        json!("failed"),
        json!(false),
        json!("error"),
        json!("offline"),
    ];
    until("everything has ended", async || {
        published_states(&server).await == expected
    })
    .await;
}

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// A database as it was before the end was estimated with a range and silence measured in uptime, with something in it that was silent for long.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn what_an_earlier_version_stored_counts_as_heard_of_at_the_upgrade() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let database = folder.path().join("tidings.db");
    let mut conn = connect(&database);
    for migration in conn.pending_migrations(MIGRATIONS).unwrap() {
        if migration.name().version() < "00000000000006".into() {
            conn.run_migration(&migration).unwrap();
        }
    }
    conn.batch_execute(
        "INSERT INTO schools VALUES (1, 3, 0);
         INSERT INTO jobs (school_id, job_id, job_type, status, message, metadata, attempt, eta_by_history, stalled,
             cancel_requested, created_at, heard_at, started_at, stall_after_secs, timeout_secs, check_at, created_seq, last_seq, last_at)
             VALUES (1, 'j', 't', 'in_progress', '', '{}', 1, FALSE, FALSE, FALSE, 1, 1, 1, 2, 4, 2, 1, 1, 1);
         INSERT INTO enrollment_sessions (school_id, session_id, status, progress, message, created_at, heard_at, lease_secs,
             check_at, created_seq, last_seq, last_at) VALUES (1, 's', 'ready', 0, '', 1, 1, 2, 2, 2, 2, 1);
         INSERT INTO devices (school_id, device_id, status, last_seen, lease_secs, flapping, changes, info, status_seq, status_at,
             created_at, check_at, created_seq, last_seq, last_at)
             VALUES (1, 'door', 'online', 1, 2, TRUE, '[1,1,1,1]', '{}', 3, 1, 1, 2, 3, 3, 1);",
    )
    .unwrap();
    drop(conn);
    let server = server_in(folder, json!({})).await;
    let (_, door) = server.get("/api/devices/door", &viewer(1)).await;
    assert_eq!(door["flapping"], true, "for five minutes more");
    let mut listener = server
        .listen(
            Transport::EventSource,
            "?channel=jobs&channel=enrollments&channel=devices",
        )
        .await;
    let mut heard = listener.until_ready().await;
    let is_end = |message: &Value| message["status"] == "failed";
    if !heard.iter().any(is_end) {
        heard.extend(listener.take_until(is_end).await);
    }
    let first = |what: &dyn Fn(&&Value) -> bool| heard.iter().find(what).cloned();
    let stalled = first(&|message| message["stalled"] == true).expect("it is flagged first");
    assert_eq!(stalled["status"], "in_progress");
    until("everything has ended", async || {
        published_states(&server).await
            == [
                json!("failed"),
                json!(false),
                json!("error"),
                json!("offline"),
            ]
    })
    .await;
    // What was stored before counts were kept is counted, too.
    let store = server.tidings.store();
    let school = 1.try_into().unwrap();
    for (kind, status) in [
        (job::KIND, "failed"),
        (enrollment::KIND, "error"),
        (device::KIND, "offline"),
    ] {
        assert_eq!(store.counts(school, kind).await.unwrap(), [(status, 1)]);
    }
    assert_eq!(store.stalled(school, job::KIND).await.unwrap(), 0);
}
