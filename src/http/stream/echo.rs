//! Runs the Autobahn test suite against an echo server on the same [`Socket`]. Every case must pass strictly.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::process::Output;
use std::task::{Context, Poll};
use std::time::Duration;

use rocket::data::{IoHandler, IoStream};
use rocket::{get, routes};
use tokio::process::Command;
use tokio::time::{Instant, timeout};
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::handshake::{MaybeHandshake, Upgrade};
use super::socket::{End, Incoming, Socket};
use crate::http::problem::Problem;
use crate::wire;

/// The suite sends messages of 16 MiB.
const MESSAGE_LIMIT: usize = 16 << 20;
/// The time limit for all cases together.
const CASES_WAIT: Duration = Duration::from_secs(300);
/// The time limit for a peer's answer to our close frame.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Fails if the suite is not installed.
const INSTALLED: &str = "from importlib.util import find_spec as find; find('autobahn_cases').origin; import autobahn.twisted";

struct Echo;

#[rocket::async_trait]
impl IoHandler for Echo {
    async fn io(self: Pin<Box<Self>>, io: IoStream) -> io::Result<()> {
        tokio::spawn(echo(Socket::new(io, MESSAGE_LIMIT, false)));
        Ok(())
    }
}

/// Echoes messages until either side closes.
async fn echo(mut socket: Socket) {
    if let End::Broken(close) = poll_fn(|cx| converse(&mut socket, cx)).await {
        socket.close(close);
        let conversation = poll_fn(|cx| converse(&mut socket, cx));
        let _ = timeout(CLOSE_WAIT, conversation).await;
    }
    poll_fn(|cx| socket.poll_shutdown(cx)).await;
}

fn converse(socket: &mut Socket, cx: &mut Context<'_>) -> Poll<End> {
    socket.set_now(Instant::now());
    socket.woken();
    loop {
        let mut heard = false;
        if socket.has_room_for_answers()
            && let Poll::Ready(incoming) = socket.poll_read(cx)
        {
            match incoming {
                Ok(incoming) => incoming.into_iter().for_each(|message| match message {
                    Incoming::Text(text) => socket.send(wire::text_frame(text.as_bytes()).into()),
                    Incoming::Binary(bytes) => {
                        let frame = Frame::message(bytes, OpCode::Data(Data::Binary), true);
                        let mut encoded = Vec::new();
                        frame.format(&mut encoded).unwrap();
                        socket.send(encoded.into());
                    }
                    Incoming::Control => {}
                }),
                Err(end) => return Poll::Ready(end),
            }
            heard = true;
        }
        match socket.poll_write(cx) {
            Poll::Ready(Err(end)) => return Poll::Ready(end),
            Poll::Ready(Ok(())) | Poll::Pending if heard => {}
            Poll::Ready(Ok(())) | Poll::Pending => return Poll::Pending,
        }
    }
}

#[get("/")]
fn accept(handshake: Result<MaybeHandshake, Problem>) -> Option<Box<Upgrade<Echo>>> {
    Some(handshake.ok()?.sound()?.accept(Echo))
}

/// Runs the suite's cases. Returns none if they are not installed.
async fn run_cases(port: u16) -> Option<Output> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let installed = Command::new(&python)
        .args(["-c", INSTALLED])
        .output()
        .await
        .is_ok_and(|output| output.status.success());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/conformance.py");
    if !installed {
        return None;
    }
    let cases = Command::new(&python)
        .args([script, &format!("ws://127.0.0.1:{port}/")])
        .kill_on_drop(true)
        .output();
    let cases = timeout(CASES_WAIT, cases).await;
    Some(cases.expect("a case that hangs has failed").unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: hundreds of cases"]
async fn every_case_of_the_autobahn_suite_is_passed_strictly() {
    let config = rocket::Config {
        port: 0,
        log_level: rocket::config::LogLevel::Off,
        ..rocket::Config::release_default()
    };
    let (port_sender, port) = tokio::sync::oneshot::channel();
    let port_sender = std::sync::Mutex::new(Some(port_sender));
    let liftoff = rocket::fairing::AdHoc::on_liftoff("port", move |rocket| {
        let port = rocket.config().port;
        Box::pin(async move {
            let port_sender = port_sender.lock().unwrap().take().unwrap();
            port_sender.send(port).unwrap();
        })
    });
    let rocket = rocket::custom(config)
        .mount("/", routes![accept])
        .attach(liftoff)
        .ignite()
        .await
        .unwrap();
    let shutdown = rocket.shutdown();
    let server = tokio::spawn(rocket.launch());
    let port = port.await.unwrap();

    let cases = run_cases(port).await;
    shutdown.notify();
    server.await.unwrap().unwrap();
    let Some(output) = cases else {
        assert!(std::env::var_os("TIDINGS_REQUIRE_ALL").is_none());
        eprintln!("SKIPPED: the Autobahn test suite is not installed");
        return;
    };
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    let results: Vec<[String; 4]> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(results.len(), 301, "{complaints}");
    let strict = |behaviour: &str| matches!(behaviour, "OK" | "INFORMATIONAL");
    let lax: Vec<_> = results
        .iter()
        .filter(|[_, behaviour, of_closing, _]| !strict(behaviour) || !strict(of_closing))
        .collect();
    assert!(lax.is_empty(), "{lax:#?}");
}
