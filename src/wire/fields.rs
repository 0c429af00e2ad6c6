//! Small changes to an event's fields at a reader's request: ids as numbers, and leaving out large fields.
//!
//! Other values are copied exactly as they are written, so that the digits of numbers do not change.

use std::borrow::Cow;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use crate::kind::is_id_field;

/// The fields that are left out of an event that is too large for its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Nothing,
    /// `result`, and the `details` of an error.
    Result,
    /// These, `metadata` and `info`.
    All,
}

/// JavaScript represents whole numbers below this exactly.
const EXACT_BELOW: u64 = 1 << 53;

/// The members of an object, with their values exactly as they are written.
type Members<'a> = IndexMap<String, Cow<'a, RawValue>>;

/// Returns the number whose plain decimal form is the id: no sign, no leading zero, below 2^53.
pub fn numeric_id(id: &str) -> Option<u64> {
    let is_plain = id == "0" || !id.starts_with('0');
    let is_decimal = id.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain || !is_decimal {
        return None;
    }
    id.parse().ok().filter(|number| *number < EXACT_BELOW)
}

/// Returns the fields with these changes. Fields that cannot be parsed stay unchanged.
pub(super) fn adapted(fields: Cow<'_, str>, numeric_ids: bool, cut: Cut) -> Cow<'_, str> {
    if !numeric_ids && cut == Cut::Nothing {
        return fields;
    }
    let Ok(mut members) = serde_json::from_str::<Members<'_>>(&fields) else {
        return fields;
    };
    if numeric_ids {
        with_numeric_ids(&mut members, false);
    }
    if cut != Cut::Nothing {
        shorten(&mut members, cut);
    }
    serialized(&members).into()
}

fn serialized(members: &Members<'_>) -> String {
    serde_json::to_string(members).expect("members that were parsed are JSON")
}

fn raw(json: String) -> Cow<'static, RawValue> {
    Cow::Owned(RawValue::from_string(json).expect("the assembled text is JSON"))
}

/// Converts the ids among `members` to numbers, and those of the sample or the violations in them. `is_named` is true if the
/// object's own id is called `id`.
fn with_numeric_ids(members: &mut Members<'_>, is_named: bool) {
    for (name, value) in members.iter_mut() {
        let changed = match name.as_str() {
            "id" if is_named => as_number(value),
            "payload" => nested(value, false),
            "sample" | "violation" => nested(value, true),
            "violations" => each(value),
            name if is_id_field(name) => as_number(value),
            _ => None,
        };
        if let Some(changed) = changed {
            *value = raw(changed);
        }
    }
}

fn as_number(value: &RawValue) -> Option<String> {
    let id = value.get().strip_prefix('"')?.strip_suffix('"')?;
    numeric_id(id).map(|number| number.to_string())
}

fn nested(value: &RawValue, is_named: bool) -> Option<String> {
    let mut members: Members<'_> = serde_json::from_str(value.get()).ok()?;
    with_numeric_ids(&mut members, is_named);
    Some(serialized(&members))
}

fn each(value: &RawValue) -> Option<String> {
    let mut items: Vec<Members<'_>> = serde_json::from_str(value.get()).ok()?;
    items
        .iter_mut()
        .for_each(|members| with_numeric_ids(members, true));
    Some(serde_json::to_string(&items).expect("items that were parsed are JSON"))
}

fn shorten(members: &mut Members<'_>, cut: Cut) {
    let empty = |name: &str| match name {
        "result" => Some("null"),
        "metadata" | "info" if cut == Cut::All => Some("{}"),
        _ => None,
    };
    let mut is_cut = false;
    for (name, value) in members.iter_mut() {
        let shorter = match name.as_str() {
            "error" => without_details(value),
            name => empty(name).map(str::to_owned),
        };
        if let Some(shorter) = shorter.filter(|shorter| shorter != value.get()) {
            *value = raw(shorter);
            is_cut = true;
        }
    }
    if is_cut {
        members.insert("truncated".to_owned(), raw("true".to_owned()));
    }
}

/// Returns an error without its details, if it has any.
fn without_details(error: &RawValue) -> Option<String> {
    let mut members: Members<'_> = serde_json::from_str(error.get()).ok()?;
    members.shift_remove("details")?;
    Some(serialized(&members))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(fields: &str) -> String {
        adapted(fields.into(), true, Cut::Nothing).into_owned()
    }

    #[test]
    fn only_the_plain_decimal_form_of_an_exact_integer_is_a_number() {
        for (id, number) in [
            ("0", Some(0)),
            ("21", Some(21)),
            ("9007199254740991", Some(9_007_199_254_740_991)),
            ("9007199254740992", None),
            ("99999999999999999999999", None),
            ("007", None),
            ("00", None),
            ("+7", None),
            ("-7", None),
            ("7.0", None),
            ("1e3", None),
            (" 7", None),
            ("\u{663}", None),
            ("", None),
            ("door-7", None),
        ] {
            assert_eq!(numeric_id(id), number, "{id:?}");
        }
    }

    #[test]
    fn ids_are_numbers_wherever_they_stand_and_nothing_else_is() {
        for (fields, expected) in [
            (
                r#"{"device_id":"21","info":{"device_id":"21","big":12345678901234567890123}}"#,
                r#"{"device_id":21,"info":{"device_id":"21","big":12345678901234567890123}}"#,
            ),
            (
                r#"{"payload":{"sample_id":"7","characteristic_id":"a","violations":[{"violation_id":"3","sample_id":"7","rule_id":1}]}}"#,
                r#"{"payload":{"sample_id":7,"characteristic_id":"a","violations":[{"violation_id":3,"sample_id":7,"rule_id":1}]}}"#,
            ),
            (
                r#"{"characteristic_id":"1","sample":{"id":"5","mean":1.50},"violations":[{"id":"8"}]}"#,
                r#"{"characteristic_id":1,"sample":{"id":5,"mean":1.50},"violations":[{"id":8}]}"#,
            ),
            (
                r#"{"violation":{"id":"1.2","sample_id":null}}"#,
                r#"{"violation":{"id":"1.2","sample_id":null}}"#,
            ),
            (r#"{"id":"5"}"#, r#"{"id":"5"}"#),
        ] {
            assert_eq!(numeric(fields), expected);
        }
    }
}
