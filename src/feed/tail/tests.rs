//! Tests of the tail on a log in memory.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use futures_util::FutureExt;
use tokio::time::advance;

use super::*;
use crate::feed::tests::{Kept, events, hub, listen, school};
use crate::hub::Attachment;
use crate::hub::mailbox::Patience;
use crate::hub::mailbox::tests::event;

fn tail<'a>(hub: &'a Hub, log: &Arc<Kept>) -> Tail<'a> {
    Tail {
        hub,
        log: Arc::clone(log) as Arc<dyn Log>,
        holes: BTreeMap::new(),
        reads: JoinSet::new(),
        wake_lists: Vec::new(),
        lost: Vec::new(),
    }
}

/// Returns a hub with a listener that has read the first of these events.
fn listening(seqs: RangeInclusive<u64>) -> (Arc<Hub>, Arc<Kept>, Attachment, Vec<Arc<Event>>) {
    let (hub, log) = (hub(), Arc::new(Kept::default()));
    let listener = listen(&hub);
    let of_log = events(seqs);
    assert!(listener.try_go_live(of_log[0].place()));
    (hub, log, listener, of_log)
}

/// Reads what is due, and returns the numbers of the events that can be delivered now.
async fn read(tail: &mut Tail<'_>) -> Vec<u64> {
    tail.read_what_is_due();
    let read = tail.reads.join_next().await.expect("a read is due");
    let dense = tail.fill(read.unwrap());
    tail.hub.offer(&dense).wake();
    dense.iter().map(|event| event.seq).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_hint_named_is_read_until_the_log_shows_its_last_event() {
    let (hub, log) = (hub(), Arc::new(Kept::default()));
    let listener = listen(&hub);
    let of_log = events(1..=4);
    assert!(listener.try_go_live(of_log[1].place()));
    log.ends_with(&of_log[..3]);
    let mut tail = tail(&hub, &log);
    tail.apply(&Hint::UpTo(school(), 4));
    assert_eq!(read(&mut tail).await, [3]);
    assert!(tail.has_hole(school()), "one is still expected");
    log.ends_with(&of_log);
    assert_eq!(read(&mut tail).await, [4]);
    assert!(!tail.has_hole(school()));
    // One that the log does not have was not committed.
    tail.apply(&Hint::UpTo(school(), 6));
    assert!(read(&mut tail).await.is_empty());
    assert!(!tail.has_hole(school()));
}

#[tokio::test(start_paused = true)]
async fn missing_events_are_still_wanted_while_the_first_listener_reads_the_log() {
    let (hub, log) = (hub(), Arc::new(Kept::default()));
    let of_log = events(1..=2);
    log.ends_with(&of_log);
    let listener = listen(&hub);
    let mut tail = tail(&hub, &log);
    tail.apply(&Hint::UpTo(school(), 2));
    for _ in 0..2 {
        tail.read_what_is_due();
        assert!(tail.reads.is_empty(), "what is missing is not known yet");
        let due = tail.holes[&school()].due;
        assert!(due > Some(Instant::now()), "it is looked at again later");
    }
    assert!(listener.try_go_live(of_log[0].place()));
    advance(HOLE_WAIT).await;
    assert_eq!(read(&mut tail).await, [2]);
}

#[tokio::test(start_paused = true)]
async fn missing_events_are_still_wanted_when_the_last_listener_has_left() {
    let (hub, log) = (hub(), Arc::new(Kept::default()));
    let of_log = events(1..=3);
    log.ends_with(&of_log);
    let listener = listen(&hub);
    assert!(listener.try_go_live(of_log[0].place()));
    drop(listener);
    let mut tail = tail(&hub, &log);
    assert!(tail.take(&of_log[2..]).is_empty(), "2 is missing");
    tail.read_what_is_due();
    assert!(tail.reads.is_empty(), "it may be on its way");
    advance(HOLE_WAIT).await;
    assert_eq!(read(&mut tail).await, [2, 3]);
    hub.forget_idle(Duration::ZERO);
    assert_eq!(hub.schools(), 0);
    tail.holes.insert(school(), Hole::due_at(Instant::now()));
    tail.read_what_is_due();
    assert!(!tail.has_hole(school()), "nobody can miss anything");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_failed_is_repeated_after_a_pause() {
    let (hub, log, _listener, of_log) = listening(1..=2);
    log.ends_with(&of_log);
    log.fails.store(true, Ordering::SeqCst);
    let mut tail = tail(&hub, &log);
    tail.apply(&Hint::UpTo(school(), 2));
    assert!(read(&mut tail).await.is_empty());
    for _ in 0..2 {
        tail.read_what_is_due();
        assert!(tail.reads.is_empty(), "not yet");
        // Nor does another hint make the pause shorter.
        tail.apply(&Hint::UpTo(school(), 2));
    }
    advance(HOLE_PAUSE).await;
    assert_eq!(read(&mut tail).await, [2]);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_log_does_not_show_is_given_up_after_some_reads() {
    let (hub, log, _listener, of_log) = listening(1..=3);
    log.ends_with(&of_log[..1]);
    let mut tail = tail(&hub, &log);
    assert!(tail.take(&of_log[2..]).is_empty(), "2 is missing");
    advance(HOLE_WAIT).await;
    for _ in 0..HOLE_READS_MAX {
        assert!(tail.has_hole(school()));
        assert!(read(&mut tail).await.is_empty());
        tail.read_what_is_due();
        assert!(tail.reads.is_empty(), "not at once");
        advance(HOLE_PAUSE).await;
    }
    assert!(!tail.has_hole(school()), "nor was 3 committed");
    // Their numbers are assigned again. The lost 3 must not follow the new 2.
    let replacement = [event(2, "b", true)];
    log.ends_with(&replacement);
    let delivered = tail.take(&replacement);
    let seqs: Vec<u64> = delivered.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [2]);
}

#[tokio::test(start_paused = true)]
async fn where_missing_events_are_past_retention_those_after_them_are_delivered() {
    let (hub, log, listener, of_log) = listening(1..=7);
    log.ends_with(&of_log[..5]);
    log.remove(3);
    let mut tail = tail(&hub, &log);
    assert!(tail.take(&of_log[6..]).is_empty());
    advance(HOLE_WAIT).await;
    assert_eq!(read(&mut tail).await, [4, 5]);
    assert!(listener.mailbox().depth().lagging, "2 and 3 are missing");
    assert!(tail.has_hole(school()), "6 is missing");
    log.ends_with(&of_log[5..]);
    assert_eq!(read(&mut tail).await, [6, 7]);
    assert!(!tail.has_hole(school()));
}

#[tokio::test(start_paused = true)]
async fn where_all_missing_events_are_past_retention_listeners_read_the_log() {
    let (hub, log) = (hub(), Arc::new(Kept::default()));
    let listener = listen(&hub);
    let of_log = events(1..=5);
    for (floor, rest) in [(5, &[][..]), (3, &[4, 5][..])] {
        assert!(listener.try_go_live(of_log[0].place()));
        log.ends_with(&of_log);
        log.remove(floor);
        let mut tail = tail(&hub, &log);
        tail.apply(&Hint::UpTo(school(), 5));
        assert_eq!(read(&mut tail).await, rest);
        assert!(!tail.has_hole(school()));
        assert!(listener.mailbox().depth().lagging);
        assert_eq!(tail.lost.is_empty(), !rest.is_empty());
        hub.start_over(school()).wake();
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_missing_of_a_school_that_has_left_memory_during_the_read() {
    let (hub, log, listener, of_log) = listening(1..=1);
    log.ends_with(&of_log);
    let mut tail = tail(&hub, &log);
    let reads_after = async |tail: &mut Tail<'_>, meanwhile: &dyn Fn()| {
        tail.apply(&Hint::UpTo(school(), 2));
        tail.read_what_is_due();
        meanwhile();
        let read = tail.reads.join_next().await.expect("a read is due");
        assert!(tail.fill(read.unwrap()).is_empty());
    };
    reads_after(&mut tail, &|| hub.start_over(school()).wake()).await;
    assert!(tail.has_hole(school()), "a listener reads the log");
    assert!(listener.try_go_live(of_log[0].place()));
    tail.holes.clear();
    drop(listener);
    reads_after(&mut tail, &|| hub.forget_idle(Duration::ZERO)).await;
    assert!(!tail.has_hole(school()));
}

#[tokio::test(start_paused = true)]
async fn what_has_been_offered_in_another_way_meanwhile_is_not_read() {
    let (hub, log, _listener, of_log) = listening(1..=3);
    let mut tail = tail(&hub, &log);
    tail.apply(&Hint::UpTo(school(), 3));
    hub.offer(&of_log[1..]).wake();
    tail.read_what_is_due();
    assert!(tail.reads.is_empty() && !tail.has_hole(school()));
    assert_eq!(tail.lost, [school()], "nobody waits for it");
}

#[tokio::test(start_paused = true)]
async fn events_that_follow_or_are_known_leave_no_trace() {
    let (hub, log, _listener, of_log) = listening(1..=3);
    let mut tail = tail(&hub, &log);
    assert!(tail.take(&of_log[..1]).is_empty(), "it was read");
    assert!(matches!(tail.take(&of_log), Cow::Borrowed([_, _])));
    assert!(!tail.has_hole(school()) && tail.lost.is_empty());
}

#[tokio::test(start_paused = true)]
async fn retention_up_to_the_last_delivered_event_is_no_loss() {
    let (hub, log, listener, of_log) = listening(1..=1);
    log.ends_with(&of_log);
    log.remove(1);
    let mut tail = tail(&hub, &log);
    tail.apply(&Hint::UpTo(school(), 2));
    assert!(read(&mut tail).await.is_empty());
    assert!(!listener.mailbox().depth().lagging);
}

#[tokio::test(start_paused = true)]
async fn no_more_events_wait_for_missing_ones_than_the_bound() {
    let (hub, log) = (hub(), Arc::new(Kept::default()));
    let listener = listen(&hub);
    let last = HOLE_MAX_EVENTS as u64 + 3;
    let of_log = events(1..=last);
    assert!(listener.try_go_live(of_log[0].place()));
    let mut tail = tail(&hub, &log);
    assert!(tail.take(&of_log[2..]).is_empty(), "2 is missing");
    let hole = &tail.holes[&school()];
    assert_eq!(hole.beyond.len(), HOLE_MAX_EVENTS);
    assert_eq!((hole.beyond.keys().next(), hole.newest), (Some(&3), last));
}

#[tokio::test]
async fn a_hint_is_late_if_it_says_nothing_new_to_listeners() {
    let (hub, log) = (hub(), Arc::new(Kept::default()));
    let tail = tail(&hub, &log);
    let up_to = |seq| tail.is_late(&Hint::UpTo(school(), seq));
    let of_events = |events: &[Arc<Event>]| tail.is_late(&Hint::Events(events.to_vec()));
    let changed = || tail.is_late(&Hint::HistoryChanged(school()));
    let of_log = events(1..=3);
    assert!(up_to(1) && of_events(&of_log) && changed(), "not in memory");
    let listener = listen(&hub);
    assert!(!up_to(1) && !of_events(&of_log) && !changed(), "first");
    assert!(listener.try_go_live(of_log[1].place()));
    assert!(up_to(2) && of_events(&of_log[..2]));
    assert!(!up_to(3) && !of_events(&of_log));
    let another = event(2, "b", true);
    assert!(!of_events(&[another]), "it shows that something was lost");
    drop(listener);
    assert!(up_to(3), "nobody would miss it");
    assert!(!of_events(&of_log), "but the window would");
}

#[tokio::test]
async fn other_tasks_have_a_turn_while_a_large_batch_is_delivered() {
    let batch = events(1..=2 * DISPATCH_SLICE as u64);
    let (mut slice, mut delivered) = (Slice::default(), 0);
    let mut deliver = |part: &[Arc<Event>]| delivered += part.len();
    let whole = slice.deliver(&batch, &mut deliver).now_or_never();
    assert!(whole.is_none(), "it has given way");
    assert_eq!(delivered, DISPATCH_SLICE);
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn every_reader_of_a_large_crowd_is_woken() {
    let hub = hub();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let wait = || {
        let listener = listen(&hub);
        let mut cx = Context::from_waker(&waker);
        let mail = listener.mailbox().poll(&mut cx, Patience::Never);
        assert!(mail.is_pending());
        listener
    };
    let crowd: Vec<Attachment> = std::iter::repeat_with(wait)
        .take(2 * WAKE_AT_ONCE + 1)
        .collect();
    wake_in_batches(hub.offer(&events(1..=1))).await;
    assert_eq!(woken.0.load(Ordering::SeqCst), crowd.len());
}
