//! Acknowledgements of violations on `/ws` and `/ws/samples`: every connection of the school hears each once, whatever it
//! subscribes to.

use serde_json::{Value, json};

use crate::support::listener::{receive, send, socket, socket_url};
use crate::support::*;
use crate::websocket::until_type;

/// "All connected clients": whatever a connection has subscribed to, if anything.
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_reaches_every_connection_of_the_school() {
    let server = server().await;
    let limits = json!({"limits": {"center_line": 0.0, "ucl": 3.0, "lcl": -3.0}});
    for id in ["1", "2"] {
        server
            .put(&format!("/api/characteristics/{id}"), limits.clone())
            .await;
    }
    server.running_job("a").await;
    let limited = |channels: &[&str]| {
        let mut limited = claims(Some(1), tidings::auth::Role::Viewer);
        limited.channels = Some(
            channels
                .iter()
                .map(|channel| (*channel).to_owned())
                .collect(),
        );
        sign(&limited)
    };
    let mut hearing = Vec::new();
    for (path, subscribe, token) in [
        ("/ws/samples", None, viewer(1)),
        ("/ws", None, viewer(1)),
        (
            "/ws",
            Some(r#"{"type":"subscribe","job_id":"a"}"#),
            viewer(1),
        ),
        (
            "/ws/samples",
            Some(r#"{"type":"subscribe","characteristic_ids":[2]}"#),
            viewer(1),
        ),
        ("/ws", None, limited(&["characteristics/2"])),
    ] {
        let mut ws = socket(&server.url, path, &token).await;
        if let Some(subscribe) = subscribe {
            send(&mut ws, subscribe).await;
            until_type(&mut ws, "subscribed").await;
        }
        hearing.push((path, ws));
    }
    let mut deaf = Vec::new();
    for (path, token) in [
        ("/ws/samples", viewer(2)),
        ("/ws", limited(&["jobs"])),
        ("/progress/ws/a", viewer(1)),
    ] {
        let mut ws = socket(&server.url, path, &token).await;
        if path.contains("progress") {
            until_type(&mut ws, "job_progress").await;
        }
        deaf.push((path, ws));
    }
    let sample = json!({"value": 9.0});
    server
        .report("/api/characteristics/1/samples", sample)
        .await;
    let ack = json!({"reason": "known", "user": "Ada"});
    server.report("/api/violations/1.1/ack", ack).await;
    for (path, ws) in &mut hearing {
        let messages = until_type(ws, "ack_update").await;
        let other = [
            "ack_update",
            "limits_update",
            "control_limits",
            "ready",
            "job_progress",
        ];
        assert!(
            messages
                .iter()
                .all(|message| other.contains(&message["type"].as_str().unwrap())),
            "{path}: {messages:?}"
        );
    }
    for (path, ws) in &mut deaf {
        send(ws, r#"{"type":"ping"}"#).await;
        assert_eq!(receive(ws).await.unwrap()["type"], "pong", "{path}");
    }
    // A later subscription with an older cursor does not repeat it.
    let (_, ws) = &mut hearing[1];
    let start = json!({"type": "subscribe", "characteristic_ids": [1]});
    send(ws, &start.to_string()).await;
    let messages = until_type(ws, "ready").await;
    assert!(
        messages
            .iter()
            .all(|message| message["type"] != "ack_update"),
        "{messages:?}"
    );
}

/// Where a cursor is brought, what is sent before the first `subscribe` would lead past it.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_before_the_first_subscription_leave_no_gap() {
    let server = server().await;
    let limits = json!({"limits": {"center_line": 0.0, "ucl": 3.0, "lcl": -3.0}});
    server.put("/api/characteristics/1", limits).await;
    let from = server.running_job("a").await["cursor"].clone();
    let report = async |message: &str| {
        let body = json!({"message": message});
        server.report("/api/jobs/a/progress", body).await;
    };
    let acknowledge = async |number: usize| {
        for value in [9.0, 0.0] {
            let sample = json!({"value": value});
            server
                .report("/api/characteristics/1/samples", sample)
                .await;
        }
        let ack = json!({"reason": "known", "user": "Ada"});
        let path = format!("/api/violations/1.{number}/ack");
        server.report(&path, ack).await
    };
    report("one").await;
    let first = acknowledge(1).await["seq"].clone();
    let url = socket_url(&server.url, "/ws", Some(&viewer(1)), from.as_str());
    let (mut with_cursor, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let mut without = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut without, r#"{"type":"ping"}"#).await;
    until_type(&mut without, "pong").await;
    let second = acknowledge(2).await["seq"].clone();
    assert_eq!(receive(&mut without).await.unwrap()["seq"], second);
    report("two").await;

    send(&mut with_cursor, r#"{"type":"subscribe","job_id":"a"}"#).await;
    let received = until_type(&mut with_cursor, "ready").await;
    let acks = |messages: &[Value]| -> Vec<Value> {
        let acks = messages
            .iter()
            .filter(|message| message["type"] == "ack_update");
        acks.map(|message| message["seq"].clone()).collect()
    };
    let messages = |messages: &[Value]| -> Vec<Value> {
        let reports = messages
            .iter()
            .filter(|message| message["type"] == "job_progress");
        reports.map(|message| message["message"].clone()).collect()
    };
    assert_eq!(acks(&received), [first.clone(), second.clone()]);
    assert_eq!(messages(&received), ["one", "two"]);

    let subscribe = json!({"type": "subscribe", "job_id": "a", "cursor": from});
    send(&mut without, &subscribe.to_string()).await;
    let received = until_type(&mut without, "ready").await;
    assert_eq!(
        acks(&received),
        [first],
        "what was sent before is not sent again"
    );
    assert_eq!(messages(&received), ["one", "two"]);
}

/// An acknowledgement of school 1, and what is needed for one.
struct Acknowledging<'a> {
    server: &'a Server,
    violations: u64,
}

impl Acknowledging<'_> {
    async fn of(server: &Server) -> Acknowledging<'_> {
        server.put("/api/characteristics/c", json!({})).await;
        let violations = 0;
        Acknowledging { server, violations }
    }

    /// So many violations that are acknowledged at once. Returns the `seq`s of the acknowledgements.
    async fn happen(&mut self, count: u64) -> Vec<u64> {
        let mut lines = Vec::new();
        for number in self.violations + 1..=self.violations + count {
            lines.push(
                json!({"op": "characteristics.violations", "characteristic_id": "c", "rule_id": 1}),
            );
            let id = format!("c.{number}");
            lines.push(json!({"op": "violations.ack", "violation_id": id, "reason": "known"}));
        }
        self.violations += count;
        let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
        let answers = self.server.batch(&worker(1), lines.join("\n")).await;
        let acks = answers.iter().skip(1).step_by(2);
        acks.map(|answer| answer["event"]["seq"].as_u64().unwrap())
            .collect()
    }
}

fn acks(messages: &[Value]) -> Vec<u64> {
    let acks = messages
        .iter()
        .filter(|message| message["type"] == "ack_update");
    acks.map(|message| message["seq"].as_u64().unwrap())
        .collect()
}

/// Each milestone that has a commit of its own waits for the disk.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_in_a_batch_share_their_commits() {
    let server = server().await;
    let mut acknowledging = Acknowledging::of(&server).await;
    let commits = || server.tidings.store().commit_metrics().peek().commits;
    let before = commits();
    assert_eq!(acknowledging.happen(50).await.len(), 50);
    let count = commits() - before;
    assert!(count < 20, "{count} commits");
}

/// An event that every connection hears live still belongs in a replay that goes back further.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_beside_other_channels_has_the_acknowledgements_from_before_the_connection() {
    let server = server().await;
    let mut acknowledging = Acknowledging::of(&server).await;
    let from = server.running_job("a").await["cursor"].clone();
    let before = acknowledging.happen(3).await;
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut ws, r#"{"type":"subscribe","channels":["jobs"]}"#).await;
    let messages = until_type(&mut ws, "ready").await;
    assert!(acks(&messages).is_empty(), "{messages:?}");
    let after = acknowledging.happen(1).await;
    let subscribe = json!({"type": "subscribe", "channels": ["characteristics"], "cursor": from});
    send(&mut ws, &subscribe.to_string()).await;
    let messages = until_type(&mut ws, "ready").await;
    let mut heard = acks(&messages);
    heard.sort_unstable();
    assert_eq!(heard, [before, after].concat(), "each once");

    // Nor does a second replay from the same cursor repeat them.
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    let mut heard = Vec::new();
    for channel in ["jobs/a", "devices", "characteristics"] {
        let subscribe = json!({"type": "subscribe", "channels": [channel], "cursor": from});
        send(&mut ws, &subscribe.to_string()).await;
        heard.extend(acks(&until_type(&mut ws, "ready").await));
    }
    heard.sort_unstable();
    assert_eq!(heard.len(), 4, "{heard:?}");
    heard.dedup();
    assert_eq!(heard.len(), 4, "each once: {heard:?}");
}

/// Also one that is committed in the very moment in which the connection subscribes to something.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn an_acknowledgement_in_the_moment_of_a_subscription_is_heard() {
    let server = server().await;
    server.running_job("a").await;
    let mut acknowledging = Acknowledging::of(&server).await;
    for _ in 0..60 {
        let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
        // A message that is answered: the connection is open on both sides.
        send(&mut ws, r#"{"type":"ping"}"#).await;
        until_type(&mut ws, "pong").await;
        let subscribe = async {
            send(&mut ws, r#"{"type":"subscribe","job_id":"a"}"#).await;
            until_type(&mut ws, "ready").await
        };
        let (received, committed) = tokio::join!(subscribe, acknowledging.happen(1));
        let mut heard = acks(&received);
        if heard.is_empty() {
            heard = acks(&until_type(&mut ws, "ack_update").await);
        }
        assert_eq!(heard, committed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_channels_that_lags_hears_each_acknowledgement_once() {
    let server = server_with(json!({"mailbox_capacity": 8})).await;
    let mut acknowledging = Acknowledging::of(&server).await;
    let from = server.running_job("a").await["cursor"].clone();
    acknowledging.happen(20).await;
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut ws, r#"{"type":"ping"}"#).await;
    assert_eq!(receive(&mut ws).await.unwrap()["type"], "pong");
    let committed = acknowledging.happen(1_000).await;
    let mut heard = Vec::new();
    while heard.len() < committed.len() {
        let message = receive(&mut ws).await.unwrap();
        assert_eq!(message["type"], "ack_update");
        heard.push(message["seq"].as_u64().unwrap());
    }
    assert_eq!(
        heard, committed,
        "in order, and none from before the connection"
    );
    let subscribe = json!({"type": "subscribe", "job_id": "a", "cursor": from});
    send(&mut ws, &subscribe.to_string()).await;
    let messages = until_type(&mut ws, "ready").await;
    assert_eq!(acks(&messages).len(), 20, "those from before");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn leaving_channels_amid_a_replay_leaves_no_acknowledgement_out() {
    let server = server().await;
    let mut acknowledging = Acknowledging::of(&server).await;
    let from = server.running_job("a").await["cursor"].clone();
    let mut committed = acknowledging.happen(600).await;
    for _ in 0..10 {
        let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
        let subscribe =
            json!({"type": "subscribe", "channels": ["characteristics"], "cursor": from});
        send(&mut ws, &subscribe.to_string()).await;
        send(
            &mut ws,
            r#"{"type":"unsubscribe","channels":["characteristics"]}"#,
        )
        .await;
        let mut messages = until_type(&mut ws, "unsubscribed").await;
        committed.extend(acknowledging.happen(1).await);
        let cursor = messages.last().unwrap()["cursor"].clone();
        let (_, reached, _) = parts(&cursor);
        let subscribe =
            json!({"type": "subscribe", "channels": ["characteristics"], "cursor": cursor});
        send(&mut ws, &subscribe.to_string()).await;
        messages.extend(until_type(&mut ws, "ready").await);
        let mut heard: Vec<u64> = acks(&messages)
            .into_iter()
            .filter(|seq| *seq > reached)
            .collect();
        heard.sort_unstable();
        let expected: Vec<u64> = committed
            .iter()
            .copied()
            .filter(|seq| *seq > reached)
            .collect();
        assert_eq!(heard, expected, "from {reached} on");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_heartbeat_before_the_first_subscription_keeps_the_cursor_that_was_brought() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    let from = server.running_job("a").await["cursor"].clone();
    server
        .report("/api/jobs/a/progress", json!({"progress": 5}))
        .await;
    let path = "/ws?heartbeat=message";
    let url = socket_url(&server.url, path, Some(&viewer(1)), from.as_str());
    let (mut ws, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let messages = until_type(&mut ws, "heartbeat").await;
    assert_eq!(messages.last().unwrap()["cursor"], from);
    // One that brought none stands nowhere; a subscription to nothing does not change that.
    let mut ws = socket(&server.url, path, &viewer(1)).await;
    send(&mut ws, r#"{"type":"subscribe","characteristic_ids":[]}"#).await;
    let messages = until_type(&mut ws, "heartbeat").await;
    assert_eq!(field(&messages, "type"), ["subscribed", "heartbeat"]);
    for message in &messages {
        assert!(message.get("cursor").is_none(), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_characteristics_renews_a_connection_that_heard_acknowledgements() {
    let server = server().await;
    server.running_job("a").await;
    let mut acknowledging = Acknowledging::of(&server).await;
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut ws, r#"{"type":"subscribe","job_id":"a"}"#).await;
    until_type(&mut ws, "ready").await;
    let mut limited = claims(Some(1), tidings::auth::Role::Viewer);
    limited.channels = Some(vec!["jobs".into()]);
    let auth = json!({"type": "auth", "token": sign(&limited)});
    send(&mut ws, &auth.to_string()).await;
    until_type(&mut ws, "authenticated").await;
    acknowledging.happen(1).await;
    server
        .report("/api/jobs/a/progress", json!({"progress": 5}))
        .await;
    assert_eq!(receive(&mut ws).await.unwrap()["type"], "job_progress");
    // And the other way round.
    let auth = json!({"type": "auth", "token": viewer(1)});
    send(&mut ws, &auth.to_string()).await;
    until_type(&mut ws, "authenticated").await;
    acknowledging.happen(1).await;
    assert_eq!(receive(&mut ws).await.unwrap()["type"], "ack_update");
}
