//! `/ping/<key>`: one line of a script reports on a job. `/api/pings`: the keys.

use std::net::IpAddr;
use std::sync::Arc;

use rocket::http::uri::Segments;
use rocket::http::uri::fmt::Path;
use rocket::http::{Header, Status};
use rocket::request::{FromRequest, Outcome, Request};
use rocket::response::{self, Responder, Response};
use rocket::{Route, State, delete, get, post, routes};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{self, Base, Json, Unread, UpperStatus};
use super::credential::{bounded, query};
use super::forwarded::client_address;
use super::problem::{Kind, Problem};
use super::subjects::{answer, only_known};
use crate::app::{Caller, Ping};
use crate::kind::job::JobType;
use crate::log::Receipt;
use crate::log::pings::{Numbers, PingKey};
use crate::service::Tidings;
use crate::wire::timestamp;

pub(super) fn routes() -> Vec<Route> {
    routes![get_ping, post_ping, create, list, revoke]
}

/// What a ping says in addition to its path and its body.
struct Asked {
    rid: Option<String>,
    address: Option<IpAddr>,
    wants_json: bool,
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Asked {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Asked, Problem> {
        let read = bounded(request).and_then(|()| only_known(request, &["rid"]));
        Problem::outcome(read.map(|()| {
            Asked {
                rid: query(request, "rid").map(str::to_owned),
                address: client_address(request),
                // Not `*/*`: a script prints what it gets, and cron mails it.
                wants_json: request
                    .accept()
                    .is_some_and(|accept| accept.iter().any(|own| own.is_json())),
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
    let limit = settings.body_limit_bytes;
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

/// Returns what a body says, as a message: the beginning of its text, without control characters other than line breaks.
fn message(body: &[u8], most_bytes: usize) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let shown = |character: char| match character {
        '\n' => Some('\n'),
        '\t' => Some(' '),
        own if own.is_control() => None,
        own => Some(own),
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

/// Body of `POST /api/pings`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKey {
    job_type: JobType,
    #[serde(default)]
    numbers: Option<String>,
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
    let mut answer = resource(&key);
    answer["key"] = secret.reveal().into();
    answer["url"] = format!("{}/ping/{}", base.0, secret.reveal()).into();
    Ok(Json {
        status: Status::Created,
        bytes: answer.to_string().into_bytes(),
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
    let keys: Vec<Value> = keys.iter().map(resource).collect();
    let answer = json!({ "school_id": caller.school(), "pings": keys });
    Ok(Json::ok(answer.to_string().into_bytes()))
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

fn resource(key: &PingKey) -> Value {
    json!({
        "key_id": key.id.as_str(),
        "job_type": key.job_type.as_str(),
        "numbers": key.numbers.as_str(),
        "created_at": timestamp(key.created_at),
        "created_by": key.created_by,
    })
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
        let read = |body: &[u8], most| message(body, most);
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
