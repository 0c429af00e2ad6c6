//! Logs that other nodes write to, too.
//!
//! The hub of such logs holds only schools that somebody here listens to, and until a while after the last listener has
//! left. Only of those is it told what others commit, so only their windows are up to date.

use std::collections::BTreeSet;
use std::task::{Context, Poll, Waker};

use super::{Attached, Hub, WakeList, lock};
use crate::event::Event;
use crate::id::{Place, SchoolId};
use crate::sync::{MutexGuard, PoisonError};

/// How far a school's events were offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The place of the newest event that was offered, or up to which a listener has read. `None` if neither has
    /// happened yet.
    pub head: Option<Place>,
    /// Whether somebody listens.
    pub is_attended: bool,
}

impl Position {
    /// Returns the `seq` of the next event, if it is known.
    pub fn next(&self) -> Option<u64> {
        self.head.map(|head| head.seq + 1)
    }
}

/// Schools that entered or left memory, or got their first listener, since the last look.
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
    /// wait. What holds for a school now is what [`Hub::position`] says.
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
        Some(Position {
            head: state.head,
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

    /// Whether another event with this event's number was offered, so that the log must have lost that one.
    pub fn contradicts(&self, event: &Event) -> bool {
        let Some(school) = self.find(event.school) else {
            return false;
        };
        let state = lock(&school);
        let index = state.window.front().and_then(|oldest| {
            let index = event.seq.checked_sub(oldest.seq)?;
            usize::try_from(index).ok()
        });
        let known = index.and_then(|index| state.window.get(index));
        let known = known.map(|known| known.place());
        // The window is empty if the head is what a reader has read.
        let known = known.or_else(|| state.head.filter(|head| head.seq == event.seq));
        known.is_some_and(|known| known.tag.is_some() && known != event.place())
    }

    /// Forgets what was offered of a school, because the log may have lost some of it. All listeners check their places
    /// against the log. Returns the readers to wake.
    pub fn start_over(&self, school: SchoolId) -> WakeList {
        let mut wake_list = WakeList::default();
        if let Some(school) = self.find(school) {
            let mut state = lock(&school);
            state.begin_at(0);
            state.head = None;
            let doubt = |own: &Attached| own.mailbox.doubt();
            wake_list
                .0
                .extend(state.attached.values().filter_map(doubt));
        }
        wake_list
    }
}
