//! What a decision may ask about the present.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::event::Event;
use crate::id::{Epoch, Kind, Place, SchoolId, SubjectId};
use crate::kind::job::History;
use crate::kind::{Part, State};
use crate::uptime::Uptime;

/// A subject's address.
pub type Address = (SchoolId, Kind, SubjectId);

/// When a group of commands is decided.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The present, to the millisecond.
    pub at: DateTime<Utc>,
    /// The present, as silence is measured.
    pub uptime: Uptime,
}

/// The end of a school's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tail {
    /// The newest event's place; 0 if there is none.
    pub head: Place,
    /// Bytes of all events that are kept.
    pub bytes: u64,
}

/// A state with its place in the log.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The state.
    pub state: State,
    /// The event that created it.
    pub created_seq: u64,
    /// Its last event.
    pub last: Place,
    /// When that happened.
    pub last_at: DateTime<Utc>,
}

impl Stored {
    /// Returns the state as an event at the place of its last one, as it may be told at `now`.
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
    /// What it was answered.
    pub answer: Answered,
}

/// What a request with an idempotency key was answered.
#[derive(Debug, Clone)]
pub enum Answered {
    /// This event.
    Event(Arc<Event>),
    /// It is not known any more. The present state of this subject is what comes closest.
    Subject(Kind, SubjectId),
}

/// What is committed, as far as a decision depends on it. A store answers from its caches and tables.
///
/// Nothing here knows of the group that is being decided: [`Decisions`](super::decide::Decisions) lies over it.
pub trait Facts {
    /// Why an answer cannot be had.
    type Error;

    /// Where a school's log ends.
    fn tail(&mut self, school: SchoolId) -> Result<Tail, Self::Error>;

    /// A subject's state.
    fn state(&mut self, address: &Address) -> Result<Option<&Stored>, Self::Error>;

    /// How many subjects of a kind a school has.
    fn count(&mut self, school: SchoolId, kind: Kind) -> Result<u64, Self::Error>;

    /// Which subject of a kind holds what only one of them may hold.
    fn holder(
        &mut self,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> Result<Option<SubjectId>, Self::Error>;

    /// What the newest subjects of a category teach that ended well.
    fn history(
        &mut self,
        school: SchoolId,
        kind: Kind,
        category: &Arc<str>,
    ) -> Result<Option<History>, Self::Error>;

    /// An earlier use of an idempotency key.
    fn key(&mut self, school: SchoolId, key: &str) -> Result<Option<KeyUse>, Self::Error>;

    /// A part of a subject, by its number.
    fn part(&mut self, address: &Address, number: u64) -> Result<Option<Part>, Self::Error>;

    /// Whether a part of a subject of the kind has this own id of a publisher in the school.
    fn has_part(&mut self, school: SchoolId, kind: Kind, own_id: &str)
    -> Result<bool, Self::Error>;
}
