//! What those who listen to characteristics hear: samples, limits, violations and acknowledgements.

use serde_json::{Value, json};

use super::{acknowledge, around_zero, put, sample};
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn an_acknowledgement_reaches_everyone_who_listens_to_any_characteristic_of_that_school() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    around_zero(&server, "b", json!([1])).await;
    let other = server.request("PUT", "/api/characteristics/b", &worker(2));
    assert_eq!(answer(other.json(&json!({}))).await.0, 200);
    sample(&server, "a", 5.0).await;
    let mut listeners = Vec::new();
    for transport in Transport::ALL {
        for scope in [
            "/characteristics/b",
            "/characteristics",
            "/characteristics/a",
            "/schools/1",
        ] {
            let mut listener = server.listen(transport, scope).await;
            listener.until_ready().await;
            listeners.push(listener);
        }
    }
    let mut strangers = Vec::new();
    for transport in Transport::ALL {
        let scope = "/characteristics?tick_ms=0";
        let mut stranger = Listener::open(transport, &server.url, scope, &viewer(2), None).await;
        stranger.until_ready().await;
        strangers.push(stranger);
        let mut of_jobs = server.listen(transport, "/jobs").await;
        of_jobs.until_ready().await;
        strangers.push(of_jobs);
    }
    let (_, before) = server
        .get("/api/violations?acknowledged=false", &viewer(1))
        .await;
    assert_eq!(before["violations"][0]["violation_id"], "a.1");
    let (status, event) = acknowledge(&server, "a.1", &worker(1), "Door was open").await;
    assert_eq!(status, 200, "{event}");
    let payload = &event["payload"];
    for (name, value) in [
        ("violation_id", json!("a.1")),
        ("characteristic_id", json!("a")),
        ("acknowledged", json!(true)),
        ("ack_user", json!("test")),
        ("ack_reason", json!("Door was open")),
        ("user", json!("test")),
        ("reason", json!("Door was open")),
    ] {
        assert_eq!(payload[name], value, "{name}");
    }
    for listener in &mut listeners {
        let heard = listener
            .take_until(|message| message["type"] == "ack_update")
            .await;
        assert_eq!(heard.last(), Some(&event));
    }
    let (status, problem) = acknowledge(&server, "a.1", &worker(1), "Again").await;
    assert_eq!((status, &problem["code"]), (409, &json!("finished")));
    // The strangers hear the next thing of their own, and nothing before it.
    server.running_job("j").await;
    let token = worker(2);
    let path = "/api/characteristics/b/samples";
    let (status, _) = server.post(path, &token, json!({"value": 1.0})).await;
    assert_eq!(status, 200);
    for stranger in &mut strangers {
        let heard = stranger.next().await.unwrap();
        assert!(
            heard["type"] == "job_progress" || heard["school_id"] == 2,
            "{heard}"
        );
    }
    // Who was away learns of it, too: also from the store, and also on another characteristic.
    let cursor = before["cursor"].as_str().unwrap();
    for transport in Transport::ALL {
        let mut late = server.resume(transport, "/characteristics/b", cursor).await;
        let messages = late.until_ready().await;
        assert!(
            messages
                .iter()
                .any(|message| message["type"] == "ack_update"),
            "{messages:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_reads_an_acknowledgement_from_the_store() {
    let server = server_with(json!({"window_events": 1})).await;
    around_zero(&server, "a", json!([1])).await;
    around_zero(&server, "b", json!([1])).await;
    sample(&server, "a", 5.0).await;
    let (_, before) = server.get("/api/violations", &viewer(1)).await;
    let cursor = before["cursor"].as_str().unwrap();
    acknowledge(&server, "a.1", &worker(1), "Seen").await;
    for _ in 0..5 {
        sample(&server, "a", 0.0).await;
        sample(&server, "b", 0.0).await;
    }
    for tick in ["", "?tick_ms=0"] {
        let scope = format!("/characteristics/b{tick}");
        let mut late = server.resume(Transport::WebSocket, &scope, cursor).await;
        let messages = late.until_ready().await;
        let types = field(&messages[1..messages.len() - 1], "type");
        assert_eq!(types[0], "ack_update");
        assert_eq!(
            types.len(),
            if tick.is_empty() { 2 } else { 6 },
            "{types:?}"
        );
    }
}

/// A violation does not carry the sample's news, so a sample is not conflated with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sample_folds_only_into_a_later_sample() {
    let server = server().await;
    around_zero(&server, "a", json!([])).await;
    let mut listener = server
        .listen(Transport::WebSocket, "/characteristics/a?tick_ms=60000")
        .await;
    listener.until_ready().await;
    for value in [1.0, 2.0, 2.5] {
        sample(&server, "a", value).await;
    }
    server
        .report(
            "/api/characteristics/a/violations",
            json!({"rule_id": 99, "rule_name": "Smells odd"}),
        )
        .await;
    let heard = listener
        .take_until(|message| message["type"] == "violation")
        .await;
    let values: Vec<&Value> = heard
        .iter()
        .map(|message| &message["payload"]["value"])
        .collect();
    assert_eq!(values, [&json!(1.0), &json!(2.5), &Value::Null]);
    let violation = &heard[2]["payload"];
    assert_eq!(
        (
            &violation["rule_id"],
            &violation["rule_name"],
            &violation["severity"]
        ),
        (&json!(99), &json!("Smells odd"), &json!("warning"))
    );
    assert_eq!(violation["sample_id"], "a.3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_contains_limits_the_last_sample_and_open_violations_in_the_order_of_the_log() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    sample(&server, "a", 4.0).await;
    sample(&server, "a", 0.0).await;
    sample(&server, "a", -4.0).await;
    acknowledge(&server, "a.1", &worker(1), "Known").await;
    sample(&server, "a", 0.5).await;
    for scope in ["/characteristics", "/characteristics/a"] {
        let mut listener = server.listen(Transport::EventSource, scope).await;
        let messages = listener.until_ready().await;
        let snapshot = &messages[1..messages.len() - 1];
        assert_eq!(
            field(snapshot, "type"),
            ["control_limits", "violation", "sample"]
        );
        assert!(snapshot.iter().all(|message| message["snapshot"] == true));
        assert_eq!(snapshot[1]["payload"]["violation_id"], "a.2");
        assert_eq!(snapshot[2]["payload"]["value"], 0.5);
        let seqs: Vec<u64> = snapshot
            .iter()
            .map(|message| message["seq"].as_u64().unwrap())
            .collect();
        assert!(seqs.is_sorted_by(|one, next| one < next), "{seqs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_name_some_of_the_characteristics() {
    let server = server().await;
    for id in ["1", "2", "3"] {
        around_zero(&server, id, json!([])).await;
    }
    for transport in Transport::ALL {
        let mut listener = server
            .listen(transport, "/characteristics?ids=1,3&tick_ms=0")
            .await;
        let messages = listener.until_ready().await;
        assert_eq!(
            messages[0]["channels"],
            json!(["characteristics/1", "characteristics/3"])
        );
        for id in ["1", "2", "3"] {
            sample(&server, id, 1.0).await;
        }
        let heard = listener
            .take_until(|message| message["payload"]["characteristic_id"] == "3")
            .await;
        assert_eq!(heard.len(), 2, "{heard:?}");
    }
    let repeated = "/characteristics?ids=1&ids=3";
    let mut listener = server.listen(Transport::ALL[0], repeated).await;
    let messages = listener.until_ready().await;
    assert_eq!(
        messages[0]["channels"],
        json!(["characteristics/1", "characteristics/3"])
    );
    for (query, status) in [("?ids=9", 404), ("?ids=", 400), ("?ids=a/b", 404)] {
        let (got, _) = server
            .get(&format!("/events/characteristics{query}"), &viewer(1))
            .await;
        assert_eq!(got, status, "{query}");
    }
    let (status, _) = server.get("/events/jobs/1?ids=1", &viewer(1)).await;
    assert_eq!(status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flat_shape_says_the_same_without_the_envelope() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    let mut flat = server
        .listen(
            Transport::EventSource,
            "/characteristics/a?shape=flat&tick_ms=0",
        )
        .await;
    let messages = flat.until_ready().await;
    let limits = &messages[1];
    assert_eq!(
        (
            &limits["type"],
            &limits["ucl"],
            &limits["characteristic_id"]
        ),
        (&json!("limits_update"), &json!(3.0), &json!("a"))
    );
    let enveloped = sample(&server, "a", 5.0).await;
    acknowledge(&server, "a.1", &worker(1), "Known").await;
    let heard = flat
        .take_until(|message| message["type"] == "ack_update")
        .await;
    let sample = &heard[0];
    assert!(sample.get("payload").is_none());
    assert_eq!(sample["characteristic_id"], "a");
    for (flat, enveloped_name) in [
        ("id", "sample_id"),
        ("characteristic_id", "characteristic_id"),
        ("timestamp", "timestamp"),
        ("mean", "mean"),
        ("zone", "zone"),
        ("in_control", "in_control"),
    ] {
        assert_eq!(sample["sample"][flat], enveloped[enveloped_name], "{flat}");
    }
    assert_eq!(sample["violations"][0]["id"], "a.1");
    assert_eq!(heard[1]["violation"]["id"], "a.1");
    assert_eq!(heard[1]["violation"]["rule_id"], 1);
    assert_eq!(
        (
            &heard[2]["violation_id"],
            &heard[2]["ack_user"],
            &heard[2]["ack_reason"]
        ),
        (&json!("a.1"), &json!("test"), &json!("Known"))
    );
    assert!(heard[2]["cursor"].is_string() && heard[2]["seq"].is_u64());
}

/// A tick is superseded only by what the same filter lets through.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_filtered_replay_keeps_the_newest_sample_that_it_lets_through() {
    let server = server_with(json!({"window_events": 1})).await;
    around_zero(&server, "a", json!([1])).await;
    around_zero(&server, "other", json!([])).await;
    let start = sample(&server, "a", 0.5).await["sample_id"].clone();
    for _ in 0..300 {
        sample(&server, "other", 0.0).await;
    }
    sample(&server, "a", 9.0).await;
    put(
        &server,
        "a/limits",
        json!({"center_line": 0.0, "ucl": 30.0, "lcl": -30.0}),
    )
    .await;
    let epoch = server.tidings.store().epoch();
    let scope = "/characteristics/a?status=in_control";
    for scope in [scope, "/characteristics?status=in_control"] {
        let mut listener = server
            .resume(Transport::EventSource, scope, &format!("{epoch}-0"))
            .await;
        let messages = listener.until_ready().await;
        let kept = messages
            .iter()
            .any(|message| message["payload"]["sample_id"] == start);
        assert!(kept, "{scope}: {messages:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_passes_a_filter_by_status() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    sample(&server, "a", 9.0).await;
    sample(&server, "a", 0.0).await;
    for transport in Transport::ALL {
        let (_, before) = server.get("/api/violations", &viewer(1)).await;
        let id = before["violations"][0]["violation_id"]
            .as_str()
            .unwrap()
            .to_owned();
        let scope = "/characteristics?status=out_of_control";
        let mut live = server.listen(transport, scope).await;
        live.until_ready().await;
        acknowledge(&server, &id, &worker(1), "Known").await;
        assert_eq!(live.next().await.unwrap()["type"], "ack_update");
        let cursor = before["cursor"].as_str().unwrap();
        let mut late = server.resume(transport, scope, cursor).await;
        let messages = late.until_ready().await;
        assert!(
            messages
                .iter()
                .any(|message| message["type"] == "ack_update"),
            "{messages:?}"
        );
        sample(&server, "a", 9.0).await;
        sample(&server, "a", 0.0).await;
    }
}
