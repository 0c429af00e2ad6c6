//! What a request that writes has to pass before its body is read: its school has paid for what it produced, and there is
//! memory.

use tokio::time::Instant;

use super::problem::Problem;
use crate::config::RESERVE_WAIT;
use crate::id::SchoolId;
use crate::reserve::{Holder, Reserved};
use crate::service::Tidings;

/// Checks that a school has not produced more than it may.
pub(super) fn may_produce(tidings: &Tidings, school: SchoolId) -> Result<(), Problem> {
    match tidings.debts().of(school, Instant::now()) {
        None => Ok(()),
        Some(wait) => {
            let most = tidings.settings().event_bytes_per_sec;
            let detail = format!(
                "the school has produced more than {most} bytes of events a second; it may go on in {} s",
                wait.as_secs() + 1
            );
            Err(Problem::too_fast(detail, wait).of_limit("event_bytes_per_sec"))
        }
    }
}

/// Reserves memory, and waits for it a while.
pub(super) async fn reserve(
    tidings: &Tidings,
    holder: Holder,
    bytes: u64,
) -> Result<Reserved, Problem> {
    let reserved = tidings.write_memory().take(holder, bytes, RESERVE_WAIT);
    Ok(reserved.await?)
}
