//! The command line, as a person and a script use it.

use std::io::{BufRead, Read};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::process::{Guarded, Process, command, run};
use crate::support::*;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn token(folder: &Path, arguments: &[&str]) -> Output {
    run(command(folder).arg("token").args(arguments))
}

#[test]
fn a_token_works_at_once_with_a_secret_made_at_the_first_start_and_kept_private() {
    let folder = tempfile::tempdir().unwrap();
    let without_secret = |arguments: &[&str]| {
        let mut command = command(folder.path());
        command.env_remove("TIDINGS_JWT_SECRET").args(arguments);
        command
    };
    let made = text(
        &run(&mut without_secret(&[
            "token", "--school", "7", "--role", "worker",
        ]))
        .stdout,
    );
    let secret = folder.path().join("data/jwt_secret");
    #[cfg(unix)]
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&secret).unwrap().permissions())
            & 0o777,
        0o600
    );
    let kept = std::fs::read_to_string(&secret).unwrap();
    let server = Process::start(&mut without_secret(&["serve"]));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (status, job) = runtime.block_on(answer(
        reqwest::Client::new()
            .post(format!("{}/api/jobs", server.url))
            .bearer_auth(made.trim())
            .json(&json!({"job_type": "t"})),
    ));
    assert_eq!((status, &job["school_id"]), (201, &json!(7)));
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), kept);
}

#[test]
fn tokens_say_what_is_wrong_with_their_arguments() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, code, word) in [
        (&["--role", "viewer"][..], 2, "--school"),
        (&["--role", "viewer", "--all-schools"], 2, "--schools"),
        (&["--role", "worker"], 2, "--all-schools"),
        (&["--schools", "1,0", "--role", "worker"], 2, "school"),
        (&["--schools", "", "--role", "worker"], 2, "school"),
        (
            &["--school", "1", "--schools", "2", "--role", "worker"],
            2,
            "--schools",
        ),
        (&["--school", "0", "--role", "viewer"], 2, "school"),
        (
            &["--school", "1", "--role", "king"],
            2,
            "viewer, worker or admin",
        ),
        (
            &["--school", "1", "--role", "viewer", "--ttl", "soon"],
            2,
            "30m",
        ),
        (
            &["--school", "1", "--role", "viewer", "--channel", "cats"],
            2,
            "channel",
        ),
    ] {
        let output = token(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(
            text(&output.stderr).contains(word),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
    }
    assert!(token(folder.path(), &["--role", "admin"]).status.success());
}

#[test]
fn tokens_have_one_source() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value, word) in [
        ("TIDINGS_JWT_PUBLIC_KEY_FILE", "key.pem", "jwt_jwks_file"),
        ("TIDINGS_JWT_ALGORITHM", "ES256", "jwt_algorithm"),
    ] {
        let mut command = command(folder.path());
        command.env("TIDINGS_JWT_JWKS_FILE", "keys.json");
        let output = run(command.arg("serve").env(name, value));
        assert_eq!(output.status.code(), Some(1), "{name}");
        let said = text(&output.stderr);
        assert!(said.contains(word), "{name}={value}: {said}");
    }
}

#[test]
fn a_token_for_several_schools_reaches_them_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let made = |arguments: &[&str]| text(&token(folder.path(), arguments).stdout);
    let some = made(&["--schools", "1,2", "--role", "worker"]);
    let all = made(&["--all-schools", "--role", "worker"]);
    let server = Process::start(command(folder.path()).arg("serve"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (token, school, expected) in [(&some, 2, 201), (&some, 3, 404), (&all, 3, 201)] {
        let url = format!("{}/api/jobs?school_id={school}", server.url);
        let request = reqwest::Client::new().post(url).bearer_auth(token.trim());
        let (status, job) = runtime.block_on(answer(request.json(&json!({"job_type": "t"}))));
        assert_eq!(status, expected, "{job}");
    }
}

#[test]
fn an_unknown_or_invalid_setting_stops_the_start_and_is_named() {
    for (name, value, word) in [
        ("TIDINGS_COLOUR", "red", "colour"),
        ("TIDINGS_HEARTBEAT_SECS", "often", "heartbeat_secs"),
        ("TIDINGS_HEARTBEAT_SECS", "0", "heartbeat_secs"),
        ("TIDINGS_DATABASE_URL", "mysql://x", "database_url"),
        ("TIDINGS_JWT_SECRET", "short", "jwt_secret"),
        ("TIDINGS_JWT_ALGORITHM", "none", "jwt_algorithm"),
        ("TIDINGS_JWT_ALGORITHM", "RS256", "jwt_public_key_file"),
        ("TIDINGS_JWT_JWKS_FILE", "/nowhere/keys", "jwt_jwks_file"),
        ("TIDINGS_JWT_JWKS_FILE", "/", "jwt_jwks_file"),
        ("TIDINGS_JWT_ROLES", r#"{head="boss"}"#, "jwt_roles"),
        ("TIDINGS_JWT_ROLES", r#"{"head": "Admin"}"#, "jwt_roles"),
        ("TIDINGS_JWT_ROLES", "head", "jwt_roles"),
        ("TIDINGS_JWT_ROLES", r#"{"": "admin"}"#, "jwt_roles"),
        ("TIDINGS_JWT_ROLES", "[]", "jwt_roles"),
        ("TIDINGS_JWT_ROLE_CLAIM", "/realm/a~2", "jwt_role_claim"),
        ("TIDINGS_JWT_SCHOOL_CLAIM", "/~", "jwt_school_claim"),
        ("TIDINGS_JWT_SUBJECT_CLAIM", "", "jwt_subject_claim"),
        ("TIDINGS_JWT_DEFAULT_ROLE", "boss", "jwt_default_role"),
        (
            "TIDINGS_JWT_DEFAULT_SCHOOL_ID",
            "0",
            "jwt_default_school_id",
        ),
        ("TIDINGS_JWT_LEEWAY_SECS", "-1", "jwt_leeway_secs"),
        ("TIDINGS_SYNCHRONOUS", "maybe", "synchronous"),
        (
            "TIDINGS_IDLE_HEARTBEAT_SECS",
            "18446744073709551615",
            "idle_heartbeat_secs",
        ),
        ("TIDINGS_METADATA_LIMIT_BYTES", "1", "metadata_limit_bytes"),
        ("TIDINGS_ANONYMOUS_SCHOOL_ID", "-1", "anonymous_school_id"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output = run(command(folder.path()).arg("serve").env(name, value));
        assert_eq!(output.status.code(), Some(1), "{name}");
        let said = text(&output.stderr).to_lowercase();
        assert!(said.contains(word), "{name}={value}: {said}");
        assert!(
            !folder.path().join("data/tidings.db").exists(),
            "nothing was begun"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("Rocket.toml"),
        "[default.tidings]\nheartbeets = 3\n",
    )
    .unwrap();
    let said = text(&run(command(folder.path()).arg("serve")).stderr);
    assert!(
        said.contains("heartbeets") && said.contains("Rocket.toml"),
        "{said}"
    );
}

#[test]
fn an_address_in_use_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = run(command(folder.path()).arg("serve").env(
        "ROCKET_PORT",
        taken.local_addr().unwrap().port().to_string(),
    ));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).to_lowercase().contains("in use"),
        "{}",
        text(&output.stderr)
    );
}

fn watch(server: &Server, arguments: &[&str]) -> Command {
    let mut watch = command(server.folder.path());
    watch
        .arg("watch")
        .args(arguments)
        .env("TIDINGS_URL", &server.url)
        .env("TIDINGS_TOKEN", viewer(1));
    watch
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_a_job_ends_with_its_outcome() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    for (id, verb, body, code) in [
        ("good", "complete", json!({}), 0),
        (
            "bad",
            "fail",
            json!({"error": {"code": "x", "message": "y"}}),
            10,
        ),
        ("stopped", "cancel", json!({"force": true}), 11),
    ] {
        server.running_job(id).await;
        let mut watching = watch(&server, &[&format!("jobs/{id}"), "--json"]);
        let watched = tokio::task::spawn_blocking(move || run(&mut watching));
        until("it watches", async || server.tidings.streams() == 1).await;
        server
            .report(&format!("/api/jobs/{id}/progress"), json!({"progress": 50}))
            .await;
        server.report(&format!("/api/jobs/{id}/{verb}"), body).await;
        let output = watched.await.unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{id}: {}",
            text(&output.stderr)
        );
        let lines: Vec<Value> = text(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["type"], "connected");
        assert_eq!(lines.last().unwrap()["job_id"], id);
        until("the stream is gone", async || server.tidings.streams() == 0).await;
        // Over already: the snapshot tells.
        let mut again = watch(&server, &[&format!("jobs/{id}")]);
        let output = tokio::task::spawn_blocking(move || run(&mut again))
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(
            text(&output.stdout).contains(id),
            "{}",
            text(&output.stdout)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_an_enrollment_ends_with_its_outcome() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    let door = json!({"name": "Front door"});
    server.put("/api/devices/door", door).await;
    for (id, verb, body, code, told) in [
        (
            "good",
            "complete",
            json!({"quality_score": 87}),
            0,
            "quality 87",
        ),
        ("bad", "error", json!({"code": "timeout"}), 10, "(timeout)"),
        (
            "stopped",
            "cancel",
            json!({"message": "Enough"}),
            11,
            "Enough",
        ),
    ] {
        server
            .report(
                "/api/enrollments",
                json!({"session_id": id, "device_id": "door"}),
            )
            .await;
        let mut watching = watch(&server, &[&format!("enrollments/{id}")]);
        let watched = tokio::task::spawn_blocking(move || run(&mut watching));
        until("it watches", async || server.tidings.streams() == 1).await;
        let ended = server
            .report(&format!("/api/enrollments/{id}/{verb}"), body)
            .await;
        let output = watched.await.unwrap();
        assert_eq!(output.status.code(), Some(code), "{id}");
        let last = text(&output.stdout).lines().last().unwrap().to_owned();
        assert!(last.contains(id) && last.contains(told), "{last}");
        until("the stream is gone", async || server.tidings.streams() == 0).await;
        // Over before the cursor: nothing more is told of it, and still the outcome is known.
        let cursor = ended["cursor"].as_str().unwrap();
        let scope = format!("enrollments/{id}");
        let mut again = watch(&server, &[&scope, "--cursor", cursor]);
        let output = tokio::task::spawn_blocking(move || run(&mut again))
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_a_school_tells_every_kind_in_lines() {
    let server = server().await;
    let mut watching = watch(&server, &["schools/1"]);
    let mut child = Guarded(
        watching
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    until("it watches", async || server.tidings.streams() == 1).await;
    server
        .put(
            "/api/devices/door",
            json!({"name": "Front door", "info": {"battery": 9}}),
        )
        .await;
    server
        .report("/api/devices/door/status", json!({"status": "offline"}))
        .await;
    server
        .report(
            "/api/enrollments",
            json!({"session_id": "s", "device_id": "door", "student_id": "Ada", "total_attempts": 3}),
        )
        .await;
    let limits = json!({"center_line": 28, "ucl": 29.5, "lcl": 26.5});
    server
        .put("/api/characteristics/bath", json!({"limits": limits}))
        .await;
    server
        .report(
            "/api/characteristics/bath/samples",
            json!({"value": 30.00004}),
        )
        .await;
    server
        .report(
            "/api/violations/bath.1/ack",
            json!({"reason": "Heater off", "user": "Kim"}),
        )
        .await;
    server
        .put(
            "/api/characteristics/bath",
            json!({"limits": {"method": "moving_range", "samples": 5}}),
        )
        .await;
    let expected = [
        ("unknown", "door  Front door"),
        ("info", r#"door  {"battery":9}"#),
        ("offline", "door  Front door"),
        ("ready", "s  door, Ada, scan 1 of 3, 0%: Ready"),
        ("limits", "bath  26.5 to 29.5 around 28 (given)"),
        ("sample", "bath  30 beyond_ucl OUT OF CONTROL"),
        ("violation", "bath.1  rule 1: Beyond 3 sigma, critical"),
        ("acknowledged", "bath.1  Kim: Heater off"),
        (
            "limits",
            "bath  26.5 to 29.5 around 28 (given), learning from the next 5 samples",
        ),
    ];
    let out = child.0.stdout.take().unwrap();
    let told = tokio::task::spawn_blocking(move || {
        let lines = std::io::BufReader::new(out).lines();
        lines.take(9).collect::<Result<Vec<String>, _>>().unwrap()
    });
    for (line, (what, rest)) in told.await.unwrap().iter().zip(expected) {
        assert!(line.starts_with(&format!("{what:<13}{rest}")), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_says_why_it_cannot() {
    let server = server().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (scope, name, value, code) in [
        ("jobs/nobody", "", String::new(), 4),
        ("jobs", "TIDINGS_TOKEN", "bad".into(), 3),
        ("jobs", "TIDINGS_URL", format!("http://{nobody}"), 5),
        ("jobs?tick_ms=x", "", String::new(), 1),
    ] {
        let mut watching = watch(&server, &[scope]);
        if !name.is_empty() {
            watching.env(name, value);
        }
        let output = tokio::task::spawn_blocking(move || run(&mut watching))
            .await
            .unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{scope} {name}: {}",
            text(&output.stderr)
        );
        assert!(text(&output.stderr).starts_with("tidings: "));
    }
}

/// The server goes away and comes back: the watcher goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn watching_resumes_after_a_lost_connection() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    let http = reqwest::Client::new();
    let report = async |path: &str, body: Value| {
        let request = http
            .post(format!("http://127.0.0.1:{port}/api/jobs{path}"))
            .bearer_auth(worker(1))
            .json(&body);
        assert!(
            request.send().await.unwrap().status().is_success(),
            "{path}"
        );
    };
    report(
        "",
        json!({"job_id": "a", "job_type": "t", "status": "in_progress"}),
    )
    .await;
    let mut watching = command(folder.path());
    watching
        .args(["watch", "jobs/a?tick_ms=0", "--json"])
        .env("TIDINGS_URL", &server.url)
        .env("TIDINGS_TOKEN", viewer(1));
    let mut child = Guarded(
        watching
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = std::io::BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut next =
        move || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    while next()["type"] != "ready" {}
    server.kill();
    let _server = Process::start(
        command(folder.path())
            .arg("serve")
            .env("ROCKET_PORT", &port),
    );
    report("/a/progress", json!({"progress": 10})).await;
    report("/a/complete", json!({})).await;
    let (rest, code) = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        loop {
            let message = next();
            let last = message["status"] == "completed";
            rest.push(message);
            if last {
                return (rest, child.0.wait().unwrap().code());
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(code, Some(0));
    let seqs: Vec<_> = rest
        .iter()
        .filter_map(|message| message["seq"].as_u64())
        .collect();
    assert_eq!(seqs, [2, 3], "{rest:#?}");
    assert!(
        rest.iter()
            .all(|message| message["type"] != "reset" && message.get("snapshot").is_none())
    );
}

/// What a newcomer sees: real documents, worked through over the public API.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_works_through_real_documents() {
    let folder = tempfile::tempdir().unwrap();
    let documents = folder.path().join("documents");
    std::fs::create_dir_all(documents.join("sub")).unwrap();
    std::fs::write(documents.join("abc.txt"), "abc").unwrap();
    std::fs::write(
        documents.join("sub/long.txt"),
        "a line of words\n".repeat(1_000),
    )
    .unwrap();
    std::fs::write(
        documents.join("picture.png"),
        [0x89, b'P', b'N', b'G', 0xff],
    )
    .unwrap();
    std::fs::write(documents.join("empty"), "").unwrap();
    let mut demo = command(folder.path());
    demo.arg("demo")
        .arg(&documents)
        .args(["--pause-ms", "0", "--part-bytes", "4096", "--exit"]);
    let (code, said) = tokio::task::spawn_blocking(move || {
        let mut process = Process::start(&mut demo);
        let mut said = String::new();
        process.stdout.read_to_string(&mut said).unwrap();
        (process.wait(), said)
    })
    .await
    .unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("curl -N 'http://127.0.0.1:") && said.contains(" watch jobs"),
        "{said}"
    );

    let server = Process::start(command(folder.path()).arg("serve"));
    let list: Value = reqwest::Client::new()
        .get(format!("{}/api/jobs", server.url))
        .bearer_auth(viewer(1))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let job = |name: &str| {
        list["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .find(|job| job["metadata"]["path"].as_str().unwrap().ends_with(name))
            .unwrap()
            .clone()
    };
    assert_eq!(list["jobs"].as_array().unwrap().len(), 4);
    let abc = job("abc.txt");
    assert_eq!(abc["job_type"], "document");
    assert_eq!(
        abc["result"],
        json!({"sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "bytes": 3, "lines": 1, "words": 1})
    );
    let long = job("long.txt");
    assert_eq!(
        (
            &long["result"]["lines"],
            &long["result"]["words"],
            &long["result"]["bytes"]
        ),
        (&json!(1_000), &json!(4_000), &json!(16_000))
    );
    let mut log = Listener::open(
        Transport::Poll,
        &server.url,
        &format!("/jobs/{}?tick_ms=0", long["job_id"].as_str().unwrap()),
        &viewer(1),
        Some(&from_start(&long)),
    )
    .await;
    let story = log.until_ready().await;
    let messages: Vec<_> = story
        .iter()
        .filter_map(|event| event["message"].as_str())
        .collect();
    assert!(messages.contains(&"Processing part 3 of 4"), "{messages:?}");
    let progress: Vec<_> = story
        .iter()
        .filter(|event| event["status"] == "in_progress")
        .map(|event| event["progress"].as_f64().unwrap())
        .collect();
    assert_eq!(progress, [0.0, 25.6, 51.2, 76.8, 100.0], "by bytes done");
    let picture = job("picture.png");
    assert_eq!(
        (&picture["status"], &picture["error"]["code"]),
        (&json!("failed"), &json!("not_text"))
    );
    assert_eq!(job("empty")["result"]["words"], 0);
}

fn from_start(job: &Value) -> String {
    format!(
        "{}-0",
        job["cursor"].as_str().unwrap().split('-').next().unwrap()
    )
}

#[test]
fn help_has_examples_and_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["--help"][..],
        &["token", "--help"],
        &["watch", "--help"],
        &["demo", "--help"],
    ] {
        let output = run(command(folder.path()).args(arguments));
        assert!(
            output.status.success() && text(&output.stdout).contains("Examples:"),
            "{arguments:?}"
        );
    }
    assert!(text(&run(command(folder.path()).arg("--help")).stdout).contains("Exit codes:"));
    assert_eq!(
        run(command(folder.path()).arg("dance")).status.code(),
        Some(2)
    );
}
