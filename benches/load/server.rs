//! The server as a separate process, a client of it for what is not measured, and a minimal HTTP connection for what is.

use std::io::Write;
use std::ops::{Deref, Range};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidings::client::{Client, Credential};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{self, Process};

/// Room for an answer. A longer one takes more.
const ANSWER_BYTES: usize = 16 * 1024;
/// How long the server may take for what is not measured.
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) struct Server {
    process: Process,
    folder: TempDir,
    pub(crate) worker: String,
    settings: Vec<(&'static str, String)>,
}

/// Figures of the server's process.
impl Deref for Server {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

fn tidings(folder: &Path, port: &str) -> Command {
    tidings_of(None, folder, port)
}

fn tidings_of(program: Option<&str>, folder: &Path, port: &str) -> Command {
    let mut command = process::tidings_of(program, folder, port);
    command
        // The token is created before the server has started.
        .env(
            "TIDINGS_JWT_SECRET",
            "a secret for load only, long enough for HS256",
        )
        // All load comes from one user of one school at one address.
        .env("TIDINGS_PUBLISHES_PER_SEC", "0")
        .env("TIDINGS_EVENT_BYTES_PER_SEC", "0")
        // Checking millions of rows takes long.
        .env("TIDINGS_CHECK_DATABASE", "false")
        .env("TIDINGS_MAX_STREAMS_PER_USER", "50000")
        .env("TIDINGS_MAX_STREAMS_PER_ADDRESS", "50000")
        // The load's readers answer no pings, and must not be disconnected for that.
        .env("TIDINGS_HEARTBEAT_SECS", "600");
    command
}

fn worker(folder: &Path, school: u32) -> String {
    token(
        folder,
        &["--school", &school.to_string(), "--role", "worker"],
    )
}

/// Creates a token, which every server accepts.
fn token(folder: &Path, of: &[&str]) -> String {
    let token = tidings(folder, "0")
        .args(["token", "--ttl", "1d"])
        .args(of)
        .output()
        .expect("a token");
    let token = String::from_utf8(token.stdout).expect("ASCII");
    token.trim().to_owned()
}

/// Starts the server, and waits until it listens.
fn serve(folder: &Path, port: &str, settings: &[(&str, String)]) -> Process {
    Process::start(tidings(folder, port).envs(settings.iter().cloned()))
}

/// Returns the nanoseconds since 1970.
pub(crate) fn nanos() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_nanos() as u64
}

impl Server {
    /// Starts a server without a limit on the bytes of events of a school.
    pub(crate) async fn start() -> Server {
        Server::start_with(vec![("TIDINGS_EVENT_BYTES_PER_SEC", "0".to_owned())])
    }

    /// Starts a server with the default limits.
    pub(crate) async fn start_as_it_is() -> Server {
        Server::start_with(Vec::new())
    }

    /// Starts another build of the server, or this one.
    pub(crate) async fn start_program(program: Option<&str>) -> Server {
        let settings = vec![("TIDINGS_EVENT_BYTES_PER_SEC", "0".to_owned())];
        Server::start_with_program(program, settings)
    }

    /// Starts a server with these settings.
    pub(crate) fn start_with(settings: Vec<(&'static str, String)>) -> Server {
        Server::start_with_program(None, settings)
    }

    fn start_with_program(program: Option<&str>, settings: Vec<(&'static str, String)>) -> Server {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let worker = worker(folder.path(), 1);
        Server {
            process: Process::start(
                tidings_of(program, folder.path(), "0").envs(settings.iter().cloned()),
            ),
            folder,
            worker,
            settings,
        }
    }

    /// Returns a worker's token for a school.
    pub(crate) fn token(&self, school: u32) -> String {
        worker(self.folder.path(), school)
    }

    /// Returns an administrator's token for all schools.
    pub(crate) fn admin(&self) -> String {
        token(self.folder.path(), &["--role", "admin"])
    }

    /// Kills the server.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills the server and restarts it at the same address.
    pub(crate) fn restart(&mut self) {
        self.process.kill();
        self.again();
    }

    /// Shuts the server down, changes its database, and restarts it.
    pub(crate) fn restart_after(&mut self, change: impl FnOnce(&Path)) {
        self.process.terminate();
        change(&self.folder.path().join("tidings.db"));
        self.again();
    }

    fn again(&mut self) {
        self.process = serve(self.folder.path(), self.process.port(), &self.settings);
    }

    /// Creates running jobs `j0`, `j1`, ….
    pub(crate) async fn create_jobs(&self, count: usize) {
        self.create_some_jobs(0..count).await;
    }

    /// Creates running jobs with these numbers.
    pub(crate) async fn create_some_jobs(&self, numbers: Range<usize>) {
        let commands: Vec<Value> = numbers.map(create_job).collect();
        self.publish(&self.worker, &commands).await;
    }

    /// Returns a client, for what is not measured.
    pub(crate) fn client(&self, token: &str) -> Client {
        let url = format!("http://{}", self.address);
        let client = Client::new(&url, Credential::token(token)).expect("the URL of a server");
        client.answer_timeout(PATIENCE)
    }

    /// Publishes commands as a batch. Panics unless each succeeds.
    pub(crate) async fn publish(&self, token: &str, commands: &[Value]) {
        let results = self.client(token).batch(commands).await;
        for result in results.expect("the server answers") {
            let is_success = (200..300).contains(&result["status"].as_u64().unwrap_or(0));
            assert!(is_success, "{result}");
        }
    }

    /// Returns the cursor at the end of the school's log.
    pub(crate) async fn cursor(&self) -> String {
        let page = self.client(&self.worker).get("/api/jobs?limit=1").await;
        let page = page.expect("the server answers");
        page["cursor"].as_str().expect("a cursor").to_owned()
    }

    /// Returns the size of the database, including the write-ahead log, in bytes.
    pub(crate) fn database_bytes(&self) -> u64 {
        let files = std::fs::read_dir(self.folder.path()).expect("a folder");
        let sizes = files.map(|file| file.and_then(|file| file.metadata()).expect("a file").len());
        sizes.sum()
    }
}

/// Returns the command that creates the running job `j<number>`.
pub(crate) fn create_job(number: usize) -> Value {
    json!({"op": "jobs.create", "job_id": format!("j{number}"), "job_type": "load", "status": "in_progress"})
}

/// A keep-alive connection with only as much HTTP as the measurements need. Not the client: its own work would be measured, too,
/// and each publisher is to have exactly one connection.
pub(crate) struct Connection {
    stream: TcpStream,
    head: String,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: &str, token: &str) -> Connection {
        let stream = TcpStream::connect(address)
            .await
            .expect("the server listens");
        stream.set_nodelay(true).expect("TCP");
        let head = format!(
            "Host: {address}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        );
        Connection {
            stream,
            head,
            request: Vec::new(),
            answer: Vec::with_capacity(ANSWER_BYTES),
        }
    }

    /// Sends a POST request. Panics unless the answer is a success.
    pub(crate) async fn post(&mut self, path: &str, body: &str) {
        let answer = self.request(path, body).await.expect("the server answers");
        let text = String::from_utf8_lossy(&self.answer);
        assert!((200..300).contains(&answer.status), "{text}");
    }

    /// Sends a POST request. Returns `None` if the server closes the connection instead of answering.
    pub(crate) async fn request(&mut self, path: &str, body: &str) -> Option<Answer> {
        self.ask("POST", path, body).await;
        self.answer().await
    }

    /// Sends a GET request, and returns the status of the answer.
    pub(crate) async fn get(&mut self, path: &str) -> u16 {
        self.ask("GET", path, "").await;
        self.answer().await.expect("the server answers").status
    }

    /// Sends a request without waiting for its answer.
    pub(crate) async fn ask(&mut self, method: &str, path: &str, body: &str) {
        self.request.clear();
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\n{}Content-Length: {}\r\n\r\n{body}",
            self.head,
            body.len()
        )
        .expect("a vector grows");
        // A server that rejects the request need not read all of it.
        let _ = self.stream.write_all(&self.request).await;
    }

    async fn answer(&mut self) -> Option<Answer> {
        self.answer.clear();
        loop {
            self.read().await?;
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut head = httparse::Response::new(&mut fields);
            let httparse::Status::Complete(end) = head.parse(&self.answer).expect("HTTP") else {
                continue;
            };
            let field = |name: &str| {
                let field = head
                    .headers
                    .iter()
                    .find(|field| field.name.eq_ignore_ascii_case(name))?;
                let value = std::str::from_utf8(field.value).expect("ASCII");
                Some(value.parse::<u64>().expect("a number"))
            };
            let whole = end + field("content-length").expect("a length") as usize;
            let answer = Answer {
                status: head.code.expect("a status"),
                retry_after: field("retry-after"),
            };
            while self.answer.len() < whole {
                self.read().await?;
            }
            return Some(answer);
        }
    }

    async fn read(&mut self) -> Option<()> {
        let count = self.stream.read_buf(&mut self.answer).await.ok()?;
        (count > 0).then_some(())
    }
}

/// The server's answer to a request.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// When to retry, in seconds.
    pub(crate) retry_after: Option<u64>,
}
