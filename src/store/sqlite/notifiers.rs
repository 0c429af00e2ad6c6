//! The tables of notifiers.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::bounds::{bounds, tag_at};
use super::limit::Limit;
use super::schema::{dead_letters, notifier_cursors, notifier_set_aside, notifiers, schools};
use super::table::{from_millis, millis, unreadable};
use super::transaction::transaction;
use crate::config::DEAD_LETTERS_MAX;
use crate::id::{self, Kind, SchoolId, SubjectId, Tag};
use crate::kind::known_kind;
use crate::log::Bounds;
use crate::log::consumers::{
    Begun, Change, DeadLetter, DeadLetterPage, Offset, Progress, SetAside, Standing, Total, Tried,
};
use crate::store::numbers::{signed, unsigned};

#[derive(Queryable, Selectable)]
#[diesel(table_name = notifier_cursors)]
#[diesel(check_for_backend(Sqlite))]
struct CursorRow {
    name: String,
    seq: i64,
    delivered: i64,
    failed: i64,
    dead: i64,
    delivered_at: Option<i64>,
    failed_at: Option<i64>,
    cause: Option<String>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = notifier_set_aside)]
#[diesel(check_for_backend(Sqlite))]
struct SetAsideRow {
    kind: String,
    subject_id: String,
    seq: i64,
    event_type: String,
    attempts: i64,
    cause: String,
    due_at: i64,
}

impl SetAsideRow {
    fn into_set_aside(self) -> QueryResult<SetAside> {
        let subject = self.subject_id.parse();
        Ok(SetAside {
            kind: known_kind(&self.kind).ok_or_else(|| unreadable("a kind"))?,
            subject: subject.map_err(|_| unreadable("a subject id"))?,
            seq: unsigned(self.seq),
            event_type: self.event_type,
            attempts: self.attempts.try_into().unwrap_or(u32::MAX),
            cause: self.cause,
            due: from_millis(self.due_at)?,
        })
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = dead_letters)]
#[diesel(check_for_backend(Sqlite))]
struct DeadLetterRow {
    seq: i64,
    event_type: String,
    kind: String,
    subject_id: String,
    attempts: i64,
    cause: String,
    at: i64,
}

#[derive(QueryableByName)]
struct TotalRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    lag: i64,
    #[diesel(sql_type = BigInt)]
    set_aside: i64,
    #[diesel(sql_type = BigInt)]
    delivered: i64,
    #[diesel(sql_type = BigInt)]
    failed: i64,
    #[diesel(sql_type = BigInt)]
    dead: i64,
}

/// Registers a notifier. A new one starts at the current end of each log, so that past events are not delivered.
pub(super) fn begins(conn: &mut SqliteConnection, name: &str) -> QueryResult<Begun> {
    transaction(conn, |conn| {
        let is_new = diesel::insert_or_ignore_into(notifiers::table)
            .values(notifiers::name.eq(name))
            .execute(conn)?
            == 1;
        if is_new {
            diesel::sql_query(
                "INSERT INTO notifier_cursors (name, school_id, seq, delivered, failed, dead, attempts) \
                 SELECT ?, school_id, head, 0, 0, 0, 0 FROM schools WHERE true ON CONFLICT DO NOTHING",
            )
            .bind::<Text, _>(name)
            .execute(conn)?;
        }
        let matching = notifier_cursors::school_id
            .eq(schools::school_id)
            .and(notifier_cursors::name.eq(name));
        let behind: Vec<i64> = schools::table
            .left_join(notifier_cursors::table.on(matching))
            .filter(
                notifier_cursors::seq
                    .nullable()
                    .is_null()
                    .or(notifier_cursors::seq
                        .nullable()
                        .lt(schools::head.nullable())),
            )
            .select(schools::school_id)
            .load(conn)?;
        let mut of_set_aside: Vec<i64> = notifier_set_aside::table
            .filter(notifier_set_aside::name.eq(name))
            .select(notifier_set_aside::school_id)
            .distinct()
            .load(conn)?;
        of_set_aside.retain(|school| !behind.contains(school));
        let not_before: Option<i64> = notifiers::table
            .find(name)
            .select(notifiers::not_before)
            .get_result(conn)?;
        let school = |id: i64| id.try_into().map_err(|_| unreadable("a school id"));
        let schools = behind.into_iter().chain(of_set_aside).map(school);
        Ok(Begun {
            behind: schools.collect::<QueryResult<_>>()?,
            not_before: not_before.map(from_millis).transpose()?,
        })
    })
}

pub(super) fn offset(
    conn: &mut SqliteConnection,
    name: &str,
    school: SchoolId,
) -> QueryResult<Offset> {
    let row: Option<(i64, Option<i64>, i64)> = notifier_cursors::table
        .find((name, school.get()))
        .select((
            notifier_cursors::seq,
            notifier_cursors::tried_seq,
            notifier_cursors::attempts,
        ))
        .get_result(conn)
        .optional()?;
    let Some((seq, tried_seq, attempts)) = row else {
        return Ok(Offset::default());
    };
    let attempts = attempts.try_into().unwrap_or(u32::MAX);
    let tried = tried_seq.map(|seq| Tried {
        seq: unsigned(seq),
        attempts,
    });
    let rows: Vec<SetAsideRow> = notifier_set_aside::table
        .filter(notifier_set_aside::name.eq(name))
        .filter(notifier_set_aside::school_id.eq(school.get()))
        .select(SetAsideRow::as_select())
        .load(conn)?;
    let set_aside = rows.into_iter().map(SetAsideRow::into_set_aside);
    Ok(Offset {
        tag: tag(conn, school, unsigned(seq))?,
        seq: unsigned(seq),
        tried,
        set_aside: set_aside.collect::<QueryResult<_>>()?,
    })
}

/// Returns the tag of an event, if the log has the event. The tag of the newest event is known without reading the event.
fn tag(conn: &mut SqliteConnection, school: SchoolId, seq: u64) -> QueryResult<Option<Tag>> {
    let Bounds { head, floor } = bounds(conn, school)?;
    match seq == head.seq && seq > floor.seq {
        true => Ok(head.tag),
        false => tag_at(conn, school, signed(seq)),
    }
}

/// Returns whether the log no longer has an event, for another reason than retention.
fn is_lost(conn: &mut SqliteConnection, school: SchoolId, of: id::Place) -> QueryResult<bool> {
    Ok(match tag(conn, school, of.seq)? {
        Some(tag) => Some(tag) != of.tag,
        None => bounds(conn, school)?.head.seq < of.seq,
    })
}

/// Moves a cursor. Returns false, and writes nothing, if the cursor is not where it must be, or if the log has lost the
/// event that the step has handled.
pub(super) fn moves(
    conn: &mut SqliteConnection,
    name: &str,
    school: SchoolId,
    seq: u64,
    progress: &Progress,
) -> QueryResult<bool> {
    use notifier_cursors as cursors;
    transaction(conn, |conn| {
        let cursor = cursors::table.find((name, school.get()));
        let at: Option<i64> = cursor.select(cursors::seq).get_result(conn).optional()?;
        if progress
            .from
            .is_some_and(|from| from != at.map_or(0, unsigned))
        {
            return Ok(false);
        }
        if let Some(of) = progress.of
            && is_lost(conn, school, of)?
        {
            return Ok(false);
        }
        diesel::insert_or_ignore_into(cursors::table)
            .values((
                cursors::name.eq(name),
                cursors::school_id.eq(school.get()),
                cursors::seq.eq(0),
                cursors::delivered.eq(0),
                cursors::failed.eq(0),
                cursors::dead.eq(0),
                cursors::attempts.eq(0),
            ))
            .execute(conn)?;
        diesel::update(cursor.filter(cursors::seq.lt(signed(seq))))
            .set(cursors::seq.eq(signed(seq)))
            .execute(conn)?;
        if let Some(at) = progress.delivered {
            diesel::update(cursor)
                .set((
                    cursors::delivered.eq(cursors::delivered + 1),
                    cursors::delivered_at.eq(millis(at)),
                ))
                .execute(conn)?;
        }
        diesel::update(cursor)
            .set((
                cursors::tried_seq.eq(progress.tried.map(|tried| signed(tried.seq))),
                cursors::attempts.eq(progress.tried.map_or(0, |tried| tried.attempts.into())),
            ))
            .execute(conn)?;
        if let Some((at, cause)) = &progress.failed {
            diesel::update(cursor)
                .set((
                    cursors::failed.eq(cursors::failed + 1),
                    cursors::failed_at.eq(millis(*at)),
                    cursors::cause.eq(cause),
                ))
                .execute(conn)?;
        }
        if let Some(letter) = &progress.dead {
            diesel::update(cursor)
                .set(cursors::dead.eq(cursors::dead + 1))
                .execute(conn)?;
            insert_dead_letter(conn, name, school, letter)?;
        }
        match &progress.set_aside {
            Some(Change::Put(entry)) => put(conn, name, school, entry)?,
            Some(Change::Lift(kind, subject)) => lift(conn, name, school, *kind, subject)?,
            None => {}
        }
        if let Some(at) = progress.not_before {
            diesel::update(notifiers::table.find(name))
                .set(notifiers::not_before.eq(millis(at)))
                .execute(conn)?;
        }
        Ok(true)
    })
}

fn put(
    conn: &mut SqliteConnection,
    name: &str,
    school: SchoolId,
    entry: &SetAside,
) -> QueryResult<()> {
    use notifier_set_aside as rows;
    diesel::replace_into(rows::table)
        .values((
            rows::name.eq(name),
            rows::school_id.eq(school.get()),
            rows::kind.eq(entry.kind.collection()),
            rows::subject_id.eq(entry.subject.as_str()),
            rows::seq.eq(signed(entry.seq)),
            rows::event_type.eq(&entry.event_type),
            rows::attempts.eq(i64::from(entry.attempts)),
            rows::cause.eq(&entry.cause),
            rows::due_at.eq(millis(entry.due)),
        ))
        .execute(conn)?;
    Ok(())
}

fn lift(
    conn: &mut SqliteConnection,
    name: &str,
    school: SchoolId,
    kind: Kind,
    subject: &SubjectId,
) -> QueryResult<()> {
    let key = (name, school.get(), kind.collection(), subject.as_str());
    diesel::delete(notifier_set_aside::table.find(key)).execute(conn)?;
    Ok(())
}

fn insert_dead_letter(
    conn: &mut SqliteConnection,
    name: &str,
    school: SchoolId,
    letter: &DeadLetter,
) -> QueryResult<()> {
    diesel::replace_into(dead_letters::table)
        .values((
            dead_letters::name.eq(name),
            dead_letters::school_id.eq(school.get()),
            dead_letters::seq.eq(signed(letter.seq)),
            dead_letters::event_type.eq(&letter.event_type),
            dead_letters::kind.eq(&letter.kind),
            dead_letters::subject_id.eq(&letter.subject),
            dead_letters::attempts.eq(i64::from(letter.attempts)),
            dead_letters::cause.eq(&letter.cause),
            dead_letters::at.eq(millis(letter.at)),
        ))
        .execute(conn)?;
    let letters = dead_letters::table
        .filter(dead_letters::name.eq(name))
        .filter(dead_letters::school_id.eq(school.get()));
    // Ordered by when they were given up, not by `seq`: an event of a subject that was set aside is given up long after
    // later events.
    let too_many: Vec<i64> = letters
        .order((dead_letters::at.desc(), dead_letters::seq.desc()))
        .select(dead_letters::seq)
        .rows_after(signed(DEAD_LETTERS_MAX))
        .load(conn)?;
    diesel::delete(letters.filter(dead_letters::seq.eq_any(too_many))).execute(conn)?;
    Ok(())
}

pub(super) fn standings(
    conn: &mut SqliteConnection,
    school: SchoolId,
) -> QueryResult<(Vec<Standing>, u64)> {
    let head = bounds(conn, school)?.head.seq;
    let rows = notifier_cursors::table
        .filter(notifier_cursors::school_id.eq(school.get()))
        .order(notifier_cursors::name)
        .select(CursorRow::as_select())
        .load(conn)?;
    let set_aside: Vec<(String, i64)> = notifier_set_aside::table
        .filter(notifier_set_aside::school_id.eq(school.get()))
        .group_by(notifier_set_aside::name)
        .select((notifier_set_aside::name, diesel::dsl::count_star()))
        .load(conn)?;
    let standing = |row: CursorRow| {
        let failed_at = row.failed_at.map(from_millis).transpose()?;
        let counted = set_aside.iter().find(|(name, _)| *name == row.name);
        Ok(Standing {
            name: row.name,
            seq: unsigned(row.seq),
            set_aside: counted.map_or(0, |(_, count)| unsigned(*count)),
            delivered: unsigned(row.delivered),
            failed: unsigned(row.failed),
            dead: unsigned(row.dead),
            delivered_at: row.delivered_at.map(from_millis).transpose()?,
            last_failure: failed_at.zip(row.cause),
        })
    };
    let standings = rows.into_iter().map(standing).collect::<QueryResult<_>>()?;
    Ok((standings, head))
}

pub(super) fn totals(conn: &mut SqliteConnection) -> QueryResult<Vec<Total>> {
    let rows: Vec<TotalRow> = diesel::sql_query(
        // A notifier that has not begun in a school is behind by all of its events.
        "SELECT n.name, COALESCE(SUM(s.head - COALESCE(c.seq, 0)), 0) AS lag, COALESCE(SUM(c.delivered), 0) AS delivered, \
         COALESCE(SUM(c.failed), 0) AS failed, COALESCE(SUM(c.dead), 0) AS dead, \
         (SELECT COUNT(*) FROM notifier_set_aside AS a WHERE a.name = n.name) AS set_aside \
         FROM notifiers AS n LEFT JOIN schools AS s ON true \
         LEFT JOIN notifier_cursors AS c ON c.name = n.name AND c.school_id = s.school_id \
         GROUP BY n.name ORDER BY n.name",
    )
    .load(conn)?;
    let total = |row: TotalRow| Total {
        name: row.name,
        lag: unsigned(row.lag),
        set_aside: unsigned(row.set_aside),
        delivered: unsigned(row.delivered),
        failed: unsigned(row.failed),
        dead: unsigned(row.dead),
    };
    Ok(rows.into_iter().map(total).collect())
}

pub(super) fn letters(
    conn: &mut SqliteConnection,
    name: &str,
    school: SchoolId,
    before: Option<u64>,
    limit: usize,
) -> QueryResult<DeadLetterPage> {
    let mut query = dead_letters::table
        .filter(dead_letters::name.eq(name))
        .filter(dead_letters::school_id.eq(school.get()))
        .order(dead_letters::seq.desc())
        .select(DeadLetterRow::as_select())
        .into_boxed();
    if let Some(before) = before {
        query = query.filter(dead_letters::seq.lt(signed(before)));
    }
    let mut rows = query.at_most(signed(limit) + 1).load(conn)?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let letter = |row: DeadLetterRow| {
        Ok(DeadLetter {
            seq: unsigned(row.seq),
            event_type: row.event_type,
            kind: row.kind,
            subject: row.subject_id,
            attempts: row.attempts.try_into().unwrap_or(u32::MAX),
            cause: row.cause,
            at: from_millis(row.at)?,
        })
    };
    let letters: Vec<DeadLetter> = rows.into_iter().map(letter).collect::<QueryResult<_>>()?;
    let next = letters.last().map(|letter| letter.seq).filter(|_| more);
    Ok(DeadLetterPage { letters, next })
}

diesel::allow_tables_to_appear_in_same_query!(notifier_cursors, schools);
