//! The chaos run itself, which is a program of its own (`tests/chaos`): what it says when the server is not there any more.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::process::binary;
use crate::support::skip;

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
