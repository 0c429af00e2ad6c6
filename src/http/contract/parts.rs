//! What a handler's parameters say about its requests. Each guard adds what it reads and how it fails, so that the
//! description of an operation follows from the types in the handler's signature.

use rocket::State;
use serde_json::json;

use super::operation::Operation;
use crate::app::Caller;
use crate::config::IDEMPOTENCY_KEY_MAX_BYTES;
use crate::http::body::{Base, IdempotencyKey, Unread, UpperStatus};
use crate::http::callers::Connection;
use crate::http::credential::{AnySchool, Listener, NamedSchool};
use crate::http::listing::{Asked, FirstHead};
use crate::http::methods::Collection;
use crate::http::parameters::{LIST, SCHOOL_ID, STATUS_CASE};
use crate::http::problem::{Kind, Problem};
use crate::rejections::RequestSource;

/// The security schemes of calls.
pub(super) const CALLS: &[&str] = &["bearer", "token", "cookie"];
/// The additional security schemes of streams.
pub(super) const STREAMS: &[&str] = &["ticket", "subprotocol"];

/// A parameter of a handler.
pub(in crate::http) trait Part {
    /// Adds what the part reads, and the problems with which it rejects a request.
    fn describe(_: &mut Operation<'_>) {}
}

impl<T: Part> Part for Result<T, Problem> {
    fn describe(operation: &mut Operation<'_>) {
        T::describe(operation);
    }
}

/// Segments of the path are described by the route.
impl Part for &str {}
impl Part for Option<&str> {}
impl<T: Send + Sync + 'static> Part for &State<T> {}
impl Part for Base {}
impl Part for Collection {}
impl Part for Connection {}
impl Part for FirstHead {}
impl Part for RequestSource {}

impl Part for Caller {
    fn describe(operation: &mut Operation<'_>) {
        AnySchool::describe(operation);
        NamedSchool::describe(operation);
        operation.fails(&[Kind::SchoolRequired, Kind::Forbidden, Kind::NotFound]);
    }
}

impl Part for AnySchool {
    fn describe(operation: &mut Operation<'_>) {
        operation.secured(CALLS);
        operation.fails(&[
            Kind::Unauthorized,
            Kind::Forbidden,
            Kind::CrossOrigin,
            Kind::InvalidQuery,
            Kind::HeadersTooLarge,
        ]);
    }
}

impl Part for NamedSchool {
    fn describe(operation: &mut Operation<'_>) {
        operation.queries([&SCHOOL_ID]);
        operation.fails(&[Kind::InvalidQuery]);
    }
}

impl Part for Listener {
    fn describe(operation: &mut Operation<'_>) {
        operation.secured(CALLS);
        operation.secured(STREAMS);
        operation.queries([&SCHOOL_ID]);
        operation.fails(&[
            Kind::InvalidQuery,
            Kind::InvalidCursor,
            Kind::InvalidHeader,
            Kind::HeadersTooLarge,
        ]);
    }
}

impl Part for UpperStatus {
    fn describe(operation: &mut Operation<'_>) {
        operation.queries([&STATUS_CASE]);
        operation.fails(&[Kind::InvalidQuery]);
    }
}

impl Part for Asked {
    fn describe(operation: &mut Operation<'_>) {
        operation.queries(LIST);
        operation.fails(&[Kind::InvalidQuery]);
    }
}

impl Part for IdempotencyKey {
    fn describe(operation: &mut Operation<'_>) {
        let schema = json!({
            "type": "string",
            "pattern": format!("^[!-~]{{1,{IDEMPOTENCY_KEY_MAX_BYTES}}}$"),
            "examples": ["host-1:page-4"],
        });
        let about = "Makes a retry safe: a request with the same key is carried out once.";
        operation.parameter("header", "Idempotency-Key", false, about, schema);
        operation.fails(&[Kind::InvalidHeader, Kind::KeyReused, Kind::AnswerGone]);
    }
}

impl Part for Unread<'_> {
    fn describe(operation: &mut Operation<'_>) {
        operation.takes_body();
        operation.fails(&[
            Kind::BadRequest,
            Kind::MalformedJson,
            Kind::BodyTooLarge,
            Kind::UnsupportedEncoding,
            Kind::InvalidBody,
        ]);
    }
}

/// A handler, with its parameters as `Parts`.
pub(in crate::http) trait Handler<Parts> {
    /// Adds the descriptions of all its parameters.
    fn describe(&self, operation: &mut Operation<'_>);
}

macro_rules! handlers {
    ($(($($part:ident),*))*) => {
        $(
            impl<Own, Answer, $($part: Part),*> Handler<(Answer, $($part,)*)> for Own
            where
                Own: Fn($($part),*) -> Answer,
            {
                fn describe(&self, _operation: &mut Operation<'_>) {
                    $($part::describe(_operation);)*
                }
            }
        )*
    };
}

handlers! {
    ()
    (A)
    (A, B)
    (A, B, C)
    (A, B, C, D)
    (A, B, C, D, E)
    (A, B, C, D, E, F)
    (A, B, C, D, E, F, G)
    (A, B, C, D, E, F, G, H)
}
