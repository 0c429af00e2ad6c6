//! What a request that writes may still come to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::id::SchoolId;
use crate::reserve::Reserved;
use crate::throttle::Debts;

/// How many bytes the events may have that the commands of one request lead to, or are answered with. It is shared by
/// the request and what the store has of it, and lives as long as either: so does the memory that is reserved for both.
#[derive(Default)]
pub struct Allowance {
    /// `None` if there is no limit.
    most: Option<u64>,
    used: AtomicU64,
    /// Where what is used is charged to a school.
    debts: Option<Arc<Debts>>,
    reserved: Option<Reserved>,
}

impl Allowance {
    /// At most so many bytes, in this memory.
    pub(crate) fn new(most: u64, debts: Arc<Debts>, reserved: Reserved) -> Allowance {
        Allowance {
            most: Some(most),
            debts: Some(debts),
            reserved: Some(reserved),
            ..Allowance::default()
        }
    }

    /// Any number of bytes, of which the school's account is told.
    pub(crate) fn charged(debts: Arc<Debts>) -> Allowance {
        Allowance {
            debts: Some(debts),
            ..Allowance::default()
        }
    }

    /// Whether there is room for so many bytes. Once there is not, there is none for fewer, either: the commands after
    /// one that was refused are to be sent again together with it.
    pub(in crate::store) fn has_room_for(&self, bytes: usize) -> Result<(), u64> {
        let Some(most) = self.most else {
            return Ok(());
        };
        let after = self.used().saturating_add(bytes as u64);
        if after > most {
            self.used.store(most, Ordering::Relaxed);
            return Err(most);
        }
        Ok(())
    }

    /// Notes that a command comes to so many bytes.
    pub(in crate::store) fn take(&self, school: SchoolId, bytes: usize) {
        self.used.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(debts) = &self.debts {
            debts.charge(school, bytes as u64, Instant::now());
        }
    }

    /// How many bytes are used.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Lets go of reserved memory beyond so many bytes.
    pub fn keep(&self, bytes: u64) {
        if let Some(reserved) = &self.reserved {
            reserved.keep(bytes);
        }
    }
}
