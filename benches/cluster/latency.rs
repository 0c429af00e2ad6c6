//! Time from publishing to receiving, on the node that commits and on another one, at a calm rate.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::nodes::{Bus, Nodes, Servers};
use crate::server::{Connection, nanos};
use crate::subscribers::{Subscribers, Transport};
use crate::{medians, quantile, steadily};

const PER_SEC: u32 = 50;
const LATENCY_FOR: Duration = Duration::from_secs(8);
/// Readers of each node.
const READERS: usize = 10;

pub(crate) async fn latency(servers: &Servers, rounds: usize) {
    const BUSES: [(Bus, &str); 3] = [
        (Bus::Redis, "Redis"),
        (Bus::Listen, "LISTEN"),
        (Bus::Down, "a bus that is down"),
    ];
    let mut samples: [Vec<[f64; 4]>; 3] = Default::default();
    for _ in 0..rounds {
        for ((bus, _), samples) in BUSES.iter().zip(&mut samples) {
            let nodes = servers.nodes(2, *bus);
            let [same_node, other_node] = measure(servers, &nodes).await;
            let of = |times: &Histogram<u64>| [quantile(times, 0.5), quantile(times, 0.99)];
            let ([same_p50, same_p99], [other_p50, other_p99]) = (of(&same_node), of(&other_node));
            samples.push([same_p50, same_p99, other_p50, other_p99]);
        }
    }
    for ((_, name), samples) in BUSES.iter().zip(&samples) {
        let [same_p50, same_p99, other_p50, other_p99] = medians(samples);
        println!(
            "latency   {name:<18} {PER_SEC}/s, {READERS} readers a node  publish to receive: same node p50 {same_p50:.1} ms, p99 {same_p99:.1} ms; other node p50 {other_p50:.1} ms, p99 {other_p99:.1} ms"
        );
    }
}

/// Returns the times of the readers on the node that commits, and of those on the other.
async fn measure(servers: &Servers, nodes: &Nodes) -> [Histogram<u64>; 2] {
    nodes.create_jobs(&servers.tokens[0], 1).await;
    let path = |_| "/events/jobs/j0?tick_ms=0".to_owned();
    let same_node = Subscribers::open(&nodes[0], Transport::WebSocket, READERS, path).await;
    let other_node = Subscribers::open(&nodes[1], Transport::WebSocket, READERS, path).await;
    let mut publisher = Connection::open(&nodes[0].address, &servers.tokens[0]).await;
    let mut publish = async |_| {
        let body = format!(r#"{{"message":"{}"}}"#, nanos());
        publisher.post("/api/jobs/j0/progress", &body).await;
    };
    // Until connections and caches are warm.
    let warm = steadily(PER_SEC, Duration::from_secs(1), &mut publish).await;
    same_node.wait_for(warm * READERS as u64).await;
    other_node.wait_for(warm * READERS as u64).await;
    same_node.forget_times();
    other_node.forget_times();
    let events = warm + steadily(PER_SEC, LATENCY_FOR, &mut publish).await;
    same_node.wait_for(events * READERS as u64).await;
    other_node.wait_for(events * READERS as u64).await;
    [same_node.times(), other_node.times()]
}
