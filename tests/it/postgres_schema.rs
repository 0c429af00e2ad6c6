//! The tables on Postgres: what other places rely on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use sha2::{Digest, Sha256};
use tidings::config::Settings;
use tidings::log::{Committed, Journal};
use tidings::store::postgres::{Address, OpenError, PostgresStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::commands::job;
use crate::support::postgres;
use crate::support::sources::rust_files;
use crate::support::{Transport, admin_of, server_with, until, worker};

/// Opens the store on a database.
fn open(url: &str) -> Result<PostgresStore, OpenError> {
    let (committed, _) = Committed::channel(10);
    let address = Address::parse(&url.into(), true).unwrap();
    PostgresStore::open(&Settings::default(), address, committed, &[])
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

/// A `NOTIFY` in a commit makes all commits of the database wait for one another. The bus sends its notifications on a
/// connection of its own.
#[test]
fn no_transaction_of_the_store_sends_a_notification() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sends = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        text.contains("NOTIFY ") || text.contains("pg_notify")
    };
    assert!(sends(&root.join("src/bus/postgres.rs")));
    let mut files = rust_files(&root.join("src/store"));
    files.push(root.join("src/store/postgres/commit.sql"));
    for migration in root.join("migrations/postgres").read_dir().unwrap() {
        files.push(migration.unwrap().path().join("up.sql"));
    }
    assert!(files.len() > 30, "{files:?}");
    let found: Vec<_> = files.into_iter().filter(sends).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// Postgres ends a transaction whose node says nothing: see `begin`. `tidings copy` (`import.rs`) runs alone.
#[test]
fn every_transaction_of_the_store_is_begun_so_that_its_locks_do_not_outlive_a_silent_node() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/postgres");
    let mut begun = 0;
    for file in rust_files(&folder) {
        if file.ends_with("import.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let is_literal =
            |line: &&str| line.contains("\"BEGIN") && !line.trim_start().starts_with("//");
        for line in text.lines().filter(is_literal) {
            let is_limited = ["begin(\"BEGIN", "Pool::new(address, \"BEGIN"]
                .iter()
                .any(|way| line.contains(way));
            assert!(is_limited, "{}: {line}", file.display());
            begun += 1;
        }
    }
    assert!(begun > 5, "{begun}");
}

/// Tables of the installation as a whole, which have no school.
const OF_ALL: [&str; 4] = ["leases", "meta", "nodes", "notifiers"];

/// So that schools can be spread over several databases or a cluster.
#[tokio::test(flavor = "multi_thread")]
async fn the_school_leads_every_key() {
    let Some(database) = postgres::database() else {
        return;
    };
    drop(open(&database.url).unwrap());
    let client = connect(&database.url).await;
    let query = "SELECT t.relname, i.relname, a.attname, x.indisprimary OR x.indisunique
         FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_class AS t ON t.oid = x.indrelid
         JOIN pg_namespace AS n ON n.oid = t.relnamespace AND n.nspname = 'public'
         JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = x.indkey[0]
         WHERE t.relname NOT LIKE '\\_\\_%'";
    let keys = client.query(query, &[]).await.unwrap();
    assert!(keys.len() > 25, "{}", keys.len());
    for key in keys {
        let (table, index, first): (&str, &str, &str) = (key.get(0), key.get(1), key.get(2));
        // The only one that is read over all schools: by one node at a time.
        if !OF_ALL.contains(&table) && index != "subjects_due" {
            assert_eq!(first, "school_id", "{index} of {table}");
        }
        assert!(
            index != "subjects_due" || !key.get::<_, bool>(3),
            "it is no key"
        );
    }
    let query = "SELECT relname FROM pg_class AS t JOIN pg_namespace AS n ON n.oid = t.relnamespace AND n.nspname = 'public'
         WHERE relkind = 'r' AND relname NOT LIKE '\\_\\_%'
         AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = t.oid AND attname = 'school_id')";
    let without: Vec<String> = client
        .query(query, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(
        without.iter().all(|name| OF_ALL.contains(&name.as_str())),
        "{without:?}"
    );
}

/// Nodes of neighbouring versions run side by side.
#[tokio::test(flavor = "multi_thread")]
async fn tables_to_which_a_newer_program_has_added_something_are_used_and_others_are_rejected() {
    let Some(database) = postgres::database() else {
        return;
    };
    drop(open(&database.url).unwrap());
    let client = connect(&database.url).await;
    client
        .batch_execute(
            "INSERT INTO __diesel_schema_migrations (version) VALUES ('99999999999999');
             ALTER TABLE schools ADD COLUMN colour TEXT; ALTER TABLE events ADD COLUMN colour TEXT;
             ALTER TABLE subjects ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'; CREATE TABLE colours (school_id BIGINT);",
        )
        .await
        .unwrap();
    let server = server_with(json!({"database_url": database.url})).await;
    let cursor = server.running_job("a").await["cursor"].clone();
    let cursor = cursor.as_str().unwrap();
    server
        .report("/api/jobs/a/complete", json!({"result": {"pages": 2}}))
        .await;
    let mut listener = server.resume(Transport::EventSource, "/jobs", cursor).await;
    let ended = listener
        .take_until(|message| message["status"] == "completed")
        .await;
    assert_eq!(ended.last().unwrap()["result"]["pages"], 2);
    server.stop().await;
    client
        .batch_execute(
            "INSERT INTO meta (key, value) VALUES ('needed_migration', '99999999999999')",
        )
        .await
        .unwrap();
    let error = open(&database.url).err().unwrap().to_string();
    assert!(
        error.contains("99999999999999") && error.contains("newer program"),
        "{error}"
    );
}

/// A statement of a migration that a node of the version before it can work with. An index must not reject what that node writes, so
/// a unique one needs a table that is new as well.
fn only_adds(statement: &str, new_tables: &[&str]) -> bool {
    let words: Vec<&str> = statement.split_whitespace().collect();
    match &words[..] {
        ["CREATE", "TABLE", ..] | ["CREATE", "INDEX", ..] => true,
        ["CREATE", "UNIQUE", "INDEX", _, "ON", table, ..] => new_tables.contains(table),
        ["ALTER", "TABLE", _, "ADD", "COLUMN", _, _, constraints @ ..] => {
            matches!(
                constraints,
                [] | ["DEFAULT", _] | ["NOT", "NULL", "DEFAULT", _]
            )
        }
        _ => false,
    }
}

/// What deletes or changes something must raise `needed_migration`, and this test must then allow it by its name.
#[test]
fn migrations_after_the_first_only_add() {
    let table = "CREATE TABLE a (b BIGINT)";
    assert!(only_adds(table, &[]) && only_adds("CREATE UNIQUE INDEX i ON a (b)", &["a"]));
    assert!(only_adds("ALTER TABLE a ADD COLUMN c TEXT", &[]));
    assert!(only_adds(
        "ALTER TABLE a ADD COLUMN c BIGINT NOT NULL DEFAULT 0",
        &[]
    ));
    for other in [
        "ALTER TABLE a ADD COLUMN c BIGINT NOT NULL",
        "ALTER TABLE a ADD COLUMN c BIGINT UNIQUE",
        "ALTER TABLE a DROP COLUMN b",
        "ALTER TABLE a RENAME COLUMN b TO c",
        "CREATE UNIQUE INDEX i ON a (b)",
        "DROP TABLE a",
        "UPDATE a SET b = 1",
    ] {
        assert!(!only_adds(other, &[]), "{other}");
    }
    for migration in &migrations()[1..] {
        let sql = std::fs::read_to_string(migration.join("up.sql")).unwrap();
        let lines = sql.lines().filter(|line| !line.trim().starts_with("--"));
        let sql = lines.collect::<Vec<_>>().join("\n");
        let statements: Vec<&str> = sql
            .split(';')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .collect();
        let new_tables = statements.iter().filter_map(|statement| {
            let rest = statement.strip_prefix("CREATE TABLE ")?;
            rest.split_whitespace().next()
        });
        let new_tables: Vec<&str> = new_tables.collect();
        for statement in statements {
            assert!(
                only_adds(statement, &new_tables),
                "{}: {statement}",
                migration.display()
            );
        }
    }
}

/// Databases have applied them, and do not apply them again. `sha256sum` writes the file.
#[test]
fn migrations_do_not_change() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let sums = std::fs::read_to_string(root.join("SHA256SUMS")).unwrap();
    let mut known = Vec::new();
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        let text = std::fs::read(root.join(name)).unwrap();
        let digest = Sha256::digest(&text);
        let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            found, sum,
            "{name} has changed: add another migration instead"
        );
        known.push(root.join(name.trim_start_matches("./")));
    }
    for database in ["postgres", "sqlite"] {
        for migration in root.join(database).read_dir().unwrap() {
            let file = migration.unwrap().path().join("up.sql");
            assert!(
                known.contains(&file),
                "{} is not in SHA256SUMS",
                file.display()
            );
        }
    }
}

/// The folders of the migrations, in order.
fn migrations() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres");
    let entries = folder.read_dir().unwrap();
    let mut migrations: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    migrations.sort();
    assert!(migrations.len() > 1);
    migrations
}

/// Takes a database back to the tables of the first version. Its rows stay.
async fn return_to_the_first_version(client: &tokio_postgres::Client) {
    for migration in migrations()[1..].iter().rev() {
        let sql = std::fs::read_to_string(migration.join("down.sql")).unwrap();
        client.batch_execute(&sql).await.unwrap();
    }
    let deleted = "DELETE FROM __diesel_schema_migrations WHERE version > '00000000000001'";
    client.execute(deleted, &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_first_version_is_upgraded_with_its_rows_and_cursors() {
    let Some(database) = postgres::database() else {
        return;
    };
    let settings = json!({"database_url": database.url});
    let old = server_with(settings.clone()).await;
    let cursor = old.running_job("a").await["cursor"].clone();
    let path = "/api/jobs/a/progress";
    let reported = old.report(path, json!({"progress": 40})).await;
    old.put("/api/devices/d", json!({"name": "door"})).await;
    old.report("/api/devices/d/status", json!({"status": "online"}))
        .await;
    old.stop().await;
    return_to_the_first_version(&connect(&database.url).await).await;

    let new = server_with(settings).await;
    let (_, job) = new.get("/api/jobs/a", &worker(1)).await;
    assert_eq!(job["progress"], 40.0, "{job}");
    let mut listener = new
        .resume(
            Transport::EventSource,
            "/jobs?tick_ms=0",
            cursor.as_str().unwrap(),
        )
        .await;
    let resumed = listener
        .take_until(|message| message["progress"] == 40.0)
        .await;
    assert_eq!(resumed.last().unwrap()["cursor"], reported["cursor"]);
    new.report("/api/jobs/a/complete", json!({})).await;
    listener
        .take_until(|message| message["status"] == "completed")
        .await;
    // The node waits for a sign of other nodes before it marks devices.
    until("the device is unknown", async || {
        let (_, devices) = new.get("/api/devices?status=unknown", &worker(1)).await;
        devices["devices"][0]["device_id"] == "d"
    })
    .await;
    // What the later versions have added.
    let ping = json!({"job_type": "backup"});
    let (status, key) = new.post("/api/pings", &admin_of(1), ping).await;
    assert_eq!(status, 201, "{key}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_at_the_same_time_make_the_tables_once() {
    let Some(database) = postgres::database() else {
        return;
    };
    let opened: Vec<_> = (0..4)
        .map(|_| {
            let url = database.url.clone();
            tokio::task::spawn_blocking(move || open(&url).map(drop))
        })
        .collect();
    for opened in opened {
        opened.await.unwrap().unwrap();
    }
    let client = connect(&database.url).await;
    let epochs = client
        .query("SELECT FROM meta WHERE key = 'epoch'", &[])
        .await;
    assert_eq!(epochs.unwrap().len(), 1);
}

/// Passes connections on to Postgres, and counts how often the clients send this text.
async fn counting(database: &str, text: &'static [u8]) -> (String, Arc<AtomicUsize>) {
    let (before, name) = database.rsplit_once('/').unwrap();
    let postgres = before.rsplit_once('@').unwrap().1.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&postgres).await.unwrap();
            let ((mut asks, mut reads), (mut answers, mut asked)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut reads).await });
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let (mut part, mut tail) = (vec![0; 64 * 1024], Vec::new());
                while let Ok(read @ 1..) = asks.read(&mut part).await {
                    tail.extend_from_slice(&part[..read]);
                    let found = tail.windows(text.len()).filter(|window| *window == text);
                    counted.fetch_add(found.count(), Ordering::SeqCst);
                    // What may be its beginning.
                    tail.drain(..tail.len().saturating_sub(text.len() - 1));
                    if asked.write_all(&part[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (format!("postgres://tidings@{address}/{name}"), count)
}

/// Otherwise each commit would be two round trips, and Postgres would plan it anew, which takes longer than the commit.
#[tokio::test(flavor = "multi_thread")]
async fn the_statement_of_a_commit_is_sent_once_and_not_with_every_commit() {
    let Some(database) = postgres::database() else {
        return;
    };
    let (url, sent) = counting(&database.url, b"new_states AS (").await;
    let store = open(&url).unwrap();
    for number in 0..50 {
        let id = format!("j{number}");
        let create = job(&id, "create", json!({"job_type": "scan"}));
        let receipts = store.append(1.try_into().unwrap(), vec![create]).await;
        receipts.unwrap().pop().unwrap().unwrap();
    }
    assert_eq!(sent.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_reached_is_named_without_its_password() {
    // Nothing listens on port 1.
    let error = open("postgres://u:secret@127.0.0.1:1/d").err().unwrap();
    let text = format!("{error} {error:?}");
    assert!(
        text.contains("cannot be reached") && !text.contains("secret"),
        "{text}"
    );
}
