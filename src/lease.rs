//! A lease that is held while work is done.
//!
//! ```text
//! acquire ─▶ during(work) ─▶ the work has ended: the lease stays held until it is released
//!    ▲            └─▶ lost: the work is dropped ─┐
//!    └───────────────────────────────────────────┘
//! ```
//!
//! 1. Work is polled only before the end of the lease as this process measures it: from before the lease was requested. A
//!    process that was suspended drops the work as soon as it runs again, before anything else is done.
//! 2. What this cannot prevent, such as a write that is already on its way, the store rejects by the fence.
//!
//! A panic in the work does not release the lease: when the work is started again, it continues under the same fence.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::config::{LEASE_RENEWAL, LEASE_RETRY, LEASE_TERM};
use crate::failures::Failures;
use crate::log::leases::Fence;
use crate::log::{Store, StoreError};

/// How long leases are held and how often they are renewed.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How long a lease lasts if it is not renewed.
    pub term: Duration,
    /// The interval between two renewals.
    pub renewal: Duration,
    /// The interval between two attempts to acquire a lease that another node holds.
    pub retry: Duration,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            term: LEASE_TERM,
            renewal: LEASE_RENEWAL,
            retry: LEASE_RETRY,
        }
    }
}

/// A lease of this process, held or not. See the module documentation.
pub struct Lease {
    store: Arc<dyn Store>,
    name: String,
    terms: Terms,
    held: Mutex<Option<Held>>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    fence: Fence,
    ends: Instant,
}

impl Lease {
    /// Creates the lease with this name, which is not held yet.
    pub fn new(store: Arc<dyn Store>, name: impl Into<String>, terms: Terms) -> Lease {
        Lease {
            store,
            name: name.into(),
            terms,
            held: Mutex::default(),
        }
    }

    /// Returns the fence under which the lease is held. It is `None` only outside [`Lease::during`].
    pub fn fence(&self) -> Option<Fence> {
        self.held().map(|held| held.fence)
    }

    /// Returns whether the lease is held at the moment.
    pub fn is_held(&self) -> bool {
        self.held().is_some_and(|held| held.ends > Instant::now())
    }

    /// Waits until the lease is held. Fails only if the store has stopped.
    pub async fn acquire(&self) -> Result<Fence, StoreError> {
        let mut failures = Failures::default();
        loop {
            match self.try_acquire().await {
                Ok(Some(fence)) => return Ok(fence),
                Ok(None) => {}
                Err(StoreError::Stopped) => return Err(StoreError::Stopped),
                Err(error) => self.note(&mut failures, &error),
            }
            sleep(self.terms.retry).await;
        }
    }

    async fn try_acquire(&self) -> Result<Option<Fence>, StoreError> {
        if let Some(fence) = self.fence()
            && self.renew(fence).await?
        {
            return Ok(Some(fence));
        }
        let asked = Instant::now();
        let fence = self.store.acquire(&self.name, self.terms.term).await?;
        self.holds(fence, asked);
        if let Some(fence) = fence {
            tracing::debug!(lease.name = self.name, %fence, "a lease was acquired");
        }
        Ok(fence)
    }

    /// Does the work while the lease is held, and renews it meanwhile. Returns `None` if the lease is lost; the work is then
    /// dropped.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut kept = pin!(self.keep());
        let done = poll_fn(|context| {
            // No timer may have fired yet in a process that was suspended.
            if !self.is_held() || kept.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            work.as_mut().poll(context).map(Some)
        })
        .await;
        if done.is_none() {
            *self.lock() = None;
            tracing::warn!(
                lease.name = self.name,
                "a lease was lost; another node may hold it now"
            );
        }
        done
    }

    /// Releases the lease, if it is held, so that another node need not wait for its end.
    pub async fn release(&self) {
        let held = self.lock().take();
        let Some(Held { fence, .. }) = held else {
            return;
        };
        if let Err(error) = self.store.release(&self.name, fence).await
            && error != StoreError::Stopped
        {
            tracing::warn!(%error, lease.name = self.name, "a lease could not be released; it ends by itself");
        }
    }

    /// Renews the lease until it is lost.
    async fn keep(&self) {
        let mut failures = Failures::default();
        while let Some(Held { fence, ends }) = self.held() {
            sleep(self.terms.renewal).await;
            match timeout_at(ends, self.renew(fence)).await {
                Ok(Ok(true)) => {
                    failures.worked();
                }
                Ok(Err(error)) if error != StoreError::Stopped => {
                    self.note(&mut failures, &error);
                }
                _ => return,
            }
        }
    }

    async fn renew(&self, fence: Fence) -> Result<bool, StoreError> {
        let asked = Instant::now();
        let renewed = self.store.renew(&self.name, fence, self.terms.term).await?;
        self.holds(renewed.then_some(fence), asked);
        Ok(renewed)
    }

    /// Records a lease that the store granted or rejected. Its term began after it was asked for.
    fn holds(&self, fence: Option<Fence>, asked: Instant) {
        let ends = asked + self.terms.term;
        *self.lock() = fence.map(|fence| Held { fence, ends });
    }

    fn note(&self, failures: &mut Failures, error: &StoreError) {
        if let Some(failed) = failures.failed(std::time::Instant::now()) {
            tracing::error!(%error, failed, lease.name = self.name, "a lease could not be acquired or renewed; retrying");
        }
    }

    fn held(&self) -> Option<Held> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
