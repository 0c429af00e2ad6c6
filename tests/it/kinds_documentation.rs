//! `docs/kinds.md` says what the server really does: its generated tables are made anew from a running server and
//! compared. After a change that is meant, `UPDATE_DOCS=1 cargo test kinds_documentation` writes them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tidings::kind::characteristic::nelson::Rule;
use tidings::kind::{DESCRIPTIONS, enrollment};

use crate::support::*;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/kinds.md");

/// What every message has.
const COMMON: [&str; 6] = [
    "type",
    "cursor",
    "school_id",
    "seq",
    "timestamp",
    "snapshot",
];

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rule = vec!["---".to_owned(); head.len()];
    let body: String = rows.iter().map(|row| line(row)).collect();
    format!("\n{}{}{body}\n", line(&head), line(&rule))
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// What came of a request: the status it led to, or the problem.
async fn cell(server: &Server, path: &str, body: Value) -> String {
    let (status, answer) = server.post(path, &worker(1), body).await;
    match status {
        200 | 201 => answer["status"].as_str().unwrap().to_owned(),
        _ => format!("{status} `{}`", answer["code"].as_str().unwrap()),
    }
}

/// Rows are statuses, columns are commands; each cell is tried on a subject of its own.
async fn transitions(
    server: &Server,
    collection: &str,
    statuses: &[(&str, &[(&str, Value)])],
    create: impl Fn(&str) -> Value,
    commands: &[(&str, &str, Value)],
) -> String {
    let mut rows = Vec::new();
    let mut number = 0;
    for (status, steps) in statuses {
        let mut row = vec![code(status)];
        for (_, verb, body) in commands {
            number += 1;
            let id = format!("{collection}-{number}");
            server
                .report(&format!("/api/{collection}"), create(&id))
                .await;
            let mut at = Value::Null;
            for (verb, body) in *steps {
                let path = format!("/api/{collection}/{id}/{verb}");
                at = server.report(&path, body.clone()).await;
            }
            assert!(steps.is_empty() || at["status"] == *status, "{at}");
            let path = format!("/api/{collection}/{id}/{verb}");
            row.push(cell(server, &path, body.clone()).await);
        }
        rows.push(row);
    }
    let mut head = vec!["status"];
    head.extend(commands.iter().map(|(name, ..)| *name));
    table(&head, &rows)
}

/// The own fields of one message of each type, in their order.
fn fields(messages: &[Value], payload: bool) -> String {
    let mut seen: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut order = Vec::new();
    for message in messages {
        let name = message["type"].as_str().unwrap();
        let object = match payload {
            true => message["payload"].as_object().unwrap(),
            false => message.as_object().unwrap(),
        };
        let names = |object: &Map<String, Value>| -> Vec<String> {
            let keys = object
                .keys()
                .filter(|key| payload || !COMMON.contains(&key.as_str()));
            keys.map(|key| code(key)).collect()
        };
        if !seen.contains_key(name) {
            order.push(name);
        }
        let all = seen.entry(name).or_default();
        for field in names(object) {
            if !all.contains(&field) {
                all.push(field);
            }
        }
    }
    let rows: Vec<Vec<String>> = order
        .iter()
        .map(|name| vec![code(name), seen[name].join(", ")])
        .collect();
    table(&["message", "fields"], &rows)
}

async fn job_tables(server: &Server) -> Vec<(&'static str, String)> {
    let error = json!({"error": {"code": "broken", "message": "It broke"}});
    let none = json!({});
    let force = json!({"force": true});
    let start = ("start", none.clone());
    let statuses: [(&str, &[(&str, Value)]); 6] = [
        ("pending", &[]),
        ("queued", &[("queue", none.clone())]),
        ("in_progress", std::slice::from_ref(&start)),
        ("completed", &[start.clone(), ("complete", none.clone())]),
        ("failed", &[("fail", error.clone())]),
        ("cancelled", &[("cancel", none.clone())]),
    ];
    let commands = [
        ("`queue`", "queue", none.clone()),
        ("`start`", "start", none.clone()),
        ("`progress`", "progress", json!({"progress": 1})),
        ("`complete`", "complete", none.clone()),
        ("`fail`", "fail", error.clone()),
        ("`cancel`", "cancel", none.clone()),
        ("`cancel` with `force`", "cancel", force),
        ("`retry`", "retry", none.clone()),
    ];
    let create = |id: &str| json!({"job_id": id, "job_type": "t"});
    let transitions = transitions(server, "jobs", &statuses, create, &commands).await;
    server.running_job("a").await;
    let done = server.report("/api/jobs/a/complete", json!({})).await;
    server.running_job("b").await;
    let failed = server.report("/api/jobs/b/fail", error).await;
    vec![
        ("job transitions", transitions),
        ("job messages", fields(&[done, failed], false)),
    ]
}

async fn enrollment_tables(server: &Server) -> Vec<(&'static str, String)> {
    let step = |status: &str| ("progress", json!({"status": status}));
    let none = json!({});
    let code_of = json!({"code": "duplicate_finger"});
    let statuses: [(&str, &[(&str, Value)]); 7] = [
        ("ready", &[]),
        ("placing", &[step("placing")]),
        ("capturing", &[step("capturing")]),
        ("processing", &[step("processing")]),
        ("complete", &[("complete", none.clone())]),
        ("error", &[("error", code_of.clone())]),
        ("cancelled", &[("cancel", none.clone())]),
    ];
    let commands = [
        (
            "`progress` placing",
            "progress",
            json!({"status": "placing"}),
        ),
        (
            "`progress` capturing",
            "progress",
            json!({"status": "capturing"}),
        ),
        (
            "`progress` processing",
            "progress",
            json!({"status": "processing"}),
        ),
        ("`complete`", "complete", none.clone()),
        ("`error`", "error", code_of.clone()),
        ("`cancel`", "cancel", none.clone()),
    ];
    let create = |id: &str| json!({"session_id": id, "device_id": format!("d-{id}")});
    let transitions = transitions(server, "enrollments", &statuses, create, &commands).await;
    let mut events = Vec::new();
    for (id, verb, body) in [
        ("a", "complete", json!({"quality_score": 80})),
        ("b", "error", code_of),
        ("c", "cancel", none),
    ] {
        events.push(server.report("/api/enrollments", create(id)).await);
        let path = format!("/api/enrollments/{id}/{verb}");
        events.push(server.report(&path, body).await);
    }
    let codes: Vec<Vec<String>> = enrollment::ERROR_CODES
        .iter()
        .map(|(name, text)| vec![code(name), (*text).to_owned()])
        .collect();
    vec![
        ("enrollment transitions", transitions),
        (
            "enrollment codes",
            table(&["code", "default text of `error`"], &codes),
        ),
        ("enrollment messages", fields(&events, false)),
    ]
}

async fn device_tables(server: &Server) -> Vec<(&'static str, String)> {
    let put = async |id: &str| {
        let path = format!("/api/devices/{id}");
        let body = json!({"info": {"model": "X"}});
        let (_, response) = answer(server.request("PUT", &path, &worker(1)).json(&body)).await;
        response
    };
    let mut rows = Vec::new();
    let mut events = Vec::new();
    for status in ["unknown", "online", "offline"] {
        let mut row = vec![code(status)];
        for (verb, times, body) in [
            ("heartbeat", 1, json!({})),
            ("heartbeat", 2, json!({})),
            ("status", 1, json!({"status": "online"})),
            ("status", 1, json!({"status": "offline"})),
        ] {
            let id = format!("{status}-{}", row.len());
            events.push(put(&id).await);
            if status != "unknown" {
                let path = format!("/api/devices/{id}/status");
                server.report(&path, json!({"status": status})).await;
            }
            let path = format!("/api/devices/{id}/{verb}");
            let mut last = String::new();
            for _ in 0..times {
                last = cell(server, &path, body.clone()).await;
            }
            row.push(last);
        }
        rows.push(row);
    }
    let info = json!({"info": {"model": "Y"}});
    events.push(server.report("/api/devices/online-1/info", info).await);
    let head = [
        "status",
        "one heartbeat",
        "two heartbeats",
        "`status` online",
        "`status` offline",
    ];
    vec![
        ("device transitions", table(&head, &rows)),
        ("device messages", fields(&events, false)),
    ]
}

async fn characteristic_tables(server: &Server) -> Vec<(&'static str, String)> {
    let rules: Vec<Vec<String>> = Rule::ALL
        .iter()
        .map(|rule| {
            let number = rule.number().to_string();
            vec![
                number,
                rule.name().to_owned(),
                rule.description().to_owned(),
            ]
        })
        .collect();
    let dispersion = json!({"chart": "r", "center_line": 0.2, "ucl": 0.4});
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0, "dispersion": dispersion});
    let register = json!({"limits": limits, "subgroup_size": 2, "rules": [1, 101]});
    let put = server.request("PUT", "/api/characteristics/a", &worker(1));
    let (_, begun) = answer(put.json(&register)).await;
    let path = "/api/characteristics/a/samples";
    server.report(path, json!({"values": [9.0, 9.5]})).await;
    server
        .report("/api/violations/a.1/ack", json!({"reason": "Known"}))
        .await;
    let since = begun["cursor"].as_str().unwrap();
    let of = async |scope: &str| -> Vec<Value> {
        let mut listener = server.resume(Transport::WebSocket, scope, since).await;
        let messages = listener.until_ready().await;
        let mut states = vec![];
        let fresh = format!("{scope}{}", if scope.contains('?') { "&" } else { "?" });
        let mut snapshot = server.listen(Transport::WebSocket, &fresh).await;
        states.extend(
            snapshot
                .until_ready()
                .await
                .into_iter()
                .filter(|message| message["snapshot"] == true),
        );
        states.retain(|message| message["type"] != "sample");
        states.extend(messages[1..messages.len() - 1].iter().cloned());
        states
    };
    let enveloped = of("/characteristics/a").await;
    let flat = of("/characteristics/a?shape=flat").await;
    vec![
        (
            "nelson rules",
            table(&["rule", "name", "broken when"], &rules),
        ),
        ("characteristic messages", fields(&enveloped, true)),
        ("flat messages", fields(&flat, false)),
    ]
}

async fn schedule_tables(server: &Server) -> Vec<(&'static str, String)> {
    let rule = json!({"cron": "0 0 1 1 *", "grace_secs": 60, "max_run_secs": 1});
    let put = async |id: &str, body: &Value| {
        let path = format!("/api/schedules/{id}");
        answer(server.request("PUT", &path, &worker(1)).json(body))
            .await
            .1
    };
    let response = put("t-0", &rule).await;
    let mut rows = Vec::new();
    // How a run is missed takes a minute at least: tests/it/schedules.rs moves the clock.
    for status in ["on_time", "late", "removed"] {
        let mut row = vec![code(status)];
        for command in ["put", "remove", "complete"] {
            let id = format!("{status}-{command}");
            let job = format!("job-{id}");
            put(&id, &rule).await;
            let reached = async |wanted: &str| {
                until("the schedule is there", async || {
                    let path = format!("/api/schedules/{id}");
                    server.get(&path, &worker(1)).await.1["status"] == wanted
                })
                .await;
            };
            let seen = async |wanted: &str| {
                until("the run is seen", async || {
                    let path = format!("/api/schedules/{id}");
                    let schedule = server.get(&path, &worker(1)).await.1;
                    schedule["last_run"]["status"] == wanted || schedule["status"] == "removed"
                })
                .await;
            };
            let start = json!({"job_id": job, "job_type": id, "status": "in_progress"});
            if status == "late" {
                server.report("/api/jobs", start.clone()).await;
                reached("late").await;
            }
            if status == "removed" {
                let path = format!("/api/schedules/{id}/remove");
                server.report(&path, json!({})).await;
            }
            match command {
                "put" => {
                    let other = json!({"period_secs": 86_400, "max_run_secs": 60});
                    put(&id, &other).await;
                }
                "remove" => {
                    let path = format!("/api/schedules/{id}");
                    answer(server.request("DELETE", &path, &worker(1))).await;
                }
                _ => {
                    if status != "late" {
                        server.report("/api/jobs", start).await;
                    }
                    let path = format!("/api/jobs/{job}/complete");
                    server.report(&path, json!({})).await;
                    seen("completed").await;
                }
            }
            let path = format!("/api/schedules/{id}");
            let schedule = server.get(&path, &worker(1)).await.1;
            row.push(schedule["status"].as_str().unwrap().to_owned());
        }
        rows.push(row);
    }
    let head = [
        "status",
        "`PUT` of another rule",
        "`DELETE`",
        "the last run ends",
    ];
    vec![
        ("schedule transitions", table(&head, &rows)),
        ("schedule messages", fields(&[response], false)),
    ]
}

async fn upload_tables(server: &Server) -> Vec<(&'static str, String)> {
    let path = "/ws/upload-progress";
    server.running_job("upload").await;
    let mut socket = listener::socket(&server.url, path, &viewer(1)).await;
    let mut received = Vec::new();
    for _ in 0..2 {
        received.push(listener::receive(&mut socket).await.unwrap());
    }
    vec![("upload messages", fields(&received, false))]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn the_generated_tables_are_what_the_server_does() {
    let server = server().await;
    let mut tables = job_tables(&server).await;
    tables.extend(enrollment_tables(&server).await);
    tables.extend(device_tables(&server).await);
    tables.extend(characteristic_tables(&server).await);
    tables.extend(schedule_tables(&server).await);
    tables.extend(upload_tables(&server).await);
    let text = std::fs::read_to_string(PATH).unwrap();
    let mut fresh = text.clone();
    for (name, table) in tables {
        let mark = format!("<!-- generated: {name} -->\n");
        let start = fresh.find(&mark).unwrap_or_else(|| panic!("no {name}")) + mark.len();
        let end = start + fresh[start..].find("<!-- end -->").unwrap();
        fresh.replace_range(start..end, &table);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PATH, fresh).unwrap();
        return;
    }
    for (old, new) in text.lines().zip(fresh.lines()) {
        assert_eq!(old, new, "UPDATE_DOCS=1 cargo test kinds_documentation");
    }
    assert_eq!(text, fresh);
}

#[test]
fn every_status_and_every_message_of_every_kind_is_documented() {
    let text = std::fs::read_to_string(PATH).unwrap();
    for kind in DESCRIPTIONS {
        let start = text
            .find(&format!("\n## {}", kind.noun))
            .unwrap_or_else(|| panic!("{}", kind.noun));
        let rest = &text[start + 4..];
        let section = &rest[..rest.find("\n## ").unwrap_or(rest.len())];
        for status in kind.statuses {
            assert!(section.contains(&format!("\n| `{status}` |")), "{status}");
        }
        for event_type in kind.event_types {
            let row = format!("\n| `{}` |", event_type.name);
            assert!(section.contains(&row), "{}", event_type.name);
        }
    }
}
