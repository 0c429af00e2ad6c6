//! Closes connections without a request in progress. A client that sends nothing, sends its request one byte at a time, or
//! keeps its connection open after the answer would occupy a descriptor and buffers indefinitely: Rocket waits for the head
//! of a request, and for the first bytes of its body, without a limit.
//!
//! 1. A fairing counts the requests in progress of each peer. A request is in progress until its whole answer was written
//!    to the socket, so a stream is in progress until it ends. The task of a WebSocket keeps its request in progress.
//! 2. An answer of known length has a deadline, which depends on the length. Otherwise, a client that reads a large answer
//!    one byte at a time would keep its connection and the buffered bytes. The bytes of answers that follow one another
//!    without a pause are added up.
//! 3. Streams handle slow readers themselves. So there is no deadline on a connection on which another request is in
//!    progress, such as a stream over HTTP/2 in an application that embeds Tidings.
//! 4. A task periodically asks the kernel for the port's connections. It shuts down a connection without a request in
//!    progress if the server has never sent anything on it for `request_timeout_secs`, or if the client has acknowledged
//!    everything and the server has sent nothing for `keep_alive_timeout_secs`. It also shuts down a connection if the
//!    deadline of its answer has passed and the client has not acknowledged all of it.
//!
//! A connection is identified by the address of its peer. If a client connects to two addresses of this machine from the
//! same port, both connections share one entry.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rocket::fairing::{Fairing, Info, Kind};
use rocket::{Data, Orbit, Request, Response, Rocket};
use tokio::task::spawn_blocking;

use super::dead_peers::{self, Connection, Shutdown};
use crate::config::{IDLE_CHECK_MAX, RESPONSE_RATE_MIN};
use crate::service::Tidings;
use crate::tasks::Task;

/// The number of checks per timeout.
const CHECKS: u32 = 4;

/// Closes idle connections, from liftoff until the application ends.
#[derive(Default)]
pub(super) struct IdleConnections(Arc<Requests>);

/// The peers that have a request in progress, or an answer that they may not have received completely.
#[derive(Default)]
struct Requests {
    peers: Mutex<HashMap<SocketAddr, Peer>>,
    timeouts: OnceLock<Timeouts>,
}

#[derive(Default)]
struct Peer {
    /// The number of requests in progress.
    requests: usize,
    /// The last answer, if its length is known.
    answer: Option<Answer>,
    /// The deadline of the answer to the previous request. The client may not have received all of that answer yet.
    earlier: Option<Instant>,
}

struct Answer {
    began: Instant,
    /// When the client must have received it. `None` if that time cannot be represented.
    deadline: Option<Instant>,
}

/// Counts as a request in progress until it is dropped.
pub(super) struct InProgress {
    peer: SocketAddr,
    requests: Arc<Requests>,
}

/// How long connections without a request stay open, and how long an empty answer may take. `None` means no limit.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    first_request: Option<Duration>,
    keep_alive: Option<Duration>,
    response: Option<Duration>,
}

#[rocket::async_trait]
impl Fairing for IdleConnections {
    fn info(&self) -> Info {
        Info {
            name: "Tidings: idle connections",
            kind: Kind::Liftoff | Kind::Request | Kind::Response,
        }
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        let Some(tidings) = rocket.state::<Arc<Tidings>>() else {
            return;
        };
        let settings = tidings.settings();
        let timeouts = Timeouts {
            first_request: settings.request_timeout(),
            keep_alive: settings.keep_alive_timeout(),
            response: settings.response_timeout(),
        };
        let Some(shortest) = timeouts.shortest().filter(|_| cfg!(target_os = "linux")) else {
            return;
        };
        let pause = (shortest / CHECKS).min(IDLE_CHECK_MAX);
        let _ = self.0.timeouts.set(timeouts);
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
        if self.0.timeouts.get().is_some()
            && let Some(peer) = request.remote()
        {
            // Rocket drops the request, and with it this value, after it has written the answer.
            request.local_cache(|| Some(Arc::new(Requests::begin(&self.0, peer))));
        }
    }

    async fn on_response<'r>(&self, request: &'r Request<'_>, response: &mut Response<'r>) {
        if let Some(timeout) = self.0.timeouts.get().and_then(|timeouts| timeouts.response)
            && let Some(in_progress) = in_progress(request)
            && !is_upgraded(request, response)
            && let Some(bytes) = response.body_mut().size().await
        {
            in_progress.answered(bytes, timeout);
        }
    }
}

/// Returns the guard that keeps a request in progress. `None` if requests are not counted.
pub(super) fn in_progress(request: &Request<'_>) -> Option<Arc<InProgress>> {
    request.local_cache(|| None::<Arc<InProgress>>).clone()
}

/// Whether the connection belongs to an upgraded protocol from now on.
fn is_upgraded(request: &Request<'_>, response: &mut Response<'_>) -> bool {
    let protocols = request.headers().get("upgrade");
    let mut protocols = protocols.flat_map(|value| value.split(','));
    protocols.any(|protocol| response.upgrade(protocol.trim()).is_some())
}

impl Requests {
    fn begin(requests: &Arc<Requests>, peer: SocketAddr) -> InProgress {
        // Remove the scope of a link-local address: the kernel's list of connections does not contain it.
        let peer = SocketAddr::new(peer.ip(), peer.port());
        let mut peers = requests.peers();
        let state = peers.entry(peer).or_default();
        state.requests += 1;
        state.earlier = state.answer.take().and_then(|answer| answer.deadline);
        drop(peers);
        InProgress {
            peer,
            requests: Arc::clone(requests),
        }
    }

    /// Whether a connection has no request in progress, or has not received its answer by the deadline.
    fn is_idle(&self, connection: &Connection, now: Instant) -> bool {
        let peers = self.peers();
        let state = peers.get(&connection.peer);
        let is_answer_late = state
            .and_then(|state| state.answer.as_ref()?.deadline)
            .is_some_and(|deadline| deadline <= now);
        if connection.is_unacknowledged {
            return is_answer_late;
        }
        // Unread bytes may be the next request.
        state.is_none_or(|state| state.requests == 0) && !connection.is_unread
    }

    /// Removes the peers that had received their answers, or had disconnected, when the kernel was asked.
    fn forget(&self, connections: &[Connection], asked: Instant) {
        let waiting = connections
            .iter()
            .filter(|connection| connection.is_unacknowledged);
        let waiting: HashSet<SocketAddr> = waiting.map(|connection| connection.peer).collect();
        self.peers().retain(|peer, state| {
            let is_newer = state
                .answer
                .as_ref()
                .is_some_and(|answer| answer.began >= asked);
            state.requests > 0 || is_newer || waiting.contains(peer)
        });
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<SocketAddr, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InProgress {
    /// Sets the deadline of an answer of this many bytes.
    fn answered(&self, bytes: usize, timeout: Duration) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let transfer = Duration::from_secs(bytes / RESPONSE_RATE_MIN);
        let began = Instant::now();
        if let Some(state) = self.requests.peers().get_mut(&self.peer)
            && state.requests == 1
        {
            let least = began + timeout;
            let from = state
                .earlier
                .take()
                .map_or(least, |earlier| earlier.max(least));
            let deadline = from.checked_add(transfer);
            state.answer = Some(Answer { began, deadline });
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut peers = self.requests.peers();
        if let Some(state) = peers.get_mut(&self.peer) {
            state.requests -= 1;
            if state.requests == 0 && state.answer.is_none() {
                peers.remove(&self.peer);
            }
        }
    }
}

/// Checks for idle connections until the application ends.
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
        let accepted = spawn_blocking(move || dead_peers::accepted(address)).await;
        let accepted = match accepted.map_err(io::Error::other).flatten() {
            Ok(accepted) => accepted,
            Err(error) => {
                if std::mem::take(&mut may_warn) {
                    tracing::warn!(%error, "the state of connections is unknown, so idle ones stay open");
                }
                requests.forget(&[], asked);
                continue;
            }
        };
        requests.forget(&accepted, asked);
        let idle = accepted.into_iter();
        let idle = idle
            .filter(|connection| requests.is_idle(connection, asked))
            .collect();
        let idle = timeouts.exceeded(idle, &mut unanswered, asked);
        if idle.is_empty() {
            continue;
        }
        let requests = Arc::clone(&requests);
        let closed = spawn_blocking(move || {
            let inodes = idle.keys().copied().collect();
            // A request may have begun meanwhile.
            dead_peers::shut_down(&inodes, |inode| {
                let connection = idle.get(&inode)?;
                let is_late = connection.is_unacknowledged;
                requests
                    .is_idle(connection, asked)
                    .then_some(match is_late {
                        true => Shutdown::Discard,
                        false => Shutdown::Deliver,
                    })
            })
        });
        match closed.await.map_err(io::Error::other).flatten() {
            Ok(0) => {}
            Ok(connections) => tracing::info!(
                connections,
                "closed connections that were idle, or whose clients did not receive the answer in time"
            ),
            Err(error) => {
                if std::mem::take(&mut may_warn) {
                    tracing::warn!(%error, "idle connections cannot be closed");
                }
            }
        }
    }
}

impl Timeouts {
    fn shortest(self) -> Option<Duration> {
        let all = [self.first_request, self.keep_alive, self.response];
        all.into_iter().flatten().min()
    }

    /// Returns which of these idle connections are to be closed, by inode. `unanswered` records when each connection on
    /// which nothing was sent was first seen.
    fn exceeded(
        self,
        idle: Vec<Connection>,
        unanswered: &mut HashMap<(SocketAddr, u64), Instant>,
        now: Instant,
    ) -> HashMap<u64, Connection> {
        let seen = std::mem::take(unanswered);
        let is_exceeded = |connection: &Connection| match connection.sent_ago {
            // The deadline of its answer has passed.
            Some(_) if connection.is_unacknowledged => true,
            Some(sent_ago) => self.keep_alive.is_some_and(|timeout| sent_ago >= timeout),
            None => {
                let key = (connection.peer, connection.inode);
                let since = *seen.get(&key).unwrap_or(&now);
                unanswered.insert(key, since);
                self.first_request
                    .is_some_and(|timeout| now - since >= timeout)
            }
        };
        let exceeded = idle.into_iter().filter(is_exceeded);
        exceeded
            .map(|connection| (connection.inode, connection))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(port: u16, sent_ago: Option<u64>) -> Connection {
        Connection {
            peer: SocketAddr::from(([192, 0, 2, 1], port)),
            inode: port.into(),
            sent_ago: sent_ago.map(Duration::from_secs),
            is_unacknowledged: false,
            is_unread: false,
        }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn connections_with_a_request_in_progress_are_left_alone() {
        let requests = Arc::new(Requests::default());
        let open = connection(2, Some(900));
        let is_idle = || requests.is_idle(&open, Instant::now());
        assert!(is_idle());
        let first = Requests::begin(&requests, open.peer);
        let second = Requests::begin(&requests, open.peer);
        assert!(!is_idle());
        assert!(requests.is_idle(&connection(1, None), Instant::now()));
        drop(first);
        assert!(!is_idle());
        drop(second);
        assert!(is_idle());
        assert!(requests.peers().is_empty());
        let unread = Connection {
            is_unread: true,
            ..open
        };
        assert!(!requests.is_idle(&unread, Instant::now()));
    }

    #[test]
    fn an_answer_that_is_not_taken_in_time_is_late_and_a_longer_one_later() {
        let requests = Arc::new(Requests::default());
        let taken = connection(1, Some(0));
        let unacknowledged = Connection {
            is_unacknowledged: true,
            ..taken
        };
        let bytes = usize::try_from(RESPONSE_RATE_MIN * 100).unwrap();
        let request = Requests::begin(&requests, unacknowledged.peer);
        let start = Instant::now();
        request.answered(bytes, secs(10));
        let is_late = |after| requests.is_idle(&unacknowledged, start + secs(after));
        assert!(!is_late(109));
        assert!(is_late(111), "it is still being handed over");
        drop(request);
        assert!(!is_late(109));
        assert!(is_late(111), "it waits in the socket");
        requests.forget(&[unacknowledged], start + secs(111));
        assert!(is_late(111));
        let stream = Requests::begin(&requests, unacknowledged.peer);
        assert!(!is_late(1_000));
        let beside = Requests::begin(&requests, unacknowledged.peer);
        beside.answered(0, secs(10));
        drop(beside);
        assert!(!is_late(1_000), "the stream continues");
        drop(stream);
        assert!(!is_late(1_000));

        Requests::begin(&requests, unacknowledged.peer).answered(0, secs(10));
        requests.forget(&[taken], start);
        assert_eq!(requests.peers().len(), 1, "answered since");
        requests.forget(&[taken], Instant::now());
        assert!(requests.peers().is_empty());
    }

    #[test]
    fn the_bytes_of_answers_that_follow_one_another_count_together() {
        let requests = Arc::new(Requests::default());
        let unacknowledged = Connection {
            is_unacknowledged: true,
            ..connection(1, Some(0))
        };
        let bytes = usize::try_from(RESPONSE_RATE_MIN * 100).unwrap();
        let start = Instant::now();
        for _ in 0..3 {
            Requests::begin(&requests, unacknowledged.peer).answered(bytes, secs(10));
        }
        assert!(!requests.is_idle(&unacknowledged, start + secs(309)));
        assert!(requests.is_idle(&unacknowledged, start + secs(311)));
    }

    #[test]
    fn the_first_request_and_later_ones_have_a_time_each() {
        let timeouts = Timeouts {
            first_request: Some(secs(10)),
            keep_alive: Some(secs(20)),
            response: None,
        };
        let start = Instant::now();
        let mut unanswered = HashMap::new();
        let mut after = |after, idle: &[Connection]| {
            let exceeded = timeouts.exceeded(idle.to_vec(), &mut unanswered, start + secs(after));
            let mut inodes: Vec<u64> = exceeded.into_keys().collect();
            inodes.sort_unstable();
            inodes
        };
        let (silent, used) = (connection(1, None), |ago| connection(2, Some(ago)));
        assert!(after(0, &[silent, used(19)]).is_empty());
        assert_eq!(after(9, &[silent, used(20)]), [2]);
        assert_eq!(after(10, &[silent, used(0)]), [1]);
        // It was not idle in between, so a request was in progress, or it is a new connection.
        assert!(after(11, &[]).is_empty());
        assert!(after(12, &[silent]).is_empty());
        let late = Connection {
            is_unacknowledged: true,
            ..used(0)
        };
        assert_eq!(after(13, &[late]), [2]);
    }

    #[test]
    fn without_a_timeout_nothing_is_closed() {
        let timeouts = Timeouts {
            first_request: None,
            keep_alive: None,
            response: None,
        };
        let start = Instant::now();
        let mut unanswered = HashMap::new();
        for now in [start, start + secs(100_000)] {
            let idle = vec![connection(1, None), connection(2, Some(100_000))];
            assert!(timeouts.exceeded(idle, &mut unanswered, now).is_empty());
        }
    }
}
