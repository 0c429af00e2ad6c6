//! The command line, as a person and a script use it.

use std::io::{BufRead, Read};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::process::{
    Guarded, Patient, Process, blocking, command, output_of, run, status_of, watch,
};
use crate::support::*;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn token(folder: &Path, arguments: &[&str]) -> Output {
    run(command(folder).arg("token").args(arguments))
}

#[test]
fn a_token_is_made_with_the_secret_that_the_server_has_made_and_keeps_private() {
    let folder = tempfile::tempdir().unwrap();
    let without_secret = |arguments: &[&str]| {
        let mut command = command(folder.path());
        command.env_remove("TIDINGS_JWT_SECRET").args(arguments);
        command
    };
    let server = Process::start(&mut without_secret(&["serve"]));
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
fn a_token_where_no_server_has_been_makes_no_secret_and_says_where_it_looked() {
    let folder = tempfile::tempdir().unwrap();
    let (here, elsewhere) = (folder.path().join("here"), folder.path().join("elsewhere"));
    std::fs::create_dir(&here).unwrap();
    let make = |arguments: &[&str]| {
        let mut command = command(&here);
        command
            .env_remove("TIDINGS_JWT_SECRET")
            .env_remove("TIDINGS_DATA_DIR")
            .args(["token", "--school", "1", "--role", "viewer"]);
        run(command.args(arguments))
    };
    let named = elsewhere.to_str().unwrap().to_owned();
    for (arguments, place) in [
        (&[][..], here.join("data/jwt_secret")),
        (&["--data-dir", &named], elsewhere.join("jwt_secret")),
    ] {
        let output = make(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(text(&output.stdout), "");
        let said = text(&output.stderr);
        for word in [place.to_str().unwrap(), "--data-dir", "TIDINGS_DATA_DIR"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    assert_eq!(std::fs::read_dir(&here).unwrap().count(), 0);
    assert!(!elsewhere.exists());
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("jwt_secret"), SECRET).unwrap();
    assert!(make(&["--data-dir", &named]).status.success());
}

/// A pipe that nobody reads.
fn unread() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

/// Runs to the end, with the standard output that has been chosen.
fn run_as_it_is(command: &mut Command) -> Output {
    let child = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    output_of(child)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_gone_is_a_quiet_end() {
    let server = server().await;
    server.running_job("a").await;
    let folder = tempfile::tempdir().unwrap();
    let documents = folder.path().join("documents");
    std::fs::create_dir(&documents).unwrap();
    let documents = documents.to_str().unwrap();
    for (arguments, code) in [
        (&["token", "--role", "admin"][..], 1),
        (&["demo", documents, "--no-simulators"], 1),
        (&["watch", "jobs"], 1),
        (&["watch", "jobs", "--json"], 1),
        (&["--help"], 0),
    ] {
        let mut command = command(folder.path());
        command
            .args(arguments)
            .env("TIDINGS_URL", &server.url)
            .env("TIDINGS_TOKEN", viewer(1))
            .env("TIDINGS_LOG", "error")
            .stdout(unread());
        let output = blocking(move || run_as_it_is(&mut command)).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
    // Neither output is read.
    for arguments in [
        &["token", "--role", "king"][..],
        &["token", "--role", "admin"],
    ] {
        let mut command = command(folder.path());
        command.args(arguments).stdout(unread()).stderr(unread());
        let code = command.status().unwrap().code();
        assert!(
            code.is_some_and(|code| (1..=2).contains(&code)),
            "{arguments:?}: {code:?}"
        );
    }
}

#[test]
fn an_output_that_cannot_be_written_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let full = std::fs::File::create("/dev/full").unwrap();
    let mut command = command(folder.path());
    let output = run_as_it_is(command.args(["token", "--role", "admin"]).stdout(full));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot write to standard output"));
}

/// Runs a command in a terminal of its own.
fn in_terminal(command: &Command, before: &str) -> Command {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut terminal = Command::new("script");
    terminal
        .args([
            "-qefc",
            &format!("{before} {}", words.join(" ")),
            "/dev/null",
        ])
        .current_dir(command.get_current_dir().unwrap())
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR");
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    terminal
}

#[test]
fn colours_are_for_terminals_and_for_those_who_want_them() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("documents")).unwrap();
    let called = |arguments: &[&str]| {
        let mut called = command(folder.path());
        called.env("TIDINGS_LOG", "debug").args(arguments);
        called
    };
    // The one is wrong, and the other logs.
    for (arguments, code) in [
        (&["dance"][..], 2),
        (&["demo", "documents", "--exit", "--no-simulators"], 0),
    ] {
        let output = run(&mut called(arguments));
        assert_eq!(output.status.code(), Some(code));
        let said = text(&output.stderr);
        assert!(!said.is_empty() && !said.contains('\u{1b}'), "{said}");
        if !needs("script") {
            continue;
        }
        for (is_wanted, no_colour) in [(true, ""), (false, "1")] {
            let mut terminal = in_terminal(&called(arguments), "");
            let output = run(terminal.env("NO_COLOR", no_colour));
            assert_eq!(output.status.code(), Some(code));
            let said = text(&output.stdout);
            assert_eq!(said.contains('\u{1b}'), is_wanted, "{said}");
        }
    }
}

/// What a terminal would obey or show in another order.
fn is_obeyed(character: char) -> bool {
    character.is_control() && character != '\n' || ('\u{202a}'..='\u{202e}').contains(&character)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_terminal_would_obey_reaches_it() {
    let nasty = "a\u{1b}[31m\u{7}\u{202e}gpj.txt";
    let folder = tempfile::tempdir().unwrap();
    let documents = folder.path().join("documents");
    std::fs::create_dir(&documents).unwrap();
    std::fs::write(documents.join(nasty), "abc").unwrap();
    let mut demo = command(folder.path());
    demo.arg("demo")
        .arg(&documents)
        .args(["--exit", "--no-simulators"]);
    let output = blocking(move || run(&mut demo)).await;
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(
        said.contains("completed") && said.contains("\\u{1b}[31m"),
        "{said}"
    );
    assert!(!said.contains(is_obeyed), "{said:?}");

    let server = server().await;
    let body = json!({"job_id": "j", "job_type": "t", "status": "in_progress", "metadata": {"title": nasty}});
    server.report("/api/jobs", body).await;
    let done = json!({"message": "\u{202e}done"});
    server.report("/api/jobs/j/complete", done).await;
    for (arguments, word) in [
        (&["jobs/j"][..], "\\u{202e}done"),
        (&["jobs/j", "--json"], "\\u202edone"),
        (&["jobs?status=\u{1b}[31m"], "percent-encoded"),
        (&["jobs?status=%1B[31m"], "HTTP 400"),
    ] {
        let mut watching = watch(&server, arguments);
        let output = blocking(move || run(&mut watching)).await;
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains(word), "{word}: {said}");
        assert!(!said.contains(is_obeyed), "{said:?}");
    }
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
        let watched = blocking(move || run(&mut watching));
        until("it watches", async || server.tidings.streams() == 1).await;
        server
            .report(&format!("/api/jobs/{id}/progress"), json!({"progress": 50}))
            .await;
        server.report(&format!("/api/jobs/{id}/{verb}"), body).await;
        let output = watched.await;
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
        let output = blocking(move || run(&mut again)).await;
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
        let watched = blocking(move || run(&mut watching));
        until("it watches", async || server.tidings.streams() == 1).await;
        let ended = server
            .report(&format!("/api/enrollments/{id}/{verb}"), body)
            .await;
        let output = watched.await;
        assert_eq!(output.status.code(), Some(code), "{id}");
        let last = text(&output.stdout).lines().last().unwrap().to_owned();
        assert!(last.contains(id) && last.contains(told), "{last}");
        until("the stream is gone", async || server.tidings.streams() == 0).await;
        // Over before the cursor: nothing more is told of it, and still the outcome is known.
        let cursor = ended["cursor"].as_str().unwrap();
        let scope = format!("enrollments/{id}");
        let mut again = watch(&server, &[&scope, "--cursor", cursor]);
        let output = blocking(move || run(&mut again)).await;
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
    let out = Patient(child.0.stdout.take().unwrap());
    let told = blocking(move || {
        let lines = std::io::BufReader::new(out).lines();
        lines.take(9).collect::<Result<Vec<String>, _>>().unwrap()
    });
    for (line, (what, rest)) in told.await.iter().zip(expected) {
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
        ("jobs?tick_ms=x", "", String::new(), 2),
        ("jobs?tick_ms= ", "", String::new(), 2),
        ("", "", String::new(), 2),
        ("cats", "", String::new(), 2),
        ("jo bs", "", String::new(), 2),
        ("jobs", "TIDINGS_URL", "nope".into(), 2),
        ("jobs", "TIDINGS_URL", "http://".into(), 2),
        ("jobs", "TIDINGS_URL", "ftp://127.0.0.1".into(), 2),
        ("jobs", "TIDINGS_TOKEN", "a\nb".into(), 2),
    ] {
        let mut watching = watch(&server, &[scope]);
        if !name.is_empty() {
            watching.env(name, value);
        }
        let output = blocking(move || run(&mut watching)).await;
        assert_eq!(
            output.status.code(),
            Some(code),
            "{scope} {name}: {}",
            text(&output.stderr)
        );
        let said = text(&output.stderr);
        assert!(said.starts_with("tidings: ") || said.starts_with("error: "));
        if code == 5 {
            assert!(said.contains(&format!("http://{nobody}")), "{said}");
        }
    }
}

/// Nobody listens at the address: what reached it would end with 5.
#[test]
fn a_usage_error_is_found_before_anything_is_connected_to() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", taken.local_addr().unwrap());
    drop(taken);
    let watched = |url: &str, scope: &str| {
        let mut watching = command(folder.path());
        watching.args(["watch", scope, "--url", url]);
        run(&mut watching)
    };
    for scope in [
        "?channel=zzz",
        "?channel=",
        "?channel",
        "?channel=jobs&channel=zzz",
        "?channel=schools/0",
        "?channel=jobs%2F",
        "?xchannel=jobs",
        "/?status=failed",
        "jobs?channel=zzz",
        "jobs/42?ids=1",
        "?channel=jobs&ids=1",
        "characteristics?ids=1,,2",
        "jobs?school_id=0",
        "schools/x",
    ] {
        let output = watched(&nobody, scope);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{scope}: {said}");
        assert!(said.starts_with("error: "), "{said}");
    }
    for cursor in ["zzz", "1-2", "", "0123456789abcdef-x"] {
        let mut watching = command(folder.path());
        watching.args(["watch", "jobs", "--url", &nobody, "--cursor", cursor]);
        let output = run(&mut watching);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{cursor}: {said}");
        assert!(said.contains("<epoch>-<seq>-<tag>"), "{said}");
    }
    for url in [
        "http://127.0.0.1:99999",
        "http://127.0.0.1:65536",
        "http://127.0.0.1:0",
        "http://[::1]:99999",
        "http://:80",
        "https://tidings.example:x",
        "tidings.example",
    ] {
        let output = watched(url, "jobs");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{url}: {said}");
        assert!(said.contains("from 1 to 65535"), "{said}");
    }
    for scope in [
        "?channel=jobs",
        "?channel=jobs%2F42&channel=devices&school_id=7",
        "characteristics?ids=1,2",
        "jobs?status=failed&job_type=a+b",
    ] {
        let output = watched(&nobody, scope);
        assert_eq!(output.status.code(), Some(5), "{scope}");
    }
}

#[test]
fn an_empty_variable_of_watch_is_as_good_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut watching = command(folder.path());
    watching.args(["watch", "jobs"]);
    let output = run(watching.env("TIDINGS_URL", "").env("TIDINGS_TOKEN", ""));
    let said = text(&output.stderr);
    // Whoever listens there by default does not know us, or nobody does.
    assert!(matches!(output.status.code(), Some(3 | 5)), "{said}");
    assert!(
        said.contains("http://127.0.0.1:8000") || said.contains("HTTP 401"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_is_told_to_its_end_in_60_columns() {
    if !needs("script") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let mut watching = command(folder.path());
    watching
        .args(["watch", "jobs"])
        .env("TIDINGS_URL", &server.url)
        .env("TIDINGS_TOKEN", viewer(1));
    let mut terminal = in_terminal(&watching, "stty rows 24 cols 60; exec");
    let mut child = Guarded(
        terminal
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut out = Patient(child.0.stdout.take().unwrap());
    let streams = async || {
        let list = reqwest::Client::new()
            .get(format!("{}/metrics", server.url))
            .bearer_auth(admin());
        let text = list.send().await.unwrap().text().await.unwrap();
        text.lines()
            .any(|line| line.starts_with("tidings_streams") && line.ends_with(" 1"))
    };
    until("it watches", streams).await;
    server.kill();
    let seen = blocking(move || {
        let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
        let mut told = 0;
        // That it is lost, and then that the server cannot be reached.
        while told < 3 {
            let length = out.read(&mut part).unwrap();
            assert!(length > 0, "it ended: {}", text(&bytes));
            bytes.extend_from_slice(&part[..length]);
            let shown = console::strip_ansi_codes(&text(&bytes)).replace(['\r', '\n'], " ");
            let words: Vec<&str> = shown.split_whitespace().collect();
            told = words.join(" ").matches("trying again in").count();
        }
        text(&bytes)
    })
    .await;
    assert!(
        rows(&seen, 60)
            .iter()
            .any(|row| row.contains("cannot reach http://127.0.0.1:")),
        "{seen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_jobs_are_named_by_title_or_path_or_id() {
    let server = server().await;
    for (id, metadata, name) in [
        (
            "a",
            json!({"title": "Yearbook", "path": "/docs/y"}),
            "Yearbook",
        ),
        ("b", json!({"path": "/docs/z"}), "/docs/z"),
        ("c", json!({}), "c"),
        (
            "d",
            json!({"title": "\u{200b} \u{2060}", "path": "/docs/d"}),
            "/docs/d",
        ),
        (
            "e",
            json!({"title": "\u{1b}\u{7}", "path": "\u{ad}\u{3164}"}),
            "e",
        ),
        ("f", json!({"title": "\t\u{a0}", "path": ""}), "f"),
    ] {
        let body =
            json!({"job_id": id, "job_type": "t", "status": "in_progress", "metadata": metadata});
        server.report("/api/jobs", body).await;
        let path = format!("/api/jobs/{id}/complete");
        server.report(&path, json!({"message": "Bound"})).await;
        let mut watching = watch(&server, &[&format!("jobs/{id}")]);
        let output = blocking(move || run(&mut watching)).await;
        let line = format!("completed   100% {name}  Bound\n");
        assert_eq!(text(&output.stdout), line);
    }
}

/// What a terminal of so many columns shows, row by row: it begins a new one where the text does, or where one is full.
fn rows(output: &str, columns: usize) -> Vec<String> {
    let output = console::strip_ansi_codes(output);
    let mut rows = vec![String::new()];
    for character in output.chars() {
        let row = rows.last_mut().unwrap();
        let width = console::measure_text_width(character.encode_utf8(&mut [0; 4]));
        if character == '\n' || character == '\r' {
            rows.push(String::new());
        } else if console::measure_text_width(row) + width > columns {
            rows.push(character.into());
        } else {
            row.push(character);
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn bars_stay_in_view_in_24_rows_and_60_columns() {
    if !needs("script") {
        return;
    }
    let server = server().await;
    for number in 0..40 {
        let title = format!("{number} {}", "名簿".repeat(50));
        let body = json!({"job_id": format!("j{number}"), "job_type": "t", "status": "in_progress", "message": "word ".repeat(40), "metadata": {"title": title}});
        server.report("/api/jobs", body).await;
    }
    let watching = watch(&server, &["jobs"]);
    let mut terminal = in_terminal(&watching, "stty rows 24 cols 60; exec");
    let mut child = Guarded(
        terminal
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut out = Patient(child.0.stdout.take().unwrap());
    let seen = blocking(move || {
        let mut bytes = Vec::new();
        let mut part = [0; 4096];
        // 20 rows are for bars, of which the last counts the others.
        while !text(&bytes).contains("and 21 more (21 running)") {
            let length = out.read(&mut part).unwrap();
            assert!(length > 0, "it ended: {}", text(&bytes));
            bytes.extend_from_slice(&part[..length]);
        }
        text(&bytes)
    })
    .await;
    let rows = rows(&seen, 60);
    let is_cut = |row: &String| row.contains("名簿") && row.contains('…');
    assert!(rows.iter().any(is_cut), "{seen}");
    // A row that is wider than the terminal would go on in the next.
    for row in rows.iter().filter(|row| !row.trim().is_empty()) {
        let is_first = |first: char| first.is_ascii_digit();
        assert!(
            row.starts_with(is_first) || row.starts_with("and "),
            "{row:?}"
        );
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
    let mut lines = std::io::BufReader::new(Patient(child.0.stdout.take().unwrap())).lines();
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
    let (rest, said, code) = blocking(move || {
        let mut rest = Vec::new();
        loop {
            let message = next();
            let last = message["status"] == "completed";
            rest.push(message);
            if last {
                let mut said = String::new();
                let mut errors = Patient(child.0.stderr.take().unwrap());
                errors.read_to_string(&mut said).unwrap();
                return (rest, said, status_of(&mut child.0).code());
            }
        }
    })
    .await;
    assert_eq!(code, Some(0));
    let url = format!("http://127.0.0.1:{port}");
    let lost = format!("connection to {url} lost; trying again in");
    assert!(said.starts_with(&lost), "{said}");
    let back = format!("reconnected to {url}\n");
    assert!(said.ends_with(&back), "{said}");
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
    let (code, said) = blocking(move || {
        let mut process = Process::start(&mut demo);
        let mut said = String::new();
        process.stdout.read_to_string(&mut said).unwrap();
        (process.wait(), said)
    })
    .await;
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
    for arguments in [&["--help"][..], &["watch", "--help"]] {
        let help = text(&run(command(folder.path()).args(arguments)).stdout);
        assert!(help.contains("Exit codes:"), "{help}");
    }
    assert_eq!(
        run(command(folder.path()).arg("dance")).status.code(),
        Some(2)
    );
}
