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

/// Reads the text of a request line by line while it is formatted. Stops it at the version unless that is HTTP/1.0, and as
/// soon as nothing more is needed.
#[derive(Default)]
struct Reader {
    /// The beginning of the current line.
    line: String,
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
    fn end_line(&mut self) -> fmt::Result {
        let line = std::mem::take(&mut self.line);
        let line = line.trim().trim_end_matches(',');
        if let Some(version) = line.strip_prefix("version: ") {
            self.is_old = version == "HTTP/1.0";
            return self.is_old.then_some(()).ok_or(fmt::Error);
        }
        let key = line.strip_prefix("\"sec-websocket-key\": \"");
        let key = key
            .and_then(|key| key.strip_suffix('"'))
            .filter(|_| self.is_old);
        self.key = key.map(str::to_owned);
        key.map_or(Ok(()), |_| Err(fmt::Error))
    }
}

impl Write for Reader {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if character == '\n' {
                self.end_line()?;
            } else if self.line.len() < LINE_MAX_BYTES {
                self.line.push(character);
            }
        }
        Ok(())
    }
}
