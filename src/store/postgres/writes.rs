//! Small writes outside the log: leases, notifiers, nodes, and the like. They share a few separate connections, and need
//! not survive a crash of the database's machine.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connect::Address;
use super::pool::{Pool, Transaction};
use crate::config::POSTGRES_ASIDE_CONNECTIONS;
use crate::log::StoreError;

/// See the [module-level documentation](self).
pub(super) struct Writes {
    pool: Pool,
    turns: Arc<Semaphore>,
}

/// A write in progress.
pub(super) type Write = Transaction<OwnedSemaphorePermit>;

impl Writes {
    pub(super) fn new(address: Address) -> Writes {
        Writes {
            pool: Pool::new(address, "BEGIN; SET LOCAL synchronous_commit = off"),
            turns: Arc::new(Semaphore::new(POSTGRES_ASIDE_CONNECTIONS)),
        }
    }

    /// See [`Pool::open_in_advance`].
    pub(super) fn open_in_advance(&self) -> impl Future<Output = ()> + Send + 'static {
        self.pool.open_in_advance(POSTGRES_ASIDE_CONNECTIONS)
    }

    /// Begins a write.
    pub(super) async fn begin(&self) -> Result<Write, StoreError> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        self.pool
            .begin(turn.map_err(|_| StoreError::Stopped)?)
            .await
    }

    /// Rejects further writes.
    pub(super) fn close(&self) {
        self.turns.close();
        self.pool.close();
    }
}
