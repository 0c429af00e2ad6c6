//! What every store promises (`tidings::store`), asked of each implementation. A new one adds a line to
//! `stores!` and passes the same.

mod lists;
mod nodes;
mod ping_keys;
mod sources;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tidings::config::{GROUP_MAX_BYTES, GROUP_MAX_COMMANDS, Settings, TURNS_PER_GROUP};
use tidings::event::Event;
use tidings::id::{Place, SchoolId, SubjectId};
use tidings::kind::job::{self, KIND};
use tidings::kind::{self, Command, RuleError};
use tidings::log::{
    Batches, CommandError, Committed, Envelope, Idempotency, ListQuery, Receipt, Store, StoreError,
    StoredSubject,
};
use tidings::scope::{Filter, Scope};
use tidings::store::postgres::{Address, PostgresStore};
use tidings::store::sqlite::SqliteStore;
use tidings::uptime::Uptime;

use self::lists::*;
use self::nodes::*;
use self::ping_keys::*;
use self::sources::*;

/// A store on a place that can be opened again after it was closed.
struct Bench {
    store: Box<dyn Store>,
    committed: Batches,
    place: Arc<TempDir>,
    /// The places that this one is a copy of.
    origins: Vec<Arc<TempDir>>,
    settings: Settings,
}

type Open = fn(&TempDir, &Settings, Committed) -> Box<dyn Store>;

fn open_sqlite(place: &TempDir, settings: &Settings, committed: Committed) -> Box<dyn Store> {
    Box::new(SqliteStore::open(settings, &place.path().join("test.db"), committed, &[]).unwrap())
}

/// A store on Postgres. The place holds the URL of its database, so that a copy of the place is the same database: a process
/// that dies takes nothing with it.
fn open_postgres(place: &TempDir, settings: &Settings, committed: Committed) -> Box<dyn Store> {
    let file = place.path().join("postgres.url");
    if !file.exists() {
        let url = crate::support::store::postgres_of(place.path());
        std::fs::write(&file, url.expect("looked for before")).unwrap();
    }
    let url = std::fs::read_to_string(file).unwrap();
    let address = Address::parse(&url.into(), !crate::support::store::is_pooled()).unwrap();
    Box::new(PostgresStore::open(settings, address, committed, &[]).unwrap())
}

fn bench_in(open: Open, place: Arc<TempDir>, settings: Settings) -> Bench {
    let (committed, receiver) = Committed::channel(1_000);
    let store = open(&place, &settings, committed);
    Bench {
        store,
        committed: receiver,
        place,
        origins: Vec::new(),
        settings,
    }
}

fn bench(open: Open, settings: Settings) -> Bench {
    bench_in(open, Arc::new(tempfile::tempdir().unwrap()), settings)
}

/// Each store: how it is opened, and how it is opened a second time while it is open, if that is possible.
macro_rules! stores {
    ($($module:ident: $open:path, if $is_there:expr, again $again:expr, also [$($also:ident)*];)*) => {$(
        mod $module {
            macro_rules! run {
                ($name:ident) => {
                    #[tokio::test(flavor = "multi_thread")]
                    async fn $name() {
                        if $is_there {
                            super::$name($open).await
                        }
                    }
                };
            }
            macro_rules! race {
                ($name:ident) => {
                    #[tokio::test(flavor = "multi_thread")]
                    async fn $name() {
                        if $is_there {
                            super::$name($open, $again).await
                        }
                    }
                };
            }
            run!(commands_are_answered_in_order_and_a_refused_one_fails_alone);
            run!(committed_events_are_handed_over_in_order_and_counted_before_the_answer);
            run!(a_replay_tells_what_lies_after_and_says_how_far_it_reaches);
            run!(a_replay_of_single_subjects_tells_theirs_only);
            run!(a_folded_replay_leaves_out_what_is_superseded_within_the_scope);
            run!(a_snapshot_tells_each_subject_once_in_the_order_of_the_log);
            run!(schools_know_nothing_of_one_another);
            run!(an_idempotency_key_is_remembered_until_it_is_swept);
            run!(a_key_that_outlives_its_subject_is_answered_as_it_was);
            run!(answers_are_kept_within_their_bytes_and_no_key_is_carried_out_twice);
            run!(schools_take_turns_and_a_report_waits_for_no_other_schools_batch);
            run!(sweeping_moves_the_floor_and_keeps_states);
            run!(everything_is_there_after_reopening);
            run!(a_closed_store_refuses);
            run!(overdue_jobs_are_found_by_their_time);
            run!(the_uptime_goes_on_where_it_ended_or_was_saved);
            run!(many_writers_leave_no_hole);
            run!(what_one_may_hold_alone_is_held_by_one);
            run!(a_snapshot_of_several_events_a_subject_is_told_once_and_in_order);
            run!(a_snapshot_of_what_goes_on_leaves_out_what_has_ended);
            run!(a_wide_event_is_in_the_replay_of_any_subject_of_its_kind);
            run!(a_folded_replay_keeps_the_last_sample_before_other_messages);
            run!(a_violation_is_acknowledged_once);
            run!(every_kind_is_there_after_reopening);
            run!(a_notifiers_cursor_is_kept_and_never_goes_back);
            run!(what_a_notifier_sets_aside_is_kept_until_it_is_lifted);
            run!(an_open_violation_is_not_swept);
            run!(a_list_is_told_from_either_end_page_by_page);
            run!(what_has_stalled_is_listed_within_its_status_or_apart_from_it);
            run!(a_search_finds_texts_and_values_in_any_case);
            run!(a_search_finds_what_a_look_at_every_job_finds_whatever_has_happened);
            run!(what_ended_is_counted_by_its_time_and_listed_by_its_end);
            run!(counts_follow_every_change_and_the_sweep);
            run!(the_last_events_of_a_subject_are_told_in_order);
            run!(a_page_is_bounded_in_bytes_and_nothing_is_left_out);
            run!(a_page_for_many_subjects_is_no_larger_than_one_for_all);
            run!(a_lease_is_held_by_one_and_its_fence_only_rises);
            run!(a_notifier_moves_only_under_the_last_fence_of_its_lease);
            run!(heartbeats_of_several_nodes_are_merged_and_those_of_no_device_are_not_kept);
            run!(nodes_know_each_other_until_they_leave_or_are_forgotten);
            run!(a_ping_key_is_found_in_its_school_until_it_is_removed);
            race!(concurrent_pings_of_a_key_begin_one_run);
            race!(a_device_is_held_once_whoever_asks);
            race!(a_limit_of_subjects_is_kept_whoever_creates_them);
            race!(a_key_is_carried_out_once_whoever_repeats_it);
            race!(reports_of_one_job_at_two_handles_are_all_in_one_order);
            race!(each_subject_is_counted_once_if_two_nodes_change_it);
            race!(what_is_rejected_is_judged_by_what_the_other_handle_has_written);
            $(run!($also);)*
        }
    )*};
}

stores! {
    sqlite: crate::store_contract::open_sqlite, if true, again None, also [texts_of_jobs_that_end_fill_a_commit_sooner_than_others];
    postgres: crate::store_contract::open_postgres, if crate::support::postgres::cluster().is_some(),
        again Some(crate::store_contract::open_postgres), also [];
}

fn school(number: i64) -> SchoolId {
    number.try_into().unwrap()
}

fn envelope(id: &str, verb: &str, body: serde_json::Value) -> Envelope {
    fn from<T: serde::de::DeserializeOwned>(body: serde_json::Value) -> T {
        serde_json::from_value(body).unwrap()
    }
    let command = match verb {
        "create" => job::Command::Create(from(body)),
        "start" => job::Command::Start(from(body)),
        "progress" => job::Command::Progress(from(body)),
        "complete" => job::Command::Complete(from(body)),
        "fail" => job::Command::Fail(from(body)),
        "retry" => job::Command::Retry(from(body)),
        "cancel" => job::Command::Cancel(from(body)),
        "check" => job::Command::Check,
        other => panic!("{other}"),
    };
    Envelope::new(id.parse().unwrap(), Command::Job(command))
}

fn create(id: &str) -> Envelope {
    envelope(
        id,
        "create",
        json!({"job_type": "t", "status": "in_progress"}),
    )
}

fn tick(id: &str) -> Envelope {
    envelope(id, "progress", json!({"message": "on and on"}))
}

fn all(number: i64) -> Arc<Scope> {
    Arc::new(Scope::new(school(number), [kind::channel("jobs").unwrap()]))
}

fn only(channels: &[&str]) -> Arc<Scope> {
    Arc::new(Scope::new(
        school(1),
        channels.iter().map(|text| kind::channel(text).unwrap()),
    ))
}

impl Bench {
    async fn append(
        &self,
        number: i64,
        envelopes: Vec<Envelope>,
    ) -> Vec<Result<Receipt, CommandError>> {
        self.store.append(school(number), envelopes).await.unwrap()
    }

    async fn done(&self, envelopes: Vec<Envelope>) {
        for receipt in self.append(1, envelopes).await {
            receipt.unwrap();
        }
    }

    /// Every page of a replay.
    async fn replayed(&self, scope: &Arc<Scope>, mut after: u64, fold: bool) -> Vec<u64> {
        let mut seqs = Vec::new();
        loop {
            let page = self
                .store
                .replay(Arc::clone(scope), after, fold)
                .await
                .unwrap();
            seqs.extend(page.events.iter().map(|event| event.seq));
            assert!(
                page.through <= page.head
                    && page
                        .events
                        .iter()
                        .all(|event| event.seq <= page.through.seq)
            );
            if page.through == page.head {
                return seqs;
            }
            assert!(page.through.seq > after, "it gets on");
            after = page.through.seq;
        }
    }

    async fn snapshot(&self, scope: &Arc<Scope>) -> Vec<(String, u64)> {
        let (mut after, mut upto, mut states) = (0, None, Vec::new());
        loop {
            let page = self
                .store
                .snapshot(Arc::clone(scope), after, upto)
                .await
                .unwrap();
            states.extend(
                page.events
                    .iter()
                    .map(|event| (event.subject.to_string(), event.seq)),
            );
            assert!(page.events.iter().all(|event| event.snapshot));
            if page.through == page.head {
                return states;
            }
            (after, upto) = (page.through.seq, Some(page.head));
        }
    }

    fn reopened_without_closing(self, open: Open) -> Bench {
        drop(self.store);
        Bench {
            origins: self.origins,
            ..bench_in(open, self.place, self.settings)
        }
    }

    /// What would be found if the process died now: a copy of the place, opened.
    fn cut_off(&self, open: Open) -> Bench {
        let place = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(self.place.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), place.path().join(file.file_name())).unwrap();
        }
        let mut cut_off = bench_in(open, Arc::new(place), self.settings.clone());
        cut_off.origins.clone_from(&self.origins);
        cut_off.origins.push(Arc::clone(&self.place));
        cut_off
    }

    async fn reopened(self, open: Open) -> Bench {
        self.store.close().await.unwrap();
        drop(self.store);
        Bench {
            origins: self.origins,
            ..bench_in(open, self.place, self.settings)
        }
    }
}

async fn commands_are_answered_in_order_and_a_refused_one_fails_alone(open: Open) {
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
    let told: Vec<_> = receipts
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
        told,
        ["a:1", "exists", "nobody", "a:2", "illegal", "a=2", "b:3"]
    );
}

async fn committed_events_are_handed_over_in_order_and_counted_before_the_answer(open: Open) {
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

async fn a_replay_tells_what_lies_after_and_says_how_far_it_reaches(open: Open) {
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
    let told = bench
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
    assert_eq!(format!("{:?}", told.draft), format!("{:?}", again.draft));
}

async fn a_replay_of_single_subjects_tells_theirs_only(open: Open) {
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

async fn a_folded_replay_leaves_out_what_is_superseded_within_the_scope(open: Open) {
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
    // Of what still runs, the newest is told, though its end is out of scope.
    let running = Filter {
        statuses: ["in_progress".to_owned()].into(),
        ..Filter::default()
    };
    let scope = Arc::new((*all(1)).clone().filtered(running));
    let told = bench.replayed(&scope, 0, true).await;
    assert!(
        told.contains(&602) && told.contains(&605) && !told.contains(&604),
        "{told:?}"
    );
}

async fn a_snapshot_tells_each_subject_once_in_the_order_of_the_log(open: Open) {
    let bench = bench(open, Settings::default());
    let ids: Vec<String> = (0..600).map(|n| format!("j{n}")).collect();
    bench.done(ids.iter().map(|id| create(id)).collect()).await;
    bench
        .done(vec![tick("j5"), envelope("j3", "complete", json!({}))])
        .await;
    let told = bench.snapshot(&all(1)).await;
    assert_eq!(told.len(), 600);
    assert!(told.is_sorted_by_key(|(_, seq)| *seq));
    assert_eq!(
        told[598..],
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

async fn schools_know_nothing_of_one_another(open: Open) {
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

async fn an_idempotency_key_is_remembered_until_it_is_swept(open: Open) {
    let bench = bench(
        open,
        Settings {
            idempotency_ttl_secs: 60,
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
async fn a_key_that_outlives_its_subject_is_answered_as_it_was(open: Open) {
    let bench = bench(
        open,
        Settings {
            retention_secs: 1,
            job_retention_secs: 1,
            idempotency_ttl_secs: 86_400,
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
    let told = |receipts: Vec<Result<Receipt, CommandError>>| -> Vec<String> {
        let json = |receipt: Result<Receipt, CommandError>| {
            let json = tidings::wire::event_json(receipt.unwrap().event(), false);
            String::from_utf8(json).unwrap()
        };
        receipts.into_iter().map(json).collect()
    };
    let first = bench.append(1, asked()).await;
    assert!(matches!(&first[2], Ok(Receipt::Unchanged(_))), "{first:?}");
    let first = told(first);
    let again = bench.append(1, asked()).await;
    let is_repeated = |receipt: &Result<_, _>| matches!(receipt, Ok(Receipt::Repeated(_)));
    assert!(again.iter().all(is_repeated), "{again:?}");
    assert_eq!(told(again), first, "while all is there");
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
    assert_eq!(told(again), first, "and when nothing is there any more");
    let other = bench.append(1, vec![with_key("create", create("b"))]).await;
    assert!(is_repeated(&other[0]), "a fingerprint is the HTTP layer's");
}

async fn answers_are_kept_within_their_bytes_and_no_key_is_carried_out_twice(open: Open) {
    const KEPT: usize = 10;
    const TEXT: usize = 4_000;
    let settings = Settings {
        retention_secs: 1,
        job_retention_secs: 1,
        idempotency_answer_bytes: (KEPT * (TEXT + 1_000)) as u64,
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
    let told = |receipts: Vec<Result<Receipt, CommandError>>| -> Vec<(bool, u64)> {
        let told = receipts.into_iter().map(|receipt| match receipt {
            Ok(Receipt::Repeated(event)) => (event.snapshot, event.seq),
            other => panic!("carried out again: {other:?}"),
        });
        told.collect()
    };
    let last = 3 * KEPT as u64 + 1;
    let answers = told(bench.append(1, asked()).await);
    let dropped = answers
        .iter()
        .take_while(|own| **own == (true, last))
        .count();
    assert!(
        (2 * KEPT - 1..=2 * KEPT + 2).contains(&dropped),
        "{dropped}"
    );
    let kept: Vec<_> = (dropped..3 * KEPT).map(|n| (false, n as u64 + 2)).collect();
    assert_eq!(answers[dropped..], kept, "the newest, as they were");
    // When the subject is gone, too, nothing is left to be told, and nothing is done.
    bench.done(vec![envelope("a", "complete", json!({}))]).await;
    sweep().await;
    sweep().await;
    let again = bench.append(1, asked()).await;
    let gone = again
        .iter()
        .take_while(|own| matches!(own, Err(CommandError::AnswerGone)));
    assert_eq!(gone.count(), dropped, "{again:?}");
    assert_eq!(told(again.into_iter().skip(dropped).collect()), kept);
}

/// The writer stands still while nobody takes what it has committed, so that it is known what waits for it.
async fn schools_take_turns_and_a_report_waits_for_no_other_schools_batch(open: Open) {
    const EACH: usize = 3_000;
    const EVENT: usize = 4_000;
    const SHARE: usize = GROUP_MAX_COMMANDS / TURNS_PER_GROUP;
    // A store may have several writers, and these schools always have the same one.
    const SCHOOLS: [i64; 3] = [1, 65, 129];
    let place = tempfile::tempdir().unwrap();
    let (committed, mut receiver) = Committed::channel(1);
    let store = open(&place, &Settings::default(), committed);
    let large = |id: &str| envelope(id, "progress", json!({"message": "x".repeat(EVENT)}));
    let batch = |id: &str, command: &dyn Fn(&str) -> Envelope| {
        let ticks = (0..EACH).map(|_| command(id));
        std::iter::once(create(id)).chain(ticks).collect::<Vec<_>>()
    };
    let mut first = store.append(school(SCHOOLS[0]), batch("a", &tick));
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    // Alone it has the whole of a commit, and no more.
    let mut order: Vec<Arc<Event>> = Vec::new();
    let events = receiver.recv().await.unwrap();
    assert_eq!(events.len(), GROUP_MAX_COMMANDS);
    order.extend(events);
    // Now one commit waits to be taken and one is under way, at most.
    let mut second = store.append(school(SCHOOLS[1]), batch("b", &large));
    assert!(futures_util::poll!(second.as_mut()).is_pending());
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
            assert!(of(&events, SCHOOLS[0]) <= SHARE);
            assert!(of(&events, SCHOOLS[1]) <= GROUP_MAX_BYTES / TURNS_PER_GROUP / EVENT + 1);
            break;
        }
        before += events.len();
    }
    assert!(before <= 2 * GROUP_MAX_COMMANDS, "{before}");
    assert!(report.await.unwrap()[0].is_ok(), "while the others go on");
    // Batches have a pace: a commit may have a turn of one of them.
    let mut had_second = true;
    while order.len() < 2 * (EACH + 1) + 1 {
        let events = receiver.recv().await.unwrap();
        let (first, second) = (of(&events, SCHOOLS[0]), of(&events, SCHOOLS[1]));
        assert!(second <= GROUP_MAX_BYTES / EVENT + 1);
        if of(&order, SCHOOLS[0]) + first < EACH + 1 {
            assert!(first <= SHARE, "{first}");
            assert!(second > 0 || had_second, "they take turns");
        }
        had_second = second > 0;
        order.extend(events);
    }
    for answer in [first.await.unwrap(), second.await.unwrap()] {
        assert_eq!(
            answer.iter().filter(|receipt| receipt.is_ok()).count(),
            EACH + 1
        );
    }
    for number in [SCHOOLS[0], SCHOOLS[1]] {
        let seqs = order.iter().filter(|event| event.school == school(number));
        let seqs: Vec<_> = seqs.map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=EACH as u64 + 1).collect::<Vec<_>>(), "in order");
    }
}

async fn sweeping_moves_the_floor_and_keeps_states(open: Open) {
    let bench = bench(
        open,
        Settings {
            retention_events: 10,
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

async fn everything_is_there_after_reopening(open: Open) {
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

async fn a_closed_store_refuses(open: Open) {
    let bench = bench(open, Settings::default());
    bench.done(vec![create("a")]).await;
    bench.store.ping().await.unwrap();
    bench.store.close().await.unwrap();
    assert!(matches!(
        bench.store.append(school(1), vec![tick("a")]).await,
        Err(StoreError::Stopped)
    ));
}

async fn overdue_jobs_are_found_by_their_time(open: Open) {
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
async fn the_uptime_goes_on_where_it_ended_or_was_saved(open: Open) {
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

async fn many_writers_leave_no_hole(open: Open) {
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

async fn a_lease_is_held_by_one_and_its_fence_only_rises(open: Open) {
    let bench = bench(open, Settings::default());
    let term = Duration::from_secs(3_600);
    let first = bench.store.acquire("sweep", term).await.unwrap().unwrap();
    assert_eq!(bench.store.acquire("sweep", term).await.unwrap(), None);
    let other = bench.store.acquire("other", term).await.unwrap().unwrap();
    assert!(bench.store.renew("sweep", first, term).await.unwrap());
    assert!(
        !bench.store.renew("sweep", other, term).await.unwrap(),
        "a fence is of one lease"
    );
    bench.store.release("sweep", other).await.unwrap();
    assert_eq!(bench.store.acquire("sweep", term).await.unwrap(), None);
    bench.store.release("sweep", first).await.unwrap();
    let second = bench.store.acquire("sweep", Duration::ZERO).await.unwrap();
    let second = second.unwrap();
    assert!(second > first);
    assert!(
        !bench.store.renew("sweep", second, term).await.unwrap(),
        "it has ended"
    );
    let third = bench.store.acquire("sweep", term).await.unwrap().unwrap();
    assert!(third > second);
    bench.store.release("sweep", third).await.unwrap();
    let again = bench.reopened(open).await;
    let fourth = again.store.acquire("sweep", term).await.unwrap().unwrap();
    assert!(fourth > third, "over a restart, too");
}
