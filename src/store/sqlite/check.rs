//! Checks every page of a database before the server uses it.
//!
//! The check changes nothing, because the owner of a damaged database may want to rescue data from it. The server does not
//! start with a damaged database, because the damage could have an effect at any time. Checking a large database takes long,
//! mostly because of random reads from the disk. So another thread reads the file sequentially at the same time, which is
//! many times faster, and fills the cache. The progress is logged.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Instant;

use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel::sqlite::SqliteConnection;

use super::lock::DatabaseLock;
use crate::config::{CHECK_LOG_PERIOD, READ_AHEAD_BYTES, READ_AHEAD_MAX_BYTES};

/// Checks a database. The error says what is wrong. `conn` must be read-only.
pub(super) fn check(conn: &mut SqliteConnection, lock: &DatabaseLock) -> Result<(), String> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Text)]
        quick_check: String,
    }
    let begun = Instant::now();
    let file = lock.database();
    let size = file.metadata().map_or(0, |file| file.len());
    let is_over = AtomicBool::new(false);
    let (over, ended) = channel::<()>();
    let (read, checked) = (AtomicU64::new(0), ReadBytes::of_this_thread());
    let done = || read.load(Ordering::Relaxed) + checked.since_then().min(size);
    let found = std::thread::scope(|scope| {
        let ahead = Builder::new().name("tidings-read-ahead".into());
        let reporter = Builder::new().name("tidings-check".into());
        // The check works without these threads, so a failure to start them is ignored.
        let _ = ahead.spawn_scoped(scope, || read_ahead(file, &read, &is_over));
        let _ = reporter.spawn_scoped(scope, move || report_progress(&ended, begun, size, done));
        let found = diesel::sql_query("PRAGMA quick_check(1)").load::<Found>(conn);
        is_over.store(true, Ordering::Relaxed);
        drop(over);
        found
    })
    .map_err(|error| error.to_string())?;
    if begun.elapsed() > CHECK_LOG_PERIOD {
        let secs = begun.elapsed().as_secs();
        tracing::info!(
            secs,
            "the database was checked; `check_database = false` skips this check"
        );
    }
    match found.first() {
        Some(found) if found.quick_check == "ok" => Ok(()),
        Some(found) => Err(format!("it is damaged: {}", found.quick_check)),
        None => Err("it cannot be checked".into()),
    }
}

/// Reads the file into the system's cache, and counts the bytes. Stops at [`READ_AHEAD_MAX_BYTES`]: the cache may not hold
/// more, and everything would be read from the disk twice.
fn read_ahead(file: &File, read: &AtomicU64, is_over: &AtomicBool) {
    let mut buffer = vec![0; READ_AHEAD_BYTES];
    let mut place = 0;
    while place < READ_AHEAD_MAX_BYTES && !is_over.load(Ordering::Relaxed) {
        match file.read_at(&mut buffer, place) {
            Ok(0) | Err(_) => return,
            Ok(count) => place += count as u64,
        }
        read.store(place, Ordering::Relaxed);
    }
}

/// Logs the progress of the check every [`CHECK_LOG_PERIOD`]: what share of the bytes to read ahead and to check was read.
fn report_progress(over: &Receiver<()>, begun: Instant, size: u64, done: impl Fn() -> u64) {
    let total = size.min(READ_AHEAD_MAX_BYTES) + size;
    while over.recv_timeout(CHECK_LOG_PERIOD) == Err(RecvTimeoutError::Timeout) {
        // An estimate: some pages are checked twice.
        let percent = (done().saturating_mul(100) / total.max(1)).min(99);
        let secs = begun.elapsed().as_secs();
        let megabytes = size / 1_000_000;
        tracing::info!(percent, secs, megabytes, "the database is being checked");
    }
}

/// How many bytes a thread reads from files, as Linux counts them.
struct ReadBytes {
    counters: Option<PathBuf>,
    at_first: u64,
}

impl ReadBytes {
    fn of_this_thread() -> ReadBytes {
        let thread = std::fs::read_link("/proc/thread-self").ok();
        let counters = thread.map(|thread| PathBuf::from("/proc").join(thread).join("io"));
        let mut reads = ReadBytes {
            counters,
            at_first: 0,
        };
        reads.at_first = reads.since_then();
        reads
    }

    /// Returns the bytes that were read since this was created; 0 on systems other than Linux.
    fn since_then(&self) -> u64 {
        self.counted()
            .unwrap_or_default()
            .saturating_sub(self.at_first)
    }

    fn counted(&self) -> Option<u64> {
        let counters = std::fs::read_to_string(self.counters.as_ref()?).ok()?;
        let line = counters
            .lines()
            .find_map(|line| line.strip_prefix("rchar: "));
        line?.parse().ok()
    }
}
