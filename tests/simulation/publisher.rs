//! Publishes through the real writer and the real decisions, to an in-memory database that can lose power.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta};
use futures_util::FutureExt;
use tidings::config::Settings;
use tidings::event::Event;
use tidings::id::{Kind, SchoolId, SubjectId};
use tidings::kind::Part;
use tidings::kind::job::History;
use tidings::log::decide::{Decisions, Rules};
use tidings::log::facts::{Address, Facts, KeyUse, Moment, Stored, Tail};
use tidings::log::leases::Fence;
use tidings::log::writer::{Attended, Backend, Handle, Pace, Receipts, Writer};
use tidings::log::{Allowance, Batches, CommitMetrics, Committed, Envelope, Log, StoreError};
use tidings::uptime::Uptime;
use tokio::task::unconstrained;

use super::Fault;
use super::consumer::Offsets;
use super::ledger::Ledger;
use crate::support::memory::Memory;

/// Maximum number of committed batches that wait for dispatch.
const BATCHES: usize = 64;
/// Time between two commits, by the database's clock.
pub(super) const COMMIT_MILLIS: i64 = 7;
/// With the fault `LostCommit`, one commit out of this many is acknowledged but not made.
const LOST_COMMIT: u64 = 10;

/// What the database contains in addition to the logs.
#[derive(Default)]
pub(super) struct Disk {
    state: Mutex<State>,
    /// What a former holder of the notifier's lease has done.
    broken: Mutex<Option<String>>,
}

#[derive(Default)]
struct State {
    /// The states that a power loss may leave, newest last: that of the last commit that waited for the disk, and those
    /// of all later commits.
    kept: Vec<Kept>,
    /// The notifier's current offsets.
    offsets: Offsets,
    lease: Lease,
    /// The last fence that was given out.
    fence: u64,
    /// How many steps of the notifier were refused.
    rejected: u64,
    /// The database's clock.
    clock: Duration,
    fails_next: bool,
    commits: u64,
    /// How many requests have committed by themselves.
    alone: u64,
}

/// The notifier's lease.
#[derive(Default, Clone, Copy)]
struct Lease {
    fence: u64,
    ends: Duration,
}

/// The database after a commit.
#[derive(Clone, Default)]
struct Kept {
    memory: Memory,
    heads: HashMap<SchoolId, u64>,
    offsets: Offsets,
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Reads or changes the notifier's offsets.
    pub(super) fn offsets<T>(&self, act: impl FnOnce(&mut Offsets) -> T) -> T {
        act(&mut self.lock().offsets)
    }

    /// Lets the database's clock go on.
    pub(super) fn advance(&self, by: Duration) {
        self.lock().clock += by;
    }

    /// Grants the notifier's lease, under the next fence, unless it is held.
    pub(super) fn grant(&self, term: Duration) -> Option<Fence> {
        let mut state = self.lock();
        if state.lease.ends > state.clock {
            return None;
        }
        state.fence += 1;
        state.lease = Lease {
            fence: state.fence,
            ends: state.clock + term,
        };
        Some(Fence(state.fence))
    }

    /// Extends the notifier's lease. Returns whether it was held.
    pub(super) fn extend(&self, fence: Fence, term: Duration) -> bool {
        let mut state = self.lock();
        let is_held = state.lease.fence == fence.0 && state.lease.ends > state.clock;
        if is_held {
            state.lease.ends = state.clock + term;
        }
        is_held
    }

    /// Ends the notifier's lease. Its fence stays valid until the next one.
    pub(super) fn end_lease(&self) {
        self.lock().lease.ends = Duration::ZERO;
    }

    /// Whether the notifier's lease was not granted again since.
    pub(super) fn is_last(&self, fence: Fence) -> bool {
        self.lock().lease.fence == fence.0
    }

    /// Records that a step of the notifier was refused, because a failover has taken back what it built on.
    pub(super) fn rejects(&self) {
        self.lock().rejected += 1;
    }

    /// Returns how many steps of the notifier were refused.
    pub(super) fn rejected(&self) -> u64 {
        self.lock().rejected
    }

    /// Returns the fence of the notifier's lease.
    pub(super) fn last_fence(&self) -> u64 {
        self.lock().lease.fence
    }

    /// Records that a holder of the notifier's lease had lost it when it moved the notifier's place.
    pub(super) fn breaks(&self, what: String) {
        self.broken.lock().unwrap().get_or_insert(what);
    }

    /// Returns what was recorded first.
    pub(super) fn broken(&self) -> Option<String> {
        self.broken.lock().unwrap().clone()
    }

    /// Returns how many requests have committed by themselves.
    pub(super) fn alone(&self) -> u64 {
        self.lock().alone
    }

    /// Sets whether the next commit fails.
    pub(super) fn fails_next(&self, fails: bool) {
        self.lock().fails_next = fails;
    }

    /// Returns the number of states that a power loss may leave.
    pub(super) fn left(&self) -> usize {
        self.lock().kept.len()
    }

    /// Returns the database to the state with this index. Returns the heads of the logs in that state.
    pub(super) fn lose(&self, left: usize) -> HashMap<SchoolId, u64> {
        let mut state = self.lock();
        state.kept.truncate(left + 1);
        let Kept { heads, offsets, .. } = state.kept.last().cloned().unwrap_or_default();
        state.offsets = offsets;
        heads
    }
}

/// The database behind the writer.
struct Database {
    memory: Memory,
    ledger: Arc<Ledger>,
}

impl Database {
    fn keep(&mut self, decisions: &mut Decisions) -> Result<(), String> {
        let mut state = self.ledger.disk.lock();
        let fault = self.ledger.fault;
        if std::mem::take(&mut state.fails_next) {
            if fault == Some(Fault::HalfCommit) {
                self.ledger.append(&decisions.events)?;
            }
            return Err("the disk is full".into());
        }
        state.commits += 1;
        if fault == Some(Fault::LostCommit) && state.commits.is_multiple_of(LOST_COMMIT) {
            return Ok(());
        }
        self.ledger.append(&decisions.events)?;
        if decisions.has_milestone && fault != Some(Fault::UnsyncedMilestone) {
            state.kept.clear();
        }
        self.memory.take_in(decisions);
        // The ledger has them.
        self.memory.events.clear();
        let kept = Kept {
            memory: self.memory.clone(),
            heads: self.ledger.heads(),
            offsets: state.offsets.clone(),
        };
        state.kept.push(kept);
        Ok(())
    }
}

impl Backend for Database {
    fn now(&self) -> Moment {
        let commits = self.ledger.disk.lock().commits as i64;
        Moment {
            at: DateTime::UNIX_EPOCH + TimeDelta::milliseconds(commits * COMMIT_MILLIS),
            uptime: Uptime::from_millis(0),
        }
    }

    fn commit(
        &mut self,
        decisions: &mut Decisions,
        _: Moment,
    ) -> Result<Option<Instant>, StoreError> {
        if decisions.states.is_empty() {
            return Ok(None);
        }
        self.keep(decisions).map_err(StoreError::Database)?;
        Ok(Some(Instant::now()))
    }

    fn is_embedded(&self) -> bool {
        self.ledger.is_embedded
    }

    fn try_commit(
        &mut self,
        decisions: &mut Decisions,
        now: Moment,
    ) -> Option<Result<Option<Instant>, StoreError>> {
        if decisions.has_milestone {
            // It waits for the disk.
            return None;
        }
        let written = self.commit(decisions, now);
        if let Ok(Some(_)) = written {
            self.ledger.disk.lock().alone += 1;
        }
        Some(written)
    }

    fn close(&mut self) {}
}

impl Facts for Database {
    type Error = StoreError;

    fn tail(&mut self, school: SchoolId) -> Result<Tail, StoreError> {
        self.memory.tail(school)
    }

    fn state(&mut self, address: &Address) -> Result<Option<&Stored>, StoreError> {
        self.memory.state(address)
    }

    fn count(&mut self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        self.memory.count(school, kind)
    }

    fn holder(
        &mut self,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> Result<Option<SubjectId>, StoreError> {
        self.memory.holder(school, kind, what)
    }

    fn history(
        &mut self,
        school: SchoolId,
        kind: Kind,
        category: &Arc<str>,
    ) -> Result<Option<History>, StoreError> {
        self.memory.history(school, kind, category)
    }

    fn key(&mut self, school: SchoolId, key: &str) -> Result<Option<KeyUse>, StoreError> {
        match self.ledger.fault {
            Some(Fault::ForgottenKey) => Ok(None),
            _ => self.memory.key(school, key),
        }
    }

    fn part(&mut self, address: &Address, number: u64) -> Result<Option<Part>, StoreError> {
        self.memory.part(address, number)
    }

    fn has_part(&mut self, school: SchoolId, kind: Kind, own_id: &str) -> Result<bool, StoreError> {
        self.memory.has_part(school, kind, own_id)
    }
}

/// The writer of one process. It runs only during [`Publisher::append`].
pub(super) struct Publisher {
    writer: Attended<Database>,
    handle: Handle<Database>,
    /// Unless the server's own dispatcher receives them.
    batches: Option<Batches>,
    is_embedded: bool,
}

impl Publisher {
    /// Starts a writer that continues with what the database contains. If requests commit by themselves, it sends what it commits to
    /// `committed`.
    pub(super) fn start(ledger: &Arc<Ledger>, committed: &Committed) -> Publisher {
        let settings = Settings::default();
        let rules = Rules {
            epoch: ledger.epoch(),
            limits: settings.limits(),
            max_subjects: settings.max_subjects(),
        };
        let kept = ledger.disk.lock().kept.last().cloned();
        let database = Database {
            memory: kept.unwrap_or_default().memory,
            ledger: Arc::clone(ledger),
        };
        let (committed, batches) = match ledger.is_embedded {
            true => (committed.clone(), None),
            false => {
                let (committed, batches) = Committed::channel(BATCHES);
                (committed, Some(batches))
            }
        };
        let (writer, handle) = Writer::new(
            database,
            rules,
            committed,
            Arc::<CommitMetrics>::default(),
            Arc::new(Pace::new(0)),
        );
        Publisher {
            writer: writer.attend(),
            handle,
            batches,
            is_embedded: ledger.is_embedded,
        }
    }

    /// Carries out the commands as one group, and returns the answers.
    pub(super) fn append(
        &mut self,
        submissions: Vec<(SchoolId, Vec<Envelope>)>,
    ) -> Vec<Result<Receipts, StoreError>> {
        let append = |(school, commands)| {
            let allowance = Arc::<Allowance>::default();
            // Unconstrained, because a single task carries out everything here and would exceed Tokio's cooperative
            // budget.
            let answer = unconstrained(self.handle.append(school, commands, allowance));
            let mut answer = Box::pin(answer);
            let early = answer.as_mut().now_or_never();
            assert!(
                early.is_none() || self.is_embedded,
                "nobody has carried it out"
            );
            (early, answer)
        };
        let answers: Vec<_> = submissions.into_iter().map(append).collect();
        while self.writer.step() {}
        let answered = answers
            .into_iter()
            .map(|(early, answer)| early.or_else(|| answer.now_or_never()));
        answered
            .map(|answer| answer.expect("all is done"))
            .collect()
    }

    /// Returns the batches that were committed since the last call, and that the dispatcher has not received.
    pub(super) fn committed(&mut self) -> Vec<Vec<Arc<Event>>> {
        let Some(batches) = &mut self.batches else {
            return Vec::new();
        };
        let committed = std::iter::from_fn(|| batches.try_recv()).collect();
        batches.done();
        committed
    }
}
