//! The descriptions of the interface have an example of every message, body and answer, and the examples keep to the
//! schemas.

use serde_json::Value;
use tidings::wire::client::ClientMessage;

use crate::support::contract::message_faults;

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
