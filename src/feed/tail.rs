//! Follows the logs: listeners get committed events in order and without a gap, even if hints are late or missing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep_until};

use crate::config::{
    DISPATCH_SLICE, HOLE_MAX_EVENTS, HOLE_PAUSE, HOLE_READS_MAX, HOLE_WAIT, WAKE_AT_ONCE,
};
use crate::event::{Event, is_dense};
use crate::hub::{Hub, Position, WakeList};
use crate::id::{Place, SchoolId};
use crate::log::{Batches, Hint, Incoming, Log, LogRange, StoreError};

/// A *hole*: the missing events of a school, and the later ones that wait for them.
struct Hole {
    /// The events that wait for the missing ones.
    beyond: BTreeMap<u64, Arc<Event>>,
    /// The newest `seq` that a hint has named.
    newest: u64,
    /// When to read the missing events; `None` during the read.
    due: Option<Instant>,
    /// Number of consecutive reads that found nothing new; at least 1 after a failed read.
    empty_reads: u32,
}

impl Hole {
    fn due_at(due: Instant) -> Hole {
        Hole {
            beyond: BTreeMap::new(),
            newest: 0,
            due: Some(due),
            empty_reads: 0,
        }
    }
}

/// A read of missing events.
struct Read {
    school: SchoolId,
    /// The last event that had been delivered when the read began.
    known: Place,
    range: Result<LogRange, StoreError>,
}

struct Tail<'a> {
    hub: &'a Hub,
    log: Arc<dyn Log>,
    holes: BTreeMap<SchoolId, Hole>,
    reads: JoinSet<Read>,
    /// The readers of schools whose log may have lost events.
    wake_lists: Vec<WakeList>,
    /// Schools whose undispatched commits must no longer be waited for.
    lost: Vec<SchoolId>,
}

/// Passes committed events to `deliver`, each school's in the order of its log. Returns when all senders of `batches` are
/// gone, or when everything that was committed before `end` has been delivered. `deliver` offers them to the hub, whose head
/// determines which event comes next.
///
/// Hints about commits of other nodes are processed in the same way, but only for schools in the hub's memory: a school
/// without listeners costs nothing.
pub async fn follow(
    batches: &mut Batches,
    hub: &Hub,
    log: Arc<dyn Log>,
    mut deliver: impl FnMut(&[Arc<Event>]),
    end: impl Future<Output = ()>,
) {
    let mut end = pin!(end);
    let mut slice = Slice::default();
    let mut is_ending = false;
    let mut tail = Tail {
        hub,
        log,
        holes: BTreeMap::new(),
        reads: JoinSet::new(),
        wake_lists: Vec::new(),
        lost: Vec::new(),
    };
    batches.set_hole(false);
    loop {
        let due = tail.holes.values().filter_map(|hole| hole.due).min();
        let has_reads = !tail.reads.is_empty();
        tokio::select! {
            // Biased: reads of missing events are few and go first, because batches may have to wait for them. This order
            // also makes simulations deterministic.
            biased;
            () = &mut end, if !is_ending => {
                is_ending = true;
                batches.close();
            }
            Some(read) = tail.reads.join_next(), if has_reads => {
                batches.has_read();
                let Ok(read) = read else {
                    tail.read_again();
                    continue;
                };
                let dense = tail.fill(read);
                slice.deliver(&dense, &mut deliver).await;
                batches.dispatched(&dense);
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => tail.read_what_is_due(),
            incoming = batches.next() => match incoming {
                None => return,
                Some(Incoming::Committed(batch)) => {
                    for of_school in batch.chunk_by(|one, next| one.school == next.school) {
                        let dense = tail.take(of_school);
                        slice.deliver(&dense, &mut deliver).await;
                        batches.dispatched(&dense);
                        if !tail.has_hole(of_school[0].school) {
                            // Events that were delivered before, or whose school is not in memory, count as delivered,
                            // too.
                            batches.dispatched(of_school);
                        }
                    }
                    batches.set_hole(!tail.holes.is_empty());
                    batches.done();
                }
                Some(Incoming::Hint(hint)) => {
                    if tail.is_late(&hint) {
                        batches.was_late();
                        continue;
                    }
                    let dense = tail.apply(&hint);
                    slice.deliver(&dense, &mut deliver).await;
                    batches.dispatched(&dense);
                }
            }
        }
        tail.lost
            .drain(..)
            .for_each(|school| batches.forget(school));
        for wake_list in tail.wake_lists.drain(..) {
            wake_in_batches(wake_list).await;
        }
        slice.end().await;
        batches.set_hole(!tail.holes.is_empty());
    }
}

/// Wakes readers a few at a time, so that readers of other channels need not wait for all of them.
async fn wake_in_batches(wake_list: WakeList) {
    let mut left = Some(wake_list);
    while let Some(wake_list) = left {
        yield_now().await;
        left = wake_list.wake_some(WAKE_AT_ONCE);
    }
}

/// Number of events that were delivered since the last yield to other tasks. A large batch for many readers takes a
/// long time, so the task yields whenever it has delivered [`DISPATCH_SLICE`] events.
#[derive(Default)]
struct Slice(usize);

impl Slice {
    async fn deliver(&mut self, events: &[Arc<Event>], deliver: &mut impl FnMut(&[Arc<Event>])) {
        for part in events.chunks(DISPATCH_SLICE) {
            deliver(part);
            self.0 += part.len();
            if self.0 >= DISPATCH_SLICE {
                self.end().await;
            }
        }
    }

    async fn end(&mut self) {
        if std::mem::take(&mut self.0) > 0 {
            yield_now().await;
        }
    }
}

impl Tail<'_> {
    /// Whether a hint contains nothing new for the hub. A school that is not in memory has no listeners here.
    fn is_late(&self, hint: &Hint) -> bool {
        let school = match hint {
            Hint::Events(events) => match events.first() {
                Some(first) => first.school,
                None => return true,
            },
            Hint::UpTo(school, _) | Hint::HistoryChanged(school) => *school,
        };
        let Some(position) = self.hub.position(school) else {
            return true;
        };
        let is_known = |seq| position.next().is_some_and(|next| seq < next);
        match hint {
            Hint::Events(events) => {
                let are_known = events.last().is_some_and(|last| is_known(last.seq));
                are_known && !self.hub.contradicts(events)
            }
            Hint::UpTo(_, seq) => is_known(*seq) || !position.is_attended,
            Hint::HistoryChanged(_) => false,
        }
    }

    /// Accepts a hint, and returns the events that can be delivered now.
    fn apply<'a>(&mut self, hint: &'a Hint) -> Cow<'a, [Arc<Event>]> {
        match hint {
            Hint::Events(events) => return self.take(events),
            Hint::UpTo(school, seq) => {
                let now = Instant::now();
                let hole = self.holes.entry(*school);
                let hole = hole.or_insert_with(|| Hole::due_at(now));
                hole.newest = hole.newest.max(*seq);
                // Read at once: this hint contains no events to wait for. After a failed or empty read, keep the pause.
                if hole.empty_reads == 0 {
                    hole.due = hole.due.map(|due| due.min(now));
                }
            }
            Hint::HistoryChanged(school) => self.start_over(*school),
        }
        Cow::Borrowed(&[])
    }

    /// Accepts events of a school, and returns those that can be delivered now.
    fn take<'a>(&mut self, events: &'a [Arc<Event>]) -> Cow<'a, [Arc<Event>]> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            return Cow::Borrowed(events);
        };
        let school = first.school;
        debug_assert!(is_dense(events), "a hint has no hole");
        let next_of = |position: Option<Position>| position.and_then(|position| position.next());
        // A school that is not in memory has no listeners, so nothing can be missed.
        let next = next_of(self.hub.position(school));
        if self.log.is_shared() && self.hub.contradicts(events) {
            // Either these events or the delivered ones are lost. The listeners find out which by reading the log.
            self.start_over(school);
            return Cow::Borrowed(&[]);
        }
        let is_missed = next.is_some_and(|next| first.seq > next);
        let hole = match self.holes.get_mut(&school) {
            Some(hole) => hole,
            None if is_missed => {
                let new = Hole::due_at(Instant::now() + HOLE_WAIT);
                self.holes.entry(school).or_insert(new)
            }
            None => {
                let is_known = |event: &Arc<Event>| next.is_some_and(|next| event.seq < next);
                return Cow::Borrowed(&events[events.partition_point(is_known)..]);
            }
        };
        tracing::debug!(school.id = %school, from = first.seq, to = last.seq, "events arrived before earlier ones and wait for them");
        let of_batch = events.iter().map(|event| (event.seq, Arc::clone(event)));
        hole.beyond.extend(of_batch);
        hole.newest = hole.newest.max(last.seq);
        while hole.beyond.len() > HOLE_MAX_EVENTS {
            // It will be read together with the missing events.
            hole.beyond.pop_last();
        }
        Cow::Owned(self.dense(school))
    }

    /// Forgets which events of a school were delivered, because its log has lost some of them.
    fn start_over(&mut self, school: SchoolId) {
        tracing::warn!(
            school.id = %school,
            "the log has lost events that were already delivered; the school's streams check their cursors against the log"
        );
        self.holes.remove(&school);
        self.lost.push(school);
        self.wake_lists.push(self.hub.start_over(school));
    }

    /// Whether events of a school are missing.
    fn has_hole(&self, school: SchoolId) -> bool {
        self.holes.contains_key(&school)
    }

    /// Returns the events that can be delivered of a school with a hole. Removes the hole when no events are missing.
    fn dense(&mut self, school: SchoolId) -> Vec<Arc<Event>> {
        let mut deliverable = Vec::new();
        let Some(hole) = self.holes.get_mut(&school) else {
            return deliverable;
        };
        let position = self.hub.position(school);
        let next = position.and_then(|position| position.next());
        // Without a head, no listener has a position yet, so none can miss an event before these.
        let first = hole.beyond.keys().next().copied();
        let mut next = match (next, first) {
            (Some(next), _) => next,
            (None, Some(first)) => first,
            (None, None) if position.is_some() => return deliverable,
            (None, None) => hole.newest + 1,
        };
        while let Some(entry) = hole
            .beyond
            .first_entry()
            .filter(|entry| *entry.key() <= next)
        {
            let event = entry.remove();
            if event.seq == next {
                deliverable.push(event);
                next += 1;
            }
        }
        if next > hole.newest {
            self.holes.remove(&school);
            if deliverable.is_empty() {
                // A listener has already read the events from the log, the log has lost them, or nobody listens any
                // more.
                self.lost.push(school);
            }
        }
        debug_assert!(is_dense(&deliverable), "what is delivered has no hole");
        if self.hub.contradicts(&deliverable) {
            self.start_over(school);
            return Vec::new();
        }
        deliverable
    }

    /// Starts the reads that are due.
    fn read_what_is_due(&mut self) {
        let now = Instant::now();
        let is_due = |hole: &Hole| hole.due.is_some_and(|due| due <= now);
        let (hub, lost) = (self.hub, &mut self.lost);
        // A school may have been removed from memory, or may have no listeners any more.
        self.holes.retain(|school, _| {
            let position = hub.position(*school);
            let is_wanted =
                position.is_some_and(|position| position.head.is_some() || position.is_attended);
            if !is_wanted {
                lost.push(*school);
            }
            is_wanted
        });
        for (school, hole) in &mut self.holes {
            if !is_due(hole) {
                continue;
            }
            let Some(known) = hub.position(*school).and_then(|position| position.head) else {
                // The school's first listener is still reading the log. Until it has finished, this task cannot tell
                // which events are missing. Stop tracking this node's commits among them: otherwise, the listener
                // would wait for their delivery, and this task would wait for the listener. The listener reads
                // these commits from the log, unless they are lost.
                lost.push(*school);
                hole.due = Some(now + HOLE_WAIT);
                continue;
            };
            if known.seq >= hole.newest {
                // A listener has already read the missing events from the log.
                hole.newest = 0;
                // Stop tracking this node's commits among them: this task will not deliver them.
                lost.push(*school);
                continue;
            }
            hole.due = None;
            let (school, log) = (*school, Arc::clone(&self.log));
            // Also read the last delivered event again, to verify that the log still has it.
            let after = known.seq.saturating_sub(1);
            let upto = hole.beyond.keys().next().map_or(hole.newest, |seq| seq - 1);
            self.reads.spawn(async move {
                let range = log.read_range(school, after, upto).await;
                Read {
                    school,
                    known,
                    range,
                }
            });
        }
        self.holes.retain(|_, hole| hole.newest > 0);
    }

    /// Schedules all reads in progress again: one of them panicked, and it is not known for which school.
    fn read_again(&mut self) {
        let due = Instant::now() + HOLE_PAUSE;
        for hole in self.holes.values_mut() {
            hole.due.get_or_insert(due);
        }
    }

    /// Accepts the missing events, and returns those that can be delivered now.
    fn fill(&mut self, read: Read) -> Vec<Arc<Event>> {
        let Read {
            school,
            known,
            range,
        } = read;
        let Some(hole) = self.holes.get_mut(&school) else {
            return Vec::new();
        };
        let range = match range {
            Ok(range) => range,
            Err(error) => {
                tracing::warn!(%error, school.id = %school, "missing events could not be read; retrying");
                hole.due = Some(Instant::now() + HOLE_PAUSE);
                hole.empty_reads = hole.empty_reads.max(1);
                return Vec::new();
            }
        };
        if range.lacks(known) {
            self.start_over(school);
            return Vec::new();
        }
        if range.floor.seq > known.seq {
            return self.skip(school, range);
        }
        let LogRange { events, head, .. } = range;
        let mut of_log = events
            .into_iter()
            .filter(|event| event.seq > known.seq)
            .peekable();
        // If the log does not have the events yet, it is read again only after a pause.
        let is_empty = of_log.peek().is_none();
        hole.beyond.extend(of_log.map(|event| (event.seq, event)));
        hole.empty_reads = match is_empty {
            true => hole.empty_reads + 1,
            false => 0,
        };
        let pause = match is_empty {
            true => HOLE_PAUSE,
            false => Duration::ZERO,
        };
        hole.due = Some(Instant::now() + pause);
        if hole.beyond.is_empty() || hole.empty_reads >= HOLE_READS_MAX {
            // The log is authoritative: an event that it does not have was not committed, or was lost.
            hole.beyond.retain(|seq, _| *seq <= head);
            if hole.newest > head {
                hole.newest = head;
                // Stop tracking this node's commits among them, so that no stream waits for them.
                self.lost.push(school);
            }
        }
        self.dense(school)
    }

    /// Skips missing events that are past retention, and returns the events after them that can be delivered now. The hub
    /// makes the listeners that would miss the skipped events read the log.
    fn skip(&mut self, school: SchoolId, range: LogRange) -> Vec<Arc<Event>> {
        let mut deliverable: Vec<Arc<Event>> = Vec::new();
        let Some(hole) = self.holes.get_mut(&school) else {
            return deliverable;
        };
        let of_log = range.events.into_iter().map(|event| (event.seq, event));
        hole.beyond.extend(of_log);
        hole.due = Some(Instant::now());
        let follows = |last: Option<&Arc<Event>>, seq| last.is_none_or(|last| last.seq + 1 == seq);
        while let Some(entry) = hole.beyond.first_entry()
            && follows(deliverable.last(), *entry.key())
        {
            deliverable.push(entry.remove());
        }
        let through = deliverable.last().map_or(range.floor.seq, |last| last.seq);
        if through >= hole.newest {
            self.holes.remove(&school);
        }
        if deliverable.is_empty() {
            // No event is delivered, so the hub cannot detect by its number that earlier ones are missing.
            self.lost.push(school);
            self.wake_lists.push(self.hub.start_over(school));
        }
        deliverable
    }
}

#[cfg(test)]
mod tests;
