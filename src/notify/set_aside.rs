//! Subjects that are set aside: their events are delivered from here, up to the cursor, while all others go on.
//!
//! ```text
//! log      a1  b1  a2  c1  b2  a3 │ a4  b3          a1 is refused: a is set aside at 1
//!          ▲   ✓   ·   ✓   ✓   ·  ▲
//!          a                    cursor               a1, a2, a3 wait here, in order; once they are done with,
//!                                                    a is lifted and a4 is delivered by the cursor
//! ```
//!
//! The store keeps the subject and its place, the log keeps the events: however many wait, memory holds a page.

use std::sync::Arc;

use chrono::{SubsecRound, Utc};

use super::notification::one_line;
use super::runner::{Runner, Verdict};
use crate::config::NOTIFY_TURN_EVENTS;
use crate::event::Event;
use crate::id::{Channel, SchoolId};
use crate::log::StoreError;
use crate::log::consumers::{Change, DeadLetter, Place, Progress, SetAside};
use crate::scope::Scope;

/// What waits of a subject, as far as a page goes.
struct Backlog {
    events: Vec<Arc<Event>>,
    /// How far the page goes.
    through: u64,
    /// How far the cursor has come.
    cursor: u64,
    /// Events up to here are gone.
    floor: u64,
}

impl Backlog {
    /// Where the subject stands once the first `done` events are done with. Nothing if nothing is left.
    fn place_after(&self, done: usize) -> Option<u64> {
        match self.events.get(done) {
            Some(next) => Some(next.seq),
            None => (self.through < self.cursor).then_some(self.through + 1),
        }
    }
}

impl Runner {
    /// Delivers of a subject that is set aside as much as a turn allows. False if the receiver turns out to be down.
    pub(super) async fn resume(
        &self,
        school: SchoolId,
        place: &mut Place,
        own: SetAside,
    ) -> Result<bool, StoreError> {
        let backlog = self.backlog(school, place, &own).await?;
        if own.seq <= backlog.floor || backlog.events.is_empty() {
            let progress = match own.seq <= backlog.floor {
                true => self.swept(school, &own, backlog.floor),
                false => Progress::default(),
            };
            let next = backlog.place_after(0);
            self.goes_on(school, place, &own, next, progress).await?;
            return Ok(true);
        }
        for (done, event) in backlog.events.iter().take(NOTIFY_TURN_EVENTS).enumerate() {
            let attempts = if event.seq == own.seq {
                own.attempts
            } else {
                0
            };
            let next = backlog.place_after(done + 1);
            let Err(failure) = self.attempt(event, attempts).await? else {
                let delivered = Progress {
                    delivered: Some(Utc::now().trunc_subsecs(3)),
                    ..Progress::default()
                };
                self.goes_on(school, place, &own, next, delivered).await?;
                continue;
            };
            let verdict = self.verdict(school, &failure);
            let mut progress = failure.progress(verdict, event);
            if verdict == Verdict::GiveUp {
                self.goes_on(school, place, &own, next, progress).await?;
                return Ok(true);
            }
            let first = self.notifier.patience().pause;
            progress.set_aside = Some(Change::Put(failure.set_aside(event, first)));
            self.changes(school, place, progress).await?;
            if verdict == Verdict::Down {
                let asked = failure.error.retry_after();
                self.schedule().is_down(school, first, asked);
            }
            return Ok(verdict != Verdict::Down);
        }
        Ok(true)
    }

    /// Reads what waits of a subject. A characteristic's replay tells the others' acknowledgements, too: not those.
    async fn backlog(
        &self,
        school: SchoolId,
        place: &Place,
        own: &SetAside,
    ) -> Result<Backlog, StoreError> {
        let channel = Channel::Subject(own.kind, own.subject.clone());
        let scope = Arc::new(Scope::new(school, [channel]));
        let after = own.seq - 1;
        let mut page = self.store.replay(scope, after, false).await?;
        page.events.retain(|event| {
            let is_waiting = event.seq > page.floor && event.seq <= place.seq;
            is_waiting && own.is_of(event) && self.wants(event)
        });
        Ok(Backlog {
            events: page.events,
            through: page.through.seq,
            cursor: place.seq,
            floor: page.floor,
        })
    }

    /// Writes down that a subject which is set aside is at another place, or is lifted if there is none.
    async fn goes_on(
        &self,
        school: SchoolId,
        place: &mut Place,
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
        self.changes(school, place, progress).await
    }

    /// Writes down what became of a subject that is set aside. The cursor and its event stay as they are.
    async fn changes(
        &self,
        school: SchoolId,
        place: &mut Place,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let progress = Progress {
            tried: place.tried,
            ..progress
        };
        let change = progress.set_aside.clone();
        self.record(school, place.seq, progress).await?;
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

    /// What was set aside and is past retention is a dead letter, too.
    fn swept(&self, school: SchoolId, own: &SetAside, floor: u64) -> Progress {
        let cause = match own.cause.as_str() {
            "" => format!(
                "events {} to {floor} of the subject are past retention; whether one of them was wanted is not known",
                own.seq
            ),
            cause => format!(
                "past retention before it was delivered, with what followed of the subject up to {floor}; \
                 the last attempt: {cause}"
            ),
        };
        let cause = one_line(&cause);
        tracing::warn!(
            notifier.name = self.notifier.name(), school.id = %school, event.seq = own.seq, cause,
            "a notifier comes too late"
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
