//! What a store promises of idempotency keys.

use super::*;

pub(super) async fn an_idempotency_key_is_remembered_until_it_is_swept(open: Open) {
    let bench = bench(
        open,
        Settings {
            idempotency_ttl_secs: Bounded::of::<60>(),
            ..Settings::default()
        },
    );
    let keyed = |id: &str, print: &str| Envelope {
        idempotency: Some(Idempotency {
            key: "k".into(),
            fingerprint: print.into(),
        }),
        ..create(id)
    };
    let receipts = bench
        .append(1, vec![keyed("a", "x"), keyed("b", "x"), keyed("c", "y")])
        .await;
    assert!(matches!(&receipts[0], Ok(Receipt::Committed(event)) if event.subject.as_str() == "a"));
    assert!(
        matches!(&receipts[1], Ok(Receipt::Repeated(event)) if event.subject.as_str() == "a"),
        "within a group"
    );
    assert!(matches!(&receipts[2], Err(CommandError::KeyReused)));
    assert!(
        matches!(
            &bench.append(1, vec![keyed("b", "x")]).await[0],
            Ok(Receipt::Repeated(_))
        ),
        "and in a later one"
    );
    while bench
        .store
        .sweep(chrono::Utc::now() + chrono::TimeDelta::seconds(61))
        .await
        .unwrap()
    {}
    assert!(matches!(
        &bench.append(1, vec![keyed("b", "x")]).await[0],
        Ok(Receipt::Committed(_))
    ));
}

/// Whatever retention takes meanwhile: the event, and even the subject.
pub(super) async fn a_key_that_outlives_its_subject_is_answered_as_it_was(open: Open) {
    let bench = bench(
        open,
        Settings {
            retention_secs: Bounded::of::<1>(),
            job_retention_secs: Bounded::of::<1>(),
            idempotency_ttl_secs: Bounded::of::<86_400>(),
            ..Settings::default()
        },
    );
    let with_key = |key: &str, envelope: Envelope| Envelope {
        idempotency: Some(Idempotency {
            key: key.into(),
            fingerprint: "x".into(),
        }),
        ..envelope
    };
    let cancel = || envelope("a", "cancel", json!({}));
    let asked = || {
        let complete = envelope("a", "complete", json!({"result": {"pages": 3}}));
        vec![
            with_key("create", create("a")),
            with_key("cancel", cancel()),
            with_key("cancel again", cancel()),
            with_key("complete", complete),
        ]
    };
    let answers_of = |receipts: Vec<Result<Receipt, CommandError>>| -> Vec<String> {
        let json = |receipt: Result<Receipt, CommandError>| {
            let json = tidings::wire::event_json(receipt.unwrap().event(), false);
            String::from_utf8(json).unwrap()
        };
        receipts.into_iter().map(json).collect()
    };
    let first = bench.append(1, asked()).await;
    assert!(matches!(&first[2], Ok(Receipt::Unchanged(_))), "{first:?}");
    let first = answers_of(first);
    let again = bench.append(1, asked()).await;
    let is_repeated = |receipt: &Result<_, _>| matches!(receipt, Ok(Receipt::Repeated(_)));
    assert!(again.iter().all(is_repeated), "{again:?}");
    assert_eq!(answers_of(again), first, "while all is there");
    while bench
        .store
        .sweep(chrono::Utc::now() + chrono::TimeDelta::seconds(10))
        .await
        .unwrap()
    {}
    while bench
        .store
        .sweep(chrono::Utc::now() + chrono::TimeDelta::seconds(10))
        .await
        .unwrap()
    {}
    assert!(
        !bench
            .store
            .exists(school(1), KIND, "a".parse().unwrap())
            .await
            .unwrap()
    );
    let again = bench.append(1, asked()).await;
    assert!(again.iter().all(is_repeated), "{again:?}");
    assert_eq!(
        answers_of(again),
        first,
        "and when nothing is there any more"
    );
    let other = bench.append(1, vec![with_key("create", create("b"))]).await;
    assert!(is_repeated(&other[0]), "a fingerprint is the HTTP layer's");
}

pub(super) async fn answers_are_kept_within_their_bytes_and_no_key_is_carried_out_twice(
    open: Open,
) {
    const KEPT: usize = 10;
    const TEXT: usize = 4_000;
    let settings = Settings {
        retention_secs: Bounded::of::<1>(),
        job_retention_secs: Bounded::of::<1>(),
        idempotency_answer_bytes: Bounded::of::<{ (KEPT * (TEXT + 1_000)) as u64 }>(),
        ..Settings::default()
    };
    let bench = bench(open, settings);
    let keyed = |key: String, envelope: Envelope| Envelope {
        idempotency: Some(Idempotency {
            key,
            fingerprint: "x".into(),
        }),
        ..envelope
    };
    let report = |number: usize| {
        let message = format!("{number} {}", "x".repeat(TEXT));
        let report = envelope("a", "progress", json!({ "message": message }));
        keyed(number.to_string(), report)
    };
    let asked = || (0..3 * KEPT).map(report).collect::<Vec<_>>();
    let starts = json!({"job_type": "t", "status": "in_progress"});
    bench.done(vec![envelope("a", "create", starts)]).await;
    // One by one, so that each key has a time of its own.
    for number in 0..3 * KEPT {
        let begun = chrono::Utc::now().timestamp_millis();
        bench.done(vec![report(number)]).await;
        while chrono::Utc::now().timestamp_millis() == begun {
            tokio::task::yield_now().await;
        }
    }
    let later = chrono::Utc::now() + chrono::TimeDelta::seconds(10);
    let sweep = async || while bench.store.sweep(later).await.unwrap() {};
    sweep().await;
    let answers_of = |receipts: Vec<Result<Receipt, CommandError>>| -> Vec<(bool, u64)> {
        let answered = receipts.into_iter().map(|receipt| match receipt {
            Ok(Receipt::Repeated(event)) => (event.snapshot, event.seq),
            other => panic!("carried out again: {other:?}"),
        });
        answered.collect()
    };
    let last = 3 * KEPT as u64 + 1;
    let answers = answers_of(bench.append(1, asked()).await);
    let dropped = answers
        .iter()
        .take_while(|answer| **answer == (true, last))
        .count();
    assert!(
        (2 * KEPT - 1..=2 * KEPT + 2).contains(&dropped),
        "{dropped}"
    );
    let kept: Vec<_> = (dropped..3 * KEPT).map(|n| (false, n as u64 + 2)).collect();
    assert_eq!(answers[dropped..], kept, "the newest, as they were");
    // A lower limit applies to the answers that are stored, although nothing in the log is old.
    let settings = Settings {
        idempotency_answer_bytes: Bounded::of::<{ (KEPT / 2 * (TEXT + 1_000)) as u64 }>(),
        ..Settings::default()
    };
    let bench = Bench { settings, ..bench };
    let bench = bench.reopened(open).await;
    while bench.store.sweep(chrono::Utc::now()).await.unwrap() {}
    let fewer = answers_of(bench.append(1, asked()).await);
    let kept: Vec<_> = fewer
        .iter()
        .filter(|answer| **answer != (true, last))
        .copied()
        .collect();
    assert!(
        (KEPT / 2 - 1..=KEPT / 2 + 1).contains(&kept.len()),
        "{fewer:?}"
    );
    assert!(answers.ends_with(&kept), "{fewer:?}");
    let dropped = 3 * KEPT - kept.len();
    // When the subject is gone, too, there is no answer left, and nothing is done.
    let settings = Settings {
        retention_secs: Bounded::of::<1>(),
        job_retention_secs: Bounded::of::<1>(),
        ..bench.settings.clone()
    };
    let bench = Bench { settings, ..bench };
    let bench = bench.reopened(open).await;
    let sweep = async || while bench.store.sweep(later).await.unwrap() {};
    bench.done(vec![envelope("a", "complete", json!({}))]).await;
    sweep().await;
    sweep().await;
    let again = bench.append(1, asked()).await;
    let gone = again
        .iter()
        .take_while(|answer| matches!(answer, Err(CommandError::AnswerGone)));
    assert_eq!(gone.count(), dropped, "{again:?}");
    assert_eq!(answers_of(again.into_iter().skip(dropped).collect()), kept);
}
