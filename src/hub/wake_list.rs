//! The readers that an offered event is to wake.
//!
//! Waking a reader mostly means to write to its socket. Half of the threads begin at either end: if two of them share the crowd of a busy
//! channel, each wakes mostly the readers that it woke the last time, whose state is still in the cache of its processor.

use std::cell::Cell;
use std::collections::{VecDeque, vec_deque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

/// Waiting readers with new events, to be woken. Waking a reader whose sink is lent means to write its events.
#[derive(Default)]
#[must_use = "the readers sleep until they are woken"]
pub struct WakeList(VecDeque<Waker>);

/// An end of a list.
#[derive(Clone, Copy)]
enum End {
    Front,
    Back,
}

/// The number of threads that have been assigned an end. It affects only the speed, so it is none of those in [`crate::sync`].
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static END: Cell<Option<End>> = const { Cell::new(None) };
}

impl End {
    /// Returns the end at which this thread begins. Threads are assigned one in turn, the first time that they ask.
    fn of_this_thread() -> End {
        END.get().unwrap_or_else(|| {
            let end = match THREADS.fetch_add(1, Ordering::Relaxed) % 2 {
                0 => End::Back,
                _ => End::Front,
            };
            END.set(Some(end));
            end
        })
    }
}

impl From<Vec<Waker>> for WakeList {
    fn from(wakers: Vec<Waker>) -> WakeList {
        WakeList(wakers.into())
    }
}

impl Extend<Waker> for WakeList {
    fn extend<I: IntoIterator<Item = Waker>>(&mut self, wakers: I) {
        self.0.extend(wakers);
    }
}

impl IntoIterator for WakeList {
    type Item = Waker;
    type IntoIter = vec_deque::IntoIter<Waker>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl WakeList {
    /// Wakes all readers.
    pub fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }

    /// Returns the number of readers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the readers of another list.
    pub fn append(&mut self, mut other: WakeList) {
        self.0.append(&mut other.0);
    }

    /// Takes up to this many readers out of the list, from the end at which this thread begins.
    pub fn take(&mut self, most: usize) -> WakeList {
        if self.len() <= most {
            return std::mem::take(self);
        }
        self.take_from(End::of_this_thread(), most)
    }

    /// Takes this many readers out of the list. There must be as many.
    fn take_from(&mut self, end: End, count: usize) -> WakeList {
        WakeList(match end {
            End::Front => self.0.drain(..count).collect(),
            End::Back => self.0.split_off(self.0.len() - count),
        })
    }

    /// Wakes up to `at_once` readers. Returns the others, if there are any.
    pub fn wake_some(mut self, at_once: usize) -> Option<WakeList> {
        self.take(at_once).wake();
        (!self.is_empty()).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    struct Reader;

    impl Wake for Reader {
        fn wake(self: Arc<Self>) {}
    }

    /// Takes readers in this many parts, each in a thread that begins at the end given, and returns which of ten they were.
    fn taken(parts: &[(End, usize)]) -> Vec<Vec<usize>> {
        let readers: Vec<Waker> = (0..10).map(|_| Arc::new(Reader).into()).collect();
        let mut list = WakeList::from(readers.clone());
        let index = |waker: Waker| readers.iter().position(|reader| reader.will_wake(&waker));
        let part = |(end, most): &(End, usize)| {
            let (end, most, mut rest) = (*end, *most, std::mem::take(&mut list));
            let thread = std::thread::spawn(move || {
                END.set(Some(end));
                (rest.take(most), rest)
            });
            let (part, rest) = thread.join().unwrap();
            list = rest;
            part.into_iter().filter_map(index).collect()
        };
        parts.iter().map(part).collect()
    }

    #[test]
    fn threads_that_begin_at_different_ends_take_all_readers_in_their_order() {
        let parts = [
            (End::Front, 3),
            (End::Back, 4),
            (End::Front, 2),
            (End::Back, 9),
        ];
        let expected: [Vec<usize>; 4] = [vec![0, 1, 2], vec![6, 7, 8, 9], vec![3, 4], vec![5]];
        assert_eq!(taken(&parts), expected);
    }

    /// Otherwise, the readers of a thread would be others each time, or those of all threads the same.
    #[test]
    fn a_thread_keeps_its_end_and_others_have_the_other_one() {
        let is_front = || matches!(End::of_this_thread(), End::Front);
        let first = is_front();
        assert_eq!(is_front(), first);
        let mut others = (0..64).map(|_| std::thread::spawn(is_front).join().unwrap());
        assert!(others.any(|other| other != first));
    }
}
