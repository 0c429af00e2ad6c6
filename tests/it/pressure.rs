//! Hard times: readers that hardly read, or vanish, and everybody coming back at once. What it costs stays within what
//! the documentation says, and nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::*;

/// As docs/configuration.md says, in bytes: a connection's own, whatever carries it; a page of the log that it holds
/// while it is behind; a school's window with all that surrounds its events.
const CONNECTION: usize = 64 * 1024;
const PAGE: usize = 1024 * 1024;
const SCHOOL: usize = 16 * 1024 * 1024;
/// What is on its way between publishers, the writer and the dispatcher, and the database's own cache.
const UNDER_WAY: usize = 64 * 1024 * 1024;

/// Opens a stream by hand, with hardly any room for what comes.
async fn narrow(url: &str, transport: Transport, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 * 1024).unwrap();
    let address = url.trim_start_matches("http://");
    let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
    let wanted = match transport {
        Transport::WebSocket => {
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        }
        _ => "Accept: text/event-stream\r\n",
    };
    let token = viewer(1);
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{wanted}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert!(matches!(&status[9..], b"101" | b"200"));
    stream
}

/// 100,000 events of 1,000 jobs while 80 readers take nothing and 80 a byte a second. (With mailboxes without a bound it took
/// 445 MB instead of 117.)
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many events"]
async fn a_burst_to_readers_that_hardly_read_stays_within_the_stated_memory_and_loses_no_milestone()
{
    const JOBS: usize = 1_000;
    const EVENTS_EACH: usize = 100;
    const EACH: usize = 40;
    /// So that nothing folds but what must.
    const EVERY: &str = "/jobs?tick_ms=0";
    let folder = tempfile::tempdir().unwrap();
    let mut command = process::command(folder.path());
    command.arg("serve");
    command.env("TIDINGS_PUBLISHES_PER_SEC", "0");
    command.env("TIDINGS_EVENT_BYTES_PER_SEC", "0");
    let server = process::Process::start(&mut command);
    let http = reqwest::Client::new();
    let batch = async |lines: Vec<Value>| {
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let request = http.post(format!("{}/api/batch", server.url));
        let sent = request.bearer_auth(worker(1)).body(lines).send().await;
        assert_eq!(sent.unwrap().status(), 200);
    };

    let mut stalled = Vec::new();
    let mut dripping = tokio::task::JoinSet::new();
    for transport in [Transport::EventSource, Transport::WebSocket] {
        for _ in 0..EACH {
            let mut listener =
                Listener::open(transport, &server.url, EVERY, &viewer(1), None).await;
            listener.until_ready().await;
            stalled.push(listener);
            let mut stream = narrow(&server.url, transport, &format!("/events{EVERY}")).await;
            dripping.spawn(async move {
                while stream.read_u8().await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
        }
    }
    let mut lively =
        Listener::open(Transport::WebSocket, &server.url, "/jobs", &viewer(1), None).await;
    lively.until_ready().await;
    let before = server.memory();
    let last = format!("j{}", JOBS - 1);
    let is_last =
        move |message: &Value| message["job_id"] == *last && message["status"] == "completed";
    let reader = tokio::spawn({
        let is_last = is_last.clone();
        async move { lively.take_until(is_last).await }
    });

    let filler = "x".repeat(600);
    for jobs in (0..JOBS).collect::<Vec<_>>().chunks(10) {
        let mut lines = Vec::new();
        for job in jobs {
            let id = format!("j{job}");
            lines.push(json!({"op": "jobs.create", "job_id": id, "job_type": "t", "status": "in_progress"}));
            lines.extend((2..EVENTS_EACH).map(|step| {
                json!({"op": "jobs.progress", "job_id": id, "progress": step, "message": filler})
            }));
            lines.push(json!({"op": "jobs.complete", "job_id": id, "result": job}));
        }
        batch(lines).await;
    }
    let received = reader.await.unwrap();
    let grown = server.peak_memory() - before;
    let readers = EACH * 4 + 1;
    let stated = readers * (CONNECTION + PAGE) + SCHOOL + UNDER_WAY;
    assert!(grown < stated, "{grown} bytes more, {stated} are stated");

    // Of those that took nothing, one of each transport has the patience to read it all now.
    let mut stories = vec![(received, None)];
    for mut listener in [stalled.swap_remove(EACH), stalled.swap_remove(0)] {
        stories.push((
            listener.take_until(&is_last).await,
            Some(JOBS * EVENTS_EACH),
        ));
    }
    for (story, whole) in stories {
        let of_events: Vec<&Value> = story
            .iter()
            .filter(|message| message["seq"].is_u64())
            .collect();
        assert!(of_events.is_sorted_by(|one, next| one["seq"].as_u64() < next["seq"].as_u64()));
        let ends: Vec<u64> = story
            .iter()
            .filter_map(|message| message["result"].as_u64())
            .collect();
        assert_eq!(ends, (0..JOBS as u64).collect::<Vec<_>>());
        assert!(story.iter().all(|message| message["type"] != "reset"));
        assert!(whole.is_none_or(|whole| of_events.len() == whole));
    }
}

/// Killed, started again, and everybody is back in the same instant, each from where it was.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn clients_that_reconnect_all_at_once_after_a_restart_receive_what_they_missed_once() {
    const CLIENTS: usize = 300;
    const EVENTS: usize = 60;
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = process::command(folder.path());
        // They all read at once, which takes seconds on a busy machine.
        command.env("TIDINGS_READ_TIMEOUT_MS", "60000").arg("serve");
        process::Process::start(&mut command)
    };
    let mut server = start();
    let http = reqwest::Client::new();
    let mut cursors = Vec::new();
    let created = json!({"job_id": "a", "job_type": "t", "status": "in_progress"});
    for step in 0..=EVENTS {
        let (path, body) = match step {
            0 => ("jobs", created.clone()),
            _ => ("jobs/a/progress", json!({"message": step.to_string()})),
        };
        let request = http.post(format!("{}/api/{path}", server.url));
        let (status, event) = answer(request.bearer_auth(worker(1)).json(&body)).await;
        assert!(status < 300, "{event}");
        cursors.push(event["cursor"].as_str().unwrap().to_owned());
    }
    server.kill();
    let server = start();
    let together = Arc::new(tokio::sync::Barrier::new(CLIENTS));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (url, together) = (server.url.clone(), Arc::clone(&together));
        let known = client % EVENTS;
        let cursor = cursors[known].clone();
        clients.spawn(async move {
            together.wait().await;
            let transport = Transport::ALL[client % 3];
            let token = viewer(1);
            let mut listener =
                Listener::open(transport, &url, "/jobs/a?tick_ms=0", &token, Some(&cursor)).await;
            let missed = listener.until_ready().await;
            let seqs: Vec<usize> = missed
                .iter()
                .filter_map(|message| message["seq"].as_u64())
                .map(|seq| seq as usize)
                .collect();
            assert_eq!(
                seqs,
                (known + 2..=EVENTS + 1).collect::<Vec<_>>(),
                "{transport:?}"
            );
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

/// A peer whose machine is gone sends neither a FIN nor an answer. What stands for it here swallows everything.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn readers_that_vanish_without_a_word_are_disconnected() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    server.running_job("a").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = listener.local_addr().unwrap();
    let (cut, is_cut) = tokio::sync::watch::channel(false);
    let target = server.url.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (target, mut is_cut) = (target.clone(), is_cut.clone());
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = async { is_cut.wait_for(|cut| *cut).await.map(drop).unwrap() } => {}
                }
                // From here on the server's bytes are taken and lead nowhere, and none come back.
                let _ = tokio::io::copy(&mut far, &mut tokio::io::sink()).await;
            });
        }
    });
    let base = format!("http://{gateway}");
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut reader =
            Listener::open(Transport::WebSocket, &base, "/jobs/a", &viewer(1), None).await;
        reader.until_ready().await;
        readers.push(reader);
    }
    assert_eq!(server.tidings.streams(), 3);
    cut.send(true).unwrap();
    until("their places are free", async || {
        server.tidings.streams() == 0
    })
    .await;
}

/// A text frame, masked with zeros, which changes nothing.
fn text_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | 126];
    frame.extend((text.len() as u16).to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    frame
}

/// A server whose clients may ask as fast as they can.
fn patient_server(folder: &std::path::Path) -> process::Process {
    let mut command = process::command(folder);
    let command = command
        .arg("serve")
        .env("TIDINGS_CLIENT_MESSAGES_PER_SEC", "0");
    process::Process::start(command)
}

/// Asking without listening: the acknowledgements would pile up.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many events"]
async fn a_client_that_asks_and_does_not_listen_is_slowed_and_costs_a_bounded_amount() {
    const CLIENTS: usize = 2;
    /// What one may send before it is stopped: what the kernel's buffers take, and some.
    const SENT_MAX: usize = 32 * 1024 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let server = patient_server(folder.path());
    let before = server.memory();
    let many = vec!["jobs"; 2_000];
    let frame = text_frame(&json!({"type": "subscribe", "channels": many}).to_string());
    let mut open = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = narrow(&server.url, Transport::WebSocket, "/ws").await;
        let mut sent = 0;
        // Until it is not heard any more.
        while let Ok(written) =
            tokio::time::timeout(Duration::from_secs(4), stream.write_all(&frame)).await
        {
            written.unwrap();
            sent += frame.len();
            assert!(sent < SENT_MAX, "it is heard for ever");
        }
        open.push(stream);
    }
    let grown = server.peak_memory() - before;
    assert!(
        grown < CLIENTS * (CONNECTION + PAGE) + SCHOOL,
        "{grown} bytes more"
    );
}

/// Where an answer is the state itself: a client that asks faster than it reads is read no faster than that, or what is to be
/// sent would pile up.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_client_that_asks_faster_than_it_reads_is_read_only_as_fast_as_it_reads() {
    const QUESTIONS: usize = 500;
    let server = server_with(json!({"client_messages_per_sec": 0})).await;
    server.running_job("a").await;
    let mut stream = narrow(&server.url, Transport::WebSocket, "/progress/ws/a").await;
    let question = json!({"type": "subscribe", "channels": ["jobs"]});
    let mut asked = text_frame(&question.to_string()).repeat(QUESTIONS);
    let last = json!({"type": "ping", "timestamp": "the last"});
    asked.extend(text_frame(&last.to_string()));
    let (mut reading, mut writing) = stream.split();
    let asking = writing.write_all(&asked);
    let hearing = async {
        let mut heard = Vec::new();
        while !is_answered(&heard, "the last") {
            hear(&mut reading, &mut heard).await;
        }
        count(&heard, r#""job_id":"a""#)
    };
    let (asked, answered) = tokio::join!(asking, hearing);
    asked.unwrap();
    // One is carried out, and one waits.
    let ahead = QUESTIONS.saturating_sub(answered);
    assert!(ahead <= 2, "{ahead} are still to be sent");
}

/// What is sent behind a question whose answer takes long: the server reads some of it, and the rest when it has answered.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many events"]
async fn messages_are_judged_by_when_they_arrive_and_not_by_when_they_are_answered() {
    const PER_SEC: usize = 100;
    /// Twice as many as in a second may be sent at once.
    const AT_ONCE: usize = 2 * PER_SEC - 5;
    /// More than may be sent at once and what the server reads ahead of its answers.
    const ONE_BY_ONE: usize = 300;
    /// In so many batches, more than fits into the sockets' buffers.
    const BATCHES: usize = 6;
    const JOBS: usize = 100;
    // While it answers on a busy machine, the client must not count as silent.
    let settings = json!({"client_messages_per_sec": PER_SEC, "heartbeat_secs": 60});
    let server = server_with(settings).await;
    let create = |n| {
        let metadata = json!({"text": "x".repeat(16_000)});
        let line = json!({"op": "jobs.create", "job_id": format!("j{n}"), "job_type": "t", "metadata": metadata});
        format!("{line}\n")
    };
    for batch in 0..BATCHES {
        let jobs = batch * JOBS..(batch + 1) * JOBS;
        let results = server
            .batch(&worker(1), jobs.map(create).collect::<String>())
            .await;
        assert!(
            results.iter().all(|line| line["status"] == 200),
            "{results:?}"
        );
    }
    let mut stream = narrow(&server.url, Transport::WebSocket, "/ws").await;
    // The second one waits until all jobs are sent, and what follows waits behind it.
    let mut asked = Vec::new();
    for channel in ["jobs", "devices"] {
        let question = json!({"type": "subscribe", "channels": [channel]});
        asked.extend(text_frame(&question.to_string()));
    }
    let ping = text_frame(r#"{"type":"ping"}"#);
    asked.extend(ping.repeat(AT_ONCE - 2));
    stream.write_all(&asked).await.unwrap();
    let mut rounds = tokio::time::interval(Duration::from_secs(1) * 11 / 10 / PER_SEC as u32);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for _ in 0..ONE_BY_ONE {
        rounds.tick().await;
        stream.write_all(&ping).await.unwrap();
    }
    let pongs = AT_ONCE - 2 + ONE_BY_ONE + 1;
    let last = text_frame(&json!({"type": "ping", "timestamp": "the last"}).to_string());
    rounds.tick().await;
    stream.write_all(&last).await.unwrap();
    let mut heard = Vec::new();
    while !is_answered(&heard, "the last") {
        hear(&mut stream, &mut heard).await;
    }
    assert_eq!(count(&heard, r#""type":"pong""#), pongs);
    // Others are still judged.
    let (mut reading, mut writing) = stream.split();
    let too_many = ping.repeat(2 * AT_ONCE);
    // It may be closed before it has taken them all.
    let (_, heard) = tokio::join!(writing.write_all(&too_many), async {
        let mut heard = Vec::new();
        while count(&heard, "too_fast") == 0 {
            hear(&mut reading, &mut heard).await;
        }
        heard
    });
    assert!((1..2 * AT_ONCE).contains(&count(&heard, r#""type":"pong""#)));
}

async fn hear(stream: &mut (impl AsyncRead + Unpin), heard: &mut Vec<u8>) {
    let mut part = vec![0; 64 * 1024];
    let count = tokio::time::timeout(PATIENCE, stream.read(&mut part))
        .await
        .expect("it receives more")
        .unwrap();
    let last = &heard[heard.len().saturating_sub(300)..];
    let last = String::from_utf8_lossy(last);
    assert!(count > 0, "it was closed: {last}");
    heard.extend_from_slice(&part[..count]);
}

/// Whether a ping with this timestamp is answered, as far as the end of what was heard tells. More may follow the answer.
fn is_answered(heard: &[u8], timestamp: &str) -> bool {
    let end = &heard[heard.len().saturating_sub(128 * 1024)..];
    count(end, &format!(r#""timestamp":"{timestamp}"}}"#)) > 0
}

fn count(heard: &[u8], text: &str) -> usize {
    String::from_utf8_lossy(heard).matches(text).count()
}
