//! What an existing back end reports of jobs that it neither created nor started.

use serde_json::{Value, json};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn one_report_is_enough_for_a_job_whose_type_it_names() {
    let server = server().await;
    for (verb, id) in [("start", "a"), ("progress", "b")] {
        let body = json!({"job_type": "document", "message": "Reading", "metadata": {"file": id}});
        let event = server.report(&format!("/api/jobs/{id}/{verb}"), body).await;
        assert_eq!(
            (
                &event["status"],
                &event["job_type"],
                &event["message"],
                &event["metadata"]["file"]
            ),
            (
                &json!("in_progress"),
                &json!("document"),
                &json!("Reading"),
                &json!(id)
            )
        );
        assert_eq!(event["seq"], if id == "a" { 1 } else { 2 }, "in one event");
    }
    let event = server
        .report(
            "/api/jobs/b/progress",
            json!({"job_type": "document", "progress": 30}),
        )
        .await;
    assert_eq!(event["progress"], 30.0);
    let (status, problem) = server
        .post(
            "/api/jobs/b/progress",
            &worker(1),
            json!({"job_type": "mail", "progress": 40}),
        )
        .await;
    assert_eq!(status, 422, "{problem}");
    for verb in ["start", "progress", "complete", "fail"] {
        let body = json!({"error": "x"});
        let body = if verb == "fail" { body } else { json!({}) };
        let (status, _) = server
            .post(&format!("/api/jobs/typo/{verb}"), &worker(1), body)
            .await;
        assert_eq!(status, 404, "{verb} without a type makes no job");
    }
    let lines = r#"{"op": "jobs.progress", "job_id": "c", "job_type": "mail", "progress": 5}"#;
    assert_eq!(
        server.batch(&worker(1), lines).await[0]["event"]["progress"],
        5.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_never_started_is_completed_by_way_of_in_progress() {
    let server = server().await;
    for (id, status) in [("a", "pending"), ("b", "queued")] {
        let create = json!({"job_id": id, "job_type": "t", "status": status});
        let created = server.report("/api/jobs", create).await;
        let cursor = created["cursor"].as_str().unwrap().to_owned();
        let body = json!({"result": 1, "metadata": {"pages": 3}});
        let event = server
            .report(&format!("/api/jobs/{id}/complete"), body)
            .await;
        assert_eq!(
            (&event["status"], &event["metadata"]["pages"]),
            (&json!("completed"), &json!(3))
        );
        let scope = format!("/jobs/{id}");
        for transport in Transport::ALL {
            let messages = server
                .resume(transport, &scope, &cursor)
                .await
                .until_ready()
                .await;
            let statuses: Vec<_> = messages
                .iter()
                .filter_map(|message| message["status"].as_str())
                .collect();
            assert_eq!(statuses, ["in_progress", "completed"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_may_be_a_text_or_come_without_a_code() {
    let server = server().await;
    for (id, error, code) in [
        ("a", json!("It broke"), "error"),
        ("b", json!({"message": "It broke"}), "error"),
        (
            "c",
            json!({"code": "broken", "message": "It broke"}),
            "broken",
        ),
    ] {
        server.running_job(id).await;
        let body = json!({"error": error, "metadata": {"tried": 2}});
        let event = server.report(&format!("/api/jobs/{id}/fail"), body).await;
        assert_eq!(event["error"], json!({"code": code, "message": "It broke"}));
        assert_eq!(
            (&event["message"], &event["metadata"]["tried"]),
            (&json!("It broke"), &json!(2))
        );
    }
    for (id, body, code, error) in [
        (
            "s",
            json!({"error": "Sensor is dirty"}),
            "error",
            "Sensor is dirty",
        ),
        ("t", json!({}), "error", "Enrollment failed"),
        (
            "u",
            json!({"code": "timeout"}),
            "timeout",
            "The device did not answer in time",
        ),
    ] {
        server
            .report("/api/enrollments", json!({"session_id": id}))
            .await;
        let event = server
            .report(&format!("/api/enrollments/{id}/error"), body)
            .await;
        assert_eq!(
            (&event["code"], &event["error"]),
            (&json!(code), &json!(error))
        );
    }
}

/// A job that was never started does not count in the durations of its type.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_never_started_foretells_no_duration() {
    let server = server().await;
    for id in ["a", "b", "c"] {
        let create = json!({"job_id": id, "job_type": "t"});
        server.report("/api/jobs", create).await;
        server
            .report(&format!("/api/jobs/{id}/complete"), json!({}))
            .await;
    }
    let started = server
        .report("/api/jobs/d/start", json!({"job_type": "t"}))
        .await;
    assert_eq!(
        (&started["eta_at"], &started["eta_source"]),
        (&Value::Null, &Value::Null)
    );
}
