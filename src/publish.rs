//! The use case *publish*: a command in, a receipt out, after the commit (invariant 1).

use std::sync::Arc;

use crate::id::{SchoolId, SubjectId};
use crate::kind::{Command, job};
use crate::store::{CommandError, Envelope, Receipt, Store, StoreError};

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
}

impl Publisher {
    /// Publishes to this store.
    pub fn new(store: Arc<dyn Store>) -> Publisher {
        Publisher { store }
    }

    /// Carries out one command.
    pub async fn publish(
        &self,
        school: SchoolId,
        envelope: Envelope,
    ) -> Result<Receipt, PublishError> {
        let mut receipts = self.store.append(school, vec![envelope]).await?;
        let receipt = receipts.pop().expect("a store answers every command");
        Ok(receipt?)
    }

    /// Carries out commands in order, each for itself: one that is refused does not hinder the others.
    pub async fn batch(
        &self,
        school: SchoolId,
        envelopes: Vec<Envelope>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError> {
        if envelopes.is_empty() {
            return Ok(Vec::new());
        }
        self.store.append(school, envelopes).await
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
