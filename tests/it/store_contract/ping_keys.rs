//! Keys for pings, outside the log.

use chrono::{SubsecRound, Utc};
use tidings::log::pings::{KeyDigest, Numbers, PingKey};

use super::*;

fn new_key(number: i64, job_type: &str, numbers: Numbers) -> (PingKey, KeyDigest) {
    let now = Utc::now().trunc_subsecs(3);
    let job_type = job_type.parse().unwrap();
    let (key, secret) = PingKey::generate(school(number), job_type, numbers, "ada", now);
    (key, KeyDigest::of(secret.reveal()))
}

pub(super) async fn a_ping_key_is_found_in_its_school_until_it_is_removed(open: Open) {
    let bench = bench(open, Settings::default());
    let (first, digest) = new_key(1, "backup", Numbers::ExitCode);
    let (second, _) = new_key(1, "import", Numbers::Progress);
    let (third, _) = new_key(1, "import", Numbers::Progress);
    let (theirs, _) = new_key(2, "backup", Numbers::ExitCode);
    for (number, key, added) in [
        (1, &first, true),
        (1, &second, true),
        (1, &third, false),
        (2, &theirs, true),
    ] {
        let answer = bench.store.add_ping_key(school(number), key.clone(), 2);
        assert_eq!(answer.await.unwrap(), added);
    }
    let bench = bench.reopened(open).await;
    let store = &bench.store;
    let mut listed = store.ping_keys(school(1)).await.unwrap();
    listed.sort_by_key(|key| key.job_type.as_str().to_owned());
    assert_eq!(listed, [first.clone(), second.clone()]);
    let found = async |number, digest: &KeyDigest| {
        let found = store.ping_key(school(number), digest.clone()).await;
        found.unwrap()
    };
    assert_eq!(found(1, &digest).await, Some(first.clone()));
    assert_eq!(found(2, &digest).await, None, "not in another school");
    assert_eq!(found(1, &theirs.digest).await, None);
    // Runs are counted key by key.
    let begin = async |id: &PingKey, run| {
        let begun = store.begin_ping_run(school(1), id.id.clone(), run).await;
        begun.unwrap()
    };
    assert!(begin(&first, 0).await && begin(&first, 1).await);
    assert!(!begin(&first, 1).await && !begin(&first, 3).await && !begin(&theirs, 0).await);
    assert_eq!(found(1, &digest).await.unwrap().run, 2);
    assert_eq!(found(1, &second.digest).await.unwrap().run, 0);
    let removed = async |number, key: &PingKey| {
        let removed = store.remove_ping_key(school(number), key.id.clone()).await;
        removed.unwrap()
    };
    assert!(!removed(2, &first).await, "another school's");
    assert!(removed(1, &first).await && !removed(1, &first).await);
    assert_eq!(found(1, &digest).await, None);
    assert!(!begin(&first, 2).await);
    assert_eq!(store.ping_keys(school(1)).await.unwrap(), [second]);
    let room = store.add_ping_key(school(1), third, 2);
    assert!(room.await.unwrap());
}

pub(super) async fn concurrent_pings_of_a_key_begin_one_run(open: Open, again: Option<Open>) {
    let pair = Pair::open(open, again, Settings::default());
    let (key, digest) = new_key(1, "backup", Numbers::ExitCode);
    let store = &pair.bench.store;
    assert!(store.add_ping_key(school(1), key.clone(), 1).await.unwrap());
    let other = pair.other.as_deref().unwrap_or(&**store);
    for run in 0..RACES as u64 {
        let (one, two) = tokio::join!(
            store.begin_ping_run(school(1), key.id.clone(), run),
            other.begin_ping_run(school(1), key.id.clone(), run),
        );
        assert!(one.unwrap() ^ two.unwrap(), "{run}");
    }
    let found = other.ping_key(school(1), digest).await.unwrap();
    assert_eq!(found.unwrap().run, RACES as u64);
}

pub(super) async fn a_limit_of_ping_keys_is_kept_if_two_nodes_add_them(
    open: Open,
    again: Option<Open>,
) {
    let pair = Pair::open(open, again, Settings::default());
    let store = &pair.bench.store;
    let other = pair.other.as_deref().unwrap_or(&**store);
    for number in 1..=RACES as i64 {
        let key = || new_key(number, "backup", Numbers::ExitCode).0;
        let (one, two) = tokio::join!(
            store.add_ping_key(school(number), key(), 1),
            other.add_ping_key(school(number), key(), 1),
        );
        assert!(one.unwrap() ^ two.unwrap(), "{number}");
    }
}
