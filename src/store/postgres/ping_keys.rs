//! The port [`PingKeys`].

use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::PostgresStore;
use crate::id::SchoolId;
use crate::log::StoreError;
use crate::log::pings::{KeyDigest, PingKey, PingKeyId, PingKeys};
use crate::store::columns::millis;
use crate::store::numbers::signed;
use crate::store::ping_keys::{Row, columns};
use crate::store::turns::{Length, Requester};

/// A new or revoked key must survive a crash of the database's machine, unlike other small writes.
const DURABLY: &str = "SET LOCAL synchronous_commit = on";

/// Inserts a key, unless the school already has `limit` of them.
pub(super) async fn insert(
    conn: &mut AsyncPgConnection,
    school: SchoolId,
    key: &PingKey,
    limit: u64,
) -> QueryResult<bool> {
    // If two nodes add the last key at the same time, one waits here for the other and then counts again. A school without keys
    // has no row that could be locked.
    diesel::sql_query("SELECT pg_advisory_xact_lock(hashtextextended('tidings ping_keys', $1))")
        .bind::<BigInt, _>(school.get())
        .execute(conn)
        .await?;
    let added = diesel::sql_query(
        "INSERT INTO ping_keys \
         (school_id, key_id, digest, job_type, numbers, created_at, created_by, run) \
         SELECT $1, $2, $3, $4, $5, $6, $7, $8 \
         WHERE (SELECT count(*) FROM ping_keys WHERE school_id = $1) < $9",
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
    .execute(conn)
    .await?;
    Ok(added > 0)
}

#[async_trait]
impl PingKeys for PostgresStore {
    async fn add_ping_key(
        &self,
        school: SchoolId,
        key: PingKey,
        limit: u64,
    ) -> Result<bool, StoreError> {
        let mut write = self.write().await?;
        let added = async {
            write.batch_execute(DURABLY).await?;
            insert(&mut write, school, &key, limit).await
        };
        let added = added.await;
        write.end(added).await
    }

    async fn ping_keys(&self, school: SchoolId) -> Result<Vec<PingKey>, StoreError> {
        let requester = Requester::Requests(school);
        let mut read = self.readers.begin(requester, Length::Short).await?;
        let rows: QueryResult<Vec<Row>> = diesel::sql_query(concat!(
            "SELECT ",
            columns!(),
            " FROM ping_keys WHERE school_id = $1 ORDER BY created_at DESC, key_id"
        ))
        .bind::<BigInt, _>(school.get())
        .load(&mut *read)
        .await;
        let keys = rows.and_then(|rows| rows.into_iter().map(Row::into_key).collect());
        read.end(keys).await
    }

    async fn ping_key(
        &self,
        school: SchoolId,
        digest: KeyDigest,
    ) -> Result<Option<PingKey>, StoreError> {
        let requester = Requester::Requests(school);
        let mut read = self.readers.begin(requester, Length::Short).await?;
        let row: QueryResult<Option<Row>> = diesel::sql_query(concat!(
            "SELECT ",
            columns!(),
            " FROM ping_keys WHERE school_id = $1 AND digest = $2"
        ))
        .bind::<BigInt, _>(school.get())
        .bind::<Text, _>(digest.as_str())
        .get_result(&mut *read)
        .await
        .optional();
        let key = row.and_then(|row| row.map(Row::into_key).transpose());
        read.end(key).await
    }

    async fn remove_ping_key(&self, school: SchoolId, id: PingKeyId) -> Result<bool, StoreError> {
        let mut write = self.write().await?;
        let removed = async {
            write.batch_execute(DURABLY).await?;
            diesel::sql_query("DELETE FROM ping_keys WHERE school_id = $1 AND key_id = $2")
                .bind::<BigInt, _>(school.get())
                .bind::<Text, _>(id.as_str())
                .execute(&mut *write)
                .await
        };
        let removed = removed.await;
        write.end(removed).await.map(|removed| removed > 0)
    }

    async fn begin_ping_run(
        &self,
        school: SchoolId,
        id: PingKeyId,
        run: u64,
    ) -> Result<bool, StoreError> {
        let mut write = self.write().await?;
        let begun = diesel::sql_query(
            "UPDATE ping_keys SET run = run + 1 WHERE school_id = $1 AND key_id = $2 AND run = $3",
        )
        .bind::<BigInt, _>(school.get())
        .bind::<Text, _>(id.as_str())
        .bind::<BigInt, _>(signed(run))
        .execute(&mut *write)
        .await;
        write.end(begun).await.map(|begun| begun > 0)
    }
}
