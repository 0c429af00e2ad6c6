//! The port *journal*: appends a school's events and reads them in order.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{Allowance, CommandError, CommitMetrics, Envelope, Receipt, StoreError};
use crate::event::Event;
use crate::id::{Epoch, Kind, Place, SchoolId, SubjectId};
use crate::scope::Scope;
use crate::uptime::UptimeClock;
use crate::wall_clock;

/// Part of a log or of a snapshot.
#[derive(Debug)]
pub struct Page {
    /// The events, in the order of `seq`.
    pub events: Vec<Arc<Event>>,
    /// Everything in scope up to this place is contained in this page and the previous ones.
    pub through: Place,
    /// The place of the school's newest event when the page was read, or the place at which a snapshot ends.
    pub head: Place,
    /// The place of the school's newest event when the page was read.
    pub newest: Place,
    /// Events up to this `seq` have been removed.
    pub floor: u64,
}

/// The bounds of a school's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// The newest event's place; 0 if there is none.
    pub head: Place,
    /// Events up to this place have been removed.
    pub floor: Place,
}

/// Part of a school's log: every event of a range of `seq`s.
#[derive(Debug)]
pub struct LogRange {
    /// The events, without gaps.
    pub events: Vec<Arc<Event>>,
    /// The range contains every event up to this `seq` that has not been removed.
    pub through: u64,
    /// The school's newest `seq` when the range was read.
    pub head: u64,
    /// Events up to this place have been removed.
    pub floor: Place,
    /// The last events of subjects that have ticks in this range and further events after it.
    pub last: HashMap<(Kind, SubjectId), LastEvent>,
}

impl LogRange {
    /// Returns whether this range, which must include the place `known`, shows that the log no longer has the
    /// event at that place.
    pub fn lacks(&self, known: Place) -> bool {
        let is_other = |place: Place| {
            let are_tagged = place.tag.is_some() && known.tag.is_some();
            place.seq == known.seq && are_tagged && place != known
        };
        let first = self.events.first().map(|event| event.place());
        self.head < known.seq || is_other(self.floor) || first.is_some_and(is_other)
    }
}

/// A subject's last event, which supersedes its ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastEvent {
    /// Its place in the log.
    pub seq: u64,
    /// The subject's status.
    pub status: String,
    /// The subject's category.
    pub category: Option<String>,
}

/// The reading side of the logs, as far as subscribers need it.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Returns the epoch of the database.
    fn epoch(&self) -> Epoch;

    /// Returns whether every `seq` was assigned only once in this epoch, so that a cursor without a tag identifies one
    /// event.
    fn numbers_are_unique(&self) -> bool {
        true
    }

    /// Returns whether other nodes may write to the database while this node runs. Their commits arrive only as hints,
    /// which can be lost, so this node must also compare the heads of the logs.
    fn is_shared(&self) -> bool {
        false
    }

    /// Returns the places of the newest events of these schools. Schools without events may be left out, and tags may be
    /// missing. A store should override this to read all places in one query.
    async fn heads(&self, schools: &[SchoolId]) -> Result<Vec<(SchoolId, Place)>, StoreError> {
        let mut heads = Vec::with_capacity(schools.len());
        for school in schools {
            heads.push((*school, self.bounds(*school).await?.head));
        }
        Ok(heads)
    }

    /// Returns the current bounds of a school's log.
    async fn bounds(&self, school: SchoolId) -> Result<Bounds, StoreError>;

    /// Returns every event after `after` up to `upto`, or as many as one read returns.
    async fn read_range(
        &self,
        school: SchoolId,
        after: u64,
        upto: u64,
    ) -> Result<LogRange, StoreError>;

    /// Returns the events in scope after `after`. With `conflate`, leaves out ticks that a later event in scope supersedes.
    async fn replay(
        &self,
        scope: Arc<Scope>,
        after: u64,
        conflate: bool,
    ) -> Result<Page, StoreError>;

    /// Returns the current states in scope whose last event is after `after` and not after `upto` (the head, if absent),
    /// in the order of their last events: a replay from the `seq` of any of them loses nothing.
    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<Place>,
    ) -> Result<Page, StoreError>;
}

/// The logs of schools. The [module's page](super) states what an implementation guarantees; the suite in
/// `tests/it/store_contract` tests it.
#[async_trait]
pub trait Journal: Log {
    /// Returns the end of a school's log, for a request. The read waits for its turn like any other.
    async fn head(&self, school: SchoolId) -> Result<Place, StoreError>;

    /// Carries out commands in order and answers each after the commit. Fails as a whole only if none had an effect, or if
    /// that is unknown ([`StoreError::Unknown`]).
    async fn append(
        &self,
        school: SchoolId,
        commands: Vec<Envelope>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError> {
        self.append_within(school, commands, Arc::default()).await
    }

    /// The same within an allowance: commands after it is used up fail with [`CommandError::TooMuch`].
    async fn append_within(
        &self,
        school: SchoolId,
        commands: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError>;

    /// Removes one batch of data past its retention. Returns whether there may be more.
    async fn sweep(&self, now: DateTime<Utc>) -> Result<bool, StoreError>;

    /// Returns the counters of what the store has written since it was opened.
    fn commit_metrics(&self) -> &CommitMetrics;

    /// Returns the size of the database in bytes.
    async fn size(&self) -> Result<u64, StoreError>;

    /// Returns the clock for silence, which continues from its value at the end of the previous run; see
    /// [`crate::uptime`].
    fn uptime(&self) -> UptimeClock;

    /// Saves the uptime, as every commit does, so that a server that was killed continues from this value. It need not
    /// survive a power loss.
    async fn save_uptime(&self) -> Result<(), StoreError>;

    /// Returns the saved state of the wall clock; see [`crate::wall_clock`].
    async fn wall_clock(&self) -> Result<Option<wall_clock::Record>, StoreError>;

    /// Saves the state of the wall clock. It need not survive a power loss.
    async fn save_wall_clock(&self, record: wall_clock::Record) -> Result<(), StoreError>;

    /// Checks that the writer and a reader respond. No other read delays this.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Completes all pending work and closes the database. Writes fail from now on.
    async fn close(&self) -> Result<(), StoreError>;
}
