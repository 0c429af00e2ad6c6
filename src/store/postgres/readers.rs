//! Connections for reading. A read takes its [turn](crate::store::turns), like a read of the embedded store, and sees one
//! consistent state: a read-only transaction in `REPEATABLE READ`.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diesel::QueryResult;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio::time::Instant;

use super::connect::{Address, bounded};
use super::database_error;
use crate::config::Settings;
use crate::id::SchoolId;
use crate::log::{StoreError, Waiting};
use crate::store::pace::Pace;
use crate::store::turns::{Asker, Bounds, Length, Turn, Turns};

/// Connections that are open and not in use; `None` once the store is closed.
type Idle = Mutex<Option<Vec<AsyncPgConnection>>>;

/// See the [module-level documentation](self).
pub(super) struct Readers {
    address: Address,
    idle: Arc<Idle>,
    turns: Arc<Turns>,
    timeout: Duration,
    rows_max: u64,
}

/// A read in progress. If it is dropped before its end, its connection is closed.
pub(super) struct Read {
    conn: AsyncPgConnection,
    idle: Arc<Idle>,
    _turn: Option<Turn>,
}

impl Deref for Read {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        &self.conn
    }
}

impl DerefMut for Read {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.conn
    }
}

impl Read {
    /// Ends the read with its result. The connection can be used again if there was no error.
    pub(super) async fn end<T>(mut self, read: QueryResult<T>) -> Result<T, StoreError> {
        let read = read.map_err(database_error)?;
        bounded(self.conn.batch_execute("COMMIT")).await?;
        if let Some(idle) = lock(&self.idle).as_mut() {
            idle.push(self.conn);
        }
        Ok(read)
    }
}

fn lock(idle: &Idle) -> MutexGuard<'_, Option<Vec<AsyncPgConnection>>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pace and the limits of a search that reads one window of rows after another.
pub(super) struct Search {
    until: Instant,
    rows_max: u64,
    /// How many rows were read.
    pub(super) rows: u64,
    pace: Pace,
    has_begun: bool,
}

impl Search {
    /// Returns how many rows the next window has at most.
    pub(super) fn window(&self) -> usize {
        let left = usize::try_from(self.rows_max - self.rows).unwrap_or(usize::MAX);
        self.pace.rows.min(left).max(1)
    }

    /// Records a window. Returns whether the limit of rows is reached.
    pub(super) fn has_read(&mut self, rows: usize, took: Duration) -> bool {
        self.rows += rows as u64;
        self.has_begun = true;
        self.pace.adapt(took);
        self.rows >= self.rows_max
    }
}

impl Readers {
    pub(super) fn new(settings: &Settings, address: Address) -> Readers {
        let connections = settings.reader_connections as usize;
        Readers {
            address,
            idle: Arc::new(Mutex::new(Some(Vec::new()))),
            turns: Arc::new(Turns::new(Bounds {
                connections,
                walking: (connections / 2).max(1),
                waiting: settings.max_waiting_reads,
                waiting_of_school: settings.max_waiting_reads_per_school,
            })),
            timeout: Duration::from_millis(settings.read_timeout_ms),
            rows_max: settings.read_rows_max,
        }
    }

    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Begins a read.
    pub(super) async fn begin(&self, asker: Asker, length: Length) -> Result<Read, StoreError> {
        let turn = self.turns.wait(asker, length, self.timeout, false).await?;
        self.open(Some(turn)).await
    }

    /// Opens the connections in advance: later, file descriptors may have run out. Stops at the first failure, because a
    /// read opens its connection itself if none is idle.
    pub(super) fn open_in_advance(&self) -> impl Future<Output = ()> + Send + 'static {
        let (address, idle) = (self.address.clone(), Arc::clone(&self.idle));
        // One more, for the check whether the database can be read.
        let connections = self.turns.connections() + 1;
        async move {
            for _ in 0..connections {
                let Ok(conn) = address.connect().await else {
                    return;
                };
                match lock(&idle).as_mut() {
                    Some(idle) if idle.len() < connections => idle.push(conn),
                    _ => return,
                }
            }
        }
    }

    /// Begins a read that waits for no other.
    pub(super) async fn begin_at_once(&self) -> Result<Read, StoreError> {
        self.open(None).await
    }

    /// Begins a search for a request.
    pub(super) fn search(&self) -> Search {
        Search {
            until: Instant::now() + self.timeout,
            rows_max: self.rows_max,
            rows: 0,
            pace: Pace::default(),
            has_begun: false,
        }
    }

    /// Begins the next window of a search. Returns `None` if its time is over; what it has found so far is an answer.
    pub(super) async fn next(
        &self,
        school: SchoolId,
        search: &Search,
    ) -> Result<Option<Read>, StoreError> {
        let left = search.until.saturating_duration_since(Instant::now());
        if left.is_zero() && search.has_begun {
            return Ok(None);
        }
        let asker = Asker::Requests(school);
        let turn = self
            .turns
            .wait(asker, Length::Window, left, search.has_begun)
            .await;
        match turn {
            Err(StoreError::Busy(Waiting::TooLong)) if search.has_begun => Ok(None),
            turn => self.open(Some(turn?)).await.map(Some),
        }
    }

    /// Closes the connections. Reads in progress go on.
    pub(super) fn close(&self) {
        lock(&self.idle).take();
    }

    async fn open(&self, turn: Option<Turn>) -> Result<Read, StoreError> {
        const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
        // An idle connection may have broken since its last use.
        while let Some(mut conn) = self.take_idle()? {
            if bounded(conn.batch_execute(BEGIN)).await.is_ok() {
                return Ok(self.read(conn, turn));
            }
        }
        let mut conn = self.address.connect().await?;
        bounded(conn.batch_execute(BEGIN)).await?;
        Ok(self.read(conn, turn))
    }

    fn take_idle(&self) -> Result<Option<AsyncPgConnection>, StoreError> {
        let mut idle = lock(&self.idle);
        Ok(idle.as_mut().ok_or(StoreError::Stopped)?.pop())
    }

    fn read(&self, conn: AsyncPgConnection, turn: Option<Turn>) -> Read {
        Read {
            conn,
            idle: Arc::clone(&self.idle),
            _turn: turn,
        }
    }
}
