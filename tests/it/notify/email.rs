//! E-mail, to a real SMTP server.

use std::path::Path;

use serde_json::{Value, json};
use tidings::config::Bounded;
use tidings::config::notifiers::{EmailSettings, Security};
use tidings::notify::email::Email;
use tidings::notify::notification::{Medium as _, Notification};

use super::receivers::{
    Receiver, free_port, make_certificate, needs_python, notification, permanent, rerun_trusting,
    unavailable,
};
use crate::support::{Server, needs, server_with};

fn settings(port: u16, to: &[&str]) -> EmailSettings {
    EmailSettings {
        host: "127.0.0.1".into(),
        port: Bounded::new(port).unwrap(),
        security: Security::None,
        username: None,
        password: None,
        from: "Tidings <tidings@school.example>".into(),
        to: to.iter().copied().map(String::from).collect(),
        timeout_secs: Bounded::of::<20>(),
    }
}

fn email(port: u16, to: &[&str]) -> Email {
    Email::new("ops-mail", settings(port, to)).unwrap()
}

fn ready() -> bool {
    needs_python("aiosmtpd")
}

/// All values of a header.
fn header<'a>(message: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = message["headers"].as_array().unwrap();
    headers
        .iter()
        .filter(|header| header[0] == name)
        .map(|header| header[1].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn message_says_what_happened_and_keeps_its_id() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = Receiver::python("smtp.py", &[]).await;
    let email = email(port, &["Ops <ops@school.example>", "head@school.example"]);
    let notification = notification("00c0ffee-1-ops-mail");
    email.deliver(&notification).await.unwrap();
    email.deliver(&notification).await.unwrap();

    let message = receiver.json().await;
    assert_eq!(message["from"], "tidings@school.example");
    assert_eq!(
        message["to"],
        json!(["ops@school.example", "head@school.example"])
    );
    assert_eq!(
        header(&message, "subject"),
        ["[Tidings] School 7: job report-7 failed"]
    );
    assert_eq!(
        header(&message, "message-id"),
        ["<00c0ffee-1-ops-mail@school.example>"]
    );
    assert_eq!(header(&message, "auto-submitted"), ["auto-generated"]);
    assert_eq!(
        header(&message, "date"),
        ["Sun, 01 Mar 2026 08:00:00 +0000"]
    );
    let body = message["body"].as_str().unwrap().replace("\r\n", "\n");
    assert_eq!(
        body.trim_end(),
        "School:       7\n\
         Kind:         job\n\
         Id:           report-7\n\
         Status:       failed\n\
         Event:        job_progress\n\
         At:           2026-03-01T08:00:00Z\n\
         Notification: 00c0ffee-1-ops-mail\n\
         \n\
         {\n  \"type\": \"job_progress\",\n  \"job_id\": \"report-7\",\n  \"message\": \"Schülerliste – zu groß\"\n}"
    );
    assert_eq!(receiver.json().await, message, "the same once more");
}

#[tokio::test]
async fn line_breaks_in_an_event_make_no_headers() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = Receiver::python("smtp.py", &[]).await;
    let attack = "x\r\nBcc: thief@evil.example\r\n\r\nbody";
    let notification = Notification {
        subject: attack.into(),
        title: Some(attack.into()),
        severity: Some(attack.into()),
        ..notification("00c0ffee-2\r\nX-Injected: yes")
    };
    let email = email(port, &["ops@school.example"]);
    email.deliver(&notification).await.unwrap();

    let message = receiver.json().await;
    assert_eq!(message["to"], json!(["ops@school.example"]));
    let mut names: Vec<_> = message["headers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|header| header[0].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "auto-submitted",
            "content-transfer-encoding",
            "content-type",
            "date",
            "from",
            "message-id",
            "mime-version",
            "subject",
            "to"
        ]
    );
    let subject = header(&message, "subject")[0];
    assert!(!subject.contains(['\r', '\n']) && subject.contains("x  Bcc: thief@evil.example"));
    assert!(message["body"].as_str().unwrap().starts_with("School:"));
}

/// A server whose notifier `office` writes of all that ends, fails or goes away.
async fn server_writing(port: u16) -> Server {
    let rules = json!([
        {"kinds": ["jobs"], "statuses": ["failed"]},
        {"kinds": ["enrollments"], "statuses": ["error"]},
        {"kinds": ["devices"], "statuses": ["offline"]},
        {"events": ["violation"]},
    ]);
    let office = json!({"name": "office", "rules": rules, "email": settings(port, &["office@school.example"])});
    server_with(json!({"notifiers": [office]})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_names_the_title_and_else_the_id() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = Receiver::python("smtp.py", &[]).await;
    let server = server_writing(port).await;
    let mut subject_of = async |path: &str, body: Value| {
        server.report(path, body).await;
        let message = receiver.json().await;
        assert_eq!(message["to"], json!(["office@school.example"]));
        header(&message, "subject")[0].to_owned()
    };

    let long = "Zeugnisliste für „7b“ ".repeat(30);
    let kept: String = long.chars().take(99).collect();
    let cut = format!("{}…", kept.trim_end());
    for (id, title, shown) in [
        ("a", Value::Null, "a".to_owned()),
        ("b", json!("   "), "b".into()),
        ("c", json!(7), "c".into()),
        ("d", json!("Class list 7b"), "\"Class list 7b\"".into()),
        (
            "e",
            json!("Schülerliste – 名簿"),
            "\"Schülerliste – 名簿\"".into(),
        ),
        ("f", json!(long), format!("\"{cut}\"")),
        (
            "g",
            json!("x\r\nBcc: thief@evil.example"),
            "\"x  Bcc: thief@evil.example\"".into(),
        ),
        (
            "h",
            json!("x".repeat(600)),
            format!("\"{}…\"", "x".repeat(99)),
        ),
    ] {
        let create = json!({
            "job_id": id, "job_type": "t", "status": "in_progress", "metadata": {"title": title},
        });
        server.report("/api/jobs", create).await;
        let error = json!({"error": {"code": "broken", "message": "It broke"}});
        let subject = subject_of(&format!("/api/jobs/{id}/fail"), error).await;
        assert_eq!(subject, format!("[Tidings] School 1: job {shown} failed"));
    }

    server
        .put("/api/devices/door", json!({"name": "Main door"}))
        .await;
    server
        .report("/api/devices/door/status", json!({"status": "online"}))
        .await;
    let subject = subject_of("/api/devices/door/status", json!({"status": "offline"})).await;
    assert_eq!(subject, "[Tidings] School 1: device \"Main door\" offline");

    let session = json!({"session_id": "s1", "student_id": "42"});
    server.report("/api/enrollments", session).await;
    let subject = subject_of("/api/enrollments/s1/error", json!({"code": "timeout"})).await;
    assert_eq!(
        subject,
        "[Tidings] School 1: enrollment \"student 42\" error"
    );

    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
    let bath = json!({"name": "Bath temperature", "limits": limits, "rules": [1]});
    server.put("/api/characteristics/bath", bath).await;
    let subject = subject_of("/api/characteristics/bath/samples", json!({"value": 9.0})).await;
    assert_eq!(
        subject,
        "[Tidings] School 1: characteristic \"Bath temperature\": violation (critical)"
    );
}

#[tokio::test]
async fn no_line_of_a_message_is_longer_than_a_server_must_take() {
    if !ready() {
        return;
    }
    let (mut receiver, port) = Receiver::python("smtp.py", &[]).await;
    let email = email(port, &["ops@school.example"]);
    for title in ["名".repeat(100), "x".repeat(100), "é x".repeat(33)] {
        let notification = Notification {
            title: Some(title.clone()),
            ..notification("00c0ffee-8-ops-mail")
        };
        email.deliver(&notification).await.unwrap();
        let message = receiver.json().await;
        let subject = header(&message, "subject")[0];
        assert_eq!(
            subject,
            format!("[Tidings] School 7: job \"{title}\" failed")
        );
        // RFC 5322, 2.1.1.
        assert!(
            message["longest_line"].as_u64().unwrap() <= 998,
            "{message}"
        );
    }
}

#[tokio::test]
async fn rejected_mailbox_is_permanent_and_a_busy_one_unavailable() {
    if !ready() {
        return;
    }
    let (receiver, port) = Receiver::python("smtp.py", &[]).await;
    let notification = notification("00c0ffee-3-ops-mail");
    let rejected = email(port, &["refused@school.example"]);
    let cause = permanent(rejected.deliver(&notification).await);
    assert!(
        cause.contains("550") && cause.contains("no such mailbox"),
        "{cause}"
    );
    let busy = email(port, &["busy@school.example"]);
    let cause = unavailable(busy.deliver(&notification).await);
    assert!(cause.contains("451"), "{cause}");
    assert!(receiver.stop().await.is_empty());
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let email = email(free_port(), &["ops@school.example"]);
    let cause = unavailable(email.deliver(&notification("00c0ffee-4-ops-mail")).await);
    assert!(cause.contains("refused"), "{cause}");
}

#[tokio::test]
async fn server_that_says_nothing_is_left_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut settings = settings(port, &["ops@school.example"]);
    settings.timeout_secs = Bounded::of::<1>();
    let email = Email::new("ops-mail", settings).unwrap();
    unavailable(email.deliver(&notification("00c0ffee-5-ops-mail")).await);
}

#[tokio::test]
async fn server_without_tls_gets_no_message_and_no_password() {
    if !ready() {
        return;
    }
    let (receiver, port) = Receiver::python("smtp.py", &[]).await;
    let email = Email::new("ops-mail", encrypted(port, "hush")).unwrap();
    let cause = unavailable(email.deliver(&notification("00c0ffee-6-ops-mail")).await);
    assert!(!cause.contains("hush"), "{cause}");
    assert!(receiver.stop().await.is_empty());
}

fn encrypted(port: u16, password: &str) -> EmailSettings {
    EmailSettings {
        security: Security::Starttls,
        username: Some("tidings".into()),
        password: Some(password.into()),
        ..settings(port, &["ops@school.example"])
    }
}

#[tokio::test]
async fn certificate_must_be_trusted_and_the_login_right() {
    if !ready() || !needs("openssl") {
        return;
    }
    // The second half: in the process that trusts the certificate.
    if let Some(directory) = std::env::var_os("TLS_DIRECTORY") {
        let directory = Path::new(&directory).to_str().unwrap();
        let (mut receiver, port) = Receiver::python("smtp.py", &[directory]).await;
        let notification = notification("00c0ffee-7-ops-mail");
        let wrong = Email::new("ops-mail", encrypted(port, "wrong-hush")).unwrap();
        // Somebody will mend it: that is no reason to give the event up.
        let cause = unavailable(wrong.deliver(&notification).await);
        assert!(cause.contains("535") && !cause.contains("hush"), "{cause}");
        let email = Email::new("ops-mail", encrypted(port, "hush")).unwrap();
        email.deliver(&notification).await.unwrap();
        let message = receiver.json().await;
        assert_eq!(message["encrypted"], true);
        assert_eq!(message["login"], "tidings");
        return;
    }

    let directory = tempfile::tempdir().unwrap();
    make_certificate(directory.path());
    let path = directory.path().to_str().unwrap();
    let (receiver, port) = Receiver::python("smtp.py", &[path]).await;
    let email = Email::new("ops-mail", encrypted(port, "hush")).unwrap();
    let cause = unavailable(email.deliver(&notification("00c0ffee-7-ops-mail")).await);
    assert!(cause.contains("certificate"), "{cause}");
    assert!(receiver.stop().await.is_empty());
    let name = "certificate_must_be_trusted_and_the_login_right";
    rerun_trusting(directory.path(), module_path!(), name).await;
}
