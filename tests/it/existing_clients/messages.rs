//! Every message of every endpoint, with exactly its fields.

use super::*;

/// The fields of a session that WIRE names as extra.
const SESSION: &str = "session_id status device_id student_id attempt total_attempts";
const DEVICE: &str = "device_id status last_seen name flapping lease_secs";
const SAMPLE: &str = "sample_id characteristic_id timestamp value mean zone in_control judged_by rules limits_version violations";
const VIOLATION: &str =
    "violation_id characteristic_id sample_id rule_id rule_name severity timestamp";
const ACKNOWLEDGEMENT: &str =
    "violation_id characteristic_id acknowledged ack_user ack_reason user reason timestamp";
const LIMITS: &str =
    "characteristic_id center_line ucl lcl method sample_count limits_version baseline";
const UPLOAD: &str =
    "processing_id file_id job_type status progress message isComplete error result";
const JOB: &str = "job_id job_type status progress message metadata attempt eta_at eta_low_at eta_high_at eta_source stalled cancel_requested";

over_every_client! {
    async fn the_snapshot_of_enrollments_leaves_out_what_has_ended(clients) {
        let server = server().await;
        for (session, device) in [("s1", "door"), ("s2", "gate")] {
            let body = json!({"session_id": session, "device_id": device});
            write(&server, 1, "POST /api/enrollments", body).await;
        }
        write(&server, 1, "POST /api/enrollments/s1/cancel", json!({})).await;
        let mut ended = clients.open(&server, "/ws/enrollment?session_id=s1").await;
        assert_has(&ended.next().await, json!({"type": "connected"}));
        let next = ended.ask(r#"{"type":"ping"}"#).await;
        assert_has(&next, json!({"type": "pong"}));
        let mut all = clients.open(&server, "/ws/enrollment").await;
        assert_has(&all.next().await, json!({"type": "connected"}));
        let state = all.next().await;
        assert_has(&state, json!({"session_id": "s2", "snapshot": true}));
        write(&server, 1, "POST /api/enrollments/s2/progress", json!({"progress": 33})).await;
        let next = all.next().await;
        assert_has(&next, json!({"session_id": "s2", "progress": 33}));
    }

    async fn an_enrollment_is_reported_in_its_four_messages(clients) {
        let server = server().await;
        for (session, device) in [("s1", "door"), ("s2", "gate"), ("s3", "hall")] {
            let mut body = json!({"student_id": 4711, "total_attempts": 3});
            (body["session_id"], body["device_id"]) = (json!(session), json!(device));
            write(&server, 1, "POST /api/enrollments", body).await;
        }
        let mut all = clients.open(&server, "/ws/enrollment").await;
        let mut one = clients.open(&server, "/ws/enrollment?session_id=s1").await;
        let mut other = clients.open(&server, "/ws/enrollment?session_id=s2").await;
        let messages = all.take(4).await;
        assert_eq!(field(&messages[1..], "session_id"), ["s1", "s2", "s3"]);
        for (client, session) in [(&mut one, "s1"), (&mut other, "s2")] {
            let messages = client.take(2).await;
            assert_eq!(field(&messages, "session_id"), [session, session]);
            assert_fields(&messages[1], &[EVENT, "snapshot", SESSION, "progress message"]);
        }
        for (call, body) in [
            ("s1/progress", json!({"status": "placing", "attempt": 1})),
            ("s2/progress", json!({"status": "placing"})),
            ("s1/progress", json!({"status": "capturing", "attempt": 2})),
            ("s1/progress", json!({"status": "processing", "attempt": 3})),
            ("s1/complete", json!({"quality_score": 87.5})),
            ("s2/error", json!({"code": "duplicate_finger"})),
            ("s3/cancel", json!({})),
        ] {
            write(&server, 1, &format!("POST /api/enrollments/{call}"), body).await;
        }
        let messages = all.take(7).await;
        let summary: Vec<Value> = messages.iter().map(|message| {
            json!([message["type"], message["session_id"], message["status"], message["progress"]])
        }).collect();
        assert_eq!(summary, [
            json!(["enrollment_progress", "s1", "placing", 0]),
            json!(["enrollment_progress", "s2", "placing", 0]),
            json!(["enrollment_progress", "s1", "capturing", 33]),
            json!(["enrollment_progress", "s1", "processing", 66]),
            json!(["enrollment_complete", "s1", "complete", 100]),
            json!(["enrollment_error", "s2", "error", null]),
            json!(["enrollment_cancelled", "s3", "cancelled", null]),
        ]);
        for message in &messages[..4] {
            assert_fields(message, &[EVENT, SESSION, "progress message"]);
        }
        assert_fields(&messages[4], &[EVENT, SESSION, "progress message quality_score"]);
        assert_fields(&messages[5], &[EVENT, SESSION, "error code"]);
        assert_fields(&messages[6], &[EVENT, SESSION, "message"]);
        assert_has(&messages[4], json!({"quality_score": 87.5, "device_id": "door", "student_id": "4711"}));
        assert_has(&messages[5], json!({"code": "duplicate_finger", "error": "This finger is enrolled already"}));
        // Who named a session hears of it the same, and of no other.
        assert_eq!(one.take(4).await, [&messages[0], &messages[2], &messages[3], &messages[4]].map(Value::clone));
        assert_eq!(other.take(2).await, [&messages[1], &messages[5]].map(Value::clone));
        for client in [&mut all, &mut one, &mut other] {
            assert_eq!(client.ask("ping").await, json!({"type": "pong"}), "and nothing else");
        }
    }

    async fn a_device_is_reported_when_it_comes_and_goes_and_not_in_between(clients) {
        let server = server().await;
        furnish(&server, 1).await;
        let endpoint = ENDPOINTS.iter().find(|endpoint| endpoint.path == "/ws/device-status").unwrap();
        let mut client = clients.open(&server, endpoint.path).await;
        until_live(endpoint, &mut client, &server, &mut 0).await;
        write(&server, 1, "PUT /api/devices/7", json!({})).await;
        for call in ["heartbeat", "heartbeat", "heartbeat", "heartbeat"] {
            write(&server, 1, &format!("POST /api/devices/7/{call}"), json!({})).await;
        }
        for status in ["online", "offline", "offline"] {
            write(&server, 1, "POST /api/devices/7/status", json!({"status": status})).await;
        }
        write(&server, 1, "POST /api/devices/7/info", json!({"info": {"firmware": "1.1"}})).await;
        let messages = client.take(4).await;
        assert_eq!(field(&messages[..3], "status"), ["unknown", "online", "offline"]);
        for message in &messages[..3] {
            assert_has(message, json!({"type": "device_status_update", "device_id": 7}));
            assert_fields(message, &[EVENT, DEVICE]);
        }
        assert_eq!(messages[0]["last_seen"], Value::Null);
        let at = |message: &Value| {
            chrono::DateTime::parse_from_rfc3339(message["last_seen"].as_str().unwrap()).unwrap()
        };
        assert!(at(&messages[2]) >= at(&messages[1]), "kept, and not cleared, when it goes");
        assert_fields(&messages[3], &[EVENT, "device_id info name lease_secs"]);
        assert_has(&messages[3], json!({"type": "device_info_update", "info": {"firmware": "1.1"}}));
        assert_eq!(client.ask("ping").await, json!({"type": "pong"}), "and nothing else");
        // A client that connects now receives both: the status and the info.
        let mut late = clients.open(&server, "/ws/device-status").await;
        let mut now = late.take(4).await;
        now.retain(|message| message["device_id"] == 7);
        assert_eq!(field(&now, "type"), ["device_status_update", "device_info_update"]);
        assert_has(&now[0], json!({"status": "offline", "snapshot": true}));
        assert!(at(&now[0]) >= at(&messages[2]), "it may have been heard of since");
    }

    async fn samples_come_enveloped_or_flat_however_they_were_asked_for(clients) {
        let server = server().await;
        let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
        for id in ["1", "2", "3"] {
            let call = format!("PUT /api/characteristics/{id}");
            write(&server, 1, &call, json!({"limits": limits, "rules": [1]})).await;
        }
        let (mut flat, mut enveloped) = (Vec::new(), Vec::new());
        for (path, asked) in [
            ("/ws/samples", json!({"type": "subscribe", "characteristic_ids": [1, 2]})),
            ("/ws/samples?shape=flat", json!({"action": "subscribe", "characteristic_ids": ["1", 2]})),
            ("/ws?shape=flat&id_type=number", json!({"action": "subscribe", "channels": ["characteristics/1", "characteristics/2"]})),
            ("/ws?id_type=number", json!({"type": "subscribe", "characteristic_ids": ["1", "2"]})),
            ("/ws?shape=enveloped&id_type=number", json!({"type": "subscribe", "characteristic_ids": [2], "characteristic_id": 1})),
            (
                "/ws/samples?shape=enveloped",
                json!({"action": "subscribe", "characteristic_ids": [1], "characteristic_id": "2"}),
            ),
        ] {
            let mut client = clients.open(&server, path).await;
            let acknowledged = client.ask(&asked.to_string()).await;
            assert_eq!(acknowledged["type"], "subscribed");
            let (ids, id) = (&acknowledged["characteristic_ids"], &acknowledged["characteristic_id"]);
            for id in ids.as_array().into_iter().flatten().chain([id]) {
                assert!(id.is_null() || id.is_u64(), "{path}: {acknowledged}");
            }
            assert_eq!(acknowledged.get("channels"), asked.get("channels"), "{path}: in the same words");
            let is_flat = path.contains("flat") || path == "/ws/samples";
            let name = if is_flat { "limits_update" } else { "control_limits" };
            for limits in client.take(2).await {
                assert_has(&limits, json!({"type": name, "snapshot": true}));
            }
            if !path.contains("samples") {
                assert_eq!(client.next().await["type"], "ready", "{path}");
            }
            if is_flat { &mut flat } else { &mut enveloped }.push(client);
        }
        // One of them listens to the other characteristic only, in each form.
        let mut others_flat = clients.open(&server, "/ws/samples").await;
        let mut others = clients.open(&server, "/ws?id_type=number").await;
        for client in [&mut others_flat, &mut others] {
            client.send(r#"{"type":"subscribe","characteristic_id":3}"#).await;
        }
        assert_eq!(field(&others_flat.take(2).await, "type"), ["subscribed", "limits_update"]);
        assert_eq!(field(&others.take(3).await, "type"), ["subscribed", "control_limits", "ready"]);
        for (call, body) in [
            ("POST /api/characteristics/2/samples", json!({"value": 0.5})),
            ("POST /api/characteristics/1/samples", json!({"value": 4.0, "timestamp": "2026-01-02T03:04:05Z"})),
            ("POST /api/violations/1.1/ack", json!({"reason": "Door was open", "user": "Ada"})),
            ("PUT /api/characteristics/2/limits", json!({"center_line": 1.0, "ucl": 4.0, "lcl": -2.0})),
        ] {
            write(&server, 1, call, body).await;
        }
        let mut heard = Vec::new();
        for client in &mut enveloped {
            let messages = client.take(5).await;
            assert_eq!(field(&messages, "type"), ["sample", "sample", "violation", "ack_update", "control_limits"]);
            for (message, payload) in messages.iter().zip([SAMPLE, SAMPLE, VIOLATION, ACKNOWLEDGEMENT, LIMITS]) {
                assert_fields(message, &[EVENT, "payload"]);
                assert_fields(&message["payload"], &[payload]);
            }
            assert_fields(&messages[1]["payload"]["violations"][0], &[VIOLATION]);
            assert_has(&messages[1]["payload"], json!({
                "characteristic_id": 1, "value": 4.0, "mean": 4.0, "in_control": false, "zone": "beyond_ucl",
            }));
            assert_has(&messages[2]["payload"], json!({
                "violation_id": "1.1", "characteristic_id": 1, "rule_id": 1, "severity": "critical",
                "sample_id": messages[1]["payload"]["sample_id"],
            }));
            assert_has(&messages[3]["payload"], json!({
                "violation_id": "1.1", "characteristic_id": 1, "acknowledged": true, "ack_user": "Ada",
                "user": "Ada", "ack_reason": "Door was open", "reason": "Door was open",
            }));
            assert_has(&messages[4]["payload"], json!({
                "characteristic_id": 2, "center_line": 1.0, "ucl": 4.0, "lcl": -2.0, "method": "given",
            }));
            heard.push(messages);
        }
        assert!(heard.windows(2).all(|pair| pair[0] == pair[1]), "the same on every endpoint");
        let enveloped_told = heard.swap_remove(0);
        let mut heard = Vec::new();
        for client in &mut flat {
            let messages = client.take(5).await;
            assert_eq!(field(&messages, "type"), ["sample", "sample", "violation", "ack_update", "limits_update"]);
            for (message, fields) in messages.iter().zip([
                "characteristic_id sample violations",
                "characteristic_id sample violations",
                "violation",
                "violation_id characteristic_id acknowledged ack_user ack_reason",
                "characteristic_id ucl lcl center_line",
            ]) {
                assert_fields(message, &[EVENT, fields]);
            }
            let violation = "id characteristic_id sample_id rule_id rule_name severity timestamp";
            assert_fields(&messages[1]["sample"], &["id characteristic_id timestamp mean zone in_control"]);
            assert_fields(&messages[1]["violations"][0], &[violation]);
            assert_fields(&messages[2]["violation"], &[violation]);
            assert_eq!((&messages[0]["violations"], &messages[1]["violations"][0]), (&json!([]), &messages[2]["violation"]));
            heard.push(messages);
        }
        assert!(heard.windows(2).all(|pair| pair[0] == pair[1]), "the same on every endpoint");
        let flat_told = heard.swap_remove(0);
        for (flat, enveloped) in flat_told.iter().zip(&enveloped_told) {
            for name in EVENT.split(' ').filter(|name| *name != "type") {
                assert_eq!(flat[name], enveloped[name]);
            }
        }
        let sample = &enveloped_told[1]["payload"];
        assert_eq!(flat_told[1]["characteristic_id"], 1);
        assert_has(&flat_told[1]["sample"], json!({
            "id": sample["sample_id"], "characteristic_id": 1, "timestamp": sample["timestamp"],
            "mean": 4.0, "zone": "beyond_ucl", "in_control": false,
        }));
        assert_has(&flat_told[2]["violation"], json!({"id": "1.1", "rule_id": 1, "severity": "CRITICAL"}));
        assert_has(&flat_told[3], json!({"violation_id": "1.1", "ack_user": "Ada", "ack_reason": "Door was open"}));
        assert_has(&flat_told[4], json!({"characteristic_id": 2, "center_line": 1.0, "ucl": 4.0, "lcl": -2.0}));
        // An acknowledgement is the concern of everyone who watches the process; the rest is not.
        assert_eq!(others_flat.next().await, flat_told[3]);
        assert_eq!(others.next().await, enveloped_told[3]);
        for client in [&mut others_flat, &mut others].into_iter().chain(&mut flat).chain(&mut enveloped) {
            assert_eq!(client.ask(r#"{"action":"ping"}"#).await, json!({"type": "pong"}), "and nothing else");
        }
        // A client that leaves one characteristic still hears the others.
        let client = &mut flat[0];
        let left = client.ask(r#"{"action":"unsubscribe","characteristic_ids":["2"]}"#).await;
        assert_has(&left, json!({"type": "unsubscribed", "characteristic_ids": [2]}));
        assert_fields(&left, &["type cursor characteristic_ids"]);
        for id in ["2", "1"] {
            write(&server, 1, &format!("POST /api/characteristics/{id}/samples"), json!({"value": 0.0})).await;
        }
        assert_eq!(client.next().await["characteristic_id"], 1);
    }

    /// Also where other clients want the statuses of jobs in upper case.
    async fn uploads_begin_with_their_state_and_end_with_a_result_or_an_error(clients) {
        for settings in [json!({}), json!({"status_case": "upper"})] {
            let server = server_with(settings).await;
            for (id, job_type, body) in [
                ("1", "document", json!({"status": "in_progress", "metadata": {"file_id": "letter.pdf"}})),
                ("2", "image", json!({})),
                ("3", "document", json!({"status": "queued", "metadata": {"file_id": 33}})),
                ("4", "document", json!({"status": "in_progress"})),
            ] {
                let mut body = body;
                body["job_id"] = json!(id);
                body["job_type"] = json!(job_type);
                write(&server, 1, "POST /api/jobs", body).await;
            }
            write(&server, 1, "POST /api/jobs/1/progress", json!({"progress": 12.9})).await;
            write(&server, 1, "POST /api/jobs/4/complete", json!({})).await;
            let mut all = clients.open(&server, "/ws/upload-progress").await;
            let mut documents = clients.open(&server, "/ws/upload-progress?job_type=document").await;
            let mut others = clients.open(&server, "/ws/upload-progress?job_type=image&job_type=video").await;
            let mut one = clients.open(&server, "/ws/upload-progress/3?shape=flat").await;
            for (client, data, ids) in [
                (&mut all, json!({"2": 0, "33": 0, "letter.pdf": 12}), vec!["2", "3", "1"]),
                (&mut documents, json!({"33": 0, "letter.pdf": 12}), vec!["3", "1"]),
                (&mut others, json!({"2": 0}), vec!["2"]),
                (&mut one, json!({"33": 0}), vec!["3"]),
            ] {
                let first = client.next().await;
                assert_has(&first, json!({"type": "initial_state", "data": data}));
                let now = client.take(ids.len()).await;
                assert_eq!(field(&now, "processing_id"), ids, "without what has ended");
                for message in &now {
                    assert_fields(message, &[EVENT, "snapshot", UPLOAD]);
                    assert_has(message, json!({"type": "progress_update", "status": "processing"}));
                }
            }
            for (call, body) in [
                ("2/start", json!({})),
                ("1/progress", json!({"progress": 99.9, "message": "Almost"})),
                ("3/progress", json!({"message": "Nobody knows how long"})),
                ("1/complete", json!({"result": {"pages": 3}})),
                ("2/fail", json!({"error": {"code": "unreadable", "message": "Cannot read it"}})),
                ("3/cancel", json!({"force": true})),
            ] {
                write(&server, 1, &format!("POST /api/jobs/{call}"), body).await;
            }
            let messages = all.take(6).await;
            for message in &messages {
                assert_eq!(message["type"], "progress_update");
                assert_fields(message, &[EVENT, UPLOAD]);
            }
            for (message, (file_id, status, progress)) in messages.iter().zip([
                (json!("2"), "processing", 0),
                (json!("letter.pdf"), "processing", 99),
                (json!(33), "processing", 0),
                (json!("letter.pdf"), "completed", 100),
                (json!("2"), "error", 0),
                (json!(33), "error", 0),
            ]) {
                assert_has(message, json!({
                    "file_id": file_id, "status": status, "progress": progress, "isComplete": status == "completed",
                    "result": if status == "completed" { json!({"pages": 3}) } else { Value::Null },
                }));
                assert_eq!(message["error"].is_string(), status == "error", "{message}");
            }
            assert_has(&messages[1], json!({"message": "Almost", "job_type": "document"}));
            assert_eq!(messages[4]["error"], "Cannot read it");
            let of = |ids: &[&str]| -> Vec<Value> {
                let fits = |message: &&Value| ids.contains(&message["processing_id"].as_str().unwrap());
                messages.iter().filter(fits).cloned().collect()
            };
            assert_eq!(documents.take(4).await, of(&["1", "3"]));
            assert_eq!(others.take(2).await, of(&["2"]));
            assert_eq!(one.take(2).await, of(&["3"]));
            for client in [&mut all, &mut documents, &mut others, &mut one] {
                client.send("ping").await;
                assert_eq!(client.text().await, "pong", "and nothing else");
            }
            // Late, but not too late to learn how it ended.
            let mut late = clients.open(&server, "/ws/upload-progress/1").await;
            let ended = json!({"type": "progress_update", "isComplete": true, "result": {"pages": 3}});
            assert_has(&late.next().await, ended);
        }
    }

    async fn a_progress_client_hears_its_job_and_those_that_it_adds(clients) {
        let server = server_with(json!({"idle_heartbeat_secs": 1})).await;
        for id in ["7", "8", "9"] {
            let body = json!({"job_id": id, "job_type": "scan", "status": "in_progress"});
            write(&server, 1, "POST /api/jobs", body).await;
        }
        let mut client = clients.open(&server, "/progress/ws/7").await;
        let first = client.next().await;
        assert_fields(&first, &[EVENT, "snapshot", JOB]);
        assert_has(&first, json!({"job_id": "7", "status": "in_progress"}));
        for (asked, id) in [
            (r#"{"action":"subscribe","job_id":8}"#, "8"),
            (r#"{"type":"subscribe","job_id":"9"}"#, "9"),
            (r#"{"type":"subscribe","job_id":"7"}"#, "7"),
        ] {
            // Its status, and no acknowledgement.
            client.send(asked).await;
            assert_has(&client.news().await, json!({"type": "job_progress", "job_id": id}));
        }
        for (call, body) in [
            ("7/progress", json!({"progress": 33.3, "message": "Page 1 of 3", "metadata": {"page": 1}})),
            ("9/progress", json!({"progress": null, "message": "Nobody knows how long"})),
            ("8/fail", json!({"error": {"code": "jam", "message": "Paper jam"}})),
            ("7/complete", json!({"result": [1, 2]})),
        ] {
            write(&server, 1, &format!("POST /api/jobs/{call}"), body).await;
        }
        let mut messages = Vec::new();
        while messages.len() < 4 {
            messages.push(client.news().await);
        }
        assert_eq!(field(&messages, "job_id"), ["7", "9", "8", "7"]);
        assert_eq!(field(&messages, "progress"), [&json!(33.3), &Value::Null, &json!(0.0), &json!(100.0)]);
        assert_has(&messages[0], json!({"message": "Page 1 of 3", "metadata": {"page": 1}}));
        assert_fields(&messages[0], &[EVENT, JOB]);
        assert_fields(&messages[2], &[EVENT, JOB, "error"]);
        assert_fields(&messages[3], &[EVENT, JOB, "result"]);
        assert_has(&messages[2], json!({"status": "failed", "error": {"code": "jam", "message": "Paper jam"}}));
        assert_has(&messages[3], json!({"status": "completed", "result": [1, 2]}));
        let silent = client.next().await;
        assert_fields(&silent, &["type timestamp cursor"]);
        assert_eq!(silent["type"], "heartbeat", "after its silence");
        let mut shouting = clients.open(&server, "/progress/ws/8?status_case=upper").await;
        assert_eq!(shouting.next().await["status"], "FAILED");
    }
}
