//! What every bus between nodes guarantees: the same tests over a bus in memory, a real Redis and a real Postgres.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::DateTime;
use tidings::bus::postgres::PostgresBus;
use tidings::bus::redis::RedisBus;
use tidings::bus::{
    Arrivals, Bus, BusMetrics, Inbox, Message, NodeId, Outgoing, Party, Unreadable,
};
use tidings::config::bus::BusUrl;
use tidings::config::{BUS_INBOX, BUS_INBOX_BYTES};
use tidings::event::{Class, Draft, Event};
use tidings::id::{Epoch, SchoolId};
use tidings::kind::job;
use tidings::log::{Batches, Committed, Hint, Hints};
use tokio::task::JoinHandle;

use crate::support::bus::{Exchange, OverPostgres};
use crate::support::postgres::{self, Database};
use crate::support::redis::{RedisServer, Watched};
use crate::support::{PATIENCE, until};

pub(crate) const EPOCH: &str = "0000000a";
const OTHER_EPOCH: &str = "0000000b";

/// A medium whose nodes share one server.
#[async_trait]
pub(crate) trait Medium: Send + Sync {
    fn join(&self, epoch: Epoch) -> Arc<dyn Bus>;

    /// Puts bytes on the channel of a school. Returns false if the medium does not carry these bytes.
    async fn inject(&self, epoch: Epoch, school: SchoolId, payload: &[u8]) -> bool;

    /// Ends the server.
    async fn stop(&mut self);

    /// Starts it again.
    async fn restart(&mut self);
}

struct InMemory(Arc<Exchange>);

#[async_trait]
impl Medium for InMemory {
    fn join(&self, epoch: Epoch) -> Arc<dyn Bus> {
        Arc::new(self.0.join(epoch))
    }

    async fn inject(&self, epoch: Epoch, school: SchoolId, payload: &[u8]) -> bool {
        self.0.inject(epoch, school, payload);
        true
    }

    async fn stop(&mut self) {
        self.0.is_down(true);
    }

    async fn restart(&mut self) {
        self.0.is_down(false);
    }
}

#[async_trait]
impl Medium for RedisServer {
    fn join(&self, epoch: Epoch) -> Arc<dyn Bus> {
        let url = BusUrl::parse(&self.url()).unwrap();
        Arc::new(RedisBus::new(url, epoch))
    }

    async fn inject(&self, epoch: Epoch, school: SchoolId, payload: &[u8]) -> bool {
        let partition = school.get() % 64;
        let channel = format!("tidings:{{{epoch}-{partition}}}:school:{school}");
        self.ask(&[self.publish().as_bytes(), channel.as_bytes(), payload]);
        true
    }

    async fn stop(&mut self) {
        self.kill();
    }

    async fn restart(&mut self) {
        RedisServer::restart(self);
    }
}

/// Found by its Sentinel.
#[async_trait]
impl Medium for Watched {
    fn join(&self, epoch: Epoch) -> Arc<dyn Bus> {
        Arc::new(RedisBus::new(BusUrl::parse(&self.url).unwrap(), epoch))
    }

    async fn inject(&self, epoch: Epoch, school: SchoolId, payload: &[u8]) -> bool {
        self.server.inject(epoch, school, payload).await
    }

    async fn stop(&mut self) {
        self.server.kill();
    }

    async fn restart(&mut self) {
        self.server.restart();
        assert!(self.is_watched());
    }
}

#[async_trait]
impl Medium for Database {
    fn join(&self, epoch: Epoch) -> Arc<dyn Bus> {
        Arc::new(PostgresBus::new(OverPostgres(self.url.clone()), epoch))
    }

    async fn inject(&self, epoch: Epoch, school: SchoolId, payload: &[u8]) -> bool {
        let Ok(payload) = std::str::from_utf8(payload) else {
            return false;
        };
        let client = client(&self.url).await;
        let channel = format!("tidings_{epoch}_{school}");
        let notify = "SELECT pg_notify($1, $2)";
        client.execute(notify, &[&channel, &payload]).await.is_ok()
    }

    async fn stop(&mut self) {
        lets_in(&self.url, false).await;
    }

    async fn restart(&mut self) {
        lets_in(&self.url, true).await;
    }
}

/// Connects to a database of the tests.
async fn client(url: &str) -> tokio_postgres::Client {
    let connecting = tokio_postgres::connect(url, tokio_postgres::NoTls);
    let (client, connection) = connecting.await.unwrap();
    tokio::spawn(connection);
    client
}

/// Lets a database accept connections, or end all that it has and accept none.
async fn lets_in(url: &str, now: bool) {
    let (server, name) = url.rsplit_once('/').unwrap();
    let client = client(&format!("{server}/postgres")).await;
    let allow = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {now}");
    client.batch_execute(&allow).await.unwrap();
    if !now {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        client.execute(end, &[&name]).await.unwrap();
    }
}

/// A node's bus, and what arrives there.
pub(crate) struct Node {
    bus: Arc<dyn Bus>,
    party: Party,
    arrivals: Arrivals,
    pub(crate) hints: Hints,
    pub(crate) metrics: Arc<BusMetrics>,
    running: JoinHandle<()>,
    _batches: Batches,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn school(number: i64) -> SchoolId {
    number.try_into().unwrap()
}

pub(crate) fn event(number: i64, seq: u64, text: &str) -> Arc<Event> {
    let draft = Draft {
        event_type: &job::JOB_PROGRESS,
        class: Class::Tick,
        status: "in_progress",
        category: Some("scan".into()),
        fields: format!(r#"{{"progress": 4.50, "message": "{text}"}}"#).into(),
    };
    let at = DateTime::from_timestamp_millis(1_767_225_600_123).unwrap();
    let (epoch, subject) = (EPOCH.parse().unwrap(), "a/b ü".parse().unwrap());
    Arc::new(Event::new(
        (epoch, seq),
        school(number),
        job::KIND,
        subject,
        at,
        draft,
    ))
}

pub(crate) async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("never came true: {what}"))
}

async fn node_of(medium: &dyn Medium, epoch: &str) -> Node {
    let epoch: Epoch = epoch.parse().unwrap();
    let bus = medium.join(epoch);
    let (committed, batches) = Committed::channel(1);
    let hints = committed.hints().clone();
    let metrics = Arc::<BusMetrics>::default();
    let (inbox, arrivals) = Inbox::new(hints.clone(), Arc::clone(&metrics));
    let running_bus = Arc::clone(&bus);
    let running = tokio::spawn(async move { running_bus.run(inbox).await });
    let node = Node {
        bus,
        party: Party {
            node: NodeId::generate(),
            epoch,
        },
        arrivals,
        hints,
        metrics,
        running,
        _batches: batches,
    };
    let asked = patiently("it is connected", node.hints.requested_check()).await;
    assert!(asked.all, "what happened before the connection is unknown");
    assert!(node.metrics.read().connected);
    node
}

pub(crate) async fn node(medium: &dyn Medium) -> Node {
    node_of(medium, EPOCH).await
}

impl Node {
    pub(crate) async fn subscribe(&self, schools: &[i64]) {
        let schools: Vec<SchoolId> = schools.iter().map(|number| school(*number)).collect();
        self.bus.subscribe(&schools).await.unwrap();
    }

    fn encode(&self, events: &[Arc<Event>]) -> Vec<Outgoing> {
        let last = events.last().unwrap();
        let max = self.bus.message_max_bytes();
        Message::encode(self.party, last.school, last.seq, events, max)
    }

    pub(crate) async fn publish(&self, events: &[Arc<Event>]) {
        self.bus.publish(&self.encode(events)).await.unwrap();
    }

    /// Publishes, or not if the bus is not connected.
    pub(crate) async fn try_publish(&self, events: &[Arc<Event>]) {
        let _ = self.bus.publish(&self.encode(events)).await;
    }

    pub(crate) async fn unsubscribe(&self, schools: &[i64]) {
        let schools: Vec<SchoolId> = schools.iter().map(|number| school(*number)).collect();
        self.bus.unsubscribe(&schools).await.unwrap();
    }

    /// Returns what arrives soon, if anything does.
    pub(crate) async fn next_within_moments(&mut self) -> Option<(i64, Vec<u64>)> {
        let moments = std::time::Duration::from_millis(100);
        tokio::time::timeout(moments, self.next_seqs()).await.ok()
    }

    /// Returns the next hint of another node. Ignores its own messages and what cannot be read.
    async fn next(&mut self) -> Hint {
        let next = async {
            loop {
                let payload = self.arrivals.recv().await.unwrap();
                let message = Message::decode(&payload);
                if let Ok(Some(hint)) = message.and_then(|message| message.hint(self.party)) {
                    return hint;
                }
            }
        };
        patiently("a hint arrives", next).await
    }

    pub(crate) async fn next_seqs(&mut self) -> (i64, Vec<u64>) {
        match self.next().await {
            Hint::Events(events) => {
                let seqs = events.iter().map(|event| event.seq).collect();
                (events[0].school.get(), seqs)
            }
            other => panic!("events were expected: {other:?}"),
        }
    }
}

async fn what_is_published_arrives_as_it_was(medium: &mut dyn Medium) {
    let (sender, mut receiver) = (node(medium).await, node(medium).await);
    receiver.subscribe(&[1]).await;
    let (before, one, two) = (event(1, 6, "x"), event(1, 7, "one"), event(1, 8, "two"));
    let one = Arc::new(Arc::into_inner(one).unwrap().following(before.tag));
    let two = Arc::new(Arc::into_inner(two).unwrap().following(one.tag));
    let sent = [one, two];
    sender.publish(&sent).await;
    let Hint::Events(events) = receiver.next().await else {
        panic!("the events are part of the message");
    };
    for (event, sent) in events.iter().zip(&sent) {
        assert_eq!(event.place(), sent.place(), "with the same tag");
        assert_eq!(event.cursor(), sent.cursor());
        assert_eq!(event.before, sent.before, "what it follows");
        assert_eq!((event.at, &event.subject), (sent.at, &sent.subject));
        assert_eq!(event.draft.fields, sent.draft.fields, "byte for byte");
        assert_eq!(event.draft.category, sent.draft.category);
        assert_eq!(event.draft.class, sent.draft.class);
    }
    assert_eq!(events.len(), sent.len());
}

async fn a_node_does_not_hear_itself(medium: &mut dyn Medium) {
    let (mut one, other) = (node(medium).await, node(medium).await);
    one.subscribe(&[1]).await;
    one.publish(&[event(1, 1, "own")]).await;
    other.publish(&[event(1, 2, "other")]).await;
    assert_eq!(one.next_seqs().await, (1, vec![2]));
}

async fn only_schools_that_are_subscribed_to_arrive(medium: &mut dyn Medium) {
    let (sender, mut receiver) = (node(medium).await, node(medium).await);
    receiver.subscribe(&[1, 3]).await;
    for number in [1, 2, 3] {
        sender.publish(&[event(number, 1, "first")]).await;
    }
    assert_eq!(receiver.next_seqs().await.0, 1);
    assert_eq!(receiver.next_seqs().await.0, 3);
    receiver.bus.unsubscribe(&[school(1)]).await.unwrap();
    for number in [1, 2, 3] {
        sender.publish(&[event(number, 2, "second")]).await;
    }
    assert_eq!(receiver.next_seqs().await, (3, vec![2]));
    assert_eq!(receiver.metrics.read().received, 3, "and nothing else");
}

async fn a_restarted_server_is_found_again_and_what_was_missed_is_looked_at(
    medium: &mut dyn Medium,
) {
    let (sender, mut receiver) = (node(medium).await, node(medium).await);
    receiver.subscribe(&[1]).await;
    sender.publish(&[event(1, 1, "before")]).await;
    assert_eq!(receiver.next_seqs().await, (1, vec![1]));
    medium.stop().await;
    patiently("the loss is noticed", async {
        while receiver.metrics.read().connected || sender.metrics.read().connected {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let lost = sender.encode(&[event(1, 2, "lost")]);
    assert!(sender.bus.publish(&lost).await.is_err());
    let meanwhile = receiver.bus.subscribe(&[school(2)]).await;
    assert!(meanwhile.is_err(), "it is not in force yet");
    receiver.bus.unsubscribe(&[school(9)]).await.ok();
    medium.restart().await;
    for node in [&sender, &receiver] {
        let asked = patiently("it works again", node.hints.requested_check()).await;
        assert!(asked.all, "everything may have been missed");
        assert_eq!(node.metrics.read().disconnections, 1);
    }
    // What was subscribed to before and meanwhile is in force.
    for number in [1, 2] {
        sender.publish(&[event(number, 3, "after")]).await;
        assert_eq!(receiver.next_seqs().await, (number, vec![3]));
    }
}

async fn a_receiver_that_takes_nothing_does_not_grow(medium: &mut dyn Medium) {
    let (sender, mut receiver) = (node(medium).await, node(medium).await);
    receiver.subscribe(&[1]).await;
    let many = BUS_INBOX as u64 + 100;
    for seq in 1..=many {
        sender.publish(&[event(1, seq, "more")]).await;
    }
    let asked = patiently("something is dropped", receiver.hints.requested_check()).await;
    assert!(asked.all, "the log has what was dropped");
    patiently("everything has arrived", async {
        loop {
            let reading = receiver.metrics.read();
            if reading.received + reading.dropped == many {
                assert_eq!(reading.received, BUS_INBOX as u64);
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    for seq in 1..=BUS_INBOX as u64 {
        assert_eq!(receiver.next_seqs().await, (1, vec![seq]));
    }
    sender.publish(&[event(1, many + 1, "last")]).await;
    assert_eq!(receiver.next_seqs().await, (1, vec![many + 1]));
}

async fn events_that_are_too_large_become_numbers(medium: &mut dyn Medium) {
    let (sender, mut receiver) = (node(medium).await, node(medium).await);
    receiver.subscribe(&[1]).await;
    let max = sender.bus.message_max_bytes();
    let large = "x".repeat(max);
    let half = "y".repeat(max / 2);
    let events = [
        event(1, 1, "small"),
        event(1, 2, &large),
        event(1, 3, &half),
        event(1, 4, &half),
    ];
    for message in sender.encode(&events) {
        assert!(message.payload.len() <= max);
    }
    sender.publish(&events).await;
    assert_eq!(receiver.next_seqs().await, (1, vec![1]));
    assert!(
        matches!(receiver.next().await, Hint::UpTo(heard_school, 2) if heard_school == school(1))
    );
    assert_eq!(receiver.next_seqs().await, (1, vec![3]));
    assert_eq!(receiver.next_seqs().await, (1, vec![4]));
}

async fn what_no_node_has_sent_is_ignored(medium: &mut dyn Medium) {
    let (sender, mut receiver) = (node(medium).await, node(medium).await);
    receiver.subscribe(&[1]).await;
    let epoch = EPOCH.parse().unwrap();
    let garbage: [&[u8]; 5] = [
        b"",
        b"hello",
        b"\xff\xfe\x00",
        br#"{"v":1,"node":"zz","epoch":"0000000a","school":1,"seq":1}"#,
        br#"{"v":1,"node":"1","epoch":"0000000a","school":0,"seq":1}"#,
    ];
    for payload in garbage {
        if !medium.inject(epoch, school(1), payload).await {
            continue;
        }
        let arrived = patiently("it arrives", receiver.arrivals.recv()).await;
        let arrived = arrived.unwrap();
        let message = Message::decode(&arrived);
        let read = message.and_then(|message| message.hint(receiver.party));
        assert_eq!(read.err(), Some(Unreadable::Foreign));
    }
    let huge = vec![b'x'; BUS_INBOX_BYTES + 1];
    if medium.inject(epoch, school(1), &huge).await {
        let asked = patiently("it is dropped", receiver.hints.requested_check()).await;
        assert!(asked.all);
    }
    sender.publish(&[event(1, 1, "after all")]).await;
    assert_eq!(receiver.next_seqs().await, (1, vec![1]));
}

async fn two_installations_do_not_hear_one_another(medium: &mut dyn Medium) {
    let (sender, other) = (node(medium).await, node_of(medium, OTHER_EPOCH).await);
    let mut receiver = node_of(medium, OTHER_EPOCH).await;
    receiver.subscribe(&[1]).await;
    sender.publish(&[event(1, 1, "of the first")]).await;
    other.publish(&[event(1, 2, "of the second")]).await;
    assert_eq!(receiver.next_seqs().await, (1, vec![2]));
    assert_eq!(receiver.metrics.read().received, 1);
}

async fn nodes_that_hear_one_another_have_one_fingerprint(medium: &mut dyn Medium) {
    let (one, other) = (node(medium).await, node(medium).await);
    let fingerprint = one.bus.fingerprint();
    assert!(fingerprint.is_some());
    assert_eq!(fingerprint, other.bus.fingerprint());
}

/// The tests of a medium. `$medium` is `None` if it is not installed.
macro_rules! contract {
    ($name:ident, $medium:expr; $($test:ident)*) => {
        mod $name {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    if let Some(mut medium) = $medium {
                        super::$test(&mut medium).await;
                    }
                }
            )*
        }
    };
    ($name:ident, slow $medium:expr; $($test:ident)*) => {
        mod $name {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread")]
                #[ignore = "slow: each starts a cluster"]
                async fn $test() {
                    if let Some(mut medium) = $medium {
                        super::$test(&mut medium).await;
                    }
                }
            )*
        }
    };
}

macro_rules! contracts {
    ($($test:ident)*) => {
        contract!(in_memory, Some(InMemory(Arc::default())); $($test)*);
        contract!(over_redis, RedisServer::start(); $($test)*);
        contract!(over_a_redis_cluster, slow RedisServer::cluster(); $($test)*);
        contract!(over_redis_and_sentinel, Watched::start(); $($test)*);
        contract!(over_postgres, postgres::database(); $($test)*);
    };
}

contracts! {
    what_is_published_arrives_as_it_was
    a_node_does_not_hear_itself
    only_schools_that_are_subscribed_to_arrive
    a_restarted_server_is_found_again_and_what_was_missed_is_looked_at
    a_receiver_that_takes_nothing_does_not_grow
    events_that_are_too_large_become_numbers
    what_no_node_has_sent_is_ignored
    two_installations_do_not_hear_one_another
    nodes_that_hear_one_another_have_one_fingerprint
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real bus"]
async fn a_redis_that_answers_no_more_is_given_up_and_connected_again() {
    let Some(server) = RedisServer::start() else {
        return;
    };
    let (sender, mut receiver) = (node(&server).await, node(&server).await);
    receiver.subscribe(&[1]).await;
    let process = server.process();
    server.freeze(process, true);
    let lost = sender.encode(&[event(1, 1, "lost")]);
    assert!(sender.bus.publish(&lost).await.is_err(), "it does not wait");
    patiently("both give it up", async {
        while receiver.metrics.read().connected || sender.metrics.read().connected {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.freeze(process, false);
    for node in [&sender, &receiver] {
        let asked = patiently("it works again", node.hints.requested_check()).await;
        assert!(asked.all);
    }
    sender.publish(&[event(1, 2, "after")]).await;
    let seqs = loop {
        let (_, seqs) = receiver.next_seqs().await;
        // The server may have taken in the first one before it stopped.
        if seqs != [1] {
            break seqs;
        }
    };
    assert_eq!(seqs, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_redis_servers_have_different_fingerprints() {
    let (Some(one), Some(other)) = (RedisServer::start(), RedisServer::start()) else {
        return;
    };
    let (one, other) = (node(&one).await, node(&other).await);
    let fingerprints: HashSet<_> = [one.bus.fingerprint(), other.bus.fingerprint()].into();
    assert_eq!(fingerprints.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_have_one_fingerprint_again_after_redis_was_emptied() {
    let Some(server) = RedisServer::start() else {
        return;
    };
    let earlier = node(&server).await;
    let before = earlier.bus.fingerprint();
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let emptied: String = redis::cmd("FLUSHALL")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(emptied, "OK");
    let later = node(&server).await;
    until("both have the new one", async || {
        earlier.bus.fingerprint() == later.bus.fingerprint()
    })
    .await;
    assert_ne!(later.bus.fingerprint(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_wants_a_password_is_given_it() {
    let Some(server) = RedisServer::start_with(&["--requirepass", "p@ss/word"]) else {
        return;
    };
    let url = format!("redis://:p%40ss%2Fword@127.0.0.1:{}", server.port());
    let bus = RedisBus::new(BusUrl::parse(&url).unwrap(), EPOCH.parse().unwrap());
    let (committed, _batches) = Committed::channel(1);
    let (inbox, _arrivals) = Inbox::new(committed.hints().clone(), Arc::default());
    let connected = async {
        tokio::select! {
            () = bus.run(inbox) => unreachable!("it goes on"),
            _ = committed.hints().requested_check() => {}
        }
    };
    patiently("it is connected", connected).await;
}

/// A node of the next version may write what this one does not know.
#[test]
fn a_message_of_a_neighbouring_version_is_understood_or_counts_as_a_number() {
    let epoch: Epoch = EPOCH.parse().unwrap();
    let sender = Party {
        node: NodeId::generate(),
        epoch,
    };
    let receiver = Party {
        node: NodeId::generate(),
        epoch,
    };
    let one = Arc::into_inner(event(1, 4, "one")).unwrap();
    let before = event(1, 3, "x").tag;
    let sent = [Arc::new(one.following(before)), event(1, 5, "two")];
    let message = Message::encode(sender, school(1), 5, &sent, usize::MAX).remove(0);
    let text = String::from_utf8(message.payload).unwrap();
    let hint = |text: &str| {
        let message = Message::decode(text.as_bytes()).unwrap();
        message.hint(receiver).unwrap().unwrap()
    };
    assert!(matches!(hint(&text), Hint::Events(events) if events[0].seq == 4));
    // The previous version does not say what the first event follows.
    let start = text.find(r#""before":"#).unwrap();
    let end = start + text[start..].find(',').unwrap() + 1;
    let without = format!("{}{}", &text[..start], &text[end..]);
    assert!(matches!(hint(&without), Hint::Events(events) if events[0].before.is_none()));
    let with_more = text.replace(r#""i":"#, r#""new":{"x":1},"i":"#);
    assert!(matches!(hint(&with_more), Hint::Events(events) if events.len() == 2));
    for (old, new) in [
        (r#""v":1"#, r#""v":2"#),
        (r#""t":"job_progress""#, r#""t":"job_news""#),
        (r#""k":"jobs""#, r#""k":"news""#),
        (r#""s":"in_progress""#, r#""s":"news""#),
        (r#""m":false"#, r#""m":"news""#),
        (r#""seq":5"#, r#""seq":1"#),
        (r#""seq":5"#, r#""seq":0"#),
    ] {
        assert!(text.contains(old), "{old} in {text}");
        let changed = hint(&text.replace(old, new));
        assert!(
            matches!(changed, Hint::UpTo(heard_school, _) if heard_school == school(1)),
            "{new}"
        );
    }
    let last = text.replace(r#""seq":5"#, &format!(r#""seq":{}"#, u64::MAX));
    assert!(matches!(hint(&last), Hint::Events(events) if events[1].seq == u64::MAX));
}
