//! Connections for reading: who reads next, for how long, and a separate connection that never waits for other reads.
//!
//! Every read is one transaction on a blocking thread, for which [`Turns`] grants a turn. A *walk* is a scan that
//! consists of several such reads, each of one window of rows. Between two windows other reads get their turns, and the
//! limits of the walk are checked. If the caller drops the future, it requests no further turn. So at most one window
//! continues after the caller is gone.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diesel::connection::{Connection as _, SimpleConnection};
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool, PooledConnection};
use diesel::sqlite::SqliteConnection;
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::time::{Instant, timeout};

use super::lock::DatabaseLock;
use super::{BUSY_TIMEOUT_MS, database_error, functions};
use crate::config::{CLOSE_WAIT, Settings};
use crate::id::SchoolId;
use crate::log::{StoreError, Waiting};
use crate::store::pace::Pace;
use crate::store::turns::{Bounds, Length, Requester, Turn, Turns};

type Connection = PooledConnection<ConnectionManager<SqliteConnection>>;

/// See the [module-level documentation](self).
pub(super) struct Readers {
    turns: Arc<Turns>,
    /// The connections, and a receiver that resolves when the last of them is closed. `None` once they must be closed.
    open: Mutex<Option<(Arc<Open>, oneshot::Receiver<Infallible>)>>,
    timeout: Duration,
    rows_max: u64,
}

/// The open connections. The fields are dropped in the order of declaration.
struct Open {
    pool: Pool<ConnectionManager<SqliteConnection>>,
    /// A connection outside the pool, so that no other read delays the check whether the database can be read.
    for_pings: Arc<AsyncMutex<Connection>>,
    /// Declared after the connections, so that it is dropped later: see [`super::lock`].
    _lock: Arc<DatabaseLock>,
    _closed: oneshot::Sender<Infallible>,
}

/// A read that scans rows, up to a given number at a time.
pub(super) trait Walk: Send + 'static {
    /// Scans the next rows, at most `rows`.
    fn look(&mut self, conn: &mut SqliteConnection, rows: usize) -> QueryResult<Looked>;
}

/// The result of one step of a scan.
pub(super) struct Looked {
    /// How many rows were scanned.
    pub(super) rows: u64,
    /// Whether no rows are left, or no more are needed.
    pub(super) is_done: bool,
}

/// A walk that has ended.
pub(super) struct Walked<W> {
    /// The walk, with its results.
    pub(super) walk: W,
    /// How many rows were scanned.
    pub(super) rows: u64,
    /// Whether it reached its end rather than a limit.
    pub(super) is_complete: bool,
}

impl Readers {
    /// Opens all connections.
    pub(super) fn open(
        settings: &Settings,
        url: &str,
        lock: Arc<DatabaseLock>,
    ) -> Result<Readers, String> {
        let connections = settings.reader_connections.get();
        let pool = Pool::builder()
            // One more, for the separate connection.
            .max_size(connections + 1)
            // All connections are opened now and kept open, because file descriptors may run out later.
            .max_lifetime(None)
            .idle_timeout(None)
            .connection_customizer(Box::new(ReadOnly))
            .test_on_check_out(false)
            .build(ConnectionManager::new(url))
            .map_err(|error| error.to_string())?;
        let connection = pool.get().map_err(|error| error.to_string())?;
        let (closing, closed) = oneshot::channel();
        let open = Open {
            pool,
            for_pings: Arc::new(AsyncMutex::new(connection)),
            _lock: lock,
            _closed: closing,
        };
        let connections = connections as usize;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Readers {
            open: Mutex::new(Some((Arc::new(open), closed))),
            turns: Arc::new(Turns::new(Bounds {
                connections,
                // A walk keeps a core busy, so some cores are left for other work.
                walking: (cores / 2).min(connections - 1).max(1),
                waiting: settings.max_waiting_reads.get(),
                waiting_of_school: settings.max_waiting_reads_per_school.get(),
            })),
            timeout: Duration::from_millis(settings.read_timeout_ms.get()),
            rows_max: settings.read_rows_max.get(),
        })
    }

    /// Returns the turns of the readers.
    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Reads in one transaction, which sees one consistent state.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        requester: Requester,
        length: Length,
        read: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self
            .turns
            .wait(requester, length, self.timeout, false)
            .await?;
        self.run(turn, read).await
    }

    /// Runs a walk for a request, window by window, to its end or to a limit: `read_rows_max` or `read_timeout_ms`.
    pub(super) async fn walk<W: Walk>(
        &self,
        school: SchoolId,
        mut walk: W,
    ) -> Result<Walked<W>, StoreError> {
        let until = Instant::now() + self.timeout;
        let (mut pace, mut rows, mut has_begun) = (Pace::default(), 0, false);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let turn = match left.is_zero() && has_begun {
                true => Err(StoreError::Busy(Waiting::TooLong)),
                false => {
                    let requester = Requester::Requests(school);
                    self.turns
                        .wait(requester, Length::Window, left, has_begun)
                        .await
                }
            };
            let turn = match turn {
                // The results so far are an answer.
                Err(StoreError::Busy(Waiting::TooLong)) if has_begun => {
                    return Ok(Walked {
                        walk,
                        rows,
                        is_complete: false,
                    });
                }
                turn => turn?,
            };
            let max_rows = pace
                .rows
                .min(usize::try_from(self.rows_max - rows).unwrap_or(usize::MAX))
                .max(1);
            let (back, looked, took) = self
                .run(turn, move |conn| {
                    let begun = Instant::now();
                    let looked = walk.look(conn, max_rows)?;
                    Ok((walk, looked, begun.elapsed()))
                })
                .await?;
            walk = back;
            pace.adapt(took);
            rows += looked.rows;
            has_begun = true;
            if looked.is_done || rows >= self.rows_max {
                return Ok(Walked {
                    walk,
                    rows,
                    is_complete: looked.is_done,
                });
            }
        }
    }

    /// Checks that the database can be read. Other reads do not delay this.
    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        let open = self.connections()?;
        let mut connection = Arc::clone(&open.for_pings).lock_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            let _open = open;
            connection
                .batch_execute("SELECT key FROM meta LIMIT 1")
                .map_err(database_error)
        });
        task.await.map_err(|_| StoreError::Stopped)?
    }

    /// Closes the connections once the reads in progress have finished; if those take long, after this function has
    /// returned. When the last connection is closed, SQLite checkpoints the journal into the database.
    pub(super) async fn close(&self) {
        let Some((open, closed)) = self.opened().take() else {
            return;
        };
        // On a blocking thread, because closing writes to the disk.
        tokio::task::spawn_blocking(move || drop(open));
        if timeout(CLOSE_WAIT, closed).await.is_err() {
            tracing::warn!("some reads are still running while the database is being closed");
        }
    }

    fn connections(&self) -> Result<Arc<Open>, StoreError> {
        let opened = self.opened();
        let (open, _) = opened.as_ref().ok_or(StoreError::Stopped)?;
        Ok(Arc::clone(open))
    }

    fn opened(&self) -> MutexGuard<'_, Option<(Arc<Open>, oneshot::Receiver<Infallible>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<T: Send + 'static>(
        &self,
        turn: Turn,
        read: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let open = self.connections()?;
        let task = tokio::task::spawn_blocking(move || {
            // Dropped last: the turn ends after the connection has been returned.
            let _turn = turn;
            let open = open;
            let mut conn = open
                .pool
                .get()
                .map_err(|error| StoreError::Database(error.to_string()))?;
            SqliteConnection::transaction(&mut conn, read).map_err(database_error)
        });
        task.await.map_err(|_| StoreError::Stopped)?
    }
}

/// Makes connections read-only. They never wait for locks, except for a checkpoint.
#[derive(Debug)]
struct ReadOnly;

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for ReadOnly {
    fn on_acquire(&self, conn: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        conn.batch_execute(&format!(
            "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS};
             PRAGMA query_only = ON;
             PRAGMA temp_store = MEMORY;
             SELECT key FROM meta LIMIT 1;"
        ))
        .and_then(|()| functions::register(conn))
        .map_err(diesel::r2d2::Error::QueryError)
    }
}
