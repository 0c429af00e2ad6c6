//! Connections without a request: a client that sends nothing, sends its request a byte at a time, or was answered and keeps
//! the connection, holds a descriptor and buffers for as long as it likes. Rocket waits for the head of a request, and for
//! the first bytes of its body, without a limit.
//!
//! 1. A fairing counts the requests in progress of each peer. A request is in progress until its answer was handed over,
//!    thus a stream until it ends; a WebSocket's task keeps it in progress itself.
//! 2. A task periodically asks the kernel for the port's connections. One without a request in progress is shut down when
//!    nothing was ever sent on it and it is older than `request_timeout_secs`, or when everything was sent, and nothing for
//!    `keep_alive_timeout_secs`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rocket::fairing::{Fairing, Info, Kind};
use rocket::{Data, Orbit, Request, Rocket};
use tokio::task::spawn_blocking;

use super::dead_peers::{self, Quiet};
use crate::config::IDLE_CHECK_MAX;
use crate::service::Tidings;
use crate::tasks::Task;

/// How many checks fit into a timeout.
const CHECKS: u32 = 4;

/// Closes these connections, from liftoff until the application ends.
#[derive(Default)]
pub(super) struct IdleConnections(Arc<Requests>);

/// The number of requests in progress of each peer that has one.
#[derive(Default)]
struct Requests {
    peers: Mutex<HashMap<SocketAddr, usize>>,
    /// Whether anybody asks for them.
    is_checked: AtomicBool,
}

/// Counts as a request in progress until it is dropped.
pub(super) struct InProgress {
    peer: SocketAddr,
    requests: Arc<Requests>,
}

/// How long connections without a request stay open. `None` means for ever.
#[derive(Clone, Copy)]
struct Timeouts {
    first_request: Option<Duration>,
    keep_alive: Option<Duration>,
}

#[rocket::async_trait]
impl Fairing for IdleConnections {
    fn info(&self) -> Info {
        Info {
            name: "Tidings: idle connections",
            kind: Kind::Liftoff | Kind::Request,
        }
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        let Some(tidings) = rocket.state::<Arc<Tidings>>() else {
            return;
        };
        let timeouts = Timeouts {
            first_request: tidings.settings().request_timeout(),
            keep_alive: tidings.settings().keep_alive_timeout(),
        };
        let shortest = timeouts
            .first_request
            .into_iter()
            .chain(timeouts.keep_alive);
        let Some(shortest) = shortest.min().filter(|_| cfg!(target_os = "linux")) else {
            return;
        };
        let pause = (shortest / CHECKS).min(IDLE_CHECK_MAX);
        self.0.is_checked.store(true, Ordering::Relaxed);
        let address = SocketAddr::new(rocket.config().address, rocket.config().port);
        let requests = Arc::clone(&self.0);
        let weak = Arc::downgrade(tidings);
        let task = Task::new("idle connections");
        tidings.tasks().supervise(task, move || {
            check(
                Weak::clone(&weak),
                Arc::clone(&requests),
                address,
                timeouts,
                pause,
            )
        });
    }

    async fn on_request(&self, request: &mut Request<'_>, _: &mut Data<'_>) {
        if self.0.is_checked.load(Ordering::Relaxed)
            && let Some(peer) = request.remote()
        {
            // Rocket drops the request, and with it this, when its answer was handed over.
            request.local_cache(|| Some(Arc::new(Requests::begin(&self.0, peer))));
        }
    }
}

/// Returns what keeps a request in progress. `None` if requests are not counted.
pub(super) fn in_progress(request: &Request<'_>) -> Option<Arc<InProgress>> {
    request.local_cache(|| None::<Arc<InProgress>>).clone()
}

impl Requests {
    fn begin(requests: &Arc<Requests>, peer: SocketAddr) -> InProgress {
        // Without the scope of a link-local address, which the kernel's answer does not have.
        let peer = SocketAddr::new(peer.ip(), peer.port());
        *requests.peers().entry(peer).or_default() += 1;
        InProgress {
            peer,
            requests: Arc::clone(requests),
        }
    }

    /// Returns the connections without a request in progress. Call it after the kernel is asked, because requests may begin
    /// meanwhile.
    fn without(&self, mut connections: Vec<Quiet>) -> Vec<Quiet> {
        let peers = self.peers();
        connections.retain(|own| !peers.contains_key(&own.peer));
        connections
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<SocketAddr, usize>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut peers = self.requests.peers();
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// Checks for connections without a request until the application ends.
async fn check(
    tidings: Weak<Tidings>,
    requests: Arc<Requests>,
    address: SocketAddr,
    timeouts: Timeouts,
    pause: Duration,
) {
    let mut unanswered = HashMap::new();
    let mut may_warn = true;
    loop {
        tokio::time::sleep(pause).await;
        if tidings.strong_count() == 0 {
            return;
        }
        let asked = Instant::now();
        let quiet = spawn_blocking(move || dead_peers::quiet(address)).await;
        let quiet = match quiet.map_err(io::Error::other).flatten() {
            Ok(mut quiet) => {
                // Most, before every request is made to wait.
                quiet.retain(|own| timeouts.can_be_exceeded(own));
                requests.without(quiet)
            }
            Err(error) => {
                if std::mem::take(&mut may_warn) {
                    tracing::warn!(%error, "the state of connections is unknown, so those without a request stay open");
                }
                continue;
            }
        };
        let idle = timeouts.exceeded(&quiet, &mut unanswered, asked);
        if idle.is_empty() {
            continue;
        }
        tracing::info!(
            connections = idle.len(),
            "connections without a request are closed"
        );
        let closed = spawn_blocking(move || dead_peers::shut_down(&idle)).await;
        if let Err(error) = closed.map_err(io::Error::other).flatten()
            && std::mem::take(&mut may_warn)
        {
            tracing::warn!(%error, "connections without a request cannot be closed");
        }
    }
}

impl Timeouts {
    /// Whether a connection has been quiet for long enough to be closed, unless nothing was sent on it: then the kernel does
    /// not know.
    fn can_be_exceeded(self, own: &Quiet) -> bool {
        match own.sent_ago {
            Some(sent_ago) => self.keep_alive.is_some_and(|timeout| sent_ago >= timeout),
            None => self.first_request.is_some(),
        }
    }

    /// Returns the inodes of connections to close. `unanswered` keeps in mind since when those on which nothing was sent are
    /// seen.
    fn exceeded(
        self,
        quiet: &[Quiet],
        unanswered: &mut HashMap<(SocketAddr, u64), Instant>,
        now: Instant,
    ) -> HashSet<u64> {
        let seen = std::mem::take(unanswered);
        let is_idle = |own: &&Quiet| match own.sent_ago {
            Some(_) => self.can_be_exceeded(own),
            None => {
                let own = (own.peer, own.inode);
                let since = *seen.get(&own).unwrap_or(&now);
                unanswered.insert(own, since);
                self.first_request
                    .is_some_and(|timeout| now - since >= timeout)
            }
        };
        quiet.iter().filter(is_idle).map(|own| own.inode).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(port: u16, sent_ago: Option<u64>) -> Quiet {
        Quiet {
            peer: SocketAddr::from(([192, 0, 2, 1], port)),
            inode: port.into(),
            sent_ago: sent_ago.map(Duration::from_secs),
        }
    }

    #[test]
    fn connections_with_a_request_in_progress_are_left_alone() {
        let requests = Arc::new(Requests::default());
        let all = vec![connection(1, None), connection(2, Some(900))];
        let first = Requests::begin(&requests, all[1].peer);
        let second = Requests::begin(&requests, all[1].peer);
        assert_eq!(requests.without(all.clone()), all[..1]);
        drop(first);
        assert_eq!(requests.without(all.clone()), all[..1]);
        drop(second);
        assert_eq!(requests.without(all.clone()), all);
        assert!(requests.peers().is_empty());
    }

    #[test]
    fn the_first_request_and_later_ones_have_a_time_each() {
        let timeouts = Timeouts {
            first_request: Some(Duration::from_secs(10)),
            keep_alive: Some(Duration::from_secs(20)),
        };
        let start = Instant::now();
        let mut unanswered = HashMap::new();
        let mut after = |secs, quiet: &[Quiet]| {
            let now = start + Duration::from_secs(secs);
            let mut idle: Vec<u64> = timeouts
                .exceeded(quiet, &mut unanswered, now)
                .into_iter()
                .collect();
            idle.sort_unstable();
            idle
        };
        let (silent, used) = (connection(1, None), |ago| connection(2, Some(ago)));
        assert!(after(0, &[silent, used(19)]).is_empty());
        assert_eq!(after(9, &[silent, used(20)]), [2]);
        assert_eq!(after(10, &[silent, used(0)]), [1]);
        // It was not seen in between, thus its request was in progress, or it is another one.
        assert!(after(11, &[]).is_empty());
        assert!(after(12, &[silent]).is_empty());
    }

    #[test]
    fn without_a_timeout_nothing_is_closed() {
        let timeouts = Timeouts {
            first_request: None,
            keep_alive: None,
        };
        let start = Instant::now();
        let mut unanswered = HashMap::new();
        for now in [start, start + Duration::from_secs(100_000)] {
            let quiet = [connection(1, None), connection(2, Some(100_000))];
            assert!(timeouts.exceeded(&quiet, &mut unanswered, now).is_empty());
        }
    }
}
