//! Follows the logs: committed events reach listeners in order and without a hole, even if hints do not.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep_until};

use crate::config::{DISPATCH_SLICE, HOLE_MAX_EVENTS, HOLE_PAUSE, HOLE_WAIT};
use crate::event::{Event, is_dense};
use crate::hub::Hub;
use crate::id::SchoolId;
use crate::log::{Batches, Log, StoreError, Stretch};

/// Known events of a school that follow missing ones.
struct Hole {
    /// The events that wait for the missing ones.
    beyond: BTreeMap<u64, Arc<Event>>,
    /// The newest `seq` of which a hint arrived.
    newest: u64,
    /// When to read the missing events; `None` during the read.
    due: Option<Instant>,
}

struct Tail<'a> {
    hub: &'a Hub,
    log: Arc<dyn Log>,
    holes: HashMap<SchoolId, Hole>,
    reads: JoinSet<(SchoolId, Result<Stretch, StoreError>)>,
}

/// Passes committed events to `deliver`, each school's in the order of its log, until there are no more committers, or
/// until everything that was committed before `end` has been delivered. `deliver` offers them to the hub, whose head
/// determines which event comes next.
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
        holes: HashMap::new(),
        reads: JoinSet::new(),
    };
    loop {
        let due = tail.holes.values().filter_map(|hole| hole.due).min();
        let has_reads = !tail.reads.is_empty();
        tokio::select! {
            // Biased: reads that fill holes are few and go first, because batches may have to wait for them. It also
            // makes simulations deterministic.
            biased;
            () = &mut end, if !is_ending => {
                is_ending = true;
                batches.close();
            }
            Some(read) = tail.reads.join_next(), if has_reads => {
                let Ok((school, read)) = read else {
                    tail.read_again();
                    continue;
                };
                let dense = tail.fill(school, read);
                slice.deliver(&dense, &mut deliver).await;
                batches.told(&dense);
                slice.end().await;
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => tail.read_what_is_due(),
            batch = batches.recv() => {
                let Some(batch) = batch else {
                    return;
                };
                for of_school in batch.chunk_by(|one, next| one.school == next.school) {
                    let dense = tail.take(of_school);
                    slice.deliver(&dense, &mut deliver).await;
                    batches.told(&dense);
                    if !tail.has_hole(of_school[0].school) {
                        // Events that were delivered before, or whose school is not in memory, count as delivered, too.
                        batches.told(of_school);
                    }
                }
                batches.done();
                slice.end().await;
            }
        }
    }
}

/// Number of events that were delivered since other tasks had a turn. A large batch for many readers takes long.
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
    /// Accepts events of a school, and returns those that can be delivered now.
    fn take<'a>(&mut self, events: &'a [Arc<Event>]) -> Cow<'a, [Arc<Event>]> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            return Cow::Borrowed(events);
        };
        let school = first.school;
        debug_assert!(is_dense(events), "a hint has no hole");
        // A school that is not in memory has no listeners, so nothing can be missed.
        let next = self.hub.next(school);
        let is_missed = next.is_some_and(|next| first.seq > next);
        let hole = match self.holes.get_mut(&school) {
            Some(hole) => hole,
            None if is_missed => self.holes.entry(school).or_insert(Hole {
                beyond: BTreeMap::new(),
                newest: 0,
                due: Some(Instant::now() + HOLE_WAIT),
            }),
            None => {
                let is_known = |event: &Arc<Event>| next.is_some_and(|next| event.seq < next);
                return Cow::Borrowed(&events[events.partition_point(is_known)..]);
            }
        };
        tracing::debug!(school.id = %school, from = first.seq, to = last.seq, "events arrived before earlier ones");
        let of_batch = events.iter().map(|event| (event.seq, Arc::clone(event)));
        hole.beyond.extend(of_batch);
        hole.newest = hole.newest.max(last.seq);
        while hole.beyond.len() > HOLE_MAX_EVENTS {
            // It will be read together with the missing events.
            hole.beyond.pop_last();
        }
        Cow::Owned(self.dense(school))
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
        // `None` if the school has left memory meanwhile: then it has no listeners that could miss anything.
        let mut next = self.hub.next(school).unwrap_or(hole.newest + 1);
        while let Some(entry) = hole.beyond.first_entry().filter(|own| *own.key() <= next) {
            let event = entry.remove();
            if event.seq == next {
                deliverable.push(event);
                next += 1;
            }
        }
        if next > hole.newest {
            self.holes.remove(&school);
        }
        debug_assert!(is_dense(&deliverable), "what is delivered has no hole");
        deliverable
    }

    /// Starts the reads that are due.
    fn read_what_is_due(&mut self) {
        let now = Instant::now();
        for (school, hole) in &mut self.holes {
            if hole.due.is_none_or(|due| due > now) {
                continue;
            }
            hole.due = None;
            let (school, log) = (*school, Arc::clone(&self.log));
            let after = self.hub.next(school).map_or(0, |next| next - 1);
            let upto = hole.beyond.keys().next().map_or(hole.newest, |seq| seq - 1);
            self.reads
                .spawn(async move { (school, log.read_stretch(school, after, upto).await) });
        }
    }

    /// Schedules all reads in progress again: one of them panicked, and it is not known for which school.
    fn read_again(&mut self) {
        let due = Instant::now() + HOLE_PAUSE;
        for hole in self.holes.values_mut() {
            hole.due.get_or_insert(due);
        }
    }

    /// Accepts the missing events, and returns those that can be delivered now.
    fn fill(&mut self, school: SchoolId, read: Result<Stretch, StoreError>) -> Vec<Arc<Event>> {
        let Some(hole) = self.holes.get_mut(&school) else {
            return Vec::new();
        };
        match read {
            Ok(stretch) => {
                // If the log does not have the events yet, it is read again only after a pause.
                let pause = match stretch.events.is_empty() {
                    true => HOLE_PAUSE,
                    false => Duration::ZERO,
                };
                hole.due = Some(Instant::now() + pause);
                let is_gone = self
                    .hub
                    .next(school)
                    .is_some_and(|next| stretch.floor >= next);
                let of_log = stretch.events.into_iter().map(|event| (event.seq, event));
                hole.beyond.extend(of_log);
                if is_gone {
                    // The missing events are past retention. The hub makes the listeners that would miss them read the
                    // log.
                    let hole = self.holes.remove(&school);
                    return hole.map_or(Vec::new(), |hole| hole.beyond.into_values().collect());
                }
            }
            Err(error) => {
                tracing::warn!(%error, school.id = %school, "missing events could not be read; retrying");
                hole.due = Some(Instant::now() + HOLE_PAUSE);
            }
        }
        self.dense(school)
    }
}
