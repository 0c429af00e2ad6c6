//! The chaos run itself, which is a program of its own (`tests/chaos`): what it says when the server is not there any more.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::process::binary;
use crate::support::{needs, skip};

/// Longer than a run takes to see that its server is gone, shorter than a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server that starts once, and not again.
fn starts_once(folder: &Path) -> std::path::PathBuf {
    let program = folder.join("starts-once");
    let script = format!(
        "#!/bin/sh\nif mkdir '{}' 2>/dev/null; then exec '{}' \"$@\"; fi\necho 'no further start' >&2\nexit 7\n",
        folder.join("started").display(),
        binary().display(),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chaos_run_whose_server_does_not_start_again_ends_and_says_why() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let mut websockets = Command::new(&python);
    let found = websockets.args(["-c", "import websockets"]).output();
    if !found.is_ok_and(|output| output.status.success()) && !skip("Python's websockets") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut run = tokio::process::Command::new(&python);
    run.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/run.py"))
        .args([
            "--faults",
            "kill",
            "--seconds",
            "600",
            "--seed",
            "1",
            "--binary",
        ])
        .arg(starts_once(folder.path()))
        // Where it leaves what it found.
        .env("TMPDIR", folder.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, run.output()).await;
    let output = output.expect("the run ends").unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let broken = told.split_once("BROKEN (seed 1): ").expect(&told).1;
    assert!(broken.contains("start 2 ended with exit code 7"), "{told}");
    assert!(broken.contains("no further start"), "{told}");
}

/// A power loss takes events that some have received. What is heard of the life before, later, says nothing of the present one.
#[test]
fn an_event_of_a_lost_life_that_is_heard_late_is_not_asked_for_in_the_next_one() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    if !needs(&python) {
        return;
    }
    let story = r#"
from ledger import Reading, School
from types import SimpleNamespace

def event(epoch, seq, job):
    return {"type": "job_progress", "cursor": f"{epoch}-{seq}", "seq": seq, "school_id": 1, "job_id": job, "status": "in_progress"}

school = School(1)
reading = Reading(school, SimpleNamespace(is_all_jobs=True), True, "reader")
school.saw(event("before", 2, "lost"))
for seq, job in [(1, "a"), (2, "b")]:
    school.saw(event("now", seq, job))
school.saw(event("before", 2, "lost"))
reading.connected("sse", None)
for seq, job in [(1, "a"), (2, "b")]:
    reading.take(event("now", seq, job) | {"snapshot": True}, None)
reading.take({"type": "ready", "cursor": "now-2"}, None)
"#;
    let mut told = Command::new(python);
    told.args(["-c", story])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env(
            "PYTHONPATH",
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos"),
        );
    let output = told.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
