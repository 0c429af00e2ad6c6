//! Passes committed events, in the order of the log, to the hub and to the other followers of the log: the events that
//! [`feed::follow`] delivers.
//!
//! 1. Every follower gets every event once, regardless of other followers. If a follower panics, the panic is logged
//!    and counted, and the next follower gets the event nevertheless.
//! 2. The receiving end of the channel survives a panic of this task, so no batch is lost. Batches are counted in any
//!    case, because readers wait for the count.
//! 3. If the hub itself panics, an event may be missing from some mailboxes. All streams are therefore asked to close
//!    before the next event is offered. They reconnect with their cursors and read the event from the log.
//!
//! A batch with few deliveries is dispatched on the thread that committed it, if no other batch is in flight and no event waits
//! for a missing one: waking this task would cost more.
//!
//! No follower can fail a publication, or delay it for more than a moment: each only records events and does its work elsewhere.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::config::EXPRESS_MAX;
use crate::crowd::Crowd;
use crate::event::Event;
use crate::feed;
use crate::hub::{Hub, WakeList};
use crate::log::{Batches, Log};
use crate::tasks::Tasks;
use crate::wire::Close;

/// The name of the dispatcher's task.
pub const NAME: &str = "dispatcher";

/// Receives committed events. It must not wait, least of all for the writer, whose lock may be held.
pub type Follower = Box<dyn Fn(&[Arc<Event>]) + Send + Sync>;

/// Passes committed events to the hub and to followers. See the module documentation.
pub struct Dispatcher {
    batches: Mutex<Batches>,
    log: Arc<dyn Log>,
    hub: Arc<Hub>,
    crowd: Crowd,
    followers: Vec<Follower>,
    tasks: Tasks,
    name: Arc<str>,
}

impl Dispatcher {
    /// Creates a dispatcher that passes these batches of a log to the hub and then to the followers. Ends with `tasks`.
    pub fn new(
        batches: Batches,
        log: Arc<dyn Log>,
        hub: Arc<Hub>,
        crowd: Crowd,
        followers: Vec<Follower>,
        tasks: Tasks,
    ) -> Dispatcher {
        Dispatcher {
            batches: Mutex::new(batches),
            log,
            hub,
            crowd,
            followers,
            tasks,
            name: NAME.into(),
        }
    }

    /// Runs until its tasks end. Batches that were committed before are still dispatched.
    pub async fn run(self: Arc<Self>) {
        let mut batches = self.batches.lock().await;
        let express = Arc::downgrade(&self);
        batches.express_to(Box::new(move |events| {
            express
                .upgrade()
                .is_some_and(|dispatcher| dispatcher.dispatch_to_few(events))
        }));
        let end = self.tasks.token().cancelled();
        let dispatch = |events: &[Arc<Event>]| self.dispatch(events);
        feed::follow(
            &mut batches,
            &self.hub,
            Arc::clone(&self.log),
            dispatch,
            end,
        )
        .await;
    }

    fn dispatch(&self, events: &[Arc<Event>]) {
        self.offer(events);
        self.follow(events);
    }

    fn follow(&self, events: &[Arc<Event>]) {
        for follower in &self.followers {
            self.tasks.guard(&self.name, || follower(events));
        }
    }

    /// Passes events on if they have few deliveries. Returns false if it has not.
    fn dispatch_to_few(&self, events: &[Arc<Event>]) -> bool {
        let offer = || {
            self.hub
                .offer_to_few(events, EXPRESS_MAX)
                .map(WakeList::wake)
        };
        match self.tasks.guard(&self.name, offer) {
            Some(None) => return false,
            Some(Some(())) => {}
            None => self.close_all(),
        }
        self.follow(events);
        true
    }

    fn offer(&self, part: &[Arc<Event>]) {
        let offer = || self.crowd.wake(self.hub.offer(part));
        if self.tasks.guard(&self.name, offer).is_none() {
            self.close_all();
        }
    }

    fn close_all(&self) {
        let close = || self.hub.close_all(|| Close::InternalError);
        self.tasks.guard(&self.name, close);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Lock;
    use std::task::{Context, Poll, Wake, Waker};
    use std::time::Duration;

    use async_trait::async_trait;
    use chrono::DateTime;
    use futures_util::FutureExt;

    use super::*;
    use crate::config::Settings;
    use crate::event::{Class, Draft};
    use crate::hub::mailbox::{Mail, Patience};
    use crate::hub::{Attachment, Reader};
    use crate::id::{Channel, Epoch, Place, SchoolId};
    use crate::kind::job;
    use crate::log::{Bounds, Committed, LogRange, Page, StoreError};
    use crate::scope::Scope;
    use crate::tasks::Task;

    fn event(seq: u64) -> Arc<Event> {
        let cursor = ("00000001".parse().unwrap(), seq);
        let draft = Draft {
            event_type: &job::JOB_PROGRESS,
            class: Class::Milestone,
            status: "in_progress",
            category: None,
            fields: "{}".into(),
        };
        let (school, subject) = (1.try_into().unwrap(), "a".parse().unwrap());
        let at = DateTime::UNIX_EPOCH;
        Arc::new(Event::new(cursor, school, job::KIND, subject, at, draft))
    }

    /// A log that is never read.
    struct Unread;

    #[async_trait]
    impl Log for Unread {
        fn epoch(&self) -> Epoch {
            unreachable!("nothing is missing")
        }

        async fn bounds(&self, _: SchoolId) -> Result<Bounds, StoreError> {
            unreachable!("nothing is missing")
        }

        async fn read_range(&self, _: SchoolId, _: u64, _: u64) -> Result<LogRange, StoreError> {
            unreachable!("nothing is missing")
        }

        async fn replay(&self, _: Arc<Scope>, _: u64, _: bool) -> Result<Page, StoreError> {
            unreachable!("nothing is missing")
        }

        async fn snapshot(
            &self,
            _: Arc<Scope>,
            _: u64,
            _: Option<Place>,
        ) -> Result<Page, StoreError> {
            unreachable!("nothing is missing")
        }
    }

    struct Bench {
        tasks: Tasks,
        hub: Arc<Hub>,
        committed: Committed,
    }

    fn bench(followers: Vec<Follower>) -> Bench {
        let (committed, batches) = Committed::channel(8);
        let (tasks, hub) = (Tasks::default(), Arc::new(Hub::new(8, 8)));
        let offered = Arc::clone(&hub);
        let dispatcher = Dispatcher::new(
            batches,
            Arc::new(Unread),
            offered,
            Crowd::new(tasks.clone()),
            followers,
            tasks.clone(),
        );
        let dispatcher = Arc::new(dispatcher);
        let task = Task::new(NAME).ends_itself();
        tasks.supervise(task, move || Arc::clone(&dispatcher).run());
        Bench {
            tasks,
            hub,
            committed,
        }
    }

    #[tokio::test]
    async fn a_follower_that_panics_keeps_no_event_from_the_others() {
        let seen = Arc::new(Lock::new(Vec::new()));
        let kept = Arc::clone(&seen);
        let bench = bench(vec![
            Box::new(|events| assert_ne!(events[0].seq, 2, "as it is to")),
            Box::new(move |events| {
                let seqs = events.iter().map(|event| event.seq);
                kept.lock().unwrap().extend(seqs);
            }),
        ]);
        for seq in 1..=3 {
            bench.committed.send(vec![event(seq)]).await.unwrap();
        }
        bench.committed.round_trip().await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [1, 2, 3]);
        assert!(bench.tasks.panics().contains(&(NAME.into(), 1)));
    }

    #[tokio::test]
    async fn what_was_handed_over_before_the_end_is_dispatched() {
        let bench = bench(Vec::new());
        // Before the task has had a turn.
        for seq in 1..=5 {
            bench.committed.send(vec![event(seq)]).await.unwrap();
        }
        assert!(bench.tasks.end(Duration::from_secs(30)).await);
        assert_eq!(bench.committed.waiting(), 0);
        assert!(bench.committed.send(vec![event(6)]).await.is_err());
    }

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("as it is to");
        }
    }

    /// A listener to everything of school 1.
    fn attach(hub: &Arc<Hub>) -> Attachment {
        let school: SchoolId = 1.try_into().unwrap();
        let scope = Scope::new(school, [Channel::School(school)]);
        let reader = Reader {
            transport: "test",
            user: "test".into(),
            address: None,
            peer: None,
        };
        let ceilings = Settings::default().stream_limits();
        hub.attach(&scope, reader, false, &ceilings).unwrap()
    }

    fn poll(attached: &Attachment, waker: &Waker) -> Poll<Mail> {
        let mut context = Context::from_waker(waker);
        attached.mailbox().poll(&mut context, Patience::Never)
    }

    #[tokio::test]
    async fn a_hub_that_panics_closes_the_streams_which_may_lack_an_event() {
        let bench = bench(Vec::new());
        let attached = attach(&bench.hub);
        assert!(poll(&attached, &Waker::from(Arc::new(Panics))).is_pending());
        for seq in 1..=2 {
            bench.committed.send(vec![event(seq)]).await.unwrap();
        }
        bench.committed.round_trip().await.unwrap();
        let mail = poll(&attached, Waker::noop());
        assert!(matches!(
            mail,
            Poll::Ready(Mail::Close(Close::InternalError))
        ));
    }

    fn of_school(number: i64, seq: u64) -> Arc<Event> {
        let mut event = Arc::into_inner(event(seq)).unwrap();
        event.school = number.try_into().unwrap();
        Arc::new(event)
    }

    /// Keeps the events that it gets, and panics on the third of a school.
    fn keeping(seen: &Arc<Lock<Vec<u64>>>) -> Follower {
        let kept = Arc::clone(seen);
        Box::new(move |events| {
            let seqs = events.iter().map(|event| event.seq);
            kept.lock().unwrap().extend(seqs);
            assert_ne!(events[0].seq, 3, "as it is to");
        })
    }

    /// Commits an event as a request does that comes alone.
    fn commit(committed: &Committed, event: Arc<Event>) {
        let place = committed.try_reserve().unwrap();
        committed.send_reserved(place, vec![event]);
    }

    /// These tests have one thread, so the dispatcher's task does nothing between two awaits.
    #[tokio::test]
    async fn a_commit_with_few_deliveries_is_dispatched_on_its_own_thread() {
        let seen = Arc::<Lock<Vec<u64>>>::default();
        let bench = bench(vec![keeping(&seen)]);
        let mut listeners: Vec<_> = (0..=EXPRESS_MAX).map(|_| attach(&bench.hub)).collect();
        bench.committed.round_trip().await.unwrap();
        commit(&bench.committed, event(1));
        assert!(seen.lock().unwrap().is_empty(), "there are too many");
        listeners.pop();
        commit(&bench.committed, event(2));
        assert!(
            seen.lock().unwrap().is_empty(),
            "1 must be dispatched first"
        );
        bench.committed.round_trip().await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [1, 2]);
        for listener in &listeners {
            let mail = poll(listener, Waker::noop());
            assert!(matches!(mail, Poll::Ready(Mail::Events(_))), "{mail:?}");
        }
        // A follower that panics keeps nothing from anybody.
        for seq in 3..=4 {
            commit(&bench.committed, event(seq));
            assert_eq!(seen.lock().unwrap().last(), Some(&seq));
            assert_eq!(
                (bench.committed.waiting(), bench.committed.behind()),
                (0, 0)
            );
            assert!(
                bench
                    .committed
                    .settled(event(seq).school)
                    .now_or_never()
                    .is_some()
            );
        }
        assert!(bench.tasks.panics().contains(&(NAME.into(), 1)));
        assert!(matches!(
            poll(&listeners[0], Waker::noop()),
            Poll::Ready(Mail::Events(events)) if events.len() == 2
        ));
        // Nor does a hub that panics keep an event from the followers.
        assert!(poll(&listeners[0], &Waker::from(Arc::new(Panics))).is_pending());
        commit(&bench.committed, event(5));
        assert_eq!(*seen.lock().unwrap(), [1, 2, 3, 4, 5]);
        assert!(bench.tasks.panics().contains(&(NAME.into(), 2)));
        assert!(matches!(
            poll(&listeners[1], Waker::noop()),
            Poll::Ready(Mail::Close(Close::InternalError))
        ));
    }

    #[tokio::test]
    async fn nothing_is_dispatched_past_a_hole() {
        let seen = Arc::<Lock<Vec<u64>>>::default();
        let bench = bench(vec![keeping(&seen)]);
        let _listener = attach(&bench.hub);
        bench.committed.round_trip().await.unwrap();
        commit(&bench.committed, event(1));
        commit(&bench.committed, of_school(2, 10));
        assert_eq!(*seen.lock().unwrap(), [1, 10]);
        // 2 is missing.
        bench.committed.send(vec![event(4)]).await.unwrap();
        bench.committed.round_trip().await.unwrap();
        commit(&bench.committed, of_school(2, 11));
        assert_eq!(*seen.lock().unwrap(), [1, 10], "the task fills the hole");
        bench.committed.send(vec![event(2)]).await.unwrap();
        bench.committed.round_trip().await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [1, 10, 11, 2]);
        commit(&bench.committed, of_school(2, 12));
        bench.committed.send(vec![event(3)]).await.unwrap();
        bench.committed.round_trip().await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [1, 10, 11, 2, 12, 3, 4]);
        commit(&bench.committed, event(5));
        assert_eq!(seen.lock().unwrap().last(), Some(&5), "nothing is missing");
    }
}
