//! Connections whose peers have vanished: no FIN and no RST ever arrives, because the machine has lost its power or its
//! network.
//!
//! By default, the kernel drops such a connection after about 15 minutes of retransmissions, and never if it is idle.
//! `TCP_USER_TIMEOUT` shortens this, but it also drops a connection whose peer is alive and keeps its receive window closed
//! for that long (`tcp_probe_timer`): it cannot tell a dead reader from a slow one. It is therefore set to the time after
//! which a reader that reads nothing may be dropped anyway. Dead peers are found by asking the kernel:
//!
//! 1. At liftoff, keep-alive and `TCP_USER_TIMEOUT` are set on the listening socket. Accepted sockets inherit both, so that
//!    a peer that has nothing to acknowledge is probed.
//! 2. A task periodically checks the port's connections (`sock_diag`). If a peer has acknowledged nothing for
//!    `dead_peer_timeout_secs` although it was probed several times, the task shuts down the connection and closes its
//!    streams: a body that has nothing to write would not notice.
//!
//! The kernel of a slow reader answers each probe of its closed window, so a slow reader is never taken for dead.
//!
//! Deliberately absent for dead peers: `SO_LINGER`. The data that is queued on a closed connection is still retransmitted for a
//! while. A peer that returns thus learns that the stream is closed, and reconnects with its cursor.

#[cfg(target_os = "linux")]
mod descriptors;
#[cfg(target_os = "linux")]
mod sock_diag;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rocket::fairing::{Fairing, Info, Kind};
use rocket::{Orbit, Rocket};

use crate::service::Tidings;

/// Whether any client is connected to a local port, as far as the kernel knows.
pub(super) fn is_connected(port: u16) -> bool {
    platform::is_connected(port)
}

/// Finds and closes these connections, from liftoff until the application ends.
pub(super) struct DeadPeers;

#[rocket::async_trait]
impl Fairing for DeadPeers {
    fn info(&self) -> Info {
        Info {
            name: "Tidings: dead peers",
            kind: Kind::Liftoff,
        }
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        let Some(tidings) = rocket.state::<Arc<Tidings>>() else {
            return;
        };
        let Some(timeout) = tidings.settings().dead_peer_timeout() else {
            return;
        };
        let config = rocket.config();
        let address = SocketAddr::new(config.address, config.port);
        platform::watch(tidings, address, timeout);
    }
}

/// An accepted connection, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    /// The inode of its socket, which is unique as long as the socket exists.
    pub(super) inode: u64,
    /// How long ago data was last sent. `None` if this process has not sent anything.
    pub(super) sent_ago: Option<Duration>,
    /// Whether the peer's machine has not acknowledged everything that was sent.
    pub(super) is_unacknowledged: bool,
    /// Whether data has arrived that this process has not read, because it was suspended, for example.
    pub(super) is_unread: bool,
}

/// Returns the accepted connections to a local address.
pub(super) fn accepted(address: SocketAddr) -> io::Result<Vec<Connection>> {
    platform::accepted(address)
}

/// What happens to the data that the peer of a connection has not received when the connection is shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shutdown {
    /// The kernel continues to send it for a while.
    Deliver,
    /// It is discarded once the socket is closed, and the connection is reset.
    Discard,
}

/// Shuts down the sockets with these inodes. Calls `how` immediately before each shutdown; `None` leaves the socket open.
/// Returns the number of sockets that were shut down.
pub(super) fn shut_down(
    inodes: &HashSet<u64>,
    how: impl Fn(u64) -> Option<Shutdown>,
) -> io::Result<usize> {
    platform::shut_down(inodes, how)
}

/// Lets more connections wait to be accepted at this address. The kernel limits their number to `net.core.somaxconn`.
pub(super) fn extend_accept_queue(address: SocketAddr, connections: i32) -> io::Result<()> {
    platform::extend_accept_queue(address, connections)
}

/// Returns the peers of the connections to a local port that neither end has closed.
pub(super) fn open_to(port: u16) -> io::Result<HashSet<SocketAddr>> {
    platform::open_to(port)
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::collections::HashSet;
    use std::io;

    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use crate::service::Tidings;

    pub(super) fn is_connected(_: u16) -> bool {
        false
    }

    pub(super) fn watch(_: &Arc<Tidings>, _: SocketAddr, _: Duration) {
        tracing::warn!(
            "`dead_peer_timeout_secs` has no effect on this platform: the connections of clients that vanish stay open until the system drops them"
        );
    }

    pub(super) fn open_to(_: u16) -> io::Result<HashSet<SocketAddr>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn extend_accept_queue(_: SocketAddr, _: i32) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn accepted(_: SocketAddr) -> io::Result<Vec<super::Connection>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn shut_down(
        _: &HashSet<u64>,
        _: impl Fn(u64) -> Option<super::Shutdown>,
    ) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::collections::HashSet;
    use std::io;
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, Weak};
    use std::time::Duration;

    use rustix::net::sockopt;
    use tokio::task::spawn_blocking;

    use super::{Shutdown, descriptors, sock_diag};
    use crate::config::{
        DEAD_PEER_CHECK_MAX, DEAD_PEER_CHECK_MIN, DEAD_PEER_PROBES, DEAD_PEER_RETRANSMISSIONS,
        WRITE_STALL,
    };
    use crate::service::Tidings;
    use crate::tasks::Task;
    use crate::wire::Close;

    /// The number of checks per timeout.
    const CHECKS: u32 = 8;
    /// The number of probes that are sent to an idle peer within the timeout.
    const PROBES: u32 = 3;

    /// Ignores connections that wait to be accepted, which have no inode.
    pub(super) fn is_connected(port: u16) -> bool {
        let accepted = |connection: sock_diag::Connection| (connection.inode != 0).then_some(());
        sock_diag::connections(port, accepted).is_ok_and(|accepted| !accepted.is_empty())
    }

    pub(super) fn watch(tidings: &Arc<Tidings>, address: SocketAddr, timeout: Duration) {
        let prepared = listening_on(address).and_then(|listeners| {
            listeners
                .iter()
                .try_for_each(|listener| set_keep_alive(listener, timeout))
        });
        if let Err(error) = prepared {
            tracing::warn!(
                %error,
                "TCP keep-alive and TCP_USER_TIMEOUT cannot be set on the listening socket: connections whose peers are dead may stay open until the system drops them"
            );
        }
        let weak = Arc::downgrade(tidings);
        tidings.tasks().supervise(Task::new("dead peers"), move || {
            check(Weak::clone(&weak), address.port(), timeout)
        });
    }

    pub(super) fn extend_accept_queue(address: SocketAddr, connections: i32) -> io::Result<()> {
        // Listening again on a socket that listens already changes only the length of its queue.
        let mut listeners = listening_on(address)?.into_iter();
        listeners.try_for_each(|listener| Ok(rustix::net::listen(listener, connections)?))
    }

    fn listening_on(address: SocketAddr) -> io::Result<Vec<OwnedFd>> {
        let listeners = descriptors::listening_on(address)?;
        match listeners.is_empty() {
            true => Err(io::Error::other("no socket listens on this address")),
            false => Ok(listeners),
        }
    }

    /// Sets the options that accepted sockets inherit.
    pub(super) fn set_keep_alive(listener: &OwnedFd, timeout: Duration) -> io::Result<()> {
        let pause = (timeout / PROBES).max(Duration::from_secs(1));
        sockopt::set_tcp_keepidle(listener, pause)?;
        sockopt::set_tcp_keepintvl(listener, pause)?;
        sockopt::set_tcp_keepcnt(listener, PROBES)?;
        sockopt::set_socket_keepalive(listener, true)?;
        // A slow reader gets at least `WRITE_STALL` to make room.
        let timeout_ms = timeout.max(WRITE_STALL).as_millis();
        let timeout_ms = u32::try_from(timeout_ms).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(listener, timeout_ms)?;
        Ok(())
    }

    /// Checks for dead peers until the application ends.
    async fn check(tidings: Weak<Tidings>, port: u16, timeout: Duration) {
        let pause = (timeout / CHECKS).clamp(DEAD_PEER_CHECK_MIN, DEAD_PEER_CHECK_MAX);
        // A connection that just misses the limit at one check must be found by the next one before the timeout.
        let least = timeout.saturating_sub(pause);
        let (mut may_close, mut may_ask) = (true, true);
        loop {
            tokio::time::sleep(pause).await;
            let Some(streams) = tidings.upgrade().map(|tidings| tidings.streams()) else {
                return;
            };
            if streams == 0 {
                continue;
            }
            let found = spawn_blocking(move || dead(port, least)).await;
            let found = match found.map_err(io::Error::other).flatten() {
                Ok(found) if found.is_empty() => continue,
                Ok(found) => found,
                // Dead connections may occupy all descriptors. The next check may succeed.
                Err(error) => {
                    if !std::mem::take(&mut may_ask) {
                        continue;
                    }
                    tracing::warn!(
                        %error,
                        "the kernel does not report the state of connections: those of clients that vanish stay open for up to {} s",
                        timeout.max(WRITE_STALL).as_secs()
                    );
                    continue;
                }
            };
            let peers: HashSet<SocketAddr> =
                found.iter().map(|connection| connection.peer).collect();
            tracing::info!(
                connections = peers.len(),
                "connections whose peers acknowledge nothing are closed"
            );
            let inodes = found.iter().map(|connection| connection.inode).collect();
            let deliver = |_| Some(Shutdown::Deliver);
            let closed = spawn_blocking(move || shut_down(&inodes, deliver)).await;
            if let Err(error) = closed.map_err(io::Error::other).flatten()
                && std::mem::take(&mut may_close)
            {
                tracing::warn!(%error, "connections whose peers are dead cannot be shut down");
            }
            // The body of a response that has nothing to write does not notice the shutdown.
            if let Some(tidings) = tidings.upgrade() {
                tidings.hub().close_peers(&peers, Close::Silent);
            }
        }
    }

    pub(super) use super::descriptors::shut_down;

    pub(super) fn accepted(address: SocketAddr) -> io::Result<Vec<super::Connection>> {
        // Another server can have the same port of another address.
        let is_own = |local: IpAddr| {
            address.ip().is_unspecified() || local.to_canonical() == address.ip().to_canonical()
        };
        sock_diag::connections(address.port(), |connection| {
            // A connection without an inode waits to be accepted.
            if !is_own(connection.local) || connection.inode == 0 {
                return None;
            }
            Some(super::Connection {
                peer: connection.peer,
                inode: connection.inode,
                sent_ago: connection.has_sent?.then_some(connection.sent_ago),
                is_unacknowledged: connection.unacknowledged > 0,
                is_unread: connection.unread > 0,
            })
        })
    }

    pub(super) fn open_to(port: u16) -> io::Result<HashSet<SocketAddr>> {
        let open = |connection: sock_diag::Connection| {
            (!connection.is_half_closed).then_some(connection.peer)
        };
        Ok(sock_diag::connections(port, open)?.into_iter().collect())
    }

    /// Returns the connections to a local port whose peers are dead: silent for at least `least`.
    fn dead(port: u16, least: Duration) -> io::Result<Vec<sock_diag::Connection>> {
        sock_diag::connections(port, |connection| {
            let is_dead = connection.silent_for >= least && has_been_probed(&connection);
            is_dead.then_some(connection)
        })
    }

    /// Whether the peer has been probed several times since its last answer, and has had time to answer.
    ///
    /// The kernel counts probes since the last answer. It does not count retransmissions in this way: it also counts them while
    /// the peer acknowledges other bytes. So the last retransmission must have been sent after the last answer, and long enough
    /// ago to be answered.
    fn has_been_probed(connection: &sock_diag::Connection) -> bool {
        let is_unanswered = connection.sent_ago < connection.silent_for
            && connection.sent_ago >= connection.first_wait;
        connection.probes >= DEAD_PEER_PROBES
            || (connection.retransmissions >= DEAD_PEER_RETRANSMISSIONS && is_unanswered)
    }

    #[cfg(test)]
    mod tests {
        use std::net::{TcpListener, TcpStream};

        use super::*;

        #[test]
        fn what_is_set_on_the_listening_socket_holds_for_accepted_ones() {
            for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
                let listener = TcpListener::bind(address).unwrap();
                let _other = TcpListener::bind(address).unwrap();
                let _duplicate = listener.try_clone().unwrap();
                let address = listener.local_addr().unwrap();
                let found = descriptors::listening_on(address).unwrap();
                assert_eq!(found.len(), 1, "{address}");
                set_keep_alive(&found[0], Duration::from_secs(30)).unwrap();

                let port = address.port();
                let to = if address.is_ipv6() {
                    "::1"
                } else {
                    "127.0.0.1"
                };
                let _client = TcpStream::connect((to, port)).unwrap();
                let (accepted, _) = listener.accept().unwrap();
                assert!(sockopt::socket_keepalive(&accepted).unwrap());
                let pause = Duration::from_secs(10);
                assert_eq!(sockopt::tcp_keepidle(&accepted).unwrap(), pause);
                assert_eq!(sockopt::tcp_keepintvl(&accepted).unwrap(), pause);
                assert_eq!(sockopt::tcp_keepcnt(&accepted).unwrap(), PROBES);
                let timeout_ms = u128::from(sockopt::tcp_user_timeout(&accepted).unwrap());
                assert_eq!(timeout_ms, WRITE_STALL.as_millis());
            }
        }

        #[test]
        fn only_a_peer_that_was_probed_since_its_last_answer_and_had_time_to_answer_is_dead() {
            let secs = Duration::from_secs;
            let dead = sock_diag::Connection {
                peer: "192.0.2.1:80".parse().unwrap(),
                local: "192.0.2.2".parse().unwrap(),
                inode: 1,
                is_half_closed: false,
                silent_for: secs(30),
                sent_ago: secs(8),
                first_wait: secs(2),
                retransmissions: DEAD_PEER_RETRANSMISSIONS,
                probes: 0,
                has_sent: Some(true),
                unacknowledged: 0,
                unread: 0,
            };
            assert!(has_been_probed(&dead));
            let alive = |change: fn(&mut sock_diag::Connection)| {
                let mut connection = dead;
                change(&mut connection);
                !has_been_probed(&connection)
            };
            assert!(
                alive(|connection| connection.retransmissions = 2),
                "too few probes"
            );
            assert!(
                alive(|connection| connection.sent_ago = Duration::from_secs(31)),
                "answered since"
            );
            assert!(
                alive(|connection| connection.sent_ago = Duration::from_secs(1)),
                "probed just now"
            );
            let probed = |probes| sock_diag::Connection {
                probes,
                retransmissions: 0,
                ..dead
            };
            assert!(has_been_probed(&probed(DEAD_PEER_PROBES)));
            assert!(!has_been_probed(&probed(1)), "the answer may be on its way");
        }

        #[test]
        fn a_connection_is_found_by_its_port_and_shut_down_alone() {
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(address).unwrap();
                let address = listener.local_addr().unwrap();
                let doomed = TcpStream::connect(address).unwrap();
                let (accepted, peer) = listener.accept().unwrap();
                let kept = TcpStream::connect(address).unwrap();
                let (kept_accepted, _) = listener.accept().unwrap();
                let found = sock_diag::connections(address.port(), Some).unwrap();
                assert_eq!(found.len(), 2, "{found:?}");
                let connection = found
                    .iter()
                    .find(|connection| connection.peer == peer)
                    .unwrap();
                assert_eq!(peer, doomed.local_addr().unwrap());
                assert_eq!((connection.retransmissions, connection.probes), (0, 0));
                assert_eq!(connection.has_sent, Some(false));
                io::Write::write_all(&mut &kept_accepted, b"x").unwrap();
                let mut elsewhere = address;
                elsewhere.set_ip("192.0.2.1".parse().unwrap());
                assert_eq!(super::accepted(elsewhere).unwrap(), []);
                let found = super::accepted(address).unwrap();
                let unanswered = found.iter().filter(|entry| entry.sent_ago.is_none());
                let peers: Vec<SocketAddr> = unanswered.map(|entry| entry.peer).collect();
                assert_eq!(peers, [peer]);

                let inodes = [connection.inode].into();
                descriptors::shut_down(&inodes, |_| None).unwrap();
                let how = |inode| (inode == connection.inode).then_some(Shutdown::Deliver);
                descriptors::shut_down(&inodes, how).unwrap();
                let read = |mut stream: &TcpStream| {
                    stream.set_nonblocking(true).unwrap();
                    io::Read::read(&mut stream, &mut [0]).map_err(|error| error.kind())
                };
                assert_eq!(read(&accepted), Ok(0));
                assert_eq!(read(&kept_accepted), Err(io::ErrorKind::WouldBlock));
                assert_eq!(read(&kept), Ok(1));
                assert_eq!(read(&kept), Err(io::ErrorKind::WouldBlock));
            }
        }
    }
}
