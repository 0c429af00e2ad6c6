//! A real Redis server on a free port: by itself, as a cluster, or watched by a Sentinel. `REDIS_SERVER` names another
//! program that speaks its protocol, such as Valkey's.

use std::time::{Duration, Instant};

use super::part::{self, Part, Program};
use super::{PATIENCE, needs};

/// Stands for a port on which nothing listens, in an option of a server.
const FREE_PORT: &str = "a free port";
/// How many servers are started before one has the ports that were free for it.
const STARTS: usize = 5;

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
    /// One of several in a cluster.
    Member,
}

/// A server, and the Sentinel that knows where it is.
pub(crate) struct Watched {
    pub(crate) server: RedisServer,
    /// Takes the server's place when it fails.
    pub(crate) replica: Option<RedisServer>,
    sentinel: Part,
    sentinel_port: u16,
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
        let options = ["--cluster-enabled", "yes", "--cluster-port", FREE_PORT];
        RedisServer::start_as(Form::Cluster, &options)
    }

    fn start_as(form: Form, options: &[&str]) -> Option<RedisServer> {
        if !needs(&program()) {
            return None;
        }
        let scheme = match form {
            Form::Single => "redis",
            Form::Cluster | Form::Member => "redis-cluster",
        };
        for _ in 0..STARTS {
            let port = part::free_port();
            let options = options.iter().map(|option| match *option {
                FREE_PORT => part::free_port().to_string(),
                option => option.to_owned(),
            });
            let mut server = RedisServer {
                part: None,
                port,
                options: options.collect(),
                url: format!("{scheme}://127.0.0.1:{port}"),
                form,
            };
            if server.try_restart() {
                return Some(server);
            }
        }
        panic!("the ports of {STARTS} servers were in use")
    }

    /// Returns the value of a command-line option.
    fn option(&self, name: &str) -> &str {
        let at = self
            .options
            .iter()
            .position(|option| option == name)
            .unwrap();
        &self.options[at + 1]
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
            Form::Cluster | Form::Member => "SPUBLISH",
        }
    }

    /// Kills the server, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.part = None;
    }

    /// Starts the server again on its port, and waits until it serves.
    pub(crate) fn restart(&mut self) {
        assert!(self.try_restart(), "another program has the port");
    }

    /// Returns false if the server does not start, because another program has taken one of its ports meanwhile.
    fn try_restart(&mut self) -> bool {
        self.kill();
        let port = self.port.to_string();
        let folder = part::folder("redis").canonicalize().unwrap();
        let program = program();
        let fixed = [&*program, "--port", &port, "--bind", "127.0.0.1"];
        let in_memory = ["--save", "", "--appendonly", "no"];
        let options = self.options.iter().map(String::as_str);
        let arguments = fixed.into_iter().chain(in_memory).chain(options);
        let mut part = run(arguments, folder.clone());
        if self.options.iter().any(|option| option == "--requirepass") {
            wait("it listens", || {
                std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            });
            self.part = Some(part);
            return true;
        }
        let mut runs = true;
        // Another test's server may answer on the port.
        wait("it answers", || {
            runs = part.runs();
            !runs || self.folder().is_some_and(|current| current == folder)
        });
        if !runs {
            return false;
        }
        self.part = Some(part);
        if self.form == Form::Cluster {
            self.ask(&[b"CLUSTER", b"ADDSLOTSRANGE", b"0", b"16383"]);
            wait("it serves every slot", || {
                self.says("CLUSTER INFO", "cluster_state:ok")
            });
        }
        true
    }

    /// Returns the folder of the server that answers on the port.
    fn folder(&self) -> Option<std::path::PathBuf> {
        let answer = self.try_ask(&[b"CONFIG", b"GET", b"dir"]).ok()?;
        let settings: Vec<(String, String)> = redis::from_redis_value(answer).ok()?;
        settings.into_iter().map(|(_, folder)| folder.into()).next()
    }

    /// Returns whether the text that answers a command has this part.
    pub(crate) fn says(&self, command: &str, part: &str) -> bool {
        self.text(command).is_some_and(|text| text.contains(part))
    }

    /// Returns the text that answers a command.
    fn text(&self, command: &str) -> Option<String> {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let answer = self.try_ask(&words).ok()?;
        redis::from_redis_value(answer).ok()
    }

    /// Returns its name within its cluster.
    pub(crate) fn id(&self) -> String {
        self.text("CLUSTER MYID").unwrap()
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
        Watched::start_as(false)
    }

    /// Starts a server, its replica, and a Sentinel that promotes the replica if the server fails.
    pub(crate) fn with_replica() -> Option<Watched> {
        Watched::start_as(true)
    }

    fn start_as(has_replica: bool) -> Option<Watched> {
        let server = RedisServer::start()?;
        let (port, folder) = (part::free_port(), part::folder("sentinel"));
        let file = folder.join("sentinel.conf");
        let watched = server.port();
        let mut settings =
            format!("port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {watched} 1\n");
        let replica = has_replica.then(|| {
            settings += "sentinel down-after-milliseconds main 500\n";
            let source = format!("127.0.0.1 {watched}");
            let replica = RedisServer::start_with(&["--replicaof", &source]).unwrap();
            wait("it has a copy", || {
                replica.says("INFO replication", "master_link_status:up")
            });
            replica
        });
        std::fs::write(&file, settings).unwrap();
        let program = program();
        let arguments = [&*program, file.to_str().unwrap(), "--sentinel"];
        let watched = Watched {
            server,
            replica,
            sentinel: run(arguments.into_iter(), folder),
            sentinel_port: port,
            url: format!("redis+sentinel://127.0.0.1:{port}/main"),
        };
        wait("the Sentinel knows the server", || {
            let known = watched.ask_sentinel(b"get-master-addr-by-name");
            matches!(known, Ok(redis::Value::Array(_)))
        });
        if has_replica {
            wait("the Sentinel knows the replica", || {
                let known = watched.ask_sentinel(b"replicas");
                matches!(known, Ok(redis::Value::Array(replicas)) if !replicas.is_empty())
            });
        }
        Some(watched)
    }

    fn ask_sentinel(&self, question: &[u8]) -> redis::RedisResult<redis::Value> {
        ask(self.sentinel_port, &[b"SENTINEL", question, b"main"])
    }

    /// Whether the Sentinel still runs.
    pub(crate) fn is_watched(&mut self) -> bool {
        self.sentinel.runs()
    }
}

/// Three servers that share the slots of a cluster, and a replica of each.
pub(crate) struct Cluster {
    pub(crate) masters: Vec<RedisServer>,
    pub(crate) replicas: Vec<RedisServer>,
}

/// The slots of each master.
const RANGES: [(&[u8], &[u8]); 3] = [(b"0", b"5460"), (b"5461", b"10922"), (b"10923", b"16383")];

impl Cluster {
    pub(crate) fn start() -> Option<Cluster> {
        let member = || {
            let options = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                FREE_PORT,
                "--cluster-node-timeout",
                "1000",
            ];
            RedisServer::start_as(Form::Member, &options)
        };
        let members: Vec<_> = (0..6).map(|_| member()).collect::<Option<_>>()?;
        for (number, server) in members.iter().enumerate() {
            let epoch = (number + 1).to_string();
            server.ask(&[b"CLUSTER", b"SET-CONFIG-EPOCH", epoch.as_bytes()]);
        }
        for (server, (first, last)) in members.iter().zip(RANGES) {
            server.ask(&[b"CLUSTER", b"ADDSLOTSRANGE", first, last]);
        }
        let first = &members[0];
        for server in &members[1..] {
            let (port, bus) = (server.port().to_string(), server.option("--cluster-port"));
            let (port, bus) = (port.as_bytes(), bus.as_bytes());
            first.ask(&[b"CLUSTER", b"MEET", b"127.0.0.1", port, bus]);
        }
        let knows_all = |server: &RedisServer| {
            let info = server.text("CLUSTER INFO").unwrap_or_default();
            ["cluster_known_nodes:6", "cluster_slots_ok:16384"]
                .iter()
                .all(|part| info.contains(part))
        };
        wait("all know one another", || members.iter().all(knows_all));
        let mut masters = members;
        let replicas = masters.split_off(3);
        for (master, replica) in masters.iter().zip(&replicas) {
            replica.ask(&[b"CLUSTER", b"REPLICATE", master.id().as_bytes()]);
        }
        wait("each master has a copy", || {
            let is_copy =
                |replica: &RedisServer| replica.says("INFO replication", "master_link_status:up");
            replicas.iter().all(is_copy)
        });
        // A replica takes its master's place only if the other masters know that it is one.
        wait("all know the replicas", || {
            masters.iter().all(|master| {
                let nodes = master.text("CLUSTER NODES").unwrap_or_default();
                nodes.matches(" slave ").count() + nodes.matches(",slave ").count() == 3
            })
        });
        Some(Cluster { masters, replicas })
    }

    /// Returns the number of the master whose slots a channel belongs to, and the slot.
    pub(crate) fn home(&self, channel: &str) -> (usize, u16) {
        let slot = self.masters[0].ask(&[b"CLUSTER", b"KEYSLOT", channel.as_bytes()]);
        let slot: u16 = redis::from_redis_value(slot).unwrap();
        let last = |(_, last): &(&[u8], &[u8])| -> u16 {
            std::str::from_utf8(last).unwrap().parse().unwrap()
        };
        let home = RANGES.iter().position(|range| slot <= last(range));
        (home.unwrap(), slot)
    }

    /// Moves a slot without keys from one master to another.
    pub(crate) fn move_slot(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        let id = self.masters[to].id();
        let move_to = ["CLUSTER", "SETSLOT", &slot, "NODE", &id].map(str::as_bytes);
        for number in [to, from, 3 - to - from] {
            self.masters[number].ask(&move_to);
        }
    }
}

/// Returns the program that is started.
fn program() -> String {
    std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".into())
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
