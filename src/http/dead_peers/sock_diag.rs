//! The state of a local port's TCP connections, read from the kernel over netlink (`sock_diag(7)`). Needs no privileges.
//!
//! The layout of the messages is the kernel's ABI: `linux/netlink.h`, `linux/inet_diag.h`, and `struct tcp_info` in
//! `linux/tcp.h`. Numbers are in native byte order, ports and addresses in network byte order.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt,
};

/// How long to wait for a part of the kernel's answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Larger than any part of the kernel's answer, which has at most 32 KiB.
const PART_BYTES: usize = 64 * 1024;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NETLINK_HEADER: usize = 16;
const REQUEST: usize = 56;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_INFO: u16 = 2;
const ESTABLISHED: u8 = 1;
/// The states *established* and *half closed by the peer*.
const STATES: u32 = 1 << ESTABLISHED | 1 << 8;
/// The part of an answer before its attributes.
const DIAG: usize = 72;

/// The relevant properties of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    /// The address of this end.
    pub(super) local: IpAddr,
    pub(super) inode: u64,
    /// Whether the peer has closed its end.
    pub(super) is_half_closed: bool,
    /// How long ago the peer's kernel last sent an acknowledgement or data.
    pub(super) silent_for: Duration,
    /// How long ago data was last sent or retransmitted.
    pub(super) sent_ago: Duration,
    /// How long the kernel waits for an answer before the first retry. It doubles this time for each further retry.
    pub(super) first_wait: Duration,
    /// How often the oldest unacknowledged bytes were retransmitted.
    pub(super) retransmissions: u8,
    /// The number of consecutive probes without an answer.
    pub(super) probes: u8,
    /// Whether this end has sent data. `None` if the kernel is older than 4.6.
    pub(super) has_sent: Option<bool>,
    /// The number of bytes that this end has written and the peer has not acknowledged.
    pub(super) unacknowledged: u32,
    /// The number of bytes that have arrived and this process has not read.
    pub(super) unread: u32,
}

/// Returns what `pick` returns for the connections to a local port. It chooses while the kernel's answer is read, because there can be
/// many connections.
pub(super) fn connections<T>(
    port: u16,
    mut pick: impl FnMut(Connection) -> Option<T>,
) -> io::Result<Vec<T>> {
    let flags = SocketFlags::CLOEXEC;
    let kernel = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        flags,
        Some(netlink::SOCK_DIAG),
    )?;
    sockopt::set_socket_timeout(&kernel, sockopt::Timeout::Recv, Some(ANSWER_WAIT))?;
    let mut found = Vec::new();
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        let asked = send(&kernel, &request(family, port), SendFlags::empty());
        asked.map_err(io::Error::from)?;
        take_answer(&kernel, |message| {
            found.extend(connection(message, port).and_then(&mut pick));
        })?;
    }
    Ok(found)
}

fn request(family: AddressFamily, port: u16) -> Vec<u8> {
    let length = NETLINK_HEADER + REQUEST;
    let mut request = Vec::with_capacity(length);
    // nlmsghdr: length, type, flags, sequence number, sender.
    request.extend(u32::try_from(length).expect("some 70 bytes").to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]);
    // inet_diag_req_v2: family, protocol, attributes wanted, padding, states, and the socket's own port.
    let family = u8::try_from(family.as_raw()).expect("an internet family");
    request.extend([family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    request.extend(STATES.to_ne_bytes());
    request.extend(port.to_be_bytes());
    request.resize(length, 0);
    request
}

/// Reads an answer to its end, and passes on the descriptions of sockets.
fn take_answer(kernel: &OwnedFd, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is malformed");
    let mut buffer = vec![0; PART_BYTES];
    loop {
        let (length, _) = recv(kernel, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let length = u32_at(rest, 0).ok_or_else(malformed)? as usize;
            let message = rest.get(NETLINK_HEADER..length).ok_or_else(malformed)?;
            match u16_at(rest, 4) {
                Some(NLMSG_DONE) => return Ok(()),
                Some(NLMSG_ERROR) => {
                    let code = u32_at(message, 0).ok_or_else(malformed)?;
                    return Err(io::Error::from_raw_os_error(
                        code.cast_signed().wrapping_neg(),
                    ));
                }
                Some(SOCK_DIAG_BY_FAMILY) => take(message),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Reads an `inet_diag_msg` and its attributes. None if it is for another port or is incomplete.
fn connection(message: &[u8], port: u16) -> Option<Connection> {
    let family = AddressFamily::from_raw(u16::from(*message.first()?));
    let port_at = |at: usize| {
        Some(u16::from_be_bytes(
            message.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    if port_at(4)? != port {
        return None;
    }
    let address_at = |at: usize| -> Option<IpAddr> {
        let address = message.get(at..at + 16)?;
        Some(if family == AddressFamily::INET {
            Ipv4Addr::from(<[u8; 4]>::try_from(&address[..4]).ok()?).into()
        } else {
            Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into()
        })
    };
    let inode = u32_at(message, 68)?;
    let info = attribute(message.get(DIAG..)?, INET_DIAG_INFO)?;
    // tcp_info: tcpi_last_data_recv and tcpi_last_ack_recv.
    let heard = u32_at(info, 52)?.min(u32_at(info, 56)?);
    let millis = |value: u32| Duration::from_millis(value.into());
    Some(Connection {
        peer: SocketAddr::new(address_at(24)?, port_at(6)?),
        local: address_at(8)?,
        inode: inode.into(),
        is_half_closed: *message.get(1)? != ESTABLISHED,
        silent_for: millis(heard),
        sent_ago: millis(u32_at(info, 44)?),
        first_wait: first_wait(u32_at(info, 8)?, *info.get(4)?),
        retransmissions: *info.get(2)?,
        probes: *info.get(3)?,
        // tcp_info: tcpi_data_segs_out.
        has_sent: u32_at(info, 156).map(|segments| segments > 0),
        unacknowledged: u32_at(message, 60)?,
        unread: u32_at(message, 56)?,
    })
}

/// Computes the wait before the first retry from `tcpi_rto`, the current wait, and `tcpi_backoff`, how often it was doubled.
fn first_wait(micros: u32, backoff: u8) -> Duration {
    let first = micros.checked_shr(backoff.into()).unwrap_or_default();
    Duration::from_micros(first.into())
}

fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        if u16_at(rest, 2)? == wanted {
            return rest.get(4..length);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
