//! The contract of `Heartbeats`: what several nodes have received is merged.

use chrono::DateTime;
use tidings::kind::device::{Heard, Status};
use tidings::log::heartbeats::{Heartbeat, LastHeartbeats, Shared};

use super::sources::put_device;
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
