//! What Postgres reads while its tables have no statistics, as in the first minute of an installation.

use serde_json::{Value, json};
use tokio_postgres::NoTls;

use crate::support::postgres::{self, Cluster};
use crate::support::{server_with, skip, until, worker};

const JOBS: usize = 2_000;
/// How many jobs are reported on, each with an idempotency key.
const REPORTS: usize = 200;
/// Well below what is read if each look-up reads all rows of the school.
const MAX_ROWS_READ: i64 = (JOBS * REPORTS / 10) as i64;

fn lines(commands: impl Iterator<Item = Value>) -> String {
    commands.map(|command| format!("{command}\n")).collect()
}

fn report(number: usize, progress: u32) -> Value {
    json!({
        "op": "jobs.progress", "job_id": format!("j{number}"), "progress": progress,
        "idempotency_key": format!("{number}-{progress}"),
    })
}

/// Returns how often a table's indexes were searched, and how many of its rows and index entries were read.
async fn reads(client: &tokio_postgres::Client, table: &str) -> (i64, i64) {
    let sql = "SELECT idx_scan, (seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = $1))::bigint
        FROM pg_stat_user_tables WHERE relname = $1";
    let row = client.query_one(sql, &[&table]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn subjects_and_keys_are_looked_up_by_their_key_before_there_are_statistics() {
    let Some(bin) = postgres::programs() else {
        skip("PostgreSQL");
        return;
    };
    let cluster = Cluster::start(&bin, &["autovacuum=off"]);
    let database = cluster.database();
    let settings = json!({"database_url": database.url});
    let create = |number| json!({"op": "jobs.create", "job_id": format!("j{number}"), "job_type": "scan", "status": "in_progress"});
    let first = server_with(settings.clone()).await;
    first.batch(&worker(1), lines((0..JOBS).map(create))).await;
    first
        .batch(&worker(1), lines((0..JOBS).map(|number| report(number, 1))))
        .await;
    first.stop().await;
    let url = database.url_of_superuser();
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let reset = "SELECT pg_stat_reset(), pg_stat_clear_snapshot()";
    client.query(reset, &[]).await.unwrap();

    // A server without cached states.
    let second = server_with(settings).await;
    for number in JOBS - REPORTS..JOBS {
        let results = second
            .batch(&worker(1), lines([report(number, 2)].into_iter()))
            .await;
        assert_eq!(results[0]["status"], 200, "{results:?}");
    }
    second.stop().await;
    for table in ["subjects", "idempotency_keys"] {
        // A connection reports what it has read when it ends.
        until("the reads are counted", async || {
            reads(&client, table).await.0 >= REPORTS as i64
        })
        .await;
        let (_, read) = reads(&client, table).await;
        assert!(
            read < MAX_ROWS_READ,
            "{read} rows of {table} for {REPORTS} reports"
        );
    }
}
