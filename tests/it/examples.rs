//! The descriptions of the interface have an example of every message, body and answer, and the examples keep to the
//! schemas.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Value, json};
use tidings::kind::{DESCRIPTIONS, Description};
use tidings::wire::client::ClientMessage;

use crate::support::contract::{example_faults, message_faults};
use crate::support::*;

/// The examples of each message.
fn examples(document: &Value) -> Vec<(&String, &Value, Vec<&Value>)> {
    let messages = document["components"]["messages"].as_object().unwrap();
    messages
        .iter()
        .map(|(name, message)| {
            let examples = message["examples"].as_array().into_iter().flatten();
            (name, message, examples.collect())
        })
        .collect()
}

#[test]
fn every_message_has_an_example_that_is_valid() {
    let document = tidings::http::asyncapi("");
    let all = examples(&document);
    assert!(all.len() > 30, "{}", all.len());
    for (name, message, examples) in all {
        assert!(!examples.is_empty(), "{name} has no example");
        for example in examples {
            assert_eq!(&example["name"], name);
            let faults = message_faults(&message["payload"], &example["payload"]);
            assert!(faults.is_empty(), "{name}: {faults:?} in {example}");
        }
    }
}

#[test]
fn every_example_of_a_message_of_a_client_can_be_read() {
    let document = tidings::http::asyncapi("");
    let mut read = 0;
    for (name, _, examples) in examples(&document) {
        for example in examples.iter().filter(|_| name.starts_with("Client")) {
            let parsed = ClientMessage::parse(&example["payload"].to_string());
            assert!(parsed.is_ok(), "{name}: {parsed:?}");
            read += 1;
        }
    }
    assert!(read > 5, "{read}");
}

/// The example of an event is that of its fields, in the envelope that the encoder writes.
#[test]
fn the_example_of_an_event_has_the_fields_of_every_event() {
    let document = tidings::http::asyncapi("");
    let types = tidings::kind::DESCRIPTIONS
        .iter()
        .flat_map(|description| description.event_types);
    for event_type in types {
        let found = examples(&document)
            .into_iter()
            .flat_map(|(_, _, examples)| examples)
            .find(|example| example["payload"]["type"] == event_type.name);
        let example = &found.unwrap()["payload"];
        let cursor = example["cursor"].as_str().unwrap();
        let cursor: tidings::id::Cursor = cursor.parse().unwrap();
        assert_eq!(example["seq"], cursor.place.seq, "{example}");
        assert!(cursor.place.tag.is_some(), "{example}");
        assert_eq!(example["timestamp"], "2026-03-02T02:21:00.000Z");
        assert_eq!(example["school_id"], 7);
    }
}

/// An operation of the HTTP API.
struct Operation<'a> {
    method: String,
    path: &'a str,
    described: &'a Value,
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let paths = document["paths"].as_object().unwrap().iter();
    let all = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(move |(method, described)| Operation {
            method: method.to_uppercase(),
            path,
            described,
        })
    });
    all.collect()
}

impl<'a> Operation<'a> {
    /// The contents of the body and of the answers, with the status (empty for the body) and the media type.
    fn contents(&self) -> Vec<(&'a str, &'a str, &'a Value)> {
        let body = ("", &self.described["requestBody"]);
        let answers = self.described["responses"].as_object().unwrap().iter();
        let answers = answers.map(|(status, answer)| (status.as_str(), answer));
        let all = std::iter::once(body).chain(answers);
        let each = all.flat_map(|(status, part)| {
            let media = part["content"].as_object().into_iter().flatten();
            media.map(move |(media, content)| (status, media.as_str(), content))
        });
        each.collect()
    }

    /// The example of the body in JSON.
    fn body(&self, document: &Value) -> Option<Value> {
        let content = &self.described["requestBody"]["content"]["application/json"];
        content.is_object().then(|| {
            let examples = examples_of(content, document);
            examples.into_iter().next().unwrap().clone()
        })
    }

    /// The status and the example of the answer in JSON to a request that succeeds.
    fn answer(&self) -> Option<(u16, &'a Value)> {
        let answers = self.described["responses"].as_object().unwrap().iter();
        let mut examples = answers.filter_map(|(status, answer)| {
            let example = answer["content"]["application/json"].get("example")?;
            Some((status.parse().unwrap(), example))
        });
        examples.find(|(status, _)| *status < 300)
    }

    /// The path, with the examples of its parameters.
    fn example_path(&self) -> String {
        let mut path = self.path.to_owned();
        for parameter in self.described["parameters"]
            .as_array()
            .into_iter()
            .flatten()
        {
            if parameter["in"] == "path" {
                let example = &parameter["example"];
                let text = example
                    .as_str()
                    .map_or_else(|| example.to_string(), str::to_owned);
                let name = format!("{{{}}}", parameter["name"].as_str().unwrap());
                path = path.replace(&name, &text);
            }
        }
        assert!(!path.contains(['{', ' ']), "{path}");
        path
    }
}

/// What a reference refers to, or the value itself.
fn resolved<'a>(value: &'a Value, document: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => value,
    }
}

/// The examples of a content: its own, or else those of its schema.
fn examples_of<'a>(content: &'a Value, document: &'a Value) -> Vec<&'a Value> {
    if let Some(example) = content.get("example") {
        return vec![example];
    }
    if let Some(examples) = content["examples"].as_object() {
        let each = examples.values().map(|example| resolved(example, document));
        return each.map(|example| &example["value"]).collect();
    }
    let schema = resolved(&content["schema"], document);
    schema["examples"]
        .as_array()
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn every_body_and_every_answer_in_json_has_an_example() {
    let document = tidings::http::openapi("");
    let mut found = 0;
    for operation in operations(&document) {
        for (status, media, content) in operation.contents() {
            let is_data = media.contains("json") || media == "text/event-stream";
            if status.is_empty() || is_data {
                let (method, path) = (&operation.method, operation.path);
                let examples = examples_of(content, &document);
                assert!(!examples.is_empty(), "{method} {path} {status} {media}");
                found += 1;
            }
        }
    }
    assert!(found > 700, "{found}");
}

#[test]
fn every_example_of_a_body_or_an_answer_is_valid() {
    let document = tidings::http::openapi("");
    // The same problems are answers of many operations.
    let mut seen = HashSet::new();
    for operation in operations(&document) {
        for (status, media, content) in operation.contents() {
            for example in examples_of(content, &document) {
                let schema = &content["schema"];
                if seen.insert(format!("{schema} {example}")) {
                    let faults = example_faults(schema, example);
                    let (method, path) = (&operation.method, operation.path);
                    assert!(
                        faults.is_empty(),
                        "{method} {path} {status} {media}: {faults:?} in {example}"
                    );
                }
            }
        }
    }
    assert!(seen.len() > 150, "{}", seen.len());
}

#[test]
fn every_example_of_a_parameter_is_valid() {
    let document = tidings::http::openapi("");
    let mut seen = HashSet::new();
    for operation in operations(&document) {
        for parameter in operation.described["parameters"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let (path, schema) = (operation.path, &parameter["schema"]);
            let schema = schema.get("items").unwrap_or(schema);
            let own = schema["examples"].as_array().into_iter().flatten();
            let examples: Vec<_> = parameter.get("example").into_iter().chain(own).collect();
            // The values of the others are listed, or numbers, or only the pages for people know them.
            let is_plain = ["integer", "boolean"]
                .iter()
                .any(|plain| schema["type"] == *plain);
            let is_clear = is_plain || schema.get("enum").is_some();
            let is_for_people = ["/monitor", "/embed-files"]
                .iter()
                .any(|pages| path.starts_with(pages));
            let has_enough = !examples.is_empty() || is_clear || is_for_people;
            assert!(has_enough, "{path}: {parameter}");
            for example in examples {
                if seen.insert(format!("{schema} {example}")) {
                    let faults = example_faults(schema, example);
                    assert!(faults.is_empty(), "{path}: {faults:?} in {parameter}");
                }
            }
        }
    }
    assert!(seen.len() > 20, "{}", seen.len());
}

/// The places of all fields of a value: those in a list belong to the list.
fn fields(value: &Value) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                all.insert(name.clone());
                all.extend(fields(member).iter().map(|inner| format!("{name}.{inner}")));
            }
        }
        Value::Array(items) => items.iter().for_each(|item| all.extend(fields(item))),
        _ => {}
    }
    all
}

/// A school of its own for one operation, in which the requests of the document are made.
struct School<'a> {
    server: &'a Server,
    document: &'a Value,
    token: String,
}

impl School<'_> {
    /// Sends the example of an operation.
    async fn send(&self, operation: &Operation<'_>) -> (u16, Value) {
        let path = operation.example_path();
        let request = self.server.request(&operation.method, &path, &self.token);
        let request = match operation.body(self.document) {
            Some(body) => request.json(&body),
            None => request,
        };
        answer(request).await
    }

    async fn send_id(&self, id: &str) -> (u16, Value) {
        let all = operations(self.document);
        let mut all = all.iter();
        let found = all.find(|operation| operation.described["operationId"] == *id);
        self.send(found.unwrap_or_else(|| panic!("no operation {id}")))
            .await
    }

    /// Makes a subject of a kind, and carries out the verbs before this one, up to one that would end it.
    async fn lead_up_to(&self, description: &Description, verb: &str) {
        const ENDS: [&str; 4] = ["complete", "fail", "error", "remove"];
        let collection = description.kind.collection();
        let made_by = description.made_by;
        if verb == made_by {
            return;
        }
        let (status, made) = self.send_id(&format!("{collection}.{made_by}")).await;
        assert!(status < 300, "{status} {made}");
        let earlier = description.verbs.iter().take_while(|other| **other != verb);
        for other in earlier.take_while(|other| !ENDS.contains(other)) {
            let (status, answer) = self.send_id(&format!("{collection}.{other}")).await;
            assert_eq!(status, 200, "{other}: {answer}");
        }
    }
}

/// The kind of an operation's subject, and the verb.
fn verb_of(operation: &Operation<'_>) -> Option<(&'static Description, String)> {
    let id = operation.described["operationId"].as_str().unwrap();
    let (collection, verb) = id.split_once('.')?;
    let mut all = DESCRIPTIONS.iter();
    let description = all.find(|description| description.kind.collection() == collection)?;
    let verb = match verb {
        "put_limits" => "limits",
        "delete" => "remove",
        verb => verb,
    };
    Some((description, verb.to_owned()))
}

/// Each operation on subjects is carried out in a school of its own, after those that come before it in a subject's life.
#[tokio::test]
async fn the_example_of_a_body_is_accepted_and_answered_like_its_example() {
    let document = tidings::http::openapi("");
    let server = server().await;
    let mut sent = 0;
    for (operation, number) in operations(&document).iter().zip(1..) {
        let Some((description, verb)) = verb_of(operation) else {
            continue;
        };
        // It is not a command, and is sent below.
        if verb == "heartbeat" {
            continue;
        }
        let (expected_status, expected) = operation.answer().unwrap();
        let school = School {
            server: &server,
            document: &document,
            token: admin_of(number),
        };
        let until = match verb.as_str() {
            // These read a subject that has not ended.
            "read" | "list" => "complete",
            verb => verb,
        };
        school.lead_up_to(description, until).await;
        let (mut status, mut answer) = school.send(operation).await;
        if status == 409 && verb == "retry" {
            school.send_id("jobs.fail").await;
            (status, answer) = school.send(operation).await;
        }
        let (method, path) = (&operation.method, operation.path);
        assert_eq!(status, expected_status, "{method} {path}: {answer}");
        assert_eq!(
            fields(&answer),
            fields(expected),
            "{method} {path}: {answer}"
        );
        for same in [
            "type", "status", "message", "metadata", "progress", "attempt",
        ] {
            // The message of a schedule contains a time.
            if description.kind.collection() != "schedules" || same != "message" {
                assert_eq!(answer[same], expected[same], "{method} {path}: {same}");
            }
        }
        sent += 1;
    }
    assert!(sent > 25, "{sent}");
}

/// The operations that are not about the subjects of one kind.
#[tokio::test]
async fn the_examples_of_violations_tickets_links_and_pings_are_as_answers_are() {
    let document = tidings::http::openapi("");
    let receiver = json!({
        "name": "operations",
        "webhook": { "url": "http://127.0.0.1:9/", "secret": "whsec_YSBzZWNyZXQgZm9yIHRlc3RzIG9ubHkgb2YgMzIgYg==" },
    });
    let server = server_with(json!({ "notifiers": [receiver] })).await;
    let school = School {
        server: &server,
        document: &document,
        token: admin_of(7),
    };
    let all = operations(&document);
    let named = |id: &str| {
        let mut all = all.iter();
        all.find(|operation| operation.described["operationId"] == *id)
            .unwrap()
    };
    for id in [
        "characteristics.put",
        "characteristics.samples",
        "characteristics.violations",
    ] {
        let (status, answer) = school.send_id(id).await;
        assert_eq!(status, 200, "{id}: {answer}");
    }
    for id in [
        "violations.ack",
        "violations.list",
        "violations.unack",
        "tickets.create",
        "links.create",
        "pings.create",
        "pings.list",
        "devices.put",
        "devices.heartbeat",
        "notifiers.list",
        "notifiers.set_aside",
        "notifiers.dead_letters",
    ] {
        let operation = named(id);
        let (expected_status, expected) = operation.answer().unwrap();
        let (status, answer) = school.send(operation).await;
        assert_eq!(status, expected_status, "{id}: {answer}");
        let (given, expected) = (fields(&answer), fields(expected));
        match id.starts_with("notifiers.") {
            // Nothing has been delivered, and nothing has failed.
            true => assert!(
                given.is_subset(&expected) && !given.is_empty(),
                "{id}: {answer}"
            ),
            false => assert_eq!(given, expected, "{id}: {answer}"),
        }
    }
    let (_, created) = school.send_id("pings.create").await;
    let key = created["key"].as_str().unwrap();
    for (id, report) in [("ping.post.report", "/start"), ("ping.get.end", "")] {
        let path = format!("/ping/{key}{report}");
        let operation = named(id);
        let content = &operation.described["requestBody"]["content"]["text/plain"];
        let request = server.request(&operation.method, &path, "");
        let request = match examples_of(content, &document).first() {
            Some(body) => request.body(body.as_str().unwrap().to_owned()),
            None => request,
        };
        let (status, answer) = answer(request.header("Accept", "application/json")).await;
        let (expected_status, expected) = operation.answer().unwrap();
        assert_eq!(status, expected_status, "{id}: {answer}");
        assert_eq!(fields(&answer), fields(expected), "{id}: {answer}");
    }
}

#[tokio::test]
async fn the_example_of_a_batch_is_answered_like_its_example() {
    let document = tidings::http::openapi("");
    let batch = &document["paths"]["/api/batch"]["post"];
    let content = |part: &Value| part["content"]["application/x-ndjson"].clone();
    let body = content(&batch["requestBody"])["schema"]["examples"][0].clone();
    let expected = content(&batch["responses"]["200"])["example"].clone();
    let server = server().await;
    let results = server.batch(&worker(1), body.as_str().unwrap()).await;
    let expected: Vec<Value> = expected
        .as_str()
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(results.len(), expected.len());
    for (result, expected) in results.iter().zip(&expected) {
        assert_eq!(result["status"], 200);
        assert_eq!(fields(result), fields(expected), "{result}");
        assert_eq!(result["line"], expected["line"]);
    }
}

#[tokio::test]
async fn the_example_of_a_poll_begins_like_an_answer() {
    let document = tidings::http::openapi("");
    let server = server().await;
    let school = School {
        server: &server,
        document: &document,
        token: admin_of(7),
    };
    for description in DESCRIPTIONS {
        school.lead_up_to(description, "complete").await;
    }
    let types = |answer: &Value| {
        field(answer["messages"].as_array().unwrap(), "type")
            .into_iter()
            .cloned()
            .collect::<Vec<_>>()
    };
    let all = operations(&document);
    let streams = all
        .iter()
        .filter(|operation| operation.path.starts_with("/events/"));
    let mut polled = 0;
    for operation in streams {
        let (_, expected) = operation.answer().unwrap();
        let path = format!("{}?wait=0", operation.example_path());
        let request = server.request("GET", &path, &school.token);
        let (status, answer) = answer(request.header("Accept", "application/json")).await;
        assert_eq!(status, 200, "{path}: {answer}");
        let described = fields(expected);
        assert!(fields(&answer).is_superset(&described), "{path}: {answer}");
        assert_eq!(types(&answer)[..1], types(expected)[..1], "{path}");
        assert!(
            types(expected)
                .iter()
                .all(|name| types(&answer).contains(name)),
            "{path}"
        );
        polled += 1;
    }
    assert_eq!(polled, 2 * DESCRIPTIONS.len() + 1);
}
