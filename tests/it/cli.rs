//! The command line, as a person and a script use it: usage, settings and the demo.

mod output;
mod token_command;
mod watch;

use std::io::Read;

use serde_json::{Value, json};

use crate::support::process::{Process, blocking, command, run};
use crate::support::*;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
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
        let stderr = text(&output.stderr).to_lowercase();
        assert!(stderr.contains(word), "{name}={value}: {stderr}");
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
    let stderr = text(&run(command(folder.path()).arg("serve")).stderr);
    assert!(
        stderr.contains("heartbeets") && stderr.contains("Rocket.toml"),
        "{stderr}"
    );
}

#[test]
fn an_address_in_use_is_reported() {
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
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{scope}: {stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
    }
    for cursor in ["zzz", "1-2", "", "0123456789abcdef-x"] {
        let mut watching = command(folder.path());
        watching.args(["watch", "jobs", "--url", &nobody, "--cursor", cursor]);
        let output = run(&mut watching);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{cursor}: {stderr}");
        assert!(stderr.contains("<epoch>-<seq>-<tag>"), "{stderr}");
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
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{url}: {stderr}");
        assert!(stderr.contains("from 1 to 65535"), "{stderr}");
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
    let (code, stdout) = blocking(move || {
        let mut process = Process::start(&mut demo);
        let mut stdout = String::new();
        process.stdout.read_to_string(&mut stdout).unwrap();
        (process.wait(), stdout)
    })
    .await;
    assert_eq!(code, Some(0), "{stdout}");
    assert!(
        stdout.contains("curl -N 'http://127.0.0.1:") && stdout.contains(" watch jobs"),
        "{stdout}"
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
