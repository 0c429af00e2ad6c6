//! The embedded store: SQLite in WAL mode through Diesel.
//!
//! One [writer](crate::log::writer) thread owns the only writing connection (`backend.rs`), and another thread runs the
//! checkpoints (`checkpoints.rs`). Reads use an r2d2 pool on blocking threads (`readers.rs`) and take turns
//! (`src/store/turns.rs`). Locks keep a second process out (`lock.rs`), because the writer caches what it has written. A
//! database is checked before it is opened (`opening.rs`).

mod answers;
mod append;
mod backend;
mod bounds;
mod catalog;
mod characteristics;
mod check;
mod checkpoints;
mod consumers;
mod counts;
mod devices;
mod enrollments;
mod error;
mod events;
mod functions;
mod heartbeats;
mod job_texts;
mod jobs;
mod journal;
mod leases;
mod life;
mod limit;
mod lists;
mod lock;
mod migrations;
mod nodes;
mod notifiers;
mod opening;
mod parts;
mod ping_keys;
#[cfg(test)]
mod plans;
mod read;
mod readers;
mod schedules;
mod schema;
mod search;
mod sources;
mod subject_log;
mod sweep;
mod table;
mod tables;
mod transaction;
mod upsert;
mod violations;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::Utc;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use self::backend::Backend;
use self::checkpoints::Checkpoints;
pub use self::error::OpenError;
use self::opening::{Opened, open};
pub use self::opening::{check_place, check_trace, new_epoch};
use self::readers::Readers;
use self::sweep::{Retention, Round};
use crate::config::Settings;
use crate::id::{Epoch, SchoolId};
use crate::log::decide::Rules;
use crate::log::writer::{Handle, Pace, Writer};
use crate::log::{CommitMetrics, Committed, StoreError};
use crate::scope::Scope;
use crate::store::turns::{Length, Requester};
use crate::uptime::UptimeClock;

/// How long a connection waits for another connection's lock, in milliseconds.
const BUSY_TIMEOUT_MS: u32 = 5_000;

/// The embedded store.
pub struct SqliteStore {
    epoch: Epoch,
    /// Whether a `seq` may have been assigned twice in this epoch.
    is_cut: bool,
    uptime: UptimeClock,
    metrics: Arc<CommitMetrics>,
    writer: Handle<Backend>,
    readers: Readers,
    retention: Retention,
    /// How far the retention sweep is.
    round: Mutex<Round>,
}

impl SqliteStore {
    /// Opens or creates the database and starts its writer, which sends what it commits to `committed`. The notifiers
    /// with these names are registered before anything is written.
    pub fn open(
        settings: &Settings,
        path: &Path,
        committed: Committed,
        notifiers: &[&str],
    ) -> Result<SqliteStore, OpenError> {
        let Opened {
            lock,
            life,
            url,
            mut conn,
        } = open(settings, path)?;
        let failed = |error: &dyn std::fmt::Display| OpenError::database(path, error);
        jobs::schedule_lapsed_checks(&mut conn, Utc::now(), life.uptime.now())
            .map_err(|error| failed(&error))?;
        for name in notifiers {
            notifiers::begins(&mut conn, name).map_err(|error| failed(&error))?;
        }
        // The pages of all running jobs were needed once.
        conn.batch_execute("PRAGMA shrink_memory")
            .map_err(|error| failed(&error))?;
        let readers =
            Readers::open(settings, &url, Arc::clone(&lock)).map_err(|error| failed(&error))?;
        let metrics = Arc::<CommitMetrics>::default();
        let checkpoints =
            Checkpoints::start(&url, Arc::clone(&metrics)).map_err(|error| failed(&error))?;

        let rules = Rules {
            epoch: life.epoch,
            limits: settings.limits(),
            max_subjects: settings.max_subjects(),
        };
        let uptime = life.uptime.clone();
        let (epoch, is_cut) = (life.epoch, life.is_cut);
        let backend = Backend::new(conn, checkpoints, lock, life, settings);
        let pace = Arc::new(Pace::new(settings.batch_bytes_per_sec));
        let (writer, handle) = Writer::new(backend, rules, committed, Arc::clone(&metrics), pace);
        let watched = Arc::clone(&metrics);
        // The thread ends when the store is closed or its last handle is dropped, and holds the lock until then.
        std::thread::Builder::new()
            .name("tidings-writer".into())
            .spawn(move || {
                watched.run_writer("writer", || {
                    let closed = writer.run();
                    // No caller waits if the store was dropped without being closed.
                    let _ = closed.map(|closed| closed.send(Ok(())));
                });
            })
            .map_err(|source| OpenError::file(path, source))?;

        Ok(SqliteStore {
            epoch,
            is_cut,
            uptime,
            metrics,
            writer: handle,
            readers,
            retention: Retention::of(settings),
            round: Mutex::default(),
        })
    }

    /// Returns how far the retention sweep is.
    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns uses of idempotency keys of a school after this key, in the order of the keys.
    #[cfg(feature = "postgres")]
    pub(in crate::store) async fn used_keys(
        &self,
        school: SchoolId,
        after: String,
        limit: usize,
    ) -> Result<Vec<crate::store::used_key::UsedKey>, StoreError> {
        let epoch = self.epoch;
        self.read_for_server(move |conn| answers::list(conn, epoch, school, &after, limit))
            .await
    }

    /// Runs a small write outside the log on the writer.
    async fn aside<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let write = move |backend: &mut Backend| backend.write_aside(write);
        self.writer.call(write).await
    }

    /// Like [`SqliteStore::aside`], for a write that a power loss must not undo.
    async fn aside_durably<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let write = move |backend: &mut Backend| backend.write_durably(write);
        self.writer.call(write).await
    }

    /// Runs a short read for a request about a school.
    async fn read<T: Send + 'static>(
        &self,
        school: SchoolId,
        read: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let requester = Requester::Requests(school);
        self.readers.read(requester, Length::Short, read).await
    }

    /// Runs a short read that the streams of a school share.
    async fn read_for_streams<T: Send + 'static>(
        &self,
        school: SchoolId,
        read: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let requester = Requester::Streams(school);
        self.readers.read(requester, Length::Short, read).await
    }

    /// Runs a short read for the server itself.
    async fn read_for_server<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.readers
            .read(Requester::Server, Length::Short, read)
            .await
    }

    /// Reads a page for a stream. With a filter, it may scan many rows for each event that it returns.
    async fn page<T: Send + 'static>(
        &self,
        scope: &Scope,
        read: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let length = match scope.filter.is_empty() {
            true => Length::Short,
            false => Length::Window,
        };
        let requester = Requester::Streams(scope.school);
        self.readers.read(requester, length, read).await
    }
}

fn database_error(error: diesel::result::Error) -> StoreError {
    StoreError::Database(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_writer_that_panics_is_counted_and_named_and_answers_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (committed, _batches) = Committed::channel(1);
        let path = folder.path().join("tidings.db");
        let store = SqliteStore::open(&Settings::default(), &path, committed, &[]).unwrap();
        assert_eq!(store.metrics.dead(), None);
        let panics = store.writer.call::<()>(|_| panic!("intended"));
        assert!(matches!(panics.await, Err(StoreError::Stopped)));
        while store.metrics.dead().is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.metrics.dead().as_deref(), Some("writer"));
        assert_eq!(store.metrics.panics(), [("writer".into(), 1)]);
        let more = store.writer.call(|_| Ok(()));
        assert!(matches!(more.await, Err(StoreError::Stopped)));
    }
}
