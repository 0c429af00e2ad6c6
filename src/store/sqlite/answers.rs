//! The answers to requests with an idempotency key, for as long as the key is stored.
//!
//! An answer is an event, which is usually in the log. It is stored here once retention removes it from the log, or from
//! the beginning if the request changed nothing. So a repeated request gets the answer to the first one, whatever has
//! happened to the subject since.
//!
//! The size of a school's stored answers is limited by `idempotency_answer_bytes`. Above the limit, the oldest answers are
//! dropped, but their keys are kept: a repeated request is still not carried out again, and gets the current state of the
//! subject. Triggers maintain the size (`schools.answer_bytes`, migration 17), so that it need not be counted.

use std::sync::Arc;

use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::events::EventRow;
use super::functions::octet_length;
use super::limit::Limit;
use super::schema::{events, idempotency_answers, idempotency_keys, schools};
use super::table::{from_millis, millis, place, tag_bits, unreadable};
use crate::config::{SWEEP_BATCH, SWEEP_BATCH_BYTES};
use crate::event::{Class, Draft, Event};
use crate::id::{Epoch, SchoolId};
use crate::kind::{known_kind, known_status, known_type};
use crate::store::numbers::{signed, unsigned};
use crate::store::retention::ANSWER_BASE_BYTES;
#[cfg(feature = "postgres")]
use crate::store::used_key::UsedKey;

/// A row of `idempotency_answers`.
#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = idempotency_answers)]
#[diesel(check_for_backend(diesel::sqlite::Sqlite))]
struct AnswerRow {
    school_id: i64,
    key: String,
    seq: i64,
    snapshot: bool,
    name: String,
    status: String,
    at: i64,
    fields: String,
    /// When the key was used.
    created_at: i64,
    /// The tag of a snapshot, if it was known. The tag of any other event is computed from its content.
    tag: Option<i64>,
}

/// A row of `idempotency_keys`, without the time at which the key was used.
#[derive(Queryable, Selectable)]
#[diesel(table_name = idempotency_keys)]
#[diesel(check_for_backend(diesel::sqlite::Sqlite))]
pub(super) struct KeyRow {
    school_id: i64,
    key: String,
    pub(super) fingerprint: String,
    pub(super) kind: String,
    pub(super) subject_id: String,
    seq: i64,
}

/// Returns an earlier use of a key.
pub(super) fn find_key(
    conn: &mut SqliteConnection,
    school: SchoolId,
    key: &str,
) -> QueryResult<Option<KeyRow>> {
    idempotency_keys::table
        .find((school.get(), key))
        .select(KeyRow::as_select())
        .get_result(conn)
        .optional()
}

/// Returns uses of keys of a school after `after`, in the order of the keys, with the answers that are not in the log.
#[cfg(feature = "postgres")]
pub(super) fn list(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    school: SchoolId,
    after: &str,
    limit: usize,
) -> QueryResult<Vec<UsedKey>> {
    let rows: Vec<(KeyRow, i64)> = idempotency_keys::table
        .filter(idempotency_keys::school_id.eq(school.get()))
        .filter(idempotency_keys::key.gt(after))
        .order(idempotency_keys::key)
        .select((KeyRow::as_select(), idempotency_keys::created_at))
        .at_most(signed(limit))
        .load(conn)?;
    let mut used = Vec::with_capacity(rows.len());
    for (row, created_at) in rows {
        let stored: Option<AnswerRow> = idempotency_answers::table
            .find((row.school_id, &row.key))
            .select(AnswerRow::as_select())
            .get_result(conn)
            .optional()?;
        let answer = stored
            .map(|stored| stored.into_event(&row, epoch))
            .transpose()?;
        let subject = row.subject_id.parse();
        used.push(UsedKey {
            answer,
            kind: known_kind(&row.kind).ok_or_else(|| unreadable("a kind"))?,
            subject: subject.map_err(|_| unreadable("a subject id"))?,
            seq: unsigned(row.seq),
            used_at: from_millis(created_at)?,
            key: row.key,
            fingerprint: row.fingerprint,
        });
    }
    Ok(used)
}

/// Returns the answer to the request that used a key. Returns `None` if the answer was dropped, or if the key was used
/// before answers were stored.
pub(super) fn find_answer(
    conn: &mut SqliteConnection,
    used: &KeyRow,
    epoch: Epoch,
) -> QueryResult<Option<Event>> {
    let in_log = events::table
        .find((used.school_id, used.seq))
        .filter(events::subject_id.eq(&used.subject_id))
        .select(EventRow::as_select())
        .get_result(conn)
        .optional()?;
    if let Some(row) = in_log {
        return row.into_event(epoch).map(Some);
    }
    let stored = idempotency_answers::table
        .find((used.school_id, &used.key))
        .select(AnswerRow::as_select())
        .get_result(conn)
        .optional()?;
    stored.map(|row| row.into_event(used, epoch)).transpose()
}

/// Stores the answer to a request that changed nothing.
pub(super) fn keep(
    conn: &mut SqliteConnection,
    key: &str,
    event: &Event,
    created_at: i64,
) -> QueryResult<()> {
    let row = AnswerRow {
        school_id: event.school.get(),
        key: key.to_owned(),
        seq: signed(event.seq),
        snapshot: event.snapshot,
        name: event.draft.event_type.name.to_owned(),
        status: event.draft.status.to_owned(),
        at: millis(event.at),
        fields: event.draft.fields.as_str().to_owned(),
        created_at,
        tag: tag_bits(event.place()),
    };
    insert(conn, row)
}

/// Inserts an answer, unless its key already has one: the triggers would not count a replacement.
fn insert(conn: &mut SqliteConnection, row: AnswerRow) -> QueryResult<()> {
    diesel::insert_or_ignore_into(idempotency_answers::table)
        .values(row)
        .execute(conn)?;
    Ok(())
}

/// Stores the answers among the events of a school that are about to be removed: those after `floor`, up to `last`.
pub(super) fn keep_swept(
    conn: &mut SqliteConnection,
    school: i64,
    (floor, last): (i64, i64),
) -> QueryResult<()> {
    let of_event = events::school_id
        .eq(idempotency_keys::school_id)
        .and(events::seq.eq(idempotency_keys::seq));
    let leaving: Vec<(String, i64, String, String, i64, String, i64)> = idempotency_keys::table
        .inner_join(events::table.on(of_event))
        .filter(idempotency_keys::school_id.eq(school))
        .filter(idempotency_keys::seq.gt(floor))
        .filter(idempotency_keys::seq.le(last))
        .select((
            idempotency_keys::key,
            events::seq,
            events::name,
            events::status,
            events::at,
            events::fields,
            idempotency_keys::created_at,
        ))
        .load(conn)?;
    for (key, seq, name, status, at, fields, created_at) in leaving {
        let row = AnswerRow {
            school_id: school,
            key,
            seq,
            snapshot: false,
            name,
            status,
            at,
            fields,
            created_at,
            tag: None,
        };
        insert(conn, row)?;
    }
    Ok(())
}

/// Drops the oldest answers of a school that has more than `max_bytes` bytes of them, up to the limit of one step of the sweep.
/// Their keys are kept. Returns whether there is more to drop.
pub(super) fn drop_oldest(
    conn: &mut SqliteConnection,
    school: i64,
    max_bytes: i64,
) -> QueryResult<bool> {
    let stored_bytes: i64 = schools::table
        .find(school)
        .select(schools::answer_bytes)
        .get_result(conn)?;
    if stored_bytes <= max_bytes {
        return Ok(false);
    }
    let oldest: Vec<(String, i64)> = idempotency_answers::table
        .filter(idempotency_answers::school_id.eq(school))
        .order(idempotency_answers::created_at)
        .select((
            idempotency_answers::key,
            octet_length(idempotency_answers::fields),
        ))
        .at_most(signed(SWEEP_BATCH))
        .load(conn)?;
    let mut dropped = 0;
    for (key, field_bytes) in &oldest {
        if stored_bytes - dropped <= max_bytes || dropped >= SWEEP_BATCH_BYTES {
            break;
        }
        diesel::delete(idempotency_answers::table.find((school, key))).execute(conn)?;
        dropped += field_bytes + signed(key.len()) + ANSWER_BASE_BYTES;
    }
    Ok(dropped > 0 && stored_bytes - dropped > max_bytes)
}

/// Deletes a key and its answer.
pub(super) fn forget(conn: &mut SqliteConnection, key: &(i64, String)) -> QueryResult<()> {
    diesel::delete(idempotency_answers::table.find((key.0, &key.1))).execute(conn)?;
    diesel::delete(idempotency_keys::table.find((key.0, &key.1))).execute(conn)?;
    Ok(())
}

impl AnswerRow {
    fn into_event(self, used: &KeyRow, epoch: Epoch) -> QueryResult<Event> {
        let draft = Draft {
            event_type: known_type(&self.name).ok_or_else(|| unreadable("an event type"))?,
            class: Class::Milestone,
            status: known_status(&self.status).ok_or_else(|| unreadable("a status"))?,
            category: None::<Arc<str>>,
            fields: self.fields.into(),
        };
        let school = self.school_id.try_into();
        let subject = used.subject_id.parse();
        let school = school.map_err(|_| unreadable("a school id"))?;
        let kind = known_kind(&used.kind).ok_or_else(|| unreadable("a kind"))?;
        let subject = subject.map_err(|_| unreadable("a subject id"))?;
        let (seq, at) = (unsigned(self.seq), from_millis(self.at)?);
        Ok(match self.snapshot {
            true => {
                let place = (epoch, place(self.seq, self.tag));
                Event::snapshot(place, school, kind, subject, at, draft)
            }
            false => Event::new((epoch, seq), school, kind, subject, at, draft),
        })
    }
}

diesel::allow_tables_to_appear_in_same_query!(events, idempotency_keys);
