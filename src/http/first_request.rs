//! Connections whose first request does not arrive: a client that sends nothing, or its request a byte at a time, holds a
//! descriptor and buffers for as long as it likes. Rocket waits for the head of a request, and for the first bytes of its
//! body, without a limit.
//!
//! 1. A fairing notes from where requests have begun.
//! 2. A task periodically asks the kernel for the port's connections on which nothing has been sent. One of which no
//!    request has begun for `request_timeout_secs` since it was first seen is shut down.
//!
//! Deliberately absent: a limit on later requests of a connection, which has proved that it belongs to a client.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rocket::fairing::{Fairing, Info, Kind};
use rocket::{Data, Orbit, Request, Rocket};
use tokio::task::spawn_blocking;

use super::dead_peers::{self, Unanswered};
use crate::config::{FIRST_REQUEST_CHECK_MAX, FIRST_REQUESTS_MAX};
use crate::service::Tidings;
use crate::tasks::Task;

/// How many checks fit into the timeout.
const CHECKS: u32 = 4;

/// Closes these connections, from liftoff until the application ends.
#[derive(Default)]
pub(super) struct FirstRequests(Arc<Begun>);

/// From where requests have begun, on connections on which nothing may have been sent yet.
#[derive(Default)]
struct Begun {
    peers: Mutex<HashSet<SocketAddr>>,
    /// Whether anybody takes the notes.
    is_checked: AtomicBool,
}

#[rocket::async_trait]
impl Fairing for FirstRequests {
    fn info(&self) -> Info {
        Info {
            name: "Tidings: first requests",
            kind: Kind::Liftoff | Kind::Request,
        }
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        let Some(tidings) = rocket.state::<Arc<Tidings>>() else {
            return;
        };
        let Some(timeout) = tidings.settings().request_timeout() else {
            return;
        };
        if !cfg!(target_os = "linux") {
            return;
        }
        self.0.is_checked.store(true, Ordering::Relaxed);
        let (port, begun) = (rocket.config().port, Arc::clone(&self.0));
        let weak = Arc::downgrade(tidings);
        tidings
            .tasks()
            .supervise(Task::new("first requests"), move || {
                check(Weak::clone(&weak), Arc::clone(&begun), port, timeout)
            });
    }

    async fn on_request(&self, request: &mut Request<'_>, _: &mut Data<'_>) {
        if self.0.is_checked.load(Ordering::Relaxed)
            && let Some(peer) = request.remote()
        {
            self.0.note(peer);
        }
    }
}

impl Begun {
    fn note(&self, peer: SocketAddr) {
        let mut peers = self.peers();
        // What is not noted is not taken for a connection without a request either: see `sort`.
        if peers.len() < FIRST_REQUESTS_MAX {
            peers.insert(peer);
        }
    }

    /// Returns those noted so far. Call it before the kernel is asked, and [`Begun::sort`] afterwards.
    fn so_far(&self) -> HashSet<SocketAddr> {
        std::mem::take(&mut *self.peers())
    }

    /// Returns the connections without a request, unless there were more requests than could be noted. Of the others,
    /// keeps in mind that they have one.
    fn sort(&self, so_far: &HashSet<SocketAddr>, unanswered: Vec<Unanswered>) -> Vec<Unanswered> {
        let mut peers = self.peers();
        let (begun, mut silent): (Vec<_>, Vec<_>) = unanswered
            .into_iter()
            .partition(|own| so_far.contains(&own.peer) || peers.contains(&own.peer));
        peers.extend(begun.into_iter().map(|own| own.peer));
        if so_far.len().max(peers.len()) >= FIRST_REQUESTS_MAX {
            silent.clear();
        }
        silent
    }

    fn peers(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks for connections without a request until the application ends.
async fn check(tidings: Weak<Tidings>, begun: Arc<Begun>, port: u16, timeout: Duration) {
    let pause = (timeout / CHECKS).min(FIRST_REQUEST_CHECK_MAX);
    let mut seen: HashMap<Unanswered, Instant> = HashMap::new();
    let mut may_warn = true;
    loop {
        tokio::time::sleep(pause).await;
        if tidings.strong_count() == 0 {
            return;
        }
        let (asked, so_far) = (Instant::now(), begun.so_far());
        let unanswered = spawn_blocking(move || dead_peers::unanswered(port)).await;
        let unanswered = match unanswered.map_err(io::Error::other).flatten() {
            Ok(unanswered) => unanswered,
            Err(error) => {
                begun.peers().extend(so_far);
                if std::mem::take(&mut may_warn) {
                    tracing::warn!(%error, "the state of connections is unknown, so those whose first request does not arrive stay open");
                }
                continue;
            }
        };
        let silent = begun.sort(&so_far, unanswered).into_iter();
        seen = silent
            .map(|own| (own, *seen.get(&own).unwrap_or(&asked)))
            .collect();
        let late = seen.iter().filter(|(_, since)| asked - **since >= timeout);
        let late: HashSet<u64> = late.map(|(own, _)| own.inode).collect();
        if late.is_empty() {
            continue;
        }
        tracing::info!(
            connections = late.len(),
            "connections whose first request did not arrive are closed"
        );
        let closed = spawn_blocking(move || dead_peers::shut_down(&late)).await;
        if let Err(error) = closed.map_err(io::Error::other).flatten()
            && std::mem::take(&mut may_warn)
        {
            tracing::warn!(%error, "connections whose first request did not arrive cannot be closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_without_a_request_are_taken() {
        let connection = |port: u16| Unanswered {
            peer: SocketAddr::from(([192, 0, 2, 1], port)),
            inode: port.into(),
        };
        let begun = Begun::default();
        for port in [1, 2] {
            begun.note(connection(port).peer);
        }
        let so_far = begun.so_far();
        // While the kernel is asked.
        begun.note(connection(4).peer);
        let silent = begun.sort(&so_far, vec![connection(1), connection(3)]);
        assert_eq!(silent, [connection(3)]);
        let so_far = begun.so_far();
        assert_eq!(so_far.len(), 2, "the second one was answered");
        let still = vec![connection(1), connection(3), connection(4)];
        assert_eq!(begun.sort(&so_far, still), [connection(3)]);
    }
}
