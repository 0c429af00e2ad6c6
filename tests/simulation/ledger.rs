//! A log in memory, read as slowly as the simulation likes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use chrono::DateTime;
use tidings::event::{Class, Draft, Event};
use tidings::id::{Cursor, Epoch, Place, SchoolId, SubjectId};
use tidings::kind::job;
use tidings::log::{Bounds, LastEvent, Log, Page, StoreError, Stretch};
use tidings::scope::Scope;
use tokio::sync::oneshot;

use super::Fault;

/// So few events and states fit into a page that paging happens all the time.
const EVENTS_A_PAGE: usize = 5;
const STATES_A_PAGE: usize = 2;

/// The log of one school.
pub(super) struct Ledger {
    inner: Mutex<Inner>,
    fault: Option<Fault>,
}

struct Inner {
    epoch: Epoch,
    /// All that was ever committed: `seq` 1 first.
    events: Vec<Arc<Event>>,
    /// How many were ever committed, also of those that were lost.
    made: u64,
    /// Events up to here were swept.
    floor: u64,
    /// Reads that wait for the disk.
    waiting: Vec<oneshot::Sender<()>>,
    /// What a faulty subscriber has read before it listened: its first page ends here.
    stale_head: Option<u64>,
    /// What a faulty log says of its end.
    stale_bounds: Option<Bounds>,
}

/// What a filter can ask for: half of the subjects are of either.
pub(super) fn category(subject: &str) -> &'static str {
    match subject {
        "a" | "b" => "scan",
        _ => "print",
    }
}

pub(super) fn school() -> SchoolId {
    1.try_into().unwrap()
}

impl Inner {
    /// The place of an event, if it is still there.
    fn place(&self, seq: u64) -> Place {
        let event = (seq as usize)
            .checked_sub(1)
            .and_then(|index| self.events.get(index));
        event.map_or(Place::default(), |event| event.place())
    }
}

impl Ledger {
    pub(super) fn new(fault: Option<Fault>) -> Ledger {
        Ledger {
            inner: Mutex::new(Inner {
                epoch: "00000001".parse().unwrap(),
                events: Vec::new(),
                made: 0,
                floor: 0,
                waiting: Vec::new(),
                stale_head: None,
                stale_bounds: None,
            }),
            fault,
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap())
    }

    pub(super) fn head(&self) -> u64 {
        self.with(|inner| inner.events.len() as u64)
    }

    pub(super) fn floor(&self) -> u64 {
        self.with(|inner| inner.floor)
    }

    /// Where it ends.
    pub(super) fn end(&self) -> Cursor {
        self.with(|inner| Cursor {
            epoch: inner.epoch,
            place: inner.place(inner.events.len() as u64),
        })
    }

    /// Whether the event that a cursor names is one of this log.
    pub(super) fn knows(&self, cursor: Cursor) -> bool {
        self.with(|inner| inner.place(cursor.place.seq) == cursor.place)
    }

    /// The event of this number.
    pub(super) fn event(&self, seq: u64) -> Option<Arc<Event>> {
        let index = (seq as usize).checked_sub(1)?;
        self.with(|inner| inner.events.get(index).cloned())
    }

    /// The first event of a subject in `after + 1..=upto` that a scope hears: a milestone, or any if `all` count.
    pub(super) fn first_heard(
        &self,
        scope: &Scope,
        subject: &SubjectId,
        after: u64,
        upto: u64,
        all: bool,
    ) -> Option<u64> {
        self.with(|inner| {
            let end = inner.events.len().min(upto as usize);
            let between = inner.events.get(after as usize..end).unwrap_or_default();
            let counts = |event: &&Arc<Event>| {
                event.subject == *subject && (all || !event.is_tick()) && scope.hears(event)
            };
            between.iter().find(counts).map(|event| event.seq)
        })
    }

    /// The last event of a subject that a scope hears.
    pub(super) fn last_heard(&self, scope: &Scope, subject: &SubjectId) -> Option<u64> {
        self.with(|inner| {
            let heard = |event: &&Arc<Event>| event.subject == *subject && scope.hears(event);
            inner.events.iter().rev().find(heard).map(|event| event.seq)
        })
    }

    pub(super) fn commit(&self, subject: &str, class: Class) -> Arc<Event> {
        self.with(|inner| {
            let cursor = (inner.epoch, inner.events.len() as u64 + 1);
            inner.made += 1;
            let draft = Draft {
                event_type: &job::JOB_PROGRESS,
                class,
                status: "in_progress",
                category: Some(category(subject).into()),
                fields: format!("{{\"progress\":{}}}", inner.made).into(),
            };
            let event = Arc::new(event(cursor, subject.parse().unwrap(), draft));
            inner.events.push(Arc::clone(&event));
            event
        })
    }

    /// Moves the end of what is kept, at most to the head.
    pub(super) fn sweep(&self, to: u64) {
        self.with(|inner| inner.floor = inner.floor.max(to));
    }

    /// Forgets ticks at the end, as a power loss does: their numbers will be given again.
    pub(super) fn lose_the_last_ticks(&self, most: usize) {
        self.with(|inner| {
            for _ in 0..most {
                let is_tick = inner.events.last().is_some_and(|event| event.is_tick());
                if !is_tick || inner.events.len() as u64 <= inner.floor {
                    break;
                }
                inner.events.pop();
            }
        });
    }

    /// Reads that wait.
    pub(super) fn waiting(&self) -> usize {
        self.with(|inner| inner.waiting.len())
    }

    /// Lets one read have its turn.
    pub(super) fn turn(&self, index: usize) {
        let turn = self.with(|inner| inner.waiting.swap_remove(index));
        // The reader that waited may have left.
        let _ = turn.send(());
    }

    /// A crash: nobody waits any more.
    pub(super) fn forget_readers(&self) {
        self.with(|inner| inner.waiting.clear());
    }

    /// A faulty subscriber that reads before it listens has read until here.
    pub(super) fn note_stale_head(&self) {
        self.with(|inner| inner.stale_head = Some(inner.events.len() as u64));
    }

    async fn wait_for_the_disk(&self) -> Result<(), StoreError> {
        let (turn, waiting) = oneshot::channel();
        self.with(|inner| inner.waiting.push(turn));
        waiting.await.map_err(|_| StoreError::Stopped)
    }

    fn head_to_read(&self, inner: &mut Inner) -> u64 {
        let stale = inner.stale_head.take();
        let head = inner.events.len() as u64;
        match self.fault {
            Some(Fault::ReadBeforeListening) => stale.unwrap_or(head),
            _ => head,
        }
    }
}

fn event(place: (Epoch, u64), subject: SubjectId, draft: Draft) -> Event {
    Event::new(
        place,
        school(),
        job::KIND,
        subject,
        DateTime::UNIX_EPOCH,
        draft,
    )
}

#[async_trait]
impl Log for Ledger {
    fn epoch(&self) -> Epoch {
        self.with(|inner| inner.epoch)
    }

    async fn bounds(&self, _: SchoolId) -> Result<Bounds, StoreError> {
        self.wait_for_the_disk().await?;
        let bounds = self.with(|inner| {
            let head = self.head_to_read(inner);
            let now = Bounds {
                head: inner.place(head),
                floor: inner.place(inner.floor),
            };
            match self.fault {
                Some(Fault::StaleBounds) => inner.stale_bounds.replace(now).unwrap_or(now),
                _ => now,
            }
        });
        self.wait_for_the_disk().await?;
        Ok(bounds)
    }

    async fn read_stretch(
        &self,
        _: SchoolId,
        after: u64,
        upto: u64,
    ) -> Result<Stretch, StoreError> {
        self.wait_for_the_disk().await?;
        let stretch = self.with(|inner| {
            let head = inner.events.len() as u64;
            let from = match self.fault {
                Some(Fault::OffByOne) => after + 1,
                _ => after,
            };
            let within = |event: &&Arc<Event>| {
                event.seq > from.max(inner.floor) && event.seq <= upto.min(head)
            };
            let events = inner.events.iter().filter(within).take(EVENTS_A_PAGE);
            let events: Vec<Arc<Event>> = events.cloned().collect();
            let through = match events.len() {
                EVENTS_A_PAGE => events[EVENTS_A_PAGE - 1].seq,
                _ => upto.min(head),
            };
            let mut last = HashMap::new();
            for event in inner.events.iter().filter(|event| event.seq <= head) {
                let category = event.draft.category.as_deref().map(str::to_owned);
                let own = LastEvent {
                    seq: event.seq,
                    status: event.draft.status.to_owned(),
                    category,
                };
                last.insert((event.kind, event.subject.clone()), own);
            }
            Stretch {
                events,
                through,
                head,
                floor: inner.floor,
                last,
            }
        });
        self.wait_for_the_disk().await?;
        Ok(stretch)
    }

    async fn replay(&self, scope: Arc<Scope>, after: u64, fold: bool) -> Result<Page, StoreError> {
        self.wait_for_the_disk().await?;
        let page = self.with(|inner| {
            let head = self.head_to_read(inner);
            let from = match self.fault {
                Some(Fault::OffByOne) => after + 1,
                _ => after,
            };
            let within =
                |event: &&Arc<Event>| event.seq > from.max(inner.floor) && event.seq <= head;
            let page: Vec<&Arc<Event>> = inner
                .events
                .iter()
                .filter(within)
                .take(EVENTS_A_PAGE)
                .collect();
            let through = match page.len() {
                EVENTS_A_PAGE => page[EVENTS_A_PAGE - 1].seq,
                _ => head,
            };
            let superseded = |event: &Event| {
                let later = inner
                    .events
                    .iter()
                    .filter(|later| later.seq > event.seq && later.seq <= head);
                event.is_tick()
                    && later
                        .into_iter()
                        .any(|later| later.subject == event.subject && scope.hears(later))
            };
            let told = page
                .into_iter()
                .filter(|event| scope.hears(event) && !(fold && superseded(event)));
            Page {
                events: told.cloned().collect(),
                through: inner.place(through),
                head: inner.place(head),
                floor: inner.floor,
            }
        });
        self.wait_for_the_disk().await?;
        Ok(page)
    }

    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<Place>,
    ) -> Result<Page, StoreError> {
        self.wait_for_the_disk().await?;
        let page = self.with(|inner| {
            let upto = match upto {
                Some(upto) => upto.seq,
                None => self.head_to_read(inner),
            };
            // States as they are now, also those that have gone on since the first page.
            let mut last: BTreeMap<&str, &Arc<Event>> = BTreeMap::new();
            for event in &inner.events {
                last.insert(event.subject.as_str(), event);
            }
            let mut states: Vec<&Arc<Event>> = last
                .into_values()
                .filter(|event| event.seq > after && event.seq <= upto && scope.hears(event))
                .collect();
            states.sort_unstable_by_key(|event| event.seq);
            let is_whole = states.len() <= STATES_A_PAGE;
            states.truncate(STATES_A_PAGE);
            let through = match is_whole {
                true => upto,
                false => states[STATES_A_PAGE - 1].seq,
            };
            let told = |state: &&Arc<Event>| {
                Arc::new(Event::snapshot(
                    (state.epoch, state.place()),
                    state.school,
                    state.kind,
                    state.subject.clone(),
                    state.at,
                    state.draft.clone(),
                ))
            };
            Page {
                events: states.iter().map(told).collect(),
                through: inner.place(through),
                head: inner.place(upto),
                floor: inner.floor,
            }
        });
        self.wait_for_the_disk().await?;
        Ok(page)
    }
}
