//! The port [`Heartbeats`]. A lock keeps every other process away from the database, so a single node receives all
//! heartbeats and need not share them. For several nodes within one process, as in tests, they are kept in memory, one
//! entry per device.

use std::collections::HashMap;

use async_trait::async_trait;

use super::SqliteStore;
use crate::id::{SchoolId, SubjectId};
use crate::log::StoreError;
use crate::log::heartbeats::{Heartbeat, Heartbeats, LastHeartbeats, Shared};
use crate::uptime::Uptime;

/// The last heartbeats of devices.
pub(super) type KnownHeartbeats = HashMap<(SchoolId, SubjectId), LastHeartbeats>;

#[async_trait]
impl Heartbeats for SqliteStore {
    async fn save_heartbeats(
        &self,
        heartbeats: Vec<Heartbeat>,
    ) -> Result<Vec<Option<Shared>>, StoreError> {
        self.writer
            .call(|backend| {
                let saved = heartbeats
                    .into_iter()
                    .map(|heartbeat| backend.save_heartbeat(heartbeat));
                saved.collect()
            })
            .await
    }

    async fn heartbeats_of(
        &self,
        devices: Vec<(SchoolId, SubjectId)>,
    ) -> Result<Vec<Option<Shared>>, StoreError> {
        self.writer
            .call(move |backend| {
                devices
                    .iter()
                    .map(|device| backend.shared(device))
                    .collect()
            })
            .await
    }

    async fn forget_heartbeats(&self, before: Uptime) -> Result<(), StoreError> {
        self.writer
            .call(move |backend| {
                backend
                    .heartbeats
                    .retain(|_, heard| heard.last.uptime >= before);
                Ok(())
            })
            .await
    }
}
