//! The command is what it would be without `tidings run`: exit code, signals, input, outputs.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use serde_json::json;
use tidings::auth::Role;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_and_the_outputs_are_the_commands_own_and_the_job_ends_as_it_did() {
    for code in [0, 1, 3, 255] {
        let server = server().await;
        let script = format!("echo out; echo err >&2; exit {code}");
        let output = end_of(
            run_script(
                &server,
                &["--type", "backup", "--title", "Nightly"],
                &script,
            ),
            b"",
        )
        .await;
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(text(&output.stdout), "out\n");
        assert_eq!(text(&output.stderr), "err\n");
        let job = only_job(&server).await;
        assert_eq!(job["job_type"], "backup");
        let metadata = &job["metadata"];
        assert_eq!(
            (&metadata["title"], &metadata["command"]),
            (&json!("Nightly"), &json!("sh"))
        );
        assert!(metadata["wall_secs"].as_f64().unwrap() > 0.0);
        assert!(metadata["cpu_user_secs"].is_number() && metadata["cpu_system_secs"].is_number());
        // It was too quick to be looked at, or it is that of the shell, not of `run`.
        let memory = metadata["peak_memory_bytes"].as_u64();
        assert!(
            memory.is_none_or(|bytes| (100_000..20_000_000).contains(&bytes)),
            "{metadata}"
        );
        if code == 0 {
            assert_eq!(
                (&job["status"], &job["result"]),
                (&json!("completed"), &json!({"exit_code": 0}))
            );
        } else {
            assert_eq!(job["status"], "failed");
            assert_eq!(job["error"]["code"], "exit");
            assert_eq!(job["error"]["message"], format!("exited with code {code}"));
            let details = &job["error"]["details"];
            assert_eq!(details["exit_code"], code);
            let output = details["output"].as_str().unwrap();
            assert!(output.contains("out") && output.contains("err"), "{output}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_a_command_was_that_fails_at_once_is_reported() {
    let server = server().await;
    let script = "for n in 1 2 3 4; do echo $n/8 rows; done; exit 3";
    let output = end_of(run_script(&server, &[], script), b"").await;
    assert_eq!(output.status.code(), Some(3));
    let job = only_job(&server).await;
    assert_eq!(
        (
            &job["status"],
            &job["progress"],
            &job["error"]["details"]["exit_code"]
        ),
        (&json!("failed"), &json!(50.0), &json!(3))
    );
}

/// Opening a pipe waits for its other end, and so would the command.
#[tokio::test(flavor = "multi_thread")]
async fn a_progress_file_that_is_a_pipe_is_rejected() {
    let server = server().await;
    let pipe = server.folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let options = ["--progress-file", pipe.to_str().unwrap()];
    let output = end_of(run_script(&server, &options, "echo ran"), b"").await;
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let stderr = text(&output.stderr);
    assert!(stderr.contains("is not a regular file"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_ended_by_a_signal_ends_run_by_the_same_signal() {
    for (name, signal) in [("KILL", 9), ("TERM", 15), ("SEGV", 11), ("HUP", 1)] {
        let server = server().await;
        let output = end_of(run_script(&server, &[], &format!("kill -s {name} $$")), b"").await;
        assert_eq!(output.status.signal(), Some(signal), "{name}");
        let job = only_job(&server).await;
        assert_eq!(
            (&job["status"], &job["error"]["code"]),
            (&json!("failed"), &json!("signal"))
        );
        assert_eq!(job["error"]["details"]["signal"], format!("SIG{name}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn input_and_output_are_passed_on_byte_for_byte() {
    static BYTES: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let mut random = fastrand::Rng::with_seed(1);
        std::iter::repeat_with(|| random.u8(..))
            .take(3_000_000)
            .collect()
    });
    let server = server().await;
    let output = end_of(tidings(&server, &["run", "--", "cat"]), &BYTES).await;
    assert!(output.status.success());
    assert!(output.stdout == *BYTES, "{} bytes", output.stdout.len());
    assert_eq!(only_job(&server).await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_megabytes_is_passed_on_and_reported_within_bounds() {
    let server = server().await;
    let script = "head -c 5000000 /dev/zero | tr '\\0' x; exit 4";
    let output = end_of(run_script(&server, &[], script), b"").await;
    assert_eq!(
        (output.status.code(), output.stdout.len()),
        (Some(4), 5_000_000)
    );
    let job = only_job(&server).await;
    let tail = job["error"]["details"]["output"].as_str().unwrap();
    assert!(
        tail.len() <= 64 * 1024 && tail.starts_with("xxx"),
        "{}",
        tail.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_closes_its_outputs_goes_on() {
    let server = server().await;
    let output = end_of(
        run_script(&server, &[], "exec >&- 2>&-; sleep 0.3; exit 5"),
        b"",
    )
    .await;
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(
        only_job(&server).await["error"]["message"],
        "exited with code 5"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_left_behind_holds_nothing_up_and_keeps_its_output() {
    let server = server().await;
    let script = "(read line <late; echo $line) & echo early";
    let folder = server.folder.path().to_owned();
    assert!(
        Command::new("mkfifo")
            .arg(folder.join("late"))
            .status()
            .unwrap()
            .success()
    );
    let mut child = started(&mut run_script(&server, &[], script));
    let mut output = child.stdout.take().unwrap();
    let ended = blocking(move || status_of(&mut child));
    assert!(ended.await.success());
    assert_eq!(only_job(&server).await["status"], "completed");
    // Run has ended. What the process that was left behind writes still arrives.
    std::fs::write(folder.join("late"), "late\n").unwrap();
    let mut written = String::new();
    output.read_to_string(&mut written).unwrap();
    assert_eq!(written, "early\nlate\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_gone_is_known_to_the_command() {
    let server = server().await;
    let mut command = run_script(&server, &[], "yes; exit 7");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "y\ny\n");
    drop(child.stdout.take());
    let status = blocking(move || status_of(&mut child));
    assert_eq!(status.await.code(), Some(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_be_started_is_reported_as_by_a_shell() {
    let server = server().await;
    let file = server.folder.path().join("plain");
    std::fs::write(&file, "no program").unwrap();
    for (program, code) in [("no-such-program", 127), (file.to_str().unwrap(), 126)] {
        let output = end_of(tidings(&server, &["run", "--", program]), b"").await;
        assert_eq!(output.status.code(), Some(code));
        assert!(
            text(&output.stderr).contains("cannot run"),
            "{}",
            text(&output.stderr)
        );
        let job = &jobs(&server).await[0];
        assert_eq!(
            (&job["status"], &job["error"]["code"]),
            (&json!("failed"), &json!("not_started"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_failed_or_was_left_running_gets_a_new_attempt() {
    let server = server().await;
    let options = ["--id", "nightly"];
    end_of(run_script(&server, &options, "exit 1"), b"").await;
    let mut first = started(&mut run_script(&server, &options, "echo first; read line"));
    job_when(&server, "the second attempt runs", |job| {
        job["attempt"] == 2 && job["status"] == "in_progress"
    })
    .await;
    let output = end_of(run_script(&server, &options, "echo second"), b"").await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let job = only_job(&server).await;
    assert_eq!(
        (&job["attempt"], &job["status"]),
        (&json!(3), &json!("completed"))
    );
    // The one that was superseded runs to its end, and changes nothing.
    first.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = output_of(first);
    assert!(output.status.success());
    assert!(
        text(&output.stderr).contains("could not be reported"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(only_job(&server).await["attempt"], 3);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn the_last_line_is_the_message_of_the_completed_job() {
    for (script, message) in [
        ("echo one; echo two", "two"),
        ("echo one; printf 'no line feed'", "no line feed"),
        ("echo 40/200 rows; sleep 1; echo 'All rows' >&2", "All rows"),
    ] {
        let server = server().await;
        let output = end_of(run_script(&server, &[], script), b"").await;
        assert!(output.status.success());
        let job = only_job(&server).await;
        assert_eq!(
            (&job["status"], &job["message"]),
            (&json!("completed"), &json!(message)),
            "{script}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn the_metadata_of_a_new_attempt_have_nothing_of_the_earlier_one() {
    let server = server().await;
    let options = ["--id", "nightly"];
    let mut first = started(&mut run_script(&server, &options, "echo 1%; exec sleep 60"));
    job_when(&server, "progress", |job| job["progress"] == 1.0).await;
    let path = "/api/jobs/nightly/cancel";
    server.post(path, &worker(1), json!({})).await;
    blocking(move || status_of(&mut first)).await;
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["metadata"]["signal"]),
        (&json!("cancelled"), &json!("SIGTERM"))
    );
    let mut second = started(&mut run_script(&server, &options, "read line; exit 3"));
    let job = job_when(&server, "the second attempt", |job| {
        job["attempt"] == 2 && job["status"] == "in_progress"
    })
    .await;
    let left = ["signal", "exit_code", "wall_secs", "progress_source"];
    for name in left {
        assert!(job["metadata"].get(name).is_none(), "{name}: {job}");
    }
    drop(second.stdin.take());
    blocking(move || status_of(&mut second)).await;
    let metadata = &only_job(&server).await["metadata"];
    assert!(metadata.get("signal").is_none() && metadata.get("exit_code").is_none());
    assert!(metadata["wall_secs"].is_number());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_several_schools_reports_for_the_one_that_is_named() {
    let server = server().await;
    let token = for_schools(&[1, 2], Role::Worker);
    let with_token = |mut command: Command| {
        command.env("TIDINGS_TOKEN", &token);
        command
    };
    let script = "echo 10/100 rows; exit 3";
    let run = |options: &[&str]| with_token(run_script(&server, options, script));
    let output = end_of(run(&["--wait", "1"]), b"").await;
    let stderr = text(&output.stderr);
    assert!(stderr.contains("--school or TIDINGS_SCHOOL_ID"), "{stderr}");
    let output = end_of(run(&["--school", "x"]), b"").await;
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "the command runs: {stderr}");
    assert!(stderr.contains("TIDINGS_SCHOOL_ID"), "{stderr}");
    let output = end_of(run(&["--school", "2"]), b"").await;
    assert_eq!(text(&output.stderr), "");
    let (_, list) = server.get("/api/jobs", &viewer(2)).await;
    let job = &list["jobs"][0];
    assert_eq!(
        (&job["status"], &job["progress"], &job["school_id"]),
        (&json!("failed"), &json!(10.0), &json!(2))
    );
    for (name, arguments) in [
        (
            "start",
            &["report", "start", "--type", "t", "--id", "s", "--strict"][..],
        ),
        ("ok", &["report", "ok", "--id", "s", "--strict"]),
    ] {
        let mut report = with_token(tidings(&server, arguments));
        report.env("TIDINGS_SCHOOL_ID", "2");
        let output = end_of(report, b"").await;
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
    }
    let (_, job) = server.get("/api/jobs/s", &viewer(2)).await;
    assert_eq!(job["status"], "completed");
    assert_eq!(jobs(&server).await.len(), 0, "the other school saw nothing");
}
