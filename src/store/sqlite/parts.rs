//! What the store needs of the table of a kind's parts: rows of their own that belong to a subject, as violations do to a
//! characteristic. A kind with parts implements [`Parts`] and names it in its [`Table`](super::table::Table).

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use crate::id::{SchoolId, SubjectId};
use crate::kind::Part;
use crate::log::{PartPage, PartQuery};

/// The table of the parts of a kind's subjects.
pub(super) trait Parts: Sync {
    /// A part of a subject, by its number.
    fn find(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subject: &SubjectId,
        number: u64,
    ) -> QueryResult<Option<Part>>;

    /// Whether a part has this own id of a publisher.
    fn has(&self, conn: &mut SqliteConnection, school: SchoolId, own_id: &str)
    -> QueryResult<bool>;

    /// Writes a part, whether it has a row already or not.
    fn write(&self, conn: &mut SqliteConnection, school: SchoolId, part: &Part) -> QueryResult<()>;

    /// A page of parts, newest first.
    fn list(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        query: &PartQuery,
    ) -> QueryResult<PartPage>;

    /// How many are open.
    fn open(&self, conn: &mut SqliteConnection, school: SchoolId) -> QueryResult<u64>;

    /// Deletes at most `limit` parts that are not open since before `before` and whose events are gone.
    fn sweep(
        &self,
        conn: &mut SqliteConnection,
        before: DateTime<Utc>,
        limit: usize,
    ) -> QueryResult<usize>;
}
