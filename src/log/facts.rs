//! What a decision can query about the current state.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::event::Event;
use crate::id::{Epoch, Kind, Place, SchoolId, SubjectId};
use crate::kind::job::History;
use crate::kind::{Part, State};
use crate::uptime::Uptime;

/// A subject's address.
pub type Address = (SchoolId, Kind, SubjectId);

/// Values by address. The hash is a fast one that an attacker can only guess, which suffices for as many as one commit changes.
pub type ByAddress<T> = HashMap<Address, T, foldhash::fast::RandomState>;

/// The time at which a group of commands is decided.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The current time, to the millisecond.
    pub at: DateTime<Utc>,
    /// The current uptime, by which silence is measured.
    pub uptime: Uptime,
}

/// The end of a school's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tail {
    /// The newest event's place; its `seq` is 0 if there is none.
    pub head: Place,
    /// The size of all events that are kept, in bytes.
    pub bytes: u64,
}

/// A state with its position in the log.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The state.
    pub state: State,
    /// The `seq` of the event that created it.
    pub created_seq: u64,
    /// Its last event.
    pub last: Place,
    /// When the last event happened.
    pub last_at: DateTime<Utc>,
}

impl Stored {
    /// Returns the state as an event at the place of its last event, as clients see it at `now`.
    pub fn snapshot(
        &self,
        epoch: Epoch,
        (school, kind, subject): Address,
        now: DateTime<Utc>,
    ) -> Event {
        let draft = self.state.describe(&subject, now);
        let place = (epoch, self.last);
        Event::snapshot(place, school, kind, subject, self.last_at, draft)
    }
}

/// A use of an idempotency key.
#[derive(Debug, Clone)]
pub struct KeyUse {
    /// A digest of the request that used it.
    pub fingerprint: String,
    /// The answer to that request.
    pub answer: Answered,
}

/// The answer to a request with an idempotency key.
#[derive(Debug, Clone)]
pub enum Answered {
    /// This event.
    Event(Arc<Event>),
    /// The answer is no longer stored. The current state of this subject is the closest substitute.
    Subject(Kind, SubjectId),
}

/// The committed data that decisions depend on. A store answers from its caches and tables.
///
/// The group that is being decided is not visible here: [`Decisions`](super::decide::Decisions) overlays it.
pub trait Facts {
    /// Why a query failed.
    type Error;

    /// Returns the end of a school's log.
    fn tail(&mut self, school: SchoolId) -> Result<Tail, Self::Error>;

    /// Returns a subject's state.
    fn state(&mut self, address: &Address) -> Result<Option<&Stored>, Self::Error>;

    /// Returns how many subjects of a kind a school has.
    fn count(&mut self, school: SchoolId, kind: Kind) -> Result<u64, Self::Error>;

    /// Returns which subject of a kind holds this exclusive resource.
    fn holder(
        &mut self,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> Result<Option<SubjectId>, Self::Error>;

    /// Returns the history of the newest successfully completed subjects of a category.
    fn history(
        &mut self,
        school: SchoolId,
        kind: Kind,
        category: &Arc<str>,
    ) -> Result<Option<History>, Self::Error>;

    /// Returns an earlier use of an idempotency key.
    fn key(&mut self, school: SchoolId, key: &str) -> Result<Option<KeyUse>, Self::Error>;

    /// Returns a part of a subject by its number.
    fn part(&mut self, address: &Address, number: u64) -> Result<Option<Part>, Self::Error>;

    /// Returns whether any part of the kind's subjects in the school has this publisher-assigned id.
    fn has_part(&mut self, school: SchoolId, kind: Kind, own_id: &str)
    -> Result<bool, Self::Error>;

    /// Returns how many bytes the write of a changed state adds to its commit, in addition to those of its events.
    fn weight(&self, _: Kind, _: &State) -> usize {
        0
    }
}
