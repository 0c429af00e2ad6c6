//! The overview of a school, and what all its pages have in common.

use std::sync::Arc;

use chrono::{TimeDelta, Utc};
use rocket::{Route, State, get, routes};
use serde_json::{Value, json};

use super::chart::spark;
use super::endings;
use super::form::count;
use super::page::{Html, Pages};
use super::rows::{rows, violation_row};
use super::visitor::{Guest, Refusal, Visitor};
use crate::auth::{Access, Role};
use crate::config::{MONITOR_FAILED, MONITOR_ROWS, RATE_SECS};
use crate::http::body::Base;
use crate::http::problem::{Kind as ProblemKind, Problem};
use crate::id::{Channel, Cursor, Kind, SchoolId, SubjectId};
use crate::kind::job;
use crate::kind::{characteristic, device, enrollment};
use crate::service::Tidings;
use crate::store::{ListQuery, StoreError, StoredSubject, ViolationQuery};

pub(super) fn routes() -> Vec<Route> {
    routes![overview]
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
    if guest.may_see_all() {
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

pub(super) async fn violations(
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

/// The jobs that are running, those that are stuck first, and those that failed within a day, the last first.
async fn jobs(
    tidings: &Tidings,
    guest: &Guest,
) -> Result<(Vec<StoredSubject>, Vec<StoredSubject>), StoreError> {
    if !guest.may_see(job::KIND) {
        return Ok((Vec::new(), Vec::new()));
    }
    let store = tidings.store();
    let query = ListQuery {
        statuses: vec!["in_progress"],
        stalled: true,
        limit: MONITOR_ROWS,
        ..ListQuery::default()
    };
    let stalled = store.subjects(guest.school, job::KIND, query).await?;
    let going_on = listed(tidings, guest, job::KIND, &["in_progress"], MONITOR_ROWS).await?;
    let is_stalled = |stored: &StoredSubject| stored.state.job().is_some_and(|job| job.stalled);
    let mut running = stalled.subjects;
    // Between the two reads a job may have gone on, or not.
    running.retain(is_stalled);
    running.extend(going_on.into_iter().filter(|stored| !is_stalled(stored)));
    running.truncate(MONITOR_ROWS);
    let mut failed = store
        .ended(guest.school, job::KIND, "failed", MONITOR_FAILED)
        .await?;
    let day = Utc::now() - TimeDelta::days(1);
    failed.retain(|stored| {
        let ended = stored.state.job().and_then(|job| job.finished_at);
        ended.is_some_and(|ended| ended > day)
    });
    Ok((running, failed))
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
    let (running, failed) = jobs(tidings, &guest).await?;
    let active = ["ready", "placing", "capturing", "processing"];
    let sessions = listed(tidings, &guest, enrollment::KIND, &active, MONITOR_ROWS).await?;
    let mut devices = listed(tidings, &guest, device::KIND, &[], MONITOR_ROWS).await?;
    devices.sort_by(|one, other| one.event.subject.cmp(&other.event.subject));
    let query = ViolationQuery {
        acknowledged: Some(false),
        limit: MONITOR_ROWS,
        ..ViolationQuery::default()
    };
    let history = tidings.hub().history(guest.school);
    let small = |name, title, figures: [u32; RATE_SECS]| {
        spark(name, title, &figures.map(f64::from), RATE_SECS)
    };
    let endings = match guest.may_see(job::KIND) {
        true => endings::view(tidings, guest.school).await?,
        false => Value::Null,
    };
    let own = json!({
        "lately": guest.may_see_all().then(|| json!({
            "events": count(u64::from(history.events[RATE_SECS - 1])),
            "events_chart": small("rate", "Events per second", history.events),
            "streams": count(history.attached as u64),
            "streams_chart": small("streams", "Open streams", history.streams),
        })),
        "endings": endings,
        "running": rows(&running),
        "running_more": running.len() == MONITOR_ROWS,
        "failed": rows(&failed),
        "sessions": rows(&sessions),
        "devices": rows(&devices),
        "violations": violations(tidings, &guest, query).await?,
    });
    let view = view(&visitor, &guest, &base, tidings, "overview", own).await?;
    Ok(pages.render("overview.html", &view))
}

/// A subject of a school that the visitor may see.
pub(super) async fn found(
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

/// Checks that a form is our own and that the visitor may act on the subject.
pub(super) fn may_act(
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
