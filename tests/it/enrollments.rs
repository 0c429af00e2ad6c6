//! Enrollment sessions: their rules over HTTP, and what their listeners hear.

use serde_json::{Value, json};

use crate::support::*;

async fn start(server: &Server, session: &str, device: &str) -> Value {
    server
        .report(
            "/api/enrollments",
            json!({"session_id": session, "device_id": device, "student_id": 4711}),
        )
        .await
}

/// Progress and status of each message.
fn steps(messages: &[Value]) -> Vec<(Value, Value)> {
    let step = |message: &Value| (message["progress"].clone(), message["status"].clone());
    messages.iter().map(step).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_session_goes_from_ready_to_complete_on_every_transport() {
    for transport in Transport::ALL {
        let server = server().await;
        let mut all = server.listen(transport, "/enrollments?tick_ms=0").await;
        all.until_ready().await;
        let begun = start(&server, "s1", "door").await;
        assert_eq!(begun["type"], "enrollment_progress");
        for status in ["placing", "capturing", "processing"] {
            server
                .report("/api/enrollments/s1/progress", json!({"status": status}))
                .await;
        }
        let done = server
            .report(
                "/api/enrollments/s1/complete",
                json!({"quality_score": 87.5}),
            )
            .await;
        let heard = all
            .take_until(|message| message["type"] == "enrollment_complete")
            .await;
        assert_eq!(
            steps(&heard),
            [
                (json!(0), json!("ready")),
                (json!(33), json!("placing")),
                (json!(66), json!("capturing")),
                (json!(66), json!("processing")),
                (json!(100), json!("complete")),
            ]
        );
        assert_eq!(heard.last(), Some(&done));
        for message in &heard {
            assert_eq!(
                (
                    &message["session_id"],
                    &message["device_id"],
                    &message["student_id"]
                ),
                (&json!("s1"), &json!("door"), &json!("4711"))
            );
        }
        assert_eq!(done["quality_score"], 87.5);
        let mut one = server.listen(transport, "/enrollments/s1").await;
        let messages = one.until_ready().await;
        assert_eq!(messages[1]["type"], "enrollment_complete");
        assert_eq!(messages[1]["snapshot"], true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_attempts_progress_counts_scans_and_does_not_fall_back() {
    let server = server().await;
    let asked = json!({"session_id": "s", "device_id": 7, "total_attempts": 3});
    let begun = server.report("/api/enrollments", asked).await;
    assert_eq!(
        (
            &begun["device_id"],
            &begun["attempt"],
            &begun["total_attempts"]
        ),
        (&json!("7"), &json!(1), &json!(3))
    );
    let mut reported = Vec::new();
    for attempt in 1..=3 {
        for status in ["placing", "capturing", "processing"] {
            let body = json!({"status": status, "attempt": attempt, "total_attempts": 3});
            let answer = server.report("/api/enrollments/s/progress", body).await;
            reported.push(answer["progress"].as_u64().unwrap());
        }
    }
    assert_eq!(reported, [0, 0, 0, 33, 33, 33, 66, 66, 66]);
    let (status, _) = server
        .post(
            "/api/enrollments/s/progress",
            &worker(1),
            json!({"attempt": 2}),
        )
        .await;
    assert_eq!(status, 422, "an attempt before the present one");
    let (status, _) = server
        .post(
            "/api/enrollments/s/progress",
            &worker(1),
            json!({"attempt": 4}),
        )
        .await;
    assert_eq!(status, 422, "one more than there are");
    let fewer = json!({"total_attempts": 2});
    let (status, problem) = server
        .post("/api/enrollments/s/progress", &worker(1), fewer)
        .await;
    assert_eq!(status, 422, "fewer scans than were begun");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("`total_attempts` must be from 3 "),
        "{detail}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_third_is_for_the_end() {
    let server = server().await;
    start(&server, "s", "door").await;
    let body = json!({"progress": 90, "status": "placing"});
    let event = server.report("/api/enrollments/s/progress", body).await;
    assert_eq!(event["progress"], 66);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_has_one_active_session_at_a_time() {
    let server = server().await;
    start(&server, "s1", "door").await;
    let again = json!({"session_id": "s2", "device_id": "door"});
    let (status, problem) = server
        .post("/api/enrollments", &worker(1), again.clone())
        .await;
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("held")),
        "{problem}"
    );
    let (status, _) = server
        .post("/api/enrollments", &worker(2), again.clone())
        .await;
    assert_eq!(status, 201, "another school has doors of its own");
    // Both in one commit: the first is given up, the second takes its place.
    let lines = concat!(
        r#"{"op": "enrollments.cancel", "session_id": "s1"}"#,
        "\n",
        r#"{"op": "enrollments.create", "session_id": "s2", "device_id": "door"}"#,
        "\n",
        r#"{"op": "enrollments.create", "session_id": "s3", "device_id": "door"}"#,
    );
    let results = server.batch(&worker(1), lines).await;
    assert_eq!(field(&results, "status"), [200, 200, 409]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_session_rejects_and_nothing_is_broadcast() {
    let server = server().await;
    start(&server, "s", "door").await;
    let failed = server
        .report(
            "/api/enrollments/s/error",
            json!({"code": "duplicate_finger"}),
        )
        .await;
    assert_eq!(
        (
            &failed["type"],
            &failed["status"],
            &failed["code"],
            &failed["error"]
        ),
        (
            &json!("enrollment_error"),
            &json!("error"),
            &json!("duplicate_finger"),
            &json!("This finger is enrolled already")
        )
    );
    for (verb, body) in [
        ("progress", json!({"status": "placing"})),
        ("complete", json!({})),
        ("error", json!({"code": "timeout"})),
        ("cancel", json!({})),
    ] {
        let path = format!("/api/enrollments/s/{verb}");
        let (status, problem) = server.post(&path, &worker(1), body).await;
        assert_eq!(
            (status, &problem["code"]),
            (409, &json!("finished")),
            "{verb}"
        );
    }
    let (_, listed) = server.get("/api/enrollments", &viewer(1)).await;
    assert_eq!(listed["cursor"], failed["cursor"], "nothing happened since");
    let cancelled = {
        start(&server, "t", "door").await;
        server
            .report("/api/enrollments/t/cancel", json!({"message": "Gone home"}))
            .await
    };
    assert_eq!(
        (
            &cancelled["type"],
            &cancelled["status"],
            &cancelled["message"]
        ),
        (
            &json!("enrollment_cancelled"),
            &json!("cancelled"),
            &json!("Gone home")
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_session_whose_device_falls_silent_ends_with_timeout() {
    let server = server().await;
    let mut listener = server.listen(Transport::WebSocket, "/enrollments").await;
    listener.until_ready().await;
    let asked = json!({"session_id": "s", "device_id": "door", "lease_secs": 1});
    server.report("/api/enrollments", asked).await;
    let heard = listener
        .take_until(|message| message["type"] == "enrollment_error")
        .await;
    assert_eq!(heard.last().unwrap()["code"], "timeout");
    let next = json!({"session_id": "s2", "device_id": "door"});
    server.report("/api/enrollments", next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn float_noise_at_the_ends_of_the_range_is_no_error() {
    let server = server().await;
    start(&server, "s", "door").await;
    for (sent, kept) in [(-1e-10, 0), (50.0, 50), (100.00000000000001, 66)] {
        let body = json!({"progress": sent});
        let answer = server.report("/api/enrollments/s/progress", body).await;
        assert_eq!(answer["progress"], kept, "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_rejected_with_a_reason() {
    let server = server().await;
    start(&server, "s", "door").await;
    for (path, body, status) in [
        ("", json!({"device_id": "a\nb"}), 422),
        ("", json!({"device_id": "x", "lease_secs": 0}), 422),
        ("", json!({"device_id": "x", "total_attempts": 0}), 422),
        (
            "",
            json!({"device_id": "x", "student_id": "s".repeat(129)}),
            422,
        ),
        ("", json!({"device_id": "x", "session_id": "s"}), 409),
        ("/s/progress", json!({"status": "complete"}), 422),
        ("/s/progress", json!({"status": "dancing"}), 422),
        ("/s/progress", json!({"progress": 101}), 422),
        ("/s/progress", json!({"progress": "33"}), 422),
        ("/s/error", json!({"code": ""}), 422),
        ("/s/finish", json!({}), 404),
        ("/other/progress", json!({}), 404),
    ] {
        let path = format!("/api/enrollments{path}");
        let (got, problem) = server.post(&path, &worker(1), body.clone()).await;
        assert_eq!(got, status, "{path} {body} {problem}");
        assert!(problem["detail"].is_string());
    }
    server
        .report(
            "/api/enrollments/s/progress",
            json!({"status": "capturing"}),
        )
        .await;
    let (status, problem) = server
        .post(
            "/api/enrollments/s/progress",
            &worker(1),
            json!({"status": "placing", "attempt": 1}),
        )
        .await;
    assert_eq!(
        (status, &problem["code"]),
        (200, &Value::Null),
        "the first attempt, of which nobody had said that it was one"
    );
    let (status, problem) = server
        .post(
            "/api/enrollments/s/progress",
            &worker(1),
            json!({"status": "ready", "attempt": 1}),
        )
        .await;
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("illegal-transition"))
    );
    let (status, _) = server.get("/api/enrollments/s", &viewer(2)).await;
    assert_eq!(status, 404, "another school's");
    let (status, found) = server.get("/api/enrollments/s", &viewer(1)).await;
    assert_eq!((status, &found["status"]), (200, &json!("placing")));
    assert!(found["created_at"].is_string());
}
