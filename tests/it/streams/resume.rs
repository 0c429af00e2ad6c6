//! Streams that are resumed from a cursor: replays, and resets where the cursor is of no use.

use serde_json::json;

use super::over_every_transport;
use crate::support::*;

over_every_transport! {
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
    #[ignore = "slow: very many events"]
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

    #[ignore = "slow: very many events"]
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
                let event = server.report("/api/jobs/a/progress", json!({ "progress": progress })).await;
                cursors.push(event["cursor"].clone());
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
    let expected: Vec<String> = (0..60).map(|n| format!("{}.{}", n / 5, n % 5)).collect();
    assert_eq!(heard, expected);
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
        let types = answer["messages"].as_array().map(|messages| {
            let types = messages
                .iter()
                .map(|message| message["type"].as_str().unwrap());
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
            let messages = server.listen(transport, &query).await.until_ready().await;
            let texts: Vec<_> = messages
                .iter()
                .filter_map(|message| message["message"].as_str())
                .collect();
            assert_eq!(texts, ["Connected", "one", "two"], "{transport:?} {query}");
        }
    }
}
