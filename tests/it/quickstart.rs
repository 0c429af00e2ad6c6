//! The README's own commands, run as they stand there.

use std::process::Stdio;

use crate::support::needs;
use crate::support::page::{blocks, shell};
use crate::support::process::{Process, command};

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
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(watching.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("\"type\":\"ready\"")));
    let published = shell(publish).output().unwrap();
    assert!(
        published.status.success(),
        "{}",
        String::from_utf8_lossy(&published.stderr)
    );
    assert!(lines.any(|line| line.unwrap().contains("\"status\":\"completed\"")));
    watching.kill().unwrap();
    watching.wait().unwrap();
}
