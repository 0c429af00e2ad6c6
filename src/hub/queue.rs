//! A queue that allocates nothing for a single item, and keeps no buffer once it is empty.
//!
//! Most queues of a connection hold at most one item at a time, and none while the connection is idle.

use std::collections::{VecDeque, vec_deque};
use std::iter::{Chain, Flatten};
use std::option;

/// See the module documentation.
#[derive(Debug)]
pub struct Queue<T> {
    /// `None` only if the queue is empty.
    first: Option<T>,
    #[expect(
        clippy::box_collection,
        reason = "a connection has several queues, and is idle most of the time"
    )]
    rest: Option<Box<VecDeque<T>>>,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue {
            first: None,
            rest: None,
        }
    }
}

impl<T> Queue<T> {
    /// Returns the number of items.
    pub fn len(&self) -> usize {
        let rest = self.rest.as_ref().map_or(0, |rest| rest.len());
        usize::from(self.first.is_some()) + rest
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Returns the oldest item.
    pub fn front(&self) -> Option<&T> {
        self.first.as_ref()
    }

    /// Returns the newest item.
    pub fn back_mut(&mut self) -> Option<&mut T> {
        let last = self.rest.as_mut().and_then(|rest| rest.back_mut());
        last.or(self.first.as_mut())
    }

    /// Appends an item.
    pub fn push_back(&mut self, item: T) {
        match &self.first {
            None => self.first = Some(item),
            Some(_) => self.rest.get_or_insert_default().push_back(item),
        }
    }

    /// Removes the oldest item.
    pub fn pop_front(&mut self) -> Option<T> {
        let first = self.first.take()?;
        if let Some(rest) = &mut self.rest {
            self.first = rest.pop_front();
            if self.first.is_none() {
                self.rest = None;
            }
        }
        Some(first)
    }

    /// Removes all items.
    pub fn clear(&mut self) {
        *self = Queue::default();
    }

    /// Keeps only the items that are `wanted`.
    pub fn retain(&mut self, mut wanted: impl FnMut(&T) -> bool) {
        if let Some(rest) = &mut self.rest {
            rest.retain(&mut wanted);
        }
        if self.first.as_ref().is_some_and(|first| !wanted(first)) {
            self.pop_front();
        }
    }

    /// Returns the items, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let rest = self.rest.iter().flat_map(|rest| rest.iter());
        self.first.iter().chain(rest)
    }

    /// Returns the items, oldest first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let rest = self.rest.iter_mut().flat_map(|rest| rest.iter_mut());
        self.first.iter_mut().chain(rest)
    }
}

impl<T> IntoIterator for Queue<T> {
    type Item = T;
    type IntoIter = Chain<option::IntoIter<T>, Flatten<option::IntoIter<vec_deque::IntoIter<T>>>>;

    fn into_iter(self) -> Self::IntoIter {
        let rest = self.rest.map(|rest| rest.into_iter());
        self.first.into_iter().chain(rest.into_iter().flatten())
    }
}

impl<T> FromIterator<T> for Queue<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Queue<T> {
        let mut items = items.into_iter();
        let first = items.next();
        let rest: VecDeque<T> = items.collect();
        Queue {
            first,
            rest: (!rest.is_empty()).then(|| Box::new(rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_leave_in_the_order_in_which_they_came() {
        let mut queue = Queue::default();
        let mut left = Vec::new();
        for number in 0..10 {
            queue.push_back(number);
            if number % 3 == 0 {
                left.extend(queue.pop_front());
            }
        }
        assert_eq!(queue.len(), 6);
        assert_eq!(
            queue.iter().copied().collect::<Vec<_>>(),
            [4, 5, 6, 7, 8, 9]
        );
        queue.retain(|number| number % 2 == 1);
        assert_eq!(queue.front(), Some(&5));
        assert_eq!(queue.back_mut(), Some(&mut 9));
        left.extend(queue);
        assert_eq!(left, [0, 1, 2, 3, 5, 7, 9]);
    }

    #[test]
    fn an_item_that_is_dropped_from_the_front_is_replaced_by_the_next_one() {
        let mut queue: Queue<u8> = (1..=3).collect();
        queue.retain(|number| *number != 1);
        assert_eq!((queue.front(), queue.len()), (Some(&2), 2));
        queue.retain(|_| false);
        assert!(queue.is_empty() && queue.pop_front().is_none());
    }

    #[test]
    fn an_empty_queue_and_one_item_need_no_buffer() {
        let mut queue = Queue::default();
        queue.push_back(1);
        assert!(queue.rest.is_none());
        queue.push_back(2);
        queue.pop_front();
        assert!(queue.rest.is_some());
        queue.pop_front();
        assert!(queue.rest.is_none());
    }
}
