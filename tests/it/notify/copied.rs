//! `tidings copy` of an installation whose log no longer begins at its first event, and whose notifier has failed events.

use std::sync::Arc;

use serde_json::{Value, json};

use super::receivers::{Receiver, needs_python};
use super::runner::{SECRET, fail, state};
use super::set_aside::{answers, failing, list, names, ops, taken};
use crate::support::process::{command, run};
use crate::support::*;

/// The events that the log keeps.
const KEPT: u64 = 100;

/// The messages for a reader of school 1 that comes back with a cursor.
async fn comes_back(server: &Server, cursor: &Value) -> Vec<Value> {
    let path = format!("/events/jobs?wait=0&cursor={}", cursor.as_str().unwrap());
    let request = server.request("GET", &path, &viewer(1));
    let (_, page) = answer(request.header("Accept", "application/json")).await;
    page["messages"].as_array().unwrap().clone()
}

fn seqs(messages: &[Value]) -> Vec<u64> {
    let seqs = messages
        .iter()
        .filter_map(|message| message["seq"].as_u64());
    seqs.collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: starts a server of its own"]
async fn a_copy_keeps_what_retention_has_left_and_what_a_notifier_has_not_delivered() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let Some(url) = store::postgres_of(folder.path()) else {
        return;
    };
    if !needs_python("standardwebhooks") {
        return;
    }
    let (mut receiver, port) = Receiver::python("webhook.py", &[SECRET, "200"]).await;
    answers(port, json!({"stuck": "400", "gone": "410"})).await;
    let mut settings = ops(port, 600);
    settings["retention_events"] = json!(KEPT);
    let file = folder.path().join("tidings.db");
    settings["database_url"] = json!(format!("sqlite:{}", file.display()));
    let server = server_in(Arc::clone(&folder), settings.clone()).await;
    let first = fail(&server, 1, "early").await;
    let jobs = names("j", 100);
    server.batch(&worker(1), failing(&jobs)).await;
    let stuck = fail(&server, 1, "stuck").await;
    fail(&server, 1, "gone").await;
    let newer = fail(&server, 1, "newer").await;
    for expected in ["early"]
        .into_iter()
        .chain(jobs.iter().map(String::as_str))
        .chain(["newer"])
    {
        assert_eq!(taken(&mut receiver).await.0, expected);
    }
    until("all is counted", async || {
        state(&server, 1, "ops").await["delivered"] == 102
    })
    .await;
    server.sweep().await;
    let bounds = server.tidings.store().bounds(1.try_into().unwrap()).await;
    let bounds = bounds.unwrap();
    assert_eq!(bounds.head.seq - bounds.floor.seq, KEPT);
    let before = (
        state(&server, 1, "ops").await,
        list(&server, "set-aside").await,
        list(&server, "dead-letters").await,
        seqs(&comes_back(&server, &stuck["cursor"]).await),
    );
    assert_eq!((before.1.len(), before.2.len()), (1, 1));
    server.stop().await;

    let copied = run(command(folder.path())
        .env_remove("TIDINGS_DATABASE_URL")
        .env("TIDINGS_DATA_DIR", folder.path())
        .args(["copy", "--to", &url]));
    assert!(copied.status.success(), "{copied:?}");
    settings["database_url"] = json!(url);
    let node = server_in(folder, settings).await;
    let school = 1.try_into().unwrap();
    assert_eq!(node.tidings.store().bounds(school).await.unwrap(), bounds);
    let messages = comes_back(&node, &first["cursor"]).await;
    let reset = messages.iter().find(|message| message["type"] == "reset");
    assert_eq!(reset.unwrap()["reason"], "expired");
    let messages = comes_back(&node, &stuck["cursor"]).await;
    assert!(
        messages.iter().all(|message| message["type"] != "reset"),
        "{messages:?}"
    );
    let after = (
        state(&node, 1, "ops").await,
        list(&node, "set-aside").await,
        list(&node, "dead-letters").await,
        seqs(&messages),
    );
    assert_eq!(after, before);

    // Nothing is delivered again, and what was set aside still delays its subject only.
    fail(&node, 1, "later").await;
    let (job, seq) = taken(&mut receiver).await;
    assert_eq!(job, "later");
    assert!(seq > newer["seq"].as_u64().unwrap());
    assert_eq!(list(&node, "set-aside").await, before.1);
}
