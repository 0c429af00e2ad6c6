//! The port [`Journal`], with its reading side [`Log`].

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::backend::Backend;
use super::bounds::bounds;
use super::{SqliteStore, database_error, life, read, sweep};
use crate::id::{Epoch, Place, SchoolId};
use crate::log::writer::Receipts;
use crate::log::{
    Allowance, Bounds, CommitMetrics, Envelope, Journal, Log, LogRange, Page, StoreError,
};
use crate::scope::Scope;
use crate::uptime::UptimeClock;
use crate::wall_clock;

/// The key in `meta` of the saved state of the wall clock, in JSON.
const WALL_CLOCK: &str = "wall_clock";

#[async_trait]
impl Log for SqliteStore {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn numbers_are_unique(&self) -> bool {
        !self.is_cut
    }

    async fn heads(&self, schools: &[SchoolId]) -> Result<Vec<(SchoolId, Place)>, StoreError> {
        let schools = schools.to_vec();
        self.read_for_server(move |conn| read::heads(conn, &schools))
            .await
    }

    async fn bounds(&self, school: SchoolId) -> Result<Bounds, StoreError> {
        self.read_for_streams(school, move |conn| bounds(conn, school))
            .await
    }

    async fn read_range(
        &self,
        school: SchoolId,
        after: u64,
        upto: u64,
    ) -> Result<LogRange, StoreError> {
        let epoch = self.epoch;
        self.read_for_streams(school, move |conn| {
            read::range(conn, epoch, school, after, upto)
        })
        .await
    }

    async fn replay(
        &self,
        scope: Arc<Scope>,
        after: u64,
        conflate: bool,
    ) -> Result<Page, StoreError> {
        let (epoch, page_scope) = (self.epoch, Arc::clone(&scope));
        self.page(&page_scope, move |conn| {
            read::replay(conn, epoch, &scope, after, conflate)
        })
        .await
    }

    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<Place>,
    ) -> Result<Page, StoreError> {
        let (epoch, page_scope) = (self.epoch, Arc::clone(&scope));
        self.page(&page_scope, move |conn| {
            read::snapshot(conn, epoch, &scope, after, upto)
        })
        .await
    }
}

#[async_trait]
impl Journal for SqliteStore {
    async fn head(&self, school: SchoolId) -> Result<Place, StoreError> {
        self.read(school, move |conn| Ok(bounds(conn, school)?.head))
            .await
    }

    async fn append_within(
        &self,
        school: SchoolId,
        commands: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Result<Receipts, StoreError> {
        self.writer.append(school, commands, allowance).await
    }

    async fn sweep(&self, now: DateTime<Utc>) -> Result<bool, StoreError> {
        let (mut round, retention) = (self.round().take(), self.retention.clone());
        let found = self.read_for_server(move |conn| {
            let found = sweep::find(conn, &mut round, &retention, now);
            Ok((round, found))
        });
        let (round, found) = found.await?;
        *self.round() = round;
        let found = found.map_err(database_error)?;
        if found.is_empty() {
            return Ok(true);
        }
        let retention = self.retention.clone();
        let swept = self
            .writer
            .call(move |backend| backend.sweep(&found, &retention, now));
        let swept = swept.await?;
        if let Some(school) = swept.continue_after {
            self.round().continue_after(school);
        }
        Ok(swept.more)
    }

    fn commit_metrics(&self) -> &CommitMetrics {
        &self.metrics
    }

    async fn size(&self) -> Result<u64, StoreError> {
        self.read_for_server(read::size).await
    }

    fn uptime(&self) -> UptimeClock {
        self.uptime.clone()
    }

    async fn save_uptime(&self) -> Result<(), StoreError> {
        self.writer.call(Backend::save_uptime).await
    }

    async fn wall_clock(&self) -> Result<Option<wall_clock::Record>, StoreError> {
        let text = self
            .read_for_server(|conn| life::fact(conn, WALL_CLOCK))
            .await?;
        let record = text.map(|text| serde_json::from_str(&text)).transpose();
        record.map_err(|error| StoreError::Database(format!("`{WALL_CLOCK}` in `meta`: {error}")))
    }

    async fn save_wall_clock(&self, record: wall_clock::Record) -> Result<(), StoreError> {
        let text = serde_json::to_string(&record).expect("it is JSON");
        self.aside(move |conn| life::set(conn, WALL_CLOCK, text))
            .await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.readers.ping().await?;
        self.writer.call(Backend::ping).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        let closed = self.writer.close().await;
        self.readers.close().await;
        closed
    }
}
