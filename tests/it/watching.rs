//! `tidings watch` with `--until`, `--exec` and several scopes: the real command, against a real server.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::process::{Guarded, Patient, blocking, run, status_of, watch};
use crate::support::*;

/// Runs a command to its end, while the server goes on.
async fn ended(mut command: Command) -> Output {
    blocking(move || run(&mut command)).await
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A command that goes on, with its standard output line by line.
struct Watching {
    child: Guarded,
    lines: std::io::Lines<BufReader<Patient<std::process::ChildStdout>>>,
}

impl Watching {
    /// Starts to watch, as JSON, and waits until `scopes` snapshots are complete.
    fn start(mut command: Command, scopes: usize) -> Watching {
        let mut child = Guarded(
            command
                .arg("--json")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let mut lines = BufReader::new(Patient(child.0.stdout.take().unwrap())).lines();
        let mut ready = 0;
        while ready < scopes {
            let line = lines.next().expect("it goes on").unwrap();
            let message: Value = serde_json::from_str(&line).unwrap();
            ready += usize::from(message["type"] == "ready");
        }
        Watching { child, lines }
    }

    /// Waits for the end. Returns the exit code, the messages and what it said.
    async fn end(mut self) -> (Option<i32>, Vec<Value>, String) {
        let ended = blocking(move || {
            let messages = self
                .lines
                .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
                .collect();
            let mut complaint = String::new();
            let mut errors = self.child.0.stderr.take().unwrap();
            errors.read_to_string(&mut complaint).unwrap();
            (status_of(&mut self.child.0).code(), messages, complaint)
        });
        ended.await
    }
}

/// As with `| head`, on a server where nothing happens.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_output_nobody_reads_any_more_ends_without_a_further_message() {
    let server = server().await;
    server.running_job("quiet").await;
    for scopes in [&["jobs/quiet"][..], &["jobs", "devices"]] {
        let command = watch(&server, scopes);
        let Watching { mut child, lines } = Watching::start(command, scopes.len());
        drop(lines);
        let (code, complaint) = blocking(move || {
            let code = status_of(&mut child.0).code();
            let mut complaint = String::new();
            let mut errors = child.0.stderr.take().unwrap();
            errors.read_to_string(&mut complaint).unwrap();
            (code, complaint)
        })
        .await;
        assert_eq!((code, complaint.as_str()), (Some(1), ""), "{scopes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_until_a_status_says_whether_it_was_reached() {
    let server = server().await;
    for (id, verb, body) in [
        ("good", "complete", json!({})),
        (
            "bad",
            "fail",
            json!({"error": {"code": "x", "message": "y"}}),
        ),
        ("stopped", "cancel", json!({"force": true})),
    ] {
        server.running_job(id).await;
        server.report(&format!("/api/jobs/{id}/{verb}"), body).await;
    }
    server.running_job("on").await;
    // With a lease, a report creates the device.
    let online = json!({"status": "online", "lease_secs": 60});
    server.report("/api/devices/d7/status", online).await;
    for (scopes, until, code) in [
        (&["jobs/good"][..], "completed", 0),
        (&["jobs/good"], "COMPLETED", 0),
        (&["jobs/bad"], "completed", 10),
        (&["jobs/stopped"], "completed", 11),
        (&["jobs/good"], "failed", 12),
        (&["jobs/bad"], "failed,cancelled", 0),
        (&["jobs/stopped"], "ended", 0),
        (&["jobs/on"], "in_progress", 0),
        (&["devices/d7"], "online", 0),
        (&["jobs/good", "jobs/bad"], "ended", 0),
        (&["jobs/good", "devices/d7"], "completed,online", 0),
        (&["jobs/good", "jobs/stopped", "jobs/bad"], "completed", 10),
        (&["jobs/good", "jobs/stopped"], "completed", 11),
        (&["jobs/good", "jobs/stopped"], "cancelled", 12),
        // Without it, as before, of several too.
        (&["jobs/good", "jobs/good"], "", 0),
        (&["jobs/good", "jobs/stopped", "jobs/bad"], "", 10),
        // One of them does not exist.
        (&["jobs/on", "jobs/nobody"], "completed", 4),
        (&["jobs/good"], "complete", 2),
        (&["jobs/good", "devices/d7"], "completed", 2),
    ] {
        let mut arguments = scopes.to_vec();
        if !until.is_empty() {
            arguments.extend(["--until", until]);
        }
        let output = ended(watch(&server, &arguments)).await;
        let complaint = complaint(&output);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {complaint}"
        );
        match code {
            2 => assert!(complaint.contains("; possible are "), "{complaint}"),
            4 => assert!(
                complaint.starts_with("tidings: jobs/nobody: "),
                "{complaint}"
            ),
            _ => assert_eq!(complaint, ""),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_collection_only_what_happens_from_then_on_ends_the_watch() {
    let server = server().await;
    let fail = json!({"error": {"code": "x", "message": "y"}});
    for id in ["old", "new"] {
        server.running_job(id).await;
    }
    server.report("/api/jobs/old/fail", fail.clone()).await;
    let arguments = ["jobs", "--until", "failed,stalled"];
    let watching = Watching::start(watch(&server, &arguments), 1);
    server.report("/api/jobs/new/fail", fail).await;
    let (code, messages, complaint) = watching.end().await;
    assert_eq!(code, Some(0), "{complaint}");
    let (last, id) = (messages.last().unwrap(), json!("new"));
    assert_eq!((&last["job_id"], &last["status"]), (&id, &json!("failed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_was_reached_before_the_cursor_is_known() {
    let server = server().await;
    // With a lease, a report creates the device.
    let online = json!({"status": "online", "lease_secs": 60});
    let event = server.report("/api/devices/d7/status", online).await;
    let cursor = event["cursor"].as_str().unwrap();
    let arguments = ["devices/d7", "--until", "online", "--cursor", cursor];
    let output = ended(watch(&server, &arguments)).await;
    assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_scopes_end_when_the_last_one_has() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    for id in ["a", "b"] {
        server.running_job(id).await;
    }
    let watching = Watching::start(watch(&server, &["jobs/a", "jobs/b"]), 2);
    server.report("/api/jobs/a/complete", json!({})).await;
    // The stream of the one is closed, and the other goes on.
    until("one is left", async || server.tidings.streams() == 1).await;
    server
        .report("/api/jobs/b/progress", json!({"progress": 70}))
        .await;
    server
        .report("/api/jobs/b/cancel", json!({"force": true}))
        .await;
    let (code, messages, complaint) = watching.end().await;
    assert_eq!((code, complaint.as_str()), (Some(11), ""));
    let printed: Vec<_> = messages
        .iter()
        .filter(|message| message["job_id"].is_string())
        .map(|message| (message["job_id"].clone(), message["status"].clone()))
        .collect();
    let expected = [("a", "completed"), ("b", "in_progress"), ("b", "cancelled")];
    assert_eq!(
        printed,
        expected.map(|(id, status)| (json!(id), json!(status)))
    );
}

/// Returns the lines of a file that commands have written.
fn written(folder: &Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_runs_for_each_change_with_the_facts_and_nothing_of_them_is_executed() {
    let server = server().await;
    let folder = server.folder.path();
    let nasty = "'; touch pwned; $(touch pwned) `touch pwned` \"\u{1b}[31m\nend";
    let body = json!({"job_id": "j", "job_type": "t", "status": "in_progress", "metadata": {"title": nasty}});
    server.report("/api/jobs", body).await;
    let execute = r#"printf '%s|' "$TIDINGS_SCOPE" "$TIDINGS_TYPE" "$TIDINGS_SUBJECT" "$TIDINGS_STATUS" "$TIDINGS_PROGRESS" "$TIDINGS_MESSAGE" >>facts
        echo >>facts; printf '%s\n' "$TIDINGS_TITLE" >>titles; printf '%s\n' "$TIDINGS_EVENT" >>events; cat >>inputs; exit 3"#;
    let arguments = ["jobs/j?tick_ms=0", "--exec", execute];
    let mut watching = watch(&server, &arguments);
    // Another one's value is not taken for this one's.
    watching.env("TIDINGS_PROGRESS", "99");
    let watching = Watching::start(watching, 1);
    for progress in [10, 20, 30] {
        let body = json!({"progress": progress, "message": format!("{progress} of 100")});
        server.report("/api/jobs/j/progress", body).await;
    }
    server.report("/api/jobs/j/cancel", json!({})).await;
    let failed = json!({"error": {"code": "x", "message": nasty}});
    server.report("/api/jobs/j/fail", failed).await;
    let (code, messages, complaint) = watching.end().await;
    assert_eq!(code, Some(10));
    let shown = r#"'; touch pwned; $(touch pwned) `touch pwned` "\u{1b}[31m\nend"#;
    assert_eq!(
        written(folder, "facts"),
        [
            "jobs/j?tick_ms=0|job_progress|jobs/j|in_progress|30|30 of 100|".to_owned(),
            format!("jobs/j?tick_ms=0|job_progress|jobs/j|failed|30|{shown}|"),
        ]
    );
    assert_eq!(written(folder, "titles"), [shown, shown]);
    let events = written(folder, "events");
    assert_eq!(events, written(folder, "inputs"));
    let event: Value = serde_json::from_str(&events[1]).unwrap();
    assert_eq!(event, *messages.last().unwrap());
    assert_eq!(event["error"]["message"], nasty);
    let line = "the --exec command failed (exit status: 3): jobs/j\n";
    assert_eq!(complaint, line.repeat(2));
    assert!(!folder.join("pwned").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_watch_always_runs_the_command() {
    let server = server().await;
    server.running_job("j").await;
    let event = server.report("/api/jobs/j/complete", json!({})).await;
    let cursor = event["cursor"].as_str().unwrap();
    let execute = "echo $TIDINGS_SUBJECT $TIDINGS_STATUS";
    for more in [&[][..], &["--cursor", cursor]] {
        let arguments = [&["jobs/j", "--exec", execute], more].concat();
        let output = ended(watch(&server, &arguments)).await;
        assert_eq!(output.status.code(), Some(0));
        // Standard output has the events.
        assert_eq!(complaint(&output), "jobs/j completed\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_slow_command_runs_for_every_change_in_order_and_never_twice_at_once() {
    let server = server().await;
    let folder = server.folder.path();
    let jobs = 700;
    // A second run at the same time would find the folder.
    let execute = r#"mkdir busy || echo "twice at once" >>order; echo "$TIDINGS_SUBJECT" >>order; rmdir busy"#;
    let arguments = ["jobs", "--exec", execute, "--until", "cancelled"];
    let watching = Watching::start(watch(&server, &arguments), 1);
    let mut lines = String::new();
    for number in 0..jobs {
        let job = json!({"op": "jobs.create", "job_id": number.to_string(), "job_type": "t"});
        writeln!(lines, "{job}").unwrap();
    }
    server.batch(&worker(1), lines).await;
    let last = json!({"force": true});
    server.report("/api/jobs/0/cancel", last).await;
    let (code, _, complaint) = watching.end().await;
    assert_eq!(code, Some(0));
    let mut expected: Vec<_> = (0..jobs).map(|number| format!("jobs/{number}")).collect();
    expected.push("jobs/0".into());
    assert_eq!(written(folder, "order"), expected);
    let behind = "the --exec command is 256 changes behind; reading waits for it\n";
    assert_eq!(complaint, behind);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_command_prints_stands_above_the_bars_of_a_terminal() {
    if !needs("script") {
        return;
    }
    let server = server().await;
    server.running_job("j").await;
    let prepared = watch(&server, &[]);
    let line =
        r#""$PROGRAM" watch jobs/j --exec 'printf "hook: $TIDINGS_STATUS \033[31m"; echo; exit 1'"#;
    let mut terminal = Command::new("script");
    terminal
        .args(["-qefc", line, "/dev/null"])
        .current_dir(server.folder.path())
        .env("TERM", "xterm-256color")
        .env("PROGRAM", prepared.get_program());
    for (name, value) in prepared.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    let watched = blocking(move || run(&mut terminal));
    until("it watches", async || server.tidings.streams() == 1).await;
    server.report("/api/jobs/j/complete", json!({})).await;
    let output = watched.await;
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{seen}");
    for words in [
        "hook: completed \\u{1b}[31m",
        "the --exec command failed (exit status: 1): jobs/j",
    ] {
        assert!(seen.contains(words), "{words}: {seen}");
    }
}

/// A proxy that accepts event streams and cuts them at once. It lets everything else pass.
async fn proxy_without_streams(to: String) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
    use tokio::net::{TcpListener, TcpStream};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                if String::from_utf8_lossy(&head).contains("text/event-stream") {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
                    return socket.write_all(answer).await.unwrap();
                }
                let mut server = TcpStream::connect(to).await.unwrap();
                server.write_all(&head).await.unwrap();
                let _ = copy_bidirectional(&mut socket, &mut server).await;
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn where_streams_do_not_pass_the_watch_goes_on_by_long_poll() {
    let server = server().await;
    let job = json!({"job_id": "a", "job_type": "t", "status": "in_progress"});
    server.post("/api/jobs", &worker(1), job).await;
    server
        .post("/api/jobs/a/complete", &worker(1), json!({}))
        .await;
    let url = proxy_without_streams(server.url.trim_start_matches("http://").to_owned()).await;
    let mut watching = watch(&server, &["jobs/a"]);
    watching.env("TIDINGS_URL", &url);
    let output = ended(watching).await;
    let complaint = complaint(&output);
    assert_eq!(output.status.code(), Some(0), "{complaint}");
    let lost = format!("connection to {url} lost; trying again in ");
    assert!(complaint.starts_with(&lost), "{complaint}");
    assert!(
        complaint.ends_with(&format!("reconnected to {url}\n")),
        "{complaint}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_several_schools_watches_the_one_that_is_named() {
    let server = server().await;
    let job = json!({"job_id": "a", "job_type": "t", "status": "in_progress"});
    for school in [1, 2] {
        let (status, made) = server.post("/api/jobs", &worker(school), job.clone()).await;
        assert_eq!(status, 201, "{made}");
    }
    let (status, ended) = server
        .post("/api/jobs/a/complete", &worker(2), json!({}))
        .await;
    assert_eq!(status, 200, "{ended}");
    let token = for_schools(&[1, 2], Role::Viewer);
    let watch = |arguments: &[&str], variable: &str| {
        let mut watching = watch(&server, arguments);
        watching
            .env("TIDINGS_TOKEN", &token)
            .env("TIDINGS_SCHOOL_ID", variable);
        watching
    };
    let output = self::ended(watch(&["jobs/a", "--json"], "")).await;
    assert_eq!(output.status.code(), Some(2));
    let complaint = complaint(&output);
    assert!(
        complaint.contains("--school or TIDINGS_SCHOOL_ID"),
        "{complaint}"
    );
    for (arguments, variable) in [
        (&["jobs/a", "--json", "--school", "2"][..], ""),
        (&["jobs/a", "--json"], "2"),
        // What the scope names is more specific.
        (&["jobs/a?school_id=2", "--json"], "1"),
    ] {
        let output = self::ended(watch(arguments, variable)).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let lines = String::from_utf8(output.stdout).unwrap();
        let messages = lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let schools: Vec<_> = messages
            .filter(|message| message["job_id"] == "a")
            .map(|message| message["school_id"].clone())
            .collect();
        assert_eq!(schools, [2], "the other school was not shown");
    }
}
