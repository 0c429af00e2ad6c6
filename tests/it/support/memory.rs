//! An in-memory database behind the real decisions: it stores what a store does, without SQL.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Instant;

use chrono::DateTime;
use tidings::event::Event;
use tidings::id::{Kind, SchoolId, SubjectId};
use tidings::kind::Part;
use tidings::kind::job::{History, Past};
use tidings::log::StoreError;
use tidings::log::decide::Decisions;
use tidings::log::facts::{Address, Answered, Facts, KeyUse, Moment, Stored, Tail};
use tidings::log::writer::Backend;
use tidings::uptime::Uptime;

/// Everything that was committed.
#[derive(Debug, Default, Clone)]
pub(crate) struct Memory {
    /// In commit order. The events of one group are ordered by school.
    pub(crate) events: Vec<Arc<Event>>,
    pub(crate) states: HashMap<Address, Stored>,
    pub(crate) tails: HashMap<SchoolId, Tail>,
    pub(crate) keys: HashMap<(SchoolId, String), KeyUse>,
    pub(crate) past: HashMap<(SchoolId, Arc<str>), Vec<Past>>,
    pub(crate) parts: HashMap<(Address, u64), Part>,
    /// How many of the next commits fail.
    pub(crate) failures: usize,
    /// Whether ticks are committed at once, as in SQLite.
    pub(crate) is_embedded: bool,
    /// The thread on which commits panic.
    pub(crate) panics_on: Arc<Mutex<Option<ThreadId>>>,
    /// The threads that committed, in the order of the commits.
    pub(crate) threads: Arc<Mutex<Vec<ThreadId>>>,
}

impl Memory {
    /// Stores the results of a group.
    pub(crate) fn take_in(&mut self, decisions: &mut Decisions) {
        self.events.extend(decisions.events.iter().map(Arc::clone));
        self.states.extend(decisions.states.drain());
        self.tails.extend(decisions.tails.drain());
        for (key, new) in decisions.keys.drain() {
            let used = KeyUse {
                fingerprint: new.fingerprint,
                answer: Answered::Event(new.event),
            };
            self.keys.insert(key, used);
        }
        for (school, category, past) in decisions.past.drain(..) {
            self.past.entry((school, category)).or_default().push(past);
        }
        self.parts.extend(decisions.parts.drain());
    }
}

impl Facts for Memory {
    type Error = StoreError;

    fn tail(&mut self, school: SchoolId) -> Result<Tail, StoreError> {
        Ok(self.tails.get(&school).copied().unwrap_or_default())
    }

    fn state(&mut self, address: &Address) -> Result<Option<&Stored>, StoreError> {
        Ok(self.states.get(address))
    }

    fn count(&mut self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        let of_kind = |address: &&Address| address.0 == school && address.1 == kind;
        Ok(self.states.keys().filter(of_kind).count() as u64)
    }

    fn holder(
        &mut self,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> Result<Option<SubjectId>, StoreError> {
        let holds = |(address, stored): &(&Address, &Stored)| {
            address.0 == school && address.1 == kind && stored.state.holds() == Some(what)
        };
        let holder = self.states.iter().find(holds);
        Ok(holder.map(|(address, _)| address.2.clone()))
    }

    fn history(
        &mut self,
        school: SchoolId,
        _: Kind,
        category: &Arc<str>,
    ) -> Result<Option<History>, StoreError> {
        let past = self.past.get(&(school, Arc::clone(category)));
        Ok(past.and_then(|past| History::of(past)))
    }

    fn key(&mut self, school: SchoolId, key: &str) -> Result<Option<KeyUse>, StoreError> {
        Ok(self.keys.get(&(school, key.to_owned())).cloned())
    }

    fn part(&mut self, address: &Address, number: u64) -> Result<Option<Part>, StoreError> {
        Ok(self.parts.get(&(address.clone(), number)).cloned())
    }

    fn has_part(&mut self, school: SchoolId, kind: Kind, own_id: &str) -> Result<bool, StoreError> {
        let of_kind =
            |((address, _), _): &(&(Address, u64), &Part)| (address.0, address.1) == (school, kind);
        let mut parts = self.parts.iter().filter(of_kind);
        Ok(parts.any(|(_, part)| part.own_id().is_some_and(|id| **id == *own_id)))
    }
}

impl Backend for Memory {
    fn now(&self) -> Moment {
        Moment {
            at: DateTime::UNIX_EPOCH,
            uptime: Uptime::from_millis(0),
        }
    }

    fn commit(
        &mut self,
        decisions: &mut Decisions,
        _: Moment,
    ) -> Result<Option<Instant>, StoreError> {
        if self.failures > 0 {
            self.failures -= 1;
            return Err(StoreError::Database("the disk is full".into()));
        }
        let own = thread::current().id();
        let panics = *self.panics_on.lock().unwrap() == Some(own);
        assert!(!panics, "it was asked to panic");
        self.threads.lock().unwrap().push(own);
        self.take_in(decisions);
        Ok(Some(Instant::now()))
    }

    fn is_embedded(&self) -> bool {
        self.is_embedded
    }

    fn try_commit(
        &mut self,
        decisions: &mut Decisions,
        now: Moment,
    ) -> Option<Result<Option<Instant>, StoreError>> {
        (!decisions.has_milestone).then(|| self.commit(decisions, now))
    }

    fn close(&mut self) {}
}
