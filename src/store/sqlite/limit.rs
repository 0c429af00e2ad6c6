//! `LIMIT` with a bound value, so that the statement is compiled only once.
//!
//! SQLite compiles a statement again at each execution if the value of its `LIMIT` is a bare variable: the planner looks at
//! the value, so each binding makes the plan obsolete. Compiling costs several times as much as a short read. The planner
//! does not look at a variable within an expression. So no query here uses Diesel's own `limit`, or `first`, which binds a
//! limit of 1: `get_result` reads the first row without a limit.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::BigInt;
use diesel::sqlite::{Sqlite, SqliteConnection};

/// What follows `LIMIT`: a sum, for the reason above.
pub(super) const BOUND: &str = "? + 0";

/// Limits a complete query.
pub(super) trait Limit: Sized {
    /// Returns at most `limit` rows.
    fn at_most(self, limit: i64) -> Limited<Self> {
        Limited {
            query: self,
            limit,
            skipped: 0,
        }
    }

    /// Returns all rows but the first `skipped` ones.
    fn rows_after(self, skipped: i64) -> Limited<Self> {
        Limited {
            query: self,
            limit: i64::MAX,
            skipped,
        }
    }

    /// Returns the row after the first `skipped` ones, if there is one.
    fn row_after(self, skipped: i64) -> Limited<Self> {
        Limited {
            query: self,
            limit: 1,
            skipped,
        }
    }
}

impl<Q: Query> Limit for Q {}

/// A query with a limit.
#[derive(QueryId)]
pub(super) struct Limited<Q> {
    query: Q,
    limit: i64,
    skipped: i64,
}

impl<Q: Query> Query for Limited<Q> {
    type SqlType = Q::SqlType;
}

impl<Q> RunQueryDsl<SqliteConnection> for Limited<Q> {}

impl<Q: QueryFragment<Sqlite>> QueryFragment<Sqlite> for Limited<Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        self.query.walk_ast(out.reborrow())?;
        out.push_sql(" LIMIT ");
        out.push_bind_param::<BigInt, _>(&self.limit)?;
        out.push_sql(" + 0 OFFSET ");
        out.push_bind_param::<BigInt, _>(&self.skipped)
    }
}
