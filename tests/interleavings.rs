//! Interleavings of the threads that meet in the hub: its own source, with locks that hand control to a scheduler which
//! tries them out. A wake-up that gets lost is a deadlock here, and is found as one.

#[path = "../src/hub/mod.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the hub as it is, of which a part is used here"
)]
mod hub;

/// What the hub knows of the rest.
mod config {
    pub(crate) use tidings::config::{
        HELD_TICKS_SLOT, RATE_SECS, READ_AHEAD_MAX, StreamLimits, WINDOW_MAX_BYTES,
    };
}
mod event {
    pub(crate) use tidings::event::{Class, Draft, Event};
}
mod kind {
    pub(crate) use tidings::kind::{channel, characteristic, job};
}
mod id {
    pub(crate) use tidings::id::{Channel, Kind, Place, SchoolId, SubjectId, Tag};
}
mod scope {
    pub(crate) use tidings::scope::{Filter, Scope, without_superseded};
}
mod throttle {
    pub(crate) use tidings::throttle::network;
}
mod wire {
    pub(crate) use tidings::wire::Close;
}
/// The locks that are watched.
mod sync {
    pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock};
    pub(crate) use std::sync::PoisonError;

    pub(crate) mod atomic {
        pub(crate) use shuttle::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    }
}

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use shuttle::sync::{Condvar, Mutex};
use shuttle::thread::{self, Thread};
use tidings::event::{Class, Draft, Event};
use tidings::scope::Scope;
use tidings::wire::Close;
use tokio::time::Instant;

use hub::mailbox::{Mail, Mailbox, Patience, Sink, Wait, Written};
use hub::queue::Queue;
use hub::{Attachment, Hub, Reader};

/// Schedules that are tried one after the other, and as many of those in which threads are kept waiting the longest: in a
/// quick run, and in one that includes what is slow.
const SCHEDULES_QUICK: usize = 500;
const SCHEDULES: usize = 3_000;
/// So many times a thread that could go on is kept from it.
const DEPTH: usize = 3;

fn event(seq: u64, class: Class) -> Arc<Event> {
    let cursor = ("00000001".parse().expect("eight digits"), seq);
    let draft = Draft {
        event_type: &kind::job::JOB_PROGRESS,
        class,
        status: "in_progress",
        category: None,
        fields: "{}".into(),
    };
    let school = 1.try_into().expect("positive");
    let subject = "a".parse().expect("an id");
    let at = chrono::DateTime::UNIX_EPOCH;
    Arc::new(Event::new(
        cursor,
        school,
        kind::job::KIND,
        subject,
        at,
        draft,
    ))
}

fn listen(hub: &Arc<Hub>) -> Attachment {
    let channel = kind::channel("jobs").expect("a channel");
    let scope = Scope::new(1.try_into().expect("positive"), [channel]);
    let reader = Reader {
        transport: "test",
        user: "reader".into(),
        address: None,
        peer: None,
    };
    let ceilings = tidings::config::Settings::default().stream_limits();
    let attached = hub.attach(&scope, reader, true, &ceilings);
    attached.expect("there is room")
}

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for mail as a task does: asleep until it is woken.
fn next(mailbox: &Mailbox) -> Mail {
    wait(mailbox, Patience::Never)
}

fn wait(mailbox: &Mailbox, patience: Patience) -> Mail {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match mailbox.poll(&mut Context::from_waker(&waker), patience.clone()) {
            Poll::Ready(mail) => return mail,
            Poll::Pending => thread::park(),
        }
    }
}

/// Goes on by an event, unless it is known already.
fn follow(position: u64, event: &Arc<Event>) -> u64 {
    if event.seq > position {
        assert_eq!(event.seq, position + 1, "a gap");
    }
    position.max(event.seq)
}

/// A reader that waits is woken, in whatever order things happen.
fn no_wake_up_is_lost() {
    let hub = Arc::new(Hub::new(8, 8));
    let attachment = listen(&hub);
    let publisher = thread::spawn(move || {
        for seq in 1..=2 {
            hub.offer(&[event(seq, Class::Milestone)]).wake();
        }
    });
    let mut heard = Vec::new();
    while heard.len() < 2 {
        match next(attachment.mailbox()) {
            Mail::Events(events) => heard.extend(events.iter().map(|event| event.seq)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, [1, 2]);
    publisher.join().expect("it ends well");
}

/// Who can wait for ticks is woken by what cannot wait, and finds both.
fn who_is_patient_is_woken_by_a_milestone() {
    let hub = Arc::new(Hub::new(8, 16));
    let attachment = listen(&hub);
    let publisher = thread::spawn(move || {
        hub.offer(&[event(1, Class::Tick)]).wake();
        hub.offer(&[event(2, Class::Milestone)]).wake();
    });
    let mut heard = Vec::new();
    while heard.last() != Some(&2) {
        match wait(attachment.mailbox(), Patience::AnyTick) {
            Mail::Events(events) => heard.extend(events.iter().map(|event| event.seq)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, [1, 2]);
    publisher.join().expect("it ends well");
}

/// A mailbox that is too small says so, and what comes afterwards is kept: nothing falls between.
fn a_lagging_reader_is_asked_to_read_what_it_misses() {
    let hub = Arc::new(Hub::new(8, 2));
    let attachment = listen(&hub);
    let log = Arc::new(Mutex::new(0));
    let written = Arc::clone(&log);
    let publisher = thread::spawn(move || {
        for seq in 1..=4 {
            *written.lock().expect("whole") = seq;
            hub.offer(&[event(seq, Class::Milestone)]).wake();
        }
    });
    let mut position = 0;
    while position < 4 {
        match next(attachment.mailbox()) {
            Mail::Events(events) => {
                position = events.iter().fold(position, follow);
            }
            // It reads the log.
            Mail::Lagging => position = position.max(*log.lock().expect("whole")),
            Mail::HistoryChanged => panic!("nothing is lost"),
            Mail::Close(_) => panic!("nobody closes"),
        }
    }
    publisher.join().expect("it ends well");
}

/// A reader that is to close learns of it, asleep or not.
fn a_close_is_heard_among_events() {
    let hub = Arc::new(Hub::new(8, 8));
    let attachment = listen(&hub);
    let (publishing, closing) = (Arc::clone(&hub), hub);
    let publisher = thread::spawn(move || publishing.offer(&[event(1, Class::Tick)]).wake());
    let closer = thread::spawn(move || closing.close_all(|| Close::Done));
    loop {
        if let Mail::Close(close) = next(attachment.mailbox()) {
            assert_eq!(close, Close::Done);
            break;
        }
    }
    publisher.join().expect("it ends well");
    closer.join().expect("it ends well");
}

/// Invariant 5: an event is in what is read after listening, or in the mailbox, or in both.
fn nothing_falls_between_listening_and_reading() {
    let hub = Arc::new(Hub::new(8, 8));
    let log = Arc::new(Mutex::new(0));
    let (offering, written) = (Arc::clone(&hub), Arc::clone(&log));
    let publisher = thread::spawn(move || {
        for seq in 1..=2 {
            *written.lock().expect("whole") = seq;
            offering.offer(&[event(seq, Class::Milestone)]).wake();
        }
    });
    let attachment = listen(&hub);
    let mut position: u64 = *log.lock().expect("whole");
    while position < 2 {
        match next(attachment.mailbox()) {
            Mail::Events(events) => {
                position = events.iter().fold(position, follow);
            }
            other => panic!("{other:?}"),
        }
    }
    publisher.join().expect("it ends well");
    drop(attachment);
    assert_eq!(hub.attached(), 0);
}

/// Coming and going at once leaves nothing behind, and no limit is exceeded.
fn places_are_given_once_and_given_back() {
    let hub = Arc::new(Hub::new(8, 8));
    let come_and_go = |hub: Arc<Hub>| {
        thread::spawn(move || {
            let channel = kind::channel("jobs").expect("a channel");
            let scope = Scope::new(1.try_into().expect("positive"), [channel]);
            let reader = Reader {
                transport: "test",
                user: "reader".into(),
                address: Some([127, 0, 0, 1].into()),
                peer: None,
            };
            let ceilings = config::StreamLimits {
                server: 1,
                school: 1,
                user: 1,
                address: 1,
            };
            let attached = hub.attach(&scope, reader, true, &ceilings);
            assert!(hub.attached() <= 1);
            drop(attached);
        })
    };
    let threads = [come_and_go(Arc::clone(&hub)), come_and_go(Arc::clone(&hub))];
    for thread in threads {
        thread.join().expect("it ends well");
    }
    assert_eq!(hub.attached(), 0);
}

/// The socket of a connection: its task holds the lock while it runs.
#[derive(Default)]
struct Socket {
    sent: Mutex<Vec<u64>>,
    has_sent: Condvar,
}

impl Socket {
    fn send(&self, sent: &mut Vec<u64>, event: &Event) {
        sent.push(event.seq);
        self.has_sent.notify_all();
    }
}

impl Sink for Socket {
    fn write(&self, events: &mut Queue<Arc<Event>>) -> (Written, Option<Wait>) {
        let mut written = Written::default();
        let Ok(mut sent) = self.sent.try_lock() else {
            return (written, None);
        };
        while let Some(event) = events.pop_front() {
            self.send(&mut sent, &event);
            written.events += 1;
            written.last = Some(event.place());
            written.taken = written.last;
        }
        (written, Some(Wait::default()))
    }
}

/// Events are sent by whoever offers them, or by the task of the connection: each once, and in order.
fn a_socket_that_is_lent_sends_every_event_once() {
    let hub = Arc::new(Hub::new(8, 8));
    let attachment = listen(&hub);
    let socket = Arc::new(Socket::default());
    let (lent, is_over) = (Arc::clone(&socket), Arc::new(Mutex::new(false)));
    let ends = Arc::clone(&is_over);
    let task = thread::spawn(move || {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mailbox = attachment.mailbox();
        let mut position = 0;
        while !*ends.lock().expect("whole") {
            let mut sent = lent.sent.lock().expect("whole");
            let written = mailbox.take_back();
            position = written.taken.map_or(position, |last| last.seq);
            while let Poll::Ready(mail) =
                mailbox.poll(&mut Context::from_waker(&waker), Patience::Never)
            {
                let Mail::Events(events) = mail else {
                    panic!("{mail:?}");
                };
                for event in events {
                    position = follow(position, &event);
                    lent.send(&mut sent, &event);
                }
            }
            attachment.lend(&lent, position, None);
            drop(sent);
            thread::park();
        }
    });
    let publisher = thread::spawn(move || {
        for seq in 1..=3 {
            hub.offer(&[event(seq, Class::Milestone)]).wake();
        }
    });
    let mut sent = socket.sent.lock().expect("whole");
    while sent.len() < 3 {
        sent = socket.has_sent.wait(sent).expect("whole");
    }
    assert_eq!(*sent, [1, 2, 3]);
    drop(sent);
    publisher.join().expect("it ends well");
    *is_over.lock().expect("whole") = true;
    task.thread().unpark();
    task.join().expect("it ends well");
}

/// A socket that holds back the newest event until the next one arrives, or until it is due.
#[derive(Default)]
struct Holding {
    state: Mutex<Held>,
    has_sent: Condvar,
}

#[derive(Default)]
struct Held {
    event: Option<Arc<Event>>,
    sent: Vec<u64>,
}

impl Held {
    fn wait(&self) -> Wait {
        let due = self.event.as_ref().map(|_| Instant::now());
        let patience = match due {
            Some(_) => Patience::AnyTick,
            None => Patience::Never,
        };
        Wait { patience, due }
    }
}

impl Holding {
    fn send_held(&self, state: &mut Held, written: &mut Written) {
        if let Some(event) = state.event.take() {
            state.sent.push(event.seq);
            written.events += 1;
            written.last = Some(event.place());
            self.has_sent.notify_all();
        }
    }
}

impl Sink for Holding {
    fn write(&self, events: &mut Queue<Arc<Event>>) -> (Written, Option<Wait>) {
        let mut written = Written::default();
        let Ok(mut state) = self.state.try_lock() else {
            return (written, None);
        };
        self.send_held(&mut state, &mut written);
        while let Some(event) = events.pop_front() {
            self.send_held(&mut state, &mut written);
            written.taken = Some(event.place());
            state.event = Some(event);
        }
        (written, Some(state.wait()))
    }
}

/// What a socket holds back is sent when it is due, by the thread that waits for this, or by the task of the connection.
fn what_a_lent_socket_holds_back_is_sent_when_it_is_due() {
    let hub = Arc::new(Hub::new(8, 8));
    let attachment = listen(&hub);
    let socket = Arc::new(Holding::default());
    let is_over = Arc::new(Mutex::new(false));
    let (lent, ends) = (Arc::clone(&socket), Arc::clone(&is_over));
    let task = thread::spawn(move || {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mailbox = attachment.mailbox();
        let mut position = 0;
        while !*ends.lock().expect("whole") {
            let mut state = lent.state.lock().expect("whole");
            let written = mailbox.take_back();
            position = written.taken.map_or(position, |last| last.seq);
            while let Poll::Ready(mail) =
                mailbox.poll(&mut Context::from_waker(&waker), state.wait().patience)
            {
                let Mail::Events(events) = mail else {
                    panic!("{mail:?}");
                };
                for event in events {
                    position = follow(position, &event);
                    lent.send_held(&mut state, &mut Written::default());
                    state.event = Some(event);
                }
            }
            let is_lent = attachment.lend(&lent, position, state.wait().due);
            drop(state);
            // If a tick has arrived meanwhile, it wakes nobody. A subscription has a timer for it.
            if is_lent {
                thread::park();
            }
        }
    });
    let (due_to, ends) = (Arc::clone(&hub), Arc::clone(&is_over));
    let held = thread::spawn(move || {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let later = Instant::now() + Duration::from_secs(3_600);
        while !*ends.lock().expect("whole") {
            let cx = &mut Context::from_waker(&waker);
            match due_to.due_writes().take(cx, later) {
                Ok(due) => due.wake(),
                Err(next) => {
                    assert_eq!(next, None);
                    thread::park();
                }
            }
        }
    });
    let publisher = thread::spawn(move || {
        for seq in 1..=2 {
            hub.offer(&[event(seq, Class::Tick)]).wake();
        }
    });
    let mut state = socket.state.lock().expect("whole");
    while state.sent.len() < 2 {
        state = socket.has_sent.wait(state).expect("whole");
    }
    assert_eq!(state.sent, [1, 2]);
    drop(state);
    publisher.join().expect("it ends well");
    *is_over.lock().expect("whole") = true;
    for ended in [task, held] {
        ended.thread().unpark();
        ended.join().expect("it ends well");
    }
}

fn main() {
    let scenarios: [(&str, fn()); 8] = [
        ("no wake-up is lost", no_wake_up_is_lost),
        (
            "who is patient is woken by a milestone",
            who_is_patient_is_woken_by_a_milestone,
        ),
        (
            "a lagging reader is asked to read what it misses",
            a_lagging_reader_is_asked_to_read_what_it_misses,
        ),
        (
            "a close is heard among events",
            a_close_is_heard_among_events,
        ),
        (
            "nothing falls between listening and reading",
            nothing_falls_between_listening_and_reading,
        ),
        (
            "places are given once and given back",
            places_are_given_once_and_given_back,
        ),
        (
            "a socket that is lent sends every event once",
            a_socket_that_is_lent_sends_every_event_once,
        ),
        (
            "what a lent socket holds back is sent when it is due",
            what_a_lent_socket_holds_back_is_sent_when_it_is_due,
        ),
    ];
    let is_full =
        std::env::args().any(|argument| argument == "--include-ignored" || argument == "--ignored");
    let schedules = if is_full { SCHEDULES } else { SCHEDULES_QUICK };
    for (name, scenario) in scenarios {
        shuttle::check_dfs(scenario, Some(schedules));
        shuttle::check_pct(scenario, schedules, DEPTH);
        println!("interleavings: {name} ... ok");
    }
}
