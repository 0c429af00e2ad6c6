//! The format of times and numbers on the pages.

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::wire::timestamp;

/// Returns a time for templates: in machine-readable form, relative to now, and as a date.
pub(super) fn time(at: DateTime<Utc>, now: DateTime<Utc>) -> Value {
    json!({ "exact": timestamp(at), "relative": relative(at - now), "written": written(at, now) })
}

/// Formats a date and time. Leaves out the year if it is the current one.
pub(super) fn written(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let format = match at.year() == now.year() {
        true => "%-d %b, %H:%M:%S UTC",
        false => "%-d %b %Y, %H:%M:%S UTC",
    };
    at.format(format).to_string()
}

/// Returns an optional time for templates.
pub(super) fn optional_time(at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Value {
    at.map_or(Value::Null, |at| time(at, now))
}

/// Formats the distance between now and a time in the past or future.
pub(super) fn relative(distance: TimeDelta) -> String {
    let span = span(distance.abs());
    if distance.abs() < TimeDelta::seconds(1) {
        "now".into()
    } else if distance < TimeDelta::zero() {
        format!("{span} ago")
    } else {
        format!("in {span}")
    }
}

/// Formats a number of seconds in its one or two largest units.
pub(super) fn span_secs(length: u64) -> String {
    let length = length.try_into().ok().and_then(TimeDelta::try_seconds);
    span(length.unwrap_or(TimeDelta::MAX))
}

/// Formats a duration in its one or two largest units.
pub(super) fn span(length: TimeDelta) -> String {
    let secs = length.num_seconds();
    match secs {
        0..60 => format!("{secs} s"),
        60..3_600 => format!("{} min", secs / 60),
        3_600..86_400 => match secs % 3_600 / 60 {
            0 => format!("{} h", secs / 3_600),
            minutes => format!("{} h {minutes} min", secs / 3_600),
        },
        _ => format!("{} d", secs / 86_400),
    }
}

/// Formats a short duration in milliseconds.
pub(super) fn millis(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1e3)
}

/// Formats a size in bytes.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.0} KiB", bytes as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// Formats a count with separated thousands.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut apart = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            apart.push('\u{202f}');
        }
        apart.push(digit);
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted_for_people() {
        for (secs, text) in [
            (0, "now"),
            (-5, "5 s ago"),
            (-61, "1 min ago"),
            (-7_260, "2 h 1 min ago"),
            (-200_000, "2 d ago"),
            (90, "in 1 min"),
            (3_600, "in 1 h"),
        ] {
            assert_eq!(relative(TimeDelta::seconds(secs)), text);
        }
    }

    #[test]
    fn a_moment_has_its_date_and_another_years_also_that() {
        let at = "2026-11-05T07:08:09Z".parse().unwrap();
        assert_eq!(written(at, at), "5 Nov, 07:08:09 UTC");
        let later = at + TimeDelta::days(100);
        assert_eq!(written(at, later), "5 Nov 2026, 07:08:09 UTC");
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(count(7), "7");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
    }
}
