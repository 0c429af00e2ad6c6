//! The Nelson rules, and the violations that they open.

use serde::Deserialize;
use serde_json::{Value, json};
use tidings::kind::characteristic::limits::ControlLimits;
use tidings::kind::characteristic::nelson::{Rule, is_broken};

use super::{around_zero, put, sample};
use crate::support::*;

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
    let charts: Vec<Chart> = serde_json::from_str(include_str!("../../data/nelson.json")).unwrap();
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
        let mut answered = Vec::new();
        for value in values {
            answered.push(sample(&server, "temp", value).await);
        }
        let zones: Vec<&Value> = field(&answered, "zone");
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
            field(&answered, "in_control"),
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
        assert_eq!(first["sample_id"], answered[1]["sample_id"]);
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
        assert_eq!(samples, answered, "what is heard is what was answered");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_is_certain_does_not_wait_for_a_full_window() {
    let server = server().await;
    for (rule, value, number) in [(5, 2.5, 2), (6, -1.5, 4), (2, 0.5, 9)] {
        let id = format!("rule-{rule}");
        around_zero(&server, &id, json!([rule])).await;
        for count in 1..=10 {
            let payload = sample(&server, &id, value).await;
            let opens = payload["violations"].as_array().unwrap().len();
            assert_eq!(opens, usize::from(count == number), "{payload}");
            assert_eq!(payload["in_control"], count < number, "{payload}");
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
        let payload = sample(&server, "a", value).await;
        assert_eq!(payload["zone"], zone, "{value}");
    }
    put(&server, "five", json!({"subgroup_size": 5})).await;
    let values = json!({"values": [0.72, 0.60, 0.85, 0.58, 0.60]});
    let event = server
        .report("/api/characteristics/five/samples", values)
        .await;
    assert_eq!(event["payload"]["mean"].to_string(), "0.67");
    assert_eq!(event["payload"]["range"].to_string(), "0.27");
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
            let payload = sample(&server, id, center_line + sigmas * sigma).await;
            assert_eq!(payload["zone"], zone, "{id} {sigmas}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_rules_off_is_published_if_it_ends_a_run() {
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
