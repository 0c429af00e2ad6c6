//! The nodes that share one store: each reports periodically, and reads what the others report.
//!
//! ```text
//! health ─▶ report ─▶ log::nodes ─▶ all nodes ─▶ the System page, /metrics
//!                                      ├─▶ their highest uptime: this node's clock is moved ahead to it
//!                                      ├─▶ settings that differ: logged, or the node does not start
//!                                      └─▶ whether a node ran before this one: Peers
//! ```
//!
//! On a single-node store there is one node, which finds no others.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use chrono::{DateTime, Utc};
use tokio::time::sleep;

use crate::config::{NODE_CATCH_UP_PERIOD, NODE_DIFFERS, NODE_FORGOTTEN, NODE_GONE, NODE_PERIOD};
use crate::failures::Failures;
use crate::log::nodes::{Fingerprint, Node, NodeId, NodeReport};
use crate::log::{Store, StoreError};
use crate::uptime::Uptime;

/// The properties of this node that do not change.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The process.
    pub id: NodeId,
    /// The name of its machine.
    pub name: String,
    /// The fingerprint of its secret.
    pub secret_fingerprint: Fingerprint,
}

/// The current state of this node, as it reports it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeHealth {
    /// The address on which it listens, once it does.
    pub address: Option<String>,
    /// Open streams.
    pub streams: u64,
    /// Events that it has committed per second, on average over the last seconds.
    pub events_per_sec: f64,
    /// How far its streams are behind the logs that they follow, in events.
    pub lag: u64,
    /// The state of its connection to the other nodes.
    pub bus: String,
    /// The fingerprint of the bus, once it is known.
    pub bus_fingerprint: Option<Fingerprint>,
}

/// Whether another node was running when this one started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// It is not known yet whether a node that has reported lately is still running.
    Unclear,
    /// No: the cluster was down as a whole.
    Absent,
    /// Yes.
    Running,
}

/// A running node has another value of a setting that all nodes must share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "setting `{setting}` differs from that of the running node {name} ({id}); all nodes that share a database need the same value. If the other node is no longer running, start again in {} s",
    NODE_GONE.as_secs()
)]
pub struct Differs {
    /// The setting.
    pub setting: &'static str,
    /// The other node's name.
    pub name: String,
    /// The other node.
    pub id: NodeId,
}

/// Reads the health of this node.
pub type ReadNodeHealth = Box<dyn Fn() -> NodeHealth + Send + Sync>;

/// The nodes that share one store. See the module documentation.
pub struct Cluster {
    store: Arc<dyn Store>,
    identity: Identity,
    health: ReadNodeHealth,
    known: Mutex<Known>,
}

struct Known {
    nodes: Vec<Node>,
    /// When this process read them.
    read_at: Instant,
    peers: Peers,
    /// The nodes that had started before this one and may still have been running at its first report, with the times
    /// of their last reports. `None` before that report.
    earlier_nodes: Option<HashMap<NodeId, DateTime<Utc>>>,
    /// The present differences: since when each has been seen, and whether it was logged.
    differing: HashMap<(NodeId, &'static str), (Instant, bool)>,
    /// The number of pauses of this node's clock, and the times of the last reports of the other running nodes when they were first read
    /// after the last pause.
    first_read: (u64, HashMap<NodeId, DateTime<Utc>>),
}

impl Identity {
    /// Returns the identity of this process, with this id and secret.
    pub fn new(id: NodeId, secret_fingerprint: Fingerprint) -> Identity {
        Identity {
            id,
            name: machine(),
            secret_fingerprint,
        }
    }
}

/// Returns the name of this machine, as its kernel or its environment knows it.
fn machine() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.or_else(|| std::env::var("HOSTNAME").ok());
    let name = name.map(|name| name.trim().to_owned());
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

impl Cluster {
    /// Creates this node's view of the nodes, before its first report.
    pub fn new(store: Arc<dyn Store>, identity: Identity, health: ReadNodeHealth) -> Cluster {
        Cluster {
            store,
            identity,
            health,
            known: Mutex::new(Known {
                nodes: Vec::new(),
                read_at: Instant::now(),
                peers: Peers::Unclear,
                earlier_nodes: None,
                differing: HashMap::new(),
                first_read: (0, HashMap::new()),
            }),
        }
    }

    /// Returns the id of this node.
    pub fn id(&self) -> &NodeId {
        &self.identity.id
    }

    /// Returns all nodes as of this node's last report, in the order in which they started.
    pub fn nodes(&self) -> Vec<Node> {
        let known = self.lock();
        let passed = known.read_at.elapsed();
        let mut nodes = known.nodes.clone();
        nodes.iter_mut().for_each(|node| node.silent += passed);
        nodes
    }

    /// Returns whether another node was running when this one started.
    pub fn peers(&self) -> Peers {
        self.lock().peers
    }

    /// Reports for the first time. Fails if a running node has another secret: tickets and tokens of one node would be
    /// rejected by the other.
    pub async fn join(&self) -> Result<Result<(), Differs>, StoreError> {
        let nodes = self.exchange_reports().await?;
        let differing = differences(&nodes, self.id());
        let differs = differing
            .into_iter()
            .find(|differs| differs.setting == SECRET);
        if differs.is_some() {
            self.leave().await;
        }
        Ok(differs.map_or(Ok(()), Err))
    }

    /// Reports periodically until it is dropped. More often while this node has just started, or its clock may be behind those of
    /// other nodes.
    pub async fn watch(self: Arc<Self>) {
        let (began, clock) = (Instant::now(), self.store.uptime());
        let mut failures = Failures::default();
        loop {
            match self.exchange_reports().await {
                Ok(nodes) => {
                    failures.worked();
                    self.report_differences(&nodes);
                }
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    if let Some(failed) = failures.failed(Instant::now()) {
                        tracing::error!(%error, failed, "this node could not report to the others");
                    }
                }
            }
            let is_new = began.elapsed() < NODE_PERIOD;
            sleep(match is_new || clock.is_behind() {
                true => NODE_CATCH_UP_PERIOD,
                false => NODE_PERIOD,
            })
            .await;
        }
    }

    /// Reports to the other nodes that this node shuts down in order.
    pub async fn leave(&self) {
        if let Err(error) = self.store.node_leaves(self.id()).await
            && error != StoreError::Stopped
        {
            tracing::warn!(%error, "the shutdown of this node could not be reported to the other nodes");
        }
    }

    async fn exchange_reports(&self) -> Result<Vec<Node>, StoreError> {
        let clock = self.store.uptime();
        let pauses = clock.pauses();
        let health = (self.health)();
        let report = NodeReport {
            id: self.identity.id.clone(),
            name: self.identity.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: health.address,
            streams: health.streams,
            events_per_sec: health.events_per_sec,
            lag: health.lag,
            bus: health.bus,
            bus_fingerprint: health.bus_fingerprint,
            secret_fingerprint: self.identity.secret_fingerprint.clone(),
            uptime: clock.now(),
        };
        let nodes = self.store.node_heartbeat(report, NODE_FORGOTTEN).await?;
        let mut known = self.lock();
        let others = nodes.iter().filter(|node| node.report.id != *self.id());
        if let Some(highest) = others.map(|node| known.uptime_of(node)).max() {
            clock.advance_to(highest);
        }
        if known.has_heard_from_all(&nodes, self.id(), pauses) {
            clock.compared_after(pauses);
        }
        known.take_in(&nodes, self.id());
        Ok(nodes)
    }

    fn report_differences(&self, nodes: &[Node]) {
        let differing = differences(nodes, self.id());
        let new = self.lock().new_differences(differing, Instant::now());
        for differs in new {
            tracing::error!(
                setting = differs.setting, node.name = differs.name, node.id = %differs.id,
                "a setting that all nodes must share differs from that of another node"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The settings that all nodes must share.
const SECRET: &str = "jwt_secret";
const BUS: &str = "bus_url";

/// Returns whether a node is running, according to its reports.
pub fn is_running(node: &Node) -> bool {
    node.silent < NODE_GONE
}

/// Returns the settings that all nodes must share and in which a running node differs from this one.
fn differences(nodes: &[Node], this_id: &NodeId) -> Vec<Differs> {
    let Some(this) = nodes.iter().find(|node| node.report.id == *this_id) else {
        return Vec::new();
    };
    let this = &this.report;
    let others = nodes
        .iter()
        .filter(|node| node.report.id != this.id && is_running(node));
    let mut differing = Vec::new();
    for node in others {
        let report = &node.report;
        let secret = (report.secret_fingerprint != this.secret_fingerprint).then_some(SECRET);
        // The bus is compared only once both nodes have reached its server.
        let buses = report
            .bus_fingerprint
            .as_ref()
            .zip(this.bus_fingerprint.as_ref());
        let bus = buses.and_then(|(theirs, ours)| (theirs != ours).then_some(BUS));
        let differs = |setting| Differs {
            setting,
            name: report.name.clone(),
            id: report.id.clone(),
        };
        differing.extend([secret, bus].into_iter().flatten().map(differs));
    }
    differing
}

impl Known {
    /// Returns the uptime of a node at this moment. A node that has reported since the last exchange counts on: without the time since
    /// its report, the clocks of nodes would differ by up to [`NODE_PERIOD`], and a message that one of them received would be
    /// too old for another. If it has ended meanwhile, at most [`NODE_PERIOD`] counts in which no node may have listened.
    fn uptime_of(&self, node: &Node) -> Uptime {
        let known = self.nodes.iter().find(|at| at.report.id == node.report.id);
        let counts_on = known.is_some_and(|known| known.seen_at < node.seen_at);
        match counts_on {
            true => node.report.uptime + node.silent.min(NODE_PERIOD),
            false => node.report.uptime,
        }
    }

    /// Whether all other running nodes have reported since this one first read their reports after its last pause. What they reported
    /// before may not include the time of the pause.
    fn has_heard_from_all(&mut self, nodes: &[Node], this_id: &NodeId, pauses: u64) -> bool {
        let others = nodes
            .iter()
            .filter(|node| node.report.id != *this_id && is_running(node));
        if self.first_read.0 != pauses {
            let seen_at = |node: &Node| (node.report.id.clone(), node.seen_at);
            self.first_read = (pauses, others.clone().map(seen_at).collect());
        }
        let first = &self.first_read.1;
        let mut others = others;
        others.all(|node| {
            let first = first.get(&node.report.id);
            first.is_none_or(|first| node.seen_at > *first)
        })
    }

    /// Returns the differences that are to be logged. After the server of the bus has started again, nodes differ until each of them has
    /// noticed that and reported again, so only what has lasted longer counts.
    fn new_differences(&mut self, found: Vec<Differs>, now: Instant) -> Vec<Differs> {
        let what = |differs: &Differs| (differs.id.clone(), differs.setting);
        let present: HashSet<_> = found.iter().map(what).collect();
        self.differing.retain(|what, _| present.contains(what));
        let is_new = |differs: &Differs| {
            let known = self.differing.entry(what(differs));
            let (since, is_logged) = known.or_insert((now, false));
            let lasts = now.duration_since(*since) >= NODE_DIFFERS;
            lasts && !std::mem::replace(is_logged, lasts)
        };
        found.into_iter().filter(is_new).collect()
    }

    fn take_in(&mut self, nodes: &[Node], this_id: &NodeId) {
        self.nodes = nodes.to_vec();
        self.read_at = Instant::now();
        if self.peers != Peers::Unclear {
            return;
        }
        let before = |node: &&Node| node.report.id != *this_id;
        let earlier: Vec<&Node> = nodes.iter().take_while(before).collect();
        let first = self.earlier_nodes.get_or_insert_with(|| {
            let seen_at = |node: &&Node| (node.report.id.clone(), node.seen_at);
            let running = earlier.iter().filter(|node| is_running(node));
            running.map(seen_at).collect()
        });
        self.peers = peers(&earlier, first);
    }
}

/// Decides whether nodes that started before this one were running at that time. `first` has the times of their last
/// reports as of this node's first report; `earlier` are their reports of now. A node that was killed recently looks
/// like a running one: only a further report, or an orderly shutdown, proves that it was running.
fn peers(earlier: &[&Node], first: &HashMap<NodeId, DateTime<Utc>>) -> Peers {
    let now = |id: &NodeId| earlier.iter().find(|node| node.report.id == *id);
    let was_running =
        |(id, then): (&NodeId, &DateTime<Utc>)| now(id).is_none_or(|node| node.seen_at > *then);
    let may_be_running = |id: &NodeId| now(id).is_some_and(|node| is_running(node));
    match () {
        () if first.iter().any(was_running) => Peers::Running,
        () if first.keys().any(may_be_running) => Peers::Unclear,
        () => Peers::Absent,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::TimeDelta;

    use super::*;
    use crate::uptime::Uptime;

    fn report(id: &str, secret: &str, bus: Option<&str>) -> NodeReport {
        NodeReport {
            id: NodeId::stored(id),
            name: format!("host-{id}"),
            version: "1".into(),
            address: None,
            streams: 0,
            events_per_sec: 0.0,
            lag: 0,
            bus: String::new(),
            bus_fingerprint: bus.map(|bus| Fingerprint::of(BUS, bus.as_bytes())),
            secret_fingerprint: Fingerprint::of(SECRET, secret.as_bytes()),
            uptime: Uptime::default(),
        }
    }

    /// A node that reported at this second, when it is another second.
    fn node(report: &NodeReport, seen_at: u64, now: u64) -> Node {
        let at = |secs: u64| DateTime::UNIX_EPOCH + TimeDelta::seconds(secs.cast_signed());
        Node {
            report: report.clone(),
            since: at(0),
            seen_at: at(seen_at),
            silent: Duration::from_secs(now - seen_at),
        }
    }

    fn nothing_known() -> Known {
        Known {
            nodes: Vec::new(),
            read_at: Instant::now(),
            peers: Peers::Unclear,
            earlier_nodes: None,
            differing: HashMap::new(),
            first_read: (0, HashMap::new()),
        }
    }

    /// What the node of this report concludes from reading these nodes, one round after the other.
    fn conclusions(report: &NodeReport, rounds: &[&[Node]]) -> Vec<Peers> {
        let mut known = nothing_known();
        let conclude = |nodes: &&[Node]| {
            known.take_in(nodes, &report.id);
            known.peers
        };
        rounds.iter().map(conclude).collect()
    }

    #[test]
    fn a_difference_is_logged_once_it_has_lasted_and_again_if_it_returns() {
        let (this, other) = (report("a", "s", Some("x")), report("b", "s", Some("y")));
        let same = report("b", "s", Some("x"));
        let (mut known, start) = (nothing_known(), Instant::now());
        let mut count = |other: &NodeReport, after: Duration| {
            let found = differences(&[node(&this, 0, 0), node(other, 0, 0)], &this.id);
            known.new_differences(found, start + after).len()
        };
        assert_eq!(count(&other, Duration::ZERO), 0);
        assert_eq!(count(&same, NODE_DIFFERS), 0, "it was of a moment");
        for (after, expected) in [(1, 0), (2, 1), (3, 0)] {
            assert_eq!(count(&other, after * NODE_DIFFERS), expected, "{after}");
        }
        assert_eq!(count(&same, 4 * NODE_DIFFERS), 0);
        for (after, expected) in [(5, 0), (6, 1)] {
            assert_eq!(count(&other, after * NODE_DIFFERS), expected, "{after}");
        }
    }

    #[test]
    fn a_node_is_alone_only_if_no_node_that_began_before_it_still_reports() {
        use Peers::{Absent, Running, Unclear};
        let gone = NODE_GONE.as_secs();
        let (one, this, late) = (
            report("1", "s", None),
            report("2", "s", None),
            report("3", "s", None),
        );
        let alone = [node(&this, 5, 5), node(&late, 5, 5)];
        assert_eq!(
            conclusions(&this, &[&alone]),
            [Absent],
            "one that came later"
        );
        let at = |one_seen_at, now| vec![node(&one, one_seen_at, now), node(&this, now, now)];
        let long_gone = at(0, gone);
        assert_eq!(conclusions(&this, &[&long_gone]), [Absent]);
        // It may have been killed just now.
        let runs = [at(4, 5), at(4, 7), at(8, 9), at(8, 8 + gone)];
        let read: Vec<&[Node]> = runs.iter().map(Vec::as_slice).collect();
        assert_eq!(
            conclusions(&this, &read),
            [Unclear, Unclear, Running, Running]
        );
        let killed = [at(4, 5), at(4, 3 + gone), at(4, 4 + gone), at(30, 30)];
        let read: Vec<&[Node]> = killed.iter().map(Vec::as_slice).collect();
        assert_eq!(
            conclusions(&this, &read),
            [Unclear, Unclear, Absent, Absent],
            "once and for all"
        );
        // It ends in order meanwhile, so it was there.
        let left = vec![node(&this, 7, 7)];
        let first = at(4, 5);
        assert_eq!(conclusions(&this, &[&first, &left]), [Unclear, Running]);
        let old = report("0", "s", None);
        let first = [
            node(&old, 0, gone),
            node(&one, gone, gone),
            node(&this, gone, gone),
        ];
        let killed = [node(&one, gone, 2 * gone), node(&this, 2 * gone, 2 * gone)];
        assert_eq!(
            conclusions(&this, &[&first, &killed]),
            [Unclear, Absent],
            "and another is forgotten"
        );
    }

    /// A restart must not count the time since the last report of the process before it.
    #[test]
    fn a_node_counts_on_after_its_report_only_if_it_has_reported_since_this_one_read_of_it() {
        let (this, other) = (report("1", "s", None), report("2", "s", None));
        let mut known = nothing_known();
        let uptimes = [(4, 5), (5, 6), (5, 7), (7, 12)].map(|(seen_at, now)| {
            let node = node(&other, seen_at, now);
            let uptime = known.uptime_of(&node);
            known.take_in(&[node], &this.id);
            uptime.millis()
        });
        assert_eq!(uptimes, [0, 1_000, 0, 2_000]);
    }

    #[test]
    fn all_nodes_have_been_heard_from_once_each_that_runs_has_reported_again_after_the_pause() {
        let (this, one, other) = (
            report("1", "s", None),
            report("2", "s", None),
            report("3", "s", None),
        );
        let mut known = nothing_known();
        let mut heard = |pauses, others: &[Node]| {
            let nodes = [&[node(&this, 20, 20)], others].concat();
            known.has_heard_from_all(&nodes, &this.id, pauses)
        };
        assert!(heard(1, &[]), "nobody else runs");
        assert!(heard(1, &[node(&one, 19, 20)]), "it started later");
        let gone = node(&other, 0, NODE_GONE.as_secs());
        let first = [node(&one, 19, 20), gone];
        assert!(!heard(2, &first), "one report may be from before the pause");
        assert!(!heard(2, &first));
        let again = [node(&one, 20, 20), first[1].clone()];
        assert!(heard(2, &again), "and the node that is gone does not count");
        assert!(!heard(3, &again), "another pause");
    }

    #[test]
    fn a_running_node_with_another_secret_or_bus_is_named_and_one_that_is_gone_is_not() {
        let this = report("1", "s", Some("b"));
        let same = node(&report("2", "s", Some("b")), 5, 5);
        let secret = node(&report("3", "other", Some("b")), 5, 5);
        let bus = node(&report("4", "s", Some("other")), 5, 5);
        let unknown = node(&report("5", "s", None), 5, 5);
        let gone = NODE_GONE.as_secs();
        let both_gone = node(&report("6", "other", Some("other")), 0, gone);
        let nodes = [node(&this, 5, 5), same, secret, bus, unknown, both_gone];
        let found = differences(&nodes, &this.id);
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|differs| (differs.id.as_str(), differs.setting))
            .collect();
        assert_eq!(found, [("3", SECRET), ("4", BUS)]);
    }
}
