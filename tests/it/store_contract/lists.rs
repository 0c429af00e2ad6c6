//! What a store promises of lists and counts, which the monitor reads.

use chrono::{TimeDelta, Utc};
use tidings::config::{
    Bounded, INDEXED_TEXT_MAX_BYTES, INDEXED_TEXT_WEIGHT, LIST_PAGE_BYTES, READ_PAGE,
    READ_PAGE_BYTES,
};
use tidings::log::{Order, Page, Searched, Stalled, Which};

use super::*;
use crate::support::until;

pub(super) async fn a_list_is_read_from_either_end_page_by_page(open: Open) {
    let bench = bench(open, Settings::default());
    let ids = ["a", "b", "c", "d", "e"];
    bench.done(ids.map(create).to_vec()).await;
    bench.done(vec![envelope("b", "complete", json!({}))]).await;
    let list = async |order, statuses: &[&'static str]| {
        let (mut listed, mut beyond) = (Vec::new(), None);
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
                .map(|stored| stored.event.subject.to_string());
            listed.extend(ids);
            beyond = page.next;
            if beyond.is_none() {
                return listed.concat();
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
        let (mut listed, mut beyond) = (String::new(), None);
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
            listed.extend(ids.map(|stored| stored.event.subject.to_string()));
            beyond = page.next;
            if beyond.is_none() {
                return listed;
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
    let report = json!({"message": "Größe_1", "metadata": {"key": ["Line\nÉ", 7.5]}});
    bench.done(vec![envelope("a", "progress", report)]).await;
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
            .map(|stored| stored.event.subject.to_string());
        ids.collect::<String>()
    };
    for text in ["GRÖSSE_", "line\né", "e\u{301}", "7.5", "A"] {
        assert_eq!(found(text).await, "a", "{text}");
    }
    for text in ["key", "%", "\"", "GROSSE", "\0", "größe\0"] {
        assert_eq!(found(text).await, "", "{text:?}");
    }
}

/// Texts of jobs, and what is searched for in them.
const WORDS: [&str; 8] = [
    "alpha beta",
    "BETA gamma",
    "Gr\u{f6}\u{df}e \"7\"",
    "nul\0byte",
    "\u{1}\u{1}\u{1}mark\u{1}",
    "\u{65e5}\u{672c}\u{8a9e}\u{306e}",
    "al",
    "beta-alpha-beta-gamma-alpha-beta",
];
const SEARCHES: [&str; 14] = [
    "alpha",
    "a beta",
    "gamma",
    "gr\u{f6}ssE \"",
    "\"7\"",
    "byte",
    "nulbyte",
    "\u{1}\u{1}\u{1}",
    "\u{672c}\u{8a9e}\u{306e}",
    "al",
    "-alpha-beta-gamma-alpha-b",
    "j1",
    "mark",
    "nowhere",
];

/// A job's texts, straight from its event.
fn texts_of(stored: &StoredSubject) -> Vec<String> {
    fn values(value: &serde_json::Value, texts: &mut Vec<String>) {
        match value {
            serde_json::Value::String(text) => texts.push(text.clone()),
            serde_json::Value::Number(number) => texts.push(number.to_string()),
            serde_json::Value::Array(items) => items.iter().for_each(|item| values(item, texts)),
            serde_json::Value::Object(members) => {
                members.values().for_each(|member| values(member, texts));
            }
            _ => {}
        }
    }
    let fields: serde_json::Value = serde_json::from_str(&stored.event.draft.fields).unwrap();
    let mut texts = vec![stored.event.subject.to_string()];
    for name in ["message", "metadata", "error"] {
        values(&fields[name], &mut texts);
    }
    // As much folding as these words need.
    let folded = texts
        .iter()
        .map(|text| text.to_lowercase().replace('\u{df}', "ss"));
    folded.collect()
}

/// Commands of chance on a few jobs.
fn commands_of_chance(chance: &mut fastrand::Rng, made: &mut usize) -> Vec<Envelope> {
    let word = |chance: &mut fastrand::Rng| WORDS[chance.usize(..WORDS.len())];
    let mut commands = Vec::new();
    for _ in 0..chance.usize(1..30) {
        let id = format!("j{}", chance.usize(..*made + 1));
        let (verb, body) = match chance.u8(..11) {
            0..=2 => {
                *made += 1;
                // Some have more texts than an index takes.
                let long = match chance.u8(..5) {
                    0 => "long ".repeat(800),
                    _ => String::new(),
                };
                let status = ["pending", "queued", "in_progress"][chance.usize(..3)];
                let job_type = ["a", "scan", "import"][chance.usize(..3)];
                let metadata = json!({"a": [{"b": word(chance)}, 7.5], "long": long});
                let body = json!({"job_type": job_type, "status": status, "message": word(chance), "metadata": metadata});
                let create = envelope(&format!("j{made}"), "create", body);
                commands.push(create);
                continue;
            }
            3 => ("progress", json!({"message": word(chance).repeat(60)})),
            4 => ("progress", json!({"metadata": {"a": word(chance)}})),
            5 => ("complete", json!({})),
            6 => ("cancel", json!({"force": true})),
            7 => ("retry", json!({})),
            // Ended before and after a commit, and not the same.
            8 | 9 => {
                commands.push(envelope(&id, "retry", json!({})));
                commands.push(envelope(&id, "start", json!({})));
                let error = json!({"code": "other", "message": word(chance)});
                (
                    "fail",
                    json!({"error": error, "metadata": {"a": word(chance)}}),
                )
            }
            _ => (
                "fail",
                json!({"error": {"code": "beta_x", "message": word(chance)}}),
            ),
        };
        commands.push(envelope(&id, verb, body));
    }
    commands
}

pub(super) async fn a_search_finds_what_a_look_at_every_job_finds_whatever_has_happened(
    open: Open,
) {
    let settings = Settings {
        retention_secs: Bounded::of::<1>(),
        job_retention_secs: Bounded::of::<1>(),
        idempotency_ttl_secs: Bounded::of::<1>(),
        ..Settings::default()
    };
    let mut bench = bench(open, settings);
    let mut chance = fastrand::Rng::with_seed(13);
    let (mut made, mut hits) = (0, 0);
    for round in 0..40 {
        let commands = commands_of_chance(&mut chance, &mut made);
        // Some are refused.
        bench.append(1, commands.clone()).await;
        bench.append(2, commands).await;
        match chance.u8(..12) {
            0 => {
                let later = Utc::now() + TimeDelta::hours(2);
                while bench.store.sweep(later).await.unwrap() {}
            }
            1 => bench = bench.reopened(open).await,
            2 => bench = bench.cut_off(open),
            _ => {}
        }
        let list = async |query: ListQuery, limit: usize| {
            let (mut listed, mut beyond) = (Vec::new(), None);
            loop {
                let query = ListQuery {
                    beyond,
                    ..query.clone()
                };
                let page = bench.store.subjects(school(1), KIND, query).await.unwrap();
                // Nothing is looked at twice, nor what is gone.
                let is_whole =
                    |searched: Searched| searched.is_complete && searched.rows <= limit as u64;
                assert!(page.searched.is_none_or(is_whole), "round {round}");
                listed.extend(page.subjects);
                beyond = page.next;
                if beyond.is_none() {
                    return listed;
                }
            }
        };
        let order = [Order::Newest, Order::Oldest][chance.usize(..2)];
        let query = ListQuery {
            order,
            limit: chance.usize(1..40),
            ..ListQuery::default()
        };
        let all = list(query.clone(), 0).await;
        for text in SEARCHES {
            let statuses = [
                &[][..],
                &["failed"],
                &["completed", "in_progress"],
                &["pending"],
            ][chance.usize(..4)];
            let categories = [&[][..], &["scan"], &["a", "import"]][chance.usize(..3)];
            let fits = |stored: &&StoredSubject| {
                let draft = &stored.event.draft;
                let category = draft.category.as_deref().unwrap_or_default();
                (statuses.is_empty() || statuses.contains(&draft.status))
                    && (categories.is_empty() || categories.contains(&category))
                    && texts_of(stored).iter().any(|stored_text| {
                        stored_text.contains(&text.to_lowercase().replace('\u{df}', "ss"))
                    })
            };
            let expected = all.iter().filter(fits);
            let expected: Vec<&SubjectId> = expected.map(|stored| &stored.event.subject).collect();
            let query = ListQuery {
                text: Some(text.into()),
                statuses: statuses.to_vec(),
                categories: categories
                    .iter()
                    .map(|category| (*category).to_owned())
                    .collect(),
                ..query.clone()
            };
            let found = list(query, all.len()).await;
            let found: Vec<&SubjectId> = found.iter().map(|stored| &stored.event.subject).collect();
            assert_eq!(
                found, expected,
                "round {round}: {text:?} {statuses:?} {categories:?}"
            );
            hits += found.len();
        }
    }
    assert!(hits > 500, "{hits} were found");
}

pub(super) async fn texts_of_jobs_that_end_fill_a_commit_sooner_than_others(open: Open) {
    const EACH: usize = 100;
    let mut bench = bench(open, Settings::default());
    let text = "x".repeat(INDEXED_TEXT_MAX_BYTES);
    let create = |number: usize| {
        let metadata = json!({"text": text});
        let body = json!({"job_type": "t", "status": "in_progress", "metadata": metadata});
        envelope(&format!("j{number}"), "create", body)
    };
    bench.done((0..EACH).map(create).collect()).await;
    let commits = async |bench: &mut Bench, commands: Vec<Envelope>| {
        bench.done(commands).await;
        let commits = std::iter::from_fn(|| bench.committed.try_recv());
        commits.map(|events| events.len()).collect::<Vec<_>>()
    };
    let made = commits(&mut bench, Vec::new()).await;
    assert_eq!(made, [EACH], "as many as their events allow");
    let end = |number: usize| envelope(&format!("j{number}"), "complete", json!({}));
    let ended = commits(&mut bench, (0..EACH).map(end).collect()).await;
    assert_eq!(ended.iter().sum::<usize>(), EACH);
    let max_count = GROUP_MAX_BYTES / (INDEXED_TEXT_MAX_BYTES * INDEXED_TEXT_WEIGHT) + 1;
    assert!(ended.iter().all(|count| *count <= max_count), "{ended:?}");
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
        let ids = ended.iter().map(|stored| stored.event.subject.to_string());
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
        let of_status = counts
            .iter()
            .filter(|(counted_status, _)| *counted_status == status);
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

pub(super) async fn the_last_events_of_a_subject_are_returned_in_order(open: Open) {
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
        retention_secs: Bounded::of::<1>(),
        job_retention_secs: Bounded::of::<1>(),
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
        metadata_limit_bytes: Bounded::new(LIST_PAGE_BYTES).unwrap(),
        ..Settings::default()
    }
}

/// Pages of events, to the last; each goes on behind the one before.
async fn pages(mut next: impl AsyncFnMut(u64, Option<Place>) -> Page) -> Vec<Page> {
    let (mut after, mut upto, mut pages) = (0, None, Vec::new());
    loop {
        let page = next(after, upto).await;
        (after, upto) = (page.through.seq, Some(page.head));
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

fn event_count(pages: &[Page]) -> usize {
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
                let texts = page.subjects.iter().map(|stored| stored.state.text_bytes());
                let before_last: usize = texts.rev().skip(1).sum();
                assert!(before_last <= LIST_PAGE_BYTES, "{before_last}");
                let subjects = page.subjects.iter();
                listed.extend(subjects.map(|stored| stored.event.subject.to_string()));
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
        assert_eq!(event_count(&snapshot), JOBS);
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
        assert_eq!(event_count(&replay), JOBS * (TICKS + 1));
        let seqs = replay.iter().flat_map(|page| &page.events);
        assert!(seqs.map(|event| event.seq).is_sorted());
    }
}
