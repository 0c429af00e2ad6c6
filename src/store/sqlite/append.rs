//! Appends events to the log.

use std::sync::Arc;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::events::EventRow;
use super::subject_log::is_indexed;
use crate::event::Event;
use crate::store::numbers::signed;

/// Appends events. Several of them are one statement, which costs less than as many statements.
pub(super) fn append(conn: &mut SqliteConnection, events: &[Arc<Event>]) -> QueryResult<()> {
    const TOGETHER: usize = 8;
    let mut events = events;
    while let Some((first, rest)) = events.split_first_chunk::<TOGETHER>() {
        Insert(first.each_ref().map(|event| NewRow::from(&**event))).execute(conn)?;
        events = rest;
    }
    for event in events {
        Insert([NewRow::from(&**event)]).execute(conn)?;
    }
    Ok(())
}

/// A new row, with its place among the events of its subject: see [`subject_log`](super::subject_log).
struct NewRow<'a> {
    row: EventRow<'a>,
    previous_seq: Option<i64>,
    indexed: bool,
}

impl<'a> From<&'a Event> for NewRow<'a> {
    fn from(event: &'a Event) -> NewRow<'a> {
        NewRow {
            row: event.into(),
            previous_seq: event.previous.map(signed),
            indexed: is_indexed(event),
        }
    }
}

/// The statement that inserts this many rows, which is cached by its type.
///
/// It is `OR FAIL`, because the whole transaction is rolled back if it fails. By default, SQLite could undo the statement alone, for which it
/// first copies each page that the statement changes.
struct Insert<'a, const ROWS: usize>([NewRow<'a>; ROWS]);

impl<const ROWS: usize> QueryFragment<Sqlite> for Insert<'_, ROWS> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(
            "INSERT OR FAIL INTO events (school_id, seq, kind, subject_id, name, milestone, wide, status, category, at, fields, previous_seq, indexed) VALUES ",
        );
        for (number, new) in self.0.iter().enumerate() {
            let row = &new.row;
            out.push_sql(if number == 0 { "(" } else { ", (" });
            out.push_bind_param::<BigInt, _>(&row.school_id)?;
            out.push_sql(", ");
            out.push_bind_param::<BigInt, _>(&row.seq)?;
            for text in [&row.kind, &row.subject_id, &row.name] {
                out.push_sql(", ");
                out.push_bind_param::<Text, _>(text)?;
            }
            for is in [&row.milestone, &row.wide] {
                out.push_sql(", ");
                out.push_bind_param::<Bool, _>(is)?;
            }
            out.push_sql(", ");
            out.push_bind_param::<Text, _>(&row.status)?;
            out.push_sql(", ");
            out.push_bind_param::<Nullable<Text>, _>(&row.category)?;
            out.push_sql(", ");
            out.push_bind_param::<BigInt, _>(&row.at)?;
            out.push_sql(", ");
            out.push_bind_param::<Text, _>(&row.fields)?;
            out.push_sql(", ");
            out.push_bind_param::<Nullable<BigInt>, _>(&new.previous_seq)?;
            out.push_sql(", ");
            out.push_bind_param::<Bool, _>(&new.indexed)?;
            out.push_sql(")");
        }
        Ok(())
    }
}

impl<const ROWS: usize> QueryId for Insert<'_, ROWS> {
    type QueryId = Insert<'static, ROWS>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<const ROWS: usize> RunQueryDsl<SqliteConnection> for Insert<'_, ROWS> {}
