//! The database behind a writer of this node: a connection of its own, with caches of what the node knows of each school.
//!
//! A node has several writers, and each school always has the same one, so that several commits are in flight at once and
//! a school's commands keep their order. Another node may write at any time. So what is cached of a school is only right
//! as long as its row has the stamp that was loaded with it; [`commit`](super::commit) compares it.
//!
//! 1. A school is *known* while its stamp is cached. Everything else about it is loaded after the stamp and never before,
//!    so it is at least as new.
//! 2. If the stamp has changed, the school is *missed*: what is cached of it is forgotten, and the writer decides again.
//!    After [`MISSES_MAX`] misses in a row, its row is locked before the decisions, and the commit cannot miss.
//! 3. If the connection breaks during a commit, it may have happened or not. A new connection finds out: it locks the
//!    rows, reads whether the stamps are those of the commit, and otherwise replaces them, so that the commit cannot
//!    happen later.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{SubsecRound, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use lru::LruCache;
use tokio::runtime::Runtime;

use super::commit::{Move, commit, moves};
use super::connect::{Address as Place, bounded};
use super::rows::{self, EventRow, SubjectRow};
use super::schema::{counts, events, idempotency_keys, parts, schools, subjects};
use super::{answers, database_error};
use crate::config::{
    self, MISSES_MAX, POSTGRES_RETRY, POSTGRES_UNKNOWN_WAIT, POSTGRES_WRITERS, STATE_BASE_BYTES,
    STATE_CACHE_BYTES, Synchronous,
};
use crate::event::Event;
use crate::id::{Epoch, Kind, SchoolId, SubjectId};
use crate::kind::job::{History, Past};
use crate::kind::{self, Part};
use crate::log::decide::Decisions;
use crate::log::facts::{Address, Answered, Facts, KeyUse, Moment, Stored, Tail};
use crate::log::{Envelope, StoreError, writer};
use crate::store::columns::{place, unreadable};
use crate::store::numbers::{signed, unsigned};
use crate::store::states::{States, Weighed};
use crate::uptime::UptimeClock;

/// What is known of a school as of a stamp.
#[derive(Clone, Copy)]
struct Known {
    /// `None` if the school has no row yet.
    stamp: Option<i64>,
    tail: Tail,
    /// Distinguishes what is cached as of this stamp from what was cached before.
    generation: u64,
}

/// A state as of a generation of its school; `None` if there is no such subject.
struct Cached {
    generation: u64,
    stored: Option<Stored>,
}

impl Weighed for Cached {
    fn bytes(&self) -> usize {
        self.stored
            .as_ref()
            .map_or(STATE_BASE_BYTES, Weighed::bytes)
    }
}

/// See the [module-level documentation](self).
pub(super) struct Backend {
    runtime: Runtime,
    address: Place,
    /// `None` while there is no connection.
    conn: Option<AsyncPgConnection>,
    epoch: Epoch,
    uptime: UptimeClock,
    synchronous: Synchronous,
    known: LruCache<SchoolId, Known>,
    states: States<Cached>,
    counts: LruCache<(SchoolId, Kind), (u64, u64)>,
    past: LruCache<(SchoolId, Arc<str>), (u64, VecDeque<Past>)>,
    /// Keys that were not in use when the commands in progress were prepared.
    unused_keys: HashSet<(SchoolId, String)>,
    generations: u64,
    /// Schools that the last commit missed.
    missed: Vec<SchoolId>,
    /// How often in a row a school was missed.
    misses: HashMap<SchoolId, u32>,
    /// Whether the commands in progress are decided in a transaction that has locked the rows of their schools.
    holds_locks: bool,
}

#[derive(QueryableByName)]
struct KeyRow {
    #[diesel(sql_type = BigInt)]
    school_id: i64,
    #[diesel(sql_type = Text)]
    key: String,
}

type SchoolRow = (i64, i64, i64, Option<i64>, i64);

fn cache<K: std::hash::Hash + Eq, V>(capacity: usize) -> LruCache<K, V> {
    LruCache::new(NonZeroUsize::new(capacity).expect("a cache has room"))
}

impl Backend {
    pub(super) fn new(
        runtime: Runtime,
        address: Place,
        epoch: Epoch,
        uptime: UptimeClock,
        synchronous: Synchronous,
    ) -> Backend {
        Backend {
            runtime,
            address,
            conn: None,
            epoch,
            uptime,
            synchronous,
            known: cache(config::SCHOOL_CACHE),
            states: States::new(STATE_CACHE_BYTES / POSTGRES_WRITERS),
            counts: cache(config::SCHOOL_CACHE * kind::KINDS.len()),
            past: cache(config::SCHOOL_CACHE),
            unused_keys: HashSet::new(),
            generations: 0,
            missed: Vec::new(),
            misses: HashMap::new(),
            holds_locks: false,
        }
    }

    /// Runs a query on the connection, which is opened again if necessary. If it fails because the connection is broken,
    /// the connection is dropped.
    fn ask<T>(
        &mut self,
        query: impl AsyncFnOnce(&mut AsyncPgConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        let Backend {
            runtime,
            address,
            conn,
            ..
        } = self;
        let answer = runtime.block_on(async {
            if conn.is_none() {
                *conn = Some(address.connect().await?);
            }
            let open = conn.as_mut().expect("it was opened");
            bounded(query(open)).await
        });
        if answer.is_err() {
            // It may be broken, or in a transaction that cannot go on.
            self.conn = None;
            self.holds_locks = false;
        }
        answer
    }

    /// Checks that the backend can write.
    pub(super) fn ping(&mut self) -> Result<(), StoreError> {
        self.ask(async |conn| conn.batch_execute("SELECT 1").await)
    }

    /// Returns what is known of a school, and loads it if necessary.
    fn known(&mut self, school: SchoolId) -> Result<Known, StoreError> {
        if let Some(known) = self.known.get(&school) {
            return Ok(*known);
        }
        self.load_schools(&[school])?;
        Ok(*self.known.get(&school).expect("it was loaded"))
    }

    /// Loads the rows of schools, in the order of their ids.
    fn load_schools(&mut self, ids: &[SchoolId]) -> Result<(), StoreError> {
        let wanted: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let with_lock = self.holds_locks;
        let rows: Vec<SchoolRow> = self.ask(async |conn| {
            let query = schools::table
                .filter(schools::school_id.eq_any(wanted))
                .order(schools::school_id)
                .select((
                    schools::school_id,
                    schools::stamp,
                    schools::head,
                    schools::head_tag,
                    schools::bytes,
                ));
            match with_lock {
                true => query.for_update().load(conn).await,
                false => query.load(conn).await,
            }
        })?;
        for id in ids {
            self.generations += 1;
            let row = rows.iter().find(|row| row.0 == id.get());
            let known = Known {
                stamp: row.map(|row| row.1),
                tail: row.map_or_else(Tail::default, |(.., head, tag, bytes)| Tail {
                    head: place(*head, *tag),
                    bytes: unsigned(*bytes),
                }),
                generation: self.generations,
            };
            self.known.put(*id, known);
        }
        Ok(())
    }

    /// Loads states, as of what is known of their schools.
    fn load_states(&mut self, addresses: &[Address]) -> Result<(), StoreError> {
        let (mut schools, mut kinds, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for (school, kind, id) in addresses {
            schools.push(school.get());
            kinds.push(kind.collection());
            ids.push(id.as_str());
        }
        let query = "SELECT s.school_id, s.kind, s.subject_id, s.created_seq, s.last_seq, s.last_tag, s.last_at, s.state \
             FROM unnest($1::bigint[], $2::text[], $3::text[]) AS w (school_id, kind, subject_id) \
             JOIN subjects AS s USING (school_id, kind, subject_id)";
        let rows: Vec<SubjectRow> = self.ask(async |conn| {
            diesel::sql_query(query)
                .bind::<Array<BigInt>, _>(schools)
                .bind::<Array<Text>, _>(kinds)
                .bind::<Array<Text>, _>(ids)
                .load(conn)
                .await
        })?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in rows {
            let read = || {
                let (school, kind) = (rows::school(row.school_id)?, rows::kind(&row.kind)?);
                let (id, stored) = row.into_stored()?;
                QueryResult::Ok(((school, kind, id), stored))
            };
            let (address, stored) = read().map_err(database_error)?;
            found.insert(address, stored);
        }
        for address in addresses {
            let generation = self.known(address.0)?.generation;
            let stored = found.remove(address);
            self.states
                .put(address.clone(), Cached { generation, stored });
        }
        Ok(())
    }

    fn is_cached(&mut self, address: &Address) -> bool {
        let Some(known) = self.known.get(&address.0) else {
            return false;
        };
        let generation = known.generation;
        let cached = self.states.get(address);
        cached.is_some_and(|cached| cached.generation == generation)
    }

    fn load_unused_keys(&mut self, keys: Vec<(SchoolId, &str)>) -> Result<(), StoreError> {
        let (schools, names): (Vec<i64>, Vec<&str>) = keys
            .iter()
            .map(|(school, key)| (school.get(), *key))
            .unzip();
        let query = "SELECT k.school_id, k.key FROM unnest($1::bigint[], $2::text[]) AS w (school_id, key) \
             JOIN idempotency_keys AS k USING (school_id, key)";
        let used: Vec<KeyRow> = self.ask(async |conn| {
            diesel::sql_query(query)
                .bind::<Array<BigInt>, _>(schools)
                .bind::<Array<Text>, _>(names)
                .load(conn)
                .await
        })?;
        let used: HashSet<(i64, &str)> = used
            .iter()
            .map(|row| (row.school_id, row.key.as_str()))
            .collect();
        let unused = keys
            .into_iter()
            .filter(|(school, key)| !used.contains(&(school.get(), key)));
        self.unused_keys
            .extend(unused.map(|(school, key)| (school, key.to_owned())));
        Ok(())
    }

    /// Forgets what is known of schools: another node has written.
    fn forget(&mut self, schools: impl IntoIterator<Item = SchoolId>) {
        for school in schools {
            self.known.pop(&school);
        }
    }

    fn has_missed(&mut self, schools: Vec<SchoolId>) {
        for school in &schools {
            *self.misses.entry(*school).or_default() += 1;
        }
        self.forget(schools.iter().copied());
        self.missed = schools;
    }

    /// Ends the transaction that holds locks, if there is one.
    fn unlock(&mut self, end: &'static str) -> Result<(), StoreError> {
        match std::mem::take(&mut self.holds_locks) {
            true => self.ask(async |conn| conn.batch_execute(end).await),
            false => Ok(()),
        }
    }

    /// Writes the group. Returns the schools that were written.
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
        if self.conn.is_none() {
            // What was decided with a connection that is gone is compared like everything else.
            self.ping()?;
        }
        let ends = self.holds_locks;
        let written = self.ask(async |conn| {
            let written = commit(conn, group, moves, waits_for_disk, now).await?;
            if ends {
                conn.batch_execute("COMMIT").await?;
            }
            Ok(written)
        });
        self.holds_locks = false;
        let Err(error) = written else {
            return written;
        };
        // It is not known whether it happened.
        tracing::warn!(%error, "a commit failed; looking whether it took effect");
        let written = self.settle_unknown(group, moves)?;
        match error {
            StoreError::Unavailable(_) => Ok(written),
            // The same would fail again.
            error if written.is_empty() => Err(error),
            _ => Ok(written),
        }
    }

    /// Finds out which schools a commit has written whose connection broke, and makes sure that the others are not written
    /// later: see the module documentation.
    fn settle_unknown(
        &mut self,
        group: &Decisions,
        moves: &[Move],
    ) -> Result<Vec<SchoolId>, StoreError> {
        let until = Instant::now() + POSTGRES_UNKNOWN_WAIT;
        loop {
            match self.look_at_stamps(group, moves) {
                Ok(written) => return Ok(written),
                Err(error) if Instant::now() > until => {
                    tracing::error!(%error, "it is not known whether a commit took effect, because Postgres is gone");
                    self.forget(moves.iter().map(|own| own.school));
                    return Err(StoreError::Unknown);
                }
                Err(_) => std::thread::sleep(POSTGRES_RETRY),
            }
        }
    }

    fn look_at_stamps(
        &mut self,
        group: &Decisions,
        moves: &[Move],
    ) -> Result<Vec<SchoolId>, StoreError> {
        self.conn = None;
        let mut firsts: HashMap<SchoolId, &Event> = HashMap::new();
        for event in &group.events {
            firsts.entry(event.school).or_insert(event);
        }
        let (first_schools, first_seqs): (Vec<i64>, Vec<i64>) = firsts
            .values()
            .map(|event| (event.school.get(), signed(event.seq)))
            .unzip();
        let epoch = self.epoch;
        let ids: Vec<i64> = moves.iter().map(|own| own.school.get()).collect();
        let stamps: Vec<i64> = moves.iter().map(|own| own.stamp).collect();
        let others: Vec<i64> = moves.iter().map(|_| stamp()).collect();
        let (rows, in_log) = self.ask(async |conn| {
            conn.batch_execute("BEGIN").await?;
            let rows = schools::table
                .filter(schools::school_id.eq_any(&ids))
                .order(schools::school_id)
                .select((schools::school_id, schools::stamp))
                .for_update()
                .load::<(i64, i64)>(conn)
                .await?;
            // Another node may have replaced the stamp since. Then the first event of the commit tells.
            let in_log: Vec<EventRow> = diesel::sql_query(
                "SELECT e.school_id, e.seq, e.kind, e.subject_id, e.name, e.milestone, e.status, e.category, e.at, e.fields \
                 FROM unnest($1::bigint[], $2::bigint[]) AS w (school_id, seq) JOIN events AS e USING (school_id, seq)",
            )
            .bind::<Array<BigInt>, _>(&first_schools)
            .bind::<Array<BigInt>, _>(&first_seqs)
            .load(conn)
            .await?;
            let in_log = in_log.into_iter().map(|row| row.into_event(epoch));
            let in_log = in_log.collect::<QueryResult<Vec<Event>>>()?;
            // A school without a row may still get one by the commit. This one is in its way, and empty.
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
            Ok((rows, in_log))
        })?;
        let is_in_log = |event: &Event| {
            let first = firsts.get(&event.school);
            first.is_some_and(|first| first.place() == event.place())
        };
        let in_log: HashSet<SchoolId> = in_log
            .iter()
            .filter(|event| is_in_log(event))
            .map(|event| event.school)
            .collect();
        let is_own = |own: &&Move| {
            rows.contains(&(own.school.get(), own.stamp)) || in_log.contains(&own.school)
        };
        Ok(moves.iter().filter(is_own).map(|own| own.school).collect())
    }

    /// Takes a written group into the caches.
    fn take_in(&mut self, group: &mut Decisions, moves: &[Move], written: &HashSet<SchoolId>) {
        for own in moves.iter().filter(|own| written.contains(&own.school)) {
            let tail = group.tails.get(&own.school).copied();
            if let Some(known) = self.known.get_mut(&own.school) {
                known.stamp = Some(own.stamp);
                known.tail = tail.unwrap_or(known.tail);
            }
            self.misses.remove(&own.school);
        }
        for (address, stored) in group.states.drain() {
            let known = self.known.get(&address.0).copied();
            match known.filter(|_| written.contains(&address.0) && !stored.state.is_over()) {
                Some(known) => {
                    let cached = Cached {
                        generation: known.generation,
                        stored: Some(stored),
                    };
                    self.states.put(address, cached);
                }
                // Subjects that have ended, with their results, are hardly ever read again.
                None => {
                    self.states.pop(&address);
                }
            }
        }
        for ((school, kind), created) in group.created.drain() {
            if let Some((_, count)) = self.counts.get_mut(&(school, kind)) {
                *count += created;
            }
        }
        for (school, category, own) in group.past.drain(..) {
            if let Some((_, past)) = self.past.get_mut(&(school, category)) {
                past.truncate(config::HISTORY_SAMPLE - 1);
                past.push_front(own);
            }
        }
        group.events.retain(|event| written.contains(&event.school));
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

/// Returns a stamp that no other write has.
pub(super) fn stamp() -> i64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    i64::from_le_bytes(bytes)
}

impl writer::Backend for Backend {
    fn now(&self) -> Moment {
        Moment {
            at: Utc::now().trunc_subsecs(3),
            uptime: self.uptime.now(),
        }
    }

    fn prepare(
        &mut self,
        upcoming: &mut dyn Iterator<Item = (SchoolId, &Envelope)>,
    ) -> Result<(), StoreError> {
        // The decisions before may have failed.
        self.unlock("ROLLBACK")?;
        self.unused_keys.clear();
        let (mut schools, mut addresses, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (school, envelope) in upcoming {
            if schools.last() != Some(&school) {
                schools.push(school);
            }
            addresses.push((school, envelope.command.kind(), envelope.subject.clone()));
            let key = envelope.idempotency.as_ref();
            keys.extend(key.map(|own| (school, own.key.as_str())));
        }
        let is_contended = |school: &SchoolId| {
            self.misses
                .get(school)
                .is_some_and(|own| *own >= MISSES_MAX)
        };
        if schools.iter().any(is_contended) {
            self.forget(schools.iter().copied());
            let wait = format!(
                "BEGIN; SET LOCAL idle_in_transaction_session_timeout = {}",
                config::POSTGRES_TIMEOUT.as_millis()
            );
            self.ask(async |conn| conn.batch_execute(&wait).await)?;
            self.holds_locks = true;
        }
        let unknown: Vec<SchoolId> = schools
            .into_iter()
            .filter(|school| !self.known.contains(school))
            .collect();
        if !unknown.is_empty() {
            self.load_schools(&unknown)?;
        }
        addresses.retain(|address| !self.is_cached(address));
        addresses.sort_unstable();
        addresses.dedup();
        if !addresses.is_empty() {
            self.load_states(&addresses)?;
        }
        if !keys.is_empty() {
            self.load_unused_keys(keys)?;
        }
        Ok(())
    }

    fn commit(
        &mut self,
        decisions: &mut Decisions,
        now: Moment,
    ) -> Result<Option<Instant>, StoreError> {
        let mut expected = HashMap::new();
        let of_states = decisions.states.keys().map(|(school, ..)| *school);
        let of_keys = decisions.keys.keys().map(|(school, _)| *school);
        let schools: HashSet<SchoolId> = of_states.chain(of_keys).collect();
        for school in schools {
            let known = self.known(school)?;
            expected.insert(school, (known.stamp, known.tail.head));
        }
        let moves = moves(decisions, |school| expected[&school], stamp);
        if moves.is_empty() {
            self.unlock("ROLLBACK")?;
            return Ok(None);
        }
        let began = Instant::now();
        let written: HashSet<SchoolId> = match self.write(decisions, &moves, now) {
            Ok(written) => written.into_iter().collect(),
            Err(error) => {
                self.forget(moves.iter().map(|own| own.school));
                return Err(error);
            }
        };
        self.take_in(decisions, &moves, &written);
        let missed = moves.iter().map(|own| own.school);
        self.has_missed(missed.filter(|school| !written.contains(school)).collect());
        Ok(Some(began))
    }

    fn missed(&mut self) -> Vec<SchoolId> {
        std::mem::take(&mut self.missed)
    }

    fn close(&mut self) {
        let _ = self.unlock("ROLLBACK");
        self.conn = None;
        // Lets the connection say goodbye.
        self.runtime
            .block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
    }
}

impl Facts for Backend {
    type Error = StoreError;

    fn tail(&mut self, school: SchoolId) -> Result<Tail, StoreError> {
        Ok(self.known(school)?.tail)
    }

    fn state(&mut self, address: &Address) -> Result<Option<&Stored>, StoreError> {
        if !self.is_cached(address) {
            self.known(address.0)?;
            self.load_states(std::slice::from_ref(address))?;
        }
        let cached = self.states.get(address);
        Ok(cached.and_then(|cached| cached.stored.as_ref()))
    }

    fn count(&mut self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        let generation = self.known(school)?.generation;
        if let Some((own, count)) = self.counts.get(&(school, kind))
            && *own == generation
        {
            return Ok(*count);
        }
        let rows: Vec<i64> = self.ask(async |conn| {
            counts::table
                .filter(counts::school_id.eq(school.get()))
                .filter(counts::what.eq(kind.collection()))
                .select(counts::count)
                .load(conn)
                .await
        })?;
        let count = rows.into_iter().map(unsigned).sum();
        self.counts.put((school, kind), (generation, count));
        Ok(count)
    }

    fn holder(
        &mut self,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> Result<Option<SubjectId>, StoreError> {
        self.known(school)?;
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

    fn history(
        &mut self,
        school: SchoolId,
        kind: Kind,
        category: &Arc<str>,
    ) -> Result<Option<History>, StoreError> {
        let generation = self.known(school)?.generation;
        let key = (school, Arc::clone(category));
        let is_cached = self
            .past
            .get(&key)
            .is_some_and(|(own, _)| *own == generation);
        if !is_cached {
            let rows: Vec<Option<String>> = self.ask(async |conn| {
                subjects::table
                    .filter(subjects::school_id.eq(school.get()))
                    .filter(subjects::kind.eq(kind.collection()))
                    .filter(subjects::category.eq(&**category))
                    .filter(subjects::past.is_not_null())
                    .order(subjects::finished_at.desc())
                    .limit(signed(config::HISTORY_SAMPLE))
                    .select(subjects::past)
                    .load(conn)
                    .await
            })?;
            let read = |text: String| serde_json::from_str(&text);
            let past: Result<VecDeque<Past>, _> = rows.into_iter().flatten().map(read).collect();
            let past = past.map_err(|_| database_error(unreadable("a duration")))?;
            self.past.put(key.clone(), (generation, past));
        }
        let past = self.past.get_mut(&key);
        Ok(past.and_then(|(_, past)| History::of(past.make_contiguous())))
    }

    fn key(&mut self, school: SchoolId, key: &str) -> Result<Option<KeyUse>, StoreError> {
        self.known(school)?;
        if self.unused_keys.contains(&(school, key.to_owned())) {
            return Ok(None);
        }
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
        self.known(*school)?;
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
        self.known(school)?;
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
}
