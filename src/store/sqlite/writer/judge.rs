//! Judging: what the commands of a group lead to, one after the other, before anything is written.
//!
//! Each command is judged against the state as the commands before it leave it: in the group, in the caches, or in
//! the database.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;

use super::super::answers;
use super::super::read::bounds;
use super::super::table::{Address, Stored, table, unreadable};
use super::super::violations;
use super::Writer;
use crate::config;
use crate::event::{Class, Event};
use crate::id::{Cursor, Kind, SchoolId, SubjectId};
use crate::kind::characteristic::Violation;
use crate::kind::job::{History, Past};
use crate::kind::{self, Context, RuleError, State};
use crate::store::{CommandError, Envelope, Idempotency, Receipt};
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
    pub(super) heads: HashMap<SchoolId, u64>,
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
}

/// A use of an idempotency key.
#[derive(Clone)]
pub(super) struct Used {
    pub(super) fingerprint: String,
    pub(super) event: Arc<Event>,
}

impl Writer {
    /// Judges one command; what it leads to goes into the group and the caches.
    pub(super) fn judge(
        &mut self,
        group: &mut Group,
        school: SchoolId,
        envelope: Envelope,
        Moment { at: now, uptime }: Moment,
    ) -> QueryResult<Result<Receipt, CommandError>> {
        let Envelope {
            subject,
            command,
            sub,
            idempotency,
        } = envelope;
        if let Some(idempotency) = &idempotency
            && let Some(used) = self.used(group, school, idempotency)?
        {
            let same = used.fingerprint == idempotency.fingerprint;
            return Ok(if same {
                Ok(Receipt::Repeated(used.event))
            } else {
                Err(CommandError::KeyReused)
            });
        }
        let kind = command.kind();
        let address = (school, kind, subject.clone());
        let previous = self.stored(group, &address)?;
        let state = previous.map(|stored| stored.state.clone());
        let place = previous.map(|stored| (stored.created_seq, stored.last_seq, stored.last_at));
        let history = match command.wants_history(state.as_ref()) {
            Some(category) => self.history(school, kind, category)?,
            None => None,
        };
        let holder = match command.wants_holder() {
            Some(what) => self.holder(group, school, kind, what)?,
            None => None,
        };
        let violation = match command.wants_violation() {
            Some(number) => self.violation(group, school, &subject, number)?,
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
        let head = self.head(group, school)?;
        let context = Context {
            now,
            limits: &self.limits,
            history,
            uptime,
            sub: sub.as_deref(),
            next_seq: head + 1,
            holder: holder.as_ref(),
            violation: violation.as_ref(),
            taken_violation,
        };
        let outcome = match kind::apply(&subject, state.as_ref(), &command, &context) {
            Ok(outcome) => outcome,
            Err(error) => return Ok(Err(error.into())),
        };
        if place.is_none()
            && let Some(refused) = self.one_more(group, school, kind)?
        {
            return Ok(Err(refused.into()));
        }
        for what in state.iter().filter_map(State::holds) {
            group.held.insert((school, kind, what.to_owned()), None);
        }
        if let Some(what) = outcome.state.holds() {
            group
                .held
                .insert((school, kind, what.to_owned()), Some(subject.clone()));
        }
        for violation in outcome.violations {
            let key = (
                school,
                violation.characteristic_id.clone(),
                violation.number,
            );
            let own_id = violation.own_id.as_ref().map(Arc::clone);
            group
                .violation_ids
                .extend(own_id.map(|own_id| (school, own_id)));
            group.violations.insert(key, violation);
        }
        let mut seq = head;
        let mut answer = None;
        for (index, draft) in outcome.drafts.into_iter().enumerate() {
            seq += 1;
            group.milestones |= draft.class == Class::Milestone;
            let cursor = Cursor {
                epoch: self.life.epoch,
                seq,
            };
            let event = Arc::new(Event::new(
                cursor,
                school,
                kind,
                subject.clone(),
                now,
                draft,
            ));
            if index == outcome.answer {
                answer = Some(Arc::clone(&event));
            }
            group.events.push(event);
        }
        if let Some((category, past)) = outcome.state.past().filter(|_| answer.is_some()) {
            group.ended.push((school, category, past));
        }
        let (created_seq, last_seq, last_at) = place.unwrap_or((head + 1, head + 1, now));
        let (last_seq, last_at) = if answer.is_some() {
            (seq, now)
        } else {
            (last_seq, last_at)
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
        group.heads.insert(school, seq);
        if let Some(Idempotency { key, fingerprint }) = idempotency {
            group.keys.insert(
                (school, key),
                Used {
                    fingerprint,
                    event: Arc::clone(receipt.event()),
                },
            );
        }
        group.changed.insert(address, stored);
        Ok(Ok(receipt))
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
            let counts = table(kind).counts(&mut self.conn, school)?;
            let all: i64 = counts.iter().map(|(_, count)| count).sum();
            self.counts.put(key, all as u64);
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

    fn head(&mut self, group: &Group, school: SchoolId) -> QueryResult<u64> {
        if let Some(head) = group.heads.get(&school).or_else(|| self.heads.get(&school)) {
            return Ok(*head);
        }
        let (head, _) = bounds(&mut self.conn, school)?;
        self.heads.put(school, head);
        Ok(head)
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
