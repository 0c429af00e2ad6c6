//! Decides when a school gets its turn with a notifier.
//!
//! A school waits in the queue while it has events to read. After a failed delivery, it gets its turn when the retry is
//! due. Nothing is sent before the time that the receiver asked for (`Retry-After`). The schedule holds only ids and
//! times: the events wait in the log.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{NOTIFY_PAUSE_MAX, NOTIFY_UNCERTAIN_MAX};
use crate::id::SchoolId;

/// Which schools have events to read, and when.
#[derive(Default)]
pub(super) struct Schedule {
    /// Schools in the order of their turns, each once.
    queue: VecDeque<SchoolId>,
    queued: HashSet<SchoolId>,
    /// Schools whose new events are all unselected. Their logs are read in the next round, to move the cursor.
    moved: BTreeSet<SchoolId>,
    /// Schools with a failed delivery.
    troubles: BTreeMap<SchoolId, Trouble>,
    /// The time before which nothing is sent for any school, because the receiver asked for that.
    not_before: Option<Instant>,
}

/// A delivery to be retried.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// The event's `seq`.
    pub seq: u64,
    /// The number of attempts so far.
    pub attempts: u32,
    /// When it is retried.
    pub due: Instant,
}

/// A school with a failed delivery.
#[derive(Default)]
struct Trouble {
    /// The time before which nothing of the school is tried, because the receiver could not be reached.
    down_until: Option<Instant>,
    /// Consecutive attempts that did not reach the receiver.
    outages: u32,
    /// The retry of the event at the cursor.
    retry: Option<Retry>,
    /// When the first of the subjects that are set aside is retried.
    set_aside: Option<Instant>,
    /// Subjects set aside since the last delivery although the receiver may be at fault.
    uncertain: u32,
}

impl Trouble {
    /// Returns when there is work, even if no further events occur.
    fn due(&self) -> Option<Instant> {
        let retry = self.retry.map(|retry| retry.due);
        let first = [retry, self.set_aside].into_iter().flatten().min();
        self.down_until.or(first)
    }

    /// Whether the school can get a turn.
    fn is_ready(&self, now: Instant) -> bool {
        match (self.down_until, self.retry) {
            (None, None) => true,
            _ => self.due().is_some_and(|due| due <= now),
        }
    }
}

impl Schedule {
    /// Adds a school to the end of the queue.
    pub(super) fn push(&mut self, school: SchoolId) {
        if self.queued.insert(school) {
            self.queue.push_back(school);
        }
    }

    /// Records that a school has new events that are not selected.
    pub(super) fn moved(&mut self, school: SchoolId) {
        self.moved.insert(school);
    }

    /// Adds the schools to the queue that have new events that are not selected.
    pub(super) fn push_moved(&mut self) {
        for school in std::mem::take(&mut self.moved) {
            self.push(school);
        }
    }

    /// Returns the school whose turn it is.
    pub(super) fn pop(&mut self, now: Instant) -> Option<SchoolId> {
        if self.not_before.is_some_and(|until| now < until) {
            return None;
        }
        let is_due = |trouble: &Trouble| trouble.due().is_some_and(|due| due <= now);
        let due = self.troubles.iter().filter(|(_, trouble)| is_due(trouble));
        let due: Vec<SchoolId> = due.map(|(school, _)| *school).collect();
        due.into_iter().for_each(|school| self.push(school));
        while let Some(school) = self.queue.pop_front() {
            self.queued.remove(&school);
            let Some(trouble) = self.troubles.get_mut(&school) else {
                return Some(school);
            };
            // Otherwise it gets its turn when the retry is due.
            if trouble.is_ready(now) {
                trouble.down_until = None;
                return Some(school);
            }
        }
        None
    }

    /// Returns when the next turn is due if no further events occur.
    pub(super) fn due(&self) -> Option<Instant> {
        let queued = self.queue.front().and(self.not_before);
        let due = self.troubles.values().filter_map(Trouble::due);
        let first = due.chain(queued).min()?;
        Some(self.not_before.map_or(first, |until| until.max(first)))
    }

    /// Whether the event at a school's cursor can be tried. If so, its retry is cleared.
    pub(super) fn resumes(&mut self, school: SchoolId, now: Instant) -> bool {
        let Some(trouble) = self.troubles.get_mut(&school) else {
            return true;
        };
        let waits = trouble.retry.is_some_and(|retry| now < retry.due);
        if !waits {
            trouble.retry = None;
        }
        !waits
    }

    /// Schedules a retry of the event at a school's cursor.
    pub(super) fn retries(&mut self, school: SchoolId, retry: Retry) {
        self.trouble(school).retry = Some(retry);
    }

    /// Returns the retry at a school's cursor.
    pub(super) fn retry(&self, school: SchoolId) -> Option<Retry> {
        let trouble = self.troubles.get(&school)?;
        let retry = trouble.retry?;
        let due = self.not_before.map_or(retry.due, |at| at.max(retry.due));
        Some(Retry { due, ..retry })
    }

    /// Records that the receiver could not be reached. Returns when it is retried, which is not before the time that it
    /// `asked` for.
    pub(super) fn is_down(
        &mut self,
        school: SchoolId,
        first: Duration,
        asked: Option<Duration>,
    ) -> Instant {
        let now = Instant::now();
        let trouble = self.trouble(school);
        trouble.outages = trouble.outages.saturating_add(1);
        let wait = pause(first, trouble.outages).max(asked.unwrap_or_default());
        trouble.down_until = Some(now + wait);
        now + wait
    }

    /// Ensures that nothing is tried before this time.
    pub(super) fn wait_until(&mut self, at: Instant) {
        self.not_before = Some(self.not_before.map_or(at, |known| known.max(at)));
    }

    /// Records that the receiver accepted an event of the school, so that it works.
    pub(super) fn delivered(&mut self, school: SchoolId) {
        self.answered(school);
        if let Some(trouble) = self.troubles.get_mut(&school) {
            trouble.uncertain = 0;
        }
    }

    /// Records that the receiver has answered, or that the wait for it is over.
    pub(super) fn answered(&mut self, school: SchoolId) {
        if let Some(trouble) = self.troubles.get_mut(&school) {
            (trouble.outages, trouble.down_until) = (0, None);
        }
    }

    /// Whether so many consecutive events have failed that the receiver counts as down.
    pub(super) fn counts_as_down(&self, school: SchoolId) -> bool {
        let trouble = self.troubles.get(&school);
        trouble.is_some_and(|trouble| trouble.uncertain >= NOTIFY_UNCERTAIN_MAX)
    }

    /// Records that a subject is set aside although the receiver may be at fault.
    pub(super) fn count_uncertain(&mut self, school: SchoolId) {
        let trouble = self.trouble(school);
        trouble.uncertain = trouble.uncertain.saturating_add(1);
    }

    /// Sets when the first of a school's subjects that are set aside is due. Called after each turn of the school.
    pub(super) fn set_aside(&mut self, school: SchoolId, due: Option<Instant>) {
        if due.is_some() || self.troubles.contains_key(&school) {
            self.trouble(school).set_aside = due;
        }
        let is_over = |trouble: &Trouble| trouble.due().is_none() && trouble.uncertain == 0;
        if self.troubles.get(&school).is_some_and(is_over) {
            self.troubles.remove(&school);
        }
    }

    fn trouble(&mut self, school: SchoolId) -> &mut Trouble {
        self.troubles.entry(school).or_default()
    }
}

/// Returns the pause after this many attempts. It doubles each time, up to the maximum.
pub(super) fn pause(first: Duration, attempts: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
    first.saturating_mul(doubled).min(NOTIFY_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn school(number: i64) -> SchoolId {
        number.try_into().unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_their_bound() {
        let secs: Vec<u64> = [1, 2, 3, 9, 10, 99]
            .map(|attempts| pause(SECOND, attempts).as_secs())
            .into();
        assert_eq!(secs, [1, 2, 4, 256, 300, 300]);
    }

    #[test]
    fn nothing_is_tried_anywhere_before_the_time_that_the_receiver_asked_for() {
        let mut schedule = Schedule::default();
        schedule.push(school(2));
        let due = schedule.is_down(school(1), SECOND, Some(60 * SECOND));
        schedule.wait_until(due);
        schedule.retries(
            school(1),
            Retry {
                seq: 1,
                attempts: 1,
                due,
            },
        );
        assert_eq!(schedule.pop(due - SECOND), None);
        assert_eq!(schedule.due(), Some(due));
        assert_eq!(schedule.pop(due), Some(school(2)));
        assert_eq!(schedule.pop(due), Some(school(1)));
    }

    #[test]
    fn a_school_waits_for_its_cursor_and_has_turns_for_what_is_set_aside() {
        let mut schedule = Schedule::default();
        let now = Instant::now();
        let retry = Retry {
            seq: 9,
            attempts: 3,
            due: now + 60 * SECOND,
        };
        schedule.retries(school(1), retry);
        schedule.push(school(1));
        assert_eq!(schedule.pop(now), None, "its cursor waits");
        schedule.set_aside(school(1), Some(now + SECOND));
        assert_eq!(schedule.due(), Some(now + SECOND));
        assert_eq!(schedule.pop(now + SECOND), Some(school(1)));
        assert!(!schedule.resumes(school(1), now + SECOND));
        assert!(schedule.resumes(school(1), retry.due));
        // A receiver that is down gets no requests at all.
        let down = schedule.is_down(school(1), 120 * SECOND, None);
        assert_eq!(schedule.pop(down - SECOND), None);
        assert_eq!(schedule.pop(down), Some(school(1)));
    }

    #[test]
    fn a_school_without_trouble_leaves_memory() {
        let mut schedule = Schedule::default();
        schedule.is_down(school(1), SECOND, None);
        schedule.count_uncertain(school(1));
        schedule.set_aside(school(1), Some(Instant::now()));
        schedule.delivered(school(1));
        schedule.set_aside(school(1), None);
        assert!(schedule.troubles.is_empty());
    }
}
