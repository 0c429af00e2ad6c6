//! Connections for reading. A read takes its [turn](crate::store::turns), like a read of the embedded store, and sees one
//! consistent state: a read-only transaction in `REPEATABLE READ`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::connect::Address;
use super::pool::{Pool, Transaction};
use crate::config::Settings;
use crate::id::SchoolId;
use crate::log::{StoreError, Waiting};
use crate::store::pace::Pace;
use crate::store::turns::{Bounds, Length, Requester, Turn, Turns};

/// See the [module-level documentation](self).
pub(super) struct Readers {
    pool: Pool,
    turns: Arc<Turns>,
    timeout: Duration,
    rows_max: u64,
}

/// A read in progress.
pub(super) type Read = Transaction<Option<Turn>>;

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
    /// Returns the maximum number of rows of the next window.
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
        let connections = settings.reader_connections.get() as usize;
        Readers {
            pool: Pool::new(address, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"),
            turns: Arc::new(Turns::new(Bounds {
                connections,
                walking: (connections / 2).max(1),
                waiting: settings.max_waiting_reads.get(),
                waiting_of_school: settings.max_waiting_reads_per_school.get(),
            })),
            timeout: Duration::from_millis(settings.read_timeout_ms.get()),
            rows_max: settings.read_rows_max.get(),
        }
    }

    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Begins a read.
    pub(super) async fn begin(
        &self,
        requester: Requester,
        length: Length,
    ) -> Result<Read, StoreError> {
        let turn = self
            .turns
            .wait(requester, length, self.timeout, false)
            .await?;
        self.pool.begin(Some(turn)).await
    }

    /// See [`Pool::open_in_advance`].
    pub(super) fn open_in_advance(&self) -> impl Future<Output = ()> + Send + 'static {
        // One more, for the check whether the database can be read.
        self.pool.open_in_advance(self.turns.connections() + 1)
    }

    /// Begins a read that waits for no other.
    pub(super) async fn begin_at_once(&self) -> Result<Read, StoreError> {
        self.pool.begin(None).await
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

    /// Begins the next window of a search. Returns `None` if its time is up; what it has found so far is then the answer.
    pub(super) async fn next(
        &self,
        school: SchoolId,
        search: &Search,
    ) -> Result<Option<Read>, StoreError> {
        let left = search.until.saturating_duration_since(Instant::now());
        if left.is_zero() && search.has_begun {
            return Ok(None);
        }
        let requester = Requester::Requests(school);
        let turn = self
            .turns
            .wait(requester, Length::Window, left, search.has_begun)
            .await;
        match turn {
            Err(StoreError::Busy(Waiting::TooLong)) if search.has_begun => Ok(None),
            turn => self.pool.begin(Some(turn?)).await.map(Some),
        }
    }

    /// See [`Pool::close`].
    pub(super) fn close(&self) {
        self.pool.close();
    }
}
