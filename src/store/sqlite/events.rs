//! The rows of the log.

use std::borrow::Cow;
use std::sync::Arc;

use diesel::prelude::*;
use diesel::sqlite::Sqlite;

use super::table::{from_millis, millis, unreadable};
use crate::event::{Class, Draft, Event};
use crate::id::Epoch;
use crate::kind::{known_kind, known_status, known_type};
use crate::store::numbers::{signed, unsigned};

/// A row of `events`.
#[derive(Queryable, Selectable)]
#[diesel(table_name = super::schema::events)]
#[diesel(check_for_backend(Sqlite))]
pub(super) struct EventRow<'a> {
    pub(super) school_id: i64,
    pub(super) seq: i64,
    pub(super) kind: Cow<'a, str>,
    pub(super) subject_id: Cow<'a, str>,
    pub(super) name: Cow<'a, str>,
    pub(super) milestone: bool,
    pub(super) wide: bool,
    pub(super) status: Cow<'a, str>,
    pub(super) category: Option<Cow<'a, str>>,
    pub(super) at: i64,
    pub(super) fields: Cow<'a, str>,
}

impl<'a> From<&'a Event> for EventRow<'a> {
    fn from(event: &'a Event) -> EventRow<'a> {
        EventRow {
            school_id: event.school.get(),
            seq: signed(event.seq),
            kind: event.kind.collection().into(),
            subject_id: event.subject.as_str().into(),
            name: event.draft.event_type.name.into(),
            milestone: !event.is_tick(),
            wide: event.draft.event_type.wide,
            status: event.draft.status.into(),
            category: event.draft.category.as_deref().map(Into::into),
            at: millis(event.at),
            fields: event.draft.fields.as_str().into(),
        }
    }
}

impl EventRow<'_> {
    pub(super) fn into_event(self, epoch: Epoch) -> QueryResult<Event> {
        let draft = Draft {
            event_type: known_type(&self.name).ok_or_else(|| unreadable("an event type"))?,
            class: if self.milestone {
                Class::Milestone
            } else {
                Class::Tick
            },
            status: known_status(&self.status).ok_or_else(|| unreadable("a status"))?,
            category: self.category.map(|category| Arc::from(&*category)),
            fields: self.fields.into_owned().into(),
        };
        let school = self
            .school_id
            .try_into()
            .map_err(|_| unreadable("a school id"))?;
        let kind = known_kind(&self.kind).ok_or_else(|| unreadable("a kind"))?;
        let subject = self
            .subject_id
            .parse()
            .map_err(|_| unreadable("a subject id"))?;
        Ok(Event::new(
            (epoch, unsigned(self.seq)),
            school,
            kind,
            subject,
            from_millis(self.at)?,
            draft,
        ))
    }
}
