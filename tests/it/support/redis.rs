//! A real Redis server on a free port: by itself, as a cluster of one, or watched by a Sentinel.

use std::time::{Duration, Instant};

use super::part::{self, Part, Program};
use super::{PATIENCE, needs};

/// A server without data on disk. It is killed when it is dropped, or when the test process ends.
pub(crate) struct RedisServer {
    part: Option<Part>,
    port: u16,
    options: Vec<String>,
    /// How to connect to it for a bus.
    url: String,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Single,
    Cluster,
}

/// A server, and the Sentinel that knows where it is.
pub(crate) struct Watched {
    pub(crate) server: RedisServer,
    sentinel: Part,
    /// How to find the server for a bus.
    pub(crate) url: String,
}

impl RedisServer {
    /// Starts a server. Returns `None`, and reports that the test is skipped, if Redis is not installed.
    pub(crate) fn start() -> Option<RedisServer> {
        RedisServer::start_with(&[])
    }

    /// Starts a server with further command-line options.
    pub(crate) fn start_with(options: &[&str]) -> Option<RedisServer> {
        RedisServer::start_as(Form::Single, options)
    }

    /// Starts a cluster of one server.
    pub(crate) fn cluster() -> Option<RedisServer> {
        // By default it would be 10,000 above the other one, which may be no port at all.
        let port = part::free_port().to_string();
        let options = ["--cluster-enabled", "yes", "--cluster-port", &port];
        RedisServer::start_as(Form::Cluster, &options)
    }

    fn start_as(form: Form, options: &[&str]) -> Option<RedisServer> {
        if !needs("redis-server") {
            return None;
        }
        let port = part::free_port();
        let scheme = match form {
            Form::Single => "redis",
            Form::Cluster => "redis-cluster",
        };
        let mut server = RedisServer {
            part: None,
            port,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            url: format!("{scheme}://127.0.0.1:{port}"),
            form,
        };
        server.restart();
        Some(server)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// Returns the command that publishes to the channels of its buses.
    pub(crate) fn publish(&self) -> &'static str {
        match self.form {
            Form::Single => "PUBLISH",
            Form::Cluster => "SPUBLISH",
        }
    }

    /// Kills the server, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.part = None;
    }

    /// Starts the server again on its port, and waits until it serves.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let port = self.port.to_string();
        let folder = part::folder("redis");
        let fixed = ["redis-server", "--port", &port, "--bind", "127.0.0.1"];
        let in_memory = ["--save", "", "--appendonly", "no"];
        let options = self.options.iter().map(String::as_str);
        let arguments = fixed.into_iter().chain(in_memory).chain(options);
        self.part = Some(run(arguments, folder));
        if self.options.iter().any(|own| own == "--requirepass") {
            return wait("it listens", || {
                std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            });
        }
        wait("it answers", || self.try_ask(&[b"PING"]).is_ok());
        if self.form == Form::Cluster {
            self.ask(&[b"CLUSTER", b"ADDSLOTSRANGE", b"0", b"16383"]);
            wait("it serves every slot", || {
                let info = self.ask(&[b"CLUSTER", b"INFO"]);
                let info: String = redis::from_redis_value(info).unwrap();
                info.contains("cluster_state:ok")
            });
        }
    }

    /// Stops the server's process without ending it, or lets it go on.
    pub(crate) fn freeze(&self, id: u32, now: bool) {
        let signal = if now { "-STOP" } else { "-CONT" };
        let id = id.to_string();
        let status = std::process::Command::new("kill")
            .args([signal, &id])
            .status();
        assert!(status.unwrap().success());
    }

    /// Returns the id of the server's process.
    pub(crate) fn process(&self) -> u32 {
        let info: redis::InfoDict =
            redis::from_redis_value(self.ask(&[b"INFO", b"server"])).unwrap();
        info.get("process_id").unwrap()
    }

    /// Sends a command and returns its answer.
    pub(crate) fn ask(&self, command: &[&[u8]]) -> redis::Value {
        self.try_ask(command).unwrap()
    }

    fn try_ask(&self, command: &[&[u8]]) -> redis::RedisResult<redis::Value> {
        ask(self.port, command)
    }
}

impl Watched {
    /// Starts a server and its Sentinel.
    pub(crate) fn start() -> Option<Watched> {
        let server = RedisServer::start()?;
        let (port, folder) = (part::free_port(), part::folder("sentinel"));
        let file = folder.join("sentinel.conf");
        let watched = server.port();
        let settings =
            format!("port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {watched} 1\n");
        std::fs::write(&file, settings).unwrap();
        let arguments = ["redis-server", file.to_str().unwrap(), "--sentinel"];
        let sentinel = run(arguments.into_iter(), folder);
        wait("the Sentinel knows the server", || {
            let name: &[u8] = b"main";
            let known = ask(port, &[b"SENTINEL", b"get-master-addr-by-name", name]);
            matches!(known, Ok(redis::Value::Array(_)))
        });
        Some(Watched {
            server,
            sentinel,
            url: format!("redis+sentinel://127.0.0.1:{port}/main"),
        })
    }

    /// Whether the Sentinel still runs.
    pub(crate) fn is_watched(&mut self) -> bool {
        self.sentinel.runs()
    }
}

fn run<'a>(arguments: impl Iterator<Item = &'a str>, folder: std::path::PathBuf) -> Part {
    let program = Program {
        arguments: arguments.map(Into::into).collect(),
        folder,
        signal: "KILL",
        unprivileged: false,
    };
    program.start()
}

fn ask(port: u16, command: &[&[u8]]) -> redis::RedisResult<redis::Value> {
    let client = redis::Client::open(("127.0.0.1", port))?;
    let mut connection = client.get_connection_with_timeout(PATIENCE)?;
    let mut request = redis::Cmd::new();
    command.iter().for_each(|part| {
        request.arg(*part);
    });
    request.query(&mut connection)
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
