//! Back ends that exist report without registering, naming or judging anything as a new one would.

use serde_json::{Value, json};

use crate::support::listener::{receive, send, socket};
use crate::support::*;

/// Registers a characteristic with limits at three either side of zero.
async fn characteristic(server: &Server, id: &str) {
    let limits = json!({"limits": {"center_line": 0.0, "ucl": 3.0, "lcl": -3.0}});
    server
        .put(&format!("/api/characteristics/{id}"), limits)
        .await;
}

fn at(message: &Value) -> chrono::DateTime<chrono::Utc> {
    message["last_seen"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn last_seen_is_the_time_of_a_devices_own_last_report() {
    let server = server().await;
    let status = async |device: &str, body: Value| {
        server
            .report(&format!("/api/devices/{device}/status"), body)
            .await
    };
    for device in ["never", "beats", "checked"] {
        server
            .put(&format!("/api/devices/{device}"), json!({}))
            .await;
    }
    for reported in ["unknown", "offline"] {
        let told = status("never", json!({"status": reported})).await;
        assert_eq!(
            told["last_seen"],
            Value::Null,
            "{reported}: nobody has heard of it"
        );
    }
    let (_, never) = server.get("/api/devices/never", &viewer(1)).await;
    assert_eq!(
        (&never["status"], &never["last_seen"]),
        (&json!("offline"), &Value::Null)
    );

    // Also the beats that have not been written down yet.
    let mut beat = Value::Null;
    for _ in 0..5 {
        beat = server
            .report("/api/devices/beats/heartbeat", json!({}))
            .await;
    }
    for reported in ["unknown", "offline"] {
        let told = status("beats", json!({"status": reported})).await;
        assert_eq!(
            at(&told),
            at(&beat),
            "{reported}: a third party's word keeps it"
        );
    }
    let lines = r#"{"op": "devices.status", "device_id": "beats", "status": "unknown"}"#;
    let told = &server.batch(&worker(1), lines).await[0]["event"];
    assert_eq!(at(told), at(&beat), "in a batch, too");

    // A health checker may know when a device was heard of; its times may lack a zone.
    let told = status(
        "checked",
        json!({"status": "online", "last_seen": "2026-01-31T09:30:00"}),
    )
    .await;
    assert_eq!(told["last_seen"], "2026-01-31T09:30:00.000Z");
    let body = json!({"status": "offline", "last_seen": "2026-01-31T10:31:00.25+01:00"});
    let told = status("checked", body).await;
    assert_eq!(told["last_seen"], "2026-01-31T09:31:00.250Z");
    // It does not go back.
    let told = status(
        "checked",
        json!({"status": "online", "last_seen": "2020-01-01T00:00:00Z"}),
    )
    .await;
    assert_eq!(told["last_seen"], "2026-01-31T09:31:00.250Z");
    let told = status("checked", json!({"status": "offline"})).await;
    assert_eq!(told["last_seen"], "2026-01-31T09:31:00.250Z");
    let ahead = (chrono::Utc::now() + chrono::TimeDelta::seconds(60)).to_rfc3339();
    let body = json!({"status": "online", "last_seen": ahead});
    let (refused, problem) = server
        .post("/api/devices/checked/status", &worker(1), body)
        .await;
    assert_eq!(refused, 422);
    assert_eq!(problem["detail"], "`last_seen` is not in the future");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_status_report_is_enough_for_a_device_that_nobody_registered() {
    let server = server().await;
    let body = json!({"status": "online", "lease_secs": 600});
    let told = server.report("/api/devices/21/status", body).await;
    assert_eq!(
        (&told["status"], &told["lease_secs"]),
        (&json!("online"), &json!(600))
    );
    let (status, _) = server
        .post(
            "/api/devices/22/status",
            &worker(1),
            json!({"status": "online"}),
        )
        .await;
    assert_eq!(status, 404, "a mistyped id makes no device");
}

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
    let told =
        report(json!({"value": 9.0, "sample_id": 501, "zone": "zone_c_upper", "in_control": true}))
            .await;
    assert_eq!(told["payload"]["judged_by"], "publisher");
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
    let told = report(json!({"value": 0.1, "sample_id": 502, "violations": violations})).await;
    assert_eq!(
        (
            &told["payload"]["in_control"],
            &told["payload"]["rules"],
            &told["payload"]["zone"]
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
    let told = report(json!({"value": 0.2})).await;
    assert_eq!(
        (
            &told["payload"]["judged_by"],
            &told["payload"]["in_control"]
        ),
        (&json!("server"), &json!(true))
    );
    assert_eq!(receive(&mut ws).await.unwrap()["type"], "sample");

    // A violation by itself; acknowledged by the publisher's own id, and that taken back.
    let body = json!({
        "violation_id": 9002, "rule_id": 1, "sample_id": 502, "severity": "critical",
        "timestamp": "2026-01-31T09:30:00",
    });
    let told = server
        .report("/api/characteristics/7/violations", body.clone())
        .await;
    assert_eq!(
        (
            &told["payload"]["violation_id"],
            &told["payload"]["timestamp"]
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
        "told once"
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
            .any(|own| own["violation_id"] == "9002")
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
    let (status, told) = set("a", body).await;
    let payload = &told["payload"];
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
        let told = server
            .report("/api/characteristics/a/samples", json!({"value": value}))
            .await;
        assert_eq!(told["payload"]["in_control"], true, "{told}");
    }
    let told = server
        .report("/api/characteristics/a/samples", json!({"value": 8.1}))
        .await;
    assert_eq!(
        (&told["payload"]["in_control"], &told["payload"]["zone"]),
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

#[tokio::test(flavor = "multi_thread")]
async fn one_report_is_enough_for_a_job_whose_type_it_names() {
    let server = server().await;
    for (verb, id) in [("start", "a"), ("progress", "b")] {
        let body = json!({"job_type": "document", "message": "Reading", "metadata": {"file": id}});
        let told = server.report(&format!("/api/jobs/{id}/{verb}"), body).await;
        assert_eq!(
            (
                &told["status"],
                &told["job_type"],
                &told["message"],
                &told["metadata"]["file"]
            ),
            (
                &json!("in_progress"),
                &json!("document"),
                &json!("Reading"),
                &json!(id)
            )
        );
        assert_eq!(told["seq"], if id == "a" { 1 } else { 2 }, "in one event");
    }
    let told = server
        .report(
            "/api/jobs/b/progress",
            json!({"job_type": "document", "progress": 30}),
        )
        .await;
    assert_eq!(told["progress"], 30.0);
    let (status, problem) = server
        .post(
            "/api/jobs/b/progress",
            &worker(1),
            json!({"job_type": "mail", "progress": 40}),
        )
        .await;
    assert_eq!(status, 422, "{problem}");
    for verb in ["start", "progress", "complete", "fail"] {
        let body = json!({"error": "x"});
        let body = if verb == "fail" { body } else { json!({}) };
        let (status, _) = server
            .post(&format!("/api/jobs/typo/{verb}"), &worker(1), body)
            .await;
        assert_eq!(status, 404, "{verb} without a type makes no job");
    }
    let lines = r#"{"op": "jobs.progress", "job_id": "c", "job_type": "mail", "progress": 5}"#;
    assert_eq!(
        server.batch(&worker(1), lines).await[0]["event"]["progress"],
        5.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_never_started_is_completed_by_way_of_in_progress() {
    let server = server().await;
    for (id, status) in [("a", "pending"), ("b", "queued")] {
        let create = json!({"job_id": id, "job_type": "t", "status": status});
        let created = server.report("/api/jobs", create).await;
        let cursor = created["cursor"].as_str().unwrap().to_owned();
        let body = json!({"result": 1, "metadata": {"pages": 3}});
        let told = server
            .report(&format!("/api/jobs/{id}/complete"), body)
            .await;
        assert_eq!(
            (&told["status"], &told["metadata"]["pages"]),
            (&json!("completed"), &json!(3))
        );
        let scope = format!("/jobs/{id}");
        for transport in Transport::ALL {
            let told = server
                .resume(transport, &scope, &cursor)
                .await
                .until_ready()
                .await;
            let statuses: Vec<_> = told
                .iter()
                .filter_map(|own| own["status"].as_str())
                .collect();
            assert_eq!(statuses, ["in_progress", "completed"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_may_be_a_text_or_come_without_a_code() {
    let server = server().await;
    for (id, error, code) in [
        ("a", json!("It broke"), "error"),
        ("b", json!({"message": "It broke"}), "error"),
        (
            "c",
            json!({"code": "broken", "message": "It broke"}),
            "broken",
        ),
    ] {
        server.running_job(id).await;
        let body = json!({"error": error, "metadata": {"tried": 2}});
        let told = server.report(&format!("/api/jobs/{id}/fail"), body).await;
        assert_eq!(told["error"], json!({"code": code, "message": "It broke"}));
        assert_eq!(
            (&told["message"], &told["metadata"]["tried"]),
            (&json!("It broke"), &json!(2))
        );
    }
    for (id, body, code, error) in [
        (
            "s",
            json!({"error": "Sensor is dirty"}),
            "error",
            "Sensor is dirty",
        ),
        ("t", json!({}), "error", "Enrollment failed"),
        (
            "u",
            json!({"code": "timeout"}),
            "timeout",
            "The device did not answer in time",
        ),
    ] {
        server
            .report("/api/enrollments", json!({"session_id": id}))
            .await;
        let told = server
            .report(&format!("/api/enrollments/{id}/error"), body)
            .await;
        assert_eq!(
            (&told["code"], &told["error"]),
            (&json!(code), &json!(error))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_are_counted_by_themselves_where_nobody_counts_them() {
    let server = server().await;
    let told = server
        .report(
            "/api/enrollments",
            json!({"session_id": "s", "total_attempts": 3}),
        )
        .await;
    assert_eq!(told["device_id"], Value::Null, "of no device in particular");
    server
        .report("/api/enrollments", json!({"session_id": "t"}))
        .await;
    let mut seen = Vec::new();
    for status in [
        "ready",
        "placing",
        "capturing",
        "processing",
        "placing",
        "capturing",
        "processing",
        "ready",
        "placing",
        "processing",
        "placing",
    ] {
        let body = json!({"status": status});
        let told = server.report("/api/enrollments/s/progress", body).await;
        seen.push((
            told["attempt"].as_u64().unwrap(),
            told["progress"].as_u64().unwrap(),
        ));
    }
    assert_eq!(
        seen,
        [
            (1, 0),
            (1, 0),
            (1, 0),
            (1, 0),
            (2, 33),
            (2, 33),
            (2, 33),
            (3, 66),
            (3, 66),
            (3, 66),
            (3, 66)
        ]
    );
    for (status, attempt) in [
        ("capturing", Value::Null),
        ("placing", json!(2)),
        ("processing", json!(2)),
    ] {
        let told = server
            .report("/api/enrollments/t/progress", json!({"status": status}))
            .await;
        assert_eq!(told["attempt"], attempt);
    }
}

/// People have files with spaces, and files in any script.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_may_be_any_text_and_is_percent_encoded_in_addresses() {
    let server = server().await;
    for (id, encoded) in [
        ("Zeugnis 3.pdf", "Zeugnis%203.pdf"),
        ("a/b", "a%2Fb"),
        ("100%.pdf", "100%25.pdf"),
        ("作业.docx", "%E4%BD%9C%E4%B8%9A.docx"),
        ("?x=1&y#z", "%3Fx%3D1%26y%23z"),
        ("+ +", "%2B%20%2B"),
        ("\"<b>'", "%22%3Cb%3E%27"),
    ] {
        let create = json!({"job_id": id, "job_type": "upload"});
        let request = server
            .request("POST", "/api/jobs", &worker(1))
            .json(&create);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 201, "{id}");
        assert_eq!(
            response.headers()["location"],
            format!("/api/jobs/{encoded}")
        );
        server
            .report(&format!("/api/jobs/{encoded}/start"), json!({}))
            .await;
        let (_, found) = server
            .get(&format!("/api/jobs/{encoded}"), &viewer(1))
            .await;
        assert_eq!(found["job_id"], id);
        for transport in Transport::ALL {
            let twice = encoded.replace('%', "%25");
            for scope in [format!("/jobs/{encoded}"), format!("?channel=jobs/{twice}")] {
                let told = server.listen(transport, &scope).await.until_ready().await;
                assert_eq!(
                    told[0]["channels"],
                    json!([format!("jobs/{encoded}")]),
                    "{transport:?}"
                );
                assert_eq!(told[1]["job_id"], id, "{transport:?} {scope}");
            }
        }
        let mut ws = socket(&server.url, &format!("/progress/ws/{encoded}"), &viewer(1)).await;
        assert_eq!(receive(&mut ws).await.unwrap()["job_id"], id);
        let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
        for subscribe in [
            json!({"job_id": id}),
            json!({"channels": [format!("jobs/{encoded}")]}),
        ] {
            let mut subscribe = subscribe;
            subscribe["type"] = json!("subscribe");
            send(&mut ws, &subscribe.to_string()).await;
            loop {
                let told = receive(&mut ws).await.unwrap();
                assert_ne!(told["type"], "error", "{told}");
                if told["type"] == "ready" {
                    break;
                }
            }
        }
        // A ticket's address opens what it was made for.
        for channels in [
            json!([format!("jobs/{encoded}")]),
            json!([format!("jobs/{encoded}"), "devices"]),
        ] {
            let (_, ticket) = server
                .post("/api/tickets", &viewer(1), json!({"channels": channels}))
                .await;
            let url = format!("{}{}&wait=0", server.url, ticket["url"].as_str().unwrap());
            let request = server.http.get(url).header("Accept", "application/json");
            let (status, told) = answer(request).await;
            assert_eq!((status, &told["messages"][1]["job_id"]), (200, &json!(id)));
        }
        // The page links to it.
        let page = server.request("GET", "/monitor/schools/1/jobs", &viewer(1));
        let page = page.send().await.unwrap().text().await.unwrap();
        let page = page.replace("&#x2F;", "/");
        let link = page
            .split("href=\"")
            .filter_map(|rest| rest.split('"').next())
            .find(|link| {
                link.to_lowercase().ends_with(&format!(
                    "/jobs/{}",
                    encoded.to_lowercase().replace('.', "%2e")
                ))
            });
        let link = link.unwrap_or_else(|| panic!("no link to {id}: {page}"));
        let path = link.strip_prefix(&server.url).unwrap_or(link);
        let page = server
            .request("GET", path, &viewer(1))
            .send()
            .await
            .unwrap();
        assert_eq!(page.status(), 200, "{link}");
    }
    let body = json!({"job_id": "a\u{7}b", "job_type": "upload"});
    assert_eq!(server.post("/api/jobs", &worker(1), body).await.0, 422);
}

/// A hook that comes back must not take the end of a session that it saw for a second one.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_had_ended_before_a_connection_is_not_told_again() {
    let server = server().await;
    for id in ["s", "t"] {
        server
            .report("/api/enrollments", json!({"session_id": id}))
            .await;
    }
    let path = "/ws/enrollment?session_id=s";
    let mut ws = socket(&server.url, path, &viewer(1)).await;
    for name in ["connected", "enrollment_progress"] {
        assert_eq!(receive(&mut ws).await.unwrap()["type"], name);
    }
    server
        .report("/api/enrollments/s/complete", json!({}))
        .await;
    assert_eq!(
        receive(&mut ws).await.unwrap()["type"],
        "enrollment_complete"
    );
    drop(ws);
    for path in [path, "/ws/enrollment"] {
        let mut ws = socket(&server.url, path, &viewer(1)).await;
        let connected = receive(&mut ws).await.unwrap();
        assert_eq!(connected["type"], "connected");
        send(&mut ws, "ping").await;
        loop {
            let told = receive(&mut ws).await.unwrap();
            if told["type"] == "pong" {
                break;
            }
            assert_eq!(told["session_id"], "t", "{path}: {told}");
        }
    }
    // A page that brings its cursor is told what it missed.
    let url = format!("{path}&cursor=");
    let (_, before) = server.get("/api/enrollments/t", &viewer(1)).await;
    let mut ws = socket(
        &server.url,
        &format!("{url}{}", before["cursor"].as_str().unwrap()),
        &viewer(1),
    )
    .await;
    assert_eq!(receive(&mut ws).await.unwrap()["type"], "connected");
    assert_eq!(
        receive(&mut ws).await.unwrap()["type"],
        "enrollment_complete"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_have_any_name() {
    let server = server().await;
    for id in ["a\"b.pdf", "c\\d.pdf", "e\u{2028}f"] {
        let create = json!({"job_id": id, "job_type": "upload", "status": "in_progress"});
        server.report("/api/jobs", create).await;
    }
    let mut ws = socket(&server.url, "/ws/upload-progress", &viewer(1)).await;
    let first = receive(&mut ws).await.unwrap();
    assert_eq!(
        (&first["type"], first["data"].as_object().unwrap().len()),
        (&json!("initial_state"), 3)
    );
    for id in ["a\"b.pdf", "c\\d.pdf", "e\u{2028}f"] {
        let told = receive(&mut ws).await.unwrap();
        assert_eq!(
            (&told["type"], &told["file_id"]),
            (&json!("progress_update"), &json!(id))
        );
    }
    let page = server.request("GET", "/monitor/schools/1/jobs", &viewer(1));
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(
        page.contains("a&quot;b.pdf</bdi></a>") && !page.contains("&amp;quot;"),
        "{page}"
    );
}

/// A verdict is that of one sample.
#[tokio::test(flavor = "multi_thread")]
async fn a_publishers_verdict_does_not_outlive_its_sample() {
    let server = server().await;
    server.put("/api/characteristics/a", json!({})).await;
    let report = async |body: Value| server.report("/api/characteristics/a/samples", body).await;
    let told = report(json!({"value": 1, "in_control": false})).await;
    assert_eq!(told["payload"]["in_control"], false);
    let told = report(json!({"value": 1})).await;
    assert_eq!(
        (
            &told["payload"]["judged_by"],
            &told["payload"]["in_control"]
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

/// A job that was never started does not count in the durations of its type.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_never_started_foretells_no_duration() {
    let server = server().await;
    for id in ["a", "b", "c"] {
        let create = json!({"job_id": id, "job_type": "t"});
        server.report("/api/jobs", create).await;
        server
            .report(&format!("/api/jobs/{id}/complete"), json!({}))
            .await;
    }
    let started = server
        .report("/api/jobs/d/start", json!({"job_type": "t"}))
        .await;
    assert_eq!(
        (&started["eta_at"], &started["eta_source"]),
        (&Value::Null, &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn last_seen_takes_in_beats_that_came_just_before_and_does_not_go_back() {
    let server = server().await;
    server.put("/api/devices/21", json!({})).await;
    let lines = [
        r#"{"op": "devices.heartbeat", "device_id": 21}"#,
        r#"{"op": "devices.status", "device_id": 21, "status": "offline"}"#,
        r#"{"op": "devices.status", "device_id": 21, "status": "unknown", "last_seen": "2020-01-01T00:00:00"}"#,
        r#"{"op": "devices.status", "device_id": 21, "status": "online", "last_seen": "2020-01-01T00:00:00"}"#,
    ];
    let answers = server.batch(&worker(1), lines.join("\n")).await;
    let beat = at(&answers[0]["device"]);
    for answer in &answers[1..] {
        assert_eq!(at(&answer["event"]), beat, "{answer}");
    }
    // Nor does somebody who does not know make a device flap.
    for _ in 0..4 {
        for status in ["unknown", "offline"] {
            let body = json!({"status": status});
            let told = server.report("/api/devices/21/status", body).await;
            assert_eq!(told["flapping"], false);
        }
    }
    // What a device is can be known without its having been heard of.
    server.put("/api/devices/22", json!({})).await;
    server
        .report("/api/devices/22/info", json!({"info": {"model": "X"}}))
        .await;
    let (_, found) = server.get("/api/devices/22", &viewer(1)).await;
    assert_eq!(found["last_seen"], Value::Null);
}

/// Also a characteristic's, though the ids of its samples and violations are made of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_any_kind_may_have_128_bytes() {
    let server = server().await;
    let id = "x".repeat(128);
    server.put(&format!("/api/devices/{id}"), json!({})).await;
    server
        .report("/api/jobs", json!({"job_id": id, "job_type": "t"}))
        .await;
    server
        .report("/api/enrollments", json!({"session_id": id}))
        .await;
    characteristic(&server, &id).await;
    let path = format!("/api/characteristics/{id}");
    let told = server
        .report(&format!("{path}/samples"), json!({"value": 9}))
        .await;
    let sample_id = told["payload"]["sample_id"].clone();
    assert_eq!(sample_id, format!("{id}.1"));
    let body = json!({"rule_id": 2, "sample_id": sample_id});
    let told = server.report(&format!("{path}/violations"), body).await;
    let violation_id = told["payload"]["violation_id"].as_str().unwrap();
    let ack = json!({"reason": "known"});
    server
        .report(&format!("/api/violations/{violation_id}/ack"), ack)
        .await;
    let (status, _) = answer(
        server
            .request("PUT", &format!("{path}x"), &worker(1))
            .json(&json!({})),
    )
    .await;
    assert_eq!(status, 422);
}
