//! The SQL functions that every connection needs, and those of SQLite that Diesel does not know.

use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel::sqlite::SqliteConnection;

use super::{job_texts, search};

diesel::define_sql_function! {
    /// SQLite's own function: the size of a text in bytes.
    fn octet_length(text: Text) -> BigInt;
}

/// Registers all functions with a connection.
pub(super) fn register(conn: &mut SqliteConnection) -> QueryResult<()> {
    search::register(conn)?;
    job_texts::register(conn)
}
