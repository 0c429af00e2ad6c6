//! The `violations` table: violations of characteristics, and who acknowledged them.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::bounds::bounds;
use super::counts::count_of;
use super::limit::Limit;
use super::parts::Parts;
use super::schema::{schools, violations};
use super::table::{from_millis, millis, unreadable};
use super::upsert::upsert;
use crate::id::{SchoolId, SubjectId};
use crate::kind::Part;
use crate::kind::characteristic::dispersion::Chart;
use crate::kind::characteristic::{Acknowledgement, Severity, Violation};
use crate::log::{PartPage, PartQuery};
use crate::store::numbers::{signed, unsigned};

#[derive(Queryable, Selectable)]
#[diesel(table_name = violations)]
#[diesel(check_for_backend(Sqlite))]
pub(super) struct ViolationRow<'a> {
    school_id: i64,
    characteristic_id: Cow<'a, str>,
    number: i64,
    own_id: Option<Cow<'a, str>>,
    sample_id: Option<Cow<'a, str>>,
    rule_id: i64,
    rule_name: Cow<'a, str>,
    severity: Cow<'a, str>,
    at: i64,
    seq: i64,
    ack_user: Option<Cow<'a, str>>,
    ack_reason: Option<Cow<'a, str>>,
    ack_at: Option<i64>,
    chart: Option<Cow<'a, str>>,
}

upsert! {
    /// Writes a violation's row, new or not.
    UpsertViolation<'a>(ViolationRow<'a>) into "violations"
    by (school_id: BigInt, characteristic_id: Text, number: BigInt)
    once (
        own_id: Nullable<Text>, sample_id: Nullable<Text>, rule_id: BigInt, rule_name: Text, severity: Text, at: BigInt, seq: BigInt,
        chart: Nullable<Text>
    )
    set (ack_user: Nullable<Text>, ack_reason: Nullable<Text>, ack_at: Nullable<BigInt>)
}

impl<'a> ViolationRow<'a> {
    fn new(school: SchoolId, violation: &'a Violation) -> ViolationRow<'a> {
        let acknowledgement = violation.acknowledgement.as_ref();
        ViolationRow {
            school_id: school.get(),
            characteristic_id: violation.characteristic_id.as_str().into(),
            number: signed(violation.number),
            own_id: violation.own_id.as_deref().map(Into::into),
            sample_id: violation.sample_id.as_deref().map(Into::into),
            rule_id: violation.rule_id.into(),
            rule_name: (&*violation.rule_name).into(),
            severity: violation.severity.as_str().into(),
            at: millis(violation.at),
            seq: signed(violation.seq),
            ack_user: acknowledgement.map(|ack| (&*ack.user).into()),
            ack_reason: acknowledgement.map(|ack| (&*ack.reason).into()),
            ack_at: acknowledgement.map(|ack| millis(ack.at)),
            chart: violation.chart.map(|chart| chart.as_str().into()),
        }
    }

    fn into_part(self) -> QueryResult<Part> {
        self.into_violation().map(Part::Characteristic)
    }

    fn into_violation(self) -> QueryResult<Violation> {
        let acknowledgement = match (self.ack_user, self.ack_reason, self.ack_at) {
            (Some(user), Some(reason), Some(at)) => Some(Acknowledgement {
                user: user.as_ref().into(),
                reason: reason.as_ref().into(),
                at: from_millis(at)?,
            }),
            _ => None,
        };
        Ok(Violation {
            characteristic_id: self
                .characteristic_id
                .parse()
                .map_err(|_| unreadable("a characteristic id"))?,
            number: unsigned(self.number),
            own_id: self.own_id.map(|id| id.as_ref().into()),
            sample_id: self.sample_id.map(|id| id.as_ref().into()),
            chart: match self.chart {
                Some(name) => Some(Chart::parse(&name).ok_or_else(|| unreadable("a chart"))?),
                None => None,
            },
            rule_id: self
                .rule_id
                .try_into()
                .map_err(|_| unreadable("a rule's number"))?,
            rule_name: self.rule_name.as_ref().into(),
            severity: Severity::parse(&self.severity).ok_or_else(|| unreadable("a severity"))?,
            at: from_millis(self.at)?,
            seq: unsigned(self.seq),
            acknowledgement,
        })
    }
}

/// The table of violations.
pub(super) struct ViolationsTable;

impl Parts for ViolationsTable {
    fn find(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        characteristic: &SubjectId,
        number: u64,
    ) -> QueryResult<Option<Part>> {
        let Ok(number) = i64::try_from(number) else {
            return Ok(None);
        };
        let row: Option<ViolationRow<'_>> = violations::table
            .find((school.get(), characteristic.as_str(), number))
            .select(ViolationRow::as_select())
            .get_result(conn)
            .optional()?;
        row.map(ViolationRow::into_part).transpose()
    }

    fn has(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        own_id: &str,
    ) -> QueryResult<bool> {
        let number: Option<i64> = violations::table
            .filter(violations::school_id.eq(school.get()))
            .filter(violations::own_id.eq(own_id))
            .select(violations::number)
            .get_result(conn)
            .optional()?;
        Ok(number.is_some())
    }

    fn write(&self, conn: &mut SqliteConnection, school: SchoolId, part: &Part) -> QueryResult<()> {
        let violation = part.characteristic();
        let violation = violation.ok_or_else(|| unreadable("a part of another kind"))?;
        UpsertViolation(&ViolationRow::new(school, violation))
            .execute(conn)
            .map(|_| ())
    }

    fn list(
        &self,
        conn: &mut SqliteConnection,
        school: SchoolId,
        query: &PartQuery,
    ) -> QueryResult<PartPage> {
        let head = bounds(conn, school)?.head;
        let mut select = violations::table
            .filter(violations::school_id.eq(school.get()))
            .order(violations::seq.desc())
            .select(ViolationRow::as_select())
            .into_boxed();
        if let Some(characteristic) = &query.subject {
            select = select.filter(violations::characteristic_id.eq(characteristic.as_str()));
        }
        if let Some(own_id) = &query.own_id {
            select = select.filter(violations::own_id.eq(own_id));
        }
        match query.open {
            Some(false) => select = select.filter(violations::ack_at.is_not_null()),
            Some(true) => select = select.filter(violations::ack_at.is_null()),
            None => {}
        }
        if let Some(before) = query.before {
            select = select.filter(violations::seq.lt(signed(before)));
        }
        let select = select.at_most(signed(query.limit) + 1);
        let mut rows = select.load::<ViolationRow<'_>>(conn)?;
        let more = rows.len() > query.limit;
        rows.truncate(query.limit);
        let next = rows.last().map(|row| unsigned(row.seq)).filter(|_| more);
        let parts = rows.into_iter().map(ViolationRow::into_part);
        Ok(PartPage {
            parts: parts.collect::<QueryResult<_>>()?,
            next,
            head,
        })
    }

    /// Returns how many violations nobody has acknowledged.
    fn open(&self, conn: &mut SqliteConnection, school: SchoolId) -> QueryResult<u64> {
        count_of(conn, school, "open violations")
    }

    /// Keeps violations that nobody has acknowledged, because they still need attention.
    fn sweep(
        &self,
        conn: &mut SqliteConnection,
        before: DateTime<Utc>,
        limit: usize,
    ) -> QueryResult<usize> {
        let gone: Vec<(i64, String, i64)> = violations::table
            .inner_join(schools::table.on(schools::school_id.eq(violations::school_id)))
            .filter(violations::ack_at.lt(millis(before)))
            .filter(violations::seq.le(schools::floor))
            .select((
                violations::school_id,
                violations::characteristic_id,
                violations::number,
            ))
            .at_most(signed(limit))
            .load(conn)?;
        for (school, characteristic, number) in &gone {
            diesel::delete(violations::table.find((school, characteristic, number)))
                .execute(conn)?;
        }
        Ok(gone.len())
    }
}

/// Returns open violations of one characteristic or of all, in the order of their events.
pub(super) fn open(
    conn: &mut SqliteConnection,
    school: SchoolId,
    characteristic: Option<&SubjectId>,
    (after, upto): (u64, u64),
    limit: usize,
) -> QueryResult<Vec<Violation>> {
    let mut query = violations::table
        .filter(violations::school_id.eq(school.get()))
        .filter(violations::ack_at.is_null())
        .filter(violations::seq.gt(signed(after)))
        .filter(violations::seq.le(signed(upto)))
        .order(violations::seq)
        .select(ViolationRow::as_select())
        .into_boxed();
    if let Some(characteristic) = characteristic {
        query = query.filter(violations::characteristic_id.eq(characteristic.as_str()));
    }
    let query = query.at_most(signed(limit));
    let rows = query.load::<ViolationRow<'_>>(conn)?;
    rows.into_iter().map(ViolationRow::into_violation).collect()
}

diesel::allow_tables_to_appear_in_same_query!(violations, schools);
