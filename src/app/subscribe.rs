//! The use case *subscribe*: what a credential covers, which subjects exist, and how many streams may be open.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use serde_json::{Map, Value};

use super::caller::Caller;
use super::publish::Rejected;
use super::stopping::Stopping;
use crate::auth::{Access, AuthError, Keys};
use crate::config::{READER_MAX_CHARS, Settings};
use crate::hub::Reader;
use crate::id::{Channel, Cursor, SchoolId};
use crate::log::{Store, StoreError};
use crate::metrics::Metrics;
use crate::rejections::{Rejections, RequestSource};
use crate::scope::Scope;
use crate::subscribe::{Request, Subscriber, Subscription};

/// Opens subscriptions on behalf of callers.
pub struct SubscribeService {
    store: Arc<dyn Store>,
    keys: Arc<Keys>,
    subscriber: Subscriber,
    stopping: Arc<Stopping>,
    metrics: Arc<Metrics>,
    rejections: Arc<Rejections>,
    settings: Arc<Settings>,
}

/// How a caller wants to listen.
pub struct Listen {
    /// The transport and the client's address. `user` is overwritten with the caller's name.
    pub reader: Reader,
    /// The cursor to resume from. If absent, the stream begins with a snapshot.
    pub from: Option<Cursor>,
    /// The shortest interval between two ticks of a subject. Zero delivers every retained event.
    pub tick: Duration,
    /// Whether to begin with `connected`, and which fields to add to it.
    pub welcome: Option<Map<String, Value>>,
}

/// The proof that a caller's credential covers a scope. Only [`SubscribeService::allow`] and
/// [`SubscribeService::allow_existing`] create one.
pub struct AllowedScope<'a> {
    caller: &'a Caller,
    scope: Scope,
}

impl SubscribeService {
    /// Creates a service that subscribes to this store through `subscriber`.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<Keys>,
        subscriber: Subscriber,
        stopping: Arc<Stopping>,
        (metrics, rejections): (Arc<Metrics>, Arc<Rejections>),
        settings: Arc<Settings>,
    ) -> SubscribeService {
        SubscribeService {
            store,
            keys,
            subscriber,
            stopping,
            metrics,
            rejections,
            settings,
        }
    }

    /// Returns the settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the histogram of how long reading a page of a replay takes.
    pub fn replay_duration(&self) -> &Histogram {
        self.subscriber.feed().replay_duration()
    }

    /// Checks that the caller's credential covers all of the scope.
    pub fn allow<'a>(
        &self,
        caller: &'a Caller,
        scope: Scope,
    ) -> Result<AllowedScope<'a>, AuthError> {
        match uncovered(caller.access(), scope.school, scope.channels()) {
            Some((_, error)) => Err(error),
            None => Ok(AllowedScope { caller, scope }),
        }
    }

    /// Like [`SubscribeService::allow`], but also checks that the subjects in the scope exist in its school. The permissions
    /// are checked first, so that a rejection does not reveal whether a subject exists.
    pub async fn allow_existing<'a>(
        &self,
        caller: &'a Caller,
        scope: Scope,
    ) -> Result<AllowedScope<'a>, Rejected> {
        let allowed = self.allow(caller, scope)?;
        let scope = &allowed.scope;
        let missing = self.missing(scope.school, scope.channels()).await?;
        match missing.into_iter().next() {
            Some(channel) => Err(Rejected::Missing(channel)),
            None => Ok(allowed),
        }
    }

    /// Opens a stream of the scope. The stream ends with the credential.
    pub fn open(
        &self,
        allowed: AllowedScope<'_>,
        listen: Listen,
    ) -> Result<Subscription, Rejected> {
        let AllowedScope { caller, scope } = allowed;
        let access = caller.access();
        let Listen {
            mut reader,
            from,
            tick,
            welcome,
        } = listen;
        let user = &access.subject;
        reader.user = match user.char_indices().nth(READER_MAX_CHARS) {
            None => Arc::clone(user),
            Some((end, _)) => user[..end].into(),
        };
        let mut subscription = self.subscriber.open(Request {
            scope,
            reader,
            from,
            tick,
            expires_at: access.expires_at,
            reconnects_until: access.reconnects_until,
            welcome,
        })?;
        // The shutdown may have notified the open streams before this one was opened. It is closed like the others rather
        // than rejected: an `EventSource` never reconnects after a 503.
        if self.stopping.since().is_some() {
            subscription.close(self.stopping.closing());
        }
        Ok(subscription)
    }

    /// Returns the channels whose subject does not exist in this school.
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

    /// Returns the current end of a school's log.
    pub async fn here(&self, school: SchoolId) -> Result<Cursor, StoreError> {
        let place = self.store.head(school).await?;
        Ok(Cursor::new(self.store.epoch(), place))
    }

    /// Returns what a new token allows, if it covers the whole scope of a stream.
    pub fn renewed(&self, token: &str, scope: &Scope) -> Result<Access, AuthError> {
        let fresh = self.keys.verify(token)?;
        fresh.school(Some(scope.school))?;
        match uncovered(&fresh, scope.school, scope.channels()) {
            Some((_, error)) => Err(error),
            None => Ok(fresh),
        }
    }

    /// Counts and logs a rejected message of a stream, with the setting whose limit was reached.
    pub fn note_rejection(
        &self,
        source: Option<&RequestSource>,
        code: &'static str,
        limit: Option<&'static str>,
    ) {
        self.metrics.rejected(code, limit);
        if let Some(source) = source {
            self.rejections.request(source, code);
        }
    }

    /// Counts and logs a credential that is not valid or not sufficient, with the reason.
    pub fn note_denial(&self, source: Option<&RequestSource>, code: &'static str, reason: &str) {
        self.metrics.rejected(code, None);
        if let Some(source) = source {
            self.rejections.credential(source, code, reason);
        }
    }
}

/// Returns the first of these channels that the credential does not cover, and why.
pub(crate) fn uncovered<'a>(
    access: &Access,
    school: SchoolId,
    channels: &'a [Channel],
) -> Option<(&'a Channel, AuthError)> {
    let refused = |channel| Some((channel, access.authorize(school, channel).err()?));
    channels.iter().find_map(refused)
}
