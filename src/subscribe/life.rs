//! A stream's life in the log, at `debug`: its opening, and its end with the reason.

use tokio::time::Instant;
use tracing::Span;

use crate::hub::Reader;
use crate::scope::Scope;

/// Told when it begins and when it is dropped. Costs next to nothing where nobody reads it.
pub(super) struct Life {
    /// Who and where, on both lines.
    span: Span,
    since: Instant,
    events: u64,
    end: &'static str,
}

impl Life {
    pub(super) fn begin(scope: &Scope, reader: &Reader) -> Life {
        // Whatever stands in a token's `sub` is written as one quoted text: it must not look like a line of its own.
        let span = tracing::debug_span!(
            "stream",
            transport = reader.transport,
            school.id = %scope.school,
            address = reader.address.map(tracing::field::display),
            user = ?reader.user,
        );
        let channels = scope.channels().len();
        span.in_scope(|| tracing::debug!(channels, "a stream has been opened"));
        Life {
            span,
            since: Instant::now(),
            events: 0,
            end: "the client has left",
        }
    }

    /// Notes why it ends.
    pub(super) fn ends(&mut self, reason: &'static str) {
        self.end = reason;
    }

    pub(super) fn count_event(&mut self) {
        self.events += 1;
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let Life { events, end, .. } = *self;
        let secs = self.since.elapsed().as_secs();
        self.span
            .in_scope(|| tracing::debug!(reason = end, secs, events, "a stream has ended"));
    }
}
