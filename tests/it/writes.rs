//! What writes may take: turns between schools, and bytes. What one school asks makes the server neither slow nor big for
//! another.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::migration::MigrationVersion;
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use serde_json::{Value, json};
use tidings::config::{BULK_MAX_COMMANDS, RESERVE_WAIT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

/// Metadata of so many bytes.
fn metadata(bytes: usize) -> Value {
    json!({"text": "x".repeat(bytes - r#"{"text":""}"#.len())})
}

/// A running job of a school, with metadata of so many bytes.
async fn job(server: &Server, school: i64, id: &str, bytes: usize) {
    let create = json!({"job_id": id, "job_type": "t", "status": "in_progress", "metadata": metadata(bytes)});
    let (status, answer) = server.post("/api/jobs", &worker(school), create).await;
    assert_eq!(status, 201, "{answer}");
}

/// So many reports on a job, as lines of a batch.
fn reports(id: &str, count: usize) -> String {
    let line =
        |n| format!("{{\"op\":\"jobs.progress\",\"job_id\":\"{id}\",\"message\":\"{n}\"}}\n");
    (1..=count).map(line).collect()
}

fn database(server: &Server) -> SqliteConnection {
    let path = server.folder.path().join("tidings.db");
    let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    conn.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    conn
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_before_a_commit_of_a_batch_failed_is_answered_line_by_line() {
    let server = server().await;
    server.running_job("a").await;
    // The first commit of the batch goes well, the second does not.
    let mut conn = database(&server);
    conn.batch_execute(
        "CREATE TRIGGER full BEFORE INSERT ON events WHEN NEW.seq > 700 BEGIN SELECT RAISE(ABORT, 'full'); END",
    )
    .unwrap();
    let results = server.batch(&worker(1), reports("a", 1_500)).await;
    let done = results
        .iter()
        .take_while(|line| line["status"] == 200)
        .count();
    assert!((1..700).contains(&done), "{done}");
    for line in &results[done..] {
        assert_eq!(line["problem"]["code"], "unavailable", "{line}");
    }
    let (_, stored) = server.get("/api/jobs/a", &viewer(1)).await;
    assert_eq!(stored["message"], done.to_string(), "and nothing else");
    // A batch of which nothing happened fails as a whole.
    conn.batch_execute("DROP TRIGGER full; CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'full'); END")
        .unwrap();
    let request = server.request("POST", "/api/batch", &worker(1));
    let (status, problem) = answer(request.body(reports("a", 1_500))).await;
    assert_eq!((status, &problem["code"]), (503, &json!("unavailable")));
    conn.batch_execute("DROP TRIGGER full").unwrap();
    let next = server
        .report("/api/jobs/a/progress", json!({"progress": 1}))
        .await;
    let (_, seq, _) = parts(&next["cursor"]);
    assert_eq!(seq as usize, done + 2, "no number is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_write_is_not_ready_and_says_why() {
    let server = server().await;
    let mut conn = database(&server);
    // The server writes the table `meta` each second.
    conn.batch_execute(
        "CREATE TRIGGER full BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'the disk is full'); END;
         CREATE TRIGGER full_as_well BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    )
    .unwrap();
    let readiness = async || {
        let request = server.request("GET", "/readyz", &viewer(1));
        request.send().await.unwrap().text().await.unwrap()
    };
    until("the server is not ready", async || {
        readiness()
            .await
            .contains("the database cannot be written: the disk is full")
    })
    .await;
    conn.batch_execute("DROP TRIGGER full; DROP TRIGGER full_as_well")
        .unwrap();
    until("the server is ready", async || {
        readiness().await == "ready\n"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_holds_across_the_commits_of_a_batch() {
    let server = server().await;
    server.running_job("a").await;
    let lines = reports("a", BULK_MAX_COMMANDS);
    let keyed = r#"{"op":"jobs.progress","job_id":"a","message":"once","idempotency_key":"k"}"#;
    let lines = format!("{keyed}\n{lines}{keyed}\n");
    let post = async |lines: &str| {
        let request = server.request("POST", "/api/batch", &worker(1));
        let request = request.header("Idempotency-Key", "batch");
        request
            .body(lines.to_owned())
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    };
    let response = post(&lines).await;
    let event =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["event"]["cursor"].clone();
    let (first, last) = (
        response.lines().next().unwrap(),
        response.lines().last().unwrap(),
    );
    assert_eq!(
        event(first),
        event(last),
        "in a later commit of the same batch"
    );
    assert_eq!(post(&lines).await, response, "and in a retry of the whole");
    let (_, stored) = server.get("/api/jobs/a", &viewer(1)).await;
    assert_eq!(stored["message"], BULK_MAX_COMMANDS.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_leads_to_too_much_is_rejected_from_there_on_line_by_line() {
    const MOST: usize = 400_000;
    let server = server_with(json!({"batch_event_bytes": MOST})).await;
    job(&server, 1, "big", 16_000).await;
    job(&server, 1, "small", 20).await;
    let lines = reports("big", 100) + &reports("small", 1);
    let request = server.request("POST", "/api/batch", &worker(1)).body(lines);
    let text = request.send().await.unwrap().text().await.unwrap();
    assert!(text.len() < MOST * 2, "{} bytes", text.len());
    let results: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(results.len(), 101);
    let done = results
        .iter()
        .take_while(|line| line["status"] == 200)
        .count();
    assert!((20..25).contains(&done), "{done}");
    for line in &results[done..] {
        assert_eq!(line["status"], 413, "{line}");
        assert_eq!(line["problem"]["code"], "batch-too-large");
        assert_eq!(line["problem"]["limit"], "batch_event_bytes");
    }
    let (_, stored) = server.get("/api/jobs/big", &viewer(1)).await;
    assert_eq!(
        stored["message"],
        done.to_string(),
        "nothing of the others counts"
    );
    let (_, stored) = server.get("/api/jobs/small", &viewer(1)).await;
    assert_ne!(
        stored["message"], "1",
        "nor of a line that would have had room"
    );
    // What is answered counts as well: a repeated line leads to nothing new.
    let keyed = r#"{"op":"jobs.progress","job_id":"big","message":"k","idempotency_key":"k"}"#;
    let results = server
        .batch(&worker(1), format!("{keyed}\n").repeat(100))
        .await;
    let done = results.iter().filter(|line| line["status"] == 200).count();
    assert!((20..25).contains(&done), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_school_that_produces_too_much_waits_and_others_do_not() {
    let server = server_with(json!({"event_bytes_per_sec": 100_000})).await;
    for school in [1, 2] {
        job(&server, school, "a", 10_000).await;
    }
    server.batch(&worker(1), reports("a", 30)).await;
    for (path, body) in [
        ("/api/jobs/a/progress", r#"{"progress":1}"#.to_owned()),
        ("/api/batch", reports("a", 1)),
    ] {
        let rejected = server.request("POST", path, &worker(1)).body(body).send();
        let rejected = rejected.await.unwrap();
        assert_eq!(rejected.status(), 429, "{path}");
        let wait = rejected.headers()["Retry-After"].to_str().unwrap();
        assert!((1..=4).contains(&wait.parse::<u64>().unwrap()), "{wait}");
        let problem: Value = rejected.json().await.unwrap();
        assert_eq!(problem["code"], "too-fast");
        assert_eq!(problem["limit"], "event_bytes_per_sec");
    }
    let report = json!({"progress": 1});
    let other = server
        .post("/api/jobs/a/progress", &worker(2), report)
        .await;
    assert_eq!(other.0, 200);
    // Of a batch for several schools only its lines are refused.
    let line = |school| {
        let line =
            json!({"op": "jobs.progress", "job_id": "a", "progress": 2, "school_id": school});
        format!("{line}\n")
    };
    let results = server.batch(&admin(), line(1) + &line(2)).await;
    assert_eq!(field(&results, "status"), [429, 200]);
    until("it has paid", async || {
        let report = json!({"progress": 3});
        server
            .post("/api/jobs/a/progress", &worker(1), report)
            .await
            .0
            == 200
    })
    .await;
}

/// The rest of a batch that takes more than one turn is carried out at the limit, whatever else the machine could do.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn while_several_schools_publish_batches_have_a_rate_and_reports_of_others_do_not_wait() {
    let server = server_with(json!({"batch_bytes_per_sec": 1_000_000})).await;
    for (school, metadata) in [(1, 10_000), (2, 100)] {
        job(&server, school, "a", metadata).await;
    }
    let begun = Instant::now();
    let (greedy, token) = (worker(1), worker(2));
    let mut batch = std::pin::pin!(server.batch(&greedy, reports("a", 250)));
    let mut others = 0;
    let results = loop {
        let report = json!({"progress": 1});
        tokio::select! {
            results = &mut batch => break results,
            (status, _) = server.post("/api/jobs/a/progress", &token, report) => {
                assert_eq!(status, 200);
                others += 1;
            }
        }
    };
    assert!(results.iter().all(|line| line["status"] == 200));
    // 2.5 MB, of which the first turns, of some 140 KB each, are free.
    assert!(begun.elapsed() > Duration::from_millis(1_500));
    assert!(others > 20, "{others}");
}

/// Requests that reserve memory for a body and do not send it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_school_that_holds_its_share_of_the_memory_waits_and_others_do_not() {
    let settings = json!({
        "batch_limit_bytes": 100_000, "batch_event_bytes": 100_000, "batch_limit_commands": 100,
        "body_limit_bytes": 100_000, "write_memory_bytes": 1_400_000,
    });
    let server = server_with(settings).await;
    for school in [1, 2] {
        job(&server, school, "a", 100).await;
    }
    let address = server.url.trim_start_matches("http://");
    let mut idle = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /api/batch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 100000\r\n\r\n{{\"op\":\"jobs.progress\",",
        worker(1)
    );
    idle.write_all(head.as_bytes()).await.unwrap();
    let batch = async |school| {
        let asked = Instant::now();
        let request = server.request("POST", "/api/batch", &worker(school));
        let answer = request.body(reports("a", 100)).send().await.unwrap();
        (answer, asked.elapsed())
    };
    let mut rejected = None;
    until("the other request has its memory", async || {
        let (answer, took) = batch(1).await;
        if answer.status() == 200 {
            return false;
        }
        rejected = Some((answer, took));
        true
    })
    .await;
    let (rejected, took) = rejected.unwrap();
    assert!(took >= RESERVE_WAIT, "it waits for a place first");
    assert_eq!(rejected.status(), 429);
    assert!(rejected.headers().contains_key("Retry-After"));
    let problem: Value = rejected.json().await.unwrap();
    assert_eq!(problem["limit"], "write_memory_bytes");
    let (other, took) = batch(2).await;
    assert_eq!(other.status(), 200);
    assert!(took < RESERVE_WAIT, "{took:?}");
    // Who waits gets the place when it is free.
    let waits = async { batch(1).await.0.status() };
    let leaves = async {
        tokio::task::yield_now().await;
        drop(idle);
    };
    let (status, ()) = tokio::join!(waits, leaves);
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_body_that_does_not_arrive_in_time_is_rejected() {
    let server = server_with(json!({"body_timeout_secs": 1})).await;
    server.running_job("a").await;
    let address = server.url.trim_start_matches("http://");
    // Rocket waits for the first 14 bytes before it routes a request; until then no memory is reserved.
    let begin = r#"{"op":"jobs.progress","#;
    for path in ["/api/jobs/a/progress", "/api/batch"] {
        let mut slow = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 100\r\n\r\n{begin}",
            worker(1)
        );
        slow.write_all(head.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        while !String::from_utf8_lossy(&received).contains("within 1 s") {
            let read = tokio::time::timeout(PATIENCE, slow.read_buf(&mut received)).await;
            let so_far = String::from_utf8_lossy(&received);
            assert!(matches!(read, Ok(Ok(1..))), "{path} {read:?} {so_far}");
        }
        let received = String::from_utf8_lossy(&received);
        assert!(received.starts_with("HTTP/1.1 400 "), "{received}");
        assert!(
            received.contains(r#""limit":"body_timeout_secs""#),
            "{received}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn an_answer_that_nobody_reads_takes_its_own_schools_memory_only() {
    let settings = json!({
        "batch_limit_bytes": 100_000, "batch_event_bytes": 16_000_000, "batch_limit_commands": 1_500,
        "write_memory_bytes": 90_000_000, "event_bytes_per_sec": 0,
    });
    let server = server_with(settings).await;
    for school in [1, 2] {
        job(&server, school, "a", 16_000).await;
    }
    let body = reports("a", 990);
    let address = server.url.trim_start_matches("http://");
    let mut deaf = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /api/batch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
        worker(1),
        body.len()
    );
    deaf.write_all(head.as_bytes()).await.unwrap();
    // Until its answer is on the way.
    let mut first = [0; 1];
    assert_eq!(deaf.peek(&mut first).await.unwrap(), 1);
    let batch = async |school| {
        let request = server.request("POST", "/api/batch", &worker(school));
        request
            .body(body.clone())
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(batch(1).await, 429);
    assert_eq!(batch(2).await, 200);
    drop(deaf);
    until("its memory is free", async || batch(1).await == 200).await;
}

#[derive(QueryableByName)]
struct Counted {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    bytes: i64,
}

/// What a school's log is said to take, and what it takes.
fn bytes(conn: &mut SqliteConnection) -> (i64, i64) {
    let one = |conn: &mut SqliteConnection, query: &str| {
        let found: Counted = diesel::sql_query(query).get_result(conn).unwrap();
        found.bytes
    };
    let recorded = one(conn, "SELECT bytes FROM schools WHERE school_id = 1");
    let is = one(
        conn,
        "SELECT SUM(octet_length(fields) + octet_length(subject_id) + 128) AS bytes FROM events WHERE school_id = 1",
    );
    (recorded, is)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_kept_within_its_bytes_and_a_cursor_of_what_is_gone_is_answered_with_a_reset() {
    const MOST: i64 = 200_000;
    let settings = json!({"retention_bytes": MOST, "window_events": 1});
    let server = server_with(settings.clone()).await;
    let first = server.running_job("ä").await;
    job(&server, 1, "big", 10_000).await;
    let mut conn = database(&server);
    for round in 0..2 {
        server.batch(&worker(1), reports("big", 300)).await;
        let (recorded, is) = bytes(&mut conn);
        assert!(recorded == is && is > 3_000_000, "{recorded} {is}");
        let steps = server.sweep().await;
        assert!(steps >= 2, "in small steps, not {steps}");
        let (recorded, is) = bytes(&mut conn);
        assert_eq!(recorded, is, "round {round}");
        assert!((MOST - 11_000..=MOST).contains(&is), "{is} are kept");
    }
    let cursor = first["cursor"].as_str().unwrap();
    for transport in [
        Transport::EventSource,
        Transport::WebSocket,
        Transport::Poll,
    ] {
        let messages = server
            .resume(transport, "/jobs", cursor)
            .await
            .until_ready()
            .await;
        assert_eq!(messages[1]["reason"], "expired", "{transport:?}");
    }
    // It is counted on after a restart.
    let server = server_in(server.stop().await, settings).await;
    server.batch(&worker(1), reports("big", 5)).await;
    let (recorded, is) = bytes(&mut database(&server));
    assert_eq!(recorded, is);
}

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_log_from_an_earlier_version_are_counted_at_the_upgrade() {
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let path = folder.path().join("tidings.db");
    let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    for migration in conn.pending_migrations(MIGRATIONS).unwrap() {
        if migration.name().version() < "00000000000013".into() {
            conn.run_migration(&migration).unwrap();
        }
    }
    let now = chrono::Utc::now().timestamp_millis();
    conn.batch_execute(&format!(
        "INSERT INTO schools (school_id, head, floor) VALUES (1, 2, 0), (2, 0, 0);
         INSERT INTO events (school_id, seq, kind, subject_id, name, milestone, wide, status, at, fields)
             VALUES (1, 1, 'jobs', 'ä', 'job_progress', TRUE, FALSE, 'pending', {now}, '{{\"message\":\"ö\"}}'),
                    (1, 2, 'jobs', 'ä', 'job_progress', TRUE, FALSE, 'pending', {now}, '{{}}');",
    ))
    .unwrap();
    drop(conn);
    let server = server_in(folder, json!({})).await;
    let counted = 2 * (128 + "ä".len()) + r#"{"message":"ö"}{}"#.len();
    assert_eq!(
        bytes(&mut database(&server)),
        (counted as i64, counted as i64)
    );
    server.stop().await;
}

/// How many events do not refer to the event of their subject before them.
fn wrong_references(server: &Server) -> i64 {
    let wrong = "SELECT COUNT(*) AS bytes FROM (
        SELECT previous_seq, LAG(seq) OVER (PARTITION BY school_id, kind, subject_id ORDER BY seq) AS previous FROM events
    ) WHERE previous_seq IS NOT previous";
    let wrong: Counted = diesel::sql_query(wrong)
        .get_result(&mut database(server))
        .unwrap();
    wrong.bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_refers_to_the_one_before_it_of_its_subject() {
    let server = server().await;
    let of_job = [
        json!({"op": "jobs.create", "job_type": "t", "status": "in_progress"}),
        json!({"op": "jobs.progress", "message": "one"}),
        json!({"op": "jobs.progress", "message": "one"}),
        json!({"op": "jobs.fail", "error": {"code": "x", "message": "failed"}}),
        json!({"op": "jobs.progress", "message": "too late"}),
        json!({"op": "jobs.retry"}),
        json!({"op": "jobs.start"}),
        json!({"op": "jobs.complete"}),
    ];
    let of_device = [
        json!({"op": "devices.put", "name": "Door"}),
        json!({"op": "devices.heartbeat"}),
        json!({"op": "devices.info", "info": {"battery": 5}}),
        json!({"op": "devices.status", "status": "offline"}),
        json!({"op": "devices.heartbeat"}),
    ];
    let of_chart = [
        json!({"op": "characteristics.put", "limits": {"center_line": 0.0, "ucl": 3.0, "lcl": -3.0}}),
        json!({"op": "characteristics.samples", "value": 9.0}),
        json!({"op": "characteristics.samples", "value": 9.0}),
    ];
    let of_session = [
        json!({"op": "enrollments.create", "device_id": "d0"}),
        json!({"op": "enrollments.cancel"}),
    ];
    // All subjects of a kind in turn, so that groups mix them.
    let mut lines = String::new();
    for (id_field, commands) in [
        ("job_id", &of_job[..]),
        ("device_id", &of_device),
        ("characteristic_id", &of_chart),
        ("session_id", &of_session),
    ] {
        for command in commands {
            for number in 0..3 {
                let mut command = command.clone();
                command[id_field] = format!("{}{number}", &id_field[..1]).into();
                lines.push_str(&format!("{command}\n"));
            }
        }
    }
    let first = server.batch(&worker(1), lines.clone()).await;
    let done = |op: &str| {
        first
            .iter()
            .zip(lines.lines())
            .any(|(result, line)| line.contains(op) && result["status"].as_u64() < Some(300))
    };
    for op in [
        "jobs.retry",
        "devices.status",
        "characteristics.samples",
        "enrollments.create",
    ] {
        assert!(done(op), "{op}: {first:#?}");
    }
    let of_schedule = json!({"cron": "0 3 * * *", "time_zone": "UTC"});
    server.put("/api/schedules/t", of_schedule.clone()).await;
    let server = server_in(server.stop().await, json!({})).await;
    server.batch(&worker(1), lines).await;
    server
        .put(
            "/api/schedules/t",
            json!({"cron": "0 4 * * *", "time_zone": "UTC"}),
        )
        .await;
    assert_eq!(wrong_references(&server), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_from_before_and_after_an_upgrade_are_replayed_without_a_gap() {
    let settings = json!({"window_events": 1});
    let server = server_with(settings.clone()).await;
    let created = server.running_job("a").await;
    server.batch(&worker(1), reports("a", 100)).await;
    server.running_job("b").await;
    let folder = server.stop().await;
    let path = folder.path().join("tidings.db");
    let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    // Since this migration, events refer to the one before.
    let refer = MigrationVersion::from("00000000000023");
    while conn.revert_last_migration(MIGRATIONS).unwrap() != refer {}
    conn.batch_execute(
        "SELECT seq FROM events INDEXED BY events_by_subject WHERE school_id = 1 AND kind = 'jobs'",
    )
    .unwrap();
    drop(conn);
    let server = server_in(folder, settings).await;
    for job in ["b", "a", "b"] {
        server.batch(&worker(1), reports(job, 300)).await;
    }
    // Those from before refer to none.
    assert_eq!(wrong_references(&server), 100);
    let cursor = created["cursor"].as_str().unwrap();
    for transport in [
        Transport::EventSource,
        Transport::WebSocket,
        Transport::Poll,
    ] {
        let mut listener = server.resume(transport, "/jobs/a?tick_ms=0", cursor).await;
        let messages = listener.until_ready().await;
        let told = messages
            .iter()
            .filter(|message| message["type"] == "job_progress");
        let told: Vec<&str> = told
            .map(|message| message["message"].as_str().unwrap())
            .collect();
        let expected: Vec<String> = (1..=100)
            .chain(1..=300)
            .map(|number| number.to_string())
            .collect();
        assert_eq!(told, expected, "{transport:?}");
    }
}
