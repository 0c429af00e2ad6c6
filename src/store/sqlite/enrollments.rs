//! The `enrollment_sessions` table.

use std::borrow::Cow;
use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::limit::Limit;
use super::schema::{enrollment_sessions, schools};
use super::table::{
    Selection, Table, any_table, from_millis, millis, table_of_what_ends, unreadable, uptime,
    uptime_millis,
};
use super::table::{place, tag_bits};
use super::upsert::upsert;
use crate::id::{Epoch, SchoolId, SubjectId};
use crate::kind::enrollment::Session;
use crate::kind::{Command, enrollment};
use crate::log::LastEvent;
use crate::log::Overdue;
use crate::log::facts::{Address, Stored};
use crate::store::numbers::{signed, unsigned};
use crate::uptime::Uptime;

#[derive(Queryable, Selectable)]
#[diesel(table_name = enrollment_sessions)]
#[diesel(check_for_backend(Sqlite))]
pub(super) struct SessionRow<'a> {
    school_id: i64,
    session_id: Cow<'a, str>,
    device_id: Option<Cow<'a, str>>,
    student_id: Option<Cow<'a, str>>,
    status: Cow<'a, str>,
    progress: i64,
    message: Cow<'a, str>,
    attempt: Option<i64>,
    total_attempts: Option<i64>,
    quality_score: Option<f64>,
    error_code: Option<Cow<'a, str>>,
    created_at: i64,
    heard_at: i64,
    heard_uptime: i64,
    finished_at: Option<i64>,
    lease_secs: i64,
    check_uptime: Option<i64>,
    created_seq: i64,
    last_seq: i64,
    last_tag: Option<i64>,
    last_at: i64,
}

upsert! {
    /// Writes a session's row, new or not.
    UpsertSession<'a>(SessionRow<'a>) into "enrollment_sessions"
    by (school_id: BigInt, session_id: Text)
    once (
        device_id: Nullable<Text>, student_id: Nullable<Text>, created_at: BigInt, lease_secs: BigInt, created_seq: BigInt
    )
    set (
        status: Text, progress: BigInt, message: Text, attempt: Nullable<BigInt>, total_attempts: Nullable<BigInt>,
        quality_score: Nullable<Double>, error_code: Nullable<Text>, heard_at: BigInt, heard_uptime: BigInt,
        finished_at: Nullable<BigInt>, check_uptime: Nullable<BigInt>, last_seq: BigInt, last_tag: Nullable<BigInt>, last_at: BigInt
    )
}

impl<'a> SessionRow<'a> {
    fn new(
        school: SchoolId,
        id: &'a SubjectId,
        session: &'a Session,
        stored: &'a Stored,
    ) -> SessionRow<'a> {
        SessionRow {
            school_id: school.get(),
            session_id: id.as_str().into(),
            device_id: session.device_id.as_ref().map(|id| id.as_str().into()),
            student_id: session.student_id.as_deref().map(Into::into),
            status: session.status.as_str().into(),
            progress: session.progress.into(),
            message: (&*session.message).into(),
            attempt: session.attempt.map(Into::into),
            total_attempts: session.total_attempts.map(Into::into),
            quality_score: session.quality_score,
            error_code: session.error_code.as_deref().map(Into::into),
            created_at: millis(session.created_at),
            heard_at: millis(session.heard_at),
            heard_uptime: uptime_millis(session.heard_uptime),
            finished_at: session.finished_at.map(millis),
            lease_secs: session.lease_secs.into(),
            check_uptime: session.check_uptime.map(uptime_millis),
            created_seq: signed(stored.created_seq),
            last_seq: signed(stored.last.seq),
            last_tag: tag_bits(stored.last),
            last_at: millis(stored.last_at),
        }
    }

    fn into_stored(self) -> QueryResult<(SubjectId, Stored)> {
        let optional = |at: Option<i64>| at.map(from_millis).transpose();
        let id = |text: Cow<'_, str>| text.parse().map_err(|_| unreadable("an id"));
        let count = |count: i64| count.try_into().map_err(|_| unreadable("a number"));
        let session = Session {
            device_id: self.device_id.map(id).transpose()?,
            student_id: self.student_id.map(|student| student.as_ref().into()),
            status: self
                .status
                .parse()
                .map_err(|_| unreadable("a session's status"))?,
            progress: self
                .progress
                .try_into()
                .map_err(|_| unreadable("a session's progress"))?,
            message: self.message.as_ref().into(),
            attempt: self.attempt.map(count).transpose()?,
            total_attempts: self.total_attempts.map(count).transpose()?,
            quality_score: self.quality_score,
            error_code: self.error_code.map(|code| code.as_ref().into()),
            created_at: from_millis(self.created_at)?,
            heard_at: from_millis(self.heard_at)?,
            heard_uptime: uptime(self.heard_uptime)?,
            finished_at: optional(self.finished_at)?,
            lease_secs: count(self.lease_secs)?,
            check_uptime: self.check_uptime.map(uptime).transpose()?,
        };
        let stored = Stored {
            state: session.into(),
            created_seq: unsigned(self.created_seq),
            last: place(self.last_seq, self.last_tag),
            last_at: from_millis(self.last_at)?,
        };
        Ok((id(self.session_id)?, stored))
    }
}

/// The table of enrollment sessions.
pub(super) struct EnrollmentsTable;

/// The statuses of a session that has ended.
const ENDS: [&str; 3] = ["complete", "error", "cancelled"];

impl Table for EnrollmentsTable {
    any_table!(
        enrollment_sessions by session_id as SessionRow, written by UpsertSession from enrollment,
        searched in [session_id, device_id, student_id, message, error_code] and values of [], category [], stalls []
    );
    table_of_what_ends!(
        enrollment_sessions by session_id as SessionRow, kind enrollment::KIND, category [],
        ends with ENDS, checked by Command::Enrollment(enrollment::Command::Check)
    );

    fn holder(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        device: &str,
    ) -> QueryResult<Option<SubjectId>> {
        let holder: Option<String> = enrollment_sessions::table
            .filter(enrollment_sessions::school_id.eq(school.get()))
            .filter(enrollment_sessions::device_id.eq(device))
            .filter(enrollment_sessions::finished_at.is_null())
            .select(enrollment_sessions::session_id)
            .get_result(conn)
            .optional()?;
        holder
            .map(|id| id.parse().map_err(|_| unreadable("a session id")))
            .transpose()
    }
}

diesel::allow_tables_to_appear_in_same_query!(enrollment_sessions, schools);
