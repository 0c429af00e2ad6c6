//! The stream contract, each behaviour told once and run over SSE, WebSocket and long poll.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::auth::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

/// Runs a scenario over each transport, each time on a server of its own.
macro_rules! over_every_transport {
    ($($(#[$meta:meta])* async fn $name:ident($transport:ident) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            use super::*;

            async fn scenario($transport: Transport) $body

            #[tokio::test(flavor = "multi_thread")]
            async fn over_event_source() { scenario(Transport::EventSource).await }

            #[tokio::test(flavor = "multi_thread")]
            async fn over_websocket() { scenario(Transport::WebSocket).await }

            #[tokio::test(flavor = "multi_thread")]
            async fn over_long_poll() { scenario(Transport::Poll).await }
        }
    )*};
}

over_every_transport! {
    /// connected, a snapshot of each subject in the order of the log, ready, then live events.
    async fn a_snapshot_comes_first_and_then_what_happens(transport) {
        let server = server().await;
        server.running_job("a").await;
        server.report("/api/jobs", json!({"job_id": "b", "job_type": "test"})).await;
        server.report("/api/jobs/a/progress", json!({"progress": 30})).await;

        let mut listener = server.listen(transport, "/jobs").await;
        let messages = listener.until_ready().await;
        assert_eq!(field(&messages, "type"), ["connected", "job_progress", "job_progress", "ready"]);
        assert_eq!(messages[0]["channels"], json!(["jobs"]));
        assert_eq!((&messages[0]["school_id"], &messages[0]["heartbeat_secs"]), (&json!(1), &json!(15)));
        assert_eq!(field(&messages[1..3], "job_id"), ["b", "a"], "in the order of their last events");
        assert_eq!(field(&messages[1..3], "snapshot"), [true, true]);
        assert_eq!(messages[2]["progress"], 30.0);
        assert_eq!(messages[3]["cursor"], messages[2]["cursor"]);

        let told = server.report("/api/jobs/a/complete", json!({"result": {"pages": 3}})).await;
        let heard = listener.next().await.unwrap();
        assert_eq!(heard, told, "the answer to the write and the event are the same message");
        assert_eq!((&heard["status"], &heard["progress"]), (&json!("completed"), &json!(100.0)));
        assert_eq!((heard.get("snapshot"), &heard["result"]), (None, &json!({"pages": 3})));
        assert_eq!(heard["seq"], 4);
    }

    async fn a_reader_with_a_cursor_gets_what_it_missed_and_no_snapshot(transport) {
        let server = server().await;
        let first = server.running_job("a").await;
        server.report("/api/jobs/a/progress", json!({"message": "one"})).await;
        server.report("/api/jobs/a/progress", json!({"message": "two"})).await;
        server.report("/api/jobs/a/complete", json!({})).await;
        let scope = "/jobs/a?tick_ms=0";
        let mut listener = server.resume(transport, scope, first["cursor"].as_str().unwrap()).await;
        let messages = listener.until_ready().await;
        assert_eq!(field(&messages, "seq")[1..4], [2, 3, 4]);
        assert!(messages.iter().all(|message| message.get("snapshot").is_none()));
        assert_eq!(messages.len(), 5);
    }

    /// Also when the window does not go back that far and the store replays.
    async fn a_replay_skips_ticks_that_a_later_event_of_the_replay_supersedes(transport) {
        for window_events in [1_000, 1] {
            let server = server_with(json!({"window_events": window_events})).await;
            let first = server.running_job("a").await;
            server.running_job("b").await;
            for progress in 1..=600 {
                server.report("/api/batch", json!({"op": "jobs.progress", "job_id": "a", "progress": f64::from(progress) / 10.0})).await;
            }
            server.report("/api/jobs/b/progress", json!({"progress": 1})).await;
            let cursor = first["cursor"].as_str().unwrap();
            let mut listener = server.resume(transport, "/jobs", cursor).await;
            let messages = listener.until_ready().await;
            assert_eq!(field(&messages, "seq")[1..messages.len() - 1], [2, 602, 603], "window of {window_events}");
        }
    }

    async fn every_retained_event_is_replayed_with_tick_ms_zero(transport) {
        for window_events in [10_000, 1] {
            let server = server_with(json!({"window_events": window_events})).await;
            let first = server.running_job("a").await;
            let lines: Vec<_> = (1..=700).map(|n| json!({"op": "jobs.progress", "job_id": "a", "message": n.to_string()}).to_string()).collect();
            let sent = server.request("POST", "/api/batch", &worker(1)).body(lines.join("\n")).send().await.unwrap();
            assert_eq!(sent.status(), 200);
            let mut listener = server.resume(transport, "/jobs?tick_ms=0", first["cursor"].as_str().unwrap()).await;
            let messages = listener.until_ready().await;
            let seqs: Vec<_> = messages.iter().filter_map(|message| message["seq"].as_u64()).collect();
            assert_eq!(seqs, (2..=701).collect::<Vec<_>>());
        }
    }

    async fn a_cursor_of_another_database_is_answered_with_a_reset_and_a_snapshot(transport) {
        let server = server().await;
        server.running_job("a").await;
        for (cursor, reason) in [("00000000-1", "unknown_epoch")] {
            let mut listener = server.resume(transport, "/jobs", cursor).await;
            let messages = listener.until_ready().await;
            assert_eq!(field(&messages, "type"), ["connected", "reset", "job_progress", "ready"]);
            assert_eq!((&messages[1]["reason"], &messages[2]["snapshot"]), (&json!(reason), &json!(true)));
        }
        let head = server.report("/api/jobs/a/progress", json!({"progress": 5})).await;
        let (epoch, _, tag) = parts(&head["cursor"]);
        for (beyond, reason) in [
            (format!("{epoch}-99"), "unknown_epoch"),
            (format!("{epoch}-99-{tag}"), "history_changed"),
        ] {
            let messages = server.resume(transport, "/jobs", &beyond).await.until_ready().await;
            assert_eq!(messages[1]["reason"], reason, "a state that this database has not reached");
        }
    }

    async fn a_cursor_that_names_another_event_is_answered_with_a_reset_and_any_other_is_honoured(transport) {
        for window_events in [1, 1_000] {
            let server = server_with(json!({ "window_events": window_events })).await;
            server.running_job("a").await;
            let mut cursors = Vec::new();
            for progress in 1..=3 {
                let told = server.report("/api/jobs/a/progress", json!({ "progress": progress })).await;
                cursors.push(told["cursor"].clone());
            }
            for path in ["/jobs", "/jobs/a", "/schools/1"] {
                for cursor in &cursors {
                    let (epoch, seq, tag) = parts(cursor);
                    // After the last one there is nothing to tell, and a poll would wait.
                    let is_last = cursor == &cursors[2];
                    let without_tag = format!("{epoch}-{seq}");
                    for honoured in [format!("{epoch}-{seq}-{tag}"), without_tag.clone()] {
                        // On Postgres a number alone may name two events: before and after a promotion.
                        if is_last || (store::is_postgres() && honoured == without_tag) {
                            continue;
                        }
                        let messages = server.resume(transport, path, &honoured).await.until_ready().await;
                        assert_ne!(messages[1]["type"], "reset", "{honoured}");
                        let end = parts(&messages.last().unwrap()["cursor"]);
                        assert_eq!(end, parts(&cursors[2]), "where it is now");
                    }
                    let other = u32::from_str_radix(&tag, 16).unwrap() ^ 1;
                    let lost = format!("{epoch}-{seq}-{other:08x}");
                    let messages = server.resume(transport, path, &lost).await.until_ready().await;
                    assert_eq!(field(&messages, "type"), ["connected", "reset", "job_progress", "ready"]);
                    assert_eq!(messages[1]["reason"], "history_changed", "{lost}");
                    assert_eq!(messages[2]["cursor"], cursors[2], "a present state has the cursor of its last event");
                }
            }
        }
    }

    async fn a_cursor_before_what_is_retained_is_answered_with_a_reset(transport) {
        let server = server_with(json!({"retention_events": 2, "window_events": 1})).await;
        let first = server.running_job("a").await;
        for progress in [10, 20, 30] {
            server.report("/api/jobs/a/progress", json!({"progress": progress})).await;
        }
        server.tidings.store().sweep(chrono::Utc::now()).await.unwrap();
        let mut listener = server.resume(transport, "/jobs", first["cursor"].as_str().unwrap()).await;
        let messages = listener.until_ready().await;
        assert_eq!(field(&messages, "type"), ["connected", "reset", "job_progress", "ready"]);
        assert_eq!((&messages[1]["reason"], &messages[2]["progress"]), (&json!("expired"), &json!(30.0)));
        server.report("/api/jobs/a/progress", json!({"progress": 40})).await;
        assert_eq!(listener.next().await.unwrap()["progress"], 40.0, "and it goes on live");
    }

    async fn a_cursor_too_far_behind_is_answered_with_a_reset(transport) {
        let server = server_with(json!({"replay_max_events": 3, "window_events": 1})).await;
        let first = server.running_job("a").await;
        for progress in 1..=5 {
            server.report("/api/jobs/a/progress", json!({"progress": progress})).await;
        }
        let messages = server.resume(transport, "/jobs", first["cursor"].as_str().unwrap()).await.until_ready().await;
        assert_eq!(messages[1]["reason"], "too_far_behind");
    }

    async fn filters_really_filter_snapshots_replays_and_live_events(transport) {
        let server = server().await;
        for (id, job_type) in [("a", "scan"), ("b", "print"), ("c", "mail")] {
            server.report("/api/jobs", json!({"job_id": id, "job_type": job_type})).await;
        }
        let mut listener = server.listen(transport, "/jobs?job_type=scan&job_type=mail&status=pending&status=FAILED").await;
        let messages = listener.until_ready().await;
        assert_eq!(field(&messages[1..3], "job_id"), ["a", "c"]);
        for id in ["a", "b", "c"] {
            server.report(&format!("/api/jobs/{id}/start"), json!({})).await;
            server.report(&format!("/api/jobs/{id}/fail"), json!({"error": {"code": "x", "message": "y"}})).await;
        }
        let heard = [listener.next().await.unwrap(), listener.next().await.unwrap()];
        assert_eq!((field(&heard, "job_id"), field(&heard, "status")), (vec![&json!("a"), &json!("c")], vec![&json!("failed"); 2]));
    }

    async fn a_set_of_channels_is_one_ordered_stream(transport) {
        let server = server().await;
        for id in ["a", "b", "c"] {
            server.running_job(id).await;
        }
        let mut listener = server.listen(transport, "?channel=jobs/a&channel=jobs/b&channel=jobs/a").await;
        let messages = listener.until_ready().await;
        assert_eq!(field(&messages[1..3], "job_id"), ["a", "b"]);
        for id in ["c", "b", "a"] {
            server.report(&format!("/api/jobs/{id}/complete"), json!({})).await;
        }
        assert_eq!(listener.next().await.unwrap()["job_id"], "b");
        assert_eq!(listener.next().await.unwrap()["job_id"], "a");
    }

    async fn all_of_a_school_is_told_once_however_many_channels_an_event_is_on(transport) {
        let server = server().await;
        server.running_job("a").await;
        let mut listener = server.listen(transport, "?channel=schools/1&channel=jobs&channel=jobs/a&tick_ms=0").await;
        listener.until_ready().await;
        server.report("/api/jobs/a/progress", json!({"progress": 1})).await;
        server.report("/api/jobs/a/complete", json!({})).await;
        let heard = listener.take_until(|message| message["status"] == "completed").await;
        assert_eq!(field(&heard, "seq"), [2, 3]);
    }

    async fn an_administrator_of_all_schools_names_one(transport) {
        let server = server().await;
        server.running_job("a").await;
        for scope in ["/schools/1", "/jobs?school_id=1"] {
            let mut listener = Listener::open(transport, &server.url, scope, &admin(), None).await;
            let messages = listener.until_ready().await;
            assert_eq!((&messages[0]["school_id"], &messages[1]["job_id"]), (&json!(1), &json!("a")));
        }
    }

    async fn statuses_can_be_had_in_upper_case(transport) {
        let server = server().await;
        server.running_job("a").await;
        let mut listener = server.listen(transport, "/jobs/a?status_case=upper").await;
        assert_eq!(listener.until_ready().await[1]["status"], "IN_PROGRESS");
        server.report("/api/jobs/a/complete", json!({})).await;
        assert_eq!(listener.next().await.unwrap()["status"], "COMPLETED");
    }

    /// The newest state of a busy job is told, few of the steps to it are, and its end always is.
    async fn ticks_fold_by_time_and_milestones_never_wait(transport) {
        let server = server().await;
        server.running_job("a").await;
        server.running_job("b").await;
        let mut listener = server.listen(transport, "/jobs?tick_ms=60000").await;
        listener.until_ready().await;
        for progress in 1..=50 {
            server.report("/api/jobs/a/progress", json!({"progress": progress})).await;
        }
        // Held ticks of other subjects go before a milestone, in the order of the log.
        server.report("/api/jobs/b/complete", json!({})).await;
        server.report("/api/jobs/a/progress", json!({"progress": 60})).await;
        server.report("/api/jobs/a/complete", json!({})).await;
        let heard = listener.take_until(|message| message["job_id"] == "a" && message["status"] == "completed").await;
        let seqs: Vec<u64> = heard.iter().filter_map(|message| message["seq"].as_u64()).collect();
        assert!(seqs.is_sorted() && seqs.len() <= 5, "{seqs:?}");
        assert!(seqs.ends_with(&[55]) && seqs.contains(&53), "both milestones: {seqs:?}");
        assert!(!seqs.contains(&54), "the tick that its own milestone supersedes: {seqs:?}");
    }

    async fn a_stream_ends_when_its_token_does(transport) {
        let server = server().await;
        let soon = (chrono::Utc::now().timestamp_millis() + 1_500) as f64 / 1000.0;
        let token = sign(&json!({"sub": "x", "school_id": 1, "role": "viewer", "exp": soon}));
        let mut listener = Listener::open(transport, &server.url, "/jobs", &token, None).await;
        let connected = listener.next().await.unwrap();
        assert!(connected["expires_at"].as_str().unwrap().ends_with('Z'));
        let closing = listener.take_until(|message| message["type"] == "closing").await.pop().unwrap();
        assert_eq!((&closing["code"], &closing["reconnect"]), (&json!(4401), &json!(true)));
        assert_eq!(listener.next().await, None);
        until("the subscription is gone", async || server.tidings.streams() == 0).await;
    }

    async fn a_stopping_server_says_so_with_a_time_to_come_back(transport) {
        let server = server_with(json!({"reconnect_spread_ms": 500})).await;
        server.running_job("a").await;
        let mut listener = server.listen(transport, "/jobs").await;
        listener.until_ready().await;
        if transport == Transport::Poll {
            until("the first poll has ended", async || server.tidings.streams() == 0).await;
        }
        let waiting = tokio::spawn(async move { listener.next().await });
        // The poll must be waiting before the server stops, or it is refused instead.
        until("the stream is open", async || server.tidings.streams() == 1).await;
        server.stop().await;
        let closing = waiting.await.unwrap().unwrap();
        assert_eq!((&closing["type"], &closing["code"], &closing["reconnect"]), (&json!("closing"), &json!(1001), &json!(true)));
        assert!(closing["retry_ms"].as_u64().unwrap() < 500);
    }

    async fn another_school_is_not_heard_and_does_not_exist(transport) {
        let server = server().await;
        server.running_job("a").await;
        let mut other = Listener::open(transport, &server.url, "/jobs", &viewer(2), None).await;
        assert_eq!(other.until_ready().await.len(), 2, "no snapshot of another school's job");
        server.report("/api/jobs/a/complete", json!({})).await;
        // What is heard next is the other school's own: nothing came before it.
        let (status, own) = server.post("/api/jobs", &worker(2), json!({"job_id": "a", "job_type": "test"})).await;
        assert_eq!((status, &own["seq"]), (201, &json!(1)), "ids and numbers are a school's own");
        assert_eq!(other.next().await.unwrap(), own);
    }

    /// What is out of scope moves the cursor all the same: a quiet channel does not run out of retention.
    async fn a_heartbeat_carries_the_cursor_past_what_is_out_of_scope(transport) {
        if transport == Transport::Poll {
            return; // A poll's answer carries its cursor itself.
        }
        let server = server_with(json!({"heartbeat_secs": 1})).await;
        server.running_job("quiet").await;
        let mut listener = server.listen(transport, "/jobs/quiet").await;
        listener.until_ready().await;
        let other = server.running_job("other").await;
        let cursor = other["cursor"].as_str().unwrap().to_owned();
        let mut waiting = tokio::spawn(async move {
            let message = tokio::time::timeout(Duration::from_secs(3), listener.next()).await;
            (message.is_err(), listener)
        });
        let (quiet, listener) = (&mut waiting).await.unwrap();
        assert!(quiet, "a heartbeat reaches no handler");
        assert_eq!(listener.cursor.as_deref(), Some(&*cursor));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_falls_from_one_transport_to_the_next_without_loss_or_repetition() {
    let server = server().await;
    server.running_job("a").await;
    let mut listener = server.listen(Transport::WebSocket, "/jobs?tick_ms=0").await;
    listener.until_ready().await;
    let mut heard = Vec::new();
    for round in 0..12_u32 {
        for step in 0..5_u32 {
            server
                .report(
                    "/api/jobs/a/progress",
                    json!({"message": format!("{round}.{step}")}),
                )
                .await;
        }
        while heard.len() < (round as usize * 5) + 3 {
            heard.push(
                listener.next().await.unwrap()["message"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            );
        }
        let cursor = listener.cursor.clone().unwrap();
        let transport = Transport::ALL[round as usize % 3];
        listener = server.resume(transport, "/jobs?tick_ms=0", &cursor).await;
        let replayed = listener.until_ready().await;
        heard.extend(
            replayed
                .iter()
                .filter_map(|message| message["message"].as_str())
                .filter(|text| text.contains('.'))
                .map(str::to_owned),
        );
    }
    let told: Vec<String> = (0..60).map(|n| format!("{}.{}", n / 5, n % 5)).collect();
    assert_eq!(heard, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_many_subjects_comes_in_pages_and_misses_none_that_change_meanwhile() {
    let server = server().await;
    let lines: Vec<_> = (0..1_000)
        .map(|n| json!({"op": "jobs.create", "job_id": format!("j{n}"), "job_type": "test", "status": "in_progress"}).to_string())
        .collect();
    server
        .request("POST", "/api/batch", &worker(1))
        .body(lines.join("\n"))
        .send()
        .await
        .unwrap();
    let mut listener = server
        .listen(Transport::EventSource, "/jobs?tick_ms=0")
        .await;
    let first = listener.next().await.unwrap();
    assert_eq!(first["type"], "connected");
    for n in (0..1_000).step_by(7) {
        server
            .report(&format!("/api/jobs/j{n}/complete"), json!({}))
            .await;
    }
    server
        .report("/api/jobs", json!({"job_id": "last", "job_type": "test"}))
        .await;
    let messages = listener
        .take_until(|message| message["job_id"] == "last")
        .await;
    let mut states = std::collections::HashMap::new();
    let mut seq = 0;
    for message in messages
        .iter()
        .filter(|message| message["type"] == "job_progress")
    {
        assert!(
            message["seq"].as_u64().unwrap() > seq,
            "strictly increasing"
        );
        seq = message["seq"].as_u64().unwrap();
        states.insert(
            message["job_id"].as_str().unwrap().to_owned(),
            message["status"].clone(),
        );
    }
    for n in 0..1_000 {
        let status = if n % 7 == 0 {
            "completed"
        } else {
            "in_progress"
        };
        assert_eq!(states[&format!("j{n}")], status, "j{n}");
    }
}

/// Sends a raw request and gives all that comes within the first `bytes` bytes or until the end.
async fn raw(server: &Server, request: String, bytes: usize) -> String {
    let mut socket = tokio::net::TcpStream::connect(server.url.trim_start_matches("http://"))
        .await
        .unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        let mut part = [0; 4096];
        while answer.len() < bytes {
            match socket.read(&mut part).await.unwrap() {
                0 => break,
                count => answer.extend_from_slice(&part[..count]),
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_stream_over_http_1_0_is_not_chunked_and_ends_with_the_connection() {
    let server = server().await;
    server.running_job("a").await;
    let soon = chrono::Utc::now().timestamp() + 2;
    let token = sign(&json!({"sub": "x", "school_id": 1, "role": "viewer", "exp": soon}));
    let request =
        format!("GET /events/jobs HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    let answer = raw(&server, request, usize::MAX).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    assert!(body.starts_with("retry: "), "no chunk sizes: {body}");
    assert!(
        body.ends_with("\n\n") && body.contains("\"type\":\"closing\""),
        "{body}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_are_told_not_to_hold_a_stream_back() {
    let server = server().await;
    let response = server
        .request("GET", "/events/jobs?padding=2048&named=1", &viewer(1))
        .send()
        .await
        .unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("cache-control"), "no-cache, no-transform");
    assert_eq!(header("x-accel-buffering"), "no");
    assert_eq!(header("incremental"), "?1");
    let request = format!(
        "GET /events/jobs?padding=2048&named=1&token={} HTTP/1.0\r\nHost: x\r\n\r\n",
        viewer(1)
    );
    let answer = raw(&server, request, 2_400).await;
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    assert!(
        body.starts_with(':') && body.find("\nretry: ") == Some(2_047),
        "padding of so many bytes first, in the block of the first message: {body}"
    );
    assert!(
        body.contains("event: connected\ndata: {"),
        "named events: {body}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_accept_header_chooses_between_event_stream_and_poll() {
    let server = server().await;
    for (accept, content_type) in [
        (None, "text/event-stream"),
        (Some("*/*"), "text/event-stream"),
        (Some("text/event-stream"), "text/event-stream"),
        (Some("application/json"), "application/json"),
        (
            Some("application/json, text/event-stream;q=0.5"),
            "application/json",
        ),
        (Some("application/json;q=0.5, */*"), "text/event-stream"),
        (Some("text/html, */*;q=0.1"), "text/event-stream"),
    ] {
        let mut request = server.request("GET", "/events/jobs?wait=0", &viewer(1));
        if let Some(accept) = accept {
            request = request.header("Accept", accept);
        }
        let response = request.send().await.unwrap();
        assert_eq!(
            response.headers()["content-type"],
            content_type,
            "{accept:?}"
        );
    }
    let (status, problem) = answer(
        server
            .request("GET", "/events/jobs", &viewer(1))
            .header("Accept", "text/html"),
    )
    .await;
    assert_eq!((status, &problem["code"]), (406, &json!("not-acceptable")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_waits_as_long_as_it_was_asked_to_and_then_answers_with_a_cursor() {
    let server = server().await;
    let job = server.running_job("a").await;
    let path = format!(
        "/events/jobs?wait=1&cursor={}",
        job["cursor"].as_str().unwrap()
    );
    let (status, empty) = answer(
        server
            .request("GET", &path, &viewer(1))
            .header("Accept", "application/json"),
    )
    .await;
    assert_eq!((status, &empty["cursor"]), (200, &job["cursor"]));
    assert_eq!(
        field(empty["messages"].as_array().unwrap(), "type"),
        ["connected", "ready"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_departed_reader_is_noticed_and_leaves_nothing_behind() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    server.running_job("a").await;
    for transport in [Transport::EventSource, Transport::WebSocket] {
        let mut listener = server.listen(transport, "/jobs").await;
        listener.until_ready().await;
        assert_eq!(server.tidings.streams(), 1);
        drop(listener);
        let noticed =
            async { until("the stream is gone", async || server.tidings.streams() == 0).await };
        // Two heartbeats, and a moment for a busy machine.
        tokio::time::timeout(Duration::from_secs(5), noticed)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_its_own_scope_and_nothing_else() {
    let server = server().await;
    server.running_job("a").await;
    server.running_job("b").await;
    let (status, ticket) = server
        .post("/api/tickets", &viewer(1), json!({"channels": ["jobs/a"]}))
        .await;
    assert_eq!(status, 201);
    let open = async |path: String| {
        server
            .http
            .get(format!("{}{path}", server.url))
            .header("Accept", "application/json")
            .send()
            .await
            .unwrap()
    };
    let text = ticket["ticket"].as_str().unwrap();
    for _ in 0..2 {
        let answer: Value = open(format!("{}&wait=0", ticket["url"].as_str().unwrap()))
            .await
            .json()
            .await
            .unwrap();
        assert_eq!(
            answer["messages"][1]["job_id"], "a",
            "reusable within its time"
        );
    }
    for (path, status) in [
        (format!("/events/jobs/b?ticket={text}"), 403),
        (format!("/events/jobs?ticket={text}"), 403),
        (format!("/events/schools/2?ticket={text}"), 404),
        (format!("/api/jobs/a?ticket={text}"), 401),
        (format!("/api/jobs/a?token={text}"), 401),
        (format!("/events/jobs/a?token={text}"), 401),
        (format!("/events/jobs/a?ticket={}", viewer(1)), 401),
    ] {
        assert_eq!(open(path.clone()).await.status(), status, "{path}");
    }
    let (status, _) = server
        .post(
            "/api/tickets",
            &sign(&{
                let mut limited = claims(Some(1), Role::Viewer);
                limited.channels = Some(vec!["jobs/b".into()]);
                limited
            }),
            json!({"channels": ["jobs/a"]}),
        )
        .await;
    assert_eq!(
        status, 403,
        "a ticket reaches no further than the token it is made with"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_expires() {
    let server = server_with(json!({"ticket_ttl_secs": 1})).await;
    let made = json!({"channels": ["jobs"]});
    let (_, ticket) = server.post("/api/tickets", &viewer(1), made).await;
    let path = format!("{}&wait=0", ticket["url"].as_str().unwrap());
    until("the ticket expires", async || {
        let request = server.http.get(format!("{}{path}", server.url));
        let (status, answer) = answer(request.header("Accept", "application/json")).await;
        let detail = answer["detail"].as_str();
        assert!(
            status == 200 || detail.unwrap().contains("the ticket has expired"),
            "{answer}"
        );
        status == 401
    })
    .await;
}

/// An answer that is full ends in the midst of what there is, and its cursor is that of its last message.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_poll_loses_nothing() {
    let server = server_with(json!({"window_events": 4})).await;
    let metadata = "x".repeat(15_000);
    let start = server.report("/api/jobs", json!({"job_id": "a", "job_type": "t", "status": "in_progress", "metadata": {"x": metadata}})).await;
    let mut poll = server
        .resume(
            Transport::Poll,
            "/jobs?tick_ms=0",
            start["cursor"].as_str().unwrap(),
        )
        .await;
    let waiting = tokio::spawn(async move {
        let heard = poll.take_until(|message| message["seq"] == 601).await;
        heard
            .iter()
            .filter_map(|message| message["seq"].as_u64())
            .collect::<Vec<_>>()
    });
    until("it waits", async || server.tidings.streams() == 1).await;
    for _ in 0..3 {
        let lines =
            vec![json!({"op": "jobs.progress", "job_id": "a", "message": "on"}).to_string(); 200];
        server
            .request("POST", "/api/batch", &worker(1))
            .body(lines.join("\n"))
            .send()
            .await
            .unwrap();
    }
    assert_eq!(waiting.await.unwrap(), (2..=601).collect::<Vec<_>>());
}

/// What clients send that want one answer, not a stream.
#[tokio::test(flavor = "multi_thread")]
async fn json_by_name_goes_before_anything_by_wildcard() {
    let server = server().await;
    let request = server
        .request("GET", "/events/jobs?wait=0", &viewer(1))
        .header("Accept", "application/json, text/plain, */*");
    assert_eq!(
        request.send().await.unwrap().headers()["content-type"],
        "application/json"
    );
}

/// A job that ticks fast among many that tick slowly is heard of all the same.
#[tokio::test(flavor = "multi_thread")]
async fn folding_starves_nobody() {
    let server = server().await;
    for id in ["fast", "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"] {
        server.running_job(id).await;
    }
    let mut listener = server
        .listen(Transport::WebSocket, "/jobs?tick_ms=100")
        .await;
    listener.until_ready().await;
    let stopped = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let publishing = {
        let (stopped, url, http) = (
            std::sync::Arc::clone(&stopped),
            server.url.clone(),
            server.http.clone(),
        );
        tokio::spawn(async move {
            for round in 0.. {
                if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let mut lines = vec![
                        json!({"op": "jobs.progress", "job_id": "fast", "message": "on"})
                            .to_string();
                        3
                    ];
                lines.push(json!({"op": "jobs.progress", "job_id": format!("s{}", round % 8), "message": "on"}).to_string());
                http.post(format!("{url}/api/batch"))
                    .bearer_auth(worker(1))
                    .body(lines.join("\n"))
                    .send()
                    .await
                    .unwrap();
            }
        })
    };
    let mut others = 0;
    let mut fast = 0;
    while fast < 10 {
        if listener.next().await.unwrap()["job_id"] == "fast" {
            (fast, others) = (fast + 1, 0);
        } else {
            others += 1;
        }
        assert!(
            others < 40,
            "eight others have had their turn several times each"
        );
    }
    stopped.store(true, std::sync::atomic::Ordering::Relaxed);
    publishing.await.unwrap();
}

/// The blocks of an SSE stream up to one that contains `last`, as they are written.
async fn blocks_until(server: &Server, path: &str, last: &str) -> Vec<String> {
    let mut response = server
        .request("GET", path, &viewer(1))
        .send()
        .await
        .unwrap();
    let mut text = String::new();
    while !(text.contains(last) && text.ends_with("\n\n")) {
        let part = tokio::time::timeout(PATIENCE, response.chunk())
            .await
            .unwrap();
        text.push_str(std::str::from_utf8(&part.unwrap().unwrap()).unwrap());
    }
    text.split_terminator("\n\n").map(str::to_owned).collect()
}

/// Popular clients hand a block without data to their handlers as an empty message.
#[tokio::test(flavor = "multi_thread")]
async fn every_sse_block_has_data_and_a_heartbeat_is_a_named_event() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    server.running_job("a").await;
    for query in ["", "?padding=500", "?named=1"] {
        let path = format!("/events/jobs{query}");
        let blocks = blocks_until(&server, &path, "heartbeat\"").await;
        for block in &blocks {
            let lines = block.lines().filter(|line| line.starts_with("data: "));
            assert_eq!(lines.count(), 1, "{block}");
        }
        let first = &blocks[0];
        assert!(
            first.contains("retry: 2000\n") && first.contains("\"connected\""),
            "{first}"
        );
        let heartbeat = blocks.last().unwrap();
        let line = |name: &str| {
            let mut lines = heartbeat.lines();
            lines.find_map(|line| line.strip_prefix(name)).unwrap()
        };
        assert_eq!(line("event: "), "heartbeat", "{heartbeat}");
        let data: Value = serde_json::from_str(line("data: ")).unwrap();
        assert_eq!(
            (&data["type"], &data["cursor"]),
            (&json!("heartbeat"), &json!(line("id: ")))
        );
        assert!(data["timestamp"].is_string());
    }
}

/// A client may bring a cursor of an earlier server at this address; that is not its fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_last_event_id_is_a_reset_and_an_empty_one_a_fresh_start() {
    let server = server().await;
    server.running_job("a").await;
    let messages = async |query: &str, header: Option<&str>| {
        let path = format!("/events/jobs?wait=0{query}");
        let request = server.request("GET", &path, &viewer(1));
        let request = request.header("Accept", "application/json");
        let request = match header {
            Some(id) => request.header("Last-Event-ID", id),
            None => request,
        };
        let (status, answer) = answer(request).await;
        let types = answer["messages"].as_array().map(|told| {
            let types = told.iter().map(|own| own["type"].as_str().unwrap());
            types.collect::<Vec<_>>().join(" ")
        });
        (status, types.unwrap_or_default())
    };
    let (fresh, reset) = (
        (200, "connected job_progress ready".to_owned()),
        (200, "connected reset job_progress ready".to_owned()),
    );
    for foreign in [
        "0",
        "17",
        "01890a5d-ac96-774b-bcce-b302099a8057",
        "urn:uuid:5e94c686-2c0b-4f9b-958c-92ccc3bbb4eb",
        "1700000000000-0",
        "deadbeef-1",
    ] {
        assert_eq!(messages("", Some(foreign)).await, reset, "{foreign}");
        for name in ["lastEventId", "last-event-id"] {
            let query = format!("&{name}={foreign}");
            assert_eq!(messages(&query, None).await, reset, "{query}");
        }
    }
    for empty in ["&cursor=", "&lastEventId=", "&last-event-id="] {
        assert_eq!(messages(empty, None).await, fresh, "{empty}");
    }
    assert_eq!(messages("", Some("")).await, fresh);
    assert_eq!(
        messages("&cursor=0", None).await.0,
        400,
        "the client's own word"
    );
}

/// Polyfills cannot send a header, and put it into the address.
#[tokio::test(flavor = "multi_thread")]
async fn what_polyfills_send_in_place_of_last_event_id_is_the_cursor() {
    let server = server().await;
    let from = server.running_job("a").await["cursor"].clone();
    for message in ["one", "two"] {
        let body = json!({"message": message});
        server.report("/api/jobs/a/progress", body).await;
    }
    for name in ["lastEventId", "last-event-id", "cursor"] {
        let query = format!("/jobs?tick_ms=0&{name}={}", from.as_str().unwrap());
        for transport in Transport::ALL {
            let told = server.listen(transport, &query).await.until_ready().await;
            let told: Vec<_> = told
                .iter()
                .filter_map(|own| own["message"].as_str())
                .collect();
            assert_eq!(told, ["Connected", "one", "two"], "{transport:?} {query}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_size_of_events_cuts_what_is_large_and_says_so() {
    let server = server().await;
    let create = json!({"job_id": "a", "job_type": "t", "metadata": {"note": "n".repeat(3_000)}});
    server.report("/api/jobs", create).await;
    server.report("/api/jobs/a/start", json!({})).await;
    let result = json!({"result": {"text": "r".repeat(9_000)}});
    server.report("/api/jobs/a/complete", result).await;
    for transport in Transport::ALL {
        for (most, result, note) in [
            (20_000, true, true),
            (6_000, false, true),
            (1_024, false, false),
        ] {
            let scope = format!("/jobs/a?max_event_bytes={most}");
            let told = server.listen(transport, &scope).await.until_ready().await;
            let job = told
                .iter()
                .find(|own| own["type"] == "job_progress")
                .unwrap();
            assert_eq!(
                (
                    job["result"].is_object(),
                    job["metadata"]["note"].is_string()
                ),
                (result, note),
                "{transport:?} {most}"
            );
            assert_eq!(job["truncated"] == true, !(result && note));
            assert_eq!(
                (&job["status"], &job["progress"]),
                (&json!("completed"), &json!(100.0))
            );
        }
    }
    for wrong in ["1023", "0", "-1", "x"] {
        let path = format!("/events/jobs?max_event_bytes={wrong}");
        let (status, problem) = server.get(&path, &viewer(1)).await;
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!("invalid-query")),
            "{wrong}"
        );
    }
}
