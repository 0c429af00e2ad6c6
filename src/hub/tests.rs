//! Guarantees of the hub itself.

use std::task::Waker;

use super::mailbox::tests::{JOBS, event};
use super::topics::remove_and_shrink;
use super::*;
use crate::config::READ_AHEAD_MAX;
use crate::kind::characteristic::ACK_UPDATE;

fn hub() -> Arc<Hub> {
    Arc::new(Hub::new(4, 8))
}

fn scope(channels: &[Channel]) -> Scope {
    Scope::new(1.try_into().unwrap(), channels.iter().cloned())
}

fn limits(server: usize) -> StreamLimits {
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
    let attachment = hub.attach(&scope, reader(), true, &limits(10)).unwrap();
    let school = Arc::clone(&attachment.school);
    assert_eq!(lock(&school).attached.len(), 1);
    assert!(!lock(&school).topics.is_empty());
    drop(attachment);
    let room = lock(&school);
    assert!(room.topics.is_empty() && room.attached.is_empty());
    assert_eq!(hub.attached(), 0);
}

#[test]
fn events_are_offered_to_few_if_they_come_next_and_have_few_listeners() {
    let hub = hub();
    let listen = |channels: &[Channel]| {
        hub.attach(&scope(channels), reader(), true, &limits(10))
            .unwrap()
    };
    let everything = Channel::School(1.try_into().unwrap());
    let listeners = [
        listen(&[everything]),
        listen(&[Channel::Collection(JOBS)]),
        listen(&[subject("a")]),
    ];
    let waiting = || {
        let events = listeners
            .iter()
            .map(|listener| listener.mailbox().depth().events);
        events.collect::<Vec<_>>()
    };
    let offer = |events: &[Arc<Event>], most| {
        let wake_list = hub.offer_to_few(events, most);
        wake_list.map(WakeList::wake).is_some()
    };
    assert!(!offer(&[], 8));
    assert!(!offer(&[event(1, "a", true)], 2), "there are three");
    assert_eq!(waiting(), [0, 0, 0]);
    assert!(offer(&[event(1, "a", true)], 3));
    assert!(
        !offer(&[event(2, "a", true), event(3, "b", true)], 4),
        "five deliveries"
    );
    assert!(offer(&[event(2, "a", true), event(3, "b", true)], 5));
    assert_eq!(waiting(), [3, 3, 2]);
    assert!(!offer(&[event(3, "b", true)], 8), "it was offered before");
    assert!(!offer(&[event(5, "b", true)], 8), "4 is missing");
    let wide = |seq| {
        let mut event = Arc::into_inner(event(seq, "b", true)).unwrap();
        event.draft.event_type = &ACK_UPDATE;
        Arc::new(event)
    };
    assert!(
        !offer(&[wide(4)], 2),
        "all listeners of its kind receive it"
    );
    assert!(offer(&[wide(4)], 3));
    assert_eq!(waiting(), [4, 4, 3]);
    let of_other = |seq| {
        let mut event = Arc::into_inner(event(seq, "a", true)).unwrap();
        event.school = 2.try_into().unwrap();
        Arc::new(event)
    };
    let of_both = [event(5, "b", true), of_other(1)];
    assert!(!offer(&of_both, 8), "two schools");
    let many: Vec<_> = (1..=9).map(of_other).collect();
    assert!(!offer(&many, 8), "nine events, although nobody listens");
    assert!(offer(&many[..8], 8));
    assert_eq!(waiting(), [4, 4, 3]);
    let shared = Hub::new(4, 8).of_shared_logs();
    assert!(shared.offer_to_few(&[event(1, "a", true)], 8).is_none());
}

#[test]
fn a_quiet_school_leaves_memory_and_one_that_is_listened_to_stays() {
    let hub = hub();
    hub.offer(&[event(1, "a", true)]).wake();
    hub.forget_idle(Duration::from_secs(3_600));
    assert_eq!(hub.schools(), 1, "its window may still be wanted");
    let attachment = hub
        .attach(&scope(&[]), reader(), true, &limits(10))
        .unwrap();
    hub.forget_idle(Duration::ZERO);
    assert_eq!(hub.schools(), 1);
    drop(attachment);
    hub.forget_idle(Duration::ZERO);
    assert_eq!(hub.schools(), 0);
}

#[test]
fn the_window_answers_only_for_what_it_wholly_covers() {
    let hub = hub();
    let attachment = hub
        .attach(&scope(&[]), reader(), true, &limits(10))
        .unwrap();
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
    let first = hub.attach(&scope(&[]), reader(), true, &limits(1)).unwrap();
    assert!(hub.attach(&scope(&[]), reader(), true, &limits(1)).is_err());
    drop(first);
    assert!(hub.attach(&scope(&[]), reader(), true, &limits(1)).is_ok());
}

#[test]
fn connections_are_shown_with_what_waits_for_them() {
    let hub = hub();
    let one = hub
        .attach(
            &scope(&[subject("a"), subject("b")]),
            reader(),
            true,
            &limits(10),
        )
        .unwrap();
    let other = hub
        .attach(
            &scope(&[Channel::Collection(JOBS)]),
            reader(),
            true,
            &limits(10),
        )
        .unwrap();
    hub.offer(&[event(1, "a", true), event(2, "c", true)])
        .wake();
    let (by_transport, connections) = hub.connections(None, 10, 1);
    assert_eq!(by_transport, BTreeMap::from([("SSE", 2)]));
    let shown: Vec<_> = connections
        .iter()
        .map(|connection| {
            (
                connection.channels.len(),
                connection.channel_count,
                connection.depth.events,
            )
        })
        .collect();
    assert_eq!(shown, [(1, 1, 2), (1, 2, 1)], "newest first");
    assert_eq!(hub.connections(None, 1, 1).1.len(), 1);
    let elsewhere = hub.connections(Some(2.try_into().unwrap()), 10, 1);
    assert!(elsewhere.0.is_empty() && elsewhere.1.is_empty());
    one.unlisten(&subject("b"));
    drop(other);
    let left = &hub.connections(None, 10, 9).1[0];
    assert_eq!(
        (&left.channels[..], left.channel_count),
        (&[subject("a")][..], 1)
    );
}

#[test]
fn a_hole_is_not_passed_on_but_makes_everyone_read_the_log() {
    let hub = hub();
    let jobs = scope(&[Channel::Collection(JOBS)]);
    let attachment = hub.attach(&jobs, reader(), true, &limits(10)).unwrap();
    let other = hub
        .attach(&scope(&[subject("b")]), reader(), true, &limits(10))
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
    assert!(
        !attachment.try_go_live(Place::untagged(1)),
        "nor was it offered"
    );
    assert!(attachment.try_go_live(Place::untagged(2)));
}

/// Returns an event that follows another one.
fn following(before: &Event, subject: &str) -> Arc<Event> {
    let event = Arc::into_inner(event(before.seq + 1, subject, true)).unwrap();
    Arc::new(event.following(before.tag))
}

#[test]
fn listeners_of_a_shared_log_check_their_places_if_one_has_read_another_event_than_was_offered() {
    let hub = Arc::new(Hub::new(4, 8).of_shared_logs());
    let attach = || hub.attach(&scope(&[subject("a")]), reader(), true, &limits(10));
    let (one, other) = (attach().unwrap(), attach().unwrap());
    let (first, lost) = (event(1, "a", true), event(2, "a", true));
    assert!(one.try_go_live(first.place()));
    hub.offer(&[following(&first, "a")]).wake();
    assert!(
        other.try_go_live(first.place()),
        "it goes on with what is offered"
    );
    assert!(!other.mailbox().depth().lagging);
    // The same number, and another event.
    let replacement = event(2, "b", true);
    assert!(other.try_go_live(replacement.place()));
    for attachment in [&one, &other] {
        assert!(attachment.mailbox().depth().lagging, "it reads the log");
    }
    assert_eq!(one.head(), None, "nothing is taken for known");
    assert!(one.try_go_live(lost.place()));
}

#[test]
fn what_is_offered_to_a_shared_log_must_be_what_a_listener_has_read_ahead() {
    let hub = Arc::new(Hub::new(4, 8).of_shared_logs());
    let attach = || hub.attach(&scope(&[subject("a")]), reader(), true, &limits(10));
    let (one, ahead) = (attach().unwrap(), attach().unwrap());
    let first = event(1, "a", true);
    assert!(one.try_go_live(first.place()));
    let read = following(&first, "a");
    assert!(ahead.try_go_live(read.place()));
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
    let attach = || hub.attach(&scope(&[subject("a")]), reader(), true, &limits(10));
    let (one, late) = (attach().unwrap(), attach().unwrap());
    let mut events = vec![event(1, "a", true)];
    assert!(one.try_go_live(events[0].place()));
    for seq in 1..5 {
        events.push(following(&events[seq - 1], "a"));
    }
    hub.offer(&events[1..]).wake();
    assert!(
        !late.try_go_live(events[1].place()),
        "it may be another one now"
    );
    assert!(late.try_go_live(events[2].place()), "the window follows it");
}

#[test]
fn each_limit_on_streams_counts_the_streams_that_it_is_for() {
    let hub = hub();
    let limits = StreamLimits {
        server: 5,
        school: 4,
        user: 2,
        address: 3,
    };
    let attach = |school: i64, user: &str, address: &str| {
        let reader = Reader {
            user: user.into(),
            address: Some(address.parse().unwrap()),
            ..reader()
        };
        let scope = Scope::new(school.try_into().unwrap(), []);
        hub.attach(&scope, reader, true, &limits)
    };
    let first = attach(1, "a", "10.0.0.1").unwrap();
    let mut others = vec![attach(1, "a", "10.0.0.1").unwrap()];
    others.push(attach(1, "b", "10.0.0.1").unwrap());
    assert_eq!(attach(1, "c", "10.0.0.1").err(), Some(HubFull::Address));
    assert_eq!(attach(1, "a", "10.0.0.2").err(), Some(HubFull::User));
    others.push(attach(1, "c", "10.0.0.2").unwrap());
    assert_eq!(attach(1, "d", "10.0.0.2").err(), Some(HubFull::School));
    others.push(attach(2, "a", "10.0.0.2").unwrap());
    assert_eq!(attach(2, "e", "10.0.0.3").err(), Some(HubFull::Server));
    assert_eq!(hub.attached(), 5, "a rejected one does not count");
    drop(first);
    others.push(attach(1, "a", "10.0.0.1").unwrap());
    drop(others);
    assert_eq!(hub.attached(), 0);
    assert!(hub.addresses().is_empty(), "nor is any address kept");
}

#[test]
fn all_streams_can_be_closed_or_those_of_some_peers() {
    let hub = hub();
    let peer = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
    let attach = |port| {
        let reader = Reader {
            peer: Some(peer(port)),
            ..reader()
        };
        hub.attach(&scope(&[]), reader, true, &limits(10)).unwrap()
    };
    let (one, other) = (attach(1), attach(2));
    let reasons = || [&one, &other].map(|attachment| attachment.mailbox().closing());
    hub.close_peers(&HashSet::from([peer(2), peer(3)]), Close::Silent);
    assert_eq!(reasons(), [None, Some(Close::Silent)]);
    hub.close_all(|| Close::Done);
    assert_eq!(reasons(), [Some(Close::Done), Some(Close::Silent)]);
}

#[test]
fn lagging_connections_are_shown_first_and_then_the_newest() {
    let hub = hub();
    let attach = |number: usize| {
        let reader = Reader {
            user: number.to_string().into(),
            ..reader()
        };
        hub.attach(&scope(&[]), reader, true, &limits(10)).unwrap()
    };
    let attached: Vec<_> = (0..8).map(attach).collect();
    assert!(attached[1].mailbox().lag().is_none(), "nobody waits");
    let (by_transport, shown) = hub.connections(None, 3, 0);
    assert_eq!(by_transport, BTreeMap::from([("SSE", 8)]));
    let users: Vec<_> = shown
        .iter()
        .map(|connection| &*connection.reader.user)
        .collect();
    assert_eq!(users, ["1", "7", "6"]);
    assert!(hub.connections(None, 0, 0).1.is_empty());
}

#[test]
fn wide_events_reach_those_who_listen_to_them_and_leave_nothing_behind() {
    let hub = hub();
    let wide = |seq| {
        let mut event = Arc::into_inner(event(seq, "a", true)).unwrap();
        event.draft.event_type = &ACK_UPDATE;
        Arc::new(event)
    };
    let waiting = |attachment: &Attachment| attachment.mailbox().depth().events;
    let none = || {
        hub.attach(&scope(&[]), reader(), true, &limits(10))
            .unwrap()
    };
    let jobs = scope(&[subject("b")]);
    let by_subject = hub.attach(&jobs, reader(), true, &limits(10)).unwrap();
    let (listener, silent) = (none(), none());
    let school = Arc::clone(&listener.school);
    listener.listen_to_wide(JOBS);
    hub.offer(&[wide(1), event(2, "a", true)]).wake();
    assert_eq!(waiting(&listener), 1, "only the wide event");
    assert_eq!(waiting(&by_subject), 1, "a subject of the same kind");
    assert_eq!(waiting(&silent), 0);
    listener.unlisten_wide();
    hub.offer(&[wide(3)]).wake();
    assert_eq!(waiting(&listener), 1);
    drop(by_subject);
    assert!(lock(&school).topics.is_empty());
    listener.listen_to_wide(JOBS);
    silent.listen([Channel::Collection(JOBS)]);
    silent.unlisten(&Channel::Collection(JOBS));
    assert!(!lock(&school).topics.is_empty(), "it is still heard");
    drop(listener);
    assert!(lock(&school).topics.is_empty());
}

#[test]
fn the_window_holds_no_more_bytes_than_its_bound() {
    let hub = hub();
    let attachment = hub
        .attach(&scope(&[]), reader(), true, &limits(10))
        .unwrap();
    let sized = |seq, bytes: usize| {
        let mut event = Arc::into_inner(event(seq, "a", true)).unwrap();
        event.draft.fields = "x".repeat(bytes).into();
        Arc::new(event)
    };
    let seqs = |after| {
        let window = attachment.window(Place::untagged(after));
        window.map(|(events, _)| events.iter().map(|event| event.seq).collect::<Vec<_>>())
    };
    hub.offer(&[sized(1, WINDOW_MAX_BYTES - 10), sized(2, 10)])
        .wake();
    assert_eq!(seqs(0), Some(vec![1, 2]), "they fill it");
    hub.offer(&[sized(3, 1)]).wake();
    assert_eq!((seqs(0), seqs(1)), (None, Some(vec![2, 3])));
    hub.offer(&[sized(4, 1), sized(5, 1)]).wake();
    assert_eq!(seqs(1), Some(vec![2, 3, 4, 5]), "there is room again");
    assert_eq!(lock(&attachment.school).window_bytes, 13);
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn who_follows_shared_logs_learns_which_schools_come_and_go() {
    use std::task::{Context, Poll};

    let hub = Arc::new(Hub::new(4, 8).of_shared_logs());
    let attach = || {
        hub.attach(&scope(&[]), reader(), true, &limits(10))
            .unwrap()
    };
    let school: SchoolId = 1.try_into().unwrap();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let poll = || hub.poll_moved(&mut Context::from_waker(&waker));
    let times = || woken.0.load(Ordering::SeqCst);
    assert!(poll().is_pending());
    let first = attach();
    assert_eq!(times(), 1);
    let attached = [first, attach()];
    assert_eq!(times(), 1, "only the first listener is news");
    assert_eq!(poll(), Poll::Ready([school].into()));
    assert!(poll().is_pending(), "it was told");
    assert!(hub.position(school).unwrap().is_attended);
    drop(attached);
    assert!(!hub.position(school).unwrap().is_attended);
    hub.forget_idle(Duration::from_secs(3_600));
    assert_eq!(times(), 1, "it was used a moment ago");
    hub.forget_idle(Duration::ZERO);
    assert_eq!(times(), 2);
    assert_eq!(poll(), Poll::Ready([school].into()));
    assert_eq!(hub.position(school), None);
}

#[test]
fn what_listeners_have_read_ahead_is_bounded() {
    let hub = Arc::new(Hub::new(4, 8).of_shared_logs());
    let attachment = hub
        .attach(&scope(&[]), reader(), true, &limits(10))
        .unwrap();
    let place = |seq: usize| event(seq as u64, "a", true).place();
    assert!((1..=READ_AHEAD_MAX + 1).all(|seq| attachment.try_go_live(place(seq))));
    let read_ahead = || hub.position(1.try_into().unwrap()).unwrap().read_ahead;
    assert_eq!(read_ahead(), Some(place(READ_AHEAD_MAX + 1)));
    assert!(
        !attachment.try_go_live(place(READ_AHEAD_MAX + 2)),
        "no room"
    );
    assert_eq!(read_ahead(), Some(place(READ_AHEAD_MAX + 1)));
}

#[test]
fn what_was_read_ahead_is_known_until_it_is_offered() {
    let hub = Arc::new(Hub::new(4, 8).of_shared_logs());
    let attach = || {
        hub.attach(&scope(&[]), reader(), true, &limits(10))
            .unwrap()
    };
    let (one, other) = (attach(), attach());
    let place = |seq| event(seq, "a", true).place();
    let read_ahead = || hub.position(1.try_into().unwrap()).unwrap().read_ahead;
    assert!(one.try_go_live(place(1)) && other.try_go_live(place(1)));
    assert_eq!(read_ahead(), None, "both are at the head");
    assert!(other.try_go_live(place(3)));
    hub.offer(&[event(2, "a", true)]).wake();
    assert_eq!(read_ahead(), Some(place(3)));
    hub.offer(&[event(3, "a", true)]).wake();
    assert_eq!(read_ahead(), None);
}

#[test]
fn before_anything_is_offered_listeners_go_on_from_where_the_first_one_has_read() {
    for hub in [Hub::new(4, 8), Hub::new(4, 8).of_shared_logs()] {
        let hub = Arc::new(hub);
        let attach = || {
            hub.attach(&scope(&[]), reader(), true, &limits(10))
                .unwrap()
        };
        let (one, other) = (attach(), attach());
        let (place, another) = (event(3, "a", true).place(), event(3, "b", true).place());
        assert!(one.try_go_live(place));
        assert_eq!(other.head(), Some(place));
        assert!(
            !other.try_go_live(Place::untagged(2)),
            "3 was never offered"
        );
        assert!(other.try_go_live(Place::untagged(3)));
        assert!(!one.mailbox().depth().lagging, "it may be the same event");
        let window = |after| {
            other
                .window(after)
                .map(|(events, head)| (events.len(), head))
        };
        assert_eq!(window(place), Some((0, place)));
        assert_eq!(window(Place::untagged(3)), Some((0, place)));
        assert_eq!(window(another), None);
        assert_eq!(window(Place::untagged(2)), None);
        assert_eq!(window(Place::untagged(4)), None);
    }
}

#[test]
fn an_event_that_is_offered_twice_is_delivered_once() {
    let hub = hub();
    let jobs = scope(&[Channel::Collection(JOBS)]);
    let attachment = hub.attach(&jobs, reader(), true, &limits(10)).unwrap();
    let events = [event(1, "a", true), event(2, "a", true)];
    hub.offer(&events).wake();
    hub.offer(&events).wake();
    let depth = attachment.mailbox().depth();
    assert_eq!((depth.events, depth.lagging), (2, false));
    assert!(attachment.window(Place::untagged(0)).is_some());
}

#[test]
fn events_of_several_schools_are_offered_to_each_of_them() {
    let hub = hub();
    let of = |school: i64, seq| {
        let mut event = Arc::into_inner(event(seq, "a", true)).unwrap();
        event.school = school.try_into().unwrap();
        Arc::new(event)
    };
    let attach = |school: i64| {
        let scope = Scope::new(school.try_into().unwrap(), [Channel::Collection(JOBS)]);
        hub.attach(&scope, reader(), true, &limits(10)).unwrap()
    };
    let (one, other) = (attach(1), attach(2));
    hub.offer(&[of(1, 1), of(1, 2), of(2, 1)]).wake();
    assert_eq!(one.mailbox().depth().events, 2);
    assert_eq!(other.mailbox().depth().events, 1);
}

#[test]
fn a_reader_that_waits_is_woken_by_an_event() {
    use std::task::Context;

    let hub = hub();
    let jobs = scope(&[Channel::Collection(JOBS)]);
    let attachment = hub.attach(&jobs, reader(), true, &limits(10)).unwrap();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    let mail = attachment.mailbox().poll(&mut cx, mailbox::Patience::Never);
    assert!(mail.is_pending());
    hub.offer(&[event(1, "a", true)]).wake();
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
}

#[test]
fn a_school_that_was_busy_does_not_keep_the_memory_that_it_needed() {
    let mut listeners: IndexMap<u64, ()> = (0..1_000).map(|id| (id, ())).collect();
    for id in 10..1_000 {
        remove_and_shrink(&mut listeners, id);
    }
    assert_eq!(listeners.len(), 10);
    assert!(listeners.capacity() < 100, "{}", listeners.capacity());
    let hub = hub();
    for school in 1..=100 {
        let scope = Scope::new(school.try_into().unwrap(), []);
        drop(hub.attach(&scope, reader(), true, &limits(10)));
    }
    hub.forget_idle(Duration::ZERO);
    let schools = hub.schools.read().unwrap();
    assert!(schools.capacity() < 50, "{}", schools.capacity());
}

#[test]
fn the_history_has_the_events_of_each_second_that_is_over() {
    let mut hub = Hub::new(4, 8);
    let school = 1.try_into().unwrap();
    hub.offer(&[event(1, "a", true), event(2, "a", true)])
        .wake();
    assert_eq!(hub.history(school), History::default(), "it is not over");
    hub.began -= Duration::from_secs(5);
    hub.offer(&[event(3, "a", true)]).wake();
    hub.began -= Duration::from_secs(2);
    let events = hub.history(school).events;
    assert_eq!(events[RATE_SECS - 7..], [2, 0, 0, 0, 0, 1, 0]);
    assert_eq!(hub.history(2.try_into().unwrap()), History::default());
}

#[test]
fn readers_are_woken_a_few_at_a_time_until_all_are() {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let times = || woken.0.load(Ordering::SeqCst);
    let left = WakeList::from(vec![waker; 4]).wake_some(3);
    assert_eq!(times(), 3);
    assert!(left.expect("one is left").wake_some(1).is_none());
    assert_eq!(times(), 4);
}

#[test]
fn an_event_keeps_the_window_of_its_school_in_memory() {
    let hub = hub();
    hub.offer(&[event(1, "a", true)]).wake();
    let age = |hub: &Hub| {
        let school = hub.find(1.try_into().unwrap()).unwrap();
        lock(&school).last_use -= Duration::from_secs(60);
    };
    age(&hub);
    hub.offer(&[event(2, "a", true)]).wake();
    hub.forget_idle(Duration::from_secs(30));
    assert_eq!(hub.schools(), 1);
    age(&hub);
    hub.forget_idle(Duration::from_secs(30));
    assert_eq!(hub.schools(), 0);
}

#[test]
fn the_history_of_a_school_shows_how_many_streams_it_had() {
    let hub = hub();
    let attach = || hub.attach(&scope(&[subject("a")]), reader(), true, &limits(10));
    let (one, other) = (attach().unwrap(), attach().unwrap());
    let school = hub.find(1.try_into().unwrap()).unwrap();
    // As of a second that is not over yet.
    let streams = || lock(&school).streams.before(hub.second() + 1);
    assert!(streams().ends_with(&[2]));
    drop(other);
    assert!(streams().ends_with(&[1]));
    drop(one);
    assert!(streams().ends_with(&[0]));
}
