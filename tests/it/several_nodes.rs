//! What several nodes do at once over one store: here, several tasks that know nothing of one another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tidings::config::Settings;
use tidings::id::SchoolId;
use tidings::kind::{self, job};
use tidings::lease::{Lease, Terms};
use tidings::log::{Committed, Envelope, Store};
use tidings::scope::Scope;
use tidings::store::sqlite::SqliteStore;
use tidings::tasks::{Task, Tasks};
use tidings::watchdog;

use crate::support::until;

const NODES: usize = 3;

struct Shared {
    store: Arc<dyn Store>,
    _place: TempDir,
}

fn school() -> SchoolId {
    1.try_into().unwrap()
}

fn shared(settings: &Settings) -> Shared {
    let place = tempfile::tempdir().unwrap();
    let (committed, mut batches) = Committed::channel(100);
    tokio::spawn(async move { while batches.recv().await.is_some() {} });
    let path = place.path().join("test.db");
    let store = SqliteStore::open(settings, &path, committed, &[]).unwrap();
    Shared {
        store: Arc::new(store),
        _place: place,
    }
}

fn create(id: &str, mut body: Value) -> Envelope {
    body["job_type"] = "t".into();
    let create = job::Command::Create(serde_json::from_value(body).unwrap());
    Envelope::new(id.parse().unwrap(), kind::Command::Job(create))
}

impl Shared {
    async fn append(&self, envelopes: Vec<Envelope>) {
        for answer in self.store.append(school(), envelopes).await.unwrap() {
            answer.unwrap();
        }
    }

    /// Returns the statuses that each subject has had.
    async fn history(&self) -> HashMap<String, Vec<&'static str>> {
        let mut told: HashMap<String, Vec<&'static str>> = HashMap::new();
        let scope = Arc::new(Scope::new(school(), [kind::channel("jobs").unwrap()]));
        let mut after = 0;
        loop {
            let page = self.store.replay(Arc::clone(&scope), after, false).await;
            let page = page.unwrap();
            for event in &page.events {
                let own = told.entry(event.subject.to_string()).or_default();
                own.push(event.draft.status);
            }
            if page.through == page.head {
                return told;
            }
            after = page.through.seq;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchdogs_of_several_nodes_end_each_silent_job_once() {
    let shared = shared(&Settings::default());
    let silent = json!({"status": "in_progress", "timeout_secs": 1, "stall_after_secs": 0});
    let ids = (0..300).map(|number| format!("j{number}"));
    let envelopes = ids.map(|id| create(&id, silent.clone())).collect();
    shared.append(envelopes).await;
    let tasks = Tasks::default();
    for _ in 0..NODES {
        let store = Arc::clone(&shared.store);
        tasks.supervise(Task::new("watchdog"), move || {
            watchdog::watch_silence(Arc::clone(&store))
        });
    }
    let clock = shared.store.uptime();
    until("all have ended", async || {
        let counts = shared.store.counts(school(), job::KIND).await.unwrap();
        clock.now();
        counts.contains(&("failed", 300))
    })
    .await;
    // Whatever the others were about to do, they have done when they have ended.
    assert!(tasks.end(Duration::from_secs(30)).await);
    shared.store.ping().await.unwrap();
    for (id, statuses) in shared.history().await {
        assert_eq!(statuses, ["in_progress", "failed"], "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sweeps_at_once_delete_what_one_would_and_under_the_lease_one_sweeps() {
    let settings = Settings {
        retention_events: 100,
        job_retention_secs: 1,
        ..Settings::default()
    };
    let shared = shared(&settings);
    let running = json!({"status": "in_progress"});
    for part in 0..4 {
        let ids = (0..500).map(|number| format!("j{part}-{number}"));
        let envelopes = ids.map(|id| create(&id, running.clone())).collect();
        shared.append(envelopes).await;
    }
    let now = chrono::Utc::now();
    let sweeps = (0..NODES).map(|_| {
        let store = Arc::clone(&shared.store);
        tokio::spawn(async move { while store.sweep(now).await.unwrap() {} })
    });
    futures_util::future::try_join_all(sweeps).await.unwrap();
    let bounds = shared.store.bounds(school()).await.unwrap();
    assert_eq!((bounds.floor.seq, bounds.head.seq), (1_900, 2_000));
    assert_eq!(shared.history().await.len(), 100);
    let counts = shared.store.counts(school(), job::KIND).await.unwrap();
    assert_eq!(counts, [("in_progress", 2_000)], "what goes on is kept");

    let tasks = Tasks::default();
    let terms = Terms::default();
    let leases: Vec<Arc<Lease>> = (0..NODES)
        .map(|_| {
            let store = Arc::clone(&shared.store);
            Arc::new(Lease::new(store, watchdog::SWEEP_LEASE, terms))
        })
        .collect();
    for lease in &leases {
        let (store, lease) = (Arc::clone(&shared.store), Arc::clone(lease));
        tasks.supervise(Task::new("retention"), move || {
            watchdog::sweep(Arc::clone(&store), Arc::clone(&lease), Duration::ZERO)
        });
    }
    let holders = || leases.iter().filter(|lease| lease.is_held()).count();
    until("one of them sweeps", async || holders() == 1).await;
    let envelopes = (0..50)
        .map(|number| create(&format!("k{number}"), running.clone()))
        .collect();
    shared.append(envelopes).await;
    until("it sweeps on", async || {
        shared.store.bounds(school()).await.unwrap().floor.seq == 1_950
    })
    .await;
    assert_eq!(holders(), 1);
    assert!(tasks.end(Duration::from_secs(30)).await);
}
