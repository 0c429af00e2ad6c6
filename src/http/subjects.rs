//! `/api/<collection>`: publishes and reads subjects of any kind.

use std::sync::Arc;

use rocket::http::Status;
use rocket::{Route, State, delete, get, post, put, routes};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::body::{Base, IdempotencyKey, Json, Unread, UpperStatus};
use super::callers::Connection;
use super::commands::{self, Sent, subject};
use super::contract::examples::{self, ExampleSubject};
use super::contract::{Document, JSON, Operation};
use super::listing::{Asked, FirstHead};
use super::methods::Collection;
use super::problem::{Kind, Problem};
use crate::app::Caller;
use crate::id::{Cursor, Kind as SubjectKind, NameError};
use crate::kind::{Command, Description};
use crate::log::{Envelope, ListPage, Receipt, StoredSubject};
use crate::service::Tidings;
use crate::wire;

pub(super) fn routes() -> Vec<Route> {
    routes![create, register, list, read, remove, act]
}

/// The problems of every write, in addition to those of its parts.
pub(super) const WRITE_PROBLEMS: &[Kind] = &[
    Kind::NotFound,
    Kind::AlreadyExists,
    Kind::Finished,
    Kind::Held,
    Kind::StaleAttempt,
    Kind::IllegalTransition,
    Kind::TooManySubjects,
    Kind::TooFast,
    Kind::Unavailable,
];

/// The problems of every read, in addition to those of its parts.
pub(super) const READ_PROBLEMS: &[Kind] = &[Kind::TooManyReads, Kind::Unavailable];

pub(super) fn describe(document: &mut Document) {
    let event_of = |description: &Description, verb: &str| {
        let subject = examples::after(description.kind, verb)?;
        Some(subject.event())
    };
    let written = |description: &Description, operation: &mut Operation<'_>| {
        let schema = operation.schemas.events(description.event_types);
        operation.about("Requires the role `worker`.");
        operation.fails(WRITE_PROBLEMS);
        schema
    };
    document.kinds(routes![create], &create, |description, verb, operation| {
        let schema = written(description, operation);
        operation
            .answers(201, "Created: the event.", JSON, schema)
            .with_example(201, JSON, event_of(description, verb))
            .with_header(201, "Location", "Its URL.", json!({ "type": "string" }));
    });
    document.kinds(
        routes![register],
        &register,
        |description, verb, operation| {
            let schema = written(description, operation);
            let about = "The event, or the state if nothing has changed.";
            operation.answers(200, about, JSON, schema).with_example(
                200,
                JSON,
                event_of(description, verb),
            );
        },
    );
    document.kinds(routes![remove], &remove, |description, verb, operation| {
        let schema = written(description, operation);
        operation
            .named(
                format!("{}.delete", description.kind.collection()),
                description.title,
                format!("{}: remove", description.noun),
            )
            .answers(200, "The event.", JSON, schema)
            .with_example(200, JSON, event_of(description, verb));
    });
    document.kinds(routes![act], &act, |description, verb, operation| {
        let schema = written(description, operation);
        operation
            .answers(200, "The event.", JSON, schema)
            .with_example(200, JSON, event_of(description, verb));
    });
    document.kinds(routes![read], &read, |description, _, operation| {
        let stored = examples::living(description.kind).map(ExampleSubject::stored);
        let example = stored.map(|stored| examples::json(&resource(&stored, false)));
        let schema = operation.schemas.resource(description.kind);
        operation
            .named(
                format!("{}.read", description.kind.collection()),
                description.title,
                format!("{}: read", description.noun),
            )
            .answers(200, "The present state.", JSON, schema)
            .with_example(200, JSON, example)
            .fails(READ_PROBLEMS);
    });
    document.kinds(routes![list], &list, |description, _, operation| {
        let stored = examples::living(description.kind).map(ExampleSubject::stored);
        let example = stored.map(|stored| {
            let end = PageEnd {
                next: None,
                searched: None,
                cursor: stored.event.cursor().to_string(),
            };
            examples::json(&page(description.kind, &[stored], &end, false))
        });
        let items = operation.schemas.resource(description.kind);
        let end = operation.schemas.answer::<PageEnd>();
        let collection = description.kind.collection();
        let schema = json!({ "allOf": [
            { "type": "object", "properties": { collection: { "type": "array", "items": items } }, "required": [collection] },
            end,
        ] });
        operation
            .named(
                format!("{collection}.list"),
                description.title,
                format!("{}: list", description.noun),
            )
            .answers(200, "A page, newest first unless `sort` says otherwise.", JSON, schema)
            .with_example(200, JSON, example)
            .fails(READ_PROBLEMS);
    });
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
    let length = body.expected(settings.body_limit_bytes.get());
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
    let stored = tidings.reads().subject(&caller, kind, subject).await?;
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
    let reads = tidings.reads();
    let read = async { Ok(reads.subjects(&caller, kind, asked).await?) };
    let found: ListPage = connection.while_connected::<_, Problem>(read).await?;
    let cursor = Cursor::new(reads.epoch(), first.or(found.head));
    let end = PageEnd {
        next: found.next.map(|next| format!("{next}-{}", cursor.place)),
        searched: found.searched.map(|searched| SearchedRows {
            rows: searched.rows,
            until: searched.until.map(wire::timestamp),
            complete: searched.is_complete,
        }),
        cursor: cursor.to_string(),
    };
    Ok(Json::ok(page(kind, &found.subjects, &end, upper)))
}

/// Encodes a page of a list.
fn page(kind: SubjectKind, subjects: &[StoredSubject], end: &PageEnd, upper: bool) -> Vec<u8> {
    let mut json = format!(r#"{{"{}":["#, kind.collection()).into_bytes();
    for (index, stored) in subjects.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        json.extend(resource(stored, upper));
    }
    json.extend_from_slice(b"],");
    let end = serde_json::to_vec(end).expect("a page is JSON");
    json.extend_from_slice(&end[1..]);
    json
}

/// What follows the items of a page.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Page")]
pub(super) struct PageEnd {
    /// The `page` that follows; null if none does.
    pub(super) next: Option<String>,
    /// How far the search has got, if rows had to be searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) searched: Option<SearchedRows>,
    /// The cursor of the first page, from which a stream can continue.
    pub(super) cursor: String,
}

/// How far a search has got.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Searched")]
pub(super) struct SearchedRows {
    /// The number of rows that were scanned.
    rows: u64,
    /// If the search has reached a limit: the creation time of the last row that was scanned.
    #[schemars(with = "Option<chrono::DateTime<chrono::Utc>>")]
    until: Option<String>,
    /// Whether all rows were scanned.
    complete: bool,
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
