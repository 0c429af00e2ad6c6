//! The description of the streams' requests. `/asyncapi.json` describes their messages.

use rocket::routes;
use serde_json::json;

use super::{
    ChannelPath, device_status, enrollments, events, job_progress, multiplexed, samples, upload,
    uploads,
};
use crate::http::contract::{Document, JSON, Operation, Part, scopes};
use crate::http::parameters::{CHANNEL, IDS, SESSION_ID};
use crate::http::problem::Kind;
use crate::kind;

/// Empty, because [`scope`] describes each URL.
impl Part for ChannelPath {}

const TAG: &str = "Streams";

pub(in crate::http) fn describe(document: &mut Document) {
    document.tag(
        TAG,
        "Live events over Server-Sent Events, WebSocket or long poll. `/asyncapi.json` describes the messages.",
    );
    document.rests(routes![events], &events, &scopes(), scope);
    socket(document, |document, about| {
        document.route(routes![multiplexed], &multiplexed, |operation| {
            about(operation, "ws", "Open a WebSocket that has no channel yet");
        });
        document.route(routes![samples], &samples, |operation| {
            about(
                operation,
                "ws.samples",
                "Open a WebSocket for process control",
            );
        });
        document.route(routes![job_progress], &job_progress, |operation| {
            about(operation, "ws.progress", "Follow one job");
        });
        document.route(routes![uploads], &uploads, |operation| {
            about(operation, "ws.uploads", "Follow active jobs as uploads");
        });
        document.route(routes![upload], &upload, |operation| {
            about(operation, "ws.upload", "Follow one job as an upload");
        });
        document.route(routes![enrollments], &enrollments, |operation| {
            operation.queries([&SESSION_ID]);
            about(
                operation,
                "ws.enrollments",
                "Follow active enrollment sessions, or one",
            );
        });
        document.route(routes![device_status], &device_status, |operation| {
            about(operation, "ws.devices", "Follow devices");
        });
    });
}

/// Describes the stream of a scope, whose URL is `/events` with this rest.
fn scope(rest: &str, operation: &mut Operation<'_>) {
    let description = kind::DESCRIPTIONS
        .iter()
        .find(|description| rest.split('/').nth(1) == Some(description.kind.collection()));
    let is_one = rest.contains('{');
    let (id, summary) = match (description, is_one) {
        (Some(description), true) => (
            format!("events.{}.one", description.kind.collection()),
            format!("{}: follow", description.noun),
        ),
        (Some(description), false) => (
            format!("events.{}", description.kind.collection()),
            format!("{}: follow all", description.title),
        ),
        (None, true) => ("events.school".into(), "Follow all of a school".into()),
        (None, false) => ("events".into(), "Follow any set of channels".into()),
    };
    match (description, is_one) {
        (Some(_), false) => {
            operation.queries([&IDS]);
        }
        (None, false) => {
            operation.queries([&CHANNEL]);
        }
        _ => {}
    }
    operation
        .named(id, TAG, summary)
        .about("`Accept` chooses between Server-Sent Events (the default) and a long poll; an `Upgrade` opens a WebSocket.")
        .answers(200, "A stream that ends with the connection, or the answer to a long poll.", "text/event-stream", json!({ "type": "string" }))
        .answers(200, "", JSON, json!({
            "type": "object",
            "title": "Poll",
            "properties": {
                "messages": {
                    "type": "array",
                    "description": "Messages as `/asyncapi.json` describes them.",
                    "items": { "type": "object", "properties": { "type": { "type": "string" } }, "required": ["type"] },
                },
                "cursor": { "type": "string", "description": "The cursor for the next poll." },
            },
            "required": ["messages", "cursor"],
        }))
        .fails(&[
            Kind::Unauthorized,
            Kind::Forbidden,
            Kind::CrossOrigin,
            Kind::NotFound,
            Kind::SchoolRequired,
            Kind::NotAcceptable,
            Kind::TooManyStreams,
            Kind::TooManyReads,
            Kind::Unavailable,
        ]);
}

/// Describes endpoints that are WebSockets only. They accept the handshake before they check anything else.
fn socket(
    document: &mut Document,
    describe: impl FnOnce(&mut Document, &dyn Fn(&mut Operation<'_>, &str, &str)),
) {
    describe(document, &|operation, id, summary| {
        operation
            .named(id, TAG, summary)
            .about("A WebSocket only. A request that is not allowed is accepted first, and then closed with the reason.");
    });
}
