//! The real server in this process, so that its code is covered. Requests reach it without a socket or over the loopback.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rocket::fairing::AdHoc;
use rocket::figment::Figment;
use rocket::local::asynchronous::Client;
use tempfile::TempDir;
use tidings::Tidings;
use tidings::auth::{Claims, Role};
use tokio::runtime::Runtime;

use crate::shapes::Request;

pub const SECRET: &str = "a secret for fuzzing only, long enough for HS256";
/// If the server is silent for this long, it counts as waiting for more input. This is not a limit: later output is still read.
const SILENCE: Duration = Duration::from_millis(10);
/// Time-out for the end of a connection after the client is done, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const EVENT_STREAM: &[u8] = b"text/event-stream";
/// A stream has no end, so only this much of it is read.
const ENOUGH_BYTES: usize = 256 * 1_024;

/// The claims of the only client.
pub fn claims() -> Claims {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is later than 1970");
    Claims {
        sub: "fuzz".to_owned(),
        school_id: Some(1.try_into().expect("1 is a school")),
        schools: None,
        role: Role::Admin,
        channels: None,
        exp: now.as_secs_f64().trunc() + 86_400.0,
        iat: None,
        iss: None,
        aud: None,
    }
}

fn figment(folder: &TempDir) -> Figment {
    rocket::Config::figment()
        .merge(("log_level", "off"))
        .merge(("port", 0))
        .merge(("tidings.data_dir", folder.path()))
        .merge(("tidings.synchronous", "normal"))
        .merge(("tidings.publishes_per_sec", 0))
        .merge(("tidings.jwt_secret", SECRET))
}

fn runtime() -> (Runtime, TempDir) {
    (
        Runtime::new().expect("threads are available"),
        tempfile::tempdir().expect("the temporary folder is writable"),
    )
}

fn token(tidings: Option<&Arc<Tidings>>) -> String {
    let keys = tidings.expect("the server manages it").keys();
    let token = keys.mint(claims()).expect("the secret signs");
    token.reveal().to_owned()
}

/// The server, used without a socket.
pub struct Local {
    runtime: Runtime,
    client: Client,
    token: String,
    _folder: TempDir,
}

pub static LOCAL: LazyLock<Local> = LazyLock::new(|| {
    let (runtime, folder) = runtime();
    let client = runtime.block_on(async {
        let rocket = tidings::server(figment(&folder)).expect("the settings are sound");
        Client::untracked(rocket).await.expect("the server starts")
    });
    let token = token(client.rocket().state());
    Local {
        runtime,
        client,
        token,
        _folder: folder,
    }
});

impl Local {
    /// Sends the request with a token. Checks that the status is not a server error. Returns the status and the body, unless
    /// the response is a stream.
    pub fn send(&self, request: &Request) -> (u16, Vec<u8>) {
        self.runtime.block_on(async {
            let mut asked = self.client.req(request.method, request.target.clone());
            for (name, value) in &request.headers {
                asked.add_header(rocket::http::Header::new(name.clone(), value.clone()));
            }
            asked.add_header(rocket::http::Header::new(
                "Authorization",
                format!("Bearer {}", self.token),
            ));
            let answer = asked.body(&request.body).dispatch().await;
            let status = answer.status().code;
            let is_stream = answer
                .content_type()
                .is_some_and(|kind| kind.is_event_stream());
            let body = if is_stream {
                Vec::new()
            } else {
                answer.into_bytes().await.unwrap_or_default()
            };
            assert_sound(status, &request.target);
            (status, body)
        })
    }
}

/// Checks that a request was answered without a server error. A rejection or a 503 of a busy server is fine.
pub fn assert_sound(status: u16, target: &str) {
    assert!(status < 500 || status == 503, "{status} for {target}");
}

/// The server, listening on a port of the loopback.
pub struct Listening {
    _runtime: Runtime,
    address: SocketAddr,
    pub token: String,
    _folder: TempDir,
}

pub static LISTENING: LazyLock<Listening> = LazyLock::new(|| {
    let (runtime, folder) = runtime();
    let (started, address_of_server) = std::sync::mpsc::channel();
    let rocket = {
        let _entered = runtime.enter();
        tidings::server(figment(&folder)).expect("the settings are sound")
    };
    let token = token(rocket.state());
    let rocket = rocket.attach(AdHoc::on_liftoff("Fuzzing: announce", move |rocket| {
        let address = SocketAddr::new(rocket.config().address, rocket.config().port);
        Box::pin(async move { started.send(address).expect("the receiver waits") })
    }));
    runtime.spawn(rocket.launch());
    let address = address_of_server.recv().expect("the server starts");
    Listening {
        _runtime: runtime,
        address,
        token,
        _folder: folder,
    }
});

impl Listening {
    /// Sends these parts, each in a separate segment if the kernel permits, and returns the server's output. After the
    /// client is done, the server must end the connection.
    pub fn talk<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_nodelay(true).expect("a socket has this option");
        let mut answer = Vec::new();
        for part in parts {
            // The server may answer and close before it has read everything.
            if stream.write_all(part).is_err() {
                break;
            }
        }
        let began = Instant::now();
        while !read(&mut stream, &mut answer) && !is_stream(&answer) {
            // This fails if the connection has ended meanwhile.
            let _ = stream.shutdown(Shutdown::Write);
            assert!(
                began.elapsed() < PATIENCE,
                "the connection does not end: {}",
                String::from_utf8_lossy(&answer)
            );
        }
        answer
    }
}

/// Whether the response is an event stream, which continues after the client has sent everything.
fn is_stream(answer: &[u8]) -> bool {
    let mut windows = answer.windows(EVENT_STREAM.len());
    windows.any(|part| part == EVENT_STREAM)
}

/// Reads until the server is silent, the connection ends or the limit is reached. Returns false if the server is silent.
fn read(stream: &mut TcpStream, answer: &mut Vec<u8>) -> bool {
    stream
        .set_read_timeout(Some(SILENCE))
        .expect("a socket has a time-out");
    let mut bytes = [0; 16 * 1_024];
    while answer.len() < ENOUGH_BYTES {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(count) => answer.extend_from_slice(&bytes[..count]),
            Err(error) => {
                let is_late = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                return !is_late;
            }
        }
    }
    true
}
