//! Duplicates of the process's own sockets, by what they are: the sockets themselves are in Rocket's hands.
//!
//! `pidfd_getfd` on the process itself duplicates a descriptor by its number, and needs no `unsafe` as no number is taken
//! for an owned descriptor. What a number stands for may change until it is duplicated, so it is looked at afterwards.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use rustix::net::{self, Shutdown, sockopt};
use rustix::process::{self, PidfdFlags, PidfdGetfdFlags};

/// The sockets that listen on `address`.
pub(super) fn listening_on(address: SocketAddr) -> io::Result<Vec<OwnedFd>> {
    let is_wanted = |socket: &OwnedFd| {
        sockopt::socket_acceptconn(socket).unwrap_or(false)
            && net::getsockname(socket).is_ok_and(|own| SocketAddr::try_from(own) == Ok(address))
    };
    // Another look may hold duplicates of its own at this moment: each socket counts once.
    let mut listening = HashMap::new();
    for socket in duplicates(|_| true)?.into_iter().filter(is_wanted) {
        let file = File::from(socket);
        listening.insert(file.metadata()?.ino(), OwnedFd::from(file));
    }
    Ok(listening.into_values().collect())
}

/// Shuts the sockets with these inodes down in both directions, so that their readers and writers are told.
pub(super) fn shut_down(inodes: &HashSet<u64>) -> io::Result<()> {
    for socket in duplicates(|inode| inodes.contains(&inode))? {
        let file = File::from(socket);
        if inodes.contains(&file.metadata()?.ino()) {
            // Fails only if it is over meanwhile, which is what is wanted.
            let _ = net::shutdown(&file, Shutdown::Both);
        }
    }
    Ok(())
}

/// Duplicates of the sockets whose inode, when it was looked at, was wanted.
fn duplicates(is_wanted: impl Fn(u64) -> bool) -> io::Result<Vec<OwnedFd>> {
    let own = process::pidfd_open(process::getpid(), PidfdFlags::empty())?;
    let mut sockets = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // Fails if it is closed meanwhile.
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
        match process::pidfd_getfd(&own, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => sockets.push(socket),
            Err(Errno::BADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sockets)
}
