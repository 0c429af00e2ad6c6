//! What several nodes over one Postgres deliver and accept, and what that costs: real PostgreSQL, Redis and `tidings serve`
//! processes on this machine, on free ports and in temporary folders, which end with this process.
//!
//! `cargo bench --bench cluster` runs everything, in some ten minutes. `cargo bench --bench cluster -- publish` runs only
//! what is named: `publish`, `latency`, `readers`, `failover`, `devices`. Each measurement is repeated [`ROUNDS`] times
//! (`BENCH_ROUNDS`), alternating with the others of its scenario, and the medians are printed. Load, nodes, database and bus
//! share the machine, so compare ratios rather than absolute figures.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a benchmark are small"
)]

mod devices;
mod failover;
mod latency;
mod nodes;
#[path = "../process.rs"]
#[allow(dead_code, reason = "the other benchmarks use more of it")]
mod process;
mod publish;
mod readers;
#[path = "../load/server.rs"]
#[allow(dead_code, reason = "the benchmark `load` uses more of it")]
mod server;
#[path = "../load/subscribers.rs"]
#[allow(dead_code, reason = "the benchmark `load` uses more of it")]
mod subscribers;
mod support;

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use self::nodes::Servers;

/// How often each measurement is repeated. The medians are printed.
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    // Each reader is a socket here, too.
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit on open files can be raised");
    let rounds = std::env::var("BENCH_ROUNDS").map_or(ROUNDS, |rounds| {
        rounds.parse().expect("BENCH_ROUNDS is a number")
    });
    let servers = Servers::start().await;
    println!(
        "{} cores; {}; medians of {rounds} rounds",
        std::thread::available_parallelism().map_or(0, usize::from),
        servers.version().await
    );
    if runs("publish") {
        publish::publish(&servers, rounds).await;
    }
    if runs("latency") {
        latency::latency(&servers, rounds).await;
    }
    if runs("readers") {
        readers::readers(&servers, rounds).await;
    }
    if runs("failover") {
        failover::failover(&servers, rounds).await;
    }
    if runs("devices") {
        devices::devices(&servers, rounds).await;
    }
}

/// Returns the medians of the columns.
fn medians<const N: usize>(rows: &[[f64; N]]) -> [f64; N] {
    std::array::from_fn(|column| {
        let mut values: Vec<f64> = rows.iter().map(|row| row[column]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    })
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("3 digits")
}

/// Returns a quantile of a histogram of nanoseconds, in milliseconds.
fn quantile(times: &Histogram<u64>, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64 / 1e6
}

/// Calls a function at a steady rate, or as often as it can be called if it takes longer. Returns how often it was called.
async fn steadily(per_sec: u32, last: Duration, mut round: impl AsyncFnMut(u64)) -> u64 {
    let mut rounds = tokio::time::interval(Duration::from_secs(1) / per_sec);
    let (start, mut number) = (Instant::now(), 0);
    while start.elapsed() < last {
        rounds.tick().await;
        round(number).await;
        number += 1;
    }
    number
}
