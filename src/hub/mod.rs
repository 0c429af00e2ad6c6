//! In-memory fan-out: who listens to which channels, and the newest events of each school.
//!
//! One lock protects the state of each school. It is held only briefly, and never across an await. Offering an event
//! iterates over the listeners of its channels and adds an `Arc` to each mailbox. It never waits for a reader, so a
//! slow reader fills only its own bounded mailbox and does not slow down others (invariant 6). The caller gets the
//! wakers of the waiting readers. It wakes them in small groups, so that other tasks can run in between. The *window*,
//! a ring of the newest events, fills short gaps without the database. Schools, channels and windows that are not in
//! use are removed from memory (invariant 9). The hub depends neither on the store nor on any encoding.
//!
//! To *offer* an event means to pass it to the hub, which delivers it to the listeners in scope.

mod attachment;
mod due;
mod history;
pub mod mailbox;
pub mod queue;
mod shared;
mod topics;
mod wake_list;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use indexmap::IndexMap;

pub use self::attachment::Attachment;
pub use self::due::DueWrites;
use self::history::Ring;
use self::mailbox::{Depth, Mailbox};
use self::shared::Moved;
pub use self::shared::Position;
use self::topics::Topics;
pub use self::wake_list::WakeList;
use crate::config::{RATE_SECS, StreamLimits, WINDOW_MAX_BYTES};
use crate::event::Event;
use crate::id::{Channel, Kind, Place, SchoolId, Tag};
use crate::scope::Scope;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use crate::throttle::network;
use crate::wire::Close;

/// The fan-out of one node.
pub struct Hub {
    schools: RwLock<HashMap<SchoolId, Arc<School>>>,
    window_events: usize,
    mailbox_capacity: usize,
    next_mailbox: AtomicU64,
    attached: AtomicUsize,
    due_writes: Arc<DueWrites>,
    /// Number of connections from each address.
    addresses: Mutex<HashMap<IpAddr, usize>>,
    began: Instant,
    /// Whether other nodes write to the logs, too.
    is_shared: bool,
    /// Schools that were added to memory or removed from it, or got their first listener. Only recorded for shared logs.
    moved: Mutex<Moved>,
}

struct School {
    state: Mutex<SchoolState>,
}

/// The state of a school, protected by one lock.
struct SchoolState {
    /// The place of the newest offered event. If none was offered yet: the place up to which a listener has read.
    head: Option<Place>,
    /// Every event from this `seq` up to the head was offered.
    dense_from: u64,
    /// For shared logs: places after the head up to which listeners have read. An event that is offered with the same `seq`
    /// must have the same tag; otherwise the log has lost events.
    read_ahead: BTreeMap<u64, Tag>,
    /// The newest events, contiguous in `seq`, oldest first.
    window: VecDeque<Arc<Event>>,
    window_bytes: usize,
    /// When an event was last offered. With a shared log instead: when a listener last left.
    last_use: Instant,
    /// How many events were offered in each of the last seconds.
    rate: Ring,
    /// How many connections there were in each of the last seconds.
    streams: Ring,
    /// All connections, including those without any channel. In boxes, because the map has room for twice as many.
    attached: IndexMap<u64, Box<Attached>>,
    /// Number of connections of each user.
    users: HashMap<Arc<str>, usize>,
    topics: Topics,
}

/// The client of a connection, as shown to operators.
#[derive(Debug, Clone)]
pub struct Reader {
    /// The transport: `SSE`, `WebSocket`, `long poll`, or a name that an embedding application chooses.
    pub transport: &'static str,
    /// The credential's `sub`.
    pub user: Arc<str>,
    /// The client's address, if it is known.
    pub address: Option<IpAddr>,
    /// The peer of the TCP connection itself, which may be a proxy. `None` without a connection.
    pub peer: Option<SocketAddr>,
}

struct Attached {
    reader: Reader,
    since: DateTime<Utc>,
    mailbox: Arc<Mailbox>,
    channels: Box<[Channel]>,
    wide: Option<Kind>,
}

/// The current state of a connection.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The school that it listens to.
    pub school: SchoolId,
    /// The client.
    pub reader: Reader,
    /// When it was attached.
    pub since: DateTime<Utc>,
    /// The channels that it listens to, up to the requested number.
    pub channels: Vec<Channel>,
    /// How many channels it listens to.
    pub channel_count: usize,
    /// The state of its mailbox's queue.
    pub depth: Depth,
}

/// The recent activity of a school, by the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Number of events that were offered in each second.
    pub events: [u32; RATE_SECS],
    /// Number of connections at the end of each second.
    pub streams: [u32; RATE_SECS],
    /// Number of connections now.
    pub attached: usize,
}

impl Default for History {
    fn default() -> History {
        History {
            events: [0; RATE_SECS],
            streams: [0; RATE_SECS],
            attached: 0,
        }
    }
}

/// A limit on concurrent streams is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HubFull {
    /// The limit of the server.
    #[error("the server has reached its limit of concurrent streams")]
    Server,
    /// The limit of a school.
    #[error("the school has reached its limit of concurrent streams")]
    School,
    /// The limit of a user.
    #[error("this user has reached the limit of concurrent streams")]
    User,
    /// The limit of an address.
    #[error("this address has reached the limit of concurrent streams")]
    Address,
}

fn lock(school: &School) -> MutexGuard<'_, SchoolState> {
    // Nothing that can panic runs under the lock. Even if it were poisoned, its data would be consistent.
    school.state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Creates a hub whose schools keep `window_events` events and whose mailboxes hold `mailbox_capacity` events.
    pub fn new(window_events: usize, mailbox_capacity: usize) -> Hub {
        Hub {
            schools: RwLock::default(),
            window_events,
            mailbox_capacity,
            next_mailbox: AtomicU64::new(0),
            attached: AtomicUsize::new(0),
            due_writes: Arc::default(),
            addresses: Mutex::default(),
            began: Instant::now(),
            is_shared: false,
            moved: Mutex::default(),
        }
    }

    /// Adds committed events, in commit order, to the mailboxes of their listeners. Returns the readers to wake.
    pub fn offer(&self, events: &[Arc<Event>]) -> WakeList {
        let mut wake_list = WakeList::default();
        for school_events in events.chunk_by(|one, next| one.school == next.school) {
            let id = school_events[0].school;
            let school = match self.is_shared {
                // A shared log's commits are announced only for schools in memory. If this added the school, later
                // events could be missing without notice.
                true => self.find(id),
                false => Some(self.school(id)),
            };
            let Some(school) = school else {
                continue;
            };
            self.offer_of_school(&mut lock(&school), school_events, &mut wake_list);
        }
        wake_list
    }

    fn offer_of_school(
        &self,
        state: &mut SchoolState,
        events: &[Arc<Event>],
        wake_list: &mut WakeList,
    ) {
        let more = events.len().try_into().unwrap_or(u32::MAX);
        state.rate.count(self.second(), more);
        for event in events {
            state.offer(event, self.window_events, wake_list);
        }
        if !self.is_shared {
            state.last_use = Instant::now();
        }
    }

    /// Does what [`offer`](Self::offer) does if these are the next events of one school, at most `most` of them, and have at most `most`
    /// deliveries together. Returns `None` if nothing was done. Only for logs that no other node writes to.
    pub fn offer_to_few(&self, events: &[Arc<Event>], most: usize) -> Option<WakeList> {
        let first = events.first()?;
        let is_of_one = events.iter().all(|event| event.school == first.school);
        if self.is_shared || !is_of_one || events.len() > most {
            return None;
        }
        let mut wake_list = WakeList::default();
        let school = self.school(first.school);
        let mut state = lock(&school);
        if state.head.is_some_and(|head| first.seq != head.seq + 1) {
            return None;
        }
        let mut room = most;
        for listeners in events.iter().flat_map(|event| state.topics.of(event)) {
            room = room.checked_sub(listeners.len())?;
        }
        self.offer_of_school(&mut state, events, &mut wake_list);
        Some(wake_list)
    }

    /// Returns when sinks that are lent must be written to again.
    pub fn due_writes(&self) -> &DueWrites {
        &self.due_writes
    }

    fn find(&self, school: SchoolId) -> Option<Arc<School>> {
        let schools = self.schools.read().unwrap_or_else(PoisonError::into_inner);
        schools.get(&school).map(Arc::clone)
    }

    /// Begins to listen to `scope`. Read the store only afterwards: an event that is committed between a read and a
    /// later attachment would be missed (invariant 5). With `conflate`, a full mailbox may conflate ticks.
    pub fn attach(
        self: &Arc<Self>,
        scope: &Scope,
        reader: Reader,
        conflate: bool,
        limits: &StreamLimits,
    ) -> Result<Attachment, HubFull> {
        let attachment = Attachment {
            school: self.school(scope.school),
            id_of_school: scope.school,
            mailbox: Arc::new(Mailbox::new(
                self.mailbox_capacity,
                conflate,
                scope.filter.clone(),
            )),
            id: self.next_mailbox.fetch_add(1, Ordering::Relaxed),
            hub: Arc::clone(self),
        };
        self.admit(&attachment, reader, limits)?;
        attachment.listen(scope.channels().iter().cloned());
        if let Some(kind) = scope.wide() {
            attachment.listen_to_wide(kind);
        }
        Ok(attachment)
    }

    /// Counts a connection towards the limits of the server, its address, its school and its user, or returns the limit
    /// that is reached.
    fn admit(
        &self,
        attachment: &Attachment,
        reader: Reader,
        limits: &StreamLimits,
    ) -> Result<(), HubFull> {
        let count = |all: usize| (all < limits.server).then_some(all + 1);
        let relaxed = Ordering::Relaxed;
        if self.attached.fetch_update(relaxed, relaxed, count).is_err() {
            return Err(HubFull::Server);
        }
        // Only one lock is held at a time, so that a busy school does not block others.
        let address = reader.address.map(network);
        if !address.is_none_or(|address| self.admit_from(address, limits.address)) {
            self.attached.fetch_sub(1, relaxed);
            return Err(HubFull::Address);
        }
        let mut state = lock(&attachment.school);
        let of_user = state.users.get(&reader.user).copied().unwrap_or(0);
        let rejected = match () {
            () if state.attached.len() >= limits.school => Some(HubFull::School),
            () if of_user >= limits.user => Some(HubFull::User),
            () => None,
        };
        if let Some(rejected) = rejected {
            drop(state);
            self.release_limits(address);
            return Err(rejected);
        }
        *state.users.entry(Arc::clone(&reader.user)).or_default() += 1;
        let attached = Box::new(Attached {
            reader,
            since: Utc::now(),
            mailbox: Arc::clone(&attachment.mailbox),
            channels: Box::default(),
            wide: None,
        });
        state.attached.insert(attachment.id, attached);
        state.record_streams(self.second());
        let is_first = state.attached.len() == 1;
        drop(state);
        if is_first {
            self.note_moved([attachment.id_of_school]);
        }
        Ok(())
    }

    /// Counts a connection from an address, unless the limit is reached.
    fn admit_from(&self, address: IpAddr, limit: usize) -> bool {
        let mut addresses = self.addresses();
        let count = addresses.entry(address).or_default();
        let has_room = *count < limit;
        *count += usize::from(has_room);
        has_room
    }

    /// Stops counting a connection towards the limits of the server and its address.
    fn release_limits(&self, address: Option<IpAddr>) {
        if let Some(address) = address {
            decrement(&mut self.addresses(), &address);
        }
        self.attached.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of attached connections.
    pub fn attached(&self) -> usize {
        self.attached.load(Ordering::Relaxed)
    }

    /// Returns the number of schools in memory.
    pub fn schools(&self) -> usize {
        self.schools
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Asks every connection to close, each with its own `close`.
    pub fn close_all(&self, mut close: impl FnMut() -> Close) {
        self.each_attached(|attached| attached.mailbox.close(close()));
    }

    /// Asks the connections with these peers to close.
    pub fn close_peers(&self, peers: &HashSet<SocketAddr>, close: Close) {
        self.each_attached(|attached| {
            if attached
                .reader
                .peer
                .is_some_and(|peer| peers.contains(&peer))
            {
                attached.mailbox.close(close);
            }
        });
    }

    fn each_attached(&self, mut visit: impl FnMut(&Attached)) {
        let schools: Vec<_> = self
            .schools
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .map(Arc::clone)
            .collect();
        for school in schools {
            let state = lock(&school);
            state.attached.values().for_each(|attached| visit(attached));
        }
    }

    /// Returns the connections of a school, or of all schools: their number by transport, and up to `limit` of them,
    /// with at most `channels` channels each. Lagging connections come first, and then the newest. Visits every
    /// connection.
    pub fn connections(
        &self,
        school: Option<SchoolId>,
        limit: usize,
        channels: usize,
    ) -> (BTreeMap<&'static str, usize>, Vec<Connection>) {
        let schools: Vec<_> = {
            let schools = self.schools.read().unwrap_or_else(PoisonError::into_inner);
            let wanted = schools
                .iter()
                .filter(|(id, _)| school.is_none_or(|school| school == **id));
            wanted
                .map(|(id, school)| (*id, Arc::clone(school)))
                .collect()
        };
        let mut by_transport = BTreeMap::new();
        let mut connections = Vec::new();
        for (id, school) in schools {
            let state = lock(&school);
            for attached in state.attached.values() {
                *by_transport.entry(attached.reader.transport).or_default() += 1;
                if limit == 0 {
                    continue;
                }
                connections.push(attached.to_connection(id, channels));
                if connections.len() == limit * 2 {
                    keep_noteworthy(&mut connections, limit);
                }
            }
        }
        keep_noteworthy(&mut connections, limit);
        (by_transport, connections)
    }

    /// Returns how many events of a school were offered, and how many connections it had, in each of the last
    /// [`RATE_SECS`] seconds, oldest first. The current second, which is not complete, is not included.
    pub fn history(&self, school: SchoolId) -> History {
        let schools = self.schools.read().unwrap_or_else(PoisonError::into_inner);
        let second = self.second();
        let Some(school) = schools.get(&school) else {
            return History::default();
        };
        let mut state = lock(school);
        History {
            events: state.rate.before(second),
            streams: state.streams.before(second),
            attached: state.attached.len(),
        }
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current second since the hub's start.
    fn second(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// Removes schools without listeners that have had no event for `idle` or, with shared logs, no listener for `idle`.
    pub fn forget_idle(&self, idle: Duration) {
        let mut gone = Vec::new();
        let mut schools = self.schools.write().unwrap_or_else(PoisonError::into_inner);
        // Attaching and offering clone the `Arc` while they hold this lock. While the map is its only owner, neither is
        // in progress.
        schools.retain(|id, school| {
            let is_used = Arc::strong_count(school) > 1 || lock(school).last_use.elapsed() < idle;
            if !is_used {
                gone.push(*id);
            }
            is_used
        });
        if schools.len() < schools.capacity() / 4 {
            schools.shrink_to_fit();
        }
        drop(schools);
        self.note_moved(gone);
    }

    fn school(&self, id: SchoolId) -> Arc<School> {
        self.find(id).unwrap_or_else(|| {
            let mut schools = self.schools.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(schools.entry(id).or_insert_with(|| {
                Arc::new(School {
                    state: Mutex::new(SchoolState {
                        head: None,
                        dense_from: 0,
                        read_ahead: BTreeMap::new(),
                        window: VecDeque::new(),
                        window_bytes: 0,
                        last_use: Instant::now(),
                        rate: Ring::of_counts(),
                        streams: Ring::of_levels(),
                        attached: IndexMap::new(),
                        users: HashMap::new(),
                        topics: Topics::default(),
                    }),
                })
            }))
        })
    }
}

impl SchoolState {
    fn record_streams(&mut self, second: u64) {
        self.streams.level(second, self.attached.len());
    }

    fn offer(&mut self, event: &Arc<Event>, window_events: usize, wake_list: &mut WakeList) {
        match self.head {
            Some(head) if event.seq <= head.seq => return,
            Some(head) if event.seq == head.seq + 1 => {}
            Some(_) => {
                // Events are missing here. Every connection reads the log, which contains them.
                let attached = self.attached.values();
                wake_list.extend(attached.filter_map(|attached| attached.mailbox.lag()));
                self.begin_at(event.seq);
            }
            None => self.begin_at(event.seq),
        }
        for listeners in self.topics.of(event) {
            let wakers = listeners
                .values()
                .filter_map(|mailbox| mailbox.offer(event));
            wake_list.extend(wakers);
        }
        debug_assert!(
            self.window
                .back()
                .is_none_or(|last| last.seq + 1 == event.seq),
            "a window has no gap"
        );
        self.window.push_back(Arc::clone(event));
        self.window_bytes += event.draft.fields.len();
        while self.window.len() > window_events || self.window_bytes > WINDOW_MAX_BYTES {
            let Some(oldest) = self.window.pop_front() else {
                break;
            };
            self.window_bytes -= oldest.draft.fields.len();
        }
        self.head = Some(event.place());
        while let Some(first) = self.read_ahead.first_entry()
            && *first.key() <= event.seq
        {
            first.remove();
        }
    }

    /// Records that events before this `seq` may not have been offered.
    fn begin_at(&mut self, seq: u64) {
        self.dense_from = seq;
        // A window in which events are missing would cause a silent gap.
        self.window.clear();
        self.window_bytes = 0;
    }
}

/// Decrements a count and removes a key whose count is 0.
fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Sorts the lagging connections first, then the newest, and keeps `limit` of them.
fn keep_noteworthy(connections: &mut Vec<Connection>, limit: usize) {
    connections.sort_by_key(|connection| {
        (
            !connection.depth.lagging,
            std::cmp::Reverse(connection.since),
        )
    });
    connections.truncate(limit);
}

impl Attached {
    fn listen(&mut self, channel: Channel) {
        let mut channels = std::mem::take(&mut self.channels).into_vec();
        channels.reserve_exact(1);
        channels.push(channel);
        self.channels = channels.into_boxed_slice();
    }

    fn unlisten(&mut self, channel: &Channel) {
        let mut channels = std::mem::take(&mut self.channels).into_vec();
        channels.retain(|other| other != channel);
        self.channels = channels.into_boxed_slice();
    }

    fn to_connection(&self, school: SchoolId, channels: usize) -> Connection {
        Connection {
            school,
            reader: self.reader.clone(),
            since: self.since,
            channels: self.channels.iter().take(channels).cloned().collect(),
            channel_count: self.channels.len(),
            depth: self.mailbox.depth(),
        }
    }
}

#[cfg(test)]
mod tests;
