//! One client for three transports: every scenario is written once and runs over each of them.

use std::collections::VecDeque;
use std::pin::Pin;

use futures_util::{SinkExt, Stream, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::PATIENCE;
use super::contract::{Messages, check_message, knows_message};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    EventSource,
    WebSocket,
    Poll,
}

impl Transport {
    pub(crate) const ALL: [Transport; 3] = [
        Transport::EventSource,
        Transport::WebSocket,
        Transport::Poll,
    ];
}

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
type Bytes = Pin<Box<dyn Stream<Item = reqwest::Result<Vec<u8>>> + Send>>;

/// An open subscription. It returns messages one by one, whatever the transport.
pub(crate) struct Listener {
    inner: Inner,
    base: String,
    /// The cursor to resume from.
    pub(crate) cursor: Option<String>,
}

enum Inner {
    EventSource {
        bytes: Bytes,
        pending: Vec<u8>,
    },
    WebSocket(Box<Socket>),
    Poll {
        http: reqwest::Client,
        url: String,
        token: String,
        waiting: VecDeque<Value>,
        next: Option<String>,
        greeted: bool,
        over: bool,
    },
}

/// Returns the WebSocket URL for an `http://` base, with token and cursor in the query.
pub(crate) fn socket_url(
    base: &str,
    path: &str,
    token: Option<&str>,
    cursor: Option<&str>,
) -> String {
    let mut url = format!("{}{path}", base.replacen("http", "ws", 1));
    for (name, value) in [("token", token), ("cursor", cursor)] {
        if let Some(value) = value {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{name}={value}"));
        }
    }
    url
}

/// Opens a WebSocket that must be accepted.
pub(crate) async fn socket(base: &str, path: &str, token: &str) -> Socket {
    let request = socket_url(base, path, Some(token), None)
        .into_client_request()
        .unwrap();
    tokio_tungstenite::connect_async(request).await.unwrap().0
}

/// Returns the next JSON message of a WebSocket of the server, or the code of its close frame.
pub(crate) async fn receive(socket: &mut Socket) -> Result<Value, Option<u16>> {
    let message = receive_any(socket).await?;
    check_message(&message);
    Ok(message)
}

/// Returns the next JSON message of a WebSocket of any program, or the code of its close frame.
pub(crate) async fn receive_any(socket: &mut Socket) -> Result<Value, Option<u16>> {
    loop {
        match timeout(PATIENCE, socket.next())
            .await
            .expect("a message in time")
        {
            Some(Ok(Message::Text(text))) => {
                return Ok(serde_json::from_str(&text).unwrap());
            }
            Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code.into())),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(None),
        }
    }
}

/// Returns all messages until the close, and the code of the close frame.
pub(crate) async fn until_closed(socket: &mut Socket) -> (Vec<Value>, Option<u16>) {
    let mut messages = Vec::new();
    loop {
        match receive(socket).await {
            Ok(message) => messages.push(message),
            Err(code) => return (messages, code),
        }
    }
}

/// Sends a text message.
pub(crate) async fn send(socket: &mut Socket, text: &str) {
    socket.send(Message::text(text)).await.unwrap();
}

/// Opens a WebSocket that must be accepted, if `tunnel` is given in a tunnel through the forward proxy at that address.
pub(crate) async fn handshake(url: String, tunnel: Option<&str>) -> Socket {
    let request = url.into_client_request().unwrap();
    let Some(proxy) = tunnel else {
        return tokio_tungstenite::connect_async(request).await.unwrap().0;
    };
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let server = request.uri().authority().unwrap();
    let connect = format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n\r\n");
    stream.write_all(connect.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let stream = MaybeTlsStream::Plain(stream);
    tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap()
        .0
}

impl Listener {
    /// Opens `/events<scope>`.
    pub(crate) async fn open(
        transport: Transport,
        base: &str,
        scope: &str,
        token: &str,
        cursor: Option<&str>,
    ) -> Listener {
        Listener::open_through(None, transport, base, scope, token, cursor).await
    }

    /// Opens `/events<scope>` through the forward proxy at this address. Like a browser, it opens a WebSocket in a
    /// tunnel.
    pub(crate) async fn open_through(
        proxy: Option<&str>,
        transport: Transport,
        base: &str,
        scope: &str,
        token: &str,
        cursor: Option<&str>,
    ) -> Listener {
        let mut http = reqwest::Client::builder();
        if let Some(proxy) = proxy {
            http = http.proxy(reqwest::Proxy::all(format!("http://{proxy}")).unwrap());
        }
        let http = http.build().unwrap();
        let path = format!("/events{scope}");
        let inner = match transport {
            Transport::EventSource => {
                let mut request = http.get(format!("{base}{path}")).bearer_auth(token);
                if let Some(cursor) = cursor {
                    request = request.header("Last-Event-ID", cursor);
                }
                let response = request
                    .header("Accept", "text/event-stream")
                    .send()
                    .await
                    .unwrap();
                assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
                assert_eq!(response.headers()["content-type"], "text/event-stream");
                let bytes = response
                    .bytes_stream()
                    .map(|part| part.map(|part| part.to_vec()));
                Inner::EventSource {
                    bytes: Box::pin(bytes),
                    pending: Vec::new(),
                }
            }
            Transport::WebSocket => {
                let url = socket_url(base, &path, Some(token), cursor);
                Inner::WebSocket(Box::new(handshake(url, proxy).await))
            }
            Transport::Poll => Inner::Poll {
                http,
                // Shorter than the default, so that tests which expect no message are fast.
                url: format!(
                    "{base}{path}{}wait=3",
                    if path.contains('?') { '&' } else { '?' }
                ),
                token: token.into(),
                waiting: VecDeque::new(),
                next: cursor.map(str::to_owned),
                greeted: false,
                over: false,
            },
        };
        Listener {
            inner,
            base: base.to_owned(),
            cursor: cursor.map(str::to_owned),
        }
    }

    /// Returns the next message, or none at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        let message = timeout(PATIENCE, self.next_message())
            .await
            .expect("a message in time");
        if let Some(message) = &message {
            check(&self.base, message).await;
        }
        message
    }

    async fn next_message(&mut self) -> Option<Value> {
        loop {
            match &mut self.inner {
                Inner::EventSource { bytes, pending } => {
                    if let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
                        let block: Vec<u8> = pending.drain(..end + 2).collect();
                        let block = String::from_utf8(block).unwrap();
                        let value =
                            |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
                        if let Some(id) = value("id: ") {
                            self.cursor = Some(id.to_owned());
                        }
                        // Like a browser's `EventSource`: a named event does not reach `onmessage`.
                        let heard = value("event: ") != Some("heartbeat");
                        if let Some(data) = value("data: ").filter(|_| heard) {
                            return Some(serde_json::from_str(data).unwrap());
                        }
                        continue;
                    }
                    match bytes.next().await {
                        Some(Ok(part)) => pending.extend(part),
                        Some(Err(_)) | None => return None,
                    }
                }
                Inner::WebSocket(socket) => match socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let message: Value = serde_json::from_str(&text).unwrap();
                        if message["type"] != "connected"
                            && let Some(cursor) = message["cursor"].as_str()
                        {
                            self.cursor = Some(cursor.to_owned());
                        }
                        return Some(message);
                    }
                    Some(Ok(Message::Ping(payload))) => {
                        self.cursor = Some(String::from_utf8(payload.to_vec()).unwrap());
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    Some(Ok(_)) => {}
                },
                Inner::Poll {
                    http,
                    url,
                    token,
                    waiting,
                    next,
                    greeted,
                    over,
                } => {
                    if let Some(message) = waiting.pop_front() {
                        // Consecutive responses appear as one stream: later `connected` and `ready` are omitted.
                        let greeting =
                            matches!(message["type"].as_str(), Some("connected" | "ready"));
                        if message["type"] != "connected"
                            && let Some(cursor) = message["cursor"].as_str()
                        {
                            self.cursor = Some(cursor.to_owned());
                        }
                        let first = !*greeted;
                        *greeted |= message["type"] == "ready";
                        *over |= message["type"] == "closing";
                        if !greeting || first {
                            return Some(message);
                        }
                        continue;
                    }
                    if *over {
                        return None;
                    }
                    let mut request = http
                        .get(&*url)
                        .bearer_auth(&*token)
                        .header("Accept", "application/json");
                    if let Some(cursor) = &*next {
                        request = request.header("Last-Event-ID", cursor);
                    }
                    let response = request.send().await.ok()?;
                    if response.status() != 200 {
                        return None;
                    }
                    let answer: Value = serde_json::from_str(&response.text().await.ok()?).ok()?;
                    *next = Some(answer["cursor"].as_str().unwrap().to_owned());
                    waiting.extend(answer["messages"].as_array().unwrap().iter().cloned());
                }
            }
        }
    }

    /// Returns the messages up to and including the first that matches.
    pub(crate) async fn take_until(&mut self, fits: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            let message = self
                .next()
                .await
                .unwrap_or_else(|| panic!("the stream ended after {messages:#?}"));
            let last = fits(&message);
            messages.push(message);
            if last {
                return messages;
            }
        }
    }

    /// Returns the messages up to and including `ready`.
    pub(crate) async fn until_ready(&mut self) -> Vec<Value> {
        self.take_until(|message| message["type"] == "ready").await
    }
}

/// Checks a message against the description of this program, or that of the server if it knows more kinds.
async fn check(base: &str, message: &Value) {
    if knows_message(message) {
        return check_message(message);
    }
    let document = reqwest::get(format!("{base}/asyncapi.json")).await;
    let document: Value = document.unwrap().json().await.unwrap();
    Messages::of(&document).check(message);
}

/// Returns the HTTP status with which a WebSocket handshake is rejected.
pub(crate) async fn rejected(url: &str) -> u16 {
    match tokio_tungstenite::connect_async(url).await {
        Err(tungstenite::Error::Http(response)) => response.status().as_u16(),
        other => panic!("not refused: {other:?}"),
    }
}
