//! Statistical process control: bad requests, repeated ones, and restarts.

mod listeners;
mod rules;
mod samples;

use serde_json::{Value, json};

use crate::support::*;

async fn put(server: &Server, path: &str, body: Value) -> Value {
    let path = format!("/api/characteristics/{path}");
    let (status, answer) = answer(server.request("PUT", &path, &worker(1)).json(&body)).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// A characteristic around 0 with a sigma of 1, and these rules.
async fn around_zero(server: &Server, id: &str, rules: Value) {
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
    put(server, id, json!({"limits": limits, "rules": rules})).await;
}

async fn sample(server: &Server, id: &str, value: f64) -> Value {
    let path = format!("/api/characteristics/{id}/samples");
    let event = server.report(&path, json!({"value": value})).await;
    event["payload"].clone()
}

async fn acknowledge(server: &Server, id: &str, token: &str, reason: &str) -> (u16, Value) {
    let path = format!("/api/violations/{id}/ack");
    server.post(&path, token, json!({"reason": reason})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_rejected_with_a_reason() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    sample(&server, "a", 9.0).await;
    let long = "x".repeat(129);
    for (method, path, body, status) in [
        ("PUT", "characteristics/b", json!({"rules": [9]}), 422),
        ("PUT", "characteristics/b", json!({"rules": [1, 1]}), 422),
        (
            "PUT",
            "characteristics/b",
            json!({"subgroup_size": 26}),
            422,
        ),
        ("PUT", "characteristics/a", json!({"subgroup_size": 2}), 422),
        (
            "PUT",
            "characteristics/b",
            json!({"limits": {"method": "xbar_r"}}),
            422,
        ),
        (
            "PUT",
            "characteristics/b",
            json!({"limits": {"method": "guess"}}),
            422,
        ),
        ("PUT", "characteristics/a/limits", json!({"ucl": 1.0}), 422),
        (
            "PUT",
            "characteristics/a/limits",
            json!({"ucl": 1.0, "lcl": 2.0, "center_line": 1.5}),
            422,
        ),
        (
            "PUT",
            "characteristics/a/limits",
            json!({"method": "moving_range", "samples": 1}),
            422,
        ),
        (
            "PUT",
            "characteristics/c/limits",
            json!({"method": "moving_range"}),
            404,
        ),
        ("PUT", &*format!("characteristics/{long}"), json!({}), 422),
        ("POST", "characteristics/a/samples", json!({}), 422),
        (
            "POST",
            "characteristics/a/samples",
            json!({"value": "1"}),
            422,
        ),
        (
            "POST",
            "characteristics/a/samples",
            json!({"value": 1e301}),
            422,
        ),
        (
            "POST",
            "characteristics/a/samples",
            json!({"value": 1.0, "values": [1.0]}),
            422,
        ),
        (
            "POST",
            "characteristics/a/samples",
            json!({"values": [1.0, 2.0]}),
            422,
        ),
        (
            "POST",
            "characteristics/a/samples",
            json!({"value": 1.0, "sample_id": "a\nb"}),
            422,
        ),
        (
            "POST",
            "characteristics/a/samples",
            json!({"value": 1.0, "timestamp": "now"}),
            422,
        ),
        (
            "POST",
            "characteristics/c/samples",
            json!({"value": 1.0}),
            404,
        ),
        (
            "POST",
            "characteristics/a/violations",
            json!({"rule_id": 99}),
            422,
        ),
        ("POST", "violations/a.1/ack", json!({}), 422),
        ("POST", "violations/a.1/ack", json!({"reason": " "}), 422),
        ("POST", "violations/a.2/ack", json!({"reason": "x"}), 404),
        ("POST", "violations/a/ack", json!({"reason": "x"}), 404),
        (
            "POST",
            "violations/nobody.1/ack",
            json!({"reason": "x"}),
            404,
        ),
        ("POST", "characteristics", json!({}), 405),
    ] {
        let request = server.request(method, &format!("/api/{path}"), &worker(1));
        let (got, problem) = answer(request.json(&body)).await;
        assert_eq!(got, status, "{method} {path} {body} {problem}");
        assert!(problem["detail"].is_string());
    }
    let (status, theirs) = acknowledge(&server, "a.1", &worker(2), "Not mine").await;
    let (_, missing) = acknowledge(&server, "zz.1", &worker(1), "x").await;
    assert_eq!(status, 404, "another school's is not found");
    assert_eq!(
        theirs["detail"].as_str().unwrap().replace("a.1", ""),
        missing["detail"].as_str().unwrap().replace("zz.1", "")
    );
    let (status, _) = acknowledge(&server, "a.1", &viewer(1), "x").await;
    assert_eq!(status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_a_restart() {
    let first = server().await;
    around_zero(&first, "a", json!([1, 2])).await;
    for value in [1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0] {
        sample(&first, "a", value).await;
    }
    let before = first.get("/api/characteristics/a", &viewer(1)).await;
    let folder = first.stop().await;
    let server = server_in(folder, json!({})).await;
    assert_eq!(
        server.get("/api/characteristics/a", &viewer(1)).await,
        before
    );
    let ninth = sample(&server, "a", 1.0).await;
    assert_eq!(
        ninth["violations"][0]["rule_id"], 2,
        "the run goes on: {ninth}"
    );
    assert_eq!(ninth["violations"][0]["violation_id"], "a.2");
    let (status, _) = acknowledge(&server, "a.1", &worker(1), "Late").await;
    assert_eq!(status, 200);
}

/// Restarting must not change what is judged: a number read back from the database is the number that was written.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_changes_no_measurement_by_a_digit() {
    let first = server().await;
    let put = json!({"subgroup_size": 2, "rules": [3], "limits": {"center_line": 50.0, "ucl": 500.0, "lcl": -500.0}});
    let request = first.request("PUT", "/api/characteristics/a", &worker(1));
    assert_eq!(answer(request.json(&put)).await.0, 200);
    let values = |mean: f64| json!({"values": [mean - 0.1, mean + 0.1]});
    let rising = [10.1, 20.3, 30.7, 40.9, 98.569_069_463_286_95];
    for mean in rising {
        first
            .report("/api/characteristics/a/samples", values(mean))
            .await;
    }
    let before = first.get("/api/characteristics/a", &viewer(1)).await;
    let folder = first.stop().await;
    let server = server_in(folder, json!({})).await;
    assert_eq!(
        server.get("/api/characteristics/a", &viewer(1)).await,
        before
    );
    let same = server
        .report("/api/characteristics/a/samples", values(rising[4]))
        .await;
    assert_eq!(
        same["payload"]["violations"],
        json!([]),
        "an equal mean rises no further"
    );
    let value = put_value(&server, 98.569_069_463_286_95).await;
    assert_eq!(value.to_string(), "98.56906946328695");
}

/// The value of a sample, as it is published.
async fn put_value(server: &Server, value: f64) -> Value {
    let request = server.request("PUT", "/api/characteristics/single", &worker(1));
    assert_eq!(answer(request.json(&json!({}))).await.0, 200);
    sample(server, "single", value).await["value"].clone()
}

/// The same key is answered the same way, also where the first request changed nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_that_changed_nothing_gets_the_current_state() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    sample(&server, "a", 9.0).await;
    let again = async || {
        let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
        let request = server.request("PUT", "/api/characteristics/a", &worker(1));
        let request = request.header("Idempotency-Key", "k1");
        answer(request.json(&json!({"limits": limits, "rules": [1]}))).await
    };
    let (status, first) = again().await;
    assert_eq!((status, &first["type"]), (200, &json!("control_limits")));
    assert_eq!(again().await, (200, first));
}
