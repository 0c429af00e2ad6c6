//! A network between a client and its server, which can be cut.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::Server;

/// Passes connections on to a server.
pub(crate) struct Forwarder {
    /// The URL to use in place of the server's.
    pub(crate) url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    is_cut: AtomicBool,
    /// How many connections were cut off.
    cuts: AtomicUsize,
    target: Mutex<String>,
}

impl Forwarder {
    pub(crate) fn to(server: &Server) -> Forwarder {
        Forwarder::to_url(&server.url)
    }

    /// A connection that arrives while nothing listens at this URL is closed.
    pub(crate) fn to_url(url: &str) -> Forwarder {
        let target = url.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            ..Shared::default()
        });
        let for_connections = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&for_connections);
                let target = shared.target.lock().unwrap().clone();
                std::thread::spawn(move || forward(&stream.unwrap(), &target, &shared));
            }
        });
        Forwarder { url, shared }
    }

    /// Passes connections on to another server from now on, and ends the others with their next bytes.
    pub(crate) fn redirect(&self, server: &Server) {
        let address = server.url.strip_prefix("http://").unwrap();
        *self.shared.target.lock().unwrap() = address.to_owned();
    }

    /// While it is cut, whatever arrives ends its connection, and is lost.
    pub(crate) fn cut(&self, is_cut: bool) {
        self.shared.is_cut.store(is_cut, Ordering::Relaxed);
    }

    /// How many connections were cut off so far.
    pub(crate) fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::Relaxed)
    }
}

/// Passes on both directions.
fn forward(client: &TcpStream, target: &str, shared: &Shared) {
    let Ok(server) = TcpStream::connect(target) else {
        return;
    };
    let is_redirected = || *shared.target.lock().unwrap() != target;
    let pass = |mut from: &TcpStream, mut to: &TcpStream| {
        let mut part = [0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut part) {
            if shared.is_cut.load(Ordering::Relaxed) || is_redirected() {
                shared.cuts.fetch_add(1, Ordering::Relaxed);
                break;
            }
            if to.write_all(&part[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| pass(client, &server));
        pass(&server, client);
    });
}
