//! How fast somebody may go on: token buckets. A bucket is refilled all the time and holds a burst; who finds too
//! little in it is told how long to wait, and has taken nothing.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::config::THROTTLED_MAX;
use crate::id::SchoolId;

/// How fast, and how much at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    per_second: f64,
    burst: f64,
}

/// What is left of a pace.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    level: f64,
    at: Instant,
}

/// Somebody: a user of a school.
type Who = (SchoolId, Arc<str>);

/// A bucket for everybody.
pub struct Throttle {
    /// `None` if there is no limit.
    pace: Option<Pace>,
    /// Of the latest users; a user who is forgotten has a full bucket again.
    buckets: Mutex<LruCache<Who, Bucket>>,
}

impl Pace {
    /// So many a second, and at most so many at once. None if there is no limit.
    pub fn new(per_second: u32, burst: u32) -> Option<Pace> {
        (per_second > 0).then(|| Pace {
            per_second: per_second.into(),
            burst: burst.max(per_second).into(),
        })
    }

    /// A full bucket.
    pub fn bucket(self, now: Instant) -> Bucket {
        Bucket {
            level: self.burst,
            at: now,
        }
    }
}

impl Bucket {
    /// Takes `count` out, or says how long it takes until they are there.
    pub fn take(&mut self, pace: Pace, count: u32, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.at);
        self.level = (self.level + since.as_secs_f64() * pace.per_second).min(pace.burst);
        self.at = now;
        let missing = f64::from(count) - self.level;
        if missing > 0.0 {
            return Err(Duration::from_secs_f64(missing / pace.per_second));
        }
        self.level -= f64::from(count);
        Ok(())
    }
}

impl Throttle {
    /// Everybody at this pace.
    pub fn new(pace: Option<Pace>) -> Throttle {
        let room = NonZeroUsize::new(THROTTLED_MAX).expect("there is room");
        Throttle {
            pace,
            buckets: Mutex::new(LruCache::new(room)),
        }
    }

    /// Takes `count` from a user's bucket, or returns how long to wait. A bucket never holds more than its size.
    pub fn take(
        &self,
        school: SchoolId,
        user: &str,
        count: u32,
        now: Instant,
    ) -> Result<(), Duration> {
        self.take_all(&[(school, count)], user, now)
    }

    /// The same in several schools, each of which is named once: from every bucket, or from none.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_a_burst_and_is_refilled() {
        let start = Instant::now();
        let pace = Pace::new(10, 20).unwrap();
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
    fn everybody_has_a_bucket_of_his_own_and_no_pace_is_no_limit() {
        let now = Instant::now();
        let throttle = Throttle::new(Pace::new(1, 1));
        let school = |number: i64| number.try_into().unwrap();
        assert!(throttle.take(school(1), "ada", 1, now).is_ok());
        assert!(throttle.take(school(1), "ada", 1, now).is_err());
        assert!(throttle.take(school(1), "bob", 1, now).is_ok());
        assert!(throttle.take(school(2), "ada", 1, now).is_ok());
        let both = [(school(3), 1), (school(1), 1)];
        assert!(throttle.take_all(&both, "ada", now).is_err());
        let of_third = throttle.take(school(3), "ada", 1, now);
        assert!(of_third.is_ok(), "all or nothing");
        assert_eq!(Pace::new(0, 7), None);
        let open = Throttle::new(None);
        assert!((0..1_000).all(|_| open.take(school(1), "ada", u32::MAX, now).is_ok()));
    }
}
