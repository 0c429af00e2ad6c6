//! Retention: removes old data in small steps, between commits.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::answers;
use super::bounds::tag_at;
use super::functions::octet_length;
use super::limit::Limit;
use super::schema::{events, idempotency_keys, schools};
use super::table::{millis, unreadable};
use super::tables::TABLES;
use super::transaction::transaction;
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
    /// Whether no schools follow in this round.
    ends_round: bool,
}

impl Found {
    /// Whether the writer has nothing to do. At the end of a round it also removes what does not belong to a log.
    pub(super) fn is_empty(&self) -> bool {
        self.schools.is_empty() && !self.ends_round
    }
}

/// The result of one step.
#[derive(Default)]
pub(super) struct Swept {
    /// The subjects that were removed.
    pub(super) gone: Vec<Address>,
    /// Schools whose logs were shortened.
    pub(super) shortened: Vec<SchoolId>,
    /// The school after which the next step continues, if not after those that the reader visited.
    pub(super) continue_after: Option<i64>,
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
#[derive(Default)]
pub(super) struct Round {
    /// The last school that was visited in this round.
    last: i64,
    /// The oldest event of [`config::SCHOOL_CACHE`] logs at most: the floor of the log, `seq`, and when it happened. It stays the same until
    /// the floor moves.
    oldest: HashMap<i64, (i64, i64, i64)>,
}

impl Round {
    /// Takes what rounds remember. The position stays.
    pub(super) fn take(&mut self) -> Round {
        Round {
            last: self.last,
            oldest: std::mem::take(&mut self.oldest),
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
            self.oldest.remove(&log.school);
            return Ok(false);
        }
        let known = self.oldest.get(&log.school).copied();
        let (seq, at) = match known {
            Some((floor, seq, at)) if floor == log.floor => (seq, at),
            _ => {
                let Some((seq, at, _)) = oldest_rows(conn, log, 1)?.pop() else {
                    return Ok(false);
                };
                // Without room, the known ones stay: each round visits all logs in the same order, so the newest one would be needed last.
                if known.is_some() || self.oldest.len() < config::SCHOOL_CACHE {
                    self.oldest.insert(log.school, (log.floor, seq, at));
                }
                (seq, at)
            }
        };
        Ok(is_past((seq, at), log, 0, retention, now))
    }
}

/// Finds which of the next schools have something to remove. The next step continues after them, even if this one fails: a log that cannot be
/// read must not keep those of other steps from being swept.
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
    let ends_round = visited.len() < config::SWEEP_SCHOOLS;
    round.last = match visited.last() {
        Some(last) if !ends_round => last.school,
        _ => 0,
    };
    let mut schools = Vec::new();
    for log in visited {
        let has_past = round.has_past(conn, &log, retention, now)?;
        if has_past || log.answer_bytes > signed(retention.answer_bytes) {
            schools.push(log.school);
        }
    }
    Ok(Found {
        schools,
        ends_round,
    })
}

/// Removes one batch of data past its retention: events and stored answers, then finished subjects, then parts, then keys.
pub(super) fn sweep(
    conn: &mut SqliteConnection,
    found: &Found,
    retention: &Retention,
    now: DateTime<Utc>,
) -> QueryResult<Swept> {
    let limit = config::SWEEP_BATCH;
    transaction(conn, |conn| {
        let mut swept = Swept::default();
        sweep_logs(conn, &found.schools, retention, now, &mut swept)?;
        for (_, table) in TABLES {
            swept
                .gone
                .extend(table.sweep(conn, now - retention.finished, limit)?);
        }
        let mut are_more = swept.gone.len() >= limit;
        for parts in TABLES.iter().filter_map(|(_, table)| table.parts()) {
            are_more |= parts.sweep(conn, now - retention.finished, limit)? == limit;
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
        are_more |= keys.len() == limit;
        if are_more && found.ends_round && swept.continue_after.is_none() {
            // After all schools: only what does not belong to a log is left in this round.
            swept.continue_after = Some(i64::MAX);
        }
        swept.more = !found.ends_round || swept.continue_after.is_some();
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
            swept.continue_after = Some(log.school - 1);
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

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection;

    use super::super::plans::opened;
    use super::*;
    use crate::config::{SWEEP_BATCH, SWEEP_SCHOOLS, Settings};

    /// A database with this many schools, each with one event that is old.
    fn database(schools: usize) -> (tempfile::TempDir, SqliteConnection) {
        let folder = tempfile::tempdir().unwrap();
        let mut conn = opened(folder.path());
        conn.batch_execute(&format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {schools})
             INSERT INTO schools (school_id, head, floor, bytes) SELECT n, 1, 0, 200 FROM n;
             INSERT INTO events (school_id, seq, kind, subject_id, name, milestone, wide, status, at, fields)
             SELECT school_id, 1, 'jobs', 'a', 'job_update', 0, 0, 'pending', 0, '{{}}' FROM schools"
        ))
        .unwrap();
        (folder, conn)
    }

    /// Finds what is past its retention as of this many milliseconds after the events.
    fn found(conn: &mut SqliteConnection, round: &mut Round, after: i64) -> QueryResult<Found> {
        let retention = Retention::of(&Settings::default());
        let now = DateTime::from_timestamp_millis(after).unwrap();
        find(conn, round, &retention, now)
    }

    fn is_past() -> i64 {
        let age = Retention::of(&Settings::default()).age;
        age.num_milliseconds() + 1
    }

    #[test]
    fn the_writer_is_asked_about_schools_that_have_something_to_remove_and_at_the_end_of_a_round() {
        let (_folder, mut conn) = database(2 * SWEEP_SCHOOLS + 1);
        let mut round = Round::default();
        let empty = [true, true, false, true];
        for (step, is_empty) in empty.into_iter().enumerate() {
            let found = found(&mut conn, &mut round, 0).unwrap();
            assert_eq!(found.is_empty(), is_empty, "step {step}");
        }
        let found = found(&mut conn, &mut round, is_past()).unwrap();
        assert_eq!(found.schools.len(), SWEEP_SCHOOLS);
    }

    #[test]
    fn the_oldest_event_of_a_log_is_read_again_when_the_floor_has_moved() {
        let (_folder, mut conn) = database(1);
        let mut round = Round::default();
        let past = |conn: &mut SqliteConnection, round: &mut Round| {
            found(conn, round, is_past()).unwrap().schools.len()
        };
        assert_eq!(past(&mut conn, &mut round), 1);
        // Another time shows whether it is read.
        let newer = format!("UPDATE events SET at = {}", is_past());
        conn.batch_execute(&newer).unwrap();
        assert_eq!(past(&mut conn, &mut round), 1, "it is remembered");
        conn.batch_execute("UPDATE events SET seq = 2; UPDATE schools SET head = 2, floor = 1")
            .unwrap();
        assert_eq!(past(&mut conn, &mut round), 0);
        conn.batch_execute("DELETE FROM events; UPDATE schools SET floor = 2")
            .unwrap();
        assert_eq!(past(&mut conn, &mut round), 0, "the log is empty");
    }

    #[test]
    fn a_log_that_cannot_be_read_does_not_keep_those_of_other_steps_from_being_swept() {
        let (_folder, mut conn) = database(SWEEP_SCHOOLS + 1);
        let mut round = Round::default();
        conn.batch_execute("ALTER TABLE events RENAME TO elsewhere")
            .unwrap();
        assert!(found(&mut conn, &mut round, is_past()).is_err());
        conn.batch_execute("ALTER TABLE elsewhere RENAME TO events")
            .unwrap();
        let found = found(&mut conn, &mut round, is_past()).unwrap();
        assert_eq!(found.schools, [SWEEP_SCHOOLS as i64 + 1]);
    }

    #[test]
    fn what_does_not_belong_to_a_log_is_removed_without_another_round() {
        let (_folder, mut conn) = database(SWEEP_SCHOOLS);
        conn.batch_execute(&format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {})
             INSERT INTO idempotency_keys (school_id, key, fingerprint, kind, subject_id, seq, created_at)
             SELECT 1, 'key ' || n, '', 'jobs', 'a', 1, -1000 FROM n",
            2 * SWEEP_BATCH + 1
        ))
        .unwrap();
        let retention = Retention {
            keys: chrono::TimeDelta::zero(),
            ..Retention::of(&Settings::default())
        };
        let (mut round, now) = (Round::default(), DateTime::UNIX_EPOCH);
        // All schools, and the end of the round, three times because there are more keys than one step removes.
        for (is_empty, more) in [(true, true), (false, true), (false, true), (false, false)] {
            let found = find(&mut conn, &mut round, &retention, now).unwrap();
            assert_eq!((found.is_empty(), found.schools.len()), (is_empty, 0));
            if !is_empty {
                let swept = sweep(&mut conn, &found, &retention, now).unwrap();
                assert_eq!(swept.more, more);
                round.last = swept.continue_after.unwrap_or(round.last);
            }
        }
        let keys: i64 = idempotency_keys::table
            .count()
            .get_result(&mut conn)
            .unwrap();
        assert_eq!((keys, round.last), (0, 0));
    }
}
