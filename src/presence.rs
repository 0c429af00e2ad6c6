//! Who is there: leases of devices, in memory.
//!
//! A beat is a high-rate call. It renews a lease here and reaches the store only when it changes something
//! (a device comes or goes); when a device was last heard of is written down in batches. What a change means
//! is the business of the rules in [`crate::kind::device`]; here are only counting and the clock.
//!
//! Leases are measured in [uptime](crate::uptime), and a restart does not renew them: each goes on with what was left of
//! it. A server that was killed may have heard of a device without writing it down. That is made good once, when the
//! device is doubted: from then on, until it is back, each of its beats is written down at the next round.
//!
//! What was decided comes back with the committed events ([`Presence::observe`]), also from a device's own
//! word and from other handles on the store, so the memory follows the log. It holds one entry for each
//! device that is not gone, and for a gone one that has begun to beat again.

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
    self, CLOCK_SKEW_SECS, Command, Device, GOOD_BEATS, Heard, InfoUpdate, Standing, Status,
    StatusUpdate, is_leased_anew,
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
    /// When to look at which lease, at its deadline or before. Only the entry at a lease's `look_at` counts.
    due: BinaryHeap<Reverse<(Uptime, Address)>>,
    /// Whose last beat is not written down yet.
    unwritten: Vec<Address>,
    /// Those of them that are not known to be there, so that it is to be written down soon.
    urgent: Vec<Address>,
    doubts: Doubts,
}

/// How far everyone who was online has been doubted. It is done once after a start, also if the task starts again.
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
    /// Whether there is an entry for that; there is none while the end of the lease is being told.
    is_looked_at: bool,
    /// Beats in a row, each within the lease of the one before.
    beats: u32,
    /// Its last beat.
    heard: Option<Heard>,
    unwritten: bool,
    /// The last event of it.
    seq: u64,
}

/// The answer to a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The device's status after it.
    pub status: Status,
    /// When it was heard.
    pub seen_at: DateTime<Utc>,
    /// When the device is offline, if no other beat comes.
    pub expires_at: DateTime<Utc>,
}

/// A beat, as it is answered and as it is written down.
struct Renewed {
    told: Beat,
    heard: Heard,
}

/// What a device's event says in addition to the status.
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
    /// Leases of the devices of this store.
    pub fn new(store: Arc<dyn Store>, publisher: Publisher) -> Presence {
        Presence {
            clock: store.uptime(),
            store,
            publisher,
            leases: Mutex::default(),
        }
    }

    /// How many leases are held.
    pub fn leases(&self) -> usize {
        self.lock().held.len()
    }

    /// Takes in beats of several devices, and answers each after the commit of what it changed, if it changed anything; those
    /// who arrive do so in one commit.
    pub async fn beats(
        &self,
        school: SchoolId,
        devices: &[SubjectId],
    ) -> Result<Vec<Result<Beat, CommandError>>, StoreError> {
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

    /// Renews a lease, taking it up first if need be. Nothing if there is no such device.
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

    /// Completes a report of somebody else with when the device was last heard of, which the store may not know yet.
    pub fn complete(&self, school: SchoolId, envelope: &mut Envelope) {
        let kind::Command::Device(Command::Report(report)) = &mut envelope.command else {
            return;
        };
        // That it is online, and no more, is heard now.
        if report.status != Status::Online || report.last_seen.is_some() {
            let address = (school, envelope.subject.clone());
            let leases = self.lock();
            let heard = leases.held.get(&address).and_then(|lease| lease.heard);
            report.last_seen = report.last_seen.max(heard.map(|heard| heard.at));
        }
    }

    /// Takes note of committed events.
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

    /// Doubts who is there, then watches the leases and writes down who was heard of, until it is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut rounds = interval(PRESENCE_PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flushed = self.clock.now();
        let mut failures = Failures::default();
        loop {
            rounds.tick().await;
            // No lease ends before everyone has been doubted: that would be a mass "offline".
            let is_doubted = self.lock().doubts == Doubts::All;
            let mut done = match is_doubted {
                false => self.doubt().await,
                // What was said while the process did not run is heard first.
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

    /// Writes down when devices were last heard of.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let seen = self.lock().take_unwritten();
        self.write_down(seen).await
    }

    /// The same for devices that are not known to be there.
    async fn flush_urgent(&self) -> Result<(), StoreError> {
        let seen = self.lock().take_urgent();
        self.write_down(seen).await
    }

    async fn write_down(&self, seen: Vec<(Address, Command)>) -> Result<(), StoreError> {
        // They are written down with the next otherwise.
        self.carry_out_or(seen, Leases::put_back).await
    }

    /// A new server does not know who is there: what was online is unknown for what is left of its lease. After a failure
    /// the same is tried again.
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

    /// Ends the leases that are over.
    async fn expire(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let over = self.lock().take_over(now);
        // They are still over at the next round otherwise.
        self.carry_out_or(over, move |leases, over| {
            over.into_iter()
                .for_each(|(address, _)| leases.look(address, now));
        })
        .await
    }

    /// Carries commands out, or does something else about them: if that fails, panics, or is dropped.
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

/// Commands that are not carried out yet, and what is done about them if they are not.
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
    /// Holds a lease that counts from `leased` for a device as it is stored, unless there is one.
    fn hold(&mut self, address: Address, device: &Device, leased: Uptime) {
        let (status, lease_secs) = device.standing();
        self.insert(address, (status, lease_secs), leased, device.told_status.0);
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

    /// Renews a lease, if it is held. The second part says whether the device has now arrived.
    fn beat(&mut self, address: &Address, now: Uptime) -> Option<(Renewed, bool)> {
        let held = self.held.get_mut(address)?;
        let heard = Heard {
            at: Utc::now().trunc_subsecs(3),
            uptime: now,
        };
        if held.deadline <= now {
            // It was silent for a whole lease: what it said before does not count.
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
        let told = Beat {
            status: held.status,
            seen_at: heard.at,
            expires_at: heard.at + lease(held.lease_secs),
        };
        let arrives = held.status != Status::Online && held.beats >= GOOD_BEATS;
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
                // Beats before it went do not count for its return.
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
        // Its own word, heard elsewhere, renews the lease as a beat does. One that lies ahead was heard before the wall clock
        // was set back, and says nothing.
        let whole = lease(held.lease_secs);
        let most = whole + Duration::from_secs(CLOCK_SKEW_SECS.unsigned_abs());
        let left = told.last_seen.map(|seen_at| seen_at + whole - Utc::now());
        let left = left.and_then(|left| left.to_std().ok());
        if let Some(left) = left.filter(|left| *left <= most) {
            held.deadline = held.deadline.max(now + left.min(whole));
        }
        let deadline = held.deadline;
        // A later one is found when the lease is looked at.
        if deadline < held.look_at || !held.is_looked_at {
            self.look(address, deadline);
        }
    }

    /// Looks at a lease then, and not at the time that was set before.
    fn look(&mut self, address: Address, at: Uptime) {
        if let Some(lease) = self.held.get_mut(&address) {
            lease.look_at = at;
            lease.is_looked_at = true;
            self.due.push(Reverse((at, address)));
        }
    }

    /// Leases that are over, with what to do about them. A gone device's is simply forgotten.
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
                // Forgotten once it is written down.
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

    /// What is to be written down of these, unless it has been.
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
