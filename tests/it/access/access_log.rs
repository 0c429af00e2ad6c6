//! What the log says of requests, refusals and streams, and that it has no credentials.

use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::listener::socket_url;
use crate::support::*;

/// Runs `tidings serve` with this `TIDINGS_LOG`, and gives its log.
fn log_of(level: &str, visit: impl AsyncFnOnce(&str)) -> String {
    log_with(&[("TIDINGS_LOG", level)], visit)
}

fn log_with(environment: &[(&str, &str)], visit: impl AsyncFnOnce(&str)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = process::command(folder.path());
    command.arg("serve").envs(environment.iter().copied());
    let mut server = process::Process::start(&mut command);
    // Read all the while: a full pipe would hold the server up.
    let mut stderr = server.stderr();
    let reader = std::thread::spawn(move || {
        let mut log = String::new();
        std::io::Read::read_to_string(&mut stderr, &mut log).unwrap();
        log
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(visit(&server.url));
    server.terminate();
    reader.join().unwrap()
}

#[test]
fn the_log_says_nothing_of_how_a_route_was_found() {
    let log = log_of("info", async |url| {
        let put = reqwest::Client::new().put(format!("{url}/api/characteristics/c"));
        let put = put.bearer_auth(worker(1)).json(&json!({}));
        assert!(put.send().await.unwrap().status().is_success());
    });
    assert!(!log.contains("forwarding"), "{log}");
}

#[test]
fn a_rejected_credential_stands_in_the_log_with_route_address_and_reason() {
    let log = log_of("info", async |url| {
        let http = reqwest::Client::new();
        let mut bad = json!(claims(Some(1), Role::Viewer));
        bad["role"] = json!("SECRET-ROLE");
        let bad = sign(&bad);
        let get = async |path: &str| {
            let request = http.get(format!("{url}{path}"));
            request.send().await.unwrap().status().as_u16()
        };
        assert_eq!(get(&format!("/api/devices?token={bad}")).await, 401);
        assert_eq!(get(&format!("/events/jobs/{bad}")).await, 401);
        let mut socket = listener::socket(url, "/ws/enrollment", &bad).await;
        listener::until_closed(&mut socket).await;
        let mut socket = listener::socket(url, "/ws", &viewer(1)).await;
        let message = json!({"type": "auth", "token": bad});
        listener::send(&mut socket, &message.to_string()).await;
        listener::receive(&mut socket).await.unwrap();
        let form = http.post(format!("{url}/monitor/sign-in"));
        let form = form.header("Content-Type", "application/x-www-form-urlencoded");
        let form = form.body(format!("next=&token={bad}")).send().await;
        assert_eq!(form.unwrap().status(), 401);
        let page = http.get(format!("{url}/monitor/system"));
        let page = page.header("Cookie", format!("tidings_token={bad}"));
        assert_eq!(page.send().await.unwrap().status(), 200, "the sign-in page");
        let mut limited = claims(Some(1), Role::Viewer);
        limited.channels = Some(vec!["devices".into()]);
        let elsewhere = http.get(format!("{url}/events?channel=jobs/SECRET-ID"));
        let elsewhere = elsewhere.bearer_auth(sign(&limited)).send().await;
        assert_eq!(elsewhere.unwrap().status(), 403);
        let forbidden = http.post(format!("{url}/api/jobs")).bearer_auth(viewer(1));
        assert_eq!(forbidden.send().await.unwrap().status(), 403);
        // Nobody is signed in, which is not a refusal.
        assert_eq!(get("/monitor").await, 200);
    });
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("a credential was rejected"))
        .collect();
    let expected = [
        (
            "/api/devices",
            "unauthorized",
            "`role` is not one of viewer, worker, admin",
        ),
        ("/events/jobs/...", "unauthorized", "a token is required"),
        ("/ws/enrollment", "unauthorized", "`role` is not one of"),
        ("/ws", "unauthorized", "`role` is not one of"),
        ("/monitor/sign-in", "unauthorized", "`role` is not one of"),
        ("/monitor/system", "unauthorized", "`role` is not one of"),
        (
            "/events",
            "forbidden",
            "its `channels` do not cover the requested jobs",
        ),
        (
            "/api/jobs",
            "forbidden",
            "its role is viewer, and worker is required",
        ),
    ];
    assert_eq!(lines.len(), expected.len(), "{log}");
    for (line, (route, code, reason)) in lines.iter().zip(expected) {
        let route = format!("route=\"{route}\"");
        let code = format!("code=\"{code}\"");
        for part in ["INFO", &route, "address=127.0.0.1", &code, reason] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    for secret in ["eyJ", "SECRET", SECRET] {
        assert!(!log.contains(secret), "{secret} stands in the log:\n{log}");
    }
}

#[test]
#[ignore = "slow: takes seconds"]
fn the_log_believes_only_trusted_proxies_of_where_a_rejected_request_came_from() {
    for (trusted, address) in [
        ("[\"127.0.0.1\"]", "192.0.2.7"),
        ("127.0.0.1", "192.0.2.7"),
        ("[]", "127.0.0.1"),
    ] {
        let log = log_with(&[("TIDINGS_TRUSTED_PROXIES", trusted)], async |url| {
            let request = reqwest::Client::new().get(format!("{url}/api/jobs"));
            let request = request.header("X-Real-IP", "192.0.2.7").bearer_auth("x");
            assert_eq!(answer(request).await.0, 401);
        });
        assert!(log.contains(&format!("address={address} ")), "{log}");
    }
}

#[test]
fn so_many_rejections_are_logged_and_the_others_counted() {
    const REFUSALS: usize = 100;
    let log = log_of("info", async |url| {
        let http = reqwest::Client::new();
        for _ in 0..REFUSALS {
            let request = http.get(format!("{url}/api/jobs?token=BAD-TOKEN"));
            assert_eq!(request.send().await.unwrap().status(), 401);
        }
    });
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    let logged = count("a credential was rejected");
    // A busy machine may take more than one period for that.
    assert!((1..REFUSALS).contains(&logged), "{logged}");
    assert!(!log.contains("BAD-TOKEN"));
}

#[test]
#[ignore = "slow: real seconds pass"]
fn each_stream_stands_in_the_log_at_debug_from_its_opening_to_its_end() {
    let log = log_of("debug", async |url| {
        let http = reqwest::Client::new();
        let report = http.post(format!("{url}/api/jobs")).bearer_auth(worker(1));
        let job = json!({"job_id": "a", "job_type": "t", "message": "SECRET-PAYLOAD"});
        assert_eq!(answer(report.json(&job)).await.0, 201);
        for transport in Transport::ALL {
            let mut token = claims(Some(1), Role::Viewer);
            token.sub = "ann\nINFO".into();
            let mut listener = Listener::open(transport, url, "/jobs", &sign(&token), None).await;
            listener.until_ready().await;
        }
        let mut soon = json!(claims(Some(1), Role::Viewer));
        soon["exp"] = json!(chrono::Utc::now().timestamp() - 3);
        let mut socket = listener::socket(url, "/ws", &sign(&soon)).await;
        let (_, code) = listener::until_closed(&mut socket).await;
        assert_eq!(code, Some(4401));
        let rejected = socket_url(url, "/events/jobs/nobody", Some(&viewer(1)), None);
        assert_eq!(listener::rejected(&rejected).await, 404);
        let mut socket = listener::socket(url, "/progress/ws/nobody", &viewer(1)).await;
        listener::until_closed(&mut socket).await;
    });
    let find = |parts: &[&str]| {
        let fits = |line: &&str| parts.iter().all(|part| line.contains(part));
        assert!(log.lines().any(|line| fits(&line)), "{parts:?}\n{log}");
    };
    for transport in ["SSE", "WebSocket", "long poll"] {
        let transport = format!("transport=\"{transport}\"");
        let who = r#"address=127.0.0.1 user="ann\nINFO""#;
        find(&["DEBUG", "opened channels=1", &transport, "school.id=1", who]);
        find(&["DEBUG", "ended reason=", &transport, "events=1", who]);
    }
    find(&["ended reason=\"the poll has been answered\""]);
    find(&["ended reason=\"the token has expired\"", "events=0"]);
    find(&[
        "rejected",
        "route=\"/events/jobs/nobody\"",
        "code=\"not-found\"",
    ]);
    find(&[
        "rejected",
        "route=\"/progress/ws/nobody\"",
        "code=\"not_found\"",
    ]);
    for secret in ["eyJ", "SECRET-PAYLOAD", SECRET] {
        assert!(!log.contains(secret), "{secret} stands in the log:\n{log}");
    }
}

/// Whatever the level: no token, ticket or payload in what the server writes.
#[test]
fn credentials_do_not_appear_in_a_log() {
    let folder = tempfile::tempdir().unwrap();
    log_of_everything(process::command(folder.path()));
}

/// The client of a database logs what it writes, at some level.
#[test]
fn credentials_and_payloads_do_not_appear_in_a_log_over_postgres() {
    let folder = tempfile::tempdir().unwrap();
    if let Some(url) = store::postgres_of(folder.path()) {
        let mut command = process::command(folder.path());
        // The tests' server asks for no password.
        let url = url.replace("tidings@", "tidings:SECRET-PASSWORD@");
        command.env("TIDINGS_DATABASE_URL", url);
        log_of_everything(command);
    }
}

/// Runs a server that logs everything, and checks that no secret stands in its log.
fn log_of_everything(mut command: std::process::Command) {
    let mut server = process::Process::start(
        command
            .arg("serve")
            .env("TIDINGS_LOG", "trace")
            .env("RUST_LOG", "trace"),
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let http = reqwest::Client::new();
        let url = |path: &str| format!("{}{path}", server.url);
        http.post(url("/api/jobs"))
            .bearer_auth(worker(1))
            .json(&json!({"job_type": "t", "job_id": "a", "message": "SECRET-PAYLOAD"}))
            .send()
            .await
            .unwrap();
        http.get(url(&format!("/api/jobs?token={}", worker(1))))
            .send()
            .await
            .unwrap();
        http.get(url("/api/jobs?token=BAD-TOKEN"))
            .header("Cookie", "tidings_token=BAD-TOKEN")
            .send()
            .await
            .unwrap();
        http.get(url("/nowhere?token=BAD-TOKEN"))
            .bearer_auth("BAD-TOKEN")
            .send()
            .await
            .unwrap();
        let ticket: Value = http
            .post(url("/api/tickets"))
            .bearer_auth(worker(1))
            .json(&json!({"channels": ["jobs"]}))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        http.get(url(ticket["url"].as_str().unwrap()))
            .header("Accept", "application/json")
            .send()
            .await
            .unwrap();
        let mut ws = listener::socket(&server.url, "/ws", &worker(1)).await;
        listener::send(
            &mut ws,
            &json!({"type": "auth", "token": worker(1)}).to_string(),
        )
        .await;
        listener::receive(&mut ws).await.unwrap();
    });
    server.terminate();
    let mut log = String::new();
    std::io::Read::read_to_string(&mut server.stderr(), &mut log).unwrap();
    std::io::Read::read_to_string(&mut server.stdout, &mut log).unwrap();
    // The head of every HS256 token; what follows differs.
    for secret in [
        "eyJ",
        "BAD-TOKEN",
        "SECRET-PAYLOAD",
        "SECRET-PASSWORD",
        SECRET,
    ] {
        assert!(!log.contains(secret), "{secret} stands in the log:\n{log}");
    }
}
