//! `tidings copy`: an installation moves from SQLite to Postgres, and its clients notice nothing but a reconnection.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::process::{Process, command, run};
use crate::support::store;
use crate::support::*;

/// Returns the command `tidings copy` with these arguments, its exit code, and what it said.
fn copy(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(command(folder)
        .env_remove("TIDINGS_DATABASE_URL")
        .arg("copy")
        .args(arguments));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn on_sqlite(folder: &Path) -> Process {
    Process::start(
        command(folder)
            .env_remove("TIDINGS_DATABASE_URL")
            .arg("serve"),
    )
}

fn on_postgres(folder: &Path, url: &str) -> Process {
    Process::start(
        command(folder)
            .env("TIDINGS_DATABASE_URL", url)
            .arg("serve"),
    )
}

async fn send(
    server: &Process,
    method: &str,
    path: &str,
    (token, key): (&str, &str),
    body: &Value,
) -> (u16, Value) {
    let request = reqwest::Client::new()
        .request(method.parse().unwrap(), format!("{}{path}", server.url))
        .bearer_auth(token)
        .header("Idempotency-Key", key)
        .json(body);
    answer(request).await
}

/// One request of each kind: method, path, body.
fn requests() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        (
            "POST",
            "/api/jobs",
            json!({"job_id": "done", "job_type": "t", "metadata": {"title": "Straße"}}),
        ),
        ("POST", "/api/jobs/done/start", json!({})),
        (
            "POST",
            "/api/jobs/done/complete",
            json!({"result": {"pages": 3}}),
        ),
        (
            "POST",
            "/api/jobs",
            json!({"job_id": "runs", "job_type": "t", "status": "in_progress"}),
        ),
        (
            "POST",
            "/api/jobs/runs/progress",
            json!({"progress": 40, "message": "a\u{0}b"}),
        ),
        (
            "POST",
            "/api/enrollments",
            json!({"session_id": "e", "device_id": "d", "student_id": "s"}),
        ),
        (
            "PUT",
            "/api/devices/d",
            json!({"name": "Door", "info": {"floor": 2}}),
        ),
        ("POST", "/api/devices/d/status", json!({"status": "online"})),
        (
            "PUT",
            "/api/characteristics/c",
            json!({"name": "Width", "limits": {"center_line": 5, "ucl": 6, "lcl": 4}}),
        ),
        (
            "POST",
            "/api/characteristics/c/samples",
            json!({"values": [9]}),
        ),
        (
            "POST",
            "/api/characteristics/c/samples",
            json!({"values": [5]}),
        ),
        (
            "PUT",
            "/api/schedules/nightly",
            json!({"cron": "0 3 * * *", "time_zone": "Europe/Berlin"}),
        ),
    ]
}

async fn publish(server: &Process, school: i64) -> Vec<Value> {
    let mut answers = Vec::new();
    for (number, (method, path, body)) in requests().into_iter().enumerate() {
        let key = format!("key-{number}");
        let (status, response) = send(server, method, path, (&worker(school), &key), &body).await;
        assert!(status < 300, "{path}: {status} {response}");
        answers.push(response);
    }
    answers
}

/// What a school looks like: lists, counts and history, without what depends on the time of the request.
async fn seen(server: &Process, school: i64) -> Vec<Value> {
    let mut seen = Vec::new();
    for path in [
        "/api/jobs",
        "/api/jobs?q=strasse",
        "/api/jobs/done",
        "/api/enrollments",
        "/api/devices",
        "/api/characteristics",
        "/api/schedules",
        "/api/violations",
    ] {
        let request = reqwest::Client::new()
            .get(format!("{}{path}", server.url))
            .bearer_auth(viewer(school));
        let (status, response) = answer(request).await;
        assert_eq!(status, 200, "{path}: {response}");
        seen.push(response);
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn clients_go_on_with_their_cursors_on_the_copy_and_no_key_is_carried_out_twice() {
    let folder = tempfile::tempdir().unwrap();
    let Some(url) = store::postgres_of(folder.path()) else {
        return;
    };
    let mut server = on_sqlite(folder.path());
    let answers = publish(&server, 1).await;
    publish(&server, 2).await;
    let before = [seen(&server, 1).await, seen(&server, 2).await];
    // A school without a log can have a key.
    let pings = reqwest::Client::new().post(format!("{}/api/pings", server.url));
    let new = json!({"job_type": "backup"});
    let (status, key) = answer(pings.bearer_auth(admin_of(3)).json(&new)).await;
    assert_eq!(status, 201, "{key}");
    let (code, output) = copy(folder.path(), &["--to", &url]);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("stop the server"), "{output}");
    server.terminate();

    let (code, output) = copy(folder.path(), &["--to", &url]);
    assert_eq!(code, Some(0), "{output}");
    assert!(
        output.contains("Copied 3 schools,") && output.contains("and 12 subjects."),
        "{output}"
    );

    let mut node = on_postgres(folder.path(), &url);
    let ping = format!("{}{}", node.url, key["url"].as_str().unwrap());
    assert_eq!(reqwest::get(ping).await.unwrap().status(), 204);
    // Devices are unknown after a start: their status is a new event.
    let is_of_devices = |shown: &Value| shown["devices"].is_array();
    for (school, before) in (1..).zip(before) {
        let after = seen(&node, school).await;
        for (before, after) in before
            .iter()
            .zip(&after)
            .filter(|(shown, _)| !is_of_devices(shown))
        {
            assert_eq!(without_times(before), without_times(after));
        }
    }
    for answer in &answers[..answers.len() - 1] {
        let after = answer["seq"].as_u64().unwrap();
        let messages = comes_back(&node, &answer["cursor"]).await;
        assert!(
            messages.iter().all(|message| message["type"] != "reset"),
            "{messages:?}"
        );
        let seqs: Vec<u64> = messages
            .iter()
            .filter_map(|message| message["seq"].as_u64())
            .collect();
        // A later event may have superseded the only tick, the progress.
        let is_tick = |seq: u64| requests()[4].1.ends_with("/progress") && answers[4]["seq"] == seq;
        let missed = (after + 1..=seqs[seqs.len() - 1]).filter(|seq| !seqs.contains(seq));
        assert!(missed.clone().all(is_tick), "{after}: {seqs:?}");
        assert!(
            seqs[0] > after && seqs.is_sorted_by(|one, next| one < next),
            "{seqs:?}"
        );
    }
    for (number, (method, path, body)) in requests().into_iter().enumerate() {
        let key = format!("key-{number}");
        let (_, response) = send(&node, method, path, (&worker(1), &key), &body).await;
        assert_eq!(
            response["cursor"], answers[number]["cursor"],
            "{path} is repeated"
        );
    }
    let (_, response) = send(
        &node,
        "POST",
        "/api/jobs",
        (&worker(1), "new"),
        &json!({"job_type": "t"}),
    )
    .await;
    assert!(response["seq"].as_u64() > answers.last().unwrap()["seq"].as_u64());
    node.terminate();

    let (code, output) = copy(folder.path(), &["--to", &url]);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("is not empty"), "{output}");
}

/// The messages for a reader of school 1 that comes back with a cursor.
async fn comes_back(server: &Process, cursor: &Value) -> Vec<Value> {
    let cursor = cursor.as_str().unwrap();
    let address = format!("{}/events/schools/1?wait=0&cursor={cursor}", server.url);
    let request = reqwest::Client::new().get(address).bearer_auth(viewer(1));
    let (_, page) = answer(request.header("Accept", "application/json")).await;
    page["messages"].as_array().unwrap().clone()
}

/// Removes the fields that change when a running job is looked at again.
fn without_times(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let changes = ["cursor", "seq", "timestamp"];
            let kept = object
                .iter()
                .filter(|(name, _)| !changes.contains(&name.as_str()));
            kept.map(|(name, value)| (name.clone(), without_times(value)))
                .collect()
        }
        Value::Array(items) => items.iter().map(without_times).collect(),
        other => other.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_copy_that_was_interrupted_is_not_opened_and_is_repeated_with_what_came_in_between() {
    let folder = tempfile::tempdir().unwrap();
    let Some(url) = store::postgres_of(folder.path()) else {
        return;
    };
    let mut server = on_sqlite(folder.path());
    publish(&server, 1).await;
    publish(&server, 2).await;
    server.terminate();
    let (code, output) = copy(folder.path(), &["--to", &url]);
    assert_eq!(code, Some(0), "{output}");
    // As it would be if it had been interrupted within the second school.
    let epoch = "INSERT INTO meta SELECT 'copied_from', value FROM meta WHERE key = 'epoch'";
    let mut undone = epoch.to_owned();
    for table in [
        "events",
        "subjects",
        "parts",
        "counts",
        "endings",
        "idempotency_keys",
        "schools",
    ] {
        undone.push_str(&format!("; DELETE FROM {table} WHERE school_id = 2"));
    }
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(&undone).await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();

    let rejected = run(command(folder.path())
        .env("TIDINGS_DATABASE_URL", &url)
        .arg("serve"));
    let stderr = String::from_utf8_lossy(&rejected.stderr).into_owned();
    assert!(
        !rejected.status.success() && stderr.contains("incomplete copy"),
        "{stderr}"
    );
    // The server goes on for a while, in the school that was complete.
    let mut server = on_sqlite(folder.path());
    let later = json!({"job_id": "later", "job_type": "import"});
    let key = (&*worker(1), "later");
    let (status, response) = send(&server, "POST", "/api/jobs", key, &later).await;
    assert_eq!(status, 201, "{response}");
    server.terminate();
    let (code, output) = copy(folder.path(), &["--to", &url]);
    assert_eq!(code, Some(0), "{output}");
    let node = on_postgres(folder.path(), &url);
    assert_eq!(seen(&node, 2).await[2]["job_id"], "done");
    let jobs = &seen(&node, 1).await[0];
    assert_eq!(jobs["jobs"][0]["job_id"], "later", "{jobs}");
}

#[test]
fn what_cannot_be_copied_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, expected, reason) in [
        (
            vec!["--to", "sqlite:x.db"],
            2,
            "--to must be a Postgres database",
        ),
        (
            vec!["--to", "postgres://u:secret@h:port/d"],
            2,
            "--to is not a Postgres URL",
        ),
        (
            vec!["--from", "postgres://h/d", "--to", "postgres://h/d"],
            2,
            "--from must be a SQLite database",
        ),
        (
            vec!["--from", "nowhere.db", "--to", "postgres://h/d"],
            4,
            "there is no database at nowhere.db",
        ),
    ] {
        let (code, output) = copy(folder.path(), &arguments);
        assert_eq!(code, Some(expected), "{output}");
        assert!(
            output.contains(reason) && !output.contains("secret"),
            "{output}"
        );
    }
}
