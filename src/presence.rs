//! Presence: leases of devices, in memory.
//!
//! Heartbeats are frequent. A heartbeat renews a lease here, and reaches the store only when it changes something (a
//! device comes or goes); the times of the last heartbeats are saved in batches. The rules in [`crate::kind::device`]
//! decide what a change means; this module only counts heartbeats and watches the clock.
//!
//! Leases are measured in [uptime](crate::uptime), and a restart does not renew them: each continues with its remaining
//! time. A server that was killed may have received heartbeats that it did not save. This is compensated once, when the
//! device is marked as unknown: from then on, until the device is back, each of its heartbeats is saved in the next
//! round.
//!
//! Committed events come back through [`Presence::observe`], including those from a device's own reports and from other
//! handles to the store, so the memory follows the log. It contains one entry for each device that is not offline, and
//! for each offline device that has started to send heartbeats again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, Utc};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{PRESENCE_BATCH, PRESENCE_FLUSH_PERIOD, PRESENCE_PERIOD};
use crate::event::{Draft, Event};
use crate::failures::Failures;
use crate::id::{SchoolId, SubjectId};
use crate::kind::device::{
    self, CLOCK_SKEW_SECS, Command, Device, HEARTBEATS_TO_ONLINE, Heard, InfoUpdate, Standing,
    Status, StatusUpdate, is_leased_anew,
};
use crate::kind::{self, State};
use crate::log::{CommandError, Envelope, Store, StoreError};
use crate::publish::Publisher;
use crate::uptime::{Uptime, UptimeClock};

type Address = (SchoolId, SubjectId);

/// Leases of devices.
pub struct Presence {
    store: Arc<dyn Store>,
    publisher: Publisher,
    clock: UptimeClock,
    leases: Mutex<Leases>,
}

#[derive(Default)]
struct Leases {
    held: HashMap<Address, Lease>,
    /// When to check which lease, at its deadline or before. Only the entry at a lease's `look_at` counts.
    due: BinaryHeap<Reverse<(Uptime, Address)>>,
    /// Devices whose last heartbeat is not saved yet.
    unwritten: Vec<Address>,
    /// Those of them whose status is unknown: their heartbeats are saved sooner.
    urgent: Vec<Address>,
    doubts: Doubts,
}

/// The progress of marking the devices that were online as unknown. This is done once per start, even if the task
/// restarts.
#[derive(Default, Clone, PartialEq)]
enum Doubts {
    #[default]
    None,
    UpTo(Address),
    All,
}

struct Lease {
    status: Status,
    lease_secs: u32,
    deadline: Uptime,
    look_at: Uptime,
    /// Whether `due` has an entry for `look_at`; it has none while the end of the lease is being published.
    is_looked_at: bool,
    /// Consecutive heartbeats, each within the lease of the previous one.
    beats: u32,
    /// The last heartbeat.
    heard: Option<Heard>,
    unwritten: bool,
    /// The `seq` of the device's last event.
    seq: u64,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// The device's status after it.
    pub status: Status,
    /// When the heartbeat was received.
    pub seen_at: DateTime<Utc>,
    /// When the device goes offline if no further heartbeat arrives.
    pub expires_at: DateTime<Utc>,
}

/// A heartbeat, as it is answered and as it is saved.
struct Renewed {
    told: HeartbeatAnswer,
    heard: Heard,
}

/// The relevant fields of a device's event, in addition to the status.
struct Told {
    lease_secs: u32,
    last_seen: Option<DateTime<Utc>>,
}

impl Told {
    fn by(draft: &Draft) -> Option<Told> {
        if let Some(update) = draft.payload::<InfoUpdate>() {
            return Some(Told {
                lease_secs: update.lease_secs,
                last_seen: None,
            });
        }
        let update = draft.payload::<StatusUpdate>()?;
        Some(Told {
            lease_secs: update.lease_secs,
            last_seen: update.last_seen,
        })
    }
}

impl Presence {
    /// Creates the leases of this store's devices.
    pub fn new(store: Arc<dyn Store>, publisher: Publisher) -> Presence {
        Presence {
            clock: store.uptime(),
            store,
            publisher,
            leases: Mutex::default(),
        }
    }

    /// Returns how many leases are held.
    pub fn leases(&self) -> usize {
        self.lock().held.len()
    }

    /// Processes the heartbeats of several devices, and answers each after the commit of its change, if any. All devices
    /// that come online share one commit.
    pub async fn beats(
        &self,
        school: SchoolId,
        devices: &[SubjectId],
    ) -> Result<Vec<Result<HeartbeatAnswer, CommandError>>, StoreError> {
        let mut beats = Vec::with_capacity(devices.len());
        let mut arriving = Vec::new();
        for device in devices {
            let Some((beat, arrives)) = self.renew(school, device).await? else {
                let missing = kind::not_found(device::KIND, device.as_str());
                beats.push(Err(missing.into()));
                continue;
            };
            if arrives {
                arriving.push((beats.len(), device.clone(), Command::Arrive(beat.heard)));
            }
            beats.push(Ok(beat.told));
        }
        if arriving.is_empty() {
            return Ok(beats);
        }
        let commands = arriving
            .iter()
            .map(|(_, device, command)| envelope(device.clone(), command.clone()));
        let answers = self.publisher.batch(school, commands.collect()).await?;
        for ((index, ..), answer) in arriving.into_iter().zip(answers) {
            match answer {
                Ok(receipt) => {
                    self.observe(std::slice::from_ref(receipt.event()));
                    if let Ok(beat) = &mut beats[index] {
                        beat.status = Status::Online;
                    }
                }
                Err(error) => beats[index] = Err(error),
            }
        }
        Ok(beats)
    }

    /// Renews a lease, loading the device first if necessary. Returns `None` if there is no such device.
    async fn renew(
        &self,
        school: SchoolId,
        device: &SubjectId,
    ) -> Result<Option<(Renewed, bool)>, StoreError> {
        let address = (school, device.clone());
        let known = self.lock().beat(&address, self.clock.now());
        if known.is_some() {
            return Ok(known);
        }
        let stored = self
            .store
            .subject(school, device::KIND, device.clone())
            .await?;
        let Some(State::Device(state)) = stored.map(|stored| stored.state) else {
            return Ok(None);
        };
        let now = self.clock.now();
        let mut leases = self.lock();
        leases.hold(address.clone(), &state, now);
        Ok(leases.beat(&address, now))
    }

    /// Adds the time at which the device was last heard from to another client's report. The store may not know it yet.
    pub fn complete(&self, school: SchoolId, envelope: &mut Envelope) {
        let kind::Command::Device(Command::Report(report)) = &mut envelope.command else {
            return;
        };
        // A report that only says "online" counts as a heartbeat received now.
        if report.status != Status::Online || report.last_seen.is_some() {
            let address = (school, envelope.subject.clone());
            let leases = self.lock();
            let heard = leases.held.get(&address).and_then(|lease| lease.heard);
            report.last_seen = report.last_seen.max(heard.map(|heard| heard.at));
        }
    }

    /// Updates the leases from committed events.
    pub fn observe(&self, events: &[Arc<Event>]) {
        for event in events.iter().filter(|event| event.kind == device::KIND) {
            let status = Status::parse(event.draft.status);
            if let Some((status, told)) = status.zip(Told::by(&event.draft)) {
                let address = (event.school, event.subject.clone());
                let now = self.clock.now();
                self.lock().observe(address, event.seq, status, &told, now);
            }
        }
    }

    /// Marks devices that were online as unknown, then watches the leases and saves the last heartbeats, until the future
    /// is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut rounds = interval(PRESENCE_PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flushed = self.clock.now();
        let mut failures = Failures::default();
        loop {
            rounds.tick().await;
            // No lease ends before all devices have been marked: otherwise all would be reported offline at once.
            let is_doubted = self.lock().doubts == Doubts::All;
            let mut done = match is_doubted {
                false => self.doubt().await,
                // Heartbeats that arrived while the process was stopped are processed first.
                true if self.clock.is_catching_up() => Ok(()),
                true => self.expire().await,
            };
            if done.is_ok() && self.clock.now().since(flushed) >= PRESENCE_FLUSH_PERIOD {
                done = self.flush().await;
                flushed = self.clock.now();
            } else if done.is_ok() {
                done = self.flush_urgent().await;
            }
            match done {
                Ok(()) => {
                    failures.worked();
                }
                Err(StoreError::Stopped) => return,
                Err(StoreError::Displaced | StoreError::NotCommitted) => {}
                Err(error) => {
                    if let Some(failed) = failures.failed(Instant::now()) {
                        tracing::error!(%error, failed, "the leases of devices could not be kept");
                    }
                }
            }
        }
    }

    /// Saves when devices were last heard from.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let seen = self.lock().take_unwritten();
        self.write_down(seen).await
    }

    /// The same for devices whose status is unknown.
    async fn flush_urgent(&self) -> Result<(), StoreError> {
        let seen = self.lock().take_urgent();
        self.write_down(seen).await
    }

    async fn write_down(&self, seen: Vec<(Address, Command)>) -> Result<(), StoreError> {
        // On failure, they are saved with the next batch.
        self.carry_out_or(seen, Leases::put_back).await
    }

    /// Marks devices as unknown: a new server does not know which of them are still there, so a device that was online is
    /// unknown for the rest of its lease. After a failure, the next call continues here.
    async fn doubt(&self) -> Result<(), StoreError> {
        let unwritten = match self.clock.was_cut_off() {
            true => PRESENCE_FLUSH_PERIOD,
            false => Duration::ZERO,
        };
        loop {
            let doubted = match self.lock().doubts.clone() {
                Doubts::None => None,
                Doubts::UpTo(last) => Some(last),
                Doubts::All => return Ok(()),
            };
            let page = self
                .store
                .devices_not_offline(doubted, PRESENCE_BATCH)
                .await?;
            let Some((school, id, _)) = page.last() else {
                self.lock().doubts = Doubts::All;
                return Ok(());
            };
            let last = (*school, id.clone());
            let mut doubts = Vec::new();
            for (school, id, device) in page {
                let address = (school, id);
                let is_online = device.status == Status::Online;
                let leased = match is_online {
                    true => device.doubted_from(unwritten, self.clock.now()),
                    false => device.lease_uptime,
                };
                self.lock().hold(address.clone(), &device, leased);
                if is_online {
                    doubts.push((address, Command::Doubt { unwritten }));
                }
            }
            self.carry_out(&doubts).await?;
            self.lock().doubts = Doubts::UpTo(last);
        }
    }

    /// Ends the leases that have expired.
    async fn expire(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let over = self.lock().take_over(now);
        // On failure, they are still expired in the next round.
        self.carry_out_or(over, move |leases, over| {
            over.into_iter()
                .for_each(|(address, _)| leases.look(address, now));
        })
        .await
    }

    /// Carries commands out. If that fails, panics or is dropped, calls `otherwise` with the commands.
    async fn carry_out_or(
        &self,
        commands: Vec<(Address, Command)>,
        otherwise: impl FnOnce(&mut Leases, Vec<(Address, Command)>),
    ) -> Result<(), StoreError> {
        let mut undone = Undone {
            presence: self,
            commands,
            otherwise: Some(otherwise),
        };
        self.carry_out(&undone.commands).await?;
        undone.otherwise = None;
        Ok(())
    }

    async fn carry_out(&self, commands: &[(Address, Command)]) -> Result<(), StoreError> {
        for part in commands.chunks(PRESENCE_BATCH) {
            let mut by_school: HashMap<SchoolId, Vec<Envelope>> = HashMap::new();
            for ((school, id), command) in part {
                let of_school = by_school.entry(*school).or_default();
                of_school.push(envelope(id.clone(), command.clone()));
            }
            for (school, envelopes) in by_school {
                for answer in self.publisher.batch(school, envelopes).await? {
                    match answer {
                        Ok(receipt) => self.observe(std::slice::from_ref(receipt.event())),
                        Err(reason) => {
                            tracing::warn!(school.id = %school, %reason, "a device's lease could not be ended");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commands that are not carried out yet, and what to do with them if they never are.
struct Undone<'a, F: FnOnce(&mut Leases, Vec<(Address, Command)>)> {
    presence: &'a Presence,
    commands: Vec<(Address, Command)>,
    otherwise: Option<F>,
}

impl<F: FnOnce(&mut Leases, Vec<(Address, Command)>)> Drop for Undone<'_, F> {
    fn drop(&mut self) {
        if let Some(otherwise) = self.otherwise.take() {
            let commands = std::mem::take(&mut self.commands);
            otherwise(&mut self.presence.lock(), commands);
        }
    }
}

fn envelope(subject: SubjectId, command: Command) -> Envelope {
    Envelope::new(subject, kind::Command::Device(command))
}

fn lease(secs: u32) -> Duration {
    Duration::from_secs(secs.into())
}

impl Leases {
    /// Adds a lease that starts at `leased` for a stored device, unless it already has one.
    fn hold(&mut self, address: Address, device: &Device, leased: Uptime) {
        let (status, lease_secs) = device.standing();
        self.insert(
            address,
            (status, lease_secs),
            leased,
            device.reported_status.0,
        );
    }

    fn insert(&mut self, address: Address, standing: Standing, leased: Uptime, seq: u64) {
        if self.held.contains_key(&address) {
            return;
        }
        let (status, lease_secs) = standing;
        let deadline = leased + lease(lease_secs);
        self.due.push(Reverse((deadline, address.clone())));
        self.held.insert(
            address,
            Lease {
                status,
                lease_secs,
                deadline,
                look_at: deadline,
                is_looked_at: true,
                beats: 0,
                heard: None,
                unwritten: false,
                seq,
            },
        );
    }

    /// Renews a lease, if one is held. The second value is whether the device has now come online.
    fn beat(&mut self, address: &Address, now: Uptime) -> Option<(Renewed, bool)> {
        let held = self.held.get_mut(address)?;
        let heard = Heard {
            at: Utc::now().trunc_subsecs(3),
            uptime: now,
        };
        if held.deadline <= now {
            // It was silent for a whole lease: earlier heartbeats do not count.
            held.beats = 0;
        }
        held.beats = held.beats.saturating_add(1);
        held.heard = Some(heard);
        held.deadline = now + lease(held.lease_secs);
        if !held.unwritten {
            held.unwritten = true;
            let queue = match held.status {
                Status::Unknown => &mut self.urgent,
                Status::Online | Status::Offline => &mut self.unwritten,
            };
            queue.push(address.clone());
        }
        let told = HeartbeatAnswer {
            status: held.status,
            seen_at: heard.at,
            expires_at: heard.at + lease(held.lease_secs),
        };
        let arrives = held.status != Status::Online && held.beats >= HEARTBEATS_TO_ONLINE;
        Some((Renewed { told, heard }, arrives))
    }

    fn observe(&mut self, address: Address, seq: u64, status: Status, told: &Told, now: Uptime) {
        let standing = (status, told.lease_secs);
        let Some(held) = self.held.get_mut(&address) else {
            if status != Status::Offline {
                self.insert(address, standing, now, seq);
            }
            return;
        };
        let before = (held.status, held.lease_secs);
        if seq > held.seq {
            if before != standing && status == Status::Offline {
                // Heartbeats from before it went offline do not count for its return.
                held.beats = 0;
            }
            if before.0 != status && status == Status::Unknown && held.unwritten {
                self.urgent.push(address.clone());
            }
            (held.status, held.lease_secs) = standing;
            if is_leased_anew(before, standing) {
                held.deadline = now + lease(held.lease_secs);
            }
            held.seq = seq;
        }
        // A device's own report, received elsewhere, renews the lease like a heartbeat. A time in the future comes from
        // before the wall clock was set back, and is ignored.
        let whole = lease(held.lease_secs);
        let most = whole + Duration::from_secs(CLOCK_SKEW_SECS.unsigned_abs());
        let left = told.last_seen.map(|seen_at| seen_at + whole - Utc::now());
        let left = left.and_then(|left| left.to_std().ok());
        if let Some(left) = left.filter(|left| *left <= most) {
            held.deadline = held.deadline.max(now + left.min(whole));
        }
        let deadline = held.deadline;
        // A later deadline is noticed when the lease is checked.
        if deadline < held.look_at || !held.is_looked_at {
            self.look(address, deadline);
        }
    }

    /// Schedules the lease's check for `at`, instead of the previous time.
    fn look(&mut self, address: Address, at: Uptime) {
        if let Some(lease) = self.held.get_mut(&address) {
            lease.look_at = at;
            lease.is_looked_at = true;
            self.due.push(Reverse((at, address)));
        }
    }

    /// Takes the expired leases, with the commands for them. The lease of an offline device is simply dropped.
    fn take_over(&mut self, now: Uptime) -> Vec<(Address, Command)> {
        let mut over = Vec::new();
        while self.due.peek().is_some_and(|Reverse((due, _))| *due <= now) {
            let Some(Reverse((due, address))) = self.due.pop() else {
                break;
            };
            let Some(lease) = self
                .held
                .get_mut(&address)
                .filter(|lease| lease.look_at == due)
            else {
                continue;
            };
            lease.is_looked_at = false;
            if lease.deadline > now {
                let deadline = lease.deadline;
                self.look(address, deadline);
            } else if lease.status != Status::Offline {
                lease.beats = 0;
                over.push((address, Command::Expire(lease.heard)));
            } else if lease.unwritten {
                // Dropped once the last heartbeat is saved.
                self.look(address, now + PRESENCE_FLUSH_PERIOD);
            } else {
                self.held.remove(&address);
            }
        }
        over
    }

    fn take_unwritten(&mut self) -> Vec<(Address, Command)> {
        let mut addresses = std::mem::take(&mut self.urgent);
        addresses.append(&mut self.unwritten);
        self.last_words(addresses)
    }

    fn take_urgent(&mut self) -> Vec<(Address, Command)> {
        let addresses = std::mem::take(&mut self.urgent);
        self.last_words(addresses)
    }

    fn put_back(&mut self, seen: Vec<(Address, Command)>) {
        for (address, _) in seen {
            if let Some(lease) = self.held.get_mut(&address) {
                lease.unwritten = true;
                self.unwritten.push(address);
            }
        }
    }

    /// Returns the unsaved heartbeats of these devices, and marks them as saved.
    fn last_words(&mut self, addresses: Vec<Address>) -> Vec<(Address, Command)> {
        let mut seen = Vec::with_capacity(addresses.len());
        for address in addresses {
            if let Some(lease) = self.held.get_mut(&address).filter(|lease| lease.unwritten) {
                lease.unwritten = false;
                seen.extend(lease.heard.map(|heard| (address, Command::Seen(heard))));
            }
        }
        seen
    }
}
