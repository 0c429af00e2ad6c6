//! Channels that are added and left while others go on.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::until_type;
use crate::support::listener::{receive, send, socket};
use crate::support::*;

/// Channels that are added with a cursor: what was missed of them, not what the others have delivered already.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_can_be_added_from_a_cursor_while_others_go_on() {
    for window_events in [1_000, 1] {
        let server = server_with(json!({"window_events": window_events})).await;
        let start = server.running_job("a").await;
        server.running_job("b").await;
        let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
        send(&mut ws, r#"{"type":"subscribe","channels":["jobs/a"]}"#).await;
        until_type(&mut ws, "ready").await;
        for progress in 1..=3 {
            server
                .report("/api/jobs/a/progress", json!({"progress": progress}))
                .await;
            server
                .report("/api/jobs/b/progress", json!({"progress": progress}))
                .await;
        }
        let ask = json!({"type": "subscribe", "channels": ["jobs"], "cursor": start["cursor"]});
        send(&mut ws, &ask.to_string()).await;
        let messages = until_type(&mut ws, "ready").await;
        let of = |id: &str| -> Vec<u64> {
            messages
                .iter()
                .filter(|message| message["job_id"] == id)
                .map(|message| message["seq"].as_u64().unwrap())
                .collect()
        };
        assert_eq!(
            (of("a"), of("b")),
            (vec![3, 5, 7], vec![2, 4, 6, 8]),
            "window of {window_events}"
        );
        server.report("/api/jobs/b/complete", json!({})).await;
        assert_eq!(receive(&mut ws).await.unwrap()["seq"], 9);
    }
}

/// Messages sent back to back, while the first is still being carried out: what is left is left, and what is
/// added from a cursor has no gap.
#[tokio::test(flavor = "multi_thread")]
async fn leaving_and_adding_in_the_midst_of_a_snapshot_leaves_no_gap() {
    let server = server_with(json!({"window_events": 1})).await;
    let start = server.running_job("b").await;
    for progress in 1..=5 {
        server
            .report("/api/jobs/b/progress", json!({"progress": progress}))
            .await;
    }
    let lines: Vec<_> = (0..1_000)
        .map(|n| {
            json!({"op": "jobs.create", "job_id": format!("j{n}"), "job_type": "t"}).to_string()
        })
        .collect();
    server
        .request("POST", "/api/batch", &worker(1))
        .body(lines.join("\n"))
        .send()
        .await
        .unwrap();
    for _ in 0..5 {
        let mut ws = socket(&server.url, "/ws?tick_ms=0", &viewer(1)).await;
        send(&mut ws, r#"{"type":"subscribe","channels":["jobs"]}"#).await;
        send(&mut ws, r#"{"type":"unsubscribe","channels":["jobs"]}"#).await;
        send(
            &mut ws,
            &json!({"type": "subscribe", "job_id": "b", "cursor": start["cursor"]}).to_string(),
        )
        .await;
        until_type(&mut ws, "unsubscribed").await;
        let messages = until_type(&mut ws, "ready").await;
        let reports: Vec<_> = messages
            .iter()
            .filter(|message| message["type"] == "job_progress")
            .collect();
        assert!(
            reports.iter().all(|message| message["job_id"] == "b"),
            "no event of a channel that was left"
        );
        let seqs = reports.iter().map(|message| message["seq"].as_u64());
        let seqs: Vec<u64> = seqs.map(Option::unwrap).collect();
        // On a slow machine, a new estimate may follow.
        assert!(seqs.starts_with(&[2, 3, 4, 5, 6]), "{seqs:?}");
    }
}

/// One of two channels is left while both are brought up to date: the other one is delivered completely.
#[tokio::test(flavor = "multi_thread")]
async fn leaving_the_older_of_two_channels_does_not_hurt_the_newer() {
    let server = server_with(json!({"window_events": 1})).await;
    server.running_job("a").await;
    server.running_job("b").await;
    let mut ws = socket(&server.url, "/ws?tick_ms=0", &viewer(1)).await;
    for text in [
        r#"{"type":"subscribe","job_id":"a"}"#,
        r#"{"type":"subscribe","job_id":"b"}"#,
        r#"{"type":"unsubscribe","job_id":"a"}"#,
    ] {
        send(&mut ws, text).await;
    }
    let mut heard = Vec::new();
    while !heard
        .iter()
        .any(|message: &Value| message["job_id"] == "b" && message["snapshot"] == true)
    {
        heard.push(receive(&mut ws).await.unwrap());
    }
    server.report("/api/jobs/a/complete", json!({})).await;
    server.report("/api/jobs/b/complete", json!({})).await;
    let ended = loop {
        let message = receive(&mut ws).await.unwrap();
        if message["status"] == "completed" {
            break message;
        }
    };
    assert_eq!(ended["job_id"], "b");
}

/// A held tick goes before whatever an added channel brings.
#[tokio::test(flavor = "multi_thread")]
async fn adding_a_channel_neither_loses_nor_delays_a_held_tick() {
    let server = server().await;
    server.running_job("a").await;
    server.running_job("b").await;
    let mut ws = socket(&server.url, "/events/jobs/a?tick_ms=60000", &viewer(1)).await;
    until_type(&mut ws, "ready").await;
    server
        .report("/api/jobs/a/progress", json!({"progress": 1}))
        .await;
    assert_eq!(receive(&mut ws).await.unwrap()["progress"], 1.0);
    let held = server
        .report("/api/jobs/a/progress", json!({"progress": 2}))
        .await;
    until("it is on its way to the reader", async || {
        server.tidings.ready().await.is_ok()
    })
    .await;
    send(&mut ws, r#"{"type":"subscribe","job_id":"b"}"#).await;
    let messages = until_type(&mut ws, "ready").await;
    let at = |what: &dyn Fn(&Value) -> bool| messages.iter().position(what).unwrap();
    assert!(
        at(&|message| message["seq"] == held["seq"]) < at(&|message| message["type"] == "ready"),
        "{messages:#?}"
    );
    server.report("/api/jobs/a/complete", json!({})).await;
    assert_eq!(receive(&mut ws).await.unwrap()["status"], "completed");
}

/// Until an added channel is up to date, the acknowledgement carries a cursor that loses none of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_cursor_of_an_acknowledgement_is_safe_for_all_channels() {
    let server = server().await;
    let start = server.running_job("a").await;
    server.running_job("b").await;
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut ws, r#"{"type":"subscribe","job_id":"a"}"#).await;
    until_type(&mut ws, "ready").await;
    send(
        &mut ws,
        &json!({"type": "subscribe", "job_id": "b", "cursor": start["cursor"]}).to_string(),
    )
    .await;
    let messages = until_type(&mut ws, "ready").await;
    assert_eq!(messages[0]["cursor"], start["cursor"]);
}

/// What is gathered for `initial_state` is sent before a cursor that goes past it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn an_acknowledgement_in_the_midst_of_initial_state_does_not_go_before_it() {
    let server = server().await;
    let lines: Vec<_> = (1..=600)
        .map(|n| {
            json!({"op": "jobs.create", "job_id": format!("j{n}"), "job_type": "t"}).to_string()
        })
        .collect();
    server
        .request("POST", "/api/batch", &worker(1))
        .body(lines.join("\n"))
        .send()
        .await
        .unwrap();
    for _ in 0..20 {
        let mut ws = socket(&server.url, "/ws/upload-progress", &viewer(1)).await;
        // One of them arrives between two pages of the snapshot, sooner or later.
        for _ in 0..30 {
            send(&mut ws, r#"{"type":"subscribe","channels":["jobs"]}"#).await;
            tokio::task::yield_now().await;
        }
        let (mut last_seq, mut acknowledged) = (0, 0);
        while acknowledged < 30 {
            let message = receive(&mut ws).await.unwrap();
            if message["type"] == "subscribed" {
                acknowledged += 1;
                let (_, seq, _) = parts(&message["cursor"]);
                assert_eq!(
                    seq, last_seq,
                    "a reader's position is the last event that it received"
                );
            }
            last_seq = message["seq"].as_u64().unwrap_or(last_seq);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_yet_is_named_and_heard_of_from_its_creation() {
    let server = server().await;
    let limits = json!({"limits": {"center_line": 0.0, "ucl": 3.0, "lcl": -3.0}});
    server.put("/api/characteristics/1", limits.clone()).await;
    let mut ws = socket(&server.url, "/ws/samples", &viewer(1)).await;
    send(
        &mut ws,
        r#"{"type":"subscribe","characteristic_ids":[1,98,99]}"#,
    )
    .await;
    let messages = until_type(&mut ws, "limits_update").await;
    assert_eq!(
        field(&messages, "type"),
        ["error", "subscribed", "limits_update"]
    );
    assert_eq!(messages[0]["code"], "not_found");
    let missing = json!(["characteristics/98", "characteristics/99"]);
    assert_eq!(messages[0]["channels"], missing);
    for id in ["98", "99"] {
        assert!(
            messages[0]["error"].as_str().unwrap().contains(id),
            "{}",
            messages[0]
        );
    }
    assert_eq!(messages[1]["characteristic_ids"], json!([1, 98, 99]));
    assert_eq!(messages[2]["characteristic_id"], 1);
    server.put("/api/characteristics/99", limits).await;
    let sample = json!({"value": 0.5});
    server
        .report("/api/characteristics/99/samples", sample)
        .await;
    let messages = until_type(&mut ws, "sample").await;
    assert_eq!(field(&messages, "characteristic_id"), [99, 99]);

    // The same for any kind, and for a single one.
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut ws, r#"{"type":"subscribe","job_id":"later"}"#).await;
    let messages = until_type(&mut ws, "ready").await;
    assert_eq!(field(&messages, "type"), ["error", "subscribed", "ready"]);
    assert_eq!(messages[0]["error"], "Job later not found");
    server.running_job("later").await;
    assert_eq!(receive(&mut ws).await.unwrap()["job_id"], "later");
    for asked in [r#"{"type":"subscribe","characteristic_ids":[]}"#] {
        send(&mut ws, asked).await;
        let messages = until_type(&mut ws, "ready").await;
        assert_eq!(
            field(&messages, "type"),
            ["subscribed", "ready"],
            "nothing, and so no error"
        );
    }
}

/// A client that pings to see whether its connection lasts is not to take a long replay for silence.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_ping_is_answered_while_a_subscription_waits_for_earlier_messages() {
    const TICKS: usize = 2_000;
    let server = server_with(json!({"event_bytes_per_sec": 0})).await;
    server.running_job("a").await;
    server.running_job("b").await;
    let (_, page) = server.get("/api/jobs", &viewer(1)).await;
    // Far more than a connection holds that is not read.
    let tick = |number: usize| {
        let metadata = "m".repeat(15_000);
        let metadata = json!({"number": number, "text": metadata});
        let line = json!({"op": "jobs.progress", "job_id": "a", "metadata": metadata});
        format!("{line}\n")
    };
    for first in (0..TICKS).step_by(500) {
        let lines: String = (first..first + 500).map(tick).collect();
        let results = server.batch(&worker(1), lines).await;
        assert!(results.iter().all(|result| result["status"] == 200));
    }
    let mut socket = socket(&server.url, "/ws?tick_ms=0", &viewer(1)).await;
    for message in [
        json!({"type": "subscribe", "channels": ["jobs/a"], "cursor": page["cursor"]}),
        json!({"type": "subscribe", "channels": ["jobs/b"]}),
        json!({"type": "ping"}),
        json!({"type": "unsubscribe", "channels": ["jobs/a"]}),
    ] {
        send(&mut socket, &message.to_string()).await;
    }
    socket.send(Message::Ping(vec![1].into())).await.unwrap();
    let (mut answered, mut ticks) = (Vec::new(), 0);
    while answered.last() != Some(&"unsubscribed".to_owned()) {
        let message_type = match socket.next().await.unwrap().unwrap() {
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                message["type"].as_str().unwrap().to_owned()
            }
            Message::Pong(_) => "answer".to_owned(),
            _ => continue,
        };
        match message_type.as_str() {
            "job_progress" => ticks += 1,
            "subscribed" | "unsubscribed" | "pong" | "answer" => answered.push(message_type),
            _ => {}
        }
        let is_answered = ["pong", "answer"]
            .iter()
            .all(|expected| answered.iter().any(|answer| answer == expected));
        assert!(is_answered || ticks < TICKS / 2, "{answered:?}");
    }
    assert_eq!(
        answered
            .iter()
            .filter(|answer| *answer == "subscribed")
            .count(),
        2
    );
    assert!(ticks >= TICKS, "{ticks}: and nothing is left out");
}
