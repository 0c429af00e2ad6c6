//! `/ping/<key>`: reports on a job, with one line of `curl` in a script. `/api/pings`: manages the keys.

use std::net::IpAddr;
use std::sync::Arc;

use rocket::http::uri::Segments;
use rocket::http::uri::fmt::Path;
use rocket::http::{Header, Status};
use rocket::request::{FromRequest, Outcome, Request};
use rocket::response::{self, Responder, Response};
use rocket::{Route, State, delete, get, post, routes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::body::{self, Base, Json, Unread, UpperStatus};
use super::contract::examples::{self, Example, ExampleSubject};
use super::contract::{Document, JSON, Operation, Part};
use super::credential::{bounded, query};
use super::forwarded::client_address;
use super::listing::only_known;
use super::parameters::PING;
use super::problem::{Kind, Problem};
use super::subjects::{READ_PROBLEMS, WRITE_PROBLEMS, answer};
use crate::app::{Caller, Ping, Plan, Report};
use crate::id::SchoolId;
use crate::kind::job::{self, JobType};
use crate::kind::{Body, Command};
use crate::log::pings::{KeyDigest, Numbers, PingKey};
use crate::log::{Envelope, Receipt};
use crate::service::Tidings;
use crate::wire::example::{self, AT_MILLIS};
use crate::wire::timestamp;

pub(super) fn routes() -> Vec<Route> {
    routes![get_ping, post_ping, create, list, revoke]
}

pub(super) fn describe(document: &mut Document) {
    const TAG: &str = "Pings";
    document.tag(TAG, "Reports with one line of curl, and the keys for them.");
    let rests = [String::new(), "/{report}".to_owned()];
    let ping = |method: &str, rest: &str, operation: &mut Operation<'_>| {
        let form = if rest.contains("report") {
            "report"
        } else {
            "end"
        };
        let schema = operation.schemas.events([&&job::JOB_PROGRESS]);
        operation
            .named(format!("ping.{method}.{form}"), TAG, "Report on a run")
            .about("The key is the credential. `report` is `start`, `ok`, `fail`, a percentage such as `40%`, or an exit code.")
            .answers(200, "The job's event, with `Accept: application/json`.", JSON, schema)
            .with_example(200, JSON, example_event(method, form))
            .answers_empty(204, "Carried out.")
            .with_path_example("key", EXAMPLE_KEY)
            .with_path_example("report", EXAMPLE_REPORT)
            .fails(WRITE_PROBLEMS);
    };
    document.rests(routes![get_ping], &get_ping, &rests, |rest, operation| {
        ping("get", rest, operation);
    });
    document.rests(routes![post_ping], &post_ping, &rests, |rest, operation| {
        ping("post", rest, operation);
        operation.body(
            "text/plain",
            json!({ "type": "string", "examples": [EXAMPLE_MESSAGE] }),
        );
    });
    let example = example_key();
    document.route(routes![create], &create, |operation| {
        let body = operation.schemas.body::<NewKey>();
        let schema = operation.schemas.answer::<CreatedKey<'_>>();
        let example = CreatedKey::new(&example, EXAMPLE_KEY, &Base(String::new()));
        operation
            .named("pings.create", TAG, "Create a key for pings")
            .about("Requires the role `admin`, for all jobs of the school.")
            .body(JSON, body)
            .answers(201, "The key, which is shown only this once.", JSON, schema)
            .with_example(201, JSON, Some(examples::value(&example)))
            .fails(WRITE_PROBLEMS);
    });
    document.route(routes![list], &list, |operation| {
        operation
            .named("pings.list", TAG, "List the keys for pings")
            .about("Requires the role `admin`, for all jobs of the school.")
            .answers_json(
                "All keys, the newest first.",
                &KeyList::new(example::school(), std::slice::from_ref(&example)),
            )
            .fails(READ_PROBLEMS);
    });
    document.route(routes![revoke], &revoke, |operation| {
        operation
            .named("pings.revoke", TAG, "Revoke a key for pings")
            .about("Requires the role `admin`, for all jobs of the school.")
            .answers_empty(204, "The key is revoked.")
            .with_path_example("id", EXAMPLE_KEY_ID)
            .fails(WRITE_PROBLEMS);
    });
}

/// The key for pings of the examples.
const EXAMPLE_KEY: &str = "7-h4kq7wz2m9xc3vn8rt5ysd6j";
/// The end of the URL of a ping in the examples.
const EXAMPLE_REPORT: &str = "start";
/// The id of the key.
const EXAMPLE_KEY_ID: &str = "qz7kd3mx2a";
/// The message of the pings of the examples.
const EXAMPLE_MESSAGE: &str = "Copied 12 files\n";

/// Returns the key that the example of a body creates, as it is stored.
fn example_key() -> PingKey {
    let new: Option<NewKey> = Example.read().ok();
    PingKey {
        id: EXAMPLE_KEY_ID.parse().expect("the text is an id"),
        digest: KeyDigest::of(EXAMPLE_KEY),
        job_type: new.expect("the body has an example").job_type,
        numbers: Numbers::default(),
        created_at: example::time(AT_MILLIS),
        created_by: "maria".to_owned(),
        run: 1,
    }
}

/// Returns the event of the first ping of a run: of its end, or of the example of a `report`.
fn example_event(method: &str, form: &str) -> Option<Value> {
    let key = example_key();
    let segments: &[&str] = match form {
        "end" => &[],
        _ => &[EXAMPLE_REPORT],
    };
    let report = Report::read(segments, key.numbers).ok()?;
    let ping = Ping {
        report,
        message: match method {
            "post" => message(EXAMPLE_MESSAGE.as_bytes(), EXAMPLE_MESSAGE.len()),
            _ => None,
        },
        rid: None,
    };
    let (_, job) = key.run_of(&ping).ok()?;
    let plan = ping.plan(&job, &key.job_type, None, example::time(AT_MILLIS));
    let Plan::Same(commands) = plan else {
        return None;
    };
    let mut commands = commands.into_iter().map(Command::Job);
    let made = ExampleSubject::made(&Envelope::new(job, commands.next()?));
    let subject = commands.fold(made, |subject, command| subject?.then(&command))?;
    Some(subject.event())
}

impl Part for Segments<'_, Path> {}

impl Part for Asked {
    fn describe(operation: &mut Operation<'_>) {
        operation.queries(PING);
        operation.fails(&[Kind::InvalidQuery, Kind::HeadersTooLarge]);
    }
}

impl Part for Whole {
    fn describe(operation: &mut Operation<'_>) {
        operation.fails(&[Kind::InvalidQuery]);
    }
}

/// The query, headers and address of a ping.
struct Asked {
    rid: Option<String>,
    address: Option<IpAddr>,
    wants_json: bool,
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Asked {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Asked, Problem> {
        let read = bounded(request).and_then(|()| only_known(request, PING));
        Problem::outcome(read.map(|()| {
            Asked {
                rid: query(request, "rid").map(str::to_owned),
                address: client_address(request),
                // `*/*` does not count: scripts print the answer, and cron mails it.
                wants_json: request
                    .accept()
                    .is_some_and(|accept| accept.iter().any(|media_type| media_type.is_json())),
            }
        }))
    }
}

/// The answer to a ping: nothing, or the job's event if the client asks for JSON.
struct Pinged(Option<Json>);

impl<'r> Responder<'r, 'static> for Pinged {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let mut response = match self.0 {
            Some(json) => json.respond_to(request)?,
            None => Response::build()
                .status(Status::NoContent)
                .raw_header("Cache-Control", "no-store")
                .finalize(),
        };
        response.set_header(Header::new("Vary", "Accept"));
        Ok(response)
    }
}

#[get("/ping/<key>/<rest..>")]
async fn get_ping(
    key: &str,
    rest: Segments<'_, Path>,
    asked: Result<Asked, Problem>,
    upper: Result<UpperStatus, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Pinged, Problem> {
    ping(tidings, key, rest, asked?, None, upper?).await
}

#[post("/ping/<key>/<rest..>", data = "<body>")]
async fn post_ping(
    key: &str,
    rest: Segments<'_, Path>,
    asked: Result<Asked, Problem>,
    upper: Result<UpperStatus, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Pinged, Problem> {
    ping(tidings, key, rest, asked?, Some(body?), upper?).await
}

async fn ping(
    tidings: &Tidings,
    key: &str,
    rest: Segments<'_, Path>,
    asked: Asked,
    body: Option<Unread<'_>>,
    UpperStatus(upper): UpperStatus,
) -> Result<Pinged, Problem> {
    let pings = tidings.pings();
    let caller = pings.caller(key, asked.address).await?;
    let segments: Vec<&str> = rest.collect();
    let report = caller.report(&segments)?;
    let settings = tidings.settings();
    let limit = settings.body_limit_bytes.get();
    let length = body.as_ref().map_or(0, |body| body.expected(limit));
    let admission = pings.admit(&caller, length).await?;
    let bytes = match body {
        Some(body) => body.read_beginning(limit).await?,
        None => Vec::new(),
    };
    let ping = Ping {
        report,
        message: message(&bytes, settings.message_limit_bytes),
        rid: asked.rid,
    };
    let receipt: Receipt = pings.ping(&caller, admission, &ping).await?;
    Ok(Pinged(asked.wants_json.then(|| answer(&receipt, upper))))
}

/// Returns a body as a message: the beginning of its text, without control characters other than line breaks.
fn message(body: &[u8], most_bytes: usize) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let shown = |character: char| match character {
        '\n' => Some('\n'),
        '\t' => Some(' '),
        character if character.is_control() => None,
        character => Some(character),
    };
    let mut text: String = text
        .trim_start_matches('\u{feff}')
        .chars()
        .filter_map(shown)
        .collect();
    let mut end = text.len().min(most_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Creates a key for pings.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({ "job_type": "backup" }))]
struct NewKey {
    /// The type of the jobs that the key reports on.
    job_type: JobType,
    /// What a plain number in the URL means: `exit` or `progress`.
    #[serde(default)]
    #[schemars(extend("enum" = ["exit", "progress", null]))]
    numbers: Option<String>,
}

/// A key for pings, without the key itself.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "PingKey")]
struct KeyInfo<'a> {
    /// The id of the key, for revoking it.
    key_id: &'a str,
    /// The type of the jobs that it reports on.
    job_type: &'a str,
    /// What a plain number in the URL means: `exit` or `progress`.
    numbers: &'static str,
    /// When it was created.
    #[schemars(with = "chrono::DateTime<chrono::Utc>")]
    created_at: String,
    /// Who created it.
    created_by: &'a str,
}

/// A key for pings that was just created.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "CreatedPingKey")]
struct CreatedKey<'a> {
    #[serde(flatten)]
    info: KeyInfo<'a>,
    /// The key. The server stores only its hash.
    key: &'a str,
    /// The URL of a ping.
    url: String,
}

impl<'a> CreatedKey<'a> {
    fn new(stored: &'a PingKey, key: &'a str, base: &Base) -> CreatedKey<'a> {
        CreatedKey {
            info: resource(stored),
            key,
            url: format!("{}/ping/{key}", base.0),
        }
    }
}

/// The keys of a school.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "PingKeyList")]
struct KeyList<'a> {
    /// The school.
    school_id: SchoolId,
    /// All keys, the newest first.
    pings: Vec<KeyInfo<'a>>,
}

impl KeyList<'_> {
    fn new(school_id: SchoolId, keys: &[PingKey]) -> KeyList<'_> {
        KeyList {
            school_id,
            pings: keys.iter().map(resource).collect(),
        }
    }
}

#[post("/api/pings", data = "<body>")]
async fn create(
    base: Base,
    caller: Result<Caller, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let (caller, settings) = (caller?, tidings.settings());
    let new: NewKey = body::parse(&body?.read(settings.body_limit()).await?)?;
    let numbers = match new.numbers.as_deref().map(Numbers::parse) {
        None => Numbers::default(),
        Some(Some(numbers)) => numbers,
        Some(None) => {
            let detail = "`numbers` must be `exit` or `progress`";
            return Err(Problem::new(Kind::InvalidBody, detail));
        }
    };
    let (key, secret) = tidings
        .pings()
        .create_key(&caller, new.job_type, numbers)
        .await?;
    let answer = CreatedKey::new(&key, secret.reveal(), &base);
    Ok(Json {
        status: Status::Created,
        bytes: serde_json::to_vec(&answer).expect("an answer is JSON"),
        location: None,
    })
}

#[get("/api/pings")]
async fn list(
    caller: Result<Caller, Problem>,
    whole: Result<Whole, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let (caller, Whole) = (caller?, whole?);
    let keys = tidings.pings().keys(&caller).await?;
    let answer = KeyList::new(caller.school(), &keys);
    Ok(Json::ok(
        serde_json::to_vec(&answer).expect("an answer is JSON"),
    ))
}

#[delete("/api/pings/<id>")]
async fn revoke(
    id: &str,
    caller: Result<Caller, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Status, Problem> {
    let caller = caller?;
    let is_revoked = tidings.pings().revoke_key(&caller, id).await?;
    match is_revoked {
        true => Ok(Status::NoContent),
        false => Err(Problem::new(
            Kind::NotFound,
            "this key does not exist; GET /api/pings lists all keys",
        )),
    }
}

fn resource(key: &PingKey) -> KeyInfo<'_> {
    KeyInfo {
        key_id: key.id.as_str(),
        job_type: key.job_type.as_str(),
        numbers: key.numbers.as_str(),
        created_at: timestamp(key.created_at).to_string(),
        created_by: &key.created_by,
    }
}

/// Rejects parameters: the list of keys has no pages or filters.
struct Whole;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Whole {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Whole, Problem> {
        Problem::outcome(only_known(request, &[]).map(|()| Whole))
    }
}

#[cfg(test)]
mod tests {
    use super::message;

    #[test]
    fn a_body_is_a_message_within_its_limit_and_without_control_characters() {
        let read = |body: &[u8], limit| message(body, limit);
        assert_eq!(read(b"", 10), None);
        assert_eq!(read(b" \n\t\x1b ", 10), None);
        assert_eq!(read(b"done\r\n", 10).as_deref(), Some("done"));
        assert_eq!(
            read(b"a\r\nb\tc\x1b[1m\x00", 20).as_deref(),
            Some("a\nb c[1m")
        );
        assert_eq!(read("\u{feff}grün".as_bytes(), 3).as_deref(), Some("gr"));
        assert_eq!(read(b"\xffx", 10).as_deref(), Some("\u{fffd}x"));
        assert_eq!(read("\u{9b}1m".as_bytes(), 10).as_deref(), Some("1m"));
    }
}
