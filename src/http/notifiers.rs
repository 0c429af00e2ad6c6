//! `GET /api/notifiers`: the state of the notifiers, what is pending, and what they could not deliver.

use std::sync::Arc;

use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Route, State, get, routes};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::body::Json;
use super::problem::{Kind, Problem};
use super::subjects::{only_known, page_of};
use crate::app::Caller;
use crate::auth::Role;
use crate::id::{Channel, SchoolId};
use crate::log::StoreError;
use crate::log::consumers::{DeadLetter, SetAside, Standing};
use crate::notify::NotifierStatus;
use crate::service::Tidings;
use crate::wire::timestamp;

pub(super) fn routes() -> Vec<Route> {
    routes![list, set_aside, dead_letters]
}

/// Notifiers receive everything in a school, so only callers with all permissions there may see them.
fn require(caller: &Caller) -> Result<SchoolId, Problem> {
    caller.require(Role::Admin)?;
    caller.authorize(&Channel::School(caller.school()))?;
    Ok(caller.school())
}

#[get("/api/notifiers")]
async fn list(
    caller: Result<Caller, Problem>,
    whole: Result<Whole, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let school = require(&caller?)?;
    let Whole = whole?;
    let notifiers = of_school(tidings, school).await?;
    let answer = json!({ "school_id": school, "notifiers": notifiers });
    Ok(Json::ok(answer.to_string().into_bytes()))
}

/// Returns the state of each notifier for a school.
pub(super) async fn of_school(
    tidings: &Tidings,
    school: SchoolId,
) -> Result<Vec<Value>, StoreError> {
    let (standings, head) = tidings.store().notifiers(school).await?;
    let resource = |shown: NotifierStatus| {
        let standing = standings
            .iter()
            .find(|standing| standing.name == shown.name);
        resource(&shown, standing, head)
    };
    let shown = tidings.notifiers().statuses(school);
    Ok(shown.into_iter().map(resource).collect())
}

fn resource(shown: &NotifierStatus, standing: Option<&Standing>, head: u64) -> Value {
    let seq = standing.map_or(0, |standing| standing.seq);
    let failure = standing.and_then(|standing| standing.last_failure.as_ref());
    let delivered_at = standing.and_then(|standing| standing.delivered_at);
    let retry = shown.retry.map(|retry| {
        let wait = retry.due.saturating_duration_since(Instant::now());
        json!({
            "seq": retry.seq,
            "attempts": retry.attempts,
            "due_at": timestamp(chrono::Utc::now() + wait),
        })
    });
    json!({
        "name": shown.name,
        "medium": shown.medium,
        "seq": seq,
        "lag": head.saturating_sub(seq),
        "set_aside": standing.map_or(0, |standing| standing.set_aside),
        "delivered": standing.map_or(0, |standing| standing.delivered),
        "failed_attempts": standing.map_or(0, |standing| standing.failed),
        "dead_letters": standing.map_or(0, |standing| standing.dead),
        "delivered_at": delivered_at.map(timestamp),
        "failed_at": failure.map(|(at, _)| timestamp(*at)),
        "cause": failure.map(|(_, cause)| cause),
        "retry": retry,
    })
}

fn require_known(tidings: &Tidings, school: SchoolId, name: &str) -> Result<(), Problem> {
    let known = tidings.notifiers().statuses(school);
    match known.iter().any(|shown| shown.name == name) {
        true => Ok(()),
        false => Err(Problem::new(
            Kind::NotFound,
            "this notifier does not exist; GET /api/notifiers lists all notifiers",
        )),
    }
}

/// Returns all of them: there are not many.
#[get("/api/notifiers/<name>/set-aside")]
async fn set_aside(
    name: &str,
    caller: Result<Caller, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let school = require(&caller?)?;
    require_known(tidings, school, name)?;
    let mut place = tidings.store().notifier_place(name, school).await?;
    place.set_aside.sort_by_key(|own| own.due);
    let subjects: Vec<Value> = place.set_aside.iter().map(subject).collect();
    let answer = json!({ "set_aside": subjects });
    Ok(Json::ok(answer.to_string().into_bytes()))
}

fn subject(own: &SetAside) -> Value {
    json!({
        "kind": own.kind.collection(),
        "subject_id": own.subject,
        "seq": own.seq,
        "type": own.event_type,
        "attempts": own.attempts,
        "cause": own.cause,
        "due_at": timestamp(own.due),
    })
}

#[get("/api/notifiers/<name>/dead-letters")]
async fn dead_letters(
    name: &str,
    caller: Result<Caller, Problem>,
    page: Result<Page, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let (school, Page(before, limit)) = (require(&caller?)?, page?);
    require_known(tidings, school, name)?;
    let page = tidings
        .store()
        .dead_letters(name, school, before, limit)
        .await?;
    let answer = json!({
        "dead_letters": page.letters.iter().map(letter).collect::<Vec<_>>(),
        "next": page.next.map(|next| next.to_string()),
    });
    Ok(Json::ok(answer.to_string().into_bytes()))
}

fn letter(letter: &DeadLetter) -> Value {
    json!({
        "seq": letter.seq,
        "type": letter.event_type,
        "kind": letter.kind,
        "subject_id": letter.subject,
        "attempts": letter.attempts,
        "cause": letter.cause,
        "timestamp": timestamp(letter.at),
    })
}

/// Rejects parameters: this list has no pages or filters.
struct Whole;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Whole {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Whole, Problem> {
        Problem::outcome(only_known(request, &[]).map(|()| Whole))
    }
}

/// `page`, `limit`.
struct Page(Option<u64>, usize);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Page {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Page, Problem> {
        let page = only_known(request, &["page", "limit"]).and_then(|()| page_of(request));
        Problem::outcome(page.map(|(before, limit)| Page(before, limit)))
    }
}
