//! Streams: each URL delivers one scope over one of three transports.
//!
//! A handler reads the request into [`Params`] and a scope, checks that the credential covers the scope, opens the
//! subscription and passes it to the transport that the request chooses.

mod arrivals;
mod attention;
mod batch;
mod connection;
mod describe;
#[cfg(test)]
mod echo;
mod event_source;
mod handshake;
mod opening;
mod params;
mod poll;
mod publishing;
mod socket;
mod text;

use std::sync::Arc;

use rocket::http::uri::Segments;
use rocket::http::uri::fmt::Path;
use rocket::request::FromSegments;
use rocket::response::{self, Responder};
use rocket::{Request, Route, State, get, routes};
use serde_json::{Map, Value};

pub(super) use self::batch::{BatchStream, ResultsForm};
pub(super) use self::describe::describe;
use self::event_source::EventSourceBody;
pub use self::handshake::OldHandshakes;
pub(super) use self::handshake::fairing;
use self::handshake::{Handler, Handshake, MaybeHandshake, Upgrade};
use self::opening::Opening;
pub(super) use self::params::resumed_from;
use self::params::{Params, Transport};
use self::poll::PollBody;
use self::publishing::Commands;
use super::credential::Listener;
use super::problem::{Kind, Problem};
use crate::app::{AllowedScope, Caller, Listen};
use crate::auth::Access;
use crate::hub::Reader;
use crate::id::{Channel, Cursor, SubjectId};
use crate::kind::{self, characteristic, device, enrollment, job};
use crate::rejections::RequestSource;
use crate::scope::Scope;
use crate::service::Tidings;
use crate::session::{Beginning, Dialect, Publishing};
use crate::subscribe::Subscription;
use crate::wire::{Close, Encoding, Framing, numeric_id};

pub(super) fn routes() -> Vec<Route> {
    routes![
        events,
        multiplexed,
        samples,
        job_progress,
        uploads,
        upload,
        enrollments,
        device_status,
    ]
}

/// The response over one of the transports.
enum Stream {
    EventSource(Box<EventSourceBody>),
    Poll(Box<PollBody>),
    Socket(Box<Upgrade<Handler>>),
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

/// The text of a channel at the end of a URL. An encoded segment stays encoded.
pub(super) struct ChannelPath(pub(super) String);

impl<'r> FromSegments<'r> for ChannelPath {
    type Error = std::convert::Infallible;

    fn from_segments(segments: Segments<'r, Path>) -> Result<Self, Self::Error> {
        let segments: Vec<&str> = segments.collect();
        Ok(ChannelPath::of(&segments))
    }
}

impl ChannelPath {
    /// Returns the text of a channel from decoded segments.
    pub(super) fn of(segments: &[&str]) -> ChannelPath {
        let encoded = |segment: &&str| match segment.parse::<SubjectId>() {
            Ok(id) => id.encoded().to_string(),
            Err(_) => (*segment).to_owned(),
        };
        let segments: Vec<_> = segments.iter().map(encoded).collect();
        ChannelPath(segments.join("/"))
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
    let Listener { access, source } = listener;
    let (access, params, handshake) = (access?, params?, handshake?.sound());
    let mut texts = params.channels.clone();
    if !params.ids.is_empty() && kind::known_kind(&path.0).is_none() {
        let detail =
            "`ids` requires a collection in the path, as in /events/characteristics?ids=1,2";
        return Err(Problem::new(Kind::InvalidQuery, detail));
    }
    for id in &params.ids {
        let id: SubjectId = id.parse().map_err(|error| {
            let detail = format!("`ids` must be ids separated by commas: {error}");
            Problem::new(Kind::InvalidQuery, detail)
        })?;
        texts.push(format!("{}/{}", path.0, id.encoded()));
    }
    if params.ids.is_empty() && !path.0.is_empty() {
        texts.push(path.0);
    }
    let (caller, channels) = channels(&texts, &params, access, tidings)?;
    let scope = Scope::new(caller.school(), channels).filtered(params.filter.clone());
    let allowed = tidings.subscriptions().allow_existing(&caller, scope);
    let allowed = allowed.await?;
    let transport = match (&handshake, params.transport) {
        (Some(_), _) => WEBSOCKET,
        (None, Transport::Poll) => "long poll",
        (None, Transport::EventSource) => "SSE",
    };
    let subscription = open(
        tidings,
        &Dialect::EVENTS,
        &params,
        &caller,
        (transport, params.from),
        allowed,
        Some(Map::new()),
    )?;
    Ok(match (params.transport, handshake) {
        (_, Some(handshake)) => {
            let opening = accepted(source, &caller, subscription, None, None);
            upgrade(handshake, tidings, Dialect::EVENTS, Ok(&params), opening)
        }
        (Transport::Poll, None) => Stream::Poll(Box::new(PollBody::new(subscription, &params))),
        (Transport::EventSource, None) => {
            Stream::EventSource(Box::new(EventSourceBody::new(subscription, &params)))
        }
    })
}

/// `/ws`: a WebSocket without initial channels.
#[get("/ws")]
async fn multiplexed(
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Stream, Problem> {
    without_channel(Dialect::MULTIPLEXED, params, listener, handshake, tidings).await
}

/// `/ws/samples`: a WebSocket without initial channels, for statistical process control.
#[get("/ws/samples")]
async fn samples(
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Stream, Problem> {
    without_channel(Dialect::SAMPLES, params, listener, handshake, tidings).await
}

async fn without_channel(
    dialect: Dialect,
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &Arc<Tidings>,
) -> Result<Stream, Problem> {
    let handshake = handshake?.required()?;
    let Listener { access, source } = listener;
    let accept = async {
        let (access, params) = (access?, params.as_ref().map_err(Problem::clone)?);
        let caller = Caller::new(access, params.school)?;
        let mut scope = Scope::new(caller.school(), []).filtered(params.filter.clone());
        // The request's cursor is for the first `subscribe`. Deliver nothing before that: the client's cursor would advance
        // past events that the client has not received.
        let receives = dialect.receives_acknowledgements(caller.access(), scope.school);
        if params.from.is_none() && receives {
            scope = scope.with_wide(characteristic::KIND);
        }
        // Acknowledgements are delivered from this position on. Read the position before the subscription starts: an
        // event committed in between is then replayed from the log.
        let service = tidings.subscriptions();
        let start = (WEBSOCKET, Some(service.here(scope.school).await?));
        let allowed = service.allow(&caller, scope)?;
        let subscription = open(tidings, &dialect, params, &caller, start, allowed, None)?;
        Ok::<_, Problem>((subscription, caller, params.from))
    };
    let opening = match accept.await {
        Ok((subscription, caller, from)) => {
            let publishing = dialect.publishes.then(|| {
                let upper = params.as_ref().is_ok_and(|params| params.upper_status);
                let (tidings, source) = (Arc::clone(tidings), source.clone());
                let commands = Commands::new(tidings, source, caller.school(), upper);
                Box::new(commands) as Box<dyn Publishing>
            });
            accepted(source, &caller, subscription, from, publishing)
        }
        Err(problem) => rejected(problem, &dialect, tidings, &source),
    };
    Ok(upgrade(
        handshake,
        tidings,
        dialect,
        params.as_ref().map_err(|_| ()),
        opening,
    ))
}

/// `/progress/ws/<job_id>`: one job, for clients that do not use channels.
#[get("/progress/ws/<job_id>")]
async fn job_progress(
    job_id: &str,
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Stream, Problem> {
    let target = Target::Subject(job::KIND, job_id);
    let dialect = Dialect::JOB_PROGRESS;
    with_channel(dialect, target, None, params, listener, handshake, tidings).await
}

/// `/ws/upload-progress`: all active jobs, or those of some types, in the form of uploads.
#[get("/ws/upload-progress")]
async fn uploads(
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Stream, Problem> {
    let (dialect, target) = (Dialect::UPLOADS, Target::Active(job::KIND));
    with_channel(dialect, target, None, params, listener, handshake, tidings).await
}

/// `/ws/upload-progress/<processing_id>`: one upload.
#[get("/ws/upload-progress/<processing_id>")]
async fn upload(
    processing_id: &str,
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Stream, Problem> {
    let target = Target::Subject(job::KIND, processing_id);
    let dialect = Dialect::UPLOADS;
    with_channel(dialect, target, None, params, listener, handshake, tidings).await
}

/// `/ws/enrollment`: a school's enrollment sessions, or one of them.
#[get("/ws/enrollment?<session_id>")]
async fn enrollments(
    session_id: Option<&str>,
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Stream, Problem> {
    let session_id = session_id.filter(|id| !id.is_empty());
    let target = match session_id {
        Some(id) => Target::Subject(enrollment::KIND, id),
        None => Target::Active(enrollment::KIND),
    };
    let mut welcome = Map::new();
    let numeric_id = || {
        let is_numeric = params
            .as_ref()
            .is_ok_and(|params| params.numeric_ids == Some(true));
        session_id.filter(|_| is_numeric).and_then(numeric_id)
    };
    let sent_id = numeric_id().map_or_else(|| session_id.into(), Value::from);
    welcome.insert("session_id".into(), sent_id);
    let dialect = Dialect::ENROLLMENTS;
    with_channel(
        dialect,
        target,
        Some(welcome),
        params,
        listener,
        handshake,
        tidings,
    )
    .await
}

/// `/ws/device-status`: a school's devices.
#[get("/ws/device-status")]
async fn device_status(
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Stream, Problem> {
    let target = Target::Active(device::KIND);
    let (dialect, welcome) = (Dialect::DEVICES, Some(Map::new()));
    with_channel(
        dialect, target, welcome, params, listener, handshake, tidings,
    )
    .await
}

/// The initial channel of an endpoint for existing clients.
enum Target<'a> {
    /// One subject. The text may not be a valid id.
    Subject(crate::id::Kind, &'a str),
    /// A collection, without the subjects that are already in a terminal state.
    Active(crate::id::Kind),
}

/// Opens a WebSocket that is subscribed to the endpoint's own channel from the start. A request that is not allowed is
/// accepted first, and then closed with an explanation.
async fn with_channel(
    dialect: Dialect,
    target: Target<'_>,
    welcome: Option<Map<String, Value>>,
    params: Result<Params, Problem>,
    listener: Listener,
    handshake: Result<MaybeHandshake, Problem>,
    tidings: &Arc<Tidings>,
) -> Result<Stream, Problem> {
    let handshake = handshake?.required()?;
    let Listener { access, source } = listener;
    let accept = async {
        let (access, params) = (access?, params.as_ref().map_err(Problem::clone)?);
        let caller = Caller::new(access, params.school)?;
        let scope =
            |channel| Scope::new(caller.school(), [channel]).filtered(params.filter.clone());
        let service = tidings.subscriptions();
        let allowed = match &target {
            Target::Active(kind) => {
                let channel = Channel::Collection(*kind);
                service.allow(&caller, scope(channel).with_active_only())?
            }
            Target::Subject(kind, id) => {
                let not_found = |_| Problem::from(kind::not_found(*kind, *id));
                let channel = Channel::Subject(*kind, id.parse().map_err(not_found)?);
                // A client with a cursor asks for every event after it, including a terminal one.
                let scope = match dialect.omits_ended && params.from.is_none() {
                    true => scope(channel).with_active_only(),
                    false => scope(channel),
                };
                service.allow_existing(&caller, scope).await?
            }
        };
        let subscription = open(
            tidings,
            &dialect,
            params,
            &caller,
            (WEBSOCKET, params.from),
            allowed,
            welcome,
        )?;
        Ok::<_, Problem>((subscription, caller))
    };
    let opening = match accept.await {
        Ok((subscription, caller)) => accepted(source, &caller, subscription, None, None),
        Err(problem) => match target {
            Target::Subject(kind, id) if problem.is(Kind::NotFound) => {
                const CODE: &str = "not_found";
                let service = tidings.subscriptions();
                service.note_rejection(Some(&source), CODE, None);
                Opening::Rejected {
                    error: Some(kind::not_found(kind, id).to_string()),
                    code: CODE,
                    close: Close::Done,
                }
            }
            _ => rejected(problem, &dialect, tidings, &source),
        },
    };
    Ok(upgrade(
        handshake,
        tidings,
        dialect,
        params.as_ref().map_err(|_| ()),
        opening,
    ))
}

/// Returns the opening of a connection whose session begins.
fn accepted(
    source: RequestSource,
    caller: &Caller,
    subscription: Subscription,
    from: Option<Cursor>,
    publishing: Option<Box<dyn Publishing>>,
) -> Opening {
    let beginning = Beginning {
        source,
        access: caller.access().clone(),
        subscription,
        from,
    };
    Opening::Accepted(Box::new(beginning), publishing)
}

/// Returns the opening of a connection that is accepted only to send the reason for its rejection.
fn rejected(
    problem: Problem,
    dialect: &Dialect,
    tidings: &Tidings,
    source: &RequestSource,
) -> Opening {
    problem.note(tidings, source);
    Opening::rejected(problem, dialect)
}

/// Upgrades the connection to a WebSocket.
fn upgrade(
    handshake: Handshake,
    tidings: &Arc<Tidings>,
    dialect: Dialect,
    params: Result<&Params, ()>,
    opening: Opening,
) -> Stream {
    let (dialect, encoding) = match params {
        Ok(params) => {
            let dialect = params.dialect(dialect);
            (dialect, params.frame_encoding(&dialect))
        }
        // Only the reason for the rejection is sent.
        Err(()) => (dialect, Encoding::new(Framing::WebSocket)),
    };
    let in_progress = handshake.in_progress();
    let is_over_tls = handshake.is_over_tls();
    Stream::Socket(handshake.accept(Handler {
        in_progress,
        is_over_tls,
        tidings: Arc::clone(tidings),
        dialect,
        encoding,
        opening,
    }))
}

/// Returns the caller and the requested channels. The channel `schools/7` also names the school.
fn channels(
    texts: &[String],
    params: &Params,
    access: Access,
    tidings: &Tidings,
) -> Result<(Caller, Vec<Channel>), Problem> {
    let max_channels = tidings.settings().channels_per_connection.get();
    if texts.is_empty() || texts.len() > max_channels {
        return Err(Problem::new(
            Kind::InvalidQuery,
            format!("a stream needs 1 to {max_channels} channels: name them as /events/<channel> or with `?channel=`"),
        )
        .of_limit("channels_per_connection"));
    }
    let mut channels = Vec::with_capacity(texts.len());
    for text in texts {
        // A channel whose id is not valid cannot exist.
        let not_found = |_| {
            Problem::new(
                Kind::NotFound,
                "this channel does not exist; channels are collections such as jobs, subjects such as jobs/42, and schools/1",
            )
        };
        channels.push(kind::channel(text).map_err(not_found)?);
    }
    let in_channel = channels.iter().find_map(|channel| match channel {
        Channel::School(school) => Some(*school),
        Channel::Collection(_) | Channel::Subject(..) => None,
    });
    let caller = Caller::new(access, params.school.or(in_channel))?;
    Ok((caller, channels))
}

/// The name of the transport, as the monitor shows it.
const WEBSOCKET: &str = "WebSocket";

fn open(
    tidings: &Tidings,
    dialect: &Dialect,
    params: &Params,
    caller: &Caller,
    (transport, from): (&'static str, Option<Cursor>),
    allowed: AllowedScope<'_>,
    welcome: Option<Map<String, Value>>,
) -> Result<Subscription, Problem> {
    let reader = Reader {
        transport,
        address: params.address,
        peer: params.peer,
        user: Arc::clone(caller.name()),
    };
    let listen = Listen {
        reader,
        from,
        tick: params.tick.unwrap_or(dialect.tick(tidings.settings())),
        welcome,
    };
    Ok(tidings.subscriptions().open(allowed, listen)?)
}
