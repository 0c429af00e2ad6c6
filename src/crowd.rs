//! Wakes crowds of readers, a few at a time, so that readers of other channels need not wait for all of them.
//!
//! All crowds wait in one queue. A reader of a busy channel is therefore woken again only after the rest of its crowd, and then
//! receives everything that has happened meanwhile with one write. If each event's crowd were woken on its own, each reader would
//! be woken for each event.

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

/// Each reader is in the queue once at most: until it is woken, it does not wait again.
#[derive(Default)]
struct Queue {
    lists: VecDeque<WakeList>,
    /// The number of tasks that wake them.
    running: usize,
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

    /// Wakes the first readers at once, and has tasks wake the others.
    pub fn wake(&self, wake_list: WakeList) {
        let Some(wake_list) = wake_list.wake_some(WAKE_AT_ONCE) else {
            return;
        };
        let mut queue = self.queue();
        queue.lists.push_back(wake_list);
        let waiting: usize = queue.lists.iter().map(WakeList::len).sum();
        // A task for each processor, if there are so many readers.
        let wanted = waiting.div_ceil(WAKE_PART);
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
            self.tasks.guard(&self.name, || part.wake());
            yield_now().await;
        }
    }

    /// Takes the next readers. `None` if there are none, so that the task ends.
    fn next(&self) -> Option<WakeList> {
        let mut queue = self.queue();
        let Some(first) = queue.lists.front_mut() else {
            queue.running -= 1;
            return None;
        };
        let part = first.take(WAKE_AT_ONCE);
        if first.is_empty() {
            queue.lists.pop_front();
        }
        Some(part)
    }
}

/// Writes ticks to the sinks that are lent and have held them back, when they are due. Never returns.
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
        crowd.wake(due.await);
        // What is written counts towards the budget of this task's turn.
        yield_now().await;
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
            assert!(crowd.queue().running <= 2);
        }
        let all = 1 + WAKE_AT_ONCE + 10 + 11 * WAKE_PART;
        while woken.0.load(Ordering::SeqCst) < all || crowd.queue().running > 0 {
            yield_now().await;
        }
        assert_eq!(woken.0.load(Ordering::SeqCst), all);
        assert!(crowd.queue().lists.is_empty());
    }

    /// Otherwise it would be woken for each event, although the events could be written together.
    #[tokio::test]
    async fn a_crowd_waits_until_the_one_before_it_is_awake() {
        let (first, second) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let crowd = Crowd::new(Tasks::default());
        for woken in [&first, &second] {
            let waker = Waker::from(Arc::clone(woken));
            crowd.wake(WakeList::from(vec![waker; 10 * WAKE_AT_ONCE]));
        }
        let count = |woken: &Woken| woken.0.load(Ordering::SeqCst);
        while count(&second) == WAKE_AT_ONCE {
            assert!(count(&first) >= WAKE_AT_ONCE);
            yield_now().await;
        }
        assert_eq!(count(&first), 10 * WAKE_AT_ONCE);
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
        assert!(woken.0.load(Ordering::SeqCst) >= 2 * WAKE_AT_ONCE);
        assert!(tasks.panics().contains(&(NAME.into(), 1)));
    }
}
