//! Finds sockets of this process by their properties and duplicates them, because Rocket owns the sockets themselves.
//!
//! `pidfd_getfd` on the process itself duplicates a descriptor by its number. This needs no `unsafe`, because the number is
//! never taken for an owned descriptor. The number may be reused before it is duplicated, so the duplicate is checked.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, sockopt};
use rustix::process::{self, PidfdFlags, PidfdGetfdFlags};

use super::Shutdown;

/// Returns the sockets that listen on `address`.
pub(super) fn listening_on(address: SocketAddr) -> io::Result<Vec<OwnedFd>> {
    let is_wanted = |socket: &OwnedFd| {
        sockopt::socket_acceptconn(socket).unwrap_or(false)
            && net::getsockname(socket)
                .is_ok_and(|local| SocketAddr::try_from(local) == Ok(address))
    };
    // A concurrent check may hold duplicates, too. Count each socket once.
    let mut listening = HashMap::new();
    for socket in duplicates(|_| true)?.into_iter().filter(is_wanted) {
        let file = File::from(socket);
        listening.insert(file.metadata()?.ino(), OwnedFd::from(file));
    }
    Ok(listening.into_values().collect())
}

/// Shuts down the sockets with these inodes in both directions, so that their readers and writers return. Finding them takes
/// a while, so `how` is called immediately before each shutdown. Returns the number of sockets that were shut down.
pub(super) fn shut_down(
    inodes: &HashSet<u64>,
    how: impl Fn(u64) -> Option<Shutdown>,
) -> io::Result<usize> {
    let mut count = 0;
    for socket in duplicates(|inode| inodes.contains(&inode))? {
        let file = File::from(socket);
        let inode = file.metadata()?.ino();
        let Some(how) = inodes.get(&inode).and_then(|inode| how(*inode)) else {
            continue;
        };
        // These calls fail only if the connection has ended in the meantime, which is the goal.
        if how == Shutdown::Discard {
            let _ = sockopt::set_socket_linger(&file, Some(Duration::ZERO));
        }
        let _ = net::shutdown(&file, net::Shutdown::Both);
        count += 1;
    }
    Ok(count)
}

/// Returns duplicates of the sockets whose inodes are wanted. An inode may have changed since it was checked.
fn duplicates(is_wanted: impl Fn(u64) -> bool) -> io::Result<Vec<OwnedFd>> {
    let pidfd = process::pidfd_open(process::getpid(), PidfdFlags::empty())?;
    let mut sockets = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // Fails if the descriptor has been closed in the meantime.
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let inode = target
            .to_str()
            .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'))
            .and_then(|inode| inode.parse().ok());
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let (Some(inode), Some(number)) = (inode, number) else {
            continue;
        };
        if !is_wanted(inode) {
            continue;
        }
        match process::pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => sockets.push(socket),
            Err(Errno::BADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sockets)
}
