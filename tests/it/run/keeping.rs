//! What is kept while the server is away: the ends of scripts, and what becomes of them and of those that cannot be sent.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tidings::auth::Role;

use super::spool::{Away, jobs_at, of, run_tidings};
use super::*;
use crate::support::forwarder::Forwarder;
use crate::support::process::{Process, set_clock, with_clock};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn the_end_of_a_script_is_kept_and_reported_when_the_server_is_back() {
    let away = Away::new();
    let folder = away.folder.path();
    let ok = [
        "report",
        "ok",
        "All",
        "rows",
        "--id",
        "good",
        "--type",
        "import",
        "--result",
        r#"{"rows":7}"#,
    ];
    let fail = [
        "report", "fail", "No space", "--id", "bad", "--type", "import", "--strict",
    ];
    let progress = ["report", "10%", "--id", "on", "--type", "import"];
    let (ok, fail, progress) = tokio::join!(
        run_tidings(folder, &away.url, &ok),
        run_tidings(folder, &away.url, &fail),
        run_tidings(folder, &away.url, &progress),
    );
    assert_eq!((ok.0, fail.0, progress.0), (Some(0), Some(5), Some(0)));
    for (_, output) in [&ok, &fail] {
        assert!(output.contains("kept for the next"), "{output}");
        assert_eq!(output.lines().count(), 1, "{output}");
    }
    assert!(!progress.1.contains("kept"), "{}", progress.1);
    let (_, list) = run_tidings(folder, &away.url, &["spool", "list"]).await;
    for line in ["good completed\n", "bad failed: No space\n"] {
        assert!(list.contains(line), "{list}");
    }
    assert_eq!(list.lines().count(), 2, "{list}");
    let (folder, _server, url) = away.back();
    let (code, sent) = run_tidings(folder.path(), &url, &["spool", "send"]).await;
    assert_eq!((code, sent.as_str()), (Some(0), "2 reported\n"));
    for job in jobs_at(&url).await {
        assert_eq!(
            (&job["job_type"], &job["attempt"]),
            (&json!("import"), &json!(1))
        );
        match job["job_id"].as_str() {
            Some("good") => assert_eq!(
                (&job["status"], &job["message"], &job["result"]),
                (&json!("completed"), &json!("All rows"), &json!({"rows": 7}))
            ),
            _ => assert_eq!(
                (&job["status"], &job["error"]["message"]),
                (&json!("failed"), &json!("No space"))
            ),
        }
    }
    let (_, list) = run_tidings(folder.path(), &url, &["spool", "list"]).await;
    assert_eq!(list, "");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn the_end_of_a_script_is_reported_before_the_job_is_started_again() {
    let server = server().await;
    let network = Forwarder::to(&server);
    let folder = server.folder.path();
    let start = ["report", "start", "--type", "import", "--id", "nightly"];
    let (code, _) = run_tidings(folder, &network.url, &start).await;
    assert_eq!(code, Some(0));
    network.cut(true);
    let fail = ["report", "fail", "--id", "nightly", "--attempt", "1"];
    let (_, output) = run_tidings(folder, &network.url, &fail).await;
    assert!(output.contains("kept for the next"), "{output}");
    network.cut(false);
    let other = ["report", "start", "--type", "import", "--id", "other"];
    let (code, output) = run_tidings(folder, &network.url, &other).await;
    assert_eq!(code, Some(0), "{output}");
    let (_, job) = server.get("/api/jobs/nightly", &viewer(1)).await;
    assert_eq!(job["status"], "failed");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_kept_end_without_an_attempt_does_not_end_what_has_begun_since() {
    let server = server().await;
    let network = Forwarder::to(&server);
    let folder = server.folder.path();
    network.cut(true);
    let fail = ["report", "fail", "--id", "nightly", "--type", "import"];
    let (_, output) = run_tidings(folder, &network.url, &fail).await;
    assert!(output.contains("kept for the next"), "{output}");
    network.cut(false);
    server.running_job("nightly").await;
    let (code, output) = run_tidings(folder, &network.url, &["spool", "send"]).await;
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("something newer has happened"), "{output}");
    assert_eq!(only_job(&server).await["status"], "in_progress");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_read_is_not_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let parent = folder.path().join("state/tidings");
    std::fs::create_dir_all(&parent).unwrap();
    std::fs::write(parent.join("spool"), "not a folder").unwrap();
    for verb in ["list", "send"] {
        let (code, output) =
            run_tidings(folder.path(), "http://127.0.0.1:9", &["spool", verb]).await;
        assert_eq!(code, Some(1), "{output}");
        assert!(output.starts_with("tidings: cannot read "), "{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_token_must_not_send_is_said_and_listed() {
    let away = Away::new();
    away.run(&["--id", "nightly"], "exit 3").await;
    let folder = away.folder.path();
    let other = async |arguments: &[&str]| {
        let mut command = of(folder, &away.url, arguments);
        command.env("TIDINGS_TOKEN", sign(&claims(Some(2), Role::Worker)));
        let output = end_of(command, b"").await;
        assert_eq!(output.status.code(), Some(0));
        text(&output.stdout) + &text(&output.stderr)
    };
    let why = "not for this token, which differs in: school, school_id";
    let list = other(&["spool", "list"]).await;
    assert!(list.ends_with(&format!("({why})\n")), "{list}");
    let output = other(&["spool", "send"]).await;
    assert_eq!(output, format!("tidings: 1 is still kept: {why}\n"));
    let (_, list) = run_tidings(folder, &away.url, &["spool", "list"]).await;
    assert!(list.ends_with("exited with code 3\n"), "{list}");
}

/// A server that can be stopped, so that no request is under way to it any more.
struct Stoppable {
    folder: tempfile::TempDir,
    url: String,
    server: Process,
}

impl Stoppable {
    fn start() -> Stoppable {
        let (folder, server, url) = Away::new().back();
        Stoppable {
            folder,
            url,
            server,
        }
    }

    async fn stop(mut self) -> Stoppable {
        blocking(move || {
            assert_eq!(self.server.terminate(), Some(0));
            self
        })
        .await
    }

    async fn start_again(mut self) -> Stoppable {
        blocking(move || {
            let (_, port) = self.url.rsplit_once(':').unwrap();
            self.server = Process::on_port(self.folder.path(), port);
            self
        })
        .await
    }

    async fn act(&self, id: &str, verb: &str, body: Value) -> Value {
        let url = format!("{}/api/jobs/{id}/{verb}", self.url);
        let request = reqwest::Client::new().post(url).json(&body);
        let (status, response) = answer(request.bearer_auth(worker(1))).await;
        assert!(status < 300, "{verb}: {response}");
        response
    }

    async fn job(&self, id: &str) -> Value {
        let mut jobs = jobs_at(&self.url).await;
        jobs.retain(|job| job["job_id"] == id);
        jobs.remove(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_an_earlier_attempt_ended_does_not_count_for_one_that_others_began() {
    let server = Stoppable::start();
    let run = [
        "run", "--wait", "0", "--id", "j", "--type", "t", "--", "false",
    ];
    let first = ["run", "--id", "j", "--type", "t", "--", "false"];
    let (code, output) = run_tidings(server.folder.path(), &server.url, &first).await;
    assert_eq!((code, output.as_str()), (Some(1), ""));
    assert_eq!(server.job("j").await["metadata"]["ended_attempt"], 1);
    let server = server.stop().await;
    let (code, output) = run_tidings(server.folder.path(), &server.url, &run).await;
    assert_eq!(code, Some(1));
    assert!(output.contains("kept for the next"), "{output}");
    let server = server.start_again().await;
    for (verb, body) in [
        ("retry", json!({})),
        ("start", json!({})),
        (
            "fail",
            json!({"error": {"code": "x", "message": "Of others"}}),
        ),
    ] {
        server.act("j", verb, body).await;
    }
    let (code, output) = run_tidings(server.folder.path(), &server.url, &["spool", "send"]).await;
    assert_eq!(code, Some(1), "{output}");
    let job = server.job("j").await;
    assert_eq!(
        (&job["attempt"], &job["error"]["message"]),
        (&json!(2), &json!("Of others"))
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_command_that_ends_before_its_progress_is_reported_says_how_it_was_read() {
    let server = server().await;
    let network = Forwarder::to(&server);
    network.cut(true);
    let script = "echo 40/200; echo $$ >writing; mv writing pid";
    let mut run = run_script(&server, &["--wait", "60"], script);
    run.env("TIDINGS_URL", &network.url);
    let ends = tokio::spawn(end_of(run, b""));
    let pid = server.folder.path().join("pid");
    until("the command runs", async || pid.exists()).await;
    let pid = std::fs::read_to_string(pid).unwrap();
    until("the command has ended", async || {
        let mut signal = Command::new("kill");
        signal.args(["-0", pid.trim()]).stderr(Stdio::null());
        !signal.status().unwrap().success()
    })
    .await;
    // The start is tried again, so that its end is known before anything arrives.
    let cuts = network.cuts();
    until("later tries", async || network.cuts() > cuts + 1).await;
    assert!(jobs(&server).await.is_empty());
    network.cut(false);
    let output = ends.await.unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stderr).as_str()),
        (Some(0), "")
    );
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["metadata"]["progress_source"]),
        (&json!("completed"), &json!("bar"))
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn what_is_newer_does_not_depend_on_the_clock_of_the_machine() {
    if !needs("cc") {
        return;
    }
    for offset_secs in [-86_400, 86_400] {
        let server = Stoppable::start();
        let clock = server.folder.path().join("clock");
        set_clock(&clock, offset_secs);
        let end = async |server: &Stoppable, arguments: &[&str]| {
            let mut command = of(server.folder.path(), &server.url, arguments);
            with_clock(&mut command, &clock);
            let output = end_of(command, b"").await;
            let printed = text(&output.stdout) + &text(&output.stderr);
            (output.status.code(), printed)
        };
        let fail = async |server: &Stoppable, id: &str| {
            server.act(id, "start", json!({"job_type": "t"})).await;
            let error = json!({"error": {"code": "x", "message": "Of others"}});
            let failed = server.act(id, "fail", error).await;
            DateTime::parse_from_rfc3339(failed["timestamp"].as_str().unwrap()).unwrap()
        };
        let failed_at = fail(&server, "before").await;
        // The server tells its time in whole seconds.
        until("the run is later", async || {
            Utc::now() - failed_at.to_utc() > TimeDelta::seconds(2)
        })
        .await;
        let server = server.stop().await;
        for id in ["before", "since"] {
            let run = [
                "run", "--wait", "0", "--id", id, "--type", "t", "--", "false",
            ];
            let (code, stderr) = end(&server, &run).await;
            assert_eq!(code, Some(1), "{stderr}");
            assert!(stderr.contains("kept for the next"), "{stderr}");
        }
        let server = server.start_again().await;
        fail(&server, "since").await;
        let (code, stderr) = end(&server, &["spool", "send"]).await;
        assert_eq!(code, Some(1), "{stderr}");
        assert!(
            stderr.contains("outcome of the job since could not be reported"),
            "{stderr}"
        );
        for (id, attempt, message) in [
            ("before", 2, "exited with code 1"),
            ("since", 1, "Of others"),
        ] {
            let job = server.job(id).await;
            assert_eq!(
                (&job["attempt"], &job["error"]["message"]),
                (&json!(attempt), &json!(message)),
                "{id}, {offset_secs}: {stderr}"
            );
        }
    }
}
