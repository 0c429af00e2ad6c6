//! How a WebSocket connection begins: with a subscription, or with the reason for its rejection.

use crate::http::problem::Problem;
use crate::session::{Beginning, Dialect, Publishing};
use crate::wire::Close;

/// How a connection begins.
pub(super) enum Opening {
    /// The client is authorized, and a session begins. Commands are published with the second part, if there is one.
    Accepted(Box<Beginning>, Option<Box<dyn Publishing>>),
    /// The connection is accepted only to send the reason for the rejection: a failed handshake breaks some proxies, and
    /// browsers hide its status.
    Rejected {
        error: Option<String>,
        code: &'static str,
        close: Close,
    },
}

impl Opening {
    /// Rejects a connection. The endpoint's dialect decides whether an unauthorized client receives an explanation; every
    /// other error is explained. The caller must have counted and logged the problem.
    pub(super) fn rejected(problem: Problem, dialect: &Dialect) -> Opening {
        let (close, explains) = match problem.status() {
            401 | 403 => (dialect.rejection, dialect.explains_rejection),
            429 | 503 => (Close::TryAgainLater, true),
            400..500 => (Close::InvalidRequest, true),
            _ => (Close::InternalError, true),
        };
        Opening::Rejected {
            error: explains.then(|| problem.detail().to_owned()),
            code: problem.code(),
            close,
        }
    }
}
