//! The programs that tests start (`support/part.rs`): they must not outlive the tests, and tests must not see one another's data.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use tokio_postgres::{Client, NoTls};

use crate::support::pgbouncer::PgBouncer;
use crate::support::{postgres, until};

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn each_test_has_its_own_database_and_none_is_left_behind() {
    let Some(cluster) = postgres::cluster() else {
        return;
    };
    let (one, other) = (cluster.database(), cluster.database());
    let client = connect(&one.url).await;
    client
        .batch_execute("CREATE TABLE t (n bigint)")
        .await
        .unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename = 't'";
    assert_eq!(number(&client, tables).await, 1);
    assert_eq!(number(&connect(&other.url).await, tables).await, 0);

    let name = one.url.rsplit_once('/').unwrap().1;
    let left = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
    let client = connect(&other.url).await;
    assert_eq!(number(&client, &left).await, 1);
    drop(one);
    until("the database is dropped", async || {
        number(&client, &left).await == 0
    })
    .await;
}

#[tokio::test]
async fn what_the_tests_commit_is_sorted_and_dated_unlike_sqlites() {
    let Some(database) = postgres::database() else {
        return;
    };
    let client = connect(&database.url).await;
    for (setting, expected) in [("synchronous_commit", "on"), ("timezone", "Asia/Kathmandu")] {
        let row = client.query_one(&format!("SHOW {setting}"), &[]).await;
        assert_eq!(row.unwrap().get::<_, String>(0), expected);
    }
    // Some builds of PostgreSQL have no ICU, and sort by code points as SQLite does.
    let icu = "SELECT count(*) FROM pg_database WHERE datname = current_database() AND datlocprovider = 'i'";
    let sorted = "SELECT count(*) FROM (VALUES ('a'), ('B')) t (c) WHERE c < 'Az'";
    if number(&client, icu).await == 1 {
        assert_eq!(number(&client, sorted).await, 1, "only `a` is before `Az`");
    }
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_hands_a_connection_to_another_client_in_between() {
    let Some(cluster) = postgres::cluster() else {
        return;
    };
    let Some(pooler) = PgBouncer::before(cluster).await else {
        return;
    };
    let database = cluster.database();
    let url = pooler.url(&database);
    let clients = [connect(&url).await, connect(&url).await];
    let mut served = Vec::new();
    for client in &clients {
        // The simple protocol, because not every PgBouncer knows prepared statements.
        let messages = client
            .simple_query("SELECT pg_backend_pid()")
            .await
            .unwrap();
        served.extend(messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }));
    }
    assert_eq!(served.len(), 2);
    assert_eq!(served[0], served[1]);
}

/// Started by the next test, in a process of its own. Does nothing otherwise.
#[tokio::test]
async fn a_test_process_that_waits_to_be_killed() {
    if std::env::var_os("TEST_WAITS").is_none() {
        return;
    }
    let database = postgres::database().unwrap();
    // Only a superuser may ask for the folder.
    println!("{}", database.url_of_superuser());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn the_tests_parts_end_with_the_test_process_even_if_it_is_killed() {
    use std::io::BufRead;
    if postgres::cluster().is_none() {
        return;
    }
    let mut tests = Command::new(std::env::current_exe().unwrap())
        .args(["a_test_process_that_waits_to_be_killed", "--nocapture"])
        .env("TEST_WAITS", "1")
        .env_remove("POSTGRES_URL")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(tests.stdout.take().unwrap());
    let lines = output.lines().map(Result::unwrap);
    let url = lines.into_iter().find_map(|line| {
        let start = line.find("postgres://")?;
        Some(line[start..].to_owned())
    });
    let url = url.expect("the URL of its database");
    let folder = {
        let client = connect(&url).await;
        let row = client.query_one("SHOW data_directory", &[]).await.unwrap();
        std::path::PathBuf::from(row.get::<_, String>(0))
    };
    assert!(folder.exists());
    tests.kill().unwrap();
    assert_eq!(tests.wait().unwrap().signal(), Some(9));
    until("PostgreSQL ends", async || {
        tokio_postgres::connect(&url, NoTls).await.is_err()
    })
    .await;
    until("its folder is removed", async || {
        !folder.parent().unwrap().exists()
    })
    .await;
}
