//! What a store promises of lists and counts, which the monitor reads.

use chrono::{TimeDelta, Utc};
use tidings::config::{LIST_PAGE_BYTES, READ_PAGE, READ_PAGE_BYTES};
use tidings::store::{Order, Page, Stalled, Which};

use super::*;
use crate::support::until;

pub(super) async fn a_list_is_told_from_either_end_page_by_page(open: Open) {
    let bench = bench(open, Settings::default());
    let ids = ["a", "b", "c", "d", "e"];
    bench.done(ids.map(create).to_vec()).await;
    bench.done(vec![envelope("b", "complete", json!({}))]).await;
    let list = async |order, statuses: &[&'static str]| {
        let (mut told, mut beyond) = (Vec::new(), None);
        loop {
            let query = ListQuery {
                statuses: statuses.to_vec(),
                order,
                beyond,
                limit: 2,
                ..ListQuery::default()
            };
            let page = bench.store.subjects(school(1), KIND, query).await.unwrap();
            assert!(page.subjects.len() <= 2);
            let ids = page
                .subjects
                .iter()
                .map(|own| own.event.subject.to_string());
            told.extend(ids);
            beyond = page.next;
            if beyond.is_none() {
                return told.concat();
            }
        }
    };
    assert_eq!(list(Order::Newest, &[]).await, "edcba");
    assert_eq!(list(Order::Oldest, &[]).await, "abcde");
    let both = ["in_progress", "completed"];
    assert_eq!(list(Order::Oldest, &both).await, "abcde");
    assert_eq!(list(Order::Oldest, &["in_progress"]).await, "acde");
}

pub(super) async fn what_has_stalled_is_listed_within_its_status_or_apart_from_it(open: Open) {
    let bench = bench(open, Settings::default());
    let silent = |id| {
        let body = json!({"job_type": "t", "status": "in_progress", "stall_after_secs": 1});
        envelope(id, "create", body)
    };
    let made = vec![
        silent("a"),
        create("b"),
        silent("c"),
        create("d"),
        silent("e"),
    ];
    bench.done(made).await;
    bench.done(vec![envelope("b", "complete", json!({}))]).await;
    until("they have stalled", async || {
        let checks = ["a", "c", "e"].map(|id| envelope(id, "check", json!({})));
        bench.append(1, checks.to_vec()).await;
        bench.store.stalled(school(1), KIND).await.unwrap() == 3
    })
    .await;
    assert_eq!(bench.store.stalled(school(2), KIND).await.unwrap(), 0);
    let list = async |stalled, statuses: &[&'static str]| {
        let (mut told, mut beyond) = (String::new(), None);
        loop {
            let query = ListQuery {
                statuses: statuses.to_vec(),
                stalled,
                order: Order::Oldest,
                beyond,
                limit: 2,
                ..ListQuery::default()
            };
            let page = bench.store.subjects(school(1), KIND, query).await.unwrap();
            let ids = page.subjects.iter();
            told.extend(ids.map(|own| own.event.subject.to_string()));
            beyond = page.next;
            if beyond.is_none() {
                return told;
            }
        }
    };
    let apart = |wanted| Stalled::Apart { wanted };
    for (stalled, statuses, ids) in [
        (Stalled::Ignored, &["in_progress"][..], "acde"),
        (Stalled::Only, &[], "ace"),
        (Stalled::Only, &["completed"], ""),
        (apart(true), &[], "ace"),
        (apart(true), &["completed"], "abce"),
        (apart(true), &["completed", "in_progress"], "abcde"),
        (apart(false), &["completed", "in_progress"], "bd"),
        (apart(false), &[], "bd"),
    ] {
        assert_eq!(
            list(stalled, statuses).await,
            ids,
            "{stalled:?} {statuses:?}"
        );
    }
}

pub(super) async fn a_search_finds_texts_and_values_in_any_case(open: Open) {
    let bench = bench(open, Settings::default());
    bench.done(["a", "b"].map(create).to_vec()).await;
    let told = json!({"message": "Größe_1", "metadata": {"key": ["Line\nÉ", 7.5]}});
    bench.done(vec![envelope("a", "progress", told)]).await;
    let found = async |text: &str| {
        let query = ListQuery {
            text: Some(text.into()),
            limit: 10,
            ..ListQuery::default()
        };
        let page = bench.store.subjects(school(1), KIND, query).await.unwrap();
        let ids = page
            .subjects
            .iter()
            .map(|own| own.event.subject.to_string());
        ids.collect::<String>()
    };
    for text in ["GRÖSSE_", "line\né", "e\u{301}", "7.5", "A"] {
        assert_eq!(found(text).await, "a", "{text}");
    }
    for text in ["key", "%", "\"", "GROSSE", "\0", "größe\0"] {
        assert_eq!(found(text).await, "", "{text:?}");
    }
}

pub(super) async fn what_ended_is_counted_by_its_time_and_listed_by_its_end(open: Open) {
    let bench = bench(open, Settings::default());
    let begun = Utc::now();
    let ids = ["a", "b", "c", "d"];
    bench.done(ids.map(create).to_vec()).await;
    // Not in the order in which they were created.
    for id in ["c", "a"] {
        bench.done(vec![envelope(id, "complete", json!({}))]).await;
    }
    let cancelled = envelope("b", "cancel", json!({"force": true}));
    bench.done(vec![cancelled]).await;
    bench.append(2, vec![create("other")]).await;
    let ended = async |status, limit| {
        let ended = bench.store.ended(school(1), KIND, status, limit);
        let ended = ended.await.unwrap();
        let ids = ended.iter().map(|own| own.event.subject.to_string());
        ids.collect::<String>()
    };
    assert_eq!(ended("completed", 10).await, "ac", "the last first");
    assert_eq!(ended("completed", 1).await, "a");
    assert_eq!(ended("cancelled", 10).await, "b");
    assert_eq!(ended("failed", 10).await, "");
    let counted = async |number, since| {
        let endings = bench.store.endings(school(number), KIND, since);
        let mut counted = Vec::new();
        for ending in endings.await.unwrap() {
            assert!(ending.from <= Utc::now() && Utc::now() - ending.from < TimeDelta::hours(2));
            assert_eq!(ending.from.timestamp() % 3_600, 0, "whole hours");
            counted.push((ending.status, ending.count));
        }
        counted.sort_unstable();
        counted
    };
    let since = begun - TimeDelta::hours(5);
    for (status, since, count) in [
        ("completed", since, 2),
        ("cancelled", since, 1),
        ("failed", since, 0),
        ("completed", Utc::now() + TimeDelta::seconds(1), 0),
    ] {
        let counted = bench.store.ended_since(school(1), KIND, status, since);
        assert_eq!(counted.await.unwrap(), count, "{status}");
    }
    let counts = counted(1, since).await;
    let sum = |status| {
        let of_status = counts.iter().filter(|(own, _)| *own == status);
        of_status.map(|(_, count)| count).sum::<u64>()
    };
    assert_eq!(
        (sum("completed"), sum("cancelled"), sum("failed")),
        (2, 1, 0)
    );
    assert!(counted(2, since).await.is_empty());
    assert!(
        counted(1, Utc::now() + TimeDelta::seconds(1))
            .await
            .is_empty()
    );
}

pub(super) async fn the_last_events_of_a_subject_are_told_in_order(open: Open) {
    let bench = bench(open, Settings::default());
    bench.done(vec![create("a"), create("b")]).await;
    bench.done(vec![tick("a"), tick("a"), tick("b")]).await;
    bench.done(vec![envelope("a", "complete", json!({}))]).await;
    let last = async |which, limit| {
        let store = &bench.store;
        let events = store.last_events(school(1), KIND, "a".parse().unwrap(), which, limit);
        let events = events.await.unwrap();
        events.iter().map(|event| event.seq).collect::<Vec<_>>()
    };
    let any = Which::Type(&job::JOB_PROGRESS);
    assert_eq!(last(any, 10).await, [1, 3, 4, 6]);
    assert_eq!(last(any, 2).await, [4, 6]);
    assert_eq!(last(Which::Milestones, 10).await, [1, 6]);
}

pub(super) async fn counts_follow_every_change_and_the_sweep(open: Open) {
    let settings = Settings {
        retention_secs: 1,
        job_retention_secs: 1,
        ..Settings::default()
    };
    let bench = bench(open, settings);
    let counts = async || {
        let mut counts = bench.store.counts(school(1), KIND).await.unwrap();
        counts.sort_unstable();
        counts
    };
    assert!(counts().await.is_empty());
    bench.done(["a", "b", "c"].map(create).to_vec()).await;
    bench.append(2, vec![create("other")]).await;
    assert_eq!(counts().await, [("in_progress", 3)]);
    let cancelled = envelope("b", "cancel", json!({"force": true}));
    let ended = vec![envelope("a", "complete", json!({})), cancelled, tick("c")];
    bench.done(ended).await;
    let all = [("cancelled", 1), ("completed", 1), ("in_progress", 1)];
    assert_eq!(counts().await, all);
    let later = Utc::now() + TimeDelta::hours(2);
    until("what has ended is swept", async || {
        bench.store.sweep(later).await.unwrap();
        counts().await == [("in_progress", 1)]
    })
    .await;
    let since = Utc::now() - TimeDelta::hours(5);
    let endings = bench.store.endings(school(1), KIND, since).await;
    assert!(endings.unwrap().is_empty(), "nor are their ends counted");
}

/// Metadata may fill a page.
fn with_large_metadata() -> Settings {
    Settings {
        metadata_limit_bytes: LIST_PAGE_BYTES,
        ..Settings::default()
    }
}

/// Pages of events, to the last; each goes on behind the one before.
async fn pages(mut next: impl AsyncFnMut(u64, Option<u64>) -> Page) -> Vec<Page> {
    let (mut after, mut upto, mut pages) = (0, None, Vec::new());
    loop {
        let page = next(after, upto).await;
        (after, upto) = (page.through, Some(page.head));
        let is_last = page.through == page.head;
        pages.push(page);
        if is_last {
            return pages;
        }
    }
}

/// Checks that no page has more than it may, in addition to its last event.
fn check_sizes(pages: &[Page]) {
    for page in pages {
        let bytes = page.events.iter().map(|event| event.draft.fields.len());
        let before_last = bytes.rev().skip(1).sum::<usize>();
        assert!(before_last <= READ_PAGE_BYTES, "{before_last}");
        assert!(page.events.len() <= READ_PAGE);
    }
}

fn told(pages: &[Page]) -> usize {
    pages.iter().map(|page| page.events.len()).sum()
}

pub(super) async fn a_page_is_bounded_in_bytes_and_nothing_is_left_out(open: Open) {
    const JOBS: usize = 40;
    let bench = bench(open, with_large_metadata());
    let ids: Vec<String> = (0..JOBS).map(|number| format!("j{number}")).collect();
    let large = "r".repeat(LIST_PAGE_BYTES / 16);
    for (number, id) in ids.iter().enumerate() {
        // Two that end in each way, by turns: a snapshot reads each way by itself.
        let end = match number % 4 {
            0 | 1 => envelope(id, "complete", json!({"result": large})),
            _ => envelope(id, "progress", json!({"metadata": {"text": large}})),
        };
        bench.done(vec![create(id), end]).await;
    }
    for text in [None, Some("J".to_owned())] {
        for order in [Order::Newest, Order::Oldest] {
            let (mut listed, mut beyond) = (Vec::new(), None);
            loop {
                let query = ListQuery {
                    text: text.clone(),
                    order,
                    beyond,
                    limit: 500,
                    ..ListQuery::default()
                };
                let page = bench.store.subjects(school(1), KIND, query).await.unwrap();
                let texts = page.subjects.iter().map(|own| own.state.text_bytes());
                let before_last: usize = texts.rev().skip(1).sum();
                assert!(before_last <= LIST_PAGE_BYTES, "{before_last}");
                let subjects = page.subjects.iter();
                listed.extend(subjects.map(|own| own.event.subject.to_string()));
                beyond = page.next;
                if beyond.is_none() {
                    break;
                }
            }
            if order == Order::Newest {
                listed.reverse();
            }
            assert_eq!(listed, ids, "{text:?} {order:?}");
        }
    }
    let each: Vec<String> = ids.iter().map(|id| format!("jobs/{id}")).collect();
    let each: Vec<&str> = each.iter().map(String::as_str).collect();
    for scope in [all(1), only(&each)] {
        let snapshot = pages(async |after, upto| {
            let page = bench.store.snapshot(Arc::clone(&scope), after, upto);
            page.await.unwrap()
        });
        let snapshot = snapshot.await;
        check_sizes(&snapshot);
        assert_eq!(told(&snapshot), JOBS);
    }
}

pub(super) async fn a_page_for_many_subjects_is_no_larger_than_one_for_all(open: Open) {
    const JOBS: usize = 20;
    const TICKS: usize = 30;
    let bench = bench(open, with_large_metadata());
    let ids: Vec<String> = (0..JOBS).map(|number| format!("j{number}")).collect();
    let metadata = json!({"text": "m".repeat(READ_PAGE_BYTES / 64)});
    let create = |id: &String| {
        let body = json!({"job_type": "t", "status": "in_progress", "metadata": metadata});
        envelope(id, "create", body)
    };
    bench.done(ids.iter().map(create).collect()).await;
    for _ in 0..TICKS {
        bench.done(ids.iter().map(|id| tick(id)).collect()).await;
    }
    let each: Vec<String> = ids.iter().map(|id| format!("jobs/{id}")).collect();
    let each: Vec<&str> = each.iter().map(String::as_str).collect();
    for scope in [all(1), only(&each)] {
        let replay = pages(async |after, _| {
            let page = bench.store.replay(Arc::clone(&scope), after, false);
            page.await.unwrap()
        });
        let replay = replay.await;
        check_sizes(&replay);
        assert_eq!(told(&replay), JOBS * (TICKS + 1));
        let seqs = replay.iter().flat_map(|page| &page.events);
        assert!(seqs.map(|event| event.seq).is_sorted());
    }
}
