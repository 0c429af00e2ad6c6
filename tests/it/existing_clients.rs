//! Front ends that exist connect without a change: each endpoint that they use, heard by clients that are not ours.

/// Runs each scenario in Python, in Node and in a browser, each time on a server of its own.
macro_rules! over_every_client {
    ($($(#[$meta:meta])* async fn $name:ident($clients:ident) $body:block)*) => {
        $(
            mod $name {
                use super::*;

                pub(super) async fn scenario($clients: &Clients) $body

                $(#[$meta])*
                #[tokio::test(flavor = "multi_thread")]
                async fn in_python() {
                    if let Some(clients) = Clients::in_python().await { scenario(&clients).await }
                }

                $(#[$meta])*
                #[tokio::test(flavor = "multi_thread")]
                async fn in_node() {
                    if let Some(clients) = Clients::in_node().await { scenario(&clients).await }
                }
            }
        )*

        /// One browser for all: it takes longer to start than they take together.
        #[tokio::test(flavor = "multi_thread")]
        #[ignore = "slow: a real browser"]
        async fn in_a_browser() {
            let Some(clients) = Clients::in_a_browser().await else { return };
            $(
                eprintln!("{}", stringify!($name));
                $name::scenario(&clients).await;
            )*
        }
    };
}

mod agreement;
mod manners;
mod messages;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::clients::{Client, Clients};
use crate::support::*;

/// What a bare text `ping` gets.
enum BarePing {
    Pong,
    BarePong,
    Error,
}

/// An endpoint's ways, as existing clients know them, and the scope that tells the same.
struct Endpoint {
    path: &'static str,
    /// The close code for those who may not.
    rejection: u16,
    /// Whether an `error` comes before it.
    explains: bool,
    bare_ping: BarePing,
    /// What is sent first, where nothing comes without it.
    subscribe: Option<&'static str>,
    /// The type of its first message.
    first: &'static str,
    /// Below `/events`.
    scope: &'static str,
}

const ENROLLMENT: Endpoint = Endpoint {
    path: "/ws/enrollment",
    rejection: 1008,
    explains: false,
    bare_ping: BarePing::Pong,
    subscribe: None,
    first: "connected",
    scope: "/enrollments?",
};
const SAMPLES: Endpoint = Endpoint {
    path: "/ws/samples",
    rejection: 4001,
    explains: true,
    bare_ping: BarePing::Error,
    subscribe: Some(r#"{"type":"subscribe","characteristic_ids":[1]}"#),
    first: "subscribed",
    scope: "/characteristics?ids=1&shape=flat&id_type=number&",
};
const UPLOADS: Endpoint = Endpoint {
    path: "/ws/upload-progress",
    bare_ping: BarePing::BarePong,
    first: "initial_state",
    scope: "/jobs?",
    ..ENROLLMENT
};

/// Every endpoint, in every way to ask for it.
const ENDPOINTS: [Endpoint; 11] = [
    ENROLLMENT,
    Endpoint {
        path: "/ws/enrollment?session_id=s",
        scope: "/enrollments/s?",
        ..ENROLLMENT
    },
    Endpoint {
        path: "/ws/device-status",
        scope: "/devices?id_type=number&",
        ..ENROLLMENT
    },
    Endpoint {
        path: "/progress/ws/7",
        explains: true,
        bare_ping: BarePing::Error,
        first: "job_progress",
        scope: "/jobs/7?",
        ..ENROLLMENT
    },
    SAMPLES,
    Endpoint {
        path: "/ws/samples?shape=enveloped",
        scope: "/characteristics/1?id_type=number&",
        ..SAMPLES
    },
    Endpoint {
        path: "/ws",
        subscribe: Some(r#"{"action":"subscribe","characteristic_id":"1"}"#),
        scope: "/characteristics?ids=1&",
        ..SAMPLES
    },
    Endpoint {
        path: "/ws?shape=flat",
        subscribe: Some(r#"{"action":"subscribe","job_id":7}"#),
        scope: "/jobs/7?",
        ..SAMPLES
    },
    UPLOADS,
    Endpoint {
        path: "/ws/upload-progress/7",
        scope: "/jobs/7?",
        ..UPLOADS
    },
    Endpoint {
        path: "/ws/upload-progress?job_type=scan",
        scope: "/jobs?job_type=scan&",
        ..UPLOADS
    },
];

impl Endpoint {
    /// Opens it, and subscribes where that is needed.
    async fn open(
        &self,
        clients: &Clients,
        server: &Server,
        token: &str,
        cursor: Option<&str>,
    ) -> Client {
        let client = clients
            .open_as(server, self.path, Some(token), cursor)
            .await;
        if let Some(subscribe) = self.subscribe {
            client.send(subscribe).await;
        }
        client
    }

    /// Which of the answers to writes is the event that is sent here.
    fn event_in<'a>(&self, answers: &'a [Value]) -> &'a Value {
        let is_sent_here = |answer: &&Value| match answer["type"].as_str().unwrap() {
            "job_progress" => self.scope.starts_with("/jobs"),
            "device_status_update" => self.scope.starts_with("/devices"),
            "sample" => self.scope.starts_with("/characteristics"),
            _ => self.scope.starts_with("/enrollments"),
        };
        answers.iter().find(is_sent_here).unwrap()
    }
}

/// A write that must succeed, as a worker of a school.
async fn write(server: &Server, school: i64, call: &str, body: Value) -> Value {
    let (method, path) = call.split_once(' ').unwrap();
    let request = server.request(method, path, &worker(school));
    let (status, answer) = answer(request.json(&body)).await;
    assert!(status < 300, "{call} {body}: {status} {answer}");
    answer
}

/// One running subject of each kind, by the same ids in every school.
async fn furnish(server: &Server, school: i64) {
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
    for (call, body) in [
        (
            "POST /api/jobs",
            json!({"job_id": "7", "job_type": "scan", "status": "in_progress", "metadata": {"file_id": "f7"}}),
        ),
        (
            "POST /api/enrollments",
            json!({"session_id": "s", "device_id": "door", "student_id": 4711}),
        ),
        ("PUT /api/devices/door", json!({"name": "Front door"})),
        (
            "PUT /api/characteristics/1",
            json!({"limits": limits, "rules": [1]}),
        ),
    ] {
        write(server, school, call, body).await;
    }
}

/// One event of each kind. `step` counts on.
async fn happen(server: &Server, school: i64, step: &mut u32) -> Vec<Value> {
    *step += 1;
    let status = ["offline", "online"][*step as usize % 2];
    let mut answers = Vec::new();
    for (call, body) in [
        ("POST /api/jobs/7/progress", json!({"progress": step})),
        (
            "POST /api/enrollments/s/progress",
            json!({"message": format!("Step {step}")}),
        ),
        ("POST /api/devices/door/status", json!({"status": status})),
        (
            "POST /api/characteristics/1/samples",
            json!({"value": f64::from(*step) / 100.0}),
        ),
    ] {
        answers.push(write(server, school, call, body).await);
    }
    answers
}

/// The events among what comes up to and with this one.
async fn events_until(client: &mut Client, last: &Value) -> Vec<Value> {
    let mut events = Vec::new();
    loop {
        let message = client.next().await;
        if message["seq"].is_u64() {
            let is_last = message["seq"] == last["seq"];
            events.push(message);
            if is_last {
                return events;
            }
        }
    }
}

/// Lets things happen until one is heard live: after the snapshot, and after `ready` where that is sent. Returns its `seq`.
async fn until_live(
    endpoint: &Endpoint,
    client: &mut Client,
    server: &Server,
    step: &mut u32,
) -> Value {
    let mut is_ready = endpoint.path.split('?').next() != Some("/ws");
    loop {
        let events = happen(server, 1, step).await;
        let seq = endpoint.event_in(&events)["seq"].clone();
        let last = loop {
            let message = client.next().await;
            is_ready |= message["type"] == "ready";
            if message["seq"] == seq {
                break message;
            }
        };
        if is_ready && last.get("snapshot").is_none() {
            return seq;
        }
    }
}

/// Asserts that an object has these fields, and no others.
#[track_caller]
fn assert_fields(object: &Value, groups: &[&str]) {
    let expected: BTreeSet<&str> = groups.iter().flat_map(|group| group.split(' ')).collect();
    let found: BTreeSet<&str> = object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(found, expected, "{object:#}");
}

/// Asserts that an object has these fields with these values, whatever others it has.
#[track_caller]
fn assert_has(object: &Value, expected: Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&object[name], value, "{name} of {object:#}");
    }
}

/// The fields of every event.
const EVENT: &str = "type cursor school_id seq timestamp";
