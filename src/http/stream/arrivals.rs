//! The rate limit on a WebSocket client's messages.
//!
//! A message counts when it is read, not when it is answered, because the answer to an earlier message may take long. While
//! enough messages wait, the socket is not read, and nobody knows when the messages in its buffer arrived. Once reading
//! resumes, the limit therefore allows as many messages as the client could have sent since reading stopped, until the
//! socket's buffer is empty again.

use tokio::time::Instant;

use crate::throttle::{Bucket, RateLimit};

/// Counts the messages of one client.
pub(super) struct Arrivals {
    /// The number of messages per second that are accepted. The rate limit follows from it.
    per_second: u32,
    /// None if there is no limit.
    bucket: Option<Bucket>,
    /// Whether there may be messages that have arrived but have not been read.
    is_behind: bool,
}

impl Arrivals {
    pub(super) fn new(per_second: u32) -> Arrivals {
        let pace = RateLimit::for_client_messages(per_second);
        Arrivals {
            per_second,
            bucket: pace.map(|pace| pace.bucket(Instant::now())),
            is_behind: false,
        }
    }

    /// Records that from now on messages may wait in the socket's buffer.
    pub(super) fn may_wait(&mut self) {
        if !self.is_behind {
            self.refill();
            self.is_behind = true;
        }
    }

    /// Records that every message that has arrived has been read.
    pub(super) fn are_read(&mut self) {
        self.refill();
        self.is_behind = false;
    }

    /// Counts a message that was read. Returns false if the client has exceeded the limit.
    pub(super) fn count(&mut self) -> bool {
        let Some((pace, bucket)) = self.limit() else {
            return true;
        };
        bucket.take_late(pace, 1, Instant::now()).is_ok()
    }

    fn refill(&mut self) {
        if let Some((pace, bucket)) = self.limit() {
            bucket.look(pace, Instant::now());
        }
    }

    fn limit(&mut self) -> Option<(RateLimit, &mut Bucket)> {
        RateLimit::for_client_messages(self.per_second).zip(self.bucket.as_mut())
    }
}
