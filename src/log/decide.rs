//! Decides commands: (facts, commands, now) → (states, events, keys). Every store uses this code. It is pure: it has no
//! clock, and its only I/O is through [`Facts`].
//!
//! The commands of a group are decided one after another. Each sees the state that the previous commands left: what
//! they changed is in [`Decisions`], everything else in the facts. A rejected command changes neither. When the group
//! is complete, a store writes the decisions in one transaction; if that fails, nothing is written.
//!
//! Upholds invariant 2 (a school's events are numbered without gaps, in the order of decisions) and, through
//! [`kind::apply`], invariant 10.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::facts::{Address, Answered, ByAddress, Facts, Moment, Stored, Tail};
use super::{CommandError, Envelope, Idempotency, Receipt, Room};
use crate::event::{Class, Event};
use crate::id::{Epoch, Kind, Place, SchoolId, SubjectId};
use crate::kind::job::Past;
use crate::kind::{self, Context, Limits, Outcome, Part, RuleError, State};

/// The fixed inputs of a decision, in addition to facts and time.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The epoch of the events.
    pub epoch: Epoch,
    /// Limits on what producers can send.
    pub limits: Limits,
    /// The maximum number of subjects of each kind in a school, and the setting for it, if there is one.
    pub max_subjects: Vec<(Kind, u64, Option<&'static str>)>,
}

/// The result of a group of commands.
#[derive(Debug, Default)]
pub struct Decisions {
    /// The events of all schools, in ascending `seq` per school.
    pub events: Vec<Arc<Event>>,
    /// States that have changed.
    pub states: ByAddress<Stored>,
    /// The counted properties of the changed subjects before the group, if they existed.
    pub before: ByAddress<Counted>,
    /// The ends of the logs of the events' schools.
    pub tails: HashMap<SchoolId, Tail>,
    /// Idempotency keys that were used for the first time.
    pub keys: HashMap<(SchoolId, String), NewKey>,
    /// The category of each subject that completed successfully, and its contribution to the category's history.
    pub past: Vec<(SchoolId, Arc<str>, Past)>,
    /// Parts of subjects that were created or changed, by number.
    pub parts: HashMap<(Address, u64), Part>,
    /// How many subjects were created.
    pub created: HashMap<(SchoolId, Kind), u64>,
    /// Whether there is a milestone among the events.
    pub has_milestone: bool,
    /// The new holder, if any, of each exclusive resource that was acquired or released.
    holders: HashMap<(SchoolId, Kind, String), Option<SubjectId>>,
    /// The publisher-assigned ids of the parts that were created.
    part_ids: HashSet<(SchoolId, Kind, Arc<str>)>,
}

/// The properties of a subject by which a store counts subjects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Its status.
    pub status: &'static str,
    /// Whether it has stalled.
    pub is_stalled: bool,
    /// When it ended, if it has.
    pub finished_at: Option<DateTime<Utc>>,
}

impl Counted {
    fn of(stored: &Stored) -> Counted {
        let subject = stored.state.subject();
        Counted {
            status: subject.status(),
            is_stalled: subject.is_stalled(),
            finished_at: subject.finished_at(),
        }
    }
}

/// The first use of an idempotency key.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// A digest of the request.
    pub fingerprint: String,
    /// The answer to the request: an event of the group, or a snapshot if nothing changed.
    pub event: Arc<Event>,
}

/// The result of one command.
#[derive(Debug)]
pub struct Decision {
    /// The answer, once the group is committed.
    pub receipt: Result<Receipt, CommandError>,
    /// The size of its events in bytes.
    pub written: usize,
    /// The size that counts towards the request's limit: that of its events or of the answer, whichever is larger.
    pub charged: usize,
    /// The size of what else is written for it: see [`Facts::weight`].
    pub weight: usize,
}

impl Decision {
    fn rejected(error: impl Into<CommandError>) -> Decision {
        Decision {
            receipt: Err(error.into()),
            written: 0,
            charged: 0,
            weight: 0,
        }
    }
}

/// An earlier use of a key, as far as it is still stored.
struct Earlier {
    fingerprint: String,
    /// The answer to that request; the subject's current state if the answer is no longer stored; `None` if the subject
    /// is gone as well.
    answer: Option<Arc<Event>>,
}

/// The state of a subject before a command.
struct Previous {
    stored: Option<Stored>,
    /// Whether an earlier command of the group has left it.
    is_of_group: bool,
}

/// The outcome of a kind's rules, with `seq`s assigned.
struct Numbered {
    events: Vec<Arc<Event>>,
    stored: Stored,
    parts: Vec<Part>,
    receipt: Receipt,
    /// The end of the log after the events.
    tail: Tail,
    /// See [`Decision::written`].
    written: usize,
    /// See [`Decision::charged`].
    charged: usize,
}

impl Rules {
    /// Decides one command of a school, and adds the result to `decisions`. The command's request can still produce at
    /// most `room` bytes.
    pub fn decide<F: Facts>(
        &self,
        facts: &mut F,
        decisions: &mut Decisions,
        school: SchoolId,
        envelope: &Envelope,
        room: Room,
        now: Moment,
    ) -> Result<Decision, F::Error> {
        if let Some(idempotency) = &envelope.idempotency
            && let Some(used) = self.earlier_use(facts, decisions, school, idempotency, now)?
        {
            if used.fingerprint != idempotency.fingerprint {
                return Ok(Decision::rejected(CommandError::KeyReused));
            }
            let Some(answer) = used.answer else {
                return Ok(Decision::rejected(CommandError::AnswerGone));
            };
            let charged = answer.bytes();
            return Ok(match room.check(charged) {
                Err(error) => Decision::rejected(error),
                Ok(()) => Decision {
                    receipt: Ok(Receipt::Repeated(answer)),
                    written: 0,
                    charged,
                    weight: 0,
                },
            });
        }
        let address = (school, envelope.command.kind(), envelope.subject.clone());
        // Moved out of the decisions meanwhile: copying it would cost more than most rules.
        let previous = decisions.take_state(facts, &address)?;
        let stored = previous.stored.as_ref();
        let decided = self.decide_on(facts, decisions, &address, stored, envelope, room, now);
        match decided {
            Ok(Ok(new)) => {
                let (written, charged) = (new.written, new.charged);
                let weight = match written {
                    0 => 0,
                    _ => facts.weight(address.1, &new.stored.state),
                };
                let idempotency = envelope.idempotency.as_ref();
                let receipt = decisions.add(address, &previous, idempotency, new);
                Ok(Decision {
                    receipt: Ok(receipt),
                    written,
                    charged,
                    weight,
                })
            }
            Ok(Err(rejection)) => {
                decisions.put_back(address, previous);
                Ok(Decision::rejected(rejection))
            }
            Err(error) => {
                decisions.put_back(address, previous);
                Err(error)
            }
        }
    }

    /// Decides a command on the previous state of its subject.
    #[expect(
        clippy::too_many_arguments,
        reason = "a decision may depend on each of them"
    )]
    fn decide_on<F: Facts>(
        &self,
        facts: &mut F,
        decisions: &mut Decisions,
        address: &Address,
        previous: Option<&Stored>,
        envelope: &Envelope,
        room: Room,
        now: Moment,
    ) -> Result<Result<Numbered, CommandError>, F::Error> {
        let (school, kind, _) = address;
        let tail = decisions.tail(facts, *school)?;
        let applied = self.apply(facts, decisions, address, envelope, previous, tail, now)?;
        let outcome = match applied {
            Ok(outcome) => outcome,
            Err(error) => return Ok(Err(error.into())),
        };
        let numbered = self.number(address, outcome, previous, tail, now);
        if let Err(error) = room.check(numbered.charged) {
            return Ok(Err(error));
        }
        if previous.is_none()
            && let Err(error) = self.count_one_more(facts, decisions, *school, *kind)?
        {
            return Ok(Err(error.into()));
        }
        Ok(Ok(numbered))
    }

    /// Applies the rules of the subject's kind.
    #[expect(
        clippy::too_many_arguments,
        reason = "the rules may depend on each of them"
    )]
    fn apply<F: Facts>(
        &self,
        facts: &mut F,
        decisions: &Decisions,
        address: &Address,
        envelope: &Envelope,
        previous: Option<&Stored>,
        tail: Tail,
        Moment { at: now, uptime }: Moment,
    ) -> Result<Result<Outcome<State>, RuleError>, F::Error> {
        let (school, kind, subject) = address;
        let (school, kind, command) = (*school, *kind, &envelope.command);
        let state = previous.map(|stored| &stored.state);
        let history = match command.wants_history(state) {
            Some(category) => facts.history(school, kind, &category)?,
            None => None,
        };
        let holder = match command.wants_holder() {
            Some(what) => decisions.holder(facts, school, kind, what)?,
            None => None,
        };
        let part = match command.wants_part() {
            Some(number) => decisions.part(facts, address, number)?,
            None => None,
        };
        let mut taken_part = None;
        for own_id in command.names_parts() {
            let in_group = decisions.part_ids.contains(&(school, kind, own_id.into()));
            if in_group || facts.has_part(school, kind, own_id)? {
                taken_part = Some(own_id);
                break;
            }
        }
        let context = Context {
            now,
            limits: &self.limits,
            history,
            uptime,
            sub: envelope.sub.as_deref(),
            next_seq: tail.head.seq + 1,
            holder: holder.as_ref(),
            part: part.as_ref(),
            taken_part,
        };
        Ok(kind::apply(subject, state, command, &context))
    }

    /// Assigns the events of an outcome their places in the log.
    fn number(
        &self,
        address: &Address,
        outcome: Outcome<State>,
        previous: Option<&Stored>,
        tail: Tail,
        Moment { at: now, .. }: Moment,
    ) -> Numbered {
        let (school, kind, subject) = address;
        let mut events = Vec::with_capacity(outcome.drafts.len());
        let next = tail.head.seq + 1;
        let mut before = tail.head.tag;
        let mut before_of_subject = previous.map(|stored| stored.last.seq);
        for (seq, draft) in (next..).zip(outcome.drafts) {
            let place = (self.epoch, seq);
            let event = Event::new(place, *school, *kind, subject.clone(), now, draft);
            let event = event.following(before).succeeding(before_of_subject);
            (before, before_of_subject) = (event.tag, Some(seq));
            events.push(Arc::new(event));
        }
        let known = previous.map(|stored| (stored.created_seq, stored.last, stored.last_at));
        let (created_seq, last, last_at) = known.unwrap_or((next, Place::untagged(next), now));
        let answer = events.get(outcome.answer).map(Arc::clone);
        let (last, last_at) = events
            .last()
            .map_or((last, last_at), |event| (event.place(), now));
        let stored = Stored {
            state: outcome.state,
            created_seq,
            last,
            last_at,
        };
        let receipt = match answer {
            Some(event) => Receipt::Committed(event),
            None => {
                let snapshot = stored.snapshot(self.epoch, address.clone(), now);
                Receipt::Unchanged(Arc::new(snapshot))
            }
        };
        let written = events.iter().map(|event| event.bytes()).sum();
        Numbered {
            tail: Tail {
                head: events.last().map_or(tail.head, |event| event.place()),
                bytes: tail.bytes + written as u64,
            },
            written,
            charged: receipt.event().bytes().max(written),
            events,
            receipt,
            stored,
            parts: outcome.parts,
        }
    }

    /// Counts a new subject, or fails if the limit is reached.
    fn count_one_more<F: Facts>(
        &self,
        facts: &mut F,
        decisions: &mut Decisions,
        school: SchoolId,
        kind: Kind,
    ) -> Result<Result<(), RuleError>, F::Error> {
        let created = decisions.created.entry((school, kind)).or_default();
        if let Some((_, limit, setting)) = self
            .max_subjects
            .iter()
            .find(|(limited, ..)| *limited == kind)
            && facts.count(school, kind)? + *created >= *limit
        {
            return Ok(Err(RuleError::TooMany {
                collection: kind.collection(),
                most: *limit,
                setting: *setting,
            }));
        }
        *created += 1;
        Ok(Ok(()))
    }

    /// Returns an earlier use of the key.
    fn earlier_use<F: Facts>(
        &self,
        facts: &mut F,
        decisions: &Decisions,
        school: SchoolId,
        idempotency: &Idempotency,
        now: Moment,
    ) -> Result<Option<Earlier>, F::Error> {
        if let Some(used) = decisions.keys.get(&(school, idempotency.key.clone())) {
            return Ok(Some(Earlier {
                fingerprint: used.fingerprint.clone(),
                answer: Some(Arc::clone(&used.event)),
            }));
        }
        let Some(used) = facts.key(school, &idempotency.key)? else {
            return Ok(None);
        };
        let answer = match used.answer {
            Answered::Event(event) => Some(event),
            Answered::Subject(kind, subject) => {
                let address = (school, kind, subject);
                let stored = decisions.state(facts, &address)?;
                let present =
                    stored.map(|stored| stored.snapshot(self.epoch, address.clone(), now.at));
                present.map(Arc::new)
            }
        };
        Ok(Some(Earlier {
            fingerprint: used.fingerprint,
            answer,
        }))
    }
}

impl Decisions {
    fn add(
        &mut self,
        address: Address,
        previous: &Previous,
        idempotency: Option<&Idempotency>,
        numbered: Numbered,
    ) -> Receipt {
        let (school, kind, subject) = &address;
        let (school, kind) = (*school, *kind);
        let stored = previous.stored.as_ref();
        if let Some(what) = stored.and_then(|stored| stored.state.holds()) {
            self.holders.insert((school, kind, what.to_owned()), None);
        }
        let state = &numbered.stored.state;
        if let Some(what) = state.holds() {
            self.holders
                .insert((school, kind, what.to_owned()), Some(subject.clone()));
        }
        for part in numbered.parts {
            let own_id = part.own_id().map(Arc::clone);
            self.part_ids
                .extend(own_id.map(|own_id| (school, kind, own_id)));
            self.parts.insert((address.clone(), part.number()), part);
        }
        let is_milestone = |event: &Arc<Event>| event.draft.class == Class::Milestone;
        self.has_milestone |= numbered.events.iter().any(is_milestone);
        let has_happened = matches!(numbered.receipt, Receipt::Committed(_));
        if let Some((category, past)) = state.past().filter(|_| has_happened) {
            self.past.push((school, category, past));
        }
        self.tails.insert(school, numbered.tail);
        self.events.extend(numbered.events);
        if let Some(Idempotency { key, fingerprint }) = idempotency {
            let new = NewKey {
                fingerprint: fingerprint.clone(),
                event: Arc::clone(numbered.receipt.event()),
            };
            self.keys.insert((school, key.clone()), new);
        }
        if let Some(stored) = stored.filter(|_| !previous.is_of_group) {
            self.before.insert(address.clone(), Counted::of(stored));
        }
        self.states.insert(address, numbered.stored);
        numbered.receipt
    }

    /// Returns the state as the previous commands left it.
    fn state<'a, F: Facts>(
        &'a self,
        facts: &'a mut F,
        address: &Address,
    ) -> Result<Option<&'a Stored>, F::Error> {
        match self.states.get(address) {
            Some(stored) => Ok(Some(stored)),
            None => facts.state(address),
        }
    }

    /// Takes the state that the previous commands left, until [`add`](Self::add) or [`put_back`](Self::put_back).
    fn take_state<F: Facts>(
        &mut self,
        facts: &mut F,
        address: &Address,
    ) -> Result<Previous, F::Error> {
        let of_group = self.states.remove(address);
        Ok(Previous {
            is_of_group: of_group.is_some(),
            stored: match of_group {
                None => facts.state(address)?.cloned(),
                stored => stored,
            },
        })
    }

    /// Puts back what [`take_state`](Self::take_state) has taken.
    fn put_back(&mut self, address: Address, previous: Previous) {
        if let Some(stored) = previous.stored.filter(|_| previous.is_of_group) {
            self.states.insert(address, stored);
        }
    }

    /// Returns the end of the log as the previous commands left it.
    fn tail<F: Facts>(&self, facts: &mut F, school: SchoolId) -> Result<Tail, F::Error> {
        match self.tails.get(&school) {
            Some(tail) => Ok(*tail),
            None => facts.tail(school),
        }
    }

    /// Returns the holder of an exclusive resource as the previous commands left it.
    fn holder<F: Facts>(
        &self,
        facts: &mut F,
        school: SchoolId,
        kind: Kind,
        what: &str,
    ) -> Result<Option<SubjectId>, F::Error> {
        match self.holders.get(&(school, kind, what.to_owned())) {
            Some(holder) => Ok(holder.clone()),
            None => facts.holder(school, kind, what),
        }
    }

    /// Returns a part of a subject as the previous commands left it.
    fn part<F: Facts>(
        &self,
        facts: &mut F,
        address: &Address,
        number: u64,
    ) -> Result<Option<Part>, F::Error> {
        match self.parts.get(&(address.clone(), number)) {
            Some(part) => Ok(Some(part.clone())),
            None => facts.part(address, number),
        }
    }
}
