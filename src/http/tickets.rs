//! `POST /api/tickets`: a short-lived ticket for `EventSource`, which cannot send a header.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rocket::http::Status;
use rocket::{Route, State, post, routes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::body::{self, Base, Json, Unread};
use super::contract::examples::{self, Example};
use super::contract::{Document, JSON, Operation};
use super::problem::{Kind, Problem};
use crate::app::Caller;
use crate::config::Settings;
use crate::id::{Channel, NameError};
use crate::kind::{self, Body};
use crate::service::Tidings;
use crate::wire::example::{self, AT_MILLIS};
use crate::wire::timestamp;

pub(super) fn routes() -> Vec<Route> {
    routes![ticket]
}

pub(super) fn describe(document: &mut Document) {
    const TAG: &str = "Tickets";
    document.tag(
        TAG,
        "Short-lived tickets for `EventSource`, which cannot send a header.",
    );
    document.route(routes![ticket], &ticket, |operation| {
        describe_ticket(operation);
        operation
            .named(
                "tickets.create",
                TAG,
                "Create a ticket for streams of these channels",
            )
            .fails(&[Kind::Internal]);
    });
}

/// Describes the body that asks for a ticket, and the ticket.
pub(super) fn describe_ticket(operation: &mut Operation<'_>) {
    let body = operation.schemas.body::<Asked>();
    let schema = operation.schemas.answer::<Answer<'_>>();
    let asked: Result<Asked, Problem> = Example.read();
    let example = asked.and_then(|asked| {
        let lifetime = Duration::from_secs(Settings::default().ticket_ttl_secs.get().into());
        let expires_at = example::time(AT_MILLIS) + lifetime;
        let answer = Answer::new(EXAMPLE, expires_at, &asked.parsed()?, "");
        Ok(examples::value(&answer))
    });
    operation
        .body(JSON, body)
        .answers(201, "The ticket.", JSON, schema)
        .with_example(201, JSON, example.ok());
}

/// The ticket of the examples.
const EXAMPLE: &str =
    "eyJhbGciOiJIUzI1NiJ9.eyJhbiI6ImV4YW1wbGUifQ.YW4gZXhhbXBsZSBvZiBhIHNpZ25hdHVyZQ";

/// The scope of a ticket.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({ "channels": ["jobs/42"] }))]
pub(super) struct Asked {
    /// The channels that it opens.
    #[schemars(with = "Vec<kind::ChannelText>", length(min = 1))]
    channels: Vec<String>,
}

impl Asked {
    /// Parses the channels.
    fn parsed(&self) -> Result<Vec<Channel>, Problem> {
        let invalid = |error: NameError| Problem::new(Kind::InvalidBody, error.to_string());
        let channels = self.channels.iter();
        channels
            .map(|text| kind::channel(text).map_err(invalid))
            .collect()
    }
}

/// A ticket.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Ticket")]
pub(super) struct Answer<'a> {
    /// The ticket itself, for `?ticket=`.
    ticket: &'a str,
    /// When it expires.
    #[schemars(with = "chrono::DateTime<Utc>")]
    expires_at: String,
    /// The path to open, including the ticket.
    url: String,
}

impl<'a> Answer<'a> {
    fn new(
        ticket: &'a str,
        expires_at: DateTime<Utc>,
        channels: &[Channel],
        base: &str,
    ) -> Answer<'a> {
        let path = match channels {
            [channel] => format!("/events/{channel}?"),
            several => {
                let query: Vec<_> = several
                    .iter()
                    .map(|channel| format!("channel={}&", channel.in_query()))
                    .collect();
                format!("/events?{}", query.concat())
            }
        };
        Answer {
            url: format!("{base}{path}ticket={ticket}"),
            ticket,
            expires_at: timestamp(expires_at),
        }
    }
}

#[post("/api/tickets", data = "<body>")]
async fn ticket(
    base: Base,
    caller: Result<Caller, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let caller = caller?;
    let body = body?.read(tidings.settings().body_limit()).await?;
    issue(&caller, &body, &base, tidings)
}

/// Issues a ticket for what the body asks for, if the caller's credential covers all of it.
pub(super) fn issue(
    caller: &Caller,
    body: &[u8],
    base: &Base,
    tidings: &Tidings,
) -> Result<Json, Problem> {
    let settings = tidings.settings();
    let asked: Asked = body::parse(body)?;
    let invalid = |detail: String| Problem::new(Kind::InvalidBody, detail);
    if asked.channels.is_empty() || asked.channels.len() > settings.channels_per_connection.get() {
        return Err(invalid(format!(
            "`channels` must have 1 to {} entries",
            settings.channels_per_connection.get()
        ))
        .of_limit("channels_per_connection"));
    }
    let channels = asked.parsed()?;
    let ticket = tidings.grants().ticket(caller, &channels)?;
    let answer = Answer::new(
        ticket.ticket.reveal(),
        ticket.expires_at,
        &channels,
        &base.0,
    );
    let bytes = serde_json::to_vec(&answer).expect("a ticket is JSON");
    Ok(Json {
        status: Status::Created,
        bytes,
        location: None,
    })
}
