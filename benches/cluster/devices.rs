//! Many devices whose heartbeats reach several nodes in turn.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::json;

use crate::nodes::{Bus, Nodes, Servers};
use crate::server::Connection;
use crate::{histogram, medians, quantile};

const DEVICES: usize = 10_000;
const PERIOD: Duration = Duration::from_secs(10);
/// Every device sends two heartbeats.
const BEAT_FOR: Duration = Duration::from_secs(20);
const CONNECTIONS: usize = 64;

/// Heartbeats per second, percentages of a core for all nodes together and for Postgres, and quantiles of the time until the
/// answer, in milliseconds.
type Sample = [f64; 5];

pub(crate) async fn devices(servers: &Servers, rounds: usize) {
    const STORES: [&str; 4] = [
        "SQLite",
        "Postgres, 1 node",
        "Postgres, 2 nodes",
        "Postgres, 3 nodes",
    ];
    let mut samples: [Vec<Sample>; 4] = Default::default();
    for _ in 0..rounds {
        for (count, samples) in samples.iter_mut().enumerate() {
            let nodes = match count {
                0 => Nodes::on_sqlite().await,
                _ => servers.nodes(count, Bus::Redis),
            };
            samples.push(measure(servers, &nodes).await);
        }
    }
    for (store, samples) in STORES.iter().zip(&samples) {
        let [rate, nodes, database, p50, p99] = medians(samples);
        println!(
            "devices   {DEVICES} devices, each {PERIOD:?}, {store:<18} {rate:.0} heartbeats/s, % of a core: nodes {nodes:.1}, Postgres {database:.1}; answer p50 {p50:.1} ms, p99 {p99:.1} ms"
        );
    }
}

async fn measure(servers: &Servers, nodes: &Nodes) -> Sample {
    let token = &nodes[0].worker;
    let lines = |op: &str| -> String {
        let line = |number| format!("{{\"op\":\"devices.{op}\",\"device_id\":\"d{number}\"}}\n");
        (0..DEVICES).map(line).collect()
    };
    let mut gateway = Connection::open(&nodes[0].address, token).await;
    for op in ["put", "heartbeat", "heartbeat"] {
        gateway.post("/api/batch", &lines(op)).await;
    }
    let cpu = || (nodes.cpu_secs(), servers.postgres_cpu_secs());
    let (before, begun) = (cpu(), Instant::now());
    let senders: Vec<_> = (0..CONNECTIONS)
        .map(|first| {
            let addresses: Vec<_> = nodes.iter().map(|node| node.address.clone()).collect();
            tokio::spawn(send_heartbeats(addresses, token.clone(), first))
        })
        .collect();
    let mut times = histogram();
    for sender in senders {
        let of_sender = sender.await.expect("it ends well");
        times.add(of_sender).expect("same digits");
    }
    let (secs, after) = (begun.elapsed().as_secs_f64(), cpu());
    for status in ["offline", "unknown"] {
        let path = format!("/api/devices?status={status}");
        let list = nodes[0].client(token).get(&path).await;
        let list = list.expect("an answer");
        assert_eq!(list["devices"], json!([]), "every device sends heartbeats");
    }
    [
        times.len() as f64 / secs,
        (after.0 - before.0) / secs * 100.0,
        (after.1 - before.1) / secs * 100.0,
        quantile(&times, 0.5),
        quantile(&times, 0.99),
    ]
}

/// Sends the heartbeats of every [`CONNECTIONS`]th device, each to the next node.
async fn send_heartbeats(addresses: Vec<String>, token: String, first: usize) -> Histogram<u64> {
    let mut connections = Vec::new();
    for address in &addresses {
        connections.push(Connection::open(address, &token).await);
    }
    let mut times = histogram();
    let mut rounds = tokio::time::interval(PERIOD * CONNECTIONS as u32 / DEVICES as u32);
    let (begun, mut device) = (Instant::now(), first);
    for number in 0.. {
        if begun.elapsed() >= BEAT_FOR {
            break;
        }
        rounds.tick().await;
        let sent = Instant::now();
        let connection = &mut connections[number % addresses.len()];
        let path = format!("/api/devices/d{device}/heartbeat");
        connection.post(&path, "").await;
        times.saturating_record(sent.elapsed().as_nanos() as u64);
        device = (device + CONNECTIONS) % DEVICES;
    }
    times
}
