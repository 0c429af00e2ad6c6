//! Limits, each with its setting: what goes beyond is refused with a reason, is counted, and hurts nobody else.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::process::{Process, limited};
use crate::support::*;

/// How often something was refused, as the figures tell: by its code and the setting that was reached.
async fn rejections(server: &Server, code: &str, limit: &str) -> u64 {
    let answer = server.request("GET", "/metrics", &admin()).send().await;
    let text = answer.unwrap().text().await.unwrap();
    let name = format!("tidings_refusals_total{{code=\"{code}\",limit=\"{limit}\"}} ");
    let found = text.lines().find_map(|line| line.strip_prefix(&name));
    found.map_or(0, |count| count.parse().unwrap())
}

fn user(name: &str) -> String {
    let mut claims = claims(Some(1), tidings::auth::Role::Worker);
    claims.sub = name.into();
    sign(&claims)
}

/// Opens a stream, and keeps it open as long as the answer.
async fn open(server: &Server, token: &str, address: &str) -> reqwest::Response {
    let request = server.request("GET", "/events/jobs", token);
    let request = request.header("Accept", "text/event-stream");
    request.header("X-Real-IP", address).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_limited_by_user_by_address_by_school_and_in_all() {
    let settings = json!({
        "max_streams_per_user": 2, "max_streams_per_address": 3, "max_streams_per_school": 5, "max_streams": 6,
        "heartbeat_secs": 1,
    });
    let server = server_with(settings).await;
    let mut kept = Vec::new();
    for (name, address, status) in [
        ("ada", "10.0.0.1", 200),
        ("ada", "10.0.0.1", 200),
        ("ada", "10.0.0.1", 429),
        ("ada", "10.0.0.2", 429),
        ("bob", "10.0.0.1", 200),
        ("cy", "10.0.0.1", 429),
        ("cy", "10.0.0.2", 200),
        ("cy", "10.0.0.2", 200),
        ("dee", "10.0.0.3", 429),
    ] {
        let answer = open(&server, &user(name), address).await;
        assert_eq!(answer.status(), status, "{name} from {address}");
        if status == 429 {
            assert!(answer.headers().contains_key("Retry-After"));
            let problem: Value = answer.json().await.unwrap();
            assert_eq!(problem["code"], "too-many-streams", "{problem}");
        } else {
            kept.push(answer);
        }
    }
    // Another school has room, until the server has not.
    let other = open(&server, &viewer(2), "10.0.0.4").await;
    assert_eq!(other.status(), 200);
    assert_eq!(open(&server, &viewer(3), "10.0.0.5").await.status(), 503);
    assert_eq!(server.tidings.streams(), 6);
    for (code, limit, times) in [
        ("too-many-streams", "max_streams_per_user", 2),
        ("too-many-streams", "max_streams_per_address", 1),
        ("too-many-streams", "max_streams_per_school", 1),
        ("unavailable", "max_streams", 1),
    ] {
        assert_eq!(rejections(&server, code, limit).await, times, "{limit}");
    }
    // A reader that leaves makes room.
    kept.clear();
    until("they are noticed to have left", async || {
        open(&server, &user("ada"), "10.0.0.1").await.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_publishes_too_fast_waits_and_others_do_not() {
    let settings = json!({"publishes_per_sec": 1, "batch_limit_commands": 5});
    let server = server_with(settings).await;
    let create = json!({"job_id": "j", "job_type": "t", "status": "in_progress"});
    let ada = user("ada");
    assert_eq!(server.post("/api/jobs", &ada, create).await.0, 201);
    let report = |token: &str| {
        let request = server.request("POST", "/api/jobs/j/progress", token);
        request.json(&json!({"progress": 1})).send()
    };
    let mut rejected = None;
    for _ in 0..50 {
        let answer = report(&ada).await.unwrap();
        if answer.status() == 429 {
            rejected = Some(answer);
            break;
        }
    }
    let rejected = rejected.expect("five at once, and then one a second");
    let wait: u64 = rejected.headers()["Retry-After"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=2).contains(&wait));
    let problem: Value = rejected.json().await.unwrap();
    assert_eq!(problem["code"], "too-fast");
    assert_eq!(report(&user("bob")).await.unwrap().status(), 200);
    // A batch is taken whole or not at all.
    let lines = "{\"op\":\"jobs.progress\",\"job_id\":\"j\",\"progress\":2}\n".repeat(5);
    let batch = server.request("POST", "/api/batch", &ada).body(lines);
    assert_eq!(batch.send().await.unwrap().status(), 429);
    let (_, job) = server.get("/api/jobs/j", &ada).await;
    assert_eq!(job["progress"], 1.0);
    until("there is room again", async || {
        report(&ada).await.unwrap().status() == 200
    })
    .await;
    assert!(rejections(&server, "too-fast", "publishes_per_sec").await >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_too_much_gets_an_error_and_is_closed() {
    let server = server_with(json!({"client_messages_per_sec": 5})).await;
    let mut socket = listener::socket(&server.url, "/ws", &viewer(1)).await;
    for _ in 0..50 {
        listener::send(&mut socket, r#"{"type":"ping"}"#).await;
    }
    let (heard, code) = listener::until_closed(&mut socket).await;
    let types = field(&heard, "type");
    let pongs = types
        .iter()
        .filter(|message_type| **message_type == "pong")
        .count();
    assert!((10..50).contains(&pongs), "{pongs} were answered");
    assert_eq!(types[types.len() - 2..], ["error", "closing"]);
    assert_eq!(heard[heard.len() - 2]["code"], "too_fast");
    assert_eq!(code, Some(1013));
    assert_eq!(
        rejections(&server, "too_fast", "client_messages_per_sec").await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_school_has_so_many_subjects_and_no_more_also_after_a_restart() {
    let settings = json!({
        "jobs_per_school": 3, "devices_per_school": 1, "enrollments_per_school": 1, "characteristics_per_school": 1,
        "schedules_per_school": 1,
    });
    let first = server_with(settings.clone()).await;
    let lines: String = (0..5)
        .map(|n| format!("{{\"op\":\"jobs.create\",\"job_id\":\"j{n}\",\"job_type\":\"t\"}}\n"))
        .collect();
    let results = first.batch(&worker(1), lines).await;
    assert_eq!(field(&results, "status"), [200, 200, 200, 409, 409]);
    assert_eq!(results[3]["problem"]["code"], "too-many-subjects");
    // What is there goes on, and another school has its own.
    first.report("/api/jobs/j0/start", json!({})).await;
    let job = json!({"job_id": "theirs", "job_type": "t"});
    assert_eq!(first.post("/api/jobs", &worker(2), job).await.0, 201);
    for (path, body) in [
        ("/api/devices", json!({})),
        ("/api/characteristics", json!({})),
        ("/api/schedules", json!({"period_secs": 60})),
    ] {
        for (id, status) in [("a", 200), ("b", 409), ("a", 200)] {
            let request = first.request("PUT", &format!("{path}/{id}"), &worker(1));
            assert_eq!(answer(request.json(&body)).await.0, status, "{path} {id}");
        }
    }
    for (id, status) in [("s1", 201), ("s2", 409)] {
        let session = json!({"session_id": id, "device_id": id});
        let response = first.post("/api/enrollments", &worker(1), session).await;
        assert_eq!(response.0, status, "{response:?}");
    }
    let second = server_in(first.stop().await, settings).await;
    let job = json!({"job_id": "one-more", "job_type": "t"});
    assert_eq!(second.post("/api/jobs", &worker(1), job).await.0, 409);
    assert_eq!(
        rejections(&second, "too-many-subjects", "jobs_per_school").await,
        1
    );
}

/// The answer and the figures name the setting that was exceeded.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_rejected_and_the_setting_named() {
    let settings = json!({
        "body_limit_bytes": 2_000, "batch_limit_bytes": 4_000, "batch_limit_commands": 3, "metadata_limit_bytes": 100,
        "message_limit_bytes": 50, "channels_per_connection": 2, "client_message_limit_bytes": 500,
        "devices_per_school": 1, "enrollments_per_school": 1, "characteristics_per_school": 1,
    });
    let server = server_with(settings).await;
    server.running_job("a").await;
    server.put("/api/devices/d", json!({})).await;
    server.put("/api/characteristics/c", json!({})).await;
    let session =
        |id: &str| json!({"session_id": id, "device_id": id, "student_id": "s"}).to_string();
    let first = server
        .request("POST", "/api/enrollments", &worker(1))
        .body(session("d"));
    assert_eq!(answer(first).await.0, 201);
    let text = |length: usize| "x".repeat(length);
    let line =
        |message: usize| json!({"op": "jobs.progress", "job_id": "a", "message": text(message)});
    let lines = |count: usize, message: usize| format!("{}\n", line(message)).repeat(count);
    for (method, path, body, status, code, limit) in [
        (
            "POST",
            "/api/jobs",
            json!({"job_type": text(3_000)}).to_string(),
            413,
            "body-too-large",
            "body_limit_bytes",
        ),
        (
            "POST",
            "/api/tickets",
            json!({"channels": [text(3_000)]}).to_string(),
            413,
            "body-too-large",
            "body_limit_bytes",
        ),
        (
            "POST",
            "/api/batch",
            lines(2, 2_500),
            413,
            "body-too-large",
            "batch_limit_bytes",
        ),
        (
            "POST",
            "/api/batch",
            lines(4, 5),
            413,
            "body-too-large",
            "batch_limit_commands",
        ),
        (
            "POST",
            "/api/jobs/a/progress",
            json!({"message": text(51)}).to_string(),
            422,
            "invalid-body",
            "message_limit_bytes",
        ),
        (
            "POST",
            "/api/jobs/a/progress",
            json!({"metadata": {"text": text(100)}}).to_string(),
            422,
            "invalid-body",
            "metadata_limit_bytes",
        ),
        (
            "POST",
            "/api/devices/d/info",
            json!({"info": {"text": text(100)}}).to_string(),
            422,
            "invalid-body",
            "metadata_limit_bytes",
        ),
        (
            "GET",
            "/events?channel=jobs/a&channel=devices&channel=enrollments",
            String::new(),
            400,
            "invalid-query",
            "channels_per_connection",
        ),
        (
            "POST",
            "/api/tickets",
            json!({"channels": ["jobs", "devices", "enrollments"]}).to_string(),
            422,
            "invalid-body",
            "channels_per_connection",
        ),
        (
            "PUT",
            "/api/devices/e",
            "{}".into(),
            409,
            "too-many-subjects",
            "devices_per_school",
        ),
        (
            "PUT",
            "/api/characteristics/e",
            "{}".into(),
            409,
            "too-many-subjects",
            "characteristics_per_school",
        ),
        (
            "POST",
            "/api/enrollments",
            session("e"),
            409,
            "too-many-subjects",
            "enrollments_per_school",
        ),
    ] {
        let before = rejections(&server, code, limit).await;
        let (got, problem) = answer(server.request(method, path, &worker(1)).body(body)).await;
        assert_eq!(
            (got, &problem["code"]),
            (status, &json!(code)),
            "{method} {path}: {problem}"
        );
        assert_eq!(problem["limit"], limit, "{method} {path}: {problem}");
        assert_eq!(
            rejections(&server, code, limit).await,
            before + 1,
            "{limit}"
        );
    }
    // A line of a batch is as large as the body of its command.
    let results = server.batch(&worker(1), lines(1, 2_100)).await;
    assert_eq!(
        (&results[0]["status"], &results[0]["problem"]["limit"]),
        (&json!(413), &json!("body_limit_bytes"))
    );
    // Over a WebSocket.
    let mut ws = listener::socket(&server.url, "/ws", &viewer(1)).await;
    let wanted = json!({"type": "subscribe", "channels": ["jobs", "devices", "enrollments"]});
    listener::send(&mut ws, &wanted.to_string()).await;
    assert_eq!(
        listener::receive(&mut ws).await.unwrap()["code"],
        "too_many_channels"
    );
    assert_eq!(
        rejections(&server, "too_many_channels", "channels_per_connection").await,
        1
    );
    listener::send(&mut ws, &text(600)).await;
    assert_eq!(listener::receive(&mut ws).await.unwrap()["code"], 1009);
    assert_eq!(
        rejections(&server, "too_big", "client_message_limit_bytes").await,
        1
    );
    // None of it has happened.
    assert_eq!(server.get("/api/jobs/a", &viewer(1)).await.1["seq"], 1);
}

/// Places are counted together, whatever carries the streams.
#[tokio::test(flavor = "multi_thread")]
async fn streams_are_counted_over_every_transport() {
    let server = server_with(json!({"max_streams_per_user": 3})).await;
    let event = server.running_job("a").await;
    let token = viewer(1);
    let _event_source = server.listen(Transport::EventSource, "/jobs").await;
    let mut socket = listener::socket(&server.url, "/ws", &token).await;
    let poll = server
        .request("GET", "/events/jobs?wait=30", &token)
        .header("Last-Event-ID", event["cursor"].as_str().unwrap())
        .header("Accept", "application/json");
    let mut poll = poll.send().await.unwrap();
    assert!(poll.chunk().await.unwrap().is_some());
    for accept in ["text/event-stream", "application/json"] {
        let request = server
            .request("GET", "/events/jobs", &token)
            .header("Accept", accept);
        let (status, problem) = answer(request).await;
        assert_eq!(
            (status, &problem["limit"]),
            (429, &json!("max_streams_per_user"))
        );
    }
    let url = listener::socket_url(&server.url, "/events/jobs", Some(&token), None);
    assert_eq!(listener::rejected(&url).await, 429);
    // Those that are accepted first get an error and are closed.
    for path in [
        "/ws",
        "/ws/samples",
        "/progress/ws/a",
        "/ws/device-status",
        "/ws/enrollment",
        "/ws/upload-progress",
    ] {
        let mut rejected = listener::socket(&server.url, path, &token).await;
        let (messages, code) = listener::until_closed(&mut rejected).await;
        assert_eq!(code, Some(1013), "{path}: {messages:?}");
        assert_eq!(messages[0]["code"], "too-many-streams", "{path}");
    }
    assert_eq!(
        rejections(&server, "too-many-streams", "max_streams_per_user").await,
        9
    );
    listener::send(
        &mut socket,
        &json!({"type": "subscribe", "channels": ["jobs"]}).to_string(),
    )
    .await;
    assert_eq!(
        listener::receive(&mut socket).await.unwrap()["type"],
        "subscribed",
        "and those that are there go on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_are_for_administrators_of_all_schools() {
    let server = server().await;
    server.running_job("j").await;
    let mut listener = server.listen(Transport::WebSocket, "/jobs").await;
    listener.until_ready().await;
    for token in [worker(1), admin_of(1)] {
        assert_eq!(server.get("/metrics", &token).await.0, 403);
    }
    assert_eq!(server.get("/metrics", "no token").await.0, 401);
    let answer = server
        .request("GET", "/metrics", &admin())
        .send()
        .await
        .unwrap();
    let format = answer.headers()["Content-Type"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(format.starts_with("text/plain; version=0.0.4"), "{format}");
    let text = answer.text().await.unwrap();
    for line in [
        "tidings_events_committed_total 1",
        "tidings_streams{transport=\"WebSocket\"} 1",
        "tidings_refusals_total{code=\"forbidden\",limit=\"\"} 2",
        "tidings_refusals_total{code=\"unauthorized\",limit=\"\"} 1",
        "# TYPE tidings_commit_seconds_total counter",
        "# HELP tidings_commit_seconds_total Total time from taking a group of commands to its commit.",
        "# TYPE tidings_commit_duration_seconds histogram",
        "tidings_commit_duration_seconds_count 1",
        "tidings_publish_duration_seconds_count{outcome=\"committed\"} 1",
        "tidings_publish_duration_seconds_count{outcome=\"failed\"} 0",
        "# TYPE tidings_replay_duration_seconds histogram",
    ] {
        assert!(
            text.lines().any(|written| written == line),
            "{line} is not in:\n{text}"
        );
    }
    // Each metric is explained, in its help text and in the documentation.
    let documentation = page::text("docs/http-api.md");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut name = line.split(['{', ' ']).next().unwrap();
        for part in ["_bucket", "_sum", "_count"] {
            name = name.strip_suffix(part).unwrap_or(name);
        }
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        assert!(documentation.contains(&format!("`{name}`")), "{name}");
        assert!(
            line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(),
            "{line}"
        );
    }
}

/// Opens streams. Returns those that were answered.
async fn open_many(url: &str, count: usize, patience: Duration) -> Vec<Listener> {
    let mut open = tokio::task::JoinSet::new();
    for _ in 0..count {
        let url = url.to_owned();
        open.spawn(async move {
            let token = viewer(1);
            let opening = Listener::open(Transport::WebSocket, &url, "/jobs", &token, None);
            tokio::time::timeout(patience, opening).await.ok()
        });
    }
    let mut opened = Vec::new();
    while let Some(listener) = open.join_next().await {
        opened.extend(listener.unwrap());
    }
    opened
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_asks_for_as_many_open_files_as_it_may_have() {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(&mut limited(folder.path(), "ulimit -Sn 64"));
    assert_eq!(open_many(&server.url, 200, PATIENCE).await.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn where_no_more_files_may_be_open_those_that_are_go_on_and_places_are_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(&mut limited(folder.path(), "ulimit -n 100"));
    let http = reqwest::Client::new();
    let post = async |path: &str, body: Value| {
        let request = http.post(format!("{}/api/{path}", server.url));
        answer(request.bearer_auth(worker(1)).json(&body)).await
    };
    let running = json!({"job_id": "a", "job_type": "t", "status": "in_progress"});
    assert_eq!(post("jobs", running).await.0, 201);
    let mut opened = open_many(&server.url, 200, Duration::from_secs(2)).await;
    assert!((20..100).contains(&opened.len()), "{}", opened.len());
    // By the connection that it has.
    assert_eq!(
        post("jobs/a/progress", json!({"progress": 50})).await.0,
        200
    );
    for listener in &mut opened {
        listener
            .take_until(|message| message["progress"] == 50.0)
            .await;
    }
    drop(opened);
    until("there is room again", async || {
        open_many(&server.url, 20, PATIENCE).await.len() == 20
    })
    .await;
    assert_eq!(post("jobs/a/complete", json!({})).await.0, 200);
}
