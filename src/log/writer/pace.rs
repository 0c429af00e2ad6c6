//! The pace of batches: how many bytes of events per second schools with batches get together while several schools publish.
//!
//! Whatever the turns, batches that keep the processors and the disk busy make the reports of others wait for both. So after
//! the turn of a school with a batch, the next one is due only when its bytes are paid for at this rate. A school that
//! publishes alone is not slowed down, and what it takes then delays nobody later.
//!
//! A school can also send batches that fit into its turns. It is *heavy*, and treated as if it had a larger one, while it has
//! taken [`HEAVY_BYTES`] more than a share of the rate, for at most [`SCHOOLS_SHARE_FOR`] after its last turn.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::config::{HEAVY_BYTES, SCHOOL_CACHE, SCHOOLS_SHARE_FOR, TURNS_PER_GROUP};
use crate::id::SchoolId;

/// How many bytes of events per second schools with batches get together while several schools publish. One for all writers of
/// a store.
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
    /// When the last turns of schools with a batch are paid for.
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

    /// Returns when the next turn of a school with a batch is due. Returns `None` if there is nothing to wait for.
    pub(super) fn due(&self, now: Instant, several_wait: bool) -> Option<Instant> {
        let state = self.state();
        let mut due = state.due?;
        if !several_wait {
            due = due.min(state.changed? + SCHOOLS_SHARE_FOR);
        }
        (now < due).then_some(due)
    }

    /// Returns whether a school has taken more than its share lately.
    pub(super) fn is_heavy(&self, school: SchoolId, now: Instant) -> bool {
        let state = self.state();
        let paid = state.paid.peek(&school);
        paid.is_some_and(|paid| *paid > now + self.allowance())
    }

    /// Records that commands of a school, which produced this many bytes, were carried out.
    pub(super) fn served(&self, school: SchoolId, bytes: usize, now: Instant) {
        let mut state = self.state();
        if state.last.is_some_and(|last| last != school) {
            state.changed = Some(now);
        }
        state.last = Some(school);
        if let Some(costs) = self.costs_of_share(bytes) {
            let paid = state.paid.get_or_insert_mut(school, || now);
            let latest = now + self.allowance() + SCHOOLS_SHARE_FOR;
            *paid = ((*paid).max(now) + costs).min(latest);
        }
    }

    /// Records the bytes of the turns of schools with a batch in a commit.
    pub(super) fn charge(&self, bytes: usize, now: Instant) {
        if let Some(costs) = self.costs(bytes) {
            let mut state = self.state();
            state.due = Some(state.due.map_or(now, |due| due.max(now)) + costs);
        }
    }

    /// Returns how long [`HEAVY_BYTES`] take at a share of the rate.
    fn allowance(&self) -> Duration {
        self.costs_of_share(HEAVY_BYTES).unwrap_or_default()
    }

    /// Returns how long this many bytes take at a school's share of the rate.
    fn costs_of_share(&self, bytes: usize) -> Option<Duration> {
        self.costs(bytes.saturating_mul(TURNS_PER_GROUP))
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
    fn batches_have_a_rate_while_several_schools_publish_and_none_otherwise() {
        let start = Instant::now();
        let pace = Pace::new(1_000);
        pace.served(school(1), 2_000, start);
        assert!(!pace.applies(start, false), "a school alone");
        pace.charge(2_000, start);
        assert_eq!(pace.due(start, false), None);
        pace.served(school(2), 0, start);
        let paid = start + Duration::from_secs(2);
        let soon = start + SCHOOLS_SHARE_FOR - Duration::from_millis(1);
        let alone = start + SCHOOLS_SHARE_FOR;
        assert!(pace.applies(soon, false) && !pace.applies(alone, false));
        assert_eq!(pace.due(soon, true), Some(paid), "another one waits");
        assert_eq!(
            pace.due(soon, false),
            Some(alone),
            "it may be alone by then"
        );
        assert_eq!(pace.due(alone, false), None);
        pace.charge(500, soon);
        let then = paid + Duration::from_millis(500);
        assert_eq!(pace.due(soon, true), Some(then));
        assert_eq!(pace.due(then, true), None, "paid");
    }

    #[test]
    fn a_school_that_takes_more_than_its_share_is_heavy_for_a_while() {
        let start = Instant::now();
        let rate = 10 * HEAVY_BYTES;
        let pace = Pace::new(rate.try_into().unwrap());
        let share = rate / TURNS_PER_GROUP;
        let mut now = start;
        for second in 0..100 {
            now = start + Duration::from_secs(second);
            pace.served(school(1), 2 * share, now);
            pace.served(school(2), share / 100, now);
            assert!(pace.is_heavy(school(1), now));
            assert!(!pace.is_heavy(school(2), now));
        }
        let later = now + SCHOOLS_SHARE_FOR;
        assert!(pace.is_heavy(school(1), later - Duration::from_millis(1)));
        assert!(!pace.is_heavy(school(1), later), "however much it was");
        assert!(!pace.is_heavy(school(3), now));
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
