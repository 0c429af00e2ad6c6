//! A job: its progress and history, with forms to cancel or retry it.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use rocket::form::Form;
use rocket::response::Redirect;
use rocket::{FromForm, Route, State, get, post, routes};
use schemars::JsonSchema;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::chart::{Report as Point, progress_chart};
use super::form::{optional_time, time};
use super::page::{Html, Pages};
use super::rows::{pretty, rows};
use super::school::{found, publish, view};
use super::visitor::{Rejection, Visitor};
use crate::config::{CHART_MILESTONES, CHART_REPORTS};
use crate::event::Event;
use crate::http::body::Base;
use crate::http::problem::Problem;
use crate::id::SubjectId;
use crate::kind::Command;
use crate::kind::Subject as _;
use crate::kind::job::{self, End, Report, Status};
use crate::log::{Envelope, Which};
use crate::service::Tidings;

pub(super) fn routes() -> Vec<Route> {
    routes![job_page, cancel, retry]
}

#[get("/monitor/schools/<school>/jobs/<id>")]
async fn job_page(
    school: &str,
    id: &str,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Rejection> {
    let mut guest = visitor.enter(school, tidings).await?;
    let stored = found(tidings, &mut guest, job::KIND, id).await?;
    let job = stored.state.job();
    let result = job.and_then(|job| match &job.end {
        Some(End::Result(result)) => pretty(result.get()),
        _ => None,
    });
    let details = job.and_then(|job| match &job.end {
        Some(End::Error(error)) => error.details.as_deref(),
        _ => None,
    });
    let log = async |which, limit| {
        let subject = stored.event.subject.clone();
        let reads = tidings.reads();
        reads
            .last_events(&guest.caller, job::KIND, subject, which, limit)
            .await
    };
    let reports = log(Which::Type(&job::JOB_PROGRESS), CHART_REPORTS).await?;
    let milestones = log(Which::Milestones, CHART_MILESTONES).await?;
    let now = Utc::now();
    let milestones: Vec<Value> = milestones
        .iter()
        .map(|event| {
            let report = event.draft.payload::<Report>();
            let is_asked =
                |report: &Report| report.cancel_requested && report.status == Status::InProgress;
            json!({
                "at": time(event.at, now),
                "status": event.draft.status,
                "message": report.map(|report| &report.message),
                "stalled": report.map(|report| report.stalled),
                "is_asked": report.is_some_and(is_asked),
                "attempt": report.map(|report| report.attempt),
            })
        })
        .collect();
    let ended = job.is_some_and(|job| job.status.is_terminal());
    let mut row = rows(std::slice::from_ref(&stored)).pop();
    // Lists show the beginning of a title.
    if let (Some(row), Some(title)) = (&mut row, job.and_then(|job| job.title())) {
        row["label"] = title.into();
    }
    let context = json!({
        // The page must not refresh while a confirmation is open.
        "may_write": !ended,
        "job": row,
        "metadata": job.and_then(|job| pretty(job.metadata.get())),
        "result": result,
        "details": details.map(shown),
        "are_milestones_all": milestones.len() < CHART_MILESTONES,
        "milestones": milestones,
        "progress": progress(id, &reports, job.and_then(|job| job.finished_at), now),
    });
    let view = view(&visitor, &guest, &base, tidings, "jobs", context).await?;
    Ok(pages.render("job.html", &view))
}

/// Returns the details of an error for people: a command's output as it was, and the others as JSON.
fn shown(details: &RawValue) -> Value {
    let mut others: Value = serde_json::from_str(details.get()).unwrap_or_default();
    let output = others.get_mut("output").map(Value::take);
    let output = output.filter(Value::is_string);
    let others = match (&output, &mut others) {
        (Some(_), Value::Object(members)) => {
            members.shift_remove("output");
            (!members.is_empty()).then(|| pretty(&others.to_string()))
        }
        _ => Some(pretty(details.get())),
    };
    json!({"output": output, "others": others.flatten()})
}

/// Returns the reported progress as a table, and as a chart if there is a report. None if there are no events.
fn progress(
    id: &str,
    events: &[Arc<Event>],
    finished: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Option<Value> {
    let mut reports: Vec<Point> = Vec::new();
    let mut rows = Vec::new();
    for event in events {
        let Some(report) = event.draft.payload::<Report>() else {
            continue;
        };
        let (Some(percent), attempt) = (report.progress, u64::from(report.attempt)) else {
            continue;
        };
        // Every attempt is at 0 before its first report. Do not draw these events.
        let is_same_attempt = reports.last().is_some_and(|last| last.attempt == attempt);
        let is_report = percent > 0.0 || is_same_attempt;
        if is_report {
            reports.push(Point {
                at: event.at,
                percent,
                attempt,
            });
        }
        rows.push(json!({
            "at": time(event.at, now),
            "percent": is_report.then(|| format!("{percent:.1}")),
            "message": report.message,
            "attempt": attempt,
        }));
    }
    if rows.is_empty() {
        return None;
    }
    rows.reverse();
    let until = finished.unwrap_or(now);
    let title = format!("Progress of {id}");
    let first = reports.first().map(|report| report.at);
    Some(json!({
        "chart": first.map(|_| progress_chart(&title, &reports, until)),
        "from": optional_time(first, now),
        "until": time(until, now),
        "is_whole": events.len() < CHART_REPORTS,
        "rows": rows,
    }))
}

/// The attempt that the visitor wants to cancel, and whether to ask the worker or to end it at once.
#[derive(FromForm, JsonSchema)]
#[schemars(example = serde_json::json!({ "attempt": 1, "force": false }))]
pub(super) struct Ending {
    /// The attempt. The current one if absent.
    #[field(default = None)]
    attempt: Option<u32>,
    /// Whether to end it at once.
    #[field(default = false)]
    #[schemars(default)]
    force: bool,
}

/// If the form cannot be parsed, asks the worker to cancel the job.
#[post("/monitor/schools/<school>/jobs/<id>/cancel", data = "<form>")]
async fn cancel(
    school: &str,
    id: &str,
    form: Option<Form<Ending>>,
    visitor: Visitor,
    base: Base,
    tidings: &State<Arc<Tidings>>,
) -> Result<Redirect, Rejection> {
    let form = form.as_deref();
    let cancel = job::Command::Cancel(job::Cancel {
        attempt: form.and_then(|form| form.attempt),
        force: form.is_some_and(|form| form.force),
        ..job::Cancel::default()
    });
    act_on_job(cancel, school, id, &visitor, &base, tidings).await
}

#[post("/monitor/schools/<school>/jobs/<id>/retry")]
async fn retry(
    school: &str,
    id: &str,
    visitor: Visitor,
    base: Base,
    tidings: &State<Arc<Tidings>>,
) -> Result<Redirect, Rejection> {
    let retry = job::Command::Retry(job::Note::default());
    act_on_job(retry, school, id, &visitor, &base, tidings).await
}

async fn act_on_job(
    command: job::Command,
    school: &str,
    id: &str,
    visitor: &Visitor,
    base: &Base,
    tidings: &Tidings,
) -> Result<Redirect, Rejection> {
    let guest = visitor.enter(school, tidings).await?;
    let missing = |_| Problem::from(crate::kind::not_found(job::KIND, id));
    let subject: SubjectId = id.parse().map_err(missing)?;
    let address = subject.encoded().to_string();
    let envelope = Envelope::new(subject, Command::Job(command));
    publish(visitor, &guest.caller, envelope, tidings).await?;
    Ok(Redirect::to(format!(
        "{}/monitor/schools/{school}/jobs/{address}",
        base.0
    )))
}
