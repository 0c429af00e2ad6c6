//! The `schedules` table.

use std::borrow::Cow;
use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::limit::Limit;
use super::schema::{schedules, schools};
use super::table::{
    Selection, Table, any_table, from_millis, millis, place, table_of_what_ends, tag_bits,
    unreadable, uptime_millis,
};
use super::upsert::upsert;
use crate::id::{Epoch, SchoolId, SubjectId};
use crate::kind::schedule::{self, KIND, REMOVED, Schedule};
use crate::kind::{Command, Subject as _};
use crate::log::facts::{Address, Stored};
use crate::log::{LastEvent, Overdue};
use crate::store::numbers::{signed, unsigned};
use crate::uptime::Uptime;

#[derive(Queryable, Selectable)]
#[diesel(table_name = schedules)]
#[diesel(check_for_backend(Sqlite))]
pub(super) struct ScheduleRow<'a> {
    school_id: i64,
    schedule_id: Cow<'a, str>,
    status: Cow<'a, str>,
    cron: Option<Cow<'a, str>>,
    time_zone: Option<Cow<'a, str>>,
    state: Cow<'a, str>,
    created_at: i64,
    finished_at: Option<i64>,
    check_uptime: Option<i64>,
    created_seq: i64,
    last_seq: i64,
    last_tag: Option<i64>,
    last_at: i64,
}

upsert! {
    /// Writes a schedule's row, new or not.
    UpsertSchedule<'a>(ScheduleRow<'a>) into "schedules"
    by (school_id: BigInt, schedule_id: Text)
    once (created_at: BigInt, created_seq: BigInt)
    set (
        status: Text, cron: Nullable<Text>, time_zone: Nullable<Text>, state: Text, finished_at: Nullable<BigInt>,
        check_uptime: Nullable<BigInt>, last_seq: BigInt, last_tag: Nullable<BigInt>, last_at: BigInt
    )
}

impl<'a> ScheduleRow<'a> {
    fn new(
        school: SchoolId,
        id: &'a SubjectId,
        schedule: &'a Schedule,
        stored: &'a Stored,
    ) -> ScheduleRow<'a> {
        ScheduleRow {
            school_id: school.get(),
            schedule_id: id.as_str().into(),
            status: schedule.status().into(),
            cron: schedule.rule.cron.as_deref().map(Into::into),
            time_zone: schedule.rule.time_zone.as_deref().map(Into::into),
            state: stored.state.to_json().into(),
            created_at: millis(schedule.created_at),
            finished_at: schedule.finished_at.map(millis),
            check_uptime: schedule.check_uptime.map(uptime_millis),
            created_seq: signed(stored.created_seq),
            last_seq: signed(stored.last.seq),
            last_tag: tag_bits(stored.last),
            last_at: millis(stored.last_at),
        }
    }

    fn into_stored(self) -> QueryResult<(SubjectId, Stored)> {
        let schedule: Schedule =
            serde_json::from_str(&self.state).map_err(|_| unreadable("a schedule"))?;
        let id = self
            .schedule_id
            .parse()
            .map_err(|_| unreadable("a schedule's id"))?;
        let stored = Stored {
            state: schedule.into(),
            created_seq: unsigned(self.created_seq),
            last: place(self.last_seq, self.last_tag),
            last_at: from_millis(self.last_at)?,
        };
        Ok((id, stored))
    }
}

/// The table of schedules.
pub(super) struct SchedulesTable;

impl Table for SchedulesTable {
    any_table!(
        schedules by schedule_id as ScheduleRow, written by UpsertSchedule from schedule,
        searched in [schedule_id, cron, time_zone] and values of [], category [], stalls []
    );
    table_of_what_ends!(
        schedules by schedule_id as ScheduleRow, kind KIND, category [],
        ends with [REMOVED], checked by Command::Schedule(schedule::Command::Check(None))
    );
}

diesel::allow_tables_to_appear_in_same_query!(schedules, schools);
