//! The WebSocket handshake. The upgrade handler spawns a task that drives the connection. If the handler drove it, the whole
//! request would stay in memory.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use lru::LruCache;
use rocket::data::{IoHandler, IoStream};
use rocket::fairing::{AdHoc, Fairing};
use rocket::http::Method;
use rocket::request::{FromRequest, Outcome, Request};
use rocket::response::{self, Responder, Response};
use rocket_ws::WebSocket;

use super::connection::Connection;
use super::opening::Opening;
use super::socket::Socket;
use crate::config::{HANDSHAKE_KEY_MAX_BYTES, OLD_HANDSHAKES};
use crate::http::contract::{Operation, Part};
use crate::http::credential::{bounded, chosen_subprotocol};
use crate::http::idle_connections::{self, InProgress};
use crate::http::problem::{Kind, Problem};
use crate::service::Tidings;
use crate::session::Dialect;
use crate::wire::Encoding;

/// The result of reading a request as a WebSocket handshake. A malformed one is a [`Problem`].
pub(super) enum MaybeHandshake {
    /// The request does not ask for a WebSocket.
    None,
    /// The request asks for a WebSocket over HTTP/1.0, which has no upgrade.
    TooOld,
    /// A valid handshake.
    Sound(Handshake),
}

/// A valid handshake that is not answered yet.
pub(super) struct Handshake {
    accept_key: String,
    subprotocol: Option<String>,
    in_progress: Option<Arc<InProgress>>,
    is_over_tls: bool,
}

impl Handshake {
    /// Whether this server decrypts the connection.
    pub(super) fn is_over_tls(&self) -> bool {
        self.is_over_tls
    }

    /// Returns the guard that keeps the request in progress, for the task that drives the connection.
    pub(super) fn in_progress(&self) -> Option<Arc<InProgress>> {
        self.in_progress.clone()
    }

    /// Accepts the handshake and passes the connection to the handler.
    pub(super) fn accept<H>(self, handler: H) -> Box<Upgrade<H>> {
        Box::new(Upgrade {
            handshake: self,
            handler,
        })
    }
}

/// The nginx settings that a proxy needs for WebSockets.
const PROXY_SETTINGS: &str = "nginx: `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
     proxy_set_header Connection \"upgrade\";`";

/// The size of a handshake's key in bytes.
const KEY_BYTES: usize = 16;

/// Base64 as in RFC 6455. The bits after the last byte have no meaning, and some clients set them.
const KEY_ENGINE: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Returns the items of a list header, from all of its lines.
fn items<'r>(request: &'r Request<'_>, name: &str) -> impl Iterator<Item = &'r str> {
    let lines = request.headers().get(name);
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// Whether the request asks for a WebSocket. Some clients offer `h2c` in addition.
fn asks_for_websocket(request: &Request<'_>) -> bool {
    items(request, "Upgrade").any(|protocol| protocol.eq_ignore_ascii_case("websocket"))
}

/// Handshakes that arrived over HTTP/1.0, by their keys.
///
/// In Rocket 0.5.2, guards cannot see the HTTP version, and Rocket answers such a handshake with a 101 that opens nothing.
/// An application that knows the version, as `tidings serve` does, therefore records the key here before the request is
/// routed, and manages a clone of this as Rocket state. Otherwise a request over HTTP/1.0 is recognized only if it has no
/// `Host`, or neither the key nor the version of a handshake.
#[derive(Clone)]
pub struct OldHandshakes(Arc<Mutex<LruCache<String, ()>>>);

impl Default for OldHandshakes {
    fn default() -> OldHandshakes {
        OldHandshakes(Arc::new(Mutex::new(LruCache::new(OLD_HANDSHAKES))))
    }
}

impl OldHandshakes {
    fn keys(&self) -> MutexGuard<'_, LruCache<String, ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the `Sec-WebSocket-Key` of a request over HTTP/1.0 that is about to be routed. Ignores keys that are too long
    /// for a handshake, which is rejected anyway.
    pub fn note(&self, key: &str) {
        if key.len() <= HANDSHAKE_KEY_MAX_BYTES {
            self.keys().put(key.to_owned(), ());
        }
    }

    fn take(&self, key: &str) -> bool {
        self.keys().pop(key).is_some()
    }
}

/// A reason why the connection cannot be upgraded, even if the headers are valid. Determined before routing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    None,
    /// HTTP/1.0 has no upgrade.
    Version,
    /// A handshake must be a GET. Rocket routes a HEAD as a GET.
    Method,
}

/// Records, before routing, what guards cannot see: the original method, and whether the request arrived over HTTP/1.0.
pub(in crate::http) fn fairing() -> impl Fairing {
    AdHoc::on_request("Tidings: handshakes", |request, _| {
        let headers = request.headers();
        if !headers.contains("Upgrade") && !headers.contains("Sec-WebSocket-Key") {
            return Box::pin(async {});
        }
        let obstacle = if is_too_old(request) {
            Obstacle::Version
        } else if request.method() != Method::Get {
            Obstacle::Method
        } else {
            Obstacle::None
        };
        request.local_cache(|| obstacle);
        Box::pin(async {})
    })
}

fn obstacle(request: &Request<'_>) -> Obstacle {
    *request.local_cache(|| Obstacle::None)
}

/// Whether the request arrived over HTTP/1.0, or looks like it. HTTP/1.1 requires `Host`.
fn is_too_old(request: &Request<'_>) -> bool {
    let noted = request.rocket().state::<OldHandshakes>();
    let key = request.headers().get_one("Sec-WebSocket-Key");
    let is_noted = noted.zip(key).is_some_and(|(noted, key)| noted.take(key));
    is_noted || !request.headers().contains("Host") || has_nothing_of_a_handshake(request)
}

/// Whether both the key and the version of a handshake are missing. Such a client could not use a WebSocket.
fn has_nothing_of_a_handshake(request: &Request<'_>) -> bool {
    let headers = request.headers();
    !headers.contains("Sec-WebSocket-Key") && !headers.contains("Sec-WebSocket-Version")
}

/// Whether the request is answered as a handshake.
pub(super) fn opens_websocket(request: &Request<'_>) -> bool {
    asks_for_websocket(request) && obstacle(request) == Obstacle::None
}

fn bad(detail: impl Into<Cow<'static, str>>) -> Problem {
    Problem::new(Kind::BadHandshake, detail)
}

/// Checks what RFC 6455, 4.2.1 requires of a handshake with `Upgrade`, except for the key.
fn check(request: &Request<'_>) -> Result<(), Problem> {
    if !items(request, "Connection").any(|option| option.eq_ignore_ascii_case("upgrade")) {
        let detail = format!(
            "`Upgrade: websocket` without `Connection: Upgrade`: a proxy in between removed it; {PROXY_SETTINGS}"
        );
        return Err(bad(detail));
    }
    let mut versions = request.headers().get("Sec-WebSocket-Version");
    match (versions.next(), versions.next()) {
        (Some("13"), None) => Ok(()),
        (None, _) => Err(bad(
            "Sec-WebSocket-Version is missing: version 13 is supported (RFC 6455)",
        )),
        _ => {
            let detail = "Sec-WebSocket-Version must be 13 and appear once: no other version is supported (RFC 6455)";
            Err(Problem::new(Kind::UnsupportedVersion, detail))
        }
    }
}

/// Checks that there is exactly one key and that it is as RFC 6455, 4.1 requires.
fn check_key(request: &Request<'_>) -> Result<(), Problem> {
    let mut keys = request.headers().get("Sec-WebSocket-Key");
    match (keys.next(), keys.next()) {
        (None, _) => Err(bad("Sec-WebSocket-Key is missing")),
        (Some(_), Some(_)) => Err(bad(
            "Sec-WebSocket-Key appears more than once: a handshake has one",
        )),
        (Some(key), None) => match KEY_ENGINE.decode(key.trim()) {
            Ok(bytes) if bytes.len() == KEY_BYTES => Ok(()),
            _ => Err(bad(format!(
                "Sec-WebSocket-Key must be {KEY_BYTES} bytes in base64, such as `dGhlIHNhbXBsZSBub25jZQ==`"
            ))),
        },
    }
}

impl MaybeHandshake {
    async fn read(request: &Request<'_>) -> Result<MaybeHandshake, Problem> {
        bounded(request)?;
        if !asks_for_websocket(request) {
            if request.headers().contains("Sec-WebSocket-Key") {
                let detail = format!(
                    "Sec-WebSocket-Key without `Upgrade: websocket`: a proxy in between removed Upgrade; \
                     {PROXY_SETTINGS}"
                );
                return Err(bad(detail));
            }
            return Ok(MaybeHandshake::None);
        }
        match obstacle(request) {
            Obstacle::None => {}
            Obstacle::Version => return Ok(MaybeHandshake::TooOld),
            Obstacle::Method => return Ok(MaybeHandshake::None),
        }
        check(request)?;
        check_key(request)?;
        let Outcome::Success(socket) = WebSocket::from_request(request).await else {
            return Err(bad("this is not a WebSocket handshake (RFC 6455)"));
        };
        Ok(MaybeHandshake::Sound(Handshake {
            accept_key: socket.accept_key().to_owned(),
            subprotocol: chosen_subprotocol(request).map(str::to_owned),
            in_progress: idle_connections::in_progress(request),
            is_over_tls: request.rocket().config().tls_enabled(),
        }))
    }

    /// Returns the handshake, if there is one that can be accepted.
    pub(super) fn sound(self) -> Option<Handshake> {
        match self {
            MaybeHandshake::Sound(handshake) => Some(handshake),
            MaybeHandshake::None | MaybeHandshake::TooOld => None,
        }
    }

    /// Returns the handshake, for an endpoint that serves only WebSockets.
    pub(super) fn required(self) -> Result<Handshake, Problem> {
        match self {
            MaybeHandshake::Sound(handshake) => Ok(handshake),
            MaybeHandshake::TooOld => Err(bad(format!(
                "a WebSocket needs HTTP/1.1, and the request came over HTTP/1.0 from a proxy in between; \
                 {PROXY_SETTINGS}"
            ))),
            MaybeHandshake::None => Err(bad(
                "this is a WebSocket endpoint: open it with `ws://` or `wss://`. /events/… delivers the same over \
                 Server-Sent Events and long poll",
            )),
        }
    }
}

impl Part for MaybeHandshake {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers_empty(
            101,
            "A WebSocket, whose messages `/asyncapi.json` describes.",
        );
        operation.fails(&[
            Kind::BadHandshake,
            Kind::UnsupportedVersion,
            Kind::HeadersTooLarge,
        ]);
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for MaybeHandshake {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<MaybeHandshake, Problem> {
        Problem::outcome(MaybeHandshake::read(request).await)
    }
}

/// The response that upgrades the connection to a WebSocket.
pub(super) struct Upgrade<H> {
    handshake: Handshake,
    handler: H,
}

impl<'r, H: IoHandler + 'static> Responder<'r, 'static> for Upgrade<H> {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        let mut response = Response::build();
        response
            .raw_header("Sec-WebSocket-Version", "13")
            .raw_header("Sec-WebSocket-Accept", self.handshake.accept_key);
        if let Some(subprotocol) = self.handshake.subprotocol {
            response.raw_header("Sec-WebSocket-Protocol", subprotocol);
        }
        response
            // Rocket sends the length of an empty body, which a 101 must not have (RFC 9110, 8.6): HTTP/2 bridges reject it.
            // It does not know the length of a streamed body.
            .streamed_body(tokio::io::empty())
            .upgrade("websocket", self.handler)
            .ok()
    }
}

/// Begins the session on an upgraded connection.
pub(super) struct Handler {
    pub(super) tidings: Arc<Tidings>,
    pub(super) dialect: Dialect,
    pub(super) encoding: Encoding,
    pub(super) opening: Opening,
    pub(super) in_progress: Option<Arc<InProgress>>,
    pub(super) is_over_tls: bool,
}

#[rocket::async_trait]
impl IoHandler for Handler {
    async fn io(self: Pin<Box<Self>>, io: IoStream) -> io::Result<()> {
        let Handler {
            tidings,
            dialect,
            encoding,
            opening,
            in_progress,
            is_over_tls,
        } = *Pin::into_inner(self);
        let message_limit = tidings.settings().client_message_limit_bytes.get();
        let socket = Socket::new(io, message_limit, is_over_tls);
        // The task ends when the peer closes or is silent, when the credential expires, or when the server stops.
        let service = Arc::clone(tidings.subscriptions());
        let end = tidings.tasks().token().clone();
        let mut connection = Connection::new(socket, service, dialect, encoding, opening, end);
        connection.keeps(in_progress);
        tidings.tasks().spawn_observer("websocket", connection);
        Ok(())
    }
}
