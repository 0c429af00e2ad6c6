//! What a store promises of replays and snapshots.

use super::*;

pub(super) async fn a_replay_contains_what_lies_after_and_says_how_far_it_reaches(open: Open) {
    let bench = bench(open, Settings::default());
    let empty = bench.store.replay(all(1), 0, false).await.unwrap();
    assert_eq!(
        (
            empty.events.len(),
            empty.through.seq,
            empty.head.seq,
            empty.floor
        ),
        (0, 0, 0, 0)
    );
    bench.done(vec![create("a")]).await;
    bench.done((0..1_000).map(|_| tick("a")).collect()).await;
    assert_eq!(
        bench.replayed(&all(1), 0, false).await,
        (1..=1_001).collect::<Vec<_>>()
    );
    assert_eq!(bench.replayed(&all(1), 999, false).await, [1_000, 1_001]);
    assert!(bench.replayed(&all(1), 1_001, false).await.is_empty());
    let replayed = bench
        .store
        .replay(all(1), 0, false)
        .await
        .unwrap()
        .events
        .remove(0);
    let again = bench
        .store
        .replay(all(1), 0, false)
        .await
        .unwrap()
        .events
        .remove(0);
    assert_eq!(
        format!("{:?}", replayed.draft),
        format!("{:?}", again.draft)
    );
}

pub(super) async fn a_replay_of_single_subjects_contains_only_their_events(open: Open) {
    let bench = bench(open, Settings::default());
    bench
        .done(vec![create("a"), create("b"), create("c")])
        .await;
    for _ in 0..300 {
        bench.done(vec![tick("a"), tick("b"), tick("c")]).await;
    }
    assert_eq!(
        bench.replayed(&only(&["jobs/b"]), 0, false).await.len(),
        301
    );
    assert_eq!(
        bench
            .replayed(&only(&["jobs/a", "jobs/c"]), 3, false)
            .await
            .len(),
        600
    );
    assert_eq!(
        bench.replayed(&only(&["schools/1"]), 3, false).await.len(),
        900
    );
    assert!(
        bench
            .replayed(&only(&["jobs/nobody"]), 0, false)
            .await
            .is_empty()
    );
}

pub(super) async fn a_folded_replay_leaves_out_what_is_superseded_within_the_scope(open: Open) {
    let bench = bench(open, Settings::default());
    bench.done(vec![create("a"), create("b")]).await;
    bench.done((0..600).map(|_| tick("a")).collect()).await;
    bench
        .done(vec![
            tick("b"),
            envelope("a", "complete", json!({})),
            tick("b"),
        ])
        .await;
    assert_eq!(bench.replayed(&all(1), 0, true).await, [1, 2, 604, 605]);
    // Of what still runs, the newest is contained, though its end is out of scope.
    let running = Filter {
        statuses: ["in_progress".to_owned()].into(),
        ..Filter::default()
    };
    let scope = Arc::new((*all(1)).clone().filtered(running));
    let replayed = bench.replayed(&scope, 0, true).await;
    assert!(
        replayed.contains(&602) && replayed.contains(&605) && !replayed.contains(&604),
        "{replayed:?}"
    );
}

pub(super) async fn a_snapshot_contains_each_subject_once_in_the_order_of_the_log(open: Open) {
    let bench = bench(open, Settings::default());
    let ids: Vec<String> = (0..600).map(|n| format!("j{n}")).collect();
    bench.done(ids.iter().map(|id| create(id)).collect()).await;
    bench
        .done(vec![tick("j5"), envelope("j3", "complete", json!({}))])
        .await;
    let states = bench.snapshot(&all(1)).await;
    assert_eq!(states.len(), 600);
    assert!(states.is_sorted_by_key(|(_, seq)| *seq));
    assert_eq!(
        states[598..],
        [("j5".to_owned(), 601), ("j3".to_owned(), 602)]
    );
    assert_eq!(
        bench.snapshot(&only(&["jobs/j3", "jobs/nobody"])).await,
        [("j3".to_owned(), 602)]
    );
    let ended = Filter {
        statuses: ["completed".to_owned()].into(),
        ..Filter::default()
    };
    assert_eq!(
        bench
            .snapshot(&Arc::new((*all(1)).clone().filtered(ended)))
            .await
            .len(),
        1
    );
}
