//! The node's reader of the logs: it follows what is committed and serves those who come back from behind.
//!
//! ```text
//! Committed ─hints─▶ tail ─dense─▶ hub ─▶ mailboxes          (live)
//!                     │ a hole is waited for shortly, then read
//! log ────────────────┴─▶ segments ─▶ replays                (read once, encoded once, shared)
//! ```
//!
//! The log is the truth, a hint is the doorbell: hints may be late, out of order, or missing, and still each school's
//! events reach the hub in order and without a hole (invariant 3). Replays of wide scopes share *segments*, aligned
//! stretches of a log that are read by one of those who want them and whose events carry their encodings, so that a
//! crowd that comes back costs one read and one encoding of each event (invariant 8). Narrow scopes are read through
//! the index on subjects instead, however much the rest of the school has to say.
//!
//! Deliberately absent: who may listen, and what a connection has been told.

mod segments;
mod tail;

use std::future::Future;
use std::sync::Arc;

use self::segments::{Heads, Segments};
pub use self::tail::follow;
use crate::config::SEGMENT_EVENTS;
use crate::id::{Channel, Epoch, SchoolId};
use crate::log::{Committed, Log, Page, StoreError};
use crate::scope::{Scope, without_superseded};

/// See the module's page.
pub struct Feed {
    log: Arc<dyn Log>,
    committed: Committed,
    heads: Heads,
    segments: Segments,
}

impl Feed {
    /// Reads this log, of which `committed` says what is on its way to the hub.
    pub fn new(log: Arc<dyn Log>, committed: Committed) -> Feed {
        Feed::with_segments(log, committed, SEGMENT_EVENTS)
    }

    /// The same with segments of so many events.
    pub fn with_segments(log: Arc<dyn Log>, committed: Committed, events: u64) -> Feed {
        Feed {
            heads: Heads::new(Arc::clone(&log)),
            segments: Segments::new(Arc::clone(&log), events),
            log,
            committed,
        }
    }

    /// The database's life.
    pub fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    /// Ready when the hub has been offered what was committed in this school until now.
    pub fn settled(&self, school: SchoolId) -> impl Future<Output = ()> + Send + 'static {
        self.committed.settled(school)
    }

    /// Returns events in scope after `after`. With `fold`, ticks are left out that a later event in scope supersedes.
    pub async fn replay(
        &self,
        scope: Arc<Scope>,
        after: u64,
        fold: bool,
    ) -> Result<Page, StoreError> {
        if is_narrow(&scope) {
            return self.log.replay(scope, after, fold).await;
        }
        let bounds = self.heads.bounds(scope.school).await?;
        if after < bounds.floor || after >= bounds.head {
            return Ok(Page {
                events: Vec::new(),
                through: bounds.head,
                head: bounds.head,
                floor: bounds.floor,
            });
        }
        let Some(segment) = self.segments.get(scope.school, after, bounds).await? else {
            // Its events are too large to be kept for others.
            return self.log.replay(scope, after, fold).await;
        };
        let told = segment.after(after).filter(|event| scope.hears(event));
        let mut events = told.map(Arc::clone).collect();
        if fold {
            events = without_superseded(events);
            events.retain(|event| !segment.supersedes(event, &scope.filter));
        }
        Ok(Page {
            events,
            through: segment.through(),
            head: bounds.head.max(segment.through()),
            floor: bounds.floor.max(segment.floor()),
        })
    }

    /// Returns present states in scope; see [`Log::snapshot`].
    pub async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<u64>,
    ) -> Result<Page, StoreError> {
        self.log.snapshot(scope, after, upto).await
    }
}

/// Whether an index has just the events of the scope.
fn is_narrow(scope: &Scope) -> bool {
    let is_subject = |channel: &Channel| matches!(channel, Channel::Subject(..));
    scope.channels().iter().all(is_subject)
}
