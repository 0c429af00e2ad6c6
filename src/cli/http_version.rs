//! Which handshakes come over HTTP/1.0: Rocket 0.5.2 tells the version of a request nowhere but in a line of its log,
//! at the level `debug`, which it writes before the request is routed. The line is read here and not written anywhere.
//!
//! Should another release of Rocket write it differently, such a handshake is answered with a 101 that opens nothing, as
//! Rocket does by itself: the test `handshake::http_1_0_is_not_upgraded_but_served_what_it_can_have` would notice.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::http::OldHandshakes;

/// Who writes the line.
const TARGET: &str = "rocket::server";
/// The longest line of its text that matters, in bytes: that of the key.
const LINE_MAX_BYTES: usize = 128;

/// Reads Rocket's log and nothing else.
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

/// Reads the text of a request as it is made, line by line, and stops it as soon as nothing more matters: at the version,
/// if that is not HTTP/1.0.
#[derive(Default)]
struct Reader {
    /// Its first bytes.
    line: String,
    is_old: bool,
    key: Option<String>,
}

impl Visit for Reader {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Fails where it was stopped.
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
