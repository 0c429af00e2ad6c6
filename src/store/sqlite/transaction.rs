//! Transactions that write.

use diesel::prelude::*;
use diesel::result::Error;
use diesel::sqlite::SqliteConnection;

/// Runs `work` in a transaction, which takes the database's lock for writing when it begins. If `work` fails, all of it is rolled back, and its
/// error is returned.
///
/// SQLite itself rolls back after some errors, such as that of a full disk. Diesel would then return another error: that there is no transaction
/// to roll back.
pub(super) fn transaction<T>(
    conn: &mut SqliteConnection,
    work: impl FnOnce(&mut SqliteConnection) -> QueryResult<T>,
) -> QueryResult<T> {
    let mut cause = None;
    let done = conn.immediate_transaction(|conn| {
        work(conn).map_err(|error| {
            cause = Some(error);
            Error::RollbackTransaction
        })
    });
    done.map_err(|error| cause.unwrap_or(error))
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection;
    use diesel::result::DatabaseErrorKind::UniqueViolation;

    use super::*;

    #[test]
    fn the_error_is_that_of_the_work_even_if_sqlite_has_rolled_back() {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        conn.batch_execute("CREATE TABLE numbers (number INTEGER UNIQUE)")
            .unwrap();
        let insert = |conn: &mut SqliteConnection, or: &str| {
            diesel::sql_query(format!("INSERT {or} INTO numbers VALUES (1)")).execute(conn)
        };
        for or in ["OR ABORT", "OR FAIL", "OR ROLLBACK"] {
            let error = transaction(&mut conn, |conn| {
                insert(conn, or)?;
                insert(conn, or)
            });
            let is_cause = matches!(error, Err(Error::DatabaseError(UniqueViolation, _)));
            assert!(is_cause, "{or}: {error:?}");
        }
        // Nothing has remained, and the connection still works.
        assert_eq!(transaction(&mut conn, |conn| insert(conn, "")), Ok(1));
    }
}
