//! The WebSocket handshake. A task spawned by the upgrade handler, rather than the handler itself, holds the
//! connection, because what the handler awaits would keep the whole request in memory.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use rocket::data::{IoHandler, IoStream};
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome, Request};
use rocket::response::{self, Responder, Response};
use rocket_ws::WebSocket;

use super::dialect::Dialect;
use super::opening::Opening;
use super::session::Session;
use super::socket::Socket;
use crate::http::credential::chosen_subprotocol;
use crate::http::problem::{Kind, Problem};
use crate::service::Tidings;
use crate::wire::Encoding;

/// A sound handshake, or nothing for a request that is none. A broken one is a problem.
pub(super) struct MaybeHandshake(pub(super) Option<Handshake>);

/// A sound handshake, not answered yet.
pub(super) struct Handshake {
    accept_key: String,
    subprotocol: Option<String>,
}

impl Handshake {
    /// Answers it; the connection is then the handler's.
    pub(super) fn accept<H>(self, handler: H) -> Box<Upgrade<H>> {
        Box::new(Upgrade {
            handshake: self,
            handler,
        })
    }
}

/// Whether the connection is to become a WebSocket. There are clients that always offer to go on with `h2c`.
pub(super) fn asks_for_websocket(request: &Request<'_>) -> bool {
    let is_websocket = |protocol: &str| protocol.trim().eq_ignore_ascii_case("websocket");
    let mut lines = request.headers().get("Upgrade");
    lines.any(|line| line.split(',').any(is_websocket))
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for MaybeHandshake {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<MaybeHandshake, Problem> {
        if !asks_for_websocket(request) {
            return Outcome::Success(MaybeHandshake(None));
        }
        let version = request.headers().get_one("Sec-WebSocket-Version");
        if version.is_some_and(|version| version != "13") {
            let problem =
                Problem::new(Kind::UnsupportedVersion, "offered is version 13 (RFC 6455)");
            return Outcome::Error((Status::new(problem.status()), problem));
        }
        match WebSocket::from_request(request).await {
            Outcome::Success(socket) => Outcome::Success(MaybeHandshake(Some(Handshake {
                accept_key: socket.accept_key().to_owned(),
                subprotocol: chosen_subprotocol(request).map(str::to_owned),
            }))),
            Outcome::Forward(_) | Outcome::Error(_) => {
                let detail = "a handshake has Connection, Upgrade, Sec-WebSocket-Version: 13 and Sec-WebSocket-Key";
                Outcome::Error((Status::BadRequest, Problem::new(Kind::BadHandshake, detail)))
            }
        }
    }
}

/// The answer that turns the connection into a WebSocket.
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
        response.upgrade("websocket", self.handler).ok()
    }
}

/// Begins a session on a connection.
pub(super) struct Handler {
    pub(super) tidings: Arc<Tidings>,
    pub(super) dialect: Dialect,
    pub(super) encoding: Encoding,
    pub(super) opening: Opening,
}

#[rocket::async_trait]
impl IoHandler for Handler {
    async fn io(self: Pin<Box<Self>>, io: IoStream) -> io::Result<()> {
        let Handler {
            tidings,
            dialect,
            encoding,
            opening,
        } = *Pin::into_inner(self);
        let socket = Socket::new(io, tidings.settings().client_message_limit_bytes);
        // Ends with the connection: by the peer, the credential, silence, or the server's stop.
        tokio::spawn(Session::new(socket, tidings, dialect, encoding, opening));
        Ok(())
    }
}
