//! What a store promises of commands that are carried out at the same time, also by several nodes.

use super::sources::start;
use super::*;

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

pub(super) async fn a_device_is_held_once_if_two_nodes_ask(open: Open, again: Option<Open>) {
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

pub(super) async fn a_limit_of_subjects_is_kept_if_two_nodes_create_them(
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

pub(super) async fn a_key_is_carried_out_once_if_two_nodes_repeat_it(
    open: Open,
    again: Option<Open>,
) {
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
        let matching = counts
            .iter()
            .filter(|(status, _)| statuses.contains(status));
        matching.map(|(_, count)| count).sum()
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
