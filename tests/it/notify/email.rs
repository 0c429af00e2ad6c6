//! E-mail, to a real SMTP server.

use std::path::Path;

use serde_json::{Value, json};
use tidings::config::notifiers::{EmailSettings, Security};
use tidings::notify::email::Email;
use tidings::notify::notification::{Medium as _, Notification};

use super::receivers::{
    Receiver, free_port, make_certificate, needs_python, notification, permanent, rerun_trusting,
    temporary,
};
use crate::support::needs;

fn settings(port: u16, to: &[&str]) -> EmailSettings {
    EmailSettings {
        host: "127.0.0.1".into(),
        port,
        security: Security::None,
        username: None,
        password: None,
        from: "Tidings <tidings@school.example>".into(),
        to: to.iter().copied().map(String::from).collect(),
        timeout_secs: 20,
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

#[tokio::test]
async fn refused_mailbox_is_permanent_and_a_busy_one_temporary() {
    if !ready() {
        return;
    }
    let (receiver, port) = Receiver::python("smtp.py", &[]).await;
    let notification = notification("00c0ffee-3-ops-mail");
    let refused = email(port, &["refused@school.example"]);
    let cause = permanent(refused.deliver(&notification).await);
    assert!(
        cause.contains("550") && cause.contains("no such mailbox"),
        "{cause}"
    );
    let busy = email(port, &["busy@school.example"]);
    let cause = temporary(busy.deliver(&notification).await);
    assert!(cause.contains("451"), "{cause}");
    assert!(receiver.stop().await.is_empty());
}

#[tokio::test]
async fn nobody_there_is_temporary() {
    let email = email(free_port(), &["ops@school.example"]);
    let cause = temporary(email.deliver(&notification("00c0ffee-4-ops-mail")).await);
    assert!(cause.contains("refused"), "{cause}");
}

#[tokio::test]
async fn server_that_says_nothing_is_left_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut settings = settings(port, &["ops@school.example"]);
    settings.timeout_secs = 1;
    let email = Email::new("ops-mail", settings).unwrap();
    temporary(email.deliver(&notification("00c0ffee-5-ops-mail")).await);
}

#[tokio::test]
async fn server_without_tls_gets_no_message_and_no_password() {
    if !ready() {
        return;
    }
    let (receiver, port) = Receiver::python("smtp.py", &[]).await;
    let email = Email::new("ops-mail", encrypted(port, "hush")).unwrap();
    let cause = temporary(email.deliver(&notification("00c0ffee-6-ops-mail")).await);
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
        let cause = temporary(wrong.deliver(&notification).await);
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
    let cause = temporary(email.deliver(&notification("00c0ffee-7-ops-mail")).await);
    assert!(cause.contains("certificate"), "{cause}");
    assert!(receiver.stop().await.is_empty());
    let name = "certificate_must_be_trusted_and_the_login_right";
    rerun_trusting(directory.path(), module_path!(), name).await;
}
