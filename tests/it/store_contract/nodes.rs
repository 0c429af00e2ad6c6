//! What a store promises where several nodes use it: heartbeats that they share, nodes that know each other, and what is true
//! over all of them.

use chrono::{DateTime, SubsecRound, Utc};
use tidings::kind::device::{Heard, Status};
use tidings::log::heartbeats::{Heartbeat, LastHeartbeats, Shared};
use tidings::log::nodes::{Fingerprint, Node, NodeId, NodeReport};

use super::sources::{put_device, start};
use super::*;

fn heard(last: u64, before: Option<u64>) -> LastHeartbeats {
    LastHeartbeats {
        last: Heard {
            at: DateTime::from_timestamp_millis(1_000_000 + last as i64).unwrap(),
            uptime: Uptime::from_millis(last),
        },
        before: before.map(Uptime::from_millis),
    }
}

fn heartbeat(number: i64, id: &str, heard: LastHeartbeats) -> Heartbeat {
    Heartbeat {
        school: school(number),
        device: id.parse().unwrap(),
        heard,
    }
}

fn heartbeats(known: &[Option<Shared>]) -> Vec<Option<LastHeartbeats>> {
    let of = |known: &Option<Shared>| known.as_ref().and_then(|known| known.heard);
    known.iter().map(of).collect()
}

pub(super) async fn heartbeats_of_several_nodes_are_merged_and_those_of_no_device_are_not_kept(
    open: Open,
) {
    let bench = bench(open, Settings::default());
    bench
        .done(vec![
            put_device("a", json!({"lease_secs": 7})),
            put_device("b", json!({})),
        ])
        .await;
    bench.append(2, vec![put_device("a", json!({}))]).await;
    let save = async |saved: Vec<Heartbeat>| bench.store.save_heartbeats(saved).await.unwrap();
    let saved = save(vec![
        heartbeat(1, "nobody", heard(5, None)),
        heartbeat(1, "a", heard(10, None)),
        heartbeat(1, "b", heard(20, Some(15))),
    ])
    .await;
    assert_eq!(saved[0], None);
    let known = saved[1].as_ref().unwrap();
    assert_eq!((known.status, known.lease_secs), (Status::Unknown, 7));
    assert_eq!(known.seq, 1);
    let merged = [None, Some(heard(10, None)), Some(heard(20, Some(15)))];
    assert_eq!(heartbeats(&saved), merged);
    // Another node's, late and again.
    for _ in 0..2 {
        let saved = save(vec![
            heartbeat(1, "b", heard(18, Some(12))),
            heartbeat(1, "a", heard(30, Some(25))),
        ])
        .await;
        let merged = [Some(heard(20, Some(18))), Some(heard(30, Some(25)))];
        assert_eq!(heartbeats(&saved), merged);
    }
    let saved = save(vec![heartbeat(1, "a", heard(30, Some(30)))]).await;
    let two = Some(heard(30, Some(30)));
    assert_eq!(heartbeats(&saved), [two], "two within a millisecond");
    let devices = [(2, "a"), (1, "b"), (1, "nobody"), (1, "a")];
    let devices = devices.map(|(number, id)| (school(number), id.parse().unwrap()));
    let of = async || bench.store.heartbeats_of(devices.to_vec()).await.unwrap();
    let known = of().await;
    let read = [None, Some(heard(20, Some(18))), None, two];
    assert_eq!(heartbeats(&known), read);
    assert!(known[0].is_some(), "it exists and is silent");
    assert_eq!(known[2], None);
    // The answer for a device is its current state.
    let report = serde_json::from_value(json!({"status": "offline"})).unwrap();
    let report = Command::Device(kind::device::Command::Report(report));
    let report = Envelope::new("a".parse().unwrap(), report);
    bench.done(vec![report]).await;
    let known = of().await[3].clone().unwrap();
    assert_eq!((known.status, known.seq), (Status::Offline, 3));
    bench
        .store
        .forget_heartbeats(Uptime::from_millis(30))
        .await
        .unwrap();
    assert_eq!(heartbeats(&of().await), [None, None, None, two]);
    // Many at a time.
    let ids: Vec<String> = (0..500).map(|number| format!("d{number}")).collect();
    let devices = ids.iter().map(|id| put_device(id, json!({}))).collect();
    bench.done(devices).await;
    let all = ids
        .iter()
        .map(|id| heartbeat(1, id, heard(40, None)))
        .collect();
    let saved = save(all).await;
    assert_eq!(heartbeats(&saved), vec![Some(heard(40, None)); 500]);
}

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

/// How often the tests below race.
pub(super) const RACES: usize = 50;

/// Two handles to one database, as two nodes have them. A store that only one process can open is raced with itself.
pub(super) struct Pair {
    pub(super) bench: Bench,
    pub(super) other: Option<Box<dyn Store>>,
}

impl Pair {
    pub(super) fn open(open: Open, again: Option<Open>, settings: Settings) -> Pair {
        let bench = bench(open, settings);
        let other = again.map(|again| {
            let (committed, mut batches) = Committed::channel(1_000);
            tokio::spawn(async move { while batches.recv().await.is_some() {} });
            again(&bench.place, &bench.settings, committed)
        });
        Pair { bench, other }
    }

    /// Carries out a command at each handle, at the same time.
    async fn race(&self, one: Envelope, other: Envelope) -> [Result<Receipt, CommandError>; 2] {
        let second = self.other.as_deref().unwrap_or(&*self.bench.store);
        let (one, other) = tokio::join!(
            self.bench.store.append(school(1), vec![one]),
            second.append(school(1), vec![other]),
        );
        [one.unwrap().remove(0), other.unwrap().remove(0)]
    }

    async fn seqs(&self) -> Vec<u64> {
        let everything = Arc::new(Scope::new(
            school(1),
            [tidings::id::Channel::School(school(1))],
        ));
        self.bench.replayed(&everything, 0, false).await
    }
}

pub(super) async fn a_device_is_held_once_whoever_asks(open: Open, again: Option<Open>) {
    let pair = Pair::open(open, again, Settings::default());
    for round in 0..RACES {
        let device = format!("door{round}");
        let (one, other) = (format!("a{round}"), format!("b{round}"));
        let answers = pair
            .race(start(&one, &device), start(&other, &device))
            .await;
        let held = |answer: &&Result<Receipt, CommandError>| {
            matches!(answer, Err(CommandError::Rule(RuleError::Held { .. })))
        };
        let rejected = answers.iter().filter(held).count();
        let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!((accepted, rejected), (1, 1), "{answers:?}");
    }
    assert_eq!(pair.seqs().await, (1..=RACES as u64).collect::<Vec<_>>());
}

pub(super) async fn a_limit_of_subjects_is_kept_whoever_creates_them(
    open: Open,
    again: Option<Open>,
) {
    let settings = Settings {
        jobs_per_school: Bounded::new(RACES as u64 + 1).unwrap(),
        ..Settings::default()
    };
    let pair = Pair::open(open, again, settings);
    let mut created = 0;
    for round in 0..RACES {
        let (one, other) = (format!("a{round}"), format!("b{round}"));
        for answer in pair.race(create(&one), create(&other)).await {
            match answer {
                Ok(_) => created += 1,
                Err(CommandError::Rule(RuleError::TooMany { .. })) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert_eq!(created, RACES + 1);
    assert_eq!(pair.seqs().await.len(), RACES + 1);
}

pub(super) async fn a_key_is_carried_out_once_whoever_repeats_it(open: Open, again: Option<Open>) {
    let pair = Pair::open(open, again, Settings::default());
    for round in 0..RACES {
        let keyed = || Envelope {
            idempotency: Some(Idempotency {
                key: format!("k{round}"),
                fingerprint: "x".into(),
            }),
            ..create(&format!("j{round}"))
        };
        let [one, other] = pair.race(keyed(), keyed()).await;
        match (one.unwrap(), other.unwrap()) {
            (Receipt::Committed(first), Receipt::Repeated(second))
            | (Receipt::Repeated(second), Receipt::Committed(first)) => {
                assert_eq!((first.seq, first.place()), (second.seq, second.place()));
            }
            both => panic!("{both:?}"),
        }
    }
    assert_eq!(pair.seqs().await, (1..=RACES as u64).collect::<Vec<_>>());
}

pub(super) async fn reports_of_one_job_at_two_handles_are_all_in_one_order(
    open: Open,
    again: Option<Open>,
) {
    let pair = Pair::open(open, again, Settings::default());
    pair.bench.done(vec![create("a")]).await;
    for _ in 0..RACES {
        for answer in pair.race(tick("a"), tick("a")).await {
            answer.unwrap();
        }
    }
    let [one, other] = pair
        .race(
            envelope("a", "complete", json!({})),
            envelope("a", "fail", json!({"error": "x"})),
        )
        .await;
    assert!(one.is_ok() != other.is_ok(), "it ends once");
    let all = 2 * RACES as u64 + 2;
    assert_eq!(pair.seqs().await, (1..=all).collect::<Vec<_>>());
}

/// The counts are kept by differences from the states that a node knows, which another one may have changed.
pub(super) async fn each_subject_is_counted_once_if_two_nodes_change_it(
    open: Open,
    again: Option<Open>,
) {
    let pair = Pair::open(open, again, Settings::default());
    for number in 0..RACES {
        let id = format!("j{number}");
        pair.bench.done(vec![create(&id), tick(&id)]).await;
        let complete = envelope(&id, "complete", json!({}));
        let fail = envelope(&id, "fail", json!({"error": "x"}));
        let [one, other] = pair.race(complete, fail).await;
        assert!(one.is_ok() != other.is_ok(), "it ends once");
    }
    let counts = pair.bench.store.counts(school(1), KIND).await.unwrap();
    let of = |statuses: &[&str]| -> u64 {
        let own = counts.iter().filter(|(own, _)| statuses.contains(own));
        own.map(|(_, count)| count).sum()
    };
    assert_eq!(of(&["completed", "failed"]), RACES as u64, "{counts:?}");
    assert_eq!(of(&["pending", "in_progress"]), 0, "{counts:?}");
}

/// A rejection writes nothing, so that no comparison at the commit finds that it was decided by an outdated state.
pub(super) async fn what_is_rejected_is_judged_by_what_the_other_handle_has_written(
    open: Open,
    again: Option<Open>,
) {
    let pair = Pair::open(open, again, Settings::default());
    let second = pair.other.as_deref().unwrap_or(&*pair.bench.store);
    let handles = [&*pair.bench.store, second];
    pair.bench.done(vec![create("a")]).await;
    for round in 0..6 {
        let (one, other) = (handles[round % 2], handles[(round + 1) % 2]);
        // Both know the job while it runs.
        for handle in [one, other] {
            let receipts = handle.append(school(1), vec![tick("a")]).await.unwrap();
            receipts[0].as_ref().unwrap();
        }
        let fail = envelope("a", "fail", json!({"error": "x"}));
        let retry = envelope("a", "retry", json!({}));
        let start = envelope("a", "start", json!({}));
        for (handle, command) in [(other, fail), (one, retry), (other, start)] {
            let receipts = handle.append(school(1), vec![command]).await.unwrap();
            receipts[0].as_ref().unwrap();
        }
    }
}
