//! What a viewer's searches cost other schools: many clients search a school with millions of jobs without a match, or
//! many clients start such a search and disconnect at once, while another school reads.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use diesel::Connection as _;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel::sqlite::SqliteConnection;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::server::{Connection, Server, create_job};
use crate::{histogram, quantiles};

/// Reverts the migration that creates the text index.
const WITHOUT_INDEX: &str =
    include_str!("../../migrations/sqlite/00000000000016_job_texts/down.sql");
/// Duration of each measurement.
const MEASURE_FOR: Duration = Duration::from_secs(20);
/// Interval between two rounds of clients that disconnect.
const HANG_UP_PERIOD: Duration = Duration::from_millis(500);
/// Number of jobs of the school that reads.
const OTHERS_JOBS: usize = 1_000;
/// Searches without a match, used in turn: two use the text index, and one is too short for it.
const IN_VAIN: [&str; 3] = [
    "/api/jobs?q=zz",
    "/api/jobs?q=zzz&status=completed&sort=oldest",
    "/monitor/schools/1/jobs?q=zzz",
];
/// The reads of the other school.
const READS: [(&str, &str); 3] = [
    ("one job", "/api/jobs/j7"),
    ("a page", "/api/jobs?status=in_progress"),
    ("a search", "/api/jobs?q=zzz"),
];

/// Fills a school with jobs, and measures the reads of another school: alone, with `searchers`, and with `leavers`.
pub(crate) async fn searches(jobs: usize, searchers: usize, leavers: usize) {
    let mut server = Server::start().await;
    let metadata =
        json!({"title": "Report", "path": "/srv/documents/2026/report-0000000.pdf", "pages": 12});
    let template = [
        json!({"op": "jobs.create", "job_id": "template", "job_type": "load", "status": "in_progress", "metadata": metadata}),
        json!({"op": "jobs.complete", "job_id": "template"}),
    ];
    server.publish(&server.worker, &template).await;
    let other_token = server.token(2);
    let others: Vec<Value> = (0..OTHERS_JOBS).map(create_job).collect();
    server.publish(&other_token, &others).await;
    let begun = Instant::now();
    server.restart_after(|path| multiply(path, jobs));
    println!(
        "searches  {jobs} jobs, made in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    let calm = measured(&server, &other_token, "calm").await;
    let stop = Arc::new(AtomicBool::new(false));
    let (answers, tasks) = (Arc::new(AtomicU64::new(0)), searchers);
    let tasks: Vec<_> = (0..tasks)
        .map(|number| {
            let (address, token) = (server.address.clone(), server.worker.clone());
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            tokio::spawn(async move {
                let mut connection = Connection::open(&address, &token).await;
                while !stop.load(Ordering::Relaxed) {
                    connection.get(IN_VAIN[number % IN_VAIN.len()]).await;
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let searched = measured(&server, &other_token, &format!("{searchers} search")).await;
    compare(&calm, &searched);
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("it searches");
    }
    println!(
        "searches  {} searches were answered",
        answers.load(Ordering::Relaxed)
    );
    let hanging_up = {
        let (address, token) = (server.address.clone(), server.worker.clone());
        tokio::spawn(async move {
            let mut rounds = tokio::time::interval(HANG_UP_PERIOD);
            loop {
                rounds.tick().await;
                for number in 0..leavers {
                    let mut connection = Connection::open(&address, &token).await;
                    let path = IN_VAIN[number % IN_VAIN.len()];
                    connection.ask("GET", path, "").await;
                }
            }
        })
    };
    let name = format!("{leavers} hang up every {} ms", HANG_UP_PERIOD.as_millis());
    let left = measured(&server, &other_token, &name).await;
    compare(&calm, &left);
    hanging_up.abort();
    let (begun, cpu) = (Instant::now(), server.cpu_secs());
    tokio::time::sleep(Duration::from_secs(10)).await;
    println!(
        "searches  after they have disconnected: {:.1} % of a core",
        (server.cpu_secs() - cpu) / begun.elapsed().as_secs_f64() * 100.0
    );
}

/// Copies the template job this many times, by SQL.
fn multiply(path: &Path, jobs: usize) {
    #[derive(QueryableByName)]
    struct Column {
        #[diesel(sql_type = Text)]
        name: String,
    }
    const AT_ONCE: usize = 100_000;
    let path = path.to_str().expect("UTF-8");
    let mut conn = SqliteConnection::establish(path).expect("a database");
    conn.batch_execute("PRAGMA synchronous = OFF; PRAGMA cache_size = -262144;")
        .expect("a database");
    // Drops the text index, because only the server has its tokenizer function. The server creates the index when it
    // starts.
    conn.batch_execute(WITHOUT_INDEX).expect("a migration");
    diesel::sql_query("DELETE FROM __diesel_schema_migrations WHERE version = '00000000000016'")
        .execute(&mut conn)
        .expect("a migration");
    let columns: Vec<Column> = diesel::sql_query("SELECT name FROM pragma_table_info('jobs')")
        .load(&mut conn)
        .expect("a table");
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let value = |name: &&str| {
        match *name {
        "job_id" => "printf('f%08d', n)".to_owned(),
        "message" => "'Page ' || n || ' of the report'".to_owned(),
        "metadata" => "json_object('title', 'Report ' || n, 'path', '/srv/documents/2026/report-' || n || '.pdf', 'pages', n % 40)".to_owned(),
        "created_seq" | "last_seq" => "n + 10".to_owned(),
        name => name.to_owned(),
    }
    };
    let values: Vec<String> = names.iter().map(value).collect();
    for first in (0..jobs).step_by(AT_ONCE) {
        let last = (first + AT_ONCE).min(jobs) - 1;
        let insert = format!(
            "WITH RECURSIVE numbers (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last}) \
             INSERT INTO jobs ({}) SELECT {} FROM numbers JOIN jobs ON school_id = 1 AND job_id = 'template'",
            names.join(", "),
            values.join(", ")
        );
        conn.batch_execute(&insert).expect("rows");
    }
    let head = format!(
        "UPDATE schools SET head = {0}, floor = {0} WHERE school_id = 1",
        jobs + 10
    );
    conn.batch_execute(&head).expect("a school");
}

/// Measures the other school's reads, each kind in its own histogram, while `/readyz` is requested continuously.
async fn measured(server: &Server, token: &str, when: &str) -> Vec<Histogram<u64>> {
    let mut times: Vec<_> = READS.iter().map(|_| histogram()).collect();
    let mut connection = Connection::open(&server.address, token).await;
    let mut health = Connection::open(&server.address, token).await;
    let (begun, cpu) = (Instant::now(), server.cpu_secs());
    let (mut asked, mut failed, mut slowest) = (0, 0, Duration::ZERO);
    while begun.elapsed() < MEASURE_FOR {
        for ((_, path), times) in READS.iter().zip(&mut times) {
            let start = Instant::now();
            let status = connection.get(path).await;
            assert_eq!(status, 200, "{path}");
            times.saturating_record(start.elapsed().as_nanos() as u64);
        }
        let start = Instant::now();
        asked += 1;
        failed += u64::from(health.get("/readyz").await != 200);
        slowest = slowest.max(start.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!(
        "searches  {when}: /readyz failed {failed} of {asked} times, slowest {:.1} ms; server {:.0} % of a core, {} MB",
        slowest.as_secs_f64() * 1e3,
        (server.cpu_secs() - cpu) / begun.elapsed().as_secs_f64() * 100.0,
        server.memory() / 1_000_000
    );
    for ((name, _), times) in READS.iter().zip(&times) {
        println!("searches  {when}: {name:<9} {}", quantiles(times));
    }
    times
}

fn compare(calm: &[Histogram<u64>], now: &[Histogram<u64>]) {
    for ((name, _), (calm, now)) in READS.iter().zip(calm.iter().zip(now)) {
        let at = |times: &Histogram<u64>| times.value_at_quantile(0.99) as f64;
        println!(
            "searches  {name:<9} p99 {:.1} times that of calm",
            at(now) / at(calm)
        );
    }
}
