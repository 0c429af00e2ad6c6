//! Two real servers over one Postgres, with each bus: a client of one receives what happens on the other.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::part::free_port;
use crate::support::postgres::{self, Database};
use crate::support::process::{Process, command};
use crate::support::redis::RedisServer;
use crate::support::{Listener, SECRET, Server, Transport, admin, server_with, until};
use crate::tls::make_certificate;

const TRANSPORTS: [Transport; 3] = [
    Transport::EventSource,
    Transport::WebSocket,
    Transport::Poll,
];

/// Starts two servers over one database. Without a URL, they use notifications of the database.
async fn two_nodes(database: &Database, bus_url: Option<&str>) -> [Server; 2] {
    let settings = json!({"database_url": database.url, "bus_url": bus_url});
    let settings = match bus_url {
        Some(_) => settings,
        None => json!({"database_url": database.url}),
    };
    let nodes = [
        server_with(settings.clone()).await,
        server_with(settings).await,
    ];
    for node in &nodes {
        until("the bus works", async || is_connected(node).await).await;
    }
    nodes
}

/// Returns a value of `/metrics`.
async fn metric(server: &Server, name: &str) -> Option<f64> {
    let answer = server.request("GET", "/metrics", &admin()).send().await;
    let text = answer.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

async fn is_connected(server: &Server) -> bool {
    metric(server, "tidings_bus_connected{").await == Some(1.0)
}

async fn progress(server: &Server, job: &str, percent: u32) {
    server
        .report(
            &format!("/api/jobs/{job}/progress"),
            json!({"progress": percent}),
        )
        .await;
}

/// Returns the messages up to the one that reports this progress.
async fn messages_until(listener: &mut Listener, percent: u32) -> Vec<Value> {
    let percent = f64::from(percent);
    listener
        .take_until(|message| message["progress"] == percent)
        .await
}

/// What is published on either node reaches every transport of both, in the order of the log.
async fn everything_reaches_everybody(nodes: &[Server; 2]) {
    nodes[0].running_job("a").await;
    let mut listeners = Vec::new();
    for node in nodes {
        for transport in TRANSPORTS {
            let mut listener = node.listen(transport, "/jobs?tick_ms=0").await;
            listener.until_ready().await;
            listeners.push(listener);
        }
    }
    for percent in 1..=20 {
        progress(&nodes[usize::from(percent % 3 == 0)], "a", percent).await;
    }
    nodes[1].report("/api/jobs/a/complete", json!({})).await;
    let mut all: Vec<Vec<Value>> = Vec::new();
    for listener in &mut listeners {
        let ends = |message: &Value| message["status"] == "completed";
        let messages = listener.take_until(ends).await;
        let events = messages
            .iter()
            .filter(|message| message["type"] == "job_progress");
        all.push(events.map(|event| event["cursor"].clone()).collect());
    }
    assert!(all[0].len() >= 20, "{:?}", all[0]);
    assert!(
        all.iter().all(|order| *order == all[0]),
        "one order for all"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn over_redis_what_one_server_commits_reaches_the_clients_of_another() {
    let (Some(database), Some(redis)) = (postgres::database(), RedisServer::start()) else {
        return;
    };
    let nodes = two_nodes(&database, Some(&redis.url())).await;
    everything_reaches_everybody(&nodes).await;
    for node in &nodes {
        assert!(metric(node, "tidings_bus_messages_sent_total").await > Some(0.0));
        assert!(metric(node, "tidings_hints_taken_total").await > Some(0.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn over_notifications_what_one_server_commits_reaches_the_clients_of_another() {
    let Some(database) = postgres::database() else {
        return;
    };
    let nodes = two_nodes(&database, None).await;
    everything_reaches_everybody(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_one_server_resumes_on_another() {
    let (Some(database), Some(redis)) = (postgres::database(), RedisServer::start()) else {
        return;
    };
    let nodes = two_nodes(&database, Some(&redis.url())).await;
    nodes[0].running_job("a").await;
    let mut first = nodes[0]
        .listen(Transport::EventSource, "/jobs?tick_ms=0")
        .await;
    first.until_ready().await;
    progress(&nodes[1], "a", 10).await;
    let events = messages_until(&mut first, 10).await;
    let cursor = events.last().unwrap()["cursor"]
        .as_str()
        .unwrap()
        .to_owned();
    drop(first);
    progress(&nodes[0], "a", 20).await;
    for transport in TRANSPORTS {
        let mut second = nodes[1].resume(transport, "/jobs?tick_ms=0", &cursor).await;
        let messages = second.until_ready().await;
        let resets = messages
            .iter()
            .filter(|message| message["type"] == "reset")
            .count();
        let events = messages
            .iter()
            .filter(|message| message["type"] == "job_progress");
        let percents: Vec<&Value> = events.map(|event| &event["progress"]).collect();
        assert_eq!((resets, percents), (0, vec![&json!(20.0)]));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_server_whose_bus_is_down_is_ready_and_delivers_everything() {
    let (Some(database), Some(mut redis)) = (postgres::database(), RedisServer::start()) else {
        return;
    };
    let nodes = two_nodes(&database, Some(&redis.url())).await;
    nodes[0].running_job("a").await;
    let mut listener = nodes[1]
        .listen(Transport::WebSocket, "/jobs?tick_ms=0")
        .await;
    listener.until_ready().await;
    redis.kill();
    for node in &nodes {
        until("the loss is shown", async || !is_connected(node).await).await;
        let ready = node.request("GET", "/readyz", "").send().await.unwrap();
        assert_eq!(ready.status(), 200);
    }
    for percent in 1..=3 {
        progress(&nodes[0], "a", percent).await;
        messages_until(&mut listener, percent).await;
    }
    redis.restart();
    for node in &nodes {
        until("the bus works again", async || is_connected(node).await).await;
    }
    progress(&nodes[0], "a", 4).await;
    messages_until(&mut listener, 4).await;
    let reads = metric(&nodes[1], "tidings_hole_reads_total").await;
    assert!(reads > Some(0.0), "the log was read instead: {reads:?}");
}

/// The certificates of the system are those of `SSL_CERT_FILE`, if that is set.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_bus_over_tls_is_used_if_the_system_trusts_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    if !make_certificate(folder.path()) {
        return;
    }
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (file("cert.pem"), file("key.pem"));
    let port = free_port().to_string();
    let options = [
        ["--tls-port", &port],
        ["--tls-cert-file", &certificate],
        ["--tls-key-file", &key],
        ["--tls-ca-cert-file", &certificate],
        ["--tls-auth-clients", "no"],
    ];
    let (Some(database), Some(_redis)) = (
        postgres::database(),
        RedisServer::start_with(options.as_flattened()),
    ) else {
        return;
    };
    let http = reqwest::Client::new();
    for is_trusted in [false, true] {
        let mut serve = command(folder.path());
        serve
            .arg("serve")
            .env("TIDINGS_JWT_SECRET", SECRET)
            .env("TIDINGS_DATABASE_URL", &database.url)
            .env("TIDINGS_BUS_URL", format!("rediss://127.0.0.1:{port}"))
            .env_remove("SSL_CERT_FILE");
        if is_trusted {
            serve.env("SSL_CERT_FILE", &certificate);
        }
        let server = Process::start(&mut serve);
        let metric = async |name: &str| {
            let url = format!("{}/metrics", server.url);
            let text = http.get(url).bearer_auth(admin()).send().await.unwrap();
            let text = text.text().await.unwrap();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.ends_with(" 1")
        };
        if is_trusted {
            until("it is connected", async || {
                metric("tidings_bus_connected{").await
            })
            .await;
        } else {
            until("the server is ready", async || {
                let ready = http.get(format!("{}/readyz", server.url)).send().await;
                ready.is_ok_and(|ready| ready.status() == 200)
            })
            .await;
            assert!(!metric("tidings_bus_connected{").await);
        }
        assert!(!metric("tidings_task_panics_total{task=\"bus connection\"}").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_would_listen_in_another_database_says_so() {
    let (database, other) = match (postgres::database(), postgres::database()) {
        (Some(database), Some(other)) => (database, other),
        _ => return,
    };
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path());
    command
        .env("TIDINGS_DATABASE_URL", &database.url)
        .env("TIDINGS_DIRECT_URL", &other.url)
        .arg("serve")
        .stderr(Stdio::piped());
    let mut node = Process::start(&mut command);
    let log = BufReader::new(node.stderr());
    let complaint = log
        .lines()
        .map(Result::unwrap)
        .find(|line| line.contains("`direct_url` leads to another database"));
    assert!(complaint.is_some(), "the node ended without it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_database_than_the_others_on_its_bus_says_so() {
    let (database, other) = match (postgres::database(), postgres::database()) {
        (Some(database), Some(other)) => (database, other),
        _ => return,
    };
    let Some(redis) = RedisServer::start() else {
        return;
    };
    // It has the tests' secret.
    let first = server_with(json!({"database_url": database.url, "bus_url": redis.url()})).await;
    until("the bus works", async || is_connected(&first).await).await;
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path());
    command
        .env("TIDINGS_DATABASE_URL", &other.url)
        .env("TIDINGS_BUS_URL", redis.url())
        .env("TIDINGS_JWT_SECRET", SECRET)
        .arg("serve")
        .stderr(Stdio::piped());
    let mut node = Process::start(&mut command);
    let log = BufReader::new(node.stderr());
    let complaint = log
        .lines()
        .map(Result::unwrap)
        .find(|line| line.contains("the same bus, but another database"));
    assert!(complaint.is_some(), "the node ended without it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_bus_than_the_others_says_so() {
    let (Some(database), Some(redis), Some(other)) = (
        postgres::database(),
        RedisServer::start(),
        RedisServer::start(),
    ) else {
        return;
    };
    // It has the tests' secret.
    let first = server_with(json!({"database_url": database.url, "bus_url": redis.url()})).await;
    until("the bus works", async || is_connected(&first).await).await;
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path());
    command
        .env("TIDINGS_DATABASE_URL", &database.url)
        .env("TIDINGS_BUS_URL", other.url())
        .env("TIDINGS_JWT_SECRET", SECRET)
        .arg("serve")
        .stderr(Stdio::piped());
    let mut node = Process::start(&mut command);
    let log = BufReader::new(node.stderr());
    let complaint = log.lines().map(Result::unwrap).find(|line| {
        line.contains("a setting that all nodes must share differs") && line.contains("bus_url")
    });
    assert!(complaint.is_some(), "the node ended without it");
}
