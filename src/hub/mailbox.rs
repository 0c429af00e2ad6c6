//! A connection's bounded queue.
//!
//! A full mailbox first conflates: of the ticks of one subject it keeps only the newest. If that does not free enough
//! room, it drops all of its events and marks itself as *lagging*. Its connection then replays from its own cursor the
//! next time it reads. So milestones are never lost (invariant 4): what is not in the mailbox is in the log.
//!
//! A connection that only waits for live events can *lend* the mailbox its sink ([`Attachment::lend`](super::Attachment::lend)). The
//! task that offers an event then writes it, instead of waking another task for a single write. If the sink holds back ticks, it is
//! written to again when they are due ([`DueWrites`](super::DueWrites)). The connection's task takes the sink back before it does
//! anything else.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::due::{Borrower, Reminder};
use super::queue::Queue;
use crate::event::Event;
use crate::id::Place;
use crate::scope::{Filter, without_superseded};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::wire::Close;

/// A connection's bounded queue. See the module documentation.
pub struct Mailbox {
    capacity: u32,
    /// Whether ticks may be conflated. Otherwise a full mailbox is lagging at once.
    conflate: bool,
    /// `None` if it selects everything.
    filter: Option<Box<Filter>>,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    /// In order of `seq`.
    events: Queue<Arc<Event>>,
    /// The newest seq that was accepted, so that an event on several channels is kept only once.
    newest: u64,
    lagging: bool,
    /// Whether the log may have lost events that were offered.
    history_changed: bool,
    close: Option<Close>,
    reader: Option<Waker>,
    patience: Patience,
    /// Allocated when a sink is lent for the first time.
    lent: Option<Box<Lent>>,
}

/// Writes a connection's live events while its task waits.
pub trait Sink: Send + Sync {
    /// Takes events out of the queue, oldest first, and writes them. It must not wait, and should write only once, because the mailbox is
    /// locked meanwhile. Returns what it has written, and what it waits for. `None` if something is left in the queue or incompletely
    /// written: then the connection's task continues.
    fn write(&self, events: &mut Queue<Arc<Event>>) -> (Written, Option<Wait>);
}

/// What a sink that is lent waits for.
#[derive(Debug, Default)]
pub struct Wait {
    /// The ticks that need not be written before it is due.
    pub patience: Patience,
    /// When it must be written to again, even if nothing arrives.
    pub due: Option<Instant>,
}

struct Lent {
    sink: Arc<dyn Sink>,
    is_lent: bool,
    /// Whether someone has been asked to write.
    is_write_requested: bool,
    /// The `seq` up to which the reader has everything.
    after: u64,
    written: Written,
    reminder: Reminder,
}

/// What a sink that was lent has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// The number of events that it has written.
    pub events: u64,
    /// The place of the last one.
    pub last: Option<Place>,
    /// The place of the last event that it has taken out of the queue. It may hold that one back.
    pub taken: Option<Place>,
}

/// The ticks for which a waiting reader need not be woken: it would hold them back. When they are due, its timer polls again, or its
/// lent sink is written to.
#[derive(Debug, Clone, Default)]
pub enum Patience {
    /// No ticks: every event wakes the reader.
    #[default]
    Never,
    /// Ticks of the same subject as this tick, which was sent within the last interval.
    Like(Arc<Event>),
    /// All ticks, because others are held back already, and must be sent first.
    AnyTick,
}

impl Patience {
    fn covers(&self, event: &Event) -> bool {
        match self {
            Patience::Never => false,
            Patience::Like(last) => event.is_tick() && event.supersedes(last),
            Patience::AnyTick => event.is_tick(),
        }
    }
}

/// The state of a mailbox's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// The number of waiting events.
    pub events: usize,
    /// When the oldest of them happened.
    pub oldest: Option<DateTime<Utc>>,
    /// Whether the mailbox overflowed, so that its reader has to read the log.
    pub lagging: bool,
}

/// What a reader receives.
#[derive(Debug)]
pub enum Mail {
    /// Events, in order.
    Events(Queue<Arc<Event>>),
    /// The mailbox overflowed: read the log from your own cursor. From now on, the mailbox accepts events again.
    Lagging,
    /// Like `Lagging`, but the log may no longer have the event that the reader's cursor names.
    HistoryChanged,
    /// The server wants to close the connection.
    Close(Close),
}

impl Slots {
    /// Returns the sink that is lent, if one is.
    fn lent(&mut self) -> Option<&mut Lent> {
        self.lent.as_deref_mut().filter(|lent| lent.is_lent)
    }
}

impl Borrower for Mailbox {
    fn waker(self: Arc<Self>) -> Waker {
        self.into()
    }
}

/// Wakes the reader of a mailbox whose sink is lent: by writing to it.
impl Wake for Mailbox {
    fn wake(self: Arc<Self>) {
        Mailbox::write(&self);
    }
}

impl Mailbox {
    pub(super) fn new(capacity: usize, conflate: bool, filter: Filter) -> Mailbox {
        Mailbox {
            capacity: capacity.try_into().unwrap_or(u32::MAX),
            conflate,
            filter: (!filter.is_empty()).then(|| Box::new(filter)),
            slots: Mutex::default(),
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. Returns a waker if the reader waits and must be woken, or if its lent sink must be used.
    pub(super) fn offer(self: &Arc<Self>, event: &Arc<Event>) -> Option<Waker> {
        let filter = self.filter.as_ref();
        if filter.is_some_and(|filter| !filter.matches(event)) {
            return None;
        }
        let capacity = self.capacity as usize;
        let mut slots = self.slots();
        if slots.lagging || event.seq <= slots.newest {
            return None;
        }
        slots.newest = event.seq;
        if slots.patience.covers(event) {
            // The reader would hold back the older tick, and then replace it by the newer one.
            let last = slots.events.back_mut();
            if let Some(last) = last.filter(|last| last.is_tick() && event.supersedes(last)) {
                *last = Arc::clone(event);
                return None;
            }
            slots.events.push_back(Arc::clone(event));
            if slots.events.len() < capacity / 4 {
                return None;
            }
        } else {
            slots.events.push_back(Arc::clone(event));
        }
        if slots.events.len() > capacity {
            if self.conflate {
                let events = std::mem::take(&mut slots.events).into_iter().collect();
                slots.events = without_superseded(events).into_iter().collect();
            }
            // It must be at most half full. Otherwise each of the next few events would cause another conflation.
            if slots.events.len() > capacity / 2 {
                slots.events.clear();
                slots.lagging = true;
            }
        } else if let Some(lent) = slots.lent() {
            // The waker writes all events, so one is enough.
            let is_requested = std::mem::replace(&mut lent.is_write_requested, true);
            return (!is_requested).then(|| Arc::clone(self).waker());
        }
        slots.reader.take()
    }

    /// Lends the sink of the reader, which waits and has received everything up to `after`. The sink is written to when something
    /// arrives, and at `due`. Returns false if there is mail.
    pub(super) fn lend(
        self: &Arc<Self>,
        sink: &Arc<impl Sink + 'static>,
        after: u64,
        due: Option<Instant>,
        reminder: impl FnOnce() -> Reminder,
    ) -> bool {
        let mut slots = self.slots();
        let has_mail = !slots.events.is_empty() || slots.lagging || slots.close.is_some();
        if has_mail || slots.reader.is_none() {
            return false;
        }
        let lent = slots.lent.get_or_insert_with(|| {
            Box::new(Lent {
                sink: Arc::clone(sink) as Arc<dyn Sink>,
                is_lent: false,
                is_write_requested: false,
                after,
                written: Written::default(),
                reminder: reminder(),
            })
        });
        (lent.is_lent, lent.is_write_requested, lent.after) = (true, false, after);
        lent.reminder.set(self, due);
        true
    }

    /// Takes the sink back. Returns what has been written to it since it was lent.
    pub fn take_back(&self) -> Written {
        let mut slots = self.slots();
        let Some(lent) = &mut slots.lent else {
            return Written::default();
        };
        lent.is_lent = false;
        std::mem::take(&mut lent.written)
    }

    /// Writes the waiting events to the lent sink. If the reader has taken it back, it finds the events itself.
    fn write(self: &Arc<Self>) {
        let mut slots = self.slots();
        let Slots {
            events,
            lent,
            lagging,
            reader,
            close,
            patience,
            ..
        } = &mut *slots;
        let only_events_follow = close.is_none() && !*lagging;
        let lent = lent.as_mut().filter(|lent| lent.is_lent);
        let Some(lent) = lent.filter(|_| only_events_follow) else {
            return;
        };
        lent.is_write_requested = false;
        // The reader may have read some of them from the log.
        events.retain(|event| event.seq > lent.after);
        // The caller has other readers to write to.
        let write = AssertUnwindSafe(|| lent.sink.write(events));
        let (more, wait) = panic::catch_unwind(write).unwrap_or_else(|_| {
            close.get_or_insert(Close::InternalError);
            (Written::default(), None)
        });
        let written = &mut lent.written;
        written.events += more.events;
        written.last = more.last.or(written.last);
        written.taken = more.taken.or(written.taken);
        let Some(wait) = wait else {
            lent.is_lent = false;
            let reader = reader.take();
            drop(slots);
            if let Some(reader) = reader {
                reader.wake();
            }
            return;
        };
        *patience = wait.patience;
        lent.reminder.set(self, wait.due);
    }

    /// Drops all events, so that the reader reads the log. Returns the reader's waker if the reader waits and must be
    /// woken.
    pub(super) fn lag(&self) -> Option<Waker> {
        let mut slots = self.slots();
        slots.events.clear();
        slots.lagging = true;
        slots.reader.take()
    }

    /// Like [`lag`](Mailbox::lag), for a log that may have lost events and assigned their numbers again.
    pub(super) fn change_history(&self) -> Option<Waker> {
        let mut slots = self.slots();
        slots.history_changed = true;
        // Events with these numbers may be offered again.
        slots.newest = 0;
        drop(slots);
        self.lag()
    }

    /// Asks the reader to close the connection. Only the first call has an effect.
    pub fn close(&self, close: Close) {
        let mut slots = self.slots();
        slots.close.get_or_insert(close);
        let reader = slots.reader.take();
        drop(slots);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Returns the reason to close, if the server wants to close the connection.
    pub fn closing(&self) -> Option<Close> {
        self.slots().close
    }

    /// Whether everything that was offered has been read.
    pub fn is_drained(&self) -> bool {
        let slots = self.slots();
        slots.events.is_empty() && !slots.lagging
    }

    /// Returns the state of the queue.
    pub fn depth(&self) -> Depth {
        let slots = self.slots();
        Depth {
            events: slots.events.len(),
            oldest: slots.events.front().map(|event| event.at),
            lagging: slots.lagging,
        }
    }

    /// Takes all events, or registers the reader to be woken by the next one. A few ticks that `patience` covers do not
    /// wake it.
    pub fn poll(&self, cx: &mut Context<'_>, patience: Patience) -> Poll<Mail> {
        let mut slots = self.slots();
        if let Some(close) = slots.close {
            return Poll::Ready(Mail::Close(close));
        }
        if slots.lagging {
            slots.lagging = false;
            let history_changed = std::mem::take(&mut slots.history_changed);
            return Poll::Ready(match history_changed {
                true => Mail::HistoryChanged,
                false => Mail::Lagging,
            });
        }
        if !slots.events.is_empty() {
            return Poll::Ready(Mail::Events(std::mem::take(&mut slots.events)));
        }
        slots.patience = patience;
        match &mut slots.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            reader => *reader = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::event::{Class, Draft};
    use crate::id::Kind;
    use crate::kind::job::JOB_PROGRESS;

    pub(in crate::hub) const JOBS: Kind = crate::kind::job::KIND;

    pub(crate) fn event(seq: u64, subject: &str, milestone: bool) -> Arc<Event> {
        let cursor = ("00000001".parse().unwrap(), seq);
        let class = if milestone {
            Class::Milestone
        } else {
            Class::Tick
        };
        let draft = Draft {
            event_type: &JOB_PROGRESS,
            class,
            status: "in_progress",
            category: None,
            fields: "{\"a\":1}".into(),
        };
        Arc::new(Event::new(
            cursor,
            1.try_into().unwrap(),
            JOBS,
            subject.parse().unwrap(),
            DateTime::UNIX_EPOCH,
            draft,
        ))
    }

    fn take(mailbox: &Mailbox) -> Option<Mail> {
        match mailbox.poll(&mut Context::from_waker(Waker::noop()), Patience::Never) {
            Poll::Ready(mail) => Some(mail),
            Poll::Pending => None,
        }
    }

    fn seqs(mailbox: &Mailbox) -> Vec<u64> {
        match take(mailbox) {
            Some(Mail::Events(events)) => events.iter().map(|event| event.seq).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_mailbox_conflates_ticks_and_keeps_milestones() {
        let mailbox = Arc::new(Mailbox::new(6, true, Filter::default()));
        mailbox.offer(&event(1, "a", true));
        for seq in 2..=7 {
            mailbox.offer(&event(seq, "a", false));
        }
        assert_eq!(seqs(&mailbox), [1, 7]);
    }

    #[test]
    fn a_mailbox_that_is_half_full_after_conflation_goes_on() {
        let mailbox = Arc::new(Mailbox::new(4, true, Filter::default()));
        for seq in 1..=4 {
            mailbox.offer(&event(seq, "a", false));
        }
        mailbox.offer(&event(5, "b", false));
        assert_eq!(seqs(&mailbox), [4, 5]);
    }

    #[test]
    fn a_mailbox_full_of_milestones_reports_once_that_it_lags() {
        let mailbox = Arc::new(Mailbox::new(4, true, Filter::default()));
        for seq in 1..=9 {
            mailbox.offer(&event(seq, "a", true));
        }
        assert!(matches!(take(&mailbox), Some(Mail::Lagging)));
        mailbox.offer(&event(10, "a", true));
        assert_eq!(seqs(&mailbox), [10]);
        assert!(take(&mailbox).is_none());
    }

    #[test]
    fn without_conflation_a_full_mailbox_lags() {
        let mailbox = Arc::new(Mailbox::new(4, false, Filter::default()));
        for seq in 1..=5 {
            mailbox.offer(&event(seq, "a", false));
        }
        assert!(matches!(take(&mailbox), Some(Mail::Lagging)));
    }

    #[test]
    fn a_patient_reader_is_woken_by_a_milestone_by_many_ticks_and_by_a_close() {
        let mailbox = Arc::new(Mailbox::new(16, true, Filter::default()));
        let wait = |patience: Patience| {
            while mailbox
                .poll(&mut Context::from_waker(Waker::noop()), patience.clone())
                .is_ready()
            {}
        };
        wait(Patience::AnyTick);
        assert!(mailbox.offer(&event(1, "a", false)).is_none());
        assert!(mailbox.offer(&event(2, "a", true)).is_some());
        wait(Patience::AnyTick);
        let woken = |seq: u64| {
            mailbox
                .offer(&event(seq, &seq.to_string(), false))
                .is_some()
        };
        assert_eq!(
            [3, 4, 5, 6, 7].map(woken),
            [false, false, false, true, false]
        );
        wait(Patience::Never);
        assert!(
            woken(8),
            "a reader that is not patient is woken by any event"
        );
        wait(Patience::AnyTick);
        mailbox.close(Close::Done);
        assert!(mailbox.slots().reader.is_none());
    }

    #[test]
    fn a_reader_that_is_patient_with_one_subject_is_woken_by_all_others() {
        let noop = &mut Context::from_waker(Waker::noop());
        let mut wakes = |offered: &Arc<Event>| {
            let mailbox = Arc::new(Mailbox::new(16, true, Filter::default()));
            let patience = Patience::Like(event(1, "a", false));
            assert!(mailbox.poll(noop, patience).is_pending());
            let woken = mailbox.offer(offered).is_some();
            assert_eq!(seqs(&mailbox), [offered.seq]);
            woken
        };
        assert!(!wakes(&event(2, "a", false)));
        assert!(wakes(&event(2, "b", false)));
        assert!(wakes(&event(2, "a", true)));
    }

    #[test]
    fn a_patient_reader_finds_only_the_newest_of_successive_ticks_of_a_subject() {
        let mailbox = Arc::new(Mailbox::new(16, true, Filter::default()));
        let noop = &mut Context::from_waker(Waker::noop());
        assert!(mailbox.poll(noop, Patience::AnyTick).is_pending());
        for (seq, subject) in [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "a"), (6, "a")] {
            assert!(mailbox.offer(&event(seq, subject, false)).is_none());
        }
        assert_eq!(seqs(&mailbox), [2, 3, 6]);
        assert!(mailbox.poll(noop, Patience::AnyTick).is_pending());
        mailbox.offer(&event(7, "a", false));
        mailbox.offer(&event(8, "a", true));
        mailbox.offer(&event(9, "a", false));
        mailbox.offer(&event(10, "a", false));
        assert_eq!(seqs(&mailbox), [7, 8, 10]);
    }

    /// A sink with room for some events.
    #[derive(Default)]
    struct Taker {
        room: usize,
        taken: std::sync::Mutex<Vec<u64>>,
        writes: Count,
    }

    impl Sink for Taker {
        fn write(&self, events: &mut Queue<Arc<Event>>) -> (Written, Option<Wait>) {
            self.writes
                .0
                .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let (mut taken, mut written) = (self.taken.lock().unwrap(), Written::default());
            while taken.len() < self.room
                && let Some(event) = events.pop_front()
            {
                taken.push(event.seq);
                written.events += 1;
                written.last = Some(event.place());
                written.taken = written.last;
            }
            (written, events.is_empty().then(Wait::default))
        }
    }

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    impl Count {
        fn get(&self) -> usize {
            self.0.load(std::sync::atomic::Ordering::SeqCst)
        }
    }

    fn lend(mailbox: &Arc<Mailbox>, sink: &Arc<impl Sink + 'static>, after: u64) -> bool {
        let reminder = || Reminder::new(&Arc::default(), 0);
        mailbox.lend(sink, after, None, reminder)
    }

    /// A mailbox whose reader waits, has everything up to event 2, and has lent a sink with this room.
    fn lent(room: usize) -> (Arc<Mailbox>, Arc<Taker>, Arc<Count>) {
        let mailbox = Arc::new(Mailbox::new(8, true, Filter::default()));
        let (sink, woken) = (
            Taker {
                room,
                ..Taker::default()
            },
            Arc::new(Count::default()),
        );
        let (sink, waker) = (Arc::new(sink), Waker::from(Arc::clone(&woken)));
        assert!(!lend(&mailbox, &sink, 2), "nobody waits");
        let mut cx = Context::from_waker(&waker);
        assert!(mailbox.poll(&mut cx, Patience::Never).is_pending());
        assert!(lend(&mailbox, &sink, 2));
        (mailbox, sink, woken)
    }

    #[test]
    fn events_are_written_to_a_sink_that_is_lent_and_its_reader_sleeps() {
        let (mailbox, sink, woken) = lent(8);
        let offered = [2, 3, 4].map(|seq| mailbox.offer(&event(seq, "a", true)));
        assert_eq!(offered.iter().flatten().count(), 1, "it writes all of them");
        offered.into_iter().flatten().for_each(Waker::wake);
        mailbox.offer(&event(5, "a", true)).unwrap().wake();
        assert_eq!(*sink.taken.lock().unwrap(), [3, 4, 5], "it has event 2");
        assert_eq!(woken.get(), 0);
        let last = Some(event(5, "a", true).place());
        let written = Written {
            events: 3,
            last,
            taken: last,
        };
        assert_eq!(mailbox.take_back(), written);
        assert_eq!(mailbox.take_back(), Written::default(), "only once");
        let late = mailbox.offer(&event(6, "a", true)).unwrap();
        late.wake();
        assert_eq!(woken.get(), 1);
        assert!(!lend(&mailbox, &sink, 5), "there is mail");
        assert_eq!(seqs(&mailbox), [6]);
    }

    #[test]
    fn an_event_is_written_after_ticks_that_its_reader_waits_for() {
        let (mailbox, sink, woken) = lent(8);
        let patience = Patience::Like(event(2, "a", false));
        let waker = Waker::from(Arc::clone(&woken));
        mailbox.take_back();
        assert!(
            mailbox
                .poll(&mut Context::from_waker(&waker), patience)
                .is_pending()
        );
        assert!(lend(&mailbox, &sink, 2));
        assert!(mailbox.offer(&event(3, "a", false)).is_none());
        mailbox.offer(&event(4, "b", false)).unwrap().wake();
        assert_eq!(*sink.taken.lock().unwrap(), [3, 4]);
    }

    #[test]
    fn what_a_sink_does_not_take_is_left_for_its_reader_which_is_woken() {
        let (mailbox, sink, woken) = lent(1);
        let offered = [3, 4, 5].map(|seq| mailbox.offer(&event(seq, "a", true)));
        offered.into_iter().flatten().for_each(Waker::wake);
        assert_eq!(woken.get(), 1);
        assert!(mailbox.offer(&event(6, "a", true)).is_none());
        assert_eq!(*sink.taken.lock().unwrap(), [3]);
        assert_eq!(mailbox.take_back().events, 1);
        assert_eq!(seqs(&mailbox), [4, 5, 6]);
    }

    #[test]
    fn nothing_is_written_after_a_close_or_an_overflow() {
        let (mailbox, sink, woken) = lent(100);
        let offered = mailbox.offer(&event(3, "a", true)).unwrap();
        mailbox.close(Close::Done);
        offered.wake();
        assert_eq!((sink.writes.get(), woken.get()), (0, 1));
        assert!(matches!(take(&mailbox), Some(Mail::Close(Close::Done))));
        let (mailbox, sink, woken) = lent(100);
        let offered: Vec<Option<Waker>> = (3..=20)
            .map(|seq| mailbox.offer(&event(seq, "a", true)))
            .collect();
        offered.into_iter().flatten().for_each(Waker::wake);
        assert_eq!((sink.writes.get(), woken.get()), (0, 1));
        assert!(matches!(take(&mailbox), Some(Mail::Lagging)));
    }

    #[test]
    fn a_sink_that_panics_closes_its_stream_only() {
        struct Broken;
        impl Sink for Broken {
            fn write(&self, _: &mut Queue<Arc<Event>>) -> (Written, Option<Wait>) {
                panic!("it cannot write");
            }
        }
        let (mailbox, woken) = (
            Arc::new(Mailbox::new(8, true, Filter::default())),
            Arc::new(Count::default()),
        );
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert!(mailbox.poll(&mut cx, Patience::Never).is_pending());
        assert!(lend(&mailbox, &Arc::new(Broken), 0));
        mailbox.offer(&event(1, "a", true)).unwrap().wake();
        assert_eq!(
            (mailbox.closing(), woken.get()),
            (Some(Close::InternalError), 1)
        );
        assert!(mailbox.slots().lent().is_none());
    }

    #[test]
    fn an_event_on_several_channels_is_kept_once() {
        let mailbox = Arc::new(Mailbox::new(4, true, Filter::default()));
        let twice = event(1, "a", true);
        mailbox.offer(&twice);
        mailbox.offer(&twice);
        assert_eq!(seqs(&mailbox), [1]);
    }

    #[test]
    fn a_filter_keeps_out_what_is_not_wanted() {
        let filter = Filter {
            statuses: ["failed".to_owned()].into(),
            ..Filter::default()
        };
        let mailbox = Arc::new(Mailbox::new(4, true, filter));
        mailbox.offer(&event(1, "a", true));
        assert!(take(&mailbox).is_none());
    }
}
