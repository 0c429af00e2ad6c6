//! Logs requests that are rejected or fail: where they come from, what they ask for, and why.
//!
//! Rejected credentials are logged at `info`, because they show what is wrong with the tokens of a login system that is
//! being set up. Requests that fail without any fault of their clients are logged at `error`. Of each, at most
//! [`REFUSALS_LOGGED`] are logged in [`REFUSALS_PERIOD`]; otherwise a client could fill the log. The others are counted. All
//! other rejected requests are logged at `debug`. The log never contains queries, credentials or payloads.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::config::{REFUSALS_LOGGED, REFUSALS_PERIOD, ROUTE_MAX_CHARS};

/// Where a request comes from, and what it is for.
#[derive(Debug, Clone)]
pub struct RequestSource {
    route: Box<str>,
    address: Option<IpAddr>,
}

impl RequestSource {
    /// The path of a request, without its query and the key of a ping, and the address that it comes from.
    pub fn new(path: &str, address: Option<IpAddr>) -> RequestSource {
        let mut before = "";
        let without_secret = |part| match std::mem::replace(&mut before, part) {
            "ping" => "...",
            _ => without_token(part),
        };
        let parts: Vec<&str> = path.split('/').map(without_secret).collect();
        let shown = |character: char| {
            if character.is_ascii_graphic() {
                character
            } else {
                '?'
            }
        };
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

/// Logs rejected and failed requests. See the module documentation.
#[derive(Default)]
pub struct Rejections {
    credentials: Mutex<Period>,
    failures: Mutex<Period>,
}

/// What was logged in the current period.
struct Period {
    since: Instant,
    logged: usize,
    unlogged: u64,
}

impl Default for Period {
    fn default() -> Period {
        Period {
            since: Instant::now(),
            logged: 0,
            unlogged: 0,
        }
    }
}

impl Period {
    /// Counts an occurrence. Returns whether to log it, and how many of the previous period were not logged.
    fn count(&mut self, now: Instant) -> (bool, u64) {
        let unlogged = self.renew(now);
        let may_log = self.logged < REFUSALS_LOGGED;
        match may_log {
            true => self.logged += 1,
            false => self.unlogged += 1,
        }
        (may_log, unlogged)
    }

    /// Starts a new period if this one is over. Returns how many were not logged in it.
    fn renew(&mut self, now: Instant) -> u64 {
        if now.saturating_duration_since(self.since) < REFUSALS_PERIOD {
            return 0;
        }
        let ended = std::mem::take(self);
        self.since = now;
        ended.unlogged
    }
}

impl Rejections {
    /// Logs a credential that is rejected, or that lacks a permission.
    pub fn credential(&self, source: &RequestSource, code: &str, reason: &str) {
        let (route, address) = (&*source.route, source.address());
        let (may_log, unlogged) = lock(&self.credentials).count(Instant::now());
        log_credentials(unlogged);
        if may_log {
            tracing::info!(route, %address, code, reason, "a credential was rejected");
        } else {
            tracing::debug!(route, %address, code, reason, "a credential was rejected");
        }
    }

    /// Logs a request that failed without any fault of its client.
    pub fn failure(&self, source: &RequestSource, cause: &str) {
        let (route, address) = (&*source.route, source.address());
        let (may_log, unlogged) = lock(&self.failures).count(Instant::now());
        log_failures(unlogged);
        if may_log {
            tracing::error!(route, %address, cause, "a request failed");
        }
    }

    /// Logs any other rejected request or WebSocket message.
    pub fn request(&self, source: &RequestSource, code: &str) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (route, address) = (&*source.route, source.address());
            tracing::debug!(route, %address, code, "a request was rejected");
        }
    }

    /// Logs once per period how many were not logged, until the future is dropped.
    pub async fn watch(self: Arc<Rejections>) {
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
        tracing::info!(count, "more credentials were rejected");
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
        let counted = (0..REFUSALS_LOGGED + 5).map(|_| period.count(start));
        let logged = counted.filter(|(may_log, _)| *may_log);
        assert_eq!(logged.count(), REFUSALS_LOGGED);
        assert_eq!(period.renew(start), 0, "it is not over");
        let later = start + REFUSALS_PERIOD;
        assert_eq!(period.count(later), (true, 5));
        assert_eq!(period.renew(later + REFUSALS_PERIOD), 0);
    }

    #[test]
    fn a_route_is_logged_without_a_token_or_a_second_line() {
        let route = |path: &str| RequestSource::new(path, None).route;
        assert_eq!(&*route("/events/jobs/a.b.c"), "/events/jobs/a.b.c");
        let token = format!("{0}.{0}.{0}", "eyJhbGciOiJIUzI1NiJ9");
        assert_eq!(&*route(&format!("/events/{token}")), "/events/...");
        assert_eq!(&*route("/ping/7-abc/start"), "/ping/.../start");
        assert_eq!(&*route("/live/ping/7-abc"), "/live/ping/...");
        assert_eq!(&*route("/a\nINFO b\u{9b}"), "/a?INFO?b?");
        assert_eq!(route(&"/long".repeat(1_000)).len(), ROUTE_MAX_CHARS);
    }
}
