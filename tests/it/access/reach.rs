//! What a valid token reaches and no more: its role, its schools and its channels.

use serde_json::json;
use tidings::auth::Role;

use super::status;
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_role_does_what_it_may_and_no_more() {
    let server = server().await;
    server.running_job("a").await;
    let job = json!({"job_type": "t"});
    assert_eq!(
        server.post("/api/jobs", &viewer(1), job.clone()).await.0,
        403
    );
    assert_eq!(
        server
            .post("/api/jobs/a/progress", &viewer(1), json!({}))
            .await
            .0,
        403
    );
    assert_eq!(
        server.post("/api/batch", &viewer(1), json!({})).await.0,
        403
    );
    assert_eq!(server.get("/api/jobs/a", &viewer(1)).await.0, 200);
    assert_eq!(
        server.post("/api/jobs", &admin(), job.clone()).await.1["code"],
        "school-required"
    );
    assert_eq!(
        server.post("/api/jobs?school_id=9", &admin(), job).await.0,
        201
    );
}

/// The same answer for another school's things as for missing ones, in every endpoint.
#[tokio::test(flavor = "multi_thread")]
async fn enumeration_of_another_schools_ids() {
    let server = server().await;
    server.running_job("theirs").await;
    let other = worker(2);
    for (theirs, nobody) in [
        ("GET /api/jobs/theirs", "GET /api/jobs/nobody"),
        (
            "POST /api/jobs/theirs/progress",
            "POST /api/jobs/nobody/progress",
        ),
        (
            "POST /api/jobs/theirs/cancel",
            "POST /api/jobs/nobody/cancel",
        ),
        ("GET /events/jobs/theirs", "GET /events/jobs/nobody"),
        (
            "GET /events?channel=jobs/theirs",
            "GET /events?channel=jobs/nobody",
        ),
        ("GET /events/schools/1", "GET /events/schools/3"),
        (
            "GET /events/jobs?school_id=1",
            "GET /events/jobs?school_id=3",
        ),
        ("GET /api/jobs?school_id=1", "GET /api/jobs?school_id=3"),
    ] {
        let ask = async |line: &str| {
            let (method, path) = line.split_once(' ').unwrap();
            let (status, problem) =
                answer(server.request(method, path, &other).json(&json!({}))).await;
            (status, problem.to_string().replace("theirs", "nobody"))
        };
        let (theirs, nobody) = (ask(theirs).await, ask(nobody).await);
        assert_eq!(theirs.0, 404);
        assert_eq!(theirs, nobody);
    }
    let (_, made) = server
        .post(
            "/api/jobs",
            &other,
            json!({"job_type": "t", "job_id": "theirs"}),
        )
        .await;
    assert_eq!((&made["school_id"], &made["seq"]), (&json!(2), &json!(1)));
    let (_, job) = server.get("/api/jobs/theirs", &viewer(1)).await;
    assert_eq!(job["seq"], 1, "untouched");
    let payload = server
        .post(
            "/api/jobs",
            &other,
            json!({"job_type": "t", "school_id": 1}),
        )
        .await;
    assert_eq!(
        payload.0, 422,
        "a school in the payload is an unknown field"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_limits_escaped_through_other_spellings() {
    let server = server().await;
    server.running_job("a").await;
    server.running_job("ab").await;
    let mut limited = claims(Some(1), Role::Worker);
    limited.channels = Some(vec!["jobs/a".into()]);
    let token = sign(&limited);
    for (path, expected) in [
        ("/events/jobs/a?wait=0", 200),
        ("/events?channel=jobs/a&wait=0", 200),
        ("/events/jobs/%61?wait=0", 200),
        ("/events/jobs", 403),
        ("/events/jobs/ab", 403),
        ("/events/schools/1", 403),
        ("/events?channel=jobs/a&channel=jobs", 403),
        ("/events?channel=jobs%2Fab", 403),
        ("/events/jobs/*", 403),
        ("/events/jobs/a%2F..%2Fab", 403),
        ("/events//jobs", 403),
        ("/events/JOBS", 404),
        ("/api/jobs", 403),
        ("/api/jobs/ab", 403),
        ("/api/jobs/a", 200),
    ] {
        let response = server
            .request("GET", path, &token)
            .header("Accept", "application/json")
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), expected, "{path}");
    }
    assert_eq!(
        server
            .post("/api/jobs/ab/progress", &token, json!({}))
            .await
            .0,
        403
    );
    assert_eq!(
        server
            .post("/api/jobs/a/progress", &token, json!({}))
            .await
            .0,
        200
    );
    assert_eq!(
        server
            .post("/api/jobs", &token, json!({"job_type": "t"}))
            .await
            .0,
        403
    );
    let batch = json!({"op": "jobs.progress", "job_id": "ab"});
    assert_eq!(
        server.post("/api/batch", &token, batch).await.1["status"],
        403
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_one_school_can_be_watched_if_the_settings_say_so() {
    let server = server_with(json!({"anonymous_school_id": 1})).await;
    server.running_job("a").await;
    let ask = async |method: &str, path: &str| {
        let request = server
            .http
            .request(method.parse().unwrap(), format!("{}{path}", server.url))
            .header("Accept", "application/json");
        request
            .json(&json!({}))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(ask("GET", "/api/jobs/a").await, 200);
    assert_eq!(ask("GET", "/events/jobs?wait=0").await, 200);
    assert_eq!(ask("POST", "/api/jobs/a/progress").await, 403);
    assert_eq!(ask("GET", "/events/schools/2").await, 404);
    assert_eq!(
        status(&server, "bad").await,
        401,
        "a bad token does not fall back"
    );
}
