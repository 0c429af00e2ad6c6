//! The README's own commands, run as they stand there.

use std::process::Stdio;

use crate::support::needs;
use crate::support::page::{blocks, shell};
use crate::support::process::{Patient, Process, command, run};

/// Publish in one terminal, watch in another: both are the README's.
#[test]
fn the_curl_pair_of_the_readme_works() {
    if !needs("curl") || !needs("bash") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    let shell = |script: &str| shell(folder.path(), script, &server.url);
    let readme = blocks("README.md", "sh");
    let (subscribe, publish) = (&readme[1], &readme[2]);
    assert!(
        subscribe.contains("curl -N") && publish.contains("/complete"),
        "the README's blocks have moved"
    );
    // The watcher first; `head` ends it after the job's end, the last of what it will hear.
    let mut watching = shell(&subscribe.replace("curl -N", "curl --no-progress-meter -N"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = Patient(watching.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    assert!(lines.any(|line| line.unwrap().contains("\"type\":\"ready\"")));
    let published = run(&mut shell(publish));
    assert!(
        published.status.success(),
        "{}",
        String::from_utf8_lossy(&published.stderr)
    );
    assert!(lines.any(|line| line.unwrap().contains("\"status\":\"completed\"")));
    watching.kill().unwrap();
    watching.wait().unwrap();
}

/// A run from its start to its exit code, with a key that the command line asks the server for.
#[test]
fn the_ping_of_the_readme_reports_a_run() {
    if !needs("curl") || !needs("bash") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    let readme = blocks("README.md", "sh");
    let ping = readme.iter().find(|block| block.contains("--ping"));
    let mut script = shell(folder.path(), ping.unwrap(), &server.url);
    let ran = run(script.env("TIDINGS_URL", &server.url));
    assert!(ran.status.success(), "{ran:?}");
    let list = r#"curl -sS -H "Authorization: Bearer $(tidings token --school 1 --role viewer)" "http://127.0.0.1:8000/api/jobs""#;
    let jobs = run(&mut shell(folder.path(), list, &server.url));
    let jobs: serde_json::Value = serde_json::from_slice(&jobs.stdout).unwrap();
    let jobs = jobs["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 1);
    assert_eq!(
        (&jobs[0]["job_type"], &jobs[0]["status"]),
        (&"usage".into(), &"completed".into())
    );
}
