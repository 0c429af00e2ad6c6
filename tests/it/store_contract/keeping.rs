//! What a store promises of what it keeps: through time, sweeps, its end and a power loss.

use super::*;

pub(super) async fn sweeping_moves_the_floor_and_keeps_states(open: Open) {
    let bench = bench(
        open,
        Settings {
            retention_events: Bounded::of::<10>(),
            ..Settings::default()
        },
    );
    bench.done(vec![create("a"), create("b")]).await;
    bench.done((0..2_000).map(|_| tick("a")).collect()).await;
    let mut steps = 0;
    while bench.store.sweep(chrono::Utc::now()).await.unwrap() {
        steps += 1;
        let page = bench.store.replay(all(1), 1_999, false).await.unwrap();
        assert!(page.floor <= 1_992, "no more than asked");
    }
    assert!(steps >= 3, "in small steps");
    let page = bench.store.replay(all(1), 0, false).await.unwrap();
    assert_eq!(
        (page.floor, page.events[0].seq, page.events.len()),
        (1_992, 1_993, 10)
    );
    assert_eq!(
        bench.snapshot(&all(1)).await,
        [("b".to_owned(), 2), ("a".to_owned(), 2_002)],
        "states stay"
    );
}

/// A round takes several steps, and most schools have nothing to remove. What a round finds out must not mislead the next one.
pub(super) async fn every_school_is_swept_in_each_round_however_many_there_are(open: Open) {
    const SCHOOLS: i64 = 2 * SWEEP_SCHOOLS as i64;
    let kept = Settings {
        retention_events: Bounded::of::<10>(),
        ..Settings::default()
    };
    let bench = bench(open, kept);
    // Sweeps as of this time. Every school has this many events at most afterwards.
    let sweep = async |now, at_most: u64| {
        while bench.store.sweep(now).await.unwrap() {}
        for number in 1..=SCHOOLS {
            let bounds = bench.store.bounds(school(number)).await.unwrap();
            let floor = bounds.head.seq.saturating_sub(at_most);
            assert_eq!(bounds.floor.seq, floor, "of school {number}");
        }
    };
    for number in 1..=SCHOOLS {
        bench.append(number, vec![create("a")]).await;
    }
    // A few schools at a time: none, at either end of a step, and all.
    let rounds: [fn(i64) -> bool; 4] = [|_| false, |number| number % 50 < 2, |_| false, |_| true];
    for publishes in rounds {
        for number in (1..=SCHOOLS).filter(|number| publishes(*number)) {
            bench
                .append(number, (0..12).map(|_| tick("a")).collect())
                .await;
        }
        sweep(chrono::Utc::now(), 10).await;
    }
    sweep(chrono::Utc::now() + chrono::TimeDelta::days(365), 0).await;
}

pub(super) async fn a_finished_subject_outlives_its_events_for_as_long_as_is_set(open: Open) {
    let settings = Settings {
        retention_secs: Bounded::of::<1>(),
        job_retention_secs: Bounded::of::<3_600>(),
        ..Settings::default()
    };
    let bench = bench(open, settings);
    let ends = envelope("a", "complete", json!({}));
    bench.done(vec![create("a"), create("b"), ends]).await;
    let now = chrono::Utc::now();
    for (later, subjects) in [(59, ["a", "b"].as_slice()), (61, &["b"])] {
        let later = now + chrono::TimeDelta::minutes(later);
        while bench.store.sweep(later).await.unwrap() {}
        let bounds = bench.store.bounds(school(1)).await.unwrap();
        assert_eq!(bounds.floor, bounds.head);
        let mut kept: Vec<_> = bench.snapshot(&all(1)).await;
        kept.sort();
        let kept: Vec<_> = kept.iter().map(|(subject, _)| subject).collect();
        assert_eq!(kept, subjects);
    }
}

pub(super) async fn a_log_is_kept_within_its_bytes(open: Open) {
    let settings = Settings {
        retention_bytes: Bounded::of::<5_000>(),
        ..Settings::default()
    };
    let bench = bench(open, settings);
    let message = json!({"message": "x".repeat(1_000)});
    bench.done(vec![create("a")]).await;
    for _ in 0..10 {
        bench
            .done(vec![envelope("a", "progress", message.clone())])
            .await;
    }
    while bench.store.sweep(chrono::Utc::now()).await.unwrap() {}
    let bounds = bench.store.bounds(school(1)).await.unwrap();
    let kept = bounds.head.seq - bounds.floor.seq;
    assert!(
        (3..=4).contains(&kept),
        "{kept} of more than 1,000 bytes each"
    );
}

pub(super) async fn everything_is_there_after_reopening(open: Open) {
    let bench = bench(open, Settings::default());
    let epoch = bench.store.epoch();
    let metadata = json!({"job_type": "t", "status": "in_progress", "metadata": {"z": 1.5, "a": [null, "ü"]}, "timeout_secs": 7});
    bench
        .done(vec![
            envelope("a", "create", metadata),
            envelope("a", "progress", json!({"progress": 12.5})),
            create("b"),
        ])
        .await;
    bench
        .done(vec![envelope(
            "b",
            "complete",
            json!({"result": {"deep": [1]}}),
        )])
        .await;
    let read = async |bench: &Bench, id: &str| {
        let stored = bench
            .store
            .subject(school(1), KIND, id.parse().unwrap())
            .await
            .unwrap()
            .unwrap();
        (
            format!("{:?}", stored.state),
            stored.event.draft.fields.clone(),
            stored.event.seq,
            stored.created_seq,
        )
    };
    let before = (read(&bench, "a").await, read(&bench, "b").await);
    let bench = bench.reopened(open).await;
    assert_eq!(bench.store.epoch(), epoch, "the same life");
    assert_eq!((read(&bench, "a").await, read(&bench, "b").await), before);
    let next = bench.append(1, vec![tick("a")]).await.remove(0).unwrap();
    assert_eq!(next.event().seq, 5);
    assert!(matches!(
        bench.append(1, vec![tick("b")]).await[0],
        Err(CommandError::Rule(RuleError::Finished { .. }))
    ));
}

pub(super) async fn a_closed_store_rejects(open: Open) {
    let bench = bench(open, Settings::default());
    bench.done(vec![create("a")]).await;
    bench.store.ping().await.unwrap();
    bench.store.close().await.unwrap();
    assert!(matches!(
        bench.store.append(school(1), vec![tick("a")]).await,
        Err(StoreError::Stopped)
    ));
}

pub(super) async fn overdue_jobs_are_found_by_their_time(open: Open) {
    let bench = bench(open, Settings::default());
    let with = |id: &str, secs: u32| {
        envelope(
            id,
            "create",
            json!({"job_type": "t", "status": "in_progress", "stall_after_secs": secs, "timeout_secs": 0}),
        )
    };
    bench
        .done(vec![with("soon", 10), with("later", 100), with("never", 0)])
        .await;
    let after = async |secs| {
        let found = bench
            .store
            .overdue(bench.store.uptime().now() + Duration::from_secs(secs), 10)
            .await
            .unwrap();
        found
            .into_iter()
            .map(|overdue| overdue.subject.to_string())
            .collect::<Vec<_>>()
    };
    assert!(after(0).await.is_empty());
    assert_eq!(after(11).await, ["soon"]);
    assert_eq!(
        after(1_000).await,
        ["soon", "later"],
        "the longest overdue first"
    );
    bench
        .done(vec![envelope("soon", "cancel", json!({"force": true}))])
        .await;
    assert_eq!(after(1_000).await, ["later"]);
}

/// After a clean end all of it is there; after a crash, all that had passed by the last commit or `save_uptime`.
pub(super) async fn the_uptime_goes_on_where_it_ended_or_was_saved(open: Open) {
    let bench = bench(open, Settings::default());
    assert!(!bench.store.uptime().was_cut_off());
    let at_first = bench.store.uptime().now();
    assert!(at_first < Uptime::from_millis(60_000), "a new database");
    let bench = bench.reopened(open).await;
    let uptime = bench.store.uptime();
    assert!(uptime.now() >= at_first && !uptime.was_cut_off());
    let before_commit = uptime.now();
    bench.done(vec![create("a")]).await;
    let bench = bench.cut_off(open);
    let uptime = bench.store.uptime();
    assert!(uptime.now() >= before_commit && uptime.was_cut_off());
    let before_save = uptime.now();
    bench.store.save_uptime().await.unwrap();
    let bench = bench.cut_off(open);
    assert!(bench.store.uptime().now() >= before_save);
    let heard = |subject: &StoredSubject| subject.state.job().unwrap().heard_uptime;
    let id: SubjectId = "a".parse().unwrap();
    let job = bench.store.subject(school(1), KIND, id).await.unwrap();
    let heard = job.as_ref().map(heard).unwrap();
    assert!(heard >= before_commit && heard <= before_save);
}

/// A power loss may have taken acknowledged ticks: from then on a number alone names no event.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_loss_an_sqlite_database_keeps_its_epoch_and_trusts_no_number_alone() {
    use diesel::connection::{Connection, SimpleConnection};
    let first = bench(open_sqlite, Settings::default());
    let epoch = first.store.epoch();
    first.done(vec![create("a")]).await;
    let again = first.reopened(open_sqlite).await;
    assert_eq!(again.store.epoch(), epoch, "closed in good order");
    assert!(again.store.numbers_are_unique());
    again.store.close().await.unwrap();
    let mark = |sql: &str| {
        let path = again.place.path().join("test.db");
        diesel::sqlite::SqliteConnection::establish(path.to_str().unwrap())
            .unwrap()
            .batch_execute(sql)
            .unwrap();
    };
    mark("INSERT INTO meta (key, value) VALUES ('open_in', 'an earlier boot')");
    let cut_off = again.reopened_without_closing(open_sqlite);
    assert_eq!(cut_off.store.epoch(), epoch);
    assert!(!cut_off.store.numbers_are_unique());
    assert_eq!(
        cut_off.snapshot(&all(1)).await.len(),
        1,
        "and everything that reached the disk is there"
    );
    let later = cut_off.reopened(open_sqlite).await;
    assert!(!later.store.numbers_are_unique(), "for good");
}
