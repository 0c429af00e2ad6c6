//! `tidings watch` behind proxies that hold back, cut or redirect what it reads: the real command, against a real server.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::process::{blocking, run, watch};
use crate::support::*;

/// What a proxy does to requests. It lets everything else pass.
#[derive(Clone, Copy, PartialEq)]
enum Proxy {
    /// Never answers requests for an event stream.
    HoldsStreams,
    /// Answers requests for an event stream with a head only.
    HoldsBodies,
    /// Never answers anything.
    HoldsAll,
    /// Cuts the first event stream before `ready`.
    CutsFirst,
    /// Redirects everything.
    Redirects,
}

impl Proxy {
    /// Starts the proxy in front of a server. Returns its URL.
    async fn start(self, server: &Server) -> String {
        let to = server.url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let is_first = Arc::new(AtomicBool::new(true));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(self.pass(socket, to.clone(), Arc::clone(&is_first)));
            }
        });
        url
    }

    async fn pass(self, mut socket: TcpStream, to: String, is_first: Arc<AtomicBool>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            // A client may open a connection that it does not use.
            let Ok(byte) = socket.read_u8().await else {
                return;
            };
            head.push(byte);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let is_stream = text.contains("text/event-stream");
        match self {
            Proxy::HoldsAll => return std::future::pending().await,
            Proxy::HoldsStreams if is_stream => return std::future::pending().await,
            Proxy::HoldsBodies if is_stream => {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
                socket.write_all(answer).await.unwrap();
                return std::future::pending().await;
            }
            Proxy::Redirects => {
                let path = text.split(' ').nth(1).unwrap();
                let answer = format!(
                    "HTTP/1.1 308 Moved\r\nLocation: https://new.example{path}\r\nContent-Length: 0\r\n\r\n"
                );
                return socket.write_all(answer.as_bytes()).await.unwrap();
            }
            _ => {}
        }
        let mut server = TcpStream::connect(to).await.unwrap();
        server.write_all(&head).await.unwrap();
        if self == Proxy::CutsFirst && is_stream && is_first.swap(false, Ordering::SeqCst) {
            let mut seen = Vec::new();
            let ready = br#""type":"ready""#;
            while !seen.windows(ready.len()).any(|part| part == ready) {
                seen.push(server.read_u8().await.unwrap());
            }
            // Up to the end of the event before.
            let end = seen.windows(2).rposition(|part| part == b"\n\n").unwrap();
            return socket.write_all(&seen[..end + 2]).await.unwrap();
        }
        let _ = copy_bidirectional(&mut socket, &mut server).await;
    }
}

/// Runs `tidings watch` behind a proxy, to its end.
async fn watched(server: &Server, proxy: Proxy, arguments: &[&str]) -> (Output, String, String) {
    let url = proxy.start(server).await;
    let mut watching: Command = watch(server, arguments);
    watching.env("TIDINGS_URL", &url);
    let output = blocking(move || run(&mut watching)).await;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, complaint, url)
}

async fn server_with_a_completed_job() -> Server {
    let server = server().await;
    let job = json!({"job_id": "a", "job_type": "t", "status": "in_progress"});
    server.report("/api/jobs", job).await;
    server.report("/api/jobs/a/complete", json!({})).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for timeouts"]
async fn where_not_even_the_head_of_a_stream_passes_the_watch_begins_by_long_poll() {
    let server = server_with_a_completed_job().await;
    let (output, complaint, _) = watched(&server, Proxy::HoldsStreams, &["jobs/a"]).await;
    assert_eq!((output.status.code(), complaint.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for timeouts"]
async fn a_watch_says_that_it_tries_again_now_if_it_does_not_pause() {
    let server = server_with_a_completed_job().await;
    let (output, complaint, url) = watched(&server, Proxy::HoldsBodies, &["jobs/a"]).await;
    let expected = format!("connection to {url} lost; trying again now\nreconnected to {url}\n");
    assert_eq!((output.status.code(), complaint), (Some(0), expected));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for timeouts"]
async fn where_nothing_is_answered_the_watch_says_what_was_tried() {
    let server = server().await;
    let (output, complaint, url) = watched(&server, Proxy::HoldsAll, &["jobs"]).await;
    let reason = "it does not answer, neither by an event stream nor by long poll";
    assert_eq!(output.status.code(), Some(5), "{complaint}");
    assert!(
        complaint.contains(&format!("cannot reach {url}: {reason}")),
        "{complaint}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_ends_the_watch_with_the_url_to_use() {
    let server = server().await;
    let (output, complaint, _) = watched(&server, Proxy::Redirects, &["jobs"]).await;
    assert_ne!(output.status.code(), Some(0));
    for part in [
        "redirects to https://new.example/events/jobs",
        "use https://new.example as the URL",
        "(HTTP 308)",
    ] {
        assert!(complaint.contains(part), "{part}: {complaint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn what_was_shown_before_ready_is_not_shown_again_after_a_cut() {
    let server = server().await;
    let job = json!({"job_id": "a", "job_type": "t", "status": "in_progress"});
    let created = server.report("/api/jobs", job).await;
    let cursor = created["cursor"].as_str().unwrap();
    server.report("/api/jobs/a/complete", json!({})).await;
    for id in ["b", "c"] {
        // A type of its own: no time left that would be withdrawn while the test runs.
        let job = json!({"job_id": id, "job_type": id, "status": "in_progress"});
        server.report("/api/jobs", job).await;
    }
    server.report("/api/jobs/c/complete", json!({})).await;
    for start in [vec![], vec!["--cursor", cursor]] {
        let has_cursor = !start.is_empty();
        let hook = "echo $TIDINGS_STATUS >> hooks";
        // The `ready` of the second connection ends it.
        let mut arguments = vec!["jobs", "--json", "--exec", hook];
        arguments.extend(start);
        let url = Proxy::CutsFirst.start(&server).await;
        let mut watching = watch(&server, &arguments);
        watching.env("TIDINGS_URL", &url);
        watching.current_dir(server.folder.path());
        let lines = blocking(move || until_ready(watching)).await;
        let seqs: Vec<u64> = lines
            .iter()
            .filter_map(|line| line["seq"].as_u64())
            .collect();
        let once: std::collections::BTreeSet<u64> = seqs.iter().copied().collect();
        assert_eq!(seqs.len(), once.len(), "{lines:#?}");
        let is_marked = |line: &&Value| line["seq"].is_u64() && line["snapshot"] != true;
        let unmarked = lines.iter().filter(is_marked).count();
        assert_eq!(unmarked, if has_cursor { 4 } else { 0 }, "{lines:#?}");
        let connections = lines.iter().filter(|line| line["type"] == "connected");
        assert_eq!(connections.count(), 2, "the first stream was cut");
    }
    let hooks = std::fs::read_to_string(server.folder.path().join("hooks")).unwrap();
    assert!(hooks.lines().count() <= 4, "{hooks}");
}

/// Reads the messages of a command up to `ready`.
fn until_ready(mut command: Command) -> Vec<Value> {
    use std::io::BufRead;
    use std::process::Stdio;

    use crate::support::process::{Guarded, Patient};
    let mut child = Guarded(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let lines = std::io::BufReader::new(Patient(child.0.stdout.take().unwrap())).lines();
    let mut messages: Vec<Value> = Vec::new();
    for line in lines {
        messages.push(serde_json::from_str(&line.unwrap()).unwrap());
        if messages.last().unwrap()["type"] == "ready" {
            break;
        }
    }
    messages
}
