//! Parses the JSON that clients send. Nothing in it is changed silently.
//!
//! - An integer must fit into 64 bits, signed or unsigned, and any other number into a double. A number that does not fit
//!   would be rounded, so it is rejected with its place.
//! - An escaped surrogate without its partner (`"\ud800"`) stands for no character. It becomes U+FFFD: publishers pass on the
//!   output of programs, and losing the report would be worse than losing the character.
//!
//! `serde_json` could keep every number exactly (`arbitrary_precision`), but all crates of a program share its features: an
//! application that embeds this crate would get a different `serde_json`.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::mismatch::{self, SHOWN_CHARS, shortened};

/// A number that cannot be represented exactly.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "`{place}` is {number}: an integer must be from {} to {}, and any other number must fit into a double; send other \
     numbers as strings",
    i64::MIN,
    u64::MAX
)]
pub struct InexactNumber {
    /// The number's place, for example `metadata.serials[2]`.
    place: String,
    number: String,
}

/// Why a text cannot be parsed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JsonError {
    /// The text is not JSON.
    #[error("{0}")]
    Malformed(String),
    /// A field is missing, unknown or of the wrong type.
    #[error("{0}")]
    Unexpected(String),
    /// A number would be rounded.
    #[error(transparent)]
    Inexact(#[from] InexactNumber),
}

/// Parses some members of an object that a client sent, whatever the others contain.
pub(super) fn read_part<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(&without_lone_surrogates(text)).ok()
}

/// Parses a text that a client sent.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, JsonError> {
    let text = &*without_lone_surrogates(text);
    let error = match serde_json::from_str(text) {
        Ok(value) => return exact(text).map(|()| value).map_err(JsonError::from),
        Err(error) => error,
    };
    if error.is_data() {
        return Err(JsonError::Unexpected(mismatch::in_text::<T>(text, &error)));
    }
    // Valid JSON can be reported as a syntax error: `1e999`, and a number where one of several texts is expected.
    if serde_json::from_str::<IgnoredAny>(text).is_ok() {
        exact(text)?;
        if serde_json::from_str::<Value>(text).is_ok() {
            return Err(JsonError::Unexpected(mismatch::in_text::<T>(text, &error)));
        }
    }
    // serde_json means one of the three words of JSON, of which the text has the first letter.
    let error = error
        .to_string()
        .replace("expected ident", "expected true, false or null");
    Err(JsonError::Malformed(error))
}

/// Replaces each escaped surrogate without a partner by an escaped U+FFFD. It has the same length, so positions do not move.
fn without_lone_surrogates(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let (mut mended, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(found) = bytes
        .get(at..)
        .and_then(|rest| rest.iter().position(|byte| *byte == b'\\'))
    {
        at += found;
        at += match (surrogate(bytes, at), surrogate(bytes, at + 6)) {
            (Some(Surrogate::High), Some(Surrogate::Low)) => 12,
            (Some(_), _) => {
                mended.push_str(&text[copied..at]);
                mended.push_str("\\ufffd");
                copied = at + 6;
                6
            }
            // Any other escape has at least two characters. The second may be a backslash.
            (None, _) => 2,
        };
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    mended.push_str(&text[copied..]);
    Cow::Owned(mended)
}

enum Surrogate {
    High,
    Low,
}

/// Returns the escaped surrogate that begins here, if there is one.
fn surrogate(bytes: &[u8], at: usize) -> Option<Surrogate> {
    match bytes.get(at..at + 6)? {
        [b'\\', b'u', b'd' | b'D', half, x, y]
            if x.is_ascii_hexdigit() && y.is_ascii_hexdigit() =>
        {
            match half.to_ascii_lowercase() {
                b'8' | b'9' | b'a' | b'b' => Some(Surrogate::High),
                b'c'..=b'f' => Some(Surrogate::Low),
                _ => None,
            }
        }
        _ => None,
    }
}

/// A step on the path to a value.
enum Step<'a> {
    Member(&'a str),
    Item(usize),
}

/// Fails on the first number that would be rounded.
fn exact(json: &str) -> Result<(), InexactNumber> {
    let bytes = json.as_bytes();
    let (mut path, mut at, mut last_text) = (Vec::new(), 0, "");
    while let Some(byte) = bytes.get(at) {
        let begun = at;
        at += 1;
        match byte {
            b'"' => {
                at = end_of_text(bytes, at);
                last_text = json.get(begun + 1..at - 1).unwrap_or_default();
            }
            b'{' => path.push(Step::Member("")),
            b'[' => path.push(Step::Item(0)),
            b'}' | b']' => {
                path.pop();
            }
            b':' => {
                if let Some(Step::Member(name)) = path.last_mut() {
                    *name = last_text;
                }
            }
            b',' => {
                if let Some(Step::Item(index)) = path.last_mut() {
                    *index += 1;
                }
            }
            b'-' | b'0'..=b'9' => {
                let of_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
                at += bytes[at..]
                    .iter()
                    .take_while(|byte| of_number(byte))
                    .count();
                let number = &json[begun..at];
                if !is_exact(number) {
                    return Err(InexactNumber {
                        place: place(&path),
                        number: shortened(number),
                    });
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns the position after the closing quote of a string.
fn end_of_text(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match bytes.get(at) {
            None => return bytes.len(),
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
        }
    }
}

/// Whether a number is represented exactly, or as its nearest double if it is not whole.
fn is_exact(number: &str) -> bool {
    let is_whole = !number.contains(['.', 'e', 'E']);
    if is_whole {
        return number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
    }
    let significand = number.split(['e', 'E']).next().unwrap_or_default();
    let is_zero = !significand.contains(|digit| matches!(digit, '1'..='9'));
    let read = number.parse::<f64>();
    read.is_ok_and(|read| read.is_finite() && (read == 0.0) == is_zero)
}

fn place(path: &[Step<'_>]) -> String {
    let mut place = String::new();
    for step in path {
        match step {
            Step::Member(name) if place.is_empty() => place.push_str(name),
            Step::Member(name) => place.extend([".", name]),
            Step::Item(index) => place.push_str(&format!("[{index}]")),
        }
        if place.len() > SHOWN_CHARS * 4 {
            break;
        }
    }
    shortened(&place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_lone_surrogate_becomes_the_replacement_character_and_a_pair_stays() {
        for (sent, kept) in [
            (r#""\ud800""#, "\u{fffd}"),
            (r#""\uDFFF""#, "\u{fffd}"),
            (r#""\udc00\ud800""#, "\u{fffd}\u{fffd}"),
            (r#""\ud800\ud800\udc00""#, "\u{fffd}\u{10000}"),
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\ud83d\n""#, "\u{fffd}\n"),
            (r#""\ud83d\u0041""#, "\u{fffd}A"),
            (r#""\ud83dé""#, "\u{fffd}é"),
            (r#""\\ud800""#, r"\ud800"),
            (r#""\\\ud800""#, "\\\u{fffd}"),
            (r#""\ud7ff\ue000""#, "\u{d7ff}\u{e000}"),
        ] {
            assert_eq!(read::<Value>(sent).unwrap(), kept, "{sent}");
        }
        let whole = r#"{"a":"\\ud800 \u00e9 \ud83d\ude00"}"#;
        assert!(matches!(without_lone_surrogates(whole), Cow::Borrowed(_)));
    }

    #[test]
    fn a_number_that_would_be_rounded_is_rejected_by_its_place() {
        for (sent, place) in [
            (r#"{"a": {"b": [1, "2", 18446744073709551616]}}"#, "a.b[2]"),
            (r#"{"a": 1, "b": -9223372036854775809}"#, "b"),
            (r#"[{"a]": 0}, [], {"b\"}": 1e400}]"#, r#"[2].b\"}"#),
            (r#"{"é": 123456789012345678901234567890 }"#, "é"),
            (r#"{"a": -1e999}"#, "a"),
            (r#"{"a": 1e-999}"#, "a"),
        ] {
            match read::<Value>(sent) {
                Err(JsonError::Inexact(error)) => assert_eq!(error.place, place, "{sent}"),
                other => panic!("{sent}: {other:?}"),
            }
        }
        let long = format!(r#"{{"{}": {}}}"#, "é".repeat(1_000), "9".repeat(1_000));
        assert!(read::<Value>(&long).unwrap_err().to_string().len() < 600);
        for sent in [
            "0",
            "-0",
            "0e999",
            "0.0e-999",
            "1e308",
            "5e-324",
            "18446744073709551615",
            "-9223372036854775808",
            "0.12345678901234567890123",
            r#""18446744073709551616 \" 1e999""#,
        ] {
            assert!(read::<Value>(sent).is_ok(), "{sent}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text: String) {
            let _ = read::<Value>(&text);
            let _ = exact(&text);
        }

        /// What is parsed stays the same when it is written and parsed again. The texts consist of significant characters in
        /// any order.
        #[test]
        fn what_is_read_is_kept(text in r#"[\[\]{},:" \\ud8cf0-9.eE+-]{0,40}"#) {
            let _ = exact(&text);
            if let Ok(value) = read::<Value>(&text) {
                prop_assert_eq!(read::<Value>(&value.to_string()).unwrap(), value);
            }
        }
    }
}
