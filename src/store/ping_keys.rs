//! Rows of `ping_keys`, the same for every database.

use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use super::columns::{from_millis, unreadable};
use super::numbers::unsigned;
use crate::log::pings::{KeyDigest, Numbers, PingKey};

/// The columns of [`Row`].
macro_rules! columns {
    () => {
        "key_id, digest, job_type, numbers, created_at, created_by, run"
    };
}
pub(in crate::store) use columns;

/// A key, as it is read.
#[derive(QueryableByName)]
pub(in crate::store) struct Row {
    #[diesel(sql_type = Text)]
    key_id: String,
    #[diesel(sql_type = Text)]
    digest: String,
    #[diesel(sql_type = Text)]
    job_type: String,
    #[diesel(sql_type = Text)]
    numbers: String,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Text)]
    created_by: String,
    #[diesel(sql_type = BigInt)]
    run: i64,
}

impl Row {
    pub(in crate::store) fn into_key(self) -> QueryResult<PingKey> {
        Ok(PingKey {
            id: self
                .key_id
                .parse()
                .map_err(|_| unreadable("the id of a ping key"))?,
            digest: KeyDigest::stored(self.digest),
            job_type: self
                .job_type
                .parse()
                .map_err(|_| unreadable("the job type of a ping key"))?,
            numbers: Numbers::parse(&self.numbers)
                .ok_or_else(|| unreadable("the meaning of a number"))?,
            created_at: from_millis(self.created_at)?,
            created_by: self.created_by,
            run: unsigned(self.run),
        })
    }
}
