//! The `parcels` table.

use std::borrow::Cow;
use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::schema::schools;
use super::table::{
    Selection, Table, any_table, from_millis, millis, place, table_of_what_ends, tag_bits,
    unreadable,
};
use super::upsert::upsert;
use crate::id::{Epoch, SchoolId, SubjectId};
use crate::kind::parcel::{DELIVERED, KIND, Parcel};
use crate::log::LastEvent;
use crate::log::facts::{Address, Stored};
use crate::store::numbers::{signed, unsigned};

diesel::table! {
    parcels (school_id, parcel_id) {
        school_id -> BigInt,
        parcel_id -> Text,
        recipient -> Text,
        status -> Text,
        created_at -> BigInt,
        finished_at -> Nullable<BigInt>,
        created_seq -> BigInt,
        last_seq -> BigInt,
        last_tag -> Nullable<BigInt>,
        last_at -> BigInt,
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = parcels)]
#[diesel(check_for_backend(Sqlite))]
pub(super) struct ParcelRow<'a> {
    school_id: i64,
    parcel_id: Cow<'a, str>,
    recipient: Cow<'a, str>,
    status: Cow<'a, str>,
    created_at: i64,
    finished_at: Option<i64>,
    created_seq: i64,
    last_seq: i64,
    last_tag: Option<i64>,
    last_at: i64,
}

upsert! {
    /// Writes a parcel's row, new or not.
    UpsertParcel<'a>(ParcelRow<'a>) into "parcels"
    by (school_id: BigInt, parcel_id: Text)
    once (recipient: Text, created_at: BigInt, created_seq: BigInt)
    set (status: Text, finished_at: Nullable<BigInt>, last_seq: BigInt, last_tag: Nullable<BigInt>, last_at: BigInt)
}

impl<'a> ParcelRow<'a> {
    fn new(
        school: SchoolId,
        id: &'a SubjectId,
        parcel: &'a Parcel,
        stored: &'a Stored,
    ) -> ParcelRow<'a> {
        ParcelRow {
            school_id: school.get(),
            parcel_id: id.as_str().into(),
            recipient: (&*parcel.recipient).into(),
            status: parcel.status().into(),
            created_at: millis(parcel.created_at),
            finished_at: parcel.finished_at.map(millis),
            created_seq: stored.created_seq as i64,
            last_seq: stored.last.seq as i64,
            last_tag: tag_bits(stored.last),
            last_at: millis(stored.last_at),
        }
    }

    fn into_stored(self) -> QueryResult<(SubjectId, Stored)> {
        let id = self.parcel_id.parse().map_err(|_| unreadable("an id"))?;
        let parcel = Parcel {
            recipient: self.recipient.as_ref().into(),
            created_at: from_millis(self.created_at)?,
            finished_at: self.finished_at.map(from_millis).transpose()?,
        };
        let stored = Stored {
            state: parcel.into(),
            created_seq: self.created_seq as u64,
            last: place(self.last_seq, self.last_tag),
            last_at: from_millis(self.last_at)?,
        };
        Ok((id, stored))
    }
}

/// Parcels, as the store sees any kind.
pub(super) struct ParcelsTable;

impl Table for ParcelsTable {
    any_table!(
        parcels by parcel_id as ParcelRow, written by UpsertParcel from parcel,
        searched in [parcel_id, recipient] and values of [], category [], stalls []
    );
    table_of_what_ends!(
        parcels by parcel_id as ParcelRow, kind KIND, category [],
        ends with [DELIVERED]
    );
}

diesel::allow_tables_to_appear_in_same_query!(parcels, schools);
