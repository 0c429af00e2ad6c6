//! The contract of `Leases`.

use super::*;

pub(super) async fn a_lease_is_held_by_one_and_its_fence_only_rises(open: Open) {
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
