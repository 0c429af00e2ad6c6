//! A real PgBouncer in transaction mode, in front of the tests' PostgreSQL. `PGBOUNCER` names a program other than the installed one.

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
        let Some((program, _)) = program() else {
            skip("PgBouncer");
            return None;
        };
        let server = cluster.url().rsplit_once('@').unwrap().1.to_owned();
        let mut log = String::new();
        for _ in 0..ATTEMPTS {
            let (folder, port) = (part::folder("pgbouncer"), part::free_port());
            let (host, server_port) = server.split_once(':').unwrap();
            let of_statements = match prepares() {
                true => "max_prepared_statements = 100",
                false => "server_reset_query_always = 1",
            };
            let configuration = format!(
                "[databases]\n* = host={host} port={server_port} user=tidings\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
                 pool_mode = transaction\n{of_statements}\nmax_client_conn = 1000\ndefault_pool_size = 8\n"
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

/// Whether the installed version supports prepared statements in transaction mode.
pub(crate) fn prepares() -> bool {
    program().is_some_and(|(_, version)| *version >= (1, 21))
}

/// Returns the program and its version.
fn program() -> Option<&'static (String, (u32, u32))> {
    static FOUND: OnceLock<Option<(String, (u32, u32))>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        // Debian installs it where only root's `PATH` leads.
        let programs = match std::env::var("PGBOUNCER") {
            Ok(program) => vec![program],
            Err(_) => vec!["pgbouncer".to_owned(), "/usr/sbin/pgbouncer".to_owned()],
        };
        programs.into_iter().find_map(|program| {
            let output = Command::new(&program).arg("--version").output().ok()?;
            // The first line is `PgBouncer 1.24.1`.
            let text = String::from_utf8(output.stdout).unwrap();
            let version = text.lines().next()?.rsplit(' ').next()?;
            let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
            Some((program, (numbers.next()?, numbers.next()?)))
        })
    });
    found.as_ref()
}
