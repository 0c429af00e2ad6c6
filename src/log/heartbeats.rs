//! The port *heartbeats*: device heartbeats that are spread over several nodes.
//!
//! Each heartbeat of a device may reach a different node. Each node merges what it has received into the store, many
//! devices at a time. The result is the same as if one node had received all of them: the last two heartbeats of each
//! device, which show when it was last heard from, and whether its heartbeats are regular
//! ([`device::arrives`](crate::kind::device::arrives)).
//!
//! ```text
//! node A   9 ─────── 11 ─────── 13        merged: last 14, before it 13
//! node B        10 ─────── 12 ─────── 14
//! ```
//!
//! Merges can be repeated and can happen in any order. With a single node, this port is not used.

use async_trait::async_trait;

use super::StoreError;
use crate::id::{SchoolId, SubjectId};
use crate::kind::device::{Device, Heard, Status};
use crate::uptime::Uptime;

/// The last two heartbeats of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastHeartbeats {
    /// The last one.
    pub last: Heard,
    /// The one before it. It equals the last one if both arrived within a millisecond.
    pub before: Option<Uptime>,
}

impl LastHeartbeats {
    /// Returns the last two of these heartbeats and those that another node received. If both have the same last heartbeat,
    /// it counts once.
    pub fn merged(self, other: LastHeartbeats) -> LastHeartbeats {
        let (first, last) = match self.last.uptime <= other.last.uptime {
            true => (self, other),
            false => (other, self),
        };
        let is_another = first.last.uptime != last.last.uptime;
        let first_last = is_another.then_some(first.last.uptime);
        LastHeartbeats {
            last: last.last,
            before: last.before.max(first.before).max(first_last),
        }
    }
}

/// The heartbeats that a node has received from a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Its school.
    pub school: SchoolId,
    /// The device.
    pub device: SubjectId,
    /// Its last heartbeats at this node.
    pub heard: LastHeartbeats,
}

/// What the store knows about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// Its status.
    pub status: Status,
    /// The seconds of silence after which it is offline.
    pub lease_secs: u32,
    /// The start of the lease according to the device's state.
    pub lease_uptime: Uptime,
    /// The `seq` of the device's last event.
    pub seq: u64,
    /// Its last heartbeats at any node, if it has sent any since they were last forgotten.
    pub heard: Option<LastHeartbeats>,
}

impl Shared {
    /// Combines a device's state with its heartbeats.
    pub fn new(device: &Device, heard: Option<LastHeartbeats>) -> Shared {
        let reported_info = device.reported_info.map_or(0, |(seq, _)| seq);
        Shared {
            status: device.status,
            lease_secs: device.lease_secs,
            lease_uptime: device.lease_uptime,
            seq: device.reported_status.0.max(reported_info),
            heard,
        }
    }
}

/// Heartbeats of devices, shared by all nodes.
#[async_trait]
pub trait Heartbeats: Send + Sync + 'static {
    /// Merges heartbeats of different devices. Returns what is then known about each device, in the same order; `None` for
    /// one that does not exist, whose heartbeats are not kept. The heartbeats need not survive a power loss.
    async fn save_heartbeats(
        &self,
        heartbeats: Vec<Heartbeat>,
    ) -> Result<Vec<Option<Shared>>, StoreError>;

    /// Returns what is known about these devices, in the same order; `None` for one that does not exist.
    async fn heartbeats_of(
        &self,
        devices: Vec<(SchoolId, SubjectId)>,
    ) -> Result<Vec<Option<Shared>>, StoreError>;

    /// Forgets the heartbeats of devices whose last one was before this uptime. The first node to start after the whole
    /// cluster was down calls this.
    async fn forget_heartbeats(&self, before: Uptime) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn heard(last: u64, before: Option<u64>) -> LastHeartbeats {
        LastHeartbeats {
            last: Heard {
                at: DateTime::UNIX_EPOCH,
                uptime: Uptime::from_millis(last),
            },
            before: before.map(Uptime::from_millis),
        }
    }

    #[test]
    fn merged_heartbeats_are_the_last_two_in_any_order_and_however_often() {
        let one_node = [heard(10, None), heard(30, Some(10)), heard(50, Some(30))];
        let other = [heard(20, None), heard(40, Some(20))];
        let all: Vec<LastHeartbeats> = one_node.into_iter().chain(other).collect();
        for first in 0..all.len() {
            for step in 1..all.len() {
                let mut order =
                    (0..2 * all.len()).map(|turn| all[(first + turn * step) % all.len()]);
                let start = order.next().unwrap();
                let merged = order.fold(start, LastHeartbeats::merged);
                assert_eq!(merged, heard(50, Some(40)), "{first} {step}");
            }
        }
    }

    #[test]
    fn one_heartbeat_counts_once_and_two_within_a_millisecond_count_twice() {
        let one = heard(10, None);
        assert_eq!(one.merged(one), one);
        let two = heard(10, Some(10));
        assert_eq!(one.merged(two), two);
        assert_eq!(two.merged(one), two);
        assert_eq!(two.merged(two), two);
    }
}
