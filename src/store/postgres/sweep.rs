//! Retention: removes old data in small steps, school by school. Each step of a school is one transaction that locks its
//! row and, if it removes anything, gives it a new stamp, so that no node decides on the basis of removed data.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::rows::EventRow;
use super::schema::{events, idempotency_keys, schools};
use super::{PostgresStore, answers, read, rows};
use crate::config;
use crate::event::EVENT_BASE_BYTES;
use crate::id::Cursor;
use crate::log::StoreError;
use crate::store::columns::millis;
use crate::store::numbers::signed;
use crate::store::retention::{ANSWER_BASE_BYTES, Retention};
use crate::store::shared::stamp;

/// The bounds and sizes of a school's log.
#[derive(Queryable)]
struct Kept {
    head: i64,
    floor: i64,
    bytes: i64,
    answer_bytes: i64,
}

/// An event: its `seq`, when it happened, and its size.
#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = BigInt)]
    at: i64,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

#[derive(QueryableByName)]
struct Gone {
    #[diesel(sql_type = Text)]
    what: String,
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// Deletes at most `$3` subjects that ended before `$2` and whose last event is at most `$4`, and updates the counts.
const SUBJECTS: &str = "
WITH picked AS (
    SELECT kind, subject_id FROM subjects
    WHERE school_id = $1 AND finished_at < $2 AND last_seq <= $4 ORDER BY finished_at LIMIT $3
),
gone AS (
    DELETE FROM subjects AS s USING picked AS p
    WHERE s.school_id = $1 AND s.kind = p.kind AND s.subject_id = p.subject_id
    RETURNING s.kind, s.status, s.stalled, s.finished_at / 3600000 AS hour
),
fewer AS (
    SELECT kind AS what, status FROM gone UNION ALL SELECT 'stalled ' || kind, '' FROM gone WHERE stalled
),
counted AS (
    UPDATE counts AS c SET count = c.count - f.by
    FROM (SELECT what, status, count(*) AS by FROM fewer GROUP BY what, status) AS f
    WHERE c.school_id = $1 AND c.what = f.what AND c.status = f.status
),
ended AS (
    UPDATE endings AS e SET count = e.count - f.by
    FROM (SELECT kind, hour, status, count(*) AS by FROM gone GROUP BY kind, hour, status) AS f
    WHERE e.school_id = $1 AND e.kind = f.kind AND e.hour = f.hour AND e.status = f.status
)
SELECT 'subjects' AS what, count(*) AS count FROM gone";

/// Deletes at most `$3` parts that were closed before `$2` and whose event is at most `$4`. Open parts are kept, because
/// they still need attention.
const PARTS: &str = "
WITH gone AS (
    DELETE FROM parts WHERE school_id = $1 AND (kind, subject_id, number) IN (
        SELECT kind, subject_id, number FROM parts
        WHERE school_id = $1 AND closed_at < $2 AND seq <= $4 ORDER BY closed_at LIMIT $3
    ) RETURNING 1
)
SELECT 'parts' AS what, count(*) AS count FROM gone";

/// Deletes at most `$3` keys that were used before `$2`. `$4` is [`ANSWER_BASE_BYTES`].
const KEYS: &str = "
WITH gone AS (
    DELETE FROM idempotency_keys WHERE school_id = $1 AND key IN (
        SELECT key FROM idempotency_keys WHERE school_id = $1 AND created_at < $2 ORDER BY created_at LIMIT $3
    ) RETURNING key, answer
),
freed AS (
    UPDATE schools SET answer_bytes = answer_bytes - (
        SELECT COALESCE(sum(octet_length(answer) + octet_length(key) + $4), 0) FROM gone WHERE answer IS NOT NULL
    ) WHERE school_id = $1
)
SELECT 'keys' AS what, count(*) AS count FROM gone";

/// Finds which of the schools after `$1` and up to `$2` have something to remove: answers of more than `$3` bytes, an oldest event from before
/// `$4`, or more than `$5` events or `$6` bytes of them, subjects or parts that ended before `$7`, or keys that were used before `$8`. Each part
/// reads the beginning of an index. A subject is kept as long as its events, so those that ended more than an hour after the oldest event are
/// not looked at; the hour is for clocks that differ. A violation may have been acknowledged long after its event, so all parts are.
const FIND: &str = "
SELECT s.school_id AS school
FROM schools AS s
LEFT JOIN LATERAL (
    SELECT seq, at FROM events AS e WHERE e.school_id = s.school_id AND e.seq > s.floor ORDER BY e.seq LIMIT 1
) AS event ON true
LEFT JOIN LATERAL (
    SELECT true AS found FROM subjects AS x
    WHERE x.school_id = s.school_id AND x.finished_at < LEAST($7, event.at + 3600000) AND x.last_seq <= s.floor
    ORDER BY x.finished_at LIMIT 1
) AS subject ON true
LEFT JOIN LATERAL (
    SELECT true AS found FROM parts AS x
    WHERE x.school_id = s.school_id AND x.closed_at < $7 AND x.seq <= s.floor
    ORDER BY x.closed_at LIMIT 1
) AS part ON true
LEFT JOIN LATERAL (
    SELECT true AS found FROM idempotency_keys AS x
    WHERE x.school_id = s.school_id AND x.created_at < $8 ORDER BY x.created_at LIMIT 1
) AS key ON true
WHERE s.school_id > $1 AND s.school_id <= $2 AND (
    s.answer_bytes > $3 OR event.at < $4 OR event.seq <= s.head - $5 OR (event.seq IS NOT NULL AND s.bytes > $6)
    OR subject.found OR part.found OR key.found
)
ORDER BY s.school_id";

/// A school that has something to remove.
#[derive(QueryableByName)]
struct Past {
    #[diesel(sql_type = BigInt)]
    school: i64,
}

/// How far a round of the sweep has come.
#[derive(Default)]
pub(super) struct Round {
    /// The school after which the next step looks, or 0 if it begins a round.
    last: i64,
    /// The schools up to there that have something to remove.
    found: VecDeque<i64>,
}

impl Round {
    fn is_over(&self) -> bool {
        self.last == 0 && self.found.is_empty()
    }
}

impl PostgresStore {
    /// Removes one batch of the next school that has something to remove, if one is found. Returns whether this round has more to do.
    ///
    /// A school that fails is left for the next round, as are those of a step in which none can be found: they must not keep the others from
    /// being swept.
    pub(super) async fn sweep_next(&self, now: DateTime<Utc>) -> Result<bool, StoreError> {
        let mut round = self.round.lock().await;
        if round.found.is_empty() {
            self.find(&mut round, now).await?;
        }
        let Some(school) = round.found.pop_front() else {
            return Ok(!round.is_over());
        };
        let mut write = self.write().await?;
        let more = self.sweep_school(&mut write, school, now).await;
        if write.end(more).await? {
            round.found.push_front(school);
        }
        Ok(!round.is_over())
    }

    /// Finds which of the next schools have something to remove. A query of its own finds out first where the next step begins.
    async fn find(&self, round: &mut Round, now: DateTime<Utc>) -> Result<(), StoreError> {
        let after = round.last;
        let mut read = self.read_for_server().await?;
        let next = schools::table
            .filter(schools::school_id.gt(after))
            .order(schools::school_id)
            .limit(signed(config::SWEEP_SCHOOLS))
            .select(schools::school_id)
            .load::<i64>(&mut *read)
            .await;
        let next = read.end(next).await?;
        let ends_round = next.len() < config::SWEEP_SCHOOLS;
        let last = next.last().copied().unwrap_or(after);
        round.last = if ends_round { 0 } else { last };
        let retention = &self.retention;
        let mut read = self.read_for_server().await?;
        let found = diesel::sql_query(FIND)
            .bind::<BigInt, _>(after)
            .bind::<BigInt, _>(last)
            .bind::<BigInt, _>(signed(retention.answer_bytes))
            .bind::<BigInt, _>(millis(now - retention.age))
            .bind::<BigInt, _>(signed(retention.events))
            .bind::<BigInt, _>(signed(retention.bytes))
            .bind::<BigInt, _>(millis(now - retention.finished))
            .bind::<BigInt, _>(millis(now - retention.keys))
            .load::<Past>(&mut *read)
            .await;
        let found = read.end(found).await?;
        round.found.extend(found.iter().map(|past| past.school));
        Ok(())
    }

    /// Removes one batch of a school. Returns whether there may be more.
    async fn sweep_school(
        &self,
        conn: &mut AsyncPgConnection,
        school: i64,
        now: DateTime<Utc>,
    ) -> QueryResult<bool> {
        let log: Kept = schools::table
            .find(school)
            .select((
                schools::head,
                schools::floor,
                schools::bytes,
                schools::answer_bytes,
            ))
            .for_update()
            .first(conn)
            .await?;
        let limit = signed(config::SWEEP_BATCH);
        let retention = &self.retention;
        let past = past_retention(conn, school, &log, retention, now).await?;
        let mut more = past.len() >= config::SWEEP_BATCH;
        let mut floor = log.floor;
        let mut has_changed = false;
        if let Some(last) = past.last() {
            let bytes: i64 = past.iter().map(|row| row.bytes).sum();
            more |= bytes >= config::SWEEP_BATCH_BYTES;
            self.shorten(conn, school, (log.floor, last.seq), bytes)
                .await?;
            floor = last.seq;
            has_changed = true;
        }
        let max_answer_bytes = signed(retention.answer_bytes);
        if log.answer_bytes > max_answer_bytes || has_changed {
            more |= drop_answers(conn, school, max_answer_bytes).await?;
        }
        let finished = millis(now - retention.finished);
        for (query, before, last) in [
            (SUBJECTS, finished, floor),
            (PARTS, finished, floor),
            (KEYS, millis(now - retention.keys), ANSWER_BASE_BYTES),
        ] {
            let gone: Vec<Gone> = diesel::sql_query(query)
                .bind::<BigInt, _>(school)
                .bind::<BigInt, _>(before)
                .bind::<BigInt, _>(limit)
                .bind::<BigInt, _>(last)
                .load(conn)
                .await?;
            for row in gone.iter().filter(|row| row.count > 0) {
                tracing::debug!(
                    school.id = school,
                    what = row.what,
                    count = row.count,
                    "swept"
                );
                has_changed = true;
                more |= row.count >= limit;
            }
        }
        if has_changed {
            diesel::update(schools::table.find(school))
                .set(schools::stamp.eq(stamp()))
                .execute(conn)
                .await?;
        }
        Ok(more)
    }

    /// Removes the events of a log after `floor` and up to `last`; `bytes` is their total size. Those that are answers are
    /// copied to the rows of their keys.
    async fn shorten(
        &self,
        conn: &mut AsyncPgConnection,
        school: i64,
        (floor, last): (i64, i64),
        bytes: i64,
    ) -> QueryResult<()> {
        let id = rows::school(school)?;
        let tags = read::tags(conn, id, &[last]).await?;
        let tag = tags.values().next().map(|tag| i64::from(tag.get()));
        let of_event = events::school_id
            .eq(idempotency_keys::school_id)
            .and(events::seq.eq(idempotency_keys::seq));
        let leaving: Vec<(String, EventRow)> = idempotency_keys::table
            .inner_join(events::table.on(of_event))
            .filter(idempotency_keys::school_id.eq(school))
            .filter(idempotency_keys::seq.gt(floor))
            .filter(idempotency_keys::seq.le(last))
            .select((idempotency_keys::key, EventRow::as_select()))
            .load(conn)
            .await?;
        let mut answer_bytes = 0;
        for (key, row) in leaving {
            let event = row.into_event(Cursor::FOREIGN.epoch)?;
            answer_bytes += answers::bytes(&key, &event);
            diesel::update(idempotency_keys::table.find((school, &key)))
                .set(idempotency_keys::answer.eq(answers::to_json(&event)))
                .execute(conn)
                .await?;
        }
        let school_events = events::table.filter(events::school_id.eq(school));
        diesel::delete(school_events.filter(events::seq.le(last)))
            .execute(conn)
            .await?;
        diesel::sql_query(
            "UPDATE schools SET floor = $2, floor_tag = $3, bytes = bytes - $4, answer_bytes = answer_bytes + $5 \
             WHERE school_id = $1",
        )
        .bind::<BigInt, _>(school)
        .bind::<BigInt, _>(last)
        .bind::<Nullable<BigInt>, _>(tag)
        .bind::<BigInt, _>(bytes)
        .bind::<BigInt, _>(answer_bytes)
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// Returns the oldest events of a log that are past their retention, at most one batch.
async fn past_retention(
    conn: &mut AsyncPgConnection,
    school: i64,
    log: &Kept,
    retention: &Retention,
    now: DateTime<Utc>,
) -> QueryResult<Vec<Row>> {
    let oldest = millis(now - retention.age);
    let (max_events, max_bytes) = (signed(retention.events), signed(retention.bytes));
    let is_past = |row: &Row, gone: i64| {
        let is_old = row.at < oldest || row.seq <= log.head - max_events;
        is_old || log.bytes - gone > max_bytes
    };
    let query = "SELECT seq, at, (octet_length(fields) + octet_length(subject_id) + $4)::bigint AS bytes FROM events \
         WHERE school_id = $1 AND seq > $2 ORDER BY seq LIMIT $3";
    let mut past: Vec<Row> = Vec::new();
    // Most logs have nothing to remove.
    for limit in [1, config::SWEEP_BATCH] {
        past = diesel::sql_query(query)
            .bind::<BigInt, _>(school)
            .bind::<BigInt, _>(log.floor)
            .bind::<BigInt, _>(signed(limit))
            .bind::<BigInt, _>(signed(EVENT_BASE_BYTES))
            .load(conn)
            .await?;
        if !matches!(past.as_slice(), [first, ..] if is_past(first, 0)) {
            return Ok(Vec::new());
        }
    }
    let mut gone = 0;
    let count = past.iter().take_while(|row| {
        let goes = gone < config::SWEEP_BATCH_BYTES && is_past(row, gone);
        gone += row.bytes;
        goes
    });
    let count = count.count();
    past.truncate(count);
    Ok(past)
}

/// Drops the oldest answers of a school that has more than `max_bytes` bytes of them. Their keys stay. Returns whether there is
/// more to drop.
async fn drop_answers(
    conn: &mut AsyncPgConnection,
    school: i64,
    max_bytes: i64,
) -> QueryResult<bool> {
    let stored_bytes: i64 = schools::table
        .find(school)
        .select(schools::answer_bytes)
        .first(conn)
        .await?;
    if stored_bytes <= max_bytes {
        return Ok(false);
    }
    let query = "SELECT (row_number() OVER (ORDER BY created_at, key))::bigint AS seq, created_at AS at, \
         (octet_length(answer) + octet_length(key) + $2)::bigint AS bytes FROM idempotency_keys \
         WHERE school_id = $1 AND answer IS NOT NULL ORDER BY created_at, key LIMIT $3";
    let oldest: Vec<Row> = diesel::sql_query(query)
        .bind::<BigInt, _>(school)
        .bind::<BigInt, _>(ANSWER_BASE_BYTES)
        .bind::<BigInt, _>(signed(config::SWEEP_BATCH))
        .load(conn)
        .await?;
    let (mut dropped, mut count) = (0, 0);
    for row in &oldest {
        if stored_bytes - dropped <= max_bytes || dropped >= config::SWEEP_BATCH_BYTES {
            break;
        }
        dropped += row.bytes;
        count = row.seq;
    }
    diesel::sql_query(
        "UPDATE idempotency_keys SET answer = NULL WHERE school_id = $1 AND key IN \
         (SELECT key FROM idempotency_keys WHERE school_id = $1 AND answer IS NOT NULL ORDER BY created_at, key LIMIT $2)",
    )
    .bind::<BigInt, _>(school)
    .bind::<BigInt, _>(count)
    .execute(conn)
    .await?;
    diesel::sql_query("UPDATE schools SET answer_bytes = answer_bytes - $2 WHERE school_id = $1")
        .bind::<BigInt, _>(school)
        .bind::<BigInt, _>(dropped)
        .execute(conn)
        .await?;
    Ok(dropped > 0 && stored_bytes - dropped > max_bytes)
}

diesel::allow_tables_to_appear_in_same_query!(events, idempotency_keys);
