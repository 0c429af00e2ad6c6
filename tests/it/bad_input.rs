//! Bad input: each with its documented status and problem type, and no effect.

use serde_json::{Value, json};
use tidings::http::problem::PROBLEMS;

use crate::support::*;

/// Method, path, body, status, code.
type Case = (&'static str, &'static str, &'static str, u16, &'static str);

const CASES: &[Case] = &[
    ("POST", "/api/jobs", "{", 400, "malformed-json"),
    ("POST", "/api/jobs", "\u{0}", 400, "malformed-json"),
    ("POST", "/api/jobs", "[]", 422, "invalid-body"),
    ("POST", "/api/jobs", "null", 422, "invalid-body"),
    ("POST", "/api/jobs", "", 422, "invalid-body"),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":7}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":""}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"a b"}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"t","colour":1}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"t","job_type":"t"}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"t","job_id":".."}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"t","job_id":"a\r\nb"}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"t","status":"done"}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"t","status":"completed"}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"t","metadata":[]}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"t","timeout_secs":-1}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"t","job_id":"a"}"#,
        409,
        "already-exists",
    ),
    (
        "POST",
        "/api/jobs/a/progress",
        r#"{"progress":NaN}"#,
        400,
        "malformed-json",
    ),
    (
        "POST",
        "/api/jobs/a/progress",
        r#"{"progress":1e999}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs/a/progress",
        r#"{"progress":101}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs/a/progress",
        r#"{"progress":-0.1}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs/a/progress",
        r#"{"progress":"50"}"#,
        422,
        "invalid-body",
    ),
    ("POST", "/api/jobs/a/start", "{}", 409, "illegal-transition"),
    ("POST", "/api/jobs/a/queue", "{}", 409, "illegal-transition"),
    ("POST", "/api/jobs/a/retry", "{}", 409, "illegal-transition"),
    ("POST", "/api/jobs/a/fail", "{}", 422, "invalid-body"),
    (
        "POST",
        "/api/jobs/a/fail",
        r#"{"error":{"code":"","message":""}}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/jobs/done/progress",
        r#"{"progress":10}"#,
        409,
        "finished",
    ),
    ("POST", "/api/jobs/done/complete", "{}", 409, "finished"),
    ("POST", "/api/jobs/done/retry", "{}", 409, "finished"),
    ("POST", "/api/jobs/nobody/progress", "{}", 404, "not-found"),
    ("POST", "/api/jobs/a%2Fb/progress", "{}", 404, "not-found"),
    ("POST", "/api/jobs/a%0Ab/progress", "{}", 404, "not-found"),
    ("POST", "/api/jobs/a/dance", "{}", 404, "not-found"),
    ("GET", "/api/jobs/nobody", "", 404, "not-found"),
    ("GET", "/api/jobs?limit=0", "", 400, "invalid-query"),
    ("GET", "/api/jobs?limit=501", "", 400, "invalid-query"),
    ("GET", "/api/jobs?limit=x", "", 400, "invalid-query"),
    (
        "GET",
        "/api/jobs?status_case=title",
        "",
        400,
        "invalid-query",
    ),
    (
        "POST",
        "/api/jobs/a/progress?status_case=title",
        "{}",
        400,
        "invalid-query",
    ),
    ("GET", "/api/jobs?page=-1", "", 400, "invalid-query"),
    (
        "GET",
        "/api/jobs?page=18446744073709551615",
        "",
        400,
        "invalid-query",
    ),
    ("GET", "/api/jobs?status=sleeping", "", 400, "invalid-query"),
    ("GET", "/api/jobs?job_type=%00", "", 400, "invalid-query"),
    ("GET", "/api/jobs?school_id=zero", "", 400, "invalid-query"),
    ("GET", "/api/jobs?school_id=2", "", 404, "not-found"),
    ("POST", "/api/tickets", "{}", 422, "invalid-body"),
    (
        "POST",
        "/api/tickets",
        r#"{"channels":[]}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/tickets",
        r#"{"channels":["cats"]}"#,
        422,
        "invalid-body",
    ),
    (
        "POST",
        "/api/tickets",
        r#"{"channels":["schools/2"]}"#,
        404,
        "not-found",
    ),
    ("GET", "/events", "", 400, "invalid-query"),
    ("GET", "/events/cats", "", 404, "not-found"),
    ("GET", "/events/jobs/nobody", "", 404, "not-found"),
    ("GET", "/events/jobs/a/b", "", 404, "not-found"),
    ("GET", "/events/jobs/a%0d%0aX: y", "", 404, "not-found"),
    ("GET", "/events/schools/2", "", 404, "not-found"),
    ("GET", "/events/schools/x", "", 404, "not-found"),
    (
        "GET",
        "/events/jobs?cursor=yesterday",
        "",
        400,
        "invalid-cursor",
    ),
    (
        "GET",
        "/events/jobs?cursor=00000000-99999999999999999999",
        "",
        400,
        "invalid-cursor",
    ),
    ("GET", "/events/jobs?tick_ms=-1", "", 400, "invalid-query"),
    (
        "GET",
        "/events/jobs?tick_ms=60001",
        "",
        400,
        "invalid-query",
    ),
    ("GET", "/events/jobs?wait=61", "", 400, "invalid-query"),
    (
        "GET",
        "/events/jobs?padding=1000000",
        "",
        400,
        "invalid-query",
    ),
    ("GET", "/events/jobs?named=yes", "", 400, "invalid-query"),
    (
        "GET",
        "/events/jobs?status_case=title",
        "",
        400,
        "invalid-query",
    ),
    (
        "GET",
        "/events/jobs?status=sleeping",
        "",
        400,
        "invalid-query",
    ),
    ("GET", "/ws", "", 400, "bad-handshake"),
    ("GET", "/progress/ws/a", "", 400, "bad-handshake"),
    ("GET", "/nowhere", "", 404, "not-found"),
    ("DELETE", "/api/jobs/a", "", 405, "method-not-allowed"),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn every_bad_request_gets_its_problem_and_has_no_effect() {
    let server = server().await;
    server.running_job("a").await;
    server
        .report("/api/jobs/a/progress", json!({"progress": 20}))
        .await;
    server.running_job("done").await;
    server.report("/api/jobs/done/complete", json!({})).await;
    let (_, before) = server.get("/api/jobs", &viewer(1)).await;
    for (method, path, body, status, code) in CASES {
        let response = server
            .request(method, path, &worker(1))
            .body(*body)
            .send()
            .await
            .unwrap();
        assert_eq!(
            response
                .headers()
                .get("content-type")
                .and_then(|value| value.to_str().ok()),
            Some("application/problem+json"),
            "{method} {path}"
        );
        let got = response.status().as_u16();
        let problem: Value = response.json().await.unwrap();
        assert_eq!(
            (got, problem["code"].as_str().unwrap()),
            (*status, *code),
            "{method} {path} {body}: {problem}"
        );
        assert_eq!(problem["status"], *status);
        assert!(
            PROBLEMS.iter().any(|(known, uri, title, _)| known == status
                && *uri == problem["type"]
                && *title == problem["title"]),
            "{problem}"
        );
        assert!(!problem["detail"].as_str().unwrap().is_empty());
    }
    let (_, after) = server.get("/api/jobs", &viewer(1)).await;
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_is_rejected_with_the_limit() {
    let settings = json!({"body_limit_bytes": 2_000, "batch_limit_bytes": 4_000, "batch_limit_commands": 3, "metadata_limit_bytes": 100, "message_limit_bytes": 50});
    let server = server_with(settings).await;
    server.running_job("a").await;
    let post = async |path: &str, body: String| {
        let (status, problem) = answer(server.request("POST", path, &worker(1)).body(body)).await;
        (status, problem["code"].as_str().map(str::to_owned))
    };
    let too_large = (413, Some("body-too-large".to_owned()));
    let invalid = (422, Some("invalid-body".to_owned()));
    let text = |n: usize| "x".repeat(n);
    assert_eq!(
        post(
            "/api/jobs/a/progress",
            json!({"message": text(2_000)}).to_string()
        )
        .await,
        too_large
    );
    assert_eq!(
        post(
            "/api/jobs/a/progress",
            json!({"message": text(51)}).to_string()
        )
        .await,
        invalid
    );
    assert_eq!(
        post(
            "/api/jobs/a/progress",
            json!({"metadata": {"x": text(100)}}).to_string()
        )
        .await,
        invalid
    );
    assert_eq!(
        post(
            "/api/jobs/a/fail",
            json!({"error": {"code": text(65), "message": "m"}}).to_string()
        )
        .await,
        invalid
    );
    assert_eq!(post("/api/batch", text(4_001)).await, too_large);
    assert_eq!(post("/api/batch", "{}\n".repeat(4)).await, too_large);
    let deep = format!("{}{}", "[".repeat(900), "]".repeat(900));
    assert_eq!(
        post("/api/jobs/a/complete", format!(r#"{{"result":{deep}}}"#))
            .await
            .0,
        400,
        "nesting is bounded"
    );
    let exactly = json!({"message": text(50)}).to_string();
    assert_eq!(post("/api/jobs/a/progress", exactly).await.0, 200);
    let query: String = (0..21).map(|n| format!("job_type=t{n}&")).collect();
    assert_eq!(
        server
            .get(&format!("/api/jobs?{query}"), &viewer(1))
            .await
            .0,
        400
    );
    assert_eq!(
        server
            .get(&format!("/api/jobs?q={}", text(257)), &viewer(1))
            .await
            .0,
        400
    );
    let channels: String = (0..101).map(|n| format!("channel=jobs/{n}&")).collect();
    assert_eq!(
        server
            .get(&format!("/events?{channels}"), &viewer(1))
            .await
            .0,
        400
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_has_a_form() {
    let server = server().await;
    let long = "k".repeat(129);
    for key in ["", "a b", "é", &long] {
        let request = server
            .request("POST", "/api/jobs", &worker(1))
            .header("Idempotency-Key", key.as_bytes())
            .json(&json!({"job_type": "t"}));
        let (status, problem) = answer(request).await;
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!("invalid-header")),
            "{key:?}"
        );
    }
}

/// Line breaks in what people say stay inside the JSON: no field, id or event can be smuggled into a stream.
#[tokio::test(flavor = "multi_thread")]
async fn sse_injection_through_messages_and_names_is_impossible() {
    let server = server().await;
    server.running_job("a").await;
    let mut listener = server
        .listen(Transport::EventSource, "/jobs?tick_ms=0")
        .await;
    listener.until_ready().await;
    for text in [
        "one\n\ndata: {\"type\":\"forged\"}\n\n",
        "\r\rid: 00000000-9\r\r",
        "\u{2028}\u{2029}\u{0}\u{feff}",
    ] {
        server
            .report(
                "/api/jobs/a/progress",
                json!({"message": text, "metadata": {text: text}}),
            )
            .await;
        let heard = listener.next().await.unwrap();
        assert_eq!(
            (&heard["message"], &heard["metadata"][text]),
            (&json!(text), &json!(text))
        );
        assert_eq!(
            Some(heard["cursor"].as_str().unwrap()),
            listener.cursor.as_deref()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_allowed_are_rejected_and_the_others_go_on() {
    let server = server_with(json!({"max_streams": 1})).await;
    server.running_job("a").await;
    let mut first = server.listen(Transport::EventSource, "/jobs").await;
    first.until_ready().await;
    assert_eq!(server.get("/events/jobs", &viewer(1)).await.0, 503);
    server.report("/api/jobs/a/complete", json!({})).await;
    assert_eq!(first.next().await.unwrap()["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_collection_is_not_found() {
    let server = server().await;
    for (method, path) in [
        ("GET", "/api/cats"),
        ("POST", "/api/cats"),
        ("GET", "/api/cats/1"),
        ("PUT", "/api/cats/1"),
        ("POST", "/api/cats/1/feed"),
        ("GET", "/api/violations/a.1"),
        ("POST", "/api/jobs/1/feed"),
    ] {
        let request = server.request(method, path, &worker(1)).json(&json!({}));
        let (status, problem) = answer(request).await;
        assert_eq!(
            (status, &problem["code"]),
            (404, &json!("not-found")),
            "{method} {path}"
        );
        let detail = problem["detail"].as_str().unwrap();
        let near = ["collections below /api are jobs", "a job supports queue"];
        assert!(near.iter().any(|near| detail.contains(near)), "{detail}");
    }
}

/// serde takes a list of a struct's values for the struct.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_no_body() {
    let server = server().await;
    server.running_job("j").await;
    let session = json!({"session_id": "s", "device_id": "d"});
    server.report("/api/enrollments", session).await;
    for (method, path, body) in [
        ("POST", "/api/jobs", json!(["j2", "t"])),
        ("POST", "/api/jobs/j/progress", json!([55, "hi", null])),
        ("POST", "/api/jobs/j/complete", json!([])),
        (
            "POST",
            "/api/jobs/j/fail",
            json!({"error": ["broken", "It broke"]}),
        ),
        (
            "POST",
            "/api/enrollments",
            json!(["s2", 5, null, null, null, null]),
        ),
        ("POST", "/api/enrollments/s/error", json!(["x", null])),
        ("POST", "/api/tickets", json!([["jobs"]])),
        ("PUT", "/api/devices/d", json!(["Door", null, null])),
        (
            "PUT",
            "/api/characteristics/c",
            json!({"limits": [7, 10, 4]}),
        ),
        (
            "PUT",
            "/api/characteristics/c",
            json!({"rules": [{"rule_id": 1, "severity": "warning", "z": 1}]}),
        ),
        ("PUT", "/api/devices/a%0Ab", json!({})),
    ] {
        let request = server.request(method, path, &worker(1)).json(&body);
        let (status, problem) = answer(request).await;
        assert_eq!(
            (status, &problem["code"]),
            (422, &json!("invalid-body")),
            "{path} {body} {problem}"
        );
    }
}

/// In a body, and in a line of a batch.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_does_not_fit_is_named_with_what_would_be_right() {
    let server = server().await;
    server.running_job("j").await;
    for (verb, fields, expected) in [
        (
            "progress",
            json!({"progress": "half"}),
            r#"`progress` must be a number, not "half""#,
        ),
        (
            "progress",
            json!({"attempt": -1}),
            "`attempt` must be an integer from 0 to 4294967295, not -1",
        ),
        (
            "progress",
            json!({"metadata": []}),
            "`metadata` must be an object, not a list",
        ),
        (
            "fail",
            json!({"error": {"code": 5, "message": "x"}}),
            "`error.code` must be a string, not 5",
        ),
        (
            "fail",
            json!({"error": {"code": "x"}}),
            "in `error`: missing field `message`",
        ),
        (
            "fail",
            json!({"error": 5}),
            "`error` must be an object with `code`, `message` and optional `details`, or a text, not 5",
        ),
        (
            "fail",
            json!({"error": {"message": "m", "x": 1}}),
            "in `error`: unknown field `x`, expected one of `code`, `message`, `details`",
        ),
    ] {
        let path = format!("/api/jobs/j/{verb}");
        let request = server.request("POST", &path, &worker(1)).json(&fields);
        let (status, problem) = answer(request).await;
        assert_eq!((status, &problem["detail"]), (422, &json!(expected)));
        let mut line = fields;
        line["op"] = json!(format!("jobs.{verb}"));
        line["job_id"] = json!("j");
        let batch = server.request("POST", "/api/batch", &worker(1));
        let (_, result) = answer(batch.body(line.to_string())).await;
        assert_eq!(result["problem"]["detail"], expected);
    }
    let status = "`status`: unknown variant `on`, expected one of `unknown`, `online`, `offline`";
    let expected_line = "`limits.dispersion.center_line` must be a number, not \"x\"";
    let dispersion = json!({"chart": "r", "center_line": "x"});
    let limits = json!({"center_line": 10, "ucl": 11, "dispersion": dispersion});
    for (method, path, body, expected) in [
        (
            "POST",
            "/api/devices/d/status",
            json!({"status": 5}),
            "`status` must be a string",
        ),
        (
            "POST",
            "/api/devices/d/status",
            json!({"status": "on"}),
            status,
        ),
        (
            "PUT",
            "/api/characteristics/c",
            json!({"limits": limits}),
            expected_line,
        ),
    ] {
        let request = server.request(method, path, &worker(1)).json(&body);
        let (given, problem) = answer(request).await;
        assert_eq!((given, &problem["detail"]), (422, &json!(expected)));
    }
    for body in ["null", "5", "true", r#""x""#] {
        let expected = format!("it must be an object, not {body}");
        let request = server.request("POST", "/api/jobs", &worker(1)).body(body);
        assert_eq!(answer(request).await.1["detail"], expected);
        let batch = server.request("POST", "/api/batch", &worker(1)).body(body);
        assert_eq!(answer(batch).await.1["problem"]["detail"], expected);
    }
    // An integer beyond those of a signed number is an id as well, and a fraction is none.
    for (id, status) in [
        (json!(u64::MAX), 201),
        (json!(i64::MIN), 201),
        (json!(1.5), 422),
    ] {
        let body = json!({"job_id": id, "job_type": "t"});
        let request = server.request("POST", "/api/jobs", &worker(1)).json(&body);
        let (given, created) = answer(request).await;
        assert_eq!(given, status, "{created}");
        let progress = json!({"op": "jobs.start", "job_id": id}).to_string();
        let batch = server
            .request("POST", "/api/batch", &worker(1))
            .body(progress);
        let expected = if status == 201 { 200 } else { 422 };
        assert_eq!(answer(batch).await.1["status"], expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_body_is_rejected_by_its_encoding_and_not_taken_for_broken_json() {
    let server = server().await;
    let body = r#"{"job_type":"ocr"}"#;
    for path in [
        "/api/jobs",
        "/api/jobs/a/start",
        "/api/devices/d/heartbeat",
        "/api/batch",
        "/api/tickets",
    ] {
        for coding in ["gzip", "br", "identity, zstd", "GZIP"] {
            let request = server.request("POST", path, &worker(1)).body(body);
            let response = request.header("Content-Encoding", coding).send().await;
            let response = response.unwrap();
            assert_eq!(response.status(), 415, "{path} {coding}");
            assert_eq!(response.headers()["accept-encoding"], "identity");
            let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            assert_eq!(problem["code"], "unsupported-encoding");
        }
    }
    for (method, path) in [("POST", "/api/jobs"), ("PUT", "/api/devices/d")] {
        let request = server.request(method, path, &worker(1)).body(body);
        let twice = request
            .header("Content-Encoding", "identity")
            .header("Content-Encoding", "gzip");
        assert_eq!(answer(twice).await.0, 415, "{method}: one header more");
    }
    for coding in ["identity", "Identity", "", "identity, identity"] {
        let request = server.request("POST", "/api/jobs", &worker(1)).body(body);
        let (status, _) = answer(request.header("Content-Encoding", coding)).await;
        assert!(status == 200 || status == 201, "{coding}: {status}");
    }
    let nobody = server.request("POST", "/api/jobs", "no.token.this");
    let (status, _) = answer(nobody.header("Content-Encoding", "gzip")).await;
    assert_eq!(status, 401, "who asks comes first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_filter_is_named_and_the_name_is_cut_short() {
    let server = server().await;
    let lists = [
        "jobs",
        "devices",
        "enrollments",
        "characteristics",
        "schedules",
        "violations",
        "notifiers",
    ];
    for list in lists {
        for name in ["statsu", "Status", "status[]", "offset"] {
            let path = format!("/api/{list}?{name}=failed");
            let (status, problem) = answer(server.request("GET", &path, &admin_of(1))).await;
            assert_eq!(status, 400, "{list}");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(&format!("`{name}`")), "{detail}");
        }
        let path = format!("/api/{list}?status_case=lower&school_id=1");
        assert_eq!(server.get(&path, &admin_of(1)).await.0, 200, "{list}");
        let path = format!("/api/{list}?status_case=title");
        let (status, problem) = server.get(&path, &admin_of(1)).await;
        assert_eq!(
            (status, &problem["code"]),
            (400, &"invalid-query".into()),
            "{list}"
        );
    }
    let path = "/api/notifiers/any/dead-letters?before=7";
    let (status, problem) = server.get(path, &admin_of(1)).await;
    assert_eq!(status, 400);
    assert!(problem["detail"].as_str().unwrap().contains("`before`"));
    let path = format!("/api/jobs?{}=1", "é".repeat(1_000));
    let (status, problem) = answer(server.request("GET", &path, &worker(1))).await;
    assert_eq!(status, 400);
    assert!(problem["detail"].as_str().unwrap().len() < 500);
}
