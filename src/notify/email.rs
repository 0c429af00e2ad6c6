//! Delivers notifications as e-mails over SMTP.
//!
//! Each message has its own connection. A message counts as delivered when the server has accepted it; whether a
//! recipient reads it is unknown. Every attempt sends the same message with the same `Message-ID`, so that servers and
//! mailboxes recognise repetitions. Certificates are checked against the system's certificate authorities
//! (`SSL_CERT_FILE` overrides them).

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use chrono::SecondsFormat;
use lettre::message::header::{Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder, SinglePart};
use lettre::transport::smtp;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::notification::{DeliveryError, Medium, Notification, not_json, one_line};
use crate::config::notifiers::{EmailSettings, Security};

/// Maximum number of recipients of one notifier.
const RECIPIENTS_MAX: usize = 20;

/// Recipients behind an SMTP server.
pub struct Email {
    from: Mailbox,
    to: Vec<Mailbox>,
    timeout: Duration,
    transport: AsyncSmtpTransport<Tokio1Executor>,
    /// Allows one message at a time.
    turn: Semaphore,
}

impl Email {
    /// Checks the settings without connecting. The error names the setting and contains no secret.
    pub fn new(name: &str, settings: EmailSettings) -> Result<Email, String> {
        let timeout = Duration::from_secs(settings.timeout_secs.get());
        if settings.host.is_empty() {
            return Err("setting `host` must not be empty".into());
        }
        if !(1..=RECIPIENTS_MAX).contains(&settings.to.len()) {
            return Err(format!(
                "setting `to` must have 1 to {RECIPIENTS_MAX} mailboxes"
            ));
        }
        let to = settings
            .to
            .iter()
            .map(|mailbox| parse_mailbox("to", mailbox));
        let builder =
            AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(settings.host.as_str())
                .port(settings.port.get())
                .timeout(Some(timeout))
                .tls(tls(settings.security, &settings.host)?);
        let builder = match (settings.username, settings.password) {
            (Some(username), Some(password)) => {
                if settings.security == Security::None {
                    tracing::warn!(
                        notifier.name = name,
                        "the password for the mail server is sent unencrypted"
                    );
                }
                builder.credentials(Credentials::new(username, password.reveal().into()))
            }
            (None, None) => builder,
            (Some(_), None) => return Err("setting `username` requires a `password`".into()),
            (None, Some(_)) => return Err("setting `password` requires a `username`".into()),
        };
        Ok(Email {
            from: parse_mailbox("from", &settings.from)?,
            to: to.collect::<Result<_, _>>()?,
            timeout,
            transport: builder.build(),
            turn: Semaphore::new(1),
        })
    }

    fn message(&self, notification: &Notification) -> Result<Message, DeliveryError> {
        let addressed = self
            .to
            .iter()
            .cloned()
            .fold(MessageBuilder::new(), MessageBuilder::to);
        addressed
            .from(self.from.clone())
            .subject(subject(notification))
            // The event's own time, but not before 1970, which the header cannot express.
            .date(SystemTime::from(notification.at).max(SystemTime::UNIX_EPOCH))
            .message_id(Some(format!(
                "<{}@{}>",
                atom(&notification.id),
                self.from.email.domain()
            )))
            .header(AutoSubmitted)
            // `body` alone would omit `MIME-Version`, without which the text's encoding has no meaning.
            .singlepart(SinglePart::plain(body(notification)?))
            .map_err(|_| {
                DeliveryError::Permanent("the event cannot be written as an e-mail".into())
            })
    }
}

#[async_trait]
impl Medium for Email {
    fn name(&self) -> &'static str {
        "email"
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        let _turn = self
            .turn
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let message = self.message(notification)?;
        // Lettre's own timeout applies to each step.
        match timeout(self.timeout, self.transport.send(message)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(judge(&error)),
            Err(_) => Err(DeliveryError::unavailable(format!(
                "the server did not accept the message within {} s",
                self.timeout.as_secs()
            ))),
        }
    }
}

/// Asks other programs not to reply automatically (RFC 3834).
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".into())
    }
}

/// Classifies an SMTP error. A 4xx reply (greylisting, a full mailbox) asks to retry later. It counts as unavailable,
/// because the next message would get the same reply.
fn judge(error: &smtp::Error) -> DeliveryError {
    let cause = one_line(&error.to_string());
    // A rejected login does not depend on the message: an operator will fix it (RFC 4954).
    let is_login = error
        .status()
        .is_some_and(|code| ["530", "534", "535", "538"].contains(&code.to_string().as_str()));
    if error.is_permanent() && !is_login {
        DeliveryError::Permanent(cause)
    } else {
        DeliveryError::unavailable(cause)
    }
}

fn tls(security: Security, host: &str) -> Result<Tls, String> {
    let parameters = || {
        TlsParameters::new(host.into())
            .map_err(|error| format!("setting `security` cannot be used: {error}"))
    };
    Ok(match security {
        Security::None => Tls::None,
        Security::Starttls => Tls::Required(parameters()?),
        Security::Tls => Tls::Wrapper(parameters()?),
    })
}

fn parse_mailbox(setting: &str, mailbox: &str) -> Result<Mailbox, String> {
    mailbox
        .parse()
        .map_err(|_| format!("setting `{setting}` has {mailbox:?}, which is not a mailbox such as `Name <name@example.com>`"))
}

/// `[Tidings] School 7: job "Class list" failed`; without a title: `[Tidings] School 7: job report-7 failed`.
fn subject(notification: &Notification) -> String {
    let noun = noun(notification.kind);
    let text = match &notification.severity {
        Some(severity) => {
            format!(
                ": {} ({severity})",
                notification.event_type.replace('_', " ")
            )
        }
        None => format!(" {}", notification.status.replace('_', " ")),
    };
    let name = match &notification.title {
        Some(title) => format!("\"{title}\""),
        None => notification.subject.clone(),
    };
    // Lettre encodes and folds what a header cannot hold. But a reader would still see a line break as one.
    one_line(&format!(
        "[Tidings] School {}: {noun} {name}{text}",
        notification.school_id
    ))
}

/// Returns the noun for one subject of a kind.
fn noun(kind: &str) -> &str {
    kind.strip_suffix('s').unwrap_or(kind)
}

/// Returns the text of the message: the main details, followed by the whole event.
fn body(notification: &Notification) -> Result<String, DeliveryError> {
    // Parsed only to indent it.
    let event: serde_json::Value =
        serde_json::from_slice(&notification.json).map_err(|_| not_json())?;
    let error = error_of(&event);
    let event = serde_json::to_string_pretty(&event).map_err(|_| not_json())?;
    let school = notification.school_id.to_string();
    let at = notification.at.to_rfc3339_opts(SecondsFormat::Secs, true);
    let details = [
        ("School", Some(school.as_str())),
        ("Kind", Some(noun(notification.kind))),
        ("Id", Some(&notification.subject)),
        ("Title", notification.title.as_deref()),
        ("Status", Some(notification.status)),
        ("Error", error.as_deref()),
        ("Severity", notification.severity.as_deref()),
        ("Event", Some(notification.event_type)),
        ("At", Some(&at)),
        ("Notification", Some(&notification.id)),
    ];
    let mut body = String::new();
    for (label, value) in details {
        if let Some(value) = value {
            writeln!(body, "{:<14}{}", format!("{label}:"), one_line(value))
                .expect("a string takes all");
        }
    }
    Ok(format!("{body}\n{event}"))
}

/// Returns why a job or session failed, with its code.
fn error_of(event: &serde_json::Value) -> Option<String> {
    let error = event.get("error")?;
    let (code, message) = match error.as_str() {
        Some(message) => (event.get("code"), message),
        None => (error.get("code"), error.get("message")?.as_str()?),
    };
    let code = code.and_then(serde_json::Value::as_str);
    Some(match code {
        Some(code) => format!("{message} ({code})"),
        None => message.to_owned(),
    })
}

/// Returns `text` as an atom of RFC 5322. Distinct texts have distinct atoms: other bytes are written as `=` and two
/// digits.
fn atom(text: &str) -> String {
    let mut atom = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) {
            atom.push(byte.into());
        } else {
            write!(atom, "={byte:02X}").expect("a string takes all");
        }
    }
    atom
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Bounded;
    use crate::kind::EventDetails;

    fn settings() -> EmailSettings {
        EmailSettings {
            host: "mail.example".into(),
            port: Bounded::of::<587>(),
            security: Security::Starttls,
            username: Some("tidings".into()),
            password: Some("hush".into()),
            from: "Tidings <tidings@school.example>".into(),
            to: vec!["ops@school.example".into()],
            timeout_secs: Bounded::of::<20>(),
        }
    }

    fn notification() -> Notification {
        Notification {
            id: "00c0ffee-7-ops-mail".into(),
            school_id: 7,
            kind: "jobs",
            subject: "report-7".into(),
            title: None,
            event_type: "job_progress",
            status: "failed",
            severity: None,
            at: "2026-03-01T08:00:00Z".parse().unwrap(),
            details: EventDetails::default(),
            json: br#"{"type":"job_progress","job_id":"report-7"}"#.to_vec(),
        }
    }

    fn error(settings: EmailSettings) -> String {
        Email::new("ops", settings).err().unwrap()
    }

    #[test]
    fn the_text_says_why_a_subject_failed() {
        for (json, expected) in [
            (
                r#"{"error":{"code":"no_input","message":"the file\nis missing"}}"#,
                "Error:        the file is missing (no_input)\n",
            ),
            (
                r#"{"error":"bad finger","code":"quality"}"#,
                "Error:        bad finger (quality)\n",
            ),
            (r#"{"error":"bad finger"}"#, "Error:        bad finger\n"),
        ] {
            let notification = Notification {
                json: json.into(),
                ..notification()
            };
            let text = body(&notification).unwrap();
            assert!(text.contains(expected), "{text}");
        }
        assert!(!body(&notification()).unwrap().contains("Error:"));
    }

    #[test]
    fn subjects_are_for_people() {
        assert_eq!(
            subject(&notification()),
            "[Tidings] School 7: job report-7 failed"
        );
        let titled = Notification {
            title: Some("Class list 7b".into()),
            ..notification()
        };
        assert_eq!(
            subject(&titled),
            "[Tidings] School 7: job \"Class list 7b\" failed"
        );
        let violation = Notification {
            kind: "characteristics",
            subject: "temp-1".into(),
            event_type: "violation",
            severity: Some("critical".into()),
            ..notification()
        };
        assert_eq!(
            subject(&violation),
            "[Tidings] School 7: characteristic temp-1: violation (critical)"
        );
    }

    #[test]
    fn a_message_is_the_same_at_every_attempt() {
        let email = Email::new("ops", settings()).unwrap();
        let attempt = || email.message(&notification()).unwrap().formatted();
        assert_eq!(attempt(), attempt());
        let text = String::from_utf8(attempt()).unwrap();
        assert!(text.contains("Message-ID: <00c0ffee-7-ops-mail@school.example>\r\n"));
    }

    #[test]
    fn message_ids_are_atoms_and_stay_distinct() {
        assert_eq!(atom("a-b"), "a-b");
        assert_eq!(atom("a.b> c"), "a=2Eb=3E=20c");
        assert_ne!(atom("a=2Eb"), atom("a.b"));
    }

    #[test]
    fn settings_that_cannot_work_are_rejected() {
        assert!(Email::new("ops", settings()).is_ok());
        let to = |to: &[&str]| EmailSettings {
            to: to.iter().copied().map(String::from).collect(),
            ..settings()
        };
        assert!(error(to(&[])).contains("`to`"));
        assert!(error(to(&["a@b.example"; 21])).contains("`to`"));
        assert!(error(to(&["nobody"])).contains("`to`"));
        assert!(error(to(&["a@b.example\r\nBcc: c@d.example"])).contains("`to`"));
        let mut bad = settings();
        bad.from = "nobody".into();
        assert!(error(bad).contains("`from`"));
        let mut bad = settings();
        bad.username = None;
        assert!(error(bad).contains("`username`"));
        let mut bad = settings();
        bad.password = None;
        assert!(error(bad).contains("`password`"));
    }

    #[test]
    fn settings_do_not_show_the_password() {
        assert!(!format!("{:?}", settings()).contains("hush"));
    }
}
