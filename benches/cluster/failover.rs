//! A node is killed, and its readers come back to the others with their cursors.

use std::time::Instant;

use crate::medians;
use crate::nodes::{Bus, Nodes, Servers};
use crate::server::{Connection, nanos};
use crate::subscribers::{Subscribers, Transport};

/// Readers on all three nodes together.
const READERS: usize = 10_000;
/// Events that the killed node's readers have missed when they come back.
const MISSED: usize = 100;
/// Readers that open their first connections at the same time.
const AT_ONCE: usize = 256;

pub(crate) async fn failover(servers: &Servers, rounds: usize) {
    for transport in [Transport::EventSource, Transport::WebSocket] {
        let mut samples = Vec::new();
        for _ in 0..rounds {
            let mut nodes = servers.nodes(3, Bus::Redis);
            samples.push(measure(servers, &mut nodes, transport).await);
        }
        let [secs, node, database] = medians(&samples);
        println!(
            "failover  {transport:<12} {READERS} readers on 3 nodes, one is killed: its readers are live on the others and have the {MISSED} events that they missed after {secs:.1} s; CPU a reader: nodes {node:.2} ms, Postgres {database:.3} ms"
        );
    }
}

/// Returns the seconds until all are live, and the milliseconds of CPU per reader that comes back, of the nodes and of
/// Postgres.
async fn measure(servers: &Servers, nodes: &mut Nodes, transport: Transport) -> [f64; 3] {
    let token = &servers.tokens[0];
    nodes.create_jobs(token, MISSED).await;
    let of_a_node = READERS / nodes.len();
    let path = |_| "/events/jobs?tick_ms=0".to_owned();
    let mut open = Vec::new();
    for node in nodes.iter() {
        let reader = (node.address.as_str(), token.as_str());
        let subscribers = Subscribers::begin(reader, transport, of_a_node, AT_ONCE, path);
        subscribers.live(of_a_node).await;
        open.push(subscribers);
    }
    let cursor = nodes[0].cursor().await;
    let line = |n: usize| {
        format!(
            "{{\"op\":\"jobs.progress\",\"job_id\":\"j{n}\",\"message\":\"{}\"}}\n",
            nanos()
        )
    };
    let missed: String = (0..MISSED).map(line).collect();
    let mut publisher = Connection::open(&nodes[0].address, token).await;
    publisher.post("/api/batch", &missed).await;
    for subscribers in &open {
        subscribers.wait_for((of_a_node * MISSED) as u64).await;
    }
    let path = |_| format!("/events/jobs?tick_ms=0&cursor={cursor}");
    let half = of_a_node / 2;
    let start = Instant::now();
    nodes.kill_last();
    open.pop();
    let cpu = (nodes.cpu_secs(), servers.postgres_cpu_secs());
    let back: Vec<_> = nodes
        .iter()
        .map(|node| Subscribers::begin((&node.address, token), transport, half, half, path))
        .collect();
    for subscribers in &back {
        subscribers.live(half).await;
        subscribers.wait_for((half * MISSED) as u64).await;
    }
    let count = (half * back.len()) as f64;
    [
        start.elapsed().as_secs_f64(),
        (nodes.cpu_secs() - cpu.0) / count * 1e3,
        (servers.postgres_cpu_secs() - cpu.1) / count * 1e3,
    ]
}
