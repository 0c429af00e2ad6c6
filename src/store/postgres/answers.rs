//! The answers to requests with an idempotency key, for as long as the key is stored. An answer is an event in the log. If
//! there was none, or if it is no longer in the log, the answer is stored as JSON in the row of the key.

use std::sync::Arc;

use diesel::QueryResult;
use diesel::result::Error::DeserializationError;
use serde::{Deserialize, Serialize};

use crate::event::{Class, Draft, Event, Fields};
use crate::id::{Epoch, Kind, SchoolId, SubjectId};
use crate::kind::{known_status, known_type};
use crate::store::columns::{from_millis, millis, place, tag_bits, unreadable};
use crate::store::numbers::signed;
use crate::store::retention::ANSWER_BASE_BYTES;

#[derive(Serialize, Deserialize)]
struct Answer {
    seq: i64,
    tag: Option<i64>,
    snapshot: bool,
    name: String,
    status: String,
    at: i64,
    fields: Fields,
}

/// Returns an answer as it is stored in the row of its key.
pub(super) fn to_json(event: &Event) -> String {
    let answer = Answer {
        seq: signed(event.seq),
        tag: tag_bits(event.place()),
        snapshot: event.snapshot,
        name: event.draft.event_type.name.to_owned(),
        status: event.draft.status.to_owned(),
        at: millis(event.at),
        fields: event.draft.fields.clone(),
    };
    serde_json::to_string(&answer).expect("an answer is JSON")
}

/// Returns how many bytes an answer counts for.
pub(super) fn bytes(key: &str, event: &Event) -> i64 {
    signed(to_json(event).len() + key.len()) + ANSWER_BASE_BYTES
}

/// Reads an answer.
pub(super) fn from_json(
    json: &str,
    epoch: Epoch,
    (school, kind, subject): (SchoolId, Kind, SubjectId),
) -> QueryResult<Event> {
    let answer: Answer =
        serde_json::from_str(json).map_err(|error| DeserializationError(Box::new(error)))?;
    let draft = Draft {
        event_type: known_type(&answer.name).ok_or_else(|| unreadable("an event type"))?,
        class: Class::Milestone,
        status: known_status(&answer.status).ok_or_else(|| unreadable("a status"))?,
        category: None::<Arc<str>>,
        fields: answer.fields,
    };
    let place = place(answer.seq, answer.tag);
    let at = from_millis(answer.at)?;
    Ok(match answer.snapshot {
        true => Event::snapshot((epoch, place), school, kind, subject, at, draft),
        false => Event::new((epoch, place.seq), school, kind, subject, at, draft),
    })
}
