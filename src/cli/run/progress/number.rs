//! Numbers in outputs: percentages, fractions, sizes.

/// Returns how much a part is of a whole, in percent.
pub(super) fn percent_of(part: f64, whole: f64) -> Option<f64> {
    let is_part = whole > 0.0 && (0.0..=whole).contains(&part);
    is_part.then(|| part / whole * 100.0)
}

/// Reads a percentage at the beginning of a text: `45%`, `45.5 %`, `12,5 %`. Returns it and the rest.
pub(super) fn leading_percent(text: &str) -> Option<(f64, &str)> {
    let (number, rest) = leading_decimal(text)?;
    // Many languages put a space there, often a non-breaking one.
    let rest = rest.trim_start_matches([' ', '\u{a0}', '\u{202f}']);
    let rest = rest.strip_prefix('%')?;
    (0.0..=100.0).contains(&number).then_some((number, rest))
}

/// Reads a fraction at the beginning of a text: `12/340`, `12 / 340`. Returns both numbers and the rest.
pub(super) fn leading_fraction(text: &str) -> Option<(f64, f64, &str)> {
    let (part, rest) = leading_whole(text)?;
    let rest = rest.trim_start_matches(' ').strip_prefix('/')?;
    let (whole, rest) = leading_whole(rest.trim_start_matches(' '))?;
    (!continues_number(rest)).then_some((part, whole, rest))
}

/// Reads a count in words at the beginning of a text: `40 of 200`. Returns both numbers and the rest.
pub(super) fn leading_count_of(text: &str) -> Option<(f64, f64, &str)> {
    let (part, rest) = leading_whole(text)?;
    let rest = rest.strip_prefix(' ')?.trim_start_matches(' ');
    let rest = rest.strip_prefix("out ").unwrap_or(rest);
    let (whole, rest) = leading_whole(rest.strip_prefix("of ")?.trim_start_matches(' '))?;
    (!continues_number(rest)).then_some((part, whole, rest))
}

/// Whether what follows belongs to a number: a date (27/11/2026), a path (1/2/file), a version (1/2.3), a percentage.
fn continues_number(rest: &str) -> bool {
    let mut next = rest.chars();
    match next.next() {
        Some(c) if c.is_alphanumeric() || "/_%\"'″".contains(c) => true,
        // Otherwise it is punctuation.
        Some('.' | '-') => next.next().is_some_and(char::is_alphanumeric),
        _ => false,
    }
}

/// Reads a non-negative number at the beginning of a text, with or without a fraction after a point or a comma. A comma before three
/// digits separates thousands.
fn leading_decimal(text: &str) -> Option<(f64, &str)> {
    let is_digit = |c: &char| c.is_ascii_digit();
    let (number, rest) = leading_number(text)?;
    let whole = text[..text.len() - rest.len()].bytes();
    match rest.strip_prefix(',') {
        Some(more) if whole.into_iter().all(|byte| byte.is_ascii_digit()) => {
            let count = more.chars().take_while(is_digit).count();
            match count {
                0 | 3.. => None,
                _ => {
                    let text = format!("{}.{}", &text[..text.len() - rest.len()], &more[..count]);
                    Some((text.parse().ok()?, &more[count..]))
                }
            }
        }
        _ => Some((number, rest)),
    }
}

/// Reads a non-negative number at the beginning of a text, with or without a fraction.
pub(super) fn leading_number(text: &str) -> Option<(f64, &str)> {
    let is_of_number = |c: char| c.is_ascii_digit() || c == '.';
    let end = text.find(|c| !is_of_number(c)).unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, &text[end..]))
}

/// Reads a whole number at the beginning of a text, with or without separators of thousands: `1,234`, `1_234`.
fn leading_whole(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != ',' && c != '_')
        .unwrap_or(text.len());
    // A comma at the end is punctuation.
    let end = text[..end].trim_end_matches([',', '_']).len();
    let digits: String = text[..end].chars().filter(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, &text[end..]))
}

/// Reads a duration as `HH:MM:SS.ff`, in seconds.
pub(super) fn clock(text: &str) -> Option<f64> {
    let mut secs = 0.0;
    let mut parts = 0;
    for part in text.split(':') {
        let is_number = part
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
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
    fn durations_are_read() {
        assert_eq!(clock("01:02:03.50"), Some(3_723.5));
        for text in ["N/A", "1:2", "-1:00:00", "a:b:c", "1:2:3:4"] {
            assert_eq!(clock(text), None, "{text}");
        }
    }
}
