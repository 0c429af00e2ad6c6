//! Limits how many bytes of events a write request can produce.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::time::Instant;

use super::CommandError;
use super::decide::Decision;
use crate::id::SchoolId;
use crate::reserve::Reserved;
use crate::throttle::Debts;

/// A byte limit for the events that the commands of one request produce or are answered with. The request and its
/// commands in the store share it. It also holds the memory reserved for them, until both have released it.
#[derive(Default)]
pub struct Allowance {
    /// The limit; `None` if there is none.
    limit: Option<u64>,
    used: AtomicU64,
    /// Whether a command was rejected for lack of room.
    is_used_up: AtomicBool,
    /// Charges the used bytes to the school.
    debts: Option<Arc<Debts>>,
    reserved: Option<Reserved>,
}

impl Allowance {
    /// Creates an allowance of at most `limit` bytes, backed by `reserved`.
    pub(crate) fn new(limit: u64, debts: Arc<Debts>, reserved: Reserved) -> Allowance {
        Allowance {
            limit: Some(limit),
            debts: Some(debts),
            reserved: Some(reserved),
            ..Allowance::default()
        }
    }

    /// Creates an allowance without a limit that charges the used bytes to the school's account.
    pub(crate) fn charged(debts: Arc<Debts>) -> Allowance {
        Allowance {
            debts: Some(debts),
            ..Allowance::default()
        }
    }

    /// Returns how many bytes are left.
    pub fn room(&self) -> Room {
        match self.limit {
            Some(limit) if self.is_used_up.load(Ordering::Relaxed) => Room { left: 0, limit },
            Some(limit) => Room {
                left: limit.saturating_sub(self.used()),
                limit,
            },
            None => Room::UNLIMITED,
        }
    }

    /// Records what a command used. After one command has been rejected for lack of room, smaller ones are rejected as
    /// well, because the client must send the rejected command and all that follow it again.
    pub(super) fn take(&self, decision: &Decision) {
        if let Err(CommandError::TooMuch { .. }) = decision.receipt {
            self.is_used_up.store(true, Ordering::Relaxed);
        }
        self.used
            .fetch_add(decision.charged as u64, Ordering::Relaxed);
    }

    /// Reverts [`Allowance::take`] for commands that will be decided again. `was_used_up` tells whether one of them was
    /// rejected for lack of room.
    pub(super) fn give_back(&self, bytes: u64, was_used_up: bool) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if was_used_up {
            self.is_used_up.store(false, Ordering::Relaxed);
        }
    }

    /// Charges the school for bytes that the commands used.
    pub(super) fn charge(&self, school: SchoolId, bytes: u64) {
        if let Some(debts) = self.debts.as_ref().filter(|_| bytes > 0) {
            debts.charge(school, bytes, Instant::now());
        }
    }

    /// Returns how many bytes are used.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Releases the reserved memory that exceeds `bytes`.
    pub fn keep(&self, bytes: u64) {
        if let Some(reserved) = &self.reserved {
            reserved.keep(bytes);
        }
    }
}

/// How many bytes a request can still produce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    left: u64,
    limit: u64,
}

impl Room {
    /// No limit.
    pub const UNLIMITED: Room = Room {
        left: u64::MAX,
        limit: u64::MAX,
    };

    /// Fails if fewer than `bytes` are left.
    pub(super) fn check(self, bytes: usize) -> Result<(), CommandError> {
        match bytes as u64 <= self.left {
            true => Ok(()),
            false => Err(CommandError::TooMuch { most: self.limit }),
        }
    }
}
