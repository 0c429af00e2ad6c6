//! Rocket without Tidings: Server-Sent Events from a body that is as simple as possible, to tell what Rocket itself costs.
//!
//! Rocket answers each request in two tasks. One reads the body into a chunk and passes the chunk through a channel, and
//! hyper's task frames and writes it. So each delivery wakes two tasks, one after the other.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use rocket::fairing::AdHoc;
use rocket::http::ContentType;
use rocket::request::Request;
use rocket::response::{self, Responder, Response};
use rocket::{State, get, post, routes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The argument that makes the program run as this server.
pub(crate) const ROCKET: &str = "be-rocket";

type Part = Arc<[u8]>;

/// The readers of each channel.
#[derive(Default)]
struct Readers(Mutex<HashMap<String, Vec<UnboundedSender<Part>>>>);

struct Events {
    parts: UnboundedReceiver<Part>,
    /// The part that is being copied, and how much of it has been copied.
    part: Option<(Part, usize)>,
}

impl AsyncRead for Events {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (part, copied) = match self.part.take() {
            Some(rest) => rest,
            None => match ready!(self.parts.poll_recv(cx)) {
                Some(part) => (part, 0),
                None => return Poll::Ready(Ok(())),
            },
        };
        let count = buffer.remaining().min(part.len() - copied);
        buffer.put_slice(&part[copied..copied + count]);
        if copied + count < part.len() {
            self.part = Some((part, copied + count));
        }
        Poll::Ready(Ok(()))
    }
}

impl<'r> Responder<'r, 'static> for Events {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        Response::build()
            .header(ContentType::EventStream)
            .streamed_body(self)
            .ok()
    }
}

#[get("/sub/<channel>")]
fn subscribe(channel: String, readers: &State<Readers>) -> Events {
    let (sender, parts) = unbounded_channel();
    let mut readers = readers.0.lock().expect("whole");
    readers.entry(channel).or_default().push(sender);
    Events { parts, part: None }
}

#[post("/pub/<channel>", data = "<json>")]
fn publish(channel: &str, json: String, readers: &State<Readers>) -> &'static str {
    let part: Part = format!("data: {json}\n\n").into_bytes().into();
    let mut readers = readers.0.lock().expect("whole");
    if let Some(readers) = readers.get_mut(channel) {
        readers.retain(|reader| reader.send(Arc::clone(&part)).is_ok());
    }
    "ok"
}

/// Runs as the server, and prints its address.
pub(crate) async fn be_rocket() {
    let config = rocket::Config {
        port: 0,
        log_level: rocket::config::LogLevel::Off,
        ..rocket::Config::release_default()
    };
    let announce = AdHoc::on_liftoff("announce", |rocket| {
        let config = rocket.config();
        println!("Rocket on http://{}:{}", config.address, config.port);
        Box::pin(async {})
    });
    let rocket = rocket::custom(config)
        .manage(Readers::default())
        .mount("/", routes![subscribe, publish])
        .attach(announce);
    rocket.launch().await.expect("it serves");
}
