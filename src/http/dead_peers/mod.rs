//! Connections whose peers are gone without a word: no FIN and no RST ever comes, because the machine has lost its power
//! or its network.
//!
//! By itself the kernel gives up such a connection after some 15 minutes of retransmissions, and one that waits idle
//! never. `TCP_USER_TIMEOUT` shortens this, but it also ends a connection whose peer is alive and keeps its receive
//! window closed for so long (`tcp_probe_timer`): it cannot tell a dead reader from a slow one. So it is set to the time
//! after which a reader that takes nothing may be given up anyway, and who is dead is found by asking the kernel:
//!
//! 1. At liftoff the listening socket is given keep-alive and `TCP_USER_TIMEOUT`. Accepted sockets inherit both, so
//!    that a peer with nothing to acknowledge is asked for a sign of life.
//! 2. A task looks at the port's connections (`sock_diag`) every now and then. One whose peer has acknowledged nothing
//!    for `dead_peer_timeout_secs`, though it was asked several times, is shut down, and its streams are told to close,
//!    since a body that has nothing to write does not notice.
//!
//! A slow reader's kernel answers each probe of its closed window, and is never taken for dead.
//!
//! Deliberately absent: `SO_LINGER`. What is queued on a closed connection goes on being retransmitted for a while, so a
//! peer that comes back is told that the stream is over, and reconnects with its cursor.

#[cfg(target_os = "linux")]
mod descriptors;
#[cfg(target_os = "linux")]
mod sock_diag;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rocket::fairing::{Fairing, Info, Kind};
use rocket::{Orbit, Rocket};

use crate::service::Tidings;

/// Whether anybody is connected to a local port, as far as the kernel tells.
pub(super) fn is_connected(port: u16) -> bool {
    platform::is_connected(port)
}

/// Finds and ends them, from liftoff until the application is gone.
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

/// The peers of the connections to a local port that neither end has closed.
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
            "`dead_peer_timeout_secs` has no effect on this platform: readers that vanish without a word keep their place until the system gives their connections up"
        );
    }

    pub(super) fn open_to(_: u16) -> io::Result<HashSet<SocketAddr>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::collections::HashSet;
    use std::io;
    use std::net::SocketAddr;
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, Weak};
    use std::time::Duration;

    use rustix::net::sockopt;
    use tokio::task::spawn_blocking;

    use super::{descriptors, sock_diag};
    use crate::config::{
        DEAD_PEER_LOOK_MAX, DEAD_PEER_LOOK_MIN, DEAD_PEER_PROBES, DEAD_PEER_RETRANSMISSIONS,
        WRITE_STALL,
    };
    use crate::service::Tidings;
    use crate::tasks::Task;
    use crate::wire::Close;

    /// Looks at a connection's silence that fit into the time after which it is over.
    const LOOKS: u32 = 8;
    /// Signs of life that an idle peer is asked for in that time.
    const QUESTIONS: u32 = 3;

    /// One that waits to be accepted has no inode yet, and is nobody's.
    pub(super) fn is_connected(port: u16) -> bool {
        let connections = sock_diag::connections(port).unwrap_or_default();
        connections.iter().any(|own| own.inode != 0)
    }

    pub(super) fn watch(tidings: &Arc<Tidings>, address: SocketAddr, timeout: Duration) {
        let prepared = descriptors::listening_on(address).and_then(|listeners| {
            if listeners.is_empty() {
                return Err(io::Error::other("no such socket is listening"));
            }
            listeners
                .iter()
                .try_for_each(|listener| ask_for_signs_of_life(listener, timeout))
        });
        if let Err(error) = prepared {
            tracing::warn!(
                %error,
                "the listening socket cannot be given TCP keep-alive and TCP_USER_TIMEOUT: connections whose peers are dead may stay open until the system gives them up"
            );
        }
        let weak = Arc::downgrade(tidings);
        tidings.tasks().supervise(Task::new("dead peers"), move || {
            look(Weak::clone(&weak), address.port(), timeout)
        });
    }

    /// Sets what accepted sockets inherit.
    pub(super) fn ask_for_signs_of_life(listener: &OwnedFd, timeout: Duration) -> io::Result<()> {
        let pause = (timeout / QUESTIONS).max(Duration::from_secs(1));
        sockopt::set_tcp_keepidle(listener, pause)?;
        sockopt::set_tcp_keepintvl(listener, pause)?;
        sockopt::set_tcp_keepcnt(listener, QUESTIONS)?;
        sockopt::set_socket_keepalive(listener, true)?;
        // No less than a slow reader may take to make room.
        let most = timeout.max(WRITE_STALL).as_millis();
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(listener, most)?;
        Ok(())
    }

    /// Looks for dead peers until the application is gone.
    async fn look(tidings: Weak<Tidings>, port: u16, timeout: Duration) {
        let pause = (timeout / LOOKS).clamp(DEAD_PEER_LOOK_MIN, DEAD_PEER_LOOK_MAX);
        // So that who is not found by one look is found by the next, in time.
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
                // It may be for want of a descriptor, which the dead may hold: the next look may do better.
                Err(error) => {
                    if !std::mem::take(&mut may_ask) {
                        continue;
                    }
                    tracing::warn!(
                        %error,
                        "the kernel does not tell the state of connections: readers that vanish without a word keep their place for up to {} s",
                        timeout.max(WRITE_STALL).as_secs()
                    );
                    continue;
                }
            };
            let peers: HashSet<SocketAddr> = found.iter().map(|own| own.peer).collect();
            tracing::info!(
                connections = peers.len(),
                "connections whose peers acknowledge nothing are closed"
            );
            let inodes = found.iter().map(|own| own.inode).collect();
            let closed = spawn_blocking(move || descriptors::shut_down(&inodes)).await;
            if let Err(error) = closed.map_err(io::Error::other).flatten()
                && std::mem::take(&mut may_close)
            {
                tracing::warn!(%error, "connections whose peers are dead cannot be shut down");
            }
            // A body that waits for something to write does not notice.
            if let Some(tidings) = tidings.upgrade() {
                tidings.hub().close_peers(&peers, Close::Silent);
            }
        }
    }

    pub(super) fn open_to(port: u16) -> io::Result<HashSet<SocketAddr>> {
        let connections = sock_diag::connections(port)?.into_iter();
        let open = connections.filter(|own| !own.is_half_closed);
        Ok(open.map(|own| own.peer).collect())
    }

    /// The connections to a local port whose peers are dead: silent for at least so long.
    fn dead(port: u16, least: Duration) -> io::Result<Vec<sock_diag::Connection>> {
        let mut connections = sock_diag::connections(port)?;
        connections.retain(|own| own.silent_for >= least && is_asked(own));
        Ok(connections)
    }

    /// Whether the peer was asked for an answer since it was last heard of, several times, and has had the time to give one.
    ///
    /// Probes are counted from the last answer on. Retransmissions are not: they are also counted while the peer answers
    /// that it has received other bytes than these. So the last one must have been sent after the last answer, and long
    /// enough ago for another.
    fn is_asked(own: &sock_diag::Connection) -> bool {
        let in_vain = own.sent_ago < own.silent_for && own.sent_ago >= own.first_wait;
        own.probes >= DEAD_PEER_PROBES
            || (own.retransmissions >= DEAD_PEER_RETRANSMISSIONS && in_vain)
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
                ask_for_signs_of_life(&found[0], Duration::from_secs(30)).unwrap();

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
                assert_eq!(sockopt::tcp_keepcnt(&accepted).unwrap(), QUESTIONS);
                let most = u128::from(sockopt::tcp_user_timeout(&accepted).unwrap());
                assert_eq!(most, WRITE_STALL.as_millis());
            }
        }

        #[test]
        fn only_who_was_asked_since_and_had_the_time_to_answer_is_dead() {
            let secs = Duration::from_secs;
            let dead = sock_diag::Connection {
                peer: "192.0.2.1:80".parse().unwrap(),
                inode: 1,
                is_half_closed: false,
                silent_for: secs(30),
                sent_ago: secs(8),
                first_wait: secs(2),
                retransmissions: DEAD_PEER_RETRANSMISSIONS,
                probes: 0,
            };
            assert!(is_asked(&dead));
            let alive = |change: fn(&mut sock_diag::Connection)| {
                let mut own = dead;
                change(&mut own);
                !is_asked(&own)
            };
            assert!(alive(|own| own.retransmissions = 2), "hardly asked");
            assert!(
                alive(|own| own.sent_ago = Duration::from_secs(31)),
                "answered since"
            );
            assert!(
                alive(|own| own.sent_ago = Duration::from_secs(1)),
                "asked just now"
            );
            let probed = |probes| sock_diag::Connection {
                probes,
                retransmissions: 0,
                ..dead
            };
            assert!(is_asked(&probed(DEAD_PEER_PROBES)));
            assert!(!is_asked(&probed(1)), "the answer may be on its way");
        }

        #[test]
        fn a_connection_is_found_by_its_port_and_shut_down_alone() {
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(address).unwrap();
                let address = listener.local_addr().unwrap();
                let doomed = TcpStream::connect(address).unwrap();
                let (accepted, peer) = listener.accept().unwrap();
                let kept = TcpStream::connect(address).unwrap();
                let (other, _) = listener.accept().unwrap();
                let found = sock_diag::connections(address.port()).unwrap();
                assert_eq!(found.len(), 2, "{found:?}");
                let own = found.iter().find(|own| own.peer == peer).unwrap();
                assert_eq!(peer, doomed.local_addr().unwrap());
                assert_eq!((own.retransmissions, own.probes), (0, 0));

                descriptors::shut_down(&[own.inode].into()).unwrap();
                let read = |mut stream: &TcpStream| {
                    stream.set_nonblocking(true).unwrap();
                    io::Read::read(&mut stream, &mut [0]).map_err(|error| error.kind())
                };
                assert_eq!(read(&accepted), Ok(0));
                assert_eq!(read(&other), Err(io::ErrorKind::WouldBlock));
                assert_eq!(read(&kept), Err(io::ErrorKind::WouldBlock));
            }
        }
    }
}
