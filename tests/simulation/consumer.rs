//! The real runner of a notifier over in-memory ports, and its receiver. The receiver checks that each event that it
//! wants is delivered at least once, in the order of its subject, whatever fails.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use fastrand::Rng;
use serde_json::Value;
use tidings::config::notifiers::RetryPolicy;
use tidings::event::Event;
use tidings::id::{Cursor, Kind, Place, SchoolId, SubjectId};
use tidings::kind::device::Device;
use tidings::log::consumers::{
    Begun, Change, Consumers, DeadLetterPage, Offset, Progress, Standing, Total,
};
use tidings::log::heartbeats::{Heartbeat, Heartbeats, Shared};
use tidings::log::leases::{Fence, Leases};
use tidings::log::nodes::{Node, NodeId, NodeReport, Nodes};
use tidings::log::pings::{KeyDigest, PingKey, PingKeyId, PingKeys};
use tidings::log::writer::Receipts;
use tidings::log::{
    Allowance, Catalog, CommitMetrics, Ending, Envelope, Journal, ListPage, ListQuery, Overdue,
    PartPage, PartQuery, StoreError, StoredSubject, Which,
};
use tidings::notify::Notifier;
use tidings::notify::notification::{DeliveryError, Notification};
use tidings::uptime::{Uptime, UptimeClock};
use tidings::wall_clock;

use super::Fault;
use super::ledger::{Ledger, schools};

/// The notifier's place in each school's log.
pub(super) type Offsets = HashMap<SchoolId, Offset>;

/// The subject whose ticks are delivered, too.
const WITH_TICKS: &str = super::SUBJECTS[0];

/// A receiver at which some attempts fail.
pub(super) struct Receiver {
    ledger: Arc<Ledger>,
    received: Mutex<Received>,
}

struct Received {
    rng: Rng,
    delivered: HashSet<(SchoolId, Place)>,
    /// The `seq` of the last event of each subject that the current process delivered.
    last: HashMap<(SchoolId, String), u64>,
    broken: Option<String>,
    /// The fence of the last delivery, and how many steps had been refused.
    fence: (u64, u64),
    /// The places in each log at which a failover has replaced events: after the first, up to the second.
    replaced: HashMap<SchoolId, Vec<(u64, u64)>>,
}

impl Receiver {
    pub(super) fn new(ledger: Arc<Ledger>, seed: u64) -> Receiver {
        Receiver {
            ledger,
            received: Mutex::new(Received {
                rng: Rng::with_seed(seed),
                delivered: HashSet::new(),
                last: HashMap::new(),
                broken: None,
                fence: (0, 0),
                replaced: HashMap::new(),
            }),
        }
    }

    /// Records that another process delivers from now on. It may begin with events that were delivered before.
    pub(super) fn note_new_process(&self) {
        self.received.lock().unwrap().last.clear();
    }

    /// Records that a failover has removed what was after the current heads, up to the heads before.
    pub(super) fn note_failover(&self, before: &HashMap<SchoolId, u64>) {
        let mut received = self.received.lock().unwrap();
        for (school, head) in before {
            let lost = (self.ledger.head(*school), *head);
            received.replaced.entry(*school).or_default().push(lost);
        }
    }

    /// Fails if any delivery has violated the guarantees.
    pub(super) fn check(&self) -> Result<(), String> {
        self.ledger.disk.broken().map_or(Ok(()), Err)?;
        self.received
            .lock()
            .unwrap()
            .broken
            .clone()
            .map_or(Ok(()), Err)
    }

    /// Returns which wanted and retained event was never delivered, if there is one.
    pub(super) fn lacks(&self) -> Option<String> {
        let received = self.received.lock().unwrap();
        schools().into_iter().find_map(|school| {
            let floor = self.ledger.floor(school);
            let missing = |seq: &u64| {
                let event = self.ledger.event(school, *seq).expect("below the head");
                self.wants(&event) && !received.delivered.contains(&(school, event.place()))
            };
            let seq = (floor + 1..=self.ledger.head(school)).find(missing)?;
            Some(format!("{seq} of school {school} was never delivered"))
        })
    }

    fn hear(&self, received: &mut Received, notification: &Notification) -> Result<(), String> {
        let school: SchoolId = notification.school_id.try_into().unwrap();
        let message: Value = serde_json::from_slice(&notification.json).unwrap();
        let cursor: Cursor = message["cursor"].as_str().unwrap().parse().unwrap();
        let (place, seq) = (cursor.place, cursor.place.seq);
        let trace = &self.ledger.trace;
        trace.note(format_args!("{cursor} of {school} is delivered"));
        // After a refused step, the notifier continues from the place that is written.
        let fence = (self.ledger.disk.last_fence(), self.ledger.disk.rejected());
        if std::mem::replace(&mut received.fence, fence) != fence {
            received.last.clear();
        }
        if self.ledger.has_lost(school, place) {
            // It was read before the failover.
            return Ok(());
        }
        let event = self.ledger.event(school, seq);
        if event.is_none_or(|event| event.place() != place) {
            return Err(format!("{cursor} is delivered and not in the log"));
        }
        let subject = (school, notification.subject.clone());
        let last = received.last.insert(subject, seq);
        // After a failover, it continues from an earlier place.
        let mut replaced = received.replaced.get(&school).into_iter().flatten();
        let is_again =
            replaced.any(|(from, _)| seq <= *from) && received.delivered.contains(&(school, place));
        if last.is_some_and(|last| last >= seq) && !is_again {
            return Err(format!("{cursor} is delivered after {last:?}"));
        }
        received.delivered.insert((school, place));
        for earlier in self.ledger.floor(school) + 1..seq {
            let event = self.ledger.event(school, earlier).expect("before it");
            let is_due = self.wants(&event) && event.subject.as_str() == notification.subject;
            if is_due && !received.delivered.contains(&(school, event.place())) {
                return Err(format!("{cursor} is delivered before {earlier}"));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Notifier for Receiver {
    fn name(&self) -> &str {
        "receiver"
    }

    fn medium(&self) -> &'static str {
        "simulation"
    }

    fn wants(&self, event: &Event) -> bool {
        !event.is_tick() || event.subject.as_str() == WITH_TICKS
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        let mut received = self.received.lock().unwrap();
        match received.rng.u8(0..12) {
            0 => return Err(DeliveryError::unavailable("away")),
            1 => return Err(DeliveryError::rejected("not this one")),
            2 => return Err(DeliveryError::Failed("cut off".into())),
            _ => {}
        }
        let heard = self.hear(&mut received, notification);
        received.broken = received.broken.take().or(heard.err());
        // The response may get lost.
        match received.rng.u8(0..20) {
            0 => {
                let school = notification.school_id.try_into().unwrap();
                received
                    .last
                    .remove(&(school, notification.subject.clone()));
                Err(DeliveryError::Failed("no answer".into()))
            }
            _ => Ok(()),
        }
    }

    /// Retries at once: pauses are measured by the wall clock, which the simulation does not control.
    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            attempts: u32::MAX,
            pause: Duration::ZERO,
        }
    }
}

#[async_trait]
impl Consumers for Ledger {
    async fn notifier_begins(&self, _: &str) -> Result<Begun, StoreError> {
        let behind = self.disk.offsets(|offsets| {
            let is_behind = |school: &SchoolId| {
                let place = offsets.entry(*school).or_default();
                place.seq < self.head(*school) || !place.set_aside.is_empty()
            };
            schools().into_iter().filter(is_behind).collect()
        });
        Ok(Begun {
            behind,
            not_before: None,
        })
    }

    async fn notifier_looks(&self, name: &str) -> Result<Begun, StoreError> {
        self.notifier_begins(name).await
    }

    async fn notifier_offset(&self, _: &str, school: SchoolId) -> Result<Offset, StoreError> {
        let offset = self
            .disk
            .offsets(|offsets| offsets.entry(school).or_default().clone());
        let there = self.event(school, offset.seq);
        let tag = there.and_then(|event| event.tag);
        Ok(Offset { tag, ..offset })
    }

    async fn notifier_moves(
        &self,
        name: &str,
        fence: Fence,
        school: SchoolId,
        seq: u64,
        progress: Progress,
    ) -> Result<(), StoreError> {
        assert_eq!(name, "receiver");
        if !self.is_of_cluster {
            return self.moves(fence, school, seq, progress);
        }
        // It is on its way. Meanwhile, the holder may be stopped or gone, and another one may hold the lease.
        self.write(move |ledger| ledger.moves(fence, school, seq, progress))
            .await
    }

    async fn notifiers(&self, _: SchoolId) -> Result<(Vec<Standing>, u64), StoreError> {
        unreachable!("nobody looks at notifiers")
    }

    async fn notifier_totals(&self) -> Result<Vec<Total>, StoreError> {
        unreachable!("nobody looks at notifiers")
    }

    async fn dead_letters(
        &self,
        _: &str,
        _: SchoolId,
        _: Option<u64>,
        _: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        unreachable!("nobody looks at notifiers")
    }
}

impl Ledger {
    /// Moves the notifier's place, if this is the last fence.
    fn moves(
        &self,
        fence: Fence,
        school: SchoolId,
        seq: u64,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let is_last = self.disk.is_last(fence);
        if !is_last && self.fault != Some(Fault::UncheckedFence) {
            return Err(StoreError::Fenced);
        }
        let seq = match self.fault {
            Some(Fault::PlaceTooFar) if progress.tried.is_none() => seq + 1,
            _ => seq,
        };
        let is_lost = progress.of.is_some_and(|of| self.lacks(school, of));
        let moved = self.disk.offsets(|offsets| {
            let place = offsets.entry(school).or_default();
            if progress.from.is_some_and(|from| from != place.seq) {
                return Err(StoreError::Fenced);
            }
            if is_lost && self.fault != Some(Fault::LostStep) {
                return Err(StoreError::Fenced);
            }
            if !is_last {
                let moved = format!("the holder {fence} moved the place of {school} to {seq}");
                self.disk.breaks(moved);
            }
            place.seq = place.seq.max(seq);
            place.tried = progress.tried;
            let changed = progress.set_aside;
            let of = match &changed {
                Some(Change::Put(entry)) => Some((entry.kind, entry.subject.clone())),
                Some(Change::Lift(kind, subject)) => Some((*kind, subject.clone())),
                None => None,
            };
            place
                .set_aside
                .retain(|entry| Some((entry.kind, entry.subject.clone())) != of);
            if let Some(Change::Put(entry)) = changed {
                place.set_aside.push(entry);
            }
            Ok(())
        });
        if moved.is_err() {
            self.disk.rejects();
        }
        moved
    }
}

#[async_trait]
impl Leases for Ledger {
    async fn acquire(&self, _: &str, term: Duration) -> Result<Option<Fence>, StoreError> {
        Ok(self.disk.grant(term))
    }

    async fn renew(&self, _: &str, fence: Fence, term: Duration) -> Result<bool, StoreError> {
        Ok(self.disk.extend(fence, term))
    }

    async fn release(&self, _: &str, fence: Fence) -> Result<(), StoreError> {
        if self.disk.is_last(fence) {
            self.disk.end_lease();
        }
        Ok(())
    }
}

#[async_trait]
impl Heartbeats for Ledger {
    async fn save_heartbeats(&self, _: Vec<Heartbeat>) -> Result<Vec<Option<Shared>>, StoreError> {
        unreachable!("there are no devices")
    }

    async fn heartbeats_of(
        &self,
        _: Vec<(SchoolId, SubjectId)>,
    ) -> Result<Vec<Option<Shared>>, StoreError> {
        unreachable!("there are no devices")
    }

    async fn forget_heartbeats(&self, _: Uptime) -> Result<(), StoreError> {
        unreachable!("there are no devices")
    }
}

#[async_trait]
impl Nodes for Ledger {
    async fn node_heartbeat(&self, _: NodeReport, _: Duration) -> Result<Vec<Node>, StoreError> {
        unreachable!("a runner knows no nodes")
    }

    async fn node_leaves(&self, _: &NodeId) -> Result<(), StoreError> {
        unreachable!("a runner knows no nodes")
    }
}

#[async_trait]
impl PingKeys for Ledger {
    async fn add_ping_key(&self, _: SchoolId, _: PingKey, _: u64) -> Result<bool, StoreError> {
        unreachable!("there are no pings")
    }

    async fn ping_keys(&self, _: SchoolId) -> Result<Vec<PingKey>, StoreError> {
        unreachable!("there are no pings")
    }

    async fn ping_key(&self, _: SchoolId, _: KeyDigest) -> Result<Option<PingKey>, StoreError> {
        unreachable!("there are no pings")
    }

    async fn remove_ping_key(&self, _: SchoolId, _: PingKeyId) -> Result<bool, StoreError> {
        unreachable!("there are no pings")
    }

    async fn begin_ping_run(&self, _: SchoolId, _: PingKeyId, _: u64) -> Result<bool, StoreError> {
        unreachable!("there are no pings")
    }
}

/// A runner reads only through `Log`, and the simulation publishes through the writer directly.
#[async_trait]
impl Journal for Ledger {
    async fn head(&self, _: SchoolId) -> Result<Place, StoreError> {
        unreachable!("a runner reads the log")
    }

    async fn append_within(
        &self,
        _: SchoolId,
        _: Vec<Envelope>,
        _: Arc<Allowance>,
    ) -> Result<Receipts, StoreError> {
        unreachable!("a runner reads the log")
    }

    async fn sweep(&self, _: DateTime<Utc>) -> Result<bool, StoreError> {
        unreachable!("a runner reads the log")
    }

    fn commit_metrics(&self) -> &CommitMetrics {
        unreachable!("a runner reads the log")
    }

    async fn size(&self) -> Result<u64, StoreError> {
        unreachable!("a runner reads the log")
    }

    fn uptime(&self) -> UptimeClock {
        unreachable!("a runner reads the log")
    }

    async fn save_uptime(&self) -> Result<(), StoreError> {
        unreachable!("a runner reads the log")
    }

    async fn wall_clock(&self) -> Result<Option<wall_clock::Record>, StoreError> {
        unreachable!("a runner reads the log")
    }

    async fn save_wall_clock(&self, _: wall_clock::Record) -> Result<(), StoreError> {
        unreachable!("a runner reads the log")
    }

    async fn ping(&self) -> Result<(), StoreError> {
        unreachable!("a runner reads the log")
    }

    async fn close(&self) -> Result<(), StoreError> {
        unreachable!("a runner reads the log")
    }
}

#[async_trait]
impl Catalog for Ledger {
    /// Returns none: no subject has a title here.
    async fn subject(
        &self,
        _: SchoolId,
        _: Kind,
        _: SubjectId,
    ) -> Result<Option<StoredSubject>, StoreError> {
        Ok(None)
    }

    /// A session asks this of the subjects of a `subscribe`.
    async fn exists(&self, school: SchoolId, _: Kind, id: SubjectId) -> Result<bool, StoreError> {
        self.wait_for_the_disk().await?;
        Ok(self.has_events_of(school, &id))
    }

    async fn subjects(&self, _: SchoolId, _: Kind, _: ListQuery) -> Result<ListPage, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn last_events(
        &self,
        _: SchoolId,
        _: Kind,
        _: SubjectId,
        _: Which,
        _: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn counts(&self, _: SchoolId, _: Kind) -> Result<Vec<(&'static str, u64)>, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn stalled(&self, _: SchoolId, _: Kind) -> Result<u64, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn ended_since(
        &self,
        _: SchoolId,
        _: Kind,
        _: &'static str,
        _: DateTime<Utc>,
    ) -> Result<u64, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn ended(
        &self,
        _: SchoolId,
        _: Kind,
        _: &'static str,
        _: usize,
    ) -> Result<Vec<StoredSubject>, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn endings(
        &self,
        _: SchoolId,
        _: Kind,
        _: DateTime<Utc>,
    ) -> Result<Vec<Ending>, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn schools(&self, _: Option<SchoolId>, _: usize) -> Result<Vec<SchoolId>, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn parts(&self, _: SchoolId, _: Kind, _: PartQuery) -> Result<PartPage, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn open_parts(&self, _: SchoolId, _: Kind) -> Result<u64, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn overdue(&self, _: Uptime, _: usize) -> Result<Vec<Overdue>, StoreError> {
        unreachable!("a runner lists nothing")
    }

    async fn devices_not_offline(
        &self,
        _: Option<(SchoolId, SubjectId)>,
        _: usize,
    ) -> Result<Vec<(SchoolId, SubjectId, Device)>, StoreError> {
        unreachable!("a runner lists nothing")
    }

    fn windows(&self) -> u64 {
        unreachable!("a runner lists nothing")
    }

    fn waiting_reads(&self) -> usize {
        unreachable!("a runner lists nothing")
    }
}
