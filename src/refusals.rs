//! What the log says of those who are told no: from where, for what, and why.
//!
//! Refused credentials are logged at `info`, to show what is wrong with the tokens of a login that is being set up; at most
//! [`REFUSALS_TOLD`] in [`REFUSALS_PERIOD`], or anybody could fill the log. The others are counted, and told at `debug`,
//! as is every other refusal. No query, no credential and no payload is among it.

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
pub struct Refusals {
    period: Mutex<Period>,
}

/// What was told of late.
struct Period {
    since: Instant,
    told: usize,
    untold: u64,
}

impl Default for Refusals {
    fn default() -> Refusals {
        Refusals {
            period: Mutex::new(Period {
                since: Instant::now(),
                told: 0,
                untold: 0,
            }),
        }
    }
}

impl Refusals {
    /// Tells of a credential that was refused, or that does not reach so far.
    pub fn credential(&self, source: &RequestSource, code: &str, reason: &str) {
        let (route, address) = (&*source.route, source.address());
        let may_tell = self.may_tell(Instant::now());
        if may_tell {
            tracing::info!(route, %address, code, reason, "a credential was refused");
        } else {
            tracing::debug!(route, %address, code, reason, "a credential was refused");
        }
    }

    /// Tells of any other request, or message of a WebSocket's client, that was refused.
    pub fn request(&self, source: &RequestSource, code: &str) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (route, address) = (&*source.route, source.address());
            tracing::debug!(route, %address, code, "a request was refused");
        }
    }

    /// Tells how many were not told of, once a period, until it is dropped.
    pub async fn watch(self: Arc<Refusals>) {
        let mut rounds = interval(REFUSALS_PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            self.begin_anew(Instant::now());
        }
    }

    fn may_tell(&self, now: Instant) -> bool {
        if now.saturating_duration_since(self.lock().since) >= REFUSALS_PERIOD {
            self.begin_anew(now);
        }
        let mut period = self.lock();
        let may = period.told < REFUSALS_TOLD;
        match may {
            true => period.told += 1,
            false => period.untold += 1,
        }
        may
    }

    fn begin_anew(&self, now: Instant) {
        let untold = {
            let mut period = self.lock();
            let new = Period {
                since: now,
                told: 0,
                untold: 0,
            };
            std::mem::replace(&mut *period, new).untold
        };
        if untold > 0 {
            tracing::info!(count = untold, "more credentials were refused");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Period> {
        self.period.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_refusals_are_told_in_a_period_and_the_others_counted() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let told = (0..REFUSALS_TOLD + 5).filter(|_| refusals.may_tell(start));
        assert_eq!(told.count(), REFUSALS_TOLD);
        assert_eq!(refusals.lock().untold, 5);
        assert!(refusals.may_tell(start + REFUSALS_PERIOD));
        assert_eq!(refusals.lock().untold, 0);
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
