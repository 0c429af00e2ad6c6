//! Presence where several nodes receive heartbeats.
//!
//! ```text
//! heartbeat ─▶ lease in memory ──every PRESENCE_SHARE_PERIOD──▶ merged with those of other nodes (log::heartbeats)
//!                  │                                                       │
//!                  │ a device that is not online: at once                  ▼
//!                  └──────────────────────────────────────▶ its last two heartbeats and its standing: does it come online?
//! end of a lease ─▶ PRESENCE_GRACE ─▶ heard elsewhere meanwhile? yes: go on │ no: Command::Expire
//! ```
//!
//! 1. Every decision uses the heartbeats of all nodes, and is checked against the device's state when it is committed. So any node can
//!    decide at any time, even twice or with outdated memory, and the result is the same as if one node had received all heartbeats.
//! 2. A lease is checked [`PRESENCE_GRACE`] after its end. By then, the other nodes have shared the heartbeats that they received
//!    before its end.
//! 3. A node watches the devices whose heartbeats it receives. The node that holds the lease [`LEASE`] for this work watches
//!    all other devices: those of a node that is gone, and those that have been silent for long. Every [`PRESENCE_SCAN`], it reads
//!    which devices are not offline.
//! 4. When a node starts, it marks devices as unknown only if no node was running. It skips devices that have sent heartbeats or were
//!    reported after its start.
//!
//! A node does not receive the events of all schools. Each answer of the store corrects its memory.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use tokio::time::{MissedTickBehavior, interval};

use super::combined::Combined;
use super::leases::{Leases, UnknownMarking, answer, heard_now};
use super::{Address, HeartbeatOutcome, Presence, not_found};
use crate::cluster::{Cluster, Peers};
use crate::config::{PRESENCE_BATCH, PRESENCE_GRACE, PRESENCE_SCAN};
use crate::failures::Failures;
use crate::id::{SchoolId, SubjectId};
use crate::kind::device::{Command, Device, Heard, arrives};
use crate::lease::Lease;
use crate::log::heartbeats::{Heartbeat, LastHeartbeats, Shared};
use crate::log::{Store, StoreError};
use crate::publish::Publisher;
use crate::uptime::Uptime;

/// The name of the lease whose holder watches the devices that no other node watches.
pub(super) const LEASE: &str = "presence";

/// What presence needs to work with other nodes.
pub struct Together {
    cluster: Arc<Cluster>,
    lease: Lease,
    /// Heartbeats that are shared at once.
    combined: Combined,
}

impl Together {
    /// Creates the value for a node that shares this store with others.
    pub fn new(
        store: &Arc<dyn Store>,
        cluster: Arc<Cluster>,
        terms: crate::lease::Terms,
    ) -> Together {
        Together {
            cluster,
            lease: Lease::new(Arc::clone(store), LEASE, terms),
            combined: Combined::default(),
        }
    }
}

impl Presence {
    /// Creates the presence of one of several nodes that receive heartbeats of the store's devices.
    pub fn among(store: Arc<dyn Store>, publisher: Publisher, together: Together) -> Presence {
        Presence {
            leases: Leases::shared(PRESENCE_GRACE).into(),
            together: Some(together),
            ..Presence::new(store, publisher)
        }
    }

    /// Watches the devices of all nodes whenever this node holds the lease, until the future is dropped. Returns at once if there are
    /// no other nodes.
    pub async fn keep_all(self: Arc<Self>) {
        let Some(together) = &self.together else {
            return;
        };
        while together.lease.acquire().await.is_ok() {
            self.lock().keep_all(true);
            let ended = together.lease.during(self.scan()).await;
            self.lock().keep_all(false);
            if ended.is_some() {
                return;
            }
        }
    }

    /// Lets another node watch all devices.
    pub async fn release(&self) {
        if let Some(together) = &self.together {
            together.lease.release().await;
        }
    }

    /// Reads periodically which devices are not offline. Returns when the store has stopped.
    async fn scan(&self) {
        let mut rounds = interval(PRESENCE_SCAN);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = Failures::default();
        loop {
            rounds.tick().await;
            match self.scan_once().await {
                Ok(()) => {
                    failures.worked();
                }
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    if let Some(failed) = failures.failed(Instant::now()) {
                        tracing::error!(%error, failed, "the devices of all nodes could not be read");
                    }
                }
            }
        }
    }

    async fn scan_once(&self) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let page = self
                .store
                .devices_not_offline(after, PRESENCE_BATCH)
                .await?;
            let Some((school, id, _)) = page.last() else {
                return Ok(());
            };
            after = Some((*school, id.clone()));
            let mut leases = self.lock();
            for (school, id, device) in page {
                leases.learn(&(school, id), &Shared::new(&device, None));
            }
        }
    }

    /// Renews the leases of devices that have sent heartbeats to this node. If a device is not online as far as this node
    /// knows, its heartbeat is shared at once, so that the answer takes all nodes into account.
    pub(super) async fn hear_together(
        &self,
        school: SchoolId,
        devices: &[SubjectId],
    ) -> Result<Vec<HeartbeatOutcome>, StoreError> {
        let heard = heard_now(self.clock.now());
        let mut outcomes: Vec<Option<HeartbeatOutcome>> = Vec::with_capacity(devices.len());
        // Heartbeats to share at once.
        let mut pressing: HashMap<&SubjectId, LastHeartbeats> = HashMap::new();
        {
            let mut leases = self.lock();
            for device in devices {
                let renewed = leases.renew(&(school, device.clone()), heard);
                let online = renewed.as_ref().filter(|renewal| !renewal.is_away());
                outcomes.push(online.map(|renewal| (Ok(renewal.answer), None)));
                if online.is_none() {
                    let earlier = pressing
                        .get(device)
                        .map(|heartbeats| heartbeats.last.uptime);
                    let before = renewed.map_or(earlier, |renewal| renewal.before);
                    let last = heard;
                    pressing.insert(device, LastHeartbeats { last, before });
                }
            }
        }
        let known = self.share_at_once(school, pressing, heard).await?;
        let answered = devices.iter().zip(outcomes).map(|(device, outcome)| {
            outcome.unwrap_or_else(|| match known.get(device) {
                None => (Err(not_found(device)), None),
                Some(known) => {
                    let standing = (known.status, known.lease_secs);
                    (Ok(answer(standing, heard)), arrival(known))
                }
            })
        });
        Ok(answered.collect())
    }

    /// Shares heartbeats of devices of a school. Returns what is then known of those that exist.
    async fn share_at_once<'a>(
        &self,
        school: SchoolId,
        heartbeats: HashMap<&'a SubjectId, LastHeartbeats>,
        heard: Heard,
    ) -> Result<HashMap<&'a SubjectId, Shared>, StoreError> {
        if heartbeats.is_empty() {
            return Ok(HashMap::new());
        }
        let (devices, heartbeats): (Vec<&SubjectId>, Vec<Heartbeat>) = heartbeats
            .into_iter()
            .map(|(device, heard)| {
                let heartbeat = Heartbeat {
                    school,
                    device: device.clone(),
                    heard,
                };
                (device, heartbeat)
            })
            .unzip();
        let save = |heartbeats| self.store.save_heartbeats(heartbeats);
        let known = match &self.together {
            Some(together) => together.combined.save(heartbeats, save).await?,
            None => save(heartbeats).await?,
        };
        let mut leases = self.lock();
        let known = devices.into_iter().zip(known);
        Ok(known
            .filter_map(|(device, known)| {
                let known = known?;
                let address = (school, device.clone());
                let is_new = leases.heard(&address).is_none();
                leases.learn(&address, &known);
                if is_new {
                    leases.renew(&address, heard);
                }
                Some((device, known))
            })
            .collect())
    }

    /// Shares the heartbeats received since the last call, and applies what the store then knows about their devices.
    pub(super) async fn share(&self) -> Result<(), StoreError> {
        let heartbeats = self.lock().take_unshared();
        let mut arriving = Vec::new();
        let mut parts = heartbeats.chunks(PRESENCE_BATCH);
        let mut saved = Ok(());
        for part in parts.by_ref() {
            match self.store.save_heartbeats(part.to_vec()).await {
                Ok(known) => self.take_in(part, &known, &mut arriving),
                Err(error) => {
                    self.lock().put_back_unshared(part.iter().map(address));
                    saved = Err(error);
                    break;
                }
            }
        }
        for part in parts {
            self.lock().put_back_unshared(part.iter().map(address));
        }
        self.carry_out(&arriving).await?;
        saved
    }

    fn take_in(
        &self,
        heartbeats: &[Heartbeat],
        known: &[Option<Shared>],
        arriving: &mut Vec<(Address, Command)>,
    ) {
        let mut leases = self.lock();
        for (heartbeat, known) in heartbeats.iter().zip(known) {
            let address = address(heartbeat);
            match known {
                None => leases.forget(&address),
                Some(known) => {
                    leases.learn(&address, known);
                    arriving.extend(arrival(known).map(|arrive| (address, arrive)));
                }
            }
        }
    }

    /// Ends leases that are over, unless another node has heard from the device.
    pub(super) async fn expire_together(
        &self,
        over: &[(Address, Command)],
        now: Uptime,
    ) -> Result<(), StoreError> {
        for part in over.chunks(PRESENCE_BATCH) {
            let devices = part.iter().map(|(address, _)| address.clone());
            let known = self.store.heartbeats_of(devices.collect()).await?;
            let ended = {
                let mut leases = self.lock();
                let judged = part.iter().zip(known);
                let judged = judged.filter_map(|((address, _), known)| {
                    let ended = leases.judge(address, known.as_ref(), now)?;
                    Some((address.clone(), ended))
                });
                judged.collect::<Vec<_>>()
            };
            self.carry_out(&ended).await?;
        }
        Ok(())
    }

    /// Returns which of these devices have sent a heartbeat to any node since this node started. A single node returns none without
    /// asking the store.
    pub(super) async fn heard_of(
        &self,
        devices: &[(SchoolId, SubjectId, Device)],
    ) -> Result<HashSet<Address>, StoreError> {
        if self.together.is_none() {
            return Ok(HashSet::new());
        }
        let addresses = devices.iter().map(|(school, id, _)| (*school, id.clone()));
        let addresses: Vec<Address> = addresses.collect();
        // Earlier heartbeats have been deleted by `forget_heartbeats`.
        let known = self.store.heartbeats_of(addresses.clone()).await?;
        let is_heard =
            |known: &Option<Shared>| known.as_ref().is_some_and(|shared| shared.heard.is_some());
        let known = addresses.into_iter().zip(known);
        let heard = known.filter_map(|(address, known)| is_heard(&known).then_some(address));
        Ok(heard.collect())
    }

    /// Returns whether devices must be marked as unknown because no node was running. Until that is known, no lease ends.
    pub(super) async fn has_to_mark_unknown(
        &self,
        together: &Together,
    ) -> Result<bool, StoreError> {
        match together.cluster.peers() {
            Peers::Unclear => Ok(false),
            Peers::Running => {
                self.lock().unknown_marking = UnknownMarking::All;
                Ok(false)
            }
            Peers::Absent => {
                if self.lock().unknown_marking == UnknownMarking::None {
                    self.store.forget_heartbeats(self.since).await?;
                }
                Ok(true)
            }
        }
    }
}

fn address(heartbeat: &Heartbeat) -> Address {
    (heartbeat.school, heartbeat.device.clone())
}

/// Returns the command that brings a device online, if its heartbeats do.
fn arrival(known: &Shared) -> Option<Command> {
    let LastHeartbeats { last, before } = known.heard?;
    let standing = (known.status, known.lease_secs);
    arrives(standing, known.lease_uptime, last.uptime, before).then_some(Command::Arrive {
        heard: last,
        before,
    })
}
