//! A device: registered once, then online or offline.
//!
//! ```text
//! unknown ──two heartbeats──▶ online ──lease expired, or a report──▶ offline ──two heartbeats──▶ online
//!    └──────lease expired────▶ offline
//! ```
//!
//! A device sends a heartbeat about every ten seconds. It is offline when a whole lease passes without one, or
//! immediately when it is reported offline (by a last will, or a health checker). `last_seen` is when the device was
//! last heard from. A report that it is not online changes this time only if the report contains a later one.
//! Heartbeats are counted in memory ([`crate::presence`]) and become commands only when they change something; the
//! rules decide what that change is. If several nodes receive a device's heartbeats, they share the last ones
//! ([`crate::log::heartbeats`]). A lease is measured in [uptime](crate::uptime), and a restart does not renew it: after
//! a restart the server does not know which devices are still online, so a device that was online is `unknown` for the
//! rest of its lease. If a device alternates between online and offline, its changes are still published, and it is
//! marked `flapping`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{
    At, Body, Bound, CommandOf, Context, Description, Outcome, RuleError, Subject, Texts, bounded,
    merged, not_found,
};
use crate::event::{Class, Draft, EventType, Payload};
use crate::id::{Kind, SubjectId};
use crate::uptime::Uptime;

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("devices");
/// Devices have no parts.
pub type Part = super::NoPart;
/// A device is online, offline, or unknown.
pub static DEVICE_STATUS_UPDATE: EventType = EventType::new::<StatusUpdate>("device_status_update");
/// A device's information has changed, other than its status.
pub static DEVICE_INFO_UPDATE: EventType =
    EventType::new::<InfoUpdate>("device_info_update").beside_ticks();
/// The description of this kind.
pub static DESCRIPTION: Description = Description {
    kind: KIND,
    noun: "Device",
    title: "Devices",
    id_field: "device_id",
    other_ids: &[],
    event_types: &[&DEVICE_STATUS_UPDATE, &DEVICE_INFO_UPDATE],
    statuses: &["unknown", "online", "offline"],
    made_by: "put",
    // `heartbeat` is a verb, but not a command: it renews a lease in memory.
    verbs: &["heartbeat", "status", "info"],
    details: Details::json_schema,
    columns: &[],
};
/// The longest `name`, in bytes.
pub const NAME_MAX_BYTES: usize = 256;
/// The longest lease, in seconds.
pub const LEASE_MAX_SECS: u32 = 86_400;
/// How far, in seconds, the reporter's clock can be ahead.
pub const CLOCK_SKEW_SECS: i64 = 5;
/// The number of consecutive heartbeats after which a device is online.
pub const HEARTBEATS_TO_ONLINE: u32 = 2;
/// This many changes between online and offline within [`FLAP_WINDOW_SECS`] count as flapping.
pub const FLAP_CHANGES: usize = 4;
/// The period in which changes count towards [`FLAP_CHANGES`], in seconds of uptime.
pub const FLAP_WINDOW_SECS: u64 = 300;

/// A device's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "DeviceStatus")]
pub enum Status {
    /// It is not known whether the device is online; this lasts for at most one lease.
    Unknown,
    /// The device is online.
    Online,
    /// The device is offline.
    Offline,
}

impl Status {
    /// Returns the name in messages and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Unknown => "unknown",
            Status::Online => "online",
            Status::Offline => "offline",
        }
    }

    /// Parses the text that [`Status::as_str`] returns.
    pub fn parse(text: &str) -> Option<Status> {
        [Status::Unknown, Status::Online, Status::Offline]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A command to a device. Commands with a body are HTTP requests; the server issues the others itself.
#[derive(Debug, Clone)]
pub enum Command {
    /// Creates the device or updates its description.
    Register(Register),
    /// Reports that the device is online, offline or unknown.
    Report(Report),
    /// Updates the device's information.
    Info(Info),
    /// Enough heartbeats have arrived: the device is online.
    Arrive {
        /// The last heartbeat.
        heard: Heard,
        /// The heartbeat before it. It does not count if the device was reported offline after it.
        before: Option<Uptime>,
    },
    /// The lease has expired. Contains the last heartbeat, if it is newer than the stored one.
    Expire(Option<Heard>),
    /// A heartbeat arrived; nothing else changes.
    Seen(Heard),
    /// Marks an online device as unknown after a start of the server, unless the device was heard from or reported
    /// since.
    MarkUnknown {
        /// When the server started.
        since: Uptime,
        /// Heartbeats that arrived less than this time before the end of the previous run may not have been saved, so
        /// the current lease is extended by this time.
        unwritten: Duration,
    },
    /// Checks whether the device is still flapping (issued by the watchdog).
    Check,
}

/// When a device was last heard from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The time for display.
    pub at: DateTime<Utc>,
    /// The time for its lease.
    pub uptime: Uptime,
}

/// Registers or changes a device. A field that is left out keeps its value.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "name": "Front door", "info": { "firmware": "1.4.2" } }))]
pub struct Register {
    /// The display name.
    pub name: Option<String>,
    /// Merged into the device's information; `null` removes a key.
    pub info: Option<Map<String, Value>>,
    /// The seconds of silence after which it is offline.
    #[schemars(range(min = 1, max = LEASE_MAX_SECS))]
    pub lease_secs: Option<u32>,
}

/// Reports whether the device is online: by the device itself, or by a program that monitors it.
#[derive(Debug, Clone, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({ "status": "online" }))]
pub struct Report {
    /// `online`, `offline` or `unknown`.
    pub status: Status,
    /// When the device was last heard from, if the reporter knows. If absent: now for a device that is online, unchanged
    /// for any other.
    #[serde(default, deserialize_with = "crate::kind::optional_time")]
    #[schemars(with = "Option<crate::kind::Time>")]
    pub last_seen: Option<DateTime<Utc>>,
    /// The seconds of silence after which it is offline. Creates the device if it does not exist.
    #[serde(default)]
    #[schemars(range(min = 1, max = LEASE_MAX_SECS))]
    pub lease_secs: Option<u32>,
}

/// Adds to the information about the device, such as its firmware.
#[derive(Debug, Clone, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({ "info": { "firmware": "1.4.3" } }))]
pub struct Info {
    /// Merged into the device's information; `null` removes a key.
    pub info: Map<String, Value>,
}

/// The complete state of a device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Device {
    /// The display name.
    pub name: Option<Arc<str>>,
    /// Its status.
    pub status: Status,
    /// When it was last heard from; kept when it goes offline.
    pub last_seen: Option<DateTime<Utc>>,
    /// The seconds of silence after which it is offline.
    pub lease_secs: u32,
    /// The start of the lease: when the device was last heard from, or when its status or lease last changed. For an
    /// offline device: when it went offline.
    pub lease_uptime: Uptime,
    /// Whether it alternates between online and offline.
    pub flapping: bool,
    /// The times of the last changes between online and offline, at most [`FLAP_CHANGES`].
    pub changes: VecDeque<Uptime>,
    /// The device's information about itself: a compact JSON object.
    pub info: Arc<RawValue>,
    /// The `seq` of the event that published its status, and its time.
    pub reported_status: (u64, DateTime<Utc>),
    /// The `seq` of the event that published its information, and its time, if there was one.
    #[serde(rename = "told_info")]
    pub reported_info: Option<(u64, DateTime<Utc>)>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When to check next whether it is still flapping.
    pub check_uptime: Option<Uptime>,
}

impl CommandOf<Device> for Command {
    fn check() -> Option<Command> {
        Some(Command::Check)
    }

    fn read<B: Body>(verb: &str, body: B) -> Option<Result<Command, B::Error>> {
        Some(match verb {
            "put" => body.read().map(Command::Register),
            "status" => body.read().map(Command::Report),
            "info" => body.read().map(Command::Info),
            _ => return None,
        })
    }
}

impl Subject for Device {
    fn describe(&self, id: &SubjectId, _: DateTime<Utc>) -> Draft {
        status_draft(id, self)
    }

    fn text_bytes(&self) -> usize {
        self.name.as_deref().map_or(0, str::len) + self.info.get().len()
    }

    fn title(&self) -> Option<String> {
        self.name.as_deref().map(Into::into)
    }

    fn details(&self, _: &SubjectId) -> Value {
        let details = Details {
            info: &self.info,
            created_at: self.created_at,
        };
        serde_json::to_value(details).expect("details are JSON")
    }

    fn status(&self) -> &'static str {
        self.status.as_str()
    }

    fn created_at(&self) -> DateTime<Utc> {
        self.created_at
    }

    fn check_uptime(&self) -> Option<Uptime> {
        self.check_uptime
    }

    fn places(&self, _: u64) -> [Option<u64>; 2] {
        [
            Some(self.reported_status.0),
            self.reported_info.map(|info| info.0),
        ]
    }

    fn current(&self, id: &SubjectId, _: At, _: DateTime<Utc>) -> Vec<(At, Draft)> {
        let mut current = vec![(self.reported_status, status_draft(id, self))];
        current.extend(self.reported_info.map(|at| (at, info_draft(id, self))));
        current
    }

    /// Devices have no ticks.
    fn superseding(&self, _: u64) -> Option<(u64, &'static str)> {
        None
    }

    fn texts(&self) -> Texts<'_> {
        Texts {
            own: self.name.as_deref().into_iter().collect(),
            values: Some(&self.info),
        }
    }
}

/// Applies a command to a device. Returns the new state and the events. Pure.
pub fn apply(
    id: &SubjectId,
    device: Option<&Device>,
    command: &Command,
    context: &Context<'_>,
) -> Result<Outcome<Device>, RuleError> {
    let mut next = match (device, command) {
        (Some(device), _) => device.clone(),
        (None, Command::Register(_)) => Device::new(context)?,
        (None, Command::Report(report)) if report.lease_secs.is_some() => Device::new(context)?,
        (None, _) => return Err(not_found(KIND, id.as_str())),
    };
    match command {
        Command::Register(register) => {
            if let Some(name) = &register.name {
                next.name = Some(bounded("name", name, Bound::constant(NAME_MAX_BYTES))?);
            }
            next.lease(register.lease_secs)?;
            if let Some(info) = &register.info {
                next.merge(info, context)?;
            }
        }
        // Any client can send this information, so it does not show that the device is online.
        Command::Info(info) => next.merge(&info.info, context)?,
        Command::Report(report) => {
            next.lease(report.lease_secs)?;
            // A device does not report its own absence, so `last_seen` remains unchanged.
            let seen_at = match (report.last_seen, report.status) {
                (Some(seen_at), _) => Some(past(seen_at, context)?),
                (None, Status::Online) => Some(context.now),
                (None, Status::Offline | Status::Unknown) => None,
            };
            // Another program may have heard from the device while this server was not running. So the whole time since
            // then counts, although uptime does not include times when the server was not running.
            let heard = |at: DateTime<Utc>| Heard {
                at,
                uptime: context
                    .uptime
                    .before((context.now - at).to_std().unwrap_or_default()),
            };
            seen_at.map(heard).iter().for_each(|heard| next.hear(heard));
            next.turn(report.status, context.uptime);
            if report.status == Status::Offline {
                // Also if it is offline already: a node may not know yet that another one has heard it twice since.
                next.lease_uptime = context.uptime;
            }
        }
        Command::Arrive { heard, before } => {
            if next.counts(*before) {
                next.turn(Status::Online, context.uptime);
            }
            next.hear(heard);
        }
        Command::Expire(heard) => {
            heard.iter().for_each(|heard| next.hear(heard));
            // A report may have renewed the lease in the meantime, as a heartbeat does.
            if next.lease_is_over(context.uptime) {
                next.turn(Status::Offline, context.uptime);
            }
        }
        Command::Seen(heard) => next.hear(heard),
        Command::MarkUnknown { since, unwritten } => {
            if next.was_online_before(*since) {
                next.status = Status::Unknown;
                next.lease_uptime = next.unknown_since(*unwritten, context.uptime);
            }
        }
        Command::Check => next.judge_flapping(context.uptime),
    }
    let stays_offline =
        |before: &Device| before.status == Status::Offline && next.status == Status::Offline;
    if device.is_some_and(|before| {
        is_leased_anew(before.standing(), next.standing()) && !stays_offline(before)
    }) {
        next.lease_uptime = context.uptime;
    }
    let mut seq = context.next_seq;
    let mut drafts = Vec::new();
    let is_new = device.is_none();
    let marks = |state: &Device| (state.status, state.flapping);
    if device.map(marks) != Some(marks(&next)) {
        next.reported_status = (seq, context.now);
        seq += 1;
        drafts.push(status_draft(id, &next));
    }
    let (info, name, lease_secs) = device.map_or(("{}", &None, next.lease_secs), |before| {
        (before.info.get(), &before.name, before.lease_secs)
    });
    let is_described = !is_new && (name, lease_secs) != (&next.name, next.lease_secs);
    if info != next.info.get() || is_described {
        next.reported_info = Some((seq, context.now));
        drafts.push(info_draft(id, &next));
    }
    Ok(Outcome::new(next, drafts))
}

impl Device {
    fn new(context: &Context<'_>) -> Result<Device, RuleError> {
        Ok(Device {
            name: None,
            status: Status::Unknown,
            last_seen: None,
            lease_secs: context.limits.device_lease_secs,
            lease_uptime: context.uptime,
            flapping: false,
            changes: VecDeque::new(),
            info: merged("info", None, Map::new(), context.limits.metadata())?,
            reported_status: (context.next_seq, context.now),
            reported_info: None,
            created_at: context.now,
            check_uptime: None,
        })
    }

    /// Sets the length of the lease, if one is given.
    fn lease(&mut self, secs: Option<u32>) -> Result<(), RuleError> {
        self.lease_secs = secs.unwrap_or(self.lease_secs);
        if !(1..=LEASE_MAX_SECS).contains(&self.lease_secs) {
            return Err(RuleError::Invalid {
                field: "lease_secs",
                expected: format!("must be from 1 to {LEASE_MAX_SECS}"),
            });
        }
        Ok(())
    }

    /// Returns the status and the lease, which together determine how long the device counts as online.
    pub fn standing(&self) -> Standing {
        (self.status, self.lease_secs)
    }

    /// Whether the device was online when the server started at `since` and was not heard from after that, so that its
    /// status becomes unknown.
    pub fn was_online_before(&self, since: Uptime) -> bool {
        self.status == Status::Online && self.lease_uptime <= since
    }

    /// Returns the start of the lease of a device that is marked as unknown after a start. Heartbeats that arrived
    /// less than `unwritten` before the end of the previous run may not have been saved, so that time is added.
    pub fn unknown_since(&self, unwritten: Duration, now: Uptime) -> Uptime {
        (self.lease_uptime + unwritten).min(now)
    }

    fn lease_is_over(&self, now: Uptime) -> bool {
        now.since(self.lease_uptime) >= Duration::from_secs(self.lease_secs.into())
    }

    fn hear(&mut self, heard: &Heard) {
        self.last_seen = self.last_seen.max(Some(heard.at));
        if self.status != Status::Offline {
            self.lease_uptime = self.lease_uptime.max(heard.uptime);
        }
    }

    /// Whether a heartbeat counts towards `online`. If the device is offline, only heartbeats since it went offline
    /// count.
    fn counts(&self, heartbeat: Option<Uptime>) -> bool {
        self.status != Status::Offline
            || heartbeat.is_none_or(|heartbeat| heartbeat >= self.lease_uptime)
    }

    fn merge(&mut self, info: &Map<String, Value>, context: &Context<'_>) -> Result<(), RuleError> {
        let limit = context.limits.metadata();
        self.info = merged("info", Some(&self.info), info.clone(), limit)?;
        Ok(())
    }

    /// Sets the status. A change between online and offline counts towards flapping.
    fn turn(&mut self, status: Status, now: Uptime) {
        if self.status == status {
            return;
        }
        let was = std::mem::replace(&mut self.status, status);
        // A change from or to unknown says nothing about the device, so it does not count for flapping.
        if was != Status::Unknown && status != Status::Unknown {
            self.changes.push_back(now);
            self.judge_flapping(now);
        }
    }

    fn judge_flapping(&mut self, now: Uptime) {
        let window = Duration::from_secs(FLAP_WINDOW_SECS);
        self.changes.retain(|at| now.since(*at) < window);
        while self.changes.len() > FLAP_CHANGES {
            self.changes.pop_front();
        }
        self.flapping = self.changes.len() == FLAP_CHANGES;
        let oldest = self.changes.front().filter(|_| self.flapping);
        self.check_uptime = oldest.map(|at| *at + window);
    }
}

/// Returns whether a device with this status and lease becomes online through its last two heartbeats: they are less
/// than a lease apart, and the device did not go offline after the first one. `lease_uptime` is
/// [`Device::lease_uptime`].
pub fn arrives(
    (status, lease_secs): Standing,
    lease_uptime: Uptime,
    last: Uptime,
    before: Option<Uptime>,
) -> bool {
    let Some(before) = before.filter(|_| status != Status::Online) else {
        return false;
    };
    let is_within = last.since(before) < Duration::from_secs(lease_secs.into());
    is_within && (status != Status::Offline || before >= lease_uptime)
}

/// A device's status and lease in seconds.
pub type Standing = (Status, u32);

/// Returns whether a change of status or lease starts a new lease. Marking a device as unknown does not renew its lease.
pub fn is_leased_anew(before: Standing, after: Standing) -> bool {
    let is_unknown_mark = (before.0, after.0) == (Status::Online, Status::Unknown);
    before.1 != after.1 || (before.0 != after.0 && !is_unknown_mark)
}

/// Checks a time that must not be in the future, and returns it. Clocks differ slightly, so a time that is up to
/// [`CLOCK_SKEW_SECS`] ahead counts as now.
fn past(at: DateTime<Utc>, context: &Context<'_>) -> Result<DateTime<Utc>, RuleError> {
    if at > context.now + TimeDelta::seconds(CLOCK_SKEW_SECS) {
        return Err(RuleError::Invalid {
            field: "last_seen",
            expected: "must not be in the future".into(),
        });
    }
    Ok(at.trunc_subsecs(3).min(context.now))
}

/// A device's data that is not in the event of its status.
#[derive(JsonSchema, Serialize)]
struct Details<'a> {
    /// Its information about itself.
    #[schemars(with = "Map<String, Value>")]
    info: &'a RawValue,
    /// When it was created.
    #[serde(serialize_with = "super::as_timestamp")]
    created_at: DateTime<Utc>,
}

/// The status of a device.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "DeviceStatusUpdate")]
#[schemars(example = serde_json::json!({
    "device_id": "door-7",
    "status": "online",
    "last_seen": "2026-03-02T02:21:00.000Z",
    "name": "Front door",
    "flapping": false,
    "lease_secs": 30,
}))]
pub struct StatusUpdate {
    /// The device.
    pub device_id: SubjectId,
    /// The status.
    pub status: Status,
    /// When it was last heard from; kept when it goes offline.
    #[serde(serialize_with = "super::as_optional_timestamp")]
    pub last_seen: Option<DateTime<Utc>>,
    /// The display name.
    pub name: Option<Arc<str>>,
    /// Whether it alternates between online and offline.
    #[serde(default)]
    pub flapping: bool,
    /// The seconds of silence after which it is offline.
    pub lease_secs: u32,
}

impl Payload for StatusUpdate {
    const TYPE: &'static EventType = &DEVICE_STATUS_UPDATE;
}

/// Returns a device's status as an event.
pub fn status_draft(id: &SubjectId, device: &Device) -> Draft {
    let update = StatusUpdate {
        device_id: id.clone(),
        status: device.status,
        last_seen: device.last_seen,
        name: device.name.as_ref().map(Arc::clone),
        flapping: device.flapping,
        lease_secs: device.lease_secs,
    };
    Draft::new(Class::Milestone, device.status.as_str(), update)
}

/// A device's information about itself, other than its status.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "DeviceInfoUpdate")]
#[schemars(example = serde_json::json!({
    "device_id": "door-7", "info": { "firmware": "1.4.2" }, "name": "Front door", "lease_secs": 30,
}))]
pub struct InfoUpdate {
    /// The device.
    pub device_id: SubjectId,
    /// Its information about itself.
    #[schemars(with = "Map<String, Value>")]
    pub info: Arc<RawValue>,
    /// The display name.
    pub name: Option<Arc<str>>,
    /// The seconds of silence after which it is offline.
    pub lease_secs: u32,
}

impl Payload for InfoUpdate {
    const TYPE: &'static EventType = &DEVICE_INFO_UPDATE;
}

/// Returns a device's information as an event.
pub fn info_draft(id: &SubjectId, device: &Device) -> Draft {
    let update = InfoUpdate {
        device_id: id.clone(),
        info: Arc::clone(&device.info),
        name: device.name.as_ref().map(Arc::clone),
        lease_secs: device.lease_secs,
    };
    Draft::new(Class::Milestone, device.status.as_str(), update)
}
