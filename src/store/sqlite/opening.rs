//! Opens or rejects a database: nothing is written to one that is damaged, or that is not the one that was last open here.

use std::path::Path;
use std::sync::Arc;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;
use diesel_migrations::MigrationHarness;

use super::BUSY_TIMEOUT_MS;
use super::check::check;
use super::checkpoints;
use super::error::OpenError;
use super::functions;
use super::life::{self, Facts, Life};
use super::lock::{DatabaseLock, next_to};
use super::migrations::MIGRATIONS;
use crate::config::{Settings, WAL_KEPT_BYTES, WRITER_CACHE_KIB, make_private_folder};
use crate::id::Epoch;

/// Fails if there cannot be a database at this path, before anything is written.
pub fn check_place(settings: &Settings, path: &Path) -> Result<(), OpenError> {
    if path.is_dir() {
        return Err(OpenError::IsFolder(path.into()));
    }
    if path.is_symlink() && !path.exists() {
        return Err(OpenError::Dangling(path.into()));
    }
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    let folder = absolute(path).parent().map(Path::to_path_buf);
    match folder.filter(|folder| !folder.is_dir()) {
        Some(folder) if folder != absolute(&settings.data_dir) => Err(OpenError::NoFolder {
            path: path.into(),
            folder,
        }),
        _ => Ok(()),
    }
}

/// Fails if there is a secret that a server has created, but neither its database nor its lock file. Must be called
/// before a secret is created.
pub fn check_trace(path: &Path, secret: &Path) -> Result<(), OpenError> {
    let is_in_same_folder = secret.parent() == path.parent();
    let was_used = is_in_same_folder && secret.exists() && !path.exists();
    match was_used && !next_to(path, ".lock").exists() {
        true => Err(OpenError::Gone {
            path: path.into(),
            trace: secret.into(),
        }),
        false => Ok(()),
    }
}

/// An open database: the writing connection, and the lock that keeps other processes out. Drop `conn` before `lock`.
pub(super) struct Opened {
    pub(super) conn: SqliteConnection,
    pub(super) life: Life,
    pub(super) url: String,
    pub(super) lock: Arc<DatabaseLock>,
}

/// Opens or creates the database.
pub(super) fn open(settings: &Settings, path: &Path) -> Result<Opened, OpenError> {
    let (lock, url) = take(settings, path)?;
    if let Some(facts) = inspect(&lock, &url, settings.check_database, Facts::check_life)? {
        facts.adopt(&lock);
    }
    let failed = |error: &dyn std::fmt::Display| OpenError::database(lock.path(), error);
    let mut conn = SqliteConnection::establish(&url).map_err(|error| failed(&error))?;
    conn.batch_execute(&format!(
        "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS};
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA journal_size_limit = {WAL_KEPT_BYTES};
         PRAGMA cache_size = -{WRITER_CACHE_KIB};
         PRAGMA temp_store = MEMORY;"
    ))
    .and_then(|()| functions::register(&mut conn))
    .map_err(|error| failed(&error))?;
    conn.run_pending_migrations(MIGRATIONS)
        .map_err(|error| failed(&error))?;
    let life =
        life::begin(&mut conn, settings.synchronous, &lock).map_err(|error| failed(&error))?;
    // The mark that the database is open must be in the file itself before anything is acknowledged: only by the mark is a file
    // recognised whose journal is missing.
    match checkpoints::copy_all(&mut conn) {
        Ok(true) => {}
        Ok(false) => tracing::warn!(
            "another process reads the database: until the first checkpoint after it has finished, a copy of the database without its journal (-wal) is not recognised"
        ),
        Err(error) => tracing::warn!(
            %error,
            "until the next checkpoint, a copy of the database without its journal (-wal) is not recognised"
        ),
    }
    lock.opened(life.epoch, life.generation)
        .map_err(|source| OpenError::file(&next_to(lock.path(), ".lock"), source))?;
    Ok(Opened {
        conn,
        life,
        url,
        lock: Arc::new(lock),
    })
}

/// Assigns a new epoch to a database that no server has open. Returns the previous and the new epoch. From then on, every
/// earlier cursor is answered with a `reset`.
pub fn new_epoch(settings: &Settings, path: &Path) -> Result<(Option<Epoch>, Epoch), OpenError> {
    if !std::fs::metadata(path).is_ok_and(|file| file.len() > 0) {
        return Err(OpenError::Missing(path.into()));
    }
    let (lock, url) = take(settings, path)?;
    let facts = inspect(&lock, &url, settings.check_database, |_, _| Ok(()))?;
    let failed = |error: &dyn std::fmt::Display| OpenError::database(lock.path(), error);
    let facts = facts.filter(Facts::has_life);
    facts
        .ok_or_else(|| failed(&"it is not a database of Tidings"))?
        .adopt(&lock);
    let mut conn = SqliteConnection::establish(&url).map_err(|error| failed(&error))?;
    conn.batch_execute(&format!("PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}"))
        .and_then(|()| life::renew(&mut conn, &lock))
        .map_err(|error| failed(&error))
}

/// Takes the locks of the database at this path, and returns its resolved path as SQLite expects it.
fn take(settings: &Settings, path: &Path) -> Result<(DatabaseLock, String), OpenError> {
    check_place(settings, path)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    make_private_folder(folder).map_err(|source| OpenError::file(folder, source))?;
    let resolved = match path.exists() {
        true => path.canonicalize(),
        false => folder
            .canonicalize()
            .map(|folder| folder.join(path.file_name().unwrap_or_default())),
    };
    let path = resolved.map_err(|source| OpenError::file(path, source))?;
    let url = path
        .to_str()
        .ok_or_else(|| OpenError::database(&path, "its path is not UTF-8"))?;
    Ok((DatabaseLock::take(&path)?, url.to_owned()))
}

/// Inspects a database without changing it. If it is not as this program left it, all its pages are checked. Returns
/// `None` if the database is new.
fn inspect(
    lock: &DatabaseLock,
    url: &str,
    checks_pages: bool,
    check_life: impl FnOnce(&Facts, &DatabaseLock) -> Result<(), OpenError>,
) -> Result<Option<Facts>, OpenError> {
    let path = lock.path();
    let failed = |error: &dyn std::fmt::Display| OpenError::database(path, error);
    let file = lock.database();
    let size = file
        .metadata()
        .map_err(|source| OpenError::file(path, source))?
        .len();
    if size == 0 {
        return Ok(None);
    }
    warn_of_others(file);
    // The journal belongs to a database in WAL mode, and this database is not in that mode.
    if lock.was_single_file() && lock.had_journal() {
        return Err(failed(
            &"the journal (-wal) next to it belongs to another database; remove the journal if this is a backup that you have put here",
        ));
    }
    let escaped = url
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23");
    let mut conn = SqliteConnection::establish(&format!("file:{escaped}?mode=ro"))
        .map_err(|error| failed(&error))?;
    conn.batch_execute(&format!("PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}"))
        .map_err(|error| failed(&error))?;
    let facts = Facts::read(&mut conn)
        .map_err(|error| failed(&error))?
        .ok_or_else(|| failed(&"it is a database of another program"))?;
    facts.check_schema(lock)?;
    check_life(&facts, lock)?;
    if checks_pages && !lock.is_as_left() {
        check(&mut conn, lock).map_err(|problem| failed(&problem))?;
    }
    Ok(Some(facts))
}

/// Warns if other users can access the database. Existing files keep their modes, because these may be intentional.
fn warn_of_others(file: &std::fs::File) {
    use std::os::unix::fs::PermissionsExt;
    let mode = file.metadata().map_or(0, |file| file.permissions().mode());
    if mode & 0o007 != 0 {
        tracing::warn!(
            mode = format!("{:o}", mode & 0o777),
            "every user of this machine can reach the database; `chmod 600` restricts it to its owner"
        );
    }
}
