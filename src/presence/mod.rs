//! Presence: leases of devices, in memory.
//!
//! Heartbeats are frequent. A heartbeat renews a lease here, and reaches the store only if it changes the status of its
//! device; the times of the last heartbeats are saved in batches. The rules in [`crate::kind::device`] decide what a
//! change means; this module only counts heartbeats and watches the clock.
//!
//! Leases are measured in [uptime](crate::uptime), and a restart does not renew them: each continues with its remaining
//! time. A server that was killed may have received heartbeats that it did not save. This is compensated once, when the
//! device is marked as unknown. From then on, until the device is online again, each of its heartbeats is saved in the
//! next round.
//!
//! Committed events arrive through [`Presence::observe`], including those from a device's own reports and from other
//! handles to the store, so the leases stay consistent with the log. There is one entry for each device that is not
//! offline, and for each offline device that has started to send heartbeats again.
//!
//! If several nodes receive heartbeats, they share them: see `together.rs`.

mod combined;
mod leases;
mod together;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval};

use self::leases::{LeaseUpdate, Leases, UnknownMarking, heard_now};
pub use self::together::Together;
use crate::config::{
    PRESENCE_BATCH, PRESENCE_FLUSH_PERIOD, PRESENCE_PERIOD, PRESENCE_SHARE_PERIOD,
};
use crate::event::Event;
use crate::failures::Failures;
use crate::id::{SchoolId, SubjectId};
use crate::kind::device::{self, Command, Status};
use crate::kind::{self, State};
use crate::log::{CommandError, Envelope, Store, StoreError};
use crate::publish::Publisher;
use crate::uptime::{Uptime, UptimeClock};

type Address = (SchoolId, SubjectId);

/// Leases of devices.
pub struct Presence {
    store: Arc<dyn Store>,
    publisher: Publisher,
    clock: UptimeClock,
    /// When this node began to receive heartbeats.
    since: Uptime,
    leases: Mutex<Leases>,
    /// Set if other nodes receive heartbeats, too.
    together: Option<Together>,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// The device's status after it.
    pub status: Status,
    /// When the heartbeat was received.
    pub seen_at: DateTime<Utc>,
    /// When the device goes offline if no further heartbeat arrives.
    pub expires_at: DateTime<Utc>,
}

/// The outcome of a heartbeat: its answer, and the command that brings the device online, if it does.
type HeartbeatOutcome = (Result<HeartbeatAnswer, CommandError>, Option<Command>);

impl Presence {
    /// Creates the leases of this store's devices, whose heartbeats only this node receives.
    pub fn new(store: Arc<dyn Store>, publisher: Publisher) -> Presence {
        let clock = store.uptime();
        Presence {
            since: clock.now(),
            clock,
            store,
            publisher,
            leases: Mutex::default(),
            together: None,
        }
    }

    /// Returns how many leases are held.
    pub fn leases(&self) -> usize {
        self.lock().len()
    }

    /// Processes the heartbeats of several devices, and answers each after the commit of its change, if any. All devices
    /// that come online share one commit.
    pub async fn heartbeats(
        &self,
        school: SchoolId,
        devices: &[SubjectId],
    ) -> Result<Vec<Result<HeartbeatAnswer, CommandError>>, StoreError> {
        let outcomes = match &self.together {
            None => self.hear(school, devices).await?,
            Some(_) => self.hear_together(school, devices).await?,
        };
        let (mut heartbeats, commands): (Vec<_>, Vec<_>) = outcomes.into_iter().unzip();
        let arriving: Vec<usize> = (0..heartbeats.len())
            .filter(|index| commands[*index].is_some())
            .collect();
        if arriving.is_empty() {
            return Ok(heartbeats);
        }
        let commands = devices.iter().zip(commands);
        let commands =
            commands.filter_map(|(device, command)| Some(envelope(device.clone(), command?)));
        let answers = self.publisher.batch(school, commands.collect()).await?;
        for (index, answer) in arriving.into_iter().zip(answers) {
            match answer {
                Ok(receipt) => {
                    let event = receipt.event();
                    self.observe(std::slice::from_ref(event));
                    let status = Status::parse(event.draft.status);
                    if let (Ok(heartbeat), Some(status)) = (&mut heartbeats[index], status) {
                        heartbeat.status = status;
                    }
                }
                Err(error) => heartbeats[index] = Err(error),
            }
        }
        Ok(heartbeats)
    }

    /// Renews the leases of these devices, loading the devices first if necessary.
    async fn hear(
        &self,
        school: SchoolId,
        devices: &[SubjectId],
    ) -> Result<Vec<HeartbeatOutcome>, StoreError> {
        let mut outcomes = Vec::with_capacity(devices.len());
        for device in devices {
            let address = (school, device.clone());
            let heard = heard_now(self.clock.now());
            let mut renewed = self.lock().renew(&address, heard);
            if renewed.is_none()
                && let Some(state) = self.load(school, device).await?
            {
                let heard = heard_now(self.clock.now());
                let mut leases = self.lock();
                leases.hold(address.clone(), &state, heard.uptime);
                renewed = leases.renew(&address, heard);
            }
            outcomes.push(match renewed {
                None => (Err(not_found(device)), None),
                Some(renewal) => {
                    let (heard, before) = (renewal.heard, renewal.before);
                    let arrive = renewal.arrives.then_some(Command::Arrive { heard, before });
                    (Ok(renewal.answer), arrive)
                }
            });
        }
        Ok(outcomes)
    }

    async fn load(
        &self,
        school: SchoolId,
        device: &SubjectId,
    ) -> Result<Option<Box<device::Device>>, StoreError> {
        let stored = self
            .store
            .subject(school, device::KIND, device.clone())
            .await?;
        Ok(match stored.map(|stored| stored.state) {
            Some(State::Device(state)) => Some(state),
            _ => None,
        })
    }

    /// Adds the time of the device's last heartbeat to another client's report, because the store may not have it yet.
    pub async fn complete(
        &self,
        school: SchoolId,
        envelopes: &mut [Envelope],
    ) -> Result<(), StoreError> {
        let mut reports = Vec::new();
        for envelope in envelopes {
            let kind::Command::Device(Command::Report(report)) = &mut envelope.command else {
                continue;
            };
            // A report that only says "online" counts as a heartbeat received now.
            if report.status != Status::Online || report.last_seen.is_some() {
                reports.push(((school, envelope.subject.clone()), report));
            }
        }
        let elsewhere = match &self.together {
            Some(_) if !reports.is_empty() => {
                let devices = reports.iter().map(|(address, _)| address.clone());
                self.store.heartbeats_of(devices.collect()).await?
            }
            _ => vec![None; reports.len()],
        };
        let leases = self.lock();
        for ((address, report), known) in reports.into_iter().zip(elsewhere) {
            let here = leases.heard(&address).map(|heard| heard.at);
            let known = known.and_then(|known| known.heard);
            let elsewhere = known.map(|heard| heard.last.at);
            report.last_seen = report.last_seen.max(here).max(elsewhere);
        }
        Ok(())
    }

    /// Updates the leases from committed events.
    pub fn observe(&self, events: &[Arc<Event>]) {
        for event in events.iter().filter(|event| event.kind == device::KIND) {
            let status = Status::parse(event.draft.status);
            if let Some((status, update)) = status.zip(LeaseUpdate::by(&event.draft)) {
                let address = (event.school, event.subject.clone());
                let now = self.clock.now();
                self.lock()
                    .observe(address, event.seq, status, &update, now);
            }
        }
    }

    /// Marks devices that were online as unknown, then watches the leases and saves the last heartbeats, until the future
    /// is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut rounds = interval(PRESENCE_PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flushed = self.clock.now();
        let mut shared = flushed;
        let mut failures = Failures::default();
        loop {
            rounds.tick().await;
            // No lease ends before all devices have been marked: otherwise all would be reported offline at once.
            let is_marked = self.lock().unknown_marking == UnknownMarking::All;
            let mut done = match is_marked {
                false => self.mark_unknown().await,
                // Heartbeats that arrived while the process was stopped are processed first.
                true if self.clock.is_catching_up() => Ok(()),
                true => self.expire().await,
            };
            if done.is_ok() && self.clock.now().since(shared) >= PRESENCE_SHARE_PERIOD {
                done = self.share().await;
                shared = self.clock.now();
            }
            if done.is_ok() && self.clock.now().since(flushed) >= PRESENCE_FLUSH_PERIOD {
                done = self.flush().await;
                flushed = self.clock.now();
            } else if done.is_ok() {
                done = self.flush_urgent().await;
            }
            match done {
                Ok(()) => {
                    failures.worked();
                }
                Err(StoreError::Stopped) => return,
                Err(StoreError::Displaced | StoreError::NotCommitted) => {}
                Err(error) => {
                    if let Some(failed) = failures.failed(Instant::now()) {
                        tracing::error!(%error, failed, "the leases of devices could not be updated");
                    }
                }
            }
        }
    }

    /// Saves when devices were last heard from.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.share().await?;
        let seen = self.lock().take_unwritten();
        self.write_down(seen).await
    }

    /// Saves when devices whose status is unknown were last heard from.
    async fn flush_urgent(&self) -> Result<(), StoreError> {
        let seen = self.lock().take_urgent();
        self.write_down(seen).await
    }

    async fn write_down(&self, seen: Vec<(Address, Command)>) -> Result<(), StoreError> {
        // On failure, they are saved with the next batch.
        let mut undone = self.undone(seen, Leases::put_back);
        self.carry_out(&undone.commands).await?;
        undone.otherwise = None;
        Ok(())
    }

    /// Marks devices as unknown: after a start, the server does not know which of them are still online, so a device that
    /// was online is unknown for the rest of its lease. After a failure, the next call continues where this one stopped.
    async fn mark_unknown(&self) -> Result<(), StoreError> {
        if let Some(together) = &self.together
            && !self.has_to_mark_unknown(together).await?
        {
            return Ok(());
        }
        // With several nodes, it is not known whether the last one shut down cleanly.
        let unwritten = match self.clock.was_cut_off() || self.together.is_some() {
            true => PRESENCE_FLUSH_PERIOD,
            false => Duration::ZERO,
        };
        loop {
            let marked_up_to = match self.lock().unknown_marking.clone() {
                UnknownMarking::None => None,
                UnknownMarking::UpTo(last) => Some(last),
                UnknownMarking::All => return Ok(()),
            };
            let page = self
                .store
                .devices_not_offline(marked_up_to, PRESENCE_BATCH)
                .await?;
            let Some((school, id, _)) = page.last() else {
                self.lock().unknown_marking = UnknownMarking::All;
                return Ok(());
            };
            let last = (*school, id.clone());
            let heard = self.heard_of(&page).await?;
            let mut marks = Vec::new();
            for (school, id, device) in page {
                let address = (school, id);
                let is_unknown = device.was_online_before(self.since) && !heard.contains(&address);
                let leased = match is_unknown {
                    true => device.unknown_since(unwritten, self.clock.now()),
                    false => device.lease_uptime,
                };
                self.lock().hold(address.clone(), &device, leased);
                if is_unknown {
                    let since = self.since;
                    marks.push((address, Command::MarkUnknown { since, unwritten }));
                }
            }
            self.carry_out(&marks).await?;
            self.lock().unknown_marking = UnknownMarking::UpTo(last);
        }
    }

    /// Ends the leases that have expired.
    async fn expire(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let over = self.lock().take_over(now);
        // On failure, they are still expired in the next round.
        let mut undone = self.undone(over, move |leases: &mut Leases, over| {
            over.into_iter()
                .for_each(|(address, _): (Address, Command)| leases.schedule_check(address, now));
        });
        match self.together {
            None => self.carry_out(&undone.commands).await?,
            Some(_) => self.expire_together(&undone.commands, now).await?,
        }
        undone.otherwise = None;
        Ok(())
    }

    fn undone<F: FnOnce(&mut Leases, Vec<(Address, Command)>)>(
        &self,
        commands: Vec<(Address, Command)>,
        otherwise: F,
    ) -> Undone<'_, F> {
        Undone {
            presence: self,
            commands,
            otherwise: Some(otherwise),
        }
    }

    async fn carry_out(&self, commands: &[(Address, Command)]) -> Result<(), StoreError> {
        for part in commands.chunks(PRESENCE_BATCH) {
            let mut by_school: HashMap<SchoolId, Vec<Envelope>> = HashMap::new();
            for ((school, id), command) in part {
                let of_school = by_school.entry(*school).or_default();
                of_school.push(envelope(id.clone(), command.clone()));
            }
            // Concurrently, so that the schools share commits. If some fail, the others are still carried out.
            let carried_out = by_school.into_iter().map(async |(school, envelopes)| {
                for answer in self.publisher.batch(school, envelopes).await? {
                    match answer {
                        Ok(receipt) => self.observe(std::slice::from_ref(receipt.event())),
                        Err(reason) => {
                            tracing::warn!(school.id = %school, %reason, "a device's lease could not be ended");
                        }
                    }
                }
                Ok(())
            });
            join_all(carried_out)
                .await
                .into_iter()
                .collect::<Result<(), StoreError>>()?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commands that are being carried out, and what to do with them if that fails, panics or is dropped.
struct Undone<'a, F: FnOnce(&mut Leases, Vec<(Address, Command)>)> {
    presence: &'a Presence,
    commands: Vec<(Address, Command)>,
    otherwise: Option<F>,
}

impl<F: FnOnce(&mut Leases, Vec<(Address, Command)>)> Drop for Undone<'_, F> {
    fn drop(&mut self) {
        if let Some(otherwise) = self.otherwise.take() {
            let commands = std::mem::take(&mut self.commands);
            otherwise(&mut self.presence.lock(), commands);
        }
    }
}

fn envelope(subject: SubjectId, command: Command) -> Envelope {
    Envelope::new(subject, kind::Command::Device(command))
}

fn not_found(device: &SubjectId) -> CommandError {
    kind::not_found(device::KIND, device.as_str()).into()
}
