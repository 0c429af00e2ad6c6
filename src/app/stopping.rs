//! Whether the server is shutting down, and how streams are closed then.

use std::sync::OnceLock;

use tokio::time::Instant;

use crate::wire::Close;

/// Records when the server began to shut down. This is never reset.
pub struct Stopping {
    since: OnceLock<Instant>,
    /// The time over which the reconnections of clients are spread.
    spread_ms: u64,
}

impl Stopping {
    /// Creates the state of a running server. At shutdown, clients are asked to reconnect within `spread_ms`.
    pub fn new(spread_ms: u64) -> Stopping {
        Stopping {
            since: OnceLock::new(),
            spread_ms,
        }
    }

    /// Records that the shutdown has begun.
    pub fn begin(&self) {
        self.since.get_or_init(Instant::now);
    }

    /// Returns when the shutdown began, if it has.
    pub fn since(&self) -> Option<Instant> {
        self.since.get().copied()
    }

    /// Returns how to close a stream: with a random delay, so that clients do not all reconnect at once.
    pub fn closing(&self) -> Close {
        let random = getrandom::u64().unwrap_or(0);
        let retry_ms = random.checked_rem(self.spread_ms).unwrap_or(0);
        Close::ShuttingDown {
            retry_ms: retry_ms.try_into().unwrap_or(u32::MAX),
        }
    }
}
