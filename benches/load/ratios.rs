//! What a delivery costs, as a multiple of a raw write of the same bytes in the same run.
//!
//! Every server is measured in every round, one after the other, so that a machine that becomes slower affects all of them.
//! Each ratio is the median of the ratios of the rounds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::peers::{self, Kind, Peer};
use crate::process::Process;
use crate::server::{Connection, nanos};
use crate::subscribers::{MARK, Subscribers, Transport, find};

/// Duration of a measurement.
const MEASURE_FOR: Duration = Duration::from_secs(4);
/// How long a server may take for a measurement, including its start. One that takes longer is left out, so that it does not hold up
/// the others.
const MEASURE_WITHIN: Duration = Duration::from_secs(60);
/// Events before the measurement.
const WARM_UP: usize = 20;
/// Digits of the time in a message.
const DIGITS: usize = 19;
/// Idle connections.
const IDLE: usize = 4_000;

/// Readers, and how events are published to them.
pub(crate) struct Scenario {
    /// The name, with which the program runs only this.
    pub(crate) name: &'static str,
    readers: usize,
    channels: usize,
    pace: Pace,
}

#[derive(Clone, Copy)]
enum Pace {
    PerSecond(u32),
    /// So many events are published before the first of them has reached every reader.
    Window(u64),
}

pub(crate) const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "one-channel",
        readers: 1_000,
        channels: 1,
        pace: Pace::PerSecond(100),
    },
    Scenario {
        name: "large-channel",
        readers: 5_000,
        channels: 1,
        pace: Pace::PerSecond(20),
    },
    Scenario {
        name: "many-channels",
        readers: 5_000,
        channels: 1_000,
        pace: Pace::PerSecond(2_000),
    },
    Scenario {
        name: "closed-loop",
        readers: 1_000,
        channels: 1,
        pace: Pace::Window(1),
    },
    Scenario {
        name: "saturation",
        readers: 1_000,
        channels: 1,
        pace: Pace::Window(64),
    },
];

const TRANSPORTS: [Transport; 2] = [Transport::WebSocket, Transport::EventSource];

/// Returns how often each measurement is repeated: `BENCH_ROUNDS`, or 3.
fn rounds() -> usize {
    let rounds = std::env::var("BENCH_ROUNDS").ok();
    rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

/// Compares all servers.
pub(crate) async fn compare(scenario: &Scenario) {
    let installed = peers::installed();
    for transport in TRANSPORTS {
        let mut kinds = installed.clone();
        kinds.retain(|kind| Peer::is_offered(*kind, transport));
        let template = template(transport).await;
        let mut costs: HashMap<Kind, Vec<Cost>> = HashMap::new();
        for _ in 0..rounds() {
            let mut left_out = Vec::new();
            for kind in &kinds {
                let measuring = measure(*kind, scenario, transport, &template);
                match timeout(MEASURE_WITHIN, measuring).await {
                    Ok(cost) => costs.entry(*kind).or_default().push(cost),
                    Err(_) => left_out.push(*kind),
                }
            }
            for kind in left_out {
                println!(
                    "{:<13} {transport:<10} {kind:<8} is left out: it took more than {MEASURE_WITHIN:?}",
                    scenario.name
                );
                kinds.retain(|known| *known != kind);
            }
        }
        let raw: Vec<f64> = costs[&Kind::Raw].iter().map(|round| round.cpu).collect();
        for kind in &kinds {
            let costs = &costs[kind];
            let ratios = costs
                .iter()
                .zip(&raw)
                .map(|(round, raw)| round.cpu / raw)
                .collect();
            println!(
                "{:<13} {transport:<10} {kind:<8} {:>6.2} us server CPU a delivery, {:>5.2} x raw  {:>9.0} deliveries/s  p50 {:>6.2} ms, p99 {:>6.2} ms",
                scenario.name,
                median(costs.iter().map(|round| round.cpu).collect()),
                median(ratios),
                median(costs.iter().map(|round| round.per_sec).collect()),
                median(costs.iter().map(|round| round.p50).collect()),
                median(costs.iter().map(|round| round.p99).collect()),
            );
        }
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The figures of one round.
#[derive(Clone)]
struct Cost {
    /// CPU time of the server for each delivery, in microseconds.
    cpu: f64,
    per_sec: f64,
    /// From publishing to receiving, in milliseconds.
    p50: f64,
    p99: f64,
}

/// Returns an event of Tidings as a reader receives it.
async fn template(transport: Transport) -> Vec<u8> {
    let server = Peer::start(Kind::Tidings, 1).await;
    let path = server.reader_path(0, 0);
    let mut reader = Subscribers::capture(server.target(), transport, &path).await;
    let mut publisher = Connection::open(&server.address, server.token()).await;
    loop {
        let (path, body) = server.publication(0, b"{}", nanos());
        publisher.post(&path, &body).await;
        if let Some(event) = reader.event().await {
            return event;
        }
    }
}

/// Returns the template with this time.
fn stamped(template: &[u8], now: u64) -> Vec<u8> {
    let at = find(template, MARK).expect("a message") + MARK.len() - 1;
    let mut event = template.to_vec();
    event[at..at + DIGITS].copy_from_slice(now.to_string().as_bytes());
    event
}

async fn measure(kind: Kind, scenario: &Scenario, transport: Transport, template: &[u8]) -> Cost {
    let Scenario {
        readers, channels, ..
    } = *scenario;
    let server = Arc::new(Peer::start(kind, channels).await);
    let path = |reader| server.reader_path(reader % channels, 0);
    let subscribers = Subscribers::begin_at(server.target(), transport, readers, 64, path);
    subscribers.live(readers).await;
    let per_event = (readers / channels) as u64;
    let mut publisher = Publisher::open(&server, channels, template).await;
    for event in 1..=WARM_UP as u64 {
        publisher.publish().await;
        subscribers.wait_for(event * per_event).await;
    }
    let before = subscribers.received();
    subscribers.forget_times();
    let (cpu, start) = (server.cpu_secs(), Instant::now());
    let published = match scenario.pace {
        Pace::Window(window) => {
            let mut sent = 0;
            while start.elapsed() < MEASURE_FOR {
                let oldest = (sent + 1_u64).saturating_sub(window);
                subscribers.wait_for(before + oldest * per_event).await;
                publisher.publish().await;
                sent += 1;
            }
            sent
        }
        Pace::PerSecond(rate) => publish_at(rate, &server, channels, template).await,
    };
    subscribers.wait_for(before + published * per_event).await;
    let deliveries = (subscribers.received() - before) as f64;
    let (cpu, secs) = (server.cpu_secs() - cpu, start.elapsed().as_secs_f64());
    let times = subscribers.times();
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e6;
    Cost {
        cpu: cpu / deliveries * 1e6,
        per_sec: deliveries / secs,
        p50: at(0.5),
        p99: at(0.99),
    }
}

/// Publishes at this rate, over several connections if there are many channels. Returns how many events were published.
async fn publish_at(rate: u32, server: &Arc<Peer>, channels: usize, template: &[u8]) -> u64 {
    let connections = channels.min(4);
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let mut publisher = Publisher::open(server, channels, template).await;
        let next = Arc::clone(&next);
        let mut rounds = tokio::time::interval(Duration::from_secs(1) / rate * connections as u32);
        tasks.spawn(async move {
            let start = Instant::now();
            let mut count = 0;
            while start.elapsed() < MEASURE_FOR {
                rounds.tick().await;
                publisher.channel = next.fetch_add(1, Ordering::Relaxed);
                publisher.publish().await;
                count += 1;
            }
            count
        });
    }
    tasks.join_all().await.into_iter().sum()
}

struct Publisher {
    server: Arc<Peer>,
    connection: Connection,
    channels: usize,
    /// The next channel, before it is reduced to one that exists.
    channel: usize,
    template: Vec<u8>,
}

impl Publisher {
    async fn open(server: &Arc<Peer>, channels: usize, template: &[u8]) -> Publisher {
        Publisher {
            connection: Connection::open(&server.address, server.token()).await,
            server: Arc::clone(server),
            channels,
            channel: 0,
            template: template.to_vec(),
        }
    }

    async fn publish(&mut self) {
        let now = nanos();
        let event = stamped(&self.template, now);
        let channel = self.channel % self.channels;
        let (path, body) = self.server.publication(channel, &event, now);
        self.connection.post(&path, &body).await;
        self.channel += 1;
    }
}

/// What an event costs with conflation, as a multiple of what it costs without, by pairs of runs.
pub(crate) async fn fold() {
    for transport in TRANSPORTS {
        for kind in [Kind::Tidings, Kind::Before] {
            if !peers::installed().contains(&kind) {
                continue;
            }
            let mut ratios = Vec::new();
            let mut costs = Vec::new();
            for _ in 0..rounds() {
                let mut of_round = Vec::new();
                for tick_ms in [0, 100] {
                    let server = Arc::new(Peer::start(kind, 1).await);
                    let path = |_| server.reader_path(0, tick_ms);
                    let readers =
                        Subscribers::begin_at(server.target(), transport, 1_000, 64, path);
                    readers.live(1_000).await;
                    let cpu = server.cpu_secs();
                    let template = format!("{{{}{:018}\"}}", String::from_utf8_lossy(MARK), 0);
                    let count = publish_at(100, &server, 1, template.as_bytes()).await;
                    of_round.push((server.cpu_secs() - cpu) / count as f64 * 1e3);
                }
                ratios.push(of_round[0] / of_round[1]);
                costs.push(of_round);
            }
            println!(
                "conflation    {transport:<10} {kind:<8} {:.2} ms server CPU an event with tick_ms=0, {:.2} ms with tick_ms=100: {:.2} times less",
                median(costs.iter().map(|cost| cost[0]).collect()),
                median(costs.iter().map(|cost| cost[1]).collect()),
                median(ratios),
            );
        }
    }
}

/// Memory of an idle connection of each server.
pub(crate) async fn idle() {
    for transport in TRANSPORTS {
        for kind in peers::installed() {
            if kind == Kind::Raw || !Peer::is_offered(kind, transport) {
                continue;
            }
            let server = Peer::start(kind, 1).await;
            let path = |_| server.reader_path(0, 100);
            let first = Subscribers::begin_at(server.target(), transport, 50, 50, path);
            first.live(50).await;
            drop(first);
            let before = Process::memory(&server);
            let all = Subscribers::begin_at(server.target(), transport, IDLE, 64, path);
            all.live(IDLE).await;
            let each = (Process::memory(&server) - before) as f64 / IDLE as f64 / 1024.0;
            println!("idle          {transport:<10} {kind:<8} {each:>6.2} KiB a connection");
        }
    }
}
