//! In-memory logs. Each read waits until the simulation lets it continue.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::pending;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tidings::event::Event;
use tidings::id::{Cursor, Epoch, Place, SchoolId, SubjectId};
use tidings::log::{Bounds, LastEvent, Log, LogRange, Page, StoreError};
use tidings::scope::Scope;
use tokio::sync::oneshot;

use super::Fault;
use super::publisher::Disk;
use super::trace::Trace;

/// A page holds so few events and states that most reads need several pages.
const EVENTS_A_PAGE: usize = 5;
const STATES_A_PAGE: usize = 2;

/// The logs of all schools, and the rest of the database.
pub(super) struct Ledger {
    epoch: Epoch,
    inner: Mutex<Inner>,
    pub(super) disk: Disk,
    pub(super) fault: Option<Fault>,
    is_shared: bool,
    /// Whether it is the database of several simulated nodes.
    pub(super) is_of_cluster: bool,
    /// Whether a request that comes alone commits by itself.
    pub(super) is_embedded: bool,
    /// What happened, if that is recorded.
    pub(super) trace: Trace,
}

#[derive(Default)]
struct Inner {
    logs: BTreeMap<SchoolId, OneLog>,
    /// Reads and writes that wait for the disk.
    waiting: Vec<Waiting>,
    /// Writes that are late: they are on their way, and the simulation determines when they arrive.
    late: Vec<Write>,
}

/// A write that is on its way to the database.
pub(super) type Write = Box<dyn FnOnce(&Ledger) + Send>;

enum Waiting {
    Read(oneshot::Sender<()>),
    Write(Write),
}

/// The log of one school.
#[derive(Default)]
struct OneLog {
    /// All committed events; the first has `seq` 1. Retention only moves `floor`.
    events: Vec<Arc<Event>>,
    /// Retention has deleted the events up to here.
    floor: u64,
    /// The head as a faulty subscriber read it before it listened. Its first page ends here.
    stale_head: Option<u64>,
    /// The bounds that a faulty log reports in place of the current ones.
    stale_bounds: Option<Bounds>,
    /// The places of the events that a failover has lost.
    lost: HashSet<Place>,
    /// The numbered commands that were carried out.
    carried_out: HashSet<String>,
}

/// Returns the job type of a subject, to filter by. Each of the two types has half of the subjects.
pub(super) fn category(subject: &str) -> &'static str {
    match subject {
        "a" | "b" => "scan",
        _ => "print",
    }
}

/// Returns the number of the command that led to an event, if it had one.
fn number(event: &Event) -> Option<String> {
    if !event.is_tick() {
        return None;
    }
    let fields: serde_json::Value = serde_json::from_str(&event.draft.fields).ok()?;
    Some(fields.get("message")?.as_str()?.to_owned())
}

/// Returns the schools of the simulation.
pub(super) fn schools() -> [SchoolId; 2] {
    [1, 2].map(|number| number.try_into().unwrap())
}

impl OneLog {
    fn head(&self) -> u64 {
        self.events.len() as u64
    }

    /// Returns the place of an event, or the default place if the log does not have the event.
    fn place(&self, seq: u64) -> Place {
        self.event(seq)
            .map_or(Place::default(), |event| event.place())
    }

    fn event(&self, seq: u64) -> Option<&Arc<Event>> {
        let index = (seq as usize).checked_sub(1)?;
        self.events.get(index)
    }
}

/// Returns an event as a store reads it: without the tag of the one before it, which is not stored.
fn as_stored(event: &Arc<Event>) -> Arc<Event> {
    Arc::new(Event::new(
        (event.epoch, event.seq),
        event.school,
        event.kind,
        event.subject.clone(),
        event.at,
        event.draft.clone(),
    ))
}

impl Ledger {
    pub(super) fn new(fault: Option<Fault>, is_shared: bool) -> Ledger {
        Ledger {
            epoch: "00000001".parse().unwrap(),
            inner: Mutex::default(),
            disk: Disk::default(),
            fault,
            is_shared,
            is_of_cluster: false,
            is_embedded: false,
            trace: Trace::default(),
        }
    }

    /// Creates the database of one node, whose requests commit by themselves if they come alone.
    pub(super) fn embedded(fault: Option<Fault>) -> Ledger {
        Ledger {
            is_embedded: true,
            ..Ledger::new(fault, false)
        }
    }

    /// Creates the database of several nodes.
    pub(super) fn of_cluster(fault: Option<Fault>) -> Ledger {
        Ledger {
            is_of_cluster: true,
            ..Ledger::new(fault, true)
        }
    }

    fn with<T>(&self, school: SchoolId, act: impl FnOnce(&mut OneLog) -> T) -> T {
        let mut inner = self.inner.lock().unwrap();
        act(inner.logs.entry(school).or_default())
    }

    pub(super) fn head(&self, school: SchoolId) -> u64 {
        self.with(school, |log| log.head())
    }

    pub(super) fn floor(&self, school: SchoolId) -> u64 {
        self.with(school, |log| log.floor)
    }

    /// Returns the cursor at the end of a school's log.
    pub(super) fn end(&self, school: SchoolId) -> Cursor {
        let place = self.with(school, |log| log.place(log.head()));
        Cursor::new(self.epoch, place)
    }

    /// Whether the log has the event that a cursor names.
    pub(super) fn knows(&self, school: SchoolId, cursor: Cursor) -> bool {
        self.with(school, |log| log.place(cursor.place.seq) == cursor.place)
    }

    /// Whether the log had the event of this place, and lost it.
    pub(super) fn has_lost(&self, school: SchoolId, place: Place) -> bool {
        self.with(school, |log| {
            log.lost.contains(&place) && log.place(place.seq) != place
        })
    }

    /// Whether the log has lost an event, other than by retention. A place without a tag is that of a removed one.
    pub(super) fn lacks(&self, school: SchoolId, place: Place) -> bool {
        let is_swept = place.seq <= self.floor(school);
        match self.event(school, place.seq).filter(|_| !is_swept) {
            Some(event) => event.place() != place,
            None => self.head(school) < place.seq,
        }
    }

    /// Returns the event with this `seq`.
    pub(super) fn event(&self, school: SchoolId, seq: u64) -> Option<Arc<Event>> {
        self.with(school, |log| log.event(seq).cloned())
    }

    /// Returns the status of a subject, if the subject exists.
    pub(super) fn status(&self, school: SchoolId, subject: &str) -> Option<&'static str> {
        self.with(school, |log| {
            let mut events = log.events.iter().rev();
            let last = events.find(|event| event.subject.as_str() == subject)?;
            Some(last.draft.status)
        })
    }

    /// Returns the `seq` of a subject's first event in `after + 1..=upto` that is in scope: of the first milestone or,
    /// with `all`, of the first event of any class.
    pub(super) fn first_heard(
        &self,
        scope: &Scope,
        subject: &SubjectId,
        after: u64,
        upto: u64,
        all: bool,
    ) -> Option<u64> {
        self.with(scope.school, |log| {
            let end = log.events.len().min(upto as usize);
            let between = log.events.get(after as usize..end).unwrap_or_default();
            let counts = |event: &&Arc<Event>| {
                event.subject == *subject && (all || !event.is_tick()) && scope.matches(event)
            };
            between.iter().find(counts).map(|event| event.seq)
        })
    }

    /// Returns the `seq` of a subject's last event that is in scope.
    pub(super) fn last_heard(&self, scope: &Scope, subject: &SubjectId) -> Option<u64> {
        self.with(scope.school, |log| {
            let heard = |event: &&Arc<Event>| event.subject == *subject && scope.matches(event);
            log.events.iter().rev().find(heard).map(|event| event.seq)
        })
    }

    /// Appends committed events. Fails if their `seq`s are not consecutive.
    pub(super) fn append(&self, events: &[Arc<Event>]) -> Result<(), String> {
        for event in events {
            let next = self.head(event.school) + 1;
            if event.seq != next {
                return Err(format!("{} was given where {next} comes next", event.seq));
            }
            if let Some(number) = number(event)
                && !self.with(event.school, |log| log.carried_out.insert(number.clone()))
            {
                return Err(format!("command {number} was carried out twice"));
            }
            self.with(event.school, |log| log.events.push(Arc::clone(event)));
        }
        Ok(())
    }

    /// Deletes the events up to `to`, as retention does. `to` is at most the head.
    pub(super) fn sweep(&self, school: SchoolId, to: u64) {
        self.with(school, |log| log.floor = log.floor.max(to));
    }

    /// Whether the log of a school has an event of this subject.
    pub(super) fn has_events_of(&self, school: SchoolId, subject: &SubjectId) -> bool {
        self.with(school, |log| {
            log.events.iter().any(|event| event.subject == *subject)
        })
    }

    /// Returns the head of each log.
    pub(super) fn heads(&self) -> HashMap<SchoolId, u64> {
        let head = |school| (school, self.head(school));
        schools().map(head).into_iter().collect()
    }

    /// Removes and returns the events after these heads, as a power loss does. Their sequence numbers will be
    /// reassigned.
    pub(super) fn cut(&self, heads: &HashMap<SchoolId, u64>) -> Vec<Arc<Event>> {
        let mut lost = Vec::new();
        for school in schools() {
            let head = heads.get(&school).copied().unwrap_or(0);
            self.with(school, |log| {
                let cut = log.events.split_off(log.events.len().min(head as usize));
                log.lost.extend(cut.iter().map(|event| event.place()));
                for number in cut.iter().filter_map(|event| number(event)) {
                    log.carried_out.remove(&number);
                }
                lost.extend(cut);
                // The floor is never after the head.
                log.floor = log.floor.min(log.head());
            });
        }
        lost
    }

    /// Returns the number of waiting reads and writes.
    pub(super) fn waiting(&self) -> usize {
        self.inner.lock().unwrap().waiting.len()
    }

    /// Lets one waiting read continue, or carries out one waiting write.
    pub(super) fn turn(&self, index: usize) {
        let turn = self.inner.lock().unwrap().waiting.swap_remove(index);
        match turn {
            // Fails if the reader has left.
            Waiting::Read(turn) => drop(turn.send(())),
            Waiting::Write(write) => write(self),
        }
    }

    /// Delays the writes that are on their way.
    pub(super) fn delay_writes(&self) {
        let mut inner = self.inner.lock().unwrap();
        let Inner { waiting, late, .. } = &mut *inner;
        for call in std::mem::take(waiting) {
            match call {
                Waiting::Write(write) => late.push(write),
                read @ Waiting::Read(_) => waiting.push(read),
            }
        }
    }

    /// Carries out the writes that were delayed.
    pub(super) fn late_writes_arrive(&self) {
        let late = std::mem::take(&mut self.inner.lock().unwrap().late);
        late.into_iter().for_each(|write| write(self));
    }

    /// Sends a write. It is carried out even if its sender is gone by then.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Ledger) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let write = Box::new(move |ledger: &Ledger| drop(answer.send(write(ledger))));
        self.inner
            .lock()
            .unwrap()
            .waiting
            .push(Waiting::Write(write));
        answered.await.map_err(|_| StoreError::Stopped)?
    }

    /// Drops all that waits, as a crash does.
    pub(super) fn forget_readers(&self) {
        self.inner.lock().unwrap().waiting.clear();
    }

    /// Records the head that a faulty subscriber reads before it listens.
    pub(super) fn note_stale_head(&self, school: SchoolId) {
        self.with(school, |log| log.stale_head = Some(log.head()));
    }

    pub(super) async fn wait_for_the_disk(&self) -> Result<(), StoreError> {
        let (turn, waiting) = oneshot::channel();
        self.inner.lock().unwrap().waiting.push(Waiting::Read(turn));
        waiting.await.map_err(|_| StoreError::Stopped)
    }

    fn head_to_read(&self, log: &mut OneLog) -> u64 {
        let stale = log.stale_head.take();
        match self.fault {
            Some(Fault::ReadBeforeListening) => stale.unwrap_or(log.head()),
            _ => log.head(),
        }
    }

    /// Returns the school whose log is read. With the fault `OtherSchool`, it is always the first.
    fn read_of(&self, school: SchoolId) -> SchoolId {
        let [first, second] = schools();
        match self.fault {
            Some(Fault::OtherSchool) if school == second => first,
            _ => school,
        }
    }
}

#[async_trait]
impl Log for Ledger {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn is_shared(&self) -> bool {
        self.is_shared
    }

    async fn heads(&self, schools: &[SchoolId]) -> Result<Vec<(SchoolId, Place)>, StoreError> {
        if self.fault == Some(Fault::UncomparedHeads) {
            pending().await
        }
        self.wait_for_the_disk().await?;
        let head = |school: &SchoolId| (*school, self.with(*school, |log| log.place(log.head())));
        let heads = schools.iter().map(head).collect();
        self.wait_for_the_disk().await?;
        Ok(heads)
    }

    async fn bounds(&self, school: SchoolId) -> Result<Bounds, StoreError> {
        self.wait_for_the_disk().await?;
        let bounds = self.with(school, |log| {
            let head = self.head_to_read(log);
            let now = Bounds {
                head: log.place(head),
                floor: log.place(log.floor),
            };
            match self.fault {
                Some(Fault::StaleBounds) => log.stale_bounds.replace(now).unwrap_or(now),
                _ => now,
            }
        });
        self.wait_for_the_disk().await?;
        Ok(bounds)
    }

    async fn read_range(
        &self,
        school: SchoolId,
        after: u64,
        upto: u64,
    ) -> Result<LogRange, StoreError> {
        self.wait_for_the_disk().await?;
        let range = self.with(self.read_of(school), |log| {
            let head = match self.fault {
                Some(Fault::HoleIsEnd) => log.head().min(after + 1),
                _ => log.head(),
            };
            let from = match self.fault {
                Some(Fault::OffByOne) => after + 1,
                _ => after,
            };
            let within = |event: &&Arc<Event>| {
                event.seq > from.max(log.floor) && event.seq <= upto.min(head)
            };
            let events = log.events.iter().filter(within).take(EVENTS_A_PAGE);
            let events: Vec<Arc<Event>> = events.map(as_stored).collect();
            let through = match events.len() {
                EVENTS_A_PAGE => events[EVENTS_A_PAGE - 1].seq,
                _ => upto.min(head),
            };
            let mut last = HashMap::new();
            for event in log.events.iter().filter(|event| event.seq <= head) {
                let category = event.draft.category.as_deref().map(str::to_owned);
                let last_event = LastEvent {
                    seq: event.seq,
                    status: event.draft.status.to_owned(),
                    category,
                };
                last.insert((event.kind, event.subject.clone()), last_event);
            }
            LogRange {
                events,
                through,
                head,
                floor: log.place(log.floor),
                last,
            }
        });
        self.wait_for_the_disk().await?;
        Ok(range)
    }

    async fn replay(
        &self,
        scope: Arc<Scope>,
        after: u64,
        conflate: bool,
    ) -> Result<Page, StoreError> {
        self.wait_for_the_disk().await?;
        let page = self.with(scope.school, |log| {
            let head = self.head_to_read(log);
            let from = match self.fault {
                Some(Fault::OffByOne) => after + 1,
                _ => after,
            };
            let within = |event: &&Arc<Event>| event.seq > from.max(log.floor) && event.seq <= head;
            let page: Vec<&Arc<Event>> = log
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
                let later = log
                    .events
                    .iter()
                    .filter(|later| later.seq > event.seq && later.seq <= head);
                event.is_tick()
                    && later
                        .into_iter()
                        .any(|later| later.subject == event.subject && scope.matches(later))
            };
            let replayed = page
                .into_iter()
                .filter(|event| scope.matches(event) && !(conflate && superseded(event)));
            Page {
                events: replayed.map(as_stored).collect(),
                through: log.place(through),
                head: log.place(head),
                newest: log.place(head),
                floor: log.floor,
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
        let page = self.with(scope.school, |log| {
            // The later pages reach up to the same place as the first, even if the log has lost it since.
            let end = upto.unwrap_or_else(|| {
                let head = self.head_to_read(log);
                log.place(head)
            });
            let upto = end.seq;
            // The current states. They may have changed since the first page was read.
            let mut last: BTreeMap<&str, &Arc<Event>> = BTreeMap::new();
            for event in &log.events {
                last.insert(event.subject.as_str(), event);
            }
            let mut states: Vec<&Arc<Event>> = last
                .into_values()
                .filter(|event| event.seq > after && event.seq <= upto && scope.matches(event))
                .collect();
            states.sort_unstable_by_key(|event| event.seq);
            let is_whole = states.len() <= STATES_A_PAGE;
            states.truncate(STATES_A_PAGE);
            let through = match is_whole {
                true => end,
                false => log.place(states[STATES_A_PAGE - 1].seq),
            };
            let snapshot = |state: &&Arc<Event>| {
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
                events: states.iter().map(snapshot).collect(),
                through,
                head: end,
                newest: log.place(log.head()),
                floor: log.floor,
            }
        });
        self.wait_for_the_disk().await?;
        Ok(page)
    }
}
