//! The contract of `Nodes`.

use chrono::{SubsecRound, Utc};
use tidings::log::nodes::{Fingerprint, Node, NodeId, NodeReport};

use super::*;

fn report(id: &NodeId, streams: u64) -> NodeReport {
    NodeReport {
        id: id.clone(),
        name: "host".into(),
        version: "1.2.3".into(),
        address: (streams > 0).then(|| "127.0.0.1:8000".into()),
        streams,
        events_per_sec: 1.5,
        lag: 2,
        bus: "connected".into(),
        bus_fingerprint: (streams > 1).then(|| Fingerprint::of("bus_url", b"redis://x")),
        secret_fingerprint: Fingerprint::of("jwt_secret", b"secret"),
        uptime: Uptime::from_millis(12_345),
    }
}

pub(super) async fn nodes_know_each_other_until_they_leave_or_are_forgotten(open: Open) {
    const KEPT: Duration = Duration::from_secs(3_600);
    let bench = bench(open, Settings::default());
    let ids = [NodeId::generate(), NodeId::generate(), NodeId::generate()];
    let report_of = async |index: usize, streams, forget_after| -> Vec<Node> {
        let nodes = bench
            .store
            .node_heartbeat(report(&ids[index], streams), forget_after);
        nodes.await.unwrap()
    };
    let first = report_of(0, 0, KEPT).await;
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].report, report(&ids[0], 0), "as it was reported");
    assert_eq!(first[0].since, first[0].seen_at);
    report_of(1, 1, KEPT).await;
    report_of(2, 2, KEPT).await;
    // Times are in milliseconds at least.
    let later = first[0].since.trunc_subsecs(3) + chrono::TimeDelta::milliseconds(5);
    while Utc::now() < later {
        tokio::task::yield_now().await;
    }
    let nodes = report_of(0, 3, KEPT).await;
    let order: Vec<&NodeId> = nodes.iter().map(|node| &node.report.id).collect();
    assert_eq!(order, ids.iter().collect::<Vec<_>>(), "as they began");
    assert_eq!(nodes[0].report, report(&ids[0], 3));
    assert_eq!(nodes[0].since, first[0].since);
    assert!(nodes[0].seen_at > first[0].seen_at);
    assert!(nodes[1].silent >= nodes[0].silent && nodes[1].silent < KEPT);
    bench.store.node_leaves(&ids[1]).await.unwrap();
    let nodes = report_of(2, 2, KEPT).await;
    let left: Vec<&NodeId> = nodes.iter().map(|node| &node.report.id).collect();
    assert_eq!(left, [&ids[0], &ids[2]]);
    let short = Duration::from_millis(1);
    while report_of(2, 2, KEPT).await[0].silent <= 2 * short {
        tokio::task::yield_now().await;
    }
    let nodes = report_of(2, 2, short).await;
    assert_eq!(nodes.len(), 1, "the other is forgotten");
    assert_eq!(nodes[0].report.id, ids[2]);
}
