//! The only encoder: what goes out on a stream, as bytes.
//!
//! A message is a flat JSON object. The three transports carry the same JSON and differ in framing
//! only: a WebSocket text frame, an SSE event, an element of a poll's `messages`. An event's bytes are
//! made once per encoding and kept in the event (invariant 8); control messages and snapshots belong to
//! one connection and are made for it. What clients send is read in [`client`].

pub mod client;
mod control;
pub mod form;

use std::io::Write;
use std::sync::Arc;

use serde_json::{Map, Value};

pub use self::control::{Close, Control, ResetReason};
use self::form::Form;
use crate::event::Event;
pub use crate::event::timestamp;
use crate::id::Cursor;
use crate::kind::job;

/// How a message is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Bare JSON, an element of a poll's answer.
    Json,
    /// An SSE event without a name, so that one `onmessage` hears all.
    Sse,
    /// An SSE event named after the message's `type`.
    SseNamed,
    /// An unmasked, unfragmented WebSocket text frame.
    WebSocket,
}

/// One of the forms in which an event may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// How it is wrapped.
    pub framing: Framing,
    /// In what form its fields are told.
    pub form: Form,
    /// A job's `status` in upper case, for clients that compare it so.
    pub upper_status: bool,
}

impl Encoding {
    fn key(self) -> u16 {
        self.framing as u16 | (self.form as u16) << 4 | u16::from(self.upper_status) << 8
    }
}

/// An event's bytes in one encoding: made on the first call, shared afterwards.
pub fn event(event: &Event, encoding: Encoding) -> &Arc<[u8]> {
    event.frame(encoding.key(), || {
        let (name, fields) = form::told(event, encoding.form);
        // An upload's `status` has words of its own.
        let upper_status = encoding.upper_status && encoding.form != Form::Upload;
        let json = json(event, name, &fields, upper_status);
        frame(encoding.framing, name, Some(event.cursor()), &json)
    })
}

/// An event as the bare JSON object, for answers over plain HTTP.
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
    // Upper case is an old habit of the clients of jobs, and of nobody else's.
    if upper_status && event.kind == job::KIND {
        json.extend_from_slice(&with_upper_status(fields).as_bytes()[1..]);
    } else {
        json.extend_from_slice(&fields.as_bytes()[1..]);
    }
    json
}

/// A JSON object that is a message of its own kind, wrapped for a WebSocket.
pub fn text_frame(json: &[u8]) -> Vec<u8> {
    frame(Framing::WebSocket, "", None, json)
}

fn with_upper_status(fields: &str) -> String {
    // Too deeply nested to be read back: as it is.
    let Ok(mut object) = serde_json::from_str::<Map<String, Value>>(fields) else {
        return fields.to_owned();
    };
    if let Some(Value::String(status)) = object.get_mut("status") {
        status.make_ascii_uppercase();
    }
    serde_json::to_string(&object).expect("an object is JSON")
}

/// A control message's bytes.
pub fn control(control: &Control, framing: Framing) -> Vec<u8> {
    let sse = matches!(framing, Framing::Sse | Framing::SseNamed);
    match control {
        // A comment plus an `id:` line: moves Last-Event-ID and reaches no handler.
        Control::Heartbeat { cursor, .. } if sse => {
            format!(": heartbeat\nid: {cursor}\n\n").into_bytes()
        }
        Control::Closing(close) if sse => {
            let mut bytes = format!("retry: {}\n", close.retry_ms().unwrap_or(0)).into_bytes();
            bytes.extend(frame(framing, control.name(), None, &control.json()));
            bytes
        }
        Control::Ready(cursor) => frame(framing, control.name(), Some(*cursor), &control.json()),
        _ => frame(framing, control.name(), None, &control.json()),
    }
}

/// Wraps a JSON object. `json` holds no line break: it is compact, and JSON strings escape theirs.
fn frame(framing: Framing, name: &str, cursor: Option<Cursor>, json: &[u8]) -> Vec<u8> {
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
            bytes.extend_from_slice(b"data: ");
            bytes.extend_from_slice(json);
            bytes.extend_from_slice(b"\n\n");
        }
    }
    bytes
}

/// The head of a final, unmasked text frame (RFC 6455, 5.2).
fn text_frame_header(length: usize, bytes: &mut Vec<u8>) {
    const FINAL_TEXT: u8 = 0x81;
    bytes.push(FINAL_TEXT);
    match length {
        0..=125 => bytes.push(length as u8),
        126..=0xFFFF => {
            bytes.push(126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
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

    use super::*;
    use crate::event::{Class, Draft};
    use crate::id::{Epoch, Kind};

    fn sample(fields: &str) -> Event {
        let cursor = Cursor {
            epoch: "00c0ffee".parse::<Epoch>().unwrap(),
            seq: 7,
        };
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
        let json = r#"{"type":"job_progress","cursor":"00c0ffee-7","school_id":3,"seq":7,"timestamp":"2023-11-14T22:13:20.123Z","job_id":"42","status":"in_progress"}"#;
        let text = |framing| {
            let bytes = event(
                &sample,
                Encoding {
                    framing,
                    form: Form::Standard,
                    upper_status: false,
                },
            );
            String::from_utf8_lossy(bytes).into_owned()
        };
        assert_eq!(text(Framing::Json), json);
        assert_eq!(
            text(Framing::Sse),
            format!("id: 00c0ffee-7\ndata: {json}\n\n")
        );
        assert_eq!(
            text(Framing::SseNamed),
            format!("id: 00c0ffee-7\nevent: job_progress\ndata: {json}\n\n")
        );
        let frame = event(
            &sample,
            Encoding {
                framing: Framing::WebSocket,
                form: Form::Standard,
                upper_status: false,
            },
        );
        assert_eq!(frame[..4], [0x81, 126, 0, json.len() as u8]);
        assert_eq!(&frame[4..], json.as_bytes());
    }

    #[test]
    fn upper_case_statuses_change_nothing_else() {
        let sample = sample(r#"{"status":"in_progress","metadata":{"status":"in_progress"}}"#);
        let json: Value = serde_json::from_slice(&event_json(&sample, true)).unwrap();
        assert_eq!(json["status"], "IN_PROGRESS");
        assert_eq!(json["metadata"]["status"], "in_progress");
    }

    #[test]
    fn a_snapshot_says_so() {
        let json: Value =
            serde_json::from_slice(&event_json(&sample("{\"a\":1}").into_snapshot(), false))
                .unwrap();
        assert_eq!(json["snapshot"], true);
    }
}
