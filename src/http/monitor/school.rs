//! The pages of a school.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use rocket::form::Form;
use rocket::response::Redirect;
use rocket::{FromForm, Route, State, get, post, routes};
use serde_json::{Value, json};

use super::chart::{Point, control_chart, short, spark};
use super::form::{count, optional_time, span, time};
use super::page::{Html, Pages};
use super::visitor::{Guest, Refusal, Visitor};
use crate::auth::{Access, Role};
use crate::config::{CHART_SAMPLES, MONITOR_ROWS, PAGE_DEFAULT, RATE_SECS};
use crate::http::body::Base;
use crate::http::problem::{Kind as ProblemKind, Problem};
use crate::http::subjects::Asked;
use crate::id::{Channel, Cursor, Kind, SchoolId, SubjectId};
use crate::kind::characteristic::{self, Characteristic, Violation, ViolationId};
use crate::kind::device::{self, Device};
use crate::kind::enrollment::{self, Session};
use crate::kind::job::{self, End, Job};
use crate::kind::{Command, State as SubjectState};
use crate::scope::Scope;
use crate::service::Tidings;
use crate::store::{Envelope, ListQuery, StoreError, StoredSubject, ViolationQuery};

pub(super) fn routes() -> Vec<Route> {
    routes![
        overview,
        jobs,
        job_page,
        act_on_job,
        enrollments,
        devices,
        characteristics,
        characteristic_page,
        acknowledge,
    ]
}

/// How many subjects of each kind there are, by status, of the kinds that the visitor may see.
pub(super) async fn totals(
    tidings: &Tidings,
    access: &Access,
    school: SchoolId,
) -> Result<Value, StoreError> {
    let mut totals = serde_json::Map::new();
    for kind in crate::kind::KINDS {
        if access.reach(school, &Channel::Collection(*kind)).is_err() {
            continue;
        }
        let counts = tidings.store().counts(school, *kind).await?;
        let all: u64 = counts.iter().map(|(_, count)| count).sum();
        let mut own: serde_json::Map<String, Value> = counts
            .into_iter()
            .map(|(status, number)| (status.to_owned(), count(number).into()))
            .collect();
        own.insert("all".into(), count(all).into());
        totals.insert(kind.collection().into(), own.into());
    }
    Ok(totals.into())
}

/// What a page of a school is given beside its own.
pub(super) async fn view(
    visitor: &Visitor,
    guest: &Guest,
    base: &Base,
    tidings: &Tidings,
    tab: &str,
    mut own: Value,
) -> Result<Value, StoreError> {
    // Before anything is read: what happens meanwhile is told by the stream.
    let seq = tidings.store().head(guest.school).await?;
    let epoch = tidings.store().epoch();
    own["cursor"] = Cursor { epoch, seq }.to_string().into();
    own["stream"] = stream(guest, base).into();
    let totals = totals(tidings, &guest.access, guest.school).await?;
    own["school"] = json!({
        "id": guest.school,
        "href": format!("{}/monitor/schools/{}", base.0, guest.school),
        "totals": totals,
    });
    own["tab"] = tab.into();
    own["may_act"] = guest.may_act().into();
    own["may_look_after"] = guest.may_look_after().into();
    own["rendered_at"] = crate::wire::timestamp(Utc::now()).into();
    Ok(visitor.view(base, own))
}

/// The stream of all that the visitor may see of the school.
fn stream(guest: &Guest, base: &Base) -> String {
    let school = guest.school;
    if guest.access.reach(school, &Channel::School(school)).is_ok() {
        return format!("{}/events/schools/{school}", base.0);
    }
    let kinds = crate::kind::KINDS
        .iter()
        .filter(|kind| guest.may_see(**kind));
    let channels: Vec<String> = kinds
        .map(|kind| format!("channel={}&", kind.collection()))
        .collect();
    format!("{}/events?{}school_id={school}", base.0, channels.concat())
}

async fn listed(
    tidings: &Tidings,
    guest: &Guest,
    kind: Kind,
    statuses: &[&'static str],
    limit: usize,
) -> Result<Vec<StoredSubject>, StoreError> {
    if !guest.may_see(kind) {
        return Ok(Vec::new());
    }
    let query = ListQuery {
        statuses: statuses.to_vec(),
        limit,
        ..ListQuery::default()
    };
    Ok(tidings
        .store()
        .subjects(guest.school, kind, query)
        .await?
        .subjects)
}

fn job_row(id: &SubjectId, job: &Job, now: DateTime<Utc>) -> Value {
    let (code, error) = match &job.end {
        Some(End::Error(error)) => (Some(&*error.code), Some(&*error.message)),
        _ => (None, None),
    };
    let took = job
        .started_at
        .map(|start| span(job.finished_at.unwrap_or(now) - start));
    json!({
        "id": id,
        "type": job.job_type,
        "status": job.status.as_str(),
        "stalled": job.stalled,
        "cancel_requested": job.cancel_requested,
        "progress": job.progress.map(|percent| percent.floor() as u64),
        "message": &*job.message,
        "attempt": job.attempt,
        // What was to be over by now will be at any moment: nothing worth saying.
        "eta": job.eta.filter(|eta| eta.at > now).map(|eta| time(eta.at, now)),
        "created": time(job.created_at, now),
        "heard": time(job.heard_at, now),
        "finished": optional_time(job.finished_at, now),
        "took": took,
        "error": error,
        "code": code,
    })
}

fn session_row(id: &SubjectId, session: &Session, now: DateTime<Utc>) -> Value {
    json!({
        "id": id,
        "device": session.device_id,
        "student": session.student_id.as_deref(),
        "status": session.status.as_str(),
        "progress": session.progress,
        "message": &*session.message,
        "attempt": session.attempt,
        "total_attempts": session.total_attempts,
        "quality": session.quality_score.map(short),
        "code": session.error_code.as_deref(),
        "ended": session.status.is_terminal(),
        "created": time(session.created_at, now),
        "heard": time(session.heard_at, now),
        "finished": optional_time(session.finished_at, now),
    })
}

fn device_row(id: &SubjectId, device: &Device, now: DateTime<Utc>) -> Value {
    json!({
        "id": id,
        "name": device.name.as_deref(),
        "status": device.status.as_str(),
        "flapping": device.flapping,
        "seen": optional_time(device.last_seen, now),
        "since": time(device.told_status.1, now),
        "lease_secs": device.lease_secs,
    })
}

fn characteristic_row(id: &SubjectId, own: &Characteristic, now: DateTime<Utc>) -> Value {
    let fields = own.last_sample.as_ref().map(|sample| &sample.fields);
    let told: Option<Value> = fields.and_then(|fields| serde_json::from_str(fields).ok());
    let value = told
        .as_ref()
        .and_then(|told| told["payload"]["mean"].as_f64());
    json!({
        "id": id,
        "name": own.name.as_deref(),
        "unit": own.unit.as_deref(),
        "status": own.status(),
        "value": value.map(short),
        "zone": told.map(|told| told["payload"]["zone"].clone()),
        "sampled": optional_time(own.last_sample.as_ref().map(|sample| sample.at), now),
        "samples": count(own.sample_count),
        "limits": own.limits.map(|limits| json!({
            "center_line": short(limits.chart.center_line),
            "ucl": short(limits.chart.ucl),
            "lcl": short(limits.chart.lcl),
            "method": limits.method,
            "version": limits.version,
        })),
        "learning": own.baseline.as_ref().map(|own| json!({"has": own.collected.len(), "wants": own.samples})),
    })
}

fn violation_row(violation: &Violation, now: DateTime<Utc>) -> Value {
    let acknowledgement = violation.acknowledgement.as_ref();
    json!({
        "id": violation.id().to_string(),
        "characteristic": violation.characteristic_id,
        "rule_id": violation.rule_id,
        "rule": &*violation.rule_name,
        "severity": violation.severity,
        "at": time(violation.at, now),
        "user": acknowledgement.map(|ack| &*ack.user),
        "reason": acknowledgement.map(|ack| &*ack.reason),
        "acknowledged": optional_time(acknowledgement.map(|ack| ack.at), now),
    })
}

fn rows(subjects: &[StoredSubject]) -> Vec<Value> {
    let now = Utc::now();
    let row = |stored: &StoredSubject| {
        let id = &stored.event.subject;
        match &stored.state {
            SubjectState::Job(job) => job_row(id, job, now),
            SubjectState::Enrollment(session) => session_row(id, session, now),
            SubjectState::Device(device) => device_row(id, device, now),
            SubjectState::Characteristic(own) => characteristic_row(id, own, now),
        }
    };
    subjects.iter().map(row).collect()
}

async fn violations(
    tidings: &Tidings,
    guest: &Guest,
    query: ViolationQuery,
) -> Result<Vec<Value>, StoreError> {
    if !guest.may_see(characteristic::KIND) {
        return Ok(Vec::new());
    }
    let now = Utc::now();
    let page = tidings.store().violations(guest.school, query).await?;
    Ok(page
        .violations
        .iter()
        .map(|own| violation_row(own, now))
        .collect())
}

#[get("/monitor/schools/<school>")]
async fn overview(
    school: &str,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Refusal> {
    let guest = visitor.enter(school)?;
    let mut running = listed(tidings, &guest, job::KIND, &["in_progress"], MONITOR_ROWS).await?;
    // What is stuck first, and then what has been heard of last.
    running.sort_by_key(|stored| {
        let job = stored.state.job();
        let place = |job: &Job| (!job.stalled, std::cmp::Reverse(job.heard_at));
        job.map(place)
    });
    let failed = listed(tidings, &guest, job::KIND, &["failed"], 10).await?;
    let day = Utc::now() - TimeDelta::days(1);
    let lately = |stored: &&StoredSubject| {
        let ended = stored.state.job().and_then(|job| job.finished_at);
        ended.is_some_and(|ended| ended > day)
    };
    let failed: Vec<StoredSubject> = failed.iter().filter(lately).cloned().collect();
    let active = ["ready", "placing", "capturing", "processing"];
    let sessions = listed(tidings, &guest, enrollment::KIND, &active, MONITOR_ROWS).await?;
    let mut devices = listed(tidings, &guest, device::KIND, &[], MONITOR_ROWS).await?;
    devices.sort_by(|one, other| one.event.subject.cmp(&other.event.subject));
    let query = ViolationQuery {
        acknowledged: Some(false),
        limit: MONITOR_ROWS,
        ..ViolationQuery::default()
    };
    let rate = tidings.hub().rate(guest.school);
    let values = rate.map(f64::from);
    let own = json!({
        "rate": {
            "now": count(u64::from(rate[RATE_SECS - 1])),
            "minute": count(rate.iter().map(|events| u64::from(*events)).sum()),
            "chart": spark("rate", "Events per second", &values, RATE_SECS),
        },
        "running": rows(&running),
        "failed": rows(&failed),
        "sessions": rows(&sessions),
        "devices": rows(&devices),
        "violations": violations(tidings, &guest, query).await?,
    });
    let view = view(&visitor, &guest, &base, tidings, "overview", own).await?;
    Ok(pages.render("overview.html", &view))
}

/// A list of a kind, with filters in the URL.
async fn list_page(
    kind: Kind,
    template: &str,
    school: &str,
    asked: Result<Asked, Problem>,
    (visitor, base, pages, tidings): (Visitor, Base, &Pages, &Tidings),
) -> Result<Html, Refusal> {
    let guest = visitor.enter(school)?;
    let Asked(mut query) = asked?;
    query.limit = PAGE_DEFAULT;
    guest
        .access
        .reach(guest.school, &Channel::Collection(kind))
        .map_err(Problem::from)?;
    let page = tidings
        .store()
        .subjects(guest.school, kind, query.clone())
        .await?;
    let status =
        |name: &&'static str| json!({"name": name, "is_on": query.statuses.contains(name)});
    let statuses = crate::kind::description(kind).statuses.iter();
    let is_on = !(query.statuses.is_empty() && query.categories.is_empty() && query.text.is_none());
    let own = json!({
        "rows": rows(&page.subjects),
        "next": page.next.map(|next| address(&query, Some(next))),
        "first": query.before.is_some().then(|| address(&query, None)),
        "filter": {
            "text": query.text,
            "job_type": query.categories.first(),
            "is_on": is_on,
            "statuses": statuses.map(status).collect::<Vec<_>>(),
        },
    });
    let view = view(&visitor, &guest, &base, tidings, kind.collection(), own).await?;
    Ok(pages.render(template, &view))
}

/// The address of another page of the same list.
fn address(query: &ListQuery, page: Option<u64>) -> String {
    let mut fields = Vec::new();
    fields.extend(
        query
            .statuses
            .iter()
            .map(|status| ("status", (*status).to_owned())),
    );
    fields.extend(query.categories.iter().map(|own| ("job_type", own.clone())));
    fields.extend(query.text.iter().map(|text| ("q", text.clone())));
    fields.extend(page.map(|page| ("page", page.to_string())));
    let field = |(name, value): &(&str, String)| {
        let value = rocket::http::RawStr::new(value).percent_encode();
        format!("{name}={value}")
    };
    let fields: Vec<String> = fields.iter().map(field).collect();
    format!("?{}", fields.join("&"))
}

#[get("/monitor/schools/<school>/jobs")]
async fn jobs(
    school: &str,
    asked: Result<Asked, Problem>,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Refusal> {
    list_page(
        job::KIND,
        "jobs.html",
        school,
        asked,
        (visitor, base, pages, tidings),
    )
    .await
}

#[get("/monitor/schools/<school>/enrollments")]
async fn enrollments(
    school: &str,
    asked: Result<Asked, Problem>,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Refusal> {
    let template = "enrollments.html";
    list_page(
        enrollment::KIND,
        template,
        school,
        asked,
        (visitor, base, pages, tidings),
    )
    .await
}

#[get("/monitor/schools/<school>/devices")]
async fn devices(
    school: &str,
    asked: Result<Asked, Problem>,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Refusal> {
    list_page(
        device::KIND,
        "devices.html",
        school,
        asked,
        (visitor, base, pages, tidings),
    )
    .await
}

#[get("/monitor/schools/<school>/characteristics")]
async fn characteristics(
    school: &str,
    asked: Result<Asked, Problem>,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Refusal> {
    let template = "characteristics.html";
    list_page(
        characteristic::KIND,
        template,
        school,
        asked,
        (visitor, base, pages, tidings),
    )
    .await
}

/// A subject of a school that the visitor may see.
async fn found(
    tidings: &Tidings,
    guest: &Guest,
    kind: Kind,
    id: &str,
) -> Result<StoredSubject, Refusal> {
    let missing = || Problem::from(crate::kind::not_found(kind, id));
    let subject: SubjectId = id.parse().map_err(|_| missing())?;
    guest
        .access
        .reach(guest.school, &Channel::Subject(kind, subject.clone()))
        .map_err(Problem::from)?;
    let stored = tidings.store().subject(guest.school, kind, subject).await?;
    Ok(stored.ok_or_else(missing)?)
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

/// Checks that a form is our own and that the visitor may act on the subject.
fn may_act(
    visitor: &Visitor,
    guest: &Guest,
    kind: Kind,
    subject: &SubjectId,
) -> Result<(), Problem> {
    if !visitor.is_own_page {
        return Err(Problem::new(
            ProblemKind::CrossOrigin,
            "this form was sent by another site",
        ));
    }
    guest.access.require(Role::Worker)?;
    let channel = Channel::Subject(kind, subject.clone());
    Ok(guest.access.reach(guest.school, &channel)?)
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

#[get("/monitor/schools/<school>/characteristics/<id>")]
async fn characteristic_page(
    school: &str,
    id: &str,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Refusal> {
    let guest = visitor.enter(school)?;
    let stored = found(tidings, &guest, characteristic::KIND, id).await?;
    let subject = stored.event.subject.clone();
    let now = Utc::now();
    let samples = tidings
        .store()
        .last_events(
            guest.school,
            characteristic::KIND,
            subject.clone(),
            &characteristic::SAMPLE,
            CHART_SAMPLES,
        )
        .await?;
    let mut points = Vec::new();
    let mut table = Vec::new();
    for event in &samples {
        let told: Value = serde_json::from_str(&event.draft.fields).unwrap_or_default();
        let payload = &told["payload"];
        let Some(value) = payload["mean"].as_f64() else {
            continue;
        };
        let in_control = payload["in_control"] != false;
        let rules: Vec<&str> = payload["violations"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|own| own["rule_name"].as_str())
            .collect();
        let sample = payload["sample_id"].as_str().unwrap_or_default();
        points.push(Point {
            value,
            in_control,
            title: format!("{sample}: {} {}", short(value), rules.join(", ")),
        });
        table.push(json!({
            "id": sample,
            "value": short(value),
            "zone": payload["zone"],
            "in_control": in_control,
            "rules": rules.join(", "),
            "at": time(event.at, now),
        }));
    }
    table.reverse();
    let own = stored.state.characteristic();
    let chart = own.and_then(|own| own.limits).map(|limits| limits.chart);
    let title = own.and_then(|own| own.name.as_deref()).unwrap_or(id);
    let query = ViolationQuery {
        characteristic_id: Some(subject),
        limit: PAGE_DEFAULT,
        ..ViolationQuery::default()
    };
    let own = json!({
        "own": rows(std::slice::from_ref(&stored)).pop(),
        "chart": (!points.is_empty()).then(|| control_chart(title, &points, chart.as_ref())),
        "samples": table,
        "violations": violations(tidings, &guest, query).await?,
    });
    let view = view(&visitor, &guest, &base, tidings, "characteristics", own).await?;
    Ok(pages.render("characteristic.html", &view))
}

/// Why a violation is well, or what is done about it.
#[derive(FromForm)]
struct Reason<'r> {
    reason: &'r str,
}

#[post("/monitor/schools/<school>/violations/<id>/ack", data = "<form>")]
async fn acknowledge(
    school: &str,
    id: &str,
    form: Form<Reason<'_>>,
    visitor: Visitor,
    base: Base,
    tidings: &State<Arc<Tidings>>,
) -> Result<Redirect, Refusal> {
    let guest = visitor.enter(school)?;
    let missing = || Problem::new(ProblemKind::NotFound, "there is no such violation");
    let violation = ViolationId::parse(id).ok_or_else(missing)?;
    let subject = violation.characteristic_id;
    may_act(&visitor, &guest, characteristic::KIND, &subject)?;
    let command = characteristic::Command::Acknowledge {
        number: violation.number,
        user: guest.access.subject.as_str().into(),
        reason: form.reason.to_owned(),
    };
    let to = format!(
        "{}/monitor/schools/{school}/characteristics/{subject}",
        base.0
    );
    let envelope = Envelope::new(subject, Command::Characteristic(command));
    let published = tidings.publisher().publish(guest.school, envelope).await;
    published.map_err(Problem::from)?;
    Ok(Redirect::to(to))
}
