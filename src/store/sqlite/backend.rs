//! The database behind the writer: its only writing connection, with caches of what it has written.
//!
//! The caches are updated after the commit of a group, because a group whose commit fails has no effect. Nothing else is
//! allowed to write to the tables while the writer runs.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, SubsecRound, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable};
use diesel::sqlite::SqliteConnection;
use lru::LruCache;

use super::append::append;
use super::checkpoints::Checkpoints;
use super::counts::counts;
use super::heartbeats::KnownHeartbeats;
use super::leases::HeldLeases;
use super::life::{self, Life, set_uptime};
use super::lock::DatabaseLock;
use super::nodes::KnownNodes;
use super::schema::{idempotency_keys, schools};
use super::sweep::{Found, Retention, Swept, sweep};
use super::table::{millis, place, tag_bits, unreadable, uptime_millis};
use super::tables::{parts, table};
use super::transaction::transaction;
use super::upsert::upsert;
use super::{BUSY_TIMEOUT_MS, answers, database_error, job_texts};
use crate::config::{self, Settings, Synchronous};
use crate::event::Event;
use crate::id::{Kind, SchoolId, SubjectId};
use crate::kind::job::{History, Past};
use crate::kind::{self, Part, State};
use crate::log::StoreError;
use crate::log::decide::Decisions;
use crate::log::facts::{Address, Answered, Facts, KeyUse, Moment, Stored, Tail};
use crate::log::heartbeats::{Heartbeat, Shared};
use crate::log::writer;
use crate::store::numbers::{signed, unsigned};
use crate::store::states::States;

/// See the [module-level documentation](self).
pub(super) struct Backend {
    /// Declared before `conn`, so that it is dropped first: the last connection to close copies the rest of the
    /// journal.
    checkpoints: Checkpoints,
    conn: SqliteConnection,
    life: Life,
    pub(super) leases: HeldLeases,
    pub(super) heartbeats: KnownHeartbeats,
    pub(super) nodes: KnownNodes,
    synchronous: Synchronous,
    /// Whether the connection currently waits for the disk at each commit.
    waits_for_disk: bool,
    /// Whether the connection currently waits until another program's lock on the database is released.
    waits_for_lock: bool,
    tails: LruCache<SchoolId, Tail>,
    /// How many subjects of a kind a school has.
    counts: LruCache<(SchoolId, Kind), u64>,
    states: States,
    past: LruCache<(SchoolId, Arc<str>), VecDeque<Past>>,
    /// Whether the database was in its original place at the last check.
    is_in_place: bool,
    /// Why the last write failed, for example because the disk is full. `None` if it worked.
    write_failure: Option<String>,
    /// The approximate number of pages that commits have written since the checkpoints were informed.
    uncounted: i64,
    /// Declared after `conn`, so that it is dropped later: see [`DatabaseLock`].
    lock: Arc<DatabaseLock>,
}

/// A row of `schools`; only the sweep changes its floor.
pub(super) struct SchoolRow {
    school_id: i64,
    floor: i64,
    head: i64,
    head_tag: Option<i64>,
    bytes: i64,
    uptime: i64,
}

upsert! {
    /// Moves a school's head, or creates its log.
    UpsertHead<'a>(SchoolRow) into "schools" by (school_id: BigInt) once (floor: BigInt) set (head: BigInt, head_tag: Nullable<BigInt>, bytes: BigInt, uptime: BigInt)
}

fn cache<K: std::hash::Hash + Eq, V>(capacity: usize) -> LruCache<K, V> {
    LruCache::new(NonZeroUsize::new(capacity).expect("a cache has room"))
}

/// Whether a write failed because another program has locked the database.
fn is_locked(error: &diesel::result::Error) -> bool {
    use diesel::result::Error::DatabaseError;
    matches!(error, DatabaseError(_, information) if information.message() == "database is locked")
}

impl Backend {
    pub(super) fn new(
        conn: SqliteConnection,
        checkpoints: Checkpoints,
        lock: Arc<DatabaseLock>,
        life: Life,
        settings: &Settings,
    ) -> Backend {
        Backend {
            checkpoints,
            conn,
            leases: HeldLeases::new(life.generation),
            heartbeats: KnownHeartbeats::default(),
            nodes: KnownNodes::default(),
            life,
            synchronous: settings.synchronous,
            waits_for_disk: true,
            waits_for_lock: true,
            tails: cache(config::SCHOOL_CACHE),
            counts: cache(config::SCHOOL_CACHE * kind::KINDS.len()),
            states: States::default(),
            past: cache(config::SCHOOL_CACHE),
            is_in_place: true,
            write_failure: None,
            uncounted: 0,
            lock,
        }
    }

    /// Runs a small write outside the log, which need not survive a power loss.
    pub(super) fn write_aside<T>(
        &mut self,
        write: impl FnOnce(&mut SqliteConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        let waits_for_disk = self.synchronous == Synchronous::Full;
        let set = self.wait_for_lock(true);
        if let Err(error) = set.and_then(|()| self.wait_for_disk(waits_for_disk)) {
            tracing::warn!(%error, "the database rejected a `PRAGMA`");
        }
        write(&mut self.conn).map_err(database_error)
    }

    /// Runs a small write outside the log, which is as durable as a milestone.
    pub(super) fn write_durably<T>(
        &mut self,
        write: impl FnOnce(&mut SqliteConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        self.wait_for_lock(true)
            .and_then(|()| self.wait_for_disk(self.synchronous != Synchronous::Normal))
            .map_err(database_error)?;
        write(&mut self.conn).map_err(database_error)
    }

    /// Writes the group in one transaction, then updates the caches. Returns the time at which only the commit remained.
    fn write(&mut self, group: &mut Decisions, now: Moment) -> QueryResult<Option<Instant>> {
        if group.states.is_empty() {
            return Ok(None);
        }
        self.wait_for_disk(self.must_wait_for_disk(group))?;
        let written = transaction(&mut self.conn, |conn| {
            for (address, stored) in &group.states {
                let (school, kind, subject) = address;
                let before = self.states.peek(address);
                table(*kind).write(conn, *school, subject, stored, before)?;
            }
            for (((school, kind, _), _), part) in &group.parts {
                parts(*kind)?.write(conn, *school, part)?;
            }
            append(conn, &group.events)?;
            for (school, tail) in &group.tails {
                let row = SchoolRow {
                    school_id: school.get(),
                    floor: 0,
                    head: signed(tail.head.seq),
                    head_tag: tag_bits(tail.head),
                    bytes: signed(tail.bytes),
                    uptime: uptime_millis(now.uptime),
                };
                UpsertHead(&row).execute(conn)?;
            }
            for ((school, key), used) in &group.keys {
                diesel::replace_into(idempotency_keys::table)
                    .values((
                        idempotency_keys::school_id.eq(school.get()),
                        idempotency_keys::key.eq(key),
                        idempotency_keys::fingerprint.eq(&used.fingerprint),
                        idempotency_keys::kind.eq(used.event.kind.collection()),
                        idempotency_keys::subject_id.eq(used.event.subject.as_str()),
                        // A command that changed nothing has no event.
                        idempotency_keys::seq.eq(match used.event.snapshot {
                            true => 0,
                            false => signed(used.event.seq),
                        }),
                        idempotency_keys::created_at.eq(millis(now.at)),
                    ))
                    .execute(conn)?;
                if used.event.snapshot {
                    answers::keep(conn, key, &used.event, millis(now.at))?;
                }
            }
            QueryResult::Ok(Instant::now())
        })?;
        let pages = |event: &Arc<Event>| 1 + signed(event.bytes()) / config::PAGE_BYTES;
        self.uncounted += config::COMMIT_BASE_PAGES + group.events.iter().map(pages).sum::<i64>();
        for (address, stored) in group.states.drain() {
            // Finished subjects, with their results, are hardly ever read again.
            if stored.state.is_over() {
                self.states.pop(&address);
            } else {
                self.states.put(address, stored);
            }
        }
        for (school, tail) in group.tails.drain() {
            self.tails.put(school, tail);
        }
        for (key, created) in group.created.drain() {
            if let Some(count) = self.counts.get_mut(&key) {
                *count += created;
            }
        }
        for (school, category, newest) in group.past.drain(..) {
            if let Some(past) = self.past.get_mut(&(school, category)) {
                past.truncate(config::HISTORY_SAMPLE - 1);
                past.push_front(newest);
            }
        }
        Ok(Some(written))
    }

    fn must_wait_for_disk(&self, group: &Decisions) -> bool {
        match self.synchronous {
            Synchronous::Full => true,
            Synchronous::Normal => false,
            Synchronous::Milestone => group.has_milestone,
        }
    }

    /// Sets whether the next commits wait for the disk. In WAL mode a commit that does not wait still survives a killed
    /// process, and a later commit that waits makes it durable as well.
    fn wait_for_disk(&mut self, wait: bool) -> QueryResult<()> {
        if wait != self.waits_for_disk {
            let mode = if wait { "FULL" } else { "NORMAL" };
            self.conn
                .batch_execute(&format!("PRAGMA synchronous = {mode}"))?;
            self.waits_for_disk = wait;
        }
        Ok(())
    }

    /// Sets whether the next writes wait while another program has locked the database.
    fn wait_for_lock(&mut self, wait: bool) -> QueryResult<()> {
        if wait != self.waits_for_lock {
            let timeout = if wait { BUSY_TIMEOUT_MS } else { 0 };
            self.conn
                .batch_execute(&format!("PRAGMA busy_timeout = {timeout}"))?;
            self.waits_for_lock = wait;
        }
        Ok(())
    }

    /// Removes one batch of data past its retention.
    pub(super) fn sweep(
        &mut self,
        found: &Found,
        retention: &Retention,
        now: DateTime<Utc>,
    ) -> Result<Swept, StoreError> {
        let swept = self
            .wait_for_lock(true)
            .and_then(|()| sweep(&mut self.conn, found, retention, now))
            .map_err(database_error)?;
        for school in &swept.shortened {
            self.tails.pop(school);
        }
        for address in &swept.gone {
            self.states.pop(address);
            if let Some(count) = self.counts.get_mut(&(address.0, address.1)) {
                *count -= 1;
            }
        }
        Ok(swept)
    }

    /// Saves the uptime. Regardless of the settings, waits neither for the disk nor for another connection's lock: little
    /// can be lost, and publishers would have to wait as well.
    pub(super) fn save_uptime(&mut self) -> Result<(), StoreError> {
        // Also checked here, so that a removed database is noticed while no events are published. This logs changes only.
        let _ = self.check_place();
        let saved = self
            .wait_for_disk(false)
            .and_then(|()| self.wait_for_lock(false))
            .and_then(|()| set_uptime(&mut self.conn, self.life.uptime.now()).map(Some));
        self.note_write(&saved);
        saved.map(drop).map_err(database_error)
    }

    /// Checks that the backend can write. The uptime is saved so often that the last write is recent.
    pub(super) fn ping(&mut self) -> Result<(), StoreError> {
        self.check_place()?;
        self.conn
            .batch_execute("SELECT 1")
            .map_err(database_error)?;
        match &self.write_failure {
            None => Ok(()),
            Some(error) => Err(StoreError::NotWritable(error.clone())),
        }
    }

    /// Remembers whether a write worked. `None` is that there was nothing to write. Another program's lock does not count: the
    /// write is tried again.
    fn note_write<T>(&mut self, written: &QueryResult<Option<T>>) {
        match written {
            Ok(Some(_)) => self.write_failure = None,
            Ok(None) => {}
            Err(error) if is_locked(error) => {}
            Err(error) => self.write_failure = Some(error.to_string()),
        }
    }

    /// Fails while the files are not where they were opened: data written to them would be lost. Logs only changes.
    fn check_place(&mut self) -> Result<(), StoreError> {
        let is_in_place = self.lock.is_in_place();
        if is_in_place != self.is_in_place {
            self.is_in_place = is_in_place;
            let path = self.lock.path().display();
            match is_in_place {
                true => tracing::info!(%path, "the database is back in its place"),
                false => tracing::error!(
                    %path,
                    "the database or its journal (-wal) was removed or replaced: nothing is written until the same file is back"
                ),
            }
        }
        match is_in_place {
            true => Ok(()),
            false => Err(StoreError::Displaced),
        }
    }

    /// Merges a heartbeat into the last ones of its device.
    pub(super) fn save_heartbeat(
        &mut self,
        heartbeat: Heartbeat,
    ) -> Result<Option<Shared>, StoreError> {
        let address = (heartbeat.school, heartbeat.device);
        if let Some(known) = self.shared(&address)? {
            let heard = known
                .heard
                .map_or(heartbeat.heard, |heard| heard.merged(heartbeat.heard));
            self.heartbeats.insert(address, heard);
            let heard = Some(heard);
            return Ok(Some(Shared { heard, ..known }));
        }
        Ok(None)
    }

    /// Returns what nodes share about a device.
    pub(super) fn shared(
        &mut self,
        address: &(SchoolId, SubjectId),
    ) -> Result<Option<Shared>, StoreError> {
        let heard = self.heartbeats.get(address).copied();
        let (school, id) = address.clone();
        let stored = self.state(&(school, kind::device::KIND, id))?;
        let device = stored.and_then(|stored| stored.state.device());
        Ok(device.map(|device| Shared::new(device, heard)))
    }

    fn find_key(&mut self, school: SchoolId, key: &str) -> QueryResult<Option<KeyUse>> {
        let Some(row) = answers::find_key(&mut self.conn, school, key)? else {
            return Ok(None);
        };
        let answer = match answers::find_answer(&mut self.conn, &row, self.life.epoch)? {
            Some(event) => Answered::Event(Arc::new(event)),
            // The answer was dropped, or the row was written before answers were stored.
            None => {
                let kind = kind::known_kind(&row.kind).ok_or_else(|| unreadable("a kind"))?;
                let subject = row.subject_id.parse();
                let subject = subject.map_err(|_| unreadable("a subject id"))?;
                Answered::Subject(kind, subject)
            }
        };
        Ok(Some(KeyUse {
            fingerprint: row.fingerprint,
            answer,
        }))
    }
}

impl writer::Backend for Backend {
    fn now(&self) -> Moment {
        Moment {
            at: Utc::now().trunc_subsecs(3),
            uptime: self.life.uptime.now(),
        }
    }

    fn commit(
        &mut self,
        decisions: &mut Decisions,
        now: Moment,
    ) -> Result<Option<Instant>, StoreError> {
        self.check_place()?;
        let may_restart = self.checkpoints.restarts();
        let written = self
            .wait_for_lock(true)
            .and_then(|()| self.write(decisions, now));
        self.note_write(&written);
        if may_restart && !matches!(written, Ok(Some(_))) {
            self.checkpoints.has_not_restarted();
        }
        written.map_err(database_error)
    }

    fn is_embedded(&self) -> bool {
        true
    }

    fn try_commit(
        &mut self,
        decisions: &mut Decisions,
        now: Moment,
    ) -> Option<Result<Option<Instant>, StoreError>> {
        let waits = self.must_wait_for_disk(decisions) || self.checkpoints.may_restart();
        if waits && !decisions.states.is_empty() {
            return None;
        }
        if let Err(error) = self.check_place() {
            return Some(Err(error));
        }
        let written = self
            .wait_for_lock(false)
            .and_then(|()| self.write(decisions, now));
        self.note_write(&written);
        match written {
            Err(error) if is_locked(&error) => None,
            written => Some(written.map_err(database_error)),
        }
    }

    fn answered(&mut self) {
        let pages = std::mem::take(&mut self.uncounted);
        if pages > 0 {
            self.checkpoints.committed(&mut self.conn, pages);
        }
    }

    /// If this fails, the database stays marked as open, and the next start checks it.
    fn close(&mut self) {
        if let Err(error) = self.wait_for_lock(true) {
            tracing::warn!(%error, "the database rejected a `PRAGMA`");
        }
        match life::end(&mut self.conn, &self.life) {
            Ok(generation) => self.lock.remember(self.life.epoch, generation),
            Err(error) => tracing::warn!(%error, "the database could not be marked as closed"),
        }
    }
}

impl Facts for Backend {
    type Error = StoreError;

    fn tail(&mut self, school: SchoolId) -> Result<Tail, StoreError> {
        if let Some(tail) = self.tails.get(&school) {
            return Ok(*tail);
        }
        let row: Option<(i64, Option<i64>, i64)> = schools::table
            .find(school.get())
            .select((schools::head, schools::head_tag, schools::bytes))
            .get_result(&mut self.conn)
            .optional()
            .map_err(database_error)?;
        let (head, head_tag, bytes) = row.unwrap_or_default();
        let tail = Tail {
            head: place(head, head_tag),
            bytes: unsigned(bytes),
        };
        self.tails.put(school, tail);
        Ok(tail)
    }

    fn state(&mut self, address: &Address) -> Result<Option<&Stored>, StoreError> {
        if !self.states.contains(address) {
            let (school, kind, subject) = address;
            let loaded = table(*kind).load(&mut self.conn, *school, subject);
            let Some(stored) = loaded.map_err(database_error)? else {
                return Ok(None);
            };
            self.states.put(address.clone(), stored);
        }
        Ok(self.states.get(address))
    }

    fn count(&mut self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        let key = (school, kind);
        if let Some(count) = self.counts.get(&key) {
            return Ok(*count);
        }
        // Counted once per school; after that the cache is kept up to date.
        let counts = counts(&mut self.conn, school, kind).map_err(database_error)?;
        let all = counts.iter().map(|(_, count)| count).sum();
        self.counts.put(key, all);
        Ok(all)
    }

    fn holder(
        &mut self,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> Result<Option<SubjectId>, StoreError> {
        let holder = table(kind).holder(&mut self.conn, school, what);
        holder.map_err(database_error)
    }

    fn history(
        &mut self,
        school: SchoolId,
        kind: Kind,
        category: &Arc<str>,
    ) -> Result<Option<History>, StoreError> {
        let key = (school, Arc::clone(category));
        if !self.past.contains(&key) {
            let past = table(kind)
                .past(&mut self.conn, school, category, config::HISTORY_SAMPLE)
                .map_err(database_error)?;
            self.past.put(key.clone(), past.into());
        }
        let past = self.past.get_mut(&key);
        Ok(past.and_then(|past| History::of(past.make_contiguous())))
    }

    fn key(&mut self, school: SchoolId, key: &str) -> Result<Option<KeyUse>, StoreError> {
        self.find_key(school, key).map_err(database_error)
    }

    fn part(
        &mut self,
        (school, kind, subject): &Address,
        number: u64,
    ) -> Result<Option<Part>, StoreError> {
        let parts = parts(*kind).map_err(database_error)?;
        let part = parts.find(&mut self.conn, *school, subject, number);
        part.map_err(database_error)
    }

    fn has_part(&mut self, school: SchoolId, kind: Kind, own_id: &str) -> Result<bool, StoreError> {
        let parts = parts(kind).map_err(database_error)?;
        parts
            .has(&mut self.conn, school, own_id)
            .map_err(database_error)
    }

    fn weight(&self, kind: Kind, state: &State) -> usize {
        job_texts::bytes(kind, state)
    }
}
