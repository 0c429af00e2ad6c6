//! A load program: it measures what the server delivers and accepts, what that costs, and how long it takes.
//!
//! `cargo bench --bench load` runs everything. `cargo bench --bench load -- publish` runs only what is named: `one-channel`,
//! `large-channel`, `many-channels`, `closed-loop`, `saturation`, `conflation` and `memory` compare servers (see [`ratios`]); `publish`, `batch`, `devices`, `fanout`, `channels`, `latency`, `fold`, `idle`, `crowd`, `slow`, `burst`,
//! `reconnect`, `refusals`, `pages`, `browser`, `greedy`, `searches`. The server is a separate process, so that its CPU
//! time and memory are measured separately from the load's. Both share the machine, so compare ratios rather than
//! absolute figures.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a benchmark are small"
)]

mod greedy;
mod pages;
mod peers;
mod pressure;
#[path = "../process.rs"]
#[allow(dead_code, reason = "the benchmark `stranger` uses more of it")]
mod process;
mod ratios;
mod raw;
mod rocket_alone;
mod searches;
#[allow(dead_code, reason = "the benchmark `cluster` uses more of it")]
mod server;
mod subscribers;

use std::fmt::Write;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use server::{Connection, Server, nanos};
use subscribers::{Subscribers, TRANSPORTS, Transport};
use tidings::config::BULK_AFTER;

/// Duration of each measurement of publishing.
const PUBLISH_FOR: Duration = Duration::from_secs(5);
/// How long devices send heartbeats: long enough for the times of their last heartbeats to be saved twice.
const BEAT_FOR: Duration = Duration::from_secs(21);
/// Duration of each measurement of latency.
const LATENCY_FOR: Duration = Duration::from_secs(10);
/// Lines of a batch.
const BATCH_LINES: usize = 1_000;

#[tokio::main]
async fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    if wanted.first().is_some_and(|first| first == pressure::CROWD) {
        return pressure::be_a_crowd(&wanted).await;
    }
    if wanted.first().is_some_and(|first| first == raw::RAW) {
        return raw::be_raw();
    }
    if wanted
        .first()
        .is_some_and(|first| first == rocket_alone::ROCKET)
    {
        return rocket_alone::be_rocket().await;
    }
    if wanted.first().is_some_and(|first| first == greedy::GREEDY) {
        return greedy::be_greedy(&wanted).await;
    }
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    println!(
        "{} cores, server built with {}",
        std::thread::available_parallelism().map_or(0, usize::from),
        profile()
    );
    for scenario in &ratios::SCENARIOS {
        if runs(scenario.name) {
            ratios::compare(scenario).await;
        }
    }
    if runs("conflation") {
        ratios::fold().await;
    }
    if runs("memory") {
        ratios::idle().await;
    }
    if runs("publish") {
        for publishers in [1, 16, 64] {
            publish(publishers, 1).await;
        }
    }
    if runs("batch") {
        for publishers in [1, 4] {
            publish(publishers, BATCH_LINES).await;
        }
    }
    if runs("devices") {
        devices(10_000, Some(Duration::from_secs(10))).await;
        devices(10_000, None).await;
    }
    if runs("fanout") {
        for transport in TRANSPORTS {
            fanout(transport, 1_000, 1).await;
        }
    }
    if runs("channels") {
        for transport in TRANSPORTS {
            fanout(transport, 1_000, 1_000).await;
        }
    }
    if runs("latency") {
        for transport in TRANSPORTS {
            latency(transport, 1_000).await;
        }
    }
    if runs("pages") {
        pages::pages(100_000, 500).await;
    }
    if runs("browser") {
        pages::browser(500, 50).await;
    }
    if runs("fold") {
        for transport in TRANSPORTS {
            fold(transport, 1_000).await;
        }
    }
    if runs("crowd") {
        pressure::crowd(10_000).await;
    }
    if runs("slow") {
        pressure::slow(200, 200).await;
    }
    if runs("burst") {
        pressure::burst(200, 100_000).await;
    }
    if runs("reconnect") {
        pressure::reconnect(10_000, 100).await;
        pressure::reconnect(2_000, 5_000).await;
    }
    if runs("refusals") {
        pressure::rejections(3_000).await;
    }
    if runs("greedy") {
        for schools in [1, 8] {
            greedy::greedy(schools).await;
        }
    }
    if runs("searches") {
        searches::searches(2_000_000, 64, 150).await;
    }
    if runs("idle") {
        for transport in TRANSPORTS {
            idle(transport, 4_000).await;
        }
    }
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) {
        "debug assertions: figures mean little"
    } else {
        "optimisation"
    }
}

/// Acknowledged events per second with `publishers` connections and `lines` commands per request.
async fn publish(publishers: usize, lines: usize) {
    let server = Server::start().await;
    server
        .create_jobs(publishers * if lines == 1 { 1 } else { 100 })
        .await;
    if lines > 1 {
        // Only then are the commits of batches large, because the jobs that were created count as reports.
        tokio::time::sleep(BULK_AFTER).await;
    }
    let (address, token) = (server.address.clone(), server.worker.clone());
    let cpu = server.cpu_secs();
    let start = Instant::now();
    // All connections in one thread, because threads that wake each other would cost more than the requests.
    let load = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_io().build().expect("a runtime");
        let publisher = |number| publish_from(number, lines, address.clone(), token.clone(), start);
        runtime.block_on(futures_util::future::join_all(
            (0..publishers).map(publisher),
        ))
    });
    let (mut times, mut count) = (histogram(), 0.0);
    for (own, acknowledged) in load.await.expect("the publishers end well") {
        times.add(own).expect("same digits");
        count += acknowledged as f64;
    }
    let secs = start.elapsed().as_secs_f64();
    println!(
        "publish   {publishers:>3} publishers x {lines:>4}  {:>9.0} acknowledged/s  {:>6.1} us server CPU each  answer {}",
        count / secs,
        (server.cpu_secs() - cpu) / count * 1e6,
        quantiles(&times),
    );
}

/// Publishes over one connection until [`PUBLISH_FOR`] has passed. Returns how long each request took, and how many events were acknowledged.
async fn publish_from(
    publisher: usize,
    lines: usize,
    address: String,
    token: String,
    start: Instant,
) -> (Histogram<u64>, u64) {
    let mut connection = Connection::open(&address, &token).await;
    let (mut times, mut number) = (histogram(), 0_u64);
    let (path, mut body) = (format!("/api/jobs/j{publisher}/progress"), String::new());
    while start.elapsed() < PUBLISH_FOR {
        let sent = Instant::now();
        body.clear();
        if lines == 1 {
            number += 1;
            write!(body, r#"{{"message":"Processing part {number}"}}"#).expect("a string grows");
            connection.post(&path, &body).await;
        } else {
            for line in 0..lines {
                number += 1;
                let job = publisher * 100 + line % 100;
                writeln!(
                    body,
                    r#"{{"op":"jobs.progress","job_id":"j{job}","message":"Processing part {number}"}}"#
                )
                .expect("a string grows");
            }
            connection.post("/api/batch", &body).await;
        }
        times.saturating_record(sent.elapsed().as_nanos() as u64);
    }
    (times, number)
}

/// Heartbeats of `count` online devices over 64 connections: each device once per `period`, or as fast as possible.
async fn devices(count: usize, period: Option<Duration>) {
    const CONNECTIONS: usize = 64;
    let server = Server::start().await;
    let lines = |op: &str| -> String {
        let line = |n| format!("{{\"op\":\"devices.{op}\",\"device_id\":\"d{n}\"}}\n");
        (0..count).map(line).collect()
    };
    let mut gateway = Connection::open(&server.address, &server.worker).await;
    for op in ["put", "heartbeat", "heartbeat"] {
        gateway.post("/api/batch", &lines(op)).await;
    }
    let pause = period.map(|period| period * CONNECTIONS as u32 / count as u32);
    let (cpu, start) = (server.cpu_secs(), Instant::now());
    let tasks: Vec<_> = (0..CONNECTIONS)
        .map(|first| {
            let (address, token) = (server.address.clone(), server.worker.clone());
            tokio::spawn(async move {
                let mut connection = Connection::open(&address, &token).await;
                let mut times = histogram();
                let mut rounds = pause.map(tokio::time::interval);
                let mut device = first;
                while start.elapsed() < BEAT_FOR {
                    if let Some(rounds) = &mut rounds {
                        rounds.tick().await;
                    }
                    let sent = Instant::now();
                    connection
                        .post(&format!("/api/devices/d{device}/heartbeat"), "")
                        .await;
                    times.saturating_record(sent.elapsed().as_nanos() as u64);
                    device = (device + CONNECTIONS) % count;
                }
                times
            })
        })
        .collect();
    let mut times = histogram();
    for task in tasks {
        times
            .add(task.await.expect("a device ends well"))
            .expect("same digits");
    }
    let (secs, busy) = (start.elapsed().as_secs_f64(), server.cpu_secs() - cpu);
    println!(
        "devices   {count} devices, {:<15} {:>7.0} heartbeats/s  {:>5.1} us server CPU each, {:>4.1} % of a core  answer {}",
        period.map_or("unthrottled".into(), |period| format!("each {period:?}")),
        times.len() as f64 / secs,
        busy / times.len() as f64 * 1e6,
        busy / secs * 100.0,
        quantiles(&times),
    );
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / 1024.0 / 1024.0)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("3 digits")
}

/// Deliveries per second: every event of `channels` jobs is delivered to the readers of its channel.
async fn fanout(transport: Transport, readers: usize, channels: usize) {
    let server = Server::start().await;
    server.create_jobs(channels).await;
    let subscribers = Subscribers::open(&server, transport, readers, |reader| {
        format!("/events/jobs/j{}?tick_ms=0", reader % channels)
    })
    .await;
    let before = subscribers.received();
    let per_event = readers / channels;
    let events = 2_000_000 / per_event.max(20);
    let cpu = server.cpu_secs();
    let start = Instant::now();
    let mut publisher = Connection::open(&server.address, &server.worker).await;
    let mut sent = 0;
    while sent < events {
        let mut body = String::new();
        for line in 0..100.min(events - sent) {
            let job = (sent + line) % channels;
            body.push_str(&format!(
                r#"{{"op":"jobs.progress","job_id":"j{job}","message":"{}"}}"#,
                nanos()
            ));
            body.push('\n');
        }
        publisher.post("/api/batch", &body).await;
        sent += 100.min(events - sent);
    }
    let expected = before + (events * per_event) as u64;
    subscribers.wait_for(expected).await;
    let (secs, deliveries) = (start.elapsed().as_secs_f64(), (events * per_event) as f64);
    println!(
        "fanout    {transport:<12} {readers} readers, {channels:>4} channels  {:>9.0} deliveries/s  {:>6.2} us server CPU each",
        deliveries / secs,
        (server.cpu_secs() - cpu) / deliveries * 1e6,
    );
}

/// Time from publishing to receiving, at 100 events per second.
async fn latency(transport: Transport, readers: usize) {
    let server = Server::start().await;
    server.create_jobs(1).await;
    let subscribers = Subscribers::open(&server, transport, readers, |_| {
        "/events/jobs/j0?tick_ms=0".into()
    })
    .await;
    subscribers.forget_times();
    let mut publisher = Connection::open(&server.address, &server.worker).await;
    let cpu = server.cpu_secs();
    let mut rounds = tokio::time::interval(Duration::from_millis(10));
    let start = Instant::now();
    let mut events = 0;
    while start.elapsed() < LATENCY_FOR {
        rounds.tick().await;
        publisher
            .post(
                "/api/jobs/j0/progress",
                &format!(r#"{{"message":"{}"}}"#, nanos()),
            )
            .await;
        events += 1;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    println!(
        "latency   {transport:<12} {readers} readers, {events} events at 100/s  publish to receive {}  {:>5.2} us server CPU a delivery",
        quantiles(&subscribers.times()),
        (server.cpu_secs() - cpu) / (events * readers) as f64 * 1e6,
    );
}

/// What an event costs the server at 100 events per second on one subject, with and without conflation of ticks.
async fn fold(transport: Transport, readers: usize) {
    let mut costs = Vec::new();
    for tick_ms in [0, 100, 1_000] {
        let server = Server::start().await;
        server.create_jobs(1).await;
        let path = format!("/events/jobs/j0?tick_ms={tick_ms}");
        let subscribers = Subscribers::open(&server, transport, readers, |_| path.clone()).await;
        let mut publisher = Connection::open(&server.address, &server.worker).await;
        let mut rounds = tokio::time::interval(Duration::from_millis(10));
        let (start, cpu, mut events) = (Instant::now(), server.cpu_secs(), 0);
        while start.elapsed() < LATENCY_FOR {
            rounds.tick().await;
            let body = format!(r#"{{"message":"{}"}}"#, nanos());
            publisher.post("/api/jobs/j0/progress", &body).await;
            events += 1;
        }
        costs.push((server.cpu_secs() - cpu) / f64::from(events) * 1e3);
        drop(subscribers);
    }
    println!(
        "fold      {transport:<12} {readers} readers at 100/s  {:>6.2} ms server CPU an event without conflation, {:>6.2} ms with 100 ms, {:>6.2} ms with 1 s",
        costs[0], costs[1], costs[2]
    );
}

/// Memory of an idle connection.
async fn idle(transport: Transport, readers: usize) {
    let server = Server::start().await;
    server.create_jobs(1).await;
    drop(Subscribers::open(&server, transport, 50, |_| "/events/jobs/j0".into()).await);
    let before = server.memory();
    let subscribers = Subscribers::open(&server, transport, readers, |_| {
        "/events/jobs/j0?wait=60".into()
    })
    .await;
    let after = server.memory();
    println!(
        "idle      {transport:<12} {readers} connections  {:>6.1} KiB each",
        (after - before) as f64 / readers as f64 / 1024.0
    );
    drop(subscribers);
}

fn quantiles(times: &Histogram<u64>) -> String {
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e6;
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms",
        at(0.5),
        at(0.99),
        times.max() as f64 / 1e6
    )
}
