//! The store that test servers use: SQLite, or Postgres if `TEST_STORE=postgres`. `.ci/stores` runs the tests that must hold over
//! every store with both.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use super::postgres::{self, Database};

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
    Some(database.url.clone())
}

/// Whether the server's database is a file. If not, reports that a test is skipped, and why it needs the file.
pub(crate) fn is_a_file(why: &str) -> bool {
    if is_postgres() {
        super::say(&format!("SKIPPED over Postgres: {why}"));
    }
    !is_postgres()
}
