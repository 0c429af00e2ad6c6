//! Guarantees of a subscription, on a log in memory.

use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::feed::tests::{Kept, events, hub, school};
use crate::hub::mailbox::tests::event;
use crate::kind::job;
use crate::log::{Committed, Incoming, Log};

fn subject(id: &str) -> Channel {
    Channel::Subject(job::KIND, id.parse().unwrap())
}

/// Listens to these channels from the beginning of the log.
fn open(subscriber: &Subscriber, channels: impl IntoIterator<Item = Channel>) -> Subscription {
    open_with(subscriber, channels, Duration::ZERO)
}

/// The same with a minimum time between two ticks.
fn open_with(
    subscriber: &Subscriber,
    channels: impl IntoIterator<Item = Channel>,
    tick: Duration,
) -> Subscription {
    let request = Request {
        scope: Scope::new(school(), channels),
        reader: Reader {
            transport: "test",
            user: "test".into(),
            address: None,
            peer: None,
        },
        from: Some(Cursor::untagged(subscriber.feed().epoch(), 0)),
        tick,
        expires_at: None,
        returns_until: None,
        welcome: None,
    };
    subscriber.open(request).unwrap()
}

fn subscriber(log: &Arc<Kept>, hub: &Arc<Hub>, committed: Committed) -> Subscriber {
    let feed = Feed::new(Arc::clone(log) as Arc<dyn Log>, committed);
    Subscriber::new(Arc::new(feed), Arc::clone(hub), &Settings::default())
}

/// Returns the numbers of the events before the next control message that fits.
async fn until(subscription: &mut Subscription, fits: impl Fn(&Control) -> bool) -> Vec<u64> {
    let mut seqs = Vec::new();
    loop {
        match subscription.next().await.expect("it goes on") {
            Delivery::Event(event) => seqs.push(event.seq),
            Delivery::Control(control) if fits(&control) => return seqs,
            Delivery::Control(_) => {}
        }
    }
}

async fn until_ready(subscription: &mut Subscription) -> Vec<u64> {
    until(subscription, |own| matches!(own, Control::Ready(_))).await
}

/// A client that has the answer to a command finds its event in each stream that it opens afterwards.
#[tokio::test]
async fn what_was_committed_before_a_stream_opened_is_awaited() {
    let (log, hub) = (Arc::new(Kept::default()), hub());
    let (committed, mut batches) = Committed::channel(8);
    let subscriber = subscriber(&log, &hub, committed.clone());
    committed.send(events(1..=2)).await.unwrap();
    log.ends_with(&events(1..=2));
    let mut subscription = open(&subscriber, [Channel::Collection(job::KIND)]);
    // All that would deliver them is done within a few turns.
    for _ in 0..100 {
        assert!(subscription.next().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let Some(Incoming::Committed(batch)) = batches.next().await else {
        panic!("it is on its way");
    };
    hub.offer(&batch).wake();
    batches.dispatched(&batch);
    batches.done();
    assert_eq!(until_ready(&mut subscription).await, [1, 2]);
}

#[tokio::test]
async fn no_event_of_a_channel_follows_its_unsubscribe() {
    let (log, hub) = (Arc::new(Kept::default()), hub());
    let (committed, _batches) = Committed::channel(8);
    let subscriber = subscriber(&log, &hub, committed);
    let mut subscription = open(&subscriber, ["a", "b"].map(subject));
    assert!(until_ready(&mut subscription).await.is_empty());
    hub.offer(&[
        event(1, "a", true),
        event(2, "b", true),
        event(3, "a", true),
    ])
    .wake();
    let first = subscription.next().await;
    assert!(matches!(first, Some(Delivery::Event(event)) if event.seq == 1));
    // 2 and 3 are about to be sent, and this one is still in the mailbox.
    hub.offer(&[event(4, "b", true)]).wake();
    subscription.unsubscribe(&[subject("b")], Map::new());
    let is_acknowledgement = |own: &Control| matches!(own, Control::Unsubscribed { .. });
    assert_eq!(until(&mut subscription, is_acknowledgement).await, [3]);
    hub.offer(&[event(5, "a", true)]).wake();
    let next = subscription.next().await;
    assert!(matches!(next, Some(Delivery::Event(event)) if event.seq == 5));
}

#[tokio::test]
async fn an_unsubscribe_amid_a_replay_leaves_out_its_own_channel_only() {
    let (log, hub) = (Arc::new(Kept::default()), hub());
    let (committed, _batches) = Committed::channel(8);
    let subscriber = subscriber(&log, &hub, committed);
    log.ends_with(&[event(1, "b", true), event(2, "c", true)]);
    let mut subscription = open(&subscriber, [subject("a")]);
    assert!(until_ready(&mut subscription).await.is_empty());
    let from = Cursor::untagged(subscriber.feed().epoch(), 0);
    subscription.subscribe(["b", "c"].map(subject).into(), Some(from), Map::new(), None);
    let is_acknowledgement = |own: &Control| matches!(own, Control::Subscribed { .. });
    let before = until(&mut subscription, is_acknowledgement).await;
    assert!(before.is_empty());
    subscription.unsubscribe(&[subject("c")], Map::new());
    assert_eq!(until_ready(&mut subscription).await, [1]);
}

/// The place in the next heartbeat.
async fn heartbeat(subscription: &mut Subscription) -> u64 {
    loop {
        let delivery = subscription.next().await.expect("it goes on");
        if let Delivery::Control(Control::Heartbeat { cursor, .. }) = delivery {
            return cursor.expect("it has a channel").place.seq;
        }
    }
}

/// Otherwise the cursor of a quiet channel would expire.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_moves_the_cursor_past_what_is_out_of_scope() {
    let (log, hub) = (Arc::new(Kept::default()), hub());
    let (committed, _batches) = Committed::channel(8);
    let subscriber = subscriber(&log, &hub, committed);
    let mut subscription = open(&subscriber, [subject("a")]);
    until_ready(&mut subscription).await;
    hub.offer(&[event(1, "b", true), event(2, "b", true)])
        .wake();
    assert_eq!(heartbeat(&mut subscription).await, 2);
    hub.offer(&[event(3, "b", true)]).wake();
    assert_eq!(heartbeat(&mut subscription).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_does_not_move_the_cursor_past_a_tick_that_is_held() {
    let (log, hub) = (Arc::new(Kept::default()), hub());
    let (committed, _batches) = Committed::channel(8);
    let subscriber = subscriber(&log, &hub, committed);
    let long = Duration::from_secs(3_600);
    let mut subscription = open_with(&subscriber, [subject("a")], long);
    until_ready(&mut subscription).await;
    hub.offer(&[event(1, "a", false)]).wake();
    let first = subscription.next().await;
    assert!(matches!(first, Some(Delivery::Event(event)) if event.seq == 1));
    hub.offer(&[event(2, "a", false), event(3, "b", true)])
        .wake();
    for _ in 0..2 {
        assert_eq!(heartbeat(&mut subscription).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_does_not_move_the_cursor_past_what_is_still_read() {
    let (log, hub) = (Arc::new(Kept::default()), hub());
    let (committed, _batches) = Committed::channel(8);
    let subscriber = subscriber(&log, &hub, committed.clone());
    log.ends_with(&events(1..=1));
    // What is on its way is awaited, so the stream does not become ready.
    committed.send(events(1..=1)).await.unwrap();
    let mut subscription = open(&subscriber, [subject("a")]);
    hub.offer(&events(1..=1)).wake();
    assert_eq!(heartbeat(&mut subscription).await, 0);
}
