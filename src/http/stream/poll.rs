//! Long poll: `{"messages": [...], "cursor": …}`. The body is written as messages arrive, so that a long snapshot is not
//! buffered.
//!
//! The response ends when it contains messages and no more are ready, when it is full, or when the wait is over. Its cursor
//! is that of the last message, so the next poll continues exactly there.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rocket::Request;
use rocket::http::ContentType;
use rocket::response::{self, Responder};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::event_source::{Outgoing, Parts, poll_fill, streamed};
use super::params::Params;
use crate::config::POLL_FULL_BYTES;
use crate::id::Cursor;
use crate::subscribe::{Delivery, Subscription};
use crate::wire::form::Form;
use crate::wire::{self, Control, Encoding, Framing};

/// The body of a long poll.
pub(super) struct PollBody {
    subscription: Subscription,
    encoding: Encoding,
    outgoing: Outgoing,
    wait: Pin<Box<Sleep>>,
    stage: Stage,
    /// Whether `ready` was written. From then on, the response may end.
    ready: bool,
    /// Whether anything but `connected` and `ready` was written.
    has_content: bool,
    /// Whether the client can resume from the cursor of the last message. Within a snapshot, that would work only until
    /// retention deletes the event of the cursor, so a snapshot is always written completely.
    may_end: bool,
    messages: usize,
    bytes: usize,
}

#[derive(PartialEq)]
enum Stage {
    Head,
    Messages,
    Ended,
}

impl PollBody {
    pub(super) fn new(subscription: Subscription, params: &Params) -> PollBody {
        PollBody {
            subscription,
            encoding: params.encoding(Framing::Json, Form::Standard),
            outgoing: Outgoing::default(),
            wait: Box::pin(sleep(params.wait)),
            stage: Stage::Head,
            ready: false,
            has_content: false,
            may_end: false,
            messages: 0,
            bytes: 0,
        }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Arc<[u8]>>> {
        if self.may_end && self.bytes >= POLL_FULL_BYTES {
            return self.end();
        }
        match self.subscription.poll_delivery(cx, now) {
            Poll::Ready(Some(Delivery::Control(Control::Heartbeat { .. }))) => {
                // White space between messages keeps the connection alive and has no meaning.
                Poll::Ready(Some((*b"\n").into()))
            }
            Poll::Ready(Some(delivery)) => Poll::Ready(Some(self.message(&delivery))),
            Poll::Ready(None) => self.end(),
            Poll::Pending
                if self.ready && (self.has_content || self.wait.as_mut().poll(cx).is_ready()) =>
            {
                self.end()
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn message(&mut self, delivery: &Delivery) -> Arc<[u8]> {
        let (json, is_content): (Arc<[u8]>, bool) = match delivery {
            Delivery::Event(event) => {
                self.may_end = !event.snapshot;
                (Arc::clone(wire::event(event, self.encoding)), true)
            }
            Delivery::Control(control) => {
                if let Control::Reset(_) = control {
                    // A snapshot follows, which must be complete.
                    (self.ready, self.may_end) = (false, false);
                }
                self.ready |= matches!(control, Control::Ready(_) | Control::Closing { .. });
                self.may_end |= self.ready;
                let is_content = !matches!(control, Control::Connected { .. } | Control::Ready(_));
                (wire::control(control, Framing::Json).into(), is_content)
            }
        };
        self.has_content |= is_content;
        self.messages += 1;
        self.bytes += json.len();
        if self.messages == 1 {
            return json;
        }
        let mut separated = Vec::with_capacity(json.len() + 1);
        separated.push(b',');
        separated.extend_from_slice(&json);
        separated.into()
    }

    fn end(&mut self) -> Poll<Option<Arc<[u8]>>> {
        self.stage = Stage::Ended;
        self.subscription
            .set_end_reason("the poll has been answered");
        let cursor = self.subscription.resume_cursor();
        let cursor = cursor.expect("a poll subscribes to a channel");
        Poll::Ready(Some(tail(cursor).into()))
    }
}

/// What precedes the messages.
const HEAD: &[u8] = br#"{"messages":["#;

/// Returns what follows the messages.
fn tail(cursor: Cursor) -> Vec<u8> {
    format!(r#"],"cursor":"{cursor}"}}"#).into_bytes()
}

/// Returns an answer with these messages.
pub(super) fn answer(messages: &[Vec<u8>], cursor: Cursor) -> Vec<u8> {
    [HEAD, &messages.join(&b','), &tail(cursor)].concat()
}

impl Parts for PollBody {
    fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    fn poll_part(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Option<Arc<[u8]>>> {
        match self.stage {
            Stage::Head => {
                self.stage = Stage::Messages;
                Poll::Ready(Some(HEAD.into()))
            }
            Stage::Messages => self.poll_message(cx, now),
            Stage::Ended => Poll::Ready(None),
        }
    }
}

impl AsyncRead for PollBody {
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

impl<'r> Responder<'r, 'static> for PollBody {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        streamed(ContentType::JSON, self)
    }
}
