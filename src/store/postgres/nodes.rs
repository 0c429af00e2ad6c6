//! The ports [`Nodes`] and [`Heartbeats`]: what nodes exchange in addition to the log.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::DateTime;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::lookup::join_by_key;
use super::{PostgresStore, rows};
use crate::id::{SchoolId, SubjectId};
use crate::kind::State;
use crate::kind::device::{self, Heard};
use crate::log::StoreError;
use crate::log::heartbeats::{Heartbeat, Heartbeats, LastHeartbeats, Shared};
use crate::log::nodes::{Node, NodeId, NodeReport, Nodes};
use crate::store::columns::{from_millis, millis, unreadable, uptime, uptime_millis};
use crate::store::numbers::{signed, unsigned};
use crate::uptime::Uptime;

#[derive(QueryableByName)]
struct NodeRow {
    #[diesel(sql_type = Text)]
    report: String,
    #[diesel(sql_type = BigInt)]
    since: i64,
    #[diesel(sql_type = BigInt)]
    seen_at: i64,
    #[diesel(sql_type = BigInt)]
    silent: i64,
}

impl NodeRow {
    fn into_node(self) -> QueryResult<Node> {
        let time =
            |millis| DateTime::from_timestamp_millis(millis).ok_or_else(|| unreadable("a time"));
        Ok(Node {
            report: serde_json::from_str(&self.report)
                .map_err(|_| unreadable("a report of a node"))?,
            since: time(self.since)?,
            seen_at: time(self.seen_at)?,
            silent: Duration::from_millis(unsigned(self.silent)),
        })
    }
}

async fn exchange_reports(
    conn: &mut AsyncPgConnection,
    report: &NodeReport,
    forget_after: Duration,
) -> QueryResult<Vec<Node>> {
    let json = serde_json::to_string(report).expect("a report is JSON");
    diesel::sql_query(
        "INSERT INTO nodes (node_id, report, since, seen_at) VALUES ($1, $2, clock_timestamp(), clock_timestamp()) \
         ON CONFLICT (node_id) DO UPDATE SET report = excluded.report, seen_at = excluded.seen_at",
    )
    .bind::<Text, _>(report.id.as_str())
    .bind::<Text, _>(json)
    .execute(conn)
    .await?;
    diesel::sql_query(
        "DELETE FROM nodes WHERE seen_at < clock_timestamp() - $1 * interval '1 millisecond' AND node_id <> $2",
    )
    .bind::<BigInt, _>(signed(forget_after.as_millis()))
    .bind::<Text, _>(report.id.as_str())
    .execute(conn)
    .await?;
    let found: Vec<NodeRow> = diesel::sql_query(
        "SELECT report, floor(extract(epoch FROM since) * 1000)::bigint AS since, \
         floor(extract(epoch FROM seen_at) * 1000)::bigint AS seen_at, \
         GREATEST(floor(extract(epoch FROM clock_timestamp() - seen_at) * 1000), 0)::bigint AS silent \
         FROM nodes ORDER BY nodes.since, node_id",
    )
    .load(conn)
    .await?;
    // Leaves out reports that cannot be parsed: a node of another version may report differently.
    let readable = found.into_iter().filter_map(|row| row.into_node().ok());
    Ok(readable.collect())
}

#[async_trait]
impl Nodes for PostgresStore {
    async fn node_heartbeat(
        &self,
        report: NodeReport,
        forget_after: Duration,
    ) -> Result<Vec<Node>, StoreError> {
        let mut write = self.write().await?;
        let nodes = exchange_reports(&mut write, &report, forget_after).await;
        write.end(nodes).await
    }

    async fn node_leaves(&self, id: &NodeId) -> Result<(), StoreError> {
        let mut write = self.write().await?;
        let left = diesel::sql_query("DELETE FROM nodes WHERE node_id = $1")
            .bind::<Text, _>(id.as_str())
            .execute(&mut *write)
            .await;
        write.end(left).await.map(drop)
    }
}

#[derive(QueryableByName)]
struct BeatRow {
    #[diesel(sql_type = BigInt)]
    school_id: i64,
    #[diesel(sql_type = Text)]
    device_id: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_uptime: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    before_uptime: Option<i64>,
}

impl BeatRow {
    fn into_shared(self) -> QueryResult<((SchoolId, SubjectId), Shared)> {
        let state = State::from_json(device::KIND, &self.state);
        let Ok(State::Device(device)) = state else {
            return Err(unreadable("a device"));
        };
        let heard = match self.last_uptime.zip(self.last_at) {
            Some((last, at)) => Some(LastHeartbeats {
                last: Heard {
                    at: from_millis(at)?,
                    uptime: uptime(last)?,
                },
                before: self.before_uptime.map(uptime).transpose()?,
            }),
            None => None,
        };
        let address = (
            rows::school(self.school_id)?,
            rows::subject(&self.device_id)?,
        );
        Ok((address, Shared::new(&device, heard)))
    }
}

/// Returns what is known about devices, in the same order.
async fn shared(
    conn: &mut AsyncPgConnection,
    devices: &[(SchoolId, SubjectId)],
) -> QueryResult<Vec<Option<Shared>>> {
    let (schools, ids): (Vec<i64>, Vec<&str>) = devices
        .iter()
        .map(|(school, id)| (school.get(), id.as_str()))
        .unzip();
    let found: Vec<BeatRow> = diesel::sql_query(
        concat!(
            "SELECT s.school_id, s.subject_id AS device_id, s.state, b.last_uptime, b.last_at, b.before_uptime \
             FROM unnest($1::bigint[], $2::text[]) AS w (school_id, device_id)",
            join_by_key!("subjects", "school_id, kind, subject_id" = "w.school_id, $3, w.device_id", "s"),
            "LEFT JOIN beats AS b ON b.school_id = w.school_id AND b.device_id = w.device_id",
        ),
    )
    .bind::<Array<BigInt>, _>(schools)
    .bind::<Array<Text>, _>(ids)
    .bind::<Text, _>(device::KIND.collection())
    .load(conn)
    .await?;
    let found = found.into_iter().map(BeatRow::into_shared);
    let found: HashMap<_, _> = found.collect::<QueryResult<_>>()?;
    Ok(devices
        .iter()
        .map(|device| found.get(device).cloned())
        .collect())
}

/// Merges heartbeats, as [`LastHeartbeats::merged`] does. All nodes lock the rows in the same order, to avoid deadlocks.
const MERGE: &str = concat!(
    "
INSERT INTO beats (school_id, device_id, last_uptime, last_at, before_uptime)
SELECT w.school_id, w.device_id, w.last_uptime, w.last_at, w.before_uptime
FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
    AS w (school_id, device_id, last_uptime, last_at, before_uptime)",
    join_by_key!("subjects", "school_id, kind, subject_id" = "w.school_id, $6, w.device_id", "s"),
    "
ORDER BY w.school_id, w.device_id
ON CONFLICT (school_id, device_id) DO UPDATE SET
    last_uptime = GREATEST(beats.last_uptime, excluded.last_uptime),
    last_at = CASE WHEN excluded.last_uptime >= beats.last_uptime THEN excluded.last_at ELSE beats.last_at END,
    before_uptime = GREATEST(beats.before_uptime, excluded.before_uptime,
        CASE WHEN beats.last_uptime <> excluded.last_uptime THEN LEAST(beats.last_uptime, excluded.last_uptime) END)",
);

#[async_trait]
impl Heartbeats for PostgresStore {
    async fn save_heartbeats(
        &self,
        heartbeats: Vec<Heartbeat>,
    ) -> Result<Vec<Option<Shared>>, StoreError> {
        let mut write = self.write().await?;
        macro_rules! column {
            ($heartbeat:ident => $value:expr) => {
                heartbeats
                    .iter()
                    .map(|$heartbeat| $value)
                    .collect::<Vec<_>>()
            };
        }
        let saved = async {
            diesel::sql_query(MERGE)
                .bind::<Array<BigInt>, _>(column!(heartbeat => heartbeat.school.get()))
                .bind::<Array<Text>, _>(column!(heartbeat => heartbeat.device.as_str()))
                .bind::<Array<BigInt>, _>(
                    column!(heartbeat => uptime_millis(heartbeat.heard.last.uptime)),
                )
                .bind::<Array<BigInt>, _>(column!(heartbeat => millis(heartbeat.heard.last.at)))
                .bind::<Array<Nullable<BigInt>>, _>(
                    column!(heartbeat => heartbeat.heard.before.map(uptime_millis)),
                )
                .bind::<Text, _>(device::KIND.collection())
                .execute(&mut *write)
                .await?;
            let devices = column!(heartbeat => (heartbeat.school, heartbeat.device.clone()));
            shared(&mut write, &devices).await
        };
        let saved = saved.await;
        write.end(saved).await
    }

    async fn heartbeats_of(
        &self,
        devices: Vec<(SchoolId, SubjectId)>,
    ) -> Result<Vec<Option<Shared>>, StoreError> {
        let mut read = self.read_for_server().await?;
        let found = shared(&mut read, &devices).await;
        read.end(found).await
    }

    async fn forget_heartbeats(&self, before: Uptime) -> Result<(), StoreError> {
        let mut write = self.write().await?;
        let forgotten = diesel::sql_query("DELETE FROM beats WHERE last_uptime < $1")
            .bind::<BigInt, _>(uptime_millis(before))
            .execute(&mut *write)
            .await;
        write.end(forgotten).await.map(drop)
    }
}
