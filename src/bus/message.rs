//! The encoding of messages between nodes.
//!
//! A message is one JSON object:
//!
//! ```json
//! {"v": 1, "node": "00c0ffee00c0ffee", "epoch": "2f1c9a77", "school": 7, "seq": 42, "before": 305419896, "events": [
//!     {"k": "jobs", "i": "scan-1", "t": "job_progress", "m": false, "s": "in_progress", "c": "scan",
//!      "at": 1767225600000, "f": {"progress": 40}}]}
//! ```
//!
//! `seq` is the number of the last event; the others precede it without a gap. `before` is the tag of the event before them, if it is
//! known: it shows a node whether the event that it delivered is still the one in the log. Nodes of neighbouring versions understand
//! one another: unknown fields are ignored, and only `seq` is used of a message that has another version, or an event of an unknown
//! kind, type or status. A message without `events` has only the number.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{NodeId, Outgoing, Party};
use crate::event::{Class, Draft, Event};
use crate::id::{SchoolId, Tag};
use crate::kind::{known_kind, known_status, known_type};
use crate::log::Hint;

/// The version of the events' encoding.
const VERSION: u32 = 1;

/// A message, with its events still encoded.
#[derive(Debug, Serialize, Deserialize)]
pub struct Message<'a> {
    v: u32,
    node: Cow<'a, str>,
    epoch: Cow<'a, str>,
    school: SchoolId,
    seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<u32>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    events: Option<&'a RawValue>,
}

/// An event on the bus.
#[derive(Serialize, Deserialize)]
struct Encoded<'a> {
    #[serde(rename = "k", borrow)]
    kind: Cow<'a, str>,
    #[serde(rename = "i", borrow)]
    subject: Cow<'a, str>,
    #[serde(rename = "t", borrow)]
    name: Cow<'a, str>,
    #[serde(rename = "m")]
    milestone: bool,
    #[serde(rename = "s", borrow)]
    status: Cow<'a, str>,
    #[serde(rename = "c", borrow, default, skip_serializing_if = "Option::is_none")]
    category: Option<Cow<'a, str>>,
    at: i64,
    #[serde(rename = "f", borrow)]
    fields: &'a RawValue,
}

/// A message that no node of this database can have sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is not a message of Tidings.
    #[error("it is not a message of Tidings")]
    Foreign,
    /// It is about another database.
    #[error("it is about another database")]
    OtherDatabase,
}

impl<'a> Message<'a> {
    /// Encodes what was committed in a school: up to `seq`, with these events at the end. Uses as many messages of at
    /// most `max_bytes` as are needed. Events that do not fit are replaced with their number.
    pub fn encode(
        sender: Party,
        school: SchoolId,
        seq: u64,
        events: &[Arc<Event>],
        max_bytes: usize,
    ) -> Vec<Outgoing> {
        let (node, epoch) = (sender.node.to_string(), sender.epoch.to_string());
        let message = |seq: u64, before: Option<Tag>, events: Option<&[String]>| {
            let events = events.map(|events| format!("[{}]", events.join(",")));
            let events = events.map(|json| RawValue::from_string(json).expect("it is JSON"));
            let message = Message {
                v: VERSION,
                node: (&*node).into(),
                epoch: (&*epoch).into(),
                school,
                seq,
                before: before.map(Tag::get),
                events: events.as_deref(),
            };
            Outgoing {
                school,
                payload: serde_json::to_vec(&message).expect("a message is JSON"),
            }
        };
        let overhead = message(u64::MAX, Some(Tag::new(u32::MAX)), Some(&[]))
            .payload
            .len();
        let room = max_bytes.saturating_sub(overhead);
        let mut messages = Vec::new();
        let (mut part, mut bytes) = (Vec::new(), 0);
        let (mut last, mut before) = (None, None);
        for event in events {
            let json = encode(event);
            let size = json.len() + 1;
            if bytes + size > room
                && let Some(last) = last.take()
            {
                messages.push(message(last, before, Some(&part)));
                (part, bytes) = (Vec::new(), 0);
            }
            if size > room {
                messages.push(message(event.seq, None, None));
                continue;
            }
            if part.is_empty() {
                before = event.before;
            }
            part.push(json);
            bytes += size;
            last = Some(event.seq);
        }
        messages.extend(last.map(|last| message(last, before, Some(&part))));
        let newest = events.last().map_or(0, |last| last.seq);
        if seq > newest {
            messages.push(message(seq, None, None));
        }
        messages
    }

    /// Reads a message without reading its events.
    pub fn decode(payload: &'a [u8]) -> Result<Message<'a>, Unreadable> {
        serde_json::from_slice(payload).map_err(|_| Unreadable::Foreign)
    }

    /// Returns the hint for a receiver. Returns `None` if the receiver has sent the message itself.
    pub fn hint(&self, receiver: Party) -> Result<Option<Hint>, Unreadable> {
        let node: NodeId = self.node.parse().map_err(|_| Unreadable::Foreign)?;
        if *self.epoch != *receiver.epoch.to_string() {
            return Err(Unreadable::OtherDatabase);
        }
        if node == receiver.node {
            return Ok(None);
        }
        let events = self.events.filter(|_| self.v == VERSION);
        let events = events.and_then(|events| self.read(events, receiver));
        Ok(Some(match events {
            Some(events) if !events.is_empty() => Hint::Events(events),
            _ => Hint::UpTo(self.school, self.seq),
        }))
    }

    /// Reads the events. Returns `None` if this version does not know one of them.
    fn read(&self, events: &RawValue, receiver: Party) -> Option<Vec<Arc<Event>>> {
        let encoded: Vec<Encoded<'_>> = serde_json::from_str(events.get()).ok()?;
        let before = self.seq.checked_sub(encoded.len() as u64)?;
        let numbered = (before + 1..=self.seq).zip(encoded);
        let mut tag = self.before.map(Tag::new);
        let read = |(seq, encoded): (u64, Encoded<'_>)| {
            let draft = Draft {
                event_type: known_type(&encoded.name)?,
                class: match encoded.milestone {
                    true => Class::Milestone,
                    false => Class::Tick,
                },
                status: known_status(&encoded.status)?,
                category: encoded.category.map(|category| Arc::from(&*category)),
                fields: encoded.fields.get().into(),
            };
            let (kind, subject) = (known_kind(&encoded.kind)?, encoded.subject.parse().ok()?);
            let at = DateTime::from_timestamp_millis(encoded.at)?;
            let event = Event::new((receiver.epoch, seq), self.school, kind, subject, at, draft);
            let event = event.following(tag);
            tag = event.tag;
            Some(Arc::new(event))
        };
        numbered.map(read).collect()
    }
}

fn encode(event: &Event) -> String {
    let fields: &RawValue =
        serde_json::from_str(&event.draft.fields).expect("an event's fields are JSON");
    let encoded = Encoded {
        kind: event.kind.collection().into(),
        subject: event.subject.as_str().into(),
        name: event.draft.event_type.name.into(),
        milestone: !event.is_tick(),
        status: event.draft.status.into(),
        category: event.draft.category.as_deref().map(Into::into),
        at: event.at.timestamp_millis(),
        fields,
    };
    serde_json::to_string(&encoded).expect("an event is JSON")
}
