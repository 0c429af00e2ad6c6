//! `/api/jobs`: publishing and reading jobs.

use std::sync::Arc;

use rocket::data::Data;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Route, State, get, post, routes};

use super::body::{self, Base, IdempotencyKey, Json, UpperStatus};
use super::credential::{Caller, query};
use super::problem::{Kind, Problem};
use crate::auth::Role;
use crate::config::{FILTER_VALUES_MAX, PAGE_DEFAULT, PAGE_MAX, QUERY_TEXT_MAX_BYTES};
use crate::id::{Channel, Cursor, SubjectId};
use crate::kind::job::{self, Command, JobType, KIND, Status as JobStatus};
use crate::kind::{self, RuleError};
use crate::service::Tidings;
use crate::store::{Envelope, JobQuery, Receipt, StoredJob};
use crate::wire;

pub(super) fn routes() -> Vec<Route> {
    routes![create, list, read, act]
}

/// Reads the body of a verb. Nothing if there is no such verb.
pub(super) fn command(verb: &str, parse: impl Parse) -> Option<Result<Command, Problem>> {
    Some(match verb {
        "queue" => parse.body().map(Command::Queue),
        "start" => parse.body().map(Command::Start),
        "progress" => parse.body().map(Command::Progress),
        "complete" => parse.body().map(Command::Complete),
        "fail" => parse.body().map(Command::Fail),
        "cancel" => parse.body().map(Command::Cancel),
        "retry" => parse.body().map(Command::Retry),
        _ => return None,
    })
}

/// Something that a command's body can be read from.
pub(super) trait Parse {
    fn body<T: serde::de::DeserializeOwned>(self) -> Result<T, Problem>;
}

impl Parse for &[u8] {
    fn body<T: serde::de::DeserializeOwned>(self) -> Result<T, Problem> {
        body::parse(self)
    }
}

#[post("/api/jobs", data = "<data>")]
async fn create(
    base: Base,
    caller: Result<Caller, Problem>,
    key: Result<IdempotencyKey, Problem>,
    upper: Result<UpperStatus, Problem>,
    data: Data<'_>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let (caller, key, UpperStatus(upper)) = (caller?, key?, upper?);
    caller.require(Role::Worker)?;
    let bytes = body::read(data, tidings.settings().body_limit_bytes).await?;
    let create: job::Create = body::parse(&bytes)?;
    let mut envelope = Envelope::from(create);
    caller.access.reach(
        caller.school,
        &Channel::Subject(KIND, envelope.subject.clone()),
    )?;
    envelope.idempotency = key.with(&bytes);
    let receipt = tidings.publisher().publish(caller.school, envelope).await?;
    let location = Some(format!("{}/api/jobs/{}", base.0, receipt.event().subject));
    Ok(Json {
        status: Status::Created,
        location,
        ..answer(&receipt, upper)
    })
}

#[post("/api/jobs/<id>/<verb>", data = "<data>")]
async fn act(
    id: &str,
    verb: &str,
    caller: Result<Caller, Problem>,
    key: Result<IdempotencyKey, Problem>,
    upper: Result<UpperStatus, Problem>,
    data: Data<'_>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let (caller, key, UpperStatus(upper)) = (caller?, key?, upper?);
    caller.require(Role::Worker)?;
    let bytes = body::read(data, tidings.settings().body_limit_bytes).await?;
    let no_such_verb = || {
        Problem::new(
            Kind::NotFound,
            "a job has queue, start, progress, complete, fail, cancel and retry",
        )
    };
    let command = command(verb, &*bytes).ok_or_else(no_such_verb)??;
    let subject = subject(id)?;
    caller
        .access
        .reach(caller.school, &Channel::Subject(KIND, subject.clone()))?;
    let envelope = Envelope {
        subject,
        command: kind::Command::Job(command),
        idempotency: key.with(&bytes),
    };
    let receipt = tidings.publisher().publish(caller.school, envelope).await?;
    Ok(answer(&receipt, upper))
}

#[get("/api/jobs/<id>")]
async fn read(
    id: &str,
    caller: Result<Caller, Problem>,
    upper: Result<UpperStatus, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let (caller, UpperStatus(upper)) = (caller?, upper?);
    let subject = subject(id)?;
    caller
        .access
        .reach(caller.school, &Channel::Subject(KIND, subject.clone()))?;
    let stored = tidings
        .store()
        .job(caller.school, subject)
        .await?
        .ok_or_else(|| not_found(id))?;
    Ok(Json::ok(resource(&stored, upper)))
}

#[get("/api/jobs")]
async fn list(
    caller: Result<Caller, Problem>,
    asked: Result<ListQuery, Problem>,
    upper: Result<UpperStatus, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let (caller, ListQuery(asked), UpperStatus(upper)) = (caller?, asked?, upper?);
    caller
        .access
        .reach(caller.school, &Channel::Collection(KIND))?;
    let page = tidings.store().jobs(caller.school, asked).await?;
    let mut json = br#"{"jobs":["#.to_vec();
    for (index, stored) in page.jobs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        json.extend(resource(stored, upper));
    }
    let cursor = Cursor {
        epoch: tidings.store().epoch(),
        seq: page.head,
    };
    let next = page
        .next
        .map_or("null".to_owned(), |next| format!("\"{next}\""));
    json.extend(format!(r#"],"next":{next},"cursor":"{cursor}"}}"#).into_bytes());
    Ok(Json::ok(json))
}

/// `status`, `job_type` (both repeatable), `q`, `page`, `limit`.
struct ListQuery(JobQuery);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for ListQuery {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<ListQuery, Problem> {
        match list_query(request) {
            Ok(query) => Outcome::Success(ListQuery(query)),
            Err(problem) => Outcome::Error((Status::new(problem.status()), problem)),
        }
    }
}

fn list_query(request: &Request<'_>) -> Result<JobQuery, Problem> {
    let invalid = |detail: String| Problem::new(Kind::InvalidQuery, detail);
    let (statuses, job_types) = job_filters(request)?;
    let number = |name: &str| -> Result<Option<u64>, Problem> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| invalid(format!("`{name}` is not a number from an answer")))
        };
        query(request, name).map(parse).transpose()
    };
    let limit = number("limit")?.unwrap_or(PAGE_DEFAULT as u64);
    if !(1..=PAGE_MAX as u64).contains(&limit) {
        return Err(invalid(format!("`limit` is from 1 to {PAGE_MAX}")));
    }
    let text = query(request, "q").filter(|text| !text.is_empty());
    if text.is_some_and(|text| text.len() > QUERY_TEXT_MAX_BYTES) {
        return Err(invalid(format!(
            "`q` has at most {QUERY_TEXT_MAX_BYTES} bytes"
        )));
    }
    let before = number("page")?;
    if before.is_some_and(|before| before > i64::MAX as u64) {
        return Err(invalid("`page` is not from an answer".into()));
    }
    Ok(JobQuery {
        statuses,
        job_types,
        text: text.map(str::to_owned),
        before,
        limit: limit as usize,
    })
}

/// The repeatable filters `status` and `job_type`, each within its bound.
pub(super) fn job_filters(request: &Request<'_>) -> Result<(Vec<JobStatus>, Vec<String>), Problem> {
    let (mut statuses, mut job_types) = (Vec::new(), Vec::new());
    let invalid = |error: RuleError| Problem::new(Kind::InvalidQuery, error.to_string());
    for field in request.query_fields() {
        if field.name == "status" {
            statuses.push(field.value.parse().map_err(invalid)?);
        } else if field.name == "job_type" {
            field.value.parse::<JobType>().map_err(invalid)?;
            job_types.push(field.value.to_owned());
        }
    }
    if statuses.len().max(job_types.len()) > FILTER_VALUES_MAX {
        return Err(Problem::new(
            Kind::InvalidQuery,
            format!("a filter has at most {FILTER_VALUES_MAX} values"),
        ));
    }
    Ok((statuses, job_types))
}

/// The id in a path. One that cannot exist does not exist.
fn subject(id: &str) -> Result<SubjectId, Problem> {
    id.parse().map_err(|_| not_found(id))
}

fn not_found(id: &str) -> Problem {
    RuleError::NotFound {
        noun: "Job",
        id: id.to_owned(),
    }
    .into()
}

/// The answer to a write: the event that it led to.
fn answer(receipt: &Receipt, upper: bool) -> Json {
    Json::ok(wire::event_json(receipt.event(), upper))
}

/// A job as a resource: its state as a snapshot has it, and its times.
fn resource(stored: &StoredJob, upper: bool) -> Vec<u8> {
    let mut json = wire::event_json(&stored.event, upper);
    json.pop();
    let optional = |at: Option<_>| {
        at.map_or("null".to_owned(), |at| {
            format!("\"{}\"", wire::timestamp(at))
        })
    };
    let job = &stored.job;
    let times = format!(
        r#","created_at":"{}","heard_at":"{}","started_at":{},"finished_at":{}}}"#,
        wire::timestamp(job.created_at),
        wire::timestamp(job.heard_at),
        optional(job.started_at),
        optional(job.finished_at),
    );
    json.extend(times.into_bytes());
    json
}
