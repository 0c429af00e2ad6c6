//! Many readers that count the events they receive, and measure their latency.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
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
const MARK: &[u8] = b"\"message\":\"1";
const READY: &[u8] = b"\"type\":\"ready\"";
const ENDED: &[u8] = b"\"status\":\"completed\"";

#[derive(Default)]
struct Tally {
    received: AtomicU64,
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
        let tally = Arc::new(Tally::default());
        let opening = Arc::new(Semaphore::new(at_once));
        let mut tasks = Vec::with_capacity(count);
        for reader in 0..count {
            let (address, token, path) = (address.to_owned(), token.to_owned(), path(reader));
            let (tally, opening) = (Arc::clone(&tally), Arc::clone(&opening));
            tasks.push(tokio::spawn(async move {
                let permit = opening.acquire().await.expect("open");
                let mut reader = Reader { stream: TcpStream::connect(&address).await.expect("the server listens"), tally, rest: Vec::new(), live: false };
                // Over HTTP/1.0, a stream has no chunks, which could split the marks that are counted.
                let version = if transport == Transport::EventSource { "1.0" } else { "1.1" };
                let request = |accept: &str, cursor: &str| {
                    format!("GET {path} HTTP/{version}\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n{accept}{cursor}\r\n")
                };
                match transport {
                    Transport::EventSource => reader.send(&request("Accept: text/event-stream\r\n", "")).await,
                    Transport::WebSocket => {
                        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                        reader.send(&request(upgrade, "")).await;
                    }
                    Transport::Poll => {
                        let mut cursor = String::new();
                        drop(permit);
                        loop {
                            reader.send(&request("Accept: application/json\r\n", &cursor)).await;
                            let Some(next) = reader.read_answer().await else { return };
                            cursor = format!("Last-Event-ID: {next}\r\n");
                        }
                    }
                }
                reader.read_some().await;
                drop(permit);
                while reader.read_some().await {}
            }));
        }
        Subscribers { tally, tasks }
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
        self.wait(|tally| tally.received.load(Ordering::Relaxed) >= received)
            .await;
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

struct Reader {
    stream: TcpStream,
    tally: Arc<Tally>,
    rest: Vec<u8>,
    live: bool,
}

impl Reader {
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
        let mut part = vec![0; 32 * 1024];
        let Ok(count @ 1..) = self.stream.read(&mut part).await else {
            return false;
        };
        self.rest.extend_from_slice(&part[..count]);
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
        if !self.live && find(&self.rest, READY).is_some() {
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
        self.tally
            .received
            .fetch_add(times.len() as u64, Ordering::Relaxed);
        if let Some(histogram) = &mut *self.tally.times.lock().expect("whole") {
            times
                .into_iter()
                .for_each(|time| histogram.saturating_record(time));
        }
        let keep = self.rest.len().saturating_sub(KEEP).max(from);
        self.rest.drain(..keep);
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
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
