//! The port [`Journal`], with its reading side [`Log`].

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::readers::Read;
use super::schema::schools;
use super::{ENDED, Fact, PostgresStore, read, rows, set_fact};
use crate::id::{Epoch, Place, SchoolId};
use crate::log::writer::Receipts;
use crate::log::{
    Allowance, Bounds, CommitMetrics, Envelope, Journal, Log, LogRange, Page, StoreError,
};
use crate::scope::Scope;
use crate::store::columns::{place, uptime_millis};
use crate::store::numbers::unsigned;
use crate::store::turns::{Length, Requester};
use crate::uptime::UptimeClock;
use crate::wall_clock;

/// The key in `meta` of the saved state of the wall clock, in JSON.
const WALL_CLOCK: &str = "wall_clock";

#[derive(QueryableByName)]
struct Size {
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

impl PostgresStore {
    async fn read_for_streams(&self, school: SchoolId) -> Result<Read, StoreError> {
        self.readers
            .begin(Requester::Streams(school), Length::Short)
            .await
    }

    /// Begins to read a page for a stream. With a filter, it may scan many rows for each event that it returns.
    async fn page(&self, scope: &Scope) -> Result<Read, StoreError> {
        let length = match scope.filter.is_empty() {
            true => Length::Short,
            false => Length::Window,
        };
        self.readers
            .begin(Requester::Streams(scope.school), length)
            .await
    }

    /// Saves the uptime, and whether this node is shutting down cleanly. A node that is still running overwrites the latter
    /// the next time it saves.
    async fn save(&self, ends: bool) -> Result<(), StoreError> {
        let mut write = self.write().await?;
        let saved = async {
            let value = if ends { "true" } else { "false" };
            set_fact(&mut write, ENDED, value).await?;
            diesel::sql_query(
                "UPDATE meta SET value = GREATEST(value::bigint, $1)::text WHERE key = 'uptime'",
            )
            .bind::<BigInt, _>(uptime_millis(self.uptime.now()))
            .execute(&mut *write)
            .await
        };
        let saved = saved.await;
        write.end(saved).await.map(drop)
    }

    /// Sets a value of `meta`.
    async fn set(&self, key: &str, value: &str) -> Result<(), StoreError> {
        let mut write = self.write().await?;
        let set = set_fact(&mut write, key, value).await;
        write.end(set).await
    }
}

#[async_trait]
impl Log for PostgresStore {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A promoted standby may have assigned numbers again.
    fn numbers_are_unique(&self) -> bool {
        false
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn heads(&self, ids: &[SchoolId]) -> Result<Vec<(SchoolId, Place)>, StoreError> {
        let wanted: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let mut reader = self.read_for_server().await?;
        let found = schools::table
            .filter(schools::school_id.eq_any(wanted))
            .filter(schools::head.gt(0))
            .select((schools::school_id, schools::head, schools::head_tag))
            .load::<(i64, i64, Option<i64>)>(&mut *reader)
            .await;
        let head = |(id, head, tag)| Ok((rows::school(id)?, place(head, tag)));
        let heads = found.and_then(|rows| rows.into_iter().map(head).collect());
        reader.end(heads).await
    }

    async fn bounds(&self, school: SchoolId) -> Result<Bounds, StoreError> {
        let mut reader = self.read_for_streams(school).await?;
        let bounds = read::bounds(&mut reader, school).await;
        reader.end(bounds).await
    }

    async fn read_range(
        &self,
        school: SchoolId,
        after: u64,
        upto: u64,
    ) -> Result<LogRange, StoreError> {
        let mut reader = self.read_for_streams(school).await?;
        let range = read::range(&mut reader, self.epoch, school, after, upto).await;
        reader.end(range).await
    }

    async fn replay(
        &self,
        scope: Arc<Scope>,
        after: u64,
        conflate: bool,
    ) -> Result<Page, StoreError> {
        let mut reader = self.page(&scope).await?;
        let page = read::replay(&mut reader, self.epoch, &scope, after, conflate).await;
        reader.end(page).await
    }

    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<Place>,
    ) -> Result<Page, StoreError> {
        let mut reader = self.page(&scope).await?;
        let page = read::snapshot(&mut reader, self.epoch, &scope, after, upto).await;
        reader.end(page).await
    }
}

#[async_trait]
impl Journal for PostgresStore {
    async fn head(&self, school: SchoolId) -> Result<Place, StoreError> {
        let mut reader = self.request(school).await?;
        let bounds = read::bounds(&mut reader, school).await;
        Ok(reader.end(bounds).await?.head)
    }

    async fn append_within(
        &self,
        school: SchoolId,
        commands: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Result<Receipts, StoreError> {
        self.writer(school)
            .append(school, commands, allowance)
            .await
    }

    async fn sweep(&self, now: DateTime<Utc>) -> Result<bool, StoreError> {
        self.sweep_next(now).await
    }

    fn commit_metrics(&self) -> &CommitMetrics {
        &self.metrics
    }

    async fn size(&self) -> Result<u64, StoreError> {
        let mut reader = self.read_for_server().await?;
        let size = diesel::sql_query("SELECT pg_database_size(current_database()) AS bytes")
            .get_result::<Size>(&mut *reader)
            .await;
        Ok(unsigned(reader.end(size).await?.bytes))
    }

    fn uptime(&self) -> UptimeClock {
        self.uptime.clone()
    }

    /// The uptime of the cluster is the highest of its nodes.
    async fn save_uptime(&self) -> Result<(), StoreError> {
        self.save(false).await
    }

    async fn wall_clock(&self) -> Result<Option<wall_clock::Record>, StoreError> {
        let mut reader = self.read_for_server().await?;
        let found = diesel::sql_query("SELECT value FROM meta WHERE key = $1")
            .bind::<Text, _>(WALL_CLOCK)
            .load::<Fact>(&mut *reader)
            .await;
        let found = reader.end(found).await?.into_iter().next();
        let record = found
            .map(|fact| serde_json::from_str(&fact.value))
            .transpose();
        record.map_err(|error| StoreError::Database(format!("`{WALL_CLOCK}` in `meta`: {error}")))
    }

    async fn save_wall_clock(&self, record: wall_clock::Record) -> Result<(), StoreError> {
        let text = serde_json::to_string(&record).expect("it is JSON");
        self.set(WALL_CLOCK, &text).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let mut reader = self.readers.begin_at_once().await?;
        let read = reader.batch_execute("SELECT 1").await;
        reader.end(read).await?;
        for writer in &self.writers {
            writer.call(|backend| backend.database().ping()).await?;
        }
        Ok(())
    }

    async fn close(&self) -> Result<(), StoreError> {
        let mut closed = Ok(());
        for writer in &self.writers {
            closed = closed.and(writer.close().await);
        }
        if closed.is_ok()
            && let Err(error) = self.save(true).await
        {
            // Nothing is lost: the next start continues as if this node had been killed.
            tracing::warn!(%error, "the clean shutdown of this node could not be recorded");
        }
        self.readers.close();
        self.writes.close();
        closed
    }
}
