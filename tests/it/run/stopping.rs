//! Cancelling, and the signals that `run` gets.

use std::os::unix::process::ExitStatusExt;

use serde_json::json;

use super::*;

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

async fn cancel(server: &Server) {
    let job = job_when(server, "it runs", |job| job["status"] == "in_progress").await;
    let path = format!("/api/jobs/{}/cancel", job["job_id"].as_str().unwrap());
    let (status, answer) = server.post(&path, &worker(1), json!({})).await;
    assert_eq!(
        (status, &answer["cancel_requested"]),
        (200, &json!(true)),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_request_to_cancel_reaches_the_command_as_sigterm_with_its_children() {
    let server = server().await;
    let child = started(&mut run_script(&server, &[], "sleep 600; echo after"));
    cancel(&server).await;
    let output = blocking(move || output_of(child)).await;
    assert_eq!(
        (output.status.signal(), text(&output.stdout).as_str()),
        (Some(15), "")
    );
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["error"]["code"]),
        (&json!("cancelled"), &json!("cancelled"))
    );
    assert_eq!(job["metadata"]["signal"], "SIGTERM");
    assert!(job["metadata"]["wall_secs"].is_number());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_command_that_does_not_stop_is_killed() {
    let server = server().await;
    let script = "trap '' TERM; while true; do sleep 0.1; done";
    let mut child = started(&mut run_script(&server, &["--kill-after", "1"], script));
    cancel(&server).await;
    let status = blocking(move || status_of(&mut child)).await;
    assert_eq!(status.signal(), Some(9));
    assert_eq!(only_job(&server).await["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_run_reaches_the_command_and_the_job_is_cancelled() {
    for (name, code) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let server = server().await;
        let script = format!(
            "trap 'echo got it; exit {code}' {name}; echo ready; while true; do sleep 0.05; done"
        );
        let mut child = started(&mut run_script(&server, &[], &script));
        read_until(child.stdout.as_mut().unwrap(), "ready\n");
        signal(&child, name);
        let output = blocking(move || output_of(child)).await;
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str()),
            (Some(code), "got it\n"),
            "{name}"
        );
        let job = only_job(&server).await;
        assert_eq!(
            (&job["status"], &job["metadata"]["exit_code"]),
            (&json!("cancelled"), &json!(code))
        );
        assert_eq!(job["message"], format!("Ended by SIG{name}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_signals_are_passed_on_and_end_nothing() {
    let server = server().await;
    let script = "trap 'echo usr1; stopped=1' USR1; echo ready; while [ -z \"$stopped\" ]; do sleep 0.05; done; echo after";
    let mut child = started(&mut run_script(&server, &[], script));
    read_until(child.stdout.as_mut().unwrap(), "ready\n");
    signal(&child, "USR1");
    read_until(child.stdout.as_mut().unwrap(), "usr1\nafter\n");
    assert!(status_of(&mut child).success());
    assert_eq!(only_job(&server).await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_is_ignored_stays_ignored() {
    let server = server().await;
    let run = run_script(&server, &[], "kill -s HUP $$; echo survived");
    let mut outer = Command::new("nohup");
    outer.arg(run.get_program()).args(run.get_args());
    for (name, value) in run.get_envs() {
        outer.env(name, value.unwrap_or_default());
    }
    let output = end_of(outer, b"").await;
    assert_eq!(text(&output.stdout), "survived\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_completes_although_it_was_to_stop_is_cancelled_and_says_how_it_ended() {
    let server = server().await;
    let script = "trap 'exit 0' TERM; echo ready; while true; do sleep 0.05; done";
    let mut child = started(&mut run_script(&server, &[], script));
    read_until(child.stdout.as_mut().unwrap(), "ready\n");
    cancel(&server).await;
    let status = blocking(move || status_of(&mut child)).await;
    assert_eq!(status.code(), Some(0));
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["metadata"]["exit_code"]),
        (&json!("cancelled"), &json!(0))
    );
}
