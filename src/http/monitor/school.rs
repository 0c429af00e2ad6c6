//! The overview of a school, and the values that all of its pages share.

use std::sync::Arc;

use chrono::{TimeDelta, Utc};
use rocket::{Route, State, get, routes};
use serde_json::{Value, json};

use super::chart::spark;
use super::endings;
use super::form::{count, time};
use super::page::{Html, Pages};
use super::rows::{rows, violation_row};
use super::totals::{ENROLLING, OVERDUE, Totals};
use super::visitor::{Guest, Rejection, Visitor};
use crate::app::{Caller, Rejected};
use crate::config::{ENDINGS_HOURS, OVERVIEW_ONLY_MAX, OVERVIEW_ROWS, RATE_SECS};
use crate::http::body::Base;
use crate::http::problem::Problem;
use crate::hub::History;
use crate::id::{Channel, Cursor, Kind, SubjectId};
use crate::kind::{characteristic, device, enrollment, job, schedule};
use crate::log::{Envelope, ListQuery, PartQuery, Stalled, StoreError, StoredSubject};
use crate::service::Tidings;

/// How many seconds a row of the last minute's table covers.
const MINUTE_PART_SECS: usize = 10;

pub(super) fn routes() -> Vec<Route> {
    routes![overview]
}

/// Returns the values of a page of a school: those that every page has, and those of `context`.
pub(super) async fn view(
    visitor: &Visitor,
    guest: &Guest,
    base: &Base,
    tidings: &Tidings,
    tab: &str,
    context: Value,
) -> Result<Value, StoreError> {
    let totals = Totals::read(tidings, guest.caller.access(), guest.caller.school()).await?;
    Ok(view_with(
        &totals, visitor, guest, base, tidings, tab, context,
    ))
}

/// Like [`view`], with totals that have already been read.
fn view_with(
    totals: &Totals,
    visitor: &Visitor,
    guest: &Guest,
    base: &Base,
    tidings: &Tidings,
    tab: &str,
    mut context: Value,
) -> Value {
    let cursor = Cursor::new(tidings.reads().epoch(), guest.head);
    context["cursor"] = cursor.to_string().into();
    context["stream"] = stream(guest, base).into();
    context["school"] = guest.place(&base.0);
    context["totals"] = totals.view();
    context["wrong"] = totals.wrong_view().into();
    context["tab"] = tab.into();
    context["may_act"] = guest.may_act().into();
    let now = Utc::now();
    context["rendered_at"] = crate::wire::timestamp(now).into();
    context["as_of"] = time(now, now);
    visitor.view(base, context)
}

/// Returns the URL of a stream of everything that the visitor may see in the school.
fn stream(guest: &Guest, base: &Base) -> Option<String> {
    let school = guest.caller.school();
    if guest.may_see_all() {
        return Some(format!("{}/events/schools/{school}", base.0));
    }
    // Listen to the kinds that the visitor may see, and to the subject of the page if its kind is not among them.
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

/// The rows of a section on the overview, and their total number.
struct Part {
    rows: Vec<Value>,
    total: u64,
}

impl Part {
    /// Returns a section with its first rows and the counted total. If the rows do not fill it, their number is the total.
    fn of(rows: Vec<Value>, counted: u64) -> Part {
        let shown = rows.len() as u64;
        let total = match rows.len() < OVERVIEW_ROWS {
            true => shown,
            false => counted.max(shown),
        };
        Part { rows, total }
    }

    fn view(self) -> Value {
        let more = self.total - self.rows.len() as u64;
        json!({
            "rows": self.rows,
            "total": count(self.total),
            "more": (more > 0).then(|| count(more)),
        })
    }
}

async fn listed(
    tidings: &Tidings,
    guest: &Guest,
    kind: Kind,
    statuses: &[&'static str],
    limit: usize,
) -> Result<Vec<StoredSubject>, Rejected> {
    if !guest.may_see(kind) {
        return Ok(Vec::new());
    }
    // Stalled jobs have their own list.
    let query = ListQuery {
        statuses: statuses.to_vec(),
        stalled: Stalled::Apart { wanted: false },
        limit,
        ..ListQuery::default()
    };
    let page = tidings.reads().subjects(&guest.caller, kind, query).await?;
    Ok(page.subjects)
}

/// Returns stalled jobs, and those that failed within a day, latest first.
async fn troubled_jobs(
    tidings: &Tidings,
    guest: &Guest,
) -> Result<(Vec<StoredSubject>, Vec<StoredSubject>), Rejected> {
    if !guest.may_see(job::KIND) {
        return Ok(Default::default());
    }
    let reads = tidings.reads();
    let query = ListQuery {
        stalled: Stalled::Only,
        limit: OVERVIEW_ROWS,
        ..ListQuery::default()
    };
    let stalled = reads.subjects(&guest.caller, job::KIND, query).await?;
    let mut failed = reads
        .ended(&guest.caller, job::KIND, "failed", OVERVIEW_ROWS)
        .await?;
    let day = Utc::now() - TimeDelta::hours(ENDINGS_HOURS);
    failed.retain(|stored| {
        let ended = stored.state.job().and_then(|job| job.finished_at);
        ended.is_some_and(|ended| ended >= day)
    });
    Ok((stalled.subjects, failed))
}

/// Returns a page of violations, and the key of the next page.
pub(super) async fn violations(
    tidings: &Tidings,
    guest: &Guest,
    query: PartQuery,
) -> Result<(Vec<Value>, Option<u64>), Rejected> {
    let now = Utc::now();
    let kind = characteristic::KIND;
    let read = tidings.reads().parts(&guest.caller, kind, query);
    let page = read.await?;
    let violations = page.parts.iter().filter_map(|part| part.characteristic());
    let rows = violations.map(|violation| violation_row(violation, now));
    Ok((rows.collect(), page.next))
}

/// Returns the devices that the overview shows, offline ones first.
async fn devices(tidings: &Tidings, guest: &Guest) -> Result<Vec<StoredSubject>, Rejected> {
    let mut shown = Vec::new();
    for statuses in [&["offline"], &["unknown"], &["online"]] {
        let room = OVERVIEW_ROWS - shown.len();
        if room > 0 {
            let mut subjects = listed(tidings, guest, device::KIND, statuses, room).await?;
            subjects.sort_by(|one, other| one.event.subject.cmp(&other.event.subject));
            shown.extend(subjects);
        }
    }
    Ok(shown)
}

/// Returns the subjects to which the visitor's credential is limited, whether they exist or not, and which of them have pages.
fn only_subjects(guest: &Guest) -> Vec<Value> {
    let channels = guest.caller.access().channels.iter();
    let link = |channel: &Channel| match channel {
        Channel::Subject(kind, id) if !guest.may_see(*kind) => {
            let has_page = [job::KIND, device::KIND, characteristic::KIND].contains(kind);
            Some(json!({
                "label": channel.to_string(),
                "collection": has_page.then(|| kind.collection()),
                "id": id.as_str(),
            }))
        }
        _ => None,
    };
    channels
        .flat_map(|channels| channels.iter())
        .filter_map(link)
        .take(OVERVIEW_ONLY_MAX)
        .collect()
}

/// Returns the values of the small charts as rows of a table, newest first.
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
) -> Result<Html, Rejection> {
    let guest = visitor.enter(school, tidings).await?;
    let totals = Totals::read(tidings, guest.caller.access(), guest.caller.school()).await?;
    let part = |kind, name, subjects: Vec<StoredSubject>| {
        Part::of(rows(&subjects), totals.of(kind, name)).view()
    };
    let (stalled, failed) = troubled_jobs(tidings, &guest).await?;
    let list = async |kind, statuses| listed(tidings, &guest, kind, statuses, OVERVIEW_ROWS).await;
    let running = list(job::KIND, &["in_progress"]).await?;
    let sessions = list(enrollment::KIND, &ENROLLING).await?;
    let overdue = list(schedule::KIND, &OVERDUE).await?;
    let open = PartQuery {
        open: Some(true),
        limit: OVERVIEW_ROWS,
        ..PartQuery::default()
    };
    let (open, _) = match guest.may_see(characteristic::KIND) {
        true => violations(tidings, &guest, open).await?,
        false => Default::default(),
    };
    let endings = match guest.may_see(job::KIND) {
        true => endings::view(tidings, &guest.caller).await?,
        false => Value::Null,
    };
    let context = json!({
        "only": only_subjects(&guest),
        "lately": guest.may_see_all().then(|| lately(&tidings.hub().history(guest.caller.school()))),
        "endings": endings,
        "stalled": part(job::KIND, "stalled", stalled),
        "running": part(job::KIND, "running", running),
        "waiting": totals.of(job::KIND, "waiting"),
        "failed": part(job::KIND, "failed_lately", failed),
        "overdue": part(schedule::KIND, "overdue", overdue),
        "sessions": part(enrollment::KIND, "active", sessions),
        "devices": part(device::KIND, "all", devices(tidings, &guest).await?),
        "may_write": !open.is_empty(),
        "violations": Part::of(open, totals.of(characteristic::KIND, "open_violations")).view(),
    });
    let view = view_with(
        &totals, &visitor, &guest, &base, tidings, "overview", context,
    );
    Ok(pages.render("overview.html", &view))
}

/// Returns what happened in a school within the last minute, in numbers and as small charts.
fn lately(history: &History) -> Value {
    let small = |name, title, figures: [u32; RATE_SECS]| {
        spark(name, title, &figures.map(f64::from), RATE_SECS)
    };
    json!({
        "events": count(u64::from(history.events[RATE_SECS - 1])),
        "events_chart": small("rate", "Events per second", history.events),
        "streams": count(history.attached as u64),
        "streams_chart": small("streams", "Open streams", history.streams),
        "rows": last_minute(history),
    })
}

/// Returns a subject of a school, if it exists and the visitor may see it.
pub(super) async fn found(
    tidings: &Tidings,
    guest: &mut Guest,
    kind: Kind,
    id: &str,
) -> Result<StoredSubject, Rejection> {
    let missing = || Problem::from(crate::kind::not_found(kind, id));
    let subject: SubjectId = id.parse().map_err(|_| missing())?;
    guest.at = Some(Channel::Subject(kind, subject.clone()));
    Ok(tidings
        .reads()
        .subject(&guest.caller, kind, subject)
        .await?)
}

/// Publishes the command of one of our forms.
pub(super) async fn publish(
    visitor: &Visitor,
    caller: &Caller,
    command: Envelope,
    tidings: &Tidings,
) -> Result<(), Problem> {
    visitor.sent_own_form()?;
    tidings.publications().publish(caller, command).await?;
    Ok(())
}
