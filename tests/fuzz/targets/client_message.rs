//! Client messages over a WebSocket: arbitrary text, and structured JSON, whose white space must make no difference.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tidings::wire::client::ClientMessage;
use tidings_fuzz::bounds::check_parser;
use tidings_fuzz::shapes::{object, text};

#[derive(Debug)]
enum Message {
    Raw(String),
    Json(Value),
}

impl<'a> Arbitrary<'a> for Message {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Message> {
        if u.ratio(1, 3)? {
            return Ok(Message::Raw(u.arbitrary()?));
        }
        let mut fields = object(u, 3)?;
        let name = u.choose(&["type", "action"])?.to_string();
        let verb = match u.ratio(1, 10)? {
            true => text(u)?,
            false => u
                .choose(&["ping", "subscribe", "unsubscribe", "auth", "publish"])?
                .to_string(),
        };
        fields.insert(name, verb.into());
        Ok(Message::Json(Value::Object(fields)))
    }
}

/// Parses a message, and checks the answer to an invalid one.
fn parsed(text: &str) -> String {
    let read = check_parser(text.len(), || ClientMessage::parse(text));
    if let Err(error) = &read {
        assert!(!error.code().is_empty());
        // The answer must not grow with the message.
        assert!(error.to_string().len() < 1_024, "{error}");
    }
    format!("{read:?}")
}

fuzz_target!(|message: Message| {
    match message {
        Message::Raw(text) => drop(parsed(&text)),
        Message::Json(value) => {
            let wide = serde_json::to_string_pretty(&value).expect("a value is written");
            assert_eq!(parsed(&value.to_string()), parsed(&wide));
        }
    }
});
