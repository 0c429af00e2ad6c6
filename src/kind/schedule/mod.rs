//! A schedule: when the jobs of a type should run, and whether they do.
//!
//! ```text
//! on_time, late ──no run has started in time──▶ missed ──a run starts──▶ on_time
//! on_time ───────the run has not ended in time──▶ late ──it ends──▶ on_time
//! any ──DELETE──▶ removed ──PUT──▶ on_time
//! ```
//!
//! A schedule watches the jobs of one type, which is its id, however they are reported: a run is a job that has
//! started. A run is expected at each time of a cron expression, or a period after the start of the previous run. It
//! must start within a grace period, and end within a maximum duration. A schedule does not concern itself with
//! failures: a run that failed has run.
//!
//! Schedules follow the wall clock, whereas silence is measured in uptime. Runs that were missed while the server was
//! down are found when it is back, and reported once. A check is planned in [uptime](crate::uptime), like that of a
//! job, and repeated after the clock was set, after a start and after a suspension. The server looks up the newest run
//! and passes it to the check ([`Observed`]). It does so after the time by which the run should have started, so a run
//! that it does not find was not in time. If several nodes check a schedule, each change is still made once.
//!
//! A schedule never starts a job.

mod rules;
mod timing;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::rules::{CLOCK_BACK_SECS, MISSED_AGAIN_SECS, apply};
use self::timing::Timing;
pub use self::timing::{CRON_MAX_BYTES, EARLY_SECS, PERIOD_SECS};
use super::{Body, Cell, CommandOf, Description, Subject, Texts};
use crate::event::{Class, Draft, EventType, Payload, timestamp};
use crate::id::{Kind, SubjectId};
use crate::kind::job::{Job, JobType, Status as JobStatus};
use crate::uptime::Uptime;

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("schedules");
/// Schedules have no parts.
pub type Part = super::NoPart;
/// The type of every event of a schedule.
pub static SCHEDULE_UPDATE: EventType = EventType::new::<Update>("schedule_update");
/// The description of this kind.
pub static DESCRIPTION: Description = Description {
    kind: KIND,
    noun: "Schedule",
    title: "Schedules",
    id_field: "schedule_id",
    other_ids: &[],
    event_types: &[&SCHEDULE_UPDATE],
    statuses: &["on_time", "late", "missed", "removed"],
    made_by: "put",
    verbs: &["remove"],
    details: Details::json_schema,
    columns: &["Jobs", "Status", "Next run", "Last run", "Rule"],
};
/// The status of a schedule that has ended.
pub const REMOVED: &str = "removed";
/// The default grace, in seconds.
pub const GRACE_DEFAULT_SECS: u32 = 300;
/// The longest grace, and the longest time that a run can be given, in seconds.
pub const GRACE_MAX_SECS: u32 = 30 * 86_400;

/// A schedule's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ScheduleStatus")]
pub enum Status {
    /// Nothing is overdue.
    OnTime,
    /// The last run should have ended.
    Late,
    /// A run should have started, and none has since.
    Missed,
    /// The schedule is no longer watched.
    Removed,
}

impl Status {
    /// Returns the name in messages and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::OnTime => "on_time",
            Status::Late => "late",
            Status::Missed => "missed",
            Status::Removed => REMOVED,
        }
    }
}

/// A command to a schedule.
#[derive(Debug, Clone)]
pub enum Command {
    /// Creates the schedule, or replaces its rule.
    Put(Put),
    /// Removes the schedule.
    Remove,
    /// Compares the newest run with the rule (issued by the watchdog). Has no effect without an observation.
    Check(Option<Observed>),
}

/// What the server has found out before a check.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The run that started last, if there is one.
    pub run: Option<Run>,
    /// Whether the clock can be relied on, because it was not set recently.
    pub is_clock_steady: bool,
}

/// A run: a job that has started.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "ScheduleRun")]
pub struct Run {
    /// The job.
    pub job_id: SubjectId,
    /// Its status.
    pub status: JobStatus,
    /// When it started.
    #[serde(serialize_with = "super::as_timestamp")]
    pub started_at: DateTime<Utc>,
    /// When it ended, if it has.
    #[serde(serialize_with = "super::as_optional_timestamp")]
    pub finished_at: Option<DateTime<Utc>>,
}

impl Run {
    /// Returns a job as a run, if it has started.
    pub fn of(id: &SubjectId, job: &Job) -> Option<Run> {
        Some(Run {
            job_id: id.clone(),
            status: job.status,
            started_at: job.started_at?,
            finished_at: job.finished_at,
        })
    }
}

/// Creates or replaces the schedule of a job type.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "cron": "0 3 * * *", "time_zone": "Europe/Berlin", "grace_secs": 900 }))]
pub struct Put {
    /// A cron expression of five fields. Either this or `period_secs` is required.
    pub cron: Option<String>,
    /// The time zone of `cron`, by its IANA name; UTC if absent.
    pub time_zone: Option<String>,
    /// The seconds from the start of a run to that of the next one.
    #[schemars(range(min = 60, max = 31_622_400))]
    pub period_secs: Option<u32>,
    /// The seconds after which a run that has not started is missed; 300 if absent.
    #[schemars(range(min = 1, max = GRACE_MAX_SECS))]
    pub grace_secs: Option<u32>,
    /// The seconds after its start by which a run should have ended; the same as `grace_secs` if absent.
    #[schemars(range(min = 1, max = GRACE_MAX_SECS))]
    pub max_run_secs: Option<u32>,
}

/// Removes the schedule.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({}))]
struct Remove {}

/// When a schedule expects runs to start and to end, as set by its publisher.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "ScheduleRule")]
pub struct Rule {
    /// A cron expression of five fields, separated by single blanks.
    pub cron: Option<Arc<str>>,
    /// The time zone of the cron expression.
    pub time_zone: Option<Arc<str>>,
    /// The seconds from the start of a run to that of the next one, if there is no cron expression.
    pub period_secs: Option<u32>,
    /// The seconds after which a run that has not started is missed.
    pub grace_secs: u32,
    /// The seconds after its start by which a run should have ended.
    pub max_run_secs: u32,
}

impl Rule {
    /// Returns the times of the rule, or `None` if the time zone is not in this version of the time zone database. Then
    /// no run is expected.
    fn timing(&self) -> Option<Timing> {
        match (&self.cron, &self.time_zone, self.period_secs) {
            (Some(cron), Some(zone), _) => Timing::cron(cron, zone).ok(),
            (_, _, Some(secs)) => Timing::period(secs).ok(),
            _ => None,
        }
    }

    fn grace(&self) -> TimeDelta {
        TimeDelta::seconds(self.grace_secs.into())
    }

    fn max_run(&self) -> TimeDelta {
        TimeDelta::seconds(self.max_run_secs.into())
    }

    /// Returns the rule in one line.
    fn words(&self) -> String {
        match (&self.cron, &self.time_zone, self.period_secs) {
            (Some(cron), Some(zone), _) => format!("{cron} {zone}"),
            (_, _, secs) => format!("every {} s", secs.unwrap_or_default()),
        }
    }
}

/// The complete state of a schedule.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Schedule {
    /// The type of the jobs that it watches, which is its id.
    pub job_type: JobType,
    /// What is expected.
    pub rule: Rule,
    /// The status.
    pub status: Status,
    /// When the next run is expected to start.
    pub due_at: DateTime<Utc>,
    /// When the first of the runs that were missed in a row was expected.
    pub missed_since: Option<DateTime<Utc>>,
    /// When the last of them was expected.
    pub missed_at: Option<DateTime<Utc>>,
    /// When a missed run was last published as a milestone.
    #[serde(rename = "told_missed_at")]
    pub missed_published_at: Option<DateTime<Utc>>,
    /// The run that started last.
    pub last_run: Option<Run>,
    /// When the last run is late, if it has not ended by then.
    pub late_at: Option<DateTime<Utc>>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was removed.
    pub finished_at: Option<DateTime<Utc>>,
    /// When it was last compared with the clock.
    pub checked_at: DateTime<Utc>,
    /// When to check it next.
    pub check_uptime: Option<Uptime>,
}

impl CommandOf<Schedule> for Command {
    fn check() -> Option<Command> {
        Some(Command::Check(None))
    }

    fn read<B: Body>(verb: &str, body: B) -> Option<Result<Command, B::Error>> {
        Some(match verb {
            "put" => body.read().map(Command::Put),
            "remove" => body.read().map(|Remove {}| Command::Remove),
            _ => return None,
        })
    }
}

impl Subject for Schedule {
    fn describe(&self, id: &SubjectId, _: DateTime<Utc>) -> Draft {
        draft(id, self, Class::Milestone)
    }

    fn details(&self, _: &SubjectId) -> Value {
        let details = Details {
            created_at: self.created_at,
        };
        serde_json::to_value(details).expect("details are JSON")
    }

    fn cells(&self) -> Vec<Vec<Cell>> {
        let is_watched = self.status != Status::Removed;
        let mut last = vec![Cell::Time(self.last_run.as_ref().map(|run| run.started_at))];
        last.extend(
            self.last_run
                .iter()
                .map(|run| Cell::Status(run.status.as_str())),
        );
        vec![
            vec![Cell::Name(self.job_type.as_str().into())],
            vec![Cell::Status(self.status.as_str())],
            vec![Cell::Time(is_watched.then_some(self.due_at))],
            last,
            vec![Cell::Words(self.rule.words())],
        ]
    }

    fn status(&self) -> &'static str {
        self.status.as_str()
    }

    fn created_at(&self) -> DateTime<Utc> {
        self.created_at
    }

    fn finished_at(&self) -> Option<DateTime<Utc>> {
        self.finished_at
    }

    fn check_uptime(&self) -> Option<Uptime> {
        self.check_uptime
    }

    fn texts(&self) -> Texts<'_> {
        let texts = [&self.rule.cron, &self.rule.time_zone];
        Texts {
            own: texts.into_iter().flatten().map(|text| &**text).collect(),
            values: None,
        }
    }

    fn text_bytes(&self) -> usize {
        self.texts().own.iter().map(|text| text.len()).sum()
    }

    fn is_over(&self) -> bool {
        self.status == Status::Removed
    }
}

/// A schedule's data that is not in its events.
#[derive(JsonSchema, Serialize)]
struct Details {
    /// When it was created.
    #[serde(serialize_with = "super::as_timestamp")]
    created_at: DateTime<Utc>,
}

/// The state of a schedule.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "ScheduleUpdate")]
#[schemars(example = serde_json::json!({
    "schedule_id": "backup",
    "status": "on_time",
    "message": "The next run is expected at 2026-03-03T02:00:00.000Z",
    "due_at": "2026-03-03T02:00:00.000Z",
    "missed_since": null,
    "missed_at": null,
    "last_run": {
        "job_id": "42", "status": "in_progress", "started_at": "2026-03-02T02:00:02.000Z", "finished_at": null,
    },
    "cron": "0 3 * * *",
    "time_zone": "Europe/Berlin",
    "period_secs": null,
    "grace_secs": 900,
    "max_run_secs": 3600,
}))]
pub struct Update {
    /// The schedule, by the type of its jobs.
    pub schedule_id: SubjectId,
    /// The status.
    pub status: Status,
    /// What the status means, in words.
    pub message: Arc<str>,
    /// When the next run is expected to start; null if it is removed.
    #[serde(serialize_with = "super::as_optional_timestamp")]
    pub due_at: Option<DateTime<Utc>>,
    /// When the first of the runs that were missed in a row was expected.
    #[serde(serialize_with = "super::as_optional_timestamp")]
    pub missed_since: Option<DateTime<Utc>>,
    /// When the last of them was expected.
    #[serde(serialize_with = "super::as_optional_timestamp")]
    pub missed_at: Option<DateTime<Utc>>,
    /// The run that started last.
    pub last_run: Option<Run>,
    /// What is expected.
    #[serde(flatten)]
    pub rule: Rule,
}

impl Payload for Update {
    const TYPE: &'static EventType = &SCHEDULE_UPDATE;
}

/// Returns a schedule as an event.
fn draft(id: &SubjectId, schedule: &Schedule, class: Class) -> Draft {
    let update = Update {
        schedule_id: id.clone(),
        status: schedule.status,
        message: message(schedule).into(),
        due_at: (schedule.status != Status::Removed).then_some(schedule.due_at),
        missed_since: schedule.missed_since,
        missed_at: schedule.missed_at,
        last_run: schedule.last_run.clone(),
        rule: schedule.rule.clone(),
    };
    Draft::new(class, schedule.status.as_str(), update)
}

fn message(schedule: &Schedule) -> String {
    match (schedule.status, schedule.missed_at, &schedule.last_run) {
        (Status::Missed, Some(missed), _) => {
            format!("The run expected at {} has not started", timestamp(missed))
        }
        (Status::Late, _, Some(run)) => format!(
            "The run that started at {} has not ended",
            timestamp(run.started_at)
        ),
        (Status::Removed, ..) => "Removed".into(),
        _ => format!("The next run is expected at {}", timestamp(schedule.due_at)),
    }
}
