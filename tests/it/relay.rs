//! Several nodes over one log: readers on every node receive what one commits, in order and once, whatever the bus does.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use serde_json::json;
use tempfile::TempDir;
use tidings::bus::local::LocalBus;
use tidings::bus::postgres::PostgresBus;
use tidings::bus::redis::RedisBus;
use tidings::bus::{Bus, NodeId};
use tidings::config::Settings;
use tidings::config::bus::BusUrl;
use tidings::event::Event;
use tidings::feed::{self, Feed};
use tidings::hub::{Hub, Reader};
use tidings::id::{Cursor, Epoch, Place, SchoolId};
use tidings::kind;
use tidings::log::{Batches, Bounds, Committed, Journal, Log, LogRange, Page, StoreError};
use tidings::relay::Relay;
use tidings::scope::Scope;
use tidings::store::sqlite::SqliteStore;
use tidings::subscribe::{Delivery, Request, Subscriber, Subscription};
use tidings::tasks::Tasks;
use tidings::wire::Control;
use tokio::task::JoinHandle;

use crate::support::bus::{Exchange, OverPostgres};
use crate::support::commands::job;
use crate::support::postgres;
use crate::support::redis::RedisServer;
use crate::support::{PATIENCE, until};

/// The log that the nodes share.
struct Shared {
    store: SqliteStore,
    stretches: AtomicUsize,
}

#[async_trait]
impl Log for Shared {
    fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn heads(&self, schools: &[SchoolId]) -> Result<Vec<(SchoolId, Place)>, StoreError> {
        self.store.heads(schools).await
    }

    async fn bounds(&self, school: SchoolId) -> Result<Bounds, StoreError> {
        self.store.bounds(school).await
    }

    async fn read_range(
        &self,
        school: SchoolId,
        after: u64,
        upto: u64,
    ) -> Result<LogRange, StoreError> {
        self.stretches.fetch_add(1, Ordering::SeqCst);
        self.store.read_range(school, after, upto).await
    }

    async fn replay(
        &self,
        scope: Arc<Scope>,
        after: u64,
        conflate: bool,
    ) -> Result<Page, StoreError> {
        self.store.replay(scope, after, conflate).await
    }

    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<Place>,
    ) -> Result<Page, StoreError> {
        self.store.snapshot(scope, after, upto).await
    }
}

/// The database, and what it commits, which a test hands to the node that is to have committed it.
struct Database {
    log: Arc<Shared>,
    batches: Batches,
    _place: TempDir,
}

/// A node without HTTP.
struct Node {
    hub: Arc<Hub>,
    subscriber: Subscriber,
    committed: Committed,
    relay: Arc<Relay>,
    tasks: Tasks,
    following: JoinHandle<()>,
    epoch: Epoch,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.cancel();
        self.following.abort();
    }
}

fn school(number: i64) -> SchoolId {
    number.try_into().unwrap()
}

fn database() -> Database {
    let place = tempfile::tempdir().unwrap();
    let (committed, batches) = Committed::channel(1_000);
    let path = place.path().join("test.db");
    let store = SqliteStore::open(&Settings::default(), &path, committed, &[]).unwrap();
    let stretches = AtomicUsize::new(0);
    Database {
        log: Arc::new(Shared { store, stretches }),
        batches,
        _place: place,
    }
}

impl Database {
    fn node(&self, bus: Arc<dyn Bus>) -> Node {
        let settings = Settings::default();
        let hub = Hub::new(
            settings.window_events.get(),
            settings.mailbox_capacity.get(),
        );
        let hub = Arc::new(hub.of_shared_logs());
        let (committed, mut batches) = Committed::channel(1_000);
        let log = Arc::clone(&self.log) as Arc<dyn Log>;
        let feed = Feed::new(Arc::clone(&log), committed.clone());
        let relay = Relay::new(
            bus,
            NodeId::generate(),
            Arc::clone(&log),
            Arc::clone(&hub),
            &committed,
        );
        let tasks = Tasks::default();
        relay.start(&tasks);
        let subscriber = Subscriber::new(Arc::new(feed), Arc::clone(&hub), &settings);
        let epoch = log.epoch();
        let offered = Arc::clone(&hub);
        let following = tokio::spawn(async move {
            let hub = Arc::clone(&offered);
            let deliver = move |events: &[Arc<Event>]| offered.offer(events).wake();
            feed::follow(&mut batches, &hub, log, deliver, std::future::pending()).await;
        });
        Node {
            hub,
            subscriber,
            committed,
            relay,
            tasks,
            following,
            epoch,
        }
    }

    /// Commits on a node: the first time a new job, and then reports on it. Returns the last event's number.
    async fn commit(&mut self, node: &Node, number: i64, reports: usize) -> u64 {
        let head = self.log.bounds(school(number)).await.unwrap().head.seq;
        let create = || {
            job(
                "a",
                "create",
                json!({"job_type": "scan", "status": "in_progress"}),
            )
        };
        let report = |tick| {
            job(
                "a",
                "progress",
                json!({"message": format!("{head} {tick}")}),
            )
        };
        let mut commands: Vec<_> = (0..reports).map(report).collect();
        if head == 0 {
            commands.insert(0, create());
        }
        let receipts = self.log.store.append(school(number), commands).await;
        receipts
            .unwrap()
            .into_iter()
            .for_each(|receipt| drop(receipt.unwrap()));
        while let Some(events) = self.batches.try_recv() {
            node.committed.send(events).await.unwrap();
        }
        self.log.bounds(school(number)).await.unwrap().head.seq
    }
}

impl Node {
    /// Opens a stream that continues after an event.
    fn open(&self, number: i64, after: u64) -> Subscription {
        let request = Request {
            scope: Scope::new(school(number), [kind::channel("jobs").unwrap()]),
            reader: Reader {
                transport: "test",
                user: "test".into(),
                address: None,
                peer: None,
            },
            from: Some(Cursor::untagged(self.epoch, after)),
            tick: Duration::ZERO,
            expires_at: None,
            reconnects_until: None,
            welcome: None,
        };
        self.subscriber.open(request).unwrap()
    }

    async fn subscribes(&self, exchange: &Exchange, number: usize, expected: &[i64]) {
        let expected: HashSet<SchoolId> = expected.iter().map(|id| school(*id)).collect();
        until("the subscriptions follow the readers", async || {
            exchange.subscriptions(number) == expected
        })
        .await;
    }
}

async fn until_ready(subscription: &mut Subscription) {
    let ready = async {
        loop {
            if let Delivery::Control(Control::Ready(_)) = subscription.next().await.unwrap() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.unwrap();
}

/// Checks that exactly the events after `from` up to `upto` come next, in order.
async fn receives_all(subscription: &mut Subscription, from: u64, upto: u64) {
    let mut next = from + 1;
    let receiving = async {
        while next <= upto {
            match subscription.next().await.expect("it goes on") {
                Delivery::Event(event) => {
                    assert_eq!(event.seq, next, "in order, once, and without a gap");
                    next += 1;
                }
                Delivery::Control(Control::Reset(reason)) => panic!("a reset: {reason:?}"),
                Delivery::Control(_) => {}
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, receiving).await;
    assert!(in_time.is_ok(), "{next} never came");
}

/// Two nodes on which a job is being done, with a reader on each.
async fn two_nodes(database: &mut Database, buses: [Arc<dyn Bus>; 2]) -> [(Node, Subscription); 2] {
    let nodes = buses.map(|bus| database.node(bus));
    database.commit(&nodes[0], 1, 0).await;
    let mut both = nodes.map(|node| {
        let subscription = node.open(1, 1);
        (node, subscription)
    });
    for (_, subscription) in &mut both {
        until_ready(subscription).await;
    }
    both
}

async fn in_memory(database: &mut Database) -> (Arc<Exchange>, [(Node, Subscription); 2]) {
    let exchange = Arc::<Exchange>::default();
    let epoch = database.log.epoch();
    let bus = || Arc::new(exchange.join(epoch)) as Arc<dyn Bus>;
    let buses = [bus(), bus()];
    let both = two_nodes(database, buses).await;
    (exchange, both)
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_on_every_node_receive_what_one_node_commits_without_reading_the_log() {
    let mut database = database();
    let (exchange, [(one, mut first), (other, mut second)]) = in_memory(&mut database).await;
    one.subscribes(&exchange, 0, &[1]).await;
    other.subscribes(&exchange, 1, &[1]).await;
    let mut head = 1;
    for round in 0..50 {
        let node = if round % 3 == 0 { &one } else { &other };
        let before = head;
        head = database.commit(node, 1, 1 + round % 4).await;
        // Each in turn, so that none of their messages cross.
        receives_all(&mut first, before, head).await;
        receives_all(&mut second, before, head).await;
    }
    let reads = database.log.stretches.load(Ordering::SeqCst);
    assert!(reads < 10, "{reads} reads for {head} events");
    let (_, hints) = other.relay.read();
    assert!(hints.taken > 10, "{hints:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn messages_that_are_lost_doubled_late_or_reordered_change_nothing_for_a_reader() {
    let mut database = database();
    let (exchange, [(one, mut first), (other, mut second)]) = in_memory(&mut database).await;
    let mut head = 1;
    for round in 0..40 {
        let before = head;
        exchange.loses(round % 4 == 1);
        exchange.doubles(round % 4 == 2);
        exchange.keeps(round % 4 == 3);
        for number in 0..5 {
            let node = if number % 2 == 0 { &one } else { &other };
            head = database.commit(node, 1, 1).await;
        }
        exchange.keeps(false);
        if round % 10 == 0 {
            receives_all(&mut first, before, head).await;
            receives_all(&mut second, before, head).await;
        } else {
            receives_all(&mut second, before, head).await;
            receives_all(&mut first, before, head).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_down_loses_no_event() {
    let mut database = database();
    let (exchange, [(one, mut first), (other, mut second)]) = in_memory(&mut database).await;
    let mut head = 1;
    for is_down in [true, false, true, false] {
        exchange.is_down(is_down);
        let before = head;
        database.commit(&one, 1, 3).await;
        head = database.commit(&other, 1, 3).await;
        receives_all(&mut first, before, head).await;
        receives_all(&mut second, before, head).await;
        let (bus, _) = one.relay.read();
        assert_eq!(bus.connected, !is_down);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn without_any_bus_the_log_is_enough() {
    let mut database = database();
    let buses: [Arc<dyn Bus>; 2] = [Arc::new(LocalBus), Arc::new(LocalBus)];
    let [(one, mut first), (_other, mut second)] = two_nodes(&mut database, buses).await;
    let head = database.commit(&one, 1, 10).await;
    receives_all(&mut first, 1, head).await;
    receives_all(&mut second, 1, head).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_subscribes_only_to_schools_that_somebody_on_it_listens_to() {
    let mut database = database();
    let (exchange, [(one, first), (other, mut second)]) = in_memory(&mut database).await;
    other.subscribes(&exchange, 1, &[1]).await;
    for number in 2..=9 {
        database.commit(&one, number, 2).await;
    }
    assert_eq!(one.hub.schools(), 1, "what nobody listens to is not kept");
    let mut third = other.open(3, 1);
    other.subscribes(&exchange, 1, &[1, 3]).await;
    receives_all(&mut third, 1, 3).await;
    drop((first, third));
    one.hub.forget_idle(Duration::ZERO);
    other.hub.forget_idle(Duration::ZERO);
    one.subscribes(&exchange, 0, &[]).await;
    other.subscribes(&exchange, 1, &[1]).await;
    let before = other.relay.read().0.received;
    for number in 2..=9 {
        database.commit(&one, number, 2).await;
    }
    let head = database.commit(&one, 1, 1).await;
    receives_all(&mut second, 1, head).await;
    let received = other.relay.read().0.received - before;
    assert!(received <= 1, "{received} messages arrived for one of them");
    // The last reader comes back: nothing that was committed meanwhile is missing.
    let mut again = one.open(3, 1);
    receives_all(&mut again, 1, 5).await;
    one.subscribes(&exchange, 0, &[3]).await;
    let head = database.commit(&other, 3, 1).await;
    receives_all(&mut again, 5, head).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_comes_while_others_commit_misses_nothing() {
    let mut database = database();
    let (_exchange, [(one, _first), (other, second)]) = in_memory(&mut database).await;
    drop(second);
    let mut head = 1;
    for round in 0..60_usize {
        other.hub.forget_idle(Duration::ZERO);
        let from = head;
        let mut reader = other.open(1, from);
        let reading = tokio::spawn(async move {
            receives_all(&mut reader, from, from + 3).await;
        });
        for _ in 0..round % 4 {
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            head = database.commit(&one, 1, 1).await;
        }
        reading.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn over_redis_every_reader_receives_everything_while_redis_is_killed_and_restarted() {
    let Some(mut server) = RedisServer::start() else {
        return;
    };
    let mut database = database();
    let epoch = database.log.epoch();
    let bus = || {
        let url = BusUrl::parse(&server.url()).unwrap();
        Arc::new(RedisBus::new(url, epoch)) as Arc<dyn Bus>
    };
    let buses = [bus(), bus()];
    let [(one, mut first), (other, mut second)] = two_nodes(&mut database, buses).await;
    for node in [&one, &other] {
        until("it is connected", async || node.relay.read().0.connected).await;
    }
    let mut head = 1;
    for round in 0..30 {
        match round {
            10 => server.kill(),
            20 => server.restart(),
            _ => {}
        }
        let before = head;
        database.commit(&one, 1, 2).await;
        head = database.commit(&other, 1, 1).await;
        receives_all(&mut first, before, head).await;
        receives_all(&mut second, before, head).await;
    }
    for node in [&one, &other] {
        until("it works again", async || node.relay.read().0.connected).await;
        let (bus, _) = node.relay.read();
        assert!(
            bus.received > 0 && bus.sent > 0 && bus.unsent > 0,
            "{bus:?}"
        );
        assert_eq!((bus.disconnections, bus.unreadable), (1, 0));
    }
    assert_eq!(one.relay.fingerprint(), other.relay.fingerprint());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_notifications_of_postgres_every_reader_receives_everything() {
    let Some(server) = postgres::database() else {
        return;
    };
    let mut database = database();
    let epoch = database.log.epoch();
    let bus = || {
        let server = OverPostgres(server.url.clone());
        Arc::new(PostgresBus::new(server, epoch)) as Arc<dyn Bus>
    };
    let buses = [bus(), bus()];
    let [(one, mut first), (other, mut second)] = two_nodes(&mut database, buses).await;
    for node in [&one, &other] {
        until("it is connected", async || node.relay.read().0.connected).await;
    }
    let mut head = 1;
    for _ in 0..20 {
        let before = head;
        database.commit(&one, 1, 2).await;
        head = database.commit(&other, 1, 1).await;
        receives_all(&mut first, before, head).await;
        receives_all(&mut second, before, head).await;
    }
    let (bus, hints) = one.relay.read();
    assert!(bus.received > 0 && hints.taken > 0, "{bus:?} {hints:?}");
}
