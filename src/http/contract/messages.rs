//! The AsyncAPI document: the channels, and the messages in both directions.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{requests, schemas};
use crate::kind::{self, DESCRIPTIONS, Description};
use crate::session::{BarePing, Dialect};
use crate::wire::form::Form;
use crate::wire::schema::{self, Message};

/// The name of the message that answers a bare `ping`: the bare text `pong`.
const BARE_PONG: &str = "BarePong";

/// A document that is being built.
struct Document {
    generator: SchemaGenerator,
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    messages: Map<String, Value>,
}

/// Returns the document of all channels, mounted at `base`.
pub(in crate::http) fn document(base: &str) -> Value {
    let settings = SchemaSettings::draft2020_12()
        .for_serialize()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        });
    let mut document = Document {
        generator: settings.into_generator(),
        channels: Map::new(),
        operations: Map::new(),
        messages: Map::new(),
    };
    for rest in requests::scopes() {
        let name = rest.split('/').nth(1).unwrap_or_default();
        let description = kind::known_kind(name).map(kind::description);
        let kinds: Vec<&Description> = match description {
            Some(description) => vec![description],
            None => DESCRIPTIONS.to_vec(),
        };
        let about = "Over WebSocket, Server-Sent Events or long poll.";
        document.channel(&format!("/events{rest}"), &Dialect::EVENTS, &kinds, about);
    }
    let of = |kind| vec![kind::description(kind)];
    let all = DESCRIPTIONS.to_vec();
    let jobs = of(kind::job::KIND);
    for (address, dialect, kinds) in [
        ("/ws", &Dialect::MULTIPLEXED, all.clone()),
        ("/ws/samples", &Dialect::SAMPLES, all),
        ("/progress/ws/{job_id}", &Dialect::JOB_PROGRESS, jobs),
        (
            "/ws/enrollment",
            &Dialect::ENROLLMENTS,
            of(kind::enrollment::KIND),
        ),
        (
            "/ws/device-status",
            &Dialect::DEVICES,
            of(kind::device::KIND),
        ),
        ("/ws/upload-progress", &Dialect::UPLOADS, Vec::new()),
        (
            "/ws/upload-progress/{processing_id}",
            &Dialect::UPLOADS,
            Vec::new(),
        ),
    ] {
        document.channel(address, dialect, &kinds, "Over WebSocket only.");
    }
    document.finish(base)
}

impl Document {
    /// Adds a channel at an address, with the messages of these kinds in both directions.
    fn channel(&mut self, address: &str, dialect: &Dialect, kinds: &[&Description], about: &str) {
        // No other endpoint accepts commands.
        let can_publish = address == "/ws";
        let mut sent = schema::controls(&mut self.generator);
        sent.retain(|(name, _)| match &**name {
            "Ready" => dialect.sends_ready,
            "Subscribed" | "Unsubscribed" => dialect.acknowledges,
            "Published" => can_publish,
            _ => true,
        });
        for description in kinds {
            sent.extend(schema::of_kind(description, &mut self.generator));
        }
        if dialect.form == Form::Upload {
            sent.extend(schema::of_form(dialect.form, &mut self.generator));
        }
        if dialect.announces_snapshot {
            sent.push(schema::initial_state(&mut self.generator));
        }
        let mut received = schema::of_clients();
        received.retain(|(name, _)| name != "ClientPublish" || can_publish);
        received.push(("ClientBarePing".into(), text("ping")));
        if dialect.bare_ping == BarePing::BarePong {
            sent.push((BARE_PONG.into(), text("pong")));
        }
        let name = name_of(address);
        let mut messages = Map::new();
        let sent = self.keep(&name, sent, &mut messages);
        let received = self.keep(&name, received, &mut messages);
        let names = address
            .split('{')
            .skip(1)
            .filter_map(|rest| rest.split('}').next());
        let parameters: Map<String, Value> = names
            .map(|name| {
                (
                    name.to_owned(),
                    json!({ "description": "The subject or school." }),
                )
            })
            .collect();
        let mut channel = json!({
            "address": address,
            "description": about,
            "messages": messages,
            "bindings": { "ws": { "method": "GET" } },
        });
        if !parameters.is_empty() {
            channel["parameters"] = parameters.into();
        }
        self.channels.insert(name.clone(), channel);
        let channel = json!({ "$ref": format!("#/channels/{name}") });
        self.operations.insert(
            format!("{name}.send"),
            json!({ "action": "send", "channel": channel, "summary": "What the server sends.", "messages": sent }),
        );
        self.operations.insert(
            format!("{name}.receive"),
            json!({ "action": "receive", "channel": channel, "summary": "What a WebSocket's client may send.", "messages": received }),
        );
    }

    /// Stores messages, adds references to them to `messages` of a channel, and returns references to those.
    fn keep(
        &mut self,
        channel: &str,
        each: Vec<Message>,
        messages: &mut Map<String, Value>,
    ) -> Vec<Value> {
        let mut references = Vec::new();
        for (name, payload) in each {
            if messages.contains_key(&name) {
                continue;
            }
            let reference = json!({ "$ref": format!("#/components/messages/{name}") });
            messages.insert(name.clone(), reference);
            let path = format!("#/channels/{channel}/messages/{name}");
            references.push(json!({ "$ref": path }));
            let entry = self.messages.entry(name.clone());
            entry.or_insert_with(|| message(&name, payload));
        }
        references
    }

    fn finish(self, base: &str) -> Value {
        let mut document = head(base);
        document["channels"] = self.channels.into();
        document["operations"] = self.operations.into();
        document["components"]["messages"] = self.messages.into();
        schemas::tidy(&mut document);
        document
    }
}

/// Returns a document without channels.
pub(super) fn head(base: &str) -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tidings",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Live progress and status. `/openapi.json` describes the requests that open a stream.",
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "defaultContentType": super::JSON,
        "servers": {
            "websocket": {
                "host": "{host}",
                "pathname": if base.is_empty() { "/" } else { base },
                "protocol": "ws",
                "variables": { "host": { "default": "localhost:8000", "description": "The server's host and port." } },
            },
        },
        "channels": {},
        "operations": {},
        "components": { "messages": {} },
    })
}

/// Returns the name of a channel: `events.jobs.one` for `/events/jobs/{job_id}`.
fn name_of(address: &str) -> String {
    let parts = address.split('/').filter(|part| !part.is_empty());
    let parts: Vec<_> = parts
        .map(|part| if part.starts_with('{') { "one" } else { part })
        .collect();
    parts.join(".")
}

fn text(value: &str) -> Value {
    json!({ "type": "string", "const": value, "examples": [value] })
}

fn message(name: &str, mut payload: Value) -> Value {
    let mut message = json!({ "name": name, "title": name });
    if let Some(about) = payload["description"].as_str() {
        message["summary"] = about.into();
    }
    if payload["type"] == "string" {
        message["contentType"] = "text/plain".into();
    }
    // Programs that list messages show these; an example in the payload's schema is only that of a value.
    let examples = payload
        .as_object_mut()
        .and_then(|members| members.remove("examples"));
    let examples: Vec<Value> = examples
        .iter()
        .filter_map(Value::as_array)
        .flatten()
        .map(|example| json!({ "name": name, "payload": example }))
        .collect();
    if !examples.is_empty() {
        message["examples"] = examples.into();
    }
    message["payload"] = payload;
    message
}
