//! Turns between reads: which one gets the next connection.
//!
//! ```text
//! short reads:  school 7 ▸▸▸   school 9 ▸   …  ─┐ round robin          ┌─▶ any connection
//!                                               ├─▶ next turn ─────────┤
//! walks:        school 7 ▸▸▸▸▸ school 3 ▸▸  …  ─┘ one for every so      └─▶ all but one of them at most
//!                                                 many short reads
//! ```
//!
//! A *short* read is served by an index and returns a page; it comes first. A *walk*, such as a search, scans rows for
//! those that match, one window at a time, and requests a turn for each window. Each of the two has a queue, in which
//! *requesters* are served round-robin, however many reads each of them has waiting. So no requester waits for more than one
//! read or window of each other requester. A requester is one of: a school's requests, a school's streams, or the server
//! itself.
//!
//! The number of waiting reads is bounded (invariant 6): a request beyond a limit is rejected; streams have a separate
//! limit, and the server's own tasks read one at a time. A read whose future is dropped gives up its place immediately.
//!
//! Deliberately absent: how long a window takes, which a store's readers determine.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::config::SHORT_READS_PER_WINDOW;
use crate::id::SchoolId;
use crate::log::{StoreError, Waiting};

/// On whose behalf a read is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::store) enum Requester {
    /// The server itself: its clock, notifiers, metrics and retention.
    Server,
    /// Requests about a school.
    Requests(SchoolId),
    /// Streams of a school.
    Streams(SchoolId),
}

/// The queue in which a read waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Length {
    /// Served by an index.
    Short,
    /// One window of a walk.
    Window,
}

/// The limits of the readers.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Bounds {
    /// The number of connections.
    pub(in crate::store) connections: usize,
    /// The maximum number of connections that run walks at the same time.
    pub(in crate::store) walking: usize,
    /// The maximum number of waiting requests.
    pub(in crate::store) waiting: usize,
    /// The maximum number of waiting requests about one school.
    pub(in crate::store) waiting_of_school: usize,
}

/// See the [module-level documentation](self).
pub(in crate::store) struct Turns {
    bounds: Bounds,
    state: Mutex<State>,
    windows: AtomicU64,
}

struct State {
    free: usize,
    walking: usize,
    short: Queue,
    windows: Queue,
    /// Consecutive short reads that were served while a walk was waiting.
    short_in_a_row: usize,
    /// Waiting requests by school.
    waiting: HashMap<SchoolId, usize>,
    waiting_in_all: usize,
    next_place: u64,
}

/// The reads that wait in one queue.
#[derive(Default)]
struct Queue {
    /// Each requester that has a queue, once, in the order of their turns.
    order: VecDeque<Requester>,
    /// Each requester's waiting reads by place, oldest first. A queue can be empty: it is removed when its requester's turn
    /// comes.
    queues: HashMap<Requester, BTreeMap<u64, oneshot::Sender<Turn>>>,
}

/// Permission to use a connection until this is dropped.
pub(in crate::store) struct Turn {
    turns: Arc<Turns>,
    length: Length,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.free += 1;
        if self.length == Length::Window {
            state.walking -= 1;
        }
        self.turns.serve(state);
    }
}

/// A place in a queue, which is given up when this is dropped.
struct Place {
    turns: Arc<Turns>,
    requester: Requester,
    length: Length,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        let queue = state.queue(self.length).queues.get_mut(&self.requester);
        // The entry is gone if the turn was granted.
        if queue.is_some_and(|queue| queue.remove(&self.number).is_some()) {
            state.has_left(self.requester);
        }
    }
}

impl Turns {
    pub(in crate::store) fn new(bounds: Bounds) -> Turns {
        Turns {
            bounds,
            state: Mutex::new(State {
                free: bounds.connections,
                walking: 0,
                short: Queue::default(),
                windows: Queue::default(),
                short_in_a_row: 0,
                waiting: HashMap::new(),
                waiting_in_all: 0,
                next_place: 0,
            }),
            windows: AtomicU64::new(0),
        }
    }

    /// Waits for a turn: at most `wait` for a request, without limit for others. See [`Turns::take`].
    pub(in crate::store) async fn wait(
        self: &Arc<Self>,
        requester: Requester,
        length: Length,
        wait: Duration,
        has_begun: bool,
    ) -> Result<Turn, StoreError> {
        let turn = self.take(requester, length, has_begun);
        match requester {
            Requester::Requests(_) => timeout(wait, turn)
                .await
                .unwrap_or(Err(StoreError::Busy(Waiting::TooLong))),
            Requester::Streams(_) | Requester::Server => turn.await,
        }
    }

    /// Waits for a turn. A request is rejected if a limit on waiting requests is reached, unless it continues a walk.
    async fn take(
        self: &Arc<Self>,
        requester: Requester,
        length: Length,
        has_begun: bool,
    ) -> Result<Turn, StoreError> {
        let (turn, place) = {
            let mut state = self.state();
            if !has_begun {
                state.may_wait(requester, &self.bounds)?;
            }
            let number = state.next_place;
            state.next_place += 1;
            let (grant, turn) = oneshot::channel();
            state.queue(length).push(requester, number, grant);
            state.has_come(requester);
            let place = Place {
                turns: Arc::clone(self),
                requester,
                length,
                number,
            };
            self.serve(state);
            (turn, place)
        };
        let turn = turn.await.map_err(|_| StoreError::Stopped);
        drop(place);
        turn
    }

    /// Returns the number of connections.
    #[cfg(feature = "postgres")]
    pub(in crate::store) fn connections(&self) -> usize {
        self.bounds.connections
    }

    /// Returns how many windows have been started.
    pub(in crate::store) fn windows(&self) -> u64 {
        self.windows.load(Ordering::Relaxed)
    }

    /// Returns how many requests are waiting.
    pub(in crate::store) fn waiting(&self) -> usize {
        self.state().waiting_in_all
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants free connections to the next reads.
    fn serve(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let mut granted = Vec::new();
        while let Some((length, grant)) = state.next(&self.bounds) {
            granted.push((length, grant));
        }
        drop(state);
        for (length, grant) in granted {
            if length == Length::Window {
                self.windows.fetch_add(1, Ordering::Relaxed);
            }
            let turn = Turn {
                turns: Arc::clone(self),
                length,
            };
            // The caller may have disconnected: then the turn is dropped here, and the next read gets it.
            let _ = grant.send(turn);
        }
    }
}

impl State {
    fn queue(&mut self, length: Length) -> &mut Queue {
        match length {
            Length::Short => &mut self.short,
            Length::Window => &mut self.windows,
        }
    }

    fn may_wait(&self, requester: Requester, bounds: &Bounds) -> Result<(), StoreError> {
        let Requester::Requests(school) = requester else {
            return Ok(());
        };
        let of_school = self.waiting.get(&school).copied().unwrap_or_default();
        if of_school >= bounds.waiting_of_school {
            return Err(StoreError::Busy(Waiting::OfSchool));
        }
        if self.waiting_in_all >= bounds.waiting {
            return Err(StoreError::Busy(Waiting::InAll));
        }
        Ok(())
    }

    fn has_come(&mut self, requester: Requester) {
        if let Requester::Requests(school) = requester {
            *self.waiting.entry(school).or_default() += 1;
            self.waiting_in_all += 1;
        }
    }

    fn has_left(&mut self, requester: Requester) {
        if let Requester::Requests(school) = requester {
            self.waiting_in_all -= 1;
            if let Some(count) = self.waiting.get_mut(&school) {
                *count -= 1;
                if *count == 0 {
                    self.waiting.remove(&school);
                }
            }
        }
    }

    /// Returns the next read, if a connection is free for it.
    fn next(&mut self, bounds: &Bounds) -> Option<(Length, oneshot::Sender<Turn>)> {
        if self.free == 0 {
            return None;
        }
        let may_walk = self.walking < bounds.walking;
        let walk_is_due = may_walk && self.short_in_a_row >= SHORT_READS_PER_WINDOW;
        let lengths = match walk_is_due {
            true => [Length::Window, Length::Short],
            false => [Length::Short, Length::Window],
        };
        for length in lengths {
            if length == Length::Window && !may_walk {
                continue;
            }
            let Some((requester, grant)) = self.queue(length).pop() else {
                continue;
            };
            self.has_left(requester);
            self.free -= 1;
            if length == Length::Window {
                self.walking += 1;
                self.short_in_a_row = 0;
            } else if !self.windows.order.is_empty() {
                self.short_in_a_row += 1;
            }
            return Some((length, grant));
        }
        None
    }
}

impl Queue {
    fn push(&mut self, requester: Requester, number: u64, grant: oneshot::Sender<Turn>) {
        let order = &mut self.order;
        let queue = self.queues.entry(requester).or_insert_with(|| {
            order.push_back(requester);
            BTreeMap::new()
        });
        queue.insert(number, grant);
    }

    fn pop(&mut self) -> Option<(Requester, oneshot::Sender<Turn>)> {
        while let Some(requester) = self.order.pop_front() {
            let queue = self.queues.get_mut(&requester);
            let first = queue.and_then(|queue| {
                let (_, grant) = queue.pop_first()?;
                Some((grant, queue.is_empty()))
            });
            match first {
                Some((grant, is_last)) => {
                    match is_last {
                        true => drop(self.queues.remove(&requester)),
                        false => self.order.push_back(requester),
                    }
                    return Some((requester, grant));
                }
                None => drop(self.queues.remove(&requester)),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Asked = Pin<Box<dyn Future<Output = Result<Turn, StoreError>> + Send>>;

    const BOUNDS: Bounds = Bounds {
        connections: 2,
        walking: 1,
        waiting: 6,
        waiting_of_school: 4,
    };

    fn school(number: i64) -> Requester {
        Requester::Requests(number.try_into().unwrap())
    }

    /// Requests a turn, and polls once.
    fn ask(turns: &Arc<Turns>, requester: Requester, length: Length) -> (Asked, Option<Turn>) {
        let turns = Arc::clone(turns);
        let mut asked: Asked = Box::pin(async move { turns.take(requester, length, false).await });
        let turn = poll_once(&mut asked);
        (asked, turn)
    }

    fn poll_once(asked: &mut Asked) -> Option<Turn> {
        match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn.unwrap()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn schools_take_turns_however_much_each_asks_for() {
        let turns = Arc::new(Turns::new(BOUNDS));
        let (_, mut held) = ask(&turns, Requester::Server, Length::Window);
        assert!(held.is_some());
        let mut asked: Vec<(i64, Asked)> = [1, 1, 1, 1, 2, 3]
            .map(|number| {
                let (asked, turn) = ask(&turns, school(number), Length::Window);
                assert!(turn.is_none(), "one walks already");
                (number, asked)
            })
            .into();
        let mut served = Vec::new();
        while !asked.is_empty() {
            drop(held.take());
            let found = asked
                .iter_mut()
                .enumerate()
                .find_map(|(index, (_, asked))| poll_once(asked).map(|turn| (index, turn)));
            let (index, turn) = found.expect("a connection is free");
            served.push(asked.remove(index).0);
            held = Some(turn);
        }
        drop(held);
        assert_eq!(served, [1, 2, 3, 1, 1, 1]);
    }

    #[test]
    fn walks_leave_a_connection_for_short_reads() {
        let turns = Arc::new(Turns::new(BOUNDS));
        let (_, walk) = ask(&turns, school(1), Length::Window);
        let (_other, none) = ask(&turns, school(2), Length::Window);
        assert!(walk.is_some() && none.is_none());
        let (_, short) = ask(&turns, school(3), Length::Short);
        assert!(short.is_some(), "before the walk that waits");
    }

    #[test]
    fn a_walk_is_not_held_up_for_ever_by_short_reads() {
        let bounds = Bounds {
            connections: 1,
            waiting_of_school: 100,
            waiting: 100,
            ..BOUNDS
        };
        let turns = Arc::new(Turns::new(bounds));
        let (_, mut held) = ask(&turns, Requester::Server, Length::Short);
        let (mut walk, _) = ask(&turns, school(1), Length::Window);
        let mut short: VecDeque<Asked> = (0..50)
            .map(|_| ask(&turns, school(2), Length::Short).0)
            .collect();
        let mut before = 0;
        loop {
            drop(held.take());
            if poll_once(&mut walk).is_some() {
                break;
            }
            held = poll_once(&mut short.pop_front().expect("one waits"));
            before += 1;
        }
        assert_eq!(before, SHORT_READS_PER_WINDOW);
    }

    #[test]
    fn a_request_beyond_a_bound_is_rejected_and_one_that_leaves_makes_room() {
        let turns = Arc::new(Turns::new(BOUNDS));
        let _held: Vec<_> = (0..2)
            .map(|_| ask(&turns, Requester::Server, Length::Short).1)
            .collect();
        let rejected = |requester| {
            let mut asked = pin!(turns.take(requester, Length::Short, false));
            match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Err(StoreError::Busy(which))) => Some(which),
                Poll::Ready(_) => panic!("no connection is free"),
                Poll::Pending => None,
            }
        };
        let mut waiting: Vec<Asked> = (0..4)
            .map(|_| ask(&turns, school(1), Length::Short).0)
            .collect();
        assert_eq!(rejected(school(1)), Some(Waiting::OfSchool));
        assert_eq!(rejected(school(2)), None);
        waiting.extend((0..2).map(|_| ask(&turns, school(2), Length::Short).0));
        assert_eq!(rejected(school(3)), Some(Waiting::InAll));
        assert_eq!(
            rejected(Requester::Server),
            None,
            "the server's own reads wait"
        );
        waiting.pop();
        assert_eq!(rejected(school(3)), None);
        drop(waiting);
        assert_eq!(turns.waiting(), 0);
    }
}
