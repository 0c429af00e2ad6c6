//! Devices whose heartbeats reach several nodes. What comes out is as if one node had heard all of them. The nodes here share
//! one database within a process, and hear no events but their own.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidings::cluster::{Cluster, Identity, NodeHealth, Peers};
use tidings::config::Settings;
use tidings::id::{SchoolId, SubjectId};
use tidings::kind;
use tidings::kind::device::{self, Status};
use tidings::lease::Terms;
use tidings::log::nodes::{Fingerprint, NodeId};
use tidings::log::{CommandError, Envelope, Receipt, Store};
use tidings::presence::{Presence, Together};
use tidings::publish::Publisher;
use tidings::scope::Scope;
use tidings::tasks::{Task, Tasks};
use tidings::throttle::{Debts, RateLimit};
use tidings::uptime::UptimeClock;

use crate::support::nodes::{SharedDatabase, later};
use crate::support::until;

const TERMS: Terms = Terms {
    term: Duration::from_millis(1_500),
    renewal: Duration::from_millis(300),
    retry: Duration::from_millis(100),
};

/// A lease that ends while a test waits for it. No heartbeat that a test sends comes later, even on a slow machine.
const LEASE_SECS: u32 = 8;

struct Shared {
    database: Arc<SharedDatabase>,
    /// The store of a node of which no other one hears.
    store: Arc<dyn Store>,
}

/// A node, as far as devices are concerned.
struct Node {
    presence: Arc<Presence>,
    cluster: Arc<Cluster>,
    uptime: UptimeClock,
    database: Arc<SharedDatabase>,
    tasks: Tasks,
}

fn school() -> SchoolId {
    1.try_into().unwrap()
}

fn id(text: &str) -> SubjectId {
    text.parse().unwrap()
}

fn command<T: serde::de::DeserializeOwned>(
    device: &str,
    body: Value,
    of: fn(T) -> device::Command,
) -> Envelope {
    let command = of(serde_json::from_value(body).unwrap());
    Envelope::new(id(device), kind::Command::Device(command))
}

impl Shared {
    fn open() -> Shared {
        let database = Arc::new(SharedDatabase::new(Settings::default(), &[]));
        Shared {
            store: database.node().store,
            database,
        }
    }

    async fn node(&self) -> Node {
        let node = self.joined().await;
        node.start();
        node
    }

    /// A node that has not begun to watch devices.
    async fn joined(&self) -> Node {
        let secret = Fingerprint::of("jwt_secret", b"secret");
        let identity = Identity::new(NodeId::generate(), secret);
        let own = self.database.node().store;
        let store = || Arc::clone(&own);
        let cluster = Cluster::new(store(), identity, Box::new(NodeHealth::default));
        let cluster = Arc::new(cluster);
        cluster.join().await.unwrap().unwrap();
        let debts = Debts::new(RateLimit::for_event_bytes(&Settings::default()));
        let publisher = Publisher::new(store(), Arc::new(debts));
        let together = Together::new(&own, Arc::clone(&cluster), TERMS);
        let presence = Arc::new(Presence::among(store(), publisher, together));
        Node {
            presence,
            cluster,
            uptime: own.uptime(),
            database: Arc::clone(&self.database),
            tasks: Tasks::default(),
        }
    }

    async fn append(&self, envelope: Envelope) {
        let answers = self.store.append(school(), vec![envelope]).await;
        let answer: Result<Receipt, CommandError> = answers.unwrap().remove(0);
        answer.unwrap();
    }

    async fn register(&self, device: &str, lease_secs: u32) {
        let body = json!({ "lease_secs": lease_secs });
        self.append(command(device, body, device::Command::Register))
            .await;
    }

    /// Waits until what any node did before is in the past.
    async fn later(&self) {
        later(&self.store.uptime(), &self.database.clocks()).await;
    }

    /// A report that reaches a node of which nobody else hears.
    async fn report(&self, device: &str, status: &str) {
        self.later().await;
        let body = json!({ "status": status });
        self.append(command(device, body, device::Command::Report))
            .await;
    }

    async fn device(&self, device: &str) -> device::Device {
        let stored = self.store.subject(school(), device::KIND, id(device)).await;
        let stored = stored.unwrap().unwrap();
        stored.state.device().unwrap().clone()
    }

    async fn status(&self, device: &str) -> Status {
        self.device(device).await.status
    }

    /// Returns the statuses that were published of a device.
    async fn history(&self, device: &str) -> Vec<&'static str> {
        let channel = kind::channel(&format!("devices/{device}")).unwrap();
        let scope = Arc::new(Scope::new(school(), [channel]));
        let page = self.store.replay(scope, 0, false).await.unwrap();
        assert_eq!(page.through, page.head);
        let events = page.events.iter();
        events.map(|event| event.draft.status).collect()
    }
}

impl Node {
    fn start(&self) {
        let presence = Arc::clone(&self.presence);
        let watch = move || Arc::clone(&presence).watch();
        self.tasks.supervise(Task::new("presence"), watch);
        let presence = Arc::clone(&self.presence);
        let keep_all = move || Arc::clone(&presence).keep_all();
        self.tasks.supervise(Task::new("all"), keep_all);
        let cluster = Arc::clone(&self.cluster);
        let watch = move || Arc::clone(&cluster).watch();
        self.tasks.supervise(Task::new("nodes"), watch);
    }

    async fn heartbeat(&self, device: &str) -> Status {
        later(&self.uptime, &self.database.clocks()).await;
        let answers = self.presence.heartbeats(school(), &[id(device)]).await;
        answers.unwrap().remove(0).unwrap().status
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_that_alternate_between_nodes_count_as_if_one_had_heard_them() {
    use Status::{Offline, Online, Unknown};
    let shared = Shared::open();
    // They share what they hear only when they are told to. A node that has shared already would not learn what has been reported since.
    let (one, other) = (shared.joined().await, shared.joined().await);
    shared.register("door", 600).await;
    assert_eq!(one.heartbeat("door").await, Unknown);
    assert_eq!(other.heartbeat("door").await, Online, "the second in a row");
    assert_eq!(one.heartbeat("door").await, Online);
    // A last will that reaches another node: neither of these hears of it.
    for round in 0..2 {
        shared.report("door", "offline").await;
        one.presence.flush().await.unwrap();
        other.presence.flush().await.unwrap();
        one.heartbeat("door").await;
        one.presence.flush().await.unwrap();
        assert_eq!(shared.status("door").await, Offline, "one heartbeat");
        assert_eq!(other.heartbeat("door").await, Online, "and another");
        let flapping = shared.device("door").await.flapping;
        assert_eq!(flapping, round == 1, "four changes");
    }
    let history = [
        "unknown", "online", "offline", "online", "offline", "online",
    ];
    assert_eq!(shared.history("door").await, history);
    let nobody = one.presence.heartbeats(school(), &[id("nobody")]).await;
    assert!(nobody.unwrap()[0].is_err());
}

/// A gateway's heartbeats: two of one device in one batch, too.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn many_devices_are_heard_and_shared_in_batches() {
    const DEVICES: usize = 10_000;
    let shared = Shared::open();
    // Otherwise a node's own task may have begun to save what the test asks it to save.
    let (one, other) = (shared.joined().await, shared.joined().await);
    let ids: Vec<SubjectId> = (0..DEVICES)
        .map(|number| id(&format!("d{number}")))
        .collect();
    for part in ids.chunks(500) {
        let register = |subject: &SubjectId| {
            let body = json!({"lease_secs": 600});
            command(subject.as_str(), body, device::Command::Register)
        };
        let answers = shared
            .store
            .append(school(), part.iter().map(register).collect());
        assert!(answers.await.unwrap().iter().all(Result::is_ok));
    }
    let heartbeats = async |node: &Node| -> Vec<Status> {
        let mut statuses = Vec::new();
        for part in ids.chunks(500) {
            let answers = node.presence.heartbeats(school(), part).await.unwrap();
            statuses.extend(answers.into_iter().map(|answer| answer.unwrap().status));
        }
        statuses
    };
    assert_eq!(heartbeats(&one).await, [Status::Unknown; DEVICES]);
    assert_eq!(heartbeats(&other).await, [Status::Online; DEVICES]);
    let head = shared.store.head(school()).await.unwrap();
    for _ in 0..3 {
        heartbeats(&one).await;
        heartbeats(&other).await;
        one.presence.flush().await.unwrap();
        other.presence.flush().await.unwrap();
    }
    let after = shared.store.head(school()).await.unwrap();
    assert_eq!(after, head, "no heartbeat is an event");
    let known = shared
        .store
        .heartbeats_of(vec![(school(), ids[0].clone())])
        .await;
    let heard = known.unwrap()[0].as_ref().unwrap().heard.unwrap();
    let saved = shared.device("d0").await.last_seen.unwrap();
    assert_eq!(saved, heard.last.at, "when it was last heard is saved");
    shared.register("twice", 600).await;
    let twice = [id("twice"), id("twice")];
    let answers = one.presence.heartbeats(school(), &twice).await.unwrap();
    assert_eq!(answers[1].as_ref().unwrap().status, Status::Online);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_device_that_moves_to_another_node_stays_online_and_a_silent_one_goes_offline() {
    let shared = Shared::open();
    let (one, other) = (shared.node().await, shared.node().await);
    for device in ["moves", "silent"] {
        shared.register(device, LEASE_SECS).await;
        one.heartbeat(device).await;
        assert_eq!(one.heartbeat(device).await, Status::Online);
    }
    // From now on the first node hears nothing, and both of its leases end.
    until("the silent one is offline", async || {
        assert_eq!(other.heartbeat("moves").await, Status::Online);
        shared.status("silent").await == Status::Offline
    })
    .await;
    assert_eq!(
        shared.history("silent").await,
        ["unknown", "online", "offline"]
    );
    assert_eq!(shared.history("moves").await, ["unknown", "online"]);
    let silent = shared.device("silent").await;
    let lease = silent.reported_status.1 - silent.last_seen.unwrap();
    assert!(
        lease >= chrono::TimeDelta::seconds(LEASE_SECS.into()),
        "{lease}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_lease_that_another_node_shortens_ends_in_time() {
    let shared = Shared::open();
    let (one, other) = (shared.node().await, shared.node().await);
    shared.register("door", 600).await;
    one.heartbeat("door").await;
    assert_eq!(other.heartbeat("door").await, Status::Online);
    shared.later().await;
    shared.register("door", 1).await;
    until("it is offline after the new lease", async || {
        shared.status("door").await == Status::Offline
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_node_that_dies_makes_those_offline_that_nobody_else_hears_and_no_other() {
    let shared = Shared::open();
    // The first one looks after all devices, and is the one that dies.
    let dies = shared.node().await;
    until("the first node looks after all devices", async || {
        let lease = shared.store.acquire("presence", Duration::ZERO).await;
        lease.unwrap().is_none()
    })
    .await;
    let stays = shared.node().await;
    for device in ["heard", "lost"] {
        shared.register(device, LEASE_SECS).await;
        dies.heartbeat(device).await;
        assert_eq!(dies.heartbeat(device).await, Status::Online);
    }
    dies.tasks.cancel();
    until("the lost one is offline", async || {
        assert_eq!(stays.heartbeat("heard").await, Status::Online);
        shared.status("lost").await == Status::Offline
    })
    .await;
    assert_eq!(shared.history("heard").await, ["unknown", "online"]);
    assert_eq!(
        shared.history("lost").await,
        ["unknown", "online", "offline"]
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn only_the_first_node_of_a_cluster_marks_devices_as_unknown() {
    let shared = Shared::open();
    shared.register("door", 600).await;
    shared.report("door", "online").await;
    let first = shared.node().await;
    assert_eq!(first.cluster.peers(), Peers::Absent);
    until("it is unknown", async || {
        shared.status("door").await == Status::Unknown
    })
    .await;
    first.heartbeat("door").await;
    assert_eq!(first.heartbeat("door").await, Status::Online);
    let second = shared.node().await;
    assert_eq!(second.cluster.peers(), Peers::Unclear);
    until("it is known that another one runs", async || {
        second.cluster.peers() == Peers::Running
    })
    .await;
    // It ends leases, so it has marked devices before.
    shared.register("brief", 1).await;
    second.heartbeat("brief").await;
    assert!(first.tasks.end(Duration::from_secs(30)).await);
    until("leases end", async || {
        shared.status("brief").await == Status::Offline
    })
    .await;
    let history = ["unknown", "online", "unknown", "online"];
    assert_eq!(shared.history("door").await, history);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_device_that_is_reported_after_the_start_is_not_marked_as_unknown() {
    let shared = Shared::open();
    for device in ["before", "since"] {
        shared.register(device, 600).await;
        shared.report(device, "online").await;
    }
    let node = shared.joined().await;
    shared.report("since", "offline").await;
    shared.report("since", "online").await;
    shared.register("brief", 1).await;
    node.heartbeat("brief").await;
    node.start();
    until(
        "leases end, so that all devices have been decided about",
        async || shared.status("brief").await == Status::Offline,
    )
    .await;
    assert_eq!(shared.status("before").await, Status::Unknown);
    let history = ["unknown", "online", "offline", "online"];
    assert_eq!(shared.history("since").await, history);
    assert!(node.tasks.end(Duration::from_secs(30)).await);
}
