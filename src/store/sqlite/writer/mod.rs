//! The one writer: group commit.
//!
//! It takes what waits, school by school in [`turns`], judges the commands one after the other against cached states,
//! writes states and events of the whole group in one transaction, hands the events to the dispatcher and
//! only then answers those of whom all is carried out. The judging comes before the transaction, so that a refused command has written
//! nothing and the writer knows whether the group holds a milestone, which must reach the disk before it
//! is acknowledged. The caches learn of a group after its commit: if it fails, it had no effect.
//!
//! Keeps invariants 1 and 2. Nobody else may write to the tables while it runs.

mod judge;
mod states;
mod turns;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, SubsecRound, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel::sqlite::SqliteConnection;
use lru::LruCache;
use tokio::sync::{mpsc, oneshot};

use self::judge::{Group, Moment};
use self::states::States;
use self::turns::{Queue, Round, Turns};
use super::answers;
use super::events::EventRow;
use super::life::{self, Life, set_uptime};
use super::lock::DatabaseLock;
use super::schema::{events, idempotency_keys};
use super::sweep::{Retention, sweep};
use super::table::{millis, table};
use super::upsert::upsert;
use super::violations;
use super::{BUSY_TIMEOUT_MS, database_error};
use crate::config::{self, Settings, Synchronous};
use crate::id::{Kind, SchoolId};
use crate::kind::job::Past;
use crate::kind::{self, Limits};
use crate::store::{Allowance, CommandError, Committed, Envelope, Meter, Receipt, StoreError};

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;
type Receipts = Vec<Result<Receipt, CommandError>>;

/// What can be asked of the writer.
pub(super) enum Work {
    Append(Submission),
    Sweep {
        retention: Retention,
        now: DateTime<Utc>,
        answer: Answer<bool>,
    },
    /// A small write of its own, which nobody needs to find after a power loss.
    Aside(Box<dyn FnOnce(&mut SqliteConnection) + Send>),
    SaveUptime(Answer<()>),
    /// Whether it can write.
    Ping(Answer<()>),
    Close(Answer<()>),
}

/// Commands of one request.
pub(super) struct Submission {
    pub(super) school: SchoolId,
    pub(super) commands: Vec<Envelope>,
    pub(super) allowance: Arc<Allowance>,
    pub(super) answer: Answer<Receipts>,
}

pub(super) struct Writer {
    conn: SqliteConnection,
    life: Life,
    limits: Limits,
    synchronous: Synchronous,
    committed: Committed,
    meter: Arc<Meter>,
    /// Whether the connection now waits for the disk at each commit.
    waits_for_disk: bool,
    /// Whose commands come next.
    turns: Turns,
    tails: LruCache<SchoolId, Tail>,
    /// How many subjects a school has.
    counts: LruCache<(SchoolId, Kind), u64>,
    /// And how many it may have.
    most: Vec<(Kind, u64, &'static str)>,
    states: States,
    past: LruCache<(SchoolId, Arc<str>), VecDeque<Past>>,
    /// The last school that the retention sweep has visited in this round.
    swept_school: i64,
    /// Whether the database was where it was opened when that was looked at last.
    is_in_place: bool,
    /// After `conn`: see [`DatabaseLock`].
    lock: Arc<DatabaseLock>,
}

/// The end of a school's log.
#[derive(Debug, Clone, Copy)]
struct Tail {
    /// The newest `seq`.
    head: u64,
    /// Bytes of all events that are kept.
    bytes: u64,
}

/// A row of `schools`; its floor is moved by the sweep alone.
pub(super) struct SchoolRow {
    school_id: i64,
    floor: i64,
    head: i64,
    bytes: i64,
}

upsert! {
    /// Moves a school's head, or begins its log.
    UpsertHead<'a>(SchoolRow) into "schools" by (school_id: BigInt) once (floor: BigInt) set (head: BigInt, bytes: BigInt)
}

fn cache<K: std::hash::Hash + Eq, V>(capacity: usize) -> LruCache<K, V> {
    LruCache::new(NonZeroUsize::new(capacity).expect("a cache has room"))
}

impl Writer {
    pub(super) fn new(
        conn: SqliteConnection,
        lock: Arc<DatabaseLock>,
        life: Life,
        settings: &Settings,
        committed: Committed,
        meter: Arc<Meter>,
    ) -> Writer {
        Writer {
            conn,
            life,
            limits: settings.limits(),
            synchronous: settings.synchronous,
            committed,
            meter,
            waits_for_disk: true,
            turns: Turns::default(),
            tails: cache(config::SCHOOL_CACHE),
            counts: cache(config::SCHOOL_CACHE * kind::KINDS.len()),
            most: kind::KINDS
                .iter()
                .filter_map(|kind| {
                    let (most, setting) = settings.most_of(*kind)?;
                    Some((*kind, most, setting))
                })
                .collect(),
            states: States::default(),
            past: cache(config::SCHOOL_CACHE),
            swept_school: 0,
            is_in_place: true,
            lock,
        }
    }

    /// Works until it is told to close, and returns whom to answer then; or until every handle of the store is
    /// gone. What was asked before is done.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Work>) -> Option<Answer<()>> {
        let mut closed = None;
        loop {
            let mut next = match (&closed, self.turns.is_empty()) {
                (Some(_), true) => break,
                (Some(_), false) => None,
                (None, false) => queue.try_recv().ok(),
                (None, true) => match queue.blocking_recv() {
                    Some(work) => Some(work),
                    None => return None,
                },
            };
            // All that waits, so that the turns are between all schools; but not what comes meanwhile without end.
            for _ in 0..config::WRITER_QUEUE {
                let Some(work) = next else {
                    break;
                };
                closed = self.take_up(work);
                next = match closed {
                    Some(_) => None,
                    None => queue.try_recv().ok(),
                };
            }
            if !self.turns.is_empty() {
                self.commit();
            }
        }
        self.mark_as_closed();
        closed
    }

    /// Lets commands wait for their turn and does anything else at once: order matters to nobody between these.
    /// Returns whom to answer when it is to close.
    fn take_up(&mut self, work: Work) -> Option<Answer<()>> {
        match work {
            Work::Append(submission) => self.turns.add(submission),
            Work::Sweep {
                retention,
                now,
                answer,
            } => {
                let swept = self.sweep(&retention, now);
                let _ = answer.send(swept.map_err(database_error));
            }
            Work::Aside(write) => {
                if let Err(error) = self.wait_for_disk(self.synchronous == Synchronous::Full) {
                    tracing::warn!(%error, "the database does not take a setting");
                }
                write(&mut self.conn);
            }
            Work::SaveUptime(answer) => {
                let _ = answer.send(self.save_uptime().map_err(database_error));
            }
            Work::Ping(answer) => {
                let _ = answer.send(self.ping());
            }
            Work::Close(answer) => return Some(answer),
        }
        None
    }

    /// Carries out a group, of each school a slice, and answers those of whom all is done.
    fn commit(&mut self) {
        let began = Instant::now();
        let now = Moment {
            at: Utc::now().trunc_subsecs(3),
            uptime: self.life.uptime.now(),
        };
        let mut group = Group::default();
        let mut round = self.turns.begin();
        let judged = self.judge_round(&mut round, &mut group, now);
        let placed = judged
            .map_err(database_error)
            .and_then(|()| self.check_place());
        let written = placed.and_then(|()| self.write(&mut group, now).map_err(database_error));
        match &written {
            Ok(()) if group.events.is_empty() => {}
            Ok(()) => {
                self.meter.committed(group.events.len(), began.elapsed());
                // Fails only when the dispatcher has ended, and then nobody listens.
                let _ = self.committed.blocking_send(group.events);
            }
            // Told when it was noticed.
            Err(StoreError::Displaced) => {}
            Err(error) => tracing::error!(%error, "a commit failed and had no effect"),
        }
        self.turns.settle(round, &written);
    }

    fn judge_round(
        &mut self,
        round: &mut Round,
        group: &mut Group,
        now: Moment,
    ) -> QueryResult<()> {
        while let Some((school, mut queue)) = self.turns.next(round, group.size) {
            let judged = self.judge_turn(round, group, school, &mut queue, now);
            round.served(school, queue);
            judged?;
        }
        Ok(())
    }

    fn judge_turn(
        &mut self,
        round: &Round,
        group: &mut Group,
        school: SchoolId,
        queue: &mut Queue,
        now: Moment,
    ) -> QueryResult<()> {
        let before = group.size;
        while !round.is_over(before, group.size)
            && let Some((envelope, allowance)) = queue.next()
        {
            let receipt = self.judge(group, school, envelope, &allowance, now)?;
            queue.judged(receipt);
        }
        Ok(())
    }

    /// Writes the group in one transaction, then tells the caches.
    fn write(&mut self, group: &mut Group, now: Moment) -> QueryResult<()> {
        if group.changed.is_empty() {
            return Ok(());
        }
        self.wait_for_disk(match self.synchronous {
            Synchronous::Full => true,
            Synchronous::Normal => false,
            Synchronous::Milestone => group.milestones,
        })?;
        self.conn.immediate_transaction(|conn| {
            for ((school, kind, subject), stored) in &group.changed {
                table(*kind).write(conn, *school, subject, stored)?;
            }
            for ((school, ..), violation) in &group.violations {
                violations::write(conn, *school, violation)?;
            }
            for event in &group.events {
                diesel::insert_into(events::table)
                    .values(EventRow::from(&**event))
                    .execute(conn)?;
            }
            for (school, tail) in &group.tails {
                let row = SchoolRow {
                    school_id: school.get(),
                    floor: 0,
                    head: tail.head as i64,
                    bytes: tail.bytes as i64,
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
                        // What changed nothing has no event of its own.
                        idempotency_keys::seq.eq(match used.event.snapshot {
                            true => 0,
                            false => used.event.seq as i64,
                        }),
                        idempotency_keys::created_at.eq(millis(now.at)),
                    ))
                    .execute(conn)?;
                if used.event.snapshot {
                    answers::keep(conn, key, &used.event)?;
                }
            }
            set_uptime(conn, now.uptime)
        })?;
        for (address, stored) in group.changed.drain() {
            // What has ended, with its result, is hardly asked for again.
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
        for (school, category, own) in group.ended.drain(..) {
            if let Some(past) = self.past.get_mut(&(school, category)) {
                past.truncate(config::HISTORY_SAMPLE - 1);
                past.push_front(own);
            }
        }
        Ok(())
    }

    /// Whether the next commits wait for the disk. In WAL mode a commit that does not is still safe from a
    /// killed process, and a later one that does carries it along.
    fn wait_for_disk(&mut self, wait: bool) -> QueryResult<()> {
        if wait != self.waits_for_disk {
            let mode = if wait { "FULL" } else { "NORMAL" };
            self.conn
                .batch_execute(&format!("PRAGMA synchronous = {mode}"))?;
            self.waits_for_disk = wait;
        }
        Ok(())
    }

    fn sweep(&mut self, retention: &Retention, now: DateTime<Utc>) -> QueryResult<bool> {
        let swept = sweep(&mut self.conn, &mut self.swept_school, retention, now)?;
        for school in &swept.shortened {
            self.tails.pop(school);
        }
        for address in &swept.gone {
            self.states.pop(address);
            if let Some(count) = self.counts.get_mut(&(address.0, address.1)) {
                *count -= 1;
            }
        }
        Ok(swept.more)
    }

    /// It waits for no disk, whatever the settings say, and for nobody's lock: there is little to lose, and publishers
    /// would wait behind it.
    fn save_uptime(&mut self) -> QueryResult<()> {
        // Looked at here, too, so that it is noticed while nobody publishes. The change alone is told.
        let _ = self.check_place();
        self.wait_for_disk(false)?;
        self.conn.batch_execute("PRAGMA busy_timeout = 0")?;
        let saved = set_uptime(&mut self.conn, self.life.uptime.now());
        self.conn
            .batch_execute(&format!("PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}"))?;
        saved
    }

    /// A mark that stays makes the next start check the database.
    fn mark_as_closed(&mut self) {
        match life::end(&mut self.conn, &self.life) {
            Ok(generation) => self.lock.remember(self.life.epoch, generation),
            Err(error) => tracing::warn!(%error, "the database could not be marked as closed"),
        }
    }

    fn ping(&mut self) -> Result<(), StoreError> {
        self.check_place()?;
        self.conn.batch_execute("SELECT 1").map_err(database_error)
    }

    /// Fails while the files are not where they were opened: what would be written to them is lost. Told once.
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
}
