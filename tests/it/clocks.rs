//! Clocks that do not run as they should: a process that was stopped, and a wall clock that is set, against the real binary.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::silence::{connect, live_on};
use crate::support::process::{Process, command, set_clock, with_clock};
use crate::support::*;

/// How long a process is stopped: longer than any of the time-outs here.
const STOPPED: Duration = Duration::from_secs(6);

fn database(folder: &Path) -> PathBuf {
    folder.join("data/tidings.db")
}

async fn send(url: &str, method: &str, path: &str, body: Value) -> Value {
    let url = format!("{url}{path}");
    let request = reqwest::Client::new().request(method.parse().unwrap(), url);
    let (status, response) = answer(request.bearer_auth(far_token()).json(&body)).await;
    assert!(status < 300, "{method} {path}: {status} {response}");
    response
}

/// A worker's token that is good for a month, so that a step of the clock does not end it.
fn far_token() -> String {
    let mut claims = claims(Some(1), tidings::auth::Role::Worker);
    claims.exp += 30.0 * 86_400.0;
    sign(&claims)
}

async fn get(url: &str, path: &str) -> Value {
    let request = reqwest::Client::new().get(format!("{url}{path}"));
    answer(request.bearer_auth(far_token())).await.1
}

/// A job, a session and a device, each of which ends after five seconds of silence.
async fn begin(url: &str) {
    let job = json!({"job_id": "j", "job_type": "t", "status": "in_progress", "stall_after_secs": 5, "timeout_secs": 5});
    send(url, "POST", "/api/jobs", job).await;
    let session = json!({"session_id": "s", "lease_secs": 5});
    send(url, "POST", "/api/enrollments", session).await;
    send(url, "PUT", "/api/devices/d", json!({"lease_secs": 5})).await;
    for _ in 0..2 {
        send(url, "POST", "/api/devices/d/heartbeat", json!({})).await;
    }
}

/// What has become of them: job, whether it is stalled, session, device.
async fn standing(url: &str) -> [Value; 4] {
    let job = get(url, "/api/jobs/j").await;
    let session = get(url, "/api/enrollments/s").await;
    let device = get(url, "/api/devices/d").await;
    [
        job["status"].clone(),
        job["stalled"].clone(),
        session["status"].clone(),
        device["status"].clone(),
    ]
}

fn alive() -> [Value; 4] {
    [
        json!("in_progress"),
        json!(false),
        json!("ready"),
        json!("online"),
    ]
}

fn over() -> [Value; 4] {
    [
        json!("failed"),
        json!(false),
        json!("error"),
        json!("offline"),
    ]
}

/// Every event of the school so far, as type and status.
async fn story(url: &str) -> Vec<(String, String)> {
    let cursor = get(url, "/api/jobs").await["cursor"].clone();
    let epoch = cursor.as_str().unwrap().split('-').next().unwrap();
    let query = "?channel=jobs&channel=enrollments&channel=devices&tick_ms=0";
    let from = format!("{epoch}-0");
    let mut log = Listener::open(
        Transport::EventSource,
        url,
        query,
        &far_token(),
        Some(&from),
    )
    .await;
    let text = |message: &Value, field: &str| message[field].as_str().unwrap_or("").to_owned();
    let heard = log.until_ready().await;
    heard
        .iter()
        .filter(|message| message["seq"].is_u64())
        .map(|message| (text(message, "type"), text(message, "status")))
        .collect()
}

/// Stops the process for longer than anything here may be silent.
async fn stop_for_long(server: &Process) {
    server.signal("STOP");
    // The time that passes is what is tested, and there is nobody who could be asked.
    tokio::time::sleep(STOPPED).await;
}

/// Whether an event tells of an end.
fn is_end((_, status): &&(String, String)) -> bool {
    ["failed", "error", "offline"].contains(&status.as_str())
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    count: i64,
}

fn count(folder: &Path, what: &str) -> i64 {
    let query = format!("SELECT count(*) AS count FROM {what}");
    let counts: Vec<Count> = diesel::sql_query(query)
        .load(&mut connect(&database(folder)))
        .unwrap();
    counts[0].count
}

/// What the server has saved of its wall clock.
fn wall_clock(folder: &Path) -> Option<Value> {
    #[derive(QueryableByName)]
    struct Saved {
        #[diesel(sql_type = diesel::sql_types::Text)]
        value: String,
    }
    let saved: Vec<Saved> = diesel::sql_query("SELECT value FROM meta WHERE key = 'wall_clock'")
        .load(&mut connect(&database(folder)))
        .unwrap();
    Some(serde_json::from_str(&saved.first()?.value).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn silence_while_the_process_was_stopped_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    begin(&server.url).await;
    stop_for_long(&server).await;
    server.signal("CONT");
    // The watchdog and the leases are looked at several times meanwhile.
    live_on(&database(folder.path()), 2_000).await;
    let events = story(&server.url).await;
    assert_eq!(events.iter().find(is_end), None, "{events:?}");
    assert_eq!(standing(&server.url).await, alive());
    // What stays silent while the server listens ends all the same.
    until("everything has ended", async || {
        standing(&server.url).await == over()
    })
    .await;
}

/// A request that is in the socket's buffer when the process goes on.
struct Waiting {
    stream: TcpStream,
}

impl Waiting {
    /// Connects while the server still runs, so that it knows of the connection.
    async fn connect(url: &str) -> Waiting {
        let address = url.trim_start_matches("http://");
        let mut waiting = Waiting {
            stream: TcpStream::connect(address).await.unwrap(),
        };
        waiting.write("GET", "/healthz", &json!({})).await;
        waiting.read().await;
        waiting
    }

    async fn write(&mut self, method: &str, path: &str, body: &Value) {
        let (body, token) = (body.to_string(), far_token());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await.unwrap();
    }

    async fn read(&mut self) -> String {
        let mut answer = vec![0; 16 * 1024];
        let reading = self.stream.read(&mut answer);
        let read = tokio::time::timeout(PATIENCE, reading).await.unwrap();
        answer.truncate(read.unwrap());
        String::from_utf8(answer).unwrap()
    }
}

/// Each is almost over when the process stops, and has spoken again before it goes on.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn reports_waiting_in_the_sockets_are_read_before_silence_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    let mut lines = Vec::new();
    for _ in 0..3 {
        lines.push(Waiting::connect(&server.url).await);
    }
    begin(&server.url).await;
    live_on(&database(folder.path()), 2_500).await;
    server.signal("STOP");
    let words = [
        ("/api/jobs/j/progress", json!({"progress": 7})),
        ("/api/enrollments/s/progress", json!({"message": "here"})),
        ("/api/devices/d/heartbeat", json!({})),
    ];
    for (line, (path, word)) in lines.iter_mut().zip(&words) {
        line.write("POST", path, word).await;
    }
    tokio::time::sleep(STOPPED).await;
    server.signal("CONT");
    for line in &mut lines {
        let answer = line.read().await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    live_on(&database(folder.path()), 1_500).await;
    assert_eq!(standing(&server.url).await, alive());
    let events = story(&server.url).await;
    assert_eq!(events.iter().find(is_end), None, "{events:?}");
}

/// The real binary under a wall clock that can be set.
struct Timed {
    folder: tempfile::TempDir,
    settings: Vec<(&'static str, &'static str)>,
    server: Option<Process>,
}

impl Timed {
    fn start(settings: &[(&'static str, &'static str)]) -> Timed {
        let mut timed = Timed {
            folder: tempfile::tempdir().unwrap(),
            settings: settings.to_vec(),
            server: None,
        };
        timed.set(0);
        timed.begin();
        timed
    }

    fn begin(&mut self) {
        let mut command = command(self.path());
        command.arg("serve").envs(self.settings.iter().copied());
        self.server = Some(Process::start(with_clock(&mut command, &self.clock())));
    }

    fn end(&mut self) {
        let mut server = self.server.take().unwrap();
        assert_eq!(server.terminate(), Some(0));
    }

    fn clock(&self) -> PathBuf {
        self.path().join("clock")
    }

    /// Sets the wall clock of the server, present and to come, by so many days.
    fn set(&self, days: i64) {
        set_clock(&self.clock(), days * 86_400);
    }

    fn url(&self) -> &str {
        &self.server.as_ref().unwrap().url
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until a round of retention is over that began under a clock that was set by so many days. Returns whether
    /// the clock was relied on.
    async fn sweeps(&self, days: i64) -> bool {
        let before = wall_clock(self.path());
        let mut last = None;
        until("the sweep has come round", async || {
            last = wall_clock(self.path()).filter(|clock| before.as_ref() != Some(clock));
            let looked_at = last.as_ref().and_then(|clock| clock["looked_at"].as_i64());
            let set = Utc::now() + TimeDelta::days(days);
            looked_at.is_some_and(|at| (at - set.timestamp_millis()).abs() < 3_600_000)
        })
        .await;
        last.unwrap()["set_at"].is_null()
    }

    /// Ends a job with an idempotency key, and returns what is stored: events, finished jobs, keys.
    async fn fill(&self) -> [i64; 3] {
        let create = json!({"job_id": "done", "job_type": "t", "status": "in_progress"});
        let request = reqwest::Client::new()
            .post(format!("{}/api/jobs", self.url()))
            .header("Idempotency-Key", "once")
            .bearer_auth(far_token())
            .json(&create);
        assert_eq!(answer(request).await.0, 201);
        send(self.url(), "POST", "/api/jobs/done/complete", json!({})).await;
        self.stored()
    }

    fn stored(&self) -> [i64; 3] {
        let jobs = "jobs WHERE job_id = 'done'";
        ["events", jobs, "idempotency_keys"].map(|what| count(self.path(), what))
    }
}

/// What is over after an hour, so that a step of days passes it by far.
const SHORT: [(&str, &str); 3] = [
    ("TIDINGS_RETENTION_SECS", "3600"),
    ("TIDINGS_JOB_RETENTION_SECS", "3600"),
    ("TIDINGS_IDEMPOTENCY_TTL_SECS", "3600"),
];

fn lines_about_the_clock(log: &str) -> usize {
    let is_about = |line: &&str| line.contains("the wall clock was set");
    log.lines().filter(is_about).count()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_wall_clock_that_is_set_while_running_removes_nothing_and_ends_nobody() {
    if !needs("cc") {
        return;
    }
    let mut timed = Timed::start(&SHORT);
    let mut errors = timed.server.as_mut().unwrap().stderr();
    let reading = std::thread::spawn(move || {
        let mut log = String::new();
        std::io::Read::read_to_string(&mut errors, &mut log).unwrap();
        log
    });
    let long =
        json!({"job_id": "j", "job_type": "t", "status": "in_progress", "stall_after_secs": 600});
    send(timed.url(), "POST", "/api/jobs", long).await;
    let session = json!({"session_id": "s", "lease_secs": 600});
    send(timed.url(), "POST", "/api/enrollments", session).await;
    send(
        timed.url(),
        "PUT",
        "/api/devices/d",
        json!({"lease_secs": 600}),
    )
    .await;
    for _ in 0..2 {
        send(timed.url(), "POST", "/api/devices/d/heartbeat", json!({})).await;
    }
    let stored = timed.fill().await;
    assert_eq!(stored[1..], [1, 1]);
    assert!(timed.sweeps(0).await);
    for days in [2, 9, -2] {
        timed.set(days);
        assert!(!timed.sweeps(days).await);
        assert_eq!(timed.stored(), stored, "after {days} days");
        assert_eq!(standing(timed.url()).await, alive(), "after {days} days");
    }
    // It is logged once, and not at every check.
    assert!(!timed.sweeps(-2).await);
    timed.end();
    let log = reading.join().unwrap();
    assert_eq!(lines_about_the_clock(&log), 3, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_wall_clock_that_was_set_between_two_starts_removes_nothing() {
    if !needs("cc") {
        return;
    }
    let mut timed = Timed::start(&SHORT);
    let stored = timed.fill().await;
    assert!(timed.sweeps(0).await);
    for days in [2, 9, -2] {
        timed.end();
        timed.set(days);
        timed.begin();
        assert!(!timed.sweeps(days).await);
        assert_eq!(timed.stored(), stored, "after {days} days");
    }
    // Put right, it is relied on at once.
    timed.end();
    timed.set(0);
    timed.begin();
    assert!(timed.sweeps(0).await);
    assert_eq!(timed.stored(), stored);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_wall_clock_that_has_stood_since_it_was_set_removes_what_is_old() {
    if !needs("cc") {
        return;
    }
    let mut settings = SHORT.to_vec();
    settings.push(("TIDINGS_CLOCK_SETTLE_SECS", "12"));
    let timed = Timed::start(&settings);
    let stored = timed.fill().await;
    assert!(timed.sweeps(0).await);
    timed.set(9);
    assert!(!timed.sweeps(9).await);
    assert_eq!(timed.stored(), stored, "it has not stood yet");
    until("what is old is gone", async || timed.stored() == [0, 0, 0]).await;
}

/// Of the boot before nothing is known but when the server last looked.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_machine_that_was_off_for_days_sweeps_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        ("TIDINGS_RETENTION_SECS", "3600"),
        ("TIDINGS_CLOCK_SETTLE_SECS", "12"),
    ];
    let start = || {
        let mut command = command(folder.path());
        Process::start(command.arg("serve").envs(settings))
    };
    let mut server = start();
    let job = json!({"job_id": "j", "job_type": "t"});
    send(&server.url, "POST", "/api/jobs", job).await;
    until("it has looked", async || {
        wall_clock(folder.path()).is_some()
    })
    .await;
    assert_eq!(server.terminate(), Some(0));
    let off = TimeDelta::days(9).num_milliseconds();
    connect(&database(folder.path()))
        .batch_execute(&format!(
            "UPDATE events SET at = at - {off};
             UPDATE meta SET value = json_set(value, '$.boot', 'another', '$.looked_at', json_extract(value, '$.looked_at') - {off},
                 '$.booted_at', json_extract(value, '$.booted_at') - {off}, '$.relied_on', json_extract(value, '$.relied_on') - {off})
                 WHERE key = 'wall_clock'"
        ))
        .unwrap();
    let _server = start();
    until("the clock is not trusted", async || {
        wall_clock(folder.path()).is_some_and(|clock| clock["set_at"].is_u64())
    })
    .await;
    assert_eq!(count(folder.path(), "events"), 1);
    until("what is old is gone", async || {
        count(folder.path(), "events") == 0
    })
    .await;
}

/// A system gives process ids again. What a killed process leaves under its own would stop the next one that gets it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_under_a_clock_of_its_own_leaves_nothing_to_the_next_one() {
    if !needs("cc") {
        return;
    }
    let mut timed = Timed::start(&SHORT);
    timed.set(2);
    let mut server = timed.server.take().unwrap();
    let id = server.id().to_string();
    server.kill();
    let shared = std::fs::read_dir("/dev/shm").unwrap();
    let names = shared.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| name.ends_with(&id)).collect();
    assert!(left.is_empty(), "{left:?}");
}
