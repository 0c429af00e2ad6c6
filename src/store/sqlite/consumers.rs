//! The port [`Consumers`].

use async_trait::async_trait;

use super::{SqliteStore, notifiers};
use crate::id::SchoolId;
use crate::log::StoreError;
use crate::log::consumers::{
    Begun, Consumers, DeadLetterPage, Offset, Progress, Standing, Total, lease_of,
};
use crate::log::leases::Fence;

#[async_trait]
impl Consumers for SqliteStore {
    async fn notifier_begins(&self, name: &str) -> Result<Begun, StoreError> {
        let name = name.to_owned();
        self.aside(move |conn| notifiers::begins(conn, &name)).await
    }

    async fn notifier_looks(&self, name: &str) -> Result<Begun, StoreError> {
        self.notifier_begins(name).await
    }

    async fn notifier_offset(&self, name: &str, school: SchoolId) -> Result<Offset, StoreError> {
        let name = name.to_owned();
        self.read_for_server(move |conn| notifiers::offset(conn, &name, school))
            .await
    }

    async fn notifier_moves(
        &self,
        name: &str,
        fence: Fence,
        school: SchoolId,
        seq: u64,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.writer
            .call(move |backend| {
                backend.leases.check(&lease_of(&name), fence)?;
                let moved = backend
                    .write_aside(|conn| notifiers::moves(conn, &name, school, seq, &progress))?;
                match moved {
                    true => Ok(()),
                    false => Err(StoreError::Fenced),
                }
            })
            .await
    }

    async fn notifiers(&self, school: SchoolId) -> Result<(Vec<Standing>, u64), StoreError> {
        self.read(school, move |conn| notifiers::standings(conn, school))
            .await
    }

    async fn notifier_totals(&self) -> Result<Vec<Total>, StoreError> {
        self.read_for_server(notifiers::totals).await
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
}
