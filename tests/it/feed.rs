//! The node's reader of the logs: replays share what is read and encoded, and nothing is passed on with a hole in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use tempfile::TempDir;
use tidings::config::{SEGMENT_EVENTS, Settings};
use tidings::event::Event;
use tidings::feed::{self, Feed};
use tidings::hub::{Hub, Reader};
use tidings::id::{Cursor, Epoch, Place, SchoolId};
use tidings::kind;
use tidings::log::{Batches, Bounds, Committed, Envelope, Journal, Log, Page, StoreError, Stretch};
use tidings::scope::Scope;
use tidings::store::sqlite::SqliteStore;
use tidings::subscribe::{Delivery, Request, Subscriber, Subscription};
use tidings::wire::{Close, Control};

use crate::support::commands::job;

/// A real log that counts how often it is read.
struct Counted {
    store: SqliteStore,
    stretches: AtomicUsize,
    bounds: AtomicUsize,
    /// The next read of a stretch panics.
    panics: AtomicBool,
}

#[async_trait]
impl Log for Counted {
    fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    async fn bounds(&self, school: SchoolId) -> Result<Bounds, StoreError> {
        self.bounds.fetch_add(1, Ordering::SeqCst);
        self.store.bounds(school).await
    }

    async fn read_stretch(
        &self,
        school: SchoolId,
        after: u64,
        upto: u64,
    ) -> Result<Stretch, StoreError> {
        self.stretches.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics.swap(false, Ordering::SeqCst), "as it is to");
        self.store.read_stretch(school, after, upto).await
    }

    async fn replay(&self, scope: Arc<Scope>, after: u64, fold: bool) -> Result<Page, StoreError> {
        self.store.replay(scope, after, fold).await
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

/// A node without HTTP.
struct Node {
    log: Arc<Counted>,
    hub: Arc<Hub>,
    subscriber: Subscriber,
    committed: Committed,
    /// What the store commits, which the test hands on, or not.
    own: Batches,
    /// What the feed is told.
    hints: Option<Batches>,
    _place: TempDir,
}

fn school(number: i64) -> SchoolId {
    number.try_into().unwrap()
}

fn node() -> Node {
    let place = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let (to_test, own) = Committed::channel(1_000);
    let store = SqliteStore::open(&settings, &place.path().join("test.db"), to_test, &[]).unwrap();
    let log = Arc::new(Counted {
        store,
        stretches: AtomicUsize::new(0),
        bounds: AtomicUsize::new(0),
        panics: AtomicBool::new(false),
    });
    let hub = Arc::new(Hub::new(settings.window_events, settings.mailbox_capacity));
    let (committed, hints) = Committed::channel(1_000);
    let feed = Feed::new(Arc::clone(&log) as Arc<dyn Log>, committed.clone());
    Node {
        subscriber: Subscriber::new(Arc::new(feed), Arc::clone(&hub), &settings),
        log,
        hub,
        committed,
        own,
        hints: Some(hints),
        _place: place,
    }
}

impl Node {
    /// Carries out a job's commands and returns their events, of which nobody is told yet.
    async fn commit(&mut self, number: i64, commands: Vec<Envelope>) -> Vec<Arc<Event>> {
        let receipts = self.log.store.append(school(number), commands);
        for receipt in receipts.await.unwrap() {
            receipt.unwrap();
        }
        std::iter::from_fn(|| self.own.try_recv())
            .flatten()
            .collect()
    }

    /// The same of one report.
    async fn report(&mut self, message: &str) -> Vec<Arc<Event>> {
        let report = job("a", "progress", json!({ "message": message }));
        self.commit(1, vec![report]).await
    }

    /// Begins to hand hints on to the hub.
    fn follow(&mut self) -> tokio::task::JoinHandle<()> {
        let (hub, log) = (Arc::clone(&self.hub), Arc::clone(&self.log));
        let mut hints = self.hints.take().unwrap();
        tokio::spawn(async move {
            let offered = Arc::clone(&hub);
            let tell = move |events: &[Arc<Event>]| offered.offer(events).wake();
            feed::follow(&mut hints, &hub, log, tell, std::future::pending()).await;
        })
    }

    fn open(&self, number: i64, from: Option<u64>) -> Subscription {
        let request = Request {
            scope: Scope::new(school(number), [kind::channel("jobs").unwrap()]),
            reader: Reader {
                transport: "test",
                user: "test".into(),
                address: None,
                peer: None,
            },
            from: from.map(|seq| Cursor::untagged(self.log.epoch(), seq)),
            tick: Duration::ZERO,
            expires_at: None,
            returns_until: None,
            greet: None,
        };
        self.subscriber.open(request).unwrap()
    }
}

/// The events up to `ready`.
async fn until_ready(subscription: &mut Subscription) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    loop {
        match subscription.next().await.expect("it goes on") {
            Delivery::Event(event) => events.push(event),
            Delivery::Control(Control::Ready(_)) => return events,
            Delivery::Control(_) => {}
        }
    }
}

async fn next_event(subscription: &mut Subscription) -> u64 {
    loop {
        if let Delivery::Event(event) = subscription.next().await.expect("it goes on") {
            return event.seq;
        }
    }
}

/// Makes a job of a school and reports `ticks` times on it.
async fn make(node: &mut Node, number: i64, ticks: usize) -> Vec<Arc<Event>> {
    let create = job("a", "create", json!({"job_type": "scan"}));
    let report = |tick: usize| job("a", "progress", json!({"message": tick.to_string()}));
    let begin = [create, job("a", "start", json!({}))];
    let commands = begin.into_iter().chain((0..ticks).map(report));
    node.commit(number, commands.collect()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_comes_back_reads_and_encodes_each_event_once() {
    const READERS: usize = 200;
    const TICKS: usize = 1_000;
    let mut node = node();
    make(&mut node, 1, TICKS).await;
    let mut crowd: Vec<Subscription> = (0..READERS).map(|_| node.open(1, Some(1))).collect();
    let told = futures_util::future::join_all(crowd.iter_mut().map(until_ready)).await;
    for events in &told {
        let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (2..=TICKS as u64 + 2).collect::<Vec<_>>());
    }
    for (index, event) in told[0].iter().enumerate() {
        let shares = |events: &Vec<Arc<Event>>| Arc::ptr_eq(&events[index], event);
        assert!(told.iter().all(shares), "with its encodings: {}", event.seq);
    }
    let stretches = node.log.stretches.load(Ordering::SeqCst);
    assert!(
        stretches <= TICKS / 100,
        "{stretches} reads for {READERS} readers"
    );
    let bounds = node.log.bounds.load(Ordering::SeqCst);
    assert!(bounds < READERS, "{bounds} looks at where the log ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_whose_hint_was_lost_are_told_before_those_that_follow() {
    let mut node = node();
    let events = make(&mut node, 1, 5).await;
    let following = node.follow();
    node.committed.send(events).await.unwrap();
    let mut subscription = node.open(1, None);
    until_ready(&mut subscription).await;
    // Another node commits, and its hint is lost; a second one comes out of order.
    let _lost = node.report("lost").await;
    let late = node.report("late").await;
    let last = node.report("last").await;
    node.committed.send(last).await.unwrap();
    node.committed.send(late).await.unwrap();
    for seq in 8..=10 {
        assert_eq!(next_event(&mut subscription).await, seq);
    }
    // A hint twice is told once.
    let again = node.report("twice").await;
    node.committed.send(again.clone()).await.unwrap();
    node.committed.send(again).await.unwrap();
    let more = node.report("more").await;
    node.committed.send(more).await.unwrap();
    assert_eq!(next_event(&mut subscription).await, 11);
    assert_eq!(next_event(&mut subscription).await, 12);
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_events_are_read_again_after_a_read_that_panicked() {
    let mut node = node();
    let events = make(&mut node, 1, 1).await;
    let following = node.follow();
    node.committed.send(events).await.unwrap();
    let mut subscription = node.open(1, None);
    until_ready(&mut subscription).await;
    node.log.panics.store(true, Ordering::SeqCst);
    let _lost = node.report("lost").await;
    let next = node.report("next").await;
    node.committed.send(next).await.unwrap();
    for seq in 4..=5 {
        assert_eq!(next_event(&mut subscription).await, seq);
    }
    assert!(!node.log.panics.load(Ordering::SeqCst), "it has panicked");
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn being_up_to_date_waits_for_its_own_school_only() {
    let mut node = node();
    let own = make(&mut node, 1, 1).await;
    let other = make(&mut node, 2, 1).await;
    node.committed.send(other).await.unwrap();
    let mut quiet = node.open(1, None);
    // Nobody follows: what the other school has committed is on its way for good.
    assert_eq!(until_ready(&mut quiet).await.len(), 1);
    node.committed.send(own).await.unwrap();
    let mut waiting = node.open(1, Some(1));
    let ready = until_ready(&mut waiting);
    futures_util::pin_mut!(ready);
    for _ in 0..20 {
        tokio::task::yield_now().await;
        assert!(
            ready.as_mut().now_or_never().is_none(),
            "its own is under way"
        );
    }
    let following = node.follow();
    assert_eq!(ready.await.len(), 2);
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_before_what_a_new_hub_was_offered_reads_the_log() {
    let mut node = node();
    let first = make(&mut node, 1, 1).await;
    let mut subscription = node.open(1, Some(first.last().unwrap().seq));
    // Before it has looked at anything, an event is lost, and the next one is the first that the hub knows of.
    let _lost = node.report("lost").await;
    let next = node.report("next").await;
    node.hub.offer(&next).wake();
    let told = until_ready(&mut subscription).await;
    assert_eq!(
        told.iter().map(|event| event.seq).collect::<Vec<_>>(),
        [4, 5]
    );
}

/// A server that stops does not wait until everybody has read the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_catching_up_is_told_to_close_before_the_rest_of_the_log() {
    let page = usize::try_from(SEGMENT_EVENTS).unwrap();
    let mut node = node();
    make(&mut node, 1, 3 * page).await;
    let mut subscription = node.open(1, Some(1));
    assert_eq!(next_event(&mut subscription).await, 2);
    node.hub.close_all(|| Close::Done);
    let mut told = 1;
    let close = loop {
        match subscription.next().await.expect("a farewell") {
            Delivery::Event(_) => told += 1,
            Delivery::Control(Control::Closing { close, .. }) => break close,
            Delivery::Control(_) => {}
        }
    };
    assert_eq!(close, Close::Done);
    assert!(told <= page, "{told} were told, and not only what was read");
    assert!(subscription.next().await.is_none(), "nothing follows");
}
