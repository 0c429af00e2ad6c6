//! The use case *publish*: a caller's command in, a receipt out, after the commit (invariant 1).
//!
//! ```text
//! admit: role ─▶ pace of the `sub` ─▶ what the school owes ─▶ memory      (before a body is read)
//! publish: channels of the token ─▶ Publisher ─▶ presence hears of it     (once it is known what is asked)
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::caller::Caller;
use crate::auth::{Access, AuthError, Role};
use crate::config::{RESERVE_WAIT, Settings};
use crate::hub::HubFull;
use crate::id::{SchoolId, SubjectId};
use crate::kind::{RuleError, device};
use crate::log::{Allowance, CommandError, Envelope, Receipt, Store, StoreError};
use crate::presence::{Beat, Presence};
use crate::publish::{PublishDurations, Publisher};
use crate::reserve::{Holder, Reserve, ReserveFull, Reserved};
use crate::throttle::{Debts, Throttle};

/// Why a caller is refused. Nothing has changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    /// The credential does not allow it.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// It comes too soon.
    #[error(transparent)]
    TooFast(#[from] TooFast),
    /// The writes under way take all the memory there is for them.
    #[error(transparent)]
    Memory(#[from] ReserveFull),
    /// There are as many streams as there may be.
    #[error(transparent)]
    Streams(#[from] HubFull),
    /// The command itself is refused.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<RuleError> for Refused {
    fn from(error: RuleError) -> Refused {
        Refused::Command(error.into())
    }
}

/// A rate limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooFast {
    /// That of one user.
    #[error("at most {most} commands a second may be published with tokens of one `sub`")]
    Commands {
        /// Setting `publishes_per_sec`.
        most: u32,
        /// When to try again.
        wait: Duration,
    },
    /// That of a school.
    #[error("the school has produced more than {most} bytes of events a second; it may go on in {} s", .wait.as_secs() + 1)]
    Bytes {
        /// Setting `event_bytes_per_sec`.
        most: u32,
        /// When to try again.
        wait: Duration,
    },
}

/// Publishes for callers.
pub struct PublishService {
    store: Arc<dyn Store>,
    publisher: Publisher,
    presence: Arc<Presence>,
    /// How fast each user may publish.
    rates: Throttle,
    /// What schools have produced beyond their pace.
    debts: Arc<Debts>,
    memory: Arc<Reserve>,
    settings: Arc<Settings>,
}

/// Leave to publish one command, with the memory that is reserved for it.
pub struct Admission<'a> {
    service: &'a PublishService,
    caller: &'a Caller,
    allowance: Arc<Allowance>,
}

impl PublishService {
    /// Publishes to this store.
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

    /// Publishes a command. The answer comes after the commit.
    pub async fn publish(
        &self,
        caller: &Caller,
        command: impl Into<Envelope>,
    ) -> Result<Receipt, Refused> {
        let admission = self.admit(caller, self.settings.body_limit_bytes).await?;
        admission.publish(command.into()).await
    }

    /// Lets a caller publish one command whose body, of at most so many bytes, is still to be read.
    pub async fn admit<'a>(
        &'a self,
        caller: &'a Caller,
        body_bytes: u64,
    ) -> Result<Admission<'a>, Refused> {
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

    /// Takes in a device's heartbeat. The answer comes after the commit of what it changed, if it changed anything.
    pub async fn beat(&self, caller: &Caller, device: &SubjectId) -> Result<Beat, Refused> {
        self.permit(caller.access(), &[(caller.school(), 1)])?;
        caller.reach_subject(device::KIND, device)?;
        let devices = std::slice::from_ref(device);
        let mut beats = self.presence.beats(caller.school(), devices).await?;
        Ok(beats.pop().expect("each heartbeat is answered")?)
    }

    /// Checks that somebody may publish so many commands now, in each of these schools.
    pub(super) fn permit(
        &self,
        access: &Access,
        counts: &[(SchoolId, u32)],
    ) -> Result<(), Refused> {
        access.require(Role::Worker)?;
        let taken = self.rates.take_all(counts, &access.subject, Instant::now());
        let most = self.settings.publishes_per_sec;
        Ok(taken.map_err(|wait| TooFast::Commands { most, wait })?)
    }

    /// Checks that a school has not produced more bytes of events than it may.
    pub(super) fn permit_bytes(&self, school: SchoolId) -> Result<(), TooFast> {
        let most = self.settings.event_bytes_per_sec;
        match self.debts.of(school, Instant::now()) {
            None => Ok(()),
            Some(wait) => Err(TooFast::Bytes { most, wait }),
        }
    }

    /// Reserves memory, and waits for it a while.
    pub(super) async fn reserve(&self, holder: Holder, bytes: u64) -> Result<Reserved, Refused> {
        Ok(self.memory.take(holder, bytes, RESERVE_WAIT).await?)
    }

    /// Returns how long publishing takes.
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

    /// Carries out commands whose callers have been authorized, in order.
    pub(super) async fn append(
        &self,
        school: SchoolId,
        mut envelopes: Vec<Envelope>,
        allowance: Arc<Allowance>,
    ) -> Result<Vec<Result<Receipt, CommandError>>, StoreError> {
        for envelope in &mut envelopes {
            self.presence.complete(school, envelope);
        }
        let commands = envelopes.len();
        let began = Instant::now();
        let receipts = self
            .publisher
            .batch_within(school, envelopes, allowance)
            .await;
        let refused = receipts.as_ref().map_or(commands, |own| {
            own.iter().filter(|own| own.is_err()).count()
        });
        tracing::debug!(
            school.id = %school,
            commands,
            refused,
            micros = began.elapsed().as_micros(),
            "commands were carried out"
        );
        let receipts = receipts?;
        // A caller that was answered finds its own report: the same event may come later by way of the log.
        for receipt in receipts.iter().flatten() {
            self.presence.observe(std::slice::from_ref(receipt.event()));
        }
        Ok(receipts)
    }
}

impl Admission<'_> {
    /// Publishes the command, if the caller's token reaches its subject. The answer comes after the commit.
    pub async fn publish(self, mut envelope: Envelope) -> Result<Receipt, Refused> {
        let (caller, school) = (self.caller, self.caller.school());
        caller.reach_subject(envelope.command.kind(), &envelope.subject)?;
        envelope.sub = Some(Arc::clone(caller.name()));
        let receipts = self
            .service
            .append(school, vec![envelope], self.allowance)
            .await?;
        let receipt = receipts.into_iter().next();
        Ok(receipt.expect("a store answers every command")?)
    }
}
