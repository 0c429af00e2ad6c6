//! The pace of backlogs: how many bytes of events per second schools with large batches get together while several schools
//! publish.
//!
//! Whatever the turns, batches that keep the processors and the disk busy make the reports of others wait for both. So after
//! the turn of a backlogged school, the next one is due only when its bytes are paid for at this rate. A school that
//! publishes alone is not slowed down.
//!
//! A school that sends batches which fit into its turns never has a backlog. It is *heavy*, and treated as if it had one, while
//! it has taken more than its share of the rate, and [`HEAVY_AFTER`] more.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::config::{HEAVY_AFTER, SCHOOL_CACHE, SCHOOLS_SHARE_FOR, TURNS_PER_GROUP};
use crate::id::SchoolId;

/// See the [module-level documentation](self). One for all writers of a store.
pub struct Pace {
    /// 0 means no limit.
    bytes_per_sec: u32,
    state: Mutex<State>,
}

struct State {
    /// The school whose commands were carried out last.
    last: Option<SchoolId>,
    /// When commands of another school than the one before were last carried out.
    changed: Option<Instant>,
    /// When the last turns of backlogged schools are paid for.
    due: Option<Instant>,
    /// When what each of the most recent schools has taken is paid for at its share of the rate.
    paid: LruCache<SchoolId, Instant>,
}

impl Pace {
    /// Creates a pace of this many bytes of events per second; 0 means no limit.
    pub fn new(bytes_per_sec: u32) -> Pace {
        Pace {
            bytes_per_sec,
            state: Mutex::new(State {
                last: None,
                changed: None,
                due: None,
                paid: LruCache::new(NonZeroUsize::new(SCHOOL_CACHE).expect("it has room")),
            }),
        }
    }

    /// Returns whether there is a limit and several schools publish: several wait, or had turns lately.
    pub(super) fn applies(&self, now: Instant, several_wait: bool) -> bool {
        self.bytes_per_sec > 0 && (several_wait || self.state().is_shared(now))
    }

    /// Returns when the next turn of a backlogged school is due. Returns `None` if there is nothing to wait for.
    pub(super) fn due(&self, now: Instant, several_wait: bool) -> Option<Instant> {
        let due = self.state().due?;
        (now < due && self.applies(now, several_wait)).then_some(due)
    }

    /// Returns whether a school has taken more than its share lately.
    pub(super) fn is_heavy(&self, school: SchoolId, now: Instant) -> bool {
        let state = self.state();
        let paid = state.paid.peek(&school);
        paid.is_some_and(|paid| *paid > now + HEAVY_AFTER)
    }

    /// Records that commands of a school, which produced this many bytes, were carried out.
    pub(super) fn served(&self, school: SchoolId, bytes: usize, now: Instant) {
        let mut state = self.state();
        if state.last.is_some_and(|last| last != school) {
            state.changed = Some(now);
        }
        state.last = Some(school);
        if let Some(costs) = self.costs(bytes) {
            let paid = state.paid.get_or_insert_mut(school, || now);
            *paid = (*paid).max(now) + costs * TURNS_PER_GROUP as u32;
        }
    }

    /// Records the bytes of the turns of backlogged schools in a commit.
    pub(super) fn charge(&self, bytes: usize, now: Instant) {
        if let Some(costs) = self.costs(bytes) {
            let mut state = self.state();
            state.due = Some(state.due.map_or(now, |due| due.max(now)) + costs);
        }
    }

    /// Returns how long this many bytes take at the rate. Returns `None` if there is no limit.
    fn costs(&self, bytes: usize) -> Option<Duration> {
        let rate = f64::from(self.bytes_per_sec);
        (rate > 0.0).then(|| Duration::from_secs_f64(bytes as f64 / rate))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_shared(&self, now: Instant) -> bool {
        self.changed
            .is_some_and(|changed| now < changed + SCHOOLS_SHARE_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn school(number: i64) -> SchoolId {
        number.try_into().unwrap()
    }

    #[test]
    fn backlogs_have_a_rate_while_several_schools_publish_and_none_otherwise() {
        let start = Instant::now();
        let pace = Pace::new(1_000);
        pace.served(school(1), 2_000, start);
        pace.charge(2_000, start);
        assert_eq!(pace.due(start, false), None, "a school alone");
        pace.served(school(2), 0, start);
        let paid = start + Duration::from_secs(2);
        let soon = start + SCHOOLS_SHARE_FOR - Duration::from_millis(1);
        assert_eq!(pace.due(soon, false), Some(paid));
        let later = start + SCHOOLS_SHARE_FOR;
        assert_eq!(pace.due(later, false), None, "alone again");
        assert_eq!(pace.due(later, true), Some(paid), "another one waits");
        pace.served(school(1), 500, soon);
        pace.charge(500, soon);
        let then = paid + Duration::from_millis(500);
        assert_eq!(pace.due(soon, false), Some(then));
        pace.served(school(2), 0, then);
        assert_eq!(pace.due(then, true), None, "paid");
    }

    #[test]
    fn a_school_that_takes_more_than_its_share_is_heavy_until_it_is_paid_for() {
        let start = Instant::now();
        let pace = Pace::new(1_000);
        let share = 1_000 / TURNS_PER_GROUP;
        for second in 0..10 {
            let now = start + Duration::from_secs(second);
            pace.served(school(1), 3 * share, now);
            pace.served(school(2), share / 100, now);
            assert!(pace.is_heavy(school(1), now));
            assert!(!pace.is_heavy(school(2), now));
        }
        assert!(pace.is_heavy(school(1), start + Duration::from_secs(29)));
        assert!(!pace.is_heavy(school(1), start + Duration::from_secs(30)));
        assert!(!pace.is_heavy(school(3), start));
    }

    #[test]
    fn a_rate_of_0_is_no_limit() {
        let now = Instant::now();
        let pace = Pace::new(0);
        for number in [1, 2] {
            pace.served(school(number), usize::MAX, now);
        }
        pace.charge(usize::MAX, now);
        assert_eq!(pace.due(now, true), None);
        assert!(!pace.applies(now, true) && !pace.is_heavy(school(1), now));
    }
}
