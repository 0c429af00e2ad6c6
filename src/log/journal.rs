//! The port *journal*: a school's events, appended and read in their order.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{Allowance, CommandError, Envelope, Meter, Receipt, StoreError};
use crate::event::Event;
use crate::id::{Epoch, Kind, Place, SchoolId, SubjectId};
use crate::scope::Scope;
use crate::uptime::UptimeClock;
use crate::wall_clock;

/// Part of a log or of a snapshot.
#[derive(Debug)]
pub struct Page {
    /// In the order of `seq`.
    pub events: Vec<Arc<Event>>,
    /// Everything in scope up to this place has been told by this page and the ones before it.
    pub through: Place,
    /// The place of the school's newest event when the page was read, or of the last one that a snapshot is to tell.
    pub head: Place,
    /// Events up to this `seq` are gone.
    pub floor: u64,
}

/// Where a school's log begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// The newest event's place; 0 if there is none.
    pub head: Place,
    /// Events up to this one are gone.
    pub floor: Place,
}

/// Part of a school's log: every event from one `seq` to another.
#[derive(Debug)]
pub struct Stretch {
    /// Without holes.
    pub events: Vec<Arc<Event>>,
    /// It holds every event up to this `seq` that is kept.
    pub through: u64,
    /// The newest `seq` of the school when it was read.
    pub head: u64,
    /// Events up to this `seq` are gone.
    pub floor: u64,
    /// The last events of subjects that have ticks in it and are told beyond it.
    pub last: HashMap<(Kind, SubjectId), LastEvent>,
}

/// A subject's last event that supersedes its ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastEvent {
    /// Its place in the log.
    pub seq: u64,
    /// The subject's status.
    pub status: String,
    /// The subject's category.
    pub category: Option<String>,
}

/// The reading side of the logs, as far as those who listen need it.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// The database's life.
    fn epoch(&self) -> Epoch;

    /// Whether no number was given twice in this epoch, so that a cursor without a tag names one event.
    fn numbers_are_unique(&self) -> bool {
        true
    }

    /// Where a school's log begins and ends now.
    async fn bounds(&self, school: SchoolId) -> Result<Bounds, StoreError>;

    /// Everything after `after` up to `upto`, or as much of it as is read at a time.
    async fn read_stretch(
        &self,
        school: SchoolId,
        after: u64,
        upto: u64,
    ) -> Result<Stretch, StoreError>;

    /// Events in scope after `after`. With `fold`, ticks that a later event in scope supersedes are left out.
    async fn replay(&self, scope: Arc<Scope>, after: u64, fold: bool) -> Result<Page, StoreError>;

    /// Present states in scope whose last event lies after `after` and not after `upto` (the head, if absent), in the order
    /// of their last events: the `seq` of any of them is a place from which a replay loses nothing.
    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<Place>,
    ) -> Result<Page, StoreError>;
}

/// The logs of schools. What an implementation promises is on the [module's page](super); the suite in
/// `tests/it/store_contract` asks it.
#[async_trait]
pub trait Journal: Log {
    /// Where a school's log ends, for a request, which has its turn like any other.
    async fn head(&self, school: SchoolId) -> Result<Place, StoreError>;

    /// Carries out commands in order and answers each, after the commit. Fails only if none has had an effect.
    async fn append(
        &self,
        school: SchoolId,
        commands: Vec<Envelope>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError> {
        self.append_within(school, commands, Arc::default()).await
    }

    /// The same for as long as there is something left of an allowance: what comes after is [`CommandError::TooMuch`].
    async fn append_within(
        &self,
        school: SchoolId,
        commands: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError>;

    /// Removes one batch of what is past retention. True if there may be more.
    async fn sweep(&self, now: DateTime<Utc>) -> Result<bool, StoreError>;

    /// What it has written since it was opened.
    fn meter(&self) -> &Meter;

    /// How large the database is, in bytes.
    async fn size(&self) -> Result<u64, StoreError>;

    /// The clock of silence, which goes on where it was at the end of the store's life before; see [`crate::uptime`].
    fn uptime(&self) -> UptimeClock;

    /// Saves the uptime, as every commit does, so that a killed server goes on from here. Nobody needs to find it after a
    /// power loss.
    async fn save_uptime(&self) -> Result<(), StoreError>;

    /// What was saved of the wall clock; see [`crate::wall_clock`].
    async fn wall_clock(&self) -> Result<Option<wall_clock::Record>, StoreError>;

    /// Saves it. Nobody needs to find it after a power loss.
    async fn save_wall_clock(&self, record: wall_clock::Record) -> Result<(), StoreError>;

    /// Asks the writer and a reader for a sign of life. No other read delays it.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Finishes what was asked and lets go of the database. Writes fail from now on.
    async fn close(&self) -> Result<(), StoreError>;
}
