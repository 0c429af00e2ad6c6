//! The descriptions of the interface for programs: OpenAPI at `/openapi.json`, AsyncAPI at `/asyncapi.json`.
//!
//! Both are made from what serves. The types in a handler's signature describe its requests ([`parts`]), the command
//! that a verb reads describes its body, and the types that are serialized describe answers and messages ([`schemas`]).
//! Next to each handler stands only what its types cannot say: its purpose, and which of its answers has which type.

mod messages;
mod operation;
mod parts;
mod requests;
mod schemas;

use std::sync::OnceLock;

use rocket::http::ContentType;
use rocket::{Route, State, get, routes};

pub(super) use self::messages::document as asyncapi_document;
pub(super) use self::operation::{JSON, Operation};
pub(super) use self::parts::Part;
pub(super) use self::requests::{Document, document as openapi_document, scopes};
use super::body::Base;

pub(super) fn routes() -> Vec<Route> {
    routes![openapi, asyncapi]
}

pub(super) fn describe(document: &mut Document) {
    const TAG: &str = "Contract";
    document.tag(TAG, "The interface, for programs.");
    document.route(routes![openapi], &openapi, |operation| {
        operation
            .named("contract.openapi", TAG, "Return this document")
            .answers(
                200,
                "The document.",
                JSON,
                serde_json::json!({ "type": "object", "additionalProperties": true }),
            );
    });
    document.route(routes![asyncapi], &asyncapi, |operation| {
        operation
            .named(
                "contract.asyncapi",
                TAG,
                "Return the AsyncAPI document of the streams' messages",
            )
            .answers(
                200,
                "The document.",
                JSON,
                serde_json::json!({ "type": "object", "additionalProperties": true }),
            );
    });
}

/// The documents, which are made on the first request. Where the server is mounted differs: a proxy may add to it.
/// Managed by the application.
#[derive(Default)]
pub(super) struct Documents {
    openapi: OnceLock<String>,
    asyncapi: OnceLock<String>,
}

/// Stands in a document where the base of a request belongs.
const BASE: &str = "/the base of the request";

/// Returns a document, and makes it if no request has before.
fn document(
    made: &OnceLock<String>,
    make: fn(&str) -> serde_json::Value,
    base: &Base,
) -> (ContentType, String) {
    let text = made.get_or_init(|| make(BASE).to_string());
    let json = |text: &str| serde_json::Value::from(text).to_string();
    let base = if base.0.is_empty() { "/" } else { &*base.0 };
    (
        ContentType::JSON,
        text.replacen(&json(BASE), &json(base), 1),
    )
}

#[get("/openapi.json")]
fn openapi(base: Base, documents: &State<Documents>) -> (ContentType, String) {
    document(&documents.openapi, requests::document, &base)
}

#[get("/asyncapi.json")]
fn asyncapi(base: Base, documents: &State<Documents>) -> (ContentType, String) {
    document(&documents.asyncapi, messages::document, &base)
}
