//! The descriptions of the interface for programs: OpenAPI at `/openapi.json`, AsyncAPI at `/asyncapi.json`.
//!
//! Both are generated from the code that serves requests. The types in a handler's signature describe its requests
//! ([`parts`]), the command that a verb reads describes its body, and the types that are serialized describe answers and
//! messages ([`schemas`]). Next to each handler, the code states only what its types cannot: its purpose, and which of its
//! answers has which type.

pub(super) mod examples;
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
            )
            .with_example(200, JSON, Some(requests::head("")));
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
            )
            .with_example(200, JSON, Some(messages::head("")));
    });
}

/// The documents, which are generated on the first request. They contain [`BASE`], because the base can differ between
/// requests: a proxy may add a prefix. Managed by the application.
#[derive(Default)]
pub(super) struct Documents {
    openapi: OnceLock<String>,
    asyncapi: OnceLock<String>,
}

/// The placeholder for the base of a request in a generated document.
const BASE: &str = "/the base of the request";

/// Returns a document. Generates it if this is the first request for it.
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
