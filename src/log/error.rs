//! Errors of a store.

/// Why a store could not do its work. Except for [`StoreError::Unknown`], the request had no effect.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// The database returned an error; the text is for the log.
    #[error("database: {0}")]
    Database(String),
    /// A commit failed. The store has logged why.
    #[error("the database rejected a commit")]
    NotCommitted,
    /// The database cannot be reached, or does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// The connection to the database broke during a commit, and the store could not determine whether the commit took
    /// effect.
    #[error(
        "the connection to the database broke during the commit, so it is not known whether the request took effect"
    )]
    Unknown,
    /// The store is shutting down.
    #[error("the store has stopped")]
    Stopped,
    /// The database was removed or replaced while it was open. The store has logged this.
    #[error("the database's file was removed or replaced while the server runs")]
    Displaced,
    /// The last write failed, for example because the disk is full. The store has logged this.
    #[error("the database cannot be written: {0}")]
    NotWritable(String),
    /// Another node now holds the lease that this write needs, or a failover has undone data that the write is based on.
    /// Nothing was written.
    #[error("another node holds the lease now, or a failover has undone what was written under it")]
    Fenced,
    /// The read was not started, because too many other reads are waiting or running.
    #[error("{0}")]
    Busy(Waiting),
}

/// Why a request's read is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// The limit on waiting requests of its school is reached.
    #[error("too many reads of this school are waiting")]
    OfSchool,
    /// The limit on waiting requests is reached.
    #[error("too many reads are waiting")]
    InAll,
    /// The read has waited for the maximum time.
    #[error("the database was busy with other reads for too long")]
    TooLong,
}
