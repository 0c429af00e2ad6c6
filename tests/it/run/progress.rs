//! What the server learns while a command runs.

use serde_json::json;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_read_from_the_output_and_the_last_line_is_the_message() {
    let server = server().await;
    let script = "echo '[ 12/48] Linking'; read line; echo 'disk usage is 93%'; read line";
    let mut child = started(&mut run_script(&server, &[], script));
    let job = job_when(&server, "progress", |job| job["progress"] == 25.0).await;
    assert_eq!(job["message"], "[ 12/48] Linking");
    assert_eq!(job["metadata"]["progress_source"], "bar");
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"\n").unwrap();
    let job = job_when(&server, "a message", |job| {
        job["message"] == "disk usage is 93%"
    })
    .await;
    assert_eq!(job["progress"], 25.0);
    input.write_all(b"\n").unwrap();
    assert!(status_of(&mut child).success());
    assert_eq!(only_job(&server).await["progress"], 100.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_reports_on_a_file_descriptor_or_in_a_file() {
    for (options, script) in [
        (
            ["--fd", "3"],
            "echo '40/200 Reading rows' >&3; echo '99%'; read line",
        ),
        (
            ["--progress-file", "how-far"],
            "echo '40/200 Reading rows' >how-far; read line; echo '99%'",
        ),
    ] {
        let server = server().await;
        let mut child = started(&mut run_script(&server, &options, script));
        let job = job_when(&server, "progress", |job| job["progress"] == 20.0).await;
        assert_eq!(job["metadata"]["progress_source"], "script");
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(status_of(&mut child).success());
    }
}

/// GNU tar, which can run a command after so many records of 10 KiB each.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_reports_on_a_file_descriptor_by_its_own_hooks() {
    let server = server().await;
    let file = std::fs::File::create(server.folder.path().join("rows")).unwrap();
    file.set_len(200 * 10 * 1024).unwrap();
    let mut tar = tidings(&server, &["run", "--fd", "3", "--", "tar"]);
    let action = "--checkpoint-action=exec=echo \"$TAR_CHECKPOINT/200 records\" >&3; read line";
    tar.args(["--checkpoint=50", action, "-cf", "rows.tar", "rows"]);
    let mut child = started(&mut tar);
    let mut input = child.stdin.take().unwrap();
    for percent in [25.0, 50.0, 75.0, 100.0] {
        let job = job_when(&server, "progress", |job| job["progress"] == percent).await;
        let source = &job["metadata"]["progress_source"];
        assert_eq!(
            (source, &job["status"]),
            (&json!("script"), &json!("in_progress"))
        );
        input.write_all(b"\n").unwrap();
    }
    assert!(status_of(&mut child).success());
    assert_eq!(only_job(&server).await["status"], "completed");
    let length = std::fs::metadata(server.folder.path().join("rows.tar"))
        .unwrap()
        .len();
    assert!(length > 200 * 10 * 1024, "{length}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_that_is_in_use_is_rejected_before_anything_runs() {
    let server = server().await;
    let run = run_script(&server, &["--fd", "3"], "echo ran");
    let mut outer = Command::new("sh");
    outer.args(["-c", "exec \"$@\" 3</dev/null", "sh"]);
    outer.arg(run.get_program()).args(run.get_args());
    for (name, value) in run.get_envs() {
        outer.env(name, value.unwrap_or_default());
    }
    let output = end_of(outer, b"").await;
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    assert!(
        text(&output.stderr).contains("3 is in use"),
        "{}",
        text(&output.stderr)
    );
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_silent_command_is_as_far_as_it_has_read_its_largest_input() {
    let server = server().await;
    std::fs::write(server.folder.path().join("input"), vec![0; 8_000_000]).unwrap();
    let script = "exec <input; head -c 2000000 >/dev/null; read line <go";
    let folder = server.folder.path();
    assert!(
        Command::new("mkfifo")
            .arg(folder.join("go"))
            .status()
            .unwrap()
            .success()
    );
    let mut child = started(&mut run_script(&server, &[], script));
    let job = job_when(&server, "progress", |job| {
        job["progress"].as_f64() > Some(0.0)
    })
    .await;
    let progress = job["progress"].as_f64().unwrap();
    assert!((25.0..26.0).contains(&progress), "{progress}");
    assert_eq!(job["metadata"]["progress_source"], "input");
    std::fs::write(folder.join("go"), "\n").unwrap();
    assert!(status_of(&mut child).success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_silent_command_gives_signs_of_life_and_its_progress_is_unknown() {
    let server = server().await;
    let mut child = started(&mut run_script(&server, &[], "read line"));
    let job = job_when(&server, "the first report", |job| {
        job["status"] == "in_progress" && job["progress"].is_null()
    })
    .await;
    let id = job["job_id"].as_str().unwrap();
    let heard =
        async || server.get(&format!("/api/jobs/{id}"), &viewer(1)).await.1["heard_at"].clone();
    let first = heard().await;
    until("a sign of life", async || heard().await != first).await;
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(status_of(&mut child).success());
    assert_eq!(only_job(&server).await["result"], json!({"exit_code": 0}));
}
