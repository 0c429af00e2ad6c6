//! Executes commands and charges their schools for the events that they produce. [`crate::app`] decides who can
//! publish, and enforces rate limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;

use crate::config::DURATION_BUCKETS_SECS;
use crate::id::SchoolId;
use crate::log::{Allowance, CommandError, Envelope, Receipt, Store, StoreError};
use crate::reserve::Reserved;
use crate::throttle::Debts;

/// The outcome of a request's commands, in their order, or the store's failure, after which none had an effect.
pub type Answer = Result<Vec<Result<Receipt, CommandError>>, StoreError>;

/// How long publishing takes, in seconds, by outcome. Clones share their counts.
#[derive(Clone)]
pub struct PublishDurations {
    committed: Histogram,
    rejected: Histogram,
    failed: Histogram,
}

impl PublishDurations {
    fn new() -> PublishDurations {
        let histogram = || Histogram::new(DURATION_BUCKETS_SECS);
        PublishDurations {
            committed: histogram(),
            rejected: histogram(),
            failed: histogram(),
        }
    }

    fn observe(&self, answer: &Answer, took: Duration) {
        let outcome = match answer {
            Ok(receipts) if receipts.iter().any(Result::is_ok) => &self.committed,
            Ok(_) => &self.rejected,
            Err(_) => &self.failed,
        };
        outcome.observe(took.as_secs_f64());
    }

    /// Returns the histograms. `committed`: at least one command was executed; `refused`: all were rejected; `failed`: the
    /// store failed.
    pub fn by_outcome(&self) -> [(&'static str, &Histogram); 3] {
        [
            ("committed", &self.committed),
            ("refused", &self.rejected),
            ("failed", &self.failed),
        ]
    }
}

/// Executes commands.
#[derive(Clone)]
pub struct Publisher {
    store: Arc<dyn Store>,
    durations: PublishDurations,
    /// What schools have produced, and have not yet paid for by waiting.
    debts: Arc<Debts>,
}

impl Publisher {
    /// Creates a publisher that writes to this store, and charges schools for what they produce.
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

    /// Returns the limit on what one request can produce, with the memory that is reserved for it.
    pub fn allowance(&self, limit: u64, reserved: Reserved) -> Arc<Allowance> {
        Arc::new(Allowance::new(limit, Arc::clone(&self.debts), reserved))
    }

    /// Executes commands in order, independently of one another: a rejected command does not affect the others. Returns
    /// after the commit (invariant 1).
    pub async fn batch(&self, school: SchoolId, envelopes: Vec<Envelope>) -> Answer {
        let allowance = Arc::new(Allowance::charged(Arc::clone(&self.debts)));
        self.batch_within(school, envelopes, allowance).await
    }

    /// Executes commands within a request's allowance.
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
