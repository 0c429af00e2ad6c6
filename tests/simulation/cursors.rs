//! What makes a cursor safe, told from what a client was sent and from what was committed, and from nothing else.
//!
//! Coming back with a cursor brings what lies after it. So anyone who is sent one must have been told all that lies before it
//! and that they listen to: every milestone since he knows a subject, and of a subject that he does not know yet its state.

use std::collections::HashMap;

use tidings::event::Event;
use tidings::id::{Cursor, SubjectId};
use tidings::scope::Scope;

use super::SUBJECTS;
use super::ledger::Ledger;

/// Up to where a client knows each subject that it was told of.
#[derive(Debug, Clone, Default)]
pub(super) struct Knowledge {
    known: HashMap<SubjectId, u64>,
}

/// A cursor that a client was sent, and all that belongs to it.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) cursor: Cursor,
    pub(super) scope: Scope,
    pub(super) knowledge: Knowledge,
    /// The last event that was told of each subject.
    pub(super) told: HashMap<SubjectId, u64>,
}

fn subjects() -> impl Iterator<Item = SubjectId> {
    SUBJECTS.iter().map(|subject| subject.parse().unwrap())
}

impl Knowledge {
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// Forgets subjects that are not listened to any more.
    pub(super) fn retain(&mut self, hears: impl Fn(&SubjectId) -> bool) {
        self.known.retain(|subject, _| hears(subject));
    }

    /// Takes over what another client, or the same one earlier, knows of a subject.
    pub(super) fn take_over(&mut self, subject: &SubjectId, from: Option<(&Knowledge, u64)>) {
        match from {
            None => self.known.remove(subject),
            Some((other, at)) => {
                let known = other.known.get(subject).copied().unwrap_or(0);
                self.known.insert(subject.clone(), known.max(at))
            }
        };
    }

    /// Somebody who comes back from here, or is told that all is complete up to here, knows every subject.
    pub(super) fn is_complete(&mut self, upto: u64) {
        for subject in subjects() {
            let known = self.known.entry(subject).or_default();
            *known = upto.max(*known);
        }
    }

    /// Takes note of an event, before which nothing may have been left out.
    pub(super) fn hear(
        &mut self,
        event: &Event,
        all: bool,
        scope: &Scope,
        ledger: &Ledger,
    ) -> Result<(), String> {
        let known = self.known.get(&event.subject).copied();
        if let Some(known) = known.filter(|_| !event.snapshot)
            && let Some(seq) = ledger.first_heard(scope, &event.subject, known, event.seq - 1, all)
        {
            return Err(format!("{seq} was left out before {}", event.seq));
        }
        let upto = event.seq.max(known.unwrap_or(0));
        self.known.insert(event.subject.clone(), upto);
        Ok(())
    }

    /// Checks that a cursor loses nothing of a scope.
    pub(super) fn allows(
        &self,
        cursor: Cursor,
        all: bool,
        scope: &Scope,
        ledger: &Ledger,
    ) -> Result<(), String> {
        if cursor.place.seq > ledger.head(scope.school) {
            return Err(format!("{cursor} lies beyond the log"));
        }
        for subject in subjects() {
            let lost = match self.known.get(&subject) {
                Some(known) => ledger.first_heard(scope, &subject, *known, cursor.place.seq, all),
                None => {
                    let last = ledger.last_heard(scope, &subject);
                    last.filter(|last| *last <= cursor.place.seq)
                }
            };
            if let Some(seq) = lost {
                return Err(format!("{cursor} was sent, which loses {seq} of {subject}"));
            }
        }
        Ok(())
    }
}
