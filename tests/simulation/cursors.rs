//! Checks that cursors are safe, based only on what a client was sent and on what was committed.
//!
//! A client that resumes from a cursor receives what lies after it. So when a client is sent a cursor, it must have
//! received everything in its scope up to that cursor: every milestone since it has known a subject, and the state of a
//! subject that it did not know.

use std::collections::HashMap;

use tidings::event::Event;
use tidings::id::{Cursor, SubjectId};
use tidings::scope::Scope;

use super::SUBJECTS;
use super::ledger::Ledger;

/// For each subject that a client knows, the `seq` up to which it has missed nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Knowledge {
    known: HashMap<SubjectId, u64>,
}

/// A cursor that a client was sent, with the client's scope and knowledge at that time.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) cursor: Cursor,
    pub(super) scope: Scope,
    pub(super) knowledge: Knowledge,
    /// The `seq` of the last event of each subject that was delivered.
    pub(super) delivered: HashMap<SubjectId, u64>,
}

fn subjects() -> impl Iterator<Item = SubjectId> {
    SUBJECTS.iter().map(|subject| subject.parse().unwrap())
}

impl Knowledge {
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// Records that the log has lost everything after this `seq`.
    pub(super) fn cut(&mut self, head: u64) {
        for known in self.known.values_mut() {
            *known = head.min(*known);
        }
    }

    /// Forgets the subjects that the client no longer listens to.
    pub(super) fn retain(&mut self, hears: impl Fn(&SubjectId) -> bool) {
        self.known.retain(|subject, _| hears(subject));
    }

    /// Sets what is known of a subject to earlier knowledge and the `seq` of the cursor that came with it. Without
    /// these, the subject becomes unknown.
    pub(super) fn take_over(&mut self, subject: &SubjectId, from: Option<(&Knowledge, u64)>) {
        match from {
            None => self.known.remove(subject),
            Some((earlier, at)) => {
                let known = earlier.known.get(subject).copied().unwrap_or(0);
                self.known.insert(subject.clone(), known.max(at))
            }
        };
    }

    /// Records that every subject is known up to this `seq`: the client resumes from there, or was sent `ready` there.
    pub(super) fn is_complete(&mut self, upto: u64) {
        for subject in subjects() {
            let known = self.known.entry(subject).or_default();
            *known = upto.max(*known);
        }
    }

    /// Records an event. Fails if an earlier event of its subject should have been delivered before it.
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

    /// Checks that resuming the scope from this cursor loses nothing.
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
