//! The database as one of this node's writers sees it: the writer's connection, the queries behind the cached facts of
//! [`shared::Backend`](crate::store::shared::Backend), and the write of a group.
//!
//! If the connection breaks during a commit, the commit may or may not have taken effect. A new connection finds out:
//! it locks the rows, reads whether their stamps are those of the commit, and otherwise replaces them, so that the
//! commit cannot take effect later.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{SubsecRound, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use tokio::runtime::Runtime;

use super::commit::commit;
use super::connect::{Address as Place, begin, bounded};
use super::lookup::join_by_key;
use super::prepared::prepared;
use super::rows::{self, EventRow, SubjectRow};
use super::schema::{counts, events, idempotency_keys, parts, schools, subjects};
use super::{Fact, answers, database_error};
use crate::config::{self, POSTGRES_PLAN_AGE, POSTGRES_RETRY, POSTGRES_UNKNOWN_WAIT, Synchronous};
use crate::id::{Epoch, Kind, SchoolId, SubjectId};
use crate::kind::Part;
use crate::kind::job::Past;
use crate::log::Hints;
use crate::log::StoreError;
use crate::log::decide::Decisions;
use crate::log::facts::{Address, Answered, KeyUse, Moment, Stored, Tail};
use crate::store::columns::{place, unreadable, uptime};
use crate::store::numbers::{signed, unsigned};
use crate::store::shared::{self, Move, SchoolRow, Traces, stamp};
use crate::uptime::UptimeClock;

/// See the [module-level documentation](self).
pub(super) struct Database {
    runtime: Runtime,
    address: Place,
    /// `None` while there is no connection.
    conn: Option<AsyncPgConnection>,
    epoch: Epoch,
    uptime: UptimeClock,
    synchronous: Synchronous,
    /// Requests a check of the logs after a lost connection: another server may answer now, without the last commits.
    hints: Hints,
    has_lost_connection: bool,
    /// Whether the commands in progress are decided in a transaction that has locked the rows of their schools.
    holds_locks: bool,
    /// When Postgres last discarded its plans for the connection's statements.
    planned_at: Instant,
}

#[derive(QueryableByName)]
struct KeyRow {
    #[diesel(sql_type = BigInt)]
    school_id: i64,
    #[diesel(sql_type = Text)]
    key: String,
}

#[derive(QueryableByName)]
struct UsedKeyRow {
    #[diesel(sql_type = BigInt)]
    school_id: i64,
    #[diesel(sql_type = Text)]
    key: String,
    #[diesel(sql_type = Text)]
    fingerprint: String,
}

impl Database {
    pub(super) fn new(
        runtime: Runtime,
        address: Place,
        epoch: Epoch,
        uptime: UptimeClock,
        synchronous: Synchronous,
        hints: Hints,
    ) -> Database {
        Database {
            runtime,
            address,
            conn: None,
            epoch,
            uptime,
            synchronous,
            hints,
            has_lost_connection: false,
            holds_locks: false,
            planned_at: Instant::now(),
        }
    }

    /// Runs a query on the connection, in a transaction if a pooler requires it: otherwise, preparing and executing a
    /// statement may use different connections behind the pooler.
    fn ask<T>(
        &mut self,
        query: impl AsyncFnOnce(&mut AsyncPgConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        if self.holds_locks || self.address.prepares() {
            return self.ask_plainly(query);
        }
        self.ask_plainly(async |conn| {
            conn.batch_execute(&begin("BEGIN")).await?;
            let answer = query(conn).await?;
            conn.batch_execute("COMMIT").await?;
            Ok(answer)
        })
    }

    /// Runs a query on the connection, which is opened again if necessary. If the query fails, for whatever reason, the
    /// connection is dropped.
    fn ask_plainly<T>(
        &mut self,
        query: impl AsyncFnOnce(&mut AsyncPgConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        let Database {
            runtime,
            address,
            conn,
            hints,
            has_lost_connection,
            ..
        } = self;
        let answer = runtime.block_on(async {
            if conn.is_none() {
                *conn = Some(address.connect().await?);
                if std::mem::take(has_lost_connection) {
                    hints.request_check_of_all();
                }
            }
            let open = conn.as_mut().expect("it was opened");
            bounded(query(open)).await
        });
        if answer.is_err() {
            // The connection may be broken, or in a transaction that cannot continue.
            self.conn = None;
            self.has_lost_connection = true;
            self.holds_locks = false;
        }
        answer
    }

    /// Checks that the backend can write.
    pub(super) fn ping(&mut self) -> Result<(), StoreError> {
        let had_connection = self.conn.is_some();
        let mut ask = || self.ask_plainly(async |conn| conn.batch_execute("SELECT 1").await);
        match ask() {
            // The connection may have ended since it was used last.
            Err(StoreError::Unavailable(_)) if had_connection => ask(),
            asked => asked,
        }
    }

    /// Returns the schools that a failed write has written. Replaces the stamps of the others.
    fn settle_once(
        &mut self,
        group: &Decisions,
        moves: &[Move],
    ) -> Result<Vec<SchoolId>, StoreError> {
        self.conn = None;
        let epoch = self.epoch;
        let ids: Vec<i64> = moves.iter().map(|moved| moved.school.get()).collect();
        let stamps: Vec<i64> = moves.iter().map(|moved| moved.stamp).collect();
        let others: Vec<i64> = moves.iter().map(|_| stamp()).collect();
        let (rows, traces) = self.ask_plainly(async |conn| {
            conn.batch_execute(&begin("BEGIN")).await?;
            let rows = schools::table
                .filter(schools::school_id.eq_any(&ids))
                .order(schools::school_id)
                .select((schools::school_id, schools::stamp))
                .for_update()
                .load::<(i64, i64)>(conn)
                .await?;
            // Another node may have replaced the stamp since.
            let traces = traces(conn, group, epoch).await?;
            // The commit could still insert the row of a school that has none. An empty row prevents that.
            diesel::sql_query(
                "INSERT INTO schools (school_id, stamp, head, bytes) \
                 SELECT school_id, stamp, 0, 0 FROM unnest($1::bigint[], $2::bigint[]) AS o (school_id, stamp) \
                 ORDER BY school_id ON CONFLICT DO NOTHING",
            )
            .bind::<Array<BigInt>, _>(&ids)
            .bind::<Array<BigInt>, _>(&others)
            .execute(conn)
            .await?;
            diesel::sql_query(
                "UPDATE schools SET stamp = o.other \
                 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS o (school_id, own, other) \
                 WHERE schools.school_id = o.school_id AND schools.stamp <> o.own",
            )
            .bind::<Array<BigInt>, _>(&ids)
            .bind::<Array<BigInt>, _>(&stamps)
            .bind::<Array<BigInt>, _>(&others)
            .execute(conn)
            .await?;
            conn.batch_execute("COMMIT").await?;
            Ok((rows, traces))
        })?;
        let is_own = |moved: &&Move| {
            rows.contains(&(moved.school.get(), moved.stamp)) || traces.show(group, moved.school)
        };
        Ok(moves
            .iter()
            .filter(is_own)
            .map(|moved| moved.school)
            .collect())
    }

    fn answer_of(
        &mut self,
        address: Address,
        seq: i64,
        answer: Option<String>,
    ) -> Result<Answered, StoreError> {
        let (school, kind, subject) = address.clone();
        if let Some(json) = answer {
            let event = answers::from_json(&json, self.epoch, address).map_err(database_error)?;
            return Ok(Answered::Event(Arc::new(event)));
        }
        let row: Option<EventRow> = self.ask(async |conn| {
            events::table
                .find((school.get(), seq))
                .filter(events::subject_id.eq(subject.as_str()))
                .select(EventRow::as_select())
                .first(conn)
                .await
                .optional()
        })?;
        match row.map(|row| row.into_event(self.epoch)).transpose() {
            Ok(Some(event)) => Ok(Answered::Event(Arc::new(event))),
            Ok(None) => Ok(Answered::Subject(kind, subject)),
            Err(error) => Err(database_error(error)),
        }
    }
}

/// Returns which events and keys of a group the database contains.
async fn traces(
    conn: &mut AsyncPgConnection,
    group: &Decisions,
    epoch: Epoch,
) -> QueryResult<Traces> {
    let places = group.events.iter();
    let (schools, seqs): (Vec<i64>, Vec<i64>) = places
        .map(|event| (event.school.get(), signed(event.seq)))
        .unzip();
    let events: Vec<EventRow> = diesel::sql_query(
        concat!(
            "SELECT e.school_id, e.seq, e.kind, e.subject_id, e.name, e.milestone, e.status, e.category, e.at, e.fields \
             FROM unnest($1::bigint[], $2::bigint[]) AS w (school_id, seq)",
            join_by_key!("events", "school_id, seq" = "w.school_id, w.seq", "e"),
        ),
    )
    .bind::<Array<BigInt>, _>(schools)
    .bind::<Array<BigInt>, _>(seqs)
    .load(conn)
    .await?;
    let keys = group.keys.keys();
    let (schools, names): (Vec<i64>, Vec<&str>) = keys
        .map(|(school, key)| (school.get(), key.as_str()))
        .unzip();
    let keys: Vec<UsedKeyRow> = diesel::sql_query(
        concat!(
            "SELECT k.school_id, k.key, k.fingerprint FROM unnest($1::bigint[], $2::text[]) AS w (school_id, key)",
            join_by_key!("idempotency_keys", "school_id, key" = "w.school_id, w.key", "k"),
        ),
    )
    .bind::<Array<BigInt>, _>(schools)
    .bind::<Array<Text>, _>(names)
    .load(conn)
    .await?;
    let place = |row: EventRow| {
        let event = row.into_event(epoch)?;
        Ok((event.school, event.place()))
    };
    let used = |row: UsedKeyRow| Ok(((rows::school(row.school_id)?, row.key), row.fingerprint));
    Ok(Traces {
        events: events.into_iter().map(place).collect::<QueryResult<_>>()?,
        keys: keys.into_iter().map(used).collect::<QueryResult<_>>()?,
    })
}

impl shared::Database for Database {
    fn now(&self) -> Moment {
        Moment {
            at: Utc::now().trunc_subsecs(3),
            uptime: self.uptime.now(),
        }
    }

    /// Every node saves its uptime each second, unless a suspended one has locked that row. So what they have reported counts, too.
    fn advance_uptime(&mut self) -> Result<(), StoreError> {
        if !self.uptime.is_behind() {
            return Ok(());
        }
        let query = diesel::sql_query(
            "SELECT GREATEST((SELECT value::bigint FROM meta WHERE key = 'uptime'), \
             (SELECT max((report::json->>'uptime')::bigint) FROM nodes))::text AS value",
        );
        let saved: Fact = self.ask(async |conn| query.get_result(conn).await)?;
        let saved = saved.value.parse().map_err(|_| unreadable("an uptime"));
        let saved = saved.and_then(uptime).map_err(database_error)?;
        self.uptime.advance_to(saved);
        Ok(())
    }

    fn connect(&mut self) -> Result<(), StoreError> {
        match self.conn {
            Some(_) => Ok(()),
            None => self.ping(),
        }
    }

    fn lock(&mut self) -> Result<(), StoreError> {
        self.ask_plainly(async |conn| conn.batch_execute(&begin("BEGIN")).await)?;
        self.holds_locks = true;
        Ok(())
    }

    fn unlock(&mut self) -> Result<(), StoreError> {
        match std::mem::take(&mut self.holds_locks) {
            true => self.ask_plainly(async |conn| conn.batch_execute("ROLLBACK").await),
            false => Ok(()),
        }
    }

    /// Loads the rows in the order of their ids. Moves the uptime ahead to that of their last writes: the clock of a node that was
    /// suspended is behind, and what it decides after a write of another node must not be older than that.
    fn schools(&mut self, ids: &[SchoolId]) -> Result<HashMap<SchoolId, SchoolRow>, StoreError> {
        type Row = (i64, i64, i64, Option<i64>, i64, i64);
        let wanted: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let with_lock = self.holds_locks;
        let rows: Vec<Row> = self.ask(async |conn| {
            let query = schools::table
                .filter(schools::school_id.eq_any(wanted))
                .order(schools::school_id)
                .select((
                    schools::school_id,
                    schools::stamp,
                    schools::head,
                    schools::head_tag,
                    schools::bytes,
                    schools::uptime,
                ));
            match with_lock {
                true => query.for_update().load(conn).await,
                false => query.load(conn).await,
            }
        })?;
        let read = |(id, stamp, head, tag, bytes, written): Row| {
            self.uptime.advance_to(uptime(written)?);
            let tail = Tail {
                head: place(head, tag),
                bytes: unsigned(bytes),
            };
            Ok((rows::school(id)?, SchoolRow { stamp, tail }))
        };
        let rows: QueryResult<HashMap<_, _>> = rows.into_iter().map(read).collect();
        rows.map_err(database_error)
    }

    fn states(&mut self, addresses: &[Address]) -> Result<HashMap<Address, Stored>, StoreError> {
        let (mut schools, mut kinds, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for (school, kind, id) in addresses {
            schools.push(school.get());
            kinds.push(kind.collection());
            ids.push(id.as_str());
        }
        let query = concat!(
            "SELECT s.school_id, s.kind, s.subject_id, s.created_seq, s.last_seq, s.last_tag, s.last_at, s.state \
             FROM unnest($1::bigint[], $2::text[], $3::text[]) AS w (school_id, kind, subject_id)",
            join_by_key!(
                "subjects",
                "school_id, kind, subject_id" = "w.school_id, w.kind, w.subject_id",
                "s"
            )
        );
        let query = diesel::sql_query(query)
            .bind::<Array<BigInt>, _>(schools)
            .bind::<Array<Text>, _>(kinds)
            .bind::<Array<Text>, _>(ids);
        let rows: Vec<SubjectRow> = self.ask(async |conn| prepared(query).load(conn).await)?;
        let read = |row: SubjectRow| {
            let (school, kind) = (rows::school(row.school_id)?, rows::kind(&row.kind)?);
            let (id, stored) = row.into_stored()?;
            Ok(((school, kind, id), stored))
        };
        let states: QueryResult<HashMap<_, _>> = rows.into_iter().map(read).collect();
        states.map_err(database_error)
    }

    fn used_keys(
        &mut self,
        keys: &[(SchoolId, &str)],
    ) -> Result<HashSet<(SchoolId, String)>, StoreError> {
        let (schools, names): (Vec<i64>, Vec<&str>) = keys
            .iter()
            .map(|(school, key)| (school.get(), *key))
            .unzip();
        let query = concat!(
            "SELECT k.school_id, k.key FROM unnest($1::bigint[], $2::text[]) AS w (school_id, key)",
            join_by_key!(
                "idempotency_keys",
                "school_id, key" = "w.school_id, w.key",
                "k"
            )
        );
        let query = diesel::sql_query(query)
            .bind::<Array<BigInt>, _>(schools)
            .bind::<Array<Text>, _>(names);
        let used: Vec<KeyRow> = self.ask(async |conn| prepared(query).load(conn).await)?;
        let read = |row: KeyRow| Ok((rows::school(row.school_id)?, row.key));
        let used: QueryResult<HashSet<_>> = used.into_iter().map(read).collect();
        used.map_err(database_error)
    }

    fn count(&mut self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        let rows: Vec<i64> = self.ask(async |conn| {
            counts::table
                .filter(counts::school_id.eq(school.get()))
                .filter(counts::what.eq(kind.collection()))
                .select(counts::count)
                .load(conn)
                .await
        })?;
        Ok(rows.into_iter().map(unsigned).sum())
    }

    fn holder(
        &mut self,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> Result<Option<SubjectId>, StoreError> {
        let holder: Option<String> = self.ask(async |conn| {
            subjects::table
                .filter(subjects::school_id.eq(school.get()))
                .filter(subjects::kind.eq(kind.collection()))
                .filter(subjects::holds.eq(what))
                .select(subjects::subject_id)
                .first(conn)
                .await
                .optional()
        })?;
        let holder = holder.map(|id| rows::subject(&id)).transpose();
        holder.map_err(database_error)
    }

    fn past(
        &mut self,
        school: SchoolId,
        kind: Kind,
        category: &str,
    ) -> Result<VecDeque<Past>, StoreError> {
        let rows: Vec<Option<String>> = self.ask(async |conn| {
            subjects::table
                .filter(subjects::school_id.eq(school.get()))
                .filter(subjects::kind.eq(kind.collection()))
                .filter(subjects::category.eq(category))
                .filter(subjects::past.is_not_null())
                .order(subjects::finished_at.desc())
                .limit(signed(config::HISTORY_SAMPLE))
                .select(subjects::past)
                .load(conn)
                .await
        })?;
        let read = |text: String| serde_json::from_str(&text);
        let past: Result<VecDeque<Past>, _> = rows.into_iter().flatten().map(read).collect();
        past.map_err(|_| database_error(unreadable("a duration")))
    }

    fn key(&mut self, school: SchoolId, key: &str) -> Result<Option<KeyUse>, StoreError> {
        type Row = (String, String, String, i64, Option<String>);
        let row: Option<Row> = self.ask(async |conn| {
            idempotency_keys::table
                .find((school.get(), key))
                .select((
                    idempotency_keys::fingerprint,
                    idempotency_keys::kind,
                    idempotency_keys::subject_id,
                    idempotency_keys::seq,
                    idempotency_keys::answer,
                ))
                .first(conn)
                .await
                .optional()
        })?;
        let Some((fingerprint, kind, subject, seq, answer)) = row else {
            return Ok(None);
        };
        let kind = rows::kind(&kind).map_err(database_error)?;
        let subject = rows::subject(&subject).map_err(database_error)?;
        let answer = self.answer_of((school, kind, subject), seq, answer)?;
        Ok(Some(KeyUse {
            fingerprint,
            answer,
        }))
    }

    fn part(
        &mut self,
        (school, kind, subject): &Address,
        number: u64,
    ) -> Result<Option<Part>, StoreError> {
        let Ok(number) = i64::try_from(number) else {
            return Ok(None);
        };
        let json: Option<String> = self.ask(async |conn| {
            parts::table
                .find((school.get(), kind.collection(), subject.as_str(), number))
                .select(parts::part)
                .first(conn)
                .await
                .optional()
        })?;
        let part = json.map(|json| Part::from_json(*kind, &json)).transpose();
        part.map_err(|_| database_error(unreadable("a part of a subject")))
    }

    fn has_part(&mut self, school: SchoolId, kind: Kind, own_id: &str) -> Result<bool, StoreError> {
        let number: Option<i64> = self.ask(async |conn| {
            parts::table
                .filter(parts::school_id.eq(school.get()))
                .filter(parts::kind.eq(kind.collection()))
                .filter(parts::own_id.eq(own_id))
                .select(parts::number)
                .first(conn)
                .await
                .optional()
        })?;
        Ok(number.is_some())
    }

    fn write(
        &mut self,
        group: &Decisions,
        moves: &[Move],
        now: Moment,
    ) -> Result<Vec<SchoolId>, StoreError> {
        let waits_for_disk = match self.synchronous {
            Synchronous::Full => true,
            Synchronous::Normal => false,
            Synchronous::Milestone => group.has_milestone,
        };
        let ends = self.holds_locks;
        let must_replan = self.address.prepares() && self.planned_at.elapsed() > POSTGRES_PLAN_AGE;
        if must_replan {
            self.planned_at = Instant::now();
        }
        let written = self.ask(async |conn| {
            // A plan for small tables is slow once they have grown, and Postgres may keep it for minutes.
            if must_replan {
                conn.batch_execute("DISCARD PLANS").await?;
            }
            let written = commit(conn, group, moves, waits_for_disk, now).await?;
            if ends {
                conn.batch_execute("COMMIT").await?;
            }
            Ok(written)
        });
        self.holds_locks = false;
        written
    }

    fn settle(&mut self, group: &Decisions, moves: &[Move]) -> Result<Vec<SchoolId>, StoreError> {
        let until = Instant::now() + POSTGRES_UNKNOWN_WAIT;
        loop {
            match self.settle_once(group, moves) {
                Ok(written) => return Ok(written),
                Err(error) if Instant::now() > until => {
                    tracing::error!(%error, "it is not known whether a commit took effect, because Postgres cannot be reached");
                    return Err(StoreError::Unknown);
                }
                Err(_) => std::thread::sleep(POSTGRES_RETRY),
            }
        }
    }

    fn close(&mut self) {
        let _ = self.unlock();
        self.conn = None;
        // Gives the connection time to send its termination message.
        self.runtime
            .block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
    }
}
