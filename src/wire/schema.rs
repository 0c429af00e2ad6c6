//! The schemas of messages, from the types that are encoded.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::client::ClientJson;
use super::control::{ControlJson, PublishedJson};
use super::example;
use super::form::{self, Form, InitialState};
use crate::event::EventType;
use crate::id::SchoolId;
use crate::kind::{self, Description};

/// What every event has in addition to its own fields. `wire::json` writes it.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is only a schema")]
struct EventFields {
    /// The message's type.
    r#type: String,
    /// Where a reader that has received this event resumes.
    cursor: String,
    /// The school in whose log it is.
    school_id: SchoolId,
    /// Its number in the log: 1, 2, 3, … without gaps, in commit order.
    seq: u64,
    /// When it happened: RFC 3339, UTC, milliseconds.
    timestamp: chrono::DateTime<chrono::Utc>,
    /// True for a state that is repeated, absent for a change.
    #[schemars(skip_serializing_if = "std::ops::Not::not", extend("const" = true))]
    snapshot: bool,
    /// True if large fields were left out (`max_event_bytes`).
    #[schemars(skip_serializing_if = "std::ops::Not::not", extend("const" = true))]
    truncated: bool,
}

/// Returns the name of a message's schema: `JobProgress` for `job_progress`.
pub(crate) fn title(name: &str) -> String {
    let capitalised = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    name.split('_').map(capitalised).collect()
}

/// Returns the schema of an event of this type, in the standard form.
pub(crate) fn event(event_type: &'static EventType, generator: &mut SchemaGenerator) -> Value {
    let fields = (event_type.fields)(generator);
    let mut schema = message(event_type.name, &fields, generator);
    set_example(&mut schema, example::of_type(event_type, Form::Standard));
    schema
}

/// Sets the example of a message, if there is one.
pub(super) fn set_example(schema: &mut Value, example: Option<Value>) {
    if let Some(example) = example {
        schema["examples"] = json!([example]);
    }
}

/// Returns the schema of an event with this `type` and these fields.
pub(super) fn message(name: &str, fields: &Schema, generator: &mut SchemaGenerator) -> Value {
    let mut all = EventFields::json_schema(generator).to_value();
    let fields = fields.as_value();
    let (properties, required) = (
        fields["properties"].as_object(),
        fields["required"].as_array(),
    );
    let properties = properties.expect("the fields of an event are an object");
    for (name, schema) in properties {
        // The event's own fields are part of its envelope.
        let mut schema = schema.clone();
        remove_examples(&mut schema);
        all["properties"][name] = schema;
    }
    let names = all["required"]
        .as_array_mut()
        .expect("the envelope is required");
    for name in required.into_iter().flatten() {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    all["properties"]["type"] = json!({ "const": name });
    all["title"] = title(name).into();
    all["description"] = fields["description"].clone();
    if let Some(members) = all.as_object_mut() {
        members.remove("additionalProperties");
        members.retain(|_, value| !value.is_null());
    }
    absent_for_null(&mut all);
    all
}

/// Removes the examples of parts of a message, because the message has an example as a whole.
fn remove_examples(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.remove("examples");
            for (name, member) in members {
                match member {
                    Value::Object(properties) if name == "properties" => {
                        properties.values_mut().for_each(remove_examples);
                    }
                    _ => remove_examples(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(remove_examples),
        _ => {}
    }
}

/// Removes `null` from the values of members that may be absent: they are left out instead.
pub(crate) fn absent_for_null(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            let required = members.get("required").cloned().unwrap_or_default();
            let is_required = |name: &str| {
                let mut names = required.as_array().into_iter().flatten();
                names.any(|listed| *listed == name)
            };
            let properties = members.get_mut("properties").and_then(Value::as_object_mut);
            for (name, property) in properties.into_iter().flatten() {
                if !is_required(name) {
                    without_null(property);
                }
            }
            members.values_mut().for_each(absent_for_null);
        }
        Value::Array(items) => items.iter_mut().for_each(absent_for_null),
        _ => {}
    }
}

fn without_null(schema: &mut Value) {
    let types = schema.get_mut("type").and_then(Value::as_array_mut);
    if let Some(types) = types {
        types.retain(|type_name| type_name != "null");
        if let [one] = &types[..] {
            schema["type"] = one.clone();
        }
    }
    let values = schema.get_mut("enum").and_then(Value::as_array_mut);
    if let Some(values) = values {
        values.retain(|value| !value.is_null());
    }
    let several = schema.get_mut("anyOf").and_then(Value::as_array_mut);
    if let Some(several) = several {
        several.retain(|alternative| alternative["type"] != "null");
        if let [one] = &several[..] {
            let (one, about) = (one.clone(), schema["description"].take());
            *schema = one;
            if about.is_string() {
                schema["description"] = about;
            }
        }
    }
}

/// A message, with its name and its schema.
pub(crate) type Message = (String, Value);

/// Returns the events of a kind, in all forms.
pub(crate) fn of_kind(description: &Description, generator: &mut SchemaGenerator) -> Vec<Message> {
    let mut all: Vec<Message> = Vec::new();
    for event_type in description.event_types {
        all.push((title(event_type.name), event(event_type, generator)));
    }
    if description.kind == kind::characteristic::KIND {
        all.extend(of_form(Form::Flat, generator));
    }
    for (_, schema) in &mut all {
        with_numeric_ids(schema, false);
    }
    all
}

/// Returns the events of a form other than the standard one.
pub(crate) fn of_form(form: Form, generator: &mut SchemaGenerator) -> Vec<Message> {
    let prefix = match form {
        Form::Flat => "Flat",
        Form::Standard | Form::Upload => "",
    };
    let named = |mut schema: Value| {
        let name = schema["title"].as_str().unwrap_or_default();
        let name = format!("{prefix}{name}");
        schema["title"] = name.clone().into();
        with_numeric_ids(&mut schema, false);
        (name, schema)
    };
    form::schemas(form, generator)
        .into_iter()
        .map(named)
        .collect()
}

/// Returns the control messages.
pub(crate) fn controls(generator: &mut SchemaGenerator) -> Vec<Message> {
    let mut all = variants(&ControlJson::json_schema(generator), "");
    all.extend(variants(&PublishedJson::json_schema(generator), ""));
    let examples = example::controls();
    for (_, schema) in &mut all {
        absent_for_null(schema);
        with_numeric_ids(schema, false);
        let name = &schema["properties"]["type"]["const"];
        let example = examples.iter().find(|example| example["type"] == *name);
        set_example(schema, example.cloned());
    }
    all
}

/// Returns `initial_state`, which precedes the snapshot of uploads.
pub(crate) fn initial_state(generator: &mut SchemaGenerator) -> Message {
    let mut schema = InitialState::json_schema(generator).to_value();
    schema["properties"]["type"] = json!({ "const": form::INITIAL_STATE });
    set_example(&mut schema, example::initial_state());
    (title(form::INITIAL_STATE), schema)
}

/// Returns the messages of clients.
pub(crate) fn of_clients() -> Vec<Message> {
    // They are read, not written: a field that may be absent is not required.
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut generator = settings.for_deserialize().into_generator();
    variants(&ClientJson::json_schema(&mut generator), "Client")
}

/// Splits the schema of an enum into those of its variants.
fn variants(schema: &Schema, prefix: &str) -> Vec<Message> {
    let each = schema.as_value()["oneOf"].as_array();
    let named = |schema: &Value| {
        let name = schema["properties"]["type"]["const"].as_str();
        let name = format!("{prefix}{}", title(name.unwrap_or_default()));
        let mut schema = schema.clone();
        schema["title"] = name.clone().into();
        (name, schema)
    };
    each.into_iter().flatten().map(named).collect()
}

/// Accepts numbers where a stream may send ids as such, as `wire::fields` does. `is_named` is true if the object's own id
/// is called `id`.
fn with_numeric_ids(schema: &mut Value, is_named: bool) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for (name, schema) in properties {
        match name.as_str() {
            "payload" => with_numeric_ids(schema, false),
            "sample" | "violation" => with_numeric_ids(schema, true),
            "violations" => with_numeric_ids(&mut schema["items"], true),
            name if kind::is_id_field(name) || (is_named && name == "id") => {
                let types = match &schema["type"] {
                    Value::Array(types) => types.clone(),
                    one => vec![one.clone()],
                };
                let number = json!("integer");
                if !types.contains(&number) {
                    schema["type"] = types.into_iter().chain([number]).collect();
                }
            }
            _ => {}
        }
    }
}
