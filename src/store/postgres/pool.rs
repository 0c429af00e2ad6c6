//! A pool of connections, each for one transaction at a time. The duration of a transaction is limited, because a database
//! that has stopped answering may keep its connections open, and waiting for it would never end.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diesel::QueryResult;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::connect::{Address, Connection, begin, bounded, in_time};
use super::database_error;
use crate::config::POSTGRES_TIMEOUT;
use crate::log::StoreError;

/// See the [module-level documentation](self).
pub(super) struct Pool {
    address: Address,
    /// The statements that begin a transaction.
    begin: String,
    idle: Arc<Idle>,
}

/// Connections that are open and not in use; `None` once the store is closed.
type Idle = Mutex<Option<Vec<Connection>>>;

/// A transaction in progress. If it is dropped before its end, its connection is closed, and it has no effect.
pub(super) struct Transaction<P> {
    connection: Connection,
    idle: Arc<Idle>,
    /// Breaks the connection after [`POSTGRES_TIMEOUT`].
    _deadline: AbortOnDropHandle<()>,
    /// The permission to use a connection.
    _permit: P,
}

impl Pool {
    /// Creates a pool whose transactions begin with this `BEGIN`.
    pub(super) fn new(address: Address, begin_statement: &str) -> Pool {
        Pool {
            address,
            begin: begin(begin_statement),
            idle: Arc::new(Mutex::new(Some(Vec::new()))),
        }
    }

    /// Opens this many connections in advance, because file descriptors may run out later. Stops at the first failure: a
    /// transaction opens a connection itself if none is idle.
    pub(super) fn open_in_advance(
        &self,
        connections: usize,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (address, idle) = (self.address.clone(), Arc::clone(&self.idle));
        async move {
            for _ in 0..connections {
                let Ok(connection) = address.connect_driven().await else {
                    return;
                };
                match lock(&idle).as_mut() {
                    Some(idle) if idle.len() < connections => idle.push(connection),
                    _ => return,
                }
            }
        }
    }

    /// Begins a transaction, which holds `permit` until its end.
    pub(super) async fn begin<P>(&self, permit: P) -> Result<Transaction<P>, StoreError> {
        let connection = in_time(async {
            // An idle connection may have broken since its last use.
            while let Some(mut connection) = self.take_idle()? {
                if connection.conn.batch_execute(&self.begin).await.is_ok() {
                    return Ok(connection);
                }
            }
            let mut connection = self.address.connect_driven().await?;
            let begun = connection.conn.batch_execute(&self.begin).await;
            begun.map_err(database_error).map(|()| connection)
        });
        Ok(self.transaction(connection.await?, permit))
    }

    /// Closes the idle connections. Transactions in progress continue; no new ones can begin.
    pub(super) fn close(&self) {
        lock(&self.idle).take();
    }

    fn take_idle(&self) -> Result<Option<Connection>, StoreError> {
        let mut idle = lock(&self.idle);
        Ok(idle.as_mut().ok_or(StoreError::Stopped)?.pop())
    }

    fn transaction<P>(&self, connection: Connection, permit: P) -> Transaction<P> {
        let driver = connection.driver.clone();
        let deadline = tokio::spawn(async move {
            sleep(POSTGRES_TIMEOUT).await;
            driver.abort();
        });
        Transaction {
            connection,
            idle: Arc::clone(&self.idle),
            _deadline: AbortOnDropHandle::new(deadline),
            _permit: permit,
        }
    }
}

impl<P> Transaction<P> {
    /// Commits the transaction if its queries succeeded. Then its connection can be used again.
    pub(super) async fn end<T>(mut self, done: QueryResult<T>) -> Result<T, StoreError> {
        let done = done.map_err(database_error)?;
        bounded(self.connection.conn.batch_execute("COMMIT")).await?;
        if let Some(idle) = lock(&self.idle).as_mut() {
            idle.push(self.connection);
        }
        Ok(done)
    }
}

impl<P> Deref for Transaction<P> {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        &self.connection.conn
    }
}

impl<P> DerefMut for Transaction<P> {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.connection.conn
    }
}

fn lock(idle: &Idle) -> MutexGuard<'_, Option<Vec<Connection>>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
