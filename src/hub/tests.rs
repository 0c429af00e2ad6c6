//! Guarantees of the hub itself.

use super::mailbox::tests::{JOBS, event};
use super::*;

fn hub() -> Arc<Hub> {
    Arc::new(Hub::new(4, 8))
}

fn scope(channels: &[Channel]) -> Scope {
    Scope::new(1.try_into().unwrap(), channels.iter().cloned())
}

fn most(server: usize) -> StreamLimits {
    StreamLimits {
        server,
        school: 10,
        user: 10,
        address: 10,
    }
}

fn reader() -> Reader {
    Reader {
        transport: "SSE",
        address: None,
        peer: None,
        user: "u".into(),
    }
}

fn subject(id: &str) -> Channel {
    Channel::Subject(JOBS, id.parse().unwrap())
}

#[test]
fn what_is_left_leaves_memory() {
    let hub = hub();
    let everything = Channel::School(1.try_into().unwrap());
    let scope = scope(&[subject("a"), Channel::Collection(JOBS), everything]);
    let attachment = hub.attach(&scope, reader(), true, &most(10)).unwrap();
    let school = Arc::clone(&attachment.school);
    assert_eq!(lock(&school).attached.len(), 1);
    assert_eq!(lock(&school).everything.len(), 1);
    drop(attachment);
    let room = lock(&school);
    assert!(room.kinds.is_empty() && room.everything.is_empty() && room.attached.is_empty());
    assert_eq!(hub.attached(), 0);
}

#[test]
fn a_quiet_school_leaves_memory_and_one_that_is_listened_to_stays() {
    let hub = hub();
    hub.offer(&[event(1, "a", true)]).wake();
    hub.forget_idle(Duration::from_secs(3_600));
    assert_eq!(hub.schools(), 1, "its window may still be wanted");
    let attachment = hub.attach(&scope(&[]), reader(), true, &most(10)).unwrap();
    hub.forget_idle(Duration::ZERO);
    assert_eq!(hub.schools(), 1);
    drop(attachment);
    hub.forget_idle(Duration::ZERO);
    assert_eq!(hub.schools(), 0);
}

#[test]
fn the_window_answers_only_for_what_it_wholly_covers() {
    let hub = hub();
    let attachment = hub.attach(&scope(&[]), reader(), true, &most(10)).unwrap();
    assert!(
        attachment.window(Place::default()).is_none(),
        "nothing offered yet: only the store knows"
    );
    for seq in 3..=8 {
        hub.offer(&[event(seq, "a", true)]).wake();
    }
    let seqs = |after| {
        attachment
            .window(Place::untagged(after))
            .map(|(events, head)| (events.iter().map(|e| e.seq).collect::<Vec<_>>(), head.seq))
    };
    assert_eq!(seqs(3), None, "4 has left the window");
    assert_eq!(seqs(4), Some((vec![5, 6, 7, 8], 8)));
    assert_eq!(seqs(7), Some((vec![8], 8)));
    assert_eq!(seqs(8), Some((vec![], 8)));
    for seq in 5..=8 {
        let known = event(seq, "a", true).place();
        let other = event(seq, "b", true).place();
        assert!(attachment.window(known).is_some(), "{seq} is what it was");
        assert!(
            attachment.window(other).is_none(),
            "another event was {seq}"
        );
    }
    let before = event(4, "a", true).place();
    assert!(
        attachment.window(before).is_none(),
        "4 is no longer in the window"
    );
    assert_eq!(seqs(9), None, "beyond what was offered");
    hub.offer(&[event(10, "a", true)]).wake();
    assert_eq!(seqs(8), None, "9 was never offered: a hole is not a window");
    assert_eq!(seqs(9), Some((vec![10], 10)));
}

#[test]
fn there_is_a_bound_on_streams() {
    let hub = hub();
    let first = hub.attach(&scope(&[]), reader(), true, &most(1)).unwrap();
    assert!(hub.attach(&scope(&[]), reader(), true, &most(1)).is_err());
    drop(first);
    assert!(hub.attach(&scope(&[]), reader(), true, &most(1)).is_ok());
}

#[test]
fn connections_are_shown_with_what_waits_for_them() {
    let hub = hub();
    let one = hub
        .attach(
            &scope(&[subject("a"), subject("b")]),
            reader(),
            true,
            &most(10),
        )
        .unwrap();
    let other = hub
        .attach(
            &scope(&[Channel::Collection(JOBS)]),
            reader(),
            true,
            &most(10),
        )
        .unwrap();
    hub.offer(&[event(1, "a", true), event(2, "c", true)])
        .wake();
    let (by_transport, connections) = hub.connections(None, 10, 1);
    assert_eq!(by_transport, BTreeMap::from([("SSE", 2)]));
    let shown: Vec<_> = connections
        .iter()
        .map(|own| (own.channels.len(), own.channel_count, own.depth.events))
        .collect();
    assert_eq!(shown, [(1, 1, 2), (1, 2, 1)], "newest first");
    assert_eq!(hub.connections(None, 1, 1).1.len(), 1);
    let elsewhere = hub.connections(Some(2.try_into().unwrap()), 10, 1);
    assert!(elsewhere.0.is_empty() && elsewhere.1.is_empty());
    one.unlisten(&subject("b"));
    drop(other);
    assert_eq!(hub.connections(None, 10, 9).1[0].channel_count, 1);
}

#[test]
fn a_hole_is_not_passed_on_but_makes_everyone_read_the_log() {
    let hub = hub();
    let jobs = scope(&[Channel::Collection(JOBS)]);
    let attachment = hub.attach(&jobs, reader(), true, &most(10)).unwrap();
    let other = hub
        .attach(&scope(&[subject("b")]), reader(), true, &most(10))
        .unwrap();
    hub.offer(&[event(1, "a", true)]).wake();
    hub.offer(&[event(3, "a", true)]).wake();
    for attachment in [&attachment, &other] {
        let depth = attachment.mailbox().depth();
        assert!(depth.lagging, "whatever it listens to");
        assert_eq!(depth.events, 0);
    }
    assert!(
        attachment.window(Place::untagged(1)).is_none(),
        "2 is not in it"
    );
    assert!(!attachment.joins(Place::untagged(1)), "nor was it offered");
    assert!(attachment.joins(Place::untagged(2)));
}

/// Returns an event that follows another one.
fn following(before: &Event, subject: &str) -> Arc<Event> {
    let event = Arc::into_inner(event(before.seq + 1, subject, true)).unwrap();
    Arc::new(event.following(before.tag))
}

#[test]
fn listeners_of_a_shared_log_check_their_places_if_one_has_read_another_event_than_was_offered() {
    let hub = Arc::new(Hub::new(4, 8).of_shared_logs());
    let attach = || hub.attach(&scope(&[subject("a")]), reader(), true, &most(10));
    let (one, other) = (attach().unwrap(), attach().unwrap());
    let (first, lost) = (event(1, "a", true), event(2, "a", true));
    assert!(one.joins(first.place()));
    hub.offer(&[following(&first, "a")]).wake();
    assert!(
        other.joins(first.place()),
        "it goes on with what is offered"
    );
    assert!(!other.mailbox().depth().lagging);
    // The same number, and another event.
    let replacement = event(2, "b", true);
    assert!(other.joins(replacement.place()));
    for attachment in [&one, &other] {
        assert!(attachment.mailbox().depth().lagging, "it reads the log");
    }
    assert_eq!(one.head(), None, "nothing is taken for known");
    assert!(one.joins(lost.place()));
}

#[test]
fn what_is_offered_to_a_shared_log_must_be_what_a_listener_has_read_ahead() {
    let hub = Arc::new(Hub::new(4, 8).of_shared_logs());
    let attach = || hub.attach(&scope(&[subject("a")]), reader(), true, &most(10));
    let (one, ahead) = (attach().unwrap(), attach().unwrap());
    let first = event(1, "a", true);
    assert!(one.joins(first.place()));
    let read = following(&first, "a");
    assert!(ahead.joins(read.place()));
    assert!(!hub.contradicts(std::slice::from_ref(&read)));
    let another = following(&first, "b");
    assert!(hub.contradicts(std::slice::from_ref(&another)));
    let later = following(&another, "a");
    assert!(hub.contradicts(&[later]), "it follows another event");
    hub.offer(&[read]).wake();
    assert!(hub.contradicts(&[another]), "nor may it be offered later");
}

#[test]
fn a_listener_of_a_shared_log_reads_again_what_the_window_no_longer_shows() {
    let hub = Arc::new(Hub::new(2, 8).of_shared_logs());
    let attach = || hub.attach(&scope(&[subject("a")]), reader(), true, &most(10));
    let (one, late) = (attach().unwrap(), attach().unwrap());
    let mut events = vec![event(1, "a", true)];
    assert!(one.joins(events[0].place()));
    for seq in 1..5 {
        events.push(following(&events[seq - 1], "a"));
    }
    hub.offer(&events[1..]).wake();
    assert!(!late.joins(events[1].place()), "it may be another one now");
    assert!(late.joins(events[2].place()), "the window follows it");
}
