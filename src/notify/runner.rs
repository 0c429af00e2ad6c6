//! The task of one notifier: reads the logs of schools in turn, and delivers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{SubsecRound, Utc};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};

use super::Notifier;
use super::notification::{DeliveryError, Notification, bounded_title, one_line};
use super::schedule::{Retry, Schedule};
use crate::config::{
    DELIVERY_MAX, NOTIFY_INBOX, NOTIFY_INBOX_BYTES, NOTIFY_PAUSE_MAX, NOTIFY_ROUND,
    NOTIFY_TURN_EVENTS,
};
use crate::event::Event;
use crate::id::{Channel, SchoolId};
use crate::kind::characteristic;
use crate::scope::Scope;
use crate::store::notifiers::{DeadLetter, Place, Progress, Tried};
use crate::store::{Store, StoreError};
use crate::wire;

/// A notifier and what waits for it.
pub(super) struct Runner {
    notifier: Arc<dyn Notifier>,
    store: Arc<dyn Store>,
    schedule: Mutex<Schedule>,
    /// Committed events that the notifier is still to be asked about. It is never asked by the dispatcher: it may be
    /// an application's own, and slow, or panic.
    inbox: mpsc::Sender<Vec<Arc<Event>>>,
    /// Of the fields of what is in it.
    inbox_bytes: AtomicUsize,
    waiting: Mutex<Option<mpsc::Receiver<Vec<Arc<Event>>>>>,
}

/// What a turn came to.
enum Turn {
    /// All that was there is done.
    Done,
    /// There is more.
    More,
    /// An attempt failed.
    Failed,
}

impl Runner {
    pub(super) fn new(store: Arc<dyn Store>, notifier: Arc<dyn Notifier>) -> Runner {
        let (inbox, waiting) = mpsc::channel(NOTIFY_INBOX);
        Runner {
            notifier,
            store,
            schedule: Mutex::default(),
            inbox,
            inbox_bytes: AtomicUsize::new(0),
            waiting: Mutex::new(Some(waiting)),
        }
    }

    pub(super) fn notifier(&self) -> &dyn Notifier {
        &*self.notifier
    }

    /// What [`Runner::run`] takes. There is one.
    pub(super) fn take_inbox(&self) -> Option<mpsc::Receiver<Vec<Arc<Event>>>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.take()
    }

    /// Takes note of committed events. Never waits, and runs no code of the notifier's.
    pub(super) fn observe(&self, events: &[Arc<Event>]) {
        let bytes = bytes(events);
        let waiting = self.inbox_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = waiting + bytes <= NOTIFY_INBOX_BYTES;
        if !fits || self.inbox.try_send(events.to_vec()).is_err() {
            self.inbox_bytes.fetch_sub(bytes, Ordering::Relaxed);
            // It is busy: it will look at these schools' logs without being asked what it wants of them.
            let mut schedule = self.schedule();
            events.iter().for_each(|event| schedule.push(event.school));
        }
    }

    /// What is being tried again in a school.
    pub(super) fn retry(&self, school: SchoolId) -> Option<Retry> {
        self.schedule().failed.get(&school).copied()
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the notifier wants to hear of the event. One that panics hears of it.
    fn wants(&self, event: &Event) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.notifier.wants(event))).unwrap_or(true)
    }

    fn sort(&self, events: &[Arc<Event>]) {
        self.inbox_bytes.fetch_sub(bytes(events), Ordering::Relaxed);
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            let school = of_school[0].school;
            let wanted = of_school.iter().any(|event| self.wants(event));
            let mut schedule = self.schedule();
            if wanted {
                schedule.push(school);
            } else {
                schedule.moved.insert(school);
            }
        }
    }

    /// Delivers until it is aborted.
    pub(super) async fn run(self: Arc<Self>, mut waiting: mpsc::Receiver<Vec<Arc<Event>>>) {
        loop {
            match self.store.notifier_begins(self.notifier.name()).await {
                Ok(behind) => {
                    let mut schedule = self.schedule();
                    break behind.into_iter().for_each(|school| schedule.push(school));
                }
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    tracing::error!(%error, notifier.name = self.notifier.name(), "a notifier cannot begin");
                    sleep(NOTIFY_ROUND).await;
                }
            }
        }
        let mut round = Instant::now() + NOTIFY_ROUND;
        loop {
            while let Ok(events) = waiting.try_recv() {
                self.sort(&events);
            }
            if round <= Instant::now() {
                let mut schedule = self.schedule();
                let moved = std::mem::take(&mut schedule.moved);
                moved.into_iter().for_each(|school| schedule.push(school));
                round = Instant::now() + NOTIFY_ROUND;
            }
            let next = self.schedule().pop(Instant::now());
            let Some(school) = next else {
                let due = self.schedule().failed.values().map(|retry| retry.due).min();
                tokio::select! {
                    events = waiting.recv() => match events {
                        Some(events) => self.sort(&events),
                        None => return,
                    },
                    () = sleep_until(due.unwrap_or(round).min(round)) => {}
                }
                continue;
            };
            match self.turn(school).await {
                Ok(Turn::Done | Turn::Failed) => {}
                Ok(Turn::More) => self.schedule().push(school),
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    tracing::error!(%error, notifier.name = self.notifier.name(), "a notifier cannot read the log");
                    self.schedule().push(school);
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Reads a page of a school's log and delivers of what is wanted as much as a turn allows.
    async fn turn(&self, school: SchoolId) -> Result<Turn, StoreError> {
        let name = self.notifier.name();
        let Place { seq: after, tried } = self.store.notifier_place(name, school).await?;
        let scope = Arc::new(Scope::new(school, [Channel::School(school)]));
        let page = self.store.replay(scope, after, false).await?;
        if after < page.floor {
            self.skip(school, after, page.floor).await?;
            return Ok(Turn::More);
        }
        let wanted = page.events.iter().filter(|event| self.wants(event));
        for (count, event) in wanted.enumerate() {
            if count == NOTIFY_TURN_EVENTS {
                return Ok(Turn::More);
            }
            if !self.attempt(event, tried).await? {
                return Ok(Turn::Failed);
            }
        }
        if page.through > after {
            let progress = Progress::default();
            self.store
                .notifier_moves(name, school, page.through, progress)
                .await?;
        }
        Ok(if page.through < page.head {
            Turn::More
        } else {
            Turn::Done
        })
    }

    /// Makes one attempt, which ends in time and cannot take this task with it.
    async fn deliver(&self, notification: Notification) -> Result<(), DeliveryError> {
        let notifier = Arc::clone(&self.notifier);
        // Ends with this future, whatever comes of it.
        let mut attempt = JoinSet::new();
        attempt.spawn(async move { notifier.deliver(&notification).await });
        match timeout(DELIVERY_MAX, attempt.join_next()).await {
            Ok(Some(Ok(outcome))) => outcome,
            Ok(_) => Err(DeliveryError::Temporary("the notifier panicked".into())),
            Err(_) => {
                let secs = DELIVERY_MAX.as_secs();
                Err(DeliveryError::Temporary(format!(
                    "the attempt did not end within {secs} s"
                )))
            }
        }
    }

    /// Makes one attempt to deliver an event. True if the cursor has moved past it.
    async fn attempt(&self, event: &Arc<Event>, tried: Option<Tried>) -> Result<bool, StoreError> {
        let (name, school) = (self.notifier.name(), event.school);
        let outcome = self.deliver(self.notification(event).await?).await;
        let attempts = tried
            .filter(|tried| tried.seq == event.seq)
            .map_or(1, |tried| tried.attempts.saturating_add(1));
        let now = Utc::now().trunc_subsecs(3);
        let Err(error) = outcome else {
            let progress = Progress {
                delivered: Some(now),
                ..Progress::default()
            };
            self.store
                .notifier_moves(name, school, event.seq, progress)
                .await?;
            return Ok(true);
        };
        let cause = one_line(&error.to_string());
        let patience = self.notifier.patience();
        let is_last = matches!(error, DeliveryError::Permanent(_)) || attempts >= patience.attempts;
        tracing::warn!(
            notifier.name = name, school.id = %school, event.seq = event.seq, attempts, cause, is_last,
            "a notification was not delivered"
        );
        let progress = Progress {
            failed: Some((now, cause.clone())),
            tried: (!is_last).then_some(Tried {
                seq: event.seq,
                attempts,
            }),
            dead: is_last.then(|| DeadLetter {
                seq: event.seq,
                event_type: event.draft.event_type.name.to_owned(),
                kind: event.kind.collection().to_owned(),
                subject: event.subject.to_string(),
                attempts,
                cause,
                at: now,
            }),
            ..Progress::default()
        };
        // A failed attempt that is not the last one leaves the cursor where it is.
        let moves_to = if is_last { event.seq } else { event.seq - 1 };
        self.store
            .notifier_moves(name, school, moves_to, progress)
            .await?;
        if !is_last {
            let retry = Retry {
                seq: event.seq,
                attempts,
                due: Instant::now() + pause(patience.pause, attempts),
            };
            self.schedule().failed.insert(school, retry);
        }
        Ok(is_last)
    }

    /// What was not delivered before the log forgot it is a dead letter, too.
    async fn skip(&self, school: SchoolId, after: u64, floor: u64) -> Result<(), StoreError> {
        let now = Utc::now().trunc_subsecs(3);
        let cause = format!(
            "events {} to {floor} are past retention; whether one of them was wanted is not known",
            after + 1
        );
        tracing::warn!(notifier.name = self.notifier.name(), school.id = %school, cause, "a notifier comes too late");
        let progress = Progress {
            dead: Some(DeadLetter {
                seq: floor,
                event_type: String::new(),
                kind: String::new(),
                subject: String::new(),
                attempts: 0,
                cause,
                at: now,
            }),
            ..Progress::default()
        };
        self.store
            .notifier_moves(self.notifier.name(), school, floor, progress)
            .await
    }

    async fn notification(&self, event: &Event) -> Result<Notification, StoreError> {
        let name = self.notifier.name();
        let severity = characteristic::severity(&event.draft);
        let (school, kind, subject) = (event.school, event.kind, event.subject.clone());
        // Not every event tells it. A subject that is past retention has none.
        let stored = self.store.subject(school, kind, subject).await?;
        let title = stored.and_then(|stored| stored.state.title());
        Ok(Notification {
            id: format!("{}-{}-{}-{name}", event.epoch, event.school, event.seq),
            school_id: event.school.get(),
            kind: event.kind.collection(),
            subject: event.subject.to_string(),
            title: title.as_deref().map(bounded_title),
            event_type: event.draft.event_type.name,
            status: event.draft.status,
            severity: severity.map(|severity| severity.as_str().to_owned()),
            at: event.at,
            json: wire::event_json(event, false),
        })
    }
}

fn bytes(events: &[Arc<Event>]) -> usize {
    events.iter().map(|event| event.draft.fields.len()).sum()
}

/// How long to wait after so many attempts: doubled each time, within bounds.
fn pause(first: Duration, attempts: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
    first.saturating_mul(doubled).min(NOTIFY_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound() {
        let first = Duration::from_secs(1);
        let secs: Vec<u64> = [1, 2, 3, 9, 10, 99]
            .map(|attempts| pause(first, attempts).as_secs())
            .into();
        assert_eq!(secs, [1, 2, 4, 256, 300, 300]);
    }
}
