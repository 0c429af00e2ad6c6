//! The store on Postgres, which several nodes share: plain SQL through Diesel, without an extension, on Postgres 15 to 18.
//!
//! ```text
//! school ─▶ one of POSTGRES_WRITERS writers of this node ─▶ compare and append (`commit.rs`) ─┐
//! readers (`readers.rs`) ◀── one consistent state per read ──────────────────────────────────┤ Postgres
//! leases, notifiers, nodes (`writes.rs`) ◀── small transactions ─────────────────────────────┘
//! ```
//!
//! Only caches and writers belong to a single node. A commit rejects decisions that were made without knowing those of
//! another node: see `commit.rs` and `backend.rs`. Subjects of all kinds share one table, with the state in JSON and
//! columns for lookups, so that a new kind needs no change here.

mod answers;
mod backend;
mod catalog;
mod commit;
mod connect;
mod consumers;
mod import;
mod journal;
mod leases;
mod lists;
mod lookup;
mod migrations;
mod nodes;
mod ping_keys;
mod pool;
mod prepared;
mod read;
mod readers;
mod rows;
mod schema;
mod sweep;
mod writes;

use std::sync::{Arc, mpsc};

use diesel::prelude::*;
use diesel::result::DatabaseErrorKind;
use diesel::result::Error::DatabaseError;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;

use self::backend::Database;
pub use self::connect::{Address, AddressError};
pub use self::import::{Import, ImportError};
use self::migrations::{Migrated, migrate};
use self::readers::Readers;
use self::sweep::Round;
use self::writes::{Write, Writes};
use crate::config::{self, POSTGRES_WRITERS, STATE_CACHE_BYTES, Settings};
use crate::id::{Epoch, SchoolId};
use crate::log::decide::Rules;
use crate::log::writer::{Handle, Pace, Writer};
use crate::log::{CommitMetrics, Committed, StoreError};
use crate::store::columns;
use crate::store::retention::Retention;
use crate::store::shared::Backend;
use crate::uptime::{Gaps, Uptime, UptimeClock};

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database cannot be reached or used.
    #[error("{}", .0.to_string().trim_start_matches("database: "))]
    Store(#[from] StoreError),
    /// The tables belong to a newer program.
    #[error(
        "`{database}` has tables that this program cannot use: migration {needed} of a newer program; start that program instead"
    )]
    Newer {
        /// The database.
        database: String,
        /// The migration that a program must know.
        needed: String,
    },
    /// `tidings copy` has not completed the database.
    #[error(
        "`{0}` is an incomplete copy of another database; run `tidings copy` again to complete it, or use another database"
    )]
    Incomplete(String),
    /// A thread cannot be started.
    #[error("a thread of the store cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// The key in `meta` of the epoch of the database that is being copied into this one.
const COPIED_FROM: &str = "copied_from";
/// The key in `meta` that stores whether the last node that ran was shut down cleanly.
const ENDED: &str = "ended";

/// The store on Postgres.
pub struct PostgresStore {
    epoch: Epoch,
    uptime: UptimeClock,
    metrics: Arc<CommitMetrics>,
    /// A school always uses the same writer.
    writers: Vec<Handle<Backend<Database>>>,
    readers: Readers,
    writes: Writes,
    retention: Retention,
    /// How far the retention sweep is.
    round: Mutex<Round>,
}

/// What is read from a database when it is opened.
struct Found {
    epoch: Epoch,
    uptime: UptimeClock,
}

/// A row of `meta`.
#[derive(QueryableByName)]
struct Fact {
    #[diesel(sql_type = Text)]
    value: String,
}

impl PostgresStore {
    /// Opens the database, brings its tables up to date, and starts the writers, which send what they commit to `committed`.
    /// The notifiers with these names are registered before anything is written.
    pub fn open(
        settings: &Settings,
        address: Address,
        committed: Committed,
        notifiers: &[&str],
    ) -> Result<PostgresStore, OpenError> {
        let (place, names) = (
            address.clone(),
            notifiers.iter().map(|name| (*name).to_owned()),
        );
        let names: Vec<String> = names.collect();
        // On a separate thread, because this may be called on a thread of a runtime, which must not block on another
        // runtime.
        let opening = std::thread::spawn(move || -> Result<Found, OpenError> {
            let runtime = own_runtime()?;
            runtime.block_on(prepare(&place, &names))
        });
        let found = opening.join().map_err(|_| StoreError::Stopped)??;
        let metrics = Arc::<CommitMetrics>::default();
        let mut writers = Vec::with_capacity(POSTGRES_WRITERS);
        let pace = Arc::new(Pace::new(settings.batch_bytes_per_sec));
        for number in 1..=POSTGRES_WRITERS {
            let rules = Rules {
                epoch: found.epoch,
                limits: settings.limits(),
                max_subjects: settings.max_subjects(),
            };
            let (address, uptime) = (address.clone(), found.uptime.clone());
            let (epoch, synchronous) = (found.epoch, settings.synchronous);
            let (committed, metrics) = (committed.clone(), Arc::clone(&metrics));
            let hints = committed.hints().clone();
            let pace = Arc::clone(&pace);
            let (started, starts) = mpsc::channel();
            std::thread::Builder::new()
                .name(format!("tidings-writer-{number}"))
                .spawn(move || {
                    let watched = Arc::clone(&metrics);
                    let runtime = match own_runtime() {
                        Ok(runtime) => runtime,
                        Err(error) => {
                            let _ = started.send(Err(error));
                            return;
                        }
                    };
                    let database =
                        Database::new(runtime, address, epoch, uptime, synchronous, hints);
                    let backend = Backend::new(database, STATE_CACHE_BYTES / POSTGRES_WRITERS);
                    let (writer, handle) = Writer::new(backend, rules, committed, metrics, pace);
                    let _ = started.send(Ok(handle));
                    watched.run_writer(&format!("writer {number}"), || {
                        let closed = writer.run();
                        // No caller waits if the store was dropped without being closed.
                        let _ = closed.map(|closed| closed.send(Ok(())));
                    });
                })?;
            let handle = starts.recv().map_err(|_| StoreError::Stopped)??;
            writers.push(handle);
        }
        let store = PostgresStore {
            epoch: found.epoch,
            uptime: found.uptime,
            metrics,
            writers,
            readers: Readers::new(settings, address.clone()),
            writes: Writes::new(address),
            retention: Retention::of(settings),
            round: Mutex::default(),
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(store.readers.open_in_advance());
            runtime.spawn(store.writes.open_in_advance());
        }
        Ok(store)
    }

    /// Returns the writer of a school.
    fn writer(&self, school: SchoolId) -> &Handle<Backend<Database>> {
        let index = school.get().unsigned_abs() % self.writers.len() as u64;
        &self.writers[usize::try_from(index).unwrap_or_default()]
    }

    /// Begins a small transaction outside the log.
    async fn write(&self) -> Result<Write, StoreError> {
        self.writes.begin().await
    }
}

fn own_runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Brings the tables up to date, registers the notifiers, and reads the epoch and the uptime.
async fn prepare(address: &Address, notifiers: &[String]) -> Result<Found, OpenError> {
    let mut conn = address.connect().await?;
    if let Migrated::Newer(needed) = migrate(&mut conn).await.map_err(database_error)? {
        let database = address.database().to_owned();
        return Err(OpenError::Newer { database, needed });
    }
    let begun = conn.batch_execute(&connect::begin("BEGIN")).await;
    begun.map_err(database_error)?;
    let language: Fact = diesel::sql_query("SELECT current_setting('lc_messages') AS value")
        .get_result(&mut conn)
        .await
        .map_err(database_error)?;
    if !is_english(&language.value) {
        tracing::warn!(
            lc_messages = language.value,
            "Postgres writes its messages in a language other than English, so this node does not recognise deadlocks \
             and closed connections, and does not retry after them: set `lc_messages` to `C` for its role"
        );
    }
    let copied_from: Vec<Fact> = diesel::sql_query("SELECT value FROM meta WHERE key = $1")
        .bind::<Text, _>(COPIED_FROM)
        .load(&mut conn)
        .await
        .map_err(database_error)?;
    if !copied_from.is_empty() {
        return Err(OpenError::Incomplete(address.database().to_owned()));
    }
    let generated = Epoch::generate().to_string();
    let fixed = fact_or(&mut conn, "epoch", &generated)
        .await
        .map_err(database_error)?;
    let saved = saved_uptime(&mut conn).await.map_err(database_error)?;
    let ended = fact_or(&mut conn, ENDED, "true")
        .await
        .map_err(database_error)?;
    set_fact(&mut conn, ENDED, "false")
        .await
        .map_err(database_error)?;
    for name in notifiers {
        consumers::begins(&mut conn, name)
            .await
            .map_err(database_error)?;
    }
    conn.batch_execute("COMMIT").await.map_err(database_error)?;
    let unreadable =
        |what: &str| StoreError::Database(format!("`{what}` in `meta` cannot be read"));
    let gaps = Gaps {
        longest_tick: config::UPTIME_GAP,
        catch_up: config::CATCH_UP_MAX,
    };
    Ok(Found {
        epoch: fixed.parse().map_err(|_| unreadable("epoch"))?,
        uptime: UptimeClock::resume(saved, ended != "true", gaps),
    })
}

/// Returns the uptime at the last write of any node.
async fn saved_uptime(conn: &mut AsyncPgConnection) -> QueryResult<Uptime> {
    #[derive(QueryableByName)]
    struct Saved {
        #[diesel(sql_type = BigInt)]
        uptime: i64,
    }
    fact_or(conn, "uptime", "0").await?;
    let saved: Saved = diesel::sql_query(
        "SELECT GREATEST((SELECT value::bigint FROM meta WHERE key = 'uptime'), \
         (SELECT max(uptime) FROM schools)) AS uptime",
    )
    .get_result(conn)
    .await?;
    columns::uptime(saved.uptime)
}

/// Sets a value of `meta`.
async fn set_fact(conn: &mut AsyncPgConnection, key: &str, value: &str) -> QueryResult<()> {
    diesel::sql_query(
        "INSERT INTO meta (key, value) VALUES ($1, $2) \
         ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE meta.value <> excluded.value",
    )
    .bind::<Text, _>(key)
    .bind::<Text, _>(value)
    .execute(conn)
    .await?;
    Ok(())
}

/// Returns a value of `meta`. If there is none, sets it to `otherwise` first.
async fn fact_or(conn: &mut AsyncPgConnection, key: &str, otherwise: &str) -> QueryResult<String> {
    diesel::sql_query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind::<Text, _>(key)
        .bind::<Text, _>(otherwise)
        .execute(conn)
        .await?;
    let fact: Fact = diesel::sql_query("SELECT value FROM meta WHERE key = $1")
        .bind::<Text, _>(key)
        .get_result(conn)
        .await?;
    Ok(fact.value)
}

/// Returns whether the value of `lc_messages` means English.
fn is_english(locale: &str) -> bool {
    let language = locale.split(['_', '.', '@', '-']).next();
    matches!(language, Some("" | "C" | "POSIX" | "en" | "English"))
}

/// Distinguishes a database that cannot be used at the moment from one that rejects a statement. Diesel does not provide
/// error codes, so some errors are recognised by their English text; see [`is_english`].
fn database_error(error: diesel::result::Error) -> StoreError {
    let is_gone = match &error {
        DatabaseError(
            DatabaseErrorKind::UnableToSendCommand
            | DatabaseErrorKind::ClosedConnection
            | DatabaseErrorKind::ReadOnlyTransaction
            // Another transaction went first.
            | DatabaseErrorKind::SerializationFailure,
            _,
        ) => true,
        DatabaseError(DatabaseErrorKind::Unknown, info) => {
            let ends = [
                "deadlock detected",
                "terminating connection",
                "shutting down",
                "starting up",
                "recovery mode",
            ];
            ends.iter().any(|end| info.message().contains(end))
        }
        _ => false,
    };
    match is_gone {
        true => StoreError::Unavailable(error.to_string()),
        false => StoreError::Database(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_in_english_are_recognised_by_the_locale() {
        for locale in [
            "",
            "C",
            "C.UTF-8",
            "POSIX",
            "en",
            "en_GB.UTF-8",
            "en-US",
            "English_United States.1252",
        ] {
            assert!(is_english(locale), "{locale}");
        }
        for locale in ["de_DE.UTF-8", "Czech_Czechia.1250", "eng", "fr@euro"] {
            assert!(!is_english(locale), "{locale}");
        }
    }
}
