//! `tidings watch`: what it prints, and how it ends.

use std::io::{BufRead, Read};

use serde_json::{Value, json};

use super::text;
use crate::support::process::{
    Guarded, Patient, Process, blocking, command, run, status_of, watch,
};
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn watching_a_job_ends_with_its_outcome() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    for (id, verb, body, code) in [
        ("good", "complete", json!({}), 0),
        (
            "bad",
            "fail",
            json!({"error": {"code": "x", "message": "y"}}),
            10,
        ),
        ("stopped", "cancel", json!({"force": true}), 11),
    ] {
        server.running_job(id).await;
        let mut watching = watch(&server, &[&format!("jobs/{id}"), "--json"]);
        let watched = blocking(move || run(&mut watching));
        until("it watches", async || server.tidings.streams() == 1).await;
        server
            .report(&format!("/api/jobs/{id}/progress"), json!({"progress": 50}))
            .await;
        server.report(&format!("/api/jobs/{id}/{verb}"), body).await;
        let output = watched.await;
        assert_eq!(
            output.status.code(),
            Some(code),
            "{id}: {}",
            text(&output.stderr)
        );
        let lines: Vec<Value> = text(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["type"], "connected");
        assert_eq!(lines.last().unwrap()["job_id"], id);
        until("the stream is gone", async || server.tidings.streams() == 0).await;
        // Over already: the snapshot tells.
        let mut again = watch(&server, &[&format!("jobs/{id}")]);
        let output = blocking(move || run(&mut again)).await;
        assert_eq!(output.status.code(), Some(code));
        assert!(
            text(&output.stdout).contains(id),
            "{}",
            text(&output.stdout)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn watching_an_enrollment_ends_with_its_outcome() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    let door = json!({"name": "Front door"});
    server.put("/api/devices/door", door).await;
    for (id, verb, body, code, expected) in [
        (
            "good",
            "complete",
            json!({"quality_score": 87}),
            0,
            "quality 87",
        ),
        ("bad", "error", json!({"code": "timeout"}), 10, "(timeout)"),
        (
            "stopped",
            "cancel",
            json!({"message": "Enough"}),
            11,
            "Enough",
        ),
    ] {
        server
            .report(
                "/api/enrollments",
                json!({"session_id": id, "device_id": "door"}),
            )
            .await;
        let mut watching = watch(&server, &[&format!("enrollments/{id}")]);
        let watched = blocking(move || run(&mut watching));
        until("it watches", async || server.tidings.streams() == 1).await;
        let ended = server
            .report(&format!("/api/enrollments/{id}/{verb}"), body)
            .await;
        let output = watched.await;
        assert_eq!(output.status.code(), Some(code), "{id}");
        let last = text(&output.stdout).lines().last().unwrap().to_owned();
        assert!(last.contains(id) && last.contains(expected), "{last}");
        until("the stream is gone", async || server.tidings.streams() == 0).await;
        // Over before the cursor: nothing more is printed of it, and still the outcome is known.
        let cursor = ended["cursor"].as_str().unwrap();
        let scope = format!("enrollments/{id}");
        let mut again = watch(&server, &[&scope, "--cursor", cursor]);
        let output = blocking(move || run(&mut again)).await;
        assert_eq!(output.status.code(), Some(code), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_a_school_prints_every_kind_in_lines() {
    let server = server().await;
    let mut watching = watch(&server, &["schools/1"]);
    let mut child = Guarded(
        watching
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    until("it watches", async || server.tidings.streams() == 1).await;
    server
        .put(
            "/api/devices/door",
            json!({"name": "Front door", "info": {"battery": 9}}),
        )
        .await;
    server
        .report("/api/devices/door/status", json!({"status": "offline"}))
        .await;
    server
        .report(
            "/api/enrollments",
            json!({"session_id": "s", "device_id": "door", "student_id": "Ada", "total_attempts": 3}),
        )
        .await;
    let limits = json!({"center_line": 28, "ucl": 29.5, "lcl": 26.5});
    server
        .put("/api/characteristics/bath", json!({"limits": limits}))
        .await;
    server
        .report(
            "/api/characteristics/bath/samples",
            json!({"value": 30.00004}),
        )
        .await;
    server
        .report(
            "/api/violations/bath.1/ack",
            json!({"reason": "Heater off", "user": "Kim"}),
        )
        .await;
    server
        .put(
            "/api/characteristics/bath",
            json!({"limits": {"method": "moving_range", "samples": 5}}),
        )
        .await;
    let expected = [
        ("unknown", "door  Front door"),
        ("info", r#"door  {"battery":9}"#),
        ("offline", "door  Front door"),
        ("ready", "s  door, Ada, scan 1 of 3, 0%: Ready"),
        ("limits", "bath  26.5 to 29.5 around 28 (given)"),
        ("sample", "bath  30 beyond_ucl OUT OF CONTROL"),
        ("violation", "bath.1  rule 1: Beyond 3 sigma, critical"),
        ("acknowledged", "bath.1  Kim: Heater off"),
        (
            "limits",
            "bath  26.5 to 29.5 around 28 (given), learning from the next 5 samples",
        ),
    ];
    let out = Patient(child.0.stdout.take().unwrap());
    let printed = blocking(move || {
        let lines = std::io::BufReader::new(out).lines();
        lines.take(9).collect::<Result<Vec<String>, _>>().unwrap()
    });
    for (line, (what, rest)) in printed.await.iter().zip(expected) {
        assert!(line.starts_with(&format!("{what:<13}{rest}")), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_says_why_it_cannot() {
    let server = server().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (scope, name, value, code) in [
        ("jobs/nobody", "", String::new(), 4),
        ("jobs", "TIDINGS_TOKEN", "bad".into(), 3),
        ("jobs", "TIDINGS_URL", format!("http://{nobody}"), 5),
        ("jobs?tick_ms=x", "", String::new(), 2),
        ("jobs?tick_ms= ", "", String::new(), 2),
        ("", "", String::new(), 2),
        ("cats", "", String::new(), 2),
        ("jo bs", "", String::new(), 2),
        ("jobs", "TIDINGS_URL", "nope".into(), 2),
        ("jobs", "TIDINGS_URL", "http://".into(), 2),
        ("jobs", "TIDINGS_URL", "ftp://127.0.0.1".into(), 2),
        ("jobs", "TIDINGS_TOKEN", "a\nb".into(), 2),
    ] {
        let mut watching = watch(&server, &[scope]);
        if !name.is_empty() {
            watching.env(name, value);
        }
        let output = blocking(move || run(&mut watching)).await;
        assert_eq!(
            output.status.code(),
            Some(code),
            "{scope} {name}: {}",
            text(&output.stderr)
        );
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("tidings: ") || stderr.starts_with("error: "));
        if code == 5 {
            assert!(stderr.contains(&format!("http://{nobody}")), "{stderr}");
        }
    }
}

#[test]
fn an_empty_variable_of_watch_is_as_good_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut watching = command(folder.path());
    watching.args(["watch", "jobs"]);
    let output = run(watching.env("TIDINGS_URL", "").env("TIDINGS_TOKEN", ""));
    let stderr = text(&output.stderr);
    // The default port may be free, or belong to a server that does not accept the token.
    assert!(matches!(output.status.code(), Some(3 | 5)), "{stderr}");
    assert!(
        stderr.contains("http://127.0.0.1:8000") || stderr.contains("HTTP 401"),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_jobs_are_named_by_title_or_path_or_id() {
    let server = server().await;
    for (id, metadata, name) in [
        (
            "a",
            json!({"title": "Yearbook", "path": "/docs/y"}),
            "Yearbook",
        ),
        ("b", json!({"path": "/docs/z"}), "/docs/z"),
        ("c", json!({}), "c"),
        (
            "d",
            json!({"title": "\u{200b} \u{2060}", "path": "/docs/d"}),
            "/docs/d",
        ),
        (
            "e",
            json!({"title": "\u{1b}\u{7}", "path": "\u{ad}\u{3164}"}),
            "e",
        ),
        ("f", json!({"title": "\t\u{a0}", "path": ""}), "f"),
    ] {
        let body =
            json!({"job_id": id, "job_type": "t", "status": "in_progress", "metadata": metadata});
        server.report("/api/jobs", body).await;
        let path = format!("/api/jobs/{id}/complete");
        server.report(&path, json!({"message": "Bound"})).await;
        let mut watching = watch(&server, &[&format!("jobs/{id}")]);
        let output = blocking(move || run(&mut watching)).await;
        let line = format!("completed   100% {name}  Bound\n");
        assert_eq!(text(&output.stdout), line);
    }
}

/// The server goes away and comes back: the watcher goes on where it was.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn watching_resumes_after_a_lost_connection() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    let http = reqwest::Client::new();
    let report = async |path: &str, body: Value| {
        let request = http
            .post(format!("http://127.0.0.1:{port}/api/jobs{path}"))
            .bearer_auth(worker(1))
            .json(&body);
        assert!(
            request.send().await.unwrap().status().is_success(),
            "{path}"
        );
    };
    report(
        "",
        json!({"job_id": "a", "job_type": "t", "status": "in_progress"}),
    )
    .await;
    let mut watching = command(folder.path());
    watching
        .args(["watch", "jobs/a?tick_ms=0", "--json"])
        .env("TIDINGS_URL", &server.url)
        .env("TIDINGS_TOKEN", viewer(1));
    let mut child = Guarded(
        watching
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = std::io::BufReader::new(Patient(child.0.stdout.take().unwrap())).lines();
    let mut next =
        move || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    while next()["type"] != "ready" {}
    server.kill();
    let _server = Process::start(
        command(folder.path())
            .arg("serve")
            .env("ROCKET_PORT", &port),
    );
    report("/a/progress", json!({"progress": 10})).await;
    report("/a/complete", json!({})).await;
    let (rest, complaint, code) = blocking(move || {
        let mut rest = Vec::new();
        loop {
            let message = next();
            let last = message["status"] == "completed";
            rest.push(message);
            if last {
                let mut complaint = String::new();
                let mut errors = Patient(child.0.stderr.take().unwrap());
                errors.read_to_string(&mut complaint).unwrap();
                return (rest, complaint, status_of(&mut child.0).code());
            }
        }
    })
    .await;
    assert_eq!(code, Some(0));
    let url = format!("http://127.0.0.1:{port}");
    let lost = format!("connection to {url} lost; trying again in");
    assert!(complaint.starts_with(&lost), "{complaint}");
    let back = format!("reconnected to {url}\n");
    assert!(complaint.ends_with(&back), "{complaint}");
    let seqs: Vec<_> = rest
        .iter()
        .filter_map(|message| message["seq"].as_u64())
        .collect();
    assert_eq!(seqs, [2, 3], "{rest:#?}");
    assert!(
        rest.iter()
            .all(|message| message["type"] != "reset" && message.get("snapshot").is_none())
    );
}
