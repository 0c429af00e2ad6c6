//! Behaviour under pressure: crowds, bursts, readers that do not read, and all clients reconnecting at once. Readers
//! must not be affected by those that do not read.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::quantiles;
use crate::server::{Connection, Server, nanos};
use crate::subscribers::{Subscribers, Transport};

/// Duration of each measurement of latency.
const MEASURE_FOR: Duration = Duration::from_secs(10);
/// Receive buffer of a reader that does not read. It is small, so that the server has to wait.
const SMALL_BUFFER: u32 = 4 * 1024;
/// The argument that makes the program run as a crowd of readers.
pub(crate) const CROWD: &str = "be-a-crowd";
/// Number of channels of one connection.
const CHANNELS_EACH: usize = 100;

/// Publishes `per_sec` events per second, to the jobs in turn, with `filler` bytes in addition to their time.
async fn publish(server: &Server, per_sec: u32, jobs: std::ops::Range<usize>, filler: usize) {
    let mut publisher = Connection::open(&server.address, &server.worker).await;
    let mut rounds = tokio::time::interval(Duration::from_secs(1) / per_sec);
    let filler = "x".repeat(filler);
    let start = Instant::now();
    for job in jobs.cycle() {
        rounds.tick().await;
        if start.elapsed() > MEASURE_FOR {
            return;
        }
        let body = format!(r#"{{"message":"{}{filler}"}}"#, nanos());
        publisher
            .post(&format!("/api/jobs/j{job}/progress"), &body)
            .await;
    }
}

pub(crate) fn compare(calm: &Histogram<u64>, busy: &Histogram<u64>) -> String {
    let ratio = busy.value_at_quantile(0.99) as f64 / calm.value_at_quantile(0.99) as f64;
    format!(
        "calm {}; then {}: p99 x{ratio:.2}",
        quantiles(calm),
        quantiles(busy)
    )
}

/// Readers of the job `j0`, in a separate process with low priority: the benchmark measures what they cost the server,
/// not what they cost the reader.
struct Crowd(Child);

impl Crowd {
    fn open(server: &Server, readers: usize) -> Crowd {
        let this = std::env::current_exe().expect("a file");
        let mut process = Command::new("nice")
            .args(["-n", "19"])
            .arg(this)
            .args([CROWD, &server.address, &server.worker, &readers.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("`nice` is installed");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("a line when all are live");
        Crowd(process)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ends");
    }
}

/// Runs as a [`Crowd`].
pub(crate) async fn be_a_crowd(arguments: &[String]) {
    let [_, address, token, readers] = arguments else {
        panic!("an address, a token and a number");
    };
    let readers = readers.parse().expect("a number");
    let path = |_| "/events/jobs/j0?tick_ms=0".into();
    let crowd = Subscribers::begin((address, token), Transport::WebSocket, readers, 64, path);
    crowd.live(readers).await;
    println!("live");
    std::future::pending().await
}

/// One channel with `crowd` readers, and as many channels with one reader each: how much the first affects the others.
pub(crate) async fn crowd(crowd: usize) {
    let server = Server::start().await;
    for first in (0..=crowd).step_by(1_000) {
        server
            .create_some_jobs(first..(first + 1_000).min(crowd + 1))
            .await;
    }
    let memory = server.memory();
    let single = Subscribers::open(
        &server,
        Transport::WebSocket,
        crowd / CHANNELS_EACH,
        |reader| {
            let channels = (0..CHANNELS_EACH)
                .map(|channel| format!("&channel=jobs/j{}", reader * CHANNELS_EACH + channel + 1));
            format!("/events?tick_ms=0{}", channels.collect::<String>())
        },
    )
    .await;
    let channel = (server.memory() - memory) as f64 / crowd as f64 / 1024.0;
    let memory = server.memory();
    let _crowd = Crowd::open(&server, crowd);
    let each = (server.memory() - memory) as f64 / crowd as f64 / 1024.0;
    single.forget_times();
    publish(&server, 50, 1..crowd + 1, 0).await;
    let calm = single.times();
    single.forget_times();
    tokio::join!(
        publish(&server, 50, 1..crowd + 1, 0),
        publish(&server, 1, 0..1, 0)
    );
    println!(
        "crowd     {crowd} channels with one reader each, {channel:.2} KiB a channel, {each:.1} KiB a connection  {} with 1 event/s to {crowd} readers",
        compare(&calm, &single.times()),
    );
}

/// How a reader is slow.
#[derive(Debug, Clone, Copy)]
enum Slowness {
    /// It reads nothing.
    Stalled,
    /// It reads one byte per second.
    Dripping,
}

/// Opens connections that hardly read.
async fn slow_readers(
    server: &Server,
    transport: Transport,
    slowness: Slowness,
    count: usize,
    path: &str,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(SMALL_BUFFER).expect("a size");
        let address = server.address.parse().expect("an address");
        let mut stream = socket.connect(address).await.expect("the server listens");
        let how = match transport {
            Transport::WebSocket => {
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            }
            Transport::EventSource | Transport::Poll => "Accept: text/event-stream\r\n",
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n{how}\r\n",
            server.address, server.worker
        );
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the server reads");
        tasks.spawn(async move {
            let mut part = [0; 1];
            stream.read_exact(&mut part).await.expect("an answer");
            loop {
                match slowness {
                    Slowness::Stalled => std::future::pending::<()>().await,
                    Slowness::Dripping => tokio::time::sleep(Duration::from_secs(1)).await,
                }
                if stream.read_exact(&mut part).await.is_err() {
                    return;
                }
            }
        });
    }
    tasks
}

/// How much readers are affected by others on the same channel that do not read, and what those cost.
pub(crate) async fn slow(readers: usize, slow: usize) {
    const FILLER: usize = 2_000;
    for transport in [Transport::EventSource, Transport::WebSocket] {
        let server = Server::start().await;
        server.create_jobs(1).await;
        let path = "/events/jobs/j0?tick_ms=0";
        let measured = async || {
            let lively = Subscribers::open(&server, transport, readers, |_| path.into()).await;
            lively.forget_times();
            publish(&server, 50, 0..1, FILLER).await;
            lively.times()
        };
        drop(measured().await);
        let calm = measured().await;
        let memory = server.memory();
        let _stalled = slow_readers(&server, transport, Slowness::Stalled, slow / 2, path).await;
        let _dripping = slow_readers(&server, transport, Slowness::Dripping, slow / 2, path).await;
        // Publish until their buffers are full.
        publish(&server, 50, 0..1, FILLER).await;
        let held = server.memory().saturating_sub(memory);
        let busy = measured().await;
        println!(
            "slow      {transport:<12} {readers} readers at 50/s: {} with {slow} that do not read, {:.1} KiB each",
            compare(&calm, &busy),
            held as f64 / slow as f64 / 1024.0,
        );
    }
}

/// Returns lines of a batch: reports of the jobs in turn.
fn reports(numbers: std::ops::Range<usize>) -> String {
    let line = |n: usize| {
        format!(
            "{{\"op\":\"jobs.progress\",\"job_id\":\"j{}\",\"message\":\"{}\"}}\n",
            n % 100,
            nanos()
        )
    };
    numbers.map(line).collect()
}

/// A burst of `events` to lagging readers: what it costs in memory, and how long they take to catch up.
pub(crate) async fn burst(readers: usize, events: usize) {
    for transport in [Transport::EventSource, Transport::WebSocket] {
        for (tick_ms, delivered) in [(0, "every event"), (100, "the newest")] {
            let server = Server::start().await;
            server.create_jobs(100).await;
            let path = format!("/events/jobs?tick_ms={tick_ms}");
            let before = server.memory();
            let lagging = Subscribers::open(&server, transport, readers, |_| path.clone()).await;
            let open = server.memory();
            lagging.stop_reading(true);
            let start = Instant::now();
            let mut publisher = Connection::open(&server.address, &server.worker).await;
            for first in (0..events).step_by(1_000) {
                publisher
                    .post("/api/batch", &reports(first..first + 1_000))
                    .await;
            }
            let published = start.elapsed();
            let ends = |n| {
                format!(
                    "{{\"op\":\"jobs.complete\",\"job_id\":\"j{n}\",\"message\":\"{}\"}}\n",
                    nanos()
                )
            };
            publisher
                .post("/api/batch", &(0..100).map(ends).collect::<String>())
                .await;
            let start = Instant::now();
            lagging.stop_reading(false);
            lagging.ended(readers * 100).await;
            println!(
                "burst     {transport:<12} {readers} readers that lag: {events} events in {:.1} s; {delivered} caught up with in {:.1} s, {} received; {:.1} KiB each before, {:.1} at most",
                published.as_secs_f64(),
                start.elapsed().as_secs_f64(),
                lagging.received(),
                (open - before) as f64 / readers as f64 / 1024.0,
                (server.peak_memory() - before) as f64 / readers as f64 / 1024.0,
            );
        }
    }
}

/// All clients reconnect at once, with a cursor, to a server that has just been killed and restarted.
pub(crate) async fn reconnect(clients: usize, missed: usize) {
    for transport in [Transport::EventSource, Transport::WebSocket] {
        let mut server = Server::start().await;
        server.create_jobs(100).await;
        let cursor = server.cursor().await;
        let mut publisher = Connection::open(&server.address, &server.worker).await;
        publisher.post("/api/batch", &reports(0..missed)).await;
        server.restart();
        let (memory, cpu, start) = (server.memory(), server.cpu_secs(), Instant::now());
        let probed: Arc<Mutex<Probed>> = Arc::default();
        let probing = Probing::begin(&server, &probed);
        let path = |_| format!("/events/jobs?tick_ms=0&cursor={cursor}");
        let back = Subscribers::begin(
            (&server.address, &server.worker),
            transport,
            clients,
            clients,
            path,
        );
        back.live(clients).await;
        back.wait_for((clients * missed) as u64).await;
        println!(
            "reconnect {transport:<12} {clients} clients at once, {missed} events behind: all of them live in {:.1} s, {:.2} ms server CPU and {:.1} KiB at most each",
            start.elapsed().as_secs_f64(),
            (server.cpu_secs() - cpu) / clients as f64 * 1e3,
            (server.peak_memory() - memory) as f64 / clients as f64 / 1024.0,
        );
        probing.end();
        let Probed {
            asked,
            failed,
            slowest,
        } = *probed.lock().expect("no panic");
        println!(
            "reconnect {transport:<12} meanwhile /readyz failed {failed} of {asked} times, slowest {:.1} ms",
            slowest.as_secs_f64() * 1e3,
        );
    }
}

/// What requests to `/readyz` observed.
#[derive(Clone, Copy, Default)]
struct Probed {
    asked: u64,
    failed: u64,
    slowest: Duration,
}

/// Requests `/readyz` from a thread of its own, because the tasks that read the streams keep all others waiting.
struct Probing {
    ends: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Probing {
    fn begin(server: &Server, probed: &Arc<Mutex<Probed>>) -> Probing {
        let (address, token) = (server.address.clone(), server.worker.clone());
        let probed = Arc::clone(probed);
        let (ends, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = probe(address, token, probed) => {}
                    _ = ended => {}
                }
            });
        });
        Probing { ends, thread }
    }

    fn end(self) {
        drop(self.ends);
        self.thread.join().expect("no panic");
    }
}

/// Requests `/readyz` continuously, as a load balancer would.
async fn probe(address: String, token: String, probed: Arc<Mutex<Probed>>) {
    let mut connection = Connection::open(&address, &token).await;
    loop {
        let start = Instant::now();
        let status = connection.get("/readyz").await;
        {
            let mut probed = probed.lock().expect("no panic");
            probed.asked += 1;
            probed.failed += u64::from(status != 200);
            probed.slowest = probed.slowest.max(start.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How long a 404 answer takes for a client of another school, for subjects that exist and for subjects that do not.
/// The requests alternate, so that both are measured under the same conditions.
pub(crate) async fn rejections(times: usize) {
    let server = Server::start().await;
    server.create_jobs(1_000).await;
    let other_token = server.token(2);
    let http = reqwest::Client::new();
    for (method, path) in [
        ("GET", "/api/jobs/*"),
        ("POST", "/api/jobs/*/cancel"),
        ("GET", "/events/jobs/*"),
        ("GET", "/events/schools/*"),
        ("GET", "/monitor/schools/2/jobs/*"),
    ] {
        let (theirs, nobody) = match path.contains("schools/*") {
            true => ("1", "3"),
            false => ("j7", "x7"),
        };
        let mut taken = [crate::histogram(), crate::histogram()];
        for round in 0..times * 2 {
            let name = [theirs, nobody][round % 2];
            let url = format!("http://{}{}", server.address, path.replace('*', name));
            let request = http.request(method.parse().expect("a method"), url);
            let asked = Instant::now();
            let answer = request
                .bearer_auth(&other_token)
                .body("{}")
                .send()
                .await
                .expect("an answer");
            assert_eq!(answer.status(), 404, "{method} {path}");
            answer.bytes().await.expect("a body");
            taken[round % 2].saturating_record(asked.elapsed().as_nanos() as u64);
        }
        let [theirs, nobody] = taken.map(|times| times.value_at_quantile(0.5) as f64 / 1e3);
        println!(
            "refusals  {method:<4} {path:<26} median {theirs:>6.1} us for another school's, {nobody:>6.1} us for one that does not exist: x{:.3}",
            theirs / nobody
        );
    }
}
