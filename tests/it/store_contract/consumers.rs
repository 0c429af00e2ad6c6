//! The contract of `Consumers`: the places of notifiers, and the events that they set aside.

use chrono::{SubsecRound, Utc};
use tidings::id::{Cursor, Place};
use tidings::log::consumers::{
    Begun, Change, DeadLetter, Progress, SetAside, Total, Tried, lease_of,
};
use tidings::log::leases::Fence;

use super::*;

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
    let standing = &standings[0];
    assert_eq!(
        (standing.delivered, standing.failed, standing.dead),
        (0, 0, 0)
    );
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
    let standing = &standings[0];
    assert_eq!(
        (
            standing.seq,
            standing.delivered,
            standing.failed,
            standing.dead
        ),
        (3, 1, 1, 1)
    );
    assert_eq!(standing.last_failure, Some((now, "answered 500".into())));
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
    let entry = |id: &str, seq, attempts| SetAside {
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
    moves(school(1), 1, changes(Change::Put(entry("a", 1, 1)))).await;
    moves(school(1), 2, changes(Change::Put(entry("b", 2, 1)))).await;
    let again = Progress {
        tried,
        not_before: Some(now),
        ..changes(Change::Put(entry("a", 1, 2)))
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
    offset.set_aside.sort_by_key(|event| event.seq);
    assert_eq!((offset.seq, offset.tried), (3, None));
    assert_eq!(offset.set_aside, [entry("a", 1, 2), entry("b", 2, 1)]);
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
    assert_eq!(offset.set_aside, [entry("b", 2, 1)]);
}

pub(super) async fn a_notifier_that_has_not_begun_is_behind_by_all_events(open: Open) {
    let bench = bench(open, Settings::default());
    bench.store.notifier_begins("ops").await.unwrap();
    let total = |lag| Total {
        name: "ops".into(),
        lag,
        set_aside: 0,
        delivered: 0,
        failed: 0,
        dead: 0,
    };
    assert_eq!(bench.store.notifier_totals().await.unwrap(), [total(0)]);
    bench.done(vec![create("a"), tick("a")]).await;
    bench.append(2, vec![create("a")]).await;
    assert_eq!(bench.store.notifier_totals().await.unwrap(), [total(3)]);
}
