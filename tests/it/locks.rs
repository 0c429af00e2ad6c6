//! One server for a database, whatever path leads to it and whatever becomes of its lock file.

use std::os::unix::fs::symlink;
use std::path::Path;

use diesel::connection::{Connection, SimpleConnection};
use serde_json::json;
use tidings::config::Settings;
use tidings::log::{Committed, Journal};
use tidings::store::sqlite::{OpenError, SqliteStore};

use crate::disk::{database, log, post, refusal_of, some_jobs};
use crate::support::process::{Process, command};

fn refusal_by(folder: &Path, path: &Path, arguments: &[&str]) -> String {
    let mut other = command(folder);
    refusal_of(
        other
            .args(arguments)
            .env("TIDINGS_DATABASE_URL", path)
            .env("TIDINGS_DATA_DIR", folder.join("other")),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_to_a_database_lets_a_second_process_in() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let path = database(folder.path());
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("other")).unwrap();
    symlink(&path, at("other/linked.db")).unwrap();
    symlink(at("other/linked.db"), at("other/twice.db")).unwrap();
    symlink(folder.path().join("data"), at("folder")).unwrap();
    std::fs::hard_link(&path, at("other/hard.db")).unwrap();
    let paths = [
        path.clone(),
        at("other/linked.db"),
        at("other/twice.db"),
        at("folder/tidings.db"),
        at("data/../data/tidings.db"),
        Path::new("data/tidings.db").to_path_buf(),
        at("other/hard.db"),
    ];
    for without_lock_file in [false, true] {
        if without_lock_file {
            std::fs::remove_file(path.with_extension("db.lock")).unwrap();
        }
        for path in &paths {
            for arguments in [&["serve"][..], &["new-epoch", "--yes"]] {
                let said = refusal_by(folder.path(), path, arguments);
                assert!(
                    said.contains("is in use by another process"),
                    "{path:?}: {said}"
                );
            }
        }
    }
    let body = json!({"job_id": "a", "job_type": "t"});
    assert_eq!(post(&server.url, "/api/jobs", body).await.0, 201);
    server.kill();
    // The locks end with the process, and a link is as good as the file.
    let mut linked = command(folder.path());
    linked
        .arg("serve")
        .env("TIDINGS_DATABASE_URL", at("other/twice.db"));
    let server = Process::start(&mut linked);
    assert_eq!(log(&server.url).await, [1]);
}

/// SQLite's own locks keep another program from taking the journal away. They end when any descriptor of the file is closed.
#[tokio::test(flavor = "multi_thread")]
async fn another_program_that_looks_at_an_open_database_leaves_its_journal() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    some_jobs(folder.path(), 1).await;
    let path = database(folder.path());
    // So that the database is checked, and read ahead.
    std::fs::write(path.with_extension("db.lock"), "").unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let journal = path.with_extension("db-wal");
    let before = std::fs::metadata(&journal).unwrap().ino();
    for number in 0..3 {
        let body = json!({"job_id": number.to_string(), "job_type": "t"});
        assert_eq!(post(&server.url, "/api/jobs", body).await.0, 201);
        let mut other = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        other
            .batch_execute("SELECT count(*) FROM events; BEGIN IMMEDIATE; COMMIT")
            .unwrap();
        drop(other);
        assert_eq!(std::fs::metadata(&journal).unwrap().ino(), before);
    }
    server.kill();
    let server = Process::start(command(folder.path()).arg("serve"));
    assert_eq!(log(&server.url).await, [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_lets_go_of_its_database_when_it_is_closed_and_not_before() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("test.db");
    let open = || {
        let (committed, _) = Committed::channel(1);
        SqliteStore::open(&Settings::default(), &path, committed, &[])
    };
    let first = open().unwrap();
    assert!(matches!(open(), Err(OpenError::InUse(_))));
    first.close().await.unwrap();
    assert!(
        !path.with_extension("db-wal").exists(),
        "everything is in the database"
    );
    let second = open().unwrap();
    // What is left of the first has nothing to do with the file any more.
    drop(first);
    assert!(matches!(open(), Err(OpenError::InUse(_))));
    second.ping().await.unwrap();
}
