//! Pings: one line of `curl` reports on a job, with a key that can be revoked.

use std::process::Command;

use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::process::{self, Process};
use crate::support::*;

/// A key for jobs of this type in school 1, and its id.
async fn key(server: &Server, job_type: &str) -> (String, String) {
    key_with(server, json!({"job_type": job_type})).await
}

async fn key_with(server: &Server, body: Value) -> (String, String) {
    let (status, created) = server.post("/api/pings", &admin_of(1), body).await;
    assert_eq!(status, 201, "{created}");
    let text = |name: &str| created[name].as_str().unwrap().to_owned();
    (text("key"), text("key_id"))
}

/// Sends a ping. Returns the status of the answer and its body.
async fn ping(server: &Server, method: &str, path: &str, body: &str) -> (u16, String) {
    let url = format!("{}/ping/{path}", server.url);
    let request = server.http.request(method.parse().unwrap(), url);
    let answer = request.body(body.to_owned()).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.text().await.unwrap())
}

async fn get(server: &Server, path: &str) {
    let (status, reply) = ping(server, "GET", path, "").await;
    assert_eq!((status, reply.as_str()), (204, ""), "{path}");
}

/// The jobs of a type, the oldest first.
async fn jobs(server: &Server, job_type: &str) -> Vec<Value> {
    let path = format!("/api/jobs?job_type={job_type}&sort=oldest");
    let (_, list) = server.get(&path, &viewer(1)).await;
    list["jobs"].as_array().unwrap().clone()
}

fn statuses(jobs: &[Value]) -> Vec<&str> {
    jobs.iter()
        .map(|job| job["status"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_reported_from_its_start_to_its_end_by_any_method() {
    let server = server().await;
    let (key, _) = key(&server, "backup").await;
    let mut listener = server.listen(Transport::EventSource, "/jobs").await;
    listener.until_ready().await;
    get(&server, &format!("{key}/start")).await;
    let (status, reply) = ping(&server, "HEAD", &format!("{key}/progress/40"), "").await;
    assert_eq!((status, reply.as_str()), (204, ""));
    let path = format!("{key}/80/160");
    let (status, _) = ping(&server, "POST", &path, "Half\r\nof it\u{1b}[1m\0").await;
    assert_eq!(status, 204);
    let (status, _) = ping(&server, "POST", &format!("{key}/ok"), "Done").await;
    assert_eq!(status, 204);
    let heard = listener
        .take_until(|event| event["status"] == "completed")
        .await;
    let reported: Vec<_> = heard
        .iter()
        .map(|event| {
            (
                event["status"].as_str().unwrap(),
                event["progress"].as_f64().unwrap(),
            )
        })
        .collect();
    assert_eq!(reported.first(), Some(&("in_progress", 0.0)));
    assert_eq!(reported.last(), Some(&("completed", 100.0)));
    let all = jobs(&server, "backup").await;
    assert_eq!(statuses(&all), ["completed"]);
    assert_eq!(all[0]["message"], "Done");
    assert!(heard.iter().all(|event| event["stalled"] == false));
    let half = heard.iter().find(|event| event["progress"] == 50.0);
    assert!(half.is_none_or(|event| event["message"] == "Half\nof it[1m"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_ping_at_the_end_is_a_run_and_an_exit_code_says_how_it_ended() {
    let server = server().await;
    for (end, status, error) in [
        ("", "completed", Value::Null),
        ("/ok", "completed", Value::Null),
        ("/0", "completed", Value::Null),
        ("/exit/0", "completed", Value::Null),
        (
            "/fail",
            "failed",
            json!({"code": "error", "message": "Failed"}),
        ),
        (
            "/1",
            "failed",
            json!({"code": "exit_code", "message": "Exit code 1"}),
        ),
        (
            "/40",
            "failed",
            json!({"code": "exit_code", "message": "Exit code 40"}),
        ),
        (
            "/255",
            "failed",
            json!({"code": "exit_code", "message": "Exit code 255"}),
        ),
    ] {
        let (key, _) = key(&server, "t").await;
        get(&server, &format!("{key}{end}")).await;
        let all = jobs(&server, "t").await;
        let last = all.last().unwrap();
        assert_eq!(last["status"], status, "{end}");
        assert_eq!(last["error"], error, "{end}");
    }
    let (key, _) = key(&server, "t").await;
    let before = jobs(&server, "t").await.len();
    for end in [
        "/256",
        "/40.5",
        "/stop",
        "/progress/101",
        "/exit/x",
        "/1/2/3",
        "/-1",
    ] {
        let (status, reply) = ping(&server, "GET", &format!("{key}{end}"), "").await;
        assert_eq!(status, 404, "{end} {reply}");
    }
    assert_eq!(jobs(&server, "t").await.len(), before);
}

/// What a plain number means is a property of the key; every other form means the same with any key.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_number_is_progress_with_a_key_that_was_created_for_it() {
    let server = server().await;
    let new = json!({"job_type": "p", "numbers": "progress"});
    let (key, _) = key_with(&server, new).await;
    for (end, progress) in [("0", 0.0), ("40", 40.0), ("40.5", 40.5), ("50%25", 50.0)] {
        get(&server, &format!("{key}/{end}")).await;
        let all = jobs(&server, "p").await;
        assert_eq!(statuses(&all), ["in_progress"], "{end}");
        assert_eq!(all[0]["progress"], progress, "{end}");
    }
    get(&server, &format!("{key}/exit/1")).await;
    assert_eq!(statuses(&jobs(&server, "p").await), ["failed"]);
    let (status, _) = ping(&server, "GET", &format!("{key}/101"), "").await;
    assert_eq!(status, 404);
    let new = json!({"job_type": "p", "numbers": "both"});
    let (status, problem) = server.post("/api/pings", &admin_of(1), new).await;
    assert_eq!((status, &problem["code"]), (422, &json!("invalid-body")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_ping_has_no_further_effect() {
    let server = server().await;
    let (key, _) = key(&server, "n").await;
    for _ in 0..3 {
        get(&server, &format!("{key}/start")).await;
    }
    assert_eq!(statuses(&jobs(&server, "n").await), ["in_progress"]);
    for _ in 0..3 {
        get(&server, &format!("{key}/1")).await;
    }
    assert_eq!(statuses(&jobs(&server, "n").await), ["failed"]);
    // Another end is another run, and so is the next start.
    get(&server, &key).await;
    get(&server, &key).await;
    get(&server, &format!("{key}/start")).await;
    let all = jobs(&server, "n").await;
    assert_eq!(statuses(&all), ["failed", "completed", "in_progress"]);
    // All at once, as a proxy may send them.
    let path = format!("{key}/fail");
    let all = (0..8).map(|_| ping(&server, "GET", &path, ""));
    let answers = futures_util::future::join_all(all).await;
    assert!(answers.iter().all(|answer| answer.0 == 204), "{answers:?}");
    let all = jobs(&server, "n").await;
    assert_eq!(statuses(&all), ["failed", "completed", "failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_runs_are_distinguished_by_their_rid() {
    let server = server().await;
    let (key, _) = key(&server, "o").await;
    for rid in ["1", "2"] {
        for _ in 0..2 {
            get(&server, &format!("{key}/start?rid={rid}")).await;
        }
    }
    get(&server, &format!("{key}/start")).await;
    let all = jobs(&server, "o").await;
    assert_eq!(statuses(&all), ["in_progress"; 3]);
    for _ in 0..2 {
        get(&server, &format!("{key}/7?rid=1")).await;
        get(&server, &format!("{key}?rid=2")).await;
    }
    let all = jobs(&server, "o").await;
    assert_eq!(statuses(&all), ["failed", "completed", "in_progress"]);
    assert_eq!(all[0]["metadata"], json!({"rid": "1", "exit_code": 7}));
    // It is over, however often something else is said of it.
    for end in ["/start", "/progress/50", "/ok"] {
        let path = format!("{key}{end}?rid=1");
        let (status, reply) = ping(&server, "GET", &path, "").await;
        assert_eq!(status, 409, "{end} {reply}");
    }
    for rid in ["", "a%20b", "a/b", &"x".repeat(49)] {
        let path = format!("{key}/start?rid={rid}");
        let (status, reply) = ping(&server, "GET", &path, "").await;
        assert_eq!(status, 400, "{rid} {reply}");
    }
    let (status, _) = ping(&server, "GET", &format!("{key}/start?run=1"), "").await;
    assert_eq!(status, 400, "a misspelt name must not mix runs");
    // Two keys for the same jobs never mean the same run.
    let (other, _) = key_with(&server, json!({"job_type": "o"})).await;
    get(&server, &format!("{other}/start?rid=1")).await;
    assert_eq!(jobs(&server, "o").await.len(), 4);
}

/// Twice the same start is one; but a start after a report of progress is the next run, and the one before never ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_the_next_one_finds_unended_has_failed() {
    let server = server().await;
    let (key, _) = key(&server, "u").await;
    get(&server, &format!("{key}/start")).await;
    get(&server, &format!("{key}/progress/10")).await;
    get(&server, &format!("{key}/start")).await;
    let all = jobs(&server, "u").await;
    assert_eq!(statuses(&all), ["failed", "in_progress"]);
    assert_eq!(all[0]["error"]["code"], "superseded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_json_receives_the_job_and_any_other_gets_nothing() {
    let server = server().await;
    let (key, _) = key(&server, "j").await;
    let url = format!("{}/ping/{key}/start", server.url);
    let request = server.http.get(&url).header("Accept", "application/json");
    let (status, job) = answer(request).await;
    assert_eq!((status, &job["status"]), (200, &json!("in_progress")));
    let id = job["job_id"].as_str().unwrap().to_owned();
    server
        .report(&format!("/api/jobs/{id}/cancel"), json!({}))
        .await;
    let url = format!("{}/ping/{key}/progress/5", server.url);
    let request = server.http.get(&url).header("Accept", "application/json");
    assert_eq!(answer(request).await.1["cancel_requested"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_cut_at_its_limit_and_a_long_body_is_no_lost_ping() {
    let server = server_with(json!({"message_limit_bytes": 100, "body_limit_bytes": 1_000})).await;
    let (key, _) = key(&server, "m").await;
    let body = "é".repeat(5_000);
    let (status, reply) = ping(&server, "POST", &format!("{key}/fail"), &body).await;
    assert_eq!(status, 204, "{reply}");
    let all = jobs(&server, "m").await;
    assert_eq!(all[0]["error"]["message"], "é".repeat(50));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_unknown_revoked_or_malformed_is_not_there() {
    let server = server().await;
    let (key, id) = key(&server, "r").await;
    let (random, tail) = key.split_at(key.len() - 1);
    let other = if tail == "a" { "b" } else { "a" };
    let school_2 = key.replacen("1-", "2-", 1);
    let mut answers = Vec::new();
    for unknown in [
        &format!("{random}{other}"),
        &school_2,
        &id,
        &key.to_uppercase(),
        "x",
        "%00",
    ] {
        for end in ["", "/start", "/40"] {
            answers.push(ping(&server, "GET", &format!("{unknown}{end}"), "").await);
        }
    }
    get(&server, &key).await;
    let path = format!("/api/pings/{id}");
    let other = server.request("DELETE", &path, &admin_of(2)).send();
    assert_eq!(other.await.unwrap().status(), 404, "another school's");
    get(&server, &format!("{key}/start")).await;
    for status in [204, 404] {
        let revoke = server.request("DELETE", &path, &admin_of(1)).send();
        assert_eq!(revoke.await.unwrap().status(), status);
    }
    answers.push(ping(&server, "GET", &key, "").await);
    for method in ["PUT", "DELETE", "PATCH"] {
        let url = format!("{}/ping/{key}/start", server.url);
        let rejected = server
            .http
            .request(method.parse().unwrap(), url)
            .send()
            .await;
        let rejected = rejected.unwrap();
        assert_eq!(rejected.status(), 405);
        assert_eq!(rejected.headers()["Allow"], "GET, HEAD, POST");
    }
    assert!(answers.iter().all(|answer| answer.0 == 404), "{answers:?}");
    assert!(
        answers.iter().all(|answer| answer.1 == answers[0].1),
        "{answers:?}"
    );
    assert_eq!(jobs(&server, "r").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_of_all_jobs_manages_keys_and_no_list_has_one() {
    let server = server_with(json!({"ping_keys_per_school": 2})).await;
    let (key, id) = key(&server, "a").await;
    let limited = {
        let mut claims = claims(Some(1), Role::Admin);
        claims.channels = Some(vec!["devices".into()]);
        sign(&claims)
    };
    for token in [worker(1), viewer(1), limited] {
        let new = json!({"job_type": "a"});
        assert_eq!(server.post("/api/pings", &token, new).await.0, 403);
        assert_eq!(server.get("/api/pings", &token).await.0, 403);
        let path = format!("/api/pings/{id}");
        let revoke = server.request("DELETE", &path, &token).send().await;
        assert_eq!(revoke.unwrap().status(), 403);
    }
    let (status, list) = server.get("/api/pings", &admin_of(1)).await;
    assert_eq!(status, 200);
    let keys = list["pings"].as_array().unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(
        (&keys[0]["key_id"], &keys[0]["job_type"]),
        (&json!(id), &json!("a"))
    );
    assert!(!list.to_string().contains(&key));
    let others = server.get("/api/pings", &admin_of(2)).await.1;
    assert_eq!(others["pings"], json!([]));
    let new = json!({"job_type": "a"});
    let (status, _) = server.post("/api/pings", &admin_of(1), new.clone()).await;
    assert_eq!(status, 201);
    let (status, full) = server.post("/api/pings", &admin_of(1), new.clone()).await;
    assert_eq!(
        (status, &full["code"], &full["limit"]),
        (
            409,
            &json!("too-many-subjects"),
            &json!("ping_keys_per_school")
        )
    );
    assert_eq!(server.post("/api/pings", &admin_of(2), new).await.0, 201);
    for wrong in [
        json!({}),
        json!({"job_type": "a b"}),
        json!({"job_type": 7}),
    ] {
        let (status, problem) = server.post("/api/pings", &admin_of(3), wrong).await;
        assert_eq!(status, 422, "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_a_rate_limit_of_its_own() {
    let server = server_with(json!({"pings_per_sec": 1})).await;
    let (key, _) = key(&server, "l").await;
    let (other, _) = key_with(&server, json!({"job_type": "l"})).await;
    let path = format!("{key}/progress/1");
    let mut rejected = None;
    for _ in 0..200 {
        let url = format!("{}/ping/{path}", server.url);
        let answer = server.http.get(url).send().await.unwrap();
        if answer.status() == 429 {
            rejected = Some(answer);
            break;
        }
    }
    let rejected = rejected.expect("it is limited");
    assert!(rejected.headers().contains_key("Retry-After"));
    let problem: Value = rejected.json().await.unwrap();
    assert_eq!(problem["limit"], "pings_per_sec");
    get(&server, &format!("{other}/start")).await;
}

/// The command, the curl line that it prints, and the README's and a script's way to use it.
#[tokio::test(flavor = "multi_thread")]
async fn the_printed_curl_line_reports_and_the_key_is_in_no_log_and_not_in_the_database() {
    if !needs("curl") || !needs("sh") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut serve = process::command(folder.path());
    let mut server = Process::start(serve.arg("serve").env("TIDINGS_LOG", "debug"));
    let mut log = server.stderr();
    let mut token = process::command(folder.path());
    let args = ["token", "--ping", "backup", "--school", "1"];
    let printed = process::run(token.args(args).args(["--url", &server.url]));
    assert!(printed.status.success(), "{printed:?}");
    let stdout = String::from_utf8(printed.stdout).unwrap();
    let lines: Vec<&str> = stdout.lines().collect();
    let [key, curl] = lines[..] else {
        panic!("{stdout}");
    };
    assert_eq!(
        curl,
        format!("curl -fsS -m 10 --retry 3 {}/ping/{key}", server.url)
    );
    let script = format!("{curl}/start && (exit 3); {curl}/$?");
    let run = process::run(Command::new("sh").args(["-c", &script]));
    assert!(run.status.success(), "{run:?}");
    assert!(run.stdout.is_empty(), "cron would mail it: {run:?}");
    let script = format!("{curl}/stop");
    let run = process::run(Command::new("sh").args(["-c", &script]));
    assert_eq!(run.status.code(), Some(22), "curl says so: {run:?}");
    let list = reqwest::Client::new().get(format!("{}/api/jobs", server.url));
    let (_, list) = answer(list.bearer_auth(viewer(1))).await;
    assert_eq!(list["jobs"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["jobs"][0]["error"]["message"], "Exit code 3");
    assert_eq!(server.terminate(), Some(0));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut log, &mut text).unwrap();
    assert!(text.contains("/ping/.../stop"), "{text}");
    let secret = key.split_once('-').unwrap().1;
    assert!(!text.contains(secret), "{text}");
    // Over Postgres, there is no such folder.
    let data = std::fs::read_dir(folder.path().join("data"));
    for file in data.into_iter().flatten() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap_or_default();
        let found = bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_school_of_a_key_is_that_of_the_token_in_use_or_else_must_be_named() {
    let server = server().await;
    let ping = |name: &str, value: &str| {
        let mut command = process::command(server.folder.path());
        command.args(["token", "--ping", "backup", "--url", &server.url]);
        if !name.is_empty() {
            command.env(name, value);
        }
        process::run(&mut command)
    };
    let unknown = ping("", "");
    let stderr = String::from_utf8(unknown.stderr).unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    for word in ["--school 1", "TIDINGS_SCHOOL_ID", "TIDINGS_TOKEN"] {
        assert!(stderr.contains(word), "{stderr}");
    }
    let made = ping("TIDINGS_TOKEN", &admin_of(1));
    assert!(made.status.success(), "{made:?}");
    let several = ping("TIDINGS_TOKEN", &for_schools(&[1, 2], Role::Admin));
    let stderr = String::from_utf8(several.stderr).unwrap();
    assert_eq!(several.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--school or TIDINGS_SCHOOL_ID"), "{stderr}");
    let rejected = ping("TIDINGS_TOKEN", &worker(1));
    assert_eq!(rejected.status.code(), Some(3), "{rejected:?}");
}
