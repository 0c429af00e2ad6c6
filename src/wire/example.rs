//! Examples of messages, for documents. The types that are encoded have examples of their own fields; this module encodes
//! them as a client receives them.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::form::{self, Form};
use super::{Close, Control, Encoding, Framing, ResetReason};
use crate::event::{Class, Draft, Event, EventType};
use crate::id::{Cursor, Epoch, SchoolId, SubjectId};
use crate::kind::{DESCRIPTIONS, Description, job};

/// When the events of the examples happened: 2026-03-02T02:21:00Z.
pub(crate) const AT_MILLIS: i64 = 1_772_418_060_000;
/// The length of an interval after [`AT_MILLIS`], for a time that is later.
pub(crate) const LATER_MILLIS: i64 = 3_600_000;
/// The place of the events of the examples.
pub(crate) const SEQ: u64 = 1_284;
/// The epoch of the database of the examples.
const EPOCH: &str = "5f3a9c1e";

/// Returns this time, in milliseconds since 1970.
pub(crate) fn time(millis: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(millis).expect("the time is in range")
}

/// Returns the school of the examples.
pub(crate) fn school() -> SchoolId {
    7.try_into().expect("the number is positive")
}

/// Returns the epoch of the database of the examples.
pub(crate) fn epoch() -> Epoch {
    EPOCH.parse().expect("the text is an epoch")
}

/// Returns an example of a schema: its own, or else one composed of those of its parts. `None` if a required part has none.
/// `document` contains what the schema refers to.
pub(crate) fn composed(schema: &Value, document: &Value) -> Option<Value> {
    let own = schema["examples"].as_array().and_then(|all| all.first());
    if let Some(own) = own.or_else(|| schema.get("const")) {
        return Some(own.clone());
    }
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.strip_prefix('#')?)?;
        return composed(target, document);
    }
    if let Some(parts) = schema["allOf"].as_array() {
        let mut whole = Map::new();
        for part in parts {
            match composed(part, document)? {
                Value::Object(members) => whole.extend(members),
                _ => return None,
            }
        }
        return Some(whole.into());
    }
    if let Some(items) = schema.get("items") {
        return Some(json!([composed(items, document)?]));
    }
    let required = schema["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|it| it == name));
    let mut members = Map::new();
    for (name, property) in schema["properties"].as_object()? {
        match composed(property, document) {
            Some(value) => drop(members.insert(name.clone(), value)),
            None if is_required(name) => return None,
            None => {}
        }
    }
    (!members.is_empty()).then(|| members.into())
}

/// Returns the example of what is read as this type, if the type has one.
pub(crate) fn read<T: DeserializeOwned + JsonSchema>() -> Option<T> {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>();
    serde_json::from_value(composed(schema.as_value(), schema.as_value())?).ok()
}

/// Returns the example of the fields of an event of this type, if the type has one.
fn fields(event_type: &'static EventType) -> Option<Value> {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = (event_type.fields)(&mut settings.for_serialize().into_generator());
    composed(schema.as_value(), schema.as_value())
}

/// Returns the subject in the fields of an event.
fn subject_in(fields: &Value, description: &Description) -> Option<SubjectId> {
    let own = fields.get("payload").unwrap_or(fields);
    own[description.id_field].as_str()?.parse().ok()
}

/// Returns the subject of the examples of a kind, if its events have examples.
pub(crate) fn subject(description: &Description) -> Option<SubjectId> {
    let mut all = description.event_types.iter();
    all.find_map(|event_type| subject_in(&fields(event_type)?, description))
}

/// Returns an event of this type, if the type has an example of its fields.
fn event(event_type: &'static EventType) -> Option<Event> {
    let fields = fields(event_type)?;
    let description = DESCRIPTIONS
        .iter()
        .find(|description| description.event_types.contains(&event_type))?;
    let subject = subject_in(&fields, description)?;
    let draft = Draft {
        event_type,
        class: Class::Milestone,
        status: description.statuses.first()?,
        category: None,
        fields: fields.to_string().into(),
    };
    Some(Event::new(
        (epoch(), SEQ),
        school(),
        description.kind,
        subject,
        time(AT_MILLIS),
        draft,
    ))
}

/// Returns an example of an event of this type in a form.
pub(crate) fn of_type(event_type: &'static EventType, form: Form) -> Option<Value> {
    let encoding = Encoding {
        form,
        ..Encoding::new(Framing::Json)
    };
    serde_json::from_slice(super::event(&event(event_type)?, encoding)).ok()
}

/// Returns an example of `initial_state`.
pub(super) fn initial_state() -> Option<Value> {
    let uploads = form::initial_uploads(&event(&job::JOB_PROGRESS))?;
    serde_json::from_slice(&uploads).ok()
}

/// Returns the first message of a stream of these channels.
pub(crate) fn connected(channels: Vec<String>, cursor: Cursor) -> Control {
    Control::Connected {
        school: school(),
        channels,
        cursor,
        heartbeat_secs: 15,
        expires_at: Some(time(AT_MILLIS + LATER_MILLIS)),
        also: Map::new(),
    }
}

/// Returns an example of each control message.
pub(super) fn controls() -> Vec<Value> {
    let Some(event) = event(&job::JOB_PROGRESS) else {
        return Vec::new();
    };
    let cursor = event.cursor();
    let (at, later) = (time(AT_MILLIS), time(AT_MILLIS + LATER_MILLIS));
    let asked = || Map::from_iter([("channels".to_owned(), json!(["jobs/42"]))]);
    let all = [
        connected(vec!["jobs".to_owned()], cursor),
        Control::Ready(cursor),
        Control::Reset(ResetReason::Expired),
        Control::Heartbeat {
            cursor: Some(cursor),
            at,
        },
        Control::Closing {
            close: Close::ShuttingDown { retry_ms: 1_250 },
            can_return: true,
        },
        Control::Error {
            code: "not-found",
            message: "there is no job 43".to_owned(),
            channels: vec!["jobs/43".to_owned()],
            id: None,
        },
        Control::Pong {
            timestamp: Some(AT_MILLIS.into()),
        },
        Control::Authenticated {
            expires_at: Some(later),
        },
        Control::Subscribed {
            asked: asked(),
            cursor: Some(cursor),
        },
        Control::Unsubscribed {
            asked: asked(),
            cursor: Some(cursor),
        },
    ];
    let mut all: Vec<Value> = all
        .iter()
        .filter_map(|control| serde_json::from_slice(&control.json()).ok())
        .collect();
    let event = of_type(&job::JOB_PROGRESS, Form::Standard);
    all.push(json!({ "type": "published", "id": 7, "status": 200, "event": event }));
    all
}
