//! How a WebSocket connection begins: with a subscription, or only to be told why not.

use super::dialect::Dialect;
use crate::auth::Access;
use crate::http::problem::Problem;
use crate::id::Cursor;
use crate::refusals::RequestSource;
use crate::subscribe::Subscription;
use crate::wire::Close;

/// How a connection begins.
#[expect(
    clippy::large_enum_variant,
    reason = "it is moved once, into the connection's task"
)]
pub(super) enum Opening {
    /// With a subscription.
    Accepted {
        source: RequestSource,
        access: Access,
        subscription: Subscription,
        /// Where the first `subscribe` that does not say itself goes on.
        from: Option<Cursor>,
    },
    /// Accepted only to be told why not: a refused handshake breaks some proxies, and browsers hide its status.
    Refused {
        error: Option<String>,
        code: &'static str,
        close: Close,
    },
}

impl Opening {
    /// The endpoint's own way to refuse those who may not; whatever else is wrong is told everywhere. The caller
    /// has recorded it, because it knows where the request came from.
    pub(super) fn refused(problem: Problem, dialect: &Dialect) -> Opening {
        let (close, explains) = match problem.status() {
            401 | 403 => (dialect.refusal, dialect.explains_refusal),
            429 | 503 => (Close::TryAgainLater, true),
            400..500 => (Close::InvalidRequest, true),
            _ => (Close::InternalError, true),
        };
        Opening::Refused {
            error: explains.then(|| problem.detail().to_owned()),
            code: problem.code(),
            close,
        }
    }
}
