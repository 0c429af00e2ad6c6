//! The `jobs` table: a job's state as columns that a person can query.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use serde_json::value::RawValue;

use super::schema::{jobs, schools};
use super::table::{Address, LastEvent, Selection, Stored, Table, from_millis, millis, unreadable};
use super::upsert::upsert;
use crate::id::{Epoch, SchoolId, SubjectId};
use crate::kind::job::{End, Eta, EtaSource, Job, JobError, Rate, Status};
use crate::kind::{Command, State, job};
use crate::store::{JobPage, JobQuery, Overdue, StoredJob};

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
    eta_at: Option<i64>,
    eta_by_history: bool,
    stalled: bool,
    cancel_requested: bool,
    result: Option<Cow<'a, str>>,
    error_code: Option<Cow<'a, str>>,
    error_message: Option<Cow<'a, str>>,
    created_at: i64,
    heard_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    stall_after_secs: i64,
    timeout_secs: i64,
    check_at: Option<i64>,
    typical_secs: Option<f64>,
    rate_smoothed: Option<f64>,
    rate_since: Option<i64>,
    rate_progress: Option<f64>,
    rate_at: Option<i64>,
    created_seq: i64,
    last_seq: i64,
    last_at: i64,
}

upsert! {
    /// Writes a job's row, new or not.
    UpsertJob<'a>(JobRow<'a>) into "jobs"
    by (school_id: BigInt, job_id: Text)
    once (job_type: Text, created_at: BigInt, stall_after_secs: BigInt, timeout_secs: BigInt, created_seq: BigInt)
    set (
        status: Text, progress: Nullable<Double>, message: Text, metadata: Text, attempt: BigInt,
        eta_at: Nullable<BigInt>, eta_by_history: Bool, stalled: Bool, cancel_requested: Bool,
        result: Nullable<Text>, error_code: Nullable<Text>, error_message: Nullable<Text>,
        heard_at: BigInt, started_at: Nullable<BigInt>, finished_at: Nullable<BigInt>,
        check_at: Nullable<BigInt>, typical_secs: Nullable<Double>,
        rate_smoothed: Nullable<Double>, rate_since: Nullable<BigInt>, rate_progress: Nullable<Double>,
        rate_at: Nullable<BigInt>, last_seq: BigInt, last_at: BigInt
    )
}

impl<'a> JobRow<'a> {
    fn new(school: SchoolId, id: &'a SubjectId, stored: &'a Stored) -> JobRow<'a> {
        let State::Job(job) = &stored.state;
        let (result, error) = match &job.end {
            Some(End::Result(result)) => (Some(result.get().into()), None),
            Some(End::Error(error)) => (None, Some(error)),
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
            eta_at: job.eta.map(|eta| millis(eta.at)),
            eta_by_history: job.eta.is_some_and(|eta| eta.source == EtaSource::History),
            stalled: job.stalled,
            cancel_requested: job.cancel_requested,
            result,
            error_code: error.map(|error| (&*error.code).into()),
            error_message: error.map(|error| (&*error.message).into()),
            created_at: millis(job.created_at),
            heard_at: millis(job.heard_at),
            started_at: job.started_at.map(millis),
            finished_at: job.finished_at.map(millis),
            stall_after_secs: job.stall_after_secs.into(),
            timeout_secs: job.timeout_secs.into(),
            check_at: job.check_at.map(millis),
            typical_secs: job.typical_secs,
            rate_smoothed: job.rate.map(|rate| rate.smoothed),
            rate_since: job.rate.map(|rate| millis(rate.since)),
            rate_progress: job.rate.map(|rate| rate.progress),
            rate_at: job.rate.map(|rate| millis(rate.at)),
            created_seq: stored.created_seq as i64,
            last_seq: stored.last_seq as i64,
            last_at: millis(stored.last_at),
        }
    }

    fn into_stored(self) -> QueryResult<(SubjectId, Stored)> {
        let optional = |at: Option<i64>| at.map(from_millis).transpose();
        let end = match (self.result, self.error_code) {
            (Some(result), _) => Some(End::Result(raw(result)?)),
            (None, Some(code)) => {
                let message = self.error_message.unwrap_or_default().as_ref().into();
                Some(End::Error(JobError {
                    code: code.as_ref().into(),
                    message,
                }))
            }
            (None, None) => None,
        };
        let source = if self.eta_by_history {
            EtaSource::History
        } else {
            EtaSource::Rate
        };
        let rate = match (
            self.rate_smoothed,
            self.rate_since,
            self.rate_progress,
            self.rate_at,
        ) {
            (Some(smoothed), Some(since), Some(progress), Some(at)) => Some(Rate {
                smoothed,
                since: from_millis(since)?,
                progress,
                at: from_millis(at)?,
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
            eta: optional(self.eta_at)?.map(|at| Eta { at, source }),
            stalled: self.stalled,
            cancel_requested: self.cancel_requested,
            end,
            created_at: from_millis(self.created_at)?,
            heard_at: from_millis(self.heard_at)?,
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
            check_at: optional(self.check_at)?,
            typical_secs: self.typical_secs,
            rate,
        };
        let id = self.job_id.parse().map_err(|_| unreadable("a job id"))?;
        let stored = Stored {
            state: State::Job(Box::new(job)),
            created_seq: self.created_seq as u64,
            last_seq: self.last_seq as u64,
            last_at: from_millis(self.last_at)?,
        };
        Ok((id, stored))
    }
}

fn raw(json: Cow<'_, str>) -> QueryResult<Arc<RawValue>> {
    RawValue::from_string(json.into_owned())
        .map(Arc::from)
        .map_err(|_| unreadable("JSON"))
}

/// Jobs, as the store sees any kind.
pub(super) struct JobsTable;

impl Table for JobsTable {
    fn load(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subject: &SubjectId,
    ) -> QueryResult<Option<Stored>> {
        let row: Option<JobRow<'_>> = jobs::table
            .find((school.get(), subject.as_str()))
            .select(JobRow::as_select())
            .first(conn)
            .optional()?;
        row.map(|row| Ok(row.into_stored()?.1)).transpose()
    }

    fn write(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subject: &SubjectId,
        stored: &Stored,
    ) -> QueryResult<()> {
        UpsertJob(&JobRow::new(school, subject, stored))
            .execute(conn)
            .map(|_| ())
    }

    fn snapshot(
        &self,
        conn: &mut SqliteConnection,
        selection: &Selection<'_>,
    ) -> QueryResult<Vec<(SubjectId, Stored)>> {
        let mut states = match &selection.subjects {
            Some(subjects) => single_jobs(conn, selection, subjects)?,
            None => all_jobs(conn, selection)?,
        };
        states.sort_unstable_by_key(|(_, stored)| stored.last_seq);
        states.truncate(selection.limit);
        Ok(states)
    }

    fn last_events(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subjects: &[&str],
    ) -> QueryResult<HashMap<String, LastEvent>> {
        let rows: Vec<(String, i64, String, String)> = jobs::table
            .filter(jobs::school_id.eq(school.get()))
            .filter(jobs::job_id.eq_any(subjects))
            .select((jobs::job_id, jobs::last_seq, jobs::status, jobs::job_type))
            .load(conn)?;
        let entry = |(id, seq, status, category)| {
            (
                id,
                LastEvent {
                    seq: seq as u64,
                    status,
                    category: Some(category),
                },
            )
        };
        Ok(rows
            .into_iter()
            .map(|(id, seq, status, category): (_, i64, _, _)| entry((id, seq, status, category)))
            .collect())
    }

    fn durations(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        category: &str,
        limit: usize,
    ) -> QueryResult<Vec<f64>> {
        let rows: Vec<(Option<i64>, Option<i64>)> = jobs::table
            .filter(jobs::school_id.eq(school.get()))
            .filter(jobs::job_type.eq(category))
            .filter(jobs::status.eq("completed"))
            .order(jobs::finished_at.desc())
            .limit(limit as i64)
            .select((jobs::started_at, jobs::finished_at))
            .load(conn)?;
        let seconds =
            |(start, end): (Option<i64>, Option<i64>)| Some((end? - start?) as f64 / 1000.0);
        Ok(rows.into_iter().filter_map(seconds).collect())
    }

    fn overdue(
        &self,
        conn: &mut SqliteConnection,
        now: DateTime<Utc>,
        limit: usize,
    ) -> QueryResult<Vec<Overdue>> {
        let rows: Vec<(i64, String)> = jobs::table
            .filter(jobs::check_at.le(millis(now)))
            .order(jobs::check_at)
            .limit(limit as i64)
            .select((jobs::school_id, jobs::job_id))
            .load(conn)?;
        let overdue = |(school, id): (i64, String)| {
            Ok(Overdue {
                school: school.try_into().map_err(|_| unreadable("a school id"))?,
                subject: id.parse().map_err(|_| unreadable("a job id"))?,
                command: Command::Job(job::Command::Check),
            })
        };
        rows.into_iter().map(overdue).collect()
    }

    fn sweep(
        &self,
        conn: &mut SqliteConnection,
        before: DateTime<Utc>,
        limit: usize,
    ) -> QueryResult<Vec<Address>> {
        let gone: Vec<(i64, String)> = jobs::table
            .inner_join(schools::table.on(schools::school_id.eq(jobs::school_id)))
            .filter(jobs::finished_at.lt(millis(before)))
            .filter(jobs::last_seq.le(schools::floor))
            .limit(limit as i64)
            .select((jobs::school_id, jobs::job_id))
            .load(conn)?;
        let mut addresses = Vec::with_capacity(gone.len());
        for (school, id) in gone {
            diesel::delete(jobs::table.find((school, &id))).execute(conn)?;
            let school = school.try_into().map_err(|_| unreadable("a school id"))?;
            addresses.push((
                school,
                job::KIND,
                id.parse().map_err(|_| unreadable("a job id"))?,
            ));
        }
        Ok(addresses)
    }
}

/// Selected jobs, by their keys.
fn single_jobs(
    conn: &mut SqliteConnection,
    selection: &Selection<'_>,
    subjects: &[&SubjectId],
) -> QueryResult<Vec<(SubjectId, Stored)>> {
    let mut states = Vec::new();
    for subject in subjects {
        let Some(stored) = JobsTable.load(conn, selection.school, subject)? else {
            continue;
        };
        let State::Job(job) = &stored.state;
        let passes = selection
            .filter
            .passes(job.status.as_str(), Some(job.job_type.as_str()));
        if passes && stored.last_seq > selection.after && stored.last_seq <= selection.upto {
            states.push(((*subject).clone(), stored));
        }
    }
    Ok(states)
}

/// The first of those that go on, and of each way to end: every one by an index in the order of the log.
fn all_jobs(
    conn: &mut SqliteConnection,
    selection: &Selection<'_>,
) -> QueryResult<Vec<(SubjectId, Stored)>> {
    let wanted = |status: &&Status| {
        let statuses = &selection.filter.statuses;
        statuses.is_empty() || statuses.contains(status.as_str())
    };
    let (ended, active): (Vec<Status>, Vec<Status>) = Status::ALL
        .iter()
        .filter(wanted)
        .partition(|status| status.is_terminal());
    let active: Vec<&str> = active.iter().map(|status| status.as_str()).collect();
    let mut states = Vec::new();
    let going_on = (!active.is_empty()).then_some(None);
    for ending in going_on.into_iter().chain(ended.into_iter().map(Some)) {
        let mut query = jobs::table
            .filter(jobs::school_id.eq(selection.school.get()))
            .filter(jobs::last_seq.gt(selection.after as i64))
            .filter(jobs::last_seq.le(selection.upto as i64))
            .order(jobs::last_seq)
            .limit(selection.limit as i64)
            .select(JobRow::as_select())
            .into_boxed();
        query = match ending {
            Some(status) => query
                .filter(jobs::finished_at.is_not_null())
                .filter(jobs::status.eq(status.as_str())),
            None => query
                .filter(jobs::finished_at.is_null())
                .filter(jobs::status.eq_any(active.clone())),
        };
        if !selection.filter.categories.is_empty() {
            query = query.filter(jobs::job_type.eq_any(&selection.filter.categories));
        }
        for row in query.load::<JobRow<'_>>(conn)? {
            states.push(row.into_stored()?);
        }
    }
    Ok(states)
}

diesel::allow_tables_to_appear_in_same_query!(jobs, schools);

/// One job, with its place.
pub(super) fn find(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    school: SchoolId,
    id: &SubjectId,
) -> QueryResult<Option<StoredJob>> {
    let stored = JobsTable.load(conn, school, id)?;
    Ok(stored.map(|stored| into_stored_job(epoch, school, id.clone(), stored)))
}

/// A page of jobs, newest first.
pub(super) fn list(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    school: SchoolId,
    query: &JobQuery,
    head: u64,
) -> QueryResult<JobPage> {
    // One query a status: each by an index, newest first.
    let sources = match query.statuses.as_slice() {
        [] => vec![None],
        statuses => statuses
            .iter()
            .copied()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(Some)
            .collect(),
    };
    let mut found = Vec::new();
    for source in sources {
        let mut select = jobs::table
            .filter(jobs::school_id.eq(school.get()))
            .order(jobs::created_seq.desc())
            .limit(query.limit as i64 + 1)
            .select(JobRow::as_select())
            .into_boxed();
        if let Some(status) = source {
            select = select.filter(jobs::status.eq(status.as_str()));
        }
        if !query.job_types.is_empty() {
            select = select.filter(jobs::job_type.eq_any(&query.job_types));
        }
        if let Some(text) = &query.text {
            let escaped = text
                .replace('\\', "\\\\")
                .replace('%', "\\%")
                .replace('_', "\\_");
            let pattern = format!("%{escaped}%");
            let in_text = jobs::job_id
                .like(pattern.clone())
                .escape('\\')
                .or(jobs::message.like(pattern.clone()).escape('\\'))
                .or(jobs::metadata.like(pattern).escape('\\'));
            select = select.filter(in_text);
        }
        if let Some(before) = query.before {
            select = select.filter(jobs::created_seq.lt(before as i64));
        }
        found.extend(select.load::<JobRow<'_>>(conn)?);
    }
    found.sort_unstable_by_key(|row| std::cmp::Reverse(row.created_seq));
    let more = found.len() > query.limit;
    let stored = found.into_iter().take(query.limit).map(|row| {
        let (id, stored) = row.into_stored()?;
        Ok(into_stored_job(epoch, school, id, stored))
    });
    let jobs: Vec<StoredJob> = stored.collect::<QueryResult<_>>()?;
    let next = jobs.last().filter(|_| more).map(|last| last.created_seq);
    Ok(JobPage { jobs, next, head })
}

fn into_stored_job(epoch: Epoch, school: SchoolId, id: SubjectId, stored: Stored) -> StoredJob {
    let event = Arc::new(stored.snapshot(epoch, school, job::KIND, id));
    let created_seq = stored.created_seq;
    let State::Job(job) = stored.state;
    StoredJob {
        job: *job,
        created_seq,
        event,
    }
}
