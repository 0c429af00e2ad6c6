//! Charts of values and means, and of their variation: exact against fractions, published, kept, and shown.

use std::collections::BTreeMap;

use diesel::Connection;
use diesel::connection::SimpleConnection;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::*;

/// Sends samples of one characteristic; returns the payloads that are published for them.
async fn samples(server: &Server, id: &str, bodies: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let lines = bodies.into_iter().map(|mut body| {
        body["op"] = json!("characteristics.samples");
        body["characteristic_id"] = json!(id);
        body.to_string()
    });
    let lines: Vec<String> = lines.collect();
    let answers = server.batch(&worker(1), lines.join("\n")).await;
    let payload = |answer: &Value| {
        assert_eq!(answer["status"], 200, "{answer}");
        answer["event"]["payload"].clone()
    };
    answers.iter().map(payload).collect()
}

fn singles(values: &[f64]) -> Vec<Value> {
    values.iter().map(|value| json!({"value": value})).collect()
}

async fn payload(server: &Server, id: &str) -> Value {
    let path = format!("/api/characteristics/{id}");
    server.get(&path, &viewer(1)).await.1["payload"].clone()
}

async fn violations(server: &Server) -> Vec<Value> {
    let (_, page) = server.get("/api/violations", &viewer(1)).await;
    page["violations"].as_array().unwrap().clone()
}

/// Otherwise a publisher that sends its limits from time to time would switch the rules off, which need several samples.
#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_repeated_do_not_restart_the_runs() {
    let server = server().await;
    let limits = json!({"center_line": 10, "ucl": 13, "lcl": 7});
    let register = json!({"rules": [1, 2], "limits": limits});
    let put = |path: &'static str, body: Value| {
        let request = server.request("PUT", path, &worker(1)).json(&body);
        async move { answer(request).await }
    };
    put("/api/characteristics/c", register).await;
    samples(&server, "c", singles(&[10.5; 5])).await;
    let before = payload(&server, "c").await;
    let (status, repeated) = put("/api/characteristics/c/limits", limits.clone()).await;
    assert_eq!(status, 200, "{repeated}");
    assert_eq!(payload(&server, "c").await, before);
    samples(&server, "c", singles(&[10.5; 4])).await;
    assert_eq!(
        violations(&server).await.len(),
        1,
        "rule 2: nine samples on one side"
    );
    let wider = json!({"center_line": 10, "ucl": 14, "lcl": 6});
    put("/api/characteristics/c/limits", wider).await;
    let after = payload(&server, "c").await;
    assert_eq!(
        (&before["limits_version"], &after["limits_version"]),
        (&json!(1), &json!(2))
    );
}

/// Some four thousand samples, judged with fractions instead of doubles: see `tests/data/exact.py`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many samples"]
async fn means_limits_and_verdicts_agree_with_exact_fractions() {
    /// Mean, range, zone, rules, and the point on the dispersion chart.
    type Expected = (f64, Value, Value, Value, Value);
    #[derive(Deserialize)]
    struct Case {
        register: Value,
        samples: Vec<Value>,
        /// Null of a gap.
        expected: Vec<Option<Expected>>,
        limits: Option<Value>,
    }
    let cases: Vec<Case> = serde_json::from_str(include_str!("../data/exact.json")).unwrap();
    let server = server().await;
    let mut verdicts = BTreeMap::new();
    for (number, case) in cases.iter().enumerate() {
        let id = format!("c{number}");
        let path = format!("/api/characteristics/{id}");
        server.put(&path, case.register.clone()).await;
        let bodies = case.samples.iter().map(|values| json!({"values": values}));
        let payloads = samples(&server, &id, bodies).await;
        for ((payload, expected), values) in payloads.iter().zip(&case.expected).zip(&case.samples)
        {
            let place = format!("{} {values} {payload}", case.register);
            let Some((mean, range, zone, rules, dispersion)) = expected else {
                assert_eq!(
                    (&payload["value"], &payload["zone"]),
                    (&Value::Null, &Value::Null)
                );
                continue;
            };
            assert_eq!(payload["mean"], json!(mean), "{place}");
            assert_eq!(payload["range"], *range, "{place}");
            assert_eq!(
                (&payload["zone"], &payload["rules"]),
                (zone, rules),
                "{place}"
            );
            let point = &payload["dispersion"];
            let plotted = (!point.is_null()).then(|| json!([point["value"], point["zone"]]));
            assert_eq!(json!(plotted), *dispersion, "{place}");
            for rule in rules.as_array().unwrap() {
                *verdicts.entry(rule.as_u64()).or_insert(0) += 1;
            }
        }
        let now = payload(&server, &id).await;
        for name in ["center_line", "ucl", "lcl", "dispersion"] {
            let expected = case
                .limits
                .as_ref()
                .map_or(&Value::Null, |limits| &limits[name]);
            assert_eq!(now[name], *expected, "{name} of {}", case.register);
        }
    }
    assert_eq!(verdicts.len(), 9);
    assert!(verdicts.values().all(|count| *count > 50), "{verdicts:?}");
}

/// Means 2 and 5, standard deviations 1 and 2: X-bar-bar ± 3 S-bar / (c4 √n), and B4 S-bar.
#[tokio::test(flavor = "multi_thread")]
async fn limits_by_standard_deviations_come_with_those_of_the_s_chart() {
    let server = server().await;
    let ask = json!({"subgroup_size": 3, "rules": [1, 101], "limits": {"method": "xbar_s", "samples": 2}});
    server.put("/api/characteristics/a", ask.clone()).await;
    let group = |values: [f64; 3]| json!({ "values": values });
    let learning = samples(
        &server,
        "a",
        [group([1.0, 2.0, 3.0]), group([3.0, 5.0, 7.0])],
    )
    .await;
    assert_eq!(field(&learning, "dispersion"), [&Value::Null; 2]);
    let limits = payload(&server, "a").await;
    assert_eq!(
        (&limits["method"], &limits["center_line"]),
        (&json!("xbar_s"), &json!(3.5))
    );
    let reach = 3.0 * 1.5 / (0.8862 * 3_f64.sqrt());
    assert!(
        (limits["ucl"].as_f64().unwrap() - (3.5 + reach)).abs() < 1e-12,
        "{limits}"
    );
    let expected = json!({"chart": "s", "center_line": 1.5, "ucl": 3.852, "lcl": 0.0});
    assert_eq!(limits["dispersion"], expected);
    // A standard deviation of 3.852 is on the limit, one of 3.9 beyond it; their means are on the center line.
    let payloads = samples(
        &server,
        "a",
        [
            group([3.5 - 3.852, 3.5, 3.5 + 3.852]),
            group([-0.4, 3.5, 7.4]),
        ],
    )
    .await;
    assert_eq!(
        payloads[0]["dispersion"],
        json!({"chart": "s", "value": 3.852, "zone": "zone_a_upper"})
    );
    assert_eq!(
        payloads[1]["dispersion"],
        json!({"chart": "s", "value": 3.9, "zone": "beyond_ucl"})
    );
    assert_eq!(field(&payloads, "in_control"), [true, false]);
    assert_eq!(field(&payloads, "zone"), ["zone_c_upper", "zone_c_upper"]);
    let opened = &payloads[1]["violations"][0];
    assert_eq!(
        (&opened["rule_id"], &opened["chart"]),
        (&json!(101), &json!("s"))
    );
    server.put("/api/characteristics/a", ask).await;
    assert_eq!(
        payload(&server, "a").await["limits_version"],
        1,
        "described again, it stays"
    );
}

/// The individuals chart of the NIST/SEMATECH e-Handbook, 6.3.2.2, and its moving ranges.
#[tokio::test(flavor = "multi_thread")]
async fn moving_ranges_are_judged_by_their_own_limits_if_their_rule_is_on() {
    let server = server().await;
    let data = [49.6, 47.6, 49.9, 51.3, 47.8, 51.2, 52.6, 52.4, 53.6, 52.1];
    for (id, rules) in [("on", json!([1, 101])), ("off", json!([1]))] {
        let ask = json!({"rules": rules, "limits": {"method": "moving_range", "samples": 10}});
        server.put(&format!("/api/characteristics/{id}"), ask).await;
        samples(&server, id, singles(&data)).await;
    }
    // The mean of nine moving ranges is 16.9 / 9, and D4 is 3.267.
    let dispersion = payload(&server, "on").await["dispersion"].clone();
    let ucl = 3.267 * 16.9 / 9.0;
    assert!(
        (dispersion["ucl"].as_f64().unwrap() - ucl).abs() < 1e-12,
        "{dispersion}"
    );
    assert_eq!(
        (&dispersion["chart"], &dispersion["lcl"]),
        (&json!("mr"), &json!(0.0))
    );
    // From 52.1 to 46 is no distance too many, from 46 to 55 is one; both values are within their limits.
    let values = singles(&[46.0, 55.0, 47.0, 48.0]);
    let payloads = samples(&server, "on", values.clone()).await;
    let point = |index: usize| {
        (
            payloads[index]["dispersion"]["value"].clone(),
            payloads[index]["in_control"].clone(),
        )
    };
    assert_eq!(
        point(0),
        (json!(6.1), json!(true)),
        "also across a change of limits"
    );
    assert_eq!(point(1), (json!(9.0), json!(false)));
    assert_eq!(point(2), (json!(8.0), json!(false)));
    assert_eq!(point(3), (json!(1.0), json!(true)));
    let opened = violations(&server).await;
    assert_eq!(opened.len(), 1, "one for the run: {opened:?}");
    assert_eq!(
        (
            &opened[0]["rule_id"],
            &opened[0]["chart"],
            &opened[0]["severity"]
        ),
        (&json!(101), &json!("mr"), &json!("critical"))
    );
    let payloads = samples(&server, "off", values).await;
    assert!(
        payloads.iter().all(|payload| payload["in_control"] == true),
        "{payloads:?}"
    );
    assert_eq!(
        payloads[1]["dispersion"]["zone"], "beyond_ucl",
        "published all the same"
    );
    // The value itself is beyond its limits: another rule, and another chart.
    let payloads = samples(
        &server,
        "on",
        [json!({"value": null}), json!({"value": 99.0})],
    )
    .await;
    assert_eq!(
        payloads[1]["dispersion"],
        Value::Null,
        "there is no moving range across a gap"
    );
    let opened = &payloads[1]["violations"][0];
    assert_eq!((&opened["rule_id"], opened.get("chart")), (&json!(1), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispersion_chart_may_be_given_and_is_there_after_a_restart() {
    let first = server().await;
    let dispersion = json!({"chart": "r", "center_line": 1.0, "ucl": 2.0, "lcl": null});
    let limits = json!({"center_line": 10.0, "ucl": 13.0, "lcl": 7.0, "dispersion": dispersion});
    let ask = json!({"subgroup_size": 2, "rules": [1, {"rule_id": 101, "severity": "info"}], "limits": limits});
    first.put("/api/characteristics/a", ask.clone()).await;
    let payloads = samples(&first, "a", [json!({"values": [9.0, 11.5]})]).await;
    assert_eq!(payloads[0]["violations"][0]["severity"], "info");
    let flat = "/characteristics/a?shape=flat";
    let mut listener = first.listen(Transport::EventSource, flat).await;
    let before = listener.until_ready().await;
    let of_type = |name: &str| {
        before
            .iter()
            .find(|message| message["type"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(of_type("limits_update")["dispersion"], dispersion);
    assert_eq!(of_type("sample")["sample"]["dispersion"]["value"], 2.5);
    assert_eq!(of_type("violation")["violation"]["chart"], "r");
    let (before, listed) = (payload(&first, "a").await, violations(&first).await);
    drop(listener);
    let folder = first.stop().await;
    let server = server_in(folder, json!({})).await;
    assert_eq!(payload(&server, "a").await, before);
    assert_eq!(violations(&server).await, listed);
    server.put("/api/characteristics/a", ask).await;
    assert_eq!(payload(&server, "a").await["limits_version"], 1);
    let payloads = samples(
        &server,
        "a",
        [
            json!({"values": [9.0, 11.6]}),
            json!({"values": [9.0, 11.0]}),
        ],
    )
    .await;
    assert_eq!(payloads[0]["violations"], json!([]), "the run goes on");
    assert_eq!(
        payloads[1]["in_control"], true,
        "on the limit is not beyond it"
    );
    let page = server.request("GET", "/monitor/schools/1/characteristics/a", &viewer(1));
    let page = page.send().await.unwrap().text().await.unwrap();
    for part in [
        "dispersion-title",
        "Ranges",
        "rule-101",
        "Dispersion beyond limits",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    // Lines without it take it away.
    let plain = json!({"center_line": 10.0, "ucl": 13.0, "lcl": 7.0});
    server.put("/api/characteristics/a/limits", plain).await;
    assert_eq!(payload(&server, "a").await["dispersion"], Value::Null);
}

/// What a moving range is measured from survives a restart, too.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many samples"]
async fn a_baseline_and_the_last_value_survive_a_restart() {
    let first = server().await;
    let ask = json!({"limits": {"method": "moving_range", "samples": 3}});
    first.put("/api/characteristics/a", ask).await;
    samples(
        &first,
        "a",
        [
            json!({"value": 1.0}),
            json!({"value": null}),
            json!({"value": 5.0}),
        ],
    )
    .await;
    let second = server_in(first.stop().await, json!({})).await;
    samples(&second, "a", singles(&[7.0])).await;
    let dispersion = payload(&second, "a").await["dispersion"].clone();
    assert_eq!(
        dispersion,
        json!({"chart": "mr", "center_line": 2.0, "ucl": 6.534, "lcl": 0.0})
    );
    let server = server_in(second.stop().await, json!({})).await;
    let payloads = samples(&server, "a", singles(&[8.5])).await;
    assert_eq!(payloads[0]["dispersion"]["value"], 1.5);
}

/// Rows as the first edition wrote them: means and ranges in the baseline, nothing of charts.
#[tokio::test(flavor = "multi_thread")]
async fn a_characteristic_of_the_first_edition_goes_on_as_it_was() {
    if !store::is_a_file("it has a file of an earlier release") {
        return;
    }
    let first = server().await;
    let ask = json!({"subgroup_size": 2, "limits": {"method": "xbar_r", "samples": 3}});
    first.put("/api/characteristics/learning", ask).await;
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0, "method": "moving_range", "sample_count": 20});
    first
        .put(
            "/api/characteristics/judged",
            json!({"rules": [1, 2], "limits": limits}),
        )
        .await;
    samples(&first, "judged", singles(&[9.0, 0.5])).await;
    let folder = first.stop().await;
    let path = folder.path().join("tidings.db");
    let mut conn = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    conn.batch_execute(
        r#"UPDATE characteristics SET baseline = '{"method":"xbar_r","samples":3,"collected":[[1.5,1.0],[2.5,1.0]]}'
           WHERE characteristic_id = 'learning';
           UPDATE characteristics SET dispersion = NULL;
           UPDATE violations SET chart = NULL;"#,
    )
    .unwrap();
    drop(conn);
    let server = server_in(folder, json!({})).await;
    let payloads = samples(&server, "judged", singles(&[0.5])).await;
    assert_eq!(payloads[0]["zone"], "zone_c_upper");
    assert_eq!(
        (&payloads[0]["dispersion"], &payloads[0]["rules"]),
        (&Value::Null, &json!([]))
    );
    assert_eq!(violations(&server).await[0]["chart"], Value::Null);
    let ask = json!({"limits": {"method": "moving_range", "samples": 20}});
    server.put("/api/characteristics/judged", ask).await;
    assert_eq!(payload(&server, "judged").await["limits_version"], 1);
    samples(&server, "learning", [json!({"values": [3.0, 4.0]})]).await;
    let learnt = payload(&server, "learning").await;
    assert_eq!(
        (&learnt["center_line"], &learnt["sample_count"]),
        (&json!(2.5), &json!(3))
    );
    assert_eq!(learnt["dispersion"]["ucl"], 3.267);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chart_that_does_not_fit_is_rejected_with_a_reason() {
    let server = server().await;
    server.put("/api/characteristics/one", json!({})).await;
    server
        .put("/api/characteristics/five", json!({"subgroup_size": 5}))
        .await;
    let lines =
        |dispersion: Value| json!({"center_line": 0.0, "ucl": 3.0, "dispersion": dispersion});
    let r = json!({"chart": "r", "center_line": 1.0, "ucl": 2.0});
    for (id, body) in [
        ("one", lines(r.clone())),
        (
            "five",
            lines(json!({"chart": "mr", "center_line": 1.0, "ucl": 2.0})),
        ),
        (
            "five",
            lines(json!({"chart": "xbar", "center_line": 1.0, "ucl": 2.0})),
        ),
        (
            "five",
            lines(json!({"chart": "p", "center_line": 1.0, "ucl": 2.0})),
        ),
        ("five", lines(json!({"chart": "r", "center_line": 1.0}))),
        (
            "five",
            lines(json!({"chart": "r", "center_line": 1.0, "ucl": 1.0, "lcl": 1.0})),
        ),
        (
            "five",
            lines(json!({"chart": "r", "center_line": 1.0, "ucl": 0.5})),
        ),
        ("five", json!({"method": "xbar_s", "dispersion": r})),
        ("one", json!({"method": "xbar_s"})),
        ("five", json!({"method": "moving_range"})),
    ] {
        let path = format!("/api/characteristics/{id}/limits");
        let (status, problem) = answer(server.request("PUT", &path, &worker(1)).json(&body)).await;
        assert_eq!(status, 422, "{body} {problem}");
        assert!(
            problem["detail"].as_str().unwrap().contains('`'),
            "{problem}"
        );
    }
    // A violation that was found elsewhere may say on which chart.
    let path = "/api/characteristics/five/violations";
    let event = server
        .report(path, json!({"rule_id": 101, "chart": "r"}))
        .await;
    assert_eq!(event["payload"]["rule_name"], "Dispersion beyond limits");
    assert_eq!(event["payload"]["chart"], "r");
    let (status, _) = server
        .post(path, &worker(1), json!({"rule_id": 101, "chart": "z"}))
        .await;
    assert_eq!(status, 422);
}
