//! Runs `clients/vectors/watch.json`: a scripted server over real sockets, and what a reader must make of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::driver::Pace;
use super::{Client, ClientError, Credential, Message, State, Transport, Watch};

/// The interval of heartbeats of a stream that stays open.
const HEARTBEAT: Duration = Duration::from_millis(50);
/// The number of heartbeats on the last connection after which a reader has processed everything.
const HEARTBEATS_TO_SETTLE: usize = 3;
/// Bounds the time of a case.
const CASE: Duration = Duration::from_secs(30);

struct Server {
    listener: TcpListener,
    case: Value,
    transport: Transport,
    pauses: mpsc::UnboundedReceiver<Duration>,
    settled: mpsc::UnboundedSender<()>,
    /// When the last byte was sent.
    sent_at: Instant,
}

impl Server {
    async fn run(mut self) -> Result<(), String> {
        let connections = self.case["connections"].as_array().unwrap().clone();
        let mut held = Vec::new();
        for (number, script) in connections.iter().enumerate() {
            let is_last = number + 1 == connections.len();
            let mut socket = self.listener.accept().await.unwrap().0;
            let head = read_head(&mut socket).await;
            let about = format!("connection {number}");
            self.check(script, &head)
                .map_err(|problem| format!("{about}: {problem}"))?;
            let is_held = match self.transport {
                Transport::EventStream => self.stream(&mut socket, script, is_last).await,
                Transport::LongPoll => answer_poll(&mut socket, script, &head).await,
            };
            self.sent_at = Instant::now();
            if is_held {
                held.push(socket);
            }
        }
        let _extra = self.listener.accept().await.unwrap();
        let _ = self.settled.send(());
        std::future::pending().await
    }

    fn check(&mut self, script: &Value, head: &str) -> Result<(), String> {
        let mut paused = Duration::ZERO;
        while let Ok(pause) = self.pauses.try_recv() {
            paused += pause;
        }
        let silent = self.sent_at.elapsed();
        for (field, waited) in [("wait_ms", paused), ("silence_ms", silent)] {
            let bound = |name| script[field][name].as_u64().map(u128::from);
            let (min, max) = (bound("min"), bound("max"));
            let waited = waited.as_millis();
            if min.is_some_and(|min| waited < min) || max.is_some_and(|max| waited > max) {
                return Err(format!("`{field}` is {waited}, not {min:?} to {max:?}"));
            }
        }
        let header = |name: &str| {
            let found = head.lines().find_map(|line| {
                let (field, value) = line.split_once(':')?;
                field.eq_ignore_ascii_case(name).then(|| value.trim())
            });
            found.unwrap_or_default().to_owned()
        };
        let expected = &script["expect"];
        let cursor = header("last-event-id");
        if let Some(wanted) = expected.get("cursor")
            && cursor != wanted.as_str().unwrap_or_default()
        {
            return Err(format!("the cursor is {cursor:?}, not {wanted}"));
        }
        let token = header("authorization");
        match expected["token"].as_str() {
            Some(wanted) if token != format!("Bearer {wanted}") => {
                Err(format!("the token is {token:?}, not {wanted:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Sends the messages as SSE. Returns whether the connection stays open.
    async fn stream(&self, socket: &mut TcpStream, script: &Value, is_last: bool) -> bool {
        if let Some(rejection) = rejection(script) {
            let _ = socket.write_all(rejection.as_bytes()).await;
            return false;
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        let _ = socket.write_all(head.as_bytes()).await;
        for message in script["send"].as_array().into_iter().flatten() {
            let data = match message["raw"].as_str() {
                Some(raw) => raw.to_owned(),
                None => message.to_string(),
            };
            let event = match message["type"] == "heartbeat" {
                true => "event: heartbeat\n",
                false => "",
            };
            let id = message["cursor"].as_str();
            let id = id.filter(|_| message["type"] != "connected");
            let id = id.map_or(String::new(), |id| format!("id: {id}\n"));
            write_chunk(socket, &format!("{event}{id}data: {data}\n\n")).await;
        }
        match script["end"].as_str().unwrap() {
            "cut" => false,
            "close" => {
                let _ = socket.write_all(b"0\r\n\r\n").await;
                false
            }
            "silence" => true,
            "open" => {
                // A reader that handles a `closing` disconnects.
                let heartbeat =
                    json!({"type": "heartbeat", "timestamp": "2026-03-01T09:30:00.000Z"});
                let mut sent = 0;
                while write_chunk(socket, &format!("event: heartbeat\ndata: {heartbeat}\n\n")).await
                {
                    sent += 1;
                    if is_last && sent == HEARTBEATS_TO_SETTLE {
                        let _ = self.settled.send(());
                    }
                    sleep(HEARTBEAT).await;
                }
                false
            }
            other => panic!("unknown end {other}"),
        }
    }
}

async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).await.unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

async fn write_chunk(socket: &mut TcpStream, text: &str) -> bool {
    let chunk = format!("{:x}\r\n{text}\r\n", text.len());
    let mut seen = [0];
    // A peer that has closed its side has disconnected.
    let has_left = socket.try_read(&mut seen).is_ok_and(|read| read == 0);
    !has_left && socket.write_all(chunk.as_bytes()).await.is_ok()
}

fn rejection(script: &Value) -> Option<String> {
    let status = script["status"].as_u64().filter(|status| *status != 200)?;
    let (content_type, body) = match (&script["problem"], script["body"].as_str()) {
        (Value::Null, body) => ("text/html", body.unwrap_or_default().to_owned()),
        (problem, _) => ("application/problem+json", problem.to_string()),
    };
    let headers = script["headers"].as_object().into_iter().flatten();
    let headers: String = headers
        .map(|(name, value)| format!("{name}: {}\r\n", value.as_str().unwrap()))
        .collect();
    Some(format!(
        "HTTP/1.1 {status} No\r\nContent-Type: {content_type}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    ))
}

/// Answers a poll. Returns whether the connection stays open.
async fn answer_poll(socket: &mut TcpStream, script: &Value, head: &str) -> bool {
    if let Some(rejection) = rejection(script) {
        let _ = socket.write_all(rejection.as_bytes()).await;
        return false;
    }
    let messages = script["send"].as_array().cloned().unwrap_or_default();
    let last = messages.iter().rev().find(|message| {
        message["seq"].is_u64() || message["type"] == "ready" || message["type"] == "connected"
    });
    let asked = head
        .lines()
        .find_map(|line| line.strip_prefix("last-event-id: "));
    let cursor = last.and_then(|last| last["cursor"].as_str()).or(asked);
    let texts: Vec<String> = messages
        .iter()
        .map(|message| match message["raw"].as_str() {
            Some(raw) => raw.to_owned(),
            None => message.to_string(),
        })
        .collect();
    let body = format!(
        r#"{{"cursor":{},"messages":[{}]}}"#,
        json!(cursor),
        texts.join(",")
    );
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = socket.write_all(answer.as_bytes()).await;
    script["end"] == "silence"
}

/// Whether a message has the fields that are expected of it.
fn fits(message: &Message, expected: &Value) -> bool {
    let mut fields = expected.as_object().unwrap().iter();
    fields.all(|(name, value)| message.get(name) == value)
}

async fn run(case: &Value, transport: Transport) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (pauses, paused) = mpsc::unbounded_channel();
    let (settled, mut is_settled) = mpsc::unbounded_channel();
    let server = Server {
        listener,
        case: case.clone(),
        transport,
        pauses: paused,
        settled,
        sent_at: Instant::now(),
    };
    let mut server = tokio::spawn(server.run());
    let tokens = case["options"]["tokens"].as_array().cloned();
    let tokens = Arc::new(tokens.unwrap_or_else(|| vec![json!("any")]));
    let calls = Arc::new(AtomicUsize::new(0));
    let credential = Credential::renewed(move || {
        let call = calls.fetch_add(1, Ordering::SeqCst);
        let token = tokens[call.min(tokens.len() - 1)].as_str().unwrap();
        std::future::ready(Ok::<_, String>(token.to_owned()))
    });
    let client = Client::new(&url, credential).unwrap();
    // A silence is measured, and not what the reader asks for.
    let connections = case["connections"].as_array().unwrap();
    let is_real = connections
        .iter()
        .any(|script| script["silence_ms"].is_object());
    let mut builder = client.watch("jobs").transports(&[transport]).pace(Pace {
        pauses: Some(pauses),
        is_real,
    });
    if let Some(cursor) = case["options"]["cursor"].as_str() {
        builder = builder.cursor(cursor);
    }
    let mut watch = builder.start();
    let expected = &case["expect"];
    let (mut delivered, mut outcome) = (Vec::new(), "watching");
    let mut error = None;
    let keeps_watching = expected["outcome"] == "watching";
    let mut may_end = false;
    loop {
        let wanted = expected["delivered"].as_array().unwrap().len();
        let has_all = delivered.len() >= wanted && watch.cursor() == expected["cursor"].as_str();
        if may_end && keeps_watching && has_all {
            break;
        }
        tokio::select! {
            next = watch.next() => match next {
                Some(Ok(message)) => delivered.push(message),
                Some(Err(failed)) => {
                    (outcome, error) = ("failed", Some(failed));
                    break;
                }
                None => {
                    outcome = "ended";
                    break;
                }
            },
            _ = is_settled.recv(), if !may_end => may_end = true,
            // The cursor may move without a message.
            () = sleep(HEARTBEAT) => {}
            ended = &mut server => return ended.unwrap(),
        }
    }
    server.abort();
    compare(expected, &delivered, outcome, error, &watch)
}

fn compare(
    expected: &Value,
    delivered: &[Message],
    outcome: &str,
    error: Option<ClientError>,
    watch: &Watch,
) -> Result<(), String> {
    let wanted = expected["delivered"].as_array().unwrap();
    let is_same = delivered.len() == wanted.len()
        && delivered
            .iter()
            .zip(wanted)
            .all(|(message, wanted)| fits(message, wanted));
    if !is_same {
        return Err(format!("delivered {delivered:?}"));
    }
    if outcome != expected["outcome"] {
        return Err(format!("the outcome is {outcome}: {error:?}"));
    }
    let mut state = State::default();
    delivered.iter().for_each(|message| state.apply(message));
    let events = state.iter();
    let events = events.map(|(key, event)| (key.to_owned(), event.get("seq").clone()));
    let present = Value::Object(events.collect());
    if let Some(wanted) = expected.get("state")
        && present != *wanted
    {
        return Err(format!("the state is {present}, not {wanted}"));
    }
    if watch.cursor() != expected["cursor"].as_str() {
        return Err(format!("the cursor is {:?}", watch.cursor()));
    }
    let (status, code) = match error {
        Some(ClientError::Rejected { status, code, .. }) => (json!(status), json!(code)),
        Some(ClientError::Closed { code, .. }) => (Value::Null, json!(code)),
        _ => (Value::Null, Value::Null),
    };
    for (name, value) in expected["error"].as_object().into_iter().flatten() {
        let actual = if name == "status" { &status } else { &code };
        if actual != value {
            return Err(format!("`{name}` of the error is {actual}, not {value}"));
        }
    }
    Ok(())
}

async fn run_all(transport: Transport, name: &str) {
    let vectors = include_str!("../../clients/vectors/watch.json");
    let vectors: Value = serde_json::from_str(vectors).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    let fits = |case: &&Value| {
        let transports = case["transports"].as_array();
        transports.is_none_or(|transports| transports.iter().any(|transport| transport == name))
    };
    let cases: Vec<&Value> = cases.iter().filter(fits).collect();
    assert!(cases.len() > 20);
    let runs = cases.iter().map(|case| async {
        let problem = match timeout(CASE, run(case, transport)).await {
            Ok(Ok(())) => return None,
            Ok(Err(problem)) => problem,
            Err(_) => "it did not end".into(),
        };
        Some(format!("{}: {problem}", case["name"]))
    });
    let mut problems = Vec::new();
    for run in runs {
        problems.extend(run.await);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_vector_has_its_outcome_over_sse() {
    run_all(Transport::EventStream, "sse").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_vector_has_its_outcome_over_long_poll() {
    run_all(Transport::LongPoll, "poll").await;
}
