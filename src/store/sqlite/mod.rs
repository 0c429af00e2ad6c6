//! The embedded store: SQLite in WAL mode through Diesel.
//!
//! One writer thread owns the only writing connection (`writer.rs`); reads go through an r2d2 pool on
//! blocking threads, at most as many at a time as the pool has connections. A lock file keeps a second
//! process out, because the writer caches what it has written.

mod answers;
mod characteristics;
mod devices;
mod enrollments;
mod events;
mod jobs;
mod notifiers;
mod read;
mod schema;
mod search;
mod sweep;
mod table;
mod upsert;
mod violations;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool};
use diesel::sql_types::Text;
use diesel::sqlite::SqliteConnection;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::schema::meta;
use self::sweep::Retention;
use self::table::{TABLES, table};
use self::writer::{Submission, Work, Writer};
use super::notifiers::{Begun, DeadLetterPage, Place, Progress, Standing, Total};
use super::{
    CommandError, Committed, Ending, Envelope, ListPage, ListQuery, Log, Meter, Overdue, Page,
    Receipt, Store, StoreError, StoredSubject, ViolationPage, ViolationQuery, Which,
};
use crate::config::{self, CHECK_IS_LONG, Settings, Synchronous};
use crate::event::Event;
use crate::id::{Epoch, Kind, SchoolId, SubjectId};
use crate::kind::device::Device;
use crate::scope::Scope;
use crate::uptime::{Uptime, UptimeClock};

/// Keys of `meta`: the epoch, the boot of the machine in which the database is open, and the uptime in milliseconds.
const EPOCH: &str = "epoch";
const OPEN_IN: &str = "open_in";
const UPTIME: &str = "uptime";

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// How long a connection waits for another one's lock, in milliseconds.
const BUSY_TIMEOUT_MS: u32 = 5_000;

/// A database that cannot be opened. The server does not start, and never makes a new one in its place.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or folder.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Its folder is missing, and is not `data_dir`, which is made: a mistyped path would begin an empty database.
    #[error("{path}: there is no folder {folder}; make it, or correct the setting `database_url`")]
    NoFolder {
        /// Of the database.
        path: PathBuf,
        /// Which is missing.
        folder: PathBuf,
    },
    /// Something that is not a file is in its place.
    #[error("{0} is a folder; the setting `database_url` must be the path of a file")]
    IsFolder(PathBuf),
    /// Somebody else has it.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// The database itself.
    #[error("{path}: {message}")]
    Database {
        /// Which.
        path: PathBuf,
        /// Why not.
        message: String,
    },
}

/// The embedded store.
pub struct SqliteStore {
    epoch: Epoch,
    uptime: UptimeClock,
    meter: Arc<Meter>,
    work: mpsc::Sender<Work>,
    readers: Pool<ConnectionManager<SqliteConnection>>,
    reading: Arc<Semaphore>,
    retention: Retention,
}

/// Fails where a database cannot be, before anything is written.
pub fn check_place(settings: &Settings, path: &Path) -> Result<(), OpenError> {
    if path.is_dir() {
        return Err(OpenError::IsFolder(path.into()));
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

impl SqliteStore {
    /// Opens or makes the database and starts its writer, which hands what it commits to `committed`. The
    /// notifiers of these names are made known before anything is written.
    pub fn open(
        settings: &Settings,
        path: &Path,
        committed: Committed,
        notifiers: &[&str],
    ) -> Result<SqliteStore, OpenError> {
        let file_error = |path: &Path, source| OpenError::File {
            path: path.into(),
            source,
        };
        let database_error = |message: String| OpenError::Database {
            path: path.into(),
            message,
        };
        check_place(settings, path)?;
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder).map_err(|source| file_error(folder, source))?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = File::create(&lock_path).map_err(|source| file_error(&lock_path, source))?;
        lock.try_lock().map_err(|_| OpenError::InUse(path.into()))?;

        let url = path
            .to_str()
            .ok_or_else(|| database_error("its path is not UTF-8".into()))?;
        is_whole_or_new(path).map_err(|problem| database_error(problem.into()))?;
        if settings.check_database && path.exists() {
            check(url).map_err(database_error)?;
        }
        let mut conn =
            SqliteConnection::establish(url).map_err(|error| database_error(error.to_string()))?;
        conn.batch_execute(&format!(
            "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS};
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 1000;
             PRAGMA cache_size = -65536;
             PRAGMA temp_store = MEMORY;"
        ))
        .map_err(|error| database_error(error.to_string()))?;
        conn.run_pending_migrations(MIGRATIONS)
            .map_err(|error| database_error(error.to_string()))?;
        let (epoch, uptime) = life(&mut conn, settings.synchronous)
            .map_err(|error| database_error(error.to_string()))?;
        jobs::look_at_lapsed(&mut conn, Utc::now(), uptime.now())
            .map_err(|error| database_error(error.to_string()))?;

        for name in notifiers {
            notifiers::begins(&mut conn, name)
                .map_err(|error| database_error(error.to_string()))?;
        }

        let readers = Pool::builder()
            .max_size(settings.reader_connections)
            // All of them now, and for good: later there may be no more files to be had.
            .max_lifetime(None)
            .idle_timeout(None)
            .connection_customizer(Box::new(ReadOnly))
            .test_on_check_out(false)
            .build(ConnectionManager::new(url))
            .map_err(|error| database_error(error.to_string()))?;

        let (work, queue) = mpsc::channel(config::WRITER_QUEUE);
        let meter = Arc::<Meter>::default();
        let writer = Writer::new(
            conn,
            (epoch, uptime),
            settings,
            committed,
            Arc::clone(&meter),
        );
        // The thread ends with the last handle of the store, or by `close`, and holds the lock until then.
        std::thread::Builder::new()
            .name("tidings-writer".into())
            .spawn(move || {
                let closed = writer.run(queue);
                drop(lock);
                // Nobody waits if the store was dropped without being closed.
                let _ = closed.map(|closed| closed.send(Ok(())));
            })
            .map_err(|source| file_error(path, source))?;

        // Settings are checked to be below a century, so these do not overflow.
        let seconds = |secs: u64| TimeDelta::seconds(secs as i64);
        Ok(SqliteStore {
            epoch,
            uptime,
            meter,
            work,
            readers,
            reading: Arc::new(Semaphore::new(settings.reader_connections as usize)),
            retention: Retention {
                age: seconds(settings.retention_secs),
                events: settings.retention_events,
                finished: seconds(settings.job_retention_secs),
                keys: seconds(settings.idempotency_ttl_secs),
            },
        })
    }

    /// Hands work to the writer and waits for its answer.
    async fn ask<T>(
        &self,
        work: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Work,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.work
            .send(work(answer))
            .await
            .map_err(|_| StoreError::Stopped)?;
        answered.await.map_err(|_| StoreError::Stopped)?
    }

    /// Has the writer do a small write of its own.
    async fn aside<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(|answer| {
            Work::Aside(Box::new(move |conn| {
                // The caller may have gone.
                let _ = answer.send(write(conn).map_err(database_error));
            }))
        })
        .await
    }

    /// Runs a read in one transaction, so that all it sees is of one moment.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.reading)
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Stopped)?;
        let readers = self.readers.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut conn = readers
                .get()
                .map_err(|error| StoreError::Database(error.to_string()))?;
            SqliteConnection::transaction(&mut conn, read).map_err(database_error)
        });
        task.await.map_err(|_| StoreError::Stopped)?
    }
}

fn database_error(error: diesel::result::Error) -> StoreError {
    StoreError::Database(error.to_string())
}

/// A journal without its database is what is left of one: SQLite would begin a new one and throw it away.
fn is_whole_or_new(path: &Path) -> Result<(), &'static str> {
    let mut journal = path.as_os_str().to_owned();
    journal.push("-wal");
    let has_bytes = |path: &Path| std::fs::metadata(path).is_ok_and(|file| file.len() > 0);
    match has_bytes(Path::new(&journal)) && !has_bytes(path) {
        true => Err("it is missing or empty, but its journal (-wal) is there"),
        false => Ok(()),
    }
}

/// Looks at every page, and changes none: the owner may want to save what is left. A damaged database is not served,
/// because its damage could show at any time.
fn check(path: &str) -> Result<(), String> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Text)]
        quick_check: String,
    }
    let begun = Instant::now();
    let escaped = path
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23");
    let mut conn = SqliteConnection::establish(&format!("file:{escaped}?mode=ro"))
        .map_err(|error| error.to_string())?;
    conn.batch_execute(&format!("PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}"))
        .map_err(|error| error.to_string())?;
    let found: Vec<Found> = diesel::sql_query("PRAGMA quick_check(1)")
        .load(&mut conn)
        .map_err(|error| error.to_string())?;
    if begun.elapsed() > CHECK_IS_LONG {
        let secs = begun.elapsed().as_secs();
        tracing::info!(
            secs,
            "the database was looked through; `check_database = false` leaves it out"
        );
    }
    match found.first() {
        Some(found) if found.quick_check == "ok" => Ok(()),
        Some(found) => Err(format!("it is damaged: {}", found.quick_check)),
        None => Err("it cannot be looked through".into()),
    }
}

/// Readers cannot write, and wait for nothing but a checkpoint.
#[derive(Debug)]
struct ReadOnly;

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for ReadOnly {
    fn on_acquire(&self, conn: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        conn.batch_execute(&format!(
            "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS};
             PRAGMA query_only = ON;
             PRAGMA temp_store = MEMORY;
             SELECT key FROM meta LIMIT 1;"
        ))
        .and_then(|()| search::register(conn))
        .map_err(diesel::r2d2::Error::QueryError)
    }
}

/// The database's life, and its uptime. A new life begins after a power loss that may have taken acknowledged ticks: the
/// numbers which they had will be given again, and a reader that has seen them must not take the new events for the old.
fn life(
    conn: &mut SqliteConnection,
    synchronous: Synchronous,
) -> QueryResult<(Epoch, UptimeClock)> {
    conn.immediate_transaction(|conn| {
        let fact = |conn: &mut SqliteConnection, key: &str| -> QueryResult<Option<String>> {
            meta::table
                .find(key)
                .select(meta::value)
                .first(conn)
                .optional()
        };
        let set = |conn: &mut SqliteConnection, key: &str, value: String| {
            diesel::replace_into(meta::table)
                .values((meta::key.eq(key), meta::value.eq(value)))
                .execute(conn)
        };
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let open_in = fact(conn, OPEN_IN)?;
        let was_open = open_in.is_some();
        let cut_off =
            open_in.is_some_and(|open_in| open_in != boot) && synchronous != Synchronous::Full;
        let known = match fact(conn, EPOCH)? {
            Some(text) => Some(text.parse().map_err(|_| table::unreadable("an epoch"))?),
            None => None,
        };
        if cut_off {
            tracing::warn!(
                "the machine stopped while the database was open; readers will begin anew"
            );
        }
        let epoch = known.filter(|_| !cut_off).unwrap_or_else(Epoch::generate);
        set(conn, EPOCH, epoch.to_string())?;
        set(conn, OPEN_IN, boot)?;
        let saved = match fact(conn, UPTIME)? {
            Some(text) => Some(text.parse().map_err(|_| table::unreadable("an uptime"))?),
            None => None,
        };
        let saved = Uptime::from_millis(saved.unwrap_or_default());
        Ok((epoch, UptimeClock::resume(saved, was_open)))
    })
}

#[async_trait]
impl Log for SqliteStore {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    async fn replay(&self, scope: Arc<Scope>, after: u64, fold: bool) -> Result<Page, StoreError> {
        let epoch = self.epoch;
        self.read(move |conn| read::replay(conn, epoch, &scope, after, fold))
            .await
    }

    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<u64>,
    ) -> Result<Page, StoreError> {
        let epoch = self.epoch;
        self.read(move |conn| read::snapshot(conn, epoch, &scope, after, upto))
            .await
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn uptime(&self) -> UptimeClock {
        self.uptime
    }

    async fn save_uptime(&self) -> Result<(), StoreError> {
        self.ask(Work::SaveUptime).await
    }

    fn meter(&self) -> &Meter {
        &self.meter
    }

    async fn size(&self) -> Result<u64, StoreError> {
        self.read(read::size).await
    }

    async fn append(
        &self,
        school: SchoolId,
        commands: Vec<Envelope>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError> {
        self.ask(|answer| {
            Work::Append(Submission {
                school,
                commands,
                answer,
            })
        })
        .await
    }

    async fn last_events(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
        which: Which,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let epoch = self.epoch;
        self.read(move |conn| read::last_events(conn, epoch, school, kind, &subject, which, limit))
            .await
    }

    async fn exists(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
    ) -> Result<bool, StoreError> {
        self.read(move |conn| Ok(table(kind).load(conn, school, &subject)?.is_some()))
            .await
    }

    async fn subject(
        &self,
        school: SchoolId,
        kind: Kind,
        id: SubjectId,
    ) -> Result<Option<StoredSubject>, StoreError> {
        let epoch = self.epoch;
        self.read(move |conn| {
            let stored = table(kind).load(conn, school, &id)?;
            Ok(stored.map(|stored| stored.into_subject(epoch, school, kind, id)))
        })
        .await
    }

    async fn subjects(
        &self,
        school: SchoolId,
        kind: Kind,
        query: ListQuery,
    ) -> Result<ListPage, StoreError> {
        let epoch = self.epoch;
        self.read(move |conn| read::list(conn, epoch, school, kind, &query))
            .await
    }

    async fn head(&self, school: SchoolId) -> Result<u64, StoreError> {
        self.read(move |conn| Ok(read::bounds(conn, school)?.0))
            .await
    }

    async fn counts(
        &self,
        school: SchoolId,
        kind: Kind,
    ) -> Result<Vec<(&'static str, u64)>, StoreError> {
        self.read(move |conn| read::counts(conn, school, kind))
            .await
    }

    async fn stalled(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        self.read(move |conn| read::stalled(conn, school, kind))
            .await
    }

    async fn ended_since(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        since: DateTime<Utc>,
    ) -> Result<u64, StoreError> {
        self.read(move |conn| read::ended_since(conn, school, kind, status, since))
            .await
    }

    async fn ended(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        limit: usize,
    ) -> Result<Vec<StoredSubject>, StoreError> {
        let epoch = self.epoch;
        self.read(move |conn| read::ended(conn, epoch, school, kind, status, limit))
            .await
    }

    async fn endings(
        &self,
        school: SchoolId,
        kind: Kind,
        since: DateTime<Utc>,
        secs: u32,
    ) -> Result<Vec<Ending>, StoreError> {
        self.read(move |conn| read::endings(conn, school, kind, since, secs))
            .await
    }

    async fn schools(
        &self,
        after: Option<SchoolId>,
        limit: usize,
    ) -> Result<Vec<SchoolId>, StoreError> {
        self.read(move |conn| read::schools(conn, after, limit))
            .await
    }

    async fn violations(
        &self,
        school: SchoolId,
        query: ViolationQuery,
    ) -> Result<ViolationPage, StoreError> {
        self.read(move |conn| violations::list(conn, school, &query))
            .await
    }

    async fn open_violations(&self, school: SchoolId) -> Result<u64, StoreError> {
        self.read(move |conn| violations::count_open(conn, school))
            .await
    }

    async fn overdue(&self, now: Uptime, limit: usize) -> Result<Vec<Overdue>, StoreError> {
        self.read(move |conn| {
            let mut overdue = Vec::new();
            for (_, table) in TABLES {
                overdue.extend(table.overdue(conn, now, limit)?);
            }
            Ok(overdue)
        })
        .await
    }

    async fn devices_not_offline(
        &self,
        after: Option<(SchoolId, SubjectId)>,
        limit: usize,
    ) -> Result<Vec<(SchoolId, SubjectId, Device)>, StoreError> {
        self.read(move |conn| devices::not_offline(conn, after.as_ref(), limit))
            .await
    }

    async fn sweep(&self, now: DateTime<Utc>) -> Result<bool, StoreError> {
        let retention = self.retention.clone();
        self.ask(|answer| Work::Sweep {
            retention,
            now,
            answer,
        })
        .await
    }

    async fn notifier_begins(&self, name: &str) -> Result<Begun, StoreError> {
        let name = name.to_owned();
        self.aside(move |conn| notifiers::begins(conn, &name)).await
    }

    async fn notifier_place(&self, name: &str, school: SchoolId) -> Result<Place, StoreError> {
        let name = name.to_owned();
        self.read(move |conn| notifiers::place(conn, &name, school))
            .await
    }

    async fn notifier_moves(
        &self,
        name: &str,
        school: SchoolId,
        seq: u64,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.aside(move |conn| notifiers::moves(conn, &name, school, seq, &progress))
            .await
    }

    async fn notifiers(&self, school: SchoolId) -> Result<(Vec<Standing>, u64), StoreError> {
        self.read(move |conn| notifiers::standings(conn, school))
            .await
    }

    async fn notifier_totals(&self) -> Result<Vec<Total>, StoreError> {
        self.read(notifiers::totals).await
    }

    async fn dead_letters(
        &self,
        name: &str,
        school: SchoolId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        let name = name.to_owned();
        self.read(move |conn| notifiers::letters(conn, &name, school, before, limit))
            .await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.ask(Work::Close).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.read(|conn| conn.batch_execute("SELECT 1")).await?;
        self.ask(Work::Ping).await
    }
}
