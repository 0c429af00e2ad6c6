//! From one transport to another in mid-stream, at any moment and under load, and what else is the same whatever the
//! transport: cursors, filters, resets, refusals.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::listener::{rejected, socket_url};
use crate::support::*;

/// What a reader knows that records everything and comes back with the last cursor that it received.
#[derive(Default)]
struct Diary {
    cursor: Option<String>,
    /// The newest message of each job.
    jobs: BTreeMap<String, Value>,
    /// The numbers of all events, in the order in which they were delivered.
    seqs: Vec<u64>,
    milestones: BTreeSet<u64>,
    resets: usize,
}

impl Diary {
    fn note(&mut self, message: &Value) {
        if let Some(cursor) = message["cursor"].as_str() {
            self.cursor = Some(cursor.to_owned());
        }
        if message["type"] == "reset" {
            self.resets += 1;
            self.seqs.clear();
        }
        let Some(seq) = message["seq"].as_u64() else {
            return;
        };
        assert!(
            self.seqs.last().is_none_or(|last| *last < seq),
            "{seq} after {:?}",
            self.seqs.last()
        );
        self.seqs.push(seq);
        if message["status"] != "in_progress" || message["progress"].is_null() {
            self.milestones.insert(seq);
        }
        let id = message["job_id"].as_str().unwrap().to_owned();
        self.jobs.insert(id, message.clone());
    }
}

/// Jobs that begin, go on and end while others do; each step acknowledged before the next.
async fn work(server: &Server, jobs: std::ops::Range<usize>) {
    for job in jobs {
        let id = format!("j{job}");
        server.running_job(&id).await;
        for progress in 1..=4 {
            let path = format!("/api/jobs/{id}/progress");
            server
                .report(&path, json!({"progress": progress * 20}))
                .await;
        }
        let (path, body) = match job % 3 {
            0 => ("fail", json!({"error": {"code": "x", "message": "y"}})),
            _ => ("complete", json!({"result": job})),
        };
        server.report(&format!("/api/jobs/{id}/{path}"), body).await;
    }
}

/// Each ordered pair, each kind of moment, with and without conflation, from a snapshot and from a cursor.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_reader_that_changes_its_transport_at_any_moment_under_load_misses_nothing() {
    const JOBS: usize = 40;
    const EVENTS: u64 = JOBS as u64 * 6;
    for (tick_ms, window_events) in [(0, 1_024), (0, 3), (100, 1_024), (100, 3)] {
        let server = Arc::new(server_with(json!({"window_events": window_events})).await);
        // Something for a snapshot to tell.
        work(&server, 0..10).await;
        let mut start = String::new();
        let mut readers = Vec::new();
        for (number, (from_start, first, second)) in [true, false]
            .into_iter()
            .flat_map(|from_start| {
                Transport::ALL.into_iter().flat_map(move |first| {
                    let others = Transport::ALL
                        .into_iter()
                        .filter(move |second| *second != first);
                    others.map(move |second| (from_start, first, second))
                })
            })
            .enumerate()
        {
            if start.is_empty() {
                let (_, page) = server.get("/api/jobs?limit=1", &viewer(1)).await;
                let head = page["cursor"].as_str().unwrap();
                start = format!("{}-0", head.split('-').next().unwrap());
            }
            let mut diary = Diary {
                cursor: from_start.then(|| start.clone()),
                ..Diary::default()
            };
            let url = server.url.clone();
            readers.push(tokio::spawn(async move {
                let scope = format!("/jobs?tick_ms={tick_ms}");
                // A seed of its own, so that each breaks off at other moments, and the same ones each time.
                let mut chance = fastrand::Rng::with_seed(number as u64);
                for transport in [first, second].into_iter().cycle() {
                    let token = viewer(1);
                    let cursor = diary.cursor.clone();
                    let mut listener =
                        Listener::open(transport, &url, &scope, &token, cursor.as_deref()).await;
                    for _ in 0..chance.usize(1..12) {
                        let message = listener.next().await.unwrap();
                        diary.note(&message);
                        if diary.seqs.last() == Some(&EVENTS) {
                            return (from_start, diary);
                        }
                    }
                }
                unreachable!("it goes on for ever");
            }));
        }
        work(&server, 10..JOBS).await;
        let log = {
            let mut listener = server
                .resume(Transport::WebSocket, "/jobs?tick_ms=0", &start)
                .await;
            listener.until_ready().await
        };
        let mut whole = Diary::default();
        log.iter().for_each(|message| whole.note(message));
        assert_eq!(whole.seqs, (1..=EVENTS).collect::<Vec<_>>());
        for reader in readers {
            let (from_start, diary) = reader.await.unwrap();
            assert_eq!(diary.resets, 0);
            for (id, job) in &whole.jobs {
                let known = &diary.jobs[id];
                assert_eq!(
                    (&known["status"], &known["seq"]),
                    (&job["status"], &job["seq"])
                );
            }
            if from_start && tick_ms == 0 {
                assert_eq!(diary.seqs, whole.seqs);
            }
            if from_start {
                assert!(diary.milestones.is_superset(&whole.milestones));
            }
        }
    }
}

/// Too far behind on an open stream: a reset, a snapshot, and on; also if the reader changes its transport amid that.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_reset_in_mid_stream_is_followed_by_a_snapshot_on_any_transport() {
    for (transport, second) in [
        (Transport::EventSource, Transport::Poll),
        (Transport::WebSocket, Transport::EventSource),
        (Transport::Poll, Transport::WebSocket),
    ] {
        for amid in [false, true] {
            let settings =
                json!({"mailbox_capacity": 8, "window_events": 1, "replay_max_events": 20});
            let server = server_with(settings).await;
            server.running_job("a").await;
            server.running_job("b").await;
            let scope = "/jobs?tick_ms=0";
            let mut listener = server.listen(transport, scope).await;
            listener.until_ready().await;
            // Large enough to fill the socket's buffers while nobody reads.
            let text = "x".repeat(4_000);
            for _ in 0..15 {
                let line = json!({"op": "jobs.progress", "job_id": "a", "message": text});
                server
                    .batch(&worker(1), format!("{line}\n").repeat(500))
                    .await;
            }
            server
                .report("/api/jobs/a/complete", json!({"result": 1}))
                .await;
            let mut before = listener
                .take_until(|message| message["type"] == "reset")
                .await;
            let reset = before.pop().unwrap();
            assert_eq!(reset["reason"], "too_far_behind");
            let seqs: Vec<u64> = before
                .iter()
                .filter_map(|message| message["seq"].as_u64())
                .collect();
            assert!(seqs.is_sorted_by(|one, next| one < next));
            if amid {
                let cursor = listener.cursor.clone().unwrap();
                listener = server.resume(second, scope, &cursor).await;
            }
            let after = match (transport, amid) {
                // Of a poll's later answers the listener leaves `connected` and `ready` out.
                (Transport::Poll, false) => {
                    listener
                        .take_until(|message| message["job_id"] == "a")
                        .await
                }
                _ => listener.until_ready().await,
            };
            // The server sent these while jobs were still reported. Meanwhile a snapshot can become too old before it is complete,
            // so that another `reset` follows. Events that were committed after a snapshot follow it.
            for sent in after.split(|message| message["type"] == "reset") {
                let states = || sent.iter().filter(|message| message["seq"].is_u64());
                assert!(states().is_sorted_by_key(|message| message["seq"].as_u64()));
                let mut follows = states().skip_while(|message| message["snapshot"] == true);
                assert!(
                    follows.all(|message| message.get("snapshot").is_none()),
                    "{sent:?}"
                );
            }
            let last = after
                .rsplit(|message| message["type"] == "reset")
                .next()
                .unwrap();
            let states: Vec<&Value> = last
                .iter()
                .filter(|message| message["seq"].is_u64())
                .collect();
            let snapshots = states
                .iter()
                .take_while(|message| message["snapshot"] == true);
            assert_eq!(snapshots.count(), 2);
            let newest = states.last().unwrap();
            // The socket may have taken it before the end was published.
            if newest["result"] != 1 {
                let is_over = |message: &Value| message["result"] == 1;
                listener.take_until(is_over).await;
            }
            let event = server.report("/api/jobs/b/complete", json!({})).await;
            listener.take_until(|message| *message == event).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_filtered_replay_is_what_a_filtered_reader_would_have_heard() {
    for transport in Transport::ALL {
        for window_events in [1_000, 1] {
            let server = server_with(json!({"window_events": window_events})).await;
            let start = server.running_job("other").await;
            let start = start["cursor"].as_str().unwrap();
            for (id, job_type) in [("a", "scan"), ("b", "print"), ("c", "scan")] {
                let body = json!({"job_id": id, "job_type": job_type, "status": "in_progress"});
                server.report("/api/jobs", body).await;
                server
                    .report(&format!("/api/jobs/{id}/progress"), json!({"progress": 5}))
                    .await;
                server
                    .report(&format!("/api/jobs/{id}/complete"), json!({}))
                    .await;
            }
            for (filter, seqs) in [
                ("job_type=scan&tick_ms=0", vec![2, 3, 4, 8, 9, 10]),
                ("job_type=scan", vec![2, 4, 8, 10]),
                ("job_type=scan&status=completed", vec![4, 10]),
                (
                    "job_type=scan&job_type=print&status=completed&tick_ms=0",
                    vec![4, 7, 10],
                ),
                ("status=completed&status_case=upper", vec![4, 7, 10]),
            ] {
                let scope = format!("/jobs?{filter}");
                let mut listener = server.resume(transport, &scope, start).await;
                let messages = listener.until_ready().await;
                let events: Vec<&Value> = messages
                    .iter()
                    .filter(|message| message["seq"].is_u64())
                    .collect();
                let got: Vec<u64> = events
                    .iter()
                    .filter_map(|message| message["seq"].as_u64())
                    .collect();
                assert_eq!(
                    got, seqs,
                    "{transport:?} {filter}, a window of {window_events}"
                );
                if filter.contains("upper") {
                    assert!(events.iter().all(|event| event["status"] == "COMPLETED"));
                }
            }
        }
    }
}

/// One set of channels of several kinds, with more subjects than a page of the store has.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_of_several_kinds_is_one_ordered_stream() {
    let server = server().await;
    let lines: String = (0..300)
        .flat_map(|n| {
            [
                json!({"op": "jobs.create", "job_id": format!("j{n}"), "job_type": "t"}),
                json!({"op": "devices.put", "device_id": format!("d{n}")}),
            ]
        })
        .map(|line| format!("{line}\n"))
        .collect();
    server.batch(&worker(1), lines).await;
    let beyond = json!({"session_id": "s", "device_id": "d1", "student_id": "x"});
    for transport in Transport::ALL {
        let scope = "?channel=jobs&channel=devices&channel=enrollments/s&tick_ms=0";
        if transport == Transport::EventSource {
            server.report("/api/enrollments", beyond.clone()).await;
        }
        let mut listener = server.listen(transport, scope).await;
        let messages = listener.until_ready().await;
        let seqs: Vec<u64> = messages
            .iter()
            .filter_map(|message| message["seq"].as_u64())
            .collect();
        assert!(seqs.is_sorted_by(|one, next| one < next));
        let ids = |field: &str| {
            messages
                .iter()
                .filter(|message| message[field].is_string())
                .count()
        };
        assert!(ids("job_id") >= 300);
        assert!(
            ids("session_id") == 1 && seqs.len() >= 600,
            "{}",
            seqs.len()
        );
        let other = server
            .put(&format!("/api/devices/new-{transport:?}"), json!({}))
            .await;
        let job = server.report("/api/jobs", json!({"job_type": "t"})).await;
        assert_eq!(listener.next().await.unwrap(), other);
        assert_eq!(listener.next().await.unwrap(), job);
    }
}

/// `Last-Event-ID` goes before `?cursor=`: an `EventSource` that comes back sends both.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_may_come_back_in_the_address_or_in_the_header_which_goes_first() {
    let server = server().await;
    let mut cursors = Vec::new();
    cursors.push(
        server.running_job("a").await["cursor"]
            .as_str()
            .unwrap()
            .to_owned(),
    );
    for progress in 1..=3 {
        let event = server
            .report("/api/jobs/a/progress", json!({"progress": progress}))
            .await;
        cursors.push(event["cursor"].as_str().unwrap().to_owned());
    }
    for accept in ["text/event-stream", "application/json"] {
        for (query, header, first) in [
            (Some(0), None, 2),
            (None, Some(1), 3),
            (Some(0), Some(2), 4),
            (Some(2), Some(0), 2),
        ] {
            let query = query.map_or(String::new(), |index: usize| {
                format!("&cursor={}", cursors[index])
            });
            let path = format!("/events/jobs?tick_ms=0&wait=0{query}");
            let mut request = server
                .request("GET", &path, &viewer(1))
                .header("Accept", accept);
            if let Some(index) = header {
                request = request.header("Last-Event-ID", &cursors[index]);
            }
            let mut answer = request.send().await.unwrap();
            let mut text = String::new();
            while !text.contains("\"ready\"") {
                let part = tokio::time::timeout(PATIENCE, answer.chunk())
                    .await
                    .unwrap();
                text += std::str::from_utf8(&part.unwrap().unwrap()).unwrap();
            }
            let seq = text.split("\"seq\":").nth(1).unwrap();
            assert!(
                seq.starts_with(&first.to_string()),
                "{accept} {query}: {text}"
            );
        }
    }
}

/// The same refusals, whatever was to carry the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_may_not_listen_gets_the_same_error_on_every_transport() {
    let settings = json!({"jwt_audience": "tidings", "max_streams_per_user": 1});
    let server = server_with(settings).await;
    let now = chrono::Utc::now().timestamp();
    let token = |school: Option<i64>, role: Role, more: Value| {
        let mut claims = json!(claims(school, role));
        claims["aud"] = json!("tidings");
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        sign(&claims)
    };
    let good = token(Some(1), Role::Worker, json!({}));
    let body = json!({"job_id": "a", "job_type": "t"});
    assert_eq!(server.post("/api/jobs", &good, body).await.0, 201);
    let viewer = |more: Value| token(Some(1), Role::Viewer, more);
    for (path, token, status, code) in [
        ("jobs", String::new(), 401, "unauthorized"),
        ("jobs", "garbage".into(), 401, "unauthorized"),
        (
            "jobs",
            viewer(json!({"exp": now - 100})),
            401,
            "unauthorized",
        ),
        (
            "jobs",
            viewer(json!({"nbf": now + 100})),
            401,
            "unauthorized",
        ),
        (
            "jobs",
            viewer(json!({"aud": "others"})),
            401,
            "unauthorized",
        ),
        (
            "jobs",
            viewer(json!({"channels": ["devices"]})),
            403,
            "forbidden",
        ),
        (
            "jobs/a",
            token(Some(2), Role::Viewer, json!({})),
            404,
            "not-found",
        ),
        ("jobs/b", viewer(json!({})), 404, "not-found"),
        ("cats", viewer(json!({})), 404, "not-found"),
        ("jobs?cursor=x", viewer(json!({})), 400, "invalid-cursor"),
        ("jobs?tick_ms=x", viewer(json!({})), 400, "invalid-query"),
        (
            "jobs",
            token(None, Role::Admin, json!({})),
            400,
            "school-required",
        ),
    ] {
        for accept in ["text/event-stream", "application/json"] {
            let url = format!("{}/events/{path}", server.url);
            let mut request = server.http.get(url).header("Accept", accept);
            if !token.is_empty() {
                request = request.bearer_auth(&token);
            }
            let (got, problem) = answer(request).await;
            assert_eq!(
                (got, &problem["code"]),
                (status, &json!(code)),
                "{accept} {path}: {problem}"
            );
        }
        let token = Some(&*token).filter(|token| !token.is_empty());
        let url = socket_url(&server.url, &format!("/events/{path}"), token, None);
        assert_eq!(rejected(&url).await, status, "WebSocket {path}");
    }
    // As many as there may be: the one that is open goes on.
    let mut listener =
        Listener::open(Transport::WebSocket, &server.url, "/jobs", &good, None).await;
    listener.until_ready().await;
    for accept in ["text/event-stream", "application/json"] {
        let request = server.request("GET", "/events/jobs", &good);
        let answer = request.header("Accept", accept).send().await.unwrap();
        assert_eq!(answer.status(), 429);
        assert!(answer.headers().contains_key("Retry-After"));
    }
    let url = |path: &str| socket_url(&server.url, path, Some(&good), None);
    assert_eq!(rejected(&url("/events/jobs")).await, 429);
    let (_, response) = server.post("/api/jobs/a/start", &good, json!({})).await;
    assert_eq!(listener.next().await.unwrap(), response);
}

/// Some clients offer to go on with another protocol whatever they ask for.
#[tokio::test(flavor = "multi_thread")]
async fn who_offers_another_protocol_gets_what_he_accepts() {
    let server = server().await;
    for (accept, kind) in [
        ("application/json", "application/json"),
        ("text/event-stream", "text/event-stream"),
    ] {
        let request = server.request("GET", "/events/jobs?wait=0", &viewer(1));
        let request = request.header("Connection", "Upgrade, HTTP2-Settings");
        let request = request.header("Upgrade", "h2c").header("Accept", accept);
        let answer = request.send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (200, &kind.parse().unwrap())
        );
    }
}

/// A connected client that answers no ping gets a close message with the reason.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_client_that_answers_no_ping_gets_a_close_message_before_it_is_disconnected() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    let address = server.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET /ws?token={} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        viewer(1)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    let reading = stream.read_to_end(&mut heard);
    tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8_lossy(&heard);
    assert!(
        text.contains(
            r#""type":"closing","code":4408,"reason":"the client does not answer pings""#
        ),
        "{text}"
    );
    let close = [
        0x88,
        2 + "the client does not answer pings".len() as u8,
        0x11,
        0x38,
    ];
    assert!(
        heard.windows(4).any(|window| window == close),
        "and the close has the same code"
    );
}

/// A poll that waits gives signs of life that mean nothing, and its cursor has passed what is not for it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_poll_that_waits_shows_that_it_lives_and_its_cursor_moves_past_what_is_out_of_scope() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    let known = server.running_job("quiet").await;
    let request = server.request("GET", "/events/jobs/quiet?wait=3", &viewer(1));
    let request = request.header("Accept", "application/json");
    let request = request.header("Last-Event-ID", known["cursor"].as_str().unwrap());
    let mut waiting = request.send().await.unwrap();
    for (name, value) in [
        ("cache-control", "no-cache, no-transform"),
        ("x-accel-buffering", "no"),
        ("incremental", "?1"),
    ] {
        assert_eq!(waiting.headers()[name], value);
    }
    let other = server.running_job("other").await;
    let (mut text, mut alone) = (String::new(), 0);
    while let Some(part) = waiting.chunk().await.unwrap() {
        alone += usize::from(&*part == b"\n");
        text += std::str::from_utf8(&part).unwrap();
    }
    assert!(alone >= 1, "{text:?}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        field(answer["messages"].as_array().unwrap(), "type"),
        ["connected", "ready"]
    );
    assert_eq!(answer["cursor"], other["cursor"]);
    // When what it knew is no longer kept, what it received is.
    for transport in Transport::ALL {
        let cursor = answer["cursor"].as_str().unwrap();
        let mut listener = server.resume(transport, "/jobs/quiet", cursor).await;
        let messages = listener.until_ready().await;
        assert_eq!(field(&messages, "type"), ["connected", "ready"]);
    }
}
