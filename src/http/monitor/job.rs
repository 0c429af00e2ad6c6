//! A job: how it went and is going, and what may be done about it.

use std::sync::Arc;

use chrono::Utc;
use rocket::response::Redirect;
use rocket::{Route, State, get, post, routes};
use serde_json::{Value, json};

use super::form::time;
use super::page::{Html, Pages};
use super::rows::rows;
use super::school::{found, may_act, view};
use super::visitor::{Refusal, Visitor};
use crate::http::body::Base;
use crate::http::problem::{Kind as ProblemKind, Problem};
use crate::id::{Channel, SubjectId};
use crate::kind::Command;
use crate::kind::job::{self, End};
use crate::scope::Scope;
use crate::service::Tidings;
use crate::store::Envelope;

pub(super) fn routes() -> Vec<Route> {
    routes![job_page, act_on_job]
}

#[get("/monitor/schools/<school>/jobs/<id>")]
async fn job_page(
    school: &str,
    id: &str,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Refusal> {
    let guest = visitor.enter(school)?;
    let stored = found(tidings, &guest, job::KIND, id).await?;
    let job = stored.state.job();
    let pretty = |text: &str| {
        let value: Option<Value> = serde_json::from_str(text).ok();
        value.and_then(|value| serde_json::to_string_pretty(&value).ok())
    };
    let result = job.and_then(|job| match &job.end {
        Some(End::Result(result)) => pretty(result.get()),
        _ => None,
    });
    let channel = Channel::Subject(job::KIND, stored.event.subject.clone());
    let scope = Arc::new(Scope::new(guest.school, [channel]));
    let log = tidings.store().replay(scope, 0, true).await?;
    let now = Utc::now();
    let milestones: Vec<Value> = log
        .events
        .iter()
        .filter(|event| !event.is_tick())
        .map(|event| {
            let told: Value = serde_json::from_str(&event.draft.fields).unwrap_or_default();
            json!({
                "at": time(event.at, now),
                "status": event.draft.status,
                "message": told["message"],
                "stalled": told["stalled"],
                "cancel_requested": told["cancel_requested"],
                "attempt": told["attempt"],
            })
        })
        .collect();
    let own = json!({
        "job": rows(std::slice::from_ref(&stored)).pop(),
        "metadata": job.and_then(|job| pretty(job.metadata.get())),
        "result": result,
        "milestones": milestones,
    });
    let view = view(&visitor, &guest, &base, tidings, "jobs", own).await?;
    Ok(pages.render("job.html", &view))
}

#[post("/monitor/schools/<school>/jobs/<id>/<verb>")]
async fn act_on_job(
    school: &str,
    id: &str,
    verb: &str,
    visitor: Visitor,
    base: Base,
    tidings: &State<Arc<Tidings>>,
) -> Result<Redirect, Refusal> {
    let guest = visitor.enter(school)?;
    let missing = |_| Problem::from(crate::kind::not_found(job::KIND, id));
    let subject: SubjectId = id.parse().map_err(missing)?;
    may_act(&visitor, &guest, job::KIND, &subject)?;
    let command = match verb {
        "cancel" => job::Command::Cancel(job::Cancel::default()),
        "retry" => job::Command::Retry(job::Note::default()),
        _ => return Err(Problem::new(ProblemKind::NotFound, "there is no such button").into()),
    };
    let envelope = Envelope::new(subject, Command::Job(command));
    let published = tidings.publisher().publish(guest.school, envelope).await;
    published.map_err(Problem::from)?;
    Ok(Redirect::to(format!(
        "{}/monitor/schools/{school}/jobs/{id}",
        base.0
    )))
}
