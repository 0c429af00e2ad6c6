//! Clocks that do not run as they should: a process that was stopped, against the real binary.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::silence::live_on;
use crate::support::process::{Process, command};
use crate::support::*;

/// How long a process is stopped: longer than any of the time-outs here.
const STOPPED: Duration = Duration::from_secs(6);

fn database(folder: &Path) -> PathBuf {
    folder.join("data/tidings.db")
}

async fn send(url: &str, method: &str, path: &str, body: Value) -> Value {
    let url = format!("{url}{path}");
    let request = reqwest::Client::new().request(method.parse().unwrap(), url);
    let (status, told) = answer(request.bearer_auth(far_token()).json(&body)).await;
    assert!(status < 300, "{method} {path}: {status} {told}");
    told
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

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_stopped_blames_nobody_for_the_silence() {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    begin(&server.url).await;
    stop_for_long(&server).await;
    server.signal("CONT");
    // The watchdog and the leases are looked at several times meanwhile.
    live_on(&database(folder.path()), 2_000).await;
    let told = story(&server.url).await;
    assert_eq!(told.iter().find(is_end), None, "{told:?}");
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
async fn what_waits_in_the_sockets_is_heard_before_anybody_is_judged() {
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
    let told = story(&server.url).await;
    assert_eq!(told.iter().find(is_end), None, "{told:?}");
}
