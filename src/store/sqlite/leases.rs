//! The port [`Leases`]. A lock keeps every other process away from the database, so leases are kept in memory: what
//! holds them is gone when the process is. Fences rise over restarts, since they begin with the database's generation.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::SqliteStore;
use crate::log::StoreError;
use crate::log::leases::{Fence, Leases};

/// Leases that are held.
pub(super) struct HeldLeases(Mutex<Held>);

struct Held {
    last: Fence,
    leases: HashMap<String, (Fence, Instant)>,
}

impl HeldLeases {
    /// None yet, in this life of the database.
    pub(super) fn new(generation: u64) -> HeldLeases {
        HeldLeases(Mutex::new(Held {
            last: Fence(generation << 32),
            leases: HashMap::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Leases for SqliteStore {
    async fn acquire(&self, name: &str, term: Duration) -> Result<Option<Fence>, StoreError> {
        let mut held = self.leases.lock();
        let now = Instant::now();
        if held.leases.get(name).is_some_and(|(_, end)| *end > now) {
            return Ok(None);
        }
        held.last.0 += 1;
        let fence = held.last;
        held.leases.insert(name.to_owned(), (fence, now + term));
        Ok(Some(fence))
    }

    async fn renew(&self, name: &str, fence: Fence, term: Duration) -> Result<bool, StoreError> {
        let mut held = self.leases.lock();
        let now = Instant::now();
        match held.leases.get_mut(name) {
            Some((own, end)) if *own == fence && *end > now => {
                *end = now + term;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn release(&self, name: &str, fence: Fence) -> Result<(), StoreError> {
        let mut held = self.leases.lock();
        if held.leases.get(name).is_some_and(|(own, _)| *own == fence) {
            held.leases.remove(name);
        }
        Ok(())
    }
}
