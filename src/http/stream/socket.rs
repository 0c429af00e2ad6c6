//! A WebSocket's frames out and messages in, over the upgraded stream.
//!
//! Reading (masking, fragments, control frames, the closing handshake) is tungstenite's, driven without I/O
//! of its own: bytes from the socket go in, messages and bytes for the socket come out. Data frames do not
//! pass through it: they are built once per event and shared by every socket, and all that wait go out in
//! one vectored write.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rocket::data::IoStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tungstenite::error::{CapacityError, Error as ProtocolError};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Bytes, Message};

use super::text::TextWatch;
use crate::config::{ANSWER_FRAMES, DEAF_MAX_BYTES, SOCKET_READ_BYTES, WRITE_MAX_FRAMES};
use crate::wire::Close;

/// Something that came in.
#[derive(Debug)]
pub(super) enum Incoming {
    Text(String),
    Binary(Bytes),
    /// A ping, a pong, or part of a message: a sign of life.
    Control,
}

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum End {
    /// The socket is gone, or both sides have said goodbye.
    Gone,
    /// The peer has broken a rule and is to be told so.
    Broken(Close),
}

/// Frames out, messages in.
pub(super) struct Socket {
    io: IoStream,
    codec: WebSocketContext,
    text: TextWatch,
    /// Frames to be written, in order; the first one from `written` on.
    out: VecDeque<Arc<[u8]>>,
    written: usize,
    last_progress: Instant,
    last_heard: Instant,
    peer_closed: bool,
    /// The socket would take no more bytes: when it does again, the peer has taken some.
    blocked: bool,
    /// The peer broke the protocol: what it still sends is read, so that it can read our close, and ignored.
    deaf: bool,
    /// So many bytes of it.
    ignored: usize,
    /// How it did, until that is told: after what it had said before.
    broken: Option<Close>,
    /// Our close is queued or written.
    closed: bool,
}

/// Ears and mouth of the codec: a slice that has come in, a buffer for what is to go out.
struct Pipe<'a> {
    input: &'a [u8],
    output: Vec<u8>,
    ended: bool,
}

impl Read for Pipe<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buffer)
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket {
    pub(super) fn new(io: IoStream, message_limit: usize) -> Socket {
        let config = WebSocketConfig::default()
            .read_buffer_size(256)
            .write_buffer_size(0)
            .max_message_size(Some(message_limit))
            .max_frame_size(Some(message_limit));
        let now = Instant::now();
        Socket {
            io,
            codec: WebSocketContext::new(Role::Server, Some(config)),
            text: TextWatch::default(),
            out: VecDeque::new(),
            written: 0,
            last_progress: now,
            last_heard: now,
            peer_closed: false,
            blocked: false,
            deaf: false,
            ignored: 0,
            broken: None,
            closed: false,
        }
    }

    /// Whether another frame may be queued.
    pub(super) fn has_room(&self) -> bool {
        self.out.len() < WRITE_MAX_FRAMES
    }

    /// Whether another answer may be queued in addition to them.
    pub(super) fn has_room_for_answers(&self) -> bool {
        self.out.len() < WRITE_MAX_FRAMES + ANSWER_FRAMES
    }

    /// Whether the peer has said goodbye.
    pub(super) fn is_left(&self) -> bool {
        self.peer_closed
    }

    /// Queues a finished frame.
    pub(super) fn send(&mut self, frame: Arc<[u8]>) {
        if self.out.is_empty() {
            self.last_progress = Instant::now();
        }
        self.out.push_back(frame);
    }

    /// Queues a ping that carries `payload`, at most 125 bytes.
    pub(super) fn ping(&mut self, payload: String) {
        // Fails only when the connection is closing, when a ping is useless.
        let _ = self.encode(&[], |codec, pipe| {
            codec.write(pipe, Message::Ping(payload.into_bytes().into()))
        });
    }

    /// Queues the close frame; what comes in afterwards is only waited out.
    pub(super) fn close(&mut self, close: Close) {
        let frame = CloseFrame {
            code: CloseCode::from(close.code()),
            reason: close.reason().into(),
        };
        self.closed = true;
        // Fails only when the closing handshake is under way already.
        let _ = self.encode(&[], |codec, pipe| codec.close(pipe, Some(frame)));
    }

    /// How long ago the peer was heard of.
    pub(super) fn silent_for(&self) -> Duration {
        self.last_heard.elapsed()
    }

    /// How long the peer has taken no byte, though there are some.
    pub(super) fn stalled_for(&self) -> Duration {
        if self.out.is_empty() {
            Duration::ZERO
        } else {
            self.last_progress.elapsed()
        }
    }

    /// Runs the codec; what it writes is queued. Its answer counts only where something is read.
    fn encode<T>(
        &mut self,
        input: &[u8],
        run: impl FnOnce(&mut WebSocketContext, &mut Pipe<'_>) -> T,
    ) -> T {
        let mut pipe = Pipe {
            input,
            output: Vec::new(),
            ended: false,
        };
        let result = run(&mut self.codec, &mut pipe);
        if !pipe.output.is_empty() {
            let output = pipe.output.into();
            self.send(output);
        }
        result
    }

    /// Writes what is queued. Ready when all of it is written.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        while let Some(first) = self.out.front() {
            let result = if self.out.len() == 1 {
                Pin::new(&mut self.io).poll_write(cx, &first[self.written..])
            } else {
                let mut slices = [IoSlice::new(&[]); WRITE_MAX_FRAMES];
                slices[0] = IoSlice::new(&first[self.written..]);
                let rest = self.out.iter().skip(1).zip(&mut slices[1..]);
                let count = 1 + rest
                    .map(|(frame, slice)| *slice = IoSlice::new(frame))
                    .count();
                Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count])
            };
            let Poll::Ready(result) = result else {
                self.blocked = true;
                return Poll::Pending;
            };
            match result {
                Ok(0) | Err(_) => return Poll::Ready(Err(End::Gone)),
                Ok(count) => self.advance(count),
            }
        }
        if self.peer_closed {
            return Poll::Ready(Err(End::Gone));
        }
        if self.deaf && self.closed {
            // Its answer would not be understood. Closing one direction only, so that what it has sent already
            // does not take our close from it.
            return self.poll_shutdown(cx).map(Ok);
        }
        // The stream has no buffer of its own, so there is nothing to flush.
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut count: usize) {
        self.last_progress = Instant::now();
        if std::mem::take(&mut self.blocked) {
            self.last_heard = self.last_progress;
        }
        while let Some(first) = self.out.front() {
            let rest = first.len() - self.written;
            if count < rest {
                self.written += count;
                return;
            }
            count -= rest;
            self.written = 0;
            self.out.pop_front();
        }
        // An idle connection keeps no queue.
        self.out = VecDeque::new();
    }

    /// Reads once. Ready with what came in, which may be nothing whole yet.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Incoming>, End>> {
        if let Some(broken) = self.broken.take() {
            return Poll::Ready(Err(End::Broken(broken)));
        }
        if self.peer_closed {
            return Poll::Pending;
        }
        let mut bytes = [0; SOCKET_READ_BYTES];
        let mut buffer = ReadBuf::new(&mut bytes);
        if ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)).is_err()
            || buffer.filled().is_empty()
        {
            return Poll::Ready(Err(End::Gone));
        }
        self.last_heard = Instant::now();
        if self.deaf {
            self.ignored += buffer.filled().len();
            return Poll::Ready(match self.ignored > DEAF_MAX_BYTES {
                true => Err(End::Gone),
                false => Ok(Vec::new()),
            });
        }
        let mut incoming = Vec::new();
        let end = self.encode(buffer.filled(), |codec, pipe| {
            loop {
                match codec.read(pipe) {
                    Ok(Message::Text(text)) => {
                        incoming.push(Incoming::Text(text.as_str().to_owned()))
                    }
                    Ok(Message::Binary(bytes)) => incoming.push(Incoming::Binary(bytes)),
                    Ok(_) => incoming.push(Incoming::Control),
                    Err(error) => break error,
                }
            }
        });
        let broken = match end {
            ProtocolError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.text.read(buffer.filled()) {
                    return Poll::Ready(Ok(incoming));
                }
                Close::InvalidText
            }
            // Both sides have said goodbye, or the peer did and our answer is queued.
            ProtocolError::ConnectionClosed | ProtocolError::AlreadyClosed => {
                self.peer_closed = true;
                return Poll::Ready(Ok(incoming));
            }
            ProtocolError::Capacity(CapacityError::MessageTooLong { .. }) => Close::MessageTooBig,
            ProtocolError::Utf8(_) => Close::InvalidText,
            _ => Close::ProtocolError,
        };
        self.deaf = true;
        self.broken = Some(broken);
        Poll::Ready(Ok(incoming))
    }

    /// Ends the connection below.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.io).poll_shutdown(cx).map(|_| ())
    }
}
