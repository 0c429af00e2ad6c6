//! Home Assistant: one live notification for each subject, and its result.

use rocket::http::Status;
use rocket::{State, post, routes};
use serde_json::{Value, json};
use tidings::config::Bounded;
use tidings::config::notifiers::HomeAssistantSettings;
use tidings::notify::home_assistant::HomeAssistant;
use tidings::notify::notification::{DeliveryError, Medium, Notification};
use tokio::sync::mpsc;

use super::ntfy::{Authorization, Sent, job, receiver};
use crate::support::*;

/// As Home Assistant calls an action.
#[post("/home/api/services/notify/mobile_app_phone", data = "<body>")]
fn notify(body: String, authorization: Authorization, sent: &State<Sent>) -> Status {
    let body: Value = serde_json::from_str(&body).unwrap();
    let tag = body["data"]["tag"].as_str().unwrap();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    // As iOS accepts it.
    if !(1..=64).contains(&tag.len()) || !tag.bytes().all(plain) || !body["message"].is_string() {
        return Status::BadRequest;
    }
    sent.0.send((authorization.0, body)).unwrap();
    Status::Ok
}

/// As Home Assistant answers for a service that does not exist, or does not exist yet.
#[post("/home/api/services/notify/nobody")]
fn unknown() -> Status {
    Status::BadRequest
}

async fn notifying(receiver: &Server, rules: Value) -> Server {
    let home_assistant = json!({
        "url": format!("{}/home/", receiver.url),
        "service": "mobile_app_phone",
        "token": "long-lived",
        "monitor_url": "https://tidings.example/monitor/",
    });
    let notifier = json!({"name": "phone", "rules": rules, "home_assistant": home_assistant});
    server_with(json!({ "notifiers": [notifier] })).await
}

/// Returns the bodies until one has this message.
async fn bodies(
    received: &mut mpsc::UnboundedReceiver<(Option<String>, Value)>,
    last: &str,
) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    while all.last().is_none_or(|body| body["message"] != last) {
        let next = tokio::time::timeout(PATIENCE, received.recv()).await;
        let (authorization, body) = next.unwrap_or_else(|_| panic!("{last}: {all:#?}")).unwrap();
        assert_eq!(authorization.as_deref(), Some("Bearer long-lived"));
        all.push(body);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_a_live_notification_that_is_replaced_by_its_result() {
    let (receiver, mut received) = receiver(routes![notify]).await;
    let server = notifying(&receiver, json!([{"every": "25 %"}])).await;
    job(&server, "é", &[1.0, 30.5, 60.0]).await;
    let sent = bodies(&mut received, "failed: No space").await;
    let (live, end) = sent.split_at(sent.len() - 2);
    let tag = &live[0]["data"]["tag"];
    for update in live {
        let data = &update["data"];
        assert_eq!((&data["tag"], &update["title"]), (tag, &json!("Prüfung")));
        assert!(
            data["live_update"] == true && data["alert_once"] == true,
            "{update}"
        );
        assert_eq!(data["push"]["interruption-level"], "passive", "{update}");
        let page = "https://tidings.example/monitor/schools/1/jobs/%C3%A9";
        assert_eq!(
            (&data["url"], &data["clickAction"]),
            (&json!(page), &json!(page))
        );
    }
    let last = live.last().unwrap();
    assert_eq!(last["message"], "in progress, 60 %: Rows");
    assert_eq!(
        (&last["data"]["progress"], &last["data"]["progress_max"]),
        (&json!(60), &json!(100))
    );
    assert_eq!(last["data"]["critical_text"], "60 %");
    // The live notification is removed, and the result has a tag of its own.
    assert_eq!(
        end[0],
        json!({"message": "clear_notification", "data": {"tag": tag}})
    );
    let data = &end[1]["data"];
    assert!(
        data["tag"] != *tag && data.get("live_update").is_none(),
        "{data}"
    );
    assert_eq!(
        (&data["priority"], &data["ttl"]),
        (&json!("high"), &json!(0))
    );
    assert_eq!(data["push"]["interruption-level"], "time-sensitive");
}

fn medium(receiver: &Server, service: &str) -> HomeAssistant {
    let url = format!("{}/home", receiver.url);
    let settings = json!({"url": url, "service": service, "token": "long-lived"});
    HomeAssistant::new(serde_json::from_value(settings).unwrap()).unwrap()
}

fn notification(more: &Value) -> Notification {
    Notification {
        id: "1".into(),
        school_id: 1,
        kind: "jobs",
        subject: "a".into(),
        title: None,
        event_type: "job_progress",
        status: "in_progress",
        severity: None,
        at: chrono::Utc::now(),
        details: serde_json::from_value(more.clone()).unwrap(),
        json: more.to_string().into_bytes(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_service_is_not_taken_for_a_rejected_event() {
    let (receiver, _received) = receiver(routes![unknown]).await;
    let medium = medium(&receiver, "nobody");
    let error = DeliveryError::Failed("answered 400".into());
    assert_eq!(medium.deliver(&notification(&json!({}))).await, Err(error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_counts_down_to_its_estimated_end() {
    let (receiver, mut received) = receiver(routes![notify]).await;
    let medium = medium(&receiver, "mobile_app_phone");
    let now = chrono::Utc::now();
    let eta = now + chrono::TimeDelta::hours(1);
    let over = now - chrono::TimeDelta::hours(1);
    for fields in [
        json!({}),
        json!({"progress": 10.5, "eta_at": eta}),
        json!({"progress": 99, "eta_at": over, "message": "last"}),
    ] {
        medium.deliver(&notification(&fields)).await.unwrap();
    }
    let sent = bodies(&mut received, "in progress, 99 %: last").await;
    assert_eq!(sent[0]["title"], "a", "a live update needs a title");
    let [unknown, counting, over] = [0, 1, 2].map(|at| &sent[at]["data"]);
    assert_eq!(unknown["progress_indeterminate"], true);
    assert_eq!(counting["progress"], 10);
    assert_eq!(
        (&counting["chronometer"], &counting["when"]),
        (&json!(true), &json!(eta.timestamp()))
    );
    // A countdown would go on below zero.
    for update in [unknown, over] {
        assert!(update.get("chronometer").is_none(), "{update}");
        assert!(update.get("when").is_none(), "{update}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_has_one_notification_that_is_not_live() {
    let (receiver, mut received) = receiver(routes![notify]).await;
    let server = notifying(&receiver, json!([{"kinds": ["devices"]}])).await;
    server.put("/api/devices/d", json!({"name": "Door"})).await;
    for status in ["online", "offline"] {
        let body = json!({ "status": status });
        server.report("/api/devices/d/status", body).await;
    }
    let sent = bodies(&mut received, "offline").await;
    let [.., online, offline] = &sent[..] else {
        panic!("{sent:#?}");
    };
    let [online, offline] = [&online["data"], &offline["data"]];
    assert_eq!(online["tag"], offline["tag"]);
    assert!(
        online.get("live_update").is_none() && online.get("priority").is_none(),
        "{online}"
    );
    assert_eq!(offline["priority"], "high");
}

#[test]
fn settings_that_cannot_work_are_rejected_by_name_and_without_their_secrets() {
    let settings = |url: &str, service: &str, token: &str, page: &str| HomeAssistantSettings {
        url: url.into(),
        service: service.into(),
        token: token.into(),
        monitor_url: Some(page.into()),
        timeout_secs: Bounded::of::<10>(),
    };
    let [url, page] = ["https://home.example:8123", "https://t.example/monitor"];
    assert!(HomeAssistant::new(settings(url, "mobile_app_phone", "x", page)).is_ok());
    for (settings, named) in [
        (settings("home.example", "s", "k", page), "url"),
        (settings("https://home.example?hush", "s", "k", page), "url"),
        (settings(url, "notify.s", "k", page), "service"),
        (settings(url, "s/../hush", "k", page), "service"),
        (settings(url, "s", "hu\nsh", page), "token"),
        (settings(url, "s", "k", "t.example"), "monitor_url"),
    ] {
        let problem = HomeAssistant::new(settings).err().unwrap();
        assert!(problem.contains(&format!("`{named}`")), "{problem}");
        assert!(!problem.contains("hush"), "{problem}");
    }
}
