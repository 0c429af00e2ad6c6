//! Devices: leases, last wills, what a restart does, and what their listeners hear.

use serde_json::{Value, json};

use crate::support::{store, *};

async fn register(server: &Server, id: &str, body: Value) -> Value {
    let path = format!("/api/devices/{id}");
    let (status, answer) = answer(server.request("PUT", &path, &worker(1)).json(&body)).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn heartbeat(server: &Server, id: &str) -> Value {
    server
        .report(&format!("/api/devices/{id}/heartbeat"), json!({}))
        .await
}

async fn online(server: &Server, id: &str) {
    heartbeat(server, id).await;
    assert_eq!(heartbeat(server, id).await["status"], "online");
}

fn statuses(messages: &[Value]) -> Vec<&str> {
    messages
        .iter()
        .filter(|message| message["type"] == "device_status_update")
        .map(|message| message["status"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_device_is_online_after_two_good_beats_and_offline_after_its_lease_on_every_transport() {
    for transport in Transport::ALL {
        let server = server().await;
        let mut listener = server.listen(transport, "/devices").await;
        listener.until_ready().await;
        register(
            &server,
            "door",
            json!({"name": "Front door", "lease_secs": 1}),
        )
        .await;
        assert_eq!(heartbeat(&server, "door").await["status"], "unknown");
        let second = heartbeat(&server, "door").await;
        assert_eq!(second["status"], "online");
        let heard = listener
            .take_until(|message| message["status"] == "offline")
            .await;
        assert_eq!(statuses(&heard), ["unknown", "online", "offline"]);
        assert_eq!(
            heard[2]["last_seen"], second["last_seen"],
            "it stays when the device goes"
        );
        assert_eq!(heard[2]["name"], "Front door");
        online(&server, "door").await;
        let heard = listener
            .take_until(|message| message["status"] == "online")
            .await;
        assert_eq!(statuses(&heard), ["online"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beat_writes_no_event_and_is_written_down_in_batches() {
    let server = server().await;
    register(&server, "door", json!({})).await;
    online(&server, "door").await;
    let (_, before) = server.get("/api/devices", &viewer(1)).await;
    let mut last = Value::Null;
    for _ in 0..100 {
        last = heartbeat(&server, "door").await;
    }
    let (_, after) = server.get("/api/devices", &viewer(1)).await;
    assert_eq!(before["cursor"], after["cursor"], "no event");
    server.tidings.presence().flush().await.unwrap();
    let (_, device) = server.get("/api/devices/door", &viewer(1)).await;
    let seen =
        |value: &Value| chrono::DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap();
    assert_eq!(seen(&device["last_seen"]), seen(&last["last_seen"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_will_takes_effect_at_once() {
    let server = server().await;
    register(&server, "door", json!({})).await;
    online(&server, "door").await;
    let mut listener = server.listen(Transport::WebSocket, "/devices/door").await;
    listener.until_ready().await;
    let gone = server
        .report("/api/devices/door/status", json!({"status": "offline"}))
        .await;
    assert_eq!(listener.next().await.unwrap(), gone);
    assert!(gone["last_seen"].is_string());
    assert_eq!(heartbeat(&server, "door").await["status"], "offline");
    assert_eq!(heartbeat(&server, "door").await["status"], "online");
    let again = server
        .report("/api/devices/door/status", json!({"status": "online"}))
        .await;
    assert_eq!(again["snapshot"], true, "nothing has changed: {again}");
    assert_eq!(listener.next().await.unwrap()["status"], "online");
    server
        .report("/api/devices/door/status", json!({"status": "offline"}))
        .await;
    let next = listener.next().await.unwrap();
    assert_eq!(
        next["status"], "offline",
        "and nothing was delivered in between"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn after_a_restart_a_device_is_unknown_for_what_is_left_of_its_lease() {
    let first = server().await;
    for id in ["comes", "stays-away", "was-off"] {
        register(&first, id, json!({"lease_secs": 4})).await;
    }
    online(&first, "comes").await;
    online(&first, "stays-away").await;
    first
        .report("/api/devices/was-off/status", json!({"status": "offline"}))
        .await;
    let (_, before) = first.get("/api/devices", &viewer(1)).await;
    let folder = first.stop().await;
    let server = server_in(folder, json!({})).await;
    let cursor = before["cursor"].as_str().unwrap();
    let mut listener = server
        .resume(Transport::EventSource, "/devices", cursor)
        .await;
    let marked = listener
        .take_until(|message| message["status"] == "unknown")
        .await;
    assert!(!statuses(&marked).contains(&"offline"), "no mass offline");
    online(&server, "comes").await;
    let sending = async {
        loop {
            heartbeat(&server, "comes").await;
        }
    };
    let heard = tokio::select! {
        heard = listener.take_until(|message| message["status"] == "offline") => heard,
        () = sending => unreachable!("it sends on"),
    };
    assert_eq!(heard.last().unwrap()["device_id"], "stays-away");
    let came = |message: &&Value| message["device_id"] == "comes" && message["status"] == "online";
    assert!(heard.iter().any(|message| came(&message)));
    let silent = |message: &Value| message["device_id"] != "was-off";
    assert!(marked.iter().chain(&heard).all(silent));
}

/// Whatever a device says of itself shows that it is there.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_devices_own_word_renews_its_lease() {
    let server = server().await;
    for id in ["talks", "is-silent"] {
        register(&server, id, json!({"lease_secs": 2})).await;
        let path = format!("/api/devices/{id}/status");
        server.report(&path, json!({"status": "online"})).await;
    }
    let mut listener = server
        .listen(Transport::WebSocket, "/devices?status=offline")
        .await;
    listener.until_ready().await;
    let talking = async {
        for round in 0.. {
            let (verb, body) = match round % 2 {
                0 => ("status", json!({"status": "online"})),
                _ => ("info", json!({"info": {"round": round}})),
            };
            server
                .report(&format!("/api/devices/talks/{verb}"), body)
                .await;
            let (_, silent) = server.get("/api/devices/is-silent", &viewer(1)).await;
            if silent["status"] == "offline" {
                return;
            }
        }
    };
    talking.await;
    assert_eq!(listener.next().await.unwrap()["device_id"], "is-silent");
    let (_, talks) = server.get("/api/devices/talks", &viewer(1)).await;
    assert_eq!(talks["status"], "online");
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_further_apart_than_the_lease_do_not_count_as_consecutive() {
    let server = server().await;
    register(&server, "door", json!({"lease_secs": 1})).await;
    let mut listener = server.listen(Transport::WebSocket, "/devices/door").await;
    listener.until_ready().await;
    heartbeat(&server, "door").await;
    let gone = listener.next().await.unwrap();
    assert_eq!(gone["status"], "offline");
    assert_eq!(heartbeat(&server, "door").await["status"], "offline");
    assert_eq!(heartbeat(&server, "door").await["status"], "online");
}

/// A server whose disk is full for a moment, just as it starts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn every_device_is_marked_unknown_even_if_the_store_fails_at_first() {
    use diesel::connection::{Connection, SimpleConnection};
    let first = server().await;
    let lines = |op: &str| -> String {
        let line =
            |n| json!({"op": op, "device_id": format!("d{n}"), "lease_secs": 3}).to_string() + "\n";
        (0..600).map(line).collect()
    };
    first.batch(&worker(1), lines("devices.put")).await;
    let heartbeats = lines("devices.heartbeat").replace(r#","lease_secs":3"#, "");
    for _ in 0..2 {
        first.batch(&worker(1), heartbeats.clone()).await;
    }
    let folder = first.stop().await;
    let path = folder.path().join("tidings.db");
    let run = |sql: &str| {
        let mut conn = diesel::sqlite::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        conn.batch_execute(&format!("PRAGMA busy_timeout = 5000; {sql}"))
            .unwrap();
    };
    run(
        "CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    let server = server_in(folder, json!({})).await;
    until("the first devices are looked at", async || {
        server.tidings.presence().leases() > 0
    })
    .await;
    run("DROP TRIGGER full");
    let mut listener = server
        .resume(
            Transport::Poll,
            "/devices?tick_ms=0",
            &format!("{}-1200", server.tidings.store().epoch()),
        )
        .await;
    let mut of: std::collections::HashMap<String, Vec<String>> = Default::default();
    let mut offline = 0;
    while offline < 600 {
        let message = listener.next().await.unwrap();
        if message["type"] == "device_status_update" {
            let status = message["status"].as_str().unwrap().to_owned();
            offline += usize::from(status == "offline");
            of.entry(message["device_id"].as_str().unwrap().to_owned())
                .or_default()
                .push(status);
        }
    }
    assert_eq!(of.len(), 600);
    assert!(
        of.values()
            .all(|statuses| *statuses == ["unknown", "offline"]),
        "each is marked unknown first"
    );
}

/// A disk that is full for a moment must not make a device older than it is at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_written_down_of_a_device_is_written_down_later() {
    use diesel::connection::{Connection, SimpleConnection};
    if !store::is_a_file("it makes a SQLite file fail") {
        return;
    }
    let server = server().await;
    register(&server, "door", json!({"lease_secs": 600})).await;
    online(&server, "door").await;
    let path = server.folder.path().join("tidings.db");
    let mut conn = diesel::sqlite::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    conn.batch_execute(
        "PRAGMA busy_timeout = 5000;
         CREATE TRIGGER full BEFORE UPDATE ON devices BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    )
    .unwrap();
    let last = heartbeat(&server, "door").await;
    assert!(server.tidings.presence().flush().await.is_err());
    conn.batch_execute("DROP TRIGGER full").unwrap();
    server.tidings.presence().flush().await.unwrap();
    let (_, device) = server.get("/api/devices/door", &viewer(1)).await;
    assert_eq!(device["last_seen"], last["last_seen"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn flapping_is_marked_and_not_hidden() {
    let server = server().await;
    register(&server, "door", json!({})).await;
    let mut marks = Vec::new();
    for round in 0..5 {
        let status = if round % 2 == 0 { "online" } else { "offline" };
        let event = server
            .report("/api/devices/door/status", json!({"status": status}))
            .await;
        assert_eq!(event["status"], status, "each change is published");
        marks.push(event["flapping"].as_bool().unwrap());
    }
    assert_eq!(marks, [false, false, false, false, true], "the fourth time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_contains_status_and_info_and_any_of_its_cursors_is_safe() {
    let server = server().await;
    register(
        &server,
        "a",
        json!({"info": {"firmware": "1.0", "model": "X"}}),
    )
    .await;
    register(&server, "b", json!({})).await;
    server
        .report("/api/devices/b/info", json!({"info": {"firmware": "2.0"}}))
        .await;
    server
        .report(
            "/api/devices/a/info",
            json!({"info": {"firmware": "1.1", "model": null}}),
        )
        .await;
    server
        .report("/api/devices/a/status", json!({"status": "online"}))
        .await;
    let mut listener = server.listen(Transport::WebSocket, "/devices").await;
    let before = listener.until_ready().await;
    let snapshot: Vec<_> = before[1..before.len() - 1]
        .iter()
        .map(|message| {
            assert_eq!(message["snapshot"], true);
            (
                message["device_id"].as_str().unwrap(),
                message["type"].as_str().unwrap(),
                message["seq"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        snapshot,
        [
            ("b", "device_status_update", 3),
            ("b", "device_info_update", 4),
            ("a", "device_info_update", 5),
            ("a", "device_status_update", 6),
        ]
    );
    let after = before.iter().find(|message| message["seq"] == 4);
    let cursor = after.unwrap()["cursor"].as_str().unwrap();
    let mut rest = server.resume(Transport::Poll, "/devices", cursor).await;
    let messages = rest.until_ready().await;
    let info = messages
        .iter()
        .find(|message| message["type"] == "device_info_update");
    assert_eq!(info.unwrap()["info"], json!({"firmware": "1.1"}));
    let (_, found) = server.get("/api/devices/a", &viewer(1)).await;
    assert_eq!(
        (&found["info"], &found["status"]),
        (&json!({"firmware": "1.1"}), &json!("online"))
    );
}

/// Who waits for devices that go must not hear of one that gets another name.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_new_name_or_lease_is_no_change_of_status() {
    let server = server().await;
    register(&server, "door", json!({"name": "Door"})).await;
    let mut listener = server.listen(Transport::WebSocket, "/devices/door").await;
    listener.until_ready().await;
    register(
        &server,
        "door",
        json!({"name": "Front door", "lease_secs": 1}),
    )
    .await;
    let message = listener.next().await.unwrap();
    assert_eq!(
        (&message["type"], &message["name"], &message["lease_secs"]),
        (
            &json!("device_info_update"),
            &json!("Front door"),
            &json!(1)
        )
    );
    online(&server, "door").await;
    assert_eq!(listener.next().await.unwrap()["status"], "online");
    let gone = listener.next().await.unwrap();
    assert_eq!(gone["status"], "offline", "after the new lease");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_beats_for_many_devices_in_a_batch() {
    let server = server().await;
    let lines = |op: &str, count: usize| -> String {
        let line = |number| json!({"op": op, "device_id": format!("d{number}")}).to_string() + "\n";
        (0..count).map(line).collect()
    };
    let send = async |lines: String| server.batch(&worker(1), lines).await;
    let registered = send(lines("devices.put", 1_000)).await;
    assert!(registered.iter().all(|line| line["status"] == 200));
    send(lines("devices.heartbeat", 1_001)).await;
    let outcomes = send(lines("devices.heartbeat", 1_001)).await;
    assert!(
        outcomes[..1_000]
            .iter()
            .all(|line| line["device"]["status"] == "online")
    );
    assert_eq!(outcomes[1_000]["status"], 404);
    let (_, page) = server
        .get("/api/devices?status=online&limit=500", &viewer(1))
        .await;
    assert_eq!(page["devices"].as_array().unwrap().len(), 500);
    assert!(page["next"].is_string());
    assert_eq!(server.tidings.presence().leases(), 1_000);
}

/// Heartbeats are carried out behind other commands, but never behind a later one of the same device.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_keeps_the_order_of_what_concerns_one_device() {
    let server = server().await;
    register(&server, "a", json!({})).await;
    let lines = [
        r#"{"op": "devices.heartbeat", "device_id": "a"}"#,
        r#"{"op": "devices.heartbeat", "device_id": "a"}"#,
        r#"{"op": "devices.status", "device_id": "a", "status": "offline"}"#,
        r#"{"op": "devices.heartbeat", "device_id": "b"}"#,
        r#"{"op": "devices.put", "device_id": "b"}"#,
        r#"{"op": "devices.heartbeat", "device_id": "b"}"#,
    ];
    let results = server.batch(&worker(1), lines.join("\n")).await;
    assert_eq!(field(&results, "status"), [200, 200, 200, 404, 200, 200]);
    assert_eq!(results[1]["device"]["status"], "online");
    let (_, device) = server.get("/api/devices/a", &viewer(1)).await;
    assert_eq!(device["status"], "offline", "its last will comes last");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_device_or_no_status_is_rejected() {
    let server = server().await;
    register(&server, "door", json!({})).await;
    for (path, body, status) in [
        ("/api/devices/other/heartbeat", json!({}), 404),
        (
            "/api/devices/other/status",
            json!({"status": "online"}),
            404,
        ),
        (
            "/api/devices/door/status",
            json!({"status": "online", "last_seen": "2999-01-01T00:00:00Z"}),
            422,
        ),
        (
            "/api/devices/door/status",
            json!({"status": "offline", "last_seen": "yesterday"}),
            422,
        ),
        (
            "/api/devices/other/status",
            json!({"status": "online", "lease_secs": 0}),
            422,
        ),
        ("/api/devices/door/status", json!({"status": "gone"}), 422),
        ("/api/devices/door/status", json!({}), 422),
        ("/api/devices/door/info", json!({"info": 3}), 422),
        (
            "/api/devices/door/info",
            json!({"info": {"a": "x".repeat(20_000)}}),
            422,
        ),
        ("/api/devices/door/dance", json!({}), 404),
        ("/api/devices", json!({}), 405),
    ] {
        let (got, problem) = server.post(path, &worker(1), body).await;
        assert_eq!(got, status, "{path} {problem}");
    }
    let (status, _) = server
        .post("/api/devices/door/heartbeat", &worker(2), json!({}))
        .await;
    assert_eq!(status, 404, "another school's");
    let (status, _) = server
        .post("/api/devices/door/heartbeat", &viewer(1), json!({}))
        .await;
    assert_eq!(status, 403);
    let wrong = server.request("PUT", "/api/devices/door", &worker(1));
    let (status, _) = answer(wrong.json(&json!({"lease_secs": 0}))).await;
    assert_eq!(status, 422);
}
