//! When sinks that are lent must be written to again, because they hold back ticks.
//!
//! One task watches this for all connections ([`crate::crowd::write_held_ticks`]), so that a reader that conflates is
//! written to like any other: together with the rest of its crowd, without waking its task. Time is divided into slots
//! ([`HELD_TICKS_SLOT`]); what is due in a slot is written at its end.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::WakeList;
use crate::config::HELD_TICKS_SLOT;
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// A mailbox to which a sink is lent.
pub(super) trait Borrower: Send + Sync {
    /// Returns the waker that writes to the sink.
    fn waker(self: Arc<Self>) -> Waker;
}

/// The times at which lent sinks are due, one at most for each mailbox.
pub struct DueWrites {
    /// When the first slot began.
    began: Instant,
    timetable: Mutex<Timetable>,
}

#[derive(Default)]
struct Timetable {
    /// By time, and by the number of the mailbox.
    entries: BTreeMap<(Instant, u64), Weak<dyn Borrower>>,
    /// Who waits for the first entry.
    watcher: Option<Waker>,
}

impl Default for DueWrites {
    fn default() -> DueWrites {
        DueWrites {
            began: Instant::now(),
            timetable: Mutex::default(),
        }
    }
}

impl DueWrites {
    /// Returns the end of the slot that a time is in.
    fn end_of_slot(&self, due: Instant) -> Instant {
        let slot = HELD_TICKS_SLOT.as_nanos();
        let slots = (due - self.began).as_nanos().div_ceil(slot);
        let after = slots.saturating_mul(slot).try_into();
        self.began + Duration::from_nanos(after.unwrap_or(u64::MAX))
    }

    fn timetable(&self) -> MutexGuard<'_, Timetable> {
        self.timetable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the sinks that are due at `now`. If none is, returns when the first one will be, and has the caller woken if
    /// that changes. Only one task can wait.
    pub fn take(&self, cx: &mut Context<'_>, now: Instant) -> Result<WakeList, Option<Instant>> {
        let mut timetable = self.timetable();
        let first = timetable.entries.keys().next().map(|(due, _)| *due);
        if first.is_none_or(|due| due > now) {
            timetable.watcher = Some(cx.waker().clone());
            return Err(first);
        }
        let later = timetable.entries.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut timetable.entries, later);
        drop(timetable);
        let borrowers = due.values().filter_map(Weak::upgrade);
        let wakers: Vec<Waker> = borrowers.map(Borrower::waker).collect();
        Ok(wakers.into())
    }

    fn remove(&self, entry: (Instant, u64)) {
        self.timetable().entries.remove(&entry);
    }

    /// Adds an entry, in place of this one.
    fn replace(
        &self,
        old: Option<(Instant, u64)>,
        new: (Instant, u64),
        mailbox: Weak<dyn Borrower>,
    ) {
        let mut timetable = self.timetable();
        // Who waits need not learn that the first entry has gone: there is just nothing to do then.
        let first = timetable.entries.keys().next();
        let is_first = first.is_none_or(|(due, _)| new.0 < *due);
        if let Some(old) = old {
            timetable.entries.remove(&old);
        }
        timetable.entries.insert(new, mailbox);
        let watcher = match is_first {
            true => timetable.watcher.take(),
            false => None,
        };
        drop(timetable);
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }
}

/// The entry of one mailbox.
pub(super) struct Reminder {
    due_writes: Arc<DueWrites>,
    id: u64,
    due: Option<Instant>,
}

impl Reminder {
    /// Creates a reminder without an entry. `id` is the number of the mailbox.
    pub(super) fn new(due_writes: &Arc<DueWrites>, id: u64) -> Reminder {
        Reminder {
            due_writes: Arc::clone(due_writes),
            id,
            due: None,
        }
    }

    /// Sets when the sink is due.
    pub(super) fn set(&mut self, mailbox: &Arc<impl Borrower + 'static>, due: Option<Instant>) {
        let due = due.map(|due| self.due_writes.end_of_slot(due));
        let old = self.due.map(|due| (due, self.id));
        self.due = due;
        match (old, due) {
            (None, None) => {}
            (Some(old), None) => self.due_writes.remove(old),
            (old, Some(due)) => {
                let mailbox = Arc::downgrade(mailbox);
                self.due_writes.replace(old, (due, self.id), mailbox);
            }
        }
    }
}

impl Drop for Reminder {
    fn drop(&mut self) {
        if let Some(due) = self.due {
            self.due_writes.remove((due, self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[derive(Default)]
    struct Asleep;

    impl Borrower for Asleep {
        fn waker(self: Arc<Self>) -> Waker {
            Waker::noop().clone()
        }
    }

    struct Bench {
        due_writes: Arc<DueWrites>,
        woken: Arc<Woken>,
    }

    impl Bench {
        fn begin() -> Bench {
            Bench {
                due_writes: Arc::default(),
                woken: Arc::default(),
            }
        }

        fn at(&self, millis: u64) -> Instant {
            self.due_writes.began + Duration::from_millis(millis)
        }

        /// Returns how many sinks are due, or else when the next one will be.
        fn take(&self, millis: u64) -> Result<usize, Option<Instant>> {
            let waker = Waker::from(Arc::clone(&self.woken));
            let cx = &mut Context::from_waker(&waker);
            let due = self.due_writes.take(cx, self.at(millis));
            due.map(|wake_list| wake_list.len())
        }

        fn wakes(&self) -> usize {
            self.woken.0.load(Ordering::SeqCst)
        }

        fn reminder(&self, id: u64) -> (Arc<Asleep>, Reminder) {
            (Arc::default(), Reminder::new(&self.due_writes, id))
        }
    }

    #[test]
    fn a_mailbox_has_one_entry_which_ends_with_it() {
        let bench = Bench::begin();
        let (mailbox, mut reminder) = bench.reminder(1);
        assert_eq!(bench.take(0), Err(None));
        for due in [11, 3, 7] {
            reminder.set(&mailbox, Some(bench.at(due)));
        }
        assert_eq!(bench.take(7), Err(Some(bench.at(8))));
        reminder.set(&mailbox, None);
        assert_eq!(bench.take(100), Err(None));
        reminder.set(&mailbox, Some(bench.at(8)));
        assert_eq!(bench.take(8), Ok(1));
        assert_eq!(bench.take(8), Err(None));
        reminder.set(&mailbox, Some(bench.at(8)));
        drop(reminder);
        assert_eq!(bench.take(8), Err(None));
        // Its connection has ended in the meantime.
        let (mailbox, mut reminder) = bench.reminder(2);
        reminder.set(&mailbox, Some(bench.at(8)));
        drop(mailbox);
        assert_eq!(bench.take(8), Ok(0));
    }

    #[test]
    fn what_is_due_in_one_slot_is_written_together() {
        let bench = Bench::begin();
        let mut reminders: Vec<(Arc<Asleep>, Reminder)> =
            (0..4).map(|id| bench.reminder(id)).collect();
        for ((mailbox, reminder), due) in reminders.iter_mut().zip([1, 4, 3, 5]) {
            reminder.set(mailbox, Some(bench.at(due)));
        }
        assert_eq!(bench.take(3), Err(Some(bench.at(4))));
        assert_eq!(bench.take(4), Ok(3));
        assert_eq!(bench.take(4), Err(Some(bench.at(8))));
        // A time that has passed is due at once.
        let (mailbox, reminder) = &mut reminders[0];
        reminder.set(mailbox, bench.at(0).checked_sub(Duration::from_secs(1)));
        assert_eq!(bench.take(4), Ok(1));
    }

    /// Otherwise it would sleep until the one that was first, or for ever.
    #[test]
    fn who_waits_is_woken_by_an_entry_before_the_first_and_by_no_other() {
        let bench = Bench::begin();
        let (mailbox, mut reminder) = bench.reminder(1);
        assert_eq!(bench.take(0), Err(None));
        reminder.set(&mailbox, Some(bench.at(20)));
        assert_eq!(bench.wakes(), 1);
        assert_eq!(bench.take(0), Err(Some(bench.at(20))));
        let (other, mut later) = bench.reminder(0);
        later.set(&other, Some(bench.at(20)));
        later.set(&other, Some(bench.at(40)));
        assert_eq!(bench.wakes(), 1);
        later.set(&other, Some(bench.at(8)));
        assert_eq!(bench.wakes(), 2);
        assert_eq!(bench.take(0), Err(Some(bench.at(8))));
        later.set(&other, Some(bench.at(12)));
        assert_eq!(bench.wakes(), 2);
        assert_eq!(bench.take(8), Err(Some(bench.at(12))));
        assert_eq!(bench.take(12), Ok(1));
    }
}
