//! The task of one notifier: reads the logs of schools in turn, and delivers.
//!
//! It guarantees delivery at least once, in order for each subject. The cursor moves past an event only if the event was
//! delivered, became a dead letter, is not selected or not due, or belongs to a subject that is set aside. The commit that
//! moves the cursor also sets the subject aside, so nothing is lost, whenever the process is killed. The in-memory
//! [`Schedule`] only decides when to try.
//!
//! Only one of several nodes delivers: the holder of the notifier's [lease]. Each write contains the lease's fence. A node
//! that takes over continues from the stored cursors. So a node that was suspended during an attempt can deliver that
//! one event a second time, but cannot move a cursor.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};

use super::Notifier;
use super::notification::{DeliveryError, Notification, bounded_title, one_line};
use super::schedule::{Retry, Schedule, pause};
use crate::config::{
    DELIVERY_MAX, NOTIFIER_STOP_MAX, NOTIFY_INBOX, NOTIFY_INBOX_BYTES, NOTIFY_LOOK,
    NOTIFY_REFUSED_PAUSE, NOTIFY_ROUND, NOTIFY_SET_ASIDE_MAX, NOTIFY_TURN_EVENTS,
    NOTIFY_UNCERTAIN_ATTEMPTS, RETRY_AFTER_MAX,
};
use crate::event::{Event, timestamp};
use crate::feed::Feed;
use crate::id::{self, Channel, SchoolId};
use crate::kind::{EventDetails, characteristic};
use crate::lease::{self, Lease};
use crate::log::consumers::{
    Begun, Change, DeadLetter, Offset, Progress, SetAside, Tried, lease_of,
};
use crate::log::{Store, StoreError};
use crate::scope::Scope;
use crate::wire;

/// Number of bytes of the digest in an id. It distinguishes events with the same number, such as one from before and one
/// from after a restore.
const TAG_BYTES: usize = 8;

/// A notifier and its pending work.
pub(super) struct Runner {
    pub(super) notifier: Arc<dyn Notifier>,
    pub(super) store: Arc<dyn Store>,
    pub(super) feed: Arc<Feed>,
    lease: Lease,
    schedule: Mutex<Schedule>,
    /// Committed events for which `wants` is still to be called. The dispatcher never calls it, because an
    /// application's own notifier may be slow or panic.
    inbox: mpsc::Sender<Vec<Arc<Event>>>,
    /// Bytes of the event fields in the inbox.
    inbox_bytes: AtomicUsize,
    /// The receiver of `inbox`. Locked by the task while it runs.
    waiting: tokio::sync::Mutex<mpsc::Receiver<Vec<Arc<Event>>>>,
    is_started: AtomicBool,
    /// Whether this node delivers. Otherwise, events are not observed.
    is_serving: AtomicBool,
}

/// A failed attempt.
pub(super) struct Failure {
    pub(super) error: DeliveryError,
    /// Number of attempts, including this one.
    attempts: u32,
    at: DateTime<Utc>,
}

/// The consequence of a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// The event becomes a dead letter.
    GiveUp,
    /// The receiver is down: the school waits.
    Down,
    /// Only this event is retried.
    Retry,
}

impl Runner {
    pub(super) fn new(
        store: Arc<dyn Store>,
        feed: Arc<Feed>,
        notifier: Arc<dyn Notifier>,
        terms: lease::Terms,
    ) -> Runner {
        let (inbox, waiting) = mpsc::channel(NOTIFY_INBOX);
        let name = lease_of(notifier.name());
        Runner {
            lease: Lease::new(Arc::clone(&store), name, terms),
            notifier,
            store,
            feed,
            schedule: Mutex::default(),
            inbox,
            inbox_bytes: AtomicUsize::new(0),
            waiting: tokio::sync::Mutex::new(waiting),
            is_started: AtomicBool::new(false),
            is_serving: AtomicBool::new(false),
        }
    }

    pub(super) fn notifier(&self) -> &dyn Notifier {
        &*self.notifier
    }

    /// Receives committed events. Never waits, and runs no code of the notifier.
    pub(super) fn observe(&self, events: &[Arc<Event>]) {
        if !self.is_serving.load(Ordering::SeqCst) {
            return;
        }
        let bytes = bytes(events);
        let waiting = self.inbox_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = waiting + bytes <= NOTIFY_INBOX_BYTES;
        if !fits || self.inbox.try_send(events.to_vec()).is_err() {
            self.inbox_bytes.fetch_sub(bytes, Ordering::Relaxed);
            // The inbox is full: the task will read these schools' logs without calling `wants` first.
            let mut schedule = self.schedule();
            events.iter().for_each(|event| schedule.push(event.school));
        }
    }

    /// Returns what is being retried in a school.
    pub(super) fn retry(&self, school: SchoolId) -> Option<Retry> {
        self.schedule().retry(school)
    }

    pub(super) fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the notifier delivers the event. If `wants` panics, the event counts as wanted.
    pub(super) fn wants(&self, event: &Event) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.notifier.wants(event))).unwrap_or(true)
    }

    /// Whether the notifier delivers the event now. If `is_due` panics, the event counts as due.
    pub(super) fn is_due(&self, event: &Event) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.notifier.is_due(event))).unwrap_or(true)
    }

    /// Processes events from the inbox: schedules the schools with an event that the notifier wants, and notes that the
    /// logs of the others have grown.
    fn take_up(&self, events: &[Arc<Event>]) {
        self.inbox_bytes.fetch_sub(bytes(events), Ordering::Relaxed);
        for of_school in events.chunk_by(|one, next| one.school == next.school) {
            let school = of_school[0].school;
            let wanted = of_school.iter().any(|event| self.wants(event));
            let mut schedule = self.schedule();
            if wanted {
                schedule.push(school);
            } else {
                schedule.moved(school);
            }
        }
    }

    /// Delivers whenever this node holds the lease, until the future is dropped. Can run again after a panic. It then
    /// determines again which schools have work.
    pub(super) async fn run(&self) {
        let mut waiting = self.waiting.lock().await;
        while self.lease.acquire().await.is_ok() {
            self.start();
            // Set this before the cursors are read: an event that is committed in between is then observed.
            self.is_serving.store(true, Ordering::SeqCst);
            let ended = self.lease.during(self.serve(&mut waiting)).await;
            if ended == Some(StoreError::Stopped) {
                return;
            }
            self.is_serving.store(false, Ordering::SeqCst);
            if ended == Some(StoreError::Fenced) {
                tracing::warn!(
                    notifier.name = self.notifier.name(),
                    "the progress of a notifier was not stored, because another node holds its lease or a failover has moved its cursor; it continues from the stored cursors"
                );
                sleep(NOTIFY_REFUSED_PAUSE).await;
            }
            while let Ok(events) = waiting.try_recv() {
                self.inbox_bytes
                    .fetch_sub(bytes(&events), Ordering::Relaxed);
            }
            *self.schedule() = Schedule::default();
            self.disconnect().await;
        }
    }

    /// Starts the notifier, unless it has been started. An application's own notifier may panic here. Its deliveries are
    /// attempted nevertheless.
    fn start(&self) {
        let is_first = !self.is_started.swap(true, Ordering::Relaxed);
        if is_first && catch_unwind(AssertUnwindSafe(|| self.notifier.start())).is_err() {
            tracing::error!(
                notifier.name = self.notifier.name(),
                "a notifier panicked when it was started"
            );
        }
    }

    async fn disconnect(&self) {
        self.is_started.store(false, Ordering::Relaxed);
        if timeout(NOTIFIER_STOP_MAX, self.notifier.stop())
            .await
            .is_err()
        {
            let name = self.notifier.name();
            tracing::warn!(notifier.name = name, "a notifier did not stop in time");
        }
    }

    /// Stops the notifier for good, and lets another node deliver.
    pub(super) async fn stop(&self) {
        self.disconnect().await;
        self.lease.release().await;
    }

    /// Delivers until the store stops or another node holds the lease. Returns the corresponding error.
    async fn serve(&self, waiting: &mut mpsc::Receiver<Vec<Arc<Event>>>) -> StoreError {
        let name = self.notifier.name();
        let begins = || self.store.notifier_begins(name);
        let check = || self.store.notifier_looks(name);
        if let Err(error) = self.find_work(begins).await {
            return error;
        }
        let is_shared = self.store.is_shared();
        let mut next_check = Instant::now() + NOTIFY_LOOK;
        let mut round = Instant::now() + NOTIFY_ROUND;
        loop {
            if is_shared && next_check <= Instant::now() {
                if let Err(error) = self.find_work(check).await {
                    return error;
                }
                next_check = Instant::now() + NOTIFY_LOOK;
            }
            while let Ok(events) = waiting.try_recv() {
                self.take_up(&events);
            }
            if round <= Instant::now() {
                self.schedule().push_moved();
                round = Instant::now() + NOTIFY_ROUND;
            }
            let next = self.schedule().pop(Instant::now());
            let Some(school) = next else {
                let due = self.schedule().due().unwrap_or(round).min(round);
                let due = if is_shared { due.min(next_check) } else { due };
                tokio::select! {
                    // Biased, so that simulations are deterministic.
                    biased;
                    events = waiting.recv() => match events {
                        Some(events) => self.take_up(&events),
                        None => return StoreError::Stopped,
                    },
                    () = sleep_until(due) => {}
                }
                continue;
            };
            match self.turn(school).await {
                Ok(false) => {}
                Ok(true) => self.schedule().push(school),
                Err(error @ (StoreError::Stopped | StoreError::Fenced)) => return error,
                Err(error) => {
                    tracing::error!(%error, notifier.name = self.notifier.name(), "a notifier could not read the log; retrying");
                    self.schedule().push(school);
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Determines which schools have work. Fails only if the store has stopped.
    async fn find_work<F: Future<Output = Result<Begun, StoreError>>>(
        &self,
        read: impl Fn() -> F,
    ) -> Result<(), StoreError> {
        loop {
            match read().await {
                Ok(begun) => {
                    let mut schedule = self.schedule();
                    if let Some(at) = begun.not_before {
                        schedule.wait_until(Instant::now() + until(at, Utc::now()));
                    }
                    begun
                        .behind
                        .into_iter()
                        .for_each(|school| schedule.push(school));
                    return Ok(());
                }
                Err(StoreError::Stopped) => return Err(StoreError::Stopped),
                Err(error) => {
                    tracing::error!(%error, notifier.name = self.notifier.name(), "a notifier could not read its cursors; retrying");
                    sleep(NOTIFY_ROUND).await;
                }
            }
        }
    }

    /// Gives a school its turn: first the subject that is set aside and has been due longest, then the log from the
    /// cursor. Each of the two ends with its first failed attempt, so that the failures of one school hardly delay the
    /// others. Returns true if there is more to do at once.
    async fn turn(&self, school: SchoolId) -> Result<bool, StoreError> {
        let name = self.notifier.name();
        let mut offset = self.store.notifier_offset(name, school).await?;
        let more = self.turn_at(school, &mut offset).await;
        let now = Utc::now();
        let due = offset
            .set_aside
            .iter()
            .map(|entry| until(entry.due, now))
            .min();
        let due = due.map(|wait| Instant::now() + wait);
        self.schedule().set_aside(school, due);
        more
    }

    async fn turn_at(&self, school: SchoolId, offset: &mut Offset) -> Result<bool, StoreError> {
        let now = Utc::now();
        let due = offset
            .set_aside
            .iter()
            .filter(|entry| until(entry.due, now).is_zero());
        if let Some(entry) = due.min_by_key(|entry| entry.due).cloned()
            && !self.resume(school, offset, entry).await?
        {
            return Ok(false);
        }
        if !self.schedule().resumes(school, Instant::now()) {
            return Ok(false);
        }
        self.advance(school, offset).await
    }

    /// Reads a page of a school's log and delivers selected events, up to the limit of a turn.
    async fn advance(&self, school: SchoolId, offset: &mut Offset) -> Result<bool, StoreError> {
        let scope = Arc::new(Scope::new(school, [Channel::School(school)]));
        let Some(page) = self.feed.replay(scope, offset.in_log(), false).await? else {
            // A failover has lost the event at the cursor, and has moved the cursor back.
            return Ok(true);
        };
        if offset.seq < page.floor {
            self.skip(school, offset, page.floor).await?;
            return Ok(true);
        }
        let mut count = 0;
        for event in &page.events {
            if offset.is_set_aside(event) || !self.wants(event) || !self.is_due(event) {
                continue;
            }
            if count == NOTIFY_TURN_EVENTS {
                return Ok(true);
            }
            count += 1;
            let tried = offset.tried.filter(|tried| tried.seq == event.seq);
            let attempts = tried.map_or(0, |tried| tried.attempts);
            let Err(failure) = self.attempt(event, attempts).await? else {
                let delivered = Progress {
                    of: Some(event.place()),
                    delivered: Some(Utc::now().trunc_subsecs(3)),
                    ..Progress::default()
                };
                self.record(school, offset, event.seq, delivered).await?;
                continue;
            };
            return self.fails_at_cursor(event, offset, failure).await;
        }
        if page.through.seq > offset.seq {
            let read = Progress {
                of: Some(page.through),
                ..Progress::default()
            };
            self.record(school, offset, page.through.seq, read).await?;
        }
        Ok(page.through < page.head)
    }

    /// Records the failed attempt of the event at the cursor. Returns true if the cursor moves on.
    async fn fails_at_cursor(
        &self,
        event: &Event,
        offset: &mut Offset,
        failure: Failure,
    ) -> Result<bool, StoreError> {
        let (school, first) = (event.school, self.notifier.retry_policy().pause);
        let asked = failure.error.retry_after();
        let decision = self.decision(school, &failure);
        let mut progress = failure.progress(decision, event);
        if decision == Decision::GiveUp {
            self.record(school, offset, event.seq, progress).await?;
            return Ok(true);
        }
        let is_certain = matches!(failure.error, DeliveryError::Rejected { .. });
        let is_enough = is_certain || failure.attempts >= NOTIFY_UNCERTAIN_ATTEMPTS;
        let has_room = offset.set_aside.len() < NOTIFY_SET_ASIDE_MAX;
        if decision == Decision::Retry && is_enough && has_room {
            let entry = failure.set_aside(event, first);
            progress.set_aside = Some(Change::Put(entry.clone()));
            self.record(school, offset, event.seq, progress).await?;
            offset.set_aside.push(entry);
            if !is_certain {
                self.schedule().count_uncertain(school);
            }
            return Ok(true);
        }
        progress.tried = Some(Tried {
            seq: event.seq,
            attempts: failure.attempts,
        });
        // The cursor stays before the event.
        self.record(school, offset, event.seq - 1, progress).await?;
        let mut schedule = self.schedule();
        let due = match decision {
            Decision::Down => schedule.is_down(school, first, asked),
            _ => Instant::now() + pause(first, failure.attempts).max(asked.unwrap_or_default()),
        };
        let (seq, attempts) = (event.seq, failure.attempts);
        schedule.retries(school, Retry { seq, attempts, due });
        Ok(false)
    }

    /// Moves the cursor, unless it has moved since the turn read it.
    pub(super) async fn record(
        &self,
        school: SchoolId,
        offset: &mut Offset,
        seq: u64,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let name = self.notifier.name();
        let fence = self.lease.fence().ok_or(StoreError::Fenced)?;
        let progress = Progress {
            from: Some(offset.seq),
            ..progress
        };
        let at = progress.of.filter(|of| of.seq == seq);
        self.store
            .notifier_moves(name, fence, school, seq, progress)
            .await?;
        if seq > offset.seq {
            (offset.seq, offset.tag) = (seq, at.and_then(|at| at.tag));
        }
        Ok(())
    }

    /// Returns the consequence of a failed attempt. It depends on the cause, the number of attempts, and the results of
    /// other events.
    pub(super) fn decision(&self, school: SchoolId, failure: &Failure) -> Decision {
        let is_last = failure.attempts >= self.notifier.retry_policy().attempts;
        let mut schedule = self.schedule();
        let decision = match failure.error {
            DeliveryError::Permanent(_) => Decision::GiveUp,
            _ if is_last => Decision::GiveUp,
            DeliveryError::Unavailable { .. } => Decision::Down,
            DeliveryError::Failed(_) if schedule.counts_as_down(school) => Decision::Down,
            DeliveryError::Failed(_) | DeliveryError::Rejected { .. } => Decision::Retry,
        };
        if decision != Decision::Down {
            schedule.answered(school);
        }
        if let Some(asked) = failure.asked_of_all() {
            schedule.wait_until(Instant::now() + asked);
        }
        let cause = one_line(&failure.error.to_string());
        tracing::warn!(
            notifier.name = self.notifier.name(), school.id = %school, attempts = failure.attempts, cause, ?decision,
            "a notification was not delivered"
        );
        decision
    }

    /// Makes one attempt. Limits its time, and keeps its panics away from this task.
    async fn deliver(&self, notification: Notification) -> Result<(), DeliveryError> {
        let notifier = Arc::clone(&self.notifier);
        // A `JoinSet`, so that the attempt ends if this future is dropped.
        let mut attempt = JoinSet::new();
        attempt.spawn(async move { notifier.deliver(&notification).await });
        match timeout(DELIVERY_MAX, attempt.join_next()).await {
            Ok(Some(Ok(outcome))) => outcome,
            Ok(_) => Err(DeliveryError::Failed("the notifier panicked".into())),
            Err(_) => {
                let secs = DELIVERY_MAX.as_secs();
                Err(DeliveryError::unavailable(format!(
                    "the attempt did not end within {secs} s"
                )))
            }
        }
    }

    /// Makes one attempt to deliver an event, after `before` earlier attempts.
    pub(super) async fn attempt(
        &self,
        event: &Event,
        before: u32,
    ) -> Result<Result<(), Failure>, StoreError> {
        let outcome = self.deliver(self.notification(event).await?).await;
        if outcome.is_ok() {
            self.schedule().delivered(event.school);
            // The event was delivered, even if an application's own notifier panics here.
            catch_unwind(AssertUnwindSafe(|| self.notifier.delivered(event))).ok();
        }
        Ok(outcome.map_err(|error| Failure {
            error,
            attempts: before.saturating_add(1),
            at: Utc::now().trunc_subsecs(3),
        }))
    }

    /// Records a dead letter for events that retention deleted before they were delivered.
    async fn skip(
        &self,
        school: SchoolId,
        offset: &mut Offset,
        floor: u64,
    ) -> Result<(), StoreError> {
        let now = Utc::now().trunc_subsecs(3);
        let cause = format!(
            "events {} to {floor} are past retention; it is unknown whether the notifier wanted any of them",
            offset.seq + 1
        );
        tracing::warn!(notifier.name = self.notifier.name(), school.id = %school, cause, "retention deleted events before a notifier delivered them");
        let progress = Progress {
            of: Some(id::Place::untagged(floor)),
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
        self.record(school, offset, floor, progress).await
    }

    async fn notification(&self, event: &Event) -> Result<Notification, StoreError> {
        let name = self.notifier.name();
        let severity = characteristic::severity(&event.draft);
        let (school, kind, subject) = (event.school, event.kind, event.subject.clone());
        // Not every event contains the title. Subjects that are past retention have none.
        let stored = self.store.subject(school, kind, subject).await?;
        let title = stored.and_then(|stored| stored.state.title());
        Ok(Notification {
            id: id(event, name),
            school_id: event.school.get(),
            kind: event.kind.collection(),
            subject: event.subject.to_string(),
            title: title.as_deref().map(bounded_title),
            event_type: event.draft.event_type.name,
            status: event.draft.status,
            severity: severity.map(|severity| severity.as_str().to_owned()),
            at: event.at,
            details: EventDetails::of(&event.draft),
            json: wire::event_json(event, false),
        })
    }
}

/// Returns the id of the notification; see [`Notification::id`]. A live event and the same event read from the log are
/// equal byte for byte, so both have the same id.
fn id(event: &Event, notifier: &str) -> String {
    let content = [
        event.kind.collection(),
        event.subject.as_str(),
        event.draft.event_type.name,
        event.draft.status,
        &timestamp(event.at),
        &event.draft.fields,
    ];
    let digest = Sha256::digest(content.join("\0").as_bytes());
    let tag: String = digest[..TAG_BYTES]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let (epoch, school, seq) = (event.epoch, event.school, event.seq);
    format!("{epoch}-{school}-{seq}-{tag}-{notifier}")
}

impl Failure {
    /// Returns how long the receiver asks the notifier to wait before the next request for any school.
    fn asked_of_all(&self) -> Option<Duration> {
        match self.error {
            DeliveryError::Unavailable { .. } => self.error.retry_after(),
            _ => None,
        }
    }

    /// Returns what is recorded about the failure.
    pub(super) fn progress(&self, decision: Decision, event: &Event) -> Progress {
        let cause = one_line(&self.error.to_string());
        Progress {
            of: Some(event.place()),
            failed: Some((self.at, cause.clone())),
            dead: (decision == Decision::GiveUp).then(|| DeadLetter {
                seq: event.seq,
                event_type: event.draft.event_type.name.to_owned(),
                kind: event.kind.collection().to_owned(),
                subject: event.subject.to_string(),
                attempts: self.attempts,
                cause,
                at: self.at,
            }),
            not_before: self.asked_of_all().map(|asked| in_future(self.at, asked)),
            ..Progress::default()
        }
    }

    /// Returns the entry that sets the event's subject aside until the next attempt.
    pub(super) fn set_aside(&self, event: &Event, first: Duration) -> SetAside {
        let asked = self.error.retry_after().unwrap_or_default();
        SetAside {
            kind: event.kind,
            subject: event.subject.clone(),
            seq: event.seq,
            event_type: event.draft.event_type.name.to_owned(),
            attempts: self.attempts,
            cause: one_line(&self.error.to_string()),
            due: in_future(self.at, pause(first, self.attempts).max(asked)),
        }
    }
}

/// Saved times are rounded up to whole milliseconds, so a saved time can be later than the exact one by this much.
const ROUNDING: Duration = Duration::from_millis(1);

/// Returns a time at least `wait` after `now`, in whole milliseconds as it is saved.
fn in_future(now: DateTime<Utc>, wait: Duration) -> DateTime<Utc> {
    let wait = TimeDelta::from_std(wait).unwrap_or(TimeDelta::MAX);
    let exact = now.checked_add_signed(wait).unwrap_or(now);
    match wait.is_zero() {
        true => exact,
        false => exact.trunc_subsecs(3) + TimeDelta::milliseconds(1),
    }
}

/// Returns the time until a saved time. A saved time that is too far ahead was written before the clock was set back,
/// and is ignored.
fn until(at: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    let wait = (at - now).to_std().unwrap_or_default();
    match wait <= RETRY_AFTER_MAX + ROUNDING {
        true => wait,
        false => Duration::ZERO,
    }
}

fn bytes(events: &[Arc<Event>]) -> usize {
    events.iter().map(|event| event.draft.fields.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_kept_so_that_nothing_is_tried_before_it() {
        let now = "2026-03-01T08:00:00.0009Z".parse().unwrap();
        for millis in [1, 999, 1_000, 3_600_000] {
            let wait = Duration::from_millis(millis);
            let kept = in_future(now, wait);
            assert_eq!(kept, kept.trunc_subsecs(3));
            let left = until(kept, now);
            assert!(left >= wait && left <= wait + ROUNDING, "{left:?}");
        }
        assert_eq!(until(now - TimeDelta::seconds(1), now), Duration::ZERO);
        assert_eq!(until(now + TimeDelta::days(1), now), Duration::ZERO);
    }
}
