//! What a stream's query and headers ask for.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rocket::http::{Accept, MediaType};
use rocket::request::{FromRequest, Outcome, Request};

use super::handshake::opens_websocket;
use crate::config::{
    ACCEPT_MAX_BYTES, EVENT_LIMIT_MIN_BYTES, PADDING_MAX_BYTES, POLL_WAIT_DEFAULT_SECS,
    POLL_WAIT_MAX_SECS, TICK_MAX_MS,
};
use crate::http::body::{UpperStatus, upper_status};
use crate::http::credential::{bounded, named_school, query};
use crate::http::forwarded::client_address;
use crate::http::problem::{Kind, Problem};
use crate::http::subjects::filters;
use crate::id::{Cursor, SchoolId};
use crate::scope::Filter;
use crate::session::Dialect;
use crate::wire::form::Form;
use crate::wire::{Encoding, Framing};

/// How to answer a request that is not a WebSocket handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    EventSource,
    Poll,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Params {
    /// `Accept`.
    pub(super) transport: Transport,
    /// Where the request comes from, as far as that is known.
    pub(super) address: Option<IpAddr>,
    /// The other end of its connection.
    pub(super) peer: Option<SocketAddr>,
    /// `?channel=`, repeatable.
    pub(super) channels: Vec<String>,
    /// `?school_id=`.
    pub(super) school: Option<SchoolId>,
    /// Where to go on: see [`resumed_from`].
    pub(super) from: Option<Cursor>,
    /// `?tick_ms=`.
    pub(super) tick: Option<Duration>,
    /// `?status=` and `?job_type=`, repeatable.
    pub(super) filter: Filter,
    /// `?status_case=`, or else the setting.
    pub(super) upper_status: bool,
    /// `?shape=`.
    pub(super) form: Option<Form>,
    /// `?id_type=`: whether ids that are plain decimal integers are numbers.
    pub(super) numeric_ids: Option<bool>,
    /// `?max_event_bytes=`.
    pub(super) max_event_bytes: Option<usize>,
    /// `?heartbeat=message`: a WebSocket gets a `heartbeat` message with each ping.
    pub(super) heartbeat_message: bool,
    /// `?ids=`, which names single subjects of a collection.
    pub(super) ids: Option<Vec<String>>,
    /// `?named=1`.
    pub(super) named: bool,
    /// `?padding=`, in bytes.
    pub(super) padding: usize,
    /// `?wait=`.
    pub(super) wait: Duration,
}

impl Params {
    /// The encoding of an SSE stream.
    pub(super) fn sse_encoding(&self) -> Encoding {
        let framing = if self.named {
            Framing::SseNamed
        } else {
            Framing::Sse
        };
        self.encoding(framing, Form::Standard)
    }

    /// The dialect of an endpoint with what the request asks for.
    pub(super) fn dialect(&self, own: Dialect) -> Dialect {
        let mut asked = own;
        asked.heartbeat_message = self.heartbeat_message;
        asked.numeric_ids = self.numeric_ids.or(own.numeric_ids);
        asked
    }

    /// How events are encoded on a WebSocket of this dialect.
    pub(super) fn frame_encoding(&self, dialect: &Dialect) -> Encoding {
        Encoding {
            numeric_ids: dialect.numeric_ids.unwrap_or(false),
            ..self.encoding(Framing::WebSocket, dialect.form)
        }
    }

    /// The encoding that is asked for, in this form if none is. Uploads have but one.
    pub(super) fn encoding(&self, framing: Framing, form: Form) -> Encoding {
        let asked = self.form.filter(|_| form != Form::Upload);
        Encoding {
            framing,
            form: asked.unwrap_or(form),
            upper_status: self.upper_status,
            numeric_ids: self.numeric_ids.unwrap_or(false),
            max_event_bytes: self.max_event_bytes,
        }
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Params {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Params, Problem> {
        Problem::outcome(params(request))
    }
}

fn params(request: &Request<'_>) -> Result<Params, Problem> {
    bounded(request)?;
    let invalid = |detail: String| Problem::new(Kind::InvalidQuery, detail);
    let number = |name: &str, most: u64| -> Result<Option<u64>, Problem> {
        let Some(text) = query(request, name) else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|number| *number <= most);
        number
            .map(Some)
            .ok_or_else(|| invalid(format!("`{name}` is a whole number from 0 to {most}")))
    };
    let (statuses, job_types) = filters(request)?;
    let UpperStatus(upper_status) = upper_status(request)?;
    let named = match query(request, "named") {
        None | Some("0") => false,
        Some("1") => true,
        Some(_) => return Err(invalid("`named` is 0 or 1".into())),
    };
    let form = match query(request, "shape") {
        None => None,
        Some("enveloped") => Some(Form::Standard),
        Some("flat") => Some(Form::Flat),
        Some(_) => return Err(invalid("`shape` is enveloped or flat".into())),
    };
    let numeric_ids = match query(request, "id_type") {
        None => None,
        Some("number") => Some(true),
        Some("string") => Some(false),
        Some(_) => return Err(invalid("`id_type` is number or string".into())),
    };
    let heartbeat_message = match query(request, "heartbeat") {
        None | Some("ping") => false,
        Some("message") => true,
        Some(_) => return Err(invalid("`heartbeat` is ping or message".into())),
    };
    let max_event_bytes = match query(request, "max_event_bytes").map(str::parse::<usize>) {
        None => None,
        Some(Ok(most)) if most >= EVENT_LIMIT_MIN_BYTES => Some(most),
        Some(_) => {
            let detail =
                format!("`max_event_bytes` is a whole number of {EVENT_LIMIT_MIN_BYTES} or more");
            return Err(invalid(detail));
        }
    };
    let ids = query(request, "ids").map(|ids| ids.split(',').map(str::to_owned).collect());
    let padding = number("padding", PADDING_MAX_BYTES as u64)?.unwrap_or(0);
    Ok(Params {
        transport: transport(request)?,
        address: client_address(request),
        // Without the scope of an IPv6 address, which the kernel does not tell of a connection either.
        peer: request
            .remote()
            .map(|peer| SocketAddr::new(peer.ip(), peer.port())),
        channels: request
            .query_fields()
            .filter(|field| field.name == "channel")
            .map(|field| field.value.to_owned())
            .collect(),
        school: named_school(request)?,
        from: resumed_from(request)?,
        tick: number("tick_ms", TICK_MAX_MS)?.map(Duration::from_millis),
        filter: Filter {
            categories: job_types.into_iter().collect(),
            statuses: statuses.into_iter().map(str::to_owned).collect(),
        },
        upper_status,
        form,
        numeric_ids,
        max_event_bytes,
        heartbeat_message,
        ids,
        named,
        padding: usize::try_from(padding).unwrap_or(PADDING_MAX_BYTES),
        wait: Duration::from_secs(
            number("wait", POLL_WAIT_MAX_SECS)?.unwrap_or(POLL_WAIT_DEFAULT_SECS),
        ),
    })
}

/// The `Last-Event-ID` header, which an `EventSource` sends when it reconnects; else `?lastEventId=` or
/// `?last-event-id=`, which polyfills send in its place; else `?cursor=`.
///
/// A client cannot help what an earlier server at this address gave it as `Last-Event-ID`, so an id that is not ours is
/// no error: it names an event that this log does not have. Only `?cursor=` is the client's own word.
pub(in crate::http) fn resumed_from(request: &Request<'_>) -> Result<Option<Cursor>, Problem> {
    let header = request.headers().get_one("Last-Event-ID");
    let last_event_id = [
        header,
        query(request, "lastEventId"),
        query(request, "last-event-id"),
    ];
    let given = |text: &&str| !text.is_empty();
    if let Some(id) = last_event_id.into_iter().flatten().find(given) {
        return Ok(Some(id.parse().unwrap_or(Cursor::FOREIGN)));
    }
    let cursor = query(request, "cursor").filter(given);
    Ok(cursor.map(str::parse).transpose()?)
}

/// What `Accept` says, if it can be read. Rocket's own reading takes time and memory with the square of its length.
fn accepted(request: &Request<'_>) -> Result<Option<Accept>, Problem> {
    let lines: Vec<&str> = request.headers().get("Accept").collect();
    let bytes: usize = lines.iter().map(|line| line.len()).sum();
    if bytes > ACCEPT_MAX_BYTES {
        let detail = format!("`Accept` has {bytes} bytes; at most {ACCEPT_MAX_BYTES} are read");
        return Err(Problem::new(Kind::InvalidHeader, detail));
    }
    Ok(lines.join(", ").parse().ok())
}

/// The transport that the `Accept` header likes best; SSE if it does not care. One that is named goes before
/// one that only a wildcard lets in: `application/json, */*` is somebody who wants an answer, not a stream.
fn transport(request: &Request<'_>) -> Result<Transport, Problem> {
    if opens_websocket(request) {
        // A handshake; what it accepts otherwise does not matter.
        return Ok(Transport::EventSource);
    }
    let Some(accept) = accepted(request)? else {
        return Ok(Transport::EventSource);
    };
    let liking = |wanted: &MediaType| {
        let fits = |range: &MediaType| {
            (range.top() == wanted.top() || range.top() == "*")
                && (range.sub() == wanted.sub() || range.sub() == "*")
        };
        // The most specific range decides (RFC 9110, 12.5.1).
        let best = accept
            .iter()
            .filter(|range| fits(range.media_type()))
            .max_by_key(|range| range.specificity());
        best.map_or((0.0, 0), |range| {
            (range.weight_or(1.0), range.specificity())
        })
    };
    let (stream, json) = (liking(&MediaType::EventStream), liking(&MediaType::JSON));
    if stream.0 == 0.0 && json.0 == 0.0 {
        let detail = "offered are text/event-stream, application/json and WebSocket";
        return Err(Problem::new(Kind::NotAcceptable, detail));
    }
    Ok(if json > stream {
        Transport::Poll
    } else {
        Transport::EventSource
    })
}
