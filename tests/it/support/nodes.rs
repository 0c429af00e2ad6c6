//! Several nodes of one process over one database. Over Postgres (`TEST_STORE=postgres`), each node has a store of its own: its own
//! connections, its own cached states, and its own uptime clock. SQLite allows one store, so there the nodes share it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tidings::config::Settings;
use tidings::event::Event;
use tidings::log::{Committed, Store};
use tidings::store::postgres::{Address, PostgresStore};
use tidings::store::sqlite::SqliteStore;
use tidings::tasks::{Task, Tasks};
use tidings::uptime::UptimeClock;
use tidings::watchdog;

use super::store::{database_url, prepares};
use super::{Server, server_in, server_with};

/// Number of batches of events that may wait for [`SharedDatabase::observe`]'s observers.
const BATCHES: usize = 100;

type Observer = Box<dyn Fn(&[Arc<Event>]) + Send>;

/// Waits until what happened before is in the past for this clock: uptime is in milliseconds, and the clocks of nodes differ a
/// little.
pub(crate) async fn later(clock: &UptimeClock, all: &[UptimeClock]) {
    let now = all.iter().map(UptimeClock::now).max();
    while Some(clock.now()) <= now {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The database, and what all of its nodes have in common.
pub(crate) struct SharedDatabase {
    settings: Settings,
    notifiers: &'static [&'static str],
    observers: Arc<Mutex<Vec<Observer>>>,
    /// The one store, over SQLite.
    only: Mutex<Option<NodeStore>>,
    /// Those of the stores.
    clocks: Mutex<Vec<UptimeClock>>,
    /// Read the clocks.
    counting: Tasks,
    place: TempDir,
}

/// The store of a node, and what it commits.
#[derive(Clone)]
pub(crate) struct NodeStore {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) committed: Committed,
}

impl SharedDatabase {
    /// Creates an empty database, whose stores register these notifiers.
    pub(crate) fn new(settings: Settings, notifiers: &'static [&'static str]) -> SharedDatabase {
        SharedDatabase {
            settings,
            notifiers,
            observers: Arc::default(),
            only: Mutex::default(),
            clocks: Mutex::default(),
            counting: Tasks::default(),
            place: tempfile::tempdir().unwrap(),
        }
    }

    /// Calls this with all events that any store commits, as a bus that loses nothing would.
    pub(crate) fn observe(&self, observer: impl Fn(&[Arc<Event>]) + Send + 'static) {
        self.observers.lock().unwrap().push(Box::new(observer));
    }

    /// Returns the store of one more node.
    pub(crate) fn node(&self) -> NodeStore {
        let Some(url) = database_url(self.place.path()) else {
            let mut only = self.only.lock().unwrap();
            let open = |committed| -> Arc<dyn Store> {
                let path = self.place.path().join("test.db");
                let opened =
                    SqliteStore::open(&self.settings, &path, committed, self.notifiers).unwrap();
                Arc::new(opened)
            };
            return only.get_or_insert_with(|| self.opened(open)).clone();
        };
        self.opened(|committed| {
            let address = Address::parse(&url.into(), prepares()).unwrap();
            let opened =
                PostgresStore::open(&self.settings, address, committed, self.notifiers).unwrap();
            Arc::new(opened)
        })
    }

    /// Returns the uptime clocks of all stores.
    pub(crate) fn clocks(&self) -> Vec<UptimeClock> {
        self.clocks.lock().unwrap().clone()
    }

    fn opened(&self, open: impl FnOnce(Committed) -> Arc<dyn Store>) -> NodeStore {
        let (committed, mut batches) = Committed::channel(BATCHES);
        let store = open(committed.clone());
        let observers = Arc::clone(&self.observers);
        tokio::spawn(async move {
            while let Some(events) = batches.recv().await {
                let observers = observers.lock().unwrap();
                observers.iter().for_each(|observe| observe(&events));
            }
        });
        let clock = store.uptime();
        self.clocks.lock().unwrap().push(clock.clone());
        self.counting.supervise(Task::new("uptime"), move || {
            watchdog::count_uptime(clock.clone())
        });
        NodeStore { store, committed }
    }
}

/// Servers over one database: two over Postgres, one over SQLite.
pub(crate) struct Nodes {
    servers: Vec<Server>,
    turn: AtomicUsize,
}

impl Nodes {
    /// Starts the servers over an empty database.
    pub(crate) async fn start() -> Nodes {
        Nodes::start_in(Arc::new(tempfile::tempdir().unwrap())).await
    }

    /// Starts the servers over the database of this folder.
    pub(crate) async fn start_in(folder: Arc<TempDir>) -> Nodes {
        let url = database_url(folder.path());
        let mut servers = vec![server_in(folder, json!({})).await];
        if let Some(url) = url {
            servers.push(server_with(json!({ "database_url": url })).await);
        }
        Nodes {
            servers,
            turn: AtomicUsize::new(0),
        }
    }

    /// Returns the servers in turn, so that a report is decided by a node whose cached state is older than the last change.
    pub(crate) fn next(&self) -> &Server {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.servers[turn % self.servers.len()]
    }

    /// Stops the servers. Returns the folder of the database.
    pub(crate) async fn stop(self) -> Arc<TempDir> {
        let mut folders = Vec::new();
        for server in self.servers {
            folders.push(server.stop().await);
        }
        folders.remove(0)
    }
}
