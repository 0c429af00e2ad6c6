//! The `characteristics` table. Data that only the rules read is stored as JSON.

use std::borrow::Cow;
use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::limit::Limit;
use super::parts::Parts;
use super::schema::characteristics;
use super::table::{Selected, Selection, Table, any_table, from_millis, millis, unreadable};
use super::table::{place, tag_bits};
use super::upsert::upsert;
use super::violations::{self, ViolationsTable};
use crate::event::{Draft, Event};
use crate::id::{Epoch, Place, SchoolId, SubjectId};
use crate::kind::characteristic::limits::ControlLimits;
use crate::kind::characteristic::nelson::Rule;
use crate::kind::characteristic::{
    self, Characteristic, LastSample, Limits, Method, OUT_OF_CONTROL, Severity,
};
use crate::kind::known_status;
use crate::log::LastEvent;
use crate::log::facts::Stored;
use crate::store::numbers::{signed, unsigned};

#[derive(Queryable, Selectable)]
#[diesel(table_name = characteristics)]
#[diesel(check_for_backend(Sqlite))]
pub(super) struct CharacteristicRow<'a> {
    school_id: i64,
    characteristic_id: Cow<'a, str>,
    name: Option<Cow<'a, str>>,
    unit: Option<Cow<'a, str>>,
    status: Cow<'a, str>,
    subgroup_size: i64,
    rules: Cow<'a, str>,
    center_line: Option<f64>,
    ucl: Option<f64>,
    lcl: Option<f64>,
    limits_method: Option<Cow<'a, str>>,
    limits_samples: i64,
    limits_version: i64,
    baseline: Option<Cow<'a, str>>,
    recent: Cow<'a, str>,
    runs: Cow<'a, str>,
    publisher_in_control: Option<bool>,
    sample_count: i64,
    violation_count: i64,
    sample_id: Option<Cow<'a, str>>,
    sample_seq: Option<i64>,
    sample_at: Option<i64>,
    sample_status: Option<Cow<'a, str>>,
    sample_fields: Option<Cow<'a, str>>,
    limits_seq: i64,
    limits_at: i64,
    created_at: i64,
    created_seq: i64,
    last_seq: i64,
    last_tag: Option<i64>,
    last_at: i64,
    dispersion: Option<Cow<'a, str>>,
}

upsert! {
    /// Writes a characteristic's row, new or not.
    UpsertCharacteristic<'a>(CharacteristicRow<'a>) into "characteristics"
    by (school_id: BigInt, characteristic_id: Text)
    once (created_at: BigInt, created_seq: BigInt)
    set (
        name: Nullable<Text>, unit: Nullable<Text>, status: Text, subgroup_size: BigInt, rules: Text,
        center_line: Nullable<Double>, ucl: Nullable<Double>, lcl: Nullable<Double>,
        limits_method: Nullable<Text>, limits_samples: BigInt, limits_version: BigInt, baseline: Nullable<Text>,
        recent: Text, runs: Text, publisher_in_control: Nullable<Bool>, sample_count: BigInt, violation_count: BigInt, sample_id: Nullable<Text>,
        sample_seq: Nullable<BigInt>, sample_at: Nullable<BigInt>, sample_status: Nullable<Text>,
        sample_fields: Nullable<Text>,
        limits_seq: BigInt, limits_at: BigInt, last_seq: BigInt, last_tag: Nullable<BigInt>, last_at: BigInt,
        dispersion: Nullable<Text>
    )
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data is JSON")
}

fn from_json<T: DeserializeOwned>(text: &str) -> QueryResult<T> {
    serde_json::from_str(text).map_err(|_| unreadable("JSON of a characteristic"))
}

impl<'a> CharacteristicRow<'a> {
    fn new(
        school: SchoolId,
        id: &'a SubjectId,
        characteristic: &'a Characteristic,
        stored: &'a Stored,
    ) -> CharacteristicRow<'a> {
        let rules: Vec<_> = characteristic
            .rules
            .iter()
            .map(|(rule, severity)| (rule.number(), severity.as_str()))
            .collect();
        let runs: Vec<_> = characteristic
            .runs
            .iter()
            .map(|(rule, number)| (rule.number(), number))
            .collect();
        let limits = characteristic.limits.as_ref();
        let chart = limits.map(|limits| limits.chart);
        let last = characteristic.last_sample.as_ref();
        CharacteristicRow {
            school_id: school.get(),
            characteristic_id: id.as_str().into(),
            name: characteristic.name.as_deref().map(Into::into),
            unit: characteristic.unit.as_deref().map(Into::into),
            status: characteristic.status().into(),
            subgroup_size: characteristic.subgroup_size.into(),
            rules: to_json(&rules).into(),
            center_line: chart.map(|chart| chart.center_line),
            ucl: chart.and_then(|chart| chart.upper()),
            lcl: chart.and_then(|chart| chart.lower()),
            limits_method: limits.map(|limits| limits.method.as_str().into()),
            limits_samples: limits.map_or(0, |limits| limits.sample_count.into()),
            limits_version: characteristic.limits_version.into(),
            baseline: characteristic
                .baseline
                .as_ref()
                .map(|baseline| to_json(baseline).into()),
            recent: to_json(&characteristic.recent).into(),
            runs: to_json(&runs).into(),
            publisher_in_control: characteristic.publisher_in_control,
            sample_count: signed(characteristic.sample_count),
            violation_count: signed(characteristic.violation_count),
            sample_id: last.map(|sample| (&*sample.sample_id).into()),
            sample_seq: last.map(|sample| signed(sample.seq)),
            sample_at: last.map(|sample| millis(sample.at)),
            sample_status: last.map(|sample| sample.status.into()),
            sample_fields: last.map(|sample| sample.fields.as_str().into()),
            limits_seq: signed(characteristic.published_limits.0),
            limits_at: millis(characteristic.published_limits.1),
            created_at: millis(characteristic.created_at),
            created_seq: signed(stored.created_seq),
            last_seq: signed(stored.last.seq),
            last_tag: tag_bits(stored.last),
            last_at: millis(stored.last_at),
            dispersion: limits
                .and_then(|limits| limits.dispersion.as_ref())
                .map(|dispersion| to_json(dispersion).into()),
        }
    }

    fn into_stored(self) -> QueryResult<(SubjectId, Stored)> {
        let rule =
            |number: u8| Rule::from_number(number).ok_or_else(|| unreadable("a rule's number"));
        let rules: Vec<(u8, String)> = from_json(&self.rules)?;
        let rules = rules.into_iter().map(|(number, severity)| {
            let severity = Severity::parse(&severity).ok_or_else(|| unreadable("a severity"))?;
            Ok((rule(number)?, severity))
        });
        let runs: Vec<(u8, u64)> = from_json(&self.runs)?;
        let runs = runs
            .into_iter()
            .map(|(number, violation)| Ok((rule(number)?, violation)));
        let count = |count: i64| count.try_into().map_err(|_| unreadable("a number"));
        let limits_version = count(self.limits_version)?;
        let chart = self.center_line.map(|center_line| ControlLimits {
            center_line,
            ucl: self.ucl.unwrap_or(f64::INFINITY),
            lcl: self.lcl.unwrap_or(f64::NEG_INFINITY),
        });
        let limits = match (chart, self.limits_method.as_deref()) {
            (Some(chart), Some(method)) => Some(Limits {
                chart,
                dispersion: self.dispersion.as_deref().map(from_json).transpose()?,
                method: Method::parse(method),
                sample_count: count(self.limits_samples)?,
                version: limits_version,
            }),
            _ => None,
        };
        let last_sample = match (
            self.sample_id,
            self.sample_seq,
            self.sample_at,
            self.sample_status,
            self.sample_fields,
        ) {
            (Some(id), Some(seq), Some(at), Some(status), Some(fields)) => Some(LastSample {
                sample_id: id.as_ref().into(),
                seq: unsigned(seq),
                at: from_millis(at)?,
                status: known_status(&status).ok_or_else(|| unreadable("a status"))?,
                fields: fields.into_owned().into(),
            }),
            _ => None,
        };
        let characteristic = Characteristic {
            name: self.name.map(|name| name.as_ref().into()),
            unit: self.unit.map(|unit| unit.as_ref().into()),
            subgroup_size: count(self.subgroup_size)?,
            rules: rules.collect::<QueryResult<_>>()?,
            limits,
            limits_version,
            baseline: self.baseline.as_deref().map(from_json).transpose()?,
            recent: from_json(&self.recent)?,
            runs: runs.collect::<QueryResult<_>>()?,
            publisher_in_control: self.publisher_in_control,
            sample_count: unsigned(self.sample_count),
            violation_count: unsigned(self.violation_count),
            last_sample,
            published_limits: (unsigned(self.limits_seq), from_millis(self.limits_at)?),
            created_at: from_millis(self.created_at)?,
        };
        let id = self
            .characteristic_id
            .parse()
            .map_err(|_| unreadable("a characteristic id"))?;
        let stored = Stored {
            state: characteristic.into(),
            created_seq: unsigned(self.created_seq),
            last: place(self.last_seq, self.last_tag),
            last_at: from_millis(self.last_at)?,
        };
        Ok((id, stored))
    }
}

/// The table of characteristics.
pub(super) struct CharacteristicsTable;

impl Table for CharacteristicsTable {
    any_table!(
        characteristics by characteristic_id as CharacteristicRow, written by UpsertCharacteristic from characteristic,
        searched in [characteristic_id, name] and values of [], category [], stalls []
    );

    fn parts(&self) -> Option<&'static dyn Parts> {
        Some(&ViolationsTable)
    }

    /// Limits, last samples and open violations.
    fn snapshot(
        &self,
        conn: &mut SqliteConnection,
        epoch: Epoch,
        selection: &Selection<'_>,
    ) -> QueryResult<Selected> {
        let mut events = Vec::new();
        let school = selection.school;
        let mut add = |id: &SubjectId, draft: Draft, (seq, at)| {
            let place = (epoch, Place::untagged(seq));
            events.push(Event::snapshot(
                place,
                school,
                characteristic::KIND,
                id.clone(),
                at,
                draft,
            ));
        };
        let range = (selection.after, selection.upto);
        let wanted = |status: &str| selection.filter.passes(status, None);
        let open = if wanted(OUT_OF_CONTROL) {
            match &selection.subjects {
                None => violations::open(conn, school, None, range, selection.limit)?,
                Some(ids) => {
                    let mut open = Vec::new();
                    for id in ids {
                        let one = violations::open(conn, school, Some(id), range, selection.limit)?;
                        open.extend(one);
                    }
                    open
                }
            }
        } else {
            Vec::new()
        };
        for violation in open {
            let draft = characteristic::violation_draft(&violation);
            let place = (violation.seq, violation.at);
            add(&violation.characteristic_id, draft, place);
        }
        if let Some(ids) = &selection.subjects {
            for id in ids {
                let stored = self.load(conn, school, id)?;
                let Some(characteristic) = stored
                    .as_ref()
                    .and_then(|stored| stored.state.characteristic())
                else {
                    continue;
                };
                add(
                    id,
                    characteristic::limits_draft(id, characteristic),
                    characteristic.published_limits,
                );
                if let Some((draft, last)) = characteristic::sample_draft(characteristic)
                    .zip(characteristic.last_sample.as_ref())
                {
                    add(id, draft, (last.seq, last.at));
                }
            }
            return Ok(selection.first_of(events, selection.upto));
        }
        // Limits and samples are read separately, each by an index in the order of the log.
        let (after, upto) = (signed(range.0), signed(range.1));
        let by_limits = || {
            characteristics::table
                .filter(characteristics::school_id.eq(school.get()))
                .filter(characteristics::limits_seq.gt(after))
                .filter(characteristics::limits_seq.le(upto))
                .order(characteristics::limits_seq)
                .into_boxed::<Sqlite>()
        };
        let by_sample = || {
            characteristics::table
                .filter(characteristics::school_id.eq(school.get()))
                .filter(characteristics::sample_seq.gt(after))
                .filter(characteristics::sample_seq.le(upto))
                .order(characteristics::sample_seq)
                .into_boxed::<Sqlite>()
        };
        let mut through = selection.upto;
        let (mut limits, mut samples) = (by_limits(), by_sample());
        if !selection.filter.statuses.is_empty() {
            let last = signed(selection.rows) - 1;
            let end = by_limits().select(characteristics::limits_seq.nullable());
            let end = end.row_after(last).get_result::<Option<i64>>(conn);
            let sample_end = by_sample().select(characteristics::sample_seq);
            let sample_end = sample_end.row_after(last).get_result::<Option<i64>>(conn);
            let ends = [end.optional()?.flatten(), sample_end.optional()?.flatten()];
            for end in ends.into_iter().flatten() {
                through = through.min(unsigned(end));
            }
            let wanted: Vec<&String> = selection.filter.statuses.iter().collect();
            limits = limits
                .filter(characteristics::limits_seq.le(signed(through)))
                .filter(characteristics::status.eq_any(wanted.clone()));
            samples = samples
                .filter(characteristics::sample_seq.le(signed(through)))
                .filter(characteristics::sample_status.eq_any(wanted));
        }
        let by_limits = limits
            .select(CharacteristicRow::as_select())
            .at_most(signed(selection.limit))
            .load::<CharacteristicRow<'_>>(conn)?;
        for row in by_limits {
            let (id, stored) = row.into_stored()?;
            if let Some(characteristic) = stored.state.characteristic() {
                add(
                    &id,
                    characteristic::limits_draft(&id, characteristic),
                    characteristic.published_limits,
                );
            }
        }
        let by_sample = samples
            .select(CharacteristicRow::as_select())
            .at_most(signed(selection.limit))
            .load::<CharacteristicRow<'_>>(conn)?;
        for row in by_sample {
            let (id, stored) = row.into_stored()?;
            let characteristic = stored.state.characteristic();
            let last = characteristic.and_then(|characteristic| {
                Some((
                    characteristic::sample_draft(characteristic)?,
                    characteristic,
                ))
            });
            if let Some((draft, characteristic)) = last
                && let Some(last) = &characteristic.last_sample
            {
                add(&id, draft, (last.seq, last.at));
            }
        }
        Ok(selection.first_of(events, through))
    }

    /// Returns the last samples: only a later sample supersedes a sample.
    fn last_events(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        subjects: &[&str],
    ) -> QueryResult<HashMap<String, LastEvent>> {
        let rows: Vec<(String, Option<i64>, Option<String>)> = characteristics::table
            .filter(characteristics::school_id.eq(school.get()))
            .filter(characteristics::characteristic_id.eq_any(subjects))
            .select((
                characteristics::characteristic_id,
                characteristics::sample_seq,
                characteristics::sample_status,
            ))
            .load(conn)?;
        let entry = |(id, seq, status): (String, Option<i64>, Option<String>)| {
            let last = LastEvent {
                seq: unsigned(seq?),
                status: status?,
                category: None,
            };
            Some((id, last))
        };
        Ok(rows.into_iter().filter_map(entry).collect())
    }
}
