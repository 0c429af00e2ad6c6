//! The building blocks of commands and messages: texts and objects within their limits, ids, times, percentages.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use chrono::{DateTime, Datelike, NaiveDateTime, Timelike, Utc};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::{Bound, CODE_MAX_BYTES, RuleError};
use crate::event::timestamp;
use crate::id::SubjectId;

/// Returns a machine-readable code. Fails if it is empty or too long.
pub(super) fn code(field: &'static str, text: &str) -> Result<Arc<str>, RuleError> {
    let code = bounded(field, text, Bound::constant(CODE_MAX_BYTES))?;
    if code.is_empty() {
        return Err(RuleError::Invalid {
            field,
            expected: "must not be empty".into(),
        });
    }
    Ok(code)
}

/// An id or another short text, which some clients send as an integer.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "expected a string or an integer")]
pub(crate) enum TextOrNumber {
    Text(String),
    Number(i64),
    Large(u64),
}

/// Implements `JsonSchema` for a type that has no name of its own in the API description, so its schema is inlined.
macro_rules! unnamed_schema {
    ($type:ty, $schema:expr) => {
        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $schema
            }
        }
    };
}

pub(crate) use unnamed_schema;

unnamed_schema!(
    TextOrNumber,
    json_schema!({ "type": ["string", "integer"] })
);

/// The schema of an id that some clients send as an integer.
pub(crate) struct IdOrNumber;

unnamed_schema!(IdOrNumber, {
    let mut schema =
        <SubjectId as schemars::JsonSchema>::json_schema(&mut SchemaGenerator::default());
    schema.insert("type".into(), serde_json::json!(["string", "integer"]));
    schema
});

/// The schema of a time in a body.
pub(crate) struct Time;

unnamed_schema!(
    Time,
    json_schema!({
        "type": "string",
        "format": "date-time",
        "description": "A time from 1970 to 9999: RFC 3339, or ISO 8601 without a zone, which is read as UTC.",
    })
);

/// Returns the schema of a string that must be one of `texts`.
pub(super) fn one_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Schema {
    let texts: Vec<_> = texts.into_iter().collect();
    json_schema!({ "type": "string", "enum": texts })
}

impl From<TextOrNumber> for String {
    fn from(either: TextOrNumber) -> String {
        match either {
            TextOrNumber::Text(text) => text,
            TextOrNumber::Number(number) => number.to_string(),
            TextOrNumber::Large(number) => number.to_string(),
        }
    }
}

/// Returns whether the text is a short identifier: 1 to `max_bytes` characters from A-Z a-z 0-9 . _ : ~ -
pub(crate) fn is_plain_name(text: &str, max_bytes: usize) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:~-".contains(&byte);
    (1..=max_bytes).contains(&text.len()) && text.bytes().all(is_plain)
}

pub(super) fn text_or_number<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let either = Option::<TextOrNumber>::deserialize(deserializer)?;
    Ok(either.map(String::from))
}

pub(super) fn optional_id_or_number<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SubjectId>, D::Error> {
    let text = text_or_number(deserializer)?;
    let id = text.map(|text| text.parse()).transpose();
    id.map_err(serde::de::Error::custom)
}

/// Reads a time: RFC 3339, or ISO 8601 without a zone, which is read as UTC.
fn read_time(text: &str) -> Result<DateTime<Utc>, String> {
    let without_zone = || {
        let formats = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"];
        let mut read = formats
            .iter()
            .filter_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
        read.next().map(|at| at.and_utc())
    };
    let at = DateTime::parse_from_rfc3339(text)
        .map(|at| at.to_utc())
        .ok()
        .or_else(without_zone)
        .ok_or("a time must have the form 2026-01-31T09:30:00Z")?;
    // Times that clients cannot parse are rejected. A leap second would be written as second 60.
    if !(1970..10_000).contains(&at.year()) || at.nanosecond() >= 1_000_000_000 {
        return Err("a time must be from 1970 to 9999, with seconds from 0 to 59".into());
    }
    Ok(at)
}

pub(super) fn optional_time<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<DateTime<Utc>>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let at = text.map(|text| read_time(&text)).transpose();
    at.map_err(serde::de::Error::custom)
}

/// Serializes a time in the form that all messages use.
pub(super) fn as_timestamp<S: Serializer>(
    at: &DateTime<Utc>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&timestamp(*at))
}

pub(super) fn as_optional_timestamp<S: Serializer>(
    at: &Option<DateTime<Utc>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    at.map(timestamp).serialize(serializer)
}

/// Reads a JSON object. (Serde would also accept a list of its values.)
pub(super) fn from_optional_object<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let object = Option::<Object<T>>::deserialize(deserializer)?;
    Ok(object.map(|object| object.0))
}

/// A value that is read from a JSON object.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        deserializer.deserialize_map(Members(PhantomData))
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = Object<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// Returns a percentage, clamped to 0 to 100 if it is out of range by no more than a rounding error; otherwise `None`.
pub(crate) fn percent(reported: f64) -> Option<f64> {
    const NOISE: f64 = 1e-9;
    // The addition turns `-0.0` into `0.0`, so that the sign is not printed.
    let clamped = reported.clamp(0.0, 100.0) + 0.0;
    ((reported - clamped).abs() <= NOISE).then_some(clamped)
}

/// Checks that a text is within its limit, and returns it.
pub(super) fn bounded(
    field: &'static str,
    text: &str,
    limit: Bound,
) -> Result<Arc<str>, RuleError> {
    match text.len() <= limit.bytes {
        true => Ok(text.into()),
        false => Err(RuleError::TooLarge { field, most: limit }),
    }
}

/// Returns JSON without white space, as streams need it: a line break would end a line of SSE.
pub(super) fn compact(field: &'static str, json: &RawValue) -> Result<Arc<RawValue>, RuleError> {
    let value = serde_json::from_str::<Value>(json.get()).map_err(|_| RuleError::Invalid {
        field,
        expected: "must be JSON with numbers that a double can hold, nested at most 127 deep"
            .into(),
    })?;
    Ok(to_raw_value(&value).expect("a JSON value is JSON").into())
}

/// Returns a JSON object after a merge (RFC 7396, first level: `null` removes a key), within its limit.
pub(super) fn merged(
    field: &'static str,
    old: Option<&RawValue>,
    patch: Map<String, Value>,
    limit: Bound,
) -> Result<Arc<RawValue>, RuleError> {
    let mut object: Map<String, Value> = match old {
        Some(old) => serde_json::from_str(old.get()).expect("what is stored is a JSON object"),
        None => Map::new(),
    };
    for (key, value) in patch {
        if value.is_null() {
            object.shift_remove(&key);
        } else {
            object.insert(key, value);
        }
    }
    let raw = to_raw_value(&object).expect("a JSON object is JSON");
    if raw.get().len() > limit.bytes {
        return Err(RuleError::TooLarge { field, most: limit });
    }
    Ok(raw.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_a_zone_is_utc_and_one_that_clients_cannot_read_is_rejected() {
        for (text, read) in [
            ("2026-01-31T09:30:00Z", "2026-01-31T09:30:00.000Z"),
            ("2026-01-31T09:30:00.123456", "2026-01-31T09:30:00.123Z"),
            ("2026-01-31 09:30:00", "2026-01-31T09:30:00.000Z"),
            ("2026-01-31T09:30:00+05:30", "2026-01-31T04:00:00.000Z"),
            ("2026-01-31 09:30:00.5+00:00", "2026-01-31T09:30:00.500Z"),
        ] {
            assert_eq!(
                read_time(text).map(timestamp),
                Ok(read.to_owned()),
                "{text}"
            );
        }
        for text in [
            "",
            "today",
            "2026-01-31",
            "2026-13-01T00:00:00",
            "2026-12-31T23:59:60Z",
            "2026-12-31T23:59:60",
            "10000-01-01T00:00:00Z",
            "+10000-01-01T00:00:00",
            "1969-12-31T23:59:59Z",
            "2026-01-31T09:30:00+24:00",
            "9999-12-31T23:59:59-23:59",
        ] {
            assert!(read_time(text).is_err(), "{text}");
        }
    }
}
