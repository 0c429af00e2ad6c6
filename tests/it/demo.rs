//! The school of `tidings demo`, as somebody sees it who listens; the pace is as fast as leases allow.

use std::collections::{BTreeSet, HashSet};
use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::devtools::Page;
use crate::support::process::{Process, blocking, command, run};
use crate::support::*;

/// A demo on this folder's database, without documents.
fn start(folder: &Path, arguments: &[&str]) -> Process {
    let documents = folder.join("documents");
    std::fs::create_dir_all(&documents).unwrap();
    let mut demo = command(folder);
    demo.arg("demo").arg(&documents).args(["--beat-ms", "20"]);
    Process::start(demo.args(arguments))
}

async fn listen(process: &Process) -> Listener {
    let scope = "/schools/1?tick_ms=0";
    Listener::open(
        Transport::EventSource,
        &process.url,
        scope,
        &viewer(1),
        None,
    )
    .await
}

/// Ends it as an operator does, and gives what it has complained about.
fn end(mut process: Process) -> String {
    let mut errors = process.stderr();
    let began = Instant::now();
    assert_eq!(process.terminate(), Some(0));
    assert!(began.elapsed() < PATIENCE / 3, "{:?}", began.elapsed());
    let mut complaints = String::new();
    errors.read_to_string(&mut complaints).unwrap();
    complaints
        .lines()
        .filter(|line| {
            line.contains("tries again") || line.contains("ERROR") || line.starts_with("demo: ")
        })
        .collect()
}

/// What must be seen at a school that is alive.
const EXPECTED: [&str; 17] = [
    "a device that falls silent",
    "a device that says that it goes",
    "a device that comes back",
    "a device that flaps",
    "what a device says of itself",
    "a session of one scan that completes",
    "a session of three scans that completes",
    "a session that is cancelled",
    "a session that fails: duplicate_finger",
    "a session that fails: timeout",
    "a session that fails: device_offline",
    "a session that fails: student_not_on_device",
    "a session that fails: verification_failed",
    "limits by moving_range",
    "limits by xbar_r",
    "a violation that is acknowledged",
    "a sample in control after a violation",
];

/// Which of these a story has.
#[derive(Default)]
struct Seen {
    what: BTreeSet<String>,
    gone: HashSet<String>,
    violations: HashSet<String>,
}

impl Seen {
    fn take(&mut self, message: &Value) {
        let payload = &message["payload"];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let what = match message["type"].as_str().unwrap() {
            "device_status_update" => {
                let device = text(&message["device_id"]);
                if message["flapping"] == true {
                    self.what.insert("a device that flaps".into());
                }
                match message["status"].as_str().unwrap() {
                    "offline" => {
                        self.gone.insert(device);
                        let silent = time(&message["timestamp"]) - time(&message["last_seen"]);
                        let lease = message["lease_secs"].as_i64().unwrap();
                        if silent >= chrono::TimeDelta::seconds(lease) {
                            "a device that falls silent".into()
                        } else {
                            "a device that says that it goes".into()
                        }
                    }
                    "online" if self.gone.contains(&device) => "a device that comes back".into(),
                    _ => return,
                }
            }
            "device_info_update" => "what a device says of itself".into(),
            "enrollment_complete" => {
                assert!(message["quality_score"].as_f64().unwrap() >= 60.0);
                match message["attempt"].as_u64() {
                    None => "a session of one scan that completes".into(),
                    attempt => {
                        assert_eq!((attempt, &message["total_attempts"]), (Some(3), &json!(3)));
                        "a session of three scans that completes".into()
                    }
                }
            }
            "enrollment_cancelled" => "a session that is cancelled".into(),
            "enrollment_error" => format!("a session that fails: {}", text(&message["code"])),
            "control_limits" if payload["method"].is_string() => {
                format!("limits by {}", text(&payload["method"]))
            }
            "violation" => {
                self.violations.insert(text(&payload["violation_id"]));
                return;
            }
            "ack_update" => {
                assert!(self.violations.contains(&text(&payload["violation_id"])));
                assert_ne!(payload["ack_reason"], "");
                "a violation that is acknowledged".into()
            }
            "sample" if payload["in_control"] == true && !self.violations.is_empty() => {
                "a sample in control after a violation".into()
            }
            _ => return,
        };
        self.what.insert(what);
    }

    fn missing(&self) -> Vec<&str> {
        let has = |what: &&str| self.what.contains(*what);
        EXPECTED.into_iter().filter(|what| !has(what)).collect()
    }
}

fn time(value: &Value) -> chrono::DateTime<chrono::FixedOffset> {
    chrono::DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole demo"]
async fn the_demos_school_runs_until_it_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let process = start(folder.path(), &[]);
    let mut listener = listen(&process).await;
    let mut seen = Seen::default();
    let complete = timeout(PATIENCE * 2, async {
        while !seen.missing().is_empty() {
            seen.take(&listener.next().await.expect("the stream goes on"));
        }
    });
    assert!(complete.await.is_ok(), "never seen: {:?}", seen.missing());
    assert_eq!(end(process), "", "nothing is amiss");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_stopped_amid_its_documents_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("documents")).unwrap();
    std::fs::write(folder.path().join("documents/long"), "many parts").unwrap();
    let slowly = ["--part-bytes", "1", "--pause-ms", "600000"];
    let process = start(folder.path(), &slowly);
    let mut listener = listen(&process).await;
    listener
        .take_until(|message| message["message"] == "Processing part 1 of 10")
        .await;
    assert_eq!(end(process), "");
}

/// From its first line on, with requests of its simulators under way and their connections open.
#[tokio::test(flavor = "multi_thread")]
async fn a_demo_ends_promptly_whenever_it_is_stopped() {
    for lines in [0, 1, 8, 20] {
        let folder = tempfile::tempdir().unwrap();
        let mut process = start(folder.path(), &[]);
        for _ in 0..lines.min(12) {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut process.stdout, &mut line).unwrap();
        }
        if lines > 12 {
            let mut listener = listen(&process).await;
            listener.until_ready().await;
            for _ in 0..lines {
                listener.next().await.expect("the stream goes on");
            }
        }
        // Less than the grace of Rocket, which it waits for if a connection is left.
        let began = Instant::now();
        let ended = blocking(move || process.terminate());
        assert_eq!(ended.await, Some(0));
        let took = began.elapsed();
        assert!(
            took < std::time::Duration::from_secs(5),
            "{lines}: {took:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole demo"]
async fn a_second_demo_on_the_same_database_goes_on_with_what_was_learnt() {
    let folder = tempfile::tempdir().unwrap();
    for run in ["first", "second"] {
        let process = start(folder.path(), &[]);
        let mut listener = listen(&process).await;
        if run == "second" {
            listener.until_ready().await;
        }
        let (mut judged, mut completed) = (HashSet::new(), false);
        while judged.len() < 2 || !completed {
            let message = listener.next().await.expect("the stream goes on");
            let payload = &message["payload"];
            if message["type"] == "sample" && !payload["limits_version"].is_null() {
                assert_eq!(payload["limits_version"], 1, "learnt once, {run}");
                judged.insert(payload["characteristic_id"].to_string());
            }
            completed |= message["type"] == "enrollment_complete";
        }
        assert_eq!(end(process), "", "{run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulator_that_is_rejected_says_why_and_hinders_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let http = reqwest::Client::new();
    let somebodys = format!("{}/api/characteristics/bath-chlorine", server.url);
    for request in [
        http.put(&somebodys).json(&json!({})),
        http.post(format!("{somebodys}/samples"))
            .json(&json!({"value": 1})),
    ] {
        let (status, answered) = answer(request.bearer_auth(worker(1))).await;
        assert_eq!(status, 200, "{answered}");
    }
    assert_eq!(server.terminate(), Some(0));
    let mut process = start(folder.path(), &[]);
    let mut line = String::new();
    let mut errors = std::io::BufReader::new(process.stderr());
    while !line.contains("will try again later") {
        line.clear();
        let length = std::io::BufRead::read_line(&mut errors, &mut line).unwrap();
        assert!(length > 0, "it ended without a word of that");
    }
    assert!(
        line.starts_with("bath-chlorine will try again later: ") && line.contains("subgroup_size"),
        "{line}"
    );
    let mut listener = listen(&process).await;
    listener
        .take_until(|message| {
            message["snapshot"] != true
                && message["payload"]["characteristic_id"] == "bath-temperature"
        })
        .await;
    assert_eq!(process.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole demo"]
async fn the_school_ends_with_the_documents_if_asked_and_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["--exit", "--no-simulators"][..], &["--exit"]] {
        let mut process = start(folder.path(), arguments);
        let mut stdout = String::new();
        process.stdout.read_to_string(&mut stdout).unwrap();
        let mut complaints = String::new();
        process.stderr().read_to_string(&mut complaints).unwrap();
        assert_eq!(process.wait(), Some(0), "{complaints}");
        assert!(!complaints.contains("tries again"), "{complaints}");
        let school = arguments.len() == 1;
        assert_eq!(stdout.contains(" watch devices"), school, "{stdout}");
        if !school {
            let server = Process::start(command(folder.path()).arg("serve"));
            for collection in ["devices", "enrollments", "characteristics"] {
                let list = reqwest::Client::new()
                    .get(format!("{}/api/{collection}", server.url))
                    .bearer_auth(viewer(1));
                assert_eq!(answer(list).await.1[collection], json!([]));
            }
        }
    }
}

/// The jobs in a folder's database in one of these states, by their titles.
async fn titles(folder: &Path, statuses: &[&str]) -> BTreeSet<String> {
    let server = Process::start(command(folder).arg("serve"));
    let query: String = statuses
        .iter()
        .map(|status| format!("&status={status}"))
        .collect();
    let list = reqwest::Client::new()
        .get(format!("{}/api/jobs?limit=500{query}", server.url))
        .bearer_auth(viewer(1));
    let (_, list) = answer(list).await;
    let jobs = list["jobs"].as_array().unwrap();
    let title = |job: &Value| job["metadata"]["title"].as_str().unwrap().to_owned();
    jobs.iter().map(title).collect()
}

/// The states of a job that is not over.
const OPEN: [&str; 3] = ["pending", "queued", "in_progress"];

fn write_documents(folder: &Path, names: &[&str]) {
    std::fs::create_dir_all(folder.join("documents")).unwrap();
    for name in names {
        std::fs::write(folder.join("documents").join(name), "many parts").unwrap();
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole demo"]
async fn a_document_that_is_cancelled_while_it_waits_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    write_documents(folder.path(), &["a", "b", "c"]);
    let process = start(
        folder.path(),
        &["--part-bytes", "1", "--pause-ms", "100", "--no-simulators"],
    );
    let mut listener = listen(&process).await;
    let named = |title: &'static str| move |message: &Value| message["metadata"]["title"] == title;
    let messages = listener.take_until(named("b")).await;
    let id = messages.last().unwrap()["job_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let cancel = reqwest::Client::new()
        .post(format!("{}/api/jobs/{id}/cancel", process.url))
        .bearer_auth(worker(1))
        .json(&json!({"force": true}));
    let (status, job) = answer(cancel).await;
    assert_eq!((status, &job["status"]), (200, &json!("cancelled")));
    let is_c = named("c");
    listener
        .take_until(|message| is_c(message) && message["status"] == "completed")
        .await;
    assert_eq!(end(process), "", "a cancelled document is no fault");
    let cancelled = titles(folder.path(), &["cancelled"]).await;
    assert!(cancelled.contains("b"), "{cancelled:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole demo"]
async fn an_interrupted_demo_leaves_nothing_that_waits_or_runs() {
    for signal in ["INT", "TERM"] {
        let folder = tempfile::tempdir().unwrap();
        write_documents(folder.path(), &["a", "b", "c"]);
        let slowly = ["--part-bytes", "1", "--pause-ms", "600000"];
        let mut process = start(folder.path(), &slowly);
        let mut listener = listen(&process).await;
        listener
            .take_until(|message| message["message"] == "Processing part 1 of 10")
            .await;
        process.signal(signal);
        assert_eq!(process.wait(), Some(0), "{signal}");
        let open = titles(folder.path(), &OPEN).await;
        assert_eq!(open, BTreeSet::new(), "{signal}");
        let cancelled = titles(folder.path(), &["cancelled"]).await;
        assert_eq!(cancelled, set(&["a", "b", "c"]), "{signal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole demo"]
async fn what_a_killed_demo_has_left_is_cancelled_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    write_documents(folder.path(), &["a", "b"]);
    let slowly = ["--part-bytes", "1", "--pause-ms", "600000"];
    let mut process = start(folder.path(), &slowly);
    let mut listener = listen(&process).await;
    listener
        .take_until(|message| message["message"] == "Processing part 1 of 10")
        .await;
    process.kill();
    assert_eq!(titles(folder.path(), &OPEN).await, set(&["a", "b"]));
    let quickly = ["--exit", "--no-simulators", "--pause-ms", "0"];
    let mut next = start(folder.path(), &quickly);
    // It writes to the end.
    let mut stdout = String::new();
    next.stdout.read_to_string(&mut stdout).unwrap();
    assert_eq!(next.wait(), Some(0));
    assert_eq!(titles(folder.path(), &OPEN).await, BTreeSet::new());
    let completed = titles(folder.path(), &["completed"]).await;
    assert_eq!(completed, set(&["a", "b"]), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole demo"]
async fn no_rejection_of_the_server_ends_the_demo() {
    for (name, value, rejected) in [
        ("TIDINGS_JOBS_PER_SCHOOL", "1", 2),
        ("TIDINGS_BODY_LIMIT_BYTES", "20", 3),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_documents(folder.path(), &["a", "b", "c"]);
        let mut demo = command(folder.path());
        demo.env(name, value).args([
            "demo",
            "documents",
            "--exit",
            "--no-simulators",
            "--pause-ms",
            "0",
        ]);
        let output = blocking(move || run(&mut demo)).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        let lines = stderr.lines().filter(|line| line.contains(" is skipped: "));
        assert_eq!(lines.count(), rejected, "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_documents_the_demo_goes_on_with_new_ones_and_what_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("documents")).unwrap();
    std::fs::write(folder.path().join("documents/picture"), [0xff]).unwrap();
    let process = start(folder.path(), &["--no-simulators", "--pause-ms", "0"]);
    let mut listener = listen(&process).await;
    let failed = |message: &Value| message["status"] == "failed";
    let first = listener.take_until(failed).await;
    let first = first.last().unwrap()["job_id"].as_str().unwrap().to_owned();
    listener
        .take_until(|message| failed(message) && message["job_id"] != *first)
        .await;
    let retry = reqwest::Client::new()
        .post(format!("{}/api/jobs/{first}/retry", process.url))
        .bearer_auth(worker(1))
        .json(&json!({}));
    assert_eq!(answer(retry).await.0, 200);
    listener
        .take_until(|message| {
            failed(message) && message["job_id"] == *first && message["attempt"] == 2
        })
        .await;
    assert_eq!(end(process), "");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole demo"]
async fn a_demo_without_documents_says_so_and_what_goes_on() {
    for (arguments, continuation) in [
        (&[][..], Some("The school continues without documents")),
        (&["--no-simulators"], Some("nothing is reported to it")),
        (&["--exit"], None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut process = start(folder.path(), arguments);
        let mut stdout = String::new();
        let expected = continuation.unwrap_or("There are no documents in");
        while !stdout.contains(expected) {
            let length = std::io::BufRead::read_line(&mut process.stdout, &mut stdout).unwrap();
            assert!(length > 0, "{stdout}");
        }
        assert!(stdout.contains("There are no documents in"), "{stdout}");
        assert!(!stdout.contains("All documents"), "{stdout}");
        match continuation {
            Some(_) => assert_eq!(end(process), ""),
            None => assert_eq!(process.wait(), Some(0)),
        }
    }
}

#[test]
fn a_demo_whose_documents_cannot_be_read_fails_before_it_listens() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(command(folder.path()).args(["demo", "/nope"]));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("tidings: "), "{stderr}");
    assert!(stderr.contains("/nope"), "{stderr}");
    assert!(!folder.path().join("data").exists(), "nothing was begun");
}

/// The example of RFC 8410.
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
";

#[test]
fn a_demo_whose_server_cannot_issue_tokens_fails_before_it_listens() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("public.pem");
    std::fs::write(&key, PUBLIC_KEY).unwrap();
    let output = run(command(folder.path())
        .args(["demo", "--no-simulators"])
        .env("TIDINGS_JWT_ALGORITHM", "EdDSA")
        .env("TIDINGS_JWT_PUBLIC_KEY_FILE", key));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("cannot issue"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole demo"]
async fn a_demo_works_with_tokens_as_short_as_the_settings_permit() {
    let folder = tempfile::tempdir().unwrap();
    write_documents(folder.path(), &["one.txt"]);
    let output = run(command(folder.path())
        .args(["demo", "--no-simulators", "--pause-ms", "0", "--exit"])
        .env("TIDINGS_MAX_TOKEN_SECS", "60"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stdout.contains("completed"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole demo"]
async fn the_demos_link_signs_in_as_a_worker_and_leaves_no_token_in_the_address() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = start(folder.path(), &["--no-simulators"]);
    let mut link = String::new();
    while !link.contains("/monitor/sign-in#token=") {
        link.clear();
        let length = std::io::BufRead::read_line(&mut process.stdout, &mut link).unwrap();
        assert!(length > 0, "there is no link");
    }
    let link = link.trim();
    if needs("chromium") {
        let mut page = Page::open().await;
        page.visit(link).await;
        page.until("location.href.endsWith('/monitor/schools/1')")
            .await;
        page.until("document.body.innerText.includes('demo-visitor (worker)')")
            .await;
        // A visitor who is signed in decides; the token has left the address.
        page.visit(link).await;
        page.until(
            "location.pathname === '/monitor/sign-in' && location.hash === '' \
             && !!document.querySelector('input[name=token]')?.value",
        )
        .await;
        // Where the page is open already, only what follows `#` changes.
        page.call("Network.clearBrowserCookies", json!({})).await;
        let (sign_in, token) = link.split_once('#').unwrap();
        page.visit(sign_in).await;
        page.until("!!document.querySelector('input[name=token]')")
            .await;
        page.visit(&format!("{sign_in}#{token}")).await;
        page.until("location.href.endsWith('/monitor/schools/1')")
            .await;
    }
    assert_eq!(process.terminate(), Some(0));
}
