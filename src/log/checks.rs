//! Checks that the server issues by itself, of silent subjects and of schedules, for many schools at once.
//!
//! 1. The checks of all schools are appended at the same time, so that they share commits: if the devices or the workers of
//!    a thousand schools fall silent together, no school waits for the commits of the others.
//! 2. If the checks of a school cannot be appended, those of the others are nevertheless.

use std::collections::HashMap;

use futures_util::future::join_all;

use super::{Envelope, Store, StoreError};
use crate::config::WATCHDOG_BATCH;
use crate::id::SchoolId;

/// Checks that are appended together. See the [module-level documentation](self).
pub(crate) struct Checks<'a> {
    store: &'a dyn Store,
    by_school: HashMap<SchoolId, Vec<Envelope>>,
    count: usize,
}

impl<'a> Checks<'a> {
    pub(crate) fn new(store: &'a dyn Store) -> Checks<'a> {
        Checks {
            store,
            by_school: HashMap::new(),
            count: 0,
        }
    }

    /// Adds a check. Appends all of them if there are many.
    pub(crate) async fn add(
        &mut self,
        school: SchoolId,
        check: Envelope,
    ) -> Result<(), StoreError> {
        self.by_school.entry(school).or_default().push(check);
        self.count += 1;
        match self.count < WATCHDOG_BATCH {
            true => Ok(()),
            false => self.append().await,
        }
    }

    /// Appends all of them.
    pub(crate) async fn append(&mut self) -> Result<(), StoreError> {
        self.count = 0;
        let checks = std::mem::take(&mut self.by_school).into_iter();
        let appended = checks.map(async |(school, checks)| {
            let receipts = self.store.append(school, checks).await?;
            for refused in receipts.into_iter().filter_map(Result::err) {
                tracing::warn!(school.id = %school, reason = %refused, "a check was rejected");
            }
            Ok(())
        });
        join_all(appended).await.into_iter().collect()
    }
}
