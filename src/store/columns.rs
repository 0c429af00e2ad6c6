//! Conversions between columns and the types of the log, the same for every database.

use std::borrow::{Borrow, Cow};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use serde_json::value::RawValue;

use super::numbers::unsigned;
use crate::config::{LIST_PAGE_BYTES, READ_PAGE, READ_PAGE_BYTES};
use crate::event::Event;
use crate::id::{Epoch, Place, SubjectId, Tag};
use crate::log::StoredSubject;
use crate::log::facts::{Address, Stored};
use crate::uptime::Uptime;

/// Converts columns to a place.
pub(in crate::store) fn place(seq: i64, tag: Option<i64>) -> Place {
    Place {
        seq: unsigned(seq),
        tag: tag.and_then(|bits| u32::try_from(bits).ok()).map(Tag::new),
    }
}

/// Returns the column value of a place's tag.
pub(in crate::store) fn tag_bits(place: Place) -> Option<i64> {
    place.tag.map(|tag| tag.get().into())
}

/// Converts a stored state to the subject that requests return.
pub(in crate::store) fn into_subject(
    epoch: Epoch,
    address: Address,
    stored: Stored,
) -> StoredSubject {
    StoredSubject {
        event: Arc::new(stored.snapshot(epoch, address, Utc::now())),
        created_seq: stored.created_seq,
        state: stored.state,
    }
}

/// Milliseconds per hour.
pub(in crate::store) const HOUR_MILLIS: i64 = 3_600_000;

/// Converts a time to its stored form.
pub(in crate::store) fn millis(at: DateTime<Utc>) -> i64 {
    at.timestamp_millis()
}

/// Converts a stored time.
pub(in crate::store) fn from_millis(millis: i64) -> QueryResult<DateTime<Utc>> {
    DateTime::from_timestamp_millis(millis).ok_or_else(|| unreadable("a time"))
}

/// Converts an uptime to its stored form.
pub(in crate::store) fn uptime_millis(at: Uptime) -> i64 {
    at.millis().try_into().unwrap_or(i64::MAX)
}

/// Converts a stored uptime.
pub(in crate::store) fn uptime(millis: i64) -> QueryResult<Uptime> {
    let millis = millis.try_into();
    millis
        .map(Uptime::from_millis)
        .map_err(|_| unreadable("an uptime"))
}

/// Returns the error for a stored value that this program cannot have written.
pub(in crate::store) fn unreadable(what: &str) -> diesel::result::Error {
    diesel::result::Error::DeserializationError(
        format!("the database holds {what} that cannot be read").into(),
    )
}

/// Converts stored JSON without parsing it.
pub(in crate::store) fn raw(json: Cow<'_, str>) -> QueryResult<Arc<RawValue>> {
    RawValue::from_string(json.into_owned())
        .map(Arc::from)
        .map_err(|_| unreadable("JSON"))
}

/// Sorts events and keeps those of one page, up to `through` at most. Returns how far the page reaches.
pub(in crate::store) fn cut<E: Borrow<Event>>(events: &mut Vec<E>, through: Place) -> Place {
    let seq = |event: &E| -> u64 { event.borrow().seq };
    events.retain(|event| seq(event) <= through.seq);
    events.sort_unstable_by_key(seq);
    let mut bytes = 0;
    let of_page = events.iter().take(READ_PAGE).take_while(|event| {
        let event: &Event = (*event).borrow();
        let fits = bytes <= READ_PAGE_BYTES;
        bytes += event.draft.fields.len();
        fits
    });
    let of_page = of_page.count();
    if of_page == events.len() {
        return through;
    }
    events.truncate(of_page);
    events
        .last()
        .map_or(through, |event| event.borrow().place())
}

/// Returns the number since 1970 of the first hour that begins at a moment or after it.
pub(in crate::store) fn first_whole_hour(since: DateTime<Utc>) -> i64 {
    let since = millis(since);
    since.div_euclid(HOUR_MILLIS) + i64::from(since.rem_euclid(HOUR_MILLIS) > 0)
}

/// Returns how many of the found subjects are on a page of a list, and whether more may follow. A page ends at `limit`, or
/// with the subject that takes it above [`LIST_PAGE_BYTES`].
pub(in crate::store) fn page_of(found: &[(SubjectId, Stored)], limit: usize) -> (usize, bool) {
    let mut bytes = 0;
    for (count, (_, stored)) in found.iter().enumerate() {
        if count == limit || bytes > LIST_PAGE_BYTES {
            return (count, true);
        }
        bytes += stored.state.text_bytes();
    }
    (found.len(), bytes > LIST_PAGE_BYTES)
}
