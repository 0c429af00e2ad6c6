//! Detects handshakes over HTTP/1.0. Rocket 0.5.2 reports the version of a request only in a line of its log, at level
//! `debug`, before it routes the request. This layer reads that line and does not write it anywhere.
//!
//! If a later release of Rocket changes the line, such a handshake is answered with a 101 that opens nothing, as Rocket does
//! by default. The test `handshake::http_1_0_is_not_upgraded_but_served_what_it_can_have` would fail then.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::http::OldHandshakes;

/// The module that writes the line.
const TARGET: &str = "rocket::server";
/// How the text begins.
const BEGINNING: &[u8] = b"received request: ";
/// The longest line that is needed, in bytes: the one with the key.
const LINE_MAX_BYTES: usize = 128;

/// Returns a layer that reads only Rocket's log.
pub(super) fn layer<S>(old: OldHandshakes) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let is_of_requests = |metadata: &tracing::Metadata<'_>| {
        metadata.target() == TARGET && *metadata.level() == Level::DEBUG
    };
    Requests(old).with_filter(FilterFn::new(is_of_requests))
}

struct Requests(OldHandshakes);

impl<S: Subscriber> Layer<S> for Requests {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut reader = Reader::default();
        event.record(&mut reader);
        if let Some(key) = reader.key {
            self.0.note(&key);
        }
    }
}

/// Reads a text line by line while it is formatted. Stops the formatting as soon as nothing more is needed: usually at the version.
#[derive(Default)]
struct Reader {
    /// The beginning of the current line.
    line: Vec<u8>,
    /// Whether the text has begun as the one that is needed.
    has_begun: bool,
    is_old: bool,
    key: Option<String>,
}

impl Visit for Reader {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Fails if it was stopped.
            let _ = write!(self, "{value:?}");
        }
    }
}

impl Reader {
    /// Reads the line. Fails if nothing more is needed.
    fn end_line(&mut self) -> fmt::Result {
        let line = self.line.trim_ascii();
        let line = line.strip_suffix(b",").unwrap_or(line);
        let goes_on = if !self.has_begun {
            self.has_begun = line.starts_with(BEGINNING);
            self.has_begun
        } else if let Some(version) = line.strip_prefix(b"version: ") {
            self.is_old = version == b"HTTP/1.0";
            self.is_old
        } else {
            let key = line.strip_prefix(b"\"sec-websocket-key\": \"");
            let key = key.and_then(|key| str::from_utf8(key.strip_suffix(b"\"")?).ok());
            self.key = key.filter(|_| self.is_old).map(str::to_owned);
            self.key.is_none()
        };
        goes_on.then_some(()).ok_or(fmt::Error)
    }

    fn push(&mut self, part: &[u8]) {
        let room = LINE_MAX_BYTES - self.line.len();
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }
}

impl Write for Reader {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut lines = text.as_bytes().split(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        self.push(first);
        for line in lines {
            self.end_line()?;
            self.line.clear();
            self.push(line);
        }
        Ok(())
    }
}
