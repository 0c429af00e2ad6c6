//! Delivers the events of subjects that are set aside, up to the cursor, while all other subjects continue.
//!
//! ```text
//! log      a1  b1  a2  c1  b2  a3 │ a4  b3          a1 is refused: a is set aside at 1
//!          ▲   ✓   ·   ✓   ✓   ·  ▲
//!          a                    cursor               a1, a2, a3 wait here, in order; after them,
//!                                                    a is lifted and a4 is delivered by the cursor
//! ```
//!
//! The store keeps the subject and its place, and the log keeps the events. However many events wait, memory holds one
//! page.

use std::sync::Arc;

use chrono::{SubsecRound, Utc};

use super::notification::one_line;
use super::runner::{Decision, Runner};
use crate::config::NOTIFY_TURN_EVENTS;
use crate::event::Event;
use crate::id::{self, Channel, SchoolId};
use crate::log::StoreError;
use crate::log::consumers::{Change, DeadLetter, Offset, Progress, SetAside};
use crate::scope::Scope;

/// The waiting events of a subject, up to one page.
struct Backlog {
    events: Vec<Arc<Event>>,
    /// The seq up to which the page reaches.
    through: u64,
    /// The cursor's seq.
    cursor: u64,
    /// Events up to here have been deleted.
    floor: u64,
}

impl Backlog {
    /// Returns the subject's place after its first `done` events. Returns `None` if no events are left.
    fn place_after(&self, done: usize) -> Option<u64> {
        match self.events.get(done) {
            Some(next) => Some(next.seq),
            None => (self.through < self.cursor).then_some(self.through + 1),
        }
    }
}

impl Runner {
    /// Delivers the events of a subject that is set aside, up to the limit of a turn. Returns false if the receiver
    /// turns out to be down.
    pub(super) async fn resume(
        &self,
        school: SchoolId,
        place: &mut Offset,
        entry: SetAside,
    ) -> Result<bool, StoreError> {
        let backlog = self.backlog(school, place, &entry).await?;
        if entry.seq <= backlog.floor || backlog.events.is_empty() {
            let progress = match entry.seq <= backlog.floor {
                true => self.deleted_by_retention(school, &entry, backlog.floor),
                false => Progress::default(),
            };
            let next = backlog.place_after(0);
            self.move_to(school, place, &entry, next, progress).await?;
            return Ok(true);
        }
        for (done, event) in backlog.events.iter().take(NOTIFY_TURN_EVENTS).enumerate() {
            let attempts = if event.seq == entry.seq {
                entry.attempts
            } else {
                0
            };
            let next = backlog.place_after(done + 1);
            if event.seq != entry.seq && !self.is_due(event) {
                self.move_to(school, place, &entry, next, Progress::default())
                    .await?;
                continue;
            }
            let Err(failure) = self.attempt(event, attempts).await? else {
                let delivered = Progress {
                    of: Some(event.place()),
                    delivered: Some(Utc::now().trunc_subsecs(3)),
                    ..Progress::default()
                };
                self.move_to(school, place, &entry, next, delivered).await?;
                continue;
            };
            let decision = self.decision(school, &failure);
            let mut progress = failure.progress(decision, event);
            if decision == Decision::GiveUp {
                self.move_to(school, place, &entry, next, progress).await?;
                return Ok(true);
            }
            let first = self.notifier.retry_policy().pause;
            progress.set_aside = Some(Change::Put(failure.set_aside(event, first)));
            self.record_change(school, place, progress).await?;
            if decision == Decision::Down {
                let asked = failure.error.retry_after();
                self.schedule().is_down(school, first, asked);
            }
            return Ok(decision != Decision::Down);
        }
        Ok(true)
    }

    /// Reads the waiting events of a subject. A characteristic's replay contains acknowledgements of other
    /// characteristics, which are filtered out.
    async fn backlog(
        &self,
        school: SchoolId,
        place: &Offset,
        entry: &SetAside,
    ) -> Result<Backlog, StoreError> {
        let channel = Channel::Subject(entry.kind, entry.subject.clone());
        let scope = Arc::new(Scope::new(school, [channel]));
        let after = id::Place::untagged(entry.seq - 1);
        // A place without a tag is always known, so the replay returns a page.
        let page = self.feed.replay(scope, after, false).await?;
        let mut page = page.ok_or(StoreError::Fenced)?;
        if self.feed.is_shared() && !self.feed.has(school, place.in_log()).await? {
            // A failover has moved the cursor back. Other events of the subject may have to be delivered first.
            return Err(StoreError::Fenced);
        }
        page.events.retain(|event| {
            let is_waiting = event.seq > page.floor && event.seq <= place.seq;
            is_waiting && entry.is_of(event) && self.wants(event)
        });
        Ok(Backlog {
            events: page.events,
            through: page.through.seq,
            // No event beyond the end of the log can wait. Otherwise a damaged place would be searched for forever.
            cursor: place.seq.min(page.head.seq),
            floor: page.floor,
        })
    }

    /// Records the new place of a subject that is set aside. Without a place, the subject is no longer set aside.
    async fn move_to(
        &self,
        school: SchoolId,
        place: &mut Offset,
        entry: &SetAside,
        seq: Option<u64>,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let change = match seq {
            Some(seq) => Change::Put(SetAside {
                seq,
                event_type: String::new(),
                attempts: 0,
                cause: String::new(),
                due: Utc::now().trunc_subsecs(3),
                ..entry.clone()
            }),
            None => Change::Lift(entry.kind, entry.subject.clone()),
        };
        let progress = Progress {
            set_aside: Some(change),
            ..progress
        };
        self.record_change(school, place, progress).await
    }

    /// Records a change of a subject that is set aside. The cursor and its event remain unchanged.
    async fn record_change(
        &self,
        school: SchoolId,
        place: &mut Offset,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let progress = Progress {
            tried: place.tried,
            ..progress
        };
        let change = progress.set_aside.clone();
        self.record(school, place, place.seq, progress).await?;
        let (kind, subject) = match &change {
            Some(Change::Put(entry)) => (entry.kind, &entry.subject),
            Some(Change::Lift(kind, subject)) => (*kind, subject),
            None => return Ok(()),
        };
        place
            .set_aside
            .retain(|entry| entry.kind != kind || entry.subject != *subject);
        if let Some(Change::Put(entry)) = change {
            place.set_aside.push(entry);
        }
        Ok(())
    }

    /// Returns a dead letter for the events of a subject that is set aside, because retention has deleted them.
    fn deleted_by_retention(&self, school: SchoolId, entry: &SetAside, floor: u64) -> Progress {
        let cause = match entry.cause.as_str() {
            "" => format!(
                "events {} to {floor} of the subject are past retention; it is unknown whether the notifier \
                 wanted any of them",
                entry.seq
            ),
            cause => format!(
                "past retention before delivery, together with the subject's following events up to {floor}; \
                 the last attempt: {cause}"
            ),
        };
        let cause = one_line(&cause);
        tracing::warn!(
            notifier.name = self.notifier.name(), school.id = %school, event.seq = entry.seq, cause,
            "retention deleted events before a notifier delivered them"
        );
        Progress {
            dead: Some(DeadLetter {
                seq: entry.seq,
                event_type: entry.event_type.clone(),
                kind: entry.kind.collection().to_owned(),
                subject: entry.subject.to_string(),
                attempts: entry.attempts,
                cause,
                at: Utc::now().trunc_subsecs(3),
            }),
            ..Progress::default()
        }
    }
}
