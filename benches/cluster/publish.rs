//! Acknowledged reports per second, one by one and in batches, into one school and into many.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::nodes::{Bus, Nodes, SCHOOLS, Servers};
use crate::server::Connection;
use crate::{histogram, medians, quantile};

/// Duration of each measurement, after a second in which caches fill.
const PUBLISH_FOR: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_secs(1);
/// Publishers of single reports, each with a connection and a job.
const SINGLE_PUBLISHERS: usize = 64;
/// Publishers of batches, each of which goes round its schools.
const BATCH_PUBLISHERS: usize = 6;
const BATCH_LINES: usize = 1_000;
/// Jobs of each publisher of batches in a school.
const BATCH_JOBS: usize = 100;

#[derive(Clone, Copy)]
struct Load {
    schools: usize,
    publishers: usize,
    lines: usize,
}

/// Acknowledged reports per second, p50 and p99 of answers in milliseconds, and microseconds of CPU per report of the nodes
/// and of Postgres.
type Sample = [f64; 5];

pub(crate) async fn publish(servers: &Servers, rounds: usize) {
    for (lines, publishers) in [(1, SINGLE_PUBLISHERS), (BATCH_LINES, BATCH_PUBLISHERS)] {
        for schools in [1, SCHOOLS] {
            let load = Load {
                schools,
                publishers,
                lines,
            };
            // Without Postgres, and with 1, 2 and 3 nodes on it.
            let mut samples: [Vec<Sample>; 4] = Default::default();
            for _ in 0..rounds {
                for (count, samples) in samples.iter_mut().enumerate() {
                    let nodes = match count {
                        0 => Nodes::on_sqlite().await,
                        _ => servers.nodes(count, Bus::Redis),
                    };
                    samples.push(measure(servers, &nodes, load).await);
                }
            }
            for (count, samples) in samples.iter().enumerate() {
                report(count, load, medians(samples));
            }
        }
    }
}

fn report(count: usize, load: Load, [rate, p50, p99, node, database]: Sample) {
    let store = match count {
        0 => "SQLite            ".to_owned(),
        _ => format!(
            "Postgres, {count} node{}",
            if count == 1 { " " } else { "s" }
        ),
    };
    println!(
        "publish   {store:<18} {:>2} school(s), {:>4} a request  {rate:>8.0} acknowledged/s  answer p50 {p50:>6.2} ms, p99 {p99:>6.1} ms  CPU a report: nodes {node:>5.1} us, Postgres {database:>5.1} us",
        load.schools, load.lines
    );
}

async fn measure(servers: &Servers, nodes: &Nodes, load: Load) -> Sample {
    for token in &servers.tokens[..load.schools] {
        let jobs = match load.lines {
            1 => load.publishers,
            _ => load.publishers * BATCH_JOBS,
        };
        nodes.create_jobs(token, jobs).await;
    }
    let acknowledged = Arc::new(AtomicU64::new(0));
    let (start, mut tasks) = (Instant::now(), Vec::new());
    for publisher in 0..load.publishers {
        let address = nodes.of(publisher).address.clone();
        // Each publisher has its own schools, or all share one.
        let schools = (0..load.schools).filter(|school| school % load.publishers == publisher);
        let schools = if load.schools == 1 {
            vec![0]
        } else {
            schools.collect()
        };
        let tokens: Vec<String> = schools
            .into_iter()
            .map(|school| servers.tokens[school].clone())
            .collect();
        let acknowledged = Arc::clone(&acknowledged);
        tasks.push(tokio::spawn(async move {
            let mut connections = Vec::new();
            for token in tokens {
                connections.push(Connection::open(&address, &token).await);
            }
            let (mut times, mut number) = (histogram(), 0_u64);
            while start.elapsed() < WARM_UP + PUBLISH_FOR {
                let next = number as usize % connections.len();
                let sent = Instant::now();
                number += 1;
                let (path, body) = request(publisher, number, load.lines);
                connections[next].post(&path, &body).await;
                if start.elapsed() > WARM_UP {
                    times.saturating_record(sent.elapsed().as_nanos() as u64);
                }
                acknowledged.fetch_add(load.lines as u64, Ordering::Relaxed);
            }
            times
        }));
    }
    tokio::time::sleep(WARM_UP).await;
    let cpu = || (nodes.cpu_secs(), servers.postgres_cpu_secs());
    let (begun, before, first) = (Instant::now(), cpu(), acknowledged.load(Ordering::Relaxed));
    tokio::time::sleep(PUBLISH_FOR).await;
    let (secs, after) = (begun.elapsed().as_secs_f64(), cpu());
    let count = (acknowledged.load(Ordering::Relaxed) - first) as f64;
    let mut times = histogram();
    for task in tasks {
        let publisher_times = task.await.expect("a publisher ends well");
        times.add(publisher_times).expect("the same digits");
    }
    let micros = |before: f64, after: f64| (after - before) / count * 1e6;
    [
        count / secs,
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        micros(before.0, after.0),
        micros(before.1, after.1),
    ]
}

/// Returns the path and the body of a publisher's next request.
fn request(publisher: usize, number: u64, lines: usize) -> (String, String) {
    if lines == 1 {
        let body = format!(r#"{{"message":"Processing part {number}"}}"#);
        return (format!("/api/jobs/j{publisher}/progress"), body);
    }
    let line = |line: usize| {
        let job = publisher * BATCH_JOBS + line % BATCH_JOBS;
        format!(
            "{{\"op\":\"jobs.progress\",\"job_id\":\"j{job}\",\"message\":\"Processing part {number}.{line}\"}}\n"
        )
    };
    ("/api/batch".into(), (0..lines).map(line).collect())
}
