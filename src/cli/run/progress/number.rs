//! Numbers in outputs: percentages, fractions, sizes.

/// Returns how much a part is of a whole, in percent.
pub(super) fn percent_of(part: f64, whole: f64) -> Option<f64> {
    let is_part = whole > 0.0 && (0.0..=whole).contains(&part);
    is_part.then(|| part / whole * 100.0)
}

/// Reads a percentage at the beginning of a text: `45%`, `45.5 %`. Returns it and the rest.
pub(super) fn leading_percent(text: &str) -> Option<(f64, &str)> {
    let (number, rest) = leading_number(text)?;
    let rest = rest.trim_start_matches(' ').strip_prefix('%')?;
    (0.0..=100.0).contains(&number).then_some((number, rest))
}

/// Reads a fraction at the beginning of a text: `12/340`, `12 / 340`. Returns both numbers and the rest.
pub(super) fn leading_fraction(text: &str) -> Option<(f64, f64, &str)> {
    let (part, rest) = leading_whole(text)?;
    let rest = rest.trim_start_matches(' ').strip_prefix('/')?;
    let (whole, rest) = leading_whole(rest.trim_start_matches(' '))?;
    // A date (27/11/2026), a path (1/2/file), a version (1/2.3).
    let is_more = rest.starts_with(|next: char| next.is_alphanumeric() || "/.-_".contains(next));
    (!is_more).then_some((part, whole, rest))
}

/// Reads a non-negative number at the beginning of a text, with or without a fraction.
pub(super) fn leading_number(text: &str) -> Option<(f64, &str)> {
    let is_of_number = |own: char| own.is_ascii_digit() || own == '.';
    let end = text.find(|own| !is_of_number(own)).unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, &text[end..]))
}

/// Reads a whole number at the beginning of a text, with or without separators of thousands: `1,234`, `1_234`.
fn leading_whole(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|own: char| !own.is_ascii_digit() && own != ',' && own != '_')
        .unwrap_or(text.len());
    let digits: String = text[..end].chars().filter(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, &text[end..]))
}

/// Reads a report of a script: `40/200 Reading rows`, `20%`, `20`, or only a message. Returns the percentage and the message.
pub(in crate::cli) fn report(text: &str) -> (Option<f64>, &str) {
    let text = text.trim();
    if let Some((part, whole, rest)) = leading_fraction(text)
        && let Some(percent) = percent_of(part, whole)
    {
        return (Some(percent), rest.trim_start());
    }
    if let Some((percent, rest)) = leading_percent(text)
        && !rest.starts_with(char::is_alphanumeric)
    {
        return (Some(percent), rest.trim_start());
    }
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => (Some(percent), ""),
        _ => (None, text),
    }
}

/// Reads a duration as `HH:MM:SS.ff`, in seconds.
pub(super) fn clock(text: &str) -> Option<f64> {
    let mut secs = 0.0;
    let mut parts = 0;
    for part in text.split(':') {
        let is_number = part.bytes().all(|own| own.is_ascii_digit() || own == b'.');
        let part: f64 = part.parse().ok().filter(|_| is_number)?;
        secs = secs * 60.0 + part;
        parts += 1;
    }
    (parts == 3).then_some(secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reports_a_fraction_a_percentage_or_a_message() {
        for (text, expected) in [
            ("40/200 Reading rows", (Some(20.0), "Reading rows")),
            ("1,500/3,000", (Some(50.0), "")),
            ("20%", (Some(20.0), "")),
            (" 12.5 % done", (Some(12.5), "done")),
            ("7", (Some(7.0), "")),
            ("300/200 x", (None, "300/200 x")),
            ("0/0", (None, "0/0")),
            ("101%", (None, "101%")),
            ("27/11/2026", (None, "27/11/2026")),
            ("Reading 3/4", (None, "Reading 3/4")),
            ("NaN", (None, "NaN")),
            ("-1", (None, "-1")),
        ] {
            assert_eq!(report(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(clock("01:02:03.50"), Some(3_723.5));
        for text in ["N/A", "1:2", "-1:00:00", "a:b:c", "1:2:3:4"] {
            assert_eq!(clock(text), None, "{text}");
        }
    }
}
