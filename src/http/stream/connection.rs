//! The lifetime of a WebSocket connection: sending frames, receiving messages, keep-alive and closing. The [`Session`]
//! decides what is sent.
//!
//! One hand-written future drives all of this, so that an idle connection is a single small task. An event that wakes it
//! costs little more than its write: the socket and the signal that ends the server's tasks share a separate waker, and are
//! polled only if that was woken. The connection reads only while there is room for answers, so a client that sends
//! requests without reading the answers is slowed down, and its requests are not buffered.
//!
//! While only live events can follow, the task is not even woken: it lends the socket to its [mailbox](crate::hub::mailbox), and
//! whoever offers an event writes it. The task holds the lock of the socket while it runs.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::task::coop;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::arrivals::Arrivals;
use super::attention::Attention;
use super::opening::Opening;
use super::socket::{End, Incoming, Socket};
use crate::alarm::Alarm;
use crate::app::SubscribeService;
use crate::config::{CLOSE_WAIT, WAITING_MESSAGES, WRITE_STALL};
use crate::event::Event;
use crate::http::idle_connections::InProgress;
use crate::hub::mailbox::{Sink, Wait, Written};
use crate::hub::queue::Queue;
use crate::session::{Dialect, Outbox, Outgoing, Session};
use crate::subscribe::Lease;
use crate::wire::{self, Close, Control, Encoding, Framing};

enum Phase {
    Open,
    /// Our close frame is queued or sent. The peer has until this time to answer it.
    Closing(Instant),
    /// The connection is being shut down.
    Ending,
}

/// The socket as the outbox of a session.
struct Frames {
    socket: Socket,
    encoding: Encoding,
    /// The waker of the socket, which is also that of the driver's `end`.
    waker: Waker,
}

impl Frames {
    /// Writes what is queued.
    fn poll_write(&mut self) -> Poll<Result<(), End>> {
        self.socket
            .poll_write(&mut Context::from_waker(&self.waker))
    }
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

/// The socket, which the connection's task shares with those who offer events.
struct Shared(Mutex<Lendable>);

struct Lendable {
    frames: Frames,
    /// While the socket is lent.
    lease: Option<Lease>,
}

impl Sink for Shared {
    fn write(&self, events: &mut Queue<Arc<Event>>) -> (Written, Option<Wait>) {
        // If the lock is held, the task runs, and continues. Without a budget, the socket could not be written to.
        let Ok(mut lendable) = self.0.try_lock() else {
            return (Written::default(), None);
        };
        let Lendable { frames, lease } = &mut *lendable;
        let now = Instant::now();
        let lease = lease.as_mut().filter(|lease| !lease.has_expired(now));
        let Some(lease) = lease.filter(|_| coop::has_budget_remaining()) else {
            return (Written::default(), None);
        };
        frames.socket.set_now(now);
        // Hardly more than what fits into one write, because the mailbox is locked meanwhile.
        let written = lease.send(events, now, |event| {
            frames.send(Outgoing::Event(&event));
            frames.has_room()
        });
        let is_written = matches!(frames.poll_write(), Poll::Ready(Ok(())));
        let is_done = is_written && events.is_empty();
        (written, is_done.then(|| lease.wait()).flatten())
    }
}

/// A WebSocket connection.
pub(super) struct Connection {
    shared: Arc<Shared>,
    driver: Driver,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let lendable = self.shared.0.lock();
        let mut lendable = lendable.unwrap_or_else(PoisonError::into_inner);
        self.driver.take_back(lendable.lease.take());
    }
}

/// A connection, except for its socket.
struct Driver {
    /// None once the session has ended, or if the client was rejected at the start.
    session: Option<Session>,
    service: Arc<SubscribeService>,
    /// Messages that arrived while an earlier one is still being answered. Bounded by [`WAITING_MESSAGES`], the maximum size
    /// of a client's message, and one read of the socket.
    waiting: VecDeque<Incoming>,
    phase: Phase,
    arrivals: Arrivals,
    /// The client has exceeded the rate limit. It receives the error after its earlier messages are answered.
    is_rate_limited: bool,
    /// When the timers must be checked next, apart from that of the session's deliveries.
    next_check: Instant,
    /// Wakes the task at the next check, or when deliveries are due.
    alarm: Alarm,
    /// Whether the socket or `end` was ready.
    attention: Attention,
    /// Resolves when the server ends its tasks.
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Makes the request count as in progress, although Rocket drops the request itself at the upgrade.
    in_progress: Option<Arc<InProgress>>,
}

impl Connection {
    /// Makes the request count as in progress until the connection ends.
    pub(super) fn keeps(&mut self, in_progress: Option<Arc<InProgress>>) {
        self.driver.in_progress = in_progress;
    }

    pub(super) fn new(
        socket: Socket,
        service: Arc<SubscribeService>,
        dialect: Dialect,
        encoding: Encoding,
        opening: Opening,
        end: CancellationToken,
    ) -> Connection {
        let (now, attention) = (Instant::now(), Attention::new());
        let mut frames = Frames {
            socket,
            encoding,
            waker: attention.waker(),
        };
        let mut driver = Driver {
            session: None,
            waiting: VecDeque::new(),
            phase: Phase::Open,
            arrivals: Arrivals::new(service.settings().client_messages_per_sec),
            is_rate_limited: false,
            next_check: now,
            alarm: Alarm::at(now),
            attention,
            end: Box::pin(end.cancelled_owned()),
            service,
            in_progress: None,
        };
        match opening {
            Opening::Accepted(beginning, publishing) => {
                let service = Arc::clone(&driver.service);
                let session = Session::new(service, dialect, *beginning).timed_by_caller();
                driver.session = Some(match publishing {
                    Some(publishing) => session.with_publishing(publishing),
                    None => session,
                });
            }
            Opening::Rejected { error, code, close } => {
                driver.reject(error, code, close, &mut frames)
            }
        }
        let lease = None;
        let shared = Shared(Mutex::new(Lendable { frames, lease }));
        Connection {
            shared: Arc::new(shared),
            driver,
        }
    }
}

impl Driver {
    /// Takes the socket back if it is lent.
    fn take_back(&mut self, lease: Option<Lease>) {
        if let (Some(lease), Some(session)) = (lease, &mut self.session) {
            session.take_back(lease);
        }
    }

    /// Sends a client the reason for its rejection.
    fn reject(
        &mut self,
        error: Option<String>,
        code: &'static str,
        close: Close,
        frames: &mut Frames,
    ) {
        if let Some(message) = error {
            let channels = Vec::new();
            let error = Control::Error {
                code,
                message,
                channels,
                id: None,
            };
            frames.send(Outgoing::Control(&error));
        }
        if close.retry_ms().is_some() {
            let can_return = true;
            let closing = Control::Closing { close, can_return };
            frames.send(Outgoing::Control(&closing));
        }
        self.begin_close(close, frames);
    }

    fn begin_close(&mut self, close: Close, frames: &mut Frames) {
        frames.socket.close(close);
        self.wait_for_close();
    }

    /// Ends the session. Further input is read and ignored.
    fn wait_for_close(&mut self) {
        self.session = None;
        self.waiting.clear();
        self.is_rate_limited = false;
        let until = Instant::now() + CLOSE_WAIT;
        self.phase = Phase::Closing(until);
        self.next_check = until;
    }

    /// Closes the connection, and ends the session if there is one.
    fn close(&mut self, close: Close, frames: &mut Frames) {
        if let Some(session) = &mut self.session {
            session.close(close, frames);
        }
        self.begin_close(close, frames);
    }

    /// Closes the connection if the session has ended.
    fn follow(&mut self, frames: &mut Frames) {
        if let Some(close) = self.session.as_ref().and_then(Session::ended) {
            self.begin_close(close, frames);
        }
    }

    /// Queues deliveries while there is room. Returns whether they have ended the session.
    fn take_deliveries(&mut self, cx: &mut Context<'_>, now: Instant, frames: &mut Frames) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        session.poll_deliveries_at(cx, now, frames);
        session.poll_published(cx, frames);
        self.follow(frames);
        self.session.is_none()
    }

    /// Answers messages while there is room. Returns whether there were any.
    fn take_messages(&mut self, cx: &mut Context<'_>, frames: &mut Frames) -> Result<bool, End> {
        if let Some(session) = &mut self.session {
            match session.poll_answer(cx, frames) {
                Poll::Ready(false) => {}
                Poll::Ready(true) => return Ok(true),
                Poll::Pending => return Ok(false),
            }
            if !frames.socket.has_room_for_answers() {
                return Ok(false);
            }
            if !session.has_held_message()
                && let Some(incoming) = self.waiting.pop_front()
            {
                let may_count = may_publish(session, &incoming);
                let is_free = receive(session, incoming, frames);
                // A message that looked like a command was not counted when it arrived. If it was none, it counts now.
                if may_count && !is_free {
                    self.is_rate_limited = self.is_rate_limited || !self.arrivals.count();
                }
                return Ok(true);
            }
            if session.resume(frames) {
                return Ok(true);
            }
            if self.is_rate_limited && !session.has_held_message() {
                let message =
                    "The connection sends messages too fast, and is closed; send fewer per second";
                let limit = Some("client_messages_per_sec");
                session.reject("too_fast", limit, message, frames);
                self.close(Close::TryAgainLater, frames);
                return Ok(true);
            }
        }
        if !frames.socket.is_readable() {
            return Ok(false);
        }
        // Continue to read while a message waits, so that pings are answered and pongs are noticed at once.
        if !frames.socket.has_room_for_answers() || !self.has_room_to_wait() {
            return Ok(false);
        }
        let mut socket_cx = Context::from_waker(&frames.waker);
        match frames.socket.poll_read(&mut socket_cx) {
            Poll::Ready(Ok(incoming)) => {
                if let Phase::Open = self.phase {
                    self.enqueue(incoming);
                    if frames.socket.is_closed_by_peer() {
                        // The peer has sent its close frame, and our answer is queued. Nothing may follow it.
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

    /// Queues messages to be answered, up to the first one that exceeds the rate limit.
    fn enqueue(&mut self, incoming: Vec<Incoming>) {
        // Pings and pongs do not count as messages.
        let messages = incoming.into_iter();
        for message in messages.filter(|message| !matches!(message, Incoming::Control)) {
            // A command counts towards the rate limit of its user instead. A message that only looks like a command is
            // counted later, when it has been parsed.
            let session = self.session.as_ref();
            let counts = !session.is_some_and(|session| may_publish(session, &message));
            self.is_rate_limited = self.is_rate_limited || counts && !self.arrivals.count();
            if self.is_rate_limited {
                return;
            }
            self.waiting.push_back(message);
        }
    }

    /// Whether another message may wait for its answer.
    fn has_room_to_wait(&self) -> bool {
        let bytes = |message: &Incoming| match message {
            Incoming::Text(text) => text.len(),
            Incoming::Binary(bytes) => bytes.len(),
            Incoming::Control => 0,
        };
        let max_bytes = self.service.settings().client_message_limit_bytes.get();
        !self.is_rate_limited
            && self.waiting.len() < WAITING_MESSAGES
            && self.waiting.iter().map(bytes).sum::<usize>() < max_bytes
    }

    /// Checks the socket and `end` if their waker was woken. Returns false if the server ends its tasks.
    fn poll_attention(&mut self, cx: &Context<'_>, frames: &mut Frames) -> bool {
        if !self.attention.take(cx) {
            return true;
        }
        frames.socket.woken();
        self.arrivals.may_wait();
        let mut cx = Context::from_waker(&frames.waker);
        self.end.as_mut().poll(&mut cx).is_pending()
    }

    /// Checks the timers. Returns false if the connection must be dropped.
    fn check_timers(&mut self, now: Instant, frames: &mut Frames) -> bool {
        while self.next_check <= now {
            let heartbeat = self.service.settings().heartbeat();
            let now = Instant::now();
            if let Phase::Closing(until) = self.phase {
                if until <= now {
                    return false;
                }
                self.next_check = until;
                continue;
            }
            let socket = &frames.socket;
            let is_stalled = socket.stalled_for() >= WRITE_STALL;
            // Whether the peer must have answered pings. A peer that takes no bytes cannot receive one. While the session
            // is busy, answers that have arrived may not have been read.
            let is_busy = self.session.as_ref().is_some_and(Session::is_busy);
            let is_asked = socket.stalled_for().is_zero() && !is_busy;
            if is_stalled {
                if let Some(session) = &mut self.session {
                    session.set_end_reason("the client has taken no bytes for too long");
                }
                return false;
            }
            if is_asked && socket.silent_for() >= heartbeat * 2 {
                self.close(Close::Silent, frames);
                continue;
            }
            let mut next = now + heartbeat / 4;
            if let Some(session) = &mut self.session
                && let Some(due) = session.poll_timers(now, frames)
            {
                next = next.min(due);
            }
            self.next_check = next;
        }
        true
    }

    /// Has the task woken at the next check, or when deliveries are due. Without room, only writing can continue them.
    fn set_alarm(&mut self, cx: &mut Context<'_>, now: Instant, has_room: bool) {
        // While the connection is shut down, nothing is checked.
        if let Phase::Ending = self.phase {
            return;
        }
        let session = self.session.as_ref().filter(|_| has_room);
        let deliveries = session.and_then(Session::due);
        let due = deliveries.map_or(self.next_check, |due| due.min(self.next_check));
        self.alarm.set(due);
        if self.alarm.poll(cx, now) {
            cx.waker().wake_by_ref();
        }
    }
}

/// Whether a message may be a command that the client is allowed to publish.
fn may_publish(session: &Session, incoming: &Incoming) -> bool {
    match incoming {
        Incoming::Text(text) => session.can_publish() && text.contains("\"publish\""),
        Incoming::Binary(_) | Incoming::Control => false,
    }
}

/// Passes a message on. Returns what [`Session::receive`] returns.
fn receive(session: &mut Session, incoming: Incoming, frames: &mut Frames) -> bool {
    match incoming {
        Incoming::Text(text) => session.receive(&text, frames),
        Incoming::Binary(_) => {
            session.reject("not_text", None, "Messages must be text frames", frames);
            false
        }
        Incoming::Control => false,
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Connection { shared, driver } = &mut *self;
        // If writing a live event has panicked, that counts as a panic of this task.
        let lendable = shared.0.lock();
        let lendable = &mut *lendable.expect("no write of a live event has panicked");
        driver.take_back(lendable.lease.take());
        let now = Instant::now();
        let done = driver.poll(cx, now, &mut lendable.frames);
        if done.is_pending() && driver.is_quiet(&lendable.frames) {
            let session = driver.session.as_mut();
            lendable.lease = session.and_then(|session| session.lend(cx, shared));
        }
        if done.is_pending() {
            driver.set_alarm(cx, now, lendable.frames.has_room());
        }
        done
    }
}

impl Driver {
    /// Whether the socket and the client have nothing to do.
    fn is_quiet(&self, frames: &Frames) -> bool {
        matches!(self.phase, Phase::Open)
            && self.waiting.is_empty()
            && !self.is_rate_limited
            && frames.socket.is_quiet()
    }

    fn poll(&mut self, cx: &mut Context<'_>, now: Instant, frames: &mut Frames) -> Poll<()> {
        if !self.poll_attention(cx, frames) {
            return Poll::Ready(());
        }
        frames.socket.set_now(now);
        loop {
            if let Phase::Ending = self.phase {
                let mut socket_cx = Context::from_waker(&frames.waker);
                return frames.socket.poll_shutdown(&mut socket_cx);
            }
            if !self.check_timers(now, frames) {
                return Poll::Ready(());
            }
            let mut any = self.take_deliveries(cx, now, frames);
            match self.take_messages(cx, frames) {
                Ok(some) => any |= some,
                Err(End::Gone) => return Poll::Ready(()),
                Err(End::Broken(close)) => match self.phase {
                    Phase::Open => {
                        if let (Close::MessageTooBig, Some(session)) = (close, &self.session) {
                            session.note("too_big", Some("client_message_limit_bytes"));
                        }
                        self.close(close, frames);
                        any = true;
                    }
                    // Our close frame is already queued.
                    Phase::Closing(_) | Phase::Ending => any = true,
                },
            }
            let was_full = !frames.socket.has_room();
            match frames.poll_write() {
                // There was no room before, so the session may have more to send.
                Poll::Ready(Ok(())) => any |= was_full,
                Poll::Ready(Err(_)) => {
                    self.phase = Phase::Ending;
                    continue;
                }
                // No room for answers: only writing makes room, so there is nothing else to do.
                Poll::Pending if !frames.socket.has_room_for_answers() => {
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
