//! The node's reader of the logs: it follows new commits and serves replays.
//!
//! ```text
//! Committed ─────────▶ tail ─in order─▶ hub ─▶ mailboxes       (live)
//! other nodes ─hints─▶  │ missing events are awaited briefly, then read
//! log ─────────────────┴─▶ segments ─▶ replays                (read once, encoded once, shared)
//!  └─heads─▶ a hint for each log that is ahead of the hub
//! ```
//!
//! The log is authoritative, and hints are only notifications. Hints may be late, out of order, or missing. Still, each
//! school's events reach the hub in order and without a gap (invariant 3). Replays of wide scopes share *segments*,
//! which are aligned ranges of a log. A segment is read once for all replays, and its events cache their encodings. So
//! even if many clients reconnect at once, each event is read once and encoded once (invariant 8). Narrow scopes are read
//! through the index on subjects instead, so that the school's other events cost nothing.
//!
//! The feed is the node's only reader of ranges of the log, for streams and notifiers alike. Other code reads no ranges: it
//! reads the head of a log ([`Journal::head`](crate::log::Journal::head)), and lists, tallies and single subjects through the
//! catalog's own indexes. The writer reads the facts that it needs for a decision, in its transaction. The command that copies
//! a database reads the logs without a server.
//!
//! Not handled here: permissions, and what has been delivered to a connection.

mod heads;
mod segments;
mod tail;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::histogram::Histogram;

pub use self::heads::watch_heads;
use self::segments::{Heads, Segments};
pub use self::tail::follow;
use crate::config::{DURATION_BUCKETS_SECS, SEGMENT_EVENTS};
use crate::id::{Channel, Cursor, Epoch, Place, SchoolId};
use crate::log::{Bounds, Committed, Log, Page, StoreError};
use crate::scope::{Scope, without_superseded};

/// Reads the logs of all schools. See the module documentation.
pub struct Feed {
    log: Arc<dyn Log>,
    committed: Committed,
    heads: Heads,
    segments: Segments,
    replay_duration: Histogram,
}

impl Feed {
    /// Creates a feed that reads this log. `committed` tracks the commits that are on their way to the hub.
    pub fn new(log: Arc<dyn Log>, committed: Committed) -> Feed {
        Feed::with_segments(log, committed, SEGMENT_EVENTS)
    }

    /// Creates a feed whose segments hold this many events.
    pub fn with_segments(log: Arc<dyn Log>, committed: Committed, events: u64) -> Feed {
        Feed {
            heads: Heads::new(Arc::clone(&log)),
            segments: Segments::new(Arc::clone(&log), events),
            log,
            committed,
            replay_duration: Histogram::new(DURATION_BUCKETS_SECS),
        }
    }

    /// Returns how long it takes to read a page of a replay, in seconds.
    pub fn replay_duration(&self) -> &Histogram {
        &self.replay_duration
    }

    /// Returns the epoch of the database.
    pub fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    /// Whether other nodes also write to the logs. Such a log can lose its newest events in a failover, while this
    /// process keeps running.
    pub fn is_shared(&self) -> bool {
        self.log.is_shared()
    }

    /// Returns the place that a cursor names. Returns `None` if the cursor has another epoch, or if it has no tag and the log
    /// has assigned numbers more than once.
    pub fn place(&self, cursor: Cursor) -> Option<Place> {
        let Cursor { epoch, place, .. } = cursor;
        let is_certain = place.tag.is_some() || place.seq == 0 || self.log.numbers_are_unique();
        (epoch == self.log.epoch() && is_certain).then_some(place)
    }

    /// Resolves when the hub has been offered everything that was committed in this school before the call.
    pub fn settled(&self, school: SchoolId) -> impl Future<Output = ()> + Send + 'static {
        self.committed.settled(school)
    }

    /// Returns events in scope after `after`. With `conflate`, it omits ticks that a later event in scope supersedes.
    /// Returns `None` if `after` has a tag and the log has a different event, or no event, with this number.
    pub async fn replay(
        &self,
        scope: Arc<Scope>,
        after: Place,
        conflate: bool,
    ) -> Result<Option<Page>, StoreError> {
        let (began, school) = (Instant::now(), scope.school);
        let (mut page, is_certain) = self.read_page(scope, after, conflate).await?;
        // A shared log may have lost `after` between the check and the reading. If it has it now, it had it then.
        if !is_certain && self.is_shared() && after.tag.is_some() {
            let is_known = self.has(school, after).await?;
            page = page.filter(|_| is_known);
        }
        self.replay_duration.observe(began.elapsed().as_secs_f64());
        Ok(page)
    }

    /// Also returns whether the page certainly belongs to the history in which the event before it was found.
    async fn read_page(
        &self,
        scope: Arc<Scope>,
        checked: Place,
        conflate: bool,
    ) -> Result<(Option<Page>, bool), StoreError> {
        if checked.tag.is_none() && is_narrow(&scope) {
            let page = self.log.replay(scope, checked.seq, conflate).await?;
            return Ok((Some(page), true));
        }
        let bounds = self.heads.bounds(scope.school).await?;
        self.segments.follow(scope.school, bounds).await?;
        if !self.is_known(scope.school, checked, bounds).await? {
            return Ok((None, true));
        }
        let Place { seq: after, .. } = checked;
        if is_narrow(&scope) {
            let page = self.log.replay(scope, after, conflate).await?;
            let is_certain = page.head == bounds.head;
            return Ok((Some(page), is_certain));
        }
        if after < bounds.floor.seq || after >= bounds.head.seq {
            let page = Page {
                events: Vec::new(),
                through: bounds.head,
                head: bounds.head,
                newest: bounds.head,
                floor: bounds.floor.seq,
            };
            return Ok((Some(page), true));
        }
        let Some(segment) = self.segments.get(scope.school, after, bounds).await? else {
            // Its events are too large to be cached.
            let page = self.log.replay(scope, after, conflate).await?;
            return Ok((Some(page), false));
        };
        let in_scope = segment.after(after).filter(|event| scope.matches(event));
        let mut events = in_scope.map(Arc::clone).collect();
        if conflate {
            events = without_superseded(events);
            events.retain(|event| !segment.supersedes(event, &scope.filter));
        }
        let head = bounds.head.max(segment.through());
        let page = Page {
            events,
            through: segment.through(),
            head,
            newest: head,
            floor: bounds.floor.seq.max(segment.floor()),
        };
        let is_certain = segment.has(checked);
        Ok((Some(page), is_certain))
    }

    /// Whether the log still has this event. Also true if that cannot be determined: without a tag, or past retention.
    pub async fn has(&self, school: SchoolId, place: Place) -> Result<bool, StoreError> {
        let bounds = self.heads.bounds(school).await?;
        self.segments.follow(school, bounds).await?;
        self.is_known(school, place, bounds).await
    }

    /// Whether the log has this event. Also true if that cannot be determined; retention is checked separately.
    async fn is_known(
        &self,
        school: SchoolId,
        place: Place,
        bounds: Bounds,
    ) -> Result<bool, StoreError> {
        let Place { seq, tag } = place;
        if tag.is_none() || seq < bounds.floor.seq {
            return Ok(true);
        }
        for known in [bounds.head, bounds.floor] {
            if seq == known.seq {
                return Ok(known.tag.is_none_or(|known| Some(known) == tag));
            }
        }
        if seq > bounds.head.seq {
            return Ok(false);
        }
        let before = seq - 1;
        let event = match self.segments.get(school, before, bounds).await? {
            Some(segment) => segment.after(before).next().map(Arc::clone),
            None => {
                let range = self.log.read_range(school, before, seq).await?;
                range.events.into_iter().next()
            }
        };
        // Retention may have deleted the event meanwhile; then the first event is a later one. The replay detects that.
        let event = event.filter(|event| event.seq == seq);
        Ok(event.is_none_or(|event| event.place() == place))
    }

    /// Returns current states in scope; see [`Log::snapshot`]. `newest` is the place of the newest event when the previous
    /// page was read. Returns `None` if a shared log has lost that event since: then the pages do not belong together.
    pub async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<Place>,
        newest: Option<Place>,
    ) -> Result<Option<Page>, StoreError> {
        let school = scope.school;
        let page = self.log.snapshot(scope, after, upto).await?;
        if let Some(newest) = newest.or(upto).filter(|_| self.is_shared()) {
            let bounds = self.heads.bounds(school).await?;
            self.segments.follow(school, bounds).await?;
            if !self.is_known(school, newest, bounds).await? {
                return Ok(None);
            }
        }
        Ok(Some(page))
    }
}

/// Whether an index contains exactly the events of the scope.
fn is_narrow(scope: &Scope) -> bool {
    let is_subject = |channel: &Channel| matches!(channel, Channel::Subject(..));
    scope.channels().iter().all(is_subject)
}

#[cfg(test)]
pub(crate) mod tests;
