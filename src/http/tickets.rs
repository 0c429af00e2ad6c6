//! `POST /api/tickets`: a short-lived ticket for `EventSource`, which cannot send a header.

use std::sync::Arc;

use chrono::Utc;
use rocket::http::Status;
use rocket::{Route, State, post, routes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::body::{self, Base, Json, Unread};
use super::contract::{Document, JSON};
use super::problem::{Kind, Problem};
use crate::app::Caller;
use crate::kind;
use crate::service::Tidings;
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
        let (body, answer) = (
            operation.schemas.body::<Asked>(),
            operation.schemas.answer::<Answer<'_>>(),
        );
        operation
            .named(
                "tickets.create",
                TAG,
                "Create a ticket for streams of these channels",
            )
            .body(JSON, body)
            .answers(201, "The ticket.", JSON, answer)
            .fails(&[Kind::Internal]);
    });
}

/// The scope of a ticket.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({ "channels": ["jobs/42"] }))]
pub(super) struct Asked {
    /// The channels that it opens.
    #[schemars(with = "Vec<kind::ChannelText>", length(min = 1))]
    channels: Vec<String>,
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
    let mut channels = Vec::with_capacity(asked.channels.len());
    for text in &asked.channels {
        channels.push(kind::channel(text).map_err(|error| invalid(error.to_string()))?);
    }
    let ticket = tidings.grants().ticket(caller, &channels)?;
    let path = match channels.as_slice() {
        [channel] => format!("/events/{channel}?"),
        several => {
            let query: Vec<_> = several
                .iter()
                .map(|channel| format!("channel={}&", channel.in_query()))
                .collect();
            format!("/events?{}", query.concat())
        }
    };
    let answer = Answer {
        url: format!("{}{path}ticket={}", base.0, ticket.ticket.reveal()),
        ticket: ticket.ticket.reveal(),
        expires_at: timestamp(ticket.expires_at),
    };
    let bytes = serde_json::to_vec(&answer).expect("a ticket is JSON");
    Ok(Json {
        status: Status::Created,
        bytes,
        location: None,
    })
}
