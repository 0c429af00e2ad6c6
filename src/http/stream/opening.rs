//! How a WebSocket connection begins: with a subscription, or only to be told why not.

use crate::http::problem::Problem;
use crate::session::{Beginning, Dialect};
use crate::wire::Close;

/// How a connection begins.
pub(super) enum Opening {
    /// With a conversation.
    Accepted(Box<Beginning>),
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
