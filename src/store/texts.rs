//! Search in lists: whether a text contains another, whatever their case.
//!
//! Texts are compared after full case folding and in Unicode's normalisation form C, both without a locale: `STRASSE` finds
//! `Straße`, `οδοσ` finds `ΟΔΟΣ`, and an `é` of one code point finds one of two. An accent counts: `e` does not find `é`.
//! `%`, `_` and the backslash stand for themselves. Of JSON only the texts and numbers count, as they are and not as they are
//! escaped; the names of members do not.

use std::borrow::Cow;

use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizer;
use serde_json::Value;

/// Returns the text as it is compared. Returns `None` if nothing can contain it: no text contains U+0000.
pub(in crate::store) fn wanted(text: &str) -> Option<String> {
    (!text.contains('\0')).then(|| folded(text))
}

/// Returns a text as it is compared.
fn folded(text: &str) -> String {
    let (mut folded, mut rest) = (String::with_capacity(text.len()), text);
    // Folding knows no context. What is ASCII, which is most of it, is folded much faster than the rest.
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

/// Adds the texts and numbers of a JSON text, as they are compared, one per line. Returns whether it is JSON.
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

/// Splits before the first byte of this sort.
fn split_where(text: &str, is_first: impl Fn(u8) -> bool) -> (&str, &str) {
    text.split_at(text.bytes().position(is_first).unwrap_or(text.len()))
}

pub(in crate::store) fn contains(text: &str, wanted: &str) -> bool {
    folded(text).contains(wanted)
}

/// The same of the values of JSON that `serde_json` has written.
pub(in crate::store) fn value_contains(json: &str, wanted: &str) -> bool {
    // Only these are escaped: a text without them stands in the JSON as it does in a value, and most JSON need not be read.
    let is_escaped = |sign: char| matches!(sign, '"' | '\\') || sign.is_ascii_control();
    if !wanted.contains(is_escaped) && !contains(json, wanted) {
        return false;
    }
    serde_json::from_str(json)
        .is_ok_and(|value| any_text(&value, &mut |text| contains(text, wanted)))
}

/// Whether any text or number of a value is one that is looked for.
fn any_text(value: &Value, is_it: &mut impl FnMut(&str) -> bool) -> bool {
    match value {
        Value::String(text) => is_it(text),
        Value::Number(number) => is_it(&number.to_string()),
        Value::Array(items) => items.iter().any(|item| any_text(item, is_it)),
        Value::Object(members) => members.values().any(|member| any_text(member, is_it)),
        Value::Null | Value::Bool(_) => false,
    }
}
