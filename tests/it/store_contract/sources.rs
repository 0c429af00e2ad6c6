//! What a store promises of the kinds other than jobs.

use chrono::Utc;
use tidings::config::READ_PAGE_BYTES;
use tidings::kind::{Part, characteristic, device, enrollment, schedule};
use tidings::log::PartQuery;

use super::*;

fn read<T: serde::de::DeserializeOwned>(body: serde_json::Value) -> T {
    serde_json::from_value(body).unwrap()
}

fn to(subject: &str, command: Command) -> Envelope {
    Envelope::new(subject.parse().unwrap(), command)
}

fn session(id: &str, command: enrollment::Command) -> Envelope {
    to(id, Command::Enrollment(command))
}

pub(super) fn start(id: &str, device: &str) -> Envelope {
    let body = json!({"device_id": device});
    session(id, enrollment::Command::Start(read(body)))
}

fn cancel(id: &str) -> Envelope {
    session(id, enrollment::Command::Cancel(read(json!({}))))
}

pub(super) fn put_device(id: &str, body: serde_json::Value) -> Envelope {
    to(id, Command::Device(device::Command::Register(read(body))))
}

fn put_schedule(id: &str, body: serde_json::Value) -> Envelope {
    to(id, Command::Schedule(schedule::Command::Put(read(body))))
}

fn read_characteristic(body: serde_json::Value) -> Command {
    Command::Characteristic(characteristic::Command::Register(read(body)))
}

fn read_sample(body: serde_json::Value) -> Command {
    Command::Characteristic(characteristic::Command::Sample(read(body)))
}

fn put_characteristic(id: &str) -> Envelope {
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
    to(id, read_characteristic(json!({ "limits": limits })))
}

fn sample(id: &str, value: f64) -> Envelope {
    to(id, read_sample(json!({ "value": value })))
}

fn acknowledge(id: &str, number: u64) -> Envelope {
    let acknowledge = characteristic::Command::Acknowledge(characteristic::Acknowledge {
        number,
        user: "ann".into(),
        reason: "known".into(),
    });
    to(id, Command::Characteristic(acknowledge))
}

pub(super) async fn a_device_has_at_most_one_active_session(open: Open) {
    let bench = bench(open, Settings::default());
    let group = vec![start("a", "door"), start("b", "door"), start("c", "gate")];
    let answers = bench.append(1, group).await;
    assert!(answers[0].is_ok() && answers[2].is_ok());
    let held = |answer: &Result<Receipt, CommandError>| {
        matches!(answer, Err(CommandError::Rule(RuleError::Held { .. })))
    };
    assert!(held(&answers[1]), "within one group");
    assert!(
        held(&bench.append(1, vec![start("b", "door")]).await[0]),
        "and later"
    );
    let group = vec![
        cancel("a"),
        start("b", "door"),
        cancel("b"),
        start("d", "door"),
        start("e", "door"),
    ];
    let answers = bench.append(1, group).await;
    assert!(answers[..4].iter().all(Result::is_ok), "{answers:?}");
    assert!(held(&answers[4]));
    let bench = bench.reopened(open).await;
    assert!(
        held(&bench.append(1, vec![start("f", "door")]).await[0]),
        "and after reopening"
    );
}

pub(super) async fn a_snapshot_of_several_events_a_subject_contains_each_once_and_in_order(
    open: Open,
) {
    let bench = bench(open, Settings::default());
    let number = 400;
    let ids: Vec<String> = (0..number).map(|number| format!("d{number}")).collect();
    bench
        .done(
            ids.iter()
                .map(|id| put_device(id, json!({"info": {"model": 1}})))
                .collect(),
        )
        .await;
    let report = |id: &String| {
        let report = read(json!({"status": "online"}));
        to(id, Command::Device(device::Command::Report(report)))
    };
    bench.done(ids.iter().rev().map(report).collect()).await;
    bench
        .done(
            (0..300)
                .map(|number| put_characteristic(&format!("c{number}")))
                .collect(),
        )
        .await;
    bench
        .done(
            (0..300)
                .map(|number| sample(&format!("c{number}"), 9.0))
                .collect(),
        )
        .await;
    bench.done(vec![create("job")]).await;
    let scope = Arc::new(Scope::new(school(1), [kind::channel("schools/1").unwrap()]));
    let snapshot = bench.snapshot(&scope).await;
    assert!(
        snapshot.is_sorted_by(|one, next| one.1 < next.1),
        "in the order of the log, each once"
    );
    assert_eq!(snapshot.len(), number * 2 + 300 * 3 + 1);
    let online = Filter {
        statuses: ["online".to_owned()].into(),
        ..Filter::default()
    };
    let filtered =
        Arc::new(Scope::new(school(1), [kind::channel("devices").unwrap()]).filtered(online));
    assert_eq!(bench.snapshot(&filtered).await.len(), number * 2);
    let replayed = bench.replayed(&scope, 0, false).await;
    assert_eq!(replayed, (1..=replayed.len() as u64).collect::<Vec<_>>());
}

/// Each subject has two events, which are far apart: all first ones come before all second ones, in the opposite order.
pub(super) async fn a_snapshot_of_large_subjects_with_several_events_leaves_out_none(open: Open) {
    const DEVICES: usize = 100;
    let bench = bench(open, Settings::default());
    let ids: Vec<String> = (0..DEVICES).map(|number| format!("d{number}")).collect();
    let info = json!({"info": {"text": "i".repeat(READ_PAGE_BYTES / 70)}});
    let put = |id: &String| put_device(id, info.clone());
    bench.done(ids.iter().map(put).collect()).await;
    let report = |id: &String| {
        let report = read(json!({"status": "online"}));
        to(id, Command::Device(device::Command::Report(report)))
    };
    bench.done(ids.iter().rev().map(report).collect()).await;
    let each: Vec<String> = ids.iter().map(|id| format!("devices/{id}")).collect();
    let each: Vec<&str> = each.iter().map(String::as_str).collect();
    let all_devices = Scope::new(school(1), [kind::channel("devices").unwrap()]);
    for scope in [Arc::new(all_devices), only(&each)] {
        let snapshot = bench.snapshot(&scope).await;
        let is_ordered = snapshot.is_sorted_by(|one, next| one.1 < next.1);
        assert!(is_ordered, "in the order of the log, each once");
        assert_eq!(snapshot.len(), 2 * DEVICES);
    }
}

pub(super) async fn a_snapshot_of_what_goes_on_leaves_out_what_has_ended(open: Open) {
    let bench = bench(open, Settings::default());
    bench
        .done(vec![
            start("a", "x"),
            start("b", "y"),
            cancel("a"),
            create("j"),
            create("k"),
        ])
        .await;
    bench.done(vec![envelope("j", "complete", json!({}))]).await;
    let of = |channel: &str| Scope::new(school(1), [kind::channel(channel).unwrap()]);
    for (channel, active) in [("enrollments", "b"), ("jobs", "k")] {
        let snapshot = bench
            .snapshot(&Arc::new(of(channel).with_active_only()))
            .await;
        assert_eq!(snapshot.len(), 1);
        assert_eq!(snapshot[0].0, active);
        assert_eq!(bench.snapshot(&Arc::new(of(channel))).await.len(), 2);
    }
}

pub(super) async fn a_wide_event_is_in_the_replay_of_any_subject_of_its_kind(open: Open) {
    let bench = bench(open, Settings::default());
    bench
        .done(vec![
            put_characteristic("a"),
            put_characteristic("b"),
            create("j"),
        ])
        .await;
    bench
        .done(vec![
            sample("a", 9.0),
            acknowledge("a", 1),
            sample("a", 0.0),
            sample("b", 0.0),
        ])
        .await;
    // 4 sample, 5 violation, 6 acknowledgement, 7 and 8 samples.
    let scope = only(&["characteristics/b"]);
    assert_eq!(bench.replayed(&scope, 0, false).await, [2, 6, 8]);
    assert_eq!(bench.replayed(&scope, 0, true).await, [2, 6, 8]);
    let both = only(&["characteristics/a", "characteristics/b"]);
    assert_eq!(
        bench.replayed(&both, 3, false).await,
        [4, 5, 6, 7, 8],
        "and once"
    );
    assert_eq!(
        bench.replayed(&both, 3, true).await,
        [4, 5, 6, 7, 8],
        "the last samples and milestones"
    );
    assert_eq!(bench.replayed(&only(&["jobs/j"]), 0, false).await, [3]);
}

/// Of a subject's ticks the last one stays, although milestones of another type come after it.
pub(super) async fn a_folded_replay_keeps_the_last_sample_before_other_messages(open: Open) {
    let bench = bench(open, Settings::default());
    bench.done(vec![put_characteristic("a")]).await;
    let mut group: Vec<Envelope> = (0..600).map(|_| sample("a", 1.0)).collect();
    group.extend([sample("a", 9.0), sample("a", 1.0), acknowledge("a", 1)]);
    bench.done(group).await;
    for scope in [only(&["characteristics/a"]), only(&["characteristics"])] {
        // 602 breaks a rule and 603 is its violation; 604 is the last sample, 605 the acknowledgement.
        assert_eq!(
            bench.replayed(&scope, 0, true).await,
            [1, 602, 603, 604, 605]
        );
    }
}

pub(super) async fn a_violation_is_acknowledged_once(open: Open) {
    let bench = bench(open, Settings::default());
    bench.done(vec![put_characteristic("a")]).await;
    let group = vec![
        sample("a", 9.0),
        acknowledge("a", 1),
        acknowledge("a", 1),
        acknowledge("a", 2),
    ];
    let answers = bench.append(1, group).await;
    assert!(answers[0].is_ok() && answers[1].is_ok());
    assert!(matches!(
        &answers[2],
        Err(CommandError::Rule(RuleError::Finished { .. }))
    ));
    assert!(matches!(
        &answers[3],
        Err(CommandError::Rule(RuleError::NotFound { .. }))
    ));
    bench.done(vec![sample("a", 0.0), sample("a", 9.0)]).await;
    let bench = bench.reopened(open).await;
    assert!(bench.append(1, vec![acknowledge("a", 1)]).await[0].is_err());
    let listed = async |open: Option<bool>| -> Vec<u64> {
        let query = PartQuery {
            open,
            limit: 10,
            ..PartQuery::default()
        };
        let page = bench
            .store
            .parts(school(1), characteristic::KIND, query)
            .await
            .unwrap();
        page.parts.iter().map(Part::number).collect()
    };
    assert_eq!(listed(None).await, [2, 1]);
    assert_eq!(listed(Some(true)).await, [2]);
    assert_eq!(listed(Some(false)).await, [1]);
}

pub(super) async fn every_kind_is_there_after_reopening(open: Open) {
    let bench = bench(open, Settings::default());
    let scans = read(json!({"device_id": "d", "student_id": "s", "total_attempts": 3}));
    bench
        .done(vec![
            session("s", enrollment::Command::Start(scans)),
            put_device(
                "d",
                json!({"name": "Door", "info": {"a": [1, null]}, "lease_secs": 7}),
            ),
            put_characteristic("c"),
            sample("c", 9.0),
            to("learning", read_characteristic(json!({"subgroup_size": 2, "limits": {"method": "xbar_s", "samples": 2}}))),
            to("learning", read_sample(json!({"values": [1.0, 2.0]}))),
            to("learning", read_sample(json!({"values": null}))),
            to("charted", read_characteristic(json!({"rules": [101], "limits": {
                "center_line": 0.3, "ucl": 0.6, "dispersion": {"chart": "mr", "center_line": 0.1, "ucl": 0.2}
            }}))),
            to("charted", read_sample(json!({"value": 0.1}))),
            to("charted", read_sample(json!({"value": 0.5}))),
            put_schedule("nightly", json!({"cron": "0 3 * * *", "time_zone": "Europe/Berlin"})),
            put_schedule("hourly", json!({"period_secs": 3600, "grace_secs": 1, "max_run_secs": 9})),
        ])
        .await;
    let states_of = async |bench: &Bench| {
        let mut states = Vec::new();
        for (kind, id) in [
            (enrollment::KIND, "s"),
            (device::KIND, "d"),
            (characteristic::KIND, "c"),
            (characteristic::KIND, "learning"),
            (characteristic::KIND, "charted"),
            (schedule::KIND, "nightly"),
            (schedule::KIND, "hourly"),
        ] {
            let found = bench
                .store
                .subject(school(1), kind, id.parse().unwrap())
                .await;
            let found = found.unwrap().unwrap();
            states.push(format!(
                "{:?} {} {}",
                found.state, found.created_seq, found.event.seq
            ));
        }
        states
    };
    let violations = async |bench: &Bench| {
        let query = PartQuery {
            limit: 10,
            ..PartQuery::default()
        };
        let page = bench
            .store
            .parts(school(1), characteristic::KIND, query)
            .await
            .unwrap();
        format!("{:?}", page.parts)
    };
    let before = states_of(&bench).await;
    let opened = violations(&bench).await;
    assert!(opened.contains("MovingRanges"), "{opened}");
    let bench = bench.reopened(open).await;
    assert_eq!(states_of(&bench).await, before);
    assert_eq!(violations(&bench).await, opened);
    let awaited = bench.store.devices_not_offline(None, 10).await.unwrap();
    assert_eq!(awaited.len(), 1);
    let after = Some((awaited[0].0, awaited[0].1.clone()));
    assert!(
        bench
            .store
            .devices_not_offline(after, 10)
            .await
            .unwrap()
            .is_empty()
    );
}

pub(super) async fn an_open_violation_is_not_swept(open: Open) {
    let settings = Settings {
        retention_secs: Bounded::of::<1>(),
        job_retention_secs: Bounded::of::<3_600>(),
        ..Settings::default()
    };
    let bench = bench(open, settings);
    bench
        .done(vec![
            put_characteristic("a"),
            sample("a", 9.0),
            sample("a", 0.0),
            sample("a", 9.0),
        ])
        .await;
    bench.done(vec![acknowledge("a", 1)]).await;
    // The events first, so that nothing else in the log is past its retention later.
    for later in [chrono::TimeDelta::minutes(1), chrono::TimeDelta::days(1)] {
        while bench.store.sweep(Utc::now() + later).await.unwrap() {}
        let bounds = bench.store.bounds(school(1)).await.unwrap();
        assert_eq!(bounds.floor, bounds.head);
    }
    let query = PartQuery {
        limit: 10,
        ..PartQuery::default()
    };
    let page = bench
        .store
        .parts(school(1), characteristic::KIND, query)
        .await
        .unwrap();
    let kept: Vec<u64> = page.parts.iter().map(Part::number).collect();
    assert_eq!(
        kept,
        [2],
        "what nobody has acknowledged is still to be done"
    );
    bench.done(vec![acknowledge("a", 2)]).await;
}

pub(super) async fn a_violation_that_was_acknowledged_late_is_swept_in_time(open: Open) {
    let settings = Settings {
        retention_events: Bounded::of::<10>(),
        job_retention_secs: Bounded::of::<3_600>(),
        ..Settings::default()
    };
    let bench = bench(open, settings);
    let samples = [9.0, 0.0, 9.0].into_iter().chain([5.0; 12]);
    let samples = samples.map(|value| sample("a", value));
    bench
        .done(
            [put_characteristic("a")]
                .into_iter()
                .chain(samples)
                .collect(),
        )
        .await;
    bench.done(vec![acknowledge("a", 1)]).await;
    let now = Utc::now();
    for (minutes, is_there) in [(59, true), (61, false)] {
        let later = now + chrono::TimeDelta::minutes(minutes);
        while bench.store.sweep(later).await.unwrap() {}
        let bounds = bench.store.bounds(school(1)).await.unwrap();
        assert!(bounds.floor < bounds.head, "the acknowledgement is kept");
        let query = PartQuery {
            limit: 100,
            ..PartQuery::default()
        };
        let page = bench.store.parts(school(1), characteristic::KIND, query);
        let parts = page.await.unwrap().parts;
        assert_eq!(parts.iter().any(|part| part.number() == 1), is_there);
    }
}
