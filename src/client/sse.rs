//! A parser of Server-Sent Events without I/O, after the HTML standard (9.2.6).

use super::ClientError;
use super::message::MESSAGE_MAX_BYTES;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// An event with data. `id` is the one in its own block, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerSentEvent {
    pub(super) data: String,
    pub(super) event: Option<String>,
    pub(super) id: Option<String>,
}

/// Takes the bytes of a stream as they arrive. A block that is cut off is discarded.
#[derive(Default)]
pub(super) struct SseParser {
    /// The line that has begun.
    line: Vec<u8>,
    /// Whether the last line ended with a carriage return, to which a line feed may belong.
    after_return: bool,
    has_first_line: bool,
    data: Option<String>,
    event: Option<String>,
    id: Option<String>,
}

impl SseParser {
    /// Takes a piece of the stream and returns the events that it completes. Fails if an event is too large.
    pub(super) fn feed(&mut self, mut chunk: &[u8]) -> Result<Vec<ServerSentEvent>, ClientError> {
        let mut events = Vec::new();
        while let Some(end) = chunk.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (part, rest) = chunk.split_at(end);
            chunk = &rest[1..];
            let is_second_half = rest[0] == b'\n' && self.after_return && part.is_empty();
            self.after_return = rest[0] == b'\r';
            if is_second_half {
                continue;
            }
            self.line.extend_from_slice(part);
            events.extend(self.take_line());
        }
        if !chunk.is_empty() {
            self.after_return = false;
            self.line.extend_from_slice(chunk);
        }
        let waiting = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if waiting > MESSAGE_MAX_BYTES {
            return Err(ClientError::Unreadable("an event is too large".into()));
        }
        Ok(events)
    }

    fn take_line(&mut self) -> Option<ServerSentEvent> {
        let line = std::mem::take(&mut self.line);
        let mut line = &*line;
        if !std::mem::replace(&mut self.has_first_line, true) {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        if line.is_empty() {
            let (data, event, id) = (self.data.take(), self.event.take(), self.id.take());
            let event = event.filter(|name| !name.is_empty());
            return data.map(|data| ServerSentEvent { data, event, id });
        }
        let line = String::from_utf8_lossy(line);
        let (name, value) = line.split_once(':').unwrap_or((&*line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "event" => self.event = Some(value.to_owned()),
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_vector_is_parsed_as_it_says() {
        let vectors = include_str!("../../clients/vectors/sse.json");
        let vectors: Value = serde_json::from_str(vectors).unwrap();
        let cases = vectors["cases"].as_array().unwrap();
        assert!(cases.len() > 10);
        for case in cases {
            let mut parser = SseParser::default();
            let mut events = Vec::new();
            for chunk in case["chunks"].as_array().into_iter().flatten() {
                let chunk = chunk.as_str().unwrap().as_bytes();
                events.extend(parser.feed(chunk).unwrap());
            }
            for chunk in case["base64"].as_array().into_iter().flatten() {
                let chunk = BASE64_STANDARD.decode(chunk.as_str().unwrap()).unwrap();
                events.extend(parser.feed(&chunk).unwrap());
            }
            let expected = case["events"].as_array().unwrap();
            let name = &case["name"];
            assert_eq!(events.len(), expected.len(), "{name}: {events:?}");
            for (event, expected) in events.iter().zip(expected) {
                assert_eq!(event.data, expected["data"], "{name}");
                assert_eq!(event.event.as_deref(), expected["event"].as_str(), "{name}");
                assert_eq!(event.id.as_deref(), expected["id"].as_str(), "{name}");
            }
        }
    }
}
