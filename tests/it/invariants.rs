//! The invariants of the crate docs, by number. Those that many tests prove have their sharpest one here.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidings::log::StoreError;
use tidings::log::consumers::{Progress, lease_of};
use tidings::scope::Scope;
use tidings::wire::{Encoding, Framing};

use crate::support::*;

fn seqs(messages: &[Value]) -> Vec<u64> {
    messages
        .iter()
        .filter_map(|message| message["seq"].as_u64())
        .collect()
}

/// 1. What was acknowledged is committed; what is heard is committed.
#[tokio::test(flavor = "multi_thread")]
async fn invariant_1_commit_precedes_fan_out_and_answer() {
    let server = server().await;
    server.running_job("a").await;
    let mut listener = server.listen(Transport::WebSocket, "/jobs?tick_ms=0").await;
    listener.until_ready().await;
    for progress in 1..=50 {
        let event = server
            .report("/api/jobs/a/progress", json!({"progress": progress}))
            .await;
        let stored = server
            .tidings
            .store()
            .subject(
                1.try_into().unwrap(),
                tidings::kind::job::KIND,
                "a".parse().unwrap(),
            )
            .await
            .unwrap()
            .unwrap();
        assert_eq!(event["seq"], stored.event.seq);
        let heard = listener.next().await.unwrap();
        assert_eq!(heard["seq"], event["seq"]);
    }
}

/// 2. Many publishers at once, several schools: each log is 1, 2, 3, … and every reader sees that order.
#[tokio::test(flavor = "multi_thread")]
async fn invariant_2_seq_is_dense_and_in_commit_order() {
    let server = Arc::new(server().await);
    let publishers: Vec<_> = (0..8)
        .map(|publisher| {
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let (school, job) = (publisher % 2 + 1, format!("j{publisher}"));
                let token = worker(school);
                let created = json!({"job_id": job, "job_type": "t", "status": "in_progress"});
                assert_eq!(server.post("/api/jobs", &token, created).await.0, 201);
                for step in 0..25 {
                    let (status, _) = server
                        .post(
                            &format!("/api/jobs/{job}/progress"),
                            &token,
                            json!({"progress": step}),
                        )
                        .await;
                    assert_eq!(status, 200);
                    // A command that is refused takes no number.
                    assert_eq!(
                        server
                            .post(&format!("/api/jobs/{job}/queue"), &token, json!({}))
                            .await
                            .0,
                        409
                    );
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    for school in [1, 2] {
        let scope = Arc::new(Scope::new(
            school.try_into().unwrap(),
            [tidings::kind::channel("jobs").unwrap()],
        ));
        let page = server
            .tidings
            .store()
            .replay(scope, 0, false)
            .await
            .unwrap();
        let seqs: Vec<u64> = page.events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=4 * 26).collect::<Vec<_>>());
    }
}

/// 3 and 4. A reader that stops reading while thousands of events pass: in order, each once, no milestone missing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many events"]
async fn invariants_3_and_4_a_stalled_reader_catches_up_without_a_gap() {
    for transport in [Transport::EventSource, Transport::WebSocket] {
        for (query, window_events) in [
            ("", 1_024),
            ("?tick_ms=0", 1_024),
            ("", 16),
            ("?tick_ms=0", 16),
        ] {
            let server =
                server_with(json!({"mailbox_capacity": 16, "window_events": window_events})).await;
            let mut listener = server.listen(transport, &format!("/jobs{query}")).await;
            listener.until_ready().await;
            const JOBS: usize = 100;
            const STEPS: usize = 40;
            // Large enough to fill the socket's buffers, so that the mailbox overflows.
            let filler = "x".repeat(2_000);
            for job in 0..JOBS {
                let mut lines = vec![
                    json!({"op": "jobs.create", "job_id": format!("j{job}"), "job_type": "t", "status": "in_progress"})
                        .to_string(),
                ];
                lines.extend((0..STEPS).map(|step| {
                    json!({"op": "jobs.progress", "job_id": format!("j{job}"), "progress": step, "message": filler}).to_string()
                }));
                lines.push(
                    json!({"op": "jobs.complete", "job_id": format!("j{job}"), "result": job})
                        .to_string(),
                );
                let sent = server
                    .request("POST", "/api/batch", &worker(1))
                    .body(lines.join("\n"))
                    .send()
                    .await
                    .unwrap();
                assert_eq!(sent.status(), 200);
            }
            let last = format!("j{}", JOBS - 1);
            let heard = listener
                .take_until(|message| {
                    message["job_id"] == *last && message["status"] == "completed"
                })
                .await;
            let seqs = seqs(&heard);
            assert!(
                seqs.is_sorted_by(|one, next| one < next),
                "{transport:?} {query}: strictly increasing"
            );
            assert!(
                heard
                    .iter()
                    .all(|message| message["type"] == "job_progress"),
                "no reset"
            );
            let milestones = |status: &str| {
                heard
                    .iter()
                    .filter(|message| message["status"] == status)
                    .filter_map(|message| message["result"].as_u64())
                    .collect::<Vec<_>>()
            };
            assert_eq!(
                milestones("completed"),
                (0..JOBS as u64).collect::<Vec<_>>(),
                "{transport:?} {query}: every end of a job"
            );
            if query.is_empty() {
                continue;
            }
            assert_eq!(
                seqs,
                (1..=(JOBS * (STEPS + 2)) as u64).collect::<Vec<_>>(),
                "{transport:?}: every retained event"
            );
        }
    }
}

/// 3. Two readers of one scope, whatever carries them, see the same order.
#[tokio::test(flavor = "multi_thread")]
async fn invariant_3_two_readers_see_the_same_order() {
    let server = Arc::new(server().await);
    for job in 0..4 {
        server.running_job(&format!("j{job}")).await;
    }
    let mut listeners = Vec::new();
    for transport in Transport::ALL {
        let mut listener = server.listen(transport, "/jobs?tick_ms=0").await;
        listener.until_ready().await;
        listeners.push(listener);
    }
    let publishers: Vec<_> = (0..4)
        .map(|job| {
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                for progress in 1..=30 {
                    server
                        .report(
                            &format!("/api/jobs/j{job}/progress"),
                            json!({"progress": progress}),
                        )
                        .await;
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let mut stories = Vec::new();
    for mut listener in listeners {
        stories.push(listener.take_until(|message| message["seq"] == 124).await);
    }
    assert_eq!(seqs(&stories[0]), (5..=124).collect::<Vec<_>>());
    assert!(stories.iter().all(|story| *story == stories[0]));
}

/// 5. Readers that attach while events are committed: snapshot, replay and live fit together without a seam.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many events"]
async fn invariant_5_nothing_falls_between_reading_and_listening() {
    let server = Arc::new(server_with(json!({"window_events": 4})).await);
    let start = server.running_job("a").await["cursor"]
        .as_str()
        .unwrap()
        .to_owned();
    const EVENTS: u64 = 400;
    let publisher = {
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            for step in 0..EVENTS {
                server
                    .report("/api/jobs/a/progress", json!({"message": step.to_string()}))
                    .await;
            }
        })
    };
    let mut readers = Vec::new();
    for round in 0..30 {
        let transport = [Transport::EventSource, Transport::WebSocket][round % 2];
        let (server, cursor) = (Arc::clone(&server), (round % 3 > 0).then(|| start.clone()));
        readers.push(tokio::spawn(async move {
            let mut listener = Listener::open(
                transport,
                &server.url,
                "/jobs?tick_ms=0",
                &viewer(1),
                cursor.as_deref(),
            )
            .await;
            let heard = listener
                .take_until(|message| message["seq"] == EVENTS + 1)
                .await;
            let seqs = seqs(&heard);
            let first = if cursor.is_some() { 2 } else { seqs[0] };
            assert_eq!(seqs, (first..=EVENTS + 1).collect::<Vec<_>>());
        }));
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    publisher.await.unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
}

/// 6. A reader that takes nothing does not keep others waiting, and costs no more than its mailbox.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many events"]
async fn invariant_6_a_dead_reader_slows_nobody() {
    let server = server_with(json!({"mailbox_capacity": 8, "window_events": 8})).await;
    server.running_job("a").await;
    let mut dead = Vec::new();
    for transport in [Transport::EventSource, Transport::WebSocket] {
        dead.push(server.listen(transport, "/jobs?tick_ms=0").await);
    }
    let mut lively = server.listen(Transport::WebSocket, "/jobs?tick_ms=0").await;
    lively.until_ready().await;
    let filler = "x".repeat(4_000);
    for step in 0..2_000 {
        let event = server
            .report(
                "/api/jobs/a/progress",
                json!({"message": filler, "metadata": {"step": step}}),
            )
            .await;
        if step % 100 == 99 {
            let heard = lively
                .take_until(|message| message["seq"] == event["seq"])
                .await;
            assert_eq!(heard.len(), 100);
        }
    }
}

/// 7. The credential decides the school and the end; see also the module `access`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many events"]
async fn invariant_7_a_stream_does_not_outlive_its_credential() {
    let server = server().await;
    server.running_job("a").await;
    let soon = (chrono::Utc::now().timestamp_millis() + 1_200) as f64 / 1000.0;
    let token = sign(&json!({"sub": "x", "school_id": 1, "role": "viewer", "exp": soon}));
    let mut listener =
        Listener::open(Transport::WebSocket, &server.url, "/jobs", &token, None).await;
    // Busy or not.
    let busy = async {
        loop {
            server
                .report("/api/jobs/a/progress", json!({"message": "busy"}))
                .await;
        }
    };
    let ended = async {
        while listener.next().await.is_some() {}
        assert!(chrono::Utc::now().timestamp_millis() as f64 / 1000.0 >= soon - 0.01);
    };
    tokio::select! {
        () = busy => {},
        () = ended => {},
    }
}

/// 8. However many ask for an event's bytes, they get the same ones.
#[tokio::test(flavor = "multi_thread")]
async fn invariant_8_an_event_is_encoded_once_per_encoding() {
    let server = server().await;
    server.running_job("a").await;
    let scope = Arc::new(Scope::new(
        1.try_into().unwrap(),
        [tidings::kind::channel("jobs").unwrap()],
    ));
    let event = Arc::clone(
        &server
            .tidings
            .store()
            .replay(scope, 0, false)
            .await
            .unwrap()
            .events[0],
    );
    for framing in [
        Framing::Json,
        Framing::Sse,
        Framing::SseNamed,
        Framing::WebSocket,
    ] {
        let encoding = Encoding::new(framing);
        let first = Arc::clone(tidings::wire::event(&event, encoding));
        assert!(Arc::ptr_eq(&first, tidings::wire::event(&event, encoding)));
    }
}

/// 9. What nobody uses leaves memory; the hub's own tests look closer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn invariant_9_departed_readers_leave_nothing() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    for _ in 0..3 {
        let mut listeners = Vec::new();
        for transport in [Transport::EventSource, Transport::WebSocket] {
            for scope in ["/jobs", "/schools/1"] {
                listeners.push(server.listen(transport, scope).await);
            }
        }
        until("all are there", async || server.tidings.streams() == 4).await;
        drop(listeners);
        until("all are gone", async || server.tidings.streams() == 0).await;
    }
}

/// 10 is proved by `job_rules`; here through HTTP: two workers race for one job's end and one of them wins.
#[tokio::test(flavor = "multi_thread")]
async fn invariant_10_of_two_ends_one_counts() {
    let server = Arc::new(server().await);
    for round in 0..20 {
        let id = format!("j{round}");
        server.running_job(&id).await;
        let token = worker(1);
        let (complete, fail) = (
            format!("/api/jobs/{id}/complete"),
            format!("/api/jobs/{id}/fail"),
        );
        let ends = tokio::join!(
            server.post(&complete, &token, json!({"result": 1})),
            server.post(
                &fail,
                &token,
                json!({"error": {"code": "x", "message": "y"}})
            ),
        );
        let mut statuses = [ends.0.0, ends.1.0];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409]);
    }
}

/// 11. The tag of a cursor decides, and not its number alone; `restores` shows it with a database that was restored.
#[tokio::test(flavor = "multi_thread")]
async fn invariant_11_a_cursor_names_an_event() {
    let server = server().await;
    server.running_job("a").await;
    let event = server
        .report("/api/jobs/a/progress", json!({"progress": 5}))
        .await;
    let (epoch, seq, tag) = parts(&event["cursor"]);
    let lost = format!(
        "{epoch}-{seq}-{:08x}",
        !u32::from_str_radix(&tag, 16).unwrap()
    );
    for transport in [
        Transport::EventSource,
        Transport::WebSocket,
        Transport::Poll,
    ] {
        // A poll would wait until there is something to tell.
        if !matches!(transport, Transport::Poll) {
            let known = event["cursor"].as_str().unwrap();
            let mut listener = server.resume(transport, "/jobs", known).await;
            let types = field(&listener.until_ready().await, "type").len();
            assert_eq!(types, 2, "`connected` and `ready`: nothing was missed");
        }
        let messages = server
            .resume(transport, "/jobs", &lost)
            .await
            .until_ready()
            .await;
        assert_eq!(messages[1]["reason"], "history_changed");
    }
}

/// 12. A node whose lease has passed to another one writes nothing, whatever it still believes.
#[tokio::test(flavor = "multi_thread")]
async fn invariant_12_what_one_node_does_is_fenced_in_the_write_itself() {
    let server = server().await;
    server.running_job("a").await;
    let store = server.tidings.store();
    store.notifier_begins("ops").await.unwrap();
    let lease = lease_of("ops");
    let was_suspended = store.acquire(&lease, Duration::ZERO).await.unwrap();
    let term = Duration::from_secs(60);
    let holder = store.acquire(&lease, term).await.unwrap();
    let (was_suspended, holder) = (was_suspended.unwrap(), holder.unwrap());
    assert!(was_suspended < holder);
    let school = 1.try_into().unwrap();
    let moves = async |fence, seq| {
        let moved = store.notifier_moves("ops", fence, school, seq, Progress::default());
        moved.await
    };
    let before = store.notifier_offset("ops", school).await.unwrap();
    assert_eq!(moves(was_suspended, 9).await, Err(StoreError::Fenced));
    let after = store.notifier_offset("ops", school).await.unwrap();
    assert_eq!(before, after);
    moves(holder, 9).await.unwrap();
    assert_eq!(store.notifier_offset("ops", school).await.unwrap().seq, 9);
}
