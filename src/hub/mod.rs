//! In-memory fan-out: who listens to what, and the newest events of each school.
//!
//! Everything of a school is under one short lock that is never held across an await. Offering an event
//! walks the listeners of its channels and leaves an `Arc` in each mailbox; it awaits nothing, so a slow
//! reader costs its bounded mailbox and slows nobody (invariant 6). The caller gets the readers that wait and
//! wakes them: a crowd a few at a time, with other tasks' turns in between. The *window*, a ring of the newest
//! events, serves short gaps without the database. Schools, channels and windows that nobody uses leave
//! memory (invariant 9). The hub knows neither the store nor any encoding.

mod history;
pub mod mailbox;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use indexmap::IndexMap;

use self::history::Ring;
use self::mailbox::{Depth, Mailbox};
use crate::config::{Ceilings, RATE_SECS, WINDOW_MAX_BYTES};
use crate::event::Event;
use crate::id::{Channel, Kind, Place, SchoolId, SubjectId};
use crate::scope::Scope;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use crate::wire::Close;

/// The fan-out of one node.
pub struct Hub {
    schools: RwLock<HashMap<SchoolId, Arc<School>>>,
    window_events: usize,
    mailbox_capacity: usize,
    next_mailbox: AtomicU64,
    attached: AtomicUsize,
    /// Connections from each address.
    addresses: Mutex<HashMap<IpAddr, usize>>,
    began: Instant,
}

struct School {
    room: Mutex<Room>,
}

/// What one lock protects.
struct Room {
    /// The newest seq that was offered, or that somebody who listens has read up to before anything was.
    head: Option<Place>,
    /// Everything from here to the head was offered.
    dense_from: u64,
    /// Newest events, contiguous in `seq`, oldest first.
    window: VecDeque<Arc<Event>>,
    window_bytes: usize,
    last_offer: Instant,
    /// How many events were offered in each of the last seconds.
    rate: Ring,
    /// How many connections there were.
    streams: Ring,
    /// Everybody, also who listens to nothing yet.
    attached: IndexMap<u64, Attached>,
    /// Connections of each user.
    users: HashMap<Arc<str>, usize>,
    everything: Listeners,
    kinds: HashMap<Kind, Topic>,
}

/// Dense to walk, and leaving costs the same however many there are.
type Listeners = IndexMap<u64, Arc<Mailbox>>;

#[derive(Default)]
struct Topic {
    all: Listeners,
    /// Who hears its wide events only.
    wide: Listeners,
    subjects: HashMap<SubjectId, Listeners>,
}

/// Who is on the other end of a connection, for those who look after the server.
#[derive(Debug, Clone)]
pub struct Reader {
    /// By which way the events go: `SSE`, `WebSocket`, `long poll`, or what an application calls its own.
    pub transport: &'static str,
    /// The credential's `sub`.
    pub user: Arc<str>,
    /// From where, if that is known.
    pub address: Option<IpAddr>,
    /// The other end of the connection itself, which may be a proxy's; none without a connection.
    pub peer: Option<SocketAddr>,
}

struct Attached {
    reader: Reader,
    since: DateTime<Utc>,
    mailbox: Arc<Mailbox>,
    channels: Vec<Channel>,
    wide: Option<Kind>,
}

/// A connection as it stands.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The school that it listens to.
    pub school: SchoolId,
    /// Who it is.
    pub reader: Reader,
    /// When it came.
    pub since: DateTime<Utc>,
    /// What it listens to; at most as many as were asked for.
    pub channels: Vec<Channel>,
    /// How many channels it listens to.
    pub channel_count: usize,
    /// Its queue.
    pub depth: Depth,
}

/// What went on in a school lately, by the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Events that were offered.
    pub events: [u32; RATE_SECS],
    /// Connections at the end of each second.
    pub streams: [u32; RATE_SECS],
    /// Connections now.
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

/// Readers that have been left something, and wait to be told so. Each is here at most once.
#[derive(Default)]
#[must_use = "nobody else wakes them"]
pub struct Waiting(Vec<Waker>);

impl Waiting {
    /// Wakes all of them.
    pub fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }

    /// Wakes as many as `at_once`, and returns the rest, if there is any.
    pub fn wake_some(mut self, at_once: usize) -> Option<Waiting> {
        let first = self.0.len().saturating_sub(at_once);
        self.0.drain(first..).for_each(Waker::wake);
        (first > 0).then_some(self)
    }
}

/// A connection's hold on the hub. Dropping it leaves nothing behind.
pub struct Attachment {
    hub: Arc<Hub>,
    school: Arc<School>,
    mailbox: Arc<Mailbox>,
    id: u64,
}

/// There are as many streams as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HubFull {
    /// In all.
    #[error("the server serves as many streams as it may")]
    Server,
    /// Of the school.
    #[error("the school has as many streams as it may")]
    School,
    /// Of the user.
    #[error("this user has as many streams as he may")]
    User,
    /// From the address.
    #[error("there are as many streams from this address as there may be")]
    Address,
}

fn lock(school: &School) -> MutexGuard<'_, Room> {
    // Nothing that can panic runs under the lock; were it poisoned all the same, its data is whole.
    school.room.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// A hub whose schools keep `window_events` events and whose mailboxes hold `mailbox_capacity`.
    pub fn new(window_events: usize, mailbox_capacity: usize) -> Hub {
        Hub {
            schools: RwLock::default(),
            window_events,
            mailbox_capacity,
            next_mailbox: AtomicU64::new(0),
            attached: AtomicUsize::new(0),
            addresses: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// Leaves committed events, in commit order, in the mailboxes of those who listen. Returns those who wait for them.
    pub fn offer(&self, events: &[Arc<Event>]) -> Waiting {
        let mut waiting = Waiting::default();
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            let school = self.school(of_school[0].school);
            let second = self.second();
            let mut room = lock(&school);
            let more = of_school.len().try_into().unwrap_or(u32::MAX);
            room.rate.count(second, more);
            for event in of_school {
                room.offer(event, self.window_events, &mut waiting);
            }
        }
        waiting
    }

    /// The `seq` that comes next in a school, if something is known of it.
    pub fn next(&self, school: SchoolId) -> Option<u64> {
        let schools = self.schools.read().unwrap_or_else(PoisonError::into_inner);
        let head = lock(schools.get(&school)?).head;
        head.map(|head| head.seq + 1)
    }

    /// Begins to listen to `scope`. Read the store only afterwards: an event committed between a read and a
    /// later attachment would be in neither (invariant 5). With `fold`, ticks may fold in the mailbox.
    pub fn attach(
        self: &Arc<Self>,
        scope: &Scope,
        reader: Reader,
        fold: bool,
        ceilings: &Ceilings,
    ) -> Result<Attachment, HubFull> {
        let attachment = Attachment {
            school: self.school(scope.school),
            mailbox: Arc::new(Mailbox::new(
                self.mailbox_capacity,
                fold,
                scope.filter.clone(),
            )),
            id: self.next_mailbox.fetch_add(1, Ordering::Relaxed),
            hub: Arc::clone(self),
        };
        self.admit(&attachment, reader, ceilings)?;
        attachment.listen(scope.channels().iter().cloned());
        if let Some(kind) = scope.wide() {
            attachment.listen_to_wide(kind);
        }
        Ok(attachment)
    }

    /// Gives a connection its place among all, and among those of its school, its user and its address.
    fn admit(
        &self,
        attachment: &Attachment,
        reader: Reader,
        ceilings: &Ceilings,
    ) -> Result<(), HubFull> {
        let place = |all: usize| (all < ceilings.server).then_some(all + 1);
        let relaxed = Ordering::Relaxed;
        if self.attached.fetch_update(relaxed, relaxed, place).is_err() {
            return Err(HubFull::Server);
        }
        // No lock is held while another is waited for: a busy school must not keep others waiting.
        let address = reader.address.map(network);
        if !address.is_none_or(|address| self.admit_from(address, ceilings.address)) {
            self.attached.fetch_sub(1, relaxed);
            return Err(HubFull::Address);
        }
        let mut room = lock(&attachment.school);
        let of_user = room.users.get(&reader.user).copied().unwrap_or(0);
        let refused = match () {
            () if room.attached.len() >= ceilings.school => Some(HubFull::School),
            () if of_user >= ceilings.user => Some(HubFull::User),
            () => None,
        };
        if let Some(refused) = refused {
            drop(room);
            self.give_back(address);
            return Err(refused);
        }
        *room.users.entry(Arc::clone(&reader.user)).or_default() += 1;
        let attached = Attached {
            reader,
            since: Utc::now(),
            mailbox: Arc::clone(&attachment.mailbox),
            channels: Vec::new(),
            wide: None,
        };
        room.attached.insert(attachment.id, attached);
        room.note_streams(self.second());
        Ok(())
    }

    /// Counts a connection from an address, if there may be one more.
    fn admit_from(&self, address: IpAddr, most: usize) -> bool {
        let mut addresses = self.addresses();
        let count = addresses.entry(address).or_default();
        let has_room = *count < most;
        *count += usize::from(has_room);
        has_room
    }

    /// Frees a connection's place among all and among those from its address.
    fn give_back(&self, address: Option<IpAddr>) {
        if let Some(address) = address {
            one_less(&mut self.addresses(), &address);
        }
        self.attached.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many connections are attached.
    pub fn attached(&self) -> usize {
        self.attached.load(Ordering::Relaxed)
    }

    /// How many schools are in memory.
    pub fn schools(&self) -> usize {
        self.schools
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Tells every connection to close, each with its own `close`.
    pub fn close_all(&self, mut close: impl FnMut() -> Close) {
        self.each_attached(|attached| attached.mailbox.close(close()));
    }

    /// Tells the connections with these peers to close.
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
            let room = lock(&school);
            room.attached.values().for_each(&mut visit);
        }
    }

    /// The connections of a school, or of all: how many there are by transport, and `limit` of them with at most
    /// `channels` of their channels, those that lag first, and then the newest. Costs a look at each.
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
                .filter(|(id, _)| school.is_none_or(|own| own == **id));
            wanted
                .map(|(id, school)| (*id, Arc::clone(school)))
                .collect()
        };
        let mut by_transport = BTreeMap::new();
        let mut connections = Vec::new();
        for (id, school) in schools {
            let room = lock(&school);
            for attached in room.attached.values() {
                *by_transport.entry(attached.reader.transport).or_default() += 1;
                if limit == 0 {
                    continue;
                }
                connections.push(attached.shown(id, channels));
                if connections.len() == limit * 2 {
                    keep_noteworthy(&mut connections, limit);
                }
            }
        }
        keep_noteworthy(&mut connections, limit);
        (by_transport, connections)
    }

    /// How many events of a school were offered in each of the last [`RATE_SECS`] seconds, and how many connections
    /// it had, oldest first. The present second, which is not over, is not among them.
    pub fn history(&self, school: SchoolId) -> History {
        let schools = self.schools.read().unwrap_or_else(PoisonError::into_inner);
        let second = self.second();
        let Some(school) = schools.get(&school) else {
            return History::default();
        };
        let mut room = lock(school);
        History {
            events: room.rate.before(second),
            streams: room.streams.before(second),
            attached: room.attached.len(),
        }
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The present second of its life.
    fn second(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// Forgets schools that nobody listens to and that have been quiet for as long as `idle`.
    pub fn forget_idle(&self, idle: Duration) {
        let mut schools = self.schools.write().unwrap_or_else(PoisonError::into_inner);
        // Attaching and offering need a clone, which is made under this lock: with one owner, neither is under way.
        schools.retain(|_, school| {
            Arc::strong_count(school) > 1 || lock(school).last_offer.elapsed() < idle
        });
        if schools.len() < schools.capacity() / 4 {
            schools.shrink_to_fit();
        }
    }

    fn school(&self, id: SchoolId) -> Arc<School> {
        let found = self
            .schools
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .map(Arc::clone);
        found.unwrap_or_else(|| {
            let mut schools = self.schools.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(schools.entry(id).or_insert_with(|| {
                Arc::new(School {
                    room: Mutex::new(Room {
                        head: None,
                        dense_from: 0,
                        window: VecDeque::new(),
                        window_bytes: 0,
                        last_offer: Instant::now(),
                        rate: Ring::of_counts(),
                        streams: Ring::of_levels(),
                        attached: IndexMap::new(),
                        users: HashMap::new(),
                        everything: Listeners::default(),
                        kinds: HashMap::new(),
                    }),
                })
            }))
        })
    }
}

impl Room {
    fn note_streams(&mut self, second: u64) {
        self.streams.level(second, self.attached.len());
    }

    fn offer(&mut self, event: &Arc<Event>, window_events: usize, waiting: &mut Waiting) {
        match self.head {
            Some(head) if event.seq <= head.seq => return,
            Some(head) if event.seq == head.seq + 1 => {}
            Some(_) => {
                // A hole. Who would miss what is in it reads the log.
                let lag = |own: &Attached| own.mailbox.lag();
                waiting.0.extend(self.attached.values().filter_map(lag));
                self.begin_at(event.seq);
            }
            None => self.begin_at(event.seq),
        }
        let mut leave = |mailbox: &Arc<Mailbox>| waiting.0.extend(mailbox.offer(event));
        self.everything.values().for_each(&mut leave);
        if let Some(topic) = self.kinds.get(&event.kind) {
            topic.all.values().for_each(&mut leave);
            if event.draft.event_type.wide {
                let listeners = topic.subjects.values().flat_map(Listeners::values);
                topic.wide.values().chain(listeners).for_each(&mut leave);
            } else if let Some(listeners) = topic.subjects.get(&event.subject) {
                listeners.values().for_each(&mut leave);
            }
        }
        debug_assert!(
            self.window
                .back()
                .is_none_or(|last| last.seq + 1 == event.seq),
            "a window has no hole"
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
        self.last_offer = Instant::now();
    }

    /// Nothing before this `seq` was offered as far as anybody can rely on it.
    fn begin_at(&mut self, seq: u64) {
        self.dense_from = seq;
        // A window with a hole would be a silent gap.
        self.window.clear();
        self.window_bytes = 0;
    }

    fn listen(&mut self, channel: &Channel, id: u64, mailbox: &Arc<Mailbox>) {
        let listeners = match channel {
            Channel::School(_) => &mut self.everything,
            Channel::Collection(kind) => &mut self.kinds.entry(*kind).or_default().all,
            Channel::Subject(kind, subject) => self
                .kinds
                .entry(*kind)
                .or_default()
                .subjects
                .entry(subject.clone())
                .or_default(),
        };
        listeners.insert(id, Arc::clone(mailbox));
    }

    fn unlisten(&mut self, channel: &Channel, id: u64) {
        match channel {
            Channel::School(_) => drop(leave(&mut self.everything, id)),
            Channel::Collection(kind) | Channel::Subject(kind, _) => {
                let Some(topic) = self.kinds.get_mut(kind) else {
                    return;
                };
                if let Channel::Subject(_, subject) = channel {
                    if let Some(listeners) = topic.subjects.get_mut(subject) {
                        leave(listeners, id);
                        if listeners.is_empty() {
                            topic.subjects.remove(subject);
                        }
                    }
                } else {
                    leave(&mut topic.all, id);
                }
                self.forget_unheard(*kind);
            }
        }
    }

    fn unlisten_wide(&mut self, kind: Kind, id: u64) {
        if let Some(topic) = self.kinds.get_mut(&kind) {
            leave(&mut topic.wide, id);
            self.forget_unheard(kind);
        }
    }

    /// Forgets a kind that nobody listens to.
    fn forget_unheard(&mut self, kind: Kind) {
        let is_unheard = |topic: &Topic| {
            topic.all.is_empty() && topic.wide.is_empty() && topic.subjects.is_empty()
        };
        if self.kinds.get(&kind).is_some_and(is_unheard) {
            self.kinds.remove(&kind);
        }
    }
}

/// What counts as one address: who has an IPv6 address has a whole network of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(network.into())
        }
        address => address,
    }
}

/// Counts one less, and forgets a key that has none left.
fn one_less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Those that lag first, and then the newest.
fn keep_noteworthy(connections: &mut Vec<Connection>, limit: usize) {
    connections.sort_by_key(|own| (!own.depth.lagging, std::cmp::Reverse(own.since)));
    connections.truncate(limit);
}

fn leave<T>(listeners: &mut IndexMap<u64, T>, id: u64) -> Option<T> {
    let gone = listeners.swap_remove(&id);
    if listeners.len() < listeners.capacity() / 4 {
        listeners.shrink_to(listeners.len() * 2);
    }
    gone
}

impl Attached {
    fn shown(&self, school: SchoolId, channels: usize) -> Connection {
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

impl Attachment {
    /// Where the events arrive.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Listens to more.
    pub fn listen(&self, channels: impl IntoIterator<Item = Channel>) {
        let mut room = lock(&self.school);
        for channel in channels {
            room.listen(&channel, self.id, &self.mailbox);
            if let Some(own) = room.attached.get_mut(&self.id) {
                own.channels.reserve_exact(1);
                own.channels.push(channel);
            }
        }
    }

    /// Listens to the wide events of a kind, too.
    pub fn listen_to_wide(&self, kind: Kind) {
        let mut room = lock(&self.school);
        let wide = &mut room.kinds.entry(kind).or_default().wide;
        wide.insert(self.id, Arc::clone(&self.mailbox));
        if let Some(own) = room.attached.get_mut(&self.id) {
            own.wide = Some(kind);
        }
    }

    /// Listens to no wide events but those on its channels.
    pub fn unlisten_wide(&self) {
        let mut room = lock(&self.school);
        let wide = room.attached.get_mut(&self.id);
        if let Some(kind) = wide.and_then(|own| own.wide.take()) {
            room.unlisten_wide(kind, self.id);
        }
    }

    /// Listens to less.
    pub fn unlisten(&self, channel: &Channel) {
        let mut room = lock(&self.school);
        room.unlisten(channel, self.id);
        if let Some(own) = room.attached.get_mut(&self.id) {
            own.channels.retain(|own| own != channel);
        }
    }

    /// Goes on from the log, of which everything up to `place` has been read, to what is offered. False if something after
    /// that was offered before this connection was attached, or never: then there is more to read.
    pub fn joins(&self, place: Place) -> bool {
        let mut room = lock(&self.school);
        match room.head {
            None => {
                // From now on it is noticed if something is missing.
                room.head = Some(place);
                room.begin_at(place.seq + 1);
                true
            }
            Some(head) => place.seq >= head.seq || room.dense_from <= place.seq + 1,
        }
    }

    /// The place of the school's newest event that was offered. All of it in scope has been in the mailbox.
    pub fn head(&self) -> Option<Place> {
        lock(&self.school).head
    }

    /// The events after `after` and the place up to which they reach, if the window goes back that far and is known to go on
    /// from that very event.
    pub fn window(&self, after: Place) -> Option<(Vec<Arc<Event>>, Place)> {
        let room = lock(&self.school);
        let head = room.head?;
        let first = room
            .window
            .front()
            .map_or(head.seq + 1, |oldest| oldest.seq);
        if after.seq > head.seq || after.seq + 1 < first {
            return None;
        }
        let skipped = usize::try_from(after.seq + 1 - first).unwrap_or(usize::MAX);
        if after.tag.is_some() {
            let before = skipped
                .checked_sub(1)
                .and_then(|last| room.window.get(last));
            let known = before.map(|event| event.place());
            let known = known.or_else(|| Some(head).filter(|head| head.seq == after.seq));
            if known.is_none_or(|known| known != after) {
                return None;
            }
        }
        let events = room.window.iter().skip(skipped).map(Arc::clone);
        Some((events.collect(), head))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut room = lock(&self.school);
        let Some(own) = leave(&mut room.attached, self.id) else {
            // It was never let in.
            return;
        };
        for channel in &own.channels {
            room.unlisten(channel, self.id);
        }
        if let Some(kind) = own.wide {
            room.unlisten_wide(kind, self.id);
        }
        one_less(&mut room.users, &own.reader.user);
        room.note_streams(self.hub.second());
        drop(room);
        self.hub.give_back(own.reader.address.map(network));
    }
}

#[cfg(test)]
mod tests;
