//! An existing back end judges its samples itself, and computes their limits.

use serde_json::{Value, json};

use super::characteristic;
use crate::support::listener::{receive, send, socket};
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_comes_with_a_sample_is_passed_on_and_not_judged_again() {
    let server = server().await;
    characteristic(&server, "7").await;
    let mut ws = socket(&server.url, "/ws/samples", &viewer(1)).await;
    send(&mut ws, r#"{"type":"subscribe","characteristic_ids":[7]}"#).await;
    for name in ["subscribed", "limits_update"] {
        assert_eq!(receive(&mut ws).await.unwrap()["type"], name);
    }
    let report = async |body: Value| server.report("/api/characteristics/7/samples", body).await;
    // Far beyond the limits here, and well by the publisher's.
    let event =
        report(json!({"value": 9.0, "sample_id": 501, "zone": "zone_c_upper", "in_control": true}))
            .await;
    assert_eq!(event["payload"]["judged_by"], "publisher");
    let sample = receive(&mut ws).await.unwrap();
    assert_eq!(
        (
            &sample["sample"]["id"],
            &sample["sample"]["zone"],
            &sample["sample"]["in_control"]
        ),
        (&json!(501), &json!("zone_c_upper"), &json!(true))
    );
    assert_eq!(sample["violations"], json!([]));
    // Well by the limits here, and not by the publisher's.
    let violations = json!([
        {"violation_id": 9001, "rule_id": 2, "rule_name": "Nine on one side", "severity": "WARNING"},
        {"violation_id": "v-2", "rule_id": 77, "rule_name": "Trend of ours", "severity": "Info"},
    ]);
    let event = report(json!({"value": 0.1, "sample_id": 502, "violations": violations})).await;
    assert_eq!(
        (
            &event["payload"]["in_control"],
            &event["payload"]["rules"],
            &event["payload"]["zone"]
        ),
        (&json!(false), &json!([2, 77]), &Value::Null)
    );
    let sample = receive(&mut ws).await.unwrap();
    let of = |index: usize| &sample["violations"][index];
    assert_eq!(
        (&of(0)["id"], &of(0)["sample_id"], &of(0)["severity"]),
        (&json!(9001), &json!(502), &json!("WARNING"))
    );
    assert_eq!(
        (&of(1)["id"], &of(1)["severity"]),
        (&json!("v-2"), &json!("INFO"))
    );
    for index in 0..2 {
        let violation = receive(&mut ws).await.unwrap();
        assert_eq!(
            (&violation["type"], &violation["violation"]),
            (&json!("violation"), of(index))
        );
    }
    let (_, found) = server.get("/api/characteristics/7", &viewer(1)).await;
    assert_eq!(found["status"], "out_of_control");
    // A sample without a verdict is judged here again.
    let event = report(json!({"value": 0.2})).await;
    assert_eq!(
        (
            &event["payload"]["judged_by"],
            &event["payload"]["in_control"]
        ),
        (&json!("server"), &json!(true))
    );
    assert_eq!(receive(&mut ws).await.unwrap()["type"], "sample");

    // A violation by itself; acknowledged by the publisher's own id, and that taken back.
    let body = json!({
        "violation_id": 9002, "rule_id": 1, "sample_id": 502, "severity": "critical",
        "timestamp": "2026-01-31T09:30:00",
    });
    let event = server
        .report("/api/characteristics/7/violations", body.clone())
        .await;
    assert_eq!(
        (
            &event["payload"]["violation_id"],
            &event["payload"]["timestamp"]
        ),
        (&json!("9002"), &json!("2026-01-31T09:30:00.000Z"))
    );
    assert_eq!(receive(&mut ws).await.unwrap()["violation"]["id"], 9002);
    let (status, problem) = server
        .post("/api/characteristics/7/violations", &worker(1), body)
        .await;
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("already-exists")),
        "published once"
    );
    server
        .report(
            "/api/violations/9002/ack",
            json!({"reason": "known", "user": "Ada"}),
        )
        .await;
    let ack = receive(&mut ws).await.unwrap();
    assert_eq!(
        (&ack["violation_id"], &ack["ack_user"]),
        (&json!(9002), &json!("Ada"))
    );
    let (_, list) = server
        .get("/api/violations?acknowledged=true", &viewer(1))
        .await;
    assert_eq!(list["violations"][0]["violation_id"], "9002");
    let unack = server
        .report(
            "/api/violations/9002/unack",
            json!({"reason": "too early", "user": "Ada"}),
        )
        .await;
    assert_eq!(
        (
            &unack["payload"]["acknowledged"],
            &unack["payload"]["ack_user"],
            &unack["payload"]["reason"]
        ),
        (&json!(false), &Value::Null, &json!("too early"))
    );
    let ack = receive(&mut ws).await.unwrap();
    assert_eq!(
        (&ack["violation_id"], &ack["ack_user"]),
        (&json!(9002), &Value::Null)
    );
    let (_, list) = server
        .get("/api/violations?acknowledged=false", &viewer(1))
        .await;
    assert!(
        list["violations"]
            .as_array()
            .unwrap()
            .iter()
            .any(|violation| violation["violation_id"] == "9002")
    );
    let body = json!({"reason": "again"});
    let (status, problem) = server
        .post("/api/violations/9002/unack", &worker(1), body)
        .await;
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("illegal-transition"))
    );
    // Another school's is not found, by whatever id.
    for id in ["9002", "v-2", "7.1", "nobody"] {
        let body = json!({"reason": "mine"});
        let (status, problem) = server
            .post(&format!("/api/violations/{id}/ack"), &worker(2), body)
            .await;
        assert_eq!(
            (status, &problem["detail"]),
            (404, &json!(format!("Violation {id} not found")))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_acknowledges_what_it_opens_by_the_publishers_own_id() {
    let server = server().await;
    characteristic(&server, "7").await;
    let lines = [
        r#"{"op": "characteristics.violations", "characteristic_id": 7, "violation_id": 5, "rule_id": 1}"#,
        r#"{"op": "violations.ack", "violation_id": 5, "reason": "known"}"#,
        r#"{"op": "violations.unack", "violation_id": "5", "reason": "not known"}"#,
        r#"{"op": "violations.ack", "violation_id": 6, "reason": "known"}"#,
        r#"{"op": "characteristics.violations", "characteristic_id": 7, "violation_id": 5, "rule_id": 1}"#,
        r#"{"op": "characteristics.violations", "characteristic_id": 7, "violation_id": "7.1", "rule_id": 1}"#,
    ];
    let answers = server.batch(&worker(1), lines.join("\n")).await;
    assert_eq!(field(&answers, "status"), [200, 200, 200, 404, 409, 422]);
    assert_eq!(answers[2]["event"]["payload"]["acknowledged"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_may_be_one_sided_and_say_where_they_come_from_but_not_be_without_width() {
    let server = server().await;
    let set = async |id: &str, body: Value| {
        let path = format!("/api/characteristics/{id}/limits");
        answer(server.request("PUT", &path, &worker(1)).json(&body)).await
    };
    for id in ["a", "b", "c"] {
        server
            .put(
                &format!("/api/characteristics/{id}"),
                json!({"rules": [1, 2, 3, 4, 5, 6, 7, 8]}),
            )
            .await;
    }
    let body = json!({"center_line": 5.0, "ucl": 8.0, "lcl": null, "method": "X-bar/S", "sample_count": 25});
    let (status, response) = set("a", body).await;
    let payload = &response["payload"];
    assert_eq!(
        (
            status,
            &payload["lcl"],
            &payload["ucl"],
            &payload["method"],
            &payload["sample_count"]
        ),
        (
            200,
            &Value::Null,
            &json!(8.0),
            &json!("X-bar/S"),
            &json!(25)
        )
    );
    // On the open side nothing is out of control, however far away, but for a run.
    for value in [-100.0, 4.0, -1e9, 5.5, -3.0, 7.9] {
        let event = server
            .report("/api/characteristics/a/samples", json!({"value": value}))
            .await;
        assert_eq!(event["payload"]["in_control"], true, "{event}");
    }
    let event = server
        .report("/api/characteristics/a/samples", json!({"value": 8.1}))
        .await;
    assert_eq!(
        (&event["payload"]["in_control"], &event["payload"]["zone"]),
        (&json!(false), &json!("beyond_ucl"))
    );
    // It is the same after a restart, and for those who come now.
    let folder = server.stop().await;
    let server = server_in(folder, json!({})).await;
    let (_, found) = server.get("/api/characteristics/a", &viewer(1)).await;
    assert_eq!(
        (&found["payload"]["lcl"], &found["payload"]["method"]),
        (&Value::Null, &json!("X-bar/S"))
    );
    let page = server.request("GET", "/monitor/schools/1/characteristics/a", &viewer(1));
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(
        page.contains("UCL") && !page.contains("LCL") && !page.contains("inf"),
        "{page}"
    );

    for (id, wrong) in [
        ("b", json!({"center_line": 1.0, "ucl": 1.0, "lcl": 1.0})),
        ("b", json!({"center_line": 1.0, "ucl": 1.0})),
        ("b", json!({"center_line": 1.0, "lcl": 1.0, "ucl": null})),
        (
            "b",
            json!({"center_line": 0.3, "ucl": 0.30000000000000004, "lcl": 0.3}),
        ),
        ("b", json!({"center_line": 1.0})),
        ("b", json!({"ucl": 1.0})),
        ("b", json!({"method": "moving_range", "sample_count": 3})),
        ("b", json!({"method": "of our own"})),
    ] {
        let path = format!("/api/characteristics/{id}/limits");
        let request = server.request("PUT", &path, &worker(1)).json(&wrong);
        assert_eq!(answer(request).await.0, 422, "{wrong}");
    }
    // Nor when they are estimated: constant values show no variation, and learning goes on.
    let request = server.request("PUT", "/api/characteristics/c/limits", &worker(1));
    answer(request.json(&json!({"method": "moving_range", "samples": 3}))).await;
    for _ in 0..5 {
        server
            .report("/api/characteristics/c/samples", json!({"value": 0.1}))
            .await;
    }
    let (_, found) = server.get("/api/characteristics/c", &viewer(1)).await;
    assert_eq!(
        (
            &found["payload"]["ucl"],
            &found["payload"]["baseline"]["samples"]
        ),
        (&Value::Null, &json!(3))
    );
    server
        .report("/api/characteristics/c/samples", json!({"value": 0.2}))
        .await;
    let (_, found) = server.get("/api/characteristics/c", &viewer(1)).await;
    assert_eq!(
        (&found["payload"]["method"], &found["payload"]["baseline"]),
        (&json!("moving_range"), &Value::Null)
    );
}

/// A verdict is that of one sample.
#[tokio::test(flavor = "multi_thread")]
async fn a_publishers_verdict_does_not_outlive_its_sample() {
    let server = server().await;
    server.put("/api/characteristics/a", json!({})).await;
    let report = async |body: Value| server.report("/api/characteristics/a/samples", body).await;
    let event = report(json!({"value": 1, "in_control": false})).await;
    assert_eq!(event["payload"]["in_control"], false);
    let event = report(json!({"value": 1})).await;
    assert_eq!(
        (
            &event["payload"]["judged_by"],
            &event["payload"]["in_control"]
        ),
        (&Value::Null, &json!(true))
    );
    report(json!({"value": 1, "in_control": false})).await;
    characteristic(&server, "a").await;
    let (_, found) = server.get("/api/characteristics/a", &viewer(1)).await;
    assert_eq!(
        found["status"], "in_control",
        "by these limits nothing has been judged"
    );
}
