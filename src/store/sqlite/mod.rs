//! The embedded store: SQLite in WAL mode through Diesel.
//!
//! One writer thread owns the only writing connection (`writer.rs`); reads go through an r2d2 pool on
//! blocking threads (`readers.rs`), in turns (`turns.rs`). Locks keep a second process out (`lock.rs`),
//! because the writer caches what it has written. What is opened is looked at first (`opening.rs`).

mod answers;
mod characteristics;
mod check;
mod devices;
mod enrollments;
mod events;
mod job_texts;
mod jobs;
mod life;
mod lists;
mod lock;
mod notifiers;
mod opening;
mod read;
mod readers;
mod schema;
mod search;
mod sweep;
mod table;
mod turns;
mod upsert;
mod violations;
mod writer;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};

use self::lists::ListWalk;
pub use self::opening::{OpenError, check_place, check_trace, new_epoch};
use self::opening::{Opened, open};
use self::readers::Readers;
use self::sweep::Retention;
use self::table::{TABLES, table};
use self::turns::{Asker, Length};
use self::writer::{Submission, Work, Writer};
use super::notifiers::{Begun, DeadLetterPage, Place, Progress, Standing, Total};
use super::{
    Allowance, CommandError, Committed, Ending, Envelope, ListPage, ListQuery, Log, Meter, Overdue,
    Page, Receipt, Searched, Store, StoreError, StoredSubject, ViolationPage, ViolationQuery,
    Which,
};
use crate::config::{self, Settings};
use crate::event::Event;
use crate::id::{Epoch, Kind, SchoolId, SubjectId};
use crate::kind::device::Device;
use crate::scope::Scope;
use crate::uptime::{Uptime, UptimeClock};
use crate::wall_clock;

/// The key of `meta` under which is what is known of the wall clock, in JSON.
const WALL_CLOCK: &str = "wall_clock";

/// How long a connection waits for another one's lock, in milliseconds.
const BUSY_TIMEOUT_MS: u32 = 5_000;

/// The embedded store.
pub struct SqliteStore {
    epoch: Epoch,
    uptime: UptimeClock,
    meter: Arc<Meter>,
    work: mpsc::Sender<Work>,
    readers: Readers,
    retention: Retention,
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
        let Opened {
            lock,
            life,
            url,
            mut conn,
        } = open(settings, path)?;
        let failed = |error: &dyn std::fmt::Display| OpenError::database(path, error);
        jobs::look_at_lapsed(&mut conn, Utc::now(), life.uptime.now())
            .map_err(|error| failed(&error))?;
        for name in notifiers {
            notifiers::begins(&mut conn, name).map_err(|error| failed(&error))?;
        }
        let readers =
            Readers::open(settings, &url, Arc::clone(&lock)).map_err(|error| failed(&error))?;

        let (work, queue) = mpsc::channel(config::WRITER_QUEUE);
        let meter = Arc::<Meter>::default();
        let writer = Writer::new(
            conn,
            lock,
            life.clone(),
            settings,
            committed,
            Arc::clone(&meter),
        );
        // The thread ends with the last handle of the store, or by `close`, and holds the lock until then.
        std::thread::Builder::new()
            .name("tidings-writer".into())
            .spawn(move || {
                let closed = writer.run(queue);
                // Nobody waits if the store was dropped without being closed.
                let _ = closed.map(|closed| closed.send(Ok(())));
            })
            .map_err(|source| OpenError::file(path, source))?;

        // Settings are checked to be below a century, so these do not overflow.
        let seconds = |secs: u64| TimeDelta::seconds(secs as i64);
        Ok(SqliteStore {
            epoch: life.epoch,
            uptime: life.uptime,
            meter,
            work,
            readers,
            retention: Retention {
                age: seconds(settings.retention_secs),
                events: settings.retention_events,
                bytes: settings.retention_bytes,
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

    /// A short read for a request about a school.
    async fn read<T: Send + 'static>(
        &self,
        school: SchoolId,
        read: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let asker = Asker::Requests(school);
        self.readers.read(asker, Length::Short, read).await
    }

    /// A short read of the server's own.
    async fn look<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.readers.read(Asker::Server, Length::Short, read).await
    }

    /// A page for a stream. One that is filtered may look at many rows for each that it tells.
    async fn page<T: Send + 'static>(
        &self,
        scope: &Scope,
        read: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let length = match scope.filter.is_empty() {
            true => Length::Short,
            false => Length::Window,
        };
        let asker = Asker::Streams(scope.school);
        self.readers.read(asker, length, read).await
    }
}

fn database_error(error: diesel::result::Error) -> StoreError {
    StoreError::Database(error.to_string())
}

#[async_trait]
impl Log for SqliteStore {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    async fn replay(&self, scope: Arc<Scope>, after: u64, fold: bool) -> Result<Page, StoreError> {
        let (epoch, own) = (self.epoch, Arc::clone(&scope));
        self.page(&own, move |conn| {
            read::replay(conn, epoch, &scope, after, fold)
        })
        .await
    }

    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<u64>,
    ) -> Result<Page, StoreError> {
        let (epoch, own) = (self.epoch, Arc::clone(&scope));
        self.page(&own, move |conn| {
            read::snapshot(conn, epoch, &scope, after, upto)
        })
        .await
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn uptime(&self) -> UptimeClock {
        self.uptime.clone()
    }

    async fn save_uptime(&self) -> Result<(), StoreError> {
        self.ask(Work::SaveUptime).await
    }

    async fn wall_clock(&self) -> Result<Option<wall_clock::Record>, StoreError> {
        let text = self.look(|conn| life::fact(conn, WALL_CLOCK)).await?;
        let record = text.map(|text| serde_json::from_str(&text)).transpose();
        record.map_err(|error| StoreError::Database(format!("`{WALL_CLOCK}` in `meta`: {error}")))
    }

    async fn save_wall_clock(&self, record: wall_clock::Record) -> Result<(), StoreError> {
        let text = serde_json::to_string(&record).expect("it is JSON");
        self.aside(move |conn| life::set(conn, WALL_CLOCK, text))
            .await
    }

    fn meter(&self) -> &Meter {
        &self.meter
    }

    fn windows(&self) -> u64 {
        self.readers.turns().windows()
    }

    fn waiting_reads(&self) -> usize {
        self.readers.turns().waiting()
    }

    async fn size(&self) -> Result<u64, StoreError> {
        self.look(read::size).await
    }

    async fn append_within(
        &self,
        school: SchoolId,
        commands: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError> {
        self.ask(|answer| {
            Work::Append(Submission {
                school,
                commands,
                allowance,
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
        self.read(school, move |conn| {
            read::last_events(conn, epoch, school, kind, &subject, which, limit)
        })
        .await
    }

    async fn exists(
        &self,
        school: SchoolId,
        kind: Kind,
        subject: SubjectId,
    ) -> Result<bool, StoreError> {
        self.read(school, move |conn| {
            Ok(table(kind).load(conn, school, &subject)?.is_some())
        })
        .await
    }

    async fn subject(
        &self,
        school: SchoolId,
        kind: Kind,
        id: SubjectId,
    ) -> Result<Option<StoredSubject>, StoreError> {
        let epoch = self.epoch;
        self.read(school, move |conn| {
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
        let mut walk = ListWalk::new(school, kind, query);
        if walk.is_by_index() {
            let listed = self.read(school, move |conn| {
                walk.list(conn)?;
                Ok(walk)
            });
            return Ok(listed.await?.into_page(self.epoch, None));
        }
        let walked = self.readers.walk(school, walk).await?;
        let searched = Searched {
            rows: walked.rows,
            until: walked.walk.until().filter(|_| !walked.is_complete),
            is_complete: walked.is_complete,
        };
        Ok(walked.walk.into_page(self.epoch, Some(searched)))
    }

    async fn head(&self, school: SchoolId) -> Result<u64, StoreError> {
        self.read(school, move |conn| Ok(read::bounds(conn, school)?.0))
            .await
    }

    async fn counts(
        &self,
        school: SchoolId,
        kind: Kind,
    ) -> Result<Vec<(&'static str, u64)>, StoreError> {
        self.read(school, move |conn| read::counts(conn, school, kind))
            .await
    }

    async fn stalled(&self, school: SchoolId, kind: Kind) -> Result<u64, StoreError> {
        self.read(school, move |conn| read::stalled(conn, school, kind))
            .await
    }

    async fn ended_since(
        &self,
        school: SchoolId,
        kind: Kind,
        status: &'static str,
        since: DateTime<Utc>,
    ) -> Result<u64, StoreError> {
        self.read(school, move |conn| {
            read::ended_since(conn, school, kind, status, since)
        })
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
        self.read(school, move |conn| {
            read::ended(conn, epoch, school, kind, status, limit)
        })
        .await
    }

    async fn endings(
        &self,
        school: SchoolId,
        kind: Kind,
        since: DateTime<Utc>,
    ) -> Result<Vec<Ending>, StoreError> {
        self.read(school, move |conn| read::endings(conn, school, kind, since))
            .await
    }

    async fn schools(
        &self,
        after: Option<SchoolId>,
        limit: usize,
    ) -> Result<Vec<SchoolId>, StoreError> {
        self.look(move |conn| read::schools(conn, after, limit))
            .await
    }

    async fn violations(
        &self,
        school: SchoolId,
        query: ViolationQuery,
    ) -> Result<ViolationPage, StoreError> {
        self.read(school, move |conn| violations::list(conn, school, &query))
            .await
    }

    async fn open_violations(&self, school: SchoolId) -> Result<u64, StoreError> {
        self.read(school, move |conn| read::open_violations(conn, school))
            .await
    }

    async fn overdue(&self, now: Uptime, limit: usize) -> Result<Vec<Overdue>, StoreError> {
        self.look(move |conn| {
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
        self.look(move |conn| devices::not_offline(conn, after.as_ref(), limit))
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
        self.look(move |conn| notifiers::place(conn, &name, school))
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
        self.read(school, move |conn| notifiers::standings(conn, school))
            .await
    }

    async fn notifier_totals(&self) -> Result<Vec<Total>, StoreError> {
        self.look(notifiers::totals).await
    }

    async fn dead_letters(
        &self,
        name: &str,
        school: SchoolId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        let name = name.to_owned();
        self.read(school, move |conn| {
            notifiers::letters(conn, &name, school, before, limit)
        })
        .await
    }

    async fn close(&self) -> Result<(), StoreError> {
        let closed = self.ask(Work::Close).await;
        self.readers.close().await;
        closed
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.readers.ping().await?;
        self.ask(Work::Ping).await
    }
}
