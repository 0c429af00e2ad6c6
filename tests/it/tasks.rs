//! The server's own tasks: one that panics starts again, one that keeps failing is seen, and none outlives the server.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tidings::tasks::Task;

use crate::support::*;

async fn ready(server: &Server) -> (u16, String) {
    let ready = server.http.get(format!("{}/readyz", server.url));
    let ready = ready.send().await.unwrap();
    (ready.status().as_u16(), ready.text().await.unwrap())
}

/// How often a task has panicked, as `/metrics` tells it.
pub(crate) async fn panics(server: &Server, task: &str) -> u64 {
    let metrics = server.request("GET", "/metrics", &admin()).send().await;
    let metrics = metrics.unwrap().text().await.unwrap();
    let name = format!("tidings_task_panics_total{{task=\"{task}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    value.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_task_that_keeps_failing_makes_the_server_unready_until_it_runs_again() {
    let server = server().await;
    assert_eq!(ready(&server).await, (200, "ready\n".into()));
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    server
        .tidings
        .tasks()
        .supervise(Task::new("broken"), move || {
            let is_broken = broken.load(Ordering::SeqCst);
            async move {
                assert!(!is_broken, "a fault");
                pending().await
            }
        });
    until("the server is not ready", async || {
        ready(&server).await.0 == 503
    })
    .await;
    let problem: Value = serde_json::from_str(&ready(&server).await.1).unwrap();
    assert_eq!(problem["code"], "unavailable");
    let detail = "the server's task `broken` keeps failing; the log has the details";
    assert_eq!(problem["detail"], detail);
    assert!(panics(&server, "broken").await >= 3);
    assert_eq!(panics(&server, "presence").await, 0);
    // Nobody else is hindered.
    server.running_job("a").await;
    is_broken.store(false, Ordering::SeqCst);
    until("the server is ready again", async || {
        ready(&server).await.0 == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn after_close_no_task_of_the_server_runs() {
    let server = server_with(json!({"dead_peer_timeout_secs": 10})).await;
    let tidings = Arc::clone(&server.tidings);
    for transport in Transport::ALL {
        let mut listener = server.listen(transport, "/jobs?tick_ms=0").await;
        listener.until_ready().await;
    }
    let mut open = server.listen(Transport::WebSocket, "/jobs?tick_ms=0").await;
    open.until_ready().await;
    let running = tidings.tasks().running();
    for name in ["dispatcher", "presence", "retention", "websocket"] {
        assert!(running.contains(&name.into()), "{name}: {running:?}");
    }
    // Its reader never reads what it is sent.
    server.stop().await;
    assert!(tidings.tasks().running().is_empty());
}
