//! The store that test servers use: SQLite, or Postgres if `TEST_STORE=postgres`. `.ci/stores` runs the tests that must hold over
//! every store with both. With `TEST_POOLER=1`, stores reach Postgres through PgBouncer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, OnceLock};

use super::pgbouncer::{self, PgBouncer};
use super::postgres::{self, Cluster, Database};

/// The databases of the servers' folders. A database is dropped after its folder has been removed.
static DATABASES: LazyLock<Mutex<HashMap<PathBuf, Database>>> = LazyLock::new(Mutex::default);

/// Whether test servers use Postgres.
pub(crate) fn is_postgres() -> bool {
    match std::env::var("TEST_STORE") {
        Ok(store) if store == "postgres" => true,
        Ok(store) => panic!("TEST_STORE is {store:?}; expected `postgres`, or nothing for SQLite"),
        Err(_) => false,
    }
}

/// Returns the `database_url` of a server with this folder, the same each time, unless it uses SQLite.
pub(crate) fn database_url(folder: &Path) -> Option<String> {
    is_postgres().then(|| postgres_of(folder).expect("TEST_STORE=postgres needs PostgreSQL"))
}

/// Returns the URL of a Postgres database that belongs to a folder, the same each time. If PostgreSQL is not installed, reports
/// that the test is skipped.
pub(crate) fn postgres_of(folder: &Path) -> Option<String> {
    let cluster = postgres::cluster()?;
    let mut databases = DATABASES.lock().unwrap();
    databases.retain(|folder, _| folder.exists());
    let database = databases
        .entry(folder.to_owned())
        .or_insert_with(|| cluster.database());
    Some(match is_pooled() {
        true => pooler(cluster).url(database),
        false => database.url.clone(),
    })
}

/// Whether statements can be prepared.
pub(crate) fn prepares() -> bool {
    !is_pooled() || pgbouncer::prepares()
}

/// Whether Postgres is reached through a pooler.
fn is_pooled() -> bool {
    std::env::var_os("TEST_POOLER").is_some()
}

fn pooler(cluster: &'static Cluster) -> &'static PgBouncer {
    static POOLER: OnceLock<PgBouncer> = OnceLock::new();
    POOLER.get_or_init(|| {
        // On a thread of its own, because the test's thread belongs to a runtime.
        let started = std::thread::spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(PgBouncer::before(cluster))
        });
        let started = started.join().unwrap();
        started.expect("TEST_POOLER needs PgBouncer")
    })
}

/// Whether the server's database is a file. If not, reports that a test is skipped, and why it needs the file.
pub(crate) fn is_a_file(why: &str) -> bool {
    if is_postgres() {
        super::say(&format!("SKIPPED over Postgres: {why}"));
    }
    !is_postgres()
}
