//! The parameters of a stream, from the query and the headers.

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
use crate::http::contract::{Operation, Part};
use crate::http::credential::{bounded, named_school, query};
use crate::http::forwarded::client_address;
use crate::http::listing::filters;
use crate::http::parameters::{EXAMPLE_CURSOR, STREAM};
use crate::http::problem::{Kind, Problem};
use crate::id::{Cursor, SchoolId};
use crate::scope::Filter;
use crate::session::Dialect;
use crate::wire::form::Form;
use crate::wire::{Encoding, Framing};

/// The transport for a request that is not a WebSocket handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    EventSource,
    Poll,
}

/// The parameters of a stream.
#[derive(Debug)]
pub(super) struct Params {
    /// `Accept`.
    pub(super) transport: Transport,
    /// The client's address, if it is known.
    pub(super) address: Option<IpAddr>,
    /// The other end of the TCP connection.
    pub(super) peer: Option<SocketAddr>,
    /// `?channel=`, repeatable.
    pub(super) channels: Vec<String>,
    /// `?school_id=`.
    pub(super) school: Option<SchoolId>,
    /// The cursor to resume from: see [`resumed_from`].
    pub(super) from: Option<Cursor>,
    /// `?tick_ms=`.
    pub(super) tick: Option<Duration>,
    /// `?status=` and `?job_type=`, repeatable.
    pub(super) filter: Filter,
    /// `?status_case=`, or else the setting.
    pub(super) upper_status: bool,
    /// `?shape=`.
    pub(super) form: Option<Form>,
    /// `?id_type=`: whether ids that are plain decimal integers are sent as numbers.
    pub(super) numeric_ids: Option<bool>,
    /// `?max_event_bytes=`.
    pub(super) max_event_bytes: Option<u32>,
    /// `?heartbeat=message`: whether a `heartbeat` message accompanies each ping of a WebSocket.
    pub(super) heartbeat_message: bool,
    /// `?ids=`, repeatable: single subjects of the collection in the path.
    pub(super) ids: Vec<String>,
    /// `?named=1`.
    pub(super) named: bool,
    /// `?padding=`, in bytes.
    pub(super) padding: usize,
    /// `?wait=`.
    pub(super) wait: Duration,
}

impl Params {
    /// Returns the encoding of an SSE stream.
    pub(super) fn sse_encoding(&self) -> Encoding {
        let framing = if self.named {
            Framing::SseNamed
        } else {
            Framing::Sse
        };
        self.encoding(framing, Form::Standard)
    }

    /// Returns an endpoint's dialect with the changes that the request asks for.
    pub(super) fn dialect(&self, dialect: Dialect) -> Dialect {
        let mut asked = dialect;
        asked.heartbeat_message = self.heartbeat_message;
        asked.numeric_ids = self.numeric_ids.or(dialect.numeric_ids);
        asked
    }

    /// Returns the encoding of events on a WebSocket of this dialect.
    pub(super) fn frame_encoding(&self, dialect: &Dialect) -> Encoding {
        Encoding {
            numeric_ids: dialect.numeric_ids.unwrap_or(false),
            ..self.encoding(Framing::WebSocket, dialect.form)
        }
    }

    /// Returns the encoding that the request asks for, with `form` as the default. Uploads have only one form.
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

impl Part for Params {
    fn describe(operation: &mut Operation<'_>) {
        operation.queries(STREAM);
        let schema = serde_json::json!({ "type": "string", "examples": [EXAMPLE_CURSOR] });
        let about = "The cursor to resume from. One that this server did not issue is answered with a `reset`.";
        operation.parameter("header", "Last-Event-ID", false, about, schema);
        operation.fails(&[
            Kind::InvalidQuery,
            Kind::InvalidCursor,
            Kind::InvalidHeader,
            Kind::HeadersTooLarge,
        ]);
    }
}

fn params(request: &Request<'_>) -> Result<Params, Problem> {
    bounded(request)?;
    let invalid = |detail: String| Problem::new(Kind::InvalidQuery, detail);
    let number = |name: &str, max: u64| -> Result<Option<u64>, Problem> {
        let Some(text) = query(request, name) else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|number| *number <= max);
        number
            .map(Some)
            .ok_or_else(|| invalid(format!("`{name}` must be an integer from 0 to {max}")))
    };
    let (statuses, job_types) = filters(request)?;
    let UpperStatus(upper_status) = upper_status(request)?;
    let named = match query(request, "named") {
        None | Some("0") => false,
        Some("1") => true,
        Some(_) => return Err(invalid("`named` must be 0 or 1".into())),
    };
    let form = match query(request, "shape") {
        None => None,
        Some("enveloped") => Some(Form::Standard),
        Some("flat") => Some(Form::Flat),
        Some(_) => return Err(invalid("`shape` must be enveloped or flat".into())),
    };
    let numeric_ids = match query(request, "id_type") {
        None => None,
        Some("number") => Some(true),
        Some("string") => Some(false),
        Some(_) => return Err(invalid("`id_type` must be number or string".into())),
    };
    let heartbeat_message = match query(request, "heartbeat") {
        None | Some("ping") => false,
        Some("message") => true,
        Some(_) => return Err(invalid("`heartbeat` must be ping or message".into())),
    };
    let max_event_bytes = match query(request, "max_event_bytes").map(str::parse::<usize>) {
        None => None,
        Some(Ok(max_bytes)) if max_bytes >= EVENT_LIMIT_MIN_BYTES => {
            // No event is larger than that.
            Some(max_bytes.try_into().unwrap_or(u32::MAX))
        }
        Some(_) => {
            let detail =
                format!("`max_event_bytes` must be an integer of at least {EVENT_LIMIT_MIN_BYTES}");
            return Err(invalid(detail));
        }
    };
    let ids: Vec<String> = request
        .query_fields()
        .filter(|field| field.name == "ids")
        .flat_map(|field| field.value.split(','))
        .map(str::to_owned)
        .collect();
    let padding = number("padding", PADDING_MAX_BYTES as u64)?.unwrap_or(0);
    Ok(Params {
        transport: transport(request)?,
        address: client_address(request),
        peer: peer(request),
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

/// Returns the other end of the TCP connection.
pub(super) fn peer(request: &Request<'_>) -> Option<SocketAddr> {
    let peer = request.remote()?;
    // Remove the scope of a link-local address: the kernel's list of connections does not contain it.
    Some(SocketAddr::new(peer.ip(), peer.port()))
}

/// Returns the cursor to resume from. In order of precedence: the `Last-Event-ID` header, which an `EventSource` sends when
/// it reconnects; `?lastEventId=` or `?last-event-id=`, which polyfills send instead; `?cursor=`.
///
/// A client cannot change the `Last-Event-ID` that an earlier server at this address gave it. A foreign id is therefore not
/// an error, but names an event that is not in this log. In `?cursor=`, which the client sets itself, it is an error.
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

/// Reads `Accept`; none if it is malformed. Limits its length, because Rocket parses it in quadratic time and memory.
fn accepted(request: &Request<'_>) -> Result<Option<Accept>, Problem> {
    let lines: Vec<&str> = request.headers().get("Accept").collect();
    let bytes: usize = lines.iter().map(|line| line.len()).sum();
    if bytes > ACCEPT_MAX_BYTES {
        let detail = format!("`Accept` has {bytes} bytes; at most {ACCEPT_MAX_BYTES} are accepted");
        return Err(Problem::new(Kind::InvalidHeader, detail));
    }
    Ok(lines.join(", ").parse().ok())
}

/// Returns the transport that `Accept` prefers, with SSE as the default. A named type takes precedence over one that only
/// a wildcard matches: a client that sends `application/json, */*` expects a single answer, not a stream.
fn transport(request: &Request<'_>) -> Result<Transport, Problem> {
    if opens_websocket(request) {
        // A WebSocket handshake: its `Accept` does not matter.
        return Ok(Transport::EventSource);
    }
    let Some(accept) = accepted(request)? else {
        return Ok(Transport::EventSource);
    };
    let preference = |wanted: &MediaType| {
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
    let (stream, json) = (
        preference(&MediaType::EventStream),
        preference(&MediaType::JSON),
    );
    if stream.0 == 0.0 && json.0 == 0.0 {
        let detail = "`Accept` must allow text/event-stream or application/json, or the request must open a WebSocket";
        return Err(Problem::new(Kind::NotAcceptable, detail));
    }
    Ok(if json > stream {
        Transport::Poll
    } else {
        Transport::EventSource
    })
}
