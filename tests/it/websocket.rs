//! The WebSocket endpoints: the multiplexed one, its messages and its heartbeats.

mod channels;
mod progress_clients;
mod protocol;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::listener::{receive, send, socket, socket_url};
use crate::support::*;

/// What comes up to and with the first message of this type.
pub(crate) async fn until_type(socket: &mut listener::Socket, name: &str) -> Vec<Value> {
    let mut messages = Vec::new();
    loop {
        messages.push(receive(socket).await.unwrap());
        if messages.last().unwrap()["type"] == name {
            return messages;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_multiplexed_socket_says_nothing_until_it_is_asked_and_then_acknowledges() {
    let server = server().await;
    server.running_job("a").await;
    server.running_job("b").await;
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut ws, r#"{"action":"subscribe","job_id":"a"}"#).await;
    let messages = until_type(&mut ws, "ready").await;
    assert_eq!(
        field(&messages, "type"),
        ["subscribed", "job_progress", "ready"]
    );
    assert_eq!(
        (&messages[0]["job_id"], &messages[1]["job_id"]),
        (&json!("a"), &json!("a"))
    );
    assert!(messages[0]["cursor"].is_string());

    server
        .report("/api/jobs/b/progress", json!({"progress": 1}))
        .await;
    send(
        &mut ws,
        r#"{"type":"subscribe","channels":["jobs/b","jobs/a"]}"#,
    )
    .await;
    let messages = until_type(&mut ws, "ready").await;
    assert_eq!(
        field(&messages, "type"),
        ["subscribed", "job_progress", "ready"],
        "what is listened to already is not sent again"
    );
    assert_eq!(
        (&messages[1]["job_id"], &messages[1]["snapshot"]),
        (&json!("b"), &json!(true))
    );

    server
        .report("/api/jobs/a/progress", json!({"progress": 2}))
        .await;
    server
        .report("/api/jobs/b/progress", json!({"progress": 2}))
        .await;
    assert_eq!(receive(&mut ws).await.unwrap()["job_id"], "a");
    assert_eq!(receive(&mut ws).await.unwrap()["job_id"], "b");

    send(&mut ws, r#"{"type":"unsubscribe","job_id":"a"}"#).await;
    let answer = receive(&mut ws).await.unwrap();
    assert_eq!(
        (&answer["type"], &answer["job_id"]),
        (&json!("unsubscribed"), &json!("a"))
    );
    server.report("/api/jobs/a/complete", json!({})).await;
    server.report("/api/jobs/b/complete", json!({})).await;
    assert_eq!(receive(&mut ws).await.unwrap()["job_id"], "b");
    drop(ws);
    until("nothing is left", async || server.tidings.streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_messages_are_answered_and_the_connection_goes_on() {
    let server = server_with(json!({"channels_per_connection": 2})).await;
    for id in ["a", "b", "c"] {
        server.running_job(id).await;
    }
    let limited = sign(&{
        let mut limited = claims(Some(1), tidings::auth::Role::Viewer);
        limited.channels = Some(vec![
            "jobs/a".into(),
            "jobs/b".into(),
            "jobs/c".into(),
            "jobs/nobody".into(),
        ]);
        limited
    });
    let mut ws = socket(&server.url, "/ws", &limited).await;
    for (text, code) in [
        ("ping", "invalid_json"),
        ("{", "invalid_json"),
        ("\"text\"", "invalid_json"),
        (r#"{"type":"dance"}"#, "unknown_type"),
        (r#"{"type":"subscribe"}"#, "invalid_field"),
        (
            r#"{"type":"subscribe","channels":["cats"]}"#,
            "invalid_channel",
        ),
        (
            r#"{"type":"subscribe","channels":["jobs/a/b"]}"#,
            "invalid_channel",
        ),
        (
            r#"{"type":"subscribe","job_id":"a","cursor":"x"}"#,
            "invalid_cursor",
        ),
        (
            r#"{"type":"subscribe","channels":["schools/2"]}"#,
            "not_found",
        ),
        (r#"{"type":"subscribe","channels":["jobs"]}"#, "forbidden"),
        (
            r#"{"type":"subscribe","channels":["jobs/a","jobs/b","jobs/c"]}"#,
            "too_many_channels",
        ),
        (r#"{"type":"auth","token":"x"}"#, "unauthorized"),
    ] {
        send(&mut ws, text).await;
        let error = receive(&mut ws).await.unwrap();
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!(code)),
            "{text}"
        );
        assert_eq!(error["error"], error["message"]);
    }
    ws.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(receive(&mut ws).await.unwrap()["code"], "not_text");
    send(&mut ws, r#"{"type":"ping","timestamp":[1,"x"]}"#).await;
    assert_eq!(
        receive(&mut ws).await.unwrap(),
        json!({"type": "pong", "timestamp": [1, "x"]})
    );
    send(&mut ws, r#"{"type":"subscribe","job_id":"a"}"#).await;
    until_type(&mut ws, "ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_on_a_scope_takes_messages_too_and_answers_a_bare_ping() {
    let server = server().await;
    server.running_job("a").await;
    server.running_job("b").await;
    let mut ws = socket(&server.url, "/events/jobs/a", &viewer(1)).await;
    until_type(&mut ws, "ready").await;
    send(&mut ws, "ping").await;
    assert_eq!(receive(&mut ws).await.unwrap(), json!({"type": "pong"}));
    send(&mut ws, r#"{"type":"subscribe","job_id":"b"}"#).await;
    assert_eq!(until_type(&mut ws, "ready").await[1]["job_id"], "b");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_fresh_token_in_band_keeps_the_stream_open() {
    let server = server().await;
    server.running_job("a").await;
    let soon = (chrono::Utc::now().timestamp_millis() + 2_000) as f64 / 1000.0;
    let short = sign(&json!({"sub": "x", "school_id": 1, "role": "viewer", "exp": soon}));
    let mut ws = socket(&server.url, "/events/jobs", &short).await;
    until_type(&mut ws, "ready").await;
    for (token, type_) in [(viewer(2), "error"), (viewer(1), "authenticated")] {
        send(
            &mut ws,
            &json!({"type": "auth", "token": token}).to_string(),
        )
        .await;
        assert_eq!(receive(&mut ws).await.unwrap()["type"], type_);
    }
    until("the first token is over", async || {
        (chrono::Utc::now().timestamp_millis() as f64) / 1000.0 > soon + 0.2
    })
    .await;
    server.report("/api/jobs/a/complete", json!({})).await;
    assert_eq!(receive(&mut ws).await.unwrap()["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn heartbeats_are_pings_that_carry_the_cursor() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    let job = server.running_job("a").await;
    let mut ws = socket(&server.url, "/events/jobs", &viewer(1)).await;
    until_type(&mut ws, "ready").await;
    let ping = loop {
        match tokio::time::timeout(PATIENCE, ws.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            Message::Ping(payload) => break payload,
            other => assert!(!other.is_text(), "{other}"),
        }
    };
    assert_eq!(&ping[..], job["cursor"].as_str().unwrap().as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_multiplexed_socket_honours_a_cursor_in_its_address() {
    let server = server().await;
    let start = server.running_job("a").await;
    server
        .report("/api/jobs/a/progress", json!({"progress": 1}))
        .await;
    server.report("/api/jobs/a/complete", json!({})).await;
    let url = socket_url(
        &server.url,
        "/ws",
        Some(&viewer(1)),
        start["cursor"].as_str(),
    );
    let (mut ws, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    send(&mut ws, r#"{"type":"subscribe","job_id":"a"}"#).await;
    let messages = until_type(&mut ws, "ready").await;
    assert_eq!(messages[0]["cursor"], start["cursor"]);
    assert!(
        messages
            .iter()
            .all(|message| message.get("snapshot").is_none())
    );
    assert_eq!(messages[messages.len() - 2]["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_socket_without_a_channel_receives_a_close_message_when_the_server_stops() {
    let server = server().await;
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut ws, r#"{"type":"ping"}"#).await;
    receive(&mut ws).await.unwrap();
    let stopping = tokio::spawn(server.stop());
    let closing = receive(&mut ws).await.unwrap();
    assert_eq!(
        (&closing["type"], &closing["code"]),
        (&json!("closing"), &json!(1001))
    );
    assert_eq!(receive(&mut ws).await, Err(Some(1001)));
    stopping.await.unwrap();
}

/// Slow, but alive: a reader that takes its time with a backlog is not given up for its silence.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_slow_reader_with_a_backlog_is_not_cut_off() {
    let server = server_with(json!({"heartbeat_secs": 3})).await;
    server.running_job("a").await;
    let mut ws = socket(&server.url, "/events/jobs?tick_ms=0", &viewer(1)).await;
    until_type(&mut ws, "ready").await;
    let filler = "x".repeat(4_000);
    // Several times what the kernel's buffers hold: what those hold at the end must be read before a ping is seen.
    const EVENTS: u64 = 9_000;
    let lines: Vec<_> = (0..EVENTS / 3)
        .map(|_| json!({"op": "jobs.progress", "job_id": "a", "message": filler}).to_string())
        .collect();
    for _ in 0..3 {
        server.batch(&worker(1), lines.join("\n")).await;
    }
    let mut seqs = Vec::new();
    while seqs.len() < EVENTS as usize {
        let message = receive(&mut ws).await.expect("not cut off");
        let seq = message["seq"].as_u64();
        seqs.push(seq.unwrap_or_else(|| panic!("{message}")));
        if seqs.len() % 300 == 0 {
            // Longer in all than the two heartbeats after which a silent peer counts as gone.
            tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        }
    }
    assert_eq!(seqs, (2..=EVENTS + 1).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_may_be_a_message_in_addition_to_the_ping() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    server.running_job("a").await;
    let mut ws = socket(&server.url, "/events/jobs?heartbeat=message", &viewer(1)).await;
    until_type(&mut ws, "ready").await;
    let mut pinged = false;
    loop {
        match ws.next().await.unwrap().unwrap() {
            Message::Ping(_) => pinged = true,
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(message["type"], "heartbeat");
                assert!(
                    message["cursor"].is_string() && message["timestamp"].is_string(),
                    "{message}"
                );
                assert!(pinged);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}
