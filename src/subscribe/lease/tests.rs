//! A subscription that lends its sink, on a log in memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use futures_util::{FutureExt, StreamExt};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::config::{CATCH_UP_HEARTBEAT, Settings};
use crate::crowd::{self, Crowd};
use crate::hub::Hub;
use crate::hub::mailbox::tests::event;
use crate::id::Channel;
use crate::kind::job;
use crate::log::{Batches, Committed};
use crate::subscribe::tests::{next_event, open_with, setup, subscriber, until_ready};
use crate::tasks::Tasks;

/// A sink with room for one event at a time.
#[derive(Default)]
struct Narrow {
    lease: Mutex<Option<Lease>>,
    sent: Mutex<Vec<u64>>,
}

impl Sink for Narrow {
    fn write(&self, waiting: &mut Queue<Arc<Event>>) -> (Written, Option<Wait>) {
        let mut lease = self.lease.lock().unwrap();
        let lease = lease.as_mut().unwrap();
        let written = lease.send(waiting, Instant::now(), |event| {
            self.sent.lock().unwrap().push(event.seq);
            false
        });
        (written, waiting.is_empty().then(|| lease.wait()).flatten())
    }
}

/// It is as if the subscription itself had sent what was written.
#[tokio::test(start_paused = true)]
async fn a_subscription_that_lends_its_sink_continues_after_what_was_written() {
    let (_, hub, subscriber, _batches) = setup();
    let interval = Duration::from_millis(100);
    let mut subscription = open_with(&subscriber, [Channel::Collection(job::KIND)], interval);
    let sink = Arc::new(Narrow::default());
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(subscription.lend(cx, &sink).is_none(), "a snapshot follows");
    until_ready(&mut subscription).await;
    let mut lend = |subscription: &mut Subscription, now: &[u64]| {
        assert!(subscription.next().now_or_never().is_none());
        *sink.lease.lock().unwrap() = subscription.lend(cx, &sink);
        assert_eq!(*sink.sent.lock().unwrap(), now);
    };
    let place = |subscription: &Subscription| subscription.resume_cursor().unwrap().place.seq;
    let take_back = |subscription: &mut Subscription| {
        subscription.take_back(sink.lease.lock().unwrap().take().unwrap());
    };
    lend(&mut subscription, &[]);
    hub.offer(&[event(1, "a", false)]).wake();
    hub.offer(&[event(2, "b", true)]).wake();
    take_back(&mut subscription);
    assert_eq!(place(&subscription), 2);
    lend(&mut subscription, &[1, 2]);
    // A tick of the same subject within the interval is held back, although someone else has sent the first one.
    hub.offer(&[event(3, "a", false)]).wake();
    take_back(&mut subscription);
    assert_eq!(place(&subscription), 2);
    assert_eq!(next_event(&mut subscription).await, 3);
    lend(&mut subscription, &[1, 2]);
    // The first fills the sink.
    hub.offer(&[event(4, "b", true), event(5, "b", true)])
        .wake();
    take_back(&mut subscription);
    assert_eq!(
        (place(&subscription), next_event(&mut subscription).await),
        (4, 5)
    );
    lend(&mut subscription, &[1, 2, 4]);
    // The sink sends a tick that is due at once. The next one within the interval wakes nobody, and is sent when it is due.
    tokio::time::sleep(interval * 2).await;
    take_back(&mut subscription);
    lend(&mut subscription, &[1, 2, 4]);
    hub.offer(&[event(6, "a", false)]).wake();
    take_back(&mut subscription);
    lend(&mut subscription, &[1, 2, 4, 6]);
    take_back(&mut subscription);
    let begin = Instant::now();
    let reader = tokio::spawn(async move { next_event(&mut subscription).await });
    tokio::task::yield_now().await;
    hub.offer(&[event(7, "a", false)]).wake();
    assert_eq!(reader.await.unwrap(), 7);
    assert!(begin.elapsed() <= interval);
}

/// A sink with room for everything, and the number of times that the task of its subscription was woken.
#[derive(Default)]
struct Wide {
    lease: Mutex<Option<Lease>>,
    sent: Mutex<Vec<u64>>,
    writes: AtomicUsize,
    wakes: AtomicUsize,
}

impl Sink for Wide {
    fn write(&self, waiting: &mut Queue<Arc<Event>>) -> (Written, Option<Wait>) {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let mut lease = self.lease.lock().unwrap();
        let Some(lease) = lease.as_mut() else {
            return (Written::default(), None);
        };
        let written = lease.send(waiting, Instant::now(), |event| {
            self.sent.lock().unwrap().push(event.seq);
            true
        });
        (written, waiting.is_empty().then(|| lease.wait()).flatten())
    }
}

impl Wake for Wide {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }
}

/// A subscription that has lent its sink and sleeps. The test, which offers events, and the task for held ticks write to the sink.
struct Sleeping {
    hub: Arc<Hub>,
    sink: Arc<Wide>,
    subscription: Subscription,
    _held_ticks: AbortOnDropHandle<()>,
}

impl Sleeping {
    async fn begin(interval: Duration) -> (Sleeping, Batches) {
        let (log, hub) = (Arc::default(), Arc::new(Hub::new(8, 4 * LENT_TICKS_MAX)));
        let (committed, batches) = Committed::channel(8);
        let subscriber = subscriber(&log, &hub, committed);
        let channel = Channel::Collection(job::KIND);
        let mut subscription = open_with(&subscriber, [channel], interval);
        until_ready(&mut subscription).await;
        let crowd = Crowd::new(Tasks::default());
        let held_ticks = crowd::write_held_ticks(Arc::clone(&hub), crowd);
        let sleeping = Sleeping {
            hub,
            sink: Arc::default(),
            subscription,
            _held_ticks: AbortOnDropHandle::new(tokio::spawn(held_ticks)),
        };
        (sleeping, batches)
    }

    /// Lends the sink. Returns false if the subscription has more to do.
    fn lend(&mut self) -> bool {
        let waker = Waker::from(Arc::clone(&self.sink));
        let cx = &mut Context::from_waker(&waker);
        assert!(self.subscription.poll_next_unpin(cx).is_pending());
        let lease = self.subscription.lend(cx, &self.sink);
        let is_lent = lease.is_some();
        *self.sink.lease.lock().unwrap() = lease;
        is_lent
    }

    fn take_back(&mut self) {
        let lease = self.sink.lease.lock().unwrap().take();
        self.subscription.take_back(lease.unwrap());
    }

    fn offer(&self, events: &[Arc<Event>]) {
        for event in events {
            self.hub.offer(std::slice::from_ref(event)).wake();
        }
    }

    fn sent(&self) -> Vec<u64> {
        std::mem::take(&mut self.sink.sent.lock().unwrap())
    }

    fn wakes(&self) -> usize {
        self.sink.wakes.load(Ordering::SeqCst)
    }

    fn place(&self) -> u64 {
        self.subscription.resume_cursor().unwrap().place.seq
    }
}

/// So a reader that conflates costs no more per delivery than one that does not.
#[tokio::test(start_paused = true)]
async fn held_ticks_are_sent_when_they_are_due_while_the_subscription_sleeps() {
    let interval = Duration::from_millis(100);
    let (mut sleeping, _batches) = Sleeping::begin(interval).await;
    assert!(sleeping.lend());
    let ticks = |seqs: std::ops::RangeInclusive<u64>, subject: &'static str| {
        seqs.map(|seq| event(seq, subject, false))
            .collect::<Vec<_>>()
    };
    sleeping.offer(&ticks(1..=5, "a"));
    assert_eq!(sleeping.sent(), [1]);
    // One is sent and one held back. From then on, they wait in the mailbox.
    assert_eq!(sleeping.sink.writes.load(Ordering::SeqCst), 2);
    tokio::time::sleep(interval / 2).await;
    sleeping.offer(&ticks(6..=7, "a"));
    assert!(sleeping.sent().is_empty());
    tokio::time::sleep(interval).await;
    assert_eq!(sleeping.sent(), [7]);
    // Two intervals without a tick: the next one is sent at once.
    tokio::time::sleep(interval * 2).await;
    sleeping.offer(&ticks(8..=8, "a"));
    assert_eq!(sleeping.sent(), [8]);
    // Ticks of other subjects wait for the held one, and a milestone sends all of them.
    sleeping.offer(&ticks(9..=9, "a"));
    sleeping.offer(&ticks(10..=10, "b"));
    assert!(sleeping.sent().is_empty());
    tokio::time::sleep(interval * 3).await;
    assert_eq!(sleeping.sent(), [9, 10]);
    sleeping.offer(&ticks(11..=12, "a"));
    sleeping.offer(&[event(13, "c", true)]);
    assert_eq!(sleeping.sent(), [11, 12, 13]);
    assert_eq!(sleeping.wakes(), 0);
    sleeping.take_back();
    assert_eq!(sleeping.place(), 13);
}

/// It sends what the sink has held back when it is due, and it lends the sink with what it holds back itself.
#[tokio::test(start_paused = true)]
async fn a_held_tick_changes_hands_with_the_sink() {
    let interval = Duration::from_millis(100);
    let (mut sleeping, _batches) = Sleeping::begin(interval).await;
    assert!(sleeping.lend());
    sleeping.offer(&[event(1, "a", false), event(2, "a", false)]);
    sleeping.take_back();
    assert_eq!((sleeping.sent(), sleeping.place()), (vec![1], 1));
    assert!(sleeping.lend());
    sleeping.offer(&[event(3, "a", false)]);
    tokio::time::sleep(interval + Duration::from_millis(1)).await;
    assert_eq!(sleeping.sent(), [3]);
    sleeping.offer(&[event(4, "a", false)]);
    assert_eq!(sleeping.wakes(), 0);
    sleeping.take_back();
    assert_eq!(sleeping.place(), 3);
    let begin = Instant::now();
    assert_eq!(next_event(&mut sleeping.subscription).await, 4);
    assert!(!begin.elapsed().is_zero() && begin.elapsed() <= interval);
}

/// Although ticks that are held back no longer wake its task.
#[tokio::test(start_paused = true)]
async fn a_subscription_that_has_lent_its_sink_is_woken_for_its_heartbeat() {
    let (mut sleeping, _batches) = Sleeping::begin(Duration::from_millis(100)).await;
    sleeping.offer(&[event(1, "a", false), event(2, "a", false)]);
    assert_eq!(next_event(&mut sleeping.subscription).await, 1);
    // It holds back a tick and has set its timer for it.
    assert!(sleeping.lend());
    tokio::time::sleep(CATCH_UP_HEARTBEAT / 2).await;
    assert_eq!((sleeping.sent(), sleeping.wakes()), (vec![2], 0));
    tokio::time::sleep(Settings::default().heartbeat()).await;
    assert_eq!(sleeping.wakes(), 1);
}

/// Its task waits for them, because the socket must not have to take too many at once.
#[tokio::test(start_paused = true)]
async fn a_subscription_that_holds_many_ticks_keeps_its_sink() {
    let interval = Duration::from_millis(100);
    let (mut sleeping, _batches) = Sleeping::begin(interval).await;
    assert!(sleeping.lend());
    let subjects = LENT_TICKS_MAX as u64 + 1;
    let round = |from: u64| {
        let tick = |subject: u64| event(from + subject, &subject.to_string(), false);
        (1..=subjects).map(tick).collect::<Vec<_>>()
    };
    sleeping.offer(&round(0));
    assert_eq!(sleeping.sent().len() as u64, subjects);
    sleeping.offer(&round(subjects));
    assert_eq!((sleeping.sent().len(), sleeping.wakes()), (0, 1));
    sleeping.take_back();
    assert_eq!(sleeping.place(), subjects);
    assert!(!sleeping.lend());
    for seq in subjects + 1..=2 * subjects {
        assert_eq!(next_event(&mut sleeping.subscription).await, seq);
    }
    assert!(sleeping.lend());
}
