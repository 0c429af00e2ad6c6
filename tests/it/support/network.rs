//! Machines that are connected by cables: network namespaces, connected by pairs of virtual interfaces. Changes to
//! their routes affect nothing else.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{self, AddressFamily, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::skip;

/// Returns an address from a range that is reserved for documentation. Each cable has four addresses.
fn address(cable: usize, host: u8) -> Ipv4Addr {
    let cable = u8::try_from(cable).expect("few cables");
    Ipv4Addr::new(192, 0, 2, cable * 4 + host)
}

/// How a connection is lost. In no case does a FIN, a RST or an ICMP message reach the server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Loss {
    /// The far end receives the server's packets, but its own packets are dropped.
    NoWayBack,
    /// The far end's interface is down: packets are dropped in both directions.
    Unplugged,
}

/// A network, whose namespaces have unique names. It is removed when it is dropped.
pub(crate) struct Network {
    near: String,
    far: Vec<String>,
}

impl Network {
    /// Creates a network with this many far ends. Returns none if that is not possible: it requires root and `ip`.
    pub(crate) fn lay(ends: usize) -> Option<Network> {
        static LAID: AtomicUsize = AtomicUsize::new(0);
        let number = LAID.fetch_add(1, Ordering::Relaxed);
        let name = format!("tidings-{}-{number}", std::process::id());
        let network = Network {
            near: format!("{name}-near"),
            far: (0..ends).map(|end| format!("{name}-far{end}")).collect(),
        };
        let near = &network.near;
        let mut commands = vec![
            format!("netns add {near}"),
            format!("-n {near} link set lo up"),
        ];
        for (cable, far) in network.far.iter().enumerate() {
            let (near_address, far_address) = (address(cable, 1), address(cable, 2));
            commands.extend([
                format!("netns add {far}"),
                format!("-n {near} link add cable{cable} type veth peer name cable netns {far}"),
                format!("-n {near} addr add {near_address}/30 dev cable{cable}"),
                format!("-n {far} addr add {far_address}/30 dev cable"),
                format!("-n {near} link set cable{cable} up"),
                format!("-n {far} link set cable up"),
            ]);
        }
        let is_laid = commands.iter().all(|command| ip(command));
        (is_laid || skip("what network namespaces need (root and iproute2)")).then_some(network)
    }

    /// Runs a function at the server's end. Its sockets, and those of the threads that it starts, belong to that end.
    pub(crate) fn near<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        inside(&self.near, run)
    }

    /// Connects to the server from a far end, with a receive buffer of this many bytes.
    pub(crate) fn connect(&self, end: usize, port: u16, receive_buffer: usize) -> TcpStream {
        let server = SocketAddr::from((address(end, 1), port));
        inside(&self.far[end], || {
            let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            set_socket_recv_buffer_size(&socket, receive_buffer).unwrap();
            net::connect(&socket, &server).unwrap();
            socket.into()
        })
    }

    /// From now on, nothing from a far end reaches the server.
    pub(crate) fn lose(&self, end: usize, loss: Loss) {
        let (far, server) = (&self.far[end], address(end, 1));
        let command = match loss {
            Loss::NoWayBack => format!("-n {far} route add blackhole {server}/32"),
            Loss::Unplugged => format!("-n {far} link set cable down"),
        };
        assert!(ip(&command), "{command}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The interfaces are deleted with the namespaces. Fails only if a namespace was not added.
        for name in self.far.iter().chain([&self.near]) {
            ip(&format!("netns del {name}"));
        }
    }
}

fn ip(command: &str) -> bool {
    let output = Command::new("ip").args(command.split(' ')).output();
    output.is_ok_and(|output| output.status.success())
}

/// Runs a function in a namespace, on a separate thread, because a thread belongs to one namespace.
fn inside<T: Send>(name: &str, run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = File::open(format!("/run/netns/{name}")).unwrap();
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            run()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
