//! Carries out commands and charges their schools for what they produce. Who may, and how fast, is decided in [`crate::app`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;

use crate::config::DURATION_BUCKETS_SECS;
use crate::id::SchoolId;
use crate::log::{Allowance, CommandError, Envelope, Receipt, Store, StoreError};
use crate::reserve::Reserved;
use crate::throttle::Debts;

/// What a request's commands came to, in their order, or the store's failure, by which none had an effect.
pub type Answer = Result<Vec<Result<Receipt, CommandError>>, StoreError>;

/// How long publishing takes, in seconds, by what came of a request's commands. Clones share what they count.
#[derive(Clone)]
pub struct PublishDurations {
    committed: Histogram,
    refused: Histogram,
    failed: Histogram,
}

impl PublishDurations {
    fn new() -> PublishDurations {
        let histogram = || Histogram::new(DURATION_BUCKETS_SECS);
        PublishDurations {
            committed: histogram(),
            refused: histogram(),
            failed: histogram(),
        }
    }

    fn observe(&self, answer: &Answer, took: Duration) {
        let outcome = match answer {
            Ok(receipts) if receipts.iter().any(Result::is_ok) => &self.committed,
            Ok(_) => &self.refused,
            Err(_) => &self.failed,
        };
        outcome.observe(took.as_secs_f64());
    }

    /// `committed`: at least one command was carried out; `refused`: none was; `failed`: the store could not.
    pub fn by_outcome(&self) -> [(&'static str, &Histogram); 3] {
        [
            ("committed", &self.committed),
            ("refused", &self.refused),
            ("failed", &self.failed),
        ]
    }
}

/// Carries out commands.
#[derive(Clone)]
pub struct Publisher {
    store: Arc<dyn Store>,
    durations: PublishDurations,
    /// What schools have produced, and have not paid for by waiting.
    debts: Arc<Debts>,
}

impl Publisher {
    /// Publishes to this store, and charges schools for what they produce.
    pub fn new(store: Arc<dyn Store>, debts: Arc<Debts>) -> Publisher {
        Publisher {
            store,
            durations: PublishDurations::new(),
            debts,
        }
    }

    /// How long publishing takes.
    pub fn durations(&self) -> &PublishDurations {
        &self.durations
    }

    /// What one request may come to, in memory that is reserved for it.
    pub fn allowance(&self, most: u64, reserved: Reserved) -> Arc<Allowance> {
        Arc::new(Allowance::new(most, Arc::clone(&self.debts), reserved))
    }

    /// Carries out commands in order, each for itself: one that is refused does not hinder the others. Returns after the
    /// commit (invariant 1).
    pub async fn batch(&self, school: SchoolId, envelopes: Vec<Envelope>) -> Answer {
        let allowance = Arc::new(Allowance::charged(Arc::clone(&self.debts)));
        self.batch_within(school, envelopes, allowance).await
    }

    /// The same, within what a request may come to.
    pub async fn batch_within(
        &self,
        school: SchoolId,
        envelopes: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Answer {
        if envelopes.is_empty() {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let answer = self.store.append_within(school, envelopes, allowance).await;
        self.durations.observe(&answer, began.elapsed());
        answer
    }
}
