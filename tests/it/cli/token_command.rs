//! `tidings token`: makes tokens with the secret of the server.

use std::path::Path;
use std::process::Output;

use serde_json::json;

use super::text;
use crate::support::process::{Process, command, run};
use crate::support::*;

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
        let stderr = text(&output.stderr);
        for word in [place.to_str().unwrap(), "--data-dir", "TIDINGS_DATA_DIR"] {
            assert!(stderr.contains(word), "{word}: {stderr}");
        }
    }
    assert_eq!(std::fs::read_dir(&here).unwrap().count(), 0);
    assert!(!elsewhere.exists());
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("jwt_secret"), SECRET).unwrap();
    assert!(make(&["--data-dir", &named]).status.success());
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
        let stderr = text(&output.stderr);
        assert!(stderr.contains(word), "{name}={value}: {stderr}");
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
