//! The frames and messages of a WebSocket, over the upgraded stream.
//!
//! tungstenite parses the input (masking, fragments, control frames, the closing handshake). It does no I/O here: it takes
//! the bytes that were read, and returns messages and bytes to be sent. Its state exists only while a message arrives or a
//! control frame is encoded, and from the beginning of the closing handshake on. Outgoing data frames do not pass through
//! it. They are built once per event and shared by all sockets, and all queued frames are written with one vectored write.
//!
//! The socket is read and written only when it may be ready. Its caller therefore polls it with a waker that serves nothing
//! else, and calls [`Socket::woken`] when that waker was woken.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rocket::data::IoStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;
use tokio::time::Instant;
use tungstenite::error::{CapacityError, Error as ProtocolError};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Bytes, Message};

use super::text::TextWatch;
use crate::config::{AFTER_ERROR_MAX_BYTES, ANSWER_FRAMES, SOCKET_READ_BYTES, WRITE_MAX_FRAMES};
use crate::hub::queue::Queue;
use crate::wire::Close;

/// Something that the peer sent.
#[derive(Debug)]
pub(super) enum Incoming {
    Text(String),
    Binary(Bytes),
    /// A ping, a pong, or part of a message. It shows that the peer is alive.
    Control,
}

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// The socket is gone, or the closing handshake is complete.
    Gone,
    /// The peer violated the protocol, and must receive this close frame.
    Broken(Close),
}

/// The WebSocket.
pub(super) struct Socket<S = IoStream> {
    io: S,
    /// The maximum size of a message.
    message_limit: u32,
    protocol: Option<Box<Protocol>>,
    /// Frames to be written, in order. The first is written up to `written`.
    out: Queue<Arc<[u8]>>,
    written: usize,
    /// The current time, as of the last [`Socket::set_now`].
    now: Instant,
    last_progress: Instant,
    last_heard: Instant,
    /// Whether there may be something to read.
    is_readable: bool,
    /// Whether the socket may accept bytes.
    is_writable: bool,
    peer_closed: bool,
    /// The socket's buffer was full. When the socket accepts bytes again, the peer has read some.
    blocked: bool,
    /// Whether the stream may hold back bytes that were written: TLS can encrypt more than the socket accepts.
    is_buffered: bool,
    /// Whether it may hold back some now.
    is_unflushed: bool,
    /// The peer violated the protocol. Its further input is read, so that it can receive our close frame, and ignored.
    ignores_input: bool,
    /// How many bytes have been ignored.
    ignored: u32,
    /// The violation, until it is returned. The messages before it are returned first.
    broken: Option<Close>,
    /// Whether our close frame is queued or written.
    closed: bool,
}

/// The state of the protocol.
struct Protocol {
    codec: WebSocketContext,
    text: TextWatch,
}

impl Protocol {
    fn new(message_limit: usize) -> Box<Protocol> {
        let config = WebSocketConfig::default()
            .read_buffer_size(256)
            .write_buffer_size(0)
            .max_message_size(Some(message_limit))
            .max_frame_size(Some(message_limit));
        Box::new(Protocol {
            codec: WebSocketContext::new(Role::Server, Some(config)),
            text: TextWatch::default(),
        })
    }
}

/// The codec's input and output: a slice of received bytes, and a buffer for bytes to be sent.
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

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(super) fn new(io: S, message_limit: usize, is_buffered: bool) -> Socket<S> {
        let now = Instant::now();
        Socket {
            io,
            message_limit: message_limit.try_into().unwrap_or(u32::MAX),
            protocol: None,
            out: Queue::default(),
            written: 0,
            now,
            last_progress: now,
            last_heard: now,
            is_readable: true,
            is_writable: true,
            peer_closed: false,
            blocked: false,
            is_buffered,
            is_unflushed: false,
            ignores_input: false,
            ignored: 0,
            broken: None,
            closed: false,
        }
    }

    /// Sets the current time.
    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Records that the waker of the socket was woken.
    pub(super) fn woken(&mut self) {
        (self.is_readable, self.is_writable) = (true, true);
    }

    /// Whether reading may return something.
    pub(super) fn is_readable(&self) -> bool {
        self.is_readable
    }

    /// Whether another event can be queued.
    pub(super) fn has_room(&self) -> bool {
        self.out.len() < WRITE_MAX_FRAMES
    }

    /// Whether another answer can be queued. Answers have some room in addition to that of events.
    pub(super) fn has_room_for_answers(&self) -> bool {
        self.out.len() < WRITE_MAX_FRAMES + ANSWER_FRAMES
    }

    /// Whether nothing waits to be written or to be read, and the closing handshake has not begun.
    pub(super) fn is_quiet(&self) -> bool {
        !self.has_unwritten()
            && self.is_writable
            && !self.is_readable
            && self.broken.is_none()
            && !(self.closed || self.peer_closed || self.ignores_input)
    }

    /// Whether there are bytes that the socket has not accepted.
    fn has_unwritten(&self) -> bool {
        self.is_unflushed || !self.out.is_empty()
    }

    /// Whether the peer has sent its close frame.
    pub(super) fn is_closed_by_peer(&self) -> bool {
        self.peer_closed
    }

    /// Queues an encoded frame.
    pub(super) fn send(&mut self, frame: Arc<[u8]>) {
        if !self.has_unwritten() {
            self.last_progress = self.now;
        }
        self.out.push_back(frame);
    }

    /// Queues a ping with `payload`, which has at most 125 bytes.
    pub(super) fn ping(&mut self, payload: String) {
        // Fails only if the connection is already closing, when a ping is useless.
        let _ = self.encode(&[], |codec, pipe| {
            codec.write(pipe, Message::Ping(payload.into_bytes().into()))
        });
        self.free_protocol();
    }

    /// Queues the close frame. After that, input is read only until the peer's close frame arrives.
    pub(super) fn close(&mut self, close: Close) {
        let frame = CloseFrame {
            code: CloseCode::from(close.code()),
            reason: close.reason().into(),
        };
        self.closed = true;
        // Fails only if the closing handshake has already begun.
        let _ = self.encode(&[], |codec, pipe| codec.close(pipe, Some(frame)));
    }

    /// Returns how long ago something was received from the peer.
    pub(super) fn silent_for(&self) -> Duration {
        self.now.saturating_duration_since(self.last_heard)
    }

    /// Returns for how long the socket has accepted no bytes although some are queued.
    pub(super) fn stalled_for(&self) -> Duration {
        if self.has_unwritten() {
            self.now.saturating_duration_since(self.last_progress)
        } else {
            Duration::ZERO
        }
    }

    /// Runs the codec on `input`, and queues what it writes.
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
        let limit = self.message_limit as usize;
        let protocol = self.protocol.get_or_insert_with(|| Protocol::new(limit));
        let result = run(&mut protocol.codec, &mut pipe);
        if !pipe.output.is_empty() {
            let output = pipe.output.into();
            self.send(output);
        }
        result
    }

    /// Frees the state of the protocol between messages.
    fn free_protocol(&mut self) {
        let protocol = self.protocol.as_ref();
        if !self.closed && protocol.is_some_and(|protocol| protocol.text.is_between_messages()) {
            self.protocol = None;
        }
    }

    /// Writes queued frames. Returns ready when the socket has accepted all of them.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        while let Some(first) = self.out.front() {
            if !self.is_writable {
                return Poll::Pending;
            }
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
                return self.wait_until_writable();
            };
            match result {
                Ok(0) | Err(_) => return Poll::Ready(Err(End::Gone)),
                Ok(count) => self.advance(count),
            }
        }
        if self.is_unflushed {
            if !self.is_writable {
                return Poll::Pending;
            }
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Pending => return self.wait_until_writable(),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Gone)),
                Poll::Ready(Ok(())) => {
                    self.is_unflushed = false;
                    self.progress();
                }
            }
        }
        if self.peer_closed {
            return Poll::Ready(Err(End::Gone));
        }
        if self.ignores_input && self.closed {
            // The peer's answer could not be parsed. Shut down our direction only: otherwise the peer's unread input
            // would reset the connection before the peer reads our close frame.
            return self.poll_shutdown(cx).map(Ok);
        }
        Poll::Ready(Ok(()))
    }

    /// The socket's waker will be woken when it accepts bytes again.
    fn wait_until_writable(&mut self) -> Poll<Result<(), End>> {
        self.is_writable = false;
        // Without a budget, Tokio does not even try to write.
        self.blocked |= coop::has_budget_remaining();
        Poll::Pending
    }

    /// Records that the socket has accepted bytes.
    fn progress(&mut self) {
        self.last_progress = self.now;
        if std::mem::take(&mut self.blocked) {
            self.last_heard = self.last_progress;
        }
    }

    fn advance(&mut self, mut count: usize) {
        self.is_unflushed = self.is_buffered;
        self.progress();
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
    }

    /// Reads once. Returns the messages that are complete, if any.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Incoming>, End>> {
        if let Some(broken) = self.broken.take() {
            return Poll::Ready(Err(End::Broken(broken)));
        }
        if self.peer_closed || !self.is_readable {
            self.is_readable = false;
            return Poll::Pending;
        }
        let mut bytes = [const { MaybeUninit::uninit() }; SOCKET_READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut bytes);
        let read = Pin::new(&mut self.io).poll_read(cx, &mut buffer);
        self.is_readable = read.is_ready();
        if ready!(read).is_err() || buffer.filled().is_empty() {
            return Poll::Ready(Err(End::Gone));
        }
        self.last_heard = self.now;
        if self.ignores_input {
            let more = u32::try_from(buffer.filled().len()).unwrap_or(u32::MAX);
            self.ignored = self.ignored.saturating_add(more);
            return Poll::Ready(match self.ignored > AFTER_ERROR_MAX_BYTES {
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
                let protocol = self.protocol.as_mut();
                if protocol.is_none_or(|protocol| protocol.text.read(buffer.filled())) {
                    self.free_protocol();
                    return Poll::Ready(Ok(incoming));
                }
                Close::InvalidText
            }
            // The closing handshake is complete, or the peer's close frame is read and our answer is queued.
            ProtocolError::ConnectionClosed | ProtocolError::AlreadyClosed => {
                self.peer_closed = true;
                return Poll::Ready(Ok(incoming));
            }
            ProtocolError::Capacity(CapacityError::MessageTooLong { .. }) => Close::MessageTooBig,
            ProtocolError::Utf8(_) => Close::InvalidText,
            _ => Close::ProtocolError,
        };
        self.ignores_input = true;
        self.broken = Some(broken);
        Poll::Ready(Ok(incoming))
    }

    /// Shuts down the connection.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.io).poll_shutdown(cx).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, BufStream, DuplexStream, duplex};

    use super::*;

    /// A socket over a stream that buffers what is written, like TLS, and a connection that accepts `room` bytes.
    fn buffered(room: usize) -> (Socket<BufStream<DuplexStream>>, DuplexStream) {
        let (io, peer) = duplex(room);
        (Socket::new(BufStream::new(io), 1000, true), peer)
    }

    #[tokio::test]
    async fn nothing_stays_in_the_buffer_of_the_stream() {
        let (mut socket, mut peer) = buffered(16);
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let (frame, mut received) = (Arc::from(*b"0123456789"), [0; 30]);
        (0..3).for_each(|_| socket.send(Arc::clone(&frame)));
        assert!(socket.poll_read(cx).is_pending());
        for rest in [14, 0] {
            let is_written = rest == 0;
            assert_eq!(socket.poll_write(cx).is_ready(), is_written);
            assert_eq!(socket.is_quiet(), is_written);
            socket.set_now(socket.now + Duration::from_secs(1));
            assert_eq!(socket.stalled_for().is_zero(), is_written);
            let from = if is_written { 16 } else { 0 };
            peer.read_exact(&mut received[from..30 - rest])
                .await
                .unwrap();
            socket.woken();
            assert!(socket.poll_read(cx).is_pending());
        }
        assert_eq!(received, *b"012345678901234567890123456789");
        assert!(
            socket.silent_for() <= Duration::from_secs(1),
            "the peer has read"
        );
    }
}
