//! `/api/jobs`, `/api/batch`, health: as a worker in any language uses them.

use serde_json::{Value, json};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_from_start_to_finish_with_one_post_each() {
    let server = server().await;
    let created = server
        .request("POST", "/api/jobs", &worker(1))
        .json(&json!({"job_type": "ocr", "metadata": {"pages": 9}}))
        .send()
        .await
        .unwrap();
    assert_eq!(created.status(), 201);
    let location = created.headers()["location"].to_str().unwrap().to_owned();
    let job: Value = created.json().await.unwrap();
    let id = job["job_id"].as_str().unwrap();
    assert_eq!(location, format!("/api/jobs/{id}"));
    assert_eq!(uuid_version(id), '7', "generated ids sort by time");
    assert_eq!(
        (&job["status"], &job["attempt"], &job["progress"]),
        (&json!("pending"), &json!(1), &json!(0.0))
    );
    let say = async |verb: &str, body: Value| {
        server.report(&format!("/api/jobs/{id}/{verb}"), body).await
    };
    assert_eq!(say("queue", json!({})).await["status"], "queued");
    assert_eq!(
        say("start", json!({"message": "Reading"})).await["message"],
        "Reading"
    );
    let event = say(
        "progress",
        json!({"progress": 33.3, "metadata": {"page": 3}}),
    )
    .await;
    assert_eq!(
        (&event["progress"], &event["metadata"]),
        (&json!(33.3), &json!({"pages": 9, "page": 3}))
    );
    assert_eq!(event["message"], "Reading", "what is not said stays");
    assert_eq!(event["cancel_requested"], false);
    say("cancel", json!({})).await;
    assert_eq!(
        say("progress", json!({"progress": 40})).await["cancel_requested"],
        true,
        "the worker learns of it"
    );
    let ended = say("cancel", json!({"force": true, "message": "as asked"})).await;
    assert_eq!(
        (&ended["status"], &ended["error"]),
        (
            &json!("cancelled"),
            &json!({"code": "cancelled", "message": "as asked"})
        )
    );
    assert_eq!(say("retry", json!({})).await["attempt"], 2);
    say("start", json!({})).await;
    let done = say("complete", json!({"result": {"text": "…"}})).await;
    assert_eq!(
        (&done["result"], done.get("error")),
        (&json!({"text": "…"}), None)
    );

    let (status, read) = server.get(&location, &viewer(1)).await;
    assert_eq!(
        (status, &read["status"], &read["cursor"]),
        (200, &json!("completed"), &done["cursor"])
    );
    for time in [
        "created_at",
        "heard_at",
        "started_at",
        "finished_at",
        "timestamp",
    ] {
        assert!(read[time].as_str().unwrap().ends_with('Z'), "{time}");
    }
}

fn uuid_version(id: &str) -> char {
    id.chars().nth(14).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_paged_filtered_and_goes_over_into_a_stream() {
    let server = server().await;
    for n in 0..25 {
        let job_type = if n % 2 == 0 { "even" } else { "odd" };
        server
            .report(
                "/api/jobs",
                json!({"job_id": format!("j{n}"), "job_type": job_type, "message": format!("Waiting 100% no_{n}")}),
            )
            .await;
    }
    server.report("/api/jobs/j3/start", json!({})).await;
    let list = async |query: &str| {
        let (status, page) = server.get(&format!("/api/jobs{query}"), &viewer(1)).await;
        assert_eq!(status, 200, "{page}");
        page
    };
    let ids = |page: &Value| -> Vec<String> {
        page["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["job_id"].as_str().unwrap().to_owned())
            .collect()
    };

    let mut all = Vec::new();
    let mut query = "?limit=10".to_owned();
    loop {
        let page = list(&query).await;
        all.extend(ids(&page));
        let Some(next) = page["next"].as_str() else {
            break;
        };
        // What is made meanwhile does not shift the pages.
        server
            .report("/api/jobs", json!({"job_type": "late"}))
            .await;
        query = format!("?limit=10&page={next}");
    }
    assert_eq!(
        all,
        (0..25).rev().map(|n| format!("j{n}")).collect::<Vec<_>>()
    );
    assert_eq!(ids(&list("?status=in_progress").await), ["j3"]);
    assert_eq!(
        ids(&list("?status=IN_PROGRESS&status=completed").await),
        ["j3"]
    );
    assert_eq!(ids(&list("?job_type=odd&limit=2").await), ["j23", "j21"]);
    assert_eq!(ids(&list("?q=NO_7").await), ["j7"]);
    assert_eq!(
        ids(&list("?q=100%25&limit=1").await),
        ["j24"],
        "a percent sign is a percent sign"
    );
    assert!(ids(&list("?q=n%25_7").await).is_empty(), "and no wildcard");

    let cursor = list("").await["cursor"].as_str().unwrap().to_owned();
    let mut listener = server
        .resume(Transport::EventSource, "/jobs", &cursor)
        .await;
    assert_eq!(
        listener.until_ready().await.len(),
        2,
        "nothing lies between"
    );
    let event = server
        .report("/api/jobs/j3/progress", json!({"progress": 1}))
        .await;
    assert_eq!(listener.next().await.unwrap(), event);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_request_with_an_idempotency_key_is_carried_out_once() {
    let server = server().await;
    let send = async |key: &str, path: &str, body: Value| {
        answer(
            server
                .request("POST", path, &worker(1))
                .header("Idempotency-Key", key)
                .json(&body),
        )
        .await
    };
    let body = json!({"job_type": "once"});
    let (first_status, first) = send("k1", "/api/jobs", body.clone()).await;
    let (again_status, again) = send("k1", "/api/jobs", body.clone()).await;
    assert_eq!(
        (first_status, &first),
        (again_status, &again),
        "the same answer, id and all"
    );
    let (status, problem) = send("k1", "/api/jobs", json!({"job_type": "other"})).await;
    assert_eq!(
        (status, &problem["code"]),
        (422, &json!("idempotency-key-reused"))
    );
    let (_, other) = send("k2", "/api/jobs", body).await;
    assert_ne!(first["job_id"], other["job_id"]);

    let start = format!("/api/jobs/{}/start", first["job_id"].as_str().unwrap());
    let (_, started) = send("k3", &start, json!({})).await;
    server
        .report(
            &format!("/api/jobs/{}/progress", first["job_id"].as_str().unwrap()),
            json!({"progress": 9}),
        )
        .await;
    assert_eq!(
        send("k3", &start, json!({})).await,
        (200, started),
        "not a 409, and the answer of then"
    );
    // A refused request leaves its key free.
    let complete = format!("/api/jobs/{}/complete", other["job_id"].as_str().unwrap());
    let retry = format!("/api/jobs/{}/retry", other["job_id"].as_str().unwrap());
    assert_eq!(send("k4", &retry, json!({})).await.0, 409);
    server
        .report(
            &format!("/api/jobs/{}/start", other["job_id"].as_str().unwrap()),
            json!({}),
        )
        .await;
    assert_eq!(send("k4", &complete, json!({})).await.0, 200);
    let (status, elsewhere) = answer(
        server
            .request("POST", "/api/jobs", &worker(2))
            .header("Idempotency-Key", "k1")
            .json(&json!({"job_type": "x"})),
    )
    .await;
    assert_eq!(
        (status, &elsewhere["seq"]),
        (201, &json!(1)),
        "another school's keys are its own"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_keys_outlive_the_server() {
    let server = server().await;
    let create = |server: &Server| {
        server
            .request("POST", "/api/jobs", &worker(1))
            .header("Idempotency-Key", "k")
            .json(&json!({"job_type": "once"}))
    };
    let first = answer(create(&server)).await;
    let folder = server.stop().await;
    let server = server_in(folder, json!({})).await;
    assert_eq!(answer(create(&server)).await, first);
}

async fn batch(server: &Server, body: String) -> Vec<Value> {
    let response = server
        .request("POST", "/api/batch", &worker(1))
        .body(body)
        .send()
        .await
        .unwrap();
    assert_eq!(
        (
            response.status().as_u16(),
            response.headers()["content-type"].to_str().unwrap()
        ),
        (200, "application/x-ndjson")
    );
    response
        .text()
        .await
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_answers_line_by_line_and_a_bad_line_hinders_no_other() {
    let server = server().await;
    let lines = [
        json!({"op": "jobs.create", "job_id": "a", "job_type": "t"}).to_string(),
        json!({"op": "jobs.start", "job_id": "a"}).to_string(),
        String::new(),
        "{not json".into(),
        json!({"op": "jobs.progress", "job_id": "a", "progress": 50}).to_string(),
        json!({"op": "jobs.progress", "job_id": "a", "progress": 40}).to_string(),
        json!({"op": "jobs.progress", "job_id": "nobody", "progress": 40}).to_string(),
        json!({"op": "jobs.dance", "job_id": "a"}).to_string(),
        json!({"op": "jobs.progress", "job_id": "a", "colour": "red"}).to_string(),
        json!({"job_id": "a"}).to_string(),
        json!({"op": "jobs.complete", "job_id": "a", "idempotency_key": "own"}).to_string(),
        json!({"op": "jobs.complete", "job_id": "a", "idempotency_key": "own"}).to_string(),
    ];
    let results = batch(&server, lines.join("\r\n")).await;
    let statuses: Vec<_> = results
        .iter()
        .map(|result| result["status"].as_u64().unwrap())
        .collect();
    assert_eq!(
        statuses,
        [200, 200, 400, 200, 200, 404, 422, 422, 422, 200, 200]
    );
    assert_eq!(field(&results, "line"), (1..=11).collect::<Vec<_>>());
    assert_eq!(results[3]["event"]["progress"], 50.0);
    assert_eq!(
        results[4]["event"]["progress"], 50.0,
        "the higher one stays"
    );
    assert_eq!(results[9]["event"], results[10]["event"]);
    let seqs: Vec<_> = results
        .iter()
        .filter_map(|result| result["event"]["seq"].as_u64())
        .collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_an_idempotency_key_can_be_sent_again_whole() {
    let server = server().await;
    let body = (0..3)
        .map(|_| json!({"op": "jobs.create", "job_type": "t"}).to_string())
        .collect::<Vec<_>>()
        .join("\n");
    let send = async || {
        let request = server
            .request("POST", "/api/batch", &worker(1))
            .header("Idempotency-Key", "b")
            .body(body.clone());
        request.send().await.unwrap().text().await.unwrap()
    };
    assert_eq!(send().await, send().await);
    assert_eq!(
        server.get("/api/jobs", &viewer(1)).await.1["jobs"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_silent_job_is_flagged_and_then_failed_and_every_listener_receives_it() {
    let server = server().await;
    let mut listener = server.listen(Transport::WebSocket, "/jobs").await;
    listener.until_ready().await;
    server
        .report(
            "/api/jobs",
            json!({"job_id": "a", "job_type": "t", "status": "in_progress", "stall_after_secs": 1, "timeout_secs": 5}),
        )
        .await;
    let heard = listener
        .take_until(|message| message["status"] == "failed")
        .await;
    assert_eq!(field(&heard, "stalled"), [false, true, false]);
    assert_eq!(heard[2]["error"]["code"], "timeout");
    let (status, problem) = server
        .post("/api/jobs/a/progress", &worker(1), json!({"progress": 1}))
        .await;
    assert_eq!((status, &problem["code"]), (409, &json!("finished")));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn lists_are_sorted_and_those_that_stalled_are_found() {
    let server = server().await;
    let stuck =
        json!({"job_id": "stuck", "job_type": "t", "status": "in_progress", "stall_after_secs": 1});
    server.report("/api/jobs", stuck).await;
    for id in ["b", "c"] {
        server.running_job(id).await;
    }
    let list = async |query: &str| {
        let (status, list) = server.get(&format!("/api/jobs?{query}"), &viewer(1)).await;
        assert_eq!(status, 200, "{list}");
        let jobs = list["jobs"].as_array().unwrap().clone();
        let ids: Vec<String> = field(&jobs, "job_id")
            .iter()
            .map(ToString::to_string)
            .collect();
        (ids.join(" ").replace('"', ""), list["next"].clone())
    };
    assert_eq!(list("sort=newest").await.0, "c b stuck");
    let (first, next) = list("sort=oldest&limit=2").await;
    assert_eq!(first, "stuck b");
    let next = format!("sort=oldest&limit=2&page={}", next.as_str().unwrap());
    assert_eq!(list(&next).await, ("c".into(), Value::Null));
    until("it is flagged", async || {
        list("stalled=true").await.0 == "stuck"
    })
    .await;
    for query in ["sort=name", "stalled=perhaps"] {
        let (status, problem) = server.get(&format!("/api/jobs?{query}"), &viewer(1)).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid-query")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_jobs_leave_after_their_events_have() {
    let server = server_with(json!({"retention_secs": 3_600, "job_retention_secs": 7_200})).await;
    server.running_job("done").await;
    server.report("/api/jobs/done/complete", json!({})).await;
    server.running_job("running").await;
    let jobs = async || {
        server.get("/api/jobs", &viewer(1)).await.1["jobs"]
            .as_array()
            .unwrap()
            .len()
    };
    let sweep_at = async |hours| {
        while server
            .tidings
            .store()
            .sweep(chrono::Utc::now() + chrono::TimeDelta::hours(hours))
            .await
            .unwrap()
        {}
    };
    sweep_at(0).await;
    assert_eq!(jobs().await, 2);
    sweep_at(3).await;
    assert_eq!(jobs().await, 1, "what still runs stays");
    let event = server
        .report("/api/jobs/running/progress", json!({"progress": 5}))
        .await;
    assert_eq!(event["seq"], 4, "numbers are never used again");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_readiness_need_no_token() {
    let server = server().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            server
                .http
                .get(format!("{}{path}", server.url))
                .send()
                .await
                .unwrap()
                .status(),
            200,
            "{path}"
        );
    }
    server.tidings.stop();
    let response = server
        .http
        .get(format!("{}/readyz", server.url))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_median_of_recent_jobs_of_a_type_foretells_the_next_ones_end() {
    let server = server().await;
    for n in 0..3 {
        let id = format!("j{n}");
        server.running_job(&id).await;
        until("a little time has passed", async || {
            let (_, job) = server.get(&format!("/api/jobs/{id}"), &viewer(1)).await;
            let started =
                chrono::DateTime::parse_from_rfc3339(job["started_at"].as_str().unwrap()).unwrap();
            (chrono::Utc::now() - started.to_utc()).num_milliseconds() > 300
        })
        .await;
        server
            .report(&format!("/api/jobs/{id}/complete"), json!({}))
            .await;
    }
    let next = server.running_job("next").await;
    assert_eq!(next["eta_source"], "history");
    let at = chrono::DateTime::parse_from_rfc3339(next["eta_at"].as_str().unwrap()).unwrap();
    let foretold = (at.to_utc()
        - chrono::DateTime::parse_from_rfc3339(next["timestamp"].as_str().unwrap())
            .unwrap()
            .to_utc())
    .num_milliseconds();
    assert!((300..5_000).contains(&foretold), "{foretold} ms");
    let other = server
        .report(
            "/api/jobs",
            json!({"job_type": "other", "status": "in_progress"}),
        )
        .await;
    assert_eq!(other["eta_source"], Value::Null);
}

/// A worker that reports is alive, whatever number it reports.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_with_a_lower_progress_is_a_sign_of_life_that_keeps_the_higher_one() {
    let server = server().await;
    server.running_job("a").await;
    server
        .report("/api/jobs/a/progress", json!({"progress": 40}))
        .await;
    for lower in [
        json!(10),
        json!(39.9999999999),
        json!(null),
        json!(0),
        json!(-0.0),
    ] {
        let body = json!({"progress": lower, "message": format!("at {lower}"), "metadata": {"seen": lower}});
        let event = server.report("/api/jobs/a/progress", body).await;
        assert_eq!(
            (&event["progress"], &event["message"]),
            (&json!(40.0), &json!(format!("at {lower}")))
        );
    }
    // Rounding at the ends of the range is not an error.
    for (asked, kept) in [
        (-1e-10, 40.0),
        (99.99999999999999, 99.99999999999999),
        (100.00000000000001, 100.0),
    ] {
        let event = server
            .report("/api/jobs/a/progress", json!({"progress": asked}))
            .await;
        assert_eq!(event["progress"], kept, "{asked}");
    }
    for wrong in [-0.001, 100.001, 1e300] {
        let body = json!({"progress": wrong});
        assert_eq!(
            server
                .post("/api/jobs/a/progress", &worker(1), body)
                .await
                .0,
            422,
            "{wrong}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_filter_does_not_return_everything() {
    let server = server().await;
    server.running_job("a").await;
    for path in [
        "/api/jobs?state=failed",
        "/api/jobs?Status=failed",
        "/api/jobs?status%20=failed",
        "/api/jobs?status=failed&limt=1",
        "/api/jobs?status[]=failed",
        "/api/devices?job-type=x",
        "/api/violations?acknowleged=false",
    ] {
        let (status, problem) = server.get(path, &viewer(1)).await;
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!("invalid-query")),
            "{path}"
        );
    }
    for path in [
        "/api/jobs?status=failed&job_type=t&q=x&stalled=true&sort=oldest&limit=3&school_id=1&status_case=upper",
        "/api/violations?acknowledged=false&characteristic_id=x&limit=3",
    ] {
        assert_eq!(server.get(path, &viewer(1)).await.0, 200, "{path}");
    }
    let url = format!("{}/api/jobs?token={}", server.url, viewer(1));
    assert_eq!(server.http.get(url).send().await.unwrap().status(), 200);
}

/// One of two values would have no effect.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_with_one_value_is_not_given_twice() {
    let server = server().await;
    server.running_job("a").await;
    for path in [
        "/api/jobs?q=a&q=b",
        "/api/jobs?status=failed&limit=3&limit=3",
        "/api/devices?sort=oldest&sort=newest",
        "/api/violations?acknowledged=true&acknowledged=false",
        "/api/violations?characteristic_id=x&characteristic_id=y",
    ] {
        let (status, problem) = server.get(path, &viewer(1)).await;
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!("invalid-query")),
            "{path}"
        );
    }
    let both = "/api/jobs?status=failed&status=in_progress&job_type=ocr&job_type=t";
    assert_eq!(server.get(both, &viewer(1)).await.0, 200);
}

/// A library may write the same request in another way when it repeats it.
#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_is_of_what_a_request_means_and_not_of_its_bytes() {
    let server = server().await;
    let send = async |body: &str| {
        let request = server.request("POST", "/api/jobs", &worker(1));
        let request = request.header("Idempotency-Key", "k");
        answer(request.body(body.to_owned())).await
    };
    let (status, first) = send(r#"{"job_type":"t","metadata":{"a":1,"b":[1.5,2]}}"#).await;
    assert_eq!(status, 201);
    for same in [
        r#"{ "metadata": {"b": [1.5, 2.0], "a": 1}, "job_type": "t" }"#,
        "\u{feff}{\"job_type\":\"\\u0074\",\"metadata\":{\"a\":1.0e0,\"b\":[15e-1,2]}}",
    ] {
        assert_eq!(send(same).await, (201, first.clone()), "{same}");
    }
    for other in [
        r#"{"job_type":"t","metadata":{"a":1,"b":[2,1.5]}}"#,
        r#"{"job_type":"t","metadata":{"a":"1","b":[1.5,2]}}"#,
        r#"{"job_type":"t"}"#,
    ] {
        assert_eq!(
            send(other).await.1["code"],
            "idempotency-key-reused",
            "{other}"
        );
    }
}

/// 1e16 is a whole number, and `%61` is an `a`.
#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_knows_a_number_and_an_address_in_any_spelling() {
    let server = server().await;
    server.running_job("a b").await;
    let send = async |key: &str, path: &str, number: &str| {
        let request = server.request("POST", path, &worker(1));
        let request = request.header("Idempotency-Key", key);
        answer(request.body(format!(r#"{{"metadata":{{"n":{number}}}}}"#))).await
    };
    let path = "/api/jobs/a%20b/progress";
    for (key, number, same) in [
        ("e16", "1e16", "10000000000000000"),
        ("e19", "10000000000000000000", "1.0e19"),
        ("2-63", "-9223372036854775808", "-9223372036854775808.0"),
        ("2-53", "9007199254740992.0", "9007199254740992"),
        ("0", "-0", "0"),
    ] {
        let first = send(key, path, number).await;
        assert_eq!(first.0, 200, "{key}");
        for path in [
            path,
            "/api/jobs/%61%20b/%70rogress",
            "/api/jobs/a%20b/progress/",
        ] {
            assert_eq!(send(key, path, same).await, first, "{key} {path}");
        }
    }
    for (key, path, number) in [
        ("2-53", path, "9007199254740993"),
        ("e19", path, "10000000000000000001"),
        ("0", path, "0.5"),
        ("0", "/api/jobs/a%2520b/progress", "0"),
    ] {
        let (_, problem) = send(key, path, number).await;
        let code = &problem["code"];
        assert!(
            code == "idempotency-key-reused" || code == "not-found",
            "{key} {path} {problem}"
        );
    }
}

/// After a retry, the worker of the attempt before may still be alive.
/// Its reporter can then create it again. Another attempt would mean that somebody else works on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_a_later_attempt_of_an_unknown_job_is_answered_with_not_found() {
    let server = server().await;
    let report = |attempt: u64| json!({"job_type": "import", "progress": 50, "attempt": attempt});
    let path = "/api/jobs/a/progress";
    let (status, problem) = server.post(path, &worker(1), report(2)).await;
    assert_eq!((status, &problem["code"]), (404, &json!("not-found")));
    assert_eq!(server.report(path, report(1)).await["attempt"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_another_attempt_has_no_effect() {
    let server = server().await;
    server.running_job("a").await;
    server
        .report("/api/jobs/a/fail", json!({"error": "lost", "attempt": 1}))
        .await;
    server.report("/api/jobs/a/retry", json!({})).await;
    let started = server
        .report("/api/jobs/a/start", json!({"attempt": 2}))
        .await;
    assert_eq!(started["attempt"], 2);
    let (_, before) = server.get("/api/jobs/a", &viewer(1)).await;
    for (verb, body) in [
        ("progress", json!({"progress": 90})),
        ("complete", json!({"result": 1})),
        ("fail", json!({"error": "lost"})),
        ("cancel", json!({"force": true})),
        ("start", json!({})),
    ] {
        for attempt in [1, 3] {
            let mut body = body.clone();
            body["attempt"] = json!(attempt);
            let path = format!("/api/jobs/a/{verb}");
            let (status, problem) = server.post(&path, &worker(1), body).await;
            let rejected = (status, &problem["code"]);
            assert_eq!(rejected, (409, &json!("stale-attempt")), "{verb} {attempt}");
        }
    }
    assert_eq!(server.get("/api/jobs/a", &viewer(1)).await.1, before);
    let event = server
        .report(
            "/api/jobs/a/complete",
            json!({"attempt": 2, "result": "mine"}),
        )
        .await;
    assert_eq!(event["result"], "mine");
    // Also when it is over: a worker learns that it was not its own end.
    let body = json!({"attempt": 1, "result": "not mine"});
    let (_, problem) = server.post("/api/jobs/a/complete", &worker(1), body).await;
    assert_eq!(problem["code"], "stale-attempt");
}
