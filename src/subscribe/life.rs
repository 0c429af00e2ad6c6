//! Debug log of a stream: when it opens, and when and why it ends.

use tokio::time::Instant;
use tracing::Span;

use crate::hub::Reader;
use crate::scope::Scope;

/// Logs when it is created and when it is dropped. Costs almost nothing if `debug` is off.
pub(super) struct StreamLog {
    /// Fields that identify the client on both lines.
    span: Span,
    since: Instant,
    events: u64,
    end: &'static str,
}

impl StreamLog {
    pub(super) fn open(scope: &Scope, reader: &Reader) -> StreamLog {
        // A token's `sub` can contain any text. Quoting prevents it from looking like a separate log line.
        let span = tracing::debug_span!(
            "stream",
            transport = reader.transport,
            school.id = %scope.school,
            address = reader.address.map(tracing::field::display),
            user = ?reader.user,
        );
        let channels = scope.channels().len();
        span.in_scope(|| tracing::debug!(channels, "a stream has been opened"));
        StreamLog {
            span,
            since: Instant::now(),
            events: 0,
            end: "the client has disconnected",
        }
    }

    /// Sets the reason that is logged at the end.
    pub(super) fn set_reason(&mut self, reason: &'static str) {
        self.end = reason;
    }

    pub(super) fn count_events(&mut self, more: u64) {
        self.events += more;
    }
}

impl Drop for StreamLog {
    fn drop(&mut self) {
        let StreamLog { events, end, .. } = *self;
        let secs = self.since.elapsed().as_secs();
        self.span
            .in_scope(|| tracing::debug!(reason = end, secs, events, "a stream has ended"));
    }
}
