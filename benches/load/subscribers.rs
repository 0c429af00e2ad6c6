//! Many readers that count the events they receive, and measure their latency. They read from raw sockets and not with the client,
//! because they share the machine with the server, and there are tens of thousands of them.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

use super::server::{Server, nanos};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    EventSource,
    WebSocket,
    Poll,
}

pub(crate) const TRANSPORTS: [Transport; 3] = [
    Transport::EventSource,
    Transport::WebSocket,
    Transport::Poll,
];

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Transport::EventSource => "SSE",
            Transport::WebSocket => "WebSocket",
            Transport::Poll => "long poll",
        })
    }
}

/// Every live event contains this once, followed by its publication time in nanoseconds.
pub(crate) const MARK: &[u8] = b"\"message\":\"1";
/// Tidings sends this once a reader is live.
pub(crate) const READY: &[u8] = b"\"type\":\"ready\"";
/// A head that begins a WebSocket, for readers that do not check it.
pub(crate) const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\n\r\n";
/// How much is read at a time.
const PART_BYTES: usize = 32 * 1024;
const ENDED: &[u8] = b"\"status\":\"completed\"";

/// A server that readers connect to.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) address: &'a str,
    pub(crate) token: &'a str,
    /// What a reader receives once it is live.
    pub(crate) live: &'static [u8],
}

#[derive(Default)]
struct Tally {
    received: AtomicU64,
    /// How many events somebody waits for.
    awaited: AtomicU64,
    arrived: Notify,
    ready: AtomicU64,
    ended: AtomicU64,
    paused: watch::Sender<bool>,
    times: Mutex<Option<Histogram<u64>>>,
}

pub(crate) struct Subscribers {
    tally: Arc<Tally>,
    tasks: Vec<JoinHandle<()>>,
}

impl Subscribers {
    /// Opens `count` readers and waits until each is live.
    pub(crate) async fn open(
        server: &Server,
        transport: Transport,
        count: usize,
        path: impl Fn(usize) -> String,
    ) -> Subscribers {
        let subscribers = Subscribers::begin(
            (&server.address, &server.worker),
            transport,
            count,
            64,
            path,
        );
        subscribers.live(count).await;
        subscribers
    }

    /// Opens `count` readers, up to `at_once` of them concurrently.
    pub(crate) fn begin(
        (address, token): (&str, &str),
        transport: Transport,
        count: usize,
        at_once: usize,
        path: impl Fn(usize) -> String,
    ) -> Subscribers {
        let target = Target {
            address,
            token,
            live: READY,
        };
        Subscribers::begin_at(target, transport, count, at_once, path)
    }

    /// The same, for any server.
    pub(crate) fn begin_at(
        target: Target<'_>,
        transport: Transport,
        count: usize,
        at_once: usize,
        path: impl Fn(usize) -> String,
    ) -> Subscribers {
        let tally = Arc::new(Tally::default());
        let opening = Arc::new(Semaphore::new(at_once));
        let mut tasks = Vec::with_capacity(count);
        for reader in 0..count {
            let (address, request) = (
                target.address.to_owned(),
                Request::new(target, path(reader)),
            );
            let (tally, opening, live) = (Arc::clone(&tally), Arc::clone(&opening), target.live);
            tasks.push(tokio::spawn(async move {
                let permit = opening.acquire().await.expect("open");
                let mut reader = Reader::connect(&address, tally, live, transport).await;
                if transport == Transport::Poll {
                    let mut cursor = String::new();
                    drop(permit);
                    loop {
                        reader.send(&request.text(transport, &cursor)).await;
                        let Some(next) = reader.read_answer().await else {
                            return;
                        };
                        cursor = format!("Last-Event-ID: {next}\r\n");
                    }
                }
                reader.send(&request.text(transport, "")).await;
                reader.read_some().await;
                drop(permit);
                while reader.read_some().await {}
            }));
        }
        Subscribers { tally, tasks }
    }

    /// Opens a reader that keeps what it receives.
    pub(crate) async fn capture(target: Target<'_>, transport: Transport, path: &str) -> Capture {
        let request = Request::new(target, path.to_owned());
        let mut stream = TcpStream::connect(target.address)
            .await
            .expect("the server listens");
        let text = request.text(transport, "");
        stream
            .write_all(text.as_bytes())
            .await
            .expect("the server reads");
        let mut head = Vec::new();
        while find(&head, target.live).is_none() {
            stream.read_buf(&mut head).await.expect("a stream");
        }
        Capture(stream, transport)
    }

    /// Waits until `count` readers are live.
    pub(crate) async fn live(&self, count: usize) {
        self.wait(|tally| tally.ready.load(Ordering::Relaxed) >= count as u64)
            .await;
    }

    pub(crate) fn received(&self) -> u64 {
        self.tally.received.load(Ordering::Relaxed)
    }

    pub(crate) async fn wait_for(&self, received: u64) {
        self.tally.awaited.store(received, Ordering::SeqCst);
        while self.received() < received {
            let arrived = self.tally.arrived.notified();
            if self.tally.received.load(Ordering::SeqCst) < received {
                arrived.await;
            }
        }
    }

    /// Makes live readers stop reading, or continue.
    pub(crate) fn stop_reading(&self, paused: bool) {
        self.tally.paused.send_replace(paused);
    }

    /// Waits until the readers have received the ends of `count` jobs.
    pub(crate) async fn ended(&self, count: usize) {
        self.wait(|tally| tally.ended.load(Ordering::Relaxed) >= count as u64)
            .await;
    }

    async fn wait(&self, condition: impl Fn(&Tally) -> bool) {
        while !condition(&self.tally) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    pub(crate) fn forget_times(&self) {
        *self.tally.times.lock().expect("whole") =
            Some(Histogram::new_with_max(60_000_000_000, 3).expect("3 digits"));
    }

    /// Nanoseconds from publication to reception.
    pub(crate) fn times(&self) -> Histogram<u64> {
        self.tally
            .times
            .lock()
            .expect("whole")
            .take()
            .expect("measured")
    }
}

impl Drop for Subscribers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A reader that keeps what it receives.
pub(crate) struct Capture(TcpStream, Transport);

impl Capture {
    /// Returns the bytes of the next event. Returns `None` if it arrives in several chunks.
    pub(crate) async fn event(&mut self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let end: &[u8] = match self.1 {
            Transport::EventSource => b"}\n\n\r\n",
            Transport::WebSocket | Transport::Poll => b"}",
        };
        while !bytes.ends_with(end) {
            self.0.read_buf(&mut bytes).await.expect("an event");
        }
        let json = find(&bytes, b"{")?;
        let is_split = find(&bytes[json..bytes.len() - 2], b"\r\n").is_some();
        (!is_split && find(&bytes, MARK).is_some()).then_some(bytes)
    }
}

/// A reader's request.
struct Request {
    path: String,
    /// The header fields of every request.
    fields: String,
}

impl Request {
    fn new(target: Target<'_>, path: String) -> Request {
        let Target { address, token, .. } = target;
        let fields = format!("Host: {address}\r\nAuthorization: Bearer {token}\r\n");
        Request { path, fields }
    }

    fn text(&self, transport: Transport, cursor: &str) -> String {
        let Request { path, fields } = self;
        let how = match transport {
            Transport::EventSource => "Accept: text/event-stream\r\n",
            Transport::WebSocket => {
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            }
            Transport::Poll => "Accept: application/json\r\n",
        };
        format!("GET {path} HTTP/1.1\r\n{fields}{how}{cursor}\r\n")
    }
}

/// Removes the framing of the chunks of a response, as far as it has arrived. Its head stays.
#[derive(Default)]
struct Chunks {
    /// What has arrived, and has not been passed on.
    raw: Vec<u8>,
    is_body: bool,
    /// How much of the current chunk is still to come.
    left: usize,
}

impl Chunks {
    fn strip(&mut self, part: &[u8], data: &mut Vec<u8>) {
        self.raw.extend_from_slice(part);
        let mut from = 0;
        loop {
            let rest = &self.raw[from..];
            if !self.is_body {
                let Some(end) = find(rest, b"\r\n\r\n") else {
                    break;
                };
                data.extend_from_slice(&rest[..end + 4]);
                from += end + 4;
                self.is_body = true;
            } else if self.left > 0 {
                let count = self.left.min(rest.len());
                if count == 0 {
                    break;
                }
                data.extend_from_slice(&rest[..count]);
                from += count;
                self.left -= count;
            } else {
                // The end of the previous chunk, and the size of the next one.
                let begin = if rest.starts_with(b"\r\n") { 2 } else { 0 };
                let Some(length) = find(&rest[begin..], b"\r\n") else {
                    break;
                };
                let size = str::from_utf8(&rest[begin..begin + length]).expect("a chunk");
                self.left = usize::from_str_radix(size, 16).expect("a size");
                from += begin + length + 2;
                if self.left == 0 {
                    break;
                }
            }
        }
        self.raw.drain(..from);
    }
}

thread_local! {
    /// What a thread of the runtime has just read. No reader keeps a buffer while it waits.
    static PART: RefCell<Vec<u8>> = RefCell::new(vec![0; PART_BYTES]);
}

struct Reader {
    stream: TcpStream,
    tally: Arc<Tally>,
    /// `None` without chunks.
    chunks: Option<Chunks>,
    rest: Vec<u8>,
    live_mark: &'static [u8],
    live: bool,
}

impl Reader {
    async fn connect(
        address: &str,
        tally: Arc<Tally>,
        live_mark: &'static [u8],
        transport: Transport,
    ) -> Reader {
        Reader {
            stream: TcpStream::connect(address)
                .await
                .expect("the server listens"),
            tally,
            chunks: (transport == Transport::EventSource).then(Chunks::default),
            rest: Vec::new(),
            live_mark,
            live: false,
        }
    }

    async fn send(&mut self, request: &str) {
        self.stream
            .write_all(request.as_bytes())
            .await
            .expect("the server reads");
    }

    /// Reads once and counts. Returns false at the end of the stream.
    async fn read_some(&mut self) -> bool {
        if self.live && *self.tally.paused.borrow() {
            let mut paused = self.tally.paused.subscribe();
            let _ = paused.wait_for(|paused| !paused).await;
        }
        loop {
            if self.stream.readable().await.is_err() {
                return false;
            }
            let read = PART.with_borrow_mut(|part| {
                let count = self.stream.try_read(part)?;
                match &mut self.chunks {
                    Some(chunks) => chunks.strip(&part[..count], &mut self.rest),
                    None => self.rest.extend_from_slice(&part[..count]),
                }
                Ok::<_, std::io::Error>(count)
            });
            match read {
                Ok(0) => return false,
                Ok(_) => break,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
        self.count();
        true
    }

    /// Reads a chunked answer to its end. Returns its cursor.
    async fn read_answer(&mut self) -> Option<String> {
        let mut whole = Vec::new();
        let mut part = vec![0; 32 * 1024];
        while !whole.ends_with(b"\r\n0\r\n\r\n") {
            let Ok(count @ 1..) = self.stream.read(&mut part).await else {
                return None;
            };
            whole.extend_from_slice(&part[..count]);
        }
        let body = find(&whole, b"\r\n\r\n")? + 4;
        let mut chunks = &whole[body..];
        while let Some(end) = find(chunks, b"\r\n") {
            let length = usize::from_str_radix(str::from_utf8(&chunks[..end]).ok()?, 16).ok()?;
            if length == 0 {
                break;
            }
            self.rest
                .extend_from_slice(&chunks[end + 2..end + 2 + length]);
            chunks = &chunks[end + 2 + length + 2..];
        }
        let text = String::from_utf8_lossy(&self.rest).into_owned();
        self.count();
        let cursor = text.rsplit("],\"cursor\":\"").next()?.split('"').next()?;
        Some(cursor.to_owned())
    }

    /// Counts the marks in the data, and keeps what may be the beginning of a mark, and the status before it.
    fn count(&mut self) {
        const KEEP: usize = MARK.len() + 20 + 100;
        if !self.live && find(&self.rest, self.live_mark).is_some() {
            self.live = true;
            self.tally.ready.fetch_add(1, Ordering::Relaxed);
        }
        let now = nanos();
        let mut from = 0;
        let mut times = Vec::new();
        while let Some(at) = find(&self.rest[from..], MARK) {
            let digits = from + at + MARK.len() - 1;
            let Some(sent) = self.rest.get(digits..digits + 19) else {
                break;
            };
            // The status precedes the message.
            if find(&self.rest[from..digits], ENDED).is_some() {
                self.tally.ended.fetch_add(1, Ordering::Relaxed);
            }
            times.push(now.saturating_sub(String::from_utf8_lossy(sent).parse().unwrap_or(now)));
            from = digits + 19;
        }
        let more = times.len() as u64;
        let received = self.tally.received.fetch_add(more, Ordering::SeqCst) + more;
        let awaited = self.tally.awaited.load(Ordering::SeqCst);
        if received >= awaited && received - more < awaited {
            self.tally.arrived.notify_waiters();
        }
        if let Some(histogram) = &mut *self.tally.times.lock().expect("whole") {
            times
                .into_iter()
                .for_each(|time| histogram.saturating_record(time));
        }
        let keep = self.rest.len().saturating_sub(KEEP).max(from);
        self.rest.drain(..keep);
    }
}

pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == needle[0]) {
        let at = from + at;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}
