//! The SQL functions that every connection needs.

use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::{job_texts, search};

/// Registers all functions with a connection.
pub(super) fn register(conn: &mut SqliteConnection) -> QueryResult<()> {
    search::register(conn)?;
    job_texts::register(conn)
}
