//! `Retry-After`: nothing is tried before the time that the receiver asks for.

use serde_json::{Value, json};

use super::receivers::{Receiver, needs_python};
use super::runner::{SECRET, fail, webhook};
use super::set_aside::answers;
use crate::support::*;

fn ops(port: u16) -> Value {
    let mut ops = webhook("ops", port, json!([{"statuses": ["failed"]}]));
    ops["attempts"] = json!(100);
    json!({"notifiers": [ops]})
}

/// The next attempt that the receiver sees: the job, the answer, and when.
async fn seen(receiver: &mut Receiver) -> (String, String, f64) {
    let seen = receiver.json().await;
    let job = seen["body"]["data"]["job_id"].as_str().unwrap();
    let answer = seen["answer"].as_str().unwrap();
    (job.into(), answer.into(), seen["at"].as_f64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn nothing_of_any_school_is_tried_before_the_time_that_the_receiver_asks_for() {
    if !needs_python("standardwebhooks") {
        return;
    }
    // A date has whole seconds: in three seconds is after at least two.
    for (answer, least) in [("429/2", 2.0), ("503/in3", 2.0), ("500/2", 2.0)] {
        let (mut receiver, port) =
            Receiver::python("webhook.py", &[SECRET, &format!("{answer},200")]).await;
        let server = server_with(ops(port)).await;
        fail(&server, 1, "a").await;
        let (_, first, asked_at) = seen(&mut receiver).await;
        assert_eq!(first, answer);
        fail(&server, 2, "b").await;
        for _ in 0..2 {
            let (_, answer, at) = seen(&mut receiver).await;
            assert_eq!(answer, "200");
            assert!(at - asked_at >= least, "{answer}: after {}", at - asked_at);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_restart_does_not_forget_the_time_that_the_receiver_asked_for() {
    if !needs_python("standardwebhooks") {
        return;
    }
    let (mut receiver, port) = Receiver::python("webhook.py", &[SECRET, "429/3,200"]).await;
    let server = server_with(ops(port)).await;
    fail(&server, 1, "a").await;
    let (_, _, asked_at) = seen(&mut receiver).await;
    until("it is written down", async || {
        super::runner::state(&server, 1, "ops").await["failed_attempts"] == 1
    })
    .await;
    let _server = server_in(server.stop().await, ops(port)).await;
    let (job, answer, at) = seen(&mut receiver).await;
    assert_eq!((&*job, &*answer), ("a", "200"));
    assert!(at - asked_at >= 3.0, "after {}", at - asked_at);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_rejection_with_a_time_holds_up_its_subject_only() {
    if !needs_python("standardwebhooks") {
        return;
    }
    let (mut receiver, port) = Receiver::python("webhook.py", &[SECRET, "200"]).await;
    answers(port, json!({"a": "409/2"})).await;
    let server = server_with(ops(port)).await;
    fail(&server, 1, "a").await;
    let (_, _, asked_at) = seen(&mut receiver).await;
    answers(port, json!({})).await;
    fail(&server, 1, "b").await;
    let (job, _, at) = seen(&mut receiver).await;
    assert_eq!(job, "b");
    assert!(at - asked_at < 2.0, "it need not wait");
    let (job, answer, at) = seen(&mut receiver).await;
    assert_eq!((&*job, &*answer), ("a", "200"));
    assert!(at - asked_at >= 2.0, "after {}", at - asked_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_cannot_be_read_is_ignored() {
    if !needs_python("standardwebhooks") {
        return;
    }
    let (mut receiver, port) =
        Receiver::python("webhook.py", &[SECRET, "503/soon,429/-7,503/1.5,200"]).await;
    let server = server_with(ops(port)).await;
    fail(&server, 1, "a").await;
    for expected in ["503/soon", "429/-7", "503/1.5", "200"] {
        assert_eq!(seen(&mut receiver).await.1, expected);
    }
}
