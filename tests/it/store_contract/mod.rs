//! The contract of a store: a suite for each of its ports, which every implementation must pass. A new store adds a function
//! that opens it, and a line to `stores!`. While it is being written, its suites run one by one:
//! `cargo test --test it -- store_contract::sqlite::leases`.

mod commits;
mod consumers;
mod heartbeats;
mod idempotency;
mod keeping;
mod leases;
mod lists;
mod nodes;
mod ping_keys;
mod races;
mod reading;
mod sources;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tidings::config::{Bounded, GROUP_MAX_BYTES, SWEEP_SCHOOLS, Settings};
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

use self::commits::*;
use self::consumers::*;
use self::heartbeats::*;
use self::idempotency::*;
use self::keeping::*;
use self::leases::*;
use self::lists::*;
use self::nodes::*;
use self::ping_keys::*;
use self::races::*;
use self::reading::*;
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
    let address = Address::parse(&url.into(), crate::support::store::prepares()).unwrap();
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

/// One test of a port.
macro_rules! contract_test {
    (test $name:ident, $open:expr, $is_there:expr, $again:expr) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            if $is_there {
                crate::store_contract::$name($open).await
            }
        }
    };
    (slow $name:ident, $open:expr, $is_there:expr, $again:expr) => {
        #[tokio::test(flavor = "multi_thread")]
        #[ignore = "slow: takes seconds"]
        async fn $name() {
            if $is_there {
                crate::store_contract::$name($open).await
            }
        }
    };
    (race $name:ident, $open:expr, $is_there:expr, $again:expr) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            if $is_there {
                crate::store_contract::$name($open, $again).await
            }
        }
    };
}

/// The tests of each port in a module of its own.
macro_rules! ports {
    ($open:expr, $is_there:expr, $again:expr; $($port:ident { $($how:ident $name:ident;)* })*) => {$(
        mod $port {
            $(contract_test!($how $name, $open, $is_there, $again);)*
        }
    )*};
}

/// Each store: how it is opened, and how it is opened a second time while it is open, if that is possible.
macro_rules! stores {
    ($($module:ident: $open:path, if $is_there:expr, again $again:expr, also [$($also:ident)*];)*) => {$(
        mod $module {
            ports! {
                $open, $is_there, $again;
                journal {
                    test commands_are_answered_in_order_and_a_rejected_one_fails_alone;
                    test committed_events_are_handed_over_in_order_and_counted_before_the_answer;
                    test schools_know_nothing_of_one_another;
                    test an_idempotency_key_is_remembered_until_it_is_swept;
                    test a_key_that_outlives_its_subject_is_answered_as_it_was;
                    test answers_are_kept_within_their_bytes_and_no_key_is_carried_out_twice;
                    slow schools_take_turns_and_a_report_waits_for_no_other_schools_batch;
                    test sweeping_moves_the_floor_and_keeps_states;
                    test every_school_is_swept_in_each_round_however_many_there_are;
                    test a_finished_subject_outlives_its_events_for_as_long_as_is_set;
                    test a_log_is_kept_within_its_bytes;
                    test an_open_violation_is_not_swept;
                    test a_violation_that_was_acknowledged_late_is_swept_in_time;
                    test everything_is_there_after_reopening;
                    test every_kind_is_there_after_reopening;
                    test a_closed_store_rejects;
                    test the_uptime_goes_on_where_it_ended_or_was_saved;
                    test many_writers_leave_no_hole;
                    test a_device_has_at_most_one_active_session;
                    test a_violation_is_acknowledged_once;
                    race a_device_is_held_once_if_two_nodes_ask;
                    race a_limit_of_subjects_is_kept_if_two_nodes_create_them;
                    race a_key_is_carried_out_once_if_two_nodes_repeat_it;
                    race reports_of_one_job_at_two_handles_are_all_in_one_order;
                    race what_is_rejected_is_judged_by_what_the_other_handle_has_written;
                }
                log {
                    test a_replay_contains_what_lies_after_and_says_how_far_it_reaches;
                    test a_replay_of_single_subjects_contains_only_their_events;
                    test a_folded_replay_leaves_out_what_is_superseded_within_the_scope;
                    test a_folded_replay_keeps_the_last_sample_before_other_messages;
                    test a_wide_event_is_in_the_replay_of_any_subject_of_its_kind;
                    test a_snapshot_contains_each_subject_once_in_the_order_of_the_log;
                    test a_snapshot_of_several_events_a_subject_contains_each_once_and_in_order;
                    test a_snapshot_of_large_subjects_with_several_events_leaves_out_none;
                    test a_snapshot_of_what_goes_on_leaves_out_what_has_ended;
                    slow a_page_is_bounded_in_bytes_and_nothing_is_left_out;
                    test a_page_for_many_subjects_is_no_larger_than_one_for_all;
                }
                catalog {
                    test a_list_is_read_from_either_end_page_by_page;
                    test what_has_stalled_is_listed_within_its_status_or_apart_from_it;
                    test overdue_jobs_are_found_by_their_time;
                    test a_search_finds_texts_and_values_in_any_case;
                    slow a_search_finds_what_a_look_at_every_job_finds_whatever_has_happened;
                    test what_ended_is_counted_by_its_time_and_listed_by_its_end;
                    test counts_follow_every_change_and_the_sweep;
                    race each_subject_is_counted_once_if_two_nodes_change_it;
                    test the_last_events_of_a_subject_are_returned_in_order;
                }
                consumers {
                    test a_notifiers_cursor_is_kept_and_never_goes_back;
                    test a_notifier_that_has_not_begun_is_behind_by_all_events;
                    test what_a_notifier_sets_aside_is_kept_until_it_is_lifted;
                    test a_notifier_moves_only_under_the_last_fence_of_its_lease;
                }
                leases {
                    test a_lease_is_held_by_one_and_its_fence_only_rises;
                }
                heartbeats {
                    test heartbeats_of_several_nodes_are_merged_and_those_of_no_device_are_not_kept;
                }
                nodes {
                    test nodes_know_each_other_until_they_leave_or_are_forgotten;
                }
                ping_keys {
                    test a_ping_key_is_found_in_its_school_until_it_is_removed;
                    race concurrent_pings_of_a_key_begin_one_run;
                    race a_limit_of_ping_keys_is_kept_if_two_nodes_add_them;
                }
            }
            $(contract_test!(test $also, $open, $is_there, $again);)*
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
    async fn replayed(&self, scope: &Arc<Scope>, mut after: u64, conflate: bool) -> Vec<u64> {
        let mut seqs = Vec::new();
        loop {
            let page = self
                .store
                .replay(Arc::clone(scope), after, conflate)
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
