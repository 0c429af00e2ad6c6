//! Tokens that reach several schools: each request, and each line of a batch, is about one of them.

use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::listener::{receive, send, socket, until_closed};
use crate::support::*;

/// Where the log of a school ends.
async fn head(server: &Server, school: i64) -> Value {
    server.get("/api/jobs", &viewer(school)).await.1["cursor"].clone()
}

fn lines(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn statuses(answers: &[Value]) -> Vec<u64> {
    answers
        .iter()
        .map(|answer| answer["status"].as_u64().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_for_several_schools_names_one_with_each_request() {
    let server = server().await;
    let both = for_schools(&[1, 2], Role::Worker);
    let all = sign(&claims(None, Role::Worker));
    let job = json!({"job_id": "a", "job_type": "t"});
    for token in [&both, &all] {
        for (method, path) in [
            ("GET", "/api/jobs"),
            ("POST", "/api/jobs"),
            ("GET", "/events/jobs"),
            ("POST", "/api/tickets"),
        ] {
            let request = server.request(method, path, token).json(&job);
            let (status, problem) = answer(request).await;
            assert_eq!((status, &problem["code"]), (400, &json!("school-required")));
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("?school_id="), "{detail}");
        }
    }
    for (school, expected) in [(1, 201), (2, 201), (3, 404)] {
        let path = format!("/api/jobs?school_id={school}");
        let (status, made) = server.post(&path, &both, job.clone()).await;
        assert_eq!(status, expected, "{made}");
        assert!(status != 201 || made["school_id"] == school);
    }
    assert_eq!(server.get("/api/jobs/a", &viewer(3)).await.0, 404);
    let (status, _) = server.post("/api/jobs?school_id=3", &all, job).await;
    assert_eq!(status, 201, "all schools are all schools");
    // A worker of all schools may not see how the server itself is doing.
    for (path, code) in [("/metrics", 403), ("/monitor/system", 403)] {
        let status = server.request("GET", path, &all).send().await.unwrap();
        assert_eq!(status.status(), code, "{path}");
    }
    let admin_of_two = for_schools(&[1, 2], Role::Admin);
    for (path, code) in [("/metrics", 403), ("/monitor/system", 404)] {
        let answer = server.request("GET", path, &admin_of_two).send().await;
        assert_eq!(answer.unwrap().status(), code, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_carries_commands_for_several_schools_each_line_for_the_one_that_it_names() {
    let server = server().await;
    let token = for_schools(&[1, 2], Role::Worker);
    let before = head(&server, 3).await;
    let mut other = server.listen(Transport::EventSource, "/jobs").await;
    other.until_ready().await;
    let text = lines(&[
        json!({"op": "jobs.create", "job_id": "a", "job_type": "t", "school_id": 1}),
        json!({"op": "jobs.create", "job_id": "a", "job_type": "t", "school_id": "2"}),
        json!({"op": "jobs.start", "job_id": "a", "school_id": 2}),
        json!({"op": "jobs.create", "job_id": "a", "job_type": "t", "school_id": 3}),
        json!({"op": "jobs.start", "job_id": "a", "school_id": 1}),
        json!({"op": "jobs.progress", "job_id": "a", "progress": 40, "school_id": 1}),
        json!({"op": "jobs.create", "job_id": "b", "job_type": "t"}),
        json!({"op": "jobs.create", "job_id": "b", "job_type": "t", "school_id": null}),
        json!({"op": "jobs.create", "job_id": "b", "job_type": "t", "school_id": 1.5}),
        json!({"op": "jobs.create", "job_id": "b", "job_type": "t", "school_id": "x"}),
        json!({"op": "jobs.create", "job_id": "b", "job_type": "t", "school_id": [1]}),
        json!({"op": "devices.put", "device_id": "d", "school_id": 2}),
        json!({"op": "jobs.complete", "job_id": "a", "school_id": 1}),
    ]);
    let answers = server.batch(&token, text).await;
    assert_eq!(
        statuses(&answers),
        [
            200, 200, 200, 404, 200, 200, 400, 400, 422, 422, 422, 200, 200
        ]
    );
    let numbers = field(&answers, "line");
    assert!((1..).zip(numbers).all(|(number, line)| line == number));
    let of = |school: i64| -> Vec<(Value, Value)> {
        let events = answers.iter().map(|answer| &answer["event"]);
        let events = events.filter(|event| event["school_id"] == school);
        events
            .map(|event| (event["seq"].clone(), event["status"].clone()))
            .collect()
    };
    let expected = |all: &[(u64, &str)]| -> Vec<(Value, Value)> {
        all.iter()
            .map(|(seq, status)| (json!(seq), json!(status)))
            .collect()
    };
    assert_eq!(
        of(1),
        expected(&[
            (1, "pending"),
            (2, "in_progress"),
            (3, "in_progress"),
            (4, "completed")
        ]),
        "the order within a school is that of the lines"
    );
    assert_eq!(
        of(2),
        expected(&[(1, "pending"), (2, "in_progress"), (3, "unknown")])
    );
    assert_eq!(head(&server, 3).await, before, "nothing has happened there");
    let heard = other
        .take_until(|message| message["status"] == "completed")
        .await;
    assert!(heard.iter().all(|message| message["school_id"] == 1));
    // Without a school of its own a line is for that of the request.
    let path = "/api/batch?school_id=2";
    let line = json!({"op": "jobs.create", "job_id": "c", "job_type": "t"});
    let for_school_1 = json!({"op": "jobs.create", "job_id": "c", "job_type": "t", "school_id": 1});
    let request = server.request("POST", path, &token);
    let text = request
        .body(lines(&[line.clone(), for_school_1]))
        .send()
        .await
        .unwrap();
    let text = text.text().await.unwrap();
    let schools: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"]["school_id"].clone())
        .collect();
    assert_eq!(schools, [2, 1]);
    let out_of_reach = server.request("POST", "/api/batch?school_id=3", &token);
    let (status, problem) = answer(out_of_reach.body(line.to_string())).await;
    assert_eq!((status, &problem["code"]), (404, &json!("not-found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_school_needs_no_school_in_a_line_and_reaches_no_other() {
    let server = server().await;
    let job = |school: Value| json!({"op": "jobs.create", "job_type": "t", "school_id": school});
    let without_school = json!({"op": "jobs.create", "job_type": "t"});
    let text = lines(&[
        without_school,
        job(json!(1)),
        job(json!("1")),
        job(json!(2)),
    ]);
    let answers = server.batch(&worker(1), text).await;
    assert_eq!(statuses(&answers), [200, 200, 200, 404]);
    assert_eq!(answers[2]["event"]["school_id"], 1);
    let (status, problem) = server
        .post(
            "/api/jobs",
            &worker(1),
            json!({"job_type": "t", "school_id": 1}),
        )
        .await;
    assert_eq!(status, 422, "elsewhere it is not a field: {problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_of_several_schools_are_kept_apart_and_in_order() {
    let server = server().await;
    let token = for_schools(&[1, 2], Role::Worker);
    let device = |op: &str, school: i64| json!({"op": format!("devices.{op}"), "device_id": "d", "school_id": school});
    let mut info = device("info", 1);
    info["info"] = json!({"firmware": "1"});
    let answers = server
        .batch(
            &token,
            lines(&[
                device("heartbeat", 1),
                device("put", 1),
                device("heartbeat", 2),
                device("heartbeat", 1),
                info,
                device("put", 2),
                device("heartbeat", 2),
            ]),
        )
        .await;
    assert_eq!(statuses(&answers), [404, 200, 404, 200, 200, 200, 200]);
    assert_eq!(answers[3]["device"]["device_id"], "d");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_violation_that_a_line_names_is_looked_for_in_the_school_of_the_line() {
    let server = server().await;
    let token = for_schools(&[1, 2], Role::Worker);
    let put = |school: i64| json!({"op": "characteristics.put", "characteristic_id": "c", "school_id": school});
    let violation = json!({"op": "characteristics.violations", "characteristic_id": "c", "school_id": 2, "violation_id": "own", "rule_id": 99, "rule_name": "Odd"});
    let ack = |school: i64| json!({"op": "violations.ack", "violation_id": "own", "reason": "seen", "school_id": school});
    let text = lines(&[put(1), put(2), violation, ack(1), ack(2), ack(3)]);
    let answers = server.batch(&token, text).await;
    assert_eq!(
        statuses(&answers),
        [200, 200, 200, 404, 200, 404],
        "{answers:#?}"
    );
    let open = async |school: i64| {
        let (_, page) = server.get("/api/violations", &viewer(school)).await;
        page["violations"].as_array().unwrap().len()
    };
    assert_eq!((open(1).await, open(2).await), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_is_of_the_school_of_its_line() {
    let server = server().await;
    let token = for_schools(&[1, 2], Role::Worker);
    let job = |school: i64| json!({"op": "jobs.create", "job_type": "t", "school_id": school, "idempotency_key": "k"});
    let text = lines(&[job(1), job(2)]);
    let first = server.batch(&token, text.clone()).await;
    assert_eq!(statuses(&first), [200, 200], "one key in two schools");
    let again = server.batch(&token, text).await;
    for (first, again) in first.iter().zip(&again) {
        assert_eq!(first["event"]["job_id"], again["event"]["job_id"]);
    }
    assert_ne!(first[0]["event"]["job_id"], first[1]["event"]["job_id"]);
    for school in [1, 2] {
        let (_, page) = server.get("/api/jobs", &viewer(school)).await;
        assert_eq!(page["jobs"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_too_fast_in_one_school_has_published_in_none_by_that_batch() {
    let settings = json!({"publishes_per_sec": 1, "batch_limit_commands": 4});
    let server = server_with(settings).await;
    let token = for_schools(&[1, 2], Role::Worker);
    let job = |school: i64| json!({"op": "jobs.create", "job_type": "t", "school_id": school});
    let full = lines(&[job(1), job(1), job(1), job(1)]);
    assert_eq!(statuses(&server.batch(&token, full).await), [200; 4]);
    let before = head(&server, 2).await;
    let request = server.request("POST", "/api/batch", &token);
    let both = lines(&[job(2), job(2), job(1), job(1)]);
    let (status, problem) = answer(request.body(both)).await;
    assert_eq!((status, &problem["code"]), (429, &json!("too-fast")));
    assert_eq!(head(&server, 2).await, before, "nothing has happened there");
    let other = lines(&[job(2), job(2), job(2), job(2)]);
    let answers = server.batch(&token, other).await;
    assert_eq!(
        statuses(&answers),
        [200; 4],
        "nor has it been counted there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_for_very_many_schools_is_answered_line_by_line() {
    let server = server().await;
    let all = sign(&claims(None, Role::Worker));
    let job = |school: i64| json!({"op": "jobs.create", "job_type": "t", "school_id": school});
    let text = lines(&(1..=300).map(job).collect::<Vec<_>>());
    let answers = server.batch(&all, text).await;
    for (school, answer) in (1..).zip(&answers) {
        assert_eq!(answer["event"]["school_id"], school, "{answer}");
        assert_eq!(answer["event"]["seq"], 1);
    }
    assert_eq!(answers.len(), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_such_a_token_is_of_one_school_and_hears_no_other() {
    let server = server().await;
    let token = for_schools(&[1, 2], Role::Viewer);
    let all = sign(&claims(None, Role::Worker));
    for transport in Transport::ALL {
        let mut listener =
            Listener::open(transport, &server.url, "/jobs?school_id=2", &token, None).await;
        listener.until_ready().await;
        let job = |school: i64| json!({"op": "jobs.create", "job_type": "t", "school_id": school});
        server.batch(&all, lines(&[job(1), job(3), job(2)])).await;
        assert_eq!(listener.next().await.unwrap()["school_id"], 2);
    }
    let mut by_channel =
        Listener::open(Transport::Poll, &server.url, "/schools/1", &token, None).await;
    assert_eq!(by_channel.next().await.unwrap()["school_id"], 1);
    for path in ["/events/schools/3", "/events/jobs?school_id=3"] {
        assert_eq!(server.get(path, &token).await.0, 404, "{path}");
    }
    let (messages, code) = until_closed(&mut socket(&server.url, "/ws", &token).await).await;
    assert_eq!(
        (code, &messages[0]["code"]),
        (Some(1008), &json!("school-required"))
    );
    let mut ws = socket(&server.url, "/ws?school_id=1", &token).await;
    // The fresh token has to reach the stream's school, however many it reaches besides.
    for (fresh, expected) in [
        (for_schools(&[2, 3], Role::Viewer), "error"),
        (viewer(2), "error"),
        (for_schools(&[1, 3], Role::Viewer), "authenticated"),
        (viewer(1), "authenticated"),
        (all, "authenticated"),
    ] {
        let message = json!({"type": "auth", "token": fresh});
        send(&mut ws, &message.to_string()).await;
        assert_eq!(receive(&mut ws).await.unwrap()["type"], expected);
    }
    let wanted = json!({"type": "subscribe", "channels": ["schools/2"]});
    send(&mut ws, &wanted.to_string()).await;
    assert_eq!(receive(&mut ws).await.unwrap()["code"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_of_such_a_token_is_for_one_school() {
    let server = server().await;
    server.running_job("a").await;
    let token = for_schools(&[1, 2], Role::Viewer);
    let wanted = json!({"channels": ["jobs"]});
    for (school, expected) in [(1, 201), (3, 404)] {
        let path = format!("/api/tickets?school_id={school}");
        let (status, ticket) = server.post(&path, &token, wanted.clone()).await;
        assert_eq!(status, expected, "{ticket}");
        if status != 201 {
            continue;
        }
        let url = format!("{}{}&wait=0", server.url, ticket["url"].as_str().unwrap());
        let ask = async |also: &str| {
            let request = server.http.get(format!("{url}{also}"));
            answer(request.header("Accept", "application/json")).await
        };
        let (status, response) = ask("").await;
        assert_eq!(status, 200);
        assert_eq!(response["messages"][0]["school_id"], 1);
        assert_eq!(ask("&school_id=2").await.0, 404, "and no other");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monitor_offers_such_a_visitor_his_schools_and_no_other() {
    let server = server().await;
    for school in [1, 2, 3] {
        let job = json!({"job_id": "a", "job_type": "t"});
        assert_eq!(server.post("/api/jobs", &worker(school), job).await.0, 201);
    }
    let token = for_schools(&[1, 2], Role::Worker);
    let form = format!("next=%2Fmonitor&token={token}");
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let sign_in = http.post(format!("{}/monitor/sign-in", server.url));
    let sign_in = sign_in.header("Content-Type", "application/x-www-form-urlencoded");
    let answer = sign_in.body(form).send().await.unwrap();
    assert_eq!(answer.status(), 303);
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    let get = async |path: &str| {
        let request = http.get(format!("{}{path}", server.url));
        let answer = request.header("Cookie", &cookie).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, page) = get("/monitor").await;
    assert_eq!(status, 200);
    for (school, offered) in [(1, true), (2, true), (3, false)] {
        let name = format!("School {school}");
        assert_eq!(page.contains(&name), offered, "{page}");
        let (status, _) = get(&format!("/monitor/schools/{school}")).await;
        assert_eq!(status, if offered { 200 } else { 404 });
    }
    let (_, rest) = get("/monitor?after=1").await;
    assert!(!rest.contains("School 1") && rest.contains("School 2"));
}

/// Returns a counter of `/metrics`.
async fn counter(server: &Server, name: &str) -> f64 {
    let answer = server.request("GET", "/metrics", &admin()).send().await;
    let text = answer.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn schools_that_fall_silent_together_share_commits() {
    const SCHOOLS: i64 = 60;
    let server = server_with(json!({"tick_ms": 0})).await;
    let all = sign(&claims(None, Role::Worker));
    let of = |school: i64| {
        [
            json!({"op": "devices.status", "device_id": "d", "status": "online", "lease_secs": 3, "school_id": school}),
            json!({"op": "jobs.create", "job_id": "j", "job_type": "t", "status": "in_progress", "timeout_secs": 3, "school_id": school}),
        ]
    };
    let reports: Vec<Value> = (1..=SCHOOLS).flat_map(of).collect();
    let answers = server.batch(&all, lines(&reports)).await;
    assert_eq!(statuses(&answers), [200; 2 * SCHOOLS as usize]);
    let before = counter(&server, "tidings_commits_total").await;
    until("all are silent", async || {
        let mut silent = true;
        for school in 1..=SCHOOLS {
            let token = viewer(school);
            let (_, job) = server.get("/api/jobs/j", &token).await;
            let (_, device) = server.get("/api/devices/d", &token).await;
            silent &= job["status"] == "failed" && device["status"] == "offline";
        }
        silent
    })
    .await;
    let commits = counter(&server, "tidings_commits_total").await - before;
    // One for each school and kind, if each waited for the commits of the others.
    assert!(commits < SCHOOLS as f64, "{commits} commits");
}
