//! ntfy: one notification for each subject, which updates itself, and how often.

use rocket::http::Status;
use rocket::{State, post, routes};
use serde_json::{Value, json};
use tidings::config::Bounded;
use tidings::config::notifiers::NtfySettings;
use tidings::notify::ntfy::Ntfy;
use tokio::sync::mpsc;

use crate::support::*;

/// What the receiver is sent: the `Authorization`, and the body.
pub(super) struct Sent(pub(super) mpsc::UnboundedSender<(Option<String>, Value)>);

pub(super) struct Authorization(pub(super) Option<String>);

#[rocket::async_trait]
impl<'r> rocket::request::FromRequest<'r> for Authorization {
    type Error = std::convert::Infallible;

    async fn from_request(
        request: &'r rocket::Request<'_>,
    ) -> rocket::request::Outcome<Self, Self::Error> {
        let value = request.headers().get_one("Authorization");
        rocket::request::Outcome::Success(Authorization(value.map(str::to_owned)))
    }
}

/// As ntfy publishes JSON.
#[post("/receiver", data = "<body>")]
fn publish(body: String, authorization: Authorization, sent: &State<Sent>) -> Status {
    let body: Value = serde_json::from_str(&body).unwrap();
    let is_sound = |id: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=64).contains(&id.len()) && id.bytes().all(plain)
    };
    if !is_sound(body["sequence_id"].as_str().unwrap()) {
        return Status::BadRequest;
    }
    sent.0.send((authorization.0, body)).unwrap();
    Status::Ok
}

/// Starts a receiver.
pub(super) async fn receiver(
    routes: Vec<rocket::Route>,
) -> (Server, mpsc::UnboundedReceiver<(Option<String>, Value)>) {
    let (sent, received) = mpsc::unbounded_channel();
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let rocket = tidings::server(figment(&folder, &json!({}))).unwrap();
    let rocket = rocket.manage(Sent(sent)).mount("/", routes);
    (launch(rocket, folder).await, received)
}

/// Starts a server with a notifier of these rules.
async fn notifying(receiver: &Server, rules: Value) -> Server {
    let ntfy =
        json!({"url": format!("{}/receiver", receiver.url), "topic": "school-1", "token": "tk_x"});
    let notifier = json!({"name": "phone", "rules": rules, "ntfy": ntfy});
    server_with(json!({ "notifiers": [notifier] })).await
}

/// Runs a job that fails.
pub(super) async fn job(server: &Server, id: &str, progress: &[f64]) {
    let body = json!({"job_id": id, "job_type": "t", "status": "in_progress", "metadata": {"title": "Prüfung"}});
    server.report("/api/jobs", body).await;
    for percent in progress {
        let path = format!("/api/jobs/{id}/progress");
        let body = json!({"progress": percent, "message": "Rows"});
        server.report(&path, body).await;
    }
    let path = format!("/api/jobs/{id}/fail");
    let body = json!({"error": {"code": "x", "message": "No space"}});
    server.report(&path, body).await;
}

/// Returns the messages until the jobs have ended.
async fn messages(
    received: &mut mpsc::UnboundedReceiver<(Option<String>, Value)>,
    mut jobs: usize,
) -> Vec<Value> {
    let mut all = Vec::new();
    while jobs > 0 {
        let next = tokio::time::timeout(PATIENCE, received.recv()).await;
        let (authorization, body) = next.expect("it is sent").unwrap();
        assert_eq!(authorization.as_deref(), Some("Bearer tk_x"));
        assert_eq!(body["topic"], "school-1");
        assert_eq!(body["title"], "Prüfung");
        if body["message"] == "failed: No space" {
            assert_eq!(
                (&body["priority"], &body["tags"]),
                (&json!(4), &json!(["x"]))
            );
            jobs -= 1;
        }
        all.push(body);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_has_one_notification_that_is_updated_when_the_progress_passes_a_step() {
    let (receiver, mut received) = receiver(routes![publish]).await;
    let server = notifying(&receiver, json!([{"every": "25 %"}])).await;
    job(
        &server,
        "é",
        &[1.0, 10.0, 24.9, 25.0, 26.0, 49.0, 80.5, 90.0],
    )
    .await;
    job(&server, "b", &[50.0]).await;
    let sent = messages(&mut received, 2).await;
    let ids: std::collections::BTreeSet<&str> = sent
        .iter()
        .map(|body| body["sequence_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), 2, "one for each subject: {sent:#?}");
    let of = |id: &Value| -> Vec<&str> {
        let of_subject = sent.iter().filter(|body| body["sequence_id"] == *id);
        of_subject
            .map(|body| body["message"].as_str().unwrap())
            .collect()
    };
    let messages_of_job = of(&sent[0]["sequence_id"]);
    // The first tick is news, because a job that has reported nothing has no percentage.
    let steps = [
        "in progress, 25 %: Rows",
        "in progress, 80 %: Rows",
        "failed: No space",
    ];
    assert_eq!(
        messages_of_job[messages_of_job.len() - 3..],
        steps,
        "{messages_of_job:?}"
    );
    assert!(messages_of_job.len() <= 5, "{messages_of_job:?}");
    assert!(sent[0]["priority"] == 2, "quietly: {}", sent[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_within_the_time_are_passed_over_and_milestones_are_not() {
    let (receiver, mut received) = receiver(routes![publish]).await;
    let server = notifying(&receiver, json!([{"kinds": ["jobs"], "every": "10 min"}])).await;
    job(&server, "a", &[1.0, 50.0, 99.0]).await;
    let sent = messages(&mut received, 1).await;
    assert_eq!(sent.len(), 2, "its start and its end: {sent:#?}");
    // Without `every`, ticks are not delivered at all, and with `ticks`, all of them are.
    for (rule, count) in [(json!({}), 2), (json!({"ticks": true}), 5)] {
        let server = notifying(&receiver, json!([rule])).await;
        job(&server, "a", &[1.0, 50.0, 99.0]).await;
        let sent = messages(&mut received, 1).await;
        assert_eq!(sent.len(), count, "{rule}: {sent:#?}");
    }
}

#[test]
fn settings_that_cannot_work_are_rejected_by_name_and_without_their_secrets() {
    let settings = |url: &str, topic: &str, token: &str| NtfySettings {
        url: url.into(),
        topic: topic.into(),
        token: Some(token.into()),
        timeout_secs: Bounded::of::<10>(),
    };
    for (settings, named) in [
        (settings("ntfy.example", "t", "k"), "url"),
        (settings("https://ntfy.example", "hush/hush", "k"), "topic"),
        (settings("https://ntfy.example", "t", "hu\nsh"), "token"),
    ] {
        let problem = Ntfy::new(settings).err().unwrap();
        assert!(problem.contains(&format!("`{named}`")), "{problem}");
        assert!(!problem.contains("hush"), "{problem}");
    }
    for every in ["25 %", "25%", "10 min", "90s", "1 h", "milestone"] {
        let rule = json!({ "every": every });
        assert!(serde_json::from_value::<tidings::config::notifiers::Rule>(rule).is_ok());
    }
    for every in [
        "0 %",
        "101 %",
        "10",
        "min",
        "10 weeks",
        "-1 s",
        "99999999 h",
        "",
    ] {
        let rule = json!({ "every": every });
        let problem = serde_json::from_value::<tidings::config::notifiers::Rule>(rule);
        assert!(problem.unwrap_err().to_string().contains("such as `25 %`"));
    }
}
