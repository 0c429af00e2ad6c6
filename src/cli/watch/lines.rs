//! One line of text for each message.

use console::truncate_str;
use serde_json::Value;

use super::goal::outcome;
use crate::cli::terminal::plain;
use crate::id::is_visible;
use crate::kind::DESCRIPTIONS;

/// Returns the line for a message. None for messages that report nothing, such as `ready`.
pub(super) fn line(message: &Value) -> Option<String> {
    if message["job_id"].is_string() {
        return Some(job(message, None));
    }
    let text = match message["type"].as_str()? {
        "device_status_update" => device(message),
        "device_info_update" => columns("info", message["device_id"].as_str(), &message["info"]),
        "enrollment_progress"
        | "enrollment_complete"
        | "enrollment_error"
        | "enrollment_cancelled" => enrollment(message),
        "sample" => sample(&message["payload"]),
        "violation" => violation(&message["payload"]),
        "ack_update" => acknowledgement(&message["payload"]),
        "control_limits" => limits(&message["payload"]),
        name => generic(name, message)?,
    };
    Some(plain(&text))
}

/// Returns the line for a subject whose kind has no specific format. None if the message is not an event.
fn generic(name: &str, message: &Value) -> Option<String> {
    let kind = DESCRIPTIONS.iter().find(|kind| {
        kind.event_types
            .iter()
            .any(|event_type| event_type.name == name)
    })?;
    let text = |field: &str| message[field].as_str().unwrap_or_default();
    let rest = format!("{}  {}", text("status"), text("message"));
    Some(columns(
        &kind.noun.to_lowercase(),
        message[kind.id_field].as_str(),
        rest.trim(),
    ))
}

/// Returns the visible name of a job: its title, its path, or else its id.
pub(super) fn name(message: &Value) -> String {
    let metadata = &message["metadata"];
    let names = [&metadata["title"], &metadata["path"], &message["job_id"]];
    let mut names = names.into_iter().filter_map(Value::as_str);
    plain(names.find(|name| is_visible(name)).unwrap_or("?"))
}

/// Returns the line for a job, with its name shortened to `name_columns`.
pub(super) fn job(message: &Value, name_columns: Option<usize>) -> String {
    let text = |field: &str| plain(message[field].as_str().unwrap_or_default());
    let mut name = name(message);
    if let Some(columns) = name_columns {
        name = truncate_str(&name, columns, "…").into_owned();
    }
    let (status, percent) = (text("status"), job_percent(message));
    let marks = marks(message);
    format!("{status:<11} {percent} {name}  {marks}{}", text("message"))
}

/// Returns what needs attention in a job that has not ended.
pub(super) fn marks(message: &Value) -> String {
    let mut marks = String::new();
    if outcome(message).is_some() {
        return marks;
    }
    for (field, mark) in [
        ("stalled", "STALLED "),
        ("cancel_requested", "CANCEL REQUESTED "),
    ] {
        if message[field] == true {
            marks += mark;
        }
    }
    marks
}

pub(super) fn percent(message: &Value) -> String {
    message["progress"]
        .as_f64()
        .map_or("?".to_owned(), |progress| format!("{progress:.0}%"))
}

/// Returns the progress of a job as a column. 0 is shown as unknown, because a job is created with it.
pub(super) fn job_percent(message: &Value) -> String {
    match message["progress"].as_f64() {
        Some(0.0) => "   –".to_owned(),
        _ => format!("{:>4}", percent(message)),
    }
}

/// Formats the columns of a line: what happened, the id of the subject, and the details.
fn columns(what: &str, whom: Option<&str>, rest: impl std::fmt::Display) -> String {
    format!("{what:<13}{}  {rest}", whom.unwrap_or("?"))
}

fn device(message: &Value) -> String {
    let mut rest = message["name"].as_str().unwrap_or_default().to_owned();
    if message["status"] != "online"
        && let Some(seen) = message["last_seen"].as_str()
    {
        rest += &format!(" (last seen {seen})");
    }
    if message["flapping"] == true {
        rest += " FLAPPING";
    }
    let status = message["status"].as_str().unwrap_or("?");
    columns(status, message["device_id"].as_str(), rest.trim_start())
}

fn enrollment(message: &Value) -> String {
    let text = |field: &str| message[field].as_str().unwrap_or_default();
    let who = [text("device_id"), text("student_id")];
    let known = who.into_iter().filter(|text| !text.is_empty());
    let mut rest = known.collect::<Vec<_>>().join(", ");
    if let (Some(attempt), Some(total)) = (
        message["attempt"].as_u64(),
        message["total_attempts"].as_u64(),
    ) {
        rest += &format!(", scan {attempt} of {total}");
    }
    if message["progress"].is_number() {
        rest += &format!(", {}", percent(message));
    }
    match text("code") {
        "" => rest += &format!(": {}", text("message")),
        code => rest += &format!(": {} ({code})", text("error")),
    }
    if let Some(quality) = message["quality_score"].as_f64() {
        rest += &format!(", quality {quality}");
    }
    columns(text("status"), message["session_id"].as_str(), rest)
}

fn sample(payload: &Value) -> String {
    let mut rest = match payload["mean"].is_null() {
        true => "not measured".to_owned(),
        false => number(&payload["mean"]),
    };
    if let Some(zone) = payload["zone"].as_str() {
        rest += &format!(" {zone}");
    }
    if payload["in_control"] == false {
        rest += " OUT OF CONTROL";
    }
    columns("sample", payload["characteristic_id"].as_str(), rest)
}

fn violation(payload: &Value) -> String {
    let text = |field: &str| payload[field].as_str().unwrap_or("?");
    let rest = format!(
        "rule {}: {}, {}",
        payload["rule_id"],
        text("rule_name"),
        text("severity")
    );
    columns("violation", payload["violation_id"].as_str(), rest)
}

fn acknowledgement(payload: &Value) -> String {
    let text = |field: &str| payload[field].as_str().unwrap_or("?");
    let rest = format!("{}: {}", text("user"), text("reason"));
    let what = match payload["acknowledged"] == false {
        true => "open again",
        false => "acknowledged",
    };
    columns(what, payload["violation_id"].as_str(), rest)
}

fn limits(payload: &Value) -> String {
    let line = |field: &str| number(&payload[field]);
    let mut rest = match payload["method"].as_str() {
        Some(method) => format!(
            "{} to {} around {} ({method})",
            line("lcl"),
            line("ucl"),
            line("center_line")
        ),
        None => "none".to_owned(),
    };
    if let Some(samples) = payload["baseline"]["samples"].as_u64() {
        rest += &format!(", learning from the next {samples} samples");
    }
    columns("limits", payload["characteristic_id"].as_str(), rest)
}

/// Rounds a number: computed numbers have more digits than are useful.
fn number(value: &Value) -> String {
    value.as_f64().map_or("?".to_owned(), |number| {
        let rounded = (number * 10_000.0).round() / 10_000.0;
        rounded.to_string()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_not_printed() {
        let message = json!({"type": "device_status_update", "device_id": "a", "status": "online", "name": "\u{1b}[2J"});
        assert_eq!(line(&message).unwrap(), "online       a  \\u{1b}[2J");
    }

    #[test]
    fn a_job_is_named_by_its_title_or_its_path_or_its_id() {
        for (metadata, expected) in [
            (json!({"title": "Yearbook", "path": "/a/b"}), "Yearbook"),
            (json!({"title": " ", "path": "/a/b"}), "/a/b"),
            (json!({"title": "\u{200b}\u{feff}", "path": "/a/b"}), "/a/b"),
            (
                json!({"title": "\u{1b}\u{7f}", "path": "\u{2800}\u{3164}"}),
                "42",
            ),
            (json!({"title": 7}), "42"),
            (json!(null), "42"),
            (json!({"title": "a\u{1b}[31m"}), "a\\u{1b}[31m"),
        ] {
            assert_eq!(
                name(&json!({"job_id": "42", "metadata": metadata})),
                expected
            );
        }
    }

    #[test]
    fn a_line_says_whether_an_open_job_has_stalled_or_is_to_be_cancelled() {
        let line_of = |status: &str| {
            let message = json!({
                "type": "job_progress", "job_id": "a", "status": status, "progress": 40.0, "message": "Page 2",
                "stalled": true, "cancel_requested": true,
            });
            line(&message).unwrap()
        };
        assert_eq!(
            line_of("in_progress"),
            "in_progress  40% a  STALLED CANCEL REQUESTED Page 2"
        );
        assert_eq!(line_of("cancelled"), "cancelled    40% a  Page 2");
    }

    #[test]
    fn what_is_not_news_has_no_line() {
        for message in [json!({"type": "ready"}), json!({"type": "new"}), json!({})] {
            assert_eq!(line(&message), None);
        }
    }
}
