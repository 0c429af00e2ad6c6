//! Outcomes that the server refuses, and starts that it never hears of.

use serde_json::json;

use super::spool::run_tidings;
use super::*;
use crate::support::forwarder::Forwarder;

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_the_server_rejects_is_not_kept_and_its_reason_is_said() {
    let server = server().await;
    let done = server.folder.path().join("done");
    let script = format!(
        "echo 10%; until test -e {}; do sleep 0.05; done; echo 40/200; exit 3",
        done.display()
    );
    let run = tokio::spawn(end_of(
        run_script(&server, &["--id", "nightly"], &script),
        b"",
    ));
    job_when(&server, "it has begun", |job| job["progress"] == 10.0).await;
    server.report("/api/jobs/nightly/complete", json!({})).await;
    std::fs::write(&done, "").unwrap();
    let output = run.await.unwrap();
    assert_eq!(output.status.code(), Some(3));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("already completed"), "{stderr}");
    assert!(!stderr.contains("kept"), "{stderr}");
    let folder = server.folder.path();
    let list = run_tidings(folder, &server.url, &["spool", "list"]).await;
    assert_eq!(list, (Some(0), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_start_that_is_lost_leaves_no_attempt_of_an_earlier_job() {
    let server = server().await;
    let network = Forwarder::to(&server);
    let folder = server.folder.path();
    network.cut(true);
    let start = ["report", "start", "--type", "import", "--id", "b"];
    let (code, output) = run_tidings(folder, &network.url, &start).await;
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(" TIDINGS_ATTEMPT=\n"), "{output}");
    network.cut(false);
    let (_, output) = run_tidings(folder, &network.url, &start).await;
    assert!(output.ends_with(" TIDINGS_ATTEMPT=1\n"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_job_that_the_server_has_lost_is_that_of_the_one_that_is_created() {
    let server = server().await;
    let ok = [
        "report",
        "ok",
        "--id",
        "gone",
        "--type",
        "import",
        "--attempt",
        "3",
    ];
    let (code, output) = run_tidings(server.folder.path(), &server.url, &ok).await;
    assert_eq!((code, output.as_str()), (Some(0), ""));
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["attempt"]),
        (&json!("completed"), &json!(1))
    );
}

/// Such as after the loss of its disk. The second attempt of the job becomes the first one of a new job.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_job_the_server_has_lost_is_reported_anew() {
    let (before, after) = (server().await, server().await);
    before.running_job("nightly").await;
    let network = Forwarder::to(&before);
    let done = before.folder.path().join("done");
    let script = format!(
        "echo 10%; until test -e {}; do sleep 0.05; done; echo 40%; exit 3",
        done.display()
    );
    let mut run = run_script(&before, &["--id", "nightly", "--type", "test"], &script);
    run.env("TIDINGS_URL", &network.url);
    let run = tokio::spawn(end_of(run, b""));
    let has_begun = |job: &Value| job["progress"] == 10.0;
    let job = job_when(&before, "it has begun", has_begun).await;
    assert_eq!(job["attempt"], 2, "{job}");
    network.redirect(&after);
    std::fs::write(&done, "").unwrap();
    let output = run.await.unwrap();
    assert_eq!(output.status.code(), Some(3));
    let job = only_job(&after).await;
    let expected = (&json!("failed"), &json!(1), &json!(40.0));
    assert_eq!(
        (&job["status"], &job["attempt"], &job["progress"]),
        expected
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn ends_of_which_the_attempt_is_unknown_are_all_kept() {
    let server = server().await;
    let network = Forwarder::to(&server);
    let folder = server.folder.path();
    network.cut(true);
    for end in ["ok", "fail"] {
        let report = ["report", end, "--id", "nightly", "--type", "import"];
        let (_, output) = run_tidings(folder, &network.url, &report).await;
        assert!(output.contains("kept for the next"), "{output}");
    }
    network.cut(false);
    let (_, list) = run_tidings(folder, &network.url, &["spool", "list"]).await;
    assert_eq!(list.lines().count(), 2, "{list}");
}
