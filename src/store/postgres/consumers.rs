//! The port [`Consumers`].

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::prepared::prepared;
use super::schema::{dead_letters, notifier_cursors, notifier_set_aside, notifiers};
use super::{PostgresStore, read, rows};
use crate::config::DEAD_LETTERS_MAX;
use crate::id::{self, SchoolId};
use crate::log::StoreError;
use crate::log::consumers::{
    Begun, Change, Consumers, DeadLetter, DeadLetterPage, Offset, Progress, SetAside, Standing,
    Total, Tried, lease_of,
};
use crate::log::leases::Fence;
use crate::store::columns::{from_millis, millis};
use crate::store::numbers::{signed, unsigned};

#[derive(QueryableByName)]
struct School {
    #[diesel(sql_type = BigInt)]
    school_id: i64,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = notifier_cursors)]
#[diesel(check_for_backend(diesel::pg::Pg))]
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
#[diesel(check_for_backend(diesel::pg::Pg))]
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
        Ok(SetAside {
            kind: rows::kind(&self.kind)?,
            subject: rows::subject(&self.subject_id)?,
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
#[diesel(check_for_backend(diesel::pg::Pg))]
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

/// Replaces U+0000, which a text in Postgres cannot contain.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Registers a notifier. A new one starts at the current end of each log.
pub(super) async fn begins(conn: &mut AsyncPgConnection, name: &str) -> QueryResult<Begun> {
    let is_new =
        diesel::sql_query("INSERT INTO notifiers (name) VALUES ($1) ON CONFLICT DO NOTHING")
            .bind::<Text, _>(name)
            .execute(conn)
            .await?
            == 1;
    if is_new {
        diesel::sql_query(
            "INSERT INTO notifier_cursors (name, school_id, seq) SELECT $1, school_id, head FROM schools \
             ON CONFLICT DO NOTHING",
        )
        .bind::<Text, _>(name)
        .execute(conn)
        .await?;
    }
    work(conn, name).await
}

/// Returns where a registered notifier has work.
async fn work(conn: &mut AsyncPgConnection, name: &str) -> QueryResult<Begun> {
    let query = diesel::sql_query(
        "SELECT s.school_id FROM schools AS s LEFT JOIN notifier_cursors AS c ON c.school_id = s.school_id AND c.name = $1 \
         WHERE s.head > COALESCE(c.seq, 0) \
         UNION SELECT school_id FROM notifier_set_aside WHERE name = $1",
    )
    .bind::<Text, _>(name);
    let behind: Vec<School> = prepared(query).load(conn).await?;
    let not_before: Option<i64> = notifiers::table
        .find(name)
        .select(notifiers::not_before)
        .first(conn)
        .await?;
    let behind = behind.into_iter().map(|row| rows::school(row.school_id));
    Ok(Begun {
        behind: behind.collect::<QueryResult<_>>()?,
        not_before: not_before.map(from_millis).transpose()?,
    })
}

async fn offset(conn: &mut AsyncPgConnection, name: &str, school: SchoolId) -> QueryResult<Offset> {
    let row: Option<(i64, Option<i64>, i64)> = notifier_cursors::table
        .find((school.get(), name))
        .select((
            notifier_cursors::seq,
            notifier_cursors::tried_seq,
            notifier_cursors::attempts,
        ))
        .first(conn)
        .await
        .optional()?;
    let Some((seq, tried_seq, attempts)) = row else {
        return Ok(Offset::default());
    };
    let attempts = attempts.try_into().unwrap_or(u32::MAX);
    let found: Vec<SetAsideRow> = notifier_set_aside::table
        .filter(notifier_set_aside::school_id.eq(school.get()))
        .filter(notifier_set_aside::name.eq(name))
        .select(SetAsideRow::as_select())
        .load(conn)
        .await?;
    let set_aside = found.into_iter().map(SetAsideRow::into_set_aside);
    let seq = unsigned(seq);
    Ok(Offset {
        seq,
        tag: read::tag_at(conn, school, seq).await?,
        tried: tried_seq.map(|seq| Tried {
            seq: unsigned(seq),
            attempts,
        }),
        set_aside: set_aside.collect::<QueryResult<_>>()?,
    })
}

/// Moves a cursor. Returns false, and writes nothing, if the fence is not the last one of the notifier's lease, if the
/// cursor is not where it must be, or if the log has lost the event that the step has handled. The row of the lease is
/// locked until the end of the transaction, so that the lease cannot pass to another node in the meantime.
async fn moves(
    conn: &mut AsyncPgConnection,
    (name, fence): (&str, Fence),
    school: SchoolId,
    seq: u64,
    progress: &Progress,
) -> QueryResult<bool> {
    if let Some(of) = progress.of
        && is_lost(conn, school, of).await?
    {
        return Ok(false);
    }
    let tried = progress.tried;
    let (failed_at, cause) = progress.failed.clone().unzip();
    let written = diesel::sql_query(
        "WITH held AS (SELECT 1 FROM leases WHERE name = $12 AND fence = $13 FOR SHARE) \
         INSERT INTO notifier_cursors (school_id, name, seq, delivered, failed, dead, tried_seq, attempts, delivered_at, failed_at, cause) \
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 FROM held \
         WHERE COALESCE((SELECT seq FROM notifier_cursors WHERE school_id = $1 AND name = $2), 0) = $14 OR $14 IS NULL \
         ON CONFLICT (school_id, name) DO UPDATE SET \
             seq = GREATEST(notifier_cursors.seq, excluded.seq), \
             delivered = notifier_cursors.delivered + excluded.delivered, \
             failed = notifier_cursors.failed + excluded.failed, \
             dead = notifier_cursors.dead + excluded.dead, \
             tried_seq = excluded.tried_seq, attempts = excluded.attempts, \
             delivered_at = COALESCE(excluded.delivered_at, notifier_cursors.delivered_at), \
             failed_at = COALESCE(excluded.failed_at, notifier_cursors.failed_at), \
             cause = COALESCE(excluded.cause, notifier_cursors.cause)",
    )
    .bind::<BigInt, _>(school.get())
    .bind::<Text, _>(name)
    .bind::<BigInt, _>(signed(seq))
    .bind::<BigInt, _>(i64::from(progress.delivered.is_some()))
    .bind::<BigInt, _>(i64::from(progress.failed.is_some()))
    .bind::<BigInt, _>(i64::from(progress.dead.is_some()))
    .bind::<Nullable<BigInt>, _>(tried.map(|tried| signed(tried.seq)))
    .bind::<BigInt, _>(tried.map_or(0, |tried| tried.attempts.into()))
    .bind::<Nullable<BigInt>, _>(progress.delivered.map(millis))
    .bind::<Nullable<BigInt>, _>(failed_at.map(millis))
    .bind::<Nullable<Text>, _>(cause.as_deref().map(text))
    .bind::<Text, _>(lease_of(name))
    .bind::<BigInt, _>(signed(fence.0))
    .bind::<Nullable<BigInt>, _>(progress.from.map(signed))
    .execute(conn)
    .await?;
    if written == 0 {
        return Ok(false);
    }
    if let Some(letter) = &progress.dead {
        insert_dead_letter(conn, name, school, letter).await?;
    }
    match &progress.set_aside {
        Some(Change::Put(entry)) => put(conn, name, school, entry).await?,
        Some(Change::Lift(kind, subject)) => {
            let key = (school.get(), name, kind.collection(), subject.as_str());
            diesel::delete(notifier_set_aside::table.find(key))
                .execute(conn)
                .await?;
        }
        None => {}
    }
    if let Some(at) = progress.not_before {
        diesel::update(notifiers::table.find(name))
            .set(notifiers::not_before.eq(millis(at)))
            .execute(conn)
            .await?;
    }
    Ok(true)
}

/// Returns whether the log no longer has an event, for another reason than retention.
async fn is_lost(
    conn: &mut AsyncPgConnection,
    school: SchoolId,
    of: id::Place,
) -> QueryResult<bool> {
    Ok(match read::tag_at(conn, school, of.seq).await? {
        Some(tag) => Some(tag) != of.tag,
        None => read::bounds(conn, school).await?.head.seq < of.seq,
    })
}

async fn put(
    conn: &mut AsyncPgConnection,
    name: &str,
    school: SchoolId,
    entry: &SetAside,
) -> QueryResult<()> {
    use notifier_set_aside as set_aside;
    let changing = (
        set_aside::seq.eq(signed(entry.seq)),
        set_aside::event_type.eq(&entry.event_type),
        set_aside::attempts.eq(i64::from(entry.attempts)),
        set_aside::cause.eq(text(&entry.cause)),
        set_aside::due_at.eq(millis(entry.due)),
    );
    diesel::insert_into(set_aside::table)
        .values((
            set_aside::school_id.eq(school.get()),
            set_aside::name.eq(name),
            set_aside::kind.eq(entry.kind.collection()),
            set_aside::subject_id.eq(entry.subject.as_str()),
            changing.clone(),
        ))
        .on_conflict((
            set_aside::school_id,
            set_aside::name,
            set_aside::kind,
            set_aside::subject_id,
        ))
        .do_update()
        .set(changing)
        .execute(conn)
        .await?;
    Ok(())
}

async fn insert_dead_letter(
    conn: &mut AsyncPgConnection,
    name: &str,
    school: SchoolId,
    letter: &DeadLetter,
) -> QueryResult<()> {
    let columns = (
        dead_letters::event_type.eq(&letter.event_type),
        dead_letters::kind.eq(&letter.kind),
        dead_letters::subject_id.eq(&letter.subject),
        dead_letters::attempts.eq(i64::from(letter.attempts)),
        dead_letters::cause.eq(text(&letter.cause)),
        dead_letters::at.eq(millis(letter.at)),
    );
    diesel::insert_into(dead_letters::table)
        .values((
            dead_letters::school_id.eq(school.get()),
            dead_letters::name.eq(name),
            dead_letters::seq.eq(signed(letter.seq)),
            columns.clone(),
        ))
        .on_conflict((
            dead_letters::school_id,
            dead_letters::name,
            dead_letters::seq,
        ))
        .do_update()
        .set(columns)
        .execute(conn)
        .await?;
    // Ordered by when they were given up, not by `seq`: an event of a subject that was set aside is given up long after
    // later events.
    diesel::sql_query(
        "DELETE FROM dead_letters WHERE school_id = $1 AND name = $2 AND seq IN \
         (SELECT seq FROM dead_letters WHERE school_id = $1 AND name = $2 ORDER BY at DESC, seq DESC OFFSET $3)",
    )
    .bind::<BigInt, _>(school.get())
    .bind::<Text, _>(name)
    .bind::<BigInt, _>(signed(DEAD_LETTERS_MAX))
    .execute(conn)
    .await?;
    Ok(())
}

/// Registers a notifier that is copied from another store, without offsets.
pub(super) async fn register(
    conn: &mut AsyncPgConnection,
    name: &str,
    not_before: Option<DateTime<Utc>>,
) -> QueryResult<()> {
    diesel::insert_into(notifiers::table)
        .values((
            notifiers::name.eq(name),
            notifiers::not_before.eq(not_before.map(millis)),
        ))
        .on_conflict_do_nothing()
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes a notifier's offset, status and dead letters that are copied from another store.
pub(super) async fn import(
    conn: &mut AsyncPgConnection,
    school: SchoolId,
    standing: &Standing,
    offset: &Offset,
    letters: &[DeadLetter],
) -> QueryResult<()> {
    use notifier_cursors as cursors;
    let (failed_at, cause) = standing.last_failure.clone().unzip();
    diesel::insert_into(cursors::table)
        .values((
            cursors::school_id.eq(school.get()),
            cursors::name.eq(&standing.name),
            cursors::seq.eq(signed(standing.seq)),
            cursors::delivered.eq(signed(standing.delivered)),
            cursors::failed.eq(signed(standing.failed)),
            cursors::dead.eq(signed(standing.dead)),
            cursors::tried_seq.eq(offset.tried.map(|tried| signed(tried.seq))),
            cursors::attempts.eq(offset.tried.map_or(0, |tried| tried.attempts.into())),
            cursors::delivered_at.eq(standing.delivered_at.map(millis)),
            cursors::failed_at.eq(failed_at.map(millis)),
            cursors::cause.eq(cause.as_deref().map(text)),
        ))
        .execute(conn)
        .await?;
    for entry in &offset.set_aside {
        put(conn, &standing.name, school, entry).await?;
    }
    for letter in letters {
        insert_dead_letter(conn, &standing.name, school, letter).await?;
    }
    Ok(())
}

async fn standings(
    conn: &mut AsyncPgConnection,
    school: SchoolId,
) -> QueryResult<(Vec<Standing>, u64)> {
    let head = read::bounds(conn, school).await?.head.seq;
    let found: Vec<CursorRow> = notifier_cursors::table
        .filter(notifier_cursors::school_id.eq(school.get()))
        .order(notifier_cursors::name)
        .select(CursorRow::as_select())
        .load(conn)
        .await?;
    let set_aside: Vec<(String, i64)> = notifier_set_aside::table
        .filter(notifier_set_aside::school_id.eq(school.get()))
        .group_by(notifier_set_aside::name)
        .select((notifier_set_aside::name, diesel::dsl::count_star()))
        .load(conn)
        .await?;
    let at = |millis: Option<i64>| -> QueryResult<Option<DateTime<Utc>>> {
        millis.map(from_millis).transpose()
    };
    let standing = |row: CursorRow| {
        let counted = set_aside.iter().find(|(name, _)| *name == row.name);
        Ok(Standing {
            set_aside: counted.map_or(0, |(_, count)| unsigned(*count)),
            name: row.name,
            seq: unsigned(row.seq),
            delivered: unsigned(row.delivered),
            failed: unsigned(row.failed),
            dead: unsigned(row.dead),
            delivered_at: at(row.delivered_at)?,
            last_failure: at(row.failed_at)?.zip(row.cause),
        })
    };
    let standings = found
        .into_iter()
        .map(standing)
        .collect::<QueryResult<_>>()?;
    Ok((standings, head))
}

async fn letters(
    conn: &mut AsyncPgConnection,
    name: &str,
    school: SchoolId,
    before: Option<u64>,
    limit: usize,
) -> QueryResult<DeadLetterPage> {
    let before = before.map_or(i64::MAX, signed);
    let mut found: Vec<DeadLetterRow> = dead_letters::table
        .filter(dead_letters::school_id.eq(school.get()))
        .filter(dead_letters::name.eq(name))
        .filter(dead_letters::seq.lt(before))
        .order(dead_letters::seq.desc())
        .limit(signed(limit) + 1)
        .select(DeadLetterRow::as_select())
        .load(conn)
        .await?;
    let has_more = found.len() > limit;
    found.truncate(limit);
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
    let letters: Vec<DeadLetter> = found.into_iter().map(letter).collect::<QueryResult<_>>()?;
    let next = letters.last().map(|letter| letter.seq).filter(|_| has_more);
    Ok(DeadLetterPage { letters, next })
}

#[async_trait]
impl Consumers for PostgresStore {
    async fn notifier_begins(&self, name: &str) -> Result<Begun, StoreError> {
        let mut write = self.write().await?;
        let begun = begins(&mut write, name).await;
        write.end(begun).await
    }

    async fn notifier_looks(&self, name: &str) -> Result<Begun, StoreError> {
        let mut read = self.read_for_server().await?;
        let found = work(&mut read, name).await;
        read.end(found).await
    }

    async fn notifier_offset(&self, name: &str, school: SchoolId) -> Result<Offset, StoreError> {
        let mut read = self.read_for_server().await?;
        let found = offset(&mut read, name, school).await;
        read.end(found).await
    }

    async fn notifier_moves(
        &self,
        name: &str,
        fence: Fence,
        school: SchoolId,
        seq: u64,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let mut write = self.write().await?;
        let moved = moves(&mut write, (name, fence), school, seq, &progress).await;
        match write.end(moved).await? {
            true => Ok(()),
            false => Err(StoreError::Fenced),
        }
    }

    async fn notifiers(&self, school: SchoolId) -> Result<(Vec<Standing>, u64), StoreError> {
        let mut read = self.request(school).await?;
        let found = standings(&mut read, school).await;
        read.end(found).await
    }

    async fn notifier_totals(&self) -> Result<Vec<Total>, StoreError> {
        let mut read = self.read_for_server().await?;
        let found = diesel::sql_query(
            // A notifier that has not begun in a school is behind by all of its events.
            "SELECT n.name, COALESCE(SUM(s.head - COALESCE(c.seq, 0)), 0)::bigint AS lag, \
             COALESCE(SUM(c.delivered), 0)::bigint AS delivered, COALESCE(SUM(c.failed), 0)::bigint AS failed, \
             COALESCE(SUM(c.dead), 0)::bigint AS dead, \
             (SELECT COUNT(*) FROM notifier_set_aside AS a WHERE a.name = n.name) AS set_aside \
             FROM notifiers AS n LEFT JOIN schools AS s ON true \
             LEFT JOIN notifier_cursors AS c ON c.name = n.name AND c.school_id = s.school_id \
             GROUP BY n.name ORDER BY n.name",
        )
        .load::<TotalRow>(&mut *read)
        .await;
        let total = |row: TotalRow| Total {
            name: row.name,
            lag: unsigned(row.lag),
            set_aside: unsigned(row.set_aside),
            delivered: unsigned(row.delivered),
            failed: unsigned(row.failed),
            dead: unsigned(row.dead),
        };
        let totals = found.map(|rows| rows.into_iter().map(total).collect());
        read.end(totals).await
    }

    async fn dead_letters(
        &self,
        name: &str,
        school: SchoolId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        let mut read = self.request(school).await?;
        let page = letters(&mut read, name, school, before, limit).await;
        read.end(page).await
    }
}
