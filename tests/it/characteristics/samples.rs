//! Control limits that are computed from samples, and gaps among the samples.

use serde_json::{Value, json};

use super::{around_zero, put, sample};
use crate::support::*;

/// The individuals chart of the NIST/SEMATECH e-Handbook of Statistical Methods, 6.3.2.2.
#[tokio::test(flavor = "multi_thread")]
async fn limits_are_computed_from_the_first_samples_by_moving_range() {
    let server = server().await;
    let ask = json!({"limits": {"method": "moving_range", "samples": 10}, "rules": [1, 2]});
    let registered = put(&server, "flow", ask.clone()).await["payload"].clone();
    assert_eq!(registered["ucl"], Value::Null);
    assert_eq!(
        registered["baseline"],
        json!({"method": "moving_range", "samples": 10})
    );
    let mut listener = server
        .listen(Transport::WebSocket, "/characteristics")
        .await;
    listener.until_ready().await;
    let data = [49.6, 47.6, 49.9, 51.3, 47.8, 51.2, 52.6, 52.4, 53.6, 52.1];
    for value in data {
        let payload = sample(&server, "flow", value).await;
        assert_eq!(
            payload["zone"],
            Value::Null,
            "there is nothing to judge it by"
        );
        assert_eq!(payload["limits_version"], Value::Null);
    }
    let heard = listener
        .take_until(|message| message["type"] == "control_limits")
        .await;
    let limits = &heard.last().unwrap()["payload"];
    let near = |name: &str, published: f64| {
        let actual = limits[name].as_f64().unwrap();
        assert!((actual - published).abs() < 5e-5, "{name}: {actual}");
    };
    near("center_line", 50.81);
    near("ucl", 55.8041);
    near("lcl", 45.8159);
    assert_eq!(
        (
            &limits["method"],
            &limits["sample_count"],
            &limits["limits_version"]
        ),
        (&json!("moving_range"), &json!(10), &json!(1))
    );
    let out = sample(&server, "flow", 55.9).await;
    assert_eq!(
        (&out["in_control"], &out["limits_version"]),
        (&json!(false), &json!(1))
    );
    put(&server, "flow", ask).await;
    let (_, kept) = server.get("/api/characteristics/flow", &viewer(1)).await;
    assert_eq!(
        kept["limits_version"], 1,
        "describing it again changes nothing"
    );
    let given = json!({"center_line": 50.0, "ucl": 60.0, "lcl": 40.0});
    let response = put(&server, "flow/limits", given).await;
    assert_eq!(response["type"], "control_limits");
    assert_eq!(response["payload"]["method"], "given");
    assert_eq!(sample(&server, "flow", 55.9).await["limits_version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_subgroups_are_computed_by_their_ranges() {
    let server = server().await;
    let ask = json!({"subgroup_size": 5, "limits": {"method": "xbar_r", "samples": 2}});
    put(&server, "ring", ask).await;
    for values in [
        [74.030, 74.002, 74.019, 73.992, 74.008],
        [73.995, 73.992, 74.001, 74.011, 74.004],
    ] {
        server
            .report(
                "/api/characteristics/ring/samples",
                json!({"values": values}),
            )
            .await;
    }
    let (_, ring) = server.get("/api/characteristics/ring", &viewer(1)).await;
    let limits = &ring["payload"];
    // Means 74.0102 and 74.0006, ranges 0.038 and 0.019: X-bar-bar ± 3 · R-bar / (2.326 · √5).
    let near = |name: &str, expected: f64| {
        let actual = limits[name].as_f64().unwrap();
        assert!((actual - expected).abs() < 1e-9, "{name}: {actual}");
    };
    near("center_line", 74.0054);
    near("ucl", 74.0054 + 3.0 * 0.0285 / (2.326 * 5_f64.sqrt()));
    near("lcl", 74.0054 - 3.0 * 0.0285 / (2.326 * 5_f64.sqrt()));
    let (status, _) = server
        .post(
            "/api/characteristics/ring/samples",
            &worker(1),
            json!({"value": 74.0}),
        )
        .await;
    assert_eq!(status, 422, "a subgroup has five values");
}

/// Whatever form a gap is sent in, it interrupts what goes on from sample to sample.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_published_without_a_judgement_and_breaks_runs() {
    let server = server().await;
    for transport in Transport::ALL {
        let id = format!("{transport:?}");
        let path = format!("/api/characteristics/{id}/samples");
        around_zero(&server, &id, json!([1, 2, 3])).await;
        let scope = format!("/characteristics/{id}?tick_ms=0");
        let mut listener = server.listen(transport, &scope).await;
        listener.until_ready().await;
        for value in [0.1, 0.2, 0.3, 0.4, 4.0] {
            sample(&server, &id, value).await;
        }
        for gap in [
            json!({"value": null}),
            json!({"values": null}),
            json!({"values": [null]}),
            json!({"value": null, "values": null, "sample_id": "not taken", "zone": null}),
        ] {
            let event = server.report(&path, gap).await["payload"].clone();
            for field in ["value", "mean", "zone", "judged_by", "limits_version"] {
                assert_eq!(event[field], Value::Null, "{field}");
            }
            assert_eq!(event["in_control"], true);
            assert_eq!(
                (&event["rules"], &event["violations"]),
                (&json!([]), &json!([]))
            );
        }
        // Not the sixth that rises, not the sixth on one side, and another run beyond the limit.
        let after = sample(&server, &id, 5.0).await;
        assert_eq!(after["rules"], json!([1]));
        assert_eq!(after["violations"][0]["violation_id"], format!("{id}.2"));
        for _ in 0..7 {
            assert_eq!(sample(&server, &id, 0.5).await["violations"], json!([]));
        }
        assert_eq!(
            sample(&server, &id, 0.5).await["violations"][0]["rule_id"],
            2
        );
        let heard = listener
            .take_until(|message| message["payload"]["rule_id"] == 2)
            .await;
        let is_gap =
            |message: &&Value| message["type"] == "sample" && message["payload"]["value"].is_null();
        assert_eq!(heard.iter().filter(is_gap).count(), 4);
        let (_, now) = server
            .get(&format!("/api/characteristics/{id}"), &viewer(1))
            .await;
        assert_eq!(now["sample_count"], 18, "a gap has a number, too");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_in_the_flat_shape_and_in_a_snapshot_has_nulls() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    sample(&server, "a", 9.0).await;
    let path = "/api/characteristics/a/samples";
    server.report(path, json!({"value": null})).await;
    let mut flat = server
        .listen(Transport::EventSource, "/characteristics/a?shape=flat")
        .await;
    let messages = flat.until_ready().await;
    let last = messages
        .iter()
        .find(|message| message["type"] == "sample")
        .unwrap();
    assert_eq!(last["sample"]["id"], "a.2");
    for field in ["mean", "zone"] {
        assert_eq!(last["sample"].get(field), Some(&Value::Null), "{field}");
    }
    assert_eq!(last["sample"]["in_control"], true);
    let (_, now) = server.get("/api/characteristics/a", &viewer(1)).await;
    assert_eq!(now["status"], "in_control");
    let page = server.request("GET", "/monitor/schools/1/characteristics/a", &viewer(1));
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(page.contains("not measured"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_counts_neither_for_limits_nor_for_moving_ranges() {
    let server = server().await;
    let ask = json!({"limits": {"method": "moving_range", "samples": 4}});
    put(&server, "a", ask).await;
    let path = "/api/characteristics/a/samples";
    for value in [
        json!(null),
        json!(1.0),
        json!(2.0),
        json!(null),
        json!(null),
        json!(12.0),
    ] {
        server.report(path, json!({"value": value})).await;
    }
    let (_, learning) = server.get("/api/characteristics/a", &viewer(1)).await;
    assert_eq!(learning["baseline_collected"], 3);
    sample(&server, "a", 13.256).await;
    let (_, learnt) = server.get("/api/characteristics/a", &viewer(1)).await;
    let limits = &learnt["payload"];
    // The mean of 1, 2, 12 and 13.256, and three times the mean of 1 and 1.256, over 1.128: there is no range from 2 to 12.
    assert_eq!(
        (&limits["center_line"], &limits["ucl"]),
        (&json!(7.064), &json!(10.064))
    );
    assert_eq!(limits["sample_count"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subgroup_is_whole_or_a_gap() {
    let server = server().await;
    put(&server, "a", json!({"subgroup_size": 3})).await;
    let path = "/api/characteristics/a/samples";
    for (body, rejected) in [
        (json!({"values": [1.0, null, 2.0]}), Some("values")),
        (json!({"values": [null, null]}), Some("values")),
        (json!({"value": null, "zone": "in"}), Some("zone")),
        (
            json!({"value": null, "in_control": false}),
            Some("in_control"),
        ),
        (
            json!({"values": null, "violations": []}),
            Some("violations"),
        ),
        (json!({"values": [null, null, null]}), None),
        (json!({"values": null}), None),
        (json!({"value": null}), None),
        (json!({"value": null, "values": [1.0, 2.0, 3.0]}), None),
    ] {
        let (status, response) = server.post(path, &worker(1), body.clone()).await;
        match rejected {
            Some(field) => {
                assert_eq!(status, 422, "{body}");
                let detail = response["detail"].as_str().unwrap();
                assert!(detail.contains(&format!("`{field}`")), "{detail}");
            }
            None => assert_eq!(status, 200, "{response}"),
        }
    }
}
