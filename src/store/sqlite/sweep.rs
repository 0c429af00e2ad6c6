//! Retention: removes old data in small steps, between commits.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;
use lru::LruCache;

use super::answers;
use super::bounds::tag_at;
use super::functions::octet_length;
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

/// What the next step of a round removes. A reader finds it, so that neither publishers nor the writer's cache of pages are affected by logs
/// that have nothing to remove, which are nearly all.
pub(super) struct Found {
    /// The schools that have something to remove.
    schools: Vec<i64>,
    /// The last school that was visited, or 0 at the end of the round.
    last: i64,
}

/// The result of one step.
#[derive(Default)]
pub(super) struct Swept {
    /// The subjects that were removed.
    pub(super) gone: Vec<Address>,
    /// Schools whose logs were shortened.
    pub(super) shortened: Vec<SchoolId>,
    /// The school after which the next step continues.
    pub(super) last: i64,
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

/// How far a round of the sweep has come, and what rounds need not read again.
pub(super) struct Round {
    /// The last school that was visited in this round.
    last: i64,
    /// The oldest event of each log that was visited: the floor of the log, `seq`, and when it happened. It stays the same until the floor
    /// moves.
    oldest: LruCache<i64, (i64, i64, i64)>,
}

impl Round {
    pub(super) fn new() -> Round {
        let capacity = NonZeroUsize::new(config::SCHOOL_CACHE).expect("a cache has room");
        Round {
            last: 0,
            oldest: LruCache::new(capacity),
        }
    }

    /// Continues after this school with the next step.
    pub(super) fn continue_after(&mut self, school: i64) {
        self.last = school;
    }

    /// Whether the oldest event of a log is past its retention.
    fn has_past(
        &mut self,
        conn: &mut SqliteConnection,
        log: &Kept,
        retention: &Retention,
        now: DateTime<Utc>,
    ) -> QueryResult<bool> {
        if log.head == log.floor {
            return Ok(false);
        }
        let known = self.oldest.get(&log.school);
        let (seq, at) = match known {
            Some(&(floor, seq, at)) if floor == log.floor => (seq, at),
            _ => {
                let Some((seq, at, _)) = oldest_rows(conn, log, 1)?.pop() else {
                    return Ok(false);
                };
                self.oldest.put(log.school, (log.floor, seq, at));
                (seq, at)
            }
        };
        Ok(is_past((seq, at), log, 0, retention, now))
    }
}

impl Found {
    /// Whether the writer has nothing to do. The end of a round is never empty, because it also removes what does not belong to a log.
    pub(super) fn is_empty(&self) -> bool {
        self.schools.is_empty() && self.last != 0
    }

    /// Returns the school after which the next step continues if this one is empty.
    pub(super) fn last(&self) -> i64 {
        self.last
    }
}

pub(super) fn lock(round: &Mutex<Round>) -> MutexGuard<'_, Round> {
    round.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds which of the next schools have something to remove.
pub(super) fn find(
    conn: &mut SqliteConnection,
    round: &mut Round,
    retention: &Retention,
    now: DateTime<Utc>,
) -> QueryResult<Found> {
    let visited: Vec<Kept> = logs()
        .filter(schools::school_id.gt(round.last))
        .order(schools::school_id)
        .at_most(signed(config::SWEEP_SCHOOLS))
        .load(conn)?;
    let last = match visited.last() {
        Some(last) if visited.len() == config::SWEEP_SCHOOLS => last.school,
        _ => 0,
    };
    let mut schools = Vec::new();
    for log in visited {
        let has_past = round.has_past(conn, &log, retention, now)?;
        if has_past || log.answer_bytes > signed(retention.answer_bytes) {
            schools.push(log.school);
        }
    }
    Ok(Found { schools, last })
}

/// Removes one batch of data past its retention: events and stored answers, then finished subjects, then parts, then keys.
pub(super) fn sweep(
    conn: &mut SqliteConnection,
    found: &Found,
    retention: &Retention,
    now: DateTime<Utc>,
) -> QueryResult<Swept> {
    let limit = config::SWEEP_BATCH;
    conn.immediate_transaction(|conn| {
        let mut swept = Swept {
            last: found.last,
            more: found.last != 0,
            ..Swept::default()
        };
        sweep_logs(conn, &found.schools, retention, now, &mut swept)?;
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

/// Selects the bounds and sizes of logs.
#[diesel::dsl::auto_type]
fn logs() -> _ {
    schools::table.select((
        schools::school_id,
        schools::head,
        schools::floor,
        schools::bytes,
        schools::answer_bytes,
    ))
}

/// Removes the oldest events and answers of these schools, up to the limit of one step.
fn sweep_logs(
    conn: &mut SqliteConnection,
    schools: &[i64],
    retention: &Retention,
    now: DateTime<Utc>,
    swept: &mut Swept,
) -> QueryResult<()> {
    if schools.is_empty() {
        return Ok(());
    }
    // As they are now.
    let visited: Vec<Kept> = logs()
        .filter(schools::school_id.eq_any(schools))
        .order(schools::school_id)
        .load(conn)?;
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
            (swept.last, swept.more) = (log.school - 1, true);
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
    let (mut past, mut gone): (Vec<Row>, _) = (oldest_rows(conn, log, max_rows)?, 0);
    let count = past.iter().take_while(|row| {
        let goes = gone < max_bytes && is_past((row.0, row.1), log, gone, retention, now);
        gone += row.2;
        goes
    });
    let count = count.count();
    past.truncate(count);
    Ok(past)
}

/// Whether an event with this `seq` and time is past its retention, after `gone` bytes of older ones are gone.
fn is_past(
    (seq, at): (i64, i64),
    log: &Kept,
    gone: i64,
    retention: &Retention,
    now: DateTime<Utc>,
) -> bool {
    at < millis(now - retention.age)
        || seq <= log.head - signed(retention.events)
        || log.bytes - gone > signed(retention.bytes)
}

/// Reads the oldest events of a log.
fn oldest_rows(conn: &mut SqliteConnection, log: &Kept, limit: usize) -> QueryResult<Vec<Row>> {
    let bytes = octet_length(events::fields) + octet_length(events::subject_id);
    events::table
        .filter(events::school_id.eq(log.school))
        .filter(events::seq.gt(log.floor))
        .order(events::seq)
        .select((events::seq, events::at, bytes + signed(EVENT_BASE_BYTES)))
        .at_most(signed(limit))
        .load(conn)
}
