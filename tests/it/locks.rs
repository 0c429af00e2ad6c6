//! One server for a database, whatever path leads to it and whatever becomes of its lock file.

use std::os::unix::fs::symlink;
use std::path::Path;

use diesel::connection::{Connection, SimpleConnection};
use serde_json::json;
use tidings::config::Settings;
use tidings::log::{Committed, Journal};
use tidings::store::sqlite::{OpenError, SqliteStore};

use crate::disk::{database, log, post, rejection_of, some_jobs};
use crate::support::process::{Process, command};

fn rejection_by(folder: &Path, path: &Path, arguments: &[&str]) -> String {
    let mut other = command(folder);
    rejection_of(
        other
            .args(arguments)
            .env("TIDINGS_DATABASE_URL", path)
            .env("TIDINGS_DATA_DIR", folder.join("other")),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_to_a_database_lets_a_second_process_open_it() {
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
                let problem = rejection_by(folder.path(), path, arguments);
                assert!(
                    problem.contains("is in use by another process"),
                    "{path:?}: {problem}"
                );
            }
        }
    }
    let body = json!({"job_id": "a", "job_type": "t"});
    assert_eq!(post(&server.url, "/api/jobs", body).await.0, 201);
    server.kill();
    // The locks end with the process, and a link counts as the file.
    let mut linked = command(folder.path());
    linked
        .arg("serve")
        .env("TIDINGS_DATABASE_URL", at("other/twice.db"));
    let server = Process::start(&mut linked);
    assert_eq!(log(&server.url).await, [1]);
}

/// SQLite's own locks keep another program from taking the journal away. They end when any descriptor of the file is closed.
/// SQLite 3.51 and later see by the journal's index that it is in use even so; older ones in other programs do not.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn sqlites_lock_on_a_database_is_held_as_long_as_it_is_open() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    some_jobs(folder.path(), 1).await;
    let path = database(folder.path());
    // So that the database is checked, and read ahead.
    std::fs::write(path.with_extension("db.lock"), "").unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let is_locked = || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let place = format!(":{} ", inode(&path));
        locks
            .lines()
            .any(|lock| lock.contains(" POSIX ") && lock.contains(&place))
    };
    let journal = path.with_extension("db-wal");
    let before = inode(&journal);
    for number in 0..3 {
        let body = json!({"job_id": number.to_string(), "job_type": "t"});
        assert_eq!(post(&server.url, "/api/jobs", body).await.0, 201);
        assert!(is_locked(), "after a commit");
        let mut other = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        other
            .batch_execute("SELECT count(*) FROM events; BEGIN IMMEDIATE; COMMIT")
            .unwrap();
        drop(other);
        assert!(is_locked(), "after another program has looked at it");
        assert_eq!(inode(&journal), before);
    }
    server.kill();
    assert!(!is_locked());
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
    // As a child process that has not yet started its program.
    #[cfg(target_os = "linux")]
    let shared = shared_with_a_child(place.path());
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
    #[cfg(target_os = "linux")]
    assert!(shared.len() >= 3, "database, lock file and journal");
}

/// Returns another descriptor of each open file in `folder`, with the same locks.
#[cfg(target_os = "linux")]
fn shared_with_a_child(folder: &Path) -> Vec<std::os::fd::OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let process = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter_map(|entry| {
        let entry = entry.unwrap();
        let number = entry.file_name().to_str()?.parse().ok()?;
        let is_inside = std::fs::read_link(entry.path()).is_ok_and(|path| path.starts_with(folder));
        is_inside.then(|| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).unwrap())
    })
    .collect()
}
