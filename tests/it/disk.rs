//! What can happen to a database: damage, a file that is gone, no right to write, somebody else's lock, a full disk; and
//! a clock that jumps. The server says so, loses nothing that it has acknowledged, and never begins anew in silence.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use diesel::connection::{Connection, SimpleConnection};
use serde_json::{Value, json};

use crate::support::process::{
    Guarded, Patient, Process, binary, command, limited, run, set_clock, status_of, with_clock,
};
use crate::support::*;

pub(crate) fn database(folder: &Path) -> PathBuf {
    folder.join("data/tidings.db")
}

pub(crate) async fn post(url: &str, path: &str, body: Value) -> (u16, Value) {
    let request = reqwest::Client::new().post(format!("{url}{path}"));
    answer(request.bearer_auth(worker(1)).json(&body)).await
}

/// Fills a database with some jobs, and leaves it closed in good order.
pub(crate) async fn some_jobs(folder: &Path, count: usize) {
    let mut server = Process::start(command(folder).arg("serve"));
    for number in 0..count {
        let metadata = json!({"text": "x".repeat(2_000)});
        let body = json!({"job_id": format!("j{number}"), "job_type": "t", "metadata": metadata});
        assert_eq!(post(&server.url, "/api/jobs", body).await.0, 201);
    }
    assert_eq!(server.terminate(), Some(0));
}

/// Everything that a school's log tells, by `seq`.
pub(crate) async fn log(url: &str) -> Vec<u64> {
    let token = viewer(1);
    let address = format!("{url}/events/schools/1?tick_ms=0&wait=0&token={token}");
    let from_start = async |cursor: &str| {
        let request = reqwest::Client::new().get(format!("{address}&cursor={cursor}"));
        answer(request.header("Accept", "application/json")).await.1
    };
    let (_, list) =
        answer(reqwest::Client::new().get(format!("{url}/api/jobs?token={token}"))).await;
    let epoch = list["cursor"]
        .as_str()
        .unwrap()
        .split('-')
        .next()
        .unwrap()
        .to_owned();
    let (mut cursor, mut seqs) = (format!("{epoch}-0"), Vec::new());
    loop {
        let page = from_start(&cursor).await;
        let messages = page["messages"].as_array().unwrap();
        assert!(
            messages.iter().all(|message| message["type"] != "reset"),
            "{page}"
        );
        let delivered: Vec<u64> = messages
            .iter()
            .filter_map(|message| message["seq"].as_u64())
            .collect();
        seqs.extend(&delivered);
        if delivered.is_empty() {
            return seqs;
        }
        cursor = page["cursor"].as_str().unwrap().to_owned();
    }
}

/// Why a server does not start.
pub(crate) fn rejection(folder: &Path) -> String {
    rejection_of(command(folder).arg("serve"))
}

/// Why this fails, which does not go on if it does not.
pub(crate) fn rejection_of(command: &mut Command) -> String {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut rejected = Guarded(command.spawn().unwrap());
    let mut line = String::new();
    let stdout = Patient(rejected.0.stdout.take().unwrap());
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert_eq!(line, "", "it has started");
    let mut complaint = String::new();
    let mut stderr = Patient(rejected.0.stderr.take().unwrap());
    stderr.read_to_string(&mut complaint).unwrap();
    assert_eq!(status_of(&mut rejected.0).code(), Some(1), "{complaint}");
    complaint
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_not_served_and_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    some_jobs(folder.path(), 40).await;
    let path = database(folder.path());
    let whole = std::fs::read(&path).unwrap();
    // Somewhere in the middle, and cut off.
    let mut scratched = whole.clone();
    let middle = scratched.len() / 2 / 4_096 * 4_096;
    scratched[middle..middle + 4_096].fill(0xa5);
    let cut = whole[..whole.len() / 2].to_vec();
    for damaged in [scratched, cut] {
        std::fs::write(&path, &damaged).unwrap();
        let complaint = rejection(folder.path());
        assert!(
            complaint.contains("tidings.db")
                && (complaint.contains("damaged") || complaint.contains("malformed")),
            "{complaint}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "as it was");
    }
    std::fs::write(&path, &whole).unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    assert_eq!(log(&server.url).await, (1..=40).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_gone_from_its_journal_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let body = json!({"job_id": "a", "job_type": "t"});
    assert_eq!(post(&server.url, "/api/jobs", body).await.0, 201);
    server.kill();
    let path = database(folder.path());
    let whole = std::fs::read(&path).unwrap();
    let journal = path.with_extension("db-wal");
    let journal_was = std::fs::read(&journal).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(rejection(folder.path()).contains("missing"));
    assert!(!path.exists());
    std::fs::write(&path, "").unwrap();
    assert!(rejection(folder.path()).contains("missing"));
    assert_eq!(std::fs::read(&journal).unwrap(), journal_was);
    // With its database it is all there.
    std::fs::write(&path, whole).unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    assert_eq!(log(&server.url).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_may_not_be_written_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    some_jobs(folder.path(), 1).await;
    // Root may write everything: somebody else must try.
    let copy = folder.path().join("tidings");
    std::fs::copy(binary(), &copy).unwrap();
    let set = |mode: &str, path: &Path| {
        assert!(
            Command::new("chmod")
                .args(["-R", mode])
                .arg(path)
                .status()
                .unwrap()
                .success()
        );
    };
    set("a+rX,a-w", folder.path());
    let mut command = Command::new(&copy);
    command
        .arg("serve")
        .current_dir(folder.path())
        .env("ROCKET_PORT", "0")
        .env("TIDINGS_DATA_DIR", folder.path().join("data"))
        .env("TIDINGS_JWT_SECRET", format!("\"{}\"", "s".repeat(32)));
    if std::fs::write(folder.path().join("data/probe"), "").is_ok() {
        // We are root.
        command.uid(65_534).gid(65_534);
    }
    let rejected = run(&mut command);
    set("u+w", folder.path());
    let complaint = String::from_utf8_lossy(&rejected.stderr).into_owned();
    assert_eq!(rejected.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("tidings.db"), "{complaint}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_lock_of_another_process_is_waited_for_and_then_reported_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    let create = |id: &str| json!({"job_id": id, "job_type": "t"});
    assert_eq!(post(&server.url, "/api/jobs", create("a")).await.0, 201);
    let path = database(folder.path());
    let mut other = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    let (status, problem) = post(&server.url, "/api/jobs", create("b")).await;
    assert_eq!((status, &problem["code"]), (503, &json!("unavailable")));
    // Readers are not affected.
    assert_eq!(log(&server.url).await, [1]);
    other.batch_execute("ROLLBACK").unwrap();
    assert_eq!(post(&server.url, "/api/jobs", create("b")).await.0, 201);
    assert_eq!(log(&server.url).await, [1, 2], "and no number was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_reported_and_every_acknowledged_event_is_stored_once_in_order() {
    let folder = tempfile::tempdir().unwrap();
    some_jobs(folder.path(), 1).await;
    // No file may grow beyond this: writing fails as it does on a full disk.
    let mut limited = limited(folder.path(), "trap '' XFSZ; ulimit -f 600");
    let mut server = Process::start(&mut limited);
    let (mut acknowledged, mut rejected) = (1, 0);
    for number in 0..2_000 {
        let metadata = json!({"text": "y".repeat(4_000)});
        let body = json!({"job_id": format!("k{number}"), "job_type": "t", "metadata": metadata});
        match post(&server.url, "/api/jobs", body).await.0 {
            201 => acknowledged += 1,
            503 => rejected += 1,
            other => panic!("{other}"),
        }
        if rejected == 5 {
            break;
        }
    }
    assert_eq!(rejected, 5, "after {acknowledged}");
    // The log tells that it is so, and not each time.
    let mut log_lines = server.stderr();
    server.kill();
    let mut stderr = String::new();
    log_lines.read_to_string(&mut stderr).unwrap();
    let lines = stderr.lines().filter(|line| line.contains("ERROR"));
    let lines: Vec<_> = lines.collect();
    let about_commits = lines
        .iter()
        .filter(|line| line.contains("a commit failed and had no effect"));
    assert_eq!(about_commits.count(), 1, "{stderr}");
    assert!(lines.len() <= 2, "{stderr}");
    let server = Process::start(command(folder.path()).arg("serve"));
    let logged = log(&server.url).await;
    assert_eq!(logged, (1..=acknowledged).collect::<Vec<u64>>());
    let body = json!({"job_id": "again", "job_type": "t"});
    assert_eq!(post(&server.url, "/api/jobs", body).await.0, 201);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn reads_that_fail_are_logged_a_bounded_number_of_times() {
    let folder = tempfile::tempdir().unwrap();
    some_jobs(folder.path(), 400).await;
    let mut server = Process::start(command(folder.path()).arg("serve"));
    // All pages but the first: what is not in a cache is damaged.
    let path = database(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4_096..].fill(0xa5);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    let mut failed = 0;
    for number in 1..=100 {
        let address = format!("{}/api/jobs/j{number}", server.url);
        let request = reqwest::Client::new().get(address).bearer_auth(viewer(1));
        failed += usize::from(answer(request).await.0 == 503);
    }
    assert!(failed > 40, "{failed} of 100 reads failed");
    let mut log_lines = server.stderr();
    server.kill();
    let mut stderr = String::new();
    log_lines.read_to_string(&mut stderr).unwrap();
    let lines = stderr
        .lines()
        .filter(|line| line.contains("a request failed"));
    let count = lines.count();
    assert!((1..=40).contains(&count), "{count} lines: {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_changes_neither_order_nor_progress() {
    if !needs("cc") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    set_clock(&clock, 0);
    let server = Process::start(with_clock(command(folder.path()).arg("serve"), &clock));
    let mut claims = claims(Some(1), tidings::auth::Role::Worker);
    claims.exp += 30.0 * 86_400.0;
    let token = sign(&claims);
    let send = async |path: &str, body: Value| {
        let request = reqwest::Client::new().post(format!("{}{path}", server.url));
        answer(request.bearer_auth(&token).json(&body)).await
    };
    let create = json!({"job_id": "j", "job_type": "t", "status": "in_progress", "stall_after_secs": 0, "timeout_secs": 0});
    assert_eq!(send("/api/jobs", create).await.0, 201);
    let mut listener = Listener::open(
        Transport::WebSocket,
        &server.url,
        "/jobs?tick_ms=0",
        &token,
        None,
    )
    .await;
    listener.until_ready().await;
    for (percent, hours) in [(10, 0), (20, 48), (30, -3), (40, 5), (50, -24)] {
        set_clock(&clock, hours * 3_600);
        let (status, response) = send("/api/jobs/j/progress", json!({ "progress": percent })).await;
        assert_eq!(status, 200, "{response}");
        let heard = listener.next().await.unwrap();
        assert_eq!(
            (&heard["seq"], &heard["progress"]),
            (&response["seq"], &json!(f64::from(percent)))
        );
    }
    let (status, response) = send("/api/jobs/j/complete", json!({})).await;
    assert_eq!((status, &response["seq"]), (200, &json!(7)));
    assert_eq!(listener.next().await.unwrap()["status"], "completed");
}
