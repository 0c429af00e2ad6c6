//! Whether the server is shutting down, and how it says goodbye.

use std::sync::OnceLock;

use tokio::time::Instant;

use crate::wire::Close;

/// Whether the server is shutting down. Never becomes false again.
pub struct Stopping {
    since: OnceLock<Instant>,
    /// Within how long clients come back.
    spread_ms: u64,
}

impl Stopping {
    /// Not yet. Clients will be asked to come back within `spread_ms`.
    pub fn new(spread_ms: u64) -> Stopping {
        Stopping {
            since: OnceLock::new(),
            spread_ms,
        }
    }

    /// From now on it is.
    pub fn begin(&self) {
        self.since.get_or_init(Instant::now);
    }

    /// Since when.
    pub fn since(&self) -> Option<Instant> {
        self.since.get().copied()
    }

    /// How a stream is closed: with a delay of its own, so that clients come back over a while and not at once.
    pub fn farewell(&self) -> Close {
        let random = getrandom::u64().unwrap_or(0);
        Close::ShuttingDown {
            retry_ms: random.checked_rem(self.spread_ms).unwrap_or(0),
        }
    }
}
