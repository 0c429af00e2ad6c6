//! Counts of subjects and parts, which triggers maintain.

use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::schema::counts;
use super::table::unreadable;
use crate::id::{Kind, SchoolId};
use crate::kind::known_status;
use crate::store::numbers::unsigned;

/// Returns how many subjects of a kind there are, by status, without statuses that no subject has.
pub(super) fn counts(
    conn: &mut SqliteConnection,
    school: SchoolId,
    kind: Kind,
) -> QueryResult<Vec<(&'static str, u64)>> {
    let counts: Vec<(String, i64)> = counts::table
        .filter(counts::school_id.eq(school.get()))
        .filter(counts::what.eq(kind.collection()))
        .filter(counts::count.gt(0))
        .select((counts::status, counts::count))
        .load(conn)?;
    let known = |(status, count): (String, i64)| {
        let status = known_status(&status).ok_or_else(|| unreadable("a status"))?;
        Ok((status, unsigned(count)))
    };
    counts.into_iter().map(known).collect()
}

/// Returns how many subjects of a kind have stalled.
pub(super) fn stalled(
    conn: &mut SqliteConnection,
    school: SchoolId,
    kind: Kind,
) -> QueryResult<u64> {
    count_of(conn, school, &format!("stalled {}", kind.collection()))
}

/// Returns a count that is not kept by status.
pub(super) fn count_of(
    conn: &mut SqliteConnection,
    school: SchoolId,
    what: &str,
) -> QueryResult<u64> {
    let count: Option<i64> = counts::table
        .find((school.get(), what, ""))
        .select(counts::count)
        .get_result(conn)
        .optional()?;
    Ok(unsigned(count.unwrap_or_default()))
}
