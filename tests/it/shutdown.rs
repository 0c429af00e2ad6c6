//! The end of a server: every stream that was opened gets a close message, and every write that was carried out is answered,
//! whoever connects in the same instant.
//!
//! By hand, with many: `STOP_ROUNDS=200 STOP_STREAMS=5000 cargo test --release --test it -- shutdown::`.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::embed::example;
use crate::support::listener::{socket, until_closed};
use crate::support::process::{Process, blocking, command};
use crate::support::*;
use crate::tls;

/// Streams that are opened at a time.
const AT_ONCE: usize = 200;
/// What Rocket waits for at least, if it waits for anything.
const GRACE: Duration = Duration::from_secs(5);

fn number(name: &str, default: usize) -> usize {
    let named = std::env::var(name).ok();
    named.map_or(default, |text| text.parse().unwrap())
}

/// A server, as its clients see it.
#[derive(Clone)]
struct Place {
    url: String,
    folder: Arc<Path>,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Place {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        match self.url.strip_prefix("http://") {
            Some(rest) => {
                let address = rest.split('/').next().unwrap();
                Ok(Box::new(TcpStream::connect(address).await?))
            }
            None => Ok(Box::new(tls::try_connect(&self.url, &self.folder).await?)),
        }
    }

    /// The path of something below.
    fn path(&self, path: &str) -> String {
        let base = self.url.split('/').skip(3).collect::<Vec<_>>().join("/");
        match base.is_empty() {
            true => path.to_owned(),
            false => format!("/{base}{path}"),
        }
    }
}

/// How many have come so far.
#[derive(Default)]
struct Progress {
    connected: AtomicUsize,
    open: AtomicUsize,
}

/// The headers that ask for each transport.
const TRANSPORTS: [&str; 3] = [
    "Accept: text/event-stream\r\n",
    "Accept: application/json\r\n",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
];
/// A close frame with code 1001, masked with zeros.
const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];

/// Opens a stream, and returns all that it receives until its end.
async fn hear(place: Place, transport: &'static str, progress: Arc<Progress>) -> String {
    let mut received = Vec::new();
    let Ok(mut stream) = place.connect().await else {
        return String::new();
    };
    progress.connected.fetch_add(1, Ordering::Relaxed);
    let (path, token) = (place.path("/events/jobs?wait=60"), viewer(1));
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{transport}\r\n"
    );
    if stream.write_all(head.as_bytes()).await.is_err() {
        return String::new();
    }
    let (mut is_open, mut is_over) = (false, false);
    while matches!(stream.read_buf(&mut received).await, Ok(1..)) {
        let text = String::from_utf8_lossy(&received);
        if text.contains(r#""type":"ready""#) && !std::mem::replace(&mut is_open, true) {
            progress.open.fetch_add(1, Ordering::Relaxed);
        }
        if text.contains(r#""type":"closing""#) && !std::mem::replace(&mut is_over, true) {
            let is_socket = transport.starts_with("Upgrade");
            if is_socket && stream.write_all(&CLOSE).await.is_err() {
                break;
            }
        }
    }
    String::from_utf8_lossy(&received).into_owned()
}

/// Posts a job, in a school of its own, and returns what is answered.
async fn post(place: Place, id: String, progress: Arc<Progress>) -> (String, String) {
    let mut received = Vec::new();
    if let Ok(mut stream) = place.connect().await {
        progress.connected.fetch_add(1, Ordering::Relaxed);
        let body = json!({"job_id": id, "job_type": "test"}).to_string();
        let (path, token, length) = (place.path("/api/jobs"), worker(2), body.len());
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        if stream.write_all(request.as_bytes()).await.is_ok() {
            while matches!(stream.read_buf(&mut received).await, Ok(1..)) {}
        }
    }
    (id, String::from_utf8_lossy(&received).into_owned())
}

/// Everybody who is connected when a server ends, or about to be.
struct Crowd {
    streams: Vec<JoinHandle<String>>,
    posts: Vec<JoinHandle<(String, String)>>,
}

impl Crowd {
    /// So many streams that are open, then so many more that are on their way, of which so many have connected.
    async fn gather(place: &Place, open: usize, arriving: usize, connected: usize) -> Crowd {
        let progress = Arc::<Progress>::default();
        let listen = |count: usize, progress: &Arc<Progress>| {
            let transports = TRANSPORTS.iter().cycle().take(count);
            let hear =
                |transport: &&'static str| hear(place.clone(), transport, Arc::clone(progress));
            transports
                .map(|transport| tokio::spawn(hear(transport)))
                .collect::<Vec<_>>()
        };
        let mut streams = Vec::new();
        while streams.len() < open {
            streams.extend(listen(AT_ONCE.min(open - streams.len()), &progress));
            until("the streams are open", async || {
                progress.open.load(Ordering::Relaxed) == streams.len()
            })
            .await;
        }
        let arrivals = Arc::<Progress>::default();
        let posts = (0..arriving / 5).map(|number| {
            let id = format!("p{number}");
            tokio::spawn(post(place.clone(), id, Arc::clone(&arrivals)))
        });
        let posts = posts.collect();
        streams.extend(listen(arriving, &arrivals));
        while arrivals.connected.load(Ordering::Relaxed) < connected {
            tokio::task::yield_now().await;
        }
        Crowd { streams, posts }
    }

    /// Each stream that had begun got a close message, and at least these many had begun. Returns what the posts were answered.
    async fn check_streams(self, open: usize) -> Vec<(String, String)> {
        let mut begun = 0;
        for stream in self.streams {
            let received = timeout(PATIENCE, stream).await.expect("it ends").unwrap();
            if received.contains(r#""type":"connected""#) {
                begun += 1;
                assert!(
                    received.contains(r#""type":"closing""#),
                    "untold: {received}"
                );
                assert!(received.contains(r#""code":1001"#), "{received}");
            }
        }
        assert!(begun >= open, "{begun} of {open}");
        let mut answers = Vec::new();
        for post in self.posts {
            answers.push(timeout(PATIENCE, post).await.expect("it ends").unwrap());
        }
        answers
    }
}

/// What was carried out was answered, and what was answered so was carried out.
async fn check_posts(folder: &Path, answers: Vec<(String, String)>) {
    let server = Process::start(command(folder).arg("serve"));
    let list = reqwest::Client::new()
        .get(format!("{}/api/jobs?limit=500", server.url))
        .bearer_auth(viewer(2));
    let (_, list) = answer(list).await;
    let jobs = list["jobs"].as_array().unwrap();
    for (id, received) in answers {
        let is_there = jobs.iter().any(|job: &Value| job["job_id"] == *id);
        assert_eq!(
            is_there,
            received.starts_with("HTTP/1.1 201"),
            "{id}: {received}"
        );
    }
}

/// One end of a server as a process.
async fn end(folder: &Path, command: &mut Command, open: usize, arriving: usize, connected: usize) {
    let mut process = Process::start(command.env("TIDINGS_MAX_STREAMS_PER_USER", "20000"));
    let place = Place {
        url: process.url.clone(),
        folder: folder.into(),
    };
    let crowd = Crowd::gather(&place, open, arriving, connected).await;
    let code = blocking(move || process.terminate()).await;
    assert_eq!(code, Some(0));
    let answers = crowd.check_streams(open).await;
    check_posts(folder, answers).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real processes end"]
async fn every_stream_receives_a_close_message_even_if_it_connects_in_the_same_instant() {
    let rounds = number("STOP_ROUNDS", 4);
    let (open, arriving) = (number("STOP_STREAMS", 60), 50);
    for round in 0..rounds {
        let folder = tempfile::tempdir().unwrap();
        let mut serve = command(folder.path());
        // The signal comes at another moment of their arrival each time.
        let connected = arriving * round / rounds;
        end(folder.path(), serve.arg("serve"), open, arriving, connected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn every_stream_over_tls_receives_a_close_message_even_if_it_connects_in_the_same_instant() {
    for connected in [0, 25] {
        let folder = tempfile::tempdir().unwrap();
        if !tls::make_certificate(folder.path()) {
            return;
        }
        let mut serve = command(folder.path());
        serve
            .arg("serve")
            .env("ROCKET_TLS", r#"{certs="cert.pem",key="key.pem"}"#);
        end(folder.path(), &mut serve, 30, 50, connected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn every_stream_of_a_demo_receives_a_close_message_even_if_it_connects_in_the_same_instant() {
    for connected in [0, 25] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("documents")).unwrap();
        let mut demo = command(folder.path());
        demo.args(["demo", "documents", "--beat-ms", "50"]);
        end(folder.path(), &mut demo, 30, 50, connected).await;
    }
}

/// An application has Rocket's own way to end, whose accept loop may notice before its fairings do.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real processes end"]
async fn every_stream_of_another_application_receives_a_close_message_even_if_it_connects_in_the_same_instant()
 {
    for connected in [0, 5, 15, 30] {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let application = example::application(figment(&folder, &json!({})));
        let (announce, announced) = tokio::sync::oneshot::channel();
        // On a runtime of its own: what is under way when that ends is cut, as at the end of a process.
        let running = blocking(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let announce = std::sync::Mutex::new(Some(announce));
                let liftoff = rocket::fairing::AdHoc::on_liftoff("announce", move |rocket| {
                    let announce = announce.lock().unwrap().take().unwrap();
                    let is_announced = announce.send((rocket.config().port, rocket.shutdown()));
                    assert!(is_announced.is_ok());
                    Box::pin(async {})
                });
                let rocket = application.attach(liftoff).ignite().await.unwrap();
                let tidings = rocket.state::<Arc<tidings::Tidings>>().map(Arc::clone);
                let served = rocket.launch().await;
                tidings::http::close(&tidings.unwrap()).await.unwrap();
                // That it was left with open connections is an error to Rocket.
                served.map_err(|error| error.kind().to_string())
            })
        });
        let (port, shutdown) = announced.await.unwrap();
        let place = Place {
            url: format!("http://127.0.0.1:{port}/live"),
            folder: folder.path().into(),
        };
        let crowd = Crowd::gather(&place, 30, 50, connected).await;
        shutdown.notify();
        let ended = running.await;
        let answers = crowd.check_streams(30).await;
        let folder = tempfile::TempDir::keep(Arc::into_inner(folder).unwrap());
        std::fs::create_dir(folder.join("data")).unwrap();
        for file in std::fs::read_dir(&folder).unwrap() {
            let file = file.unwrap().path();
            if file.is_file() {
                std::fs::rename(&file, folder.join("data").join(file.file_name().unwrap()))
                    .unwrap();
            }
        }
        check_posts(&folder, answers).await;
        std::fs::remove_dir_all(&folder).unwrap();
        drop(ended);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn connections_that_nobody_uses_do_not_hold_up_the_end() {
    for _ in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Process::start(command(folder.path()).arg("serve"));
        let address = process.url.strip_prefix("http://").unwrap().to_owned();
        // One has asked something and stays, the other has said nothing.
        let mut kept = TcpStream::connect(&address).await.unwrap();
        let request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
        kept.write_all(request).await.unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"ok\n") {
            assert!(kept.read_buf(&mut received).await.unwrap() > 0);
        }
        let _silent = TcpStream::connect(&address).await.unwrap();
        let began = Instant::now();
        let ended = blocking(move || process.terminate());
        assert_eq!(ended.await, Some(0));
        assert!(began.elapsed() < GRACE, "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real processes end"]
async fn a_signal_that_is_not_to_stop_the_server_does_not_count_as_the_first_of_two() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path());
    let serve = command.arg("serve");
    let mut process = Process::start(serve.env("ROCKET_SHUTDOWN", "{ctrlc=false}"));
    let mut socket = socket(&process.url, "/ws/device-status", &viewer(1)).await;
    process.signal("INT");
    process.signal("INT");
    let ended = blocking(move || process.terminate());
    let (messages, code) = until_closed(&mut socket).await;
    assert_eq!(
        (&messages.last().unwrap()["type"], code),
        (&json!("closing"), Some(1001))
    );
    assert_eq!(ended.await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_opens_while_the_server_stops_receives_a_close_message_with_a_delay() {
    let server = server().await;
    server.running_job("a").await;
    server.tidings.stop();
    for transport in Transport::ALL {
        let mut listener = server.listen(transport, "/jobs").await;
        let messages = listener
            .take_until(|message| message["type"] == "closing")
            .await;
        assert_eq!(messages.len(), 2, "{messages:#?}");
        assert_eq!(messages[0]["type"], "connected");
        let closing = &messages[1];
        assert_eq!(
            (&closing["code"], &closing["reconnect"]),
            (&json!(1001), &json!(true))
        );
    }
    let mut socket = socket(&server.url, "/ws/device-status", &viewer(1)).await;
    let (messages, code) = until_closed(&mut socket).await;
    assert_eq!(
        (&messages.last().unwrap()["type"], code),
        (&json!("closing"), Some(1001))
    );
    until("nobody is left", async || server.tidings.streams() == 0).await;
}
