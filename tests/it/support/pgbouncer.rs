//! A real PgBouncer in transaction mode, in front of the tests' PostgreSQL. Debian's version, 1.18, has no prepared statements.

use std::process::Command;
use std::sync::OnceLock;

use super::part::{self, Part, Program};
use super::postgres::{Cluster, Database};
use super::{skip, until};

/// Number of attempts to start it. Another program may take its free port first.
const ATTEMPTS: usize = 3;

/// A pooler. It ends when it is dropped.
pub(crate) struct PgBouncer {
    port: u16,
    _part: Part,
}

impl PgBouncer {
    /// Starts it in front of a server, and waits until it responds. If it is not installed, reports that the test is skipped.
    pub(crate) async fn before(cluster: &Cluster) -> Option<PgBouncer> {
        let Some(program) = program() else {
            skip("PgBouncer");
            return None;
        };
        let server = cluster.url().rsplit_once('@').unwrap().1.to_owned();
        let mut log = String::new();
        for _ in 0..ATTEMPTS {
            let (folder, port) = (part::folder("pgbouncer"), part::free_port());
            let (host, server_port) = server.split_once(':').unwrap();
            let configuration = format!(
                "[databases]\n* = host={host} port={server_port} user=tidings\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
                 pool_mode = transaction\nserver_reset_query_always = 1\nmax_client_conn = 1000\ndefault_pool_size = 8\n"
            );
            std::fs::write(folder.join("pgbouncer.ini"), configuration).unwrap();
            let mut part = Program {
                arguments: vec![program.into(), "pgbouncer.ini".into()],
                folder,
                signal: "KILL",
                unprivileged: true,
            }
            .start();
            let mut runs = true;
            until("PgBouncer listens", async || {
                runs = part.runs();
                !runs
                    || tokio::net::TcpStream::connect(("127.0.0.1", port))
                        .await
                        .is_ok()
            })
            .await;
            if runs {
                return Some(PgBouncer { port, _part: part });
            }
            log = part.log();
        }
        panic!("PgBouncer does not start: {log}");
    }

    /// Returns the URL of a database behind it.
    pub(crate) fn url(&self, database: &Database) -> String {
        let (_, name) = database.url.rsplit_once('/').unwrap();
        format!("postgres://tidings@127.0.0.1:{}/{name}", self.port)
    }
}

/// Returns the program's name. Debian installs it where only root's `PATH` leads.
fn program() -> Option<&'static str> {
    static FOUND: OnceLock<Option<&'static str>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        ["pgbouncer", "/usr/sbin/pgbouncer"]
            .into_iter()
            .find(|program| {
                let version = Command::new(program).arg("--version").output();
                version.is_ok()
            })
    })
}
