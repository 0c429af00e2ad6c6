//! What nodes cost that nobody reads from: of three nodes, one takes the reports and one has the readers.

use std::time::{Duration, Instant};

use crate::nodes::{Bus, Nodes, SCHOOLS, Servers, metric};
use crate::server::{Connection, nanos};
use crate::subscribers::{Subscribers, Transport};
use crate::{medians, steadily};

/// Reports per second, to the schools in turn.
const PER_SEC: u32 = 500;
const READ_FOR: Duration = Duration::from_secs(5);
const READERS_PER_SCHOOL: usize = 4;
/// In how many of the schools there are readers.
const READ: [usize; 3] = [1, 8, SCHOOLS];
const RECEIVED: &str = "tidings_bus_messages_received_total";

/// Percentages of a core: the node with the reports, the one with the readers, the third, and Postgres. Then the reports per
/// second, and the messages of the bus that arrive per second at the second and the third.
type Sample = [f64; 7];

pub(crate) async fn readers(servers: &Servers, rounds: usize) {
    let mut samples: [Vec<Sample>; 4] = Default::default();
    for _ in 0..rounds {
        let nodes = servers.nodes(3, Bus::Redis);
        for token in &servers.tokens {
            nodes.create_jobs(token, 1).await;
        }
        let admin = nodes[0].admin();
        samples[0].push(measure(servers, &nodes, &admin, 0).await);
        for (count, samples) in READ.iter().zip(&mut samples[1..]) {
            let mut open = Vec::new();
            for token in &servers.tokens[..*count] {
                let path = |_| "/events/jobs/j0?tick_ms=0".to_owned();
                let reader = (nodes[1].address.as_str(), token.as_str());
                let of_school =
                    Subscribers::begin(reader, Transport::WebSocket, READERS_PER_SCHOOL, 64, path);
                of_school.live(READERS_PER_SCHOOL).await;
                open.push(of_school);
            }
            samples.push(measure(servers, &nodes, &admin, PER_SEC).await);
        }
    }
    for (row, samples) in samples.iter().enumerate() {
        let what = match row {
            0 => "idle".to_owned(),
            _ => format!(
                "reports in {SCHOOLS} schools, {READERS_PER_SCHOOL} readers in each of {}",
                READ[row - 1]
            ),
        };
        let [
            publishing,
            reading,
            third,
            database,
            rate,
            to_reading,
            to_third,
        ] = medians(samples);
        println!(
            "readers   {what:<55} % of a core: node with reports {publishing:.1}, with readers {reading:.1}, neither {third:.1}, Postgres {database:.1}; {rate:.0} reports/s, messages/s to the readers' node {to_reading:.0}, to the third {to_third:.0}"
        );
    }
}

async fn measure(servers: &Servers, nodes: &Nodes, admin: &str, per_sec: u32) -> Sample {
    let received = async || {
        let reading = metric(&nodes[1], admin, RECEIVED).await;
        [reading, metric(&nodes[2], admin, RECEIVED).await]
    };
    let cpu = || {
        let [publishing, reading, third] = [0, 1, 2].map(|node: usize| nodes[node].cpu_secs());
        [publishing, reading, third, servers.postgres_cpu_secs()]
    };
    let mut publishers = Vec::new();
    for token in &servers.tokens {
        publishers.push(Connection::open(&nodes[0].address, token).await);
    }
    let (messages, begun, before) = (received().await, Instant::now(), cpu());
    let reports = match per_sec {
        0 => {
            tokio::time::sleep(READ_FOR).await;
            0
        }
        _ => {
            steadily(per_sec, READ_FOR, async |number| {
                let publisher = &mut publishers[number as usize % SCHOOLS];
                let body = format!(r#"{{"message":"{}"}}"#, nanos());
                publisher.post("/api/jobs/j0/progress", &body).await;
            })
            .await
        }
    };
    let (secs, after) = (begun.elapsed().as_secs_f64(), cpu());
    let later = received().await;
    let busy = |node: usize| (after[node] - before[node]) / secs * 100.0;
    let per_sec = |node: usize| (later[node] - messages[node]) / secs;
    let rate = reports as f64 / secs;
    [
        busy(0),
        busy(1),
        busy(2),
        busy(3),
        rate,
        per_sec(0),
        per_sec(1),
    ]
}
