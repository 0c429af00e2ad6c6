//! The port [`Beats`]. A lock keeps every other process away from the database, so one node hears all heartbeats, and
//! does not share them. For several users of one store within the process they are kept in memory, at most one entry for
//! each device.

use std::collections::HashMap;

use async_trait::async_trait;

use super::SqliteStore;
use super::backend::Backend;
use crate::id::{SchoolId, SubjectId};
use crate::kind::device;
use crate::log::StoreError;
use crate::log::beats::{Beat, Beats, Heartbeats, Shared};
use crate::log::facts::Facts;
use crate::uptime::Uptime;

/// The last heartbeats of devices.
pub(super) type KnownBeats = HashMap<(SchoolId, SubjectId), Heartbeats>;

impl Backend {
    fn save_beat(&mut self, beat: Beat) -> Result<Option<Shared>, StoreError> {
        let address = (beat.school, beat.device);
        if let Some(known) = self.shared(&address)? {
            let heard = known.heard.map_or(beat.heard, |own| own.merged(beat.heard));
            self.beats.insert(address, heard);
            let heard = Some(heard);
            return Ok(Some(Shared { heard, ..known }));
        }
        Ok(None)
    }

    fn shared(&mut self, address: &(SchoolId, SubjectId)) -> Result<Option<Shared>, StoreError> {
        let heard = self.beats.get(address).copied();
        let (school, id) = address.clone();
        let stored = self.state(&(school, device::KIND, id))?;
        let device = stored.and_then(|stored| stored.state.device());
        Ok(device.map(|device| Shared::new(device, heard)))
    }
}

#[async_trait]
impl Beats for SqliteStore {
    async fn save_beats(&self, beats: Vec<Beat>) -> Result<Vec<Option<Shared>>, StoreError> {
        self.writer
            .call(|backend| {
                let saved = beats.into_iter().map(|beat| backend.save_beat(beat));
                saved.collect()
            })
            .await
    }

    async fn beats_of(
        &self,
        devices: Vec<(SchoolId, SubjectId)>,
    ) -> Result<Vec<Option<Shared>>, StoreError> {
        self.writer
            .call(move |backend| devices.iter().map(|own| backend.shared(own)).collect())
            .await
    }

    async fn forget_beats(&self, before: Uptime) -> Result<(), StoreError> {
        self.writer
            .call(move |backend| {
                backend.beats.retain(|_, own| own.last.uptime >= before);
                Ok(())
            })
            .await
    }
}
