//! Rate limits: token buckets. A bucket is refilled continuously and holds a burst. A request for more tokens than it
//! holds takes nothing and returns how long to wait. If the amount is known only afterwards, the bucket goes into debt,
//! and the next caller waits until the debt is paid.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::config::{PING_ADDRESS_BURST, PING_BURST, PINGS_PER_ADDRESS, Settings, THROTTLED_MAX};
use crate::id::SchoolId;

/// A rate limit: a rate and a burst size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    per_second: f64,
    burst: f64,
}

/// The tokens that are left under a rate limit.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    level: f64,
    at: Instant,
}

/// A user of a school.
type Who = (SchoolId, Arc<str>);

/// A bucket for each school, which is charged afterwards.
pub struct Debts {
    /// `None` means no limit.
    pace: Option<RateLimit>,
    /// Buckets of the most recent schools. A school that is evicted owes nothing.
    buckets: Mutex<LruCache<SchoolId, Bucket>>,
}

/// A bucket for each user.
pub struct Throttle {
    /// `None` means no limit.
    pace: Option<RateLimit>,
    /// Buckets of the most recent users. A user who is evicted has a full bucket again.
    buckets: Mutex<LruCache<Who, Bucket>>,
}

impl RateLimit {
    /// Creates a limit of this rate and burst size. Returns `None` if the rate is 0, which means no limit.
    pub fn new(per_second: u32, burst: u32) -> Option<RateLimit> {
        (per_second > 0).then(|| RateLimit {
            per_second: per_second.into(),
            burst: burst.max(per_second).into(),
        })
    }

    /// Returns the rate limit for publishing, for each user of a school.
    pub fn for_publishing(settings: &Settings) -> Option<RateLimit> {
        let batch = u32::try_from(settings.batch_limit_commands.get()).unwrap_or(u32::MAX);
        RateLimit::new(settings.publishes_per_sec, batch)
    }

    /// Returns the rate limit for pings, for each key.
    pub fn for_pings(settings: &Settings) -> Option<RateLimit> {
        RateLimit::new(settings.pings_per_sec, PING_BURST)
    }

    /// Returns the rate limit for pings, for each address in a school.
    pub fn for_pings_of_address() -> Option<RateLimit> {
        RateLimit::new(PINGS_PER_ADDRESS, PING_ADDRESS_BURST)
    }

    /// Returns the rate limit for the bytes of events that a school produces.
    pub fn for_event_bytes(settings: &Settings) -> Option<RateLimit> {
        RateLimit::new(settings.event_bytes_per_sec, settings.event_bytes_per_sec)
    }

    /// Returns the rate limit for a client's messages.
    pub fn for_client_messages(per_second: u32) -> Option<RateLimit> {
        RateLimit::new(per_second, per_second.saturating_mul(2))
    }

    /// Returns a full bucket.
    pub fn bucket(self, now: Instant) -> Bucket {
        Bucket {
            level: self.burst,
            at: now,
        }
    }
}

impl Bucket {
    /// Takes `count` tokens, or returns how long it takes until they are available.
    pub fn take(&mut self, pace: RateLimit, count: u32, now: Instant) -> Result<(), Duration> {
        self.refill(pace, now);
        let missing = f64::from(count) - self.level;
        if missing > 0.0 {
            return Err(Duration::from_secs_f64(missing / pace.per_second));
        }
        self.level -= f64::from(count);
        Ok(())
    }

    /// Takes `count` tokens for something that may have arrived at any time since the bucket was last updated. All
    /// tokens since then count, even those beyond the bucket's size.
    pub fn take_late(&mut self, pace: RateLimit, count: u32, now: Instant) -> Result<(), Duration> {
        let whole = RateLimit {
            burst: f64::INFINITY,
            ..pace
        };
        self.take(whole, count, now)
    }

    /// Updates the bucket and caps it at its size.
    pub fn look(&mut self, pace: RateLimit, now: Instant) {
        self.refill(pace, now);
    }

    /// Takes `count` tokens, even if they are not available.
    fn charge(&mut self, pace: RateLimit, count: f64, now: Instant) {
        self.refill(pace, now);
        self.level -= count;
    }

    /// Returns how long it takes until the bucket is no longer empty. Returns `None` if it is not empty.
    fn debt(&mut self, pace: RateLimit, now: Instant) -> Option<Duration> {
        self.refill(pace, now);
        (self.level <= 0.0).then(|| Duration::from_secs_f64(-self.level / pace.per_second))
    }

    fn refill(&mut self, pace: RateLimit, now: Instant) {
        let since = now.saturating_duration_since(self.at);
        self.level = (self.level + since.as_secs_f64() * pace.per_second).min(pace.burst);
        self.at = now;
    }
}

impl Debts {
    /// Creates a bucket for each school with this rate limit.
    pub fn new(pace: Option<RateLimit>) -> Debts {
        let room = NonZeroUsize::new(THROTTLED_MAX).expect("there is room");
        Debts {
            pace,
            buckets: Mutex::new(LruCache::new(room)),
        }
    }

    /// Takes `count` tokens from a school's bucket.
    pub fn charge(&self, school: SchoolId, count: u64, now: Instant) {
        self.with(school, now, |bucket, pace| {
            bucket.charge(pace, count as f64, now)
        });
    }

    /// Returns how long a school has to wait until its debt is paid. Returns `None` if it has no debt.
    pub fn of(&self, school: SchoolId, now: Instant) -> Option<Duration> {
        self.with(school, now, |bucket, pace| bucket.debt(pace, now))
            .flatten()
    }

    fn with<T>(
        &self,
        school: SchoolId,
        now: Instant,
        act: impl FnOnce(&mut Bucket, RateLimit) -> T,
    ) -> Option<T> {
        let pace = self.pace?;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get_or_insert_mut(school, || pace.bucket(now));
        Some(act(bucket, pace))
    }
}

impl Throttle {
    /// Creates a bucket for each user with this rate limit.
    pub fn new(pace: Option<RateLimit>) -> Throttle {
        let room = NonZeroUsize::new(THROTTLED_MAX).expect("there is room");
        Throttle {
            pace,
            buckets: Mutex::new(LruCache::new(room)),
        }
    }

    /// Takes `count` tokens from a user's bucket, or returns how long to wait. A bucket never holds more than its size.
    pub fn take(
        &self,
        school: SchoolId,
        user: &str,
        count: u32,
        now: Instant,
    ) -> Result<(), Duration> {
        self.take_all(&[(school, count)], user, now)
    }

    /// Takes tokens in several distinct schools: from every bucket, or from none.
    pub fn take_all(
        &self,
        counts: &[(SchoolId, u32)],
        user: &str,
        now: Instant,
    ) -> Result<(), Duration> {
        let Some(pace) = self.pace else {
            return Ok(());
        };
        let user: Arc<str> = user.into();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::with_capacity(counts.len());
        for (school, count) in counts {
            let who = (*school, Arc::clone(&user));
            let mut bucket = *buckets.get_or_insert(who.clone(), || pace.bucket(now));
            bucket.take(pace, *count, now)?;
            taken.push((who, bucket));
        }
        for (who, bucket) in taken {
            buckets.put(who, bucket);
        }
        Ok(())
    }
}

/// Returns what counts as one address. The owner of an IPv6 address usually has a whole /64 network.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(network.into())
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_a_burst_and_is_refilled() {
        let start = Instant::now();
        let pace = RateLimit::new(10, 20).unwrap();
        let mut bucket = pace.bucket(start);
        assert_eq!(bucket.take(pace, 20, start), Ok(()));
        assert_eq!(bucket.take(pace, 5, start), Err(Duration::from_millis(500)));
        let later = start + Duration::from_millis(500);
        assert_eq!(bucket.take(pace, 5, later), Ok(()));
        assert_eq!(bucket.take(pace, 1, later), Err(Duration::from_millis(100)));
        let much_later = later + Duration::from_secs(60);
        assert_eq!(
            bucket.take(pace, 20, much_later),
            Ok(()),
            "no more than it holds"
        );
        assert!(bucket.take(pace, 1, much_later).is_err());
        assert!(
            bucket.take(pace, 1, start).is_err(),
            "a clock that goes back gives nothing"
        );
    }

    #[test]
    fn what_came_late_is_judged_as_if_it_had_come_in_time() {
        let start = Instant::now();
        let pace = RateLimit::new(10, 20).unwrap();
        let mut bucket = pace.bucket(start);
        let later = start + Duration::from_secs(3);
        assert_eq!(bucket.take_late(pace, 50, later), Ok(()));
        assert!(bucket.take_late(pace, 1, later).is_err());
        let much_later = later + Duration::from_secs(60);
        bucket.look(pace, much_later);
        assert!(bucket.take_late(pace, 21, much_later).is_err());
    }

    #[test]
    fn everybody_has_a_bucket_of_his_own_and_no_pace_is_no_limit() {
        let now = Instant::now();
        let throttle = Throttle::new(RateLimit::new(1, 1));
        let school = |number: i64| number.try_into().unwrap();
        assert!(throttle.take(school(1), "ada", 1, now).is_ok());
        assert!(throttle.take(school(1), "ada", 1, now).is_err());
        assert!(throttle.take(school(1), "bob", 1, now).is_ok());
        assert!(throttle.take(school(2), "ada", 1, now).is_ok());
        let both = [(school(3), 1), (school(1), 1)];
        assert!(throttle.take_all(&both, "ada", now).is_err());
        let of_third = throttle.take(school(3), "ada", 1, now);
        assert!(of_third.is_ok(), "all or nothing");
        assert_eq!(RateLimit::new(0, 7), None);
        let open = Throttle::new(None);
        assert!((0..1_000).all(|_| open.take(school(1), "ada", u32::MAX, now).is_ok()));
    }
    #[test]
    fn a_school_that_took_too_much_waits_until_it_has_paid_and_others_do_not() {
        let start = Instant::now();
        let debts = Debts::new(RateLimit::new(10, 20));
        let school = |number: i64| number.try_into().unwrap();
        assert_eq!(debts.of(school(1), start), None);
        debts.charge(school(1), 50, start);
        assert_eq!(debts.of(school(1), start), Some(Duration::from_secs(3)));
        assert_eq!(debts.of(school(2), start), None);
        let paid = start + Duration::from_secs(4);
        assert_eq!(debts.of(school(1), paid), None);
        let open = Debts::new(None);
        open.charge(school(1), u64::MAX, start);
        assert_eq!(open.of(school(1), start), None);
    }
}
