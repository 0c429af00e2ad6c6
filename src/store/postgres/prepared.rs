//! Statements in plain SQL that a connection prepares once.
//!
//! Diesel assumes that the text of a plain SQL statement differs each time. So it prepares the statement for each
//! execution, which costs another round trip, and Postgres parses and plans it again. The statement of a commit takes
//! longer to plan than to execute.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Untyped;

/// See [`prepared`].
pub(super) struct Prepared<Q>(Q);

/// Makes a connection prepare a statement only once. Its text must be a constant, because each text stays prepared.
pub(super) fn prepared<Q>(query: Q) -> Prepared<Q> {
    Prepared(query)
}

impl<Q: QueryFragment<Pg>> QueryFragment<Pg> for Prepared<Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, _: &Pg) -> QueryResult<bool> {
        Ok(true)
    }
}

/// The prepared statement is found by its text.
impl<Q> QueryId for Prepared<Q> {
    type QueryId = ();

    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q> Query for Prepared<Q> {
    type SqlType = Untyped;
}

impl<Q, Conn> diesel::RunQueryDsl<Conn> for Prepared<Q> {}
