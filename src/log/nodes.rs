//! The port *nodes*: lets the nodes that share a store know about each other.
//!
//! Each node reports periodically ([`Nodes::node_heartbeat`]), and reads in the same round trip what the others reported.
//! All times are measured by the store's clock, because nodes compare them.
//!
//! ```text
//! report ──every NODE_PERIOD──▶ alive ──NODE_GONE without one──▶ gone ──NODE_FORGOTTEN──▶ forgotten
//!                                 └──────────────clean shutdown (node_leaves)───────────────▲
//! ```

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::StoreError;
use crate::uptime::Uptime;

/// Bytes of a digest that are kept as a fingerprint.
const FINGERPRINT_BYTES: usize = 8;

/// The id of a node's process: a node that is restarted gets a new one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(String);

impl NodeId {
    /// Returns a new random id.
    pub fn generate() -> NodeId {
        let random = getrandom::u64().expect("the operating system provides random numbers");
        NodeId(format!("{random:016x}"))
    }

    /// Returns the id that a store has kept.
    pub fn stored(text: impl Into<String>) -> NodeId {
        NodeId(text.into())
    }

    /// Returns the id as a text: 16 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Shows whether two nodes have the same setting without revealing it: part of a digest, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Returns the fingerprint of a setting's value.
    pub fn of(setting: &str, value: &[u8]) -> Fingerprint {
        let digest = Sha256::new()
            .chain_update(b"tidings fingerprint\0")
            .chain_update(setting.as_bytes())
            .chain_update(b"\0")
            .chain_update(value)
            .finalize();
        let hex = digest[..FINGERPRINT_BYTES].iter();
        Fingerprint(hex.map(|byte| format!("{byte:02x}")).collect())
    }

    /// Returns the fingerprint that a store has kept.
    pub fn stored(text: impl Into<String>) -> Fingerprint {
        Fingerprint(text.into())
    }

    /// Returns the fingerprint as a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a node reports about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The id of the process.
    pub id: NodeId,
    /// The name of its machine.
    pub name: String,
    /// The version of Tidings that it runs.
    pub version: String,
    /// The address on which it listens, once it does.
    pub address: Option<String>,
    /// Open streams.
    pub streams: u64,
    /// Events that it has committed per second, on average over the last seconds.
    pub events_per_sec: f64,
    /// How far its streams are behind the logs that they follow, in events, when it last looked.
    pub lag: u64,
    /// The state of its connection to the other nodes, in a word or two.
    pub bus: String,
    /// The fingerprint of the bus, once it is known.
    pub bus_fingerprint: Option<Fingerprint>,
    /// The fingerprint of the secret that signs its tickets and tokens.
    pub secret_fingerprint: Fingerprint,
    /// Its uptime, by which silence is measured. The highest of all nodes is the cluster's.
    pub uptime: Uptime,
}

/// A node as the store knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its last report.
    pub report: NodeReport,
    /// When it first reported.
    pub since: DateTime<Utc>,
    /// When it last reported.
    pub seen_at: DateTime<Utc>,
    /// How long ago that was.
    pub silent: Duration,
}

/// Lets the nodes that share a store know about each other.
#[async_trait]
pub trait Nodes: Send + Sync + 'static {
    /// Records that this node is running. Returns all nodes, including this one, in the order in which they first reported,
    /// then by id. Removes nodes that have been silent for longer than `forget_after`.
    async fn node_heartbeat(
        &self,
        report: NodeReport,
        forget_after: Duration,
    ) -> Result<Vec<Node>, StoreError>;

    /// Removes a node that was shut down cleanly.
    async fn node_leaves(&self, id: &NodeId) -> Result<(), StoreError>;
}
