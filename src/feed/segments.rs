//! Segments: aligned ranges of a log that many replays share.
//!
//! ```text
//! seq        1 … 256    257 … 512    513 … 600
//! segment        0           1           2       (the last one grows with the log)
//! ```
//!
//! The first replay that needs a segment reads it. Other replays that need it meanwhile wait for that read. The least
//! recently used segments are evicted: at most [`SEGMENTS_MAX_BYTES`] are kept.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::config::{SEGMENT_MAX_BYTES, SEGMENTS_MAX, SEGMENTS_MAX_BYTES};
use crate::event::{Event, is_dense};
use crate::id::{Kind, Place, SchoolId, SubjectId};
use crate::log::{Bounds, LastEvent, Log, StoreError};
use crate::scope::Filter;

/// A range of a school's log, without gaps.
#[derive(Debug, Default)]
pub(super) struct Segment {
    events: Vec<Arc<Event>>,
    /// Events up to here had been deleted when the segment was read.
    floor: u64,
    /// The segment holds all events of its range up to here.
    through: u64,
    /// The last event of each subject that has ticks in the segment, as of the read. A newer one is not needed: an
    /// event that supersedes a tick does so permanently.
    last: HashMap<(Kind, SubjectId), LastEvent>,
    bytes: usize,
}

impl Segment {
    /// Returns the events after this `seq`.
    pub(super) fn after(&self, after: u64) -> impl Iterator<Item = &Arc<Event>> {
        let known = self.events.partition_point(|event| event.seq <= after);
        self.events[known..].iter()
    }

    /// Whether the segment holds this event.
    pub(super) fn has(&self, place: Place) -> bool {
        let event = self
            .events
            .binary_search_by_key(&place.seq, |event| event.seq);
        event.is_ok_and(|index| self.events[index].place() == place)
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Returns the place up to which the segment holds all events.
    pub(super) fn through(&self) -> Place {
        let last = self.events.last().filter(|last| last.seq == self.through);
        last.map_or(Place::untagged(self.through), |last| last.place())
    }

    /// Whether the event is a tick that is superseded by a later event that passes the filter.
    pub(super) fn supersedes(&self, event: &Event, filter: &Filter) -> bool {
        let last = || self.last.get(&(event.kind, event.subject.clone()));
        let is_later = |last: &LastEvent| {
            last.seq > event.seq && filter.passes(&last.status, last.category.as_deref())
        };
        event.is_tick() && last().is_some_and(is_later)
    }
}

/// A segment that may not have been read yet.
#[derive(Default)]
struct Slot {
    /// Locked during a read.
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    Unread,
    Read(Arc<Segment>),
    /// It exceeds the maximum size of a cached segment.
    TooLarge,
}

/// The most recently used segments.
pub(super) struct Segments {
    log: Arc<dyn Log>,
    /// Number of events in a segment.
    size: u64,
    cache: Mutex<Cache>,
    /// For each log that other nodes also write to: its newest event when its segments were last used.
    heads: Mutex<LruCache<SchoolId, Place>>,
}

struct Cache {
    /// Each slot with the bytes that it counts for.
    slots: LruCache<(SchoolId, u64), (Arc<Slot>, usize)>,
    bytes: usize,
}

impl Segments {
    pub(super) fn new(log: Arc<dyn Log>, size: u64) -> Segments {
        let capacity = NonZeroUsize::new(SEGMENTS_MAX).expect("a cache has room");
        Segments {
            log,
            size,
            cache: Mutex::new(Cache {
                slots: LruCache::new(capacity),
                bytes: 0,
            }),
            heads: Mutex::new(LruCache::new(capacity)),
        }
    }

    /// Forgets the segments of a school if its log has lost events since they were last used: while this node runs, a
    /// shared database can fail over to a standby that has not received every commit.
    pub(super) async fn follow(&self, school: SchoolId, bounds: Bounds) -> Result<(), StoreError> {
        if !self.log.is_shared() {
            return Ok(());
        }
        let known = self.heads().peek(&school).copied();
        let has_lost = match known {
            Some(known) if known == bounds.head => return Ok(()),
            Some(known) => !self.has(school, known, bounds).await?,
            // The head was evicted, because many schools are in use, or was never known. Its segments may still be
            // cached.
            None => true,
        };
        if has_lost {
            self.cache().forget(school);
        }
        self.heads().put(school, bounds.head);
        Ok(())
    }

    /// Whether a log still has its former newest event.
    async fn has(
        &self,
        school: SchoolId,
        known: Place,
        bounds: Bounds,
    ) -> Result<bool, StoreError> {
        if known.seq == 0 || known.seq >= bounds.head.seq || known.seq <= bounds.floor.seq {
            return Ok(known.seq == 0 || known == bounds.head);
        }
        let range = self
            .log
            .read_range(school, known.seq - 1, known.seq)
            .await?;
        let is_same = |event: &Arc<Event>| known.tag.is_none() || event.place() == known;
        Ok(range.events.first().is_some_and(is_same))
    }

    fn heads(&self) -> MutexGuard<'_, LruCache<SchoolId, Place>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the segment that holds the event after `after`, at least up to the known head. Returns `None` if it is
    /// too large to be cached.
    pub(super) async fn get(
        &self,
        school: SchoolId,
        after: u64,
        bounds: Bounds,
    ) -> Result<Option<Arc<Segment>>, StoreError> {
        let number = after / self.size;
        let (begin, end) = (number * self.size, (number + 1) * self.size);
        let slot = self.slot(school, number);
        let mut state = slot.state.lock().await;
        let known = match &*state {
            State::TooLarge => return Ok(None),
            State::Read(segment) if segment.through >= end.min(bounds.head.seq) => {
                return Ok(Some(Arc::clone(segment)));
            }
            State::Read(segment) => Some(Arc::clone(segment)),
            State::Unread => None,
        };
        let read = self.read(school, (begin, end), known.as_deref()).await?;
        let newest = read.as_ref().and_then(|segment| segment.events.last());
        if let Some(newest) = newest
            && let Some(known) = self.heads().peek_mut(&school)
        {
            // It may have been committed after the bounds were read. A later failover can lose it as well.
            *known = (*known).max(newest.place());
        }
        let bytes = read.as_ref().map_or(0, |segment| segment.bytes);
        *state = match &read {
            Some(segment) => State::Read(Arc::clone(segment)),
            None => State::TooLarge,
        };
        drop(state);
        self.cache().count((school, number), &slot, bytes);
        Ok(read)
    }

    /// Reads the part of a segment that is not known yet.
    async fn read(
        &self,
        school: SchoolId,
        (begin, end): (u64, u64),
        known: Option<&Segment>,
    ) -> Result<Option<Arc<Segment>>, StoreError> {
        let mut segment = Segment {
            through: begin,
            ..Segment::default()
        };
        if let Some(known) = known {
            segment.events.clone_from(&known.events);
            segment.last.clone_from(&known.last);
            (segment.floor, segment.through) = (known.floor, known.through);
            segment.bytes = known.bytes;
        }
        loop {
            // In a shared log, read the last event again: the log may have lost it since, together with earlier ones.
            let last = segment.events.last().filter(|_| self.log.is_shared());
            let last = last.map(|last| last.place());
            let after = last.map_or(segment.through, |last| last.seq - 1);
            let mut range = self.log.read_range(school, after, end).await?;
            if let Some(last) = last {
                if range.lacks(last) {
                    segment = Segment {
                        through: begin,
                        ..Segment::default()
                    };
                    continue;
                }
                range.events.retain(|event| event.seq > last.seq);
            }
            if range.floor.seq > segment.through {
                // Retention has deleted the events that follow those read earlier, so there would be a gap.
                segment.events.clear();
                segment.bytes = 0;
                segment.floor = range.floor.seq;
            }
            let bytes = range.events.iter().map(|event| event.bytes());
            segment.bytes += bytes.sum::<usize>();
            segment.events.extend(range.events);
            segment.last.extend(range.last);
            segment.through = range.through.max(segment.through);
            if segment.bytes > SEGMENT_MAX_BYTES {
                return Ok(None);
            }
            if segment.through >= end.min(range.head) {
                debug_assert!(is_dense(&segment.events), "a segment has no hole");
                return Ok(Some(Arc::new(segment)));
            }
        }
    }

    fn slot(&self, school: SchoolId, number: u64) -> Arc<Slot> {
        let mut cache = self.cache();
        if let Some((slot, _)) = cache.slots.get(&(school, number)) {
            return Arc::clone(slot);
        }
        let slot = Arc::<Slot>::default();
        let new = (Arc::clone(&slot), 0);
        if let Some((_, (_, bytes))) = cache.slots.push((school, number), new) {
            cache.bytes -= bytes;
        }
        slot
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn forget(&mut self, school: SchoolId) {
        let keys = self.slots.iter().map(|(key, _)| *key);
        let keys: Vec<_> = keys.filter(|key| key.0 == school).collect();
        for key in keys {
            let gone = self.slots.pop(&key);
            self.bytes -= gone.map_or(0, |(_, bytes)| bytes);
        }
    }

    /// Records the size of a segment, and evicts others if the cache is too large.
    fn count(&mut self, key: (SchoolId, u64), slot: &Arc<Slot>, bytes: usize) {
        // The segment may have been evicted during the read.
        if let Some((cached, counted)) = self.slots.get_mut(&key)
            && Arc::ptr_eq(cached, slot)
        {
            self.bytes = self.bytes - *counted + bytes;
            *counted = bytes;
        }
        while self.bytes > SEGMENTS_MAX_BYTES {
            let oldest = self.slots.pop_lru();
            self.bytes -= oldest.map_or(0, |(_, (_, bytes))| bytes);
        }
    }
}

/// Bounds of logs. Concurrent callers share a read that begins after their calls.
pub(super) struct Heads {
    log: Arc<dyn Log>,
    flights: Mutex<LruCache<SchoolId, Arc<Flight>>>,
}

#[derive(Default)]
struct Flight {
    asked: AtomicU64,
    /// The last read: how many callers had asked when it began, and its result.
    last: tokio::sync::Mutex<(u64, Bounds)>,
}

impl Heads {
    pub(super) fn new(log: Arc<dyn Log>) -> Heads {
        let capacity = NonZeroUsize::new(SEGMENTS_MAX).expect("a cache has room");
        Heads {
            log,
            flights: Mutex::new(LruCache::new(capacity)),
        }
    }

    /// Returns the bounds of a log as of this call or later.
    pub(super) async fn bounds(&self, school: SchoolId) -> Result<Bounds, StoreError> {
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(flights.get_or_insert(school, Arc::default))
        };
        let ticket = flight.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut last = flight.last.lock().await;
        let (began, bounds) = *last;
        if began >= ticket {
            return Ok(bounds);
        }
        let began = flight.asked.load(Ordering::SeqCst);
        let bounds = self.log.bounds(school).await?;
        *last = (began, bounds);
        Ok(bounds)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;
    use crate::feed::tests::{Kept, events, school};
    use crate::hub::mailbox::tests::event;

    fn segments() -> Segments {
        Segments::new(Arc::new(Kept::default()), 4)
    }

    impl Segments {
        /// Records that a segment has this many bytes.
        fn count(&self, school: SchoolId, number: u64, bytes: usize) {
            let slot = self.slot(school, number);
            self.cache().count((school, number), &slot, bytes);
        }

        fn has_slot(&self, school: SchoolId, number: u64) -> bool {
            self.cache().slots.contains(&(school, number))
        }
    }

    #[test]
    fn the_cache_counts_the_bytes_of_the_segments_that_it_holds() {
        let segments = segments();
        let other = 2.try_into().unwrap();
        segments.count(school(), 0, 10);
        segments.count(school(), 0, 30);
        assert_eq!(segments.cache().bytes, 30, "it has grown");
        segments.count(school(), 1, 5);
        segments.count(other, 0, 7);
        assert_eq!(segments.cache().bytes, 42);
        let evicted = Arc::default();
        segments.cache().count((school(), 1), &evicted, 1_000);
        assert_eq!(segments.cache().bytes, 42, "another one is there now");
        segments.cache().forget(school());
        assert_eq!(segments.cache().bytes, 7);
        assert!(segments.has_slot(other, 0));
        for number in 1..=SEGMENTS_MAX as u64 {
            segments.slot(school(), number);
        }
        assert!(!segments.has_slot(other, 0), "there is no room for it");
        assert_eq!(segments.cache().bytes, 0);
    }

    #[test]
    fn the_least_recently_used_segments_make_room() {
        let segments = segments();
        segments.count(school(), 0, 10);
        segments.count(school(), 1, 10);
        segments.slot(school(), 0);
        segments.count(school(), 2, SEGMENTS_MAX_BYTES - 20);
        assert!((0..3).all(|number| segments.has_slot(school(), number)));
        segments.count(school(), 3, 1);
        assert!(!segments.has_slot(school(), 1));
        assert!(segments.has_slot(school(), 0), "it was used later");
        assert_eq!(segments.cache().bytes, SEGMENTS_MAX_BYTES - 9);
    }

    #[tokio::test]
    async fn a_segment_that_is_too_large_is_not_kept() {
        let sized = |seq, bytes: usize| {
            let mut event = Arc::into_inner(event(seq, "a", true)).unwrap();
            event.draft.fields = "x".repeat(bytes).as_str().into();
            Arc::new(event)
        };
        for (bytes, is_kept) in [(10, true), (SEGMENT_MAX_BYTES, false)] {
            let log = Arc::new(Kept::default());
            log.ends_with(&[sized(1, 10), sized(2, bytes)]);
            let bounds = log.bounds(school()).await.unwrap();
            let segments = Segments::new(log, 4);
            for _ in 0..2 {
                let segment = segments.get(school(), 0, bounds).await.unwrap();
                assert_eq!(segment.is_some(), is_kept);
            }
            let counted = segments.cache().bytes;
            assert_eq!(counted > 0, is_kept, "{counted}");
        }
    }

    #[test]
    fn a_tick_is_superseded_by_a_later_event_that_passes_the_filter() {
        let known = event(5, "a", true);
        let last = LastEvent {
            seq: known.seq,
            status: "failed".into(),
            category: None,
        };
        let segment = Segment {
            last: [((known.kind, known.subject.clone()), last)].into(),
            ..Segment::default()
        };
        let all = Filter::default();
        let of_status = |status: &str| Filter {
            statuses: [status.to_owned()].into(),
            ..Filter::default()
        };
        let tick = event(4, "a", false);
        assert!(segment.supersedes(&tick, &all));
        assert!(segment.supersedes(&tick, &of_status("failed")));
        assert!(!segment.supersedes(&tick, &of_status("completed")));
        assert!(!segment.supersedes(&event(5, "a", false), &all), "itself");
        assert!(!segment.supersedes(&event(6, "a", false), &all), "later");
        assert!(!segment.supersedes(&event(4, "b", false), &all));
        assert!(!segment.supersedes(&event(4, "a", true), &all));
    }

    #[tokio::test]
    async fn a_segment_knows_what_was_removed_before_it_was_read() {
        let log = Arc::new(Kept::default());
        log.ends_with(&events(1..=4));
        log.remove(2);
        let bounds = log.bounds(school()).await.unwrap();
        let segment = Segments::new(log, 8).get(school(), 0, bounds).await;
        let segment = segment.unwrap().unwrap();
        assert_eq!(segment.floor(), 2);
        assert_eq!(segment.after(0).count(), 2);
    }

    #[tokio::test]
    async fn a_segment_counts_the_bytes_of_the_events_that_it_holds() {
        let log = Arc::new(Kept::default());
        log.ends_with(&events(1..=3));
        let segments = Segments::new(Arc::clone(&log) as Arc<dyn Log>, 8);
        let bounds = log.bounds(school()).await.unwrap();
        segments.get(school(), 0, bounds).await.unwrap();
        log.ends_with(&events(4..=6));
        log.remove(4);
        let bounds = log.bounds(school()).await.unwrap();
        let segment = segments.get(school(), 0, bounds).await;
        let segment = segment.unwrap().unwrap();
        let held: usize = segment.after(0).map(|event| event.bytes()).sum();
        assert_eq!((segment.after(0).count(), segment.bytes), (2, held));
    }

    #[tokio::test]
    async fn bounds_are_of_a_read_that_begins_after_the_call_and_is_shared() {
        let log = Arc::new(Kept::default());
        let heads = Heads::new(Arc::clone(&log) as Arc<dyn Log>);
        log.ends_with(&events(1..=3));
        let (open, gate) = oneshot::channel();
        *log.gate.lock().unwrap() = Some(gate);
        let mut first = Box::pin(heads.bounds(school()));
        assert!(first.as_mut().now_or_never().is_none());
        // The read in progress does not see this event.
        log.ends_with(&events(4..=4));
        let mut second = Box::pin(heads.bounds(school()));
        let mut third = Box::pin(heads.bounds(school()));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        open.send(()).unwrap();
        let (first, second, third) = tokio::join!(first, second, third);
        let heads = [first, second, third].map(|bounds| bounds.unwrap().head.seq);
        assert_eq!(heads, [3, 4, 4]);
        assert_eq!(log.bounds_reads.load(Ordering::SeqCst), 2);
    }
}
