//! What a request that writes may still come to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::CommandError;
use super::decide::Decision;
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

    /// Returns what is left of it.
    pub fn room(&self) -> Room {
        match self.most {
            Some(most) => Room {
                left: most.saturating_sub(self.used()),
                most,
            },
            None => Room::UNLIMITED,
        }
    }

    /// Notes what a command comes to. Once there was no room for one, there is none for a smaller one, either: the commands
    /// after one that was refused are to be sent again together with it.
    pub(super) fn take(&self, school: SchoolId, decision: &Decision) {
        if let (Err(CommandError::TooMuch { .. }), Some(most)) = (&decision.receipt, self.most) {
            self.used.store(most, Ordering::Relaxed);
        }
        if decision.charged == 0 {
            return;
        }
        let bytes = decision.charged as u64;
        self.used.fetch_add(bytes, Ordering::Relaxed);
        if let Some(debts) = &self.debts {
            debts.charge(school, bytes, Instant::now());
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

/// How many bytes a request may still come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    left: u64,
    most: u64,
}

impl Room {
    /// Any number.
    pub const UNLIMITED: Room = Room {
        left: u64::MAX,
        most: u64::MAX,
    };

    /// Fails if there is no room for so many bytes.
    pub(super) fn check(self, bytes: usize) -> Result<(), CommandError> {
        match bytes as u64 <= self.left {
            true => Ok(()),
            false => Err(CommandError::TooMuch { most: self.most }),
        }
    }
}
