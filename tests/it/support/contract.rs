//! Checks what a server says against its own description: answers against OpenAPI, messages against AsyncAPI. Both are
//! closed for the check: a field that they do not describe fails it.

use std::collections::HashMap;
use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Value, json};

/// The messages of each `type`, as the documents describe them.
pub(crate) struct Messages(HashMap<String, Vec<Lazy>>);

/// A validator that is built when it is first needed: building all of them takes seconds.
type Lazy = LazyLock<Validator, Box<dyn FnOnce() -> Validator + Send + Sync>>;

fn lazily(schema: impl FnOnce() -> Value + Send + Sync + 'static) -> Lazy {
    LazyLock::new(Box::new(move || {
        jsonschema::draft202012::options()
            .should_validate_formats(true)
            .build(&schema())
            .unwrap()
    }))
}

/// Those of the kinds in this program.
static MESSAGES: LazyLock<Messages> = LazyLock::new(|| Messages::of(&tidings::http::asyncapi("")));

impl Messages {
    pub(crate) fn of(document: &Value) -> Messages {
        let mut all: HashMap<String, Vec<Lazy>> = HashMap::new();
        for (name, message) in document["components"]["messages"].as_object().unwrap() {
            let mut schema = message["payload"].clone();
            let of_client = name.starts_with("Client");
            let kind = schema["properties"]["type"]["const"].as_str();
            if let Some(kind) = kind.filter(|_| !of_client).map(str::to_owned) {
                close(&mut schema);
                all.entry(kind).or_default().push(lazily(|| schema));
            }
        }
        Messages(all)
    }

    /// Whether there are messages of this `type`.
    pub(crate) fn know(&self, message: &Value) -> bool {
        let kind = message["type"].as_str();
        kind.is_some_and(|kind| self.0.contains_key(kind))
    }

    /// Panics unless the message is one of those of its `type`.
    pub(crate) fn check(&self, message: &Value) {
        let kind = message["type"].as_str();
        let Some(known) = kind.and_then(|kind| self.0.get(kind)) else {
            panic!("no message of this type is described: {message}");
        };
        if known.iter().any(|schema| schema.is_valid(message)) {
            return;
        }
        let faults: Vec<String> = known
            .iter()
            .flat_map(|schema| schema.iter_errors(message))
            .map(|fault| format!("{fault} at {}", fault.instance_path()))
            .collect();
        panic!("{message} is not as described: {}", faults.join("; "));
    }
}

/// Panics unless the message is as this program's kinds describe it.
pub(crate) fn check_message(message: &Value) {
    MESSAGES.check(message);
}

/// Whether this program's kinds have messages of this `type`.
pub(crate) fn knows_message(message: &Value) -> bool {
    MESSAGES.know(message)
}

/// Returns what is wrong with an example of a message, whose schema this is.
pub(crate) fn message_faults(schema: &Value, example: &Value) -> Vec<String> {
    let mut schema = schema.clone();
    close(&mut schema);
    faults(&lazily(|| schema), example)
}

/// Returns what is wrong with an example of a body, a parameter or an answer, whose schema this is.
pub(crate) fn example_faults(schema: &Value, example: &Value) -> Vec<String> {
    let schema = json!({
        "allOf": [schema],
        "unevaluatedProperties": false,
        "components": { "schemas": DOCUMENT["components"]["schemas"] },
    });
    faults(&lazily(|| schema), example)
}

fn faults(schema: &Lazy, value: &Value) -> Vec<String> {
    schema
        .iter_errors(value)
        .map(|fault| format!("{fault} at {}", fault.instance_path()))
        .collect()
}

/// Allows no members but those that the schema describes.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            let is_open = members.contains_key("additionalProperties");
            if members.contains_key("properties") && !is_open {
                members.insert("additionalProperties".into(), false.into());
            }
            members.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// An operation's answers in JSON, by their status. `None`: an answer that is not JSON.
type Answers = HashMap<u16, Option<Lazy>>;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| tidings::http::openapi(""));

/// The operations, by method and path.
static OPERATIONS: LazyLock<Vec<(String, Vec<String>, Answers)>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for (path, methods) in DOCUMENT["paths"].as_object().unwrap() {
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        for (method, operation) in methods.as_object().unwrap() {
            let mut answers = Answers::new();
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let Ok(status) = status.parse() else {
                    continue;
                };
                let media = if status < 400 {
                    "application/json"
                } else {
                    "application/problem+json"
                };
                let schema = answer["content"][media].get("schema");
                let schema = schema.map(|schema| {
                    lazily(move || {
                        json!({
                            "allOf": [schema],
                            "unevaluatedProperties": false,
                            "components": DOCUMENT["components"],
                        })
                    })
                });
                answers.insert(status, schema);
            }
            all.push((method.to_uppercase(), path.clone(), answers));
        }
    }
    all
});

/// Panics unless the answer to a request is described. A URL or method that does not exist, and what the framework
/// rejects before it has found a route, are not.
pub(crate) fn check_answer(method: &str, path: &str, status: u16, answer: &Value) {
    let path: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    let fits = |known: &[String]| {
        let same = |(known, given): (&String, &&str)| known.starts_with('{') || known == given;
        known.len() == path.len() && known.iter().zip(&path).all(same)
    };
    // A literal segment takes precedence over a parameter.
    let found = OPERATIONS
        .iter()
        .filter(|(known_method, known, _)| known_method == method && fits(known))
        .min_by_key(|(_, known, _)| known.iter().filter(|part| part.starts_with('{')).count());
    let Some((_, known, answers)) = found else {
        return;
    };
    let path = known.join("/");
    if path.starts_with("/monitor") {
        return;
    }
    let Some(schema) = answers.get(&status) else {
        panic!("{method} {path} is not described to answer {status}: {answer}");
    };
    let Some(schema) = schema else {
        return;
    };
    let faults = faults(schema, answer);
    assert!(
        faults.is_empty(),
        "{method} {path} is not described to answer {status} with {answer}: {}",
        faults.join("; ")
    );
}
