//! Rows of the tables, and their conversion to the types of the log.

use std::sync::Arc;

use diesel::prelude::*;
use diesel::result::Error::DeserializationError;

use super::schema::{events, subjects};
use crate::event::{Class, Draft, Event};
use crate::id::{Epoch, Kind, SchoolId, SubjectId};
use crate::kind::{State, known_kind, known_status, known_type};
use crate::log::facts::Stored;
use crate::store::columns::{from_millis, place, unreadable};
use crate::store::numbers::unsigned;

#[derive(Queryable, Selectable, QueryableByName)]
#[diesel(table_name = events)]
#[diesel(check_for_backend(diesel::pg::Pg))]
pub(super) struct EventRow {
    school_id: i64,
    seq: i64,
    kind: String,
    subject_id: String,
    name: String,
    milestone: bool,
    status: String,
    category: Option<String>,
    at: i64,
    fields: String,
}

impl EventRow {
    pub(super) fn into_event(self, epoch: Epoch) -> QueryResult<Event> {
        let draft = Draft {
            event_type: known_type(&self.name).ok_or_else(|| unreadable("an event type"))?,
            class: match self.milestone {
                true => Class::Milestone,
                false => Class::Tick,
            },
            status: known_status(&self.status).ok_or_else(|| unreadable("a status"))?,
            category: self.category.map(Arc::from),
            fields: self.fields.into(),
        };
        Ok(Event::new(
            (epoch, unsigned(self.seq)),
            school(self.school_id)?,
            kind(&self.kind)?,
            subject(&self.subject_id)?,
            from_millis(self.at)?,
            draft,
        ))
    }
}

/// The columns of `subjects` that contain a state.
#[derive(Queryable, Selectable, QueryableByName)]
#[diesel(table_name = subjects)]
#[diesel(check_for_backend(diesel::pg::Pg))]
pub(super) struct SubjectRow {
    pub(super) school_id: i64,
    pub(super) kind: String,
    pub(super) subject_id: String,
    created_seq: i64,
    last_seq: i64,
    last_tag: Option<i64>,
    last_at: i64,
    state: String,
}

impl SubjectRow {
    pub(super) fn into_stored(self) -> QueryResult<(SubjectId, Stored)> {
        let state = State::from_json(kind(&self.kind)?, &self.state)
            .map_err(|error| DeserializationError(Box::new(error)))?;
        let stored = Stored {
            state,
            created_seq: unsigned(self.created_seq),
            last: place(self.last_seq, self.last_tag),
            last_at: from_millis(self.last_at)?,
        };
        Ok((subject(&self.subject_id)?, stored))
    }
}

pub(super) fn school(id: i64) -> QueryResult<SchoolId> {
    id.try_into().map_err(|_| unreadable("a school id"))
}

pub(super) fn kind(collection: &str) -> QueryResult<Kind> {
    known_kind(collection).ok_or_else(|| unreadable("a kind"))
}

pub(super) fn subject(id: &str) -> QueryResult<SubjectId> {
    id.parse().map_err(|_| unreadable("a subject id"))
}
