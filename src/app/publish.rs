//! The use case *publish*: takes a caller's command, and returns a receipt after the commit (invariant 1).
//!
//! ```text
//! admit: role ─▶ rate limit of the `sub` ─▶ byte limit of the school ─▶ memory    (before the body is read)
//! publish: channels of the token ─▶ Publisher ─▶ presence observes the event       (once the command is known)
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::caller::Caller;
use crate::auth::{Access, AuthError, Role};
use crate::config::{RESERVE_WAIT, Settings};
use crate::hub::HubFull;
use crate::id::{Channel, SchoolId, SubjectId};
use crate::kind::{RuleError, device};
use crate::log::{Allowance, CommandError, Envelope, Receipt, Store, StoreError};
use crate::presence::{HeartbeatAnswer, Presence};
use crate::publish::{PublishDurations, Publisher};
use crate::reserve::{Holder, Reserve, ReserveFull, Reserved};
use crate::throttle::{Debts, Throttle};

/// Why a request was rejected. Nothing has changed, except possibly after [`StoreError::Unknown`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum Rejected {
    /// The credential does not allow it.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A rate limit was reached.
    #[error(transparent)]
    TooFast(#[from] TooFast),
    /// The writes in progress use all the memory that is reserved for writes.
    #[error(transparent)]
    Memory(#[from] ReserveFull),
    /// A limit on open streams was reached.
    #[error(transparent)]
    Streams(#[from] HubFull),
    /// The command itself was rejected.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A subject to listen to does not exist in this school.
    #[error("{0} not found")]
    Missing(Channel),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<RuleError> for Rejected {
    fn from(error: RuleError) -> Rejected {
        Rejected::Command(error.into())
    }
}

/// A rate limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooFast {
    /// The limit of one user.
    #[error(
        "too many commands: tokens with the same `sub` may publish at most {most} commands per second"
    )]
    Commands {
        /// Setting `publishes_per_sec`.
        most: u32,
        /// How long to wait before trying again.
        wait: Duration,
    },
    /// The limit of a ping key, or of the address of a client that pings.
    #[error("too many pings {whose}: at most {most} per second are accepted")]
    Pings {
        /// Whose limit it is: `with this key`, `from this address`.
        whose: &'static str,
        /// The setting that determines it, if there is one.
        setting: Option<&'static str>,
        /// The limit.
        most: u32,
        /// How long to wait before trying again.
        wait: Duration,
    },
    /// The limit of a school.
    #[error("the school produces too many events: at most {most} bytes of events per second are accepted; try again in {} s", .wait.as_secs() + 1)]
    Bytes {
        /// Setting `event_bytes_per_sec`.
        most: u32,
        /// How long to wait before trying again.
        wait: Duration,
    },
}

/// Publishes on behalf of callers.
pub struct PublishService {
    store: Arc<dyn Store>,
    publisher: Publisher,
    presence: Arc<Presence>,
    /// The rate limit of each user.
    rates: Throttle,
    /// The bytes that schools have produced in excess of their rate limit.
    debts: Arc<Debts>,
    memory: Arc<Reserve>,
    settings: Arc<Settings>,
}

/// Permission to publish one command, with the memory reserved for it.
pub struct Admission<'a> {
    service: &'a PublishService,
    caller: &'a Caller,
    allowance: Arc<Allowance>,
}

impl PublishService {
    /// Creates a service that publishes to `store`.
    pub fn new(
        store: Arc<dyn Store>,
        publisher: Publisher,
        presence: Arc<Presence>,
        rates: Throttle,
        debts: Arc<Debts>,
        settings: Arc<Settings>,
    ) -> PublishService {
        PublishService {
            store,
            publisher,
            presence,
            rates,
            debts,
            memory: Arc::new(Reserve::new(settings.write_memory_bytes)),
            settings,
        }
    }

    /// Publishes a command. Returns after the commit.
    pub async fn publish(
        &self,
        caller: &Caller,
        command: impl Into<Envelope>,
    ) -> Result<Receipt, Rejected> {
        let admission = self
            .admit(caller, self.settings.body_limit_bytes.get())
            .await?;
        admission.publish(command.into()).await
    }

    /// Admits one command before its body, of at most `body_bytes`, is read.
    pub async fn admit<'a>(
        &'a self,
        caller: &'a Caller,
        body_bytes: u64,
    ) -> Result<Admission<'a>, Rejected> {
        self.permit(caller.access(), &[(caller.school(), 1)])?;
        self.permit_bytes(caller.school())?;
        let memory = self.settings.command_memory(body_bytes);
        let reserved = self.reserve(Some(caller.school()), memory).await?;
        Ok(Admission {
            service: self,
            caller,
            allowance: self.publisher.allowance(u64::MAX, reserved),
        })
    }

    /// Records a device's heartbeat. If the heartbeat changed anything, returns after that change is committed.
    pub async fn heartbeat(
        &self,
        caller: &Caller,
        device: &SubjectId,
    ) -> Result<HeartbeatAnswer, Rejected> {
        self.permit(caller.access(), &[(caller.school(), 1)])?;
        caller.authorize_subject(device::KIND, device)?;
        let devices = std::slice::from_ref(device);
        let mut heartbeats = self.presence.heartbeats(caller.school(), devices).await?;
        Ok(heartbeats.pop().expect("each heartbeat is answered")?)
    }

    /// Checks the role and the rate limit for publishing the given number of commands in each of these schools.
    pub(super) fn permit(
        &self,
        access: &Access,
        counts: &[(SchoolId, u32)],
    ) -> Result<(), Rejected> {
        access.require(Role::Worker)?;
        let taken = self.rates.take_all(counts, &access.subject, Instant::now());
        let most = self.settings.publishes_per_sec;
        Ok(taken.map_err(|wait| TooFast::Commands { most, wait })?)
    }

    /// Checks that a school has not reached its limit on bytes of events.
    pub(super) fn permit_bytes(&self, school: SchoolId) -> Result<(), TooFast> {
        let most = self.settings.event_bytes_per_sec;
        match self.debts.of(school, Instant::now()) {
            None => Ok(()),
            Some(wait) => Err(TooFast::Bytes { most, wait }),
        }
    }

    /// Reserves memory; waits up to [`RESERVE_WAIT`] until it is available.
    pub(super) async fn reserve(&self, holder: Holder, bytes: u64) -> Result<Reserved, Rejected> {
        Ok(self.memory.take(holder, bytes, RESERVE_WAIT).await?)
    }

    /// Returns the histograms of how long publishing takes.
    pub fn durations(&self) -> &PublishDurations {
        self.publisher.durations()
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(super) fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    pub(super) fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Carries out commands, in order. Their callers have been authorized.
    pub(super) async fn append(
        &self,
        school: SchoolId,
        mut envelopes: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError> {
        self.presence.complete(school, &mut envelopes).await?;
        let commands = envelopes.len();
        let began = Instant::now();
        let receipts = self
            .publisher
            .batch_within(school, envelopes, allowance)
            .await;
        let rejected = receipts.as_ref().map_or(commands, |receipts| {
            receipts.iter().filter(|receipt| receipt.is_err()).count()
        });
        tracing::debug!(
            school.id = %school,
            commands,
            rejected,
            micros = began.elapsed().as_micros(),
            "commands were carried out"
        );
        let receipts = receipts?;
        // Observe now, so that a caller sees the effect of its own report as soon as it is answered. The log may
        // deliver the event again later.
        for receipt in receipts.iter().flatten() {
            self.presence.observe(std::slice::from_ref(receipt.event()));
        }
        Ok(receipts)
    }
}

impl Admission<'_> {
    /// Publishes the command if the caller's token covers its subject. Returns after the commit.
    pub async fn publish(self, envelope: Envelope) -> Result<Receipt, Rejected> {
        let receipts = self.publish_all(vec![envelope]).await?;
        let receipt = receipts.into_iter().next();
        Ok(receipt.expect("a store answers every command")?)
    }

    /// Publishes commands in order, independently of one another, if the caller's token covers all of their subjects.
    pub(super) async fn publish_all(
        &self,
        mut envelopes: Vec<Envelope>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, Rejected> {
        for envelope in &mut envelopes {
            self.caller
                .authorize_subject(envelope.command.kind(), &envelope.subject)?;
            envelope.sub = Some(Arc::clone(self.caller.name()));
        }
        let allowance = Arc::clone(&self.allowance);
        Ok(self
            .service
            .append(self.caller.school(), envelopes, allowance)
            .await?)
    }
}
