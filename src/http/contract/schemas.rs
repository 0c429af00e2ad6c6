//! The schemas of a document: bodies as serde deserializes them, and answers as it serializes them.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::event::EventType;
use crate::http::problem::{Kind as ProblemKind, Problem};
use crate::id::Kind;
use crate::kind::{self, Body, Command};
use crate::wire::schema;

/// The place of schemas that answers share.
const DEFINITIONS: &str = "/components/schemas";

/// Generates schemas, and stores those that have a name.
pub(in crate::http) struct Schemas {
    bodies: SchemaGenerator,
    answers: SchemaGenerator,
    messages: Map<String, Value>,
    examples: Map<String, Value>,
}

impl Schemas {
    pub(super) fn new() -> Schemas {
        Schemas {
            // Inline these: the same type can have another schema in answers.
            bodies: settings(true).into_generator(),
            answers: settings(false).for_serialize().into_generator(),
            messages: Map::new(),
            examples: Map::new(),
        }
    }

    /// Returns the schema of a body of this type.
    pub(in crate::http) fn body<T: JsonSchema>(&mut self) -> Value {
        self.bodies.subschema_for::<T>().to_value()
    }

    /// Returns the schema of the body of a verb. `None` if the kind has no such verb.
    pub(super) fn command(&mut self, kind: Kind, verb: &str) -> Option<Value> {
        match Command::read(kind, verb, Described(self))? {
            Err(Read(schema)) => Some(schema),
            Ok(_) => unreachable!("a schema is not read"),
        }
    }

    /// Returns the schema of an answer of this type.
    pub(in crate::http) fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().to_value()
    }

    /// Returns the schema of any of these events, in the standard form.
    pub(in crate::http) fn events<'t>(
        &mut self,
        types: impl IntoIterator<Item = &'t &'static EventType>,
    ) -> Value {
        let mut each: Vec<Value> = types
            .into_iter()
            .map(|event_type| self.event(event_type))
            .collect();
        match each.len() {
            1 => each.remove(0),
            _ => json!({ "anyOf": each }),
        }
    }

    fn event(&mut self, event_type: &'static EventType) -> Value {
        let schema = schema::event(event_type, &mut self.answers);
        let name = schema::title(event_type.name);
        self.messages.insert(name.clone(), schema);
        json!({ "$ref": format!("#{DEFINITIONS}/{name}") })
    }

    /// Returns the schema of a subject as a resource: the event that describes it, with its details.
    pub(in crate::http) fn resource(&mut self, kind: Kind) -> Value {
        let description = kind::description(kind);
        let event = self.events(description.event_types);
        let details = (description.details)(&mut self.answers).to_value();
        let name = schema::title(&description.noun.replace(' ', "_"));
        self.messages
            .insert(name.clone(), json!({ "allOf": [event, details] }));
        json!({ "$ref": format!("#{DEFINITIONS}/{name}") })
    }

    /// Returns an example of a problem as an answer.
    pub(super) fn problem(&mut self, kind: ProblemKind) -> Value {
        let problem = Problem::example(kind);
        let example = json!({ "summary": problem.title(), "description": kind.when(), "value": example(kind) });
        self.examples.insert(problem.code().to_owned(), example);
        json!({ "$ref": format!("#/components/examples/{}", problem.code()) })
    }

    /// Returns the examples of problems that answers refer to.
    pub(super) fn examples(&self) -> &Map<String, Value> {
        &self.examples
    }

    /// Returns all schemas that have a name.
    pub(super) fn finish(mut self) -> Map<String, Value> {
        let mut all = self.answers.take_definitions(false);
        all.values_mut().for_each(schema::absent_for_null);
        // Some problems belong to no operation: they answer a request to an unknown URL, or a line of a batch.
        let is_elsewhere =
            |kind: &&ProblemKind| !self.examples.contains_key(Problem::example(**kind).code());
        let others = ProblemKind::ALL.iter().filter(is_elsewhere);
        all["Problem"]["examples"] = others.map(|kind| example(*kind)).collect();
        for (name, schema) in self.messages {
            let previous = all.insert(name, schema);
            assert!(previous.is_none(), "each schema has a name of its own");
        }
        all
    }
}

fn settings(inline: bool) -> SchemaSettings {
    SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = inline;
        settings.definitions_path = DEFINITIONS.into();
        settings.meta_schema = None;
    })
}

/// A body that is described instead of read.
struct Described<'a>(&'a mut Schemas);

/// The schema of what would have been read.
struct Read(Value);

impl Body for Described<'_> {
    type Error = Read;

    fn read<T: DeserializeOwned + JsonSchema>(self) -> Result<T, Read> {
        Err(Read(self.0.body::<T>()))
    }
}

fn example(kind: ProblemKind) -> Value {
    serde_json::to_value(Problem::example(kind)).expect("a problem is JSON")
}

/// Replaces the names of Rust's integer types, which other programs do not know, with their ranges.
pub(super) fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            let range = match members.get("format").and_then(Value::as_str) {
                Some("uint8") => Some((0, u64::from(u8::MAX))),
                Some("uint16") => Some((0, u64::from(u16::MAX))),
                Some("uint32") => Some((0, u64::from(u32::MAX))),
                Some("uint" | "uint64") => Some((0, u64::MAX)),
                _ => None,
            };
            if let Some((least, max)) = range {
                members.remove("format");
                members.entry("minimum").or_insert(least.into());
                members.entry("maximum").or_insert(max.into());
            }
            members.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
