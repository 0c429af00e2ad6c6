//! The use case *publish*: a command in, a receipt out, after the commit (invariant 1).

use std::sync::Arc;

use crate::id::{SchoolId, SubjectId};
use crate::kind::{Command, job};
use crate::log::{Allowance, CommandError, Envelope, Receipt, Store, StoreError};
use crate::reserve::Reserved;
use crate::throttle::Debts;

/// A command that had no effect.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// By its own fault.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// By the store's.
    #[error(transparent)]
    Store(#[from] StoreError),
}

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

    /// Carries out one command.
    pub async fn publish(
        &self,
        school: SchoolId,
        envelope: Envelope,
    ) -> Result<Receipt, PublishError> {
        let allowance = Arc::new(Allowance::charged(Arc::clone(&self.debts)));
        self.publish_within(school, envelope, allowance).await
    }

    /// The same, within what a request may come to.
    pub async fn publish_within(
        &self,
        school: SchoolId,
        envelope: Envelope,
        allowance: Arc<Allowance>,
    ) -> Result<Receipt, PublishError> {
        let envelopes = vec![envelope];
        let receipts = self.store.append_within(school, envelopes, allowance);
        let receipt = receipts.await?.pop();
        Ok(receipt.expect("a store answers every command")?)
    }

    /// Carries out commands in order, each for itself: one that is refused does not hinder the others.
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

    /// Makes a job known.
    pub async fn create_job(
        &self,
        school: SchoolId,
        create: job::Create,
    ) -> Result<Receipt, PublishError> {
        self.publish(school, create.into()).await
    }

    /// Carries out a job's command.
    pub async fn job(
        &self,
        school: SchoolId,
        id: SubjectId,
        command: job::Command,
    ) -> Result<Receipt, PublishError> {
        self.publish(school, Envelope::new(id, Command::Job(command)))
            .await
    }
}

impl From<job::Create> for Envelope {
    /// The job gets an id if it brings none.
    fn from(create: job::Create) -> Envelope {
        let subject = create.job_id.clone().unwrap_or_else(SubjectId::generate);
        Envelope::new(subject, Command::Job(job::Command::Create(create)))
    }
}
