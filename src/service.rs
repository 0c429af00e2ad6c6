//! The running whole: store, hub and the tasks between them. This is what a Rocket application manages as
//! state, and what publishes and subscribes without HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use figment::Figment;
use tokio::time::Instant;

use crate::app::{PublishService, Stopping, SubscribeService};
use crate::auth::{KeyError, Keys};
use crate::config::{ConfigError, DISPATCH_QUEUE, READY_WAIT, Settings, TASKS_STOP_MAX};
use crate::dispatch::{self, Dispatcher};
use crate::feed::Feed;
use crate::hub::Hub;
use crate::log::{Committed, Log, Store, StoreError};
use crate::notify::{self, Notifier, NotifierError, Notifiers};
use crate::presence::Presence;
use crate::publish::Publisher;
use crate::refusals::Refusals;
use crate::store::sqlite::{self, OpenError, SqliteStore};
use crate::subscribe::Subscriber;
use crate::tasks::{Task, Tasks};
use crate::throttle::{Debts, Pace, Throttle};
use crate::vitals::Vitals;
use crate::watchdog;

/// A start that failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A notifier.
    #[error(transparent)]
    Notifier(#[from] NotifierError),
    /// The database.
    #[error("database {0}")]
    Open(#[from] OpenError),
}

impl StartError {
    /// The same with the place in which the setting is set that led to it.
    pub(crate) fn found_in(self, figment: &Figment) -> StartError {
        let setting = match &self {
            StartError::Key(error) => error.setting(),
            StartError::Open(OpenError::InUse(_)) => None,
            StartError::Open(_) => Some(Settings::of_database(figment)),
            StartError::Config(_) | StartError::Notifier(_) => None,
        };
        match setting {
            Some(key) => ConfigError::led_to(&self, key, figment).into(),
            None => self,
        }
    }
}

/// What is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The dispatcher, or either of them is too slow.
    #[error("no answer within {} s", READY_WAIT.as_secs())]
    Late,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Stopping,
    /// A task of the server's own.
    #[error("the server's task `{0}` keeps failing; the log says more")]
    Failing(Arc<str>),
}

/// A running Tidings. Cheap to share by `Arc`; its tasks end with it.
pub struct Tidings {
    settings: Arc<Settings>,
    keys: Arc<Keys>,
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    publications: Arc<PublishService>,
    subscriptions: Arc<SubscribeService>,
    presence: Arc<Presence>,
    notifiers: Arc<Notifiers>,
    vitals: Arc<Vitals>,
    refusals: Arc<Refusals>,
    committed: Committed,
    stopping: Arc<Stopping>,
    /// Where it is served, once it is.
    address: OnceLock<SocketAddr>,
    tasks: Tasks,
    /// Of the dispatcher, which goes on until the store has stopped.
    dispatching: Tasks,
}

impl Tidings {
    /// Opens the store and starts to work. Needs a Tokio runtime around it.
    pub fn start(settings: Settings) -> Result<Tidings, StartError> {
        Tidings::start_with(settings, Vec::new())
    }

    /// The same with notifiers of the application's own in addition to those of the settings. Each needs a name of its
    /// own, by which its place in the logs is remembered.
    pub fn start_with(
        settings: Settings,
        notifiers: Vec<Arc<dyn Notifier>>,
    ) -> Result<Tidings, StartError> {
        let mut all = notify::configured(&settings.notifiers)?;
        all.extend(notifiers);
        notify::check_names(&all)?;
        let names: Vec<&str> = all.iter().map(|notifier| notifier.name()).collect();
        let path = settings.database_path()?;
        // Before a secret is made.
        sqlite::check_place(&settings, &path)?;
        if settings.jwt_secret.is_none() {
            sqlite::check_trace(&path, &Keys::kept_secret(&settings))?;
        }
        let keys = Arc::new(Keys::from_settings(&settings)?);
        let hub = Arc::new(Hub::new(settings.window_events, settings.mailbox_capacity));
        let (committed, batches) = Committed::channel(DISPATCH_QUEUE);
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(
            &settings,
            &path,
            committed.clone(),
            &names,
        )?);
        let feed = Arc::new(Feed::new(
            Arc::clone(&store) as Arc<dyn Log>,
            committed.clone(),
        ));
        let debts = Arc::new(Debts::new(Pace::of_producing(&settings)));
        let publisher = Publisher::new(Arc::clone(&store), Arc::clone(&debts));
        let presence = Arc::new(Presence::new(Arc::clone(&store), publisher.clone()));
        let notifiers = Arc::new(Notifiers::new(&store, &feed, all));
        let tasks = Tasks::default();
        let dispatching = tasks.group();
        let follow = (Arc::clone(&presence), Arc::clone(&notifiers));
        let dispatcher = Arc::new(Dispatcher::new(
            batches,
            Arc::clone(&store) as Arc<dyn Log>,
            Arc::clone(&hub),
            vec![
                Box::new(move |events| follow.0.observe(events)),
                Box::new(move |events| follow.1.observe(events)),
            ],
            dispatching.clone(),
        ));
        dispatching.supervise(Task::new(dispatch::NAME).ends_itself(), move || {
            Arc::clone(&dispatcher).run()
        });
        let vitals = Arc::<Vitals>::default();
        let refusals = Arc::<Refusals>::default();
        let stopping = Arc::new(Stopping::new(settings.reconnect_spread_ms));
        let subscriber = Subscriber::new(feed, Arc::clone(&hub), &settings);
        let rates = Throttle::new(Pace::of_publishing(&settings));
        let settings = Arc::new(settings);
        let publications = PublishService::new(
            Arc::clone(&store),
            publisher,
            Arc::clone(&presence),
            rates,
            debts,
            Arc::clone(&settings),
        );
        let subscriptions = SubscribeService::new(
            Arc::clone(&store),
            Arc::clone(&keys),
            subscriber,
            Arc::clone(&stopping),
            (Arc::clone(&vitals), Arc::clone(&refusals)),
            Arc::clone(&settings),
        );
        let tidings = Tidings {
            keys,
            publications: Arc::new(publications),
            subscriptions: Arc::new(subscriptions),
            presence,
            notifiers,
            vitals,
            refusals,
            settings,
            store,
            hub,
            committed,
            stopping,
            address: OnceLock::new(),
            tasks,
            dispatching,
        };
        tidings.start_tasks();
        Ok(tidings)
    }

    /// Starts what happens without anybody asking.
    fn start_tasks(&self) {
        let presence = Arc::clone(&self.presence);
        self.supervise("presence", move || Arc::clone(&presence).watch());
        let clock = self.store.uptime();
        self.supervise("uptime", move || watchdog::count_uptime(clock.clone()));
        let store = Arc::clone(&self.store);
        self.supervise("uptime keeper", move || {
            watchdog::keep_uptime(Arc::clone(&store))
        });
        let store = Arc::clone(&self.store);
        self.supervise("watchdog", move || {
            watchdog::watch_silence(Arc::clone(&store))
        });
        let (store, hub) = (Arc::clone(&self.store), Arc::clone(&self.hub));
        let settle = Duration::from_secs(self.settings.clock_settle_secs);
        self.supervise("retention", move || {
            watchdog::sweep(Arc::clone(&store), Arc::clone(&hub), settle)
        });
        let (store, hub) = (Arc::clone(&self.store), Arc::clone(&self.hub));
        let committed = self.committed.clone();
        let vitals = Arc::clone(&self.vitals);
        self.supervise("metrics", move || {
            let (store, hub) = (Arc::clone(&store), Arc::clone(&hub));
            Arc::clone(&vitals).watch(store, hub, committed.clone())
        });
        let refusals = Arc::clone(&self.refusals);
        self.supervise("refusals", move || Arc::clone(&refusals).watch());
        if self.keys.is_watched() {
            let keys = Arc::clone(&self.keys);
            self.supervise("keys", move || Arc::clone(&keys).watch());
        }
        self.notifiers.start(&self.tasks);
    }

    fn supervise<F>(&self, name: &'static str, start: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.supervise(Task::new(name), start);
    }

    /// What runs in the background until [`Tidings::close`].
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Verifies credentials.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Publishes on behalf of callers.
    pub fn publications(&self) -> &Arc<PublishService> {
        &self.publications
    }

    /// Subscribes on behalf of callers.
    pub fn subscriptions(&self) -> &Arc<SubscribeService> {
        &self.subscriptions
    }

    /// Takes in the beats of devices.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Those who are told of what happens.
    pub fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }

    /// The server's own figures.
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// What the log says of refusals.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Who listens.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Reads.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        self.hub.attached()
    }

    /// How many committed batches the streams have not been offered yet.
    pub fn undispatched(&self) -> u64 {
        self.committed.waiting()
    }

    /// Whether [`Tidings::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.since().is_some()
    }

    /// When [`Tidings::stop`] was called for the first time.
    pub fn stopping_since(&self) -> Option<Instant> {
        self.stopping.since()
    }

    /// Notes where it is served.
    pub(crate) fn listens_on(&self, address: SocketAddr) {
        self.address.get_or_init(|| address);
    }

    /// Where it is served, if it is.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    /// Whether database and dispatcher work, by a round trip through each, and no task keeps failing.
    pub async fn ready(&self) -> Result<(), NotReady> {
        if self.is_stopping() {
            return Err(NotReady::Stopping);
        }
        if let Some(task) = self.tasks.failing() {
            return Err(NotReady::Failing(task));
        }
        let round_trips = async {
            self.store.ping().await?;
            self.committed.round_trip().await?;
            Ok(())
        };
        tokio::time::timeout(READY_WAIT, round_trips)
            .await
            .map_err(|_| NotReady::Late)?
    }

    /// Tells every stream to close. Those that open later are told so at once; publications are still answered.
    pub fn stop(&self) {
        // Before anybody is told: a stream that attaches after the walk finds it set.
        self.stopping.begin();
        self.hub.close_all(|| self.stopping.farewell());
    }

    /// Finishes what was published, lets go of the database, and ends every task. Tasks that do not end in time are named in
    /// the log, and by [`Tasks::running`].
    pub async fn close(&self) -> Result<(), StoreError> {
        self.stop();
        let mut ended = self.tasks.end(TASKS_STOP_MAX).await;
        if let Err(error) = self.presence.flush().await {
            tracing::warn!(%error, "when devices were last heard of could not be written down");
        }
        let closed = self.store.close().await;
        ended &= self.dispatching.end(TASKS_STOP_MAX).await;
        if !ended {
            let tasks = self.tasks.running().join(", ");
            tracing::warn!(tasks, "some tasks did not end in time");
        }
        closed
    }
}

impl Drop for Tidings {
    fn drop(&mut self) {
        self.tasks.cancel();
        self.dispatching.cancel();
    }
}
