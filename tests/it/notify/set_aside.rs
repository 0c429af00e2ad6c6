//! An event that its receiver refuses holds up its subject, and nothing else; a receiver that is down holds up all.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::receivers::{Receiver, free_port, needs_python};
use super::runner::{SECRET, fail, state, webhook};
use crate::support::*;

const JOBS: &str = r#"[{"kinds": ["jobs"], "ticks": true}]"#;

/// A notifier `ops` of failed jobs that tries often and after this many seconds.
pub(super) fn ops(port: u16, backoff_secs: u64) -> Value {
    let mut ops = webhook("ops", port, json!([{"statuses": ["failed"]}]));
    ops["backoff_secs"] = json!(backoff_secs);
    ops["attempts"] = json!(100);
    json!({"notifiers": [ops]})
}

fn ready() -> bool {
    needs_python("standardwebhooks")
}

async fn receiver() -> (Receiver, u16) {
    Receiver::python("webhook.py", &[SECRET, "200"]).await
}

/// Has the receiver answer these jobs' events in these ways from now on.
pub(super) async fn answers(port: u16, by_job: Value) {
    let request = reqwest::Client::new().put(format!("http://127.0.0.1:{port}/answers"));
    let answer = request.body(by_job.to_string()).send().await.unwrap();
    assert_eq!(answer.status(), 204);
}

/// The next event that the receiver takes: the job and its place in the log.
pub(super) async fn taken(receiver: &mut Receiver) -> (String, u64) {
    loop {
        let seen = receiver.json().await;
        if seen["answer"] == "200" {
            let event = &seen["body"]["data"];
            let job = event["job_id"].as_str().unwrap().to_owned();
            return (job, event["seq"].as_u64().unwrap());
        }
    }
}

async fn taken_jobs(receiver: &mut Receiver, count: usize) -> Vec<String> {
    let mut jobs = Vec::new();
    while jobs.len() < count {
        jobs.push(taken(receiver).await.0);
    }
    jobs
}

/// Lines of a batch that end these jobs badly.
pub(super) fn failing(jobs: &[String]) -> String {
    let job = |id: &String| {
        let create = json!({"op": "jobs.create", "job_id": id, "job_type": "t"});
        let error = json!({"code": "broken", "message": "It broke"});
        let fail = json!({"op": "jobs.fail", "job_id": id, "error": error});
        format!("{create}\n{fail}\n")
    };
    jobs.iter().map(job).collect()
}

pub(super) fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}{number}"))
        .collect()
}

pub(super) async fn list(server: &Server, what: &str) -> Vec<Value> {
    let path = format!("/api/notifiers/ops/{what}?school_id=1");
    let (status, answer) = server.get(&path, &admin()).await;
    assert_eq!(status, 200, "{answer}");
    answer[what.replace('-', "_")].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn an_event_that_is_always_rejected_delays_its_subject_and_not_the_school() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = receiver().await;
    answers(port, json!({"stuck": "400"})).await;
    let server = server_with(ops(port, 600)).await;
    let stuck = fail(&server, 1, "stuck").await;
    let others = names("j", 1_000);
    server.batch(&worker(1), failing(&others)).await;
    fail(&server, 2, "stuck-not").await;

    let got = taken_jobs(&mut receiver, 1_001).await;
    let of_school: Vec<_> = got.iter().filter(|job| job.starts_with('j')).collect();
    assert_eq!(of_school, others.iter().collect::<Vec<_>>(), "in order");
    until("all is counted", async || {
        let notifier = state(&server, 1, "ops").await;
        notifier["delivered"] == 1_000 && notifier["lag"] == 0
    })
    .await;
    let notifier = state(&server, 1, "ops").await;
    assert_eq!(
        (&notifier["set_aside"], &notifier["dead_letters"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(
        (&notifier["failed_attempts"], &notifier["retry"]),
        (&json!(1), &Value::Null)
    );
    assert_eq!(state(&server, 2, "ops").await["set_aside"], 0);
    let waiting = list(&server, "set-aside").await;
    assert_eq!(waiting.len(), 1);
    for (key, value) in [
        ("kind", json!("jobs")),
        ("subject_id", json!("stuck")),
        ("seq", stuck["seq"].clone()),
        ("type", json!("job_progress")),
        ("attempts", json!(1)),
        ("cause", json!("answered 400")),
    ] {
        assert_eq!(waiting[0][key], value, "{key}");
    }
    let page = server.request("GET", "/monitor/schools/1/system", &admin_of(1));
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(page.contains("Subjects set aside"), "{page}");
    let metrics = server.request("GET", "/metrics", &admin());
    let metrics = metrics.send().await.unwrap().text().await.unwrap();
    for figure in [
        "tidings_notifier_delivered_total{notifier=\"ops\"} 1001",
        "tidings_notifier_failed_attempts_total{notifier=\"ops\"} 1",
        "tidings_notifier_dead_letters_total{notifier=\"ops\"} 0",
        "tidings_notifier_set_aside_subjects{notifier=\"ops\"} 1",
    ] {
        assert!(metrics.contains(figure), "{figure}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_was_set_aside_is_delivered_in_order_once_it_is_accepted_and_continues_live()
{
    if !ready() {
        return;
    }
    let (mut receiver, port) = receiver().await;
    answers(port, json!({"s": "409"})).await;
    let mut settings = ops(port, 0);
    settings["notifiers"][0]["rules"] = serde_json::from_str(JOBS).unwrap();
    let server = server_with(settings).await;
    server.running_job("s").await;
    server.running_job("o").await;
    let mut expected: BTreeMap<&str, Vec<u64>> = BTreeMap::from([("s", vec![1]), ("o", vec![2])]);
    let report = async |job| {
        let body = json!({"message": "more"});
        let event = server
            .report(&format!("/api/jobs/{job}/progress"), body)
            .await;
        event["seq"].as_u64().unwrap()
    };
    for step in 0..50 {
        let job = ["s", "o"][step % 2];
        expected.get_mut(job).unwrap().push(report(job).await);
    }
    let mut got: BTreeMap<&str, Vec<u64>> = BTreeMap::from([("s", vec![]), ("o", vec![])]);
    for _ in 0..26 {
        let (job, seq) = taken(&mut receiver).await;
        got.get_mut(&*job).unwrap().push(seq);
    }
    assert_eq!(got["o"], expected["o"], "the other one goes on");
    assert!(got["s"].is_empty());
    until("the cursor has passed what waits", async || {
        let notifier = state(&server, 1, "ops").await;
        (&notifier["lag"], &notifier["set_aside"]) == (&json!(0), &json!(1))
    })
    .await;

    answers(port, json!({})).await;
    for _ in 0..26 {
        let (job, seq) = taken(&mut receiver).await;
        got.get_mut(&*job).unwrap().push(seq);
    }
    until("it is no longer set aside", async || {
        state(&server, 1, "ops").await["set_aside"] == 0
    })
    .await;
    for job in ["s", "o"] {
        expected.get_mut(job).unwrap().push(report(job).await);
        let (job, seq) = taken(&mut receiver).await;
        got.get_mut(&*job).unwrap().push(seq);
    }
    assert_eq!(got, expected, "each once, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_event_is_given_up_in_the_end_and_the_next_of_its_subject_has_its_turn() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = receiver().await;
    answers(port, json!({"s": "400"})).await;
    let mut settings = ops(port, 0);
    settings["notifiers"][0]["attempts"] = json!(3);
    let server = server_with(settings).await;
    let first = fail(&server, 1, "s").await;
    server.report("/api/jobs/s/retry", json!({})).await;
    let error = json!({"attempt": 2, "error": {"code": "again", "message": "Again"}});
    let second = server.report("/api/jobs/s/fail", error).await;
    fail(&server, 1, "o").await;
    assert_eq!(taken(&mut receiver).await.0, "o");
    until("both are given up", async || {
        state(&server, 1, "ops").await["dead_letters"] == 2
    })
    .await;
    let letters = list(&server, "dead-letters").await;
    let shown: Vec<_> = letters
        .iter()
        .map(|letter| (&letter["seq"], &letter["attempts"], &letter["cause"]))
        .collect();
    let cause = json!("answered 400");
    let three = json!(3);
    assert_eq!(
        shown,
        [
            (&second["seq"], &three, &cause),
            (&first["seq"], &three, &cause)
        ]
    );
    assert_eq!(state(&server, 1, "ops").await["set_aside"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_receiver_falls_over_is_set_aside_when_others_are_taken() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = receiver().await;
    answers(port, json!({"a": "500", "b": "404", "c": "401"})).await;
    let server = server_with(ops(port, 0)).await;
    let jobs = ["a", "b", "c", "d", "e"].map(String::from);
    server.batch(&worker(1), failing(&jobs)).await;
    assert_eq!(taken_jobs(&mut receiver, 2).await, ["d", "e"]);
    until("the others wait", async || {
        state(&server, 1, "ops").await["set_aside"] == 3
    })
    .await;
    answers(port, json!({})).await;
    let got: HashSet<_> = taken_jobs(&mut receiver, 3).await.into_iter().collect();
    assert_eq!(got, jobs[..3].iter().cloned().collect());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_receiver_that_is_down_is_no_events_fault_and_sets_nothing_aside() {
    if !ready() {
        return;
    }
    let jobs = names("j", 20);
    for answer in ["503", "502", "429", "302", "silence", "nobody"] {
        let (mut receiver, port) = match answer {
            "nobody" => (None, free_port()),
            answer => {
                let (receiver, port) = Receiver::python("webhook.py", &[SECRET, answer]).await;
                (Some(receiver), port)
            }
        };
        let server = server_with(ops(port, 600)).await;
        server.batch(&worker(1), failing(&jobs)).await;
        until("it was tried", async || {
            state(&server, 1, "ops").await["retry"]["attempts"] == 1
        })
        .await;
        let notifier = state(&server, 1, "ops").await;
        assert_eq!(notifier["set_aside"], 0, "{answer}: {notifier}");
        assert_eq!(
            notifier["failed_attempts"], 1,
            "{answer}: the first event's only"
        );
        if let Some(receiver) = receiver.take() {
            assert_eq!(receiver.stop().await.len(), 1, "{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_receiver_that_fails_on_everything_is_taken_to_be_down() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = receiver().await;
    let jobs = names("j", 40);
    let all: BTreeMap<_, _> = jobs.iter().map(|job| (job, "500")).collect();
    answers(port, json!(all)).await;
    let server = server_with(ops(port, 0)).await;
    server.batch(&worker(1), failing(&jobs)).await;
    until("it is tried again and again", async || {
        state(&server, 1, "ops").await["failed_attempts"]
            .as_u64()
            .unwrap()
            > 100
    })
    .await;
    let notifier = state(&server, 1, "ops").await;
    assert_eq!(
        notifier["set_aside"], 10,
        "not every one in turn: {notifier}"
    );
    answers(port, json!({})).await;
    let got: HashSet<_> = taken_jobs(&mut receiver, 40).await.into_iter().collect();
    assert_eq!(got, jobs.into_iter().collect());
    until("all is well", async || {
        let notifier = state(&server, 1, "ops").await;
        (
            &notifier["lag"],
            &notifier["set_aside"],
            &notifier["dead_letters"],
        ) == (&json!(0), &json!(0), &json!(0))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn when_as_many_are_set_aside_as_may_be_the_school_waits_and_no_other_school_does() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = receiver().await;
    let jobs = names("j", 150);
    let all: BTreeMap<_, _> = jobs.iter().map(|job| (job, "400")).collect();
    answers(port, json!(all)).await;
    let server = server_with(ops(port, 1)).await;
    server.batch(&worker(1), failing(&jobs)).await;
    until("the bound is reached", async || {
        let notifier = state(&server, 1, "ops").await;
        notifier["set_aside"] == 100 && notifier["retry"].is_object()
    })
    .await;
    fail(&server, 1, "behind").await;
    fail(&server, 2, "other").await;
    assert_eq!(taken(&mut receiver).await.0, "other");
    let notifier = state(&server, 1, "ops").await;
    assert_eq!(
        (&notifier["set_aside"], &notifier["delivered"]),
        (&json!(100), &json!(0))
    );
    assert!(notifier["lag"].as_u64().unwrap() > 0, "{notifier}");
    answers(port, json!({})).await;
    let got: HashSet<_> = taken_jobs(&mut receiver, 151).await.into_iter().collect();
    assert!(got.contains("behind") && got.is_superset(&jobs.into_iter().collect()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn what_is_set_aside_and_past_retention_is_a_dead_letter_with_its_cause() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = receiver().await;
    answers(port, json!({"s": "400"})).await;
    let mut settings = ops(port, 1);
    settings["retention_events"] = json!(2);
    let server = server_with(settings).await;
    let stuck = fail(&server, 1, "s").await;
    server.report("/api/jobs/s/retry", json!({})).await;
    for job in ["a", "b"] {
        fail(&server, 1, job).await;
        assert_eq!(taken(&mut receiver).await.0, job);
    }
    until("it has come to the end", async || {
        state(&server, 1, "ops").await["lag"] == 0
    })
    .await;
    let now = chrono::Utc::now();
    while server.tidings.store().sweep(now).await.unwrap() {}
    until("it is given up", async || {
        state(&server, 1, "ops").await["dead_letters"] == 1
    })
    .await;
    let letters = list(&server, "dead-letters").await;
    assert_eq!(letters[0]["seq"], stuck["seq"]);
    assert_eq!(letters[0]["subject_id"], "s");
    let cause = letters[0]["cause"].as_str().unwrap();
    assert!(
        cause.contains("past retention") && cause.contains("answered 400"),
        "{cause}"
    );
    assert_eq!(state(&server, 1, "ops").await["set_aside"], 0);
    // Its events from now on are delivered again.
    answers(port, json!({})).await;
    let error = json!({"attempt": 2, "error": {"code": "again", "message": "Again"}});
    server.report("/api/jobs/s/fail", error).await;
    assert_eq!(taken(&mut receiver).await.0, "s");
}

/// Reports on jobs until the server is gone. Returns the answered events' places.
async fn report_until_killed(url: String, jobs: Vec<String>) -> Vec<(String, u64)> {
    let http = reqwest::Client::new();
    let mut acknowledged = Vec::new();
    for step in 0.. {
        let job = &jobs[step % jobs.len()];
        let request = http
            .post(format!("{url}/api/jobs/{job}/progress"))
            .bearer_auth(worker(1))
            .json(&json!({"message": format!("step {step}")}));
        let Ok(response) = request.send().await else {
            break;
        };
        let Ok(event) = response.json::<Value>().await else {
            break;
        };
        acknowledged.push((job.clone(), event["seq"].as_u64().unwrap()));
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn sigkill_loses_nothing_of_what_is_set_aside_and_keeps_each_subjects_order() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = receiver().await;
    let folder = tempfile::tempdir().unwrap();
    let mut settings = ops(port, 0);
    settings["notifiers"][0]["rules"] = serde_json::from_str(JOBS).unwrap();
    // A pause, so that what is refused is not all that is done.
    settings["notifiers"][0]["backoff_secs"] = json!(1);
    let start = || {
        let mut serve = process::command(folder.path());
        serve.arg("serve");
        serve.env("TIDINGS_NOTIFIERS", settings["notifiers"].to_string());
        process::Process::start(&mut serve)
    };
    let jobs = ["good", "refused", "falls", "fine"]
        .map(String::from)
        .to_vec();
    let rejected = json!({"refused": "400", "falls": "500"});
    let mut acknowledged: Vec<(String, u64)> = Vec::new();
    let mut delivered: Vec<(String, u64)> = Vec::new();
    for round in 0..5 {
        // Now they are refused, now they are not: killed in the middle of either.
        let by_job = if round % 2 == 0 {
            &rejected
        } else {
            &json!({})
        };
        answers(port, by_job.clone()).await;
        let mut server = start();
        if round == 0 {
            for job in &jobs {
                let create = json!({"job_id": job, "job_type": "t", "status": "in_progress"});
                let request = reqwest::Client::new().post(format!("{}/api/jobs", server.url));
                let created = request
                    .bearer_auth(worker(1))
                    .json(&create)
                    .send()
                    .await
                    .unwrap();
                let event: Value = created.json().await.unwrap();
                acknowledged.push((job.clone(), event["seq"].as_u64().unwrap()));
            }
        }
        let publisher = tokio::spawn(report_until_killed(server.url.clone(), jobs.clone()));
        let mut fresh = 0;
        while fresh < 20 + fastrand::usize(..100) {
            let one = taken(&mut receiver).await;
            fresh += usize::from(one.0 == "good");
            delivered.push(one);
        }
        server.kill();
        acknowledged.extend(publisher.await.unwrap());
    }
    answers(port, json!({})).await;
    let _server = start();
    let mut missing: HashSet<(String, u64)> = acknowledged.into_iter().collect();
    delivered.iter().for_each(|one| {
        missing.remove(one);
    });
    while !missing.is_empty() {
        let one = taken(&mut receiver).await;
        missing.remove(&one);
        delivered.push(one);
    }
    for job in &jobs {
        let of_job = delivered.iter().filter(|(subject, _)| subject == job);
        let mut first = 0;
        let mut known = HashSet::new();
        for (_, seq) in of_job {
            // A repetition is allowed, a new one behind a later one is not.
            if known.insert(*seq) {
                assert!(*seq > first, "{job}: {seq} after {first}");
                first = *seq;
            }
        }
        assert!(known.len() > 20, "{job}: {}", known.len());
    }
}
