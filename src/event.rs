//! Events: the immutable entries of a school's log.
//!
//! An event is created once, when its transaction is written, and is shared by `Arc` by everything in the process. It
//! caches its bytes in each encoding (invariant 8): the first subscriber that needs an encoding creates it, and all
//! others share the bytes. How events are encoded is decided in [`crate::wire`], not here.
//!
//! A kind's data in an event is a typed [`Payload`]. An event that was decided in this process contains its payload, so
//! nothing parses the JSON again. An event that was read from the log contains only JSON, which is parsed at most once,
//! and only on demand.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{Cursor, Epoch, Kind, Place, SchoolId, SubjectId, Tag};

/// The bytes that an event counts for in addition to its fields and its subject's id: the rest of its row.
pub const EVENT_BASE_BYTES: usize = 128;

/// Up to this many bytes, a thread keeps the memory in which it serializes payloads.
const KEPT_BUFFER_BYTES: usize = 64 * 1024;

/// Formats a time as in messages: RFC 3339, UTC, milliseconds, `Z`.
pub fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// How an event is treated when a reader is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A state change: never dropped while it is retained.
    Milestone,
    /// Progress within one state: a newer event of the same subject supersedes it.
    Tick,
}

/// A message's `type`, how its events are delivered, and what they contain.
#[derive(Debug)]
pub struct EventType {
    /// The name in messages, for example `job_progress`.
    pub name: &'static str,
    /// Whether an event contains all information of earlier ticks of its subject, so that it supersedes them.
    pub supersedes: bool,
    /// Whether every subscriber to any subject of the kind receives it, not only those of its own subject.
    pub wide: bool,
    /// Returns the schema of the events' own fields, which is that of the type that they are serialized from.
    pub fields: fn(&mut SchemaGenerator) -> Schema,
}

impl PartialEq for EventType {
    /// Types are the same if they have the same name.
    fn eq(&self, other: &EventType) -> bool {
        self.name == other.name
    }
}

impl Eq for EventType {}

impl EventType {
    /// Creates the usual type: delivered to the subscribers of its subject, and superseding earlier ticks. `F` is what the
    /// events' fields are serialized from.
    pub const fn new<F: JsonSchema>(name: &'static str) -> EventType {
        EventType {
            name,
            supersedes: true,
            wide: false,
            fields: F::json_schema,
        }
    }

    /// Returns this type, except that its events do not supersede earlier ticks.
    pub const fn beside_ticks(self) -> EventType {
        EventType {
            supersedes: false,
            ..self
        }
    }

    /// Returns this type, except that its events are delivered to the subscribers of any subject of the kind.
    pub const fn wide(self) -> EventType {
        EventType { wide: true, ..self }
    }
}

/// An event as the kind's rules produce it, before the store assigns its place in the log.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The message's `type`.
    pub event_type: &'static EventType,
    /// Milestone or tick.
    pub class: Class,
    /// The subject's status after the event, lower case; subscribers filter by it.
    pub status: &'static str,
    /// A second filter criterion: a job's type.
    pub category: Option<Arc<str>>,
    /// The kind's own fields.
    pub fields: Fields,
}

impl Draft {
    /// Creates a draft with this payload and without a category.
    pub fn new<P: Payload>(class: Class, status: &'static str, payload: P) -> Draft {
        Draft {
            event_type: P::TYPE,
            class,
            status,
            category: None,
            fields: Fields::of(payload),
        }
    }

    /// Returns the payload, if it is of this type.
    pub fn payload<P: Payload>(&self) -> Option<&P> {
        match *self.event_type == *P::TYPE {
            true => self.fields.payload(),
            false => None,
        }
    }
}

/// The data of events of one type: serialized into the event's fields when it happens, and parsed from the fields of an
/// event that was read from the log.
pub trait Payload: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The type of the events. No other payload has the same type.
    const TYPE: &'static EventType;
}

/// The kind's own fields of an event: one compact JSON object with at least one field, and the payload it represents.
/// Clones share both.
#[derive(Clone)]
pub struct Fields(Arc<Content>);

struct Content {
    json: String,
    /// `None` if the JSON does not represent the expected payload.
    payload: OnceLock<Option<AnyPayload>>,
}

type AnyPayload = Box<dyn Any + Send + Sync>;

/// Serializes a payload. It is written to a buffer that is used again, so that it is in a text of exactly its length
/// afterwards, for which memory was allocated once.
fn json_of(payload: &impl Serialize) -> String {
    thread_local!(static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) });
    let mut buffer = BUFFER.take();
    buffer.clear();
    serde_json::to_writer(&mut buffer, payload).expect("a payload is JSON");
    let json = std::str::from_utf8(&buffer)
        .expect("JSON is UTF-8")
        .to_owned();
    // Few payloads are large, and the thread lives long.
    if buffer.capacity() <= KEPT_BUFFER_BYTES {
        BUFFER.set(buffer);
    }
    json
}

impl Fields {
    /// Serializes a payload and keeps it.
    pub fn of<P: Payload>(payload: P) -> Fields {
        let json = json_of(&payload);
        let payload: AnyPayload = Box::new(payload);
        Fields(Arc::new(Content {
            json,
            payload: OnceLock::from(Some(payload)),
        }))
    }

    /// Returns the JSON object.
    pub fn as_str(&self) -> &str {
        &self.0.json
    }

    /// Returns the payload: the one that was serialized, or else parsed on the first call. `P` is the payload of the
    /// event's type.
    pub fn payload<P: Payload>(&self) -> Option<&P> {
        let read = || {
            let payload = serde_json::from_str::<P>(&self.0.json).ok()?;
            Some(Box::new(payload) as AnyPayload)
        };
        self.0.payload.get_or_init(read).as_ref()?.downcast_ref()
    }
}

impl From<String> for Fields {
    /// Creates fields from stored JSON.
    fn from(json: String) -> Fields {
        Fields(Arc::new(Content {
            json,
            payload: OnceLock::new(),
        }))
    }
}

impl From<&str> for Fields {
    fn from(json: &str) -> Fields {
        json.to_owned().into()
    }
}

impl Serialize for Fields {
    /// Serializes the JSON text unchanged, as a string.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        String::deserialize(deserializer).map(Fields::from)
    }
}

impl Deref for Fields {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Fields) -> bool {
        self.as_str() == other.as_str()
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// An entry of a school's log, or, with `snapshot`, a subject's current state in the same form.
#[derive(Debug)]
pub struct Event {
    /// The epoch of the database that `seq` belongs to.
    pub epoch: Epoch,
    /// The school in whose log it is.
    pub school: SchoolId,
    /// Its number in the log: 1, 2, 3, … without gaps, in commit order.
    pub seq: u64,
    /// Distinguishes it from another event with the same number. In a snapshot: the tag of the subject's last event, if
    /// known.
    pub tag: Option<Tag>,
    /// The tag of the event before it in the log. It is not stored, so it is known only for an event that was just
    /// committed. With it, a node detects that it delivered a different event in that place.
    pub before: Option<Tag>,
    /// The number of its subject's event before it. Like `before`, known only for an event that was just committed.
    pub previous: Option<u64>,
    /// What a reader that has received this event still awaits; see [`Cursor::awaits`].
    awaits: Option<Place>,
    /// The kind of its subject.
    pub kind: Kind,
    /// Its subject.
    pub subject: SubjectId,
    /// When it happened, to the millisecond.
    pub at: DateTime<Utc>,
    /// True for a state that is sent on connecting, false for a change.
    pub snapshot: bool,
    /// What happened.
    pub draft: Draft,
    frames: Frames,
}

impl Event {
    /// Creates an event with this number.
    pub fn new(
        (epoch, seq): (Epoch, u64),
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
        at: DateTime<Utc>,
        draft: Draft,
    ) -> Event {
        let tag = Some(tag(seq, kind, &subject, at, &draft));
        Event {
            snapshot: false,
            ..Event::snapshot(
                (epoch, Place { seq, tag }),
                school,
                kind,
                subject,
                at,
                draft,
            )
        }
    }

    /// Creates a snapshot of the current state, at the place of the subject's last event.
    pub fn snapshot(
        (epoch, Place { seq, tag }): (Epoch, Place),
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
        at: DateTime<Utc>,
        draft: Draft,
    ) -> Event {
        Event {
            epoch,
            school,
            seq,
            tag,
            before: None,
            previous: None,
            awaits: None,
            kind,
            subject,
            at,
            snapshot: true,
            draft,
            frames: Frames::default(),
        }
    }

    /// Returns the same event, which follows the event with this tag.
    pub fn following(self, before: Option<Tag>) -> Event {
        Event { before, ..self }
    }

    /// Returns the same event, which is its subject's next one after the event with this number.
    pub fn succeeding(self, previous: Option<u64>) -> Event {
        Event { previous, ..self }
    }

    /// Returns the same event for a reader that still awaits the event at `newest`.
    pub fn awaiting(&self, newest: Place) -> Event {
        let at = (self.epoch, self.place());
        let (subject, draft) = (self.subject.clone(), self.draft.clone());
        Event {
            snapshot: self.snapshot,
            before: self.before,
            previous: self.previous,
            awaits: Some(newest),
            ..Event::snapshot(at, self.school, self.kind, subject, self.at, draft)
        }
    }

    /// Returns its place in the log.
    pub fn place(&self) -> Place {
        Place {
            seq: self.seq,
            tag: self.tag,
        }
    }

    /// Returns the cursor of a reader that has received this event.
    pub fn cursor(&self) -> Cursor {
        Cursor {
            awaits: self.awaits,
            ..Cursor::new(self.epoch, self.place())
        }
    }

    /// Returns how many bytes it counts towards limits on the log and on memory.
    pub fn bytes(&self) -> usize {
        self.draft.fields.len() + self.subject.as_str().len() + EVENT_BASE_BYTES
    }

    /// Returns whether a newer superseding event of the same subject can replace it.
    pub fn is_tick(&self) -> bool {
        self.draft.class == Class::Tick
    }

    /// Returns whether it replaces this earlier tick: both have the same subject, and it contains the tick's information.
    pub fn supersedes(&self, tick: &Event) -> bool {
        let is_same = self.kind == tick.kind && self.subject == tick.subject;
        is_same && self.draft.event_type.supersedes
    }

    /// Returns the bytes in one encoding, which `encode` creates at most once.
    pub fn frame(&self, encoding: u16, encode: impl Fn() -> Vec<u8>) -> &Arc<[u8]> {
        self.frames.get(encoding, encode)
    }
}

/// Computes an event's tag from its stored fields only, so that it is the same whenever the event is read.
fn tag(seq: u64, kind: Kind, subject: &SubjectId, at: DateTime<Utc>, draft: &Draft) -> Tag {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&seq.to_le_bytes());
    crc.update(&at.timestamp_millis().to_le_bytes());
    for text in [
        kind.collection(),
        subject.as_str(),
        draft.event_type.name,
        draft.status,
        &draft.fields,
    ] {
        crc.update(&(text.len() as u64).to_le_bytes());
        crc.update(text.as_bytes());
    }
    Tag::new(crc.finalize())
}

/// An append-only list of an event's encodings. Few encodings are in use at a time, so a scan is cheaper than a table
/// with room for all of them, and needs no lock.
#[derive(Debug, Default)]
struct Frames(OnceLock<Box<Frame>>);

#[derive(Debug)]
struct Frame {
    encoding: u16,
    bytes: Arc<[u8]>,
    next: Frames,
}

impl Frames {
    fn get(&self, encoding: u16, encode: impl Fn() -> Vec<u8>) -> &Arc<[u8]> {
        let mut here = self;
        loop {
            let frame = here.0.get_or_init(|| {
                Box::new(Frame {
                    encoding,
                    bytes: encode().into(),
                    next: Frames::default(),
                })
            });
            if frame.encoding == encoding {
                return &frame.bytes;
            }
            here = &frame.next;
        }
    }
}

/// Returns whether consecutive events of a school have consecutive numbers (invariant 2).
pub(crate) fn is_dense(events: &[Arc<Event>]) -> bool {
    let follows =
        |two: &[Arc<Event>]| two[0].school != two[1].school || two[0].seq + 1 == two[1].seq;
    events.windows(2).all(follows)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde::{Deserialize, Deserializer};

    use super::*;

    static PLAIN: EventType = EventType::new::<Plain>("plain");
    static OTHER: EventType = EventType::new::<Plain>("other");

    thread_local! {
        static READ: Cell<usize> = const { Cell::new(0) };
    }

    /// Counts how often it is parsed from JSON.
    #[derive(JsonSchema, Serialize)]
    struct Plain {
        step: u32,
    }

    impl<'de> Deserialize<'de> for Plain {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Plain, D::Error> {
            #[derive(Deserialize)]
            struct Stored {
                step: u32,
            }
            READ.set(READ.get() + 1);
            Stored::deserialize(deserializer).map(|Stored { step }| Plain { step })
        }
    }

    impl Payload for Plain {
        const TYPE: &'static EventType = &PLAIN;
    }

    fn step(draft: &Draft) -> Option<u32> {
        draft.payload::<Plain>().map(|plain| plain.step)
    }

    #[test]
    fn what_was_decided_here_is_never_read_out_of_its_json() {
        let draft = Draft::new(Class::Tick, "on", Plain { step: 7 });
        assert_eq!((&*draft.fields, step(&draft)), (r#"{"step":7}"#, Some(7)));
        assert_eq!(step(&draft.clone()), Some(7));
        assert_eq!(READ.get(), 0);
    }

    #[test]
    fn what_comes_from_the_log_is_read_once_and_only_if_somebody_asks() {
        let decided = Draft::new(Class::Tick, "on", Plain { step: 7 });
        let stored = |fields: Fields| Draft {
            fields,
            ..decided.clone()
        };
        let draft = stored(r#"{"step":8}"#.into());
        assert_eq!(READ.get(), 0);
        for _ in 0..3 {
            assert_eq!((step(&draft), step(&draft.clone())), (Some(8), Some(8)));
        }
        assert_eq!(READ.get(), 1);
        let unreadable = stored(r#"{"step":"eight"}"#.into());
        assert_eq!((step(&unreadable), step(&unreadable)), (None, None));
        assert_eq!(READ.get(), 2);
        let of_another_type = Draft {
            event_type: &OTHER,
            ..draft
        };
        assert_eq!(step(&of_another_type), None);
    }

    #[test]
    fn an_encoding_is_made_once_however_many_threads_ask() {
        let frames = Frames::default();
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for encoding in [3_u16, 1, 2] {
                        let bytes = frames.get(encoding, || {
                            made.fetch_add(1, Ordering::SeqCst);
                            vec![encoding as u8]
                        });
                        assert_eq!(**bytes, [encoding as u8]);
                    }
                });
            }
        });
        assert_eq!(made.into_inner(), 3);
    }
}
