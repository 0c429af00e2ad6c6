//! The port [`Nodes`]. A lock keeps every other process away from the database, so nodes are kept in memory: they all end
//! with this process.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::SqliteStore;
use crate::log::StoreError;
use crate::log::nodes::{Node, NodeId, NodeReport, Nodes};

/// The nodes that have reported, in the order of their first reports.
#[derive(Default)]
pub(super) struct KnownNodes {
    /// The key is the number of nodes that reported before.
    nodes: BTreeMap<u64, Known>,
    begun: u64,
}

struct Known {
    report: NodeReport,
    since: DateTime<Utc>,
    seen_at: DateTime<Utc>,
    seen: Instant,
}

impl KnownNodes {
    fn heartbeat(&mut self, report: NodeReport, forget_after: Duration) -> Vec<Node> {
        let (at, now) = (Utc::now(), Instant::now());
        let known = self.nodes.values_mut();
        let mut known = known.filter(|node| node.report.id == report.id);
        if let Some(node) = known.next() {
            (node.report, node.seen_at, node.seen) = (report, at, now);
        } else {
            let node = Known {
                report,
                since: at,
                seen_at: at,
                seen: now,
            };
            self.nodes.insert(self.begun, node);
            self.begun += 1;
        }
        let silent = |node: &Known| now.saturating_duration_since(node.seen);
        self.nodes.retain(|_, node| silent(node) <= forget_after);
        let node = |node: &Known| Node {
            report: node.report.clone(),
            since: node.since,
            seen_at: node.seen_at,
            silent: silent(node),
        };
        self.nodes.values().map(node).collect()
    }
}

#[async_trait]
impl Nodes for SqliteStore {
    async fn node_heartbeat(
        &self,
        report: NodeReport,
        forget_after: Duration,
    ) -> Result<Vec<Node>, StoreError> {
        self.writer
            .call(move |backend| Ok(backend.nodes.heartbeat(report, forget_after)))
            .await
    }

    async fn node_leaves(&self, id: &NodeId) -> Result<(), StoreError> {
        let id = id.clone();
        self.writer
            .call(move |backend| {
                backend.nodes.nodes.retain(|_, node| node.report.id != id);
                Ok(())
            })
            .await
    }
}
