//! The database that the nodes share: it compares stamps as Postgres does, may fail before a write, lose the answer to it,
//! or carry it out later.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use chrono::{DateTime, TimeDelta};
use fastrand::Rng;
use tidings::event::{Class, Draft, Event};
use tidings::id::{Kind, SchoolId, SubjectId};
use tidings::kind::Part;
use tidings::kind::job::{JOB_PROGRESS, KIND, Past};
use tidings::log::decide::{Decisions, NewKey};
use tidings::log::facts::{Address, Answered, Facts, KeyUse, Moment, Stored, Tail};
use tidings::log::writer::Writer;
use tidings::log::{Log, StoreError};
use tidings::store::shared::{self, Backend, Move, SchoolRow, Traces};
use tidings::uptime::Uptime;

use super::super::Fault;
use super::super::consumer::Offsets;
use super::super::ledger::{Ledger, schools};
use super::super::publisher::COMMIT_MILLIS;
use super::bus::Exchange;
use crate::support::memory::Memory;

/// How many of the last states of the database a failover may go back to.
const KEPT: usize = 6;

/// A node's writer.
pub(super) type NodeWriter = Arc<Mutex<Writer<Backend<Client>>>>;

/// What all nodes share in addition to the ledger.
pub(super) struct Shared {
    pub(super) ledger: Arc<Ledger>,
    pub(super) exchange: Arc<Exchange>,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    now: Rows,
    /// The last states, newest last, each with the heads of the logs and the offsets of the notifier.
    kept: VecDeque<(Rows, HashMap<SchoolId, u64>, Offsets)>,
    /// Writes that were sent, and may be carried out later.
    in_flight: Vec<Group>,
    commits: i64,
    /// The rows are locked by a node whose writer is at work.
    is_locked: bool,
    is_away: bool,
    is_reliable: bool,
    /// Writers with work, which may run while another one waits for an answer.
    rivals: Vec<NodeWriter>,
    broken: Option<String>,
}

#[derive(Default, Clone)]
struct Rows {
    memory: Memory,
    stamps: HashMap<SchoolId, i64>,
}

/// A write of a group.
#[derive(Clone)]
struct Group {
    moves: Vec<Move>,
    events: Vec<Arc<Event>>,
    states: Vec<(Address, Stored)>,
    tails: HashMap<SchoolId, Tail>,
    keys: Vec<((SchoolId, String), KeyUse)>,
    past: Vec<(SchoolId, Arc<str>, Past)>,
    parts: Vec<((Address, u64), Part)>,
}

impl Group {
    fn of(decisions: &Decisions, moves: &[Move]) -> Group {
        let keys = decisions.keys.iter().map(|(key, new)| {
            let used = KeyUse {
                fingerprint: new.fingerprint.clone(),
                answer: Answered::Event(Arc::clone(&new.event)),
            };
            (key.clone(), used)
        });
        let mut moves = moves.to_vec();
        moves.sort_unstable_by_key(|school_move| school_move.school);
        let (states, parts) = (decisions.states.iter(), decisions.parts.iter());
        Group {
            moves,
            events: decisions.events.clone(),
            states: states
                .map(|(address, stored)| (address.clone(), stored.clone()))
                .collect(),
            tails: decisions.tails.clone(),
            keys: keys.collect(),
            past: decisions.past.clone(),
            parts: parts
                .map(|(key, part)| (key.clone(), part.clone()))
                .collect(),
        }
    }
}

impl Shared {
    pub(super) fn new(ledger: Arc<Ledger>, exchange: Arc<Exchange>, seed: u64) -> Arc<Shared> {
        let state = State {
            rng: Rng::with_seed(seed),
            now: Rows::default(),
            kept: VecDeque::new(),
            in_flight: Vec::new(),
            commits: 0,
            is_locked: false,
            is_away: false,
            is_reliable: false,
            rivals: Vec::new(),
            broken: None,
        };
        Arc::new(Shared {
            ledger,
            exchange,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Fails if the database was asked to do what it never should be.
    pub(super) fn check(&self) -> Result<(), String> {
        self.state().broken.clone().map_or(Ok(()), Err)
    }

    /// Sets which writers may run while another one waits for an answer.
    pub(super) fn rivals(&self, writers: Vec<NodeWriter>) {
        self.state().rivals = writers;
    }

    pub(super) fn is_away(&self, now: bool) {
        self.state().is_away = now;
    }

    pub(super) fn works(&self) -> bool {
        !self.state().is_away
    }

    /// Nothing fails from now on, and what is in flight is lost.
    pub(super) fn becomes_reliable(&self) {
        let mut state = self.state();
        (state.is_away, state.is_reliable) = (false, true);
        state.in_flight.clear();
    }

    /// Whether writes are in flight.
    pub(super) fn has_in_flight(&self) -> bool {
        !self.state().in_flight.is_empty()
    }

    /// Carries out a write that is in flight, or loses it.
    pub(super) fn late_write(&self) {
        let mut state = self.state();
        let Some(group) = state.in_flight.pop() else {
            return;
        };
        if state.rng.bool() {
            self.carry_out(&mut state, group);
        }
    }

    /// Returns to an earlier state, as a failover to a standby does that has not received everything. Returns the heads of
    /// the logs in that state.
    pub(super) fn fail_over(&self) -> Option<HashMap<SchoolId, u64>> {
        let mut state = self.state();
        let count = state.kept.len();
        if count == 0 {
            return None;
        }
        let left = state.rng.usize(0..count);
        state.kept.truncate(left + 1);
        let (rows, heads, offsets) = state.kept.back().cloned().unwrap();
        state.now = rows;
        state.in_flight.clear();
        drop(state);
        self.ledger.disk.offsets(|current| *current = offsets);
        Some(heads)
    }

    /// Lets a write that is in flight or the writer of another node go first, now and then.
    fn give_way(&self) {
        let mut state = self.state();
        if !state.is_locked && !state.in_flight.is_empty() && state.rng.u8(0..4) == 0 {
            drop(state);
            self.late_write();
            state = self.state();
        }
        if state.is_locked || state.rivals.is_empty() || state.rng.u8(0..4) != 0 {
            return;
        }
        let count = state.rivals.len();
        let index = state.rng.usize(0..count);
        let rival = Arc::clone(&state.rivals[index]);
        drop(state);
        // Not if it is waiting itself.
        if let Ok(mut rival) = rival.try_lock() {
            rival.step();
        }
    }

    /// Writes the schools that have the expected stamps, and returns them.
    fn carry_out(&self, state: &mut State, group: Group) -> Vec<SchoolId> {
        let is_expected = |school_move: &&Move| {
            let stamp = state.now.stamps.get(&school_move.school).copied();
            stamp == school_move.expected || self.ledger.fault == Some(Fault::UncomparedStamps)
        };
        let written: Vec<Move> = group.moves.iter().filter(is_expected).copied().collect();
        let is_written = |school: SchoolId| {
            written
                .iter()
                .any(|school_move| school_move.school == school)
        };
        let events = group
            .events
            .into_iter()
            .filter(|event| is_written(event.school));
        let events: Vec<Arc<Event>> = events.collect();
        if let Err(problem) = self.ledger.append(&events) {
            state.broken.get_or_insert(problem);
        }
        let memory = &mut state.now.memory;
        memory.states.extend(
            group
                .states
                .into_iter()
                .filter(|entry| is_written(entry.0.0)),
        );
        memory
            .tails
            .extend(group.tails.into_iter().filter(|entry| is_written(entry.0)));
        memory
            .keys
            .extend(group.keys.into_iter().filter(|entry| is_written(entry.0.0)));
        memory.parts.extend(
            group
                .parts
                .into_iter()
                .filter(|entry| is_written(entry.0.0.0)),
        );
        for (school, category, past) in group.past {
            if is_written(school) {
                memory
                    .past
                    .entry((school, category))
                    .or_default()
                    .push(past);
            }
        }
        for school_move in &written {
            state
                .now
                .stamps
                .insert(school_move.school, school_move.stamp);
        }
        state.commits += 1;
        if !written.is_empty() {
            let offsets = self.ledger.disk.offsets(|offsets| offsets.clone());
            let kept = (state.now.clone(), self.ledger.heads(), offsets);
            state.kept.push_back(kept);
            if state.kept.len() > KEPT {
                state.kept.pop_front();
            }
        }
        written
            .iter()
            .map(|school_move| school_move.school)
            .collect()
    }
}

/// The connection of a node's writer.
pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) holds_locks: bool,
    /// With the fault `StaleCache`: the first state of each subject that was read.
    pub(super) stale: HashMap<Address, Option<Stored>>,
}

impl Client {
    /// Asks the database. Another node may be first.
    fn ask(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        self.shared.give_way();
        let state = self.shared.state();
        match state.is_away {
            true => Err(StoreError::Unavailable("it is away".into())),
            false => Ok(state),
        }
    }
}

impl shared::Database for Client {
    fn now(&self) -> Moment {
        let commits = self.shared.state().commits;
        Moment {
            at: DateTime::UNIX_EPOCH + TimeDelta::milliseconds(commits * COMMIT_MILLIS),
            uptime: Uptime::from_millis(0),
        }
    }

    fn advance_uptime(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn stamp(&mut self) -> i64 {
        self.shared.state().rng.i64(..)
    }

    fn connect(&mut self) -> Result<(), StoreError> {
        self.ask().map(drop)
    }

    fn lock(&mut self) -> Result<(), StoreError> {
        self.ask()?.is_locked = true;
        self.holds_locks = true;
        Ok(())
    }

    fn unlock(&mut self) -> Result<(), StoreError> {
        if std::mem::take(&mut self.holds_locks) {
            self.shared.state().is_locked = false;
        }
        Ok(())
    }

    fn schools(&mut self, ids: &[SchoolId]) -> Result<HashMap<SchoolId, SchoolRow>, StoreError> {
        let state = self.ask()?;
        let row = |id: &SchoolId| {
            let stamp = *state.now.stamps.get(id)?;
            let tail = state.now.memory.tails.get(id).copied().unwrap_or_default();
            Some((*id, SchoolRow { stamp, tail }))
        };
        Ok(ids.iter().filter_map(row).collect())
    }

    fn states(&mut self, addresses: &[Address]) -> Result<HashMap<Address, Stored>, StoreError> {
        let state = self.ask()?;
        let of = |address: &Address| state.now.memory.states.get(address).cloned();
        let mut found: Vec<(Address, Option<Stored>)> = addresses
            .iter()
            .map(|address| (address.clone(), of(address)))
            .collect();
        drop(state);
        if self.shared.ledger.fault == Some(Fault::StaleCache) {
            for (address, stored) in &mut found {
                let first = self.stale.entry(address.clone());
                *stored = first.or_insert_with(|| stored.clone()).clone();
            }
        }
        let found = found.into_iter();
        Ok(found
            .filter_map(|(address, stored)| Some((address, stored?)))
            .collect())
    }

    fn used_keys(
        &mut self,
        keys: &[(SchoolId, &str)],
    ) -> Result<HashSet<(SchoolId, String)>, StoreError> {
        let state = self.ask()?;
        let owned = keys
            .iter()
            .map(|(school, key)| (*school, (*key).to_owned()));
        Ok(owned
            .filter(|key| state.now.memory.keys.contains_key(key))
            .collect())
    }

    fn count(&mut self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        self.ask()?.now.memory.count(school, kind)
    }

    fn holder(
        &mut self,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> Result<Option<SubjectId>, StoreError> {
        self.ask()?.now.memory.holder(school, kind, what)
    }

    fn past(
        &mut self,
        school: SchoolId,
        _: Kind,
        category: &str,
    ) -> Result<VecDeque<Past>, StoreError> {
        let state = self.ask()?;
        let past = state.now.memory.past.get(&(school, category.into()));
        Ok(past.into_iter().flatten().rev().cloned().collect())
    }

    fn key(&mut self, school: SchoolId, key: &str) -> Result<Option<KeyUse>, StoreError> {
        self.ask()?.now.memory.key(school, key)
    }

    fn part(&mut self, address: &Address, number: u64) -> Result<Option<Part>, StoreError> {
        self.ask()?.now.memory.part(address, number)
    }

    fn has_part(&mut self, school: SchoolId, kind: Kind, own_id: &str) -> Result<bool, StoreError> {
        self.ask()?.now.memory.has_part(school, kind, own_id)
    }

    fn write(
        &mut self,
        group: &Decisions,
        moves: &[Move],
        _: Moment,
    ) -> Result<Vec<SchoolId>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let asked = self.ask().map(drop);
        let _ = shared::Database::unlock(self);
        asked?;
        let mut state = shared.state();
        let broken = || Err(StoreError::Unavailable("the connection broke".into()));
        let group = Group::of(group, moves);
        let chance = match state.is_reliable {
            true => u8::MAX,
            false => state.rng.u8(0..24),
        };
        if chance < 3 && shared.ledger.fault == Some(Fault::EarlyAnnouncement) {
            let epoch = shared.ledger.epoch();
            shared.exchange.announce_early(epoch, &group.events);
        }
        match chance {
            0 => Err(StoreError::Database("the disk is full".into())),
            1 => {
                // The server may still be at it.
                state.in_flight.push(group);
                broken()
            }
            2 => broken(),
            3..=4 => {
                shared.carry_out(&mut state, group);
                broken()
            }
            _ => Ok(shared.carry_out(&mut state, group)),
        }
    }

    /// Looks at the stamps and, where they are not those of the write, at the log and the keys, as the Postgres store does.
    fn settle(&mut self, group: &Decisions, moves: &[Move]) -> Result<Vec<SchoolId>, StoreError> {
        self.shared.give_way();
        let mut state = self.shared.state();
        if state.is_away || (!state.is_reliable && state.rng.u8(0..8) == 0) {
            return Err(StoreError::Unknown);
        }
        if self.shared.ledger.fault == Some(Fault::UnknownIsFailed) {
            return Ok(Vec::new());
        }
        let places = group.events.iter().filter_map(|event| {
            let there = self.shared.ledger.event(event.school, event.seq)?;
            Some((event.school, there.place()))
        });
        let keys = group.keys.keys().filter_map(|key| {
            let used = state.now.memory.keys.get(key)?;
            Some((key.clone(), used.fingerprint.clone()))
        });
        let traces = Traces {
            events: places.collect(),
            keys: keys.collect(),
        };
        let mut written = Vec::new();
        for school_move in moves {
            if traces.show(group, school_move.school)
                || state.now.stamps.get(&school_move.school) == Some(&school_move.stamp)
            {
                written.push(school_move.school);
            } else if self.shared.ledger.fault != Some(Fault::UnsettledWrite) {
                let new_stamp = state.rng.i64(..);
                state.now.stamps.insert(school_move.school, new_stamp);
            }
        }
        Ok(written)
    }

    fn close(&mut self) {}
}

#[test]
fn an_equal_event_of_another_node_is_no_trace_of_a_write_with_a_key() {
    let school = schools()[0];
    let draft = Draft {
        event_type: &JOB_PROGRESS,
        class: Class::Milestone,
        status: "in_progress",
        category: None,
        fields: "{}".into(),
    };
    let place = ("00000001".parse().unwrap(), 1);
    let at = DateTime::UNIX_EPOCH;
    let event = Event::new(place, school, KIND, "a".parse().unwrap(), at, draft);
    let event = Arc::new(event);
    let key = (school, "k".to_owned());
    let used = NewKey {
        fingerprint: "f".into(),
        event: Arc::clone(&event),
    };
    let mut group = Decisions::default();
    group.events.push(Arc::clone(&event));
    group.keys.insert(key.clone(), used);
    let mut traces = Traces::default();
    assert!(!traces.show(&group, school), "nothing was written");
    traces.events.insert((school, event.place()));
    assert!(!traces.show(&group, school), "the key was not written");
    traces.keys.insert(key.clone(), "other".into());
    assert!(!traces.show(&group, school), "it is of another request");
    traces.keys.insert(key, "f".into());
    assert!(traces.show(&group, school));
}
