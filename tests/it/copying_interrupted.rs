//! `tidings copy` that is killed, and targets that it must not touch.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use tokio_postgres::{Client, NoTls};

use crate::support::process::{Guarded, Patient, Process, command, run};
use crate::support::store;
use crate::support::*;

/// More than two pages of events, and more than two of subjects.
const JOBS: usize = 250;
const UPDATES: usize = 4;

fn copy(folder: &Path, url: &str) -> std::process::Command {
    let mut copy = command(folder);
    copy.env_remove("TIDINGS_DATABASE_URL")
        .args(["copy", "--to", url]);
    copy
}

/// Publishes jobs in a school, on SQLite.
async fn publish(folder: &Path, schools: &[i64], jobs: usize) {
    let mut serve = command(folder);
    let mut server = Process::start(serve.env_remove("TIDINGS_DATABASE_URL").arg("serve"));
    let client = reqwest::Client::new();
    for &school in schools {
        for job in 0..jobs {
            let new =
                json!({"job_id": format!("j{job}"), "job_type": "t", "status": "in_progress"});
            let mut requests = vec![("/api/jobs".to_owned(), new)];
            requests.extend((1..UPDATES).map(|step| {
                let body = json!({"progress": step * 10});
                (format!("/api/jobs/j{job}/progress"), body)
            }));
            for (path, body) in requests {
                let request = client.post(format!("{}{path}", server.url));
                let request = request.bearer_auth(worker(school)).json(&body);
                let (status, response) = answer(request).await;
                assert!(status < 300, "{path}: {status} {response}");
            }
        }
    }
    server.terminate();
}

async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn count(client: &Client, table: &str) -> i64 {
    let query = format!("SELECT count(*) FROM {table}");
    client.query_one(&query, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: thousands of requests"]
async fn a_copy_that_is_killed_after_its_first_progress_line_is_repeated_with_all_pages() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let Some(url) = store::postgres_of(folder) else {
        return;
    };
    publish(folder, &[1, 2], JOBS).await;
    let output = run(&mut copy(folder, &url));
    assert!(output.status.success(), "{output:?}");
    let target = client(&url).await;
    let all = (
        count(&target, "events").await,
        count(&target, "subjects").await,
    );
    assert_eq!(all.1, 2 * JOBS as i64);
    assert!(all.0 > 1_000, "more than one page of events: {all:?}");

    // The same again, but the copy of the second school waits before its first subject.
    target
        .batch_execute(
            "INSERT INTO meta SELECT 'copied_from', value FROM meta WHERE key = 'epoch';
             CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
             CREATE TRIGGER waits BEFORE INSERT ON subjects FOR EACH ROW
               WHEN (NEW.school_id = 2) EXECUTE FUNCTION waits();
             SELECT pg_advisory_lock(1)",
        )
        .await
        .unwrap();
    let child = copy(folder, &url)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let mut child = Guarded(child.unwrap());
    let stderr = child.0.stderr.take().unwrap();
    let mut line = String::new();
    BufReader::new(Patient(stderr))
        .read_line(&mut line)
        .unwrap();
    assert!(line.contains("0 of 2 schools, "), "{line}");
    until("the copy waits in the second school", async || {
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        let row = target.query_one(waits, &[]).await.unwrap();
        row.get::<_, i64>(0) == 1
    })
    .await;
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    assert_eq!(
        count(&target, "schools").await,
        1,
        "only the first is complete"
    );
    let rejected = run(command(folder)
        .env("TIDINGS_DATABASE_URL", &url)
        .arg("serve"));
    let stderr = String::from_utf8_lossy(&rejected.stderr).into_owned();
    assert!(stderr.contains("incomplete copy"), "{stderr}");

    // The copy of another source must not complete it.
    let other = tempfile::tempdir().unwrap();
    publish(other.path(), &[1], 1).await;
    let output = run(&mut copy(other.path(), &url));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("is not empty"), "{stderr}");

    target
        .batch_execute(
            "SELECT pg_advisory_unlock(1); DROP TRIGGER waits ON subjects; DROP FUNCTION waits",
        )
        .await
        .unwrap();
    let output = run(&mut copy(folder, &url));
    assert!(output.status.success(), "{output:?}");
    let again = (
        count(&target, "events").await,
        count(&target, "subjects").await,
    );
    assert_eq!(again, all);

    // Another installation must not replace it, either.
    let output = run(&mut copy(other.path(), &url));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("is not empty"), "{stderr}");
    assert_eq!(count(&target, "subjects").await, all.1);
}
