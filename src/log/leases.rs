//! The port *leases*: tasks that only one node at a time can do.
//!
//! A lease is held under a *fence*, a number that only increases. The next holder of a lease gets a higher one, and a
//! write under a lower fence is rejected: a node that was suspended and resumes after its lease has passed to another
//! node cannot undo that node's work.
//!
//! ```text
//! node A   acquire ─▶ fence 7 ────── suspended ──────────────────▶ write under 7 ─▶ rejected
//! node B                           lease ends ─▶ acquire ─▶ fence 8 ─▶ write under 8
//! ```

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;

/// The number under which a lease is held. Each later holder gets a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Leases for tasks that only one node at a time carries out.
///
/// The end of a lease is measured by the store's clock, not by those of the nodes. A fence stays valid until the store has
/// returned a higher one for the same name, even if the lease has expired or was released: until then, no other node has
/// begun the task. A write under a fence ([`Consumers::notifier_moves`](super::Consumers::notifier_moves)) checks in its
/// own transaction that the fence is still valid, and blocks an `acquire` until the write is committed.
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Acquires the lease with this name for `term`, regardless of who held it before. Returns `None` if it is held.
    async fn acquire(&self, name: &str, term: Duration) -> Result<Option<Fence>, StoreError>;

    /// Extends a lease to `term` from now. Returns false if another node holds it, or if it has expired.
    async fn renew(&self, name: &str, fence: Fence, term: Duration) -> Result<bool, StoreError>;

    /// Releases a lease if it is still held under this fence.
    async fn release(&self, name: &str, fence: Fence) -> Result<(), StoreError>;
}
