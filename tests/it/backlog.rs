//! Clients that connect all at once, such as after a restart.

#![cfg(target_os = "linux")]

use std::net::{SocketAddr, TcpStream};

use crate::support::process::{Process, command};
use crate::support::*;

/// More than the 1,024 that Rocket's listener has room for.
const CLIENTS: usize = 3_000;

/// While a server does not accept connections, the kernel completes as many as its queue has room for.
#[test]
fn thousands_of_connections_can_wait_to_be_accepted() {
    let max = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let max: usize = max.trim().parse().unwrap();
    if max < CLIENTS {
        skip("a kernel whose net.core.somaxconn is at least 3000");
        return;
    }
    if rlimit::increase_nofile_limit(u64::MAX).unwrap_or_default() < 2 * CLIENTS as u64 {
        skip("a limit of open files of at least 6000");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    let address = server.url.strip_prefix("http://").unwrap();
    let address: SocketAddr = address.parse().unwrap();
    server.signal("STOP");
    let connect = |_| TcpStream::connect_timeout(&address, PATIENCE).expect("there is room");
    let connections: Vec<TcpStream> = (0..CLIENTS).map(connect).collect();
    server.signal("CONT");
    assert_eq!(connections.len(), CLIENTS);
}
