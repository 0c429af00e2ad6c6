//! Wakes crowds of readers, a few at a time, so that readers of other channels need not wait for all of them.
//!
//! All crowds wait in one queue, which a few tasks share. They turn to the oldest crowd and to the smallest one, alternately: so a
//! small crowd need not wait for a large one, and no crowd waits for ever. A reader that is woken late receives everything that has
//! happened until then with one write.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::config::{WAKE_AT_ONCE, WAKE_PART};
use crate::hub::{Hub, WakeList};
use crate::tasks::Tasks;

/// The name of the tasks that wake readers.
const NAME: &str = "wake readers";

/// Readers to be woken. Clones are the same crowd.
#[derive(Clone)]
pub struct Crowd {
    tasks: Tasks,
    name: Arc<str>,
    queue: Arc<Mutex<Queue>>,
}

/// There are two entries of a connection at most, hardly ever more than one: it does not wait for events again before it is woken,
/// and it may be in the queue once more because held ticks are due.
#[derive(Default)]
struct Queue {
    /// Oldest first, and none of them empty.
    lists: VecDeque<WakeList>,
    /// The number of readers in all lists.
    waiting: usize,
    /// Whether it is the turn of the smallest list.
    is_smallest_next: bool,
    /// The number of tasks that wake them.
    running: usize,
}

impl Queue {
    /// Takes the next readers, [`WAKE_AT_ONCE`] of them if there are so many.
    fn next(&mut self) -> WakeList {
        let mut part = WakeList::default();
        while part.len() < WAKE_AT_ONCE && !self.lists.is_empty() {
            let index = match self.is_smallest_next {
                true => self.smallest(),
                false => 0,
            };
            self.is_smallest_next = !self.is_smallest_next;
            let list = &mut self.lists[index];
            part.append(list.take(WAKE_AT_ONCE - part.len()));
            if list.is_empty() {
                self.lists.remove(index);
            }
        }
        self.waiting -= part.len();
        part
    }

    /// Returns the index of the smallest list.
    fn smallest(&self) -> usize {
        let sizes = self.lists.iter().map(WakeList::len).enumerate();
        let smallest = sizes.min_by_key(|(_, size)| *size);
        smallest.map_or(0, |(index, _)| index)
    }
}

impl Crowd {
    /// Creates a crowd that is woken by tasks of this group.
    pub fn new(tasks: Tasks) -> Crowd {
        Crowd {
            tasks,
            name: NAME.into(),
            queue: Arc::default(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes some of the readers at once, and has tasks wake the others.
    pub fn wake(&self, wake_list: WakeList) {
        if let Some(others) = wake_list.wake_some(WAKE_AT_ONCE) {
            self.wake_later(others);
        }
    }

    /// Has tasks wake the readers.
    fn wake_later(&self, wake_list: WakeList) {
        if wake_list.is_empty() {
            return;
        }
        let mut queue = self.queue();
        queue.waiting += wake_list.len();
        queue.lists.push_back(wake_list);
        let wanted = queue.waiting.div_ceil(WAKE_PART);
        let wanted = wanted.min(Handle::current().metrics().num_workers());
        let more = wanted.saturating_sub(queue.running);
        queue.running += more;
        drop(queue);
        for _ in 0..more {
            self.tasks.spawn(Arc::clone(&self.name), self.clone().run());
        }
    }

    async fn run(self) {
        while let Some(part) = self.next() {
            for waker in part {
                self.tasks.guard(&self.name, || waker.wake());
            }
            yield_now().await;
        }
    }

    /// Takes the next readers. `None` if there are none, so that the task ends.
    fn next(&self) -> Option<WakeList> {
        let mut queue = self.queue();
        let part = queue.next();
        if part.is_empty() {
            queue.running -= 1;
            return None;
        }
        Some(part)
    }
}

/// Has ticks written to the sinks that are lent and have held them back, when they are due. Never returns.
pub async fn write_held_ticks(hub: Arc<Hub>, crowd: Crowd) {
    let mut alarm = Alarm::at(Instant::now());
    loop {
        let due = poll_fn(|cx| {
            loop {
                let now = Instant::now();
                match hub.due_writes().take(cx, now) {
                    Ok(wake_list) => return Poll::Ready(wake_list),
                    Err(None) => return Poll::Pending,
                    Err(Some(due)) => alarm.set(due),
                }
                if !alarm.poll(cx, now) {
                    return Poll::Pending;
                }
            }
        });
        crowd.wake_later(due.await);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_reader_is_woken_once_by_a_task_for_each_worker_at_most() {
        let woken = Arc::new(Woken::default());
        let tasks = Tasks::default();
        let crowd = Crowd::new(tasks.clone());
        let waker = Waker::from(Arc::clone(&woken));
        for readers in [1, WAKE_AT_ONCE, 10, 10 * WAKE_PART, WAKE_PART] {
            crowd.wake(WakeList::from(vec![waker.clone(); readers]));
            let queue = crowd.queue();
            let wanted = queue.waiting.div_ceil(WAKE_PART).min(2);
            assert!((wanted..=2).contains(&queue.running), "{}", queue.running);
        }
        let all = 1 + WAKE_AT_ONCE + 10 + 11 * WAKE_PART;
        while woken.0.load(Ordering::SeqCst) < all || crowd.queue().running > 0 {
            yield_now().await;
        }
        assert_eq!(woken.0.load(Ordering::SeqCst), all);
        let queue = crowd.queue();
        assert_eq!((queue.waiting, queue.lists.len()), (0, 0));
    }

    #[test]
    fn crowds_of_the_same_size_are_woken_in_order_and_small_ones_need_not_wait() {
        let mut queue = Queue::default();
        let add = |queue: &mut Queue, woken: &Arc<Woken>, parts: usize| {
            let waker = Waker::from(Arc::clone(woken));
            let list = WakeList::from(vec![waker; parts * WAKE_AT_ONCE]);
            queue.waiting += list.len();
            queue.lists.push_back(list);
        };
        let crowds: [Arc<Woken>; 4] = Default::default();
        for woken in &crowds[..3] {
            add(&mut queue, woken, 5);
        }
        let turn = |queue: &mut Queue| {
            queue.next().wake();
            crowds
                .each_ref()
                .map(|crowd| crowd.0.load(Ordering::SeqCst) / WAKE_AT_ONCE)
        };
        let turns: Vec<[usize; 4]> = (0..7).map(|_| turn(&mut queue)).collect();
        assert_eq!(turns[4], [5, 0, 0, 0]);
        assert_eq!(turns[6], [5, 2, 0, 0]);
        add(&mut queue, &crowds[3], 1);
        assert_eq!(turn(&mut queue), [5, 2, 0, 1]);
        assert_eq!(
            turn(&mut queue),
            [5, 3, 0, 1],
            "the oldest is not forgotten"
        );
        let turns = (0..7).map(|_| turn(&mut queue)).last();
        assert_eq!(turns, Some([5, 5, 5, 1]));
        assert!(queue.next().is_empty() && queue.waiting == 0);
    }

    /// Otherwise, each of many channels with hardly more readers than are woken at once would cost a turn.
    #[test]
    fn small_crowds_are_woken_together() {
        let mut queue = Queue::default();
        for readers in [3, 1, 2, WAKE_AT_ONCE] {
            queue.waiting += readers;
            let list = vec![Waker::noop().clone(); readers];
            queue.lists.push_back(WakeList::from(list));
        }
        assert_eq!(queue.next().len(), WAKE_AT_ONCE);
        assert_eq!(queue.next().len(), 6);
    }

    #[tokio::test]
    async fn a_reader_that_panics_keeps_no_other_asleep() {
        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("as it is to");
            }
        }
        let (woken, tasks) = (Arc::new(Woken::default()), Tasks::default());
        let crowd = Crowd::new(tasks.clone());
        let waker = Waker::from(Arc::clone(&woken));
        let mut list = vec![waker; 3 * WAKE_AT_ONCE];
        list[WAKE_AT_ONCE] = Waker::from(Arc::new(Panics));
        crowd.wake(WakeList::from(list));
        while crowd.queue().running > 0 {
            yield_now().await;
        }
        assert_eq!(woken.0.load(Ordering::SeqCst), 3 * WAKE_AT_ONCE - 1);
        assert!(tasks.panics().contains(&(NAME.into(), 1)));
    }
}
