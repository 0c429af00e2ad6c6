//! Guarantees of a subscription, on a log in memory.

use std::sync::atomic::Ordering;

use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::config::{Bounded, CATCH_UP_HEARTBEAT};
use crate::feed::tests::{Kept, events, hub, school};
use crate::hub::mailbox::tests::event;
use crate::kind::job;
use crate::log::{Batches, Committed, Incoming, Log};
use crate::wire::ResetReason;

fn subject(id: &str) -> Channel {
    Channel::Subject(job::KIND, id.parse().unwrap())
}

/// Listens to these channels from the beginning of the log.
fn open(subscriber: &Subscriber, channels: impl IntoIterator<Item = Channel>) -> Subscription {
    open_with(subscriber, channels, Duration::ZERO)
}

/// The same with a minimum time between two ticks.
pub(super) fn open_with(
    subscriber: &Subscriber,
    channels: impl IntoIterator<Item = Channel>,
    tick: Duration,
) -> Subscription {
    let scope = Scope::new(school(), channels);
    let request = Request {
        tick,
        ..request(subscriber, scope)
    };
    subscriber.open(request).unwrap()
}

/// A request for this scope, from the beginning of the log.
fn request(subscriber: &Subscriber, scope: Scope) -> Request {
    Request {
        scope,
        reader: Reader {
            transport: "test",
            user: "test".into(),
            address: None,
            peer: None,
        },
        from: Some(Cursor::untagged(subscriber.feed().epoch(), 0)),
        tick: Duration::ZERO,
        expires_at: None,
        reconnects_until: None,
        welcome: None,
    }
}

pub(super) fn subscriber(log: &Arc<Kept>, hub: &Arc<Hub>, committed: Committed) -> Subscriber {
    let feed = Feed::new(Arc::clone(log) as Arc<dyn Log>, committed);
    Subscriber::new(Arc::new(feed), Arc::clone(hub), &Settings::default())
}

/// An empty log, what is read from it, and the receiver of commits, which nothing is sent to.
pub(super) fn setup() -> (Arc<Kept>, Arc<Hub>, Subscriber, Batches) {
    let (log, hub) = (Arc::new(Kept::default()), hub());
    let (committed, batches) = Committed::channel(8);
    let subscriber = subscriber(&log, &hub, committed);
    (log, hub, subscriber, batches)
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

pub(super) async fn until_ready(subscription: &mut Subscription) -> Vec<u64> {
    until(subscription, |control| matches!(control, Control::Ready(_))).await
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

/// At shutdown, the writer can commit after the dispatcher has gone.
#[tokio::test]
async fn nothing_waits_for_a_commit_that_nobody_dispatches() {
    let (log, hub) = (Arc::new(Kept::default()), hub());
    let (committed, batches) = Committed::channel(1);
    let subscriber = subscriber(&log, &hub, committed.clone());
    drop(batches);
    assert!(committed.blocking_send(events(1..=1)).is_err());
    log.ends_with(&events(1..=1));
    let mut subscription = open(&subscriber, [Channel::Collection(job::KIND)]);
    assert_eq!(until_ready(&mut subscription).await, [1]);
}

#[tokio::test]
async fn no_event_of_a_channel_follows_its_unsubscribe() {
    let (_, hub, subscriber, _batches) = setup();
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
    let is_acknowledgement = |control: &Control| matches!(control, Control::Unsubscribed { .. });
    assert_eq!(until(&mut subscription, is_acknowledgement).await, [3]);
    hub.offer(&[event(5, "a", true)]).wake();
    let next = subscription.next().await;
    assert!(matches!(next, Some(Delivery::Event(event)) if event.seq == 5));
}

#[tokio::test]
async fn an_unsubscribe_amid_a_replay_leaves_out_its_own_channel_only() {
    let (log, _, subscriber, _batches) = setup();
    log.ends_with(&[event(1, "b", true), event(2, "c", true)]);
    let mut subscription = open(&subscriber, [subject("a")]);
    assert!(until_ready(&mut subscription).await.is_empty());
    let from = Cursor::untagged(subscriber.feed().epoch(), 0);
    subscription.subscribe(["b", "c"].map(subject).into(), Some(from), Map::new(), None);
    let is_acknowledgement = |control: &Control| matches!(control, Control::Subscribed { .. });
    let before = until(&mut subscription, is_acknowledgement).await;
    assert!(before.is_empty());
    subscription.unsubscribe(&[subject("c")], Map::new());
    assert_eq!(until_ready(&mut subscription).await, [1]);
}

/// The next delivery must be an event. Returns its number.
pub(super) async fn next_event(subscription: &mut Subscription) -> u64 {
    match subscription.next().await {
        Some(Delivery::Event(event)) => event.seq,
        other => panic!("an event was expected: {other:?}"),
    }
}

#[tokio::test]
async fn nothing_pending_is_sent_after_the_credential_has_expired() {
    let (_, hub, subscriber, _batches) = setup();
    let mut subscription = open(&subscriber, [subject("a")]);
    until_ready(&mut subscription).await;
    hub.offer(&[event(1, "a", true), event(2, "a", true)])
        .wake();
    assert_eq!(next_event(&mut subscription).await, 1);
    subscription.renew(Some(Utc::now()));
    subscription.end_if_expired();
    let is_close = |control: &Control| {
        let expected = Close::TokenExpired;
        matches!(control, Control::Closing { close, .. } if *close == expected)
    };
    assert!(until(&mut subscription, is_close).await.is_empty());
    assert!(subscription.next().await.is_none());
}

/// Callers wait for it, so that a client cannot make the server keep any number of acknowledgements.
#[tokio::test]
async fn a_subscription_is_busy_until_its_acknowledgement_is_delivered() {
    let (_, _, subscriber, _batches) = setup();
    let mut subscription = open(&subscriber, [subject("a")]);
    until_ready(&mut subscription).await;
    assert!(!subscription.is_busy());
    let from = Cursor::untagged(subscriber.feed().epoch(), 0);
    subscription.subscribe([subject("b")].into(), Some(from), Map::new(), None);
    assert!(subscription.is_busy());
    let is_subscribed = |control: &Control| matches!(control, Control::Subscribed { .. });
    until(&mut subscription, is_subscribed).await;
    assert!(!subscription.is_busy());
    until_ready(&mut subscription).await;
    subscription.unsubscribe(&[subject("b")], Map::new());
    assert!(subscription.is_busy());
    let is_unsubscribed = |control: &Control| matches!(control, Control::Unsubscribed { .. });
    until(&mut subscription, is_unsubscribed).await;
    assert!(!subscription.is_busy());
}

/// A read that has begun uses the old scope, and would move the position past wide events.
#[tokio::test]
async fn wide_events_are_delivered_only_from_a_position() {
    let (_, _, subscriber, _batches) = setup();
    let mut subscription = open(&subscriber, [subject("a")]);
    subscription.subscribe_wide(job::KIND);
    assert_eq!(subscription.scope().wide(), None);
    until_ready(&mut subscription).await;
    subscription.subscribe_wide(job::KIND);
    assert_eq!(subscription.scope().wide(), Some(job::KIND));
}

#[tokio::test]
async fn an_addition_goes_on_when_the_last_other_channel_is_left() {
    let (log, _, subscriber, _batches) = setup();
    log.ends_with(&[event(1, "b", true)]);
    let mut subscription = open(&subscriber, [subject("a")]);
    until_ready(&mut subscription).await;
    subscription.subscribe_wide(job::KIND);
    let from = Cursor::untagged(subscriber.feed().epoch(), 0);
    subscription.subscribe([subject("b")].into(), Some(from), Map::new(), None);
    subscription.unsubscribe(&[subject("a")], Map::new());
    let is_subscribed = |control: &Control| matches!(control, Control::Subscribed { .. });
    until(&mut subscription, is_subscribed).await;
    assert_eq!(until_ready(&mut subscription).await, [1]);
}

/// A `ready` for a stream that has no channels any more would be about nothing.
#[tokio::test]
async fn no_ready_follows_after_the_last_channel_is_left() {
    let (_, _, subscriber, _batches) = setup();
    let wide = Scope::new(school(), [subject("a")]).with_wide(job::KIND);
    let mut subscription = subscriber.open(request(&subscriber, wide)).unwrap();
    subscription.unsubscribe(&[subject("a")], Map::new());
    let is_unsubscribed = |control: &Control| matches!(control, Control::Unsubscribed { .. });
    until(&mut subscription, is_unsubscribed).await;
    for _ in 0..100 {
        assert!(subscription.next().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_newest_of_the_ticks_within_an_interval_is_sent() {
    let (_, hub, subscriber, _batches) = setup();
    let interval = Duration::from_millis(500);
    let mut subscription = open_with(&subscriber, [subject("a")], interval);
    until_ready(&mut subscription).await;
    hub.offer(&[event(1, "a", false)]).wake();
    assert_eq!(next_event(&mut subscription).await, 1);
    hub.offer(&[event(2, "a", false)]).wake();
    assert!(subscription.next().now_or_never().is_none(), "2 is held");
    let reader = tokio::spawn(async move { (next_event(&mut subscription).await, subscription) });
    tokio::task::yield_now().await;
    // This tick does not wake the reader, which waits for the end of the interval.
    hub.offer(&[event(3, "a", false)]).wake();
    let (seq, mut subscription) = reader.await.unwrap();
    assert_eq!(seq, 3);
    hub.offer(&[event(4, "a", true)]).wake();
    assert_eq!(next_event(&mut subscription).await, 4);
}

/// Its number is lower than those that the added channels deliver.
#[tokio::test(start_paused = true)]
async fn a_tick_that_is_held_is_sent_before_channels_are_added() {
    let (log, hub, subscriber, _batches) = setup();
    let long = Duration::from_secs(3_600);
    let mut subscription = open_with(&subscriber, [subject("a")], long);
    until_ready(&mut subscription).await;
    let ticks = [event(1, "a", false), event(2, "a", false)];
    log.ends_with(&ticks);
    hub.offer(&ticks[..1]).wake();
    assert_eq!(next_event(&mut subscription).await, 1);
    hub.offer(&ticks[1..]).wake();
    assert!(subscription.next().now_or_never().is_none(), "2 is held");
    let from = Cursor::untagged(subscriber.feed().epoch(), 0);
    subscription.subscribe([subject("b")].into(), Some(from), Map::new(), None);
    let is_subscribed = |control: &Control| matches!(control, Control::Subscribed { .. });
    assert_eq!(until(&mut subscription, is_subscribed).await, [2]);
}

/// The position is brought up to date before a channel is added, and the events that this delivers are newer than a held tick.
#[tokio::test(start_paused = true)]
async fn a_tick_that_is_held_is_sent_before_newer_events_when_channels_are_added() {
    let (log, hub, subscriber, _batches) = setup();
    let long = Duration::from_secs(3_600);
    let mut subscription = open_with(&subscriber, [subject("a")], long);
    until_ready(&mut subscription).await;
    let ticks = [1, 2, 3].map(|seq| event(seq, "a", false));
    log.ends_with(&ticks);
    hub.offer(&ticks[..1]).wake();
    assert_eq!(next_event(&mut subscription).await, 1);
    hub.offer(&ticks[1..2]).wake();
    assert!(subscription.next().now_or_never().is_none(), "2 is held");
    hub.offer(&ticks[2..]).wake();
    subscription.subscribe([subject("b")].into(), None, Map::new(), None);
    let is_subscribed = |control: &Control| matches!(control, Control::Subscribed { .. });
    assert_eq!(until(&mut subscription, is_subscribed).await, [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_tick_that_is_held_is_dropped_with_its_channel() {
    let (_, hub, subscriber, _batches) = setup();
    let interval = Duration::from_millis(500);
    let mut subscription = open_with(&subscriber, ["a", "b"].map(subject), interval);
    until_ready(&mut subscription).await;
    hub.offer(&[event(1, "a", false)]).wake();
    assert_eq!(next_event(&mut subscription).await, 1);
    hub.offer(&[event(2, "a", false)]).wake();
    assert!(subscription.next().now_or_never().is_none(), "2 is held");
    subscription.unsubscribe(&[subject("a")], Map::new());
    let is_heartbeat = |control: &Control| matches!(control, Control::Heartbeat { .. });
    assert!(until(&mut subscription, is_heartbeat).await.is_empty());
}

#[tokio::test]
async fn an_added_channel_repeats_nothing_that_another_one_has_delivered() {
    let (log, _, subscriber, _batches) = setup();
    log.ends_with(&[event(1, "a", true), event(2, "b", true)]);
    let mut subscription = open(&subscriber, [subject("a")]);
    assert_eq!(until_ready(&mut subscription).await, [1]);
    let jobs = Channel::Collection(job::KIND);
    let from = Cursor::untagged(subscriber.feed().epoch(), 0);
    subscription.subscribe([jobs].into(), Some(from), Map::new(), None);
    assert_eq!(until_ready(&mut subscription).await, [2]);
}

#[tokio::test]
async fn a_reader_too_far_behind_is_reset_and_receives_the_current_states() {
    let (log, hub) = (Arc::new(Kept::default()), hub());
    let (committed, _batches) = Committed::channel(8);
    let settings = Settings {
        replay_max_events: Bounded::of::<3>(),
        ..Settings::default()
    };
    let feed = Feed::new(Arc::clone(&log) as Arc<dyn Log>, committed);
    let subscriber = Subscriber::new(Arc::new(feed), Arc::clone(&hub), &settings);
    let jobs = || [Channel::Collection(job::KIND)];
    log.ends_with(&[
        event(1, "a", true),
        event(2, "a", true),
        event(3, "b", true),
    ]);
    assert_eq!(until_ready(&mut open(&subscriber, jobs())).await, [1, 2, 3]);
    log.ends_with(&[event(4, "b", true)]);
    let mut subscription = open(&subscriber, jobs());
    let is_reset = |control: &Control| matches!(control, Control::Reset(ResetReason::TooFarBehind));
    assert!(until(&mut subscription, is_reset).await.is_empty());
    assert_eq!(until_ready(&mut subscription).await, [2, 4]);
}

#[tokio::test]
async fn a_reader_of_events_that_retention_has_removed_is_reset() {
    let (log, _, subscriber, _batches) = setup();
    log.ends_with(&[event(1, "a", true), event(2, "b", true)]);
    log.remove(1);
    let mut subscription = open(&subscriber, [Channel::Collection(job::KIND)]);
    let is_reset = |control: &Control| matches!(control, Control::Reset(ResetReason::Expired));
    assert!(until(&mut subscription, is_reset).await.is_empty());
    assert_eq!(until_ready(&mut subscription).await, [2]);
}

/// A client that has disconnected is noticed only when something is written.
#[tokio::test(start_paused = true)]
async fn a_long_search_for_events_in_scope_sends_heartbeats() {
    let (log, _, subscriber, _batches) = setup();
    log.ends_with(&[event(1, "b", true)]);
    let mut subscription = open(&subscriber, [subject("a")]);
    let begin = Instant::now();
    until_ready(&mut subscription).await;
    assert_eq!(Instant::now(), begin, "all is read at once");
    heartbeat(&mut subscription).await;
    let waited = begin.elapsed();
    let rounded = CATCH_UP_HEARTBEAT + Duration::from_millis(2);
    assert!(
        (CATCH_UP_HEARTBEAT..rounded).contains(&waited),
        "{waited:?}"
    );
}

/// The client has not received the lost events, because they were out of scope.
#[tokio::test]
async fn a_history_that_changes_during_a_replay_resets_only_who_received_it() {
    let (log, _, subscriber, _batches) = setup();
    let of = |subject: &'static str| move |seq| event(seq, subject, true);
    let mut first: Vec<_> = (1..=10).map(of("a")).collect();
    first.extend((11..=2_000).map(of("b")));
    log.ends_with(&first);
    // Two channels of which one is a collection, so that the replay reads the log page by page.
    let devices = Channel::Collection(crate::kind::device::KIND);
    let mut subscription = open(&subscriber, [subject("a"), devices]);
    for seq in 1..=10 {
        assert_eq!(next_event(&mut subscription).await, seq);
    }
    let second: Vec<_> = (11..=3_000).map(of("a")).collect();
    log.ends_with(&second);
    let mut next = 11;
    while next <= 3_000 {
        match subscription.next().await.expect("it goes on") {
            Delivery::Event(event) => {
                assert_eq!(event.seq, next);
                next += 1;
            }
            Delivery::Control(control) => {
                assert!(!matches!(control, Control::Reset(_)), "{control:?}");
            }
        }
    }
}

/// Without channels, a stream still listens to the wide events of a kind. It may have missed one of them, although it has received
/// nothing that was lost.
#[tokio::test(start_paused = true)]
async fn a_history_that_changes_resets_a_stream_without_channels_once() {
    for has_heartbeat in [false, true] {
        let (log, hub, subscriber, _batches) = setup();
        let first = [event(1, "a", true), event(2, "a", true)];
        log.ends_with(&first);
        hub.offer(&first).wake();
        let request = Request {
            from: None,
            ..request(&subscriber, Scope::new(school(), []).with_wide(job::KIND))
        };
        let mut subscription = subscriber.open(request).unwrap();
        let is_heartbeat = |control: &Control| matches!(control, Control::Heartbeat { .. });
        if has_heartbeat {
            until(&mut subscription, is_heartbeat).await;
        }
        // All that it reads is read within a few turns.
        for _ in 0..100 {
            assert!(subscription.next().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        assert_eq!(subscription.safe, first[1].place());
        log.ends_with(&[event(1, "b", true)]);
        hub.start_over(school()).wake();
        let is_reset =
            |control: &Control| matches!(control, Control::Reset(ResetReason::HistoryChanged));
        assert!(until(&mut subscription, is_reset).await.is_empty());
        assert!(until_ready(&mut subscription).await.is_empty());
        subscription.subscribe([subject("b")].into(), None, Map::new(), None);
        let sent = until(&mut subscription, |control| {
            assert!(!matches!(control, Control::Reset(_)), "{control:?}");
            matches!(control, Control::Ready(_))
        });
        assert_eq!(sent.await, [1]);
    }
}

/// What was replayed for an added channel must not be sent again, even if the next read finds that some of it is lost.
#[tokio::test]
async fn a_history_that_changes_after_a_replay_for_an_added_channel_resets_and_repeats_nothing() {
    let (log, hub, subscriber, _batches) = setup();
    log.ends_with(&[event(1, "a", true)]);
    let mut subscription = open(&subscriber, [subject("a")]);
    assert_eq!(until_ready(&mut subscription).await, [1]);
    let others = [2, 3, 4].map(|seq| event(seq, "b", true));
    log.ends_with(&others);
    hub.offer(&others).wake();
    let from = Cursor::untagged(subscriber.feed().epoch(), 1);
    subscription.subscribe([subject("b")].into(), Some(from), Map::new(), None);
    let is_acknowledgement = |control: &Control| matches!(control, Control::Subscribed { .. });
    until(&mut subscription, is_acknowledgement).await;
    for seq in 2..=4 {
        assert_eq!(next_event(&mut subscription).await, seq);
    }
    log.ends_with(&[event(4, "c", true), event(5, "c", true)]);
    hub.start_over(school()).wake();
    let repeated = until(&mut subscription, |control| {
        assert!(!matches!(control, Control::Ready(_)), "no reset");
        matches!(control, Control::Reset(ResetReason::HistoryChanged))
    });
    let repeated = repeated.await;
    assert!(repeated.is_empty(), "{repeated:?}");
}

/// A snapshot omits subjects that have changed since. Were the event of that change lost, a reader that resumed after the
/// snapshot would miss the subject.
#[tokio::test]
async fn until_ready_a_stream_resumes_before_what_a_snapshot_of_an_added_channel_omits() {
    let (log, hub, subscriber, _batches) = setup();
    log.ends_with(&[event(1, "a", true), event(2, "b", true)]);
    let mut subscription = open(&subscriber, [subject("a")]);
    assert_eq!(until_ready(&mut subscription).await, [1]);
    subscription.subscribe([subject("b")].into(), None, Map::new(), None);
    let is_subscribed = |control: &Control| matches!(control, Control::Subscribed { .. });
    assert!(until(&mut subscription, is_subscribed).await.is_empty());
    assert_eq!(next_event(&mut subscription).await, 2);
    let newer = [event(3, "b", true)];
    log.ends_with(&newer);
    hub.offer(&newer).wake();
    let resumes_from =
        |subscription: &Subscription| subscription.resume_cursor().unwrap().place.seq;
    assert_eq!(next_event(&mut subscription).await, 3);
    assert_eq!(resumes_from(&subscription), 0);
    assert!(until_ready(&mut subscription).await.is_empty());
    assert_eq!(resumes_from(&subscription), 3);
}

/// A page of a snapshot has no subjects that changed while an earlier one was read. Without them, the state is not complete.
#[tokio::test]
async fn subjects_that_change_while_a_snapshot_is_read_precede_ready() {
    for (is_alone, is_offered) in [(true, true), (true, false), (false, true), (false, false)] {
        let (log, hub, subscriber, _batches) = setup();
        log.is_alone.store(is_alone, Ordering::SeqCst);
        log.page_states.store(2, Ordering::SeqCst);
        let first = ["a", "b", "c", "d"];
        let first: Vec<_> = (1..)
            .zip(first)
            .map(|(seq, of)| event(seq, of, true))
            .collect();
        log.ends_with(&first);
        let mut subscription = subscriber
            .open(Request {
                from: None,
                ..request(
                    &subscriber,
                    Scope::new(school(), [Channel::Collection(job::KIND)]),
                )
            })
            .unwrap();
        // From here on, the mailbox has every event.
        hub.offer(&first).wake();
        assert_eq!(next_event(&mut subscription).await, 1);
        let newer = [event(5, "c", true)];
        log.ends_with(&newer);
        // The store shows an event to readers before the hub is offered it.
        if is_offered {
            hub.offer(&newer).wake();
        }
        let before_ready = until_ready(&mut subscription).await;
        assert_eq!(before_ready, [2, 4, 5], "{is_alone} {is_offered}");
    }
}

/// The cursors of an unfinished snapshot name the newest event when it was read: the snapshot omits the subjects that
/// changed up to it.
#[tokio::test]
async fn a_reader_that_leaves_before_ready_misses_no_state_if_events_are_lost_meanwhile() {
    for (is_alone, is_lost) in [(true, true), (true, false), (false, true), (false, false)] {
        let (log, hub, subscriber, _batches) = setup();
        log.is_alone.store(is_alone, Ordering::SeqCst);
        log.page_states.store(2, Ordering::SeqCst);
        let subjects = ["a", "b", "c", "d"];
        let first = (1..).zip(subjects);
        let first: Vec<_> = first.map(|(seq, of)| event(seq, of, true)).collect();
        log.ends_with(&first);
        let open = |from| {
            let scope = Scope::new(school(), [Channel::Collection(job::KIND)]);
            let request = request(&subscriber, scope);
            subscriber.open(Request { from, ..request }).unwrap()
        };
        let mut left = open(None);
        hub.offer(&first).wake();
        let complete = next_cursor(&mut left).await;
        assert_eq!(complete.place.seq, 1);
        assert_eq!(complete.awaits, Some(first[3].place()), "more pages follow");
        let newer = [event(5, "d", true), event(6, "c", true)];
        log.ends_with(&newer);
        let mut cursors = vec![complete];
        for _ in 0..2 {
            cursors.push(next_cursor(&mut left).await);
        }
        let places: Vec<u64> = cursors.iter().map(|cursor| cursor.place.seq).collect();
        assert_eq!(places, [1, 2, 5]);
        assert_eq!(cursors[2].awaits, Some(newer[1].place()));
        assert_eq!(left.resume_cursor(), Some(cursors[2]));
        drop(left);
        if is_lost {
            log.ends_with(&[event(6, "e", true)]);
        }
        let is_reset =
            |control: &Control| matches!(control, Control::Reset(ResetReason::HistoryChanged));
        let jobs = Channel::Collection(job::KIND);
        for others in [None, Some(vec![]), Some(vec![subject("a")])] {
            let mut back = match others {
                None => open(Some(cursors[2])),
                // The cursor comes with channels that are added later.
                Some(others) => {
                    let mut back = open_with(&subscriber, others, Duration::ZERO);
                    if !back.scope().is_empty() {
                        assert_eq!(until_ready(&mut back).await, [1]);
                    }
                    back.subscribe([jobs.clone()].into(), Some(cursors[2]), Map::new(), None);
                    back
                }
            };
            if is_lost {
                assert_eq!(until(&mut back, is_reset).await, [6]);
                assert_eq!(until_ready(&mut back).await, [1, 2, 3, 5, 6]);
            } else {
                let last = next_cursor(&mut back).await;
                assert_eq!(last, newer[1].cursor(), "it awaits nothing");
                assert!(until_ready(&mut back).await.is_empty());
            }
        }
    }
}

/// A long poll ends with a cursor even then.
#[tokio::test]
async fn a_cursor_after_a_failed_read_says_what_the_client_awaits() {
    let (log, hub, subscriber, _batches) = setup();
    let first = [event(1, "a", true), event(2, "b", true)];
    let newer = [event(3, "a", true), event(4, "c", true)];
    for events in [&first, &newer] {
        log.ends_with(events);
        hub.offer(events).wake();
    }
    let awaits = Some(newer[1].place());
    let from = Cursor {
        awaits,
        ..first[1].cursor()
    };
    let scope = Scope::new(school(), ["a", "b"].map(subject));
    let request = Request {
        from: Some(from),
        ..request(&subscriber, scope)
    };
    let mut subscription = subscriber.open(request).unwrap();
    assert_eq!(next_event(&mut subscription).await, 3);
    log.fails_bounds.store(true, Ordering::SeqCst);
    let is_closing = |control: &Control| matches!(control, Control::Closing { .. });
    assert!(until(&mut subscription, is_closing).await.is_empty());
    let last = subscription.resume_cursor().unwrap();
    assert_eq!((last.place, last.awaits), (newer[0].place(), awaits));
}

/// Returns the cursor of the next event.
async fn next_cursor(subscription: &mut Subscription) -> Cursor {
    loop {
        if let Delivery::Event(event) = subscription.next().await.expect("it goes on") {
            return event.cursor();
        }
    }
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

#[tokio::test(start_paused = true)]
async fn heartbeats_come_at_their_interval_from_the_beginning() {
    let (log, _, subscriber, _batches) = setup();
    log.ends_with(&[event(1, "a", true)]);
    let mut subscription = open(&subscriber, [subject("a")]);
    assert_eq!(next_event(&mut subscription).await, 1, "no heartbeat yet");
    assert!(until_ready(&mut subscription).await.is_empty());
    let interval = Settings::default().heartbeat();
    let rounded = interval + Duration::from_millis(2);
    for _ in 0..2 {
        let begin = Instant::now();
        heartbeat(&mut subscription).await;
        let waited = begin.elapsed();
        assert!((interval..rounded).contains(&waited), "{waited:?}");
    }
}

/// Otherwise the cursor of a quiet channel would expire.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_moves_the_cursor_past_what_is_out_of_scope() {
    let (_, hub, subscriber, _batches) = setup();
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
    let (_, hub, subscriber, _batches) = setup();
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
