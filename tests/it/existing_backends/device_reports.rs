//! What an existing back end reports of devices and enrollment sessions.

use serde_json::{Value, json};

use crate::support::listener::{receive, send, socket};
use crate::support::*;

fn at(message: &Value) -> chrono::DateTime<chrono::Utc> {
    message["last_seen"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn last_seen_is_the_time_of_a_devices_own_last_report() {
    let server = server().await;
    let status = async |device: &str, body: Value| {
        server
            .report(&format!("/api/devices/{device}/status"), body)
            .await
    };
    for device in ["never", "beats", "checked"] {
        server
            .put(&format!("/api/devices/{device}"), json!({}))
            .await;
    }
    for reported in ["unknown", "offline"] {
        let event = status("never", json!({"status": reported})).await;
        assert_eq!(
            event["last_seen"],
            Value::Null,
            "{reported}: nobody has heard of it"
        );
    }
    let (_, never) = server.get("/api/devices/never", &viewer(1)).await;
    assert_eq!(
        (&never["status"], &never["last_seen"]),
        (&json!("offline"), &Value::Null)
    );

    // Also the heartbeats that have not been saved yet.
    let mut heartbeat = Value::Null;
    for _ in 0..5 {
        heartbeat = server
            .report("/api/devices/beats/heartbeat", json!({}))
            .await;
    }
    for reported in ["unknown", "offline"] {
        let event = status("beats", json!({"status": reported})).await;
        assert_eq!(
            at(&event),
            at(&heartbeat),
            "{reported}: a third party's word keeps it"
        );
    }
    let lines = r#"{"op": "devices.status", "device_id": "beats", "status": "unknown"}"#;
    let event = &server.batch(&worker(1), lines).await[0]["event"];
    assert_eq!(at(event), at(&heartbeat), "in a batch, too");

    // A health checker may know when a device was heard of; its times may lack a zone.
    let event = status(
        "checked",
        json!({"status": "online", "last_seen": "2026-01-31T09:30:00"}),
    )
    .await;
    assert_eq!(event["last_seen"], "2026-01-31T09:30:00.000Z");
    let body = json!({"status": "offline", "last_seen": "2026-01-31T10:31:00.25+01:00"});
    let event = status("checked", body).await;
    assert_eq!(event["last_seen"], "2026-01-31T09:31:00.250Z");
    // It does not go back.
    let event = status(
        "checked",
        json!({"status": "online", "last_seen": "2020-01-01T00:00:00Z"}),
    )
    .await;
    assert_eq!(event["last_seen"], "2026-01-31T09:31:00.250Z");
    let event = status("checked", json!({"status": "offline"})).await;
    assert_eq!(event["last_seen"], "2026-01-31T09:31:00.250Z");
    let ahead = (chrono::Utc::now() + chrono::TimeDelta::seconds(60)).to_rfc3339();
    let body = json!({"status": "online", "last_seen": ahead});
    let (rejected, problem) = server
        .post("/api/devices/checked/status", &worker(1), body)
        .await;
    assert_eq!(rejected, 422);
    assert_eq!(problem["detail"], "`last_seen` must not be in the future");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_status_report_is_enough_for_a_device_that_nobody_registered() {
    let server = server().await;
    let body = json!({"status": "online", "lease_secs": 600});
    let event = server.report("/api/devices/21/status", body).await;
    assert_eq!(
        (&event["status"], &event["lease_secs"]),
        (&json!("online"), &json!(600))
    );
    let (status, _) = server
        .post(
            "/api/devices/22/status",
            &worker(1),
            json!({"status": "online"}),
        )
        .await;
    assert_eq!(status, 404, "a mistyped id makes no device");
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_are_counted_by_themselves_where_nobody_counts_them() {
    let server = server().await;
    let event = server
        .report(
            "/api/enrollments",
            json!({"session_id": "s", "total_attempts": 3}),
        )
        .await;
    assert_eq!(
        event["device_id"],
        Value::Null,
        "of no device in particular"
    );
    server
        .report("/api/enrollments", json!({"session_id": "t"}))
        .await;
    let mut seen = Vec::new();
    for status in [
        "ready",
        "placing",
        "capturing",
        "processing",
        "placing",
        "capturing",
        "processing",
        "ready",
        "placing",
        "processing",
        "placing",
    ] {
        let body = json!({"status": status});
        let event = server.report("/api/enrollments/s/progress", body).await;
        seen.push((
            event["attempt"].as_u64().unwrap(),
            event["progress"].as_u64().unwrap(),
        ));
    }
    assert_eq!(
        seen,
        [
            (1, 0),
            (1, 0),
            (1, 0),
            (1, 0),
            (2, 33),
            (2, 33),
            (2, 33),
            (3, 66),
            (3, 66),
            (3, 66),
            (3, 66)
        ]
    );
    for (status, attempt) in [
        ("capturing", Value::Null),
        ("placing", json!(2)),
        ("processing", json!(2)),
    ] {
        let event = server
            .report("/api/enrollments/t/progress", json!({"status": status}))
            .await;
        assert_eq!(event["attempt"], attempt);
    }
}

/// A hook that comes back must not take the end of a session that it saw for a second one.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_had_ended_before_a_connection_is_not_delivered_again() {
    let server = server().await;
    for id in ["s", "t"] {
        server
            .report("/api/enrollments", json!({"session_id": id}))
            .await;
    }
    let path = "/ws/enrollment?session_id=s";
    let mut ws = socket(&server.url, path, &viewer(1)).await;
    for name in ["connected", "enrollment_progress"] {
        assert_eq!(receive(&mut ws).await.unwrap()["type"], name);
    }
    server
        .report("/api/enrollments/s/complete", json!({}))
        .await;
    assert_eq!(
        receive(&mut ws).await.unwrap()["type"],
        "enrollment_complete"
    );
    drop(ws);
    for path in [path, "/ws/enrollment"] {
        let mut ws = socket(&server.url, path, &viewer(1)).await;
        let connected = receive(&mut ws).await.unwrap();
        assert_eq!(connected["type"], "connected");
        send(&mut ws, "ping").await;
        loop {
            let message = receive(&mut ws).await.unwrap();
            if message["type"] == "pong" {
                break;
            }
            assert_eq!(message["session_id"], "t", "{path}: {message}");
        }
    }
    // A page that brings its cursor receives what it missed.
    let url = format!("{path}&cursor=");
    let (_, before) = server.get("/api/enrollments/t", &viewer(1)).await;
    let mut ws = socket(
        &server.url,
        &format!("{url}{}", before["cursor"].as_str().unwrap()),
        &viewer(1),
    )
    .await;
    assert_eq!(receive(&mut ws).await.unwrap()["type"], "connected");
    assert_eq!(
        receive(&mut ws).await.unwrap()["type"],
        "enrollment_complete"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn last_seen_takes_in_beats_that_came_just_before_and_does_not_go_back() {
    let server = server().await;
    server.put("/api/devices/21", json!({})).await;
    let lines = [
        r#"{"op": "devices.heartbeat", "device_id": 21}"#,
        r#"{"op": "devices.status", "device_id": 21, "status": "offline"}"#,
        r#"{"op": "devices.status", "device_id": 21, "status": "unknown", "last_seen": "2020-01-01T00:00:00"}"#,
        r#"{"op": "devices.status", "device_id": 21, "status": "online", "last_seen": "2020-01-01T00:00:00"}"#,
    ];
    let answers = server.batch(&worker(1), lines.join("\n")).await;
    let seen_at = at(&answers[0]["device"]);
    for answer in &answers[1..] {
        assert_eq!(at(&answer["event"]), seen_at, "{answer}");
    }
    // Nor does somebody who does not know make a device flap.
    for _ in 0..4 {
        for status in ["unknown", "offline"] {
            let body = json!({"status": status});
            let event = server.report("/api/devices/21/status", body).await;
            assert_eq!(event["flapping"], false);
        }
    }
    // What a device is can be known without its having been heard of.
    server.put("/api/devices/22", json!({})).await;
    server
        .report("/api/devices/22/info", json!({"info": {"model": "X"}}))
        .await;
    let (_, found) = server.get("/api/devices/22", &viewer(1)).await;
    assert_eq!(found["last_seen"], Value::Null);
}
