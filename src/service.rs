//! The running server: the store, the hub and the tasks between them. A Rocket application manages it as state, and uses it
//! to publish and subscribe without HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use figment::Figment;
use tokio::time::Instant;

use crate::app::{
    GrantService, PingService, PublishService, ReadService, Stopping, SubscribeService,
};
use crate::auth::{KeyError, Keys};
use crate::bus::NodeId;
use crate::cluster::{Cluster, Differs, Identity, NodeHealth, ReadNodeHealth};
use crate::config::{ConfigError, DISPATCH_QUEUE, Database, READY_WAIT, Settings, TASKS_STOP_MAX};
use crate::crowd::{self, Crowd};
use crate::dispatch::{self, Dispatcher};
use crate::feed::Feed;
use crate::hub::Hub;
use crate::lease::{self, Lease};
use crate::log::nodes::Fingerprint;
use crate::log::{self, Committed, Log, Store, StoreError};
use crate::metrics::Metrics;
use crate::notify::{self, Notifier, NotifierError, Notifiers};
use crate::presence::{Presence, Together};
use crate::publish::Publisher;
use crate::rejections::Rejections;
use crate::relay::{self, Relay};
use crate::schedules::Schedules;
#[cfg(feature = "postgres")]
use crate::store::postgres::{self, PostgresStore};
use crate::store::sqlite::{self, OpenError, SqliteStore};
use crate::subscribe::Subscriber;
use crate::tasks::{Task, Tasks};
use crate::throttle::{Debts, RateLimit, Throttle};
use crate::watchdog;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A notifier is not valid.
    #[error(transparent)]
    Notifier(#[from] NotifierError),
    /// The database cannot be opened.
    #[error("database {0}")]
    Open(#[from] OpenError),
    /// The Postgres database cannot be opened.
    #[cfg(feature = "postgres")]
    #[error("database: {0}")]
    Postgres(#[from] postgres::OpenError),
    /// The Postgres database cannot be reached at the moment. A later attempt may succeed.
    #[error("{0}")]
    Unreachable(String),
    /// A running node that shares the database has a different secret.
    #[error(transparent)]
    Differs(#[from] Differs),
}

impl StartError {
    /// Adds where the setting at fault is set.
    pub(crate) fn found_in(self, figment: &Figment) -> StartError {
        #[cfg(feature = "postgres")]
        if let StartError::Postgres(postgres::OpenError::Store(StoreError::Unavailable(_))) = &self
        {
            let error = ConfigError::caused_by_setting(&self, "database_url", figment);
            return StartError::Unreachable(error.to_string());
        }
        let setting = match &self {
            StartError::Key(error) => error.setting(),
            StartError::Open(OpenError::InUse(_)) => None,
            StartError::Open(_) => Some(Settings::of_database(figment)),
            #[cfg(feature = "postgres")]
            StartError::Postgres(_) => Some("database_url"),
            StartError::Differs(differs) => Some(differs.setting),
            StartError::Config(ConfigError::Invalid { key, .. }) => Some(*key),
            StartError::Config(_) | StartError::Notifier(_) | StartError::Unreachable(_) => None,
        };
        match setting {
            Some(key) => ConfigError::caused_by_setting(&self, key, figment).into(),
            None => self,
        }
    }
}

/// Why the server is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database or the dispatcher did not answer in time.
    #[error("no answer within {} s", READY_WAIT.as_secs())]
    Late,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Stopping,
    /// A task of the server fails repeatedly.
    #[error("the server's task `{0}` keeps failing; the log has the details")]
    Failing(Arc<str>),
    /// A thread of the store has ended by a panic.
    #[error(
        "the server's thread `{0}` panicked, so nothing can be stored until the server is restarted; the log has the details"
    )]
    Dead(Arc<str>),
}

/// The bus state that a node without a bus reports.
const NO_BUS: &str = "none";

/// A running Tidings server. Share it in an `Arc`. Its tasks end when it is dropped.
pub struct Tidings {
    settings: Arc<Settings>,
    keys: Arc<Keys>,
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    /// The connection to the other nodes. `None` if the store is not shared.
    relay: Option<Arc<Relay>>,
    publications: Arc<PublishService>,
    subscriptions: Arc<SubscribeService>,
    reads: ReadService,
    grants: GrantService,
    pings: PingService,
    presence: Arc<Presence>,
    notifiers: Arc<Notifiers>,
    schedules: Arc<Schedules>,
    /// Held while this node deletes what is past retention.
    sweep: Arc<Lease>,
    cluster: Arc<Cluster>,
    metrics: Arc<Metrics>,
    rejections: Arc<Rejections>,
    committed: Committed,
    stopping: Arc<Stopping>,
    /// The address on which the server listens, once it does.
    address: Arc<OnceLock<SocketAddr>>,
    tasks: Tasks,
    /// The tasks of the dispatcher, which continue until the store has stopped.
    dispatching: Tasks,
}

impl Tidings {
    /// Opens the store and starts the tasks. Must be called within a Tokio runtime.
    pub fn start(settings: Settings) -> Result<Tidings, StartError> {
        Tidings::start_with(settings, Vec::new())
    }

    /// Like [`Tidings::start`], with the application's own notifiers in addition to those of the settings. Each needs a unique
    /// name, under which its position in the logs is stored.
    pub fn start_with(
        settings: Settings,
        notifiers: Vec<Arc<dyn Notifier>>,
    ) -> Result<Tidings, StartError> {
        let mut all = notify::configured(&settings.notifiers)?;
        all.extend(notifiers);
        notify::check_names(&all)?;
        let names: Vec<&str> = all.iter().map(|notifier| notifier.name()).collect();
        let database = settings.database()?;
        if let Database::File(path) = &database {
            sqlite::check_place(&settings, path)?;
            if settings.jwt_secret.is_none() {
                sqlite::check_trace(path, &Keys::kept_secret(&settings))?;
            }
        }
        let keys = Keys::find(&settings)?;
        let (committed, batches) = Committed::channel(DISPATCH_QUEUE);
        let choice = relay::check(&settings, &database)?;
        let store = open_store(&settings, database, committed.clone(), &names)?;
        let keys = Arc::new(keys.complete(&settings)?);
        let hub = Hub::new(
            settings.window_events.get(),
            settings.mailbox_capacity.get(),
        );
        let hub = Arc::new(match store.is_shared() {
            true => hub.of_shared_logs(),
            false => hub,
        });
        let feed = Arc::new(Feed::new(
            Arc::clone(&store) as Arc<dyn Log>,
            committed.clone(),
        ));
        let debts = Arc::new(Debts::new(RateLimit::for_event_bytes(&settings)));
        let publisher = Publisher::new(Arc::clone(&store), Arc::clone(&debts));
        let metrics = Arc::<Metrics>::default();
        let node = NodeId::generate();
        let secret = Fingerprint::of("jwt_secret", &keys.secret_digest());
        let relay = store.is_shared().then(|| {
            let log = Arc::clone(&store) as Arc<dyn Log>;
            let bus = choice.bus(log.epoch(), secret.clone());
            Relay::new(bus, node, log, Arc::clone(&hub), &committed)
        });
        let address = Arc::<OnceLock<SocketAddr>>::default();
        let cluster = {
            let identity = Identity::new(log::nodes::NodeId::stored(node.to_string()), secret);
            let health = node_health(&hub, &metrics, &committed, &address, relay.as_ref());
            Arc::new(Cluster::new(Arc::clone(&store), identity, health))
        };
        let presence = Arc::new(match store.is_shared() {
            false => Presence::new(Arc::clone(&store), publisher.clone()),
            true => {
                let terms = lease::Terms::default();
                let together = Together::new(&store, Arc::clone(&cluster), terms);
                Presence::among(Arc::clone(&store), publisher.clone(), together)
            }
        });
        let notifiers = Arc::new(Notifiers::new(&store, &feed, all));
        let tasks = Tasks::default();
        let dispatching = tasks.group();
        let schedules = Arc::new(Schedules::new(Arc::clone(&store)));
        let follow = (
            Arc::clone(&presence),
            Arc::clone(&notifiers),
            Arc::clone(&schedules),
        );
        let crowd = Crowd::new(dispatching.clone());
        let dispatcher = Arc::new(Dispatcher::new(
            batches,
            Arc::clone(&store) as Arc<dyn Log>,
            Arc::clone(&hub),
            crowd.clone(),
            vec![
                Box::new(move |events| follow.0.observe(events)),
                Box::new(move |events| follow.1.observe(events)),
                Box::new(move |events| follow.2.observe(events)),
            ],
            dispatching.clone(),
        ));
        dispatching.supervise(Task::new(dispatch::NAME).ends_itself(), move || {
            Arc::clone(&dispatcher).run()
        });
        let held_to = Arc::clone(&hub);
        dispatching.supervise(Task::new("held ticks"), move || {
            crowd::write_held_ticks(Arc::clone(&held_to), crowd.clone())
        });
        let rejections = Arc::<Rejections>::default();
        let stopping = Arc::new(Stopping::new(settings.reconnect_spread_ms.get()));
        let subscriber = Subscriber::new(feed, Arc::clone(&hub), &settings);
        let rates = Throttle::new(RateLimit::for_publishing(&settings));
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
            (Arc::clone(&metrics), Arc::clone(&rejections)),
            Arc::clone(&settings),
        );
        let publications = Arc::new(publications);
        let pings = PingService::new(
            Arc::clone(&store),
            Arc::clone(&publications),
            Arc::clone(&settings),
        );
        let terms = lease::Terms::default();
        let sweep = Lease::new(Arc::clone(&store), watchdog::SWEEP_LEASE, terms);
        let grants = GrantService::new(Arc::clone(&store), Arc::clone(&keys));
        let tidings = Tidings {
            keys,
            publications,
            pings,
            subscriptions: Arc::new(subscriptions),
            reads: ReadService::new(Arc::clone(&store)),
            grants,
            presence,
            notifiers,
            schedules,
            sweep: Arc::new(sweep),
            cluster,
            metrics,
            rejections,
            settings,
            store,
            hub,
            relay,
            committed,
            stopping,
            address,
            tasks,
            dispatching,
        };
        tidings.start_tasks();
        Ok(tidings)
    }

    /// Starts the background tasks.
    fn start_tasks(&self) {
        if let Some(relay) = &self.relay {
            // Like the dispatcher, it runs until the store has stopped.
            relay.start(&self.dispatching);
        }
        let cluster = Arc::clone(&self.cluster);
        self.supervise("nodes", move || Arc::clone(&cluster).watch());
        let presence = Arc::clone(&self.presence);
        self.supervise("presence", move || Arc::clone(&presence).watch());
        let presence = Arc::clone(&self.presence);
        self.supervise("presence of all", move || Arc::clone(&presence).keep_all());
        let clock = self.store.uptime();
        self.supervise("uptime", move || watchdog::count_uptime(clock.clone()));
        let store = Arc::clone(&self.store);
        self.supervise("uptime keeper", move || {
            watchdog::keep_uptime(Arc::clone(&store))
        });
        let (store, schedules) = (Arc::clone(&self.store), Arc::clone(&self.schedules));
        self.supervise("watchdog", move || {
            watchdog::watch_silence(Arc::clone(&store), Arc::clone(&schedules))
        });
        let schedules = Arc::clone(&self.schedules);
        self.supervise("schedules", move || Arc::clone(&schedules).watch());
        let hub = Arc::clone(&self.hub);
        self.supervise("idle schools", move || {
            watchdog::forget_idle(Arc::clone(&hub))
        });
        let (store, lease) = (Arc::clone(&self.store), Arc::clone(&self.sweep));
        let settle = Duration::from_secs(self.settings.clock_settle_secs.get());
        self.supervise("retention", move || {
            watchdog::sweep(Arc::clone(&store), Arc::clone(&lease), settle)
        });
        let (store, hub) = (Arc::clone(&self.store), Arc::clone(&self.hub));
        let committed = self.committed.clone();
        let metrics = Arc::clone(&self.metrics);
        self.supervise("metrics", move || {
            let (store, hub) = (Arc::clone(&store), Arc::clone(&hub));
            Arc::clone(&metrics).watch(store, hub, committed.clone())
        });
        let rejections = Arc::clone(&self.rejections);
        self.supervise("refusals", move || Arc::clone(&rejections).watch());
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

    /// Returns the tasks that run until [`Tidings::close`].
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Returns the settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the keys that verify credentials.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Returns the service that publishes on behalf of callers.
    pub fn publications(&self) -> &Arc<PublishService> {
        &self.publications
    }

    /// Returns the service that subscribes on behalf of callers.
    pub fn subscriptions(&self) -> &Arc<SubscribeService> {
        &self.subscriptions
    }

    /// Returns the service that reads on behalf of callers.
    pub fn reads(&self) -> &ReadService {
        &self.reads
    }

    /// Returns the service that creates tickets and links on behalf of callers.
    pub fn grants(&self) -> &GrantService {
        &self.grants
    }

    /// Returns the service that takes pings, and manages their keys.
    pub fn pings(&self) -> &PingService {
        &self.pings
    }

    /// Returns the presence of devices, which takes their heartbeats. Checks no permission.
    #[doc(hidden)]
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Returns the notifiers.
    pub fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }

    /// Returns the nodes that share the store.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Returns the server's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the log of rejected requests.
    pub fn rejections(&self) -> &Rejections {
        &self.rejections
    }

    /// Returns the hub, with the open streams.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Returns the store. Checks no permission.
    #[doc(hidden)]
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Returns the connection to the other nodes, if the database is one that nodes can share.
    pub fn relay(&self) -> Option<&Arc<Relay>> {
        self.relay.as_ref()
    }

    /// Returns the number of open streams.
    pub fn streams(&self) -> usize {
        self.hub.attached()
    }

    /// Returns the number of committed batches that have not been offered to the streams.
    pub fn undispatched(&self) -> u64 {
        self.committed.waiting()
    }

    /// Whether [`Tidings::stop`] has been called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.since().is_some()
    }

    /// Returns when [`Tidings::stop`] was first called.
    pub fn stopping_since(&self) -> Option<Instant> {
        self.stopping.since()
    }

    /// Records the address on which the server listens.
    pub(crate) fn listens_on(&self, address: SocketAddr) {
        self.address.get_or_init(|| address);
    }

    /// Returns the address on which the server listens, if it does.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    /// Checks the database and the dispatcher by a round trip through each, and that no task keeps failing.
    pub async fn ready(&self) -> Result<(), NotReady> {
        if self.is_stopping() {
            return Err(NotReady::Stopping);
        }
        if let Some(task) = self.tasks.failing() {
            return Err(NotReady::Failing(task));
        }
        if let Some(thread) = self.store.commit_metrics().dead() {
            return Err(NotReady::Dead(thread));
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

    /// Closes every stream. Streams that are opened later are closed at once. Commands are still accepted.
    pub fn stop(&self) {
        // Set this first: a stream that attaches after the scan below finds it set.
        self.stopping.begin();
        self.hub.close_all(|| self.stopping.closing());
    }

    /// Registers this node with the others that share the store. Fails if its settings conflict with those of a running
    /// node.
    pub async fn join(&self) -> Result<(), StartError> {
        match self.cluster.join().await {
            Ok(joined) => joined.map_err(Into::into),
            Err(error) => {
                tracing::warn!(%error, "this node could not read the list of nodes; retrying");
                Ok(())
            }
        }
    }

    /// Completes pending writes, closes the database, and ends every task. Tasks that do not end in time are named in the log
    /// and by [`Tasks::running`].
    pub async fn close(&self) -> Result<(), StoreError> {
        self.stop();
        let mut ended = self.tasks.end(TASKS_STOP_MAX).await;
        if let Err(error) = self.presence.flush().await {
            tracing::warn!(%error, "the times of the devices' last heartbeats could not be stored");
        }
        self.sweep.release().await;
        self.presence.release().await;
        self.cluster.leave().await;
        let closed = self.store.close().await;
        ended &= self.dispatching.end(TASKS_STOP_MAX).await;
        if !ended {
            let tasks = self.tasks.running().join(", ");
            tracing::warn!(tasks, "some tasks did not end in time");
        }
        closed
    }
}

/// Returns a function that reads the state of this node for its reports.
fn node_health(
    hub: &Arc<Hub>,
    metrics: &Arc<Metrics>,
    committed: &Committed,
    address: &Arc<OnceLock<SocketAddr>>,
    relay: Option<&Arc<Relay>>,
) -> ReadNodeHealth {
    let (hub, metrics) = (Arc::clone(hub), Arc::clone(metrics));
    let (committed, address) = (committed.clone(), Arc::clone(address));
    let relay = relay.map(Arc::clone);
    Box::new(move || {
        let bus = relay.as_ref().map(|relay| relay.status());
        // Found by comparing the logs. The lag of this node's own commits, `committed.behind()`, is known without that.
        let behind = relay.as_ref().map_or(0, |relay| relay.read().1.behind);
        // Known once the bus has been reached.
        let fingerprint = relay.as_ref().and_then(|relay| relay.fingerprint());
        let of_bus = |text: String| Fingerprint::of("bus_url", text.as_bytes());
        NodeHealth {
            address: address.get().map(ToString::to_string),
            streams: hub.attached() as u64,
            events_per_sec: metrics.events_per_sec(),
            lag: committed.behind().max(behind),
            bus: bus.unwrap_or_else(|| NO_BUS.to_owned()),
            bus_fingerprint: fingerprint.map(of_bus),
        }
    })
}

/// Opens the store that the settings name.
fn open_store(
    settings: &Settings,
    database: Database,
    committed: Committed,
    notifiers: &[&str],
) -> Result<Arc<dyn Store>, StartError> {
    match database {
        Database::File(path) => {
            let store = SqliteStore::open(settings, &path, committed, notifiers)?;
            Ok(Arc::new(store))
        }
        #[cfg(feature = "postgres")]
        Database::Postgres(url) => {
            let address = postgres::Address::parse(&url, settings.prepared_statements)
                .map_err(|error| ConfigError::Invalid {
                    key: "database_url",
                    problem: error.to_string(),
                })?;
            let store = PostgresStore::open(settings, address, committed, notifiers)?;
            Ok(Arc::new(store))
        }
        #[cfg(not(feature = "postgres"))]
        Database::Postgres(_) => Err(ConfigError::Invalid {
            key: "database_url",
            problem: "names a Postgres database, but this program was built without the feature `postgres`".into(),
        }
        .into()),
    }
}

impl Drop for Tidings {
    fn drop(&mut self) {
        self.tasks.cancel();
        self.dispatching.cancel();
    }
}
