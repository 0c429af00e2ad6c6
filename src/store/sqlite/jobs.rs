//! The `jobs` table: a job's state as columns that a person can query.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::ser::{CompactFormatter, Formatter};

use super::limit::Limit;
use super::schema::{job_endings, jobs, schools};
use super::table::{
    HOUR_MILLIS, Selection, Table, any_table, from_millis, millis, raw, table_of_what_ends,
    unreadable, uptime, uptime_millis,
};
use super::table::{place, tag_bits};
use super::upsert::{update, upsert};
use crate::id::{Epoch, SchoolId, SubjectId};
use crate::kind::job::{End, Eta, EtaSource, Job, JobError, Past};
use crate::kind::{Command, job};
use crate::log::LastEvent;
use crate::log::Overdue;
use crate::log::facts::{Address, Stored};
use crate::store::columns::first_whole_hour;
use crate::store::numbers::{signed, unsigned};
use crate::uptime::Uptime;

#[derive(Queryable, Selectable)]
#[diesel(table_name = jobs)]
#[diesel(check_for_backend(Sqlite))]
pub(super) struct JobRow<'a> {
    school_id: i64,
    job_id: Cow<'a, str>,
    job_type: Cow<'a, str>,
    status: Cow<'a, str>,
    progress: Option<f64>,
    message: Cow<'a, str>,
    metadata: Cow<'a, str>,
    attempt: i64,
    reporters: Option<Cow<'a, str>>,
    eta_at: Option<i64>,
    eta_low_at: Option<i64>,
    eta_high_at: Option<i64>,
    eta_source: Option<Cow<'a, str>>,
    stalled: bool,
    cancel_requested: bool,
    result: Option<Cow<'a, str>>,
    error_code: Option<Cow<'a, str>>,
    error_message: Option<Cow<'a, str>>,
    created_at: i64,
    heard_at: i64,
    heard_uptime: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    stall_after_secs: i64,
    timeout_secs: i64,
    check_uptime: Option<i64>,
    estimator: Option<Cow<'a, str>>,
    past: Option<Cow<'a, str>>,
    created_seq: i64,
    last_seq: i64,
    last_tag: Option<i64>,
    last_at: i64,
}

upsert! {
    /// Writes a job's row, new or not.
    UpsertJob<'a>(JobRow<'a>) into "jobs"
    by (school_id: BigInt, job_id: Text)
    once (job_type: Text, created_at: BigInt, stall_after_secs: BigInt, timeout_secs: BigInt, created_seq: BigInt)
    set (
        status: Text, progress: Nullable<Double>, message: Text, metadata: Text, attempt: BigInt, reporters: Nullable<Text>,
        eta_at: Nullable<BigInt>, eta_low_at: Nullable<BigInt>, eta_high_at: Nullable<BigInt>,
        eta_source: Nullable<Text>, stalled: Bool, cancel_requested: Bool,
        result: Nullable<Text>, error_code: Nullable<Text>, error_message: Nullable<Text>,
        heard_at: BigInt, heard_uptime: BigInt, started_at: Nullable<BigInt>, finished_at: Nullable<BigInt>,
        check_uptime: Nullable<BigInt>, estimator: Nullable<Text>, past: Nullable<Text>, last_seq: BigInt, last_tag: Nullable<BigInt>, last_at: BigInt
    )
}

update! {
    /// Writes what a tick changes. SQLite updates every index that contains one of the listed columns, changed or not, and
    /// fires the triggers on them. Of these columns, only `last_seq` is in indexes, and none has a trigger.
    UpdateTick<'a>(JobRow<'a>) of "jobs"
    by (school_id: BigInt, job_id: Text)
    set (
        progress: Nullable<Double>, message: Text, reporters: Nullable<Text>,
        eta_at: Nullable<BigInt>, eta_low_at: Nullable<BigInt>, eta_high_at: Nullable<BigInt>, eta_source: Nullable<Text>,
        heard_at: BigInt, heard_uptime: BigInt, estimator: Nullable<Text>, last_seq: BigInt, last_tag: Nullable<BigInt>, last_at: BigInt
    )
}

/// Returns whether two states of a job differ only in what [`UpdateTick`] writes.
fn is_tick(before: &Job, after: &Job) -> bool {
    let Job {
        job_type,
        status,
        progress: _,
        message: _,
        metadata,
        attempt,
        reporters: _,
        eta: _,
        stalled,
        cancel_requested,
        end,
        created_at,
        heard_at: _,
        heard_uptime: _,
        started_at,
        finished_at,
        stall_after_secs,
        timeout_secs,
        check_uptime,
        estimator: _,
        past,
    } = after;
    let ends = end.is_some() || past.is_some() || before.end.is_some() || before.past.is_some();
    !ends
        && finished_at.is_none()
        && before.job_type == *job_type
        && before.status == *status
        && (Arc::ptr_eq(&before.metadata, metadata) || before.metadata.get() == metadata.get())
        && before.attempt == *attempt
        && before.stalled == *stalled
        && before.cancel_requested == *cancel_requested
        && before.created_at == *created_at
        && before.started_at == *started_at
        && before.finished_at == *finished_at
        && before.stall_after_secs == *stall_after_secs
        && before.timeout_secs == *timeout_secs
        && before.check_uptime == *check_uptime
}

impl<'a> JobRow<'a> {
    fn new(school: SchoolId, id: &'a SubjectId, job: &'a Job, stored: &'a Stored) -> JobRow<'a> {
        let (result, error) = match &job.end {
            Some(End::Result(result)) => (Some(result.get().into()), None),
            // The column `result` also stores the details of an error, because a job has only one of the two.
            Some(End::Error(error)) => {
                let details = error.details.as_ref().map(|details| details.get().into());
                (details, Some(error))
            }
            None => (None, None),
        };
        JobRow {
            school_id: school.get(),
            job_id: id.as_str().into(),
            job_type: job.job_type.as_str().into(),
            status: job.status.as_str().into(),
            progress: job.progress,
            message: (&*job.message).into(),
            metadata: job.metadata.get().into(),
            attempt: job.attempt.into(),
            reporters: (!job.reporters.is_empty()).then(|| {
                let json = serde_json::to_string(&*job.reporters);
                json.expect("names are JSON").into()
            }),
            eta_at: job.eta.map(|eta| millis(eta.at)),
            eta_low_at: job.eta.map(|eta| millis(eta.low_at)),
            eta_high_at: job.eta.map(|eta| millis(eta.high_at)),
            eta_source: job.eta.map(|eta| eta.source.as_str().into()),
            stalled: job.stalled,
            cancel_requested: job.cancel_requested,
            result,
            error_code: error.map(|error| (&*error.code).into()),
            error_message: error.map(|error| (&*error.message).into()),
            created_at: millis(job.created_at),
            heard_at: millis(job.heard_at),
            heard_uptime: uptime_millis(job.heard_uptime),
            started_at: job.started_at.map(millis),
            finished_at: job.finished_at.map(millis),
            stall_after_secs: job.stall_after_secs.into(),
            timeout_secs: job.timeout_secs.into(),
            check_uptime: job.check_uptime.map(uptime_millis),
            estimator: job
                .estimator
                .as_ref()
                .map(|estimator| short_json(estimator).into()),
            past: job.past.as_ref().map(|past| short_json(past).into()),
            created_seq: signed(stored.created_seq),
            last_seq: signed(stored.last.seq),
            last_tag: tag_bits(stored.last),
            last_at: millis(stored.last_at),
        }
    }

    fn into_stored(self) -> QueryResult<(SubjectId, Stored)> {
        let optional = |at: Option<i64>| at.map(from_millis).transpose();
        let end = match (self.result, self.error_code) {
            (Some(result), None) => Some(End::Result(raw(result)?)),
            (details, Some(code)) => {
                let message = self.error_message.unwrap_or_default().as_ref().into();
                Some(End::Error(JobError {
                    code: code.as_ref().into(),
                    message,
                    details: details.map(raw).transpose()?,
                }))
            }
            (None, None) => None,
        };
        let eta = match (
            self.eta_at,
            self.eta_low_at,
            self.eta_high_at,
            self.eta_source,
        ) {
            (Some(at), Some(low_at), Some(high_at), Some(source)) => Some(Eta {
                at: from_millis(at)?,
                low_at: from_millis(low_at)?,
                high_at: from_millis(high_at)?,
                source: EtaSource::ALL
                    .into_iter()
                    .find(|known| known.as_str() == source)
                    .ok_or_else(|| unreadable("a source of an estimate"))?,
            }),
            _ => None,
        };
        let job = Job {
            job_type: self
                .job_type
                .parse()
                .map_err(|_| unreadable("a job type"))?,
            status: self
                .status
                .parse()
                .map_err(|_| unreadable("a job status"))?,
            progress: self.progress,
            message: self.message.as_ref().into(),
            metadata: raw(self.metadata)?,
            attempt: self
                .attempt
                .try_into()
                .map_err(|_| unreadable("an attempt"))?,
            reporters: json(self.reporters, "a job's reporters")?
                .map(Arc::new)
                .unwrap_or_default(),
            eta,
            stalled: self.stalled,
            cancel_requested: self.cancel_requested,
            end,
            created_at: from_millis(self.created_at)?,
            heard_at: from_millis(self.heard_at)?,
            heard_uptime: uptime(self.heard_uptime)?,
            started_at: optional(self.started_at)?,
            finished_at: optional(self.finished_at)?,
            stall_after_secs: self
                .stall_after_secs
                .try_into()
                .map_err(|_| unreadable("a number of seconds"))?,
            timeout_secs: self
                .timeout_secs
                .try_into()
                .map_err(|_| unreadable("a number of seconds"))?,
            check_uptime: self.check_uptime.map(uptime).transpose()?,
            estimator: json(self.estimator, "an estimator")?,
            past: json(self.past, "a duration")?,
        };
        let id = self.job_id.parse().map_err(|_| unreadable("a job id"))?;
        let stored = Stored {
            state: job.into(),
            created_seq: unsigned(self.created_seq),
            last: place(self.last_seq, self.last_tag),
            last_at: from_millis(self.last_at)?,
        };
        Ok((id, stored))
    }
}

/// Room for the figures of an estimate. They can be longer.
const FIGURES_BYTES: usize = 256;

/// Returns a value as JSON, with numbers rounded to about seven digits. Estimates are not more precise.
fn short_json(value: &impl Serialize) -> String {
    struct SevenDigits;
    impl Formatter for SevenDigits {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "digits are dropped on purpose"
        )]
        fn write_f64<W: ?Sized + io::Write>(
            &mut self,
            writer: &mut W,
            value: f64,
        ) -> io::Result<()> {
            CompactFormatter.write_f32(writer, value as f32)
        }
    }
    let mut text = Vec::with_capacity(FIGURES_BYTES);
    let mut writer = serde_json::Serializer::with_formatter(&mut text, SevenDigits);
    value.serialize(&mut writer).expect("figures are JSON");
    String::from_utf8(text).expect("JSON is UTF-8")
}

fn json<T: DeserializeOwned>(
    text: Option<Cow<'_, str>>,
    what: &'static str,
) -> QueryResult<Option<T>> {
    text.map(|text| serde_json::from_str(&text).map_err(|_| unreadable(what)))
        .transpose()
}

/// Schedules an immediate check of the jobs whose estimated end has passed. Checks are scheduled by uptime, which does not
/// advance while the server is down.
pub(super) fn schedule_lapsed_checks(
    conn: &mut SqliteConnection,
    now: DateTime<Utc>,
    uptime: Uptime,
) -> QueryResult<()> {
    let lapsed = jobs::table
        .filter(jobs::check_uptime.gt(uptime_millis(uptime)))
        .filter(jobs::eta_at.le(millis(now)));
    diesel::update(lapsed)
        .set(jobs::check_uptime.eq(uptime_millis(uptime)))
        .execute(conn)?;
    Ok(())
}

/// The table of jobs.
pub(super) struct JobsTable;

/// The statuses of a job that has ended.
pub(super) const ENDS: [&str; 3] = ["completed", "failed", "cancelled"];

impl Table for JobsTable {
    any_table!(jobs by job_id as JobRow, written by UpsertJob from job, ticks written by UpdateTick if is_tick,
        searched in [job_id, message, error_code, error_message] and values of [metadata], category [job_type], stalls [stalled]);
    table_of_what_ends!(
        jobs by job_id as JobRow, kind job::KIND, category [job_type],
        ends with ENDS, checked by Command::Job(job::Command::Check)
    );

    fn past(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        category: &str,
        limit: usize,
    ) -> QueryResult<Vec<Past>> {
        let rows: Vec<Option<String>> = jobs::table
            .filter(jobs::school_id.eq(school.get()))
            .filter(jobs::job_type.eq(category))
            .filter(jobs::past.is_not_null())
            .order(jobs::finished_at.desc())
            .select(jobs::past)
            .at_most(signed(limit))
            .load(conn)?;
        let read = |text: Option<String>| json(text.map(Cow::Owned), "a duration").transpose();
        rows.into_iter().filter_map(read).collect()
    }

    fn ended_since(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        status: &str,
        since: DateTime<Utc>,
    ) -> QueryResult<i64> {
        let hour = first_whole_hour(since);
        let counts: Vec<i64> = job_endings::table
            .filter(job_endings::school_id.eq(school.get()))
            .filter(job_endings::hour.ge(hour))
            .filter(job_endings::status.eq(status))
            .select(job_endings::count)
            .load(conn)?;
        let before = ended_before_hour(conn, school, status, since, hour)?;
        Ok(before + counts.iter().sum::<i64>())
    }

    fn endings(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        since: DateTime<Utc>,
    ) -> QueryResult<Vec<(i64, String, i64)>> {
        let hour = first_whole_hour(since);
        let mut endings = Vec::new();
        for status in ENDS {
            let count = ended_before_hour(conn, school, status, since, hour)?;
            endings.push((hour - 1, status.to_owned(), count));
        }
        let whole: Vec<(i64, String, i64)> = job_endings::table
            .filter(job_endings::school_id.eq(school.get()))
            .filter(job_endings::hour.ge(hour))
            .select((job_endings::hour, job_endings::status, job_endings::count))
            .load(conn)?;
        endings.extend(whole);
        endings.retain(|(_, _, count)| *count > 0);
        Ok(endings)
    }
}

/// Counts the jobs that ended with a status from `since` until the start of `hour`: `job_endings` has only whole hours.
fn ended_before_hour(
    conn: &mut SqliteConnection,
    school: SchoolId,
    status: &str,
    since: DateTime<Utc>,
    hour: i64,
) -> QueryResult<i64> {
    jobs::table
        .filter(jobs::school_id.eq(school.get()))
        .filter(jobs::status.eq(status))
        .filter(jobs::finished_at.ge(millis(since)))
        .filter(jobs::finished_at.lt(hour * HOUR_MILLIS))
        .count()
        .get_result(conn)
}

diesel::allow_tables_to_appear_in_same_query!(jobs, schools);
