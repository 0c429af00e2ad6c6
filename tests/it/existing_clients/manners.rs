//! What all endpoints have: refusals, first messages, pings, resumption, and other schools.

use tidings::auth::Role;

use super::*;

const PING: &str = r#"{"type":"ping"}"#;

/// The next message of a type: the current states are sent in between.
async fn message_of_type(client: &mut Client, message_type: &str) -> Value {
    loop {
        let message = client.next().await;
        if message["type"] == message_type {
            return message;
        }
    }
}

over_every_client! {
    /// A refused handshake breaks some proxies, and browsers hide its status.
    async fn who_may_not_is_accepted_and_then_closed_with_the_endpoints_own_code(clients) {
        let server = server().await;
        furnish(&server, 1).await;
        let mut expired = claims(Some(1), Role::Viewer);
        expired.exp -= 10_000.0;
        let mut elsewhere = claims(Some(1), Role::Viewer);
        elsewhere.channels = Some(vec!["jobs/other".into()]);
        let tokens = [None, Some("nonsense".into()), Some(sign(&expired)), Some(sign(&elsewhere))];
        for endpoint in ENDPOINTS {
            for token in &tokens[..if endpoint.subscribe.is_some() { 3 } else { 4 }] {
                let mut client = clients.open_as(&server, endpoint.path, token.as_deref(), None).await;
                if endpoint.explains {
                    let error = client.next().await;
                    assert_fields(&error, &["type error message code"]);
                    assert_has(&error, json!({"type": "error", "message": error["error"]}));
                    assert!(error["error"].as_str().unwrap().contains("token"), "{error}");
                }
                assert_eq!(client.closed().await, endpoint.rejection, "{} {token:?}", endpoint.path);
            }
        }
        until("nothing is left", async || server.tidings.streams() == 0).await;
    }

    async fn the_first_message_is_the_one_that_was_promised(clients) {
        let server = server().await;
        // Without anything that goes on, some say nothing; the answer to a ping is the first that comes.
        for path in ["/ws/upload-progress", "/ws/upload-progress?job_type=scan", "/ws", "/ws/samples"] {
            let mut client = clients.open(&server, path).await;
            assert_eq!(client.ask(PING).await, json!({"type": "pong"}), "{path}");
        }
        furnish(&server, 1).await;
        let mut step = 0;
        for endpoint in ENDPOINTS {
            let path = endpoint.path;
            let mut client = clients.open(&server, path).await;
            if let Some(subscribe) = endpoint.subscribe {
                happen(&server, 1, &mut step).await;
                let timed = client.ask(r#"{"action":"ping","timestamp":1}"#).await;
                assert_eq!(timed, json!({"type": "pong", "timestamp": 1}), "{path}: nothing before it");
                client.send(subscribe).await;
            }
            let first = client.next().await;
            assert_eq!(first["type"], endpoint.first, "{path}");
            let connected = "type message school_id channels cursor heartbeat_secs expires_at session_id";
            match endpoint.first {
                "connected" if path.contains("enrollment") => assert_fields(&first, &[connected]),
                "connected" => assert_fields(&first, &[connected.trim_end_matches(" session_id")]),
                "initial_state" => {
                    assert_fields(&first, &["type timestamp data"]);
                    assert!(first["data"]["f7"].is_u64(), "{first}");
                }
                _ => {}
            }
            if first["type"] == "connected" {
                let session = path.contains("session_id").then_some("s");
                assert_has(&first, json!({"school_id": 1, "message": "Connected", "session_id": session}));
            }
            if first["type"] == "subscribed" {
                let asked: Value = serde_json::from_str(endpoint.subscribe.unwrap()).unwrap();
                let target = ["job_id", "characteristic_id", "characteristic_ids"]
                    .into_iter().find(|name| asked.get(name).is_some()).unwrap();
                assert_eq!(first[target], asked[target], "in the same words");
                assert_fields(&first, &["type cursor", target]);
            }
            if first["type"] != "job_progress" {
                let second = client.next().await;
                assert_eq!(second["snapshot"], true, "{path}: the present state: {second}");
            }
        }
    }

    async fn every_message_is_answered_and_the_connection_goes_on(clients) {
        let server = server().await;
        furnish(&server, 1).await;
        let mut step = 0;
        for endpoint in ENDPOINTS {
            let path = endpoint.path;
            let mut client = endpoint.open(clients, &server, &viewer(1), None).await;
            until_live(&endpoint, &mut client, &server, &mut step).await;
            client.send("ping").await;
            let answer = client.text().await;
            match endpoint.bare_ping {
                BarePing::BarePong => assert_eq!(answer, "pong", "{path}"),
                BarePing::Pong => assert_eq!(answer, r#"{"type":"pong"}"#, "{path}"),
                BarePing::Error => {
                    let error: Value = serde_json::from_str(&answer).unwrap();
                    assert_has(&error, json!({"type": "error", "error": "Invalid JSON format"}));
                }
            }
            for (ping, pong) in [
                (r#"{"type":"ping"}"#, json!({"type": "pong"})),
                (r#"{"action":"ping"}"#, json!({"type": "pong"})),
                (r#"{"type":"ping","timestamp":1754}"#, json!({"type": "pong", "timestamp": 1754})),
                (r#"{"action":"ping","timestamp":"noon"}"#, json!({"type": "pong", "timestamp": "noon"})),
            ] {
                assert_eq!(client.ask(ping).await, pong, "{path}");
            }
            for text in ["{", "", "[1]", "nonsense", "{\"type\":"] {
                let error = client.ask(text).await;
                assert_fields(&error, &["type error message code"]);
                assert_has(&error, json!({"type": "error", "error": "Invalid JSON format"}));
            }
            assert_eq!(client.ask(r#"{"type":"dance"}"#).await["code"], "unknown_type", "{path}");
            let events = happen(&server, 1, &mut step).await;
            assert_eq!(client.next().await["seq"], endpoint.event_in(&events)["seq"], "{path}: and goes on");
            client.leave().await;
        }
        until("nothing is left", async || server.tidings.streams() == 0).await;
    }

    async fn who_comes_back_with_a_cursor_has_missed_nothing_and_hears_nothing_twice(clients) {
        let server = server().await;
        furnish(&server, 1).await;
        let mut step = 0;
        for endpoint in ENDPOINTS {
            let path = endpoint.path;
            let mut client = endpoint.open(clients, &server, &viewer(1), None).await;
            until_live(&endpoint, &mut client, &server, &mut step).await;
            let cursor = client.cursor.clone().unwrap();
            client.leave().await;
            let mut expected = Vec::new();
            for _ in 0..3 {
                let events = happen(&server, 1, &mut step).await;
                expected.push(endpoint.event_in(&events)["seq"].clone());
            }
            let mut client = endpoint.open(clients, &server, &viewer(1), Some(&cursor)).await;
            // This one may come in the midst of what was missed, or after it.
            let events = happen(&server, 1, &mut step).await;
            let last = endpoint.event_in(&events);
            expected.push(last["seq"].clone());
            let heard = events_until(&mut client, last).await;
            assert_eq!(field(&heard, "seq"), expected.iter().collect::<Vec<_>>(), "{path}");
            assert!(heard.iter().all(|event| event.get("snapshot").is_none()), "{path}");
            let events = happen(&server, 1, &mut step).await;
            let heard = events_until(&mut client, endpoint.event_in(&events)).await;
            assert_eq!(heard.len(), 1, "{path}: {heard:?}");
        }
    }

    /// A cursor in the address is for the first `subscribe` that has none of its own.
    async fn a_cursor_may_also_come_with_a_subscribe(clients) {
        let server = server().await;
        furnish(&server, 1).await;
        let mut step = 0;
        let missed = [happen(&server, 1, &mut step).await, happen(&server, 1, &mut step).await];
        let before = missed[0][0]["cursor"].as_str().unwrap();
        let sample_seqs: Vec<_> = missed.iter().map(|events| &events[3]["seq"]).collect();
        for path in ["/ws", "/ws/samples"] {
            let mut client = clients.open_as(&server, path, Some(&viewer(1)), Some(before)).await;
            let asked = json!({"type": "subscribe", "job_id": 7, "cursor": missed[1][0]["cursor"]});
            client.send(&asked.to_string()).await;
            client.send(r#"{"action":"subscribe","characteristic_id":1}"#).await;
            let heard = events_until(&mut client, &missed[1][3]).await;
            assert_eq!(field(&heard, "seq"), sample_seqs, "{path}: {heard:?}");
        }
    }

    async fn another_schools_client_hears_nothing(clients) {
        let server = server().await;
        furnish(&server, 1).await;
        furnish(&server, 2).await;
        let mut strangers = Vec::new();
        let mut natives = Vec::new();
        for endpoint in ENDPOINTS {
            strangers.push(endpoint.open(clients, &server, &viewer(2), None).await);
            natives.push(endpoint.open(clients, &server, &viewer(1), None).await);
        }
        let (mut step, mut events) = (0, Vec::new());
        for _ in 0..3 {
            events.extend(happen(&server, 1, &mut step).await);
        }
        // The next thing of their own is the next that they hear.
        let theirs = happen(&server, 2, &mut step).await;
        events.reverse();
        for ((endpoint, stranger), native) in ENDPOINTS.iter().zip(&mut strangers).zip(&mut natives) {
            let heard = events_until(stranger, endpoint.event_in(&theirs)).await;
            assert!(heard.iter().all(|event| event["school_id"] == 2), "{}: {heard:?}", endpoint.path);
            let live = heard.iter().filter(|event| event.get("snapshot").is_none()).count();
            assert!(live <= 1, "{}: {heard:?}", endpoint.path);
            let heard = events_until(native, endpoint.event_in(&events)).await;
            assert!(heard.iter().all(|event| event["school_id"] == 1), "{}", endpoint.path);
        }
    }

    async fn what_is_not_there_is_said(clients) {
        let server = server().await;
        furnish(&server, 1).await;
        for (path, error) in [
            ("/progress/ws/nobody", "Job nobody not found"),
            ("/ws/upload-progress/nobody", "Job nobody not found"),
            ("/ws/enrollment?session_id=nobody", "Enrollment session nobody not found"),
        ] {
            // To another school, what is there is not there either.
            let id = if path.contains("enrollment") { "s" } else { "7" };
            let (theirs, absent) = (path.replace("nobody", id), error.replace("nobody", id));
            for (path, error, token) in [(path, error, viewer(1)), (&theirs, &absent, viewer(2))] {
                let mut client = clients.open_as(&server, path, Some(&token), None).await;
                let message = client.next().await;
                assert_has(&message, json!({"type": "error", "error": error}));
                assert_eq!(client.closed().await, 1000, "{path}");
            }
        }
        for path in ["/ws", "/ws/samples", "/progress/ws/7"] {
            let mut client = clients.open(&server, path).await;
            if path.contains("progress") {
                client.next().await;
            }
            for (asked, error) in [
                (r#"{"type":"subscribe","job_id":"nobody"}"#, "Job nobody not found"),
                (r#"{"action":"subscribe","characteristic_id":99}"#, "Characteristic 99 not found"),
                (r#"{"type":"subscribe","characteristic_ids":["1",99]}"#, "Characteristic 99 not found"),
            ] {
                client.send(asked).await;
                let message = message_of_type(&mut client, "error").await;
                assert_has(&message, json!({"error": error}));
            }
            client.send(PING).await;
            message_of_type(&mut client, "pong").await;
        }
    }

    /// Only a client without permission is rejected without a message: a wrong request is answered with what is wrong.
    async fn a_bad_request_is_answered_with_its_reason_and_an_empty_parameter_is_none(clients) {
        let server = server().await;
        furnish(&server, 1).await;
        for endpoint in ENDPOINTS {
            let mut client = clients.resume(&server, endpoint.path, "yesterday").await;
            assert_eq!(client.next().await["code"], "invalid-cursor", "{}", endpoint.path);
            assert_eq!(client.closed().await, 1008, "{}", endpoint.path);
        }
        for (path, first) in [
            ("/ws/enrollment?session_id=", "connected"),
            ("/ws/enrollment?session_id=&cursor=", "connected"),
            ("/ws/upload-progress?job_type=", "initial_state"),
        ] {
            let mut client = clients.open(&server, path).await;
            assert_eq!(client.next().await["type"], first, "{path}");
            assert_eq!(client.next().await["snapshot"], true, "{path}");
        }
    }

    #[ignore = "slow: real seconds pass"]
    async fn a_stream_ends_with_its_token(clients) {
        let server = server().await;
        furnish(&server, 1).await;
        let soon = (chrono::Utc::now().timestamp_millis() + 2_000) as f64 / 1000.0;
        let short = sign(&json!({"sub": "x", "school_id": 1, "role": "viewer", "exp": soon}));
        let mut ending = Vec::new();
        for endpoint in &ENDPOINTS {
            ending.push(endpoint.open(clients, &server, &short, None).await);
        }
        for (endpoint, client) in ENDPOINTS.iter().zip(&mut ending) {
            let closing = loop {
                let message = client.next().await;
                if message["type"] == "closing" {
                    break message;
                }
            };
            assert_fields(&closing, &["type code reason reconnect retry_ms"]);
            assert_has(&closing, json!({"code": 4401, "reconnect": true}));
            assert_eq!(client.closed().await, 4401, "{}", endpoint.path);
        }
    }
}
