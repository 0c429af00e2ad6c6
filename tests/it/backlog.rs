//! Clients that connect all at once, such as after a restart.

#![cfg(target_os = "linux")]

use std::net::{SocketAddr, TcpStream};

use crate::support::process::{Process, command};
use crate::support::*;

/// More than the 1,024 that Rocket's listener has room for, if the kernel permits.
const CLIENTS: usize = 3_000;

/// While a server does not accept connections, the kernel completes as many as its queue has room for.
#[test]
fn thousands_of_connections_can_wait_to_be_accepted() {
    let max = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let max: usize = max.trim().parse().unwrap();
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let clients = CLIENTS.min(max).min(usize::try_from(files).unwrap() / 2);
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    let address = server.url.strip_prefix("http://").unwrap();
    let address: SocketAddr = address.parse().unwrap();
    server.signal("STOP");
    let connect = |_| TcpStream::connect_timeout(&address, PATIENCE).expect("there is room");
    let _connections: Vec<TcpStream> = (0..clients).map(connect).collect();
    server.signal("CONT");
}
