//! Search in lists: whether a text contains another, whatever their case.
//!
//! Texts are compared after full case folding and in Unicode's normalisation form C, both without a locale: `STRASSE` finds
//! `Straße`, `οδοσ` finds `ΟΔΟΣ`, and an `é` of one code point finds one of two. An accent counts: `e` does not find `é`.
//! `%`, `_` and the backslash stand for themselves. Of JSON only the texts and numbers count, as they are and not as they are
//! escaped; the names of members do not.

use std::borrow::Cow;

use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel::sqlite::SqliteConnection;
use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizer;
use serde_json::Value;

use super::job_texts;

diesel::define_sql_function! {
    /// Whether a text contains another one, which comes from [`wanted`].
    fn mentions(text: Nullable<Text>, wanted: Text) -> Bool;
}

diesel::define_sql_function! {
    /// The same of the texts and numbers in a JSON text.
    fn mentions_value(json: Text, wanted: Text) -> Bool;
}

/// Makes the functions known to a connection.
pub(super) fn register(conn: &mut SqliteConnection) -> QueryResult<()> {
    mentions_utils::register_impl(conn, |text: Option<String>, wanted: String| {
        text.is_some_and(|text| contains(&text, &wanted))
    })?;
    mentions_value_utils::register_impl(conn, |json: String, wanted: String| {
        value_contains(&json, &wanted)
    })?;
    job_texts::register(conn)
}

/// What to look for. Nothing if it cannot be found: U+0000 is part of no text that anybody reads.
pub(super) fn wanted(text: &str) -> Option<String> {
    (!text.contains('\0')).then(|| folded(text))
}

/// A text as it is compared.
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

/// All texts and those of a JSON text as they are compared, in lines. None if it is no JSON.
pub(super) fn folded_texts(texts: &[String], json: &str) -> Option<String> {
    let mut all = String::with_capacity(json.len());
    let mut take = |text: &str| {
        all.push_str(&folded(text));
        all.push('\n');
    };
    texts.iter().for_each(|text| take(text));
    any_text(&serde_json::from_str(json).ok()?, &mut |text| {
        take(text);
        false
    });
    Some(all)
}

/// Splits before the first byte of this sort, which begins or ends what is ASCII.
fn split_where(text: &str, is_first: impl Fn(u8) -> bool) -> (&str, &str) {
    text.split_at(text.bytes().position(is_first).unwrap_or(text.len()))
}

fn contains(text: &str, wanted: &str) -> bool {
    folded(text).contains(wanted)
}

/// The same of the values of JSON that `serde_json` has written.
fn value_contains(json: &str, wanted: &str) -> bool {
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
