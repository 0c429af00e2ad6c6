//! A WebSocket connection's life: frames out, messages in, signs of life, the farewell. What is said is the [`Session`]'s.
//!
//! One hand-written future drives everything, so that an idle connection is one small task. It reads only
//! while there is room for answers, so a client that asks and does not listen is slowed, not buffered.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::arrivals::Arrivals;
use super::opening::Opening;
use super::socket::{End, Incoming, Socket};
use crate::app::SubscribeService;
use crate::config::{CLOSE_WAIT, WAITING_MESSAGES, WRITE_STALL};
use crate::session::{Dialect, Outbox, Outgoing, Session};
use crate::throttle::Pace;
use crate::wire::{self, Close, Control, Encoding, Framing};

enum Phase {
    Open,
    /// The close frame is queued or sent; its answer is waited for until then.
    Closing(Instant),
    /// The connection below is being shut down.
    Ending,
}

/// The socket, as a session sees it.
struct Frames {
    socket: Socket,
    encoding: Encoding,
}

impl Outbox for Frames {
    fn has_room(&self) -> bool {
        self.socket.has_room()
    }

    fn send(&mut self, outgoing: Outgoing<'_>) {
        let frame = match outgoing {
            Outgoing::Event(event) => Arc::clone(wire::event(event, self.encoding)),
            Outgoing::Control(control) => wire::control(control, Framing::WebSocket).into(),
            Outgoing::Json(json) => wire::text_frame(json).into(),
            Outgoing::BarePong => wire::text_frame(b"pong").into(),
            Outgoing::Ping(cursor) => {
                let cursor = cursor.map(|cursor| cursor.to_string());
                return self.socket.ping(cursor.unwrap_or_default());
            }
        };
        self.socket.send(frame);
    }
}

/// See the module's page.
pub(super) struct Connection {
    frames: Frames,
    /// Nothing once it has ended, or if the client was refused at the start.
    session: Option<Session>,
    service: Arc<SubscribeService>,
    /// Messages that came in while one before them is still being answered. Bounded by [`WAITING_MESSAGES`], the size of a
    /// client's message, and one read of the socket.
    waiting: VecDeque<Incoming>,
    phase: Phase,
    arrivals: Arrivals,
    /// The client has sent too many messages. It is told so once those before that are answered.
    is_too_fast: bool,
    rounds: Pin<Box<Sleep>>,
}

impl Connection {
    pub(super) fn new(
        socket: Socket,
        service: Arc<SubscribeService>,
        dialect: Dialect,
        encoding: Encoding,
        opening: Opening,
    ) -> Connection {
        let mut connection = Connection {
            frames: Frames { socket, encoding },
            session: None,
            waiting: VecDeque::new(),
            phase: Phase::Open,
            arrivals: Arrivals::new(Pace::of_client_messages(service.settings())),
            is_too_fast: false,
            rounds: Box::pin(sleep(Duration::ZERO)),
            service,
        };
        match opening {
            Opening::Accepted(beginning) => {
                let service = Arc::clone(&connection.service);
                connection.session = Some(Session::new(service, dialect, *beginning));
            }
            Opening::Refused { error, code, close } => connection.turn_away(error, code, close),
        }
        connection
    }

    /// Tells a client why it may not.
    fn turn_away(&mut self, error: Option<String>, code: &'static str, close: Close) {
        if let Some(message) = error {
            let channels = Vec::new();
            let error = Control::Error {
                code,
                message,
                channels,
            };
            self.frames.send(Outgoing::Control(&error));
        }
        if close.retry_ms().is_some() {
            let can_return = true;
            let closing = Control::Closing { close, can_return };
            self.frames.send(Outgoing::Control(&closing));
        }
        self.begin_close(close);
    }

    fn begin_close(&mut self, close: Close) {
        self.frames.socket.close(close);
        self.wait_for_close();
    }

    /// The session is over: what still comes is read, and ignored.
    fn wait_for_close(&mut self) {
        self.session = None;
        self.waiting.clear();
        self.is_too_fast = false;
        self.phase = Phase::Closing(Instant::now() + CLOSE_WAIT);
        self.rounds.as_mut().reset(Instant::now() + CLOSE_WAIT);
    }

    /// Says goodbye, if there is somebody to say it to.
    fn close(&mut self, close: Close) {
        if let Some(session) = &mut self.session {
            session.close(close, &mut self.frames);
        }
        self.begin_close(close);
    }

    /// Follows the session if it has ended.
    fn follow(&mut self) {
        if let Some(close) = self.session.as_ref().and_then(Session::ended) {
            self.begin_close(close);
        }
    }

    /// Queues deliveries while there is room. True if there were any.
    fn take_deliveries(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        let any = session.poll_deliveries(cx, &mut self.frames);
        self.follow();
        any
    }

    /// Answers messages while there is room. True if there were any.
    fn take_messages(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        self.arrivals.may_wait();
        if let Some(session) = &mut self.session {
            match session.poll_answer(cx, &mut self.frames) {
                Poll::Ready(false) => {}
                Poll::Ready(true) => return Ok(true),
                Poll::Pending => return Ok(false),
            }
            if !self.frames.socket.has_room_for_answers() {
                return Ok(false);
            }
            if !session.is_parked()
                && let Some(incoming) = self.waiting.pop_front()
            {
                receive(session, incoming, &mut self.frames);
                return Ok(true);
            }
            if session.resume(&mut self.frames) {
                return Ok(true);
            }
            if self.is_too_fast && !session.is_parked() {
                let message = "There are too many messages in too short a time";
                let limit = Some("client_messages_per_sec");
                session.refuse("too_fast", limit, message, &mut self.frames);
                self.close(Close::TryAgainLater);
                return Ok(true);
            }
        }
        // What is sent behind one that waits is read on: a ping of the protocol is answered at once, and a pong is heard.
        if !self.frames.socket.has_room_for_answers() || !self.has_room_to_wait() {
            return Ok(false);
        }
        match self.frames.socket.poll_read(cx) {
            Poll::Ready(Ok(incoming)) => {
                if let Phase::Open = self.phase {
                    self.take_up(incoming);
                    if self.frames.socket.is_left() {
                        // The peer has said goodbye, and the answer is queued: nothing may follow it.
                        self.wait_for_close();
                    }
                }
                Ok(true)
            }
            Poll::Ready(Err(end)) => Err(end),
            Poll::Pending => {
                self.arrivals.are_read();
                Ok(false)
            }
        }
    }

    /// Lets messages wait for their answers, up to one too many.
    fn take_up(&mut self, incoming: Vec<Incoming>) {
        // Pings and pongs are the protocol's own.
        let said = incoming.into_iter();
        for own in said.filter(|own| !matches!(own, Incoming::Control)) {
            self.is_too_fast = self.is_too_fast || !self.arrivals.count();
            if self.is_too_fast {
                return;
            }
            self.waiting.push_back(own);
        }
    }

    /// Whether more may be read than is carried out.
    fn has_room_to_wait(&self) -> bool {
        let bytes = |own: &Incoming| match own {
            Incoming::Text(text) => text.len(),
            Incoming::Binary(bytes) => bytes.len(),
            Incoming::Control => 0,
        };
        let most = self.service.settings().client_message_limit_bytes;
        !self.is_too_fast
            && self.waiting.len() < WAITING_MESSAGES
            && self.waiting.iter().map(bytes).sum::<usize>() < most
    }

    /// Looks at the clock. False if the connection is to be given up.
    fn look_at_clock(&mut self, cx: &mut Context<'_>) -> bool {
        while self.rounds.as_mut().poll(cx).is_ready() {
            let heartbeat = self.service.settings().heartbeat();
            let now = Instant::now();
            if let Phase::Closing(until) = self.phase {
                if until <= now {
                    return false;
                }
                self.rounds.as_mut().reset(until);
                continue;
            }
            let socket = &self.frames.socket;
            let is_stalled = socket.stalled_for() >= WRITE_STALL;
            // A peer that takes no byte cannot be asked for a sign of life; one that takes them must give it, unless it
            // is not listened to just now.
            let is_busy = self.session.as_ref().is_some_and(Session::is_busy);
            let is_asked = socket.stalled_for().is_zero() && !is_busy;
            if is_stalled {
                if let Some(session) = &mut self.session {
                    session.ends("the client has taken nothing for too long");
                }
                return false;
            }
            if is_asked && socket.silent_for() >= heartbeat * 2 {
                self.close(Close::Silent);
                continue;
            }
            let mut next = now + heartbeat / 4;
            if let Some(session) = &mut self.session
                && let Some(due) = session.look_at_clock(now, &mut self.frames)
            {
                next = next.min(due);
            }
            self.rounds.as_mut().reset(next);
        }
        true
    }
}

fn receive(session: &mut Session, incoming: Incoming, frames: &mut Frames) {
    match incoming {
        Incoming::Text(text) => session.receive(&text, frames),
        Incoming::Binary(_) => {
            session.refuse("not_text", None, "Messages are text frames", frames);
        }
        Incoming::Control => {}
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            if let Phase::Ending = this.phase {
                return this.frames.socket.poll_shutdown(cx);
            }
            if !this.look_at_clock(cx) {
                return Poll::Ready(());
            }
            let mut any = this.take_deliveries(cx);
            match this.take_messages(cx) {
                Ok(some) => any |= some,
                Err(End::Gone) => return Poll::Ready(()),
                Err(End::Broken(close)) => match this.phase {
                    Phase::Open => {
                        if let (Close::MessageTooBig, Some(session)) = (close, &this.session) {
                            session.note("too_big", Some("client_message_limit_bytes"));
                        }
                        this.close(close);
                        any = true;
                    }
                    // Our close is on its way already.
                    Phase::Closing(_) | Phase::Ending => any = true,
                },
            }
            let was_full = !this.frames.socket.has_room();
            match this.frames.socket.poll_write(cx) {
                // What waited for room has not been asked yet.
                Poll::Ready(Ok(())) => any |= was_full,
                Poll::Ready(Err(_)) => {
                    this.phase = Phase::Ending;
                    continue;
                }
                // Full: room is made only by writing, so there is nothing else to do.
                Poll::Pending if !this.frames.socket.has_room_for_answers() => {
                    return Poll::Pending;
                }
                Poll::Pending => {}
            }
            if !any {
                return Poll::Pending;
            }
        }
    }
}
