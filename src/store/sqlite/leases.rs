//! The port [`Leases`]. A lock keeps every other process away from the database, so leases are kept in memory: their
//! holders end with the process. Fences increase across restarts, because they begin with the database's generation.
//!
//! The leases belong to the writer, so that none changes hands between the check of a fence and the write under it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::SqliteStore;
use crate::log::StoreError;
use crate::log::leases::{Fence, Leases};

/// Leases that are or were held. There are only as many as tasks that need one.
pub(super) struct HeldLeases {
    last: Fence,
    leases: HashMap<String, Held>,
}

struct Held {
    fence: Fence,
    ends: Instant,
}

impl HeldLeases {
    /// Creates an empty table of leases for this generation of the database.
    pub(super) fn new(generation: u64) -> HeldLeases {
        HeldLeases {
            last: Fence(generation << 32),
            leases: HashMap::new(),
        }
    }

    /// Fails if this is not the last fence of the lease.
    pub(super) fn check(&self, name: &str, fence: Fence) -> Result<(), StoreError> {
        match self.leases.get(name) {
            Some(held) if held.fence == fence => Ok(()),
            _ => Err(StoreError::Fenced),
        }
    }

    fn acquire(&mut self, name: &str, term: Duration) -> Option<Fence> {
        let now = Instant::now();
        if self.leases.get(name).is_some_and(|held| held.ends > now) {
            return None;
        }
        self.last.0 += 1;
        let held = Held {
            fence: self.last,
            ends: now + term,
        };
        self.leases.insert(name.to_owned(), held);
        Some(self.last)
    }

    /// Sets when a lease ends, from now. Returns false if it is not held under this fence.
    fn ends_in(&mut self, name: &str, fence: Fence, term: Duration) -> bool {
        let now = Instant::now();
        let held = self.leases.get_mut(name);
        let held = held.filter(|held| held.fence == fence && held.ends > now);
        held.map(|held| held.ends = now + term).is_some()
    }
}

#[async_trait]
impl Leases for SqliteStore {
    async fn acquire(&self, name: &str, term: Duration) -> Result<Option<Fence>, StoreError> {
        let name = name.to_owned();
        self.writer
            .call(move |backend| Ok(backend.leases.acquire(&name, term)))
            .await
    }

    async fn renew(&self, name: &str, fence: Fence, term: Duration) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.writer
            .call(move |backend| Ok(backend.leases.ends_in(&name, fence, term)))
            .await
    }

    async fn release(&self, name: &str, fence: Fence) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.writer
            .call(move |backend| {
                backend.leases.ends_in(&name, fence, Duration::ZERO);
                Ok(())
            })
            .await
    }
}
