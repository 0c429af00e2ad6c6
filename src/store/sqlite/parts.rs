//! What the store requires of the table of a kind's parts. Parts are separate rows that belong to a subject, as violations
//! belong to a characteristic. A kind with parts implements [`Parts`] and returns it from its
//! [`Table`](super::table::Table).

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use crate::id::{SchoolId, SubjectId};
use crate::kind::Part;
use crate::log::{PartPage, PartQuery};

/// The table of the parts of a kind's subjects.
pub(super) trait Parts: Sync {
    /// Returns a part of a subject by its number.
    fn find(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subject: &SubjectId,
        number: u64,
    ) -> QueryResult<Option<Part>>;

    /// Returns whether a part has this publisher-assigned id.
    fn has(&self, conn: &mut SqliteConnection, school: SchoolId, own_id: &str)
    -> QueryResult<bool>;

    /// Writes a part, whether or not it already has a row.
    fn write(&self, conn: &mut SqliteConnection, school: SchoolId, part: &Part) -> QueryResult<()>;

    /// Returns a page of parts, newest first.
    fn list(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        query: &PartQuery,
    ) -> QueryResult<PartPage>;

    /// Returns how many parts are open.
    fn open(&self, conn: &mut SqliteConnection, school: SchoolId) -> QueryResult<u64>;

    /// Deletes at most `limit` parts that were closed before `before` and whose events are gone.
    fn sweep(
        &self,
        conn: &mut SqliteConnection,
        before: DateTime<Utc>,
        limit: usize,
    ) -> QueryResult<usize>;
}
