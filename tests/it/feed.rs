//! The node's reader of the logs: replays share what is read and encoded, and nothing is passed on with a hole in it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use tempfile::TempDir;
use tidings::config::{SEGMENT_EVENTS, Settings};
use tidings::event::Event;
use tidings::feed::{self, Feed};
use tidings::hub::{Hub, Reader};
use tidings::id::{Cursor, Epoch, Place, SchoolId};
use tidings::kind;
use tidings::log::{
    Batches, Bounds, Committed, Envelope, Hint, Journal, Log, LogRange, Page, StoreError,
};
use tidings::scope::Scope;
use tidings::store::sqlite::SqliteStore;
use tidings::subscribe::{Delivery, Request, Subscriber, Subscription};
use tidings::wire::{Close, Control};

use crate::support;
use crate::support::commands::job;

/// A real log that counts how often it is read.
struct Counted {
    store: SqliteStore,
    /// The database after a failover to a copy that lacks the newest commits.
    copy: OnceLock<SqliteStore>,
    ranges: AtomicUsize,
    bounds: AtomicUsize,
    heads: AtomicUsize,
    /// The next read of a range panics.
    panics: AtomicBool,
    /// Maximum number of events in a range.
    limit: AtomicU64,
    /// What happens after the next read of a range.
    afterwards: Mutex<Option<BoxFuture<'static, ()>>>,
}

impl Counted {
    fn now(&self) -> &SqliteStore {
        self.copy.get().unwrap_or(&self.store)
    }
}

#[async_trait]
impl Log for Counted {
    fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn heads(&self, schools: &[SchoolId]) -> Result<Vec<(SchoolId, Place)>, StoreError> {
        self.heads.fetch_add(1, Ordering::SeqCst);
        self.now().heads(schools).await
    }

    async fn bounds(&self, school: SchoolId) -> Result<Bounds, StoreError> {
        self.bounds.fetch_add(1, Ordering::SeqCst);
        self.now().bounds(school).await
    }

    async fn read_range(
        &self,
        school: SchoolId,
        after: u64,
        upto: u64,
    ) -> Result<LogRange, StoreError> {
        self.ranges.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics.swap(false, Ordering::SeqCst), "as it is to");
        let upto = upto.min(after.saturating_add(self.limit.load(Ordering::SeqCst)));
        let range = self.now().read_range(school, after, upto).await;
        let afterwards = self.afterwards.lock().unwrap().take();
        if let Some(afterwards) = afterwards {
            afterwards.await;
        }
        range
    }

    async fn replay(
        &self,
        scope: Arc<Scope>,
        after: u64,
        conflate: bool,
    ) -> Result<Page, StoreError> {
        self.now().replay(scope, after, conflate).await
    }

    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        upto: Option<Place>,
    ) -> Result<Page, StoreError> {
        self.now().snapshot(scope, after, upto).await
    }
}

/// A node without HTTP.
struct Node {
    log: Arc<Counted>,
    hub: Arc<Hub>,
    subscriber: Subscriber,
    committed: Committed,
    /// What the store commits, which the test hands on, or not.
    batches: Batches,
    /// What the feed receives.
    hints: Option<Batches>,
    place: TempDir,
}

fn school(number: i64) -> SchoolId {
    number.try_into().unwrap()
}

fn node() -> Node {
    let place = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let (to_test, batches) = Committed::channel(1_000);
    let store = SqliteStore::open(&settings, &place.path().join("test.db"), to_test, &[]).unwrap();
    let log = Arc::new(Counted {
        store,
        copy: OnceLock::new(),
        ranges: AtomicUsize::new(0),
        bounds: AtomicUsize::new(0),
        heads: AtomicUsize::new(0),
        panics: AtomicBool::new(false),
        limit: AtomicU64::new(u64::MAX),
        afterwards: Mutex::default(),
    });
    let hub = Hub::new(
        settings.window_events.get(),
        settings.mailbox_capacity.get(),
    );
    let hub = Arc::new(hub.of_shared_logs());
    let (committed, hints) = Committed::channel(1_000);
    let feed = Feed::new(Arc::clone(&log) as Arc<dyn Log>, committed.clone());
    Node {
        subscriber: Subscriber::new(Arc::new(feed), Arc::clone(&hub), &settings),
        log,
        hub,
        committed,
        batches,
        hints: Some(hints),
        place,
    }
}

impl Node {
    /// Carries out a job's commands and returns their events, which are not delivered yet.
    async fn commit(&mut self, number: i64, commands: Vec<Envelope>) -> Vec<Arc<Event>> {
        let receipts = self.log.store.append(school(number), commands);
        for receipt in receipts.await.unwrap() {
            receipt.unwrap();
        }
        std::iter::from_fn(|| self.batches.try_recv())
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
            let deliver = move |events: &[Arc<Event>]| offered.offer(events).wake();
            feed::follow(&mut hints, &hub, log, deliver, std::future::pending()).await;
        })
    }

    /// Begins to compare heads.
    fn compare_heads(&self) -> tokio::task::JoinHandle<()> {
        let (hub, log) = (Arc::clone(&self.hub), Arc::clone(&self.log));
        let hints = self.committed.hints().clone();
        tokio::spawn(async move { feed::watch_heads(log, hub, hints).await })
    }

    /// Fails over to a copy of the database as it is now. What is committed from now on is lost.
    fn fork(&self) -> impl FnOnce() -> Batches + use<> {
        let copy = self.place.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        for name in ["test.db", "test.db-wal"] {
            std::fs::copy(self.place.path().join(name), copy.join(name)).unwrap();
        }
        let log = Arc::clone(&self.log);
        move || {
            let (committed, batches) = Committed::channel(1_000);
            let path = copy.join("test.db");
            let store = SqliteStore::open(&Settings::default(), &path, committed, &[]).unwrap();
            assert!(log.copy.set(store).is_ok(), "it fails over once");
            batches
        }
    }

    fn open(&self, number: i64, from: Option<u64>) -> Subscription {
        self.open_with(number, from, Duration::ZERO)
    }

    /// The same with a minimum time between two ticks.
    fn open_with(&self, number: i64, from: Option<u64>, tick: Duration) -> Subscription {
        let request = Request {
            scope: Scope::new(school(number), [kind::channel("jobs").unwrap()]),
            reader: Reader {
                transport: "test",
                user: "test".into(),
                address: None,
                peer: None,
            },
            from: from.map(|seq| Cursor::untagged(self.log.epoch(), seq)),
            tick,
            expires_at: None,
            reconnects_until: None,
            welcome: None,
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
    let received = futures_util::future::join_all(crowd.iter_mut().map(until_ready)).await;
    for events in &received {
        let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (2..=TICKS as u64 + 2).collect::<Vec<_>>());
    }
    for (index, event) in received[0].iter().enumerate() {
        let shares = |events: &Vec<Arc<Event>>| Arc::ptr_eq(&events[index], event);
        assert!(
            received.iter().all(shares),
            "with its encodings: {}",
            event.seq
        );
    }
    let ranges = node.log.ranges.load(Ordering::SeqCst);
    assert!(
        ranges <= TICKS / 100,
        "{ranges} reads for {READERS} readers"
    );
    // Each reader looks for each of its pages. Those that ask while another one looks share the next look, so the number depends on how
    // busy the machine is.
    let bounds = node.log.bounds.load(Ordering::SeqCst);
    let alone = READERS * TICKS.div_ceil(SEGMENT_EVENTS as usize);
    assert!(
        bounds < alone / 2,
        "{bounds} looks at where the log ends, and {alone} if nobody shared one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_of_a_shared_log_is_kept_while_the_log_grows() {
    let mut node = node();
    make(&mut node, 1, 10).await;
    let first = until_ready(&mut node.open(1, Some(1))).await;
    for message in ["another", "and one more"] {
        node.report(message).await;
        // Not from the window of the hub.
        node.hub.forget_idle(Duration::ZERO);
        let events = until_ready(&mut node.open(1, Some(1))).await;
        assert!(events.len() > first.len(), "{}", events.len());
        for (before, now) in first.iter().zip(&events) {
            assert!(Arc::ptr_eq(before, now), "{} is read again", now.seq);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_whose_hint_was_lost_are_delivered_before_those_that_follow() {
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
    // A hint that arrives twice is delivered once.
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
    let ours = make(&mut node, 1, 1).await;
    let other = make(&mut node, 2, 1).await;
    node.committed.send(other).await.unwrap();
    let mut quiet = node.open(1, None);
    // Nobody follows: what the other school has committed is on its way for good.
    assert_eq!(until_ready(&mut quiet).await.len(), 1);
    node.committed.send(ours).await.unwrap();
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
    let events = until_ready(&mut subscription).await;
    assert_eq!(
        events.iter().map(|event| event.seq).collect::<Vec<_>>(),
        [4, 5]
    );
}

/// A server that stops does not wait until everybody has read the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_catching_up_receives_the_close_before_the_rest_of_the_log() {
    let page = usize::try_from(SEGMENT_EVENTS).unwrap();
    let mut node = node();
    make(&mut node, 1, 3 * page).await;
    let mut subscription = node.open(1, Some(1));
    assert_eq!(next_event(&mut subscription).await, 2);
    node.hub.close_all(|| Close::Done);
    let mut delivered = 1;
    let close = loop {
        match subscription.next().await.expect("a close") {
            Delivery::Event(_) => delivered += 1,
            Delivery::Control(Control::Closing { close, .. }) => break close,
            Delivery::Control(_) => {}
        }
    };
    assert_eq!(close, Close::Done);
    assert!(
        delivered <= page,
        "{delivered} were delivered, and not only what was read"
    );
    assert!(subscription.next().await.is_none(), "nothing follows");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_an_event_alone_has_it_read_from_the_log() {
    let mut node = node();
    make(&mut node, 1, 1).await;
    let following = node.follow();
    let mut subscription = node.open(1, None);
    until_ready(&mut subscription).await;
    for message in ["one", "two", "three"] {
        node.report(message).await;
    }
    let hints = node.committed.hints().clone();
    hints.give(Hint::UpTo(school(1), 6));
    for seq in 4..=6 {
        assert_eq!(next_event(&mut subscription).await, seq);
    }
    // A number that is not in the log is no reason to wait for it.
    hints.give(Hint::UpTo(school(1), 1_000_000));
    node.report("four").await;
    hints.give(Hint::UpTo(school(1), 7));
    assert_eq!(next_event(&mut subscription).await, 7);
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_about_a_school_without_listeners_cost_no_read_and_no_memory() {
    let mut node = node();
    let ours = make(&mut node, 1, 1).await;
    let others = make(&mut node, 2, 1).await;
    let following = node.follow();
    let hints = node.committed.hints().clone();
    hints.give(Hint::Events(others.clone()));
    hints.give(Hint::UpTo(school(2), 1_000));
    hints.give(Hint::HistoryChanged(school(2)));
    // Nor is what this node commits kept for nobody.
    node.committed.send(ours).await.unwrap();
    node.committed.round_trip().await.unwrap();
    support::until("the hints are taken", async || hints.counts().late == 3).await;
    assert_eq!(node.hub.schools(), 0);
    assert_eq!(node.log.ranges.load(Ordering::SeqCst), 0);
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn an_event_without_any_hint_arrives_by_the_comparison_of_heads() {
    let mut node = node();
    make(&mut node, 1, 1).await;
    let (following, comparing) = (node.follow(), node.compare_heads());
    let mut subscription = node.open(1, None);
    until_ready(&mut subscription).await;
    for seq in 4..=6 {
        node.report("lost").await;
        assert_eq!(next_event(&mut subscription).await, seq);
    }
    // One query for all schools, and no read of what is up to date.
    let ranges = node.log.ranges.load(Ordering::SeqCst);
    assert!(ranges <= 4, "{ranges} reads for 3 events");
    following.abort();
    comparing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_is_the_number_of_events_that_the_streams_lack() {
    let mut node = node();
    let events = make(&mut node, 1, 5).await;
    let mut subscription = node.open(1, Some(1));
    until_ready(&mut subscription).await;
    let last = events.last().unwrap().seq;
    // Other nodes commit. Of a school to which nobody listens, nothing is lacking.
    for _ in 0..3 {
        node.report("lost").await;
    }
    make(&mut node, 2, 5).await;
    let looking = node.compare_heads();
    let hints = node.committed.hints().clone();
    hints.request_check_of_all();
    support::until("the lag is known", async || hints.counts().behind == 3).await;
    let following = node.follow();
    for seq in 1..=3 {
        assert_eq!(next_event(&mut subscription).await, last + seq);
    }
    hints.request_check_of_all();
    support::until("there is none", async || hints.counts().behind == 0).await;
    following.abort();
    looking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_reader_misses_nothing_that_is_committed_while_it_reads() {
    let mut node = node();
    make(&mut node, 1, 1).await;
    let following = node.follow();
    let mut subscription = node.open(1, Some(1));
    // It listens, and has not read anything: the hub knows no head yet.
    node.report("meanwhile").await;
    node.committed.hints().give(Hint::UpTo(school(1), 4));
    let events = until_ready(&mut subscription).await;
    let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [2, 3, 4]);
    node.report("after").await;
    node.committed.hints().give(Hint::UpTo(school(1), 5));
    assert_eq!(next_event(&mut subscription).await, 5);
    following.abort();
}

/// The subjects, numbers and resets that a subscription tells until it is ready again.
async fn until_reset(subscription: &mut Subscription) -> Vec<Arc<Event>> {
    loop {
        if let Delivery::Control(Control::Reset(_)) = subscription.next().await.expect("it goes on")
        {
            return until_ready(subscription).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn live_readers_of_a_log_that_lost_events_are_reset() {
    let mut node = node();
    let first = make(&mut node, 1, 1).await;
    let (following, comparing) = (node.follow(), node.compare_heads());
    node.committed.send(first).await.unwrap();
    let mut subscription = node.open(1, None);
    until_ready(&mut subscription).await;
    let fail_over = node.fork();
    let lost = node.report("lost").await;
    node.committed.send(lost).await.unwrap();
    assert_eq!(next_event(&mut subscription).await, 4);
    let _batches = fail_over();
    let states = until_reset(&mut subscription).await;
    assert_eq!(states.last().unwrap().seq, 3, "as the log has it");
    following.abort();
    comparing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn live_readers_are_reset_when_a_number_is_assigned_again() {
    for is_told_of_the_event in [true, false] {
        let mut node = node();
        let first = make(&mut node, 1, 1).await;
        let following = node.follow();
        node.committed.send(first).await.unwrap();
        let mut subscription = node.open(1, None);
        until_ready(&mut subscription).await;
        let fail_over = node.fork();
        let lost = node.report("lost").await;
        node.committed.send(lost).await.unwrap();
        assert_eq!(next_event(&mut subscription).await, 4);
        let mut batches = fail_over();
        let report = |text: &str| job("a", "progress", json!({ "message": text }));
        let store = node.log.copy.get().unwrap();
        let reports = vec![report("another"), report("and one more")];
        store.append(school(1), reports).await.unwrap();
        let events = batches.try_recv().unwrap();
        let hints = node.committed.hints();
        hints.give(match is_told_of_the_event {
            true => Hint::Events(events),
            false => Hint::UpTo(school(1), 5),
        });
        let states = until_reset(&mut subscription).await;
        assert_eq!(states.last().unwrap().seq, 5, "as the log has it");
        following.abort();
    }
}

/// The log has replaced the event that was delivered last, and this node gets no hint of the one that replaced it.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_event_alone_shows_that_the_one_before_it_was_lost() {
    let mut node = node();
    let first = make(&mut node, 1, 1).await;
    let following = node.follow();
    node.committed.send(first).await.unwrap();
    let mut subscription = node.open(1, None);
    until_ready(&mut subscription).await;
    let fail_over = node.fork();
    let lost = node.report("lost").await;
    node.committed.send(lost).await.unwrap();
    assert_eq!(next_event(&mut subscription).await, 4);
    let mut batches = fail_over();
    let store = node.log.copy.get().unwrap();
    for text in ["another", "and one more"] {
        let report = job("a", "progress", json!({ "message": text }));
        store.append(school(1), vec![report]).await.unwrap();
    }
    batches.try_recv().expect("its hint is lost");
    let last = batches.try_recv().unwrap();
    assert_eq!((last.len(), last[0].seq), (1, 5));
    node.committed.hints().give(Hint::Events(last));
    let states = until_reset(&mut subscription).await;
    assert_eq!(states.last().unwrap().seq, 5, "as the log has it");
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_is_not_reset_for_a_lost_event_that_it_was_never_sent() {
    let mut node = node();
    let first = make(&mut node, 1, 1).await;
    let following = node.follow();
    node.committed.send(first).await.unwrap();
    let mut subscription = node.open_with(1, None, Duration::from_secs(3_600));
    until_ready(&mut subscription).await;
    let events = node.report("delivered").await;
    node.committed.send(events).await.unwrap();
    assert_eq!(next_event(&mut subscription).await, 4);
    let fail_over = node.fork();
    let held = node.report("held back").await;
    node.committed.send(held).await.unwrap();
    node.committed.round_trip().await.unwrap();
    assert!(subscription.next().now_or_never().is_none(), "too early");
    let mut batches = fail_over();
    node.committed.hints().give(Hint::HistoryChanged(school(1)));
    let store = node.log.copy.get().unwrap();
    let failed = job(
        "a",
        "fail",
        json!({"error": {"code": "jam", "message": "paper"}}),
    );
    store.append(school(1), vec![failed]).await.unwrap();
    let replacement = batches.try_recv().unwrap();
    node.committed
        .hints()
        .give(Hint::Events(replacement.clone()));
    let delivered = loop {
        match subscription.next().await.expect("it goes on") {
            Delivery::Event(event) => break event,
            Delivery::Control(control) => {
                assert!(!matches!(control, Control::Reset(_)), "{control:?}");
            }
        }
    };
    assert_eq!(delivered.place(), replacement[0].place());
    following.abort();
}

/// Nobody listens when the database fails over, so that only the next replay can notice it.
#[tokio::test(flavor = "multi_thread")]
async fn replays_that_share_a_read_deliver_nothing_that_the_log_has_lost() {
    let mut node = node();
    make(&mut node, 1, 1).await;
    let fail_over = node.fork();
    node.report("lost").await;
    node.report("lost, too").await;
    let delivered = until_ready(&mut node.open(1, Some(1))).await;
    assert_eq!(
        delivered.len(),
        4,
        "what is lost later was read, and is shared"
    );
    node.hub.forget_idle(Duration::ZERO);
    let mut batches = fail_over();
    let store = node.log.copy.get().unwrap();
    let mut kept: Vec<Arc<Event>> = delivered[..2].to_vec();
    for texts in [&["another"][..], &["and one more", "and the last"]] {
        let report = |text: &&str| job("a", "progress", json!({ "message": text }));
        let reports = texts.iter().map(report).collect();
        store.append(school(1), reports).await.unwrap();
        kept.extend(batches.try_recv().unwrap());
        let delivered = until_ready(&mut node.open(1, Some(1))).await;
        let places =
            |events: &[Arc<Event>]| events.iter().map(|event| event.place()).collect::<Vec<_>>();
        assert_eq!(places(&delivered), places(&kept));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_read_while_the_log_fails_over_are_of_one_history() {
    let mut node = node();
    make(&mut node, 1, 1).await;
    let fail_over = node.fork();
    for text in ["lost", "lost, too", "and this"] {
        node.report(text).await;
    }
    // Two events that will be lost are in the first part.
    node.log.limit.store(5, Ordering::SeqCst);
    let log = Arc::clone(&node.log);
    let fails_over = async move {
        fail_over();
        let report = |tick: u64| job("a", "progress", json!({"message": tick.to_string()}));
        let reports = (4..=7).map(report).collect();
        let store = log.copy.get().unwrap();
        store.append(school(1), reports).await.unwrap();
    };
    *node.log.afterwards.lock().unwrap() = Some(fails_over.boxed());
    let delivered = until_ready(&mut node.open(1, Some(1))).await;
    let kept = node.log.now().read_range(school(1), 1, 7).await.unwrap();
    assert_eq!(kept.events.len(), 6);
    let places =
        |events: &[Arc<Event>]| events.iter().map(|event| event.place()).collect::<Vec<_>>();
    assert_eq!(places(&delivered), places(&kept.events));
}
