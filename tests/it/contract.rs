//! The descriptions of the interface, `/openapi.json` and `/asyncapi.json`, are complete and true.

use std::collections::BTreeSet;

use serde_json::Value;
use tidings::http::problem::PROBLEMS;
use tidings::kind::DESCRIPTIONS;

use crate::support::*;

/// Every operation: method and path.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap();
        methods
            .iter()
            .map(|(method, operation)| (method.to_uppercase(), path.clone(), operation.clone()))
    });
    all.collect()
}

/// Whether a route of Rocket serves a path of the document.
fn serves(route: &str, path: &str) -> bool {
    let mut path = path.split('/').filter(|part| !part.is_empty());
    for part in route.split('/').filter(|part| !part.is_empty()) {
        match (part.ends_with("..>"), path.next()) {
            (true, _) => return true,
            (false, Some(segment)) if part.starts_with('<') || part == segment => {}
            (false, _) => return false,
        }
    }
    path.next().is_none()
}

#[tokio::test]
async fn every_route_is_described_and_nothing_else_is() {
    let server = server().await;
    let (status, document) = server.get("/openapi.json", "").await;
    assert_eq!(status, 200);
    assert_eq!(document, tidings::http::openapi(""));
    let operations = operations(&document);
    for (method, path, _) in &operations {
        let mut named = std::collections::HashSet::new();
        let mut parameters = path.split('/').filter(|part| part.starts_with('{'));
        let is_named_once = parameters.all(|part| named.insert(part));
        assert!(is_named_once, "{method} {path} names a parameter twice");
    }
    let routes = tidings::http::routes();
    let is_preflight = |route: &&rocket::Route| route.method.as_str() != "OPTIONS";
    for route in routes.iter().filter(is_preflight) {
        let (method, uri) = (route.method.as_str(), route.uri.path());
        let described = operations
            .iter()
            .filter(|(described_method, path, _)| described_method == method && serves(uri, path));
        assert!(described.count() > 0, "{method} {uri} is not described");
        // Parameters that the route itself declares.
        for field in route.uri.query().unwrap_or_default().split('&') {
            let name = field.trim_matches(['<', '>', '.']);
            let has = |operation: &Value| {
                let parameters = operation["parameters"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                parameters.iter().any(|parameter| parameter["name"] == name)
            };
            let described = operations
                .iter()
                .any(|(described_method, path, operation)| {
                    described_method == method && serves(uri, path) && has(operation)
                });
            assert!(name.is_empty() || described, "{method} {uri}?{field}");
        }
    }
    for (method, path, _) in &operations {
        let served = routes
            .iter()
            .any(|route| route.method.as_str() == method && serves(route.uri.path(), path));
        assert!(
            served,
            "{method} {path} is described, but no route serves it"
        );
    }
    for description in DESCRIPTIONS {
        let collection = description.kind.collection();
        for verb in description.verbs {
            let id = description.id_field;
            let path = format!("/api/{collection}/{{{id}}}/{verb}");
            let found = operations
                .iter()
                .any(|(method, described, _)| method == "POST" && *described == path);
            assert!(found, "{path}");
        }
    }
}

#[test]
fn every_problem_is_described_with_an_example() {
    let document = tidings::http::openapi("");
    let mut named = BTreeSet::new();
    for (_, _, operation) in operations(&document) {
        for (status, answer) in operation["responses"].as_object().unwrap() {
            let content = &answer["content"]["application/problem+json"];
            let Some(examples) = content["examples"].as_object() else {
                continue;
            };
            for code in examples.keys() {
                let example = &document["components"]["examples"][code]["value"];
                assert_eq!(example["status"].to_string(), *status, "{code}");
                assert_eq!(&example["code"], code);
                named.insert(code.clone());
            }
        }
    }
    // Some are the answer to a request that no operation takes.
    let others = document["components"]["schemas"]["Problem"]["examples"].as_array();
    let others = others
        .unwrap()
        .iter()
        .filter_map(|entry| entry["code"].as_str());
    assert!(others.clone().count() <= 2);
    named.extend(others.map(str::to_owned));
    for (_, uri, ..) in PROBLEMS {
        let code = uri.rsplit(':').next().unwrap();
        assert!(named.contains(code), "{code}");
    }
}

#[test]
fn every_parameter_that_a_stream_reads_is_described() {
    let document = tidings::http::openapi("");
    let source = include_str!("../../src/http/stream/params.rs");
    let parameters = document["paths"]["/events"]["get"]["parameters"]
        .as_array()
        .unwrap();
    let collection = document["paths"]["/events/jobs"]["get"]["parameters"]
        .as_array()
        .unwrap();
    let known: BTreeSet<_> = parameters
        .iter()
        .chain(collection)
        .filter_map(|parameter| parameter["name"].as_str())
        .collect();
    let mut read = 0;
    for opening in [
        "query(request, \"",
        "number(\"",
        "field.name == \"",
        "get_one(\"",
    ] {
        for rest in source.split(opening).skip(1) {
            let name = rest.split('"').next().unwrap();
            assert!(known.contains(name), "{name}");
            read += 1;
        }
    }
    assert!(read > 12, "{read}");
}

#[test]
fn every_message_of_every_kind_is_described() {
    let document = tidings::http::asyncapi("");
    let messages = document["components"]["messages"].as_object().unwrap();
    let has = |name: &str| {
        messages
            .values()
            .any(|message| message["payload"]["properties"]["type"]["const"] == name)
    };
    let types = DESCRIPTIONS
        .iter()
        .flat_map(|description| description.event_types);
    for event_type in types {
        assert!(has(event_type.name), "{}", event_type.name);
    }
    for name in [
        "connected",
        "ready",
        "reset",
        "heartbeat",
        "closing",
        "error",
        "pong",
        "subscribed",
        "unsubscribed",
        "authenticated",
        "limits_update",
        "progress_update",
        "initial_state",
        "ping",
        "subscribe",
        "unsubscribe",
        "auth",
    ] {
        assert!(has(name), "{name}");
    }
    for (name, message) in messages {
        let about = message["payload"]["description"].as_str();
        let is_bare = message["payload"]["type"] == "string";
        assert!(is_bare || about.is_some(), "{name} is not explained");
    }
}

/// Behind a proxy, the server is mounted elsewhere than without it.
#[tokio::test]
async fn each_request_learns_where_the_server_is_mounted_for_it() {
    let server = server().await;
    let documents = async |prefix: &str| {
        let read = async |path: &str| {
            let request = server.http.get(format!("{}{path}", server.url));
            answer(request.header("X-Forwarded-Prefix", prefix)).await.1
        };
        (read("/openapi.json").await, read("/asyncapi.json").await)
    };
    for (prefix, expected) in [("/live", "/live"), ("", "/"), ("/a/b", "/a/b")] {
        let (openapi, asyncapi) = documents(prefix).await;
        assert_eq!(openapi["servers"][0]["url"], expected);
        let text = asyncapi["servers"].to_string();
        assert!(
            text.contains(&format!(r#""pathname":"{expected}""#)),
            "{text}"
        );
    }
}
