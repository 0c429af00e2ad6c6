//! What a database records about itself: its schema, its epoch, how often it was opened, and whether it is open.
//!
//! Each opening and each clean shutdown increments the *generation*. The lock file contains the last one
//! ([`super::lock`]), so an older copy in the database's place is recognised. Such a copy is opened: the tags in cursors
//! identify the readers that have seen events that it lacks. A database is rejected only where opening it could lose data
//! without the operator noticing: a different database, or one without its journal.

use diesel::dsl::max;
use diesel::migration::{Migration, MigrationSource};
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::error::OpenError;
use super::lock::DatabaseLock;
use super::migrations::MIGRATIONS;
use super::schema::{meta, schools};
use super::table;
use super::transaction::transaction;
use crate::config::{self, Synchronous};
use crate::id::Epoch;
use crate::store::numbers::unsigned;
use crate::uptime::{Gaps, Uptime, UptimeClock};
use crate::wall_clock;

/// Keys of `meta`: the epoch; whether the end of a log was ever lost in this epoch; the generation; the boot id of the
/// machine on which the database is open; and the uptime in milliseconds.
const EPOCH: &str = "epoch";
const HISTORY_CUT: &str = "history_cut";
const GENERATION: &str = "generation";
const OPEN_IN: &str = "open_in";
const UPTIME: &str = "uptime";

/// What a database records about itself, read before anything is written to it.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The migrations that were applied.
    versions: Vec<String>,
    epoch: Option<Epoch>,
    generation: u64,
    is_marked_open: bool,
}

impl Facts {
    /// Reads these facts. Returns `None` for a database of another program.
    pub(super) fn read(conn: &mut SqliteConnection) -> QueryResult<Option<Facts>> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Text)]
            value: String,
        }
        let mut column = |sql: &str| -> QueryResult<Vec<String>> {
            let rows = diesel::sql_query(sql).load::<Row>(conn)?;
            Ok(rows.into_iter().map(|row| row.value).collect())
        };
        let tables = column("SELECT name AS value FROM sqlite_master WHERE type = 'table'")?;
        if tables.is_empty() {
            return Ok(Some(Facts::default()));
        }
        let has = |name: &str| tables.iter().any(|table| table == name);
        if !has("__diesel_schema_migrations") {
            return Ok(None);
        }
        let sql = "SELECT version AS value FROM __diesel_schema_migrations ORDER BY version";
        let versions = column(sql)?;
        if !has("meta") {
            return Ok(Some(Facts {
                versions,
                ..Facts::default()
            }));
        }
        Ok(Some(Facts {
            versions,
            epoch: number(conn, EPOCH, "an epoch")?,
            generation: number(conn, GENERATION, "a generation")?.unwrap_or_default(),
            is_marked_open: fact(conn, OPEN_IN)?.is_some(),
        }))
    }

    /// Fails if a newer program has changed the schema.
    pub(super) fn check_schema(&self, lock: &DatabaseLock) -> Result<(), OpenError> {
        let known: Vec<Box<dyn Migration<Sqlite>>> = MIGRATIONS
            .migrations()
            .map_err(|error| OpenError::database(lock.path(), error))?;
        let known: Vec<String> = known
            .iter()
            .map(|migration| migration.name().version().to_string())
            .collect();
        match self
            .versions
            .iter()
            .rev()
            .find(|version| !known.contains(version))
        {
            Some(found) => Err(OpenError::Newer {
                path: lock.path().into(),
                found: found.clone(),
                known: known.iter().max().cloned().unwrap_or_default(),
            }),
            None => Ok(()),
        }
    }

    /// Fails if this is recognisably not the database that was last open here, or if its journal is missing.
    pub(super) fn check_life(&self, lock: &DatabaseLock) -> Result<(), OpenError> {
        let path = lock.path().to_path_buf();
        // A database without an epoch gets a new one, whatever database it is.
        if let (Some(epoch), Some(last)) = (self.epoch, lock.found()) {
            // The lock file is written after the database, so its generation can be one behind.
            let is_next = self.generation == last.generation + 1;
            if epoch != last.epoch && !is_next {
                return Err(OpenError::Another(path));
            }
        }
        let was_closed = lock.found().is_some_and(|last| {
            let is_this = last.generation == self.generation;
            is_this && last.closed.is_some()
        });
        let lacks_journal = !lock.had_journal() && !lock.was_single_file();
        if self.is_marked_open && !was_closed && lacks_journal {
            return Err(OpenError::NoJournal(path));
        }
        Ok(())
    }

    /// Returns whether a server has opened it before.
    pub(super) fn has_life(&self) -> bool {
        self.epoch.is_some()
    }

    /// Records in the lock which database this is.
    pub(super) fn adopt(&self, lock: &DatabaseLock) {
        if let Some(epoch) = self.epoch {
            lock.remember(epoch, self.generation);
        }
    }
}

/// One opening of a database, until it is closed.
#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) epoch: Epoch,
    /// Whether a `seq` may have been assigned twice in this epoch.
    pub(super) is_cut: bool,
    pub(super) generation: u64,
    pub(super) uptime: UptimeClock,
}

/// Returns a value of `meta`.
pub(super) fn fact(conn: &mut SqliteConnection, key: &str) -> QueryResult<Option<String>> {
    let value = meta::table.find(key).select(meta::value);
    value.get_result(conn).optional()
}

fn number<T: std::str::FromStr>(
    conn: &mut SqliteConnection,
    key: &str,
    what: &str,
) -> QueryResult<Option<T>> {
    let text = fact(conn, key)?;
    let number = text.map(|text| text.parse().map_err(|_| table::unreadable(what)));
    number.transpose()
}

pub(super) fn set(conn: &mut SqliteConnection, key: &str, value: String) -> QueryResult<()> {
    diesel::replace_into(meta::table)
        .values((meta::key.eq(key), meta::value.eq(value)))
        .execute(conn)?;
    Ok(())
}

/// Returns and saves the next generation, which is higher than those of the database and of the lock file.
fn next_generation(conn: &mut SqliteConnection, lock: &DatabaseLock) -> QueryResult<u64> {
    let stored: u64 = number(conn, GENERATION, "a generation")?.unwrap_or_default();
    let last = lock.found().map_or(0, |last| last.generation);
    let next = stored.max(last) + 1;
    set(conn, GENERATION, next.to_string())?;
    Ok(next)
}

/// Starts a [`Life`]: records that the database is open. If a power loss may have lost acknowledged ticks, or if the
/// database is a copy, `seq`s can be assigned a second time: from then on a cursor without a tag does not identify an
/// event.
pub(super) fn begin(
    conn: &mut SqliteConnection,
    synchronous: Synchronous,
    lock: &DatabaseLock,
) -> QueryResult<Life> {
    transaction(conn, |conn| {
        let boot = wall_clock::boot();
        let open_in = fact(conn, OPEN_IN)?;
        let was_open = open_in.is_some();
        let cut_off =
            open_in.is_some_and(|open_in| open_in != boot) && synchronous != Synchronous::Full;
        let known: Option<Epoch> = number(conn, EPOCH, "an epoch")?;
        if cut_off {
            tracing::warn!(
                "the machine stopped while the database was open: the last ticks may be lost, and readers that have seen them start over"
            );
        }
        let is_copy = is_copy(conn, was_open, lock)?;
        if is_copy {
            tracing::warn!(
                path = %lock.path().display(),
                "this is a copy of the database: what was written after it was made is lost, and readers that have seen it start over"
            );
        }
        if cut_off || is_copy {
            set(conn, HISTORY_CUT, "true".to_owned())?;
        }
        let epoch = known.unwrap_or_else(Epoch::generate);
        set(conn, EPOCH, epoch.to_string())?;
        set(conn, OPEN_IN, boot)?;
        let is_cut = fact(conn, HISTORY_CUT)?.is_some();
        let generation = next_generation(conn, lock)?;
        let saved = saved_uptime(conn)?;
        let gaps = Gaps {
            longest_tick: config::UPTIME_GAP,
            catch_up: config::CATCH_UP_MAX,
        };
        Ok(Life {
            epoch,
            is_cut,
            generation,
            uptime: UptimeClock::resume(Uptime::from_millis(saved), was_open, gaps),
        })
    })
}

/// Returns whether this is recognisably a copy: it is older than the last database here, or it was created by `VACUUM
/// INTO` while the database was open.
fn is_copy(conn: &mut SqliteConnection, was_open: bool, lock: &DatabaseLock) -> QueryResult<bool> {
    let stored: u64 = number(conn, GENERATION, "a generation")?.unwrap_or_default();
    let is_older = lock.found().is_some_and(|last| stored < last.generation);
    Ok(is_older || (was_open && lock.was_single_file()))
}

/// Returns the newest uptime that is saved, in milliseconds.
fn saved_uptime(conn: &mut SqliteConnection) -> QueryResult<u64> {
    let aside: u64 = number(conn, UPTIME, "an uptime")?.unwrap_or_default();
    // There are few schools, and this is read once.
    let by_commits: Option<i64> = schools::table
        .select(max(schools::uptime))
        .get_result(conn)?;
    Ok(aside.max(unsigned(by_commits.unwrap_or_default())))
}

/// Saves the uptime without a commit. A commit saves it in its schools' rows.
pub(super) fn set_uptime(conn: &mut SqliteConnection, now: Uptime) -> QueryResult<()> {
    set(conn, UPTIME, now.millis().to_string())
}

/// Records a clean shutdown. Returns the generation after it.
pub(super) fn end(conn: &mut SqliteConnection, life: &Life) -> QueryResult<u64> {
    let after = life.generation + 1;
    transaction(conn, |conn| {
        set_uptime(conn, life.uptime.now())?;
        set(conn, GENERATION, after.to_string())?;
        diesel::delete(meta::table.find(OPEN_IN)).execute(conn)?;
        Ok(after)
    })
}

/// Assigns a new epoch to the database. Returns the previous and the new one.
pub(super) fn renew(
    conn: &mut SqliteConnection,
    lock: &DatabaseLock,
) -> QueryResult<(Option<Epoch>, Epoch)> {
    let (before, epoch, generation) = transaction(conn, |conn| {
        let before: Option<Epoch> = number(conn, EPOCH, "an epoch")?;
        let epoch = Epoch::generate();
        set(conn, EPOCH, epoch.to_string())?;
        diesel::delete(meta::table.find(HISTORY_CUT)).execute(conn)?;
        // The mark that the database is open remains, because unsaved heartbeats are lost. But it no longer indicates a
        // power loss.
        if fact(conn, OPEN_IN)?.is_some() {
            set(conn, OPEN_IN, wall_clock::boot())?;
        }
        QueryResult::Ok((before, epoch, next_generation(conn, lock)?))
    })?;
    lock.remember(epoch, generation);
    Ok((before, epoch))
}
