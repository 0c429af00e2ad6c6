//! Judging: what the commands of a group lead to, one after the other, before anything is written.
//!
//! Each command is judged against the state as the commands before it leave it: in the group, in the caches, or in
//! the database.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;

use super::super::answers;
use super::super::job_texts;
use super::super::read;
use super::super::schema::schools;
use super::super::table::{Address, Stored, table, unreadable};
use super::super::violations;
use super::turns::Size;
use super::{Tail, Writer};
use crate::config;
use crate::event::{Class, Event};
use crate::id::{Cursor, Kind, SchoolId, SubjectId};
use crate::kind::characteristic::Violation;
use crate::kind::job::{History, Past};
use crate::kind::{self, Context, Outcome, RuleError, State};
use crate::store::{Allowance, CommandError, Envelope, Idempotency, Receipt};
use crate::uptime::Uptime;

/// When a group is judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) at: DateTime<Utc>,
    pub(super) uptime: Uptime,
}

/// What a group will write. The caches learn of it after the commit.
#[derive(Default)]
pub(super) struct Group {
    pub(super) events: Vec<Arc<Event>>,
    pub(super) changed: HashMap<Address, Stored>,
    pub(super) tails: HashMap<SchoolId, Tail>,
    pub(super) keys: HashMap<(SchoolId, String), Used>,
    /// Category of subjects that ended well, and what they teach of it.
    pub(super) ended: Vec<(SchoolId, Arc<str>, Past)>,
    /// Who holds alone what the group gave or took.
    pub(super) held: HashMap<(SchoolId, Kind, String), Option<SubjectId>>,
    pub(super) violations: HashMap<(SchoolId, SubjectId, u64), Violation>,
    /// Publishers' own ids of violations that it opens.
    pub(super) violation_ids: HashSet<(SchoolId, Arc<str>)>,
    /// How many subjects it makes.
    pub(super) created: HashMap<(SchoolId, Kind), u64>,
    pub(super) milestones: bool,
    /// What it has carried out.
    pub(super) size: Size,
}

/// A use of an idempotency key.
#[derive(Clone)]
pub(super) struct Used {
    pub(super) fingerprint: String,
    pub(super) event: Arc<Event>,
}

/// What a command has led to.
struct Made {
    events: Vec<Arc<Event>>,
    stored: Stored,
    violations: Vec<Violation>,
    receipt: Receipt,
    /// Bytes of the events.
    written: usize,
    /// Bytes of the events, or of the answer if that has more.
    bytes: usize,
}

impl Group {
    /// Takes up what a command has led to.
    fn record(
        &mut self,
        address: Address,
        previous: Option<Stored>,
        idempotency: Option<Idempotency>,
        tail: Tail,
        made: Made,
    ) -> Receipt {
        let (school, kind, subject) = &address;
        let (school, kind) = (*school, *kind);
        let held_before = previous.as_ref().and_then(|stored| stored.state.holds());
        if let Some(what) = held_before {
            self.held.insert((school, kind, what.to_owned()), None);
        }
        let state = &made.stored.state;
        if let Some(what) = state.holds() {
            self.held
                .insert((school, kind, what.to_owned()), Some(subject.clone()));
        }
        for violation in made.violations {
            let key = (
                school,
                violation.characteristic_id.clone(),
                violation.number,
            );
            let own_id = violation.own_id.as_ref().map(Arc::clone);
            self.violation_ids
                .extend(own_id.map(|own_id| (school, own_id)));
            self.violations.insert(key, violation);
        }
        let is_milestone = |event: &Arc<Event>| event.draft.class == Class::Milestone;
        self.milestones |= made.events.iter().any(is_milestone);
        let has_happened = matches!(made.receipt, Receipt::Committed(_));
        if let Some((category, past)) = state.past().filter(|_| has_happened) {
            self.ended.push((school, category, past));
        }
        let tail = Tail {
            head: tail.head + made.events.len() as u64,
            bytes: tail.bytes + made.written as u64,
        };
        self.tails.insert(school, tail);
        self.size.bytes += made.written;
        if !made.events.is_empty() {
            self.size.bytes += job_texts::bytes(kind, state);
        }
        self.events.extend(made.events);
        if let Some(Idempotency { key, fingerprint }) = idempotency {
            let event = Arc::clone(made.receipt.event());
            let used = Used { fingerprint, event };
            self.keys.insert((school, key), used);
        }
        self.changed.insert(address, made.stored);
        made.receipt
    }
}

impl Writer {
    /// Judges one command; what it leads to goes into the group and the caches.
    pub(super) fn judge(
        &mut self,
        group: &mut Group,
        school: SchoolId,
        envelope: Envelope,
        allowance: &Allowance,
        moment: Moment,
    ) -> QueryResult<Result<Receipt, CommandError>> {
        group.size.commands += 1;
        if let Some(idempotency) = &envelope.idempotency
            && let Some(used) = self.used(group, school, idempotency)?
        {
            if used.fingerprint != idempotency.fingerprint {
                return Ok(Err(CommandError::KeyReused));
            }
            let bytes = used.event.bytes();
            if let Err(most) = allowance.has_room_for(bytes) {
                return Ok(Err(CommandError::TooMuch { most }));
            }
            allowance.take(school, bytes);
            return Ok(Ok(Receipt::Repeated(used.event)));
        }
        let address = (school, envelope.command.kind(), envelope.subject.clone());
        let previous = self.stored(group, &address)?.cloned();
        let tail = self.tail(group, school)?;
        let outcome =
            match self.outcome(group, &address, &envelope, previous.as_ref(), tail, moment)? {
                Ok(outcome) => outcome,
                Err(error) => return Ok(Err(error.into())),
            };
        let made = self.told(address.clone(), outcome, previous.as_ref(), tail, moment.at);
        if let Err(most) = allowance.has_room_for(made.bytes) {
            return Ok(Err(CommandError::TooMuch { most }));
        }
        if previous.is_none()
            && let Some(refused) = self.one_more(group, school, address.1)?
        {
            return Ok(Err(refused.into()));
        }
        allowance.take(school, made.bytes);
        Ok(Ok(group.record(
            address,
            previous,
            envelope.idempotency,
            tail,
            made,
        )))
    }

    /// What the rules of the subject's kind make of a command.
    fn outcome(
        &mut self,
        group: &Group,
        address: &Address,
        envelope: &Envelope,
        previous: Option<&Stored>,
        tail: Tail,
        Moment { at: now, uptime }: Moment,
    ) -> QueryResult<Result<Outcome<State>, RuleError>> {
        let (school, kind, subject) = address;
        let (school, kind, command) = (*school, *kind, &envelope.command);
        let state = previous.map(|stored| &stored.state);
        let history = match command.wants_history(state) {
            Some(category) => self.history(school, kind, category)?,
            None => None,
        };
        let holder = match command.wants_holder() {
            Some(what) => self.holder(group, school, kind, what)?,
            None => None,
        };
        let violation = match command.wants_violation() {
            Some(number) => self.violation(group, school, subject, number)?,
            None => None,
        };
        let mut taken_violation = None;
        for own_id in command.opens_violations() {
            let in_group = group.violation_ids.contains(&(school, own_id.into()));
            if in_group || violations::find_own(&mut self.conn, school, own_id)?.is_some() {
                taken_violation = Some(own_id);
                break;
            }
        }
        let context = Context {
            now,
            limits: &self.limits,
            history,
            uptime,
            sub: envelope.sub.as_deref(),
            next_seq: tail.head + 1,
            holder: holder.as_ref(),
            violation: violation.as_ref(),
            taken_violation,
        };
        Ok(kind::apply(subject, state, command, &context))
    }

    /// What an outcome is told as.
    fn told(
        &self,
        (school, kind, subject): Address,
        outcome: Outcome<State>,
        previous: Option<&Stored>,
        tail: Tail,
        now: DateTime<Utc>,
    ) -> Made {
        let mut events = Vec::with_capacity(outcome.drafts.len());
        for (seq, draft) in (tail.head + 1..).zip(outcome.drafts) {
            let cursor = Cursor {
                epoch: self.life.epoch,
                seq,
            };
            let event = Event::new(cursor, school, kind, subject.clone(), now, draft);
            events.push(Arc::new(event));
        }
        let next = tail.head + 1;
        let place = previous.map(|stored| (stored.created_seq, stored.last_seq, stored.last_at));
        let (created_seq, last_seq, last_at) = place.unwrap_or((next, next, now));
        let answer = events.get(outcome.answer).map(Arc::clone);
        let (last_seq, last_at) = match &answer {
            Some(_) => (tail.head + events.len() as u64, now),
            None => (last_seq, last_at),
        };
        let stored = Stored {
            state: outcome.state,
            created_seq,
            last_seq,
            last_at,
        };
        let receipt = match answer {
            Some(event) => Receipt::Committed(event),
            None => Receipt::Unchanged(Arc::new(stored.snapshot(
                self.life.epoch,
                school,
                kind,
                subject,
            ))),
        };
        let written = events.iter().map(|event| event.bytes()).sum();
        Made {
            bytes: receipt.event().bytes().max(written),
            written,
            events,
            receipt,
            stored,
            violations: outcome.violations,
        }
    }

    /// Counts a subject that is made, or says that there are too many.
    fn one_more(
        &mut self,
        group: &mut Group,
        school: SchoolId,
        kind: Kind,
    ) -> QueryResult<Option<RuleError>> {
        let key = (school, kind);
        if !self.counts.contains(&key) {
            // Once a school: from then on it is counted with.
            let counts = read::counts(&mut self.conn, school, kind)?;
            let all = counts.iter().map(|(_, count)| count).sum();
            self.counts.put(key, all);
        }
        let stored = self.counts.get(&key).copied().unwrap_or(0);
        let created = group.created.entry(key).or_default();
        if let Some((_, most, setting)) = self.most.iter().find(|(own, ..)| *own == kind)
            && stored + *created >= *most
        {
            return Ok(Some(RuleError::TooMany {
                collection: kind.collection(),
                most: *most,
                setting,
            }));
        }
        *created += 1;
        Ok(None)
    }

    /// The state as the commands before this one leave it.
    fn stored<'a>(
        &'a mut self,
        group: &'a Group,
        address: &Address,
    ) -> QueryResult<Option<&'a Stored>> {
        if let Some(stored) = group.changed.get(address) {
            return Ok(Some(stored));
        }
        if !self.states.contains(address) {
            let (school, kind, subject) = address;
            let Some(stored) = table(*kind).load(&mut self.conn, *school, subject)? else {
                return Ok(None);
            };
            self.states.put(address.clone(), stored);
        }
        Ok(self.states.get(address))
    }

    /// A violation, as the commands before this one leave it.
    fn violation(
        &mut self,
        group: &Group,
        school: SchoolId,
        characteristic: &SubjectId,
        number: u64,
    ) -> QueryResult<Option<Violation>> {
        let key = (school, characteristic.clone(), number);
        match group.violations.get(&key) {
            Some(violation) => Ok(Some(violation.clone())),
            None => violations::find(&mut self.conn, school, characteristic, number),
        }
    }

    /// Who holds what only one may hold, as the commands before this one leave it.
    fn holder(
        &mut self,
        group: &Group,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> QueryResult<Option<SubjectId>> {
        match group.held.get(&(school, kind, what.to_owned())) {
            Some(holder) => Ok(holder.clone()),
            None => table(kind).holder(&mut self.conn, school, what),
        }
    }

    /// Where a school's log ends, as the commands before this one leave it.
    fn tail(&mut self, group: &Group, school: SchoolId) -> QueryResult<Tail> {
        if let Some(tail) = group.tails.get(&school).or_else(|| self.tails.get(&school)) {
            return Ok(*tail);
        }
        let row: Option<(i64, i64)> = schools::table
            .find(school.get())
            .select((schools::head, schools::bytes))
            .first(&mut self.conn)
            .optional()?;
        let (head, bytes) = row.unwrap_or_default();
        let tail = Tail {
            head: head as u64,
            bytes: bytes as u64,
        };
        self.tails.put(school, tail);
        Ok(tail)
    }

    /// What the newest subjects of a category teach that ended well.
    fn history(
        &mut self,
        school: SchoolId,
        kind: Kind,
        category: Arc<str>,
    ) -> QueryResult<Option<History>> {
        let key = (school, category);
        if !self.past.contains(&key) {
            let past = table(kind).past(&mut self.conn, school, &key.1, config::HISTORY_SAMPLE)?;
            self.past.put(key.clone(), past.into());
        }
        let past = self.past.get_mut(&key);
        Ok(past.and_then(|past| History::of(past.make_contiguous())))
    }

    /// An earlier use of the key.
    fn used(
        &mut self,
        group: &Group,
        school: SchoolId,
        idempotency: &Idempotency,
    ) -> QueryResult<Option<Used>> {
        if let Some(used) = group.keys.get(&(school, idempotency.key.clone())) {
            return Ok(Some(used.clone()));
        }
        let Some(row) = answers::find_key(&mut self.conn, school, &idempotency.key)? else {
            return Ok(None);
        };
        let epoch = self.life.epoch;
        if let Some(event) = answers::find_answer(&mut self.conn, &row, epoch)? {
            return Ok(Some(Used {
                fingerprint: row.fingerprint,
                event: Arc::new(event),
            }));
        }
        // From before answers were kept: what the subject has become.
        let kind = kind::known_kind(&row.kind).ok_or_else(|| unreadable("a kind"))?;
        let subject: SubjectId = row
            .subject_id
            .parse()
            .map_err(|_| unreadable("a subject id"))?;
        let address = (school, kind, subject.clone());
        let stored = self.stored(group, &address)?;
        Ok(stored.map(|stored| Used {
            fingerprint: row.fingerprint,
            event: Arc::new(stored.snapshot(epoch, school, kind, subject)),
        }))
    }
}
