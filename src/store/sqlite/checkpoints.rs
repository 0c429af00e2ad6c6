//! Checkpoints copy the write-ahead log into the database and wait for the disk, so they run on a separate thread, never
//! within a commit.
//!
//! SQLite starts the log again from the beginning only when all of it has been copied. Under load, the thread never gets
//! there, because the writer keeps appending. So when the log is long, the thread copies repeatedly, each time a shorter
//! rest. Then it calls the writer, which copies the last pages between two commits, after it has answered the first one. If
//! the thread does not keep up, the writer waits for it. So the length of the log is bounded by [`WAL_MAX_PAGES`] and one
//! commit, unless a reader still needs old pages.
//!
//! ```text
//! pages in the log   0 ──── CHECKPOINT_PAGES ──── WAL_RESTART_PAGES ─────────────── WAL_MAX_PAGES
//!                           the thread copies     it calls the writer for the rest   the writer waits
//! ```
//!
//! A checkpoint that fails, for example on a full disk, is tried again after later commits, as SQLite itself would do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel::sqlite::SqliteConnection;

use super::BUSY_TIMEOUT_MS;
use crate::config::{
    CHECKPOINT_LEFT_PAGES, CHECKPOINT_PAGES, CHECKPOINT_PASSES, CHECKPOINT_REST_PAGES,
    WAL_MAX_PAGES, WAL_RESTART_PAGES,
};
use crate::failures::Failures;
use crate::log::CommitMetrics;

/// The writer's side; see the [module-level documentation](self). The thread ends when this is dropped.
pub(super) struct Checkpoints {
    /// `None` while it is being dropped.
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// About how many pages were written since the length of the log was last read.
    unseen: i64,
    failures: Failures,
}

/// What the writer and the thread have in common.
#[derive(Default)]
struct Shared {
    /// Held during a checkpoint, because SQLite does not wait for one that is in progress.
    turn: Mutex<()>,
    /// Whether the log is long, and the thread has copied all but a short rest.
    is_caught_up: AtomicBool,
    /// Whether all of the log may have been copied since the last commit. Then the next one begins the log anew, and waits for the
    /// disk, even with `synchronous = NORMAL`.
    may_restart: AtomicBool,
}

/// The state of the log, in pages.
#[derive(QueryableByName, Debug, Clone, Copy)]
struct Log {
    #[diesel(sql_type = BigInt)]
    log: i64,
    #[diesel(sql_type = BigInt)]
    checkpointed: i64,
}

impl Log {
    /// Reads the state without copying anything.
    fn status(conn: &mut SqliteConnection) -> QueryResult<Log> {
        diesel::sql_query("PRAGMA wal_checkpoint = NOOP").get_result(conn)
    }

    /// Copies as much as is possible without waiting for readers or the writer.
    fn copy(conn: &mut SqliteConnection) -> QueryResult<Log> {
        diesel::sql_query("PRAGMA wal_checkpoint = PASSIVE").get_result(conn)
    }

    fn rest(self) -> i64 {
        self.log - self.checkpointed
    }
}

/// How long a reader of an older state may delay the start, in milliseconds. A replicator may read for as long as the server runs.
const READER_WAIT_MS: u32 = 500;

/// Copies the whole log into the database. Returns whether that was possible: a reader of an older state prevents it. It is given
/// [`READER_WAIT_MS`] to finish.
pub(super) fn copy_all(conn: &mut SqliteConnection) -> QueryResult<bool> {
    if Log::copy(conn)?.rest() == 0 {
        return Ok(true);
    }
    // This waits for readers, as for a lock.
    conn.batch_execute(&format!("PRAGMA busy_timeout = {READER_WAIT_MS}"))?;
    let log = diesel::sql_query("PRAGMA wal_checkpoint = FULL").get_result::<Log>(conn);
    conn.batch_execute(&format!("PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}"))?;
    Ok(log?.rest() == 0)
}

impl Checkpoints {
    /// Starts the thread, with a connection of its own to the database at `url`.
    pub(super) fn start(
        url: &str,
        metrics: Arc<CommitMetrics>,
    ) -> Result<Checkpoints, Box<dyn std::error::Error>> {
        let mut conn = SqliteConnection::establish(url)?;
        conn.batch_execute(&format!("PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}"))?;
        let (wake, woken) = sync_channel(1);
        let shared = Arc::new(Shared {
            may_restart: AtomicBool::new(true),
            ..Shared::default()
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("tidings-checkpoints".into())
            .spawn(move || run(&mut conn, &woken, &for_thread, &metrics))?;
        Ok(Checkpoints {
            wake: Some(wake),
            thread: Some(thread),
            shared,
            unseen: 0,
            failures: Failures::default(),
        })
    }

    /// Whether the next commit may have to wait for the disk, because it begins the log anew.
    pub(super) fn may_restart(&self) -> bool {
        self.shared.may_restart.load(Ordering::Relaxed)
    }

    /// Whether the next commit may have to wait for the disk, because it begins the log anew. Called before a commit that can wait. After
    /// it, [`has_not_restarted`](Self::has_not_restarted) must be called if it has written nothing.
    pub(super) fn restarts(&self) -> bool {
        self.shared.may_restart.swap(false, Ordering::Relaxed)
    }

    pub(super) fn has_not_restarted(&self) {
        self.shared.may_restart.store(true, Ordering::Relaxed);
    }

    /// Starts or completes a checkpoint if the log needs one after commits that wrote about `pages` pages. `conn` is the
    /// writer's.
    pub(super) fn committed(&mut self, conn: &mut SqliteConnection, pages: i64) {
        self.unseen += pages;
        let is_called = self.shared.is_caught_up.swap(false, Ordering::Relaxed);
        if self.unseen < CHECKPOINT_REST_PAGES && !is_called {
            return;
        }
        self.unseen = 0;
        let seen = Log::status(conn).and_then(|log| {
            if log.rest() == 0 {
                return Ok(());
            }
            // SQLite may have restarted the log since the thread called.
            let is_long = log.log >= WAL_RESTART_PAGES;
            if log.log >= WAL_MAX_PAGES
                || (is_called && is_long && log.rest() <= CHECKPOINT_REST_PAGES)
            {
                let _turn = self.shared.turn();
                self.shared.copy(conn)?;
            } else if log.rest() >= CHECKPOINT_PAGES {
                // If the channel is full, the thread has yet to take the last request.
                let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
            }
            Ok(())
        });
        note(&mut self.failures, seen);
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches and counts the panics of its checkpoints.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the log as far as possible.
    fn copy(&self, conn: &mut SqliteConnection) -> QueryResult<Log> {
        // Before it, because the log can begin anew as soon as all is copied; after it, because a commit that precedes its beginning
        // may have taken the mark away.
        self.may_restart.store(true, Ordering::Relaxed);
        let copied = Log::copy(conn);
        self.may_restart.store(true, Ordering::Relaxed);
        copied
    }

    /// Copies the log. If the log is long enough to be restarted, also copies what the writer has added in the meantime.
    fn catch_up(&self, conn: &mut SqliteConnection) -> QueryResult<()> {
        let _turn = self.turn();
        for _ in 0..CHECKPOINT_PASSES {
            if self.copy(conn)?.log < WAL_RESTART_PAGES {
                break;
            }
            if Log::status(conn)?.rest() <= CHECKPOINT_LEFT_PAGES {
                self.is_caught_up.store(true, Ordering::Relaxed);
                break;
            }
        }
        Ok(())
    }
}

/// Runs a checkpoint whenever the writer asks for one, until the writer is gone. A panic ends only the checkpoint.
fn run(
    conn: &mut SqliteConnection,
    woken: &Receiver<()>,
    shared: &Shared,
    metrics: &CommitMetrics,
) {
    let mut failures = Failures::default();
    while woken.recv().is_ok() {
        metrics.guard("checkpoints", || {
            note(&mut failures, shared.catch_up(conn));
        });
    }
}

/// Logs when checkpoints begin to fail or work again.
fn note(failures: &mut Failures, done: QueryResult<()>) {
    match done {
        Ok(()) => {
            if let Some(failed) = failures.worked() {
                tracing::info!(failed, "checkpoints work again");
            }
        }
        Err(error) => {
            if let Some(failed) = failures.failed(Instant::now()) {
                tracing::warn!(%error, failed, "a checkpoint failed and is tried again later");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::PAGE_BYTES;

    /// The number of written pages after which the length of the log is read.
    const REST: i64 = CHECKPOINT_REST_PAGES;

    /// Returns a connection like the writer's, with a table in which each row takes one page.
    fn writer(folder: &Path) -> (SqliteConnection, String) {
        let url = folder.join("test.db").to_str().unwrap().to_owned();
        let mut conn = SqliteConnection::establish(&url).unwrap();
        conn.batch_execute(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0;
             CREATE TABLE pages (number INTEGER PRIMARY KEY, filler BLOB);",
        )
        .unwrap();
        (conn, url)
    }

    fn write(conn: &mut SqliteConnection, pages: i64) {
        let sql = format!(
            "INSERT INTO pages (filler) SELECT randomblob(3500) FROM json_each('[{}0]')",
            "0,".repeat(usize::try_from(pages).unwrap() - 1)
        );
        conn.batch_execute(&sql).unwrap();
    }

    fn wal_pages(folder: &Path) -> i64 {
        let bytes = std::fs::metadata(folder.join("test.db-wal")).unwrap().len();
        i64::try_from(bytes).unwrap() / PAGE_BYTES
    }

    #[test]
    fn the_thread_copies_the_log_and_no_commit_does() {
        let folder = tempfile::tempdir().unwrap();
        let (mut conn, url) = writer(folder.path());
        write(&mut conn, 2 * CHECKPOINT_PAGES);
        let log = Log::status(&mut conn).unwrap();
        assert!(log.rest() >= 2 * CHECKPOINT_PAGES, "{log:?}");
        let mut checkpoints = Checkpoints::start(&url, Arc::default()).unwrap();
        checkpoints.committed(&mut conn, REST);
        let begun = Instant::now();
        while Log::status(&mut conn).unwrap().rest() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_log_begins_anew_while_the_writer_goes_on_and_stays_within_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let (mut conn, url) = writer(folder.path());
        let mut checkpoints = Checkpoints::start(&url, Arc::default()).unwrap();
        const AT_ONCE: i64 = 100;
        for _ in 0..3 * WAL_MAX_PAGES / AT_ONCE {
            write(&mut conn, AT_ONCE);
            checkpoints.committed(&mut conn, 100);
        }
        // The length of the log is read only now and then.
        let limit = WAL_MAX_PAGES + 2 * (AT_ONCE + CHECKPOINT_REST_PAGES);
        assert!(wal_pages(folder.path()) < limit);
        let all: u64 = (3 * WAL_MAX_PAGES).try_into().unwrap();
        drop(checkpoints);
        drop(conn);
        assert!(!folder.path().join("test.db-wal").exists(), "closed");
        let bytes = std::fs::metadata(folder.path().join("test.db")).unwrap();
        assert!(bytes.len() > all * 3_500);
    }

    fn write_a_long_log(conn: &mut SqliteConnection) {
        for _ in 0..=WAL_RESTART_PAGES / 1_000 {
            write(conn, 1_000);
        }
    }

    #[test]
    fn the_thread_calls_the_writer_once_it_has_caught_up_with_a_long_log() {
        let folder = tempfile::tempdir().unwrap();
        let (mut conn, url) = writer(folder.path());
        let mut checkpoints = Checkpoints::start(&url, Arc::default()).unwrap();
        write_a_long_log(&mut conn);
        checkpoints.committed(&mut conn, REST);
        let begun = Instant::now();
        while !checkpoints.shared.is_caught_up.load(Ordering::Relaxed) {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_writer_that_is_called_copies_the_short_rest_of_a_long_log_which_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (mut conn, url) = writer(folder.path());
        let mut checkpoints = Checkpoints::start(&url, Arc::default()).unwrap();
        write_a_long_log(&mut conn);
        // Pages that are newer than a reader's snapshot are not copied.
        let mut reader = SqliteConnection::establish(&url).unwrap();
        reader
            .batch_execute("BEGIN; SELECT count(*) FROM pages;")
            .unwrap();
        write(&mut conn, REST / 2);
        Log::copy(&mut conn).unwrap();
        reader.batch_execute("COMMIT").unwrap();
        let log = Log::status(&mut conn).unwrap();
        assert!((1..=REST).contains(&log.rest()), "{log:?}");
        // Too little was written for the writer to act without being called.
        checkpoints.committed(&mut conn, 0);
        assert!(Log::status(&mut conn).unwrap().rest() > 0);
        checkpoints
            .shared
            .is_caught_up
            .store(true, Ordering::Relaxed);
        checkpoints.committed(&mut conn, 0);
        assert_eq!(Log::status(&mut conn).unwrap().rest(), 0);
        write(&mut conn, 1);
        let log = Log::status(&mut conn).unwrap();
        assert!(log.log < CHECKPOINT_PAGES, "{log:?}");
    }

    #[test]
    fn a_log_at_its_bound_makes_the_writer_wait_for_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let (mut conn, url) = writer(folder.path());
        let mut checkpoints = Checkpoints::start(&url, Arc::default()).unwrap();
        for _ in 0..=WAL_MAX_PAGES / 1_000 {
            write(&mut conn, 1_000);
        }
        assert!(Log::status(&mut conn).unwrap().rest() >= WAL_MAX_PAGES);
        checkpoints.committed(&mut conn, REST);
        assert_eq!(Log::status(&mut conn).unwrap().rest(), 0);
        // The next write restarts the log.
        write(&mut conn, 1);
        let log = Log::status(&mut conn).unwrap();
        assert!(log.log < CHECKPOINT_PAGES, "{log:?}");
    }
}
