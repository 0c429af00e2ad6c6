//! Small writes outside the log: leases, notifiers, the nodes themselves. They take turns on a few connections of their
//! own, and need not survive the loss of the database's machine.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use diesel::QueryResult;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connect::{Address, bounded};
use super::database_error;
use crate::config::POSTGRES_ASIDE_CONNECTIONS;
use crate::log::StoreError;

/// See the [module-level documentation](self).
pub(super) struct Writes {
    address: Address,
    idle: Arc<Mutex<Vec<AsyncPgConnection>>>,
    turns: Arc<Semaphore>,
}

/// A transaction in progress. If it is dropped before its end, it has no effect.
pub(super) struct Write {
    conn: AsyncPgConnection,
    idle: Arc<Mutex<Vec<AsyncPgConnection>>>,
    _turn: OwnedSemaphorePermit,
}

impl Writes {
    pub(super) fn new(address: Address) -> Writes {
        Writes {
            address,
            idle: Arc::default(),
            turns: Arc::new(Semaphore::new(POSTGRES_ASIDE_CONNECTIONS)),
        }
    }

    /// Opens the connections in advance, like those for reading.
    pub(super) fn open_in_advance(&self) -> impl Future<Output = ()> + Send + 'static {
        let (address, idle) = (self.address.clone(), Arc::clone(&self.idle));
        async move {
            for _ in 0..POSTGRES_ASIDE_CONNECTIONS {
                let Ok(conn) = address.connect().await else {
                    return;
                };
                idle.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(conn);
            }
        }
    }

    /// Begins a transaction.
    pub(super) async fn begin(&self) -> Result<Write, StoreError> {
        const BEGIN: &str = "BEGIN; SET LOCAL synchronous_commit = off";
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|_| StoreError::Stopped)?;
        // An idle connection may have broken since its last use.
        let mut begun = None;
        while let Some(mut conn) = self.take_idle() {
            if bounded(conn.batch_execute(BEGIN)).await.is_ok() {
                begun = Some(conn);
                break;
            }
        }
        let conn = match begun {
            Some(conn) => conn,
            None => {
                let mut conn = self.address.connect().await?;
                bounded(conn.batch_execute(BEGIN)).await?;
                conn
            }
        };
        Ok(Write {
            conn,
            idle: Arc::clone(&self.idle),
            _turn: turn,
        })
    }

    /// Refuses further writes.
    pub(super) fn close(&self) {
        self.turns.close();
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn take_idle(&self) -> Option<AsyncPgConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop()
    }
}

impl Write {
    /// Commits the transaction if its last statement succeeded.
    pub(super) async fn end<T>(mut self, written: QueryResult<T>) -> Result<T, StoreError> {
        let written = written.map_err(database_error)?;
        bounded(self.conn.batch_execute("COMMIT")).await?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(self.conn);
        Ok(written)
    }
}

impl Deref for Write {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        &self.conn
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.conn
    }
}
