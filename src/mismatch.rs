//! Why JSON from a client does not fit: which field is wrong, and what would be right.
//!
//! serde's errors name Rust's types and no field. The path to the field is found by reading the JSON a second time, so what fits
//! costs hardly more.

use serde::Deserializer;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The most characters of a client's text that an error shows.
pub(crate) const SHOWN_CHARS: usize = 64;

/// Reads the members of an object.
pub(crate) fn read_object<T: DeserializeOwned>(object: &Map<String, Value>) -> Result<T, String> {
    T::deserialize(object).map_err(|error| {
        let text = error.to_string();
        located::<T, _>(object, text)
    })
}

/// Describes why a text of JSON does not fit, for which serde has returned `error`.
pub(crate) fn in_text<T: DeserializeOwned>(text: &str, error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let error = error.to_string();
    let error = error.strip_suffix(&place).unwrap_or(&error).to_owned();
    located::<T, _>(&mut serde_json::Deserializer::from_str(text), error)
}

/// Reads again, to find the field to which the error refers.
fn located<'de, T: DeserializeOwned, D: Deserializer<'de>>(json: D, error: String) -> String {
    let path = match serde_path_to_error::deserialize::<D, T>(json) {
        Ok(_) => return error,
        Err(failed) => failed.path().to_string(),
    };
    let path = path.trim_end_matches('?').trim_end_matches('.');
    describe(path, &with_short_name(error))
}

/// Returns the error with the beginning of the name that is unknown, which a client can make as long as a body.
fn with_short_name(error: String) -> String {
    let parts = error.split_once('`').and_then(|(what, rest)| {
        let is_of_name = matches!(what, "unknown field " | "unknown variant ");
        let known = ["`, expected ", "`, there are no "];
        // The name can contain these words, too.
        let end = known.iter().filter_map(|known| rest.rfind(known)).max();
        let (name, known) = rest.split_at(end.filter(|_| is_of_name)?);
        Some(format!("{what}`{}{known}", shortened(name)))
    });
    parts.unwrap_or(error)
}

/// Returns a sentence about the field at `path`, which is empty for the whole.
fn describe(path: &str, error: &str) -> String {
    let field = match path {
        "" => "it".to_owned(),
        path => format!("`{}`", shortened(path)),
    };
    let found_and_expected = error
        .strip_prefix("invalid type: ")
        .or_else(|| error.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "));
    if let Some((found, expected)) = found_and_expected {
        return format!("{field} must be {}, not {}", words(expected), value(found));
    }
    if let Some(expected) = error.strip_prefix("expected ") {
        return format!("{field} must be {}", words(expected));
    }
    // The error names the field itself, so its object is what is left to say.
    let object = match error.split_once(" `").map(|(what, _)| what) {
        Some("missing field") => Some(path),
        Some("unknown field" | "duplicate field") => {
            Some(path.rsplit_once('.').map_or("", |(object, _)| object))
        }
        _ => None,
    };
    match object {
        Some("") => error.to_owned(),
        Some(object) => format!("in `{}`: {error}", shortened(object)),
        None if path.is_empty() || error.starts_with('`') => error.to_owned(),
        None => format!("{field}: {error}"),
    }
}

/// Returns what serde expects in words of JSON.
fn words(expected: &str) -> &str {
    match expected {
        "u8" => "an integer from 0 to 255",
        "u16" => "an integer from 0 to 65535",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "an integer from 0 to 18446744073709551615",
        "a nonzero u32" => "an integer from 1 to 4294967295",
        "a nonzero u64" => "an integer from 1 to 18446744073709551615",
        "i64" => "an integer from -9223372036854775808 to 9223372036854775807",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        // One of several texts.
        "value" | "string or map" => "a string",
        other if other.starts_with("struct ") => "an object",
        other => other,
    }
}

/// Returns what serde has found as it is written in JSON.
fn value(found: &str) -> String {
    match found {
        "map" => "an object".to_owned(),
        "sequence" => "a list".to_owned(),
        found => {
            let kinds = ["string ", "integer ", "floating point ", "boolean "];
            let mut written = kinds.iter().filter_map(|kind| found.strip_prefix(kind));
            shortened(written.next().unwrap_or(found).trim_matches('`'))
        }
    }
}

/// Returns the beginning of a text, if it is long.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only errors are of interest")]
    struct Report {
        progress: Option<f64>,
        attempt: Option<u32>,
        title: Option<String>,
        values: Option<Vec<f64>>,
        is_last: Option<bool>,
        error: Option<Failure>,
        only: Option<Only>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only errors are of interest")]
    struct Failure {
        code: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Only {
        One,
        Two,
    }

    #[test]
    fn an_error_names_the_field_and_what_would_be_right() {
        for (text, expected) in [
            ("null", "it must be an object, not null"),
            ("5", "it must be an object, not 5"),
            (r#""x""#, r#"it must be an object, not "x""#),
            (
                r#"{"progress": "x, expected u32"}"#,
                r#"`progress` must be a number, not "x, expected u32""#,
            ),
            (
                r#"{"progress": true}"#,
                "`progress` must be a number, not true",
            ),
            (
                r#"{"attempt": -1}"#,
                "`attempt` must be an integer from 0 to 4294967295, not -1",
            ),
            (
                r#"{"attempt": 1.5}"#,
                "`attempt` must be an integer from 0 to 4294967295, not 1.5",
            ),
            (
                r#"{"title": {}}"#,
                "`title` must be a string, not an object",
            ),
            (r#"{"values": 1}"#, "`values` must be a list, not 1"),
            (
                r#"{"values": [1, []]}"#,
                "`values[1]` must be a number, not a list",
            ),
            (
                r#"{"is_last": "yes"}"#,
                r#"`is_last` must be true or false, not "yes""#,
            ),
            (
                r#"{"error": {"code": 5}}"#,
                "`error.code` must be a string, not 5",
            ),
            (r#"{"error": {}}"#, "in `error`: missing field `code`"),
            (
                r#"{"error": {"code": "a", "x": 1}}"#,
                "in `error`: unknown field `x`, expected `code`",
            ),
            (
                r#"{"only": "three"}"#,
                "`only`: unknown variant `three`, expected `one` or `two`",
            ),
            (
                r#"{"titel": "x"}"#,
                "unknown field `titel`, expected one of `progress`, `attempt`, `title`, `values`, `is_last`, `error`, `only`",
            ),
        ] {
            let error = serde_json::from_str::<Report>(text).unwrap_err();
            assert_eq!(in_text::<Report>(text, &error), expected, "{text}");
            if let Ok(Value::Object(object)) = serde_json::from_str(text) {
                assert_eq!(read_object::<Report>(&object).unwrap_err(), expected);
            }
        }
    }

    /// serde_json does not say what it has found there.
    #[test]
    fn where_one_of_several_texts_is_expected_the_field_is_named_too() {
        let text = r#"{"only": 5}"#;
        let error = serde_json::from_str::<Report>(text).unwrap_err();
        assert_eq!(in_text::<Report>(text, &error), "`only` must be a string");
        let object = serde_json::from_str(text).unwrap();
        let error = read_object::<Report>(&object).unwrap_err();
        assert_eq!(error, "`only` must be a string, not 5");
    }

    #[test]
    fn of_an_object_without_fields_no_field_is_named_as_right() {
        let text = format!(r#"{{"{}": 1}}"#, "x".repeat(1_000));
        let error = serde_json::from_str::<Nothing>(&text).unwrap_err();
        let expected = format!("unknown field `{}…`, there are no fields", "x".repeat(64));
        assert_eq!(in_text::<Nothing>(&text, &error), expected);
    }

    #[test]
    fn a_long_text_is_shown_in_part() {
        let long = "ü`, expected ".repeat(1_000);
        for (text, expected) in [
            (
                format!(r#"{{"progress": "{long}"}}"#),
                "`progress` must be a number, not \"ü`",
            ),
            (format!(r#"{{"{long}": 1}}"#), "unknown field `ü`"),
            (
                format!(r#"{{"error": {{"{long}": 1}}}}"#),
                "in `error`: unknown field `ü`",
            ),
            (
                format!(r#"{{"only": "{long}"}}"#),
                "`only`: unknown variant `ü`",
            ),
        ] {
            let error = serde_json::from_str::<Report>(&text).unwrap_err();
            let described = in_text::<Report>(&text, &error);
            assert!(
                described.len() < 300 && described.starts_with(expected) && described.contains('…'),
                "{described}"
            );
        }
    }
}
