//! The port [`PingKeys`].

use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel::sqlite::SqliteConnection;

use super::SqliteStore;
use crate::id::SchoolId;
use crate::log::StoreError;
use crate::log::pings::{KeyDigest, PingKey, PingKeyId, PingKeys};
use crate::store::columns::millis;
use crate::store::numbers::signed;
use crate::store::ping_keys::{Row, columns};

fn list(conn: &mut SqliteConnection, school: SchoolId) -> QueryResult<Vec<PingKey>> {
    let rows: Vec<Row> = diesel::sql_query(concat!(
        "SELECT ",
        columns!(),
        " FROM ping_keys WHERE school_id = ? ORDER BY created_at DESC, key_id"
    ))
    .bind::<BigInt, _>(school.get())
    .load(conn)?;
    rows.into_iter().map(Row::into_key).collect()
}

impl SqliteStore {
    /// Returns the schools that have keys.
    #[cfg(feature = "postgres")]
    pub(in crate::store) async fn schools_with_ping_keys(
        &self,
    ) -> Result<Vec<SchoolId>, StoreError> {
        #[derive(QueryableByName)]
        struct School {
            #[diesel(sql_type = BigInt)]
            school_id: i64,
        }
        self.read_for_server(|conn| {
            let schools: Vec<School> =
                diesel::sql_query("SELECT DISTINCT school_id FROM ping_keys ORDER BY school_id")
                    .load(conn)?;
            let school = |row: School| row.school_id.try_into();
            let schools: Result<Vec<_>, _> = schools.into_iter().map(school).collect();
            schools.map_err(|_| super::table::unreadable("a school id"))
        })
        .await
    }
}

#[async_trait]
impl PingKeys for SqliteStore {
    async fn add_ping_key(
        &self,
        school: SchoolId,
        key: PingKey,
        limit: u64,
    ) -> Result<bool, StoreError> {
        self.aside_durably(move |conn| {
            let added = diesel::sql_query(
                "INSERT INTO ping_keys \
                 (school_id, key_id, digest, job_type, numbers, created_at, created_by, run) \
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 \
                 WHERE (SELECT count(*) FROM ping_keys WHERE school_id = ?1) < ?9",
            )
            .bind::<BigInt, _>(school.get())
            .bind::<Text, _>(key.id.as_str())
            .bind::<Text, _>(key.digest.as_str())
            .bind::<Text, _>(key.job_type.as_str())
            .bind::<Text, _>(key.numbers.as_str())
            .bind::<BigInt, _>(millis(key.created_at))
            .bind::<Text, _>(&key.created_by)
            .bind::<BigInt, _>(signed(key.run))
            .bind::<BigInt, _>(signed(limit))
            .execute(conn)?;
            Ok(added > 0)
        })
        .await
    }

    async fn ping_keys(&self, school: SchoolId) -> Result<Vec<PingKey>, StoreError> {
        self.read(school, move |conn| list(conn, school)).await
    }

    async fn ping_key(
        &self,
        school: SchoolId,
        digest: KeyDigest,
    ) -> Result<Option<PingKey>, StoreError> {
        self.read(school, move |conn| {
            let row: Option<Row> = diesel::sql_query(concat!(
                "SELECT ",
                columns!(),
                " FROM ping_keys WHERE school_id = ? AND digest = ?"
            ))
            .bind::<BigInt, _>(school.get())
            .bind::<Text, _>(digest.as_str())
            .get_result(conn)
            .optional()?;
            row.map(Row::into_key).transpose()
        })
        .await
    }

    async fn remove_ping_key(&self, school: SchoolId, id: PingKeyId) -> Result<bool, StoreError> {
        self.aside_durably(move |conn| {
            let removed =
                diesel::sql_query("DELETE FROM ping_keys WHERE school_id = ? AND key_id = ?")
                    .bind::<BigInt, _>(school.get())
                    .bind::<Text, _>(id.as_str())
                    .execute(conn)?;
            Ok(removed > 0)
        })
        .await
    }

    async fn begin_ping_run(
        &self,
        school: SchoolId,
        id: PingKeyId,
        run: u64,
    ) -> Result<bool, StoreError> {
        self.aside(move |conn| {
            let begun = diesel::sql_query(
                "UPDATE ping_keys SET run = run + 1 WHERE school_id = ? AND key_id = ? AND run = ?",
            )
            .bind::<BigInt, _>(school.get())
            .bind::<Text, _>(id.as_str())
            .bind::<BigInt, _>(signed(run))
            .execute(conn)?;
            Ok(begun > 0)
        })
        .await
    }
}
