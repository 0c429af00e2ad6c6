//! Readers whose machines are gone lose their place; readers that are slow keep it.

use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::embed;
use crate::support::network::{Loss, Network};
use crate::support::*;

/// Receive buffers, in bytes. What a reader does not take fills a narrow one soon.
const NARROW: usize = 4 * 1024;
const WIDE: usize = 64 * 1024;

/// A stream from the far end, of which the greeting has come.
async fn far_reader(
    (network, end, buffer): (&Network, usize, usize),
    server: &Server,
    transport: Transport,
    path: &str,
) -> TcpStream {
    let stream = network.connect(end, port(server), buffer);
    stream.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(stream).unwrap();
    let wanted = match transport {
        Transport::EventSource => "Accept: text/event-stream",
        Transport::Poll => "Accept: application/json",
        Transport::WebSocket => {
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        }
    };
    let token = viewer(1);
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{wanted}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    read_to(&mut stream, r#""type":"ready""#).await;
    stream
}

/// Reads until this was received, and returns everything.
async fn read_to(stream: &mut TcpStream, wanted: &str) -> String {
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).contains(wanted) {
        let part = tokio::time::timeout(PATIENCE, stream.read_buf(&mut received)).await;
        let count = part.expect("something in time").unwrap();
        assert!(
            count > 0,
            "it ended: {}",
            String::from_utf8_lossy(&received)
        );
    }
    String::from_utf8_lossy(&received).into_owned()
}

/// What was received, without the sizes of the chunks that it comes in: only they stand between carriage returns.
fn without_chunks(received: &str) -> String {
    let is_size = |part: &&str| u64::from_str_radix(part, 16).is_ok();
    received
        .split("\r\n")
        .filter(|part| !is_size(part))
        .collect()
}

fn port(server: &Server) -> u16 {
    server.url.rsplit(':').next().unwrap().parse().unwrap()
}

/// Runs at the near end of a network, with a runtime of its own there.
fn at_the_near_end<T: Send>(network: &Network, run: impl AsyncFnOnce() -> T + Send) -> T {
    network.near(|| tokio::runtime::Runtime::new().unwrap().block_on(run()))
}

/// A server that can be reached from the far end, also as part of another application.
async fn reachable(settings: serde_json::Value, embedded: bool) -> Server {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let figment = figment(&folder, &settings).merge(("address", "0.0.0.0"));
    let rocket = match embedded {
        true => embed::example::application(figment),
        false => tidings::server(figment).unwrap(),
    };
    launch(rocket, folder).await
}

/// How many streams are open, as the figures tell.
async fn streams(server: &Server, base: &str) -> u64 {
    let request = server.request("GET", &format!("{base}/metrics"), &admin());
    let text = request.send().await.unwrap().text().await.unwrap();
    let open = text.lines().filter_map(|line| {
        let (_, count) = line
            .strip_prefix("tidings_streams{transport=")?
            .split_once("} ")?;
        count.parse::<u64>().ok()
    });
    open.sum()
}

fn vanish(loss: Loss, embedded: bool) {
    let Some(network) = Network::lay(1) else {
        return;
    };
    at_the_near_end(&network, async || {
        let base = if embedded { "/live" } else { "" };
        let server = reachable(json!({"heartbeat_secs": 1}), embedded).await;
        let url = format!("{}{base}", server.url);
        let mut other =
            Listener::open(Transport::EventSource, &url, "/jobs", &viewer(1), None).await;
        other.until_ready().await;
        let mut readers = Vec::new();
        for transport in Transport::ALL {
            for _ in 0..2 {
                let path = format!("{base}/events/jobs?wait=60");
                readers.push(far_reader((&network, 0, WIDE), &server, transport, &path).await);
            }
        }
        assert_eq!(streams(&server, base).await, 7);
        network.lose(0, loss);
        until("the places of those that vanished are free", async || {
            streams(&server, base).await == 1
        })
        .await;
        let create = json!({"job_id": "a", "job_type": "t"});
        let (status, _) = server
            .post(&format!("{base}/api/jobs"), &worker(1), create)
            .await;
        assert_eq!(status, 201);
        other.take_until(|message| message["job_id"] == "a").await;
        drop(readers);
    });
}

#[test]
#[ignore = "slow: waits for timeouts"]
fn readers_behind_a_black_hole_are_disconnected_on_each_transport() {
    vanish(Loss::NoWayBack, false);
}

#[test]
#[ignore = "slow: waits for timeouts"]
fn readers_whose_machines_are_unplugged_are_disconnected_on_each_transport() {
    vanish(Loss::Unplugged, false);
}

#[test]
#[ignore = "slow: waits for timeouts"]
fn readers_of_another_application_are_disconnected_on_each_transport() {
    vanish(Loss::NoWayBack, true);
}

/// Its receive window is closed before others die, and is so still when they are found dead.
#[test]
#[ignore = "slow: takes seconds"]
fn a_live_reader_that_takes_nothing_for_longer_than_the_dead_peer_timeout_stays_connected() {
    keep_the_slow(false);
}

/// Its buffer becomes smaller than the window that it has offered: its machine drops what does not fit, and answers.
#[test]
#[ignore = "slow: takes seconds"]
fn a_reader_whose_machine_takes_less_than_it_offered_stays_connected() {
    keep_the_slow(true);
}

fn keep_the_slow(shrinks: bool) {
    const EVENTS: usize = 300;
    /// More bytes than it takes.
    const STUCK: u64 = 32 * 1024;
    let Some(network) = Network::lay(2) else {
        return;
    };
    at_the_near_end(&network, async || {
        let server = reachable(json!({"heartbeat_secs": 1}), false).await;
        let (sse, path) = (Transport::EventSource, "/events/jobs?tick_ms=0");
        let (buffer, timer) = if shrinks { (WIDE, 1) } else { (NARROW, 4) };
        let mut slow = far_reader((&network, 0, buffer), &server, sse, path).await;
        if shrinks {
            rustix::net::sockopt::set_socket_recv_buffer_size(&slow, NARROW).unwrap();
        }
        server.running_job("a").await;
        // Far more than its receive buffer takes.
        let message = "x".repeat(1_000);
        let lines: String = (1..EVENTS)
            .map(|_| json!({"op": "jobs.progress", "job_id": "a", "message": message}))
            .map(|line| format!("{line}\n"))
            .collect();
        server.batch(&worker(1), lines).await;
        until("it has no room for more", async || {
            tcp(&server, &slow).is_some_and(|tcp| tcp.queued > STUCK && tcp.timer == timer)
        })
        .await;
        let mut dead = Vec::new();
        for _ in 0..3 {
            let path = "/events/devices";
            dead.push(far_reader((&network, 1, WIDE), &server, sse, path).await);
        }
        network.lose(1, Loss::NoWayBack);
        until("the dead are found", async || {
            streams(&server, "").await <= 1
        })
        .await;
        let last = json!({"message": "the last"});
        server.report("/api/jobs/a/complete", last).await;
        let received = read_to(&mut slow, "\"the last\"").await;
        let seqs = without_chunks(&received).matches("\"seq\":").count();
        assert_eq!(seqs, EVENTS + 1, "without a gap, over the same connection");
    });
}

/// What the kernel knows of the server's end of a connection, by `/proc/net/tcp` of this thread's namespace.
struct Tcp {
    /// Bytes that are not acknowledged.
    queued: u64,
    /// The timer that runs: 0 is none, 1 that of retransmission, 2 of keep-alive, 4 of probes of a closed window.
    timer: u8,
}

fn tcp(server: &Server, client: &TcpStream) -> Option<Tcp> {
    let end = |port: u16| format!(":{port:04X}");
    let (server_end, peer) = (end(port(server)), end(client.local_addr().unwrap().port()));
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let line = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields[1].ends_with(&server_end) && fields[2].ends_with(&peer))?;
    let first = |field: usize| line[field].split(':').next().unwrap();
    Some(Tcp {
        queued: u64::from_str_radix(first(4), 16).unwrap(),
        timer: first(5).parse().unwrap(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_idle_is_asked_for_a_sign_of_life_unless_that_is_switched_off() {
    for (settings, expected) in [
        (json!({}), 2),
        (json!({"dead_peer_timeout_secs": 5}), 2),
        (json!({"dead_peer_timeout_secs": 0}), 0),
    ] {
        let server = server_with(settings.clone()).await;
        let mut stream = TcpStream::connect(("127.0.0.1", port(&server)))
            .await
            .unwrap();
        let head = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        read_to(&mut stream, "200 OK").await;
        until("nothing is on its way", async || {
            tcp(&server, &stream).is_some_and(|tcp| tcp.timer == expected)
        })
        .await;
        server.stop().await;
    }
}

/// Without `/proc` as without `pidfd_getfd`, which containers may forbid.
#[test]
fn a_server_that_cannot_reach_its_listening_socket_says_so_once_and_serves() {
    let folder = tempfile::tempdir().unwrap();
    let possible = Command::new("unshare").args(["--mount", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        skip("what mount namespaces need (root and util-linux)");
        return;
    }
    let serve = process::command(folder.path());
    let mut hidden = Command::new("unshare");
    let script = "mount -t tmpfs none /proc && exec \"$0\" serve";
    hidden.args(["--mount", "sh", "-c", script]);
    hidden.arg(serve.get_program()).current_dir(folder.path());
    for (name, value) in serve.get_envs() {
        hidden.env(name, value.unwrap_or_default());
    }
    let mut server = process::Process::start(&mut hidden);
    let address = server.url.trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let head = b"GET /healthz HTTP/1.0\r\n\r\n";
    stream.write_all(head).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("200 OK"), "{answer}");
    let mut stderr = server.stderr();
    server.terminate();
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert_eq!(log.matches("TCP_USER_TIMEOUT").count(), 1, "{log}");
}
