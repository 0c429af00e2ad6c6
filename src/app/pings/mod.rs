//! The use case *ping*: one line of a script reports on a job, with a key in its URL instead of a token.
//!
//! ```text
//! key ─▶ rate limit of the address ─▶ lookup in the key's school ─▶ rate limit of the key ─▶ admit, like any command
//!      ─▶ the run (`rid`, or the key's last one) ─▶ plan (pure) ─▶ publish
//! ```
//!
//! Each run is a job. Its id consists of the type, the key's id and the run's own name, so two keys never report on the
//! same job, and a repeated ping finds the job that the first one created.

mod plan;
mod report;

use std::net::IpAddr;
use std::sync::Arc;

use chrono::{SubsecRound, Utc};
use tokio::time::Instant;

pub use self::plan::{EXIT_CODE, Ping, Plan, SUPERSEDED_CODE};
pub use self::report::{Ending, NoReport, Report};
use super::caller::Caller;
use super::publish::{Admission, PublishService, Rejected, TooFast};
use crate::auth::{Access, Role, Schools};
use crate::config::{PING_RID_MAX_BYTES, PING_TRIES, PINGS_PER_ADDRESS, Secret, Settings};
use crate::id::{Channel, SchoolId, SubjectId};
use crate::kind::job::{self, JobType};
use crate::kind::{self, Command, RuleError};
use crate::log::pings::{KeyDigest, Numbers, PingKey, PingKeyId, school_of};
use crate::log::{CommandError, Envelope, Receipt, Store, StoreError};
use crate::throttle::{RateLimit, Throttle, network};

/// Why a ping had no effect.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PingRejected {
    /// The key is unknown, or it was revoked.
    #[error("the ping key is unknown or was revoked")]
    UnknownKey,
    /// The URL does not end with a report.
    #[error(transparent)]
    NoReport(#[from] NoReport),
    /// The id of a run cannot be used.
    #[error("`rid` must have 1 to {PING_RID_MAX_BYTES} characters from A-Z a-z 0-9 . _ : ~ -")]
    Rid,
    /// The ping was rejected like any other command.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

impl From<StoreError> for PingRejected {
    fn from(error: StoreError) -> PingRejected {
        PingRejected::Rejected(error.into())
    }
}

/// Takes pings, and manages their keys.
pub struct PingService {
    store: Arc<dyn Store>,
    publications: Arc<PublishService>,
    address_rates: Throttle,
    key_rates: Throttle,
    settings: Arc<Settings>,
}

/// A key that exists, and the caller that it stands for. The ping is within the rate limits.
pub struct PingCaller {
    key: PingKey,
    caller: Caller,
}

impl PingService {
    /// Creates a service that reports through `publications`.
    pub fn new(
        store: Arc<dyn Store>,
        publications: Arc<PublishService>,
        settings: Arc<Settings>,
    ) -> PingService {
        PingService {
            store,
            publications,
            address_rates: Throttle::new(RateLimit::for_pings_of_address()),
            key_rates: Throttle::new(RateLimit::for_pings(&settings)),
            settings,
        }
    }

    /// Finds a key, for a client at this address. The time that this takes does not depend on how much of the key is
    /// correct.
    pub async fn caller(
        &self,
        key: &str,
        address: Option<IpAddr>,
    ) -> Result<PingCaller, PingRejected> {
        let school = school_of(key).ok_or(PingRejected::UnknownKey)?;
        let now = Instant::now();
        let address = address.map_or_else(String::new, |address| network(address).to_string());
        let taken = self.address_rates.take(school, &address, 1, now);
        taken.map_err(|wait| too_fast("from this address", None, PINGS_PER_ADDRESS, wait))?;
        let key = self.store.ping_key(school, KeyDigest::of(key)).await?;
        let key = key.ok_or(PingRejected::UnknownKey)?;
        let max_per_sec = self.settings.pings_per_sec;
        let taken = self.key_rates.take(school, key.id.as_str(), 1, now);
        taken
            .map_err(|wait| too_fast("with this key", Some("pings_per_sec"), max_per_sec, wait))?;
        let access = Access {
            subject: format!("ping:{}", key.id).into(),
            schools: Schools::One(school),
            role: Role::Worker,
            channels: None,
            expires_at: None,
            reconnects_until: None,
        };
        let caller = Caller::new(access, None).map_err(Rejected::from)?;
        Ok(PingCaller { key, caller })
    }

    /// Admits a ping before its body is read.
    pub async fn admit<'a>(
        &'a self,
        caller: &'a PingCaller,
        body_bytes: u64,
    ) -> Result<Admission<'a>, Rejected> {
        self.publications.admit(&caller.caller, body_bytes).await
    }

    /// Carries out a ping. Returns after the commit.
    pub async fn ping(
        &self,
        caller: &PingCaller,
        admission: Admission<'_>,
        ping: &Ping,
    ) -> Result<Receipt, PingRejected> {
        let school = caller.caller.school();
        let mut key = caller.key.clone();
        for attempt in 1.. {
            let (run, id) = key.run_of(ping)?;
            let stored = self.store.subject(school, job::KIND, id.clone()).await?;
            let job = stored.as_ref().and_then(|stored| stored.state.job());
            // A run that has begun can have no job yet: the ping that began it is about to create the job, or failed
            // before it could.
            let is_begun = ping.rid.is_some() || run > 0;
            let now = Utc::now().trunc_subsecs(3);
            let mut envelopes = Vec::new();
            let at = |id: &SubjectId, command| Envelope::new(id.clone(), Command::Job(command));
            match ping.plan(&id, &key.job_type, job, now) {
                Plan::Same(commands) if is_begun => {
                    envelopes.extend(commands.into_iter().map(|command| at(&id, command)));
                }
                Plan::Repeated => {
                    let event = stored
                        .map(|stored| stored.event)
                        .ok_or(StoreError::Stopped)?;
                    return Ok(Receipt::Unchanged(event));
                }
                plan => {
                    if !self
                        .store
                        .begin_ping_run(school, key.id.clone(), run)
                        .await?
                    {
                        // Another ping began it.
                        let found = self.store.ping_key(school, key.digest.clone()).await?;
                        key = found.ok_or(PingRejected::UnknownKey)?;
                        if attempt < PING_TRIES {
                            continue;
                        }
                        return Err(Rejected::from(StoreError::NotCommitted).into());
                    }
                    key.run = run + 1;
                    let next = key.run_of(ping)?.1;
                    if let Plan::Next {
                        before: Some(end), ..
                    } = plan
                    {
                        envelopes.push(at(&id, end));
                    }
                    // Plan again, with the id of the next run.
                    if let Plan::Same(commands) = ping.plan(&next, &key.job_type, None, now) {
                        envelopes.extend(commands.into_iter().map(|command| at(&next, command)));
                    }
                }
            }
            let receipts = admission.publish_all(envelopes).await?;
            let last = receipts.into_iter().next_back();
            match last.expect("there was a command, and a store answers every one") {
                Ok(receipt) => return Ok(receipt),
                // Another ping of the run was carried out first: plan again from the state that it left.
                Err(CommandError::Rule(error)) if attempt < PING_TRIES && is_conflict(&error) => {}
                Err(error) => return Err(Rejected::from(error).into()),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Creates a key for jobs of a type. Returns the record that is stored, and the secret key.
    pub async fn create_key(
        &self,
        caller: &Caller,
        job_type: JobType,
        numbers: Numbers,
    ) -> Result<(PingKey, Secret), Rejected> {
        let school = authorize(caller)?;
        let (key, secret) = PingKey::generate(
            school,
            job_type,
            numbers,
            caller.name(),
            Utc::now().trunc_subsecs(3),
        );
        let most = self.settings.ping_keys_per_school.get();
        match self.store.add_ping_key(school, key.clone(), most).await? {
            true => Ok((key, secret)),
            false => Err(RuleError::TooMany {
                collection: "ping keys",
                most,
                setting: Some("ping_keys_per_school"),
            }
            .into()),
        }
    }

    /// Returns the keys of the caller's school, the newest first.
    pub async fn keys(&self, caller: &Caller) -> Result<Vec<PingKey>, Rejected> {
        let school = authorize(caller)?;
        Ok(self.store.ping_keys(school).await?)
    }

    /// Revokes a key. Returns whether the caller's school had it. An id in the wrong format counts as one that does not
    /// exist.
    pub async fn revoke_key(&self, caller: &Caller, id: &str) -> Result<bool, Rejected> {
        let school = authorize(caller)?;
        match id.parse::<PingKeyId>() {
            Ok(id) => Ok(self.store.remove_ping_key(school, id).await?),
            Err(_) => Ok(false),
        }
    }
}

/// Anyone who has a key can create jobs of its type until it is revoked, even after its creator's token has expired. So
/// only an admin of all jobs of the school can create one.
fn authorize(caller: &Caller) -> Result<SchoolId, Rejected> {
    caller.require(Role::Admin)?;
    caller.authorize(&Channel::Collection(job::KIND))?;
    Ok(caller.school())
}

fn too_fast(
    whose: &'static str,
    setting: Option<&'static str>,
    most: u32,
    wait: std::time::Duration,
) -> Rejected {
    TooFast::Pings {
        whose,
        setting,
        most,
        wait,
    }
    .into()
}

/// Whether a rule rejected a command because another command has changed the job in the meantime.
fn is_conflict(error: &RuleError) -> bool {
    matches!(
        error,
        RuleError::AlreadyExists { .. }
            | RuleError::Finished { .. }
            | RuleError::IllegalTransition { .. }
    )
}

impl PingCaller {
    /// Parses the segments of the path after the key.
    pub fn report(&self, segments: &[&str]) -> Result<Report, PingRejected> {
        Ok(Report::read(segments, self.key.numbers)?)
    }
}

impl PingKey {
    /// Returns the number of the run to which a ping belongs, and the id of its job. If the ping names its run, the
    /// number is that of the key's last run.
    pub(crate) fn run_of(&self, ping: &Ping) -> Result<(u64, SubjectId), PingRejected> {
        let (job_type, key) = (self.job_type.as_str(), &self.id);
        let id = match &ping.rid {
            // The tilde keeps named runs apart from numbered ones, even if the `rid` is a number.
            Some(rid) if kind::is_plain_name(rid, PING_RID_MAX_BYTES) => {
                format!("{job_type}:{key}~{rid}")
            }
            Some(_) => return Err(PingRejected::Rid),
            None => format!("{job_type}:{key}:{}", self.run),
        };
        Ok((self.run, id.parse().map_err(|_| PingRejected::Rid)?))
    }
}
