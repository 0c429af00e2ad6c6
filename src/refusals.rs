//! What the log says of requests that are refused or fail: from where, for what, and why.
//!
//! Refused credentials are logged at `info`, to show what is wrong with the tokens of a login that is being set up. Requests
//! that fail by no fault of their clients are logged at `error`. Of either, at most [`REFUSALS_TOLD`] are logged in
//! [`REFUSALS_PERIOD`], or a client could fill the log; the others are counted. All other refusals are logged at `debug`. No
//! line holds a query, a credential or a payload.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::config::{REFUSALS_PERIOD, REFUSALS_TOLD, ROUTE_MAX_CHARS};

/// Where a request comes from, and what it is for.
#[derive(Debug, Clone)]
pub struct RequestSource {
    route: Box<str>,
    address: Option<IpAddr>,
}

impl RequestSource {
    /// The path of a request, without its query, and the address that it comes from.
    pub fn new(path: &str, address: Option<IpAddr>) -> RequestSource {
        let parts: Vec<&str> = path.split('/').map(without_token).collect();
        let shown = |own: char| if own.is_ascii_graphic() { own } else { '?' };
        let route: String = parts.join("/").chars().take(ROUTE_MAX_CHARS).collect();
        RequestSource {
            route: route.chars().map(shown).collect::<String>().into(),
            address,
        }
    }

    fn address(&self) -> String {
        let address = self.address.as_ref();
        address.map_or_else(|| "unknown".into(), IpAddr::to_string)
    }
}

/// A part of a path, unless somebody has put a token there by mistake: three long parts, separated by dots.
fn without_token(part: &str) -> &str {
    const LEAST_BYTES: usize = 60;
    let looks_like_one = part.len() >= LEAST_BYTES && part.matches('.').count() == 2;
    if looks_like_one { "..." } else { part }
}

/// See the module's page.
#[derive(Default)]
pub struct Refusals {
    credentials: Mutex<Period>,
    failures: Mutex<Period>,
}

/// What was logged of late.
struct Period {
    since: Instant,
    logged: usize,
    left_out: u64,
}

impl Default for Period {
    fn default() -> Period {
        Period {
            since: Instant::now(),
            logged: 0,
            left_out: 0,
        }
    }
}

impl Period {
    /// Counts one more. Returns whether it may be logged, and how many were left out in a period that is over.
    fn count(&mut self, now: Instant) -> (bool, u64) {
        let left_out = self.renew(now);
        let may_log = self.logged < REFUSALS_TOLD;
        match may_log {
            true => self.logged += 1,
            false => self.left_out += 1,
        }
        (may_log, left_out)
    }

    /// Begins another period if this one is over. Returns how many were left out in it.
    fn renew(&mut self, now: Instant) -> u64 {
        if now.saturating_duration_since(self.since) < REFUSALS_PERIOD {
            return 0;
        }
        let ended = std::mem::take(self);
        self.since = now;
        ended.left_out
    }
}

impl Refusals {
    /// Logs a credential that was refused, or that does not reach so far.
    pub fn credential(&self, source: &RequestSource, code: &str, reason: &str) {
        let (route, address) = (&*source.route, source.address());
        let (may_log, left_out) = lock(&self.credentials).count(Instant::now());
        log_credentials(left_out);
        if may_log {
            tracing::info!(route, %address, code, reason, "a credential was refused");
        } else {
            tracing::debug!(route, %address, code, reason, "a credential was refused");
        }
    }

    /// Logs a request that failed by no fault of its client.
    pub fn failure(&self, source: &RequestSource, cause: &str) {
        let (route, address) = (&*source.route, source.address());
        let (may_log, left_out) = lock(&self.failures).count(Instant::now());
        log_failures(left_out);
        if may_log {
            tracing::error!(route, %address, cause, "a request failed");
        }
    }

    /// Logs any other request, or message of a WebSocket's client, that was refused.
    pub fn request(&self, source: &RequestSource, code: &str) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (route, address) = (&*source.route, source.address());
            tracing::debug!(route, %address, code, "a request was refused");
        }
    }

    /// Logs, once a period, how many were left out, until it is dropped.
    pub async fn watch(self: Arc<Refusals>) {
        let mut rounds = interval(REFUSALS_PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = rounds.tick().await;
            log_credentials(lock(&self.credentials).renew(now));
            log_failures(lock(&self.failures).renew(now));
        }
    }
}

fn lock(period: &Mutex<Period>) -> MutexGuard<'_, Period> {
    period.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_credentials(count: u64) {
    if count > 0 {
        tracing::info!(count, "more credentials were refused");
    }
}

fn log_failures(count: u64) {
    if count > 0 {
        tracing::error!(count, "more requests failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_logged_in_a_period_and_the_others_counted() {
        let mut period = Period::default();
        let start = Instant::now();
        let counted = (0..REFUSALS_TOLD + 5).map(|_| period.count(start));
        let logged = counted.filter(|(may_log, _)| *may_log);
        assert_eq!(logged.count(), REFUSALS_TOLD);
        assert_eq!(period.renew(start), 0, "it is not over");
        let later = start + REFUSALS_PERIOD;
        assert_eq!(period.count(later), (true, 5));
        assert_eq!(period.renew(later + REFUSALS_PERIOD), 0);
    }

    #[test]
    fn a_route_is_told_without_what_could_be_a_token_or_a_second_line() {
        let route = |path: &str| RequestSource::new(path, None).route;
        assert_eq!(&*route("/events/jobs/a.b.c"), "/events/jobs/a.b.c");
        let token = format!("{0}.{0}.{0}", "eyJhbGciOiJIUzI1NiJ9");
        assert_eq!(&*route(&format!("/events/{token}")), "/events/...");
        assert_eq!(&*route("/a\nINFO b\u{9b}"), "/a?INFO?b?");
        assert_eq!(route(&"/long".repeat(1_000)).len(), ROUTE_MAX_CHARS);
    }
}
