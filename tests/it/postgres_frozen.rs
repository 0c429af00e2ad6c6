//! A Postgres that keeps its connections open and answers nothing, or that is gone.

use std::sync::Arc;
use std::time::Duration;

use tidings::config::{POSTGRES_TIMEOUT, Settings};
use tidings::log::leases::Leases;
use tidings::log::{Catalog, Committed, Journal, Log, StoreError};
use tidings::store::postgres::{Address, PostgresStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::postgres::{self, Cluster};
use crate::support::process::blocking;
use crate::support::skip;

/// Passes on what arrives, unless it is frozen.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut frozen: watch::Receiver<bool>) {
    let mut buffer = [0; 16_384];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if frozen.wait_for(|frozen| !frozen).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}

/// A relay before the database at this URL. Returns the URL through it.
async fn relay(url: &str, frozen: watch::Receiver<bool>) -> String {
    let (start, rest) = url.split_once('@').unwrap();
    let (host, database) = rest.split_once('/').unwrap();
    let host: Arc<str> = host.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&*host).await.unwrap();
            let ((from, to), (back, there)) = (client.into_split(), server.into_split());
            tokio::spawn(pass(from, there, frozen.clone()));
            tokio::spawn(pass(back, to, frozen.clone()));
        }
    });
    format!("{start}@127.0.0.1:{port}/{database}")
}

/// A relay before the database at this URL. Once `loses` is true, a `COMMIT` and what follows it on its connection are lost: the
/// database still sees an open connection, on which nothing arrives. Returns the URL through it.
async fn relay_that_loses_commits(url: &str, loses: watch::Receiver<bool>) -> String {
    let (start, rest) = url.split_once('@').unwrap();
    let (host, database) = rest.split_once('/').unwrap();
    let host: Arc<str> = host.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&*host).await.unwrap();
            let ((from, to), (back, there)) = (client.into_split(), server.into_split());
            tokio::spawn(pass(back, to, watch::channel(false).1));
            tokio::spawn(pass_until_commit(from, there, loses.clone()));
        }
    });
    format!("{start}@127.0.0.1:{port}/{database}")
}

async fn pass_until_commit(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    loses: watch::Receiver<bool>,
) {
    let mut buffer = [0; 16_384];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let is_commit = buffer[..read].windows(6).any(|part| part == b"COMMIT");
        if is_commit && *loses.borrow() {
            std::future::pending().await
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// A store on this database, which freezes when it is told to.
async fn open(url: &str) -> (Arc<PostgresStore>, watch::Sender<bool>) {
    let (freezes, frozen) = watch::channel(false);
    (open_at(relay(url, frozen).await).await, freezes)
}

async fn open_at(url: String) -> Arc<PostgresStore> {
    // Nothing is committed.
    let (committed, _) = Committed::channel(10);
    let address = Address::parse(&url.into(), true).unwrap();
    let opened =
        blocking(move || PostgresStore::open(&Settings::default(), address, committed, &[]));
    Arc::new(opened.await.unwrap())
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let connecting = tokio_postgres::connect(url, tokio_postgres::NoTls);
    let (client, connection) = connecting.await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_store_whose_database_is_gone_closes_in_order() {
    let Some(bin) = postgres::programs() else {
        skip("PostgreSQL");
        return;
    };
    let cluster = Cluster::start(&bin, &[]);
    let database = cluster.database();
    let (store, _freezes) = open(&database.url).await;
    store.acquire("x", Duration::from_secs(1)).await.unwrap();
    drop(cluster);
    let failed = store.acquire("y", Duration::from_secs(1)).await;
    assert!(failed.is_err_and(|error| matches!(error, StoreError::Unavailable(_))));
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: it waits for the time-out of a database"]
async fn reads_and_small_writes_of_a_frozen_database_end_in_time_and_work_again_afterwards() {
    let Some(database) = postgres::database() else {
        return;
    };
    let (store, freezes) = open(&database.url).await;
    let school = 1.try_into().unwrap();
    store.bounds(school).await.unwrap();
    freezes.send(true).unwrap();
    let is_unavailable = |error: StoreError| matches!(error, StoreError::Unavailable(_));
    let all = async {
        let reads = async { store.bounds(school).await.map(drop) };
        let lists = async { store.schools(None, 10).await.map(drop) };
        let writes = async { store.acquire("x", Duration::from_secs(1)).await.map(drop) };
        tokio::join!(reads, lists, writes)
    };
    // However many connections are idle.
    let limit = POSTGRES_TIMEOUT * 3;
    let (read, list, write) = tokio::time::timeout(limit, all).await.expect("in time");
    for failed in [read, list, write] {
        assert!(failed.is_err_and(is_unavailable));
    }
    freezes.send(false).unwrap();
    store.bounds(school).await.unwrap();
    store.schools(None, 10).await.unwrap();
    let lease = store.acquire("x", Duration::from_secs(1)).await;
    assert!(lease.unwrap().is_some());
}

/// What waits for a node that is suspended or cut off between two statements waits for less than its own time-out.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: it waits for the time-out of a database"]
async fn the_locks_of_a_node_that_is_cut_off_within_a_transaction_are_released() {
    let Some(database) = postgres::database() else {
        return;
    };
    let (cut, loses) = watch::channel(false);
    let lost = open_at(relay_that_loses_commits(&database.url, loses).await).await;
    let other = open_at(database.url.clone()).await;
    let observer = connect(&database.url).await;
    cut.send(true).unwrap();
    let term = Duration::from_secs(60);
    let acquiring = tokio::spawn(async move { lost.acquire("x", term).await });
    crate::support::until("the lease is written, and not committed", async || {
        let waits = "SELECT FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE '%leases%' AND datname = current_database()";
        !observer.query(waits, &[]).await.unwrap().is_empty()
    })
    .await;
    // Well before its own time-out.
    let limit = POSTGRES_TIMEOUT - Duration::from_secs(2);
    let acquired = tokio::time::timeout(limit, other.acquire("x", term)).await;
    let acquired = acquired.expect("the lock is released in time").unwrap();
    assert!(acquired.is_some());
    acquiring.await.unwrap().unwrap_err();
}

/// The database freezes between the beginning of a transaction and its query.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: it waits for the time-out of a database"]
async fn a_query_that_is_under_way_when_the_database_freezes_ends_in_time() {
    let Some(database) = postgres::database() else {
        return;
    };
    let (store, freezes) = open(&database.url).await;
    // What waits for this lock has begun. A transaction sees the activity as it was when it looked first, so another one looks.
    let (holder, observer) = (connect(&database.url).await, connect(&database.url).await);
    holder
        .batch_execute("BEGIN; LOCK TABLE schools IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let reading = Arc::clone(&store);
    let read = tokio::spawn(async move { reading.bounds(1.try_into().unwrap()).await });
    crate::support::until("the read waits", async || {
        let waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        !observer.query(waits, &[]).await.unwrap().is_empty()
    })
    .await;
    freezes.send(true).unwrap();
    holder.batch_execute("COMMIT").await.unwrap();
    let read = tokio::time::timeout(POSTGRES_TIMEOUT * 3, read).await;
    let error = read.expect("in time").unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
}
