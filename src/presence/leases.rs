//! The leases that a node holds in memory.
//!
//! The ends are in a heap rather than in a queue of Tokio timers, because they are measured in [uptime](crate::uptime), which
//! stands still while the server does not listen. Tokio's time does not.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};

use super::{Address, HeartbeatAnswer};
use crate::config::PRESENCE_FLUSH_PERIOD;
use crate::event::Draft;
use crate::kind::device::{
    CLOCK_SKEW_SECS, Command, Device, HEARTBEATS_TO_ONLINE, Heard, InfoUpdate, Standing, Status,
    StatusUpdate, is_leased_anew,
};
use crate::log::heartbeats::{Heartbeat, LastHeartbeats, Shared};
use crate::uptime::Uptime;

/// Leases of devices.
#[derive(Default)]
pub(super) struct Leases {
    held: HashMap<Address, Lease>,
    /// When to check each lease: at its end or earlier. An entry counts only if its time is the lease's `check_at`.
    due: BinaryHeap<Reverse<(Uptime, Address)>>,
    /// Devices whose last heartbeat is not saved yet.
    unwritten: Vec<Address>,
    /// Those of these devices whose status is unknown. Their heartbeats are saved sooner.
    urgent: Vec<Address>,
    /// Devices whose last heartbeat other nodes do not know yet. Empty on a single node.
    unshared: Vec<Address>,
    /// Set if other nodes receive heartbeats, too.
    sharing: Option<Sharing>,
    pub(super) unknown_marking: UnknownMarking,
}

/// How leases work where several nodes receive heartbeats.
#[derive(Clone, Copy)]
pub(super) struct Sharing {
    /// The time that heartbeats at other nodes take to arrive here. A lease is checked this long after its end.
    pub(super) grace: Duration,
    /// Whether this node watches all devices, not only those whose heartbeats it receives.
    pub(super) keeps_all: bool,
}

/// The progress of marking the devices that were online as unknown. This is done once per start, even if the task
/// restarts.
#[derive(Default, Clone, PartialEq)]
pub(super) enum UnknownMarking {
    #[default]
    None,
    UpTo(Address),
    All,
}

struct Lease {
    status: Status,
    lease_secs: u32,
    deadline: Uptime,
    check_at: Uptime,
    /// Whether `due` has an entry for `check_at`. It has none while the end of the lease is being published.
    is_scheduled: bool,
    /// Consecutive heartbeats, each within the lease of the previous one.
    heartbeat_count: u32,
    /// The last heartbeat.
    heard: Option<Heard>,
    /// The one before it, if it is consecutive.
    before: Option<Uptime>,
    unwritten: bool,
    unshared: bool,
    /// The `seq` of the device's last event.
    seq: u64,
}

/// A heartbeat, as it is answered, saved and shared.
pub(super) struct Renewed {
    pub(super) answer: HeartbeatAnswer,
    pub(super) heard: Heard,
    pub(super) before: Option<Uptime>,
    /// Whether the device comes online now, as far as this node alone can tell.
    pub(super) arrives: bool,
}

impl Renewed {
    /// Whether the device is not online, as far as this node knows.
    pub(super) fn is_away(&self) -> bool {
        self.answer.status != Status::Online
    }
}

/// The relevant fields of a device's event, in addition to the status.
pub(super) struct LeaseUpdate {
    lease_secs: u32,
    last_seen: Option<DateTime<Utc>>,
}

impl LeaseUpdate {
    pub(super) fn by(draft: &Draft) -> Option<LeaseUpdate> {
        if let Some(update) = draft.payload::<InfoUpdate>() {
            return Some(LeaseUpdate {
                lease_secs: update.lease_secs,
                last_seen: None,
            });
        }
        let update = draft.payload::<StatusUpdate>()?;
        Some(LeaseUpdate {
            lease_secs: update.lease_secs,
            last_seen: update.last_seen,
        })
    }
}

/// Returns a heartbeat that arrives now.
pub(super) fn heard_now(now: Uptime) -> Heard {
    Heard {
        at: Utc::now().trunc_subsecs(3),
        uptime: now,
    }
}

/// Returns the answer to a heartbeat of a device.
pub(super) fn answer((status, lease_secs): Standing, heard: Heard) -> HeartbeatAnswer {
    HeartbeatAnswer {
        status,
        seen_at: heard.at,
        expires_at: heard.at + lease(lease_secs),
    }
}

fn lease(secs: u32) -> Duration {
    Duration::from_secs(secs.into())
}

impl Leases {
    /// Creates the leases of devices whose heartbeats other nodes receive, too.
    pub(super) fn shared(grace: Duration) -> Leases {
        Leases {
            sharing: Some(Sharing {
                grace,
                keeps_all: false,
            }),
            ..Leases::default()
        }
    }

    /// Sets whether this node watches all devices.
    pub(super) fn keep_all(&mut self, keeps_all: bool) {
        if let Some(sharing) = &mut self.sharing {
            sharing.keeps_all = keeps_all;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Returns when a device was last heard from here.
    pub(super) fn heard(&self, address: &Address) -> Option<Heard> {
        self.held.get(address).and_then(|lease| lease.heard)
    }

    fn grace(&self) -> Duration {
        self.sharing.map_or(Duration::ZERO, |sharing| sharing.grace)
    }

    /// Adds a lease that starts at `leased` for a stored device, unless it already has one.
    pub(super) fn hold(&mut self, address: Address, device: &Device, leased: Uptime) {
        let seq = device.reported_status.0;
        self.insert(address, device.standing(), leased, seq);
    }

    fn insert(&mut self, address: Address, standing: Standing, leased: Uptime, seq: u64) {
        if self.held.contains_key(&address) {
            return;
        }
        let (status, lease_secs) = standing;
        let deadline = leased + lease(lease_secs);
        let check_at = deadline + self.grace();
        self.due.push(Reverse((check_at, address.clone())));
        self.held.insert(
            address,
            Lease {
                status,
                lease_secs,
                deadline,
                check_at,
                is_scheduled: true,
                heartbeat_count: 0,
                heard: None,
                before: None,
                unwritten: false,
                unshared: false,
                seq,
            },
        );
    }

    /// Renews a lease, if one is held.
    pub(super) fn renew(&mut self, address: &Address, heard: Heard) -> Option<Renewed> {
        let now = heard.uptime;
        let held = self.held.get_mut(address)?;
        if held.deadline <= now {
            // It was silent for a whole lease: earlier heartbeats do not count.
            held.heartbeat_count = 0;
        }
        let last = held.heard.filter(|_| held.heartbeat_count > 0);
        held.before = last.map(|heard| heard.uptime);
        held.heartbeat_count = held.heartbeat_count.saturating_add(1);
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
        if self.sharing.is_some() && !held.unshared {
            held.unshared = true;
            self.unshared.push(address.clone());
        }
        Some(Renewed {
            answer: answer((held.status, held.lease_secs), heard),
            heard,
            before: held.before,
            arrives: held.status != Status::Online && held.heartbeat_count >= HEARTBEATS_TO_ONLINE,
        })
    }

    pub(super) fn observe(
        &mut self,
        address: Address,
        seq: u64,
        status: Status,
        update: &LeaseUpdate,
        now: Uptime,
    ) {
        let standing = (status, update.lease_secs);
        if !self.held.contains_key(&address) {
            if status != Status::Offline {
                self.insert(address, standing, now, seq);
            }
            return;
        }
        self.follows(&address, seq, standing, Some(now));
        let Some(held) = self.held.get_mut(&address) else {
            return;
        };
        // A device's own report, received elsewhere, renews the lease like a heartbeat. A time in the future comes from
        // before the wall clock was set back, and is ignored.
        let whole = lease(held.lease_secs);
        let max_left = whole + Duration::from_secs(CLOCK_SKEW_SECS.unsigned_abs());
        let left = update.last_seen.map(|seen_at| seen_at + whole - Utc::now());
        let left = left.and_then(|left| left.to_std().ok());
        if let Some(left) = left.filter(|left| *left <= max_left) {
            held.deadline = held.deadline.max(now + left.min(whole));
        }
        self.check_in_time(address);
    }

    /// Applies a device's status and lease if event `seq` is newer than the last one known here. If the change starts a new
    /// lease, it starts at `now`, if given.
    fn follows(&mut self, address: &Address, seq: u64, standing: Standing, now: Option<Uptime>) {
        let Some(held) = self.held.get_mut(address).filter(|held| seq > held.seq) else {
            return;
        };
        let before = (held.status, held.lease_secs);
        let status = standing.0;
        if before != standing && status == Status::Offline {
            // Heartbeats from before it went offline do not count for its return.
            held.heartbeat_count = 0;
        }
        if before.0 != status && status == Status::Unknown && held.unwritten {
            self.urgent.push(address.clone());
        }
        (held.status, held.lease_secs) = standing;
        if let Some(now) = now.filter(|_| is_leased_anew(before, standing)) {
            held.deadline = now + lease(held.lease_secs);
        }
        held.seq = seq;
    }

    /// Applies what the store knows about a device. The memory of this node may be out of date.
    pub(super) fn learn(&mut self, address: &Address, known: &Shared) {
        let standing = (known.status, known.lease_secs);
        let last = known.heard.map(|heard| heard.last);
        let leased = last.map_or(known.lease_uptime, |last| {
            last.uptime.max(known.lease_uptime)
        });
        self.insert(address.clone(), standing, leased, known.seq);
        let is_current = |held: &Lease| known.seq >= held.seq;
        let is_current = self.held.get(address).is_some_and(is_current);
        self.follows(address, known.seq, standing, None);
        let Some(held) = self.held.get_mut(address) else {
            return;
        };
        let heard = held.heard.map(|heard| heard.uptime);
        let deadline = heard.map_or(leased, |heard| heard.max(leased)) + lease(held.lease_secs);
        // A current answer may also shorten the lease. One from before the last event that is known here may only extend it.
        held.deadline = match is_current {
            true => deadline,
            false => held.deadline.max(deadline),
        };
        if held.is_heard_elsewhere(known) {
            // The node that received the last heartbeat saves it.
            held.unwritten = false;
        }
        self.check_in_time(address.clone());
    }

    /// Decides about a lease that has ended as far as this node knows. Returns the command that ends it, unless the store knows
    /// of a later heartbeat. A device whose heartbeats another node receives is left to that node.
    pub(super) fn judge(
        &mut self,
        address: &Address,
        known: Option<&Shared>,
        now: Uptime,
    ) -> Option<Command> {
        let Some(known) = known else {
            self.held.remove(address);
            return None;
        };
        self.learn(address, known);
        let check_at = self.held.get(address)?.deadline + self.grace();
        let keeps_all = self.sharing.is_none_or(|sharing| sharing.keeps_all);
        let held = self.held.get_mut(address)?;
        if check_at > now {
            if held.is_heard_elsewhere(known) && !keeps_all && !held.unshared {
                self.held.remove(address);
            }
            return None;
        }
        if held.status == Status::Offline {
            return None;
        }
        held.is_scheduled = false;
        let last = known.heard.map(|heard| heard.last);
        let latest = |one: Heard, other: Heard| match one.uptime >= other.uptime {
            true => one,
            false => other,
        };
        let heard = match (held.heard, last) {
            (Some(here), Some(last)) => Some(latest(here, last)),
            (here, last) => here.or(last),
        };
        Some(Command::Expire(heard))
    }

    /// Forgets a device that does not exist.
    pub(super) fn forget(&mut self, address: &Address) {
        self.held.remove(address);
    }

    /// Schedules the check of a lease, unless it is checked in time. A later end is noticed when the lease is checked.
    fn check_in_time(&mut self, address: Address) {
        let grace = self.grace();
        if let Some(held) = self.held.get(&address) {
            let at = held.deadline + grace;
            if at < held.check_at || !held.is_scheduled {
                self.schedule_check(address, at);
            }
        }
    }

    /// Schedules the lease's check for `at`, instead of the previous time.
    pub(super) fn schedule_check(&mut self, address: Address, at: Uptime) {
        if let Some(lease) = self.held.get_mut(&address) {
            lease.check_at = at;
            lease.is_scheduled = true;
            self.due.push(Reverse((at, address)));
        }
    }

    /// Takes the expired leases, with the commands that end them. The lease of an offline device is only dropped.
    pub(super) fn take_over(&mut self, now: Uptime) -> Vec<(Address, Command)> {
        let grace = self.grace();
        let mut over = Vec::new();
        while self.due.peek().is_some_and(|Reverse((due, _))| *due <= now) {
            let Some(Reverse((due, address))) = self.due.pop() else {
                break;
            };
            let Some(lease) = self
                .held
                .get_mut(&address)
                .filter(|lease| lease.check_at == due)
            else {
                continue;
            };
            lease.is_scheduled = false;
            if lease.deadline + grace > now {
                let at = lease.deadline + grace;
                self.schedule_check(address, at);
            } else if lease.status != Status::Offline {
                lease.heartbeat_count = 0;
                over.push((address, Command::Expire(lease.heard)));
            } else if lease.unwritten {
                // Dropped once the last heartbeat is saved.
                self.schedule_check(address, now + PRESENCE_FLUSH_PERIOD);
            } else {
                self.held.remove(&address);
            }
        }
        over
    }

    pub(super) fn take_unwritten(&mut self) -> Vec<(Address, Command)> {
        let mut addresses = std::mem::take(&mut self.urgent);
        addresses.append(&mut self.unwritten);
        self.last_words(addresses)
    }

    pub(super) fn take_urgent(&mut self) -> Vec<(Address, Command)> {
        let addresses = std::mem::take(&mut self.urgent);
        self.last_words(addresses)
    }

    pub(super) fn put_back(&mut self, seen: Vec<(Address, Command)>) {
        for (address, _) in seen {
            if let Some(lease) = self.held.get_mut(&address) {
                lease.unwritten = true;
                self.unwritten.push(address);
            }
        }
    }

    /// Returns the heartbeats that other nodes do not know yet, and marks them as shared.
    pub(super) fn take_unshared(&mut self) -> Vec<Heartbeat> {
        let mut heartbeats = Vec::with_capacity(self.unshared.len());
        for address in std::mem::take(&mut self.unshared) {
            let Some(lease) = self.held.get_mut(&address) else {
                continue;
            };
            lease.unshared = false;
            if let Some(last) = lease.heard {
                let (school, device) = address;
                let before = lease.before;
                heartbeats.push(Heartbeat {
                    school,
                    device,
                    heard: LastHeartbeats { last, before },
                });
            }
        }
        heartbeats
    }

    /// Marks heartbeats as unknown to other nodes again.
    pub(super) fn put_back_unshared(&mut self, addresses: impl IntoIterator<Item = Address>) {
        for address in addresses {
            if let Some(lease) = self.held.get_mut(&address).filter(|lease| !lease.unshared) {
                lease.unshared = true;
                self.unshared.push(address);
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

impl Lease {
    /// Whether another node has received a heartbeat since the last one here.
    fn is_heard_elsewhere(&self, known: &Shared) -> bool {
        let here = self.heard.map(|heard| heard.uptime);
        let last = known.heard.map(|heard| heard.last.uptime);
        last > here
    }
}
