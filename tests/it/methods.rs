//! Every address takes exactly the methods that `Allow` names when another one is used.

use std::collections::BTreeSet;
use std::sync::Arc;

use reqwest::header::ALLOW;
use serde_json::json;

use crate::embed::example;
use crate::support::*;

/// The last one is unknown to Rocket.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"];

/// Addresses with the methods that they take.
const ADDRESSES: &[(&str, &str)] = &[
    ("/healthz", "GET, HEAD"),
    ("/readyz", "GET, HEAD"),
    ("/metrics", "GET, HEAD"),
    ("/api/batch", "POST"),
    ("/api/tickets", "POST"),
    ("/api/jobs", "GET, HEAD, POST"),
    ("/api/jobs/a", "GET, HEAD"),
    ("/api/jobs/a/queue", "POST"),
    ("/api/jobs/a/start", "POST"),
    ("/api/jobs/a/progress", "POST"),
    ("/api/jobs/a/complete", "POST"),
    ("/api/jobs/a/fail", "POST"),
    ("/api/jobs/a/cancel", "POST"),
    ("/api/jobs/a/retry", "POST"),
    ("/api/j%6Fbs/a/retr%79", "POST"),
    ("/api/enrollments", "GET, HEAD, POST"),
    ("/api/enrollments/s", "GET, HEAD"),
    ("/api/enrollments/s/progress", "POST"),
    ("/api/enrollments/s/complete", "POST"),
    ("/api/enrollments/s/error", "POST"),
    ("/api/enrollments/s/cancel", "POST"),
    ("/api/devices", "GET, HEAD"),
    ("/api/devices/d", "GET, HEAD, PUT"),
    ("/api/devices/d/heartbeat", "POST"),
    ("/api/devices/d/status", "POST"),
    ("/api/devices/d/info", "POST"),
    ("/api/characteristics", "GET, HEAD"),
    ("/api/characteristics/c", "GET, HEAD, PUT"),
    ("/api/characteristics/c/samples", "POST"),
    ("/api/characteristics/c/violations", "POST"),
    ("/api/characteristics/c/limits", "POST, PUT"),
    ("/api/schedules", "GET, HEAD"),
    ("/api/schedules/t", "DELETE, GET, HEAD, PUT"),
    ("/api/schedules/t/remove", "POST"),
    ("/api/pings", "GET, HEAD, POST"),
    ("/api/pings/k", "DELETE"),
    ("/openapi.json", "GET, HEAD"),
    ("/asyncapi.json", "GET, HEAD"),
    ("/api/links", "POST"),
    ("/badge/jobs/a.svg", "GET, HEAD"),
    ("/embed/jobs/a", "GET, HEAD, POST"),
    ("/api/violations", "GET, HEAD"),
    ("/api/violations/c.1/ack", "POST"),
    ("/api/violations/c.1/unack", "POST"),
    ("/api/notifiers", "GET, HEAD"),
    ("/api/notifiers/n/dead-letters", "GET, HEAD"),
    ("/api/notifiers/n/set-aside", "GET, HEAD"),
    ("/events/jobs", "GET, HEAD"),
    ("/ws", "GET, HEAD"),
    ("/ws/samples", "GET, HEAD"),
    ("/ws/enrollment", "GET, HEAD"),
    ("/ws/device-status", "GET, HEAD"),
    ("/ws/upload-progress", "GET, HEAD"),
    ("/ws/upload-progress/a", "GET, HEAD"),
    ("/progress/ws/a", "GET, HEAD"),
    ("/monitor", "GET, HEAD"),
    ("/monitor/sign-in", "GET, HEAD, POST"),
    ("/monitor/sign-out", "POST"),
    ("/monitor/look", "POST"),
    ("/monitor/system", "GET, HEAD"),
    ("/monitor/schools/1", "GET, HEAD"),
    ("/monitor/schools/1/jobs", "GET, HEAD"),
    ("/monitor/schools/1/devices", "GET, HEAD"),
    ("/monitor/schools/1/system", "GET, HEAD"),
    ("/monitor/schools/1/jobs/a", "GET, HEAD"),
    ("/monitor/schools/1/jobs/a/cancel", "POST"),
    ("/monitor/schools/1/jobs/a/retry", "POST"),
    ("/monitor/schools/1/devices/d", "GET, HEAD"),
    ("/monitor/schools/1/characteristics/c", "GET, HEAD"),
    ("/monitor/schools/1/violations", "GET, HEAD"),
    ("/monitor/schools/1/violations/c.1/ack", "POST"),
];

/// Where there is nothing, whatever the method.
const NOTHING: &[&str] = &[
    "/nowhere",
    "/api",
    "/api/cats",
    "/api/cats/1",
    "/api/cats/1/feed",
    "/api/jobs/a/dance",
    "/api/jobs/a/start/now",
    "/api/devices/d/retry",
    "/api/batch/1",
    "/api/tickets/1/2",
    "/api/violations/c.1",
    "/api/violations/c.1/forget",
    "/api/notifiers/n",
    "/healthz/now",
    "/ws/cats",
    "/monitor/cats",
    "/monitor/schools/1/cats",
    "/monitor/schools/1/jobs/a/dance",
];

/// An address as it is, with a slash at its end, and with each slash but the first twice.
fn with_slashes(path: &str) -> [String; 3] {
    let path = path.trim_end_matches('/');
    let doubled = path.replace('/', "//").replacen("//", "/", 1);
    let rooted = |path: String| if path.is_empty() { "/".into() } else { path };
    [path.to_owned(), format!("{path}/"), doubled].map(rooted)
}

/// Asks every address for every method, below `base`, whatever its slashes.
async fn every_address_is_exact(server: &Server, base: &str) {
    let post = async |path: &str, body| {
        let request = server.request("POST", &format!("{base}{path}"), &worker(1));
        assert!(
            request
                .json(&body)
                .send()
                .await
                .unwrap()
                .status()
                .is_success()
        );
    };
    let put = async |path: &str| {
        let request = server.request("PUT", &format!("{base}{path}"), &worker(1));
        assert!(
            request
                .json(&json!({}))
                .send()
                .await
                .unwrap()
                .status()
                .is_success()
        );
    };
    post("/api/jobs", json!({"job_id": "a", "job_type": "t"})).await;
    post("/api/enrollments", json!({"session_id": "s"})).await;
    put("/api/devices/d").await;
    put("/api/characteristics/c").await;
    let rule = server.request("PUT", &format!("{base}/api/schedules/t"), &worker(1));
    let rule = rule.json(&json!({"period_secs": 60})).send();
    assert_eq!(rule.await.unwrap().status(), 200);
    let violation = json!({"rule_id": 1, "rule_name": "Odd"});
    post("/api/characteristics/c/violations", violation).await;
    for method in METHODS {
        let addresses = ADDRESSES
            .iter()
            .flat_map(|(path, allowed)| with_slashes(path).map(|path| (path, allowed)));
        for (path, allowed) in addresses {
            let request = server.request(method, &format!("{base}{path}"), &worker(1));
            let response = request.send().await.unwrap();
            let (status, allow) = (response.status().as_u16(), response.headers().get(ALLOW));
            let what = format!("{method} {base}{path}: {status} {allow:?}");
            if allowed.split(", ").any(|known| known == method) {
                assert!(
                    ![404, 405, 500].contains(&status) && allow.is_none(),
                    "{what}"
                );
            } else {
                assert_eq!(status, 405, "{what}");
                assert_eq!(allow.unwrap(), *allowed, "{what}");
            }
        }
        for path in NOTHING.iter().flat_map(|path| with_slashes(path)) {
            let request = server.request(method, &format!("{base}{path}"), &worker(1));
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 404, "{method} {base}{path}");
            assert_eq!(response.headers().get(ALLOW), None, "{method} {base}{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: every method of every address"]
async fn every_address_takes_exactly_the_methods_that_it_names_wherever_it_is_mounted() {
    let server = server().await;
    every_address_is_exact(&server, "").await;
    drop(server);
    let server = server_with(json!({"base_path": "/tidings"})).await;
    every_address_is_exact(&server, "/tidings").await;
    drop(server);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let application = example::application(figment(&folder, &json!({})));
    let server = launch(application, folder).await;
    every_address_is_exact(&server, "/live").await;
    let deletion = server.http.delete(format!("{}/import", server.url));
    assert_eq!(
        deletion.send().await.unwrap().status(),
        404,
        "the application's own"
    );
}

/// The table above knows every route, and every verb of every kind.
#[test]
fn every_route_is_in_the_table() {
    let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let is_known = |route: &rocket::Route| {
        let form = parts(route.uri.path());
        ADDRESSES.iter().any(|(path, allowed)| {
            let path = parts(path);
            let fits = |(form, part): (&String, &String)| form.starts_with('<') || form == part;
            let is_one = |method| method == route.method.as_str();
            let is_open = form.last().is_some_and(|last| last.ends_with("..>"));
            (is_open || form.len() == path.len())
                && form.iter().zip(&path).all(fits)
                && allowed.split(", ").any(is_one)
        })
    };
    let unknown: BTreeSet<String> = tidings::http::routes()
        .iter()
        .filter(|route| route.method != rocket::http::Method::Options && !is_known(route))
        .map(|route| format!("{} {}", route.method, route.uri.path()))
        .collect();
    // The names of some have a digest in it, the others have a key.
    let others = [
        "GET /embed-files/<file>",
        "GET /monitor/assets/<file>",
        "GET /ping/<key>/<rest..>",
        "POST /ping/<key>/<rest..>",
    ];
    assert_eq!(unknown, others.map(str::to_owned).into());
    for kind in tidings::kind::DESCRIPTIONS {
        for verb in kind.verbs {
            let collection = kind.kind.collection();
            let is_of_verb = |path: &str| {
                path.starts_with(&format!("/api/{collection}/"))
                    && path.ends_with(&format!("/{verb}"))
            };
            let mut paths = ADDRESSES.iter().map(|(path, _)| path);
            assert!(paths.any(|path| is_of_verb(path)), "{collection} {verb}");
        }
    }
}
