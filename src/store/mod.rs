//! The log and the state behind it: the written contract of a store.
//!
//! A store keeps, per school, an ordered log of events and the present state of every subject. It does not
//! know subscribers. What it promises, and what the contract suite in `tests/it/store_contract.rs`
//! asks of every implementation:
//!
//! - **One transaction.** A command is judged against the subject's state and committed together with its
//!   event; [`Store::append`] answers after the commit (invariant 1). A command that breaks a rule fails
//!   alone and leaves its neighbours be. If the commit fails, it had no effect.
//! - **Turns.** Commands of one call are carried out in order, in one commit or in several, with those of other schools
//!   in between. If one of these commits fails, nothing of the commands from there on has happened.
//! - **Order.** A school's events are numbered 1, 2, 3, … without holes, in commit order (invariant 2).
//!   Committed events reach the `committed` channel in that order, after the commit.
//! - **Reading.** [`Log::replay`] returns what lies after a cursor, [`Log::snapshot`] the present states in
//!   the order of their last events; each page says how far it reaches. A snapshot up to `head` followed by
//!   the events after `head` is the whole story. Because a snapshot is told in the order of the log, the
//!   cursor of any of its entries is a place from which a replay loses nothing.
//! - **Turns.** Reading much does not keep others from reading: each school has its turn after one read, or one window
//!   of a longer one, of each other school. A request that cannot have a turn is refused ([`StoreError::Busy`]).
//! - **Forgetting.** [`Store::sweep`] removes what is past retention in small steps and moves `floor` with it.

mod allowance;
pub mod notifiers;
pub mod sqlite;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::mpsc;

pub use self::allowance::Allowance;
use self::notifiers::{Begun, DeadLetterPage, Place, Progress, Standing, Total};
use crate::event::{Event, EventType};
use crate::id::{Epoch, Kind, SchoolId, SubjectId};
use crate::kind::characteristic::Violation;
use crate::kind::device::Device;
use crate::kind::{Command, RuleError, State};
use crate::scope::Scope;
use crate::uptime::{Uptime, UptimeClock};
use crate::wall_clock;

/// Where committed events go, in commit order, and how many batches have gone there.
#[derive(Clone)]
pub struct Committed {
    batches: mpsc::Sender<Vec<Arc<Event>>>,
    count: Arc<AtomicU64>,
}

impl Committed {
    /// A way for at most `capacity` batches at a time, and its end.
    pub fn channel(capacity: usize) -> (Committed, mpsc::Receiver<Vec<Arc<Event>>>) {
        let (batches, receiver) = mpsc::channel(capacity);
        (
            Committed {
                batches,
                count: Arc::default(),
            },
            receiver,
        )
    }

    /// Hands a batch over. To be called after its commit and before anyone is answered, so that a client that
    /// was answered finds it counted. Fails when nobody listens any more.
    pub async fn send(&self, events: Vec<Arc<Event>>) -> Result<(), StoreError> {
        // Counted only when it is sure to go: a caller may give up while it waits for a place.
        let place = self
            .batches
            .reserve()
            .await
            .map_err(|_| StoreError::Stopped)?;
        self.count.fetch_add(1, Ordering::SeqCst);
        place.send(events);
        Ok(())
    }

    /// The same from a thread of its own.
    pub fn blocking_send(&self, events: Vec<Arc<Event>>) -> Result<(), StoreError> {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.batches
            .blocking_send(events)
            .map_err(|_| StoreError::Stopped)
    }

    /// How many batches were handed over.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

/// What a store has written since it was opened: counted by its writer, read for the server's figures.
#[derive(Debug, Default)]
pub struct Meter {
    events: AtomicU64,
    commits: AtomicU64,
    commit_micros: AtomicU64,
    slowest_micros: AtomicU64,
}

/// What a [`Meter`] said.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Events committed.
    pub events: u64,
    /// Commits of at least one event.
    pub commits: u64,
    /// Microseconds from taking a group up to its commit, of all commits together.
    pub commit_micros: u64,
    /// The longest of them since the last reading.
    pub slowest_micros: u64,
}

impl Meter {
    /// Notes a commit.
    pub fn committed(&self, events: usize, took: Duration) {
        let micros = took.as_micros() as u64;
        self.events.fetch_add(events as u64, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.commit_micros.fetch_add(micros, Ordering::Relaxed);
        self.slowest_micros.fetch_max(micros, Ordering::Relaxed);
    }

    /// What it says now. The slowest commit is told once.
    pub fn read(&self) -> Reading {
        Reading {
            slowest_micros: self.slowest_micros.swap(0, Ordering::Relaxed),
            ..self.peek()
        }
    }

    /// What it says now, for as many as ask.
    pub fn peek(&self) -> Reading {
        Reading {
            events: self.events.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            commit_micros: self.commit_micros.load(Ordering::Relaxed),
            slowest_micros: self.slowest_micros.load(Ordering::Relaxed),
        }
    }
}

/// A command with its address.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// Whom it is for.
    pub subject: SubjectId,
    /// What is asked.
    pub command: Command,
    /// The `sub` of the token that it came with, if it came with one.
    pub sub: Option<Arc<str>>,
    /// Makes a retry safe.
    pub idempotency: Option<Idempotency>,
}

impl Envelope {
    /// A command of nobody's, without a key.
    pub fn new(subject: SubjectId, command: Command) -> Envelope {
        Envelope {
            subject,
            command,
            sub: None,
            idempotency: None,
        }
    }
}

/// An `Idempotency-Key` and what it was used for.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The key, unique within a school.
    pub key: String,
    /// A digest of the request: the same key with another request is a mistake.
    pub fingerprint: String,
}

/// What became of a command.
#[derive(Debug, Clone)]
pub enum Receipt {
    /// It was committed as this event.
    Committed(Arc<Event>),
    /// It changed nothing; this is the present state.
    Unchanged(Arc<Event>),
    /// It had been carried out before, under the same key, as this event.
    Repeated(Arc<Event>),
}

impl Receipt {
    /// The event to answer with.
    pub fn event(&self) -> &Arc<Event> {
        match self {
            Receipt::Committed(event) | Receipt::Unchanged(event) | Receipt::Repeated(event) => {
                event
            }
        }
    }
}

/// A command that had no effect, by its own fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// The kind's rules refuse it.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The key was used for another request.
    #[error("this Idempotency-Key was used for another request")]
    KeyReused,
    /// The request has come to as much as it may.
    #[error(
        "the lines before this one have led to as many bytes of events as a batch may, {most}; nothing of this line was carried out: send it again in another batch"
    )]
    TooMuch {
        /// How many bytes a request may come to.
        most: u64,
    },
    /// The store failed after commands before it were committed.
    #[error(transparent)]
    Store(StoreError),
}

/// A store that cannot do its work. The request had no effect.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// The database refuses; the text is for the log.
    #[error("database: {0}")]
    Database(String),
    /// The store is shutting down.
    #[error("the store has stopped")]
    Stopped,
    /// Somebody has removed or replaced the database while it is open. The store has logged it.
    #[error("the database's file was removed or replaced while the server runs")]
    Displaced,
    /// Others read: this read was not begun.
    #[error("{0}")]
    Busy(Waiting),
}

/// Why a read of a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// As many requests of its school wait as may.
    #[error("as many reads of this school wait for their turn as may")]
    OfSchool,
    /// As many requests wait as may.
    #[error("as many reads wait for their turn as may")]
    InAll,
    /// It has waited for as long as it may.
    #[error("the database was busy with other reads for too long")]
    TooLong,
}

/// Part of a log or of a snapshot.
#[derive(Debug)]
pub struct Page {
    /// In the order of `seq`.
    pub events: Vec<Arc<Event>>,
    /// Everything in scope up to this `seq` has been told by this page and the ones before it.
    pub through: u64,
    /// The newest `seq` of the school when the page was read.
    pub head: u64,
    /// Events up to this `seq` are gone.
    pub floor: u64,
}

/// A subject with its place in the log.
#[derive(Debug, Clone)]
pub struct StoredSubject {
    /// Its state.
    pub state: State,
    /// The event that created it; lists are sorted by it.
    pub created_seq: u64,
    /// Its state as an event.
    pub event: Arc<Event>,
}

/// Which subjects of a kind to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only these statuses; all if empty.
    pub statuses: Vec<&'static str>,
    /// Only these categories (a job's type); all if empty. A kind without categories has no such subject.
    pub categories: Vec<String>,
    /// Only those with this text in their id, message, error or the values of their metadata; case does not count, and
    /// nothing has a text with U+0000.
    pub text: Option<String>,
    /// Whether it counts that a job has stalled.
    pub stalled: Stalled,
    /// Which come first.
    pub order: Order,
    /// Only subjects created beyond this `seq` in that order: the key of the next page.
    pub beyond: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

/// Whether it counts for a list that a job has stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stalled {
    /// No.
    #[default]
    Ignored,
    /// Of the statuses asked for, only what has stalled.
    Only,
    /// `stalled` is a status of its own: what has stalled is listed under that alone.
    Apart {
        /// Whether it is one of the statuses asked for.
        wanted: bool,
    },
}

/// Which events of a subject.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    /// Those of one type.
    Type(&'static EventType),
    /// Those that are never left out.
    Milestones,
}

/// By when subjects were created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The newest first.
    #[default]
    Newest,
    /// The oldest first.
    Oldest,
}

/// How many subjects ended in one way within an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// When the hour began.
    pub from: DateTime<Utc>,
    /// How they ended.
    pub status: &'static str,
    /// How many did.
    pub count: u64,
}

/// A page of a list.
#[derive(Debug)]
pub struct ListPage {
    /// In the order that was asked for.
    pub subjects: Vec<StoredSubject>,
    /// The key of the next page, if there is one: also where to go on with a search that has not come to its end.
    pub next: Option<u64>,
    /// How far was looked for those that fit. None if an index has them, so that nothing else was looked at.
    pub searched: Option<Searched>,
    /// The school's newest `seq` when the page was read: a stream from here goes on where the list ends.
    pub head: u64,
}

/// How far a list was searched for what fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Searched {
    /// How many subjects were looked at.
    pub rows: u64,
    /// When the last of them was created, if those beyond it were not looked at.
    pub until: Option<DateTime<Utc>>,
    /// Whether it went on until the page was full or nothing was left: no bound on reads was reached.
    pub is_complete: bool,
}

/// Which violations to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct ViolationQuery {
    /// Only those of this characteristic.
    pub characteristic_id: Option<SubjectId>,
    /// Only the one that its publisher calls so.
    pub own_id: Option<String>,
    /// Only those that are, or are not, acknowledged.
    pub acknowledged: Option<bool>,
    /// Only violations opened before this `seq`: the key of the next page.
    pub before: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

/// A page of violations.
#[derive(Debug)]
pub struct ViolationPage {
    /// Newest first.
    pub violations: Vec<Violation>,
    /// The key of the next page, if there is one.
    pub next: Option<u64>,
    /// The school's newest `seq` when the page was read.
    pub head: u64,
}

/// A subject whose silence is worth a look.
#[derive(Debug, Clone)]
pub struct Overdue {
    /// Whose.
    pub school: SchoolId,
    /// Which.
    pub subject: SubjectId,
    /// What to ask of it.
    pub command: Command,
}

/// The logs of schools, as far as those who listen need them.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// The database's life.
    fn epoch(&self) -> Epoch;

    /// Events in scope after `after`. With `fold`, ticks that a later event in scope supersedes are left out.
    async fn replay(&self, scope: Arc<Scope>, after: u64, fold: bool) -> Result<Page, StoreError>;

    /// Present states in scope whose last event lies after `after` and not after `upto` (the head, if absent).
    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<u64>,
    ) -> Result<Page, StoreError>;
}

/// What a store can do. See the module's page for what it promises.
#[async_trait]
pub trait Store: Log {
    /// The clock of silence, which goes on where it was at the end of the store's life before; see [`crate::uptime`].
    fn uptime(&self) -> UptimeClock;

    /// Saves the uptime, as every commit does, so that a killed server goes on from here. Nobody needs to find it after a
    /// power loss.
    async fn save_uptime(&self) -> Result<(), StoreError>;

    /// What was saved of the wall clock; see [`crate::wall_clock`].
    async fn wall_clock(&self) -> Result<Option<wall_clock::Record>, StoreError>;

    /// Saves it. Nobody needs to find it after a power loss.
    async fn save_wall_clock(&self, record: wall_clock::Record) -> Result<(), StoreError>;

    /// What it has written since it was opened.
    fn meter(&self) -> &Meter;

    /// How many windows of rows were read since it was opened, by reads that look through them for those that fit.
    fn windows(&self) -> u64;

    /// How many reads of requests wait for their turn.
    fn waiting_reads(&self) -> usize;

    /// How large the database is, in bytes.
    async fn size(&self) -> Result<u64, StoreError>;

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

    /// The last events of a subject, oldest first, at most `limit`.
    async fn last_events(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
        which: Which,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError>;

    /// Whether the school has this subject.
    async fn exists(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
    ) -> Result<bool, StoreError>;

    /// One subject.
    async fn subject(
        &self,
        school: SchoolId,
        kind: Kind,
        id: SubjectId,
    ) -> Result<Option<StoredSubject>, StoreError>;

    /// A page of subjects. A list that no index serves is searched a window of rows at a time, up to the bounds on reads; it
    /// ends when its caller drops it.
    async fn subjects(
        &self,
        school: SchoolId,
        kind: Kind,
        query: ListQuery,
    ) -> Result<ListPage, StoreError>;

    /// The newest `seq` of a school.
    async fn head(&self, school: SchoolId) -> Result<u64, StoreError>;

    /// How many subjects of a kind a school has, by status.
    async fn counts(
        &self,
        school: SchoolId,
        kind: Kind,
    ) -> Result<Vec<(&'static str, u64)>, StoreError>;

    /// How many subjects of a kind have stalled. A kind whose subjects do not stall has none.
    async fn stalled(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError>;

    /// How many subjects of a kind ended in this way since `since`. A kind whose subjects do not end has none.
    async fn ended_since(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        since: DateTime<Utc>,
    ) -> Result<u64, StoreError>;

    /// The subjects of a kind that ended in this way, the last first; at most `limit`.
    async fn ended(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        limit: usize,
    ) -> Result<Vec<StoredSubject>, StoreError>;

    /// How the subjects of a kind ended since `since`, counted by the hour. A kind whose subjects do not end has none.
    async fn endings(
        &self,
        school: SchoolId,
        kind: Kind,
        since: DateTime<Utc>,
    ) -> Result<Vec<Ending>, StoreError>;

    /// Schools that have a log, by number, after this one; at most `limit`.
    async fn schools(
        &self,
        after: Option<SchoolId>,
        limit: usize,
    ) -> Result<Vec<SchoolId>, StoreError>;

    /// A page of violations of control limits.
    async fn violations(
        &self,
        school: SchoolId,
        query: ViolationQuery,
    ) -> Result<ViolationPage, StoreError>;

    /// How many violations of a school nobody has acknowledged.
    async fn open_violations(&self, school: SchoolId) -> Result<u64, StoreError>;

    /// Subjects to look at, the longest overdue first, at most `limit`.
    async fn overdue(&self, now: Uptime, limit: usize) -> Result<Vec<Overdue>, StoreError>;

    /// Devices that are not known to be gone, by school and id, after this one; at most `limit`.
    async fn devices_not_offline(
        &self,
        after: Option<(SchoolId, SubjectId)>,
        limit: usize,
    ) -> Result<Vec<(SchoolId, SubjectId, Device)>, StoreError>;

    /// Removes one batch of what is past retention. True if there may be more.
    async fn sweep(&self, now: DateTime<Utc>) -> Result<bool, StoreError>;

    /// Makes a notifier known: a new one begins where the logs end now.
    async fn notifier_begins(&self, name: &str) -> Result<Begun, StoreError>;

    /// Where a notifier stands in a school's log.
    async fn notifier_place(&self, name: &str, school: SchoolId) -> Result<Place, StoreError>;

    /// Moves a notifier's cursor, which never goes back, counts what came of it, and sets a subject aside or lifts it,
    /// in one commit.
    async fn notifier_moves(
        &self,
        name: &str,
        school: SchoolId,
        seq: u64,
        progress: Progress,
    ) -> Result<(), StoreError>;

    /// How notifiers stand in a school, and where its log ends.
    async fn notifiers(&self, school: SchoolId) -> Result<(Vec<Standing>, u64), StoreError>;

    /// How every notifier that ever began stands with all schools together, by name.
    async fn notifier_totals(&self) -> Result<Vec<Total>, StoreError>;

    /// Dead letters of a notifier in a school, newest first, before this place.
    async fn dead_letters(
        &self,
        name: &str,
        school: SchoolId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError>;

    /// Finishes what was asked and lets go of the database. Writes fail from now on.
    async fn close(&self) -> Result<(), StoreError>;

    /// Asks the writer and a reader for a sign of life. No other read delays it.
    async fn ping(&self) -> Result<(), StoreError>;
}
