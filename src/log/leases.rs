//! The port *leases*: what only one node may do at a time.
//!
//! A lease is held under a *fence*, a number that only rises. The next holder of a lease gets a higher one, and what is
//! written under a fence is refused once there is a higher one: a node that was suspended and wakes up after its lease
//! has passed to another cannot undo what that one did.
//!
//! ```text
//! node A   acquire ─▶ fence 7 ────── suspended ──────────────────▶ write under 7 ─▶ refused
//! node B                           lease ends ─▶ acquire ─▶ fence 8 ─▶ write under 8
//! ```

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;

/// The number under which a lease is held. A later holder's is higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Tasks that only one node carries out at a time.
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Takes the lease of this name for `term`, unless it is held already.
    async fn acquire(&self, name: &str, term: Duration) -> Result<Option<Fence>, StoreError>;

    /// Holds a lease for `term` from now. False if it has passed to another, or has ended.
    async fn renew(&self, name: &str, fence: Fence, term: Duration) -> Result<bool, StoreError>;

    /// Gives a lease back, if it is still held under this fence.
    async fn release(&self, name: &str, fence: Fence) -> Result<(), StoreError>;
}
