//! Carries out commands and charges their schools for what they produce. Who may, and how fast, is decided in [`crate::app`].

use std::sync::Arc;

use crate::id::SchoolId;
use crate::log::{Allowance, CommandError, Envelope, Receipt, Store, StoreError};
use crate::reserve::Reserved;
use crate::throttle::Debts;

/// Carries out commands.
#[derive(Clone)]
pub struct Publisher {
    store: Arc<dyn Store>,
    /// What schools have produced, and have not paid for by waiting.
    debts: Arc<Debts>,
}

impl Publisher {
    /// Publishes to this store, and charges schools for what they produce.
    pub fn new(store: Arc<dyn Store>, debts: Arc<Debts>) -> Publisher {
        Publisher { store, debts }
    }

    /// What one request may come to, in memory that is reserved for it.
    pub fn allowance(&self, most: u64, reserved: Reserved) -> Arc<Allowance> {
        Arc::new(Allowance::new(most, Arc::clone(&self.debts), reserved))
    }

    /// Carries out commands in order, each for itself: one that is refused does not hinder the others. Returns after the
    /// commit (invariant 1).
    pub async fn batch(
        &self,
        school: SchoolId,
        envelopes: Vec<Envelope>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError> {
        let allowance = Arc::new(Allowance::charged(Arc::clone(&self.debts)));
        self.batch_within(school, envelopes, allowance).await
    }

    /// The same, within what a request may come to.
    pub async fn batch_within(
        &self,
        school: SchoolId,
        envelopes: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError> {
        if envelopes.is_empty() {
            return Ok(Vec::new());
        }
        self.store.append_within(school, envelopes, allowance).await
    }
}
