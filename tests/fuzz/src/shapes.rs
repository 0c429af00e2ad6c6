//! Structured requests: methods, paths, queries, headers, JSON and NDJSON, made of words that have a meaning for the server.

use arbitrary::{Arbitrary, Result, Unstructured};
use rocket::http::Method;
use serde_json::{Map, Number, Value};

pub const COLLECTIONS: [&str; 6] = [
    "jobs",
    "enrollments",
    "devices",
    "characteristics",
    "schedules",
    "violations",
];
const VERBS: [&str; 19] = [
    "create",
    "put",
    "queue",
    "start",
    "progress",
    "complete",
    "fail",
    "cancel",
    "retry",
    "error",
    "heartbeat",
    "status",
    "info",
    "samples",
    "violations",
    "limits",
    "ack",
    "unack",
    "remove",
];
const IDS: [&str; 5] = ["a", "b", "door", "c.1", "7"];
/// Names of fields that say whom a command is about.
const ID_FIELDS: [&str; 6] = [
    "job_id",
    "session_id",
    "device_id",
    "characteristic_id",
    "violation_id",
    "schedule_id",
];
/// Names of other fields in a body.
const FIELDS: [&str; 49] = [
    "op",
    "cron",
    "time_zone",
    "period_secs",
    "grace_secs",
    "max_run_secs",
    "channel",
    "view",
    "expires_in_secs",
    "school_id",
    "idempotency_key",
    "job_type",
    "status",
    "message",
    "metadata",
    "stall_after_secs",
    "timeout_secs",
    "attempt",
    "worker",
    "progress",
    "result",
    "error",
    "code",
    "force",
    "quality_score",
    "student_id",
    "total_attempts",
    "name",
    "lease_secs",
    "info",
    "value",
    "values",
    "timestamp",
    "limits",
    "center_line",
    "ucl",
    "lcl",
    "method",
    "rules",
    "subgroup_size",
    "type",
    "action",
    "channels",
    "characteristic_ids",
    "token",
    "cursor",
    "reason",
    "user",
    "scope",
];
/// Names of query parameters.
const PARAMETERS: [&str; 39] = [
    "expires",
    "signature",
    "rid",
    "channel",
    "ids",
    "cursor",
    "lastEventId",
    "tick_ms",
    "job_type",
    "status",
    "status_case",
    "shape",
    "id_type",
    "heartbeat",
    "max_event_bytes",
    "named",
    "padding",
    "wait",
    "school_id",
    "q",
    "sort",
    "limit",
    "page",
    "after",
    "before",
    "since",
    "until",
    "rule_id",
    "severity",
    "acknowledged",
    "from",
    "to",
    "token",
    "ticket",
    "next",
    "session_id",
    "processing_id",
    "look",
    "zone",
];
const TEXTS: [&str; 24] = [
    "in_progress",
    "completed",
    "online",
    "offline",
    "pending",
    "FAILED",
    "xbar_r",
    "oldest",
    "1",
    "0",
    "2026-01-02T03:04:05Z",
    "jobs/a",
    "devices",
    "schools/1",
    "characteristics/c.1",
    "1,2,3",
    "number",
    "flat",
    "message",
    "18446744073709551616",
    "-1",
    "1e308",
    "\u{0}",
    "",
];
const HEADERS: [&str; 16] = [
    "Accept",
    "Accept-Encoding",
    "Idempotency-Key",
    "Last-Event-ID",
    "Content-Type",
    "Content-Encoding",
    "Origin",
    "Host",
    "Cookie",
    "X-Forwarded-Prefix",
    "X-Forwarded-For",
    "Range",
    "Expect",
    "Connection",
    "If-None-Match",
    "Accept-Language",
];
const VALUES: [&str; 12] = [
    "*/*",
    "application/json",
    "text/event-stream",
    "text/html;q=0.1,*/*;q=0",
    "gzip, br;q=0",
    "application/x-ndjson",
    "identity",
    "http://localhost",
    "/prefix",
    "127.0.0.1",
    "bytes=0-1",
    "100-continue",
];

/// One request, without a token.
#[derive(Debug)]
pub struct Request {
    pub method: Method,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    /// The number of bytes that the client chose.
    pub fn bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        self.target.len() + headers + self.body.len()
    }
}

pub fn text(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u.choose(&TEXTS)?.to_string(),
        1 => u.choose(&IDS)?.to_string(),
        _ => u.arbitrary::<&str>()?.chars().take(64).collect(),
    })
}

pub fn value(u: &mut Unstructured<'_>, depth: u8) -> Result<Value> {
    Ok(match u.int_in_range(0..=if depth == 0 { 5 } else { 7 })? {
        0 => Value::Null,
        1 => Value::Bool(u.arbitrary()?),
        2 => Value::from(u.arbitrary::<i64>()?),
        3 => Number::from_f64(u.arbitrary()?).map_or(Value::Null, Value::Number),
        4 => Value::from(u.int_in_range(0..=100)?),
        5 => Value::String(text(u)?),
        6 => {
            let count = u.int_in_range(0..=3)?;
            Value::Array(
                (0..count)
                    .map(|_| value(u, depth - 1))
                    .collect::<Result<_>>()?,
            )
        }
        _ => Value::Object(object(u, depth - 1)?),
    })
}

pub fn object(u: &mut Unstructured<'_>, depth: u8) -> Result<Map<String, Value>> {
    let count = u.int_in_range(0..=5)?;
    (0..count)
        .map(|_| {
            let name = match u.ratio(1, 8)? {
                true => u.choose(&ID_FIELDS)?,
                false => u.choose(&FIELDS)?,
            };
            Ok((name.to_string(), value(u, depth)?))
        })
        .collect()
}

/// A line of a batch.
pub fn command(u: &mut Unstructured<'_>) -> Result<String> {
    let mut line = object(u, 2)?;
    let op = format!("{}.{}", u.choose(&COLLECTIONS)?, u.choose(&VERBS)?);
    line.insert("op".to_owned(), op.into());
    line.insert(u.choose(&ID_FIELDS)?.to_string(), (*u.choose(&IDS)?).into());
    Ok(Value::Object(line).to_string())
}

/// `?name=value&…`, or arbitrary text.
pub fn query(u: &mut Unstructured<'_>) -> Result<String> {
    let mut query = String::new();
    for number in 0..u.int_in_range(0..=6)? {
        query.push(if number == 0 { '?' } else { '&' });
        match u.int_in_range(0..=9)? {
            0 => query.push_str(&urlencode(&text(u)?)),
            1 => query.push_str(&visible(u.arbitrary::<&str>()?)),
            _ => query.push_str(&format!(
                "{}={}",
                u.choose(&PARAMETERS)?,
                urlencode(&text(u)?)
            )),
        }
    }
    Ok(query)
}

/// A path that exists or could exist.
pub fn path(u: &mut Unstructured<'_>) -> Result<String> {
    let collection = u.choose(&COLLECTIONS)?;
    let id = urlencode(&text(u)?);
    Ok(match u.int_in_range(0..=18)? {
        0 => format!("/api/{collection}"),
        1 => format!("/api/{collection}/{id}"),
        2 | 3 => format!("/api/{collection}/{id}/{}", u.choose(&VERBS)?),
        4 => "/api/batch".to_owned(),
        5 => "/api/tickets".to_owned(),
        6 => format!("/events/{collection}/{id}"),
        7 => format!("/events/{collection}"),
        8 => "/events".to_owned(),
        9 => format!("/monitor/schools/1/{collection}/{id}"),
        16 => format!("/badge/{collection}/{id}.svg"),
        17 => format!("/embed/{collection}/{id}"),
        18 => format!("/ping/{id}/{}", u.choose(&VERBS)?),
        10 => format!("/monitor/schools/1/{collection}"),
        11 => "/monitor".to_owned(),
        12 => u
            .choose(&[
                "/healthz",
                "/readyz",
                "/metrics",
                "/api/notifiers",
                "/api/links",
                "/api/pings",
                "/ws",
                "/ws/samples",
                "/monitor/sign-in",
            ])?
            .to_string(),
        13 => format!("/events/schools/{id}"),
        14 => format!("/progress/ws/{id}"),
        _ => format!("/{id}"),
    })
}

fn header(u: &mut Unstructured<'_>) -> Result<(String, String)> {
    let value = match u.arbitrary()? {
        true => u.choose(&VALUES)?.to_string(),
        false => text(u)?.chars().filter(|sign| !sign.is_control()).collect(),
    };
    Ok((u.choose(&HEADERS)?.to_string(), value))
}

impl<'a> Arbitrary<'a> for Request {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Request> {
        let method = *u.choose(&[
            Method::Get,
            Method::Post,
            Method::Put,
            Method::Delete,
            Method::Head,
            Method::Options,
        ])?;
        let path = path(u)?;
        let query = query(u)?;
        let headers = (0..u.int_in_range(0..=2)?)
            .map(|_| header(u))
            .collect::<Result<_>>()?;
        let body = match path.starts_with("/api/batch") {
            true => (0..u.int_in_range(0..=4)?)
                .map(|_| command(u))
                .collect::<Result<Vec<_>>>()?
                .join("\n"),
            false if u.ratio(1, 8)? => u.arbitrary::<&str>()?.to_owned(),
            false => Value::Object(object(u, 3)?).to_string(),
        };
        Ok(Request {
            method,
            target: format!("{path}{}", at_once(&path, query)),
            headers,
            body,
        })
    }
}

/// Adds `wait=0`, because a long poll waits for as long as the request says, and the first `wait` counts.
pub fn at_once(path: &str, query: String) -> String {
    match path.starts_with("/events") {
        true => format!("?wait=0&{}", query.trim_start_matches('?')),
        false => query,
    }
}

/// Percent-encodes all other characters, so that the URL is valid.
pub fn urlencode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Keeps the characters that a URL may contain unencoded.
pub fn visible(text: &str) -> String {
    text.chars()
        .filter(|sign| sign.is_ascii_graphic() && *sign != '#')
        .collect()
}
