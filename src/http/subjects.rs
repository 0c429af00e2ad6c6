//! `/api/<collection>`: publishes and reads subjects of any kind.

use std::sync::Arc;

use rocket::form::ValueField;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Route, State, delete, get, post, put, routes};
use serde_json::json;

use super::body::{Base, IdempotencyKey, Json, Unread, UpperStatus};
use super::callers::Connection;
use super::commands::{self, Sent, subject};
use super::credential::query;
use super::methods::Collection;
use super::problem::{Kind, Problem};
use crate::app::Caller;
use crate::config::{FILTER_VALUES_MAX, PAGE_DEFAULT, PAGE_MAX, QUERY_TEXT_MAX_BYTES};
use crate::id::{Channel, Cursor, NameError, Place};
use crate::kind::job::{JobType, Status as JobStatus};
use crate::kind::{self, Command, RuleError};
use crate::log::{Envelope, ListPage, ListQuery, Order, Receipt, Stalled, StoredSubject};
use crate::service::Tidings;
use crate::wire;

pub(super) fn routes() -> Vec<Route> {
    routes![create, register, list, read, remove, act]
}

#[post("/api/<_>", data = "<body>", rank = 10)]
async fn create(
    base: Base,
    collection: Collection,
    caller: Result<Caller, Problem>,
    key: Result<IdempotencyKey, Problem>,
    upper: Result<UpperStatus, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let Collection(kind) = collection;
    let UpperStatus(upper) = upper?;
    let read = |bytes: &[u8]| {
        commands::create(kind, Sent(bytes)).expect("a collection supports POST if that creates one")
    };
    let receipt = publish(&caller?, key?, body?, tidings, read).await?;
    let subject = &receipt.event().subject;
    let location = format!("{}/api/{}/{}", base.0, kind.collection(), subject.encoded());
    Ok(Json {
        status: Status::Created,
        location: Some(location),
        ..answer(&receipt, upper)
    })
}

#[put("/api/<_>/<id>", data = "<body>", rank = 10)]
async fn register(
    collection: Collection,
    id: &str,
    caller: Result<Caller, Problem>,
    key: Result<IdempotencyKey, Problem>,
    upper: Result<UpperStatus, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let Collection(kind) = collection;
    let UpperStatus(upper) = upper?;
    let read = |bytes: &[u8]| {
        let command = Command::read(kind, "put", Sent(bytes));
        let command = command.expect("a collection supports PUT if that creates one")?;
        let subject = id.parse().map_err(|error: NameError| {
            // PUT would create it, so this is not a missing subject but an invalid request.
            Problem::new(Kind::InvalidBody, error.to_string())
        });
        Ok(Envelope::new(subject?, command))
    };
    let receipt = publish(&caller?, key?, body?, tidings, read).await?;
    Ok(answer(&receipt, upper))
}

/// Removes a subject of a kind that has this verb.
#[delete("/api/<_>/<id>", rank = 10)]
async fn remove(
    collection: Collection,
    id: &str,
    caller: Result<Caller, Problem>,
    key: Result<IdempotencyKey, Problem>,
    upper: Result<UpperStatus, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let Collection(kind) = collection;
    let (caller, UpperStatus(upper)) = (caller?, upper?);
    let admission = tidings.publications().admit(&caller, 0).await?;
    let command = Command::read(kind, "remove", Sent(b""));
    let command = command.expect("a collection supports DELETE if its subjects can be removed")?;
    let envelope = Envelope {
        idempotency: key?.with(b""),
        ..Envelope::new(subject(kind, id)?, command)
    };
    let receipt = admission.publish(envelope).await?;
    Ok(answer(&receipt, upper))
}

#[post("/api/<_>/<id>/<verb>", data = "<body>", rank = 10)]
#[expect(clippy::too_many_arguments, reason = "each is a part of the request")]
async fn act(
    collection: Collection,
    id: &str,
    verb: &str,
    caller: Result<Caller, Problem>,
    key: Result<IdempotencyKey, Problem>,
    upper: Result<UpperStatus, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let Collection(kind) = collection;
    let UpperStatus(upper) = upper?;
    let read = |bytes: &[u8]| {
        let no_such_verb = || commands::no_such_verb(kind);
        let command = Command::read(kind, verb, Sent(bytes)).ok_or_else(no_such_verb)??;
        Ok(Envelope::new(subject(kind, id)?, command))
    };
    let receipt = publish(&caller?, key?, body?, tidings, read).await?;
    Ok(answer(&receipt, upper))
}

/// The common part of every write: permission, the body and its command, and the idempotency key.
pub(super) async fn publish(
    caller: &Caller,
    key: IdempotencyKey,
    body: Unread<'_>,
    tidings: &Tidings,
    read: impl FnOnce(&[u8]) -> Result<Envelope, Problem>,
) -> Result<Receipt, Problem> {
    let settings = tidings.settings();
    let length = body.expected(settings.body_limit_bytes);
    let admission = tidings.publications().admit(caller, length).await?;
    let bytes = body.read(settings.body_limit()).await?;
    let envelope = Envelope {
        idempotency: key.with(&bytes),
        ..read(&bytes)?
    };
    Ok(admission.publish(envelope).await?)
}

#[get("/api/<_>/<id>", rank = 10)]
async fn read(
    collection: Collection,
    id: &str,
    caller: Result<Caller, Problem>,
    upper: Result<UpperStatus, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let Collection(kind) = collection;
    let (caller, UpperStatus(upper)) = (caller?, upper?);
    let subject = subject(kind, id)?;
    caller.authorize_subject(kind, &subject)?;
    let stored = tidings
        .store()
        .subject(caller.school(), kind, subject)
        .await?
        .ok_or_else(|| commands::not_found(kind, id))?;
    Ok(Json::ok(resource(&stored, upper)))
}

#[get("/api/<_>", rank = 10)]
async fn list(
    collection: Collection,
    caller: Result<Caller, Problem>,
    asked: Result<Asked, Problem>,
    upper: Result<UpperStatus, Problem>,
    first: FirstHead,
    connection: Connection,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let Collection(kind) = collection;
    let (caller, Asked(asked), UpperStatus(upper)) = (caller?, asked?, upper?);
    caller.authorize(&Channel::Collection(kind))?;
    let read = async {
        Ok(tidings
            .store()
            .subjects(caller.school(), kind, asked)
            .await?)
    };
    let page: ListPage = connection.while_connected::<_, Problem>(read).await?;
    let mut json = format!(r#"{{"{}":["#, kind.collection()).into_bytes();
    for (index, stored) in page.subjects.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        json.extend(resource(stored, upper));
    }
    let cursor = Cursor {
        epoch: tidings.store().epoch(),
        place: first.or(page.head),
    };
    let next = page.next.map_or("null".to_owned(), |next| {
        format!("\"{next}-{}\"", cursor.place)
    });
    json.extend(format!(r#"],"next":{next},"#).into_bytes());
    if let Some(searched) = page.searched {
        let searched = json!({
            "rows": searched.rows,
            "until": searched.until.map(wire::timestamp),
            "complete": searched.is_complete,
        });
        json.extend(format!(r#""searched":{searched},"#).into_bytes());
    }
    json.extend(format!(r#""cursor":"{cursor}"}}"#).into_bytes());
    Ok(Json::ok(json))
}

/// The parameters of a list: `status`, `job_type` (both repeatable), `q`, `stalled`, `sort`, `page`, `limit`.
struct Asked(ListQuery);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Asked {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Asked, Problem> {
        let own = [
            "status", "job_type", "q", "stalled", "sort", "page", "limit",
        ];
        let query = only_known(request, &own).and_then(|()| list_query(request, |_| true));
        Problem::outcome(query.map(Asked))
    }
}

/// The same parameters from the monitor's form. There, `stalled` is one more value of `status`, and any of them may match.
pub(super) struct FormQuery(pub(super) ListQuery);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for FormQuery {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<FormQuery, Problem> {
        Problem::outcome(ticked(request).map(FormQuery))
    }
}

fn ticked(request: &Request<'_>) -> Result<ListQuery, Problem> {
    let is_status =
        |field: &ValueField<'_>| !(field.name == "status" && field.value == STALLED_STATUS);
    let mut asked = list_query(request, is_status)?;
    let wanted =
        asked.stalled == Stalled::Only || !request.query_fields().all(|field| is_status(&field));
    asked.stalled = match wanted || !asked.statuses.is_empty() {
        true => Stalled::Apart { wanted },
        false => Stalled::Ignored,
    };
    Ok(asked)
}

/// How the pages name stalled jobs among the statuses.
pub(super) const STALLED_STATUS: &str = "stalled";

/// Parameters that every call of the API accepts.
const COMMON: [&str; 3] = ["school_id", "token", "status_case"];

/// Parameters that may be given several times.
const REPEATABLE: [&str; 2] = ["status", "job_type"];

/// Rejects unknown parameters and repeated ones that would be ignored: a filter without effect must not return everything.
pub(super) fn only_known(request: &Request<'_>, own: &[&str]) -> Result<(), Problem> {
    let mut seen: Vec<&str> = Vec::new();
    for field in request.query_fields() {
        let name = field.name.source().as_str();
        if !own.contains(&name) && !COMMON.contains(&name) {
            /// Long enough to recognize a misspelt name.
            const SHOWN_CHARS: usize = 64;
            let name: String = name.chars().take(SHOWN_CHARS).collect();
            let known = [own, &COMMON].concat().join(", ");
            let detail = format!("`{name}` is not a parameter of this URL; it accepts {known}");
            return Err(Problem::new(Kind::InvalidQuery, detail));
        }
        if REPEATABLE.contains(&name) {
            continue;
        }
        if seen.contains(&name) {
            let detail = format!("`{name}` is given more than once; it is accepted once");
            return Err(Problem::new(Kind::InvalidQuery, detail));
        }
        seen.push(name);
    }
    Ok(())
}

/// Reads the query of a list.
fn list_query(
    request: &Request<'_>,
    counts: impl Fn(&ValueField<'_>) -> bool,
) -> Result<ListQuery, Problem> {
    let (statuses, categories) = filters_in(request.query_fields().filter(counts))?;
    let text = query(request, "q").filter(|text| !text.is_empty());
    if text.is_some_and(|text| text.len() > QUERY_TEXT_MAX_BYTES) {
        let detail = format!("`q` must have at most {QUERY_TEXT_MAX_BYTES} bytes");
        return Err(Problem::new(Kind::InvalidQuery, detail));
    }
    let stalled = match query(request, "stalled").unwrap_or_default() {
        "" | "false" => Stalled::Ignored,
        "true" => Stalled::Only,
        _ => {
            let detail = "`stalled` must be `true` or `false`";
            return Err(Problem::new(Kind::InvalidQuery, detail));
        }
    };
    let order = match query(request, "sort").unwrap_or_default() {
        "" | "newest" => Order::Newest,
        "oldest" => Order::Oldest,
        _ => {
            let detail = "`sort` must be `newest` or `oldest`";
            return Err(Problem::new(Kind::InvalidQuery, detail));
        }
    };
    let (beyond, limit) = page_of(request)?;
    Ok(ListQuery {
        statuses,
        categories,
        text: text.map(str::to_owned),
        stalled,
        order,
        beyond,
        limit,
    })
}

/// The end of the log when the first page of a list was read. Every later `page` repeats it, and all pages return the
/// cursor of the first: with a later cursor, a stream would miss changes to the subjects of earlier pages.
pub(super) struct FirstHead(Option<Place>);

impl FirstHead {
    /// Returns that place. On a first page, returns `head`, the current end of the log.
    pub(super) fn or(self, head: Place) -> Place {
        self.0.map_or(head, |first| first.min(head))
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for FirstHead {
    type Error = std::convert::Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<FirstHead, Self::Error> {
        let page = query(request, "page").and_then(|page| page.split_once('-'));
        Outcome::Success(FirstHead(page.and_then(|(_, head)| head.parse().ok())))
    }
}

/// Reads `page` and `limit`, which every list has.
pub(super) fn page_of(request: &Request<'_>) -> Result<(Option<u64>, usize), Problem> {
    let invalid = |detail: String| Problem::new(Kind::InvalidQuery, detail);
    let limit = match query(request, "limit").map(str::parse) {
        None => PAGE_DEFAULT,
        Some(Ok(limit)) if (1..=PAGE_MAX).contains(&limit) => limit,
        Some(_) => return Err(invalid(format!("`limit` must be from 1 to {PAGE_MAX}"))),
    };
    let Some(page) = query(request, "page") else {
        return Ok((None, limit));
    };
    let (beyond, head) = page.split_once('-').unwrap_or((page, "0"));
    match (beyond.parse::<u64>(), head.parse::<Place>()) {
        (Ok(beyond), Ok(_)) if i64::try_from(beyond).is_ok() => Ok((Some(beyond), limit)),
        _ => Err(invalid(
            "`page` must be the `next` of an earlier answer".into(),
        )),
    }
}

/// Reads the repeatable filters `status` and `job_type`, within their bounds. A job's status may be in upper case.
pub(super) fn filters(request: &Request<'_>) -> Result<Filters, Problem> {
    filters_in(request.query_fields())
}

/// Statuses, and types of jobs.
type Filters = (Vec<&'static str>, Vec<String>);

fn filters_in<'r>(fields: impl Iterator<Item = ValueField<'r>>) -> Result<Filters, Problem> {
    let (mut statuses, mut job_types) = (Vec::new(), Vec::new());
    let invalid = |error: RuleError| Problem::new(Kind::InvalidQuery, error.to_string());
    let no_status = || {
        Problem::new(
            Kind::InvalidQuery,
            "`status` must be a status of these subjects",
        )
    };
    for field in fields {
        if field.name == "status" {
            let of_job = || Some(field.value.parse::<JobStatus>().ok()?.as_str());
            let status = kind::known_status(field.value).or_else(of_job);
            statuses.push(status.ok_or_else(no_status)?);
        } else if field.name == "job_type" && !field.value.is_empty() {
            field.value.parse::<JobType>().map_err(invalid)?;
            job_types.push(field.value.to_owned());
        }
    }
    if statuses.len().max(job_types.len()) > FILTER_VALUES_MAX {
        return Err(Problem::new(
            Kind::InvalidQuery,
            format!("`status` and `job_type` accept at most {FILTER_VALUES_MAX} values each"),
        ));
    }
    Ok((statuses, job_types))
}

/// Returns the answer to a write: its event.
pub(super) fn answer(receipt: &Receipt, upper: bool) -> Json {
    Json::ok(wire::event_json(receipt.event(), upper))
}

/// Encodes a subject as a resource: its state as in a snapshot, and additional fields.
fn resource(stored: &StoredSubject, upper: bool) -> Vec<u8> {
    let mut json = wire::event_json(&stored.event, upper);
    let details = stored.state.details(&stored.event.subject);
    let details = serde_json::to_vec(&details).expect("a value is JSON");
    if details.len() > 2 {
        json.pop();
        json.push(b',');
        json.extend_from_slice(&details[1..]);
    }
    json
}
