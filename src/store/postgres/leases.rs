//! The port [`Leases`]: one row per lease, whose end is compared with the database's clock.
//!
//! A fence is the time of that clock in microseconds. A counter would not be safe: a crash of the database, or a failover,
//! can lose the record that a number was assigned, and the next holder would get the same number. While the clock is
//! behind the last fence, a random increment prevents this.

use std::time::Duration;

use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;

use super::PostgresStore;
use crate::log::StoreError;
use crate::log::leases::{Fence, Leases};
use crate::store::numbers::{signed, unsigned};

#[derive(QueryableByName)]
struct Granted {
    #[diesel(sql_type = BigInt)]
    fence: i64,
}

fn millis(term: Duration) -> i64 {
    signed(term.as_millis())
}

#[async_trait]
impl Leases for PostgresStore {
    async fn acquire(&self, name: &str, term: Duration) -> Result<Option<Fence>, StoreError> {
        let mut write = self.write().await?;
        let granted = diesel::sql_query(
            "INSERT INTO leases (name, fence, ends_at) \
             VALUES ($1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, \
                     clock_timestamp() + $2 * interval '1 millisecond') \
             ON CONFLICT (name) DO UPDATE SET fence = GREATEST(excluded.fence, leases.fence + 1 + (random() * 1000000)::bigint), ends_at = excluded.ends_at \
             WHERE leases.ends_at <= clock_timestamp() RETURNING fence",
        )
        .bind::<Text, _>(name)
        .bind::<BigInt, _>(millis(term))
        .load::<Granted>(&mut *write)
        .await;
        let granted = write.end(granted).await?;
        Ok(granted
            .into_iter()
            .next()
            .map(|row| Fence(unsigned(row.fence))))
    }

    async fn renew(&self, name: &str, fence: Fence, term: Duration) -> Result<bool, StoreError> {
        let mut write = self.write().await?;
        let renewed = diesel::sql_query(
            "UPDATE leases SET ends_at = clock_timestamp() + $3 * interval '1 millisecond' \
             WHERE name = $1 AND fence = $2 AND ends_at > clock_timestamp()",
        )
        .bind::<Text, _>(name)
        .bind::<BigInt, _>(signed(fence.0))
        .bind::<BigInt, _>(millis(term))
        .execute(&mut *write)
        .await;
        Ok(write.end(renewed).await? > 0)
    }

    async fn release(&self, name: &str, fence: Fence) -> Result<(), StoreError> {
        let mut write = self.write().await?;
        let released = diesel::sql_query(
            "UPDATE leases SET ends_at = '-infinity' WHERE name = $1 AND fence = $2",
        )
        .bind::<Text, _>(name)
        .bind::<BigInt, _>(signed(fence.0))
        .execute(&mut *write)
        .await;
        write.end(released).await.map(drop)
    }
}
