//! Search in lists: whether a text contains another, ignoring case.
//!
//! Texts are compared after full case folding and in Unicode's normalisation form C, both without a locale: `STRASSE` finds
//! `Straße`, `οδοσ` finds `ΟΔΟΣ`, and an `é` of one code point finds one of two. Accents matter: `e` does not find `é`.
//! `%`, `_` and the backslash have no special meaning. In JSON, only string values and numbers are searched, with escapes
//! resolved; the names of members are not.

use std::borrow::Cow;

use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizer;
use serde_json::Value;

/// Returns the text that is searched for, as it is compared. Returns `None` if it contains U+0000, which no text contains.
pub(in crate::store) fn wanted(text: &str) -> Option<String> {
    (!text.contains('\0')).then(|| folded(text))
}

/// Returns a text as it is compared.
fn folded(text: &str) -> String {
    let (mut folded, mut rest) = (String::with_capacity(text.len()), text);
    // Case folding does not depend on context, so a text can be folded in parts. Most text is ASCII, which is folded much
    // faster than the rest.
    while !rest.is_empty() {
        let (ascii, beyond) = split_where(rest, |byte| !byte.is_ascii());
        let begun = folded.len();
        folded.push_str(ascii);
        folded[begun..].make_ascii_lowercase();
        let (foreign, beyond) = split_where(beyond, |byte| byte.is_ascii());
        folded.push_str(&CaseMapper::new().fold_string(foreign));
        rest = beyond;
    }
    match ComposingNormalizer::new_nfc().normalize(&folded) {
        Cow::Borrowed(_) => folded,
        Cow::Owned(normal) => normal,
    }
}

/// Returns texts as they are compared, one per line.
pub(in crate::store) fn folded_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut all = String::new();
    for text in texts {
        all.push_str(&folded(text));
        all.push('\n');
    }
    all
}

/// Adds the strings and numbers of a JSON text to `all`, as they are compared, one per line. Returns whether it is JSON.
pub(in crate::store) fn folded_json(json: &str, all: &mut String) -> bool {
    let Ok(value) = serde_json::from_str(json) else {
        return false;
    };
    any_text(&value, &mut |text| {
        all.push_str(&folded(text));
        all.push('\n');
        false
    });
    true
}

/// Splits before the first byte that `is_first` accepts.
fn split_where(text: &str, is_first: impl Fn(u8) -> bool) -> (&str, &str) {
    text.split_at(text.bytes().position(is_first).unwrap_or(text.len()))
}

pub(in crate::store) fn contains(text: &str, wanted: &str) -> bool {
    folded(text).contains(wanted)
}

/// Like [`contains`], for the values in JSON that `serde_json` has written.
pub(in crate::store) fn value_contains(json: &str, wanted: &str) -> bool {
    // JSON escapes only these characters. A text without them looks the same in the JSON as in a value, so JSON that does
    // not contain it need not be parsed.
    let is_escaped = |sign: char| matches!(sign, '"' | '\\') || sign.is_ascii_control();
    if !wanted.contains(is_escaped) && !contains(json, wanted) {
        return false;
    }
    serde_json::from_str(json)
        .is_ok_and(|value| any_text(&value, &mut |text| contains(text, wanted)))
}

/// Returns whether `is_it` accepts any string or number in a value.
fn any_text(value: &Value, is_it: &mut impl FnMut(&str) -> bool) -> bool {
    match value {
        Value::String(text) => is_it(text),
        Value::Number(number) => is_it(&number.to_string()),
        Value::Array(items) => items.iter().any(|item| any_text(item, is_it)),
        Value::Object(members) => members.values().any(|member| any_text(member, is_it)),
        Value::Null | Value::Bool(_) => false,
    }
}
