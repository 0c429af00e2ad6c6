//! The endpoint of existing progress clients, and the form of ids that existing clients compare (`id_type`).

use serde_json::{Value, json};

use super::until_type;
use crate::support::listener::{Socket, receive, rejected, send, socket, socket_url};
use crate::support::*;

/// Returns the next message that is no heartbeat. Between two steps of a slow machine, there may be some.
async fn next_message(ws: &mut Socket) -> Value {
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
        let error = next_message(&mut ws).await;
        assert_eq!(
            (&error["type"], &error["error"]),
            (&json!("error"), &json!("Invalid JSON format")),
            "{text}"
        );
    }
    send(&mut ws, r#"{"type":"ping"}"#).await;
    assert_eq!(next_message(&mut ws).await["type"], "pong");
    send(&mut ws, r#"{"type":"subscribe","job_id":"b"}"#).await;
    assert_eq!(
        next_message(&mut ws).await["job_id"],
        "b",
        "no acknowledgement: the status itself"
    );
    send(&mut ws, r#"{"type":"subscribe","job_id":"nobody"}"#).await;
    assert_eq!(next_message(&mut ws).await["error"], "Job nobody not found");
    let silent = receive(&mut ws).await.unwrap();
    assert_eq!(silent["type"], "heartbeat", "after a client's silence");
    assert!(silent["timestamp"].is_string());
    server.report("/api/jobs/a/complete", json!({})).await;
    assert_eq!(next_message(&mut ws).await["status"], "completed");

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
async fn a_progress_client_that_subscribes_to_its_own_job_gets_its_status() {
    let server = server().await;
    server.running_job("a").await;
    let mut ws = socket(&server.url, "/progress/ws/a", &viewer(1)).await;
    receive(&mut ws).await.unwrap();
    send(&mut ws, r#"{"type":"subscribe","job_id":"a"}"#).await;
    assert_eq!(receive(&mut ws).await.unwrap()["job_id"], "a");
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
        let messages = until_type(ws, "limits_update").await;
        assert_eq!(messages[0]["characteristic_ids"], json!([id]));
        assert_eq!(messages.last().unwrap()["characteristic_id"], id);
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
        let messages = until_type(ws, "ack_update").await;
        let of = |name: &str| {
            messages
                .iter()
                .find(|message| message["type"] == name)
                .unwrap()
        };
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
        assert_eq!(messages.last().unwrap()["characteristic_id"], id);
    }
    let url = socket_url(
        &server.url,
        "/events/jobs?id_type=float",
        Some(&viewer(1)),
        None,
    );
    assert_eq!(rejected(&url).await, 400);
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
            let messages = listener.until_ready().await;
            let id = |name: &str| {
                let mut ids = messages.iter().filter_map(|message| message.get(name));
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
