//! What a start says, checks and refuses, and what a running server notices of its files.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use diesel::connection::{Connection, SimpleConnection};
use diesel::sqlite::SqliteConnection;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::disk::{database, log, post, rejection, some_jobs};
use crate::notify::receivers::free_port;
use crate::support::process::{Guarded, Patient, Process, command, status_of};
use crate::support::*;

fn other(path: &Path) -> SqliteConnection {
    SqliteConnection::establish(path.to_str().unwrap()).unwrap()
}

async fn get(url: &str) -> Option<(u16, Option<String>, Value)> {
    let response = reqwest::get(url).await.ok()?;
    let retry_after = response.headers().get("retry-after").cloned();
    let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    Some((
        status,
        retry_after,
        serde_json::from_str(&text).unwrap_or(Value::Null),
    ))
}

/// A server that waits for somebody else's lock on its database, which it does for some seconds.
fn waiting(folder: &Path, port: u16) -> (SqliteConnection, Guarded) {
    let mut lock = other(&database(folder));
    lock.batch_execute("BEGIN IMMEDIATE").unwrap();
    let mut serve = command(folder);
    serve
        .arg("serve")
        .env("ROCKET_PORT", port.to_string())
        .env("TIDINGS_BASE_PATH", "/live")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    (lock, Guarded(serve.spawn().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn while_the_database_is_opened_the_server_lives_and_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    some_jobs(folder.path(), 1).await;
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let (mut lock, mut child) = waiting(folder.path(), port);
    until("it answers", async || {
        get(&format!("{url}/healthz")).await.is_some()
    })
    .await;
    for alive in ["/healthz", "/live/healthz"] {
        assert_eq!(get(&format!("{url}{alive}")).await.unwrap().0, 200);
    }
    for path in ["/readyz", "/api/jobs", "/events/jobs", "/monitor", "/"] {
        let (status, retry_after, problem) = get(&format!("{url}{path}")).await.unwrap();
        assert_eq!((status, &problem["code"]), (503, &json!("unavailable")));
        assert!(problem["detail"].as_str().unwrap().starts_with("checking"));
        assert!(retry_after.is_some());
    }
    let body = json!({"job_id": "a", "job_type": "t"});
    assert_eq!(post(&url, "/api/jobs", body.clone()).await.0, 503);
    // A connection that stays open does not keep the address from the real server.
    let idle = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    lock.batch_execute("ROLLBACK").unwrap();
    until("it is ready", async || {
        let ready = get(&format!("{url}/readyz")).await;
        ready.is_some_and(|(status, ..)| status == 200)
    })
    .await;
    assert_eq!(post(&url, "/api/jobs", body).await.0, 201);
    drop(idle);
    child.0.kill().unwrap();
    let mut printed = String::new();
    let mut stdout = Patient(child.0.stdout.take().unwrap());
    stdout.read_to_string(&mut printed).unwrap();
    assert_eq!(printed, format!("Tidings listens on {url}\n"), "once");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_signal_ends_a_server_whose_database_is_still_being_opened() {
    let folder = tempfile::tempdir().unwrap();
    some_jobs(folder.path(), 1).await;
    let port = free_port();
    let (_lock, mut child) = waiting(folder.path(), port);
    let alive = format!("http://127.0.0.1:{port}/healthz");
    until("it answers", async || get(&alive).await.is_some()).await;
    let id = child.0.id().to_string();
    let asked = Instant::now();
    let sent = std::process::Command::new("kill")
        .args(["-s", "TERM", &id])
        .status();
    assert!(sent.unwrap().success());
    assert_eq!(status_of(&mut child.0).code(), Some(0));
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

/// Starts a server over this database.
fn over_postgres(serve: &mut std::process::Command, url: &str) -> Guarded {
    serve
        .arg("serve")
        .env("TIDINGS_DATABASE_URL", url)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped());
    Guarded(serve.spawn().unwrap())
}

/// Passes connections on to Postgres, until it is dropped.
fn passing(port: u16, database: &str) -> AbortOnDropHandle<()> {
    let postgres: u16 = database.rsplit([':', '/']).nth(1).unwrap().parse().unwrap();
    AbortOnDropHandle::new(tokio::spawn(async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", postgres)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    }))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_node_that_starts_before_its_database_waits_for_it_and_says_so() {
    let Some(database) = crate::support::postgres::database() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (port, place) = (free_port(), free_port());
    let (_, name) = database.url.rsplit_once('/').unwrap();
    let mut serve = command(folder.path());
    serve.env("ROCKET_PORT", port.to_string());
    let away = format!("postgres://tidings:hush@127.0.0.1:{place}/{name}");
    let mut child = over_postgres(&mut serve, &away);
    let url = format!("http://127.0.0.1:{port}");
    until("it says what it waits for", async || {
        let ready = get(&format!("{url}/readyz")).await;
        ready.is_some_and(|(status, retry_after, problem)| {
            let detail = problem["detail"].as_str().unwrap_or_default();
            status == 503 && retry_after.is_some() && detail.starts_with("waiting: ")
        })
    })
    .await;
    assert_eq!(get(&format!("{url}/healthz")).await.unwrap().0, 200);
    let _passing = passing(place, &database.url);
    until("it is ready", async || {
        let ready = get(&format!("{url}/readyz")).await;
        ready.is_some_and(|(status, ..)| status == 200)
    })
    .await;
    child.0.kill().unwrap();
    let mut log = String::new();
    let mut stderr = Patient(child.0.stderr.take().unwrap());
    stderr.read_to_string(&mut log).unwrap();
    for expected in [
        "the server cannot start yet",
        "Connection refused",
        "the database can be reached",
    ] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    assert!(!log.contains("hush"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_its_database_rejects_does_not_start() {
    let Some(database) = crate::support::postgres::database() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let absent = format!("{}_absent", database.url);
    let mut child = over_postgres(&mut command(folder.path()), &absent);
    let mut log = String::new();
    let mut stderr = Patient(child.0.stderr.take().unwrap());
    stderr.read_to_string(&mut log).unwrap();
    assert!(!status_of(&mut child.0).success());
    for expected in ["`database_url`", "refuses the connection", "does not exist"] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
}

/// Damages a page, such that neither size nor time of the file tell.
fn rot(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let metadata = file.metadata().unwrap();
    let middle = metadata.len() / 2 / 4_096 * 4_096;
    file.write_all_at(&[0xa5; 4_096], middle).unwrap();
    file.set_modified(metadata.modified().unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_checked_unless_it_is_as_the_server_left_it() {
    let folder = tempfile::tempdir().unwrap();
    some_jobs(folder.path(), 40).await;
    let path = database(folder.path());
    let whole = std::fs::read(&path).unwrap();
    rot(&path);
    let mut server = Process::start(command(folder.path()).arg("serve"));
    // Not checked: it was closed in good order. And now it is not.
    server.kill();
    assert!(rejection(folder.path()).contains("damaged"));
    // Nor does a file pass that somebody else has written.
    std::fs::remove_file(path.with_extension("db-wal")).unwrap();
    std::fs::remove_file(path.with_extension("db-shm")).unwrap();
    std::fs::write(&path, &whole).unwrap();
    std::fs::remove_file(path.with_extension("db.lock")).unwrap();
    rot(&path);
    assert!(
        rejection(folder.path()).contains("damaged"),
        "never opened here"
    );
    let unchecked = command(folder.path())
        .arg("serve")
        .env("TIDINGS_CHECK_DATABASE", "false")
        .env("ROCKET_PORT", "0")
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut unchecked = Guarded(unchecked.unwrap());
    let mut line = String::new();
    let stdout = Patient(unchecked.0.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert!(line.starts_with("Tidings listens on"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_newer_program_or_of_another_one_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    some_jobs(folder.path(), 1).await;
    let path = database(folder.path());
    other(&path)
        .batch_execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('99999999999999')")
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    let complaint = rejection(folder.path());
    let newest = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite"));
    let names = newest.unwrap().map(|entry| entry.unwrap().file_name());
    let newest = names.max().unwrap().into_string().unwrap();
    let newest = newest.split('_').next().unwrap();
    assert!(
        complaint.contains("99999999999999") && complaint.contains(newest),
        "{complaint}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let path = database(folder.path());
    other(&path)
        .batch_execute("CREATE TABLE recipes (name TEXT)")
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    let complaint = rejection(folder.path());
    assert!(
        complaint.contains("a database of another program"),
        "{complaint}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_may_read_the_files_that_a_server_makes() {
    let folder = tempfile::tempdir().unwrap();
    let mut serve = command(folder.path());
    serve.arg("serve").env_remove("TIDINGS_JWT_SECRET");
    let mut server = Process::start(&mut serve);
    let data = folder.path().join("data");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    let mut names = Vec::new();
    for entry in data.read_dir().unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600, "{entry:?}");
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    let expected = ["", ".lock", "-shm", "-wal"].map(|end| format!("tidings.db{end}"));
    let mut expected = expected.to_vec();
    expected.push("jwt_secret".into());
    expected.sort();
    assert_eq!(names, expected);
    assert_eq!(server.terminate(), Some(0));

    // What somebody has chosen stays, with a word.
    let shared = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(database(folder.path()), shared).unwrap();
    let mut server = Process::start(&mut serve);
    assert_eq!(mode(&database(folder.path())), 0o644);
    server.terminate();
    let mut stderr = String::new();
    server.stderr().read_to_string(&mut stderr).unwrap();
    assert!(
        stderr.contains("every user of this machine can reach the database"),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_removed_or_replaced_while_the_server_runs_stop_writing_until_they_are_back()
{
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let create = |id: &str| json!({"job_id": id, "job_type": "t"});
    assert_eq!(post(&server.url, "/api/jobs", create("a")).await.0, 201);
    let path = database(folder.path());
    let away = folder.path().join("away");
    let ready = format!("{}/readyz", server.url);
    let files = [path.clone(), path.with_extension("db-wal")];
    for (round, file) in files.iter().enumerate() {
        for is_replaced in [false, true] {
            std::fs::rename(file, &away).unwrap();
            if is_replaced {
                std::fs::copy(&away, file).unwrap();
            }
            for _ in 0..3 {
                let (status, problem) = post(&server.url, "/api/jobs", create("b")).await;
                assert_eq!(status, 503, "{problem}");
                let (status, _, problem) = get(&ready).await.unwrap();
                let detail = problem["detail"].as_str().unwrap();
                assert_eq!(status, 503);
                assert!(detail.contains("removed or replaced"), "{detail}");
            }
            // Reading goes on.
            assert_eq!(
                log(&server.url).await.len(),
                1 + round * 2 + usize::from(is_replaced)
            );
            std::fs::rename(&away, file).unwrap();
            assert_eq!(get(&ready).await.unwrap().0, 200);
            let id = format!("{round}{is_replaced}");
            assert_eq!(post(&server.url, "/api/jobs", create(&id)).await.0, 201);
        }
    }
    assert_eq!(server.terminate(), Some(0));
    let mut stderr = String::new();
    server.stderr().read_to_string(&mut stderr).unwrap();
    assert_eq!(
        stderr.matches("was removed or replaced").count(),
        4,
        "{stderr}"
    );
    assert_eq!(
        stderr.matches("is back in its place").count(),
        4,
        "{stderr}"
    );
    let server = Process::start(command(folder.path()).arg("serve"));
    assert_eq!(log(&server.url).await, [1, 2, 3, 4, 5]);
}
