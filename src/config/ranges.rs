//! The ranges of settings that are whole numbers. Each range is described in the same words in every error.

use super::bounds::{
    BATCH_BYTES_MAX, BLOCKING_MAX, MAILBOX_CAPACITY_MAX, PING_KEYS_MAX, READ_TIMEOUT_MAX_MS,
    READER_CONNECTIONS_MAX, TICK_MAX_MS, TOKEN_MAX_SECS, WINDOW_EVENTS_MAX, WORKERS_MAX,
};
use crate::kind;

/// Longer times overflow dates.
const CENTURY_SECS: u64 = 100 * 366 * 86_400;
/// The maximum of a setting that has 32 bits.
const U32_MAX: u64 = u32::MAX as u64;

/// The name, minimum and maximum of a setting. Both bounds are inclusive.
type Range = (&'static str, u64, u64);

/// Settings whose range is not simply that of their type: those of Tidings, and those of Rocket that it would otherwise
/// panic on.
pub(crate) const RANGES: &[Range] = &[
    ("workers", 1, WORKERS_MAX as u64),
    ("max_blocking", 1, BLOCKING_MAX as u64),
    ("reader_connections", 1, READER_CONNECTIONS_MAX),
    ("read_timeout_ms", 1, READ_TIMEOUT_MAX_MS),
    ("read_rows_max", 1, u64::MAX),
    ("max_waiting_reads", 1, u64::MAX),
    ("max_waiting_reads_per_school", 1, u64::MAX),
    ("jwt_leeway_secs", 0, 86_400),
    ("max_token_secs", 1, TOKEN_MAX_SECS),
    ("ticket_ttl_secs", 1, U32_MAX),
    ("ticket_grace_secs", 0, 86_400),
    ("heartbeat_secs", 1, 3_600),
    ("dead_peer_timeout_secs", 0, 7_200),
    ("request_timeout_secs", 0, 3_600),
    ("keep_alive_timeout_secs", 0, 86_400),
    ("response_timeout_secs", 0, 86_400),
    ("idle_heartbeat_secs", 1, 86_400),
    ("tick_ms", 0, TICK_MAX_MS),
    ("mailbox_capacity", 1, MAILBOX_CAPACITY_MAX),
    ("window_events", 1, WINDOW_EVENTS_MAX),
    ("replay_max_events", 1, u64::MAX),
    ("max_streams", 1, u64::MAX),
    ("max_streams_per_school", 1, u64::MAX),
    ("max_streams_per_user", 1, u64::MAX),
    ("max_streams_per_address", 1, u64::MAX),
    ("reconnect_spread_ms", 0, 3_600_000),
    ("retention_secs", 1, CENTURY_SECS),
    ("retention_events", 1, i64::MAX as u64),
    ("retention_bytes", 1, i64::MAX as u64),
    ("job_retention_secs", 0, CENTURY_SECS),
    ("idempotency_ttl_secs", 0, CENTURY_SECS),
    ("idempotency_answer_bytes", 0, i64::MAX as u64),
    ("clock_settle_secs", 0, CENTURY_SECS),
    (
        "enrollment_lease_secs",
        1,
        kind::enrollment::LEASE_MAX_SECS as u64,
    ),
    ("device_lease_secs", 1, kind::device::LEASE_MAX_SECS as u64),
    ("body_limit_bytes", 1, BATCH_BYTES_MAX),
    ("batch_limit_bytes", 1, BATCH_BYTES_MAX),
    ("batch_event_bytes", 1, BATCH_BYTES_MAX),
    ("body_timeout_secs", 1, 3_600),
    ("batch_limit_commands", 1, u64::MAX),
    // The size of an empty object.
    ("metadata_limit_bytes", 2, u64::MAX),
    ("client_message_limit_bytes", 1, u64::MAX),
    ("channels_per_connection", 1, u64::MAX),
    ("ping_keys_per_school", 0, PING_KEYS_MAX),
    ("jobs_per_school", 1, u64::MAX),
    ("enrollments_per_school", 1, u64::MAX),
    ("devices_per_school", 1, u64::MAX),
    ("characteristics_per_school", 1, u64::MAX),
    ("schedules_per_school", 1, u64::MAX),
];

/// Describes the values that a setting accepts. Returns `None` if it has no range here.
pub(crate) fn accepted(key: &str) -> Option<String> {
    let (_, least, most) = RANGES.iter().find(|(own, ..)| *own == key)?;
    Some(match *most {
        u64::MAX => format!("a whole number of at least {least}"),
        most => format!("a whole number from {least} to {most}"),
    })
}

/// Describes what is wrong with a value of a setting. Returns `None` if the value is in its range or the setting has no
/// range here.
pub(crate) fn problem(key: &str, value: u64) -> Option<String> {
    let (_, least, most) = RANGES.iter().find(|(own, ..)| *own == key)?;
    let accepted = accepted(key)?;
    (!(*least..=*most).contains(&value))
        .then(|| format!("must be {accepted}, but is outside that range"))
}
