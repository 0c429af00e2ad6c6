//! The servers that are compared in one run: Tidings, the raw writer, Rocket alone, and other servers that are installed.
//!
//! | server | how to install it |
//! | --- | --- |
//! | Bun, whose WebSockets are those of uWebSockets | `npm install bun`, and its file in `BENCH_BUN` unless it is in the `PATH` |
//! | Nchan, a module of nginx | `apt-get install libnginx-mod-nchan`, or its file in `BENCH_NCHAN` |
//! | another build of Tidings | its file in `BENCH_BEFORE` |
//!
//! A server that is absent is named as absent, and is skipped.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::Process;
use crate::raw::RAW;
use crate::rocket_alone::ROCKET;
use crate::server::Server;
use crate::subscribers::{READY, Target, Transport};

/// Where Debian installs Nchan.
const NCHAN: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// The lower bound.
    Raw,
    Tidings,
    /// Another build of Tidings, to compare with.
    Before,
    Bun,
    Nchan,
    /// Rocket without Tidings.
    Rocket,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Kind::Raw => "raw",
            Kind::Tidings => "Tidings",
            Kind::Before => "before",
            Kind::Bun => "Bun",
            Kind::Nchan => "Nchan",
            Kind::Rocket => "Rocket",
        })
    }
}

/// Returns the servers that are installed, the raw writer first. Names the others.
pub(crate) fn installed() -> Vec<Kind> {
    let mut kinds = vec![Kind::Raw, Kind::Tidings, Kind::Rocket];
    if std::env::var_os("BENCH_BEFORE").is_some() {
        kinds.push(Kind::Before);
    }
    let has_bun = Command::new(bun()).arg("--version").output().is_ok();
    for (kind, is_installed) in [(Kind::Bun, has_bun), (Kind::Nchan, nchan().exists())] {
        match is_installed {
            true => kinds.push(kind),
            false => println!("{kind} is absent"),
        }
    }
    kinds
}

fn bun() -> PathBuf {
    std::env::var_os("BENCH_BUN").unwrap_or("bun".into()).into()
}

fn nchan() -> PathBuf {
    std::env::var_os("BENCH_NCHAN")
        .unwrap_or(NCHAN.into())
        .into()
}

/// A running server.
pub(crate) struct Peer {
    kind: Kind,
    process: Running,
    /// Its configuration.
    _folder: Option<TempDir>,
}

enum Running {
    Tidings(Box<Server>),
    Other(Process),
}

/// Figures of its process.
impl Deref for Peer {
    type Target = Process;

    fn deref(&self) -> &Process {
        match &self.process {
            Running::Tidings(server) => server,
            Running::Other(process) => process,
        }
    }
}

impl Peer {
    /// Starts a server. Tidings creates a job for each channel.
    pub(crate) async fn start(kind: Kind, channels: usize) -> Peer {
        let mut folder = None;
        let process = match kind {
            Kind::Tidings | Kind::Before => {
                let program = (kind == Kind::Before).then(|| std::env::var("BENCH_BEFORE"));
                let program = program.map(|program| program.expect("it is set"));
                let server = Server::start_program(program.as_deref()).await;
                server.create_jobs(channels).await;
                Running::Tidings(Box::new(server))
            }
            Kind::Raw => {
                let this = std::env::current_exe().expect("a file");
                Running::Other(Process::run(Command::new(this).arg(RAW)))
            }
            Kind::Rocket => {
                let this = std::env::current_exe().expect("a file");
                Running::Other(Process::run(Command::new(this).arg(ROCKET)))
            }
            Kind::Bun => {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/load/peer.js");
                Running::Other(Process::run(Command::new(bun()).arg(script)))
            }
            Kind::Nchan => {
                let (process, nginx_folder) = nginx();
                folder = Some(nginx_folder);
                Running::Other(process)
            }
        };
        Peer {
            kind,
            process,
            _folder: folder,
        }
    }

    /// Whether a server offers this transport.
    pub(crate) fn is_offered(kind: Kind, transport: Transport) -> bool {
        match kind {
            Kind::Bun => transport == Transport::WebSocket,
            Kind::Rocket => transport == Transport::EventSource,
            Kind::Raw | Kind::Tidings | Kind::Before | Kind::Nchan => true,
        }
    }

    /// Where its readers connect.
    pub(crate) fn target(&self) -> Target<'_> {
        Target {
            address: &self.address,
            token: self.token(),
            live: match &self.process {
                Running::Tidings(_) => READY,
                Running::Other(_) => b"\r\n\r\n",
            },
        }
    }

    pub(crate) fn token(&self) -> &str {
        match &self.process {
            Running::Tidings(server) => &server.worker,
            Running::Other(_) => "none",
        }
    }

    /// The path that a reader of a channel requests.
    pub(crate) fn reader_path(&self, channel: usize, tick_ms: usize) -> String {
        match &self.process {
            Running::Tidings(_) => format!("/events/jobs/j{channel}?tick_ms={tick_ms}"),
            Running::Other(_) => format!("/sub/j{channel}"),
        }
    }

    /// The path and the body of a request that publishes this message of Tidings, as a client receives it.
    pub(crate) fn publication(
        &self,
        channel: usize,
        received: &[u8],
        now: u64,
    ) -> (String, String) {
        let text = String::from_utf8_lossy(received);
        let json = text.find('{').zip(text.rfind('}')).expect("JSON");
        match self.kind {
            Kind::Tidings | Kind::Before => (
                format!("/api/jobs/j{channel}/progress"),
                format!(r#"{{"message":"{now}"}}"#),
            ),
            Kind::Raw => (format!("/pub/j{channel}"), text.into_owned()),
            Kind::Bun | Kind::Nchan | Kind::Rocket => {
                (format!("/pub/j{channel}"), text[json.0..=json.1].to_owned())
            }
        }
    }
}

/// Starts an nginx of one process with Nchan.
fn nginx() -> (Process, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("bound").to_string();
    drop(free);
    let module = nchan();
    let module = module.display();
    let configuration = format!(
        "load_module {module};
        daemon off; master_process off; pid nginx.pid; error_log stderr crit; worker_rlimit_nofile 20000;
        events {{ worker_connections 20000; }}
        http {{
          access_log off; keepalive_requests 100000000;
          client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
          uwsgi_temp_path uwsgi; scgi_temp_path scgi;
          server {{
            listen {address};
            location ~ ^/pub/(.+)$ {{ nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length 1000; nchan_message_timeout 30s; }}
            location ~ ^/sub/(.+)$ {{ nchan_subscriber; nchan_channel_id $1; nchan_subscriber_first_message newest; }}
          }}
        }}"
    );
    std::fs::write(folder.path().join("nginx.conf"), configuration).expect("a file");
    let mut command = Command::new("nginx");
    command
        .args(["-p", ".", "-e", "stderr", "-c", "nginx.conf"])
        .current_dir(folder.path());
    (Process::listening(&mut command, &address), folder)
}
