//! Statistical process control: limits, rules, violations, acknowledgements, and who hears of them.

use serde::Deserialize;
use serde_json::{Value, json};
use tidings::kind::characteristic::limits::ControlLimits;
use tidings::kind::characteristic::nelson::{Rule, is_broken};

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
    let told = server.report(&path, json!({"value": value})).await;
    told["payload"].clone()
}

async fn acknowledge(server: &Server, id: &str, token: &str, reason: &str) -> (u16, Value) {
    let path = format!("/api/violations/{id}/ack");
    server.post(&path, token, json!({"reason": reason})).await
}

/// Some eighty thousand verdicts of an implementation that is not ours: see `tests/data/nelson.py`.
#[test]
fn the_rules_agree_with_an_independent_implementation() {
    #[derive(Deserialize)]
    struct Chart {
        points: Vec<f64>,
        center_line: f64,
        ucl: f64,
        lcl: f64,
        broken: Vec<Vec<u8>>,
    }
    let charts: Vec<Chart> = serde_json::from_str(include_str!("../data/nelson.json")).unwrap();
    let mut verdicts = [0; 9];
    for chart in &charts {
        let limits = ControlLimits {
            center_line: chart.center_line,
            ucl: chart.ucl,
            lcl: chart.lcl,
        };
        let lines = limits.lines();
        for (index, expected) in chart.broken.iter().enumerate() {
            let seen = &chart.points[..=index];
            let nelson = Rule::ALL
                .into_iter()
                .filter(|rule| *rule != Rule::Dispersion);
            for rule in nelson {
                let broken = is_broken(rule, seen, &lines);
                let theirs = expected.contains(&rule.number());
                assert_eq!(broken, theirs, "rule {} on {seen:?}", rule.number());
                verdicts[usize::from(rule.number())] += usize::from(broken);
            }
        }
    }
    assert!(
        verdicts[1..].iter().all(|broken| *broken > 100),
        "{verdicts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_rule_that_is_broken_opens_one_violation_for_each_run() {
    for transport in Transport::ALL {
        let server = server().await;
        around_zero(&server, "temp", json!([1])).await;
        let mut listener = server
            .listen(transport, "/characteristics/temp?tick_ms=0")
            .await;
        listener.until_ready().await;
        let values = [0.0, 3.5, 4.0, 1.0, -3.1];
        let mut told = Vec::new();
        for value in values {
            told.push(sample(&server, "temp", value).await);
        }
        let zones: Vec<&Value> = field(&told, "zone");
        assert_eq!(
            zones,
            [
                "zone_c_upper",
                "beyond_ucl",
                "beyond_ucl",
                "zone_c_upper",
                "beyond_lcl"
            ]
        );
        assert_eq!(
            field(&told, "in_control"),
            [true, false, false, true, false]
        );
        let last = |message: &Value| message["payload"]["violation_id"] == "temp.2";
        let heard = listener.take_until(last).await;
        assert_eq!(
            field(&heard, "type"),
            [
                "sample",
                "sample",
                "violation",
                "sample",
                "sample",
                "sample",
                "violation"
            ]
        );
        let first = &heard[2]["payload"];
        assert_eq!(first["violation_id"], "temp.1");
        assert_eq!(first["characteristic_id"], "temp");
        assert_eq!(first["sample_id"], told[1]["sample_id"]);
        assert_eq!(
            (&first["rule_id"], &first["severity"]),
            (&json!(1), &json!("critical"))
        );
        assert!(first["rule_name"].is_string() && first["timestamp"].is_string());
        let samples: Vec<Value> = heard
            .iter()
            .filter(|message| message["type"] == "sample")
            .map(|message| message["payload"].clone())
            .collect();
        assert_eq!(samples, told, "what is heard is what was answered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_is_switched_on_by_itself() {
    let server = server().await;
    around_zero(&server, "off", json!([])).await;
    around_zero(
        &server,
        "trend",
        json!([{"rule_id": 3, "severity": "critical"}]),
    )
    .await;
    for value in [-1.0, -0.5, 0.0, 0.5, 1.0, 9.0] {
        let quiet = sample(&server, "off", value).await;
        assert_eq!(quiet["violations"], json!([]));
        sample(&server, "trend", value).await;
    }
    let (_, page) = server.get("/api/violations", &viewer(1)).await;
    let violations = page["violations"].as_array().unwrap();
    assert_eq!(violations.len(), 1, "{page}");
    assert_eq!(
        (&violations[0]["rule_id"], &violations[0]["severity"]),
        (&json!(3), &json!("critical"))
    );
}

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
        let told = sample(&server, "flow", value).await;
        assert_eq!(told["zone"], Value::Null, "there is nothing to judge it by");
        assert_eq!(told["limits_version"], Value::Null);
    }
    let heard = listener
        .take_until(|message| message["type"] == "control_limits")
        .await;
    let limits = &heard.last().unwrap()["payload"];
    let near = |name: &str, published: f64| {
        let own = limits[name].as_f64().unwrap();
        assert!((own - published).abs() < 5e-5, "{name}: {own}");
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
    let told = put(&server, "flow/limits", given).await;
    assert_eq!(told["type"], "control_limits");
    assert_eq!(told["payload"]["method"], "given");
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
        let own = limits[name].as_f64().unwrap();
        assert!((own - expected).abs() < 1e-9, "{name}: {own}");
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn an_acknowledgement_reaches_everyone_who_listens_to_any_characteristic_of_that_school() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    around_zero(&server, "b", json!([1])).await;
    let other = server.request("PUT", "/api/characteristics/b", &worker(2));
    assert_eq!(answer(other.json(&json!({}))).await.0, 200);
    sample(&server, "a", 5.0).await;
    let mut listeners = Vec::new();
    for transport in Transport::ALL {
        for scope in [
            "/characteristics/b",
            "/characteristics",
            "/characteristics/a",
            "/schools/1",
        ] {
            let mut listener = server.listen(transport, scope).await;
            listener.until_ready().await;
            listeners.push(listener);
        }
    }
    let mut strangers = Vec::new();
    for transport in Transport::ALL {
        let scope = "/characteristics?tick_ms=0";
        let mut stranger = Listener::open(transport, &server.url, scope, &viewer(2), None).await;
        stranger.until_ready().await;
        strangers.push(stranger);
        let mut of_jobs = server.listen(transport, "/jobs").await;
        of_jobs.until_ready().await;
        strangers.push(of_jobs);
    }
    let (_, before) = server
        .get("/api/violations?acknowledged=false", &viewer(1))
        .await;
    assert_eq!(before["violations"][0]["violation_id"], "a.1");
    let (status, told) = acknowledge(&server, "a.1", &worker(1), "Door was open").await;
    assert_eq!(status, 200, "{told}");
    let payload = &told["payload"];
    for (name, value) in [
        ("violation_id", json!("a.1")),
        ("characteristic_id", json!("a")),
        ("acknowledged", json!(true)),
        ("ack_user", json!("test")),
        ("ack_reason", json!("Door was open")),
        ("user", json!("test")),
        ("reason", json!("Door was open")),
    ] {
        assert_eq!(payload[name], value, "{name}");
    }
    for listener in &mut listeners {
        let heard = listener
            .take_until(|message| message["type"] == "ack_update")
            .await;
        assert_eq!(heard.last(), Some(&told));
    }
    let (status, problem) = acknowledge(&server, "a.1", &worker(1), "Again").await;
    assert_eq!((status, &problem["code"]), (409, &json!("finished")));
    // The strangers hear the next thing of their own, and nothing before it.
    server.running_job("j").await;
    let token = worker(2);
    let path = "/api/characteristics/b/samples";
    let (status, _) = server.post(path, &token, json!({"value": 1.0})).await;
    assert_eq!(status, 200);
    for stranger in &mut strangers {
        let heard = stranger.next().await.unwrap();
        assert!(
            heard["type"] == "job_progress" || heard["school_id"] == 2,
            "{heard}"
        );
    }
    // Who was away learns of it, too: also from the store, and also on another characteristic.
    let cursor = before["cursor"].as_str().unwrap();
    for transport in Transport::ALL {
        let mut late = server.resume(transport, "/characteristics/b", cursor).await;
        let told = late.until_ready().await;
        assert!(
            told.iter().any(|message| message["type"] == "ack_update"),
            "{told:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_reads_an_acknowledgement_from_the_store() {
    let server = server_with(json!({"window_events": 1})).await;
    around_zero(&server, "a", json!([1])).await;
    around_zero(&server, "b", json!([1])).await;
    sample(&server, "a", 5.0).await;
    let (_, before) = server.get("/api/violations", &viewer(1)).await;
    let cursor = before["cursor"].as_str().unwrap();
    acknowledge(&server, "a.1", &worker(1), "Seen").await;
    for _ in 0..5 {
        sample(&server, "a", 0.0).await;
        sample(&server, "b", 0.0).await;
    }
    for tick in ["", "?tick_ms=0"] {
        let scope = format!("/characteristics/b{tick}");
        let mut late = server.resume(Transport::WebSocket, &scope, cursor).await;
        let told = late.until_ready().await;
        let types = field(&told[1..told.len() - 1], "type");
        assert_eq!(types[0], "ack_update");
        assert_eq!(
            types.len(),
            if tick.is_empty() { 2 } else { 6 },
            "{types:?}"
        );
    }
}

/// A violation does not carry the sample's news, so a sample is not folded into it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sample_folds_only_into_a_later_sample() {
    let server = server().await;
    around_zero(&server, "a", json!([])).await;
    let mut listener = server
        .listen(Transport::WebSocket, "/characteristics/a?tick_ms=60000")
        .await;
    listener.until_ready().await;
    for value in [1.0, 2.0, 2.5] {
        sample(&server, "a", value).await;
    }
    server
        .report(
            "/api/characteristics/a/violations",
            json!({"rule_id": 99, "rule_name": "Smells odd"}),
        )
        .await;
    let heard = listener
        .take_until(|message| message["type"] == "violation")
        .await;
    let values: Vec<&Value> = heard
        .iter()
        .map(|message| &message["payload"]["value"])
        .collect();
    assert_eq!(values, [&json!(1.0), &json!(2.5), &Value::Null]);
    let violation = &heard[2]["payload"];
    assert_eq!(
        (
            &violation["rule_id"],
            &violation["rule_name"],
            &violation["severity"]
        ),
        (&json!(99), &json!("Smells odd"), &json!("warning"))
    );
    assert_eq!(violation["sample_id"], "a.3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_tells_limits_the_last_sample_and_open_violations_in_the_order_of_the_log() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    sample(&server, "a", 4.0).await;
    sample(&server, "a", 0.0).await;
    sample(&server, "a", -4.0).await;
    acknowledge(&server, "a.1", &worker(1), "Known").await;
    sample(&server, "a", 0.5).await;
    for scope in ["/characteristics", "/characteristics/a"] {
        let mut listener = server.listen(Transport::EventSource, scope).await;
        let told = listener.until_ready().await;
        let told = &told[1..told.len() - 1];
        assert_eq!(
            field(told, "type"),
            ["control_limits", "violation", "sample"]
        );
        assert!(told.iter().all(|message| message["snapshot"] == true));
        assert_eq!(told[1]["payload"]["violation_id"], "a.2");
        assert_eq!(told[2]["payload"]["value"], 0.5);
        let seqs: Vec<u64> = told
            .iter()
            .map(|message| message["seq"].as_u64().unwrap())
            .collect();
        assert!(seqs.is_sorted_by(|one, next| one < next), "{seqs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_name_some_of_the_characteristics() {
    let server = server().await;
    for id in ["1", "2", "3"] {
        around_zero(&server, id, json!([])).await;
    }
    for transport in Transport::ALL {
        let mut listener = server
            .listen(transport, "/characteristics?ids=1,3&tick_ms=0")
            .await;
        let told = listener.until_ready().await;
        assert_eq!(
            told[0]["channels"],
            json!(["characteristics/1", "characteristics/3"])
        );
        for id in ["1", "2", "3"] {
            sample(&server, id, 1.0).await;
        }
        let heard = listener
            .take_until(|message| message["payload"]["characteristic_id"] == "3")
            .await;
        assert_eq!(heard.len(), 2, "{heard:?}");
    }
    for (query, status) in [("?ids=9", 404), ("?ids=", 400), ("?ids=a/b", 404)] {
        let (got, _) = server
            .get(&format!("/events/characteristics{query}"), &viewer(1))
            .await;
        assert_eq!(got, status, "{query}");
    }
    let (status, _) = server.get("/events/jobs/1?ids=1", &viewer(1)).await;
    assert_eq!(status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flat_shape_says_the_same_without_the_envelope() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    let mut flat = server
        .listen(
            Transport::EventSource,
            "/characteristics/a?shape=flat&tick_ms=0",
        )
        .await;
    let told = flat.until_ready().await;
    let limits = &told[1];
    assert_eq!(
        (
            &limits["type"],
            &limits["ucl"],
            &limits["characteristic_id"]
        ),
        (&json!("limits_update"), &json!(3.0), &json!("a"))
    );
    let enveloped = sample(&server, "a", 5.0).await;
    acknowledge(&server, "a.1", &worker(1), "Known").await;
    let heard = flat
        .take_until(|message| message["type"] == "ack_update")
        .await;
    let sample = &heard[0];
    assert!(sample.get("payload").is_none());
    assert_eq!(sample["characteristic_id"], "a");
    for (flat, enveloped_name) in [
        ("id", "sample_id"),
        ("characteristic_id", "characteristic_id"),
        ("timestamp", "timestamp"),
        ("mean", "mean"),
        ("zone", "zone"),
        ("in_control", "in_control"),
    ] {
        assert_eq!(sample["sample"][flat], enveloped[enveloped_name], "{flat}");
    }
    assert_eq!(sample["violations"][0]["id"], "a.1");
    assert_eq!(heard[1]["violation"]["id"], "a.1");
    assert_eq!(heard[1]["violation"]["rule_id"], 1);
    assert_eq!(
        (
            &heard[2]["violation_id"],
            &heard[2]["ack_user"],
            &heard[2]["ack_reason"]
        ),
        (&json!("a.1"), &json!("test"), &json!("Known"))
    );
    assert!(heard[2]["cursor"].is_string() && heard[2]["seq"].is_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_refused_with_a_reason() {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_is_certain_does_not_wait_for_a_full_window() {
    let server = server().await;
    for (rule, value, number) in [(5, 2.5, 2), (6, -1.5, 4), (2, 0.5, 9)] {
        let id = format!("rule-{rule}");
        around_zero(&server, &id, json!([rule])).await;
        for count in 1..=10 {
            let told = sample(&server, &id, value).await;
            let opens = told["violations"].as_array().unwrap().len();
            assert_eq!(opens, usize::from(count == number), "{told}");
            assert_eq!(told["in_control"], count < number, "{told}");
        }
    }
}

/// What a person with pencil and paper says of the same numbers.
#[tokio::test(flavor = "multi_thread")]
async fn ties_and_means_fall_as_on_paper() {
    let server = server().await;
    let limits = json!({"center_line": 0.3, "ucl": 0.6, "lcl": 0.0});
    put(
        &server,
        "a",
        json!({"limits": limits, "rules": [1, 2, 6, 7]}),
    )
    .await;
    for (value, zone) in [
        (0.4, "zone_c_upper"),
        (0.1 + 0.3, "zone_c_upper"),
        (0.4001, "zone_b_upper"),
        (0.5, "zone_b_upper"),
        (0.6, "zone_a_upper"),
        (0.1, "zone_b_lower"),
        (0.2, "zone_c_lower"),
        (0.3, "zone_c_upper"),
        (0.1 + 0.2, "zone_c_upper"),
        (0.0, "zone_a_lower"),
        (-0.0001, "beyond_lcl"),
    ] {
        let told = sample(&server, "a", value).await;
        assert_eq!(told["zone"], zone, "{value}");
    }
    put(&server, "five", json!({"subgroup_size": 5})).await;
    let values = json!({"values": [0.72, 0.60, 0.85, 0.58, 0.60]});
    let told = server
        .report("/api/characteristics/five/samples", values)
        .await;
    assert_eq!(told["payload"]["mean"].to_string(), "0.67");
    assert_eq!(told["payload"]["range"].to_string(), "0.27");
    // Huge values are judged like others, and tiny spreads beside a large mean are seen.
    for (id, center_line, sigma) in [("huge", 0.0, 3e299), ("tiny", 1e6, 1e-6)] {
        let limits = json!({"center_line": center_line, "ucl": center_line + 3.0 * sigma, "lcl": center_line - 3.0 * sigma});
        put(&server, id, json!({"limits": limits})).await;
        for (sigmas, zone) in [
            (0.5, "zone_c_upper"),
            (1.5, "zone_b_upper"),
            (-2.5, "zone_a_lower"),
            (3.2, "beyond_ucl"),
        ] {
            let told = sample(&server, id, center_line + sigmas * sigma).await;
            assert_eq!(told["zone"], zone, "{id} {sigmas}");
        }
    }
}

/// Whatever form a gap is sent in, it interrupts what goes on from sample to sample.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_told_without_a_verdict_and_breaks_runs() {
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
            let told = server.report(&path, gap).await["payload"].clone();
            for field in ["value", "mean", "zone", "judged_by", "limits_version"] {
                assert_eq!(told[field], Value::Null, "{field}");
            }
            assert_eq!(told["in_control"], true);
            assert_eq!(
                (&told["rules"], &told["violations"]),
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
    let told = flat.until_ready().await;
    let last = told
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
    for (body, refused) in [
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
        let (status, told) = server.post(path, &worker(1), body.clone()).await;
        match refused {
            Some(field) => {
                assert_eq!(status, 422, "{body}");
                let detail = told["detail"].as_str().unwrap();
                assert!(detail.contains(&format!("`{field}`")), "{detail}");
            }
            None => assert_eq!(status, 200, "{told}"),
        }
    }
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
    let told = put_value(&server, 98.569_069_463_286_95).await;
    assert_eq!(told.to_string(), "98.56906946328695");
}

/// The value of a sample, as it is told.
async fn put_value(server: &Server, value: f64) -> Value {
    let request = server.request("PUT", "/api/characteristics/single", &worker(1));
    assert_eq!(answer(request.json(&json!({}))).await.0, 200);
    sample(server, "single", value).await["value"].clone()
}

/// A tick is superseded only by what the same filter lets through.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_filtered_replay_keeps_the_newest_sample_that_it_lets_through() {
    let server = server_with(json!({"window_events": 1})).await;
    around_zero(&server, "a", json!([1])).await;
    around_zero(&server, "other", json!([])).await;
    let start = sample(&server, "a", 0.5).await["sample_id"].clone();
    for _ in 0..300 {
        sample(&server, "other", 0.0).await;
    }
    sample(&server, "a", 9.0).await;
    put(
        &server,
        "a/limits",
        json!({"center_line": 0.0, "ucl": 30.0, "lcl": -30.0}),
    )
    .await;
    let epoch = server.tidings.store().epoch();
    let scope = "/characteristics/a?status=in_control";
    for scope in [scope, "/characteristics?status=in_control"] {
        let mut listener = server
            .resume(Transport::EventSource, scope, &format!("{epoch}-0"))
            .await;
        let told = listener.until_ready().await;
        let kept = told
            .iter()
            .any(|message| message["payload"]["sample_id"] == start);
        assert!(kept, "{scope}: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_passes_a_filter_by_status() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    sample(&server, "a", 9.0).await;
    sample(&server, "a", 0.0).await;
    for transport in Transport::ALL {
        let (_, before) = server.get("/api/violations", &viewer(1)).await;
        let id = before["violations"][0]["violation_id"]
            .as_str()
            .unwrap()
            .to_owned();
        let scope = "/characteristics?status=out_of_control";
        let mut live = server.listen(transport, scope).await;
        live.until_ready().await;
        acknowledge(&server, &id, &worker(1), "Known").await;
        assert_eq!(live.next().await.unwrap()["type"], "ack_update");
        let cursor = before["cursor"].as_str().unwrap();
        let mut late = server.resume(transport, scope, cursor).await;
        let told = late.until_ready().await;
        assert!(
            told.iter().any(|message| message["type"] == "ack_update"),
            "{told:?}"
        );
        sample(&server, "a", 9.0).await;
        sample(&server, "a", 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_rules_off_is_told_if_it_ends_a_run() {
    let server = server().await;
    around_zero(&server, "a", json!([1])).await;
    sample(&server, "a", 9.0).await;
    let mut listener = server
        .listen(Transport::WebSocket, "/characteristics/a")
        .await;
    listener.until_ready().await;
    put(&server, "a", json!({"rules": []})).await;
    assert_eq!(listener.next().await.unwrap()["type"], "control_limits");
    let (_, now) = server.get("/api/characteristics/a", &viewer(1)).await;
    assert_eq!(now["status"], "in_control");
}

/// The same key is answered the same way, also where the first request changed nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_that_changed_nothing_is_told_the_present_state() {
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
