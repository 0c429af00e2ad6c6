//! Why a store cannot do its work.

/// A store that cannot do its work. The request had no effect.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// The database refuses; the text is for the log.
    #[error("database: {0}")]
    Database(String),
    /// A commit failed. The store has logged why.
    #[error("the database did not take a commit")]
    NotCommitted,
    /// The store is shutting down.
    #[error("the store has stopped")]
    Stopped,
    /// Somebody has removed or replaced the database while it is open. The store has logged it.
    #[error("the database's file was removed or replaced while the server runs")]
    Displaced,
    /// Others read: this read was not begun.
    #[error("{0}")]
    Busy(Waiting),
}

/// Why a read of a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// As many requests of its school wait as may.
    #[error("as many reads of this school wait for their turn as may")]
    OfSchool,
    /// As many requests wait as may.
    #[error("as many reads wait for their turn as may")]
    InAll,
    /// It has waited for as long as it may.
    #[error("the database was busy with other reads for too long")]
    TooLong,
}
