//! `/api/violations`: lists violations, and acknowledges and unacknowledges them. `PUT /api/characteristics/<id>/limits`.

use std::sync::Arc;

use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Route, State, get, post, put, routes};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{self, IdempotencyKey, Json, Unread};
use super::commands::{self, Sent};
use super::credential::query;
use super::problem::{Kind, Problem};
use super::subjects::{FirstHead, answer, only_known, page_of, publish};
use crate::app::{Caller, ViolationAction, ViolationCommand};
use crate::id::{Channel, Cursor, SubjectId};
use crate::kind::characteristic::{self, KIND, Violation};
use crate::kind::{self, Body, Part};
use crate::log::{Envelope, PartQuery};
use crate::service::Tidings;
use crate::wire::timestamp;

pub(super) fn routes() -> Vec<Route> {
    routes![list, acknowledge, unacknowledge, limits]
}

/// The body of `ack` and `unack`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledge {
    reason: String,
    /// The user on whose behalf this is done. If absent, the token's `sub`.
    #[serde(default)]
    user: Option<String>,
}

/// Reads an action on a violation and its reason.
pub(super) fn command(
    id: &str,
    action: ViolationAction,
    body: impl Body<Error = Problem>,
) -> Result<ViolationCommand, Problem> {
    let Acknowledge { reason, user } = body.read()?;
    Ok(ViolationCommand {
        id: id.to_owned(),
        action,
        user,
        reason,
    })
}

#[post("/api/violations/<id>/ack", data = "<body>")]
async fn acknowledge(
    id: &str,
    caller: Result<Caller, Problem>,
    key: Result<IdempotencyKey, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    carry_out(
        ViolationAction::Acknowledge,
        id,
        caller?,
        key?,
        body,
        tidings,
    )
    .await
}

#[post("/api/violations/<id>/unack", data = "<body>")]
async fn unacknowledge(
    id: &str,
    caller: Result<Caller, Problem>,
    key: Result<IdempotencyKey, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    carry_out(
        ViolationAction::Unacknowledge,
        id,
        caller?,
        key?,
        body,
        tidings,
    )
    .await
}

async fn carry_out(
    action: ViolationAction,
    id: &str,
    caller: Caller,
    key: IdempotencyKey,
    body: Result<Unread<'_>, Problem>,
    tidings: &Tidings,
) -> Result<Json, Problem> {
    let (body, settings) = (body?, tidings.settings());
    let service = tidings.publications();
    let length = body.expected(settings.body_limit_bytes);
    let admission = service.admit(&caller, length).await?;
    let bytes = body.read(settings.body_limit()).await?;
    let command = command(id, action, Sent(&bytes))?;
    let found = service.violation_command(caller.school(), caller.name(), command);
    let envelope = Envelope {
        idempotency: key.with(&bytes),
        ..found.await?
    };
    let receipt = admission.publish(envelope).await?;
    Ok(answer(&receipt, false))
}

#[put("/api/characteristics/<id>/limits", data = "<body>")]
async fn limits(
    id: &str,
    caller: Result<Caller, Problem>,
    key: Result<IdempotencyKey, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let read = |bytes: &[u8]| {
        let limits = characteristic::Command::Limits(body::parse(bytes)?);
        let command = kind::Command::Characteristic(limits);
        Ok(Envelope::new(commands::subject(KIND, id)?, command))
    };
    let receipt = publish(&caller?, key?, body?, tidings, read).await?;
    Ok(answer(&receipt, false))
}

#[get("/api/violations")]
async fn list(
    caller: Result<Caller, Problem>,
    asked: Result<Asked, Problem>,
    first: FirstHead,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let (caller, Asked(asked)) = (caller?, asked?);
    let channel = match &asked.subject {
        Some(id) => Channel::Subject(KIND, id.clone()),
        None => Channel::Collection(KIND),
    };
    caller.authorize(&channel)?;
    let page = tidings.store().parts(caller.school(), KIND, asked).await?;
    let violations = page.parts.iter().filter_map(Part::characteristic);
    let cursor = Cursor {
        epoch: tidings.store().epoch(),
        place: first.or(page.head),
    };
    let answer = json!({
        "violations": violations.map(resource).collect::<Vec<_>>(),
        "next": page.next.map(|next| format!("{next}-{}", cursor.place)),
        "cursor": cursor.to_string(),
    });
    Ok(Json::ok(answer.to_string().into_bytes()))
}

fn resource(violation: &Violation) -> Value {
    let acknowledgement = violation.acknowledgement.as_ref();
    json!({
        "violation_id": violation.id(),
        "characteristic_id": violation.characteristic_id,
        "sample_id": violation.sample_id.as_deref(),
        "chart": violation.chart,
        "rule_id": violation.rule_id,
        "rule_name": &*violation.rule_name,
        "severity": violation.severity,
        "timestamp": timestamp(violation.at),
        "acknowledged": acknowledgement.is_some(),
        "ack_user": acknowledgement.map(|ack| &*ack.user),
        "ack_reason": acknowledgement.map(|ack| &*ack.reason),
        "ack_at": acknowledgement.map(|ack| timestamp(ack.at)),
    })
}

/// The parameters `characteristic_id`, `acknowledged`, `page` and `limit`.
struct Asked(PartQuery);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Asked {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Asked, Problem> {
        Problem::outcome(violation_query(request).map(Asked))
    }
}

fn violation_query(request: &Request<'_>) -> Result<PartQuery, Problem> {
    let own = ["characteristic_id", "acknowledged", "page", "limit"];
    only_known(request, &own)?;
    let acknowledged = match query(request, "acknowledged") {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some(_) => {
            let detail = "`acknowledged` must be true or false";
            return Err(Problem::new(Kind::InvalidQuery, detail));
        }
    };
    let characteristic_id = query(request, "characteristic_id")
        .map(str::parse::<SubjectId>)
        .transpose()?;
    let (before, limit) = page_of(request)?;
    Ok(PartQuery {
        subject: characteristic_id,
        own_id: None,
        open: acknowledged.map(|acknowledged| !acknowledged),
        before,
        limit,
    })
}
