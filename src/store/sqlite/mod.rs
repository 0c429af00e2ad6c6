//! The embedded store: SQLite in WAL mode through Diesel.
//!
//! One writer thread owns the only writing connection (`writer.rs`); reads go through an r2d2 pool on
//! blocking threads, at most as many at a time as the pool has connections. A lock file keeps a second
//! process out, because the writer caches what it has written.

mod jobs;
mod schema;
mod sweep;
mod table;
mod upsert;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool};
use diesel::sqlite::SqliteConnection;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::schema::{events, meta, schools};
use self::sweep::Retention;
use self::table::{EventRow, Selection, TABLES, table};
use self::writer::{Submission, Work, Writer};
use super::{
    CommandError, Committed, Envelope, JobPage, JobQuery, Overdue, Page, Receipt, Store,
    StoreError, StoredJob,
};
use crate::config::{self, READ_PAGE, Settings};
use crate::event::Event;
use crate::id::{Channel, Epoch, Kind, SchoolId, SubjectId};
use crate::scope::Scope;

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
    work: mpsc::Sender<Work>,
    readers: Pool<ConnectionManager<SqliteConnection>>,
    reading: Arc<Semaphore>,
    retention: Retention,
}

impl SqliteStore {
    /// Opens or makes the database and starts its writer, which hands what it commits to `committed`.
    pub fn open(
        settings: &Settings,
        path: &Path,
        committed: Committed,
    ) -> Result<SqliteStore, OpenError> {
        let file_error = |path: &Path, source| OpenError::File {
            path: path.into(),
            source,
        };
        let database_error = |message: String| OpenError::Database {
            path: path.into(),
            message,
        };
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
        let mut conn =
            SqliteConnection::establish(url).map_err(|error| database_error(error.to_string()))?;
        conn.batch_execute(&format!(
            "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS};
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 4000;
             PRAGMA cache_size = -65536;
             PRAGMA temp_store = MEMORY;"
        ))
        .map_err(|error| database_error(error.to_string()))?;
        conn.run_pending_migrations(MIGRATIONS)
            .map_err(|error| database_error(error.to_string()))?;
        let epoch = epoch(&mut conn).map_err(|error| database_error(error.to_string()))?;

        let readers = Pool::builder()
            .max_size(settings.reader_connections)
            .connection_customizer(Box::new(ReadOnly))
            .test_on_check_out(false)
            .build(ConnectionManager::new(url))
            .map_err(|error| database_error(error.to_string()))?;

        let (work, queue) = mpsc::channel(config::WRITER_QUEUE);
        let writer = Writer::new(conn, epoch, settings, committed);
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

/// Readers cannot write, and wait for nothing but a checkpoint.
#[derive(Debug)]
struct ReadOnly;

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for ReadOnly {
    fn on_acquire(&self, conn: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        conn.batch_execute(&format!(
            "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}; PRAGMA query_only = ON;"
        ))
        .map_err(diesel::r2d2::Error::QueryError)
    }
}

fn epoch(conn: &mut SqliteConnection) -> QueryResult<Epoch> {
    const KEY: &str = "epoch";
    conn.immediate_transaction(|conn| {
        let stored: Option<String> = meta::table
            .find(KEY)
            .select(meta::value)
            .first(conn)
            .optional()?;
        if let Some(text) = stored {
            return text.parse().map_err(|_| table::unreadable("an epoch"));
        }
        let epoch = Epoch::generate();
        diesel::insert_into(meta::table)
            .values((meta::key.eq(KEY), meta::value.eq(epoch.to_string())))
            .execute(conn)?;
        Ok(epoch)
    })
}

/// Head and floor of a school; both 0 before its first event.
fn bounds(conn: &mut SqliteConnection, school: SchoolId) -> QueryResult<(u64, u64)> {
    let row: Option<(i64, i64)> = schools::table
        .find(school.get())
        .select((schools::head, schools::floor))
        .first(conn)
        .optional()?;
    let (head, floor) = row.unwrap_or_default();
    Ok((head as u64, floor as u64))
}

fn replay(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    scope: &Scope,
    after: u64,
    fold: bool,
) -> QueryResult<Page> {
    let (head, floor) = bounds(conn, scope.school)?;
    let mut query = events::table
        .filter(events::school_id.eq(scope.school.get()))
        .filter(events::seq.gt(after as i64))
        .order(events::seq)
        .limit(READ_PAGE as i64)
        .select(EventRow::as_select())
        .into_boxed();
    if let Some((kind, subjects)) = single_subjects(scope) {
        // Served by the index on subjects, however much the rest of the school has to say.
        query = query
            .filter(events::kind.eq(kind.collection()))
            .filter(events::subject_id.eq_any(subjects));
    }
    let rows: Vec<EventRow<'_>> = query.load(conn)?;
    let through = if rows.len() < READ_PAGE {
        head
    } else {
        rows.last().map_or(head, EventRow::seq)
    };
    let mut told = Vec::with_capacity(rows.len());
    for row in rows {
        let event = row.into_event(epoch)?;
        if scope.hears(&event) {
            told.push(Arc::new(event));
        }
    }
    if fold {
        told = crate::scope::without_superseded(told);
        if through < head {
            leave_out_superseded_later(conn, scope, &mut told)?;
        }
    }
    Ok(Page {
        events: told,
        through,
        head,
        floor,
    })
}

/// The subjects of a scope that names nothing but single subjects of one kind.
fn single_subjects(scope: &Scope) -> Option<(Kind, Vec<&str>)> {
    let mut kinds = scope.channels().iter().map(|channel| match channel {
        Channel::Subject(kind, _) => Some(*kind),
        Channel::Collection(_) | Channel::School(_) => None,
    });
    let kind = kinds.next()??;
    if !kinds.all(|other| other == Some(kind)) {
        return None;
    }
    Some((
        kind,
        scope
            .subjects(kind)
            .into_iter()
            .map(SubjectId::as_str)
            .collect(),
    ))
}

/// Leaves out ticks whose subject has a later event in scope beyond this page.
fn leave_out_superseded_later(
    conn: &mut SqliteConnection,
    scope: &Scope,
    told: &mut Vec<Arc<Event>>,
) -> QueryResult<()> {
    for (kind, table) in TABLES {
        let ticks = told
            .iter()
            .filter(|event| event.is_tick() && event.kind == *kind);
        let subjects: Vec<&str> = ticks.map(|event| event.subject.as_str()).collect();
        if subjects.is_empty() {
            continue;
        }
        let last = table.last_events(conn, scope.school, &subjects)?;
        told.retain(|event| {
            let later = last
                .get(event.subject.as_str())
                .filter(|later| later.seq > event.seq);
            let superseded = later.is_some_and(|later| {
                scope
                    .filter
                    .passes(&later.status, later.category.as_deref())
            });
            !(event.is_tick() && event.kind == *kind && superseded)
        });
    }
    Ok(())
}

fn snapshot(
    conn: &mut SqliteConnection,
    epoch: Epoch,
    scope: &Scope,
    after: u64,
    upto: Option<u64>,
) -> QueryResult<Page> {
    let (head, floor) = bounds(conn, scope.school)?;
    let upto = upto.unwrap_or(head);
    let mut told = Vec::new();
    let mut through = upto;
    for (kind, table) in TABLES {
        let all = scope.listens_to_all(*kind);
        let subjects: Vec<_> = scope
            .subjects(*kind)
            .into_iter()
            .map(SubjectId::as_str)
            .collect();
        if !all && subjects.is_empty() {
            continue;
        }
        let selection = Selection {
            school: scope.school,
            subjects: (!all).then_some(subjects),
            filter: &scope.filter,
            after,
            upto,
            limit: READ_PAGE,
        };
        let states = table.snapshot(conn, &selection)?;
        if let Some((_, last)) = states.last().filter(|_| states.len() == READ_PAGE) {
            // This kind may go on: the page ends where the first of such kinds ends.
            through = through.min(last.last_seq);
        }
        told.extend(
            states
                .into_iter()
                .map(|(id, stored)| stored.snapshot(epoch, scope.school, *kind, id)),
        );
    }
    told.retain(|event| event.seq <= through);
    told.sort_unstable_by_key(|event| event.seq);
    Ok(Page {
        events: told.into_iter().map(Arc::new).collect(),
        through,
        head: upto,
        floor,
    })
}

#[async_trait]
impl Store for SqliteStore {
    fn epoch(&self) -> Epoch {
        self.epoch
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

    async fn replay(&self, scope: Arc<Scope>, after: u64, fold: bool) -> Result<Page, StoreError> {
        let epoch = self.epoch;
        self.read(move |conn| replay(conn, epoch, &scope, after, fold))
            .await
    }

    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<u64>,
    ) -> Result<Page, StoreError> {
        let epoch = self.epoch;
        self.read(move |conn| snapshot(conn, epoch, &scope, after, upto))
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

    async fn job(&self, school: SchoolId, id: SubjectId) -> Result<Option<StoredJob>, StoreError> {
        let epoch = self.epoch;
        self.read(move |conn| jobs::find(conn, epoch, school, &id))
            .await
    }

    async fn jobs(&self, school: SchoolId, query: JobQuery) -> Result<JobPage, StoreError> {
        let epoch = self.epoch;
        self.read(move |conn| {
            let (head, _) = bounds(conn, school)?;
            jobs::list(conn, epoch, school, &query, head)
        })
        .await
    }

    async fn overdue(&self, now: DateTime<Utc>, limit: usize) -> Result<Vec<Overdue>, StoreError> {
        self.read(move |conn| {
            let mut overdue = Vec::new();
            for (_, table) in TABLES {
                overdue.extend(table.overdue(conn, now, limit)?);
            }
            Ok(overdue)
        })
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

    async fn close(&self) -> Result<(), StoreError> {
        self.ask(Work::Close).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.read(|conn| conn.batch_execute("SELECT 1")).await?;
        self.ask(Work::Ping).await
    }
}
