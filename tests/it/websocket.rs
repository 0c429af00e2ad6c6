//! The WebSocket endpoints: the multiplexed one, the one of existing progress clients, and the protocol's edges.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::listener::{Socket, receive, refused, send, socket, socket_url};
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
        "what is listened to already is not told again"
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

/// Channels that are added with a cursor: what was missed of them, not what the others have told already.
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
async fn a_message_that_is_too_big_is_told_and_closed() {
    let server = server_with(json!({"client_message_limit_bytes": 1_000})).await;
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(
        &mut ws,
        &format!(
            "{{\"type\":\"ping\",\"timestamp\":\"{}\"}}",
            "x".repeat(100_000)
        ),
    )
    .await;
    let closing = receive(&mut ws).await.unwrap();
    assert_eq!(
        (&closing["type"], &closing["code"], &closing["reconnect"]),
        (&json!("closing"), &json!(1009), &json!(false))
    );
    assert_eq!(receive(&mut ws).await, Err(Some(1009)));
    drop(ws);
    until("nothing is left", async || server.tidings.streams() == 0).await;
}

/// Bytes that are not WebSocket frames, an unmasked frame, a reserved opcode: closed, not crashed.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_protocol_is_closed_with_1002() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = server().await;
    for garbage in [
        &b"\x81\x02hi"[..],
        b"\x83\x80\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 64],
    ] {
        let mut stream = tokio::net::TcpStream::connect(server.url.trim_start_matches("http://"))
            .await
            .unwrap();
        let head = format!(
            "GET /ws?token={} HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            viewer(1)
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let count = stream.read(&mut answer).await.unwrap();
        assert!(answer[..count].starts_with(b"HTTP/1.1 101"));
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        let close = rest.windows(2).any(|pair| pair == 1002_u16.to_be_bytes());
        assert!(close, "{garbage:?}: {rest:?}");
    }
    until("nothing is left", async || server.tidings.streams() == 0).await;
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
async fn scopes_refuse_before_the_upgrade_and_the_older_endpoints_after_it() {
    let server = server().await;
    server.running_job("a").await;
    let url = |path: &str, token: Option<&str>| socket_url(&server.url, path, token, None);
    assert_eq!(refused(&url("/events/jobs", None)).await, 401);
    assert_eq!(refused(&url("/events/jobs", Some("x"))).await, 401);
    assert_eq!(
        refused(&url("/events/jobs/nobody", Some(&viewer(1)))).await,
        404
    );
    assert_eq!(refused(&url("/events/jobs/a", Some(&viewer(2)))).await, 404);

    for (path, code) in [("/ws", 4001), ("/progress/ws/a", 1008)] {
        for token in [None, Some("x")] {
            let (mut ws, _) = tokio_tungstenite::connect_async(url(path, token))
                .await
                .unwrap();
            let error = receive(&mut ws).await.unwrap();
            assert_eq!(error["type"], "error", "{path}");
            assert!(
                error["error"].as_str().unwrap().contains("token"),
                "{error}"
            );
            assert_eq!(receive(&mut ws).await, Err(Some(code)), "{path}");
        }
    }
}

/// Returns the next message that is no heartbeat. Between two steps of a slow machine, there may be some.
async fn news(ws: &mut Socket) -> Value {
    loop {
        let message = receive(ws).await.unwrap();
        if message["type"] != "heartbeat" {
            return message;
        }
    }
}

/// `/progress/ws/<job_id>` to the letter: clients of it exist.
#[tokio::test(flavor = "multi_thread")]
async fn progress_clients_get_what_they_were_promised() {
    let server = server_with(json!({"idle_heartbeat_secs": 1})).await;
    server.running_job("a").await;
    server.running_job("b").await;
    server
        .report(
            "/api/jobs/a/progress",
            json!({"progress": 33.3, "message": "Processing part 1 of 3", "metadata": {"page": 1}}),
        )
        .await;
    let mut ws = socket(&server.url, "/progress/ws/a", &viewer(1)).await;
    let first = receive(&mut ws).await.unwrap();
    for (name, value) in [
        ("job_id", json!("a")),
        ("status", json!("in_progress")),
        ("progress", json!(33.3)),
        ("message", json!("Processing part 1 of 3")),
        ("metadata", json!({"page": 1})),
    ] {
        assert_eq!(first[name], value, "{name}");
    }
    assert!(
        first["timestamp"].is_string(),
        "the job's present status at once, and no `connected`"
    );

    for text in ["ping", "{", "nonsense"] {
        send(&mut ws, text).await;
        let error = news(&mut ws).await;
        assert_eq!(
            (&error["type"], &error["error"]),
            (&json!("error"), &json!("Invalid JSON format")),
            "{text}"
        );
    }
    send(&mut ws, r#"{"type":"ping"}"#).await;
    assert_eq!(news(&mut ws).await["type"], "pong");
    send(&mut ws, r#"{"type":"subscribe","job_id":"b"}"#).await;
    assert_eq!(
        news(&mut ws).await["job_id"],
        "b",
        "no acknowledgement: the status itself"
    );
    send(&mut ws, r#"{"type":"subscribe","job_id":"nobody"}"#).await;
    assert_eq!(news(&mut ws).await["error"], "Job nobody not found");
    let silent = receive(&mut ws).await.unwrap();
    assert_eq!(silent["type"], "heartbeat", "after a client's silence");
    assert!(silent["timestamp"].is_string());
    server.report("/api/jobs/a/complete", json!({})).await;
    assert_eq!(news(&mut ws).await["status"], "completed");

    let mut ws = socket(&server.url, "/progress/ws/nobody", &viewer(1)).await;
    let error = receive(&mut ws).await.unwrap();
    assert_eq!(
        (&error["type"], &error["error"]),
        (&json!("error"), &json!("Job nobody not found"))
    );
    assert_eq!(receive(&mut ws).await, Err(Some(1000)));
    let mut ws = socket(&server.url, "/progress/ws/a", &viewer(2)).await;
    assert_eq!(
        receive(&mut ws).await.unwrap()["error"],
        "Job a not found",
        "another school's job does not exist"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_clients_can_resume_from_a_cursor() {
    let server = server().await;
    let start = server.running_job("a").await;
    for progress in 1..=3 {
        server
            .report("/api/jobs/a/progress", json!({"progress": progress}))
            .await;
    }
    let url = socket_url(
        &server.url,
        "/progress/ws/a",
        Some(&viewer(1)),
        start["cursor"].as_str(),
    );
    let (mut ws, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    for progress in 1..=3 {
        assert_eq!(
            receive(&mut ws).await.unwrap()["progress"],
            f64::from(progress)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
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
async fn a_token_may_come_as_a_subprotocol_which_is_answered() {
    let server = server().await;
    for (offered, chosen) in [
        (format!("bearer.{}", viewer(1)), None),
        (format!("tidings, bearer.{}", viewer(1)), Some("tidings")),
    ] {
        let mut request = socket_url(&server.url, "/events/jobs", None, None)
            .into_client_request()
            .unwrap();
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", offered.parse().unwrap());
        let (_, response) = tokio_tungstenite::connect_async(request).await.unwrap();
        assert_eq!(
            response.headers()["Sec-WebSocket-Protocol"],
            chosen.unwrap_or(&offered)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
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

/// A peer that vanished without a word answers no ping.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_gives_no_sign_of_life_is_given_up() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    let ws = socket(&server.url, "/events/jobs", &viewer(1)).await;
    until("it is open", async || server.tidings.streams() == 1).await;
    // Nobody reads, so nobody answers a ping; the connection itself stays up.
    let noticed = async { until("it is given up", async || server.tidings.streams() == 0).await };
    tokio::time::timeout(std::time::Duration::from_secs(6), noticed)
        .await
        .unwrap();
    drop(ws);
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
        let told: Vec<_> = messages
            .iter()
            .filter(|message| message["type"] == "job_progress")
            .collect();
        assert!(
            told.iter().all(|message| message["job_id"] == "b"),
            "no event of a channel that was left"
        );
        assert_eq!(
            told.iter()
                .map(|message| message["seq"].as_u64().unwrap())
                .collect::<Vec<_>>(),
            [2, 3, 4, 5, 6]
        );
    }
}

/// One of two channels is left while both are brought up to date: the other one is told whole.
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
async fn a_socket_without_a_channel_is_told_when_the_server_stops() {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_progress_client_that_subscribes_to_its_own_job_gets_its_status() {
    let server = server().await;
    server.running_job("a").await;
    let mut ws = socket(&server.url, "/progress/ws/a", &viewer(1)).await;
    receive(&mut ws).await.unwrap();
    send(&mut ws, r#"{"type":"subscribe","job_id":"a"}"#).await;
    assert_eq!(receive(&mut ws).await.unwrap()["job_id"], "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_is_not_called_unauthorized() {
    let server = server().await;
    server.running_job("a").await;
    for path in ["/ws", "/progress/ws/a"] {
        let url = socket_url(&server.url, path, Some(&viewer(1)), Some("yesterday"));
        let (mut ws, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        assert_eq!(receive(&mut ws).await.unwrap()["code"], "invalid-cursor");
        assert_eq!(receive(&mut ws).await, Err(Some(1008)));
    }
    let mut request = socket_url(&server.url, "/events/jobs", Some(&viewer(1)), None)
        .into_client_request()
        .unwrap();
    request
        .headers_mut()
        .insert("Accept", "text/html".parse().unwrap());
    assert!(
        tokio_tungstenite::connect_async(request).await.is_ok(),
        "a handshake is not judged by its Accept header"
    );
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
async fn another_websocket_version_is_told_which_one_is_spoken() {
    let server = server().await;
    let request = server
        .request("GET", "/events/jobs", &viewer(1))
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("Sec-WebSocket-Version", "8");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 426);
    assert_eq!(response.headers()["sec-websocket-version"], "13");
}

/// What is gathered for `initial_state` is told before a cursor that goes past it.
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
        let (mut told, mut acknowledged) = (0, 0);
        while acknowledged < 30 {
            let message = receive(&mut ws).await.unwrap();
            if message["type"] == "subscribed" {
                acknowledged += 1;
                let (_, seq, _) = parts(&message["cursor"]);
                assert_eq!(seq, told, "what a reader stands at is what it was told");
            }
            told = message["seq"].as_u64().unwrap_or(told);
        }
    }
}

/// Front ends hold the ids of devices and of all that concerns characteristics as numbers, and compare with `===`.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_plain_integers_are_numbers_where_clients_compare_them_so() {
    let server = server().await;
    for id in ["21", "021", "9007199254740992"] {
        server.put(&format!("/api/devices/{id}"), json!({})).await;
    }
    let limits = json!({"limits": {"center_line": 0.0, "ucl": 3.0, "lcl": -3.0}});
    server.put("/api/characteristics/7", limits).await;
    for (path, first) in [
        ("/ws/device-status", json!(21)),
        ("/ws/device-status?id_type=string", json!("21")),
        ("/ws/device-status?id_type=number", json!(21)),
    ] {
        let mut ws = socket(&server.url, path, &viewer(1)).await;
        until_type(&mut ws, "connected").await;
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(receive(&mut ws).await.unwrap()["device_id"].clone());
        }
        let expected = [first, json!("021"), json!("9007199254740992")];
        assert_eq!(ids, expected, "{path}");
    }
    let mut numeric = socket(&server.url, "/ws/samples", &viewer(1)).await;
    let mut text = socket(&server.url, "/ws?shape=flat", &viewer(1)).await;
    for (ws, asked, id) in [
        (&mut numeric, json!(["7"]), json!(7)),
        (&mut text, json!(["7"]), json!("7")),
    ] {
        let subscribe = json!({"type": "subscribe", "characteristic_ids": asked});
        send(ws, &subscribe.to_string()).await;
        let told = until_type(ws, "limits_update").await;
        assert_eq!(told[0]["characteristic_ids"], json!([id]));
        assert_eq!(told.last().unwrap()["characteristic_id"], id);
    }
    let sample = json!({"value": 9.0, "sample_id": 5});
    server
        .report("/api/characteristics/7/samples", sample)
        .await;
    let ack = json!({"reason": "known", "user": "Ada"});
    server.report("/api/violations/7.1/ack", ack).await;
    for (ws, id, sample_id) in [
        (&mut numeric, json!(7), json!(5)),
        (&mut text, json!("7"), json!("5")),
    ] {
        let told = until_type(ws, "ack_update").await;
        let of = |name: &str| told.iter().find(|own| own["type"] == name).unwrap();
        let sample = of("sample");
        assert_eq!(sample["characteristic_id"], id);
        assert_eq!(
            (
                &sample["sample"]["id"],
                &sample["sample"]["characteristic_id"]
            ),
            (&sample_id, &id)
        );
        let violation = &of("violation")["violation"];
        assert_eq!(
            (&violation["sample_id"], &violation["characteristic_id"]),
            (&sample_id, &id)
        );
        assert_eq!(sample["violations"][0], *violation);
        assert_eq!(violation["id"], "7.1", "no integer");
        assert_eq!(violation["severity"], "CRITICAL");
        assert_eq!(told.last().unwrap()["characteristic_id"], id);
    }
    let url = socket_url(
        &server.url,
        "/events/jobs?id_type=float",
        Some(&viewer(1)),
        None,
    );
    assert_eq!(refused(&url).await, 400);
}

/// On any stream, over each transport.
#[tokio::test(flavor = "multi_thread")]
async fn id_type_is_understood_on_every_stream() {
    let server = server().await;
    server.running_job("42").await;
    server.put("/api/devices/21", json!({})).await;
    for transport in Transport::ALL {
        for (scope, number) in [
            ("/schools/1?id_type=number", true),
            ("/schools/1?id_type=string", false),
            ("/schools/1", false),
        ] {
            let mut listener = server.listen(transport, scope).await;
            let told = listener.until_ready().await;
            let id = |name: &str| {
                let mut ids = told.iter().filter_map(|own| own.get(name));
                ids.next().cloned().unwrap()
            };
            let expected = match number {
                true => (json!(42), json!(21)),
                false => (json!("42"), json!("21")),
            };
            assert_eq!(
                (id("job_id"), id("device_id")),
                expected,
                "{transport:?} {scope}"
            );
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
    let told = until_type(&mut ws, "limits_update").await;
    assert_eq!(
        field(&told, "type"),
        ["error", "subscribed", "limits_update"]
    );
    assert_eq!(told[0]["code"], "not_found");
    let missing = json!(["characteristics/98", "characteristics/99"]);
    assert_eq!(told[0]["channels"], missing);
    for id in ["98", "99"] {
        assert!(
            told[0]["error"].as_str().unwrap().contains(id),
            "{}",
            told[0]
        );
    }
    assert_eq!(told[1]["characteristic_ids"], json!([1, 98, 99]));
    assert_eq!(told[2]["characteristic_id"], 1);
    server.put("/api/characteristics/99", limits).await;
    let sample = json!({"value": 0.5});
    server
        .report("/api/characteristics/99/samples", sample)
        .await;
    let told = until_type(&mut ws, "sample").await;
    assert_eq!(field(&told, "characteristic_id"), [99, 99]);

    // The same for any kind, and for a single one.
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut ws, r#"{"type":"subscribe","job_id":"later"}"#).await;
    let told = until_type(&mut ws, "ready").await;
    assert_eq!(field(&told, "type"), ["error", "subscribed", "ready"]);
    assert_eq!(told[0]["error"], "Job later not found");
    server.running_job("later").await;
    assert_eq!(receive(&mut ws).await.unwrap()["job_id"], "later");
    for asked in [r#"{"type":"subscribe","characteristic_ids":[]}"#] {
        send(&mut ws, asked).await;
        let told = until_type(&mut ws, "ready").await;
        assert_eq!(
            field(&told, "type"),
            ["subscribed", "ready"],
            "nothing, and so no error"
        );
    }
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
                let told: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(told["type"], "heartbeat");
                assert!(
                    told["cursor"].is_string() && told["timestamp"].is_string(),
                    "{told}"
                );
                assert!(pinged);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A client that pings to see whether its connection lasts is not to take a long replay for silence.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_ping_is_answered_while_a_subscription_waits_for_what_is_told_before() {
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
    let (mut told, mut ticks) = (Vec::new(), 0);
    while told.last() != Some(&"unsubscribed".to_owned()) {
        let said = match socket.next().await.unwrap().unwrap() {
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                message["type"].as_str().unwrap().to_owned()
            }
            Message::Pong(_) => "answer".to_owned(),
            _ => continue,
        };
        match said.as_str() {
            "job_progress" => ticks += 1,
            "subscribed" | "unsubscribed" | "pong" | "answer" => told.push(said),
            _ => {}
        }
        let is_answered = ["pong", "answer"]
            .iter()
            .all(|own| told.iter().any(|said| said == own));
        assert!(is_answered || ticks < TICKS / 2, "{told:?}");
    }
    assert_eq!(told.iter().filter(|own| *own == "subscribed").count(), 2);
    assert!(ticks >= TICKS, "{ticks}: and nothing is left out");
}
