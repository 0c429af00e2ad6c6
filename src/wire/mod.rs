//! The only encoder: turns messages into the bytes of a stream.
//!
//! A message is a flat JSON object. The three transports carry the same JSON and differ only in framing: a WebSocket text
//! frame, an SSE event, or an element of a poll's `messages`. An event is encoded once per encoding, and the bytes are kept
//! in the event (invariant 8). Control messages and snapshots belong to one connection and are encoded for it. [`client`] and
//! `json` parse what clients send.

pub mod client;
mod control;
pub(crate) mod example;
mod fields;
pub mod form;
pub(crate) mod json;
pub(crate) mod schema;

use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;

pub use self::control::{Close, Control, ResetReason};
use self::fields::Cut;
pub use self::fields::numeric_id;
use self::form::Form;
use crate::event::Event;
pub use crate::event::timestamp;
use crate::id::Cursor;
use crate::kind::job;

/// How a message is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Bare JSON, an element of a poll's answer.
    Json,
    /// An SSE event without a name, so that a single `onmessage` receives all of them.
    Sse,
    /// An SSE event named after the message's `type`.
    SseNamed,
    /// An unmasked, unfragmented WebSocket text frame.
    WebSocket,
}

/// An encoding of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// The framing.
    pub framing: Framing,
    /// The form of the event's fields.
    pub form: Form,
    /// Whether a job's `status` is in upper case, for clients that expect it.
    pub upper_status: bool,
    /// Whether ids that are plain decimal integers are JSON numbers, for clients that expect them.
    pub numeric_ids: bool,
    /// The maximum size of an event's JSON in bytes. A larger event loses its `result` or the
    /// `details` of its error, and if necessary `metadata` and `info`.
    pub max_event_bytes: Option<u32>,
}

impl Encoding {
    /// Returns an encoding in the standard form.
    pub fn new(framing: Framing) -> Encoding {
        Encoding {
            framing,
            form: Form::Standard,
            upper_status: false,
            numeric_ids: false,
            max_event_bytes: None,
        }
    }

    /// Identifies a frame among an event's frames. The size limit is not part of the key: it only selects a cut, so readers
    /// with different limits share the same few frames.
    fn key(self, cut: Cut) -> u16 {
        self.framing as u16
            | (self.form as u16) << 4
            | u16::from(self.upper_status) << 8
            | u16::from(self.numeric_ids) << 9
            | (cut as u16) << 10
    }
}

/// Returns an event's bytes in one encoding. They are encoded on the first call and shared afterwards.
pub fn event(event: &Event, encoding: Encoding) -> &Arc<[u8]> {
    let whole = framed(event, encoding, Cut::Nothing);
    let Some(max_bytes) = encoding.max_event_bytes else {
        return whole;
    };
    let fits = |frame: &[u8]| json_of(encoding.framing, frame).len() <= max_bytes as usize;
    if fits(whole) {
        return whole;
    }
    let without_result = framed(event, encoding, Cut::Result);
    match fits(without_result) {
        true => without_result,
        false => framed(event, encoding, Cut::All),
    }
}

fn framed(event: &Event, encoding: Encoding, cut: Cut) -> &Arc<[u8]> {
    event.frame(encoding.key(cut), || {
        let (name, fields) = form::message_of(event, encoding.form);
        let fields = fields::adapted(fields, encoding.numeric_ids, cut);
        // The `status` of an upload has its own values.
        let upper_status = encoding.upper_status && encoding.form != Form::Upload;
        let json = json(event, name, &fields, upper_status);
        frame(encoding.framing, name, Some(event.cursor()), &json)
    })
}

/// Returns the JSON in a frame.
fn json_of(framing: Framing, frame: &[u8]) -> &[u8] {
    let start = match framing {
        Framing::Json => 0,
        Framing::WebSocket => match frame.get(1) {
            Some(127) => 10,
            Some(126) => 4,
            _ => 2,
        },
        Framing::Sse | Framing::SseNamed => {
            let data = frame.windows(DATA.len()).position(|part| part == DATA);
            data.map_or(0, |at| at + DATA.len())
        }
    };
    frame[start.min(frame.len())..].trim_ascii_end()
}

/// The prefix of the JSON in an SSE block.
const DATA: &[u8] = b"data: ";

/// Encodes an event as a bare JSON object, for answers over plain HTTP.
pub fn event_json(event: &Event, upper_status: bool) -> Vec<u8> {
    let name = event.draft.event_type.name;
    json(event, name, &event.draft.fields, upper_status)
}

fn json(event: &Event, name: &str, fields: &str, upper_status: bool) -> Vec<u8> {
    let mut json = Vec::with_capacity(fields.len() + 160);
    let Event { school, seq, .. } = event;
    let (at, cursor) = (timestamp(event.at), event.cursor());
    write!(json, r#"{{"type":"{name}","cursor":"{cursor}","school_id":{school},"seq":{seq},"timestamp":"{at}","#)
        .expect("writing to memory succeeds");
    if event.snapshot {
        json.extend_from_slice(br#""snapshot":true,"#);
    }
    // Only existing clients of jobs expect upper case.
    if upper_status && event.kind == job::KIND {
        json.extend_from_slice(&with_upper_status(fields, event.draft.status).as_bytes()[1..]);
    } else {
        json.extend_from_slice(&fields.as_bytes()[1..]);
    }
    json
}

/// Frames a JSON message for a WebSocket.
pub fn text_frame(json: &[u8]) -> Vec<u8> {
    frame(Framing::WebSocket, "", None, json)
}

/// Writes a job's status in upper case. The first text of this form is the status itself: of the fields before it, one is a
/// plain name, and quotes in the other, the id, are escaped.
fn with_upper_status(fields: &str, status: &str) -> String {
    let lower = format!(r#""status":"{status}""#);
    let upper = format!(r#""status":"{}""#, status.to_ascii_uppercase());
    fields.replacen(&lower, &upper, 1)
}

/// Encodes a control message.
pub fn control(control: &Control, framing: Framing) -> Vec<u8> {
    let sse = matches!(framing, Framing::Sse | Framing::SseNamed);
    match control {
        // Named on every SSE stream: it updates Last-Event-ID without reaching `onmessage`, and clients can listen for it.
        // Popular clients would pass a block without data to their handlers as an empty message.
        Control::Heartbeat { cursor, .. } if sse => {
            frame(Framing::SseNamed, control.name(), *cursor, &control.json())
        }
        Control::Connected { .. } if sse => {
            let mut bytes = format!("retry: {RETRY_MS}\n").into_bytes();
            bytes.extend(frame(framing, control.name(), None, &control.json()));
            bytes
        }
        Control::Closing { close, .. } if sse => {
            let mut bytes = format!("retry: {}\n", close.retry_ms().unwrap_or(0)).into_bytes();
            bytes.extend(frame(framing, control.name(), None, &control.json()));
            bytes
        }
        Control::Ready(cursor) => frame(framing, control.name(), Some(*cursor), &control.json()),
        _ => frame(framing, control.name(), None, &control.json()),
    }
}

/// How long an `EventSource` waits before it reconnects, in milliseconds, unless `closing` says otherwise.
const RETRY_MS: u32 = 2_000;

/// Frames a JSON object. `json` contains no line break: it is compact, and JSON strings escape theirs.
fn frame(framing: Framing, name: &str, cursor: Option<Cursor>, json: &[u8]) -> Vec<u8> {
    let json = &*without_line_separators(json);
    let mut bytes = Vec::with_capacity(json.len() + 64);
    match framing {
        Framing::Json => bytes.extend_from_slice(json),
        Framing::WebSocket => {
            text_frame_header(json.len(), &mut bytes);
            bytes.extend_from_slice(json);
        }
        Framing::Sse | Framing::SseNamed => {
            if let Some(cursor) = cursor {
                writeln!(bytes, "id: {cursor}").expect("writing to memory succeeds");
            }
            if framing == Framing::SseNamed {
                writeln!(bytes, "event: {name}").expect("writing to memory succeeds");
            }
            bytes.extend_from_slice(DATA);
            bytes.extend_from_slice(json);
            bytes.extend_from_slice(b"\n\n");
        }
    }
    bytes
}

/// Escapes U+0085, U+2028 and U+2029. JSON allows them unescaped, but readers that split text at Unicode's line breaks, such
/// as Python's `splitlines`, would cut a message in two. In JSON they occur only in strings.
fn without_line_separators(json: &[u8]) -> Cow<'_, [u8]> {
    let escape_at = |rest: &[u8]| match rest {
        [0xC2, 0x85, ..] => Some((2, br"\u0085")),
        [0xE2, 0x80, 0xA8, ..] => Some((3, br"\u2028")),
        [0xE2, 0x80, 0xA9, ..] => Some((3, br"\u2029")),
        _ => None,
    };
    if !json.iter().any(|byte| matches!(byte, 0xC2 | 0xE2)) {
        return json.into();
    }
    let mut escaped = Vec::new();
    let mut copied = 0;
    for at in 0..json.len() {
        if let Some((length, escape)) = escape_at(&json[at..]) {
            escaped.extend_from_slice(&json[copied..at]);
            escaped.extend_from_slice(escape);
            copied = at + length;
        }
    }
    if copied == 0 {
        return json.into();
    }
    escaped.extend_from_slice(&json[copied..]);
    escaped.into()
}

/// Writes the header of a final, unmasked text frame (RFC 6455, 5.2).
fn text_frame_header(length: usize, bytes: &mut Vec<u8>) {
    const FINAL_TEXT: u8 = 0x81;
    bytes.push(FINAL_TEXT);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ 0..=125), _) => bytes.push(length),
        (_, Ok(length)) => {
            bytes.push(126);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            bytes.push(127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::Value;

    use super::*;
    use crate::event::{Class, Draft};
    use crate::id::{Epoch, Kind};

    fn sample(fields: &str) -> Event {
        let cursor = ("00c0ffee".parse::<Epoch>().unwrap(), 7);
        let draft = Draft {
            event_type: &crate::kind::job::JOB_PROGRESS,
            class: Class::Tick,
            status: "in_progress",
            category: None,
            fields: fields.into(),
        };
        let at = DateTime::from_timestamp_millis(1_700_000_000_123).unwrap();
        Event::new(
            cursor,
            3.try_into().unwrap(),
            Kind::new("jobs"),
            "42".parse().unwrap(),
            at,
            draft,
        )
    }

    #[test]
    fn every_framing_carries_the_same_json() {
        let sample = sample(r#"{"job_id":"42","status":"in_progress"}"#);
        let cursor = sample.cursor();
        let json = r#"{"type":"job_progress","cursor":"CURSOR","school_id":3,"seq":7,"timestamp":"2023-11-14T22:13:20.123Z","job_id":"42","status":"in_progress"}"#;
        let json = json.replace("CURSOR", &cursor.to_string());
        assert!(cursor.to_string().starts_with("00c0ffee-7-"), "{cursor}");
        let text = |framing| {
            let bytes = event(&sample, Encoding::new(framing));
            String::from_utf8_lossy(bytes).into_owned()
        };
        assert_eq!(text(Framing::Json), json);
        assert_eq!(
            text(Framing::Sse),
            format!("id: {cursor}\ndata: {json}\n\n")
        );
        assert_eq!(
            text(Framing::SseNamed),
            format!("id: {cursor}\nevent: job_progress\ndata: {json}\n\n")
        );
        let frame = event(&sample, Encoding::new(Framing::WebSocket));
        assert_eq!(frame[..4], [0x81, 126, 0, json.len() as u8]);
        assert_eq!(&frame[4..], json.as_bytes());
    }

    #[test]
    fn upper_case_statuses_change_nothing_else() {
        let id = r#"","status":"in_progress"#;
        let fields = serde_json::json!({
            "job_id": id,
            "job_type": "in_progress",
            "status": "in_progress",
            "metadata": {"status": "in_progress"},
        });
        let sample = sample(&fields.to_string());
        let json: Value = serde_json::from_slice(&event_json(&sample, true)).unwrap();
        assert_eq!(
            (&json["status"], &json["job_id"]),
            (&"IN_PROGRESS".into(), &id.into())
        );
        assert_eq!(
            (&json["job_type"], &json["metadata"]),
            (&fields["job_type"], &fields["metadata"])
        );
    }

    #[test]
    fn unicode_line_separators_are_escaped_in_every_framing() {
        let fields = "{\"message\":\"a\u{2028}b\u{2029}c\u{85}d\u{2030}\u{c4}\"}";
        let sample = sample(fields);
        for framing in [
            Framing::Json,
            Framing::Sse,
            Framing::SseNamed,
            Framing::WebSocket,
        ] {
            let frame = event(&sample, Encoding::new(framing));
            let json = std::str::from_utf8(json_of(framing, frame)).unwrap();
            assert!(json.contains(r"a\u2028b\u2029c\u0085d"), "{json}");
            let read: Value = serde_json::from_str(json).unwrap();
            assert_eq!(read["message"], "a\u{2028}b\u{2029}c\u{85}d\u{2030}\u{c4}");
        }
    }

    #[test]
    fn an_event_beyond_the_limit_loses_its_result_and_then_its_metadata() {
        let fields = format!(
            r#"{{"job_id":"42","metadata":{{"a":"{}"}},"result":"{}"}}"#,
            "m".repeat(1_000),
            "r".repeat(1_000)
        );
        let sample = sample(&fields);
        let read = |max_bytes: u32| {
            let encoding = Encoding {
                max_event_bytes: Some(max_bytes),
                ..Encoding::new(Framing::WebSocket)
            };
            let json = json_of(encoding.framing, event(&sample, encoding));
            serde_json::from_slice::<Value>(json).unwrap()
        };
        let whole = read(10_000);
        assert_eq!(whole.get("truncated"), None);
        let cut = read(2_000);
        assert_eq!(cut["truncated"], true);
        assert_eq!(
            (&cut["result"], &cut["metadata"]),
            (&Value::Null, &whole["metadata"])
        );
        let bare = read(500);
        assert_eq!(
            (&bare["truncated"], &bare["result"]),
            (&true.into(), &Value::Null)
        );
        assert_eq!(
            (&bare["metadata"], &bare["job_id"]),
            (&serde_json::json!({}), &"42".into())
        );
    }

    #[test]
    fn an_event_beyond_the_limit_loses_the_details_of_its_error() {
        let details = "d".repeat(1_000);
        let fields = format!(
            r#"{{"job_id":"42","error":{{"code":"exit","message":"code 3","details":"{details}"}}}}"#
        );
        let encoding = Encoding {
            max_event_bytes: Some(500),
            ..Encoding::new(Framing::Json)
        };
        let sample = sample(&fields);
        let cut: Value = serde_json::from_slice(event(&sample, encoding)).unwrap();
        assert_eq!(
            cut["error"],
            serde_json::json!({"code": "exit", "message": "code 3"})
        );
        assert_eq!(cut["truncated"], true);
    }

    #[test]
    fn a_snapshot_says_so() {
        let mut sample = sample("{\"a\":1}");
        sample.snapshot = true;
        let json: Value = serde_json::from_slice(&event_json(&sample, false)).unwrap();
        assert_eq!(json["snapshot"], true);
    }
}
