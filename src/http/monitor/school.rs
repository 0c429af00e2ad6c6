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
use crate::auth::Access;
use crate::config::{MONITOR_FAILED, MONITOR_ROWS, RATE_SECS};
use crate::http::body::Base;
use crate::http::credential::may_publish;
use crate::http::problem::{Kind as ProblemKind, Problem};
use crate::hub::History;
use crate::id::{Channel, Cursor, Kind, SchoolId, SubjectId};
use crate::kind::job;
use crate::kind::{characteristic, device, enrollment};
use crate::service::Tidings;
use crate::store::{ListQuery, Stalled, StoreError, StoredSubject, ViolationQuery};

/// Seconds of a row of the last minute's table.
const MINUTE_PART_SECS: usize = 10;

/// The steps of an enrollment session that goes on.
const ENROLLING: [&str; 4] = ["ready", "placing", "capturing", "processing"];

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
        let active = counts
            .iter()
            .filter(|(status, _)| ENROLLING.contains(status));
        let active = active.map(|(_, count)| count).sum();
        let mut own: serde_json::Map<String, Value> = counts
            .into_iter()
            .map(|(status, number)| (status.to_owned(), count(number).into()))
            .collect();
        own.insert("all".into(), count(all).into());
        own.insert("active".into(), count(active).into());
        totals.insert(kind.collection().into(), own.into());
    }
    Ok(totals.into())
}

/// What every page of a school is given in addition to its own values.
pub(super) async fn view(
    visitor: &Visitor,
    guest: &Guest,
    base: &Base,
    tidings: &Tidings,
    tab: &str,
    mut own: Value,
) -> Result<Value, StoreError> {
    let cursor = Cursor {
        epoch: tidings.store().epoch(),
        seq: guest.head,
    };
    own["cursor"] = cursor.to_string().into();
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
fn stream(guest: &Guest, base: &Base) -> Option<String> {
    let school = guest.school;
    if guest.may_see_all() {
        return Some(format!("{}/events/schools/{school}", base.0));
    }
    // Not all of it: the kinds that may be seen, or at least what the page is about.
    let kinds = crate::kind::KINDS.iter().copied();
    let kinds = kinds
        .filter(|kind| guest.may_see(*kind))
        .map(Channel::Collection);
    let within_kinds =
        |at: &&Channel| matches!(at, Channel::Subject(kind, _) if guest.may_see(*kind));
    let at = guest.at.as_ref().filter(|at| !within_kinds(at)).cloned();
    let channels: Vec<String> = kinds
        .chain(at)
        .map(|channel| format!("channel={}&", channel.in_query()))
        .collect();
    if channels.is_empty() {
        return None;
    }
    Some(format!(
        "{}/events?{}school_id={school}",
        base.0,
        channels.concat()
    ))
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
    let channel = match &query.characteristic_id {
        Some(id) => Channel::Subject(characteristic::KIND, id.clone()),
        None => Channel::Collection(characteristic::KIND),
    };
    if guest.access.reach(guest.school, &channel).is_err() {
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

/// The devices that the overview shows: those that are gone first.
async fn devices(tidings: &Tidings, guest: &Guest) -> Result<Vec<StoredSubject>, StoreError> {
    let mut shown = Vec::new();
    for statuses in [&["offline"], &["unknown"], &["online"]] {
        let room = MONITOR_ROWS - shown.len();
        if room > 0 {
            let mut own = listed(tidings, guest, device::KIND, statuses, room).await?;
            own.sort_by(|one, other| one.event.subject.cmp(&other.event.subject));
            shown.extend(own);
        }
    }
    Ok(shown)
}

/// The jobs that the overview shows.
#[derive(Default)]
struct Jobs {
    /// Those that are stuck.
    stalled: Vec<StoredSubject>,
    /// Those that go on.
    running: Vec<StoredSubject>,
    /// Those that failed within a day, the last first.
    failed: Vec<StoredSubject>,
}

async fn jobs(tidings: &Tidings, guest: &Guest) -> Result<Jobs, StoreError> {
    if !guest.may_see(job::KIND) {
        return Ok(Jobs::default());
    }
    let store = tidings.store();
    let query = ListQuery {
        statuses: vec!["in_progress"],
        stalled: Stalled::Only,
        limit: MONITOR_ROWS,
        ..ListQuery::default()
    };
    let stalled = store.subjects(guest.school, job::KIND, query).await?;
    let going_on = listed(tidings, guest, job::KIND, &["in_progress"], MONITOR_ROWS).await?;
    let is_stalled = |stored: &StoredSubject| stored.state.job().is_some_and(|job| job.stalled);
    // Between the two reads a job may have gone on, or not.
    let mut running = going_on;
    running.retain(|stored| !is_stalled(stored));
    let mut failed = store
        .ended(guest.school, job::KIND, "failed", MONITOR_FAILED)
        .await?;
    let day = Utc::now() - TimeDelta::days(1);
    failed.retain(|stored| {
        let ended = stored.state.job().and_then(|job| job.finished_at);
        ended.is_some_and(|ended| ended > day)
    });
    Ok(Jobs {
        stalled: stalled.subjects,
        running,
        failed,
    })
}

/// The small charts in numbers, newest first.
fn last_minute(history: &History) -> Vec<Value> {
    let parts = history
        .events
        .chunks(MINUTE_PART_SECS)
        .zip(history.streams.chunks(MINUTE_PART_SECS));
    let row = |(index, (events, streams)): (usize, (&[u32], &[u32]))| {
        json!({
            "secs": RATE_SECS - index * MINUTE_PART_SECS,
            "events": events.iter().max(),
            "streams": streams.last(),
        })
    };
    parts.enumerate().map(row).rev().collect()
}

#[get("/monitor/schools/<school>")]
async fn overview(
    school: &str,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Refusal> {
    let guest = visitor.enter(school, tidings).await?;
    let jobs = jobs(tidings, &guest).await?;
    let sessions = listed(tidings, &guest, enrollment::KIND, &ENROLLING, MONITOR_ROWS).await?;
    let devices = devices(tidings, &guest).await?;
    let query = ViolationQuery {
        acknowledged: Some(false),
        limit: MONITOR_ROWS,
        ..ViolationQuery::default()
    };
    let open = match guest.may_see(characteristic::KIND) {
        true => tidings.store().open_violations(guest.school).await?,
        false => 0,
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
            "rows": last_minute(&history),
        })),
        "endings": endings,
        "stalled": rows(&jobs.stalled),
        "running": rows(&jobs.running),
        "running_more": jobs.running.len() == MONITOR_ROWS,
        "failed": rows(&jobs.failed),
        "sessions": rows(&sessions),
        "sessions_more": sessions.len() == MONITOR_ROWS,
        "devices": rows(&devices),
        "devices_more": devices.len() == MONITOR_ROWS,
        "violations": violations(tidings, &guest, query).await?,
        "violations_open": count(open),
    });
    let view = view(&visitor, &guest, &base, tidings, "overview", own).await?;
    Ok(pages.render("overview.html", &view))
}

/// A subject of a school that the visitor may see.
pub(super) async fn found(
    tidings: &Tidings,
    guest: &mut Guest,
    kind: Kind,
    id: &str,
) -> Result<StoredSubject, Refusal> {
    let missing = || Problem::from(crate::kind::not_found(kind, id));
    let subject: SubjectId = id.parse().map_err(|_| missing())?;
    let at = Channel::Subject(kind, subject.clone());
    let reaches = guest.access.reach(guest.school, &at);
    reaches.map_err(Problem::from)?;
    guest.at = Some(at);
    let stored = tidings.store().subject(guest.school, kind, subject).await?;
    Ok(stored.ok_or_else(missing)?)
}

/// Checks that a form is our own and that the visitor may act on the subject.
pub(super) fn may_act(
    tidings: &Tidings,
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
    may_publish(tidings, &guest.access, guest.school, 1)?;
    let channel = Channel::Subject(kind, subject.clone());
    Ok(guest.access.reach(guest.school, &channel)?)
}
