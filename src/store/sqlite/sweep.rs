//! Retention: removes old data in small steps, between commits.

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel::sqlite::SqliteConnection;

use super::answers;
use super::bounds::tag_at;
use super::limit::Limit;
use super::schema::{events, idempotency_keys, schools};
use super::table::{millis, unreadable};
use super::tables::TABLES;
use crate::config;
use crate::event::EVENT_BASE_BYTES;
use crate::id::SchoolId;
use crate::log::facts::Address;
use crate::store::numbers::signed;
pub(super) use crate::store::retention::Retention;

/// The result of one step.
#[derive(Default)]
pub(super) struct Swept {
    /// The subjects that were removed.
    pub(super) gone: Vec<Address>,
    /// Schools whose logs were shortened.
    pub(super) shortened: Vec<SchoolId>,
    /// Whether there may be more to remove.
    pub(super) more: bool,
}

/// The bounds and sizes of a school's log.
#[derive(Queryable)]
struct Kept {
    school: i64,
    head: i64,
    floor: i64,
    bytes: i64,
    answer_bytes: i64,
}

/// An event: its `seq`, when it happened, and its size as [`crate::event::Event::bytes`] counts it.
type Row = (i64, i64, i64);

/// Removes one batch of data past its retention: events and stored answers, then finished subjects, then parts, then keys.
/// The next batch of events starts after `swept_school`.
pub(super) fn sweep(
    conn: &mut SqliteConnection,
    swept_school: &mut i64,
    retention: &Retention,
    now: DateTime<Utc>,
) -> QueryResult<Swept> {
    let limit = config::SWEEP_BATCH;
    conn.immediate_transaction(|conn| {
        let mut swept = Swept::default();
        sweep_logs(conn, swept_school, retention, now, &mut swept)?;
        for (_, table) in TABLES {
            swept
                .gone
                .extend(table.sweep(conn, now - retention.finished, limit)?);
        }
        swept.more |= swept.gone.len() >= limit;
        for parts in TABLES.iter().filter_map(|(_, table)| table.parts()) {
            swept.more |= parts.sweep(conn, now - retention.finished, limit)? == limit;
        }
        let old_keys = idempotency_keys::created_at.lt(millis(now - retention.keys));
        let keys: Vec<(i64, String)> = idempotency_keys::table
            .filter(old_keys)
            .select((idempotency_keys::school_id, idempotency_keys::key))
            .at_most(signed(limit))
            .load(conn)?;
        for key in &keys {
            answers::forget(conn, key)?;
        }
        swept.more |= keys.len() == limit;
        QueryResult::Ok(swept)
    })
}

/// Removes the oldest events and answers of some schools, up to the limit of one step.
fn sweep_logs(
    conn: &mut SqliteConnection,
    swept_school: &mut i64,
    retention: &Retention,
    now: DateTime<Utc>,
    swept: &mut Swept,
) -> QueryResult<()> {
    let visited: Vec<Kept> = schools::table
        .filter(schools::school_id.gt(*swept_school))
        .order(schools::school_id)
        .select((
            schools::school_id,
            schools::head,
            schools::floor,
            schools::bytes,
            schools::answer_bytes,
        ))
        .at_most(signed(config::SWEEP_SCHOOLS))
        .load(conn)?;
    swept.more = visited.len() == config::SWEEP_SCHOOLS;
    *swept_school = match visited.last() {
        Some(last) if swept.more => last.school,
        _ => 0,
    };
    let mut budget = (config::SWEEP_BATCH, config::SWEEP_BATCH_BYTES);
    for log in visited {
        let past = past_retention(conn, &log, retention, now, budget)?;
        let bytes: i64 = past.iter().map(|(.., bytes)| bytes).sum();
        if let Some((last, ..)) = past.last() {
            let school = log.school.try_into();
            let school = school.map_err(|_| unreadable("a school id"))?;
            shorten(conn, &log, school, *last, bytes)?;
            swept.shortened.push(school);
        }
        // Answers that have just left the log are stored separately now, which adds to their size.
        let max_answer_bytes = signed(retention.answer_bytes);
        let may_be_over = log.answer_bytes > max_answer_bytes || !past.is_empty();
        let is_over = may_be_over && answers::drop_oldest(conn, log.school, max_answer_bytes)?;
        budget.0 -= past.len();
        budget.1 -= bytes;
        if is_over || budget.0 == 0 || budget.1 <= 0 {
            // The log may have more to remove: the next step starts with it again.
            *swept_school = log.school - 1;
            swept.more = true;
            break;
        }
    }
    Ok(())
}

/// Removes the events of a log up to `last`; `bytes` is their total size.
fn shorten(
    conn: &mut SqliteConnection,
    log: &Kept,
    school: SchoolId,
    last: i64,
    bytes: i64,
) -> QueryResult<()> {
    let tag = tag_at(conn, school, last)?;
    answers::keep_swept(conn, log.school, (log.floor, last))?;
    let school_events = events::table.filter(events::school_id.eq(log.school));
    diesel::delete(school_events.filter(events::seq.le(last))).execute(conn)?;
    diesel::update(schools::table.find(log.school))
        .set((
            schools::floor.eq(last),
            schools::floor_tag.eq(tag.map(|tag| i64::from(tag.get()))),
            schools::bytes.eq(log.bytes - bytes),
        ))
        .execute(conn)?;
    Ok(())
}

/// Returns the oldest events of a log that are past their retention, at most `max_rows`. The event with which their size
/// reaches `max_bytes` is the last one.
fn past_retention(
    conn: &mut SqliteConnection,
    log: &Kept,
    retention: &Retention,
    now: DateTime<Utc>,
    (max_rows, max_bytes): (usize, i64),
) -> QueryResult<Vec<Row>> {
    let oldest = millis(now - retention.age);
    let retained = (signed(retention.events), signed(retention.bytes));
    let bytes = format!("octet_length(fields) + octet_length(subject_id) + {EVENT_BASE_BYTES}");
    let rows = |limit: usize| {
        events::table
            .filter(events::school_id.eq(log.school))
            .filter(events::seq.gt(log.floor))
            .order(events::seq)
            .select((events::seq, events::at, sql::<BigInt>(&bytes)))
            .at_most(signed(limit))
    };
    let is_past = |(seq, at, _): &Row, gone: i64| {
        *at < oldest || *seq <= log.head - retained.0 || log.bytes - gone > retained.1
    };
    // Most logs have nothing to remove.
    let first = rows(1).get_result(conn).optional()?;
    if !first.is_some_and(|first| is_past(&first, 0)) {
        return Ok(Vec::new());
    }
    let (mut past, mut gone): (Vec<Row>, _) = (rows(max_rows).load(conn)?, 0);
    let count = past.iter().take_while(|row| {
        let goes = gone < max_bytes && is_past(row, gone);
        gone += row.2;
        goes
    });
    let count = count.count();
    past.truncate(count);
    Ok(past)
}
