//! A database that is not as it was left: a power loss and older copies, whose readers are distinguished by their cursors, and what
//! is refused until `tidings new-epoch`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use diesel::connection::{Connection, SimpleConnection};
use serde_json::{Value, json};

use crate::disk::{database, post, rejection, rejection_of};
use crate::install::comes_back;
use crate::support::process::{Power, Process, command, run};
use crate::support::*;

fn start(folder: &Path) -> Process {
    Process::start(command(folder).arg("serve"))
}

async fn report(server: &Process, path: &str, body: Value) -> Value {
    let (status, response) = post(&server.url, path, body).await;
    assert!(status < 300, "{response}");
    response["cursor"].clone()
}

async fn create(server: &Process, id: &str) -> Value {
    let body = json!({"job_id": id, "job_type": "t"});
    report(server, "/api/jobs", body).await
}

/// The exit code, standard output and standard error of `tidings new-epoch`.
fn new_epoch(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = run(command(folder).arg("new-epoch").args(arguments));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn lock_file(folder: &Path) -> PathBuf {
    database(folder).with_extension("db.lock")
}

fn remove_journal(folder: &Path) {
    for journal in ["db-wal", "db-shm"] {
        // It is not there after an orderly end.
        let _ = std::fs::remove_file(database(folder).with_extension(journal));
    }
}

/// A copy of one moment, made while the server runs.
fn vacuum_into(folder: &Path, copy: &Path) {
    let path = database(folder);
    let mut conn = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    let sql = format!("VACUUM INTO '{}'", copy.display());
    conn.batch_execute(&sql).unwrap();
}

/// The reasons of the `reset`s that readers with these cursors get.
async fn resets(server: &Process, cursors: &[&Value]) -> Vec<String> {
    let mut reasons = Vec::new();
    for cursor in cursors {
        let back = comes_back(&server.url, &viewer(1), cursor).await;
        reasons.extend(back.err());
    }
    reasons
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_journal_is_gone_is_rejected_and_a_new_epoch_resets_every_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start(folder.path());
    let kept = create(&server, "kept").await;
    let path = database(folder.path());
    let lost = create(&server, "lost").await;
    server.kill();
    let journal = std::fs::read(path.with_extension("db-wal")).unwrap();
    remove_journal(folder.path());
    let before = std::fs::read(&path).unwrap();
    for _ in 0..2 {
        let complaint = rejection(folder.path());
        assert!(
            complaint.contains("its journal (-wal) is missing")
                && complaint.contains("tidings new-epoch"),
            "{complaint}"
        );
    }
    assert_eq!(std::fs::read(&path).unwrap(), before, "as it was");
    // Put back, it is all there.
    std::fs::write(path.with_extension("db-wal"), &journal).unwrap();
    let mut server = start(folder.path());
    assert_eq!(resets(&server, &[&kept, &lost]).await, [""; 0]);
    server.kill();
    std::fs::write(&path, &before).unwrap();
    remove_journal(folder.path());

    let (code, out, complaint) = new_epoch(folder.path(), &["--yes"]);
    assert_eq!(code, Some(0), "{complaint}");
    assert!(out.contains("All clients receive a reset"), "{out}");
    let mut server = start(folder.path());
    assert_eq!(resets(&server, &[&kept, &lost]).await, ["unknown_epoch"; 2]);
    let again = create(&server, "again").await;
    server.terminate();
    let server = start(folder.path());
    assert_eq!(resets(&server, &[&again]).await, [""; 0], "once");
}

/// A power loss takes the ticks since the last milestone; their numbers are given again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn after_a_power_loss_a_reader_of_lost_ticks_is_reset_and_every_other_one_goes_on() {
    if !needs("cc") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut power = Power::of(folder.path());
    let mut server = Process::start(&mut power.serve());
    create(&server, "a").await;
    // The journal begins empty, so that no checkpoint happens between the ticks.
    assert_eq!(server.terminate(), Some(0));
    let mut server = Process::start(&mut power.serve());
    let kept = report(&server, "/api/jobs/a/start", json!({})).await;
    let lost = [
        report(&server, "/api/jobs/a/progress", json!({"progress": 1})).await,
        report(&server, "/api/jobs/a/progress", json!({"progress": 2})).await,
    ];
    server.kill();
    power.is_lost();

    let mut server = Process::start(&mut power.serve());
    let (epoch, seq, _) = parts(&kept);
    let number = json!(format!("{epoch}-{seq}"));
    for passed in 0..=3 {
        assert_eq!(resets(&server, &[&kept]).await, [""; 0], "{passed}");
        let of_lost = resets(&server, &[&lost[0], &lost[1]]).await;
        assert_eq!(of_lost, ["history_changed"; 2], "{passed}");
        assert_eq!(resets(&server, &[&number]).await, ["unknown_epoch"]);
        let body = json!({"progress": 10 + passed});
        let event = report(&server, "/api/jobs/a/progress", body).await;
        assert_eq!(parts(&event).0, epoch);
        assert_eq!(parts(&event).1, seq + 1 + passed);
    }
    for transport in Transport::ALL {
        let open = async |cursor: &Value| {
            let cursor = cursor.as_str();
            let path = "/jobs?tick_ms=0";
            let mut back = Listener::open(transport, &server.url, path, &viewer(1), cursor).await;
            back.until_ready().await
        };
        let messages = open(&kept).await;
        let progress = field(&messages, "progress");
        let progress: Vec<_> = progress
            .into_iter()
            .filter(|value| value.is_f64())
            .collect();
        assert_eq!(progress, [10.0, 11.0, 12.0, 13.0], "{transport:?}");
        let messages = open(&lost[1]).await;
        assert_eq!(messages[1]["reason"], "history_changed", "{transport:?}");
    }
    server.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_gone_or_emptied_is_not_begun_anew_until_its_traces_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(folder.path());
    for is_killed in [false, true] {
        let mut server = start(folder.path());
        create(&server, &is_killed.to_string()).await;
        match is_killed {
            true => server.kill(),
            false => assert_eq!(server.terminate(), Some(0)),
        }
        let whole = std::fs::read(&path).unwrap();
        let journal = std::fs::read(path.with_extension("db-wal")).ok();
        for is_emptied in [false, true] {
            remove_journal(folder.path());
            std::fs::remove_file(&path).unwrap();
            if is_emptied {
                std::fs::write(&path, "").unwrap();
            }
            let complaint = rejection(folder.path());
            let lock = lock_file(folder.path()).display().to_string();
            assert!(
                complaint.contains("is missing or empty")
                    && complaint.contains(&format!("for a fresh start remove {lock}")),
                "{complaint}"
            );
            let size = std::fs::metadata(&path).ok().map(|file| file.len());
            assert_eq!(size, is_emptied.then_some(0), "as it was");
            std::fs::write(&path, &whole).unwrap();
        }
        if let Some(journal) = journal {
            std::fs::write(path.with_extension("db-wal"), journal).unwrap();
        }
    }
    remove_journal(folder.path());
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(lock_file(folder.path())).unwrap();
    let server = start(folder.path());
    create(&server, "first").await;
}

/// A server that generates its secret.
fn serve_without_a_secret(folder: &Path) -> Command {
    let mut serve = command(folder);
    serve.arg("serve").env_remove("TIDINGS_JWT_SECRET");
    serve
}

#[test]
fn a_secret_without_its_database_is_a_trace_too() {
    let folder = tempfile::tempdir().unwrap();
    let serve = || serve_without_a_secret(folder.path());
    Process::start(&mut serve()).terminate();
    let secret = folder.path().join("data/jwt_secret");
    let was = std::fs::read(&secret).unwrap();
    std::fs::remove_file(database(folder.path())).unwrap();
    std::fs::remove_file(lock_file(folder.path())).unwrap();
    let complaint = rejection_of(&mut serve());
    let shown = secret.display().to_string();
    assert!(
        complaint.contains(&format!("for a fresh start remove {shown}")),
        "{complaint}"
    );
    assert!(!database(folder.path()).exists());
    // An empty lock file says that a fresh start is meant, and the secret stays.
    std::fs::write(lock_file(folder.path()), "").unwrap();
    Process::start(&mut serve()).terminate();
    assert_eq!(std::fs::read(&secret).unwrap(), was);
}

#[test]
fn a_start_that_fails_leaves_no_secret_behind() {
    let folder = tempfile::tempdir().unwrap();
    let serve = || serve_without_a_secret(folder.path());
    for (setting, value) in [
        ("TIDINGS_BUS_URL", "redis://127.0.0.1:1"),
        ("TIDINGS_JWT_JWKS_FILE", "/nowhere/keys.json"),
    ] {
        rejection_of(serve().env(setting, value));
        assert!(!folder.path().join("data/jwt_secret").exists(), "{setting}");
    }
    Process::start(&mut serve()).terminate();
}

/// Puts a database in the place of that which is there.
fn put(copy: &Path, folder: &Path) {
    remove_journal(folder);
    std::fs::copy(copy, database(folder)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn an_older_copy_of_the_database_is_accepted_and_only_readers_of_what_it_lacks_are_reset() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(folder.path());
    let (stopped, running) = (folder.path().join("stopped"), folder.path().join("running"));
    let newest = folder.path().join("newest");
    let mut server = start(folder.path());
    let kept = create(&server, "kept").await;
    server.terminate();
    std::fs::copy(&path, &stopped).unwrap();
    let mut server = start(folder.path());
    vacuum_into(folder.path(), &running);
    let lost = [create(&server, "lost").await, create(&server, "too").await];
    let mut since: Vec<Value> = Vec::new();
    for (copy, is_killed) in [
        (&stopped, false),
        (&running, false),
        (&stopped, true),
        (&running, true),
    ] {
        match is_killed {
            true => server.kill(),
            false => assert_eq!(server.terminate(), Some(0)),
        }
        if !is_killed && !newest.exists() {
            std::fs::copy(&path, &newest).unwrap();
        }
        put(copy, folder.path());
        server = start(folder.path());
        let mut after = Vec::new();
        for passed in 0..4 {
            let gone: Vec<&Value> = lost.iter().chain(&since).collect();
            let expected = vec!["history_changed"; gone.len()];
            assert_eq!(resets(&server, &gone).await, expected, "{copy:?} {passed}");
            let here: Vec<&Value> = after.iter().chain([&kept]).collect();
            assert_eq!(resets(&server, &here).await, [""; 0], "{copy:?} {passed}");
            after.push(create(&server, &format!("after{passed}")).await);
        }
        assert_eq!(parts(&after[3]).0, parts(&kept).0);
        since.extend(after);
    }
    // What is put back is a copy, too, and has what it has.
    server.terminate();
    put(&newest, folder.path());
    let server = start(folder.path());
    assert_eq!(resets(&server, &[&kept, &lost[0], &lost[1]]).await, [""; 0]);
    let gone: Vec<&Value> = since.iter().collect();
    assert_eq!(
        resets(&server, &gone).await,
        vec!["history_changed"; gone.len()]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn over_an_older_copy_that_was_written_on_every_transport_honours_and_resets_the_same_cursors()
 {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let mut server = start(folder.path());
    let kept = create(&server, "kept").await;
    assert_eq!(server.terminate(), Some(0));
    std::fs::copy(database(folder.path()), &copy).unwrap();
    let mut server = start(folder.path());
    let lost = [create(&server, "lost").await, create(&server, "too").await];
    assert_eq!(server.terminate(), Some(0));
    put(&copy, folder.path());
    let server = start(folder.path());
    let mut after = Vec::new();
    for id in ["new", "newer", "newest"] {
        after.push(create(&server, id).await);
    }
    let (epoch, highest, _) = parts(&lost[1]);
    assert_eq!(parts(&after[2]).0, epoch);
    assert!(parts(&after[2]).1 > highest, "beyond the old numbers");

    let cases: [(&Value, bool, &[&str]); 6] = [
        (&kept, false, &["new", "newer", "newest"]),
        (&lost[0], true, &["kept", "new", "newer", "newest"]),
        (&lost[1], true, &["kept", "new", "newer", "newest"]),
        (&after[0], false, &["newer", "newest"]),
        (&after[1], false, &["newest"]),
        (&after[2], false, &[]),
    ];
    for transport in Transport::ALL {
        for (cursor, is_reset, expected) in cases {
            let (text, viewer) = (cursor.as_str(), viewer(1));
            let path = "/jobs?tick_ms=0";
            let mut back = Listener::open(transport, &server.url, path, &viewer, text).await;
            let received = back.until_ready().await;
            let resets: Vec<_> = received
                .iter()
                .filter(|message| message["type"] == "reset")
                .collect();
            let reasons: Vec<_> = resets.iter().map(|reset| &reset["reason"]).collect();
            let reason = json!("history_changed");
            let wanted: &[&Value] = if is_reset { &[&reason] } else { &[] };
            assert_eq!(reasons, wanted, "{transport:?} {cursor}");
            let ids: Vec<&str> = received
                .iter()
                .filter_map(|message| message["job_id"].as_str())
                .collect();
            assert_eq!(ids, expected, "{transport:?} {cursor}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_its_journal_and_another_database_are_rejected_and_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(folder.path());
    let (torn, whole) = (folder.path().join("torn"), folder.path().join("whole"));
    let mut server = start(folder.path());
    create(&server, "a").await;
    let lost = create(&server, "b").await;
    std::fs::copy(&path, &torn).unwrap();
    vacuum_into(folder.path(), &whole);
    let elsewhere = tempfile::tempdir().unwrap();
    start(elsewhere.path()).terminate();
    for is_killed in [false, true] {
        match is_killed {
            true => server.kill(),
            false => assert_eq!(server.terminate(), Some(0)),
        }
        for (copy, reason) in [
            (&torn, "its journal (-wal) is missing"),
            (
                &database(elsewhere.path()),
                "is not the database that was last open here",
            ),
        ] {
            put(copy, folder.path());
            let complaint = rejection(folder.path());
            assert!(
                complaint.contains(reason) && complaint.contains("tidings new-epoch"),
                "{copy:?}: {complaint}"
            );
            let was = std::fs::read(copy).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), was, "as it was");
        }
        put(&whole, folder.path());
        server = start(folder.path());
    }
    server.kill();
    // The journal of another database would damage the copy.
    std::fs::copy(&whole, &path).unwrap();
    let complaint = rejection(folder.path());
    assert!(
        complaint.contains("(-wal) next to it belongs to another"),
        "{complaint}"
    );
    let (code, _, complaint) = new_epoch(folder.path(), &["--yes"]);
    assert_eq!(code, Some(1));
    assert!(
        complaint.contains("(-wal) next to it belongs to another"),
        "{complaint}"
    );
    put(&database(elsewhere.path()), folder.path());
    assert_eq!(new_epoch(folder.path(), &["--yes"]).0, Some(0));
    let server = start(folder.path());
    assert_eq!(resets(&server, &[&lost]).await, ["unknown_epoch"]);
}

/// From the first moment, and without the lock file.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_file_alone_from_a_running_server_is_rejected_in_any_folder() {
    let folder = tempfile::tempdir().unwrap();
    for state in ["new", "closed before"] {
        let mut server = start(folder.path());
        create(&server, &state.replace(' ', "-")).await;
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::create_dir(elsewhere.path().join("data")).unwrap();
        std::fs::copy(database(folder.path()), database(elsewhere.path())).unwrap();
        let complaint = rejection(elsewhere.path());
        assert!(
            complaint.contains("its journal (-wal) is missing"),
            "{state}: {complaint}"
        );
        assert_eq!(server.terminate(), Some(0));
    }
}

/// Returns a connection of another process that reads the database as it is now, until it is dropped.
fn reader(folder: &Path) -> diesel::SqliteConnection {
    let file = database(folder);
    let mut reader = diesel::SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    let read = "BEGIN; SELECT count(*) FROM jobs";
    reader.batch_execute(read).unwrap();
    reader
}

/// A replicator, for example.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_while_another_process_reads_and_warns_that_its_mark_is_not_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start(folder.path());
    create(&server, "seen").await;
    let _reader = reader(folder.path());
    assert_eq!(server.terminate(), Some(0));
    let mut serve = command(folder.path());
    let mut server = Process::start(serve.arg("serve").stderr(Stdio::piped()));
    create(&server, "later").await;
    assert_eq!(server.terminate(), Some(0));
    let log = std::io::read_to_string(server.stderr()).unwrap();
    assert!(log.contains("another process reads the database"), "{log}");
}

/// Another process reads an older state, so SQLite cannot copy the journal into the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_journal_was_left_when_the_server_stopped_is_rejected_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start(folder.path());
    create(&server, "seen").await;
    let (file, reader) = (database(folder.path()), reader(folder.path()));
    let later = create(&server, "later").await;
    assert_eq!(server.terminate(), Some(0));
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(elsewhere.path().join("data")).unwrap();
    let copy = database(elsewhere.path());
    for suffix in ["", ".lock"] {
        let named = |path: &Path| format!("{}{suffix}", path.display());
        std::fs::copy(named(&file), named(&copy)).unwrap();
    }
    let complaint = rejection(elsewhere.path());
    assert!(
        complaint.contains("its journal (-wal) is missing"),
        "{complaint}"
    );
    // Where the journal is, nothing is lost.
    drop(reader);
    let server = start(folder.path());
    assert!(resets(&server, &[&later]).await.is_empty());
}

/// The table of docs/backup.md.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn of_a_copy_in_another_place_is_recognised_what_the_page_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = start(folder.path());
    let kept = create(&server, "kept").await;
    let elsewhere = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [running, stopped] = elsewhere.each_ref().map(tempfile::TempDir::path);
    for folder in [running, stopped] {
        std::fs::create_dir(folder.join("data")).unwrap();
    }
    // Made while the server ran, and while it was stopped; without the lock file.
    vacuum_into(folder.path(), &database(running));
    server.terminate();
    std::fs::copy(database(folder.path()), database(stopped)).unwrap();
    let mut server = start(folder.path());
    let lost = create(&server, "lost").await;
    let beyond = create(&server, "lost too").await;
    server.terminate();

    for (place, number) in [(running, "unknown_epoch"), (stopped, "")] {
        let mut server = start(place);
        assert_eq!(resets(&server, &[&kept]).await, [""; 0]);
        assert_eq!(resets(&server, &[&beyond]).await, ["history_changed"]);
        let mut after = Vec::new();
        for id in ["new", "newer", "newest"] {
            after.push(create(&server, id).await);
        }
        assert_eq!(
            resets(&server, &[&lost, &beyond]).await,
            ["history_changed"; 2],
            "their numbers have been given again"
        );
        assert_eq!(resets(&server, &[&kept]).await, [""; 0]);
        let since = comes_back(&server.url, &viewer(1), &after[0]).await;
        assert_eq!(since.unwrap(), ["newer", "newest"]);
        let (epoch, seq, _) = parts(&lost);
        let untagged = json!(format!("{epoch}-{seq}"));
        let expected = Some(number).filter(|reason| !reason.is_empty());
        assert_eq!(
            resets(&server, &[&untagged]).await,
            Vec::from_iter(expected)
        );
        server.terminate();
        assert_eq!(new_epoch(place, &["--yes"]).0, Some(0));
        let server = start(place);
        let all = resets(&server, &[&kept, &beyond]).await;
        assert_eq!(all, ["unknown_epoch"; 2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_epoch_asks_first_and_says_by_its_exit_code_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, complaint) = new_epoch(folder.path(), &["--yes"]);
    assert_eq!(code, Some(4), "{complaint}");
    assert!(!database(folder.path()).exists());
    let mut server = start(folder.path());
    let cursor = create(&server, "a").await;
    server.terminate();
    let before = std::fs::read(database(folder.path())).unwrap();
    let (code, _, complaint) = new_epoch(folder.path(), &[]);
    assert_eq!(code, Some(2));
    assert!(complaint.contains("--yes is required"), "{complaint}");
    if needs("script") {
        for (answer, expected) in [("n", 1), ("", 1), ("yes", 0)] {
            assert_eq!(std::fs::read(database(folder.path())).unwrap(), before);
            let mut new_epoch_command = command(folder.path());
            let program = new_epoch_command.get_program().to_str().unwrap().to_owned();
            let on_a_terminal =
                format!("printf '{answer}\\n' | script -qefc '{program} new-epoch' /dev/null");
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &on_a_terminal])
                .current_dir(folder.path());
            for (name, value) in new_epoch_command.env("TERM", "dumb").get_envs() {
                shell.env(name, value.unwrap_or_default());
            }
            let output = shell.output().unwrap();
            let shown = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(expected), "{answer}: {shown}");
            assert!(
                shown.contains("This cannot be undone. Continue? [y/N]"),
                "{shown}"
            );
        }
        let server = start(folder.path());
        assert_eq!(resets(&server, &[&cursor]).await, ["unknown_epoch"]);
    }
}
