//! Fencing: a worker that was given up, and does not know it, cannot change the attempt that came after it. Over Postgres, requests
//! go to two nodes in turn, so that a node decides with a cached state that is older than the last change.

use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::nodes::Nodes;
use crate::support::*;

/// A token of school 1 for somebody.
fn token(sub: &str, role: Role) -> String {
    let mut claims = claims(Some(1), role);
    claims.sub = sub.into();
    sign(&claims)
}

/// A report with a token, and what became of it.
async fn send(nodes: &Nodes, token: &str, verb: &str, body: Value) -> (u16, Value) {
    nodes
        .next()
        .post(&format!("/api/jobs/j/{verb}"), token, body)
        .await
}

async fn sent(nodes: &Nodes, token: &str, verb: &str, body: Value) -> Value {
    let (status, answer) = send(nodes, token, verb, body).await;
    assert_eq!(status, 200, "{verb}: {answer}");
    answer
}

/// A job whose first attempt, by the bearer of this token, failed, and which is queued again.
async fn retried(nodes: &Nodes, first: &str, as_worker: Option<&str>) {
    let job = json!({"job_id": "j", "job_type": "t", "status": "queued"});
    nodes.next().report("/api/jobs", job).await;
    let started = sent(nodes, first, "start", json!({"worker": as_worker})).await;
    assert_eq!(started["attempt"], 1, "a start returns the attempt");
    sent(
        nodes,
        first,
        "progress",
        json!({"worker": as_worker, "progress": 10}),
    )
    .await;
    let admin = token("ann", Role::Admin);
    sent(nodes, &admin, "cancel", json!({"force": true})).await;
    sent(nodes, &admin, "retry", json!({})).await;
}

const REPORTS: [(&str, &str); 4] = [
    ("progress", r#"{"progress": 90}"#),
    ("complete", r#"{"result": "old"}"#),
    ("fail", r#"{"error": "old"}"#),
    ("cancel", r#"{"force": true}"#),
];

/// Known by the `sub` of its token, or by what it calls itself where all have one token.
#[tokio::test(flavor = "multi_thread")]
async fn an_unlabelled_report_of_a_worker_of_an_earlier_attempt_has_no_effect() {
    for name in [None, Some("host-1/4711")] {
        let nodes = Nodes::start().await;
        let (old, new) = match name {
            None => (token("old", Role::Worker), token("new", Role::Worker)),
            Some(_) => (worker(1), worker(1)),
        };
        retried(&nodes, &old, name).await;
        let new_name = name.map(|_| "host-2/42");
        for starts in [false, true] {
            if starts {
                let started = sent(&nodes, &new, "start", json!({"worker": new_name})).await;
                assert_eq!(started["attempt"], 2);
            }
            let (_, before) = nodes.next().get("/api/jobs/j", &viewer(1)).await;
            let mut listener = nodes.next().listen(Transport::WebSocket, "/jobs/j").await;
            listener.until_ready().await;
            for (verb, body) in REPORTS {
                let mut body: Value = serde_json::from_str(body).unwrap();
                body["worker"] = json!(name);
                let (status, problem) = send(&nodes, &old, verb, body.clone()).await;
                assert_eq!(
                    (status, &problem["code"]),
                    (409, &json!("stale-attempt")),
                    "{verb}"
                );
                let detail = problem["detail"].as_str().unwrap();
                assert!(
                    detail.contains("`start`") && detail.contains("`attempt`: 2"),
                    "{detail}"
                );
                body["op"] = format!("jobs.{verb}").into();
                body["job_id"] = "j".into();
                let lines = nodes.next().batch(&old, body.to_string()).await;
                assert_eq!(
                    lines[0]["problem"]["code"], "stale-attempt",
                    "{verb} in a batch"
                );
            }
            assert_eq!(nodes.next().get("/api/jobs/j", &viewer(1)).await.1, before);
            // Nobody has heard of them: the next message is the new worker's.
            if starts {
                let body = json!({"worker": new_name, "progress": 20});
                let event = sent(&nodes, &new, "progress", body).await;
                assert_eq!(listener.next().await.unwrap(), event);
            }
        }
        let done = sent(
            &nodes,
            &new,
            "complete",
            json!({"worker": new_name, "result": "new"}),
        )
        .await;
        assert_eq!(done["result"], "new");
        let (_, problem) = send(&nodes, &old, "complete", json!({"worker": name})).await;
        assert_eq!(
            problem["code"], "stale-attempt",
            "it learns that it was not its own end"
        );
    }
}

/// `worker` in the first report, and only the token in those that follow.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_has_said_who_it_is_is_known_by_its_token_too() {
    // Each has a token of its own: the old one's is known.
    let nodes = Nodes::start().await;
    let (old, new) = (token("old", Role::Worker), token("new", Role::Worker));
    retried(&nodes, &old, Some("host-1")).await;
    sent(&nodes, &new, "start", json!({"worker": "host-2"})).await;
    for (verb, body) in REPORTS {
        let body = serde_json::from_str(body).unwrap();
        let (status, problem) = send(&nodes, &old, verb, body).await;
        let rejected = (status, &problem["code"]);
        assert_eq!(rejected, (409, &json!("stale-attempt")), "{verb}");
    }
    sent(&nodes, &new, "complete", json!({"result": "new"})).await;
    // Both have the same token, so that the one that has joined may leave its name out.
    let nodes = Nodes::start().await;
    let same = token("same", Role::Worker);
    retried(&nodes, &same, Some("host-1")).await;
    sent(&nodes, &same, "start", json!({"worker": "host-2"})).await;
    let (status, _) = send(&nodes, &same, "progress", json!({"worker": "host-1"})).await;
    assert_eq!(status, 409, "the name says more than the token");
    sent(&nodes, &same, "progress", json!({"progress": 5})).await;
    sent(&nodes, &same, "complete", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_a_job_again_by_start_or_by_the_number_of_the_attempt() {
    for (verb, joins) in [("start", json!({})), ("progress", json!({"attempt": 2}))] {
        let nodes = Nodes::start().await;
        let same = token("same", Role::Worker);
        retried(&nodes, &same, None).await;
        assert_eq!(send(&nodes, &same, "progress", json!({})).await.0, 409);
        sent(&nodes, &same, verb, joins).await;
        let event = sent(&nodes, &same, "progress", json!({"progress": 5})).await;
        assert_eq!(
            (&event["attempt"], &event["progress"]),
            (&json!(2), &json!(5.0))
        );
        sent(&nodes, &same, "complete", json!({})).await;
    }
}

/// Forcing the end of a job makes nobody a worker of it, however often.
#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_may_force_the_end_of_every_attempt() {
    let nodes = Nodes::start().await;
    let admin = token("ann", Role::Admin);
    retried(&nodes, &token("old", Role::Worker), None).await;
    for attempt in 2..5 {
        let starts = json!({"attempt": attempt});
        sent(&nodes, &token("new", Role::Worker), "start", starts).await;
        let ended = sent(&nodes, &admin, "cancel", json!({"force": true})).await;
        assert_eq!(ended["status"], "cancelled");
        sent(&nodes, &admin, "retry", json!({})).await;
    }
}

/// Also a restart later, and an answer that got lost is given again all the same.
#[tokio::test(flavor = "multi_thread")]
async fn who_reported_is_known_after_a_restart_and_a_repeated_request_gets_its_first_answer() {
    let first = Nodes::start().await;
    let old = token("old", Role::Worker);
    let keyed = async |nodes: &Nodes| {
        let request = nodes.next().request("POST", "/api/jobs/j/progress", &old);
        let request = request
            .header("Idempotency-Key", "k")
            .json(&json!({"progress": 3}));
        answer(request).await
    };
    let job = json!({"job_id": "j", "job_type": "t", "status": "in_progress"});
    first.next().report("/api/jobs", job).await;
    let answered = keyed(&first).await;
    assert_eq!(answered.0, 200);
    sent(&first, &old, "fail", json!({"error": "x"})).await;
    sent(&first, &token("ann", Role::Admin), "retry", json!({})).await;
    let nodes = Nodes::start_in(first.stop().await).await;
    assert_eq!(keyed(&nodes).await, answered);
    let (status, problem) = send(&nodes, &old, "progress", json!({"progress": 4})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("stale-attempt")));
    let (_, job) = nodes.next().get("/api/jobs/j", &viewer(1)).await;
    assert_eq!(
        (&job["attempt"], &job["progress"]),
        (&json!(2), &json!(0.0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_is_shown_with_the_job_and_on_its_page_and_not_to_listeners() {
    let nodes = Nodes::start().await;
    let event = nodes.next().running_job("j").await;
    let worker_of = async || nodes.next().get("/api/jobs/j", &viewer(1)).await.1["worker"].clone();
    assert_eq!(worker_of().await, Value::Null);
    for name in ["a<b", "host-2"] {
        let published = sent(&nodes, &worker(1), "progress", json!({"worker": name})).await;
        let fields = |event: &Value| {
            event
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(
            fields(&published),
            fields(&event),
            "an event has the fields that it had"
        );
        assert_eq!(worker_of().await, *name);
        let page = nodes
            .next()
            .request("GET", "/monitor/schools/1/jobs/j", &viewer(1));
        let page = page.send().await.unwrap().text().await.unwrap();
        let shown = name.replace('<', "&lt;");
        assert!(
            page.contains(&format!("<dt>Worker</dt><dd><bdi>{shown}</bdi></dd>")),
            "{page}"
        );
    }
    for (wrong, detail) in [
        (json!(""), "`worker` must have 1 to 128 bytes, or be absent"),
        (
            json!("x".repeat(129)),
            "`worker` must have at most 128 bytes",
        ),
    ] {
        for (verb, body) in REPORTS {
            let mut body: Value = serde_json::from_str(body).unwrap();
            body["worker"] = wrong.clone();
            let (status, problem) = send(&nodes, &worker(1), verb, body).await;
            assert_eq!(
                (status, &problem["detail"]),
                (422, &json!(detail)),
                "{verb}"
            );
        }
    }
    sent(&nodes, &worker(1), "fail", json!({"error": "x"})).await;
    assert_eq!(worker_of().await, "host-2", "it stays with the attempt");
    sent(&nodes, &worker(1), "retry", json!({})).await;
    assert_eq!(worker_of().await, Value::Null);
}
