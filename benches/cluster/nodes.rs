//! The servers that all runs share, and the nodes of one run.

use std::fs;
use std::ops::Deref;
use std::path::Path;

use serde_json::Value;
use tokio_postgres::{Client, NoTls};

use crate::server::{Server, create_job};
use crate::support::part;
use crate::support::postgres::{self, Cluster, Database};
use crate::support::redis::RedisServer;

/// Unlike the tests', this server waits for the disk. Otherwise it is as Debian sets it.
const SETTINGS: [&str; 2] = ["fsync=on", "shared_buffers=128MB"];

/// Clock ticks per second (`getconf CLK_TCK`), the same on every Linux.
const TICKS_PER_SEC: f64 = 100.0;

/// Many schools.
pub(crate) const SCHOOLS: usize = 64;

/// PostgreSQL, Redis, and tokens.
pub(crate) struct Servers {
    postgres: Cluster,
    redis: RedisServer,
    client: Client,
    /// The process from which the others of PostgreSQL descend.
    postmaster: u32,
    /// A worker's token for each of the [`SCHOOLS`], from school 1 on.
    pub(crate) tokens: Vec<String>,
}

/// How nodes hear from one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bus {
    Redis,
    /// `LISTEN` and `NOTIFY` of Postgres.
    Listen,
    /// A Redis that is down.
    Down,
}

/// Nodes over one database.
pub(crate) struct Nodes {
    nodes: Vec<Server>,
    /// Dropped after the nodes.
    _database: Option<Database>,
}

impl Servers {
    pub(crate) async fn start() -> Servers {
        let bin = postgres::programs().expect("PostgreSQL is installed");
        let postgres = Cluster::start(&bin, &SETTINGS);
        let address = format!("{}/postgres", postgres.url());
        let (client, connection) = tokio_postgres::connect(&address, NoTls)
            .await
            .expect("PostgreSQL answers");
        tokio::spawn(connection);
        let folder = client.query_one("SHOW data_directory", &[]).await;
        let folder: String = folder.expect("a superuser may").get(0);
        let file = fs::read_to_string(Path::new(&folder).join("postmaster.pid"));
        let file = file.expect("it runs");
        let postmaster = file.lines().next().expect("its id").parse();
        let one = Server::start_with(Vec::new());
        Servers {
            postgres,
            redis: RedisServer::start().expect("Redis is installed"),
            client,
            postmaster: postmaster.expect("a number"),
            tokens: (1..=SCHOOLS as u32)
                .map(|school| one.token(school))
                .collect(),
        }
    }

    /// Returns the versions of what the nodes use.
    pub(crate) async fn version(&self) -> String {
        let version = self.client.query_one("SHOW server_version", &[]).await;
        format!(
            "PostgreSQL {}",
            version.expect("it answers").get::<_, String>(0)
        )
    }

    /// Starts nodes over a new database.
    pub(crate) fn nodes(&self, count: usize, bus: Bus) -> Nodes {
        let database = self.postgres.database();
        let mut settings = vec![
            ("TIDINGS_EVENT_BYTES_PER_SEC", "0".to_owned()),
            ("TIDINGS_DATABASE_URL", database.url.clone()),
            // A bus that is down is reported again and again.
            ("TIDINGS_LOG", "error".to_owned()),
        ];
        settings.extend(
            match bus {
                Bus::Redis => Some(self.redis.url()),
                Bus::Listen => None,
                Bus::Down => Some(format!("redis://127.0.0.1:{}", part::free_port())),
            }
            .map(|url| ("TIDINGS_BUS_URL", url)),
        );
        let start = |_| Server::start_with(settings.clone());
        Nodes {
            nodes: (0..count).map(start).collect(),
            _database: Some(database),
        }
    }

    /// Returns the CPU time that PostgreSQL has used, in seconds.
    pub(crate) fn postgres_cpu_secs(&self) -> f64 {
        let processes = fs::read_dir("/proc").expect("Linux");
        let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let secs = ids.filter_map(|id: u32| {
            // A process may end meanwhile.
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            let (_, rest) = stat.rsplit_once(") ")?;
            let fields: Vec<&str> = rest.split(' ').collect();
            let ticks = |at: usize| fields[at].parse::<f64>().ok();
            let of_process = ticks(11)? + ticks(12)?;
            let of_ended_children = ticks(13)? + ticks(14)?;
            match (
                id == self.postmaster,
                fields[1] == self.postmaster.to_string(),
            ) {
                (true, _) => Some(of_process + of_ended_children),
                (_, true) => Some(of_process),
                _ => None,
            }
        });
        secs.sum::<f64>() / TICKS_PER_SEC
    }
}

impl Nodes {
    /// Starts a single node on SQLite.
    pub(crate) async fn on_sqlite() -> Nodes {
        Nodes {
            nodes: vec![Server::start().await],
            _database: None,
        }
    }

    /// Returns the node that a client uses, if clients are distributed evenly.
    pub(crate) fn of(&self, client: usize) -> &Server {
        &self.nodes[client % self.nodes.len()]
    }

    /// Kills the last node.
    pub(crate) fn kill_last(&mut self) {
        self.nodes.pop().expect("there is one").kill();
    }

    /// Returns the CPU time that the nodes have used together, in seconds.
    pub(crate) fn cpu_secs(&self) -> f64 {
        self.nodes.iter().map(|node| node.cpu_secs()).sum()
    }

    /// Creates running jobs `j0`, `j1`, … in a school.
    pub(crate) async fn create_jobs(&self, token: &str, count: usize) {
        let commands: Vec<Value> = (0..count).map(create_job).collect();
        self.nodes[0].publish(token, &commands).await;
    }
}

impl Deref for Nodes {
    type Target = [Server];

    fn deref(&self) -> &[Server] {
        &self.nodes
    }
}

/// Reads a metric without labels.
pub(crate) async fn metric(node: &Server, token: &str, name: &str) -> f64 {
    let text = reqwest::Client::new()
        .get(format!("http://{}/metrics", node.address))
        .bearer_auth(token)
        .send()
        .await
        .expect("an answer")
        .text()
        .await
        .expect("text");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no metric {name}"));
    value.trim().parse().expect("a number")
}
