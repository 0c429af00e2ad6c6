//! Streams: one scope at one URL over three transports.
//!
//! A request is read into [`Params`] and a scope, the credential is checked against it, and the
//! subscription is opened and handed to the transport that the request asks for.

mod dialect;
mod event_source;
mod params;
mod poll;
mod session;
mod socket;

use std::sync::Arc;

use rocket::http::uri::Segments;
use rocket::http::uri::fmt::Path;
use rocket::request::FromSegments;
use rocket::response::{self, Responder};
use rocket::{Request, Route, State, get, routes};

use self::dialect::Dialect;
use self::event_source::EventSourceBody;
use self::params::{Params, Transport};
use self::poll::PollBody;
use self::session::Opening;
use self::socket::{Handshake, MaybeHandshake, Upgrade};
use super::credential::Listener;
use super::problem::{Kind, Problem};
use crate::auth::Access;
use crate::id::{Channel, SchoolId};
use crate::kind::{self, job};
use crate::scope::Scope;
use crate::service::Tidings;
use crate::subscribe::{Request as Subscribe, Subscription};
use crate::wire::Close;

pub(super) fn routes() -> Vec<Route> {
    routes![events, multiplexed, job_progress]
}

/// The answer over one of the transports.
enum Stream {
    EventSource(Box<EventSourceBody>),
    Poll(Box<PollBody>),
    Socket(Box<Upgrade>),
}

impl<'r> Responder<'r, 'static> for Stream {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        match self {
            Stream::EventSource(body) => (*body).respond_to(request),
            Stream::Poll(body) => (*body).respond_to(request),
            Stream::Socket(upgrade) => (*upgrade).respond_to(request),
        }
    }
}

/// What follows `/events`, decoded, as a channel's text.
struct ChannelPath(String);

impl<'r> FromSegments<'r> for ChannelPath {
    type Error = std::convert::Infallible;

    fn from_segments(segments: Segments<'r, Path>) -> Result<Self, Self::Error> {
        Ok(ChannelPath(segments.collect::<Vec<_>>().join("/")))
    }
}

/// `/events/<channel>` and `/events?channel=…&channel=…`.
#[get("/events/<path..>")]
async fn events(
    path: ChannelPath,
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Stream, Problem> {
    let (access, params, handshake) = (listener.0?, params?, handshake?.0);
    let mut texts = params.channels.clone();
    if !path.0.is_empty() {
        texts.push(path.0);
    }
    let (school, channels) = channels(&texts, &params, &access, tidings)?;
    for channel in &channels {
        access.reach(school, channel)?;
    }
    require_subjects(tidings, school, &channels).await?;
    let scope = Scope::new(school, channels).filtered(params.filter.clone());
    let tick = params
        .tick
        .unwrap_or(Dialect::EVENTS.tick(tidings.settings()));
    let subscribe = Subscribe {
        scope,
        from: params.from,
        tick,
        expires_at: access.expires_at,
        greet: true,
    };
    let subscription = open(tidings, subscribe)?;
    Ok(match (params.transport, handshake) {
        (_, Some(handshake)) => {
            let opening = Opening::Accepted {
                access,
                subscription,
                from: None,
            };
            Stream::Socket(handshake.upgrade(
                Arc::clone(tidings),
                Dialect::EVENTS,
                params.upper_status,
                opening,
            ))
        }
        (Transport::Poll, None) => Stream::Poll(Box::new(PollBody::new(subscription, &params))),
        (Transport::EventSource, None) => {
            Stream::EventSource(Box::new(EventSourceBody::new(subscription, &params)))
        }
    })
}

/// `/ws`: a WebSocket that starts with no channel.
#[get("/ws")]
fn multiplexed(
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Stream, Problem> {
    let handshake = required(handshake)?;
    let upper = params.as_ref().is_ok_and(|params| params.upper_status);
    let accept = || {
        let (access, params) = (listener.0?, params?);
        let school = access.school(params.school)?;
        let tick = params
            .tick
            .unwrap_or(Dialect::MULTIPLEXED.tick(tidings.settings()));
        let scope = Scope::new(school, []).filtered(params.filter);
        let subscribe = Subscribe {
            scope,
            from: None,
            tick,
            expires_at: access.expires_at,
            greet: false,
        };
        Ok((open(tidings, subscribe)?, access, params.from))
    };
    let opening = match accept() {
        Ok((subscription, access, from)) => Opening::Accepted {
            access,
            subscription,
            from,
        },
        Err(problem) => Opening::refused(problem, &Dialect::MULTIPLEXED),
    };
    Ok(Stream::Socket(handshake.upgrade(
        Arc::clone(tidings),
        Dialect::MULTIPLEXED,
        upper,
        opening,
    )))
}

/// `/progress/ws/<job_id>`: one job for clients that know nothing of channels.
#[get("/progress/ws/<job_id>")]
async fn job_progress(
    job_id: &str,
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Stream, Problem> {
    let handshake = required(handshake)?;
    let upper = params.as_ref().is_ok_and(|params| params.upper_status);
    let opening = match open_job(job_id, params, listener, tidings).await {
        Ok((subscription, access)) => Opening::Accepted {
            access,
            subscription,
            from: None,
        },
        Err(problem) if problem.is(Kind::NotFound) => Opening::Refused {
            error: Some(format!("Job {job_id} not found")),
            code: "not_found",
            close: Close::Done,
        },
        Err(problem) => Opening::refused(problem, &Dialect::JOB_PROGRESS),
    };
    Ok(Stream::Socket(handshake.upgrade(
        Arc::clone(tidings),
        Dialect::JOB_PROGRESS,
        upper,
        opening,
    )))
}

async fn open_job(
    job_id: &str,
    params: Result<Params, Problem>,
    listener: Listener,
    tidings: &Arc<Tidings>,
) -> Result<(Subscription, Access), Problem> {
    let (access, params) = (listener.0?, params?);
    let school = access.school(params.school)?;
    let not_found = |_| Problem::new(Kind::NotFound, "not found");
    let channel = Channel::Subject(job::KIND, job_id.parse().map_err(not_found)?);
    access.reach(school, &channel)?;
    require_subjects(tidings, school, std::slice::from_ref(&channel)).await?;
    let tick = params
        .tick
        .unwrap_or(Dialect::JOB_PROGRESS.tick(tidings.settings()));
    let scope = Scope::new(school, [channel]).filtered(params.filter);
    let subscribe = Subscribe {
        scope,
        from: params.from,
        tick,
        expires_at: access.expires_at,
        greet: false,
    };
    Ok((open(tidings, subscribe)?, access))
}

fn required(handshake: Result<MaybeHandshake, Problem>) -> Result<Handshake, Problem> {
    handshake?
        .0
        .ok_or_else(|| Problem::new(Kind::BadHandshake, "this is a WebSocket endpoint"))
}

/// The school and the channels that are asked for. `schools/7` names the school, too.
fn channels(
    texts: &[String],
    params: &Params,
    access: &Access,
    tidings: &Tidings,
) -> Result<(SchoolId, Vec<Channel>), Problem> {
    let most = tidings.settings().channels_per_connection;
    if texts.is_empty() || texts.len() > most {
        return Err(Problem::new(
            Kind::InvalidQuery,
            format!("name 1 to {most} channels: /events/<channel> or ?channel="),
        ));
    }
    let mut channels = Vec::with_capacity(texts.len());
    for text in texts {
        // An id that cannot exist, in the path or in a channel, does not exist.
        let not_found = |_| Problem::new(Kind::NotFound, "there is no such channel");
        channels.push(kind::channel(text).map_err(not_found)?);
    }
    let in_channel = channels.iter().find_map(|channel| match channel {
        Channel::School(school) => Some(*school),
        Channel::Collection(_) | Channel::Subject(..) => None,
    });
    Ok((access.school(params.school.or(in_channel))?, channels))
}

/// A subject that the school does not have is not found, whether another school has it or none.
async fn require_subjects(
    tidings: &Tidings,
    school: SchoolId,
    channels: &[Channel],
) -> Result<(), Problem> {
    for channel in channels {
        let Channel::Subject(kind, id) = channel else {
            continue;
        };
        if !tidings.store().exists(school, *kind, id.clone()).await? {
            return Err(Problem::new(Kind::NotFound, format!("{channel} not found")));
        }
    }
    Ok(())
}

fn open(tidings: &Tidings, subscribe: Subscribe) -> Result<Subscription, Problem> {
    let subscription = tidings.subscriber().open(subscribe)?;
    // A stream that opens while the server stops may have missed the word to close.
    if tidings.is_stopping() {
        return Err(Problem::new(
            Kind::Unavailable,
            "the server is shutting down",
        ));
    }
    Ok(subscription)
}
