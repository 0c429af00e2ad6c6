//! Webhooks, judged by the reference library of Standard Webhooks.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;
use tidings::config::Bounded;
use tidings::config::notifiers::WebhookSettings;
use tidings::notify::notification::Medium as _;
use tidings::notify::webhook::Webhook;

use super::receivers::{
    Receiver, failed, free_port, needs_python, notification, permanent, unavailable,
};
use crate::support::PATIENCE;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn webhook(port: u16) -> Webhook {
    let settings = WebhookSettings {
        url: format!("http://127.0.0.1:{port}/hook").as_str().into(),
        secret: SECRET.into(),
        timeout_secs: Bounded::of::<10>(),
        headers: BTreeMap::from([("x-tenant".into(), "north".into())]),
    };
    Webhook::new(settings).unwrap()
}

fn ready() -> bool {
    needs_python("standardwebhooks")
}

#[tokio::test]
async fn failed_attempt_is_repeated_with_the_same_id_and_a_valid_signature() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = Receiver::python("webhook.py", &[SECRET, "500,200"]).await;
    let webhook = webhook(port);
    let notification = notification("00c0ffee-1-ops-hook");

    assert_eq!(failed(webhook.deliver(&notification).await), "answered 500");
    webhook.deliver(&notification).await.unwrap();

    for _ in 0..2 {
        let seen = receiver.json().await;
        assert_eq!(seen["verified"], true);
        assert_eq!(seen["path"], "/hook");
        assert_eq!(seen["headers"]["webhook-id"], "00c0ffee-1-ops-hook");
        assert_eq!(seen["headers"]["content-type"], "application/json");
        assert_eq!(seen["headers"]["x-tenant"], "north");
        assert_eq!(
            seen["body"],
            json!({
                "type": "jobs.job_progress",
                "timestamp": "2026-03-01T08:00:00.000Z",
                "data": {
                    "type": "job_progress",
                    "job_id": "report-7",
                    "message": "Schülerliste – zu groß",
                },
            })
        );
    }
    assert!(receiver.stop().await.is_empty());
}

#[tokio::test]
async fn receiver_that_is_gone_is_not_asked_again() {
    if !ready() {
        return;
    }
    let (_receiver, port) = Receiver::python("webhook.py", &[SECRET, "410,404,429,422"]).await;
    let webhook = webhook(port);
    let attempt = async || webhook.deliver(&notification("00c0ffee-2-ops-hook")).await;
    assert_eq!(permanent(attempt().await), "answered 410");
    assert_eq!(failed(attempt().await), "answered 404");
    assert_eq!(unavailable(attempt().await), "answered 429");
    assert_eq!(permanent(attempt().await), "answered 422");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    if !ready() {
        return;
    }
    let (mut receiver, port) =
        Receiver::python("webhook.py", &[SECRET, "301,302,303,307,308,200"]).await;
    let webhook = webhook(port);
    let attempt = async || webhook.deliver(&notification("00c0ffee-3-ops-hook")).await;
    for status in [301, 302, 303, 307, 308] {
        let cause = unavailable(attempt().await);
        assert_eq!(
            cause,
            format!("answered {status}; redirects are not followed")
        );
    }
    attempt().await.unwrap();
    for _ in 0..6 {
        assert_eq!(receiver.json().await["path"], "/hook");
    }
    assert!(receiver.stop().await.is_empty(), "nobody came elsewhere");
}

#[tokio::test]
async fn receiver_that_never_answers_is_left_in_time() {
    if !ready() {
        return;
    }
    let (_receiver, port) = Receiver::python("webhook.py", &[SECRET, "silence"]).await;
    let settings = WebhookSettings {
        url: format!("http://127.0.0.1:{port}/hook?token=hush")
            .as_str()
            .into(),
        secret: SECRET.into(),
        timeout_secs: Bounded::of::<1>(),
        headers: BTreeMap::new(),
    };
    let webhook = Webhook::new(settings).unwrap();
    let start = Instant::now();
    let outcome = webhook.deliver(&notification("00c0ffee-4-ops-hook")).await;
    assert_eq!(unavailable(outcome), "no answer within 1 s");
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let webhook = webhook(free_port());
    let cause = unavailable(webhook.deliver(&notification("00c0ffee-5-ops-hook")).await);
    assert!(cause.contains("refused"), "{cause}");
}

#[tokio::test]
async fn signature_of_another_secret_is_found_out() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = Receiver::python("webhook.py", &[OTHER_SECRET, "200"]).await;
    let outcome = webhook(port)
        .deliver(&notification("00c0ffee-6-ops-hook"))
        .await;
    outcome.unwrap();
    assert_eq!(receiver.json().await["verified"], false);
}
