//! Debug log of a stream: when it opens, and when and why it ends.

use tokio::time::Instant;
use tracing::Span;

use crate::hub::Reader;
use crate::scope::Scope;

/// Logs when it is created and when it is dropped. Without `debug`, it keeps nothing, as streams are small and many.
pub(super) struct StreamLog(Option<Box<Life>>);

struct Life {
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
        let is_logged = !span.is_disabled();
        StreamLog(is_logged.then(|| {
            Box::new(Life {
                span,
                since: Instant::now(),
                events: 0,
                end: "the client has disconnected",
            })
        }))
    }

    /// Sets the reason that is logged at the end.
    pub(super) fn set_reason(&mut self, reason: &'static str) {
        if let Some(life) = &mut self.0 {
            life.end = reason;
        }
    }

    pub(super) fn count_events(&mut self, more: u64) {
        if let Some(life) = &mut self.0 {
            life.events += more;
        }
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
