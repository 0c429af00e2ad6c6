//! Forgetting: what is past retention leaves in small steps, between commits.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::answers;
use super::schema::{events, idempotency_keys, schools};
use super::table::{Address, TABLES, millis};
use super::violations;
use crate::config;

/// What the sweep removes.
#[derive(Debug, Clone)]
pub(super) struct Retention {
    pub(super) age: TimeDelta,
    pub(super) events: u64,
    pub(super) finished: TimeDelta,
    pub(super) keys: TimeDelta,
}

/// Removes one batch of what is past retention: events first, then finished subjects, then keys. Returns the
/// subjects that are gone, and whether there may be more. `swept_school` is where the next batch begins.
pub(super) fn sweep(
    conn: &mut SqliteConnection,
    swept_school: &mut i64,
    retention: &Retention,
    now: DateTime<Utc>,
) -> QueryResult<(Vec<Address>, bool)> {
    let limit = config::SWEEP_BATCH;
    let oldest = millis(now - retention.age);
    conn.immediate_transaction(|conn| {
        let kept = retention.events as i64;
        let visited: Vec<(i64, i64, i64)> = schools::table
            .filter(schools::school_id.gt(*swept_school))
            .order(schools::school_id)
            .limit(config::SWEEP_SCHOOLS as i64)
            .select((schools::school_id, schools::head, schools::floor))
            .load(conn)?;
        let mut more = visited.len() == config::SWEEP_SCHOOLS;
        *swept_school = if more {
            visited.last().map_or(0, |(school, ..)| *school)
        } else {
            0
        };
        let mut budget = limit;
        for (school, head, floor) in visited {
            let own = events::table
                .filter(events::school_id.eq(school))
                .filter(events::seq.gt(floor));
            let first = own
                .order(events::seq)
                .limit(1)
                .select((events::seq, events::at));
            let is_past = |(seq, at): &(i64, i64)| *at < oldest || *seq <= head - kept;
            if !first
                .first(conn)
                .optional()?
                .is_some_and(|row| is_past(&row))
            {
                continue;
            }
            let rows: Vec<(i64, i64)> = own
                .order(events::seq)
                .limit(budget as i64)
                .select((events::seq, events::at))
                .load(conn)?;
            let past = rows.iter().take_while(|row| is_past(row)).count();
            if let Some((last, _)) = rows[..past].last() {
                answers::keep_swept(conn, school, (floor, *last))?;
                diesel::delete(own.filter(events::seq.le(last))).execute(conn)?;
                diesel::update(schools::table.find(school))
                    .set(schools::floor.eq(last))
                    .execute(conn)?;
                budget -= past;
                if budget == 0 {
                    // It may have more: the next step begins with it again.
                    *swept_school = school - 1;
                    more = true;
                    break;
                }
            }
        }
        let mut gone = Vec::new();
        for (_, table) in TABLES {
            gone.extend(table.sweep(conn, now - retention.finished, limit)?);
        }
        more |= gone.len() >= limit;
        more |= violations::sweep(conn, now - retention.finished, limit)? == limit;
        let old_keys = idempotency_keys::created_at.lt(millis(now - retention.keys));
        let keys: Vec<(i64, String)> = idempotency_keys::table
            .filter(old_keys)
            .limit(limit as i64)
            .select((idempotency_keys::school_id, idempotency_keys::key))
            .load(conn)?;
        for key in &keys {
            answers::forget(conn, key)?;
        }
        more |= keys.len() == limit;
        QueryResult::Ok((gone, more))
    })
}
