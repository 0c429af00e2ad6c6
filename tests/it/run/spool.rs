//! What could not be reported while the server was away is kept, and reported when it is back.

use std::net::TcpListener;
use std::path::Path;

use serde_json::json;
use tidings::auth::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::support::forwarder::Forwarder;
use crate::support::process::Process;

/// A server that is not there yet.
pub(super) struct Away {
    pub(super) folder: tempfile::TempDir,
    reserved: TcpListener,
    port: String,
    pub(super) url: String,
}

impl Away {
    pub(super) fn new() -> Away {
        let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = reserved.local_addr().unwrap().port().to_string();
        Away {
            folder: tempfile::tempdir().unwrap(),
            url: format!("http://127.0.0.1:{port}"),
            reserved,
            port,
        }
    }

    /// Runs a script while nobody answers. Returns what `tidings run` says about it.
    pub(super) async fn run(&self, options: &[&str], script: &str) -> String {
        let mut arguments = vec!["run", "--wait", "0"];
        arguments.extend(options);
        arguments.extend(["--", "sh", "-c", script]);
        let output = end_of(of(self.folder.path(), &self.url, &arguments), b"").await;
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
        text(&output.stderr)
    }

    /// Starts the server.
    pub(super) fn back(self) -> (tempfile::TempDir, Process, String) {
        drop(self.reserved);
        let server = Process::on_port(self.folder.path(), &self.port);
        (self.folder, server, self.url)
    }
}

/// Returns the command `tidings <arguments>` of a user whose home is below this folder.
pub(super) fn of(folder: &Path, url: &str, arguments: &[&str]) -> Command {
    let mut command = command(folder);
    command
        .args(arguments)
        .env("TIDINGS_URL", url)
        .env("TIDINGS_TOKEN", worker(1));
    command
}

/// Runs `tidings <arguments>`. Returns its exit code, and what it says on both outputs.
pub(super) async fn run_tidings(
    folder: &Path,
    url: &str,
    arguments: &[&str],
) -> (Option<i32>, String) {
    let output = end_of(of(folder, url, arguments), b"").await;
    let printed = text(&output.stdout) + &text(&output.stderr);
    (output.status.code(), printed)
}

pub(super) async fn jobs_at(url: &str) -> Vec<Value> {
    let request = reqwest::Client::new().get(format!("{url}/api/jobs"));
    let (status, list) = answer(request.bearer_auth(viewer(1))).await;
    assert_eq!(status, 200, "{list}");
    list["jobs"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_kept_until_the_server_is_there_and_reported_once() {
    let away = Away::new();
    let complaint = away
        .run(&["--type", "backup"], "echo 40/200 rows; exit 3")
        .await;
    assert!(complaint.contains("tidings spool send"), "{complaint}");
    let folder = away.folder.path();
    let (code, list) = run_tidings(folder, &away.url, &["spool", "list"]).await;
    assert_eq!((code, list.lines().count()), (Some(0), 1), "{list}");
    assert!(
        list.contains(&away.url) && list.contains("exited with code 3"),
        "{list}"
    );
    let (code, problem) = run_tidings(folder, "http://127.0.0.1:9", &["spool", "send"]).await;
    assert_eq!(
        (code, problem.as_str()),
        (Some(0), ""),
        "it is for another server"
    );
    let (folder, _server, url) = away.back();
    let (code, sent) = run_tidings(folder.path(), &url, &["spool", "send"]).await;
    assert_eq!((code, sent.as_str()), (Some(0), "1 reported\n"));
    let jobs = jobs_at(&url).await;
    let [job] = &jobs[..] else {
        panic!("{jobs:?}");
    };
    assert_eq!(
        (
            &job["job_type"],
            &job["status"],
            &job["progress"],
            &job["attempt"]
        ),
        (&json!("backup"), &json!("failed"), &json!(20.0), &json!(1))
    );
    assert_eq!(job["error"]["details"]["output"], "40/200 rows");
    assert!(job["metadata"]["ended_at"].is_string(), "{job}");
    for arguments in [["spool", "send"], ["spool", "list"]] {
        let nothing = run_tidings(folder.path(), &url, &arguments).await;
        assert_eq!(nothing, (Some(0), String::new()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_or_report_delivers_what_the_last_run_could_not() {
    let again = ["run", "--", "true"];
    let report = ["report", "start", "--type", "import"];
    for arguments in [&again[..], &report] {
        let away = Away::new();
        away.run(&["--id", "earlier"], "exit 3").await;
        let (folder, _server, url) = away.back();
        let (code, output) = run_tidings(folder.path(), &url, arguments).await;
        assert_eq!(code, Some(0), "{output}");
        let mut jobs = jobs_at(&url).await;
        jobs.retain(|job| job["job_id"] == "earlier");
        assert_eq!(jobs[0]["status"], "failed");
        let (_, list) = run_tidings(folder.path(), &url, &["spool", "list"]).await;
        assert_eq!(list, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runs_of_one_job_are_reported_in_order() {
    let away = Away::new();
    let options = ["--id", "nightly", "--type", "backup"];
    away.run(&options, "echo first; exit 3").await;
    away.run(&options, "echo second; exit 3").await;
    let (folder, _server, url) = away.back();
    let run = [
        "run", "--id", "nightly", "--type", "backup", "--", "echo", "third",
    ];
    let (code, output) = run_tidings(folder.path(), &url, &run).await;
    assert_eq!((code, output.as_str()), (Some(0), "third\n"));
    let jobs = jobs_at(&url).await;
    assert_eq!(
        (&jobs[0]["status"], &jobs[0]["attempt"], &jobs[0]["message"]),
        (&json!("completed"), &json!(3), &json!("third"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_job_that_has_been_started_is_reported_for_that_attempt() {
    let server = server().await;
    let network = Forwarder::to(&server);
    let mut run = run_script(&server, &["--wait", "1"], "echo 10%; read a; exit 3");
    let mut child = started(run.env("TIDINGS_URL", &network.url));
    job_when(&server, "progress", |job| job["progress"] == 10.0).await;
    network.cut(true);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = blocking(move || output_of(child)).await;
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(only_job(&server).await["status"], "in_progress");
    let folder = server.folder.path();
    let (code, problem) = run_tidings(folder, &network.url, &["spool", "send"]).await;
    assert_eq!(code, Some(5), "{problem}");
    network.cut(false);
    let (code, sent) = run_tidings(folder, &network.url, &["spool", "send"]).await;
    assert_eq!((code, sent.as_str()), (Some(0), "1 reported\n"));
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["attempt"]),
        (&json!("failed"), &json!(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_attempt_is_left_alone_and_so_is_the_outcome_of_another_user() {
    let away = Away::new();
    away.run(&["--id", "nightly"], "exit 3").await;
    let (folder, _server, url) = away.back();
    let mut other = of(folder.path(), &url, &["spool", "send"]);
    other.env("TIDINGS_TOKEN", sign(&claims(Some(2), Role::Worker)));
    let output = end_of(other, b"").await;
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(0), "")
    );
    let request = reqwest::Client::new().post(format!("{url}/api/jobs/nightly/start"));
    let start = request.json(&json!({"job_type": "backup"}));
    let (status, started) = answer(start.bearer_auth(worker(1))).await;
    assert_eq!(status, 200, "{started}");
    let (code, stderr) = run_tidings(folder.path(), &url, &["spool", "send"]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("the job nightly"), "{stderr}");
    let jobs = jobs_at(&url).await;
    assert_eq!(
        (&jobs[0]["status"], &jobs[0]["attempt"]),
        (&json!("in_progress"), &json!(1))
    );
    let (_, list) = run_tidings(folder.path(), &url, &["spool", "list"]).await;
    assert_eq!(list, "", "it is of no use any more");
}

/// Posts to the job of the server at this URL, as its worker.
async fn act(url: &str, verb: &str, body: Value) {
    let request = reqwest::Client::new().post(format!("{url}/api/jobs/nightly/{verb}"));
    let (status, response) = answer(request.json(&body).bearer_auth(worker(1))).await;
    assert!(status < 300, "{verb}: {response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_queued_for_another_worker_is_not_begun() {
    let away = Away::new();
    away.run(&["--id", "nightly", "--type", "backup"], "exit 3")
        .await;
    let (folder, _server, url) = away.back();
    act(&url, "start", json!({"job_type": "backup"})).await;
    act(
        &url,
        "fail",
        json!({"error": {"code": "broken", "message": "It broke."}}),
    )
    .await;
    act(&url, "retry", json!({})).await;
    let (code, output) = run_tidings(folder.path(), &url, &["spool", "send"]).await;
    assert_eq!(code, Some(1), "{output}");
    let jobs = jobs_at(&url).await;
    assert_eq!(
        (&jobs[0]["status"], &jobs[0]["attempt"]),
        (&json!("queued"), &json!(2))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_answers_in_the_place_of_the_server_deletes_nothing() {
    let away = Away::new();
    away.run(&["--id", "nightly"], "exit 3").await;
    let Away {
        folder,
        reserved,
        url,
        ..
    } = away;
    reserved.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(reserved).unwrap();
    let proxy = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 16 * 1024];
            let _length = stream.read(&mut request).await.unwrap();
            let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\nConnection: close\r\n\r\n404 page not found\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let (code, output) = run_tidings(folder.path(), &url, &["spool", "send"]).await;
    proxy.abort();
    assert_ne!(code, Some(0), "{output}");
    let (_, list) = run_tidings(folder.path(), &url, &["spool", "list"]).await;
    assert_eq!(list.lines().count(), 1, "{list}");
}
