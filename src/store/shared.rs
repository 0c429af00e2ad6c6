//! The backend of a writer for a database that other nodes also write to: it caches what the node knows about each
//! school, and detects when that is outdated.
//!
//! A node has several writers, and each school always uses the same one, so that several commits are in flight at once
//! and a school's commands keep their order. Another node may write at any time. Each write to a school replaces the
//! *stamp* of its row, a random number. So what is cached of a school is valid only while its row has the stamp that
//! was loaded with it. Every commit compares the two.
//!
//! 1. A school is *known* while its stamp is cached. Everything else about it is loaded after the stamp and never before,
//!    so it is at least as new.
//! 2. If the stamp has changed, the school is *missed*: the commit conflicts with a write of another node, and leaves the
//!    school out. What is cached of the school is discarded, and the writer decides again. After [`MISSES_MAX`]
//!    consecutive misses, its row is locked before the decisions, so that no other node can write to it in between.
//! 3. A command that writes nothing, such as a rejected one or a repetition, is also answered only if its school still
//!    has the stamp: otherwise, the decision may not have taken a write of another node into account.
//! 4. If the connection breaks during a commit, the commit may or may not have taken effect. [`Database::settle`] finds
//!    out, and makes sure that a commit that has not taken effect cannot do so later. If the stamp was replaced since,
//!    the events and idempotency keys in the database show whether the commit took effect; see [`Traces`].
//!
//! Deliberately absent: SQL. A [`Database`] loads and writes. The simulation implements it as well.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use lru::LruCache;

use super::states::{States, Weighed};
use crate::config::{self, MISSES_MAX, STATE_BASE_BYTES};
use crate::id::{Kind, Place, SchoolId, SubjectId};
use crate::kind::job::{History, Past};
use crate::kind::{self, Part};
use crate::log::decide::Decisions;
use crate::log::facts::{Address, Facts, KeyUse, Moment, Stored, Tail};
use crate::log::{Envelope, StoreError, writer};

/// A school's row.
#[derive(Debug, Clone, Copy)]
pub struct SchoolRow {
    /// Replaced by every write of the school.
    pub stamp: i64,
    /// The end of its log.
    pub tail: Tail,
}

/// An update of a school's row: its expected stamp, and its new content.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// The school.
    pub school: SchoolId,
    /// The stamp on which the decisions are based; `None` if the school had no row.
    pub expected: Option<i64>,
    /// The new stamp.
    pub stamp: i64,
    /// The place of the newest event after the write.
    pub head: Place,
}

/// What the database contains of a group whose write has failed.
#[derive(Debug, Default)]
pub struct Traces {
    /// Its events that are in the log.
    pub events: HashSet<(SchoolId, Place)>,
    /// Its idempotency keys that are in use, with their fingerprints.
    pub keys: HashMap<(SchoolId, String), String>,
}

impl Traces {
    /// Returns whether the group was written to this school, whose stamp was replaced since. All events and keys must be
    /// present, because events alone are not proof: another node may have carried out an equal command in the same
    /// millisecond. Then its event has the same place, but its key is a different one.
    pub fn show(&self, group: &Decisions, school: SchoolId) -> bool {
        let mut events = group.events.iter().filter(|event| event.school == school);
        let has_events = events.clone().next().is_some();
        let mut keys = group.keys.iter().filter(|(key, _)| key.0 == school);
        has_events
            && events.all(|event| self.events.contains(&(school, event.place())))
            && keys.all(|(key, new)| self.keys.get(key) == Some(&new.fingerprint))
    }
}

/// A connection to a database that several nodes write to. It is reopened whenever necessary.
pub trait Database: Send + 'static {
    /// Returns the current time.
    fn now(&self) -> Moment;

    /// Moves the uptime ahead to that of the other nodes, if the clock of this one may be behind.
    fn advance_uptime(&mut self) -> Result<(), StoreError>;

    /// Returns a stamp that no other write has.
    fn stamp(&mut self) -> i64 {
        stamp()
    }

    /// Makes sure that there is a connection.
    fn connect(&mut self) -> Result<(), StoreError>;

    /// Begins a transaction that locks the rows which [`Database::schools`] loads, until [`Database::write`] or
    /// [`Database::unlock`]. It also ends if the connection breaks.
    fn lock(&mut self) -> Result<(), StoreError>;

    /// Ends the transaction that holds locks, if there is one.
    fn unlock(&mut self) -> Result<(), StoreError>;

    /// Returns the rows of these schools that have one.
    fn schools(&mut self, ids: &[SchoolId]) -> Result<HashMap<SchoolId, SchoolRow>, StoreError>;

    /// Returns the states of these subjects that exist.
    fn states(&mut self, addresses: &[Address]) -> Result<HashMap<Address, Stored>, StoreError>;

    /// Returns which of these idempotency keys were used.
    fn used_keys(
        &mut self,
        keys: &[(SchoolId, &str)],
    ) -> Result<HashSet<(SchoolId, String)>, StoreError>;

    /// Returns how many subjects of a kind a school has.
    fn count(&mut self, school: SchoolId, kind: Kind) -> Result<u64, StoreError>;

    /// Returns which subject of a kind holds this exclusive resource.
    fn holder(
        &mut self,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> Result<Option<SubjectId>, StoreError>;

    /// Returns the history entries of the newest successfully completed subjects of a category, at most
    /// [`HISTORY_SAMPLE`](config::HISTORY_SAMPLE); the newest first.
    fn past(
        &mut self,
        school: SchoolId,
        kind: Kind,
        category: &str,
    ) -> Result<VecDeque<Past>, StoreError>;

    /// Returns an earlier use of an idempotency key.
    fn key(&mut self, school: SchoolId, key: &str) -> Result<Option<KeyUse>, StoreError>;

    /// Returns a part of a subject by its number.
    fn part(&mut self, address: &Address, number: u64) -> Result<Option<Part>, StoreError>;

    /// Returns whether any part of the kind's subjects in the school has this publisher-assigned id.
    fn has_part(&mut self, school: SchoolId, kind: Kind, own_id: &str) -> Result<bool, StoreError>;

    /// Writes what was decided for the schools that still have the expected stamps, in one transaction, and ends the
    /// transaction that holds locks. Returns these schools. If it fails, the transaction may have taken effect
    /// nevertheless, or may do so later.
    fn write(
        &mut self,
        group: &Decisions,
        moves: &[Move],
        now: Moment,
    ) -> Result<Vec<SchoolId>, StoreError>;

    /// Finds out which schools a failed [`Database::write`] has written, and makes sure that the others are not written
    /// later. Fails with [`StoreError::Unknown`] if that is impossible for a long time.
    fn settle(&mut self, group: &Decisions, moves: &[Move]) -> Result<Vec<SchoolId>, StoreError>;

    /// Closes the connection cleanly.
    fn close(&mut self);
}

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
pub struct Backend<D> {
    database: D,
    known: LruCache<SchoolId, Known>,
    states: States<Cached>,
    counts: LruCache<(SchoolId, Kind), (u64, u64)>,
    past: LruCache<(SchoolId, Arc<str>), (u64, VecDeque<Past>)>,
    /// Keys that were not in use when the commands in progress were prepared.
    unused_keys: HashSet<(SchoolId, String)>,
    generations: u64,
    /// Schools whose facts the decisions in progress depend on.
    consulted: BTreeSet<SchoolId>,
    /// Schools that the last commit missed: their stamps had changed.
    missed: Vec<SchoolId>,
    /// The number of consecutive misses of each school.
    misses: HashMap<SchoolId, u32>,
}

fn cache<K: std::hash::Hash + Eq, V>(capacity: usize) -> LruCache<K, V> {
    LruCache::new(NonZeroUsize::new(capacity).expect("a cache has room"))
}

/// Returns a stamp that no other write has.
pub fn stamp() -> i64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    i64::from_le_bytes(bytes)
}

impl<D: Database> Backend<D> {
    /// Creates a backend that knows nothing yet, and caches at most this many bytes of states.
    pub fn new(database: D, state_cache_bytes: usize) -> Backend<D> {
        Backend {
            database,
            known: cache(config::SCHOOL_CACHE),
            states: States::new(state_cache_bytes),
            counts: cache(config::SCHOOL_CACHE * kind::KINDS.len()),
            past: cache(config::SCHOOL_CACHE),
            unused_keys: HashSet::new(),
            generations: 0,
            consulted: BTreeSet::new(),
            missed: Vec::new(),
            misses: HashMap::new(),
        }
    }

    /// Returns the database.
    pub fn database(&mut self) -> &mut D {
        &mut self.database
    }

    /// Returns what is known of a school, and loads it if necessary.
    fn known(&mut self, school: SchoolId) -> Result<Known, StoreError> {
        self.consulted.insert(school);
        if let Some(known) = self.known.get(&school) {
            return Ok(*known);
        }
        self.load_schools(&[school])?;
        Ok(*self.known.get(&school).expect("it was loaded"))
    }

    fn load_schools(&mut self, ids: &[SchoolId]) -> Result<(), StoreError> {
        let rows = self.database.schools(ids)?;
        for id in ids {
            self.generations += 1;
            let row = rows.get(id);
            let known = Known {
                stamp: row.map(|row| row.stamp),
                tail: row.map_or_else(Tail::default, |row| row.tail),
                generation: self.generations,
            };
            self.known.put(*id, known);
        }
        Ok(())
    }

    /// Loads states, as of what is known of their schools.
    fn load_states(&mut self, addresses: &[Address]) -> Result<(), StoreError> {
        let mut found = self.database.states(addresses)?;
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

    fn load_unused_keys(&mut self, keys: &[(SchoolId, &str)]) -> Result<(), StoreError> {
        let used = self.database.used_keys(keys)?;
        let keys = keys
            .iter()
            .map(|(school, key)| (*school, (*key).to_owned()));
        self.unused_keys
            .extend(keys.filter(|key| !used.contains(key)));
        Ok(())
    }

    /// Loads what is not known, also of the time, and locks the rows if one of the schools was missed too often.
    fn load(
        &mut self,
        schools: &[SchoolId],
        mut addresses: Vec<Address>,
        keys: &[(SchoolId, &str)],
    ) -> Result<(), StoreError> {
        let is_contended = |school: &SchoolId| {
            self.misses
                .get(school)
                .is_some_and(|misses| *misses >= MISSES_MAX)
        };
        if schools.iter().any(is_contended) {
            self.forget(schools.iter().copied());
            self.database.lock()?;
        }
        self.database.advance_uptime()?;
        let unknown = schools.iter().copied();
        let unknown: Vec<SchoolId> = unknown
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

    /// Discards what is known of schools, because another node has written to them.
    fn forget(&mut self, schools: impl IntoIterator<Item = SchoolId>) {
        for school in schools {
            self.known.pop(&school);
        }
    }

    /// Records that schools were missed, and discards what is known of them.
    fn has_missed(&mut self, schools: impl IntoIterator<Item = SchoolId>) {
        for school in schools {
            *self.misses.entry(school).or_default() += 1;
            self.forget([school]);
            self.missed.push(school);
        }
    }

    /// Compares the stamps of schools to which nothing is written. Those whose stamp has changed are missed.
    fn compare(&mut self, schools: &[SchoolId]) -> Result<(), StoreError> {
        if schools.is_empty() {
            return Ok(());
        }
        let rows = self.database.schools(schools)?;
        for school in schools {
            let stamp = rows.get(school).map(|row| row.stamp);
            match self.known.peek(school) {
                Some(known) if known.stamp == stamp => {
                    self.misses.remove(school);
                }
                _ => self.has_missed([*school]),
            }
        }
        Ok(())
    }

    /// Writes the group. Returns the schools that were written.
    fn write(
        &mut self,
        group: &Decisions,
        moves: &[Move],
        now: Moment,
    ) -> Result<Vec<SchoolId>, StoreError> {
        // Reconnecting is safe: the write compares stamps, also for decisions that were made over a connection that has
        // since broken.
        self.database.connect()?;
        let error = match self.database.write(group, moves, now) {
            Ok(written) => return Ok(written),
            Err(error) => error,
        };
        tracing::warn!(%error, "a commit failed; checking whether it took effect");
        let written = self.database.settle(group, moves)?;
        match error {
            StoreError::Unavailable(_) => Ok(written),
            // Another attempt would fail in the same way.
            error if written.is_empty() => Err(error),
            _ => Ok(written),
        }
    }

    /// Updates the caches from a written group.
    fn update_caches(
        &mut self,
        group: &mut Decisions,
        moves: &[Move],
        written: &HashSet<SchoolId>,
    ) {
        for moved in moves.iter().filter(|moved| written.contains(&moved.school)) {
            let tail = group.tails.get(&moved.school).copied();
            if let Some(known) = self.known.get_mut(&moved.school) {
                known.stamp = Some(moved.stamp);
                known.tail = tail.unwrap_or(known.tail);
            }
            self.misses.remove(&moved.school);
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
        for (school, category, newest) in group.past.drain(..) {
            if let Some((_, past)) = self.past.get_mut(&(school, category)) {
                past.truncate(config::HISTORY_SAMPLE - 1);
                past.push_front(newest);
            }
        }
        group.events.retain(|event| written.contains(&event.school));
    }

    /// Returns the moves of the schools of a group.
    fn moves(&mut self, group: &Decisions) -> Result<Vec<Move>, StoreError> {
        let of_states = group.states.keys().map(|(school, ..)| *school);
        let of_keys = group.keys.keys().map(|(school, _)| *school);
        let schools: BTreeSet<SchoolId> = of_states.chain(of_keys).collect();
        let mut moves = Vec::with_capacity(schools.len());
        for school in schools {
            let known = self.known(school)?;
            let tail = group.tails.get(&school);
            moves.push(Move {
                school,
                expected: known.stamp,
                stamp: self.database.stamp(),
                head: tail.map_or(known.tail.head, |tail| tail.head),
            });
        }
        Ok(moves)
    }
}

impl<D: Database> writer::Backend for Backend<D> {
    fn now(&self) -> Moment {
        self.database.now()
    }

    fn prepare(
        &mut self,
        upcoming: &mut dyn Iterator<Item = (SchoolId, &Envelope)>,
    ) -> Result<(), StoreError> {
        // The previous decisions may have failed and left locks. If unlocking fails, the connection is gone, and its
        // locks with it.
        let _ = self.database.unlock();
        self.unused_keys.clear();
        self.consulted.clear();
        let (mut schools, mut addresses, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (school, envelope) in upcoming {
            if schools.last() != Some(&school) {
                schools.push(school);
            }
            addresses.push((school, envelope.command.kind(), envelope.subject.clone()));
            let key = envelope.idempotency.as_ref();
            keys.extend(key.map(|idempotency| (school, idempotency.key.as_str())));
        }
        // The connection may have broken since it was last used. Then the second attempt opens a new one.
        let loaded = self.load(&schools, addresses.clone(), &keys);
        loaded.or_else(|_| self.load(&schools, addresses, &keys))?;
        // Loading has marked schools as consulted, but not every prepared command is carried out in this round. The
        // decisions mark the schools on which they depend.
        self.consulted.clear();
        Ok(())
    }

    fn commit(
        &mut self,
        decisions: &mut Decisions,
        now: Moment,
    ) -> Result<Option<Instant>, StoreError> {
        let moves = self.moves(decisions)?;
        let is_moved = |school: &SchoolId| moves.iter().any(|moved| moved.school == *school);
        let mut unwritten: Vec<SchoolId> =
            std::mem::take(&mut self.consulted).into_iter().collect();
        unwritten.retain(|school| !is_moved(school));
        self.compare(&unwritten)?;
        if moves.is_empty() {
            self.database.unlock()?;
            return Ok(None);
        }
        let began = Instant::now();
        let written: HashSet<SchoolId> = match self.write(decisions, &moves, now) {
            Ok(written) => written.into_iter().collect(),
            Err(error) => {
                self.missed.clear();
                self.forget(moves.iter().map(|moved| moved.school));
                return Err(error);
            }
        };
        self.update_caches(decisions, &moves, &written);
        let missed = moves.iter().map(|moved| moved.school);
        self.has_missed(missed.filter(|school| !written.contains(school)));
        Ok(Some(began))
    }

    fn missed(&mut self) -> Vec<SchoolId> {
        std::mem::take(&mut self.missed)
    }

    fn close(&mut self) {
        self.database.close();
    }
}

impl<D: Database> Facts for Backend<D> {
    type Error = StoreError;

    fn tail(&mut self, school: SchoolId) -> Result<Tail, StoreError> {
        Ok(self.known(school)?.tail)
    }

    fn state(&mut self, address: &Address) -> Result<Option<&Stored>, StoreError> {
        self.known(address.0)?;
        if !self.is_cached(address) {
            self.load_states(std::slice::from_ref(address))?;
        }
        let cached = self.states.get(address);
        Ok(cached.and_then(|cached| cached.stored.as_ref()))
    }

    fn count(&mut self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        let generation = self.known(school)?.generation;
        if let Some((cached, count)) = self.counts.get(&(school, kind))
            && *cached == generation
        {
            return Ok(*count);
        }
        let count = self.database.count(school, kind)?;
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
        self.database.holder(school, kind, what)
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
            .is_some_and(|(cached, _)| *cached == generation);
        if !is_cached {
            let past = self.database.past(school, kind, category)?;
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
        self.database.key(school, key)
    }

    fn part(&mut self, address: &Address, number: u64) -> Result<Option<Part>, StoreError> {
        self.known(address.0)?;
        self.database.part(address, number)
    }

    fn has_part(&mut self, school: SchoolId, kind: Kind, own_id: &str) -> Result<bool, StoreError> {
        self.known(school)?;
        self.database.has_part(school, kind, own_id)
    }
}
