//! Where a school's log begins and ends.

use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::events::EventRow;
use super::schema::{events, schools};
use super::table::place;
use crate::id::{Cursor, SchoolId, Tag};
use crate::log::Bounds;

/// Returns the bounds of a school's log; both are 0 before its first event.
pub(super) fn bounds(conn: &mut SqliteConnection, school: SchoolId) -> QueryResult<Bounds> {
    type Row = (i64, Option<i64>, i64, Option<i64>);
    let row: Option<Row> = schools::table
        .find(school.get())
        .select((
            schools::head,
            schools::head_tag,
            schools::floor,
            schools::floor_tag,
        ))
        .get_result(conn)
        .optional()?;
    let (head, head_tag, floor, floor_tag) = row.unwrap_or_default();
    let mut bounds = Bounds {
        head: place(head, head_tag),
        floor: place(floor, floor_tag),
    };
    if bounds.head.tag.is_none() && head > floor {
        // The row was written before tags were stored.
        bounds.head.tag = tag_at(conn, school, head)?;
    }
    Ok(bounds)
}

/// Returns the tag of an event that is in the log.
pub(super) fn tag_at(
    conn: &mut SqliteConnection,
    school: SchoolId,
    seq: i64,
) -> QueryResult<Option<Tag>> {
    let row = events::table
        .find((school.get(), seq))
        .select(EventRow::as_select())
        .get_result::<EventRow<'_>>(conn)
        .optional()?;
    // The tag does not depend on the epoch.
    let event = row
        .map(|row| row.into_event(Cursor::FOREIGN.epoch))
        .transpose()?;
    Ok(event.and_then(|event| event.tag))
}
