//! A simple model of what a client must receive.

use std::collections::HashMap;

use tidings::event::Event;
use tidings::id::{Cursor, SubjectId};
use tidings::scope::Scope;
use tidings::wire::Control;

use super::REPLAY_MAX;
use super::ledger::Ledger;

/// What a client has received, and what it must receive.
pub(super) struct Shadow {
    /// Whether every retained event is delivered, not only the newest of each subject.
    pub(super) tells_all: bool,
    /// Whether channels are added and removed. If so, only the events of each subject are in order.
    pub(super) is_multiplexed: bool,
    /// Whether an added channel is being brought up to date. It may repeat what it delivered before it was removed.
    pub(super) is_adding: bool,
    /// The last `seq` that was delivered.
    pub(super) last: u64,
    /// The `seq` of the last event of each subject that was delivered.
    pub(super) delivered: HashMap<SubjectId, u64>,
    /// Nothing after this `seq` may be missing, and nothing up to `complete` is.
    pub(super) since: Option<u64>,
    pub(super) complete: u64,
    pub(super) is_ready: bool,
    /// Whether the cursor belongs to a history that was lost, so that a `reset` must come first.
    pub(super) must_reset: bool,
    /// Whether events were lost while it was catching up.
    pub(super) may_reset: bool,
    /// Whether it lacks states because the event that its cursor awaits was lost, so that a `reset` must come before `ready`.
    pub(super) lacks_states: bool,
}

impl Shadow {
    /// Whether events were lost that current states may have left out. Until it receives `ready`, its cursors are safe only if they
    /// await such an event.
    pub(super) fn is_partial(&self) -> bool {
        self.may_reset && !self.is_ready
    }

    pub(super) fn begin_anew(&mut self) {
        self.last = 0;
        self.delivered.clear();
        self.since = None;
        self.complete = 0;
        self.must_reset = false;
        self.lacks_states = false;
        self.is_ready = false;
    }

    pub(super) fn hear(
        &mut self,
        event: &Event,
        scope: &Scope,
        ledger: &Ledger,
    ) -> Result<(), String> {
        let seq = event.seq;
        if self.must_reset {
            return Err(format!(
                "{seq} was delivered after another life's cursor without a reset"
            ));
        }
        let original = ledger
            .event(scope.school, seq)
            .ok_or_else(|| format!("{seq} was never committed"))?;
        let identity = |event: &Event| (event.school, event.epoch, event.place());
        let is_it = event.school == scope.school && identity(event) == identity(&original);
        if original.subject != event.subject || !is_it {
            return Err(format!("{seq} is another event than was committed"));
        }
        if !scope.matches(event) {
            return Err(format!("{seq} was not asked for"));
        }
        if !self.is_multiplexed {
            if seq <= self.last {
                return Err(format!("{seq} was delivered after {}", self.last));
            }
            if !event.snapshot {
                self.nothing_is_missing(seq - 1, scope, ledger)?;
                self.complete = self.complete.max(seq);
            }
        }
        self.last = seq;
        let delivered = self.delivered.entry(event.subject.clone()).or_default();
        if self.is_multiplexed && !self.is_adding && seq <= *delivered {
            let subject = &event.subject;
            return Err(format!(
                "{seq} of {subject} was delivered after {delivered}"
            ));
        }
        *delivered = seq.max(*delivered);
        Ok(())
    }

    pub(super) fn note(
        &mut self,
        control: &Control,
        at: u64,
        scope: &Scope,
        ledger: &Ledger,
    ) -> Result<(), String> {
        match control {
            Control::Reset(reason) => {
                let head = ledger.head(scope.school);
                let too_far = head - at.min(head) > REPLAY_MAX;
                if !(self.must_reset
                    || self.lacks_states
                    || self.may_reset
                    || at < ledger.floor(scope.school)
                    || too_far)
                {
                    return Err(format!("a reset at {at} without need: {reason:?}"));
                }
                self.begin_anew();
                Ok(())
            }
            Control::Ready(cursor) if self.lacks_states => {
                Err(format!("it is ready at {cursor} without a reset"))
            }
            Control::Ready(cursor) => {
                self.is_ready = true;
                self.is_adding = false;
                self.may_reset = false;
                self.promised(*cursor, scope, ledger)
            }
            Control::Heartbeat {
                cursor: Some(cursor),
                ..
            } => self.promised(*cursor, scope, ledger),
            Control::Subscribed { .. } => {
                self.is_adding = true;
                Ok(())
            }
            Control::Closing { close, .. } => Err(format!("it was closed: {close:?}")),
            _ => Ok(()),
        }
    }

    /// Checks a cursor up to which nothing may be missing: a client that resumes from it receives nothing before it.
    fn promised(&mut self, cursor: Cursor, scope: &Scope, ledger: &Ledger) -> Result<(), String> {
        if self.is_multiplexed {
            return Ok(());
        }
        if cursor.place.seq > ledger.head(scope.school) {
            return Err(format!("{cursor} lies beyond the log"));
        }
        if self.since.is_some() {
            self.nothing_is_missing(cursor.place.seq, scope, ledger)?;
        } else if self.is_ready {
            self.since = Some(cursor.place.seq);
        }
        self.complete = self.complete.max(cursor.place.seq);
        Ok(())
    }

    /// Checks that every milestone up to `upto` or, with `tells_all`, every event was delivered. Superseded ticks may
    /// be missing.
    fn nothing_is_missing(&self, upto: u64, scope: &Scope, ledger: &Ledger) -> Result<(), String> {
        let Some(since) = self.since else {
            return Ok(());
        };
        for seq in self.complete.max(since) + 1..=upto {
            let event = ledger.event(scope.school, seq);
            let event = event.ok_or("a cursor beyond the log")?;
            if scope.matches(&event) && (self.tells_all || !event.is_tick()) {
                return Err(format!("{seq} was left out"));
            }
        }
        Ok(())
    }
}
