//! How fast a WebSocket client's messages arrive.
//!
//! A message is judged when it is read, not when it is answered: one before it may take long. And while nothing is read, since
//! enough waits already, messages go on arriving, at times that nobody knows. So of what is read after such a time, up to the
//! moment at which nothing is left to be read, as many may be there as the client may have sent since it began.

use tokio::time::Instant;

use crate::throttle::{Bucket, Pace};

/// See the module's page.
pub(super) struct Arrivals {
    /// None if there is no limit.
    pace: Option<(Pace, Bucket)>,
    /// There may be messages that are not read yet.
    is_behind: bool,
}

impl Arrivals {
    pub(super) fn new(pace: Option<Pace>) -> Arrivals {
        Arrivals {
            pace: pace.map(|pace| (pace, pace.bucket(Instant::now()))),
            is_behind: false,
        }
    }

    /// From now on, what arrives may be read later.
    pub(super) fn may_wait(&mut self) {
        if !self.is_behind {
            self.look();
            self.is_behind = true;
        }
    }

    /// All that has arrived is read.
    pub(super) fn are_read(&mut self) {
        self.look();
        self.is_behind = false;
    }

    /// Counts a message that was read. False if the client sends too many.
    pub(super) fn count(&mut self) -> bool {
        let Some((pace, bucket)) = &mut self.pace else {
            return true;
        };
        bucket.take_late(*pace, 1, Instant::now()).is_ok()
    }

    fn look(&mut self) {
        if let Some((pace, bucket)) = &mut self.pace {
            bucket.look(*pace, Instant::now());
        }
    }
}
