//! The school of `tidings demo`, as somebody sees it who listens; the pace is as fast as leases allow.

use std::collections::{BTreeSet, HashSet};
use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::process::{Process, command};
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
    let mut said = String::new();
    errors.read_to_string(&mut said).unwrap();
    said.lines()
        .filter(|line| line.contains("has ended") || line.contains("ERROR"))
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
async fn the_demos_school_lives_until_it_is_told_to_end() {
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
async fn a_demo_that_is_told_to_end_amid_its_documents_ends_well() {
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

#[tokio::test(flavor = "multi_thread")]
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
async fn a_simulator_that_is_refused_ends_alone_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let http = reqwest::Client::new();
    let somebodys = format!("{}/api/characteristics/bath-chlorine", server.url);
    for request in [
        http.put(&somebodys).json(&json!({})),
        http.post(format!("{somebodys}/samples"))
            .json(&json!({"value": 1})),
    ] {
        let (status, said) = answer(request.bearer_auth(worker(1))).await;
        assert_eq!(status, 200, "{said}");
    }
    assert_eq!(server.terminate(), Some(0));
    let mut process = start(folder.path(), &[]);
    let mut line = String::new();
    let mut errors = std::io::BufReader::new(process.stderr());
    while !line.contains("has ended") {
        line.clear();
        let length = std::io::BufRead::read_line(&mut errors, &mut line).unwrap();
        assert!(length > 0, "it ended without a word of that");
    }
    assert!(
        line.starts_with("bath-chlorine has ended: ") && line.contains("subgroup_size"),
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
async fn the_school_ends_with_the_documents_if_asked_and_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["--exit", "--no-simulators"][..], &["--exit"]] {
        let mut process = start(folder.path(), arguments);
        let mut said = String::new();
        process.stdout.read_to_string(&mut said).unwrap();
        let mut complaints = String::new();
        process.stderr().read_to_string(&mut complaints).unwrap();
        assert_eq!(process.wait(), Some(0), "{complaints}");
        assert!(!complaints.contains("has ended"), "{complaints}");
        let school = arguments.len() == 1;
        assert_eq!(said.contains(" watch devices"), school, "{said}");
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
