//! The use case *subscribe* for anybody: what a credential reaches, what exists, how many streams there may be.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use serde_json::{Map, Value};

use super::caller::Caller;
use super::publish::Refused;
use super::stopping::Stopping;
use crate::auth::{Access, AuthError, Keys};
use crate::config::{READER_MAX_CHARS, Settings};
use crate::hub::Reader;
use crate::id::{Channel, Cursor, SchoolId};
use crate::log::{Store, StoreError};
use crate::refusals::{Refusals, RequestSource};
use crate::scope::Scope;
use crate::subscribe::{Request, Subscriber, Subscription};
use crate::vitals::Vitals;

/// Subscribes for callers.
pub struct SubscribeService {
    store: Arc<dyn Store>,
    keys: Arc<Keys>,
    subscriber: Subscriber,
    stopping: Arc<Stopping>,
    vitals: Arc<Vitals>,
    refusals: Arc<Refusals>,
    settings: Arc<Settings>,
}

/// How somebody wants to listen.
pub struct Listen {
    /// Over which transport, and from where. The user is the caller's.
    pub reader: Reader,
    /// From where on; from a snapshot if absent.
    pub from: Option<Cursor>,
    /// Least time between two ticks of a subject. Zero: every retained event.
    pub tick: Duration,
    /// Whether to begin with `connected`, and what else to say in it.
    pub greet: Option<Map<String, Value>>,
}

impl SubscribeService {
    /// Subscribes to what this store has and this subscriber is offered.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<Keys>,
        subscriber: Subscriber,
        stopping: Arc<Stopping>,
        (vitals, refusals): (Arc<Vitals>, Arc<Refusals>),
        settings: Arc<Settings>,
    ) -> SubscribeService {
        SubscribeService {
            store,
            keys,
            subscriber,
            stopping,
            vitals,
            refusals,
            settings,
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns how long reading a page of a replay takes.
    pub fn replay_duration(&self) -> &Histogram {
        self.subscriber.feed().replay_duration()
    }

    /// Opens a stream of what is in scope, if the caller's credential reaches all of it. It ends with the credential.
    pub fn open(
        &self,
        caller: &Caller,
        scope: Scope,
        listen: Listen,
    ) -> Result<Subscription, Refused> {
        let access = caller.access();
        for channel in scope.channels() {
            caller.reach(channel)?;
        }
        let Listen {
            mut reader,
            from,
            tick,
            greet,
        } = listen;
        let user: String = access.subject.chars().take(READER_MAX_CHARS).collect();
        reader.user = user.into();
        let mut subscription = self.subscriber.open(Request {
            scope,
            reader,
            from,
            tick,
            expires_at: access.expires_at,
            returns_until: access.returns_until,
            greet,
        })?;
        // A stream that opens while the server stops may have missed the word to close. It is told as the others are: an
        // `EventSource` would never come back after a 503.
        if self.stopping.since().is_some() {
            subscription.close(self.stopping.farewell());
        }
        Ok(subscription)
    }

    /// The subjects among these channels that the school does not have, whether another school has them or none.
    pub async fn missing(
        &self,
        school: SchoolId,
        channels: &[Channel],
    ) -> Result<Vec<Channel>, StoreError> {
        let mut missing = Vec::new();
        for channel in channels {
            if let Channel::Subject(kind, id) = channel
                && !self.store.exists(school, *kind, id.clone()).await?
            {
                missing.push(channel.clone());
            }
        }
        Ok(missing)
    }

    /// Where a school's log ends now.
    pub async fn here(&self, school: SchoolId) -> Result<Cursor, StoreError> {
        Ok(Cursor {
            epoch: self.store.epoch(),
            place: self.store.head(school).await?,
        })
    }

    /// What a fresh token allows, if it reaches all that a stream tells.
    pub fn renewed(&self, token: &str, scope: &Scope) -> Result<Access, AuthError> {
        let fresh = self.keys.verify(token)?;
        fresh.school(Some(scope.school))?;
        for channel in scope.channels() {
            fresh.reach(scope.school, channel)?;
        }
        Ok(fresh)
    }

    /// Counts a message of a stream that was refused, with the setting that was reached, and tells the log.
    pub fn note_refusal(
        &self,
        source: Option<&RequestSource>,
        code: &'static str,
        limit: Option<&'static str>,
    ) {
        self.vitals.refused(code, limit);
        if let Some(source) = source {
            self.refusals.request(source, code);
        }
    }

    /// The same for a credential that does not reach so far, or is none: the log is told why.
    pub fn note_denial(&self, source: Option<&RequestSource>, code: &'static str, reason: &str) {
        self.vitals.refused(code, None);
        if let Some(source) = source {
            self.refusals.credential(source, code, reason);
        }
    }
}
