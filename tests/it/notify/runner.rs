//! The runner: at least once, in order, through restarts; a dead receiver delays nobody else.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tidings::config::Settings;
use tidings::config::notifiers::RetryPolicy;
use tidings::event::Event;
use tidings::notify::Notifier;
use tidings::notify::notification::{DeliveryError, Notification};

use super::receivers::{Receiver, free_port, needs_python};
use crate::support::*;
use crate::tasks::panics;

pub(super) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

pub(super) fn webhook(name: &str, port: u16, rules: Value) -> Value {
    let url = format!("http://127.0.0.1:{port}/hook");
    json!({
        "name": name,
        "webhook": {"url": url, "secret": SECRET, "timeout_secs": 1},
        "rules": rules,
        "backoff_secs": 0,
        "attempts": 3,
    })
}

/// Ends a job of a school badly.
pub(super) async fn fail(server: &Server, school: i64, id: &str) -> Value {
    let token = worker(school);
    let create = json!({"job_id": id, "job_type": "t", "status": "in_progress"});
    let (status, _) = server.post("/api/jobs", &token, create).await;
    assert_eq!(status, 201);
    let error = json!({"error": {"code": "broken", "message": "It broke"}});
    let (status, failed) = server
        .post(&format!("/api/jobs/{id}/fail"), &token, error)
        .await;
    assert_eq!(status, 200);
    failed
}

pub(super) async fn state(server: &Server, school: i64, name: &str) -> Value {
    let path = format!("/api/notifiers?school_id={school}");
    let (status, answer) = server.get(&path, &admin()).await;
    assert_eq!(status, 200, "{answer}");
    let all = answer["notifiers"].as_array().unwrap();
    all.iter()
        .find(|notifier| notifier["name"] == name)
        .unwrap()
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_names_is_delivered_signed_and_nothing_else() {
    if !needs_python("standardwebhooks") {
        return;
    }
    let (mut receiver, port) = Receiver::python("webhook.py", &[SECRET, "200"]).await;
    let rules = json!([
        {"kinds": ["jobs"], "statuses": ["failed"], "schools": [1]},
        {"events": ["violation"], "severities": ["critical"]},
    ]);
    let settings = json!({"notifiers": [webhook("ops", port, rules)]});
    let server = server_with(settings).await;
    fail(&server, 2, "other").await;
    let failed = fail(&server, 1, "mine").await;
    let seen = receiver.json().await;
    assert_eq!(seen["verified"], true);
    assert_eq!(seen["body"]["type"], "jobs.job_progress");
    assert_eq!(
        seen["body"]["data"], failed,
        "the event as it was published"
    );
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
    let body = json!({"limits": limits, "rules": [1, {"rule_id": 8, "severity": "warning"}]});
    let put = server.request("PUT", "/api/characteristics/bath", &worker(2));
    assert_eq!(answer(put.json(&body)).await.0, 200);
    let path = "/api/characteristics/bath/samples";
    for value in [0.0, 9.0] {
        server.post(path, &worker(2), json!({"value": value})).await;
    }
    let seen = receiver.json().await;
    assert_eq!(seen["body"]["data"]["payload"]["violation_id"], "bath.1");
    let id = seen["headers"]["webhook-id"].as_str().unwrap();
    assert!(id.ends_with("-2-ops") || id.contains("-2-"), "{id}");
    until("it is counted", async || {
        state(&server, 1, "ops").await["delivered"] == 1
    })
    .await;
    let notifier = state(&server, 1, "ops").await;
    assert_eq!(
        (&notifier["medium"], &notifier["lag"]),
        (&json!("webhook"), &json!(0))
    );
    assert_eq!(
        receiver.stop().await,
        Vec::<String>::new(),
        "and nothing else"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for a schedule"]
async fn a_run_that_is_late_is_delivered_like_any_milestone() {
    if !needs_python("standardwebhooks") {
        return;
    }
    let (mut receiver, port) = Receiver::python("webhook.py", &[SECRET, "200"]).await;
    let rules = json!([{"kinds": ["schedules"], "statuses": ["missed", "late"]}]);
    let server = server_with(json!({"notifiers": [webhook("ops", port, rules)]})).await;
    let job = server.running_job("slow").await;
    let path = format!("/api/schedules/{}", job["job_type"].as_str().unwrap());
    let rule = json!({"period_secs": 86_400, "max_run_secs": 1});
    server.put(&path, rule).await;
    let seen = receiver.json().await;
    assert_eq!(seen["body"]["type"], "schedules.schedule_update");
    let data = &seen["body"]["data"];
    assert_eq!(
        (&data["status"], &data["last_run"]["job_id"]),
        (&json!("late"), &json!("slow"))
    );
    server.report("/api/jobs/slow/complete", json!({})).await;
    until("it is over", async || {
        server.get(&path, &viewer(1)).await.1["status"] == "on_time"
    })
    .await;
    until("everything is looked at", async || {
        state(&server, 1, "ops").await["lag"] == 0
    })
    .await;
    assert_eq!(receiver.stop().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_from_while_the_receiver_and_the_server_were_down_are_delivered_in_order() {
    if !needs_python("standardwebhooks") {
        return;
    }
    let dead = free_port();
    let rules = json!([{"statuses": ["failed"]}]);
    let mut slow = webhook("ops", dead, rules.clone());
    slow["backoff_secs"] = json!(60);
    let first = server_with(json!({"notifiers": [slow]})).await;
    let mut expected = Vec::new();
    for number in 0..5 {
        expected.push(fail(&first, 1, &format!("j{number}")).await);
    }
    until("the first attempt failed", async || {
        state(&first, 1, "ops").await["retry"]["attempts"] == 1
    })
    .await;
    let notifier = state(&first, 1, "ops").await;
    assert_eq!(notifier["delivered"], 0);
    assert!(notifier["lag"].as_u64().unwrap() >= 9, "{notifier}");
    assert!(
        notifier["cause"]
            .as_str()
            .unwrap()
            .contains("connection failed")
    );
    let folder = first.stop().await;

    let (mut receiver, port) = Receiver::python("webhook.py", &[SECRET, "500,200"]).await;
    let settings = json!({"notifiers": [webhook("ops", port, rules)]});
    let server = server_in(folder, settings).await;
    let repeated = receiver.json().await;
    let mut ids = Vec::new();
    for expected in &expected {
        let seen = receiver.json().await;
        assert_eq!(seen["body"]["data"], *expected);
        ids.push(seen["headers"]["webhook-id"].clone());
    }
    assert_eq!(repeated["headers"]["webhook-id"], ids[0], "the same id");
    ids.dedup();
    assert_eq!(ids.len(), 5);
    until("all are counted", async || {
        let notifier = state(&server, 1, "ops").await;
        notifier["delivered"] == 5 && notifier["lag"] == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_last_attempt_an_event_is_a_dead_letter_and_the_next_ones_go_on() {
    if !needs_python("standardwebhooks") {
        return;
    }
    let (mut receiver, port) =
        Receiver::python("webhook.py", &[SECRET, "500,500,500,410,200"]).await;
    let rules = json!([{"statuses": ["failed"]}]);
    let server = server_with(json!({"notifiers": [webhook("ops", port, rules)]})).await;
    let mut failed = Vec::new();
    for number in 0..3 {
        failed.push(fail(&server, 1, &format!("j{number}")).await);
    }
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(receiver.json().await["body"]["data"]["job_id"].clone());
    }
    assert_eq!(seen, ["j0", "j0", "j0", "j1", "j2"]);
    until("the third is delivered", async || {
        state(&server, 1, "ops").await["delivered"] == 1
    })
    .await;
    let notifier = state(&server, 1, "ops").await;
    assert_eq!(
        (&notifier["failed_attempts"], &notifier["dead_letters"]),
        (&json!(4), &json!(2))
    );
    let path = "/api/notifiers/ops/dead-letters?school_id=1";
    let (_, page) = server.get(path, &admin()).await;
    let letters = page["dead_letters"].as_array().unwrap();
    let shown: Vec<_> = letters
        .iter()
        .map(|letter| (&letter["subject_id"], &letter["attempts"], &letter["cause"]))
        .collect();
    assert_eq!(
        shown,
        [
            (&json!("j1"), &json!(1), &json!("answered 410")),
            (&json!("j0"), &json!(3), &json!("answered 500")),
        ]
    );
    assert_eq!(letters[1]["seq"], failed[0]["seq"]);
    let (_, first) = server.get(&format!("{path}&limit=1"), &admin()).await;
    let next = first["next"].as_str().unwrap();
    let (_, second) = server
        .get(&format!("{path}&limit=1&page={next}"), &admin())
        .await;
    assert_eq!(second["dead_letters"][0], letters[1]);
}

/// A notifier of an application's own, that keeps what it gets.
#[derive(Default)]
struct Kept {
    rejects_school: Option<i64>,
    broken: AtomicBool,
    got: Mutex<Vec<Notification>>,
}

#[async_trait]
impl Notifier for Kept {
    fn name(&self) -> &str {
        "kept"
    }

    fn medium(&self) -> &'static str {
        "memory"
    }

    fn wants(&self, event: &Event) -> bool {
        event.draft.status == "failed"
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        let rejected = self.rejects_school == Some(notification.school_id);
        if rejected || self.broken.load(Ordering::SeqCst) {
            return Err(DeliveryError::unavailable("not now"));
        }
        self.got.lock().unwrap().push(notification.clone());
        Ok(())
    }

    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            attempts: 100,
            pause: Duration::from_secs(600),
        }
    }
}

/// A server that has this notifier.
async fn server_notifying(notifier: &Arc<impl Notifier>, settings: Value) -> Server {
    server_notifying_in(Arc::new(tempfile::tempdir().unwrap()), notifier, settings).await
}

/// The same on this folder's database.
async fn server_notifying_in(
    folder: Arc<tempfile::TempDir>,
    notifier: &Arc<impl Notifier>,
    settings: Value,
) -> Server {
    let figment = figment(&folder, &settings);
    let settings = Settings::from_figment(&figment).unwrap();
    let notifiers: Vec<Arc<dyn Notifier>> = vec![Arc::clone(notifier) as _];
    let tidings = Arc::new(tidings::Tidings::start_with(settings, notifiers).unwrap());
    let rocket = tidings::http::mount(rocket::custom(figment), "/", tidings);
    launch(rocket, folder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_school_whose_delivery_fails_does_not_hold_up_the_others() {
    let kept = Arc::new(Kept {
        rejects_school: Some(1),
        ..Kept::default()
    });
    let server = server_notifying(&kept, json!({})).await;
    fail(&server, 1, "stuck").await;
    until("it was tried", async || {
        state(&server, 1, "kept").await["failed_attempts"] == 1
    })
    .await;
    for number in 0..3 {
        fail(&server, 2, &format!("j{number}")).await;
    }
    until("the other school is served", async || {
        kept.got.lock().unwrap().len() == 3
    })
    .await;
    let schools: Vec<i64> = kept
        .got
        .lock()
        .unwrap()
        .iter()
        .map(|event| event.school_id)
        .collect();
    assert_eq!(schools, [2, 2, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_receiver_delays_neither_publishers_nor_streams_nor_other_notifiers() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let kept = Arc::new(Kept::default());
    let mut dead = webhook("dead", port, json!([]));
    // Longer than anything here may take: a test that waited for it would be too late.
    dead["webhook"]["timeout_secs"] = json!(60);
    let server = server_notifying(&kept, json!({"notifiers": [dead]})).await;
    let mut listener = server.listen(Transport::WebSocket, "/jobs?tick_ms=0").await;
    listener.until_ready().await;
    for number in 0..20 {
        let failed = fail(&server, 1, &format!("j{number}")).await;
        let heard = listener
            .take_until(|message| message["status"] == "failed")
            .await;
        assert_eq!(heard.last(), Some(&failed));
    }
    until("the other notifier has all", async || {
        kept.got.lock().unwrap().len() == 20
    })
    .await;
    let dead = state(&server, 1, "dead").await;
    assert_eq!(
        (&dead["delivered"], &dead["failed_attempts"]),
        (&json!(0), &json!(0)),
        "still at its first attempt"
    );
}

/// A notifier with a fault.
struct Faulty {
    panics_in_wants: bool,
    panics_in_deliver: AtomicBool,
    got: Mutex<Vec<Notification>>,
}

#[async_trait]
impl Notifier for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn medium(&self) -> &'static str {
        "memory"
    }

    fn wants(&self, event: &Event) -> bool {
        assert!(!self.panics_in_wants, "a fault in an application");
        event.draft.status == "failed"
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        let panics = self.panics_in_deliver.swap(false, Ordering::SeqCst);
        assert!(!panics, "a fault in an application");
        self.got.lock().unwrap().push(notification.clone());
        Ok(())
    }

    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            attempts: 3,
            pause: Duration::ZERO,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notifier_that_panics_hinders_nobody_and_goes_on() {
    for panics_in_wants in [true, false] {
        let faulty = Arc::new(Faulty {
            panics_in_wants,
            panics_in_deliver: AtomicBool::new(true),
            got: Mutex::default(),
        });
        let server = server_notifying(&faulty, json!({})).await;
        let mut listener = server.listen(Transport::WebSocket, "/jobs?tick_ms=0").await;
        listener.until_ready().await;
        for number in 0..3 {
            let failed = fail(&server, 1, &format!("j{number}")).await;
            let heard = listener
                .take_until(|message| message["status"] == "failed")
                .await;
            assert_eq!(heard.last(), Some(&failed));
        }
        until("it goes on", async || {
            let got = faulty.got.lock().unwrap();
            got.iter().filter(|event| event.status == "failed").count() == 3
        })
        .await;
        let notifier = state(&server, 1, "faulty").await;
        assert_eq!(notifier["failed_attempts"], 1);
        assert_eq!(notifier["cause"], "the notifier panicked");
    }
}

/// A notifier that panics wherever its task asks it something.
#[derive(Default)]
struct Rash {
    starts: AtomicU32,
    asked: AtomicU32,
    got: Mutex<Vec<String>>,
}

#[async_trait]
impl Notifier for Rash {
    fn name(&self) -> &str {
        "rash"
    }

    fn medium(&self) -> &'static str {
        "memory"
    }

    fn wants(&self, event: &Event) -> bool {
        event.draft.status == "failed"
    }

    fn start(&self) {
        self.starts.fetch_add(1, Ordering::SeqCst);
        panic!("a fault in an application");
    }

    async fn stop(&self) {
        panic!("a fault in an application");
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        if self.asked.load(Ordering::SeqCst) < 3 {
            return Err(DeliveryError::Failed("not yet".into()));
        }
        self.got.lock().unwrap().push(notification.subject.clone());
        Ok(())
    }

    fn retry_policy(&self) -> RetryPolicy {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        assert!(asked >= 3, "a fault in an application");
        RetryPolicy::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notifiers_task_that_panics_starts_again_and_ends_nothing_else() {
    let rash = Arc::new(Rash::default());
    let server = server_notifying(&rash, json!({})).await;
    let tidings = Arc::clone(&server.tidings);
    for id in ["a", "b"] {
        fail(&server, 1, id).await;
    }
    until("it has panicked three times", async || {
        panics(&server, "notifier rash").await >= 3
    })
    .await;
    let ready = server.http.get(format!("{}/readyz", server.url));
    assert_eq!(ready.send().await.unwrap().status(), 200);
    until("all is delivered in order", async || {
        *rash.got.lock().unwrap() == ["a", "b"]
    })
    .await;
    assert_eq!(rash.starts.load(Ordering::SeqCst), 1);
    server.stop().await;
    assert!(tidings.tasks().running().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_backlog_of_one_school_does_not_starve_the_others() {
    let kept = Arc::new(Kept::default());
    let server = server_notifying(&kept, json!({})).await;
    let lines = |count: usize| -> String {
        let job = |number: usize| {
            let create =
                json!({"op": "jobs.create", "job_id": format!("j{number}"), "job_type": "t"});
            let error = json!({"code": "broken", "message": "It broke"});
            let fail = json!({"op": "jobs.fail", "job_id": format!("j{number}"), "error": error});
            format!("{create}\n{fail}\n")
        };
        (0..count).map(job).collect()
    };
    let send = async |school: i64, count: usize| {
        server.batch(&worker(school), lines(count)).await;
    };
    send(1, 2_000).await;
    for school in 2..=11 {
        send(school, 1).await;
    }
    until("all is delivered", async || {
        kept.got.lock().unwrap().len() == 2_010
    })
    .await;
    let got = kept.got.lock().unwrap();
    let last = got.iter().rposition(|event| event.school_id != 1).unwrap();
    assert!(last < 1_500, "they had their turns in between: {last}");
    let of_first: Vec<&str> = got
        .iter()
        .filter(|event| event.school_id == 1)
        .map(|event| event.subject.as_str())
        .collect();
    let expected: Vec<String> = (0..2_000).map(|number| format!("j{number}")).collect();
    assert_eq!(of_first, expected, "and each school's order is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_has_forgotten_is_a_dead_letter_and_not_a_silent_gap() {
    let kept = Arc::new(Kept::default());
    kept.broken.store(true, Ordering::SeqCst);
    let server = server_notifying(&kept, json!({"retention_events": 2})).await;
    fail(&server, 1, "lost").await;
    until("it was tried", async || {
        state(&server, 1, "kept").await["failed_attempts"] == 1
    })
    .await;
    for number in 0..5 {
        fail(&server, 1, &format!("j{number}")).await;
    }
    let settings = server.tidings.settings().clone();
    assert_eq!(settings.retention_events.get(), 2);
    server.sweep().await;
    let folder = server.stop().await;
    kept.broken.store(false, Ordering::SeqCst);
    let server = server_notifying_in(folder, &kept, json!({"retention_events": 2})).await;
    until("what is there is delivered", async || {
        !kept.got.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(kept.got.lock().unwrap()[0].subject, "j4");
    let (_, page) = server
        .get("/api/notifiers/kept/dead-letters?school_id=1", &admin())
        .await;
    let cause = page["dead_letters"][0]["cause"].as_str().unwrap();
    assert!(cause.contains("past retention"), "{page}");
}

/// A server that is restarted again and again must not try one event for ever.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_through_restarts() {
    let kept = Arc::new(Kept::default());
    kept.broken.store(true, Ordering::SeqCst);
    let mut server = server_notifying(&kept, json!({})).await;
    fail(&server, 1, "j").await;
    for attempts in 1..=3 {
        until("it was tried", async || {
            state(&server, 1, "kept").await["retry"]["attempts"] == attempts
        })
        .await;
        let folder = server.stop().await;
        server = server_notifying_in(folder, &kept, json!({})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_notifier_does_not_receive_past_events() {
    let first = server().await;
    fail(&first, 1, "before").await;
    let folder = first.stop().await;
    let kept = Arc::new(Kept::default());
    let server = server_notifying_in(folder, &kept, json!({})).await;
    fail(&server, 1, "after").await;
    fail(&server, 2, "a-school-that-is-new").await;
    until("both are delivered", async || {
        kept.got.lock().unwrap().len() == 2
    })
    .await;
    let mut subjects: Vec<String> = kept
        .got
        .lock()
        .unwrap()
        .iter()
        .map(|event| event.subject.clone())
        .collect();
    subjects.sort();
    assert_eq!(subjects, ["a-school-that-is-new", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_administrator_of_the_school_looks_at_notifiers() {
    let kept = Arc::new(Kept::default());
    let server = server_notifying(&kept, json!({})).await;
    for (token, status) in [(viewer(1), 403), (worker(1), 403), (admin(), 400)] {
        assert_eq!(server.get("/api/notifiers", &token).await.0, status);
    }
    let school_admin = sign(&claims(Some(1), tidings::auth::Role::Admin));
    assert_eq!(server.get("/api/notifiers", &school_admin).await.0, 200);
    assert_eq!(
        server
            .get("/api/notifiers?school_id=2", &school_admin)
            .await
            .0,
        404
    );
    let missing = "/api/notifiers/nobody/dead-letters";
    assert_eq!(server.get(missing, &school_admin).await.0, 404);
}

#[test]
fn settings_that_cannot_work_stop_the_start_and_show_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let hook = |change: &dyn Fn(&mut Value)| {
        let mut hook = webhook("ops", 80, json!([]));
        change(&mut hook);
        let settings = json!({"notifiers": [hook]});
        let figment = figment(&folder, &settings);
        match Settings::from_figment(&figment) {
            Err(error) => error.to_string(),
            Ok(settings) => match tidings::notify::configured(&settings.notifiers) {
                Err(error) => error.to_string(),
                Ok(_) => String::new(),
            },
        }
    };
    assert_eq!(hook(&|_| {}), "");
    for (change, word) in [
        (json!({"name": "Not A Name"}), "name"),
        (json!({"webhook": null}), "one of"),
        (json!({"attempts": 0}), "attempts"),
        (json!({"rules": [{"kinds": ["cats"]}]}), "cats"),
        (json!({"rules": [{"events": ["cats"]}]}), "cats"),
        (json!({"rules": [{"statuses": ["cats"]}]}), "cats"),
        (json!({"rules": [{"color": "red"}]}), "color"),
        (json!({"retries": 3}), "retries"),
        (
            json!({"webhook": {"url": "http://a.example", "secret": "hush"}}),
            "secret",
        ),
        (json!({"webhook": "http://hush.example"}), "webhook"),
        (json!({"attempts": "hush"}), "attempts"),
        (
            json!({"webhook": {"url": "http://a.example", "secret": 4_711}}),
            "secret",
        ),
    ] {
        let error = hook(&|hook_settings| {
            for (key, value) in change.as_object().unwrap() {
                hook_settings[key] = value.clone();
            }
        });
        assert!(error.contains(word), "{change}: {error:?}");
        assert!(
            !error.contains("hush") && !error.contains("4711"),
            "{error}"
        );
    }
}

#[test]
fn the_environment_holds_notifiers_as_json_and_a_mistake_in_it_shows_no_secret() {
    use crate::support::process::{command, run};
    let folder = tempfile::tempdir().unwrap();
    let serve = |notifiers: &str| {
        let mut serve = command(folder.path());
        // Nothing can listen there, so that it always ends.
        serve
            .arg("serve")
            .env("TIDINGS_NOTIFIERS", notifiers)
            .env("ROCKET_ADDRESS", "192.0.2.1");
        let output = run(&mut serve);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let hook = webhook("ops", 80, json!([{"statuses": ["failed"]}]));
    let listening = serve(&json!([hook]).to_string());
    assert!(listening.contains("cannot listen"), "{listening}");
    for mistake in [
        r#"[{"name":"a","webhook":{"url":"https://h.example/?t=hush","secret":"whsec_hush"}"#,
        r#"[{"name":"a","webhook":{"url":"https://h.example/?t=hush","secret":12345678}}]"#,
        r#"[{"name":"a","webhook":"https://h.example/?t=hush"}]"#,
        r#"[{name="a", email={host="h", port="hush"}}]"#,
        r#"{"hush": 1}"#,
    ] {
        let error = serve(mistake);
        assert!(error.to_lowercase().contains("notifiers"), "{error}");
        let shown = error.contains("hush") || error.contains("12345678");
        assert!(!shown, "{mistake}: {error}");
    }
}

/// A restored backup gives numbers again. What nobody could recognise as a restore must not make receivers drop events.
#[tokio::test(flavor = "multi_thread")]
async fn another_event_in_the_place_of_a_delivered_one_has_another_id() {
    if !store::is_a_file("it restores a copy of the file") {
        return;
    }
    if !needs_python("standardwebhooks") {
        return;
    }
    let (mut receiver, port) = Receiver::python("webhook.py", &[SECRET, "200"]).await;
    let rules = json!([{"kinds": ["jobs"], "statuses": ["failed"]}]);
    let settings = json!({"notifiers": [webhook("ops", port, rules)]});
    let server = server_with(settings.clone()).await;
    fail(&server, 1, "before").await;
    receiver.json().await;
    let folder = server.stop().await;
    let files = ["tidings.db", "tidings.db.lock"].map(|name| folder.path().join(name));
    let backup = files.clone().map(|file| std::fs::read(file).unwrap());
    let mut seen = Vec::new();
    for id in ["lost", "other"] {
        for (file, content) in files.iter().zip(&backup) {
            std::fs::write(file, content).unwrap();
        }
        let server = server_in(Arc::clone(&folder), settings.clone()).await;
        let failed = fail(&server, 1, id).await;
        let request = receiver.json().await;
        assert_eq!(request["body"]["data"], failed);
        let id = request["headers"]["webhook-id"]
            .as_str()
            .unwrap()
            .to_owned();
        let (epoch, seq, tag) = parts(&failed["cursor"]);
        assert!(id.starts_with(&format!("{epoch}-1-{seq}-")), "{id}");
        seen.push(((epoch, seq), tag, id));
        server.stop().await;
    }
    assert_eq!(seen[0].0, seen[1].0, "the same place");
    assert_ne!(seen[0].1, seen[1].1, "another event");
    assert_ne!(seen[0].2, seen[1].2);
}
