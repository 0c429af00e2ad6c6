//! Third-party clients: Python's `websockets`, Node's `ws`, and a browser's `WebSocket` and `EventSource`.
//!
//! One small script per language, in `tests/clients`, carries out commands and reports what it receives. So each
//! scenario is written once, in Rust, and runs with each of the clients.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::listener::socket_url;
use super::process::{Browser, Guarded};
use super::{PATIENCE, Server, needs, python_with_websockets, skip};

/// Capacity of a queue, which no scenario fills.
const LINES: usize = 1_000;

/// A program that connects to the server on behalf of a test. It ends when it is dropped.
pub(crate) struct Clients {
    commands: mpsc::Sender<String>,
    ears: Arc<Ears>,
    opened: AtomicU64,
    /// The origin of the browser's page.
    pub(crate) origin: Option<String>,
    _process: Process,
}

#[expect(dead_code, reason = "it is there to be dropped")]
enum Process {
    Script(Guarded),
    Browser(Browser, tempfile::TempDir),
}

/// The queues for what is reported of each client, by the client's number.
type Ears = Mutex<HashMap<u64, mpsc::Sender<(String, Value)>>>;

/// One client of the server.
pub(crate) struct Client {
    name: u64,
    commands: mpsc::Sender<String>,
    received: mpsc::Receiver<(String, Value)>,
    /// The last cursor that it received.
    pub(crate) cursor: Option<String>,
}

impl Clients {
    /// Starts the clients in Python. `PYTHON` can name an interpreter that has `websockets`.
    pub(crate) async fn in_python() -> Option<Clients> {
        let python = python_with_websockets()?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/client.py");
        Some(Clients::script(&python, script))
    }

    /// Starts the clients in Node. `NODE_PATH` can name a folder that contains `ws`.
    pub(crate) async fn in_node() -> Option<Clients> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/client.js");
        let found = Command::new("node").args(["-e", "require('ws')"]).output();
        if !found.is_ok_and(|output| output.status.success()) && !skip("Node's ws") {
            return None;
        }
        Some(Clients::script("node", script))
    }

    fn script(program: &str, script: &str) -> Clients {
        let mut child = Command::new(program)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = ChildStdin::from_std(child.stdin.take().unwrap()).unwrap();
        let stdout = ChildStdout::from_std(child.stdout.take().unwrap()).unwrap();
        let (commands, mut orders) = mpsc::channel::<String>(LINES);
        let ears = Arc::new(Ears::default());
        // Both tasks end with the process.
        tokio::spawn(async move {
            while let Some(order) = orders.recv().await {
                if stdin
                    .write_all(format!("{order}\n").as_bytes())
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        tokio::spawn({
            let ears = Arc::clone(&ears);
            async move {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    pass_on(&ears, &line).await;
                }
            }
        });
        let process = Process::Script(Guarded(child));
        Clients::new(commands, ears, None, process)
    }

    /// Starts the clients in Chromium, on a page whose origin is not the server's.
    pub(crate) async fn in_a_browser() -> Option<Clients> {
        if !needs("chromium") {
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (commands, orders) = mpsc::channel::<String>(LINES);
        let ears = Arc::new(Ears::default());
        // All of these tasks end with the test.
        tokio::spawn({
            let (orders, ears) = (Arc::new(orders.into()), Arc::clone(&ears));
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve_page(stream, Arc::clone(&orders), Arc::clone(&ears)));
                }
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let browser = Browser::open(folder.path(), &origin).await;
        let process = Process::Browser(browser, folder);
        Some(Clients::new(commands, ears, Some(origin), process))
    }

    fn new(
        commands: mpsc::Sender<String>,
        ears: Arc<Ears>,
        origin: Option<String>,
        process: Process,
    ) -> Clients {
        Clients {
            commands,
            ears,
            opened: AtomicU64::new(0),
            origin,
            _process: process,
        }
    }

    /// Opens a WebSocket, which must be accepted, as a viewer of school 1.
    pub(crate) async fn open(&self, server: &Server, path: &str) -> Client {
        let token = super::viewer(1);
        self.open_as(server, path, Some(&token), None).await
    }

    /// Opens a WebSocket that resumes from a cursor; otherwise like [`Clients::open`].
    pub(crate) async fn resume(&self, server: &Server, path: &str, cursor: &str) -> Client {
        let token = super::viewer(1);
        self.open_as(server, path, Some(&token), Some(cursor)).await
    }

    /// Opens a WebSocket, which must be accepted, with this token and cursor, if any.
    pub(crate) async fn open_as(
        &self,
        server: &Server,
        path: &str,
        token: Option<&str>,
        cursor: Option<&str>,
    ) -> Client {
        let url = socket_url(&server.url, path, token, cursor);
        self.client("open", &url).await
    }

    /// Opens an `EventSource`, which only the browser has.
    pub(crate) async fn event_source(&self, server: &Server, path: &str) -> Client {
        self.client("listen", &format!("{}{path}", server.url))
            .await
    }

    async fn client(&self, what: &str, url: &str) -> Client {
        let name = self.opened.fetch_add(1, Ordering::Relaxed);
        let (sender, received) = mpsc::channel(LINES);
        self.ears.lock().unwrap().insert(name, sender);
        let mut client = Client {
            name,
            commands: self.commands.clone(),
            received,
            cursor: None,
        };
        client.command(what, url).await;
        assert_eq!(client.hear().await.0, "opened", "{url}");
        client
    }
}

impl Client {
    async fn command(&self, what: &str, value: &str) {
        let order = json!([self.name, what, value]).to_string();
        self.commands.send(order).await.unwrap();
    }

    async fn hear(&mut self) -> (String, Value) {
        let heard = timeout(PATIENCE, self.received.recv()).await;
        heard.expect("something in time").expect("the program runs")
    }

    /// Sends a text message.
    pub(crate) async fn send(&self, text: &str) {
        self.command("send", text).await;
    }

    /// Returns the next message, which must be a text.
    pub(crate) async fn text(&mut self) -> String {
        match self.hear().await {
            (what, Value::String(text)) if what == "text" => text,
            other => panic!("no message: {other:?}"),
        }
    }

    /// Returns the next message, which must be a JSON object.
    pub(crate) async fn next(&mut self) -> Value {
        let text = self.text().await;
        let message: Value =
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"));
        if let Some(cursor) = message["cursor"].as_str() {
            self.cursor = Some(cursor.to_owned());
        }
        message
    }

    /// Returns the next message that is no heartbeat. Between two reports of a slow machine, there may be some.
    pub(crate) async fn news(&mut self) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] != "heartbeat" {
                return message;
            }
        }
    }

    /// Returns this many messages.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<Value> {
        let mut messages = Vec::new();
        for _ in 0..count {
            messages.push(self.next().await);
        }
        messages
    }

    /// Sends a text message and returns the next message.
    pub(crate) async fn ask(&mut self, text: &str) -> Value {
        self.send(text).await;
        self.next().await
    }

    /// Returns the code of the server's close frame, which must come next.
    pub(crate) async fn closed(&mut self) -> Value {
        match self.hear().await {
            (what, code) if what == "closed" => code,
            other => panic!("not closed: {other:?}"),
        }
    }

    /// Closes the connection and waits for the server's close frame, which must come next.
    pub(crate) async fn leave(mut self) {
        self.command("close", "").await;
        assert_eq!(self.closed().await, 1000);
    }
}

async fn pass_on(ears: &Ears, line: &str) {
    let (name, what, value): (u64, String, Value) = serde_json::from_str(line).unwrap();
    let ear = ears.lock().unwrap().get(&name).cloned();
    if let Some(ear) = ear {
        // Fails if the test has dropped the client.
        let _ = ear.send((what, value)).await;
    }
}

/// Serves the page, or exchanges commands and reports with the page once it has connected.
async fn serve_page(
    mut stream: TcpStream,
    orders: Arc<tokio::sync::Mutex<mpsc::Receiver<String>>>,
    ears: Arc<Ears>,
) {
    let mut start = [0; 9];
    // Fails, like the calls below, if the browser has closed the connection.
    let _ = stream.peek(&mut start).await;
    if start != *b"GET /test" {
        let page = include_str!("../../clients/client.html");
        let length = page.len();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close";
        let answer = format!("{head}\r\nContent-Length: {length}\r\n\r\n{page}");
        let _ = stream.read(&mut [0; 16_384]).await;
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
        return;
    }
    let socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    let (mut sender, mut incoming) = socket.split();
    let mut orders = orders.lock().await;
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else { return };
                if sender.send(Message::text(order)).await.is_err() {
                    return;
                }
            }
            message = incoming.next() => match message {
                Some(Ok(Message::Text(text))) => pass_on(&ears, &text).await,
                Some(Ok(_)) => {}
                _ => return,
            },
        }
    }
}
