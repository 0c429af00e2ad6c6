//! The real server in this process, so that its code is covered: asked without a socket, or over the loopback.

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
/// A server that says nothing for so long is taken to wait for more. Not a bound: what comes later is read then.
const SILENCE: Duration = Duration::from_millis(10);
/// A connection whose other side is done ends within this, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(8);
const EVENT_STREAM: &[u8] = b"text/event-stream";
/// A stream goes on: more of it is not looked at.
const ENOUGH_BYTES: usize = 256 * 1_024;

/// The claims of the only caller.
pub fn claims() -> Claims {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is later than 1970");
    Claims {
        sub: "fuzz".to_owned(),
        school_id: Some(1.try_into().expect("it is the number of a school")),
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
        Runtime::new().expect("there are threads"),
        tempfile::tempdir().expect("there is a folder for temporary files"),
    )
}

fn token(tidings: Option<&Arc<Tidings>>) -> String {
    let keys = tidings.expect("the server manages it").keys();
    keys.mint(claims()).expect("the secret signs")
}

/// The server without a socket.
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
    /// Sends the request with a token. Returns the status, which is never an error of the server's, and the body, unless it is a
    /// stream's.
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

/// A request may be refused, and a busy server says so; it has no error of its own.
pub fn assert_sound(status: u16, target: &str) {
    assert!(status < 500 || status == 503, "{status} for {target}");
}

/// The server at a port of the loopback.
pub struct Listening {
    _runtime: Runtime,
    address: SocketAddr,
    pub token: String,
    _folder: TempDir,
}

pub static LISTENING: LazyLock<Listening> = LazyLock::new(|| {
    let (runtime, folder) = runtime();
    let (told, listens) = std::sync::mpsc::channel();
    let rocket = {
        let _entered = runtime.enter();
        tidings::server(figment(&folder)).expect("the settings are sound")
    };
    let token = token(rocket.state());
    let rocket = rocket.attach(AdHoc::on_liftoff("Fuzzing: announce", move |rocket| {
        let address = SocketAddr::new(rocket.config().address, rocket.config().port);
        Box::pin(async move { told.send(address).expect("it is waited for") })
    }));
    runtime.spawn(rocket.launch());
    let address = listens.recv().expect("the server starts");
    Listening {
        _runtime: runtime,
        address,
        token,
        _folder: folder,
    }
});

impl Listening {
    /// Sends these parts, each in a segment of its own as far as the kernel likes, and returns what the server answers. After this
    /// side is done, the server ends the connection.
    pub fn talk<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_nodelay(true).expect("a socket has this option");
        let mut answer = Vec::new();
        for part in parts {
            // The server may have answered and closed before it has read all.
            if stream.write_all(part).is_err() {
                break;
            }
        }
        let began = Instant::now();
        while !read(&mut stream, &mut answer) && !is_stream(&answer) {
            // Fails if it has ended meanwhile.
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

/// An event stream goes on for as long as somebody reads, also one who is done with asking.
fn is_stream(answer: &[u8]) -> bool {
    let mut windows = answer.windows(EVENT_STREAM.len());
    windows.any(|part| part == EVENT_STREAM)
}

/// Reads until nothing comes for a while, or until the end, which it returns, or enough.
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
