//! What a store promises of the kinds other than jobs, and of notifiers.

use chrono::{SubsecRound, Utc};
use tidings::id::{Cursor, Place};
use tidings::kind::{Part, characteristic, device, enrollment, schedule};
use tidings::log::PartQuery;
use tidings::log::consumers::{
    Begun, Change, DeadLetter, Progress, SetAside, Total, Tried, lease_of,
};
use tidings::log::leases::Fence;

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

/// Acquires the lease of a notifier, for so short a time that the next call has it, too.
async fn leads(bench: &Bench, notifier: &str) -> Fence {
    let lease = lease_of(notifier);
    let fence = bench.store.acquire(&lease, Duration::ZERO).await.unwrap();
    fence.expect("no other has it")
}

/// A node that was suspended has lost its lease and does not know it.
pub(super) async fn a_notifier_moves_only_under_the_last_fence_of_its_lease(open: Open) {
    let bench = bench(open, Settings::default());
    bench.store.notifier_begins("ops").await.unwrap();
    bench.done(vec![create("a"), create("b")]).await;
    let now = Utc::now().trunc_subsecs(3);
    let everything = || Progress {
        from: None,
        of: None,
        delivered: Some(now),
        failed: Some((now, "answered 500".into())),
        tried: Some(Tried {
            seq: 1,
            attempts: 1,
        }),
        dead: Some(DeadLetter {
            seq: 1,
            event_type: "job_progress".into(),
            kind: "jobs".into(),
            subject: "a".into(),
            attempts: 1,
            cause: "answered 500".into(),
            at: now,
        }),
        set_aside: Some(Change::Put(SetAside {
            kind: KIND,
            subject: "a".parse().unwrap(),
            seq: 1,
            event_type: "job_progress".into(),
            attempts: 1,
            cause: "answered 500".into(),
            due: now,
        })),
        not_before: Some(now),
    };
    let moves = async |fence, seq, progress| {
        let moved = bench
            .store
            .notifier_moves("ops", fence, school(1), seq, progress);
        moved.await
    };
    let never = Fence(u64::MAX >> 1);
    assert_eq!(moves(never, 1, everything()).await, Err(StoreError::Fenced));
    let first = leads(&bench, "ops").await;
    // It has expired, but nobody else has begun.
    moves(first, 1, Progress::default()).await.unwrap();
    let offset = bench.store.notifier_offset("ops", school(1)).await.unwrap();
    let second = leads(&bench, "ops").await;
    let other = leads(&bench, "other").await;
    for stale in [first, other, never] {
        let moved = moves(stale, 2, everything()).await;
        assert_eq!(moved, Err(StoreError::Fenced), "{stale}");
    }
    let after = bench.store.notifier_offset("ops", school(1)).await.unwrap();
    assert_eq!(after, offset, "nothing was written");
    let (standings, _) = bench.store.notifiers(school(1)).await.unwrap();
    let own = &standings[0];
    assert_eq!((own.delivered, own.failed, own.dead), (0, 0, 0));
    let letters = bench.store.dead_letters("ops", school(1), None, 1).await;
    assert!(letters.unwrap().letters.is_empty());
    let begun = bench.store.notifier_begins("ops").await.unwrap();
    assert_eq!(begun.not_before, None);
    bench.store.release(&lease_of("ops"), second).await.unwrap();
    moves(second, 2, Progress::default()).await.unwrap();
    let offset = bench.store.notifier_offset("ops", school(1)).await.unwrap();
    assert_eq!(offset.seq, 2);
}

pub(super) async fn a_notifiers_cursor_is_kept_and_never_goes_back(open: Open) {
    let bench = bench(open, Settings::default());
    let fence = leads(&bench, "ops").await;
    let now = Utc::now().trunc_subsecs(3);
    bench.done(vec![create("a"), create("b")]).await;
    assert!(
        bench.store.notifier_begins("ops").await.unwrap() == Begun::default(),
        "it begins at the end"
    );
    assert_eq!(
        bench
            .store
            .notifier_offset("ops", school(1))
            .await
            .unwrap()
            .seq,
        2
    );
    bench.done(vec![create("c")]).await;
    bench.append(2, vec![create("a")]).await;
    let begun = bench.store.notifier_begins("ops").await.unwrap();
    let looked = bench.store.notifier_looks("ops").await.unwrap();
    assert!(begun == looked, "{begun:?} {looked:?}");
    let mut behind = looked.behind;
    behind.sort();
    assert_eq!(behind, [school(1), school(2)]);
    assert_eq!(
        bench
            .store
            .notifier_offset("ops", school(2))
            .await
            .unwrap()
            .seq,
        0,
        "a new school"
    );
    let delivered = Progress {
        delivered: Some(now),
        ..Progress::default()
    };
    let letter = |seq| DeadLetter {
        seq,
        event_type: "job_progress".into(),
        kind: "jobs".into(),
        subject: "c".into(),
        attempts: 3,
        cause: "answered 500".into(),
        at: now,
    };
    let given_up = |seq| Progress {
        failed: Some((now, "answered 500".into())),
        dead: Some(letter(seq)),
        ..Progress::default()
    };
    bench
        .store
        .notifier_moves("ops", fence, school(1), 3, delivered)
        .await
        .unwrap();
    bench
        .store
        .notifier_moves("ops", fence, school(1), 1, given_up(1))
        .await
        .unwrap();
    for (of, from) in [(1, 2), (2, 1)] {
        let overtaken = Progress {
            from: Some(from),
            ..given_up(3)
        };
        let moved = bench
            .store
            .notifier_moves("ops", fence, school(of), 3, overtaken);
        let moved = moved.await;
        assert_eq!(moved, Err(StoreError::Fenced), "the cursor is not there");
    }
    let newest = bench.store.head(school(1)).await.unwrap();
    let other: Cursor = "00000001-3-00000001".parse().unwrap();
    let replaced = Place {
        tag: other.place.tag,
        ..newest
    };
    let beyond = Place {
        seq: newest.seq + 1,
        ..newest
    };
    for (of, moved) in [
        (replaced, Err(StoreError::Fenced)),
        (beyond, Err(StoreError::Fenced)),
        (newest, Ok(())),
    ] {
        let about = Progress {
            of: Some(of),
            ..Progress::default()
        };
        let result = bench
            .store
            .notifier_moves("ops", fence, school(1), 3, about);
        assert_eq!(result.await, moved, "the log has {newest:?}");
    }
    let bench = bench.reopened(open).await;
    let fence = leads(&bench, "ops").await;
    let (standings, head) = bench.store.notifiers(school(1)).await.unwrap();
    assert_eq!((standings.len(), head), (1, 3));
    let own = &standings[0];
    assert_eq!((own.seq, own.delivered, own.failed, own.dead), (3, 1, 1, 1));
    assert_eq!(own.last_failure, Some((now, "answered 500".into())));
    // Two schools: three events each, of which this one is done with.
    let other = ["a", "b", "c"].map(create).to_vec();
    bench.append(2, other).await;
    bench
        .store
        .notifier_moves("ops", fence, school(2), 1, Progress::default())
        .await
        .unwrap();
    let totals = bench.store.notifier_totals().await.unwrap();
    let total = Total {
        name: "ops".into(),
        lag: 2,
        set_aside: 0,
        delivered: 1,
        failed: 1,
        dead: 1,
    };
    assert_eq!(totals, [total]);
    let page = bench
        .store
        .dead_letters("ops", school(1), None, 10)
        .await
        .unwrap();
    assert_eq!((page.letters, page.next), (vec![letter(1)], None));
    for seq in 2..=1_010 {
        bench
            .store
            .notifier_moves("ops", fence, school(1), seq, given_up(seq))
            .await
            .unwrap();
    }
    let page = bench
        .store
        .dead_letters("ops", school(1), None, 5_000)
        .await
        .unwrap();
    assert_eq!(page.letters.len(), 1_000, "the newest are kept");
    assert_eq!(page.letters.last().unwrap().seq, 11);
    // What was set aside is given up after later events.
    let late = DeadLetter {
        at: now + chrono::TimeDelta::hours(1),
        ..letter(5)
    };
    let given_up_late = Progress {
        dead: Some(late.clone()),
        ..Progress::default()
    };
    let moved = bench
        .store
        .notifier_moves("ops", fence, school(1), 1_010, given_up_late);
    moved.await.unwrap();
    let page = bench.store.dead_letters("ops", school(1), None, 5_000);
    let letters = page.await.unwrap().letters;
    assert_eq!((letters.len(), letters.last()), (1_000, Some(&late)));
    assert_eq!(letters[letters.len() - 2].seq, 12);
}

pub(super) async fn what_a_notifier_sets_aside_is_kept_until_it_is_lifted(open: Open) {
    let bench = bench(open, Settings::default());
    let fence = leads(&bench, "ops").await;
    let now = Utc::now().trunc_subsecs(3);
    bench.store.notifier_begins("ops").await.unwrap();
    bench.store.notifier_begins("other").await.unwrap();
    let all = ["a", "b", "c"].map(create).to_vec();
    bench.append(1, all.clone()).await;
    bench.append(2, all).await;
    let own = |id: &str, seq, attempts| SetAside {
        kind: KIND,
        subject: id.parse().unwrap(),
        seq,
        event_type: "job_progress".into(),
        attempts,
        cause: "answered 400".into(),
        due: now,
    };
    let moves = async |school, seq, progress| {
        let moved = bench
            .store
            .notifier_moves("ops", fence, school, seq, progress);
        moved.await.unwrap();
    };
    let changes = |change| Progress {
        set_aside: Some(change),
        ..Progress::default()
    };
    let tried = Some(Tried {
        seq: 3,
        attempts: 2,
    });
    moves(school(1), 1, changes(Change::Put(own("a", 1, 1)))).await;
    moves(school(1), 2, changes(Change::Put(own("b", 2, 1)))).await;
    let again = Progress {
        tried,
        not_before: Some(now),
        ..changes(Change::Put(own("a", 1, 2)))
    };
    moves(school(1), 2, again).await;
    for number in [1, 2] {
        moves(school(number), 3, Progress::default()).await;
    }

    let bench = bench.reopened(open).await;
    let begun = bench.store.notifier_begins("ops").await.unwrap();
    assert_eq!(begun.behind, [school(1)], "not behind, but not done");
    assert_eq!(begun.not_before, Some(now));
    let other = bench.store.notifier_begins("other").await.unwrap();
    assert_eq!(other.behind.len(), 2);
    assert_eq!(other.not_before, None);
    let mut offset = bench.store.notifier_offset("ops", school(1)).await.unwrap();
    offset.set_aside.sort_by_key(|own| own.seq);
    assert_eq!((offset.seq, offset.tried), (3, None));
    assert_eq!(offset.set_aside, [own("a", 1, 2), own("b", 2, 1)]);
    for (name, number) in [("ops", 2), ("other", 1)] {
        let offset = bench.store.notifier_offset(name, school(number)).await;
        assert_eq!(offset.unwrap().set_aside, []);
    }
    let (standings, _) = bench.store.notifiers(school(1)).await.unwrap();
    assert_eq!(standings[0].set_aside, 2);
    let totals = bench.store.notifier_totals().await.unwrap();
    assert_eq!((totals[0].set_aside, totals[0].lag), (2, 0));
    let fence = leads(&bench, "ops").await;
    let lifted = changes(Change::Lift(KIND, "a".parse().unwrap()));
    let moved = bench
        .store
        .notifier_moves("ops", fence, school(1), 3, lifted);
    moved.await.unwrap();
    let offset = bench.store.notifier_offset("ops", school(1)).await.unwrap();
    assert_eq!(offset.set_aside, [own("b", 2, 1)]);
}

pub(super) async fn an_open_violation_is_not_swept(open: Open) {
    let settings = Settings {
        retention_secs: Bounded::of::<1>(),
        job_retention_secs: Bounded::of::<1>(),
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
    let later = Utc::now() + chrono::TimeDelta::days(1);
    while bench.store.sweep(later).await.unwrap() {}
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
