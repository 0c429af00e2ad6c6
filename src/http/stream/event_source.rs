//! Server-Sent Events: a body that copies encoded frames from the subscription, as many as fit in a chunk.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rocket::Request;
use rocket::http::ContentType;
use rocket::response::{self, Responder, Response};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::params::Params;
use crate::config::CHUNK_BYTES;
use crate::subscribe::{Item, Subscription};
use crate::wire::{self, Encoding};

/// The bytes that are being copied, and how many of them have been copied.
#[derive(Default)]
pub(super) struct Outgoing {
    frame: Option<Arc<[u8]>>,
    copied: usize,
}

impl Outgoing {
    pub(super) fn set(&mut self, frame: Arc<[u8]>) {
        self.frame = Some(frame);
        self.copied = 0;
    }

    /// Copies as many bytes as fit. Returns whether there is room for more.
    pub(super) fn copy_to(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let Some(frame) = &self.frame else {
            return buffer.remaining() > 0;
        };
        let rest = &frame[self.copied..];
        let fits = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..fits]);
        self.copied += fits;
        if self.copied == frame.len() {
            self.frame = None;
        }
        buffer.remaining() > 0
    }
}

/// A body that consists of parts.
pub(super) trait Parts {
    fn outgoing(&mut self) -> &mut Outgoing;

    /// Returns the next part, or none at the end. `now` is the current time.
    fn poll_part(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Arc<[u8]>>>;

    /// Whether it is worth polling for another part before the previous ones are passed on.
    fn may_have_more(&self) -> bool {
        true
    }
}

/// Copies the parts that are ready, as many as fit.
pub(super) fn poll_fill(
    parts: &mut impl Parts,
    cx: &mut Context<'_>,
    now: Instant,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let before = buffer.filled().len();
    while parts.outgoing().copy_to(buffer) {
        if buffer.filled().len() > before && !parts.may_have_more() {
            break;
        }
        match parts.poll_part(cx, now) {
            Poll::Ready(Some(part)) => parts.outgoing().set(part),
            Poll::Ready(None) => break,
            Poll::Pending if buffer.filled().len() == before => return Poll::Pending,
            Poll::Pending => break,
        }
    }
    Poll::Ready(Ok(()))
}

/// Returns a streamed response with the headers that keep proxies from buffering or changing it.
pub(super) fn streamed<'r>(
    content_type: ContentType,
    body: impl AsyncRead + Send + 'r,
) -> response::Result<'r> {
    Response::build()
        .header(content_type)
        .raw_header("Cache-Control", "no-cache, no-transform")
        .raw_header("X-Accel-Buffering", "no")
        // For proxies other than nginx: draft-ietf-httpbis-incremental.
        .raw_header("Incremental", "?1")
        .raw_header("Vary", "Accept")
        .streamed_body(body)
        .max_chunk_size(CHUNK_BYTES)
        .ok()
}

/// The body of an SSE stream.
pub(super) struct EventSourceBody {
    subscription: Subscription,
    encoding: Encoding,
    /// What precedes the first message.
    prelude: Option<Arc<[u8]>>,
    outgoing: Outgoing,
}

impl EventSourceBody {
    pub(super) fn new(subscription: Subscription, params: &Params) -> EventSourceBody {
        // Padding, for proxies that buffer the first kilobytes. It is a comment within the first block: popular clients would
        // pass a block without data to their handlers.
        let padding = || format!(":{:width$}\n", "", width = params.padding.max(2) - 2);
        let prelude = (params.padding > 0).then(|| padding().into_bytes().into());
        EventSourceBody {
            subscription,
            encoding: params.sse_encoding(),
            prelude,
            outgoing: Outgoing::default(),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Arc<[u8]>>> {
        if let Some(frame) = self.prelude.take() {
            return Poll::Ready(Some(frame));
        }
        let item = self.subscription.poll_item(cx, now);
        item.map(|item| {
            item.map(|item| match item {
                Item::Event(event) => Arc::clone(wire::event(&event, self.encoding)),
                Item::Control(control) => wire::control(&control, self.encoding.framing).into(),
            })
        })
    }
}

impl Parts for EventSourceBody {
    fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    fn poll_part(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Arc<[u8]>>> {
        self.poll_frame(cx, now)
    }

    // The next read, which follows at once, waits for the mailbox.
    fn may_have_more(&self) -> bool {
        self.prelude.is_some() || self.subscription.may_have_more()
    }
}

impl AsyncRead for EventSourceBody {
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

impl<'r> Responder<'r, 'static> for EventSourceBody {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        streamed(ContentType::EventStream, self)
    }
}
