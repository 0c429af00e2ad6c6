//! The same state at the same time: what an existing client hears is what `/events/…` tells, event by event.

use super::*;

over_every_client! {
    async fn each_endpoint_sends_what_the_scope_sends_over_every_transport(clients) {
        let origins: Vec<_> = clients.origin.iter().collect();
        let server = server_with(json!({"allowed_origins": origins})).await;
        furnish(&server, 1).await;
        // Also those that nobody here asks for by name.
        for (call, body) in [
            ("POST /api/jobs", json!({"job_id": "else", "job_type": "mail"})),
            ("POST /api/enrollments", json!({"session_id": "else", "device_id": "gate"})),
            ("PUT /api/devices/gate", json!({"info": {"model": "X"}})),
            ("PUT /api/characteristics/2", json!({})),
        ] {
            write(&server, 1, call, body).await;
        }
        let mut watched = Vec::new();
        for endpoint in &ENDPOINTS {
            let mut client = endpoint.open(clients, &server, &viewer(1), None).await;
            let scope = format!("{}tick_ms=0", endpoint.scope);
            let mut scopes = Vec::new();
            for transport in Transport::ALL {
                let mut listener = server.listen(transport, &scope).await;
                let mut messages = listener.until_ready().await;
                messages.retain(|message| message["seq"].is_u64());
                scopes.push((listener, messages));
            }
            let last = scopes[0].1.last().unwrap().clone();
            let heard = events_until(&mut client, &last).await;
            // A browser opens six connections to a server, and no more.
            let source = match &clients.origin {
                Some(_) if watched.len() % 2 == 0 && watched.len() < 10 => {
                    let path = format!("/events{scope}&token={}", viewer(1));
                    let mut source = clients.event_source(&server, &path).await;
                    let messages = events_until(&mut source, &last).await;
                    Some((source, messages))
                }
                _ => None,
            };
            watched.push((endpoint, client, heard, scopes, source));
        }
        let mut step = 0;
        for _ in 0..3 {
            happen(&server, 1, &mut step).await;
        }
        for (call, body) in [
            ("POST /api/jobs/else/start", json!({})),
            ("POST /api/jobs/else/fail", json!({"error": {"code": "lost", "message": "Lost"}})),
            ("POST /api/enrollments/else/error", json!({"code": "timeout"})),
            ("POST /api/devices/gate/status", json!({"status": "online"})),
            ("POST /api/characteristics/2/samples", json!({"value": 9.0})),
            ("POST /api/characteristics/2/violations", json!({"rule_id": 99, "rule_name": "Smells odd"})),
            ("POST /api/violations/2.1/ack", json!({"reason": "It does"})),
            ("POST /api/characteristics/1/samples", json!({"value": 9.0})),
            ("POST /api/violations/1.1/ack", json!({"reason": "Known"})),
            ("PUT /api/characteristics/1/limits", json!({"center_line": 0.0, "ucl": 9.0, "lcl": -9.0})),
            ("POST /api/devices/door/info", json!({"info": {"firmware": "2"}})),
        ] {
            write(&server, 1, call, body).await;
        }
        let ends = [
            write(&server, 1, "POST /api/jobs/7/complete", json!({"result": 1})).await,
            write(&server, 1, "POST /api/enrollments/s/complete", json!({"quality_score": 1})).await,
            write(&server, 1, "POST /api/devices/door/status", json!({"status": "offline"})).await,
            write(&server, 1, "POST /api/characteristics/1/samples", json!({"value": 0.0})).await,
        ];
        for (endpoint, mut client, mut heard, scopes, source) in watched {
            let last = endpoint.event_in(&ends);
            heard.extend(events_until(&mut client, last).await);
            let mut all_messages = Vec::new();
            for (mut listener, mut messages) in scopes {
                messages.extend(listener.take_until(|message| message["seq"] == last["seq"]).await);
                messages.retain(|message| message["seq"].is_u64());
                all_messages.push(messages);
            }
            if let Some((mut source, mut messages)) = source {
                messages.extend(events_until(&mut source, last).await);
                all_messages.push(messages);
            }
            for messages in all_messages {
                assert!(messages.len() >= 5, "{}: {messages:?}", endpoint.path);
                if !endpoint.scope.contains("characteristics") {
                    // What every connection hears, whatever it listens to.
                    heard.retain(|message| message["type"] != "ack_update");
                }
                if endpoint.first == "initial_state" {
                    assert_uploads_of(&heard, &messages);
                } else {
                    assert_eq!(heard, messages, "{}", endpoint.path);
                }
            }
        }
    }
}

/// Asserts that these are the same jobs, sent as uploads.
#[track_caller]
fn assert_uploads_of(uploads: &[Value], jobs: &[Value]) {
    assert_eq!(field(uploads, "seq"), field(jobs, "seq"));
    for (upload, job) in uploads.iter().zip(jobs) {
        for name in [
            "cursor",
            "school_id",
            "timestamp",
            "snapshot",
            "job_type",
            "message",
        ] {
            assert_eq!(upload.get(name), job.get(name), "{name}");
        }
        assert_eq!(upload["processing_id"], job["job_id"]);
        assert_eq!(
            upload["progress"],
            job["progress"].as_f64().unwrap_or(0.0).floor() as u64
        );
        let status = match job["status"].as_str().unwrap() {
            "completed" => "completed",
            "failed" | "cancelled" => "error",
            _ => "processing",
        };
        assert_has(
            upload,
            json!({"status": status, "isComplete": status == "completed"}),
        );
        assert_has(
            upload,
            json!({"result": job["result"], "error": job["error"]["message"]}),
        );
    }
}
