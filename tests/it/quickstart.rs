//! The README's own commands, run as they stand there.

use std::process::{Command, Stdio};

use crate::support::process::{Process, binary, command};
use crate::support::*;

/// The `n`th shell block of the README.
fn block(number: usize) -> String {
    let readme = include_str!("../../README.md");
    let blocks: Vec<&str> = readme
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    blocks[number].to_owned()
}

/// Publish in one terminal, watch in another: both are the README's.
#[test]
fn the_curl_pair_of_the_readme_works() {
    if !needs("curl") || !needs("bash") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    let path = format!(
        "{}:{}",
        binary().parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let shell = |script: String| {
        let script = script.replace("http://127.0.0.1:8000", &server.url);
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", &script])
            .current_dir(folder.path())
            .env("PATH", &path);
        for (name, value) in command(folder.path()).get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell
    };
    let (subscribe, publish) = (block(1), block(2));
    assert!(
        subscribe.contains("curl -N") && publish.contains("/complete"),
        "the README's blocks have moved"
    );
    // The watcher first; `head` ends it after the job's end, the last of what it will hear.
    let mut watching = shell(subscribe.replace("curl -N", "curl --no-progress-meter -N"))
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
