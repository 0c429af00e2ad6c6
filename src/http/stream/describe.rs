//! The description of the streams' requests. `/asyncapi.json` describes their messages.

use std::sync::Arc;

use rocket::routes;
use serde_json::{Value, json};

use super::{
    ChannelPath, device_status, enrollments, events, job_progress, multiplexed, poll, samples,
    upload, uploads,
};
use crate::event::Event;
use crate::http::contract::examples::{self, ExampleSubject};
use crate::http::contract::{Document, JSON, Operation, Part, scopes};
use crate::http::parameters::{CHANNEL, IDS, SESSION_ID};
use crate::http::problem::Kind;
use crate::id::Channel;
use crate::kind::{self, job};
use crate::wire::{self, Control, Encoding, Framing, example};

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
            if let Some(job) = example::subject(&job::DESCRIPTION) {
                operation.with_path_example("processing_id", job.as_str());
            }
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
    // Streams of several kinds show a job.
    let shown = description.map_or(job::KIND, |description| description.kind);
    let example = examples::living(shown).map(|subject| Opening::of(rest, subject));
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
        .with_example(200, "text/event-stream", example.as_ref().map(Opening::event_source))
        .with_example(200, JSON, example.as_ref().map(Opening::poll))
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

/// What a stream begins with: `connected`, the state of a subject, `ready`.
struct Opening {
    event: Arc<Event>,
    controls: [Control; 2],
}

impl Opening {
    /// Returns the beginning of the stream whose URL is `/events` with this rest. The school has this one subject.
    fn of(rest: &str, subject: ExampleSubject) -> Opening {
        let event = subject.stored().event;
        let subject = Channel::Subject(event.kind, event.subject.clone());
        let channel = match rest {
            "" => subject,
            "/schools/{school_id}" => Channel::School(event.school),
            one if one.ends_with('}') => subject,
            _ => Channel::Collection(event.kind),
        };
        let cursor = event.cursor();
        let connected = example::connected(vec![channel.to_string()], cursor);
        Opening {
            event,
            controls: [connected, Control::Ready(cursor)],
        }
    }

    fn messages(&self, framing: Framing) -> [Vec<u8>; 3] {
        let [connected, ready] = &self.controls;
        [
            wire::control(connected, framing),
            wire::event(&self.event, Encoding::new(framing)).to_vec(),
            wire::control(ready, framing),
        ]
    }

    fn event_source(&self) -> Value {
        String::from_utf8_lossy(&self.messages(Framing::Sse).concat()).into()
    }

    fn poll(&self) -> Value {
        examples::json(&poll::answer(
            &self.messages(Framing::Json),
            self.event.cursor(),
        ))
    }
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
