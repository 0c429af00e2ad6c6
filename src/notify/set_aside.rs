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
        own: SetAside,
    ) -> Result<bool, StoreError> {
        let backlog = self.backlog(school, place, &own).await?;
        if own.seq <= backlog.floor || backlog.events.is_empty() {
            let progress = match own.seq <= backlog.floor {
                true => self.deleted_by_retention(school, &own, backlog.floor),
                false => Progress::default(),
            };
            let next = backlog.place_after(0);
            self.move_to(school, place, &own, next, progress).await?;
            return Ok(true);
        }
        for (done, event) in backlog.events.iter().take(NOTIFY_TURN_EVENTS).enumerate() {
            let attempts = if event.seq == own.seq {
                own.attempts
            } else {
                0
            };
            let next = backlog.place_after(done + 1);
            if event.seq != own.seq && !self.is_due(event) {
                self.move_to(school, place, &own, next, Progress::default())
                    .await?;
                continue;
            }
            let Err(failure) = self.attempt(event, attempts).await? else {
                let delivered = Progress {
                    of: Some(event.place()),
                    delivered: Some(Utc::now().trunc_subsecs(3)),
                    ..Progress::default()
                };
                self.move_to(school, place, &own, next, delivered).await?;
                continue;
            };
            let decision = self.decision(school, &failure);
            let mut progress = failure.progress(decision, event);
            if decision == Decision::GiveUp {
                self.move_to(school, place, &own, next, progress).await?;
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
        own: &SetAside,
    ) -> Result<Backlog, StoreError> {
        let channel = Channel::Subject(own.kind, own.subject.clone());
        let scope = Arc::new(Scope::new(school, [channel]));
        let after = id::Place::untagged(own.seq - 1);
        // A place without a tag is always known, so the replay returns a page.
        let page = self.feed.replay(scope, after, false).await?;
        let mut page = page.ok_or(StoreError::Fenced)?;
        if self.feed.is_shared() && !self.feed.has(school, place.in_log()).await? {
            // A failover has moved the cursor back. Other events of the subject may have to be delivered first.
            return Err(StoreError::Fenced);
        }
        page.events.retain(|event| {
            let is_waiting = event.seq > page.floor && event.seq <= place.seq;
            is_waiting && own.is_of(event) && self.wants(event)
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
        own: &SetAside,
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
                ..own.clone()
            }),
            None => Change::Lift(own.kind, own.subject.clone()),
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
            Some(Change::Put(own)) => (own.kind, &own.subject),
            Some(Change::Lift(kind, subject)) => (*kind, subject),
            None => return Ok(()),
        };
        place
            .set_aside
            .retain(|own| own.kind != kind || own.subject != *subject);
        if let Some(Change::Put(own)) = change {
            place.set_aside.push(own);
        }
        Ok(())
    }

    /// Returns a dead letter for the events of a subject that is set aside, because retention has deleted them.
    fn deleted_by_retention(&self, school: SchoolId, own: &SetAside, floor: u64) -> Progress {
        let cause = match own.cause.as_str() {
            "" => format!(
                "events {} to {floor} of the subject are past retention; it is unknown whether the notifier \
                 wanted any of them",
                own.seq
            ),
            cause => format!(
                "past retention before delivery, together with the subject's following events up to {floor}; \
                 the last attempt: {cause}"
            ),
        };
        let cause = one_line(&cause);
        tracing::warn!(
            notifier.name = self.notifier.name(), school.id = %school, event.seq = own.seq, cause,
            "retention deleted events before a notifier delivered them"
        );
        Progress {
            dead: Some(DeadLetter {
                seq: own.seq,
                event_type: own.event_type.clone(),
                kind: own.kind.collection().to_owned(),
                subject: own.subject.to_string(),
                attempts: own.attempts,
                cause,
                at: Utc::now().trunc_subsecs(3),
            }),
            ..Progress::default()
        }
    }
}
