//! The forms that existing clients expect are made from an event's typed payload: the one that was decided, or what is
//! read back of an event from the log.

use serde_json::{Value, json};

use crate::support::listener::{receive, socket};
use crate::support::*;

/// Publishes events of every type that has a form of its own, and returns the numbers of the last of either kind.
async fn publish(server: &Server) -> (Value, Value) {
    let dispersion = json!({"chart": "mr", "center_line": 0.1, "ucl": 0.2});
    let limits = json!({"center_line": 0.3, "ucl": 0.6, "lcl": 0.0, "dispersion": dispersion});
    let charted = json!({"rules": [1, 101], "limits": limits});
    server.put("/api/characteristics/a", charted).await;
    for value in [json!(0.1), json!(0.5), json!(9), Value::Null] {
        let sample = json!({"value": value});
        server
            .report("/api/characteristics/a/samples", sample)
            .await;
    }
    let reason = json!({"reason": "Seen"});
    server.report("/api/violations/a.1/ack", reason).await;
    let learning = json!({"subgroup_size": 2, "limits": {"method": "xbar_s", "samples": 2}});
    let last = server.put("/api/characteristics/7", learning).await["seq"].take();

    let file = json!({"job_id": "3", "job_type": "scan", "metadata": {"file_id": 12}});
    server.report("/api/jobs", file).await;
    server.report("/api/jobs/3/start", json!({})).await;
    let half = json!({"progress": 50.7, "message": "Half"});
    server.report("/api/jobs/3/progress", half).await;
    let result = json!({"result": {"pages": 1.5, "of": [null, "b"]}});
    server.report("/api/jobs/3/complete", result).await;
    server.running_job("broken").await;
    let error = json!({"error": {"code": "unreadable", "message": "Cannot read it"}});
    let end = server.report("/api/jobs/broken/fail", error).await["seq"].take();
    (last, end)
}

/// The events of characteristics in the flat form up to a number.
async fn flat(server: &Server, cursor: &str, last: &Value) -> Vec<Value> {
    let scope = "/characteristics?shape=flat&tick_ms=0&id_type=number";
    let mut listener = server.resume(Transport::EventSource, scope, cursor).await;
    let messages = listener.take_until(|message| message["seq"] == *last).await;
    messages
        .into_iter()
        .filter(|message| message["seq"].is_u64())
        .collect()
}

/// The events of jobs as uploads up to a number.
async fn uploads(server: &Server, cursor: &str, last: &Value) -> Vec<Value> {
    let path = format!("/ws/upload-progress?cursor={cursor}");
    let mut socket = socket(&server.url, &path, &viewer(1)).await;
    let mut events = Vec::new();
    loop {
        let message = receive(&mut socket).await.expect("it stays open");
        let is_last = message["seq"] == *last;
        events.extend(Some(message).filter(|message| message["seq"].is_u64()));
        if is_last {
            return events;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_is_the_same_of_an_event_from_memory_and_of_one_from_the_log() {
    let server = server().await;
    let begin = server.put("/api/devices/door", json!({})).await;
    let begin = begin["cursor"].as_str().unwrap();
    let (last, end) = publish(&server).await;
    let before = (
        flat(&server, begin, &last).await,
        uploads(&server, begin, &end).await,
    );
    let types = field(&before.0, "type");
    for name in ["sample", "violation", "ack_update", "limits_update"] {
        assert!(types.contains(&&json!(name)), "{name}: {types:?}");
    }
    let sample = before
        .0
        .iter()
        .find(|message| message["sample"]["id"] == "a.2");
    let sample = sample.unwrap();
    assert_eq!(sample["sample"]["dispersion"]["chart"], "mr");
    assert_eq!(sample["violations"][0]["severity"], "CRITICAL");
    assert_eq!(before.0.last().unwrap()["characteristic_id"], 7);
    let statuses = field(&before.1, "status");
    let expected = ["processing", "processing", "processing", "completed"];
    assert_eq!(statuses[..4], expected.map(Value::from).each_ref());
    assert_eq!(
        (&before.1[3]["file_id"], &before.1[3]["result"]),
        (&json!(12), &json!({"pages": 1.5, "of": [null, "b"]}))
    );
    assert_eq!(before.1.last().unwrap()["error"], "Cannot read it");

    // Another process has no event of it in memory.
    let server = server_in(server.stop().await, json!({})).await;
    let after = (
        flat(&server, begin, &last).await,
        uploads(&server, begin, &end).await,
    );
    assert_eq!(after, before);
}
