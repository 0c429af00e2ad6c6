//! The stream contract, each behaviour stated once and run over SSE, WebSocket and long poll: snapshots, filters, channels and conflation.

mod ends;
mod over_http;
mod resume;

use std::time::Duration;

use serde_json::json;

use crate::support::*;

/// Runs a scenario over each transport, each time on a server of its own.
macro_rules! over_every_transport {
    ($($(#[$meta:meta])* async fn $name:ident($transport:ident) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn scenario($transport: Transport) $body

            $(#[$meta])*
            #[tokio::test(flavor = "multi_thread")]
            async fn over_event_source() { scenario(Transport::EventSource).await }

            $(#[$meta])*
            #[tokio::test(flavor = "multi_thread")]
            async fn over_websocket() { scenario(Transport::WebSocket).await }

            $(#[$meta])*
            #[tokio::test(flavor = "multi_thread")]
            async fn over_long_poll() { scenario(Transport::Poll).await }
        }
    )*};
}

use over_every_transport;

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

        let event = server.report("/api/jobs/a/complete", json!({"result": {"pages": 3}})).await;
        let heard = listener.next().await.unwrap();
        assert_eq!(heard, event, "the answer to the write and the event are the same message");
        assert_eq!((&heard["status"], &heard["progress"]), (&json!("completed"), &json!(100.0)));
        assert_eq!((heard.get("snapshot"), &heard["result"]), (None, &json!({"pages": 3})));
        assert_eq!(heard["seq"], 4);
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

    async fn every_event_of_a_school_is_delivered_once_however_many_channels_it_is_on(transport) {
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

    /// The newest state of a busy job is delivered, few of the steps to it are, and its end always is.
    async fn ticks_are_conflated_by_time_and_milestones_never_wait(transport) {
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

    async fn another_school_is_not_heard_and_does_not_exist(transport) {
        let server = server().await;
        server.running_job("a").await;
        let mut other = Listener::open(transport, &server.url, "/jobs", &viewer(2), None).await;
        assert_eq!(other.until_ready().await.len(), 2, "no snapshot of another school's job");
        server.report("/api/jobs/a/complete", json!({})).await;
        // What is heard next is the other school's own: nothing came before it.
        let (status, created) = server.post("/api/jobs", &worker(2), json!({"job_id": "a", "job_type": "test"})).await;
        assert_eq!((status, &created["seq"]), (201, &json!(1)), "ids and numbers are a school's own");
        assert_eq!(other.next().await.unwrap(), created);
    }

    /// What is out of scope moves the cursor all the same: a quiet channel does not run out of retention.
    #[ignore = "slow: waits for heartbeats"]
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

/// A job that ticks fast among many that tick slowly is heard of all the same.
#[tokio::test(flavor = "multi_thread")]
async fn conflation_starves_no_subject() {
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

/// A line break would end a line of SSE.
#[tokio::test(flavor = "multi_thread")]
async fn line_breaks_between_the_tokens_of_a_body_are_not_passed_on() {
    let server = server().await;
    let any = json!({"a": [1, {"b": "line\nbreak"}]});
    for (id, verb, body) in [
        (
            "a",
            "fail",
            json!({"error": {"message": "m", "details": any}}),
        ),
        ("b", "complete", json!({"result": any})),
        ("c", "progress", json!({"metadata": any})),
    ] {
        server.running_job(id).await;
        let pretty = serde_json::to_string_pretty(&body).unwrap();
        let path = format!("/api/jobs/{id}/{verb}");
        let request = server.request("POST", &path, &worker(1)).body(pretty);
        let answered = request.send().await.unwrap().text().await.unwrap();
        assert_eq!(answered.trim_end().lines().count(), 1, "{answered}");
    }
    for transport in Transport::ALL {
        let messages = server.listen(transport, "/jobs").await.until_ready().await;
        let of = |id: &str| messages.iter().find(|message| message["job_id"] == id);
        let job = |id: &str| of(id).unwrap();
        let found = [
            &job("a")["error"]["details"],
            &job("b")["result"],
            &job("c")["metadata"],
        ];
        assert_eq!(found, [&any; 3], "{transport:?}");
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
        for (max_bytes, result, note) in [
            (20_000, true, true),
            (6_000, false, true),
            (1_024, false, false),
        ] {
            let scope = format!("/jobs/a?max_event_bytes={max_bytes}");
            let messages = server.listen(transport, &scope).await.until_ready().await;
            let job = messages
                .iter()
                .find(|message| message["type"] == "job_progress")
                .unwrap();
            assert_eq!(
                (
                    job["result"].is_object(),
                    job["metadata"]["note"].is_string()
                ),
                (result, note),
                "{transport:?} {max_bytes}"
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
