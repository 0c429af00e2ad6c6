//! What several nodes do at once over one database: here, several tasks that know nothing of one another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{SubsecRound, Utc};
use serde_json::{Value, json};
use tidings::cluster::{Cluster, Identity, NodeHealth};
use tidings::config::{Bounded, NODE_FORGOTTEN, Settings};
use tidings::id::{SchoolId, SubjectId};
use tidings::kind::{self, job};
use tidings::lease::{Lease, Terms};
use tidings::log::nodes::{Fingerprint, NodeId, NodeReport};
use tidings::log::{Envelope, Store};
use tidings::schedules::Schedules;
use tidings::scope::Scope;
use tidings::tasks::{Task, Tasks};
use tidings::uptime::Uptime;
use tidings::watchdog;

use crate::support::nodes::{SharedDatabase, later};
use crate::support::{Server, Transport, admin, figment, server, server_with, until, viewer};

const NODES: usize = 3;

struct Shared {
    /// One per node.
    stores: Vec<Arc<dyn Store>>,
    _database: SharedDatabase,
}

fn school() -> SchoolId {
    1.try_into().unwrap()
}

fn shared(settings: Settings) -> Shared {
    let database = SharedDatabase::new(settings, &[]);
    Shared {
        stores: (0..NODES).map(|_| database.node().store).collect(),
        _database: database,
    }
}

fn create(id: &str, mut body: Value) -> Envelope {
    body["job_type"] = "t".into();
    let create = job::Command::Create(serde_json::from_value(body).unwrap());
    Envelope::new(id.parse().unwrap(), kind::Command::Job(create))
}

impl Shared {
    /// Returns the store of the first node.
    fn store(&self) -> &Arc<dyn Store> {
        &self.stores[0]
    }

    async fn append(&self, envelopes: Vec<Envelope>) {
        for answer in self.store().append(school(), envelopes).await.unwrap() {
            answer.unwrap();
        }
    }

    /// Returns the statuses that each subject has had.
    async fn history(&self) -> HashMap<String, Vec<&'static str>> {
        let mut statuses: HashMap<String, Vec<&'static str>> = HashMap::new();
        let scope = Arc::new(Scope::new(school(), [kind::channel("jobs").unwrap()]));
        let mut after = 0;
        loop {
            let page = self.store().replay(Arc::clone(&scope), after, false).await;
            let page = page.unwrap();
            for event in &page.events {
                let seen = statuses.entry(event.subject.to_string()).or_default();
                seen.push(event.draft.status);
            }
            if page.through == page.head {
                return statuses;
            }
            after = page.through.seq;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchdogs_of_several_nodes_end_each_silent_job_once() {
    let shared = shared(Settings::default());
    let silent = json!({"status": "in_progress", "timeout_secs": 1, "stall_after_secs": 0});
    let ids = (0..300).map(|number| format!("j{number}"));
    let envelopes = ids.map(|id| create(&id, silent.clone())).collect();
    shared.append(envelopes).await;
    let tasks = Tasks::default();
    for store in &shared.stores {
        let store = Arc::clone(store);
        let schedules = Arc::new(Schedules::new(Arc::clone(&store)));
        tasks.supervise(Task::new("watchdog"), move || {
            watchdog::watch_silence(Arc::clone(&store), Arc::clone(&schedules))
        });
    }
    until("all have ended", async || {
        let counts = shared.store().counts(school(), job::KIND).await.unwrap();
        counts.contains(&("failed", 300))
    })
    .await;
    // Whatever the others were about to do, they have done when they have ended.
    assert!(tasks.end(Duration::from_secs(30)).await);
    shared.store().ping().await.unwrap();
    for (id, statuses) in shared.history().await {
        assert_eq!(statuses, ["in_progress", "failed"], "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn sweeps_at_once_delete_what_one_would_and_under_the_lease_one_sweeps() {
    let settings = Settings {
        retention_events: Bounded::of::<100>(),
        job_retention_secs: Bounded::of::<1>(),
        ..Settings::default()
    };
    let shared = shared(settings);
    let running = json!({"status": "in_progress"});
    for part in 0..4 {
        let ids = (0..500).map(|number| format!("j{part}-{number}"));
        let envelopes = ids.map(|id| create(&id, running.clone())).collect();
        shared.append(envelopes).await;
    }
    let now = chrono::Utc::now();
    let sweeps = shared.stores.iter().map(|store| {
        let store = Arc::clone(store);
        tokio::spawn(async move { while store.sweep(now).await.unwrap() {} })
    });
    futures_util::future::try_join_all(sweeps).await.unwrap();
    let bounds = shared.store().bounds(school()).await.unwrap();
    assert_eq!((bounds.floor.seq, bounds.head.seq), (1_900, 2_000));
    assert_eq!(shared.history().await.len(), 100);
    let counts = shared.store().counts(school(), job::KIND).await.unwrap();
    assert_eq!(counts, [("in_progress", 2_000)], "what goes on is kept");

    let tasks = Tasks::default();
    let terms = Terms::default();
    let leases: Vec<Arc<Lease>> = shared
        .stores
        .iter()
        .map(|store| {
            let store = Arc::clone(store);
            Arc::new(Lease::new(store, watchdog::SWEEP_LEASE, terms))
        })
        .collect();
    for (store, lease) in shared.stores.iter().zip(&leases) {
        let (store, lease) = (Arc::clone(store), Arc::clone(lease));
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
        shared.store().bounds(school()).await.unwrap().floor.seq == 1_950
    })
    .await;
    assert_eq!(holders(), 1);
    assert!(tasks.end(Duration::from_secs(30)).await);
}

fn cluster(store: &Arc<dyn Store>, secret: &str, bus: &'static str) -> Cluster {
    let secret = Fingerprint::of("jwt_secret", secret.as_bytes());
    let identity = Identity::new(NodeId::generate(), secret);
    let store = Arc::clone(store);
    let health = move || NodeHealth {
        bus_fingerprint: Some(Fingerprint::of("bus_url", bus.as_bytes())),
        ..NodeHealth::default()
    };
    Cluster::new(store, identity, Box::new(health))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_start_beside_one_that_has_another_secret() {
    let shared = shared(Settings::default());
    let [one, another, third] = &shared.stores[..] else {
        panic!("a store for each node");
    };
    let first = cluster(one, "secret", "bus");
    first.join().await.unwrap().unwrap();
    let same = cluster(another, "secret", "another bus");
    same.join().await.unwrap().expect("it works, if slowly");
    let other = cluster(third, "another secret", "bus");
    let differs = other.join().await.unwrap().unwrap_err();
    assert_eq!(differs.setting, "jwt_secret");
    assert_eq!(differs.id, *first.id());
    let text = differs.to_string();
    let named = text.contains("`jwt_secret`") && text.contains(first.id().as_str());
    assert!(named && !text.contains("another secret"), "{text}");
    assert_eq!(first.nodes().len(), 1);
    first.join().await.unwrap().unwrap();
    assert_eq!(first.nodes().len(), 2, "the one that did not start is gone");
    first.leave().await;
    same.leave().await;
    other.join().await.unwrap().unwrap();
    assert_eq!(other.nodes().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_clock_counts_what_another_node_has_counted_since_its_last_report() {
    let shared = shared(Settings::default());
    let [ahead, behind, _] = &shared.stores[..] else {
        panic!("a store for each node");
    };
    let (clock, other) = (ahead.uptime(), behind.uptime());
    let node = cluster(ahead, "secret", "bus");
    let late = cluster(behind, "secret", "bus");
    node.join().await.unwrap().unwrap();
    late.join().await.unwrap().unwrap();
    let pause = async || {
        let begun = clock.now();
        until("time has passed since the report", async || {
            clock.now() > begun + Duration::from_millis(700)
        })
        .await;
        clock.now().since(begun)
    };
    clock.advance_to(clock.now() + Duration::from_secs(3_600));
    let reported = clock.now();
    node.join().await.unwrap().unwrap();
    // What a node that is silent for longer counts is not known.
    let since = pause().await.min(Duration::from_secs(1));
    late.join().await.unwrap().unwrap();
    // The database measures in milliseconds, too.
    let rounded = Duration::from_millis(5);
    assert!(other.now() + rounded >= reported + since);
}

/// As after a suspension, until the node has exchanged reports with the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_at_a_node_whose_clock_is_behind_does_not_make_a_job_silent() {
    let shared = shared(Settings::default());
    let [ahead, behind, _] = &shared.stores[..] else {
        panic!("a store for each node");
    };
    let limited = |id: &str| {
        let limits = json!({"status": "in_progress", "stall_after_secs": 600, "timeout_secs": 900});
        create(id, limits)
    };
    let on = |id: &str, command: job::Command| {
        Envelope::new(id.parse().unwrap(), kind::Command::Job(command))
    };
    let append = async |store: &Arc<dyn Store>, envelope: Envelope| {
        let mut answers = store.append(school(), vec![envelope]).await.unwrap();
        answers.remove(0).unwrap();
    };
    // From now on, the node behind knows the school.
    append(behind, limited("before")).await;
    let assert_goes_on = async |ids: [&str; 2]| {
        for id in ids {
            append(ahead, on(id, job::Command::Check)).await;
            let subject: SubjectId = id.parse().unwrap();
            let stored = ahead.subject(school(), job::KIND, subject).await.unwrap();
            let job = stored.unwrap().state.job().unwrap().clone();
            assert_eq!(job.status, job::Status::InProgress, "{id}");
            assert!(!job.stalled, "{id}");
        }
    };
    let clock = ahead.uptime();
    let an_hour_passes = || clock.advance_to(clock.now() + Duration::from_secs(3_600));
    an_hour_passes();
    append(ahead, limited("reported")).await;
    append(behind, limited("new")).await;
    let progress = || serde_json::from_value(json!({"progress": 50})).unwrap();
    append(behind, on("reported", job::Command::Progress(progress()))).await;
    assert_goes_on(["reported", "new"]).await;
    // Now the other node only counts the time, and saves it.
    an_hour_passes();
    ahead.save_uptime().await.unwrap();
    append(behind, on("new", job::Command::Progress(progress()))).await;
    append(behind, limited("newer")).await;
    assert_goes_on(["new", "newer"]).await;
}

fn elsewhere(id: &NodeId, uptime: Uptime) -> NodeReport {
    NodeReport {
        id: id.clone(),
        name: "<b>else</b>".into(),
        version: "9.8.7".into(),
        address: Some("192.0.2.1:8000".into()),
        streams: 4_321,
        events_per_sec: 12.25,
        lag: 17,
        bus: "cut off".into(),
        bus_fingerprint: None,
        secret_fingerprint: Fingerprint::default(),
        uptime,
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn the_system_page_and_the_metrics_show_every_node_and_all_agree_on_the_uptime() {
    let server = server().await;
    let store = server.tidings.store();
    let id = NodeId::generate();
    let ahead = store.uptime().now() + Duration::from_secs(3_600);
    let report = elsewhere(&id, ahead);
    // The store counts in milliseconds.
    let before = Utc::now().trunc_subsecs(3);
    store.node_heartbeat(report, NODE_FORGOTTEN).await.unwrap();
    let read = async |path: &str| {
        let answer = server.request("GET", path, &admin()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    };
    let other = format!("node=\"{id}\",name=\"<b>else</b>\"");
    let up = format!("tidings_node_up{{{other}}}");
    until("this node has read of the other", async || {
        read("/metrics").await.contains(&format!("{up} 1"))
    })
    .await;
    assert!(store.uptime().now() >= ahead);
    let metrics = read("/metrics").await;
    let nodes = server.tidings.cluster().nodes();
    let since = nodes
        .iter()
        .find(|node| node.report.id == id)
        .unwrap()
        .since;
    assert!((before..=Utc::now()).contains(&since), "{since}");
    let started = since
        .format("data-label=\"Started\"><time datetime=\"%Y-%m-%dT%H:%M:%S")
        .to_string();
    let since = since.timestamp_millis() as f64 / 1e3;
    let this_node = server.tidings.cluster().id();
    for line in [
        format!("tidings_node_info{{{other},version=\"9.8.7\",bus=\"cut off\"}} 1"),
        format!("tidings_node_streams{{{other}}} 4321"),
        format!("tidings_node_events_per_second{{{other}}} 12.25"),
        format!("tidings_node_lag_events{{{other}}} 17"),
        format!("tidings_node_silent_seconds{{{other}}} "),
        format!("tidings_node_start_time_seconds{{{other}}} {since}"),
        format!("tidings_node_up{{node=\"{this_node}\","),
    ] {
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    let page = read("/monitor/system").await;
    for text in [
        id.as_str(),
        "9.8.7",
        &started,
        "192.0.2.1:8000",
        "4\u{202f}321",
        "cut off",
        "this node",
        this_node.as_str(),
    ] {
        assert!(page.contains(text), "{text} is not in {page}");
    }
    assert!(page.contains("&lt;b&gt;else") && !page.contains("<b>else"));
    // It has reported once, and no more.
    until("it is gone", async || {
        read("/metrics").await.contains(&format!("{up} 0"))
    })
    .await;
    assert!(read("/monitor/system").await.contains("gone, last seen"));
    store.node_leaves(&id).await.unwrap();
    until("it is removed", async || {
        !read("/metrics").await.contains(&up)
    })
    .await;
}

/// Real servers over one Postgres.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn servers_over_one_database_know_each_other_and_hear_devices_together() {
    let folder = tempfile::tempdir().unwrap();
    let Some(url) = crate::support::store::postgres_of(folder.path()) else {
        return;
    };
    let settings = json!({ "database_url": url });
    let (one, other) = (
        server_with(settings.clone()).await,
        server_with(settings).await,
    );
    let clocks = [&one, &other].map(|server| server.tidings.store().uptime());
    let heartbeat = async |server: &Server, device: &str| {
        later(&server.tidings.store().uptime(), &clocks).await;
        let path = format!("/api/devices/{device}/heartbeat");
        server.report(&path, json!({})).await["status"].clone()
    };
    one.put("/api/devices/moves", json!({"lease_secs": 2}))
        .await;
    one.put("/api/devices/silent", json!({"lease_secs": 2}))
        .await;
    for device in ["moves", "silent"] {
        assert_eq!(heartbeat(&one, device).await, "unknown");
        assert_eq!(heartbeat(&other, device).await, "online");
    }
    let mut listener = other
        .listen(Transport::WebSocket, "/devices?status=offline")
        .await;
    listener.until_ready().await;
    // Neither node hears the device twice within its lease.
    let mut turn = 0;
    until("the silent one is offline", async || {
        turn += 1;
        let server = [&one, &other][turn % 2];
        assert_eq!(heartbeat(server, "moves").await, "online");
        other.get("/api/devices/silent", &viewer(1)).await.1["status"] == "offline"
    })
    .await;
    assert_eq!(listener.next().await.unwrap()["device_id"], "silent");

    let ids = [&one, &other].map(|server| server.tidings.cluster().id().clone());
    for server in [&one, &other] {
        until("it knows both", async || {
            let nodes = server.tidings.cluster().nodes();
            nodes.len() == 2 && nodes.iter().all(|node| node.report.address.is_some())
        })
        .await;
        let page = server.request("GET", "/monitor/system", &admin());
        let page = page.send().await.unwrap().text().await.unwrap();
        assert!(ids.iter().all(|id| page.contains(id.as_str())), "{page}");
    }
    let strange =
        json!({"database_url": url, "jwt_secret": "another secret, and long enough for HS256"});
    let place = tempfile::tempdir().unwrap();
    let rocket = tidings::server(figment(&place, &strange)).unwrap();
    let tidings = Arc::clone(rocket.state::<Arc<tidings::Tidings>>().unwrap());
    let rejected = tidings.join().await.unwrap_err().to_string();
    assert!(rejected.contains("`jwt_secret` differs"), "{rejected}");
    let error = rocket.ignite().await.unwrap_err();
    let rejected = matches!(error.kind(), rocket::error::ErrorKind::FailedFairings(_));
    assert!(rejected, "{error}");
    tidings::http::close(&tidings).await.unwrap();
    one.stop().await;
    until("the other is alone", async || {
        other.tidings.cluster().nodes().len() == 1
    })
    .await;
    other.stop().await;
}
