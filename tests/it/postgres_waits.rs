//! Which commits wait for the disk on Postgres. The WAL writer is frozen, so that only commits that wait write the log to disk.

use serde_json::json;
use tokio_postgres::NoTls;

use crate::support::postgres::{self, Cluster};
use crate::support::process;
use crate::support::{Server, server_with, skip};

/// Nothing else writes the log to disk during the test.
const SETTINGS: [&str; 3] = [
    "autovacuum=off",
    "bgwriter_lru_maxpages=0",
    "checkpoint_timeout=1h",
];

struct Disk(tokio_postgres::Client);

impl Disk {
    async fn of(url: &str) -> Disk {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        Disk(client)
    }

    /// Returns how much of the log is on disk, in bytes.
    async fn bytes(&self) -> i64 {
        let sql = "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint";
        self.0.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn wal_writer(&self) -> u32 {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";
        let pid: i32 = self.0.query_one(sql, &[]).await.unwrap().get(0);
        pid.try_into().unwrap()
    }
}

/// Reports progress of the job at alternating nodes, so that each must first read what the other has written.
async fn report_in_turns(nodes: &[Server; 2], percents: std::ops::Range<u32>) {
    for percent in percents {
        let node = &nodes[usize::from(percent % 2 == 0)];
        node.report("/api/jobs/a/progress", json!({"progress": percent}))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_commit_with_a_milestone_waits_for_the_disk_even_if_another_node_was_faster() {
    let Some(bin) = postgres::programs() else {
        skip("PostgreSQL");
        return;
    };
    let cluster = Cluster::start(&bin, &SETTINGS);
    let database = cluster.database();
    let settings = json!({"database_url": database.url, "synchronous": "milestone"});
    let nodes = [
        server_with(settings.clone()).await,
        server_with(settings).await,
    ];
    nodes[0].running_job("a").await;
    // Both nodes have opened their connections.
    report_in_turns(&nodes, 1..5).await;
    let disk = Disk::of(&database.url_of_superuser()).await;
    let wal_writer = disk.wal_writer().await;
    process::send(wal_writer, "STOP");
    let before = disk.bytes().await;
    report_in_turns(&nodes, 5..45).await;
    assert_eq!(disk.bytes().await, before, "a tick waited for the disk");
    nodes[1].report("/api/jobs/a/complete", json!({})).await;
    assert!(disk.bytes().await > before, "a milestone did not wait");
    process::send(wal_writer, "CONT");
}
