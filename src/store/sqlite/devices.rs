//! The `devices` table.

use std::borrow::Cow;
use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::limit::Limit;
use super::schema::devices;
use super::table::{
    Selected, Selection, Table, any_table, from_millis, millis, overdue_rows, raw, unreadable,
    uptime, uptime_millis,
};
use super::table::{place, tag_bits};
use super::upsert::upsert;
use crate::event::Event;
use crate::id::{Epoch, Place, SchoolId, SubjectId};
use crate::kind::device::{Device, Status};
use crate::kind::{Command, device};
use crate::log::Overdue;
use crate::log::facts::Stored;
use crate::store::numbers::{signed, unsigned};
use crate::uptime::Uptime;

#[derive(Queryable, Selectable)]
#[diesel(table_name = devices)]
#[diesel(check_for_backend(Sqlite))]
pub(super) struct DeviceRow<'a> {
    school_id: i64,
    device_id: Cow<'a, str>,
    name: Option<Cow<'a, str>>,
    status: Cow<'a, str>,
    last_seen: Option<i64>,
    lease_secs: i64,
    lease_uptime: i64,
    flapping: bool,
    changes: Cow<'a, str>,
    info: Cow<'a, str>,
    status_seq: i64,
    status_at: i64,
    info_seq: Option<i64>,
    info_at: Option<i64>,
    created_at: i64,
    check_uptime: Option<i64>,
    created_seq: i64,
    last_seq: i64,
    last_tag: Option<i64>,
    last_at: i64,
}

upsert! {
    /// Writes a device's row, new or not.
    UpsertDevice<'a>(DeviceRow<'a>) into "devices"
    by (school_id: BigInt, device_id: Text)
    once (created_at: BigInt, created_seq: BigInt)
    set (
        name: Nullable<Text>, status: Text, last_seen: Nullable<BigInt>, lease_secs: BigInt, lease_uptime: BigInt, flapping: Bool,
        changes: Text, info: Text, status_seq: BigInt, status_at: BigInt, info_seq: Nullable<BigInt>,
        info_at: Nullable<BigInt>, check_uptime: Nullable<BigInt>, last_seq: BigInt, last_tag: Nullable<BigInt>, last_at: BigInt
    )
}

impl<'a> DeviceRow<'a> {
    fn new(
        school: SchoolId,
        id: &'a SubjectId,
        device: &'a Device,
        stored: &'a Stored,
    ) -> DeviceRow<'a> {
        let changes: Vec<i64> = device.changes.iter().copied().map(uptime_millis).collect();
        DeviceRow {
            school_id: school.get(),
            device_id: id.as_str().into(),
            name: device.name.as_deref().map(Into::into),
            status: device.status.as_str().into(),
            last_seen: device.last_seen.map(millis),
            lease_secs: device.lease_secs.into(),
            lease_uptime: uptime_millis(device.lease_uptime),
            flapping: device.flapping,
            changes: serde_json::to_string(&changes)
                .expect("numbers are JSON")
                .into(),
            info: device.info.get().into(),
            status_seq: signed(device.reported_status.0),
            status_at: millis(device.reported_status.1),
            info_seq: device.reported_info.map(|(seq, _)| signed(seq)),
            info_at: device.reported_info.map(|(_, at)| millis(at)),
            created_at: millis(device.created_at),
            check_uptime: device.check_uptime.map(uptime_millis),
            created_seq: signed(stored.created_seq),
            last_seq: signed(stored.last.seq),
            last_tag: tag_bits(stored.last),
            last_at: millis(stored.last_at),
        }
    }

    fn into_stored(self) -> QueryResult<(SubjectId, Stored)> {
        let optional = |at: Option<i64>| at.map(from_millis).transpose();
        let changes: Vec<i64> =
            serde_json::from_str(&self.changes).map_err(|_| unreadable("a device's changes"))?;
        let info_at = optional(self.info_at)?;
        let device = Device {
            name: self.name.map(|name| name.as_ref().into()),
            status: Status::parse(&self.status).ok_or_else(|| unreadable("a device's status"))?,
            last_seen: optional(self.last_seen)?,
            lease_secs: self
                .lease_secs
                .try_into()
                .map_err(|_| unreadable("a number of seconds"))?,
            lease_uptime: uptime(self.lease_uptime)?,
            flapping: self.flapping,
            changes: changes
                .into_iter()
                .map(uptime)
                .collect::<QueryResult<VecDeque<_>>>()?,
            info: raw(self.info)?,
            reported_status: (unsigned(self.status_seq), from_millis(self.status_at)?),
            reported_info: self
                .info_seq
                .zip(info_at)
                .map(|(seq, at)| (unsigned(seq), at)),
            created_at: from_millis(self.created_at)?,
            check_uptime: self.check_uptime.map(uptime).transpose()?,
        };
        let id = self
            .device_id
            .parse()
            .map_err(|_| unreadable("a device id"))?;
        let stored = Stored {
            state: device.into(),
            created_seq: unsigned(self.created_seq),
            last: place(self.last_seq, self.last_tag),
            last_at: from_millis(self.last_at)?,
        };
        Ok((id, stored))
    }
}

/// The table of devices.
pub(super) struct DevicesTable;

impl Table for DevicesTable {
    any_table!(devices by device_id as DeviceRow, written by UpsertDevice from device,
        searched in [device_id, name] and values of [info], category [], stalls []);

    fn snapshot(
        &self,
        conn: &mut SqliteConnection,
        epoch: Epoch,
        selection: &Selection<'_>,
    ) -> QueryResult<Selected> {
        let mut events = Vec::new();
        let status_event = |id: &SubjectId, device: &Device| {
            let (draft, place) = (device::status_draft(id, device), device.reported_status);
            snapshot_event(epoch, selection.school, id, draft, place)
        };
        let info_event = |id: &SubjectId, device: &Device| {
            let place = device.reported_info?;
            let draft = device::info_draft(id, device);
            Some(snapshot_event(epoch, selection.school, id, draft, place))
        };
        if let Some(subjects) = &selection.subjects {
            for id in subjects {
                let stored = self.load(conn, selection.school, id)?;
                if let Some(device) = stored.as_ref().and_then(|stored| stored.state.device()) {
                    events.push(status_event(id, device));
                    events.extend(info_event(id, device));
                }
            }
            return Ok(selection.first_of(events, selection.upto));
        }
        // Statuses and infos are read separately, each by an index in the order of the log.
        let (after, upto) = (signed(selection.after), signed(selection.upto));
        let by_status = || {
            devices::table
                .filter(devices::school_id.eq(selection.school.get()))
                .filter(devices::status_seq.gt(after))
                .filter(devices::status_seq.le(upto))
                .order(devices::status_seq)
                .into_boxed::<Sqlite>()
        };
        let by_info = || {
            devices::table
                .filter(devices::school_id.eq(selection.school.get()))
                .filter(devices::info_seq.gt(after))
                .filter(devices::info_seq.le(upto))
                .order(devices::info_seq)
                .into_boxed::<Sqlite>()
        };
        let mut through = selection.upto;
        let (mut statuses, mut infos) = (by_status(), by_info());
        if !selection.filter.statuses.is_empty() {
            let last = signed(selection.rows) - 1;
            let end = by_status().select(devices::status_seq.nullable());
            let end = end.row_after(last).get_result::<Option<i64>>(conn);
            let info_end = by_info().select(devices::info_seq);
            let info_end = info_end.row_after(last).get_result::<Option<i64>>(conn);
            let ends = [end.optional()?.flatten(), info_end.optional()?.flatten()];
            for end in ends.into_iter().flatten() {
                through = through.min(unsigned(end));
            }
            let wanted: Vec<&String> = selection.filter.statuses.iter().collect();
            statuses = statuses
                .filter(devices::status_seq.le(signed(through)))
                .filter(devices::status.eq_any(wanted.clone()));
            infos = infos
                .filter(devices::info_seq.le(signed(through)))
                .filter(devices::status.eq_any(wanted));
        }
        let by_status = statuses
            .select(DeviceRow::as_select())
            .at_most(signed(selection.limit))
            .load::<DeviceRow<'_>>(conn)?;
        for row in by_status {
            let (id, stored) = row.into_stored()?;
            events.extend(
                stored
                    .state
                    .device()
                    .map(|device| status_event(&id, device)),
            );
        }
        let by_info = infos
            .select(DeviceRow::as_select())
            .at_most(signed(selection.limit))
            .load::<DeviceRow<'_>>(conn)?;
        for row in by_info {
            let (id, stored) = row.into_stored()?;
            events.extend(
                stored
                    .state
                    .device()
                    .and_then(|device| info_event(&id, device)),
            );
        }
        Ok(selection.first_of(events, through))
    }

    fn overdue(
        &self,
        conn: &mut SqliteConnection,
        now: Uptime,
        limit: usize,
    ) -> QueryResult<Vec<Overdue>> {
        overdue_rows!(conn, devices by device_id, now, limit, Command::Device(device::Command::Check))
    }
}

fn snapshot_event(
    epoch: Epoch,
    school: SchoolId,
    id: &SubjectId,
    draft: crate::event::Draft,
    (seq, at): (u64, DateTime<Utc>),
) -> Event {
    let place = (epoch, Place::untagged(seq));
    Event::snapshot(place, school, device::KIND, id.clone(), at, draft)
}

/// Returns the devices that are not known to be offline, ordered by school and id, starting after `after`.
pub(super) fn not_offline(
    conn: &mut SqliteConnection,
    after: Option<&(SchoolId, SubjectId)>,
    limit: usize,
) -> QueryResult<Vec<(SchoolId, SubjectId, Device)>> {
    let (school, id) = after.map_or((0, ""), |(school, id)| (school.get(), id.as_str()));
    let rows = devices::table
        .filter(devices::status.ne("offline"))
        .filter(
            devices::school_id
                .gt(school)
                .or(devices::school_id.eq(school).and(devices::device_id.gt(id))),
        )
        .order((devices::school_id, devices::device_id))
        .select(DeviceRow::as_select())
        .at_most(signed(limit))
        .load::<DeviceRow<'_>>(conn)?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let school = row
            .school_id
            .try_into()
            .map_err(|_| unreadable("a school id"))?;
        let (id, stored) = row.into_stored()?;
        if let crate::kind::State::Device(device) = stored.state {
            found.push((school, id, *device));
        }
    }
    Ok(found)
}
