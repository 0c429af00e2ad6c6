//! Logs that other nodes write to, too.
//!
//! The hub of such logs holds a school only while it has listeners on this node, and for a while after the last one has
//! left. It receives the commits of other nodes only for these schools, so only their windows are up to date.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::{Attachment, Hub, SchoolState, WakeList, lock};
use crate::config::READ_AHEAD_MAX;
use crate::event::Event;
use crate::id::{Place, SchoolId};
use crate::sync::{MutexGuard, PoisonError};

/// How far a school's events were offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The place of the newest event that was offered, or up to which a listener has read. `None` if neither has
    /// happened yet.
    pub head: Option<Place>,
    /// The newest place beyond the head up to which a listener has read.
    pub read_ahead: Option<Place>,
    /// Whether the school has listeners on this node.
    pub is_attended: bool,
}

impl Position {
    /// Returns the `seq` of the next event, if it is known.
    pub fn next(&self) -> Option<u64> {
        self.head.map(|head| head.seq + 1)
    }

    /// Returns the newest events that are known to have been in the log.
    pub fn known(&self) -> impl Iterator<Item = Place> {
        [self.head, self.read_ahead].into_iter().flatten()
    }
}

/// Schools that entered or left memory, or got their first listener, since [`Hub::poll_moved`] last returned any.
#[derive(Default)]
pub(super) struct Moved {
    schools: BTreeSet<SchoolId>,
    watcher: Option<Waker>,
}

impl Hub {
    /// Makes this the hub of logs that other nodes write to, too.
    pub fn of_shared_logs(self) -> Hub {
        Hub {
            is_shared: true,
            ..self
        }
    }

    /// Waits for schools to enter or leave memory or to get their first listener, and returns them. Only one task can
    /// wait. A school may have changed again since; [`Hub::position`] returns its current state.
    pub fn poll_moved(&self, cx: &mut Context<'_>) -> Poll<BTreeSet<SchoolId>> {
        let mut moved = self.moved();
        if !moved.schools.is_empty() {
            return Poll::Ready(std::mem::take(&mut moved.schools));
        }
        moved.watcher = Some(cx.waker().clone());
        Poll::Pending
    }

    fn moved(&self) -> MutexGuard<'_, Moved> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that schools entered or left memory or got their first listener.
    pub(super) fn note_moved(&self, schools: impl IntoIterator<Item = SchoolId>) {
        if !self.is_shared {
            return;
        }
        let mut moved = self.moved();
        let before = moved.schools.len();
        moved.schools.extend(schools);
        let watcher = match moved.schools.len() > before {
            true => moved.watcher.take(),
            false => None,
        };
        drop(moved);
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }

    /// Returns how far a school's events were offered. Returns `None` if the school is not in memory.
    pub fn position(&self, school: SchoolId) -> Option<Position> {
        let school = self.find(school)?;
        let state = lock(&school);
        let furthest = state.read_ahead.last_key_value();
        Some(Position {
            head: state.head,
            read_ahead: furthest.map(|(seq, tag)| Place {
                seq: *seq,
                tag: Some(*tag),
            }),
            is_attended: !state.attached.is_empty(),
        })
    }

    /// Returns how far the events of each school in memory were offered, in the order of the schools, so that simulations
    /// are deterministic.
    pub fn positions(&self) -> Vec<(SchoolId, Position)> {
        let mut schools: Vec<SchoolId> = {
            let schools = self.schools.read().unwrap_or_else(PoisonError::into_inner);
            schools.keys().copied().collect()
        };
        schools.sort_unstable();
        let position = |school| Some((school, self.position(school)?));
        schools.into_iter().filter_map(position).collect()
    }

    /// Whether these events of a school contradict what was offered, what listeners have read, or one another: either
    /// the log has lost events that were offered or read, or these events belong to a history that was lost.
    pub fn contradicts(&self, events: &[Arc<Event>]) -> bool {
        let Some(school) = events.first().and_then(|first| self.find(first.school)) else {
            return false;
        };
        let state = lock(&school);
        let is_other = |known: Option<Place>, place: Place| {
            known.is_some_and(|known| known.tag.is_some() && known != place)
        };
        let mut previous: Option<Place> = None;
        events.iter().any(|event| {
            let before = Place {
                seq: event.seq - 1,
                tag: event.before,
            };
            let follows_another = event.before.is_some()
                && (is_other(previous, before) || is_other(state.place(before.seq), before));
            previous = Some(event.place());
            follows_another || is_other(state.place(event.seq), event.place())
        })
    }

    /// Forgets what was offered of a school, because the log may have lost some of it. All listeners check their places
    /// against the log. Returns the readers to wake.
    pub fn start_over(&self, school: SchoolId) -> WakeList {
        let mut wake_list = WakeList::default();
        if let Some(school) = self.find(school) {
            lock(&school).start_over(&mut wake_list);
        }
        wake_list
    }
}

impl SchoolState {
    fn start_over(&mut self, wake_list: &mut WakeList) {
        self.begin_at(0);
        self.head = None;
        self.read_ahead.clear();
        let attached = self.attached.values();
        wake_list.extend(attached.filter_map(|attached| attached.mailbox.change_history()));
    }

    /// Returns the place with this `seq`, if it is known which event is there.
    fn place(&self, seq: u64) -> Option<Place> {
        let index = self.window.front().and_then(|oldest| {
            let index = seq.checked_sub(oldest.seq)?;
            usize::try_from(index).ok()
        });
        let known = index.and_then(|index| self.window.get(index));
        let known = known.map(|known| known.place());
        // If a reader has set the head, the window is empty.
        let known = known.or_else(|| self.head.filter(|head| head.seq == seq));
        let known = known.or_else(|| self.place_before_window().filter(|place| place.seq == seq));
        known.or_else(|| {
            let tag = Some(*self.read_ahead.get(&seq)?);
            Some(Place { seq, tag })
        })
    }

    /// Returns the place of the event before the window, if it is known.
    pub(super) fn place_before_window(&self) -> Option<Place> {
        let oldest = self.window.front()?;
        let seq = oldest.seq - 1;
        oldest.before.map(|tag| Place {
            seq,
            tag: Some(tag),
        })
    }
}

impl Attachment {
    /// See [`Attachment::try_go_live`].
    pub(super) fn goes_live_shared(&self, place: Place) -> bool {
        let mut state = lock(&self.school);
        let Some(head) = state.head else {
            // From now on, the hub notices missing events.
            state.head = Some(place);
            state.begin_at(place.seq + 1);
            return true;
        };
        let known = state.place(place.seq);
        let is_lost =
            known.is_some_and(|known| known.tag.is_some() && place.tag.is_some() && known != place);
        if is_lost {
            let mut wake_list = WakeList::default();
            state.start_over(&mut wake_list);
            drop(state);
            wake_list.wake();
            return true;
        }
        match place.tag {
            Some(tag) if place.seq > head.seq => {
                let has_room = state.read_ahead.len() < READ_AHEAD_MAX;
                if has_room {
                    state.read_ahead.insert(place.seq, tag);
                }
                has_room
            }
            // It is not known whether the events that were offered follow this one.
            Some(_) if known.is_none() => false,
            _ => place.seq >= head.seq || state.dense_from <= place.seq + 1,
        }
    }
}
