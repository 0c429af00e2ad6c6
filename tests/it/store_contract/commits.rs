//! What a store promises of commands that are carried out, their order and their turns.

use std::time::Instant;

use tidings::config::{BULK_AFTER, BULK_MAX_COMMANDS, GROUP_MAX_COMMANDS, TURNS_PER_GROUP};
use tidings::event::Event;

use super::*;

pub(super) async fn commands_are_answered_in_order_and_a_rejected_one_fails_alone(open: Open) {
    let bench = bench(open, Settings::default());
    let receipts = bench
        .append(
            1,
            vec![
                create("a"),
                create("a"),
                tick("nobody"),
                tick("a"),
                envelope("a", "start", json!({})),
                envelope("a", "check", json!({})),
                create("b"),
            ],
        )
        .await;
    let outcomes: Vec<_> = receipts
        .iter()
        .map(|receipt| match receipt {
            Ok(Receipt::Committed(event)) => format!("{}:{}", event.subject, event.seq),
            Ok(Receipt::Unchanged(event)) => format!("{}={}", event.subject, event.seq),
            Ok(Receipt::Repeated(_)) => "repeated".into(),
            Err(CommandError::Rule(RuleError::AlreadyExists { .. })) => "exists".into(),
            Err(CommandError::Rule(RuleError::NotFound { .. })) => "nobody".into(),
            Err(CommandError::Rule(RuleError::IllegalTransition { .. })) => "illegal".into(),
            Err(other) => panic!("{other}"),
        })
        .collect();
    assert_eq!(
        outcomes,
        ["a:1", "exists", "nobody", "a:2", "illegal", "a=2", "b:3"]
    );
}

pub(super) async fn committed_events_are_handed_over_in_order_and_counted_before_the_answer(
    open: Open,
) {
    let mut bench = bench(open, Settings::default());
    for id in ["a", "b"] {
        bench.done(vec![create(id), tick(id)]).await;
        let batch = bench
            .committed
            .try_recv()
            .expect("handed over before the answer");
        assert_eq!(
            batch
                .iter()
                .map(|event| event.subject.as_str())
                .collect::<Vec<_>>(),
            [id, id]
        );
    }
    bench.append(1, vec![create("a")]).await;
    assert!(
        bench.committed.try_recv().is_none(),
        "what was refused did not happen"
    );
}

pub(super) async fn schools_know_nothing_of_one_another(open: Open) {
    let bench = bench(open, Settings::default());
    bench.done(vec![create("a"), tick("a")]).await;
    let theirs = bench.append(2, vec![create("a")]).await.remove(0).unwrap();
    assert_eq!(theirs.event().seq, 1);
    assert_eq!(bench.replayed(&all(2), 0, false).await, [1]);
    assert_eq!(bench.snapshot(&all(3)).await, []);
    assert!(
        !bench
            .store
            .exists(school(3), KIND, "a".parse().unwrap())
            .await
            .unwrap()
    );
    assert!(
        bench
            .store
            .subject(school(3), KIND, "a".parse().unwrap())
            .await
            .unwrap()
            .is_none()
    );
    let page = bench
        .store
        .subjects(
            school(2),
            KIND,
            ListQuery {
                limit: 10,
                ..ListQuery::default()
            },
        )
        .await
        .unwrap();
    assert_eq!((page.subjects.len(), page.head.seq), (1, 1));
}

/// The writer stands still while nobody takes what it has committed, so that it is known what waits for it.
pub(super) async fn schools_take_turns_and_a_report_waits_for_no_other_schools_batch(open: Open) {
    const EACH: [usize; 2] = [6_000, 3_000];
    const EVENT: usize = 4_000;
    // A store may have several writers, and these schools always have the same one.
    const SCHOOLS: [i64; 3] = [1, 65, 129];
    let place = tempfile::tempdir().unwrap();
    let (committed, mut receiver) = Committed::channel(1);
    let store = open(&place, &Settings::default(), committed);
    let large = |id: &str| envelope(id, "progress", json!({"message": "x".repeat(EVENT)}));
    let batch = |id: &str, each: usize, command: &dyn Fn(&str) -> Envelope| {
        let ticks = (0..each).map(|_| command(id));
        std::iter::once(create(id)).chain(ticks).collect::<Vec<_>>()
    };
    let mut first = store.append(school(SCHOOLS[0]), batch("a", EACH[0], &tick));
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    // Alone it has the whole of a commit, and no more. Only publishers of one node are known to send nothing but batches.
    let whole = match place.path().join("test.db").exists() {
        true => GROUP_MAX_COMMANDS + 1..=BULK_MAX_COMMANDS,
        false => GROUP_MAX_COMMANDS..=GROUP_MAX_COMMANDS,
    };
    let mut order: Vec<Arc<Event>> = Vec::new();
    let events = receiver.recv().await.unwrap();
    assert!(whole.contains(&events.len()), "{}", events.len());
    let whole = *whole.end();
    order.extend(events);
    // Now one commit waits to be taken and one is under way, at most.
    let mut second = store.append(school(SCHOOLS[1]), batch("b", EACH[1], &large));
    assert!(futures_util::poll!(second.as_mut()).is_pending());
    let reported = Instant::now();
    let mut report = store.append(school(SCHOOLS[2]), vec![create("c")]);
    assert!(futures_util::poll!(report.as_mut()).is_pending());
    let of = |events: &[Arc<Event>], number| {
        events
            .iter()
            .filter(|event| event.school == school(number))
            .count()
    };
    let mut before = 0;
    loop {
        let events = receiver.recv().await.unwrap();
        let has_report = of(&events, SCHOOLS[2]) == 1;
        order.extend(events.iter().map(Arc::clone));
        if has_report {
            assert!(of(&events, SCHOOLS[0]) <= GROUP_MAX_COMMANDS / TURNS_PER_GROUP);
            assert!(of(&events, SCHOOLS[1]) <= GROUP_MAX_BYTES / TURNS_PER_GROUP / EVENT + 1);
            break;
        }
        before += events.len();
    }
    assert!(before <= 2 * whole, "{before}");
    assert!(of(&order, SCHOOLS[0]) < EACH[0], "the batch goes on");
    assert!(report.await.unwrap()[0].is_ok(), "while the others go on");
    // Batches have a pace: a commit may have a turn of one of them.
    let mut had_second = true;
    while order.len() < EACH[0] + EACH[1] + 3 {
        let events = receiver.recv().await.unwrap();
        let (first, second) = (of(&events, SCHOOLS[0]), of(&events, SCHOOLS[1]));
        assert!(second <= GROUP_MAX_BYTES / EVENT + 1);
        if of(&order, SCHOOLS[0]) + first < EACH[0] + 1 {
            let most = match reported.elapsed() < BULK_AFTER {
                true => GROUP_MAX_COMMANDS,
                false => whole,
            };
            assert!(first <= most / TURNS_PER_GROUP, "{first}");
            assert!(second > 0 || had_second, "they take turns");
        }
        had_second = second > 0;
        order.extend(events);
    }
    for (answer, each) in [first.await, second.await].into_iter().zip(EACH) {
        let answer = answer.unwrap();
        let done = answer.iter().filter(|receipt| receipt.is_ok()).count();
        assert_eq!(done, each + 1);
    }
    for (number, each) in SCHOOLS.into_iter().zip(EACH) {
        let seqs = order.iter().filter(|event| event.school == school(number));
        let seqs: Vec<_> = seqs.map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=each as u64 + 1).collect::<Vec<_>>(), "in order");
    }
}

pub(super) async fn many_writers_leave_no_hole(open: Open) {
    let bench = Arc::new(bench(open, Settings::default()));
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                let (number, id) = (writer % 2 + 1, format!("j{writer}"));
                bench
                    .append(number, vec![create(&id)])
                    .await
                    .remove(0)
                    .unwrap();
                for _ in 0..50 {
                    bench
                        .append(number, vec![tick(&id), envelope(&id, "start", json!({}))])
                        .await
                        .remove(0)
                        .unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    for number in [1, 2] {
        assert_eq!(
            bench.replayed(&all(number), 0, false).await,
            (1..=8 * 51).collect::<Vec<_>>()
        );
    }
    let query = ListQuery {
        statuses: vec!["in_progress"],
        limit: 100,
        ..ListQuery::default()
    };
    let page = bench.store.subjects(school(1), KIND, query).await.unwrap();
    assert_eq!(page.subjects.len(), 8);
}
