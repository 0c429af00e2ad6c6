//! Statements in plain SQL that a connection prepares once.
//!
//! Diesel takes it that a plain statement is another one each time. It has it prepared for each execution, which is one more
//! round trip, and Postgres parses and plans it again. The statement of a commit takes longer to plan than to execute.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Untyped;

/// See [`prepared`].
pub(super) struct Prepared<Q>(Q);

/// Has a statement prepared once per connection. Its text must be a constant, because each text stays prepared.
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

/// It is found by its text.
impl<Q> QueryId for Prepared<Q> {
    type QueryId = ();

    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q> Query for Prepared<Q> {
    type SqlType = Untyped;
}

impl<Q, Conn> diesel::RunQueryDsl<Conn> for Prepared<Q> {}
