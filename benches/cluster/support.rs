//! Real PostgreSQL and Redis, started as the tests start them.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared with the tests, which use more of it"
)]

use std::time::Duration;

#[path = "../../tests/it/support/part.rs"]
pub(crate) mod part;
#[path = "../../tests/it/support/postgres.rs"]
pub(crate) mod postgres;
#[path = "../../tests/it/support/redis.rs"]
pub(crate) mod redis;

/// How long to wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn needs(program: &str) -> bool {
    let found = std::process::Command::new(program)
        .arg("--version")
        .output();
    found.is_ok() || skip(program)
}

fn skip(wanted: &str) -> bool {
    panic!("{wanted} is not installed")
}
