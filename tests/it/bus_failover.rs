//! A bus on several servers, of which one fails or hands over its part: nodes find the server that takes its place.

use std::sync::Arc;

use async_trait::async_trait;
use tidings::bus::Bus;
use tidings::bus::redis::RedisBus;
use tidings::config::bus::BusUrl;
use tidings::id::{Epoch, SchoolId};

use crate::bus_contract::{EPOCH, Medium, Node, event, node, patiently};
use crate::support::redis::{Cluster, Watched};

#[async_trait]
impl Medium for Cluster {
    fn join(&self, epoch: Epoch) -> Arc<dyn Bus> {
        let hosts: Vec<String> = self
            .masters
            .iter()
            .map(|master| format!("127.0.0.1:{}", master.port()))
            .collect();
        let url = format!("redis-cluster://{}", hosts.join(","));
        Arc::new(RedisBus::new(BusUrl::parse(&url).unwrap(), epoch))
    }

    async fn inject(&self, _: Epoch, _: SchoolId, _: &[u8]) -> bool {
        false
    }

    async fn stop(&mut self) {
        unreachable!("its servers fail one by one")
    }

    async fn restart(&mut self) {
        unreachable!("its servers fail one by one")
    }
}

/// Publishes until a message arrives: those that are published while a server fails are lost.
async fn hears_again(sender: &Node, receiver: &mut Node, school: i64) {
    let hears = async {
        for seq in 2.. {
            let events = [event(school, seq, "after")];
            // An error is the sender's own failover.
            sender.try_publish(&events).await;
            if let Some((from, _)) = receiver.next_within_moments().await {
                assert_eq!(from, school);
                return;
            }
        }
    };
    patiently("messages arrive again", hears).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real bus"]
async fn the_replica_that_a_sentinel_promotes_is_found() {
    let Some(mut watched) = Watched::with_replica() else {
        return;
    };
    let (sender, mut receiver) = (node(&watched).await, node(&watched).await);
    receiver.subscribe(&[1]).await;
    sender.publish(&[event(1, 1, "before")]).await;
    assert_eq!(receiver.next_seqs().await, (1, vec![1]));
    watched.server.kill();
    for node in [&sender, &receiver] {
        let asked = patiently("it is connected again", node.hints.requested_check()).await;
        assert!(asked.all, "everything may have been missed");
    }
    hears_again(&sender, &mut receiver, 1).await;
    let replica = watched.replica.as_ref().unwrap();
    assert!(replica.says("INFO replication", "role:master"));
    assert!(watched.is_watched());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real bus"]
async fn the_replica_that_takes_a_failed_masters_place_in_a_cluster_is_found() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let (sender, mut receiver) = (node(&cluster).await, node(&cluster).await);
    // Schools of all three masters, of which one fails.
    let homes: Vec<usize> = (1..=24).map(|school| home(&cluster, school).0).collect();
    let schools: Vec<i64> = (0..3)
        .map(|master| {
            1 + i64::try_from(homes.iter().position(|home| *home == master).unwrap()).unwrap()
        })
        .collect();
    receiver.subscribe(&schools).await;
    for school in &schools {
        sender.publish(&[event(*school, 1, "before")]).await;
        assert_eq!(receiver.next_seqs().await, (*school, vec![1]));
    }
    cluster.masters[1].kill();
    let asked = patiently(
        "the receiver is connected again",
        receiver.hints.requested_check(),
    )
    .await;
    assert!(asked.all, "everything may have been missed");
    // Before that, a replica passes messages on too.
    patiently("the replica is promoted", async {
        while !cluster.replicas[1].says("INFO replication", "role:master") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for school in schools {
        hears_again(&sender, &mut receiver, school).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real bus"]
async fn a_channel_that_moves_within_a_cluster_is_subscribed_to_again() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let (sender, mut receiver) = (node(&cluster).await, node(&cluster).await);
    receiver.subscribe(&[1, 2]).await;
    // The end of a subscription that the node itself asked for is no reason to connect again.
    receiver.unsubscribe(&[2]).await;
    sender.publish(&[event(1, 1, "before")]).await;
    assert_eq!(receiver.next_seqs().await, (1, vec![1]));
    assert_eq!(receiver.metrics.read().disconnections, 0);
    let (from, slot) = home(&cluster, 1);
    cluster.move_slot(slot, from, (from + 1) % 3);
    let asked = patiently(
        "the receiver subscribes again",
        receiver.hints.requested_check(),
    )
    .await;
    assert!(asked.all, "everything may have been missed");
    hears_again(&sender, &mut receiver, 1).await;
}

fn home(cluster: &Cluster, school: i64) -> (usize, u16) {
    cluster.home(&format!(
        "tidings:{{{EPOCH}-{}}}:school:{school}",
        school % 64
    ))
}
