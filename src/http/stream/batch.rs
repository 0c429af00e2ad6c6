//! `POST /api/batch?stream=1`: one command per line, and one result per line while the request is still being sent.
//!
//! The body of the response owns the body of the request: both borrow from the request, which lives until the response
//! is sent. Rocket sends the response's head as soon as the handler returns, and hyper receives and sends at the same
//! time. But Rocket calls the handler only after it has read the first 14 bytes of the body.
//!
//! Each line is answered after its commit, in order. An invalid line does not end the stream. A line of the response with a
//! `type` is about the stream itself: a `heartbeat` while there is nothing to answer, and `closing`, which is always the
//! last line.
//!
//! The stream counts as an open stream, with a subscription that has no channels. So the limits on open streams, the
//! check for dead peers and heartbeats apply to it, and it ends when the credential expires or the server stops. Lines
//! that are being committed then are still answered; all later lines have no effect.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rocket::Request;
use rocket::data::DataStream;
use rocket::http::ContentType;
use rocket::request::{FromRequest, Outcome};
use rocket::response::{self, Responder};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::event_source::{Outgoing, Parts, poll_fill, streamed};
use crate::alarm::Alarm;
use crate::app::{Caller, Listen};
use crate::config::{CLOSE_WAIT, PIPELINE_END_WAIT, SOCKET_READ_BYTES};
use crate::http::body::{IdempotencyKey, Unread, UpperStatus, upper_status};
use crate::http::contract::{Operation, Part};
use crate::http::credential::query;
use crate::http::forwarded::client_address;
use crate::http::lines::{Line, LineReader, too_long};
use crate::http::parameters::{STATUS_CASE, STREAMED};
use crate::http::pipeline::Pipeline;
use crate::http::problem::{Kind, Problem};
use crate::hub::Reader;
use crate::rejections::RequestSource;
use crate::scope::Scope;
use crate::service::Tidings;
use crate::subscribe::{Delivery, Subscription};
use crate::wire::{Close, Control};

/// The name of the transport, as the monitor shows it.
const TRANSPORT: &str = "batch stream";

/// The client of a request with `?stream=1`.
pub(in crate::http) struct StreamingClient {
    /// The client's address, if it is known.
    address: Option<IpAddr>,
    /// The other end of the TCP connection.
    peer: Option<SocketAddr>,
}

/// How the results of a batch are sent.
pub(in crate::http) struct ResultsForm {
    /// Whether to write `status` in upper case.
    pub(in crate::http) upper: bool,
    /// `?stream=1`: results are sent while the request is still being sent.
    pub(in crate::http) streaming: Option<StreamingClient>,
}

impl Part for ResultsForm {
    fn describe(operation: &mut Operation<'_>) {
        operation.queries([&STREAMED, &STATUS_CASE]);
        operation.fails(&[Kind::InvalidQuery]);
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for ResultsForm {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<ResultsForm, Problem> {
        Problem::outcome(results_form(request))
    }
}

fn results_form(request: &Request<'_>) -> Result<ResultsForm, Problem> {
    let UpperStatus(upper) = upper_status(request)?;
    let streaming = match query(request, "stream") {
        None | Some("0") => None,
        Some("1") => Some(StreamingClient {
            address: client_address(request),
            peer: super::params::peer(request),
        }),
        Some(_) => {
            let detail = "`stream` must be 0 or 1";
            return Err(Problem::new(Kind::InvalidQuery, detail));
        }
    };
    Ok(ResultsForm { upper, streaming })
}

/// The body of the response.
pub(in crate::http) struct BatchStream<'r> {
    caller: Caller,
    /// The idempotency key of the request, from which the key of each line is derived.
    key: IdempotencyKey,
    input: Input<'r>,
    /// The number of lines so far.
    count: usize,
    pipeline: Pipeline,
    subscription: Subscription,
    phase: Phase,
    outgoing: Outgoing,
}

enum Phase {
    Open,
    /// Sends the remaining answers until this time at the latest, and then this message.
    Closing(Box<Control>, Alarm),
    /// The client may not have noticed the end, so its input is discarded for a while. If a connection is closed while
    /// input is unread, it is reset, and the client may lose the last lines of the response.
    Draining(Alarm),
}

impl<'r> BatchStream<'r> {
    pub(in crate::http) fn open(
        tidings: &Arc<Tidings>,
        caller: Caller,
        client: StreamingClient,
        (source, upper): (RequestSource, bool),
        key: IdempotencyKey,
        body: Unread<'r>,
    ) -> Result<Box<BatchStream<'r>>, Problem> {
        let listen = Listen {
            reader: Reader {
                transport: TRANSPORT,
                address: client.address,
                peer: client.peer,
                user: Arc::clone(caller.name()),
            },
            from: None,
            tick: std::time::Duration::ZERO,
            welcome: None,
        };
        let nothing = Scope::new(caller.school(), []);
        let service = tidings.subscriptions();
        let subscription = service.open(service.allow(&caller, nothing)?, listen)?;
        let limit = tidings.settings().client_message_limit_bytes.get();
        Ok(Box::new(BatchStream {
            caller,
            key,
            input: Input {
                body: body.stream(),
                lines: LineBuffer::new(limit),
                has_ended: false,
            },
            count: 0,
            pipeline: Pipeline::new(Arc::clone(tidings), source, upper),
            subscription,
            phase: Phase::Open,
            outgoing: Outgoing::default(),
        }))
    }

    /// Passes on the lines that have arrived, as long as there is room.
    fn take_lines(&mut self) {
        while self.pipeline.has_room()
            && let Some(found) = self.input.lines.next()
        {
            self.count += 1;
            let limit = (self.input.lines.limit as u64, "client_message_limit_bytes");
            let reader = LineReader {
                access: self.caller.access(),
                named: Some(self.caller.school()),
            };
            let (line, bytes) = match found {
                Found::Line(range) => {
                    let bytes = &self.input.lines.bytes[range];
                    let key = self.key.of_command(self.count, bytes);
                    (reader.read(bytes, limit, key), bytes.len())
                }
                Found::TooLong => {
                    let line = Line {
                        school: Some(self.caller.school()),
                        asked: Err(too_long(limit)),
                    };
                    (line, 0)
                }
            };
            let prefix = format!(r#"{{"line":{},"#, self.count).into_bytes();
            self.pipeline
                .push(self.caller.access(), prefix, bytes, line);
        }
    }

    /// Checks whether the stream itself has a line to send. Returns the line, or begins to close.
    fn poll_stream(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Vec<u8>> {
        while let Phase::Open = self.phase {
            match ready!(self.subscription.poll_delivery(cx, now)) {
                Some(Delivery::Control(control @ Control::Closing { .. })) => {
                    // Commands that are being committed are answered. Later ones have no effect.
                    self.pipeline.stop();
                    self.close(control);
                }
                Some(Delivery::Control(control)) => return Poll::Ready(control.json()),
                // There are no events, because the subscription has no channels.
                Some(Delivery::Event(_)) => {}
                None => self.close(self.subscription.closing(Close::Done)),
            }
        }
        Poll::Pending
    }

    fn close(&mut self, control: Control) {
        let until = Alarm::at(Instant::now() + PIPELINE_END_WAIT);
        self.phase = Phase::Closing(Box::new(control), until);
    }

    /// Returns the next line of the response, or none at its end.
    fn poll_line(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Vec<u8>>> {
        loop {
            if let Poll::Ready(line) = self.poll_stream(cx, now) {
                return Poll::Ready(Some(line));
            }
            if let Phase::Open = self.phase {
                self.take_lines();
            }
            let answer = self.pipeline.poll_answer(cx, self.caller.access());
            if let Poll::Ready(Some(answer)) = answer {
                return Poll::Ready(Some(answer));
            }
            match &mut self.phase {
                Phase::Open if self.input.has_ended => {
                    // The client waits for the answers to everything that it has sent.
                    if answer.is_pending() {
                        return Poll::Pending;
                    }
                    self.close(self.subscription.closing(Close::Done));
                }
                Phase::Open if !self.pipeline.has_room() => return Poll::Pending,
                Phase::Open => match ready!(self.input.poll_read(cx)) {
                    Ok(0) => {
                        self.input.lines.extend(b"\n");
                        self.input.has_ended = true;
                    }
                    Ok(_) => {}
                    // The client has left.
                    Err(_) => return Poll::Ready(None),
                },
                Phase::Closing(control, until) => {
                    if answer.is_pending() && !until.poll(cx, now) {
                        return Poll::Pending;
                    }
                    let line = control.json();
                    let until = Alarm::at(Instant::now() + CLOSE_WAIT);
                    self.phase = Phase::Draining(until);
                    return Poll::Ready(Some(line));
                }
                Phase::Draining(until) => {
                    if until.poll(cx, now) {
                        return Poll::Ready(None);
                    }
                    match ready!(self.input.poll_read(cx)) {
                        Ok(read) if read > 0 => self.input.lines.clear(),
                        Ok(_) | Err(_) => return Poll::Ready(None),
                    }
                }
            }
        }
    }
}

impl Parts for BatchStream<'_> {
    fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    fn poll_part(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Arc<[u8]>>> {
        self.poll_line(cx, now).map(|line| {
            line.map(|mut line| {
                line.push(b'\n');
                line.into()
            })
        })
    }
}

impl AsyncRead for BatchStream<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let now = Instant::now();
        self.subscription.end_if_expired_by(now);
        poll_fill(&mut *self, cx, now, buffer)
    }
}

impl<'r> Responder<'r, 'r> for Box<BatchStream<'r>> {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'r> {
        streamed(ContentType::new("application", "x-ndjson"), self)
    }
}

/// The body of the request.
struct Input<'r> {
    body: DataStream<'r>,
    lines: LineBuffer,
    has_ended: bool,
}

impl Input<'_> {
    /// Reads some bytes, and returns their number: 0 at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut bytes = [0; SOCKET_READ_BYTES];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.body).poll_read(cx, &mut buffer))?;
        self.lines.extend(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

/// Received bytes, which are split into lines. Holds at most one incomplete line, up to `limit`, and one read.
struct LineBuffer {
    limit: usize,
    bytes: Vec<u8>,
    /// Where the next line begins.
    begin: usize,
    /// No line after `begin` ends before this position.
    scanned: usize,
    /// The line has exceeded the limit. Its rest is ignored.
    skips: bool,
}

enum Found {
    /// A line at this place, without white space around it, and not empty.
    Line(Range<usize>),
    /// A line that has exceeded the limit. Its end may not have arrived yet.
    TooLong,
}

impl LineBuffer {
    fn new(limit: usize) -> LineBuffer {
        LineBuffer {
            limit,
            bytes: Vec::new(),
            begin: 0,
            scanned: 0,
            skips: false,
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.begin);
        self.scanned -= self.begin;
        self.begin = 0;
        self.bytes.extend_from_slice(bytes);
    }

    fn clear(&mut self) {
        self.bytes = Vec::new();
        (self.begin, self.scanned) = (0, 0);
    }

    fn next(&mut self) -> Option<Found> {
        loop {
            let unscanned = &self.bytes[self.scanned..];
            let Some(length) = unscanned.iter().position(|byte| *byte == b'\n') else {
                self.scanned = self.bytes.len();
                let is_too_long = self.scanned - self.begin > self.limit;
                if self.skips || is_too_long || self.begin == self.scanned {
                    // An idle stream keeps no buffer.
                    self.clear();
                }
                let is_new = is_too_long && !self.skips;
                self.skips |= is_too_long;
                return is_new.then_some(Found::TooLong);
            };
            let line = self.begin..self.scanned + length;
            self.begin = line.end + 1;
            self.scanned = self.begin;
            if std::mem::take(&mut self.skips) {
                continue;
            }
            let text = &self.bytes[line.clone()];
            let begin = line.start + (text.len() - text.trim_ascii_start().len());
            let line = begin..begin + text.trim_ascii().len();
            if !line.is_empty() {
                return Some(Found::Line(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what is found in `text` if it arrives in pieces of this size.
    fn found(text: &str, limit: usize, piece: usize) -> Vec<Option<String>> {
        let mut lines = LineBuffer::new(limit);
        let mut all = Vec::new();
        for bytes in text.as_bytes().chunks(piece).chain([b"\n".as_slice()]) {
            lines.extend(bytes);
            while let Some(found) = lines.next() {
                all.push(match found {
                    Found::Line(range) => {
                        Some(String::from_utf8(lines.bytes[range].to_vec()).unwrap())
                    }
                    Found::TooLong => None,
                });
            }
        }
        all
    }

    #[test]
    fn lines_are_found_however_they_arrive() {
        let text = "one\r\n\n  two  \n \nthree";
        for piece in 1..=text.len() {
            let expected = ["one", "two", "three"].map(|line| Some(line.to_owned()));
            assert_eq!(found(text, 10, piece), expected, "{piece}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_found_once_and_not_kept() {
        let text = format!("a\n{}\nb\n", "x".repeat(100));
        for piece in 1..10 {
            let expected = [Some("a".to_owned()), None, Some("b".to_owned())];
            assert_eq!(found(&text, 20, piece), expected, "{piece}");
        }
        let mut lines = LineBuffer::new(20);
        for _ in 0..1_000 {
            lines.extend(b"xxxxxxxxxx");
            let _ = lines.next();
            assert!(lines.bytes.len() <= 30);
        }
    }
}
