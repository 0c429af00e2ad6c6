//! `/api/violations`: lists violations, and acknowledges and unacknowledges them. `PUT /api/characteristics/<id>/limits`.

use std::sync::Arc;

use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Route, State, get, post, put, routes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::body::{self, IdempotencyKey, Json, Unread};
use super::commands::{self, Sent};
use super::contract::examples::{self, Example, ExampleSubject};
use super::contract::{self, Document, JSON, Operation};
use super::credential::query;
use super::listing::{FirstHead, only_known, page_of};
use super::parameters::VIOLATIONS;
use super::problem::{Kind, Problem};
use super::subjects::{READ_PROBLEMS, WRITE_PROBLEMS, answer, publish};
use crate::app::{Caller, ViolationAction, ViolationCommand};
use crate::id::{Cursor, SubjectId};
use crate::kind::characteristic::dispersion::Chart;
use crate::kind::characteristic::{self, KIND, Severity, Violation};
use crate::kind::{self, Body, Part};
use crate::log::{Envelope, PartQuery};
use crate::service::Tidings;
use crate::wire::timestamp;

pub(super) fn routes() -> Vec<Route> {
    routes![list, acknowledge, unacknowledge, limits]
}

pub(super) fn describe(document: &mut Document) {
    const TAG: &str = "Violations";
    document.tag(
        TAG,
        "Broken rules of characteristics, and their acknowledgements.",
    );
    let act = |operation: &mut Operation<'_>, action, name: &str, summary: &str| {
        let subject = example(action);
        let violation = subject
            .as_ref()
            .and_then(|subject| subject.parts.first()?.characteristic());
        let violation = violation.map(|violation| violation.id().to_string());
        let event = subject.map(|subject| subject.event());
        let body = operation.schemas.body::<Acknowledge>();
        let schema = operation.schemas.events([&&characteristic::ACK_UPDATE]);
        operation
            .named(name, TAG, summary)
            .about("Requires the role `worker`.")
            .body(JSON, body)
            .answers(200, "The event.", JSON, schema)
            .with_example(200, JSON, event)
            .with_path_example("violation_id", violation)
            .fails(WRITE_PROBLEMS);
    };
    document.route(routes![acknowledge], &acknowledge, |operation| {
        act(
            operation,
            ViolationAction::Acknowledge,
            "violations.ack",
            "Acknowledge a violation",
        );
    });
    document.route(routes![unacknowledge], &unacknowledge, |operation| {
        act(
            operation,
            ViolationAction::Unacknowledge,
            "violations.unack",
            "Withdraw the acknowledgement of a violation",
        );
    });
    document.route(routes![limits], &limits, |operation| {
        let body = operation.schemas.body::<characteristic::SetLimits>();
        let schema = operation.schemas.events([&&characteristic::CONTROL_LIMITS]);
        let subject = examples::after(KIND, "limits");
        let event = subject.map(|subject| subject.event());
        operation
            .named(
                "characteristics.put_limits",
                "Process control",
                "Characteristic: set limits",
            )
            .about("Requires the role `worker`.")
            .body(JSON, body)
            .answers(
                200,
                "The event, or the state if nothing has changed.",
                JSON,
                schema,
            )
            .with_example(200, JSON, event)
            .fails(WRITE_PROBLEMS);
    });
    document.route(routes![list], &list, |operation| {
        let subject = example(ViolationAction::Acknowledge).expect("bodies have examples");
        let violations = subject.parts.iter().filter_map(Part::characteristic);
        let page = ViolationPage {
            violations: violations.map(ListedViolation::from).collect(),
            next: None,
            cursor: subject.receipt().event().cursor().to_string(),
        };
        operation
            .named("violations.list", TAG, "List violations")
            .answers_json("A page, newest first.", &page)
            .fails(READ_PROBLEMS);
    });
}

/// Returns a characteristic with a violation on which the example of this action was carried out.
fn example(action: ViolationAction) -> Option<ExampleSubject> {
    let act = |subject: ExampleSubject, action| {
        let number = subject.parts.first()?.number();
        let command = command("", action, Example).ok()?;
        subject.then(&command.into_command(number, EXAMPLE_USER))
    };
    let subject = examples::after(KIND, "violations")?;
    let acknowledged = act(subject, ViolationAction::Acknowledge)?;
    match action {
        ViolationAction::Acknowledge => Some(acknowledged),
        ViolationAction::Unacknowledge => act(acknowledged, action),
    }
}

/// Who acknowledges the violation of the examples.
const EXAMPLE_USER: &str = "maria";

/// Who acts on a violation, and why.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({ "reason": "The tool was replaced" }))]
struct Acknowledge {
    /// Why the violation is acceptable, or what is done about it; for a withdrawal, why that no longer applies.
    #[schemars(length(min = 1), regex(pattern = r"\S"))]
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
    let length = body.expected(settings.body_limit_bytes.get());
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
    let page = tidings.reads().parts(&caller, KIND, asked).await?;
    let violations = page.parts.iter().filter_map(Part::characteristic);
    let cursor = Cursor::new(tidings.reads().epoch(), first.or(page.head));
    let answer = ViolationPage {
        violations: violations.map(ListedViolation::from).collect(),
        next: page.next.map(|next| format!("{next}-{}", cursor.place)),
        cursor: cursor.to_string(),
    };
    Ok(Json::of(&answer))
}

/// A page of violations.
#[derive(JsonSchema, Serialize)]
struct ViolationPage<'a> {
    violations: Vec<ListedViolation<'a>>,
    /// The `page` that follows; null if none does.
    next: Option<String>,
    /// The cursor of the first page, from which a stream can continue.
    cursor: String,
}

/// A broken rule, with its acknowledgement.
#[derive(JsonSchema, Serialize)]
struct ListedViolation<'a> {
    /// Its id.
    violation_id: String,
    /// The characteristic.
    characteristic_id: &'a SubjectId,
    /// The sample that shows it, if it is known.
    sample_id: Option<&'a str>,
    /// The dispersion chart, if it was detected on one.
    chart: Option<Chart>,
    /// The number of a Nelson rule, 101, or the publisher's own number.
    rule_id: u32,
    /// The rule's display name.
    rule_name: &'a str,
    /// The severity.
    severity: Severity,
    /// When it was detected.
    #[schemars(with = "chrono::DateTime<chrono::Utc>")]
    timestamp: String,
    /// Whether it is acknowledged.
    acknowledged: bool,
    /// The user who acknowledged it.
    ack_user: Option<&'a str>,
    /// The reason for the acknowledgement.
    ack_reason: Option<&'a str>,
    /// When it was acknowledged.
    #[schemars(with = "Option<chrono::DateTime<chrono::Utc>>")]
    ack_at: Option<String>,
}

impl<'a> From<&'a Violation> for ListedViolation<'a> {
    fn from(violation: &'a Violation) -> ListedViolation<'a> {
        let acknowledgement = violation.acknowledgement.as_ref();
        ListedViolation {
            violation_id: violation.id().to_string(),
            characteristic_id: &violation.characteristic_id,
            sample_id: violation.sample_id.as_deref(),
            chart: violation.chart,
            rule_id: violation.rule_id,
            rule_name: &violation.rule_name,
            severity: violation.severity,
            timestamp: timestamp(violation.at),
            acknowledged: acknowledgement.is_some(),
            ack_user: acknowledgement.map(|ack| &*ack.user),
            ack_reason: acknowledgement.map(|ack| &*ack.reason),
            ack_at: acknowledgement.map(|ack| timestamp(ack.at)),
        }
    }
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

impl contract::Part for Asked {
    fn describe(operation: &mut Operation<'_>) {
        operation.queries(VIOLATIONS).fails(&[Kind::InvalidQuery]);
    }
}

fn violation_query(request: &Request<'_>) -> Result<PartQuery, Problem> {
    only_known(request, VIOLATIONS)?;
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
