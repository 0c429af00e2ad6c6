//! Batches: many commands in one request, for one school or for several.
//!
//! The items are independent: a rejected item does not stop the others. Memory is reserved before the body is read,
//! according to its length, and is released after the answer has been sent.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::publish::{PublishService, Rejected, TooFast};
use super::violations::ViolationCommand;
use crate::auth::{Access, Role};
use crate::config::BATCH_SCHOOLS_AT_ONCE;
use crate::id::{Channel, Kind, SchoolId, SubjectId};
use crate::kind::characteristic::ViolationId;
use crate::kind::device;
use crate::log::{Allowance, CommandError, Envelope, Idempotency, Receipt};
use crate::presence::HeartbeatAnswer;
use crate::reserve::Reserved;

/// One item of a batch.
pub enum BatchItem {
    /// A command to a subject.
    Command(Envelope),
    /// An acknowledgement of a violation, or its withdrawal.
    Violation(ViolationCommand, Option<Idempotency>),
    /// A device's heartbeat.
    Heartbeat(SubjectId),
}

/// The successful answer to an item.
pub enum Answer {
    /// The event that the command produced.
    Event(Receipt),
    /// What the device learns from its heartbeat.
    Device(SubjectId, HeartbeatAnswer),
}

type Outcome = Result<Answer, Rejected>;

/// A batch that is being carried out.
///
/// The commands of a school are carried out together, and then all of its heartbeats. The exception is a device whose
/// heartbeat comes *before* one of its own commands: the items of one device always take effect in their order.
pub struct Batch<'a> {
    service: &'a Arc<PublishService>,
    access: &'a Access,
    name: Arc<str>,
    /// How many bytes of events all items together are allowed to produce.
    allowance: Arc<Allowance>,
    /// The outcome of each item, by the item's number.
    outcomes: BTreeMap<usize, Outcome>,
    waiting: BTreeMap<SchoolId, Waiting>,
}

/// The items of one school that are still to be carried out.
#[derive(Default)]
struct Waiting {
    /// Commands with their item numbers. The heartbeats in `heartbeats` are carried out after them.
    commands: Vec<(usize, Envelope)>,
    heartbeats: Vec<(usize, SubjectId)>,
    heartbeat_devices: HashSet<SubjectId>,
}

/// The outcomes of one school's items: first those of the commands, then those of the heartbeats.
type Done = [(Vec<usize>, Result<Vec<Outcome>, Rejected>); 2];

impl PublishService {
    /// Admits a batch before its body, of at most `body_bytes`, is read. `school` is the school of items that do not name
    /// one.
    pub async fn admit_batch(
        &self,
        access: &Access,
        school: Option<SchoolId>,
        body_bytes: u64,
    ) -> Result<Reserved, Rejected> {
        access.require(Role::Worker)?;
        if let Some(school) = school {
            self.permit_bytes(school)?;
        }
        let memory = self.settings().unread_batch_memory(body_bytes);
        self.reserve(school, memory).await
    }

    /// Begins a batch with the given number of items in each school and the given size of its body. Returns, in addition to
    /// the batch, the schools that have reached their byte limit. If the batch is only for such a school, all of it is
    /// rejected.
    pub fn begin_batch<'a>(
        self: &'a Arc<Self>,
        access: &'a Access,
        counts: &BTreeMap<SchoolId, u32>,
        (body_bytes, items): (u64, u64),
        reserved: Reserved,
    ) -> Result<(Batch<'a>, BTreeMap<SchoolId, TooFast>), Rejected> {
        reserved.keep(self.settings().batch_memory(body_bytes, items));
        let pairs: Vec<(SchoolId, u32)> = counts
            .iter()
            .map(|(school, count)| (*school, *count))
            .collect();
        self.permit(access, &pairs)?;
        let late = |school: &SchoolId| Some((*school, self.permit_bytes(*school).err()?));
        let rejected: BTreeMap<SchoolId, TooFast> = counts.keys().filter_map(late).collect();
        if counts.len() == 1
            && let Some(error) = rejected.values().next()
        {
            return Err((*error).into());
        }
        Ok((self.batch(access, (body_bytes, items), reserved), rejected))
    }

    /// Admits a single item that will be carried out together with others: checks the role, the rate limit of the user and
    /// the byte limit of the school.
    pub fn admit_item(&self, access: &Access, school: SchoolId) -> Result<(), Rejected> {
        self.permit(access, &[(school, 1)])?;
        Ok(self.permit_bytes(school)?)
    }

    /// Begins a batch of items that were admitted one by one, as soon as there is memory for them. `school` is the school of
    /// all items, if there is only one; `body_bytes` is the size of all items together.
    pub async fn begin_admitted<'a>(
        self: &'a Arc<Self>,
        access: &'a Access,
        school: Option<SchoolId>,
        (body_bytes, items): (u64, u64),
    ) -> Result<Batch<'a>, Rejected> {
        let memory = self.settings().batch_memory(body_bytes, items);
        let reserved = self.reserve(school, memory).await?;
        Ok(self.batch(access, (body_bytes, items), reserved))
    }

    fn batch<'a>(
        self: &'a Arc<Self>,
        access: &'a Access,
        (body_bytes, items): (u64, u64),
        reserved: Reserved,
    ) -> Batch<'a> {
        let max_events = self.settings().batch_events(body_bytes, items);
        Batch {
            service: self,
            access,
            name: Arc::clone(&access.subject),
            allowance: self.publisher().allowance(max_events, reserved),
            outcomes: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }
}

impl Batch<'_> {
    fn authorize(&self, school: SchoolId, kind: Kind, subject: &SubjectId) -> Result<(), Rejected> {
        let channel = Channel::Subject(kind, subject.clone());
        Ok(self.access.authorize(school, &channel)?)
    }

    /// Adds the item with this number, after carrying out the items that must take effect before it. Fails only if the
    /// batch had no effect.
    pub async fn take(
        &mut self,
        number: usize,
        school: SchoolId,
        item: BatchItem,
    ) -> Result<(), Rejected> {
        match item {
            BatchItem::Heartbeat(device) => match self.authorize(school, device::KIND, &device) {
                Ok(()) => {
                    let waiting = self.waiting.entry(school).or_default();
                    waiting.heartbeat_devices.insert(device.clone());
                    waiting.heartbeats.push((number, device));
                }
                Err(error) => {
                    self.outcomes.insert(number, Err(error));
                }
            },
            BatchItem::Violation(command, idempotency) => {
                // An earlier item may open this violation, under an id that its publisher chose. An id of the server's own
                // needs no lookup, so such items share a commit with the items before them.
                if ViolationId::parse(&command.id).is_none() && self.has_commands(school) {
                    self.carry_out_in(school).await?;
                }
                let name = &self.access.subject;
                match self.service.violation_command(school, name, command).await {
                    Ok(found) => self.command(
                        number,
                        school,
                        Envelope {
                            idempotency,
                            ..found
                        },
                    ),
                    Err(error) => {
                        self.outcomes.insert(number, Err(error));
                    }
                }
            }
            BatchItem::Command(envelope) => {
                if self.has_waiting_heartbeat(school, &envelope) {
                    self.carry_out_in(school).await?;
                }
                self.command(number, school, envelope);
            }
        }
        Ok(())
    }

    fn command(&mut self, number: usize, school: SchoolId, mut envelope: Envelope) {
        if let Err(error) = self.authorize(school, envelope.command.kind(), &envelope.subject) {
            self.outcomes.insert(number, Err(error));
            return;
        }
        envelope.sub = Some(Arc::clone(&self.name));
        let waiting = self.waiting.entry(school).or_default();
        waiting.commands.push((number, envelope));
    }

    fn has_commands(&self, school: SchoolId) -> bool {
        let waiting = self.waiting.get(&school);
        waiting.is_some_and(|waiting| !waiting.commands.is_empty())
    }

    /// Whether a heartbeat of the command's device is still to be carried out.
    fn has_waiting_heartbeat(&self, school: SchoolId, envelope: &Envelope) -> bool {
        let waiting = self.waiting.get(&school);
        envelope.command.kind() == device::KIND
            && waiting.is_some_and(|waiting| waiting.heartbeat_devices.contains(&envelope.subject))
    }

    /// Carries out the remaining items and returns all outcomes by item number. Fails only if the batch had no effect.
    pub async fn finish(
        mut self,
    ) -> Result<(BTreeMap<usize, Result<Answer, Rejected>>, Arc<Allowance>), Rejected> {
        self.carry_out().await?;
        Ok((self.outcomes, self.allowance))
    }

    /// Carries out a school's waiting items, so that the next item finds their effects.
    async fn carry_out_in(&mut self, school: SchoolId) -> Result<(), Rejected> {
        let Some(waiting) = self.waiting.remove(&school) else {
            return Ok(());
        };
        let allowance = Arc::clone(&self.allowance);
        let done = waiting.carry_out(school, self.service, allowance).await;
        self.note([done])
    }

    async fn carry_out(&mut self) -> Result<(), Rejected> {
        let mut schools = std::mem::take(&mut self.waiting).into_iter();
        if schools.len() < 2 {
            for (school, waiting) in schools {
                let allowance = Arc::clone(&self.allowance);
                let done = waiting.carry_out(school, self.service, allowance).await;
                self.note([done])?;
            }
            return Ok(());
        }
        // Tasks that run at the same time share a commit of the writer. They are dropped with the request.
        let mut tasks = JoinSet::new();
        let mut all = Vec::with_capacity(schools.len());
        loop {
            while tasks.len() < BATCH_SCHOOLS_AT_ONCE
                && let Some((school, waiting)) = schools.next()
            {
                let (service, allowance) = (Arc::clone(self.service), Arc::clone(&self.allowance));
                tasks.spawn(async move { waiting.carry_out(school, &service, allowance).await });
            }
            match tasks.join_next().await {
                Some(done) => all.push(done.expect("carrying out items does not panic")),
                None => break,
            }
        }
        self.note(all)
    }

    /// Records the outcomes of items. If the store failed before any item took effect, the whole batch fails.
    fn note(&mut self, done: impl IntoIterator<Item = Done>) -> Result<(), Rejected> {
        let mut failed = Vec::new();
        for (numbers, result) in done.into_iter().flatten() {
            match result {
                Ok(outcomes) => self.outcomes.extend(numbers.into_iter().zip(outcomes)),
                Err(error) => failed.push((numbers, error)),
            }
        }
        let has_happened = self.outcomes.values().any(Result::is_ok);
        for (numbers, error) in failed {
            if !has_happened {
                return Err(error);
            }
            let each = numbers
                .into_iter()
                .map(|number| (number, Err(error.clone())));
            self.outcomes.extend(each);
        }
        Ok(())
    }
}

impl Waiting {
    async fn carry_out(
        self,
        school: SchoolId,
        service: &PublishService,
        allowance: Arc<Allowance>,
    ) -> Done {
        let (numbers, envelopes): (Vec<_>, Vec<_>) = self.commands.into_iter().unzip();
        let receipts = service.append(school, envelopes, allowance).await;
        let event = |receipt: Result<Receipt, CommandError>| Ok(Answer::Event(receipt?));
        let events = receipts.map(|receipts| receipts.into_iter().map(event).collect());
        let commands = (numbers, events.map_err(Rejected::from));

        let (numbers, devices): (Vec<_>, Vec<_>) = self.heartbeats.into_iter().unzip();
        let heartbeats = service.presence().heartbeats(school, &devices).await;
        let device = |(device, heartbeat): (SubjectId, Result<HeartbeatAnswer, CommandError>)| {
            Ok(Answer::Device(device, heartbeat?))
        };
        let heartbeats =
            heartbeats.map(|heartbeats| devices.into_iter().zip(heartbeats).map(device).collect());
        [commands, (numbers, heartbeats.map_err(Rejected::from))]
    }
}
