//! A real PostgreSQL: one server for all tests of this process, and a fresh database for each test.
//!
//! `POSTGRES_URL` names another server to use, as `postgres://user@host:port`, for example one of another version.
//! `POSTGRES_BIN` names the folder of the programs, which are otherwise found as Debian, `pg_config` or the `PATH`
//! have them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use super::part::{self, Part, Program};
use super::{PATIENCE, skip};

/// The superuser of the tests' servers. There are no passwords.
const USER: &str = "tidings";

/// The role that the tests' databases belong to, and that the nodes connect as. It has no privileges of its own.
const OWNER: &str = "owner";

/// Number of attempts to start a server. Another program may take its free port first.
const ATTEMPTS: usize = 3;

/// How the tests' servers are set. What is committed must survive a server that is killed, but not a power loss. Sorting,
/// times and dates are unlike SQLite's, so that nothing relies on the defaults.
const SETTINGS: [&str; 9] = [
    "fsync=off",
    "synchronous_commit=on",
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=500",
    "shared_buffers=64MB",
    "timezone=Asia/Kathmandu",
    "datestyle=German, DMY",
    "log_statement=none",
];

/// The sorting of texts in the tests' databases, unless the server was built without ICU.
const SORTING: [&str; 2] = ["--locale-provider=icu", "--icu-locale=en-US"];

/// A PostgreSQL server.
pub(crate) struct Cluster {
    url: String,
    /// The URL with which its databases are used.
    owner_url: String,
    clerk: mpsc::Sender<Order>,
    _part: Option<Part>,
}

/// A database, which is dropped with its last handle.
pub(crate) struct Database {
    /// Its URL, as in `database_url`.
    pub(crate) url: String,
    name: String,
    clerk: mpsc::Sender<Order>,
}

enum Order {
    CreateRole(&'static str),
    /// A database and its owner.
    Create(String, String, mpsc::Sender<()>),
    Drop(String),
}

/// Returns the server of this process's tests. If PostgreSQL is not installed, reports that the test is skipped.
pub(crate) fn cluster() -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(|| match std::env::var("POSTGRES_URL") {
        Ok(url) => Some(Cluster::at(&url)),
        Err(_) => programs().map(|bin| Cluster::start(&bin, &[])),
    });
    if cluster.is_none() {
        skip("PostgreSQL");
    }
    cluster.as_ref()
}

/// Creates a database on the server of this process's tests. If PostgreSQL is not installed, reports that the test is skipped.
pub(crate) fn database() -> Option<Database> {
    Some(cluster()?.database())
}

/// Returns the folder of PostgreSQL's programs.
pub(crate) fn programs() -> Option<PathBuf> {
    if let Some(bin) = std::env::var_os("POSTGRES_BIN") {
        return Some(bin.into());
    }
    let mut found = Vec::new();
    let config = Command::new("pg_config").arg("--bindir").output();
    found.extend(
        config.map(|output| PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())),
    );
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut versions: Vec<_> = versions.map(|version| version.unwrap().path()).collect();
    versions.sort_by_key(|version| {
        let name = version.file_name().unwrap().to_string_lossy();
        std::cmp::Reverse(name.parse::<u32>().unwrap_or(0))
    });
    found.extend(versions.iter().map(|version| version.join("bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    found.extend(std::env::split_paths(&path));
    found
        .into_iter()
        .find(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
}

impl Cluster {
    /// Creates a server with these settings in addition to the tests' own, and waits until it responds.
    pub(crate) fn start(bin: &Path, settings: &[&str]) -> Cluster {
        let mut log = String::new();
        let started = (0..ATTEMPTS).find_map(|_| {
            let folder = part::folder("postgres");
            create(bin, &folder);
            let port = part::free_port();
            let mut part = serve(bin, folder, port, settings);
            let url = format!("postgres://{USER}@127.0.0.1:{port}");
            let Some(clerk) = clerk(&url, || part.runs()) else {
                log = part.log();
                return None;
            };
            Some((url, clerk, part))
        });
        let (url, clerk, part) =
            started.unwrap_or_else(|| panic!("PostgreSQL does not start: {log}"));
        clerk.send(Order::CreateRole(OWNER)).unwrap();
        Cluster {
            owner_url: url.replace(&format!("{USER}@"), &format!("{OWNER}@")),
            url,
            clerk,
            _part: Some(part),
        }
    }

    /// Uses a server that runs already.
    fn at(url: &str) -> Cluster {
        let url = url.trim_end_matches('/').to_owned();
        let clerk = clerk(&url, || true).expect("the server named by POSTGRES_URL");
        Cluster {
            owner_url: url.clone(),
            url,
            clerk,
            _part: None,
        }
    }

    /// Returns its URL, without a database.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Creates a database.
    pub(crate) fn database(&self) -> Database {
        static CREATED: AtomicU64 = AtomicU64::new(0);
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        // Several test processes may use one server.
        let name = format!("t_{}_{number}", std::process::id());
        let (created, is_created) = mpsc::channel();
        let clerk = self.clerk.clone();
        let owner = self.owner_url.trim_start_matches("postgres://");
        let owner = owner.split([':', '@']).next().unwrap_or(USER).to_owned();
        let order = Order::Create(name.clone(), owner, created);
        clerk.send(order).unwrap();
        is_created.recv().expect("the database is created");
        Database {
            url: format!("{}/{name}", self.owner_url),
            name,
            clerk,
        }
    }
}

impl Database {
    /// Returns the URL with which a superuser connects to it.
    pub(crate) fn url_of_superuser(&self) -> String {
        self.url
            .replace(&format!("//{OWNER}@"), &format!("//{USER}@"))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Fails only if its server is gone already.
        let _ = self.clerk.send(Order::Drop(std::mem::take(&mut self.name)));
    }
}

/// Creates the files of a server.
fn create(bin: &Path, folder: &Path) {
    let data = folder.join("data");
    let initdb = |sorting: &[&str]| {
        let mut command: Vec<_> = part::as_ordinary_user(folder);
        command.push(bin.join("initdb").into());
        let output = Command::new(&command[0])
            .args(&command[1..])
            .args([
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--auth=trust",
            ])
            .arg(format!("--username={USER}"))
            .args(sorting)
            .arg("-D")
            .arg(&data)
            .current_dir(folder)
            .output()
            .unwrap();
        (output.status.success(), output)
    };
    if !initdb(&SORTING).0 {
        let (created, output) = initdb(&[]);
        assert!(created, "initdb: {output:?}");
    }
}

/// Runs a server on these files.
fn serve(bin: &Path, folder: PathBuf, port: u16, settings: &[&str]) -> Part {
    let mut arguments = vec![
        bin.join("postgres").into(),
        "-D".into(),
        folder.join("data").into(),
    ];
    arguments.extend(["-p".into(), port.to_string().into()]);
    for setting in SETTINGS.iter().chain(settings) {
        arguments.extend(["-c".into(), setting.into()]);
    }
    let program = Program {
        arguments,
        folder,
        signal: "QUIT",
        unprivileged: true,
    };
    program.start()
}

/// Starts a thread that creates and drops databases on a server, as soon as it responds. Returns none if it stops running
/// before that.
fn clerk(url: &str, runs: impl FnMut() -> bool + Send) -> Option<mpsc::Sender<Order>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // On a thread of its own, because the test's thread belongs to another runtime.
    let (runtime, client) = thread::scope(|scope| {
        let connecting = scope.spawn(move || {
            let client = runtime.block_on(connect(url, runs));
            (runtime, client)
        });
        connecting.join().unwrap()
    });
    let client = client?;
    let (sender, orders) = mpsc::channel();
    thread::spawn(move || {
        for order in orders {
            runtime.block_on(carry_out(&client, order));
        }
    });
    Some(sender)
}

async fn connect(url: &str, mut runs: impl FnMut() -> bool) -> Option<Client> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match tokio_postgres::connect(&format!("{url}/postgres"), NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return Some(client);
            }
            Err(error) => assert!(
                Instant::now() < deadline,
                "PostgreSQL does not respond: {error}"
            ),
        }
        if !runs() {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn carry_out(client: &Client, order: Order) {
    match order {
        Order::CreateRole(name) => {
            let create = format!("CREATE ROLE {name} LOGIN");
            client.batch_execute(&create).await.unwrap();
        }
        Order::Create(name, owner, created) => {
            let create = format!("CREATE DATABASE {name} OWNER {owner} TEMPLATE template0");
            client.batch_execute(&create).await.unwrap();
            // Fails only if the test has ended.
            let _ = created.send(());
        }
        Order::Drop(name) => {
            let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
            // The server may have been stopped by the test, or be shutting down with it.
            let _ = client.batch_execute(&drop).await;
        }
    }
}
